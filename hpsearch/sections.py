"""What a report says, section by section: the answer first, then how sure it is, then the details.

Pure functions of what a study holds; those that tell of its trials are in `trial_sections`.
"""

from __future__ import annotations

import shlex
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Literal

from optuna.trial import TrialState

from hpsearch import plots, trial_sections
from hpsearch.content import Plot, Section, Table, Verdict, as_sentence, capital, command, counted, states_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from matplotlib.figure import Figure

    from hpsearch.content import PageData
    from hpsearch.evidence import Comparison, Side

_MOST_FLIPS = 50
_MOST_CLASSES = 12  # of a confusion matrix that is drawn


def verdict(data: PageData) -> Verdict:
    """Return whether tuning helped, by how much, and how sure that is."""
    found = data.comparison
    if found is None:
        return Verdict(
            "not compared",
            "Not compared on the test rows yet",
            (
                f"The best of {counted(data.number_of(TrialState.COMPLETE), 'complete trial')} is trial "
                f"{data.best.number}, with {data.metric} {data.best.value:.4f} on the validation rows. The best of "
                f"many noisy trials looks better than it is: only test rows that the search never read can tell.",
            ),
            tuple(_search_figures(data)),
            (command("compare", data),),
        )
    difference, metric = found.difference, _compared(found)
    before, after = (getattr(side, metric) for side in (found.default, found.tuned))
    # The first clause is the headline.
    headline, _, rest = found.verdict.partition(": ")
    sentences = [as_sentence(rest)] if rest else []
    looks = max(found.looks, data.looks)
    if looks > 1:
        sentences.append(
            f"The test split has been looked at {looks} times in this study; each further look makes a finding "
            f"by chance more likely."
        )
    return Verdict(
        _answer(found.answer),
        capital(headline),
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
            (
                "measured on",
                f"{found.test_rows:,} rows",
                f"{counted(len(found.seeds), 'seed')} a side, {counted(looks, 'look')}",
            ),
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
    yield "trials", str(len(data.trials)), states_of(data)


def sections(data: PageData) -> list[Section]:
    """Return all sections that can be made, in the order of the page: answer, trust, detail."""
    made = (
        _seeds, _confirmation, _cost, trial_sections.history, trial_sections.learning_curves,
        trial_sections.hyperparameters, trial_sections.importances, trial_sections.edges, _slices, _confusions, _flips,
        _protocol, _reproduce, trial_sections.ended_early, _limits,
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
        f"Tuned scores higher on {wins} of {counted(len(before), 'seed')}. The difference is "
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
            commands=(command("confirm", data),),
            is_missing=True,
        )
    winner = found.winner
    name = "The defaults have" if winner.is_defaults else f"Trial {winner.trial} has"
    takeaway = (
        f"{name} the highest mean over {counted(len(found.seeds), 'fresh seed')}: {found.metric} {winner.mean:.4f}."
    )
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
    sentences = [
        f"Counts over all {counted(len(found.seeds), 'seed')}, so each test row counts {len(found.seeds)} times."
    ]
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
        f"By the majority of the seeds, {counted(found.n_gained, 'test text is', 'test texts are')} right only when "
        f"tuned, and {counted(found.n_lost, 'is', 'are')} right only with the defaults."
    )
    if data.flips is None:
        return Section("flips", "Texts that changed sides", (f"{sentence} The file that lists them is not there.",))
    lost = [flip for flip in data.flips if flip.tuned != flip.label]
    gained = [flip for flip in data.flips if flip.tuned == flip.label]
    half = _MOST_FLIPS // 2
    chosen = [*lost[: max(half, _MOST_FLIPS - len(gained))], *gained[: max(half, _MOST_FLIPS - len(lost))]]
    rows = tuple(
        (
            each.text,
            "lost" if each.tuned != each.label else "gained",
            each.label,
            f"{each.default} ({each.default_probability:.2f})",
            f"{each.tuned} ({each.tuned_probability:.2f})",
        )
        for each in chosen
    )
    where = f"{found.flips_file} in the study's folder"
    shown = "All are" if len(chosen) == len(data.flips) else f"The first {len(chosen)}, of both kinds, are"
    sentence += f" {shown} shown; the file is {where}."
    columns = ("text", "change", "true label", "defaults", "tuned")
    table = Table("Answers, each with the probability given to the true label", columns, rows, folds=True)
    return Section("flips", "Texts that changed sides", (sentence,), tables=(table,) if rows else ())


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


def _limits(data: PageData) -> Section:
    points = [
        "Values of the search come from one seed and the validation rows that chose the best trial: they flatter it.",
    ]
    if (found := data.comparison) is not None:
        points.append(
            "The interval covers other test rows of the same kind and other seeds. It does not cover other sources of "
            "text, wrong labels, or another choice of the winner."
        )
        points.append(
            f"With {found.test_rows:,} test rows and {counted(len(found.seeds), 'seed')}, a true difference below "
            f"{100 * found.detectable:.2f} points would often go unseen."
        )
    if data.importances:
        points.append("Importances describe these trials in this search space, and are no law.")
    return Section("limits", "Limits", points=tuple(points))


def _compared(comparison: Comparison) -> Literal["f1", "accuracy"]:
    """Return the metric that the comparison's difference is of."""
    return "accuracy" if comparison.metric == "accuracy" else "f1"


def _answer(answer: str) -> Literal["better", "worse", "no evidence"]:
    return "better" if answer == "better" else "worse" if answer == "worse" else "no evidence"


def _right(confusion: Sequence[Sequence[int]]) -> str:
    right, total = sum(row[i] for i, row in enumerate(confusion)), sum(map(sum, confusion))
    return f"{right:,} of {total:,} answers are right."
