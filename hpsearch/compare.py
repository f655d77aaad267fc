"""Defaults against tuned, on the sealed test split: the question users really have.

Both are trained the same way on the same seeds, none of them the search's or the confirmation's, and each keeps the
weights of its best evaluation on the validation rows. Only then are the test rows scored, and the look at them counted.
A linear model on character n-grams is the cheap baseline that a fine-tuned encoder should beat.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
from filelock import FileLock
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from hpsearch.bootstrap import paired_difference
from hpsearch.choice import candidates_of, choose, default_params
from hpsearch.data import load_test
from hpsearch.errors import StudyError
from hpsearch.evidence import Comparison, Side, count_look, keep_comparison
from hpsearch.flips import find_flips, write_flips
from hpsearch.metrics import METRICS, accuracy, confusion_matrix, f1, mcc
from hpsearch.runs import Runs, Training, fresh_seeds
from hpsearch.search import products_of, task_of
from hpsearch.slices import slices_of
from hpsearch.study import stored_config
from hpsearch.tokens import tokenise

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import optuna
    from numpy.typing import NDArray

    from hpsearch.choice import Choice
    from hpsearch.data import SearchData, Split
    from hpsearch.evidence import Interval
    from hpsearch.model import ModelSource
    from hpsearch.observer import Observer
    from hpsearch.runs import Run
    from hpsearch.space import Scalar
    from hpsearch.study import StudyPaths
    from hpsearch.trainer import Task

    Integers = NDArray[np.int64]


def compare(
    study: optuna.Study,
    paths: StudyPaths,
    *,
    n_seeds: int,
    observer: Observer,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Comparison:
    """Train defaults and tuned on fresh seeds, compare them on the test rows and keep the result with the study.

    The tuned side is the confirmation's winner where there is one, else the search's best trial. Finished trainings are
    kept in the study's folder, so that an interrupted comparison goes on where it was, and several processes share one.
    The file of flips is written anew.

    Raises:
        Interrupted: If a stop was requested; the test rows have not been scored then, and no look is counted.
        StudyError: If there is no complete trial besides the defaults, or a side diverges.
        UsageError: If data or model have changed since the search.
    """
    config = stored_config(study)
    candidates_of(study, config, n_best=1)  # or say that there is nothing to compare
    choice = choose(study)
    if choice.note:
        observer.note(choice.note)
    task = task_of(study, config)
    test = load_test(config.data)
    seeds = fresh_seeds(config.search.seed, n_seeds, block=0)
    runs = Runs(
        task,
        paths.comparison,
        identity={"lock": study.user_attrs["lock"], "test": test.fingerprint()},
        products=products_of(study, task),
        token_cache=paths.tokens,
        observer=observer,
        stop_requested=stop_requested,
        scored=test,
    )
    sides = {"defaults": config.defaults, "tuned": config.defaults.replace(choice.trial.params)}
    # In turn, so that an interrupted comparison has pairs.
    finished = runs.finish([Training(name, values, seed) for seed in seeds for name, values in sides.items()])
    default, tuned = finished[::2], finished[1::2]
    _refuse_failures(study.study_name, finished)
    with FileLock(paths.comparison / "result.lock"):  # processes that share a comparison end it at the same time
        comparison = _result(study, paths, task, test, choice, default=default, tuned=tuned)
        keep_comparison(study, comparison)
    return comparison


def _result(
    study: optuna.Study,
    paths: StudyPaths,
    task: Task,
    test: Split,
    choice: Choice,
    *,
    default: Sequence[Run],
    tuned: Sequence[Run],
) -> Comparison:
    """Score the test rows, count the look, and write the flips."""
    config, names = task.config, task.data.label_names
    seeds = tuple(run.seed for run in default)
    before, after = (np.stack([run.scored() for run in side]) for side in (default, tuned))
    answers = {"default": before.argmax(axis=-1), "tuned": after.argmax(axis=-1)}  # (n_seeds, n_rows)
    differences = {
        name: paired_difference(metric, test.labels, *answers.values(), n_classes=len(names), seed=seeds[0])
        for name, metric in METRICS.items()
    }
    intervals = {name: difference.interval for name, difference in differences.items()}
    flips = find_flips(test, names, before, after)
    write_flips(paths.flips, flips)
    n_gained = sum(flip.tuned == flip.label for flip in flips)
    tokens = tokenise(task.model, test.texts, fingerprint=test.fingerprint(), cache=paths.tokens)
    is_default = config.defaults.replace(choice.trial.params) == config.defaults
    return Comparison(
        study=study.study_name,
        metric=config.metric,
        trial=choice.trial.number,
        chosen_by=choice.chosen_by,
        labels=names,
        test_rows=len(test),
        test_fingerprint=test.fingerprint(),
        looks=count_look(study),
        seeds=seeds,
        default=_side(default_params(config), test, answers["default"], len(names)),
        tuned=_side(dict(choice.trial.params), test, answers["tuned"], len(names)),
        linear=linear_baseline(task.data, test),
        **intervals,
        detectable=differences[config.metric].detectable,
        answer=answer(intervals[config.metric]),
        verdict=verdict(intervals[config.metric], config.metric, best_is_default=is_default),
        slices=slices_of(test.labels, names, tokens, _unknown(task.model), **answers),
        flips_file=paths.flips.name,
        n_gained=n_gained,
        n_lost=len(flips) - n_gained,
        # Of the defaults with themselves, each training is both sides.
        seconds=round(sum(run.seconds for run in (default if is_default else [*default, *tuned])), 3),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def answer(difference: Interval) -> str:
    """Return in a word what a difference's interval says: `better`, `worse` or `no evidence`."""
    if difference.low > 0:
        return "better"
    return "worse" if difference.high < 0 else "no evidence"


