"""The search space: which hyperparameters are drawn, from which ranges.

Every name is the `TrainingArguments` field or the model-config dropout that it sets, so that what the study records is
what the training was given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from collections.abc import Mapping

    import optuna

Scalar = bool | int | float | str


class FloatRange(BaseModel):
    """Real values in [low, high]."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    type: Literal["float"] = "float"
    low: float
    high: float
    log: bool = False
    """Draw uniformly in the logarithm: for values that matter by their order of magnitude, such as learning rates."""

    @model_validator(mode="after")
    def _check(self) -> FloatRange:
        _check_bounds(self.low, self.high, log=self.log)
        return self

    def __contains__(self, value: object) -> bool:
        """Say whether a value can be drawn."""
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high

    def suggest(self, trial: optuna.Trial, name: str) -> float:
        """Draw this hyperparameter's value for a trial."""
        return trial.suggest_float(name, self.low, self.high, log=self.log)


class IntRange(BaseModel):
    """Whole numbers in [low, high]."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    type: Literal["int"] = "int"
    low: int
    high: int
    log: bool = False

    @model_validator(mode="after")
    def _check(self) -> IntRange:
        _check_bounds(self.low, self.high, log=self.log)
        return self

    def __contains__(self, value: object) -> bool:
        """Say whether a value can be drawn."""
        return isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high

    def suggest(self, trial: optuna.Trial, name: str) -> int:
        """Draw this hyperparameter's value for a trial."""
        return trial.suggest_int(name, self.low, self.high, log=self.log)


class Choices(BaseModel):
    """One of a list of values, without an order between them."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    type: Literal["categorical"] = "categorical"
    choices: Annotated[tuple[Scalar, ...], Field(min_length=1, strict=False)]

    @model_validator(mode="after")
    def _check(self) -> Choices:
        if len(set(self.choices)) < len(self.choices):
            raise ValueError(f"expected different choices, got {list(self.choices)}")
        return self

    def __contains__(self, value: object) -> bool:
        """Say whether a value can be drawn."""
        return value in self.choices

    def suggest(self, trial: optuna.Trial, name: str) -> Scalar:
        """Draw this hyperparameter's value for a trial."""
        # Optuna's stubs leave out that any scalar it can store comes back as it went in.
        value: Scalar | None = trial.suggest_categorical(name, self.choices)
        if value is None:
            raise TypeError(f"{name}: a choice came back as None")
        return value


Dimension = Annotated[FloatRange | IntRange | Choices, Field(discriminator="type")]


def suggest(trial: optuna.Trial, space: Mapping[str, FloatRange | IntRange | Choices]) -> dict[str, Scalar]:
    """Draw one value for every name of the space, in the space's own order.

    Every trial draws every name: a name left out of one trial would keep the value of the trial before it.
    """
    return {name: dimension.suggest(trial, name) for name, dimension in space.items()}


def bounds(dimension: FloatRange | IntRange | Choices) -> tuple[Scalar, ...]:
    """Return the values that span a dimension: both ends, or all choices."""
    return dimension.choices if isinstance(dimension, Choices) else (dimension.low, dimension.high)


def _check_bounds(low: float, high: float, *, log: bool) -> None:
    if low >= high:
        raise ValueError(f"expected low below high, got low {low} and high {high}")
    if log and low <= 0:
        raise ValueError(f"expected low above 0 for a log scale, got {low}")
