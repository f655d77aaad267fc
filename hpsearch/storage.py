"""Optuna's storage for the processes that run the trials of a study, beside others or alone."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import tenacity
from filelock import FileLock
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, _CachedStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpsearch.owner import BEAT, GIVE_UP_S, Heart, Owner, Watch

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Container, Iterator, Sequence

    from optuna.storages import RDBStorage
    from sqlalchemy import Engine

_FINISHED = tuple(state for state in TrialState if state.is_finished())


_INSERT_VALUE = """
    INSERT OR IGNORE INTO trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type)
    SELECT trial_id, ?, ?, ? FROM trials WHERE trial_id = ? AND state = 'RUNNING'
"""


class NothingToStart(Exception):  # noqa: N818  no error: others run what is left
    """No trial may start now, because the running ones may be all that the study still needs."""


class SearchStorage(_CachedStorage):
    """Optuna's storage for a process that runs trials of a study, beside others or alone.

    The sampler, the pruner and the checkpoints ask for trials some 15 times in each trial, and each time Optuna reads
    the running one from the database, most often to leave it out again (5.0.0, `_CachedStorage.get_all_trials`). Here
    the database is read again only after this process has written to it, and for finished trials only when it starts
    or ends one, or asks for it by `forget`. What other workers write is seen then as well.

    A trial starts while no other worker starts one, so that the trials of all workers together come to the number asked
    for, and it is created with its owner, so that none is ever left of which nobody knows who runs it.

    With SQLite's write-ahead log, only the end of a trial waits for the disk, not each of its 25 writes. A process may
    be killed at any moment as before; a power cut loses at most what was written since the last trial ended.
    """

    @classmethod
    def over(cls, storage: BaseStorage, *, lock: Path) -> SearchStorage:
        """Return a storage for a process that runs trials, over the database of another one.

        Args:
            storage: From `open_storage`.
            lock: File by which workers take turns to start trials, where the database itself has no means for that.
        """
        if isinstance(storage, cls):
            return storage
        if not isinstance(storage, _CachedStorage):
            raise TypeError(f"expected a storage over a database, got {storage!r}")
        return cls(storage._backend, lock=lock)

    def __init__(self, backend: RDBStorage, *, lock: Path) -> None:
        """Take Optuna's storage."""
        super().__init__(cast("RDBStorage", _Patient(backend)))
        self.may_start: Callable[[list[FrozenTrial]], bool] = lambda _: True
        """Given all trials, says whether one more may start."""
        self.me = Owner.me()
        self.watch = Watch(self.me)
        # Past the patience of the rest: when the next sign of life is due, the database may answer again.
        self.heart = Heart(lambda trial_id, count: backend.set_trial_system_attr(trial_id, BEAT, count))
        self._engine = backend.engine
        self._lock_file = lock
        self._current: set[int] = set()  # studies that have not been written to since they were read
        self._finished: dict[int, dict[tuple[TrialState, ...], list[FrozenTrial]]] = {}
        self._log: Path | None = None
        if backend.engine.dialect.name == "sqlite":
            from sqlalchemy import event

            self._log = Path(f"{backend.engine.url.database}-wal")
            event.listen(backend.engine, "connect", _wait_for_no_disk)
            backend.engine.dispose()  # of connections that were made before

    @contextlib.contextmanager
    def exclusive(self, study_name: str) -> Iterator[None]:
        """Be the only worker that starts, mends or discards trials of a study; read anew what others have done.

        Held for milliseconds, and let go by the system or the server if this process dies.
        """
        with contextlib.ExitStack() as held:
            if self._engine.dialect.name == "postgresql":
                held.enter_context(_advisory_lock(self._engine, study_name))
            else:
                held.enter_context(FileLock(self._lock_file))
            self.forget()
            yield

    def forget(self) -> None:
        """Read trials anew when they are asked for next."""
        self._current.clear()
        self._finished.clear()

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,  # noqa: FBT001, FBT002  Optuna's signature
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """Return trials in the order of their numbers."""
        wanted = tuple(state for state in TrialState if states is None or state in states)
        if not set(wanted) <= set(_FINISHED):
            return super().get_all_trials(study_id, deepcopy, states)
        kept = self._finished.setdefault(study_id, {})
        if _FINISHED not in kept:
            kept[_FINISHED] = super().get_all_trials(study_id, deepcopy=False, states=_FINISHED)
        if wanted not in kept:
            kept[wanted] = [trial for trial in kept[_FINISHED] if trial.state in wanted]
        return copy.deepcopy(kept[wanted]) if deepcopy else kept[wanted].copy()

    # From the trials at hand; the query that Optuna has for it goes through all of them as well.
    get_best_trial = BaseStorage.get_best_trial

    def _read_trials_from_remote_storage(self, study_id: int) -> None:
        if study_id not in self._current:
            super()._read_trials_from_remote_storage(study_id)
            self._current.add(study_id)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Start a trial, or add one from a template, and return its id.

        Raises:
            NothingToStart: If no trial may start now.
        """
        if template_trial is not None:
            self.forget()
            return super().create_new_trial(study_id, template_trial)
        with self.exclusive(self.get_study_name_from_id(study_id)):
            self._check_may_start(study_id)
            started = create_trial(state=TrialState.RUNNING, system_attrs=self.me.attributes())
            trial_id = super().create_new_trial(study_id, started)
        self._current.clear()
        self.heart.beat_for(trial_id)
        return trial_id

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Start a waiting trial, or end one.

        Raises:
            NothingToStart: If no trial may start now.
        """
        if state == TrialState.RUNNING:
            return self._start_waiting(trial_id)
        self.heart.rest()
        self.forget()
        done = super().set_trial_state_values(trial_id, state, values)
        if self._log and state.is_finished():
            # SQLite's locks are on other files, so that closing this one drops none.
            with contextlib.suppress(FileNotFoundError), self._log.open("rb") as log:
                os.fsync(log.fileno())
        return done

    def _start_waiting(self, trial_id: int) -> bool:
        study_id, _ = self._trial_id_to_study_id_and_number[trial_id]
        with self.exclusive(self.get_study_name_from_id(study_id)):
            self._check_may_start(study_id)
            if self._backend.get_trial(trial_id).state != TrialState.WAITING:
                return False  # another worker was sooner
            # Before the trial runs: killed in between, it still waits.
            for key, value in self.me.attributes().items():
                self._backend.set_trial_system_attr(trial_id, key, value)
            started = super().set_trial_state_values(trial_id, TrialState.RUNNING)
        self._current.clear()
        self.heart.beat_for(trial_id)
        return started

    def _check_may_start(self, study_id: int) -> None:
        if not self.may_start(self.get_all_trials(study_id, deepcopy=False)):
            raise NothingToStart

    def set_trial_param(self, trial_id: int, *what: Any, **named: Any) -> None:
        """Store a value that was drawn."""
        self._current.clear()
        super().set_trial_param(trial_id, *what, **named)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Store the objective value of one evaluation."""
        self._current.clear()
        if not (self._log and self._insert_intermediate_value(trial_id, step, intermediate_value)):
            super().set_trial_intermediate_value(trial_id, step, intermediate_value)

    def _insert_intermediate_value(self, trial_id: int, step: int, value: float) -> bool:
        """Store a running trial's first value of a step in SQLite, and say whether it was one.

        Optuna selects the trial and the step first, and takes two milliseconds for each of a trial's eight values.
        """
        from optuna.storages._rdb import models

        stored, kind = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(value)
        with self._backend.engine.begin() as connection:
            return bool(connection.exec_driver_sql(_INSERT_VALUE, (step, stored, kind.name, trial_id)).rowcount)

    def set_trial_user_attr(self, trial_id: int, *what: Any, **named: Any) -> None:
        """Store something with a trial."""
        self._current.clear()
        super().set_trial_user_attr(trial_id, *what, **named)

    def set_trial_system_attr(self, trial_id: int, *what: Any, **named: Any) -> None:
        """Store something of Optuna's with a trial."""
        self._current.clear()
        super().set_trial_system_attr(trial_id, *what, **named)


