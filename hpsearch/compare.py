"""Defaults against tuned, on the sealed test split: the question users really have.

Both are trained the same way on the same seeds, none of them the search's, and each keeps the weights of its best
evaluation on the validation rows. Only then are the test rows scored. A linear model on character n-grams is the cheap
baseline that a fine-tuned encoder should beat.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from hpsearch.bootstrap import paired_difference
from hpsearch.checkpoints import model_of
from hpsearch.config import digest
from hpsearch.data import load_test
from hpsearch.evidence import Interval
from hpsearch.metrics import METRICS, accuracy, confusion_matrix, f1
from hpsearch.search import products_of, search_data_of
from hpsearch.study import best_trial, stored_config
from hpsearch.trainer import SearchTrainer, Task

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import optuna
    from numpy.typing import NDArray

    from hpsearch.config import Hyperparameters
    from hpsearch.data import SearchData, Split
    from hpsearch.observer import Observer
    from hpsearch.space import Scalar
    from hpsearch.study import StudyPaths

    Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Side:
    """One system's test scores, one value per seed in the order of the seeds."""

    params: dict[str, Scalar]
    f1: tuple[float, ...]
    accuracy: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Paired test scores of the defaults and the best trial's hyperparameters."""

    study: str
    metric: str
    trial: int
    """The tuned side's trial."""
    test_rows: int
    seeds: tuple[int, ...]
    default: Side
    tuned: Side
    linear: dict[str, float]
    """F1 and accuracy of the linear model."""
    difference: Interval
    """Of `metric`, tuned minus default."""
    verdict: str


def compare(
    study: optuna.Study,
    paths: StudyPaths,
    *,
    n_seeds: int,
    observer: Observer,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Comparison:
    """Train defaults and tuned on fresh seeds and compare them on the test rows.

    Finished trainings are kept in the study's folder, so that an interrupted comparison goes on where it was.

    Raises:
        Interrupted: If a stop was requested.
        StudyError: If no trial is complete.
        UsageError: If data or model have changed since the search.
    """
    config = stored_config(study)
    best = best_trial(study)
    data = search_data_of(study, config)
    test = load_test(config.data)
    task = Task(config=config, model=model_of(study, config), data=data)
    # The search's own seed chose the best trial.
    seeds = tuple((config.search.seed + 1 + i) % 2**32 for i in range(n_seeds))
    products = products_of(study, task)
    identity = {"lock": study.user_attrs["lock"], "test": test.fingerprint(), "products": products}
    runs = _Runs(task, test, identity, paths.comparison, observer, stop_requested)

    tuned_params = config.defaults.replace(best.params)
    before, after = [], []
    for seed in seeds:  # in turn, so that an interrupted comparison has pairs
        before.append(runs.predictions("defaults", config.defaults, seed))
        after.append(runs.predictions("tuned", tuned_params, seed))
    n_classes = len(data.label_names)
    difference = paired_difference(
        METRICS[config.metric], test.labels, np.stack(before), np.stack(after), n_classes=n_classes, seed=seeds[0]
    )
    same = tuned_params == config.defaults
    return Comparison(
        study=study.study_name,
        metric=config.metric,
        trial=best.number,
        test_rows=len(test),
        seeds=seeds,
        default=_side({name: getattr(config.defaults, name) for name in config.space}, test, before, n_classes),
        tuned=_side(dict(best.params), test, after, n_classes),
        linear=linear_baseline(data, test),
        difference=difference,
        verdict=verdict(difference, config.metric, best_is_default=same),
    )


def verdict(difference: Interval, metric: str, *, best_is_default: bool) -> str:
    """Return in plain words what a difference and its interval say."""
    mean, low, high = (f"{value * 100:+.2f}" for value in (difference.mean, difference.low, difference.high))
    points = f"{metric} {mean} points, 95 % interval {low} to {high}"
    if best_is_default:
        return "no evidence that tuning helped: no trial beat the defaults, which are the best trial themselves"
    if difference.low > 0:
        return f"tuning helped: {points}"
    if difference.high < 0:
        return f"tuning hurt: {points}; keep the defaults"
    return f"no evidence that tuning helped: {points}; keep the defaults"


def linear_baseline(data: SearchData, test: Split) -> dict[str, float]:
    """Return test F1 and accuracy of TF-IDF over character 1-4-grams with a logistic regression."""
    model = make_pipeline(
        TfidfVectorizer(analyzer="char", ngram_range=(1, 4), sublinear_tf=True), LogisticRegression(C=10, max_iter=1000)
    )
    model.fit(list(data.train.texts), data.train.labels)
    confusion = confusion_matrix(test.labels, model.predict(list(test.texts)), len(data.label_names))
    return {"f1": float(f1(confusion)), "accuracy": float(accuracy(confusion))}


class _Runs:
    """Trainings of a comparison, each done once and kept."""

    def __init__(
        self,
        task: Task,
        test: Split,
        identity: dict[str, Any],
        folder: Path,
        observer: Observer,
        stop_requested: Callable[[], bool],
    ) -> None:
        self._task = task
        self._test = test
        self._identity = identity  # what a kept training must agree in, besides its hyperparameters and seed
        self._folder = folder
        self._observer = observer
        self._stop_requested = stop_requested
        self._trainer: SearchTrainer | None = None

    def predictions(self, side: str, hyperparameters: Hyperparameters, seed: int) -> Integers:
        """Return the predicted class ids of the test rows, shape (n_rows,)."""
        key = digest({**self._identity, "hyperparameters": hyperparameters.model_dump(mode="json"), "seed": seed})
        path = self._folder / f"{key}.json"
        if path.is_file():
            kept = json.loads(path.read_text(encoding="utf-8"))
            return np.array(kept["predictions"], dtype=np.int64)
        name = f"{side}, seed {seed}"
        self._observer.trial_started(name, hyperparameters)
        if self._trainer is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._trainer = SearchTrainer(
                self._task,
                folder=self._folder,
                observer=self._observer,
                products=self._identity["products"],
                stop_requested=self._stop_requested,
                also_scored=(self._test,),
            )
        outcome = self._trainer.fit(hyperparameters, seed=seed)
        predicted = self._trainer.probabilities(self._test).argmax(axis=1)
        self._trainer.release()
        record = {"side": side, "seed": seed, "validation": outcome.best.scores, "seconds": outcome.seconds}
        aside = path.with_suffix(f".partial-{os.getpid()}")
        aside.write_text(json.dumps({**record, "predictions": predicted.tolist()}), encoding="utf-8")
        aside.replace(path)
        self._observer.trial_ended(name, "complete", outcome.value, outcome.seconds)
        return np.asarray(predicted, dtype=np.int64)


def _side(params: dict[str, Scalar], test: Split, predictions: list[Integers], n_classes: int) -> Side:
    confusions = [confusion_matrix(test.labels, predicted, n_classes) for predicted in predictions]
    return Side(
        params=params,
        f1=tuple(float(f1(confusion)) for confusion in confusions),
        accuracy=tuple(float(accuracy(confusion)) for confusion in confusions),
    )
