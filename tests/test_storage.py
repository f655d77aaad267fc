"""The two storages beside Optuna's own: both give what Optuna gives."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import TrialState, create_trial
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from hpsearch import report
from hpsearch.config import SearchConfig
from hpsearch.errors import StudyError
from hpsearch.owner import Owner
from hpsearch.reading import TABLES_VERSION, ReadOnlyStorage
from hpsearch.search import sampler_of
from hpsearch.storage import NothingToStart, SearchStorage, set_user_attrs
from hpsearch.study import load_study, open_for_reading, open_storage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from optuna.storages import BaseStorage

_SPACE = {
    "learning_rate": FloatDistribution(1e-5, 1e-3, log=True),
    "num_train_epochs": IntDistribution(2, 12),
    "lr_scheduler_type": CategoricalDistribution(["linear", "cosine", None, True, 3, 0.5]),
}
_PARAMS: dict[str, Any] = {"lr_scheduler_type": "cosine", "learning_rate": 2.14e-4, "num_train_epochs": 4}
_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@contextlib.contextmanager
def _opened(url: str, *, create: bool = False) -> Iterator[BaseStorage]:
    storage = open_storage(url, create=create)
    try:
        yield storage
    finally:
        storage._backend.engine.dispose()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def full_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a database with a trial of every kind, in studies of every kind."""
    path = tmp_path_factory.mktemp("full") / "studies.db"
    with _opened(f"sqlite:///{path}", create=True) as storage:
        study = optuna.create_study(storage=storage, study_name="영화평", direction="maximize")
        study.set_metric_names(["f1"])
        study.set_user_attr("config", {"space": {"b": [1, None], "a": "다"}})
        optuna.create_study(storage=storage, study_name="empty", direction="minimize")
        two = optuna.create_study(storage=storage, study_name="two", directions=["maximize", "minimize"])
        for choice in _SPACE["lr_scheduler_type"].choices:  # type: ignore[attr-defined]
            study.add_trial(
                create_trial(
                    value=0.8, params={**_PARAMS, "lr_scheduler_type": choice}, distributions=_SPACE,
                    intermediate_values={10: 0.7, 2: 0.8, 1: 1}, user_attrs={"z": {"f1": 0.8}, "a": [None, "나"]},
                    system_attrs={"note": "x"},
                )
            )  # fmt: skip
            two.add_trial(create_trial(values=[1.0, -float("inf")]))
        study.add_trial(create_trial(value=float("inf")))
        study.add_trial(create_trial(state=TrialState.PRUNED, value=0.5, intermediate_values={1: float("nan"), 2: 0.5}))
        study.add_trial(create_trial(state=TrialState.PRUNED, intermediate_values={1: -float("inf")}))
        study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={"failure": "out of memory"}))
        study.enqueue_trial(_PARAMS, user_attrs={"role": "defaults"})
        study.enqueue_trial({"learning_rate": 1e-4}, user_attrs={"retry_of": 8})
        running = study.ask()
        running.suggest_float("learning_rate", 1e-5, 1e-3, log=True)
        running.report(0.25, 1)
    return path


@pytest.fixture
def path(full_database: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(full_database, tmp_path / "studies.db"))


