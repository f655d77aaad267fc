"""A corpus of bad and odd data files: the whole message that each one gets, or the counts by which it was read.

`test_data.py` has the files whose only fault is plain: bad bytes, ragged rows, stray quotes, missing columns. Here are
those that are something else than their name says, that hide what is wrong, or that would lose or merge rows silently.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow
import pytest
from click.testing import CliRunner
from pyarrow import parquet

from hpsearch.cli import cli
from hpsearch.config import DataConfig
from hpsearch.data import load_search_data, load_test
from hpsearch.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

N = 30  # rows of a file that has nothing else to say: 24 for training, 3 and 3


def rows(n: int = N, first: int = 0) -> str:
    """Return csv rows whose texts are all different."""
    return "".join(f"text {i},{('even', 'odd')[i % 2]}\n" for i in range(first, first + n))


def labelled(*labels: str, n: int = N) -> str:
    """Return a csv file whose labels come in turn."""
    return "text,label\n" + "".join(f"text {i},{labels[i % len(labels)]}\n" for i in range(n))


def objects(*values: str, n: int = N, text: str = '"text {i}"') -> list[str]:
    """Return JSON objects whose labels, given as JSON, come in turn."""
    return [f'{{"text": {text.replace("{i}", str(i))}, "label": {values[i % len(values)]}}}' for i in range(n)]


def as_list(lines: list[str]) -> str:
    return "[" + ",\n".join(lines) + "]"


def as_parquet(**columns: Any) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


def as_zip(**files: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


PLAIN = "text,label\n" + rows()
TEXTS = [f"text {i}" for i in range(N)]
LABELS = ["even", "odd"] * (N // 2)
ALL_IN_TRAINING = {"train_rows": N - 1, "validation_rows": 1, "test_rows": 1}  # of N + 1 rows
TWO = {"labels": {"even": "0", "odd": "1"}}
COLUMNS = "; set data.text_column and data.label_column"
ALIKE = "FILE, column 'label': expected labels that differ by more than case, invisible characters or the way a " \
    "number is written, got {}; mend the rows, or name each value in data.labels"  # fmt: skip
NO_PLAIN_VALUE = "expected text or a number, got {}; write the text itself into the column, or name another column"
NO_LIST = "FILE: expected a list of objects, got {}; write one list of objects, or one object a line in a file that " \
    "ends in .jsonl"  # fmt: skip


@dataclass(frozen=True, slots=True)
class Refused:
    """A file and everything that is said of it; FILE stands for its path."""

    id: str
    name: str
    content: bytes | str
    message: str
    settings: dict[str, Any] = field(default_factory=dict)


ANOTHER_KIND = [
    Refused(
        "UTF-16, no mark", "a.csv", PLAIN.encode("utf-16-le"),
        "FILE: expected text in UTF-8, got UTF-16 without its mark; convert it, for example with iconv -f UTF-16LE -t "
        "UTF-8",
    ),
    Refused(
        "UTF-16, big end first", "a.json", as_list(objects("1", "2")).encode("utf-16-be"),
        "FILE: expected text in UTF-8, got UTF-16 without its mark; convert it, for example with iconv -f UTF-16LE -t "
        "UTF-8",
    ),
    Refused(
        "UTF-16 with its mark", "a.jsonl", "\n".join(objects("1", "2")).encode("utf-16"),
        "FILE: expected text in UTF-8, got UTF-16; convert it, for example with iconv -f UTF-16 -t UTF-8",
    ),
    Refused(
        "zero bytes", "a.csv", bytes(4096),
        "FILE: expected text in UTF-8, got zero bytes, as a crash or a full disk leaves them; restore the file",
    ),
    Refused(
        "gzip", "a.csv", gzip.compress(PLAIN.encode()), "FILE: expected text in UTF-8, got a gzip archive; unpack it"
    ),
    Refused(
        "zstd", "a.jsonl", b"\x28\xb5\x2f\xfd" + bytes(range(64)),
        "FILE: expected text in UTF-8, got a zstd archive; unpack it",
    ),
    Refused(
        "a spreadsheet", "a.csv", as_zip(**{"xl/workbook.xml": "<workbook/>"}),
        "FILE: expected text in UTF-8, got a zip archive or a spreadsheet; unpack it, or export the sheet as CSV in "
        "UTF-8",
    ),
    Refused(
        "an old spreadsheet", "a.tsv", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504),
        "FILE: expected text in UTF-8, got an Excel sheet; export the sheet as CSV in UTF-8",
    ),
    Refused(
        "parquet named csv", "a.csv", as_parquet(text=TEXTS, label=LABELS),
        "FILE: expected text in UTF-8, got a parquet file; name it .parquet",
    ),
    Refused(
        "Git LFS", "a.csv", "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "FILE: expected text in UTF-8, got a pointer of Git LFS; fetch the file with git lfs pull",
    ),
    Refused(
        "a page of an error", "a.csv", "<!doctype html>\n<title>404</title>\n",
        f"FILE: expected a column 'text', got '<!doctype html>'{COLUMNS}",
    ),
    Refused(
        "an archive's ending", "a.csv.gz", gzip.compress(PLAIN.encode()),
        "data.train: expected a file that ends in .csv, .tsv, .txt, .json, .jsonl, .parquet, got 'a.csv.gz'",
    ),
    Refused(
        "jsonl named parquet", "a.parquet", "\n".join(objects("1", "2")),
        "FILE: expected a parquet file, got: Parquet magic bytes not found in footer. Either the file is corrupted or "
        "this is not a parquet file.",
    ),
    Refused(
        "bytes that are no text, after lone CR", "a.csv", PLAIN.replace("\n", "\r").encode() + b"\xb0\xa1,odd\r",
        "FILE, line 32: expected UTF-8, got the byte 0xb0; convert it, for example with iconv -f CP949 -t UTF-8",
    ),
]  # fmt: skip

HEADERS = [
    Refused(
        "two byte order marks", "a.csv", b"\xef\xbb\xbf" * 2 + PLAIN.encode(),
        f"FILE: expected a column 'text', got '\\ufefftext', 'label'{COLUMNS}; did you mean '\\ufefftext'?",
    ),
    Refused(
        "a zero byte", "a.csv", "te\0xt,label\n" + rows(),
        f"FILE: expected a column 'text', got 'te\\x00xt', 'label'{COLUMNS}; did you mean 'te\\x00xt'?",
    ),
    Refused(
        "an escape sequence", "a.csv", "\x1b[2Jtext,label\n" + rows(),
        f"FILE: expected a column 'text', got '\\x1b[2Jtext', 'label'{COLUMNS}; did you mean '\\x1b[2Jtext'?",
    ),
    Refused("blank cells", "a.csv", " , \n" + rows(), f"FILE: expected a column 'text', got ' ', ' '{COLUMNS}"),
    Refused("an empty line first", "a.csv", "\n" + PLAIN, f"FILE: expected a column 'text', got no columns{COLUMNS}"),
    Refused(
        "capitals", "a.csv", "Text,Label\n" + rows(),
        f"FILE: expected a column 'text', got 'Text', 'Label'{COLUMNS}; did you mean 'Text'?",
    ),
    Refused(
        "a space", "a.csv", "text, label\n" + rows(),
        f"FILE: expected a column 'label', got 'text', ' label'{COLUMNS}; did you mean ' label'?",
    ),
    Refused(
        "decomposed Hangul", "a.csv", "\u1102\u1161,label\n" + rows(),
        f"FILE: expected a column '나', got '\u1102\u1161', 'label'{COLUMNS}", {"text_column": "나"},
    ),
    Refused(
        "none at all", "a.csv", rows(),
        f"FILE: expected a column 'text', got 'text 0', 'even'{COLUMNS}; did you mean 'text 0'?",
    ),
    Refused(
        "semicolons", "a.csv", PLAIN.replace(",", ";"),
        "FILE, line 1: expected columns with ',' between them, as in every .csv file, got one column and ';' in its "
        "name: 'text;label'; write it with ',' between the cells, as pandas does: "
        "read_csv(FILE, sep=';').to_csv(NEW_FILE, sep=',', index=False)",
    ),
    Refused(
        "tabs in csv", "a.csv", PLAIN.replace(",", "\t"),
        "FILE, line 1: expected columns with ',' between them, as in every .csv file, got one column and '\\t' in its "
        "name: 'text\\tlabel'; rename it so that it ends in .tsv",
    ),
    Refused(
        "commas in tsv", "a.tsv", PLAIN,
        "FILE, line 1: expected columns with '\\t' between them, as in every .tsv file, got one column and ',' in its "
        "name: 'text,label'; rename it so that it ends in .csv",
    ),
    Refused(
        "label twice", "a.csv", "text,label,label\na,b,c\n", f"FILE: expected a column 'label', got it twice{COLUMNS}"
    ),
    Refused(
        "five thousand columns", "a.csv", ",".join(f"c{i}" for i in range(5000)) + "\n",
        f"FILE: expected a column 'text', got {', '.join(repr(f'c{i}') for i in range(20))} and 4,980 more{COLUMNS}",
    ),
]  # fmt: skip

ROWS = [
    Refused(
        "ragged after a cell of two lines", "a.csv", 'text,label\n"one\ntwo",odd\na,b,c\n',
        "FILE, line 4: expected 2 cells as in the header, got 3; quote cells that hold the delimiter ','",
    ),
    Refused(
        "ragged after lone CR", "a.csv", "text,label\ra,odd\rb\r",
        "FILE, line 3: expected 2 cells as in the header, got 1; quote cells that hold the delimiter ','",
    ),
    Refused(
        "ragged after empty lines", "a.tsv", "text\tlabel\n\n\na\todd\t\n",
        "FILE, line 4: expected 2 cells as in the header, got 3; quote cells that hold the delimiter '\\t'",
    ),
    Refused(
        "a line of one space", "a.csv", PLAIN + " \n",
        "FILE, line 32: expected 2 cells as in the header, got 1; quote cells that hold the delimiter ','",
    ),
    Refused(
        "two rows", "a.csv", "text,label\na,x\nb,y\n",
        "FILE: expected at least the 1 training + 1 validation + 1 test rows asked for, got 2 rows; "
        "set data.train_rows, data.validation_rows or data.test_rows lower",
    ),
    Refused(
        "test and validation equal to training", "a.csv", PLAIN,
        "FILE: expected training rows with a text, got none of 30 (0 blank, 30 also in another split); "
        "give the splits rows of their own",
        {"validation": "a.csv", "test": "a.csv"},
    ),
]  # fmt: skip

LABELLING = [
    Refused(
        "capitals", "a.csv", labelled("odd", "even", "odd", "Odd"), ALIKE.format("'odd' in line 2 and 'Odd' in line 5")
    ),
    Refused(
        "an invisible character", "a.csv", labelled("odd", "even", "odd\u200b"),
        ALIKE.format("'odd' in line 2 and 'odd\\u200b' in line 7"),
    ),
    Refused(
        "a zero byte", "a.csv", PLAIN + "more,odd\0\n", ALIKE.format("'odd' in line 3 and 'odd\\x00' in line 32"),
        ALL_IN_TRAINING,
    ),
    Refused(
        "whole numbers as real ones", "a.csv", labelled("0", "1", "1.0"),
        ALIKE.format("'1.0' in line 7 and '1' in line 9"),
    ),
    Refused(
        "digits of another script", "a.jsonl", "\n".join(objects('"1"', '"2"', '"\uff11"')),
        ALIKE.format("'1' in line 1 and '\uff11' in line 6"),
    ),
    Refused(
        "a very long one", "a.csv", PLAIN + f"more,{'y' * 100_000}\n",
        f"FILE, line 32, column 'label': expected one of the labels 'even', 'odd', got '{'y' * 76}...; mend the row, "
        f"or name it in data.labels",
        {**TWO, **ALL_IN_TRAINING},
    ),
    Refused(
        "an escape sequence", "a.csv", PLAIN + "more,\x1b]0;title\x07\n",
        "FILE, line 32, column 'label': expected one of the labels 'even', 'odd', got '\\x1b]0;title\\x07'; mend the "
        "row, or name it in data.labels",
        {**TWO, **ALL_IN_TRAINING},
    ),
    Refused(
        "one more than the configuration has", "a.json",
        as_list([*objects('"even"', '"odd"'), *objects('"both"', n=1)]),
        "FILE, item 31, column 'label': expected one of the labels 'even', 'odd', got 'both'; mend the row, or name it "
        "in data.labels",
        {**TWO, **ALL_IN_TRAINING},
    ),
    Refused(
        "one more than thirty", "a.csv", PLAIN.replace("even", "0").replace("odd", "30"),
        "FILE, line 31, column 'label': expected one of the labels "
        f"{', '.join(repr(str(i)) for i in range(20))} and 10 more, got '30'; mend the row, or name it in data.labels",
        {"labels": {str(i): f"name {i}" for i in range(30)}},
    ),
    Refused(
        "blank in a list", "a.json", as_list([*objects('"even"', '"odd"'), '{"text": "more", "label": NaN}']),
        "FILE, item 31, column 'label': expected a label, got a blank cell", ALL_IN_TRAINING,
    ),
    Refused(
        "only one", "a.csv", labelled("same"),
        "FILE, column 'label': expected at least two labels among the 24 training rows, got 'same' only; a classifier "
        "needs examples of each",
    ),
]  # fmt: skip

JSON = [
    Refused("an object around the list", "a.json", f'{{"data": {as_list(objects("1"))}}}', NO_LIST.format("dict")),
    Refused("a number", "a.json", "5", NO_LIST.format("int")),
    Refused(
        "jsonl named json", "a.json", "\n".join(objects("1", "2")),
        "FILE, line 2: expected JSON, got: Extra data; if it has one object a line, name it .jsonl",
    ),
    Refused("json named jsonl", "a.jsonl", as_list(objects("1")).replace("\n", ""),
            "FILE, line 1: expected an object, got list"),
    Refused(
        "an object over several lines in jsonl", "a.jsonl", '{\n"text": "a",\n"label": 1\n}\n',
        "FILE, line 1: expected JSON, got: Expecting property name enclosed in double quotes",
    ),
    Refused(
        "two objects on a line", "a.jsonl", '{"text": "a", "label": 1}{"text": "b", "label": 2}\n',
        "FILE, line 1: expected JSON, got: Extra data",
    ),
    Refused("cut off", "a.json", as_list(objects("1", "2"))[:-40],
            "FILE, line 29: expected JSON, got: Unterminated string starting at"),
    Refused(
        "a comma after the last object", "a.json", '[{"text": "a", "label": 1},\n]',
        "FILE, line 2: expected JSON, got: Expecting value",
    ),
    Refused(
        "a key twice in a list", "a.json", as_list([*objects("1", "2"), '{"text": "a", "label": 1, "text": "b"}']),
        "FILE, item 31: expected each key once, got 'text' twice",
    ),
    Refused(
        "a key twice in a line", "a.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "label": 1, "label": 2}\n',
        "FILE, line 2: expected each key once, got 'label' twice",
    ),
    Refused("a text that is an object", "a.json", as_list(objects("1", "2", text='{"ko": "a"}')),
            f"FILE, item 1, column 'text': {NO_PLAIN_VALUE.format('an object')}"),
    Refused("a text that is a list", "a.jsonl", "\n".join(objects("1", "2", text='["a", "b"]')),
            f"FILE, line 1, column 'text': {NO_PLAIN_VALUE.format('a list')}"),
    Refused("a label that is a list", "a.jsonl", "\n".join(objects("[1]", "[2]")),
            f"FILE, line 1, column 'label': {NO_PLAIN_VALUE.format('a list')}"),
    Refused(
        "half a character in a label", "a.jsonl", '{"text": "a", "label": "\\udc00"}',
        "FILE, line 1: expected Unicode text, got half a character such as \\ud83d; mend the row",
    ),
]  # fmt: skip

PARQUET = [
    Refused(
        "bytes", "a.parquet", as_parquet(text=[text.encode() for text in TEXTS], label=LABELS),
        f"FILE, row 1, column 'text': {NO_PLAIN_VALUE.format('bytes')}",
    ),
    Refused(
        "lists", "a.parquet", as_parquet(text=[None, *([text] for text in TEXTS[1:])], label=LABELS),
        f"FILE, row 2, column 'text': {NO_PLAIN_VALUE.format('a list')}",
    ),
    Refused(
        "structures", "a.parquet", as_parquet(text=TEXTS, label=[{"stars": label} for label in LABELS]),
        f"FILE, row 1, column 'label': {NO_PLAIN_VALUE.format('an object')}",
    ),
    Refused(
        "nulls only", "a.parquet", as_parquet(text=pyarrow.nulls(N, pyarrow.string()), label=LABELS),
        "FILE: expected training rows with a text, got none of 24 (24 blank, 0 also in another split)",
    ),
]  # fmt: skip

GROUPS = {
    "another kind": ANOTHER_KIND, "header": HEADERS, "row": ROWS, "label": LABELLING, "json": JSON, "parquet": PARQUET,
}  # fmt: skip


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=f"{group}: {case.id}") for group, cases in GROUPS.items() for case in cases]
)
def test_a_bad_file_gets_this_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Refused) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / case.name
    path.write_bytes(case.content if isinstance(case.content, bytes) else case.content.encode())
    with pytest.raises(DataError) as raised:
        load_search_data(DataConfig(train=str(path), **case.settings))
    assert str(raised.value).replace(str(path), "FILE") == case.message


# --- Files that are no ordinary ones ----------------------------------------------------------------------------------


def test_a_folder_and_a_pipe_are_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")  # to open it would wait for a writer for ever
    (tmp_path / "circle.csv").symlink_to("circle.csv")
    for name, kind in (("folder.csv", "the folder"), ("pipe.csv", "a device or pipe,")):
        with pytest.raises(DataError, match=f"^data.train: expected a file, got {kind} {tmp_path / name}$"):
            load_search_data(DataConfig(train=str(tmp_path / name)))
    with pytest.raises(DataError, match=r"expected a file, got '.*circle.csv', which is not there"):
        load_search_data(DataConfig(train=str(tmp_path / "circle.csv")))


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """Return a folder that everyone may enter, and be a user without rights in it where the tests are run by root."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    (folder / "a.csv").write_text(PLAIN, encoding="utf-8")
    (folder / "a.csv").chmod(0o000)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)
        yield folder
    finally:
        os.seteuid(user)
        shutil.rmtree(folder)


