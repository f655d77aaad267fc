"""The tutorial's two training systems: what they count, learn and ignore, and which rows they touch."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hpsearch.baseline import run_baseline, terminal_bar
from hpsearch.config import Config, build_config
from hpsearch.data import load_search_data, load_test
from hpsearch.errors import ConfigError, TrainingError
from hpsearch.model import open_model
from hpsearch.observer import Observer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from hpsearch.baseline import BaselineResult, Batch

_NEUTRAL = ["film", "story", "actor", "scene", "music", "end", "plot", "start", "light", "sound", "camera", "voice"]
_TELLING = ["dreadful", "wonderful"]  # by label
_TRAIN_ROWS, _TEST_ROWS, _BATCH, _EPOCHS = 150, 40, 8, 6
_STEPS = math.ceil(_TRAIN_ROWS / _BATCH) * _EPOCHS  # 114: two rows of 50 steps


class _Watcher(Observer):
    """Keeps the calls of `progressed`."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, float, float | None]] = []

    def progressed(self, epoch: float, fraction: float, loss: float | None) -> None:
        self.calls.append((epoch, fraction, loss))


class _Bar:
    """Keeps what it is asked to show and the rows that go through."""

    def __init__(self, batches: Iterable[Batch], description: str) -> None:
        self.description = description
        self.shown: list[str] = []
        self.sizes: list[int] = []
        self.rows: list[list[int]] = []
        self._batches = batches

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._batches:
            self.sizes.append(len(batch["labels"]))
            self.rows += batch["input_ids"].tolist()
            yield batch

    def set_postfix_str(self, s: str) -> None:
        self.shown.append(s)


