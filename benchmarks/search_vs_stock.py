"""Run the same list of trials with hpsearch and with the Trainer's stock search, in turn, and print one table.

Both train the same trials (enqueued, the first is the defaults) for the same epochs from the same seed on the same
rows, score the same validation rows after each epoch, and prune nothing. Each run is a process and a folder of its
own. Repeat 1 runs both with seed 42, repeat 2 with 43, and so on; they take turns in going first.

- stock: the tutorial's preprocessing (each split tokenised in one call, padded to its longest text) with
  `Trainer.hyperparameter_search` as its documentation shows it: float32, `from_pretrained` in `model_init`, evaluation
  and checkpoint each epoch, batch 32 for evaluation, `save_total_limit=2`. All else is the Trainer's default.
- hpsearch: the command `hpsearch run`, as shipped, with `--set` for the sizes.

Both get the environment as it is. `hpsearch run` itself sets GOMP_SPINCOUNT=3000, which a busy machine thanks it for:
use an idle one, or set it for both.

What is timed begins after a program's imports and ends when its search returns. In hpsearch: starting its workers, who
load the libraries anew, checking the configuration, reading the file, opening the model, opening the study, tokenising,
choosing the products, trials with their checkpoints, and the table that `run` prints. In stock: reading the file,
tokenising, making the Trainer, trials with their checkpoints. The seconds before Optuna starts the first trial are also
given alone. In neither: making the study and enqueuing the trials. No run finds token ids of another one. Seconds a
trial are all seconds by the number of trials: hpsearch runs as many at once as `--workers auto` makes it.

`ratio` is the median over the repeats of stock's seconds by hpsearch's. Peak memory is the most that the process and
all that it started had resident at once, looked at once a second, imports included; pages that several share, such as
those of libraries, count for each. On a GPU also the most that torch had allocated there, in one process. Written is
what went through write calls in the timed part (the few kB printed are in it, and what the page cache takes); kept is
the size of the files at the end. The table shows medians.

F1 is judged over pairs: the value (best evaluation) of the same trial from the same seed by both programs. The mean of
hpsearch - stock is set against its standard error, the pairs' standard deviation by the root of their number; within
two standard errors no difference is seen. A true difference of three would be found so five times in six, one below
one will mostly be missed: with few repeats only large ones show. Pairs of one seed share the head's first weights and
the validation rows, so they are not quite independent, and a mean just beyond two is no proof. Trials that barely left
chance say nothing: F1 from random weights is not judged, and others should be long enough to learn.

    python benchmarks/search_vs_stock.py --json result.json
    python benchmarks/search_vs_stock.py --model FOLDER --random-weights --trials 1 --epochs 10
    python benchmarks/search_vs_stock.py --search          # times the shipped search with its pruner, no stock side
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import date
from importlib import import_module
from importlib.metadata import version
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import click
import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import optuna

SEED = 42
STUDY = "benchmark"
SHARED = Path(__file__).parents[2] / "shared"
LIBRARIES = ("hpsearch", "torch", "transformers", "optuna", "datasets", "tokenizers", "numpy")
ENVIRONMENT = ("OMP_", "GOMP_", "KMP_", "MKL_", "TOKENIZERS_", "CUDA_VISIBLE", "LD_PRELOAD", "MALLOC_")

Run = dict[str, Any]
Plan = dict[str, Any]
"""What both programs do: the options of `main`, a seed, and the list of trials where they are not drawn."""


def trials_of(n_trials: int, epochs: int) -> list[dict[str, Any]]:
    """Return the fixed list: the tutorial's settings first, then others within the usual ranges."""
    rates = [5e-5, 1e-4, 3e-5, 2e-4, 8e-5, 1.5e-4, 4e-5, 6e-5]
    batches = [32, 16, 32, 64, 16, 32, 64, 16]
    return [
        {"learning_rate": rates[i % 8], "per_device_train_batch_size": batches[i % 8], "num_train_epochs": epochs}
        for i in range(n_trials)
    ]


# --- hpsearch ---------------------------------------------------------------------------------------------------------


