"""A small search in forked processes, and what must hold of its study whatever happened to them.

Shared by the scripts beside it that kill, crash and wear out searches. The libraries are loaded once: a process that
is forked from here is at its command within milliseconds. That is safe only as long as nothing has run in parallel
before, so there is one thread, and this process itself neither trains nor reads a model.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
import sqlite3
import sys
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from growth import tiny_encoder

if TYPE_CHECKING:
    from collections.abc import Callable

STUDY = "faults"
OPEN_STATES = ("RUNNING",)
FINISHED = ("COMPLETE", "PRUNED")

_TREE = {
    "metric": "accuracy",
    "data": {
        "train": "hpsearch:quickstart/reviews.tsv", "labels": {"negative": "negative", "positive": "positive"},
        "train_rows": 32, "validation_rows": 32, "test_rows": 32,
    },
    "defaults": {"learning_rate": 1e-3, "num_train_epochs": 1, "per_device_train_batch_size": 16},
    "space": {
        "learning_rate": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
        "per_device_train_batch_size": {"type": "categorical", "choices": [8, 16]},
    },
    "search": {"evaluations": 2, "seed": 7, "pruner": "none"},
}  # fmt: skip


def load_libraries() -> None:
    """Import what a search needs, with one thread and nothing run yet."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)

    import hpsearch.cli
    import hpsearch.export
    import hpsearch.progress
    import hpsearch.report
    import hpsearch.workers  # noqa: F401

    gc.collect()
    gc.freeze()  # none of this is garbage in a forked process


def write_config(folder: Path, model: Path | None = None, **changes: dict[str, Any]) -> Path:
    """Write the configuration of a search of well under a second into a folder.

    Args:
        folder: Where; it is made.
        model: An encoder; by default one of next to no size is made there.
        changes: Sections, with the keys that shall differ.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if model is None:
        model = folder / "encoder"
        if not model.exists():
            tiny_encoder(model)
    pretrained = any(model.glob("*.safetensors"))
    tree: dict[str, Any] = {**_TREE, "model": {"name": str(model), "pretrained": pretrained}}
    for section, keys in changes.items():
        tree[section] = {**tree[section], **keys}
    path = folder / f"{STUDY}.yaml"
    path.write_text(json.dumps(tree), encoding="utf-8")  # JSON is YAML
    return path


def fork(folder: Path, *commands: list[str], before: Callable[[], object] = lambda: None) -> int:
    """Run commands of hpsearch, one after the other until one fails, in a process of its own, and return its id.

    Args:
        folder: Its working directory, in which `output.txt` gets what it prints.
        commands: Arguments of the command line.
        before: Called in that process first.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        os.setsid()
        os.chdir(folder)
        output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for target, source in ((0, nothing), (1, output), (2, output)):
            os.dup2(source, target)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        before()
        for arguments in commands:
            status = _run(arguments)
            if status:
                break
    except BaseException:  # noqa: BLE001  a forked process must not go on as its parent
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _run(arguments: list[str]) -> int:
    from hpsearch.cli import cli

    try:
        cli(arguments, prog_name="hpsearch")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def check_exports_in_this_process() -> None:
    """Have an export reload its model here, where the libraries are loaded, and not in a fresh process."""
    import numpy as np

    from hpsearch import export
    from hpsearch.metrics import METRICS, confusion_matrix
    from hpsearch.predict import predict

    def score(folder: Path, metric: str, data: Any) -> float:
        ids = {name: i for i, name in enumerate(data.label_names)}
        answers = predict(folder, data.validation.texts)
        predicted = np.array([ids[max(answer, key=answer.__getitem__)] for answer in answers])
        return float(METRICS[metric](confusion_matrix(data.validation.labels, predicted, len(ids))))

    export._score_in_fresh_process = score


def wait(pid: int, *, timeout_s: float = 120.0) -> int:
    """Return how a process ended: its status, or minus the signal that ended it.

    Raises:
        TimeoutError: If it goes on for too long; it is killed then.
    """
    give_up = time.monotonic() + timeout_s
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > give_up:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            raise TimeoutError(f"process {pid} went on for more than {timeout_s:.0f} s")
        time.sleep(0.002)


# --- What must hold ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Trial:
    """A trial as the database has it."""

    number: int
    state: str
    value: float | None
    params: tuple[tuple[str, float], ...]
    attrs: dict[str, Any]
    owner: int | None = field(default=None, compare=False)
    """Id of the process that started it."""


