"""Encoders of BERT's family on texts without padding, one after the other in a single row.

Padding is computed like any other token and then thrown away. Here the embeddings, projections, feed-forward layers,
norms and dropouts see the texts' own tokens only; attention alone lays the texts side by side, because that is where
they must not see each other. Of the last layer only the first token of each text is computed, since classification
reads no other. Both leave out what the result does not depend on: values and gradients are those of the padded model up
to the order of float32 sums, which `tests/test_packing.py` shows.

The model's own modules do the work, through two doors that transformers keeps open: an attention function registered
by name, and keyword arguments that every layer passes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MethodType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    BertForSequenceClassification,
    ElectraForSequenceClassification,
    PreTrainedModel,
    RobertaForSequenceClassification,
    XLMRobertaForSequenceClassification,
)

from hpsearch.dropout import dropout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

ATTENTION = "hpsearch-packed"

# Families whose layers have BERT's parts under BERT's names, and whose heads read the first token only.
_FAMILIES = (
    BertForSequenceClassification,
    RobertaForSequenceClassification,
    XLMRobertaForSequenceClassification,
    ElectraForSequenceClassification,
)
# oneDNN compiles a kernel for every number of tokens it meets, which costs more than the product of a short batch
# itself; rounded up to a multiple of this there are few numbers to meet. Measured in `benchmarks/README.md`.
MULTIPLE = 64


@dataclass(frozen=True, slots=True, eq=False)
class Packing:
    """Where the texts of a batch stand: in one row for the layers, side by side for attention."""

    n_texts: int
    longest: int
    """Tokens of the longest text."""
    places: torch.Tensor
    """Of each token among `n_texts * longest` padded places, shape (n_tokens,)."""
    first: torch.Tensor
    """Where each text begins in the row, shape (n_texts,)."""
    bias: torch.Tensor
    """Added to attention scores: 0 for a text's own tokens, minus infinity for others, (n_texts, 1, 1, longest)."""