def verdict(difference: Interval, metric: str, *, best_is_default: bool) -> str:
    """Return in plain words what a difference and its interval say."""
    if best_is_default:
        return "no evidence that tuning helped: no trial beat the defaults, which are the best themselves; keep them"
    mean, low, high = (f"{value * 100:+.2f}" for value in (difference.mean, difference.low, difference.high))
    points = f"{metric} {mean} points, 95 % interval {low} to {high}"
    return {
        "better": f"tuning helped: {points}",
        "worse": f"tuning hurt: {points}; keep the defaults",
        "no evidence": f"no evidence that tuning helped: {points}; keep the defaults",
    }[answer(difference)]


def linear_baseline(data: SearchData, test: Split) -> dict[str, float]:
    """Return the test scores of TF-IDF over character 1-4-grams with a logistic regression."""
    model = make_pipeline(
        TfidfVectorizer(analyzer="char", ngram_range=(1, 4), sublinear_tf=True), LogisticRegression(C=10, max_iter=1000)
    )
    model.fit(list(data.train.texts), data.train.labels)
    confusion = confusion_matrix(test.labels, model.predict(list(test.texts)), len(data.label_names))
    return {name: float(metric(confusion)) for name, metric in METRICS.items()}


def _refuse_failures(study: str, runs: Sequence[Run]) -> None:
    for run in runs:
        if run.failure:
            raise StudyError(
                f"study {study!r}: expected that both sides train, got one ({run.name}) that with seed {run.seed} "
                f"{run.failure}; `hpsearch confirm` leaves such hyperparameters out"
            )


def _side(params: dict[str, Scalar], test: Split, predicted: Integers, n_classes: int) -> Side:
    confusions = np.stack([confusion_matrix(test.labels, one_seed, n_classes) for one_seed in predicted])
    return Side(
        params=params,
        f1=tuple(f1(confusions).tolist()),
        accuracy=tuple(accuracy(confusions).tolist()),
        mcc=tuple(mcc(confusions).tolist()),
        confusion=tuple(map(tuple, confusions.sum(axis=0).tolist())),
    )


def _unknown(model: ModelSource) -> tuple[str, int] | None:
    tokenizer = model.tokenizer
    return None if tokenizer.unk_token is None else (str(tokenizer.unk_token), int(tokenizer.unk_token_id))
