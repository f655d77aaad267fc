"""Classification metrics as functions of confusion matrices.

A confusion matrix C has shape (..., n_classes, n_classes): C[..., i, j] counts the rows of class i that were predicted
as j. Leading dimensions are batches, so that thousands of bootstrap resamples are scored in one call. Class 1 is the
positive one where there are two classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Integers = NDArray[np.int64]


def confusion_matrix(labels: Integers, predicted: Integers, n_classes: int) -> Integers:
    """Count rows by true and predicted class.

    Args:
        labels: True class ids, shape (n,), each in [0, n_classes).
        predicted: Class ids, shape (n,), each in [0, n_classes).
        n_classes: Classes of the task, including any absent from `labels`.

    Returns:
        Counts, shape (n_classes, n_classes); rows are the true classes.

    Raises:
        ValueError: If the two arrays differ in shape.
    """
    if labels.shape != predicted.shape:
        raise ValueError(f"expected as many predictions as labels, got {predicted.shape} and {labels.shape}")
    pairs = labels.astype(np.int64) * n_classes + predicted
    return np.bincount(pairs, minlength=n_classes**2).reshape(n_classes, n_classes)


def accuracy(confusion: NDArray[Any]) -> Floats:
    """Return the share of rows predicted right, shape (...), in [0, 1]."""
    return _ratio(np.trace(confusion, axis1=-2, axis2=-1), confusion.sum(axis=(-2, -1)))


def f1(confusion: NDArray[Any]) -> Floats:
    """Return the F1 value, shape (...), in [0, 1]: of class 1 for two classes, else averaged with equal weight.

    A class that is neither predicted nor present counts 0 in the average.

    Source:
        Opitz & Burst 2021, "Macro F1 and Macro F1", eq. 2 (arXiv:1911.03347).
    """
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    values = _ratio(2 * right, confusion.sum(axis=-1) + confusion.sum(axis=-2))  # (..., n_classes)
    binary = confusion.shape[-1] == 2
    result: Floats = values[..., 1] if binary else values.mean(axis=-1)
    return result


def mcc(confusion: NDArray[Any]) -> Floats:
    """Return Matthews' correlation coefficient, shape (...), in [-1, 1]; 0 where it is not defined.

    Source:
        Gorodkin 2004, "Comparing two K-category assignments by a K-category correlation coefficient", eq. 8.
    """
    counts = confusion.astype(np.float64)
    total = counts.sum(axis=(-2, -1))
    true, predicted = counts.sum(axis=-1), counts.sum(axis=-2)  # (..., n_classes)
    covariance = np.trace(counts, axis1=-2, axis2=-1) * total - (true * predicted).sum(axis=-1)
    spread = (total**2 - (true**2).sum(axis=-1)) * (total**2 - (predicted**2).sum(axis=-1))
    return _ratio(covariance, np.sqrt(spread))


METRICS: dict[str, Callable[[NDArray[Any]], Floats]] = {"f1": f1, "accuracy": accuracy, "mcc": mcc}


def _ratio(numerator: NDArray[Any], denominator: NDArray[Any]) -> Floats:
    result = np.zeros(np.shape(numerator))
    np.divide(numerator, denominator, out=result, where=np.asarray(denominator) != 0)
    return result
