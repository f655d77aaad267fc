"""Bad configurations: the whole message that each one gets, that no typing mistake passes, and that nothing escapes.

`test_config.py` has what a configuration may hold and each rule with the message of its breach. Here are whole files as
people and programs write them, and whatever hypothesis makes of them.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from hpsearch.cli import cli
from hpsearch.config import Config, DataConfig, Hyperparameters, ModelConfig, SearchConfig, build_config, load_config
from hpsearch.errors import ConfigError
from hpsearch.space import Choices, FloatRange, IntRange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pydantic import BaseModel

MODEL = "model: {name: some-model}\n"
DATA = "data: {train: reviews.csv}\n"
SPACE = "space:\n  learning_rate: {type: float, low: 1e-5, high: 1e-4, log: true}\n"
VALID = MODEL + DATA + SPACE
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
KEYS = "expected keys such as `model:` and `data:`"
KIND = "expected `type: float`, `type: int` or `type: categorical`"


# --- The table --------------------------------------------------------------------------------------------------------

BAD: dict[str, tuple[str | bytes, str]] = {
    # Files that are something else
    "a csv file": ("text,label\na,b\n", f"FILE: {KEYS}, got 'text,label a,b'"),
    "a shell's way to set": ("trials=3\n", f"FILE: {KEYS}, got 'trials=3'"),
    "a list of sections": ("- model: {name: m}\n- data: {train: d}\n",
                           f"FILE: {KEYS}, got [{{'model': {{'name': 'm'}}}}, {{'data': {{'train': 'd'}}}}]"),
    "TOML": ("[model]\nname = 'm'\n",
             "FILE, line 2, column 1: expected YAML, got: expected '<document start>', but found ('<scalar>',)"),
    "JSON cut off": ('{"model": {"name": "m"}, "data": {', "FILE, line 1, column 35: expected YAML, got: expected the "
                                                          "node content, but found '<stream end>'"),
    "UTF-16": (VALID.encode("utf-16"), "FILE: expected a YAML file in UTF-8, got: 'utf-8' codec can't decode byte 0xff "
                                       "in position 0: invalid start byte"),
    "gzip": (b"\x1f\x8b\x08\x00", "FILE: expected a YAML file in UTF-8, got: 'utf-8' codec can't decode byte 0x8b in "
                                 "position 1: invalid start byte"),
    "a merge conflict": (f"<<<<<<< HEAD\n{VALID}", "FILE, line 2, column 6: expected YAML, got: mapping values are not "
                                                  "allowed here"),
    # What YAML can do and a configuration need not
    "aliases of aliases": (VALID + LAUGHS, "FILE: expected up to 10,000 values, got more once aliases are put in"),
    "aliases of aliases, as a list": (re.sub("^.: ", "- ", LAUGHS, flags=re.M),
                                      "FILE: expected up to 10,000 values, got more once aliases are put in"),
    "an alias of itself": (DATA + SPACE + "model: &m {name: *m}\n",
                           "FILE: expected sections up to 20 deep, got deeper ones, or one in itself"),
    "sections without end": (VALID + "search: " + "{a: " * 30 + "1" + "}" * 30,
                             "FILE: expected sections up to 20 deep, got deeper ones, or one in itself"),
    "an undefined alias": (VALID + "search: *s\n",
                           "FILE, line 5, column 9: expected YAML, got: found undefined alias 's'"),
    "a Python object": (VALID + "search: !!python/object/apply:os.system [id]\n",
                        "FILE, line 5, column 9: expected YAML, got: could not determine a constructor for the tag "
                        "'tag:yaml.org,2002:python/object/apply:os.system'"),
    "a tag of one's own": (VALID + "metric: !best f1\n",
                           "FILE, line 5, column 9: expected YAML, got: could not determine a constructor for the tag "
                           "'!best'"),
    "a merge of another section": (VALID + "search: &s {trials: 3}\ndefaults:\n  <<: *s\n",
                                   "FILE: defaults.trials: expected a known key, got 'trials'"),
    "a key that is a number": (VALID + "1: x\n", "FILE: 1: expected a known key, got '1'"),
    "a key that is null": (VALID + "search: {~: 1}\n", "FILE: search.None: expected a known key, got 'None'"),
    "a key that is a list": (VALID + "? [a]\n: 1\n", "FILE: ('a',): expected a known key, got \"('a',)\""),
    "a number of thousands of digits": (VALID + f"search: {{seed: {'7' * 5000}}}\n",
                                        "FILE: expected YAML, got: Exceeds the limit (4300 digits) for integer string "
                                        "conversion: value has 5000 digits; use sys.set_int_max_str_digits() to "
                                        "increase the limit"),
    "a hexadecimal one": (VALID + f"search: {{seed: 0x{'f' * 5000}}}\n",
                          "FILE: expected whole numbers of up to 64 bits, got 20000 bits"),
    "a number past 64 bits": (VALID + "search: {trials: 9223372036854775808}\n",
                              "FILE: expected whole numbers of up to 64 bits, got 64 bits"),
    "a tab": ("model:\n\tname: m\n",
              "FILE, line 2, column 1: expected YAML, got: found character '\\t' that cannot start any token"),
    # Sections
    "keys that are names of types": (VALID + "float: 1\nint: 2\nsearch: {int: 3}\n",
                                     "FILE: search.int: expected a known key, got 'int'\n"
                                     "FILE: float: expected a known key, got 'float'\n"
                                     "FILE: int: expected a known key, got 'int'"),
    "a key of two lines": (VALID + '"a\\nb": 1\n', "FILE: a\\nb: expected a known key, got 'a\\nb'"),
    "only a model": (MODEL, "FILE: data: expected a value, got none\nFILE: space: expected a value, got none"),
    "a section that is text": ("model: some-model\n" + DATA + SPACE,
                               "FILE: model: expected a valid dictionary or instance of ModelConfig, got 'some-model'"),
    "a section that is a list": (VALID + "search: [trials, 3]\n",
                                 "FILE: search: expected a valid dictionary or instance of SearchConfig, got "
                                 "['trials', 3]"),
    "keys not indented": ("model:\nname: some-model\n" + DATA + SPACE,
                          "FILE: model: expected a valid dictionary or instance of ModelConfig, got None\n"
                          "FILE: name: expected a known key, got 'name'"),
    "no space after the colon": ("model: {name:some-model}\n" + DATA + SPACE,
                                 "FILE: model.name: expected a value, got none\n"
                                 "FILE: model.name:some-model: expected a known key, got 'name:some-model'"),
    "capitals": (VALID + "Search: {trials: 3}\n",
                 "FILE: Search: expected a known key, got 'Search'; did you mean 'search'?"),
    "a section in the wrong place": (VALID + "trials: 3\n", "FILE: trials: expected a known key, got 'trials'"),
    "an option of the command line": (VALID + "search: {timeout: 90m}\n",
                                      "FILE: search.timeout: expected a known key, got 'timeout'"),
    # Values
    "a path that is a number": (MODEL + "data: {train: 2024}\n" + SPACE,
                                "FILE: data.train: expected a valid string, got 2024"),
    "several training files": (MODEL + "data: {train: [a.csv, b.csv]}\n" + SPACE,
                               "FILE: data.train: expected a valid string, got ['a.csv', 'b.csv']"),
    "a share for a count": (MODEL + "data: {train: a.csv, validation_rows: 0.1}\n" + SPACE,
                            "FILE: data.validation_rows: expected a valid integer, got 0.1"),
    "labels as a list": (MODEL + "data: {train: a.csv, labels: [no, yes]}\n" + SPACE,
                         "FILE: data.labels: expected a valid dictionary, got ['no', 'yes']"),
    "labels that are one as text": (MODEL + "data: {train: a.csv, labels: {1: bad, '1': good, 2: fine}}\n" + SPACE,
                                    "FILE: data: expected labels that differ as text, without outer white space, got "
                                    "[1, '1', 2]"),
    "labels that differ by a space": (MODEL + "data: {train: a.csv, labels: {x: bad, ' x': good, y: fine}}\n" + SPACE,
                                      "FILE: data: expected labels that differ as text, without outer white space, got "
                                      "['x', ' x', 'y']"),
    "a label that is null": (MODEL + "data: {train: a.csv, labels: {~: bad, 1: good}}\n" + SPACE,
                             "FILE: data: expected a value for each label, got null; quote it where the word is meant"),
    "a label's name of spaces": (MODEL + "data: {train: a.csv, labels: {0: ' ', 1: good}}\n" + SPACE,
                                 "FILE: data: expected label names of visible characters, got ' '"),
    "a label's name that controls": (MODEL + 'data: {train: a.csv, labels: {0: "\\e[2J", 1: good}}\n' + SPACE,
                                     "FILE: data: expected label names of visible characters, got '\\x1b[2J'"),
    "evaluations without end": (VALID + "search: {evaluations: 1000000000}\n",
                                "FILE: search.evaluations: expected less than or equal to 10000, got 1000000000"),
    "epochs without end": (VALID + "defaults: {num_train_epochs: 1e308}\n",
                           "FILE: defaults.num_train_epochs: expected less than or equal to 100000, got 1e+308"),
    "a comma for a point": (VALID + "defaults: {weight_decay: '0,1'}\n",
                            "FILE: defaults.weight_decay: expected a valid number, got '0,1'"),
    "a value too long to show": (VALID + f"metric: {'f1' * 5000}\n",
                                 f"FILE: metric: expected 'f1', 'accuracy' or 'mcc', got '{('f1' * 40)[:76]}..."),
    # The space
    "a range as a list": (MODEL + DATA + "space: {learning_rate: [1e-5, 1e-4]}\n",
                          "FILE: space.learning_rate: expected a valid dictionary or object to extract fields from, "
                          "got [1e-05, 0.0001]"),
    "Optuna's name of a type": (MODEL + DATA + "space: {learning_rate: {type: loguniform, low: 1e-5, high: 1e-4}}\n",
                                f"FILE: space.learning_rate: {KIND}, got "
                                "{'type': 'loguniform', 'low': 1e-05, 'high': 0.0001}"),
    "choices of a range": (SPACE.replace("log: true", "choices: [1]") + MODEL + DATA,
                           "FILE: space.learning_rate.choices: expected a known key, got 'choices'"),
    "another word for a key": (SPACE.replace("low", "min") + MODEL + DATA,
                               "FILE: space.learning_rate.low: expected a value, got none\n"
                               "FILE: space.learning_rate.min: expected a known key, got 'min'"),
    "a seed in the space": (MODEL + DATA + "space: {seed: {type: int, low: 1, high: 9}}\n",
                            "FILE: space.seed: expected a hyperparameter's name, got 'seed'"),
    "a name that is a number": (MODEL + DATA + "space: {1: {type: int, low: 1, high: 9}}\n",
                                "FILE: space.1.[key]: expected a valid string, got 1"),
    "everything taken out": (MODEL + DATA + "space: {learning_rate: null}\n",
                             "FILE: space: Dictionary should have at least 1 item after validation, not 0, got {}"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_configuration_gets_this_message(tmp_path: Path, case: str) -> None:
    content, message = BAD[case]
    path = tmp_path / "a.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as raised:
        load_config(str(path))
    assert str(raised.value).replace(str(path), "FILE") == message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (f"search={LAUGHS}", "expected up to 10,000 values, got more once aliases are put in"),
        (f"search.seed=0x{'f' * 5000}", "expected whole numbers of up to 64 bits, got 20000 bits"),
        ("search=&s {trials: *s}", "expected sections up to 20 deep, got deeper ones, or one in itself"),
    ],
    ids=["aliases of aliases", "a hexadecimal number", "an alias of itself"],
)
def test_an_override_may_do_no_more_than_a_file(tmp_path: Path, override: str, message: str) -> None:
    (tmp_path / "a.yaml").write_text(VALID, encoding="utf-8")
    with pytest.raises(ConfigError) as raised:
        load_config(str(tmp_path / "a.yaml"), [override])
    assert str(raised.value) == f"--set {override}: {message}"


@pytest.mark.usefixtures("own_process")
def test_the_command_line_shows_keys_that_would_control_a_terminal_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(VALID + '"\\e[2Jsearch": {trials: 3}\n', encoding="utf-8")
    result = CliRunner().invoke(cli, ["run", "--config", str(path)])
    assert result.exit_code == 2
    assert result.stderr == (
        f"error: {path}: \\x1b[2Jsearch: expected a known key, got '\\x1b[2Jsearch'; did you mean 'search'?\n"
    )


# --- Typing mistakes --------------------------------------------------------------------------------------------------

SECTIONS: dict[str, type[BaseModel]] = {
    "": Config, "model.": ModelConfig, "data.": DataConfig, "defaults.": Hyperparameters, "search.": SearchConfig,
    "space.learning_rate.": FloatRange, "space.num_train_epochs.": IntRange, "space.weight_decay.": Choices,
}  # fmt: skip
FULL: dict[str, Any] = {
    "model": {"name": "some-model"},
    "data": {"train": "reviews.csv"},
    "space": {
        "learning_rate": {"type": "float", "low": 1e-5, "high": 1e-4, "log": True},
        "num_train_epochs": {"type": "int", "low": 2, "high": 10},
        "weight_decay": {"type": "categorical", "choices": [0.0, 0.1]},
    },
}


def mistakes(word: str) -> Iterator[str]:
    """Yield a word with each letter left out, doubled, exchanged with the next one, and written large."""
    for i in range(len(word)):
        yield word[:i] + word[i + 1 :]
        yield word[:i] + word[i] * 2 + word[i + 1 :]
        yield word[:i] + word[i : i + 2][::-1] + word[i + 2 :]
        yield word[:i] + word[i].upper() + word[i + 1 :]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section or "top")
def test_no_key_with_a_typing_mistake_is_passed_over(section: str) -> None:
    known = set(SECTIONS[section].model_fields)
    for key in known:
        for wrong in {*mistakes(key)} - known - {""}:
            with pytest.raises(ConfigError) as raised:
                build_config(FULL, [f"{section}{wrong}=1"], where="here")
            told = re.search(
                rf"^here: {re.escape(section + wrong)}: expected a known key, got '{wrong}'(.*)$",
                str(raised.value),
                re.M,
            )
            assert told, f"{section}{wrong}: {raised.value}"
            if len(wrong) > 3:
                assert told[1].startswith("; did you mean '"), f"{section}{wrong}: {told[0]}"


@pytest.mark.parametrize("name", sorted(Hyperparameters.model_fields))
def test_no_hyperparameter_with_a_typing_mistake_is_searched(name: str) -> None:
    for wrong in {*mistakes(name)} - set(Hyperparameters.model_fields) - {""}:
        with pytest.raises(
            ConfigError, match=rf"space.{wrong}: expected a hyperparameter's name, got '{wrong}'; did you"
        ):
            build_config(FULL, [f"space.{wrong}={{type: float, low: 0.1, high: 0.2}}"], where="here")


# --- Anything at all --------------------------------------------------------------------------------------------------

WRITTEN = """\
study: mine
metric: accuracy
model: {name: some-model, max_length: 64}
data:
  train: reviews.csv
  labels: {0: negative, 1: positive}
  validation_rows: 100
