"""What a person sees while a search runs: a live view on a terminal, plain lines everywhere else.

An observer is called after every optimizer step, so a call only stores values; the live view is drawn by a thread of its
own. A stream that breaks is not written to again: losing sight of a search must not end it.
"""

from __future__ import annotations

import os
import time
import unicodedata
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from statistics import fmean
from typing import IO, TYPE_CHECKING, Self, TextIO, cast

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.live import Live
from rich.text import Text

from hpsearch.observer import Observer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from rich.console import ConsoleOptions, RenderResult

    from hpsearch.config import Hyperparameters
    from hpsearch.observer import Standing

_GAP = "   "
_REFRESHES_PER_S = 4
_PLAIN_PROGRESS_S = 60.0
_STYLES = {"complete": "green", "pruned": "yellow", "failed": "red"}


@contextmanager
def observer_for(stream: TextIO, *, study: str, metric: str, tuned: Sequence[str]) -> Iterator[Observer]:
    """Give the observer that suits a stream, and clear what it drew in the end.

    Args:
        stream: Where a person looks; standard error, as standard output is for data.
        study: The study's name.
        metric: The name of the objective value.
        tuned: The hyperparameters to show, by name.
    """
    console = Console(file=cast("IO[str]", _Output(stream)))
    # rich alone would take a log file for a terminal where FORCE_COLOR is set, as CI services do.
    if stream.isatty() and console.is_interactive:
        with LiveView(console, study=study, metric=metric, tuned=tuned) as view:
            yield view
    else:
        yield PlainLines(stream, study=study, metric=metric, tuned=tuned)


def printable(text: str, encoding: str = "utf-8") -> str:
    """Return text from outside as one line that a stream of this encoding can show and that controls no terminal."""
    line = " ".join(unicodedata.normalize("NFC", text).split())
    line = "".join(character if character.isprintable() else "?" for character in line)
    return line.encode(encoding, "backslashreplace").decode(encoding)


@dataclass(slots=True)
class _Training:
    name: str
    hyperparameters: list[str]
    started: float
    epoch: float = 0.0
    fraction: float = 0.0
    loss: float | None = None
    evaluation: str = ""
    value: float = 0.0
    best: float = float("-inf")


