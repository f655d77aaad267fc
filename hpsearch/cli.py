"""The command line: each command parses, calls one function of the library and prints what it returns.

Results go to stdout, progress and messages to stderr. Heavy libraries are imported inside the command that needs
them, so that `--help` and the reading commands start at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import logging
import os
import re
import shlex
import shutil
import signal
import sys
import time
import traceback
from multiprocessing import forkserver
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from hpsearch import streams
from hpsearch.errors import HpsearchError, StudyError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import optuna

    from hpsearch.config import Config
    from hpsearch.observer import Observer
    from hpsearch.study import StudyPaths

DEFAULT_CONFIG = "nsmc-mbert"
_STORAGE = "sqlite:///studies/hpsearch.db"
_INTERRUPTED = 130  # as shells report a process ended by SIGINT
_PIPE_CLOSED = 141  # and by SIGPIPE
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_MOST_WORKERS = 256
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


T = TypeVar("T")


class _Failure(click.ClickException):
    """An error of the library, as Click shows it."""

    def __init__(self, error: HpsearchError) -> None:
        super().__init__(str(error))
        self.exit_code = error.exit_code  # type: ignore[misc]  # Click sets it on instances itself

    def show(self, file: Any = None) -> None:  # noqa: ARG002  Click's signature
        # Names and values from files stand in it, and none of them may control a terminal.
        shown = "".join(c if c.isprintable() or c in " \n" else ascii(c)[1:-1] for c in self.message)
        _say(f"error: {shown}")


class _ErrorBoundary(click.Group):
    """The one place where the library's errors, and those of output that goes nowhere, become messages and codes."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        streams.prepare()
        try:
            return super().main(_arguments() if args is None else args, *rest, **extra)
        except OSError as error:  # of Click's own output, such as the help
            sys.exit(_status_without_output(error))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except HpsearchError as error:
            raise _Failure(error) from error
        except UnicodeEncodeError as error:
            if sys.getfilesystemencoding() == "utf-8":
                raise
            raise _Failure(_not_a_file_name(error)) from error
        except BrokenPipeError as error:
            ctx.exit(_status_without_output(error))
        except KeyboardInterrupt:
            _say("stopped")
            ctx.exit(_INTERRUPTED)


