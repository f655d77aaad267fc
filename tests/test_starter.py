"""The configuration that `init` writes for files of many shapes: what it guesses, and that a search runs with it."""

from __future__ import annotations

import csv
import datetime
import json
import unicodedata
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow
import pytest
from pyarrow import parquet

from hpsearch import columns, report, starter
from hpsearch.config import load_config, shipped_configs
from hpsearch.data import load_search_data, load_test
from hpsearch.errors import DataError, UsageError
from hpsearch.template import OWN_DATA, Template
from tests.conftest import toy_rows, write_csv
from tests.test_end_to_end import hpsearch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from hpsearch.starter import Starter

N_ROWS = 150
POLARITY = {"bad": "0", "good": "1"}
NFD_LABEL = unicodedata.normalize("NFD", "라벨")
THREE = ("complaint", "praise", "question")


def rows() -> list[tuple[str, str]]:
    return toy_rows(N_ROWS, seed=3)


def table(path: Path, header: Sequence[str], cells: Sequence[Sequence[object]], **dialect: Any) -> None:
    with path.open("w", encoding=dialect.pop("encoding", "utf-8"), newline="") as file:
        csv.writer(file, **dialect).writerows([header, *cells])


# --- Files of many shapes ---------------------------------------------------------------------------------------------


def english_csv_with_an_id(path: Path) -> None:
    table(path, ["id", "text", "label"], [(i, text, label) for i, (text, label) in enumerate(rows())])


def korean_tsv(path: Path) -> None:
    names = {"bad": "부정", "good": "긍정"}
    cells = [(i, f"정말 {text} 영화", names[label]) for i, (text, label) in enumerate(rows())]
    table(path, ["번호", "리뷰", "감정"], cells, delimiter="\t")


def cells_of_several_lines(path: Path) -> None:
    cells = [(f'{text}\nand, as they "say",\nmore', label) for text, label in rows()]
    table(path, ["comment", "class"], cells, quoting=csv.QUOTE_ALL)


def quotes_that_are_plain(path: Path) -> None:
    texts = [
        f'"{text}' if i % 9 == 0 else f'{text}" said' if i % 9 == 5 else text for i, (text, _) in enumerate(rows())
    ]
    lines = [f"{i}\t{text}\t{POLARITY[label]}" for i, (text, (_, label)) in enumerate(zip(texts, rows(), strict=True))]
    path.write_text("\n".join(["id\tdocument\tlabel", *lines]) + "\n", encoding="utf-8")


def spreadsheet(path: Path) -> None:
    """Write what Excel saves as `CSV UTF-8`: a mark at the start, and lines that end in two characters."""
    table(path, ["Review", "Sentiment"], [(text, POLARITY[label]) for text, label in rows()], encoding="utf-8-sig")


def json_lines_with_names_beside(path: Path) -> None:
    records: list[dict[str, Any]] = [
        {"text": text, "label": int(POLARITY[label]), "label_text": label, "idx": i, "meta": {"n": [i]}}
        for i, (text, label) in enumerate(rows())
    ]
    del records[7]["meta"]
    path.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")


def parquet_of_three_classes(path: Path) -> None:
    texts = [text for text, _ in rows()]
    parquet.write_table(
        pyarrow.table({
            "created": [datetime.datetime(2024, 1, 1 + i % 28) for i in range(N_ROWS)],
            "confidence": [(i % 10) / 7 for i in range(N_ROWS)],
            "utterance": texts,
            "embedding": [[0.1, 0.2]] * N_ROWS,
            "intent": [THREE[i % 3] for i in range(N_ROWS)],
        }),
        path,
    )  # fmt: skip


def json_with_truth_values(path: Path) -> None:
    records = [{"body": text, "is_toxic": label == "bad"} for text, label in rows()]
    path.write_text(json.dumps(records), encoding="utf-8")


def few_of_one_label(path: Path) -> None:
    rare = [row for row in toy_rows(400, seed=4) if row[1] == "bad"][:12]
    common = [row for row in toy_rows(400, seed=5) if row[1] == "good"][:188]
    write_csv(path, [(text, "spam" if label == "bad" else "ham") for text, label in rare + common])


def odd_names(path: Path) -> None:
    cells = [(text, f"user {i}", "ja" if label == "good" else "nein") for i, (text, label) in enumerate(rows())]
    table(path, ["Q1: (free, answer) #1", "who?", "überzeugt: - x"], cells)


def sorted_by_stars_among_dates_and_scores(path: Path) -> None:
    ordered = sorted(rows(), key=lambda row: row[1])
    cells = [
        (f"2024-03-{i % 28 + 1:02d}", i / 7, "train", f"{text} {i}", 1 if label == "bad" else 5)
        for i, (text, label) in enumerate(ordered)
    ]
    table(path, ["date", "score", "split", "content", "stars"], cells)


