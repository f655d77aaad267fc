"""Searches whose disk, database, clock or code fails: what is finished stays, and what is said is one clear line."""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from optuna.trial import TrialState
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from transformers import Trainer

from hpsearch import disk, report
from hpsearch import search as search_module
from hpsearch import study as study_module
from hpsearch.batches import Collator
from hpsearch.errors import HpsearchError, StudyError, TrainingError
from hpsearch.export import export_best
from hpsearch.model import ModelSource
from hpsearch.observer import Observer
from hpsearch.search import prepare, run_search
from hpsearch.stall import Watchdog
from hpsearch.study import StudyPaths, load_study, open_for_reading, open_storage
from hpsearch.trainer import Evaluation, only_predicted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from optuna.trial import FrozenTrial

    from hpsearch.config import Config
    from hpsearch.trainer import Task


class _Told(Observer):
    """Keeps what is told, and does something at an evaluation of the n-th training."""

    def __init__(self, at: int = -1, then: Callable[[], object] = lambda: None) -> None:
        self.notes: list[str] = []
        self.ended: list[tuple[str, str, str]] = []
        self._at, self._then = at, then
        self._n_started = 0

    def note(self, text: str) -> None:
        self.notes.append(text)

    def trial_started(self, name: str, hyperparameters: Any) -> None:
        self._n_started += 1

    def evaluated(self, step: int, n_steps: int, value: float) -> None:
        if self._n_started == self._at and step == 1:
            self._then()

    def trial_ended(self, name: str, state: str, value: float | None, seconds: float, reason: str = "") -> None:
        assert seconds >= 0
        self.ended.append((name, state, reason))


class _Search:
    """A search of the tiny model on toy rows, in this process, below a folder."""

    def __init__(self, task: Task, root: Path) -> None:
        self.task = task
        self.root = root
        self.url = f"sqlite:///{root}/hpsearch.db"
        self.paths = StudyPaths.of(self.url, "toy")
        self.engines: list[Any] = []

    def run(self, observer: Observer | None = None, **options: Any) -> None:
        storage = open_storage(self.url, create=True)
        engine = storage._backend.engine  # type: ignore[attr-defined]
        self.engines.append(engine)
        try:
            run_search(self.task, storage, self.paths, observer=observer or _Told(), **options)
        finally:
            engine.dispose()

    def trials(self) -> list[FrozenTrial]:
        return load_study(open_for_reading(self.url), "toy").get_trials(deepcopy=False)

    def states(self) -> list[str]:
        return [trial.state.name for trial in self.trials()]

    def export(self, output: Path) -> None:
        storage = open_storage(self.url, create=False)
        try:
            export_best(load_study(storage, "toy"), self.paths, output, overwrite=False)
        finally:
            storage._backend.engine.dispose()  # type: ignore[attr-defined]

    def assert_sound(self, kept: list[FrozenTrial]) -> None:
        with contextlib.closing(sqlite3.connect(self.root / "hpsearch.db")) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        now = self.trials()
        assert [(t.number, t.state, t.value, t.params) for t in kept] == [
            (t.number, t.state, t.value, t.params) for t in (now[trial.number] for trial in kept)
        ]


@pytest.fixture
def make_search(make_config: Callable[..., Config], tmp_path: Path) -> Callable[..., _Search]:
    def make(*overrides: str) -> _Search:
        return _Search(prepare(make_config("search.pruner=none", *overrides)), tmp_path / "studies")

    return make


