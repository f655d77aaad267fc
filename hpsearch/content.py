"""What a report's page is made of, as records, and the words that its sections share.

Everything here is plain text; `page` makes HTML of it.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from optuna.trial import TrialState

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure
    from optuna.trial import FrozenTrial

    from hpsearch.evidence import Comparison, Confirmation, Flip

STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


@dataclass(frozen=True, slots=True)
class Facts:
    """What another module found out: sentences, and names with what there is to say about them."""

    sentences: tuple[str, ...] = ()
    rows: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class PageData:
    """Everything that a report shows. What is None is left out, or its section says which command adds it."""

    study: str
    metric: str
    trials: tuple[FrozenTrial, ...]
    """In the order of their numbers; at least one is complete."""
    best: FrozenTrial
    """The complete trial with the highest value."""
    evaluations: int
    """Evaluations of a whole trial."""
    confirmation: Confirmation | None
    comparison: Comparison | None
    looks: int
    """How often the test split has been looked at."""
    flips: tuple[Flip, ...] | None
    """None if there is no file of them."""
    cost: Facts | None
    edges: Facts | None
    importances: tuple[tuple[str, float, float], ...] | None
    """Name, share in [0, 1] and its standard deviation; the largest first."""
    protocol: tuple[tuple[str, str], ...]
    """Names and values: data, model, search, fingerprints, versions."""
    space: tuple[tuple[str, str, object, object], ...]
    """Each hyperparameter's name, range, default and value in `tuned_trial`."""
    tuned_trial: int
    """The trial that a comparison, a confirmation or the search found best, in this order."""
    config_yaml: str

    @property
    def defaults(self) -> FrozenTrial | None:
        """Return the complete trial of the defaults."""
        complete = (trial for trial in self.trials if trial.state == TrialState.COMPLETE)
        return next((trial for trial in complete if trial.user_attrs.get("role") == "defaults"), None)

    def number_of(self, state: TrialState) -> int:
        """Return how many trials ended so."""
        return sum(trial.state == state for trial in self.trials)


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under a header; a row's first cell names it."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]
    folds: bool = False
    """Whether on a phone each row becomes a block, for rows that hold a long text."""


@dataclass(frozen=True, slots=True)
class Plot:
    """A drawing with what it shows in words, and its data."""

    name: str
    """Of its file and ids."""
    title: str
    takeaway: str
    draw: Callable[[int], Figure]
    """From a width in CSS pixels."""
    table: Table
    is_half: bool = False
    """Whether two stand side by side where there is room."""


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with what stands below it."""

    name: str
    heading: str
    sentences: tuple[str, ...] = ()
    plots: tuple[Plot, ...] = ()
    tables: tuple[Table, ...] = ()
    points: tuple[str, ...] = ()
    """Of a list."""
    commands: tuple[str, ...] = ()
    listing: tuple[str, str] | None = None
    """Title and lines of a file that is shown on demand."""
    is_missing: bool = False
    """Whether a command would add it."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer, first."""

    answer: Literal["better", "worse", "no evidence", "not compared"]
    headline: str
    sentences: tuple[str, ...]
    figures: tuple[tuple[str, str, str], ...]
    """What, its value, and what to know about it."""
    commands: tuple[str, ...] = ()


# --- Words and numbers ------------------------------------------------------------------------------------------------


def command(name: str, data: PageData) -> str:
    """Return the command line that does something with the study."""
    return f"hpsearch {name} --study {shlex.quote(data.study)}"


def counted(count: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun, such as `1 seed` or `5 seeds`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def as_sentence(text: str) -> str:
    """Return a clause with a capital and a full stop."""
    return capital(text) + ("" if text.endswith(".") else ".")


def capital(text: str) -> str:
    """Return text with its first letter large."""
    return text[:1].upper() + text[1:]


def state_of(trial: FrozenTrial) -> str:
    """Return a trial's state, and whether it is the defaults."""
    state = STATES[trial.state]
    return f"{state}, defaults" if trial.user_attrs.get("role") == "defaults" else state


def states_of(data: PageData) -> str:
    """Return how many trials ended how."""
    counts = ((data.number_of(state), word) for state, word in STATES.items())
    return ", ".join(f"{count} {word}" for count, word in counts if count)


def seconds_of(trial: FrozenTrial) -> float | None:
    """Return how long a finished trial took."""
    return trial.duration.total_seconds() if trial.duration is not None else None


def time_text(seconds: float | None) -> str:
    """Return a time in the two largest units that it has."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


def short_number(value: object) -> object:
    """Return a hyperparameter's value as it is read: a fraction with four digits, anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else value
