"""Train a grid of configurations once, then replay search strategies against the table, to choose hpsearch's defaults.

    python benchmarks/tabular.py train --work curves.jsonl --workers 2 --rows 1000 --validation-rows 1000 \\
        --output benchmarks/tabular.csv
    python benchmarks/tabular.py replay --json benchmarks/tabular_results.json > benchmarks/tabular_results.md

`train` fine-tunes every point of `GRID` through hpsearch's own trainer and keeps the learning curves: F1 on the
validation rows at K equal fractions of each training. It can be stopped at any moment and goes on where it was.

`replay` runs Optuna's real samplers and pruners on look-ups instead of trainings, hundreds of searches for each pair:
trial 0 is the defaults and never pruned, a trial's value is its best evaluation, nothing is pruned at the last
evaluation, and what a search has found is its best complete trial, which is what a user can export. Seeds of the
searches are 0, 1, 2, ..., the same for every pair. The pair `shipped` is whatever hpsearch ships now.

How fair it is. The grid is full, so every look-up is exact. Samplers see each dimension as whole numbers, its levels in
their order: bounded and ordered as hpsearch's ranges are, with learning rates evenly spaced in the logarithm. All get
the same. The table says nothing about unordered choices (a batch size is one in the shipped configurations), finer
steps, more dimensions or other ranges. A sampler that comes back to a good region can meet a point it has been at and
learn nothing, where the real space has a new neighbour; the results count these repetitions. They cost as much as any
trial, as they do in hpsearch.

What its noise means. Each value is one training with one seed, and an F1 near 0.8 on 1,000 rows has a standard error
of 1.3 points. The rows and the seed are the same for all, so differences are surer than that, but the table's best is
the luckiest of several good configurations: regret is the distance to that lucky value, not what a user loses on new
rows, and a regret of some tenths of a point may be none. `unexplained` in the results is a bound on this noise: what
levels and pairs of levels do not explain. The standard errors are over seeds of the searches on this one table. They
say which strategy is better here; another model or other data may rank them otherwise, so a small but sure difference
is no reason to change a default.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
import random
import statistics
import tempfile
import threading
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from importlib.metadata import version
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import optuna
from optuna.pruners import (
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    PatientPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
)
from optuna.samplers import CmaEsSampler, GPSampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import TrialState
from tqdm import tqdm

from hpsearch.config import SearchConfig, load_config
from hpsearch.search import SeededByTrial, prepare, pruner_of, sampler_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler

    from hpsearch.config import Config
    from hpsearch.space import Scalar
    from hpsearch.trainer import SearchTrainer

GRID: dict[str, tuple[float, ...]] = {
    "learning_rate": (3e-5, 6e-5, 1.2e-4, 2.5e-4, 5e-4, 1e-3),
    "num_train_epochs": (1, 2, 4),
    "per_device_train_batch_size": (16, 32, 64),
    "warmup_steps": (0.0, 0.1),  # a share of all steps
    "hidden_dropout_prob": (0.1, 0.3),
}
# The grid's point nearest the tutorial's settings (5e-5, 10 epochs, batches of 32): trial 0 of every replay.
DEFAULTS = {
    "learning_rate": 6e-5,
    "num_train_epochs": 4,
    "per_device_train_batch_size": 32,
    "warmup_steps": 0.0,
    "hidden_dropout_prob": 0.1,
}
K = 8  # evaluations of a training
SEED = 42  # of every training

TRIALS = 20  # of a search, as shipped
BUDGETS = (40, 80, 160)  # evaluations; 160 are 20 trainings without pruning
TOLERANCE = 0.005  # a search has arrived within this of the table's best F1
CAP = 240  # evaluations, half as many again as a search as shipped may take, after which it is given up

Levels = tuple[int, ...]
"""A configuration: the index of its level in each dimension."""


# --- The table --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """The learning curves of a full grid."""

    grid: Mapping[str, Sequence[float]]
    """Levels of each dimension."""
    curves: Mapping[Levels, Sequence[float]]
    """Metric at each evaluation of every configuration, in [0, 1]."""
    defaults: Levels
    seconds: Mapping[Levels, float] = field(default_factory=dict)
    """Of each configuration's training, on a machine that other programs used too."""

    @property
    def best(self) -> float:
        """The best value of all configurations and evaluations."""
        return max(map(max, self.curves.values()))

    def epochs(self, levels: Levels) -> float:
        """Return how many epochs a configuration is trained for."""
        return dict(zip(self.grid, self.values(levels), strict=True))["num_train_epochs"]

    def values(self, levels: Levels) -> tuple[float, ...]:
        """Return a configuration's hyperparameters, in the grid's order."""
        return tuple(values[level] for values, level in zip(self.grid.values(), levels, strict=True))


