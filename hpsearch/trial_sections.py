"""The sections of a report that tell of the search: pure functions of its trials."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from optuna.trial import TrialState

from hpsearch import plots
from hpsearch.content import (
    Facts,
    Plot,
    Section,
    Table,
    counted,
    seconds_of,
    short_number,
    state_of,
    states_of,
    time_text,
)
from hpsearch.cost import MORE_TRIALS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna.trial import FrozenTrial

    from hpsearch.content import PageData
    from hpsearch.cost import Cost
    from hpsearch.edges import Edge

_MOST_LINES = 150  # trials drawn; more are one grey cloud
_DRAWN = (TrialState.COMPLETE, TrialState.PRUNED)


def history(data: PageData) -> Section:
    """Return each trial's objective value, and the best so far."""
    complete = data.number_of(TrialState.COMPLETE)
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
        rows.append((trial.number, state_of(trial), _objective(trial), so_far, time_text(seconds_of(trial))))
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


def learning_curves(data: PageData) -> Section | None:
    """Return the objective value by evaluation, if any trial was evaluated."""
    with_curve = [trial for trial in data.trials if trial.intermediate_values and trial.state in _DRAWN]
    if not with_curve:
        return None
    stops = [max(trial.intermediate_values) for trial in with_curve if trial.state == TrialState.PRUNED]
    takeaway = f"The best trial came to its best value at evaluation {_best_step(data.best)} of {data.evaluations}."
    if stops:
        when = f"{min(stops)}" if min(stops) == max(stops) else f"{min(stops)} to {max(stops)}"
        takeaway += f" {counted(len(stops), 'trial was', 'trials were')} pruned, after evaluation {when}."
    drawn = _selection(with_curve, data)
    if len(drawn) < len(with_curve):
        takeaway += f" {len(drawn)} of {len(with_curve):,} lines are drawn."
    steps = sorted({step for trial in with_curve for step in trial.intermediate_values})
    rows = ((trial.number, state_of(trial), *map(trial.intermediate_values.get, steps)) for trial in with_curve)
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


def hyperparameters(data: PageData) -> Section | None:
    """Return which hyperparameters led to which value, if there are two trials or more."""
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
        (trial.number, state_of(trial), _objective(trial), *(short_number(trial.params.get(name)) for name in names))
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


def importances(data: PageData) -> Section | None:
    """Return what mattered, if it is known."""
    shares = data.importances
    if not shares:
        return None
    complete = data.number_of(TrialState.COMPLETE)
    name, share, error = shares[0]
    return Section(
        "importances",
        "What mattered",
        plots=(
            Plot(
                "importances",
                f"Share of the variation of {data.metric} that each hyperparameter explains",
                f"{name} explains {100 * share:.0f} % (sd {100 * error:.0f} %) of the variation between "
                f"{counted(complete, 'complete trial')}{', which is rough with so few' if complete < 50 else ''}.",
                lambda width: plots.importances(shares, width=width),
                Table(
                    "Importances",
                    ("hyperparameter", "share", "standard deviation"),
                    tuple((name, f"{100 * share:.1f} %", f"{100 * error:.1f} %") for name, share, error in shares),
                ),
            ),
        ),
    )


def edges(data: PageData) -> Section | None:
    """Return where the search space may be too narrow, if it is known."""
    if data.edges is None:
        return None
    table = Table("Edges of the search space", ("hyperparameter", "what to change"), data.edges.rows)
    return Section(
        "edges", "Edges of the search space", data.edges.sentences, tables=(table,) if data.edges.rows else ()
    )


def ended_early(data: PageData) -> Section | None:
    """Return why trials were pruned or failed, if any was."""
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
        (f"Of {counted(len(data.trials), 'trial')}: {states_of(data)}.",),
        tables=(Table("Why trials ended early", ("state", "reason", "trials"), rows),),
    )


def cost_facts(cost: Cost, metric: str) -> Facts:
    """Return what was spent, what pruning saved, and what more trials would probably bring."""
    spent = {"complete": cost.complete, "pruned": cost.pruned, "failed": cost.failed}
    parts = ", ".join(f"{word} {time_text(seconds)}" for word, seconds in spent.items() if seconds)
    rows = [("search", f"{time_text(cost.search)} ({parts})")]
    rows += [
        (name, time_text(seconds))
        for name, seconds in (("confirmation", cost.confirm), ("comparison", cost.compare))
        if seconds
    ]
    sentences = [f"{time_text(cost.search + cost.confirm + cost.compare)} of training in all."]
    if cost.saved:
        rows.append(("saved by pruning", f"about {time_text(cost.saved)}, {cost.saved_share:.0%} of a search without"))
    if forecast := cost.forecast:
        best = f"{metric} {forecast.expected:.4f} to {forecast.expected_after:.4f} on the validation rows"
        rows.append((f"expected best of {MORE_TRIALS} more trials", best))
        if forecast.noise is not None:
            compared = "less than" if forecast.is_below_noise else "more than"
            advice = "not worth it" if forecast.is_below_noise else "worth a try"
            sentences.append(
                f"{MORE_TRIALS} more trials would bring about {100 * forecast.gain:+.2f} points, {compared} the noise "
                f"of {100 * forecast.noise:.2f} ({forecast.noise_source}): {advice}."
            )
    return Facts(tuple(sentences), tuple(rows))


def edge_facts(edges: Sequence[Edge]) -> Facts | None:
    """Return which hyperparameters are best at an end of the space, and what widens it; None for none."""
    if not edges:
        return None
    return Facts(
        ("A better value may lie beyond; these settings look there, in a new study.",),
        tuple((f"{edge.name} at its {edge.side} end, {edge.bound:g}", f"--set {edge.setting}") for edge in edges),
    )


def _objective(trial: FrozenTrial) -> float | None:
    return trial.value if trial.state in _DRAWN else None


def _best_step(trial: FrozenTrial) -> object:
    curve = trial.intermediate_values
    return trial.user_attrs.get("best_step") or (max(curve, key=curve.__getitem__) if curve else "?")


def _range(name: str, values: Sequence[Any]) -> str:
    """Return where numbers lie, in words; nothing for choices."""
    if not values or not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return ""
    low, high = (f"{pick(values):.3g}" for pick in (min, max))
    return f"{name} {low}" if low == high else f"{name} {low} to {high}"


def _selection(trials: Sequence[FrozenTrial], data: PageData) -> list[FrozenTrial]:
    """Return what is drawn of many trials: the defaults, the best ones, and as many of the others."""
    if len(trials) <= _MOST_LINES:
        return list(trials)
    always = {data.best.number, data.defaults.number if data.defaults else -1}
    ranked = sorted(trials, key=lambda trial: (trial.number not in always, -(_objective(trial) or 0.0)))
    half = _MOST_LINES // 2
    rest = ranked[half:]
    return sorted([*ranked[:half], *rest[:: -(-len(rest) // half)]], key=lambda trial: trial.number)
