"""optuna-dashboard on this machine, with what explains a study, behind a guard."""

from __future__ import annotations

import logging
import socket
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from hpsearch.errors import UsageError
from hpsearch.guard import EVERY_ADDRESS, Guard, is_loopback
from hpsearch.study import StudyPaths

if TYPE_CHECKING:
    from collections.abc import Callable

    from optuna.storages import BaseStorage

_log = logging.getLogger(__name__)


def make_dashboard(
    storage: BaseStorage,
    storage_url: str,
    *,
    host: str,
    port: int,
    allow_writes: bool = False,
    expose: bool = False,
    announce: Callable[[str], None] = lambda _: None,
) -> Server:
    """Return a server for the studies of a storage; the caller starts it with `serve_forever`.

    Args:
        storage: Whose studies are shown.
        storage_url: Its URL, beside which the studies' folders are.
        host: Address to listen on.
        port: 0 takes a free one.
        allow_writes: Whether notes and studies may be changed.
        expose: Whether the address may be one that other machines reach.
        announce: Is given the URL for another browser, whenever one was let in.

    Raises:
        UsageError: If the address cannot or should not be listened on.
    """
    if not (expose or is_loopback(host)):
        raise UsageError(
            f"dashboard: expected --host to be this machine only (127.0.0.1, ::1 or localhost), got {host!r}; forward "
            f"a port to it (ssh -L {port}:127.0.0.1:{port}), or add --expose to let in whoever has the printed URL"
        )
    from optuna.artifacts import FileSystemArtifactStore
    from optuna_dashboard import wsgi

    from hpsearch.exhibits import Exhibits

    artifacts = StudyPaths.artifacts_of(storage_url)
    if allow_writes:
        artifacts.mkdir(exist_ok=True)
    app = wsgi(storage, artifact_store=FileSystemArtifactStore(artifacts))
    app.install(Exhibits(storage, storage_url))
    try:
        server = make_server(host, port, app, server_class=Server, handler_class=_Quiet)
    except (OSError, OverflowError, UnicodeError) as error:
        raise UsageError(
            f"dashboard: expected to listen on {host}:{port}, got: {error}; choose another --port"
        ) from error
    origin = f"http://{_reached_under(host)}:{server.server_port}"
    guard = Guard(app, host=host, allow_writes=allow_writes, announce=lambda path: announce(f"{origin}{path}"))
    server.set_app(guard)
    server.url = f"{origin}{guard.path}"
    return server


def _reached_under(host: str) -> str:
    """Return the name of an address in a URL of this machine."""
    name = "localhost" if host in EVERY_ADDRESS else host
    return f"[{name}]" if ":" in name else name


class Server(ThreadingMixIn, WSGIServer):
    """A server that answers several requests at a time."""

    daemon_threads = True
    url = ""
    """Lets one browser in."""

    def __init__(self, address: tuple[str, int], handler: type[WSGIRequestHandler]) -> None:
        """Listen on an address."""
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002  its signature
        """Leave connections that break off out of the terminal."""
        _log.warning("a request of %s was not answered", client_address, exc_info=True)


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Leave requests out of the terminal and the log: the first one holds the token."""
