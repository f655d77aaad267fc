"""Which number format the matrix products of a training run fastest in, on this machine.

Weights, gradients, optimizer and evaluation stay float32. Reading processor flags is not enough: bfloat16 is several
times faster with AMX or AVX512-BF16 and slower than float32 without, so the products themselves are timed.
"""

from __future__ import annotations

import time
from functools import cache

import torch

_N_TOKENS = 768  # a batch of 32 short texts
_REPEATS = 5
_MARGIN = 1.25  # casts between the formats cost time too, so a small gain is none


@cache
def fastest_products(width: int) -> str:
    """Return the format for the products of a study: `bfloat16` where it pays, else `float32`.

    It is asked once a study and kept with it: near the margin another process could find otherwise.

    Args:
        width: Hidden size of the model; its largest products are (tokens, width) x (width, 4 width).
    """
    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    pays = _seconds(width, torch.float32) > _MARGIN * _seconds(width, torch.bfloat16)
    return "bfloat16" if pays else "float32"


def _seconds(width: int, dtype: torch.dtype) -> float:
    """Time one product on the CPU, the best of a few."""
    inputs = torch.ones(_N_TOKENS, width, dtype=dtype)
    weights = torch.ones(4 * width, width, dtype=dtype)
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        torch.nn.functional.linear(inputs, weights)
        times.append(time.perf_counter() - start)
    return min(times)
