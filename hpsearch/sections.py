"""What a report says, section by section: sentences, plots and tables made from what a study holds.

Pure functions of records. Everything here is plain text; `page` makes HTML of it.
"""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from optuna.trial import TrialState

from hpsearch import plots

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from matplotlib.figure import Figure
    from optuna.trial import FrozenTrial

    from hpsearch.evidence import Comparison, Confirmation, Flip, Side

_MOST_LINES = 150  # trials drawn; more are one grey cloud
_MOST_FLIPS = 50
_MOST_CLASSES = 12  # of a confusion matrix that is drawn
_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


# --- What a report is made of -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Facts:
    """What another module found out: sentences, and names with what there is to say about them."""

    sentences: tuple[str, ...] = ()
    rows: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class PageData:
    """Everything that a report shows. What is None is left out, or its section says which command adds it."""

    study: str
    metric: str
    trials: tuple[FrozenTrial, ...]
    """In the order of their numbers; at least one is complete."""
    best: FrozenTrial
    """The complete trial with the highest value."""
    evaluations: int
    """Evaluations of a whole trial."""
    confirmation: Confirmation | None
    comparison: Comparison | None
    looks: int
    """How often the test split has been looked at."""
    flips: tuple[Flip, ...] | None
    """None if there is no file of them."""
    cost: Facts | None
    edges: Facts | None
    importances: tuple[tuple[str, float, float], ...] | None
    """Name, share in [0, 1] and its standard deviation; the largest first."""
    protocol: tuple[tuple[str, str], ...]
    """Names and values: data, model, search, fingerprints, versions."""
    space: tuple[tuple[str, str, object, object], ...]
    """Each hyperparameter's name, range, default and value in `tuned_trial`."""
    tuned_trial: int
    """The trial that a comparison, a confirmation or the search found best, in this order."""
    config_yaml: str

    @property
    def defaults(self) -> FrozenTrial | None:
        """Return the complete trial of the defaults."""
        complete = (trial for trial in self.trials if trial.state == TrialState.COMPLETE)
        return next((trial for trial in complete if trial.user_attrs.get("role") == "defaults"), None)

    def count(self, state: TrialState) -> int:
        """Return how many trials ended so."""
        return sum(trial.state == state for trial in self.trials)


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under a header; a row's first cell names it."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]
    folds: bool = False
    """Whether on a phone each row becomes a block, for rows that hold a long text."""


@dataclass(frozen=True, slots=True)
class Plot:
    """A drawing with what it shows in words, and its data."""

    name: str
    """Of its file and ids."""
    title: str
    takeaway: str
    draw: Callable[[int], Figure]
    """From a width in CSS pixels."""
    table: Table
    is_half: bool = False
    """Whether two stand side by side where there is room."""


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with what stands below it."""

    name: str
    heading: str
    sentences: tuple[str, ...] = ()
    plots: tuple[Plot, ...] = ()
    tables: tuple[Table, ...] = ()
    points: tuple[str, ...] = ()
    """Of a list."""
    commands: tuple[str, ...] = ()
    listing: tuple[str, str] | None = None
    """Title and lines of a file that is shown on demand."""
    is_missing: bool = False
    """Whether a command would add it."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer, first."""

    answer: Literal["better", "worse", "no evidence", "not compared"]
    headline: str
    sentences: tuple[str, ...]
    figures: tuple[tuple[str, str, str], ...]
    """What, its value, and what to know about it."""
    commands: tuple[str, ...] = ()


# --- The answer -------------------------------------------------------------------------------------------------------


