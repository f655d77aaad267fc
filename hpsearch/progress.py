"""What a person sees while a search runs: a live view on a terminal, plain lines everywhere else.

An observer is called after every optimizer step, so a call only stores values; a thread of its own draws the live view.
A stream that breaks is not written to again: losing sight of a search must not end it.
"""

from __future__ import annotations

import time
import unicodedata
from abc import ABC, abstractmethod
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
from hpsearch.streams import discard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from rich.console import ConsoleOptions, RenderResult

    from hpsearch.config import Hyperparameters
    from hpsearch.observer import Standing

_GAP = "   "
_PLAIN_PROGRESS_S = 60.0
_STYLES = {"complete": "green", "pruned": "yellow", "failed": "red"}


@contextmanager
def observer_for(
    stream: TextIO, *, study: str, metric: str, tuned: Sequence[str], clock: Callable[[], float] = time.monotonic
) -> Iterator[LiveView | PlainLines]:
    """Give the observer that suits a stream, and clear what it drew in the end.

    Args:
        stream: Where a person looks; standard error, as standard output is for data.
        study: The study's name.
        metric: The name of the objective value.
        tuned: The hyperparameters to show, by name.
        clock: Seconds that only grow.
    """
    console = Console(file=cast("IO[str]", _Output(stream)))
    # rich alone takes a log file for a terminal where FORCE_COLOR is set, as CI services do.
    if stream.isatty() and console.is_interactive:
        with LiveView(console, study=study, metric=metric, tuned=tuned, clock=clock) as view:
            yield view
    else:
        yield PlainLines(console, study=study, metric=metric, tuned=tuned, clock=clock)


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


