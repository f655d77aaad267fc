"""Optuna's storage for the processes that run the trials of a study, beside others or alone."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import os
import sqlite3
import time
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import tenacity
from filelock import FileLock
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, _CachedStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpsearch.errors import StudyError
from hpsearch.owner import BEAT, RHYTHM, Heart, Owner, Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Mapping, Sequence

    from optuna.storages import RDBStorage
    from optuna.trial import Trial

    from hpsearch.owner import Rhythm
    from hpsearch.postgres import Turns

_log = logging.getLogger(__name__)
_FINISHED = tuple(state for state in TrialState if state.is_finished())


# The same in SQLite and PostgreSQL. Optuna selects the trial and the row first, in a transaction for each of them.
_INSERT_VALUE = """
    INSERT INTO trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type)
    SELECT trial_id, :step, :value, :kind FROM trials WHERE trial_id = :trial_id AND state = 'RUNNING'
    ON CONFLICT (trial_id, step) DO NOTHING
"""
_PUT_ATTRIBUTE = """
    INSERT INTO trial_user_attributes (trial_id, key, value_json)
    SELECT trial_id, :key, :value FROM trials WHERE trial_id = :trial_id AND state = 'RUNNING'
    ON CONFLICT (trial_id, key) DO UPDATE SET value_json = excluded.value_json
