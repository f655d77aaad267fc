"""What the commands print: documents that scripts rely on, and tables that hold in a terminal."""

from __future__ import annotations

import csv
import datetime
import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from rich.cells import cell_len

from hpsearch import report

if TYPE_CHECKING:
    from hpsearch.evidence import Comparison, Confirmation

_WIDTH = 60
_STARTED = datetime.datetime(2024, 5, 1, 12, 0, 0)
_SPACE = {
    "learning_rate": FloatDistribution(1e-5, 1e-3, log=True),
    "num_train_epochs": IntDistribution(2, 12),
    "lr_scheduler_type": CategoricalDistribution(["linear", "cosine"]),
}
_PARAMS = {"learning_rate": 5e-5, "num_train_epochs": 10, "lr_scheduler_type": "linear"}
_BEST = {"learning_rate": 2.14e-4, "num_train_epochs": 4, "lr_scheduler_type": "cosine"}
_HOSTILE = "\x1b[31mred\x1b[0m\x9b2J\r\n\u202eevil\u2066\x00[bold]text[/bold] :smile:"
_HOSTILE_SHOWN = "?[31mred?[0m?2J  ?evil??[bold]text[/bold] :smile:"


def _trial(
    state: TrialState,
    *,
    value: float | None = None,
    params: dict[str, Any] = _PARAMS,
    curve: dict[int, float] | None = None,
    seconds: float | None = 60.0,
    **attrs: Any,
) -> FrozenTrial:
    trial = create_trial(
        state=state, value=value, params=params, distributions={name: _SPACE[name] for name in params},
        intermediate_values=curve, user_attrs=attrs,
    )  # fmt: skip
    trial.datetime_start = _STARTED
    if state.is_finished():
        trial.datetime_complete = _STARTED + datetime.timedelta(seconds=seconds or 0)
    return trial


def _study(*trials: FrozenTrial, name: str = "reviews") -> optuna.Study:
    study = optuna.create_study(study_name=name, direction="maximize")
    study.set_metric_names(["f1"])
    study.add_trials(trials)
    return study


def _complete(value: float, params: dict[str, Any], curve: dict[int, float], **attrs: Any) -> FrozenTrial:
    attributes = {
        "best_step": max(curve, key=curve.__getitem__),
        "scores": {"f1": value, "accuracy": value, "mcc": value - 0.1},
        "confusion": [[18, 2], [3, 17]],
        "train_losses": [None, 0.41, 0.3],
        "effective": {**params, "seed": 42, "device": "cpu"},
        **attrs,
    }
    return _trial(TrialState.COMPLETE, value=value, params=params, curve=curve, **attributes)


def _finished() -> optuna.Study:
    """Return a study with a trial of each state, as a search leaves them."""
    study = _study(
        _complete(0.81, _PARAMS, {1: 0.7, 2: 0.81, 3: 0.8}, role="defaults"),
        _trial(TrialState.PRUNED, value=0.6, curve={1: 0.5, 2: 0.6}, seconds=20.4567, effective={"seed": 42}),
        _trial(TrialState.FAIL, seconds=2, failure="out of memory"),
        _complete(0.85, _BEST, {1: 0.8, 2: 0.84, 3: 0.85}),
        _trial(TrialState.RUNNING, params={}, curve={1: 0.7}),
    )
    study.enqueue_trial(_PARAMS, user_attrs={"retry_of": 2})
    return study


@pytest.fixture
def document() -> report.Document:
    return report.study_document(_finished())


def _as_json(document: Any) -> Any:
    return json.loads(json.dumps(document, allow_nan=False))


# --- The documents of studies -----------------------------------------------------------------------------------------


def test_a_study_has_these_keys_in_this_order(document: report.Document) -> None:
    assert list(document) == [
        "study", "metric", "direction", "best", "n_complete", "n_pruned", "n_failed", "n_running", "trials",
    ]  # fmt: skip
    for trial in document["trials"]:
        assert list(trial) == ["number", "state", "value", "params", "intermediate_values", "duration_s", "attrs"]
    assert list(document["best"]) == ["number", "value", "params"]


