"""Which rows a search sees, in every file format, that the test rows stay sealed, and what is said of a bad file."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pyarrow
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from hpsearch.config import DataConfig
from hpsearch.data import SearchData, Split, load_search_data, load_test, overlap_key
from hpsearch.errors import DataError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

FORMATS = ("csv", "tsv", "txt", "json", "jsonl", "parquet")
Row = tuple[Any, Any]


def numbered(n_rows: int, first: int = 0) -> list[Row]:
    """Return rows whose texts are all different and tell their number."""
    return [(f"text {i}", "odd" if i % 2 else "even") for i in range(first, first + n_rows)]


def write(path: Path, rows: Sequence[Row], header: tuple[str, str] = ("text", "label")) -> str:
    """Write rows in the format of the suffix and return the path."""
    suffix = path.suffix.lstrip(".")
    if suffix == "parquet":
        columns = zip(*rows, strict=True)
        parquet.write_table(pyarrow.table(dict(zip(header, map(list, columns), strict=True))), path)
    elif suffix in ("json", "jsonl"):
        records = [dict(zip(header, row, strict=True)) for row in rows]
        lines = [json.dumps(record, ensure_ascii=False) for record in records]
        path.write_text("\n".join(lines) if suffix == "jsonl" else f"[{','.join(lines)}]", encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, delimiter="," if suffix == "csv" else "\t").writerows([header, *rows])
    return str(path)


def config(train: str, **settings: Any) -> DataConfig:
    return DataConfig(train=train, **settings)


def same(one: Split, other: Split) -> bool:
    return (one.texts, one.labels.tolist(), one.rows.tolist(), one.n_sampled, one.n_blank, one.n_overlaps) == (
        other.texts, other.labels.tolist(), other.rows.tolist(), other.n_sampled, other.n_blank, other.n_overlaps,
    )  # fmt: skip


def same_data(one: SearchData, other: SearchData) -> bool:
    return (
        same(one.train, other.train)
        and same(one.validation, other.validation)
        and one.label_names == other.label_names
        and one.fingerprint() == other.fingerprint()
    )


# --- Which rows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_rows", "k"), [(40, 12), (1000, 300), (150, 146)])
def test_training_rows_are_those_that_datasets_shuffles_to_the_front(tmp_path: Path, n_rows: int, k: int) -> None:
    train = write(tmp_path / "a.csv", numbered(n_rows))
    data = load_search_data(config(train, train_rows=k, validation_rows=2, test_rows=2))
    shuffled = datasets.Dataset.from_dict({"row": list(range(n_rows))}).shuffle(seed=42)
    assert data.train.rows.tolist() == shuffled.select(range(k))["row"][:]
    assert data.train.texts == tuple(f"text {row}" for row in shuffled.select(range(k))["row"])


def test_rows_of_a_file_of_its_own_are_sampled_by_the_same_rule(tmp_path: Path) -> None:
    train = write(tmp_path / "a.csv", numbered(40))
    own = write(tmp_path / "b.csv", numbered(60, first=100))
    settings = config(train, validation=own, validation_rows=20, test=own, test_rows=30, shuffle_seed=7)
    order = datasets.Dataset.from_dict({"row": list(range(60))}).shuffle(seed=7)["row"][:]
    assert load_search_data(settings).validation.rows.tolist() == order[:20]
    assert load_test(settings).rows.tolist() == order[:30]


def test_validation_and_test_are_the_rows_that_follow_the_training_rows(tmp_path: Path) -> None:
    settings = config(write(tmp_path / "a.csv", numbered(50)), train_rows=20, validation_rows=10, test_rows=15)
    data, test = load_search_data(settings), load_test(settings)
    order = np.random.default_rng(42).permutation(50).tolist()
    assert data.train.rows.tolist() == order[:20]
    assert data.validation.rows.tolist() == order[20:30]
    assert test.rows.tolist() == order[30:45]
    assert test.texts == tuple(f"text {row}" for row in order[30:45])


def test_without_sizes_validation_and_test_take_a_tenth_each_and_training_the_rest(tmp_path: Path) -> None:
    settings = config(write(tmp_path / "a.csv", numbered(57)))
    data, test = load_search_data(settings), load_test(settings)
    assert (len(data.train), len(data.validation), len(test)) == (47, 5, 5)
    assert sorted([*data.train.rows, *data.validation.rows, *test.rows]) == list(range(57))


def test_a_size_of_training_does_not_change_which_rows_come_first(tmp_path: Path) -> None:
    train = write(tmp_path / "a.csv", numbered(50))
    few, more = (
        load_search_data(config(train, train_rows=k, validation_rows=5, test_rows=5)).train.rows.tolist()
        for k in (10, 30)
    )
    assert more[:10] == few


# --- Blanks and overlaps ----------------------------------------------------------------------------------------------


def test_blank_texts_are_dropped_after_sampling_and_counted(tmp_path: Path) -> None:
    rows = numbered(40)
    order = np.random.default_rng(42).permutation(40).tolist()
    for row, blank in zip((order[3], order[5], order[12], order[17]), ("", " \t ", "\u3000", "\n"), strict=True):
        rows[row] = (blank, "odd")
    train = write(tmp_path / "a.json", rows)
    settings = config(train, train_rows=10, validation_rows=5, test_rows=5)
    data, test = load_search_data(settings), load_test(settings)
    assert data.train.rows.tolist() == [row for i, row in enumerate(order[:10]) if i not in (3, 5)]
    assert (data.train.n_sampled, data.train.n_blank, len(data.train)) == (10, 2, 8)
    assert (data.validation.n_sampled, data.validation.n_blank, len(data.validation)) == (5, 1, 4)
    assert (test.n_sampled, test.n_blank, len(test)) == (5, 1, 4)


def test_the_label_of_a_blank_text_is_never_looked_at(tmp_path: Path) -> None:
    train = write(tmp_path / "a.csv", [*numbered(30), ("", "no label of the task"), (" ", "")])
    assert load_search_data(config(train)).label_names == ("even", "odd")


def overlapping(tmp_path: Path, **settings: Any) -> DataConfig:
    """Return a configuration in which 3 training texts stand in validation and 2 in test, one of them in both."""
    train = write(tmp_path / "train.csv", numbered(20))
    validation = write(tmp_path / "validation.csv", [*numbered(6, first=100), *numbered(3)])
    texts = [("text 2 ", "odd"), ("\u00a0text 5", "odd")]  # the same to `overlap_key`
    test = write(tmp_path / "test.csv", [*numbered(6, first=200), *texts])
    return config(train, validation=validation, test=test, **settings)


def test_training_texts_of_other_splits_are_dropped_and_counted(tmp_path: Path) -> None:
    data = load_search_data(overlapping(tmp_path))
    assert sorted(data.train.rows.tolist()) == [row for row in range(20) if row not in (0, 1, 2, 5)]
    assert (data.train.n_sampled, data.train.n_overlaps, len(data.train)) == (20, 4, 16)
    assert data.validation.n_overlaps == 0


def test_keep_overlaps_keeps_them(tmp_path: Path) -> None:
    data = load_search_data(overlapping(tmp_path, keep_overlaps=True))
    assert sorted(data.train.rows.tolist()) == list(range(20))
    assert data.train.n_overlaps == 0


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        pytest.param(" a\u3000", "a", True, id="outer white space"),
        pytest.param("\u1112\u1161\u11ab", "\ud55c", True, id="decomposed Hangul"),
        pytest.param("a  b", "a b", False, id="inner white space"),
        pytest.param("A", "a", False, id="case"),
    ],
)
def test_texts_count_as_the_same_by_composed_unicode_without_outer_space(
    one: str, other: str, *, expected: bool
) -> None:
    assert (overlap_key(one) == overlap_key(other)) is expected


texts = st.sampled_from(["", " ", "\u3000", *"abcdefghijklmnop", " a", "b ", 'same, "quoted"', "two\nlines", "나"])
many_rows = st.lists(st.tuples(texts, st.sampled_from(["x", "y"])), min_size=12, max_size=60)
sizes = st.none() | st.integers(1, 4)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=many_rows, train_rows=st.none() | st.integers(2, 6), validation_rows=sizes, test_rows=sizes,
    seed=st.integers(0, 1000), keep_overlaps=st.booleans(), form=st.sampled_from(["json", "jsonl"]),
)  # fmt: skip
def test_splits_are_disjoint_and_every_sampled_row_is_accounted_for(
    tmp_path: Path, rows: list[Row], train_rows: int | None, validation_rows: int | None, test_rows: int | None,
    seed: int, form: str, *, keep_overlaps: bool,
) -> None:  # fmt: skip
    chosen = config(
        write(tmp_path / f"a.{form}", rows), train_rows=train_rows, validation_rows=validation_rows,
        test_rows=test_rows, shuffle_seed=seed, keep_overlaps=keep_overlaps,
    )  # fmt: skip
    try:
        data, test = load_search_data(chosen), load_test(chosen)
    except DataError:
        assume(False)
    splits = (data.train, data.validation, test)
    for split in splits:
        assert split.n_sampled == len(split) + split.n_blank + split.n_overlaps
        assert [rows[row][0] for row in split.rows] == list(split.texts)
        assert [data.label_names[i] for i in split.labels] == [rows[row][1] for row in split.rows]
        assert all(text.strip() for text in split.texts)
    taken = Counter(row for split in splits for row in split.rows.tolist())
    assert max(taken.values()) == 1
    others = {overlap_key(text) for split in splits[1:] for text in split.texts}
    assert keep_overlaps or not others & {overlap_key(text) for text in data.train.texts}


# --- Labels and formats -----------------------------------------------------------------------------------------------

KINDS: dict[str, tuple[Any, Any]] = {"whole numbers": (0, 1), "words": ("no", "yes"), "real numbers": (0.0, 1.0)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_the_same_splits(tmp_path: Path, form: str, kind: str) -> None:
    rows = [(text, KINDS[kind][label == "odd"]) for text, label in numbered(40)]
    rows[7] = ('쉼표, "따옴표" 그리고 <br>\\n 역슬래시', rows[7][1])
    rows[8] = (None if form in ("json", "jsonl", "parquet") else "", rows[8][1])
    chosen = config(write(tmp_path / f"a.{form}", rows), validation_rows=8, test_rows=8)
    data, test = load_search_data(chosen), load_test(chosen)
    order = np.random.default_rng(42).permutation(40).tolist()
    for split, drawn in ((data.train, order[:24]), (data.validation, order[24:32]), (test, order[32:])):
        kept = [row for row in drawn if row != 8]
        assert split.rows.tolist() == kept
        assert split.texts == tuple(rows[row][0] for row in kept)
        assert split.labels.tolist() == [row % 2 for row in kept]
        assert split.n_blank == (8 in drawn)


@pytest.mark.parametrize("form", FORMATS)
def test_a_mapping_names_whole_numbers_in_every_format(tmp_path: Path, form: str) -> None:
    rows = [(text, int(label == "odd")) for text, label in numbered(40)]
    named = {1: "positive", 0: "negative"}
    data = load_search_data(config(write(tmp_path / f"a.{form}", rows), labels=named))
    assert data.label_names == ("positive", "negative")
    assert [data.label_names[i] for i in data.train.labels] == [
        "positive" if row % 2 else "negative" for row in data.train.rows
    ]


def test_labels_are_ordered_as_numbers_where_all_are_numbers(tmp_path: Path) -> None:
    rows = [(f"text {i}", (9, 10, 100)[i % 3]) for i in range(40)]
    assert load_search_data(config(write(tmp_path / "a.csv", rows))).label_names == ("9", "10", "100")
    rows[0] = ("text 0", "x")
    assert load_search_data(config(write(tmp_path / "a.csv", rows))).label_names == ("10", "100", "9", "x")


def test_the_order_of_numbers_beside_an_undefined_one_is_the_same_in_every_process(tmp_path: Path) -> None:
    rows = [(f"text {i}", ("1", "nan", "10", "-3", "2")[i % 5]) for i in range(60)]
    train = write(tmp_path / "a.csv", rows)
    code = "import sys; from hpsearch.config import DataConfig; from hpsearch.data import load_search_data; " \
        "print(load_search_data(DataConfig(train=sys.argv[1])).label_names)"  # fmt: skip
    seen = {_run(code, train, PYTHONHASHSEED=seed) for seed in ("1", "2", "3")}
    assert len(seen) == 1


def test_white_space_and_unicode_form_do_not_tell_labels_apart(tmp_path: Path) -> None:
    rows = [(f"text {i}", ("\u1102\u1161", "나", " 나 ", "x")[i % 4]) for i in range(40)]
    assert load_search_data(config(write(tmp_path / "a.csv", rows))).label_names == ("x", "나")


def test_whole_numbers_beside_a_missing_one_stay_whole_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    labels = pyarrow.array([0.0, 1.0] * 20 + [None], pyarrow.float64())
    parquet.write_table(pyarrow.table({"text": [f"text {i}" for i in range(40)] + [None], "label": labels}), path)
    assert load_search_data(config(str(path))).label_names == ("0", "1")


def test_columns_of_other_names_are_found_wherever_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    lines = "\n".join(f"{i},{label},2020-01-01,{text}" for i, (text, label) in enumerate(numbered(30)))
    path.write_text(f"id,stars,day,document\n{lines}\n", encoding="utf-8")
    chosen = config(str(path), text_column="document", label_column="stars")
    assert same_data(load_search_data(chosen), load_search_data(config(write(tmp_path / "b.csv", numbered(30)))))


# --- Ways to write the same text file ---------------------------------------------------------------------------------


def as_csv(rows: Sequence[Row], **options: Any) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n", **options).writerows([("text", "label"), *rows])
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(as_csv(numbered(30)).encode(), id="plain"),
        pytest.param(as_csv(numbered(30)).encode("utf-8-sig"), id="byte order mark"),
        pytest.param(as_csv(numbered(30)).replace("\n", "\r\n").encode(), id="CRLF"),
        pytest.param(as_csv(numbered(30)).replace("\n", "\r").encode(), id="CR"),
        pytest.param(as_csv(numbered(30)).replace("\n", "\n\n").encode(), id="empty lines"),
        pytest.param(as_csv(numbered(30)).rstrip("\n").encode(), id="no last line end"),
        pytest.param(as_csv(numbered(30), quoting=csv.QUOTE_ALL).encode(), id="everything quoted"),
        pytest.param(as_csv(numbered(30), quoting=csv.QUOTE_ALL).encode("utf-8-sig"), id="mark before a quote"),
    ],
)
def test_the_way_a_csv_file_is_written_does_not_matter(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    plain = load_search_data(config(write(tmp_path / "plain.json", numbered(30))))
    assert same_data(load_search_data(config(str(path))), plain)


@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_json_may_have_a_byte_order_mark_and_windows_line_ends(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"a.{form}"
    plain = load_search_data(config(write(path, numbered(30))))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    assert same_data(load_search_data(config(str(path))), plain)


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        pytest.param('"two\nlines"', "two\nlines", id="line break"),
        pytest.param('"three\r\nlines\r\nhere"', "three\r\nlines\r\nhere", id="CRLF inside"),
        pytest.param('"she said ""no"""', 'she said "no"', id="doubled quotes"),
        pytest.param('"a, b"', "a, b", id="delimiter"),
        pytest.param('a "quoted" word', 'a "quoted" word', id="quotes inside"),
        pytest.param('5" wide', '5" wide', id="one quote inside"),
        pytest.param('""""', '"', id="a quote alone"),
        pytest.param("a\u2028b\x0bc\x85d", "a\u2028b\x0bc\x85d", id="line ends of Unicode"),
        pytest.param("a\x00b", "a\x00b", id="zero byte"),
        pytest.param("y" * 1_000_000, "y" * 1_000_000, id="a million characters"),
    ],
)
def test_a_cell_is_read_by_the_rules_of_csv(tmp_path: Path, cell: str, text: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(f"text,label\n{cell},odd\n".encode() + as_csv(numbered(30)).split("\n", 1)[1].encode())
    chosen = config(str(path), test_rows=1)
    data = load_search_data(chosen)
    read = dict(
        zip([*data.train.rows, *data.validation.rows], [*data.train.texts, *data.validation.texts], strict=True)
    )
    assert read[0] == text
    assert len(read) == 30


def test_the_limit_of_the_csv_module_is_put_back(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    load_search_data(config(write(tmp_path / "a.csv", numbered(30))))
    with pytest.raises(DataError, match="expected a column 'document'"):
        load_search_data(config(write(tmp_path / "a.csv", numbered(30)), text_column="document"))
    assert csv.field_size_limit() == before


NSMC_LIKE = [
    ("9976970", "아 더빙.. 진짜 짜증나네요 목소리", "0"),
    ("3819312", "흠...포스터보고 초딩영화줄....오버연기조차 가볍지 않구나", "1"),
    ("9045019", '"명작"이라는 말, 그대로', "1"),
    ("6483659", '그는 말했다 "재밌다"', "1"),
    ("5403919", "막 걸음마 뗀 3세부터 초등학교 1학년생인 8살용영화.ㅋㅋㅋ...별반개도 아까움.", "0"),
    ("7797314", "", "1"),
]


def test_a_published_tab_separated_txt_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "ratings_train.txt"
    rows = [row for i in range(8) for row in ((f"{number}{i}", text, label) for number, text, label in NSMC_LIKE)]
    lines = ["id\tdocument\tlabel", *("\t".join(row) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    names = {0: "negative", 1: "positive"}
    chosen = config(
        str(path), text_column="document", labels=names, quoting="none", keep_overlaps=True, train_rows=30,
        validation_rows=9, test_rows=9,
    )  # fmt: skip
    data, test = load_search_data(chosen), load_test(chosen)
    for split in (data.train, data.validation, test):
        assert split.texts == tuple(rows[row][1] for row in split.rows)
        assert split.labels.tolist() == [int(rows[row][2]) for row in split.rows]
    assert data.train.n_blank + data.validation.n_blank + test.n_blank == 8
    # A cell that starts with a quote and goes on after the closing one has no reading but the plain one.
    with pytest.raises(DataError, match=r"line 4: expected well-formed quoting, .* set data.quoting: none"):
        load_search_data(config(str(path), text_column="document"))


# --- A quote that swallows rows ---------------------------------------------------------------------------------------

PLAIN = as_csv(numbered(30)).split("\n", 1)[1]
PLAIN_TSV = PLAIN.replace(",", "\t")


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        pytest.param(
            "a.tsv", f'text\tlabel\n"stray\todd\n{PLAIN_TSV}say "yes" or\teven\n', r"line \d+",
            id="closed in the middle of a cell",
        ),
        pytest.param(
            "a.tsv", 'id\ttext\tlabel\n1\t"stray\todd\n2\tone\teven\n3\tends"\todd\n', "lines 2 to 4",
            id="closed at the end of a cell",
        ),
        pytest.param(
            "a.csv", f'text,label\n"stray,odd\none,even\nends",odd\n{PLAIN}', "lines 2 to 4", id="first column"
        ),
        pytest.param("a.csv", f'text,label\n{PLAIN}"stray,odd\nends",even\n', "lines 32 to 33", id="two lines"),
        pytest.param("a.csv", 'label,text\nodd,"stray\neven,ends"\n', "lines 2 to 3", id="last column"),
        pytest.param("a.csv", f'text,label\n"stray,odd\n{PLAIN}', r"line \d+", id="never closed"),
        pytest.param(
            "a.csv", f'text,label\r\n"stray,odd\r\none,even\r\nends",odd\r\n{PLAIN}', "lines 2 to 4", id="CRLF"
        ),
    ],
)  # fmt: skip
def test_a_stray_quote_that_would_swallow_rows_is_refused(tmp_path: Path, name: str, content: str, place: str) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode())
    with pytest.raises(DataError, match=rf"{re.escape(str(path))}, {place}: expected .* set data.quoting: none"):
        load_search_data(config(str(path)))


def test_a_stray_quote_is_a_plain_character_without_quoting(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f'text,label\n"stray,odd\nends",even\n{PLAIN}', encoding="utf-8")
    data = load_search_data(config(str(path), quoting="none", train_rows=30, validation_rows=1, test_rows=1))
    expected = ['"stray', 'ends"', *(text for text, _ in numbered(30))]
    assert data.train.texts == tuple(expected[row] for row in data.train.rows)
    assert data.train.n_sampled == 30


def test_a_cell_of_several_lines_with_delimiters_is_one_cell_with_standard_quoting(tmp_path: Path) -> None:
    long = "Good, I thought.\nThen, well,\nthe end."
    train = write(tmp_path / "a.csv", [(long, "odd"), *numbered(30)])
    with pytest.raises(DataError, match=r"lines 2 to 4: expected one record a line, .* else data.quoting: standard"):
        load_search_data(config(train))
    data = load_search_data(config(train, quoting="standard", keep_overlaps=True))
    assert len(data.train) + len(data.validation) == 28  # of 31, three are test rows
    assert long in {*data.train.texts, *data.validation.texts, *load_test(config(train, quoting="standard")).texts}


# --- Fingerprints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda rows: [*rows[:5], (rows[5][0], "even"), *rows[6:]], id="one label"),
        pytest.param(lambda rows: [*rows[:5], (rows[5][0] + ".", rows[5][1]), *rows[6:]], id="one text"),
        pytest.param(lambda rows: [rows[1], rows[0], *rows[2:]], id="two rows exchanged"),
        pytest.param(lambda rows: [*rows, ("text 30", "even")], id="one more row"),
        pytest.param(lambda rows: [(text, label.upper()) for text, label in rows], id="names of the labels"),
    ],
)
def test_the_fingerprint_changes_with_what_is_read(tmp_path: Path, change: Callable[[list[Row]], list[Row]]) -> None:
    rows = numbered(30)
    settings = {"train_rows": 20, "validation_rows": 9, "test_rows": 1}
    before = load_search_data(config(write(tmp_path / "a.csv", rows), **settings))
    after = load_search_data(config(write(tmp_path / "b.csv", change(rows)), **settings))
    assert after.fingerprint() != before.fingerprint()