# --- To read ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zone", ["UTC", "Asia/Seoul", "America/St_Johns"])
def test_what_is_read_is_what_optuna_reads(path: Path, zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    read = open_for_reading(f"sqlite:///{path}")
    assert isinstance(read, ReadOnlyStorage)
    with _opened(f"sqlite:///{path}") as theirs:
        assert read.get_all_studies() == theirs.get_all_studies()
        for study in theirs.get_all_studies():
            study_id = study._study_id
            assert read.get_study_id_from_name(study.study_name) == study_id
            assert read.get_study_name_from_id(study_id) == study.study_name
            assert read.get_study_directions(study_id) == theirs.get_study_directions(study_id)
            assert read.get_study_user_attrs(study_id) == theirs.get_study_user_attrs(study_id)
            assert read.get_study_system_attrs(study_id) == theirs.get_study_system_attrs(study_id)
            # By repr, in which NaN equals NaN and the order of keys counts.
            assert repr(read.get_all_trials(study_id)) == repr(theirs.get_all_trials(study_id))
            for state in TrialState:
                assert repr(read.get_all_trials(study_id, states=[state])) == repr(
                    theirs.get_all_trials(study_id, states=[state])
                )
        assert repr(read.get_trial(5)) == repr(theirs.get_trial(5))
    monkeypatch.undo()
    time.tzset()


def test_the_database_holds_what_the_comparison_is_about(path: Path) -> None:
    study = load_study(open_for_reading(f"sqlite:///{path}"), "영화평")
    trials = study.get_trials(deepcopy=False)
    assert {trial.state for trial in trials} == set(TrialState)
    assert [trial.params.get("lr_scheduler_type") for trial in trials[:6]] == ["linear", "cosine", None, True, 3, 0.5]
    assert trials[0].params["num_train_epochs"] == 4
    assert {type(trial.params.get("num_train_epochs")) for trial in trials[:6]} == {int}


def test_commands_print_the_same_from_both(path: Path) -> None:
    url = f"sqlite:///{path}"
    with _opened(url) as theirs:
        for name in (None, "two", "empty"):
            expected = report.study_document(load_study(theirs, name))
            assert report.study_document(load_study(open_for_reading(url), name)) == expected


def test_unknown_names_and_ids_are_key_errors_as_optuna_has_them(path: Path) -> None:
    read = ReadOnlyStorage(path)
    for ask in (
        lambda: read.get_study_id_from_name("none"),
        lambda: read.get_study_name_from_id(99),
        lambda: read.get_all_trials(99),
        lambda: read.get_trial(99),
    ):
        with pytest.raises(KeyError):
            ask()


def test_a_deep_copy_may_be_changed(path: Path) -> None:
    read = ReadOnlyStorage(path)
    read.get_all_trials(1)[0].user_attrs["z"]["f1"] = 0.0
    assert read.get_all_trials(1)[0].user_attrs["z"] == {"f1": 0.8}


def test_reading_leaves_the_folder_as_it_was(path: Path) -> None:
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    report.studies_document([load_study(open_for_reading(f"sqlite:///{path}"), None)])
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before


def test_a_running_search_is_read_as_far_as_it_has_come(path: Path) -> None:
    with _opened(f"sqlite:///{path}") as storage:
        study = optuna.load_study(study_name="empty", storage=storage)
        trial = study.ask()
        for step in (1, 2):
            trial.report(0.5, step)
            (read,) = load_study(open_for_reading(f"sqlite:///{path}"), "empty").get_trials(deepcopy=False)
            assert list(read.intermediate_values) == list(range(1, step + 1))
        study.tell(trial, 0.5)
    (read,) = load_study(open_for_reading(f"sqlite:///{path}"), "empty").get_trials(deepcopy=False)
    assert read.state == TrialState.COMPLETE


def test_writing_is_refused(path: Path) -> None:
    study = load_study(open_for_reading(f"sqlite:///{path}"), "empty")
    before = path.read_bytes()
    for write in (study.ask, lambda: study.set_user_attr("a", 1), lambda: study.enqueue_trial({})):
        with pytest.raises(NotImplementedError, match="opened for reading only"):
            write()
    assert path.read_bytes() == before


def test_the_tables_are_those_of_the_installed_optuna(path: Path) -> None:
    with _opened(f"sqlite:///{path}") as storage:
        assert storage._backend.get_head_version() == TABLES_VERSION  # type: ignore[attr-defined]


def test_other_tables_are_left_to_optuna(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v9.9.9'")
    with pytest.raises(StudyError, match=r"expected a database of Optuna studies, got: .*no longer compatible"):
        open_for_reading(f"sqlite:///{path}")


@pytest.mark.parametrize("url", ["sqlite:///{}?timeout=5", "sqlite+pysqlite:///{}"])
def test_other_urls_are_left_to_optuna(path: Path, url: str) -> None:
    storage = open_for_reading(url.format(path))
    assert not isinstance(storage, ReadOnlyStorage)
    assert len(storage.get_all_studies()) == 3
    storage._backend.engine.dispose()  # type: ignore[attr-defined]


@pytest.mark.parametrize("table", ["studies", "trial_params", "trial_user_attributes"])
def test_a_database_without_one_of_the_tables_is_refused(path: Path, table: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"DROP TABLE {table}")
    with pytest.raises(StudyError, match=rf"studies\.db: expected a database of Optuna studies, got: .*{table}"):
        report.study_document(load_study(open_for_reading(f"sqlite:///{path}"), None))


# --- To run a trial ---------------------------------------------------------------------------------------------------


@pytest.fixture
def search(path: Path) -> Iterator[SearchStorage]:
    with _opened(f"sqlite:///{path}") as storage:
        over = SearchStorage.over(storage, lock=path.parent / "run.lock")
        assert isinstance(over, SearchStorage)
        yield over


def _assert_as_optuna(search: SearchStorage, study_id: int) -> None:
    """Compare with what a storage that keeps nothing reads, for the states that searches ask for."""
    backend = search._backend
    for states in (
        None,
        _FINISHED,
        (TrialState.COMPLETE,),
        [TrialState.COMPLETE, TrialState.PRUNED],
        (TrialState.FAIL,),
    ):
        expected = sorted(backend.get_all_trials(study_id, states=states), key=lambda trial: trial.number)
        assert repr(search.get_all_trials(study_id, deepcopy=False, states=states)) == repr(expected)


def test_a_search_is_given_what_optuna_gives_at_every_step_of_its_trials(search: SearchStorage) -> None:
    study = optuna.load_study(study_name="영화평", storage=search)
    study_id = study._study_id
    _assert_as_optuna(search, study_id)
    for end in (0.9, TrialState.PRUNED, TrialState.FAIL):
        trial = study.ask()
        _assert_as_optuna(search, study_id)
        trial.suggest_float("learning_rate", 1e-5, 1e-3, log=True)
        _assert_as_optuna(search, study_id)
        trial.report(0.5, 1)
        _assert_as_optuna(search, study_id)
        trial.set_user_attr("role", "defaults")
        _assert_as_optuna(search, study_id)
        search.set_trial_system_attr(trial._trial_id, "note", [1])
        _assert_as_optuna(search, study_id)
        if isinstance(end, TrialState):
            study.tell(trial, state=end)
        else:
            study.tell(trial, end)
        _assert_as_optuna(search, study_id)
    study.add_trial(create_trial(value=0.95))
    _assert_as_optuna(search, study_id)
    assert study.best_trial.value == float("inf")


@pytest.mark.parametrize("value", [0.5, 1, float("nan"), float("inf"), -float("inf")])
def test_intermediate_values_are_stored_as_optuna_stores_them(search: SearchStorage, value: float) -> None:
    study = optuna.load_study(study_name="empty", storage=search)
    ours, theirs = study.ask(), study.ask()
    ours.report(value, 3)
    search._backend.set_trial_intermediate_value(theirs._trial_id, 3, value)
    with search._backend.engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT * FROM trial_intermediate_values ORDER BY 1 DESC LIMIT 2").fetchall()
    assert {row[1] for row in rows} == {ours._trial_id, theirs._trial_id}
    assert rows[0][2:] == rows[1][2:]
    assert type(rows[0][3]) is type(rows[1][3])
    _assert_as_optuna(search, study._study_id)


def check_attributes_that_are_written_at_once(search: SearchStorage, study_name: str) -> None:
    """Write to running trials as Optuna does and at once, and compare; to one that has ended, and to none."""
    study = optuna.load_study(study_name=study_name, storage=search)
    one, other = study.ask(), study.ask()
    values = {"scores": {"f1": 0.8, "나": None}, "seconds": 1.5, "": [], "scores'; --": "% :x"}
    for trial, write in ((one, set_user_attrs), (other, _one_by_one)):
        trial.set_user_attr("seconds", 7)  # is replaced
        write(trial, values)
    first, second = (search.get_trial(trial._trial_id) for trial in (one, other))
    assert first.user_attrs == second.user_attrs == values
    study.tell(one, 0.5)
    with pytest.raises(UpdateFinishedTrialError):
        set_user_attrs(one, {"late": 1})
    with pytest.raises(KeyError):
        search.set_trial_user_attrs(999, {"late": 1})
    search.heart.rest()
    assert search.get_trial(one._trial_id).user_attrs == values


def _one_by_one(trial: optuna.Trial, values: dict[str, Any]) -> None:
    for key, value in values.items():
        trial.set_user_attr(key, value)


def test_attributes_that_are_written_at_once_are_as_optuna_writes_them(search: SearchStorage) -> None:
    check_attributes_that_are_written_at_once(search, "empty")
    in_memory = optuna.create_study().ask()
    set_user_attrs(in_memory, {"seconds": 1.5})
    assert in_memory.user_attrs == {"seconds": 1.5}


def test_an_intermediate_value_is_replaced_while_its_trial_runs(search: SearchStorage) -> None:
    study = optuna.load_study(study_name="empty", storage=search)
    trial = study.ask()
    for value in (0.5, 0.75):
        search.set_trial_intermediate_value(trial._trial_id, 1, value)
        assert search.get_trial(trial._trial_id).intermediate_values == {1: value}
    study.tell(trial, 0.75)
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        search.set_trial_intermediate_value(trial._trial_id, 2, 0.5)
    with pytest.raises(KeyError):
        search.set_trial_intermediate_value(999, 2, 0.5)


def test_the_best_trial_is_optunas(search: SearchStorage) -> None:
    for study_id in (1, 2):
        study = search.get_study_name_from_id(study_id)
        for value in (0.5, 0.25, 0.25):
            optuna.load_study(study_name=study, storage=search).add_trial(create_trial(value=value))
        assert search.get_best_trial(study_id).value == search._backend.get_best_trial(study_id).value


def test_what_a_search_is_given_may_be_changed(search: SearchStorage) -> None:
    search.get_all_trials(1, deepcopy=False, states=_FINISHED).clear()
    search.get_all_trials(1, states=_FINISHED)[0].user_attrs["z"]["f1"] = 0.0
    _assert_as_optuna(search, 1)


def test_the_database_is_read_again_only_after_it_was_written_to(search: SearchStorage) -> None:
    study = optuna.load_study(study_name="영화평", storage=search)
    trial = study.ask()
    study.get_trials(deepcopy=False, states=_FINISHED)
    statements: list[str] = []
    event.listen(
        search._backend.engine, "before_cursor_execute", lambda _c, _cursor, statement, *_: statements.append(statement)
    )
    study.get_trials(deepcopy=False)
    assert statements == []
    trial.report(0.5, 1)
    statements.clear()
    study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    assert statements == [], "no trial has ended"
    study.get_trials(deepcopy=False)
    assert statements


def test_a_trial_put_in_line_by_another_process_is_seen_when_a_trial_has_ended(
    search: SearchStorage, path: Path
) -> None:
    study = optuna.load_study(study_name="empty", storage=search)
    trial = study.ask()
    with _opened(f"sqlite:///{path}") as others:
        optuna.load_study(study_name="empty", storage=others).enqueue_trial({"learning_rate": 1e-4})
    study.tell(trial, 0.5)
    assert study.ask().suggest_float("learning_rate", 1e-5, 1e-3) == 1e-4


def _synchronous(storage: SearchStorage) -> int:
    with storage._backend.engine.connect() as connection:
        return int(connection.exec_driver_sql("PRAGMA synchronous").scalar_one())


def test_only_the_end_of_a_trial_waits_for_the_disk(search: SearchStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[str] = []

    def fsync(number: int) -> None:
        waited.append(Path(f"/proc/self/fd/{number}").readlink().name)

    monkeypatch.setattr(os, "fsync", fsync)
    normal, _full = 1, 2
    assert _synchronous(search) == normal
    study = optuna.load_study(study_name="empty", storage=search)
    trial = study.ask()
    trial.report(0.5, 1)
    trial.set_user_attr("a", 1)
    assert waited == []
    study.tell(trial, 0.5)
    assert waited == ["studies.db-wal"]


def test_a_database_without_a_log_waits_for_the_disk_each_time(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    with _opened(f"sqlite:///{path}") as storage:
        search = SearchStorage.over(storage, lock=path.parent / "run.lock")
        assert isinstance(search, SearchStorage)
        full = 2
        assert _synchronous(search) == full
        study = optuna.load_study(study_name="empty", storage=search)
        study.tell(study.ask(), 0.5)
        _assert_as_optuna(search, study._study_id)


# --- Beside other workers ---------------------------------------------------------------------------------------------


def _at_most(n: int) -> Any:
    return lambda trials: sum(trial.state in (TrialState.RUNNING, TrialState.COMPLETE) for trial in trials) < n


def test_a_trial_is_created_with_its_owner(search: SearchStorage, path: Path) -> None:
    study = optuna.load_study(study_name="empty", storage=search)
    study.ask()
    (trial,) = load_study(open_for_reading(f"sqlite:///{path}"), "empty").get_trials()
    assert (trial.state, Owner.of(trial)) == (TrialState.RUNNING, Owner.me())
    search.heart.rest()


def test_a_trial_from_the_line_is_given_its_owner(search: SearchStorage) -> None:
    study = optuna.load_study(study_name="empty", storage=search)
    study.enqueue_trial({"learning_rate": 1e-4})
    trial = study.ask()
    assert trial.suggest_float("learning_rate", 1e-5, 1e-3) == 1e-4
    assert Owner.of(search.get_trial(trial._trial_id)) == Owner.me()
    study.tell(trial, 0.5)


@pytest.mark.parametrize("in_line", [False, True])
def test_no_trial_starts_beyond_the_number_asked_for(search: SearchStorage, *, in_line: bool) -> None:
    study = optuna.load_study(study_name="empty", storage=search)
    search.may_start = _at_most(2)
    first, _ = study.ask(), study.ask()
    if in_line:
        study.enqueue_trial({})
    with pytest.raises(NothingToStart):
        study.ask()
    study.tell(first, state=TrialState.FAIL)
    study.ask()
    search.heart.rest()
    assert [trial.state for trial in study.get_trials()].count(TrialState.RUNNING) == 2


def test_two_workers_do_not_start_the_same_trial(search: SearchStorage, path: Path) -> None:
    with _opened(f"sqlite:///{path}") as theirs:
        other = SearchStorage.over(theirs, lock=path.parent / "run.lock")
        mine, yours = (optuna.load_study(study_name="empty", storage=each) for each in (search, other))
        mine.enqueue_trial({"learning_rate": 1e-4})
        line = other.get_all_trials(mine._study_id, states=(TrialState.WAITING,))
        trial = mine.ask()
        assert other.set_trial_state_values(line[0]._trial_id, TrialState.RUNNING) is False
        assert yours.ask().number == trial.number + 1
        for storage in (search, other):
            storage.heart.rest()


def test_the_end_of_anothers_trial_is_seen_when_one_starts(search: SearchStorage, path: Path) -> None:
    study = optuna.load_study(study_name="empty", storage=search)
    study.tell(study.ask(), 0.5)
    with _opened(f"sqlite:///{path}") as others:
        optuna.load_study(study_name="empty", storage=others).add_trial(create_trial(value=0.9))
    study.ask()
    search.heart.rest()
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    assert [trial.value for trial in complete] == [0.5, 0.9]


def test_a_draw_knows_what_other_workers_run_as_one_in_memory_does(search: SearchStorage, path: Path) -> None:
    space = {"learning_rate": FloatDistribution(1e-5, 1e-3, log=True), "num_train_epochs": IntDistribution(2, 12)}

    def draw(study: optuna.Study) -> optuna.Trial:
        trial = study.ask()
        for name, dimension in space.items():
            trial._suggest(name, dimension)
        return trial

    def draws(mine: optuna.Study, yours: optuna.Study, *, is_running: bool = True) -> list[dict[str, Any]]:
        mine.sampler, yours.sampler = sampler_of(SearchConfig()), sampler_of(SearchConfig())
        for _ in range(9):  # past the sampler's random start
            trial = draw(mine)
            mine.tell(trial, trial.params["learning_rate"])
        yours.get_trials()
        first = draw(mine)
        if not is_running:
            mine.tell(first, state=TrialState.FAIL)
        return [first.params, draw(yours).params]

    with _opened(f"sqlite:///{path}") as theirs:
        other = SearchStorage.over(theirs, lock=path.parent / "run.lock")
        workers = [optuna.load_study(study_name="empty", storage=each) for each in (search, other)]
        drawn = draws(workers[0], workers[1])
        for storage in (search, other):
            storage.heart.rest()
    memory, quiet = optuna.create_study(), optuna.create_study()
    assert drawn == draws(memory, memory)
    assert drawn != draws(quiet, quiet, is_running=False)


def test_what_the_database_refuses_for_a_moment_is_asked_again(search: SearchStorage) -> None:
    study = optuna.load_study(study_name="empty", storage=search)
    backend, refusals = search._backend._backend, [True, True]  # type: ignore[attr-defined]

    def refused_at_first(*what: Any, **named: Any) -> Any:
        if refusals:
            refusals.pop()
            raise StorageInternalError("commit") from OperationalError("COMMIT", {}, Exception("database is locked"))
        return type(backend).set_study_user_attr(backend, *what, **named)

    backend.set_study_user_attr = refused_at_first
    study.set_user_attr("note", "x")
    assert not refusals
    assert study.user_attrs["note"] == "x"


def test_an_end_whose_answer_was_lost_is_an_end(search: SearchStorage) -> None:
    study = optuna.load_study(study_name="empty", storage=search)
    trial = study.ask()
    backend, answers = search._backend._backend, [True]  # type: ignore[attr-defined]

    def lost_answer(*what: Any, **named: Any) -> Any:
        done = type(backend).set_trial_state_values(backend, *what, **named)
        if answers:
            answers.pop()
            raise StorageInternalError("commit") from OperationalError("COMMIT", {}, Exception("connection closed"))
        return done

    backend.set_trial_state_values = lost_answer
    study.tell(trial, 0.75)
    assert search.get_trial(trial._trial_id).value == 0.75


def test_a_trial_that_another_worker_has_ended_is_not_ended_again(search: SearchStorage, path: Path) -> None:
    study = optuna.load_study(study_name="empty", storage=search)
    trial = study.ask()
    with _opened(f"sqlite:///{path}") as others:
        optuna.load_study(study_name="empty", storage=others).tell(trial.number, state=TrialState.FAIL)
    with pytest.raises(UpdateFinishedTrialError):
        trial.report(0.5, 1)
    with pytest.raises(UpdateFinishedTrialError):
        search.set_trial_state_values(trial._trial_id, state=TrialState.COMPLETE, values=[0.5])
    assert search.get_trial(trial._trial_id).state == TrialState.FAIL
