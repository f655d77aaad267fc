"""How sure a difference between two systems is: a paired bootstrap over test rows, and the spread between seeds."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, sqrt
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import stdtrit

from hpsearch.evidence import Interval

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Integers = NDArray[np.int64]

N_RESAMPLES = 10_000
_RESAMPLES_AT_ONCE = 1_000  # bounds the memory of the arrays below
_CONFIDENCE, _POWER = 0.95, 0.8


@dataclass(frozen=True, slots=True)
class Difference:
    """How much better one system scores than another, and how sure that is."""

    mean: float
    """Over the seeds, on the test rows."""
    standard_error: float
    """Of `mean`, over other test rows and other seeds."""
    degrees_of_freedom: float
    """Of the standard error: how well it is known itself; infinite where rows alone make it up."""

    @property
    def interval(self) -> Interval:
        """Return the difference with its 95 % interval."""
        half = self._quantile((1 + _CONFIDENCE) / 2) * self.standard_error
        return Interval(mean=self.mean, low=self.mean - half, high=self.mean + half)

    @property
    def detectable(self) -> float:
        """Return the smallest true difference for which four in five such comparisons have an interval without zero.

        Source:
            Bloom 1995, "Minimum Detectable Effects", Evaluation Review 19(5): the two quantiles of Student's t times
            the standard error; (1.96 + 0.84) times it where the degrees of freedom are many. Where they are few, a
            standard error is more often too small than too large, here set right by the median of chi-square in
            Wilson & Hilferty 1931, "The distribution of chi-square".
        """
        typical = float((1 - 2 / (9 * self.degrees_of_freedom)) ** 1.5)  # median of an estimate by its true value
        return (self._quantile((1 + _CONFIDENCE) / 2) + self._quantile(_POWER)) * self.standard_error / typical

    def _quantile(self, share: float) -> float:
        return float(stdtrit(self.degrees_of_freedom, share))


def paired_difference(
    metric: Callable[[NDArray[np.int64]], Floats],
    labels: Integers,
    before: Integers,
    after: Integers,
    *,
    n_classes: int,
    seed: int,
) -> Difference:
    """Return how much better `after` scores than `before`, and how far other rows and seeds would have moved that.

    A difference has two sources of chance: which rows the test split happens to hold, and which seeds were drawn.

    - Rows are drawn with replacement 10,000 times, and both systems with all their seeds are scored on the same draw.
      That gives the variance of the mean difference from rows, `rows` below.
    - Seeds are few, and drawing three of three with replacement again and again says too little of what a fourth would
      do. So their part is taken from the variance between the seeds' own differences, with its n - 1 in the
      denominator. Some of that variance is the rows' again, as each seed errs on rows of its own; how much of it, the
      draws of rows tell (`both` below), and that is not counted twice.

    The interval is the mean plus or minus Student's t times the standard error, at Satterthwaite's degrees of freedom:
    few where seeds make up most of it, many where rows do. With one seed it speaks of rows alone.

    How often the interval of two equally good systems holds zero, and how often a shift is found, is simulated in
    `benchmarks/coverage.py`, beside the plain percentile interval of drawing rows and seeds.

    Args:
        metric: From confusion matrices, shape (..., n_classes, n_classes), to values, shape (...).
        labels: True class ids, shape (n_rows,).
        before: Predicted class ids of one system, shape (n_seeds, n_rows).
        after: Those of the other, the same seeds in the same order, shape (n_seeds, n_rows).
        n_classes: Classes of the task.
        seed: Of the resampling.

    Source:
        Sellam et al. 2022, "The MultiBERTs", section 4 (arXiv:2106.16163): rows and seeds as two samples, paired by
        both. Owen 2007, "The pigeonhole bootstrap" (arXiv:0712.1111): drawing both counts what rows and seeds do
        together three times. Satterthwaite 1946, "An approximate distribution of estimates of variance components".
    """
    return _estimate(*_differences(metric, labels, before, after, n_classes=n_classes, seed=seed))


def _estimate(by_resample: Floats, observed: Floats) -> Difference:
    """Put together what draws of rows say, shape (n_resamples, n_seeds), and what seeds say, shape (n_seeds,)."""
    n_seeds = len(observed)
    covariance = np.cov(by_resample, rowvar=False).reshape(n_seeds, n_seeds)  # over draws of rows, between seeds
    rows = float(covariance.mean())  # variance of the mean over the seeds
    if n_seeds == 1:
        return Difference(float(observed[0]), sqrt(rows), inf)
    between = float(observed.var(ddof=1)) / n_seeds
    # Of one seed's variance over rows, what it does not share with the other seeds.
    own = float(np.trace(covariance)) / n_seeds
    both = (own - (n_seeds * rows - own) / (n_seeds - 1)) / n_seeds
    variance = rows + max(0.0, between - both)
    freedom = (n_seeds - 1) * (variance / between) ** 2 if between else inf
    return Difference(float(observed.mean()), sqrt(variance), freedom)


def _differences(
    metric: Callable[[NDArray[np.int64]], Floats],
    labels: Integers,
    before: Integers,
    after: Integers,
    *,
    n_classes: int,
    seed: int,
) -> tuple[Floats, Floats]:
    """Return each seed's difference on draws of rows, shape (N_RESAMPLES, n_seeds), and on all rows, shape (n_seeds,).

    Rows that all runs answer alike are interchangeable: drawing how often each pattern comes up is the same bootstrap
    as drawing rows, on a few hundred patterns instead of tens of thousands of rows.
    """
    n_seeds, n_rows = before.shape
    answers = np.concatenate([labels[None], before, after]).T  # (n_rows, 1 + 2 n_seeds)
    patterns, counts = np.unique(answers, axis=0, return_counts=True)
    cells = np.stack([_cells(patterns[:, 0], patterns[:, 1 + run], n_classes) for run in range(2 * n_seeds)])

    def differences(weights: Integers) -> Floats:  # (b, n_patterns) -> (b, n_seeds)
        confusion = np.einsum("bp,rpc->brc", weights, cells, optimize=True)
        values = metric(confusion.reshape(*confusion.shape[:2], n_classes, n_classes))
        return values[:, n_seeds:] - values[:, :n_seeds]

    rng = np.random.default_rng(seed)
    resampled = [
        differences(rng.multinomial(n_rows, counts / n_rows, size=min(_RESAMPLES_AT_ONCE, N_RESAMPLES - start)))
        for start in range(0, N_RESAMPLES, _RESAMPLES_AT_ONCE)
    ]
    return np.concatenate(resampled), differences(counts[None])[0]


def _cells(labels: Integers, predicted: Integers, n_classes: int) -> Integers:
    """Return the confusion-matrix cell of each row as a one-hot, shape (n, n_classes ** 2)."""
    one_hot: Integers = np.eye(n_classes**2, dtype=np.int64)[labels * n_classes + predicted]
    return one_hot