def test_the_fingerprint_does_not_change_with_path_or_format(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    paths = [write(tmp_path / "elsewhere" / "b.csv", numbered(30))]
    paths += [write(tmp_path / f"a.{form}", numbered(30)) for form in FORMATS]
    assert len({load_search_data(config(path)).fingerprint() for path in paths}) == 1


def test_the_fingerprint_of_a_split_keeps_neighbouring_texts_apart() -> None:
    def split(*texts: str) -> Split:
        n = len(texts)
        return Split(texts, np.zeros(n, dtype=np.int64), np.arange(n), n_sampled=n, n_blank=0)

    assert split("ab", "c").fingerprint() != split("a", "bc").fingerprint()
    assert split('a", 0]["b').fingerprint() != split("a", "b").fingerprint()


# --- The seal ---------------------------------------------------------------------------------------------------------

_LISTENING = """
import sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from hpsearch.config import DataConfig
from hpsearch.data import load_search_data
load_search_data(DataConfig(train=sys.argv[1], validation=sys.argv[2], test=sys.argv[3], keep_overlaps=True))
print(*[path in opened for path in sys.argv[1:]])
"""


def _run(code: str, *arguments: str, **environment: str) -> str:
    """Return what a fresh process prints."""
    import os

    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env={**os.environ, **environment},
        check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_a_search_that_keeps_overlaps_never_opens_the_test_file(tmp_path: Path) -> None:
    train, validation, test = (write(tmp_path / f"{name}.csv", numbered(20)) for name in ("train", "valid", "test"))
    assert _run(_LISTENING, train, validation, test) == "True True False"


def test_a_search_that_drops_overlaps_reads_the_texts_of_the_test_file(tmp_path: Path) -> None:
    train, validation, test = (write(tmp_path / f"{name}.csv", numbered(20, first=i)) for i, name in
                               ((0, "train"), (100, "valid"), (200, "test")))  # fmt: skip
    assert _run(_LISTENING.replace("=True", "=False"), train, validation, test) == "True True True"


@pytest.mark.parametrize("keep_overlaps", [False, True])
def test_a_test_file_that_is_not_there_is_told_before_the_search(tmp_path: Path, *, keep_overlaps: bool) -> None:
    chosen = config(write(tmp_path / "train.csv", numbered(30)), test="nowhere.csv", keep_overlaps=keep_overlaps)
    for load in (load_search_data, load_test):
        with pytest.raises(DataError, match=r"data.test: expected a file, got 'nowhere.csv', which is not there"):
            load(chosen)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "corrupt",
    [
        pytest.param(
            lambda rows: [(text, "even" if label == "odd" else "odd") for text, label in rows], id="exchanged"
        ),
        pytest.param(lambda rows: [(text, f"unknown {i}") for i, (text, _) in enumerate(rows)], id="unknown"),
        pytest.param(lambda rows: [(text, "") for text, _ in rows], id="blank"),
    ],
)
def test_labels_of_the_test_file_change_nothing_of_a_search(
    tmp_path: Path, form: str, corrupt: Callable[[list[Row]], list[Row]]
) -> None:
    rows = numbered(40, first=15)  # some of its texts are training texts
    train = write(tmp_path / f"train.{form}", numbered(30))
    chosen = config(train, test=write(tmp_path / f"test.{form}", rows), test_rows=20)
    before = load_search_data(chosen)
    assert before.train.n_overlaps > 0
    write(tmp_path / f"test.{form}", corrupt(rows))
    assert same_data(load_search_data(chosen), before)


