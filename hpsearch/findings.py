"""What a search has cost and what to do next, as documents and lines: `show` prints them beneath its table."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from hpsearch.cost import FEWEST_TRIALS, MORE_TRIALS, cost_of
from hpsearch.edges import edges_of
from hpsearch.report import duration, labelled

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import optuna

    from hpsearch.cost import Cost
    from hpsearch.edges import Edge
    from hpsearch.importances import Importance

Document = dict[str, Any]


def findings_document(study: optuna.Study, importances: Sequence[Importance] | None = None) -> Document:
    """Return what a study cost, what more trials would bring and where the best one lies.

    Args:
        study: The study.
        importances: What mattered, where that was asked for and can be told.
    """
    return {
        "cost": _cost_entry(cost_of(study)),
        "edges": [_edge_entry(edge) for edge in edges_of(study)],
        "importances": None if importances is None else [_importance_entry(each) for each in importances],
    }


def findings_text(document: Document, width: int) -> str:
    """Return the same in lines; `document` has the study's own keys too. Empty for a study without trials."""
    if not document["trials"]:
        return ""
    parts = {
        "cost": [_cost_text(document["cost"])],
        "saved": [*_saved_text(document["cost"])],
        "more": [*_forecast_text(document)],
        "edge": [*_edge_texts(document["edges"])],
        "matters": [*_importance_text(document["importances"])],
    }
    lines = [line for label, texts in parts.items() for line in labelled(f"{label:<9}", texts, width)]
    return "\n".join(["", *lines]) + "\n"


def _cost_entry(cost: Cost) -> Document:
    forecast = cost.forecast
    return {
        "search_s": {name: round(getattr(cost, name), 3) for name in ("complete", "pruned", "failed")},
        "untimed_trials": cost.n_untimed,
        "saved_by_pruning_s": round(cost.saved, 3),
        "saved_share": round(cost.saved_share, 4),
        "confirm_s": round(cost.confirm, 3),
        "compare_s": round(cost.compare, 3),
        "device_hours": round(cost.device_hours, 5),
        "more_trials": {
            "n": MORE_TRIALS,
            "expected_best": forecast.expected,
            "expected_best_after": forecast.expected_after,
            "gain": forecast.gain,
            "noise": forecast.noise,
            "noise_source": forecast.noise_source,
            "below_noise": forecast.is_below_noise,
        }
        if forecast
        else None,
    }


def _edge_entry(edge: Edge) -> Document:
    return {"name": edge.name, "value": edge.value, "side": edge.side, "bound": edge.bound, "set": edge.setting}


def _importance_entry(importance: Importance) -> Document:
    return {"name": importance.name, "mean": importance.mean, "sd": importance.sd}


def _cost_text(cost: Document) -> str:
    spent = {state: seconds for state, seconds in cost["search_s"].items() if seconds}
    by_state = ", ".join(f"{duration(seconds)} {state}" for state, seconds in spent.items())
    parts = [f"search {duration(sum(spent.values()))}" + (f" ({by_state})" if by_state else "")]
    parts += [f"{name} {duration(cost[f'{name}_s'])}" for name in ("confirm", "compare") if cost[f"{name}_s"]]
    parts.append(f"{cost['device_hours']:.2f} device-hours")
    if n := cost["untimed_trials"]:
        parts.append(f"without {n} trial{'s' if n > 1 else ''} whose process died, for nobody knows when")
    return "   ".join(parts)


def _saved_text(cost: Document) -> Iterator[str]:
    if cost["saved_by_pruning_s"]:
        yield (
            f"about {duration(cost['saved_by_pruning_s'])} by pruning, {cost['saved_share']:.0%} of a search without "
            f"it (had each pruned trial gone on at its own pace)"
        )


def _forecast_text(document: Document) -> Iterator[str]:
    forecast = document["cost"]["more_trials"]
    if document["direction"] != "maximize":
        return
    if forecast is None:
        n_finished = document["n_complete"] + document["n_pruned"]
        yield (
            f"what {MORE_TRIALS} more trials would bring can be told from {FEWEST_TRIALS} finished ones, of which one "
            f"is complete; there are {n_finished}, of which {document['n_complete']} complete"
        )
        return
    gain = (
        f"{forecast['n']} more trials would bring about {100 * forecast['gain']:+.2f} points (expected best "
        f"{document['metric']} {forecast['expected_best']:.4f} -> {forecast['expected_best_after']:.4f})"
    )
    if forecast["noise"] is None:
        yield gain
        return
    noise = f"the noise of {100 * forecast['noise']:.2f} points ({forecast['noise_source']})"
    yield f"{gain}, {f'less than {noise}: stop here' if forecast['below_noise'] else f'more than {noise}: go on'}"


def _edge_texts(edges: Sequence[Document]) -> Iterator[str]:
    """Yield what lies at an end of the space, then what widens it, ready to type."""
    for edge in edges:
        value = f"{edge['value']:.4g}" if isinstance(edge["value"], float) else edge["value"]
        yield f"{edge['name']} {value} lies at the {edge['side']} end of the space, {edge['bound']:g}"
    if edges:
        yield "better values may lie beyond; to look there, run a new --study with"
    for edge in edges:
        yield f"--set {shlex.quote(edge['set'])}"


def _importance_text(importances: Sequence[Document] | None) -> Iterator[str]:
    if importances:
        shares = "   ".join(f"{each['name']} {each['mean']:.0%} +- {each['sd']:.0%}" for each in importances)
        yield f"{shares}   (mean +- standard deviation over resampled trials)"