def test_a_study_says_what_it_holds(document: report.Document) -> None:
    trials = document.pop("trials")
    assert document == {
        "study": "reviews",
        "metric": "f1",
        "direction": "maximize",
        "best": {"number": 3, "value": 0.85, "params": _BEST},
        "n_complete": 2,
        "n_pruned": 1,
        "n_failed": 1,
        "n_running": 1,
    }
    assert [trial["state"] for trial in trials] == ["complete", "pruned", "failed", "complete", "running", "waiting"]
    assert [trial["value"] for trial in trials] == [0.81, 0.6, None, 0.85, None, None]
    assert [trial["duration_s"] for trial in trials] == [60.0, 20.457, 2.0, 60.0, None, None]
    assert trials[1] == {
        "number": 1,
        "state": "pruned",
        "value": 0.6,
        "params": _PARAMS,
        "intermediate_values": {"1": 0.5, "2": 0.6},
        "duration_s": 20.457,
        "attrs": {"effective": {"seed": 42}},
    }
    assert trials[2]["attrs"] == {"failure": "out of memory"}
    assert trials[0]["attrs"]["role"] == "defaults"
    assert trials[0]["attrs"]["train_losses"] == [None, 0.41, 0.3]


def test_a_study_survives_json_as_it_is(document: report.Document) -> None:
    assert _as_json(document) == document


def test_what_is_no_number_is_null() -> None:
    study = _study(
        _complete(
            0.8, _PARAMS, {1: math.nan, 2: math.inf, 3: 0.8}, best_step=3, losses=[math.nan, {"a": -math.inf}, 1.0]
        )
    )
    (trial,) = _as_json(report.study_document(study))["trials"]
    assert trial["intermediate_values"] == {"1": None, "2": None, "3": 0.8}
    assert trial["attrs"]["losses"] == [None, {"a": None}, 1.0]
    assert "nan" not in report.study_csv(report.study_document(study))


def test_a_trial_of_no_time_took_no_time() -> None:
    (trial,) = report.study_document(_study(_trial(TrialState.FAIL, seconds=0)))["trials"]
    assert trial["duration_s"] == 0.0


def test_the_list_has_an_entry_a_study() -> None:
    entries = report.studies_document([_finished(), _study(name="empty")])
    for entry in entries:
        assert list(entry) == [
            "study", "metric", "direction", "best", "n_complete", "n_pruned", "n_failed", "n_running", "last_active",
        ]  # fmt: skip
    assert [entry["study"] for entry in entries] == ["reviews", "empty"]
    assert [entry["last_active"] for entry in entries] == ["2024-05-01T12:01:00", None]
    assert entries[1]["best"] is None
    assert _as_json(entries) == entries


@pytest.mark.parametrize("directions", [["minimize"], ["maximize", "minimize"]], ids=["minimised", "two objectives"])
def test_other_studies_of_the_storage_are_listed_without_a_best_trial(directions: list[str]) -> None:
    study = optuna.create_study(study_name="theirs", directions=directions)
    study.add_trials([create_trial(values=[float(value)] * len(directions)) for value in (1, 2)])
    (entry,) = report.studies_document([study])
    assert entry["direction"] == ", ".join(directions)
    assert (entry["best"], entry["n_complete"]) == (None, 2)
    assert "theirs" in report.studies_text([entry], _WIDTH)
    document = report.study_document(study)
    assert [trial["value"] for trial in document["trials"]] == ([1.0, 2.0] if len(directions) == 1 else [None, None])
    assert "complete" in report.study_text(document, _WIDTH)


# --- CSV --------------------------------------------------------------------------------------------------------------


def test_csv_has_a_column_for_each_hyperparameter_and_each_evaluation(document: report.Document) -> None:
    text = report.study_csv(document)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert list(rows[0]) == [
        "number", "state", "value", "duration_s", "learning_rate", "lr_scheduler_type", "num_train_epochs",
        "evaluation_1", "evaluation_2", "evaluation_3",
    ]  # fmt: skip
    assert len(rows) == 6
    assert list(rows[3].values()) == ["3", "complete", "0.85", "60.0", "0.000214", "cosine", "4", "0.8", "0.84", "0.85"]
    assert list(rows[4].values()) == ["4", "running", "", "", "", "", "", "0.7", "", ""]
    assert float(rows[1]["learning_rate"]) == _PARAMS["learning_rate"]
    assert "\r" not in text


