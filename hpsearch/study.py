"""Studies: where they are kept, when one may be resumed, and what they hold.

A study remembers the configuration it was started with and refuses to go on with another one, because trials of
different data, models or spaces cannot be compared.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import secrets
import sqlite3
import unicodedata
import weakref
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from filelock import FileLock
from optuna.study import StudyDirection
from optuna.trial import TrialState

from hpsearch.errors import StudyError, UsageError
from hpsearch.observer import Standing
from hpsearch.reading import ReadOnlyStorage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial
    from sqlalchemy.engine import URL

    from hpsearch.config import Config

DEFAULT_STORAGE = "sqlite:///studies/hpsearch.db"
_LONGEST_NAME = 255  # bytes
_DEVICE = re.compile(r"CON|PRN|AUX|NUL|(COM|LPT)[0-9\u00b9\u00b2\u00b3]", re.IGNORECASE)
_DATABASE_ENDINGS = ("", "-journal", "-shm", "-wal", ".lock")
_SQLITE_TIMEOUT_S = 60.0  # how long a writer waits for another one, such as a dashboard
_LOCK_ATTRIBUTE, _CONFIG_ATTRIBUTE = "lock", "config"
_DIED, _INTERRUPTED = "the process died", "interrupted"
_MAX_DEATHS = 3  # of processes over the same parameters: a batch that fills the memory kills every one


# --- Where studies are kept -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StudyPaths:
    """The owner of every path that belongs to a study."""

    root: Path
    """The studies folder."""
    study: str

    @classmethod
    def of(cls, storage_url: str, study: str) -> StudyPaths:
        """Return the paths of a study: beside an SQLite file, else in `studies/`."""
        check_study_name(study)
        database = _sqlite_file(_parse_url(storage_url))
        paths = cls(root=_root_of(database), study=study)
        os.fsencode(paths.folder)  # under an ASCII locale Hangul fails here, and not after minutes
        # SQLite and the lock put their files beside the database, under its name with an ending.
        taken = (paths.folder.exists() or paths.folder.is_symlink()) and not paths.folder.is_dir()
        if taken or (database and study in {f"{database.name}{ending}" for ending in _DATABASE_ENDINGS}):
            raise UsageError(f"study {study!r}: expected a folder's name, got a file's; choose another --study")
        return paths

    @staticmethod
    def artifacts_of(storage_url: str) -> Path:
        """Return where files are that people attach to studies and trials in the dashboard, of all studies."""
        return _root_of(_sqlite_file(_parse_url(storage_url))) / ".artifacts"

    @property
    def folder(self) -> Path:
        """Everything of this study that is not in the database."""
        return self.root / self.study

    @property
    def run_lock(self) -> Path:
        """By which workers on one machine take turns to start trials; released by the system when one dies."""
        return self.folder / "run.lock"

    @property
    def log(self) -> Path:
        """What the libraries said during runs."""
        return self.folder / "run.log"

    @property
    def tokens(self) -> Path:
        """Token ids that studies of the same texts and model share; no study's name begins with a dot."""
        return self.root / ".tokens"

    @property
    def best(self) -> Path:
        """Where `export-best` writes unless told otherwise."""
        return self.folder / "best"

    @property
    def report(self) -> Path:
        """Where `report` writes unless told otherwise."""
        return self.folder / "report.html"

    @property
    def confirmation(self) -> Path:
        """Trainings that `confirm` has finished."""
        return self.folder / "confirmation"

    @property
    def comparison(self) -> Path:
        """Trainings that `compare` has finished."""
        return self.folder / "comparison"

    @property
    def flips(self) -> Path:
        """Test texts that one side of the last comparison gets right and the other wrong."""
        return self.folder / "flips.csv"

    def checkpoint(self, number: int) -> Path:
        """Return the folder of a trial's best weights."""
        return self.folder / f"trial-{number:04d}"

    def writes_to(self, path: Path) -> bool:
        """Tell whether a path is one that a search or a comparison of this study writes to, now or later."""
        path, folder = path.resolve(), self.folder.resolve()
        if not path.is_relative_to(folder):
            return path.is_relative_to(self.tokens.resolve())
        name = next(iter(path.relative_to(folder).parts), "")
        fixed = {"", self.run_lock.name, self.log.name, self.comparison.name}
        return name in fixed or name.startswith((".", "trial-"))