def verdict(data: PageData) -> Verdict:
    """Return whether tuning helped, by how much, and how sure that is."""
    found = data.comparison
    if found is None:
        return Verdict(
            "not compared",
            "Not compared on the test rows yet",
            (
                f"The best of {_n(data.count(TrialState.COMPLETE), 'complete trial')} is trial {data.best.number}, "
                f"with {data.metric} {data.best.value:.4f} on the validation rows. The best of many noisy trials looks "
                f"better than it is: only test rows that the search never read can tell.",
            ),
            tuple(_search_figures(data)),
            (_command("compare", data),),
        )
    difference, metric = found.difference, _compared(found)
    before, after = (getattr(side, metric) for side in (found.default, found.tuned))
    # The first clause is the headline.
    headline, _, rest = found.verdict.partition(": ")
    sentences = [_sentence(rest)] if rest else []
    if found.looks > 1:
        sentences.append(
            f"The test split has been looked at {found.looks} times in this study; each further look makes a finding "
            f"by chance more likely."
        )
    return Verdict(
        _answer(found.answer),
        _upper(headline),
        tuple(sentences),
        (
            (
                "tuned minus defaults",
                f"{100 * difference.mean:+.2f} points",
                f"95 % interval {100 * difference.low:+.2f} to {100 * difference.high:+.2f}",
            ),
            ("defaults", f"{fmean(before):.4f}", f"{metric} on the test rows"),
            ("tuned", f"{fmean(after):.4f}", f"trial {found.trial}, chosen by the {found.chosen_by}"),
            ("linear baseline", f"{found.linear[metric]:.4f}", "TF-IDF with logistic regression"),
            ("measured on", f"{found.test_rows:,} rows", f"{_n(len(found.seeds), 'seed')} a side"),
            (
                "smallest to detect",
                f"{100 * found.detectable:.2f} points",
                "a true difference, found four times in five",
            ),
        ),
    )


def _search_figures(data: PageData) -> Iterator[tuple[str, str, str]]:
    yield "best trial", f"{data.best.value:.4f}", f"trial {data.best.number}, {data.metric} on the validation rows"
    if data.defaults is not None:
        yield "defaults", f"{data.defaults.value:.4f}", f"trial {data.defaults.number}"
    yield "trials", str(len(data.trials)), _states(data)


def sections(data: PageData) -> list[Section]:
    """Return all sections that can be made, in the order of the page: answer, trust, detail."""
    made = (
        _seeds, _confirmation, _cost, _history, _curves, _parallel, _importances, _edges, _slices, _confusions, _flips,
        _protocol, _reproduce, _ended, _limits,
    )  # fmt: skip
    return [section for make in made if (section := make(data)) is not None]


def _seeds(data: PageData) -> Section | None:
    found = data.comparison
    if found is None:
        return None  # the verdict says it
    metric = _compared(found)
    before, after = (getattr(side, metric) for side in (found.default, found.tuned))
    wins = sum(new > old for old, new in zip(before, after, strict=True))
    takeaway = (
        f"Tuned scores higher on {wins} of {_n(len(before), 'seed')}. The difference is "
        f"{100 * found.difference.mean:+.2f} points, and its 95 % interval, over other test rows and other seeds, is "
        f"{100 * found.difference.low:+.2f} to {100 * found.difference.high:+.2f}."
    )
    rows = [
        (seed, *(values[i] for side in (found.default, found.tuned) for values in (side.f1, side.accuracy)))
        for i, seed in enumerate(found.seeds)
    ]
    means = [fmean(values) for side in (found.default, found.tuned) for values in (side.f1, side.accuracy)]
    columns = ("seed", "defaults F1", "defaults accuracy", "tuned F1", "tuned accuracy")
    return Section(
        "seeds",
        "Defaults and tuned, seed by seed",
        plots=(
            Plot(
                "seeds",
                f"{metric} of defaults and tuned on the test rows by seed, and their difference",
                takeaway,
                lambda width: plots.seeds(found, width=width),
                Table("Test scores by seed", columns, (*rows, ("mean", *means))),
            ),
        ),
    )


