"""Labelled texts: read, checked, sampled and split.

The sampling is the tutorial's: `datasets` shuffles with `numpy.random.default_rng(seed).permutation(n)`, and the first
rows are taken. Validation rows are the next rows of the same permutation, so that no trial was trained on them. The
test split is sealed: a search reads its texts at most to keep them out of the training rows, and never its labels.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import math
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpsearch.config import PACKAGE_SCHEME, did_you_mean, resolve_path, shorten
from hpsearch.errors import DataError, HubError
from hpsearch.hub import TWO_WAYS_ON, prepare_hub

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from hpsearch.config import DataConfig

    Integers = NDArray[np.int64]

_DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
_OTHER_DELIMITERS = ",\t;|"  # what stands between cells in files that call themselves csv
_SUFFIXES = (*_DELIMITERS, ".json", ".jsonl", ".parquet")
_SURROGATE = re.compile("[\ud800-\udfff]")
_LINE_END = re.compile(r"\r\n|\r|\n")
_LINE_END_BYTES = re.compile(rb"\r\n|\r|\n")
_MAX_CELL = 2**31 - 1  # characters; the csv module's own limit of 131,072 refuses long articles
_MOST_SHOWN = 20  # labels or columns in a message
_AS_CSV = "export the sheet as CSV in UTF-8"
_NO_TEXT = {
    b"\xff\xfe": "UTF-16; convert it, for example with iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "UTF-16; convert it, for example with iconv -f UTF-16 -t UTF-8",
    b"\x1f\x8b": "a gzip archive; unpack it",
    b"\x28\xb5\x2f\xfd": "a zstd archive; unpack it",
    b"PK\x03\x04": f"a zip archive or a spreadsheet; unpack it, or {_AS_CSV}",
    b"\xd0\xcf\x11\xe0": f"an Excel sheet; {_AS_CSV}",
    b"PAR1": "a parquet file; name it .parquet",
    b"version https://git-lfs": "a pointer of Git LFS; fetch the file with git lfs pull",
}
"""What files of other kinds begin with, and what to do about them."""


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Rows of one split, blanks left out."""

    texts: tuple[str, ...]
    labels: Integers
    """Class ids, shape (len(texts),)."""
    rows: Integers
    """0-based row of each text in its source, shape (len(texts),)."""
    n_sampled: int
    """Rows drawn from the source; those not in `texts` are in the two counts below."""
    n_blank: int
    n_overlaps: int = 0
    """Rows dropped because their text also stands in another split."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.texts)

    def fingerprint(self) -> str:
        """Return a hash of the texts and labels in their order."""
        state = hashlib.sha256()
        for text, label in zip(self.texts, self.labels.tolist(), strict=True):
            state.update(json.dumps([text, label], ensure_ascii=False).encode())
        return state.hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class SearchData:
    """What a search may see."""

    train: Split
    validation: Split
    label_names: tuple[str, ...]
    """By class id."""

    def fingerprint(self) -> str:
        """Return a hash of everything that was read."""
        parts = [self.train.fingerprint(), self.validation.fingerprint(), *self.label_names]
        return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()[:16]


def load_search_data(config: DataConfig) -> SearchData:
    """Read the training and validation rows.

    Raises:
        DataError: If a file is not as described; with file, line and column.
        HubError: If a Hub dataset is named and the Hub does not answer.
    """
    source = _Source.of(config, "train")
    table = source.read(with_labels=True)
    plan = _Plan.of(config, n_rows=len(table.texts))
    labels = _label_values(config, table, plan.train)

    train = _take(table, plan.train, labels)
    if config.validation is None:
        validation = _take(table, plan.validation, labels)
    else:
        own = _Source.of(config, "validation").read(with_labels=True)
        validation = _take(own, _sample(config, "validation", len(own.texts)), labels)
    for name, split in (("training", train), ("validation", validation)):
        _check_labels(name, split, table, labels)

    if not config.keep_overlaps:
        train = _drop_overlaps(train, {*validation.texts, *_test_texts(config, table, plan)})
        _check_labels("training", train, table, labels)
    return SearchData(train=train, validation=validation, label_names=tuple(labels.values()))


def load_test(config: DataConfig) -> Split:
    """Break the seal: read the test rows. For comparisons and baselines, never for a search.

    Raises:
        DataError: If a file is not as described; with file, line and column.
        HubError: If a Hub dataset is named and the Hub does not answer.
    """
    table = _Source.of(config, "train").read(with_labels=True)
    plan = _Plan.of(config, n_rows=len(table.texts))
    labels = _label_values(config, table, plan.train)
    source = _Source.of_test(config)
    if source is None:
        test = _take(table, plan.test, labels)
        _check_labels("test", test, table, labels)
        return test
    own = source.read(with_labels=True)
    test = _take(own, _sample(config, "test", len(own.texts)), labels)
    _check_labels("test", test, own, labels)
    return test


def overlap_key(text: str) -> str:
    """Return the form in which two texts count as the same: composed Unicode, without outer white space."""
    return unicodedata.normalize("NFC", text).strip()


# --- Which rows -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Plan:
    """Row numbers that each split takes from the training source."""

    train: Integers
    validation: Integers
    test: Integers

    @classmethod
    def of(cls, config: DataConfig, *, n_rows: int) -> _Plan:
        tenth = max(1, n_rows // 10)
        carve_test = _Source.of_test(config) is None
        n_validation = (config.validation_rows or tenth) if config.validation is None else 0
        n_test = (config.test_rows or tenth) if carve_test else 0
        n_train = config.train_rows or n_rows - n_validation - n_test
        if n_train < 1 or n_train + n_validation + n_test > n_rows:
            asked = [f"{count:,} {name}" for name, count in _named(n_train, n_validation, n_test) if count]
            raise DataError(
                f"{config.train}: expected at least the {' + '.join(asked)} rows asked for, got {n_rows:,} rows; "
                f"set data.train_rows, data.validation_rows or data.test_rows lower"
            )
        order = np.random.default_rng(config.shuffle_seed).permutation(n_rows)
        train, validation, test, _ = np.split(order, np.cumsum([n_train, n_validation, n_test]))
        return cls(train=train, validation=validation, test=test)


def _named(n_train: int, n_validation: int, n_test: int) -> list[tuple[str, int]]:
    return [("training", max(n_train, 1)), ("validation", n_validation), ("test", n_test)]


def _sample(config: DataConfig, split: str, n_rows: int) -> Integers:
    """Return the rows taken from a file of the split's own, sampled as the training rows are."""
    wanted: int | None = getattr(config, f"{split}_rows")
    if wanted is not None and wanted > n_rows:
        raise DataError(
            f"{getattr(config, split) or config.train}: expected at least data.{split}_rows = {wanted:,} rows, "
            f"got {n_rows:,}; set it lower"
        )
    return np.random.default_rng(config.shuffle_seed).permutation(n_rows)[:wanted]


