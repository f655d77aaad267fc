"""Pretrain a small BERT encoder from scratch on unlabelled texts, one a line.

It writes a plain Hugging Face folder (float16 safetensors, no pooler, no head) that `model.name` of a configuration can
name. Leave the texts of your test split out of the file: the program cannot know them, and an encoder that has read
them scores too well. The same file, options and seed give the same weights on the same processor in the same number
format, which is printed; a GPU adds in no fixed order, so there they may differ slightly.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import torch
from tokenizers.trainers import WordPieceTrainer
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    DataCollatorForLanguageModeling,
    get_linear_schedule_with_warmup,
)
from transformers.utils import logging

from hpsearch.errors import DataError, HpsearchError, TrainingError, UsageError
from hpsearch.folders import appearing
from hpsearch.precision import fastest_products

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    Integers = NDArray[np.int64]

_POSITIONS = 128  # tokens; longer texts are cut
_MAX_ALPHABET = 2_500  # characters; rarer ones become [UNK]
_MIN_FREQUENCY = 5  # of a pair of pieces before it becomes an entry of its own
_MASKED = 0.2  # share of tokens to predict: of these 80 % are hidden, 10 % replaced, 10 % kept
_WEIGHT_DECAY = 0.01
_MAX_GRADIENT_NORM = 1.0
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]  # ids 0 to 4, as BertTokenizer numbers them
_TEXTS_PER_CALL = 10_000  # the tokenizer keeps the offsets of a whole call in memory
_PROGRESS_LINES = 50


@dataclass(frozen=True)
class Recipe:
    """How the encoder is built and trained; the defaults suit some hundred thousand short texts."""

    vocabulary: int = 8_000
    layers: int = 4
    hidden: int = 256
    heads: int = 4
    passes: int = 3
    tokens_per_batch: int = 8_192
    learning_rate: float = 8e-4
    warmup_steps: int = 300
    seed: int = 0
    max_steps: int | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What a pretraining did."""

    n_texts: int
    n_tokens: int
    """Tokens of one pass, special tokens included."""
    n_parameters: int
    losses: tuple[float, ...]
    """Cross-entropy of the masked tokens at each step, in nats."""

    @property
    def start_loss(self) -> float:
        """Mean loss of the first steps."""
        return fmean(self.losses[: self._window])

    @property
    def end_loss(self) -> float:
        """Mean loss of the last steps."""
        return fmean(self.losses[-self._window :])

    @property
    def _window(self) -> int:
        return min(100, math.ceil(len(self.losses) / 10))


