"""A configuration for a file of one's own: proposed from what the file holds, written as YAML with comments.

The text is `configs/own-data.yaml` with its values replaced, so that keys and comments have one source. What is
proposed is tried before it is written: the file is read with it as a search reads it.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hpsearch.columns import LABEL_NAMES, Guess, guess_label, guess_text, survey
from hpsearch.config import ModelConfig, load_config, parse_config
from hpsearch.data import as_label, as_text, data_file, load_search_data, load_test, ordered_labels
from hpsearch.errors import DataError, UsageError
from hpsearch.study import check_study_name
from hpsearch.template import OWN_DATA, Template, plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hpsearch.columns import Survey


_SHARE = 5  # validation and test get at most one row in five each
_VALIDATION_ROWS = 2_000  # an accuracy of 0.85 on as many has a standard error of 0.8 points
_TEST_ROWS = 10_000  # and of 0.4 points here; these rows are predicted a few times only
_MOST_VALIDATION_ROWS = 10_000  # each trial predicts them at every evaluation
_RARE_ROWS = 30  # validation rows that the rarest label should have
_FEW_TEST_ROWS = 500

_LENGTH_STEP = 16  # tokens
_LENGTH_SHARE = 99  # percent of the texts that stay whole
_HUB_LIMIT = 512  # tokens, of the template's model

_QUOTES = {"none": "plain characters", "standard": "marks around a cell, which may hold several lines"}
_NEGATIVE = frozenset(
    ("negative", "neg", "bad", "no", "false", "ham", "0", "부정", "거짓", "아니오", "나쁨", "싫음"),
)
_OPINION = frozenset(("sentiment", "polarity", "감정", "감성", "review", "reviews", "리뷰", "후기"))
"""Names of columns whose 0 and 1 are most likely negative and positive."""


@dataclass(frozen=True, slots=True)
class Starter:
    """A proposed configuration, and what it rests on."""

    file: str
    output: Path
    model: str
    text: Guess
    label: Guess
    labels: dict[str, str]
    """Value -> name in the order of the class ids."""
    names_from: str
    """Where the names come from, for a person."""
    label_counts: dict[str, int]
    """Rows of each value among those looked at."""
    n_rows: int
    """Rows looked at."""
    is_complete: bool
    """Whether these are all."""
    quoting: str
    validation_rows: int
    test_rows: int
    max_length: int | None = None
    """Tokens; None leaves it to the model."""
    length_from: str = ""
    """What the length rests on, for a person."""
    notes: tuple[str, ...] = ()
    """What a person should know besides."""

    @property
    def train_rows(self) -> int | None:
        """Rows that validation and test leave over; None where the file was not read to its end."""
        return self.n_rows - self.validation_rows - self.test_rows if self.is_complete else None

    def yaml(self) -> str:
        """Return the configuration's text."""
        template = Template.of(OWN_DATA)
        template.head = [
            f"# Written by `hpsearch init` for {plain(self.file)}. It runs as it is; what was guessed says so.",
            f"#     hpsearch run --config {plain(str(self.output))}",
            "# Relative paths are read from the folder you run hpsearch in.",
        ]
        template.set("model", "name", self.model, "a model id of the Hugging Face Hub, or a local folder")
        if self.max_length is not None:
            template.set("model", "max_length", self.max_length, "longest input in tokens; longer texts are cut")
        template.set("data", "train", self.file, f"{'' if self.is_complete else 'more than '}{self.n_rows:,} rows")
        for key, guess in (("text_column", self.text), ("label_column", self.label)):
            others = f"; others: {', '.join(map(plain, guess.others[:5]))}" if guess.others else ""
            template.set("data", key, guess.column, f"{guess.certainty}: {guess.reason}{others}")
        second = "; the second is the positive one" if len(self.labels) == 2 else ""
        template.set("data", "labels", self.labels, f"value in the file -> name, {self.names_from}{second}")
        template.set("data", "validation_rows", self.validation_rows, "drawn from the training file")
        template.set("data", "test_rows", self.test_rows, "drawn as well; sealed until `hpsearch compare`")
        if self.quoting != "auto":
            template.set("data", "quoting", self.quoting, f"double quotes are {_QUOTES[self.quoting]}")
        return template.text()


