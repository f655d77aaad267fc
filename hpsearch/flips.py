"""Flips: the test texts that one side of a comparison gets right and the other wrong, as a file that people open.

They open it in a spreadsheet, which takes a cell that begins with `=` or the like for a formula and runs it: such cells
get a leading apostrophe. The file begins with the mark by which spreadsheets know UTF-8.
"""

from __future__ import annotations

import csv
import re
from typing import TYPE_CHECKING

import numpy as np

from hpsearch.evidence import Flip
from hpsearch.folders import appearing_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from hpsearch.data import Split

    Floats = NDArray[np.float64]
    Integers = NDArray[np.int64]

_COLUMNS = ("text", "label", "default", "default_probability", "tuned", "tuned_probability")
_RUNS = re.compile(r"'*[=+\-@\t\r]")  # with apostrophes before it, so that one more can be told from the text's own


def find_flips(test: Split, label_names: Sequence[str], default: Floats, tuned: Floats) -> list[Flip]:
    """Return the flips, those that only the defaults get right first, each kind with the largest change first.

    Args:
        test: The test rows.
        label_names: Names of the classes.
        default: Class probabilities by the defaults, shape (n_seeds, n_rows, n_classes).
        tuned: Those by the tuned side.
    """
    rows = np.arange(len(test))
    answers = {side: _majority(probabilities) for side, probabilities in (("default", default), ("tuned", tuned))}
    before, after = (probabilities.mean(axis=0)[rows, test.labels] for probabilities in (default, tuned))
    lost = (answers["default"] == test.labels) & (answers["tuned"] != test.labels)
    gained = (answers["default"] != test.labels) & (answers["tuned"] == test.labels)
    order = np.lexsort((-np.abs(after - before), gained))
    return [
        Flip(
            text=test.texts[row],
            label=label_names[test.labels[row]],
            default=label_names[answers["default"][row]],
            default_probability=round(float(before[row]), 4),
            tuned=label_names[answers["tuned"][row]],
            tuned_probability=round(float(after[row]), 4),
        )
        for row in order[(lost | gained)[order]].tolist()
    ]


def write_flips(path: Path, flips: Sequence[Flip]) -> None:
    """Write flips as CSV, in place of an earlier file."""
    with appearing_file(path) as aside, aside.open("w", encoding="utf-8-sig", newline="") as file:
        # Texts in quotes, whatever they hold: left to itself, Python before 3.13 leaves a lone carriage return bare.
        writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow(_COLUMNS)
        for flip in flips:
            values = (getattr(flip, name) for name in _COLUMNS)
            writer.writerow([_defused(value) if isinstance(value, str) else value for value in values])


def read_flips(path: Path) -> list[Flip]:
    """Return the flips of a file, with their texts as they are in the data."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        return [
            Flip(
                **{name: _plain(row[name]) for name in ("text", "label", "default", "tuned")},
                default_probability=float(row["default_probability"]),
                tuned_probability=float(row["tuned_probability"]),
            )
            for row in csv.DictReader(file)
        ]


def _majority(probabilities: Floats) -> Integers:
    """Return the class that most seeds answer, of equals the more probable one; shape (n_rows,)."""
    n_classes = probabilities.shape[-1]
    votes = np.eye(n_classes)[probabilities.argmax(axis=-1)].sum(axis=0)  # (n_rows, n_classes)
    majority: Integers = (votes + probabilities.mean(axis=0) / 2).argmax(axis=-1)  # a half never outdoes a vote
    return majority


def _defused(text: str) -> str:
    return f"'{text}" if _RUNS.match(text) else text


def _plain(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and _RUNS.match(cell) else cell
