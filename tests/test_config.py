"""What a configuration may hold, how it is overridden, and that every mistake is a `ConfigError` with its place."""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.samplers import RandomSampler
from optuna.trial import FixedTrial
from pydantic import ValidationError

from hpsearch.config import (
    PACKAGE_FOLDER,
    Hyperparameters,
    build_config,
    digest,
    load_config,
    resolve_path,
    shipped_configs,
)
from hpsearch.errors import ConfigError
from hpsearch.space import Choices, FloatRange, IntRange, suggest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from hpsearch.config import Config

VALID = """\
metric: accuracy
model: {name: some-model}
data: {train: reviews.csv}
space:
  learning_rate: {type: float, low: 1e-5, high: 1e-4, log: true}
"""
FUZZ = settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def valid_tree() -> dict[str, Any]:
    return {
        "model": {"name": "some-model"},
        "data": {"train": "reviews.csv"},
        "space": {"learning_rate": {"type": "float", "low": 1e-5, "high": 1e-4, "log": True}},
    }


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], str]:
    """Return a function that writes a configuration file and returns its path."""

    def written(text: str) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return written


# --- Files ------------------------------------------------------------------------------------------------------------


def test_the_shipped_configurations_are_these() -> None:
    assert list(shipped_configs()) == ["nsmc-mbert", "own-data", "quickstart"]


@pytest.mark.parametrize("name", list(shipped_configs()))
def test_every_shipped_configuration_loads_and_is_its_own_study(name: str) -> None:
    config = load_config(name)
    assert config.study == name
    assert set(config.space) <= set(Hyperparameters.model_fields)


