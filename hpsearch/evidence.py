"""What was found out about a study after its search, as records that are kept with it.

`confirm` and `compare` write them, `export-best`, `report`, the dashboard and the model card read them: from the
study's attributes, so that they are there on every machine that reaches the database. The module loads no library of
training.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna

    from hpsearch.space import Scalar

_CONFIRMATION, _COMPARISON, _LOOKS = "confirmation", "comparison", "test_looks"


@dataclass(frozen=True, slots=True)
class Interval:
    """A difference with its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """One configuration of a confirmation."""

    trial: int
    is_defaults: bool
    params: dict[str, Scalar]
    """The tuned hyperparameters."""
    search_value: float | None
    """The trial's objective value in the search; None if the search has no complete trial of it."""
    values: tuple[float, ...]
    """The objective value on the validation rows by fresh seed, in the order of the confirmation's seeds."""

    @property
    def mean(self) -> float:
        """Return the mean over the seeds."""
        return fmean(self.values)

    @property
    def sd(self) -> float | None:
        """Return the standard deviation over the seeds, None for one."""
        return stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True, slots=True)
class Confirmation:
    """The best trials and the defaults, trained again on fresh seeds and scored on the validation rows."""

    metric: str
    seeds: tuple[int, ...]
    candidates: tuple[Candidate, ...]
    """Ranked by mean, the best first."""
    seconds: float
    """Spent on its trainings, over all workers and restarts."""
    date: str
    """When it was finished, ISO 8601."""
    left_out: tuple[int, ...] = ()
    """Trials that are no candidates because their training diverged on a fresh seed."""

    @property
    def winner(self) -> Candidate:
        """Return the configuration to export."""
        return self.candidates[0]


@dataclass(frozen=True, slots=True)
class Side:
    """One system's test scores, one value per seed in the order of the seeds."""

    params: dict[str, Scalar]
    f1: tuple[float, ...]
    accuracy: tuple[float, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Counts by true and predicted class, summed over the seeds, shape (n_classes, n_classes)."""
    mcc: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Slice:
    """A part of the test rows."""

    name: str
    """Such as `label good` or `more than 40 tokens`."""
    rows: int
    default_accuracy: float
    """Mean over the seeds."""
    tuned_accuracy: float


@dataclass(frozen=True, slots=True)
class Flip:
    """A test text that one side gets right and the other wrong, by majority of the seeds."""

    text: str
    label: str
    default: str
    """The defaults' answer."""
    default_probability: float
    """Mean probability that the defaults give to the true label."""
    tuned: str
    tuned_probability: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Paired test scores of the defaults and the tuned hyperparameters."""

    study: str
    metric: str
    trial: int
    """The tuned side's trial."""
    chosen_by: str
    """How that trial was chosen: `confirmation` or `search`."""
    labels: tuple[str, ...]
    """Names of the classes."""
    test_rows: int
    test_fingerprint: str
    looks: int
    """How often the test split has been looked at in this study, this time included."""
    seeds: tuple[int, ...]
    default: Side
    tuned: Side
    linear: dict[str, float]
    """F1, accuracy and MCC of the linear model."""
    f1: Interval
    """Tuned minus defaults."""
    accuracy: Interval
    detectable: float
    """The smallest difference of `metric` that these rows and seeds would show four times in five."""
    answer: str
    """`better`, `worse` or `no evidence`."""
    verdict: str
    """The same in plain words."""
    slices: tuple[Slice, ...]
    flips_file: str
    """All flips: the name of a file in the study's folder."""
    n_gained: int
    """Texts that only the tuned side gets right."""
    n_lost: int
    """Texts that only the defaults get right."""
    seconds: float
    """Spent on its trainings, over all restarts."""
    date: str
    """When it was finished, ISO 8601."""
    mcc: Interval | None = None
    """As `f1`; None in records that were made without."""

    @property
    def difference(self) -> Interval:
        """Return the difference of the study's metric."""
        intervals = {"accuracy": self.accuracy, "mcc": self.mcc}
        return intervals.get(self.metric) or self.f1


def keep_confirmation(study: optuna.Study, confirmation: Confirmation) -> None:
    """Keep a confirmation with its study, in place of an earlier one."""
    study.set_user_attr(_CONFIRMATION, asdict(confirmation))


def confirmation_of(study: optuna.Study) -> Confirmation | None:
    """Return the confirmation that is kept with a study, or None."""
    kept = study.user_attrs.get(_CONFIRMATION)
    if kept is None:
        return None
    candidates = tuple(
        Candidate(**{**candidate, "values": tuple(candidate["values"])}) for candidate in kept["candidates"]
    )
    numbers = {name: tuple(kept[name]) for name in ("seeds", "left_out")}
    return Confirmation(**{**kept, **numbers, "candidates": candidates})


def keep_comparison(study: optuna.Study, comparison: Comparison) -> None:
    """Keep a comparison with its study, in place of an earlier one."""
    study.set_user_attr(_COMPARISON, asdict(comparison))


def comparison_of(study: optuna.Study) -> Comparison | None:
    """Return the comparison that is kept with a study, or None."""
    kept = study.user_attrs.get(_COMPARISON)
    if kept is None:
        return None
    return Comparison(
        **{
            **kept,
            "labels": tuple(kept["labels"]),
            "seeds": tuple(kept["seeds"]),
            "default": _side(kept["default"]),
            "tuned": _side(kept["tuned"]),
            "f1": Interval(**kept["f1"]),
            "accuracy": Interval(**kept["accuracy"]),
            "mcc": Interval(**kept["mcc"]) if kept["mcc"] else None,
            "slices": tuple(Slice(**part) for part in kept["slices"]),
        }
    )


def count_look(study: optuna.Study) -> int:
    """Count one more look at the test split, and return how many there have been.

    Each comparison that scores the test labels is one, also where its trainings were kept from an earlier one: what is
    counted is how often somebody could have been led by the result. `report` and the dashboard only show a look that
    was counted. Processes that may count at the same time hold a lock meanwhile.
    """
    looks = looks_of(study) + 1
    study.set_user_attr(_LOOKS, looks)
    return looks


def looks_of(study: optuna.Study) -> int:
    """Return how often a study's test split has been looked at."""
    return int(study.user_attrs.get(_LOOKS, 0))


def _side(kept: dict[str, Any]) -> Side:
    return Side(
        params=kept["params"],
        f1=tuple(kept["f1"]),
        accuracy=tuple(kept["accuracy"]),
        mcc=tuple(kept["mcc"]),
        confusion=tuple(map(tuple, kept["confusion"])),
    )