def points(grid: Mapping[str, Sequence[float]]) -> list[Levels]:
    """Return every configuration of a grid, in order."""
    return list(itertools.product(*(range(len(values)) for values in grid.values())))


def level_of(values: Mapping[str, float]) -> Levels:
    """Return the levels of a configuration given by its hyperparameters."""
    return tuple(levels.index(values[name]) for name, levels in GRID.items())


@cache
def read_table(path: Path) -> Table:
    """Read a table that `write_table` wrote.

    Raises:
        ClickException: If a configuration is missing, stands there twice or has values that are no F1.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    curves: dict[Levels, tuple[float, ...]] = {}
    seconds: dict[Levels, float] = {}
    for row in csv.DictReader(line for line in lines if not line.startswith("#")):
        levels = level_of({name: float(row[name]) for name in GRID})
        curve = tuple(float(row[f"f1_{k}"]) for k in range(1, K + 1))
        if levels in curves or not all(0 <= value <= 1 for value in curve):
            raise click.ClickException(f"{path}: expected each configuration once, F1 in [0, 1], got {row}")
        curves[levels] = curve
        seconds[levels] = float(row["seconds"])
    if missing := set(points(GRID)) - set(curves):
        raise click.ClickException(f"{path}: expected the whole grid, got {len(missing)} configurations too few")
    return Table(GRID, curves, level_of(DEFAULTS), seconds)


def write_table(path: Path, trained: Mapping[Levels, Mapping[str, Any]], remarks: Sequence[str]) -> None:
    """Write one row for each configuration: its hyperparameters, K values and seconds.

    Args:
        path: A csv file; lines that start with # are remarks.
        trained: The values `f1` and the `seconds` of every configuration.
        remarks: How the table came about.
    """
    names = [*GRID, *(f"f1_{k}" for k in range(1, K + 1)), "seconds"]
    table = Table(GRID, {}, level_of(DEFAULTS))
    with path.open("w", encoding="utf-8", newline="") as file:
        file.writelines(f"# {remark}\n" for remark in remarks)
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        for levels in points(GRID):
            row = trained[levels]
            values = [f"{value:g}" for value in table.values(levels)]
            writer.writerow([*values, *(f"{value:.5f}" for value in row["f1"]), f"{row['seconds']:.1f}"])


def unexplained(table: Table) -> float:
    """Return the standard deviation of what levels and pairs of levels do not explain of the configurations' values.

    It holds the noise of a training and whatever three dimensions do together, so the noise is at most about this.
    """
    levels = np.array(list(table.curves))
    joint = [levels[:, i] * 1000 + levels[:, j] for i, j in itertools.combinations(range(levels.shape[1]), 2)]
    effects = np.concatenate([np.equal.outer(codes, np.unique(codes)) for codes in joint], axis=1).astype(float)
    values = np.array([max(curve) for curve in table.curves.values()])
    solution, _, rank, _ = np.linalg.lstsq(effects, values)
    residuals = values - effects @ solution
    return math.sqrt(float(residuals @ residuals) / max(1, len(values) - rank))


# --- Training ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Training:
    """What every training of a table has in common."""

    model: str
    train: str
    test: str
    """Not read."""
    rows: int
    validation_rows: int
    threads: int
    """Of torch, for each worker."""
    folder: str
    """A temporary one, for what the Trainer insists on."""
    products: str = "float32"
    """Format of the matrix products, the same for all."""

    def config(self) -> Config:
        """Return the configuration: the tutorial's, with another model."""
        overrides = {
            "model.name": self.model,
            "data.train": self.train,
            "data.test": self.test,
            "data.train_rows": self.rows,
            "data.validation_rows": self.validation_rows,
            "search.evaluations": K,
            "search.seed": SEED,
        }
        return load_config("nsmc-mbert", [f"{key}={value}" for key, value in overrides.items()])