"""


Result = TypeVar("Result")


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
    def over(cls, storage: BaseStorage, *, lock: Path, rhythm: Rhythm = RHYTHM) -> SearchStorage:
        """Return a storage for a process that runs trials, over the database of another one.

        Args:
            storage: From `open_storage`.
            lock: File by which workers take turns to start trials, where the database itself has no means for that.
            rhythm: By which workers on different machines know that the others live.
        """
        if isinstance(storage, cls):
            return storage
        if not isinstance(storage, _CachedStorage):
            raise TypeError(f"expected a storage over a database, got {storage!r}")
        return cls(storage._backend, lock=lock, rhythm=rhythm)

    def __init__(self, backend: RDBStorage, *, lock: Path, rhythm: Rhythm = RHYTHM) -> None:
        """Take Optuna's storage."""
        self._turns: Turns | None = None
        if backend.engine.dialect.name == "postgresql":
            from hpsearch import postgres

            self._turns = postgres.Turns(backend)
        self._patience = _Patience(rhythm.give_up_s)
        patient = _Patient(backend, self._patience, self._turns)
        super().__init__(cast("RDBStorage", patient))
        self.may_start: Callable[[list[FrozenTrial]], bool] = lambda _: True
        """Given all trials, says whether one more may start."""
        self.me = Owner.me()
        self.watch = Watch(self.me, rhythm=rhythm)
        # Past the patience of the rest: when the next sign of life is due, the database may answer again.
        self.heart = Heart(lambda trial_id, count: backend.set_trial_system_attr(trial_id, BEAT, count), rhythm=rhythm)
        self._runs: int | None = None  # id of the trial that this process runs
        self._lock_file = lock
        self._current: set[int] = set()  # studies that have not been written to since they were read
        self._finished: dict[int, dict[tuple[TrialState, ...], list[FrozenTrial]]] = {}
        self._log: Path | None = None
        self._database = backend
        self._file: Path | None = None
        if backend.engine.dialect.name == "sqlite":
            from sqlalchemy import event

            self._file = Path(f"{backend.engine.url.database}")
            self._file_id = self._file.stat().st_ino
            self._log = Path(f"{self._file}-wal")
            event.listen(backend.engine, "connect", _wait_for_no_disk)
            backend.engine.dispose()  # of connections that were made before

    def exclusively(self, study_name: str, work: Callable[[], Result]) -> Result:
        """Do something while no other worker starts, mends or discards trials of a study; read anew what others did.

        In PostgreSQL it is done whole or not at all, and where the connection breaks it is done again. Whether it was
        done nevertheless, and only the answer was lost, `work` must see for itself.
        """
        for attempt in self._patience.attempts():
            with attempt:
                with self._turn(study_name):
                    result = work()
                self._patience.is_answered()
                return result
        raise AssertionError("tenacity raises what it gives up on")

    @contextlib.contextmanager
    def _turn(self, study_name: str) -> Iterator[None]:
        """Be the only one; for milliseconds, and let go by the system or the server if this process dies."""
        self.check_it_is_there()
        if self._turns is None:
            with FileLock(self._lock_file):
                self.forget()
                yield
            return
        try:
            with self._turns.take(study_name):
                self.forget()
                yield
        except NothingToStart:
            raise
        except BaseException:
            self._forget_all()  # what was read may have been undone
            raise

    def check_it_is_there(self) -> None:
        """Refuse to go on with an SQLite file that has no name any more: what is written to it nobody will find.

        Raises:
            StudyError: If the file was moved, deleted or replaced.
        """
        if self._file is None:
            return
        try:
            found = "another file" if self._file.stat().st_ino != self._file_id else ""
        except OSError as error:
            found = error.strerror or str(error)
        if found:
            raise StudyError(
                f"{self._file}: expected the database that this search writes to, got: {found}; it was moved or "
                f"deleted. Put it back with its folder and run again"
            )

    def abandon(self, reason: str) -> None:
        """Close the trial that this process runs as failed, from another thread than the one that hangs in it."""
        if self._runs is None:
            return
        try:
            self._database.set_trial_user_attr(self._runs, "failure", reason)
            self._database.set_trial_state_values(self._runs, TrialState.FAIL)
        except Exception:  # noqa: BLE001  the process ends all the same, and the next one closes the trial
            _log.exception("trial %d could not be closed", self._runs)

    def forget(self) -> None:
        """Read trials anew when they are asked for next."""
        self._current.clear()
        self._finished.clear()

    def _forget_all(self) -> None:
        self.forget()
        with self._lock:
            self._studies.clear()
            self._trial_id_to_study_id_and_number.clear()
            self._study_id_and_number_to_trial_id.clear()

    def has_lost_trial(self) -> bool:
        """Say, once, whether the last trial of this process was ended by another one, or could not be heard of."""
        trial_id, self._runs = self._runs, None
        return trial_id is not None and (self.heart.is_lost() or self._backend.get_trial(trial_id).state.is_finished())

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
        self._runs = None
        before: set[int] | None = None

        def start() -> int:
            nonlocal before
            mine = self._my_running(study_id)
            if before is not None and mine - before:
                return (mine - before).pop()  # the answer to the attempt before was lost, but not its work
            before = mine
            self._check_may_start(study_id)
            started = create_trial(state=TrialState.RUNNING, system_attrs=self.me.attributes())
            return super(SearchStorage, self).create_new_trial(study_id, started)

        trial_id = self.exclusively(self.get_study_name_from_id(study_id), start)
        self._has_started(trial_id)
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
        if trial_id == self._runs and not self.heart.is_lost():
            self._runs = None
        if self._log and state.is_finished():
            # SQLite's locks are on other files, so that closing this one drops none.
            with contextlib.suppress(FileNotFoundError), self._log.open("rb") as log:
                os.fsync(log.fileno())
        return done

    def _start_waiting(self, trial_id: int) -> bool:
        self._runs = None
        study_id, _ = self._trial_id_to_study_id_and_number[trial_id]
        has_tried = False

        def start() -> bool:
            nonlocal has_tried
            if has_tried and trial_id in self._my_running(study_id):
                return True
            has_tried = True
            self._check_may_start(study_id)
            if self._backend.get_trial(trial_id).state != TrialState.WAITING:
                return False  # another worker was sooner
            # Before the trial runs: killed in between, it still waits.
            for key, value in self.me.attributes().items():
                self._backend.set_trial_system_attr(trial_id, key, value)
            return super(SearchStorage, self).set_trial_state_values(trial_id, TrialState.RUNNING)

        started = self.exclusively(self.get_study_name_from_id(study_id), start)
        if started:
            self._has_started(trial_id)
        return started

    def _has_started(self, trial_id: int) -> None:
        self._current.clear()
        self._runs = trial_id
        self.heart.beat_for(trial_id)

    def _my_running(self, study_id: int) -> set[int]:
        """Return the ids of the trials that this process has started and not ended, as far as the database knows."""
        trials = self.get_all_trials(study_id, deepcopy=False)
        return {trial._trial_id for trial in trials if trial.state == TrialState.RUNNING and Owner.of(trial) == self.me}

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
        from optuna.storages._rdb import models

        stored, kind = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(intermediate_value)
        row = {"trial_id": trial_id, "step": step, "value": stored, "kind": kind.name}
        # Not written where the step has a value, or where the database is locked: Optuna's way is patient.
        if not self._write(_INSERT_VALUE, [row]):
            super().set_trial_intermediate_value(trial_id, step, intermediate_value)

    def set_trial_user_attrs(self, trial_id: int, attributes: Mapping[str, Any]) -> None:
        """Store several things with a trial, all of them at once where the database can."""
        self._current.clear()
        rows = [{"trial_id": trial_id, "key": key, "value": json.dumps(value)} for key, value in attributes.items()]
        if not self._write(_PUT_ATTRIBUTE, rows):
            for key, value in attributes.items():
                super().set_trial_user_attr(trial_id, key, value)

    def _write(self, statement: str, rows: list[dict[str, Any]]) -> bool:
        """Write rows in a transaction of their own, and say whether each was written."""
        from sqlalchemy import text
        from sqlalchemy.exc import DBAPIError

        if self._database.engine.dialect.name not in ("sqlite", "postgresql") or (
            self._turns and self._turns.is_taken()
        ):
            return False
        try:
            with self._database.engine.begin() as connection:
                return connection.execute(text(statement), rows).rowcount == len(rows)
        except DBAPIError as error:
            _log.warning("a first attempt to write was refused: %s", " ".join(str(error.orig).split()))
            return False

    def set_trial_user_attr(self, trial_id: int, *what: Any, **named: Any) -> None:
        """Store something with a trial."""
        self._current.clear()
        super().set_trial_user_attr(trial_id, *what, **named)

    def set_trial_system_attr(self, trial_id: int, *what: Any, **named: Any) -> None:
        """Store something of Optuna's with a trial."""
        self._current.clear()
        super().set_trial_system_attr(trial_id, *what, **named)