@pytest.fixture
def mount_small() -> Iterator[Callable[[Path, int], None]]:
    """Return a function that mounts a file system of so many KiB over a folder, where this process may."""
    mounted: list[Path] = []

    def mount(folder: Path, kib: int) -> None:
        command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
        if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("needs to mount a small file system, as root may")
        mounted.append(folder)

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def _fill(folder: Path) -> Path:
    """Fill a file system to the last byte."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        for size in (65536, 4096, 1):
            with contextlib.suppress(OSError):
                while file.write(b"x" * size):
                    pass
    return path


def _finished(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    return [trial for trial in trials if trial.state == TrialState.COMPLETE]


# --- Disk -------------------------------------------------------------------------------------------------------------


def test_a_checkpoint_that_finds_no_room_costs_no_trial(
    make_search: Callable[..., _Search], mount_small: Callable[[Path, int], None], tmp_path: Path
) -> None:
    search = make_search("search.trials=2")
    search.paths.folder.mkdir(parents=True)
    mount_small(search.paths.folder, 16)
    told = _Told()
    search.run(told)
    assert search.states() == ["COMPLETE", "COMPLETE"]
    assert [path.name for path in search.paths.folder.iterdir()] == ["run.lock"]
    (first, second) = told.notes
    assert first.startswith("the weights of trial 0 are not kept: ")
    assert "studies/toy/trial-0000: expected to write a checkpoint, got: " in first
    assert "No space left on device" in first
    assert "trial-0001" in second
    with pytest.raises(StudyError, match=r"expected the checkpoint of trial \d, got none; not kept: .*No space left"):
        search.export(tmp_path / "model")
    assert "(weights not kept)" in report.study_text(
        report.study_document(load_study(open_for_reading(search.url), "toy")), 400
    )
    # With room again, the next ones are kept.
    _remount(search.paths.folder, "size=8m")
    make_search("search.trials=4").run()
    assert {path.name for path in search.paths.folder.glob("trial-*")} <= {"trial-0002", "trial-0003"}


def test_an_export_that_finds_no_room_says_so_and_leaves_nothing(
    make_search: Callable[..., _Search], mount_small: Callable[[Path, int], None], tmp_path: Path
) -> None:
    search = make_search("search.trials=1")
    search.run()
    (tmp_path / "small").mkdir()
    mount_small(tmp_path / "small", 16)
    with pytest.raises(HpsearchError, match=r"small/model: expected to write a model, got: .*[Nn]o space left"):
        search.export(tmp_path / "small" / "model")
    assert list((tmp_path / "small").iterdir()) == []


@contextlib.contextmanager
def _a_full_disk(search: _Search) -> Iterator[Callable[[], object]]:
    yield lambda: _fill(search.root)
    (search.root / "filler").unlink()


@contextlib.contextmanager
def _a_largest_file(search: _Search) -> Iterator[Callable[[], object]]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def _a_largest_number_of_pages(search: _Search) -> Iterator[Callable[[], object]]:
    def limit() -> None:
        def on_checkout(connection: sqlite3.Connection, *_: object) -> None:
            connection.execute("PRAGMA max_page_count=1")

        event.listen(search.engines[-1], "checkout", on_checkout)

    yield limit


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (_a_full_disk, "database or disk is full|disk I/O error"),
        (_a_largest_file, "disk I/O error"),
        (_a_largest_number_of_pages, "database or disk is full"),
    ],
)
def test_a_database_that_cannot_grow_stops_the_search_with_the_study_intact(
    make_search: Callable[..., _Search], mount_small: Callable[[Path, int], None], fault: Any, said: str
) -> None:
    search = make_search("search.trials=12")
    search.root.mkdir()
    if fault is _a_full_disk:
        mount_small(search.root, 4096)
    with fault(search) as begin, pytest.raises(StudyError, match=rf"study 'toy': expected to .* it, got: .*({said})"):
        search.run(_Told(2, lambda: (begin(), _use_up_free_places(search))))
    kept = _finished(search.trials())  # a few more may find a place in pages that are half full
    assert 1 <= len(kept) < 12
    search.assert_sound(kept)
    search.run()
    assert search.states().count("COMPLETE") == 12
    assert "RUNNING" not in search.states()
    search.assert_sound(kept)


def _use_up_free_places(search: _Search) -> None:
    """Write to the database, without an end of its own, until nothing more fits into its file."""
    with search.engines[-1].connect() as connection:
        for size in (100_000, 1_000, 1):
            with contextlib.suppress(OperationalError):
                while True:
                    connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS much (text TEXT)")
                    connection.exec_driver_sql("INSERT INTO much VALUES (?)", ("x" * size,))
                    connection.commit()


def test_a_folder_that_cannot_be_written_is_named(
    make_search: Callable[..., _Search], mount_small: Callable[[Path, int], None]
) -> None:
    search = make_search("search.trials=1")
    search.root.mkdir()
    mount_small(search.root, 8192)
    _remount(search.root, "ro")
    with pytest.raises(StudyError, match=r"expected to create .*hpsearch\.db, got: Read-only file system"):
        search.run()
    _remount(search.root, "rw")
    search.run()
    kept = search.trials()
    _remount(search.root, "ro")
    with pytest.raises(StudyError, match=r"(read-only|readonly|Read-only file system|unable to open)"):
        make_search("search.trials=2").run()
    _remount(search.root, "rw")
    make_search("search.trials=2").run()
    search.assert_sound(kept)


@pytest.mark.parametrize("how", ["deleted", "moved"])
def test_a_studies_folder_that_vanishes_ends_the_search_and_is_not_made_again(
    make_search: Callable[..., _Search], tmp_path: Path, how: str
) -> None:
    search = make_search("search.trials=3")
    away = tmp_path / "away"

    def vanish() -> None:
        if how == "moved":
            search.root.rename(away)
        else:
            shutil.rmtree(search.root)

    with pytest.raises(
        StudyError, match=r"hpsearch\.db: expected the database that this search writes to, got: No such"
    ):
        search.run(_Told(2, vanish))
    assert not search.root.exists()
    if how == "moved":
        away.rename(search.root)
        search.run()
        assert search.states().count("COMPLETE") == 3


def test_too_little_room_is_warned_of_before(
    make_search: Callable[..., _Search], monkeypatch: pytest.MonkeyPatch
) -> None:
    search = make_search()
    mib = 2**20
    assert disk.shortage(search.paths, weights=100 * mib, n_kept=3) is None
    usage = shutil.disk_usage(search.root.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=499 * mib))
    warning = disk.shortage(search.paths, weights=100 * mib, n_kept=3)
    assert warning is not None
    assert "expected 524.3 MB free for 3 checkpoints and one being written, got 523.2 MB" in warning
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=500 * mib))
    assert disk.shortage(search.paths, weights=100 * mib, n_kept=3) is None


def test_what_a_study_takes_is_told_in_one_line(make_search: Callable[..., _Search]) -> None:
    search = make_search("search.trials=5", "search.keep_checkpoints=2")
    search.run()
    taken = disk.usage(search.paths)
    assert taken.n_checkpoints == 2
    files = [path for path in search.root.rglob("*") if path.is_file() and ".tokens" not in path.parts]
    files = [path for path in files if not path.name.endswith(".lock") or path.parent == search.paths.folder]
    assert taken.checkpoints + taken.others + taken.database == pytest.approx(
        sum(p.stat().st_size for p in files), abs=64
    )
    assert report.disk_text(disk.Usage(1_250_000, 2, 5_000, 160_000)) == (
        "disk  1.2 MB in 2 checkpoints, 0.0 MB beside them, 0.2 MB in the database of all studies\n"
    )


# --- Database ---------------------------------------------------------------------------------------------------------


def test_a_database_that_is_locked_for_longer_than_its_timeout_costs_nothing(
    make_search: Callable[..., _Search], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_module, "_SQLITE_TIMEOUT_S", 0.1)
    search = make_search("search.trials=2")
    search.run()  # undisturbed, and with its database made
    expected = [(trial.params, trial.value, trial.intermediate_values) for trial in search.trials()]
    shutil.rmtree(search.root)
    threads = []

    def lock() -> None:
        def hold() -> None:
            with contextlib.closing(sqlite3.connect(search.root / "hpsearch.db", timeout=60)) as connection:
                connection.execute("BEGIN EXCLUSIVE")
                held.set()
                time.sleep(1.5)

        held = threading.Event()
        threads.append(threading.Thread(target=hold))
        threads[-1].start()
        assert held.wait(60)

    search.run(_Told(1, lock))
    threads[0].join()
    assert [(trial.params, trial.value, trial.intermediate_values) for trial in search.trials()] == expected


def test_a_database_that_breaks_is_an_error_of_the_study(make_search: Callable[..., _Search]) -> None:
    search = make_search("search.trials=1")
    search.run()
    path = search.root / "hpsearch.db"
    content = bytearray(path.read_bytes())
    content[4096 * 2 :] = bytes(len(content) - 4096 * 2)
    path.write_bytes(content)
    with pytest.raises(StudyError, match="malformed"):
        make_search("search.trials=2").run()


@pytest.mark.parametrize(
    ("version", "advice"),
    [("v2.6.0.a", "optuna storage upgrade --storage"), ("v9.9.9", "updating optuna to the latest version")],
)
def test_tables_of_another_optuna_are_refused_with_what_to_do(
    make_search: Callable[..., _Search], version: str, advice: str
) -> None:
    search = make_search("search.trials=1")
    search.run()
    with contextlib.closing(sqlite3.connect(search.root / "hpsearch.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (version,))
    for act in (search.run, search.trials):
        with pytest.raises(StudyError, match=f"no longer compatible with the table schema.*{advice}"):
            act()


def test_a_study_whose_best_checkpoint_was_deleted_goes_on(make_search: Callable[..., _Search], tmp_path: Path) -> None:
    search = make_search("search.trials=2")
    search.run()
    best = max(search.trials(), key=lambda trial: (trial.value or 0, -trial.number))
    shutil.rmtree(search.paths.checkpoint(best.number))
    with pytest.raises(StudyError, match=rf"expected the checkpoint of trial {best.number}, got none; it was deleted"):
        search.export(tmp_path / "model")
    make_search("search.trials=3").run()
    assert search.states() == ["COMPLETE"] * 3


# --- Code and data ----------------------------------------------------------------------------------------------------


def test_one_trial_that_raises_costs_one_trial(
    make_search: Callable[..., _Search], monkeypatch: pytest.MonkeyPatch
) -> None:
    search = make_search("search.trials=3")
    collate, now = Collator.__call__, SimpleNamespace(is_due=False)

    def raise_once(self: Collator, texts: Any) -> Any:
        if now.is_due:
            now.is_due = False
            raise ValueError("a row that cannot be")
        return collate(self, texts)

    monkeypatch.setattr(Collator, "__call__", raise_once)
    told = _Told(2, lambda: setattr(now, "is_due", True))
    search.run(told)
    assert search.states() == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert told.ended[1] == ("trial 1", "failed", "ValueError: a row that cannot be")
    assert search.trials()[1].user_attrs["failure"] == "ValueError: a row that cannot be"


def test_a_tokenizer_that_raises_stops_the_search_with_its_reason(
    make_search: Callable[..., _Search], monkeypatch: pytest.MonkeyPatch
) -> None:
    search = make_search("search.trials=1")

    def fail(*_: Any) -> None:
        raise OverflowError("int too big to convert")

    monkeypatch.setattr(ModelSource, "encode", fail)
    with pytest.raises(
        TrainingError, match="expected its tokenizer to take every text, got OverflowError: int too big"
    ):
        search.run()


def test_a_trial_that_predicts_one_class_is_complete_and_marked(
    make_search: Callable[..., _Search], monkeypatch: pytest.MonkeyPatch
) -> None:
    search = make_search(
        "search.trials=1", "defaults.learning_rate=1e-4", "defaults.num_train_epochs=1", "metric=accuracy"
    )
    forward = torch.nn.Linear.forward

    def one_sided(self: torch.nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
        outputs = forward(self, inputs)
        return outputs + torch.tensor([9.0, 0.0]) if self.out_features == 2 else outputs

    monkeypatch.setattr(torch.nn.Linear, "forward", one_sided)
    told = _Told()
    search.run(told)
    (trial,) = search.trials()
    assert trial.state == TrialState.COMPLETE
    assert trial.user_attrs["predicts_only"] == "bad"
    assert told.ended == [("trial 0", "complete", "predicts 'bad' only")]
    text = report.study_text(report.study_document(load_study(open_for_reading(search.url), "toy")), 400)
    assert "(predicts 'bad' only)" in text


@pytest.mark.parametrize(
    ("confusion", "expected"), [([[3, 0], [2, 0]], "bad"), ([[0, 3], [0, 2]], "good"), ([[0, 3], [1, 2]], None)]
)
def test_one_class_is_told_from_two(confusion: list[list[int]], expected: str | None) -> None:
    evaluation = Evaluation(1, 1.0, None, 0.5, {}, confusion)
    assert only_predicted(evaluation, ("bad", "good")) == expected


# --- Time -------------------------------------------------------------------------------------------------------------


def test_a_clock_that_is_set_back_changes_nothing(
    make_search: Callable[..., _Search], monkeypatch: pytest.MonkeyPatch
) -> None:
    search = make_search("search.trials=3")
    now = time.time
    told = _Told(2, lambda: monkeypatch.setattr(time, "time", lambda: now() - 86_400))
    search.run(told, timeout_s=600)
    assert search.states() == ["COMPLETE"] * 3
    assert all(trial.user_attrs["seconds"] >= 0 for trial in search.trials())
    # Optuna takes the times of a trial from the same clock: as if it had been set back within a trial.
    with contextlib.closing(sqlite3.connect(search.root / "hpsearch.db")) as connection, connection:
        past = datetime.datetime(2020, 1, 1)
        connection.execute("UPDATE trials SET datetime_complete = ? WHERE number = 1", (past.isoformat(" "),))
    document = report.study_document(load_study(open_for_reading(search.url), "toy"))
    assert [trial["duration_s"] is None for trial in document["trials"]] == [False, True, False]
    assert "-" in report.study_text(document, 200)


def test_a_trial_that_runs_when_time_is_up_is_finished(
    make_search: Callable[..., _Search], monkeypatch: pytest.MonkeyPatch
) -> None:
    search = make_search("search.trials=5")
    hours_later = SimpleNamespace(monotonic=lambda: time.monotonic() + 1e5, sleep=time.sleep)
    told = _Told(1, lambda: monkeypatch.setattr(search_module, "time", hours_later))
    search.run(told, timeout_s=3600)
    assert search.states() == ["COMPLETE"]
    assert told.notes == ["time is up with 1 of 5 trials finished; run again to go on"]


@pytest.mark.parametrize("where", ["asleep", "waiting for a lock"])
def test_a_trial_that_hangs_is_ended_and_the_search_goes_on(
    make_search: Callable[..., _Search], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    search = make_search("search.trials=3", "search.stall_minutes=0.05")
    step, now = Trainer.training_step, SimpleNamespace(is_due=False, hangs=False)
    taken = threading.Lock()
    taken.acquire()

    def hanging_step(self: Trainer, *inputs: Any) -> Any:
        if now.is_due:
            now.is_due, now.hangs = False, True
            try:
                time.sleep(600) if where == "asleep" else taken.acquire()
            finally:
                now.hangs = False
        return step(self, *inputs)

    monkeypatch.setattr(Trainer, "training_step", hanging_step)
    # Time stands still but in the step that hangs, so that a busy machine is not taken for one.
    monkeypatch.setattr(search_module, "Watchdog", partial(Watchdog, clock=lambda: 1e6 * now.hangs))
    with caplog.at_level(logging.ERROR, "hpsearch.stall"):
        search.run(_Told(2, lambda: setattr(now, "is_due", True)))
    assert search.states() == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert search.trials()[1].user_attrs["failure"].startswith("TrainingError: no step for 0.05 minutes; search.stall")
    (record,) = caplog.records
    assert "hanging_step" in record.getMessage(), "where it hung"


_HANGING = """
import functools, json, signal, sys, time
from transformers import Trainer
from hpsearch import search
from hpsearch.cli import cli
from hpsearch.stall import Watchdog

