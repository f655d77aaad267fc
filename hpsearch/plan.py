"""What a search will take and where it would fail, found out before anything is spent.

A few real steps are timed (`probe.py`), and from them the time of configurations drawn from the space as the sampler's
random start draws them. Nothing is written but to a temporary folder.

How long a whole search takes hangs on two things that a probe cannot see. A pruner stops trials early, and a sampler
that learns moves towards what is good, which is often what trains longer. What both come to is taken from searches
replayed on 216 configurations that were trained in full (`benchmarks/README.md`).
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import torch

from hpsearch.audit import Check, data_checks, describe
from hpsearch.config import DROPOUTS
from hpsearch.data import load_test
from hpsearch.errors import HpsearchError
from hpsearch.probe import probe
from hpsearch.search import open_encoder, read_rows
from hpsearch.space import bounds, suggest
from hpsearch.trainer import Task
from hpsearch.workers import place, resources

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hpsearch.config import Config, Hyperparameters
    from hpsearch.data import Split
    from hpsearch.probe import Probe
    from hpsearch.workers import Resources

N_DRAWS = 200
_STARTUP = 8  # trials that the shipped sampler draws at random
_REPLAYED = 20  # trials of a replayed search
# What a replayed search of 20 trials takes, against 20 random draws in full: of training time, and of evaluations, for
# spaces in which all trials are equally long (benchmarks/tabular_results.json: epochs and evaluations at 20 trials).
# `gp` was replayed without a pruner only, and is taken to be pruned as `tpe` is.
TIME_SPENT = {
    ("tpe", "none"): 1.156, ("tpe", "median"): 0.859, ("tpe", "successive-halving"): 0.793, ("tpe", "hyperband"): 0.836,
    ("random", "none"): 1.0, ("random", "median"): 0.658, ("random", "successive-halving"): 0.628,
    ("random", "hyperband"): 0.703, ("gp", "none"): 1.228,
}  # fmt: skip
EVALUATIONS_SPENT = {
    ("tpe", "none"): 1.0, ("tpe", "median"): 0.682, ("tpe", "successive-halving"): 0.620, ("tpe", "hyperband"): 0.691,
    ("random", "none"): 1.0, ("random", "median"): 0.584, ("random", "successive-halving"): 0.550,
    ("random", "hyperband"): 0.658, ("gp", "none"): 1.0,
}  # fmt: skip
_DATABASE_BYTES, _DATABASE_BYTES_A_TRIAL = 100_000, 8_000  # 152 kB after 20 trials of 8 evaluations
_TOKEN_BYTES = 4
_SHORT_OF = 0.8  # of what there is of memory or disk: from here on a person should look
# On a CPU a process keeps freed memory in pieces: one had 1,040 MiB after its first trial and 1,462 after twenty.
_GROWTH = 1.4
_BUSY = 0.6  # of the cores: from here on steps take longer than on an idle machine
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Range:
    """A mean, and where nine in ten lie."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a search would take."""

    probe: Probe
    default_s: float
    """Seconds of trial 0."""
    trial_s: Range
    """Seconds of configurations drawn from the space, none pruned."""
    without_pruning_s: Range
    """Seconds of the whole search with no pruner."""
    with_pruning_s: Range
    """Seconds of the whole search with its own pruner."""
    time_share: float
    """What `with_pruning_s` takes the search to be of as many random draws in full."""
    start_s: float
    """Seconds until the first trial, once for each run: the libraries, the rows, the tokens, the weights."""
    n_workers: int
    """That share the trials and the machine; all above but the seconds of whole searches is for one of them."""
    available_mib: int
    disk_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What is known of a search before it starts."""

    config: Config
    checks: tuple[Check, ...]
    audit: dict[str, Any] | None
    """The data as `inspect` shows it; None where rows or model cannot be read."""
    estimate: Estimate | None
    """None where nothing could be measured."""

    @property
    def would_fail(self) -> bool:
        """Say whether the search would fail."""
        return any(check.level == "fail" for check in self.checks)


def make_plan(
    config: Config,
    folder: Path,
    *,
    n_workers: int | None = 1,
    per_gpu: int = 1,
    here: Resources | None = None,
    loading_s: float = 0.0,
) -> Plan:
    """Look at the data and the model, take a few steps, and say what a search would take.

    What the search would fail over is found in `checks`, and is not raised.

    Args:
        config: Of the search.
        folder: Where studies would be kept; it need not be there, and nothing is written to it.
        n_workers: Of the search, None for as many as suit the machine.
        per_gpu: Workers that share a GPU.
        here: The machine's resources, by default as torch sees them.
        loading_s: Seconds that the process took to load the libraries, as every search does.
    """
    started = time.perf_counter()
    read, failures = _read(config)
    loading_s += time.perf_counter() - started
    if read is None:
        return Plan(config, failures, None, None)
    task, test = read
    audit = describe(config, task.data, test, task.model)
    checks = [*data_checks(audit), _model_check(task), *_busy_check()]
    weights = task.model.weight_bytes(task.data.label_names)
    placement = place(
        n_workers, here or resources(None), per_gpu=per_gpu, n_trials=config.search.trials, weights=weights
    )
    n_workers = len(placement.devices)
    available_mib = _available_mib() // (n_workers if placement.devices[0] is None else per_gpu)
    try:
        with _threads(placement.n_threads):
            measured = probe(
                task,
                _probed(config),
                smallest_batch=min(_batch_sizes(config)),
                largest_batch=max(_batch_sizes(config)),
                available_mib=available_mib,
            )
    except (HpsearchError, RuntimeError, ValueError) as error:  # of what torch and the Trainer raise
        problem = " ".join(str(error).split())
        checks.append(Check("fail", "train", f"training a few steps ended with {type(error).__name__}: {problem}"))
        return Plan(config, tuple(checks), audit, None)
    estimate = _estimate(
        config, measured, folder, n_workers=n_workers, available_mib=available_mib, loading_s=loading_s
    )
    checks += [_memory_check(config, estimate), *_schedule_checks(config, measured), _disk_check(estimate, folder)]
    return Plan(config, tuple(checks), audit, estimate)


def _read(config: Config) -> tuple[tuple[Task, Split] | None, tuple[Check, ...]]:
    """Return the rows and the model, or else everything that is wrong with them."""
    failures = []
    data = test = model = None
    try:
        data = read_rows(config)
        test = load_test(config.data)
    except HpsearchError as error:
        failures.append(Check("fail", "data", str(error)))
    try:
        model = open_encoder(config, data.label_names if data else ("no", "yes"))
    except HpsearchError as error:
        failures.append(Check("fail", "model", str(error)))
    if data is None or test is None or model is None:
        return None, tuple(failures)
    return (Task(config=config.with_absolute_paths(), model=model, data=data), test), ()


# --- Time -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _threads(n_threads: int) -> Iterator[None]:
    """Compute with as many threads as a worker will have."""
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _estimate(
    config: Config, measured: Probe, folder: Path, *, n_workers: int, available_mib: int, loading_s: float
) -> Estimate:
    n_evaluations, n_trials = config.search.evaluations, config.search.trials
    default_s = measured.seconds(config.defaults, n_evaluations)
    drawn = np.array([measured.seconds(each, n_evaluations) for each in drawn_configurations(config)])
    low, high = np.percentile(drawn, [5, 95])
    start_s = loading_s + measured.speed.start
    mean = default_s + (n_trials - 1) * float(drawn.mean())
    spread = 1.645 * float(drawn.std()) * math.sqrt(n_trials - 1)  # nine in ten of a normal distribution
    shares = {
        pruner: search_share(
            config.search.sampler, pruner, n_trials, is_length_tuned="num_train_epochs" in config.space
        )
        for pruner in ("none", config.search.pruner)
    }
    # Of several workers the last has half a trial left on average when the others find nothing more to do.
    waiting = (1 - 1 / n_workers) * float(drawn.mean()) / 2
    searches = {
        pruner: Range(
            *(start_s + share * max(default_s, (mean + side * spread) / n_workers + waiting) for side in (0, -1, 1))
        )
        for pruner, share in shares.items()
    }
    n_tokens = int(measured.lengths.sum()) + measured.validation_tokens
    return Estimate(
        probe=measured,
        default_s=default_s,
        trial_s=Range(float(drawn.mean()), float(low), float(high)),
        without_pruning_s=searches["none"],
        with_pruning_s=searches[config.search.pruner],
        time_share=shares[config.search.pruner],
        start_s=start_s,
        n_workers=n_workers,
        available_mib=available_mib,
        # One more for each worker, because a checkpoint is written before the worst is deleted.
        disk_bytes=(
            (min(config.search.keep_checkpoints, n_trials) + n_workers) * measured.checkpoint_bytes
            + _TOKEN_BYTES * n_tokens
            + _DATABASE_BYTES
            + _DATABASE_BYTES_A_TRIAL * n_trials
        ),
        free_bytes=shutil.disk_usage(_existing(folder)).free,
    )


def drawn_configurations(config: Config) -> Iterator[Hyperparameters]:
    """Yield configurations drawn from the space as the sampler's random start draws them."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=config.search.seed))
    for _ in range(N_DRAWS):
        yield config.defaults.replace(suggest(study.ask(), config.space))


