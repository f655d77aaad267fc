"""Measure what it costs to grow: commands, studies of many trials, files of many rows; and draw the curves.

    python benchmarks/growth.py measure --json benchmarks/growth.json
    python benchmarks/growth.py measure --only rows --json benchmarks/growth.json
    python benchmarks/growth.py plot --json benchmarks/growth.json

`measure` takes these curves, all or those named with `--only`, and keeps the others that the file already holds:

- startup: the help of every command, and `list` and `show` on a study of 10 trials, as whole processes.
- reading: `list` and `show` on studies of growing size, as whole processes. The trials are made up: six
  hyperparameters, up to eight intermediate values and the attributes that a search stores.
- trial: what a search spends on one trial outside its training, after so many earlier trials. Real trials of a very
  small model, stored in SQLite. Each function of the search is timed without the time of those it calls that are timed
  themselves, so that the parts add up. The earlier trials are worse than the real ones: none of these is pruned and
  all are written to disk, which is the costliest case.
- rows: seconds and peak memory of each stage between the file and the first optimizer steps, for growing training
  files; twice in fresh processes, of which the second finds what the first has kept.
- share: where the time of one search goes, from the start of its process to the end.

`plot` draws an SVG file a curve beside the JSON file; it needs the extra `plots`.
"""

from __future__ import annotations

import gc
import io
import json
import math
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime, timedelta
from functools import wraps
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from machine import machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from optuna.distributions import BaseDistribution
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

    from hpsearch.config import Config

    Document = dict[str, Any]

CURVES = ("startup", "reading", "trial", "rows", "share")
STUDY = "growth"
HELP_TARGET_S = 0.150
READING_TARGET_S = 0.7  # at 1,000 trials
TRIAL_TARGET_S = 0.060  # at 1,000 earlier trials
SHARE_TARGET = 0.02


# --- Studies of many trials -------------------------------------------------------------------------------------------


def made_up_trials(config: Config, n_trials: int, *, first: int, values: tuple[float, float]) -> list[FrozenTrial]:
    """Return finished trials as a search stores them.

    Args:
        config: Whose space they are drawn from.
        n_trials: How many.
        first: The first one's number; its id in the storage is one more.
        values: Range of the intermediate values.
    """
    from optuna.trial import FixedTrial, FrozenTrial, TrialState

    from hpsearch.space import suggest

    defaults = FixedTrial({name: getattr(config.defaults, name) for name in config.space})
    suggest(defaults, config.space)
    evaluations = config.search.evaluations
    rng = random.Random(0)
    trials = []
    for number in range(first, first + n_trials):
        complete = rng.random() < 0.55  # as in the first real search of 20 trials
        length = evaluations if complete else rng.randint(2, evaluations - 1)
        curve = {step: rng.uniform(*values) for step in range(1, length + 1)}
        params = {name: _drawn(rng, distribution) for name, distribution in defaults.distributions.items()}
        started = datetime(2026, 1, 1) + timedelta(minutes=number)  # noqa: DTZ001  local time, as Optuna gives it
        trials.append(
            FrozenTrial(
                number=number,
                state=TrialState.COMPLETE if complete else TrialState.PRUNED,
                value=max(curve.values()) if complete else curve[length],
                datetime_start=started,
                datetime_complete=started + timedelta(seconds=rng.uniform(20, 50)),
                params=params,
                distributions=defaults.distributions,
                user_attrs=_attributes(config, params, curve, rng, complete=complete),
                system_attrs={},
                intermediate_values=curve,
                trial_id=number + 1,
            )
        )
    return trials


def _drawn(rng: random.Random, distribution: BaseDistribution) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    match distribution:
        case FloatDistribution(low=low, high=high, log=True):
            return math.exp(rng.uniform(math.log(low), math.log(high)))
        case FloatDistribution(low=low, high=high):
            return rng.uniform(low, high)
        case IntDistribution(low=low, high=high):
            return rng.randint(low, high)
        case CategoricalDistribution(choices=choices):
            return rng.choice(choices)
    raise TypeError(distribution)


