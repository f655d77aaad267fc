"""Slices: which rows belong to which part, and the accuracy of both sides on it."""

from __future__ import annotations

import numpy as np

from hpsearch.slices import slices_of
from hpsearch.tokens import Tokens

_UNKNOWN = 1


def _tokens(*texts: list[int]) -> Tokens:
    return Tokens(np.concatenate(texts).astype(np.int32), np.cumsum([0, *map(len, texts)], dtype=np.int64))


def test_rows_are_sliced_by_label_length_and_unknown_tokens() -> None:
    tokens = _tokens([2, 3], [2, 1, 3], [2, 4, 4, 3], [2, 4, 4, 4, 3], [2, 5, 5, 5, 1, 3], [2, 5, 5, 5, 5, 5, 3])
    labels = np.array([0, 1, 0, 1, 0, 1])
    default = np.array([[0, 1, 0, 0, 0, 1], [0, 1, 0, 0, 1, 1]])  # wrong: row 3 twice, row 4 once
    tuned = np.array([[0, 0, 0, 1, 0, 1], [0, 0, 0, 1, 0, 1]])  # wrong: row 1
    slices = slices_of(labels, ("bad", "good"), tokens, ("[UNK]", _UNKNOWN), default=default, tuned=tuned)
    assert [(part.name, part.rows, part.default_accuracy, part.tuned_accuracy) for part in slices] == [
        ("label bad", 3, 5 / 6, 1.0),
        ("label good", 3, 2 / 3, 2 / 3),
        ("up to 3 tokens", 2, 1.0, 0.5),
        ("4 to 5 tokens", 2, 0.5, 1.0),
        ("more than 5 tokens", 2, 0.75, 1.0),
        ("with [UNK]", 2, 0.75, 0.5),
    ]


def test_parts_without_rows_are_left_out() -> None:
    tokens = _tokens([2, 3], [2, 3], [2, 3])
    answers = np.zeros((1, 3), dtype=np.int64)
    slices = slices_of(answers[0], ("bad", "good"), tokens, None, default=answers, tuned=answers)
    assert [(part.name, part.rows) for part in slices] == [("label bad", 3), ("up to 2 tokens", 3)]
    assert slices_of(answers[0], ("bad", "good"), tokens, ("[UNK]", 1), default=answers, tuned=answers) == slices
