"""What a search or a training tells whoever watches it.

The library never prints: it calls an observer. `progress.py` draws these calls on a terminal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hpsearch.config import Hyperparameters


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a study stands."""

    n_finished: int
    """Complete and pruned trials."""
    n_pruned: int
    n_failed: int
    n_trials: int
    """Finished trials the study shall come to."""
    best_number: int | None
    best_value: float | None


class Observer:
    """Takes every event and does nothing; subclasses override what they show."""

    def for_worker(self, index: int) -> Observer:  # noqa: ARG002  subclasses tell workers apart
        """Return an observer for worker `index`, from 0, of several that run at once; by default this one."""
        return self

    def note(self, text: str) -> None:
        """Take something a person should know, in one line."""

    def trial_started(self, name: str, hyperparameters: Hyperparameters) -> None:
        """Take the start of a training; `name` is such as `trial 7`."""

    def progressed(self, epoch: float, fraction: float, loss: float | None) -> None:
        """Take the running training's epoch, the share of its steps done and its last training loss."""

    def evaluated(self, step: int, n_steps: int, value: float) -> None:
        """Take the objective value of evaluation `step` of `n_steps` of the running training."""

    def trial_ended(self, name: str, state: str, value: float | None, seconds: float, reason: str = "") -> None:
        """Take the end of a training: `complete`, `pruned` or `failed`."""

    def study_changed(self, standing: Standing) -> None:
        """Take where the study stands after a trial."""