def read_texts(path: Path) -> list[str]:
    """Return the lines of a UTF-8 file that are not blank.

    Raises:
        DataError: If the file cannot be read, is not UTF-8 or holds no text.
    """
    try:
        # Not str.splitlines, which also cuts at characters that may stand inside a text, such as U+2028.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}, line {line}: expected UTF-8, got the byte 0x{error.object[error.start]:02x}; "
            f"convert it, for example with iconv -f CP949 -t UTF-8"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: expected a readable file, got: {error.strerror or error}") from error
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise DataError(f"{path}: expected one text a line, got none")
    return texts


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> BertTokenizer:
    """Learn a cased WordPiece vocabulary.

    Args:
        texts: What to learn it from.
        vocabulary: Most entries it may have.

    Raises:
        DataError: If the texts hold no characters that BERT keeps.
    """
    backend = BertTokenizer(do_lower_case=False).backend_tokenizer
    letters: Counter[str] = Counter()
    inner: set[str] = set()
    for text in texts:
        for word, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text)):
            letters.update(word)
            inner.update(word[1:])
    if not letters:
        raise DataError("expected texts with words, got only characters that BERT drops, such as control characters")
    # A letter takes up to two entries, at the start of a word and inside it; a third is left for longer pieces.
    limit = min(_MAX_ALPHABET, (vocabulary - len(_SPECIAL)) // 3)
    alphabet = sorted(letters, key=lambda letter: (-letters[letter], letter))[:limit]
    # tokenizers 0.23 numbers the inner letters and drops equally rare ones in the order of a hash map, and breaks ties
    # between merges by these numbers: the same texts give another vocabulary each time (huggingface/tokenizers#1794).
    # So the alphabet is chosen here, and the inner letters are numbered first, in the guise of special tokens.
    pieces = [f"##{letter}" for letter in sorted(inner.intersection(alphabet))]
    trainer = WordPieceTrainer(
        vocab_size=vocabulary,
        min_frequency=_MIN_FREQUENCY,
        limit_alphabet=len(alphabet),
        initial_alphabet=alphabet,
        special_tokens=[*_SPECIAL, *pieces],
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    # A fresh tokenizer, because in the trained one the inner letters stay special.
    return BertTokenizer(vocab=backend.get_vocab(), do_lower_case=False, model_max_length=_POSITIONS)


def encode(texts: Sequence[str], tokenizer: BertTokenizer) -> list[Integers]:
    """Return the token ids of each text, special tokens included, cut at the model's positions."""
    rows: list[Integers] = []
    for start in range(0, len(texts), _TEXTS_PER_CALL):
        part = list(texts[start : start + _TEXTS_PER_CALL])
        rows += [np.asarray(ids) for ids in tokenizer(part, truncation=True, max_length=_POSITIONS)["input_ids"]]
    return rows


def batches_of_similar_length(
    lengths: Integers, tokens_per_batch: int, generator: np.random.Generator
) -> Iterator[Integers]:
    """Yield every row once, in batches of rows of similar length, the batches in random order.

    Args:
        lengths: Tokens of each row, shape (n,), each at most `tokens_per_batch`.
        tokens_per_batch: Most tokens of a batch, padding included.
        generator: Decides which rows of equal length meet, and the order.
    """
    shuffled = generator.permutation(len(lengths))
    rows = shuffled[np.argsort(lengths[shuffled], kind="stable")]
    starts = [0]
    for place, length in enumerate(lengths[rows].tolist()):
        if (place - starts[-1] + 1) * length > tokens_per_batch:  # the last row is the longest
            starts.append(place)
    batches = np.split(rows, starts[1:])
    for i in generator.permutation(len(batches)):
        yield batches[i]


def train(model: BertForMaskedLM, tokenizer: BertTokenizer, rows: Sequence[Integers], recipe: Recipe) -> list[float]:
    """Train a model in place to predict masked tokens.

    Returns:
        The loss of each step.

    Raises:
        TrainingError: If the loss is no longer a number.
    """
    generator = np.random.default_rng(recipe.seed)
    lengths = np.asarray([len(row) for row in rows])
    plan = [
        batch
        for _ in range(recipe.passes)
        for batch in batches_of_similar_length(lengths, recipe.tokens_per_batch, generator)
    ][: recipe.max_steps]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype: torch.dtype = getattr(torch, fastest_products(recipe.hidden))
    click.echo(f"{len(plan):,} steps on {device.type}, products in {str(dtype).removeprefix('torch.')}", err=True)

    torch.nn.Module.to(model, device).train()  # transformers' own hides the types of its arguments
    collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=_MASKED, seed=recipe.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=_WEIGHT_DECAY)
    warmup = min(recipe.warmup_steps, len(plan) // 2)
    schedule = get_linear_schedule_with_warmup(optimizer, warmup, len(plan))  # type: ignore[no-untyped-call]
    losses: list[float] = []
    start, lines_at = time.monotonic(), math.ceil(len(plan) / _PROGRESS_LINES)
    for step, batch in enumerate(plan, start=1):
        inputs = collate([{"input_ids": rows[row].tolist()} for row in batch])
        loss = _loss(model, {name: values.to(device) for name, values in inputs.items()}, dtype)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), _MAX_GRADIENT_NORM)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise TrainingError(f"step {step}: expected a finite loss, got {losses[-1]}; lower --learning-rate")
        if step % lines_at == 0 or step == len(plan):
            left = (time.monotonic() - start) * (len(plan) / step - 1)
            click.echo(f"step {step:,}: loss {fmean(losses[-lines_at:]):.3f}, {left / 60:.1f} minutes left", err=True)
    return losses