class _Duration(click.ParamType[float]):
    """Such as `90m`, `1h30m` or `45s`, in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        parts = re.findall(r"(\d{1,9})([smhd])", value)
        seconds = sum(int(number) * _UNITS_S[unit] for number, unit in parts)
        if not seconds or "".join(number + unit for number, unit in parts) != value:
            self.fail(f"expected a time such as 90m, 1h30m or 45s, got {value!r}", param, ctx)
        return float(seconds)


class _Workers(click.ParamType[int | None]):
    """A number of processes, or `auto`, which is None."""

    name = "workers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if value == "auto" or value is None:
            return None
        if not str(value).isdecimal() or not 1 <= int(value) <= _MOST_WORKERS:
            self.fail(f"expected auto or a number from 1 to {_MOST_WORKERS}, got {value!r}", param, ctx)
        return int(value)


# --- Options that several commands share
# --------------------------------------------------------------------------------

_storage_option = click.option(
    "--storage", "storage_url", default=_STORAGE, envvar="HPSEARCH_STORAGE", show_default=True, metavar="URL",
    help="Where studies are kept: a database URL of SQLAlchemy. Put one with a password into the variable, because "
    "command lines can be seen by others.",
)  # fmt: skip
_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
_study_option = click.option(
    "--study", metavar="NAME", help="The study; by default the one in which a trial started last."
)


def _config_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option(
            "--set", "overrides", multiple=True, metavar="KEY=VALUE",
            help="Override a key of the configuration, such as search.seed=7. Repeatable.",
        ),
        click.option(
            "--config", "config_name", default=None, metavar="NAME_OR_PATH",
            help=f"A shipped configuration or a YAML file.  [default: {DEFAULT_CONFIG}]",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def _worker_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option(
            "--workers-per-gpu", type=click.IntRange(1, 32), default=1, show_default=True, help="That share a GPU."
        ),
        click.option(
            "--workers", "n_workers", type=_Workers(), default="auto", show_default=True, envvar="HPSEARCH_WORKERS",
            metavar="N|auto",
            help="Processes that run trials side by side; auto: one per GPU, else by cores and memory, up to 4.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


@click.group(cls=_ErrorBoundary, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="hpsearch")
def cli() -> None:
    """Tune the fine-tuning of a text classifier, and learn whether it helped.

    \b
    Example:
        hpsearch run --config quickstart
        hpsearch confirm
        hpsearch export-best
        hpsearch compare
    """


@cli.command()
@_config_options
@click.option("--trials", type=click.IntRange(min=1), help="Finished trials the study shall come to, over restarts.")
@click.option("--timeout", "timeout_s", type=_Duration(), help="Start no trial after this time, such as 90m.")
@click.option("--study", metavar="NAME", help="The study's name.  [default: the configuration's]")
@_worker_options
@click.option(
    "--ray", "ray_address", metavar="ADDRESS",
    help="Place the workers on a Ray cluster: HOST:PORT, auto for this machine's, local to start one here.",
)  # fmt: skip
@click.option(
    "--artifacts",
    metavar="DIR_OR_URL",
    help="Where the best checkpoints are put for other machines too: a shared folder, or an object store of fsspec.",
)
@_storage_option
def run(
    config_name: str | None,
    overrides: tuple[str, ...],
    trials: int | None,
    timeout_s: float | None,
    study: str | None,
    n_workers: int | None,
    workers_per_gpu: int,
    ray_address: str | None,
    artifacts: str | None,
    storage_url: str,
) -> None:
    """Search: train trials until the study has enough finished ones.

    Running it again goes on with the same study, and running it elsewhere at the same time helps. A study that was
    started with other data, another model or another space is refused.

    \b
    Example:
        hpsearch run --config quickstart --trials 20
        hpsearch run --trials 40 --timeout 90m --study long --set search.seed=7
        hpsearch run --workers 4 --storage postgresql://host/db --artifacts /shared/checkpoints
        hpsearch run --ray auto --workers 16 --storage postgresql://host/db
    """  # fmt: skip
    from hpsearch.study import StudyPaths, opened

    config = _config_of_run(config_name, overrides, trials, study, storage_url)
    name = config.study if study is None else study
    paths = StudyPaths.of(storage_url, name)

    _prepare_process()
    if n_workers != 1 and not ray_address:
        _prepare_workers()
    from hpsearch import disk, findings, report
    from hpsearch.artifacts import check_place
    from hpsearch.progress import observer_for
    from hpsearch.search import check, prepare, run_search
    from hpsearch.study import load_study
    from hpsearch.workers import place, resources, run_workers

    with _shown_wait("reading the data and loading the model"):
        task = prepare(config)
    storage = _with(opened(storage_url, create=True))
    check(task, storage, paths)
    artifacts = check_place(artifacts) if artifacts else None
    _log_to(paths.log)
    set_up = functools.partial(_set_up_worker, paths.log.absolute())
    cluster: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if ray_address:
        from hpsearch.on_ray import run_on_ray

        cluster = _ray_cluster(ray_address, paths.log)
    with (
        cluster,  # before the signals, which Ray takes for itself
        _stop_signals() as stop_requested,
        observer_for(sys.stderr, study=name, metric=config.metric, tuned=list(config.space)) as observer,
    ):
        weights = task.model.weight_bytes(task.data.label_names)
        if warning := disk.shortage(paths, weights=weights, n_kept=config.search.keep_checkpoints):
            observer.note(warning)
        how: dict[str, Any] = {
            "observer": observer, "timeout_s": timeout_s, "stop_requested": stop_requested, "artifacts": artifacts,
        }  # fmt: skip
        try:
            if ray_address:
                run_on_ray(
                    task,
                    storage,
                    storage_url,
                    paths,
                    n_workers=n_workers,
                    per_gpu=workers_per_gpu,
                    set_up=set_up,
                    **how,
                )
            else:
                here = resources(os.environ.get("CUDA_VISIBLE_DEVICES"))
                n_trials = config.search.trials
                placement = place(n_workers, here, per_gpu=workers_per_gpu, n_trials=n_trials, weights=weights)
                if len(placement.devices) == 1:
                    run_search(task, storage, paths, **how)
                else:
                    run_workers(task, storage, storage_url, paths, placement, set_up=set_up, **how)
        except KeyboardInterrupt:
            observer.note("stopped; every finished trial is kept, and the same command goes on")
            sys.exit(_INTERRUPTED)
    result = load_study(storage, name)
    document = {**report.study_document(result), **findings.findings_document(result)}
    click.echo(report.study_text(document, _width()) + findings.findings_text(document, _width()), nl=False)
    _say((report.disk_text(disk.usage(paths)) + report.next_steps(name)).removesuffix("\n"))


@cli.command("list")
@_storage_option
@_json_option
def list_(storage_url: str, as_json: bool) -> None:
    """List the studies.

    \b
    Example:
        hpsearch list --json
    """
    import optuna

    from hpsearch import report
    from hpsearch.study import open_for_reading

    _prepare_process()
    storage = open_for_reading(storage_url)
    names = optuna.study.get_all_study_names(storage)
    studies = report.studies_document(optuna.load_study(study_name=name, storage=storage) for name in names)
    _print(studies if as_json else report.studies_text(studies, _width()))


@cli.command()
@click.argument("study", required=False)
@_storage_option
@_json_option
@click.option("--csv", "as_csv", is_flag=True, help="Print the trials as CSV and nothing else.")
@click.option("--importances", "with_importances", is_flag=True, help="Also what mattered; takes a few seconds.")
def show(study: str | None, storage_url: str, as_json: bool, as_csv: bool, with_importances: bool) -> None:
    """Show a study's trials, what they cost and whether the space is too narrow; by default of the last study.

    \b
    Example:
        hpsearch show nsmc-mbert --csv > trials.csv
    """
    if as_json and as_csv:
        raise UsageError("show: expected one of --json and --csv, got both")
    from hpsearch import findings, report
    from hpsearch.study import load_study, open_for_reading

    _prepare_process()
    loaded = load_study(open_for_reading(storage_url), study)
    document = report.study_document(loaded)
    if as_csv:
        click.echo(report.study_csv(document), nl=False)
        return
    importances = None
    if with_importances:
        from hpsearch.importances import FEWEST_TRIALS, importances_of

        importances = importances_of(loaded)
        if importances is None:
            click.echo(f"importances can be told from {FEWEST_TRIALS} finished trials on", err=True)
    document |= findings.findings_document(loaded, importances)
    if as_json:
        _print(document)
    else:
        _print(report.study_text(document, _width()) + findings.findings_text(document, _width()))


@cli.command("export-best")
@_study_option
@_storage_option
@click.option("--output", type=click.Path(path_type=Path), help="The folder to make.  [default: studies/STUDY/best]")
@click.option("--overwrite", is_flag=True, help="Replace a model folder that hpsearch wrote there before.")
@_json_option
def export_best(study: str | None, storage_url: str, output: Path | None, overwrite: bool, as_json: bool) -> None:
    """Write the best trial's model as a Hugging Face folder, checked by loading it in a fresh process.

    The best trial is the winner of `confirm`, or else the best of the search.

    \b
    Example:
        hpsearch export-best --study nsmc-mbert --output model
    """
    from hpsearch.study import StudyPaths, load_study, opened

    _prepare_process()
    loaded = load_study(_with(opened(storage_url)), study)
    paths = StudyPaths.of(storage_url, loaded.study_name)
    from hpsearch import export, report

    with _shown_wait("reloading the model in a fresh process"):
        result = export.export_best(loaded, paths, output or paths.best, overwrite=overwrite)
    _print(report.export_document(result) if as_json else report.export_text(result))


@cli.command()
@_study_option
@_storage_option
@click.option(
    "--top",
    "n_best",
    type=click.IntRange(1, 100),
    default=3,
    show_default=True,
    metavar="N",
    help="How many of the best trials to confirm, besides the defaults.",
)
@click.option(
    "--seeds",
    "n_seeds",
    type=click.IntRange(1, 100),
    default=5,
    show_default=True,
    metavar="N",
    help="Trainings of each.",
)
@_json_option
def confirm(study: str | None, storage_url: str, n_best: int, n_seeds: int, as_json: bool) -> None:
    """Train the best trials and the defaults again on fresh seeds, and choose the one with the best mean.

    On training and validation rows only. `export-best` and `compare` take the winner from then on. Stop it at any
    moment: the same command goes on, and started twice, both processes share the work.

    \b
    Example:
        hpsearch confirm --study nsmc-mbert --top 3 --seeds 5
    """
    from hpsearch.study import StudyPaths, load_study, opened

    _prepare_process()
    loaded = load_study(_with(opened(storage_url)), study)
    paths = StudyPaths.of(storage_url, loaded.study_name)
    from hpsearch import confirm as confirming
    from hpsearch import report

    with _watched(loaded, paths) as (observer, stop_requested):
        result = confirming.confirm(
            loaded, paths, n_best=n_best, n_seeds=n_seeds, observer=observer, stop_requested=stop_requested
        )
    document = report.confirmation_document(result, loaded.study_name)
    _print(document if as_json else report.confirmation_text(result, loaded.study_name, _width()))


@cli.command()
@_study_option
@_storage_option
@click.option("--seeds", "n_seeds", type=click.IntRange(1, 100), default=5, show_default=True, help="Trainings a side.")
@_json_option
def compare(study: str | None, storage_url: str, n_seeds: int, as_json: bool) -> None:
    """Train the defaults and the chosen trial on fresh seeds and compare them on the sealed test rows.

    The chosen trial is the winner of `confirm`, or else the best of the search.

    \b
    Example:
        hpsearch compare --study nsmc-mbert --seeds 5
    """
    from hpsearch.study import StudyPaths, load_study, opened

    _prepare_process()
    loaded = load_study(_with(opened(storage_url)), study)
    paths = StudyPaths.of(storage_url, loaded.study_name)
    from hpsearch import compare as comparing
    from hpsearch import report

    with _watched(loaded, paths) as (observer, stop_requested):
        result = comparing.compare(loaded, paths, n_seeds=n_seeds, observer=observer, stop_requested=stop_requested)
    _print(report.comparison_document(result) if as_json else report.comparison_text(result, paths.flips, _width()))


@cli.command()
@_config_options
@click.option(
    "--loop", type=click.Choice(["trainer", "native"]), default="trainer", show_default=True,
    help="The tutorial's Trainer, or its plain PyTorch loop.",
)  # fmt: skip
@_json_option
def baseline(config_name: str | None, overrides: tuple[str, ...], loop: str, as_json: bool) -> None:
    """Train as the tutorial does, with the configuration's defaults, and score the test rows.

    \b
    Example:
        hpsearch baseline --loop native
    """
    from hpsearch.config import load_config

    config = load_config(config_name or DEFAULT_CONFIG, overrides)
    _prepare_process()
    from hpsearch import report
    from hpsearch.baseline import run_baseline
    from hpsearch.progress import LossLines

    result = run_baseline(config, loop="native" if loop == "native" else "trainer", observer=LossLines(sys.stderr))
    _print(report.baseline_document(result) if as_json else report.baseline_text(result, _width()))


@cli.command()
@click.argument("file")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default="my-search.yaml",
    show_default=True,
    help="The configuration to write; its name becomes the study's. No file is replaced.",
)
@click.option("--model", metavar="NAME", help="A local model folder or a Hub id.  [default: that of own-data]")
@click.option("--text-column", metavar="NAME", help="The column that holds the text, where the guess is wrong.")
@click.option("--label-column", metavar="NAME", help="The column that holds the label, where the guess is wrong.")
@click.option(
    "--quoting",
    type=click.Choice(["standard", "none"]),
    default=None,
    help="How csv, tsv and txt files use double quotes, where the guess is wrong.",
)
@_json_option
def init(
    file: str,
    output: Path,
    model: str | None,
    text_column: str | None,
    label_column: str | None,
    quoting: str | None,
    as_json: bool,
) -> None:
    """Look at a file of labelled texts and write a configuration that searches on it.

    Guesses the columns, the labels' names, the splits and the longest input, and says how sure it is.

    \b
    Example:
        hpsearch init reviews.csv
        hpsearch init reviews.tsv --model ./my-encoder --label-column stars --output stars.yaml
    """
    _prepare_process()
    from hpsearch import report, starter

    with _shown_wait("reading the data"):
        proposed = starter.propose(
            file, output, model=model, text_column=text_column, label_column=label_column, quoting=quoting
        )
    starter.write(proposed)
    _print(report.starter_document(proposed) if as_json else report.starter_text(proposed, _width()))


@cli.command()
@_config_options
@_json_option
def inspect(config_name: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Show the data as a search will see it: sizes, balance, lengths, blanks, duplicates, overlaps, an example.

    \b
    Example:
        hpsearch inspect --config quickstart
    """
    from hpsearch.config import load_config

    config = load_config(config_name or DEFAULT_CONFIG, overrides)
    _prepare_process()
    from hpsearch import report
    from hpsearch.audit import inspect_data

    with _shown_wait("reading the data"):
        document = inspect_data(config)
    _print(document if as_json else report.inspection_text(document, _width()))