def _root_of(database: Path | None) -> Path:
    return database.parent if database else Path("studies")


def check_study_name(name: str) -> None:
    """Refuse a name that could not be a folder's everywhere.

    Raises:
        UsageError: With what a name may hold.
    """
    # File systems count bytes, of which Hangul takes three a syllable.
    if not re.fullmatch(r"\w[\w.+-]{0,99}", name) or len(name.encode()) > _LONGEST_NAME:
        raise UsageError(
            f"study {name!r}: expected up to 100 letters (of Hangul, 85), digits, '_', '-', '+' and '.', not starting "
            f"with a mark; choose another --study"
        )
    # Some file systems take both forms for one name, and Windows has devices of some names and drops a last point.
    if not unicodedata.is_normalized("NFC", name) or name.endswith(".") or _DEVICE.fullmatch(name.partition(".")[0]):
        raise UsageError(
            f"study {name!r}: expected a name that is a folder's on every system: in composed Unicode, no device of "
            f"Windows such as NUL, and without a point at the end; choose another --study"
        )


def redact(url: str) -> str:
    """Return a storage URL without its passwords, for messages, whether or not it can be parsed."""
    # Up to the last @: the rest of a password that holds an @ itself would be taken for the host.
    url = re.sub(r"^([^/]*//|(?!.*//))([^:/@]*):.*@", r"\1\2:***@", url, flags=re.DOTALL)
    secret = r"(?i)((?:[?&;=]|%3B)[^=&;%]*(?:pass|pwd|secret|token|key)[^=&;%]*(?:=|%3D))((?!%3B)[^&;])*"
    return re.sub(secret, r"\1***", url)


def open_for_reading(url: str) -> BaseStorage:
    """Open a storage for reading: an SQLite file without SQLAlchemy, which takes longer to load than the rest.

    Raises:
        UsageError: If the URL cannot be read, or names a file that is not there or is no database.
        StudyError: If the database does not answer.
    """
    file = re.fullmatch(r"sqlite:///([^?]+)", url)  # what else a URL may say is left to SQLAlchemy
    if file and ReadOnlyStorage.can_read(Path(file[1])):
        return ReadOnlyStorage(Path(file[1]))
    return open_storage(url, create=False)


def open_storage(url: str, *, create: bool) -> BaseStorage:
    """Open a storage for reading and writing.

    SQLite is set to write-ahead logging, so that a dashboard reads while a search writes, and waits for other writers.

    Args:
        url: An SQLAlchemy URL, such as `sqlite:///studies/hpsearch.db`.
        create: Whether Optuna's tables may be made, and an SQLite file and its folder.

    Raises:
        UsageError: If the URL cannot be read, or names a database that is not there or has no tables of Optuna's.
        StudyError: If the database does not answer.
    """
    parsed = _parse_url(url)
    database = _sqlite_file(parsed)
    if database is None:
        return _open_server(url, parsed, create=create)
    if not database.exists() and not create:
        raise UsageError(
            f"storage {redact(url)}: expected an SQLite file at {database.absolute()}, got none; name another with "
            f"--storage or HPSEARCH_STORAGE, or start one with `hpsearch run`"
        )
    _check_sqlite(database)
    if not create and not _has_tables(database):  # where there are none, Optuna would make them
        raise UsageError(f"storage {redact(url)}: expected a database of Optuna studies, got {database}, which is none")
    connect_args = {"connect_args": {"timeout": _SQLITE_TIMEOUT_S}}
    if _has_tables(database):
        return _open(url, connect_args)
    try:
        parsed.get_dialect()().create_connect_args(parsed)  # before anything is written
        database.parent.mkdir(parents=True, exist_ok=True)
        # Two processes that create the tables at once crash, so there is one creator.
        with FileLock(f"{database}.lock"):
            with _explained(url):
                _make_tables(parsed, is_new=not database.exists() or not database.stat().st_size)
            return _open(url, connect_args)
    except ValueError as error:  # such as `?timeout=soon`
        raise UsageError(f"storage {redact(url)}: expected a URL that SQLite takes, got: {error}") from error
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(
            f"storage {redact(url)}: expected an SQLite file, got a path below {database.parent}, which is no folder"
        ) from error
    except OSError as error:
        raise StudyError(
            f"storage {redact(url)}: expected to create {database}, got: {error.strerror or error}"
        ) from error


