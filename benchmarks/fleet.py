"""Workers of a search that sleep in place of training, many in one process group, on machines of their own.

    echo '{"url": "...", "folder": "...", "machines": [4, 4], "trials": 100, ...}' | python benchmarks/fleet.py

Each is `hpsearch.search.run_search` as `hpsearch run` calls it: the same loop, claims, storage, sampler, pruner and
tidying. Only the trainer is another one, which draws, reports and asks the pruner as the real one does, and sleeps for
the rest. The libraries are loaded once and the workers forked, so that some dozens of them fit two cores.

A machine is a process namespace with a mount of `/proc` and a working folder of its own (Linux, as root): its processes
cannot be looked up from another one, as on another host. What a search needs of a machine is no more than that.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import optuna
    from optuna.trial import FrozenTrial

    from hpsearch.owner import Owner
    from hpsearch.trainer import Task

STUDY = "fleet"
_EVALUATIONS = 8
_SLICE_S = 0.05  # between two looks whether to stop, as a training takes one after each step
_NEW_MOUNTS, _NEW_PROCESSES = 0x00020000, 0x20000000  # CLONE_NEWNS and CLONE_NEWPID of <linux/sched.h>
_PRIVATE = 1 << 18 | 1 << 14  # MS_PRIVATE and MS_REC of <sys/mount.h>


# --- Seen from outside ------------------------------------------------------------------------------------------------


class Fleet:
    """Workers in a process of their own, as whoever started them sees them."""

    def __init__(self, url: str, folder: Path, machines: list[int], **settings: Any) -> None:
        """Start them, all at once.

        Args:
            url: Of the database.
            folder: Where the machines have their working folders.
            machines: For each machine its number of workers.
            settings: Of `Plan`.
        """
        program = [sys.executable, __file__]
        self._process = subprocess.Popen(program, stdin=subprocess.PIPE, start_new_session=True)
        assert self._process.stdin is not None
        self._process.stdin.write(
            json.dumps({"url": url, "folder": str(folder), "machines": machines, **settings}).encode()
        )
        self._process.stdin.close()  # the address, with its password, stands in no list of processes

    def is_running(self) -> bool:
        """Say whether any worker is."""
        return self._process.poll() is None

    def wait(self, timeout_s: float) -> None:
        """Wait until all workers have ended."""
        self._process.wait(timeout_s)

    def close(self) -> None:
        """End what is left."""
        if self.is_running():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, 9)
            self._process.wait()


def host_pid(owner: Owner) -> int:
    """Return the process id, as this process sees it, of a worker in another process namespace of this host.

    Raises:
        ProcessLookupError: If there is no such process.
    """
    namespace = int(owner.machine.rpartition("/")[2])
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "ns" / "pid").stat().st_ino != namespace:
                continue
            status = (folder / "status").read_text(encoding="utf-8")
            (ids,) = (line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:"))
            if int(ids[-1]) == owner.pid:
                return int(folder.name)
    raise ProcessLookupError(f"no process {owner.pid} in namespace {namespace}")


class Sight:
    """A look at a fleet's study, from outside."""

    def __init__(self, url: str) -> None:
        """Look at nothing yet."""
        self._url = url
        self._study: optuna.Study | None = None
        self._seen: list[FrozenTrial] = []

    def trials(self) -> list[FrozenTrial]:
        """Return the trials as they are; where the database does not answer, as they were."""
        from optuna.exceptions import OptunaError

        from hpsearch.errors import HpsearchError
        from hpsearch.study import load_study, open_storage

        with contextlib.suppress(HpsearchError, OptunaError):  # its tables are still being made, or it restarts
            self._study = self._study or load_study(open_storage(self._url, create=False), STUDY)
            self._seen = self._study.get_trials(deepcopy=False)
        return self._seen

    def close(self) -> None:
        """Let go of the database."""
        if self._study:
            self._study._storage._backend.engine.dispose()  # type: ignore[attr-defined]


def trials_of(url: str) -> list[FrozenTrial]:
    """Return the trials of a fleet's study; none while there is no study yet."""
    with contextlib.closing(Sight(url)) as sight:
        return sight.trials()