def pack(texts: Sequence[NDArray[np.integer]], *, pad_id: int, first_position: int) -> dict[str, Any]:
    """Lay texts one after the other, as keyword arguments of a model that was given to `use_packing`.

    The row is filled up to a multiple of 64 tokens, which no text sees.

    Args:
        texts: Token ids of each text.
        pad_id: The id to fill up with.
        first_position: Number of a text's first position.
    """
    lengths = np.array([len(text) for text in texts])
    n_texts, longest, n_tokens = len(texts), int(lengths.max()), int(lengths.sum())
    taken = np.arange(longest) < lengths[:, None]  # (n_texts, longest)
    ids = np.full((1, -(-n_tokens // MULTIPLE) * MULTIPLE), pad_id, dtype=np.int64)
    ids[0, :n_tokens] = np.concatenate(texts)
    positions = np.full_like(ids, first_position)
    positions[0, :n_tokens] += np.nonzero(taken)[1]
    input_ids = torch.from_numpy(ids)
    bias = torch.zeros(n_texts, 1, 1, longest).masked_fill_(torch.from_numpy(~taken)[:, None, None], float("-inf"))
    return {
        "input_ids": input_ids,
        "position_ids": torch.from_numpy(positions),
        "token_type_ids": torch.zeros_like(input_ids),
        "packing": Packing(
            n_texts=n_texts,
            longest=longest,
            places=torch.from_numpy(np.flatnonzero(taken)),
            first=torch.from_numpy(np.cumsum(lengths) - lengths),
            bias=bias,
        ),
    }


def can_pack(model: PreTrainedModel) -> bool:
    """Say whether a model is of a family that can do without padding."""
    config = model.config
    return (
        type(model) in _FAMILIES
        and not config.is_decoder
        and not config.add_cross_attention
        and not config.chunk_size_feed_forward
        and getattr(config, "position_embedding_type", "absolute") == "absolute"
    )


def use_packing(model: PreTrainedModel) -> int:
    """Let a model take what `pack` returns, instead of padded batches.

    Returns:
        The number of a text's first position, for `pack`.
    """
    model.set_attn_implementation(ATTENTION)
    last: Any = model.base_model.encoder.layer[-1]  # type: ignore[union-attr, index]
    last.forward = MethodType(_first_tokens, last)
    positions: Any = model.base_model.embeddings.position_embeddings  # type: ignore[union-attr]
    # RoBERTa's family starts behind the padding's own number (transformers 5.23, modeling_roberta.py).
    return 0 if positions.padding_idx is None else int(positions.padding_idx) + 1


def _first_tokens(layer: Any, hidden: torch.Tensor, *_: Any, packing: Packing, **__: Any) -> torch.Tensor:
    """Compute a layer's output for the first token of each text; `hidden` has shape (1, n_tokens, width).

    Returns:
        Shape (n_texts, 1, width): to what reads it, texts of one token each.
    """
    attention = layer.attention.self
    first = _Take.apply(hidden[0], packing.first, packing.n_texts)[None]  # type: ignore[no-untyped-call]
    query, key, value = (
        project(rows).view(1, rows.shape[1], -1, attention.attention_head_size).transpose(1, 2)
        for project, rows in ((attention.query, first), (attention.key, hidden), (attention.value, hidden))
    )
    p = attention.dropout.p if layer.training else 0.0
    context = _attend(query[0].transpose(0, 1)[:, :, None], key, value, packing, p, attention.scaling)
    output = layer.attention.output(context.reshape(first.shape), first)
    result: torch.Tensor = layer.feed_forward_chunk(output)
    return result.transpose(0, 1)


def _packed_attention(
    _module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    *,
    packing: Packing,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each text; an attention function of transformers, (1, n_heads, n_tokens, size) each."""
    n_tokens, width = query.shape[2], query.shape[1] * query.shape[3]
    context = _attend(_side_by_side(query, packing), key, value, packing, dropout, scaling)
    rows = context.transpose(1, 2).reshape(-1, width)  # (n_texts * longest, width)
    packed: torch.Tensor = _Take.apply(rows, packing.places, n_tokens)  # type: ignore[no-untyped-call]
    return packed.view(1, n_tokens, -1, query.shape[3]), None


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packing: Packing, p: float, scaling: float | None
) -> torch.Tensor:
    """Attend to packed keys and values with a query, (n_texts, n_heads, n_queries, size), and return its shape."""
    key, value = _side_by_side(key, packing), _side_by_side(value, packing)
    bias = packing.bias.to(query.dtype)
    if not p:
        return nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scaling)
    # With dropout torch's own attention takes its slow path on a CPU and draws a mask of its slow kind.
    scores = query * (scaling or query.shape[-1] ** -0.5) @ key.transpose(-1, -2) + bias
    return dropout(torch.softmax(scores, dim=-1).to(value.dtype), p) @ value


def _side_by_side(x: torch.Tensor, packing: Packing) -> torch.Tensor:
    """Lay packed texts, (1, n_heads, n_tokens, size), side by side: (n_texts, n_heads, longest, size)."""
    _, n_heads, n_tokens, size = x.shape
    rows = x.transpose(1, 2).reshape(n_tokens, n_heads * size)
    padded: torch.Tensor = _Put.apply(rows, packing.places, packing.n_texts * packing.longest)  # type: ignore[no-untyped-call]
    return padded.view(packing.n_texts, packing.longest, n_heads, size).transpose(1, 2)


def _put(rows: torch.Tensor, places: torch.Tensor, n_rows: int) -> torch.Tensor:
    """Return `n_rows` rows, the given ones in their places and zeros elsewhere; surplus ones are left out."""
    return rows.new_zeros(n_rows, rows.shape[1]).index_copy_(0, places, rows[: len(places)])


def _take(rows: torch.Tensor, places: torch.Tensor, n_rows: int) -> torch.Tensor:
    """Return the rows in some places, followed by zeros up to `n_rows` rows."""
    result = rows.new_zeros(n_rows, rows.shape[1])
    torch.index_select(rows, 0, places, out=result[: len(places)])
    return result


class _Put(torch.autograd.Function):
    """`_put`, whose gradient is `_take`: torch's own gradient of a row selection adds rows up one by one."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, places: torch.Tensor, n_rows: int) -> torch.Tensor:
        ctx.places, ctx.n_rows = places, len(rows)
        return _put(rows, places, n_rows)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _take(gradients[0], ctx.places, ctx.n_rows), None, None


class _Take(torch.autograd.Function):
    """`_take`, whose gradient is `_put`."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, places: torch.Tensor, n_rows: int) -> torch.Tensor:
        ctx.places, ctx.n_rows = places, len(rows)
        return _take(rows, places, n_rows)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _put(gradients[0], ctx.places, ctx.n_rows), None, None


# Which tokens belong together is in the packing, so no mask is made of the attention mask.
AttentionInterface.register(ATTENTION, _packed_attention)
AttentionMaskInterface.register(ATTENTION, lambda *_, **__: None)
