"""Measure studies that many processes run at once, on one machine or several; the trials sleep (`fleet.py`).

    python benchmarks/cluster.py --json benchmarks/cluster.json              # all four
    python benchmarks/cluster.py --only campaign --json FILE                 # one; the others in FILE stay

- start: four workers start at once on a new SQLite file, 40 trials, five times.
- campaign: eight workers of two machines on PostgreSQL, 100 trials. Two workers are killed (`kill -9`), a third is
  stopped until another one has taken its trial over and then goes on, the server is killed and comes back a second
  later, and all its connections are ended from its side: each in mid-run.
- throughput: 1 to 16 workers, ten trials of one second each, as a share of what they would do if nothing but the sleep
  took time.
- cost: what the search spends on one trial outside of it, in a study that already has 0, 1,000 or 10,000.

PostgreSQL is Debian's, started for this in a temporary folder, with `fsync` as by default; the campaign takes root, for
its machines. Workers, server and database files are all on the machine that the document names.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import tempfile
import time
from collections import Counter
from datetime import date
from functools import partial
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import click
import optuna
from optuna.trial import TrialState

if TYPE_CHECKING:
    from collections.abc import Callable

    from fleet import Fleet, Sight
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial
    from servers import PostgresServer

    from hpsearch.study import StudyPaths
    from hpsearch.trainer import Task

    Document = dict[str, Any]

_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
_LOOK_S = 0.05
_LONG = 3  # number of a trial that lasts longer than a worker may be silent


def finished(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials that count."""
    return [trial for trial in trials if trial.state in _FINISHED]


# --- Workers that start at once ---------------------------------------------------------------------------------------


def start_at_once(folder: Path, *, n_workers: int, n_trials: int, seconds: float) -> Document:
    """Have workers start at once on an SQLite file that is not there yet."""
    from fleet import Fleet, trials_of, words_of

    url = f"sqlite:///{folder}/studies/new.db"
    with contextlib.closing(Fleet(url, folder, [n_workers], trials=n_trials, seconds=seconds)) as fleet:
        fleet.wait(300)
    trials = trials_of(url)
    return {
        "workers": n_workers,
        "asked_for": n_trials,
        "finished": len(finished(trials)),
        "other": len(trials) - len(finished(trials)),
        "workers_with_a_trial": len({trial.system_attrs["hpsearch:owner"]["pid"] for trial in trials}),
        "said": words_of(folder),
    }


# --- A campaign -------------------------------------------------------------------------------------------------------


def campaign(
    server: PostgresServer, folder: Path, *, machines: list[int], n_trials: int, seconds: float, grace_s: float
) -> Document:
    """Run a study on several machines while things happen to them; return what happened, and what was wrong with it."""
    from fleet import Fleet, Sight

    from hpsearch.study import open_storage

    database = server.make_database()
    rhythm = {"beat_s": grace_s / 20, "give_up_s": 0.7 * grace_s, "grace_s": grace_s}
    # A living worker is silent to nobody, however long its trial lasts.
    long = {_LONG: 1.5 * grace_s}
    url = server.url(database)
    open_storage(url, create=True)._backend.engine.dispose()  # type: ignore[attr-defined]  # to see the first trials
    with (
        contextlib.closing(
            Fleet(url, folder, machines, trials=n_trials, seconds=seconds, rhythm=rhythm, long=long)
        ) as fleet,
        contextlib.closing(Sight(url)) as sight,
    ):
        return _Campaign(server, database, folder, fleet, n_trials, sight).run()