class _View(Observer):
    """Knows what goes on; subclasses show it."""

    def __init__(
        self, *, study: str, metric: str, tuned: Sequence[str], encoding: str, clock: Callable[[], float]
    ) -> None:
        self._encoding = encoding
        self._study = self._printable(study)
        self._metric = metric
        self._tuned = tuple(tuned)
        self._clock = clock
        self._standing: Standing | None = None
        self._training: _Training | None = None
        self._best = ""
        self._seconds: list[float] = []

    def trial_started(self, name: str, hyperparameters: Hyperparameters) -> None:
        values = [self._printable(f"{key} {_compact(getattr(hyperparameters, key))}") for key in self._tuned]
        self._training = _Training(self._printable(name), values, self._clock())

    def progressed(self, epoch: float, fraction: float, loss: float | None) -> None:
        if self._training:
            self._training.epoch, self._training.fraction, self._training.loss = epoch, fraction, loss

    def evaluated(self, step: int, n_steps: int, value: float) -> None:
        if self._training:
            self._training.value, self._training.best = value, max(value, self._training.best)
            self._training.evaluation = f"{step}/{n_steps}"

    def study_changed(self, standing: Standing) -> None:
        self._standing = standing
        if standing.best_value is not None:
            self._best = f"{standing.best_value:.4f} (trial {standing.best_number})"

    def _end(self, name: str, state: str, value: float | None, seconds: float) -> bool:
        """Count an ended trial ahead of the study's own count, and say whether it is the best so far."""
        self._training = None
        standing = self._standing
        is_finished = state != "failed"
        if is_finished:
            self._seconds.append(seconds)
        if standing is None:
            return False
        is_best = state == "complete" and value is not None
        is_best = is_best and (standing.best_value is None or cast("float", value) > standing.best_value)
        self._standing = replace(
            standing,
            n_finished=standing.n_finished + is_finished,
            n_pruned=standing.n_pruned + (state == "pruned"),
            n_failed=standing.n_failed + (state == "failed"),
        )
        if is_best:
            self._best = f"{value:.4f} ({self._printable(name)})"
        return is_best

    def _seconds_left(self) -> float:
        """Return the mean length of the trials finished here times the rest, less the running trial's share; 0: unknown."""
        standing, training = self._standing, self._training
        if standing is None or not self._seconds:
            return 0.0
        mean = fmean(self._seconds)
        running = min(self._clock() - training.started, mean) if training else 0.0
        return (standing.n_trials - standing.n_finished) * mean - running

    def _study_parts(self) -> Iterator[str]:
        yield self._study
        if standing := self._standing:
            yield f"trials {standing.n_finished}/{standing.n_trials}"
            yield f"pruned {standing.n_pruned}"
            yield f"failed {standing.n_failed}"
        if self._best:
            yield f"best {self._best}"
        yield from self._time_parts()

    def _time_parts(self) -> Iterator[str]:
        if (left := self._seconds_left()) >= 1:
            yield f"about {_rounded(left)} left"

    def _training_parts(self, training: _Training) -> Iterator[str]:
        yield training.name
        yield f"epoch {training.epoch:.1f}"
        yield f"{100 * training.fraction:.0f} %"
        if training.loss is not None:
            yield f"loss {training.loss:.4f}"
        if training.evaluation:
            yield f"evaluation {training.evaluation}"
            yield f"{self._metric} now {training.value:.4f}"
            yield f"best of this trial {training.best:.4f}"

    def _printable(self, text: str) -> str:
        return printable(text, self._encoding)


