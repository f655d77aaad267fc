"""Kill searches at random moments, resume each, and count what was lost.

    python benchmarks/kills.py --model FOLDER --reviews FILE --json benchmarks/kills.json   # a quarter of an hour
    python benchmarks/kills.py --kills 6 --pairs 1 --workers 0 --lock-seconds 0             # a minute

A round is one study of four trials and its export by the real commands. It is killed twice, each time with a signal,
in a phase and at a moment in it that are drawn, and resumed after each. In a `pair` two commands run one study
together, and one of them is killed while the other goes on. In the `workers` rounds a single command runs two workers,
and one of these or the command itself is killed. In one round nothing is killed, and the database is locked.

Phases are told from outside: the script wraps functions of hpsearch, Optuna and transformers, in the killed process
only, and reads from shared memory which one runs when the signal is sent.

After every kill the database must be sound, every finished trial as it was and what carries a final name whole; in the
end there must be exactly four finished trials of the values that an undisturbed search draws, none that still runs,
and a checkpoint that can be read for each of the best. A first SIGTERM, SIGHUP or SIGINT must also close the running
trial, which the exit status 130 says.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import wraps
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import faults
from machine import machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

N_TRIALS = 4
KILLS_A_ROUND = 2  # a third death over the same parameters gives them up
RUN = ["run", "--config", f"{faults.STUDY}.yaml", "--trials", str(N_TRIALS)]
ALONE = [*RUN, "--workers", "1"]
LONGER = ["--set", "defaults.num_train_epochs=10"]  # so that two workers, once they have started, run trials at once
TWO = [*RUN, "--workers", "2", *LONGER]
EXPORT = ["export-best", "--study", faults.STUDY, "--overwrite"]

WAYS = ("SIGKILL", "SIGTERM", "SIGHUP", "SIGINT", "SIGINT twice")
PHASES = (
    "loading", "creating the study", "starting a trial", "training", "evaluating", "reporting", "pruning",
    "writing a checkpoint", "ending a trial", "discarding checkpoints", "exporting",
)  # fmt: skip
OTHER = "in between"
_STOPPED = 130
_ENDS_S = 30.0  # within which a first signal must end a process, on a busy machine too


class Phase:
    """What a forked process is doing, readable by its parent."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 1)
        self._stack = [len(PHASES)]

    def name(self) -> str:
        return (*PHASES, OTHER)[self._shared[0]]

    def reset(self) -> None:
        self._shared[0] = len(PHASES)

    def watch(self) -> None:
        """Have this process tell its phases."""
        import optuna
        import transformers

        import hpsearch.export
        import hpsearch.search
        import hpsearch.study
        from hpsearch.storage import SearchStorage
        from hpsearch.trainer import SearchTrainer

        for owner, function, phase in (
            (hpsearch.search, "prepare", "loading"),
            (hpsearch.study, "open_storage", "creating the study"),
            (hpsearch.search, "open_search", "creating the study"),
            (SearchStorage, "create_new_trial", "starting a trial"),
            (SearchStorage, "_start_waiting", "starting a trial"),
            (transformers.Trainer, "training_step", "training"),
            (SearchTrainer, "evaluate", "evaluating"),
            (optuna.Trial, "report", "reporting"),
            (optuna.Trial, "should_prune", "pruning"),
            (hpsearch.search, "write_checkpoint", "writing a checkpoint"),
            (SearchStorage, "set_trial_state_values", "ending a trial"),
            (hpsearch.search, "discard_checkpoints", "discarding checkpoints"),
            (hpsearch.export, "export_best", "exporting"),
        ):
            setattr(owner, function, self._telling(getattr(owner, function), PHASES.index(phase)))

    def _telling(self, function: Callable[..., Any], phase: int) -> Callable[..., Any]:
        @wraps(function)
        def telling(*arguments: Any, **named: Any) -> Any:
            self._stack.append(phase)
            self._shared[0] = phase
            try:
                return function(*arguments, **named)
            finally:
                self._stack.pop()
                self._shared[0] = self._stack[-1]

        return telling


@dataclass(frozen=True, slots=True)
class Kill:
    """One signal, or two, and what came of it."""

    round: int
    kind: str
    """`alone`, `pair` or `workers`."""
    way: str
    phase: str
    status: int
    """Of the process: minus the signal that ended it, or what it exited with."""
    seconds: float
    """From the signal, or the second one, to the end."""
    problems: tuple[str, ...]