def words_of(folder: Path) -> list[str]:
    """Return what the workers have noted and met, in the order of time."""
    lines = [line for log in folder.glob("machine-*/worker-*.log") for line in log.read_text().splitlines()]
    return [line.partition(" ")[2] for line in sorted(lines)]


# --- The workers ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Plan:
    """What a fleet is to do."""

    url: str
    folder: Path
    machines: tuple[int, ...]
    """Workers of each; a single machine is the host itself."""
    trials: int
    seconds: float
    """Of a trial."""
    long: dict[int, float]
    """Seconds of the trials that last longer, by number."""
    rhythm: dict[str, float]
    """Of `owner.Rhythm`, where it shall not be its own."""
    space: dict[str, Any]


class Sleeper:
    """A trainer that sleeps: in place of `SearchTrainer`, and to the search and its storage no different."""

    def __init__(
        self, task: Task, *, seconds: Callable[[int], float], stop_requested: Callable[[], bool], **_: Any
    ) -> None:
        """Take what `SearchTrainer` takes, and how long each trial lasts, by its number."""
        self.task = task
        self.keep_outcome: Any = None
        self._seconds = seconds
        self._stop_requested = stop_requested

    def search_one(self, study: optuna.Study, sampler: Any, pruner: Any) -> None:
        """Run one trial as `transformers.integrations.run_hp_search_optuna` (5.23.0) does."""
        import optuna

        again = optuna.create_study(
            storage=study._storage, study_name=study.study_name, load_if_exists=True, direction="maximize",
            sampler=sampler, pruner=pruner,
        )  # fmt: skip
        again.optimize(self._sleep, n_trials=1)

    def _sleep(self, trial: optuna.Trial) -> float:
        import optuna

        from hpsearch.errors import Interrupted
        from hpsearch.space import suggest
        from hpsearch.storage import set_user_attrs

        params = suggest(trial, self.task.config.space)
        seconds = self._seconds(trial.number)
        started, value = time.monotonic(), 0.0
        try:
            for step in range(1, _EVALUATIONS + 1):
                while (left := started + seconds * step / _EVALUATIONS - time.monotonic()) > 0:
                    if self._stop_requested():
                        raise Interrupted
                    time.sleep(min(left, _SLICE_S))
                # Equal until the last evaluation, so that no trial is pruned and all take their time.
                value = 0.5 + step / 100 + (params["learning_rate"] * 1e-3 if step == _EVALUATIONS else 0)
                trial.report(value, step)
                if step < _EVALUATIONS and trial.should_prune():
                    raise optuna.TrialPruned
        except Interrupted:
            trial.set_user_attr("failure", "interrupted")
            raise
        many = ("best_step", "best_epoch", "train_losses", "eval_losses", "peak_memory_mib")
        attributes = {**dict.fromkeys(many, [value] * _EVALUATIONS), "scores": {"f1": value}}
        attributes |= {"effective": {**params, "seed": 42}, "seconds": time.monotonic() - started}
        set_user_attrs(trial, attributes)
        return value

    def trained_model(self) -> Any:
        raise NotImplementedError("there is none")


