"""How sure a difference between two systems is: a paired bootstrap over test rows and seeds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hpsearch.evidence import Interval

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Integers = NDArray[np.int64]

N_RESAMPLES = 10_000
_RESAMPLES_AT_ONCE = 1_000  # bounds the memory of the arrays below


def paired_difference(
    metric: Callable[[NDArray[np.int64]], Floats],
    labels: Integers,
    before: Integers,
    after: Integers,
    *,
    n_classes: int,
    seed: int,
) -> Interval:
    """Return how much better `after` scores than `before`, with a 95 % percentile interval.

    Test rows and seeds are drawn with replacement at the same time, and both systems are scored on the same draw: the
    interval covers what another test sample and other seeds would have shown.

    Args:
        metric: From confusion matrices, shape (..., n_classes, n_classes), to values, shape (...).
        labels: True class ids, shape (n_rows,).
        before: Predicted class ids of one system, shape (n_seeds, n_rows).
        after: Those of the other, the same seeds in the same order, shape (n_seeds, n_rows).
        n_classes: Classes of the task.
        seed: Of the resampling.

    Source:
        Sellam et al. 2022, "The MultiBERTs", section 4 (arXiv:2106.16163): the multi-bootstrap, paired by seed.
    """
    n_seeds, n_rows = before.shape
    # Rows that all runs answer alike are interchangeable: drawing how often each pattern comes up is the same bootstrap
    # as drawing rows, on a few hundred patterns instead of tens of thousands of rows.
    answers = np.concatenate([labels[None], before, after]).T  # (n_rows, 1 + 2 n_seeds)
    patterns, counts = np.unique(answers, axis=0, return_counts=True)
    cells = np.stack([_cells(patterns[:, 0], patterns[:, 1 + run], n_classes) for run in range(2 * n_seeds)])

    def differences(weights: Integers) -> Floats:  # (b, n_patterns) -> (b, n_seeds)
        confusion = np.einsum("bp,rpc->brc", weights, cells, optimize=True)
        values = metric(confusion.reshape(*confusion.shape[:2], n_classes, n_classes))
        return values[:, n_seeds:] - values[:, :n_seeds]

    rng = np.random.default_rng(seed)
    resampled = []
    for _ in range(0, N_RESAMPLES, _RESAMPLES_AT_ONCE):
        by_seed = differences(rng.multinomial(n_rows, counts / n_rows, size=_RESAMPLES_AT_ONCE))
        seeds = rng.integers(n_seeds, size=(_RESAMPLES_AT_ONCE, n_seeds))
        resampled.append(np.take_along_axis(by_seed, seeds, axis=1).mean(axis=1))
    low, high = np.percentile(np.concatenate(resampled), [2.5, 97.5])
    return Interval(mean=float(differences(counts[None]).mean()), low=float(low), high=float(high))


def _cells(labels: Integers, predicted: Integers, n_classes: int) -> Integers:
    """Return the confusion-matrix cell of each row as a one-hot, shape (n, n_classes ** 2)."""
    one_hot: Integers = np.eye(n_classes**2, dtype=np.int64)[labels * n_classes + predicted]
    return one_hot