@cli.command()
@_storage_option
@_json_option
def doctor(storage_url: str, as_json: bool) -> None:
    """Check whether searches can run here: libraries, device, memory, disk, encoding, Hub and storage.

    Exits with 1 if a check fails. Nothing is written.

    \b
    Example:
        hpsearch doctor --json
    """
    _prepare_process()
    from hpsearch import report
    from hpsearch.doctor import diagnose

    with _shown_wait("looking around"):
        diagnosis = diagnose(storage_url, encoding=sys.stdout.encoding)
    _print(report.diagnosis_document(diagnosis) if as_json else report.diagnosis_text(diagnosis, _width()))
    if diagnosis.n_failed:
        sys.exit(1)


@cli.command()
@_config_options
@click.option("--trials", type=click.IntRange(min=1), help="Finished trials of the search.")
@click.option("--study", metavar="NAME", help="The study's name.  [default: the configuration's]")
@_worker_options
@_storage_option
@_json_option
def plan(
    config_name: str | None,
    overrides: tuple[str, ...],
    trials: int | None,
    study: str | None,
    n_workers: int | None,
    workers_per_gpu: int,
    storage_url: str,
    as_json: bool,
) -> None:
    """Measure a few steps and say what a search would take, before anything is spent: time, memory, disk, data.

    Takes the options of `run`, writes nothing, and exits with 1 where the search would fail.

    \b
    Example:
        hpsearch plan --config quickstart
        hpsearch plan --config my-search.yaml --trials 40
    """
    from hpsearch.study import StudyPaths, redact

    config = _config_of_run(config_name, overrides, trials, study, storage_url)
    paths = StudyPaths.of(storage_url, config.study if study is None else study)
    _prepare_process()
    from hpsearch import plan_report

    with _shown_wait("reading the data and timing a few steps"):
        started = time.perf_counter()
        from hpsearch.plan import make_plan
        from hpsearch.workers import resources

        result = make_plan(
            config, paths.root, n_workers=n_workers, per_gpu=workers_per_gpu,
            here=resources(os.environ.get("CUDA_VISIBLE_DEVICES")), loading_s=time.perf_counter() - started,
        )  # fmt: skip
    options = {"--config": config_name, "--trials": trials, "--study": study}
    if click.get_current_context().get_parameter_source("n_workers") is ParameterSource.COMMANDLINE:
        options["--workers"] = n_workers
    if workers_per_gpu > 1:
        options["--workers-per-gpu"] = workers_per_gpu
    if storage_url != _STORAGE:
        options["--storage"] = redact(storage_url)
    command = [
        "hpsearch",
        "run",
        *(str(part) for option in options.items() if option[1] is not None for part in option),
    ]
    command += [part for override in overrides for part in ("--set", override)]
    document = plan_report.plan_document(result, shlex.join(command))
    _print(document if as_json else plan_report.plan_text(document, _width()))
    if result.would_fail:
        sys.exit(1)