def test_a_file_of_the_working_directory_goes_before_a_shipped_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "quickstart").write_text(VALID, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert load_config("quickstart").metric == "accuracy"


def test_a_study_named_in_the_file_goes_before_the_name_of_the_file(write: Callable[[str], str]) -> None:
    assert load_config(write(VALID)).study == "mine"
    assert load_config(write(VALID + "study: other\n")).study == "other"


@pytest.mark.parametrize("number", ["1e-5", "1E-5", "1.0e-5", "0.00001", "+1e-5"])
def test_scientific_notation_is_a_number(write: Callable[[str], str], number: str) -> None:
    config = load_config(write(VALID.replace("low: 1e-5", f"low: {number}")))
    dimension = config.space["learning_rate"]
    assert isinstance(dimension, FloatRange)
    assert dimension.low == 1e-5


@pytest.mark.parametrize("word", ["no", "yes", "on", "off", "y", "N"])
def test_what_yaml_1_1_took_for_a_boolean_stays_a_word(write: Callable[[str], str], word: str) -> None:
    config = load_config(write(VALID + f"study: {word}\n"), [f"data.labels={{{word}: {word}, maybe: other}}"])
    assert config.study == word
    assert config.data.labels == {word: word, "maybe": "other"}


def test_label_values_are_keyed_by_their_text_in_the_order_given(write: Callable[[str], str]) -> None:
    config = load_config(write(VALID), ["data.labels={1: positive, 0: negative}"])
    assert list((config.data.labels or {}).items()) == [("1", "positive"), ("0", "negative")]


def test_a_byte_order_mark_and_windows_line_ends_are_read_over(tmp_path: Path) -> None:
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + VALID.replace("\n", "\r\n").encode())
    assert load_config(str(path)).metric == "accuracy"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(b"", "expected keys such as `model:` and `data:`, got None", id="empty"),
        pytest.param(b"# nothing\n", "expected keys such as `model:` and `data:`, got None", id="comment only"),
        pytest.param(b"- a\n- b\n", r"expected keys such as .*, got \['a', 'b'\]", id="list"),
        pytest.param(b"study\n", "expected keys such as .*, got 'study'", id="plain value"),
        pytest.param(b"study: \xff\n", "expected a YAML file in UTF-8, got: .*0xff", id="not UTF-8"),
        pytest.param(b"study: \x00\n", "expected YAML, got: unacceptable character", id="control character"),
        pytest.param(b"model: {name: a\ndata: 1\n", "line 2, column 5: expected YAML, got: ", id="open brace"),
        pytest.param(b"a: b: c\n", "line 1, column 5: expected YAML, got: mapping values", id="two colons"),
        pytest.param(
            b"a: 1\n---\nb: 2\n", "line 2, column 1: expected YAML, got: .*another document", id="two documents"
        ),
        pytest.param(b"x: !!python/object:os.system x\n", "line 1, column 4: expected YAML", id="tag that runs code"),
        pytest.param(b"x: !!int ''\n", "expected YAML, got: ", id="value against its tag"),
        pytest.param(b"x: !!bool maybe\n", "expected YAML, got: ", id="boolean against its tag"),
        pytest.param(b'x: "\\UFFFFFFFF"\n', "expected YAML, got: ", id="code point that is none"),
        pytest.param(b"x: " + b"[" * 2000, "expected YAML, got: ", id="very deep"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused_with_its_place(
    tmp_path: Path, content: bytes, expected: str
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"^{re.escape(str(path))}[:,].*{expected}"):
        load_config(str(path))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param("quikstart", r"there is no such file; did you mean 'quickstart'\?", id="typing mistake"),
        pytest.param("nowhere/at-all.yaml", "there is no such file", id="no file"),
        pytest.param(".", "there is no such file", id="folder"),
        pytest.param("a" * 300, "there is no such file", id="longer than a file's name may be"),
    ],
)
def test_a_name_that_is_no_configuration_is_answered_with_those_there_are(name: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=f"expected a YAML file or one of nsmc-mbert, .*, quickstart; {expected}$"):
        load_config(name)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        pytest.param(VALID + "metric: f1\n", "metric", id="at the top"),
        pytest.param(VALID + "search: {seed: 1, trials: 3, seed: 2}\n", "seed", id="in a section"),
        pytest.param(
            VALID + "  learning_rate: {type: float, low: 1e-4, high: 1e-3}\n", "learning_rate", id="in the space"
        ),
    ],
)
def test_a_key_given_twice_is_refused(write: Callable[[str], str], text: str, key: str) -> None:
    with pytest.raises(ConfigError, match=rf'line \d+, column \d+: expected YAML, got: found duplicate key "{key}"'):
        load_config(write(text))


# --- Mistakes ---------------------------------------------------------------------------------------------------------


