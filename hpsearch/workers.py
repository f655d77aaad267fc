"""A search by several processes of this machine on one study.

Each worker runs `search.run_search` as a lone process does; they agree on nothing but the database. This module places
them on devices and cores, passes what they tell to one observer, replaces one that dies, and sees to it that none
outlives the process that started it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from multiprocessing import connection
from typing import TYPE_CHECKING, Any

import psutil
import torch

from hpsearch.errors import HpsearchError, Interrupted, StudyError, UsageError
from hpsearch.observer import Observer
from hpsearch.search import open_search, run_search
from hpsearch.storage import plain_errors
from hpsearch.study import opened

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkServerProcess

    from optuna.storages import BaseStorage

    from hpsearch.config import Hyperparameters
    from hpsearch.observer import Standing
    from hpsearch.study import StudyPaths
    from hpsearch.trainer import Task

MAX_DEATHS = 3  # of workers, without a trial finished in between
STOPPING_S = 30.0  # for a worker to close its trial when it was asked to
_MOST_ON_CORES = 4  # so many cost the sampler nothing, 16 do: see `benchmarks/README.md`
_MEMORY_OF_WEIGHTS = 5  # weights, gradients, two moments, the best evaluation's weights
_MEMORY_BESIDES = 2**30  # bytes: the libraries, and what a training step makes of a batch


@dataclass(frozen=True, slots=True)
class Resources:
    """What there is to place workers on."""

    gpus: tuple[str, ...]
    """As `CUDA_VISIBLE_DEVICES` takes them."""
    n_cores: int
    """That this process may use."""
    memory: int
    """Bytes that are free."""


def resources(visible: str | None) -> Resources:
    """Return this machine's resources.

    Args:
        visible: `CUDA_VISIBLE_DEVICES`, None if it is not set.
    """
    n_gpus = torch.cuda.device_count()  # asks the driver's library, and starts nothing on a GPU
    names = visible.split(",") if visible else [str(i) for i in range(n_gpus)]
    return Resources(
        gpus=tuple(name.strip() for name in names[:n_gpus]),
        n_cores=len(os.sched_getaffinity(0)),
        memory=psutil.virtual_memory().available,
    )


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the workers of a search run."""

    n_threads: int
    """Of each worker."""
    devices: tuple[str | None, ...]
    """For each worker what `CUDA_VISIBLE_DEVICES` shall be, None to leave it."""


