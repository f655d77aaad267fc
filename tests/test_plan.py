"""A plan: real steps of the tiny model, the arithmetic by hand, and what it warns of before a search would fail."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import Trainer

from hpsearch import plan as planning
from hpsearch.cli import cli
from hpsearch.config import Config
from hpsearch.plan import EVALUATIONS_SPENT, TIME_SPENT, Plan, drawn_configurations, make_plan, search_share
from hpsearch.plan_report import plan_document, plan_text
from hpsearch.probe import Probe, Speed, fit_line, tokens_of_batch
from tests.conftest import BAD, GOOD, write_csv

RESULTS = Path(__file__).parents[1] / "benchmarks" / "tabular_results.json"


def levels(plan: Plan, subject: str) -> list[str]:
    return [check.level for check in plan.checks if check.subject == subject]


def texts(plan: Plan, level: str) -> str:
    return "\n".join(check.text for check in plan.checks if check.level == level)


def contents(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# --- The arithmetic ---------------------------------------------------------------------------------------------------


def test_the_line_of_steps_is_found_and_never_goes_below_nothing() -> None:
    assert fit_line([100, 200, 300], [0.3, 0.5, 0.7]) == (pytest.approx(0.1), pytest.approx(0.002))
    assert fit_line([100, 100], [0.2, 0.4]) == (0.0, pytest.approx(0.003)), "one number of tokens"
    assert fit_line([100, 200], [0.1, 0.4]) == (0.0, pytest.approx(0.0018)), "a line that would start below 0"
    assert fit_line([100, 200], [0.4, 0.2]) == (pytest.approx(0.3), 0.0), "a line that would fall"


def test_the_tokens_of_a_batch_are_those_of_its_texts_with_what_fills_it_up() -> None:
    even = np.full(64, 16)
    assert tokens_of_batch(even, 8, is_packed=True) == 128
    assert tokens_of_batch(even, 6, is_packed=True) == pytest.approx((10 * 128 + 64) / 11), "96 tokens take 128 places"
    assert tokens_of_batch(even, 8, is_packed=False) == 128
    mixed = np.array([10, 30] * 32)
    padded = tokens_of_batch(mixed, 64, is_packed=False)
    assert padded == 64 * 30
    assert tokens_of_batch(mixed, 8, is_packed=False) < 8 * 30, "texts of similar length go together"


def test_a_training_takes_its_steps_its_evaluations_and_the_rest(make_config: Callable[..., Config]) -> None:
    speed = Speed(start=100, training=2, step=0.5, token=0.01, evaluation=3, checkpoint=1)
    probe = Probe(
        speed=speed, device="cpu", products="float32", peak_memory_mib=1, peak_is_measured=True, checkpoint_bytes=1,
        lengths=np.full(80, 16), validation_tokens=1, is_packed=True,
    )  # fmt: skip
    # 2 epochs of 10 batches with 8 x 16 tokens.
    settings = make_config("defaults.per_device_train_batch_size=8").defaults
    assert probe.seconds(settings, 4) == pytest.approx(2 + 20 * (0.5 + 1.28) + 4 * 3 + 1)


def test_a_search_of_twenty_trials_takes_the_share_of_the_replayed_ones() -> None:
    results = json.loads(RESULTS.read_text(encoding="utf-8"))["results"]
    replayed = {(entry["sampler"], entry["pruner"]): entry["at_20_trials"] for entry in results}
    samplers = {"tpe": "tpe-8", "random": "random", "gp": "gp-10"}
    pruners = {"none": "none", "median": "median 5/2", "successive-halving": "halving", "hyperband": "hyperband"}
    whole = replayed["random", "none"]
    for table, unit in ((TIME_SPENT, "epochs"), (EVALUATIONS_SPENT, "evaluations")):
        for (sampler, pruner), share in table.items():
            figure = replayed[samplers[sampler], pruners[pruner]][unit] / whole[unit]
            assert share == pytest.approx(figure, abs=0.001)
            assert search_share(sampler, pruner, 20, is_length_tuned=unit == "epochs") == pytest.approx(share)


def test_the_first_trials_of_a_search_are_neither_pruned_nor_longer() -> None:
    assert search_share("tpe", "median", 4, is_length_tuned=True) == 1
    assert search_share("tpe", "median", 40, is_length_tuned=True) < search_share(
        "tpe", "median", 20, is_length_tuned=True
    )
    assert search_share("gp", "median", 20, is_length_tuned=False) == pytest.approx(EVALUATIONS_SPENT["tpe", "median"])


def test_the_draws_are_the_seeds_own_and_lie_in_the_space(make_config: Callable[..., Config]) -> None:
    config = make_config()
    drawn = [*drawn_configurations(config)]
    assert drawn == [*drawn_configurations(config)]
    assert {each.num_train_epochs for each in drawn} == {1, 2, 3}
    assert {each.per_device_train_batch_size for each in drawn} == {8, 16}


# --- Real plans -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a studies folder that is not there."""
    return tmp_path_factory.mktemp("plan") / "studies"