@cache
def trainer_of(training: Training) -> SearchTrainer:
    """Return this process's trainer."""
    import gc

    import torch
    from transformers.utils import logging

    from hpsearch.observer import Observer
    from hpsearch.trainer import SearchTrainer

    torch.set_num_threads(training.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    trainer = SearchTrainer(
        prepare(training.config()), folder=Path(training.folder), observer=Observer(), products=training.products
    )
    gc.collect()
    gc.freeze()  # as a search does: the Trainer's own collections need not walk over what stays
    return trainer


def train_one(training: Training, levels: Levels) -> dict[str, Any]:
    """Train one configuration; the result is one line of the work file."""
    trainer = trainer_of(training)
    values: dict[str, Scalar] = {name: GRID[name][level] for name, level in zip(GRID, levels, strict=True)}
    outcome = trainer.fit(trainer.task.config.defaults.replace(values), seed=SEED)
    trainer.release()
    f1 = [round(evaluation.scores["f1"], 5) for evaluation in outcome.evaluations]
    return {"levels": levels, "f1": f1, "seconds": round(outcome.seconds, 2)}


def read_work(path: Path, settings: dict[str, Any]) -> tuple[dict[str, Any], dict[Levels, dict[str, Any]]]:
    """Read a work file, or start one: the settings in its first line, then one trained configuration in each.

    Returns:
        The settings it was started with, and what is trained.

    Raises:
        ClickException: If it was started on other rows or another model.
    """
    if not path.exists():
        path.write_text(json.dumps(settings) + "\n", encoding="utf-8")
    first, *lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    # The format of products is the first run's: near the margin another run could find otherwise.
    if {**first, "products": settings["products"]} != settings:
        raise click.ClickException(f"{path}: started with {first}, now {settings}; give another --work")
    return first, {tuple(row["levels"]): row for row in lines}


@contextmanager
def processes(n: int, threads: int) -> Iterator[ProcessPoolExecutor]:
    """Give new processes, which end with this one however it ends."""
    # Read by the libraries when a new process imports them. Few turns of a waiting thread cost a busy neighbour little.
    os.environ.update({"OMP_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": "3000", "HF_HUB_OFFLINE": "1"})
    executor = ProcessPoolExecutor(n, mp_context=get_context("spawn"), initializer=_begin)
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


def _begin() -> None:
    def leave() -> None:
        if (parent := parent_process()) is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=leave, daemon=True).start()
    quiet()


