"""Batches that do not fit into memory: how to tell, and how many rows to take at once instead.

A batch is trained in parts of fewer rows, each weighted by its share, so that the gradient is that of the whole batch
up to the order of sums (and the dropout masks, which are drawn part by part).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from optuna.trial import TrialState

from hpsearch.owner import Owner

if TYPE_CHECKING:
    from collections.abc import Iterable

    from optuna.trial import FrozenTrial

TOO_MANY_ROWS = "too_many_rows"
"""User attribute of a trial: the fewest rows at once for which memory did not suffice."""

# Of CPU allocators, of CUDA calls outside PyTorch's own allocator, of cuBLAS.
_SIGNS = ("out of memory", "can't allocate memory", "bad_alloc", "alloc_failed")
# All that oneDNN has to say on a CPU where memory ends; what it does not support has longer words (torch 2.13).
_ONEDNN = ("could not create a primitive", "could not create a memory object")


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that memory, the device's or the host's, did not suffice."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (text in _ONEDNN or any(sign in text for sign in _SIGNS))


@dataclass(slots=True)
class RowsAtOnce:
    """Into how many parts batches go, learnt from what did not fit."""

    too_many: int | None = None
    """The fewest rows at once that did not fit; None if all have."""

    def n_parts(self, batch_size: int) -> int:
        """Return into how many parts a batch of so many rows goes."""
        n = 1
        while self.too_many is not None and n < batch_size and self.in_part(batch_size, n) >= self.too_many:
            n *= 2
        return min(n, batch_size)

    def did_not_fit(self, rows: int) -> None:
        """Take note of a number of rows for which memory did not suffice."""
        self.too_many = min(rows, self.too_many or rows)

    @staticmethod
    def in_part(batch_size: int, n_parts: int) -> int:
        """Return the rows of the largest part."""
        return -(-batch_size // n_parts)


def learnt_by(trials: Iterable[FrozenTrial], host: str) -> RowsAtOnce:
    """Return what a study's earlier trials have learnt about the memory of a host."""
    found = RowsAtOnce()
    for trial in trials:
        rows = trial.user_attrs.get(TOO_MANY_ROWS)
        if rows is None or trial.state == TrialState.WAITING:
            continue
        if (owner := Owner.of(trial)) is not None and owner.host == host:
            found.did_not_fit(rows)
    return found
