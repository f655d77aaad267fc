"""What the dashboard shows of a study, over real HTTP and in a real browser."""

from __future__ import annotations

import contextlib
import io
import json
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.request import HTTPCookieProcessor, Request, build_opener
from xml.etree import ElementTree

import numpy as np
import optuna
import pytest
from markdown_it import MarkdownIt
from optuna_dashboard import save_note
from PIL import Image
from playwright.sync_api import Error as PlaywrightError

from hpsearch.dashboard import make_dashboard
from hpsearch.evidence import keep_comparison, keep_confirmation
from hpsearch.note import study_note, trial_note
from hpsearch.study import StudyPaths, open_storage
from tests.made_studies import HOSTILE, make_comparison, make_confirmation, make_study

if TYPE_CHECKING:
    from collections.abc import Iterator
    from http.client import HTTPResponse
    from pathlib import Path

    from playwright.sync_api import Browser, BrowserContext, Page

_LABELS = (HOSTILE, "긍정")
_REPORT = "<!DOCTYPE html><title>report</title><p>한글</p><script>document.title = 'ran'</script>"


@dataclass(frozen=True)
class _Site:
    """A served dashboard, with a browser without a window that was let in."""

    url: str
    storage: optuna.storages.BaseStorage
    storage_url: str
    open: Any

    def ask(self, path: str, method: str = "GET", body: bytes | None = None) -> HTTPResponse:
        address = self.url.partition("/?")[0] + path
        answer: HTTPResponse = self.open(Request(address, body, {"Content-Type": "application/json"}, method=method))
        return answer

    def detail(self, study_id: int) -> dict[str, Any]:
        document: dict[str, Any] = json.load(self.ask(f"/api/studies/{study_id}"))
        return document


@contextlib.contextmanager
def _served(folder: Path, **settings: Any) -> Iterator[_Site]:
    """Serve three studies: with hostile labels and a report, of Optuna's own, and of hpsearch without trials."""
    url = f"sqlite:///{folder}/studies.db"
    storage = open_storage(url, create=True)
    make_study(storage, "영화평", labels=_LABELS)
    report = StudyPaths.of(url, "영화평").report
    report.parent.mkdir()
    report.write_text(_REPORT, encoding="utf-8")
    foreign = optuna.create_study(storage=storage, study_name="../foreign <b>", direction="maximize")
    foreign.add_trial(
        optuna.trial.create_trial(value=0.5, intermediate_values={1: 0.5}, user_attrs={"confusion": "none"})
    )
    server = make_dashboard(storage, url, host="127.0.0.1", port=0, **settings)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield _Site(server.url, storage, url, build_opener(HTTPCookieProcessor()).open)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        storage._backend.engine.dispose()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Site]:
    with _served(tmp_path_factory.mktemp("site")) as site:
        site.open(site.url).close()
        yield site


@pytest.fixture
def writable(tmp_path: Path) -> Iterator[_Site]:
    with _served(tmp_path, allow_writes=True) as site:
        site.open(site.url).close()
        yield site


# --- Artifacts --------------------------------------------------------------------------------------------------------


def test_each_trial_has_its_pictures(site: _Site) -> None:
    detail = site.detail(1)
    names = {trial["number"]: [artifact["filename"] for artifact in trial["artifacts"]] for trial in detail["trials"]}
    curve, confusion = "trial-{:04d}-learning-curve.svg", "trial-{:04d}-confusion-matrix.svg"
    assert names == {
        0: [curve.format(0), confusion.format(0)],
        1: [curve.format(1), confusion.format(1)],
        2: [curve.format(2)],
    }
    assert detail["best_trials"][0]["artifacts"] == detail["trials"][1]["artifacts"]


def test_a_picture_is_drawn_with_the_studys_own_words(site: _Site) -> None:
    trial = site.detail(1)["trials"][0]
    texts = []
    for artifact in trial["artifacts"]:
        answer = site.ask(f"/artifacts/1/{trial['trial_id']}/{artifact['artifact_id']}")
        assert answer.headers["Content-Type"] == "image/svg+xml; charset=utf-8"
        assert answer.headers["Content-Security-Policy"].startswith("sandbox; default-src 'none'")
        drawing = answer.read().decode()
        assert "<script" not in drawing
        texts.append("".join(ElementTree.fromstring(drawing).itertext()))
    assert "trial 0, complete: f1 by evaluation" in texts[0]
    assert "긍정" in texts[1]
    assert "87 %" in texts[1]  # 20 of 23