def test_all_mistakes_of_a_file_are_told_at_once_each_with_place_expected_and_got(write: Callable[[str], str]) -> None:
    path = write(
        "metric: auc\n"
        "model: {name: some-model, max_length: 2}\n"
        "data: {train_rows: -3, keep_overlap: true}\n"
        "defaults: {learning_rate: fast}\n"
        "space:\n"
        "  num_train_epochs: {type: int, low: 5, high: 2}\n"
        "  weight_decay: {type: normal, low: 0, high: 0.1}\n"
        "search: {trials: 0, sampler: grid}\n"
    )
    with pytest.raises(ConfigError, match="metric") as caught:
        load_config(path)
    lines = [line.removeprefix(f"{path}: ") for line in str(caught.value).split("\n")]
    assert lines == [
        "metric: expected 'f1', 'accuracy' or 'mcc', got 'auc'",
        "model.max_length: expected greater than or equal to 4, got 2",
        "data.train: expected a value, got none",
        "data.train_rows: expected greater than or equal to 2, got -3",
        "data.keep_overlap: expected a known key, got 'keep_overlap'; did you mean 'keep_overlaps'?",
        "defaults.learning_rate: expected a valid number, got 'fast'",
        "space.num_train_epochs: expected low below high, got low 5 and high 2",
        "space.weight_decay: expected `type: float`, `type: int` or `type: categorical`, "
        "got {'type': 'normal', 'low': 0, 'high': 0.1}",
        "search.trials: expected greater than or equal to 1, got 0",
        "search.sampler: expected 'tpe', 'random' or 'gp', got 'grid'",
    ]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("serach={}", "serach: expected a known key, got 'serach'; did you mean 'search'?"),
        ("model.nmae=x", "model.nmae: expected a known key, got 'nmae'; did you mean 'name'?"),
        ("data.tran=x", "data.tran: expected a known key, got 'tran'; did you mean 'train'?"),
        ("defaults.learning_rat=1e-5", "got 'learning_rat'; did you mean 'learning_rate'?"),
        ("search.trails=3", "search.trails: expected a known key, got 'trails'; did you mean 'trials'?"),
        ("space.learning_rate.hihg=1e-4", "space.learning_rate.hihg: .*; did you mean 'high'?"),
        (
            "space.lerning_rate={type: float, low: 0.1, high: 0.2}",
            "space.lerning_rate: expected a hyperparameter's name, got 'lerning_rate'; did you mean 'learning_rate'?",
        ),
        ("zzz=1", "zzz: expected a known key, got 'zzz'$"),
        ("search.seeed.x=1", "search.seeed: expected a known key"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(override: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected.replace("?", r"\?")):
        build_config(valid_tree(), [override], where="here")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        pytest.param(
            ["defaults.learning_rate=2e-4"],
            r"space.learning_rate: expected to hold trial 0's value, got defaults.learning_rate = 0.0002 outside it",
            id="above a range",
        ),
        pytest.param(
            ["space.num_train_epochs={type: int, low: 1, high: 5}"],
            r"space.num_train_epochs: expected to hold .* = 10 outside it",
            id="the built-in default",
        ),
        pytest.param(
            ["space.per_device_train_batch_size={type: categorical, choices: [8, 16]}"],
            r"space.per_device_train_batch_size: .* = 32 outside it",
            id="not among the choices",
        ),
        pytest.param(
            ["space.warmup_steps={type: int, low: 0, high: 2}"],
            r"space.warmup_steps: .* = 0.0 outside it",
            id="a real number in a range of whole ones",
        ),
        pytest.param(
            ["space.hidden_dropout_prob={type: float, low: 0.0, high: 0.3}"],
            r"expected a value for trial 0 in defaults.hidden_dropout_prob, got none; add it",
            id="no default",
        ),
    ],
)
def test_the_defaults_must_lie_in_the_space(overrides: list[str], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        build_config(valid_tree(), overrides, where="here")


@pytest.mark.parametrize(
    ("dimension", "expected"),
    [
        ("learning_rate={type: float, low: 1e-5, high: 2.0}", "space.learning_rate: expected less than 1, got 2.0"),
        ("weight_decay={type: float, low: -0.1, high: 0.1}", "space.weight_decay: expected greater than or equal to 0"),
        ("per_device_train_batch_size={type: categorical, choices: [32, 0]}", "greater than or equal to 1, got 0"),
        ("per_device_train_batch_size={type: float, low: 1.5, high: 64}", "expected a valid integer, got 1.5"),
        ("lr_scheduler_type={type: categorical, choices: [linear, lineal]}", "expected 'linear', .*, got 'lineal'"),
        ("per_device_train_batch_size={type: categorical, choices: [true, 32]}", "expected a valid integer, got True"),
    ],
)
def test_a_space_cannot_draw_what_a_training_refuses(dimension: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        build_config(valid_tree(), [f"space.{dimension}"], where="here")


@pytest.mark.parametrize(
    ("dimension", "expected"),
    [
        pytest.param(
            "{type: float, low: 0.2, high: 0.1}", "expected low below high, got low 0.2 and high 0.1", id="turned"
        ),
        pytest.param("{type: float, low: 0.1, high: 0.1}", "expected low below high", id="one point"),
        pytest.param(
            "{type: float, low: 0.0, high: 0.1, log: true}", "expected low above 0 for a log scale", id="log of 0"
        ),
        pytest.param(
            "{type: int, low: 0, high: 3, log: true}", "expected low above 0 for a log scale", id="int log of 0"
        ),
        pytest.param("{type: float, low: 0.0, high: .inf}", "high: expected a finite number, got inf", id="infinite"),
        pytest.param(
            "{type: float, low: .nan, high: 1.0}", "low: expected a finite number, got nan", id="not a number"
        ),
        pytest.param(
            "{type: int, low: 1.0, high: 3}", "low: expected a valid integer, got 1.0", id="real bound of int"
        ),
        pytest.param("{type: float, low: 0.0}", "high: expected a value, got none", id="no upper bound"),
        pytest.param(
            "{low: 0.0, high: 0.1}", "expected `type: float`, `type: int` or `type: categorical`", id="no type"
        ),
        pytest.param("{type: categorical, choices: []}", "choices: .*at least 1 item", id="no choices"),
        pytest.param("{type: categorical, choices: [1, 1]}", r"expected different choices, got \[1, 1\]", id="twice"),
        pytest.param("{type: categorical, choices: [1, 1.0]}", "expected different choices", id="equal numbers"),
        pytest.param("{type: categorical, choices: 5}", "choices: expected a valid tuple, got 5", id="choices no list"),
        pytest.param("{type: categorical, choices: [[1]]}", "choices.0", id="choice no scalar"),
        pytest.param("0.1", ": expected a valid dictionary", id="no range at all"),
    ],
)
def test_a_dimension_that_cannot_be_drawn_from_is_refused(dimension: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=f"^here: space.weight_decay.*{expected}"):
        build_config(valid_tree(), [f"space.weight_decay={dimension}"], where="here")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("search.trials=true", "search.trials: expected a valid integer, got True"),
        ("search.trials=2.5", "search.trials: expected a valid integer, got 2.5"),
        ("search.trials=2.0", "search.trials: expected a valid integer, got 2.0"),
        ("search.trials='2'", "search.trials: expected a valid integer, got '2'"),
        ("search.seed=-1", "search.seed: expected greater than or equal to 0, got -1"),
        ("search.seed=4294967296", "search.seed: expected less than 4294967296, got 4294967296"),
        ("defaults.learning_rate=true", "defaults.learning_rate: expected a valid number, got True"),
        ("defaults.learning_rate='1e-5'", "defaults.learning_rate: expected a valid number, got '1e-5'"),
        ("defaults.learning_rate=.inf", "defaults.learning_rate: expected a finite number, got inf"),
        ("defaults.weight_decay=1.0", "defaults.weight_decay: expected less than 1, got 1.0"),
        ("defaults.num_train_epochs=true", "defaults.num_train_epochs: expected a valid .*, got True"),
        ("data.keep_overlaps=1", "data.keep_overlaps: expected a valid boolean, got 1"),
        ("data.keep_overlaps=yes", "data.keep_overlaps: expected a valid boolean, got 'yes'"),
        ("model.name=5", "model.name: expected a valid string, got 5"),
        ("model.name=''", "model.name: String should have at least 1 character, got ''"),
        ("study=2020-01-01", r"study: expected a valid string, got datetime.date\(2020, 1, 1\)"),
        ("data.labels={0: negative}", r"data: expected at least two labels, got \['0'\]"),
        ("data.labels={0: same, 1: same}", r"data: expected a name of its own for each label, got \['same', 'same'\]"),
        ("data.labels={0: 1, 1: 2}", "data.labels.0: expected a valid string, got 1"),
        ("data.label_column=text", "data: expected two different columns for text and label, got 'text' for both"),
        ("data.quoting=maybe", "data.quoting: expected 'auto', 'standard' or 'none', got 'maybe'"),
        ("space={}", "space: Dictionary should have at least 1 item"),
        ("defaults=", "defaults: expected a valid dictionary or instance of Hyperparameters, got None"),
    ],
)
def test_a_value_of_another_type_or_range_is_refused_never_converted(override: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=f"^here: {expected}"):
        build_config(valid_tree(), [override], where="here")


