"""Which column of a file holds the text and which the label: guessed from names and values, and said how sure.

A column can be the **label** if it has 2 to 50 values, each on two rows or more on average, and these are no dates and
no numbers with a fraction, which are scores. It can be the **text** if nearly all its values have letters, they are no
dates or links, and at least half of them are different. Among several, a telling name comes first (`label`, `review`,
`라벨`, `리뷰`; as the whole name, then as a part of it); then for the text the longest on average, and for the label
the one with the fewest blanks, then with the fewest values.

A file is read once, up to a million rows. Files sorted by label are common, so label values are counted over all of
them; texts are looked at in a random sample.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from datetime import date
from itertools import islice
from typing import TYPE_CHECKING, Any

from hpsearch.data import as_label, as_text, records_of
from hpsearch.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

MOST_ROWS = 1_000_000
"""Rows that are looked at, so that a file of any size takes seconds."""
_N_SAMPLED = 2_000
_MOST_LABELS = 50
_NEARLY_ALL = 0.9
_NO_LABELS = ("numbers with a fraction", "dates", "links", "lists")

_TEXT_NAMES = (
    "text", "texts", "review", "reviews", "document", "sentence", "content", "contents", "comment", "comments", "body",
    "message", "utterance", "tweet", "post", "article", "description", "question", "텍스트", "리뷰", "문장", "본문",
    "내용", "댓글", "발화", "문서", "후기", "질문",
)  # fmt: skip
LABEL_NAMES = (
    "label", "labels", "class", "category", "sentiment", "target", "polarity", "topic", "intent", "emotion", "tag", "y",
    "라벨", "레이블", "감정", "감성", "분류", "정답", "클래스", "카테고리", "범주", "주제", "의도",
)  # fmt: skip
"""Names that say that a column is a label."""
_OTHER_NAMES = (
    "id", "idx", "index", "no", "number", "split", "fold", "set", "source", "lang", "language", "user", "author",
    "name", "url", "date", "time", "year", "month", "version", "번호", "출처", "언어", "작성자", "날짜",
)  # fmt: skip
"""Names of columns that have few values and are rarely the label."""

_DATE = re.compile(
    r"\D?(19|20)\d\d\s?[-./년]?\s?[01]?\d\s?([-./월]?\s?[0-3]?\d.*)?|[0-3]?\d[-./][0-3]?\d[-./](\d\d){1,2}.*"
)
_LINK = re.compile(r"\w+://\S+|www\.\S+")
_LETTER = re.compile(r"[^\W\d_]")


@dataclass(frozen=True, slots=True)
class Guess:
    """Which column, and why."""

    column: str
    certainty: str
    """`given`, `sure` (its name and its values say so), `likely` (one of them does), or `a guess` (others could be)."""
    reason: str
    others: tuple[str, ...]
    """Other columns that it could be, the likeliest first."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What was seen of a file."""

    columns: tuple[str, ...]
    """Those that every row has."""
    n_rows: int
    """Rows looked at."""
    is_complete: bool
    """Whether these are all."""
    sample: tuple[dict[str, Any], ...]
    """Some of them, drawn at random."""
    values: dict[str, Counter[str]]
    """How often each value of a column stands, read as a label; only for columns that have few enough."""


def survey(path: Path, quoting: str, *, wanted: Iterable[str] = ()) -> Survey:
    """Read a file once, as a search reads it.

    Args:
        path: As `data_file` returns it.
        quoting: As `DataConfig.quoting`.
        wanted: Columns whose values are counted however many they are.

    Raises:
        DataError: If the file is not as expected; with file and line.
    """
    wanted = set(wanted)
    records = records_of(path, quoting)
    rng = random.Random(0)  # the same file gives the same configuration
    sample: list[dict[str, Any]] = []
    counts: dict[str, Counter[str]] = {}
    columns: dict[str, None] = {}
    n_rows = 0
    for n_rows, record in enumerate(islice(records, MOST_ROWS), start=1):
        if n_rows == 1:
            columns = dict.fromkeys(record)
            counts = {name: Counter() for name in columns}
        elif record.keys() != columns.keys():  # of JSON
            columns = {name: None for name in columns if name in record}
            counts = {name: counter for name, counter in counts.items() if name in record}
        for name, counter in list(counts.items()):
            counter[as_label(record[name])] += 1
            if len(counter) > _MOST_LABELS + 1 and name not in wanted:  # one of them may be the blank
                del counts[name]
        # Algorithm R: every row is as likely to be in the sample.
        if n_rows <= _N_SAMPLED:
            sample.append(record)
        elif (place := rng.randrange(n_rows)) < _N_SAMPLED:
            sample[place] = record
    if not n_rows:
        raise DataError(f"{path}: expected rows of data, got none")
    return Survey(tuple(columns), n_rows, next(records, None) is None, tuple(sample), counts)


def guess_text(path: Path, seen: Survey, *, label: str | None = None) -> Guess:
    """Return the column that holds the text.

    Args:
        path: What messages call the file.
        seen: The file.
        label: A column that it cannot be.

    Raises:
        DataError: If no column can be; with what each holds.
    """
    described = {name: _describe(seen, name) for name in seen.columns}
    able = [name for name, column in described.items() if column.can_be_text and name != label]
    if not able:
        raise _nothing(path, "text", "letters, most values different", described.values())
    return _first(able, _TEXT_NAMES, lambda name: -described[name].mean_length, "the longest texts")