def _test_texts(config: DataConfig, table: _Table, plan: _Plan) -> Sequence[str]:
    """Return the texts of the test rows, without reading a label of theirs."""
    source = _Source.of_test(config)
    if source is None:
        return [table.texts[row] for row in plan.test]
    texts = source.read(with_labels=False).texts
    return [texts[row] for row in _sample(config, "test", len(texts))]


def _drop_overlaps(train: Split, other_texts: set[str]) -> Split:
    others = {overlap_key(text) for text in other_texts if text.strip()}
    keep = np.array([overlap_key(text) not in others for text in train.texts], dtype=bool)
    return Split(
        texts=tuple(text for text, kept in zip(train.texts, keep, strict=True) if kept),
        labels=train.labels[keep],
        rows=train.rows[keep],
        n_sampled=train.n_sampled,
        n_blank=train.n_blank,
        n_overlaps=int((~keep).sum()),
    )


def _take(table: _Table, rows: Integers, labels: dict[str, str]) -> Split:
    """Select rows, drop the blank ones and turn label values into class ids."""
    ids = {value: i for i, value in enumerate(labels)}
    kept = [row for row in rows.tolist() if table.texts[row].strip()]
    for row in kept:
        if table.labels[row] not in ids:
            raise DataError(
                f"{table.place(row)}, column {table.label_column!r}: expected one of the labels {_listed(ids)}, "
                f"got {shorten(table.labels[row])}; mend the row, or name it in data.labels"
            )
    return Split(
        texts=tuple(table.texts[row] for row in kept),
        labels=np.array([ids[table.labels[row]] for row in kept], dtype=np.int64),
        rows=np.array(kept, dtype=np.int64),
        n_sampled=len(rows),
        n_blank=len(rows) - len(kept),
    )


