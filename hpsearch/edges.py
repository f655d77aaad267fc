"""Whether the best trial lies at an end of the search space, so that a better one may lie beyond it.

A space that is widened is another space, so the wider one takes a study of its own. The limits of what a hyperparameter
may be are written down here once more, in the few numbers it takes, because `config.py` takes longer to load than a
reading command may; a test holds that no configuration refuses what is proposed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState

from hpsearch.evidence import confirmation_of
from hpsearch.study import best_trial

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import optuna
    from optuna.distributions import BaseDistribution

NEAR = 0.05
"""Share of a range's width, on its own scale, within which a value lies at the end."""
_BY = 0.5  # of its width, on its own scale, a range is widened

# The lowest and highest value to propose. Rates must stay below 1, and so must a learning rate; whole numbers start at
# 1, and values that must exceed 0 have a bound that is far below any use.
_RATE = (0.0, 0.95)
_POSITIVE = (1e-12, math.inf)
_WHOLE = (1, math.inf)
LIMITS: dict[str, tuple[float, float]] = {
    "learning_rate": (1e-12, 0.95),
    "num_train_epochs": _POSITIVE,
    "per_device_train_batch_size": _WHOLE,
    "gradient_accumulation_steps": _WHOLE,
    "warmup_steps": (0.0, math.inf),
    "max_grad_norm": _POSITIVE,
    "adam_epsilon": _POSITIVE,
    "adam_beta1": _RATE,
    "adam_beta2": (0.0, 0.99999),
}
"""What may be proposed, by name; other hyperparameters are rates."""


@dataclass(frozen=True, slots=True)
class Edge:
    """A hyperparameter whose best value lies at an end of what was searched."""

    name: str
    value: float
    """The best trial's."""
    side: str
    """`low` or `high`."""
    bound: float
    """The end of the range, or of the list of choices."""
    setting: str
    """What widens the space, as `KEY=VALUE` for `--set`."""


def edges_of(study: optuna.Study) -> list[Edge]:
    """Return where the best trial lies at an end of the space, in the space's order.

    The best trial is the confirmed winner where there is a confirmation. An end that cannot be moved, such as a weight
    decay of 0, is none; nor is one of choices that are no numbers.
    """
    if study.directions != [StudyDirection.MAXIMIZE]:
        return []
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not complete:
        return []
    confirmation = confirmation_of(study)
    trial = best_trial(study)
    params = confirmation.winner.params if confirmation else trial.params
    return [
        edge
        for name, distribution in trial.distributions.items()
        if name in params
        for edge in _edge(name, params[name], distribution)
    ]


def _edge(name: str, value: Any, distribution: BaseDistribution) -> Iterator[Edge]:
    if isinstance(distribution, CategoricalDistribution):
        yield from _edge_of_choices(name, value, distribution.choices)
    elif isinstance(distribution, FloatDistribution | IntDistribution):
        low, high = distribution.low, distribution.high
        scale, back = (math.log, math.exp) if distribution.log else (float, float)
        width = scale(high) - scale(low)
        for side, bound, outwards in (("low", low, -1), ("high", high, 1)):
            if width == 0 or abs(scale(value) - scale(bound)) > NEAR * width:
                continue
            beyond = back(scale(bound) + outwards * _BY * width)
            moved = _moved(name, bound, beyond, is_whole=isinstance(distribution, IntDistribution))
            if moved is not None:
                yield Edge(name, value, side, bound, f"space.{name}.{side}={moved}")


def _edge_of_choices(name: str, value: Any, choices: Sequence[Any]) -> Iterator[Edge]:
    if len(choices) == 1 or not all(isinstance(c, int | float) and not isinstance(c, bool) for c in choices):
        return
    ordered = sorted(choices)
    ratios = [after / before for before, after in pairwise(ordered) if before > 0]
    # 16, 32, 64 goes on with 128, and 1, 2, 3 with 4.
    is_geometric = 1 < len(ratios) == len(ordered) - 1 and all(math.isclose(ratio, ratios[0]) for ratio in ratios)
    for side, end, before in (("low", ordered[0], ordered[1]), ("high", ordered[-1], ordered[-2])):
        if value != end:
            continue
        beyond = end * end / before if is_geometric else 2 * end - before
        moved = _moved(name, end, beyond, is_whole=all(isinstance(choice, int) for choice in choices))
        if moved is not None:
            listed = [moved, *ordered] if side == "low" else [*ordered, moved]
            yield Edge(name, value, side, end, f"space.{name}.choices={listed}")


def _moved(name: str, bound: float, beyond: float, *, is_whole: bool) -> float | None:
    """Return an end moved to about `beyond`, as far as is allowed; None where it cannot be moved that way."""
    lowest, highest = LIMITS.get(name, _RATE)
    if name == "warmup_steps" and bound < 1:  # from 1 on it would be a number of steps, and no share of them
        highest = _RATE[1]
    if beyond <= 0 < lowest:
        beyond = bound / 2
    nearest = min(max(beyond, lowest), highest)
    candidates = [round(nearest)] if is_whole else [float(f"{nearest:.{digits}g}") for digits in range(2, 10)]
    return next(
        (
            moved
            for moved in candidates
            if lowest <= moved <= highest and (bound < moved if bound < beyond else moved < bound)
        ),
        None,
    )