def test_csv_orders_evaluations_by_number_and_quotes_what_needs_it() -> None:
    params = CategoricalDistribution(['a,"b"\n', "다"])
    trial = create_trial(
        value=0.5, params={"choice": 'a,"b"\n'}, distributions={"choice": params},
        intermediate_values=dict.fromkeys((10, 2, 1), 0.5),
    )  # fmt: skip
    header, row = csv.reader(io.StringIO(report.study_csv(report.study_document(_study(trial)))))
    assert header[4:] == ["choice", "evaluation_1", "evaluation_2", "evaluation_10"]
    assert row[4] == 'a,"b"\n'


def test_csv_of_a_study_without_trials_is_its_header() -> None:
    assert report.study_csv(report.study_document(_study())) == "number,state,value,duration_s\n"


# --- Tables -----------------------------------------------------------------------------------------------------------


def _ends(lines: list[str], *words: str) -> set[int]:
    """Return the terminal columns in which a word of each line ends."""
    return {cell_len(line[: line.index(word) + len(word)]) for line, word in zip(lines, words, strict=True)}


def test_a_study_is_shown_in_lines_of_these_words(document: report.Document) -> None:
    defaults = "learning_rate 5e-05  num_train_epochs 10  lr_scheduler_type linear"
    assert report.study_text(document, 120).splitlines() == [
        "study reviews   f1, maximize   2 complete, 1 pruned, 1 failed, 1 running",
        "best  trial 3   f1 0.8500   learning_rate 0.000214  num_train_epochs 4  lr_scheduler_type cosine",
        "",
        "#   state          f1   at   time   hyperparameters or reason",
        "-" * 112,
        f"0   complete   0.8100    2   60 s   defaults: {defaults}",
        f"1   pruned     0.6000    2   20 s   {defaults}",
        "2   failed          -    -    2 s   out of memory",
        "3   complete   0.8500    3   60 s   learning_rate 0.000214  num_train_epochs 4  lr_scheduler_type cosine",
        "4   running         -    1      -",
        "5   waiting         -    -      -",
    ]


def test_a_study_without_a_best_trial_is_shown_without_that_line() -> None:
    text = report.study_text(report.study_document(_study(_trial(TrialState.FAIL, failure="broken"))), _WIDTH)
    assert text.startswith("study reviews   f1, maximize   0 complete, 0 pruned, 1 failed\n\n")


@pytest.mark.parametrize("width", [40, _WIDTH, 200])
def test_no_line_of_a_table_is_wider_than_the_terminal(width: int) -> None:
    sentence = "ValueError: 기대한 열 'label'이 없습니다"
    document = report.study_document(
        _study(_complete(0.81, _PARAMS, {1: 0.81}), _trial(TrialState.FAIL, failure=f"{sentence} " * 8), name="영화평")
    )
    table = report.study_text(document, width).split("\n\n", 1)[1].splitlines()
    assert max(map(cell_len, table)) <= width
    shown = "".join("".join(table).split())
    assert shown.count("".join(sentence.split())) == 8, "nothing is left out"
    assert "num_train_epochs10" in shown


def test_the_widest_column_gives_way_first(document: report.Document) -> None:
    wide, narrow = (report.study_text(document, width).split("\n\n", 1)[1].splitlines() for width in (120, 80))
    start = wide[0].index("hyperparameters")
    assert len(narrow[1]) == 80
    starts = [line[:start].rstrip() for line in narrow if line[:1].isdigit()]
    assert starts == [line[:start].rstrip() for line in wide[2:]], "other columns are as wide as before"
    assert narrow[2:5] == [
        "0   complete   0.8100    2   60 s   defaults: learning_rate 5e-05",
        f"{'':{start}}num_train_epochs 10  lr_scheduler_type",
        f"{'':{start}}linear",
    ]


def test_a_folded_header_stands_on_its_rule(document: report.Document) -> None:
    above, header, rule, *_ = report.study_text(document, 52).split("\n\n", 1)[1].splitlines()
    assert (above.split(), header.split()) == (["hyperparameters"], ["#", "state", "f1", "at", "time", "or", "reason"])
    assert rule == "-" * 52