defaults: {learning_rate: 3e-5, weight_decay: 0.1}
space:
  learning_rate: {type: float, low: 1e-5, high: 1e-4, log: true}
  num_train_epochs: {type: int, low: 2, high: 12}
  per_device_train_batch_size: {type: categorical, choices: [16, 32]}
search: {trials: 5, seed: 7, pruner: none}
"""
SMALL_WORDS = ["study", "model", "name", "data", "labels", "space", "learning_rate", "type", "low", "high", "choices",
               "float", "int", "categorical", "search", "trials", "f1", "", " ", "a/b", "..", "\0", "é",
               "\x1b[2J"]  # fmt: skip
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**80), 2**80)
    | st.sampled_from([0, 1, -1, 2**31, 2**63 - 1, 2**63, -(2**63), 10**400])
    | st.floats()
    | st.sampled_from(SMALL_WORDS)
    | st.text(max_size=8)
)
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(SMALL_WORDS) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value of a tree."""
    yield path
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from places(value, (*path, key))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from places(value, (*path, index))


def at(tree: Any, path: tuple[Any, ...]) -> Any:
    for part in path:
        tree = tree[part]
    return tree


@st.composite
def mutants(draw: st.DrawFn) -> Any:
    """Return a full configuration in which one to three values were deleted, renamed, moved or replaced."""
    tree = json.loads(json.dumps(build_config({**FULL, "study": "mine"}, where="x").model_dump(mode="json")))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from([path for path in places(tree) if path]))
        parent, last = at(tree, path[:-1]), path[-1]
        deed = draw(st.sampled_from(["delete", "rename", "replace", "wrap", "copy"]))
        if deed == "delete":
            del parent[last]
        elif deed == "rename" and isinstance(parent, dict):
            parent[draw(st.sampled_from([*SMALL_WORDS, *mistakes(str(last))]) | st.text(max_size=5))] = parent.pop(last)
        elif deed == "wrap":
            parent[last] = draw(st.sampled_from([[parent[last]], {"value": parent[last]}, str(parent[last])]))
        elif deed == "copy":
            parent[last] = json.loads(json.dumps(at(tree, draw(st.sampled_from(list(places(tree)))))))
        else:
            parent[last] = draw(trees)
    return tree