class _Patient:
    """Optuna's database layer, waiting for a database that is locked, or restarts."""

    def __init__(self, backend: RDBStorage) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._backend, name)
        if not callable(found):
            return found

        @wraps(found)
        def patient(*what: Any, **named: Any) -> Any:
            for attempt in _attempts():
                with attempt:
                    try:
                        return found(*what, **named)
                    except UpdateFinishedTrialError:
                        # The answer to the attempt before was lost, but not its work.
                        wanted = named.get("state")
                        if attempt.retry_state.attempt_number > 1 and wanted == self._backend.get_trial(what[0]).state:
                            return True
                        raise
            raise AssertionError("tenacity raises what it gives up on")

        return patient


def _attempts() -> tenacity.Retrying:
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(_may_pass),
        wait=tenacity.wait_random_exponential(0.2, max=5),
        stop=tenacity.stop_after_delay(GIVE_UP_S),
        reraise=True,
    )


def _may_pass(error: BaseException) -> bool:
    """Tell whether a database's error is of the kind that passes: it is locked, or cannot be reached."""
    from sqlalchemy.exc import InterfaceError, OperationalError

    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    return isinstance(cause, InterfaceError | OperationalError)


@contextlib.contextmanager
def _advisory_lock(engine: Engine, name: str) -> Iterator[None]:
    """Hold PostgreSQL's lock for a name.

    Source:
        PostgreSQL 15, 13.3.5 "Advisory Locks": released at the end of the transaction, also where a connection breaks.
    """
    from sqlalchemy import text

    key = int.from_bytes(hashlib.sha256(f"hpsearch {name}".encode()).digest()[:8], signed=True)
    with engine.connect() as connection, connection.begin():
        # A machine that vanishes while it holds the lock shall not stop the others for hours.
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = '60s'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
        yield


def _wait_for_no_disk(connection: sqlite3.Connection, _record: object) -> None:
    """Have SQLite leave it to the system when its log gets to the disk; without a log that could break the file."""
    if connection.execute("PRAGMA journal_mode").fetchone() == ("wal",):
        connection.execute("PRAGMA synchronous=NORMAL")