def _loss(model: BertForMaskedLM, inputs: dict[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """Return the mean cross-entropy of the masked tokens."""
    labels = inputs["labels"]  # (rows, tokens), -100 where nothing is to be predicted
    masked = labels >= 0
    with torch.autocast(labels.device.type, dtype=dtype, enabled=dtype is not torch.float32):
        states = model.bert(inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
        # The model's own loss scores every token against the whole vocabulary, and four in five are not asked for.
        scores = model.cls(states[masked])  # (masked tokens, vocabulary)
    total = torch.nn.functional.cross_entropy(scores.float(), labels[masked], reduction="sum")
    return total / masked.sum().clamp(min=1)  # a batch of very few tokens may have none masked


def pretrain(text_file: Path, output: Path, recipe: Recipe) -> Report:
    """Learn a vocabulary and an encoder, and write both to a new folder.

    Raises:
        DataError: If the file is not as described.
        UsageError: If the folder exists, or the recipe does not hold together.
        TrainingError: If the training diverges.
    """
    if recipe.hidden % recipe.heads:
        raise UsageError(f"--hidden: expected a multiple of --heads ({recipe.heads}), got {recipe.hidden}")
    if os.path.lexists(output):
        raise UsageError(f"--output: expected a new folder, got {output}, which exists; remove it or name another")
    texts = read_texts(text_file)
    with appearing(output) as folder:
        tokenizer = train_tokenizer(texts, recipe.vocabulary)
        tokenizer.save_pretrained(folder)  # before it is used, which would save the truncation with it
        rows = encode(texts, tokenizer)
        n_tokens = sum(len(row) for row in rows)
        click.echo(f"{len(rows):,} texts, {n_tokens:,} tokens, {len(tokenizer):,} vocabulary entries", err=True)
        torch.manual_seed(recipe.seed)  # initial weights and dropout
        model = BertForMaskedLM(
            BertConfig(
                vocab_size=len(tokenizer),
                hidden_size=recipe.hidden,
                num_hidden_layers=recipe.layers,
                num_attention_heads=recipe.heads,
                intermediate_size=4 * recipe.hidden,
                max_position_embeddings=_POSITIONS,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        losses = train(model, tokenizer, rows, recipe)
        encoder = model.bert.half()  # type: ignore[no-untyped-call]
        encoder.save_pretrained(folder)
    return Report(len(rows), n_tokens, encoder.num_parameters(), tuple(losses))


_DEFAULTS = Recipe()
_COUNT = click.IntRange(min=1)


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.argument("text_file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--output", required=True, type=click.Path(path_type=Path), help="New folder for the encoder.")
@click.option("--vocabulary", type=click.IntRange(min=50), default=_DEFAULTS.vocabulary, help="Most WordPiece entries.")
@click.option("--layers", type=_COUNT, default=_DEFAULTS.layers, help="Transformer layers.")
@click.option("--hidden", type=_COUNT, default=_DEFAULTS.hidden, help="Width; inside a layer four times as wide.")
@click.option("--heads", type=_COUNT, default=_DEFAULTS.heads, help="Attention heads; must divide --hidden.")
@click.option("--passes", type=_COUNT, default=_DEFAULTS.passes, help="Times that every text is read.")
@click.option(
    "--tokens-per-batch",
    type=click.IntRange(min=_POSITIONS),
    default=_DEFAULTS.tokens_per_batch,
    help="Most tokens of a step, padding included.",
)
@click.option(
    "--learning-rate",
    type=click.FloatRange(min=0, min_open=True),
    default=_DEFAULTS.learning_rate,
    help="Highest learning rate; it falls to zero linearly.",
)
@click.option(
    "--warmup-steps",
    type=click.IntRange(min=0),
    default=_DEFAULTS.warmup_steps,
    help="Steps until the highest learning rate, at most half of all.",
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=_DEFAULTS.seed, help="Seed of everything random.")
@click.option("--max-steps", type=_COUNT, help="Stop early, for a short try; the learning rate falls accordingly.")
def main(text_file: Path, output: Path, **options: Any) -> None:
    """Pretrain a small BERT encoder on TEXT_FILE: UTF-8, one unlabelled text a line."""
    # The tokenizer would warn of long texts that are cut later, the model draw a bar while it is saved.
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        report = pretrain(text_file, output, Recipe(**options))
    except HpsearchError as error:
        click.echo(f"Error: {error}", err=True)
        raise click.exceptions.Exit(error.exit_code) from error
    except OSError as error:  # no right to write there, no space left
        raise click.ClickException(f"{output}: {error.strerror or error}") from error
    click.echo(
        f"{output}: {report.n_parameters:,} parameters, {len(report.losses):,} steps, "
        f"loss {report.start_loss:.3f} at the start, {report.end_loss:.3f} at the end"
    )


if __name__ == "__main__":
    main()
