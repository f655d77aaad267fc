"""The dashboard over real HTTP: whom it answers, what it refuses, and that a refusal changes nothing."""

from __future__ import annotations

import contextlib
import http.client
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import optuna
import pytest

from hpsearch.dashboard import make_dashboard
from hpsearch.errors import UsageError
from hpsearch.study import open_storage
from tests.made_studies import make_study

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
    pytest.param("POST", "/api/artifacts/1", b'{"file": "data:,x", "filename": "x.html"}', id="artifact of a study"),
    pytest.param("POST", "/incompatible-rdb-schema", b"", id="upgrade the schema, without a body"),
    pytest.param("OPTIONS", "/api/studies", b"", id="preflight"),
]


@dataclass(frozen=True)
class _Reply:
    status: int
    headers: Message
    body: bytes


@dataclass
class _Site:
    """A served dashboard, and what a browser that was let in knows."""

    url: str
    database: Path
    announced: list[str] = field(default_factory=list)
    cookie: str = ""

    @property
    def storage_url(self) -> str:
        return f"sqlite:///{self.database}"

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 0

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def path(self, url: str) -> str:
        """Return a URL's path with its query."""
        return f"/?{urlsplit(url).query}"

    def ask(
        self,
        path: str,
        *headers: tuple[str, str],
        method: str = "GET",
        host: str | None = "",
        body: bytes = b"",
        cookie: str | None = None,
    ) -> _Reply:
        """Send a request with exactly these headers, with a Host header unless `host` is None, and with the cookie."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            if host is not None:
                connection.putheader("Host", host or self.host)
            if shown := self.cookie if cookie is None else cookie:
                connection.putheader("Cookie", shown)
            if not any(name in ("Content-Length", "Transfer-Encoding") for name, _ in headers):
                connection.putheader("Content-Length", str(len(body)))
            for name, value in headers:
                connection.putheader(name, value)
            connection.endheaders(body)
            reply = connection.getresponse()
            return _Reply(reply.status, reply.headers, reply.read())

    def let_in(self) -> None:
        """Exchange the token of the printed URL."""
        self.cookie = self.ask(self.path(self.url)).headers["Set-Cookie"].partition(";")[0]

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


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a database of two studies: one of Optuna's own, and one of hpsearch's."""
    database = tmp_path_factory.mktemp("studies") / "studies.db"
    with _opened(f"sqlite:///{database}", create=True) as storage:
        study = optuna.create_study(storage=storage, study_name="reviews", direction="maximize")
        study.optimize(lambda trial: trial.suggest_float("learning_rate", 1e-5, 1e-3, log=True), n_trials=3)
        make_study(storage)
    return database


@contextlib.contextmanager
def _served(studies: Path, folder: Path, *, listen: str = "127.0.0.1", **settings: Any) -> Iterator[_Site]:
    """Serve a copy of the studies."""
    database = folder / "studies.db"
    shutil.copy(studies, database)
    announced: list[str] = []
    with _opened(f"sqlite:///{database}") as storage:
        server = make_dashboard(
            storage, f"sqlite:///{database}", host=listen, port=0, announce=announced.append, **settings
        )
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield _Site(server.url, database, announced)
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


@pytest.fixture(scope="module")
def site(studies: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Site]:
    with _served(studies, tmp_path_factory.mktemp("site")) as site:
        site.let_in()
        yield site


@pytest.fixture(scope="module")
def strangers(studies: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Site]:
    with _served(studies, tmp_path_factory.mktemp("writable"), allow_writes=True) as site:
        yield site


@pytest.fixture
def writable(studies: Path, tmp_path: Path) -> Iterator[_Site]:
    with _served(studies, tmp_path, allow_writes=True) as site:
        site.let_in()
        yield site


@pytest.fixture
def locked(studies: Path, tmp_path: Path) -> Iterator[_Site]:
    """A dashboard that has let nobody in yet."""
    with _served(studies, tmp_path) as site:
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


