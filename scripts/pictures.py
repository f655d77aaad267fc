"""Make the README's pictures from a study: the live terminal view, the report and the dashboard.

The study is read, not changed. The terminal view is the search's own, replayed from what is kept of its trials up to
the middle of one of them. The report is made anew; both pages are photographed with Chromium.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from optuna.trial import TrialState
from rich.console import Console
from rich.terminal_theme import MONOKAI

from hpsearch.cli import cli
from hpsearch.dashboard import make_dashboard
from hpsearch.errors import HpsearchError, StudyError, UsageError
from hpsearch.observer import Standing
from hpsearch.progress import LiveView
from hpsearch.study import best_trial, load_study, open_storage, stored_config

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import optuna
    from optuna.trial import FrozenTrial
    from playwright.sync_api import Browser

    from hpsearch.config import Config

_CELLS = 112  # of a terminal's line
_SIZE = {"width": 1280, "height": 800}  # CSS pixels
_STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


@click.command()
@click.option("--studies", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True,
              help="The studies folder, with hpsearch.db.")  # fmt: skip
@click.option("--study", metavar="NAME", required=True, help="The study, with a dozen finished trials or more.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), default=Path("docs/pictures"),
              show_default=True, help="The folder for the pictures; those of the same names are replaced.")  # fmt: skip
def main(studies: Path, study: str, output: Path) -> None:
    """Make the README's pictures from a study.

    \b
    Example:
        python scripts/pictures.py --studies studies --study nsmc-mbert
    """
    url = f"sqlite:///{studies}/hpsearch.db"
    try:
        storage = open_storage(url, create=False)
        loaded = load_study(storage, study)
        output.mkdir(parents=True, exist_ok=True)
        _write(output / "terminal.svg", terminal(loaded).encode())
        with _chromium() as browser:
            _write(output / "report.png", report(browser, url, study))
            page = f"/dashboard/studies/{loaded._study_id}"
            pages = {
                "dashboard-study.png": page,
                "dashboard-trial.png": f"{page}/trials?numbers={best_trial(loaded).number}",
                "dashboard-note.png": f"{page}/note",
            }
            for name, picture in zip(pages, dashboard(browser, storage, url, list(pages.values())), strict=True):
                _write(output / name, picture)
    except HpsearchError as error:
        raise click.ClickException(str(error)) from error


def terminal(study: optuna.Study) -> str:
    """Return the live view of a study, in the middle of its last but two finished trial, as SVG.

    Raises:
        StudyError: If it has no three finished trials with evaluations.
    """
    config = stored_config(study)
    trials = [
        trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished() and trial.intermediate_values
    ]
    if len(trials) < 3:
        raise StudyError(f"study {study.study_name!r}: expected three finished trials or more, got {len(trials)}")
    running = max((trial for trial in trials[-3:]), key=lambda trial: len(trial.intermediate_values))
    done = trials[: trials.index(running)]
    console = Console(file=io.StringIO(), record=True, width=_CELLS, force_terminal=True, color_system="truecolor")
    now = 0.0
    view = LiveView(console, study=study.study_name, metric=config.metric, tuned=list(config.space), clock=lambda: now)
    view.study_changed(_standing([], config))
    for i, trial in enumerate(done):
        view.trial_started(f"trial {trial.number}", config.defaults.replace(trial.params))
        now += _seconds(trial)
        values = list(trial.intermediate_values.values())
        value = trial.value if trial.state == TrialState.COMPLETE else max(values)
        reason = str(trial.user_attrs.get("failure", ""))
        view.trial_ended(f"trial {trial.number}", _STATES[trial.state], value, _seconds(trial), reason)
        view.study_changed(_standing(done[: i + 1], config))
    steps = sorted(running.intermediate_values)
    shown = steps[: -(-len(steps) * 2 // 3)]
    fraction = shown[-1] / config.search.evaluations
    hyperparameters = config.defaults.replace(running.params)
    view.trial_started(f"trial {running.number}", hyperparameters)
    for step in shown:
        view.evaluated(step, config.search.evaluations, running.intermediate_values[step])
    losses = running.user_attrs.get("train_losses", [])
    loss = losses[len(shown) - 1] if len(losses) >= len(shown) else None
    view.progressed(hyperparameters.num_train_epochs * fraction, fraction, loss)
    now += _seconds(running) * len(shown) / len(steps)
    console.print(view)
    drawing = console.export_svg(title=f"hpsearch run --study {study.study_name}", theme=MONOKAI, unique_id="terminal")
    return re.sub(r"@font-face\s*{.*?}", "", drawing, flags=re.DOTALL)  # rich's come from another server


def report(browser: Browser, url: str, study: str) -> bytes | None:
    """Return a picture of the top of a study's report, or None where there is no such command."""
    if "report" not in cli.commands:
        click.echo("no picture of the report: this version has no `hpsearch report`", err=True)
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.html"
        command = ["report", "--storage", url, "--study", study, "--output", str(path)]
        made = subprocess.run([sys.executable, "-m", "hpsearch", *command], capture_output=True, text=True, check=False)
        if made.returncode:
            raise StudyError(
                f"hpsearch report: expected a report, got exit status {made.returncode}: {made.stderr.strip()}"
            )
        with closing(browser.new_page(viewport=_SIZE, device_scale_factor=2)) as page:
            page.goto(path.as_uri())
            return page.screenshot()


def dashboard(
    browser: Browser, storage: optuna.storages.BaseStorage, url: str, paths: Sequence[str]
) -> Iterator[bytes]:
    """Return pictures of pages of the dashboard."""
    server = make_dashboard(storage, url, host="127.0.0.1", port=0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    page = browser.new_page(viewport=_SIZE)
    try:
        page.goto(server.url)
        for path in paths:
            page.goto(server.url.partition("/?")[0] + path)
            page.wait_for_load_state("networkidle")
            page.wait_for_timeout(2_000)  # plots are drawn, and moved into place
            yield page.screenshot()
    finally:
        page.close()
        server.shutdown()
        thread.join()
        server.server_close()


def _standing(trials: Sequence[FrozenTrial], config: Config) -> Standing:
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    best = max(complete, key=lambda trial: (trial.value or 0.0, -trial.number), default=None)
    n_failed = sum(trial.state == TrialState.FAIL for trial in trials)
    return Standing(
        n_finished=len(trials) - n_failed,
        n_pruned=sum(trial.state == TrialState.PRUNED for trial in trials),
        n_failed=n_failed,
        n_trials=config.search.trials,
        best_number=best.number if best else None,
        best_value=best.value if best else None,
    )


def _seconds(trial: FrozenTrial) -> float:
    return trial.duration.total_seconds() if trial.duration else 0.0


@contextmanager
def _chromium() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium")
    if path is None:
        raise UsageError("expected chromium for the pictures of pages, got none (apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def _write(path: Path, picture: bytes | None) -> None:
    if picture is not None:
        path.write_bytes(picture)
        click.echo(path)


if __name__ == "__main__":
    main()
