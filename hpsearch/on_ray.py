"""A search by workers on a Ray cluster: Ray places them and starts those of lost nodes again; the study has the state.

Each is the worker of `workers.py`, as a Ray task. What they tell goes to an actor on the node of whoever started them,
which is also asked whether to stop.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hpsearch.errors import HpsearchError, Interrupted, StudyError, UsageError
from hpsearch.search import open_search
from hpsearch.storage import plain_errors
from hpsearch.workers import MAX_DEATHS, STOPPING_S, Job, Relay, work

try:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as error:
    advice = "install hpsearch with its extra: pip install --editable '.[ray]'"
    raise UsageError(f"--ray: expected Ray, got: {error}; {advice}") from error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from optuna.storages import BaseStorage

    from hpsearch.observer import Observer
    from hpsearch.study import StudyPaths
    from hpsearch.trainer import Task

_ASK_S = 0.5  # between two questions whether to stop, and two words of how far a training is


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
    """Be connected to a Ray cluster.

    Args:
        address: As `ray.init` takes it: `auto` for the one this machine belongs to, `host:port`, or `local` to start
            one on this machine that ends with the block, without Ray's dashboard.

    Raises:
        UsageError: If there is no cluster.
    """
    include_dashboard = False if address == "local" else None
    try:
        ray.init(
            address,
            log_to_driver=False,
            configure_logging=False,
            logging_level=logging.ERROR,
            include_dashboard=include_dashboard,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        problem = " ".join(str(error).split())
        raise UsageError(f"--ray {address}: expected a Ray cluster, got: {problem}; or start one: local") from error
    try:
        yield
    finally:
        ray.shutdown()


def run_on_ray(
    task: Task,
    storage: BaseStorage,
    storage_url: str,
    paths: StudyPaths,
    *,
    n_workers: int | None,
    per_gpu: int,
    observer: Observer,
    set_up: Callable[[], None],
    timeout_s: float | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
    artifacts: str | None = None,
) -> None:
    """Run trials on the cluster that this process is connected to until the study has `search.trials` finished ones.

    Args:
        task: What is searched, from `search.prepare`. Its rows are sent to the nodes; a local model is read there.
        storage: Where the study is kept.
        storage_url: The same, for the workers to open.
        paths: The study's name and folder, of the same path on each node.
        n_workers: How many, None for one on each place: `per_gpu` on each GPU, or without one on each core.
        per_gpu: Workers that share a GPU.
        observer: Is told what happens.
        set_up: Called first in each worker, to be found by its name there.
        timeout_s: No trial starts after this many seconds.
        stop_requested: Asked a few times a second; True ends the search within seconds.
        artifacts: As for `search.run_search`.

    Raises:
        Interrupted: If a stop was requested.
        UsageError: If the database is a file, and the cluster has several nodes.
        StudyError: As `search.run_search`, or if workers died again and again.
        HpsearchError: Whatever else a worker could not go on with.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) > 1 and storage_url.startswith("sqlite"):
        raise UsageError(
            f"--storage: expected a database that {len(nodes)} nodes reach, such as postgresql://host/db, got an "
            f"SQLite file"
        )
    with plain_errors(paths.study):
        open_search(task, storage, paths, observer, artifacts=artifacts)
    there = ray.cluster_resources()
    n_gpus = int(there.get("GPU", 0))
    n_places = n_gpus * per_gpu if n_gpus else int(there.get("CPU", 0))
    if n_workers is not None and n_workers > n_places:
        observer.note(f"the cluster has a place for {n_places} of {n_workers} workers; the others wait for one")
    n = n_workers or max(1, min(n_places, task.config.search.trials))
    job = Job(
        task=task, storage_url=storage_url, paths=replace(paths, root=paths.root.absolute()), timeout_s=None,
        n_threads=1, device=None, set_up=set_up,
    )  # fmt: skip

    board = _board(timeout_s)
    # Ray tries a task again whose node or process died; what a worker raises is told to the board.
    start = ray.remote(_work).options(num_cpus=1, num_gpus=1 / per_gpu if n_gpus else 0, max_retries=MAX_DEATHS)
    given = ray.put(job)
    running = {start.remote(given, board, index): index for index in range(n)}
    observers = [observer.for_worker(index) for index in range(n)]

    def pass_on() -> None:
        for index, name, what in ray.get(board.take.remote()):
            if name == "error":
                raise what[0]
            if name != "done":
                getattr(observers[index], name)(*what)

    try:
        while running:
            if stop_requested():
                raise Interrupted
            ended, _ = ray.wait(list(running), timeout=0.2)
            pass_on()
            for reference in ended:
                _check(reference, running.pop(reference), paths)
    finally:
        _end(list(running), board, pass_on)


