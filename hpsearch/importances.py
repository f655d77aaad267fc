"""Which hyperparameters mattered for reaching the best values, each with an error.

Optuna's PED-ANOVA asks how differently a hyperparameter is spread among the best trials and among all. It says nothing
of how sure that is, and on twenty trials it is not sure: hence the resampling. The evaluators come with fANOVA, which
loads scikit-learn (two seconds), so this module is imported only by what was asked for importances.

Source:
    Watanabe et al. 2023, "PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in Arbitrary Subspaces"
    (arXiv:2304.10255), in Optuna 5.0.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import optuna
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from hpsearch.study import reached

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna.trial import FrozenTrial

FEWEST_TRIALS = 10
"""Finished trials that importances take: five in the better half, fewer of which Optuna advises against."""
_BEST_SHARE, _FEWEST_BEST = 0.1, 5
_RESAMPLES = 20
_MOST_TRIALS = 200  # in a resample: to make its study takes 0.1 ms a trial


@dataclass(frozen=True, slots=True)
class Importance:
    """How much one hyperparameter mattered."""

    name: str
    mean: float
    """Share of the importance of all, in [0, 1]."""
    sd: float
    """Its standard deviation over resamples of the trials: how much it would differ in another search as long."""


def importances_of(study: optuna.Study, *, seed: int = 0) -> list[Importance] | None:
    """Return how much each hyperparameter mattered, the most important first.

    It is computed on bootstrap resamples of the finished trials, a pruned one with its best evaluation. The best are a
    tenth of them, at least five.

    Args:
        study: Its trials.
        seed: Of the resampling.

    Returns:
        None with fewer than `FEWEST_TRIALS` finished trials, and for studies that do not maximise one value.
    """
    if study.directions != [StudyDirection.MAXIMIZE]:
        return None
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    trials = [
        create_trial(value=value, params=trial.params, distributions=trial.distributions)
        for trial in finished
        if (value := reached(trial)) is not None and trial.params
    ]
    if len(trials) < FEWEST_TRIALS:
        return None
    size = min(len(trials), _MOST_TRIALS)
    rng = np.random.default_rng(seed)
    resampled = [_evaluate([trials[i] for i in rng.integers(len(trials), size=size)]) for _ in range(_RESAMPLES)]
    names = {name for shares in resampled for name in shares}
    shares = {name: np.array([each.get(name, 0.0) for each in resampled]) for name in names}
    # Of a resample of m from n trials the spread is that of m trials.
    shrink = (size / len(trials)) ** 0.5
    found = [Importance(name, float(each.mean()), float(each.std(ddof=1)) * shrink) for name, each in shares.items()]
    return sorted(found, key=lambda importance: (-importance.mean, importance.name))


def _evaluate(trials: Sequence[FrozenTrial]) -> dict[str, float]:
    """Return each hyperparameter's share by PED-ANOVA on some trials, which may stand there more than once."""
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances  # with scikit-learn: a second

    with warnings.catch_warnings(action="ignore"):  # such as of a resample in which all values are the same
        study = optuna.create_study(direction="maximize")
        study.add_trials(trials)
        quantile = max(_BEST_SHARE, _FEWEST_BEST / len(trials))
        return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(target_quantile=quantile))