# --- Labels -----------------------------------------------------------------------------------------------------------


def _label_values(config: DataConfig, table: _Table, rows: Integers) -> dict[str, str]:
    """Return the label values of the task with their names, in the order of the class ids."""
    if config.labels is not None:
        return config.labels
    if table.label_names is not None:
        return table.label_names
    seen = {table.labels[row] for row in rows.tolist() if table.texts[row].strip()}
    blank = next((row for row in rows.tolist() if table.texts[row].strip() and not table.labels[row]), None)
    if blank is not None:
        raise DataError(f"{table.place(blank)}, column {table.label_column!r}: expected a label, got a blank cell")
    _check_alike(table, [row for row in rows.tolist() if table.texts[row].strip()])
    ordered = ordered_labels(seen)
    if len(ordered) > 1 and len(ordered) > max(20, len(rows) // 2):
        raise DataError(
            f"{table.name}, column {table.label_column!r}: expected labels that recur, got {len(ordered):,} different "
            f"values in {len(rows):,} rows; is data.label_column the right one?"
        )
    return {value: value for value in ordered}


def _check_alike(table: _Table, rows: Sequence[int]) -> None:
    """Refuse labels that a person would take for the same: two classes where one was meant would change every score."""
    first_rows = {table.labels[row]: row for row in sorted(rows, reverse=True)}
    alike: dict[str | float, str] = {}
    for label in sorted(first_rows, key=first_rows.__getitem__):
        other = alike.setdefault(_plain_form(label), label)
        if other != label:
            raise DataError(
                f"{table.name}, column {table.label_column!r}: expected labels that differ by more than case, "
                f"invisible characters or the way a number is written, got {shorten(other)} in "
                f"{table.unit(first_rows[other])} and {shorten(label)} in {table.unit(first_rows[label])}; "
                f"mend the rows, or name each value in data.labels"
            )


def _plain_form(label: str) -> str | float:
    """Return what labels that look alike have in common."""
    visible = "".join(character for character in label.casefold() if character.isprintable())
    try:
        number = float(visible)
    except ValueError:
        return visible
    return number if math.isfinite(number) else visible


def ordered_labels(values: Iterable[str]) -> list[str]:
    """Return label values in the order of their class ids: by number where all are numbers, else by code point."""
    ordered = sorted(values)
    try:
        ordered.sort(key=float)  # sorted before, because nan has no place among numbers and a set no order
    except ValueError:
        return ordered
    return ordered


def _check_labels(name: str, split: Split, table: _Table, labels: dict[str, str]) -> None:
    if not len(split):
        advice = "; give the splits rows of their own" if split.n_overlaps else ""
        raise DataError(
            f"{table.name}: expected {name} rows with a text, got none of {split.n_sampled:,} "
            f"({split.n_blank:,} blank, {split.n_overlaps:,} also in another split){advice}"
        )
    if name == "training" and len(present := sorted(set(split.labels.tolist()))) < 2:
        names = [list(labels)[i] for i in present]
        raise DataError(
            f"{table.name}, column {table.label_column!r}: expected at least two labels among the {len(split):,} "
            f"training rows, got {shorten(names[0])} only; a classifier needs examples of each"
        )


# --- Reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Table:
    """The text and label column of one source, every row of it."""

    name: str
    texts: list[str]
    labels: list[str]
    """As text, '' where blank; empty list where labels were not asked for."""
    lines: list[int] | None
    """1-based line of each row in a text file, or its item in a .json file."""
    label_column: str
    label_names: dict[str, str] | None = None
    """Value -> name in the order of the class ids, where the source itself knows them."""

    def place(self, row: int) -> str:
        return f"{self.name}, {self.unit(row)}"

    def unit(self, row: int) -> str:
        if self.lines is None:
            return f"row {row + 1}"
        return f"{'item' if self.name.lower().endswith('.json') else 'line'} {self.lines[row]}"


@dataclass(frozen=True, slots=True)
class _Source:
    """A file, or a split of a Hub dataset."""

    config: DataConfig
    path: Path | None
    split: str = ""

    @classmethod
    def of(cls, config: DataConfig, role: str) -> _Source:
        """Return the source of the training rows or of a split that has one of its own."""
        if _is_hub(config):
            return cls(config, None, "train" if role == "train" else getattr(config, role))
        return cls(config, data_file(getattr(config, role), key=f"data.{role}"))

    @classmethod
    def of_test(cls, config: DataConfig) -> _Source | None:
        """Return the source of the test rows, or None where they are drawn from the training source."""
        if config.test is None:
            return cls(config, None, "test") if _is_hub(config) else None
        return cls.of(config, "test")

    def read(self, *, with_labels: bool) -> _Table:
        columns = [self.config.text_column, *([self.config.label_column] if with_labels else [])]
        if self.path is None:
            return _read_hub(self.config, self.split, columns)
        suffix = self.path.suffix.lower()
        with _reading(self.path):
            if suffix != ".parquet":
                _check_is_text(self.path)
            if suffix in _DELIMITERS:
                records = _read_delimited(self.path, columns, _DELIMITERS[suffix], self.config.quoting)
            elif suffix == ".parquet":
                records = _read_parquet(self.path, columns)
            else:
                records = _read_json(self.path, columns)
            rows = list(records)
        if not rows:
            raise DataError(f"{self.path}: expected rows of data, got none")
        return _Table(
            name=str(self.path),
            texts=[as_text(values[0]) for _, values in rows],
            labels=[as_label(values[1]) for _, values in rows] if with_labels else [],
            lines=[line for line, _ in rows] if suffix != ".parquet" else None,
            label_column=self.config.label_column,
        )


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Say of a file what keeps it from being read."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}{_place_of(path, error)}: expected UTF-8, got the byte 0x{error.object[error.start]:02x}; "
            f"convert it, for example with iconv -f CP949 -t UTF-8"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: expected a readable file, got: {error.strerror or error}") from error


def records_of(path: Path, quoting: str) -> Iterator[dict[str, Any]]:
    """Yield every record of a file with all its columns, read by the rules of a search, one at a time.

    A column whose name the header has twice is left out, and so are a parquet file's nested ones.

    Args:
        path: As `data_file` returns it.
        quoting: As `DataConfig.quoting`.

    Raises:
        DataError: If the file is not as expected; with file and line.
    """
    suffix = path.suffix.lower()
    with _reading(path):
        if suffix != ".parquet":
            _check_is_text(path)
        if suffix in _DELIMITERS:
            cells = _delimited(path, _DELIMITERS[suffix], quoting)
            _, header = next(cells)
            places = {name: place for place, name in enumerate(header) if header.count(name) == 1}
            for _, row in cells:
                yield {name: row[place] for name, place in places.items()}
        elif suffix == ".parquet":
            yield from _parquet_records(path)
        else:
            for _, _, record in _json_objects(path):
                yield record


def _place_of(path: Path, error: UnicodeDecodeError) -> str:
    """Return where in a text file the bytes are that are no UTF-8; the error itself knows its own chunk only."""
    if path.suffix.lower() == ".parquet":
        return ""
    raw = path.read_bytes()
    try:
        raw.decode()
    except UnicodeDecodeError as whole:
        error = whole
    return f", line {len(_LINE_END_BYTES.findall(raw[: error.start])) + 1}"


def _check_is_text(path: Path) -> None:
    """Refuse a file of another kind, whatever its name says."""
    with path.open("rb") as file:
        head = file.read(32)
    what = next((what for signature, what in _NO_TEXT.items() if head.startswith(signature)), None)
    if head and not head.strip(b"\0"):
        what = "zero bytes, as a crash or a full disk leaves them; restore the file"
    elif b"\0\0" in (head[0:4:2], head[1:4:2]):
        what = "UTF-16 without its mark; convert it, for example with iconv -f UTF-16LE -t UTF-8"
    if what:
        raise DataError(f"{path}: expected text in UTF-8, got {what}")


def _is_hub(config: DataConfig) -> bool:
    """Tell a Hub id from a path: it has a revision, the form `owner/name`, and no file of that name is there."""
    name = config.train
    if config.revision is None or name.startswith(PACKAGE_SCHEME) or resolve_path(name).exists():
        return False
    return (
        re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name) is not None and Path(name).suffix.lower() not in _SUFFIXES
    )


