"""Batches hold every row once, with as little padding as may be, on the side where the tokenizer pads."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpsearch.batches import Collator, by_length
from hpsearch.vocabulary import Vocabulary

VOCABULARY = Vocabulary(size=100, rows=np.array([0, 1, 2, 3, 7, 50, 99]))


def collator(side: str = "right", pad_token_id: int | None = 1) -> Collator:
    tokenizer: Any = SimpleNamespace(padding_side=side, pad_token_id=pad_token_id)
    return Collator(VOCABULARY, tokenizer)


@pytest.mark.parametrize(
    ("side", "ids", "mask"),
    [
        ("right", [[4, 5, 6], [2, 1, 1]], [[1, 1, 1], [1, 0, 0]]),
        ("left", [[4, 5, 6], [1, 1, 2]], [[1, 1, 1], [0, 0, 1]]),
    ],
)
def test_texts_are_padded_to_the_longest_where_the_tokenizer_pads(
    side: str, ids: list[list[int]], mask: list[list[int]]
) -> None:
    inputs = collator(side)([np.array([7, 50, 99]), np.array([2])])
    assert inputs["input_ids"].tolist() == ids
    assert inputs["attention_mask"].tolist() == mask


def test_a_tokenizer_without_padding_is_filled_up_with_any_id() -> None:
    inputs = collator(pad_token_id=None)([np.array([2, 2]), np.array([3])])
    assert inputs["input_ids"].tolist() == [[2, 2], [3, 0]]


def test_packed_texts_stand_one_after_the_other() -> None:
    collate = collator()
    collate.first_position = 2
    inputs = collate([np.array([7, 50, 99]), np.array([2])])
    assert inputs["input_ids"][0, :4].tolist() == [4, 5, 6, 2]
    assert inputs["position_ids"][0, :4].tolist() == [2, 3, 4, 2]
    assert inputs["packing"].first.tolist() == [0, 3]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=200), st.integers(1, 300))
def test_rows_by_length_come_once_from_short_to_long_within_the_limit(lengths: list[int], n_tokens: int) -> None:
    batches = list(by_length(np.array(lengths), n_tokens))
    order = np.concatenate(batches)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    in_order = [lengths[row] for row in order]
    assert in_order == sorted(lengths)
    for batch, following in zip(batches, [*batches[1:], None], strict=True):
        longest = lengths[batch[-1]]
        assert len(batch) == 1 or len(batch) * longest <= n_tokens
        if following is not None:  # one more would not have fitted
            assert (len(batch) + 1) * lengths[following[0]] > n_tokens