@pytest.mark.slow
def test_a_plan_has_measured_what_it_says_and_written_nothing(
    make_config: Callable[..., Config], studies: Path
) -> None:
    plan = make_plan(make_config(), studies, loading_s=5.0)
    assert not plan.would_fail
    assert not studies.exists()
    assert plan.audit is not None
    assert plan.audit["splits"]["train"]["rows"] <= 80
    estimate = plan.estimate
    assert estimate is not None
    speed = estimate.probe.speed
    assert estimate.start_s > 5
    assert speed.evaluation > 0
    assert speed.step + speed.token > 0
    assert 0 < estimate.trial_s.low <= estimate.trial_s.mean <= estimate.trial_s.high
    assert estimate.without_pruning_s.low <= estimate.without_pruning_s.mean <= estimate.without_pruning_s.high
    assert estimate.probe.checkpoint_bytes > 10_000
    assert estimate.disk_bytes > 4 * estimate.probe.checkpoint_bytes
    assert 100 < estimate.probe.peak_memory_mib < estimate.available_mib
    assert {"data", "model", "memory", "disk"} <= {check.subject for check in plan.checks if check.level == "ok"}


@pytest.mark.slow
def test_memory_that_ends_at_a_whole_batch_is_what_a_plan_says(
    make_config: Callable[..., Config], studies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.training_step

    def limited(self: Trainer, model: Any, inputs: dict[str, Any], *rest: Any) -> torch.Tensor:
        if len(inputs["labels"]) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return step(self, model, inputs, *rest)

    monkeypatch.setattr(Trainer, "training_step", limited)
    plan = make_plan(make_config("space.num_train_epochs=null"), studies)
    assert levels(plan, "train") == ["fail"]
    assert "CUDA out of memory" in texts(plan, "fail")


@pytest.mark.slow
def test_a_batch_that_would_not_fit_is_not_tried(
    make_config: Callable[..., Config], studies: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(planning, "_available_mib", lambda: 1)  # a machine that small cannot be had
    plan = make_plan(make_config("space.num_train_epochs=null"), studies)
    assert plan.would_fail
    assert plan.estimate is not None
    assert levels(plan, "memory") == ["fail"]
    assert "at batches of 16 of the longest texts" in texts(plan, "fail")


@pytest.mark.slow
def test_a_full_disk_fails(make_config: Callable[..., Config], studies: Path, monkeypatch: Any) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 1000))  # a full disk cannot be had
    plan = make_plan(make_config("space.num_train_epochs=null"), studies)
    assert levels(plan, "disk") == ["fail"]


def test_what_cannot_be_read_is_named_for_data_and_model_at_once(
    make_config: Callable[..., Config], tmp_path: Path, tiny_model: Path
) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    one = tmp_path / "one.csv"
    write_csv(one, [(f"{GOOD} film {i}", "good") for i in range(20)])
    plan = make_plan(make_config(f"model.name={model}", f"data.validation={one}", "data.validation_rows=20"), tmp_path)
    assert plan.would_fail
    assert plan.estimate is None
    assert "expected at least two labels among the 20 validation rows" in texts(plan, "fail")
    assert "pytorch_model.bin, which can run code when opened" in texts(plan, "fail")
    text = plan_text(plan_document(plan, "hpsearch run"), 200)
    assert text.startswith("fail  data")
    assert "\nfail  model" in text
    assert text.endswith("this search would fail: mend what is marked fail first\nrun it:  hpsearch run\n")


