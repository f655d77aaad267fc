"""Memory that does not suffice costs no trial as long as one row fits: the batch goes in parts, to the same effect."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pytest
import torch
from optuna.trial import TrialState, create_trial
from transformers import Trainer

from hpsearch.memory import TOO_MANY_ROWS, RowsAtOnce, is_out_of_memory, learnt_by
from hpsearch.observer import Observer
from hpsearch.owner import Owner
from hpsearch.search import prepare, pruner_of, sampler_of
from hpsearch.trainer import SearchTrainer

if TYPE_CHECKING:
    from collections.abc import Callable

    from hpsearch.config import Config


@pytest.fixture
def make_trainer(make_config: Callable[..., Config], tmp_path: Path) -> Callable[..., SearchTrainer]:
    def make(*overrides: str, observer: Observer | None = None) -> SearchTrainer:
        task = prepare(make_config(*overrides))
        return SearchTrainer(task, folder=tmp_path, observer=observer or Observer(), products="float32")

    return make


def _refuse_above(monkeypatch: pytest.MonkeyPatch, rows: int, *, after: int = 0) -> list[int]:
    """Let memory suffice for so many rows at once, but after so many steps; return the rows of all steps."""
    step = Trainer.training_step
    seen: list[int] = []

    def limited(self: Trainer, model: Any, inputs: dict[str, Any], *rest: Any) -> torch.Tensor:
        seen.append(len(inputs["labels"]))
        if seen[-1] > rows and len(seen) > after:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return step(self, model, inputs, *rest)

    monkeypatch.setattr(Trainer, "training_step", limited)
    return seen


class _Notes(Observer):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.ended: list[tuple[str, str]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def trial_ended(self, name: str, state: str, value: float | None, seconds: float, reason: str = "") -> None:
        self.ended.append((state, reason))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
            True,
        ),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("could not create a primitive descriptor for a convolution forward propagation"), False),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_memory_that_ran_out_is_told_from_other_errors(error: Exception, *, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_what_did_not_fit_is_not_tried_again() -> None:
    rows = RowsAtOnce()
    assert [rows.n_parts(size) for size in (1, 8, 64)] == [1, 1, 1]
    rows.did_not_fit(32)
    assert [rows.n_parts(size) for size in (8, 31, 32, 64, 100)] == [1, 1, 2, 4, 4]
    rows.did_not_fit(64)
    assert rows.too_many == 32
    rows.did_not_fit(2)
    assert [rows.in_part(size, rows.n_parts(size)) for size in (1, 3, 24, 32)] == [1, 1, 1, 1]


def test_what_another_process_of_the_machine_has_learnt_is_known() -> None:
    me = Owner.me()

    def tried(rows: int, owner: Owner = me) -> Any:
        return create_trial(state=TrialState.FAIL, user_attrs={TOO_MANY_ROWS: rows}, system_attrs=owner.attributes())

    elsewhere = replace(me, host="larger")
    assert learnt_by([tried(64), tried(32), tried(4, elsewhere), create_trial(value=0.5)], me.host) == RowsAtOnce(32)
    assert learnt_by([], me.host) == RowsAtOnce(None)


# 80 rows in batches of 24: the last one has 8, and parts of neither are equal.
_UNEVEN = ("defaults.per_device_train_batch_size=24", "space.per_device_train_batch_size.choices=[8, 24]")


@pytest.mark.parametrize("extra", ["gradient_accumulation_steps=2", "label_smoothing_factor=0.1", "max_grad_norm=0.1"])
def test_a_batch_in_parts_trains_as_the_whole_batch_does(
    make_trainer: Callable[..., SearchTrainer], monkeypatch: pytest.MonkeyPatch, extra: str
) -> None:
    overrides = (*_UNEVEN, f"defaults.{extra}")
    whole = make_trainer(*overrides)
    expected = whole.fit(whole.task.config.defaults, seed=3)
    seen = _refuse_above(monkeypatch, 5)
    parts = make_trainer(*overrides)
    outcome = parts.fit(parts.task.config.defaults, seed=3)
    assert max(seen[-16:]) <= 5
    assert outcome.effective["micro_batch_size"] == 3
    assert {**outcome.effective, "micro_batch_size": 24} == expected.effective
    for ours, theirs in zip(outcome.evaluations, expected.evaluations, strict=True):
        assert ours.eval_loss == pytest.approx(theirs.eval_loss, abs=2e-5)
        assert ours.train_loss == pytest.approx(theirs.train_loss, abs=2e-5)
    for name, values in expected.weights.items():
        torch.testing.assert_close(outcome.weights[name], values, atol=2e-4, rtol=2e-4)


def test_the_same_trial_goes_on_with_fewer_rows_and_later_ones_begin_there(
    make_trainer: Callable[..., SearchTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    observer = _Notes()
    trainer = make_trainer("search.pruner=none", observer=observer)
    search = trainer.task.config.search
    study = optuna.create_study(direction="maximize")
    batch = "per_device_train_batch_size"
    for size in (16, 16, 8):
        study.enqueue_trial({"learning_rate": 3e-3, "num_train_epochs": 2, batch: size})
    seen = _refuse_above(monkeypatch, 8, after=6)  # past the first two evaluations, which come again
    for _ in range(3):
        trainer.search_one(study, sampler_of(search), pruner_of(search))
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 3
    assert observer.notes == ["out of memory with 16 rows at once; trying again with 8"]
    assert max(seen[7:]) == 8
    first, second, third = study.trials
    assert first.user_attrs[TOO_MANY_ROWS] == 16
    assert TOO_MANY_ROWS not in second.user_attrs
    assert [trial.user_attrs["effective"]["micro_batch_size"] for trial in study.trials] == [8, 8, 8]
    assert [trial.user_attrs["effective"][batch] for trial in study.trials] == [16, 16, 8]
    assert first.intermediate_values == second.intermediate_values
    assert max(first.intermediate_values.values()) == first.value == second.value
    assert third.user_attrs["effective"]["optimizer_steps"] == 2 * second.user_attrs["effective"]["optimizer_steps"]


def test_a_trial_fails_only_where_not_even_one_row_fits(
    make_trainer: Callable[..., SearchTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    observer = _Notes()
    trainer = make_trainer(observer=observer)
    search = trainer.task.config.search
    study = optuna.create_study(direction="maximize")
    _refuse_above(monkeypatch, 0)
    with pytest.raises(torch.OutOfMemoryError):
        trainer.search_one(study, sampler_of(search), pruner_of(search))
    assert study.trials[0].user_attrs["failure"] == "out of memory"
    assert observer.ended == [("failed", "out of memory")]
    assert observer.notes[-1] == "out of memory with 2 rows at once; trying again with 1"
    assert trainer.model is None


_IN_LITTLE_MEMORY = """
import json, resource, sys
from pathlib import Path
import torch
from hpsearch.config import build_config
from hpsearch.observer import Observer
from hpsearch.search import prepare
from hpsearch.trainer import SearchTrainer

