"""Bad invocations of every command: one message that names what was expected, status 2, and nothing written."""

from __future__ import annotations

import gc
import hashlib
import json
import re
import shutil
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from click.testing import CliRunner
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial
from ruamel.yaml import YAML

from hpsearch.cli import cli
from hpsearch.config import load_config
from hpsearch.study import create_or_resume, open_storage, study_lock
from tests.conftest import toy_rows, write_csv

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

pytestmark = pytest.mark.usefixtures("own_process")
CONFIG = "model/config.json"


@pytest.fixture(scope="session")
def template(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model, data, a configuration, and studies that hold no finished trial."""
    folder = tmp_path_factory.mktemp("cli")
    shutil.copytree(tiny_model, folder / "model")
    write_csv(folder / "toy.csv", toy_rows(60, seed=1))
    tree: dict[str, Any] = {
        "model": {"name": "./model"},
        "data": {"train": "toy.csv", "validation_rows": 10, "test_rows": 10},
        "space": {"weight_decay": {"type": "float", "low": 0.0, "high": 0.1}},
        "search": {"trials": 2},
    }
    with (folder / "toy.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(tree, file)
    url = f"sqlite:///{folder}/studies/hpsearch.db"
    storage = open_storage(url, create=True)
    config = load_config(str(folder / "toy.yaml"))
    create_or_resume(storage, "toy", config, study_lock(config, data="d", model="m"))
    for name in ("theirs", "a/b"):
        optuna.create_study(storage=storage, study_name=name)
    del storage
    gc.collect()
    return folder


@pytest.fixture
def folder(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working directory, a copy of the template."""
    folder = tmp_path / "here"
    shutil.copytree(template, folder)
    monkeypatch.chdir(folder)
    return folder


def invoke(*arguments: str, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(cli, arguments, prog_name="hpsearch", input=stdin)


def contents(folder: Path) -> dict[str, str]:
    """Return every path under a folder with a hash of what it holds.

    Without the two files that SQLite keeps beside a database while this process has it open; of these an empty `-wal`
    says that nothing was written to it.
    """
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
        if not path.name.endswith("-shm") and not (path.name.endswith("-wal") and not path.stat().st_size)
    }


# --- Ways to make something bad ---------------------------------------------------------------------------------------


def nothing(folder: Path) -> None:
    """Leave the folder as it is."""


def a_file(name: str, content: str | bytes) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return make


def a_folder(name: str, **files: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).mkdir()
        for file, content in files.items():
            (folder / name / file.replace("_json", ".json")).write_text(content, encoding="utf-8")

    return make


def a_changed(name: str, **changes: Any) -> Callable[[Path], None]:
    """Change keys of a JSON file; None deletes one."""

    def make(folder: Path) -> None:
        values = {**json.loads((folder / name).read_text(encoding="utf-8")), **changes}
        kept = {key: value for key, value in values.items() if value is not None}
        (folder / name).write_text(json.dumps(kept), encoding="utf-8")

    return make


def a_model_without_limits(folder: Path) -> None:
    a_file("model/config.json", '{"model_type": "xlnet"}')(folder)
    a_changed("model/tokenizer_config.json", model_max_length=None)(folder)


def a_model_with_code(folder: Path) -> None:
    a_changed(CONFIG, model_type="nonsense", auto_map={"AutoConfig": "evil.Config"})(folder)
    a_file("model/evil.py", "open('ran', 'w')\nclass Config: ...\n")(folder)


def without(*names: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return make


def only_a_pickle(folder: Path) -> None:
    (folder / "model" / "model.safetensors").rename(folder / "model" / "pytorch_model.bin")


def a_foreign_database(folder: Path) -> None:
    connection = sqlite3.connect(folder / "other.db")
    connection.execute("CREATE TABLE songs (title)")
    connection.commit()
    connection.close()


def a_link(folder: Path) -> None:
    (folder / "link").symlink_to("model")


# --- The table --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Case:
    """One bad invocation."""

    id: str
    arguments: list[str]
    expected: str
    """A regular expression for the message, white space folded."""
    make: Callable[[Path], None] = nothing
    stdin: bytes | None = None


INSPECT = ["inspect", "--config", "toy.yaml"]
RUN = ["run", "--config", "toy.yaml"]
READERS = (["list"], ["show"], ["report"], ["export-best"], ["confirm"], ["compare"], ["dashboard", "--port", "0"])


def setting(*overrides: str) -> list[str]:
    return [*INSPECT, *(part for override in overrides for part in ("--set", override))]


CONFIGS = [
    Case(
        "no such file", ["inspect", "--config", "no.yaml"],
        "config 'no.yaml': expected a YAML file or one of nsmc-mbert",
    ),
    Case("misspelt name", ["run", "--config", "quikstart"], r"did you mean 'quickstart'\?"),
    Case("a folder", ["baseline", "--config", "model"], "config 'model': expected a YAML file"),
    Case("too long a name", ["inspect", "--config", "a" * 300], "config 'aaa.*: expected a YAML file"),
    Case("empty", INSPECT, "toy.yaml: expected keys such as `model:`.*, got None", a_file("toy.yaml", "")),
    Case("not UTF-8", INSPECT, "toy.yaml: expected a YAML file in UTF-8, got", a_file("toy.yaml", b"study: \xb0\xa1")),
    Case(
        "broken YAML", INSPECT, "toy.yaml, line 2, column 5: expected YAML",
        a_file("toy.yaml", "model: {name: a\ndata: ["),
    ),
    Case(
        "key twice", INSPECT, 'expected YAML, got: found duplicate key "study"',
        a_file("toy.yaml", "study: a\nstudy: b\n"),
    ),
    Case("against its tag", INSPECT, "toy.yaml: expected YAML, got", a_file("toy.yaml", "study: !!int ''\n")),
    Case(
        "many mistakes at once", RUN,
        "toy.yaml: metric: expected 'f1'.*toy.yaml: model: expected a value, got none.*toy.yaml: space: expected a",
        a_file("toy.yaml", "metric: auc\ndata: {train: toy.csv}\n"),
    ),
    Case("no equals sign", setting("search.seed"), "--set search.seed: expected KEY=VALUE with a dotted key"),
    Case("empty part", setting("search..seed=1"), r"--set search\.\.seed=1: expected KEY=VALUE"),
    Case("override no YAML", setting("search.seed=[1"), r"--set search.seed=\[1, line 1, column 3: expected YAML"),
    Case(
        "part of a plain value", setting("data.train.x=1"), "expected a key with parts, got the plain value 'toy.csv'",
    ),
    Case(
        "unknown key", setting("search.sede=1"),
        r"search.sede: expected a known key, got 'sede'; did you mean 'seed'\?",
    ),
    Case("wrong type", setting("search.trials=many"), "search.trials: expected a valid integer, got 'many'"),
    Case("true is no number", [*RUN, "--set", "search.seed=true"], "search.seed: expected a valid integer, got True"),
    Case(
        "default out of space", setting("defaults.weight_decay=0.2"),
        "space.weight_decay: expected to hold trial 0's value",
    ),
    Case(
        "unknown hyperparameter", setting("space.lr={type: int, low: 1, high: 2}"),
        "expected a hyperparameter's name, got 'lr'",
    ),
]  # fmt: skip

DATA = [
    Case("no such file", setting("data.train=no.csv"), "data.train: expected a file, got 'no.csv', which is not there"),
    Case(
        "no such test file", setting("data.test=no.csv"),
        "data.test: expected a file, got 'no.csv', which is not there",
    ),
    Case("a folder", setting("data.train=model"), "data.train: expected a file, got the folder /.*model"),
    Case(
        "other suffix", setting("data.train=toy.yaml"),
        "data.train: expected a file that ends in .csv, .*got 'toy.yaml'",
    ),
    Case("unknown user", setting("data.train=~no-such-user/a.csv"), "expected a path that can be looked up"),
    Case(
        "too long a name", setting(f"data.train={'a' * 300}.csv"), "expected a (path that can be looked up|file), got",
    ),
    Case("no such column", setting("data.text_column=body"), "toy.csv: expected a column 'body', got 'text', 'label'"),
    Case("wrong column", setting("data.label_column=text"), "expected two different columns for text and label"),
    Case("empty", INSPECT, "toy.csv: expected a column 'text', got no columns", a_file("toy.csv", "")),
    Case("header only", INSPECT, "toy.csv: expected rows of data, got none", a_file("toy.csv", "text,label\n")),
    Case("ragged", INSPECT, "toy.csv, line 3: expected 2 cells", a_file("toy.csv", "text,label\na,b\na,b,c\n")),
    Case(
        "not UTF-8", RUN, "toy.csv, line 2: expected UTF-8, got the byte 0xb0; convert it",
        a_file("toy.csv", b"text,label\n\xb0\xa1,good\n"),
    ),
    Case("stray quote", INSPECT, "set data.quoting: none", a_file("toy.csv", 'text,label\n"a,b\nc,d\ne",f\ng,h\n')),
    Case(
        "single label", RUN, "expected at least two labels among .* got 'x' only",
        a_file("toy.csv", "text,label\n" + "".join(f"{i},x\n" for i in range(40))),
    ),
    Case(
        "unknown label", setting("data.labels={yes: a, no: b}"),
        r"toy.csv, line \d+, column 'label': expected one of the labels 'yes', 'no', got '(good|bad)'",
    ),
    Case("too few rows", [*RUN, "--set", "data.train_rows=50"], "expected at least the 50 training .* got 60 rows"),
    Case("broken json", setting("data.train=a.json"), "a.json, line 1: expected JSON", a_file("a.json", "[")),
    Case(
        "deep json", setting("data.train=a.json"), "a.json, near line 1: expected JSON",
        a_file("a.json", "[" * 100_000),
    ),
    Case(
        "half a character", setting("data.train=a.jsonl"), "a.jsonl, line 1: expected Unicode text",
        a_file("a.jsonl", '{"text": "\\ud83d", "label": 1}'),
    ),
    Case(
        "no parquet", setting("data.train=a.parquet"), "a.parquet: expected a parquet file",
        a_file("a.parquet", "PAR1"),
    ),
]  # fmt: skip

MODELS = [
    Case(
        "no such folder", setting("model.name=./no"),
        "model.name: expected a folder with a model, got './no', which is not there",
    ),
    Case(
        "a file", setting("model.name=toy.csv"),
        "model.name: expected a folder with a model, got 'toy.csv', which is a file",
    ),
    Case("unknown user", setting("model.name=~no-such-user/model"), "expected a path that can be looked up"),
    Case(
        "empty folder", setting("model.name=./empty"), "model.name: expected a config.json in /.*empty, got none",
        a_folder("empty"),
    ),
    Case("no config.json", RUN, "model.name: expected a config.json in", without("model/config.json")),
    Case(
        "no weights", RUN, "expected safetensors weights in .*, got none; set model.pretrained: false",
        without("model/model.safetensors"),
    ),
    Case(
        "only a pickle", INSPECT, "expected safetensors weights in .*, got only pytorch_model.bin, which can run code",
        only_a_pickle,
    ),
    Case(
        "no tokenizer", INSPECT, "model.name: expected a tokenizer in /.*model, got none",
        without("model/tokenizer.json", "model/tokenizer_config.json"),
    ),
    Case(
        "broken tokenizer", INSPECT, "expected a Hugging Face model in /.*model, got:",
        a_file("model/tokenizer.json", "{}"),
    ),
    Case(
        "tokenizer settings no object", INSPECT, "expected a Hugging Face model in",
        a_file("model/tokenizer_config.json", "[]"),
    ),
    Case(
        "broken config.json", INSPECT, "expected a Hugging Face model in .*not a valid JSON",
        a_file("model/config.json", "{"),
    ),
    Case("config.json a list", INSPECT, "expected a Hugging Face model in", a_file("model/config.json", "[]")),
    Case(
        "config.json very deep", INSPECT, "expected a Hugging Face model in",
        a_file("model/config.json", "[" * 100_000),
    ),
    Case(
        "config.json of wrong types", INSPECT, "expected a Hugging Face model in .*hidden_size",
        a_changed(CONFIG, hidden_size="wide"),
    ),
    Case(
        "unknown architecture", INSPECT, "expected a Hugging Face model in .*`nonsense`",
        a_changed(CONFIG, model_type="nonsense"),
    ),
    Case(
        "code in the folder is not run", INSPECT, "expected a Hugging Face model in",
        a_model_with_code,
    ),
    Case(
        "unknown dropout", setting("defaults.seq_classif_dropout=0.1"),
        r"seq_classif_dropout: expected a dropout of ./model \(bert\), got none of that name; it has attention_probs",
    ),
    Case(
        "max_length too large", setting("model.max_length=33"),
        "model.max_length: expected at most 32 tokens for ./model, got 33",
    ),
    Case(
        "max_length too small", setting("model.max_length=3"),
        "model.max_length: expected greater than or equal to 4, got 3",
    ),
    Case(
        "no limit of its own", setting("model.pretrained=false"), "model.max_length: expected a length, got none",
        a_model_without_limits,
    ),
]  # fmt: skip

NO_FILE = r"expected an SQLite file at /.*/no\.db, got none; name another with --storage"
A_FOLDER = "expected an SQLite file, got the folder model"
A_TEXT = "expected an SQLite file, got toy.csv, which is another kind of file"
IN_MEMORY = "expected an SQLite file, got a database in memory"
BAD_STORAGES = [
    ("a folder", "sqlite:///model", A_FOLDER, nothing),
    ("a device", "sqlite:////dev/null", "expected an SQLite file, got /dev/null, which is a device", nothing),
    ("an empty file", "sqlite:///e.db", "expected a database of Optuna studies, got e.db", a_file("e.db", "")),
    (
        "another program's", "sqlite:///other.db", "expected a database of Optuna studies, got other.db",
        a_foreign_database,
    ),
    ("a header only", "sqlite:///d.db", "expected an SQLite file, got d.db", a_file("d.db", b"SQLite format 3\0" * 99)),
    ("in memory", "sqlite://", IN_MEMORY, nothing),
    ("in memory by its name", "sqlite:///:memory:", IN_MEMORY, nothing),
    (
        "no URL", "studies/hpsearch.db", r"expected a URL such as .*; did you mean sqlite:///studies/hpsearch.db\?",
        nothing,
    ),
    ("nothing", "", "expected a URL such as sqlite:///studies/hpsearch.db", nothing),
    ("a port that is none", "postgresql://me:secret@host:x/db", "expected a URL such as sqlite:///", nothing),
    ("an unknown database", "nosuch://host/db", "storage nosuch://host/db: expected a database driver", nothing),
    (
        "a driver that is not installed", "mysql://me:secret@host/db",
        r"mysql://me:\*\*\*@host/db: expected a database driver", nothing,
    ),
    ("too long a name", f"sqlite:///{'a' * 300}", "expected an SQLite file", nothing),
]  # fmt: skip
STORAGES = [
    *(Case(name, ["list", "--storage", url], expected, make) for name, url, expected, make in BAD_STORAGES),
    *(Case(f"{args[0]} of no file", [*args, "--storage", "sqlite:///no.db"], NO_FILE) for args in READERS),
    *(Case(f"{args[0]} of a text file", [*args, "--storage", "sqlite:///toy.csv"], A_TEXT) for args in READERS),
    Case("run in a text file", [*RUN, "--storage", "sqlite:///toy.csv"], A_TEXT),
    Case("run in a folder", [*RUN, "--storage", "sqlite:///model"], A_FOLDER),
    Case("run in memory", [*RUN, "--storage", "sqlite://"], IN_MEMORY),
]

NAMES = {
    "slash": "a/b", "parent": "..", "dot": ".", "hidden": ".a", "option": "-a", "newline": "a\nb", "space": "a b",
    "backslash": "a\\b", "empty": "", "101 letters": "a" * 101, "86 of Hangul": "가" * 86, "NUL": "a\0b",
    "smile": "a🙂",
}  # fmt: skip
STUDIES = [
    *(
        Case(f"run {kind}", [*RUN, "--study", name], r"study '.*': expected up to 100 letters")
        for kind, name in NAMES.items()
    ),
    Case(
        "run the database's name", [*RUN, "--study", "hpsearch.db"],
        "study 'hpsearch.db': expected a folder's name, got a file's",
    ),
    Case(
        "run a file's name", [*RUN, "--study", "taken"], "study 'taken': expected a folder's name",
        a_file("studies/taken", ""),
    ),
    Case(
        "run by the file's name", ["run", "--config", "my toy.yaml"], "study 'my toy': expected up to 100 letters",
        lambda folder: (folder / "toy.yaml").rename(folder / "my toy.yaml"),
    ),
    *(
        Case(f"{args[0]} unknown", [*args, *(["no"] if args == ["show"] else ["--study", "no"])],
             "study 'no': expected one of 'a/b', 'theirs', 'toy', got another name")
        for args in (["show"], ["report"], ["export-best"], ["confirm"], ["compare"])
    ),
    Case("show of a path", ["show", "../toy"], "study '../toy': expected one of"),
    Case(
        "export a name that is no folder's", ["export-best", "--study", "a/b"],
        "study 'a/b': expected up to 100 letters",
    ),
    Case(
        "export another program's study", ["export-best", "--study", "theirs"],
        "expected a study started by hpsearch, got one without a config",
    ),
]  # fmt: skip

OPTIONS = [
    Case("no such command", ["tune"], "No such command 'tune'"),
    Case("no such option", [*RUN, "--trial", "3"], r"No such option '?--trial'?.*Did you mean"),
    Case("an argument too many", ["show", "toy", "b"], "unexpected extra argument"),
    Case("trials 0", [*RUN, "--trials", "0"], "'--trials': 0 is not in the range x>=1"),
    Case("trials no number", [*RUN, "--trials", "many"], "'--trials': 'many' is not a valid integer"),
    *(
        Case(f"timeout {value[:10]}", [*RUN, f"--timeout={value}"], "'--timeout': expected a time such as 90m, 1h30m")
        for value in ("abc", "", "0s", "5", "-5m", "1.5h", "1h 30m", "9" * 400 + "s", "9" * 5000 + "s")
    ),
    Case("seeds 0", ["compare", "--seeds", "0"], "'--seeds': 0 is not in the range 1<=x<=100"),
    Case("seeds 101", ["compare", "--seeds", "101"], "'--seeds': 101 is not in the range"),
    Case("confirm seeds 101", ["confirm", "--seeds", "101"], "'--seeds': 101 is not in the range"),
    Case("top 0", ["confirm", "--top", "0"], "'--top': 0 is not in the range 1<=x<=100"),
    Case("loop", ["baseline", "--loop", "keras"], "'--loop': 'keras' is not one of 'trainer', 'native'"),
    Case("json and csv", ["show", "--json", "--csv"], "show: expected one of --json and --csv, got both"),
    Case(
        "all addresses", ["dashboard", "--host", "0.0.0.0"],
        r"expected --host to be this machine only \(.*\), got '0\.0\.0\.0'; .* or add --expose",
    ),
    Case("port", ["dashboard", "--port", "65536"], "'--port': 65536 is not in the range 0<=x<=65535"),
    Case(
        "unknown host", ["dashboard", "--port", "0", "--expose", "--host", "256.1.1.1"],
        "dashboard: expected to listen on 256.1.1.1:0, got",
    ),
    Case(
        "too long a host", ["dashboard", "--port", "0", "--expose", "--host", "a" * 70],
        "dashboard: expected to listen on aaa.*, got",
    ),
]  # fmt: skip

OUTPUTS = [
    Case(
        "a file", ["export-best", "--study", "toy", "--output", "toy.csv"],
        "toy.csv: expected a folder or a free name, got a file",
    ),
    Case(
        "a file with overwrite", ["export-best", "--study", "toy", "--output", "toy.csv", "--overwrite"],
        "toy.csv: expected a folder or a free name, got a file",
    ),
    Case(
        "a link", ["export-best", "--study", "toy", "--output", "link", "--overwrite"],
        "link: expected a folder or a free name, got a file or a link", a_link,
    ),
    Case(
        "a foreign folder", ["export-best", "--study", "toy", "--output", "model", "--overwrite"],
        "model: expected a folder written by hpsearch, got one without its manifest.json; it is not replaced",
    ),
    Case(
        "a folder with a broken manifest", ["export-best", "--study", "toy", "--output", "old", "--overwrite"],
        "old: expected a folder written by hpsearch", a_folder("old", manifest_json="{"),
    ),
    Case(
        "taken", ["export-best", "--study", "toy", "--output", "old"],
        "old: expected a free name, got a folder that is there; add --overwrite", a_folder("old", manifest_json="{}"),
    ),
    Case("below a file", ["export-best", "--study", "toy", "--output", "toy.csv/new"], "toy.csv/new: expected"),
    Case(
        "too long a name", ["export-best", "--study", "toy", "--output", "a" * 300],
        "aaa: expected a name for a folder",
    ),
]  # fmt: skip

PREDICTIONS = [
    Case("no folder given", ["predict"], "Missing argument 'MODEL_DIR'"),
    Case(
        "no such folder", ["predict", "no", "x"],
        "no: expected a model folder with config.json and safetensors weights, got none",
    ),
    Case(
        "empty folder", ["predict", "empty", "x"],
        "empty: expected a model folder .*; make one with `hpsearch export-best`", a_folder("empty"),
    ),
    Case("a file", ["predict", "toy.csv", "x"], "toy.csv: expected a model folder"),
    Case("too long a name", ["predict", "a" * 300, "x"], "aaa: expected a model folder"),
    Case("no weights", ["predict", "model", "x"], "model: expected a model folder", without("model/model.safetensors")),
    Case("only a pickle", ["predict", "model", "x"], "model: expected a model folder", only_a_pickle),
    Case(
        "broken weights", ["predict", "model", "x"], "model: expected a model that transformers can load, got: ",
        a_file("model/model.safetensors", "x"),
    ),
    Case(
        "broken config.json", ["predict", "model", "x"], "model: expected a model that transformers can load",
        a_file("model/config.json", "{"),
    ),
    Case(
        "broken tokenizer", ["predict", "model", "x"], "model: expected a model that transformers can load",
        a_file("model/tokenizer.json", "{"),
    ),
    Case(
        "a text that is no Unicode", ["predict", "model", "a", "b\udcff"],
        r"text 2: expected Unicode text, got 'b\\udcff'",
    ),
    Case("stdin not UTF-8", ["predict", "model"], "stdin: expected UTF-8, got: .*0xff", stdin=b"fine\n\xff\n"),
]  # fmt: skip

INIT = [
    Case("no such file", ["init", "no.csv"], "FILE: expected a file, got 'no.csv', which is not there"),
    Case("no file given", ["init"], "Missing argument 'FILE'"),
    Case("other suffix", ["init", "toy.yaml"], "FILE: expected a file that ends in .csv"),
    Case("taken", ["init", "toy.csv", "--output", "toy.yaml"], "toy.yaml: expected a free name, got one that is taken"),
    Case("a link", ["init", "toy.csv", "--output", "link"], "link: expected a free name", a_link),
    Case("no such folder", ["init", "toy.csv", "--output", "no/a.yaml"], "expected a folder that is there, got none"),
    Case("no study's name", ["init", "toy.csv", "--output", "my toy.yaml"], "name that can be a study's .*'my toy'"),
    Case("too long a name", ["init", "toy.csv", "--output", "a" * 300], "aaa: expected a name for a file"),
    Case("no such column", ["init", "toy.csv", "--label-column", "b"], "a column 'b', got 'text', 'label'; set --labe"),
    Case(
        "one column for both", ["init", "toy.csv", "--label-column", "text", "--text-column", "text"],
        "expected two different columns",
    ),
    Case("one label", ["init", "toy.csv", "--label-column", "c"], "two labels or more, got 'x' on every row",
         a_file("toy.csv", "text,label,c\n" + "".join(f"words {i},{i % 2},x\n" for i in range(60)))),
    Case("no such model", ["init", "toy.csv", "--model", "./no"], "model.name: expected a folder with a model"),
    Case("quoting", ["init", "toy.csv", "--quoting", "auto"], "'auto' is not one of 'standard', 'none'"),
    Case(
        "half a character", ["init", "a.jsonl", "--model", "./model"], r"a.jsonl, line \d+: expected Unicode text",
        a_file("a.jsonl", "".join(f'{{"text": "words \\ud83d {i}", "label": {i % 2}}}\n' for i in range(60))),
    ),
]  # fmt: skip

GROUPS = {
    "config": CONFIGS, "data": DATA, "model": MODELS, "storage": STORAGES, "study": STUDIES, "option": OPTIONS,
    "output": OUTPUTS, "predict": PREDICTIONS, "init": INIT,
}  # fmt: skip


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=f"{group}: {case.id}") for group, cases in GROUPS.items() for case in cases]
)
def test_a_bad_invocation_says_what_was_expected_and_writes_nothing(folder: Path, case: Case) -> None:
    case.make(folder)
    before = contents(folder)
    result = invoke(*case.arguments, stdin=case.stdin)
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert len(re.findall(r"(?m)^(?:error|Error):", result.stderr)) == 1, result.stderr
    assert re.search(case.expected, " ".join(result.stderr.split())), result.stderr
    assert "secret" not in result.stderr
    assert contents(folder) == before


