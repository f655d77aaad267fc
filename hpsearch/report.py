"""Results as text and as JSON documents: pure functions that return what the command line prints.

The keys of the documents are a contract with scripts. Tables count in terminal cells, of which Hangul takes two a
syllable, as rich knows; symbols of our own are ASCII, because `+-` and `-` have one width everywhere. They are laid out
here, because rich's own tables take half a second for a thousand trials (`benchmarks/README.md`).
"""

from __future__ import annotations

import csv
import io
import math
import shlex
import statistics
import unicodedata
from dataclasses import asdict
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from optuna.trial import TrialState
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from hpsearch.disk import megabytes
from hpsearch.study import best_trial, standing

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    import optuna
    from optuna.trial import FrozenTrial

    from hpsearch.baseline import BaselineResult
    from hpsearch.columns import Guess
    from hpsearch.disk import Usage
    from hpsearch.doctor import Diagnosis
    from hpsearch.evidence import Candidate, Comparison, Confirmation, Interval, Side
    from hpsearch.export import Export
    from hpsearch.page import Report
    from hpsearch.starter import Starter

Document = dict[str, Any]

_METRIC_NAMES = {"f1": "F1", "accuracy": "accuracy", "mcc": "MCC"}


# --- Documents --------------------------------------------------------------------------------------------------------


def studies_document(studies: Iterable[optuna.Study]) -> list[Document]:
    """Return one entry a study, for `list --json`."""
    return [_study_entry(study) for study in studies]


def study_document(study: optuna.Study) -> Document:
    """Return a study with its trials, for `show --json`."""
    entry = _study_entry(study)
    del entry["last_active"]
    return {**entry, "trials": [_trial_entry(trial) for trial in study.get_trials(deepcopy=False)]}


def confirmation_document(confirmation: Confirmation, study: str) -> Document:
    """Return a confirmation, for `confirm --json`."""
    candidates = [
        {
            "trial": candidate.trial,
            "is_defaults": candidate.is_defaults,
            "params": candidate.params,
            "search_value": candidate.search_value,
            "values": list(candidate.values),
            "mean": candidate.mean,
            "sd": candidate.sd,
            "shrinkage": _shrinkage(candidate),
        }
        for candidate in confirmation.candidates
    ]
    return {
        "study": study,
        "metric": confirmation.metric,
        "seeds": list(confirmation.seeds),
        "winner": confirmation.winner.trial,
        "candidates": candidates,
        "left_out": list(confirmation.left_out),
        "seconds": confirmation.seconds,
        "date": confirmation.date,
    }


def comparison_document(comparison: Comparison) -> Document:
    """Return a comparison, for `compare --json`."""
    return {
        "study": comparison.study,
        "trial": comparison.trial,
        "chosen_by": comparison.chosen_by,
        "metric": comparison.metric,
        "test_rows": comparison.test_rows,
        "test_fingerprint": comparison.test_fingerprint,
        "looks": comparison.looks,
        "seeds": list(comparison.seeds),
        "labels": list(comparison.labels),
        "default": _side_entry(comparison.default),
        "tuned": _side_entry(comparison.tuned),
        "linear": comparison.linear,
        "difference": _interval_entry(comparison.difference),
        "differences": {name: _interval_entry(interval) for name, interval in _intervals(comparison).items()},
        "detectable": comparison.detectable,
        "answer": comparison.answer,
        "verdict": comparison.verdict,
        "slices": [asdict(part) for part in comparison.slices],
        "flips": {"file": comparison.flips_file, "gained": comparison.n_gained, "lost": comparison.n_lost},
        "seconds": comparison.seconds,
        "date": comparison.date,
    }


