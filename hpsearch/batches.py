"""Batches of texts: which rows go together, and what a model is given of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Sampler

from hpsearch.packing import pack

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from hpsearch.tokens import Tokens
    from hpsearch.vocabulary import Vocabulary


class LengthGroupedSampler(Sampler[int]):
    """Random order in which each batch holds rows of similar length.

    Rows are shuffled, cut into pools of several batches, sorted by length within a pool and cut into batches; then the
    batches are shuffled. The same seed and epoch give the same order.

    Source:
        The idea of `transformers.trainer_pt_utils.LengthGroupedSampler` 5.23, which keeps each pool's batches in
        order of length; here short and long batches come in random order.
    """

    BATCHES_PER_POOL = 16

    def __init__(
        self, lengths: Sequence[int] | NDArray[np.integer], batch_size: int, generator: torch.Generator
    ) -> None:
        """Take the rows' lengths in tokens, and where the randomness comes from."""
        self._lengths = np.asarray(lengths)
        self.batch_size = batch_size
        self._generator = generator

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        """Yield every row once, batch after batch; only the last one may be smaller."""
        rows = torch.randperm(len(self), generator=self._generator).numpy()
        n_whole = len(rows) // self.batch_size
        whole, rest = rows[: n_whole * self.batch_size], rows[n_whole * self.batch_size :]
        pool_size = self.BATCHES_PER_POOL * self.batch_size
        pools = [whole[start : start + pool_size] for start in range(0, len(whole), pool_size)]
        batches = [
            batch
            for pool in pools
            for batch in pool[np.argsort(self._lengths[pool], kind="stable")].reshape(-1, self.batch_size)
        ]
        for i in torch.randperm(len(batches), generator=self._generator).tolist():
            yield from batches[i].tolist()
        yield from rest.tolist()


class Batches:
    """The training rows in batches of similar length, in another order at every pass: what the Trainer iterates over.

    The rows are in memory or mapped, and a batch is made in a fraction of a millisecond, so there is no `DataLoader`.
    """

    def __init__(
        self,
        texts: Tokens,
        labels: torch.Tensor,
        sampler: LengthGroupedSampler,
        collator: Collator,
        *,
        n_parts: int = 1,
    ) -> None:
        """Take the rows, the order of rows, how batches are made, and into how many parts each of them goes."""
        self.dataset = texts
        self._n_parts = n_parts
        self._labels = labels
        self._sampler = sampler
        self._collator = collator

    def __len__(self) -> int:
        """Return the number of batches in a pass."""
        return -(-len(self.dataset) // self._sampler.batch_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the inputs of every batch of a pass; where it goes in parts, a list of theirs under the key `parts`."""
        rows, size = list(self._sampler), self._sampler.batch_size
        for batch in (rows[start : start + size] for start in range(0, len(rows), size)):
            if self._n_parts == 1:
                yield self._inputs(batch)
            else:
                parts = np.array_split(batch, min(self._n_parts, len(batch)))
                yield {"parts": [self._inputs(part.tolist()) for part in parts]}

    def _inputs(self, rows: list[int]) -> dict[str, Any]:
        return {**self._collator([self.dataset[row] for row in rows]), "labels": self._labels[rows]}


class Collator:
    """Makes a model's inputs of texts: packed where the model can do without padding, else padded."""

    def __init__(self, vocabulary: Vocabulary, tokenizer: PreTrainedTokenizerBase) -> None:
        """Take which ids the model knows, and how its tokenizer pads."""
        self._vocabulary = vocabulary
        self._pads_left = tokenizer.padding_side == "left"
        # Of a tokenizer that never pads, any id will do: no text attends to it.
        self._pad_id = vocabulary.compact(np.array([tokenizer.pad_token_id or 0])).item()
        self.first_position: int | None = None
        """Of a packed text; None pads."""

    def __call__(self, texts: Sequence[NDArray[np.integer]]) -> dict[str, Any]:
        """Return the inputs for some texts, given as ids of the full vocabulary."""
        known = [self._vocabulary.compact(text) for text in texts]
        if self.first_position is not None:
            return pack(known, pad_id=self._pad_id, first_position=self.first_position)
        lengths = np.array([len(text) for text in known])
        places = np.arange(lengths.max()) < lengths[:, None]  # (n_texts, longest)
        if self._pads_left:
            places = places[:, ::-1]
        ids = np.full(places.shape, self._pad_id)
        ids[places] = np.concatenate(known)
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(places.astype(np.int64))}


def by_length(lengths: NDArray[np.int64], n_tokens: int) -> Iterator[NDArray[np.int64]]:
    """Yield rows from the shortest to the longest, as many at once as come to `n_tokens` with padding, at least one."""
    order = np.argsort(lengths, kind="stable")
    start = 0
    for end in range(1, len(order) + 1):
        if end == len(order) or lengths[order[end]] * (end + 1 - start) > n_tokens:
            yield order[start:end]
            start = end
