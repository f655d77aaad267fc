"""A search by several processes: its number of trials, its observer, and what is left when one of them dies."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import psutil
import pytest
from optuna.trial import TrialState
from safetensors.torch import load_file, save_file

from hpsearch.errors import UsageError
from hpsearch.owner import Owner
from hpsearch.study import load_study, open_for_reading
from hpsearch.workers import Placement, Resources, place

if TYPE_CHECKING:
    from collections.abc import Callable

    from optuna.trial import FrozenTrial

_GIB = 2**30


# --- Where they run ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "here", "expected"),
    [
        (None, Resources((), 1, 8 * _GIB), Placement(1, (None,))),
        (None, Resources((), 2, 24 * _GIB), Placement(1, (None, None))),
        (None, Resources((), 16, 64 * _GIB), Placement(4, (None,) * 4)),
        (None, Resources((), 16, 4 * _GIB), Placement(8, (None,) * 2)),
        (None, Resources((), 2, 1), Placement(2, (None,))),
        (3, Resources((), 2, 1), Placement(1, (None,) * 3)),
        (1, Resources((), 8, 64 * _GIB), Placement(8, (None,))),
        (None, Resources(("0",), 16, 64 * _GIB), Placement(16, ("0",))),
        (None, Resources(("2", "GPU-5"), 16, 64 * _GIB), Placement(8, ("2", "GPU-5"))),
        (1, Resources(("2", "3"), 16, 64 * _GIB), Placement(16, ("2",))),
    ],
)
def test_workers_get_devices_and_cores(asked: int | None, here: Resources, expected: Placement) -> None:
    assert place(asked, here, per_gpu=1, n_trials=20, weights=_GIB // 10) == expected


def test_workers_share_gpus_evenly() -> None:
    here = Resources(("0", "1"), 8, 64 * _GIB)
    assert place(None, here, per_gpu=2, n_trials=20, weights=1).devices == ("0", "1", "0", "1")
    assert place(3, here, per_gpu=2, n_trials=20, weights=1).devices == ("0", "1", "0")


def test_no_more_workers_start_by_themselves_than_there_are_trials() -> None:
    assert len(place(None, Resources((), 8, 64 * _GIB), per_gpu=1, n_trials=2, weights=1).devices) == 2
    assert len(place(None, Resources(("0", "1"), 8, 64 * _GIB), per_gpu=4, n_trials=3, weights=1).devices) == 3


def test_more_workers_than_places_on_the_gpus_are_refused() -> None:
    with pytest.raises(
        UsageError, match=r"--workers: expected at most 2 on 2 GPU\(s\), got 3; raise --workers-per-gpu"
    ):
        place(3, Resources(("0", "1"), 8, _GIB), per_gpu=1, n_trials=20, weights=1)


# --- For real ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(toy_yaml: Path) -> Path:
    return toy_yaml.parent


def _start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hpsearch", "run", "--config", "toy.yaml", "--workers", "2", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=pipe, encoding="utf-8", start_new_session=True)


def _trials(folder: Path) -> list[FrozenTrial]:
    database = folder / "studies" / "hpsearch.db"
    if not database.exists():
        return []
    try:
        storage = open_for_reading(f"sqlite:///{database}")
    except UsageError:
        return []  # its tables are still being made
    if "toy" not in optuna.study.get_all_study_names(storage):
        return []
    return load_study(storage, "toy").get_trials(deepcopy=False)


def _until(condition: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> Any:
    give_up = time.monotonic() + 120
    while not (found := condition()):
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < give_up
        time.sleep(0.02)
    return found


def _finished(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    return [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]


def _running_elsewhere(folder: Path) -> list[FrozenTrial]:
    """Return the running trials that have reported a value, if two processes have one each."""
    running = [trial for trial in _trials(folder) if trial.state == TrialState.RUNNING and trial.intermediate_values]
    return running if len({Owner.of(trial) for trial in running}) == 2 else []


_LONG = ("--set", "space.num_train_epochs=null", "--set", "defaults.num_train_epochs=40")


@pytest.mark.slow
def test_workers_share_a_study_and_a_killed_one_is_replaced(folder: Path) -> None:
    process = _start(folder, "--trials", "6", *_LONG)
    victim = _until(lambda: _running_elsewhere(folder), process)[0]
    os.kill(Owner.of(victim).pid, signal.SIGKILL)  # type: ignore[union-attr]
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    trials = _trials(folder)
    assert len(_finished(trials)) == 6
    assert [trial.number for trial in trials if trial.state == TrialState.FAIL] == [victim.number]
    assert trials[victim.number].user_attrs["failure"] == "the process died"
    (again,) = [trial for trial in trials if trial.user_attrs.get("retry_of") == victim.number]
    assert again.params == victim.params
    assert again in _finished(trials)
    assert len({Owner.of(trial).pid for trial in trials}) == 3, "two workers and one in the place of the killed one"  # type: ignore[union-attr]
    assert re.search(
        r"note: worker \d died, killed by signal 9, probably out of memory; another one takes its place", err
    )
    assert f"note: trial {victim.number} was cut short when its process died" in err
    assert len(re.findall(r"trial \d+ (?:complete|pruned) ", err)) == 6
    assert out.startswith("study toy   f1, maximize   ")
    kept = [path.name for path in (folder / "studies" / "toy").glob("trial-*")]
    best = sorted((t for t in trials if t.state == TrialState.COMPLETE), key=lambda t: (-(t.value or 0), t.number))[:3]
    assert sorted(kept) == sorted(f"trial-{trial.number:04d}" for trial in best)
    assert not list((folder / "studies" / "toy").glob(".*partial*"))


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_the_command(folder: Path, how: signal.Signals) -> None:
    process = _start(
        folder, "--trials", "4", "--set", "space.num_train_epochs=null", "--set", "defaults.num_train_epochs=500"
    )
    running = _until(lambda: _running_elsewhere(folder), process)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(how)
    process.communicate(timeout=60)
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []
    assert process.returncode == (130 if how == signal.SIGTERM else -9)
    closed = [_trials(folder)[trial.number] for trial in running]
    assert [trial.user_attrs["failure"] for trial in closed] == ["interrupted"] * 2
    if how == signal.SIGTERM:
        return
    # The same command goes on.
    process = _start(
        folder, "--trials", "1", "--set", "space.num_train_epochs=null", "--set", "defaults.num_train_epochs=500"
    )
    process.communicate(timeout=200)
    trials = _trials(folder)
    assert len(_finished(trials)) == 1
    assert {trial.user_attrs.get("retry_of") for trial in trials} >= {trial.number for trial in running}


@pytest.mark.slow
def test_what_is_wrong_for_every_worker_is_said_once(folder: Path, tiny_model: Path) -> None:
    broken = Path(shutil.copytree(tiny_model, folder / "broken"))
    weights = load_file(broken / "model.safetensors")
    for name in weights:
        if "word_embeddings" in name:
            weights[name].fill_(float("nan"))
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    process = _start(folder, "--trials", "6", "--set", f"model.name={broken}", "--set", "search.max_failures=2")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert re.findall("^error: .*", err, flags=re.MULTILINE) == [
        "error: study 'toy': expected a trial that works, got 2 failed ones in a row, the last with TrainingError: "
        "diverged: the training loss is nan at evaluation 1; mend the cause and run again"
    ]