def starter_document(starter: Starter) -> Document:
    """Return what was proposed for a file and why, for `init --json`."""
    return {
        "output": str(starter.output),
        "file": starter.file,
        "rows": starter.n_rows,
        "complete": starter.is_complete,
        "text_column": _guess_entry(starter.text),
        "label_column": _guess_entry(starter.label),
        "labels": starter.labels,
        "label_counts": starter.label_counts,
        "quoting": starter.quoting,
        "train_rows": starter.train_rows,
        "validation_rows": starter.validation_rows,
        "test_rows": starter.test_rows,
        "max_length": starter.max_length,
        "notes": list(starter.notes),
    }


def export_document(export: Export) -> Document:
    """Return what was exported, for `export-best --json`."""
    return {
        "study": export.study,
        "trial": export.trial,
        "chosen_by": export.chosen_by,
        "note": export.note,
        "output": str(export.folder),
        "metric": export.metric,
        "value": export.stored_value,
        "reloaded_value": export.reloaded_value,
    }


def page_document(report: Report) -> Document:
    """Return what was written, for `report --json`."""
    return {
        "study": report.study,
        "output": str(report.file),
        "pictures": None if report.pictures is None else str(report.pictures),
        "headline": report.headline,
        "missing": list(report.missing),
    }


def baseline_document(result: BaselineResult) -> Document:
    """Return a baseline's figures, for `baseline --json`."""
    return {
        "loop": result.loop,
        "train_rows": result.train_rows,
        "test_rows": result.test_rows,
        "epochs": result.epochs,
        "steps": result.optimizer_steps,
        "padded_width": {"train": result.padded_width_train, "test": result.padded_width_test},
        "losses": [{"step": step, "loss": loss} for step, loss in result.train_losses],
        "epoch_rows": [
            {"epoch": row.epoch, "loss": row.loss, "accuracy": row.accuracy, "f1": row.f1} for row in result.epoch_rows
        ],
        "mean_train_loss": result.mean_train_loss,
        "train_seconds": result.train_seconds,
        "test": {"loss": result.loss, "accuracy": result.accuracy, "f1": result.f1, "mcc": result.mcc},
        "eval_seconds": result.eval_seconds,
    }


def diagnosis_document(diagnosis: Diagnosis) -> Document:
    """Return what was checked, for `doctor --json`."""
    return {
        "failed": diagnosis.n_failed,
        "checks": [asdict(check) for check in diagnosis.checks],
        "libraries": [asdict(library) for library in diagnosis.libraries],
    }


def _guess_entry(guess: Guess) -> Document:
    return {
        "name": guess.column,
        "certainty": guess.certainty,
        "reason": guess.reason,
        "others": list(guess.others),
    }


def _study_entry(study: optuna.Study) -> Document:
    trials = study.get_trials(deepcopy=False)
    counts = standing(study, 0)
    best = best_trial(study) if counts.best_number is not None else None
    active = max((t.datetime_complete or t.datetime_start for t in trials if t.datetime_start), default=None)
    return {
        "study": study.study_name,
        "metric": (study.metric_names or ["value"])[0],
        "direction": ", ".join(direction.name.lower() for direction in study.directions),
        "best": {"number": best.number, "value": best.value, "params": best.params} if best else None,
        "n_complete": counts.n_finished - counts.n_pruned,
        "n_pruned": counts.n_pruned,
        "n_failed": counts.n_failed,
        "n_running": sum(trial.state == TrialState.RUNNING for trial in trials),
        "last_active": active.isoformat(timespec="seconds") if active else None,
    }


def _trial_entry(trial: FrozenTrial) -> Document:
    duration = trial.duration
    if duration is not None and duration.total_seconds() < 0:
        duration = None  # the machine's clock was set back
    return {
        "number": trial.number,
        "state": _STATES[trial.state],
        "value": _finite(trial.values[0]) if trial.values and len(trial.values) == 1 else None,
        "params": trial.params,
        "intermediate_values": {str(step): _finite(value) for step, value in sorted(trial.intermediate_values.items())},
        "duration_s": round(duration.total_seconds(), 3) if duration is not None else None,
        "attrs": _finite(trial.user_attrs),
    }


