"""Studies, their storage, their checkpoints and the folders that appear whole."""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpsearch.checkpoints import check_folder, checkpoint_of, discard_checkpoints, worth_keeping
from hpsearch.config import build_config
from hpsearch.errors import HpsearchError, StudyError, UsageError
from hpsearch.evidence import Candidate, Confirmation, keep_confirmation
from hpsearch.folders import MANIFEST, appearing, read_manifest, write_manifest
from hpsearch.study import (
    StudyPaths,
    best_trial,
    check_study_name,
    create_or_resume,
    is_in_order,
    load_study,
    mend,
    open_storage,
    redact,
    standing,
    stored_config,
    study_lock,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from optuna.storages import BaseStorage

    from hpsearch.config import Config

_TREE: dict[str, Any] = {
    "model": {"name": "some-encoder"},
    "data": {"train": "reviews.csv"},
    "space": {
        "learning_rate": {"type": "float", "low": 1e-5, "high": 1e-3, "log": True},
        "num_train_epochs": {"type": "int", "low": 2, "high": 12},
        "per_device_train_batch_size": {"type": "categorical", "choices": [8, 16, 32]},
    },
}
_DEFAULTS = {"learning_rate": 5e-5, "num_train_epochs": 10, "per_device_train_batch_size": 32}  # the tutorial's


def _config(*overrides: str) -> Config:
    return build_config(_TREE, overrides, where="test")


def _lock(config: Config, *, data: str = "rows", model: str = "weights") -> dict[str, Any]:
    return study_lock(config, data=data, model=model)


def _resume(storage: BaseStorage, *overrides: str, name: str = "reviews") -> optuna.Study:
    config = _config(*overrides)
    return create_or_resume(storage, name, config, _lock(config))


@contextlib.contextmanager
def _opened(url: str, *, create: bool = False) -> Iterator[BaseStorage]:
    storage = open_storage(url, create=create)
    try:
        yield storage
    finally:
        storage._backend.engine.dispose()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a database without a study: to copy it is faster than to make it."""
    path = tmp_path_factory.mktemp("empty") / "studies.db"
    with _opened(f"sqlite:///{path}", create=True):
        pass
    return path


@pytest.fixture
def url(empty_database: Path, tmp_path: Path) -> str:
    return f"sqlite:///{shutil.copy(empty_database, tmp_path / 'studies.db')}"


@pytest.fixture
def storage(url: str) -> Iterator[BaseStorage]:
    with _opened(url) as storage:
        yield storage


def _draw(trial: optuna.Trial, *, n: int = 3) -> None:
    """Draw the first `n` values of a trial, as a search does."""
    for name, dimension in list(_config().space.items())[:n]:
        dimension.suggest(trial, name)


def _nobody_runs_it(_: FrozenTrial) -> bool:
    return True


def _waiting(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(states=(TrialState.WAITING,))


def _fixed(trial: FrozenTrial) -> Any:
    return trial.system_attrs["fixed_params"]


# --- Paths and names --------------------------------------------------------------------------------------------------


def test_everything_of_a_study_lies_beside_its_sqlite_file(tmp_path: Path) -> None:
    paths = StudyPaths.of(f"sqlite:///{tmp_path}/all.db", "reviews")
    assert paths.folder == tmp_path / "reviews"
    own = (paths.run_lock, paths.log, paths.best, paths.confirmation, paths.comparison, paths.flips)
    assert [path.name for path in own] == ["run.lock", "run.log", "best", "confirmation", "comparison", "flips.csv"]
    assert paths.checkpoint(7) == tmp_path / "reviews" / "trial-0007"
    assert paths.checkpoint(12345) == tmp_path / "reviews" / "trial-12345"
    assert {path.parent for path in (*own, paths.checkpoint(0))} == {paths.folder}


def test_studies_of_a_database_server_lie_in_the_studies_folder() -> None:
    assert StudyPaths.of("postgresql://host/db", "reviews").folder == Path("studies/reviews")


@pytest.mark.parametrize("name", ["a", "7", "nsmc-mbert", "한글", "a.b+c_d", "x" * 100, "가" * 85])
def test_names_that_can_be_a_folders_are_taken(name: str) -> None:
    check_study_name(name)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/b", "a\\b", "a b", "-x", ".x", "a\n", "a\0b", "a:b", "x" * 101, "가" * 86, "\x1b[31m"],
)
def test_names_that_cannot_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="choose another --study"):
        check_study_name(name)
    with pytest.raises(UsageError, match="choose another --study"):
        StudyPaths.of("sqlite:///studies/all.db", name)


@pytest.mark.parametrize("name", ["studies.db", "studies.db-wal", "studies.db-shm", "studies.db.lock"])
def test_a_study_does_not_take_the_name_of_the_databases_files(name: str, url: str) -> None:
    with pytest.raises(UsageError, match="choose another --study"):
        StudyPaths.of(url, name)


# --- Storage URLs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shown", "url"),
    [
        ("postgresql://user:***@host/db", "postgresql://user:s3cret@host/db"),
        ("postgresql://user:***@host/db", "postgresql://user:p@s3cret@host/db"),
        ("postgresql://user:***@host/db", "postgresql://user:p/s3cret?@host/db"),
        ("mysql://user:***@host:3306/db", "mysql://user:p%40s3cret@host:3306/db"),
        ("postgresql://user:***@host:port/db", "postgresql://user:s3cret@host:port/db"),
        ("postgresql://user:***@host/db", "postgresql://user:a@s3cret:b@host/db"),
        ("postgresql://host/db?user=me&password=***", "postgresql://host/db?user=me&password=s3cret"),
        ("postgresql://host/db?sslPassword=***&a=1&a=2", "postgresql://host/db?sslPassword=s3cret&a=1&a=2"),
        ("postgresql://host/db?api_key=***&TOKEN=***", "postgresql://host/db?api_key=s3cret&TOKEN=s3cret"),
        ("mssql+pyodbc:///?odbc_connect=UID%3Da%3BPWD%3D***", "mssql+pyodbc:///?odbc_connect=UID%3Da%3BPWD%3Ds3cret"),
        ("sqlite+pysqlcipher://:***@/x.db", "sqlite+pysqlcipher://:s3cret@/x.db"),
        ("postgresql//user:***@host/db", "postgresql//user:s3cret@host/db"),
        ("user:***@host/db", "user:s3cret@host/db"),
        ("what?password=***", "what?password=s3cret"),
    ],
)
def test_passwords_are_not_shown(shown: str, url: str) -> None:
    assert redact(url) == shown


@pytest.mark.parametrize(
    "url",
    [
        "",
        "x.db",
        "sqlite:///studies/hpsearch.db",
        "sqlite:////home/me@example.org/keys=1.db",
        "postgresql://user@host:5432/db?application_name=search",
    ],
)
def test_urls_without_a_password_are_shown_as_they_are(url: str) -> None:
    assert redact(url) == url


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("studies.db", r"expected a URL .*; did you mean sqlite:///studies\.db\?"),
        ("postgresql//user:s3cret@host/db", "expected a URL"),
        ("postgresql//user:s3cret@host/x.db", "did you mean"),
        ("postgresql://user:s3cret@host:port/db", "expected a URL"),
        ("nosuch://user:s3cret@host/db", "expected a database driver"),
        ("sqlite+pysqlcipher://:s3cret@/missing.db", "expected the path of a file"),
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
    ],
)
def test_a_storage_that_cannot_be_is_refused_without_its_password(url: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        open_storage(url, create=False)
    assert "s3cret" not in str(raised.value)


def test_a_server_that_does_not_answer_is_named_without_its_password() -> None:
    # Without a PostgreSQL driver the message is about that.
    with pytest.raises(HpsearchError, match=r"storage postgresql://user:\*\*\*@127\.0\.0\.1:1/db: expected") as raised:
        open_storage("postgresql://user:s3cret@127.0.0.1:1/db", create=True)
    assert "s3cret" not in str(raised.value)


# --- SQLite files -----------------------------------------------------------------------------------------------------


def test_a_new_file_and_its_folder_are_made_with_write_ahead_logging(tmp_path: Path) -> None:
    path = tmp_path / "new" / "er" / "studies.db"
    with _opened(f"sqlite:///{path}", create=True) as storage:
        assert storage.get_all_studies() == []
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize("content", [None, b""], ids=["missing", "empty"])
def test_reading_makes_no_database(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "studies.db"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"expected an SQLite file|expected a database of Optuna studies"):
        open_storage(f"sqlite:///{path}", create=False)
    assert content is None or path.read_bytes() == content
    assert path.exists() == (content is not None)


@pytest.mark.parametrize("create", [True, False], ids=["writing", "reading"])
def test_another_kind_of_file_is_refused_and_left_alone(tmp_path: Path, *, create: bool) -> None:
    path = tmp_path / "reviews.csv"
    path.write_text("text,label\n", encoding="utf-8")
    with pytest.raises(UsageError, match="another kind of file"):
        open_storage(f"sqlite:///{path}", create=create)
    assert path.read_text(encoding="utf-8") == "text,label\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="got the folder"):
        open_storage(f"sqlite:///{tmp_path}", create=True)


def test_a_broken_file_is_an_error_of_the_storage(tmp_path: Path) -> None:
    path = tmp_path / "studies.db"
    path.write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 32)
    with pytest.raises(HpsearchError, match=r"studies\.db"):
        open_storage(f"sqlite:///{path}", create=True)


_OPENER = """
import sys
from hpsearch.study import open_storage
print("ready", flush=True)
for line in sys.stdin:
    try:
        open_storage(line.strip(), create=True).get_all_studies()
        print("opened", flush=True)
    except Exception as error:
        print(repr(error), flush=True)
"""


def test_four_processes_may_make_the_same_file_at_once(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        openers = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", _OPENER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            )
            for _ in range(4)
        ]
        pipes = [(opener.stdin, opener.stdout) for opener in openers]
        assert [out.readline() for _, out in pipes if out] == ["ready\n"] * 4
        for attempt in range(2):
            for into, _ in pipes:
                assert into is not None
                into.write(f"sqlite:///{tmp_path}/{attempt}/studies.db\n")
                into.flush()
            assert [out.readline() for _, out in pipes if out] == ["opened\n"] * 4


def test_a_file_that_another_process_is_still_making_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "studies.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")  # the file is no longer empty, and holds no table
    opened = threading.Event()

    def wait() -> None:
        with _opened(f"sqlite:///{path}", create=True):
            opened.set()

    with FileLock(f"{path}.lock"):
        thread = threading.Thread(target=wait)
        thread.start()
        assert not opened.wait(1.0)
    thread.join()
    assert opened.is_set()


_READER = """
import sys, optuna
from hpsearch.study import open_storage
storage = open_storage(sys.argv[1], create=False)
print(len(storage.get_all_trials(1)))
storage._backend.engine.dispose()
"""


def test_a_reader_that_leaves_takes_nothing_from_a_search_that_opened_its_storage_twice(
    storage: BaseStorage, url: str
) -> None:
    """A process that closes a file loses its locks on it; a leaving reader would then delete the log being written."""

    def read() -> int:
        result = subprocess.run([sys.executable, "-c", _READER, url], capture_output=True, text=True, check=True)
        return int(result.stdout)

    optuna.create_study(storage=storage, study_name="reviews")
    with _opened(url) as again:
        study = optuna.load_study(study_name="reviews", storage=again)
        study.add_trial(create_trial(value=1.0))
        assert read() == 1
        study.add_trial(create_trial(value=2.0))
        assert read() == 2


# --- Creating and resuming --------------------------------------------------------------------------------------------


def test_a_new_study_has_the_defaults_first_in_line(storage: BaseStorage) -> None:
    study = _resume(storage)
    (trial,) = study.get_trials()
    assert trial.state == TrialState.WAITING
    assert _fixed(trial) == _DEFAULTS
    assert trial.user_attrs == {"role": "defaults"}
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE
    assert study.metric_names == ["f1"]
    assert stored_config(study) == _config()


def test_resuming_changes_nothing(storage: BaseStorage) -> None:
    study = _resume(storage)
    trial = study.ask()
    _draw(trial)
    study.tell(trial, 0.8)
    before = (study.user_attrs, study.get_trials())
    for _ in range(2):
        resumed = _resume(storage)
        assert (resumed.user_attrs, resumed.get_trials()) == before


@pytest.mark.parametrize("n_steps", [1, 2, 3, 4])
def test_a_study_that_was_not_finished_being_made_is_finished(storage: BaseStorage, n_steps: int) -> None:
    config = _config()
    study = optuna.create_study(storage=storage, study_name="reviews", direction="maximize")
    steps: list[Callable[[], None]] = [
        lambda: study.set_metric_names(["f1"]),
        lambda: study.set_user_attr("config", config.model_dump(mode="json")),
        lambda: study.enqueue_trial(_DEFAULTS, user_attrs={"role": "defaults"}),
    ]
    for step in steps[: n_steps - 1]:
        step()
    finished = _resume(storage)
    assert [_fixed(trial) for trial in finished.get_trials()] == [_DEFAULTS]
    assert finished.user_attrs["lock"] == _lock(config)
    assert stored_config(finished) == config
    assert [_fixed(trial) for trial in _resume(storage).get_trials()] == [_DEFAULTS]


def _study_with_a_trial(storage: BaseStorage) -> optuna.Study:
    study = optuna.create_study(storage=storage, study_name="reviews", direction="maximize")
    study.add_trial(create_trial(value=1.0))
    return study


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(_study_with_a_trial, id="with a trial"),
        pytest.param(
            lambda storage: optuna.create_study(storage=storage, study_name="reviews", direction="minimize"),
            id="that minimises",
        ),
        pytest.param(
            lambda storage: optuna.create_study(storage=storage, study_name="reviews", directions=["maximize"] * 2),
            id="of two objectives",
        ),
    ],
)
def test_a_study_of_someone_else_is_refused_and_left_alone(
    storage: BaseStorage, make: Callable[[BaseStorage], optuna.Study]
) -> None:
    study = make(storage)
    before = (study.directions, study.user_attrs, study.get_trials())
    with pytest.raises(UsageError, match=r"'reviews': expected a study started by hpsearch.*choose another --study"):
        _resume(storage)
    with pytest.raises(UsageError, match="expected a study started by hpsearch"):
        stored_config(study)
    assert (study.directions, study.user_attrs, study.get_trials()) == before


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("metric=accuracy", 'metric: started with "f1", now "accuracy"'),
        ("defaults.learning_rate=4e-5", "defaults.learning_rate: started with 5e-05, now 4e-05"),
        ("defaults.weight_decay=0.1", "defaults.weight_decay: started with 0.0, now 0.1"),
        ("space.learning_rate.high=2e-3", "space.learning_rate.high: started with 0.001, now 0.002"),
        ("space.learning_rate.log=false", "space.learning_rate.log: started with true, now false"),
        (
            "space.per_device_train_batch_size.choices=[16, 32]",
            "space.per_device_train_batch_size.choices: started with [8, 16, 32], now [16, 32]",
        ),
        ("space.weight_decay={type: float, low: 0.0, high: 0.1}", "space.weight_decay: started with null, now {"),
        ("search.evaluations=4", "evaluations: started with 8, now 4"),
        ("search.seed=7", "seed: started with 42, now 7"),
        ("model.max_length=64", "max_length: started with null, now 64"),
    ],
)
def test_each_setting_that_trials_depend_on_is_named_where_it_differs(
    storage: BaseStorage, override: str, line: str
) -> None:
    study = _resume(storage)
    before = (study.user_attrs, study.get_trials())
    with pytest.raises(UsageError, match="Restore it, or start another study with --study NAME") as raised:
        _resume(storage, override)
    _, *lines, _ = str(raised.value).splitlines()
    (shown,) = lines
    assert shown.startswith(f"  {line}")
    assert (study.user_attrs, study.get_trials()) == before


def test_other_rows_and_another_model_are_named_together(storage: BaseStorage) -> None:
    _resume(storage)
    config = _config("metric=mcc")
    with pytest.raises(UsageError, match="got a difference") as raised:
        create_or_resume(storage, "reviews", config, _lock(config, data="other rows", model="other weights"))
    assert str(raised.value).splitlines()[1:-1] == [
        '  data: started with "rows", now "other rows"',
        '  metric: started with "f1", now "mcc"',
        '  model: started with "weights", now "other weights"',
    ]


@pytest.mark.parametrize(
    "override",
    [
        "search.trials=99",
        "search.sampler=random",
        "search.pruner=none",
        "search.keep_checkpoints=1",
        "search.max_failures=9",
        "study=other",
    ],
)
def test_what_leaves_trials_comparable_may_change(storage: BaseStorage, override: str) -> None:
    _resume(storage)
    assert len(_resume(storage, override).get_trials()) == 1


# --- Trials cut short -------------------------------------------------------------------------------------------------


def _cut_short(study: optuna.Study, *, n_drawn: int = 3) -> FrozenTrial:
    """Leave a trial running, as a process does that is killed."""
    trial = study.ask()
    _draw(trial, n=n_drawn)
    return study.get_trials()[trial.number]


def test_a_trial_cut_short_fails_and_is_tried_again(storage: BaseStorage) -> None:
    study = _resume(storage)
    finished = study.ask()
    _draw(finished)
    study.tell(finished, 0.8)
    orphan = _cut_short(study)
    assert mend(study, _config(), _nobody_runs_it) == [1]
    first, failed, again = study.get_trials()
    assert (first.state, first.value) == (TrialState.COMPLETE, 0.8)
    assert (failed.state, failed.user_attrs) == (TrialState.FAIL, {"failure": "the process died"})
    assert failed.datetime_complete is not None
    assert again.state == TrialState.WAITING
    assert _fixed(again) == orphan.params
    assert len(orphan.params) == 3
    assert again.user_attrs == {"retry_of": 1}
    retry = study.ask()
    _draw(retry)
    assert retry.number == 2
    assert retry.params == orphan.params


def test_trials_are_put_in_line_again_only_once(storage: BaseStorage) -> None:
    study = _resume(storage)
    orphan = _cut_short(study)
    # The process that mends was killed before it closed the trial.
    study.enqueue_trial(orphan.params, user_attrs={"role": "defaults", "retry_of": 0})
    assert mend(study, _config(), _nobody_runs_it) == [0]
    assert mend(study, _config(), _nobody_runs_it) == []
    assert [trial.user_attrs["retry_of"] for trial in _waiting(study)] == [0]


def test_a_retry_that_is_cut_short_is_tried_again_as_well(storage: BaseStorage) -> None:
    study = _resume(storage)
    for number in range(2):
        _cut_short(study)
        assert mend(study, _config(), _nobody_runs_it) == [number]
    (waiting,) = _waiting(study)
    assert _fixed(waiting) == _DEFAULTS
    assert waiting.user_attrs == {"role": "defaults", "retry_of": 1}


def test_parameters_that_end_every_process_are_given_up_and_the_defaults_with_a_word(storage: BaseStorage) -> None:
    study = _resume(storage)
    finished = study.ask()
    _draw(finished)
    study.tell(finished, 0.8)
    for number in range(1, 4):
        _cut_short(study)
        assert mend(study, _config(), _nobody_runs_it) == [number]
    assert _waiting(study) == []
    others = _resume(storage, name="others")
    for _ in range(2):
        _cut_short(others)
        mend(others, _config(), _nobody_runs_it)
    _cut_short(others)
    with pytest.raises(StudyError, match="died over them 3 times, probably out of memory; start another study"):
        mend(others, _config(), _nobody_runs_it)


def test_interrupted_trials_are_tried_again_each_with_its_own_parameters(storage: BaseStorage) -> None:
    study = _resume(storage)
    trials = []
    for _ in range(2):
        trial = study.ask()
        _draw(trial)
        trial.set_user_attr("failure", "interrupted")
        study.tell(trial, state=TrialState.FAIL)
        trials.append(trial)
    assert mend(study, _config(), _nobody_runs_it) == []
    assert mend(study, _config(), _nobody_runs_it) == []
    assert [(w.user_attrs["retry_of"], _fixed(w)) for w in _waiting(study)] == [(t.number, t.params) for t in trials]


def test_a_study_is_in_order_where_there_is_nothing_to_mend(storage: BaseStorage) -> None:
    study = _resume(storage)

    def end(*, failure: str = "") -> None:
        trial = study.ask()
        _draw(trial)
        if failure:
            trial.set_user_attr("failure", failure)
        study.tell(trial, None if failure else 0.8, state=TrialState.FAIL if failure else None)

    def assert_to_mend() -> None:
        assert not is_in_order(study, _nobody_runs_it)
        mend(study, _config(), _nobody_runs_it)
        assert is_in_order(study, _nobody_runs_it)

    assert is_in_order(study, _nobody_runs_it)
    end(failure="out of memory")  # of the defaults: they are put in line again
    assert_to_mend()
    end()
    end(failure="out of memory")  # of another trial: one bad trial costs one trial
    assert is_in_order(study, _nobody_runs_it)
    end(failure="interrupted")
    assert_to_mend()
    _cut_short(study)
    assert is_in_order(study, lambda _: False)
    assert_to_mend()


def test_defaults_that_failed_are_put_in_line_again(storage: BaseStorage) -> None:
    study = _resume(storage)
    trial = study.ask()
    _draw(trial)
    trial.set_user_attr("failure", "out of memory")
    study.tell(trial, state=TrialState.FAIL)
    mend(study, _config(), _nobody_runs_it)
    mend(study, _config(), _nobody_runs_it)
    (waiting,) = _waiting(study)
    assert (_fixed(waiting), waiting.user_attrs) == (_DEFAULTS, {"role": "defaults"})


@pytest.mark.parametrize("n_drawn", [0, 1, 3])
def test_the_defaults_stay_the_defaults_however_early_they_are_cut_short(storage: BaseStorage, n_drawn: int) -> None:
    study = _resume(storage)
    assert list(_cut_short(study, n_drawn=n_drawn).params) == list(_DEFAULTS)[:n_drawn]
    mend(study, _config(), _nobody_runs_it)
    (waiting,) = _waiting(study)
    assert _fixed(waiting) == _DEFAULTS
    assert waiting.user_attrs["role"] == "defaults"


@pytest.mark.parametrize("n_drawn", [0, 1, 2])
def test_a_trial_cut_short_while_it_drew_draws_anew(storage: BaseStorage, n_drawn: int) -> None:
    study = _resume(storage)
    finished = study.ask()
    _draw(finished)
    study.tell(finished, 0.8)
    _cut_short(study, n_drawn=n_drawn)
    assert mend(study, _config(), _nobody_runs_it) == [1]
    (waiting,) = _waiting(study)
    assert (_fixed(waiting), waiting.user_attrs) == ({}, {"retry_of": 1})


# --- What a study holds -----------------------------------------------------------------------------------------------


def _study(*trials: FrozenTrial) -> optuna.Study:
    study = optuna.create_study(study_name="reviews", direction="maximize")
    study.set_user_attr("uid", "this")
    study.add_trials(trials)
    return study


def _pruned(value: float) -> FrozenTrial:
    return create_trial(state=TrialState.PRUNED, intermediate_values={1: value})


_FAILED = create_trial(state=TrialState.FAIL)


def test_the_best_trial_is_the_earliest_of_equals() -> None:
    values = [0.5, 0.8, 0.7, 0.8]
    assert best_trial(_study(*(create_trial(value=value) for value in values))).number == 1


def test_the_best_trial_may_have_a_value_below_zero() -> None:
    assert best_trial(_study(create_trial(value=-0.5), create_trial(value=-0.1), create_trial(value=-0.3))).number == 1


def test_only_complete_trials_are_the_best() -> None:
    study = _study(_FAILED, _pruned(0.9), create_trial(value=0.1))
    study.enqueue_trial({"learning_rate": 1e-4})
    assert best_trial(study).number == 2


def test_a_study_without_a_complete_trial_says_what_it_has() -> None:
    with pytest.raises(
        StudyError, match="got 1 pruned and 2 failed; run it further with `hpsearch run --study reviews"
    ):
        best_trial(_study(_pruned(0.9), _FAILED, _FAILED))


def test_the_standing_counts_trials_by_how_they_ended() -> None:
    study = _study(create_trial(value=0.5), _pruned(0.9), _FAILED, create_trial(value=0.7), create_trial(value=0.7))
    study.enqueue_trial({"learning_rate": 1e-4})
    now = standing(study, 20)
    assert (now.n_finished, now.n_pruned, now.n_failed, now.n_trials) == (4, 1, 1, 20)
    assert (now.best_number, now.best_value) == (3, 0.7)


def _started(storage: BaseStorage, name: str, *hours: int) -> None:
    study = optuna.create_study(storage=storage, study_name=name)
    for hour in hours:
        trial = create_trial(value=1.0)
        trial.datetime_start = datetime.datetime(2024, 1, 1, hour)
        study.add_trial(trial)


def test_without_a_name_the_study_is_the_one_in_which_a_trial_started_last(storage: BaseStorage) -> None:
    _started(storage, "resumed", 1, 9)
    _started(storage, "newer", 5, 6)
    _started(storage, "empty")
    assert load_study(storage, None).study_name == "resumed"


def test_without_any_trial_it_is_the_newest_study(storage: BaseStorage) -> None:
    for name in ("b", "c", "a"):
        _started(storage, name)
    assert load_study(storage, None).study_name == "a"


def test_an_unknown_study_is_refused_with_the_names_there_are(storage: BaseStorage) -> None:
    with pytest.raises(UsageError, match=r"study 'x': expected one of \(there is none yet\)"):
        load_study(storage, "x")
    with pytest.raises(UsageError, match="start one with `hpsearch run`"):
        load_study(storage, None)
    _started(storage, "b")
    _started(storage, "a")
    with pytest.raises(UsageError, match="study 'x': expected one of 'a', 'b'"):
        load_study(storage, "x")
    assert load_study(storage, "b").study_name == "b"


# --- Checkpoints ------------------------------------------------------------------------------------------------------


def _checkpoint(paths: StudyPaths, number: int, *, uid: str = "this") -> Path:
    folder = paths.checkpoint(number)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    write_manifest(folder, {"study": paths.study, "uid": uid, "trial": number})
    return folder


@pytest.fixture
def paths(tmp_path: Path) -> StudyPaths:
    return StudyPaths(root=tmp_path, study="reviews")


def test_only_checkpoints_of_the_best_trials_stay(paths: StudyPaths) -> None:
    study = _study(
        create_trial(value=0.5), create_trial(value=0.8), _FAILED, create_trial(value=0.9), create_trial(value=0.8),
        _pruned(0.99),
    )  # fmt: skip
    for number in range(6):
        _checkpoint(paths, number)
    assert discard_checkpoints(study, paths, 2) == [0, 2, 4, 5]
    assert sorted(folder.name for folder in paths.folder.iterdir()) == ["trial-0001", "trial-0003"]
    assert discard_checkpoints(study, paths, 2) == []


def test_the_checkpoint_of_a_confirmations_winner_stays(paths: StudyPaths) -> None:
    study = _study(create_trial(value=0.5), create_trial(value=0.8), create_trial(value=0.9))
    for number in range(3):
        _checkpoint(paths, number)
    winner = Candidate(0, is_defaults=True, params={}, search_value=0.5, values=(0.6,))
    keep_confirmation(study, Confirmation("f1", (108,), (winner,), seconds=1.0, date="2026-11-25"))
    assert discard_checkpoints(study, paths, 1) == [1]
    assert sorted(folder.name for folder in paths.folder.iterdir()) == ["trial-0000", "trial-0002"]


_NOBODY = 2**22 + 1  # no process has such an id: Linux ends at 2**22


def test_what_another_worker_is_writing_stays(paths: StudyPaths) -> None:
    study = _study(create_trial(value=0.9), create_trial(state=TrialState.RUNNING), _FAILED)
    for number in range(3):
        _checkpoint(paths, number)
        (paths.folder / f".trial-{number:04d}.partial-{_NOBODY}").mkdir()
    (paths.folder / ".trial-0000.partial-1").mkdir()  # of a process that lives, such as a confirmation
    assert discard_checkpoints(study, paths, 1) == [2]
    assert {folder.name for folder in paths.folder.iterdir()} >= {
        "trial-0000", "trial-0001", f".trial-0001.partial-{_NOBODY}", ".trial-0000.partial-1",
    }  # fmt: skip
    assert not (paths.folder / f".trial-0002.partial-{_NOBODY}").exists()


def test_nothing_else_is_ever_deleted(paths: StudyPaths, tmp_path: Path) -> None:
    elsewhere = _checkpoint(StudyPaths(tmp_path / "elsewhere", "reviews"), 1)
    others = _checkpoint(StudyPaths(tmp_path, "others"), 2)
    kept = [
        _checkpoint(paths, 3, uid="another database's"),
        paths.folder / "trial-0004",  # without a manifest
        paths.folder / "trial-0005.bak",
        paths.folder / "trial-5",
        paths.folder / "my-trial-0006",
        paths.best,
        paths.confirmation,
        paths.comparison,
    ]
    for folder in kept[1:]:
        folder.mkdir()
        (folder / "notes.txt").write_text("mine", encoding="utf-8")
    for folder in (*kept[2:5], paths.best):
        write_manifest(folder, {"study": "reviews", "uid": "this", "trial": 5})
    (paths.folder / "trial-0007").write_text("a file", encoding="utf-8")
    (paths.folder / "trial-0001").symlink_to(elsewhere)
    (paths.folder / "trial-0008").mkdir()
    (paths.folder / "trial-0008" / MANIFEST).write_text("[broken", encoding="utf-8")
    half_written = paths.folder / ".trial-0000.partial-123"
    half_written.mkdir()
    before = {path for path in tmp_path.rglob("*") if path != half_written}

    assert discard_checkpoints(_study(create_trial(value=0.5)), paths, 1) == []
    assert set(tmp_path.rglob("*")) == before
    assert read_manifest(elsewhere) is not None
    assert read_manifest(others) is not None


def test_what_a_running_trial_has_written_stays(paths: StudyPaths) -> None:
    study = _study(create_trial(value=0.8), create_trial(state=TrialState.RUNNING))
    half_written = paths.folder / ".trial-0001.partial-123"
    half_written.mkdir(parents=True)
    written = _checkpoint(paths, 1)
    assert discard_checkpoints(study, paths, 1) == []
    assert half_written.is_dir()
    assert written.is_dir()
    study.tell(1, state=TrialState.FAIL)
    assert discard_checkpoints(study, paths, 1) == [1]
    assert list(paths.folder.iterdir()) == []


def test_a_study_without_a_folder_has_nothing_to_discard(paths: StudyPaths) -> None:
    assert discard_checkpoints(_study(), paths, 3) == []


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-3, 3), max_size=12), st.integers(1, 4))
def test_the_best_trials_always_have_their_checkpoints(values: list[int], n_kept: int) -> None:
    with tempfile.TemporaryDirectory() as root:
        paths = StudyPaths(root=Path(root), study="reviews")
        study = _study()
        for number, value in enumerate(values):
            if worth_keeping(study, value, n_kept):
                _checkpoint(paths, number)
            study.add_trial(create_trial(value=float(value)))
            discard_checkpoints(study, paths, n_kept)
            best = sorted(range(number + 1), key=lambda i: (-values[i], i))[:n_kept]
            assert {path.name for path in paths.folder.iterdir()} == {paths.checkpoint(i).name for i in best}


def test_a_checkpoint_is_found_by_its_trial(paths: StudyPaths) -> None:
    study = _study(create_trial(value=0.5))
    folder = _checkpoint(paths, 0)
    assert checkpoint_of(study, paths, study.trials[0]) == folder


def test_checkpoints_of_another_study_of_the_same_name_stop_a_search(paths: StudyPaths) -> None:
    check_folder(_study(), paths)
    _checkpoint(paths, 0)
    check_folder(_study(), paths)
    _checkpoint(paths, 1, uid="another database's")
    with pytest.raises(UsageError, match="got those of another study of that name; choose another --study"):
        check_folder(_study(), paths)


@pytest.mark.parametrize(
    "manifest",
    [None, {"uid": "this", "trial": 1}, {"uid": "another", "trial": 0}],
    ids=["missing", "another trial's", "another study's"],
)
def test_a_checkpoint_that_is_not_the_trials_is_refused(paths: StudyPaths, manifest: dict[str, Any] | None) -> None:
    if manifest:
        paths.checkpoint(0).mkdir(parents=True)
        write_manifest(paths.checkpoint(0), manifest)
    study = _study(create_trial(value=0.5))
    with pytest.raises(StudyError, match="expected the checkpoint of trial 0, got none"):
        checkpoint_of(study, paths, study.trials[0])


# --- Folders that appear whole ----------------------------------------------------------------------------------------


def _write(folder: Path, text: str) -> None:
    (folder / "nested").mkdir()
    (folder / "nested" / "text.txt").write_text(text, encoding="utf-8")
    write_manifest(folder, {"study": "reviews", "trial": 3, "text": text})


def _text(folder: Path) -> str:
    return (folder / "nested" / "text.txt").read_text(encoding="utf-8")


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """Return a folder that hpsearch wrote."""
    folder = tmp_path / "model"
    with appearing(folder) as aside:
        _write(aside, "old")
    return folder


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "model"
    with appearing(folder) as aside:
        _write(aside, "new")
        assert not folder.exists()
        assert aside.parent == folder.parent
    assert _text(folder) == "new"
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt("broken")], ids=["error", "interrupt"])
def test_a_folder_that_fails_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def fail() -> None:
        with appearing(tmp_path / "model") as aside:
            _write(aside, "new")
            raise error

    with pytest.raises(type(error), match="broken"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_hpsearch_is_replaced_when_asked_to(exported: Path) -> None:
    with appearing(exported, overwrite=True) as aside:
        _write(aside, "new")
        assert _text(exported) == "old"
    assert _text(exported) == "new"
    assert list(exported.parent.iterdir()) == [exported]


def test_a_replacement_that_fails_leaves_the_old_folder(exported: Path) -> None:
    def fail() -> None:
        with appearing(exported, overwrite=True) as aside:
            _write(aside, "new")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert _text(exported) == "old"
    assert list(exported.parent.iterdir()) == [exported]


def test_a_replacement_that_cannot_take_its_name_gives_it_back(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if ".partial-" in self.name:
            raise OSError("no more names")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="no more names"), appearing(exported, overwrite=True) as aside:
        _write(aside, "new")
    assert _text(exported) == "old"
    assert list(exported.parent.iterdir()) == [exported]


def test_an_empty_folder_is_replaced_when_asked_to(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    with appearing(folder, overwrite=True) as aside:
        _write(aside, "new")
    assert _text(folder) == "new"


def _enter(folder: Path, *, overwrite: bool) -> None:
    with appearing(folder, overwrite=overwrite):
        raise AssertionError("the folder was given")


def test_a_folder_that_is_there_is_not_replaced_unasked(exported: Path) -> None:
    with pytest.raises(UsageError, match="add --overwrite to replace it"):
        _enter(exported, overwrite=False)
    assert _text(exported) == "old"


@pytest.mark.parametrize("manifest", [None, "[1]", '{"name": "a web page"}'], ids=["none", "no object", "another's"])
def test_a_folder_of_someone_else_is_never_replaced(tmp_path: Path, manifest: str | None) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.txt").write_text("mine", encoding="utf-8")
    if manifest is not None:
        (folder / MANIFEST).write_text(manifest, encoding="utf-8")
    with pytest.raises(UsageError, match=r"expected a folder written by hpsearch.*it is not replaced"):
        _enter(folder, overwrite=True)
    assert (folder / "chapter.txt").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("overwrite", [True, False])
def test_links_and_files_are_refused(exported: Path, tmp_path: Path, *, overwrite: bool) -> None:
    (tmp_path / "link").symlink_to(exported)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    for name in ("link", "dangling", "file"):
        with pytest.raises(UsageError, match="got a file or a link; choose another --output"):
            _enter(tmp_path / name, overwrite=overwrite)
    assert _text(exported) == "old"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_name_that_is_taken_in_the_meantime_is_left_alone(tmp_path: Path, *, overwrite: bool) -> None:
    folder = tmp_path / "model"

    def lose_the_name() -> None:
        with appearing(folder, overwrite=overwrite) as aside:
            _write(aside, "new")
            folder.mkdir()
            (folder / "chapter.txt").write_text("mine", encoding="utf-8")

    with pytest.raises(UsageError, match="add --overwrite" if not overwrite else "written by hpsearch"):
        lose_the_name()
    assert [path.name for path in folder.iterdir()] == ["chapter.txt"]
    assert list(tmp_path.iterdir()) == [folder]


def _dead_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def test_a_folder_whose_replacement_was_cut_short_is_given_its_name_back(exported: Path) -> None:
    exported.rename(exported.with_name(f".{exported.name}.old-{_dead_process()}"))
    with pytest.raises(UsageError, match="add --overwrite to replace it"):
        _enter(exported, overwrite=False)
    assert _text(exported) == "old"
    assert list(exported.parent.iterdir()) == [exported]


def test_what_dead_processes_left_is_cleared_and_what_others_write_stays(exported: Path) -> None:
    dead = _dead_process()
    left = [f".model.{kind}-{pid}" for kind in ("partial", "old") for pid in (dead, os.getppid())]
    for name in (*left, f".model.txt.partial-{dead}", f".model.partial-{dead}.txt"):
        exported.with_name(name).mkdir()
        _write(exported.with_name(name), "half")
    exported.with_name(f".model.old-{dead}1").symlink_to(exported)
    with appearing(exported, overwrite=True) as aside:
        _write(aside, "new")
    assert _text(exported) == "new"
    assert {path.name for path in exported.parent.iterdir()} == {
        "model", f".model.partial-{os.getppid()}", f".model.old-{os.getppid()}", f".model.txt.partial-{dead}",
        f".model.partial-{dead}.txt", f".model.old-{dead}1",
    }  # fmt: skip


def test_what_a_dead_process_of_the_same_id_left_is_cleared(exported: Path) -> None:
    """In a container every process has the same few ids."""
    for kind in ("partial", "old"):
        left = exported.with_name(f".{exported.name}.{kind}-{os.getpid()}")
        left.mkdir()
        (left / "half.bin").write_bytes(b"half")
    with appearing(exported, overwrite=True) as aside:
        _write(aside, "new")
    assert sorted(path.name for path in exported.iterdir()) == [MANIFEST, "nested"]
    assert list(exported.parent.iterdir()) == [exported]


def test_a_manifest_reads_as_it_was_written(tmp_path: Path) -> None:
    manifest = {"study": "영화평", "trial": 3, "value": 0.1 + 0.2, "labels": ["나쁨", "좋음"], "none": None}
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    assert "영화평" in (tmp_path / MANIFEST).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "content", [None, b"", b"{", b"[]", b"\xff\xfe"], ids=["missing", "empty", "cut", "list", "bytes"]
)
def test_a_manifest_that_cannot_be_read_is_none(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / MANIFEST).write_bytes(content)
    assert read_manifest(tmp_path) is None