def test_whole_numbers_are_taken_for_real_ones() -> None:
    config = build_config(valid_tree(), ["defaults.warmup_steps=0", "defaults.max_grad_norm=1"], where="here")
    assert config.defaults.warmup_steps == 0.0
    assert isinstance(config.defaults.max_grad_norm, float)


def test_replacing_a_hyperparameter_checks_it_again() -> None:
    assert Hyperparameters().replace({"learning_rate": 0.1}).learning_rate == 0.1
    with pytest.raises(ValidationError, match="less than 1"):
        Hyperparameters().replace({"learning_rate": 1.5})


# --- Overrides --------------------------------------------------------------------------------------------------------


def test_an_override_reaches_a_nested_key_and_leaves_its_neighbours(write: Callable[[str], str]) -> None:
    config = load_config(write(VALID), ["space.learning_rate.high=5e-4", "model.name=other", "metric=mcc"])
    assert config.space["learning_rate"] == FloatRange(low=1e-5, high=5e-4, log=True)
    assert config.model.name == "other"
    assert config.metric == "mcc"


def test_an_override_makes_the_sections_it_needs(write: Callable[[str], str]) -> None:
    config = load_config(write(VALID), ["search.seed=7", "data.labels.0=negative", "data.labels.1=positive"])
    assert config.search.seed == 7
    assert config.data.labels == {"0": "negative", "1": "positive"}