@cli.command()
@click.argument("model_dir", type=click.Path(path_type=Path))
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@_json_option
def predict(model_dir: Path, texts: tuple[str, ...], as_json: bool) -> None:
    """Label texts, given as arguments or as lines of stdin, with an exported model.

    Prints label, probability and text, separated by tabs.

    \b
    Example:
        hpsearch predict studies/nsmc-mbert/best "how boring!"
        cat reviews.txt | hpsearch predict studies/nsmc-mbert/best --json
    """
    _prepare_process()
    from hpsearch import report
    from hpsearch.predict import predict as predict_texts

    lines = list(texts) or _stdin_lines()
    answers = predict_texts(model_dir, lines)
    if as_json:
        best = [max(answer, key=answer.__getitem__) for answer in answers]
        _print(
            [
                {"text": text, "label": label, "probabilities": answer}
                for text, label, answer in zip(lines, best, answers, strict=True)
            ]
        )
    else:
        click.echo(report.predictions_text(lines, answers), nl=False)


@cli.command()
@_study_option
@_storage_option
@click.option("--output", type=click.Path(path_type=Path), help="The file.  [default: studies/STUDY/report.html]")
@click.option("--png", "with_png", is_flag=True, help="Write the plots as pictures too, in a folder beside the file.")
@_json_option
def report(study: str | None, storage_url: str, output: Path | None, with_png: bool, as_json: bool) -> None:
    """Write a study's report: one HTML file with the verdict, the evidence, plots and how to reproduce it.

    It opens from the disk without a network. It quotes test texts where the study has a comparison.

    \b
    Example:
        hpsearch report --study nsmc-mbert --output report.html --png
    """
    from hpsearch.study import StudyPaths, load_study, open_for_reading

    _prepare_process()
    loaded = load_study(open_for_reading(storage_url), study)
    paths = StudyPaths.of(storage_url, loaded.study_name)
    from hpsearch import report as reporting
    from hpsearch.page import make_report

    with _shown_wait("drawing the plots"):
        made = make_report(loaded, paths, output or paths.report, with_png=with_png)
    _print(reporting.page_document(made) if as_json else reporting.page_text(made))