def test_an_artifact_carries_no_permission_for_other_pages_and_cannot_run(site: _Site, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("<script>alert(1)</script>", encoding="utf-8")
    folder = site.database.parent / ".artifacts"
    folder.mkdir(exist_ok=True)
    with _opened(site.storage_url) as storage:
        study = optuna.load_study(study_name="reviews", storage=storage)
        store = optuna.artifacts.FileSystemArtifactStore(folder)
        number = optuna.artifacts.upload_artifact(artifact_store=store, file_path=str(path), study_or_trial=study)
    reply = site.ask(f"/artifacts/1/{number}")
    assert reply.body == path.read_bytes()
    assert reply.headers["Content-Type"] == "text/html"
    assert reply.headers["Access-Control-Allow-Origin"] is None
    policy = reply.headers["Content-Security-Policy"]
    assert policy.startswith("sandbox; default-src 'none'")
    assert "script-src" not in policy


def test_reading_everything_changes_nothing(site: _Site) -> None:
    before = site.content()
    paths = [f"/api/studies/{n}{rest}" for n in (1, 2) for rest in ("", "?after=2", "/param_importances")]
    for path in ("/", "/dashboard", "/api/meta", "/api/studies", "/csv/1", "/incompatible-rdb-schema", *paths):
        assert site.ask(path).status in (200, 302), path
    assert site.content() == before


# --- Who is let in ----------------------------------------------------------------------------------------------------


def test_the_printed_url_gives_a_cookie_once_and_leads_away_from_the_token(locked: _Site) -> None:
    token = locked.url.partition("token=")[2]
    assert len(token) >= 43  # 32 bytes in base 64
    reply = locked.ask(locked.path(locked.url))
    assert (reply.status, reply.headers["Location"]) == (303, "/dashboard")
    name, _, rest = reply.headers["Set-Cookie"].partition("=")
    secret, *attributes = rest.split("; ")
    assert name == f"hpsearch-{locked.port}"
    assert attributes == ["Path=/", "HttpOnly", "SameSite=Strict"]
    assert len(secret) >= 43
    assert secret != token
    assert locked.ask("/api/studies", cookie=f"{name}={secret}").status == 200

    again = locked.ask(locked.path(locked.url))
    assert again.status == 403
    assert again.headers["Set-Cookie"] is None
    assert again.body == b"This URL is used up; open the one that was printed last."
    assert locked.ask(locked.path(locked.url), cookie=f"{name}={secret}").status == 302  # its own old URL


def test_another_browser_has_a_url_of_its_own(locked: _Site) -> None:
    assert locked.announced == []
    locked.let_in()
    (second,) = locked.announced
    assert second != locked.url
    assert locked.ask(locked.path(second), cookie="other=1").status == 303
    assert len(locked.announced) == 2


@pytest.mark.parametrize("path", ["/", "/dashboard", "/api/studies", "/api/studies/2", "/static/bundle.js", "/csv/1"])
def test_a_stranger_is_told_where_the_url_is(site: _Site, path: str) -> None:
    reply = site.ask(path, cookie="other=1")
    assert reply.status == 403
    assert reply.body == b"Open the URL that was printed where `hpsearch dashboard` was started."
    assert reply.headers["Content-Type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize(
    "cookie",
    ["{name}=", "{name}={secret}x", "{name}x={secret}", "{secret}", "{name}=ë{secret}", "hpsearch-1={secret}", ";;=;"],
)
def test_a_cookie_that_is_not_the_one_is_a_strangers(site: _Site, cookie: str) -> None:
    name, _, secret = site.cookie.partition("=")
    assert site.ask("/api/studies", cookie=cookie.format(name=name, secret=secret)).status == 403


def test_the_cookie_is_found_among_those_of_other_servers(site: _Site) -> None:
    assert site.ask("/api/studies", cookie=f'broken="a, [b]; {site.cookie}; =; last=1').status == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/?token=wrong"),
        ("GET", "/?token="),
        ("GET", "/?token=%FF%ED"),
        ("GET", "/dashboard?token={token}"),
        ("HEAD", "/?token={token}"),
        ("POST", "/?token={token}"),
    ],
)
def test_nothing_but_the_printed_url_takes_the_token(locked: _Site, method: str, path: str) -> None:
    token = locked.url.partition("token=")[2]
    reply = locked.ask(path.format(token=token), method=method)
    assert reply.status == 403
    assert reply.headers["Set-Cookie"] is None
    locked.let_in()  # the token has not been used up
    assert locked.ask("/api/studies").status == 200


def test_another_page_cannot_use_the_token(locked: _Site) -> None:
    for headers in ((("Origin", "null"),), (("Sec-Fetch-Site", "same-site"), ("Sec-Fetch-Mode", "no-cors"))):
        assert locked.ask(locked.path(locked.url), *headers).status == 403
    assert locked.ask(locked.path(locked.url), host="evil.example").status == 421
    assert locked.announced == []