def search_share(sampler: str, pruner: str, n_trials: int, *, is_length_tuned: bool) -> float:
    """Return the time that a search takes, against as many random draws in full.

    The first trials are drawn at random and hardly pruned, so all that a sampler and a pruner do to the time falls to
    the trials after them.

    Args:
        sampler: By its name in the configuration.
        pruner: Likewise.
        n_trials: Finished trials of the search.
        is_length_tuned: Whether trials are of different lengths, so that a sampler can prefer long ones.
    """
    table = TIME_SPENT if is_length_tuned else EVALUATIONS_SPENT
    replayed = table.get((sampler, pruner))
    if replayed is None:
        replayed = table[sampler, "none"] * table["tpe", pruner] / table["tpe", "none"]
    later = (_REPLAYED * replayed - _STARTUP) / (_REPLAYED - _STARTUP)
    n_first = min(n_trials, _STARTUP)
    return (n_first + (n_trials - n_first) * later) / n_trials


def _probed(config: Config) -> Hyperparameters:
    """Return the hyperparameters of the probe: the defaults, with dropout where the space has it, for it takes time."""
    spans = {name: bounds(config.space[name]) for name in DROPOUTS if name in config.space}
    rates = {name: [float(value) for value in span] for name, span in spans.items()}
    return config.defaults.replace({name: (min(values) + max(values)) / 2 for name, values in rates.items()})


