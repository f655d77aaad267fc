"""Time the same list of trials with hpsearch and with the Trainer's stock search, in turn, and print one table.

Both programs train the same trials (enqueued, the first is the defaults), epochs, seed and rows, evaluate once an
epoch and prune nothing. Each repeat runs in a process of its own; a program's time is that of its search without
imports.

- stock: the tutorial's preprocessing (each split in one call, padded to its longest text) with
  `Trainer.hyperparameter_search` as its documentation shows it: float32, `from_pretrained` in `model_init`,
  evaluation and checkpoint each epoch, evaluation batch 32, at most two checkpoints a trial.
- hpsearch: what `hpsearch run` runs.

    python benchmarks/search_vs_stock.py --model FOLDER --train FILE --test FILE --json result.json
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

SEED = 42
STUDY = "benchmark"


def trials(n_trials: int, epochs: int) -> list[dict[str, Any]]:
    """Return the fixed list: the tutorial's settings first, then others within the usual ranges."""
    rates = [5e-5, 1e-4, 3e-5, 2e-4, 8e-5, 1.5e-4, 4e-5, 6e-5]
    batches = [32, 16, 32, 64, 16, 32, 64, 16]
    return [
        {"learning_rate": rates[i % 8], "per_device_train_batch_size": batches[i % 8], "num_train_epochs": epochs}
        for i in range(n_trials)
    ]


def config_of(options: dict[str, Any]) -> Any:
    """Return the configuration of both programs."""
    from hpsearch.config import load_config

    overrides = {
        "model.name": options["model"],
        "model.pretrained": str(options["pretrained"]).lower(),
        "data.train": options["train"],
        "data.test": options["test"],
        "data.train_rows": options["rows"],
        "data.validation_rows": options["validation_rows"],
        "defaults.num_train_epochs": options["epochs"],
        "space": "{learning_rate: {type: float, low: 1e-5, high: 2e-4, log: true},"
        " per_device_train_batch_size: {type: categorical, choices: [16, 32, 64]},"
        f" num_train_epochs: {{type: int, low: 1, high: {max(2, options['epochs'])}}}}}",
        "search.trials": options["trials"],
        "search.evaluations": options["epochs"],
        "search.pruner": "none",
    }
    return load_config("nsmc-mbert", [f"{key}={value}" for key, value in overrides.items()])


def run_hpsearch(options: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Search as `hpsearch run` does."""
    from hpsearch.observer import Observer
    from hpsearch.search import prepare, run_search
    from hpsearch.study import StudyPaths, create_or_resume, open_storage, study_lock

    started = time.perf_counter()
    task = prepare(config_of(options))
    url = f"sqlite:///{folder}/hpsearch.db"
    storage = open_storage(url, create=True)
    lock = study_lock(task.config, data=task.data.fingerprint(), model=task.model.fingerprint)
    study = create_or_resume(storage, STUDY, task.config, lock)
    for values in trials(options["trials"], options["epochs"])[1:]:
        study.enqueue_trial(values)
    study = run_search(task, storage, StudyPaths.of(url, STUDY), observer=Observer())
    seconds = time.perf_counter() - started
    ordered = sorted(study.get_trials(deepcopy=False), key=lambda trial: trial.number)
    return {"seconds": seconds, "f1": [trial.value for trial in ordered]}


def run_stock(options: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Search as the Trainer's documentation shows it."""
    import optuna
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

    from hpsearch.data import load_search_data
    from hpsearch.metrics import accuracy, confusion_matrix, f1

    class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
        def __init__(self, encodings: Any, labels: Any) -> None:
            self.encodings, self.labels = encodings, torch.as_tensor(labels)

        def __len__(self) -> int:
            return len(self.labels)

        def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
            return {**{name: values[i] for name, values in self.encodings.items()}, "labels": self.labels[i]}

    def model_init() -> Any:
        if not options["pretrained"]:
            return AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(options["model"]))
        return AutoModelForSequenceClassification.from_pretrained(options["model"], num_labels=2, dtype=torch.float32)

    def compute_metrics(prediction: Any) -> dict[str, float]:
        confusion = confusion_matrix(prediction.label_ids, prediction.predictions.argmax(-1), 2)
        return {"f1": float(f1(confusion)), "accuracy": float(accuracy(confusion))}

    started = time.perf_counter()
    data = load_search_data(config_of(options).data)
    tokenizer = AutoTokenizer.from_pretrained(options["model"])
    train, validation = (
        Rows(tokenizer(list(split.texts), padding=True, truncation=True, return_tensors="pt"), split.labels)
        for split in (data.train, data.validation)
    )
    arguments = TrainingArguments(
        output_dir=str(folder / "stock"), seed=SEED, per_device_eval_batch_size=32, eval_strategy="epoch",
        save_strategy="epoch", save_total_limit=2, logging_steps=50, report_to="none", disable_tqdm=True,
    )  # fmt: skip
    storage = f"sqlite:///{folder}/stock.db"
    study = optuna.create_study(storage=storage, study_name=STUDY, direction="maximize")
    for values in trials(options["trials"], options["epochs"]):
        study.enqueue_trial(values)
    trainer = Trainer(
        model_init=model_init, args=arguments, train_dataset=train, eval_dataset=validation,
        compute_metrics=compute_metrics,
    )  # fmt: skip
    trainer.hyperparameter_search(
        hp_space=lambda trial: {
            "learning_rate": trial.suggest_float("learning_rate", 1e-5, 2e-4, log=True),
            "per_device_train_batch_size": trial.suggest_categorical("per_device_train_batch_size", [16, 32, 64]),
            "num_train_epochs": trial.suggest_int("num_train_epochs", 1, max(2, options["epochs"])),
        },
        compute_objective=lambda metrics: metrics["eval_f1"], n_trials=options["trials"], direction="maximize",
        backend="optuna", storage=storage, study_name=STUDY, load_if_exists=True, pruner=optuna.pruners.NopPruner(),
    )  # fmt: skip
    seconds = time.perf_counter() - started
    # The best evaluation of each trial, which is what hpsearch takes as its value.
    return {"seconds": seconds, "f1": [max(trial.intermediate_values.values()) for trial in study.trials]}