def test_nothing_is_written_about_requests(locked: _Site, capfd: pytest.CaptureFixture[str]) -> None:
    locked.let_in()
    assert locked.ask("/dashboard").status == 200
    with socket.create_connection(("127.0.0.1", locked.port)) as connection:
        connection.sendall(b"GET /")  # and breaks off
    assert capfd.readouterr() == ("", "")


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


@pytest.mark.parametrize(
    ("site_of_asker", "mode", "dest", "status"),
    [
        ("none", "navigate", "document", 200),
        ("same-origin", "cors", "empty", 200),
        ("cross-site", "navigate", "document", 200),  # a link that a person follows
        ("cross-site", "cors", "empty", 403),
        ("cross-site", "no-cors", "image", 403),
        ("cross-site", "navigate", "iframe", 403),
        ("same-site", "no-cors", "script", 403),  # a page on another port of this machine
        ("same-site", "cors", "empty", 403),
        ("something new", "cors", "empty", 403),
    ],
)
def test_what_a_browser_says_of_the_asker_counts(
    site: _Site, site_of_asker: str, mode: str, dest: str, status: int
) -> None:
    headers = (("Sec-Fetch-Site", site_of_asker), ("Sec-Fetch-Mode", mode), ("Sec-Fetch-Dest", dest))
    assert site.ask("/api/studies", *headers).status == status


def test_no_link_changes_anything(writable: _Site) -> None:
    before = writable.content()
    opened = (("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "document"))
    for method in ("POST", "DELETE"):
        assert writable.ask("/api/studies/1", *opened, method=method).status == 403
    assert writable.content() == before


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (("Content-Length", str(8 * 2**20 + 1)), 413),
        (("Content-Length", "9" * 5000), 413),
        (("Content-Length", "-1"), 411),
        (("Content-Length", "some"), 411),
        (("Transfer-Encoding", "chunked"), 411),
    ],
)
def test_bodies_have_an_end(writable: _Site, header: tuple[str, str], status: int) -> None:
    before = writable.content()
    assert writable.ask("/api/studies", _JSON, header, method="POST").status == status
    assert writable.content() == before


@pytest.mark.parametrize(("method", "path", "body"), _WRITES)
def test_writes_by_a_stranger_are_refused_even_where_writes_are_allowed(
    strangers: _Site, method: str, path: str, body: bytes
) -> None:
    before = strangers.content()
    assert strangers.ask(path, _JSON, method=method, body=body, cookie="other=1").status == 403
    assert strangers.content() == before


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
    assert writable.query("SELECT study_name FROM studies") == [("toy",)]


def test_a_note_and_a_name_are_changed_where_writes_are_allowed(writable: _Site) -> None:
    note = b'{"body": "my own", "version": 1}'
    assert writable.ask("/api/studies/2/note", _JSON, method="PUT", body=note).status == 204
    assert writable.ask("/api/studies/1/rename", _JSON, method="POST", body=b'{"study_name": "new"}').status == 201
    assert {name for (name,) in writable.query("SELECT study_name FROM studies")} == {"toy", "new"}
    assert b"my own" in writable.ask("/api/studies/2").body


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
        make_dashboard(storage, site.storage_url, host="127.0.0.1", port=site.port)


def test_an_ipv6_address_is_listened_on(site: _Site) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    with _opened(site.storage_url) as storage:
        server = make_dashboard(storage, site.storage_url, host="::1", port=0)
        server.server_close()
    assert server.server_address[0] == "::1"
    assert server.url.startswith(f"http://[::1]:{server.server_port}/?token=")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.0.1", "example.org", "0", "127.1", "localhost."])
def test_an_address_that_others_reach_needs_a_word(site: _Site, host: str) -> None:
    with (
        _opened(site.storage_url) as storage,
        pytest.raises(UsageError, match=r"expected --host to be this machine only .*--expose"),
    ):
        make_dashboard(storage, site.storage_url, host=host, port=0)


def test_an_exposed_dashboard_asks_for_the_token_too(studies: Path, tmp_path: Path) -> None:
    with _served(studies, tmp_path, listen="0.0.0.0", expose=True) as site:
        assert site.url.startswith(f"http://localhost:{site.port}/?token=")
        address = f"192.0.2.1:{site.port}"  # as another machine would name it
        assert site.ask("/api/studies", host=address).status == 403
        site.let_in()
        assert site.ask("/api/studies", host=address).status == 200
        assert site.ask("/api/studies", host=f"evil.example:{site.port}").status == 421
