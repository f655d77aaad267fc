"""Check what `hpsearch show` says of ten more trials against searches that were replayed on the table.

    python benchmarks/forecast.py

Each search is replayed for 40 trials (`tabular.py` says how). After 10, 20 and 30 of them the forecast is made from
what had finished by then, and compared with how much better the best complete trial was ten trials later.
"""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from tabular import (
    SHIPPED,
    conditions,
    draw,
    evaluate_all,
    mean_and_error,
    open_study,
    pruner_named,
    quiet,
    read_table,
    sampler_named,
)

from hpsearch.cost import MORE_TRIALS, forecast_of

if TYPE_CHECKING:
    from tabular import Table

PAIRS = ((SHIPPED, SHIPPED), (SHIPPED, "none"), ("random", "none"))
AFTER = (10, 20, 30)  # finished trials


def gains(table: Table, pair: tuple[str, str], seed: int) -> list[tuple[float, float]]:
    """Return what was forecast and what came, after each of `AFTER` trials of one search."""
    study = open_study(table, sampler_named(pair[0], seed), pruner_named(pair[1]), seed=seed)
    best, forecast = {}, {}
    for n in range(1, max(AFTER) + MORE_TRIALS + 1):
        trial = study.ask()
        evaluate_all(study, trial, table.curves[draw(table, trial)])
        best[n] = study.best_value
        if n in AFTER and (made := forecast_of(study)) is not None:
            forecast[n] = made.gain
    return [(forecast[n], best[n + MORE_TRIALS] - best[n]) for n in AFTER]


@click.command()
@click.option("--seeds", default=200, show_default=True, help="Searches of each pair; seeds 0, 1, 2, ...")
def main(seeds: int) -> None:
    """Replay searches and print forecast and real gains as Markdown."""
    quiet()
    table = read_table(Path(__file__).with_name("tabular.csv"))
    click.echo("| sampler, pruner | after | forecast, F1 points | came | no gain at all | correlation |")
    click.echo("| --- | --- | --- | --- | --- | --- |")
    for pair in PAIRS:
        searches = [gains(table, pair, seed) for seed in range(seeds)]
        for i, n in enumerate(AFTER):
            said, came = (100 * np.array([search[i][side] for search in searches]) for side in (0, 1))
            shown = [mean_and_error(values.tolist()) for values in (said, came)]
            cells = " | ".join(f"{each['mean']:.2f} ± {each['error']:.2f}" for each in shown)
            none = statistics.fmean((came == 0).tolist())
            correlation = float(np.corrcoef(said, came)[0, 1]) if said.std() and came.std() else math.nan
            click.echo(f"| {', '.join(pair)} | {n} trials | {cells} | {none:.0%} | {correlation:+.2f} |")
    click.echo(f"\nMeans ± standard errors over {seeds} searches. {conditions(('hpsearch', 'optuna', 'numpy'))}")


if __name__ == "__main__":
    main()