def guess_label(path: Path, seen: Survey, *, text: str) -> Guess:
    """Return the column that holds the label.

    Args:
        path: What messages call the file.
        seen: The file.
        text: A column that it cannot be.

    Raises:
        DataError: If no column can be; with what each holds.
    """
    described = {name: _describe(seen, name) for name in seen.columns}
    able = [name for name, column in described.items() if column.can_be_label and name != text]
    if not able:
        expected = f"2 to {_MOST_LABELS} values that recur, no dates and no numbers with a fraction"
        raise _nothing(path, "label", expected, described.values())
    return _first(
        able,
        LABEL_NAMES,
        lambda name: (_telling(name, _OTHER_NAMES) > 0, described[name].blank_share, described[name].n_values),
        "the fewest values",
    )


def _first(able: Sequence[str], names: Sequence[str], order: Callable[[str], Any], otherwise: str) -> Guess:
    """Choose among columns that all could be it."""
    best, *others = sorted(able, key=lambda name: (-_telling(name, names), order(name)))
    rank = _telling(best, names)
    rivals = [name for name in others if _telling(name, names) == rank]
    if rank and not rivals:
        certainty, reason = "sure", "its name says so, and its values fit"
    elif rank:
        certainty, reason = "a guess", f"of the columns whose names say so, the one with {otherwise}"
    elif not others:
        certainty, reason = "likely", "the only column whose values fit"
    else:
        certainty, reason = "a guess", f"of the columns whose values fit, the one with {otherwise}"
    return Guess(best, certainty, reason, tuple(others))


def _telling(name: str, names: Sequence[str]) -> int:
    """Return 2 if a column is called by one of the names, 1 if a part of its name is one, else 0."""
    plain = unicodedata.normalize("NFC", name).strip().casefold()
    if plain in names:
        return 2
    parts = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).casefold())
    # Korean names are written in one word, such as 리뷰내용.
    return int(any(part in names for part in parts) or any(word in plain for word in names if not word.isascii()))


# --- What a column holds ----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Column:
    """What is known of a column."""

    name: str
    n_values: int | None
    """Different values that are not blank; None for too many to be labels."""
    blank_share: float
    distinct_share: float
    """Of the values in the sample."""
    mean_length: float
    """Characters."""
    kind: str
    """`text`, `marks and numbers`, `whole numbers`, `blank` or one of `_NO_LABELS`."""
    recurs: bool
    """Whether its values stand on two rows or more on average."""

    @property
    def can_be_label(self) -> bool:
        few = self.n_values is not None and 2 <= self.n_values <= _MOST_LABELS
        return few and self.recurs and self.kind not in _NO_LABELS and self.blank_share < 0.5

    @property
    def can_be_text(self) -> bool:
        return self.kind == "text" and self.distinct_share >= 0.5 and self.blank_share < 0.5

    def __str__(self) -> str:
        parts = [self.kind, f"{self.distinct_share:.0%} of the values different"]
        if self.n_values is not None:
            parts.append(f"{self.n_values} values")
        if self.kind == "text":
            parts.append(f"{self.mean_length:.0f} characters on average")
        if self.blank_share:
            parts.append(f"{self.blank_share:.0%} blank")
        return f"{self.name!r}: {', '.join(parts)}"


def _describe(seen: Survey, name: str) -> _Column:
    cells = [record[name] for record in seen.sample]
    values = [text for cell in cells if (text := as_text(cell).strip())]
    counter = seen.values.get(name)
    n_values = len(counter) - ("" in counter) if counter is not None else None
    n_filled = counter.total() - counter[""] if counter is not None else 0
    return _Column(
        name=name,
        n_values=n_values,
        blank_share=1 - len(values) / len(cells),
        distinct_share=len(set(values)) / len(values) if values else 0.0,
        mean_length=sum(map(len, values)) / len(values) if values else 0.0,
        kind=_kind([cell for cell in cells if as_text(cell).strip()]),
        recurs=n_values is not None and n_filled >= 2 * n_values,
    )


def _kind(cells: Sequence[Any]) -> str:
    if not cells:
        return "blank"
    if any(isinstance(cell, dict | list) for cell in cells):
        return "lists"
    if all(isinstance(cell, date) for cell in cells):
        return "dates"
    texts = [as_label(cell) for cell in cells]  # 1.0 is the whole number 1 there
    numbers = [number for number in map(_number, texts) if number is not None]
    if len(numbers) == len(texts):
        # Eight digits can be a date, but a column of few values that look like 2024 is as well a class.
        return "whole numbers" if all(number.is_integer() for number in numbers) else "numbers with a fraction"
    if _share(texts, _DATE.fullmatch) >= _NEARLY_ALL:
        return "dates"
    if _share(texts, _LINK.fullmatch) >= _NEARLY_ALL:
        return "links"
    return "text" if _share(texts, _LETTER.search) >= _NEARLY_ALL else "marks and numbers"


def _share(texts: Sequence[str], test: Callable[[str], object]) -> float:
    return sum(bool(test(text)) for text in texts) / len(texts)


def _number(text: str) -> float | None:
    if not re.fullmatch(r"[-+]?\d+([.,]\d+)?(e[-+]?\d{1,3})?", text, re.IGNORECASE):
        return None
    return float(text.replace(",", "."))


def _nothing(path: Path, role: str, expected: str, columns: Iterable[_Column]) -> DataError:
    found = "\n".join(f"  {column}" for column in columns) or "  no column that every row has"
    return DataError(
        f"{path}: expected a column that holds the {role} ({expected}), got:\n{found}\n"
        f"If one of them is it all the same, name it with --{role}-column"
    )
