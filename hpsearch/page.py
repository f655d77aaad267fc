"""A study's report as one HTML file: what is known, drawn and told, without a script and without the network.

Whatever comes from data or names is escaped by the template engine, and the page's own policy lets a browser load and
run nothing. The same study gives the same bytes.
"""

from __future__ import annotations

import io
import os
import platform
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from ruamel.yaml import YAML

from hpsearch.canvas import NARROW, WIDE, clean, harmless, inline_svg, language, png
from hpsearch.config import PACKAGE_FOLDER
from hpsearch.content import PageData, short_number
from hpsearch.cost import cost_of
from hpsearch.edges import edges_of
from hpsearch.errors import StudyError, UsageError
from hpsearch.evidence import Flip, comparison_of, confirmation_of, looks_of
from hpsearch.flips import read_flips
from hpsearch.folders import appearing, check_free, write_manifest
from hpsearch.importances import importances_of
from hpsearch.sections import sections, verdict
from hpsearch.study import best_trial, stored_config
from hpsearch.trial_sections import cost_facts, edge_facts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from optuna.trial import FrozenTrial

    from hpsearch.config import Config
    from hpsearch.content import Plot, Section, Table, Verdict
    from hpsearch.space import Choices, FloatRange, IntRange
    from hpsearch.study import StudyPaths

_GENERATOR = '<meta name="generator" content="hpsearch '
_MOST_ROWS = 200  # of a table
_MARK_WITHIN = 1024  # bytes at a report's beginning
_NOTHING = "-"
_NUMBER = re.compile(r"[+-]?\d[\d,.]*(e[+-]?\d+)?( (%|s|min \d+ s|h \d+ min))?")


@dataclass(frozen=True, slots=True)
class Report:
    """What was written."""

    study: str
    file: Path
    pictures: Path | None
    """The folder of PNG pictures, if they were asked for."""
    headline: str
    missing: tuple[str, ...]
    """Commands that would add a section."""


def make_report(study: optuna.Study, paths: StudyPaths, output: Path, *, with_png: bool) -> Report:
    """Write a study's report, and its plots as pictures in a folder beside it if asked for.

    A report of hpsearch that is there is replaced, because it can be made again; any other file is not.

    Raises:
        StudyError: If no trial is complete, or the file cannot be written.
        UsageError: If the output's name is taken by something else, or hpsearch did not start the study.
    """
    check_replaceable(output)
    pictures = output.with_name(f"{output.stem}-plots")
    if with_png:
        check_free(pictures, overwrite=True)
    data = page_data(study, paths)
    answer, parts = verdict(data), sections(data)
    _write(output, render(data, answer, parts))
    if with_png:
        with appearing(pictures, overwrite=True) as aside:
            for plot in _plots(parts):
                (aside / f"{plot.name}.png").write_bytes(png(plot.draw(NARROW if plot.is_half else WIDE)))
            write_manifest(aside, {"study": study.study_name})
    missing = [command for part in parts if part.is_missing for command in part.commands]
    return Report(
        study=study.study_name,
        file=output,
        pictures=pictures if with_png else None,
        headline=answer.headline,
        missing=(*missing, *answer.commands),
    )


def check_replaceable(output: Path) -> None:
    """Refuse an output that is neither a free name nor a report of hpsearch.

    Raises:
        UsageError: With what is there.
    """
    wanted = f"{output}: expected a free name or a report of hpsearch"
    try:
        if output.is_symlink() or (output.exists() and not output.is_file()):
            raise UsageError(f"{wanted}, got a link, a folder or a device; choose another --output")
        if not output.exists():
            return
        with output.open("rb") as file:
            is_ours = _GENERATOR.encode() in file.read(_MARK_WITHIN)
    except OSError as error:
        raise UsageError(f"{wanted}, got: {error.strerror or error}; choose another --output") from error
    if not is_ours:
        raise UsageError(f"{wanted}, got another file, which is not replaced; choose another --output")


# --- What is known ----------------------------------------------------------------------------------------------------


def page_data(study: optuna.Study, paths: StudyPaths) -> PageData:
    """Return what a report of a study shows.

    Raises:
        StudyError: If no trial is complete.
        UsageError: If hpsearch did not start the study.
    """
    config = stored_config(study)
    best = best_trial(study)
    trials = tuple(study.get_trials(deepcopy=False))
    confirmation, comparison = confirmation_of(study), comparison_of(study)
    tuned_trial, tuned = best.number, dict(best.params)
    if comparison is not None:
        tuned_trial, tuned = comparison.trial, comparison.tuned.params
    elif confirmation is not None:
        tuned_trial, tuned = confirmation.winner.trial, confirmation.winner.params
    return PageData(
        study=study.study_name,
        metric=config.metric,
        trials=trials,
        best=best,
        evaluations=config.search.evaluations,
        confirmation=confirmation,
        comparison=comparison,
        looks=looks_of(study),
        flips=_read_flips(paths.folder / comparison.flips_file, below=paths.folder) if comparison else None,
        cost=cost_facts(cost_of(study), config.metric),
        edges=edge_facts(edges_of(study)),
        importances=tuple((each.name, each.mean, each.sd) for each in importances_of(study) or ()) or None,
        protocol=tuple(_protocol(study, config, best)),
        space=tuple(
            (name, _range(dimension), short_number(getattr(config.defaults, name)), short_number(tuned.get(name)))
            for name, dimension in config.space.items()
        ),
        tuned_trial=tuned_trial,
        config_yaml=_yaml(config),
    )