def as_yaml(tree: Any) -> str:
    """Return a tree as JSON, which is YAML but for the names of what is no finite number."""
    return json.dumps(tree).replace("NaN", ".nan").replace("-Infinity", "-.inf").replace("Infinity", ".inf")


def refusal(make: Callable[[], Config]) -> str | Config:
    """Return the configuration or the message of its refusal; any other error escapes."""
    try:
        return make()
    except ConfigError as error:
        return str(error)


def assert_kept(given: Any, kept: Any, path: str = "") -> None:
    """Check that everything which was written stands in what was read of it."""
    if isinstance(given, dict):
        for key, value in given.items():
            if path == "space" and value is None:
                continue  # so a dimension is taken out
            assert isinstance(kept, dict), path
            name = key.strip() if path == "data.labels" else key
            assert name in kept, f"{path}.{key} was passed over"
            assert_kept(value, kept[name], f"{path}.{key}".strip("."))
    elif isinstance(given, list):
        assert [*given] == [*kept], path
    else:
        assert given == kept, path


@given(tree=mutants() | trees)
def test_a_tree_is_read_with_everything_in_it_or_refused(tmp_path: Path, tree: Any) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(as_yaml(tree), encoding="utf-8")
    result = refusal(lambda: load_config(str(path)))
    if isinstance(result, str):
        assert all(line.startswith(str(path)) for line in result.split("\n"))
        assert len(result) < 20_000
    else:
        assert_kept(tree, json.loads(json.dumps(result.model_dump(mode="json"))))