def data_file(name: str, *, key: str) -> Path:
    """Return the absolute path of a file of labelled texts.

    Args:
        name: As a configuration names it.
        key: What messages call it.

    Raises:
        UsageError: If there is no such file, or it is of a kind that is not read.
    """
    path = resolve_path(name)
    if not path.exists():
        raise DataError(
            f"{key}: expected a file, got {name!r}, which is not there (looked for {path}); "
            f"relative paths are read from the working directory, and a dataset of the Hub needs data.revision"
        )
    if not path.is_file():
        kind = "the folder" if path.is_dir() else "a device or pipe,"
        raise DataError(f"{key}: expected a file, got {kind} {path}")
    if path.suffix.lower() not in _SUFFIXES:
        raise DataError(f"{key}: expected a file that ends in {', '.join(_SUFFIXES)}, got {path.name!r}")
    return path


def _read_delimited(
    path: Path, columns: Sequence[str], delimiter: str, quoting: str
) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the asked columns of every record."""
    records = _delimited(path, delimiter, quoting)
    _, header = next(records)
    places = _find_columns(path, columns, header)
    for line, record in records:
        yield line, [record[place] for place in places]


def _delimited(path: Path, delimiter: str, quoting: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the cells of the header, then of every record."""
    mode = csv.QUOTE_NONE if quoting == "none" else csv.QUOTE_MINIMAL
    previous_limit = csv.field_size_limit(_MAX_CELL)
    try:
        # newline="" leaves line ends inside quoted cells to the csv module.
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, quoting=mode, strict=True)  # type: ignore[arg-type]
            header = next(reader, [])
            _check_header(path, header, delimiter)
            yield 1, header
            start = reader.line_num + 1
            for record in reader:
                if record:  # the csv module gives [] for an empty line
                    _check_record(path, record, len(header), start, reader.line_num, delimiter, quoting)
                    yield start, record
                start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num}: expected well-formed quoting, got: {error}; "
            f"if double quotes are plain characters in this file, set data.quoting: none"
        ) from error
    finally:
        csv.field_size_limit(previous_limit)