class LiveView(_View):
    """Draws the running trial in place, under one lasting line for each trial that has ended."""

    def __init__(
        self,
        console: Console,
        *,
        study: str,
        metric: str,
        tuned: Sequence[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Draw nothing yet: that begins with the `with` block.

        Args:
            console: The terminal.
            study: As in `observer_for`.
            metric: As in `observer_for`.
            tuned: As in `observer_for`.
            clock: Seconds that only grow.
        """
        super().__init__(study=study, metric=metric, tuned=tuned, encoding=console.encoding, clock=clock)
        self._console = console
        # Standard output may be a file that waits for data, so it stays as it is.
        self._live = Live(
            self, console=console, refresh_per_second=_REFRESHES_PER_S, transient=True, redirect_stdout=False
        )

    def __enter__(self) -> Self:
        """Begin to draw."""
        self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        """Clear the live area; the lines of ended trials stay."""
        self._live.stop()

    def note(self, text: str) -> None:
        """Print a note above the live area."""
        self._console.print(Text(f"note: {self._printable(text)}"))

    def trial_ended(self, name: str, state: str, value: float | None, seconds: float, reason: str = "") -> None:
        """Print the trial's line above the live area."""
        remark = "<- best so far" if self._end(name, state, value, seconds) else self._printable(reason)
        shown = "-" if value is None else f"{value:.4f}"
        line = Text.assemble(
            f"{self._printable(name):<8}  ",
            (f"{state:<8}", _STYLES.get(state, "")),
            f"  {self._metric} {shown:<6}  {_short(seconds):>6}  {remark}",
        )
        line.rstrip()
        if line.cell_len > self._console.width:
            line.truncate(self._console.width - 3, overflow="crop")
            line.append("...")
        self._console.print(line)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the study, its running training, how far that is, and its tuned hyperparameters."""
        width = options.max_width
        lines = _packed(self._study_parts(), width)
        if training := self._training:
            n_cells = min(width, 80) - 2
            n_done = int(min(training.fraction, 1.0) * n_cells)
            lines += _packed(self._training_parts(training), width)
            lines += [f"[{'#' * n_done}{'.' * (n_cells - n_done)}]"]
            lines += _packed(training.hyperparameters, width)
        yield Text("\n".join(lines), no_wrap=True, overflow="crop")


class PlainLines(_View):
    """Writes a line for every start and end of a trial, for logs: nothing moves, nothing is coloured."""

    def __init__(
        self,
        stream: TextIO,
        *,
        study: str,
        metric: str,
        tuned: Sequence[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Write nothing yet; the arguments are those of `observer_for` and `LiveView`."""
        self._output = _Output(stream)
        super().__init__(study=study, metric=metric, tuned=tuned, encoding=self._output.encoding, clock=clock)
        self._written = clock()

    def note(self, text: str) -> None:
        """Write a note."""
        self._write([f"note: {self._printable(text)}"])

    def trial_started(self, name: str, hyperparameters: Hyperparameters) -> None:
        """Write what is tried."""
        super().trial_started(name, hyperparameters)
        if self._training:
            self._write([f"{self._training.name} started", *self._training.hyperparameters])

    def progressed(self, epoch: float, fraction: float, loss: float | None) -> None:
        """Write how far the training is, if nothing was written for a minute."""
        super().progressed(epoch, fraction, loss)
        if self._training and self._clock() - self._written >= _PLAIN_PROGRESS_S:
            self._write([*self._training_parts(self._training), *self._time_parts()])

    def trial_ended(self, name: str, state: str, value: float | None, seconds: float, reason: str = "") -> None:
        """Write what came of a trial and where that leaves the study."""
        is_best = self._end(name, state, value, seconds)
        parts = [f"{self._printable(name)} {state}"]
        parts += [f"{self._metric} {value:.4f}"] if value is not None else []
        parts += [_short(seconds)]
        parts += [self._printable(reason)] if reason else []
        if standing := self._standing:
            parts += ["<- best so far"] if is_best else [f"best {self._best}"] if self._best else []
            parts += [f"trials {standing.n_finished}/{standing.n_trials}", *self._time_parts()]
        self._write(parts)

    def study_changed(self, standing: Standing) -> None:
        """Write where the study stands at the start; later the ends of trials say so."""
        is_first = self._standing is None
        super().study_changed(standing)
        if is_first:
            self._write(self._study_parts())

    def _write(self, parts: Iterable[str]) -> None:
        self._written = self._clock()
        now = datetime.now(UTC).astimezone().isoformat(timespec="seconds")
        self._output.write(f"{now} {_GAP.join(parts)}\n")


class _Output:
    """A text stream that takes any character, and silently takes everything once it is broken."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_broken = False
        self.encoding = getattr(stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        return self._stream.isatty()

    def write(self, text: str) -> int:
        if not self._is_broken:
            try:
                self._stream.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))
                self._stream.flush()
            except OSError as error:
                self._is_broken = True
                if isinstance(error, BrokenPipeError):
                    self._discard_rest()
        return len(text)

    def flush(self) -> None:
        """Do nothing, as every write is flushed."""

    def _discard_rest(self) -> None:
        # What the stream still holds would fail once more when Python exits, with status 120: see the note on SIGPIPE
        # in the documentation of Python's `signal`.
        try:
            descriptor = self._stream.fileno()
        except OSError:
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


def _packed(parts: Iterable[str], width: int) -> list[str]:
    """Return lines of at most `width` cells, broken between parts; a part that is longer alone is cut."""
    lines: list[str] = []
    for part in parts:
        shown = part if cell_len(part) <= width else set_cell_size(part, width - 3) + "..."
        if lines and cell_len(lines[-1]) + len(_GAP) + cell_len(shown) <= width:
            lines[-1] += _GAP + shown
        else:
            lines.append(shown)
    return lines


def _compact(value: object) -> str:
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else f"{value:.4g}"
    return str(value)


def _short(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 99.95 else f"{seconds:.0f} s"


def _rounded(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