def _confirmation(data: PageData) -> Section:
    found = data.confirmation
    if found is None:
        return Section(
            "confirmation",
            "Confirmation",
            (
                "The top trials have not been trained again on fresh seeds, which would show how much of their lead is "
                "luck.",
            ),
            commands=(_command("confirm", data),),
            is_missing=True,
        )
    winner = found.winner
    name = "The defaults have" if winner.is_defaults else f"Trial {winner.trial} has"
    takeaway = f"{name} the highest mean over {_n(len(found.seeds), 'fresh seed')}: {found.metric} {winner.mean:.4f}."
    if winner.search_value is not None:
        change = 100 * (winner.mean - winner.search_value)
        than = "less" if change > 0 else "more"
        takeaway += f" The search had seen {winner.search_value:.4f}, {abs(change):.2f} points {than}."
    columns = ("configuration", "in the search", "mean", "sd", *(f"seed {seed}" for seed in found.seeds))
    rows = tuple(
        (
            "defaults" if each.is_defaults else f"trial {each.trial}",
            each.search_value,
            each.mean,
            each.sd,
            *each.values,
        )
        for each in found.candidates
    )
    return Section(
        "confirmation",
        "Confirmation on fresh seeds",
        plots=(
            Plot(
                "confirmation",
                f"{found.metric} of the top trials and the defaults on fresh seeds",
                takeaway,
                lambda width: plots.candidates(found, width=width),
                Table("Values on the validation rows", columns, rows),
            ),
        ),
    )


def _cost(data: PageData) -> Section | None:
    if data.cost is None:
        return None
    table = Table("Where the time went", ("what", "how much"), data.cost.rows)
    return Section("cost", "Cost", data.cost.sentences, tables=(table,) if data.cost.rows else ())


# --- The search -------------------------------------------------------------------------------------------------------


def _history(data: PageData) -> Section:
    complete = data.count(TrialState.COMPLETE)
    rank = "the only complete one" if complete == 1 else f"the best of {complete:,} complete trials"
    takeaway = f"Trial {data.best.number} is {rank}: {data.metric} {data.best.value:.4f}."
    if complete > 1 and data.defaults is not None and data.defaults.number != data.best.number:
        takeaway += f" The defaults, trial {data.defaults.number}, have {data.defaults.value:.4f}."
    elif complete > 1 and data.defaults is not None:
        takeaway += " These are the defaults: no trial scored higher."
    so_far, rows = None, []
    for trial in data.trials:
        if trial.state == TrialState.COMPLETE and trial.value is not None:
            so_far = max(trial.value, so_far or trial.value)
        rows.append((trial.number, _state(trial), _objective(trial), so_far, _time(_seconds(trial))))
    ended = [trial for trial in data.trials if trial.state.is_finished()]
    table = Table("Trials", ("trial", "state", data.metric, "best so far", "time"), tuple(rows))
    return Section(
        "history",
        "Search history",
        plots=(
            Plot(
                "history",
                f"{data.metric} by trial",
                takeaway,
                lambda width: plots.history(ended, data.metric, best=data.best.number, width=width),
                table,
            ),
        ),
    )


def _curves(data: PageData) -> Section | None:
    with_curve = [trial for trial in data.trials if trial.intermediate_values and trial.state in _DRAWN]
    if not with_curve:
        return None
    stops = [max(trial.intermediate_values) for trial in with_curve if trial.state == TrialState.PRUNED]
    takeaway = f"The best trial came to its best value at evaluation {_best_step(data.best)} of {data.evaluations}."
    if stops:
        when = f"{min(stops)}" if min(stops) == max(stops) else f"{min(stops)} to {max(stops)}"
        takeaway += f" {_n(len(stops), 'trial was', 'trials were')} pruned, after evaluation {when}."
    drawn = _selection(with_curve, data)
    if len(drawn) < len(with_curve):
        takeaway += f" {len(drawn)} of {len(with_curve):,} lines are drawn."
    steps = sorted({step for trial in with_curve for step in trial.intermediate_values})
    rows = ((trial.number, _state(trial), *map(trial.intermediate_values.get, steps)) for trial in with_curve)
    return Section(
        "curves",
        "Learning curves",
        plots=(
            Plot(
                "curves",
                f"{data.metric} by evaluation, a line for each trial",
                takeaway,
                lambda width: plots.learning_curves(drawn, data.metric, best=data.best.number, width=width),
                Table(f"{data.metric} by evaluation", ("trial", "state", *map(str, steps)), tuple(rows)),
            ),
        ),
    )


