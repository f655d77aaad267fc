"""Flips: which texts they are, and a file that keeps texts as they are and runs nothing in a spreadsheet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpsearch.data import Split
from hpsearch.evidence import Flip
from hpsearch.flips import find_flips, read_flips, write_flips

if TYPE_CHECKING:
    from pathlib import Path


def _test_rows(*labels: int) -> Split:
    n_rows = len(labels)
    texts = tuple(f"text {i}" for i in range(n_rows))
    return Split(texts, np.array(labels), np.arange(n_rows), n_sampled=n_rows, n_blank=0)


def test_flips_are_the_rows_that_one_majority_gets_right_and_the_other_wrong() -> None:
    default = np.array([  # (3 seeds, 4 rows): the probability of class 1
        [0.9, 0.2, 0.6, 0.9],
        [0.8, 0.3, 0.7, 0.8],
        [0.1, 0.9, 0.8, 0.7],
    ])  # fmt: skip
    tuned = np.array([
        [0.2, 0.9, 0.9, 0.2],
        [0.3, 0.8, 0.9, 0.1],
        [0.9, 0.1, 0.9, 0.3],
    ])  # fmt: skip
    flips = find_flips(
        _test_rows(1, 1, 1, 1), ("bad", "good"), *(np.stack([1 - side, side], axis=-1) for side in (default, tuned))
    )
    assert [(flip.text, flip.default, flip.tuned) for flip in flips] == [
        ("text 3", "good", "bad"),  # lost, and by more than the next
        ("text 0", "good", "bad"),
        ("text 1", "bad", "good"),  # gained; text 2 is right on both sides
    ]
    assert (flips[0].label, flips[0].default_probability, flips[0].tuned_probability) == ("good", 0.8, 0.2)


def test_of_equally_many_seeds_the_more_probable_answer_counts() -> None:
    default = np.array([[[0.1, 0.9]], [[0.6, 0.4]]])
    tuned = np.array([[[0.9, 0.1]], [[0.4, 0.6]]])
    (flip,) = find_flips(_test_rows(1), ("bad", "good"), default, tuned)
    assert (flip.default, flip.tuned) == ("good", "bad")


def test_a_cell_that_a_spreadsheet_would_run_begins_with_an_apostrophe(tmp_path: Path) -> None:
    texts = ["=1+1", "+1", "-1", "@SUM(1)", "\t=1", "\r=1", "'=1", "'quoted'", '참 재미있다, "최고"\n두 줄']
    flips = [Flip(text, "=label", "=label", 0.75, "좋음", 0.25) for text in texts]
    path = tmp_path / "study" / "flips.csv"
    write_flips(path, flips)
    raw = path.read_bytes().decode("utf-8-sig")
    for mark in "=+-@\t\r":
        assert not any(f"{before}{mark}" in raw for before in ("\n", '\n"', ",", ',"'))
    assert '\n"\'=1+1","\'=label","\'=label",0.75,"좋음",0.25\n' in raw
    assert path.read_bytes().startswith(b'\xef\xbb\xbf"text","label","default","default_probability",')
    assert read_flips(path) == flips
    assert [found.name for found in path.parent.iterdir()] == ["flips.csv"]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1))
def test_every_text_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.getbasetemp() / "any-flips.csv"
    flips = [Flip(text, text, text, 0.5, text, 0.5) for text in texts]
    write_flips(path, flips)
    assert read_flips(path) == flips


def test_no_flips_are_a_file_without_rows_in_place_of_the_last(tmp_path: Path) -> None:
    write_flips(tmp_path / "flips.csv", [Flip("a", "b", "b", 1.0, "c", 0.0)])
    write_flips(tmp_path / "flips.csv", [])
    assert read_flips(tmp_path / "flips.csv") == []
