"""A PostgreSQL server of one's own, from Debian's package: for the scripts beside it, and for the tests."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_USER = "hpsearch"
_START_S = 60


def binaries() -> Path | None:
    """Return the folder of the newest server that Debian has installed, None without one."""
    found = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if (path / "initdb").exists()]
    return max(found, key=lambda path: float(path.parent.name), default=None)


class PostgresServer:
    """A server on 127.0.0.1, on a free port, with a password; in a temporary folder that goes with it.

    PostgreSQL refuses to run as root: then it runs as the user that Debian's package makes for it.
    """

    def __init__(self, *, durable: bool) -> None:
        """Start it.

        Args:
            durable: Whether a commit waits for the disk, as it does unless told otherwise.
        """
        found = binaries()
        if found is None:
            raise RuntimeError("expected PostgreSQL, got none: apt-get install postgresql")
        self._bin = found
        self.password = secrets.token_hex(16)
        self._folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        self._user = "postgres" if os.getuid() == 0 else None
        if self._user:
            account = pwd.getpwnam(self._user)
            os.chown(self._folder, account.pw_uid, account.pw_gid)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        secret = self._folder / "password"
        secret.write_text(self.password, encoding="ascii")
        secret.chmod(0o644)  # in a folder that only the server's user may enter
        self._run(
            "initdb", "--no-sync", "--encoding=UTF8", "--locale=C.UTF-8", f"--username={_USER}",
            "--auth=scram-sha-256", f"--pwfile={secret}",
        )  # fmt: skip
        self._options = (
            f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self._folder} "
            "-c max_connections=300 "
            f"-c fsync={'on' if durable else 'off'}"
        )
        self._control("start")

    def url(self, database: str, *, password: str | None = None) -> str:
        """Return a database's URL."""
        return f"postgresql://{_USER}:{password or self.password}@127.0.0.1:{self.port}/{database}"

    def make_database(self) -> str:
        """Make an empty database and return its name."""
        name = f"db_{secrets.token_hex(4)}"
        self.execute(f"CREATE DATABASE {name}")
        return name

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Execute a statement and return its rows."""
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def terminate_connections(self, database: str) -> int:
        """End all connections to a database from the server's side, and return how many there were."""
        return len(self.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'"))

    def restart(self, *, down_s: float = 0.0) -> None:
        """Kill the server as a crash would, and start it again.

        Args:
            down_s: Seconds in between.
        """
        self._control("stop", "-m", "immediate")
        if down_s:
            time.sleep(down_s)
        self._control("start")

    def close(self) -> None:
        """Stop the server and delete its folder."""
        with contextlib.suppress(subprocess.CalledProcessError):
            self._control("stop", "-m", "immediate")
        shutil.rmtree(self._folder)

    def _control(self, action: str, *options: str) -> None:
        more = ("-o", self._options, "-l", str(self._folder / "log")) if action == "start" else ()
        self._run("pg_ctl", action, "-w", "-t", str(_START_S), *options, *more)

    def _run(self, program: str, *arguments: str) -> None:
        become = ("setpriv", f"--reuid={self._user}", f"--regid={self._user}", "--init-groups") if self._user else ()
        subprocess.run(
            [*become, self._bin / program, "-D", self._folder / "data", *arguments],
            check=True, stdout=subprocess.DEVNULL, cwd=self._folder, timeout=2 * _START_S,
        )  # fmt: skip


@contextlib.contextmanager
def postgres(*, durable: bool) -> Iterator[PostgresServer]:
    """Give a server that is stopped in the end."""
    server = PostgresServer(durable=durable)
    try:
        yield server
    finally:
        server.close()