YAML_MARKS = ["\t", "&a ", "*a", "<<: *a\n", "!!int ", "!!python/name:os.system ", "---\n", "? ", "- ", "%TAG ! x\n",
              "|\n", ": ", "#", "'", '"', "0x", "1e9999", ".nan"]  # fmt: skip


@st.composite
def edited(draw: st.DrawFn) -> str:
    """Return the text of a configuration in which pieces were deleted, repeated, moved or put in."""
    text = WRITTEN
    for _ in range(draw(st.integers(1, 4))):
        start, end = sorted(draw(st.tuples(st.integers(0, len(text)), st.integers(0, len(text)))))
        end = min(end, start + draw(st.integers(0, 40)))
        piece = draw(st.sampled_from(["", text[start:end] * 2, *YAML_MARKS]) | st.text(max_size=6))
        text = text[:start] + piece + text[end:]
    return text


@given(text=edited())
def test_an_edited_file_is_a_configuration_or_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    result = refusal(lambda: load_config(str(path)))
    assert isinstance(result, Config) or result.startswith(str(path))


known_keys = st.sampled_from(sorted({field for model in SECTIONS.values() for field in model.model_fields}))
dotted = st.sampled_from(
    [".".join(path) for path in places(FULL) if path and all(isinstance(p, str) for p in path)]
) | (st.lists(known_keys | st.sampled_from(SMALL_WORDS) | st.text(max_size=4), min_size=1, max_size=4).map(".".join))


@given(
    before=st.lists(st.tuples(dotted, edited()).map("=".join) | st.text(max_size=30), max_size=2),
    key=dotted,
    value=trees,
)
def test_an_override_is_applied_or_refused(before: list[str], key: str, value: Any) -> None:
    given = [*before, f"{key}={as_yaml(value)}"]
    result = refusal(lambda: build_config(FULL, given, where="here"))
    if isinstance(result, str):
        assert result.startswith(("here: ", *(f"--set {override}" for override in given)))
        return
    for name in reversed(key.split(".")):
        value = {name: value}
    assert_kept(value, json.loads(json.dumps(result.model_dump(mode="json"))))