@contextlib.contextmanager
def opened(url: str, *, create: bool = False) -> Iterator[BaseStorage]:
    """Open a storage as `open_storage` does, and close its connections in the end.

    The last one that leaves an SQLite file puts what is in the log into it, so that the file alone can be copied.
    """
    storage = open_storage(url, create=create)
    try:
        yield storage
    finally:
        storage._backend.engine.dispose()  # type: ignore[attr-defined]  # Optuna's class over its database layer


def _make_tables(url: URL, *, is_new: bool) -> None:
    """Make Optuna's tables in an SQLite file, with their indexes, all of them or none.

    Killed between a table and its index, Optuna never makes that index (5.0.0, `create_all` of SQLAlchemy): without the
    one on names a study could be made twice.
    """
    from optuna.storages._rdb.models import BaseModel
    from sqlalchemy import create_engine

    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            if is_new:
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")  # a property of the file, kept from here on
            connection.exec_driver_sql("BEGIN IMMEDIATE")  # Python's sqlite3 begins no transaction for a table
            BaseModel.metadata.create_all(connection)
            for table in BaseModel.metadata.tables.values():
                for index in table.indexes:
                    index.create(connection, checkfirst=True)
            connection.commit()
    finally:
        engine.dispose()


def _open_server(url: str, parsed: URL, *, create: bool) -> BaseStorage:
    from hpsearch import postgres

    with _explained(url):
        options = postgres.engine_options(parsed)
        if parsed.get_backend_name() != "postgresql":
            return _open(url, options)
        if postgres.has_tables(parsed):
            return _open(url, options)
        if not create:
            raise UsageError(
                f"storage {redact(url)}: expected a database of Optuna studies, got one without its tables; start a "
                f"study there with `hpsearch run`"
            )
        with postgres.making_tables(parsed):
            return _open(url, options)


def _open(url: str, engine_kwargs: dict[str, Any]) -> BaseStorage:
    with _explained(url):
        database = optuna.storages.RDBStorage(url, engine_kwargs=engine_kwargs)
        if database.engine.dialect.name != "sqlite":
            weakref.finalize(database, database.engine.dispose)  # a server is told that a connection ends
        return optuna.storages.get_storage(database)


@contextlib.contextmanager
def _explained(url: str) -> Iterator[None]:
    """Turn the errors of opening a storage into ours."""
    from sqlalchemy.exc import NoSuchModuleError, SQLAlchemyError

    try:
        yield
    except (ImportError, NoSuchModuleError) as error:
        extra = (
            "; install hpsearch with its extra: pip install --editable '.[postgres]'"
            if url.startswith("postgresql")
            else "; install it"
        )
        raise UsageError(f"storage {redact(url)}: expected a database driver, got: {error}{extra}") from error
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, RuntimeError) as error:
        problem = " ".join(str(error).split()).replace(url, redact(url))
        raise StudyError(f"storage {redact(url)}: expected a database of Optuna studies, got: {problem}") from error


def _parse_url(url: str) -> URL:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:  # the latter for a port that is no number
        raise UsageError(
            f"storage {redact(url)}: expected a URL such as {DEFAULT_STORAGE}, got something else"
            + (f"; did you mean sqlite:///{redact(url)}?" if url.endswith((".db", ".sqlite", ".sqlite3")) else "")
        ) from error
    if "@" in (parsed.host or ""):  # drivers would look up the rest of the password as a host, and say so
        raise UsageError(
            f"storage {redact(url)}: expected one @ before the host, got two; write one in a password as %40"
        )
    return parsed


def database_file(url: str) -> Path | None:
    """Return the SQLite file that a storage's URL names, or None for another database.

    Raises:
        UsageError: If the URL cannot be read.
    """
    return _sqlite_file(_parse_url(url))


def _sqlite_file(url: URL) -> Path | None:
    if url.get_backend_name() != "sqlite":
        return None
    if not url.database or url.database == ":memory:":
        raise UsageError("storage: expected an SQLite file, got a database in memory, which no second command can read")
    shown = redact(url.render_as_string(hide_password=True))
    if url.host or url.username or url.password or url.database.startswith("file:"):
        raise UsageError(f"storage {shown}: expected the path of a file after sqlite:///, got a host, a user or a URI")
    if url.database.startswith("~"):
        raise UsageError(f"storage {shown}: expected the path of a file, got ~, which is no folder here; write it out")
    try:
        Path(url.database).exists()
    except OSError as error:
        raise UsageError(f"storage: expected an SQLite file, got {url.database}: {error.strerror}") from error
    return Path(url.database)