def quiet() -> None:
    """Silence what Optuna would say thousands of times."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # PatientPruner, CMA-ES with margin


@click.group()
def main() -> None:
    """Train a table of configurations, or replay searches against it."""


@main.command()
@click.option("--work", required=True, type=click.Path(path_type=Path), help="JSON lines; what is in it is kept.")
@click.option("--output", type=click.Path(path_type=Path), help="The table, written once the grid is complete.")
@click.option("--workers", default=1, show_default=True, help="Processes.")
@click.option("--threads", default=1, show_default=True, help="Torch threads of each.")
@click.option("--limit", type=int, help="Train only the first so many of the shuffled configurations.")
@click.option("--model", help="Folder of the encoder.")
@click.option("--train", help="Training file, columns document and label.")
@click.option("--test", help="Test file; not read.")
@click.option("--rows", default=2000, show_default=True, type=click.IntRange(min=256), help="K steps at the least.")
@click.option("--validation-rows", default=2000, show_default=True)
def train(work: Path, output: Path | None, workers: int, threads: int, limit: int | None, **given: Any) -> None:
    """Train every configuration of the grid that the work file does not hold yet."""
    from hpsearch.precision import fastest_products

    shared = Path(__file__).parents[2] / "shared"
    with tempfile.TemporaryDirectory() as folder:
        common: dict[str, Any] = {
            "model": given["model"] or str(shared / "models" / "reviews-mini"),
            "train": given["train"] or str(shared / "data" / "nsmc" / "ratings_train.txt"),
            "test": given["test"] or str(shared / "data" / "nsmc" / "ratings_test.txt"),
            "rows": given["rows"],
            "validation_rows": given["validation_rows"],
            "threads": threads,
            "folder": folder,
        }
        task = prepare(Training(**common).config())
        settings: dict[str, Any] = {
            "model": Path(common["model"]).name,
            "weights": task.model.fingerprint,
            "train": Path(common["train"]).name,
            "rows": len(task.data.train),
            "validation_rows": len(task.data.validation),
            "data": task.data.fingerprint(),
            "products": fastest_products(task.model.hidden_size),
        }
        settings, trained = read_work(work, settings)
        # Shuffled, so that what is done when it is stopped lies all over the grid.
        order = random.Random(SEED).sample(points(GRID), len(points(GRID)))[:limit]
        pending = [levels for levels in order if levels not in trained]
        training = Training(**common, products=settings["products"])
        with processes(workers, threads) as pool, work.open("a", encoding="utf-8") as file:
            futures = [pool.submit(train_one, training, levels) for levels in pending]
            for future in tqdm(as_completed(futures), total=len(futures), unit="configuration"):
                row = future.result()
                file.write(json.dumps(row) + "\n")
                file.flush()
                trained[tuple(row["levels"])] = row
    n_missing = len(points(GRID)) - len(trained)
    if n_missing:
        click.echo(f"{len(trained)} configurations trained, {n_missing} to go", err=True)
    elif output:
        write_table(output, trained, _remarks(settings))
        click.echo(f"{len(trained)} configurations in {output}", err=True)


def _remarks(settings: Mapping[str, Any]) -> list[str]:
    return [
        f"{settings['model']}, trained on {settings['rows']:,} rows of {settings['train']} with seed {SEED} and "
        f"{settings['products']} products by benchmarks/tabular.py",
        f"f1_k: F1 on {settings['validation_rows']:,} validation rows after k / {K} of the training",
        conditions(("hpsearch", "torch", "transformers")),
    ]


def conditions(packages: Sequence[str]) -> str:
    """Return the machine, the versions and the day, in words."""
    from machine import machine  # beside this script

    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return f"{machine()}; {versions}; {date.today().isoformat()}"  # noqa: DTZ011  the day where it was run


# --- Strategies -------------------------------------------------------------------------------------------------------


def seeded(make: Callable[[int], BaseSampler]) -> Callable[[int], BaseSampler]:
    """Wrap a sampler as hpsearch does: each trial is drawn with a seed of its own."""
    return lambda seed: SeededByTrial(make, seed)


def _tpe(n_startup_trials: int) -> Callable[[int], BaseSampler]:
    return seeded(lambda seed: TPESampler(seed=seed, n_startup_trials=n_startup_trials))


def _median(n_startup_trials: int, n_warmup_steps: int) -> MedianPruner:
    return MedianPruner(n_startup_trials=n_startup_trials, n_warmup_steps=n_warmup_steps, n_min_trials=3)


def _percentile(kept: float) -> PercentilePruner:
    return PercentilePruner(kept, n_startup_trials=5, n_warmup_steps=2, n_min_trials=3)


SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "random": seeded(lambda seed: RandomSampler(seed=seed)),
    "tpe-4": _tpe(4),
    "tpe-8": _tpe(8),
    "tpe-10": _tpe(10),  # Optuna's default
    "tpe-12": _tpe(12),
    "tpe-8 one by one": seeded(lambda seed: TPESampler(seed=seed, n_startup_trials=8, multivariate=False)),
    # The Gaussian process learns from complete trials only, and they alone count as its start.
    "gp-5": seeded(lambda seed: GPSampler(seed=seed, n_startup_trials=5)),
    "gp-10": seeded(lambda seed: GPSampler(seed=seed, n_startup_trials=10)),  # Optuna's default
    "cma-es": seeded(lambda seed: CmaEsSampler(seed=seed, with_margin=True)),  # the margin is for whole numbers
    # One sequence for the whole search, whose place is kept in the storage: its seed must stay.
    "qmc": lambda seed: QMCSampler(seed=seed, scramble=True),
}

PRUNERS: dict[str, Callable[[], BasePruner]] = {
    "none": NopPruner,
    "median 5/2": lambda: _median(5, 2),  # complete trials before it prunes / evaluations of a trial before it may
    "median 3/2": lambda: _median(3, 2),
    "median 5/4": lambda: _median(5, 4),
    "median 8/2": lambda: _median(8, 2),
    "percentile 25": lambda: _percentile(25),  # keeps the best quarter
    "percentile 75": lambda: _percentile(75),  # prunes the worst quarter
    "halving": lambda: SuccessiveHalvingPruner(min_resource=2, reduction_factor=2),
    "hyperband": lambda: HyperbandPruner(min_resource=1, max_resource=K, reduction_factor=2),
    "patient": lambda: PatientPruner(_median(5, 2), patience=1),
}

_SOME = ("none", "median 5/2", "halving")
FEWER = {
    **dict.fromkeys(("tpe-4", "tpe-10", "tpe-12", "tpe-8 one by one"), _SOME),
    "gp-5": ("none",),
    "gp-10": ("none",),
}
"""Samplers that are replayed with some pruners only: of a kind that another one stands for, or slow (gp: minutes a
pair, and what it learns from is complete trials)."""

SHIPPED = "shipped"
BASELINE = ("random", "none")


def sampler_named(name: str, seed: int) -> BaseSampler:
    """Return a new sampler for a search of that seed."""
    return sampler_of(SearchConfig(seed=seed)) if name == SHIPPED else SAMPLERS[name](seed)


def pruner_named(name: str) -> BasePruner:
    """Return a new pruner."""
    return pruner_of(SearchConfig(evaluations=K)) if name == SHIPPED else PRUNERS[name]()


# --- Replaying --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Finished:
    """Where a search stands after a finished trial; the first four are sums over its trials."""

    evaluations: int
    epochs: float
    n_pruned: int
    n_repeated: int
    """Trials of a configuration that an earlier trial had."""
    best: float
    """Value of the best complete trial."""
    unpruned: float
    """What that would be if the same trials had been drawn and none pruned."""

    def after(self, table: Table, levels: Levels, n_evaluations: int, *, is_repeated: bool) -> Finished:
        """Return where the search stands after one more trial, pruned if it has fewer evaluations than its curve."""
        curve = table.curves[levels]
        is_pruned = n_evaluations < len(curve)
        return Finished(
            evaluations=self.evaluations + n_evaluations,
            epochs=self.epochs + table.epochs(levels) * n_evaluations / len(curve),
            n_pruned=self.n_pruned + is_pruned,
            n_repeated=self.n_repeated + is_repeated,
            best=self.best if is_pruned else max(self.best, *curve),
            unpruned=max(self.unpruned, *curve),
        )


NOTHING_YET = Finished(0, 0.0, 0, 0, -math.inf, -math.inf)


def replay(table: Table, sampler: BaseSampler, pruner: BasePruner, *, seed: int, cap: int = CAP) -> list[Finished]:
    """Search a table as hpsearch searches a space.

    Args:
        table: Where values are looked up.
        sampler: A new one.
        pruner: A new one.
        seed: Of the search. It names the study, by which Hyperband deals trials to its brackets.
        cap: Evaluations after which no trial is started.

    Returns:
        One record for each finished trial, until all that is reported is known.
    """
    study = open_study(table, sampler, pruner, seed=seed)
    target = table.best - TOLERANCE
    finished = [NOTHING_YET]
    tried: set[Levels] = set()
    while (now := finished[-1]).evaluations < cap and not (
        now.best >= target and now.evaluations >= max(BUDGETS) and len(finished) > TRIALS
    ):
        trial = study.ask()
        levels = draw(table, trial)
        n_evaluations = evaluate_all(study, trial, table.curves[levels])
        finished.append(now.after(table, levels, n_evaluations, is_repeated=levels in tried))
        tried.add(levels)
    return finished[1:]


def open_study(table: Table, sampler: BaseSampler, pruner: BasePruner, *, seed: int) -> optuna.Study:
    """Return a new study in memory whose first trial will be the defaults; it is named by its seed."""
    study = optuna.create_study(study_name=f"study-{seed}", direction="maximize", sampler=sampler, pruner=pruner)
    study.enqueue_trial(dict(zip(table.grid, table.defaults, strict=True)))
    return study


def draw(table: Table, trial: optuna.Trial) -> Levels:
    """Draw a trial's configuration."""
    return tuple(trial.suggest_int(name, 0, len(values) - 1) for name, values in table.grid.items())


