"""Which trial a study stands for: its confirmation's winner, or else the best of the search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optuna.trial import TrialState

from hpsearch.errors import StudyError
from hpsearch.evidence import confirmation_of
from hpsearch.study import best_trial, standing

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

    from hpsearch.config import Config


@dataclass(frozen=True, slots=True)
class Choice:
    """The trial that is exported, and compared with the defaults."""

    trial: FrozenTrial
    chosen_by: str
    """`confirmation` or `search`."""
    note: str = ""
    """Why a confirmation is not followed, in one line for a person; else empty."""


def choose(study: optuna.Study) -> Choice:
    """Return the trial that a study stands for.

    A confirmation tells which of its candidates is best, so it is followed as long as the search's best trial is one of
    them. Once the search has gone on and found a better one, the confirmation says nothing about that; it is followed
    again when `confirm` has been run again, which trains only what is new.

    Raises:
        StudyError: If no trial is complete.
    """
    best = best_trial(study)
    confirmation = confirmation_of(study)
    if confirmation is None:
        return Choice(best, "search")
    confirmed = [candidate.params for candidate in confirmation.candidates]
    if best.params in confirmed or best.number in confirmation.left_out:
        return Choice(study.get_trials(deepcopy=False)[confirmation.winner.trial], "confirmation")
    return Choice(
        best,
        "search",
        f"trial {best.number} was found after the confirmation, which is not followed any more; "
        f"`hpsearch confirm --study {study.study_name}` confirms it as well",
    )


def candidates_of(study: optuna.Study, config: Config, *, n_best: int) -> list[FrozenTrial]:
    """Return the best complete trials besides the defaults, best first, and the defaults' own where it is complete.

    Of trials with the same hyperparameters, the best stands for all.

    Raises:
        StudyError: If no trial is complete, or the defaults alone are.
    """
    best_trial(study)  # or say that there is none
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    defaults: list[FrozenTrial] = []
    others: list[FrozenTrial] = []
    for trial in sorted(complete, key=lambda trial: (-(trial.value or 0.0), trial.number)):
        kind = defaults if trial.params == default_params(config) else others
        if all(trial.params != seen.params for seen in kind):
            kind.append(trial)
    if not others:
        counts = standing(study, 0)
        raise StudyError(
            f"study {study.study_name!r}: expected a complete trial besides the defaults, got the defaults alone "
            f"({counts.n_pruned} pruned, {counts.n_failed} failed); run it further with "
            f"`hpsearch run --study {study.study_name}`"
        )
    return [*others[:n_best], *defaults]


def default_params(config: Config) -> dict[str, Any]:
    """Return the defaults' values of what is tuned."""
    return {name: getattr(config.defaults, name) for name in config.space}