# --- Other refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [["run"], ["inspect"], ["baseline"], ["run", "--config", "nsmc-mbert", "--trials", "1"], ["inspect", "--json"]],
    ids=" ".join,
)
def test_without_the_hub_two_ways_on_are_named(folder: Path, arguments: list[str]) -> None:
    before = contents(folder)
    result = invoke(*arguments)
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith(
        "error: dataset 'e9t/nsmc' (revision refs/convert/parquet, split 'train'): expected"
    )
    assert "--config quickstart" in result.stderr
    assert "--set data.train=FILE --set data.test=FILE --set model.name=FOLDER" in result.stderr
    assert contents(folder) == before


def test_a_model_of_the_hub_that_cannot_be_had_is_named(folder: Path) -> None:
    result = invoke(*setting("model.name=bert-base-multilingual-cased"))
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: model.name 'bert-base-multilingual-cased': expected a folder or an answer")
    assert "--config quickstart" in result.stderr
    assert "--set model.name=FOLDER" in result.stderr


@pytest.mark.parametrize("command", ["report", "export-best", "confirm", "compare"])
@pytest.mark.parametrize("state", ["PRUNED", "FAIL", "none"])
def test_a_study_without_a_complete_trial_is_refused_with_how_to_go_on(folder: Path, command: str, state: str) -> None:
    study = optuna.load_study(study_name="toy", storage="sqlite:///studies/hpsearch.db")
    if state != "none":
        study.add_trial(create_trial(state=TrialState[state], intermediate_values={1: 0.5}))
    result = invoke(command, "--study", "toy")
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == 1
    assert result.stdout == ""
    pruned, failed = int(state == "PRUNED"), int(state == "FAIL")
    assert re.fullmatch(
        rf"error: study 'toy': expected a complete trial, got {pruned} pruned and {failed} failed; "
        r".*`hpsearch run --study toy`\n",
        result.stderr,
    )