def _batch_sizes(config: Config) -> list[int]:
    name = "per_device_train_batch_size"
    drawn = bounds(config.space[name]) if name in config.space else ()
    return [config.defaults.per_device_train_batch_size, *(int(size) for size in drawn)]


# --- Checks -----------------------------------------------------------------------------------------------------------


def _model_check(task: Task) -> Check:
    model = task.model
    weights = "safetensors weights" if model.config.pretrained else "random weights"
    return Check(
        "ok", "model", f"{model.config.name}   {weights}, no code of its own   inputs of {model.max_length} tokens"
    )


def _busy_check() -> Iterator[Check]:
    load, n_cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > _BUSY * n_cores:
        yield Check(
            "warn",
            "busy",
            f"{load:.1f} programs have been busy on {n_cores} cores in the last minute: the times below hold while "
            f"that lasts",
            "plan again when it is idle",
        )


def _memory_check(config: Config, estimate: Estimate) -> Check:
    peak, there, batch = estimate.probe.peak_memory_mib, estimate.available_mib, max(_batch_sizes(config))
    growth = 1.0 if estimate.probe.device.startswith("cuda") else _GROWTH
    share = f" for each of {estimate.n_workers} workers" if estimate.n_workers > 1 else ""
    text = f"{peak:,} MiB at batches of {batch} of the longest texts, {there:,} MiB there{share}"
    if growth > 1:
        text += f"; over many trials the process may grow to {growth * peak:,.0f} MiB"
    hint = (
        "a smaller largest batch: --set space.per_device_train_batch_size.choices=[...], or a smaller model.max_length"
    )
    if not estimate.probe.peak_is_measured or peak > there:
        return Check("fail", "memory", f"about {text}", hint)
    return Check("warn", "memory", text, hint) if growth * peak > _SHORT_OF * there else Check("ok", "memory", text)


def _disk_check(estimate: Estimate, folder: Path) -> Check:
    need, free = estimate.disk_bytes / _MIB, estimate.free_bytes / _MIB
    text = f"about {need:,.0f} MiB in {folder}, {free:,.0f} MiB free"
    hint = "a lower search.keep_checkpoints, or --storage on another disk"
    if not os.access(_existing(folder), os.W_OK):
        return Check("fail", "disk", f"{_existing(folder)} cannot be written to", "another --storage")
    if need > free:
        return Check("fail", "disk", text, hint)
    return Check("warn", "disk", text, hint) if need > _SHORT_OF * free else Check("ok", "disk", text)


def _schedule_checks(config: Config, measured: Probe) -> Iterator[Check]:
    name = "num_train_epochs"
    drawn = [float(value) for value in bounds(config.space[name])] if name in config.space else []
    epochs, batch = min([config.defaults.num_train_epochs, *drawn]), max(_batch_sizes(config))
    n_steps = max(1, math.ceil(epochs * -(-len(measured.lengths) // batch)))
    if n_steps < config.search.evaluations:
        yield Check(
            "warn",
            "steps",
            f"the shortest trials have {n_steps} steps and so fewer than {config.search.evaluations} evaluations",
            "a lower search.evaluations, smaller batches or more epochs",
        )


def _available_mib() -> int:
    """Return the memory that a search could have: the device's, else this machine's with what this process has."""
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0] // _MIB)
    meminfo = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    own_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**10
    there = [int(meminfo["MemAvailable"].split()[0]) // 2**10 + own_mib]
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):  # of a container
        path = Path(name)
        limit = path.read_text(encoding="ascii").strip() if path.is_file() else ""
        if limit.isdecimal():
            there.append(int(limit) // _MIB)
    return min(there)


def _existing(folder: Path) -> Path:
    """Return a folder, or the nearest one above it that is there."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.is_dir())
