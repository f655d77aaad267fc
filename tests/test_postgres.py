"""Studies on a real PostgreSQL server: all commands, its passwords, and what becomes of work when it goes away."""

from __future__ import annotations

import contextlib
import math
import re
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError

from benchmarks.fleet import STUDY, NoModel, NoRows, sleeping_task
from hpsearch.errors import StudyError, UsageError
from hpsearch.observer import Observer
from hpsearch.owner import Owner, Rhythm
from hpsearch.search import open_search
from hpsearch.storage import SearchStorage, plain_errors
from hpsearch.study import StudyPaths, open_storage
from tests.test_end_to_end import dashboard_of, document, hpsearch, write_config
from tests.test_storage import check_attributes_that_are_written_at_once

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.servers import PostgresServer


@pytest.fixture
def search(postgres_server: PostgresServer, database: str, tmp_path: Path) -> Iterator[SearchStorage]:
    """Return the storage of a process that runs trials of the study `reviews`."""
    storage = open_storage(postgres_server.url(database), create=True)
    optuna.create_study(storage=storage, study_name="reviews", direction="maximize")
    search = SearchStorage.over(storage, lock=tmp_path / "run.lock")
    yield search
    search.heart.rest()
    storage._backend.engine.dispose()  # type: ignore[attr-defined]


def _study(storage: Any) -> optuna.Study:
    return optuna.load_study(study_name="reviews", storage=storage)


def _at_most(n: int) -> Any:
    return lambda trials: sum(trial.state in (TrialState.RUNNING, TrialState.COMPLETE) for trial in trials) < n


# --- What is written --------------------------------------------------------------------------------------------------


def test_what_is_written_at_once_is_as_optuna_writes_it(search: SearchStorage) -> None:
    check_attributes_that_are_written_at_once(search, "reviews")
    study = _study(search)
    ours, theirs = study.ask(), study.ask()
    for step, value in enumerate((0.5, math.nan, math.inf, -math.inf, 1e-300), 1):
        search.set_trial_intermediate_value(ours._trial_id, step, value)
        search._backend.set_trial_intermediate_value(theirs._trial_id, step, value)
    search.set_trial_intermediate_value(ours._trial_id, 1, 0.75)  # a value that is replaced
    search._backend.set_trial_intermediate_value(theirs._trial_id, 1, 0.75)
    search.heart.rest()
    pair = [search.get_trial(trial._trial_id).intermediate_values for trial in (ours, theirs)]
    assert repr(pair[0]) == repr(pair[1])
    assert pair[0][1] == 0.75


# --- A study on it ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_study_is_run_and_read_from_a_server(
    postgres_server: PostgresServer, database: str, tmp_path: Path, tiny_model: Path, toy_csv: Path
) -> None:
    write_config(tmp_path, tiny_model, toy_csv)
    url = postgres_server.url(database)
    said = [
        hpsearch(tmp_path, "run", "--config", "toy.yaml", "--trials", "3", "--storage", url),
        hpsearch(tmp_path, "list", "--storage", url),
        hpsearch(tmp_path, "show", "--storage", url),
        hpsearch(tmp_path, "list", "--storage", postgres_server.url(database, password="wr0ng"), code=1),
        hpsearch(tmp_path, "show", "nosuch", "--storage", url, code=2),
    ]
    study = document(tmp_path, "show", "toy", "--storage", url)
    assert study["n_complete"] + study["n_pruned"] == 3
    assert said[1].stdout.startswith("study")
    assert "password authentication failed" in said[3].stderr

    with dashboard_of(tmp_path, "--storage", url) as ask:
        shown = ask("api/studies")
    assert shown["study_summaries"][0]["study_name"] == "toy"

    # The password is nowhere but in the address.
    rows = postgres_server.execute("SELECT value_json FROM study_user_attributes", database)
    written = [path.read_bytes().decode(errors="replace") for path in tmp_path.rglob("*") if path.is_file()]
    for text in (*(result.output for result in said), str(shown), str(rows), *written):
        assert postgres_server.password not in text
        assert "wr0ng" not in text


def test_an_empty_database_is_not_written_to_by_reading(
    postgres_server: PostgresServer, database: str, tmp_path: Path
) -> None:
    result = hpsearch(tmp_path, "list", "--storage", postgres_server.url(database), code=2)
    assert "expected a database of Optuna studies, got one without its tables; start a study there with" in (
        result.stderr
    )
    assert "***@127.0.0.1" in result.stderr
    assert postgres_server.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'", database) == []


