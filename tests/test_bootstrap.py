"""The paired bootstrap: exact where the answer is known, and honest where there is nothing to find."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

import numpy as np
import pytest

from hpsearch import bootstrap
from hpsearch.bootstrap import Difference, paired_difference
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
    interval = paired_difference(METRICS[metric], labels, predicted, predicted, n_classes=3, seed=1).interval
    assert (interval.mean, interval.low, interval.high) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(("before", "after", "shift"), [(0.3, 0.2, 0.1), (0.2, 0.3, -0.1)], ids=["better", "worse"])
def test_a_known_shift_is_found(before: float, after: float, shift: float) -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(2, size=4000)
    interval = paired_difference(
        accuracy, labels, _flipped(labels, before, rng, 5), _flipped(labels, after, rng, 5), n_classes=2, seed=1
    ).interval
    assert interval.low < shift < interval.high
    assert interval.low > 0 if shift > 0 else interval.high < 0
    assert interval.high - interval.low < 0.04


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("metric", METRICS)
def test_the_mean_is_the_plain_difference_of_mean_values(metric: str, n_classes: int) -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(n_classes, size=60)
    before, after = rng.integers(n_classes, size=(2, 3, 60))
    interval = paired_difference(METRICS[metric], labels, before, after, n_classes=n_classes, seed=1).interval
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
    forth = paired_difference(f1, labels, before, after, n_classes=2, seed=1).interval
    back = paired_difference(f1, labels, after, before, n_classes=2, seed=1).interval
    assert back.mean == pytest.approx(-forth.mean)
    assert (back.low, back.high) == pytest.approx((-forth.high, -forth.low), abs=0.01)


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


def test_one_seed_speaks_of_rows_alone() -> None:
    rng = np.random.default_rng(5)
    labels = rng.integers(2, size=200)
    before, after = _flipped(labels, 0.4, rng, 1), _flipped(labels, 0.1, rng, 1)
    difference = paired_difference(accuracy, labels, before, after, n_classes=2, seed=1)
    right = (after == labels).astype(float) - (before == labels)
    assert difference.standard_error == pytest.approx(right.std() / np.sqrt(200), rel=0.05)
    assert difference.interval.low > 0


def test_the_draws_are_those_of_rows_drawn_one_by_one() -> None:
    rng = np.random.default_rng(6)
    n_classes, n_seeds, n_rows = 3, 3, 40
    labels = rng.integers(n_classes, size=n_rows)
    before = np.where(rng.random((n_seeds, n_rows)) < 0.5, labels, rng.integers(n_classes, size=(n_seeds, n_rows)))
    after = np.where(rng.random((n_seeds, n_rows)) < 0.7, labels, rng.integers(n_classes, size=(n_seeds, n_rows)))

    def value(predicted: Integers, rows: Integers) -> float:
        return float(f1(confusion_matrix(labels[rows], predicted[rows], n_classes)))

    draws = rng.integers(n_rows, size=(3_000, n_rows))
    one_by_one = [[value(b, rows) - value(a, rows) for a, b in zip(before, after, strict=True)] for rows in draws]
    resampled, observed = bootstrap._differences(f1, labels, before, after, n_classes=n_classes, seed=1)
    assert resampled.shape == (2_000, n_seeds)
    every = np.arange(n_rows)
    assert observed == pytest.approx([value(b, every) - value(a, every) for a, b in zip(before, after, strict=True)])
    # Covariances of a few thousand draws have a standard error of a few hundredths of the variances.
    expected = np.cov(one_by_one, rowvar=False)
    assert np.cov(resampled, rowvar=False) == pytest.approx(expected, abs=0.1 * float(expected.max()))


@pytest.mark.parametrize("n_seeds", [2, 5])
def test_the_variance_is_that_of_a_mean_over_rows_and_seeds(n_seeds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is estimated in each repeat, on the average, is what the repeats show."""
    monkeypatch.setattr(bootstrap, "N_RESAMPLES", 300)
    differences = _simulated(200, n_seeds, 0.02, shift=0.0)
    variances = [difference.standard_error**2 for difference in differences]
    # 200 repeats know their own variance to a tenth.
    assert np.mean(variances) == pytest.approx(np.var([difference.mean for difference in differences]), rel=0.3)


def test_seeds_that_agree_by_chance_leave_the_doubt_about_rows() -> None:
    labels = np.zeros(40, dtype=np.int64)
    before = np.ones((2, 40), dtype=np.int64)
    after = before.copy()
    before[:, 4:] = 0
    after[0, 3:], after[1, [0, *range(4, 40)]] = 0, 0  # each seed right on one row more, and not on the same one
    difference = paired_difference(accuracy, labels, before, after, n_classes=2, seed=1)
    assert difference.mean == pytest.approx(1 / 40)
    assert difference.interval.low < 0


def test_what_is_detectable_follows_from_the_standard_error() -> None:
    assert Difference(0.01, 0.002, inf).detectable == pytest.approx((1.95996 + 0.84162) * 0.002, rel=1e-4)
    # The median of chi-square with 2 degrees of freedom is 2 ln 2.
    assert Difference(0.01, 0.002, 2).detectable == pytest.approx(
        (4.30265 + 1.06066) * 0.002 / np.sqrt(np.log(2)), rel=0.01
    )


# --- Cases with known answers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed_spread", [0.005, 0.02], ids=["calm seeds", "restless seeds"])
@pytest.mark.parametrize("n_seeds", [3, 5])
def test_the_interval_of_two_identical_systems_covers_zero_in_about_95_of_100_cases(
    n_seeds: int, seed_spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`benchmarks/coverage.py` simulates more of them, and what the plain percentile interval covers."""
    monkeypatch.setattr(bootstrap, "N_RESAMPLES", 300)
    n_repeats = 200
    intervals = [difference.interval for difference in _simulated(n_repeats, n_seeds, seed_spread, shift=0.0)]
    share = sum(interval.low <= 0 <= interval.high for interval in intervals) / n_repeats
    # 200 repeats of an interval that covers 95 % come out between 91.5 and 98.5 % in 99 of 100 cases.
    assert 0.915 <= share <= 0.995, f"the interval covers zero in {share:.1%} of {n_repeats} repeats"


def test_a_shift_of_three_points_is_found_by_five_seeds_on_two_thousand_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "N_RESAMPLES", 300)
    differences = _simulated(60, 5, 0.005, shift=0.03, n_rows=2_000)
    found = sum(difference.interval.low > 0 for difference in differences)
    assert found >= 54, f"found in {found} of 60"
    assert np.mean([difference.mean for difference in differences]) == pytest.approx(0.03, abs=0.003)


def _simulated(
    n_repeats: int, n_seeds: int, seed_spread: float, *, shift: float, n_rows: int = 500
) -> list[Difference]:
    """Return differences of two systems of which one errs less by `shift`; spread and shift in accuracy."""
    rng = np.random.default_rng(7)
    differences = []
    for repeat in range(n_repeats):
        labels = rng.integers(2, size=n_rows)
        # How often each row is answered wrong; most rows alike by every seed, as trained models do.
        difficulty = rng.beta(0.2, 0.8, size=n_rows)  # 0.2 in the mean

        def system(gain: float, labels: Integers = labels, difficulty: Floats = difficulty) -> Integers:
            by_seed = gain + rng.normal(scale=seed_spread, size=(n_seeds, 1))
            return _flipped(labels, np.clip(difficulty * (1 - by_seed / 0.2), 0, 1), rng, n_seeds)

        before, after = system(0.0), system(shift)
        differences.append(paired_difference(accuracy, labels, before, after, n_classes=2, seed=repeat))
    return differences
