"""The configuration of a search: read from YAML, checked as a whole, then trusted everywhere.

All mistakes of a file are reported at once, each with its place in the file, what was expected and what came.
YAML is read by its 1.2 rules: `1e-5` is a number and `no` is a word.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import unicodedata
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hpsearch.errors import ConfigError
from hpsearch.space import Choices, Dimension, FloatRange, IntRange, Scalar, bounds

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pydantic_core import ErrorDetails

PACKAGE_FOLDER = Path(__file__).resolve().parent
PACKAGE_SCHEME = "hpsearch:"
"""Prefix of paths that lie inside this package, such as `hpsearch:quickstart/encoder`."""

_CONFIG_FOLDERS = (PACKAGE_FOLDER / "configs", PACKAGE_FOLDER.parent / "configs")  # wheel, then checkout
_MAX_PARTS = 10  # of a dotted key; the longest known ones have three
_MAX_DEPTH = 20  # of sections in sections
_MAX_VALUES = 10_000  # once aliases are put in: a kilobyte of aliases of aliases can stand for more than fits in memory
_WHOLE_BITS = 64  # of a whole number: what databases and the libraries below take
_DIMENSION_TYPES: dict[str, type[BaseModel]] = {"float": FloatRange, "int": IntRange, "categorical": Choices}


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ModelConfig(_Section):
    """Which encoder is fine-tuned."""

    name: str = Field(min_length=1)
    """A folder with safetensors weights, or a model id of the Hugging Face Hub."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    pretrained: bool = True
    """False starts from random weights of the same shape: for speed and memory measurements."""
    max_length: int | None = Field(default=None, ge=4)
    """Longest input in tokens; longer texts are cut. None: the model's own limit."""


class DataConfig(_Section):
    """Where the labelled texts come from and how they are split."""

    train: str = Field(min_length=1)
    """A csv, tsv, txt, json, jsonl or parquet file, or a dataset id of the Hub (then give `revision`)."""
    revision: str | None = None
    """Branch, tag or commit of a Hub dataset."""
    validation: str | None = None
    """A file, or a split's name of a Hub dataset. None: the shuffled training rows that follow the sample."""
    test: str | None = None
    """As `validation`. None: the Hub dataset's split `test`, or the rows that follow the validation rows."""
    text_column: str = "text"
    label_column: str = "label"
    labels: dict[str, str] | None = None
    """Value in the file -> name, in the order of the class ids. None: the values seen in training, sorted."""
    quoting: Literal["auto", "standard", "none"] = "auto"
    """How csv, tsv and txt files use double quotes. `auto` refuses a file in which both readings are possible."""
    train_rows: int | None = Field(default=None, ge=2)
    validation_rows: int | None = Field(default=None, ge=1)
    test_rows: int | None = Field(default=None, ge=1)
    shuffle_seed: int = Field(default=42, ge=0)
    keep_overlaps: bool = False
    """Keep training rows whose text also stands in validation or test."""

    @model_validator(mode="before")
    @classmethod
    def _label_values_are_text(cls, values: Any) -> Any:
        # 0 and "0" are the same value in a csv file, so the mapping is keyed by text.
        if isinstance(values, dict) and isinstance(values.get("labels"), dict):
            given = values["labels"]
            labels = {_label_key(value): name for value, name in given.items()}
            if len(labels) < len(given):  # one of them would be lost
                raise ValueError(f"expected labels that differ as text, without outer white space, got {list(given)}")
            return {**values, "labels": labels}
        return values

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        if self.labels is not None:
            if len(self.labels) < 2:
                raise ValueError(f"expected at least two labels, got {list(self.labels)}")
            names = list(self.labels.values())
            if len(set(names)) < len(names):
                raise ValueError(f"expected a name of its own for each label, got {names}")
            unseen = [name for name in names if not name.strip() or not name.isprintable()]
            if unseen:
                raise ValueError(f"expected label names of visible characters, got {unseen[0]!r}")
        if self.text_column == self.label_column:
            raise ValueError(f"expected two different columns for text and label, got {self.text_column!r} for both")
        return self


def _label_key(value: Any) -> str:
    """Return a label's value as `data.py` reads it from a file."""
    if value is None:
        raise ValueError("expected a value for each label, got null; quote it where the word is meant")
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return unicodedata.normalize("NFC", text).strip()


Rate = Annotated[float, Field(ge=0, lt=1)]