def _check(reference: Any, index: int, paths: StudyPaths) -> None:
    """Raise what became of a worker, if it was not what it should be."""
    try:
        ray.get(reference)
    except ray.exceptions.RayError as error:
        problem = " ".join(str(error).split())[:500]
        raise StudyError(
            f"study {paths.study!r}: expected a worker that lives, got a death of worker {index} {MAX_DEATHS + 1} "
            f"times: {problem}; see to it that hpsearch and the model are on each node, and use fewer workers or "
            f"smaller batches"
        ) from error


def _end(running: list[Any], board: Any, pass_on: Callable[[], None]) -> None:
    """Ask workers to stop, and kill those that do not."""
    if not running:
        return
    board.stop.remote()
    give_up = time.monotonic() + STOPPING_S
    try:
        while running and time.monotonic() < give_up:
            _, running = ray.wait(running, num_returns=len(running), timeout=0.2)
            with contextlib.suppress(HpsearchError):
                pass_on()
    finally:  # also where a second signal ends the wait
        for reference in running:
            ray.cancel(reference, force=True)


class _Board:
    """What workers have told, until it is taken; and whether they shall stop."""

    def __init__(self, timeout_s: float | None) -> None:
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._told: list[tuple[int, str, tuple[Any, ...]]] = []
        self._is_stopping = False

    def tell(self, index: int, name: str, what: tuple[Any, ...]) -> None:
        self._told.append((index, name, what))

    def take(self) -> list[tuple[int, str, tuple[Any, ...]]]:
        told, self._told = self._told, []
        return told

    def seconds_left(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def stop(self) -> None:
        self._is_stopping = True

    def is_stopping(self) -> bool:
        return self._is_stopping


def _board(timeout_s: float | None) -> Any:
    """Return a board on this node, with which it ends."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(_Board).options(num_cpus=0, scheduling_strategy=here).remote(timeout_s)


class _BoardRelay(Relay):
    def __init__(self, board: Any, index: int) -> None:
        self._board = board
        self._index = index
        self._progressed = float("-inf")

    def progressed(self, epoch: float, fraction: float, loss: float | None) -> None:
        if time.monotonic() - self._progressed >= _ASK_S:
            self._progressed = time.monotonic()
            super().progressed(epoch, fraction, loss)

    def send(self, name: str, *what: Any) -> None:
        self._last = self._board.tell.remote(self._index, name, what)

    def arrive(self) -> None:
        """Wait until the last word is told, which all others are told before."""
        ray.get(self._last)


def _work(job: Job, board: Any, index: int) -> None:
    """Be a worker of a cluster: a Ray task."""
    stopping = threading.Event()

    def ask() -> None:
        while not stopping.wait(_ASK_S):
            try:
                if ray.get(board.is_stopping.remote()):
                    stopping.set()
            except ray.exceptions.RayError:  # whoever started this worker is gone
                stopping.set()

    threading.Thread(target=ask, daemon=True, name="ask whether to stop").start()
    relay = _BoardRelay(board, index)
    try:
        # Of the whole search: a task may have waited for its place, or be started again.
        work(replace(job, timeout_s=ray.get(board.seconds_left.remote())), relay, stopping.is_set)
    finally:
        stopping.set()
    relay.arrive()
