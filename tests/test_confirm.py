"""Confirmation on toy rows through the real command line: ranked, resumed, shared, followed, exported."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from hpsearch.choice import choose
from hpsearch.errors import StudyError
from hpsearch.evidence import confirmation_of
from hpsearch.flips import read_flips
from hpsearch.observer import Observer
from hpsearch.runs import Runs, Training, fresh_seeds
from hpsearch.study import load_study, open_storage
from tests.test_end_to_end import document, hpsearch, start

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    import optuna

    from hpsearch.config import Config

TOY = "studies/toy"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, toy_csv: Path) -> Path:
    """Return a folder with a search of 4 trials whose defaults learn too slowly; one checkpoint is kept."""
    folder = tmp_path_factory.mktemp("confirmed")
    (folder / "toy.yaml").write_text(
        f"""
model: {{name: {tiny_model}}}
data: {{train: {toy_csv}, train_rows: 240, validation_rows: 40, test_rows: 40}}
defaults: {{learning_rate: 2e-4, num_train_epochs: 3, per_device_train_batch_size: 8, hidden_dropout_prob: 0.0}}
space:
  learning_rate: {{type: float, low: 2e-4, high: 1.2e-2}}
search: {{trials: 4, evaluations: 2, seed: 7, pruner: none, keep_checkpoints: 1}}
""",
        encoding="utf-8",
    )
    hpsearch(folder, "run", "--config", "toy.yaml")
    return folder


@pytest.fixture
def folder(template: Path, tmp_path: Path) -> Path:
    """Return a copy of the template."""
    return shutil.copytree(template, tmp_path / "here")


def _records(folder: Path, kind: str = "confirmation") -> dict[str, int]:
    """Return the finished trainings with when they were written."""
    return {path.name: path.stat().st_mtime_ns for path in (folder / TOY / kind).glob("*.json")}


def _study(folder: Path) -> optuna.Study:
    return load_study(open_storage(f"sqlite:///{folder}/studies/hpsearch.db", create=False), "toy")


def _wait_for_a_record(folder: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not _records(folder):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no training was finished"
        time.sleep(0.01)


@pytest.mark.slow
def test_the_confirmed_winner_is_exported_and_compared(folder: Path) -> None:
    for checkpoint in (folder / TOY).glob("trial-*"):
        shutil.rmtree(checkpoint)
    confirmed = document(folder, "confirm", "--top", "2", "--seeds", "2")
    trials = document(folder, "show", "toy")["trials"]
    candidates = confirmed["candidates"]
    assert confirmed["seeds"] == [108, 109]
    assert [candidate["is_defaults"] for candidate in candidates].count(True) == 1
    assert len(candidates) == 3
    for candidate in candidates:
        assert candidate["params"] == trials[candidate["trial"]]["params"]
        assert candidate["search_value"] == trials[candidate["trial"]]["value"]
        assert candidate["mean"] == pytest.approx(np.mean(candidate["values"]))
    assert [one["mean"] for one in candidates] == sorted((one["mean"] for one in candidates), reverse=True)
    assert confirmed["winner"] == candidates[0]["trial"]
    assert confirmed["winner"] != 0
    records = _records(folder)
    assert len(records) == 6
    kept = json.loads((folder / TOY / "confirmation" / next(iter(records))).read_text(encoding="utf-8"))
    assert kept["probabilities"] is None

    # Less of the same trains nothing.
    text = hpsearch(folder, "confirm", "--top", "1", "--seeds", "1")
    assert "started" not in text.stderr
    assert re.search(
        rf"winner: trial {candidates[0]['trial']}, f1 \d\.\d{{4}} on fresh seeds, .* than in the search", text.stdout
    )
    assert _records(folder) == records

    # The checkpoint was gone; it is what the search had.
    exported = document(folder, "export-best")
    assert (exported["trial"], exported["chosen_by"]) == (confirmed["winner"], "confirmation")
    assert exported["value"] == pytest.approx(trials[confirmed["winner"]]["value"], abs=1e-6)

    compared = document(folder, "compare", "--seeds", "2")
    assert (compared["trial"], compared["chosen_by"]) == (confirmed["winner"], "confirmation")
    assert compared["seeds"] == [8, 9]
    assert compared["looks"] == 1
    assert compared["flips"]["gained"] > compared["flips"]["lost"]
    flips = read_flips(folder / TOY / "flips.csv")
    assert len(flips) == compared["flips"]["gained"] + compared["flips"]["lost"]
    assert all((flip.default == flip.label) != (flip.tuned == flip.label) for flip in flips)


@pytest.mark.slow
def test_a_killed_confirmation_loses_the_running_training_and_two_processes_share_the_rest(folder: Path) -> None:
    command = ["confirm", "--top", "3", "--seeds", "2"]
    killed = start(folder, *command)
    _wait_for_a_record(folder, killed)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    before = _records(folder)
    assert 1 <= len(before) < 8

    other = start(folder, *command)
    mine = hpsearch(folder, *command)
    stdout, stderr = other.communicate(timeout=120)
    assert other.returncode == 0, stderr
    n_trained = [len(re.findall(r"seed \d+ complete", output)) for output in (mine.stderr, stderr)]
    assert sum(n_trained) == 8 - len(before)
    after = _records(folder)
    assert len(after) == 8
    assert before.items() <= after.items()
    assert mine.stdout == stdout
    left = {path.suffix for path in (folder / TOY / "confirmation").iterdir() if path.name != "checkpoint.lock"}
    assert left <= {".json", ".lock"}


@pytest.mark.slow
def test_a_stop_signal_keeps_what_is_finished(folder: Path) -> None:
    def interrupt() -> None:
        while not _records(folder):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    sender = threading.Thread(target=interrupt, daemon=True)
    sender.start()
    result = hpsearch(folder, "confirm", "--top", "3", "--seeds", "5", code=130)
    sender.join()
    assert "finished trainings are kept, and the same command goes on" in result.stderr
    assert result.stdout == ""
    assert 1 <= len(_records(folder)) < 20
    assert confirmation_of(_study(folder)) is None


@pytest.mark.slow
def test_what_diverges_on_a_fresh_seed_is_left_out(folder: Path) -> None:
    confirmed = document(folder, "confirm", "--top", "2", "--seeds", "1")
    winner, second, *_ = (candidate["trial"] for candidate in confirmed["candidates"])
    for path in (folder / TOY / "confirmation").glob("*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["name"] == f"trial {winner}":
            path.write_text(
                json.dumps({**record, "value": None, "failure": "diverged: the loss is nan"}), encoding="utf-8"
            )
    result = hpsearch(folder, "confirm", "--top", "2", "--seeds", "1")
    assert f"trial {winner} is left out: with seed 108 it diverged" in result.stderr
    assert f"left out, because a training diverged: trial {winner}" in result.stdout
    assert f"trial {second}, f1" in result.stdout
    assert choose(_study(folder)).trial.number == second


@pytest.mark.slow
def test_trainings_are_done_once_and_a_diverged_one_is_kept_as_such(
    tmp_path: Path, make_config: Callable[..., Config]
) -> None:
    from hpsearch.search import prepare

    config = make_config("search.evaluations=2", "data.train_rows=32", "defaults.num_train_epochs=1")
    task = prepare(config)

    def runs() -> Runs:
        return Runs(
            task, tmp_path / "runs", identity={"lock": 1}, products="float32", token_cache=tmp_path / "tokens",
            observer=Observer(), stop_requested=lambda: False, scored=task.data.validation,
        )  # fmt: skip

    first = runs()
    trainer = first.trainer()
    new_model = trainer._new_model

    def broken_for_seed_2() -> Any:
        model = new_model()
        if trainer.args.seed == 2:
            with torch.no_grad():
                model.classifier.weight.fill_(float("nan"))
        return model

    trainer.model_init = broken_for_seed_2
    trainings = [Training("defaults", config.defaults, seed) for seed in (1, 2, 1)]
    done = first.finish(trainings)
    assert done[0] == done[2]
    assert len(list((tmp_path / "runs").iterdir())) == 2
    assert done[0].scored().shape == (len(task.data.validation), 2)
    assert done[0].scored().sum(axis=1) == pytest.approx(1.0, abs=2e-6)
    right = done[0].scored().argmax(axis=1) == task.data.validation.labels
    assert right.mean() == pytest.approx(done[0].scores["accuracy"])
    assert done[1].value is None
    assert "diverged" in done[1].failure
    assert runs().finish(trainings) == done

    (record, *_) = (tmp_path / "runs").glob("*.json")
    record.write_text("{broken", encoding="utf-8")
    with pytest.raises(StudyError, match=r"expected the record of a training, got: .*; delete it and run"):
        runs().finish(trainings)


def test_no_seed_is_used_twice() -> None:
    assert fresh_seeds(42, 2, block=0) == (43, 44)
    seeds = [42, *fresh_seeds(42, 100, block=0), *fresh_seeds(42, 100, block=1)]
    assert len(set(seeds)) == 201
    assert fresh_seeds(2**32 - 2, 2, block=0) == (2**32 - 1, 0)
    with pytest.raises(ValueError, match="expected 1 to 100 seeds, got 101"):
        fresh_seeds(42, 101, block=0)
