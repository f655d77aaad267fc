"""The report: what a browser makes of it, what stands in it for which study, and which files it may touch."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from click.testing import CliRunner
from optuna.trial import TrialState
from PIL import Image
from ruamel.yaml import YAML

from hpsearch import plots
from hpsearch.canvas import clean
from hpsearch.cli import cli
from hpsearch.config import build_config
from hpsearch.evidence import Flip, Slice, keep_comparison
from hpsearch.page import make_report, page_data, render
from hpsearch.sections import sections, verdict
from hpsearch.study import StudyPaths, open_storage
from tests.reviews_study import DEFAULTS, TREE, comparison, make_study, make_whole_study, trial, trials, write_flips

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from click.testing import Result
    from optuna.trial import FrozenTrial
    from playwright.sync_api import Browser, Page

    from hpsearch.content import PageData, Section

_HOSTILE = "<script>alert(1)</script>]]>\u202e\x00\"'&{{ 7*7 }}"
_HOSTILE_SHOWN = "&lt;script&gt;alert(1)&lt;/script&gt;]]&gt;\ufffd\ufffd&#34;&#39;&amp;{{ 7*7 }}"
_SECTIONS = [
    "seeds", "confirmation", "cost", "history", "curves", "parallel", "importances", "edges", "slices", "confusions",
    "flips", "protocol", "reproduce", "ended", "limits",
]  # fmt: skip
_PLOTS = [
    "seeds", "confirmation", "history", "curves", "parallel", "importances", "confusion-defaults", "confusion-tuned",
]  # fmt: skip
_FEWEST_COLOURS = 12  # of a plot: its background and one line have some for their edges alone


class _Elements(HTMLParser):
    """All elements of a page, each with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def values(self, attribute: str) -> list[str]:
        return [value for _, attrs in self.found if (value := attrs.get(attribute)) is not None]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the storage of `whole`."""
    return f"sqlite:///{tmp_path_factory.mktemp('whole')}/studies/hpsearch.db"


@pytest.fixture(scope="module")
def paths(url: str) -> StudyPaths:
    return StudyPaths.of(url, "reviews")


@pytest.fixture(scope="module")
def whole(url: str, paths: StudyPaths) -> optuna.Study:
    """Return a study with everything that can be known about it; a test leaves it as it is."""
    return make_whole_study(open_storage(url, create=True), paths)


@pytest.fixture(scope="module")
def text(whole: optuna.Study, paths: StudyPaths) -> str:
    """Return the page of `whole`."""
    return _page(page_data(whole, paths))


@pytest.fixture
def data_of(tmp_path: Path) -> Callable[..., PageData]:
    """Return a maker of what a page shows, from trials and a comparison."""

    def make(*made: FrozenTrial, compared: dict[str, Any] | None = None) -> PageData:
        paths = StudyPaths(tmp_path, "reviews")
        study = make_study(optuna.storages.InMemoryStorage(), paths, list(made))
        if compared is not None:
            keep_comparison(study, comparison(0, DEFAULTS, **compared))
        return page_data(study, paths)

    return make


def _page(data: PageData) -> str:
    return render(data, verdict(data), sections(data))


def _section(data: PageData, name: str) -> Section:
    return {section.name: section for section in sections(data)}[name]


def _names(data: PageData) -> list[str]:
    return [section.name for section in sections(data)]


def _invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments, prog_name="hpsearch")


# --- In a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the report of a study in which every name and text that comes from outside tries to break out."""
    url = f"sqlite:///{tmp_path_factory.mktemp('report')}/studies/hpsearch.db"
    paths = StudyPaths.of(url, "reviews")
    study = make_whole_study(
        open_storage(url, create=True),
        paths,
        tree={"model": {"name": _HOSTILE}},
        labels=(f"부정 {_HOSTILE}", "긍정"),
        verdict=f"no evidence that tuning helped: {_HOSTILE}",
        slices=(Slice(_HOSTILE, 10, 0.8, 0.81),),
        chosen_by=_HOSTILE,
    )
    study.add_trial(trial(TrialState.FAIL, failure=_HOSTILE))
    write_flips(paths, (Flip(_HOSTILE.replace("\x00", ""), "긍정", _HOSTILE[:30], 0.4, "긍정", 0.7),))
    return make_report(study, paths, paths.report, with_png=False).file


