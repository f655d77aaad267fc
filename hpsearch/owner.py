"""Who runs a trial, and whether it still does.

Optuna can watch trials by heartbeats, but a trial that dies before its first one runs for ever, one "database is
locked" ends the heartbeats of a living one, and a clock that is set back hides a dead one (5.0.0,
`RDBStorage._get_stale_trial_ids`). So a trial is created together with its owner: the process, which anyone on the same
machine can look up; others see a count that grows as long as it lives, and time by their own clocks how long it stands
still.
"""

from __future__ import annotations

import logging
import os
import platform
import threading
import time
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from optuna.trial import FrozenTrial

OWNER, BEAT = "hpsearch:owner", "hpsearch:beat"
"""System attributes of a trial: its owner, and a count of the owner's signs of life."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rhythm:
    """How a worker on another machine is known to live, in seconds; all workers of a study keep the same one."""

    beat_s: float = 20.0
    """Between two signs of life."""
    give_up_s: float = 200.0
    """A worker that could give none for so long ends its trial itself, before others take it over."""
    grace_s: float = 300.0
    """A worker whose last one has stood for so long is taken for dead."""


RHYTHM = Rhythm()


@dataclass(frozen=True, slots=True)
class Owner:
    """A process that runs trials."""

    host: str
    machine: str
    """Where `pid` names this process: the boot and the process namespace, such as a container's."""
    pid: int
    started: int
    """When the process started, in clock ticks since boot: process ids are used again."""
    versions: dict[str, str] = field(compare=False)
    """Of what trials of one study should agree in."""

    @classmethod
    def me(cls) -> Owner:
        """Return this process (Linux)."""
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = Path("/proc/self/ns/pid").stat().st_ino
        _, started = _process(os.getpid())
        names = ("hpsearch", "optuna", "torch", "transformers")
        versions = {name: version(name) for name in names}
        return cls(platform.node(), f"{boot}/{namespace}", os.getpid(), started, versions)

    @classmethod
    def of(cls, trial: FrozenTrial) -> Owner | None:
        """Return who started a trial, None where hpsearch did not."""
        kept = trial.system_attrs.get(OWNER)
        return cls(**kept) if kept else None

    def attributes(self) -> dict[str, Any]:
        """Return what a trial of this process is created with."""
        return {OWNER: asdict(self), BEAT: 0}

    def is_alive(self) -> bool:
        """Say whether the process is there, from the same machine."""
        try:
            state, started = _process(self.pid)
        except OSError:
            return False
        return started == self.started and state not in ("Z", "X")  # a zombie is dead, and not yet collected


def _process(pid: int) -> tuple[str, int]:
    """Return a process's state and start, from the file that `man 5 proc` describes."""
    # The second field is the program's name in brackets, which may hold anything.
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return fields[0], int(fields[19])


class Watch:
    """Tells which running trials have lost their owners."""

    def __init__(self, me: Owner, *, rhythm: Rhythm = RHYTHM, clock: Callable[[], float] = time.monotonic) -> None:
        """Take who looks, what may be expected of others, and seconds that only grow."""
        self._me = me
        self._rhythm = rhythm
        self._clock = clock
        self._seen: dict[int, tuple[int, float]] = {}

    def is_gone(self, trial: FrozenTrial) -> bool:
        """Say whether nobody runs a running trial any more; ask only while this process runs none itself."""
        owner = Owner.of(trial)
        if owner is None or owner == self._me:
            return True
        if owner.machine == self._me.machine:
            return not owner.is_alive()
        beat, now = trial.system_attrs.get(BEAT, 0), self._clock()
        if self._seen.get(trial._trial_id, (None, now))[0] != beat:
            self._seen[trial._trial_id] = (beat, now)
        return now - self._seen[trial._trial_id][1] > self._rhythm.grace_s


class Heart:
    """Gives signs of life for the trial that this process runs, from a thread of its own."""

    def __init__(
        self,
        write: Callable[[int, int], None],
        *,
        rhythm: Rhythm = RHYTHM,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Rest.

        Args:
            write: Stores a count with a trial, by the trial's id.
            rhythm: When to beat, and when to give up.
            clock: Seconds that only grow.
        """
        self._write = write
        self._rhythm = rhythm
        self._clock = clock
        self._resting: threading.Event | None = None
        self._last = clock()
        self._is_lost = False

    def beat_for(self, trial_id: int) -> None:
        """Start to give signs of life for a trial."""
        self.rest()
        self._resting = threading.Event()
        self._last = self._clock()
        self._is_lost = False
        threading.Thread(target=self._beat, args=(trial_id, self._resting), daemon=True, name="heart").start()

    def rest(self) -> None:
        """Stop."""
        if self._resting is not None:
            self._resting.set()
            self._resting = None

    def is_lost(self) -> bool:
        """Say whether the last trial is no longer this process's: ended by another, or not heard of for too long."""
        if self._resting is not None and self._clock() - self._last > self._rhythm.give_up_s:
            self._is_lost = True
        return self._is_lost

    def _beat(self, trial_id: int, resting: threading.Event) -> None:
        count = 0
        while not resting.wait(self._rhythm.beat_s):
            count += 1
            try:
                self._write(trial_id, count)
                self._last = self._clock()
            except (KeyError, RuntimeError) as error:  # Optuna's, of a trial that is gone or finished
                if resting.is_set():
                    return
                _log.warning("trial %d was ended by another process: %s", trial_id, error)
                self._is_lost = True
                return
            except Exception as error:  # noqa: BLE001  a database that is locked or restarts: the next may get through
                problem = " ".join(str(error.__cause__ or error).split())
                _log.warning("no sign of life for trial %d: %s", trial_id, problem)