@pytest.mark.parametrize("name", ["영화평", "\u1112\u1161\u11ab\u1100\u1173\u11af", "映画", "reviews"])
def test_columns_stand_under_each_other_whatever_the_script(name: str) -> None:
    documents = report.studies_document([_finished(), _study(_complete(0.5, _PARAMS, {1: 0.5}), name=name)])
    header, rule, first, second = report.studies_text(documents, 100).splitlines()
    assert len(_ends([header, first, second], "metric", "f1", "f1")) == 1
    assert len(_ends([header, first, second], "best", "0.8500", "0.5000")) == 1
    assert len(_ends([header, first, second], "last active", "12:01:00", "12:01:00")) == 1
    assert {cell_len(line) for line in (header, rule, first, second)} == {cell_len(rule)}


def test_tables_are_drawn_with_ascii_alone(document: report.Document) -> None:
    assert report.study_text(document, _WIDTH).isascii()
    assert report.studies_text(report.studies_document([_finished()]), _WIDTH).isascii()


def test_no_studies_say_how_to_start_one() -> None:
    assert report.studies_text([], _WIDTH) == "no studies yet; start one with `hpsearch run`\n"


# --- Text from outside ------------------------------------------------------------------------------------------------


def _assert_harmless(text: str) -> None:
    assert all(line.isprintable() for line in text.split("\n"))


def test_a_failure_reason_cannot_steer_the_terminal() -> None:
    text = report.study_text(report.study_document(_study(_trial(TrialState.FAIL, failure=_HOSTILE))), 200)
    assert _HOSTILE_SHOWN.replace("  ", " ") in text.replace("  ", " ")
    _assert_harmless(text)


def test_the_names_of_a_study_cannot_steer_the_terminal() -> None:
    choices = CategoricalDistribution([_HOSTILE])
    trial = create_trial(value=0.5, params={"choice": _HOSTILE}, distributions={"choice": choices})
    study = _study(trial, name=_HOSTILE)
    study.set_metric_names([_HOSTILE])
    document = report.study_document(study)
    for text in (report.study_text(document, 400), report.studies_text(report.studies_document([study]), 400)):
        assert text.count("[bold]text[/bold] :smile:") >= 2
        _assert_harmless(text)


def test_labels_and_examples_cannot_steer_the_terminal() -> None:
    split = {
        "sampled": 10, "blank": 0, "dropped_overlaps": 0, "rows": 10, "duplicates": 1, "cut": 0, "unknown_share": 0.125,
        "label_counts": {_HOSTILE: 4, "좋음": 6}, "tokens": {"min": 3, "median": 7.5, "p95": 11, "max": 12},
    }  # fmt: skip
    document = {
        "source": _HOSTILE, "fingerprint": "0123456789abcdef", "max_length": 128, "labels": [_HOSTILE, "좋음"],
        "splits": {"train": split, "validation": split}, "overlaps": {"train_validation": 2},
        "example": {"row": 0, "label": _HOSTILE, "text": _HOSTILE, "tokens": ["[CLS]", _HOSTILE], "ids": [2, 3]},
        "checks": [
            {"level": "ok", "subject": "data", "text": "fine", "hint": ""},
            {"level": "warn", "subject": "data", "text": f"label {_HOSTILE} is rare", "hint": "more rows"},
        ],
    }  # fmt: skip
    text = report.inspection_text(document, 200)
    assert text.count("[bold]text[/bold] :smile:") == 6
    assert "fine" not in text
    assert "hint: more rows" in text
    _assert_harmless(text)
    assert "4 (40.0%)" in text
    assert "3 / 7.5 / 11 / 12" in text
    assert "texts that also stand in another split: 2 train in validation" in text
    assert "tokens  [CLS] ?[31m" in text


def test_a_prediction_is_one_line_of_three_fields_whatever_the_text() -> None:
    texts = ["참\t재미\n없다", _HOSTILE, "wide\u3000space"]
    answers = [{"나쁨": 0.9, "좋음": 0.1}, {"나쁨": 0.25, "좋음": 0.75}, {_HOSTILE: 1.0}]
    text = report.predictions_text(texts, answers)
    rows = [line.split("\t") for line in text.splitlines()]
    assert rows == [
        ["나쁨", "0.9000", "참 재미 없다"],
        ["좋음", "0.7500", _HOSTILE_SHOWN],
        [_HOSTILE_SHOWN, "1.0000", "wide space"],
    ]