def _read_flips(path: Path, *, below: Path) -> tuple[Flip, ...] | None:
    """Return the rows of a file of flips; None if it is not there, or not in the folder where it belongs."""
    if not path.resolve().is_relative_to(below.resolve()) or not path.is_file():
        return None
    return tuple(read_flips(path))


def _protocol(study: optuna.Study, config: Config, best: FrozenTrial) -> Iterator[tuple[str, str]]:
    lock = study.user_attrs.get("lock", {})
    rows = {name: getattr(config.data, f"{name}_rows") for name in ("train", "validation", "test")}
    effective = best.user_attrs.get("effective", {})
    yield "metric", f"{config.metric}, maximised on the validation rows"
    yield "model", _short_path(config.model.name) + (f" at {config.model.revision}" if config.model.revision else "")
    yield "data", _short_path(config.data.train) + (f" at {config.data.revision}" if config.data.revision else "")
    yield "rows asked for", ", ".join(f"{name} {n:,}" if n else f"{name}: all" for name, n in rows.items())
    yield "sampling", f"shuffled with seed {config.data.shuffle_seed}"
    yield "data fingerprint", str(lock.get("data", "-"))
    yield "model fingerprint", str(lock.get("model", "-"))
    yield "search", f"{config.search.sampler} sampler, {config.search.pruner} pruner, seed {config.search.seed}"
    yield "budget", f"{config.search.trials} finished trials, up to {config.search.evaluations} evaluations each"
    if effective:
        yield "device", f"{effective.get('device')}, matrix products in {effective.get('products')}"
    names = ("hpsearch", "optuna", "transformers", "torch", "datasets")
    installed = ", ".join(f"{name} {version(name)}" for name in names)
    yield "versions here", f"Python {platform.python_version()}, {installed}"


def _range(dimension: FloatRange | IntRange | Choices) -> str:
    if dimension.type == "categorical":
        return ", ".join(map(str, dimension.choices))
    return f"{dimension.low:g} to {dimension.high:g}" + (", log" if dimension.log else "")


def _short_path(name: str) -> str:
    """Return a local path's last part: the rest says only how the writer's disk is laid out."""
    return Path(name).name if Path(name).is_absolute() else name


def _yaml(config: Config) -> str:
    """Return a configuration as a file that says what differs from the defaults."""
    tree = config.model_dump(mode="json", exclude_defaults=True)
    # A dimension's type is what tells them apart, also where it is the default.
    tree["space"] = {name: dimension.model_dump(mode="json") for name, dimension in config.space.items()}
    tree["model"]["name"] = _short_path(config.model.name)
    for name in ("train", "validation", "test"):
        if name in tree["data"]:
            tree["data"][name] = _short_path(tree["data"][name])
    out = io.StringIO()
    yaml = YAML()
    yaml.width = 110
    yaml.dump(tree, out)
    return "\n".join(map(harmless, out.getvalue().splitlines()))


# --- The page ---------------------------------------------------------------------------------------------------------


def render(data: PageData, answer: Verdict, parts: Sequence[Section]) -> str:
    """Return the HTML."""
    environment = Environment(
        loader=FileSystemLoader(PACKAGE_FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(clean=clean, language=language)
    environment.globals.update(drawings=_drawings, grid=_grid)
    ends = [trial.datetime_complete for trial in data.trials if trial.datetime_complete]
    dates = [max(ends).isoformat(timespec="minutes", sep=" ")] if ends else []
    return environment.get_template("page.html.j2").render(
        data=data, verdict=answer, sections=parts, version=version("hpsearch"), last_trial=dates
    )


def _drawings(plot: Plot) -> list[tuple[str, Markup]]:
    """Return a plot's SVG elements, each with the class that says where it is shown."""
    sizes = [("any", NARROW)] if plot.is_half else [("wide", WIDE), ("narrow", NARROW)]
    return [
        (
            kind,
            # Made by matplotlib and written by ElementTree, which escapes.
            Markup(
                inline_svg(plot.draw(width), name=f"{plot.name}-{kind}", title=plot.title, description=plot.takeaway)
            ),
        )
        for kind, width in sizes
    ]


def _grid(table: Table) -> tuple[list[bool], list[list[str]]]:
    """Return for each column whether it holds numbers, and the texts of a table's first rows."""
    rows = [[_text(value) for value in row] for row in table.rows[:_MOST_ROWS]]
    columns = zip(*rows, strict=True) if rows else ((),) * len(table.columns)
    return [all(text == _NOTHING or _NUMBER.fullmatch(text) for text in column) for column in columns], rows


def _text(value: object) -> str:
    if value is None:
        return _NOTHING
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else clean(str(value))


def _plots(parts: Sequence[Section]) -> Iterator[Plot]:
    return (plot for part in parts for plot in part.plots)


def _write(output: Path, text: str) -> None:
    """Write a file aside and give it its name when it is complete."""
    aside = output.with_name(f".{output.name}.partial-{os.getpid()}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        check_replaceable(output)  # it may have been taken in the meantime
        aside.replace(output)
    except OSError as error:
        raise StudyError(f"{output}: expected to write the report there, got: {error.strerror or error}") from error
    finally:
        aside.unlink(missing_ok=True)