def _attributes(
    config: Config, params: dict[str, Any], curve: dict[int, float], rng: random.Random, *, complete: bool
) -> Document:
    """Return what `trainer.py` stores with a trial, with figures of the usual length."""
    effective = {
        **config.defaults.training_arguments(), **config.defaults.dropouts(), **params, "seed": 42,
        "optimizer_steps": 630, "warmup_optimizer_steps": 63, "train_rows": 2000, "device": "cpu",
        "weights": "float32", "products": "bfloat16",
    }  # fmt: skip
    if not complete:
        return {"effective": effective}
    best = max(curve, key=curve.__getitem__)
    return {
        "best_step": best,
        "best_epoch": round(rng.uniform(1, 10), 4),
        "scores": {"f1": curve[best], "accuracy": rng.random(), "mcc": rng.random()},
        "confusion": [[rng.randint(700, 999), rng.randint(1, 300)] for _ in range(2)],
        "train_losses": [rng.random() for _ in curve],
        "eval_losses": [rng.random() for _ in curve],
        "effective": effective,
        "seconds": round(rng.uniform(20, 50), 3),
        "peak_memory_mib": rng.randint(900, 1500),
    }


def insert(storage: BaseStorage, study_id: int, trials: Sequence[FrozenTrial]) -> None:
    """Put finished trials into a study, all in one transaction; one by one, 10,000 take minutes.

    The tables are those of Optuna 5.0; what Optuna reads back is compared with what was put in.
    """
    import sqlalchemy
    from optuna.distributions import distribution_to_json
    from optuna.storages._rdb import models

    rows: dict[Any, list[Document]] = defaultdict(list)
    for trial in trials:
        key = {"trial_id": trial._trial_id}
        times = {
            name: getattr(trial, name).astimezone(UTC).replace(tzinfo=None)
            for name in ("datetime_start", "datetime_complete")
        }
        rows[models.TrialModel].append(
            {**key, "study_id": study_id, "number": trial.number, "state": trial.state, **times}
        )
        rows[models.TrialValueModel].append({**key, "objective": 0, "value": trial.value, "value_type": "FINITE"})
        for name, distribution in trial.distributions.items():
            stored = {
                "param_value": distribution.to_internal_repr(trial.params[name]),
                "distribution_json": distribution_to_json(distribution),
            }
            rows[models.TrialParamModel].append({**key, "param_name": name, **stored})
        for name, value in trial.user_attrs.items():
            rows[models.TrialUserAttributeModel].append({**key, "key": name, "value_json": json.dumps(value)})
        for step, value in trial.intermediate_values.items():
            stored = {"intermediate_value": value, "intermediate_value_type": "FINITE"}
            rows[models.TrialIntermediateValueModel].append({**key, "step": step, **stored})
    with storage._backend.engine.begin() as connection:  # type: ignore[attr-defined]
        for model, values in rows.items():
            connection.execute(sqlalchemy.insert(model.__table__), values)
    if trials and storage.get_all_trials(study_id, deepcopy=False)[-len(trials) :] != list(trials):
        raise RuntimeError("expected Optuna to read back the trials that were put in, got others")


def make_storage(options: Document, folder: Path) -> Document:
    """Make a storage with a study of finished trials, and return its URL."""
    import optuna

    from hpsearch.config import load_config
    from hpsearch.study import open_storage

    url = f"sqlite:///{folder}/{options['n_trials']}.db"
    config = load_config("nsmc-mbert")
    storage = open_storage(url, create=True)
    study = optuna.create_study(storage=storage, study_name=STUDY, direction="maximize")
    study.set_metric_names([config.metric])
    insert(storage, study._study_id, made_up_trials(config, options["n_trials"], first=0, values=(0.6, 0.84)))
    return {"url": url}


# --- Whole processes --------------------------------------------------------------------------------------------------


def processes(commands: Mapping[str, Sequence[str]], *, repeats: int) -> list[Document]:
    """Run each `hpsearch` command a few times, in turn, and return its seconds and peak memory."""
    runs: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for repeat in range(repeats + 1):
        for name, arguments in commands.items():
            figures = _process([sys.executable, "-m", "hpsearch", *arguments])
            if repeat:  # the first one reads files that the others find in memory
                runs[name].append(figures)
    return [
        {
            "command": name,
            "seconds": statistics.median(seconds for seconds, _ in done),
            "least_seconds": min(seconds for seconds, _ in done),
            "peak_mib": max(mib for _, mib in done),
        }
        for name, done in runs.items()
    ]


