"""The dashboard over real HTTP: what it answers, what it refuses, and that a refusal changes nothing."""

from __future__ import annotations

import contextlib
import http.client
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import optuna
import pytest

from hpsearch.dashboard import Guard, make_dashboard
from hpsearch.errors import UsageError
from hpsearch.study import open_storage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from email.message import Message
    from pathlib import Path

_JSON = ("Content-Type", "application/json")
_WRITES = [
    pytest.param("DELETE", "/api/studies/1", b"", id="delete a study"),
    pytest.param("POST", "/api/studies", b'{"study_name": "new", "directions": ["maximize"]}', id="create a study"),
    pytest.param("POST", "/api/studies/1/rename", b'{"study_name": "new"}', id="rename a study"),
    pytest.param("PUT", "/api/studies/1/note", b'{"body": "note", "version": 1}', id="note on a study"),
    pytest.param("POST", "/api/trials/1/user-attrs", b'{"user_attrs": {"a": 1}}', id="attribute of a trial"),
    pytest.param("OPTIONS", "/api/studies", b"", id="preflight"),
]


@dataclass(frozen=True)
class _Reply:
    status: int
    headers: Message
    body: bytes


@dataclass(frozen=True)
class _Site:
    """A served dashboard."""

    port: int
    database: Path

    @property
    def storage_url(self) -> str:
        return f"sqlite:///{self.database}"

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def ask(
        self, path: str, *headers: tuple[str, str], method: str = "GET", host: str | None = "", body: bytes = b""
    ) -> _Reply:
        """Send a request with exactly these headers, and with a Host header unless `host` is None."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            if host is not None:
                connection.putheader("Host", host or self.host)
            for name, value in (*headers, ("Content-Length", str(len(body)))):
                connection.putheader(name, value)
            connection.endheaders(body)
            reply = connection.getresponse()
            return _Reply(reply.status, reply.headers, reply.read())

    def content(self) -> list[str]:
        """Return everything the database holds, as SQL."""
        with contextlib.closing(sqlite3.connect(self.database)) as connection:
            return list(connection.iterdump())

    def query(self, sql: str) -> list[Any]:
        with contextlib.closing(sqlite3.connect(self.database)) as connection:
            return connection.execute(sql).fetchall()


@contextlib.contextmanager
def _opened(url: str, *, create: bool = False) -> Iterator[optuna.storages.BaseStorage]:
    storage = open_storage(url, create=create)
    try:
        yield storage
    finally:
        storage._backend.engine.dispose()  # type: ignore[attr-defined]


@contextlib.contextmanager
def _served(folder: Path, **settings: Any) -> Iterator[_Site]:
    """Serve a new study of three trials."""
    database = folder / "studies.db"
    with _opened(f"sqlite:///{database}", create=True) as storage:
        study = optuna.create_study(storage=storage, study_name="reviews", direction="maximize")
        study.optimize(lambda trial: trial.suggest_float("learning_rate", 1e-5, 1e-3, log=True), n_trials=3)
        server = make_dashboard(storage, host="127.0.0.1", port=0, **settings)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield _Site(server.server_port, database)
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Site]:
    with _served(tmp_path_factory.mktemp("site")) as site:
        yield site


@pytest.fixture
def writable(tmp_path: Path) -> Iterator[_Site]:
    with _served(tmp_path, allow_writes=True) as site:
        yield site


# --- What is answered -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/dashboard", "/dashboard/studies/1", "/api/meta", "/api/studies", "/api/studies/1"])
def test_pages_and_studies_are_answered(site: _Site, path: str) -> None:
    reply = site.ask(path)
    assert reply.status == 200
    assert reply.body


def test_the_studies_are_those_of_the_storage(site: _Site) -> None:
    reply = site.ask("/api/studies")
    assert b'"reviews"' in reply.body
    assert reply.headers["Content-Type"].startswith("application/json")


@pytest.mark.parametrize("path", ["/static/bundle.js", "/favicon.ico"])
@pytest.mark.parametrize("headers", [(), (("Accept-Encoding", "gzip"),)], ids=["plain", "gzip"])
def test_static_files_are_answered_with_and_without_accept_encoding(
    site: _Site, path: str, headers: tuple[tuple[str, str], ...]
) -> None:
    reply = site.ask(path, *headers)
    assert reply.status == 200
    assert len(reply.body) > 100


@pytest.mark.parametrize("path", ["/static/../../pyproject.toml", "/static/%2e%2e/__init__.py", "/nothing/here"])
def test_nothing_outside_the_static_files_is_answered(site: _Site, path: str) -> None:
    assert site.ask(path).status in (403, 404)


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST", "127.0.0.1", "127.1.2.3", "[::1]"])
@pytest.mark.parametrize("with_port", [True, False], ids=["port", "no port"])
def test_names_of_this_machine_are_answered(site: _Site, name: str, *, with_port: bool) -> None:
    assert site.ask("/api/studies", host=f"{name}:{site.port}" if with_port else name).status == 200


def test_a_page_of_the_dashboard_itself_is_answered(site: _Site) -> None:
    assert site.ask("/api/studies", ("Origin", f"http://{site.host}")).status == 200


def test_head_is_answered_without_a_body(site: _Site) -> None:
    reply = site.ask("/dashboard", method="HEAD")
    assert (reply.status, reply.body) == (200, b"")


@pytest.mark.parametrize("path", ["/dashboard", "/api/studies", "/static/bundle.js", "/nothing/here"])
def test_answers_carry_the_headers_that_keep_other_pages_out(site: _Site, path: str) -> None:
    headers = site.ask(path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["Access-Control-Allow-Origin"] is None


def test_a_permission_for_other_pages_is_taken_out_of_an_answer() -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("access-control-ALLOW-origin", "*"), ("X-Other", "kept")])
        return [b"answer"]

    sent: list[Any] = []
    environ = {"HTTP_HOST": "localhost", "REQUEST_METHOD": "GET"}
    body = Guard(app, host="127.0.0.1", allow_writes=False)(environ, lambda *reply: sent.extend(reply))  # type: ignore[arg-type]
    assert list(body) == [b"answer"]
    assert sent[0] == "200 OK"
    names = [name.lower() for name, _ in sent[1]]
    assert "x-other" in names
    assert "access-control-allow-origin" not in names


# --- What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8080",
        "localhost.evil.example",
        "127.0.0.1.nip.io",
        "0.0.0.0",
        "2130706433",
        "0x7f.1",
        "localhost.",
        " ",
        "127.0.0.1@evil",
        "evil@127.0.0.1",
        ":8080",
        "[::1",
        "[evil]",
        "192.168.0.1",
        "[2001:db8::1]",
        "127.0.0.1, evil.example",
        "ⓛocalhost".encode().decode("latin-1"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_another_machines_name_is_refused(site: _Site, host: str, method: str) -> None:
    before = site.content()
    reply = site.ask("/api/studies/1", method=method, host=host)
    assert reply.status == 421
    assert b"reviews" not in reply.body
    assert site.content() == before


def test_a_request_without_a_host_is_refused(site: _Site) -> None:
    assert site.ask("/api/studies", host=None).status == 421


def test_a_forwarded_name_counts_for_nothing(site: _Site) -> None:
    forwarded = (("X-Forwarded-Host", "localhost"), ("Forwarded", "host=localhost"))
    assert site.ask("/api/studies", *forwarded, host="evil.example").status == 421


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://127.0.0.1:1", "https://{host}", "http://{host}/", "http://localhost", ""],
)
@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_a_request_of_another_page_is_refused(site: _Site, origin: str, method: str) -> None:
    before = site.content()
    reply = site.ask("/api/studies/1", ("Origin", origin.format(host=site.host)), method=method)
    assert reply.status == 403
    assert site.content() == before


@pytest.mark.parametrize(("method", "path", "body"), _WRITES)
def test_writes_are_refused_and_change_nothing(site: _Site, method: str, path: str, body: bytes) -> None:
    before = site.content()
    for origin in ((), (("Origin", f"http://{site.host}"),)):
        reply = site.ask(path, _JSON, *origin, method=method, body=body)
        assert reply.status == 405
        assert b"--allow-writes" in reply.body
    assert site.content() == before


# --- With --allow-writes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_origin", [True, False], ids=["from the page", "from a program"])
def test_allowed_writes_reach_the_storage(writable: _Site, *, with_origin: bool) -> None:
    origin = (("Origin", f"http://{writable.host}"),) if with_origin else ()
    assert writable.ask("/api/studies/1", *origin, method="DELETE").status == 204
    assert writable.query("SELECT * FROM studies") == []


def test_allowed_writes_are_still_refused_to_other_pages(writable: _Site) -> None:
    before = writable.content()
    for origin in ("http://evil.example", "null", f"http://127.0.0.1:{writable.port + 1}"):
        assert writable.ask("/api/studies/1", ("Origin", origin), method="DELETE").status == 403
    own = ("Origin", "http://evil.example")  # a name that was pointed at this machine: its pages are their own origin
    assert writable.ask("/api/studies/1", own, method="DELETE", host="evil.example").status == 421
    assert writable.content() == before


# --- While a search is running ----------------------------------------------------------------------------------------

_SEARCH = """
import sys, optuna
from hpsearch.study import open_storage
study = optuna.load_study(study_name="reviews", storage=open_storage(sys.argv[1], create=False))
def objective(trial):
    value = trial.suggest_float("learning_rate", 1e-5, 1e-3, log=True)
    trial.report(value, step=1)
    return value
