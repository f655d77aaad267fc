"""What a study has cost, what pruning has saved, and what more trials would probably bring.

The forecast is the expected best of so many trials, as in "expected validation performance", drawn out beyond the
trials there are. It takes trials for independent draws, which those of a sampler that learns are not, so it is checked
against replayed searches: on average it holds, of a single search it says only the order of magnitude
(`benchmarks/README.md`). The module loads no library of training.

Source:
    Dodge et al. 2019, "Show Your Work: Improved Reporting of Experimental Results", section 3 (arXiv:1909.03004).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.study import StudyDirection
from optuna.trial import TrialState

from hpsearch.evidence import comparison_of, confirmation_of
from hpsearch.metrics import METRICS
from hpsearch.study import best_trial, reached, seconds_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import optuna
    from numpy.typing import NDArray
    from optuna.trial import FrozenTrial

    Floats = NDArray[np.float64]

MORE_TRIALS = 10
"""How many further trials the forecast is about."""
FEWEST_TRIALS = 10
"""Finished trials that a forecast takes."""
_RESAMPLES = 2000  # of a confusion matrix: its standard deviation is then known to a fiftieth
_GRID = 400  # points of an integral
_NEGLIGIBLE = 1e-6  # probability


@dataclass(frozen=True, slots=True)
class Forecast:
    """What `MORE_TRIALS` further trials would probably bring."""

    trials: int
    """Finished trials it is made from."""
    expected: float
    """Expected best value of so many trials."""
    expected_after: float
    """Expected best value with the further ones."""
    noise: float | None
    """Standard deviation of a value that is due to chance; None where it is not known."""
    noise_source: str
    """What `noise` was taken from, in words."""

    @property
    def gain(self) -> float:
        """Return how much the best value would probably grow."""
        return self.expected_after - self.expected

    @property
    def is_below_noise(self) -> bool | None:
        """Say whether the gain is too small to be told from chance, None where the noise is not known."""
        return None if self.noise is None else self.gain < self.noise


@dataclass(frozen=True, slots=True)
class Cost:
    """Where the time of a study went: seconds of training, added up over all workers."""

    complete: float
    pruned: float
    failed: float
    n_untimed: int
    """Failed trials whose process died: nobody knows how long they ran, and they are in none of these sums."""
    saved: float
    """What the pruned trials would have taken besides, had each gone on at its own pace to its last evaluation."""
    confirm: float
    """Of the last confirmation."""
    compare: float
    """Of the last comparison."""
    forecast: Forecast | None
    """None with fewer than `FEWEST_TRIALS` finished trials, and for studies that do not maximise one value."""

    @property
    def search(self) -> float:
        """Return the seconds of all trials."""
        return self.complete + self.pruned + self.failed

    @property
    def device_hours(self) -> float:
        """Return the hours of all trainings; each of them has one device to itself."""
        return (self.search + self.confirm + self.compare) / 3600

    @property
    def saved_share(self) -> float:
        """Return how much of the time of a search without pruning was saved, in [0, 1)."""
        return self.saved / (self.saved + self.search) if self.saved else 0.0


def cost_of(study: optuna.Study) -> Cost:
    """Return what a study has cost; all zeros for one without trials."""
    trials = study.get_trials(deepcopy=False)
    finished = {state: [trial for trial in trials if trial.state == state] for state in TrialState}
    spent = {state: [seconds_of(trial) for trial in some] for state, some in finished.items()}
    confirmation, comparison = confirmation_of(study), comparison_of(study)
    return Cost(
        complete=_total(spent[TrialState.COMPLETE]),
        pruned=_total(spent[TrialState.PRUNED]),
        failed=_total(spent[TrialState.FAIL]),
        n_untimed=spent[TrialState.FAIL].count(None),
        saved=sum(_saved(trial, _n_evaluations(study, trials)) for trial in finished[TrialState.PRUNED]),
        confirm=confirmation.seconds if confirmation else 0.0,
        compare=comparison.seconds if comparison else 0.0,
        forecast=forecast_of(study),
    )


def _total(seconds: Sequence[float | None]) -> float:
    return math.fsum(each for each in seconds if each is not None)


def _n_evaluations(study: optuna.Study, trials: Sequence[FrozenTrial]) -> int:
    """Return the evaluations of a complete trial, K; the most seen where the study does not say."""
    lock = study.user_attrs.get("lock") or {}
    return int(lock.get("evaluations", max((step for t in trials for step in t.intermediate_values), default=0)))


def _saved(trial: FrozenTrial, n_evaluations: int) -> float:
    """Return what a pruned trial would have taken besides: evaluations stand at equal fractions of its schedule."""
    done = max(trial.intermediate_values, default=0)
    return (seconds_of(trial) or 0.0) * max(0, n_evaluations - done) / done if done else 0.0


# --- More trials ------------------------------------------------------------------------------------------------------


def forecast_of(study: optuna.Study) -> Forecast | None:
    """Return what more trials would probably bring, None where too few are finished.

    A pruned trial counts with its best evaluation, as one that came to no more: it cannot be exported, and of the
    trials to come as many will be pruned.
    """
    if study.directions != [StudyDirection.MAXIMIZE]:
        return None
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    complete = [trial.value for trial in trials if trial.state == TrialState.COMPLETE and trial.value is not None]
    values = [value for trial in trials if (value := reached(trial)) is not None]
    if not complete or len(values) < FEWEST_TRIALS:
        return None
    capped = np.minimum(values, max(complete))
    noise, source = _noise(study)
    return Forecast(
        trials=len(values),
        expected=expected_best(capped, len(values)),
        expected_after=expected_best(capped, len(values) + MORE_TRIALS),
        noise=noise,
        noise_source=source,
    )


def expected_best(values: Floats, n: int) -> float:
    """Return the expected best of `n` draws from the distribution that some values come from.

    The distribution is the values' own, smoothed, so that it goes on a little beyond the best of them; no metric
    exceeds 1. The kernel is Epanechnikov's, as wide as a normal one by Silverman's rule from the spread of the better
    half: the worse half, such as trials that did not learn, says nothing about how the best ones differ.

    Args:
        values: Shape (n_values,), any number.
        n: Number of draws; may exceed the number of values.

    Source:
        Dodge et al. 2019 (arXiv:1909.03004), eq. 4, with a smoothed distribution for the empirical one: Silverman &
        Young 1987, "The bootstrap: to smooth or not to smooth?"; Silverman 1986, eq. 3.28, for the width.
    """
    ordered = np.sort(values)
    spread = float(ordered[len(ordered) // 2 :].std(ddof=1)) if len(ordered) > 2 else 0.0
    width = (
        math.sqrt(5) * 1.06 * spread * len(ordered) ** -0.2
    )  # an Epanechnikov kernel of width 1 has a variance of 1/5
    top = min(float(ordered[-1]) + width, max(1.0, float(ordered[-1])))
    # Below this the best of n draws hardly ever is.
    bottom = float(np.quantile(ordered, _NEGLIGIBLE ** (1 / n))) - width
    if width == 0 or bottom >= top:
        return float(ordered[-1])
    grid = np.linspace(bottom, top, _GRID)
    distance = np.clip((grid[:, None] - ordered) / width, -1, 1)
    below = (0.5 + 0.75 * distance - 0.25 * distance**3).mean(axis=1)  # the distribution function
    return float(top - np.trapezoid(below**n, grid))


def _noise(study: optuna.Study) -> tuple[float | None, str]:
    """Return how much of a value is chance, and what that was taken from."""
    confirmation = confirmation_of(study)
    if confirmation is not None and confirmation.winner.sd is not None:
        return confirmation.winner.sd, f"standard deviation over {len(confirmation.seeds)} seeds"
    metric = METRICS.get((study.metric_names or [""])[0])
    confusion = best_trial(study).user_attrs.get("confusion")
    if metric is None or confusion is None:
        return None, ""
    return sampling_error(metric, confusion), f"sampling error of {int(np.sum(confusion)):,} validation rows"


def sampling_error(metric: Callable[[NDArray[Any]], Floats], confusion: Sequence[Sequence[int]]) -> float:
    """Return the standard error of a metric over samples of as many rows: a bootstrap of the confusion matrix."""
    counts = np.asarray(confusion)
    shares = counts.ravel() / counts.sum()
    draws = np.random.default_rng(0).multinomial(int(counts.sum()), shares, size=_RESAMPLES)
    return float(metric(draws.reshape(_RESAMPLES, *counts.shape)).std())