def _check_sqlite(database: Path) -> None:
    if database.is_dir():
        raise UsageError(f"storage: expected an SQLite file, got the folder {database}")
    if database.exists() and not database.is_file():
        raise UsageError(f"storage: expected an SQLite file, got {database}, which is a device")
    if database.exists() and database.stat().st_size:
        # SQLite looks at the file itself: to close it drops the locks that this process holds on it (POSIX), and then
        # the next reader to leave would delete the write-ahead log of a running search.
        with contextlib.closing(sqlite3.connect(database, timeout=_SQLITE_TIMEOUT_S)) as connection:
            try:
                connection.execute("PRAGMA schema_version")
            except sqlite3.DatabaseError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_NOTADB:
                    return  # such as a broken file: opening it says what is wrong
                raise UsageError(
                    f"storage: expected an SQLite file, got {database}, which is another kind of file"
                ) from error


def _has_tables(database: Path) -> bool:
    """Say whether Optuna has made all its tables in an SQLite file; alembic's version row is the last it writes."""
    if not database.exists():
        return False
    with contextlib.closing(sqlite3.connect(database, timeout=_SQLITE_TIMEOUT_S)) as connection:
        try:
            return connection.execute("SELECT 1 FROM alembic_version").fetchone() is not None
        except sqlite3.DatabaseError as error:
            return "no such table" not in str(error)  # of a broken file, opening it says what is wrong


# --- One study --------------------------------------------------------------------------------------------------------


def study_lock(config: Config, *, data: str, model: str) -> dict[str, Any]:
    """Return everything that must stay the same for trials to be comparable.

    Args:
        config: The search's configuration.
        data: Fingerprint of the rows.
        model: Fingerprint of the model.
    """
    return {
        "data": data,
        "model": model,
        "metric": config.metric,
        "direction": "maximize",
        "defaults": config.defaults.model_dump(mode="json"),
        "space": {name: dimension.model_dump(mode="json") for name, dimension in config.space.items()},
        "evaluations": config.search.evaluations,
        "seed": config.search.seed,
        "max_length": config.model.max_length,
    }


def create_or_resume(storage: BaseStorage, name: str, config: Config, lock: dict[str, Any]) -> optuna.Study:
    """Return the study of that name, new with the defaults as its first trial, or resumed.

    Call it while no other process does.

    Raises:
        UsageError: If a study of that name was started with something else; with every difference.
    """
    study = optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
    stored = study.user_attrs.get(_LOCK_ATTRIBUTE)
    if stored is None:
        theirs = study.directions != [StudyDirection.MAXIMIZE]
        if theirs or any(trial.user_attrs.get("role") != "defaults" for trial in study.get_trials(deepcopy=False)):
            raise UsageError(
                f"study {name!r}: expected a study started by hpsearch, got another; choose another --study"
            )
        study.set_metric_names([config.metric])
        study.set_user_attr(_CONFIG_ATTRIBUTE, config.model_dump(mode="json"))
        study.set_user_attr("uid", secrets.token_hex(8))
        if not study.get_trials(deepcopy=False):
            enqueue_defaults(study, config)
        # The lock is written last: a study without one was not finished being made, and is finished here.
        study.set_user_attr(_LOCK_ATTRIBUTE, lock)
        return study
    _refuse_differences(name, stored, lock)
    if study.user_attrs.get(_CONFIG_ATTRIBUTE) != (now := config.model_dump(mode="json")):
        study.set_user_attr(_CONFIG_ATTRIBUTE, now)  # such as more trials, or files that have moved
    return study


def check_resumable(storage: BaseStorage, name: str, lock: dict[str, Any]) -> None:
    """Refuse to go on with a study of something else, before anything is written.

    Raises:
        UsageError: With every difference.
    """
    if name in optuna.study.get_all_study_names(storage):
        stored = optuna.load_study(study_name=name, storage=storage).user_attrs.get(_LOCK_ATTRIBUTE)
        if stored is not None:
            _refuse_differences(name, stored, lock)


