"""The tutorial's own two training systems, reproduced: what they give on this data and this machine.

Both are faithful where it costs: one call tokenises a whole split and pads it to its longest text, everything is
float32, nothing is chosen on validation rows, and the model of the last step is scored on the test rows, which are read
here on purpose. What may surprise is the plain loop: it trains with dropout off, in a fixed order and at a constant
learning rate, because the tutorial's numbers come from that.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from hpsearch.data import load_search_data, load_test
from hpsearch.errors import ConfigError, TrainingError
from hpsearch.model import open_model
from hpsearch.scores import classification_scores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from transformers import PreTrainedModel, TrainerControl, TrainerState

    from hpsearch.config import Config, Hyperparameters
    from hpsearch.data import Split
    from hpsearch.model import ModelSource
    from hpsearch.observer import Observer

LOGGING_STEPS = 50

Batch = dict[str, torch.Tensor]


class ProgressBar(Protocol):
    """Batches that show how many of them are done while they are gone through; tqdm's bars are such."""

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches."""

    def set_postfix_str(self, s: str) -> None:
        """Show a text beside the bar."""


@dataclass(frozen=True, slots=True)
class EpochRow:
    """One epoch of the plain loop, scored on the predictions made while training."""

    epoch: int
    """1-based."""
    loss: float
    """Mean over the batches."""
    accuracy: float
    f1: float


@dataclass(frozen=True, slots=True)
class BaselineResult:
    """What one of the two systems came to."""

    loop: Literal["trainer", "native"]
    train_rows: int
    test_rows: int
    optimizer_steps: int
    epochs: float
    padded_width_train: int
    """Tokens of every training row, padding included."""
    padded_width_test: int
    """Tokens of every test row, padding included."""
    train_losses: tuple[tuple[int, float], ...]
    """Optimizer step and mean loss since the row before, every 50 steps; empty for the plain loop."""
    epoch_rows: tuple[EpochRow, ...]
    """One for each epoch; empty for the Trainer."""
    mean_train_loss: float
    """Over all optimizer steps."""
    train_seconds: float
    loss: float
    """On the test rows: the Trainer's mean over rows, the plain loop's over batches."""
    accuracy: float
    f1: float
    mcc: float
    eval_seconds: float


def terminal_bar(batches: Iterable[Batch], description: str) -> ProgressBar:
    """Return the tutorial's progress bar on standard error, or one that shows nothing where that is no terminal."""
    bar: ProgressBar = tqdm(batches, desc=description, file=sys.stderr, disable=None)
    return bar


def run_baseline(
    config: Config,
    *,
    loop: Literal["trainer", "native"],
    observer: Observer,
    progress: Callable[[Iterable[Batch], str], ProgressBar] = terminal_bar,
) -> BaselineResult:
    """Train with the defaults as the tutorial does and score the result on the test rows.

    Args:
        config: Says which rows and model, and with `defaults` which hyperparameters; the space is not used.
        loop: `trainer` takes all of the defaults. `native` is a plain PyTorch loop and takes the learning rate, the
            epochs and the batch size; all else is torch's own, and dropout is off.
        observer: Is told the training loss: by the Trainer every 50 optimizer steps, by the plain loop every epoch.
        progress: Draws the plain loop's progress: takes the batches and what they are for, gives the batches back.

    Raises:
        ConfigError: If the plain loop is asked for a part of an epoch, or the model is not usable.
        DataError: If a file is not as described.
        HubError: If a Hub model or dataset is named and the Hub does not answer.
        TrainingError: If a loss is not finite.
    """
    defaults = config.defaults
    if loop == "native" and not float(defaults.num_train_epochs).is_integer():
        raise ConfigError(
            f"defaults.num_train_epochs: expected a whole number for the plain loop, got {defaults.num_train_epochs}"
        )
    data, test = load_search_data(config.data), load_test(config.data)
    source = open_model(config.model, list(defaults.dropouts()))
    torch.manual_seed(config.search.seed)  # the new classification head is drawn from it
    job = _Job(
        hyperparameters=defaults,
        seed=config.search.seed,
        model=source.new_model(data.label_names, defaults.dropouts()),
        n_classes=len(data.label_names),
        train=_PaddedSplit(source, data.train),
        test=_PaddedSplit(source, test),
        observer=observer,
    )
    return _run_trainer(job) if loop == "trainer" else _run_native(job, progress)


