"""Plots of trials and of what was found out about a study: each function takes records and returns a figure.

State is shown by shape and word besides colour. `width` is in CSS pixels. `svg` and `png` make a picture of a figure.
"""

from __future__ import annotations

import math
from statistics import fmean, quantiles
from typing import TYPE_CHECKING, Any

from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from hpsearch.canvas import (
    DEFAULTS,
    INK,
    MUTED,
    NARROW,
    RULE,
    SURFACE,
    TUNED,
    WIDE,
    canvas,
    horizontal_grid,
    png,
    short,
    styled,
    svg,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

    from hpsearch.evidence import Comparison, Confirmation

__all__ = [
    "candidates", "confusion", "history", "importances", "learning_curve", "learning_curves", "parallel", "png",
    "seeds", "svg",
]  # fmt: skip

_CELL = 72  # largest side of a confusion matrix's cell
_LETTER = 7  # about the width of one
_STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
_MARKS: dict[str, dict[str, Any]] = {
    "defaults": {"marker": "D", "color": DEFAULTS, "markersize": 8, "linestyle": "-"},
    "best": {"marker": "o", "color": TUNED, "markersize": 9, "linestyle": "-"},
    "complete": {"marker": "o", "color": MUTED, "markersize": 6, "linestyle": "-"},
    "pruned": {"marker": "v", "color": MUTED, "markersize": 7, "linestyle": (0, (3, 2)), "fillstyle": "none"},
    "failed": {"marker": "x", "color": MUTED, "markersize": 7, "linestyle": ""},
}


# --- Trials of a search -----------------------------------------------------------------------------------------------


@styled()
def history(trials: Sequence[FrozenTrial], metric: str, *, best: int, width: int = WIDE) -> Figure:
    """Draw the objective value by trial, and the best so far.

    Args:
        trials: In the order of their numbers, at least one of them complete.
        metric: Name of the objective value.
        best: Number of the best trial.
        width: Of the drawing.
    """
    figure = canvas(width, 340)
    axes = figure.subplots()
    places = {trial.number: value for trial in trials if (value := _value(trial)) is not None}
    low, high = _limits(places.values(), headroom=0.14)
    complete = [trial.number for trial in trials if trial.state == TrialState.COMPLETE]
    so_far = [max(places[number] for number in complete[: i + 1]) for i in range(len(complete))]
    last = trials[-1].number
    axes.step([*complete, last], [*so_far, so_far[-1]], where="post", color=TUNED, linewidth=1.5)
    kinds = {trial.number: _kind(trial, best) for trial in trials}
    scale = 1.0 if len(trials) <= 100 else 0.6
    for kind, look in reversed(_MARKS.items()):
        numbers = [number for number, its in kinds.items() if its == kind]
        if not numbers:
            continue  # a line of no points would still be given room
        # A failed trial may have no value; its mark stands just above the scale's lower end.
        values = [max(places.get(number, low), low + 0.03 * (high - low)) for number in numbers]
        axes.plot(
            numbers, values, **{**look, "linestyle": "", "markersize": look["markersize"] * scale}, clip_on=False,
            zorder=3,
        )  # fmt: skip
    _label(axes, f"{places[best]:.4f}", (best, places[best]))
    axes.set(xlim=(-0.6, max(last, 1) + 0.6), ylim=(low, high), xlabel="trial")
    below = sum(value < low for value in places.values())
    off_scale = f"; {below} below the scale, at its edge" if below else ""
    axes.set_title(f"{short(metric, 20)} on the validation rows{off_scale}")
    axes.xaxis.set_major_locator(MaxNLocator(10 if width > NARROW else 5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    horizontal_grid(axes)
    so_far_mark = Line2D([], [], color=TUNED, linewidth=1.5, label="best so far")
    _legend(figure, [*_marks_of(kinds.values(), line=False), so_far_mark])
    return figure


@styled()
def learning_curves(trials: Sequence[FrozenTrial], metric: str, *, best: int, width: int = WIDE) -> Figure:
    """Draw the objective value by evaluation, a line for each trial; those of pruned ones are dashed and end early."""
    figure = canvas(width, 380)
    axes = figure.subplots()
    kinds = {trial.number: _kind(trial, best) for trial in trials if trial.intermediate_values}
    # What stands out is drawn last; where the search found nothing better, one line is both.
    for trial in sorted(trials, key=lambda trial: list(_MARKS)[::-1].index(kinds.get(trial.number, "failed"))):
        if (kind := kinds.get(trial.number, "failed")) == "failed":
            continue
        steps, values = _finite(trial.intermediate_values)
        look = dict(_MARKS[kind])
        if kind in ("complete", "pruned"):
            look |= {"alpha": 0.55, "linewidth": 1.2, "markersize": 5, "markevery": [-1] if steps else None}
        else:
            look |= {"markersize": 6, "linewidth": 2.2}
        axes.plot(steps, values, **look)
    low, high = _limits(value for trial in trials for value in _finite(trial.intermediate_values)[1])
    _by_evaluation(axes, [step for trial in trials for step in trial.intermediate_values])
    schedule = ", at equal fractions of each trial's own schedule"
    axes.set(ylim=(low, high), xlabel=f"evaluation{schedule if width > NARROW else ''}")
    axes.set_title(f"{short(metric, 20)} on the validation rows")
    _legend(figure, _marks_of(kind for kind in kinds.values() if kind != "failed"))
    return figure


@styled()
def parallel(trials: Sequence[FrozenTrial], metric: str, *, best: int, width: int = WIDE) -> Figure:
    """Draw each trial as a line through its hyperparameters, from top to bottom, down to its objective value.

    Lines of pruned trials end before it: they have none that compares.
    """
    shown = [trial for trial in trials if _kind(trial, best) != "failed" and trial.params]
    distributions = {name: its for trial in shown for name, its in trial.distributions.items()}
    values = [trial.value for trial in shown if trial.state == TrialState.COMPLETE and trial.value is not None]
    low, high = _limits(values)
    top_quarter = quantiles(values, n=4, method="inclusive")[2] if len(values) > 3 else math.inf
    names = [*distributions, metric]
    figure = canvas(width, 52 * len(names) + 40)
    axes = figure.subplots()
    gutter = 0.4 if width > NARROW else 0.0  # for names beside the lines; else they stand above
    for trial in sorted(shown, key=lambda trial: list(_MARKS)[::-1].index(_kind(trial, best))):
        kind = _kind(trial, best)
        route = [_place(its, trial.params[name]) for name, its in distributions.items() if name in trial.params]
        if trial.state == TrialState.COMPLETE and trial.value is not None:
            route.append(max(trial.value - low, 0.0) / (high - low))
        look = {"color": _MARKS[kind]["color"], "linestyle": _MARKS[kind]["linestyle"], "linewidth": 2.4}
        if kind in ("complete", "pruned"):
            good = kind == "complete" and (trial.value or 0.0) >= top_quarter
            look |= {"color": TUNED if good else MUTED, "alpha": 0.6 if good else 0.35, "linewidth": 1.2}
        axes.plot(
            route, range(len(route)), **look, solid_joinstyle="round", zorder=2 + 0.1 * (kind in ("best", "defaults"))
        )
    for row, name in enumerate(names):
        axes.plot([0, 1], [row, row], color=RULE, linewidth=1, zorder=1)
        ends = _ends(distributions[name]) if row < len(distributions) else {0.0: f"{low:.3f}", 1.0: f"{high:.3f}"}
        for place, text in ends.items():
            side = "left" if place == 0 else "right" if place == 1 else "center"
            _write(axes, short(text, 14), (place, row), (0, -5), ha=side, va="top", color=MUTED, fontsize=11)
        if gutter:
            _write(axes, short(name, 30), (-gutter, row), (0, 0), va="center")
        else:
            _write(axes, short(name, 44), (0, row), (0, 5), va="bottom")
    axes.set(xlim=(-gutter - 0.02, 1.02), ylim=(len(names) - 0.5, -0.45))
    axes.set_axis_off()
    good_mark = Line2D([], [], color=TUNED, alpha=0.6, linewidth=1.2, label="best quarter")
    marks = _marks_of((_kind(trial, best) for trial in shown), marker=False)
    _legend(figure, [*marks[:2], *([good_mark] if top_quarter < math.inf else []), *marks[2:]])
    return figure


@styled()
def importances(shares: Sequence[tuple[str, float, float]], *, width: int = WIDE) -> Figure:
    """Draw how much of the objective value's variation each hyperparameter explains.

    Args:
        shares: Name, share in [0, 1] and its standard deviation; the largest first.
        width: Of the drawing.
    """
    figure = canvas(width, 46 * len(shares) + 40)
    axes = figure.subplots()
    for row, (name, share, error) in enumerate(shares):
        axes.plot([0, share], [row, row], color=TUNED, linewidth=8, solid_capstyle="butt")
        axes.errorbar(share, row, xerr=error, color=INK, linewidth=1.2, capsize=4, capthick=1.2)
        axes.annotate(short(name, 44), (0, row), (0, 8), textcoords="offset points", va="bottom")
    axes.set(xlim=(0, max(share + error for _, share, error in shares) * 1.04), ylim=(len(shares) - 0.6, -0.75))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
    axes.set_yticks([])
    axes.grid(visible=False, axis="y")
    return figure


# --- One trial --------------------------------------------------------------------------------------------------------


@styled()
def learning_curve(trial: FrozenTrial, metric: str, *, width: int = WIDE) -> Figure:
    """Draw one trial's objective value by evaluation, and below it the losses where they are kept.

    Args:
        trial: With intermediate values by evaluation; of a complete one the losses as well.
        metric: Name of the objective value.
        width: Of the drawing.
    """
    losses = {
        name: dict(zip(sorted(trial.intermediate_values), trial.user_attrs[key], strict=False))
        for name, key in (("training", "train_losses"), ("validation", "eval_losses"))
        if key in trial.user_attrs
    }
    figure = canvas(width, 420 if losses else 260)
    rows = figure.subplots(2 if losses else 1, squeeze=False, sharex=True, height_ratios=[3, 2] if losses else None)
    top = rows[0, 0]
    top.set_title(f"trial {trial.number}, {_STATES.get(trial.state, 'running')}: {short(metric, 20)} by evaluation")
    steps, values = _finite(trial.intermediate_values)
    if steps:
        top.plot(steps, values, "o-", color=TUNED, clip_on=False)
        best = values.index(max(values))
        top.plot(steps[best], values[best], "o", markersize=13, color=TUNED, fillstyle="none", clip_on=False)
        _label(top, f"{values[best]:.4f}", (steps[best], values[best]))
    for (name, by_step), line in zip(losses.items(), ("s--", "o-"), strict=False):
        rows[1, 0].plot(*_finite(by_step), line, color=MUTED, label=name, markersize=4, linewidth=1.5)
    for axes in rows[:, 0]:
        _by_evaluation(axes, steps)
    if losses:
        rows[1, 0].set_title("loss")
        rows[1, 0].legend(loc="lower right", bbox_to_anchor=(1, 1.04), ncols=2)
    rows[-1, 0].set_xlabel("evaluation")
    return figure


@styled()
def confusion(counts: Sequence[Sequence[int]], labels: Sequence[str], *, width: int = NARROW) -> Figure:
    """Draw a confusion matrix: in each cell the count and its share of the true class.

    Args:
        counts: By true and predicted class, shape (n_classes, n_classes).
        labels: Names of the classes.
        width: Of the drawing.
    """
    n = len(labels)
    names = [short(label, 16 if n < 7 else 9) for label in labels]
    side = max(min(_CELL, (width - 130) / n), 16)
    figure = canvas(width, side * n + 80)
    axes = figure.subplots()
    for i, row in enumerate(counts):
        total = sum(row) or 1
        for j, count in enumerate(row):
            # Shaded at most by half, so that the number keeps its contrast.
            axes.fill([j, j + 1, j + 1, j], [i, i, i + 1, i + 1], color=TUNED, alpha=0.5 * count / total, linewidth=0)
            axes.plot([j, j + 1, j + 1, j, j], [i, i, i + 1, i + 1, i], color=RULE, linewidth=1)
            text = f"{count:,}\n{100 * count / total:.0f} %" if side > 44 else str(count)
            size = 13 if side > 44 else max(side / 3, 6)
            axes.text(j + 0.5, i + 0.5, text, ha="center", va="center", fontsize=size, linespacing=1.4)
    places = [i + 0.5 for i in range(n)]
    slanted: dict[str, Any] = {}
    if max(map(len, names)) * _LETTER > side:
        slanted = {"rotation": 45, "ha": "left", "rotation_mode": "anchor"}
    axes.set(xlim=(0, n), ylim=(n, 0), aspect="equal", anchor="W", ylabel="true class")
    axes.set_title("predicted class", loc="center")
    axes.xaxis.tick_top()
    axes.set_xticks(places, names, color=INK, **slanted)
    axes.set_yticks(places, names, color=INK)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    return figure


# --- Evidence ---------------------------------------------------------------------------------------------------------


@styled()
def seeds(comparison: Comparison, *, width: int = WIDE) -> Figure:
    """Draw both sides of a comparison seed by seed, and below it the difference with its interval."""
    metric = "accuracy" if comparison.metric == "accuracy" else "f1"
    before, after = (list(getattr(side, metric)) for side in (comparison.default, comparison.tuned))
    before.append(fmean(before))
    after.append(fmean(after))
    figure = canvas(width, 430)
    top, bottom = figure.subplots(2, height_ratios=[3, 1], gridspec_kw={"hspace": 0.12})
    top.margins(y=0.1)
    for i, (old, new) in enumerate(zip(before, after, strict=True)):
        top.plot([i, i], [old, new], color=RULE, linewidth=2, zorder=1)
    for kind, values in (("defaults", before), ("best", after)):
        look = {**_MARKS[kind], "linestyle": ""}
        top.plot(range(len(values)), values, **look)
        top.plot([len(values) - 1.3, len(values) - 0.7], [values[-1]] * 2, color=look["color"])
    top.axvline(len(before) - 1.5, color=RULE, linewidth=1)
    top.set_title(f"{metric} on the test rows")
    top.set_xticks(
        range(len(before)), [*(f"{'seed ' if width > NARROW else ''}{seed}" for seed in comparison.seeds), "mean"]
    )
    top.set_xlim(-0.6, len(before) - 0.4)
    top.yaxis.set_major_locator(MaxNLocator(5))
    horizontal_grid(top)

    difference = comparison.difference
    mean, low, high = (100 * value for value in (difference.mean, difference.low, difference.high))
    reach = 1.15 * max(abs(low), abs(high), 100 * comparison.detectable, 0.1)
    bottom.axvspan(-100 * comparison.detectable, 100 * comparison.detectable, color=MUTED, alpha=0.12, linewidth=0)
    bottom.axvline(0, color=MUTED, linewidth=1)
    bottom.plot([low, high], [0, 0], color=INK, linewidth=2.2)
    bottom.plot([low, high], [0, 0], "|", color=INK, markersize=12, markeredgewidth=2)
    bottom.plot(mean, 0, "o", color=INK, markersize=9)
    bottom.annotate(f"{mean:+.2f}", (mean, 0), (0, 10), textcoords="offset points", ha="center")
    bottom.set_title(f"tuned minus defaults, points of {metric}")
    bottom.set(xlim=(-reach, reach), ylim=(-0.5, 0.7))
    bottom.xaxis.set_major_formatter(lambda points, _: f"{points:+g}" if points else "0")
    bottom.xaxis.set_major_locator(MaxNLocator(7 if width > NARROW else 5))
    bottom.set_yticks([])
    bottom.grid(visible=False)
    _legend(
        figure,
        [
            Line2D([], [], **{**_MARKS["defaults"], "linestyle": ""}, label="defaults"),
            Line2D([], [], **{**_MARKS["best"], "linestyle": ""}, label=f"tuned, trial {comparison.trial}"),
            Line2D([], [], color=INK, linewidth=2.2, label="95 % interval"),
            Line2D([], [], color=MUTED, alpha=0.25, linewidth=9, solid_capstyle="butt", label="too small to detect"),
        ],
    )
    return figure


@styled()
def candidates(confirmation: Confirmation, *, width: int = WIDE) -> Figure:
    """Draw each configuration's values on fresh seeds, with their mean and the value that the search had seen."""
    figure = canvas(width, 48 * len(confirmation.candidates) + 100)
    axes = figure.subplots()
    for row, candidate in enumerate(confirmation.candidates):
        kind = "defaults" if candidate.is_defaults else "best" if row == 0 else "complete"
        colour = _MARKS[kind]["color"]
        axes.plot(candidate.values, [row] * len(candidate.values), "o", color=colour, alpha=0.45, markersize=7)
        axes.plot([candidate.mean] * 2, [row - 0.25, row + 0.25], color=colour, linewidth=3)
        if candidate.search_value is not None:
            axes.plot(candidate.search_value, row, "s", color=INK, fillstyle="none", markersize=9)
    names = ["defaults" if each.is_defaults else f"trial {each.trial}" for each in confirmation.candidates]
    axes.set_yticks(range(len(names)), names, color=INK)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(f"{short(confirmation.metric, 20)} on the validation rows")
    axes.xaxis.set_major_locator(MaxNLocator(6 if width > NARROW else 4))
    axes.margins(x=0.06)
    axes.grid(visible=False, axis="y")
    _legend(
        figure,
        [
            Line2D([], [], marker="o", linestyle="", color=MUTED, alpha=0.6, label="a fresh seed"),
            Line2D([], [], marker="|", markersize=13, markeredgewidth=3, linestyle="", color=MUTED, label="their mean"),
            Line2D([], [], marker="s", markersize=9, fillstyle="none", linestyle="", color=INK, label="in the search"),
        ],
    )
    return figure


# --- Parts of several -------------------------------------------------------------------------------------------------


def _kind(trial: FrozenTrial, best: int) -> str:
    """Return which of the marks a trial has."""
    if trial.state != TrialState.COMPLETE:
        return "pruned" if trial.state == TrialState.PRUNED else "failed"
    if trial.user_attrs.get("role") == "defaults":
        return "defaults"
    return "best" if trial.number == best else "complete"


def _value(trial: FrozenTrial) -> float | None:
    """Return the best value a trial came to."""
    values = [trial.value] if trial.state == TrialState.COMPLETE else _finite(trial.intermediate_values)[1]
    return max((value for value in values if value is not None and math.isfinite(value)), default=None)


def _limits(values: Iterable[float], *, headroom: float = 0.06) -> tuple[float, float]:
    """Return the ends of a scale: far below the lower quartile nothing is worth the room that it takes."""
    known = sorted(values) or [0.0, 1.0]
    low, high = known[0], known[-1]
    if len(known) > 3:
        first, _, third = quantiles(known, n=4, method="inclusive")
        low = max(low, first - 8 * (third - first)) if third > first else low
    reach = (high - low) or 0.1
    return low - 0.06 * reach, high + headroom * reach


def _finite(by_step: dict[int, Any]) -> tuple[list[int], list[float]]:
    """Return the steps that have a number, and their numbers."""
    pairs = [(step, value) for step, value in sorted(by_step.items()) if value is not None and math.isfinite(value)]
    return [step for step, _ in pairs], [value for _, value in pairs]


def _place(distribution: BaseDistribution, value: Any) -> float:
    """Return where on its axis a hyperparameter's value lies, in [0, 1]."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices.index(value) / max(len(distribution.choices) - 1, 1)
    if isinstance(distribution, FloatDistribution | IntDistribution) and distribution.low < distribution.high:
        scale = math.log if distribution.log else float
        low, high = scale(distribution.low), scale(distribution.high)
        return (scale(value) - low) / (high - low)
    return 0.0


def _ends(distribution: BaseDistribution) -> dict[float, str]:
    """Return what stands at an axis: both ends, or all choices."""
    if isinstance(distribution, CategoricalDistribution):
        return {_place(distribution, choice): str(choice) for choice in distribution.choices}
    if isinstance(distribution, FloatDistribution | IntDistribution):
        return {0.0: f"{distribution.low:g}", 1.0: f"{distribution.high:g}" + (" (log)" if distribution.log else "")}
    return {}


def _marks_of(kinds: Iterable[str], *, line: bool = True, marker: bool = True) -> list[Line2D]:
    """Return the legend's entries for the kinds of trials there are."""
    there = set(kinds)
    without: dict[str, Any] = {**({} if line else {"linestyle": ""}), **({} if marker else {"marker": ""})}
    return [Line2D([], [], **{**look, **without}, label=kind) for kind, look in _MARKS.items() if kind in there]


def _legend(figure: Figure, entries: list[Line2D]) -> None:
    """Write what the marks mean above a figure, in as many columns as fit."""
    width = figure.get_figwidth() * 72
    widths = [len(str(entry.get_label())) * _LETTER + 50 for entry in entries]
    columns = len(entries) if sum(widths) < width else max(int(width / max(widths)), 1)
    figure.legend(handles=entries, loc="outside upper left", ncols=columns)


def _write(axes: Axes, text: str, place: tuple[float, float], offset: tuple[float, float], **look: Any) -> None:
    """Write over lines, on a ground of the surface's colour."""
    ground = {"facecolor": SURFACE, "edgecolor": "none", "pad": 1, "alpha": 0.8}
    axes.annotate(text, place, offset, textcoords="offset points", bbox=ground, zorder=4, **{"color": INK, **look})


def _label(axes: Axes, text: str, place: tuple[float, float]) -> None:
    """Write beside a point, above it."""
    axes.annotate(text, place, (0, 11), textcoords="offset points", ha="center", va="bottom")


def _by_evaluation(axes: Axes, steps: Sequence[int]) -> None:
    last = max(steps, default=1)
    axes.set_xlim(0.7, max(last, 2) + 0.3)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    horizontal_grid(axes)
