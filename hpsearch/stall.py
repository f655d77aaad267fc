"""A watchdog over trainings that stop making progress: a driver that hangs, a file system that does not answer.

What hangs in Python, or in a system call that a signal ends, is ended by an exception and costs one trial. What hangs
in foreign code cannot be ended from within its process: then the trial is closed and the process ends itself, for its
parent to replace it, or for the next run to go on. A process that the system does not even let end, such as one in a
device's driver, is beyond both; its signs of life go on, so others leave its trial alone until it is killed.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hpsearch.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

GRACE_S = 300.0
"""How long a training that was told to end may take to do so: longer than a database is waited for."""
_LAST_S = 20.0  # for what is done before a process ends itself
_SIGNAL = signal.SIGUSR1

_FOUND = "%s; the stacks of all threads:\n%s"

_log = logging.getLogger(__name__)


class Watchdog:
    """Ends a training that makes no step for too long."""

    def __init__(
        self,
        limit_s: float | None,
        *,
        give_up: Callable[[str], None],
        grace_s: float = GRACE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Watch nothing yet.

        Args:
            limit_s: Seconds without a step after which a training is ended; None watches nothing.
            give_up: Called with the reason, from another thread, when the training did not end in `grace_s` seconds.
            grace_s: See `give_up`.
            clock: Seconds that only grow; a machine that sleeps shall not count (`time.monotonic`).
        """
        self._limit_s = limit_s
        self._give_up = give_up
        self._grace_s = grace_s
        self._clock = clock
        self._last = clock()
        self._reason = ""
        self._done = threading.Event()

    def step(self) -> None:
        """Take a sign of progress."""
        self._last = self._clock()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch what the block does, in the main thread only: nowhere else do signals arrive.

        Raises:
            TrainingError: Within the block, if there is no `step` for too long.
        """
        if self._limit_s is None or threading.current_thread() is not threading.main_thread():
            yield
            return
        self.step()
        done = self._done = threading.Event()
        thread = threading.Thread(target=self._watch, args=(done,), daemon=True, name="watchdog")
        previous = signal.signal(_SIGNAL, self._interrupt)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            signal.signal(_SIGNAL, previous)

    def _watch(self, done: threading.Event) -> None:
        limit_s = self._limit_s or 0.0
        while not done.wait(min(1.0, limit_s / 10)):
            if self._clock() - self._last <= limit_s:
                continue
            self._reason = f"no step for {limit_s / 60:g} minutes"
            stacks = _stacks()
            signal.pthread_kill(threading.main_thread().ident or 0, _SIGNAL)
            # Only then, and in a thread of its own: the log may lie on what hangs.
            threading.Thread(target=_log.error, args=(_FOUND, self._reason, stacks), daemon=True).start()
            if not done.wait(self._grace_s):
                self._give_up(self._reason)
            return

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        if self._done.is_set():  # it has just ended by itself
            return
        raise TrainingError(f"{self._reason}; search.stall_minutes sets the limit, and the log has where it hung")


def _stacks() -> str:
    # In memory: a disk may be what hangs.
    with open(os.memfd_create("stacks"), "w+", encoding="utf-8", errors="replace") as file:  # noqa: PTH123  a handle
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()


def end_process(last: Callable[[], None]) -> None:
    """End this process at once, whatever its other threads do, once `last` is done or hangs as well."""
    thread = threading.Thread(target=last, daemon=True)
    thread.start()
    thread.join(_LAST_S)
    os._exit(1)