@cli.command()
@_storage_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes a free one.")
@click.option("--allow-writes", is_flag=True, help="Let the page change studies and notes.")
@click.option("--expose", is_flag=True, help="Allow a --host that other machines reach.")
def dashboard(storage_url: str, host: str, port: int, allow_writes: bool, expose: bool) -> None:
    """Browse the studies in optuna-dashboard, read-only, also while a search is running.

    Prints a URL that lets one browser in, and another one once it has been opened. Each trial has its learning curve
    and confusion matrix among its artifacts, and each study a note that explains it.

    \b
    Example:
        hpsearch dashboard --port 8080
    """
    from hpsearch.dashboard import make_dashboard
    from hpsearch.study import opened

    _prepare_process()
    server = make_dashboard(
        _with(opened(storage_url)),
        storage_url,
        host=host,
        port=port,
        allow_writes=allow_writes,
        expose=expose,
        announce=lambda url: click.echo(f"a browser was let in; for another one: {url}", err=True),
    )
    click.echo(server.url, err=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


# --- The process around a command
# ---------------------------------------------------------------------------------------


def _config_of_run(
    config_name: str | None, overrides: tuple[str, ...], trials: int | None, study: str | None, storage_url: str
) -> Config:
    """Return the configuration of a run: the one named, the one the study was started with, or the default."""
    from hpsearch.config import build_config, load_config

    if trials is not None:
        overrides = (*overrides, f"search.trials={trials}")
    if config_name is None and study is not None and (stored := _config_in(storage_url, study)) is not None:
        return build_config(stored, overrides, where=f"study {study!r}")
    return load_config(config_name or DEFAULT_CONFIG, overrides)


def _config_in(storage_url: str, study: str) -> dict[str, Any] | None:
    """Return the configuration a study was started with, or None where there is no such study yet."""
    from hpsearch.study import load_study, opened, stored_config

    try:
        with opened(storage_url) as storage:
            return stored_config(load_study(storage, study)).model_dump(mode="json")
    except UsageError:
        return None


def _stdin_lines() -> list[str]:
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"stdin: expected UTF-8, got: {error}") from error
    return [line.rstrip("\r") for line in text.removesuffix("\n").split("\n")] if text else []


