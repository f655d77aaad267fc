"""optuna-dashboard on this machine, behind a guard.

The stock server answers any page the browser has open: it checks neither Host nor Origin and takes a DELETE without a
body (read and tried in 0.21.0). Here only requests to this machine by its own name are answered, and only reading
ones.
"""

from __future__ import annotations

import ipaddress
import socket
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from hpsearch.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from optuna.storages import BaseStorage

_EVERY_ADDRESS = frozenset({"0.0.0.0", "::"})
_SAFE_METHODS = frozenset({"GET", "HEAD"})


class Guard:
    """A WSGI application that passes on only what a browser on this machine asks for itself."""

    def __init__(self, app: WSGIApplication, *, host: str, allow_writes: bool) -> None:
        """Wrap an application that is served under `host`."""
        self._app = app
        self._host = host
        self._allow_writes = allow_writes

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request, or refuse it."""
        host = environ.get("HTTP_HOST", "")
        origin = environ.get("HTTP_ORIGIN")
        if not self._is_own_name(host):
            return _refuse(start_response, "421 Misdirected Request", f"This dashboard does not answer to {host!r}.")
        if origin is not None and origin != f"http://{host}":
            return _refuse(start_response, "403 Forbidden", "Requests of other pages are not answered.")
        if environ["REQUEST_METHOD"] not in _SAFE_METHODS and not self._allow_writes:
            return _refuse(
                start_response, "405 Method Not Allowed", "Read-only: start it with --allow-writes to change studies."
            )
        environ.setdefault("HTTP_ACCEPT_ENCODING", "")  # without the header the stock server fails on its own files

        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Callable[[bytes], object]:
            kept = [(name, value) for name, value in headers if name.lower() != "access-control-allow-origin"]
            extra = [
                ("X-Content-Type-Options", "nosniff"),
                ("X-Frame-Options", "DENY"),
                ("Referrer-Policy", "no-referrer"),
                ("Cross-Origin-Resource-Policy", "same-origin"),
            ]
            return start_response(status, kept + extra, *rest)

        return self._app(environ, start)

    def _is_own_name(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if "@" in host or not name:
            return False
        if name in ("localhost", self._host):
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        # Who listens on every address is reached under any of them; a page that re-points its own name needs a name.
        return address.is_loopback or self._host in _EVERY_ADDRESS


def make_dashboard(storage: BaseStorage, *, host: str, port: int, allow_writes: bool = False) -> WSGIServer:
    """Return a server for the studies of a storage; the caller starts it with `serve_forever`.

    Args:
        storage: Whose studies are shown.
        host: Address to listen on.
        port: 0 takes a free one.
        allow_writes: Whether notes and studies may be changed.

    Raises:
        UsageError: If the address cannot be listened on.
    """
    from optuna_dashboard import wsgi

    app = Guard(wsgi(storage), host=host, allow_writes=allow_writes)
    try:
        return make_server(host, port, app, server_class=_Server, handler_class=_Quiet)
    except (OSError, OverflowError, UnicodeError) as error:
        raise UsageError(
            f"dashboard: expected to listen on {host}:{port}, got: {error}; choose another --port"
        ) from error


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[WSGIRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Leave requests out of the terminal."""


def _refuse(start_response: StartResponse, status: str, text: str) -> list[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8"), ("X-Content-Type-Options", "nosniff")])
    return [text.encode()]