def run_apart(program: str, options: dict[str, Any]) -> dict[str, Any]:
    """Run one program in a process of its own, in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "GOMP_SPINCOUNT": "3000"}
        command = [sys.executable, __file__, "--program", program, "--folder", folder, "--options", json.dumps(options)]
        result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    measured: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return measured


def measure(program: str, options: dict[str, Any], folder: Path) -> None:
    """Run a program here and print what was measured as one JSON line."""
    import optuna
    from transformers.utils import logging

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    before = written_bytes()
    figures = (run_hpsearch if program == "hpsearch" else run_stock)(options, folder)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    click.echo(json.dumps({**figures, "peak_mib": peak_mib, "written_mib": (written_bytes() - before) // 2**20}))


def written_bytes() -> int:
    """Return what this process has passed to write calls so far (Linux), else 0."""
    counters = Path("/proc/self/io")
    if not counters.exists():
        return 0
    return int(dict(line.split(": ") for line in counters.read_text().splitlines())["wchar"])


def machine() -> str:
    """Return the machine, in words."""
    cpus = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    name = next(
        (line.split(": ")[1] for line in cpus.splitlines() if line.startswith("model name")), platform.machine()
    )
    import torch

    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    return f"{os.cpu_count()} cores of {name}{gpu}"


@click.command()
@click.option("--model", required=False, help="Folder of the encoder.")
@click.option("--train", required=False, help="Training file, columns document and label.")
@click.option("--test", required=False, help="Test file; not read.")
@click.option("--rows", default=2000, show_default=True)
@click.option("--validation-rows", default=2000, show_default=True)
@click.option("--trials", "n_trials", default=4, show_default=True)
@click.option("--epochs", default=2, show_default=True)
@click.option("--repeats", default=3, show_default=True, help="Alternating runs of each program.")
@click.option("--pretrained/--random-weights", default=True, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write one JSON document there.")
@click.option("--program", hidden=True)
@click.option("--folder", hidden=True, type=click.Path(path_type=Path))
@click.option("--options", "child_options", hidden=True)
def main(program: str | None, folder: Path, child_options: str, json_path: Path | None, **given: Any) -> None:
    """Compare hpsearch with the stock search on the same trials."""
    if program:
        measure(program, json.loads(child_options), folder)
        return
    shared = Path(__file__).parents[2] / "shared"
    options = {
        "model": given["model"] or str(shared / "models" / "reviews-mini"),
        "train": given["train"] or str(shared / "data" / "nsmc" / "ratings_train.txt"),
        "test": given["test"] or str(shared / "data" / "nsmc" / "ratings_test.txt"),
        "rows": given["rows"],
        "validation_rows": given["validation_rows"],
        "trials": given["n_trials"],
        "epochs": given["epochs"],
        "pretrained": given["pretrained"],
    }
    runs: dict[str, list[dict[str, Any]]] = {"stock": [], "hpsearch": []}
    for repeat in range(given["repeats"]):
        for name, done in runs.items():
            done.append(run_apart(name, options))
            click.echo(f"repeat {repeat + 1}: {name} {done[-1]['seconds']:.1f} s", err=True)
    pairs = zip(runs["stock"], runs["hpsearch"], strict=True)
    ratios = [stock["seconds"] / ours["seconds"] for stock, ours in pairs]
    document = {
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "rows": options["rows"],
        "validation_rows": options["validation_rows"],
        "trials": trials(options["trials"], options["epochs"]),
        "model": Path(options["model"]).name,
        "pretrained": options["pretrained"],
        "runs": runs,
        "machine": machine(),
        "versions": {name: version(name) for name in ("hpsearch", "torch", "transformers", "optuna")},
        "date": date.today().isoformat(),  # noqa: DTZ011  the day where it was run
    }
    click.echo(table(document))
    if json_path:
        json_path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def table(document: dict[str, Any]) -> str:
    """Return the figures as text."""
    n_trials = len(document["trials"])
    lines = [f"{'':10}{'s/trial':>10}{'peak MiB':>10}{'written MiB':>13}   F1 of each trial"]
    for name, runs in document["runs"].items():
        seconds = statistics.median(run["seconds"] for run in runs) / n_trials
        peak, written = (max(run[key] for run in runs) for key in ("peak_mib", "written_mib"))
        scores = " ".join(f"{value:.4f}" for value in runs[0]["f1"])
        lines.append(f"{name:10}{seconds:10.2f}{peak:10,}{written:13,}   {scores}")
    low, high = min(document["ratios"]), max(document["ratios"])
    lines.append(f"ratio {document['ratio']:.2f} (median of {len(document['ratios'])}, {low:.2f} to {high:.2f})")
    lines.append(f"{document['machine']}; {document['date']}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