def test_a_file_that_may_not_be_read_is_named(as_nobody: Path) -> None:
    with pytest.raises(DataError) as raised:
        load_search_data(DataConfig(train=str(as_nobody / "a.csv")))
    assert str(raised.value) == f"{as_nobody / 'a.csv'}: expected a readable file, got: Permission denied"


# --- Odd files that are read ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Read:
    """A file, and by which counts it is read."""

    id: str
    name: str
    content: bytes | str
    labels: tuple[str, ...] = ("even", "odd")
    n_rows: int = N
    n_blank: int = 0
    n_overlaps: int = 0
    settings: dict[str, Any] = field(default_factory=dict)


LONG = "가" * 7_000_000  # 21 MB in UTF-8
ODD = [
    Read("line ends of every kind", "a.csv", "text,label\r\na,odd\rb,even\n" + rows(), n_rows=N + 2),
    Read("empty lines", "a.csv", PLAIN.replace("text 7", "\n\r\n\ntext 7")),
    Read("a zero byte in a text", "a.csv", PLAIN.replace("text 7", "te\0xt 7")),
    Read("a byte order mark in the middle", "a.csv", PLAIN.replace("text 7", "\ufefftext 7")),
    Read("escape sequences", "a.csv", PLAIN.replace("text ", "\x1b[31mtext\x1b[0m\x07")),
    Read("emoji of several code points", "a.csv",
         PLAIN.replace("text ", "\U0001f469\u200d\U0001f467 \U0001f3f3\ufe0f\u200d\U0001f308")),
    Read("right to left, with overrides", "a.csv", PLAIN.replace("text ", "\u202e\u05e9\u05dc\u05d5\u202c \u0627")),
    Read("twenty megabytes in one cell", "a.csv", PLAIN + f"{LONG},odd\n", n_rows=N + 1),
    Read("blank in every way", "a.json", as_list([*objects('"even"', '"odd"'), *(
        f'{{"text": {blank}, "label": "odd"}}' for blank in ('""', '" \\t\\n"', '"\\u3000"', "null", "NaN")
    )]), n_rows=N + 5, n_blank=5),
    Read("a text without a visible character is a text", "a.csv", PLAIN + "\u200b,odd\n\u00ad,odd\n", n_rows=N + 2),
    Read("ids twice", "a.csv", "id,text,label\n" + "".join(f"{i // 2},{line}\n" for i, line in
                                                           enumerate(rows().splitlines()))),
    Read("rows twice, of which some stand in other splits", "a.csv", PLAIN + rows(), n_rows=2 * N, n_overlaps=10),
    Read("rows twice, kept", "a.csv", PLAIN + rows(), n_rows=2 * N, settings={"keep_overlaps": True}),
    Read("one text with both labels", "a.csv", labelled("x", "y").replace("text 1,", "text 0,"), ("x", "y"),
         settings={"keep_overlaps": True}),
    Read("white space around labels", "a.csv", labelled("odd", " odd", "odd\u3000", "even")),
    Read("Unicode forms of a label", "a.csv", labelled("\u1102\u1161", "나", "x"), ("x", "나")),
    Read("numbers that JSON writes in two ways", "a.json", as_list(objects("1", "1.0", '"1"', "0")), ("0", "1")),
    Read("truth that JSON writes in two ways", "a.json", as_list(objects("true", '"true"', "false")),
         ("false", "true")),
    Read("look-alikes that are named", "a.csv", labelled("odd", "Odd"), ("small", "large"),
         settings={"labels": {"odd": "small", "Odd": "large"}}),
    Read("a label of the configuration that no row has", "a.csv", PLAIN, ("0", "1", "2"),
         settings={"labels": {"even": "0", "odd": "1", "both": "2"}}),
    Read("numbers as texts", "a.json", as_list(objects('"even"', '"odd"', text="{i}"))),
    Read("jsonl with lone CR", "a.jsonl", "\r".join(objects('"even"', '"odd"'))),
    Read("jsonl with line ends of Unicode in a text", "a.jsonl", "\n".join(
        objects('"even"', '"odd"', text='"one\u2028two\x85{i}"'))),
    Read("half a character in another column", "a.jsonl", "\n".join(
        line.replace("{", '{"note": "\\ud83d", ', 1) for line in objects('"even"', '"odd"'))),
    Read("parquet: dictionaries, nulls, truth values", "a.parquet", as_parquet(
        text=pyarrow.array([*TEXTS, None]).dictionary_encode(), label=[*([False, True] * (N // 2)), None]),
        ("false", "true"), n_rows=N + 1, n_blank=1),
    Read("parquet: large strings, small integers", "a.parquet", as_parquet(
        text=pyarrow.array(TEXTS, pyarrow.large_string()), label=pyarrow.array([0, 1] * (N // 2), pyarrow.uint8())),
        ("0", "1")),
]  # fmt: skip


@pytest.mark.parametrize("case", ODD, ids=lambda case: case.id)
def test_an_odd_file_is_read_and_its_rows_add_up(tmp_path: Path, case: Read) -> None:
    path = tmp_path / case.name
    path.write_bytes(case.content if isinstance(case.content, bytes) else case.content.encode())
    config = DataConfig(train=str(path), **case.settings)
    data = load_search_data(config)
    splits = (data.train, data.validation, load_test(config))
    assert data.label_names == case.labels
    assert sum(split.n_sampled for split in splits) == case.n_rows
    assert sum(split.n_blank for split in splits) == case.n_blank
    assert sum(split.n_overlaps for split in splits) == case.n_overlaps
    assert sum(len(split) for split in splits) == case.n_rows - case.n_blank - case.n_overlaps
    assert len({row for split in splits for row in split.rows.tolist()}) == sum(len(split) for split in splits)


def test_a_text_of_twenty_megabytes_comes_back_whole(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(PLAIN + f"{LONG},odd\n", encoding="utf-8")
    data = load_search_data(DataConfig(train=str(tmp_path / "a.csv"), test_rows=1))
    assert LONG in {*data.train.texts, *data.validation.texts}


def test_validation_rows_that_all_stand_in_training_are_dropped_from_training_alone(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(PLAIN, encoding="utf-8")
    (tmp_path / "valid.csv").write_text("text,label\n" + rows(10), encoding="utf-8")
    (tmp_path / "test.csv").write_text("text,label\n" + rows(6, first=N), encoding="utf-8")
    files = {name: str(tmp_path / f"{name}.csv") for name in ("train", "test")}
    data = load_search_data(DataConfig(**files, validation=str(tmp_path / "valid.csv")))
    assert (data.train.n_sampled, data.train.n_overlaps, len(data.train)) == (30, 10, 20)
    assert (data.validation.n_sampled, data.validation.n_overlaps, len(data.validation)) == (10, 0, 10)


# --- Through the command line -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", [ANOTHER_KIND[0], HEADERS[2], LABELLING[6], JSON[8], PARQUET[0]], ids=lambda case: case.id
)
@pytest.mark.usefixtures("own_process")
def test_the_command_line_prints_the_message_and_nothing_that_controls_a_terminal(
    toy_yaml: Path, tmp_path: Path, case: Refused
) -> None:
    path = tmp_path / case.name
    path.write_bytes(case.content if isinstance(case.content, bytes) else case.content.encode())
    sizes = {"train_rows": None, "validation_rows": None, "test_rows": None}
    settings = {**sizes, **case.settings, "train": str(path)}
    overrides = [part for key, value in settings.items() for part in ("--set", f"data.{key}={json.dumps(value)}")]
    result = CliRunner().invoke(cli, ["inspect", "--config", str(toy_yaml), *overrides])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == f"error: {case.message.replace('FILE', str(path))}\n"
    assert all(character.isprintable() for character in result.stderr.removesuffix("\n"))


@pytest.mark.usefixtures("own_process")
def test_the_command_line_shows_the_counts(toy_yaml: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(PLAIN + rows() + " ,odd\n" * 6, encoding="utf-8")
    sizes = [part for name in ("train", "validation", "test") for part in ("--set", f"data.{name}_rows=null")]
    arguments = ["inspect", "--json", "--config", str(toy_yaml), "--set", f"data.train={path}", *sizes]
    splits = json.loads(CliRunner().invoke(cli, arguments).stdout)["splits"]
    assert sum(split["sampled"] for split in splits.values()) == 2 * N + 6
    assert sum(split["blank"] for split in splits.values()) == 6
    for split in splits.values():
        assert split["sampled"] == split["rows"] + split["blank"] + split["dropped_overlaps"]
        assert split["rows"] == sum(split["label_counts"].values())