study.optimize(objective, n_trials=30)
"""


def test_pages_are_answered_while_a_search_writes(site: _Site) -> None:
    states = "SELECT state FROM trials WHERE study_id = 1"
    n_before = len(site.query(states))
    search = subprocess.Popen([sys.executable, "-c", _SEARCH, site.storage_url], stderr=subprocess.PIPE, text=True)
    n_answers = 0
    while search.poll() is None:
        assert site.ask("/api/studies").status == 200
        assert site.ask("/api/studies/1").status == 200
        n_answers += 1
    _, errors = search.communicate()
    assert search.returncode == 0, errors
    assert n_answers > 1
    trials = site.query(states)
    assert trials == [("COMPLETE",)] * (n_before + 30)
    deadline = time.monotonic() + 20  # the stock server keeps a study's trials for 2 s
    while (n_shown := site.ask("/api/studies/1").body.count(b'"trial_id"')) < len(trials):
        assert time.monotonic() < deadline, f"{n_shown} of {len(trials)} trials are shown"
        time.sleep(0.2)


# --- Where it listens -------------------------------------------------------------------------------------------------


def test_a_taken_port_is_named(site: _Site) -> None:
    with (
        _opened(site.storage_url) as storage,
        pytest.raises(UsageError, match=rf"listen on 127\.0\.0\.1:{site.port}, got: .*; choose another --port"),
    ):
        make_dashboard(storage, host="127.0.0.1", port=site.port)


def test_an_ipv6_address_is_listened_on(site: _Site) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    with _opened(site.storage_url) as storage:
        server = make_dashboard(storage, host="::1", port=0)
        server.server_close()
    assert server.server_address[0] == "::1"
