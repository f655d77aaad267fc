"""How often the interval of `compare` holds the truth, and how often it finds a shift: simulated, without training.

Two systems answer the rows of a balanced task with two classes, 82 % of them right. What a system answers to a row
depends on the row's difficulty, which both systems share, on what the system makes of that row, on its seed's luck, and
on what a seed makes of a row. Identical systems differ by the last two alone; equally good ones also by the second.

- `seed_sd` is the standard deviation of a seed's luck in accuracy, over infinitely many rows. Its 0.3 and 0.6 points
  are seen as 0.5 and 0.75 points between the seeds of one system on 2,000 rows.
- Two seeds of one system disagree on about 7 % of the rows.

Intervals are those of accuracy; the plain percentile interval of drawing rows and seeds, which `compare` used first,
stands beside them.

    python benchmarks/coverage.py --json benchmarks/coverage.json
"""

from __future__ import annotations

import json
import platform
import time
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np
from machine import machine

from hpsearch import bootstrap
from hpsearch.metrics import accuracy

ACCURACY_QUANTILE = 0.915  # of the normal distribution, at 0.82
SEEDS, ROWS, SEED_SDS = (3, 5, 10), (500, 2000), (0.003, 0.006)
KINDS = {"identical": 0.0, "equally good": 0.4}  # standard deviation of what a system makes of a row
ROW_AND_SEED = 0.25  # standard deviation of what a seed makes of a row; rows themselves have 1
SHIFT = 0.02


def systems(
    rng: np.random.Generator, *, n_seeds: int, n_rows: int, seed_sd: float, of_system: float, shift: float
) -> tuple[np.ndarray, ...]:
    """Return labels, shape (n_rows,), and the answers of two systems, each of shape (n_seeds, n_rows)."""
    scale = np.sqrt(1 + of_system**2 + ROW_AND_SEED**2)
    slope = np.exp(-(ACCURACY_QUANTILE**2) / 2) / np.sqrt(2 * np.pi) / scale  # of accuracy by a shift of all rows
    labels = rng.integers(2, size=n_rows)
    rows = ACCURACY_QUANTILE * scale + rng.normal(size=n_rows)
    answers = []
    for gain in (0.0, shift):
        own = rng.normal(scale=of_system, size=n_rows)
        luck = (gain + rng.normal(scale=seed_sd, size=(n_seeds, 1))) / slope
        right = rows + own + luck + rng.normal(scale=ROW_AND_SEED, size=(n_seeds, n_rows)) > 0
        answers.append(np.where(right, labels, 1 - labels))
    return labels, *answers


def intervals(rng: np.random.Generator, *answers: np.ndarray) -> tuple[bootstrap.Difference, tuple[float, float]]:
    """Return the difference as `compare` has it, and the plain percentile interval of drawing rows and seeds."""
    by_seed, observed = bootstrap._differences(accuracy, *answers, n_classes=2, seed=int(rng.integers(2**32)))
    seeds = rng.integers(by_seed.shape[1], size=by_seed.shape)
    low, high = np.percentile(np.take_along_axis(by_seed, seeds, axis=1).mean(axis=1), [2.5, 97.5])
    return bootstrap._estimate(by_seed, observed), (float(low), float(high))


def simulate(rng: np.random.Generator, n_repeats: int, **setting: Any) -> dict[str, Any]:
    """Return the coverage of zero without a shift, and the share of intervals above zero with one."""
    repeats = range(n_repeats)
    equal = [systems(rng, shift=0.0, **setting) for _ in repeats]
    covering = [intervals(rng, *answers) for answers in equal]
    detectable = float(np.median([difference.detectable for difference, _ in covering]))
    shifted = [intervals(rng, *systems(rng, shift=SHIFT, **setting)) for _ in repeats]
    barely = [intervals(rng, *systems(rng, shift=detectable, **setting)) for _ in repeats]
    halves = [difference.interval.high - difference.mean for difference, _ in covering]
    return {
        "coverage": float(np.mean([abs(d.mean) <= half for (d, _), half in zip(covering, halves, strict=True)])),
        "power": float(np.mean([difference.interval.low > 0 for difference, _ in shifted])),
        "half_width_points": round(100 * float(np.median(halves)), 2),
        "detectable_points": round(100 * detectable, 2),
        "power_at_detectable": float(np.mean([difference.interval.low > 0 for difference, _ in barely])),
        "percentile_coverage": float(np.mean([low <= 0 <= high for _, (low, high) in covering])),
        "percentile_power": float(np.mean([low > 0 for _, (low, _) in shifted])),
        "seeds_disagree": round(float(np.mean([np.mean(before[0] != before[1]) for _, before, _ in equal])), 4),
    }


@click.command()
@click.option("--repeats", type=click.IntRange(min=10), default=250, show_default=True, help="Comparisons a setting.")
@click.option("--resamples", type=click.IntRange(min=100), default=300, show_default=True, help="Draws a comparison.")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write the document there too.")
def main(repeats: int, resamples: int, output: Path | None) -> None:
    """Simulate coverage and power."""
    bootstrap.N_RESAMPLES = resamples
    started = time.monotonic()
    results = []
    for place, (kind, seed_sd, n_rows, n_seeds) in enumerate(product(KINDS, SEED_SDS, ROWS, SEEDS)):
        setting = {"n_seeds": n_seeds, "n_rows": n_rows, "seed_sd": seed_sd}
        figures = simulate(np.random.default_rng(place), repeats, of_system=KINDS[kind], **setting)
        results.append({"systems": kind, **setting, **figures})
        print(json.dumps(results[-1]), flush=True)
    document = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in ("numpy", "scipy")}},
        "repeats": repeats,
        "resamples": resamples,
        "shift_points": 100 * SHIFT,
        "seconds": round(time.monotonic() - started, 1),
        "results": results,
    }
    if output is not None:
        output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
