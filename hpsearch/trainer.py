"""One Trainer that fine-tunes with given hyperparameters, inside a search or outside, in exactly the same way.

`transformers.Trainer.hyperparameter_search` (read in 5.23.0) has traps that make a search silently wrong; this subclass
owns each of them, and `tests/test_seam.py` holds them:

- the model is built and seeded *before* the trial's values are drawn: here they are drawn first;
- values are cast to the type of the argument they replace (a warm-up of 0.1 became int 0), set without re-validation
  (label smoothing never reached the loss), and stay for the next trial: here every training gets arguments of its
  own, new;
- scores are reported at optimizer steps, which pruners compare between different batch sizes: here at the evaluation's
  index, 1 to K, at equal fractions of each training's own schedule;
- the objective is the last evaluation's sum of all metrics: here the best evaluation's one metric, with its weights;
- gradient accumulation multiplies BERT's loss: here the model says that it takes no loss arguments;
- memory that does not suffice fails the trial: here it is trained again with fewer rows at once, to the same effect;
- the model and optimizer of a pruned or failed trial stay in memory: here they are released, however a training ends.

What makes it fast changes nothing that is learnt but the order of sums: batches of texts of similar length without
padding (`packing.py`) or padded to the longest of the batch; an embedding of the rows that the texts use
(`vocabulary.py`); dropout masks that are cheap to draw (`dropout.py`); initial weights read once for each seed
(`model.py`); bfloat16 products over float32 weights where the machine is faster with them (`precision.py`); and
evaluation in order of length with large batches. Evaluation is in float32, so that the exported model scores the same
value anywhere.
"""

from __future__ import annotations

import contextlib
import logging
import math
import resource
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import torch
from optuna.exceptions import OptunaError
from torch.nn import functional
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_pt_utils import LabelSmoother

from hpsearch.batches import Batches, Collator, LengthGroupedSampler, by_length
from hpsearch.dropout import use_cheap_dropout
from hpsearch.errors import Interrupted, TrainingError
from hpsearch.memory import TOO_MANY_ROWS, RowsAtOnce, is_out_of_memory
from hpsearch.metrics import METRICS
from hpsearch.model import FreshModels
from hpsearch.packing import can_pack, use_packing
from hpsearch.space import suggest
from hpsearch.storage import set_user_attrs
from hpsearch.tokens import Tokens, tokenise

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from transformers import TrainerControl, TrainerState
    from transformers.trainer_utils import TrainOutput

    from hpsearch.config import Config, Hyperparameters
    from hpsearch.data import SearchData, Split
    from hpsearch.model import ModelSource
    from hpsearch.observer import Observer
    from hpsearch.vocabulary import Vocabulary

_log = logging.getLogger(__name__)
# Tokens of an evaluation batch, padding included. On a CPU what a layer makes of more leaves the caches; other devices
# are busy only with more.
_EVALUATION_TOKENS, _EVALUATION_TOKENS_ON_CPU = 65536, 4096
_SCREENED_SHARE = 16  # one in so many is scored again in float32


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation on the validation rows."""

    step: int
    """1-based index among the K evaluations of the schedule."""
    epoch: float
    train_loss: float | None
    """Mean since the evaluation before."""
    eval_loss: float
    scores: dict[str, float]
    """Every metric, by name."""
    confusion: list[list[int]]
    """Counts by true and predicted class, shape (n_classes, n_classes)."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one training came to."""

    evaluations: tuple[Evaluation, ...]
    best: Evaluation
    value: float
    """The metric at `best`: the objective value."""
    weights: dict[str, torch.Tensor]
    """The model's state at `best`, on the CPU; its input embedding has the rows of `vocabulary` only."""
    vocabulary: Vocabulary
    decay: float
    """What weight decay has made of the embedding's other rows at `best`, as a factor."""
    effective: dict[str, Any]
    """What the training really used, read back from the Trainer and the model."""
    seconds: float
    peak_memory_mib: int