class Campaign:
    """Rounds of kills in one folder."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self._folder = folder
        self._rng = rng
        self._phase = Phase()
        self._expected: set[Any] = set()
        self._whole_s = 0.0
        self.kills: list[Kill] = []
        self._n_rounds = 0

    def run_undisturbed(self) -> None:
        started = time.monotonic()
        if status := faults.wait(self._start(ALONE, EXPORT)):
            raise click.ClickException(f"undisturbed it exited with {status}:\n{self._output()}")
        self._whole_s = time.monotonic() - started
        if problems := self._problems_at_the_end():
            raise click.ClickException("; ".join(problems))
        self._expected = self._drawn()

    def alone(self) -> None:
        """Kill a search and its export, twice."""
        with self._round():
            for _ in range(KILLS_A_ROUND):
                self._kill_one("alone", lambda: self._start(ALONE, EXPORT))
            self._finish()

    def pair(self) -> None:
        """Kill one of two commands that run one study."""
        with self._round():
            others: list[int] = []

            def start() -> int:
                others.append(faults.fork(self._folder, ALONE, before=_usual_signals))
                return self._start(ALONE)

            def wait() -> None:
                if status := faults.wait(others.pop()):
                    self._blame(f"the other command exited with {status}: {self._output()}")

            for _ in range(KILLS_A_ROUND):
                self._kill_one("pair", start, wait)
            self._finish()

    def workers(self) -> None:
        """Kill a worker of a command that runs two, or the command."""
        import psutil

        with self._round():
            pid = self._start(TWO)
            command = psutil.Process(pid)
            give_up = time.monotonic() + 60
            while len(running := self._owners()) < 2 and time.monotonic() < give_up and not _has_ended(pid):
                time.sleep(0.01)
            time.sleep(self._rng.uniform(0, 0.3))
            victim = self._rng.choice([pid, *sorted(running)])
            family = command.children(recursive=True)
            way = self._rng.choice(WAYS) if victim == pid else "SIGKILL"
            before = faults.trials_of(self._folder)
            sent = self._send(victim, way)
            status = faults.wait(pid)
            seconds = time.monotonic() - sent
            _, alive = psutil.wait_procs(family, timeout=20)
            problems = [f"process {process.pid} outlived its command" for process in alive]
            problems += faults.problems_after_a_fault(self._folder, before)
            if victim != pid and status:
                problems.append(f"a worker's end ended the command, with {status}: {self._output()}")
            phase = "two workers train: " + ("the command" if victim == pid else "one of them")
            self._note("workers", way, phase, status, seconds, problems)
            self._finish([*ALONE, *LONGER])

    def lock(self, seconds: float) -> None:
        """Lock the database for so long while a search runs, and kill nothing."""
        with self._round():
            pid = self._start(ALONE)
            while not self._owners() and not _has_ended(pid):
                time.sleep(0.005)
            before = faults.trials_of(self._folder)
            database = self._folder / "studies" / "hpsearch.db"
            started = time.monotonic()
            with closing(sqlite3.connect(database, timeout=60, isolation_level=None)) as connection:
                connection.execute("BEGIN EXCLUSIVE")
                time.sleep(seconds)
                connection.execute("ROLLBACK")
            status = faults.wait(pid)
            problems = faults.problems_after_a_fault(self._folder, before)
            if status or self._drawn() != self._expected:
                problems.append(f"it exited with {status}: {self._output()}")
            took = time.monotonic() - started
            self._note("lock", "none", f"its database is locked for {seconds:g} s", status, took, problems)
            self._finish()

    def _kill_one(self, kind: str, start: Callable[[], int], wait: Callable[[], None] = lambda: None) -> None:
        """Kill a process in a phase that is drawn; where it ends before it comes to that, the study begins anew.

        Args:
            kind: Of the round.
            start: Starts the process, and others that are not killed.
            wait: Waits for those, once the process has ended.
        """
        pid = start()
        for _ in range(10):
            # Signal, phase and moment are drawn anew for each.
            way, wanted = self._rng.choice(WAYS), self._rng.choice((*PHASES, OTHER))
            moment = self._rng.uniform(0, 1)
            give_up = time.monotonic() + 60
            # Not before some moment of the whole run, so that it is not always the first trial.
            earliest = time.monotonic() + self._rng.uniform(0, 0.7) * self._whole_s
            before = faults.trials_of(self._folder)
            while time.monotonic() < give_up and not _has_ended(pid):
                if time.monotonic() >= earliest and wanted == self._phase.name():
                    time.sleep(moment * (0.3 if wanted in ("loading", "exporting", OTHER) else 0.01))
                    break
                time.sleep(0.0002)
            if not _has_ended(pid):
                break
            faults.wait(pid)  # it came to its end unharmed
            wait()
            faults.clear(self._folder)
            pid = start()
        phase = self._phase.name()
        sent = self._send(pid, way)
        status = faults.wait(pid)
        seconds = time.monotonic() - sent
        problems = faults.problems_after_a_fault(self._folder, before)
        if status == _STOPPED and kind == "alone" and way != "SIGINT twice":
            running = [trial.number for trial in faults.trials_of(self._folder) if trial.state in faults.OPEN_STATES]
            problems += [f"trial {number} was not closed" for number in running]
        elif status not in (0, _STOPPED, *(-int(number) for number in signal.Signals)):
            problems.append(f"it exited with {status}: {self._output()}")
        if seconds > _ENDS_S:
            problems.append(f"it took {seconds:.1f} s to end")
        self._note(kind, way, phase, status, seconds, problems)
        wait()

    def _send(self, pid: int, way: str) -> float:
        """Send the signals, and return when the last one was sent."""
        name, _, twice = way.partition(" ")
        number = signal.Signals[name]
        os.kill(pid, number)
        if twice:
            time.sleep(self._rng.uniform(0.001, 0.2))
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return time.monotonic()

    def _finish(self, command: list[str] = ALONE) -> None:
        """Resume a study until its end, and check what it has come to."""
        before = faults.trials_of(self._folder)
        if status := faults.wait(self._start(command, EXPORT)):
            self._blame(f"resuming it exited with {status}: {self._output()}")
            return
        for problem in (*faults.problems_after_a_fault(self._folder, before), *self._problems_at_the_end()):
            self._blame(problem)
        if self.kills[-1].kind == "alone" and (drawn := self._drawn()) != self._expected:
            self._blame(f"drawn were {drawn}, undisturbed {self._expected}")

    @contextmanager
    def _round(self) -> Iterator[None]:
        self._n_rounds += 1
        faults.clear(self._folder)
        yield
        sys.stdout.write(".")
        sys.stdout.flush()

    def _start(self, *commands: list[str]) -> int:
        self._phase.reset()

        def before() -> None:
            _usual_signals()
            self._phase.watch()
            faults.check_exports_in_this_process()

        return faults.fork(self._folder, *commands, before=before)

    def _note(self, kind: str, way: str, phase: str, status: int, seconds: float, problems: list[str]) -> None:
        self.kills.append(Kill(self._n_rounds, kind, way, phase, status, round(seconds, 3), tuple(problems)))

    def _blame(self, problem: str) -> None:
        """Add a problem to the last kill."""
        last = asdict(self.kills.pop())
        self.kills.append(Kill(**{**last, "problems": (*last["problems"], problem)}))

    def _problems_at_the_end(self) -> list[str]:
        return faults.in_a_fork(lambda: faults.problems_at_the_end(self._folder, N_TRIALS))

    def _drawn(self) -> set[Any]:
        trials = faults.trials_of(self._folder)
        return {trial.params for trial in trials if trial.state in faults.FINISHED}

    def _owners(self) -> set[int]:
        return {trial.owner for trial in faults.trials_of(self._folder) if trial.state == "RUNNING" and trial.owner}

    def _output(self) -> str:
        return (self._folder / "output.txt").read_text(encoding="utf-8")[-2000:]


def _usual_signals() -> None:
    """Take signals as a command does that is started at a terminal, also where this script was not."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _has_ended(pid: int) -> bool:
    """Say whether a process has ended, and leave it to be waited for."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def extract(reviews: Path, folder: Path) -> Path:
    """Copy the first reviews of a large file."""
    path = folder / reviews.name
    with reviews.open(encoding="utf-8") as lines:
        path.write_text("".join(islice(lines, 400)), encoding="utf-8")
    return path


def table(kills: list[Kill]) -> str:
    """Return the kills by phase and signal, as Markdown."""
    counts = Counter((kill.phase, kill.way) for kill in kills)
    phases = [phase for phase in (*PHASES, OTHER) if any((phase, way) in counts for way in WAYS)]
    phases += sorted({kill.phase for kill in kills if kill.kind != "lock"} - set(phases))
    lines = [
        "| " + " | ".join(["killed while", *WAYS, "all"]) + " |",
        "| " + " | ".join(["---"] * (len(WAYS) + 2)) + " |",
    ]
    for phase in phases:
        row = [counts[phase, way] for way in WAYS]
        lines.append("| " + " | ".join([phase, *(str(n or "") for n in row), str(sum(row))]) + " |")
    sums = [sum(counts[phase, way] for phase in phases) for way in WAYS]
    lines.append("| " + " | ".join(["all", *map(str, sums), str(sum(sums))]) + " |")
    return "\n".join(lines)


@click.command(help=__doc__)
@click.option("--kills", "n_kills", default=100, show_default=True, help="Of searches that run alone.")
@click.option("--pairs", default=8, show_default=True, help="Rounds of two commands.")
@click.option("--workers", default=6, show_default=True, help="Rounds of a command with two workers.")
@click.option("--lock-seconds", default=30.0, show_default=True, help="Of one round with a locked database; 0: none.")
@click.option("--model", type=click.Path(path_type=Path, exists=True, file_okay=False), help="An encoder's folder.")
@click.option("--reviews", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="A file of NSMC.")
@click.option("--minutes", default=15.0, show_default=True, help="Start no round after these.")
@click.option("--seed", type=int, help="Of what is drawn; drawn and printed unless it is given.")
@click.option("--json", "output", type=click.Path(path_type=Path, dir_okay=False), help="Write a document there.")
def main(
    n_kills: int, pairs: int, workers: int, lock_seconds: float, model: Path | None, reviews: Path | None,
    minutes: float, seed: int | None, output: Path | None,
) -> None:  # fmt: skip
    if seed is None:
        seed = random.SystemRandom().randrange(10**6)
    click.echo(f"seed {seed}")
    faults.load_libraries()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        data = {"train_rows": 48, "validation_rows": 48, "test_rows": 48}
        if reviews is not None:
            labels = {"0": "negative", "1": "positive"}
            data |= {"train": str(extract(reviews, folder)), "text_column": "document", "labels": labels}
        faults.write_config(
            folder, None if model is None else model.resolve(), data=data,
            defaults={"num_train_epochs": 2}, search={"evaluations": 4, "pruner": "successive-halving"},
        )  # fmt: skip
        campaign = Campaign(folder, random.Random(seed))
        campaign.run_undisturbed()
        plan = [campaign.pair] * pairs + [campaign.workers] * workers
        if lock_seconds:
            plan.append(lambda: campaign.lock(lock_seconds))
        plan += [campaign.alone] * -(-n_kills // KILLS_A_ROUND)
        for play in plan:  # the rarer ones first, in case time is up
            if time.monotonic() - started > 60 * minutes:
                break
            play()
    seconds = time.monotonic() - started
    kills = campaign.kills
    bad = [kill for kill in kills if kill.problems]
    click.echo(f"\n\n{table(kills)}\n")
    n_killed = sum(kill.kind != "lock" for kill in kills)
    for kill in bad:
        click.echo(f"round {kill.round}, {kill.way} while {kill.phase}: " + "; ".join(kill.problems))
    first = [kill.seconds for kill in kills if kill.status == _STOPPED and kill.way != "SIGINT twice"]
    click.echo(f"{n_killed} kills, each resumed, in {seconds:.0f} s: {len(bad)} with a problem (seed {seed})")
    click.echo(f"a first signal ended a search in {max(first, default=0):.1f} s or less")
    if output is not None:
        document = {
            "date": datetime.now(UTC).date().isoformat(), "machine": machine(), "seed": seed,
            "seconds": round(seconds), "model": model.name if model else "of no size",
            "versions": {name: version(name) for name in ("hpsearch", "optuna", "sqlalchemy", "torch", "transformers")},
            "kills": [asdict(kill) for kill in kills],
        }  # fmt: skip
        output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    sys.exit(1 if bad or not kills else 0)


if __name__ == "__main__":
    main()