def test_the_last_of_two_overrides_counts() -> None:
    assert build_config(valid_tree(), ["search.seed=7", "search.seed=8"], where="here").search.seed == 8


def test_an_override_may_hold_equals_signs() -> None:
    assert build_config(valid_tree(), ["data.train=a=b.csv"], where="here").data.train == "a=b.csv"


def test_an_override_leaves_the_given_tree_as_it_was() -> None:
    tree = valid_tree()
    before = copy.deepcopy(tree)
    build_config(tree, ["space.learning_rate.high=5e-4", "search.seed=7"], where="here")
    assert tree == before


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        pytest.param("search.seed", "expected KEY=VALUE with a dotted key", id="no equals sign"),
        pytest.param("", "expected KEY=VALUE with a dotted key", id="empty"),
        pytest.param("=7", "expected KEY=VALUE with a dotted key", id="no key"),
        pytest.param("search..seed=7", "expected KEY=VALUE with a dotted key", id="empty part"),
        pytest.param("search.=7", "expected KEY=VALUE with a dotted key", id="empty last part"),
        pytest.param("a." * 2000 + "b=1", "expected KEY=VALUE with a dotted key", id="thousands of parts"),
        pytest.param(
            "model.name.first=x", "expected a key with parts, got the plain value 'some-model'", id="plain value"
        ),
        pytest.param("search.seed=[1", "line 1, column 3: expected YAML, got: ", id="no YAML"),
        pytest.param("search.seed=!!int ''", "expected YAML, got: ", id="value against its tag"),
        pytest.param("search.seed={a: 1, a: 2}", "expected YAML, got: found duplicate key", id="key twice"),
        pytest.param("study=\ud800", "expected YAML, got: unacceptable character", id="bytes that are no UTF-8"),
    ],
)
def test_a_malformed_override_is_refused_with_what_was_given(override: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=f"--set {re.escape(override)}.*{expected}"):
        build_config(valid_tree(), [override], where="here")


# --- Paths ------------------------------------------------------------------------------------------------------------