class Hyperparameters(_Section):
    """The settings of one training; the defaults are those of the tutorial that hpsearch compares against.

    Names are those of `transformers.TrainingArguments`, and of the model config for the dropouts.
    """

    learning_rate: float = Field(default=5e-5, gt=0, lt=1)
    num_train_epochs: int | float = Field(default=10, gt=0, le=100_000)
    per_device_train_batch_size: int = Field(default=32, ge=1)
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    warmup_steps: float = Field(default=0.0, ge=0)
    """Below 1 a share of all optimizer steps, else a number of steps."""
    weight_decay: Rate = 0.0
    max_grad_norm: float = Field(default=1.0, gt=0)
    label_smoothing_factor: Rate = 0.0
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup", "polynomial"] = "linear"
    adam_beta1: Rate = 0.9
    adam_beta2: Rate = 0.999
    adam_epsilon: float = Field(default=1e-8, gt=0)
    hidden_dropout_prob: Rate | None = None
    attention_probs_dropout_prob: Rate | None = None
    classifier_dropout: Rate | None = None
    dropout: Rate | None = None
    attention_dropout: Rate | None = None
    seq_classif_dropout: Rate | None = None

    def replace(self, values: dict[str, Scalar]) -> Hyperparameters:
        """Return these settings with some values replaced, checked again."""
        return Hyperparameters.model_validate({**self.model_dump(), **values})

    def dropouts(self) -> dict[str, float]:
        """Return the dropouts that are set, by their name in the model config."""
        return {name: value for name in DROPOUTS if (value := getattr(self, name)) is not None}

    def training_arguments(self) -> dict[str, Any]:
        """Return the values that go to `TrainingArguments`, by field name."""
        return {name: value for name, value in self.model_dump().items() if name not in DROPOUTS}


DROPOUTS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "dropout",
    "attention_dropout",
    "seq_classif_dropout",
)
"""Dropouts by the names that BERT's and DistilBERT's families give them in their model config."""


class SearchConfig(_Section):
    """How the space is searched."""

    trials: int = Field(default=20, ge=1)
    """Finished trials (complete and pruned) the study shall come to, over all restarts."""
    evaluations: int = Field(default=8, ge=1, le=10_000)
    """Evaluations per trial, at equal fractions of the trial's own schedule."""
    sampler: Literal["tpe", "random", "gp"] = "tpe"
    pruner: Literal["median", "successive-halving", "hyperband", "none"] = "median"
    seed: int = Field(default=42, ge=0, lt=2**32)
    """Seeds the sampler and every training of the search; it is never tuned."""
    keep_checkpoints: int = Field(default=3, ge=1)
    max_failures: int = Field(default=3, ge=1)
    """The search stops when this many trials in a row have failed."""
    stall_minutes: float | None = Field(default=60.0, gt=0)
    """A trial without a step for so long is ended and failed; null waits for ever."""


class Config(_Section):
    """Everything a search is determined by."""

    study: str = Field(default="study", min_length=1)
    """The study's name unless the command line gives one; a file's own name where it is left out."""
    metric: Literal["f1", "accuracy", "mcc"] = "f1"
    """What is maximised on the validation rows; F1 is binary for two classes and macro for more."""
    model: ModelConfig
    data: DataConfig
    defaults: Hyperparameters = Hyperparameters()
    """The settings of trial 0, and of every trial for what the space does not draw."""
    space: dict[str, Dimension] = Field(min_length=1)
    search: SearchConfig = SearchConfig()

    @model_validator(mode="after")
    def _check_space(self) -> Config:
        problems = [problem for name in self.space for problem in self._problems_of(name)]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _problems_of(self, name: str) -> Iterable[str]:
        if name not in Hyperparameters.model_fields:
            hint = did_you_mean(name, Hyperparameters.model_fields)
            yield f"space.{name}: expected a hyperparameter's name, got {name!r}{hint}"
            return
        dimension = self.space[name]
        for value in bounds(dimension):
            try:
                Hyperparameters.model_validate({name: value})
            except ValidationError as error:
                yield f"space.{name}: {_expected(error.errors()[0])}, got {value!r}"
        default = getattr(self.defaults, name)
        if default is None:
            yield f"space.{name}: expected a value for trial 0 in defaults.{name}, got none; add it"
        elif default not in dimension:
            yield (
                f"space.{name}: expected to hold trial 0's value, got defaults.{name} = {default!r} outside it; "
                f"widen the space or change the default"
            )

    def with_absolute_paths(self) -> Config:
        """Return this configuration with its local files and folders named from the root, to be kept with a study."""

        def absolute(name: str | None) -> str | None:
            local = name is not None and not name.startswith(PACKAGE_SCHEME) and resolve_path(name).exists()
            return str(resolve_path(name)) if local and name is not None else name

        is_local = self.data.revision is None or resolve_path(self.data.train).exists()
        files = ("train", "validation", "test") if is_local else ()  # on the Hub they are an id and splits' names
        data = {name: absolute(getattr(self.data, name)) for name in files}
        model = {"name": absolute(self.model.name)}
        return self.model_copy(
            update={"data": self.data.model_copy(update=data), "model": self.model.model_copy(update=model)}
        )