@pytest.fixture
def opened(hostile_file: Path, browser: Browser) -> Iterator[Callable[..., Page]]:
    """Return a function that opens the report, and check that it did nothing but be read."""
    pages, complaints, requests = [], [], []

    def open_(width: int = 1280, **options: Any) -> Page:
        page = browser.new_page(viewport={"width": width, "height": 900}, **options)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(hostile_file.as_uri())
        pages.append(page)
        return page

    yield open_
    for page in pages:
        page.close()
    assert complaints == []
    assert requests == [hostile_file.as_uri()] * len(pages)


@pytest.mark.parametrize(("width", "kinds"), [(1280, "wide any"), (390, "narrow any")], ids=["desk", "phone"])
def test_every_plot_is_drawn_and_nothing_overflows(opened: Callable[..., Page], width: int, kinds: str) -> None:
    page = opened(width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    shown = [drawing for drawing in page.locator(".drawing").all() if drawing.is_visible()]
    assert len(shown) == len(_PLOTS)
    for drawing in shown:
        assert set((drawing.get_attribute("class") or "").split()) & set(kinds.split())
        with Image.open(io.BytesIO(drawing.screenshot())) as image:
            colours = image.convert("RGB").getcolors(maxcolors=image.width * image.height)
        assert len(colours or []) >= _FEWEST_COLOURS
    page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def _luminance(colour: str) -> float:
    """Return a CSS colour's relative luminance, as WCAG 2.2 has it."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(opened: Callable[..., Page], scheme: str) -> None:
    page = opened(color_scheme=scheme)
    colours = page.evaluate("""() => {
        const style = (element, name) => getComputedStyle(element)[name];
        const texts = [...document.querySelectorAll("svg text")].map(text => style(text, "fill"));
        const others = ["h1", "figcaption", "caption", "td", ".remark", "nav a", ".mark"];
        return [style(document.documentElement, "backgroundColor"), [...new Set(texts)],
                others.map(name => style(document.querySelector(name), "color"))];
    }""")
    ground = _luminance(colours[0])
    assert (ground < 0.1) == (scheme == "dark")
    for colour in (*colours[1], *colours[2]):
        bright, dim = sorted((_luminance(colour), ground), reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= 4.5, colour


def test_hangul_in_a_plot_can_be_selected_and_paper_shows_the_wide_plots_in_ink(opened: Callable[..., Page]) -> None:
    page = opened(color_scheme="dark")
    selected = page.evaluate("""() => {
        getSelection().selectAllChildren(document.querySelector("#figure-confusion-tuned svg"));
        return getSelection().toString();
    }""")
    assert "긍정" in selected
    assert page.locator("#figure-confusion-tuned svg text[lang=ko]").count() == 4
    assert len(re.findall(rb"/Type\s*/Page\b", page.pdf(format="A4"))) > 2
    page.set_viewport_size({"width": 670, "height": 900})  # A4 without its margins
    page.emulate_media(media="print")
    assert page.locator("#figure-history .wide").is_visible()
    assert not page.locator("nav").is_visible()
    assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"


# --- What stands in it ------------------------------------------------------------------------------------------------


def test_what_comes_from_outside_is_text_and_nothing_else(hostile_file: Path) -> None:
    text = hostile_file.read_text(encoding="utf-8")
    elements = _Elements(text)
    assert not {"script", "link", "iframe", "object", "form", "base"} & {tag for tag, _ in elements.found}
    assert not [name for _, attrs in elements.found for name in attrs if name.startswith("on")]
    assert _HOSTILE_SHOWN in text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", text)
    outside = re.sub('xmlns="http://www.w3.org/2000/svg"', "", text)
    assert not re.search("https?://|@import", outside)


def test_sections_come_in_order_and_a_plot_has_title_description_and_data(text: str) -> None:
    assert re.findall(r'<section id="([\w-]+)"', text) == _SECTIONS
    assert text.index("No evidence that tuning helped</h1>") < text.index('<section id="seeds"')
    assert re.findall(r"<figure id=\"figure-([\w-]+)\"", text) == _PLOTS
    for figure in re.findall(r"<figure.*?</figure>", text, re.DOTALL):
        drawings = re.findall(r"<svg.*?</svg>", figure, re.DOTALL)
        assert drawings
        for drawing in drawings:
            assert re.search(r"<title id=[^>]*>[^<]+</title>\s*<desc id=[^>]*>[^<]+</desc>", drawing)
            assert 'role="img"' in drawing
        assert re.search(r"<details>.*<th [^>]*scope=\"col\".*<th [^>]*scope=\"row\".*</details>", figure, re.DOTALL)


def test_ids_are_unique_and_every_reference_leads_somewhere(text: str) -> None:
    elements = _Elements(text)
    ids = elements.values("id")
    assert len(set(ids)) == len(ids)
    links = {link.removeprefix("#") for link in elements.values("href")}
    links |= set(re.findall(r"url\(#([^)]+)\)", text))
    links |= {name for names in elements.values("aria-labelledby") for name in names.split()}
    assert links <= set(ids)


def test_korean_cells_are_marked_and_local_folders_left_out(text: str) -> None:
    assert re.search(r'<th [^>]*lang="ko"[^>]*>기대 없이', text)
    assert "secret-project" not in text
    assert "reviews.txt" in text
    assert "3f1c9a70be25d418" in text  # the data's fingerprint
    assert '<html lang="en">' in text


def test_the_configuration_on_the_page_is_the_studys_own(data_of: Callable[..., PageData]) -> None:
    tree = YAML(typ="safe").load(data_of(*trials(1)).config_yaml)
    assert tree["data"].pop("train") == "reviews.txt"
    tree["data"]["train"] = TREE["data"]["train"]
    assert build_config(tree, where="page") == build_config(TREE, where="reviews")


def test_the_same_study_gives_the_same_bytes(whole: optuna.Study, paths: StudyPaths, text: str) -> None:
    assert _page(page_data(whole, paths)) == text


@pytest.mark.parametrize(
    ("answer", "said", "mark"),
    [
        ("better", "tuning helped: f1 +2.00 points", "▲"),
        ("worse", "tuning hurt: f1 -2.00 points; keep the defaults", "▼"),
        ("no evidence", "no evidence that tuning helped: f1 +0.10 points", "◆"),
    ],
)
def test_the_verdict_is_said_by_word_and_shape(
    data_of: Callable[..., PageData], answer: str, said: str, mark: str
) -> None:
    data = data_of(*trials(2), compared={"answer": answer, "verdict": said, "looks": 3})
    headline, _, rest = said.partition(": ")
    head = render(data, verdict(data), [])  # without the sections, which take a second to draw
    assert re.search(rf'<h1 id="verdict">.*>{mark}</span> {headline.capitalize()}</h1>', head)
    assert rest[1:] in head
    assert "looked at 3 times" in head


def test_without_evidence_the_page_says_which_commands_add_it(data_of: Callable[..., PageData]) -> None:
    data = data_of(*trials())
    answer = verdict(data)
    assert answer.headline == "Not compared on the test rows yet"
    assert answer.commands == ("hpsearch compare --study reviews",)
    assert _section(data, "confirmation").commands == ("hpsearch confirm --study reviews",)
    assert _names(data) == [name for name in _SECTIONS if name not in {"seeds", "slices", "confusions", "flips"}]


def test_one_trial_makes_a_page_without_what_needs_more(data_of: Callable[..., PageData]) -> None:
    data = data_of(*trials(1))
    assert _names(data) == ["confirmation", "cost", "history", "curves", "edges", "protocol", "reproduce", "limits"]
    assert "Trial 0 is the only complete one" in _page(data)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        ([], "got 0 pruned and 0 failed"),
        ([trial(TrialState.PRUNED, value=0.5, curve={1: 0.5})], "got 1 pruned and 0 failed"),
        ([trial(TrialState.FAIL, failure="out of memory")], "got 0 pruned and 1 failed"),
    ],
    ids=["none", "only pruned", "only failed"],
)
def test_without_a_complete_trial_one_line_says_so(tmp_path: Path, made: list[FrozenTrial], expected: str) -> None:
    url = f"sqlite:///{tmp_path}/studies/hpsearch.db"
    paths = StudyPaths.of(url, "reviews")
    make_study(open_storage(url, create=True), paths, made)
    result = _invoke("report", "--storage", url)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: study 'reviews': expected a complete trial, ")
    assert expected in result.stderr
    assert result.stderr.count("\n") == 1
    assert not paths.report.exists()


def test_running_trials_and_values_that_are_no_numbers_are_no_obstacle(data_of: Callable[..., PageData]) -> None:
    data = data_of(
        *trials(6),
        trial(TrialState.RUNNING, curve={1: 0.5}),
        trial(TrialState.WAITING),
        trial(TrialState.PRUNED, curve={1: float("nan"), 2: float("inf")}),
        trial(TrialState.COMPLETE, value=0.0, curve={1: 0.0}),
    )
    text = _page(data)
    assert "1 below the scale, at its edge" in text  # the last one would flatten all others
    assert "1 running" in text


def test_of_very_many_trials_the_best_are_drawn_and_the_rest_thinned(data_of: Callable[..., PageData]) -> None:
    data = data_of(*trials(2))
    many = make_study(optuna.storages.InMemoryStorage(), StudyPaths(Path(), "reviews"), trials(500))
    data = replace(data, trials=tuple(many.get_trials(deepcopy=False)), best=many.best_trial)
    text = _page(data)
    assert re.search(r"1\d\d of \d\d\d lines are drawn", text)
    assert "300 more rows are left out here" in text
    assert len(text) < 2_000_000


def test_only_the_first_flips_are_shown_and_none_from_another_folder(
    tmp_path: Path, data_of: Callable[..., PageData]
) -> None:
    paths = StudyPaths(tmp_path, "reviews")
    paths.folder.mkdir()
    gained = [Flip(f"gained {i}", "긍정", "부정", 0.4, "긍정", 0.7) for i in range(60)]
    lost = [Flip(f"lost {i}", "긍정", "긍정", 0.7, "부정", 0.4) for i in range(10)]
    write_flips(paths, (*lost, *gained))
    flips = _section(data_of(*trials(2), compared={}), "flips")
    assert [row[0] for row in flips.tables[0].rows] == [
        *(f"lost {i}" for i in range(10)),
        *(f"gained {i}" for i in range(40)),
    ]
    assert "The first 50, of both kinds, are shown; the file is flips.csv" in flips.sentences[0]
    (paths.folder / "flips.csv").rename(tmp_path / "flips.csv")
    flips = _section(data_of(*trials(2), compared={"flips_file": "../flips.csv"}), "flips")
    assert flips.tables == ()
    assert "The file that lists them is not there." in flips.sentences[0]


def test_many_classes_are_a_table_and_no_picture(data_of: Callable[..., PageData]) -> None:
    labels = tuple(f"class {i}" for i in range(15))
    side = replace(comparison(0, DEFAULTS).default, confusion=((7,) * 15,) * 15)
    found = _section(data_of(*trials(2), compared={"labels": labels, "default": side, "tuned": side}), "confusions")
    assert found.plots == ()
    assert [len(table.rows) for table in found.tables] == [15, 15]
    assert "15 classes are too many for a picture." in found.sentences


# --- Pictures ---------------------------------------------------------------------------------------------------------


def test_a_pictures_text_is_text_and_the_same_drawing_the_same_picture() -> None:
    drawn = [plots.svg(plots.confusion([[8, 2], [1, 9]], ["부정", "긍정 $x$"])) for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert ">긍정 $x$</text>" in drawn[0]
    assert ">90 %</text>" in drawn[0]


def test_a_trials_curve_shows_value_losses_and_how_it_ended() -> None:
    complete, pruned = trials(1)[0], trial(TrialState.PRUNED, value=0.5, curve={1: 0.5})
    text = plots.svg(plots.learning_curve(complete, "f1"))
    assert f">{complete.value:.4f}</text>" in text
    for word in ("training", "validation", "evaluation"):
        assert f">{word}</text>" in text
    assert "pruned: f1 by evaluation" in plots.svg(plots.learning_curve(pruned, "f1"))
    assert "failed: f1 by evaluation" in plots.svg(plots.learning_curve(trial(TrialState.FAIL), "f1"))


def test_text_keeps_what_joins_letters_and_loses_what_steers() -> None:
    assert (
        clean("가족 \U0001f469\u200d\U0001f467\n a\u202eb\x1b[31m\ud800")
        == "가족 \U0001f469\u200d\U0001f467 a\ufffdb\ufffd[31m\ufffd"
    )
    assert clean("한") == "한"  # decomposed, as macOS writes it


# --- Files ------------------------------------------------------------------------------------------------------------


def test_the_command_writes_page_and_pictures_and_says_where(whole: optuna.Study, url: str, paths: StudyPaths) -> None:
    result = _invoke("report", "--storage", url, "--png", "--json")
    assert result.exit_code == 0, result.output
    pictures = paths.folder / "report-plots"
    assert json.loads(result.stdout) == {
        "study": "reviews",
        "output": str(paths.report),
        "pictures": str(pictures),
        "headline": "No evidence that tuning helped",
        "missing": [],
    }
    for name in _PLOTS:
        with Image.open(pictures / f"{name}.png") as image:
            colours = image.convert("RGB").getcolors(maxcolors=image.width * image.height)
        assert len(colours or []) >= _FEWEST_COLOURS
    assert not list(paths.folder.glob(".*"))  # nothing half-written is left


def test_a_report_is_made_again_in_its_place(whole: optuna.Study, url: str, tmp_path: Path) -> None:
    output = tmp_path / "new" / "reviews.html"
    output.parent.mkdir()
    output.write_text('<!doctype html><meta name="generator" content="hpsearch 0.0.9">', encoding="utf-8")
    result = _invoke("report", "--storage", url, "--output", str(output))
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{output}: report of study reviews\nNo evidence that tuning helped\n"
    assert list(output.parent.iterdir()) == [output]
    assert "seed by seed" in output.read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["file", "folder", "link", "below a file", "pictures"])
def test_what_hpsearch_did_not_write_stays(whole: optuna.Study, url: str, tmp_path: Path, kind: str) -> None:
    output = tmp_path / "mine.html"
    theirs = tmp_path / "theirs.html"
    theirs.write_text("<h1>mine</h1>", encoding="utf-8")
    if kind == "file":
        theirs.rename(output)
    elif kind == "folder":
        output.mkdir()
    elif kind == "link":
        output.symlink_to(theirs)
    elif kind == "below a file":
        output = theirs / "report.html"
    else:
        (tmp_path / "mine-plots").mkdir()
        (tmp_path / "mine-plots" / "photo.png").write_bytes(b"mine")
    before = sorted(tmp_path.rglob("*"))
    result = _invoke("report", "--storage", url, "--output", str(output), "--png")
    assert result.exit_code == 2
    assert "expected" in result.stderr
    assert result.stderr.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