class _Campaign:
    def __init__(
        self, server: PostgresServer, database: str, folder: Path, fleet: Fleet, n_trials: int, sight: Sight
    ) -> None:
        self._server = server
        self._database = database
        self._folder = folder
        self._fleet = fleet
        self._n_trials = n_trials
        self._sight = sight
        self._table: list[Document] = []
        self._ends: dict[int, tuple[str, float | None]] = {}  # of finished trials, as first seen
        self._changed: list[int] = []
        self._machines: list[str] = []
        self._hits: set[int] = set()  # numbers of the trials whose workers got a signal
        self._began = time.monotonic()

    def run(self) -> Document:
        self._wait_for(self._n_trials // 10)
        killed = [self._hit(machine, signal.SIGKILL, "killed") for machine in (0, 1)]
        self._wait_for(self._n_trials // 4)
        stopped, stopped_pid = self._hit(0, signal.SIGSTOP, "stopped")
        self._wait_for(self._n_trials // 3)
        self._server.restart(down_s=1.0)
        self._note("server killed, and started again a second later")
        self._wait_for(self._n_trials // 2)
        n_ended = self._server.terminate_connections(self._database)
        self._note(f"all {n_ended} connections ended by the server")
        while self._look()[stopped].state == TrialState.RUNNING:
            self._pause()
        self._note(f"trial {stopped} taken over")
        os.kill(stopped_pid, signal.SIGCONT)
        self._note("stopped worker goes on")
        self._fleet.wait(300)
        return self._judged(self._look(), [number for number, _ in killed], stopped)

    def _look(self) -> list[FrozenTrial]:
        """Read the study, and see to it that nothing that was finished has changed."""
        trials = self._sight.trials()
        for trial in finished(trials):
            now = trial.state.name, trial.value
            if self._ends.setdefault(trial.number, now) != now:
                self._changed.append(trial.number)
        return trials

    def _wait_for(self, n_finished: int) -> None:
        while len(finished(self._look())) < n_finished:
            self._pause()

    def _pause(self) -> None:
        if not self._fleet.is_running():
            raise click.ClickException("the workers ended before all had happened to them")
        time.sleep(_LOOK_S)

    def _hit(self, machine: int, number: signal.Signals, what: str) -> tuple[int, int]:
        """Send a signal to a worker of a machine that is in a trial, and return the trial's number and the worker."""
        while True:
            # Not one whose worker was killed: it looks as if it ran until it is taken over.
            for trial in [trial for trial in self._look() if trial.number not in self._hits]:
                with contextlib.suppress(ProcessLookupError):  # it has just ended
                    if (pid := self._worker_in(trial, machine)) is None:
                        continue
                    os.kill(pid, signal.SIGSTOP)  # so that it is known to be in that very trial
                    if self._look()[trial.number].state == TrialState.RUNNING:
                        os.kill(pid, number)
                        self._hits.add(trial.number)
                        self._note(f"worker of machine {machine} {what} in trial {trial.number}")
                        return trial.number, pid
                    os.kill(pid, signal.SIGCONT)
            self._pause()

    def _worker_in(self, trial: FrozenTrial, machine: int) -> int | None:
        """Return who runs a trial, if it is a worker of a machine and has begun not long ago."""
        from fleet import host_pid

        from hpsearch.owner import Owner

        owner = Owner.of(trial)
        if owner is None or self._machine_of(owner.machine) != machine:
            return None
        is_early = trial.state == TrialState.RUNNING and 1 <= len(trial.intermediate_values) <= 4
        is_one = is_early and trial.number != _LONG and "retry_of" not in trial.user_attrs
        return host_pid(owner) if is_one else None

    def _machine_of(self, machine: str) -> int:
        """Return a machine's number, in the order in which they were first seen."""
        if machine not in self._machines:
            self._machines.append(machine)
        return self._machines.index(machine)

    def _note(self, what: str) -> None:
        n_finished = len(finished(self._look()))
        self._table.append({"seconds": round(time.monotonic() - self._began, 1), "finished": n_finished, "what": what})

    def _judged(self, trials: list[FrozenTrial], killed: list[int], stopped: int) -> Document:
        from fleet import words_of

        from hpsearch.owner import Owner

        retries = {
            number: [trial for trial in trials if trial.user_attrs.get("retry_of") == number]
            for number in (*killed, stopped)
        }
        failed = sorted(trial.number for trial in trials if trial.state == TrialState.FAIL)
        good = finished(trials)
        wrong = []
        if len(good) != self._n_trials:
            wrong.append(f"{len(good)} finished trials")
        if failed != sorted(retries):
            wrong.append(f"failed: {failed}, expected {sorted(retries)}")
        if self._changed or not set(self._ends) <= {trial.number for trial in good}:
            wrong.append(f"finished trials that changed or went: {self._changed}")
        for number, again in retries.items():
            if [trial.params for trial in again] != [trials[number].params] or again[0].state not in _FINISHED:
                wrong.append(f"trial {number} tried again {len(again)} times")
        if [trial.number for trial in trials] != list(range(len(trials))):
            wrong.append("numbers with gaps or twice")
        if any(len(trial.intermediate_values) != 8 for trial in good):
            wrong.append("a finished trial without all its evaluations")
        return {
            "asked_for": self._n_trials,
            "finished": len(good),
            "table": self._table,
            "retries": {number: [trial.number for trial in again] for number, again in retries.items()},
            "finished_by_worker": sorted(Counter(str(Owner.of(trial)) for trial in good).values(), reverse=True),
            "said": words_of(self._folder),
            "wrong": wrong,
        }


# --- Throughput -------------------------------------------------------------------------------------------------------


def throughput(url: str, folder: Path, *, n_workers: int, trials_each: int) -> Document:
    """Have workers run trials of a second, and return which share of the ideal they reach."""
    from fleet import Fleet, trials_of

    n_trials = n_workers * trials_each
    with contextlib.closing(Fleet(url, folder, [n_workers], trials=n_trials, seconds=1.0)) as fleet:
        busy = os.times()
        fleet.wait(300)
        spent = [now - then for now, then in zip(os.times()[2:4], busy[2:4], strict=True)]
    trials = trials_of(url)
    begin = min(trial.datetime_start for trial in trials if trial.datetime_start)
    end = max(trial.datetime_complete for trial in trials if trial.datetime_complete)
    seconds = (end - begin).total_seconds()
    return {
        "workers": n_workers,
        "trials": len(finished(trials)),
        "seconds": round(seconds, 2),
        "share_of_ideal": round(trials_each / seconds, 3),
        "processor_seconds": round(sum(spent), 1),
    }


# --- What a trial costs -----------------------------------------------------------------------------------------------


def cost(url: str, folder: Path, *, n_earlier: int, n_measured: int) -> Document:
    """Return what a lone worker spends on trials that take no time, after so many earlier ones."""
    from fleet import STUDY, Sleeper, sleeping_task

    from hpsearch.observer import Observer
    from hpsearch.search import run_search
    from hpsearch.study import StudyPaths, open_storage

    paths = StudyPaths(folder, STUDY)
    task = sleeping_task(n_earlier + n_measured)
    storage = open_storage(url, create=True)
    _add_earlier(storage, task, paths, n_earlier)
    ends: list[tuple[float, float]] = []

    class Ends(Observer):
        def study_changed(self, standing: Any) -> None:  # noqa: ARG002
            ends.append((time.perf_counter(), time.process_time()))

    run_search(task, storage, paths, observer=Ends(), make_trainer=partial(Sleeper, seconds=lambda _: 0.0))
    storage._backend.engine.dispose()  # type: ignore[attr-defined]
    # The first trial reads the study.
    spent = [(end[0] - start[0], end[1] - start[1]) for start, end in pairwise(ends[2:])]
    return {
        "earlier_trials": n_earlier,
        "measured_trials": len(spent),
        "milliseconds": round(1000 * median(wall for wall, _ in spent), 1),
        "processor_milliseconds": round(1000 * median(processor for _, processor in spent), 1),
    }


def _add_earlier(storage: BaseStorage, task: Task, paths: StudyPaths, n_trials: int) -> None:
    """Make the study, with finished trials as a search would have left them."""
    from growth import insert, made_up_trials

    from hpsearch.observer import Observer
    from hpsearch.search import open_search

    study, _ = open_search(task, storage, paths, Observer())
    if not n_trials:
        return
    insert(storage, study._study_id, made_up_trials(task.config, n_trials, first=1, values=(0.3, 0.5)))
    engine = storage._backend.engine  # type: ignore[attr-defined]
    if engine.dialect.name == "postgresql":  # which does not count what it was told the number of
        with engine.begin() as connection:
            connection.exec_driver_sql(
                "SELECT setval(pg_get_serial_sequence('trials', 'trial_id'), (SELECT max(trial_id) FROM trials))"
            )


# --- All of them ------------------------------------------------------------------------------------------------------


def _start(_server: PostgresServer, folder: Path) -> list[Document]:
    return [
        start_at_once(folder / str(repeat), n_workers=4, n_trials=40, seconds=0.2)
        for repeat in range(5)
    ]  # fmt: skip


def _campaign_of_eight(server: PostgresServer, folder: Path) -> Document:
    return campaign(server, folder, machines=[4, 4], n_trials=100, seconds=1.0, grace_s=10.0)


def _throughput(server: PostgresServer, folder: Path) -> list[Document]:
    figures = []
    for n_workers in (1, 2, 4, 8, 16):
        for kind in ("postgresql", "sqlite"):
            place = folder / f"{kind}-{n_workers}"
            url = server.url(server.make_database()) if kind == "postgresql" else f"sqlite:///{place}/studies/new.db"
            figures.append({"database": kind, **throughput(url, place, n_workers=n_workers, trials_each=10)})
    return figures


def _cost(server: PostgresServer, folder: Path) -> list[Document]:
    figures = []
    for n_earlier in (0, 1_000, 10_000):
        for kind in ("postgresql", "sqlite"):
            place = folder / f"{kind}-{n_earlier}"
            url = server.url(server.make_database()) if kind == "postgresql" else f"sqlite:///{place}/studies/new.db"
            figures.append({"database": kind, **cost(url, place, n_earlier=n_earlier, n_measured=20)})
    return figures


SHOWS: dict[str, Callable[[PostgresServer, Path], Any]] = {
    "start": _start,
    "campaign": _campaign_of_eight,
    "throughput": _throughput,
    "cost": _cost,
}


@click.command(help=__doc__)
@click.option("--only", multiple=True, type=click.Choice(list(SHOWS)), help="One of them; repeatable.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), required=True, help="The document to write.")
def main(only: tuple[str, ...], json_path: Path) -> None:
    """Measure."""
    from machine import machine  # beside this script
    from servers import postgres

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    document: Document = json.loads(json_path.read_text(encoding="utf-8")) if json_path.exists() else {}
    with postgres(durable=True) as server, tempfile.TemporaryDirectory() as folder:
        names = ("hpsearch", "optuna", "sqlalchemy", "psycopg")
        versions = ", ".join(f"{name} {version(name)}" for name in names)
        (released,) = server.execute("SHOW server_version")
        for name in only or SHOWS:
            started, load = time.monotonic(), os.getloadavg()[0]
            figures = SHOWS[name](server, Path(folder) / name)
            document[name] = {
                "conditions": f"{machine()}; {versions}, PostgreSQL {released[0]}; {date.today().isoformat()}",  # noqa: DTZ011
                "load_before": round(load, 1),
                "seconds": round(time.monotonic() - started, 1),
                "figures": figures,
            }
            click.echo(json.dumps(document[name], indent=1, ensure_ascii=False))
            json_path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
