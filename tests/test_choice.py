"""Which trial a study stands for, while it is searched, confirmed and searched again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from hpsearch.choice import candidates_of, choose
from hpsearch.errors import StudyError
from hpsearch.evidence import Candidate, Confirmation, confirmation_of, keep_confirmation

if TYPE_CHECKING:
    from collections.abc import Callable

    from optuna.trial import FrozenTrial

    from hpsearch.config import Config

DEFAULT_RATE = 3e-3
_SPACE = {
    "learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
    "num_train_epochs": FloatDistribution(1, 3),
    "per_device_train_batch_size": FloatDistribution(8, 16),
}


def _trial(value: float | None, learning_rate: float, state: TrialState = TrialState.COMPLETE) -> FrozenTrial:
    params: dict[str, Any] = {
        "learning_rate": learning_rate, "num_train_epochs": 2, "per_device_train_batch_size": 16,
    }  # fmt: skip
    return create_trial(state=state, value=value, params=params, distributions=_SPACE)


def _study(*trials: FrozenTrial) -> optuna.Study:
    study = optuna.create_study(study_name="reviews", direction="maximize")
    study.add_trials(trials)
    return study


def _confirm(study: optuna.Study, *numbers: int, left_out: tuple[int, ...] = ()) -> Confirmation:
    """Keep a confirmation that ranks trials in the order given."""
    trials = study.trials
    candidates = tuple(
        Candidate(
            number, is_defaults=False, params=trials[number].params, search_value=trials[number].value,
            values=(0.9 - 0.1 * place, 0.8 - 0.1 * place),
        )
        for place, number in enumerate(numbers)
    )  # fmt: skip
    confirmation = Confirmation("f1", (108, 109), candidates, seconds=1.5, date="2026-11-25", left_out=left_out)
    keep_confirmation(study, confirmation)
    return confirmation


def test_without_a_confirmation_the_searchs_best_trial_is_chosen() -> None:
    choice = choose(_study(_trial(0.7, DEFAULT_RATE), _trial(0.9, 1e-3), _trial(0.8, 2e-3)))
    assert (choice.trial.number, choice.chosen_by, choice.note) == (1, "search", "")


def test_the_winner_of_a_confirmation_is_chosen_and_kept_as_it_was() -> None:
    study = _study(_trial(0.7, DEFAULT_RATE), _trial(0.9, 1e-3), _trial(0.8, 2e-3))
    confirmation = _confirm(study, 2, 1, 0)
    assert confirmation_of(study) == confirmation
    choice = choose(study)
    assert (choice.trial.number, choice.chosen_by, choice.note) == (2, "confirmation", "")


def test_a_search_that_went_on_without_a_better_trial_leaves_the_choice() -> None:
    study = _study(_trial(0.7, DEFAULT_RATE), _trial(0.9, 1e-3))
    _confirm(study, 0, 1)
    study.add_trial(_trial(0.85, 5e-3))
    study.add_trial(_trial(0.95, 1e-3))  # the same hyperparameters as the one that was confirmed
    assert (choose(study).trial.number, choose(study).chosen_by) == (0, "confirmation")


def test_a_better_trial_found_since_is_chosen_until_it_is_confirmed() -> None:
    study = _study(_trial(0.7, DEFAULT_RATE), _trial(0.9, 1e-3))
    _confirm(study, 0, 1)
    study.add_trial(_trial(0.95, 5e-3))
    choice = choose(study)
    assert (choice.trial.number, choice.chosen_by) == (2, "search")
    assert "trial 2 was found after the confirmation" in choice.note
    assert "`hpsearch confirm --study reviews`" in choice.note
    _confirm(study, 1, 2, 0)
    assert (choose(study).trial.number, choose(study).note) == (1, "")


def test_a_best_trial_that_diverged_in_the_confirmation_is_not_chosen() -> None:
    study = _study(_trial(0.7, DEFAULT_RATE), _trial(0.9, 1e-3))
    _confirm(study, 0, left_out=(1,))
    assert (choose(study).trial.number, choose(study).chosen_by) == (0, "confirmation")


def test_candidates_are_the_best_of_different_hyperparameters_and_the_defaults(
    make_config: Callable[..., Config],
) -> None:
    study = _study(
        _trial(0.9, DEFAULT_RATE), _trial(0.6, 1e-3), _trial(0.8, 2e-3), _trial(0.7, 1e-3), _trial(0.5, 4e-3),
        _trial(None, 5e-3, TrialState.FAIL), _trial(0.99, 6e-3, TrialState.PRUNED),
    )  # fmt: skip
    config = make_config()
    assert [trial.number for trial in candidates_of(study, config, n_best=2)] == [2, 3, 0]
    assert [trial.number for trial in candidates_of(study, config, n_best=9)] == [2, 3, 4, 0]


def test_the_defaults_alone_are_no_candidates(make_config: Callable[..., Config]) -> None:
    study = _study(_trial(0.9, DEFAULT_RATE), _trial(0.95, DEFAULT_RATE), _trial(0.9, 1e-3, TrialState.PRUNED))
    with pytest.raises(StudyError, match=r"got the defaults alone \(1 pruned, 0 failed\)"):
        candidates_of(study, make_config(), n_best=3)