def overrides_of(plan: Plan) -> list[str]:
    """Return what is set over the shipped configuration."""
    values = {
        "model.name": plan["model"], "model.pretrained": str(plan["pretrained"]).lower(), "data.train": plan["train"],
        "data.train_rows": plan["rows"], "data.validation_rows": plan["validation_rows"], "data.test_rows": 1,
        "search.seed": plan["seed"], "search.trials": plan["n_trials"],
    }  # fmt: skip
    if not plan["search"]:
        values |= {f"defaults.{name}": value for name, value in plan["trials"][0].items()} | {
            "space": "{learning_rate: {type: float, low: 1e-6, high: 1e-2, log: true}, per_device_train_batch_size:"
            " {type: categorical, choices: [16, 32, 64]}, num_train_epochs: {type: int, low: 1, high: 100}}",
            "search.evaluations": plan["trials"][0]["num_train_epochs"],
            "search.pruner": "none",
        }
    return [f"{key}={value}" for key, value in values.items()]


def enqueue(plan: Plan, folder: Path) -> Run:
    """Make hpsearch's study with the plan's trials waiting in it; the defaults are always the first."""
    from hpsearch.config import load_config
    from hpsearch.search import prepare
    from hpsearch.study import create_or_resume, open_storage, study_lock

    task = prepare(load_config("nsmc-mbert", overrides_of(plan)))
    storage = open_storage(f"sqlite:///{folder}/study.db", create=True)
    lock = study_lock(task.config, data=task.data.fingerprint(), model=task.model.fingerprint)
    study = create_or_resume(storage, STUDY, task.config, lock)
    for values in plan["trials"][1:]:
        study.enqueue_trial(values)
    return {"rows": _rows_hash((split.texts, split.labels) for split in (task.data.train, task.data.validation))}


def run_hpsearch(plan: Plan, folder: Path) -> Run:
    """Search with the command line, on the study that `enqueue` made."""
    from hpsearch import cli

    cli._prepare_process()  # as the command does before it imports these
    import optuna

    for name in ("report", "progress", "search"):
        import_module(f"hpsearch.{name}")

    storage = f"sqlite:///{folder}/study.db"
    settings = chain.from_iterable(("--set", override) for override in overrides_of(plan))
    arguments = ["run", "--config", "nsmc-mbert", *settings, "--study", STUDY, "--storage", storage]
    timed = _timed(lambda: cli.cli.main(arguments, standalone_mode=False))
    study = optuna.load_study(study_name=STUDY, storage=storage)
    figures = {**timed, **_figures(study, timed["started"], folder)}
    if "device_mib" in figures:  # torch's own peak is set back before each trial
        figures["device_mib"] = max(trial.user_attrs.get("peak_memory_mib", 0) for trial in study.trials)
    return figures


# --- The stock search -------------------------------------------------------------------------------------------------


def run_stock(plan: Plan, folder: Path) -> Run:
    """Search as the Trainer's documentation shows it."""
    import numpy as np
    import optuna
    import pandas
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

    from hpsearch.metrics import confusion_matrix, f1

    class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
        def __init__(self, encodings: Any, labels: Any) -> None:
            self.encodings, self.labels = encodings, torch.as_tensor(labels)

        def __len__(self) -> int:
            return len(self.labels)

        def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
            return {**{name: values[i] for name, values in self.encodings.items()}, "labels": self.labels[i]}

    def model_init() -> Any:
        if not plan["pretrained"]:
            config = AutoConfig.from_pretrained(plan["model"], num_labels=2)
            return AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
        return AutoModelForSequenceClassification.from_pretrained(plan["model"], num_labels=2, dtype=torch.float32)

    def compute_metrics(prediction: Any) -> dict[str, float]:
        return {"f1": float(f1(confusion_matrix(prediction.label_ids, prediction.predictions.argmax(-1), 2)))}

    storage = f"sqlite:///{folder}/study.db"
    study = optuna.create_study(storage=storage, study_name=STUDY, direction="maximize")
    for values in plan["trials"]:
        study.enqueue_trial(values)
    splits: list[tuple[list[str], list[int]]] = []

    def search() -> None:
        table = pandas.read_csv(plan["train"], sep="\t", keep_default_na=False)
        order = np.random.default_rng(42).permutation(len(table))
        ends = [0, plan["rows"], plan["rows"] + plan["validation_rows"]]
        for start, end in pairwise(ends):
            rows = table.iloc[order[start:end]]
            rows = rows[rows.document.str.strip() != ""]
            splits.append((rows.document.tolist(), rows.label.tolist()))
        tokenizer = AutoTokenizer.from_pretrained(plan["model"])
        train, validation = (
            Rows(tokenizer(texts, padding=True, truncation=True, return_tensors="pt"), labels)
            for texts, labels in splits
        )
        trainer = Trainer(
            model_init=model_init,
            args=TrainingArguments(
                output_dir=str(folder / "stock"), seed=plan["seed"], per_device_eval_batch_size=32,
                eval_strategy="epoch", save_strategy="epoch", save_total_limit=2, report_to="none", disable_tqdm=True,
            ),
            train_dataset=train, eval_dataset=validation, compute_metrics=compute_metrics,
        )  # fmt: skip
        trainer.hyperparameter_search(
            hp_space=lambda trial: {
                "learning_rate": trial.suggest_float("learning_rate", 1e-6, 1e-2, log=True),
                "per_device_train_batch_size": trial.suggest_categorical("per_device_train_batch_size", [16, 32, 64]),
                "num_train_epochs": trial.suggest_int("num_train_epochs", 1, 100),
            },
            compute_objective=lambda metrics: metrics["eval_f1"],
            n_trials=len(plan["trials"]), direction="maximize", backend="optuna", storage=storage, study_name=STUDY,
            load_if_exists=True, pruner=optuna.pruners.NopPruner(),
        )  # fmt: skip

    timed = _timed(search)
    return {**timed, **_figures(study, timed["started"], folder), "rows": _rows_hash(splits)}