def evaluate(study: optuna.Study, trial: optuna.Trial, curve: Sequence[float], step: int) -> bool:
    """Report a trial's next evaluation, and say whether the trial has ended with it, pruned or complete."""
    trial.report(curve[step - 1], step)
    if step == len(curve):
        study.tell(trial, max(curve))
        return True
    if trial.number > 0 and trial.should_prune():  # the defaults and the last evaluation are never pruned
        study.tell(trial, state=TrialState.PRUNED)
        return True
    return False


def evaluate_all(study: optuna.Study, trial: optuna.Trial, curve: Sequence[float]) -> int:
    """Report a trial's evaluations until it has ended, and return how many."""
    return next(step for step in itertools.count(1) if evaluate(study, trial, curve, step))


def replay_some(path: Path, pair: tuple[str, str], seeds: range) -> list[list[Finished]]:
    """Search a table file once with each seed."""
    table = read_table(path)
    return [replay(table, sampler_named(pair[0], seed), pruner_named(pair[1]), seed=seed) for seed in seeds]


# --- What came of it --------------------------------------------------------------------------------------------------


def regrets(runs: Sequence[Sequence[Finished]], best: float, *, evaluations: int | None = None) -> list[float]:
    """Return by how many F1 points each search is short of the table's best.

    Args:
        runs: The searches.
        best: The table's best value.
        evaluations: After the last trial that ended within so many evaluations. None: after 20 trials.
    """
    if evaluations is None:
        return [100 * (best - run[TRIALS - 1].best) for run in runs]
    return [100 * (best - max(state.best for state in run if state.evaluations <= evaluations)) for run in runs]