def decomposed_names(path: Path) -> None:
    labels = {name: unicodedata.normalize("NFD", korean) for name, korean in {"bad": "싫음", "good": "좋음"}.items()}
    table(path, [unicodedata.normalize("NFD", "문장"), NFD_LABEL], [(text, labels[label]) for text, label in rows()])


@dataclass(frozen=True, slots=True)
class Shape:
    """A file and what is to be guessed of it."""

    name: str
    write: Callable[[Path], None]
    text: str
    label: str
    labels: dict[str, str]
    quoting: str = "auto"
    certainty: tuple[str, str] = ("sure", "sure")
    others: tuple[str, ...] = field(default=())
    """Of the label."""

    def __str__(self) -> str:
        return self.write.__name__


SHAPES = [
    Shape("reviews.csv", english_csv_with_an_id, "text", "label", {"bad": "bad", "good": "good"}),
    Shape("리뷰.tsv", korean_tsv, "리뷰", "감정", {"부정": "부정", "긍정": "긍정"}),
    Shape("a.csv", cells_of_several_lines, "comment", "class", {"bad": "bad", "good": "good"}, "standard"),
    Shape("a.txt", quotes_that_are_plain, "document", "label", {"0": "0", "1": "1"}, "none"),
    Shape("a.csv", spreadsheet, "Review", "Sentiment", {"0": "negative", "1": "positive"}),
    Shape(
        "a.jsonl", json_lines_with_names_beside, "text", "label", {"0": "bad", "1": "good"}, others=("label_text",),
    ),
    Shape("a.parquet", parquet_of_three_classes, "utterance", "intent", {name: name for name in THREE}),
    Shape(
        "a.json", json_with_truth_values, "body", "is_toxic", {"false": "not toxic", "true": "toxic"},
        certainty=("sure", "likely"),
    ),
    Shape("a.csv", few_of_one_label, "text", "label", {"ham": "ham", "spam": "spam"}),
    Shape(
        "a.csv", odd_names, "Q1: (free, answer) #1", "überzeugt: - x", {"ja": "ja", "nein": "nein"},
        certainty=("a guess", "likely"),
    ),
    Shape(
        "a.tsv.csv", sorted_by_stars_among_dates_and_scores, "content", "stars", {"1": "1", "5": "5"},
        certainty=("sure", "likely"),
    ),
    Shape(
        "a.csv", decomposed_names, unicodedata.normalize("NFD", "문장"), NFD_LABEL, {"싫음": "싫음", "좋음": "좋음"},
    ),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_configuration_is_guessed_right_and_a_search_runs_with_it(
    shape: Shape, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "_N_SAMPLED", N_ROWS // 3)  # fewer than the first label's rows in a sorted file
    shape.write(tmp_path / shape.name)
    guessed = json.loads(hpsearch(tmp_path, "init", shape.name, "--model", str(tiny_model), "--json").stdout)
    assert guessed["text_column"]["name"] == shape.text
    assert guessed["label_column"]["name"] == shape.label
    assert (guessed["text_column"]["certainty"], guessed["label_column"]["certainty"]) == shape.certainty
    assert guessed["label_column"]["others"] == list(shape.others)
    assert list(guessed["labels"].items()) == list(shape.labels.items())
    assert guessed["quoting"] == shape.quoting
    assert guessed["complete"]

    config = load_config(str(tmp_path / "my-search.yaml"))
    assert config.data.labels == shape.labels
    hpsearch(tmp_path, "run", "--config", "my-search.yaml", "--trials", "1")
    (trial,) = json.loads(hpsearch(tmp_path, "show", "my-search", "--json").stdout)["trials"]
    assert trial["state"] == "complete"
    rows_used = sum(map(sum, trial["attrs"]["confusion"]))
    assert rows_used == guessed["validation_rows"] == guessed["rows"] // 5


# --- What is written --------------------------------------------------------------------------------------------------


def propose(path: Path, **given: Any) -> Starter:
    return starter.propose(str(path), path.parent / "out.yaml", **given)


def test_all_but_the_values_is_the_shipped_configuration(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", rows())
    written = propose(tmp_path / "a.csv").yaml().splitlines()
    shipped = shipped_configs()[OWN_DATA].read_text(encoding="utf-8").splitlines()
    replaced = {"name", "max_length", "train", "text_column", "label_column", "labels", "validation_rows", "test_rows"}

    def key(line: str) -> str:
        return line.removeprefix("  ").removeprefix("# ").partition(":")[0]

    body, theirs = ([line for line in lines if not line.startswith("#")] for lines in (written, shipped))
    assert len(body) == len(theirs)
    assert {key(mine) for mine, other in zip(body, theirs, strict=True) if mine != other} == replaced
    assert "CHANGE" not in "".join(written)


def test_a_hostile_file_name_column_or_label_stays_a_value(tmp_path: Path) -> None:
    column, labels = "text\nmodel: {name: evil} # \x1b[31m", {"bad": "a: b # {c}", "good": "[d]\u2028- e"}
    path = tmp_path / "a #1: {x}.csv"
    table(path, [column, "label\x07"], [(text, labels[label]) for text, label in rows()])
    proposed = propose(path)
    starter.write(proposed)
    config = load_config(str(proposed.output))
    assert config.data.train == str(path)
    assert config.data.text_column == column
    assert set(config.data.labels or {}) == set(labels.values())
    assert set((config.data.labels or {}).values()) == {"a: b # {c}", "[d]?- e"}
    assert config.model.name == load_config(OWN_DATA).model.name
    assert "\x1b" not in proposed.yaml()
    assert "\x1b" not in report.starter_text(proposed, 80)


@pytest.mark.parametrize(
    ("text", "label", "names"),
    [
        ("text", "label", ["0", "1"]),
        ("리뷰", "라벨", ["negative", "positive"]),
        ("text", "Polarity", ["negative", "positive"]),
        ("review", "is_fake", ["not fake", "fake"]),
        ("review", "도움", ["not 도움", "도움"]),
    ],
)
def test_zero_and_one_are_named_where_the_columns_tell(text: str, label: str, names: list[str], tmp_path: Path) -> None:
    table(tmp_path / "a.csv", [text, label], [(words, POLARITY[value]) for words, value in rows()])
    assert list(propose(tmp_path / "a.csv").labels.items()) == list(zip("01", names, strict=True))


def test_many_labels_take_a_line_each(tmp_path: Path) -> None:
    names = [f"intent: #{i}" for i in range(30)]
    write_csv(tmp_path / "a.csv", [(f"{text} {i}", names[i % 30]) for i, (text, _) in enumerate(toy_rows(300, seed=1))])
    proposed = propose(tmp_path / "a.csv")
    starter.write(proposed)
    config = load_config(str(proposed.output))
    assert config.data.labels == {name: name for name in sorted(names)}
    assert max(map(len, proposed.yaml().splitlines())) < 160
    assert any("little can be said" in note for note in proposed.notes)


def test_a_template_without_the_key_is_refused() -> None:
    with pytest.raises(UsageError, match=r"expected the key data\.nonsense"):
        Template.of(OWN_DATA).set("data", "nonsense", 1, "")


# --- Splits, lengths, notes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_rows", "rarest", "validation", "test"),
    [
        (10, 0.5, 2, 2),
        (1_000, 0.5, 200, 200),
        (30_000, 0.5, 2_000, 6_000),
        (1_000_000, 0.5, 2_000, 10_000),
        (30_000, 0.01, 3_000, 6_000),
        (1_000_000, 1e-5, 10_000, 10_000),
    ],
)
def test_splits_grow_with_the_file_and_with_the_rarity_of_labels(
    n_rows: int, rarest: float, validation: int, test: int
) -> None:
    assert starter._split(n_rows, rarest) == (validation, test)


def test_inputs_are_long_enough_for_nearly_all_texts(tmp_path: Path, tiny_model: Path) -> None:
    long = " ".join(["film"] * 25)
    write_csv(tmp_path / "a.csv", [(long if i % 50 == 0 else text, label) for i, (text, label) in enumerate(rows())])
    proposed = propose(tmp_path / "a.csv", model=str(tiny_model))
    assert proposed.max_length == 32  # 27 tokens; the model's limit is 32
    assert "all of 150 texts fit, counted in tokens" in proposed.length_from
    by_characters = propose(tmp_path / "a.csv")
    assert by_characters.max_length == 128  # 124 characters and two tokens more
    hub = propose(tmp_path / "a.csv", model="someone/else")
    assert hub.max_length is None
    assert "  # max_length:" in hub.yaml()


def test_what_is_thin_is_said(tmp_path: Path) -> None:
    few_of_one_label(tmp_path / "a.csv")
    notes = "\n".join(propose(tmp_path / "a.csv").notes)
    assert "94% of the rows have the label 'ham'" in notes
    assert "40 test rows show large differences only" in notes
    assert "'spam' 8 and 3" in notes


def test_only_the_first_rows_of_a_huge_file_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    english_csv_with_an_id(tmp_path / "a.csv")
    monkeypatch.setattr(columns, "MOST_ROWS", 100)
    proposed = propose(tmp_path / "a.csv")
    assert (proposed.n_rows, proposed.is_complete, proposed.train_rows) == (100, False, None)
    assert any("only the first" in note for note in proposed.notes)
    assert "more than 100 rows" in proposed.yaml()


def test_of_two_ways_to_read_quotes_the_one_with_known_labels_is_taken(tmp_path: Path) -> None:
    """Both readings give records throughout: one has whole records inside a cell, the other is plain."""
    lines = [f"{text}\t{label}" for text, label in rows()]
    lines[10:12] = ['"so so\tbad', 'never again"\tgood']
    path = tmp_path / "a.tsv"
    path.write_text("\n".join(["text\tlabel", *lines]), encoding="utf-8")
    assert propose(path).quoting == "none"
    assert propose(path, quoting="standard").n_rows == N_ROWS - 1
    lines[10:12] = ['"so so\tfilm', 'never\tagain"\tgood']
    path.write_text("\n".join(["text\tlabel", *lines]), encoding="utf-8")
    with pytest.raises(DataError, match=r"expected (2 cells|one record a line)"):
        propose(path, quoting="none")
    assert propose(path).quoting == "standard"


def test_named_columns_are_taken_as_they_are(tmp_path: Path) -> None:
    cells = [(text, text[::-1], i % 60) for i, (text, _) in enumerate(toy_rows(240, seed=1))]
    table(tmp_path / "a.csv", ["text", "reversed", "number"], cells)
    with pytest.raises(DataError, match="holds the label"):
        propose(tmp_path / "a.csv")
    proposed = propose(tmp_path / "a.csv", text_column="reversed", label_column="number")
    assert (proposed.text.column, proposed.text.certainty) == ("reversed", "given")
    starter.write(proposed)
    config = load_config(str(proposed.output))
    assert len(load_search_data(config.data).label_names) == 60
    assert len(load_test(config.data)) == 48


# --- Refusals ---------------------------------------------------------------------------------------------------------


def test_nothing_that_is_there_is_replaced(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", rows())
    proposed = propose(tmp_path / "a.csv")
    starter.write(proposed)
    before = proposed.output.read_bytes()
    with pytest.raises(UsageError, match="expected a free name, got one that is taken"):
        starter.write(proposed)
    with pytest.raises(UsageError, match="expected a free name, got one that is taken"):
        propose(tmp_path / "a.csv")
    assert proposed.output.read_bytes() == before


def no_label(path: Path) -> None:
    cells = [(i, text, i / 7, f"2024-01-{i % 28 + 1:02d}") for i, (text, _) in enumerate(rows())]
    table(path, ["id", "text", "score", "when"], cells)


def no_text(path: Path) -> None:
    table(path, ["id", "label", "link"], [(i, label, f"https://a.b/{i}") for i, (_, label) in enumerate(rows())])


def no_header(path: Path) -> None:
    table(path, *(lambda cells: (cells[0], cells[1:]))([(text, POLARITY[label]) for text, label in rows()]))


def blank_labels(path: Path) -> None:
    write_csv(path, [(text, "" if i == 4 else label) for i, (text, label) in enumerate(rows())])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            no_label,
            r"holds the label \(2 to 50 values.*'score': numbers with a fraction.*'when': dates.*--label-column",
        ),
        (no_text, r"holds the text.*'id': whole numbers.*'link': links.*--text-column"),
        (no_header, r"line 1: expected the columns' names, got what looks like a row: '[01]' is a label too"),
        (blank_labels, r"line 6, column 'label': expected one of the labels 'bad', 'good', got ''"),
        (lambda path: table(path, ["text", "label"], rows(), delimiter=";"), r"';' in its name.*read_csv\(FILE, sep="),
        (lambda path: table(path, ["text", "label"], rows(), delimiter="\t"), r"rename it so that it ends in \.tsv"),
        (lambda path: path.write_bytes("text,label\n한글,1\n".encode("cp949")), "line 2: expected UTF-8"),
        (lambda path: path.write_text("text,label\n", encoding="utf-8"), "expected rows of data, got none"),
        (lambda path: path.write_text("text,label\na,b\nc,d,e\n", encoding="utf-8"), "line 3: expected 2 cells"),
    ],
)
def test_where_guessing_is_impossible_it_says_what_was_found(
    write: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    write(tmp_path / "a.csv")
    result = hpsearch(tmp_path, "init", "a.csv", code=2)
    assert result.stdout == ""
    with pytest.raises(DataError, match=f"(?s){message}"):
        propose(tmp_path / "a.csv")
    assert not (tmp_path / "my-search.yaml").exists()
