"""What plots are drawn on: one look, and pictures as SVG with text as text, or PNG.

Figures are matplotlib's own objects, without pyplot and its windows. A colour is named by its role; in a page the roles
are variables of the style sheet, so that one drawing serves light and dark.
"""

from __future__ import annotations

import contextlib
import io
import re
import unicodedata
import warnings
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes

WIDE, NARROW = 720, 340
"""Widths of a drawing: for a page, and for a phone or half a page. One unit is a CSS pixel, and a point of PNG."""

INK, MUTED, RULE, SURFACE = "#1f2328", "#656d76", "#d8dee4", "#ffffff"
TUNED, DEFAULTS = "#0072b2", "#d55e00"
"""Blue and vermillion of Okabe and Ito's palette, which people with any colour vision tell apart."""

_ROLES = {INK: "ink", MUTED: "muted", RULE: "rule", SURFACE: "surface", TUNED: "tuned", DEFAULTS: "defaults"}
_HANGUL_FONTS = ("Apple SD Gothic Neo", "Malgun Gothic", "Noto Sans KR", "Noto Sans CJK KR", "NanumGothic")
_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
_PNG_DPI = 144  # two pixels to each unit
_UNITS_PER_INCH = 72
_KEPT_FORMAT_CHARACTERS = "\u200c\u200d"  # they join letters and emoji; others may turn the line's direction
_HANGUL = re.compile("[\u1100-\u11ff\u3130-\u318f\uac00-\ud7a3]")


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Give matplotlib the look of this module, around drawing and saving; it also decorates a function."""
    installed = set(font_manager.get_font_names())
    with mpl.rc_context(
        {
            "svg.fonttype": "none",  # text stays text: it can be selected, and the reader's fonts have Hangul
            "svg.hashsalt": "hpsearch",  # the same drawing has the same ids
            "text.parse_math": False,  # a name may hold dollar signs
            "font.family": ["DejaVu Sans", *(name for name in _HANGUL_FONTS if name in installed)],
            "font.size": 12,
            "figure.dpi": _UNITS_PER_INCH,
            "figure.constrained_layout.h_pad": 4 / _UNITS_PER_INCH,
            "figure.constrained_layout.w_pad": 4 / _UNITS_PER_INCH,
            "figure.facecolor": SURFACE,
            "axes.facecolor": "none",
            "axes.edgecolor": RULE,
            "axes.labelcolor": MUTED,
            "axes.titlecolor": MUTED,
            "axes.titlelocation": "left",
            "axes.titlesize": 12,
            "axes.titlepad": 10,
            "axes.labelpad": 6,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.spines.left": False,
            "grid.color": RULE,
            "grid.linewidth": 1,
            "text.color": INK,
            "xtick.color": RULE,
            "ytick.color": RULE,
            "xtick.labelcolor": MUTED,
            "ytick.labelcolor": MUTED,
            "xtick.major.size": 0,
            "ytick.major.size": 0,
            "legend.frameon": False,
            "legend.fontsize": 12,
            "legend.handletextpad": 0.5,
            "legend.columnspacing": 1.4,
            "legend.borderaxespad": 0,
            "lines.linewidth": 2,
            "lines.markersize": 7,
        }
    ):
        yield


def canvas(width: int, height: float) -> Figure:
    """Return an empty figure, its size in CSS pixels."""
    return Figure(figsize=(width / _UNITS_PER_INCH, height / _UNITS_PER_INCH), layout="constrained")


def horizontal_grid(axes: Axes) -> None:
    """Leave only the lines along which values are read."""
    axes.grid(visible=False, axis="x")


def clean(text: str) -> str:
    """Return text from outside composed, on one line and harmless."""
    return harmless(" ".join(unicodedata.normalize("NFC", text).split()))


def harmless(line: str) -> str:
    """Return a line without what could break a document or turn its direction."""
    return "".join(
        "\ufffd" if unicodedata.category(c) in {"Cc", "Cf", "Cs"} and c not in _KEPT_FORMAT_CHARACTERS else c
        for c in line
    )


def short(text: str, n_characters: int) -> str:
    """Return cleaned text, cut where it is longer."""
    line = clean(text)
    return line if len(line) <= n_characters else f"{line[: n_characters - 1]}…"


def language(text: str) -> str | None:
    """Return `ko` for text with Hangul: it decides the shapes of Han characters and a screen reader's voice."""
    return "ko" if _HANGUL.search(text) else None