def mean_and_error(values: Sequence[float]) -> dict[str, float]:
    """Return the mean of independent values and its standard error."""
    return {"mean": statistics.fmean(values), "error": statistics.stdev(values) / math.sqrt(len(values))}


def arrival(runs: Sequence[Sequence[Finished]], best: float, unit: str) -> dict[str, float | None]:
    """Return what it took until searches were within the tolerance of the table's best.

    Args:
        runs: The searches.
        best: The table's best value.
        unit: `evaluations` or `epochs`.

    Returns:
        The median and the 90th percentile, None where that share of the searches was given up before.
    """
    spent = sorted(
        next((float(getattr(state, unit)) for state in run if state.best >= best - TOLERANCE), math.inf) for run in runs
    )
    quantiles = {name: spent[math.ceil(share * len(spent)) - 1] for name, share in (("median", 0.5), ("p90", 0.9))}
    return {name: value if math.isfinite(value) else None for name, value in quantiles.items()}


def summary(pair: tuple[str, str], runs: Sequence[Sequence[Finished]], best: float) -> dict[str, Any]:
    """Return the figures of one pair of sampler and pruner."""
    last = [run[TRIALS - 1] for run in runs]
    return {
        "sampler": pair[0],
        "pruner": pair[1],
        "regret_at_20_trials": mean_and_error(regrets(runs, best)),
        "regret_at_evaluations": {
            str(budget): mean_and_error(regrets(runs, best, evaluations=budget)) for budget in BUDGETS
        },
        "evaluations_until_near": arrival(runs, best, "evaluations"),
        "epochs_until_near": arrival(runs, best, "epochs"),
        "at_20_trials": {
            "evaluations": statistics.fmean(state.evaluations for state in last),
            "epochs": statistics.fmean(state.epochs for state in last),
            "repeated": statistics.fmean(state.n_repeated for state in last),
            "pruned": statistics.fmean(state.n_pruned / TRIALS for state in last),
            # Searches whose best trial, had it gone on to its end, was pruned; and the points that this cost.
            "false_prunes": statistics.fmean(state.unpruned > state.best for state in last),
            "points_lost_to_pruning": 100 * statistics.fmean(state.unpruned - state.best for state in last),
        },
    }