def _write_rows(path: Path, *, n: int, seed: int, longest: int) -> None:
    """Write texts of neutral words with one word that tells the label; the last text is the longest."""
    generator = np.random.default_rng(seed)
    lines = ["text,label"]
    for i in range(n):
        label = int(generator.integers(2))
        length = longest if i == n - 1 else int(generator.integers(5, longest))
        words = generator.choice(_NEUTRAL, size=length).tolist()
        words[int(generator.integers(length))] = _TELLING[label]
        lines.append(f"{' '.join(words)},{label}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the tiny model and write files that one word separates; the longest text of test is the longest of all."""
    folder = tmp_path_factory.mktemp("baseline")
    shutil.copytree(tiny_model, folder / "model")
    _write_rows(folder / "train.csv", n=_TRAIN_ROWS, seed=1, longest=9)
    _write_rows(folder / "validation.csv", n=20, seed=2, longest=9)
    _write_rows(folder / "test.csv", n=_TEST_ROWS, seed=3, longest=12)
    return folder


def _config(folder: Path, **changes: Any) -> Config:
    """Return a configuration; `changes` are dotted keys with `__` for the dot."""
    tree: dict[str, Any] = {
        "model": {"name": str(folder / "model")},
        "data": {name: str(folder / f"{name}.csv") for name in ("train", "validation", "test")},
        "defaults": {
            "learning_rate": 3e-3,
            "num_train_epochs": _EPOCHS,
            "per_device_train_batch_size": _BATCH,
        },
        "space": {"learning_rate": {"type": "float", "low": 1e-6, "high": 1e-1}},
    }
    overrides = [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
    return build_config(tree, overrides, where="test")


def _train(config: Config, loop: Any) -> BaselineResult:
    return _untimed(run_baseline(config, loop=loop, observer=Observer()))


def _untimed(result: BaselineResult) -> BaselineResult:
    return replace(result, train_seconds=0.0, eval_seconds=0.0)


@pytest.fixture(scope="module")
def watched(folder: Path) -> tuple[BaselineResult, _Watcher]:
    """Train once with the Trainer."""
    watcher = _Watcher()
    return run_baseline(_config(folder), loop="trainer", observer=watcher), watcher


@pytest.fixture(scope="module")
def drawn(folder: Path) -> tuple[BaselineResult, list[_Bar], _Watcher]:
    """Train once with the plain loop."""
    bars: list[_Bar] = []
    watcher = _Watcher()

    def progress(batches: Iterable[Batch], description: str) -> _Bar:
        bars.append(_Bar(batches, description))
        return bars[-1]

    return run_baseline(_config(folder), loop="native", observer=watcher, progress=progress), bars, watcher


@pytest.mark.slow
def test_both_count_rows_steps_and_the_tokens_of_each_whole_split(watched: Any, drawn: Any) -> None:
    for result, loop in ((watched[0], "trainer"), (drawn[0], "native")):
        assert result.loop == loop
        assert (result.train_rows, result.test_rows) == (_TRAIN_ROWS, _TEST_ROWS)
        assert (result.optimizer_steps, result.epochs) == (_STEPS, _EPOCHS)
        assert (result.padded_width_train, result.padded_width_test) == (9 + 2, 12 + 2)  # with [CLS] and [SEP]
        assert result.train_seconds > 0
        assert result.eval_seconds > 0


@pytest.mark.slow
def test_both_learn_the_task(watched: Any, drawn: Any) -> None:
    for result in (watched[0], drawn[0]):
        assert min(result.accuracy, result.f1) > 0.9
        assert result.mcc > 0.8
        assert result.loss < 0.3


@pytest.mark.slow
def test_the_trainer_logs_a_falling_loss_every_50_steps(watched: tuple[BaselineResult, _Watcher]) -> None:
    result, watcher = watched
    steps, losses = zip(*result.train_losses, strict=True)
    assert steps == tuple(range(50, _STEPS + 1, 50))
    assert losses[-1] < losses[0] < 1
    assert losses[-1] < result.mean_train_loss < losses[0]
    assert result.epoch_rows == ()
    expected = [(step * _EPOCHS / _STEPS, step / _STEPS, loss) for step, loss in result.train_losses]
    np.testing.assert_allclose(np.array(watcher.calls, dtype=float), expected)


@pytest.mark.slow
def test_the_plain_loop_scores_each_epoch_on_its_training_predictions(
    drawn: tuple[BaselineResult, list[_Bar], _Watcher],
) -> None:
    result, _, watcher = drawn
    rows = result.epoch_rows
    assert [row.epoch for row in rows] == list(range(1, _EPOCHS + 1))
    assert rows[-1].loss < 0.5 * rows[0].loss
    assert rows[0].accuracy < rows[-1].accuracy
    assert min(rows[-1].accuracy, rows[-1].f1) > 0.9
    assert result.mean_train_loss == pytest.approx(sum(row.loss for row in rows) / _EPOCHS)
    assert result.train_losses == ()
    assert watcher.calls == [(row.epoch, row.epoch / _EPOCHS, row.loss) for row in rows]


@pytest.mark.slow
def test_the_plain_loop_goes_through_all_rows_in_their_order_every_epoch(
    drawn: tuple[BaselineResult, list[_Bar], _Watcher], folder: Path
) -> None:
    result, bars, _ = drawn
    assert [bar.description for bar in bars] == [*(f"epoch {i}/{_EPOCHS}" for i in range(1, _EPOCHS + 1)), "test"]
    config = _config(folder)
    source = open_model(config.model, [])
    train, test = load_search_data(config.data).train, load_test(config.data)
    for split, width, of_split in ((train, 11, bars[:-1]), (test, 14, bars[-1:])):
        ids = [row + [0] * (width - len(row)) for row in source.encode(split.texts)]
        assert all(bar.rows == ids for bar in of_split)
    assert bars[0].sizes == [8] * 18 + [6]
    assert all(len(bar.shown) == len(bar.sizes) for bar in bars)
    shown = [float(text.removeprefix("loss ")) for text in bars[0].shown]
    assert np.mean(shown) == pytest.approx(result.epoch_rows[0].loss, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("hidden_dropout_prob", 0.5, id="dropout"),
        pytest.param("attention_probs_dropout_prob", 0.5, id="attention dropout"),
        pytest.param("lr_scheduler_type", "constant", id="schedule"),
        pytest.param("max_grad_norm", 0.01, id="clipping"),
    ],
)
def test_what_moves_the_trainer_leaves_the_plain_loop_alone(folder: Path, name: str, value: Any) -> None:
    short = {"defaults__num_train_epochs": 2, "defaults__hidden_dropout_prob": 0.0}
    plain, changed = _config(folder, **short), _config(folder, **{**short, f"defaults__{name}": value})
    assert _train(plain, "native") == _train(changed, "native")
    assert _train(plain, "trainer") != _train(changed, "trainer")


@pytest.mark.slow
@pytest.mark.parametrize("pretrained", [True, False], ids=["pretrained", "random weights"])
def test_the_plain_loop_trains_without_dropout_whatever_mode_the_model_comes_in(
    folder: Path, *, pretrained: bool
) -> None:
    short = {"defaults__num_train_epochs": 1, "model__pretrained": str(pretrained).lower()}
    results = [_train(_config(folder, **short, defaults__hidden_dropout_prob=p), "native") for p in (0.0, 0.5)]
    assert results[0] == results[1]


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["trainer", "native"])
def test_the_same_seed_gives_the_same_result_and_another_does_not(folder: Path, loop: str) -> None:
    short = {"defaults__num_train_epochs": 1}
    first, again = (_train(_config(folder, **short), loop) for _ in range(2))
    assert first == again
    assert _train(_config(folder, **short, search__seed=7), loop) != first