def trials_of(folder: Path) -> list[Trial]:
    """Return the study's trials, read with SQL and nothing of hpsearch's; none where there is no study yet."""
    database = folder / "studies" / "hpsearch.db"
    if not database.exists():
        return []
    # Not read-only: what a killed process left in the write-ahead log belongs to the database.
    with contextlib.closing(sqlite3.connect(database, timeout=10)) as connection:
        if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone() is None:
            return []  # the tables are not all there
        rows = connection.execute("SELECT trial_id, number, state FROM trials ORDER BY number").fetchall()
        values = dict(connection.execute("SELECT trial_id, value FROM trial_values"))
        params: dict[int, list[tuple[str, float]]] = {}
        query = "SELECT trial_id, param_name, param_value FROM trial_params ORDER BY param_name"
        for trial_id, name, value in connection.execute(query):
            params.setdefault(trial_id, []).append((name, value))
        attrs: dict[int, dict[str, Any]] = {}
        for trial_id, key, value in connection.execute("SELECT trial_id, key, value_json FROM trial_user_attributes"):
            attrs.setdefault(trial_id, {})[key] = json.loads(value)
        owners = "SELECT trial_id, value_json FROM trial_system_attributes WHERE key = 'hpsearch:owner'"
        pids = {trial_id: json.loads(value)["pid"] for trial_id, value in connection.execute(owners)}
    return [
        Trial(number, state, values.get(i), tuple(params.get(i, ())), attrs.get(i, {}), pids.get(i))
        for i, number, state in rows
    ]


def problems_after_a_fault(folder: Path, before: list[Trial]) -> list[str]:
    """Return what is wrong with a study whose processes have just died, before anything has mended it."""
    problems = []
    database = folder / "studies" / "hpsearch.db"
    if database.exists():
        with contextlib.closing(sqlite3.connect(database, timeout=10)) as connection:
            if (answer := connection.execute("PRAGMA integrity_check").fetchall()) != [("ok",)]:
                problems.append(f"integrity check: {answer}")
    now = {trial.number: trial for trial in trials_of(folder)}
    problems += [
        f"finished trial {trial.number} has changed: {trial} is now {now.get(trial.number)}"
        for trial in before
        if trial.state in FINISHED and now.get(trial.number) != trial
    ]
    problems += [
        f"complete trial {trial.number} without a value or scores"
        for trial in now.values()
        if trial.state == "COMPLETE" and (trial.value is None or "scores" not in trial.attrs)
    ]
    study = folder / "studies" / STUDY
    for model in (*study.glob("trial-*"), *study.glob("best")):
        problems += _problems_of_folder(model)
    return problems


def _problems_of_folder(model: Path) -> list[str]:
    """Return what is missing in a folder that carries a final name."""
    from safetensors import SafetensorError, safe_open

    missing = [name for name in ("manifest.json", "config.json", "tokenizer.json") if not (model / name).exists()]
    try:
        json.loads((model / "manifest.json").read_text(encoding="utf-8"))
        with safe_open(model / "model.safetensors", framework="np") as weights:
            for name in weights.keys():  # noqa: SIM118  it is no mapping
                weights.get_slice(name)[...]
    except (OSError, ValueError, SafetensorError) as error:
        missing.append(str(error))
    return [f"{model.name}: {problem}" for problem in missing]


def problems_at_the_end(folder: Path, n_trials: int) -> list[str]:
    """Return what is wrong with a study whose search has come to its end. For a forked process: it reads models."""
    from hpsearch.checkpoints import checkpoint_of, model_of, read_checkpoint
    from hpsearch.search import search_data_of
    from hpsearch.study import StudyPaths, load_study, open_storage, stored_config

    problems = problems_after_a_fault(folder, [])
    trials = trials_of(folder)
    n_finished = sum(trial.state in FINISHED for trial in trials)
    if n_finished != n_trials:
        problems.append(f"{n_finished} finished trials instead of {n_trials}")
    problems += [f"trial {trial.number} is {trial.state}" for trial in trials if trial.state in OPEN_STATES]
    url = f"sqlite:///{folder}/studies/hpsearch.db"
    paths = StudyPaths.of(url, STUDY)
    study = load_study(open_storage(url, create=False), STUDY)
    config = stored_config(study)
    source, labels = model_of(study, config), search_data_of(study, config).label_names
    complete = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    ranked = sorted(complete, key=lambda trial: (-(trial.value or 0.0), trial.number))
    for trial in ranked[: config.search.keep_checkpoints]:
        read_checkpoint(checkpoint_of(study, paths, trial), source, labels)
    kept = {f"trial-{trial.number:04d}" for trial in ranked[: config.search.keep_checkpoints]}
    if (there := {path.name for path in paths.folder.glob("trial-*")}) != kept:
        problems.append(f"checkpoints {sorted(there)} instead of {sorted(kept)}")
    left = [path.relative_to(folder) for path in (folder / "studies").rglob(".*") if path.name != ".tokens"]
    problems += [f"left over: {path}" for path in left]
    return problems


def in_a_fork(check: Callable[[], list[str]]) -> list[str]:
    """Return what a function says in a forked process."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            answer = check()
        except BaseException as error:  # noqa: BLE001  as above
            answer = [f"{type(error).__name__}: {error}"]
        os.write(write, json.dumps(answer).encode()[:60000])
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        content = pipe.read()
    os.waitpid(pid, 0)
    return list(json.loads(content))


def clear(folder: Path) -> None:
    """Take away everything of a study but its configuration and model."""
    shutil.rmtree(folder / "studies", ignore_errors=True)
    (folder / "output.txt").unlink(missing_ok=True)
