"""Time one training with each part of the fast path left out in turn, and print what each part is worth.

Every run is a process of its own: it trains the tutorial's settings twice, and the second training counts, so that
what is compiled or read once is not in it. Runs of the variants take turns, so that a drift of the machine meets all of
them. The fast path with nothing left out is the first row; a part's factor is the median over the repeats of
(seconds without the part) / (seconds with all parts).

    python benchmarks/parts.py --json benchmarks/parts.json
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
from machine import machine

SHARED = Path(__file__).parents[2] / "shared"


def _without_packing() -> None:
    from hpsearch import trainer

    trainer.can_pack = lambda _: False


def _without_filling() -> None:
    from hpsearch import packing

    packing.MULTIPLE = 1


def _without_cheap_dropout() -> None:
    import torch

    from hpsearch import packing, trainer

    trainer.use_cheap_dropout = lambda _: None
    packing.dropout = lambda x, p: torch.nn.functional.dropout(x, p)


def _without_trimming() -> None:
    from hpsearch.vocabulary import Vocabulary

    Vocabulary.of = classmethod(lambda cls, model, _: cls.whole(model))  # type: ignore[method-assign, assignment]


def _without_screening() -> None:
    from hpsearch.trainer import SearchTrainer

    SearchTrainer._screened_logits = SearchTrainer._logits  # type: ignore[method-assign]


def _without_kept_weights() -> None:
    from hpsearch.model import FreshModels

    make = FreshModels.make

    def make_from_disk(self: FreshModels, *args: Any, **kwargs: Any) -> Any:
        self._seed = None  # type: ignore[assignment]
        return make(self, *args, **kwargs)

    FreshModels.make = make_from_disk  # type: ignore[method-assign]


def _without_kept_memory() -> None:
    from hpsearch import cli

    cli._keep_freed_memory = lambda: None


PARTS: dict[str, Callable[[], None]] = {
    "nothing": lambda: None,
    "packing, and the first token only in the last layer": _without_packing,
    "filling packed batches to a multiple of 64 tokens": _without_filling,
    "cheap dropout masks": _without_cheap_dropout,
    "bfloat16 products": lambda: None,
    "screening evaluations in bfloat16": _without_screening,
    "trimming the vocabulary": _without_trimming,
    "initial weights kept in memory": _without_kept_weights,
    "freed memory kept by the process": _without_kept_memory,
}


def measure(part: str, options: dict[str, Any]) -> dict[str, Any]:
    """Train twice without one part and return what the second training took."""
    from hpsearch import cli

    PARTS[part]()
    cli._prepare_process()
    from hpsearch.config import load_config
    from hpsearch.observer import Observer
    from hpsearch.precision import fastest_products
    from hpsearch.search import prepare
    from hpsearch.trainer import SearchTrainer

    settings = {
        "model.name": options["model"],
        "model.pretrained": str(options["pretrained"]).lower(),
        "data.train": options["train"],
        "data.test": options["train"],
        "data.train_rows": options["rows"],
        "data.validation_rows": options["rows"],
        "defaults.num_train_epochs": options["epochs"],
        "space": "{learning_rate: {type: float, low: 1e-5, high: 2e-4, log: true}}",
        "search.evaluations": options["epochs"],
    }
    task = prepare(load_config("nsmc-mbert", [f"{key}={value}" for key, value in settings.items()]))
    products = "float32" if part == "bfloat16 products" else fastest_products(task.model.hidden_size)
    evaluate = SearchTrainer.evaluate
    evaluating: list[float] = []

    def timed(self: SearchTrainer, *_: Any, **__: Any) -> dict[str, Any]:
        started = time.perf_counter()
        metrics = evaluate(self)
        evaluating.append(time.perf_counter() - started)
        return metrics

    SearchTrainer.evaluate = timed  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        trainer = SearchTrainer(task, folder=Path(folder), observer=Observer(), products=products)
        for _ in range(2):
            evaluating.clear()
            started = time.perf_counter()
            outcome = trainer.fit(task.config.defaults, seed=task.config.search.seed)
            seconds = time.perf_counter() - started
            trainer.release()
    return {
        "seconds": seconds,
        "evaluating": sum(evaluating),
        "f1": outcome.value,
        "products": products,
        "peak_mib": outcome.peak_memory_mib,
    }


@click.command()
@click.option("--model", default=str(SHARED / "models" / "reviews-mini"), help="Folder of the encoder.")
@click.option(
    "--train", default=str(SHARED / "data" / "nsmc" / "ratings_train.txt"), help="Columns document and label."
)
@click.option("--rows", default=1000, show_default=True, help="Training rows, and as many validation rows.")
@click.option("--epochs", default=2, show_default=True, help="Of the training; it is evaluated after each.")
@click.option("--repeats", default=3, show_default=True)
@click.option("--pretrained/--random-weights", default=True, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write one JSON document there.")
@click.option("--part", hidden=True)
def main(part: str | None, json_path: Path | None, repeats: int, **options: Any) -> None:
    """Measure what each part of the fast path is worth."""
    if part:
        click.echo(json.dumps(measure(part, options)))
        return
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in PARTS}
    arguments = ["--model", options["model"], "--train", options["train"], "--rows", str(options["rows"])]
    arguments += ["--epochs", str(options["epochs"]), "--pretrained" if options["pretrained"] else "--random-weights"]
    for repeat in range(repeats):
        for name, done in runs.items():
            command = [sys.executable, __file__, *arguments, "--part", name]
            result = subprocess.run(
                command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, stdout=subprocess.PIPE, text=True, check=True
            )
            done.append(json.loads(result.stdout.splitlines()[-1]))
            click.echo(f"repeat {repeat + 1}: without {name}: {done[-1]['seconds']:.2f} s", err=True)
    factors = {
        name: [without["seconds"] / full["seconds"] for without, full in zip(done, runs["nothing"], strict=True)]
        for name, done in runs.items()
    }
    document = {
        "runs": runs,
        "factors": {name: statistics.median(values) for name, values in factors.items()},
        **{key: options[key] for key in ("rows", "epochs", "pretrained")},
        "model": Path(options["model"]).name,
        "machine": machine(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers")},
        },
        "date": date.today().isoformat(),  # noqa: DTZ011  the day where it was run
    }
    click.echo(
        "| left out | seconds | of it evaluating | factor | F1 | peak MiB |\n| --- | --- | --- | --- | --- | --- |"
    )
    for name, done in runs.items():
        seconds, evaluating = (statistics.median(run[key] for run in done) for key in ("seconds", "evaluating"))
        low, high = min(factors[name]), max(factors[name])
        factor = f"{document['factors'][name]:.2f} ({low:.2f} to {high:.2f})"
        click.echo(
            f"| {name} | {seconds:.2f} | {evaluating:.2f} | {factor} | {done[0]['f1']:.4f} | {done[0]['peak_mib']:,} |"
        )
    if json_path:
        json_path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