def propose(
    file: str,
    output: Path,
    *,
    model: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    quoting: str | None = None,
) -> Starter:
    """Look at a file and return a configuration that searches on it; nothing is written.

    Args:
        file: A csv, tsv, txt, json, jsonl or parquet file, named as the configuration shall name it.
        output: Where the configuration is to be written; its name becomes the study's.
        model: A local folder or a Hub id; None for the template's.
        text_column: The column, where it is known.
        label_column: The column, where it is known.
        quoting: As `DataConfig.quoting`; None finds out.

    Raises:
        UsageError: If the output's name is taken or can be no study's.
        ConfigError: If a local model cannot be used.
        DataError: If the file cannot be read, or no column can be the text or the label; with what was found.
    """
    _check_output(output)
    path = data_file(file, key="FILE")
    quoting, seen = _read(path, quoting, text=text_column, label=label_column)
    text, label = _columns(path, seen, text=text_column, label=label_column)
    counts = seen.values[label.column]
    values = ordered_labels(value for value in counts if value)
    _check_has_header(path, label.column, values)
    names, names_from = _names(values, seen, label.column, text.column)
    labels = {value: _visible(name) for value, name in names.items()}
    validation_rows, test_rows = _split(seen.n_rows, min(counts[value] for value in values) / seen.n_rows)
    starter = Starter(
        file=file,
        output=output,
        model=model or load_config(OWN_DATA).model.name,
        text=text,
        label=label,
        labels=labels,
        names_from=names_from,
        label_counts={value: counts[value] for value in labels},
        n_rows=seen.n_rows,
        is_complete=seen.is_complete,
        quoting=quoting,
        validation_rows=validation_rows,
        test_rows=test_rows,
    )
    notes = [*_notes(starter), *_try(starter)]
    max_length, length_from = _max_length(model, [as_text(record[text.column]) for record in seen.sample])
    starter = replace(starter, max_length=max_length, length_from=length_from, notes=tuple(notes))
    parse_config(starter.yaml(), path=output)
    return starter


def write(starter: Starter) -> None:
    """Write the configuration under a name that is not taken.

    Raises:
        UsageError: If it is taken, or cannot be written.
    """
    try:
        with starter.output.open("x", encoding="utf-8") as file:
            file.write(starter.yaml())
    except FileExistsError as error:
        raise _taken(starter.output) from error
    except OSError as error:
        raise UsageError(
            f"{starter.output}: expected to write there, got: {error.strerror}; choose another --output"
        ) from error


def _check_output(output: Path) -> None:
    try:
        taken = output.exists() or output.is_symlink()
    except OSError as error:
        raise UsageError(f"{output}: expected a name for a file, got: {error.strerror}") from error
    if taken:
        raise _taken(output)
    if not output.absolute().parent.is_dir():
        raise UsageError(f"{output}: expected a folder that is there, got none; make it, or choose another --output")
    try:
        check_study_name(output.stem)
    except UsageError as error:
        raise UsageError(
            f"{output}: expected a file's name that can be a study's (letters, digits, '_', '-', '+' and '.'), "
            f"got {output.stem!r}; choose another --output"
        ) from error


def _taken(output: Path) -> UsageError:
    return UsageError(f"{output}: expected a free name, got one that is taken; choose another --output, or remove it")


# --- What the file holds ----------------------------------------------------------------------------------------------


def _read(path: Path, quoting: str | None, *, text: str | None, label: str | None) -> tuple[str, Survey]:
    """Return how quotes are to be read, and the file read so."""
    wanted = [name for name in (text, label) if name is not None]
    if quoting is not None:
        return quoting, survey(path, quoting, wanted=wanted)
    try:
        return "auto", survey(path, "auto", wanted=wanted)
    except DataError:
        readings = {}
        for mode in ("none", "standard"):
            try:
                seen = survey(path, mode, wanted=wanted)
                _, guess = _columns(path, seen, text=text, label=label)
            except DataError:
                continue
            readings[mode] = seen, set(seen.values[guess.column])
        if not readings:
            raise
        # Where every line is a record by itself, and none has a label that the other reading does not know, a cell of
        # several lines would have to hold whole records with right labels by chance.
        if len(readings) == 2 and not readings["none"][1] <= readings["standard"][1]:
            del readings["none"]
        mode, (seen, _) = next(iter(readings.items()))
        return mode, seen


def _columns(path: Path, seen: Survey, *, text: str | None, label: str | None) -> tuple[Guess, Guess]:
    for name, role in ((text, "text"), (label, "label")):
        if name is not None and name not in seen.columns:
            raise DataError(
                f"{path}: expected a column {name!r}, got {', '.join(map(repr, seen.columns))}; set --{role}-column"
            )
    if text is not None and text == label:
        raise UsageError(f"expected two different columns for text and label, got {text!r} for both")
    texts = Guess(text, "given", "named by you", ()) if text is not None else guess_text(path, seen, label=label)
    if label is not None:
        return texts, Guess(label, "given", "named by you", ())
    return texts, guess_label(path, seen, text=texts.column)


def _check_has_header(path: Path, label_column: str, values: Sequence[str]) -> None:
    if len(values) < 2:
        raise DataError(
            f"{path}, column {label_column!r}: expected two labels or more, got "
            f"{repr(values[0]) + ' on every row' if values else 'blank cells only'}; name another with --label-column"
        )
    if as_label(label_column) in values:
        raise DataError(
            f"{path}, line 1: expected the columns' names, got what looks like a row: {label_column!r} is a label too; "
            f"write a first line with names, such as text and label"
        )


