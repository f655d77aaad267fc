"""What a study has cost and what more trials would bring: cases worked out by hand, and studies with little in them."""

from __future__ import annotations

import csv
import datetime
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from click.testing import CliRunner
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpsearch.cli import cli
from hpsearch.cost import FEWEST_TRIALS, cost_of, expected_best, forecast_of, sampling_error
from hpsearch.evidence import Candidate, Confirmation, keep_confirmation
from hpsearch.findings import findings_document, findings_text
from hpsearch.metrics import METRICS
from hpsearch.report import study_document
from hpsearch.study import open_storage

TABLE = Path(__file__).parents[1] / "benchmarks" / "tabular.csv"
STARTED = datetime.datetime(2024, 5, 1, 12, 0, 0)


def trial(state: TrialState, value: float | None, seconds: float, *, evaluations: int = 8, **attrs: Any) -> FrozenTrial:
    """Return a finished trial whose evaluations all came to `value`."""
    curve = {} if value is None else dict.fromkeys(range(1, evaluations + 1), value)
    made = create_trial(state=state, value=value, intermediate_values=curve, user_attrs=attrs)
    made.datetime_start, made.datetime_complete = STARTED, STARTED + datetime.timedelta(seconds=seconds)
    return made


def complete(value: float, seconds: float = 60, **attrs: Any) -> FrozenTrial:
    return trial(TrialState.COMPLETE, value, seconds, **attrs)


def pruned(value: float, seconds: float, *, evaluations: int) -> FrozenTrial:
    return trial(TrialState.PRUNED, value, seconds, evaluations=evaluations)


def failed(seconds: float, failure: str) -> FrozenTrial:
    return trial(TrialState.FAIL, None, seconds, failure=failure)


def study_of(*trials: FrozenTrial, metric: str = "accuracy") -> optuna.Study:
    study = optuna.create_study(direction="maximize", study_name="reviews")
    study.set_metric_names([metric])
    study.add_trials(trials)
    return study


def shown(study: optuna.Study, width: int = 200) -> list[str]:
    document = {**study_document(study), **findings_document(study)}
    json.dumps(document, allow_nan=False)
    return findings_text(document, width).splitlines()


def confirmation(*values: float) -> Confirmation:
    winner = Candidate(trial=0, is_defaults=False, params={}, search_value=0.8, values=values)
    seeds = tuple(range(len(values)))
    return Confirmation(metric="accuracy", seeds=seeds, candidates=(winner,), seconds=7200.0, date="2024-05-01")


# --- Spent and saved --------------------------------------------------------------------------------------------------


def test_seconds_are_added_up_by_state_and_pruned_trials_go_on_at_their_own_pace() -> None:
    study = study_of(complete(0.8, 100), complete(0.7, 80), pruned(0.5, 10, evaluations=2), failed(5, "out of memory"))
    cost = cost_of(study)
    assert (cost.complete, cost.pruned, cost.failed, cost.search) == (180, 10, 5, 195)
    # 2 of 8 evaluations took 10 s, so the other 6 would have taken 30 s.
    assert cost.saved == pytest.approx(30)
    assert cost.saved_share == pytest.approx(30 / (195 + 30))
    assert cost.device_hours == pytest.approx(195 / 3600)


def test_the_studys_own_number_of_evaluations_counts_where_no_trial_is_complete() -> None:
    study = study_of(pruned(0.5, 10, evaluations=2))
    assert cost_of(study).saved == 0, "nobody knows how many there would have been"
    study.set_user_attr("lock", {"evaluations": 4})
    assert cost_of(study).saved == pytest.approx(10)


def test_a_trial_whose_process_died_is_counted_and_not_timed() -> None:
    # It was closed when the next run started, days later.
    cost = cost_of(study_of(complete(0.8, 100), failed(500_000, "the process died")))
    assert (cost.failed, cost.n_untimed, cost.search) == (0, 1, 100)
    assert "without 1 trial whose process died" in shown(study_of(failed(500_000, "the process died")))[1]


def test_a_confirmation_counts_and_gives_the_noise() -> None:
    study = study_of(*(complete(0.7 + 0.01 * i, 60) for i in range(FEWEST_TRIALS)))
    keep_confirmation(study, confirmation(0.80, 0.82, 0.81))
    cost = cost_of(study)
    assert cost.confirm == 7200
    assert cost.device_hours == pytest.approx((600 + 7200) / 3600)
    assert cost.forecast is not None
    assert cost.forecast.noise == pytest.approx(0.01)
    assert cost.forecast.noise_source == "standard deviation over 3 seeds"
    assert "confirm 2 h 00 min" in shown(study)[1]
    assert "2.17 device-hours" in shown(study)[1]


# --- More trials ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 5, 20])
def test_the_expected_best_of_draws_from_an_even_spread_is_known(n: int) -> None:
    # The best of n uniform draws from [0, 0.9] is 0.9 n / (n + 1) on average; the smoothing adds a little.
    assert expected_best(np.linspace(0, 0.9, 5001), n) == pytest.approx(0.9 * n / (n + 1), abs=0.02)


def test_the_expected_best_grows_with_draws_and_no_metric_exceeds_1() -> None:
    values = np.array([0.7, 0.9, 0.95, 0.97, 0.99, 1.0, 0.98, 0.6, 0.8, 0.99])
    several = [expected_best(values, n) for n in (1, 5, 10, 20, 1000)]
    assert several == sorted(several)
    assert several[-1] <= 1