# --- Comparisons and exports ------------------------------------------------------------------------------------------


@pytest.fixture
def comparison() -> Comparison:
    from hpsearch.compare import answer, verdict
    from hpsearch.evidence import Comparison, Interval, Side, Slice

    difference = Interval(mean=0.0213, low=0.0041, high=0.0388)
    default = Side(
        params=_PARAMS, f1=(0.81, 0.82, 0.8), accuracy=(0.8, 0.81, 0.79), mcc=(0.6, 0.61, 0.59),
        confusion=((6000, 1500), (1400, 6100)),
    )  # fmt: skip
    tuned = Side(
        params=_BEST, f1=(0.83, 0.84, 0.824), accuracy=(0.82, 0.83, 0.815), mcc=(0.62, 0.63, 0.61),
        confusion=((6100, 1400), (1200, 6300)),
    )  # fmt: skip
    return Comparison(
        study="reviews",
        metric="f1",
        trial=3,
        chosen_by="confirmation",
        labels=("bad", "good"),
        test_rows=5000,
        test_fingerprint="0123456789abcdef",
        looks=2,
        seeds=(43, 44, 45),
        default=default,
        tuned=tuned,
        linear={"f1": 0.78, "accuracy": 0.77, "mcc": 0.55},
        f1=difference,
        accuracy=Interval(mean=0.0217, low=-0.001, high=0.04),
        mcc=Interval(mean=0.02, low=-0.01, high=0.05),
        detectable=0.0251,
        answer=answer(difference),
        verdict=verdict(difference, "f1", best_is_default=False),
        slices=(Slice("label good", 2500, 0.81, 0.84), Slice(f"label {_HOSTILE}", 2500, 0.8, 0.79)),
        flips_file="flips.csv",
        n_gained=1234,
        n_lost=1,
        seconds=61.5,
        date="2026-11-25T02:07:27+00:00",
    )


def test_a_comparison_has_these_keys(comparison: Comparison) -> None:
    document = report.comparison_document(comparison)
    assert document == {
        "study": "reviews",
        "trial": 3,
        "chosen_by": "confirmation",
        "metric": "f1",
        "test_rows": 5000,
        "test_fingerprint": "0123456789abcdef",
        "looks": 2,
        "seeds": [43, 44, 45],
        "labels": ["bad", "good"],
        "default": {
            "params": _PARAMS, "f1": [0.81, 0.82, 0.8], "accuracy": [0.8, 0.81, 0.79], "mcc": [0.6, 0.61, 0.59],
            "confusion": [[6000, 1500], [1400, 6100]],
        },
        "tuned": {
            "params": _BEST, "f1": [0.83, 0.84, 0.824], "accuracy": [0.82, 0.83, 0.815], "mcc": [0.62, 0.63, 0.61],
            "confusion": [[6100, 1400], [1200, 6300]],
        },
        "linear": {"f1": 0.78, "accuracy": 0.77, "mcc": 0.55},
        "difference": {"mean": 0.0213, "ci95": [0.0041, 0.0388]},
        "differences": {
            "f1": {"mean": 0.0213, "ci95": [0.0041, 0.0388]},
            "accuracy": {"mean": 0.0217, "ci95": [-0.001, 0.04]},
        },
        "detectable": 0.0251,
        "answer": "better",
        "verdict": "tuning helped: f1 +2.13 points, 95 % interval +0.41 to +3.88",
        "slices": [
            {"name": "label good", "rows": 2500, "default_accuracy": 0.81, "tuned_accuracy": 0.84},
            {"name": f"label {_HOSTILE}", "rows": 2500, "default_accuracy": 0.8, "tuned_accuracy": 0.79},
        ],
        "flips": {"file": "flips.csv", "gained": 1234, "lost": 1},
        "seconds": 61.5,
        "date": "2026-11-25T02:07:27+00:00",
    }  # fmt: skip
    assert _as_json(document) == document