def place(n_workers: int | None, here: Resources, *, per_gpu: int, n_trials: int, weights: int) -> Placement:
    """Place workers on a machine.

    Args:
        n_workers: How many; None for as many as suit the machine: `per_gpu` on each GPU, or without one as many as
            have a core and memory each, up to 4.
        here: The machine's resources.
        per_gpu: Workers that share a GPU.
        n_trials: Of the study; more workers than these would have nothing to do.
        weights: Bytes of the model's weights.

    Raises:
        UsageError: If more workers are asked for than have a place on the GPUs.
    """
    if here.gpus:
        n_places = len(here.gpus) * per_gpu
        if n_workers is not None and n_workers > n_places:
            raise UsageError(
                f"--workers: expected at most {n_places} on {len(here.gpus)} GPU(s), got {n_workers}; raise "
                f"--workers-per-gpu"
            )
        n = n_workers or min(n_places, n_trials)
        # The first on a GPU of its own each, then the second on each.
        devices: tuple[str | None, ...] = tuple(here.gpus[i % len(here.gpus)] for i in range(n))
    else:
        fitting = here.memory // (_MEMORY_OF_WEIGHTS * weights + _MEMORY_BESIDES)
        n = n_workers or max(1, min(here.n_cores, _MOST_ON_CORES, n_trials, fitting))
        devices = (None,) * n
    return Placement(max(1, here.n_cores // n), devices)


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is given."""

    task: Task
    storage_url: str
    paths: StudyPaths
    timeout_s: float | None
    n_threads: int
    device: str | None
    set_up: Callable[[], None]


def run_workers(
    task: Task,
    storage: BaseStorage,
    storage_url: str,
    paths: StudyPaths,
    placement: Placement,
    *,
    observer: Observer,
    set_up: Callable[[], None],
    timeout_s: float | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
    artifacts: str | None = None,
) -> None:
    """Run trials in several processes until the study has `search.trials` finished ones.

    Args:
        task: What is searched, from `search.prepare`.
        storage: Where the study is kept.
        storage_url: The same, for the workers to open.
        paths: The study's name and folder.
        placement: How many workers, and where.
        observer: Is told what happens.
        set_up: Called first in each worker, to be found by its name there: sets up logging, say.
        timeout_s: No trial starts after this many seconds.
        stop_requested: Asked a few times a second; True ends the search within seconds.
        artifacts: As for `run_search`.

    Raises:
        Interrupted: If a stop was requested.
        StudyError: As `run_search`, or if workers died again and again.
        HpsearchError: Whatever else a worker could not go on with.
    """
    # So that what is wrong with the study is said once, and a new one is made once.
    with plain_errors(paths.study):
        open_search(task, storage, paths, observer, artifacts=artifacts)
    # Not forked from here, where torch may have threads that do not survive it; a server has loaded the libraries.
    context = multiprocessing.get_context("forkserver")
    started = time.monotonic()
    n_deaths = 0
    workers: dict[int, _Worker] = {}

    def start(index: int) -> None:
        left = None if timeout_s is None else timeout_s - (time.monotonic() - started)
        job = Job(task, storage_url, paths, left, placement.n_threads, placement.devices[index], set_up)
        workers[index] = _Worker(context, index, job, observer.for_worker(index))

    try:
        for index in range(len(placement.devices)):
            start(index)
        while workers:
            if stop_requested():
                raise Interrupted
            connection.wait([end for worker in workers.values() for end in worker.ends()], timeout=0.2)
            for index, worker in list(workers.items()):
                if worker.take():
                    n_deaths = 0
                if worker.is_alive():
                    continue
                worker.take()
                del workers[index]
                if worker.error is not None:
                    raise worker.error
                if worker.is_done:
                    continue
                n_deaths += 1
                if n_deaths >= MAX_DEATHS:
                    raise StudyError(
                        f"study {paths.study!r}: expected workers that live, got {n_deaths} deaths in a row, the last "
                        f"{worker.how_it_died()}; use fewer workers or smaller batches"
                    )
                observer.note(f"worker {index} died, {worker.how_it_died()}; another one takes its place")
                start(index)
    finally:
        _end(list(workers.values()))


def _end(workers: list[_Worker]) -> None:
    """Ask workers to stop, and kill those that do not."""
    for worker in workers:
        worker.ask_to_stop()
    give_up = time.monotonic() + STOPPING_S
    try:
        for worker in workers:
            while worker.is_alive() and time.monotonic() < give_up:
                connection.wait(worker.ends(), timeout=0.2)
                worker.take()
    finally:  # also where a second signal ends the wait
        for worker in workers:
            worker.kill()


class _Worker:
    """A worker as its parent sees it."""

    def __init__(self, context: Any, index: int, job: Job, observer: Observer) -> None:
        self._pipe, theirs = context.Pipe()
        self._observer = observer
        self._process: ForkServerProcess = context.Process(target=_work, args=(job, theirs), name=f"worker {index}")
        self._process.start()
        theirs.close()
        self.error: HpsearchError | None = None
        self.is_done = False

    def ends(self) -> list[Any]:
        """Return what to wait for: words of the worker, or its end."""
        return [self._pipe, self._process.sentinel] if not self._pipe.closed else [self._process.sentinel]

    def take(self) -> bool:
        """Pass on what the worker has told, and say whether a trial of it was finished."""
        has_finished = False
        with contextlib.suppress(EOFError, OSError):
            while not self._pipe.closed and self._pipe.poll():
                name, what = self._pipe.recv()
                if name == "error":
                    (self.error,) = what
                elif name == "done":
                    self.is_done = True
                else:
                    getattr(self._observer, name)(*what)
                    has_finished |= name == "trial_ended" and what[1] in ("complete", "pruned")
            return has_finished
        self._pipe.close()
        return has_finished

    def is_alive(self) -> bool:
        return self._process.is_alive()

    def how_it_died(self) -> str:
        code = self._process.exitcode
        if code is not None and code < 0:
            return f"killed by signal {-code}" + (", probably out of memory" if code == -9 else "")
        return f"with exit status {code}"

    def ask_to_stop(self) -> None:
        with contextlib.suppress(OSError):
            self._pipe.send("stop")

    def kill(self) -> None:
        if self._process.is_alive():
            self._process.kill()
        self._process.join()


class Relay(Observer, ABC):
    """Tells whoever started a worker what its observer is told; subclasses know the way."""

    def note(self, text: str) -> None:
        """Pass on a note."""
        self.send("note", text)

    def trial_started(self, name: str, hyperparameters: Hyperparameters) -> None:
        """Pass on the start of a trial."""
        self.send("trial_started", name, hyperparameters)

    def progressed(self, epoch: float, fraction: float, loss: float | None) -> None:
        """Pass on how far the trial is."""
        self.send("progressed", epoch, fraction, loss)

    def evaluated(self, step: int, n_steps: int, value: float) -> None:
        """Pass on an evaluation."""
        self.send("evaluated", step, n_steps, value)

    def trial_ended(self, name: str, state: str, value: float | None, seconds: float, reason: str = "") -> None:
        """Pass on the end of a trial."""
        self.send("trial_ended", name, state, value, seconds, reason)

    def study_changed(self, standing: Standing) -> None:
        """Pass on where the study stands."""
        self.send("study_changed", standing)

    @abstractmethod
    def send(self, name: str, *what: Any) -> None:
        """Send an observer's method and its arguments, or `done`, or `error` and an error."""


class _PipeRelay(Relay):
    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def send(self, name: str, *what: Any) -> None:
        # A parent that is gone is noticed where a stop is asked for.
        with contextlib.suppress(OSError):
            self._pipe.send((name, what))


def work(job: Job, relay: Relay, stop_requested: Callable[[], bool]) -> None:
    """Be a worker: run trials until there are enough.

    Args:
        job: What to do.
        relay: Is told what happens, and in the end `done`, or `error` with what the study cannot go on with.
        stop_requested: Asked after every optimizer step.
    """
    job.set_up()
    torch.set_num_threads(job.n_threads)
    try:
        with opened(job.storage_url) as storage:
            run_search(
                job.task,
                storage,
                job.paths,
                observer=relay,
                timeout_s=job.timeout_s,
                stop_requested=stop_requested,
            )
    except Interrupted:
        relay.send("done")
    except HpsearchError as error:
        relay.send("error", error)
    else:
        relay.send("done")


def _work(job: Job, pipe: Connection) -> None:
    """Be a worker of this machine: the target of a process."""
    # A terminal sends these to parent and workers alike; the parent passes on what they mean.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if job.device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = job.device  # read when the first tensor is put there
    # There is something to read when the parent asks for a stop, and when it is gone.
    work(job, _PipeRelay(pipe), pipe.poll)