class _View(Observer, ABC):
    """Knows what goes on; subclasses show it."""

    def __init__(
        self,
        console: Console,
        *,
        study: str,
        metric: str,
        tuned: Sequence[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Show nothing yet; all but the console is as in `observer_for`."""
        self._console = console
        self._study = self._printable(study)
        self._metric = metric
        self._tuned = tuple(tuned)
        self._clock = clock
        self._standing: Standing | None = None
        self._trainings: dict[int, _Training] = {}  # by worker
        self._workers: dict[int, _Worker] = {}
        self._best = ""
        self._seconds: list[float] = []

    def for_worker(self, index: int) -> Observer:
        """Return an observer for one of several workers, which are shown together."""
        return self._workers.setdefault(index, _Worker(self, index))

    def trial_started(self, name: str, hyperparameters: Hyperparameters) -> None:
        self._start(0, name, hyperparameters)

    def progressed(self, epoch: float, fraction: float, loss: float | None) -> None:
        self._progress(0, epoch, fraction, loss)

    def evaluated(self, step: int, n_steps: int, value: float) -> None:
        self._evaluate(0, step, n_steps, value)

    def trial_ended(self, name: str, state: str, value: float | None, seconds: float, reason: str = "") -> None:
        self._end(0, name, state, value, seconds, reason)

    def _start(self, worker: int, name: str, hyperparameters: Hyperparameters) -> None:
        values = [self._printable(f"{key} {_compact(getattr(hyperparameters, key))}") for key in self._tuned]
        self._trainings[worker] = _Training(name, values, self._clock())

    def _progress(self, worker: int, epoch: float, fraction: float, loss: float | None) -> None:
        if training := self._trainings.get(worker):
            training.epoch, training.fraction, training.loss = epoch, fraction, loss

    def _evaluate(self, worker: int, step: int, n_steps: int, value: float) -> None:
        if training := self._trainings.get(worker):
            training.value, training.best = value, max(value, training.best)
            training.evaluation = f"{step}/{n_steps}"

    def study_changed(self, standing: Standing) -> None:
        if self._standing and standing.n_finished < self._standing.n_finished:
            return  # of several workers, one that looked before another had finished
        self._standing = standing
        if standing.best_value is not None:
            self._best = f"{standing.best_value:.4f} (trial {standing.best_number})"

    @abstractmethod
    def _end(self, worker: int, name: str, state: str, value: float | None, seconds: float, reason: str) -> None:
        """Show that a training has ended."""

    def _count(self, worker: int, name: str, state: str, value: float | None, seconds: float) -> bool:
        """Count a trial before the study's own count comes, and say whether it is the best so far."""
        self._trainings.pop(worker, None)
        if state != "failed":
            self._seconds.append(seconds)
        if (standing := self._standing) is None:
            return False
        self._standing = replace(standing, n_finished=standing.n_finished + (state != "failed"))
        if state != "complete" or value is None or (standing.best_value is not None and value <= standing.best_value):
            return False
        self._best = f"{value:.4f} ({name})"
        return True

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
        standing, trainings = self._standing, self._trainings.values()
        if standing is None or not self._seconds:
            return
        # Failed trials say nothing about how long the ones take that the study still needs.
        mean = fmean(self._seconds)
        spent = sum(min(self._clock() - training.started, mean) for training in trainings)
        left = ((standing.n_trials - standing.n_finished) * mean - spent) / max(1, len(self._workers))
        if left >= 1:
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
        return printable(text, self._console.encoding)


@dataclass(frozen=True, slots=True)
class _Worker(Observer):
    """Passes on what one of several workers tells, with who told it."""

    view: _View
    index: int

    def note(self, text: str) -> None:
        self.view.note(text)

    def trial_started(self, name: str, hyperparameters: Hyperparameters) -> None:
        self.view._start(self.index, name, hyperparameters)

    def progressed(self, epoch: float, fraction: float, loss: float | None) -> None:
        self.view._progress(self.index, epoch, fraction, loss)

    def evaluated(self, step: int, n_steps: int, value: float) -> None:
        self.view._evaluate(self.index, step, n_steps, value)

    def trial_ended(self, name: str, state: str, value: float | None, seconds: float, reason: str = "") -> None:
        self.view._end(self.index, name, state, value, seconds, reason)

    def study_changed(self, standing: Standing) -> None:
        self.view.study_changed(standing)


class LiveView(_View):
    """Draws the running trial in place, under one lasting line for each trial that has ended."""

    def __enter__(self) -> Self:
        """Begin to draw."""
        # Standard output may be a file that waits for data, so it stays as it is.
        self._live = Live(self, console=self._console, refresh_per_second=4, transient=True, redirect_stdout=False)
        self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        """Clear the live area; the lines of ended trials stay."""
        self._live.stop()

    def note(self, text: str) -> None:
        """Print a note above the live area."""
        self._console.print(Text(f"note: {self._printable(text)}"))

    def _end(self, worker: int, name: str, state: str, value: float | None, seconds: float, reason: str) -> None:
        """Print the trial's line above the live area."""
        remark = "<- best so far" if self._count(worker, name, state, value, seconds) else self._printable(reason)
        shown = "-" if value is None else f"{value:.4f}"
        values = f"  {self._metric} {shown:<6}  {_short(seconds):>6}  {remark}"
        line = Text.assemble(f"{name:<8}  ", (f"{state:<8}", _STYLES.get(state, "")), values)
        line.rstrip()
        if line.cell_len > self._console.width:
            line.truncate(self._console.width - 3, overflow="crop")
            line.append("...")
        self._console.print(line)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the study and its running trainings: how far each is, and of a single one what is tuned."""
        width = options.max_width
        lines = _packed(self._study_parts(), width)
        trainings = [training for _, training in sorted(self._trainings.items())]
        for training in trainings:
            n_cells = min(width, 80) - 2
            n_done = int(training.fraction * n_cells)
            lines += _packed(self._training_parts(training), width)
            lines += [f"[{'#' * n_done}{'.' * (n_cells - n_done)}]"]
            lines += _packed(training.hyperparameters, width) if len(trainings) == 1 else []
        yield Text("\n".join(lines), no_wrap=True, overflow="crop")


class PlainLines(_View):
    """Writes a line for every start and end of a trial, for logs: nothing moves, nothing is coloured."""

    _written = float("-inf")

    def note(self, text: str) -> None:
        """Write a note."""
        self._write([f"note: {self._printable(text)}"])

    def _start(self, worker: int, name: str, hyperparameters: Hyperparameters) -> None:
        """Write what is tried."""
        super()._start(worker, name, hyperparameters)
        self._write([f"{name} started", *self._trainings[worker].hyperparameters])

    def _progress(self, worker: int, epoch: float, fraction: float, loss: float | None) -> None:
        """Write how far the training is, if nothing was written for a minute."""
        super()._progress(worker, epoch, fraction, loss)
        if (training := self._trainings.get(worker)) and self._clock() - self._written >= _PLAIN_PROGRESS_S:
            self._write([*self._training_parts(training), *self._time_parts()])

    def _end(self, worker: int, name: str, state: str, value: float | None, seconds: float, reason: str) -> None:
        """Write what came of a trial and where that leaves the study."""
        is_best = self._count(worker, name, state, value, seconds)
        parts = [f"{name} {state}", f"{self._metric} {value:.4f}" if value is not None else "", _short(seconds)]
        parts += [self._printable(reason)]
        if standing := self._standing:
            parts += ["<- best so far" if is_best else self._best and f"best {self._best}"]
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
        self._console.file.write(f"{now} {_GAP.join(part for part in parts if part)}\n")


class LossLines(Observer):
    """Writes a line for every training loss: for a training that is no trial of a study."""

    def __init__(self, stream: TextIO) -> None:
        """Take where a person looks."""
        self._output = _Output(stream)

    def progressed(self, epoch: float, fraction: float, loss: float | None) -> None:
        """Write the loss and how far the training is."""
        shown = "-" if loss is None else f"{loss:.4f}"
        self._output.write(_GAP.join((f"epoch {epoch:.1f}", f"{100 * fraction:.0f} %", f"loss {shown}")) + "\n")


class _Output:
    """A text stream that takes any character, flushes every write, and takes everything silently once it is broken."""

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
                    discard(self._stream)
        return len(text)

    def flush(self) -> None:
        pass


def _packed(parts: Iterable[str], width: int) -> list[str]:
    """Return lines of at most `width` cells, broken between parts; a part that is too long on its own is cut."""
    lines: list[str] = []
    for part in parts:
        shown = part if cell_len(part) <= width else set_cell_size(part, width - 3) + "..."
        if lines and cell_len(lines[-1] + _GAP + shown) <= width:
            lines[-1] += _GAP + shown
        else:
            lines.append(shown)
    return lines


def _compact(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _short(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 99.95 else f"{seconds:.0f} s"


def _rounded(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