def _check_header(path: Path, header: list[str], delimiter: str) -> None:
    if len(header) != 1:
        return
    other = max(_OTHER_DELIMITERS, key=header[0].count)
    if other == delimiter or other not in header[0]:
        return
    suffix = next((suffix for suffix, known in _DELIMITERS.items() if known == other), None)
    advice = (
        f"rename it so that it ends in {suffix}"
        if suffix
        else f"write it with {delimiter!r} between the cells, as pandas does: "
        f"read_csv(FILE, sep={other!r}).to_csv(NEW_FILE, sep={delimiter!r}, index=False)"
    )
    raise DataError(
        f"{path}, line 1: expected columns with {delimiter!r} between them, as in every {path.suffix.lower()} file, "
        f"got one column and {other!r} in its name: {header[0]!r}; {advice}"
    )


def _check_record(
    path: Path, record: list[str], n_columns: int, first: int, last: int, delimiter: str, quoting: str
) -> None:
    # A lone quote at the start of a cell swallows lines up to the next one, silently: then the "cell" holds whole
    # records. A cell that truly spans lines rarely holds delimiters after its line breaks.
    swallowed = quoting == "auto" and last > first and _looks_swallowed(record, n_columns, delimiter)
    if swallowed:
        raise DataError(
            f"{path}, lines {first} to {last}: expected one record a line, got a quoted cell that runs over "
            f"{last - first + 1} lines and holds what look like whole records; "
            f"set data.quoting: none if double quotes are plain characters, else data.quoting: standard"
        )
    if len(record) != n_columns:
        raise DataError(
            f"{path}, line {first}: expected {n_columns} cells as in the header, got {len(record)}; "
            f"quote cells that hold the delimiter {delimiter!r}"
        )


