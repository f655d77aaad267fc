"""The rows of the input embedding that a task's texts use: the others need not be trained, and nothing changes.

The embedding of a multilingual encoder can be half of its parameters, and a few thousand texts use a few thousand of
its rows. A row that never occurs has a gradient of zero, so that AdamW does nothing to it but weight decay, the same
factor for all such rows. Training without them is therefore the same computation. Afterwards the full table is put
together: the trained rows in their places, the others the base model's, times that factor.

What may surprise is that rows stay which never occur: models compare token ids with special ones of their config, such
as the padding's, to tell positions or where a text ends. Every row up to the last of those stays, so that they keep
their ids.

Source:
    Williams & Aletras, "Vocabulary-level Memory Efficiency for Language Model Fine-tuning" (arXiv:2309.08708), leave
    unused rows out to save memory, and put them back as they were, without the decay.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from hpsearch.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray
    from transformers import PreTrainedModel

_LEAST_SAVING = 0.05  # of the rows; for less it is not worth being another shape than the full model

# Such as pad_token_id, image_token_index, and XLM's pad_index: the endings that there are in transformers 5.23.
_SPECIAL_ID = re.compile(r"_(token_ids?|index)$")


@dataclass(frozen=True, slots=True, eq=False)
class Vocabulary:
    """Which rows of a model's input embedding are kept."""

    size: int
    """Rows of the full table; 0 where the model looks token ids up in no single table."""
    rows: NDArray[np.int64]
    """Token ids whose rows are kept, ascending, shape (n_kept,)."""

    @classmethod
    def of(cls, model: PreTrainedModel, ids: NDArray[np.integer]) -> Vocabulary:
        """Return the rows that a model needs for some texts.

        That is the whole table where dropping rows would not be the same computation, or would hardly save anything.

        Args:
            model: The full model.
            ids: Every token id that can occur, of any shape.

        Raises:
            ConfigError: If the table has no row for an id.
        """
        whole = cls.whole(model)
        table = _table(model)
        if table is None:
            return whole
        used = np.unique(ids)
        if (strangers := used[(used < 0) | (used >= whole.size)]).size:
            raise ConfigError(
                f"model.name: expected token ids below {whole.size:,}, the rows of the model's embedding, "
                f"got {strangers[-1]:,}; tokenizer and weights do not belong together"
            )
        if not _is_looked_up_only(model, table):
            return whole
        special = [*_special_ids(model.config.to_dict()), table.padding_idx or 0]
        last = max(token_id for token_id in special if token_id < whole.size)
        rows = np.union1d(np.arange(last + 1), used).astype(np.int64)
        return whole if len(rows) > (1 - _LEAST_SAVING) * whole.size else cls(whole.size, rows)

    @classmethod
    def whole(cls, model: PreTrainedModel) -> Vocabulary:
        """Return all rows of a model."""
        table = _table(model)
        size = 0 if table is None else table.num_embeddings
        return cls(size, np.arange(size, dtype=np.int64))

    @property
    def is_whole(self) -> bool:
        """Whether nothing is dropped."""
        return len(self.rows) == self.size

    def compact(self, ids: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the place of each token id among the kept rows, in the shape of `ids`.

        Raises:
            TrainingError: If the row of an id was dropped.
        """
        wanted = np.asarray(ids, dtype=np.int64)
        if self.is_whole:
            return wanted
        places = np.searchsorted(self.rows, wanted)
        dropped = wanted[self.rows[np.minimum(places, len(self.rows) - 1)] != wanted]
        if dropped.size:
            raise TrainingError(
                f"token id {dropped[0]}: expected one of the {len(self.rows):,} kept rows of the embedding, got one of "
                f"the {self.size - len(self.rows):,} that were dropped; a text was not known when they were chosen"
            )
        return places


def trim(model: PreTrainedModel, vocabulary: Vocabulary) -> None:
    """Leave a full model only the kept rows of its input embedding; it then takes compact ids.

    Its config keeps the size of the full table.
    """
    table = _table(model)
    if table is None or vocabulary.is_whole:
        return
    rows = torch.from_numpy(vocabulary.rows).to(table.weight.device)
    table.weight = nn.Parameter(table.weight.detach()[rows], requires_grad=table.weight.requires_grad)
    table.num_embeddings = len(rows)


def restore(
    weights: Mapping[str, torch.Tensor], base: PreTrainedModel, vocabulary: Vocabulary, decay: float
) -> dict[str, torch.Tensor]:
    """Return the state of the full model after a training of the trimmed one.

    Args:
        weights: State of the trimmed model.
        base: The full model as it was before the training; it is not changed.
        vocabulary: The rows that were kept.
        decay: What weight decay has made of a weight without a gradient: the product of 1 - learning rate * weight
            decay over the optimizer's steps.
    """
    table = _table(base)
    if table is None or vocabulary.is_whole:
        return dict(weights)
    name = next(name for name, weight in base.named_parameters() if weight is table.weight)
    full = table.weight.detach().cpu() * decay
    full[torch.from_numpy(vocabulary.rows)] = weights[name]
    return {**weights, name: full}


def _table(model: PreTrainedModel) -> nn.Embedding | None:
    """Return a model's input embedding, or None where token ids are turned into vectors in another way."""
    try:
        table = model.get_input_embeddings()
    except NotImplementedError:
        return None
    return table if isinstance(table, nn.Embedding) else None


def _is_looked_up_only(model: PreTrainedModel, table: nn.Embedding) -> bool:
    """Tell whether the rows of a table are looked up by token ids and used for nothing else.

    A subclass may do anything in its forward. Another tensor of the same length is the same weights at work elsewhere
    (tied ones are counted once for each name), or a second table that is looked up by the same ids.
    """
    tensors = chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    return (
        type(table) is nn.Embedding
        and table.max_norm is None
        and not table.scale_grad_by_freq
        and not table.sparse
        and sum(tensor.shape[:1] == (table.num_embeddings,) for _, tensor in tensors) == 1
    )


def _special_ids(config: Mapping[Any, Any]) -> Iterator[int]:
    """Yield the token ids that a config names, those of its parts included."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _special_ids(value)
        elif _SPECIAL_ID.search(str(key)):
            yield from (item for item in (value if isinstance(value, list) else [value]) if isinstance(item, int))
