"""The comparison with the stock search: how F1 is judged, what is printed, and that both programs learn the same."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click import ClickException

from hpsearch.config import load_config

if TYPE_CHECKING:
    from types import ModuleType

_SCRIPT = Path(__file__).parents[1] / "benchmarks" / "search_vs_stock.py"


def _load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("search_vs_stock", _SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their annotations up there
    spec.loader.exec_module(module)
    return module


script = _load_script()


def plan_of(**changes: Any) -> dict[str, Any]:
    return {
        "model": "models/encoder", "pretrained": True, "train": "data/ratings_train.txt", "rows": 600,
        "validation_rows": 500, "search": False, "seed": 42, "n_trials": 2, "trials": script.trials_of(2, 3), **changes,
    }  # fmt: skip


def run_of(seconds: float, f1: list[float | None], *, seed: int = 42, **changes: Any) -> dict[str, Any]:
    return {
        "seed": seed, "seconds": seconds, "seconds_before_first_trial": 2.25, "f1": f1,
        "states": ["complete"] * len(f1), "rows": "a1", "peak_mib": 1500, "written_mib": 41, "kept_mib": 40,
        "machine": "2 cores of a processor, no GPU, 2 threads", **changes,
    }  # fmt: skip


RUNS = {
    "stock": [run_of(80.0, [0.70, 0.80]), run_of(90.0, [0.72, 0.76], seed=43), run_of(70.0, [0.74, 0.78], seed=44)],
    "hpsearch": [run_of(20.0, [0.71, 0.79]), run_of(18.0, [0.75, 0.76], seed=43), run_of(20.0, [0.74, 0.80], seed=44)],
}


# --- The plan ---------------------------------------------------------------------------------------------------------


def test_the_first_trial_is_the_shipped_defaults() -> None:
    """`hpsearch` always runs the defaults first, so that is what the list must begin with."""
    defaults = load_config("nsmc-mbert").defaults
    first = script.trials_of(1, 10)[0]
    assert first == {name: getattr(defaults, name) for name in first}


def test_trials_are_fixed_and_as_many_as_asked_for() -> None:
    trials = script.trials_of(20, 2)
    assert len(trials) == 20
    assert trials[:4] == script.trials_of(4, 2)
    assert {trial["num_train_epochs"] for trial in trials} == {2}


def test_hpsearch_is_set_to_the_same_trials_rows_and_seed_without_pruning() -> None:
    config = load_config("nsmc-mbert", script.overrides_of(plan_of(seed=44)))
    assert (config.data.train_rows, config.data.validation_rows) == (600, 500)
    assert config.data.keep_overlaps  # the stock side drops no rows
    assert (config.search.seed, config.search.trials, config.search.pruner) == (44, 2, "none")
    assert config.search.evaluations == config.defaults.num_train_epochs == 3
    assert set(config.space) == set(script.trials_of(1, 3)[0])


def test_search_mode_keeps_the_shipped_space_epochs_and_pruner() -> None:
    shipped = load_config("nsmc-mbert")
    config = load_config("nsmc-mbert", script.overrides_of(plan_of(search=True, n_trials=20, trials=[])))
    assert config.space == shipped.space
    assert config.defaults == shipped.defaults
    assert config.search == shipped.search
    assert config.data.train_rows == 600


# --- Judging ----------------------------------------------------------------------------------------------------------


def test_the_mean_difference_is_set_against_its_standard_error() -> None:
    agreement = script.judge({name: [run["f1"] for run in runs] for name, runs in RUNS.items()})
    # Differences 0.01, -0.01, 0.03, 0, 0, 0.02: mean 0.05 / 6, squares about it 0.00108333, over 5, over 6.
    assert agreement.n_pairs == 6
    assert agreement.mean_difference == pytest.approx(0.05 / 6)
    assert agreement.standard_error == pytest.approx(math.sqrt((0.0015 - 0.0025 / 6) / 5 / 6))
    # Variances over the seeds: 0.0004 for both of stock's trials, 0.0013 / 3 for both of hpsearch's.
    assert agreement.seed_deviations == pytest.approx({"stock": 0.02, "hpsearch": math.sqrt(0.0013 / 3)})
    assert agreement.agrees


@pytest.mark.parametrize(("shift", "agrees"), [(0.0, True), (0.0085, True), (0.0095, False), (-0.0095, False)])
def test_two_standard_errors_are_the_limit(shift: float, *, agrees: bool) -> None:
    # Around the shift the differences are 0.01 and -0.01, three of each: two standard errors are 0.00894.
    ours = [[0.76 + shift, 0.74 + shift, 0.76 + shift], [0.74 + shift, 0.76 + shift, 0.74 + shift]]
    scores = {"stock": [[0.75] * 3] * 2, "hpsearch": ours}
    assert script.judge(scores).agrees is agrees


def test_programs_that_give_the_very_same_agree() -> None:
    agreement = script.judge({"stock": [[0.7, 0.8]] * 2, "hpsearch": [[0.7, 0.8]] * 2})
    assert (agreement.mean_difference, agreement.standard_error) == (0.0, 0.0)
    assert agreement.agrees


def test_pairs_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="longer"):
        script.judge({"stock": [[0.7, 0.8]] * 2, "hpsearch": [[0.7]] * 2})


@pytest.mark.parametrize(
    ("runs", "pretrained", "words"),
    [
        (RUNS, True, ["+0.0083", "(6 pairs)", "within two standard errors", "five times in six", "0.0200 stock"]),
        ({**RUNS, "hpsearch": [run_of(20.0, [0.5, 0.5])] * 3}, True, ["BEYOND two standard errors", "-0.2500"]),
        ({name: repeats[:1] for name, repeats in RUNS.items()}, True, ["not judged", "two repeats"]),
        (RUNS, False, ["not judged", "random weights"]),
    ],
    ids=["alike", "different", "one repeat", "random weights"],
)
def test_the_judgement_is_in_words(
    runs: dict[str, list[dict[str, Any]]], words: list[str], *, pretrained: bool
) -> None:
    document = script.document_of(plan_of(pretrained=pretrained), runs)
    for word in words:
        assert word in document["judgement"]
    assert (document["agreement"] is None) == ("not judged" in document["judgement"])


# --- What is printed and kept -----------------------------------------------------------------------------------------


def test_the_ratio_is_the_median_over_the_repeats() -> None:
    document = script.document_of(plan_of(), RUNS)
    assert document["ratios"] == [4.0, 5.0, 3.5]
    assert document["ratio"] == 4.0


def test_the_document_says_what_was_run_where() -> None:
    document = json.loads(json.dumps(script.document_of(plan_of(), RUNS), allow_nan=False))
    assert document["plan"]["trials"] == script.trials_of(2, 3)
    assert document["plan"]["model"] == "encoder"
    assert document["machine"] == "2 cores of a processor, no GPU, 2 threads"
    assert {"python", "torch", "transformers", "optuna", "datasets", "hpsearch"} <= set(document["versions"])
    assert document["runs"] == RUNS


def test_the_table_has_a_row_for_each_program_and_the_f1_of_every_trial() -> None:
    text = script.table(script.document_of(plan_of(), RUNS))
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.startswith(("stock", "hpsearch"))}
    assert rows["stock"] == ["40.0", "80.0", "2.2", "1,500.0", "-", "41.0", "40.0"]
    assert rows["hpsearch"] == ["10.0", "20.0", "2.2", "1,500.0", "-", "41.0", "40.0"]
    assert "stock, seed 43: 0.7200, 0.7600" in text
    assert "hpsearch, seed 44: 0.7400, 0.8000" in text
    assert "ratio 4.00 (median of 3, 3.50 to 5.00)" in text


def test_a_search_is_shown_alone_with_its_pruned_and_failed_trials() -> None:
    runs = {"hpsearch": [run_of(30.0, [0.8, 0.7, None], states=["complete", "pruned", "fail"], device_mib=2000)]}
    document = script.document_of(plan_of(search=True), runs)
    text = script.table(document)
    assert "0.8000, 0.7000 (pruned), - (fail)" in text
    assert "2,000.0" in text
    assert "ratio" not in text
    assert "ratio" not in document
    assert "judgement" not in document


# --- In turn ----------------------------------------------------------------------------------------------------------


def test_repeats_alternate_and_give_both_programs_the_same_new_seed() -> None:
    calls = []

    def run_one(program: str, plan: dict[str, Any]) -> dict[str, Any]:
        calls.append((program, plan["seed"]))
        return run_of(1.0, [0.7, 0.8], seed=plan["seed"])

    runs = script.compare(plan_of(), 3, lambda _: None, run_one)
    assert calls == [("stock", 42), ("hpsearch", 42), ("hpsearch", 43), ("stock", 43), ("stock", 44), ("hpsearch", 44)]
    assert [run["seed"] for run in runs["stock"]] == [run["seed"] for run in runs["hpsearch"]] == [42, 43, 44]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"rows": "b2"}, "the same rows"), ({"states": ["complete", "fail"]}, "every trial to be complete")],
)
def test_runs_that_cannot_be_compared_are_refused(changes: dict[str, Any], message: str) -> None:
    def run_one(program: str, plan: dict[str, Any]) -> dict[str, Any]:
        return run_of(1.0, [0.7, 0.8], **(changes if program == "hpsearch" else {}))

    with pytest.raises(ClickException, match=message):
        script.compare(plan_of(), 1, lambda _: None, run_one)


@pytest.mark.slow
def test_a_program_that_ends_with_an_error_says_why() -> None:
    with pytest.raises(ClickException, match=r"(?s)enqueue ended with status 1:.*no-such-file"):
        script.run_apart("hpsearch", plan_of(train="no-such-file"))