def _process(command: Sequence[str]) -> tuple[float, int]:
    """Return the seconds and the peak MiB of a process whose output goes nowhere.

    Linux counts the memory of this process, at the other's start, for the other. So nothing heavy is imported here.
    """
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return seconds, usage.ru_maxrss // 1024


def measure_startup(options: Document, folder: Path) -> list[Document]:
    """Time every command's help, and the reading commands on a small study."""
    from hpsearch.cli import cli

    commands: dict[str, list[str]] = {"--help": ["--help"]}
    commands |= {f"{name} --help": [name, "--help"] for name in sorted(cli.commands)}
    url = apart("storage", {"n_trials": 10}, folder)["url"]
    commands |= {f"{name}, 10 trials": [name, "--storage", url] for name in ("list", "show")}
    return processes(commands, repeats=options["repeats"])


def measure_reading(options: Document, folder: Path) -> list[Document]:
    """Time the reading commands on studies of growing size."""
    figures = []
    for n_trials in options["trials"]:
        url = apart("storage", {"n_trials": n_trials}, folder)["url"]
        commands = {name: [*name.split(), "--storage", url] for name in ("list", "show", "show --json", "show --csv")}
        figures += [{"trials": n_trials, **entry} for entry in processes(commands, repeats=options["repeats"])]
        click.echo(f"reading: {n_trials:,} trials done", err=True)
    return figures


# --- The parts of a search --------------------------------------------------------------------------------------------


class Parts:
    """Seconds of named parts of a program, each without the parts it calls, so that they add up to the whole."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._running = ["the rest of the search"]
        self._since = time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what happens here for a part."""
        self._count()
        self._running.append(name)
        try:
            yield
        finally:
            self._count()
            self._running.pop()

    def take(self) -> dict[str, float]:
        """Return the seconds of every part since the last call."""
        self._count()
        taken, self._seconds = dict(self._seconds), defaultdict(float)
        return taken

    def _count(self) -> None:
        now = time.perf_counter()
        self._seconds[self._running[-1]] += now - self._since
        self._since = now

    def watch(self, name: str, owner: Any, *functions: str, then: Callable[[], None] = lambda: None) -> None:
        """Count functions of a module or class for a part, from here on; `then` is called after each."""
        for function in functions:
            setattr(owner, function, self._watched(getattr(owner, function), name, then))

    def _watched(self, function: Callable[..., Any], name: str, then: Callable[[], None]) -> Callable[..., Any]:
        @wraps(function)
        def watched(*arguments: Any, **named: Any) -> Any:
            try:
                with self.part(name):
                    return function(*arguments, **named)
            finally:
                then()

        return watched


def watch_search(config: Config) -> tuple[Parts, list[dict[str, float]]]:
    """Time the parts of the searches of this process.

    Returns:
        The parts, and a list that gets the seconds of each part from the end of one training to the end of the next.
    """
    import accelerate.utils.memory
    import transformers

    from hpsearch import search
    from hpsearch.storage import SearchStorage
    from hpsearch.trainer import SearchTrainer

    parts = Parts()
    trials: list[dict[str, float]] = []
    parts.watch("training", transformers.Trainer, "train", then=lambda: trials.append(parts.take()))
    sampler, pruner = type(search.sampler_of(config.search)), type(search.pruner_of(config.search))
    drawing = ("before_trial", "infer_relative_search_space", "sample_relative", "sample_independent", "after_trial")
    parts.watch("sampling", sampler, *drawing)
    parts.watch("pruning", pruner, "prune")
    methods = [name for name in dir(SearchStorage) if name.startswith(("get_", "set_", "create_"))]
    for kind, prefixes in (("storage, reading", "get_"), ("storage, writing", ("set_", "create_"))):
        parts.watch(kind, SearchStorage, *(name for name in methods if name.startswith(prefixes)))
    parts.watch("checkpoints", search, "write_checkpoint", "discard_checkpoints", "worth_keeping")
    parts.watch("counting trials", search, "standing")
    parts.watch("taking evaluations", SearchTrainer, "_report_to_hp_search")
    parts.watch("choosing products", search, "products_of")
    parts.watch("making the Trainer", SearchTrainer, "__init__")
    parts.watch("setting up a training", SearchTrainer, "_begin")
    parts.watch("letting go of a model", SearchTrainer, "release")
    parts.watch("letting go of a model", accelerate.utils.memory, "release_memory")
    parts.watch("collecting garbage", gc, "collect")
    return parts, trials