def _finite(value: Any) -> Any:
    """Return a JSON value with None for what JSON has no number for."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


def _side_entry(side: Side) -> Document:
    return {
        "params": side.params,
        **{name: list(getattr(side, name)) for name in ("f1", "accuracy", "mcc")},
        "confusion": [list(row) for row in side.confusion],
    }


def _interval_entry(interval: Interval) -> Document:
    return {"mean": interval.mean, "ci95": [interval.low, interval.high]}


def _intervals(comparison: Comparison) -> dict[str, Interval]:
    """Return the differences by metric; the study's own may be another than F1 and accuracy."""
    return {"f1": comparison.f1, "accuracy": comparison.accuracy, comparison.metric: comparison.difference}


def _shrinkage(candidate: Candidate) -> float | None:
    """Return how much of a trial's value in the search was luck: what its mean on fresh seeds lacks."""
    return None if candidate.search_value is None else candidate.search_value - candidate.mean


# --- Text -------------------------------------------------------------------------------------------------------------


def studies_text(documents: Sequence[Document], width: int) -> str:
    """Return a table of studies."""
    if not documents:
        return "no studies yet; start one with `hpsearch run`\n"
    table = _Table("study", "metric", "best", "trial", "complete", "pruned", "failed", "last active")
    for entry in documents:
        best = entry["best"] or {"value": None, "number": None}
        counts = (entry[name] for name in ("n_complete", "n_pruned", "n_failed"))
        row = (entry["study"], entry["metric"], best["value"], best["number"], *counts, entry["last_active"])
        table.add_row(*row)
    return table.text(width)


def study_text(document: Document, width: int) -> str:
    """Return a study's counts, best trial and a table of its trials."""
    lines = [
        f"study {_clean(document['study'])}   {_clean(document['metric'])}, {document['direction']}   "
        f"{document['n_complete']} complete, {document['n_pruned']} pruned, {document['n_failed']} failed"
        + (f", {document['n_running']} running" if document["n_running"] else "")
    ]
    if best := document["best"]:
        value = f"{_clean(document['metric'])} {best['value']:.4f}"
        lines.append(f"best  trial {best['number']}   {value}   {_clean(_params(best['params']))}")
    table = _Table("#", "state", document["metric"], "at", "time", "hyperparameters or reason")
    for trial in document["trials"]:
        attrs = trial["attrs"]
        at = f"{attrs['best_step']}" if "best_step" in attrs else str(len(trial["intermediate_values"]) or "-")
        seconds = "-" if trial["duration_s"] is None else f"{trial['duration_s']:.0f} s"
        role = "defaults: " if attrs.get("role") == "defaults" else ""
        what = attrs["failure"] if trial["state"] == "failed" and "failure" in attrs else _params(trial["params"])
        what += "".join(f"  ({remark})" for remark in _remarks(attrs))
        table.add_row(trial["number"], trial["state"], trial["value"], at, seconds, role + what)
    return "\n".join([*lines, "", table.text(width)])


def _remarks(attrs: dict[str, Any]) -> Iterator[str]:
    """Return what a reader should know of a trial besides its value."""
    effective = attrs.get("effective") or {}
    rows, batch = effective.get("micro_batch_size"), effective.get("per_device_train_batch_size")
    if rows is not None and rows != batch:
        yield f"{rows} rows at once, for memory"
    if "predicts_only" in attrs:
        yield f"predicts {attrs['predicts_only']!r} only"
    if "checkpoint" in attrs:
        yield "weights not kept"


def disk_text(taken: Usage) -> str:
    """Return what a study takes of the disk, in one line."""
    return (
        f"disk  {megabytes(taken.checkpoints)} in {taken.n_checkpoints} checkpoints, {megabytes(taken.others)} beside "
        f"them, {megabytes(taken.database)} in the database of all studies\n"
    )