def _names(values: Sequence[str], seen: Survey, label_column: str, text_column: str) -> tuple[dict[str, str], str]:
    """Return label values with their names, the positive one of two last, and where the names come from."""
    if not all(re.fullmatch(r"-?\d+|true|false", value) for value in values):
        ordered = sorted(values, key=lambda value: value.casefold() not in _NEGATIVE) if len(values) == 2 else values
        return {value: value for value in ordered}, "the values as they are"
    beside = _names_beside(values, seen, label_column)
    if beside is not None:
        return beside
    if tuple(values) in (("0", "1"), ("false", "true")):
        label, text = (unicodedata.normalize("NFC", name).strip().casefold() for name in (label_column, text_column))
        own = re.sub(r"^(is|has)_?", "", label_column.strip(), flags=re.IGNORECASE)
        if label not in LABEL_NAMES and re.search(r"[^\W\d_]", own):
            return dict(zip(values, (f"not {own}", own), strict=True)), "from the column's name"
        if {label, text} & _OPINION:
            return dict(zip(values, ("negative", "positive"), strict=True)), "guessed from the columns' names"
    return {value: value for value in values}, "the values as they are: write what they mean"


def _visible(name: str) -> str:
    """Return a name as a configuration takes it."""
    return "".join(character if character.isprintable() else "?" for character in name)


def _names_beside(values: Sequence[str], seen: Survey, label_column: str) -> tuple[dict[str, str], str] | None:
    """Return the names that another column gives the label values, one for each, and where they come from."""
    for column in seen.values:
        pairs = {(as_label(record[label_column]), as_label(record[column])) for record in seen.sample}
        names = dict(pairs)
        is_one_to_one = len(pairs) == len(set(names.values())) == len(values) and set(names) == set(values)
        if column != label_column and is_one_to_one and all(re.search(r"[^\W\d_]", name) for name in names.values()):
            return {value: names[value] for value in values}, f"from the column {plain(column)}"
    return None


def _split(n_rows: int, rarest_share: float) -> tuple[int, int]:
    """Return how many rows validation and test get."""
    most = max(1, n_rows // _SHARE)
    wanted = max(_VALIDATION_ROWS, min(math.ceil(_RARE_ROWS / rarest_share), _MOST_VALIDATION_ROWS))
    return min(most, wanted), min(most, _TEST_ROWS)


def _max_length(model: str | None, texts: Sequence[str]) -> tuple[int | None, str]:
    """Return a length that leaves nearly all texts whole, and what it rests on."""
    if model is None:
        # Each token of the template's model holds at least a character, and two are added to every text.
        lengths = np.array([len(text) + 2 for text in texts])
        limit, counted = _HUB_LIMIT, "characters, as tokens are no more"
    else:
        from hpsearch.model import is_local_model, open_model

        if not is_local_model(model):
            return None, "the model's own limit; `hpsearch inspect` counts tokens"
        source = open_model(ModelConfig(name=model), ())
        ids = source.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
        lengths, limit, counted = np.array([len(text) for text in ids]), source.max_length, "tokens"
    longest = int(np.percentile(lengths, _LENGTH_SHARE))
    length = min(math.ceil(longest / _LENGTH_STEP) * _LENGTH_STEP, limit)
    n_cut = int((lengths > length).sum())
    fit = f"{1 - n_cut / len(lengths):.1%} of" if n_cut else "all of"
    return length, f"{fit} {len(lengths):,} texts fit, counted in {counted}"


# --- What to say of it ------------------------------------------------------------------------------------------------


def _notes(starter: Starter) -> list[str]:
    notes = []
    if not starter.is_complete:
        notes.append(
            f"only the first {starter.n_rows:,} rows were looked at; if later ones hold other labels, `hpsearch run` "
            f"names the first; data.train_rows trains on fewer rows than all"
        )
    most = max(starter.label_counts, key=starter.label_counts.__getitem__)
    if (share := starter.label_counts[most] / starter.n_rows) > 0.9:
        notes.append(f"{share:.0%} of the rows have the label {most!r}: look at f1 or mcc, not at accuracy")
    if starter.test_rows < _FEW_TEST_ROWS:
        notes.append(
            f"{starter.test_rows:,} test rows show large differences only; more rows make `hpsearch compare` surer"
        )
    if starter.quoting != "auto":
        notes.append(f"double quotes are read as {_QUOTES[starter.quoting]}; --quoting reads them otherwise")
    return notes


def _try(starter: Starter) -> list[str]:
    """Read the data as a search and a comparison do, and return what is thin about its splits.

    Raises:
        DataError: If it cannot be read so.
    """
    config = parse_config(starter.yaml(), path=starter.output)
    if not starter.is_complete:
        return []  # it would take the memory of all texts
    data = load_search_data(config.data)
    load_test(config.data)
    notes = []
    train, validation = (
        Counter(data.label_names[i] for i in split.labels.tolist()) for split in (data.train, data.validation)
    )
    rare = [name for name in data.label_names if min(train[name], validation[name]) < _RARE_ROWS]
    if rare:
        shown = ", ".join(f"{name!r} {train[name]} and {validation[name]}" for name in rare[:5])
        more = f", and {len(rare) - 5} other labels" if len(rare) > 5 else ""
        notes.append(
            f"with fewer than {_RARE_ROWS} rows in a split, little can be said of a label (training and validation "
            f"rows): {shown}{more}"
        )
    if data.train.n_overlaps:
        notes.append(
            f"{data.train.n_overlaps:,} training rows are dropped because their text also stands in validation or test"
        )
    return notes
