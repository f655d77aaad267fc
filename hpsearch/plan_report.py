"""A plan as a document and as lines."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from hpsearch.report import check_lines, duration, labelled

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hpsearch.plan import Estimate, Plan, Range

Document = dict[str, Any]


def plan_document(plan: Plan, command: str) -> Document:
    """Return a plan, for `plan --json`."""
    search, estimate = plan.config.search, plan.estimate
    return {
        "would_fail": plan.would_fail,
        "checks": [asdict(check) for check in plan.checks],
        "trials": search.trials,
        "sampler": search.sampler,
        "pruner": search.pruner,
        "estimate": _estimate_entry(estimate) if estimate else None,
        "data": plan.audit,
        "command": command,
    }


def _estimate_entry(estimate: Estimate) -> Document:
    probe = estimate.probe
    return {
        "device": probe.device,
        "products": probe.products,
        "workers": estimate.n_workers,
        "start_s": round(estimate.start_s, 3),
        "default_trial_s": round(estimate.default_s, 3),
        "trial_s": _range_entry(estimate.trial_s),
        "search_s": {
            "without_pruning": _range_entry(estimate.without_pruning_s),
            "with_pruning": _range_entry(estimate.with_pruning_s),
        },
        "time_share": round(estimate.time_share, 4),
        "step_s": probe.speed.step,
        "token_s": probe.speed.token,
        "evaluation_s": probe.speed.evaluation,
        "training_s": probe.speed.training,
        "peak_memory_mib": probe.peak_memory_mib,
        "peak_is_measured": probe.peak_is_measured,
        "available_memory_mib": estimate.available_mib,
        "checkpoint_bytes": probe.checkpoint_bytes,
        "disk_bytes": estimate.disk_bytes,
        "free_disk_bytes": estimate.free_bytes,
    }


def _range_entry(span: Range) -> Document:
    return {"mean": round(span.mean, 3), "low": round(span.low, 3), "high": round(span.high, 3)}


def plan_text(document: Document, width: int) -> str:
    """Return what a search would take, a line for each thing that was looked at, and the command that starts it."""
    lines = [line for check in document["checks"] for line in check_lines(check, width)]
    if estimate := document["estimate"]:
        lines += labelled("time  trial   ", [*_trial_texts(estimate)], width)
        lines += labelled("time  search  ", [*_search_texts(document, estimate)], width)
    if document["would_fail"]:
        lines.append("this search would fail: mend what is marked fail first")
    return "\n".join([*lines, f"run it:  {document['command']}"]) + "\n"


def _trial_texts(estimate: Document) -> Iterator[str]:
    one = estimate["trial_s"]
    yield (
        f"{duration(one['mean'])} on average, {duration(one['low'])} to {duration(one['high'])} over the space, "
        f"the defaults {duration(estimate['default_trial_s'])}   (on {estimate['device']}, products in "
        f"{estimate['products']})"
    )


def _search_texts(document: Document, estimate: Document) -> Iterator[str]:
    n_trials, pruner, search = document["trials"], document["pruner"], estimate["search_s"]
    workers = f" by {estimate['workers']} workers" if estimate["workers"] > 1 else ""
    total = f"{n_trials:,} trials{workers} {_span(search['without_pruning'])} without pruning"
    yield total if pruner == "none" else f"{total}, {_span(search['with_pruning'])} with pruner {pruner}"
    yield (
        f"assuming that {document['sampler']} with {pruner} takes {estimate['time_share']:.2f} times as long as random "
        f"draws in full, as in replayed searches"
    )


def _span(span: Document) -> str:
    return f"{duration(span['mean'])} ({duration(span['low'])} to {duration(span['high'])})"