def study_csv(document: Document) -> str:
    """Return the trials as CSV, a column for each hyperparameter and each intermediate value."""
    params = sorted({name for trial in document["trials"] for name in trial["params"]})
    steps = sorted({int(step) for trial in document["trials"] for step in trial["intermediate_values"]})
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["number", "state", "value", "duration_s", *params, *(f"evaluation_{step}" for step in steps)])
    for trial in document["trials"]:
        values = [trial["params"].get(name) for name in params]
        curve = [trial["intermediate_values"].get(str(step)) for step in steps]
        writer.writerow([trial["number"], trial["state"], trial["value"], trial["duration_s"], *values, *curve])
    return out.getvalue()


def confirmation_text(confirmation: Confirmation, study: str, width: int) -> str:
    """Return the candidates in their order, and what the winner's lead in the search was worth."""
    metric, winner = confirmation.metric, confirmation.winner
    table = _Table("trial", "search", "fresh seeds", "sd", "shrinkage", "hyperparameters")
    for candidate in confirmation.candidates:
        role = "defaults: " if candidate.is_defaults else ""
        figures = (candidate.search_value, candidate.mean, candidate.sd, _shrinkage(candidate))
        table.add_row(candidate.trial, *figures, role + _params(candidate.params))
    lines = [
        f"study {_clean(study)}: {metric} on the validation rows, mean of {_count(len(confirmation.seeds), 'seed')} "
        f"({confirmation.seeds[0]} to {confirmation.seeds[-1]})\n",
        table.text(width),
    ]
    if confirmation.left_out:
        numbers = ", ".join(map(str, confirmation.left_out))
        lines.append(f"left out, because a training diverged: trial {numbers}")
    value = f"trial {winner.trial}, {metric} {winner.mean:.4f} on fresh seeds"
    if (shrinkage := _shrinkage(winner)) is not None:
        value += f", {100 * abs(shrinkage):.2f} points {'less' if shrinkage > 0 else 'more'} than in the search"
    if winner.is_defaults:
        lines.append(f"tuning did not beat the defaults: they are the best, {value}")
    else:
        lines.append(f"winner: {value}")
    defaults = next((candidate for candidate in confirmation.candidates if candidate.is_defaults), None)
    if defaults and defaults != winner:
        lines.append(
            f"{100 * (winner.mean - defaults.mean):.2f} points above the defaults on these rows; "
            f"`hpsearch compare --study {study}` tells on sealed rows whether that is more than chance"
        )
    lines.append(f"`hpsearch export-best --study {study}` exports it")
    return "\n".join(lines) + "\n"


def comparison_text(comparison: Comparison, flips: Path, width: int) -> str:
    """Return both sides per seed, the linear baseline, the differences, the slices, the flips and the verdict.

    Args:
        comparison: The comparison.
        flips: Where its flips were written.
        width: Cells of a line.
    """
    intervals = _intervals(comparison)
    table = _Table("", *(f"seed {seed}" for seed in comparison.seeds), "mean", "sd")
    for name, side in (("defaults", comparison.default), (f"tuned (trial {comparison.trial})", comparison.tuned)):
        for metric in intervals:
            values = getattr(side, metric)
            spread = statistics.stdev(values) if len(values) > 1 else None
            table.add_row(f"{name} {_METRIC_NAMES[metric]}", *values, statistics.fmean(values), spread)
    for metric in intervals:
        blanks = [""] * len(comparison.seeds)
        table.add_row(f"TF-IDF + logistic regression {_METRIC_NAMES[metric]}", *blanks, comparison.linear[metric], "")
    differences = _Table("tuned - defaults", "mean", "95 % interval")
    for metric, interval in intervals.items():
        bounds = f"{interval.low:+.4f} to {interval.high:+.4f}"
        differences.add_row(_METRIC_NAMES[metric], f"{interval.mean:+.4f}", bounds)
    slices = _Table("accuracy on", "rows", "defaults", "tuned", "difference")
    for part in comparison.slices:
        change = f"{part.tuned_accuracy - part.default_accuracy:+.4f}"
        slices.add_row(part.name, part.rows, part.default_accuracy, part.tuned_accuracy, change)
    chosen = "the confirmation's winner" if comparison.chosen_by == "confirmation" else "the search's best"
    scope = "test rows and seeds" if len(comparison.seeds) > 1 else "test rows; one seed says nothing of others"
    tuned, default = (_clean(_params(side.params)) for side in (comparison.tuned, comparison.default))
    return (
        f"study {comparison.study}: {comparison.test_rows:,} sealed test rows, "
        f"{_count(len(comparison.seeds), 'seed')}; look {comparison.looks} at the test split\n"
        f"defaults  {default}\ntuned     {tuned}\n          trial {comparison.trial}, {chosen}\n\n"
        f"{table.text(width)}\n{differences.text(width)}"
        f"over {scope}; a true difference of {100 * comparison.detectable:.2f} points in {comparison.metric} would be "
        f"found four times in five\n\n{slices.text(width)}\n"
        f"flips: {_count(comparison.n_gained, 'text')} only tuned gets right, {comparison.n_lost:,} only the defaults; "
        f"{_clean(str(flips))}\n"
        f"verdict: {comparison.verdict}\n"
    )


