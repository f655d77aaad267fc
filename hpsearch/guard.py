"""Who is answered by a page on this machine: only the browser that was given the printed URL.

The stock server of optuna-dashboard answers any page that the browser has open: it checks neither Host nor Origin,
takes a DELETE without a body, and lets every user of the machine in (read and tried in 0.21.0). A server on the
loopback address is no wall by itself: a page can point its own name at 127.0.0.1, a local page on another port counts
as the same site, and a machine can have many users.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

_SECRET_BYTES = 32
_LONGEST_BODY = 8 * 2**20  # bytes; the stock server keeps up to 128 MB of a body in memory
EVERY_ADDRESS = frozenset({"0.0.0.0", "::"})
_SAFE_METHODS = frozenset({"GET", "HEAD"})
_HEADERS = [
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
]
_NEVER = "base-uri 'none'; frame-ancestors 'none'"
_POLICY = f"default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; {_NEVER}"
"""The content policy of answers that bring none: of the stock server's, all but the page itself."""
_ARTIFACT_POLICY = (
    f"sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none'; {_NEVER}"
)
"""An artifact may be any file that someone has attached, such as a page with a script."""


class Guard:
    """A WSGI application that passes on only what a browser on this machine asks for itself.

    A browser comes with the token of the printed URL, once, and is given a cookie for it. Then a new URL is announced,
    so that another browser can be let in, and so that the terminal shows when one has come.
    """

    def __init__(
        self,
        app: WSGIApplication,
        *,
        host: str,
        allow_writes: bool,
        announce: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Wrap an application.

        Args:
            app: The application.
            host: Under which it is served; the names of this machine's loopback are its own anyway.
            allow_writes: Whether requests that change something are passed on.
            announce: Is given the path, with its token, of the next browser that comes.
        """
        self._app = app
        self._host = host
        self._allow_writes = allow_writes
        self._announce = announce
        self._lock = threading.Lock()
        self._cookie = secrets.token_urlsafe(_SECRET_BYTES)
        self._token = secrets.token_urlsafe(_SECRET_BYTES)

    @property
    def path(self) -> str:
        """Return the path that lets one browser in."""
        return f"/?token={self._token}"

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request, or refuse it."""
        start = _with_headers(environ, start_response)
        refusal = self._foreign(environ)
        if refusal is None and (token := _token_of(environ)):
            if self._take(token):
                return _lead_in(environ, start, self._cookie_header(environ))
            if not self._knows(environ):  # a browser that has been let in may open its old URL again
                refusal = ("403 Forbidden", "This URL is used up; open the one that was printed last.")
        refusal = refusal or self._stranger(environ) or self._unfit(environ)
        if refusal is not None:
            return _refuse(start, *refusal)
        environ.setdefault("HTTP_ACCEPT_ENCODING", "")  # without the header the stock server fails on its own files
        return self._app(environ, start)

    # --- What is refused: a status and a line that says why, or None --------------------------------------------------

    def _foreign(self, environ: WSGIEnvironment) -> tuple[str, str] | None:
        """Refuse what another page or another name asks for."""
        host, origin = environ.get("HTTP_HOST", ""), environ.get("HTTP_ORIGIN")
        if not self._is_own_name(host):
            return "421 Misdirected Request", f"This dashboard does not answer to {host!r}."
        if (origin is not None and origin != f"http://{host}") or _is_fetched_by_another_page(environ):
            return "403 Forbidden", "Requests of other pages are not answered."
        return None

    def _stranger(self, environ: WSGIEnvironment) -> tuple[str, str] | None:
        """Refuse a browser that was not let in."""
        if self._knows(environ):
            return None
        return "403 Forbidden", "Open the URL that was printed where `hpsearch dashboard` was started."

    def _unfit(self, environ: WSGIEnvironment) -> tuple[str, str] | None:
        """Refuse what would change something, unless that is allowed, and bodies without end."""
        if environ["REQUEST_METHOD"] not in _SAFE_METHODS and not self._allow_writes:
            return "405 Method Not Allowed", "Read-only: start it with --allow-writes to change studies."
        length = environ.get("CONTENT_LENGTH") or "0"
        if "HTTP_TRANSFER_ENCODING" in environ or not (length.isascii() and length.isdigit()):
            return "411 Length Required", "Send a body with its length."
        if len(length) > len(str(_LONGEST_BODY)) or int(length) > _LONGEST_BODY:
            return "413 Content Too Large", f"Send at most {_LONGEST_BODY:,} bytes."
        return None

    def _is_own_name(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if "@" in host or not name:
            return False
        if name in ("localhost", self._host):
            return True
        # Who listens on every address is reached under any of them; a page that re-points its own name needs a name.
        return is_loopback(name) or (self._host in EVERY_ADDRESS and _is_address(name))

    # --- Token and cookie ---------------------------------------------------------------------------------------------

    def _take(self, token: str) -> bool:
        """Exchange the token, once, and announce the next one."""
        with self._lock:
            if not _equal(token, self._token):
                return False
            self._token = secrets.token_urlsafe(_SECRET_BYTES)
        self._announce(self.path)
        return True

    def _knows(self, environ: WSGIEnvironment) -> bool:
        # Read by hand: `http.cookies` stops at the first cookie it cannot read, and those of all ports come together.
        pairs = (part.strip().partition("=") for part in environ.get("HTTP_COOKIE", "").split(";"))
        return any(name == _cookie_name(environ) and _equal(value, self._cookie) for name, _, value in pairs)

    def _cookie_header(self, environ: WSGIEnvironment) -> tuple[str, str]:
        return "Set-Cookie", f"{_cookie_name(environ)}={self._cookie}; Path=/; HttpOnly; SameSite=Strict"


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine and nothing else: `localhost` or a loopback address."""
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_fetched_by_another_page(environ: WSGIEnvironment) -> bool:
    """Tell whether a browser says that another page asks, unless a person follows a link from there.

    `same-site` is another page too: a site is a machine, on whatever port.
    """
    is_opened = (
        environ["REQUEST_METHOD"] == "GET"
        and environ.get("HTTP_SEC_FETCH_MODE") == "navigate"
        and environ.get("HTTP_SEC_FETCH_DEST") == "document"
    )
    return not _comes_by_itself(environ) and not is_opened


def _comes_by_itself(environ: WSGIEnvironment) -> bool:
    return environ.get("HTTP_SEC_FETCH_SITE", "none") in ("none", "same-origin")


def _token_of(environ: WSGIEnvironment) -> str | None:
    if environ["REQUEST_METHOD"] != "GET" or environ.get("PATH_INFO") != "/":
        return None
    tokens = parse_qs(environ.get("QUERY_STRING", "")).get("token")
    return tokens[0] if tokens else None


def _cookie_name(environ: WSGIEnvironment) -> str:
    return f"hpsearch-{environ['SERVER_PORT']}"  # a browser has one set of cookies for all ports of a machine


def _equal(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(errors="surrogateescape"), expected.encode())


def _with_headers(environ: WSGIEnvironment, start_response: StartResponse) -> StartResponse:
    """Return a `start_response` that adds what keeps other pages out, and drops what lets them in."""

    def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Callable[[bytes], object]:
        dropped = {"access-control-allow-origin", "content-security-policy"}
        kept = [(name, value) for name, value in headers if name.lower() not in dropped]
        policies = [value for name, value in headers if name.lower() == "content-security-policy"]
        if environ.get("PATH_INFO", "").startswith("/artifacts/"):
            policy = _ARTIFACT_POLICY
        else:
            policy = f"{policies[0]}; form-action 'self'; {_NEVER}" if policies else _POLICY
        return start_response(status, [*kept, *_HEADERS, ("Content-Security-Policy", policy)], *rest)

    return start


def _refuse(start_response: StartResponse, status: str, text: str) -> list[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-store")])
    return [text.encode()]


def _lead_in(environ: WSGIEnvironment, start_response: StartResponse, cookie: tuple[str, str]) -> list[bytes]:
    """Give a browser its cookie and lead it away from the URL with the token."""
    headers = [("Cache-Control", "no-store"), cookie]
    if _comes_by_itself(environ):
        start_response("303 See Other", [("Location", "/dashboard"), *headers])
        return []
    # Of a link on another page, such as a terminal in a browser, a redirect would still count as that page's request,
    # and a strict cookie is not sent with it (tried in Chromium 150). A page of our own goes on as our own.
    start_response("200 OK", [("Content-Type", "text/html; charset=utf-8"), *headers])
    return [b'<!DOCTYPE html><meta http-equiv="refresh" content="0; url=/dashboard"><title>hpsearch</title>']
