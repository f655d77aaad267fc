"""Dropout whose masks are cheap to draw on a CPU, at the same probability.

On a CPU torch draws each element of a mask as a Bernoulli variable of its own; on short texts that takes as long as the
forward pass's matrix products once those are in bfloat16 (`benchmarks/README.md`). Here one 64-bit number from torch's
own generator decides four elements: each stays where its 16 bits reach a threshold.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_VALUES = 2**16  # of 16 bits
_LOWEST = -(2**15)


def keep_mask(shape: torch.Size, p: float) -> tuple[torch.Tensor, float]:
    """Draw which elements stay.

    Args:
        shape: The mask's shape.
        p: Probability of an element to be dropped, in [0, 1); it is rounded to a multiple of 2^-16.

    Returns:
        A mask, True where an element stays, and the factor for those elements: the inverse of the probability with
        which they really stay.
    """
    n_dropped = min(round(p * _VALUES), _VALUES - 1)
    n_elements = shape.numel()
    words = torch.empty((n_elements + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    return words.view(torch.int16)[:n_elements].view(shape).ge(_LOWEST + n_dropped), _VALUES / (_VALUES - n_dropped)


def dropout(x: torch.Tensor, p: float) -> torch.Tensor:
    """Return `x` with elements set to zero with probability `p` and the others scaled up, as in training."""
    dropped: torch.Tensor = _Drop.apply(x, p)  # type: ignore[no-untyped-call]
    return dropped


class Dropout(nn.Dropout):
    """What `use_cheap_dropout` makes of a model's `nn.Dropout` modules."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Drop elements in training, none in evaluation."""
        return dropout(x, self.p) if self.training and self.p else x


def use_cheap_dropout(model: nn.Module) -> None:
    """Let a model on the CPU draw all its dropout masks here."""
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = Dropout


class _Drop(torch.autograd.Function):
    """Keeps one byte an element for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, p: float) -> torch.Tensor:
        mask, ctx.factor = keep_mask(x.shape, p)
        ctx.save_for_backward(mask)
        return (x * mask).mul_(ctx.factor)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (mask,) = ctx.saved_tensors
        return (gradients[0] * mask).mul_(ctx.factor), None