def test_paths_are_read_from_the_working_directory_the_home_or_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert resolve_path("a.csv") == tmp_path / "a.csv"
    assert resolve_path("/a.csv").as_posix() == "/a.csv"
    assert resolve_path("~/a.csv") == tmp_path / "home" / "a.csv"
    assert resolve_path("hpsearch:quickstart/reviews.tsv") == PACKAGE_FOLDER / "quickstart" / "reviews.tsv"


def test_a_path_of_a_user_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'~no-such-user/a.csv': expected a path that can be looked up, got: "):
        resolve_path("~no-such-user/a.csv")


# --- Properties -------------------------------------------------------------------------------------------------------

reals = st.floats(min_value=-1e6, max_value=1e6, allow_subnormal=False)
positive_reals = st.floats(min_value=1e-9, max_value=1e6)


@st.composite
def float_ranges(draw: st.DrawFn) -> FloatRange:
    log = draw(st.booleans())
    low, high = sorted(draw(st.lists(positive_reals if log else reals, min_size=2, max_size=2, unique=True)))
    return FloatRange(low=low, high=high, log=log)


@st.composite
def int_ranges(draw: st.DrawFn) -> IntRange:
    log = draw(st.booleans())
    numbers = st.integers(min_value=1 if log else -(10**6), max_value=10**6)
    low, high = sorted(draw(st.lists(numbers, min_size=2, max_size=2, unique=True)))
    return IntRange(low=low, high=high, log=log)


scalars = st.booleans() | st.integers(-1000, 1000) | st.floats(-1e3, 1e3) | st.text(max_size=5)
choices = st.lists(scalars, min_size=1, max_size=5, unique=True).map(lambda values: Choices(choices=tuple(values)))
dimensions = float_ranges() | int_ranges() | choices


@settings(deadline=None, max_examples=60)
@given(dimension=dimensions, seed=st.integers(0, 2**32 - 1))
def test_whatever_is_drawn_lies_in_its_dimension(dimension: FloatRange | IntRange | Choices, seed: int) -> None:
    study = optuna.create_study(sampler=RandomSampler(seed=seed))
    for _ in range(3):
        trial = study.ask()
        value = dimension.suggest(trial, "x")
        assert value in dimension
        assert dimension.suggest(trial, "x") == value
        assert type(value) in {float: (float,), int: (int,)}.get(type(getattr(dimension, "low", "")), (type(value),))


@settings(deadline=None)
@given(dimension=dimensions, data=st.data())
def test_every_value_of_a_dimension_can_be_drawn(
    dimension: FloatRange | IntRange | Choices, data: st.DataObject
) -> None:
    if isinstance(dimension, FloatRange):
        value: Any = data.draw(st.floats(dimension.low, dimension.high))
    elif isinstance(dimension, IntRange):
        value = data.draw(st.integers(dimension.low, dimension.high))
    else:
        value = data.draw(st.sampled_from(dimension.choices))
    assert value in dimension
    assert suggest(FixedTrial({"x": value}), {"x": dimension}) == {"x": value}


@pytest.mark.parametrize("value", [0.5, 3.5, "2", True, None, float("nan")], ids=repr)
def test_what_lies_outside_is_not_in_a_range(value: object) -> None:
    assert value not in FloatRange(low=1.0, high=3.0)
    assert value not in IntRange(low=1, high=3)


names = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=10)
words = st.text("ab01가é🙂", min_size=1, max_size=5)
settings_in_space = st.fixed_dictionaries(
    {},
    optional={
        "learning_rate": float_ranges().filter(lambda r: 0 < r.low <= 5e-5 <= r.high < 1),
        "num_train_epochs": st.just(IntRange(low=2, high=10)) | st.just(FloatRange(low=0.5, high=10.5)),
        "per_device_train_batch_size": st.permutations([8, 16, 32]).map(lambda c: Choices(choices=tuple(c))),
        "weight_decay": st.floats(0.01, 0.5).map(lambda high: FloatRange(low=0.0, high=high)),
        "lr_scheduler_type": st.just(Choices(choices=("cosine", "linear"))),
    },
).filter(bool)


