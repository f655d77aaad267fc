"""Replay searches by many workers against the table of `tabular.py`, to see what it costs to draw without knowing.

    python benchmarks/parallel.py --json benchmarks/parallel.json

With many workers a trial is drawn while others are still running, and their values are not known yet. A constant liar
(Optuna's `constant_liar`) tells TPE where the running trials are and that they will be poor, so that it draws
elsewhere. Each search here is a real Optuna study in memory with hpsearch's sampler and pruner, and a clock of its own:
a free worker asks for a trial while the others' trials stand in the study as running; each evaluation is reported, and
the pruner asked, at its own time; what ends first is known first. The number of trials is exact: none starts once
enough have started. Searches of the same seed are compared, since each trial's draw is seeded by its number.

How long things take. An evaluation takes an eighth of its training; a training takes the median seconds of the table's
trainings of as many epochs in batches of the same size, since single ones were slowed by other programs. Drawing takes
no time, no trial fails, and workers do not slow each other down: the speed-up is what waiting for the last trials
leaves of the ideal. What the table can tell and what not is said in `tabular.py`.
"""

from __future__ import annotations

import heapq
import itertools
import json
import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from optuna.samplers import RandomSampler, TPESampler
from tabular import (
    NOTHING_YET,
    SHIPPED,
    Finished,
    conditions,
    draw,
    evaluate,
    mean_and_error,
    open_study,
    processes,
    pruner_named,
    read_table,
    seeded,
)
from tqdm import tqdm

from hpsearch.config import SearchConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import optuna
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from tabular import Levels, Table

TABLE = Path(__file__).with_name("tabular.csv")
WORKERS = (1, 4, 16)
TRIALS = (20, 40, 80)  # of a search
PRUNERS = (SHIPPED, "none")


def _tpe(*, constant_liar: bool) -> Callable[[int], BaseSampler]:
    return seeded(lambda seed: TPESampler(seed=seed, n_startup_trials=8, constant_liar=constant_liar))


SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "tpe, liar": _tpe(constant_liar=True),
    "tpe, no liar": _tpe(constant_liar=False),
    "random": seeded(lambda seed: RandomSampler(seed=seed)),
}


@dataclass(frozen=True, slots=True)
class Setting:
    """How a search is made."""

    sampler: str
    pruner: str
    n_workers: int
    n_trials: int


# --- One search -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Span:
    """When a trial ran, in seconds since the search began."""

    started: float
    ended: float


@dataclass(frozen=True, slots=True)
class Search:
    """A search that has come to its number of trials."""

    finished: tuple[Finished, ...]
    """Where it stood after each trial, in the order in which they ended."""
    spans: tuple[Span, ...]
    """One for each trial, in the same order."""

    @property
    def seconds(self) -> float:
        """From its begin to the end of its last trial."""
        return self.spans[-1].ended


@dataclass(frozen=True, slots=True)
class _Running:
    trial: optuna.Trial
    levels: Levels
    started: float
    step_s: float
    is_repeated: bool


def search(
    table: Table, sampler: BaseSampler, pruner: BasePruner, *, seed: int, n_workers: int, n_trials: int
) -> Search:
    """Search a table with several workers at once.

    Args:
        table: Where values and seconds are looked up.
        sampler: A new one. All workers share it, which changes nothing for one that draws each trial anew.
        pruner: A new one.
        seed: Of the search.
        n_workers: Trials that run at once.
        n_trials: Trials of the search.
    """
    study = open_study(table, sampler, pruner, seed=seed)
    step_s = steps_of(table)
    finished, spans = [NOTHING_YET], []
    tried: set[Levels] = set()
    running: dict[int, _Running] = {}
    # When an evaluation is done, its trial's number, its step: of two at the same time the earlier trial's goes first.
    due: list[tuple[float, int, int]] = []

    def start(now: float) -> None:
        trial = study.ask()
        levels = draw(table, trial)
        running[trial.number] = _Running(trial, levels, now, step_s[levels], levels in tried)
        tried.add(levels)
        heapq.heappush(due, (now + step_s[levels], trial.number, 1))

    for _ in range(min(n_workers, n_trials)):
        start(0.0)
    while due:
        now, number, step = heapq.heappop(due)
        ours = running[number]
        if not evaluate(study, ours.trial, table.curves[ours.levels], step):
            heapq.heappush(due, (now + ours.step_s, number, step + 1))
            continue
        del running[number]
        finished.append(finished[-1].after(table, ours.levels, step, is_repeated=ours.is_repeated))
        spans.append(Span(ours.started, now))
        if len(spans) + len(running) < n_trials:
            start(now)
    return Search(tuple(finished[1:]), tuple(spans))


def steps_of(table: Table) -> dict[Levels, float]:
    """Return the seconds from one evaluation to the next of every configuration."""
    alike = [list(table.grid).index(name) for name in ("num_train_epochs", "per_device_train_batch_size")]
    groups: dict[Levels, list[float]] = defaultdict(list)
    for levels, seconds in table.seconds.items():
        groups[tuple(levels[i] for i in alike)].append(seconds)
    medians = {group: statistics.median(seconds) for group, seconds in groups.items()}
    return {levels: medians[tuple(levels[i] for i in alike)] / len(table.curves[levels]) for levels in table.curves}