def test_processes_that_start_at_once_make_the_tables_once(postgres_server: PostgresServer, database: str) -> None:
    code = (
        "import sys; from hpsearch.study import open_storage; url = input(); print('ready', flush=True); input(); "
        "print(open_storage(url, create=True).get_all_studies())"
    )
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) for _ in range(4)]
    for process in processes:
        process.stdin.write(postgres_server.url(database) + "\n")  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
    for process in processes:
        assert process.stdout.readline() == "ready\n"  # type: ignore[union-attr]
    for process in processes:
        process.stdin.write("go\n")  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
    assert [process.communicate(timeout=60) for process in processes] == [("[]\n", "")] * 4


def test_a_missing_driver_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(UsageError, match=r"expected a database driver, got: .*; install .* '\.\[postgres\]'"):
        open_storage("postgresql://user:s3cret@127.0.0.1/db", create=True)


def test_a_worker_keeps_one_connection_and_takes_few(
    postgres_server: PostgresServer, database: str, search: SearchStorage
) -> None:
    def connections() -> Any:
        count = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}'"
        return postgres_server.execute(count)[0][0]

    study = _study(search)
    trial = study.ask()
    trial.report(0.5, 1)
    assert search.exclusively("reviews", connections) <= 2
    study.tell(trial, 0.5)
    assert connections() == 1


# --- It goes away -----------------------------------------------------------------------------------------------------


def _restart(server: PostgresServer, _: str) -> None:
    server.restart()


def _end_connections(server: PostgresServer, database: str) -> None:
    server.terminate_connections(database)


@pytest.mark.parametrize("go_away", [_restart, _end_connections])
def test_a_trial_lives_through_it(
    postgres_server: PostgresServer,
    database: str,
    search: SearchStorage,
    go_away: Callable[[PostgresServer, str], None],
) -> None:
    study = _study(search)
    study.enqueue_trial({"learning_rate": 1e-4})
    trial = study.ask()
    go_away(postgres_server, database)
    assert trial.suggest_float("learning_rate", 1e-5, 1e-3) == 1e-4
    for step in (1, 2):
        trial.report(step / 10, step)
        go_away(postgres_server, database)
    trial.set_user_attr("scores", {"f1": 0.2})
    go_away(postgres_server, database)
    study.tell(trial, 0.2)
    go_away(postgres_server, database)
    (kept,) = study.get_trials()
    assert (kept.state, kept.value, kept.intermediate_values) == (TrialState.COMPLETE, 0.2, {1: 0.1, 2: 0.2})
    assert kept.user_attrs == {"scores": {"f1": 0.2}}


def test_a_server_that_is_away_is_waited_for(postgres_server: PostgresServer, search: SearchStorage) -> None:
    study = _study(search)
    trial = study.ask()
    back = threading.Thread(target=postgres_server.restart, kwargs={"down_s": 1.0})
    back.start()
    time.sleep(0.5)
    study.tell(trial, 0.5)
    back.join()
    assert study.trials[0].value == 0.5


def test_a_server_that_stays_away_is_given_up_once_and_for_all(
    postgres_server: PostgresServer, database: str, tmp_path: Path
) -> None:
    storage = open_storage(postgres_server.url(database), create=True)
    optuna.create_study(storage=storage, study_name="reviews", direction="maximize")
    search = SearchStorage.over(storage, lock=tmp_path / "run.lock", rhythm=Rhythm(beat_s=60, give_up_s=1.5))
    study = _study(search)
    trial = study.ask()
    postgres_server.execute(f"ALTER DATABASE {database} ALLOW_CONNECTIONS false")
    postgres_server.terminate_connections(database)
    started = time.monotonic()
    message = r"expected to read and write it, got: .*; every finished trial is kept. Mend the cause"
    with pytest.raises(StudyError, match=message), plain_errors(STUDY):
        trial.report(0.5, 1)
    assert time.monotonic() - started > 1.5
    started = time.monotonic()
    with pytest.raises(StudyError) as raised, plain_errors(STUDY):
        study.tell(trial, 0.5)
    assert time.monotonic() - started < 1.4, "the patience is with the server, not with each call"
    assert postgres_server.password not in str(raised.value)
    postgres_server.execute(f"ALTER DATABASE {database} ALLOW_CONNECTIONS true")
    study.tell(trial, 0.5)
    storage._backend.engine.dispose()  # type: ignore[attr-defined]


# --- Turns ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("go_away", [_restart, _end_connections])
def test_what_is_done_in_a_turn_is_done_whole_or_not_at_all(
    postgres_server: PostgresServer,
    database: str,
    search: SearchStorage,
    go_away: Callable[[PostgresServer, str], None],
) -> None:
    study = _study(search)
    seen = []

    def work() -> None:
        study.enqueue_trial({"attempt": len(seen)})
        study.set_user_attr("attempt", len(seen))
        others = RDBStorage(postgres_server.url(database))
        seen.append((len(study.get_trials()), len(others.get_all_trials(study._study_id))))
        others.engine.dispose()
        if len(seen) == 1:
            go_away(postgres_server, database)
        study.enqueue_trial({"second of attempt": len(seen)})

    search.exclusively("reviews", work)
    assert seen == [(1, 0), (1, 0)], "seen by itself, by nobody else, and not at all after it was lost"
    kept = [trial.system_attrs["fixed_params"] for trial in study.get_trials()]
    assert kept == [{"attempt": 1}, {"second of attempt": 2}]
    assert study.user_attrs == {"attempt": 1}