@pytest.mark.slow
def test_noteworthy_data_are_warned_of(make_config: Callable[..., Config], tmp_path: Path) -> None:
    rows = [(f"{BAD} film", "bad")] * 40 + [(f"{BAD} xyzzy{i} film", "bad") for i in range(60)]
    rows += [(f"{GOOD} xyzzy{i} film", "good") for i in range(4)]
    write_csv(tmp_path / "train.csv", rows)
    write_csv(tmp_path / "validation.csv", [*rows[38:70], *rows[-4:]])
    write_csv(tmp_path / "test.csv", [*rows[38:70], *rows[-4:]])
    overrides = [f"data.{split}={tmp_path / split}.csv" for split in ("train", "validation", "test")]
    overrides += [f"data.{split}_rows=null" for split in ("train", "validation", "test")]
    plan = make_plan(
        make_config(*overrides, "data.keep_overlaps=true", "model.max_length=4", "search.evaluations=30"), tmp_path
    )
    assert not plan.would_fail
    warnings = texts(plan, "warn")
    for words in (
        r"label 'good' is 3\.8% of the training rows \(4\)",
        r"39 of 104 train rows repeat another's text",
        r"\d+ texts of train also stand in validation",
        r"\d+ texts of validation also stand in test",
        r"only 36 validation rows",
        r"of the train tokens are unknown to the model",
        r"6\d of 104 train texts are longer than the model's input",
        r"the shortest trials have 7 steps and so fewer than 30 evaluations",
    ):
        assert re.search(words, warnings), words


@pytest.mark.slow
def test_texts_that_are_all_cut_are_warned_of(make_config: Callable[..., Config], tmp_path: Path) -> None:
    plan = make_plan(make_config("model.max_length=4"), tmp_path)
    assert re.search(r"all \d+ train texts are longer than the model's input and are cut \(100%\)", texts(plan, "warn"))


# --- The command ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_plan_ends_with_the_command_to_run_and_leaves_the_folder_alone(toy_yaml: Path) -> None:
    folder = toy_yaml.parent
    before = contents(folder)
    options = [
        "--config",
        str(toy_yaml),
        "--trials",
        "2",
        "--set",
        "space.per_device_train_batch_size.choices=[8, 16, 32]",
    ]
    arguments = [*options, "--storage", f"sqlite:///{folder}/studies/s.db"]
    result = CliRunner().invoke(cli, ["plan", *arguments])
    assert result.exit_code == 0, result.output
    assert contents(folder) == before
    lines = result.stdout.splitlines()
    assert lines[0].startswith("ok    data    train")
    assert re.search(r"^time  search  2 trials .* without pruning, .* with pruner median$", result.stdout, re.M)
    command = shlex.split(lines[-1].removeprefix("run it:  "))
    assert command[:2] == ["hpsearch", "run"]
    assert sorted(command[2:]) == sorted(arguments)


def test_plan_prints_one_document_and_exits_with_1_where_the_search_would_fail(toy_yaml: Path) -> None:
    result = CliRunner().invoke(cli, ["plan", "--config", str(toy_yaml), "--set", "data.train=nowhere.csv", "--json"])
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["would_fail"]
    assert document["estimate"] is None
    assert [check["level"] for check in document["checks"]] == ["fail"]
    assert document["command"] == f"hpsearch run --config {toy_yaml} --set data.train=nowhere.csv"


@pytest.mark.parametrize("width", [40, 60])
def test_no_line_of_a_plan_is_wider_than_the_terminal_but_the_command(
    width: int, make_config: Callable[..., Config], tmp_path: Path
) -> None:
    plan = make_plan(make_config("model.name=nowhere/at/all", "data.train=없다.csv"), tmp_path)
    *lines, command = plan_text(plan_document(plan, "hpsearch run"), width).splitlines()
    assert max(map(len, lines)) <= width or width < len("this search would fail: mend what is marked fail first")
    assert command == "run it:  hpsearch run"