def test_a_test_file_without_labels_is_enough_for_a_search(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", numbered(30))
    (tmp_path / "test.csv").write_text("text\ntext 3\n", encoding="utf-8")
    chosen = config(train, test=str(tmp_path / "test.csv"))
    assert "text 3" not in load_search_data(chosen).train.texts
    with pytest.raises(DataError, match=r"test.csv: expected a column 'label', got 'text'"):
        load_test(chosen)


@pytest.mark.parametrize("label", ["even", "no label of the task", ""])
def test_labels_of_test_rows_in_the_training_file_change_nothing_of_a_search(tmp_path: Path, label: str) -> None:
    rows = numbered(50)
    chosen = config(write(tmp_path / "a.csv", rows), train_rows=20, validation_rows=10, test_rows=15)
    before = load_search_data(chosen)
    for row in load_test(chosen).rows:
        rows[row] = (rows[row][0], label)
    write(tmp_path / "a.csv", rows)
    assert same_data(load_search_data(chosen), before)


def test_rows_that_no_split_takes_change_nothing_of_a_search(tmp_path: Path) -> None:
    rows = numbered(50)
    chosen = config(write(tmp_path / "a.csv", rows), train_rows=20, validation_rows=10, test_rows=15)
    before = load_search_data(chosen)
    for row in np.random.default_rng(42).permutation(50)[45:]:
        rows[row] = ("", "no label of the task")
    write(tmp_path / "a.csv", rows)
    assert same_data(load_search_data(chosen), before)


# --- Mistakes ---------------------------------------------------------------------------------------------------------

LINES = as_csv(numbered(30))
JSONL = "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in numbered(30))
LATE = as_csv([(f"{text} {'x' * 60}", label) for text, label in numbered(3000)])


def _parquet(**columns: Any) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


def _damaged(content: bytes, first: int, last: int) -> bytes:
    return content[:first] + b"\xab" * (last - first) + content[last:]


TABLE = _parquet(text=[text for text, _ in numbered(3000)], label=[label for _, label in numbered(3000)])


@pytest.mark.parametrize(
    ("name", "content", "settings", "expected"),
    [
        pytest.param(
            "a.csv", LINES.encode() + "영화,odd\n".encode("cp949"), {},
            ", line 32: expected UTF-8, got the byte 0xbf; convert it, for example with iconv -f CP949", id="not UTF-8",
        ),
        pytest.param(
            "a.csv", LATE.encode() + b"\xff,odd\n", {}, ", line 3002: expected UTF-8, got the byte 0xff",
            id="not UTF-8, far behind",
        ),
        pytest.param("a.jsonl", JSONL + '{"text": "\udcff', {}, ", line 31: expected UTF-8", id="jsonl not UTF-8"),
        pytest.param("a.csv", LINES.encode("utf-16"), {}, ": expected text in UTF-8, got UTF-16; convert", id="UTF-16"),
        pytest.param(
            "a.csv", LINES + "a, b,odd\n", {}, ", line 32: expected 2 cells as in the header, got 3", id="ragged",
        ),
        pytest.param(
            "a.tsv", "text\tlabel\na\n", {}, ", line 2: expected 2 cells as in the header, got 1", id="short row",
        ),
        pytest.param(
            "a.csv", LINES, {"text_column": "document"},
            ": expected a column 'document', got 'text', 'label'; set data.text_column", id="missing column",
        ),
        pytest.param(
            "a.csv", "text,label,text\n" + LINES, {}, ": expected a column 'text', got it twice", id="column twice",
        ),
        pytest.param("a.csv", "", {}, ": expected a column 'text', got no columns", id="empty csv"),
        pytest.param("a.csv", "text,label\n", {}, ": expected rows of data, got none", id="header only"),
        pytest.param("a.csv", "text,label\n\n\r\n", {}, ": expected rows of data, got none", id="empty lines only"),
        pytest.param(
            "a.csv", LINES + "more,EVEN\n", {"labels": {"even": "a", "odd": "b"}, "test_rows": 1},
            ", line 32, column 'label': expected one of the labels 'even', 'odd', got 'EVEN'; mend the row",
            id="unknown label",
        ),
        pytest.param(
            "a.csv", LINES + "more,\n", {"train_rows": 29, "validation_rows": 1, "test_rows": 1},
            ", line 32, column 'label': expected a label, got a blank cell", id="blank label",
        ),
        pytest.param(
            "a.csv", LINES.replace("even", "odd"), {},
            r", column 'label': expected at least two labels among the 24 training rows, got 'odd' only",
            id="single label",
        ),
        pytest.param(
            "a.csv", as_csv([(f"text {i}", i) for i in range(60)]), {},
            ", column 'label': expected labels that recur, got 48 different values in 48 rows", id="numbers as labels",
        ),
        pytest.param(
            "a.csv", "text,label\n" + " ,odd\n,even\n" * 9, {},
            r": expected training rows with a text, got none of 16 \(16 blank, 0 also in another split\)",
            id="all blank",
        ),
        pytest.param(
            "a.csv", "text,label\n" + "same,odd\nsame,even\n" * 9, {},
            r": expected training rows with a text, got none of 16 \(0 blank, 16 also in another split\)",
            id="all the same",
        ),
        pytest.param(
            "a.csv", LINES, {"train_rows": 20, "validation_rows": 6, "test_rows": 5},
            r": expected at least the 20 training \+ 6 validation \+ 5 test rows asked for, got 30 rows; set data",
            id="too few rows",
        ),
        pytest.param(
            "a.csv", "text,label\na,odd\n", {}, ": expected at least the 1 training .* got 1 rows", id="one row",
        ),
        pytest.param(
            "a.csv", LINES, {"train_rows": 10**30}, ": expected at least the 1,000,000,000,", id="huge sample",
        ),
        pytest.param("a.json", "", {}, ", line 1: expected JSON, got: Expecting value", id="empty json"),
        pytest.param("a.json", "[]", {}, ": expected rows of data, got none", id="empty list"),
        pytest.param("a.json", '[\n{"text": "a"\n', {}, ", line 3: expected JSON, got: Expecting", id="broken json"),
        pytest.param("a.json", '{"text": "a"}', {}, ": expected a list of objects, got dict", id="json object"),
        pytest.param("a.json", "null", {}, ": expected a list of objects, got NoneType", id="json null"),
        pytest.param("a.json", "[1]", {}, ", item 1: expected an object, got int", id="list of numbers"),
        pytest.param("a.json", "[" * 100_000, {}, ", near line 1: expected JSON, got: .*recursion", id="deep json"),
        pytest.param("a.jsonl", "", {}, ": expected rows of data, got none", id="empty jsonl"),
        pytest.param("a.jsonl", JSONL + "\n{oops\n", {}, ", line 32: expected JSON, got: Expecting", id="broken jsonl"),
        pytest.param("a.jsonl", JSONL + "[]\n", {}, ", line 31: expected an object, got list", id="jsonl of lists"),
        pytest.param(
            "a.jsonl", JSONL + '{"text": "a"}', {}, ", line 31: expected a column 'label', got 'text'", id="no label",
        ),
        pytest.param(
            "a.jsonl", JSONL + '{"text": "a", "label": ' + "1" * 5000 + "}", {},
            ", near line 31: expected JSON, got: .*digits",
            id="number of 5,000 digits",
        ),
        pytest.param(
            "a.jsonl", JSONL + '{"text": "smile \\ud83d", "label": "odd"}', {},
            ", line 31: expected Unicode text, got half a character", id="half a surrogate pair",
        ),
        pytest.param("a.parquet", b"", {}, ": expected a parquet file, got: ", id="empty parquet"),
        pytest.param("a.parquet", LINES, {}, ": expected a parquet file, got: ", id="csv named parquet"),
        pytest.param("a.parquet", TABLE[: len(TABLE) // 2], {}, ": expected a parquet file, got: ", id="cut parquet"),
        pytest.param(
            "a.parquet", _damaged(TABLE, 40, 400), {}, ": expected a readable file, got: ", id="damaged pages",
        ),
        pytest.param(
            "a.parquet", _damaged(TABLE, len(TABLE) - 300, len(TABLE) - 10), {}, ": expected a .*file, got: ",
            id="damaged footer",
        ),
        pytest.param(
            "a.parquet", _parquet(a=[1]), {}, ": expected a column 'text', got 'a'", id="other parquet columns",
        ),
        pytest.param(
            "a.parquet", _parquet(text=["a", "b"] * 9, label=[None, "x"] * 9), {},
            r", row \d+, column 'label': expected a label, got a blank cell", id="null label",
        ),
        pytest.param(
            "a.parquet", _parquet(text=pyarrow.array([b"\xff"] * 9).view(pyarrow.string()), label=["x"] * 9), {},
            ": expected UTF-8, got the byte 0xff", id="parquet text not UTF-8",
        ),
        pytest.param("a.xlsx", LINES, {}, None, id="other suffix"),
        pytest.param("a", LINES, {}, None, id="no suffix"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_as_described_is_refused_with_its_place(
    tmp_path: Path, name: str, content: bytes | str, settings: dict[str, Any], expected: str | None
) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape"))
    pattern = (
        f"^{re.escape(str(path))}.*{expected}"
        if expected
        else rf"^data.train: expected a file that ends in .csv, .*.parquet, got '{name}'"
    )
    with pytest.raises(DataError, match=pattern):
        load_search_data(config(str(path), **settings))


@pytest.mark.parametrize("key", ["train", "validation", "test"])
@pytest.mark.parametrize(
    ("path", "expected"),
    [
        pytest.param(
            "nowhere.csv", "got 'nowhere.csv', which is not there .*relative paths are read from", id="missing"
        ),
        pytest.param("folder", "got the folder /", id="folder"),
        pytest.param("/dev/null", "got a device or pipe, /dev/null", id="device"),
    ],
)
def test_a_path_that_is_no_file_is_refused_with_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, path: str, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    train = write(tmp_path / "a.csv", numbered(30))
    with pytest.raises(DataError, match=f"^data.{key}: expected a file, {expected}"):
        load_search_data(DataConfig(**{"train": train, key: path}))


@pytest.mark.parametrize("path", ["~no-such-user/a.csv", f"{'a' * 300}.csv"], ids=["unknown user", "long name"])
def test_a_path_that_cannot_be_looked_up_is_refused(path: str) -> None:
    with pytest.raises(UsageError, match=r"expected a (path that can be looked up|file), got"):
        load_search_data(config(path))


def test_unknown_labels_of_validation_and_test_files_are_refused_with_their_line(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", numbered(30))
    own = write(tmp_path / "own.csv", [*numbered(5), ("more", "third")])
    with pytest.raises(DataError, match=r"own.csv, line 7, column 'label': expected one of the labels 'even', 'odd'"):
        load_search_data(config(train, validation=own, keep_overlaps=True))
    with pytest.raises(DataError, match=r"own.csv, line 7, column 'label': expected one of the labels 'even', 'odd'"):
        load_test(config(train, test=own, keep_overlaps=True))


def test_too_few_rows_of_a_file_of_its_own_are_refused(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", numbered(30))
    own = write(tmp_path / "own.csv", numbered(5, first=100))
    with pytest.raises(
        DataError, match=r"own.csv: expected at least data.validation_rows = 6 rows, got 5; set it lower"
    ):
        load_search_data(config(train, validation=own, validation_rows=6))
    with pytest.raises(DataError, match=r"own.csv: expected at least data.test_rows = 6 rows, got 5; set it lower"):
        load_test(config(train, test=own, test_rows=6))


def test_an_existing_file_is_never_taken_for_a_dataset_of_the_hub(tmp_path: Path) -> None:
    train = write(tmp_path / "a.csv", numbered(30))
    assert len(load_search_data(config(train, revision="main")).train) == 24
    with pytest.raises(DataError, match=r"data.train: expected a file, got 'reviews/b.csv', which is not there"):
        load_search_data(config("reviews/b.csv", revision="main"))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=80)
    | st.text(st.sampled_from('text,label\t"\n\r01 []{}:é\x00\\u'), max_size=80).map(
        lambda tail: ("text,label\na,0\nb,1\nc,0\nd,1\n" + tail).encode()
    ),
    form=st.sampled_from(FORMATS),
)
def test_any_file_is_read_or_refused(tmp_path: Path, content: bytes, form: str) -> None:
    path = tmp_path / f"any.{form}"
    path.write_bytes(content)
    try:
        load_search_data(config(str(path))).fingerprint()
    except DataError as error:
        message = str(error)
    else:
        message = str(path)
    assert message.startswith(str(path))