def test_a_comparison_is_shown_seed_by_seed(comparison: Comparison) -> None:
    text = report.comparison_text(comparison, Path("studies/reviews/flips.csv"), 120)
    lines = text.splitlines()
    assert lines[0] == "study reviews: 5,000 sealed test rows, 3 seeds; look 2 at the test split"
    assert lines[3].strip() == "trial 3, the confirmation's winner"
    rows = {line.split("   ")[0].strip(): line.split()[-5:] for line in lines[4:] if "0." in line}
    assert rows["defaults F1"] == ["0.8100", "0.8200", "0.8000", "0.8100", "0.0100"]
    assert rows["tuned (trial 3) accuracy"] == ["0.8200", "0.8300", "0.8150", "0.8217", "0.0076"]
    assert any(line.split() == ["TF-IDF", "+", "logistic", "regression", "F1", "0.7800"] for line in lines)
    assert "F1 +0.0213 +0.0041 to +0.0388" in [" ".join(line.split()) for line in lines]
    assert "accuracy +0.0217 -0.0010 to +0.0400" in [" ".join(line.split()) for line in lines]
    assert "a true difference of 2.51 points in f1 would be found four times in five" in text
    assert "label good 2500 0.8100 0.8400 +0.0300" in [" ".join(line.split()) for line in lines]
    assert f"label {_HOSTILE_SHOWN}" in text
    assert lines[-2] == ("flips: 1,234 texts only tuned gets right, 1 only the defaults; studies/reviews/flips.csv")
    assert lines[-1] == f"verdict: {comparison.verdict}"


def test_a_comparison_by_another_metric_shows_that_too(comparison: Comparison) -> None:
    by_mcc = replace(comparison, metric="mcc", chosen_by="search")
    text = report.comparison_text(by_mcc, Path("flips.csv"), 120)
    assert "tuned (trial 3) MCC" in text
    assert "MCC +0.0200 -0.0100 to +0.0500" in [" ".join(line.split()) for line in text.splitlines()]
    assert "the search's best" in text
    assert report.comparison_document(by_mcc)["difference"] == {"mean": 0.02, "ci95": [-0.01, 0.05]}


def test_a_comparison_of_one_seed_has_no_spread(comparison: Comparison) -> None:
    sides = {name: replace(getattr(comparison, name), f1=(0.8,), accuracy=(0.7,)) for name in ("default", "tuned")}
    text = report.comparison_text(replace(comparison, seeds=(43,), **sides), Path("flips.csv"), 120)
    (row,) = (line for line in text.splitlines() if line.startswith("defaults F1"))
    assert row.split()[-3:] == ["0.8000", "0.8000", "-"]
    assert "one seed says nothing of others" in text


@pytest.fixture
def confirmation() -> Confirmation:
    from hpsearch.evidence import Candidate, Confirmation

    return Confirmation(
        metric="f1",
        seeds=(143, 144),
        candidates=(
            Candidate(7, is_defaults=False, params=_BEST, search_value=0.83, values=(0.81, 0.82)),
            Candidate(0, is_defaults=True, params=_PARAMS, search_value=0.8, values=(0.8, 0.81)),
        ),
        seconds=61.5,
        date="2026-11-25T02:07:27+00:00",
        left_out=(4,),
    )


def test_a_confirmation_has_these_keys(confirmation: Confirmation) -> None:
    document = report.confirmation_document(confirmation, "reviews")
    winner = document["candidates"][0]
    assert set(document) == {
        "study", "metric", "seeds", "winner", "candidates", "left_out", "seconds", "date",
    }  # fmt: skip
    assert (document["winner"], document["seeds"], document["left_out"]) == (7, [143, 144], [4])
    assert set(winner) == {
        "trial", "is_defaults", "params", "search_value", "values", "mean", "sd", "shrinkage",
    }  # fmt: skip
    assert winner["mean"] == pytest.approx(0.815)
    assert winner["shrinkage"] == pytest.approx(0.015)
    assert _as_json(document) == document