def set_user_attrs(trial: Trial, attributes: Mapping[str, Any]) -> None:
    """Store several things with a running trial, at once where its storage can."""
    if isinstance(trial.storage, SearchStorage):
        trial.storage.set_trial_user_attrs(trial._trial_id, attributes)
        return
    for key, value in attributes.items():
        trial.set_user_attr(key, value)


class _Patience:
    """How long a worker waits for a database that is locked, restarts or cannot be reached.

    Once it has run out, each call is tried once, until one is answered: it is the database that is waited for, not each
    of the calls by which a trial is closed.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._refused_since: float | None = None

    def attempts(self) -> tenacity.Retrying:
        return tenacity.Retrying(
            retry=tenacity.retry_if_exception(self._is_refusal),
            wait=tenacity.wait_random_exponential(0.2, max=5),
            stop=self._has_run_out,
            reraise=True,
        )

    def is_answered(self) -> None:
        self._refused_since = None

    def _is_refusal(self, error: BaseException) -> bool:
        if _may_pass(error):
            return True
        self.is_answered()
        return False

    def _has_run_out(self, _: tenacity.RetryCallState) -> bool:
        now = time.monotonic()
        if self._refused_since is None:
            self._refused_since = now
        return now - self._refused_since > self._seconds


class _Patient:
    """Optuna's database layer, waiting for a database that is locked, or restarts."""

    def __init__(self, backend: RDBStorage, patience: _Patience, turns: Turns | None) -> None:
        self._backend = backend
        self._patience = patience
        self._turns = turns

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._backend, name)
        if not callable(found):
            return found

        @wraps(found)
        def patient(*what: Any, **named: Any) -> Any:
            if self._turns and self._turns.is_taken():
                return found(*what, **named)  # again with the rest of the turn, or not at all
            for attempt in self._patience.attempts():
                with attempt:
                    try:
                        answer = found(*what, **named)
                    except UpdateFinishedTrialError:
                        # The answer to the attempt before was lost, but not its work.
                        wanted = named.get("state")
                        if attempt.retry_state.attempt_number > 1 and wanted == self._backend.get_trial(what[0]).state:
                            return True
                        raise
                    self._patience.is_answered()
                    return answer
            raise AssertionError("tenacity raises what it gives up on")

        return patient


def _may_pass(error: BaseException) -> bool:
    """Tell whether a database's error is of the kind that passes: it is locked, or cannot be reached."""
    from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, PendingRollbackError

    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    code = getattr(getattr(cause, "orig", None), "sqlite_errorcode", None)
    if code is not None:  # what else SQLite has to say, such as of a full disk or a broken file, stays as it is
        return code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    if isinstance(cause, InterfaceError | OperationalError | PendingRollbackError):
        return True  # the last of what Optuna tries again by itself in a turn whose connection broke
    return isinstance(cause, DBAPIError) and cause.connection_invalidated


def stays_broken(error: BaseException) -> bool:
    """Say whether an error is a database's and will not pass by itself: it is full, broken or not to be written."""
    from sqlalchemy.exc import SQLAlchemyError

    return isinstance(error, StorageInternalError | SQLAlchemyError) and not _may_pass(error)


@contextlib.contextmanager
def plain_errors(study_name: str) -> Iterator[None]:
    """Turn what goes wrong with a study's database, or the disk below it, into an error of ours.

    Raises:
        StudyError: With the database's or the system's own words.
    """
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        cause = error.__cause__ if isinstance(error, StorageInternalError) else error
        problem = " ".join(str(getattr(cause, "orig", None) or cause or error).split())
    except OSError as error:
        problem = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
    else:
        return
    raise StudyError(
        f"study {study_name!r}: expected to read and write it, got: {problem}; every finished trial is kept. Mend the "
        f"cause and run the same command again"
    )


def _wait_for_no_disk(connection: sqlite3.Connection, _record: object) -> None:
    """Have SQLite leave it to the system when its log gets to the disk; without a log that could break the file."""
    if connection.execute("PRAGMA journal_mode").fetchone() == ("wal",):
        connection.execute("PRAGMA synchronous=NORMAL")