def _with(resource: contextlib.AbstractContextManager[T]) -> T:
    """Enter a context that lasts as long as the command."""
    return click.get_current_context().with_resource(resource)


def _print(result: Any) -> None:
    """Print text as it is, anything else as one JSON document."""
    text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, indent=2) + "\n"
    if not isinstance(result, str) and not streams.encodable(text, sys.stdout):
        text = json.dumps(result, indent=2) + "\n"  # with JSON's escapes; those of Python are none in JSON
    click.echo(text, nl=False)


def _say(text: str) -> None:
    """Print a message to standard error, if it can be."""
    try:
        click.echo(text, err=True)
    except OSError:  # the status still says what happened
        streams.discard(sys.stderr)


def _status_without_output(error: OSError) -> int:
    """Return the process's status after its output broke; an error of something else is raised again."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    if not frame.f_globals["__name__"].startswith("click."):  # all that is printed goes through `click.echo`
        raise error
    streams.discard(sys.stdout)
    if isinstance(error, BrokenPipeError):
        return _PIPE_CLOSED
    _say(f"error: standard output: expected to write the results there, got: {error.strerror}")
    return 1


def _arguments() -> list[str]:
    """Return the process's arguments as UTF-8, also where the locale says ASCII."""
    return [os.fsencode(argument).decode("utf-8", "surrogateescape") for argument in sys.argv[1:]]


