"""What mattered, and how sure that is: on studies in which it is known."""

from __future__ import annotations

import random

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpsearch.importances import FEWEST_TRIALS, importances_of

SPACE = {
    "learning_rate": FloatDistribution(1e-5, 1e-3, log=True),
    "weight_decay": FloatDistribution(0.0, 0.1),
    "per_device_train_batch_size": CategoricalDistribution([16, 32]),
}


def trials_of(n: int, *, state: TrialState = TrialState.COMPLETE) -> list[FrozenTrial]:
    """Return trials whose value hangs on the learning rate alone."""
    rng = random.Random(0)
    trials = []
    for _ in range(n):
        power = rng.uniform(-5, -3)
        params = {
            "learning_rate": 10**power, "weight_decay": rng.uniform(0, 0.1),
            "per_device_train_batch_size": rng.choice([16, 32]),
        }  # fmt: skip
        value = 0.9 - 0.1 * abs(power + 3.5)
        trials.append(
            create_trial(
                state=state, value=value if state == TrialState.COMPLETE else None, params=params,
                distributions=SPACE, intermediate_values={1: value - 0.2, 2: value},
            )
        )  # fmt: skip
    return trials


def study_of(trials: list[FrozenTrial]) -> optuna.Study:
    study = optuna.create_study(direction="maximize")
    study.add_trials(trials)
    return study


def test_what_mattered_comes_first_and_more_trials_make_it_surer() -> None:
    few, many = (importances_of(study_of(trials_of(n))) for n in (20, 300))
    assert few is not None
    assert many is not None
    assert (many[0].name, few[0].name) == ("learning_rate", "learning_rate")
    assert many[0].mean > 0.8
    assert sum(importance.mean for importance in few) == pytest.approx(1)
    sds = [{importance.name: importance.sd for importance in some} for some in (few, many)]
    assert 0 < sds[1]["learning_rate"] < sds[0]["learning_rate"]


def test_the_same_study_gives_the_same_importances_and_keeps_its_trials() -> None:
    study = study_of(trials_of(20))
    assert importances_of(study) == importances_of(study)
    assert len(study.trials) == 20


def test_pruned_trials_count_with_their_best_evaluation() -> None:
    study = study_of([*trials_of(5), *trials_of(15, state=TrialState.PRUNED)])
    found = importances_of(study)
    assert found is not None
    assert {importance.name for importance in found} == set(SPACE)


def test_too_few_trials_or_a_study_of_somebody_else_have_none() -> None:
    assert importances_of(study_of(trials_of(FEWEST_TRIALS - 1))) is None
    assert importances_of(study_of([])) is None
    failed = create_trial(
        state=TrialState.FAIL, params={"weight_decay": 0.1}, distributions={"weight_decay": SPACE["weight_decay"]}
    )
    assert importances_of(study_of([failed] * FEWEST_TRIALS)) is None
    minimised = optuna.create_study(direction="minimize")
    minimised.add_trials(trials_of(FEWEST_TRIALS))
    assert importances_of(minimised) is None