def test_values_that_are_all_the_same_leave_nothing_to_expect() -> None:
    assert expected_best(np.full(12, 0.75), 22) == 0.75
    study = study_of(*(complete(0.75, confusion=[[30, 10], [10, 30]]) for _ in range(12)))
    forecast = forecast_of(study)
    assert forecast is not None
    assert forecast.gain == 0
    assert forecast.is_below_noise


def test_the_forecast_holds_on_average_for_independent_draws_of_the_table() -> None:
    rows = csv.DictReader(line for line in TABLE.read_text(encoding="utf-8").splitlines() if line[0] != "#")
    table = np.array([max(float(row[f"f1_{k}"]) for k in range(1, 9)) for row in rows])
    rng = np.random.default_rng(0)
    said, came = [], []
    for _ in range(300):
        values = rng.choice(table, size=30)
        said.append(expected_best(values[:20], 30) - expected_best(values[:20], 20))
        came.append(values.max() - values[:20].max())
    assert np.mean(came) > 0.001, "there is something to forecast"
    assert np.mean(said) == pytest.approx(np.mean(came), rel=0.6)


def test_a_pruned_trial_counts_with_its_best_evaluation_but_never_above_the_best_complete_one() -> None:
    values = [0.60, 0.62, 0.64, 0.66, 0.68, 0.70, 0.72, 0.74, 0.76]
    same = study_of(*map(complete, values), complete(0.55))
    assert forecast_of(study_of(*map(complete, values), pruned(0.55, 9, evaluations=3))) == forecast_of(same)
    lucky = forecast_of(study_of(*map(complete, values), pruned(0.99, 9, evaluations=3)))
    assert lucky == forecast_of(study_of(*map(complete, values), complete(0.76)))


def test_the_sampling_error_of_an_accuracy_is_the_binomial_one() -> None:
    confusion = [[70, 30], [10, 90]]
    expected = math.sqrt(0.8 * 0.2 / 200)
    assert sampling_error(METRICS["accuracy"], confusion) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(("wrong", "advice"), [(40, "stop here"), (0, "go on")])
def test_the_advice_is_to_stop_where_the_gain_is_below_the_noise(wrong: int, advice: str) -> None:
    confusion = [[50 - wrong // 2, wrong // 2], [wrong // 2, 50 - wrong // 2]]
    line = shown(study_of(*(complete(0.6 + 0.01 * i, confusion=confusion) for i in range(12))))[2]
    assert line.startswith("more ")
    assert line.endswith(advice)
    assert "sampling error of 100 validation rows" in line


# --- Studies with little in them --------------------------------------------------------------------------------------


def test_a_study_without_trials_has_no_findings() -> None:
    study = study_of()
    assert shown(study) == []
    assert cost_of(study).device_hours == 0


@pytest.mark.parametrize(
    ("trials", "cost", "more"),
    [
        ([complete(0.8, 60)], "search 60 s (60 s complete)", "there are 1, of which 1 complete"),
        ([pruned(0.5, 30, evaluations=2)] * 12, "search 6 min (6 min pruned)", "there are 12, of which 0 complete"),
        ([failed(20, "out of memory")] * 2, "search 40 s (40 s failed)", "there are 0, of which 0 complete"),
    ],
    ids=["one trial", "only pruned", "only failed"],
)
def test_a_study_with_little_in_it_says_so_in_a_line(trials: list[FrozenTrial], cost: str, more: str) -> None:
    lines = shown(study_of(*trials))
    assert cost in lines[1]
    assert more in lines[-1]
    assert not [line for line in lines if line.startswith("edge")]


def test_a_study_of_somebody_else_has_its_cost_and_no_advice() -> None:
    study = optuna.create_study(direction="minimize")
    study.add_trials([complete(0.1 * i) for i in range(12)])
    lines = shown(study)
    assert len(lines) == 2
    assert lines[1].startswith("cost")


@pytest.mark.parametrize("width", [40, 60, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    trials = [complete(0.6 + 0.01 * i, confusion=[[40, 10], [10, 40]]) for i in range(12)]
    lines = shown(study_of(*trials, pruned(0.5, 30, evaluations=2)), width)
    assert max(map(len, lines)) <= width


def test_show_prints_the_findings_beneath_its_table_and_in_its_document(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    study = optuna.create_study(storage=open_storage(url, create=True), study_name="reviews", direction="maximize")
    study.add_trials([complete(0.8, 80), pruned(0.5, 10, evaluations=2)])
    result = CliRunner().invoke(cli, ["show", "reviews", "--storage", url])
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-4:-2] == [
        "",
        "cost     search 90 s (80 s complete, 10 s pruned)   0.03 device-hours",
    ]
    document = json.loads(CliRunner().invoke(cli, ["show", "reviews", "--storage", url, "--json"]).stdout)
    assert document["cost"]["saved_by_pruning_s"] == 30
    assert document["edges"] == []
    assert document["importances"] is None
    asked = CliRunner().invoke(cli, ["show", "reviews", "--storage", url, "--importances"])
    assert asked.exit_code == 0
    assert asked.stderr == "importances can be told from 10 finished trials on\n"
