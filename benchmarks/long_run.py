"""Run hundreds of very short trials in one process, and see whether memory, open files and seconds per trial stay flat.

    python benchmarks/long_run.py --trials 300 --json benchmarks/long_run.json

Real trials of the real command's search, of a model of next to no size, in SQLite; nothing is pruned, so that each is
complete and a candidate for a checkpoint.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
import warnings
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import faults
import optuna
from machine import machine


@click.command(help=__doc__)
@click.option("--trials", "n_trials", default=300, show_default=True)
@click.option("--json", "output", type=click.Path(path_type=Path, dir_okay=False), help="Write a document there.")
def main(n_trials: int, output: Path | None) -> None:
    faults.load_libraries()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    from hpsearch.config import load_config
    from hpsearch.observer import Observer
    from hpsearch.search import prepare, run_search
    from hpsearch.study import StudyPaths, open_storage

    rows: list[dict[str, Any]] = []

    class Sampling(Observer):
        def trial_ended(self, *_: Any, **__: Any) -> None:
            resident = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
            files = len(list(Path("/proc/self/fd").iterdir()))
            rows.append({"time": time.monotonic(), "resident_mib": resident / 2**20, "open_files": files})

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        config = load_config(str(faults.write_config(folder)), [f"search.trials={n_trials}"])
        url = f"sqlite:///{folder}/studies/hpsearch.db"
        run_search(
            prepare(config), open_storage(url, create=True), StudyPaths.of(url, faults.STUDY), observer=Sampling()
        )
        database = (folder / "studies" / "hpsearch.db").stat().st_size / 2**20
    block = max(2, n_trials // 6)
    click.echo("| trials | seconds a trial (median) | resident MiB | open files |\n| --- | --- | --- | --- |")
    table = []
    for first in range(0, n_trials - block + 1, block):
        some = rows[first : first + block]
        median = statistics.median(later["time"] - earlier["time"] for earlier, later in pairwise(some))
        last, resident, files = first + block, some[-1]["resident_mib"], some[-1]["open_files"]
        table.append([first + 1, last, median, resident, files])
        click.echo(f"| {first + 1} to {last} | {median:.3f} | {resident:.0f} | {files} |")
    click.echo(f"the database has {database:.1f} MiB in the end")
    if output is not None:
        versions = {name: version(name) for name in ("hpsearch", "optuna", "sqlalchemy", "torch", "transformers")}
        document = {
            "date": datetime.now(UTC).date().isoformat(), "machine": machine(), "versions": versions,
            "columns": ["first", "last", "seconds_median", "resident_mib", "open_files"], "blocks": table,
            "database_mib": database,
        }  # fmt: skip
        output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