def test_a_confirmation_names_what_to_export_and_how_much_of_its_lead_was_luck(confirmation: Confirmation) -> None:
    text = report.confirmation_text(confirmation, "reviews", 120)
    rows = [line.split()[:5] for line in text.splitlines()]
    assert ["7", "0.8300", "0.8150", "0.0071", "0.0150"] in rows
    assert "winner: trial 7, f1 0.8150 on fresh seeds, 1.50 points less than in the search" in text
    assert "1.00 points above the defaults on these rows" in text
    assert "trial 4" in text
    assert text.endswith("`hpsearch export-best --study reviews` exports it\n")


def test_a_confirmation_that_the_defaults_win_says_so(confirmation: Confirmation) -> None:
    text = report.confirmation_text(
        replace(confirmation, candidates=confirmation.candidates[1:], left_out=()), "reviews", 120
    )
    assert "tuning did not beat the defaults: they are the best, trial 0, f1 0.8050 on fresh seeds" in text
    assert "0.50 points more than in the search" in text
    assert "above the defaults" not in text


@pytest.mark.parametrize(
    ("low", "high", "best_is_default", "words"),
    [
        (0.001, 0.02, False, "tuning helped: "),
        (-0.02, -0.001, False, "tuning hurt: "),
        (-0.01, 0.01, False, "no evidence that tuning helped: f1"),
        (0.0, 0.02, False, "no evidence that tuning helped: f1"),
        (0.0, 0.0, True, "no evidence that tuning helped: no trial beat the defaults"),
    ],
)
def test_a_verdict_follows_from_the_interval(low: float, high: float, words: str, *, best_is_default: bool) -> None:
    from hpsearch.compare import verdict
    from hpsearch.evidence import Interval

    interval = Interval(mean=(low + high) / 2, low=low, high=high)
    assert verdict(interval, "f1", best_is_default=best_is_default).startswith(words)


def test_an_export_has_these_keys() -> None:
    from hpsearch.export import Export

    export = Export(Path("studies/reviews/best"), "reviews", 3, "f1", 0.85, 0.8500001, "search", "not followed")
    assert report.export_document(export) == {
        "study": "reviews",
        "trial": 3,
        "chosen_by": "search",
        "note": "not followed",
        "output": "studies/reviews/best",
        "metric": "f1",
        "value": 0.85,
        "reloaded_value": 0.8500001,
    }
    text = report.export_text(export)
    assert "trial 3 of study reviews, the search's best\nnote: not followed\n" in text
    assert "0.8500 in the study, 0.8500 reloaded" in text


def test_a_baseline_has_these_keys() -> None:
    from hpsearch.baseline import BaselineResult, EpochRow

    result = BaselineResult(
        loop="native", train_rows=150, test_rows=40, optimizer_steps=114, epochs=6.0, padded_width_train=11,
        padded_width_test=14, train_losses=((50, 0.5), (100, 0.25)), epoch_rows=(EpochRow(1, 0.6, 0.7, 0.65),),
        mean_train_loss=0.4, train_seconds=1.5, loss=0.3, accuracy=0.9, f1=0.91, mcc=0.8, eval_seconds=0.1,
    )  # fmt: skip
    document = report.baseline_document(result)
    assert document == {
        "loop": "native",
        "train_rows": 150,
        "test_rows": 40,
        "epochs": 6.0,
        "steps": 114,
        "padded_width": {"train": 11, "test": 14},
        "losses": [{"step": 50, "loss": 0.5}, {"step": 100, "loss": 0.25}],
        "epoch_rows": [{"epoch": 1, "loss": 0.6, "accuracy": 0.7, "f1": 0.65}],
        "mean_train_loss": 0.4,
        "train_seconds": 1.5,
        "test": {"loss": 0.3, "accuracy": 0.9, "f1": 0.91, "mcc": 0.8},
        "eval_seconds": 0.1,
    }
    assert _as_json(document) == document
    text = report.baseline_text(result, _WIDTH)
    assert "on 40 test rows: loss 0.3000, accuracy 0.9000, F1 0.9100" in text
    assert ["100", "0.2500"] in [line.split() for line in text.splitlines()]


def test_the_next_steps_go_from_confirmation_to_export() -> None:
    steps = report.next_steps("reviews")
    places = [
        steps.index(f"hpsearch {name} --study reviews") for name in ("confirm", "compare", "report", "export-best")
    ]
    assert places == sorted(places)