@dataclass(frozen=True, slots=True)
class Task:
    """What is trained on what: the same for all trials of a study."""

    config: Config
    model: ModelSource
    data: SearchData


class SearchTrainer(Trainer):
    """Fine-tunes one task, over and over, each time from fresh weights."""

    tries_fewer_rows = True
    """Whether a training for which memory does not suffice is done again with fewer rows at once."""

    def __init__(
        self,
        task: Task,
        *,
        folder: Path,
        observer: Observer,
        products: str,
        stop_requested: Callable[[], bool] = lambda: False,
        token_cache: Path | None = None,
        also_scored: Sequence[Split] = (),
    ) -> None:
        """Tokenise the rows and read the initial weights.

        Args:
            task: What is trained on what.
            folder: Where the Trainer may write; nothing is written there by this class itself.
            observer: Is told of every step and evaluation.
            products: Format of the matrix products in training, from `precision.py`.
            stop_requested: Asked after every optimizer step; True ends the training with `Interrupted`.
            token_cache: Folder in which token ids are kept between processes; None keeps none.
            also_scored: Splits that `probabilities` will be asked for, besides training and validation.
        """
        self.task = task
        self.keep_outcome: Callable[[optuna.Trial, Outcome], None] = lambda *_: None
        """Called with a complete trial that is still running in the storage."""
        self.made_progress: Callable[[], None] = lambda: None
        """Called after every step and every batch of an evaluation."""
        self.rows_at_once = RowsAtOnce()
        """What was learnt about how many rows fit into memory."""
        self._folder = folder
        self._observer = observer
        self._stop_requested = stop_requested
        self._hyperparameters = task.config.defaults
        self._evaluations: list[Evaluation] = []
        self._weights: dict[str, torch.Tensor] = {}
        self._decay = self._best_decay = 1.0
        self._last_loss: float | None = None
        self._n_parts = 1
        self._share = 1.0
        self._reported: set[int] = set()
        self._autocast_dtype: torch.dtype = getattr(torch, products)
        splits = (task.data.train, task.data.validation, *also_scored)
        self._texts = {split: self._tokenise(split, token_cache) for split in splits}
        used_ids = np.unique(np.concatenate([np.unique(texts.ids) for texts in self._texts.values()]))
        pad_id = task.model.tokenizer.pad_token_id or 0
        self._models = FreshModels(
            task.model, task.data.label_names, np.append(used_ids, pad_id), seed=task.config.search.seed
        )
        self._collator = Collator(self._models.vocabulary, task.model.tokenizer)
        super().__init__(
            model_init=self._new_model,
            args=self._arguments(task.config.defaults, seed=task.config.search.seed),
            processing_class=task.model.tokenizer,
            callbacks=[_Schedule(self)],
        )
        self.remove_callback(PrinterCallback)
        self.release()

    def _tokenise(self, split: Split, cache: Path | None) -> Tokens:
        try:
            texts = tokenise(self.task.model, split.texts, fingerprint=split.fingerprint(), cache=cache)
        except Exception as error:  # what a tokenizer may raise is no closed set
            raise TrainingError(
                f"{self.task.config.model.name}: expected its tokenizer to take every text, got "
                f"{_reason(error)}; look for unusual texts with `hpsearch inspect`"
            ) from error
        if texts.not_kept:
            self._observer.note(texts.not_kept)
        return texts

    # --- What callers use ---------------------------------------------------------------------------------------------

    def search_one(
        self, study: optuna.Study, sampler: optuna.samplers.BaseSampler, pruner: optuna.pruners.BasePruner
    ) -> None:
        """Run one more trial of a study through `hyperparameter_search`.

        Raises:
            Interrupted: If a stop was requested; the trial is closed as failed.
            Exception: Whatever ended the trial; it is closed as failed, with its reason.
        """
        try:
            self.hyperparameter_search(
                hp_space=self._suggest,
                compute_objective=lambda metrics: float(metrics[f"eval_{self.task.config.metric}"]),
                n_trials=1,
                direction="maximize",
                backend="optuna",
                storage=study._storage,
                study_name=study.study_name,
                load_if_exists=True,
                sampler=sampler,
                pruner=pruner,
            )
        except ValueError as error:
            # The Trainer asks for the best trial even where none is complete yet (integration_utils.py:281).
            if "No trials are completed yet" not in str(error):
                raise
        finally:
            self.hp_search_backend = None  # the Trainer itself resets it only on success

    def fit(self, hyperparameters: Hyperparameters, *, seed: int) -> Outcome:
        """Train from fresh weights; afterwards the model holds the weights of the best evaluation.

        Raises:
            TrainingError: If the loss is no longer finite.
            Interrupted: If a stop was requested.
        """
        try:
            self._train_in_memory(hyperparameters, seed=seed, train=super().train)
            outcome = self._finish()
            self.trained_model().load_state_dict(outcome.weights)
        except BaseException:
            self.release()
            raise
        return outcome

    def probabilities(self, split: Split) -> NDArray[np.float64]:
        """Return the class probabilities of each row by the model in memory, shape (len(split), n_classes).

        Args:
            split: Training, validation, or one of `also_scored`.
        """
        logits = self._logits(self._texts[split])
        return torch.softmax(logits.double(), dim=-1).cpu().numpy()

    def trained_model(self) -> PreTrainedModel:
        """Return the model in memory.

        Raises:
            TrainingError: If there is none: before `fit`, and after `release`.
        """
        if not isinstance(self.model, PreTrainedModel):
            raise TrainingError("expected a trained model in memory, got none; call fit() first")
        return self.model

    def release(self) -> None:
        """Let go of the model, its optimizer and every reference to them."""
        self.model = self.model_wrapped = self.optimizer = self.lr_scheduler = None  # type: ignore[assignment]
        self._weights = {}
        handler = self.callback_handler
        handler.model = handler.optimizer = handler.lr_scheduler = None
        handler.train_dataloader = handler.eval_dataloader = None
        self.accelerator.free_memory()
        self.is_in_train = False  # the Trainer leaves it True after a pruned trial

    # --- One training -------------------------------------------------------------------------------------------------

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: optuna.Trial | dict[str, Any] | None = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train one trial: called by `hyperparameter_search`. Use `fit` outside a search."""
        if not isinstance(trial, optuna.Trial):
            raise TypeError(f"expected a trial, got {trial!r}; use fit() outside a search")
        config = self.task.config
        name = f"trial {trial.number}"
        started = time.monotonic()
        self._reported = set()
        try:
            hyperparameters = config.defaults.replace(suggest(trial, config.space))
            self._observer.trial_started(name, hyperparameters)
            output = self._train_in_memory(
                hyperparameters,
                seed=config.search.seed,
                train=lambda: super(SearchTrainer, self).train(resume_from_checkpoint, trial, ignore_keys_for_eval),
                too_many=lambda rows: self._begins_again(trial, rows),
            )
            outcome = self._finish()
            set_user_attrs(trial, _attributes(outcome, self.task.data.label_names))
            self.objective: float | None = outcome.value
            self.keep_outcome(trial, outcome)
        except optuna.TrialPruned:
            trial.set_user_attr("effective", self._effective())
            self._observer.trial_ended(name, "pruned", self._best().scores[config.metric], time.monotonic() - started)
            raise
        except (Exception, KeyboardInterrupt) as error:
            reason = "interrupted" if isinstance(error, KeyboardInterrupt) else _reason(error)
            self._observer.trial_ended(name, "failed", None, time.monotonic() - started, reason)
            # Often the storage is the failure itself, or has given the trial to another worker.
            try:
                trial.set_user_attr("failure", reason)
            except OptunaError as storage_error:  # a trial without a reason is tried again
                _log.warning("the failure of %s could not be stored: %s", name, storage_error)
            raise
        finally:
            self.release()
        only = only_predicted(outcome.best, self.task.data.label_names)
        remark = f"predicts {only!r} only" if only is not None else ""
        self._observer.trial_ended(name, "complete", outcome.value, outcome.seconds, remark)
        return output

    def _train_in_memory(
        self,
        hyperparameters: Hyperparameters,
        *,
        seed: int,
        train: Callable[[], TrainOutput],
        too_many: Callable[[int], None] = lambda _: None,
    ) -> TrainOutput:
        """Train from fresh weights, from the start again with half as many rows at once where memory does not suffice.

        Args:
            hyperparameters: Of the training.
            seed: Of the training.
            train: The training itself.
            too_many: Is told each number of rows at once that did not fit.
        """
        while True:
            self._begin(hyperparameters, seed=seed)
            rows = RowsAtOnce.in_part(self.args.per_device_train_batch_size, self._n_parts)
            try:
                return train()
            except Exception as error:
                if rows == 1 or not self.tries_fewer_rows or not is_out_of_memory(error):
                    raise
            # Past the handler: the error's traceback holds all that the training had made.
            self.release()
            self.rows_at_once.did_not_fit(rows)
            too_many(rows)
            self._observer.note(f"out of memory with {rows} rows at once; trying again with {-(-rows // 2)}")

    def _begins_again(self, trial: optuna.Trial, rows: int) -> None:
        trial.set_user_attr(TOO_MANY_ROWS, rows)
        trial._cached_frozen_trial.intermediate_values.clear()  # the pruner would judge by the last of them

    def _suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        return suggest(trial, self.task.config.space)

    def _begin(self, hyperparameters: Hyperparameters, *, seed: int) -> None:
        """Put everything in place that depends on the hyperparameters, before the model is built and seeded."""
        self._hyperparameters = hyperparameters
        self._evaluations = []
        self._weights = {}
        self._decay = self._best_decay = 1.0
        self._last_loss = None
        self._n_parts = self.rows_at_once.n_parts(hyperparameters.per_device_train_batch_size)
        self.args = self._arguments(hyperparameters, seed=seed)
        self._train_batch_size = self.args.train_batch_size
        smoothing = hyperparameters.label_smoothing_factor
        self.label_smoother = LabelSmoother(epsilon=smoothing) if smoothing else None
        self.create_accelerator_and_postprocess()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._started = time.monotonic()

    def _hp_search_setup(self, trial: optuna.Trial | dict[str, Any] | None) -> None:
        self._trial = trial  # everything else was done in _begin, before the model was built

    def _finish(self) -> Outcome:
        best = self._best()
        return Outcome(
            evaluations=tuple(self._evaluations),
            best=best,
            value=best.scores[self.task.config.metric],
            weights=self._weights,
            vocabulary=self._models.vocabulary,
            decay=self._best_decay,
            effective=self._effective(),
            seconds=time.monotonic() - self._started,
            peak_memory_mib=_peak_memory_mib(),
        )

    def _best(self) -> Evaluation:
        """Return the best evaluation so far, the earliest of equals."""
        return max(self._evaluations, key=lambda evaluation: evaluation.scores[self.task.config.metric])

    def _new_model(self) -> PreTrainedModel:
        model = self._models.make(self._hyperparameters.dropouts(), seed=self.args.seed)
        # BERT's forward takes **kwargs, from which the Trainer concludes that it divides the loss by the number of
        # accumulation steps itself; it does not, and the gradient would be that many times too large.
        object.__setattr__(model, "accepts_loss_kwargs", False)
        # On a GPU both would be slower: short steps are bound by the number of kernels, which packing adds to.
        if self.args.device.type == "cpu":
            use_cheap_dropout(model)
            if can_pack(model):
                self._collator.first_position = use_packing(model)
        return model

    def _arguments(self, hyperparameters: Hyperparameters, *, seed: int) -> TrainingArguments:
        arguments = TrainingArguments(
            output_dir=str(self._folder),
            seed=seed,
            eval_strategy="no",  # _Schedule decides
            save_strategy="no",  # weights of the best evaluation stay in memory until the trial's value is known
            logging_strategy="no",
            logging_nan_inf_filter=False,  # a loss that is not finite shall be seen
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
            **hyperparameters.training_arguments(),
        )
        if arguments.world_size > 1:
            raise TrainingError(
                f"expected one process for each trial, got a launcher with {arguments.world_size}; "
                f"start hpsearch without torchrun"
            )
        # With several devices in sight the Trainer would spread each batch over them, at that many times the size.
        arguments._n_gpu = min(arguments.n_gpu, 1)
        return arguments

    def get_train_dataloader(self) -> Batches:  # type: ignore[override]  # the Trainer only iterates over it
        """Return the training rows in batches."""
        train = self.task.data.train
        generator = torch.Generator().manual_seed(self.args.seed)
        sampler = LengthGroupedSampler(self._texts[train].lengths, self._train_batch_size, generator)
        labels = torch.from_numpy(train.labels)
        return Batches(self._texts[train], labels, sampler, self._collator, n_parts=self._n_parts)

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Add the gradient of a batch, in one go or in parts, and return its loss: called by the Trainer."""
        parts = inputs.get("parts", [inputs])
        n_rows = sum(len(part["labels"]) for part in parts)
        losses = []
        for part in parts:
            self._share = len(part["labels"]) / n_rows
            losses.append(super().training_step(model, part, num_items_in_batch))
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def compute_loss(self, *inputs: Any, **named: Any) -> Any:
        """Return the mean loss of some rows, weighted by their share of the batch: called by `training_step`."""
        loss: Any = super().compute_loss(*inputs, **named)
        return loss if self._share == 1 else loss * self._share

    def compute_loss_context_manager(self) -> contextlib.ExitStack:
        """Return the context of a forward pass: autocast in training, plain float32 in evaluation."""
        context = contextlib.ExitStack()
        if self._autocast_dtype is not torch.float32 and self.trained_model().training:
            context.enter_context(torch.autocast(self.args.device.type, dtype=self._autocast_dtype))
        return context

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return 0: nobody reads the sum, and to count them takes as long as an optimizer step."""
        return 0

    def evaluate(self, *_: Any, **__: Any) -> dict[str, Any]:
        """Score the validation rows: called by the Trainer when an evaluation is due.

        Returns:
            `eval_loss` (cross-entropy, never smoothed), every metric and `eval_confusion`.
        """
        validation = self.task.data.validation
        logits = self._screened_logits(self._texts[validation])
        labels = torch.from_numpy(validation.labels).to(logits.device)
        n_classes = logits.shape[-1]
        pairs = torch.bincount(labels * n_classes + logits.argmax(dim=-1), minlength=n_classes**2)
        confusion = pairs.reshape(n_classes, n_classes).cpu().numpy()
        metrics = {
            "eval_loss": float(functional.cross_entropy(logits, labels)),
            **{f"eval_{name}": float(metric(confusion)) for name, metric in METRICS.items()},
            "eval_confusion": confusion.tolist(),
        }
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _screened_logits(self, texts: Tokens) -> torch.Tensor:
        """Return class scores from which the same classes follow as from `_logits`, sooner.

        All texts are scored in the training's products. Those with the closest decisions, a sixteenth at first, are
        scored again in float32, and more of them until every decision left is further from a tie than twice the
        largest error met: what was not scored again would have to err more than that to be decided otherwise.
        """
        if self._autocast_dtype is torch.float32:
            return self._logits(texts)
        logits = self._logits(texts, self._autocast_dtype)
        best = logits.topk(2, dim=-1).values
        leads, order = (best[:, 0] - best[:, 1]).sort()  # of a text's first class over its second
        n_checked, largest_error = 0, 0.0
        n_wanted = max(1, len(texts) // _SCREENED_SHARE)
        while n_checked < n_wanted:
            rows = order[n_checked:n_wanted].cpu().numpy()
            exact = self._logits(texts, rows=rows)
            errors = exact - logits[rows]
            largest_error = max(largest_error, float((errors.amax(dim=-1) - errors.amin(dim=-1)).max()))
            logits[rows] = exact
            n_checked = n_wanted
            n_wanted = max(n_wanted, min(2 * n_wanted, int((leads <= 2 * largest_error).sum())))
        return logits

    def _logits(
        self, texts: Tokens, products: torch.dtype = torch.float32, rows: NDArray[np.int64] | None = None
    ) -> torch.Tensor:
        """Return the model's class scores of some rows, by default all, in the rows' own order.

        Returns:
            Shape (n_rows, n_classes), on the device.
        """
        model = self.trained_model().eval()
        rows = np.arange(len(texts)) if rows is None else rows
        logits = torch.empty(len(rows), model.num_labels, device=self.args.device)
        device = self.args.device.type
        autocast = torch.autocast(device, dtype=products, enabled=products is not torch.float32)
        with torch.inference_mode(), autocast:
            n_tokens = _EVALUATION_TOKENS_ON_CPU if device == "cpu" else _EVALUATION_TOKENS
            for places in by_length(texts.lengths[rows], n_tokens // self._n_parts):
                inputs = self._prepare_inputs(self._collator([texts[row] for row in rows[places]]))
                logits[torch.from_numpy(places).to(logits.device)] = model(**inputs).logits.float()
                self.made_progress()
        return logits

    def _report_to_hp_search(
        self, trial: optuna.Trial | dict[str, Any] | None, step: int, metrics: dict[str, Any]
    ) -> None:
        """Take an evaluation: called by the Trainer after each, inside a search or not.

        Raises:
            TrainingError: If a loss is not finite.
            optuna.TrialPruned: If the pruner says so; never for the defaults, which everything is compared with.
        """
        config = self.task.config
        index = evaluation_steps(self.state.max_steps, config.search.evaluations)[step]
        evaluation = Evaluation(
            step=index,
            epoch=round(self.state.epoch or 0.0, 4),
            train_loss=self._last_loss,
            eval_loss=metrics["eval_loss"],
            scores={name: metrics[f"eval_{name}"] for name in METRICS},
            confusion=metrics["eval_confusion"],
        )
        for kind, loss in (("training", evaluation.train_loss), ("validation", evaluation.eval_loss)):
            if loss is not None and not math.isfinite(loss):
                raise TrainingError(f"diverged: the {kind} loss is {loss} at evaluation {index}")
        self._evaluations.append(evaluation)
        value = evaluation.scores[config.metric]
        if self._best() is evaluation:
            self._keep_weights()
        self.made_progress()
        self._observer.evaluated(index, config.search.evaluations, value)
        if isinstance(trial, optuna.Trial):
            if index in self._reported:  # of a training that ran out of memory; `report` would keep the first value
                trial.storage.set_trial_intermediate_value(trial._trial_id, index, value)
                trial._cached_frozen_trial.intermediate_values[index] = value
            else:
                trial.report(value, step=index)
                self._reported.add(index)
            # At the last evaluation nothing is left to save: pruning it would only lose the value and the weights.
            is_last = index == config.search.evaluations
            if not is_last and trial.user_attrs.get("role") != "defaults" and trial.should_prune():
                raise optuna.TrialPruned

    def _keep_weights(self) -> None:
        """Remember the weights and the decay of the best evaluation so far."""
        self._best_decay = self._decay
        state = self.trained_model().state_dict()
        if not self._weights:
            self._weights = {name: torch.empty_like(values, device="cpu") for name, values in state.items()}
        for name, values in state.items():
            self._weights[name].copy_(values)

    def _count_decay(self) -> None:
        """Take note of what an optimizer step would have done to the rows that were left out."""
        if self._models.vocabulary.is_whole:
            return
        embedding = self.trained_model().get_input_embeddings().weight
        groups = self.optimizer.param_groups if self.optimizer else []
        (group,) = (group for group in groups if any(parameter is embedding for parameter in group["params"]))
        self._decay *= 1.0 - float(group["lr"]) * float(group["weight_decay"])

    def _effective(self) -> dict[str, Any]:
        """Return what the training really uses, read back from where it takes effect."""
        names = self._hyperparameters.training_arguments()
        values = {name: getattr(self.args, name) for name in names}
        model = self.trained_model()
        return {
            **{name: getattr(value, "value", value) for name, value in values.items()},
            **{name: getattr(model.config, name) for name in self._hyperparameters.dropouts()},
            "seed": self.args.seed,
            "micro_batch_size": RowsAtOnce.in_part(self.args.per_device_train_batch_size, self._n_parts),
            "optimizer_steps": self.state.max_steps,
            "warmup_optimizer_steps": self.args.get_warmup_steps(self.state.max_steps),
            "train_rows": len(self.task.data.train),
            "device": str(self.args.device),
            "weights": str(model.dtype).removeprefix("torch."),
            "products": str(self._autocast_dtype).removeprefix("torch."),
            "padding": "none" if self._collator.first_position is not None else "longest of the batch",
            "vocabulary_rows": len(self._models.vocabulary.rows),
        }


def evaluation_steps(n_optimizer_steps: int, n_evaluations: int) -> dict[int, int]:
    """Return the optimizer steps after which to evaluate, each with its evaluation's index.

    Args:
        n_optimizer_steps: Length of the schedule.
        n_evaluations: Evaluations per training, K.

    Returns:
        Optimizer step -> index in 1..K. With fewer steps than evaluations some indices are left out; K never is.
    """
    return {math.ceil(k * n_optimizer_steps / n_evaluations): k for k in range(1, n_evaluations + 1)}


class _Schedule(TrainerCallback):
    """Evaluates at equal fractions of the schedule, passes progress on, and stops when asked to."""

    def __init__(self, trainer: SearchTrainer) -> None:
        self._trainer = trainer

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._trainer._count_decay()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        trainer = self._trainer
        trainer.made_progress()
        if trainer._stop_requested():
            raise Interrupted
        steps = evaluation_steps(state.max_steps, trainer.task.config.search.evaluations)
        control.should_evaluate = control.should_log = state.global_step in steps
        trainer._observer.progressed(state.epoch or 0.0, state.global_step / state.max_steps, trainer._last_loss)
        return control

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **event: Any) -> None:
        self._trainer._last_loss = event["logs"].get("loss", self._trainer._last_loss)


def only_predicted(evaluation: Evaluation, label_names: Sequence[str]) -> str | None:
    """Return the one label that was predicted for every row, as a training does that has diverged; else None."""
    predicted = [
        name for name, column in zip(label_names, zip(*evaluation.confusion, strict=True), strict=True) if any(column)
    ]
    return predicted[0] if len(predicted) == 1 else None


def _attributes(outcome: Outcome, label_names: Sequence[str]) -> dict[str, Any]:
    """Return what is stored with a complete trial, besides its value and its intermediate values."""
    only = only_predicted(outcome.best, label_names)
    return {
        **({"predicts_only": only} if only is not None else {}),
        "best_step": outcome.best.step,
        "best_epoch": outcome.best.epoch,
        "scores": outcome.best.scores,
        "confusion": outcome.best.confusion,
        "train_losses": [evaluation.train_loss for evaluation in outcome.evaluations],
        "eval_losses": [evaluation.eval_loss for evaluation in outcome.evaluations],
        "effective": outcome.effective,
        "seconds": round(outcome.seconds, 3),
        "peak_memory_mib": outcome.peak_memory_mib,
    }


def _reason(error: BaseException) -> str:
    if is_out_of_memory(error):
        return "out of memory"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


def _peak_memory_mib() -> int:
    """Return the peak of the device's memory in this training; without a device, of the process so far (Linux)."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated() // 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**10