def _refuse_differences(name: str, stored: dict[str, Any], lock: dict[str, Any]) -> None:
    differences = list(_differences(stored, json.loads(json.dumps(lock))))
    if differences:
        lines = "\n".join(f"  {line}" for line in differences)
        raise UsageError(
            f"study {name!r}: expected what it was started with, got a difference:\n{lines}\n"
            f"Restore it, or start another study with --study NAME"
        )


def enqueue_defaults(study: optuna.Study, config: Config) -> None:
    """Put the defaults in line."""
    values = {name: getattr(config.defaults, name) for name in config.space}
    study.enqueue_trial(values, user_attrs={"role": "defaults"})


def is_in_order(study: optuna.Study, is_gone: Callable[[FrozenTrial], bool]) -> bool:
    """Say whether `mend` would find nothing to do, without keeping others from their work meanwhile."""
    trials = study.get_trials(deepcopy=False)
    retried = {trial.user_attrs["retry_of"] for trial in trials if "retry_of" in trial.user_attrs}
    defaults = [trial for trial in trials if trial.user_attrs.get("role") == "defaults"]
    return not all(trial.state == TrialState.FAIL for trial in defaults) and not any(
        (trial.state == TrialState.RUNNING and is_gone(trial))
        or (trial.state == TrialState.FAIL and trial.number not in retried and _was_cut_short(trial))
        for trial in trials
    )


def _was_cut_short(trial: FrozenTrial) -> bool:
    # Without a reason where the database did not take it.
    return trial.user_attrs.get("failure", _INTERRUPTED) in (_DIED, _INTERRUPTED)


def mend(study: optuna.Study, config: Config, is_gone: Callable[[FrozenTrial], bool]) -> list[int]:
    """Put a study in order whose processes may have died at any moment.

    Trials that nobody runs any more are failed; their parameters, and those of interrupted trials, are put in line
    again once; and the defaults are put in line again where no trial of theirs is finished, running or waiting. Call it
    while no other process does.

    Args:
        study: The study.
        config: Its configuration.
        is_gone: Says of a running trial whether nobody runs it any more.

    Returns:
        Numbers of the trials that nobody ran any more.

    Raises:
        StudyError: If the defaults have ended their process too often.
    """
    orphans = [trial for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)) if is_gone(trial)]
    for trial in orphans:
        if "failure" not in trial.user_attrs:
            optuna.trial.Trial(study, trial._trial_id).set_user_attr("failure", _DIED)
    trials = study.get_trials(deepcopy=False)
    retried = {trial.user_attrs.get("retry_of") for trial in trials}
    gone = {trial.number for trial in orphans}
    for trial in trials:
        closing = trial.number in gone or trial.state == TrialState.FAIL
        if closing and _was_cut_short(trial) and trial.number not in retried:
            # Before it is closed: killed in between, the next run comes here again.
            _requeue(study, trial, trials, config)
    for trial in orphans:
        study.tell(trial.number, state=TrialState.FAIL)
    mine = [trial for trial in study.get_trials(deepcopy=False) if trial.user_attrs.get("role") == "defaults"]
    if all(trial.state == TrialState.FAIL for trial in mine):
        if sum(trial.user_attrs.get("failure") == _DIED for trial in mine) >= _MAX_DEATHS:
            raise StudyError(
                f"study {study.study_name!r}: expected the defaults to be trained, got a process that died over them "
                f"{_MAX_DEATHS} times, probably out of memory; start another study with a smaller batch "
                f"(--set defaults.per_device_train_batch_size=...)"
            )
        enqueue_defaults(study, config)
    return [trial.number for trial in orphans]


def _requeue(study: optuna.Study, trial: FrozenTrial, trials: list[FrozenTrial], config: Config) -> None:
    """Put a trial's parameters in line again, in the trial's own role, unless they end every process."""
    deaths = 0
    ancestor: int | None = trial.number
    while ancestor is not None:
        attrs = trials[ancestor].user_attrs
        deaths += attrs.get("failure") == _DIED
        ancestor = attrs.get("retry_of")
    # A trial in line has its values fixed before it draws them one by one, and may have died in between. One that died
    # while it drew values of its own draws all of them again, and the same: see `search.SeededByTrial`.
    fixed = trial.system_attrs.get("fixed_params", {})
    values = {**fixed, **trial.params}
    if not values.keys() >= config.space.keys():
        values = fixed
    if deaths < _MAX_DEATHS:
        kept = {name: value for name, value in trial.user_attrs.items() if name == "role"}
        study.enqueue_trial(values, user_attrs={**kept, "retry_of": trial.number})