@pytest.mark.slow
def test_the_trainer_takes_a_part_of_an_epoch(folder: Path) -> None:
    result = _train(_config(folder, defaults__num_train_epochs=0.5), "trainer")
    assert result.optimizer_steps == 10  # of 19 an epoch
    assert result.epochs == pytest.approx(10 / 19)
    assert result.train_losses == ()
    assert math.isfinite(result.mean_train_loss)


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["trainer", "native"])
def test_test_rows_are_scored_and_never_trained_on(folder: Path, tmp_path: Path, loop: str) -> None:
    lines = (folder / "test.csv").read_text(encoding="utf-8").splitlines()
    swapped = [line[:-1] + {"0": "1", "1": "0"}[line[-1]] for line in lines[1:]]
    (tmp_path / "swapped.csv").write_text("\n".join([lines[0], *swapped]) + "\n", encoding="utf-8")
    short = {"defaults__num_train_epochs": 3}

    result = _train(_config(folder, **short), loop)
    mirrored = _train(_config(folder, **short, data__test=tmp_path / "swapped.csv"), loop)
    assert mirrored.accuracy == pytest.approx(1 - result.accuracy)
    assert mirrored.mcc == pytest.approx(-result.mcc)
    same: dict[str, Any] = {"loss": 0.0, "accuracy": 0.0, "f1": 0.0, "mcc": 0.0}
    assert replace(mirrored, **same) == replace(result, **same)


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["trainer", "native"])
def test_test_rows_drawn_from_the_training_file_are_those_of_load_test(folder: Path, loop: str) -> None:
    config = _config(
        folder,
        data__validation="null",
        data__test="null",
        data__train_rows=64,
        data__test_rows=17,
        defaults__num_train_epochs=1,
    )
    result = _train(config, loop)
    test = load_test(config.data)
    assert (result.train_rows, result.test_rows) == (len(load_search_data(config.data).train), len(test))
    assert result.padded_width_test == max(len(text.split()) for text in test.texts) + 2


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["trainer", "native"])
def test_a_loss_that_is_not_finite_ends_the_training(folder: Path, tmp_path: Path, loop: Any) -> None:
    broken = shutil.copytree(folder / "model", tmp_path / "model")
    weights = load_file(broken / "model.safetensors")
    weights["bert.embeddings.LayerNorm.weight"].fill_(math.nan)
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    config = _config(folder, model__name=broken, defaults__num_train_epochs=3)
    place = {"trainer": "optimizer step 50", "native": "epoch 1/3"}[loop]
    with pytest.raises(TrainingError, match=f"the training loss .*{place} to be a number, got nan"):
        run_baseline(config, loop=loop, observer=Observer())


@pytest.mark.slow
def test_the_trainer_saves_nothing_leaves_nothing_and_prints_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    files: list[list[Path]] = []

    class Looker(Observer):
        def progressed(self, *_: float | None) -> None:
            files.append([path for path in tmp_path.rglob("*") if path.is_file()])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run_baseline(_config(folder), loop="trainer", observer=Looker())
    assert files == [[], []]  # at steps 50 and 100
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_the_plain_loop_refuses_a_part_of_an_epoch(folder: Path) -> None:
    config = _config(folder, defaults__num_train_epochs=2.5)
    with pytest.raises(ConfigError, match=r"num_train_epochs: expected a whole number .*, got 2\.5"):
        run_baseline(config, loop="native", observer=Observer())


def test_the_bar_shows_nothing_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    batches = [{"labels": torch.zeros(1)}] * 3
    bar = terminal_bar(batches, "epoch 1/1")
    for _ in bar:
        bar.set_postfix_str("loss 0.5000")
    assert capsys.readouterr() == ("", "")


def test_the_bar_shows_the_loss_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    bar = terminal_bar([{"labels": torch.zeros(1)}] * 3, "epoch 1/1")
    for _ in bar:
        bar.set_postfix_str("loss 0.5000")
    shown = capsys.readouterr().err
    assert "epoch 1/1" in shown
    assert "3/3" in shown
    assert "loss 0.5000" in shown