def export_text(export: Export) -> str:
    """Return where the model is, why it is this one, and what it scores."""
    chosen = "the confirmation's winner" if export.chosen_by == "confirmation" else "the search's best"
    note = f"note: {export.note}\n" if export.note else ""
    return (
        f"{export.folder}: trial {export.trial} of study {export.study}, {chosen}\n{note}"
        f"{export.metric} on the validation rows {export.stored_value:.4f} in the study, "
        f"{export.reloaded_value:.4f} reloaded in a fresh process\n"
    )


def page_text(report: Report) -> str:
    """Return where the report is, what it says, and which commands would add to it."""
    pictures = f"{report.pictures}: its plots as pictures\n" if report.pictures else ""
    missing = f"not in it yet: {'   '.join(report.missing)}\n" if report.missing else ""
    return f"{report.file}: report of study {_clean(report.study)}\n{pictures}{report.headline}\n{missing}"


def baseline_text(result: BaselineResult, width: int) -> str:
    """Return the loss table and the test scores of one of the tutorial's systems."""
    parts = [
        f"loop {result.loop}: {result.train_rows:,} training rows, {result.epochs:g} epochs, "
        f"{result.optimizer_steps:,} optimizer steps, {result.train_seconds:.1f} s; padded to "
        f"{result.padded_width_train} tokens (test {result.padded_width_test})\n"
    ]
    if result.train_losses:
        table = _Table("step", "training loss")
        for step, loss in result.train_losses:
            table.add_row(step, loss)
        parts.append(table.text(width))
    if result.epoch_rows:
        table = _Table("epoch", "loss", "accuracy", "F1")
        for row in result.epoch_rows:
            table.add_row(row.epoch, row.loss, row.accuracy, row.f1)
        parts.append(table.text(width))
    parts.append(
        f"mean training loss {result.mean_train_loss:.4f}\n"
        f"on {result.test_rows:,} test rows: loss {result.loss:.4f}, accuracy {result.accuracy:.4f}, "
        f"F1 {result.f1:.4f} ({result.eval_seconds:.1f} s)\n"
    )
    return "\n".join(parts)


