"""A password of the storage turns up nowhere, and no file that could run code is opened."""

from __future__ import annotations

import ast
import json
import pickle
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from hpsearch.cli import cli
from hpsearch.config import ModelConfig
from hpsearch.errors import ConfigError, UsageError
from hpsearch.hub import PICKLES
from hpsearch.model import open_model
from hpsearch.predict import predict
from tests.watching import CANARY, COMMANDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.watching import Watched

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "hpsearch").glob("*.py"))


# --- Passwords --------------------------------------------------------------------------------------------------------


def test_a_password_of_the_storage_is_in_no_file_that_a_whole_use_leaves(watched: Watched) -> None:
    files = [path for path in watched.world.rglob("*") if path.is_file()]
    assert len(files) > 20
    found = [path for path in files if CANARY.encode() in path.read_bytes()]
    assert found == []


def test_a_password_of_the_storage_is_in_nothing_that_a_whole_use_prints(watched: Watched) -> None:
    assert len(watched.output) > 1000
    assert CANARY not in watched.output + watched.errors


def test_a_password_of_the_storage_is_in_no_command_line(watched: Watched) -> None:
    children = [what for kind, what in watched.events if kind == "child"]
    processes = [what for kind, what in watched.events if kind == "process"]
    assert any("hpsearch.predict" in child for child in children)
    assert len(processes) == 1 + sum("hpsearch" in " ".join(child) for child in children)
    assert CANARY not in json.dumps([children, processes])


URLS = {
    "a port that is closed": "postgresql://me:{}@127.0.0.1:1/db",
    "percent-encoded": "postgresql://me:%70{}%40@127.0.0.1:1/db",
    "with an @": "postgresql://me:x@{}@127.0.0.1:1/db",
    "with an @ at its end": "postgresql://me:{}@@127.0.0.1:1/db",
    "with a slash": "postgresql://me:x/{}@127.0.0.1:1/db",
    "in the query": "postgresql://me@127.0.0.1:1/db?password={}",
    "in the query, with others": "postgresql://127.0.0.1:1/db?user=me&sslpassword={}&connect_timeout=1",
    "a driver that is not there": "mysql+nosuch://me:{}@127.0.0.1:1/db",
    "a database that is not known": "nosuch://me:{}@127.0.0.1/db",
    "a port that is none": "postgresql://me:{}@127.0.0.1:port/db",
    "a host that is none": "postgresql://me:{}@[::1/db",
    "no URL at all": "me:{}@127.0.0.1/db",
    "SQLite with a user": "sqlite://me:{}@/x.db",
    "SQLite with a query": "sqlite:///nowhere.db?password={}",
    "SQLite with a query and a bad wait": "sqlite:///nowhere.db?password={}&timeout=soon",
    "in ODBC's string": "mssql+nosuch:///?odbc_connect=DRIVER%3DX%3BUID%3Dme%3BPWD%3D{}",
}


@pytest.mark.parametrize("url", URLS.values(), ids=list(URLS))
@pytest.mark.parametrize("command", [["list", "--json"], ["show"], ["dashboard", "--port", "0"]], ids=lambda it: it[0])
@pytest.mark.usefixtures("own_process")
def test_a_storage_that_fails_is_named_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], url: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HPSEARCH_STORAGE", url.format(CANARY))
    result = CliRunner().invoke(cli, command)
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code in (1, 2)
    assert result.output.startswith("error: storage")
    assert CANARY not in result.output
    assert list(tmp_path.iterdir()) == []


# --- Files that can run code ------------------------------------------------------------------------------------------