# --- What came of many ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Result:
    """What is reported of one search."""

    regret: float
    """F1 points that its best complete trial is short of the table's best."""
    seconds: float
    evaluations: int
    n_pruned: int
    n_repeated: int


def search_some(path: Path, setting: Setting, seeds: range) -> list[Result]:
    """Search a table file once with each seed."""
    table = read_table(path)
    results = []
    for seed in seeds:
        done = search(
            table,
            SAMPLERS[setting.sampler](seed),
            pruner_named(setting.pruner),
            seed=seed,
            n_workers=setting.n_workers,
            n_trials=setting.n_trials,
        )
        last = done.finished[-1]
        regret = 100 * (table.best - last.best)
        results.append(Result(regret, done.seconds, last.evaluations, last.n_pruned, last.n_repeated))
    return results


def difference(results: Sequence[Result], others: Sequence[Result]) -> dict[str, float]:
    """Return by how many F1 points the first are shorter of the best, seed by seed: the mean and its standard error."""
    return mean_and_error([one.regret - other.regret for one, other in zip(results, others, strict=True)])


def results_of(runs: Mapping[Setting, Sequence[Result]]) -> dict[str, Any]:
    """Return all figures as one JSON document.

    Args:
        runs: The searches of each setting, in the order of their seeds.
    """
    rows = []
    for setting, results in runs.items():
        alone = runs[Setting(setting.sampler, setting.pruner, 1, setting.n_trials)]
        seconds = statistics.fmean(result.seconds for result in results)
        rows.append(
            {
                "sampler": setting.sampler,
                "pruner": setting.pruner,
                "workers": setting.n_workers,
                "trials": setting.n_trials,
                "regret": mean_and_error([result.regret for result in results]),
                "regret_more_than_one_worker": difference(results, alone),
                "seconds": seconds,
                "speed_up": statistics.fmean(result.seconds for result in alone) / seconds,
                "evaluations": statistics.fmean(result.evaluations for result in results),
                "pruned": statistics.fmean(result.n_pruned for result in results),
                "repeated": statistics.fmean(result.n_repeated for result in results),
            }
        )
    return {
        "seeds": len(next(iter(runs.values()))),
        "shipped": SearchConfig().model_dump(include={"sampler", "pruner"}),
        "results": rows,
        "regret_more_without_liar": [
            {
                "pruner": pruner,
                "workers": n_workers,
                "trials": n_trials,
                **difference(*(runs[Setting(f"tpe, {liar}", pruner, n_workers, n_trials)] for liar in _OFF_AND_ON)),
            }
            for pruner, n_workers, n_trials in itertools.product(PRUNERS, WORKERS, TRIALS)
        ],
    }


_OFF_AND_ON = ("no liar", "liar")


def markdown(document: Mapping[str, Any]) -> str:
    """Return the figures as Markdown."""
    lines = [
        f"Means ± standard errors over {document['seeds']} searches a row (seeds 0 to {document['seeds'] - 1}).",
        "",
        "| trials | sampler | pruner | workers | regret, F1 points | more than with one worker | seconds | speed-up | "
        "evaluations | repeated |",
        f"|{' --- |' * 10}",
        *(
            f"| {row['trials']} | {row['sampler']} | {row['pruner']} | {row['workers']} | {_interval(row['regret'])} | "
            f"{_interval(row['regret_more_than_one_worker'])} | {row['seconds']:.0f} | {row['speed_up']:.1f} | "
            f"{row['evaluations']:.0f} | {row['repeated']:.1f} |"
            for row in document["results"]
        ),
        "",
        "| trials | pruner | workers | regret more without the liar |",
        "| --- | --- | --- | --- |",
        *(
            f"| {row['trials']} | {row['pruner']} | {row['workers']} | {_interval(row)} |"
            for row in document["regret_more_without_liar"]
        ),
        "",
        document["conditions"],
    ]
    return "\n".join(lines)


def _interval(figure: Mapping[str, float]) -> str:
    return f"{figure['mean']:.2f} ± {figure['error']:.2f}"


@click.command()
@click.option("--seeds", default=200, show_default=True, help="Searches of each setting; seeds 0, 1, 2, ...")
@click.option("--processes", "n_processes", default=2, show_default=True, help="That replay searches.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write one JSON document there.")
def main(seeds: int, n_processes: int, json_path: Path | None) -> None:
    """Replay searches by 1, 4 and 16 workers, and print what came of it as Markdown."""
    settings = [
        Setting(sampler, pruner, n_workers, n_trials)
        for n_trials, sampler, pruner, n_workers in itertools.product(TRIALS, SAMPLERS, PRUNERS, WORKERS)
    ]
    parts = [range(first, min(first + 20, seeds)) for first in range(0, seeds, 20)]
    runs: dict[Setting, list[Result]] = {}
    with processes(n_processes, threads=1) as pool:
        futures = {setting: [pool.submit(search_some, TABLE, setting, part) for part in parts] for setting in settings}
        for setting in tqdm(settings, unit="setting"):
            runs[setting] = [result for future in futures[setting] for result in future.result()]
    document = {**results_of(runs), "conditions": conditions(("hpsearch", "optuna", "numpy"))}
    click.echo(markdown(document))
    if json_path:
        json_path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