def _looks_swallowed(record: list[str], n_columns: int, delimiter: str) -> bool:
    if any(delimiter in line for cell in record for line in _LINE_END.split(cell)[1:]):
        return True
    # In the first column, the swallowed delimiters stand before the line break; then every line is a whole record.
    lines = _LINE_END.split(delimiter.join(record))
    return all(line.count(delimiter) == n_columns - 1 for line in lines if line)


def _read_json(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, list[Any]]]:
    for number, unit, record in _json_objects(path):
        _find_columns(path, columns, list(record), at=f", {unit} {number}")
        values = [record[column] for column in columns]
        _check_plain(f"{path}, {unit} {number}", columns, values)
        if any(_SURROGATE.search(str(value)) for value in values):
            raise DataError(
                f"{path}, {unit} {number}: expected Unicode text, got half a character such as \\ud83d; mend the row"
            )
        yield number, values


@dataclass(frozen=True, slots=True)
class _RepeatedKey:
    """Stands for an object that has a key twice, of which Python would keep the last value and drop the others."""

    key: str


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | _RepeatedKey:
    record = dict(pairs)
    if len(record) == len(pairs):
        return record
    keys = [key for key, _ in pairs]
    return _RepeatedKey(next(key for key in keys if keys.count(key) > 1))


def _json_objects(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yield the place, the word for such a place, and the keys of every object."""
    unit = "line" if path.suffix.lower() == ".jsonl" else "item"
    for number, record in _json_lines(path) if unit == "line" else _json_items(path):
        if isinstance(record, _RepeatedKey):
            raise DataError(f"{path}, {unit} {number}: expected each key once, got {shorten(record.key)} twice")
        if not isinstance(record, dict):
            raise DataError(f"{path}, {unit} {number}: expected an object, got {type(record).__name__}")
        yield number, unit, record


def _json_items(path: Path) -> Iterator[tuple[int, Any]]:
    records = _parse_json(path, path.read_text(encoding="utf-8-sig"), first_line=1)
    if not isinstance(records, list):
        raise DataError(
            f"{path}: expected a list of objects, got {type(records).__name__}; write one list of objects, or one "
            f"object a line in a file that ends in .jsonl"
        )
    yield from enumerate(records, start=1)


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, _parse_json(path, line.rstrip("\n"), first_line=number)


def _parse_json(path: Path, text: str, *, first_line: int) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        several = error.msg == "Extra data" and path.suffix.lower() == ".json"
        advice = "; if it has one object a line, name it .jsonl" if several else ""
        raise DataError(
            f"{path}, line {first_line + error.lineno - 1}: expected JSON, got: {error.msg}{advice}"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, a thousand brackets
        raise DataError(f"{path}, near line {first_line}: expected JSON, got: {error}") from error


def _read_parquet(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, list[Any]]]:
    with _parquet(path) as file:
        _find_columns(path, columns, file.schema_arrow.names)
        table = file.read(columns=list(columns))
        values = [table.column(column).to_pylist() for column in columns]
    for number, record in enumerate(zip(*values, strict=True), start=1):
        _check_plain(f"{path}, row {number}", columns, record)
        yield number, list(record)


def _parquet_records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the cells of every row that are no lists or the like, by column."""
    from pyarrow import types

    with _parquet(path) as file:
        names = file.schema_arrow.names
        flat = [field.name for field in file.schema_arrow if not types.is_nested(field.type)]
        for batch in file.iter_batches(columns=[name for name in flat if names.count(name) == 1]):
            yield from batch.to_pylist()


@contextlib.contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    """Open a parquet file, and say of it what keeps it from being read."""
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(path) as file:
            yield file
    except UnicodeDecodeError:
        raise
    except (ArrowException, ValueError) as error:
        raise DataError(f"{path}: expected a parquet file, got: {error}") from error


def _read_hub(config: DataConfig, split: str, columns: Sequence[str]) -> _Table:
    prepare_hub()
    import datasets

    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(config.train, revision=config.revision, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        raise HubError(
            f"dataset {config.train!r} (revision {config.revision}, split {split!r}): expected an answer from the "
            f"Hugging Face Hub, got: {' '.join(str(error).split())}\n{TWO_WAYS_ON}"
        ) from error
    name = f"{config.train} [{split}]"
    _find_columns(Path(name), columns, rows.column_names)
    for number, record in enumerate(zip(*(rows[column][:] for column in columns), strict=True), start=1):
        _check_plain(f"{name}, row {number}", columns, record)
    texts = [as_text(value) for value in rows[columns[0]][:]]
    labels = [as_label(value) for value in rows[columns[1]][:]] if len(columns) > 1 else []
    names = getattr(rows.features.get(config.label_column), "names", None)
    known = {str(i): label for i, label in enumerate(names)} if names else None
    return _Table(name, texts, labels, lines=None, label_column=config.label_column, label_names=known)


def _find_columns(path: Path, columns: Sequence[str], header: Sequence[str], at: str = "") -> list[int]:
    for column in columns:
        if header.count(column) != 1:
            found = "it twice" if column in header else _listed(header) or "no columns"
            if len(header) == 1 and (other := next((mark for mark in ",;\t|" if mark in header[0]), None)):
                hint = (
                    f"; columns are separated by {_DELIMITERS.get(path.suffix.lower(), ',')!r} here, not by {other!r}"
                )
            else:
                hint = "" if column in header else did_you_mean(column, header)
            raise DataError(
                f"{path}{at}: expected a column {column!r}, got {found}; set data.text_column and data.label_column"
                + hint
            )
    return [header.index(column) for column in columns]


def _listed(values: Iterable[str]) -> str:
    """Return values as a message shows them, the first of many."""
    shown = list(values)
    more = f" and {len(shown) - _MOST_SHOWN:,} more" if len(shown) > _MOST_SHOWN else ""
    return ", ".join(shorten(value) for value in shown[:_MOST_SHOWN]) + more


def _check_plain(place: str, columns: Sequence[str], values: Sequence[Any]) -> None:
    """Refuse a value that is no text or number: written out as Python shows it, it would be trained on as a text."""
    for column, value in zip(columns, values, strict=True):
        if isinstance(value, dict | list | tuple | bytes | _RepeatedKey):
            kind = "bytes" if isinstance(value, bytes) else "a list" if isinstance(value, list | tuple) else "an object"
            raise DataError(
                f"{place}, column {column!r}: expected text or a number, got {kind}; write the text itself into the "
                f"column, or name another column"
            )


def as_text(value: Any) -> str:
    """Return a cell as text, '' where it is blank."""
    return "" if value is None or value != value else str(value)


def as_label(value: Any) -> str:
    """Return a cell as a label's value, '' where it is blank."""
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column of whole numbers with a blank in it comes as floats
    if isinstance(value, bool):
        value = str(value).lower()  # as JSON, YAML and most csv files write it
    return unicodedata.normalize("NFC", str(value)).strip()