def _parallel(data: PageData) -> Section | None:
    shown = [trial for trial in data.trials if trial.params and trial.state in _DRAWN]
    if len(shown) < 2:
        return None
    drawn = _selection(shown, data)
    names = list(dict.fromkeys(name for trial in shown for name in trial.params))
    good = sorted(
        (trial for trial in shown if trial.state == TrialState.COMPLETE), key=lambda trial: -(trial.value or 0.0)
    )
    quarter = good[: max(len(good) // 4, 1)]
    takeaway = "Each line is a trial, from its hyperparameters down to its value."
    most = data.importances[0][0] if data.importances else names[0]
    where = _range(most, [trial.params[most] for trial in quarter if most in trial.params])
    if len(good) > 7 and where:
        takeaway += f" The best quarter of the complete trials has {where}."
    rows = (
        (trial.number, _state(trial), _objective(trial), *(short_number(trial.params.get(name)) for name in names))
        for trial in shown
    )
    return Section(
        "parallel",
        "Hyperparameters of the trials",
        plots=(
            Plot(
                "parallel",
                f"Hyperparameters and {data.metric} of each trial",
                takeaway,
                lambda width: plots.parallel(drawn, data.metric, best=data.best.number, width=width),
                Table("Hyperparameters", ("trial", "state", data.metric, *names), tuple(rows)),
            ),
        ),
    )


def _importances(data: PageData) -> Section | None:
    shares = data.importances
    if not shares:
        return None
    complete = data.count(TrialState.COMPLETE)
    name, share, error = shares[0]
    return Section(
        "importances",
        "What mattered",
        plots=(
            Plot(
                "importances",
                f"Share of the variation of {data.metric} that each hyperparameter explains",
                f"{name} explains {100 * share:.0f} % (sd {100 * error:.0f} %) of the variation between "
                f"{_n(complete, 'complete trial')}{', which is rough with so few' if complete < 50 else ''}.",
                lambda width: plots.importances(shares, width=width),
                Table(
                    "Importances",
                    ("hyperparameter", "share", "standard deviation"),
                    tuple((name, f"{100 * share:.1f} %", f"{100 * error:.1f} %") for name, share, error in shares),
                ),
            ),
        ),
    )


def _edges(data: PageData) -> Section | None:
    if data.edges is None:
        return None
    table = Table("Edges of the search space", ("hyperparameter", "what to change"), data.edges.rows)
    return Section(
        "edges", "Edges of the search space", data.edges.sentences, tables=(table,) if data.edges.rows else ()
    )


# --- The test rows ----------------------------------------------------------------------------------------------------


def _slices(data: PageData) -> Section | None:
    found = data.comparison
    if found is None or not found.slices:
        return None
    rows = [(part, 100 * (part.tuned_accuracy - part.default_accuracy)) for part in found.slices]
    best, worst = (pick(rows, key=lambda row: row[1]) for pick in (max, min))
    sentence = f"Tuned gains most on {best[0].name} ({best[1]:+.2f} points)"
    sentence += f" and least on {worst[0].name} ({worst[1]:+.2f})." if len(rows) > 1 else "."
    table = Table(
        "Accuracy on parts of the test rows, mean over the seeds",
        ("part", "rows", "defaults", "tuned", "difference"),
        tuple(
            (part.name, part.rows, part.default_accuracy, part.tuned_accuracy, f"{change:+.2f}")
            for part, change in rows
        ),
    )
    return Section("slices", "Where it helps", (f"{sentence} Small parts are noisy.",), tables=(table,))


def _confusions(data: PageData) -> Section | None:
    found = data.comparison
    if found is None:
        return None
    sides = (("defaults", found.default), ("tuned", found.tuned))
    tables = {
        name: Table(
            f"{name}: rows by true class, columns by predicted class",
            ("true class", *found.labels),
            tuple((label, *row) for label, row in zip(found.labels, side.confusion, strict=True)),
        )
        for name, side in sides
    }
    sentences = [f"Counts over all {_n(len(found.seeds), 'seed')}, so each test row counts {len(found.seeds)} times."]
    if len(found.labels) > _MOST_CLASSES:
        sentences.append(f"{len(found.labels)} classes are too many for a picture.")
        return Section("confusions", "Confusion matrices", tuple(sentences), tables=tuple(tables.values()))
    drawn = (
        Plot(
            f"confusion-{name}",
            f"Confusion matrix of {name}",
            f"{name}: {_right(side.confusion)}",
            partial(_confusion, side, found.labels),
            tables[name],
            is_half=True,
        )
        for name, side in sides
    )
    return Section("confusions", "Confusion matrices", tuple(sentences), tuple(drawn))


def _confusion(side: Side, labels: Sequence[str], width: int) -> Figure:
    return plots.confusion(side.confusion, labels, width=width)


def _flips(data: PageData) -> Section | None:
    found = data.comparison
    if found is None:
        return None
    sentence = (
        f"By the majority of the seeds, {_n(found.n_gained, 'test text is', 'test texts are')} right only when tuned, "
        f"and {_n(found.n_lost, 'is', 'are')} right only with the defaults."
    )
    if data.flips is None:
        return Section("flips", "Texts that changed sides", (f"{sentence} The file that lists them is not there.",))
    rows = tuple(
        (
            each.text,
            "gained" if each.tuned == each.label else "lost",
            each.label,
            f"{each.default} ({each.default_probability:.2f})",
            f"{each.tuned} ({each.tuned_probability:.2f})",
        )
        for each in data.flips[:_MOST_FLIPS]
    )
    where = f"{found.flips_file} in the study's folder"
    shown = f"The first {_MOST_FLIPS}" if len(data.flips) > _MOST_FLIPS else "All"
    sentence += f" {shown} are shown; the file is {where}."
    columns = ("text", "change", "true label", "defaults", "tuned")
    table = Table("Answers, each with the probability given to the true label", columns, rows, folds=True)
    return Section("flips", "Texts that changed sides", (sentence,), tables=(table,) if rows else ())


# --- The rest ---------------------------------------------------------------------------------------------------------


def _protocol(data: PageData) -> Section:
    return Section(
        "protocol",
        "Protocol",
        (
            "Trial 0 is the defaults. Trials are chosen on the validation rows, and each counts with its best "
            "evaluation. The search reads no test label. A comparison trains both sides on the same fresh seeds and "
            "scores the test rows once.",
        ),
        tables=(
            Table("How it was done", ("what", "value"), data.protocol),
            Table("Search space", ("hyperparameter", "range", "default", f"trial {data.tuned_trial}"), data.space),
        ),
    )


def _reproduce(data: PageData) -> Section:
    name = shlex.quote(data.study)
    commands = [f"hpsearch run --config {shlex.quote(data.study + '.yaml')} --study {name}"]
    if data.confirmation is not None:
        commands.append(f"hpsearch confirm --study {name} --seeds {len(data.confirmation.seeds)}")
    if data.comparison is not None:
        commands.append(f"hpsearch compare --study {name} --seeds {len(data.comparison.seeds)}")
    commands.append(f"hpsearch report --study {name}")
    return Section(
        "reproduce",
        "How to reproduce",
        (
            f"Save the configuration as {data.study}.yaml in a folder without this study, put local files and models "
            f"beside it, and run:",
        ),
        commands=tuple(commands),
        listing=(f"{data.study}.yaml", data.config_yaml),
    )


def _ended(data: PageData) -> Section | None:
    reasons: Counter[tuple[str, str]] = Counter()
    for trial in data.trials:
        if trial.state == TrialState.PRUNED:
            last = max(trial.intermediate_values, default=0)
            reasons["pruned", f"after evaluation {last} of {data.evaluations}"] += 1
        elif trial.state == TrialState.FAIL:
            reasons["failed", str(trial.user_attrs.get("failure", "no reason was kept"))] += 1
    if not reasons:
        return None
    rows = tuple((state, reason, n) for (state, reason), n in sorted(reasons.items()))
    return Section(
        "ended",
        "Pruned and failed trials",
        (f"Of {_n(len(data.trials), 'trial')}: {_states(data)}.",),
        tables=(Table("Why trials ended early", ("state", "reason", "trials"), rows),),
    )


def _limits(data: PageData) -> Section:
    points = [
        "Values of the search come from one seed and the validation rows that chose the best trial: they flatter it.",
        "The interval covers other test rows of the same kind and other seeds. It does not cover other sources of "
        "text, wrong labels, or another choice of the winner.",
    ]
    if (found := data.comparison) is not None:
        points.append(
            f"With {found.test_rows:,} test rows and {_n(len(found.seeds), 'seed')}, a true difference below "
            f"{100 * found.detectable:.2f} points would often go unseen."
        )
    if data.importances:
        points.append("Importances describe these trials in this search space, and are no law.")
    return Section("limits", "Limits", points=tuple(points))


# --- Words and numbers ------------------------------------------------------------------------------------------------

_DRAWN = (TrialState.COMPLETE, TrialState.PRUNED)


def _compared(comparison: Comparison) -> Literal["f1", "accuracy"]:
    """Return the metric that the comparison's difference is of."""
    return "accuracy" if comparison.metric == "accuracy" else "f1"


def _answer(answer: str) -> Literal["better", "worse", "no evidence"]:
    return "better" if answer == "better" else "worse" if answer == "worse" else "no evidence"


def _command(name: str, data: PageData) -> str:
    return f"hpsearch {name} --study {shlex.quote(data.study)}"


def _n(count: int, one: str, many: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _sentence(text: str) -> str:
    return _upper(text) + ("" if text.endswith(".") else ".")


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _state(trial: FrozenTrial) -> str:
    state = _STATES[trial.state]
    return f"{state}, defaults" if trial.user_attrs.get("role") == "defaults" else state


def _states(data: PageData) -> str:
    counts = ((data.count(state), word) for state, word in _STATES.items())
    return ", ".join(f"{count} {word}" for count, word in counts if count)


def _objective(trial: FrozenTrial) -> float | None:
    return trial.value if trial.state in _DRAWN else None


def _best_step(trial: FrozenTrial) -> object:
    curve = trial.intermediate_values
    return trial.user_attrs.get("best_step") or (max(curve, key=curve.__getitem__) if curve else "?")


def _seconds(trial: FrozenTrial) -> float | None:
    return trial.duration.total_seconds() if trial.duration is not None else None


def _time(seconds: float | None) -> str:
    """Return a time in the two largest units that it has."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


def short_number(value: object) -> object:
    """Return a hyperparameter's value as it is read: a fraction with four digits, anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else value


def _range(name: str, values: Sequence[Any]) -> str:
    """Return where numbers lie, in words; nothing for choices."""
    if not values or not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return ""
    low, high = (f"{pick(values):.3g}" for pick in (min, max))
    return f"{name} {low}" if low == high else f"{name} {low} to {high}"


def _right(confusion: Sequence[Sequence[int]]) -> str:
    right, total = sum(row[i] for i, row in enumerate(confusion)), sum(map(sum, confusion))
    return f"{right:,} of {total:,} answers are right."


def _selection(trials: Sequence[FrozenTrial], data: PageData) -> list[FrozenTrial]:
    """Return what is drawn of many trials: the defaults, the best ones, and as many of the others."""
    if len(trials) <= _MOST_LINES:
        return list(trials)
    always = {data.best.number, data.defaults.number if data.defaults else -1}
    ranked = sorted(trials, key=lambda trial: (trial.number not in always, -(_objective(trial) or 0.0)))
    half = _MOST_LINES // 2
    rest = ranked[half:]
    return sorted([*ranked[:half], *rest[:: -(-len(rest) // half)]], key=lambda trial: trial.number)


def cost_of(data: Sequence[FrozenTrial], confirmation: Confirmation | None, comparison: Comparison | None) -> Facts:
    """Return what was spent."""
    spent = {
        word: sum(_seconds(trial) or 0.0 for trial in data if trial.state == state) for state, word in _STATES.items()
    }
    search = sum(spent.values())
    parts = ", ".join(f"{word} {_time(seconds)}" for word, seconds in spent.items() if seconds)
    rows = [("search", f"{_time(search)} ({parts})")]
    for name, found in (("confirmation", confirmation), ("comparison", comparison)):
        if found is not None:
            rows.append((name, _time(found.seconds)))
    total = search + sum(found.seconds for found in (confirmation, comparison) if found is not None)
    return Facts((f"{_time(total)} in all.",), tuple(rows))