def inspection_text(document: Document, width: int) -> str:
    """Return what `inspect` found, as tables."""
    table = _Table("", "sampled", "blank", "dropped", "rows", "duplicates", "tokens min/median/p95/max", "cut", "[UNK]")
    for name, split in document["splits"].items():
        tokens = split["tokens"]
        lengths = f"{tokens['min']} / {tokens['median']:g} / {tokens['p95']:g} / {tokens['max']}"
        counts = (split[key] for key in ("sampled", "blank", "dropped_overlaps", "rows", "duplicates"))
        table.add_row(name, *counts, lengths, split["cut"], f"{split['unknown_share']:.2%}")
    labels = _Table("", *document["labels"])
    for name, split in document["splits"].items():
        shares = [f"{n:,} ({n / split['rows']:.1%})" for n in split["label_counts"].values()]
        labels.add_row(name, *shares)
    overlaps = ", ".join(f"{n} {pair.replace('_', ' in ')}" for pair, n in document["overlaps"].items())
    example = document["example"]
    warnings = "".join(
        f"{line}\n" for check in document["checks"] for line in check_lines(check, width) if check["level"] != "ok"
    )
    return (
        f"{_clean(document['source'])}, fingerprint {document['fingerprint']}, "
        f"inputs of up to {document['max_length']} tokens\n\n"
        f"{table.text(width)}\n{labels.text(width)}\n"
        f"texts that also stand in another split: {overlaps}\n{warnings}\n"
        f"first training row ({example['row']}), label {_clean(example['label'])}\n"
        f"  text    {_clean(example['text'])}\n  tokens  {_clean(' '.join(example['tokens']))}\n"
        f"  ids     {' '.join(map(str, example['ids']))}\n"
    )


def starter_text(starter: Starter, width: int) -> str:
    """Return what was written, what was guessed and how sure, and the commands that follow."""
    table = _Table("", "guess", "how sure", "why")
    for role, guess in (("text column", starter.text), ("label column", starter.label)):
        others = f"; others: {', '.join(map(repr, guess.others[:5]))}" if guess.others else ""
        table.add_row(role, repr(guess.column), guess.certainty, guess.reason + others)
    table.add_row("label names", f"of {len(starter.labels)} labels", "", starter.names_from)
    if starter.quoting != "auto":
        table.add_row("quoting", starter.quoting, "", "how double quotes are read")
    train = f"{starter.train_rows:,}" if starter.train_rows is not None else "all other"
    rows = f"{train} / {starter.validation_rows:,} / {starter.test_rows:,}"
    table.add_row("splits", rows, "", "training / validation / test rows, drawn at random; the last stay sealed")
    table.add_row("max_length", starter.max_length, "", starter.length_from)

    counts = _Table("label", "name", "rows", "share")
    for value, name in starter.labels.items():
        n = starter.label_counts[value]
        counts.add_row(value, name, f"{n:,}", f"{n / starter.n_rows:.1%}")
    rows = f"{starter.n_rows:,} rows" if starter.is_complete else f"more than {starter.n_rows:,} rows"
    output = _clean(shlex.quote(str(starter.output)))
    return (
        f"{_clean(starter.file)}: {rows}\n\n{table.text(width)}\n{counts.text(width)}\n"
        + "".join(f"note  {_clean(note)}\n" for note in starter.notes)
        + f"{output} is written; a wrong guess is changed there\n"
        f"next  hpsearch plan --config {output}\n"
        f"      hpsearch run --config {output}\n"
    )


def diagnosis_text(diagnosis: Diagnosis, width: int) -> str:
    """Return a line a check, and how many need something done."""
    table = _Table("", "check", "found")
    for check in diagnosis.checks:
        table.add_row(check.state, check.name, f"{check.found} -> {check.advice}" if check.advice else check.found)
    warned = sum(check.state == "warn" for check in diagnosis.checks)
    return f"{table.text(width)}\n{diagnosis.n_failed} failed, {warned} to know of\n"


def check_lines(check: Document, width: int) -> list[str]:
    """Return one thing that was looked at before a search, with what to do about it."""
    text = [f"{check['text']}", *([f"hint: {check['hint']}"] if check["hint"] else [])]
    return labelled(f"{check['level']:<5} {check['subject']:<8}", text, width)


def labelled(label: str, texts: Sequence[str], width: int) -> list[str]:
    """Return texts in lines behind a label, folded to a terminal's width."""
    lines = [line for text in texts for line in _fold(_clean(text), max(width - len(label), 2 * _Table.NARROWEST))]
    return [f"{label if i == 0 else ' ' * len(label)}{line}" for i, line in enumerate(lines)]