def _not_a_file_name(error: UnicodeEncodeError) -> UsageError:
    return UsageError(
        f"{error.object!r}: expected a name that this process's file names can have, got one that {error.encoding} "
        f"has no characters for; set LC_ALL=C.UTF-8 or PYTHONUTF8=1"
    )


def _width() -> int:
    """Return the terminal's width in cells, or room for a whole table where the output is no terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 200


@contextlib.contextmanager
def _shown_wait(what: str) -> Iterator[None]:
    """Say on a terminal what takes a moment."""
    if sys.stderr.isatty():
        click.echo(f"{what} ...\r", nl=False, err=True)
    yield
    if sys.stderr.isatty():
        click.echo(" " * (len(what) + 4) + "\r", nl=False, err=True)


def _prepare_process() -> None:
    """Set up the process before the heavy libraries are imported.

    What they log and warn stays off the terminal; `_log_to` gives it a file.
    """
    # By default OpenMP's threads spin for milliseconds while they wait for one that another program keeps off its core.
    # On two cores one busy neighbour made a training step ten times slower; with 3,000 turns it is two times, and on an
    # idle machine as fast as by default (torch 2.13 with libgomp, `benchmarks/README.md`).
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    _keep_freed_memory()
    logging.captureWarnings(capture=True)
    root = logging.getLogger()
    root.handlers[:] = [logging.NullHandler()]
    root.setLevel(logging.INFO)
    for name in ("optuna", "transformers", "datasets", "evaluate", "accelerate", "huggingface_hub"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [logging.NullHandler()]
        logger.propagate = True


def _prepare_workers() -> None:
    """Have the process from which workers are forked load the libraries, while this one does the same."""
    forkserver.set_forkserver_preload(["hpsearch.workers"])
    forkserver.ensure_running()


@contextlib.contextmanager
def _ray_cluster(address: str, log: Path) -> Iterator[None]:
    """Be connected to a Ray cluster; what Ray prints about its nodes, on standard output, goes to the study's log."""
    from hpsearch.on_ray import connected

    with log.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file), connected(address):
        yield


def _set_up_worker(log: Path) -> None:
    """Set up the process of a worker: what it logs goes to the study's log."""
    _prepare_process()
    _log_to(log)


def _keep_freed_memory() -> None:
    """Let glibc keep the memory that is freed, for the next training step, rather than return it to the system.

    Each step allocates what the one before has freed. By default glibc unmaps and trims large pieces, and the next step
    pays for every page again: a seventh of a short step's time (`benchmarks/README.md`). Other C libraries are left as
    they are.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)  # bytes; the largest that the call takes
        library.mallopt(_M_MMAP_THRESHOLD, 2**25)  # the largest that glibc takes


def _log_to(path: Path) -> None:
    """Write what the libraries log and warn to a file, in a folder that is made for it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise StudyError(f"{path}: expected to write the log there, got: {error.strerror or error}") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)


@contextlib.contextmanager
def _watched(study: optuna.Study, paths: StudyPaths) -> Iterator[tuple[Observer, Callable[[], bool]]]:
    """Give trainings outside a search an observer and a way to be stopped."""
    from hpsearch.progress import observer_for
    from hpsearch.study import stored_config

    config = stored_config(study)
    _log_to(paths.log)
    with (
        _stop_signals() as stop_requested,
        observer_for(sys.stderr, study=study.study_name, metric=config.metric, tuned=list(config.space)) as observer,
    ):
        try:
            yield observer, stop_requested
        except KeyboardInterrupt:
            observer.note("stopped; finished trainings are kept, and the same command goes on")
            sys.exit(_INTERRUPTED)


@contextlib.contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGINT, SIGTERM or SIGHUP into a request to stop; a second one ends the process at once."""
    received: list[int] = []

    def receive(number: int, _frame: Any) -> None:
        received.append(number)
        # A second SIGINT raises KeyboardInterrupt wherever the process is, so that the terminal is put in order.
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as it is under nohup, where the terminal's end is no reason
        numbers.append(signal.SIGHUP)
    previous = {number: signal.signal(number, receive) for number in numbers}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