class Notes(Observer):
    def note(self, text):
        print(text, file=sys.stderr)

torch.set_num_threads(1)
task = prepare(build_config(json.loads(sys.argv[1]), where="toy"))
trainer = SearchTrainer(task, folder=Path("."), observer=Notes(), products="float32")
trainer.fit(task.config.defaults.replace({"per_device_train_batch_size": 8}), seed=3)  # takes what any batch takes
trainer.release()
in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (in_use + 400 * 2**20,) * 2)
print(json.dumps(trainer.fit(task.config.defaults, seed=3).effective))
"""


@pytest.mark.slow
def test_the_hosts_memory_that_runs_out_really_is_met_with_smaller_parts(
    toy_tree: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    for path in tiny_model.glob("tokenizer*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    shape = json.loads((tiny_model / "config.json").read_text(encoding="utf-8"))
    shape["intermediate_size"] = 16384  # one layer's activations of a batch of 300 take some 240 MB, several times
    (tmp_path / "config.json").write_text(json.dumps(shape), encoding="utf-8")
    toy_tree["model"] = {"name": str(tmp_path), "pretrained": False}
    toy_tree["data"] |= {"train_rows": 300, "validation_rows": 40, "test_rows": 40}
    toy_tree["defaults"] |= {"per_device_train_batch_size": 300, "num_train_epochs": 1}
    toy_tree["space"]["per_device_train_batch_size"]["choices"] = [8, 300]
    command = [sys.executable, "-c", _IN_LITTLE_MEMORY, json.dumps(toy_tree)]
    # What is limited is the address space, of which each further arena of malloc would reserve some.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    assert "out of memory with 300 rows at once; trying again with 150" in result.stderr
    effective = json.loads(result.stdout)
    assert effective["per_device_train_batch_size"] == 300
    assert effective["micro_batch_size"] < 300