# --- One run, in a process of its own ---------------------------------------------------------------------------------


PROGRAMS: dict[str, Callable[[Plan, Path], Run]] = {"enqueue": enqueue, "hpsearch": run_hpsearch, "stock": run_stock}


def run_apart(program: str, plan: Plan) -> Run:
    """Run one program in a process and a folder of its own; the folder is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        steps = [_run_step(step, plan, folder) for step in (("enqueue", "hpsearch"), ("stock",))[program == "stock"]]
    return {"seed": plan["seed"], **{key: value for step in steps for key, value in step.items()}}


def _run_step(program: str, plan: Plan, folder: str) -> Run:
    command = [sys.executable, __file__, "--program", program, "--folder", folder, "--plan", json.dumps(plan)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        raise click.ClickException(f"{program} ended with status {done.returncode}:\n{done.stderr[-3000:]}")
    figures: Run = json.loads((Path(folder) / f"{program}.json").read_text(encoding="utf-8"))
    return figures


def _timed(work: Callable[[], object]) -> Run:
    started = time.time()
    with _Watched() as watched:
        clock = time.perf_counter()
        work()
        seconds = time.perf_counter() - clock
    return {
        "started": started,
        "seconds": seconds,
        "written_mib": watched.written // 2**20,
        "peak_mib": watched.peak // 2**20,
    }


class _Watched:
    """This process and all it starts, looked at once a second: pages that they share count for each."""

    def __enter__(self) -> Self:
        self.peak = 0
        """The most memory at once, in bytes."""
        self._written: dict[int, int] = {}
        self._before = psutil.Process().io_counters().write_chars
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._look()

    @property
    def written(self) -> int:
        """Bytes written, to files and pipes."""
        return sum(self._written.values()) - self._before

    def _watch(self) -> None:
        while not self._done.wait(1.0):
            self._look()

    def _look(self) -> None:
        memory, me = 0, psutil.Process()
        for process in (me, *me.children(recursive=True)):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                memory += process.memory_info().rss
                self._written[process.pid] = process.io_counters().write_chars
        self.peak = max(self.peak, memory)


def _figures(study: optuna.Study, started: float, folder: Path) -> Run:
    """Return what a run came to; a trial's value is its best evaluation, which is what hpsearch takes as its value."""
    import torch
    from machine import machine  # beside this script

    trials = sorted(study.get_trials(deepcopy=False), key=lambda trial: trial.number)
    cuda = torch.cuda.is_available()
    return {
        "seconds_before_first_trial": min(t.datetime_start.timestamp() for t in trials if t.datetime_start) - started,
        "f1": [max(trial.intermediate_values.values(), default=None) for trial in trials],
        "states": [trial.state.name.lower() for trial in trials],
        **({"device_mib": torch.cuda.max_memory_allocated() // 2**20} if cuda else {}),
        "kept_mib": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) // 2**20,
        "machine": machine(),
    }


def _rows_hash(splits: Iterable[tuple[Iterable[str], Iterable[int]]]) -> str:
    rows = [[list(texts), [int(label) for label in labels]] for texts, labels in splits]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


# --- Judging ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Agreement:
    """What pairs of F1 values of the two programs say; see the top of this file."""

    n_pairs: int
    mean_difference: float
    """Of hpsearch - stock."""
    standard_error: float
    seed_deviations: dict[str, float]
    """Standard deviation between seeds of the same trial, by program."""

    @property
    def agrees(self) -> bool:
        """Whether the mean difference lies within two standard errors."""
        return abs(self.mean_difference) <= 2 * self.standard_error


def judge(scores: dict[str, list[Sequence[float]]]) -> Agreement:
    """Compare the F1 values of two programs.

    Args:
        scores: For `stock` and `hpsearch`, one list for each of at least two repeats: the value of each trial.
    """
    pairs = list(zip(chain(*scores["hpsearch"]), chain(*scores["stock"]), strict=True))
    differences = [ours - stock for ours, stock in pairs]
    return Agreement(
        n_pairs=len(differences),
        mean_difference=statistics.fmean(differences),
        standard_error=statistics.stdev(differences) / math.sqrt(len(differences)),
        seed_deviations={
            name: math.sqrt(statistics.fmean(statistics.variance(trial) for trial in zip(*repeats, strict=True)))
            for name, repeats in scores.items()
        },
    )


def judgement(agreement: Agreement | None, *, pretrained: bool) -> str:
    """Return in words whether the two programs learn the same."""
    if not pretrained:
        return "F1 is not judged: trials from random weights barely leave chance, and agree whatever was done."
    if agreement is None:
        return "F1 is not judged: it takes at least two repeats."
    mean, error = agreement.mean_difference, agreement.standard_error
    verdict = "within two standard errors: no difference is seen" if agreement.agrees else "BEYOND two standard errors"
    deviations = ", ".join(f"{value:.4f} {name}" for name, value in agreement.seed_deviations.items())
    return (
        f"F1, hpsearch - stock: mean {mean:+.4f}, standard error {error:.4f} ({agreement.n_pairs} pairs), {verdict}.\n"
        f"A true difference of {3 * error:.4f} would have been found five times in six.\n"
        f"Standard deviation of F1 between seeds of the same trial: {deviations}."
    )


# --- What is printed and kept -----------------------------------------------------------------------------------------


def document_of(plan: Plan, runs: dict[str, list[Run]]) -> dict[str, Any]:
    """Return all that is known about finished runs."""
    document: dict[str, Any] = {}
    if not plan["search"]:
        ratios = [a["seconds"] / b["seconds"] for a, b in zip(runs["stock"], runs["hpsearch"], strict=True)]
        document = {"ratio": statistics.median(ratios), "ratios": ratios, "agreement": None}
        if plan["pretrained"] and len(ratios) > 1:
            agreement = judge({name: [run["f1"] for run in repeats] for name, repeats in runs.items()})
            document["agreement"] = {**asdict(agreement), "agrees": agreement.agrees}
        document["judgement"] = judgement(agreement if document["agreement"] else None, pretrained=plan["pretrained"])
    return {
        **document,
        "plan": {**plan, **{key: Path(plan[key]).name for key in ("model", "train")}},
        "runs": runs,
        "machine": runs["hpsearch"][-1]["machine"],
        "environment": {name: value for name, value in os.environ.items() if name.startswith(ENVIRONMENT)},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "date": date.today().isoformat(),  # noqa: DTZ011  the day where it was run
    }


COLUMNS = {
    "seconds": "seconds", "before first": "seconds_before_first_trial", "peak MiB": "peak_mib",
    "GPU MiB": "device_mib", "written MiB": "written_mib", "kept MiB": "kept_mib",
}  # fmt: skip


def table(document: dict[str, Any]) -> str:
    """Return the figures as text: medians over the repeats, F1 of every trial."""
    lines = [" " * 10 + "".join(f"{title:>14}" for title in ("s/trial", *COLUMNS)) + "\n"]
    for name, runs in document["runs"].items():
        cells = [statistics.median(run.get(key, math.nan) for run in runs) for key in COLUMNS.values()]
        cells.insert(0, cells[0] / len(runs[0]["f1"]))
        lines[0] += f"{name:10}" + "".join("{:>14}".format("-" if x != x else f"{x:,.1f}") for x in cells) + "\n"
        for run in runs:
            values = ["-" if value is None else f"{value:.4f}" for value in run["f1"]]
            marks = ["" if state == "complete" else f" ({state})" for state in run["states"]]
            trials = ", ".join(map("".join, zip(values, marks, strict=True)))
            lines.append(f"F1 of the trials, {name}, seed {run['seed']}: {trials}")
    if ratios := document.get("ratios"):
        spread = f"median of {len(ratios)}, {min(ratios):.2f} to {max(ratios):.2f}"
        lines += [document["judgement"], f"ratio {document['ratio']:.2f} ({spread})"]
    return "\n".join([*lines, f"{document['machine']}; {document['date']}"])


# --- The command ------------------------------------------------------------------------------------------------------


def compare(
    plan: Plan, repeats: int, say: Callable[[str], None], run_one: Callable[[str, Plan], Run] = run_apart
) -> dict[str, list[Run]]:
    """Run the programs in turn, each repeat with its own seed and in the other order."""
    names = ["hpsearch"] if plan["search"] else ["stock", "hpsearch"]
    runs: dict[str, list[Run]] = {name: [] for name in names}
    for repeat in range(repeats):
        for name in names if repeat % 2 == 0 else reversed(names):
            run = run_one(name, {**plan, "seed": plan["seed"] + repeat})
            runs[name].append(run)
            say(f"repeat {repeat + 1}: {name} {run['seconds']:.1f} s")
            _check(plan, [*chain(*runs.values())])  # after each: a later run shall not find out that all were in vain
    return runs


def _check(plan: Plan, runs: list[Run]) -> None:
    if len({run["rows"] for run in runs}) != 1:
        raise click.ClickException("expected both programs to read the same rows, got others")
    if not plan["search"] and any(state != "complete" for run in runs for state in run["states"]):
        raise click.ClickException(f"expected every trial to be complete, got {', '.join(runs[-1]['states'])}")


@click.command()
@click.option("--model", default=str(SHARED / "models" / "reviews-mini"), help="Folder of the encoder.")
@click.option("--pretrained/--random-weights", default=True, help="Whether the folder's weights are used.")
@click.option("--train", default=str(SHARED / "data" / "nsmc" / "ratings_train.txt"), help="The tutorial's file.")
@click.option("--rows", default=2000, show_default=True)
@click.option("--validation-rows", default=2000, show_default=True)
@click.option("--trials", "n_trials", type=click.IntRange(1), help="[default: 4, with --search 20]")
@click.option("--epochs", type=click.IntRange(1), default=2, show_default=True)
@click.option("--repeats", type=click.IntRange(1), help="Runs of each program.  [default: 3, with --search 1]")
@click.option("--search", is_flag=True, help="Time hpsearch alone, with the shipped space, epochs and pruner.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write one JSON document there.")
@click.option("--program", type=click.Choice(list(PROGRAMS)), hidden=True)
@click.option("--folder", type=click.Path(path_type=Path), hidden=True)
@click.option("--plan", "child_plan", hidden=True)
def main(
    *, n_trials: int | None, epochs: int, repeats: int | None, json_path: Path | None, program: str | None,
    folder: Path, child_plan: str, **plan: Any,
) -> None:  # fmt: skip
    """Compare hpsearch with the stock search on the same trials."""
    if program:
        figures = PROGRAMS[program](json.loads(child_plan), folder)
        (folder / f"{program}.json").write_text(json.dumps(figures), encoding="utf-8")
        return
    n_trials = n_trials or (20 if plan["search"] else 4)
    plan |= {"n_trials": n_trials, "trials": [] if plan["search"] else trials_of(n_trials, epochs), "seed": SEED}
    runs = compare(plan, repeats or (1 if plan["search"] else 3), lambda text: click.echo(text, err=True))
    document = document_of(plan, runs)
    click.echo(table(document))
    if json_path:
        json_path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