def comparison(
    shipped: Sequence[Sequence[Finished]], baseline: Sequence[Sequence[Finished]], best: float
) -> dict[str, Any]:
    """Compare the shipped defaults with random search without pruning, seed by seed."""

    def paired(evaluations: int | None) -> dict[str, Any]:
        ours, theirs = (regrets(runs, best, evaluations=evaluations) for runs in (shipped, baseline))
        differences = [one - other for one, other in zip(ours, theirs, strict=True)]
        return {
            "shipped": mean_and_error(ours),
            "random": mean_and_error(theirs),
            "difference": mean_and_error(differences),
            "better": statistics.fmean(difference < 0 for difference in differences),
            "equal": statistics.fmean(difference == 0 for difference in differences),
        }

    return {"20 trials": paired(None), "160 evaluations": paired(160)}


def results_of(table: Table, runs: Mapping[tuple[str, str], Sequence[Sequence[Finished]]]) -> dict[str, Any]:
    """Return all figures as one JSON document.

    Args:
        table: What was searched.
        runs: The searches of each pair, in the order of their seeds; `BASELINE` and the shipped pair are among them.
    """
    values = [max(curve) for curve in table.curves.values()]
    return {
        "table": {
            "configurations": len(values),
            "best": table.best,
            "median": statistics.median(values),
            "defaults": max(table.curves[table.defaults]),
            "near_best": sum(value >= table.best - TOLERANCE for value in values),
            "unexplained": unexplained(table),
        },
        "seeds": len(runs[BASELINE]),
        "cap": CAP,
        "results": [summary(pair, some, table.best) for pair, some in runs.items()],
        "shipped": SearchConfig().model_dump(include={"sampler", "pruner"}),
        "shipped_against_random": comparison(runs[SHIPPED, SHIPPED], runs[BASELINE], table.best),
    }