def duration(seconds: float) -> str:
    """Return a time for people, such as `45 s`, `12 min` or `2 h 05 min`."""
    minutes = round(seconds / 60)
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def predictions_text(texts: Sequence[str], answers: Sequence[dict[str, float]]) -> str:
    """Return one line a text: the label, its probability, the text; separated by tabs."""
    best = [max(answer, key=answer.__getitem__) for answer in answers]
    return "".join(
        f"{_clean(label)}\t{answer[label]:.4f}\t{_clean(text)}\n"
        for text, answer, label in zip(texts, answers, best, strict=True)
    )


def next_steps(study: str) -> str:
    """Return the commands that usually follow a search."""
    return (
        f"next  hpsearch confirm --study {study}   hpsearch compare --study {study}   "
        f"hpsearch report --study {study}   hpsearch export-best --study {study}\n"
        f"      the best of many trials looks better than it is: confirm trains the best again on fresh seeds, "
        f"compare\n      measures what it chose on the sealed test rows\n"
    )


class _Table:
    """Rows under a header and a rule."""

    GAP = "   "
    NARROWEST = 2  # cells of a column: one wide character

    WORDS = ("state", "hyperparameters or reason", "guess", "how sure", "why", "check", "found")
    """Columns that are read as words, so that they begin at the left."""

    def __init__(self, *columns: str) -> None:
        self._rows = [[_clean(column) for column in columns]]
        self._left = [i == 0 or name in self.WORDS for i, name in enumerate(columns)]

    def add_row(self, *cells: object) -> None:
        self._rows.append([_cell(cell) for cell in cells])

    def text(self, width: int) -> str:
        """Return the lines. Where they do not fit, the widest column gives way, and its texts are folded."""
        lengths = [[_length(cell) for cell in row] for row in self._rows]
        widths = [max(column) for column in zip(*lengths, strict=True)]
        gaps = len(self.GAP) * (len(widths) - 1)
        last = len(widths) - 1
        while sum(widths) + gaps > width and max(widths) > self.NARROWEST:
            # The columns at the ends have a gap on one side only, and keep a cell more than others.
            widths[max(range(last, -1, -1), key=lambda i: widths[i] - (i in (0, last)))] -= 1
        header, *rows = (self._lines(row, widths) for row in self._rows)
        rule = "-" * (sum(widths) + gaps)
        return "\n".join(line for lines in (header, [rule], *rows) for line in lines) + "\n"

    def _lines(self, row: list[str], widths: list[int]) -> list[str]:
        folded = [_fold(cell, width) for cell, width in zip(row, widths, strict=True)]
        height = max(map(len, folded))
        if row is self._rows[0]:  # a header stands on its rule
            folded = [[""] * (height - len(lines)) + lines for lines in folded]
        return [
            self.GAP.join(map(_pad, line, widths, self._left)).rstrip() for line in zip_longest(*folded, fillvalue="")
        ]


def _pad(text: str, width: int, left: bool) -> str:  # noqa: FBT001  mapped
    blank = " " * (width - _length(text))
    return text + blank if left else blank + text


def _fold(text: str, width: int) -> list[str]:
    """Return a text in lines, broken between words, or within one that is longer than a line."""
    if _length(text) <= width:
        return [text]
    return [line.plain for line in Text(text).wrap(_CONSOLE, width, overflow="fold")]


def _length(text: str) -> int:
    """Return the terminal cells of a text."""
    return len(text) if text.isascii() else cell_len(text)


_CONSOLE = Console(file=io.StringIO(), color_system=None)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else _clean(str(value))


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def _params(params: dict[str, Any]) -> str:
    return "  ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in params.items()
    )


def _clean(text: str) -> str:
    """Return text from outside composed, as terminals count its cells, and without what could steer one."""
    text = text if text.isascii() else unicodedata.normalize("NFC", text)
    return text if text.isprintable() else "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)
