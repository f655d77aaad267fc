"""A few real training steps, to learn what a search will take on this machine.

Steps and evaluations are the search's own, through the same trainer on the same rows; only there are few of them. The
time of a step is taken as a part that every step has (the optimizer, the calls) and a part for each token; that of an
evaluation as a part for each token of the validation rows.
"""

from __future__ import annotations

import gc
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file

from hpsearch.batches import LengthGroupedSampler
from hpsearch.observer import Observer
from hpsearch.packing import MULTIPLE
from hpsearch.precision import fastest_products
from hpsearch.tokens import Tokens
from hpsearch.trainer import SearchTrainer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from hpsearch.config import Hyperparameters
    from hpsearch.data import SearchData, Split
    from hpsearch.space import Scalar
    from hpsearch.trainer import Outcome, Task

_BUDGET_S = 8.0  # of each setting's steps
_FEWEST_STEPS, _MOST_STEPS = 3, 24  # of each setting; the first quarter warms up
_EVALUATION_TOKENS = 20_000  # of the validation rows that are scored; some batches of each kind
_SIMULATED_ROWS = 5_000  # in batches; enough for means
# Of the rows that an evaluation scores in bfloat16, so many are scored again in float32. A sixteenth is the least, and
# so close decisions as in a model that has learnt for a few steps only would need many more.
RESCORED_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Speed:
    """What the parts of a training take on this machine, in seconds."""

    start: float
    """Tokenising the rows and reading the initial weights, once for each process."""
    training: float
    """What each training takes besides its steps and evaluations."""
    step: float
    """What each step takes whatever it is given."""
    token: float
    """What each token of a batch takes besides, padding included."""
    evaluation: float
    """One evaluation of all validation rows."""
    checkpoint: float
    """Writing the weights once."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What was measured."""

    speed: Speed
    device: str
    products: str
    """Format of the matrix products."""
    peak_memory_mib: int
    """Of training at the largest batch of the longest rows: of the device, without one of the whole process."""
    peak_is_measured: bool
    """False where it was drawn out from smaller batches, because it would not fit."""
    checkpoint_bytes: int
    lengths: NDArray[np.int64]
    """Tokens of each training text, cut where the model cuts."""
    validation_tokens: int
    is_packed: bool
    """Whether texts go without padding."""

    def seconds(self, hyperparameters: Hyperparameters, n_evaluations: int) -> float:
        """Return what a training with these hyperparameters would take from start to end, without being pruned.

        Each batch counts as a step with the optimizer's part: with accumulated gradients that is somewhat too much.
        """
        batch_size = hyperparameters.per_device_train_batch_size
        n_batches = -(-len(self.lengths) // batch_size)
        step = self.speed.step + self.speed.token * tokens_of_batch(self.lengths, batch_size, is_packed=self.is_packed)
        passes = hyperparameters.num_train_epochs * n_batches * step
        return self.speed.training + passes + n_evaluations * self.speed.evaluation + self.speed.checkpoint


def tokens_of_batch(lengths: NDArray[np.int64], batch_size: int, *, is_packed: bool) -> float:
    """Return the tokens that a batch comes to on average, with what fills it up.

    Args:
        lengths: Tokens of each text, shape (n_texts,).
        batch_size: Texts in a batch.
        is_packed: Whether texts lie one after the other, or are padded to the longest of their batch.
    """
    lengths = lengths[: max(_SIMULATED_ROWS, batch_size)]
    rows = np.array(list(LengthGroupedSampler(lengths, batch_size, torch.Generator().manual_seed(0))))
    batches = [lengths[rows[start : start + batch_size]] for start in range(0, len(rows), batch_size)]
    if is_packed:
        return float(np.mean([-(-int(batch.sum()) // MULTIPLE) * MULTIPLE for batch in batches]))
    return float(np.mean([len(batch) * int(batch.max()) for batch in batches]))


def probe(
    task: Task, hyperparameters: Hyperparameters, *, smallest_batch: int, largest_batch: int, available_mib: int
) -> Probe:
    """Measure some steps at two batch sizes, an evaluation, and the largest batch of the longest rows.

    Nothing is kept: what the Trainer insists on writing goes to a temporary folder.

    Args:
        task: What would be searched.
        hyperparameters: Those of the steps, but for the batch size.
        smallest_batch: Of the search space.
        largest_batch: Of the search space.
        available_mib: Memory that there is. Where the largest batch would probably exceed it, it is not tried.

    Raises:
        TrainingError: If the loss is no longer finite.
        RuntimeError: Such as that the memory is full; whatever torch raises.
    """
    if smallest_batch == largest_batch:
        smallest_batch = max(1, largest_batch // 2)  # two sizes tell what a step costs from what its tokens cost
    with tempfile.TemporaryDirectory(prefix="hpsearch-plan-") as name:
        folder = Path(name)
        clock = _Clock()
        started = time.perf_counter()
        trainer = _Trainer(task, folder=folder, observer=clock, products=fastest_products(task.model.hidden_size))
        start = time.perf_counter() - started
        gc.collect()
        gc.freeze()  # as a search does
        try:
            probing = _Probing(trainer, clock, hyperparameters)
            # From what costs little to what costs much, to know how many steps can be afforded before they are taken.
            small = probing.typical(smallest_batch, 2)
            small = probing.typical(smallest_batch, _affordable(small.slowest))
            large = probing.typical(largest_batch, _affordable(small.slowest * largest_batch / smallest_batch))
            steps = [*small.steps, *large.steps]
            step, token = fit_line([each.tokens for each in steps], [each.seconds for each in steps])
            checkpoint_bytes, checkpoint_s = probing.write(folder / "checkpoint")
            peak, is_measured = probing.peak(small, large, largest_batch, available_mib)
        finally:
            gc.unfreeze()
            trainer.release()
    validation_tokens = int(trainer.lengths(task.data.validation).sum())
    return Probe(
        speed=Speed(
            start=start,
            training=large.before,
            step=step,
            token=token,
            evaluation=large.evaluation_s(validation_tokens),
            checkpoint=checkpoint_s,
        ),
        device=str(trainer.args.device),
        products=trainer.products,
        peak_memory_mib=peak,
        peak_is_measured=is_measured,
        checkpoint_bytes=checkpoint_bytes,
        lengths=trainer.lengths(task.data.train),
        validation_tokens=validation_tokens,
        is_packed=trainer.is_packed,
    )


def fit_line(tokens: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """Return what each step takes and what each token takes besides: the line of least squares, neither below 0."""
    x, y = np.array(tokens, dtype=float), np.array(seconds)
    if np.ptp(x) == 0:
        return 0.0, float(y.mean() / x.mean())
    slope, intercept = np.polyfit(x, y, 1)
    if intercept < 0:
        return 0.0, float((x @ y) / (x @ x))
    return (float(y.mean()), 0.0) if slope < 0 else (float(intercept), float(slope))


def _affordable(seconds: float) -> int:
    """Return how many steps to take that last so long."""
    return max(_FEWEST_STEPS, min(_MOST_STEPS, int(_BUDGET_S / max(seconds, 1e-6))))


def _spread(lengths: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Return rows whose lengths are spread as those of all are."""
    places = np.linspace(0, len(lengths) - 1, n).round().astype(np.int64)
    return np.argsort(lengths, kind="stable")[places]


# --- Short trainings --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Timed:
    """Some work on some tokens."""

    tokens: int
    seconds: float
    is_float32: bool = False
    """Of a part of an evaluation: whether its products were in float32."""


@dataclass(frozen=True, slots=True)
class _Run:
    """What was noted in one short training."""

    peak_mib: int
    """Of the memory so far."""
    before: float
    """Seconds before the first step."""
    steps: tuple[_Timed, ...]
    """Without those that warm up."""
    scored: tuple[_Timed, ...]
    """Parts of the evaluations."""

    @property
    def slowest(self) -> float:
        """Return the seconds of the slowest step."""
        return max(step.seconds for step in self.steps)

    @property
    def most_tokens(self) -> int:
        """Return the tokens of the largest batch."""
        return max(step.tokens for step in self.steps)

    def evaluation_s(self, n_tokens: int) -> float:
        """Return what an evaluation of so many tokens takes."""

        def rate(parts: list[_Timed]) -> float:
            return sum(part.seconds for part in parts) / max(1, sum(part.tokens for part in parts))

        fast = [part for part in self.scored if not part.is_float32]
        exact = [part for part in self.scored if part.is_float32]
        return n_tokens * (rate(fast) + RESCORED_SHARE * rate(exact) if fast else rate(exact))


class _Clock(Observer):
    """Notes when each step ended."""

    def __init__(self) -> None:
        self.started = self._last = 0.0
        self.first_step: float | None = None
        self.steps: list[_Timed] = []
        self.scored: list[_Timed] = []
        self._tokens = 0

    def begin(self) -> None:
        self.started = time.perf_counter()
        self.first_step = None
        self.steps, self.scored = [], []

    def step_begins(self, n_tokens: int) -> None:
        self._tokens = n_tokens
        if self.first_step is None:
            self.first_step = self._last = time.perf_counter()

    def progressed(self, *_: object, **__: object) -> None:
        now = time.perf_counter()
        self.steps.append(_Timed(self._tokens, now - self._last))
        self._last = now

    def evaluated(self, *_: object, **__: object) -> None:
        self._last = time.perf_counter()


class _Trainer(SearchTrainer):
    """A trainer on parts of its rows that notes what takes how long."""

    tries_fewer_rows = False  # what a whole batch takes is what is asked

    def __init__(self, task: Task, *, folder: Path, observer: _Clock, products: str) -> None:
        search = task.config.search.model_copy(update={"evaluations": 2})  # the first of which warms up
        super().__init__(
            replace(task, config=task.config.model_copy(update={"search": search})),
            folder=folder,
            observer=observer,
            products=products,
        )
        self.products = products
        self._clock = observer

    @property
    def is_packed(self) -> bool:
        """Whether texts go without padding; known once a model was made."""
        return self._collator.first_position is not None

    def lengths(self, split: Split) -> NDArray[np.int64]:
        """Return the tokens of each text."""
        return self._texts[split].lengths

    def use(self, train: NDArray[np.int64], validation: NDArray[np.int64], of: SearchData) -> None:
        """Train and evaluate on some rows from now on."""
        data = replace(of, train=self._part(of.train, train), validation=self._part(of.validation, validation))
        self.task = replace(self.task, data=data)

    def _part(self, split: Split, rows: NDArray[np.int64]) -> Split:
        texts = self._texts[split]
        part = replace(
            split, texts=tuple(split.texts[row] for row in rows), labels=split.labels[rows], rows=split.rows[rows]
        )
        offsets = np.concatenate([[0], np.cumsum(texts.lengths[rows])])
        self._texts[part] = Tokens(np.concatenate([texts[row] for row in rows]), offsets)
        return part

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._clock.step_begins(inputs["input_ids"].numel())
        return super().training_step(model, inputs, *args, **kwargs)

    def _logits(
        self, texts: Tokens, products: torch.dtype = torch.float32, rows: NDArray[np.int64] | None = None
    ) -> torch.Tensor:
        started = time.perf_counter()
        logits = super()._logits(texts, products, rows)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        n_tokens = int(texts.lengths.sum() if rows is None else texts.lengths[rows].sum())
        seconds = time.perf_counter() - started
        self._clock.scored.append(_Timed(n_tokens, seconds, products is torch.float32))
        return logits


class _Probing:
    """Runs short trainings."""

    def __init__(self, trainer: _Trainer, clock: _Clock, hyperparameters: Hyperparameters) -> None:
        self._trainer = trainer
        self._clock = clock
        self._hyperparameters = hyperparameters
        self._data = trainer.task.data
        lengths = trainer.lengths(self._data.validation)
        share = min(1.0, _EVALUATION_TOKENS / int(lengths.sum()))
        self._scored = _spread(lengths, max(2, int(share * len(lengths))))
        self._lengths = trainer.lengths(self._data.train)
        self._outcome: Outcome | None = None

    def typical(self, batch_size: int, n_steps: int) -> _Run:
        """Train for some steps on rows like the others."""
        return self._run(_spread(self._lengths, min(len(self._lengths), batch_size * n_steps)), batch_size, n_steps)

    def write(self, folder: Path) -> tuple[int, float]:
        """Write what a checkpoint of the last training has, and return its bytes and the seconds it took."""
        if self._outcome is None:
            raise ValueError("expected a training before its weights are written, got none")
        started = time.perf_counter()
        folder.mkdir()
        weights = {name: values.contiguous() for name, values in self._outcome.weights.items()}
        save_file(weights, folder / "model.safetensors")
        self._trainer.task.model.tokenizer.save_pretrained(folder)
        seconds = time.perf_counter() - started
        return sum(path.stat().st_size for path in folder.iterdir()), seconds

    def peak(self, small: _Run, large: _Run, batch_size: int, available_mib: int) -> tuple[int, bool]:
        """Return the peak of the memory, MiB, at the longest rows, and whether it was measured.

        Where what it would be, drawn out from two other runs, is more than there is, it is not: on a CPU the system
        would end this process.
        """
        longest = np.sort(self._lengths)[-batch_size:]
        n_tokens = int(longest.sum() if self._trainer.is_packed else longest[-1] * len(longest))
        (less, low), (more, high) = ((run.most_tokens, run.peak_mib) for run in (small, large))
        if more > less and n_tokens > more:
            estimate = high + (high - low) * (n_tokens - more) / (more - less)
            if estimate > available_mib:
                return int(estimate), False
        rows = np.argsort(self._lengths, kind="stable")[-batch_size:]
        return self._run(rows, batch_size, 2).peak_mib, True

    def _run(self, rows: NDArray[np.int64], batch_size: int, n_steps: int) -> _Run:
        self._trainer.use(rows, self._scored, of=self._data)
        epochs = -(-n_steps // -(-len(rows) // batch_size))
        settings: dict[str, Scalar] = {
            "num_train_epochs": epochs, "per_device_train_batch_size": batch_size, "gradient_accumulation_steps": 1,
        }  # fmt: skip
        self._clock.begin()
        self._outcome = None  # its weights would count among what the next training takes
        seed = self._trainer.task.config.search.seed
        self._outcome = self._trainer.fit(self._hyperparameters.replace(settings), seed=seed)
        steps = self._clock.steps
        return _Run(
            peak_mib=self._outcome.peak_memory_mib,
            before=(self._clock.first_step or 0.0) - self._clock.started,
            steps=tuple(steps[max(1, len(steps) // 4) :]),
            scored=tuple(self._clock.scored[len(self._clock.scored) // 2 :]),
        )