@main.command(name="replay")
@click.option(
    "--table",
    "path",
    type=click.Path(path_type=Path, exists=True),
    default=Path(__file__).with_name("tabular.csv"),
    help="What `train` wrote; by default the one beside this script.",
)
@click.option("--seeds", default=200, show_default=True, help="Searches of each pair; seeds 0, 1, 2, ...")
@click.option("--sampler", "samplers", multiple=True, type=click.Choice(list(SAMPLERS)), help="Only these.")
@click.option("--pruner", "pruners", multiple=True, type=click.Choice(list(PRUNERS)), help="Only these.")
@click.option("--workers", default=2, show_default=True, help="Processes.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write one JSON document there.")
def replay_command(
    path: Path, seeds: int, samplers: tuple[str, ...], pruners: tuple[str, ...], workers: int, json_path: Path | None
) -> None:
    """Replay searches with every sampler and pruner, and print what came of it as Markdown."""
    table = read_table(path)
    pairs = [
        (sampler, pruner)
        for sampler in samplers or SAMPLERS
        for pruner in pruners or PRUNERS
        if pruner in FEWER.get(sampler, PRUNERS)
    ]
    pairs = list(dict.fromkeys([*pairs, BASELINE, (SHIPPED, SHIPPED)]))
    parts = [range(first, min(first + 20, seeds)) for first in range(0, seeds, 20)]
    runs: dict[tuple[str, str], list[list[Finished]]] = {}
    with processes(workers, threads=1) as pool:
        futures = {pair: [pool.submit(replay_some, path, pair, part) for part in parts] for pair in pairs}
        for pair in tqdm(pairs, unit="pair"):
            runs[pair] = [run for future in futures[pair] for run in future.result()]
    versions = conditions(("hpsearch", "optuna", "cmaes", "scipy", "numpy"))
    document = {**results_of(table, runs), "conditions": versions}
    click.echo(markdown(document))
    if json_path:
        json_path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def markdown(document: Mapping[str, Any]) -> str:
    """Return the figures as Markdown: one table for each question, samplers down, pruners across."""

    def interval(figure: Mapping[str, float]) -> str:
        return f"{figure['mean']:.2f} ± {figure['error']:.2f}"

    def quantiles(figure: Mapping[str, float | None]) -> str:
        return " / ".join("more" if value is None else f"{value:.0f}" for value in figure.values())

    def pruning(figure: Mapping[str, float]) -> str:
        return f"{figure['pruned']:.0%} / {figure['false_prunes']:.0%} / {figure['points_lost_to_pruning']:.2f}"

    questions: list[tuple[str, Callable[[Mapping[str, Any]], str]]] = [
        (
            "Evaluations until within 0.5 F1 points of the table's best: median / 90th percentile",
            lambda result: quantiles(result["evaluations_until_near"]),
        ),
        (
            "Epochs of training until there: median / 90th percentile",
            lambda result: quantiles(result["epochs_until_near"]),
        ),
        ("Regret at 20 trials, F1 points", lambda result: interval(result["regret_at_20_trials"])),
        (
            "Evaluations / epochs that 20 trials take / how many of the trials repeat an earlier one",
            lambda result: "{evaluations:.0f} / {epochs:.0f} / {repeated:.1f}".format_map(result["at_20_trials"]),
        ),
        *(
            (
                f"Regret at {budget} evaluations, F1 points",
                lambda result, budget=budget: interval(result["regret_at_evaluations"][str(budget)]),
            )
            for budget in BUDGETS
        ),
        (
            "Of 20 trials: share pruned / searches whose best would have been a pruned one / F1 points that it cost",
            lambda result: pruning(result["at_20_trials"]),
        ),
    ]
    table, shipped, results = document["table"], document["shipped"], document["results"]
    listed = [result for result in results if result["sampler"] != SHIPPED]
    near = {(result["sampler"], result["pruner"]): quantiles(result["evaluations_until_near"]) for result in results}
    lines = [
        f"{table['configurations']} configurations: best F1 {table['best']:.4f}, median {table['median']:.4f}, "
        f"defaults {table['defaults']:.4f}; {table['near_best']} are within 0.5 points of the best. Levels and pairs "
        f"of levels leave {100 * table['unexplained']:.2f} points unexplained (standard deviation).",
        "",
        f"Means ± standard errors over {document['seeds']} searches a cell (seeds 0 to {document['seeds'] - 1}); "
        f"'more': not within {document['cap']} evaluations.",
        *(line for title, cell in questions for line in ("", f"### {title}", "", *_matrix(listed, cell))),
        "",
        "### The shipped defaults against random search without pruning",
        "",
        f"Shipped: {shipped['sampler']} with {shipped['pruner']}. Evaluations until within 0.5 points (median / 90th "
        f"percentile): shipped {near[SHIPPED, SHIPPED]}, random {near[BASELINE]}. Seed by seed:",
        "",
        "| after | regret, shipped | regret, random | difference | better / equal / worse |",
        "| --- | --- | --- | --- | --- |",
    ]
    for after, pair in document["shipped_against_random"].items():
        shares = [pair["better"], pair["equal"], 1 - pair["better"] - pair["equal"]]
        lines.append(
            f"| {after} | {interval(pair['shipped'])} | {interval(pair['random'])} | {interval(pair['difference'])} | "
            f"{' / '.join(f'{share:.0%}' for share in shares)} |"
        )
    return "\n".join([*lines, "", document["conditions"]])


def _matrix(results: Sequence[Mapping[str, Any]], cell: Callable[[Mapping[str, Any]], str]) -> Iterator[str]:
    cells = {(result["sampler"], result["pruner"]): cell(result) for result in results}
    samplers, pruners = (list(dict.fromkeys(pair[i] for pair in cells)) for i in (0, 1))
    yield f"| | {' | '.join(pruners)} |"
    yield f"| --- |{' --- |' * len(pruners)}"
    for sampler in samplers:
        yield f"| {sampler} | {' | '.join(cells.get((sampler, pruner), '') for pruner in pruners)} |"


if __name__ == "__main__":
    main()