@settings(deadline=None, max_examples=60)
@given(
    space=st.fixed_dictionaries({}, optional={}) | settings_in_space,
    study=names,
    labels=st.none() | st.dictionaries(words, words, min_size=2, max_size=4),
    seed=st.integers(0, 2**32 - 1),
    rows=st.none() | st.integers(2, 10**9),
)
def test_a_configuration_comes_back_from_what_is_stored_of_it(
    space: dict[str, Any], study: str, labels: dict[str, str] | None, seed: int, rows: int | None
) -> None:
    if labels is not None and len(set(labels.values())) < len(labels):
        labels = None
    tree = {
        **valid_tree(),
        "study": study,
        "data": {"train": "reviews.csv", "labels": labels, "train_rows": rows},
        "search": {"seed": seed},
    }
    tree["space"] |= {name: dimension.model_dump() for name, dimension in space.items()}
    config = build_config(tree, where="here")
    assert build_config(config.model_dump(), where="here") == config
    stored = build_config(config.model_dump(mode="json"), where="here")
    assert stored == config
    assert list(stored.space) == list(config.space)  # the order in which a trial draws


@pytest.mark.parametrize("name", list(shipped_configs()))
def test_a_shipped_configuration_comes_back_from_what_is_stored_of_it(name: str) -> None:
    config = load_config(name)
    assert build_config(config.model_dump(mode="json"), where="here") == config


def test_a_digest_is_the_same_for_any_order_of_keys_and_differs_with_a_value() -> None:
    tree = valid_tree()
    assert digest(dict(reversed(tree.items()))) == digest(tree)
    assert digest({**tree, "metric": "accuracy"}) != digest(tree)


# --- Anything at all --------------------------------------------------------------------------------------------------

yaml_like = st.text(st.sampled_from("{}[]:,-&*!|>%@`#'\"\\ \n\tabn019.eE_~?<=+/é가"), max_size=60)
fragments = st.lists(
    st.sampled_from(
        [
            *VALID.splitlines(keepends=True), "model:\n", "  name: x\n", "data:\n", "  train: [\n", "space: &a\n",
            "  <<: *a\n", "  labels: {0: a, true: b}\n", "!!set {a}\n", "? [1]\n", ": 1\n", "search: {seed: 1e999}\n",
            "defaults: !!float x\n", "study: 2020-13-01\n", "%YAML 1.1\n", "---\n", "...\n", "\ufeff",
            "x: !!omap [a]\n", "x: !!binary '*'\n", "- \t\n", "metric: !!null f1\n",
        ]
    ),
    max_size=8,
).map("".join)  # fmt: skip
keys = st.sampled_from(
    ["study", "model", "model.name", "data.labels", "data.labels.0", "space", "space.learning_rate", "search.seed",
     "space.learning_rate.type", "space.learning_rate.choices", "space.weight_decay", "defaults", "defaults.dropout"]
)  # fmt: skip


def refusal(config: Callable[[], Config]) -> str | None:
    """Return the message of the configuration error, or None where there is none; any other error escapes."""
    try:
        config()
    except ConfigError as error:
        return str(error)
    return None


@FUZZ
@given(text=st.binary(max_size=60) | (st.text(max_size=60) | yaml_like | fragments).map(str.encode))
def test_any_file_is_a_configuration_or_a_config_error(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "any.yaml"
    path.write_bytes(text)
    message = refusal(lambda: load_config(str(path)))
    assert message is None or message.startswith(str(path))


@FUZZ
@given(
    override=st.text(st.characters(), max_size=40)
    | st.tuples(keys, st.text(max_size=40) | yaml_like | fragments).map("=".join)
)
def test_any_override_is_applied_or_a_config_error(override: str) -> None:
    message = refusal(lambda: build_config(valid_tree(), [override], where="here"))
    assert message is None or message.startswith(("here: ", f"--set {override}"))
