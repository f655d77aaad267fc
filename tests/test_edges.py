"""A best trial at an end of the space, and what is proposed then: spaces by hand, and every hyperparameter there is."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import create_trial

from hpsearch.config import Hyperparameters, build_config
from hpsearch.edges import edges_of
from hpsearch.evidence import Candidate, Confirmation, keep_confirmation

NUMERIC = [name for name in Hyperparameters.model_fields if name != "lr_scheduler_type"]
WHOLE = {"per_device_train_batch_size", "gradient_accumulation_steps"}


def study_of(name: str, distribution: BaseDistribution, best: Any, other: Any | None = None) -> optuna.Study:
    study = optuna.create_study(direction="maximize")
    for value, score in ((best, 0.8), (other, 0.7)):
        if value is not None:
            study.add_trial(create_trial(value=score, params={name: value}, distributions={name: distribution}))
    return study


RATES = FloatDistribution(1e-5, 1e-3, log=True)  # its middle is 1e-4
SIZES = CategoricalDistribution([16, 32, 64])


@pytest.mark.parametrize(
    ("name", "distribution", "best", "expected"),
    [
        # The range spans two powers of ten and so 5 % of it a tenth of one: to 7.94e-4. Half of it is one power of ten.
        ("learning_rate", RATES, 8e-4, ["space.learning_rate.high=0.01"]),
        ("learning_rate", RATES, 7.9e-4, []),
        ("learning_rate", RATES, 1.2e-5, ["space.learning_rate.low=1e-06"]),
        ("learning_rate", FloatDistribution(0.1, 0.9, log=True), 0.9, ["space.learning_rate.high=0.95"]),
        ("weight_decay", FloatDistribution(0, 0.1), 0.0951, ["space.weight_decay.high=0.15"]),
        ("weight_decay", FloatDistribution(0, 0.1), 0.0949, []),
        ("weight_decay", FloatDistribution(0, 0.1), 0.0, []),  # it cannot be below 0
        ("warmup_steps", FloatDistribution(0, 0.8), 0.8, ["space.warmup_steps.high=0.95"]),  # 1 would be one step
        ("warmup_steps", FloatDistribution(0, 100), 100.0, ["space.warmup_steps.high=150.0"]),
        ("num_train_epochs", IntDistribution(2, 10), 10, ["space.num_train_epochs.high=14"]),
        ("num_train_epochs", IntDistribution(2, 10), 9, []),
        ("num_train_epochs", IntDistribution(2, 10), 2, ["space.num_train_epochs.low=1"]),
        ("num_train_epochs", IntDistribution(1, 10), 1, []),
        ("max_grad_norm", FloatDistribution(0.5, 2.5), 0.5, ["space.max_grad_norm.low=0.25"]),
        ("per_device_train_batch_size", SIZES, 64, ["space.per_device_train_batch_size.choices=[16, 32, 64, 128]"]),
        ("per_device_train_batch_size", SIZES, 16, ["space.per_device_train_batch_size.choices=[8, 16, 32, 64]"]),
        ("per_device_train_batch_size", SIZES, 32, []),
        ("num_train_epochs", CategoricalDistribution([3, 1, 2]), 3, ["space.num_train_epochs.choices=[1, 2, 3, 4]"]),
        ("num_train_epochs", CategoricalDistribution([1, 2, 4]), 1, []),
        ("lr_scheduler_type", CategoricalDistribution(["cosine", "linear"]), "linear", []),
        ("weight_decay", CategoricalDistribution([0.1]), 0.1, []),
    ],
)  # fmt: skip
def test_an_end_is_moved_by_half_the_spaces_width_and_no_further_than_is_allowed(
    name: str, distribution: BaseDistribution, best: Any, expected: list[str]
) -> None:
    assert [edge.setting for edge in edges_of(study_of(name, distribution, best))] == expected


@pytest.mark.parametrize("side", ["low", "high"])
@pytest.mark.parametrize("name", NUMERIC)
def test_a_configuration_takes_whatever_is_proposed(name: str, side: str, toy_tree: dict[str, Any]) -> None:
    low, high = (2, 4) if name in WHOLE else (0.5, 4.0) if name == "num_train_epochs" else (0.0001, 0.9)
    end = {"low": low, "high": high}[side]
    for is_log in (False, True):
        made = IntDistribution(low, high, log=is_log) if name in WHOLE else FloatDistribution(low, high, log=is_log)
        (edge,) = edges_of(study_of(name, made, end))
        space = {"type": "int" if name in WHOLE else "float", "low": low, "high": high, "log": is_log}
        tree = {**toy_tree, "defaults": {name: high}, "space": {name: space}}
        bound = getattr(build_config(tree, [edge.setting], where="toy").space[name], side)
        assert bound < low if side == "low" else bound > high


def test_the_confirmed_winner_is_looked_at_where_there_is_one() -> None:
    study = study_of("num_train_epochs", IntDistribution(2, 10), best=10, other=5)
    assert len(edges_of(study)) == 1
    winner = Candidate(trial=1, is_defaults=False, params={"num_train_epochs": 5}, search_value=0.7, values=(0.8, 0.8))
    keep_confirmation(study, Confirmation("f1", (1, 2), (winner,), 10.0, "2024-05-01"))
    assert edges_of(study) == []


def test_a_study_without_a_complete_trial_or_of_somebody_else_has_no_edges() -> None:
    assert edges_of(optuna.create_study(direction="maximize")) == []
    minimised = optuna.create_study(direction="minimize")
    space = {"x": FloatDistribution(0, 1)}
    minimised.add_trial(create_trial(value=1.0, params={"x": 1.0}, distributions=space))
    assert edges_of(minimised) == []
