"""Pretraining an encoder: what is written, what is learnt, what is refused."""

from __future__ import annotations

import importlib.util
import random
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

if TYPE_CHECKING:
    from types import ModuleType

    from click.testing import Result

_SCRIPT = Path(__file__).parents[1] / "scripts" / "pretrain_encoder.py"
_WORDS = ["영화", "정말", "재미", "배우", "연기", "감동", "음악", "결말", "지루", "최고"]
_WORDS += ["movie", "great", "boring", "plot", "actor", "the", "a", "of", "Ending", "10"]
_ENDINGS = ["", "가", "는", "도", "!", "...", "s"]
_TINY = {"vocabulary": 300, "layers": 2, "hidden": 32, "heads": 2, "passes": 4, "tokens_per_batch": 512}


def _load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pretrain_encoder", _SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their annotations up there
    spec.loader.exec_module(module)
    return module


script = _load_script()


def _recipe(**changes: Any) -> Any:
    return script.Recipe(**{**_TINY, "learning_rate": 5e-3, "warmup_steps": 3, **changes})


def _invoke(text_file: Path, output: Path, *options: str) -> Result:
    tiny = [part for name, value in _TINY.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    return CliRunner().invoke(script.main, [str(text_file), "--output", str(output), *tiny, *options])


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 300 sentences whose words are unevenly frequent, so that there is something to learn."""
    generator = random.Random(7)
    weights = [1 / rank for rank in range(1, len(_WORDS) + 1)]
    lines = [
        " ".join(
            word + generator.choice(_ENDINGS) for word in generator.choices(_WORDS, weights, k=generator.randint(1, 15))
        )
        for _ in range(300)
    ]
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def pretrained(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Pretrain once; return the folder and the report."""
    folder = tmp_path_factory.mktemp("encoder") / "tiny"
    return folder, script.pretrain(text_file, folder, _recipe())


@pytest.mark.slow
def test_the_loss_falls(pretrained: tuple[Path, Any]) -> None:
    _, report = pretrained
    assert report.n_texts == 300
    assert len(report.losses) > 10
    assert report.end_loss < 0.9 * report.start_loss


@pytest.mark.slow
def test_the_folder_is_whole_and_loads_as_a_classifier(pretrained: tuple[Path, Any]) -> None:
    folder, _ = pretrained
    assert _names(folder) == {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"}
    assert _names(folder.parent) == {"tiny"}  # nothing is left of where it was written

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=2, use_safetensors=True, dtype=torch.float32
    )
    assert len(tokenizer) == model.config.vocab_size <= 300
    assert tokenizer.model_max_length == model.config.max_position_embeddings
    texts = ["정말 great 영화", "지루"]
    assert tokenizer.unk_token_id not in tokenizer(texts[0])["input_ids"]
    assert tokenizer.decode(tokenizer(texts[0])["input_ids"], skip_special_tokens=True) == texts[0]
    with torch.no_grad():
        assert model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.shape == (2, 2)

    stored = load_file(folder / "model.safetensors")
    torch.testing.assert_close(
        model.bert.embeddings.word_embeddings.weight, stored["embeddings.word_embeddings.weight"].float()
    )


@pytest.mark.slow
def test_the_weights_are_float16_and_hold_no_pooler_or_head(pretrained: tuple[Path, Any]) -> None:
    folder, report = pretrained
    weights = load_file(folder / "model.safetensors")
    assert {values.dtype for values in weights.values()} == {torch.float16}
    assert {name.split(".")[0] for name in weights} == {"embeddings", "encoder"}
    assert sum(values.numel() for values in weights.values()) == report.n_parameters


@pytest.mark.slow
def test_the_same_seed_gives_the_same_encoder(pretrained: tuple[Path, Any], text_file: Path, tmp_path: Path) -> None:
    first, report = pretrained
    again = script.pretrain(text_file, tmp_path / "again", _recipe())
    script.pretrain(text_file, tmp_path / "other", _recipe(seed=1, max_steps=2))

    assert again == report
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == (first / "tokenizer.json").read_bytes()
    old, new, other = (
        load_file(path / "model.safetensors") for path in (first, tmp_path / "again", tmp_path / "other")
    )
    assert all(torch.equal(old[name], new[name]) for name in old)
    assert not all(torch.equal(old[name], other[name]) for name in old)


@pytest.mark.slow
def test_the_command_reports_progress_apart_from_the_result(text_file: Path, tmp_path: Path) -> None:
    result = _invoke(text_file, tmp_path / "encoder", "--max-steps", "2")
    assert result.exit_code == 0, result.output
    assert "step 2: loss" in result.stderr
    assert "step 2: loss" not in result.stdout
    assert "2 steps, loss" in result.stdout


@pytest.mark.slow
def test_a_diverged_training_writes_nothing(text_file: Path, tmp_path: Path) -> None:
    result = _invoke(text_file, tmp_path / "encoder", "--learning-rate", "1e30")
    assert result.exit_code == 1
    assert "expected a finite loss" in result.stderr
    assert _names(tmp_path) == set()


def test_an_existing_folder_is_refused(text_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "encoder"
    output.mkdir()
    result = _invoke(text_file, output)
    assert result.exit_code == 2
    assert f"expected a new folder, got {output}, which exists" in result.stderr
    assert _names(tmp_path) == {"encoder"}
    assert _names(output) == set()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "expected one text a line, got none", id="empty"),
        pytest.param(b"\xef\xbb\xbf\r\n \n\t\n", "expected one text a line, got none", id="blank lines"),
        pytest.param("영화\n재미".encode("cp949"), "line 1: expected UTF-8, got the byte 0xbf", id="not UTF-8"),
        pytest.param(b"\x00\n\x01\n", "expected texts with words", id="control characters"),
        pytest.param(None, "does not exist", id="missing"),
    ],
)
def test_a_file_without_texts_is_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    if content is not None:
        path.write_bytes(content)
    result = _invoke(path, tmp_path / "encoder")
    assert result.exit_code == 2
    assert message in result.stderr
    assert _names(tmp_path) <= {"texts.txt"}