def test_a_running_trial_has_a_curve_as_soon_as_it_has_a_value(writable: _Site) -> None:
    trial = optuna.load_study(study_name="영화평", storage=writable.storage).ask()
    number = trial._trial_id

    def shown() -> list[dict[str, Any]]:
        (entry,) = (each for each in writable.detail(1)["trials"] if each["trial_id"] == number)
        artifacts: list[dict[str, Any]] = entry["artifacts"]
        return artifacts

    assert shown() == []
    trial.report(0.5, 1)
    deadline = time.monotonic() + 20  # the stock server keeps a study's trials for 2 s
    while not (artifacts := shown()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert b"trial 3, running" in writable.ask(f"/artifacts/1/{number}/{artifacts[0]['artifact_id']}").read()


def test_the_report_is_an_artifact_of_the_study_and_cannot_run(site: _Site) -> None:
    detail = site.detail(1)
    (report,) = detail["artifacts"]
    assert report["filename"] == "report.html"
    answer = site.ask(f"/artifacts/1/{report['artifact_id']}")
    assert answer.read().decode() == _REPORT
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert answer.headers["Content-Security-Policy"].startswith("sandbox; default-src 'none'")
    assert f"](/artifacts/1/{report['artifact_id']})" in detail["note"]["body"]


@pytest.mark.parametrize(
    "path",
    [
        "/artifacts/1/3/cf-3",  # a pruned trial has no confusion matrix
        "/artifacts/1/99/c0-63",
        "/artifacts/9/1/c0-1",
        "/artifacts/1/1/c0-" + "f" * 20,
        "/artifacts/2/4/c0-4",
        "/artifacts/2/4/cf-4",
        "/artifacts/2/e0-2",
        "/artifacts/1/1/01234567-89ab-cdef-0123-456789abcdef",
    ],
)
def test_what_is_not_there_is_not_found(site: _Site, path: str) -> None:
    with pytest.raises(HTTPError, match="404"):
        site.ask(path)


def test_studies_of_others_are_shown_as_they_are(site: _Site) -> None:
    detail = site.detail(2)
    assert detail["name"] == "../foreign <b>"
    assert detail["artifacts"] == detail["trials"][0]["artifacts"] == []
    assert detail["note"] == detail["trials"][0]["note"] == {"version": 0, "body": ""}


def test_a_persons_own_notes_and_artifacts_are_kept_and_shown(writable: _Site, tmp_path: Path) -> None:
    study = optuna.load_study(study_name="영화평", storage=writable.storage)
    save_note(study, "my own")
    save_note(optuna.trial.Trial(study, study.trials[0]._trial_id), "mine, too")
    document = b'{"file": "data:text/plain;base64,aGVsbG8=", "filename": "hello.txt"}'
    number = json.load(writable.ask("/api/artifacts/1", "POST", document))["artifact_id"]
    detail = writable.detail(1)
    assert detail["note"]["body"] == "my own"
    assert detail["trials"][0]["note"]["body"] == "mine, too"
    assert [artifact["filename"] for artifact in detail["artifacts"]] == ["hello.txt", "report.html"]
    assert writable.ask(f"/artifacts/1/{number}").read() == b"hello"
    assert (tmp_path / ".artifacts" / number).read_bytes() == b"hello"
    writable.ask(f"/api/artifacts/1/{number}", "DELETE")
    assert [artifact["filename"] for artifact in writable.detail(1)["artifacts"]] == ["report.html"]


def test_what_is_made_from_the_study_is_neither_deleted_nor_copied(writable: _Site) -> None:
    for path in ("/api/artifacts/1/e0-1", "/api/artifacts/1/1/c0-1"):
        with pytest.raises(HTTPError, match="403"):
            writable.ask(path, "DELETE")
    writable.ask("/api/studies/1/rename", "POST", b'{"study_name": "renamed"}')
    study = optuna.load_study(study_name="renamed", storage=writable.storage)
    assert [key for trial in study.trials for key in trial.system_attrs if "artifacts" in key] == []
    assert writable.detail(study._study_id)["note"]["body"].startswith("## renamed")
    writable.ask(f"/api/studies/{study._study_id}", "DELETE")
    assert [each.study_name for each in optuna.get_all_study_summaries(writable.storage)] == ["../foreign <b>"]


# --- Notes ------------------------------------------------------------------------------------------------------------


def test_the_note_says_what_a_study_is_and_how_to_go_on() -> None:
    study = make_study(optuna.storages.InMemoryStorage())
    note = study_note(study)
    for words in (
        "the highest F1 on the validation rows, by tuning `learning_rate`, `lr_scheduler_type`",
        "**Data**: `rows.csv`, fingerprint `0123456789abcdef`",
        "**Model**: `encoder`",
        "3 of 3 trials, 1 of them pruned.",
        "**Best**: trial 1 with 0.8750; the defaults have 0.7500.",
        "`hpsearch compare` measures it on the sealed test rows",
        "**Trial 0** is the defaults",
        "(pruner `median`)",
        "hpsearch run --study toy --trials N\n",
        "hpsearch report --study toy\n",
    ):
        assert words in note
    keep_confirmation(study, make_confirmation(winner=0))
    keep_comparison(study, make_comparison(study))
    note = study_note(study, report="/artifacts/1/e0-1")
    assert "on 2 fresh seeds: the defaults are first, with a mean of 0.7600" in note
    assert "**On 1,234 test rows**, with trial 1: tuning helped" in MarkdownIt().render(note).replace(
        "<strong>", "**"
    ).replace("</strong>", "**")
    assert "[Open the report](/artifacts/1/e0-1)" in note
    assert "hpsearch report" not in note


def test_a_study_without_a_finished_trial_has_a_note() -> None:
    note = study_note(make_study(optuna.storages.InMemoryStorage(), gains=()))
    assert "0 of 3 trials, 0 of them pruned.\n\n### How" in note
    assert "2 of 3 trials, 2 of them pruned.\n\n### How" in study_note(
        make_study(optuna.storages.InMemoryStorage(), gains=(None, None))
    )


def test_nothing_in_a_name_is_markdown_or_html_in_a_note() -> None:
    study = make_study(optuna.storages.InMemoryStorage(), train=f"/home/{HOSTILE.replace('/', '')}")
    html = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(study_note(study))
    assert "<script" not in html
    assert "<img" not in html
    assert "<hr" not in html
    assert "a | b `c` &lt;script&gt;" in html


def test_a_trials_note_has_its_role_its_failure_and_its_pictures() -> None:
    note = trial_note(
        {"role": "defaults", "failure": f"ValueError: {HOSTILE}"}, {"learning curve": "/artifacts/1/2/c0-2"}
    )
    html = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(note)
    assert html.startswith("<p>The <strong>defaults</strong>:")
    assert "It <strong>failed</strong>: ValueError: a | b `c` &lt;script&gt;" in html
    assert html.count("<img") == 1
    assert '<img src="/artifacts/1/2/c0-2" alt="learning curve" />' in html
    assert trial_note({}, {}) == ""


# --- In a browser -----------------------------------------------------------------------------------------------------


class _Visit:
    """A page, and what went wrong or out while it was looked at."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.origin = url.partition("/?")[0]
        self.complaints: list[str] = []
        page.on(
            "console", lambda message: message.type in ("error", "warning") and self.complaints.append(message.text)
        )
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("requestfailed", self._failed)
        page.on("request", lambda request: request.url.startswith(self.origin) or self.complaints.append(request.url))
        page.on(
            "response", lambda answer: answer.status >= 400 and self.complaints.append(f"{answer.status} {answer.url}")
        )

    def _failed(self, request: Any) -> None:
        if "ERR_ABORTED" not in request.failure:  # the page was left in the meantime
            self.complaints.append(f"{request.failure}: {request.url}")

    def go(self, path: str) -> None:
        self.page.goto(self.origin + path)
        self.page.wait_for_load_state("networkidle")


@pytest.fixture(scope="module")
def entered(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[BrowserContext, str]]:
    """A browser that has come in by the printed URL, and that URL."""
    with _served(tmp_path_factory.mktemp("seen")) as site, contextlib.closing(browser.new_context()) as context:
        page = context.new_page()
        page.goto(site.url)
        assert "token" not in page.url
        page.get_by_text("영화평").wait_for()
        page.close()
        yield context, site.url


@pytest.fixture
def visit(entered: tuple[BrowserContext, str]) -> Iterator[_Visit]:
    context, url = entered
    with contextlib.closing(context.new_page()) as page:
        yield _Visit(page, url)


def _wait_for_ink(page: Page, selector: str, share: float) -> None:
    """Wait until that share of an element's pixels differs from the colour of its corner."""
    deadline = time.monotonic() + 20
    inked = 0.0
    while inked < share:
        assert time.monotonic() < deadline, f"{selector}: {inked:.2%} of the pixels are drawn on"
        with contextlib.suppress(PlaywrightError):  # the page puts another element in its place now and then
            picture = Image.open(io.BytesIO(page.locator(selector).first.screenshot(timeout=5_000)))
            pixels = np.asarray(picture.convert("RGB"))
            inked = float((pixels != pixels[0, 0]).any(axis=-1).mean())


def test_the_pages_work_in_a_browser_and_nothing_leaves_the_machine(visit: _Visit) -> None:
    page = visit.page
    visit.go("/dashboard")
    page.get_by_text("영화평").wait_for()
    assert page.get_by_text("../foreign <b>").is_visible()
    assert page.evaluate("document.cookie") == ""  # out of reach of scripts

    visit.go("/dashboard/studies/1")
    # The history, importances, the timeline and intermediate values.
    page.wait_for_function("document.querySelectorAll('.js-plotly-plot .main-svg').length >= 4")
    _wait_for_ink(page, ".js-plotly-plot", 0.005)

    visit.go("/dashboard/studies/1/note")
    page.get_by_role("heading", name="How to read it").wait_for()
    assert page.get_by_role("link", name="Open the report").is_visible()

    visit.go("/dashboard/studies/1/trials?numbers=0")
    page.locator("img[alt='confusion matrix']").wait_for()
    for title in ("learning curve", "confusion matrix"):
        _wait_for_ink(page, f"img[alt='{title}']", 0.01)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert visit.complaints == []


def test_a_note_that_cannot_be_saved_changes_nothing(visit: _Visit) -> None:
    page = visit.page
    visit.go("/dashboard/studies/1/note")
    page.get_by_role("heading", name="How to read it").wait_for()
    status = page.evaluate(
        "fetch('/api/studies/1/note', {method: 'PUT', headers: {'Content-Type': 'application/json'},"
        " body: JSON.stringify({body: 'x', version: 1})}).then(answer => answer.status)"
    )
    assert status == 405
    visit.go("/dashboard/studies/1/note")
    page.get_by_role("heading", name="How to read it").wait_for()


def test_a_report_with_a_script_does_not_run(visit: _Visit) -> None:
    page = visit.page
    page.goto(f"{visit.origin}/artifacts/1/e0-1")
    assert page.title() == "report"
    assert page.inner_text("p") == "한글"
    assert len(visit.complaints) == 1
    assert "Blocked script execution" in visit.complaints[0]


def test_a_link_on_another_page_leads_in(browser: Browser, tmp_path: Path) -> None:
    with _served(tmp_path) as site, contextlib.closing(browser.new_page()) as page:
        page.route("http://terminal.example/", lambda route: route.fulfill(body=f"<a href='{site.url}'>open</a>"))
        page.goto("http://terminal.example/")
        page.get_by_role("link").click()
        page.get_by_text("영화평").wait_for()


def test_the_refusal_fits_a_phone(browser: Browser, tmp_path: Path) -> None:
    size = {"width": 390, "height": 844}
    with _served(tmp_path) as site, contextlib.closing(browser.new_page(viewport=size)) as page:
        answer = page.goto(site.url.partition("?")[0] + "dashboard")
        assert answer is not None
        assert answer.status == 403
        assert "Open the URL that was printed" in page.inner_text("body")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