def load_study(storage: BaseStorage, name: str | None) -> optuna.Study:
    """Return a study, by default the one in which a trial started last.

    Raises:
        UsageError: If there is no study of that name; with the names there are.
    """
    names = optuna.study.get_all_study_names(storage)
    if name is None:
        if not names:
            raise UsageError("storage: expected a study, got none; start one with `hpsearch run`")
        return max((optuna.load_study(study_name=each, storage=storage) for each in names), key=_last_start)
    if name not in names:
        raise UsageError(
            f"study {name!r}: expected one of {', '.join(map(repr, sorted(names))) or '(there is none yet)'}, "
            f"got another name"
        )
    return optuna.load_study(study_name=name, storage=storage)


def _last_start(study: optuna.Study) -> tuple[float, int]:
    """Return when a study's last trial started, then the study's own age: a key to sort by."""
    starts = (trial.datetime_start for trial in study.get_trials(deepcopy=False) if trial.datetime_start)
    return max((start.timestamp() for start in starts), default=0.0), study._study_id


def stored_config(study: optuna.Study) -> Config:
    """Return the configuration a study was started with.

    Raises:
        UsageError: If hpsearch did not start it.
    """
    from hpsearch.config import build_config

    tree = study.user_attrs.get(_CONFIG_ATTRIBUTE)
    if not isinstance(tree, dict):
        raise UsageError(f"study {study.study_name!r}: expected a study started by hpsearch, got one without a config")
    return build_config(tree, where=f"study {study.study_name!r}")


def label_names(study: optuna.Study, n_classes: int) -> tuple[str, ...]:
    """Return the names of a study's classes, in the order of their ids; numbers where none are kept with it."""
    # The first versions kept those only that the configuration names.
    configured = study.user_attrs.get(_CONFIG_ATTRIBUTE, {}).get("data", {}).get("labels") or {}
    kept = study.user_attrs.get("labels") or list(configured.values())
    return tuple(kept) if len(kept) == n_classes else tuple(str(i) for i in range(n_classes))


def best_trial(study: optuna.Study) -> FrozenTrial:
    """Return the complete trial with the highest value, the earliest of equals.

    Raises:
        StudyError: If no trial is complete.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not complete:
        counts = standing(study, 0)
        raise StudyError(
            f"study {study.study_name!r}: expected a complete trial, got {counts.n_pruned} pruned and "
            f"{counts.n_failed} failed; run it further with `hpsearch run --study {study.study_name}`"
        )
    return max(complete, key=lambda trial: (trial.value or 0.0, -trial.number))


def reached(trial: FrozenTrial) -> float | None:
    """Return what a trial came to: its value, of a pruned one its best evaluation, None of one without either."""
    if trial.state == TrialState.COMPLETE:
        return trial.value
    return max((value for value in trial.intermediate_values.values() if math.isfinite(value)), default=None)


def seconds_of(trial: FrozenTrial) -> float | None:
    """Return how long a finished trial took; None where its process died, since it was closed at some later time."""
    if trial.duration is None or trial.user_attrs.get("failure") == _DIED:
        return None
    return trial.duration.total_seconds()


def standing(study: optuna.Study, n_trials: int) -> Standing:
    """Return where a study stands on the way to `n_trials` finished trials."""
    trials = study.get_trials(deepcopy=False)
    counts = Counter(trial.state for trial in trials)
    # Of another kind of study in the same storage, no trial is called best.
    ours = study.directions == [StudyDirection.MAXIMIZE]
    complete = [trial for trial in trials if ours and trial.state == TrialState.COMPLETE]
    best = max(complete, key=lambda trial: (trial.value or 0.0, -trial.number), default=None)
    return Standing(
        n_finished=counts[TrialState.COMPLETE] + counts[TrialState.PRUNED],
        n_pruned=counts[TrialState.PRUNED],
        n_failed=counts[TrialState.FAIL],
        n_trials=n_trials,
        best_number=best.number if best else None,
        best_value=best.value if best else None,
    )


def _differences(stored: dict[str, Any], asked: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key in sorted({*stored, *asked}):
        name = f"{prefix}{key}"
        old, new = stored.get(key), asked.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{name}.")
        elif old != new:
            then, now = (json.dumps(value, ensure_ascii=False) for value in (old, new))
            yield f"{name}: started with {then}, now {now}"