def test_heads_that_do_not_divide_the_width_are_refused(text_file: Path, tmp_path: Path) -> None:
    result = _invoke(text_file, tmp_path / "encoder", "--heads", "3")
    assert result.exit_code == 2
    assert "--hidden: expected a multiple of --heads (3), got 32" in result.stderr
    assert _names(tmp_path) == set()


def test_a_text_ends_at_its_line_and_nowhere_else(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes("\ufeff하나\u2028둘\r\n\n three \n".encode())
    assert script.read_texts(path) == ["하나\u2028둘", "three"]


def test_the_vocabulary_is_the_same_each_time_and_keeps_to_its_size() -> None:
    # Many ties: every word is as frequent as every other, and there are more letters than fit.
    generator = random.Random(3)
    words = ["".join(chr(generator.randint(0xAC00, 0xAC00 + 200)) for _ in range(4)) for _ in range(300)]
    vocabularies = [script.train_tokenizer(words * 5, 200).get_vocab() for _ in range(4)]
    assert vocabularies[1:] == vocabularies[:-1]
    assert sorted(vocabularies[0].values()) == list(range(200))


def test_a_pass_reads_every_row_once_in_batches_of_similar_length() -> None:
    lengths = np.random.default_rng(0).integers(3, 129, size=1_000)
    batches = list(script.batches_of_similar_length(lengths, 1_024, np.random.default_rng(1)))
    assert Counter(int(row) for batch in batches for row in batch) == Counter(range(1_000))
    assert max(lengths[batch].max() * len(batch) for batch in batches) <= 1_024
    padded = sum(lengths[batch].max() * len(batch) for batch in batches)
    assert padded < 1.1 * lengths.sum()
    means = [lengths[batch].mean() for batch in batches]
    assert means != sorted(means)  # short texts do not all come first
