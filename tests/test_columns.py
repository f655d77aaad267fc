"""Which columns can be the text or the label, by their names and by what they hold."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from hpsearch.columns import Survey, guess_label, guess_text, survey
from hpsearch.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

TEXTS = [f"some words about thing {i}" for i in range(60)]
FILE = Path("a.csv")


def seen(tmp_path: Path, **cells: Sequence[Any]) -> Survey:
    path = tmp_path / "a.jsonl"
    records = [dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True)]
    path.write_text("\n".join(json.dumps(record, default=str) for record in records), encoding="utf-8")
    return survey(path, "auto")


def cycle(*values: Any) -> list[Any]:
    return [values[i % len(values)] for i in range(60)]


NO_LABELS: dict[str, list[Any]] = {
    "all different": list(range(60)),
    "one value": cycle("a"),
    "fractions": cycle(0.5, 1.0, 2.25),
    "fractions with a comma": cycle("0,5", "1,0"),
    "days": cycle("2024-01-05", "2024-01-06"),
    "Korean days": cycle("2024년 1월 5일", "2024.01.06"),
    "days of elsewhere": cycle("31/12/2024", "1/2/24"),
    "moments": cycle("2024-01-05T10:00:00+09:00", "2024-01-06 11:00"),
    "links": cycle("https://a.b/c", "http://d.e"),
    "lists": cycle([1], [2]),
    "mostly blank": cycle("a", "b", *[""] * 4),
    "51 values": [str(i % 51) for i in range(60)],
}
LABELS: dict[str, list[Any]] = {
    "words": cycle("a", "b"),
    "numbers": cycle(0, 1, 2),
    "whole numbers written as floats": cycle(1.0, 2.0),
    "truth": cycle(True, False),
    "stars": cycle("★", "★★", "★★★"),
    "30 values": [str(i % 30) for i in range(60)],
    "years": cycle(2023, 2024),
}


@pytest.mark.parametrize("values", NO_LABELS.values(), ids=NO_LABELS)
def test_these_are_no_labels(values: list[Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds the label"):
        guess_label(FILE, seen(tmp_path, text=TEXTS, label=values), text="text")


@pytest.mark.parametrize("values", LABELS.values(), ids=LABELS)
def test_these_can_be_labels(values: list[Any], tmp_path: Path) -> None:
    guess = guess_label(FILE, seen(tmp_path, text=TEXTS, x=values), text="text")
    assert (guess.column, guess.certainty, guess.others) == ("x", "likely", ())


@pytest.mark.parametrize(
    "values",
    [
        list(range(60)), [f"2024-01-{i % 28 + 1:02d} {i}" for i in range(60)], [f"https://a.b/{i}" for i in range(60)],
        cycle("a recurring text", "another one", "a third one"), [[text] for text in TEXTS],
    ],
    ids=["numbers", "dates", "links", "recurring", "lists"],
)  # fmt: skip
def test_these_are_no_texts(values: list[Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds the text"):
        guess_text(FILE, seen(tmp_path, text=values, label=cycle(0, 1)))


@pytest.mark.parametrize(
    ("names", "best", "certainty"),
    [
        (("text", "title"), "text", "sure"),
        (("title", "REVIEW"), "REVIEW", "sure"),
        (("title", "customerReview"), "customerReview", "sure"),
        (("제목", "리뷰내용"), "리뷰내용", "sure"),
        (("review_text", "text"), "text", "sure"),  # the whole name counts for more than a part of it
        (("title", "summary"), "summary", "a guess"),  # the longer one
        (("title", "context"), "context", "a guess"),  # no part of a word counts
        (("sentence", "question"), "question", "a guess"),
    ],
)
def test_a_telling_name_comes_before_length(names: tuple[str, str], best: str, certainty: str, tmp_path: Path) -> None:
    longer = [f"{text}, and more of it" for text in TEXTS]
    cells = {names[0]: longer if best == names[0] and certainty == "sure" else TEXTS, names[1]: longer}
    guess = guess_text(FILE, seen(tmp_path, **cells, label=cycle(0, 1)))
    assert (guess.column, guess.certainty) == (best, certainty)
    assert guess.others == tuple(name for name in names if name != best)


def test_a_column_that_is_rarely_the_label_comes_last(tmp_path: Path) -> None:
    cells = {"split": cycle("a", "b"), "lang": cycle("ko"), "kind": cycle("x", "y", "z"), "사용자": cycle(*"abcd")}
    guess = guess_label(FILE, seen(tmp_path, text=TEXTS, **cells), text="text")
    assert (guess.column, guess.certainty, guess.others) == ("kind", "a guess", ("사용자", "split"))


def test_a_column_with_blanks_comes_after_one_without(tmp_path: Path) -> None:
    cells = {"flag": cycle("x", "y", "x", "y", ""), "kind": cycle("x", "y", "z")}
    guess = guess_label(FILE, seen(tmp_path, text=TEXTS, **cells), text="text")
    assert (guess.column, guess.others) == ("kind", ("flag",))


def test_keys_that_some_records_lack_are_no_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    records = [{"text": text, "label": i % 2, **({} if i == 50 else {"tag": i % 2})} for i, text in enumerate(TEXTS)]
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    found = survey(path, "auto")
    assert found.columns == ("text", "label")
    assert guess_label(path, found, text="text").column == "label"


def test_labels_are_counted_over_all_rows_and_texts_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpsearch.columns._N_SAMPLED", 20)
    found = seen(tmp_path, text=TEXTS, label=["a"] * 55 + ["b"] * 5)
    assert found.values["label"] == {"a": 55, "b": 5}
    assert len(found.sample) == 20
    assert len({record["text"] for record in found.sample} - set(TEXTS[:20])) > 5  # from everywhere
    assert found == seen(tmp_path, text=TEXTS, label=["a"] * 55 + ["b"] * 5)  # the same each time


def test_dates_of_parquet_are_dates(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    days = cycle(datetime.date(2024, 1, 5), datetime.date(2024, 1, 6))
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": TEXTS, "label": days, "kind": cycle("a", "b")}), path)
    assert guess_label(path, survey(path, "auto"), text="text").others == ()
