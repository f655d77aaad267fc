"""A whole use of hpsearch, from `run` to `predict`, in a small world of which everything is known before and after."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[1]
CANARY = "c4n4ry-s3cret"
"""A password that is given with the storage; it must turn up nowhere."""

# Python loads a module of this name at every start, so that child processes are watched as well.
_SITECUSTOMIZE = """
import json, os, sys
_log = os.open(os.environ["WATCH_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_PATHS = {"os.mkdir": 1, "os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.symlink": 2, "os.link": 2, "os.truncate": 1,
          "shutil.rmtree": 1, "sqlite3.connect": 1}

def _tell(*what):
    os.write(_log, (json.dumps(what, default=repr) + "\\n").encode())

def _watch(event, args):
    if event == "open" and isinstance(args[0], (str, bytes)):
        path = os.path.abspath(os.fsdecode(args[0]))
        if args[2] & _WRITE:
            _tell("write", path)
        elif not path.endswith((".py", ".pyc")):
            _tell("read", path)
    elif event in _PATHS and args[-1] in (None, -1) or event in ("shutil.rmtree", "sqlite3.connect"):
        for path in args[: _PATHS[event]]:
            _tell("write", os.path.abspath(os.fsdecode(path)))
    elif event == "pickle.find_class":
        _tell("pickle", *args)
    elif event == "subprocess.Popen":
        _tell("child", [os.fsdecode(part) for part in args[1]])

_tell("process", open("/proc/self/cmdline", "rb").read().decode(errors="replace"))
sys.addaudithook(_watch)
"""

_DRIVER = """
import json, sys
import torch
def refuse(*_, **__):
    raise AssertionError("torch.load was called")
torch.load = torch.serialization.load = refuse
from hpsearch.cli import cli
for command in json.loads(sys.argv[1]):
    cli(command, prog_name="hpsearch", standalone_mode=False)
"""

COMMANDS: Sequence[Sequence[str]] = (
    ("run", "--config", "toy.yaml", "--trials", "2"),
    ("list", "--json"),
    ("show", "--json"),
    ("show", "--csv"),
    ("inspect", "--config", "toy.yaml", "--json"),
    ("export-best", "--output", "exported/model", "--json"),
    ("compare", "--seeds", "1", "--json"),
    ("predict", "exported/model", "a wonderful film", "--json"),
)


@dataclass(frozen=True, slots=True)
class Watched:
    """What was seen of one use of hpsearch."""

    world: Path
    """Holds `project`, the working directory, and `home`, `tmp`, `cache`, `hub`: where libraries may leave things."""
    before: dict[str, str]
    after: dict[str, str]
    output: str
    errors: str
    events: tuple[tuple[str, Any], ...]
    """What happened in each Python process: read, write, pickle, child, process; with its path or arguments."""

    @property
    def project(self) -> Path:
        return self.world / "project"


def contents(folder: Path) -> dict[str, str]:
    """Return every path under a folder with its size and a hash of what it holds."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            held = f"link to {path.readlink()}"
        elif path.is_file():
            content = path.read_bytes()
            held = f"{len(content)} {hashlib.sha256(content).hexdigest()}"
        else:
            held = "folder"
        found[str(path.relative_to(folder))] = held
    return found


def watch(world: Path, tools: Path, model: Path) -> Watched:
    """Run, look, export, compare and predict.

    Args:
        world: Holds `project` with the rows in `toy.csv`.
        tools: An empty folder for what watches.
        model: A model that takes no time.
    """
    for name in ("home", "tmp", "cache", "hub"):
        (world / name).mkdir()
    (tools / "sitecustomize.py").write_text(_SITECUSTOMIZE, encoding="utf-8")
    tree = {
        "model": {"name": str(model)},
        "data": {"train": "toy.csv", "train_rows": 60, "validation_rows": 30, "test_rows": 30},
        "defaults": {"learning_rate": 3e-3, "num_train_epochs": 1, "per_device_train_batch_size": 16},
        "space": {"learning_rate": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}},
        "search": {"evaluations": 2},
    }
    with (world / "project" / "toy.yaml").open("w", encoding="utf-8") as file:
        YAML(typ="safe").dump(tree, file)
    environment = {
        "PATH": os.environ["PATH"],
        "HPSEARCH_WORKERS": "1",  # what is handed to workers is a pickle, from hpsearch itself
        "HOME": str(world / "home"),
        "TMPDIR": str(world / "tmp"),
        "XDG_CACHE_HOME": str(world / "cache"),
        "HF_HOME": str(world / "hub"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([str(tools), str(ROOT)]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HPSEARCH_STORAGE": f"sqlite:///studies/hpsearch.db?password={CANARY}",
        "WATCH_LOG": str(tools / "log"),
    }
    before = contents(world)
    result = subprocess.run(
        [sys.executable, "-c", _DRIVER, json.dumps(COMMANDS)],
        cwd=world / "project", env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-4000:]
    lines = (tools / "log").read_text(encoding="utf-8").splitlines()
    events = tuple((kind, what[0] if len(what) == 1 else what) for kind, *what in map(json.loads, lines))
    return Watched(world, before, contents(world), result.stdout, result.stderr, events)