class Trap:
    """Something that makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.fixture
def sprung(tmp_path: Path) -> Path:
    """Return the file that a trap makes; it must not be there at the end."""
    return tmp_path / "sprung"


def plant(folder: Path, name: str, sprung: Path) -> None:
    with (folder / name).open("wb") as file:
        pickle.dump(Trap(sprung), file)


def test_the_trap_works(tmp_path: Path, sprung: Path) -> None:
    plant(tmp_path, "trap.bin", sprung)
    pickle.loads((tmp_path / "trap.bin").read_bytes())
    assert sprung.exists()


def renamed(folder: Path, sprung: Path) -> None:
    (folder / "model.safetensors").unlink()
    plant(folder, "model.safetensors", sprung)


def only(name: str) -> Callable[[Path, Path], None]:
    def make(folder: Path, sprung: Path) -> None:
        (folder / "model.safetensors").unlink()
        plant(folder, name, sprung)

    return make


def beside_other_weights(folder: Path, sprung: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapter.safetensors")
    plant(folder, "pytorch_model.bin", sprung)


def by_an_index(folder: Path, sprung: Path) -> None:
    only("part-1.bin")(folder, sprung)
    index = {"metadata": {}, "weight_map": {"classifier.weight": "part-1.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")


def code_for(file: str, *names: str) -> Callable[[Path, Path], None]:
    def make(folder: Path, sprung: Path) -> None:
        (folder / "own.py").write_text(f"import pathlib\npathlib.Path({str(sprung)!r}).touch()\n", encoding="utf-8")
        settings = json.loads((folder / file).read_text(encoding="utf-8"))
        settings["auto_map"] = dict.fromkeys(names, "own.Own")
        (folder / file).write_text(json.dumps(settings), encoding="utf-8")

    return make


ONLY_A_PICKLE = (
    "which can run code when opened; load it where you trust it and save it again with model.save_pretrained"
)
OWN_CODE = "brings its own .*, which is never run; choose another model"
MODELS: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    **{f"only {name}": (only(name), f"got only {name}, {ONLY_A_PICKLE}") for name in
       ("pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "weights.pkl", "MODEL.BIN")},
    "a pickle in parts": (by_an_index, "got only part-1.bin, which can run code"),
    "a pickle beside other weights": (beside_other_weights, "model.safetensors"),
    "a pickle named safetensors": (renamed, "HeaderTooLarge|header"),
    "code of its own for the model": (
        code_for("config.json", "AutoConfig", "AutoModelForSequenceClassification"), OWN_CODE
    ),
    "code of its own for the tokenizer": (code_for("tokenizer_config.json", "AutoTokenizer"), OWN_CODE),
}  # fmt: skip


@pytest.mark.parametrize("case", MODELS)
def test_a_model_that_could_run_code_is_refused_and_runs_none(
    tiny_model: Path, tmp_path: Path, sprung: Path, case: str
) -> None:
    make, message = MODELS[case]
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    make(folder, sprung)
    try:
        source = open_model(ModelConfig(name=str(folder)), ())
    except ConfigError as error:
        problem = str(error)
    else:
        with pytest.raises(Exception) as raised:  # noqa: PT011  of transformers; the search makes it one of ours
            source.check_it_loads(("no", "yes"))
        problem = str(raised.value)
    assert pytest.raises(AssertionError, match=message).matches(AssertionError(problem)), problem
    with pytest.raises(UsageError):
        predict(folder, ["a film"])
    assert not sprung.exists()


def test_a_pickle_beside_safetensors_is_left_alone(tiny_model: Path, tmp_path: Path, sprung: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
        plant(tmp_path / "model", name, sprung)
    open_model(ModelConfig(name=str(tmp_path / "model")), ()).check_it_loads(("no", "yes"))
    assert not sprung.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "training_args.bin", "optimizer.pt"])
@pytest.mark.usefixtures("own_process")
def test_a_pickle_in_a_checkpoint_is_neither_opened_nor_exported(
    watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sprung: Path, name: str
) -> None:
    shutil.copytree(watched.project, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setenv("HPSEARCH_STORAGE", "sqlite:///studies/hpsearch.db")
    for checkpoint in Path("studies/toy").glob("trial-*"):
        plant(checkpoint, name, sprung)
    result = CliRunner().invoke(cli, ["export-best", "--output", "again"])
    assert result.exit_code == 1
    assert f"expected the files of a checkpoint, got {name} as well" in result.stderr
    assert not Path("again").exists()
    assert not sprung.exists()


def test_a_whole_use_opens_no_pickle(watched: Watched) -> None:
    """In a process in which `torch.load` raises, and in the one that checks the export."""
    assert {command[0] for command in COMMANDS} >= {"run", "export-best", "compare", "predict"}
    assert [what for kind, what in watched.events if kind == "pickle"] == []
    read = [Path(what) for kind, what in watched.events if kind in ("read", "write")]
    assert [path for path in read if path.suffix in PICKLES and path.is_relative_to(watched.world)] == []
    assert not [path for path in watched.world.rglob("*") if path.suffix in PICKLES]


# --- What the sources say ---------------------------------------------------------------------------------------------


def calls(path: Path) -> list[tuple[str, dict[str, ast.expr]]]:
    """Return the name of everything that a module calls, with the arguments that are given by name."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            arguments = {keyword.arg or "**": keyword.value for keyword in node.keywords}
            found.append((ast.unparse(node.func), arguments))
    return found


def constant(value: ast.expr | None) -> object:
    return value.value if isinstance(value, ast.Constant) else ...


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_source_opens_what_could_run_code(path: Path) -> None:
    imported = {
        name.name.partition(".")[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([ast.alias(node.module or "")] if isinstance(node, ast.ImportFrom) else node.names)
    }
    assert not imported & {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml"}
    for name, arguments in calls(path):
        assert name not in ("eval", "exec", "torch.load", "os.system", "os.popen", "__import__"), name
        assert constant(arguments.get("trust_remote_code", ast.Constant(value=False))) is False
        assert constant(arguments.get("allow_pickle", ast.Constant(value=False))) is False
        assert constant(arguments.get("shell", ast.Constant(value=False))) is False
        if name.endswith(".from_pretrained"):
            assert "trust_remote_code" in arguments, f"{path.name}: {name}"
            if name.startswith("AutoModel"):
                assert constant(arguments.get("use_safetensors")) is True, f"{path.name}: {name}"
        if name in ("np.load", "numpy.load"):
            assert "allow_pickle" in arguments


def test_no_option_and_no_key_lets_a_model_run_its_code() -> None:
    from hpsearch.config import Config

    options = {option for command in cli.commands.values() for param in command.params for option in param.opts}
    keys = json.dumps(Config.model_json_schema())
    for word in ("trust", "remote_code", "unsafe", "pickle"):
        assert not [option for option in options if word in option]
        assert word not in keys