def test_only_one_process_has_its_turn(
    postgres_server: PostgresServer, database: str, search: SearchStorage, tmp_path: Path
) -> None:
    other = SearchStorage.over(open_storage(postgres_server.url(database), create=False), lock=tmp_path / "other.lock")
    order: list[str] = []
    waits = threading.Thread(target=lambda: other.exclusively("reviews", lambda: order.append("other")))

    def work() -> None:
        waits.start()
        time.sleep(0.3)
        order.append("first")

    search.exclusively("reviews", work)
    waits.join(20)
    assert order == ["first", "other"]
    other._backend.engine.dispose()


def test_a_turn_that_is_sat_on_goes_to_the_next(
    postgres_server: PostgresServer,
    database: str,
    search: SearchStorage,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("hpsearch.postgres._LONGEST_PAUSE", "300ms")
    other = SearchStorage.over(open_storage(postgres_server.url(database), create=False), lock=tmp_path / "other.lock")
    order: list[str] = []

    def work() -> None:
        order.append("first")
        if len(order) == 1:
            other.exclusively("reviews", lambda: order.append("other"))  # while this one sleeps, as if it was stopped
        _study(search).set_user_attr("done by", order[-1])

    search.exclusively("reviews", work)
    assert order == ["first", "other", "first"]
    other._backend.engine.dispose()


@pytest.mark.parametrize("in_line", [False, True])
def test_a_trial_whose_start_was_not_answered_is_not_started_twice(
    search: SearchStorage, monkeypatch: pytest.MonkeyPatch, *, in_line: bool
) -> None:
    from hpsearch.postgres import Turns

    take, lost = Turns.take, []

    def take_without_an_answer(turns: Turns, name: str) -> Any:
        with take(turns, name):
            yield
        if not lost:
            lost.append(name)
            raise OperationalError("COMMIT", {}, Exception("server closed the connection unexpectedly"))

    study = _study(search)
    if in_line:
        study.enqueue_trial({"learning_rate": 1e-4})
    search.may_start = _at_most(1)
    monkeypatch.setattr(Turns, "take", contextlib.contextmanager(take_without_an_answer))
    trial = study.ask()
    assert lost
    trial.suggest_float("learning_rate", 1e-5, 1e-3)
    study.tell(trial, 0.5)
    (kept,) = study.get_trials()
    assert (kept.state, kept.number, Owner.of(kept)) == (TrialState.COMPLETE, 0, Owner.me())


# --- Joining ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": NoRows("others")}, r'data: started with "rows", now "others"'),
        ({"model": NoModel("another")}, r'model: started with "encoder", now "another"'),
        (
            {"config": sleeping_task(5, {"learning_rate": {"type": "float", "low": 1e-5, "high": 2e-3}}).config},
            r"space\.learning_rate\.high: started with 0\.001, now 0\.002",
        ),
    ],
    ids=["rows", "model", "space"],
)
def test_a_worker_that_would_search_something_else_is_refused(
    postgres_server: PostgresServer, database: str, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    task, paths = sleeping_task(5), StudyPaths(tmp_path, STUDY)
    open_search(task, open_storage(postgres_server.url(database), create=True), paths, Observer())
    elsewhere = open_storage(postgres_server.url(database), create=False)
    with pytest.raises(UsageError, match=message):
        open_search(replace(task, **change), elsewhere, StudyPaths(tmp_path / "elsewhere", STUDY), Observer())


def test_a_worker_of_other_versions_is_refused_while_others_run(
    postgres_server: PostgresServer, database: str, tmp_path: Path
) -> None:
    task, paths = sleeping_task(5), StudyPaths(tmp_path, STUDY)
    study, theirs = open_search(task, open_storage(postgres_server.url(database), create=True), paths, Observer())
    me = theirs.me
    theirs.me = replace(me, host="node7", machine="another/1", versions={**me.versions, "torch": "2.0.1"})
    trial = study.ask()
    mine = open_storage(postgres_server.url(database), create=False)
    with pytest.raises(
        UsageError, match=rf"worker on node7, torch 2\.0\.1, got torch {re.escape(me.versions['torch'])}; install"
    ):
        open_search(task, mine, paths, Observer())
    study.tell(trial, 0.5)
    open_search(task, mine, paths, Observer())