hung = False
search.Watchdog = functools.partial(Watchdog, grace_s=0.5, clock=lambda: 1e6 * hung)

def hang(*_):
    global hung
    hung = True
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})  # as code does that never comes back to Python
    time.sleep(600)

Trainer.training_step = hang
cli(sys.argv[1:])
"""


def test_a_process_that_cannot_be_interrupted_closes_its_trial_and_ends(toy_yaml: Path) -> None:
    command = [sys.executable, "-c", _HANGING, "run", "--config", str(toy_yaml), "--set", "search.stall_minutes=0.05"]
    result = subprocess.run(command, cwd=toy_yaml.parent, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 1
    assert "no step for 0.05 minutes, and the trial cannot be ended from within: its process ends" in result.stderr
    log = (toy_yaml.parent / "studies" / "toy" / "run.log").read_text(encoding="utf-8")
    assert "in hang" in log
    storage = open_for_reading(f"sqlite:///{toy_yaml.parent}/studies/hpsearch.db")
    (trial,) = load_study(storage, "toy").get_trials()
    assert (trial.state, trial.user_attrs["failure"]) == (TrialState.FAIL, "no step for 0.05 minutes")


def test_a_training_that_makes_steps_is_left_alone() -> None:
    now = 0.0
    watchdog = Watchdog(0.1, give_up=pytest.fail, clock=lambda: now)
    with watchdog.watching():
        for _ in range(20):
            now += 0.09
            time.sleep(0.01)
            watchdog.step()
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    with Watchdog(None, give_up=pytest.fail).watching():
        assert "watchdog" not in {thread.name for thread in threading.enumerate()}


# --- Long runs --------------------------------------------------------------------------------------------------------


def test_trials_leave_no_files_open_and_no_threads_behind(make_search: Callable[..., _Search]) -> None:
    search = make_search("search.trials=10")
    held: list[tuple[int, int]] = []

    class Counting(_Told):
        def trial_ended(self, *_: Any, **__: Any) -> None:
            held.append((len(list(Path("/proc/self/fd").iterdir())), threading.active_count()))

    search.run(Counting())
    assert len(held) == 10
    assert held[-1] == held[1]