@pytest.mark.parametrize("command", ["confirm", "compare"])
def test_with_the_defaults_alone_there_is_nothing_to_compare(folder: Path, command: str) -> None:
    study = optuna.load_study(study_name="toy", storage="sqlite:///studies/hpsearch.db")
    tuned = {"weight_decay": FloatDistribution(0.0, 0.1)}
    study.add_trial(create_trial(value=0.9, params={"weight_decay": 0.0}, distributions=tuned))
    study.add_trial(create_trial(state=TrialState.PRUNED, intermediate_values={1: 0.5}))
    result = invoke(command, "--study", "toy")
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert re.fullmatch(
        r"error: study 'toy': expected a complete trial besides the defaults, got the defaults alone "
        r"\(1 pruned, 0 failed\); .*`hpsearch run --study toy`\n",
        result.stderr,
    )


@pytest.mark.parametrize("override", ["defaults.weight_decay=0.05", "search.seed=7", "metric=mcc"])
def test_a_study_does_not_go_on_with_other_settings(folder: Path, override: str) -> None:
    result = invoke(*RUN, "--study", "toy", "--set", override)
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "study 'toy': expected what it was started with, got a difference" in result.stderr
    assert re.search(rf"{override.split('=')[0].removeprefix('search.')}: started with .*, now ", result.stderr)
    trials = optuna.load_study(study_name="toy", storage="sqlite:///studies/hpsearch.db").trials
    assert [trial.state.name for trial in trials] == ["WAITING"]


def test_a_broken_database_is_told_apart_from_one_without_studies(folder: Path) -> None:
    path = folder / "studies" / "hpsearch.db"
    raw = path.read_bytes()
    path.write_bytes(raw[:100] + b"\xab" * 3000 + raw[3100:])
    before = contents(folder)
    result = invoke("list")
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert re.search("expected a database of Optuna studies, got: .*malformed", result.stderr)
    assert contents(folder) == before


def test_a_storage_is_also_taken_from_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPSEARCH_STORAGE", "sqlite:///no.db")
    result = invoke("list")
    assert result.exit_code == 2
    assert "/no.db, got none" in result.stderr


# --- Help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], *([name] for name in cli.commands)], ids=" ".join)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_every_command_has_help_with_an_example(arguments: list[str], option: str) -> None:
    result = invoke(*arguments, option)
    assert result.exit_code == 0
    assert result.stderr == ""
    assert "Example" in result.stdout
    assert f"hpsearch {' '.join(arguments)}".strip() in result.stdout


def test_without_a_command_the_help_is_shown() -> None:
    result = invoke()
    assert result.exit_code == 2
    assert "Usage: hpsearch" in result.output
    assert "Example" in result.output
