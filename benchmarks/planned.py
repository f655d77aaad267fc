"""Compare what `hpsearch plan` says with what the same search then takes.

    python benchmarks/planned.py --config quickstart
    python benchmarks/planned.py --config nsmc-mbert --set model.name=FOLDER --set data.train=FILE --set data.test=FILE

Both are timed in CPU seconds of one thread, which other programs on the machine hardly change; `--wall` takes the clock
on the wall, for a machine that is idle. The plan and the search run in one process, and nothing is kept.
"""

from __future__ import annotations

import os

os.environ.update({"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"})  # before torch is imported

import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from hpsearch.config import Config


def clocked(*, wall: bool) -> Any:
    """Return the clock, in place of `time` in all that measures."""
    from hpsearch import plan, probe, trainer

    clock = time.perf_counter if wall else time.process_time
    for module in (plan, probe, trainer):
        module.time = SimpleNamespace(perf_counter=clock, monotonic=clock)  # type: ignore[assignment]
    return clock


def compare(config: Config, *, wall: bool) -> list[str]:
    """Plan a search, run it, and return both as lines."""
    from hpsearch.observer import Observer
    from hpsearch.plan import make_plan
    from hpsearch.search import prepare, run_search
    from hpsearch.study import StudyPaths, open_storage, reached

    clock = clocked(wall=wall)
    started = clock()
    estimate = make_plan(config, Path(tempfile.gettempdir())).estimate
    planning = clock() - started
    if estimate is None:
        raise click.ClickException("the plan fails; see `hpsearch plan`")
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/studies.db"
        started = clock()
        study = run_search(
            prepare(config), open_storage(url, create=True), StudyPaths.of(url, config.study), observer=Observer()
        )
        took = clock() - started
        known = estimate.start_s
        for trial in study.trials:
            if reached(trial) is not None:
                share = max(trial.intermediate_values) / config.search.evaluations
                known += share * estimate.probe.seconds(
                    config.defaults.replace(trial.params), config.search.evaluations
                )
    planned = estimate.with_pruning_s
    return [
        f"the search took {took:.1f} s; the plan, which took {planning:.1f} s, said {planned.mean:.1f} s "
        f"({planned.low:.1f} to {planned.high:.1f}): {planned.mean / took:.2f} times as much",
        f"from the trials that were drawn and how far they went it would have said {known:.1f} s: {known / took:.2f}",
    ]


@click.command()
@click.option("--config", "name", default="quickstart", show_default=True, help="A configuration or a YAML file.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="As for `hpsearch run`.")
@click.option("--wall", is_flag=True, help="Time by the clock on the wall.")
def main(name: str, overrides: tuple[str, ...], wall: bool) -> None:  # noqa: FBT001
    """Compare a plan with its search."""
    import optuna

    from hpsearch.config import load_config

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for line in compare(load_config(name, overrides), wall=wall):
        click.echo(line)


if __name__ == "__main__":
    main()