# --- Pictures ---------------------------------------------------------------------------------------------------------


def png(figure: Figure) -> bytes:
    """Return a figure as a PNG picture on white."""
    return _saved(figure, "png", dpi=_PNG_DPI)


def svg(figure: Figure) -> str:
    """Return a figure as an SVG document of its own, on white; the same figure gives the same text."""
    return _saved(figure, "svg").decode()


def inline_svg(figure: Figure, *, name: str, title: str, description: str) -> str:
    """Return a figure as an SVG element for an HTML page that may hold others.

    Args:
        figure: Drawn with the colours of this module.
        name: Begins every id; unique on the page.
        title: What it is, for who cannot see it.
        description: What it shows.
    """
    root = ElementTree.fromstring(_saved(figure, "svg", transparent=True))
    for parent in list(root.iter()):
        for child in list(parent):
            # The style element would hold for the whole page; the metadata names matplotlib only.
            if child.tag == f"{_SVG}metadata" or child.find(f"{_SVG}style") is not None:
                parent.remove(child)
    links = {reference for node in root.iter() for reference in _references(node)}
    ids = {link: f"{name}-{i}" for i, link in enumerate(sorted(links))}
    for node in root.iter():
        _adapt(node, ids)
    _, _, width, height = root.attrib["viewBox"].split()
    root.attrib.update(
        {
            "width": width,
            "height": height,
            "role": "img",
            "aria-labelledby": f"{name}-title {name}-desc",
            "stroke-linejoin": "round",
        }
    )
    for i, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(f"{_SVG}{tag}", {"id": f"{name}-{tag}"})
        element.text = clean(text)
        root.insert(i, element)
    ElementTree.indent(root, "")
    text = ElementTree.tostring(root, encoding="unicode")
    return re.sub(r"<(/?)svg:", r"<\1", text).replace(' xmlns:svg="http://www.w3.org/2000/svg"', "")


def _saved(figure: Figure, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    with styled(), warnings.catch_warnings():
        # Without a font for Hangul a PNG shows boxes; in SVG the reader's own fonts are used.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        figure.savefig(out, format=kind, metadata={"Date": None} if kind == "svg" else None, **options)
    return out.getvalue()


def _references(node: ElementTree.Element) -> list[str]:
    link = node.get(f"{_XLINK}href", "").removeprefix("#")
    clip = re.fullmatch(r"url\(#(.*)\)", node.get("clip-path", ""))
    return [name for name in (link, clip[1] if clip else "") if name]


def _adapt(node: ElementTree.Element, ids: dict[str, str]) -> None:
    """Give an element's ids the page's names and its colours the roles, and leave out what says nothing."""
    attributes = node.attrib
    if attributes.get("id") in ids:
        attributes["id"] = ids[attributes["id"]]
    else:
        attributes.pop("id", None)
    if link := attributes.pop(f"{_XLINK}href", None):
        attributes["href"] = f"#{ids[link.removeprefix('#')]}"
    if clip := attributes.get("clip-path"):
        attributes["clip-path"] = f"url(#{ids[clip[5:-1]]})"
    if attributes.get("transform", "").startswith("rotate(-0 "):
        del attributes["transform"]
    if style := attributes.get("style"):
        style = re.sub(r"font-family: [^;]*(; )?", "", style)  # the page's
        attributes["style"] = re.sub(
            r"#[0-9a-f]{6}", lambda colour: f"var(--{_ROLES[colour[0]]})" if colour[0] in _ROLES else colour[0], style
        )
    for name in ("d", "x", "y", "width", "height", "transform"):
        if name in attributes:
            rounded = re.sub(
                r"-?\d+\.\d+", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), attributes[name]
            )
            attributes[name] = " ".join(rounded.split())
    if node.tag == f"{_SVG}text" and (tongue := language(node.text or "")):
        attributes["lang"] = tongue


ElementTree.register_namespace("svg", _SVG[1:-1])
