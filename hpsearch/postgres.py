"""What a PostgreSQL database takes besides Optuna's own layer: few connections, one maker of tables, and turns.

Its server is shared by many machines and may restart at any moment, so that everything here holds whatever becomes of a
connection.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine, orm, text
from sqlalchemy.exc import ProgrammingError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from optuna.storages import RDBStorage
    from sqlalchemy import Connection, Engine
    from sqlalchemy.engine import URL

_FEW = {"pool_size": 1, "max_overflow": 2, "pool_pre_ping": True}
"""A worker keeps one connection; it takes two when it opens the storage, and when it gives a sign of life meanwhile."""

_NETWORK = {
    "application_name": "hpsearch",
    "connect_timeout": 10,
    # A server or a machine between that vanishes without a word would be waited for for hours.
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
"""Seconds, and for the last milliseconds. Source: PostgreSQL 15, 34.1.2 "Parameter Key Words"."""

_LOCK = text("SELECT pg_advisory_xact_lock(:key)")
_TABLES = "the tables"
_LONGEST_PAUSE = "60s"


def engine_options(url: URL) -> dict[str, Any]:
    """Return what SQLAlchemy's engine for a database server is given; what the URL says itself is left to it."""
    options: dict[str, Any] = dict(_FEW)
    if url.get_backend_name() == "postgresql" and url.get_dialect().driver in ("psycopg", "psycopg2"):
        options["connect_args"] = {name: value for name, value in _NETWORK.items() if name not in url.query}
    return options


def has_tables(url: URL) -> bool:
    """Say whether a database has all of Optuna's tables."""
    with _engine(url) as engine:
        return _has_tables(engine)


@contextlib.contextmanager
def making_tables(url: URL) -> Iterator[None]:
    """Be the only process that makes Optuna's tables.

    Several that make them at once crash (Optuna 5.0.0, `RDBStorage.__init__`).
    """
    with _engine(url) as engine, _locked(engine, _TABLES):
        yield


@contextlib.contextmanager
def _engine(url: URL) -> Iterator[Engine]:
    engine = create_engine(url, **engine_options(url))
    try:
        yield engine
    finally:
        engine.dispose()


def _has_tables(engine: Engine) -> bool:
    """Say whether Optuna has made all its tables; alembic's version row is the last it writes."""
    with engine.connect() as connection:
        try:
            return connection.execute(text("SELECT 1 FROM alembic_version")).fetchone() is not None
        except ProgrammingError as error:
            if getattr(error.orig, "sqlstate", None) != "42P01":  # undefined_table
                raise
            return False


@contextlib.contextmanager
def _locked(engine: Engine, name: str) -> Iterator[Connection]:
    """Hold the server's lock for a name, in a transaction that is given.

    Source:
        PostgreSQL 15, 13.3.5 "Advisory Locks": released at the end of the transaction, also where a connection breaks.
    """
    key = int.from_bytes(hashlib.sha256(f"hpsearch {name}".encode()).digest()[:8], signed=True)
    with engine.begin() as connection:
        # A machine that vanishes, or a process that is stopped, while it holds the lock shall not stop the others.
        connection.execute(text(f"SET LOCAL idle_in_transaction_session_timeout = '{_LONGEST_PAUSE}'"))
        connection.execute(_LOCK, {"key": key})
        yield connection


class Turns:
    """Blocks of work on what belongs to a name, in which no other process is at work on it.

    A lock in a connection of its own would be lost with that connection, while the work went on in another one, beside
    the next holder's. So all that Optuna's layer does in a block, it does in the transaction that holds the lock: it is
    done whole, while nobody else is at it, or it is not done.
    """

    def __init__(self, backend: RDBStorage) -> None:
        """Have Optuna's layer work in the transaction of the block that its thread is in, if it is in one."""
        self._engine = backend.engine
        here = self._here = threading.local()

        class Session(orm.Session):
            def get_bind(self, *_: Any, **__: Any) -> Engine | Connection:
                return getattr(here, "connection", None) or backend.engine

        # What Optuna commits in a block is a savepoint, which it may undo by itself.
        backend.scoped_session = orm.scoped_session(
            orm.sessionmaker(class_=Session, join_transaction_mode="create_savepoint")
        )

    def is_taken(self) -> bool:
        """Say whether this thread is in a block."""
        return getattr(self._here, "connection", None) is not None

    @contextlib.contextmanager
    def take(self, name: str) -> Iterator[None]:
        """Do a block of work."""
        with _locked(self._engine, name) as connection:
            self._here.connection = connection
            try:
                yield
            finally:
                self._here.connection = None