@dataclass(frozen=True, slots=True)
class NoRows:
    name: str
    label_names: tuple[str, ...] = ("bad", "good")

    def fingerprint(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class NoModel:
    fingerprint: str
    hidden_size: int = 16


SPACE = {
    "learning_rate": {"type": "float", "low": 1e-5, "high": 1e-3, "log": True},
    "num_train_epochs": {"type": "int", "low": 2, "high": 10},
    "per_device_train_batch_size": {"type": "categorical", "choices": [16, 32, 64]},
    "warmup_steps": {"type": "float", "low": 0.0, "high": 0.2},
    "weight_decay": {"type": "float", "low": 0.0, "high": 0.1},
    "hidden_dropout_prob": {"type": "float", "low": 0.0, "high": 0.3},
}


def sleeping_task(n_trials: int, space: dict[str, Any] = SPACE) -> Task:
    """Return a task whose rows and model are names only."""
    from hpsearch.config import build_config
    from hpsearch.trainer import Task

    tree = {
        "study": STUDY, "model": {"name": "encoder"}, "data": {"train": "rows.csv"}, "space": space,
        "defaults": {"hidden_dropout_prob": 0.1}, "search": {"trials": n_trials, "evaluations": _EVALUATIONS},
    }  # fmt: skip
    config = build_config(tree, where="fleet")
    return Task(config=config, model=NoModel("encoder"), data=NoRows("rows"))  # type: ignore[arg-type]


def _work(plan: Plan, index: int, task: Task) -> None:
    """Be a worker."""
    from hpsearch.errors import HpsearchError
    from hpsearch.observer import Observer
    from hpsearch.owner import Rhythm
    from hpsearch.search import run_search
    from hpsearch.storage import SearchStorage
    from hpsearch.study import StudyPaths, open_storage

    log = Path(f"worker-{index}.log").open("a", encoding="utf-8", buffering=1)  # noqa: SIM115  ends with the process

    class Notes(Observer):
        def note(self, text: str) -> None:
            log.write(f"{time.time():.3f} worker {index}: {text}\n")

    paths = StudyPaths.of(plan.url, STUDY)
    try:
        storage = SearchStorage.over(
            open_storage(plan.url, create=True), lock=paths.run_lock, rhythm=Rhythm(**plan.rhythm)
        )
        make = partial(Sleeper, seconds=lambda number: plan.long.get(number, plan.seconds))
        run_search(task, storage, paths, observer=Notes(), make_trainer=make)
    except HpsearchError as error:
        Notes().note(f"error: {error}")


def _fork(what: Callable[[], None]) -> int:
    """Do something in a child process, and return its id."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        what()
        status = 0
    except BaseException:  # noqa: BLE001  a child does not go on with its parent's work
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def _wait(pids: list[int]) -> None:
    for pid in pids:
        os.waitpid(pid, 0)


def _be_a_machine(plan: Plan, number: int, workers: range, gate: int, task: Task) -> None:
    folder = plan.folder / f"machine-{number}"
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)

    def work(index: int) -> None:
        os.read(gate, 1)  # until the other end is closed
        random.seed()
        _work(plan, index, task)

    def start_workers() -> None:
        if len(plan.machines) > 1:
            _check(_libc.mount(b"none", b"/", None, _PRIVATE, None))
            _check(_libc.mount(b"proc", b"/proc", b"proc", 0, None))
        _wait([_fork(partial(work, index)) for index in workers])

    if len(plan.machines) > 1:
        _check(_libc.unshare(_NEW_MOUNTS | _NEW_PROCESSES))
    _wait([_fork(start_workers)])  # the first process of the namespace, with which all others end


_libc = ctypes.CDLL(None, use_errno=True)


def _check(status: int) -> None:
    if status:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def main() -> None:
    """Read a plan and carry it out."""
    given = json.load(sys.stdin)
    plan = Plan(
        url=given["url"], folder=Path(given["folder"]), machines=tuple(given["machines"]), trials=given["trials"],
        seconds=given["seconds"], long={int(number): seconds for number, seconds in given.get("long", {}).items()},
        rhythm=given.get("rhythm", {}), space=given.get("space", SPACE),
    )  # fmt: skip
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import optuna
    from sqlalchemy.dialects import postgresql, sqlite  # noqa: F401  loaded once, for all

    from hpsearch import postgres, search  # noqa: F401
    from hpsearch.precision import fastest_products

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    task = sleeping_task(plan.trials, plan.space)
    fastest_products(task.model.hidden_size)  # remembered: a forked process cannot use torch's threads
    gate, other_end = os.pipe()
    machines, first = [], 0
    for number, n_workers in enumerate(plan.machines):
        workers = range(first, first + n_workers)
        first += n_workers

        def machine(number: int = number, workers: range = workers) -> None:
            os.close(other_end)
            _be_a_machine(plan, number, workers, gate, task)

        machines.append(_fork(machine))
    time.sleep(0.5)  # until all are there
    os.close(other_end)
    _wait(machines)


if __name__ == "__main__":
    main()