def digest(value: Any) -> str:
    """Return the first 16 hex digits of the SHA-256 of a JSON value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def shipped_configs() -> dict[str, Path]:
    """Return the configurations that come with hpsearch, by name."""
    folder = next((folder for folder in _CONFIG_FOLDERS if folder.is_dir()), None)
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))} if folder else {}


def load_config(name_or_path: str, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration and apply `KEY=VALUE` overrides to it.

    Args:
        name_or_path: The name of a shipped configuration, or the path of a YAML file.
        overrides: Such as `space.learning_rate.high=1e-4`; the value is read as YAML.

    Raises:
        ConfigError: If the file cannot be read, or with every mistake in it.
    """
    path = _find_config(name_or_path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected a YAML file in UTF-8, got: {_one_line(error)}") from error
    return parse_config(text, overrides, path=path)


def parse_config(text: str, overrides: Sequence[str] = (), *, path: Path) -> Config:
    """Check a configuration given as YAML, after applying `KEY=VALUE` overrides.

    Args:
        text: What the file holds.
        overrides: As in `load_config`.
        path: The file; it need not be there.

    Raises:
        ConfigError: With every mistake, one a line.
    """
    tree = _parse_yaml(text, where=str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected keys such as `model:` and `data:`, got {shorten(tree)}")
    tree.setdefault("study", path.stem)
    return build_config(tree, overrides, where=str(path))


def build_config(tree: dict[str, Any], overrides: Sequence[str] = (), *, where: str) -> Config:
    """Check a configuration given as nested dicts, after applying `KEY=VALUE` overrides.

    Args:
        tree: The keys of a configuration file.
        overrides: As in `load_config`.
        where: What messages call the source.

    Raises:
        ConfigError: With every mistake, one a line.
    """
    for override in overrides:
        tree = _override(tree, override)
    if isinstance(tree.get("space"), dict):  # null takes a dimension out, as `--set space.weight_decay=null` does
        tree = {**tree, "space": {name: value for name, value in tree["space"].items() if value is not None}}
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        problems = [line for detail in error.errors() for line in _describe(detail)]
        raise ConfigError("\n".join(f"{where}: {problem}" for problem in problems)) from error


def resolve_path(path: str) -> Path:
    """Return the absolute path that a configuration means: inside the package, or from the working directory.

    Raises:
        ConfigError: If nothing can be looked up under that name, as of a user that is not there.
    """
    try:
        inside = path.startswith(PACKAGE_SCHEME)
        resolved = PACKAGE_FOLDER / path.removeprefix(PACKAGE_SCHEME) if inside else Path(path).expanduser().absolute()
        os.fsencode(resolved)  # `exists` takes a name that cannot be encoded for a file that is not there
        resolved.exists()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{shorten(path)}: expected a path that can be looked up, got characters that file names cannot have here "
            f"({error.encoding}); set LC_ALL=C.UTF-8 or PYTHONUTF8=1"
        ) from error
    except (OSError, RuntimeError) as error:
        problem = getattr(error, "strerror", None) or _one_line(error)
        raise ConfigError(f"{shorten(path)}: expected a path that can be looked up, got: {problem}") from error
    return resolved


def public_name(name: str) -> str:
    """Return a file's or model's name for readers elsewhere: of a path on this machine, only its last part."""
    return Path(name).name if Path(name).is_absolute() else name


def _find_config(name_or_path: str) -> Path:
    path = Path(name_or_path)
    shipped = shipped_configs()
    try:
        is_file = path.is_file()
    except OSError:  # such as a name that is too long
        is_file = False
    if is_file:
        return path
    if name_or_path in shipped:
        return shipped[name_or_path]
    hint = did_you_mean(name_or_path, shipped)
    raise ConfigError(
        f"config {shorten(name_or_path)}: expected a YAML file or one of {', '.join(shipped)}; "
        f"there is no such file{hint}"
    )


def _parse_yaml(text: str, *, where: str) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError, YAMLWarning

    try:
        with warnings.catch_warnings(action="ignore", category=YAMLWarning):  # such as of an anchor that is reused
            value = YAML(typ="safe", pure=True).load(text)
    # The rest is what ruamel.yaml 0.19 lets escape for values that contradict their tag, such as `!!int ''`.
    except (YAMLError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or _one_line(error)
        raise ConfigError(f"{where}{place}: expected YAML, got: {problem}") from error
    _count_values(value, where, {}, depth=0)
    return value


def _override(tree: dict[str, Any], override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    names = key.split(".")
    if not equals or not all(names) or len(names) > _MAX_PARTS:
        raise ConfigError(f"--set {override}: expected KEY=VALUE with a dotted key, such as search.seed=7")
    value = _parse_yaml(text, where=f"--set {override}")

    def replaced(branch: Any, rest: list[str]) -> dict[str, Any]:
        if branch is not None and not isinstance(branch, dict):
            raise ConfigError(f"--set {override}: expected a key with parts, got the plain value {shorten(branch)}")
        new: dict[str, Any] = dict(branch or {})
        new[rest[0]] = replaced(new.get(rest[0]), rest[1:]) if len(rest) > 1 else value
        return new

    return replaced(tree, names)


def _count_values(value: Any, where: str, known: dict[int, int], *, depth: int) -> int:
    """Return how many values a YAML document stands for, each alias counted wherever it is used.

    Args:
        value: The document, or a part of it.
        where: What messages call the source.
        known: The counts of the dicts and lists that were met before, by their `id`.
        depth: How many others this one stands in.

    Raises:
        ConfigError: If there are more than any configuration has, if they are nested deeper, or if a whole number has
            more bits than databases and libraries take.
    """
    if isinstance(value, int) and not -(2 ** (_WHOLE_BITS - 1)) <= value < 2 ** (_WHOLE_BITS - 1):
        raise ConfigError(f"{where}: expected whole numbers of up to {_WHOLE_BITS} bits, got {value.bit_length()} bits")
    if not isinstance(value, dict | list | tuple | set):
        return 1
    if id(value) not in known:
        if depth > _MAX_DEPTH:
            raise ConfigError(f"{where}: expected sections up to {_MAX_DEPTH} deep, got deeper ones, or one in itself")
        inner = [*value, *value.values()] if isinstance(value, dict) else value
        count = 1 + sum(_count_values(each, where, known, depth=depth + 1) for each in inner)
        if count > _MAX_VALUES:
            raise ConfigError(f"{where}: expected up to {_MAX_VALUES:,} values, got more once aliases are put in")
        known[id(value)] = count
    return known[id(value)]


def _describe(detail: ErrorDetails) -> list[str]:
    """Return what is wrong as lines of `place: expected …, got …`."""
    location = [str(part) for part in detail["loc"]]
    kind = ""
    if len(location) > 2 and location[0] == "space" and location[2] in _DIMENSION_TYPES:
        kind = location.pop(2)  # pydantic adds the tag of the union
    if len(location) > 2 and location[0] == "defaults":
        del location[2]  # as it does of `int | float`
    place = ".".join(part if part.isprintable() else repr(part)[1:-1] for part in location)
    if detail["type"] == "value_error":
        lines = str(detail["ctx"]["error"]).split("\n")
        return [f"{place}: {line}" if place else line for line in lines]
    if detail["type"] in ("extra_forbidden", "invalid_key"):
        hint = did_you_mean(location[-1], _siblings(location, kind))
        return [f"{place}: expected a known key, got {location[-1]!r}{hint}"]
    if detail["type"] == "missing":
        return [f"{place}: expected a value, got none"]
    return [f"{place}: {_expected(detail)}, got {shorten(detail['input'])}"]


def _expected(detail: ErrorDetails) -> str:
    if detail["type"] in ("union_tag_not_found", "union_tag_invalid"):
        return "expected `type: float`, `type: int` or `type: categorical`"
    return detail["msg"].replace("Input should be", "expected", 1)


def _siblings(location: list[str], kind: str) -> Iterable[str]:
    """Return the keys that are known at the place of the last one of `location`, in a dimension those of its type."""
    if kind:
        return _DIMENSION_TYPES[kind].model_fields
    model: type[BaseModel] = Config
    for name in location[:-1]:
        field = model.model_fields.get(name)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return ()
        model = field.annotation
    return model.model_fields


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a question that names the nearest known name, or nothing where none is near."""
    plain = {each.strip().lower(): each for each in known}
    matches = difflib.get_close_matches(name.strip().lower(), list(plain), n=1)
    return f"; did you mean {plain[matches[0]]!r}?" if matches else ""


def shorten(value: Any, limit: int = 80) -> str:
    """Return a value as a message shows it: its `repr`, cut after `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