def tiny_encoder(folder: Path) -> Path:
    """Make a model folder in which the quickstart's encoder has shrunk to next to nothing, without weights."""
    from hpsearch.config import PACKAGE_FOLDER

    source = PACKAGE_FOLDER / "quickstart" / "encoder"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    shape = json.loads((source / "config.json").read_text(encoding="utf-8"))
    shape |= {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    (folder / "config.json").write_text(json.dumps(shape), encoding="utf-8")
    return folder


def run_trials(options: Document, folder: Path) -> Document:
    """Run a few real trials after made-up ones, and return the seconds of each part of one trial."""
    from hpsearch.config import load_config
    from hpsearch.observer import Observer
    from hpsearch.search import prepare, run_search
    from hpsearch.study import StudyPaths, create_or_resume, open_storage, study_lock

    n_earlier, n_real = options["earlier"], options["real_trials"]
    settings = {
        "model.name": tiny_encoder(folder / "encoder"),
        "model.pretrained": "false",
        "metric": "accuracy",  # half of an untrained model's answers are right, whatever its weights
        "data.train_rows": 256,  # at least one step for each of 8 evaluations, whatever is drawn
        "data.validation_rows": 64,
        "search.trials": n_earlier + 1 + n_real,  # the first one warms up and is not counted
    }
    config = load_config("quickstart", [f"{key}={value}" for key, value in settings.items()])
    url = f"sqlite:///{folder}/hpsearch.db"
    storage = open_storage(url, create=True)
    task = prepare(config)
    lock = study_lock(task.config, data=task.data.fingerprint(), model=task.model.fingerprint)
    study = create_or_resume(storage, STUDY, task.config, lock)  # puts the defaults in line, as trial 0
    insert(storage, study._study_id, made_up_trials(config, n_earlier, first=1, values=(0.0, 1.0)))
    _, trials = watch_search(config)
    run_search(task, storage, StudyPaths.of(url, STUDY), observer=Observer())
    counted = trials[1:]
    names = sorted({name for trial in counted for name in trial} - {"training"})
    own = [sum(trial.values()) - trial["training"] for trial in counted]
    return {
        "earlier_trials": n_earlier,
        "own_seconds": statistics.median(own),
        "least_own_seconds": min(own),
        "training_seconds": statistics.median(trial["training"] for trial in counted),
        "parts": {name: statistics.median(trial.get(name, 0.0) for trial in counted) for name in names},
    }


def run_share(options: Document, folder: Path) -> Document:
    """Run one search as `hpsearch run` does and return where its time went, from the start of the process."""
    from hpsearch.progress import observer_for
    from hpsearch.search import prepare, run_search
    from hpsearch.study import StudyPaths, open_storage

    imported = time.time()
    rows, trials = options["search_rows"], options["search_trials"]
    own = {"data.train_rows": rows, "data.validation_rows": rows, "search.trials": trials}
    task = prepare(search_config(options, **own))
    url = f"sqlite:///{folder}/hpsearch.db"
    storage = open_storage(url, create=True)
    prepared = time.time()
    config = task.config
    parts, spans = watch_search(config)
    with observer_for(io.StringIO(), study=STUDY, metric=config.metric, tuned=list(config.space)) as observer:
        study = run_search(task, storage, StudyPaths.of(url, STUDY), observer=observer)
    seconds: dict[str, float] = defaultdict(float)
    for span in (*spans, parts.take()):
        for name, value in span.items():
            seconds[name] += value
    in_search = sum(seconds.values())
    return {
        "trials": len(study.get_trials(deepcopy=False)),
        "train_rows": len(task.data.train),
        "starting_seconds": imported - options["started"],
        "preparing_seconds": prepared - imported,
        "search_seconds": in_search,
        "parts": dict(sorted(seconds.items(), key=lambda item: -item[1])),
        "share_outside_training": 1 - seconds["training"] / in_search,
        "share_outside_training_of_process": 1 - seconds["training"] / (in_search + prepared - options["started"]),
    }


def search_config(options: Document, **settings: Any) -> Config:
    """Return the configuration of a search on the real reviews."""
    from hpsearch.config import load_config

    settings = {
        "model.name": options["model"],
        "data.train": options["train"],
        "data.test": options["test"],
        "data.keep_overlaps": "false",
        **settings,
    }
    return load_config("nsmc-mbert", [f"{key}={value}" for key, value in settings.items()])


# --- Many rows --------------------------------------------------------------------------------------------------------


def run_rows(options: Document, folder: Path) -> Document:
    """Go from the file to the first optimizer steps, and return seconds and peak memory of each stage."""
    from hpsearch.data import load_search_data
    from hpsearch.errors import Interrupted
    from hpsearch.model import open_model
    from hpsearch.observer import Observer
    from hpsearch.precision import fastest_products
    from hpsearch.study import StudyPaths
    from hpsearch.trainer import SearchTrainer, Task

    stages = [{"stage": "libraries", "seconds": time.time() - options["started"], "peak_mib": _peak_mib()}]

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        stages.append({"stage": name, "seconds": time.perf_counter() - started, "peak_mib": _peak_mib()})

    # Files of just so many rows: a longer one is always read to its end.
    files = {
        "data.train": first_rows(Path(options["train"]), options["rows"], folder / "train.txt"),
        "data.validation": first_rows(Path(options["test"]), 2000, folder / "validation.txt"),
        "data.test": first_rows(Path(options["test"]), 2000, folder / "test.txt"),
    }
    every_row = dict.fromkeys(("data.train_rows", "data.validation_rows", "data.test_rows"), "null")
    config = search_config(options, **files, **every_row)
    paths = StudyPaths.of(f"sqlite:///{folder}/hpsearch.db", STUDY)
    with stage("reading"):
        data = load_search_data(config.data)
    with stage("fingerprint"):
        data.fingerprint()
    with stage("opening the model"):
        model = open_model(config.model, tuple(config.defaults.dropouts()))
    products = fastest_products(model.hidden_size)
    ends: list[float] = []

    def enough() -> bool:
        ends.append(time.perf_counter())
        return len(ends) > options["steps"]

    with stage("tokens and Trainer"):
        task = Task(config=config, model=model, data=data)
        trainer = SearchTrainer(
            task, folder=folder, observer=Observer(), products=products, stop_requested=enough, token_cache=paths.tokens
        )
    with stage("first steps"), suppress(Interrupted):
        trainer.fit(config.defaults, seed=config.search.seed)
    return {
        "train_rows": options["rows"],
        "rows_kept": len(data.train),
        "steps": len(ends) - 1,
        "seconds_a_step": (ends[-1] - ends[0]) / (len(ends) - 1),
        "stages": stages,
    }


def first_rows(source: Path, n_rows: int, target: Path) -> Path:
    """Copy the header and the first rows of a file with one row a line."""
    with source.open(encoding="utf-8") as lines, target.open("w", encoding="utf-8") as copy:
        copy.writelines(islice(lines, n_rows + 1))
    return target


def _peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


# --- A process for each measurement -----------------------------------------------------------------------------------


def apart(what: str, options: Document, folder: Path) -> Document:
    """Run one measurement in a fresh process, whose caches are in a folder."""
    environment = {
        **os.environ, "HF_HUB_OFFLINE": "1", "GOMP_SPINCOUNT": "3000", "HF_HOME": str(folder / "cache"),
        "XDG_CACHE_HOME": str(folder / "cache"),
    }  # fmt: skip
    given = json.dumps({**options, "started": time.time()})
    command = [sys.executable, __file__, "one", what, "--folder", str(folder), "--options", given]
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    figures: Document = json.loads(result.stdout.splitlines()[-1])
    return figures


def measure_trial(options: Document, folder: Path) -> list[Document]:
    """Take the time of a trial after few and after many others."""
    figures = []
    for earlier in options["earlier"]:
        figures.append(apart("trial", {**options, "earlier": earlier}, Path(tempfile.mkdtemp(dir=folder))))
        click.echo(f"trial: {figures[-1]['own_seconds'] * 1000:.1f} ms after {earlier:,} others", err=True)
    return figures


def measure_rows(options: Document, folder: Path) -> list[Document]:
    """Go through the stages with few and with many rows, first without and then with what a run keeps."""
    figures = []
    for rows in options["rows"]:
        own = Path(tempfile.mkdtemp(dir=folder))
        for run in ("first", "again"):
            figures.append({"run": run, **apart("rows", {**options, "rows": rows}, own)})
            click.echo(f"rows: {rows:,} done ({run})", err=True)
    return figures


def measure_share(options: Document, folder: Path) -> Document:
    """Run one search."""
    return apart("share", options, folder)


def conditions(_options: Document, _folder: Path) -> Document:
    """Return on what and when this was measured."""
    return {
        "machine": machine(),
        "load": os.getloadavg()[0],
        "versions": {name: version(name) for name in ("hpsearch", "optuna", "sqlalchemy", "torch", "transformers")},
        "date": date.today().isoformat(),  # noqa: DTZ011  the day where it was run
    }


MEASURE: dict[str, Callable[[Document, Path], Any]] = {
    "startup": measure_startup,
    "reading": measure_reading,
    "trial": measure_trial,
    "rows": measure_rows,
    "share": measure_share,
}
RUN: dict[str, Callable[[Document, Path], Document]] = {
    "storage": make_storage,
    "trial": run_trials,
    "rows": run_rows,
    "share": run_share,
    "conditions": conditions,
}


# --- Curves -----------------------------------------------------------------------------------------------------------


def plot_all(document: Document, folder: Path) -> list[Path]:
    """Draw every curve that was measured, and return the files."""
    import matplotlib as mpl

    mpl.use("svg")
    # Text stays text, and the same figures give the same file.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "growth", "font.size": 10, "axes.grid": True})
    mpl.rcParams.update(
        {"axes.axisbelow": True, "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False}
    )
    from matplotlib import pyplot

    files = []
    for curve, draws in PLOTS.items():
        for name, draw in draws.items():
            if curve not in document:
                continue
            figure, axes = pyplot.subplots(figsize=(7.5, 4.5), layout="constrained")
            draw(axes, document[curve])
            path = folder / f"growth_{name}.svg"
            figure.savefig(path, metadata={"Date": None})
            pyplot.close(figure)
            files.append(path)
    return files


def plot_startup(axes: Any, figures: list[Document]) -> None:
    names = [entry["command"] for entry in figures]
    bars = axes.barh(names, [entry["seconds"] * 1000 for entry in figures], color="tab:blue")
    axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.axvline(
        HELP_TARGET_S * 1000, color="tab:red", linestyle="--", label=f"target of help, {HELP_TARGET_S * 1000:.0f} ms"
    )
    axes.invert_yaxis()
    axes.set(title="Start-up of each command", xlabel="whole process, ms (median)")
    axes.grid(visible=False, axis="y")
    axes.legend(loc="lower right")


def plot_reading(axes: Any, figures: list[Document]) -> None:
    for command in dict.fromkeys(entry["command"] for entry in figures):
        points = [(entry["trials"], entry["seconds"]) for entry in figures if entry["command"] == command]
        axes.plot(*zip(*points, strict=True), marker="o", label=command)
    axes.plot(1000, READING_TARGET_S, color="tab:red", marker="_", markersize=30, linestyle="", label="target at 1,000")
    axes.set(title="Reading a study", xlabel="trials in the study", ylabel="whole process, s (median)", ylim=(0, None))
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend()


def plot_trial(axes: Any, figures: list[Document]) -> None:
    labels = [f"{entry['earlier_trials']:,}" for entry in figures]
    names = sorted(figures[-1]["parts"], key=lambda name: -figures[-1]["parts"][name])
    bottom = [0.0] * len(figures)
    for name in names:
        heights = [entry["parts"].get(name, 0.0) * 1000 for entry in figures]
        axes.bar(labels, heights, bottom=bottom, width=0.6, label=name)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    target = f"target at 1,000, {TRIAL_TARGET_S * 1000:.0f} ms"
    axes.axhline(TRIAL_TARGET_S * 1000, color="tab:red", linestyle="--", label=target)
    axes.set(title="A trial outside its training", xlabel="earlier trials in the study", ylabel="ms (median)")
    axes.grid(visible=False, axis="x")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def plot_rows_seconds(axes: Any, figures: list[Document]) -> None:
    again = [entry for entry in figures if entry["run"] == "again"]
    first = [entry for entry in figures if entry["run"] == "first"]
    for stage in ("reading", "fingerprint", "opening the model", "tokens and Trainer"):
        (line,) = axes.plot(*_points(first, stage, "seconds"), marker="o", label=stage)
        axes.plot(*_points(again, stage, "seconds"), marker="o", linestyle=":", color=line.get_color())
    axes.plot([], [], color="gray", linestyle=":", label="the same, the second time")
    axes.set(title="Before the first step", xlabel="training rows", ylabel="s", xscale="log", yscale="log")
    _plain_numbers(axes)


def plot_rows_memory(axes: Any, figures: list[Document]) -> None:
    first = [entry for entry in figures if entry["run"] == "first"]
    for stage in ("libraries", "reading", "tokens and Trainer", "first steps"):
        axes.plot(*_points(first, stage, "peak_mib"), marker="o", label=f"after {stage}")
    axes.set(title="Peak memory", xlabel="training rows", ylabel="process, MiB", xscale="log", ylim=(0, None))
    _plain_numbers(axes)


def plot_rows_step(axes: Any, figures: list[Document]) -> None:
    first = [entry for entry in figures if entry["run"] == "first"]
    axes.plot([entry["train_rows"] for entry in first], [entry["seconds_a_step"] * 1000 for entry in first], marker="o")
    axes.set(title="An optimizer step", xlabel="training rows", ylabel="ms (mean)", xscale="log", ylim=(0, None))
    axes.xaxis.set_major_formatter("{x:,.0f}")


def _points(figures: Sequence[Document], stage: str, key: str) -> tuple[list[int], list[float]]:
    rows = [entry["train_rows"] for entry in figures]
    return rows, [next(each[key] for each in entry["stages"] if each["stage"] == stage) for entry in figures]


def _plain_numbers(axes: Any) -> None:
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.legend()


def plot_share(axes: Any, figures: Document) -> None:
    parts = {
        "starting Python, imports": figures["starting_seconds"],
        "reading, opening the model": figures["preparing_seconds"],
        **figures["parts"],
    }
    total = sum(parts.values())
    names = [name for name in parts if name != "training"]
    bars = axes.barh(names, [parts[name] / total * 100 for name in names], color="tab:blue")
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.invert_yaxis()
    axes.set(
        title=f"Outside training: {figures['trials']} trials on {figures['train_rows']:,} rows, {total:.0f} s in all",
        xlabel="share of the process's time, %",
    )
    axes.grid(visible=False, axis="y")


PLOTS: dict[str, dict[str, Callable[[Any, Any], None]]] = {
    "startup": {"startup": plot_startup},
    "reading": {"reading": plot_reading},
    "trial": {"trial": plot_trial},
    "rows": {"rows_seconds": plot_rows_seconds, "rows_memory": plot_rows_memory, "rows_step": plot_rows_step},
    "share": {"share": plot_share},
}


# --- The command line -------------------------------------------------------------------------------------------------


@click.group()
def main() -> None:
    """Measure what it costs to grow, and draw it."""


_json_option = click.option(
    "--json", "json_path", type=click.Path(path_type=Path), default="growth.json", show_default=True,
    help="The figures, as one JSON document.",
)  # fmt: skip


@main.command()
@_json_option
@click.option("--only", multiple=True, type=click.Choice(CURVES), help="Measure this curve. Repeatable.")
@click.option("--repeats", default=7, show_default=True, help="Processes of each command.")
@click.option(
    "--trials", multiple=True, default=(10, 1000, 10_000), show_default=True, help="Sizes of studies to read."
)
@click.option(
    "--earlier", multiple=True, default=(0, 100, 1000, 10_000), show_default=True, help="Trials before a trial."
)
@click.option("--real-trials", default=10, show_default=True, help="Real trials after them.")
@click.option("--rows", multiple=True, default=(2000, 20_000, 150_000), show_default=True, help="Training rows.")
@click.option("--steps", default=30, show_default=True, help="Optimizer steps that are timed at each number of rows.")
@click.option(
    "--search-rows", default=2000, show_default=True, help="Training rows of the search whose time is shared out."
)
@click.option("--search-trials", default=5, show_default=True, help="Trials of that search.")
@click.option("--model", help="Folder of the encoder.")
@click.option("--train", help="Training file, columns document and label.")
@click.option("--test", help="File of the validation rows.")
def measure(json_path: Path, only: tuple[str, ...], **options: Any) -> None:
    """Take the curves and write them to the JSON file."""
    shared = Path(__file__).parents[2] / "shared"
    options["model"] = options["model"] or str(shared / "models" / "reviews-mini")
    for split in ("train", "test"):
        options[split] = options[split] or str(shared / "data" / "nsmc" / f"ratings_{split}.txt")
    document = json.loads(json_path.read_text(encoding="utf-8")) if json_path.exists() else {}
    for curve in only or CURVES:
        with tempfile.TemporaryDirectory() as folder:
            noted = apart("conditions", {}, Path(folder))  # before, because the load is that of others
            document[curve] = MEASURE[curve](options, Path(folder))
        document.setdefault("conditions", {})[curve] = noted
        json_path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        click.echo(table(curve, document[curve]))


@main.command()
@_json_option
def plot(json_path: Path) -> None:
    """Draw the curves of the JSON file, as SVG files beside it."""
    for path in plot_all(json.loads(json_path.read_text(encoding="utf-8")), json_path.parent):
        click.echo(path)


@main.command(hidden=True)
@click.argument("what", type=click.Choice(list(RUN)))
@click.option("--folder", type=click.Path(path_type=Path))
@click.option("--options", "given")
def one(what: str, folder: Path, given: str) -> None:
    """Take one measurement in this process and print it as one JSON line."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # of names for metrics
    click.echo(json.dumps(RUN[what](json.loads(given), folder)))


def table(curve: str, figures: Any) -> str:
    """Return a curve as text."""
    if curve in ("startup", "reading"):
        return "\n".join(
            f"{entry.get('trials', ''):>8} {entry['command']:22} {entry['seconds'] * 1000:8.0f} ms "
            f"(least {entry['least_seconds'] * 1000:.0f}) {entry['peak_mib']:6} MiB"
            for entry in figures
        )
    if curve == "trial":
        lines = []
        for entry in figures:
            parts = ", ".join(
                f"{name} {value * 1000:.1f}" for name, value in sorted(entry["parts"].items(), key=lambda x: -x[1])
            )
            lines.append(
                f"{entry['earlier_trials']:>8} earlier trials: {entry['own_seconds'] * 1000:.1f} ms (least "
                f"{entry['least_own_seconds'] * 1000:.1f}), training {entry['training_seconds'] * 1000:.0f} ms; {parts}"
            )
        return "\n".join(lines)
    if curve == "rows":
        return "\n".join(
            f"{entry['train_rows']:>8} rows, {entry['run']:5}: {entry['seconds_a_step'] * 1000:.0f} ms a step; "
            + ", ".join(f"{x['stage']} {x['seconds']:.2f} s {x['peak_mib']:,} MiB" for x in entry["stages"])
            for entry in figures
        )
    return (
        f"outside training {figures['share_outside_training']:.2%} of the search, "
        f"{figures['share_outside_training_of_process']:.2%} of the process; "
        f"start {figures['starting_seconds']:.1f} s, "
        f"preparing {figures['preparing_seconds']:.1f} s, search {figures['search_seconds']:.1f} s\n"
        + "\n".join(f"  {name:24} {value:9.3f} s" for name, value in figures["parts"].items())
    )


if __name__ == "__main__":
    main()
