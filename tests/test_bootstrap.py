"""The paired bootstrap: exact where the answer is known, and honest where there is nothing to find."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from hpsearch import bootstrap
from hpsearch.bootstrap import paired_difference
from hpsearch.metrics import METRICS, accuracy, confusion_matrix, f1

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Integers = NDArray[np.int64]


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "N_RESAMPLES", 2_000)


def _flipped(labels: Integers, share: Floats | float, rng: np.random.Generator, n_seeds: int) -> Integers:
    """Return predictions, shape (n_seeds, n_rows), each wrong with a given probability."""
    wrong = rng.random((n_seeds, len(labels))) < share
    return np.where(wrong, 1 - labels, labels)


@pytest.mark.parametrize("metric", METRICS)
def test_identical_systems_differ_by_exactly_nothing(metric: str) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=100)
    predicted = rng.integers(3, size=(4, 100))
    interval = paired_difference(METRICS[metric], labels, predicted, predicted, n_classes=3, seed=1)
    assert (interval.mean, interval.low, interval.high) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(("before", "after", "shift"), [(0.3, 0.2, 0.1), (0.2, 0.3, -0.1)], ids=["better", "worse"])
def test_a_known_shift_is_found(before: float, after: float, shift: float) -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(2, size=4000)
    interval = paired_difference(
        accuracy, labels, _flipped(labels, before, rng, 5), _flipped(labels, after, rng, 5), n_classes=2, seed=1
    )
    assert interval.low < shift < interval.high
    assert interval.low > 0 if shift > 0 else interval.high < 0
    assert interval.high - interval.low < 0.04


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("metric", METRICS)
def test_the_mean_is_the_plain_difference_of_mean_values(metric: str, n_classes: int) -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(n_classes, size=60)
    before, after = rng.integers(n_classes, size=(2, 3, 60))
    interval = paired_difference(METRICS[metric], labels, before, after, n_classes=n_classes, seed=1)
    values = [
        [METRICS[metric](confusion_matrix(labels, predicted, n_classes)) for predicted in side]
        for side in (before, after)
    ]
    assert interval.mean == pytest.approx(np.mean(values[1]) - np.mean(values[0]))
    assert interval.low <= interval.mean <= interval.high


def test_swapping_the_systems_swaps_the_sign() -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(2, size=80)
    before, after = rng.integers(2, size=(2, 2, 80))
    forth = paired_difference(f1, labels, before, after, n_classes=2, seed=1)
    back = paired_difference(f1, labels, after, before, n_classes=2, seed=1)
    assert back.mean == pytest.approx(-forth.mean)
    assert (back.low, back.high) == pytest.approx((-forth.high, -forth.low), abs=0.02)


def test_the_same_seed_gives_the_same_interval() -> None:
    rng = np.random.default_rng(4)
    labels = rng.integers(2, size=50)
    before, after = rng.integers(2, size=(2, 3, 50))
    first, again, other = (
        paired_difference(f1, labels, before, after, n_classes=2, seed=seed) for seed in (11, 11, 12)
    )
    assert first == again
    assert first != other
    assert first.mean == other.mean


def test_one_seed_is_enough() -> None:
    rng = np.random.default_rng(5)
    labels = rng.integers(2, size=200)
    before, after = _flipped(labels, 0.4, rng, 1), _flipped(labels, 0.1, rng, 1)
    assert paired_difference(accuracy, labels, before, after, n_classes=2, seed=1).low > 0


@pytest.mark.parametrize("n_classes", [2, 3])
def test_it_is_the_bootstrap_of_rows_and_seeds_drawn_one_by_one(n_classes: int) -> None:
    rng = np.random.default_rng(6)
    n_seeds, n_rows = 3, 40
    labels = rng.integers(n_classes, size=n_rows)
    before = np.where(rng.random((n_seeds, n_rows)) < 0.5, labels, rng.integers(n_classes, size=(n_seeds, n_rows)))
    after = np.where(rng.random((n_seeds, n_rows)) < 0.7, labels, rng.integers(n_classes, size=(n_seeds, n_rows)))

    def value(predicted: Integers, rows: Integers) -> float:
        return float(f1(confusion_matrix(labels[rows], predicted[rows], n_classes)))

    resampled = []
    for _ in range(3_000):
        rows, seeds = rng.integers(n_rows, size=n_rows), rng.integers(n_seeds, size=n_seeds)
        resampled.append(np.mean([value(after[seed], rows) - value(before[seed], rows) for seed in seeds]))
    low, high = np.percentile(resampled, [2.5, 97.5])

    interval = paired_difference(f1, labels, before, after, n_classes=n_classes, seed=1)
    # Percentiles of a few thousand resamples have a standard error of about 0.005 here.
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.025)


@pytest.mark.parametrize("seed_spread", [0.02, 0.05], ids=["calm seeds", "restless seeds"])
def test_two_equal_systems_are_told_apart_in_at_most_12_of_100_cases(
    seed_spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The nominal share is 5 of 100; three seeds say too little about seeds where these differ by more than rows do."""
    monkeypatch.setattr(bootstrap, "N_RESAMPLES", 1_000)
    rng = np.random.default_rng(7)
    n_repeats, n_rows, n_seeds = 120, 200, 3
    n_covered = 0
    for repeat in range(n_repeats):
        labels = rng.integers(2, size=n_rows)
        difficulty = rng.beta(1, 4, size=n_rows)  # of each row, for both systems; 0.2 in the mean

        def system(labels: Integers = labels, difficulty: Floats = difficulty) -> Integers:
            by_seed = rng.normal(scale=seed_spread, size=(n_seeds, 1))  # in accuracy, a seed's own luck
            return _flipped(labels, np.clip(difficulty + by_seed, 0, 1), rng, n_seeds)

        interval = paired_difference(f1, labels, system(), system(), n_classes=2, seed=repeat)
        n_covered += interval.low <= 0 <= interval.high
    share = n_covered / n_repeats
    assert share >= 0.88, f"the interval covers zero in {share:.0%} of {n_repeats} repeats"