class _PaddedSplit(Dataset[Batch]):
    """A split tokenised in one call, every row as wide as the longest."""

    def __init__(self, source: ModelSource, split: Split) -> None:
        self._encoded = source.tokenizer(
            list(split.texts), padding="longest", truncation=True, max_length=source.max_length, return_tensors="pt"
        )
        self.labels = torch.from_numpy(split.labels)
        self.width: int = self._encoded["input_ids"].shape[1]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Batch:
        item = {name: values[index] for name, values in self._encoded.items()}
        return {**item, "labels": self.labels[index]}


@dataclass(frozen=True, slots=True)
class _Job:
    """What both systems start from."""

    hyperparameters: Hyperparameters
    seed: int
    model: PreTrainedModel
    n_classes: int
    train: _PaddedSplit
    test: _PaddedSplit
    observer: Observer

    def scores(self, predicted: Any, labels: Any) -> dict[str, float]:
        """Return the metrics of predicted class ids, by name."""
        values: dict[str, Any] = classification_scores().compute(
            predictions=predicted, references=labels, n_classes=self.n_classes
        )
        del values["confusion"]
        return values


# --- System 1 ---------------------------------------------------------------------------------------------------------


class _LossLog(TrainerCallback):
    """Keeps the training losses and passes them on."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self.rows: list[tuple[int, float]] = []

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if "loss" in kwargs["logs"]:
            loss = _finite(kwargs["logs"]["loss"], f"the training loss before optimizer step {state.global_step}")
            self.rows.append((state.global_step, loss))
            self._observer.progressed(state.epoch or 0.0, state.global_step / state.max_steps, loss)


def _run_trainer(job: _Job) -> BaselineResult:
    """Train with `transformers.Trainer` as it comes, but for what follows.

    The tutorial also writes a checkpoint every 50 steps and keeps two. Here nothing is saved: checkpoints change no
    number but the seconds. Its AdamW was transformers' own of 2022, now it is torch's.
    """
    # BERT's forward takes **kwargs, from which the Trainer concludes that it divides the loss by the number of
    # accumulation steps itself; it does not, and the gradient would be that many times too large.
    job.model.accepts_loss_kwargs = False  # type: ignore[assignment]
    log = _LossLog(job.observer)
    with TemporaryDirectory(prefix="hpsearch-") as folder:
        trainer = Trainer(
            model=job.model,
            args=_arguments(job, folder),
            train_dataset=job.train,
            eval_dataset=job.test,
            compute_metrics=lambda prediction: job.scores(prediction.predictions, prediction.label_ids),
            preprocess_logits_for_metrics=_predicted_classes,
            callbacks=[log],
        )
        trainer.remove_callback(PrinterCallback)
        started = time.monotonic()
        trained = trainer.train()
        train_seconds = time.monotonic() - started
        mean_loss = _finite(trained.training_loss, "the mean training loss")
        started = time.monotonic()
        scores = trainer.evaluate()
        eval_seconds = time.monotonic() - started
    return BaselineResult(
        loop="trainer",
        train_rows=len(job.train),
        test_rows=len(job.test),
        optimizer_steps=trained.global_step,
        epochs=float(trainer.state.epoch or 0.0),
        padded_width_train=job.train.width,
        padded_width_test=job.test.width,
        train_losses=tuple(log.rows),
        epoch_rows=(),
        mean_train_loss=mean_loss,
        train_seconds=train_seconds,
        loss=_finite(scores["eval_loss"], "the loss on the test rows"),
        accuracy=scores["eval_accuracy"],
        f1=scores["eval_f1"],
        mcc=scores["eval_mcc"],
        eval_seconds=eval_seconds,
    )


def _arguments(job: _Job, folder: str) -> TrainingArguments:
    settings: dict[str, Any] = job.hyperparameters.training_arguments()
    arguments = TrainingArguments(
        output_dir=folder,
        seed=job.seed,
        per_device_eval_batch_size=job.hyperparameters.per_device_train_batch_size,
        eval_strategy="no",
        save_strategy="no",
        logging_steps=LOGGING_STEPS,
        logging_nan_inf_filter=False,  # a loss that is not finite shall be seen
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        **settings,
    )
    # With several devices in sight the Trainer would spread each batch over them, at that many times the size.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _predicted_classes(logits: torch.Tensor | tuple[torch.Tensor, ...], _labels: torch.Tensor) -> torch.Tensor:
    scores = logits[0] if isinstance(logits, tuple) else logits
    return scores.argmax(dim=-1)


# --- System 2 ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Pass:
    """One time through all rows of a split."""

    loss: float
    """Mean over the batches."""
    scores: dict[str, float]


def _run_native(job: _Job, progress: Callable[[Iterable[Batch], str], ProgressBar]) -> BaselineResult:
    """Train with a plain PyTorch loop, without shuffling, schedule or clipping."""
    hyperparameters, n_epochs = job.hyperparameters, int(job.hyperparameters.num_train_epochs)
    batch_size = hyperparameters.per_device_train_batch_size
    batches, test_batches = (DataLoader(split, batch_size, shuffle=False) for split in (job.train, job.test))
    # The tutorial's loop never calls model.train(), and from_pretrained hands a model over in evaluation mode
    # (transformers 5.23 modeling_utils.py:4439), so it trains with dropout off. That is kept, and said here because a
    # model with random weights (model.pretrained: false) comes in training mode.
    model: torch.nn.Module = job.model.eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    optimizer = torch.optim.AdamW(model.parameters(), lr=hyperparameters.learning_rate)

    def learn(loss: torch.Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    rows = []
    started = time.monotonic()
    for epoch in range(1, n_epochs + 1):
        name = f"epoch {epoch}/{n_epochs}"
        trained = _go_through(job, job.train, progress(batches, name), f"the training loss in {name}", learn)
        rows.append(EpochRow(epoch, trained.loss, trained.scores["accuracy"], trained.scores["f1"]))
        job.observer.progressed(float(epoch), epoch / n_epochs, trained.loss)
    train_seconds = time.monotonic() - started
    started = time.monotonic()
    with torch.no_grad():
        tested = _go_through(job, job.test, progress(test_batches, "test"), "the loss on the test rows")
    return BaselineResult(
        loop="native",
        train_rows=len(job.train),
        test_rows=len(job.test),
        optimizer_steps=n_epochs * len(batches),
        epochs=float(n_epochs),
        padded_width_train=job.train.width,
        padded_width_test=job.test.width,
        train_losses=(),
        epoch_rows=tuple(rows),
        mean_train_loss=fmean(row.loss for row in rows),
        train_seconds=train_seconds,
        loss=tested.loss,
        accuracy=tested.scores["accuracy"],
        f1=tested.scores["f1"],
        mcc=tested.scores["mcc"],
        eval_seconds=time.monotonic() - started,
    )


def _go_through(
    job: _Job,
    split: _PaddedSplit,
    batches: ProgressBar,
    loss_name: str,
    after_forward: Callable[[torch.Tensor], None] = lambda _loss: None,
) -> _Pass:
    """Predict every row in order, and do something with each batch's loss."""
    losses: list[float] = []
    predicted: list[torch.Tensor] = []
    for batch in batches:
        output = job.model(**{name: values.to(job.model.device) for name, values in batch.items()})
        losses.append(_finite(output.loss.item(), loss_name))
        after_forward(output.loss)
        predicted.append(output.logits.detach().argmax(dim=-1))
        batches.set_postfix_str(f"loss {losses[-1]:.4f}")
    return _Pass(fmean(losses), job.scores(torch.cat(predicted).cpu().numpy(), split.labels.numpy()))


def _finite(loss: float, name: str) -> float:
    if not math.isfinite(loss):
        raise TrainingError(f"diverged: expected {name} to be a number, got {loss}; set defaults.learning_rate lower")
    return loss
