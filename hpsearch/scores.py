"""The metrics as an `evaluate` module that needs no hub.

`evaluate.load("f1")` fetches a script from the Hub at every call; a subclass of `evaluate.Metric` is the same interface
without it. Importing `evaluate` takes seconds, so this module is imported where a model is trained or scored.
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np

from hpsearch.metrics import METRICS, confusion_matrix


class ClassificationScores(evaluate.Metric):  # type: ignore[misc]  # evaluate ships no types
    """F1, accuracy and Matthews' coefficient of predicted class ids, with the confusion matrix they come from."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="F1 (binary for two classes, macro for more), accuracy and Matthews' correlation coefficient.",
            citation="",
            inputs_description="predictions and references: class ids, shape (n,).",
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions: list[int], references: list[int], n_classes: int) -> dict[str, Any]:
        confusion = confusion_matrix(np.asarray(references), np.asarray(predictions), n_classes)
        values = {name: float(metric(confusion)) for name, metric in METRICS.items()}
        return {**values, "confusion": confusion.tolist()}


def classification_scores() -> ClassificationScores:
    """Return the module, keeping its inputs in memory rather than in a cache file."""
    return ClassificationScores(keep_in_memory=True)
