"""What is shown of a search: exact lines in a log, words and widths on a terminal, and streams that misbehave."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import termios
import unicodedata
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from hpsearch.config import Hyperparameters
from hpsearch.observer import Observer, Standing
from hpsearch.progress import LiveView, PlainLines, observer_for, printable

_WIDTH = 60
_TIME = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d ")
_CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_TUNED = ("learning_rate", "num_train_epochs", "per_device_train_batch_size", "weight_decay", "lr_scheduler_type")
_VALUES = Hyperparameters(
    learning_rate=3.1e-5, num_train_epochs=4, per_device_train_batch_size=16, weight_decay=0.01234567
)
_SHOWN_VALUES = (
    "learning_rate 3.1e-05   num_train_epochs 4   per_device_train_batch_size 16   weight_decay 0.01235   "
    "lr_scheduler_type linear"
)
_LONG_HANGUL = "영화평 " * 30


class _Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class _BreakingTerminal(io.StringIO):
    """A terminal that goes away after some writes."""

    def __init__(self, n_writes: int, *, error: type[OSError] = BrokenPipeError) -> None:
        super().__init__()
        self.n_left = n_writes
        self.n_refused = 0
        self._error = error

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self.n_left == 0:
            self.n_refused += 1
            raise self._error
        self.n_left -= 1
        return super().write(text)


@pytest.fixture
def clock() -> _Clock:
    return _Clock()


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def _standing(n_finished: int, best: tuple[int, float] | None = None, *, n_pruned: int = 0) -> Standing:
    number, value = best or (None, None)
    return Standing(n_finished, n_pruned, 0, 20, number, value)


def _lines(stream: io.StringIO) -> list[str]:
    lines = stream.getvalue().splitlines()
    assert all(_TIME.match(line) for line in lines)
    return [_TIME.sub("", line) for line in lines]


def _live(clock: _Clock, *, study: str = "reviews", metric: str = "f1", no_color: bool = True) -> LiveView:
    console = Console(file=io.StringIO(), force_terminal=True, width=_WIDTH, height=24, no_color=no_color)
    return LiveView(console, study=study, metric=metric, tuned=_TUNED, clock=clock)


def _written(view: LiveView) -> str:
    stream = view._console.file
    assert isinstance(stream, io.StringIO)
    return stream.getvalue()


def _lasting(view: LiveView) -> list[str]:
    """Return the lines of ended trials and the notes."""
    lines = [_CONTROLS.sub("", line).strip("\r") for line in _written(view).splitlines()]
    return [line for line in lines if line.startswith(("trial", "note")) and "epoch" not in line]


def _drawn(view: LiveView) -> list[str]:
    console = Console(file=io.StringIO(), width=_WIDTH)
    console.print(view)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def _one_trial(observer: Observer) -> None:
    observer.study_changed(_standing(6, (3, 0.8), n_pruned=2))
    observer.note("trial 5 was cut short")
    observer.trial_started("trial 8", _VALUES)
    observer.progressed(3.2, 0.41, 0.35214)
    observer.evaluated(2, 8, 0.8105)
    observer.evaluated(3, 8, 0.8012)


# --- Plain lines ------------------------------------------------------------------------------------------------------


def test_a_log_gets_one_exact_line_per_event(clock: _Clock) -> None:
    stream = io.StringIO()
    with observer_for(stream, study="reviews", metric="f1", tuned=_TUNED, clock=clock) as observer:
        _one_trial(observer)
        observer.trial_ended("trial 8", "complete", 0.8105, 41.04)
        observer.study_changed(_standing(7, (8, 0.8105), n_pruned=2))
        observer.trial_started("trial 9", _VALUES)
        observer.trial_ended("trial 9", "pruned", 0.7012, 138.6)
        observer.study_changed(_standing(8, (8, 0.8105), n_pruned=3))
        observer.trial_started("trial 10", _VALUES)
        observer.trial_ended("trial 10", "failed", None, 0.5, "out of memory")
    assert _lines(stream) == [
        "reviews   trials 6/20   pruned 2   failed 0   best 0.8000 (trial 3)",
        "note: trial 5 was cut short",
        f"trial 8 started   {_SHOWN_VALUES}",
        "trial 8 complete   f1 0.8105   41.0 s   <- best so far   trials 7/20   about 9 min left",
        f"trial 9 started   {_SHOWN_VALUES}",
        "trial 9 pruned   f1 0.7012   139 s   best 0.8105 (trial 8)   trials 8/20   about 18 min left",
        f"trial 10 started   {_SHOWN_VALUES}",
        "trial 10 failed   0.5 s   out of memory   best 0.8105 (trial 8)   trials 8/20   about 18 min left",
    ]


def test_progress_takes_a_line_at_most_once_a_minute(clock: _Clock) -> None:
    stream = io.StringIO()
    with observer_for(stream, study="reviews", metric="f1", tuned=(), clock=clock) as observer:
        observer.trial_started("trial 0", _VALUES)
        for second in range(150):
            clock.now += 1
            observer.progressed(second / 100, second / 200, None if second < 100 else 0.5)
            observer.evaluated(1, 8, 0.5)
    assert _lines(stream) == [
        "trial 0 started",
        "trial 0   epoch 0.6   30 %   evaluation 1/8   f1 now 0.5000   best of this trial 0.5000",
        "trial 0   epoch 1.2   60 %   loss 0.5000   evaluation 1/8   f1 now 0.5000   best of this trial 0.5000",
    ]


def test_a_training_outside_a_study_is_never_called_its_best(clock: _Clock) -> None:
    stream = io.StringIO()
    with observer_for(stream, study="reviews", metric="mcc", tuned=(), clock=clock) as observer:
        observer.trial_started("seed 43", _VALUES)
        observer.trial_ended("seed 43", "complete", -0.25, 3.0)
    assert _lines(stream) == ["seed 43 started", "seed 43 complete   mcc -0.2500   3.0 s"]


@pytest.mark.parametrize(
    ("state", "value", "best", "is_best"),
    [
        pytest.param("complete", 0.5, None, True, id="first"),
        pytest.param("complete", -0.1, (0, -0.2), True, id="better"),
        pytest.param("complete", 0.5, (0, 0.5), False, id="tie"),
        pytest.param("pruned", 0.9, (0, 0.5), False, id="pruned"),
        pytest.param("failed", None, None, False, id="failed"),
    ],
)
def test_only_a_complete_trial_above_all_others_is_the_best_so_far(
    state: str, value: float | None, best: tuple[int, float] | None, clock: _Clock, *, is_best: bool
) -> None:
    stream = io.StringIO()
    with observer_for(stream, study="reviews", metric="f1", tuned=(), clock=clock) as observer:
        observer.study_changed(_standing(1, best))
        observer.trial_ended("trial 1", state, value, 1.0)
    assert ("best so far" in _lines(stream)[-1]) is is_best


# --- The live view ----------------------------------------------------------------------------------------------------


def test_the_live_area_says_where_study_and_trial_are(clock: _Clock) -> None:
    view = _live(clock)
    _one_trial(view)
    assert _drawn(view) == [
        "reviews   trials 6/20   pruned 2   failed 0",
        "best 0.8000 (trial 3)",
        "trial 8   epoch 3.2   41 %   loss 0.3521   evaluation 3/8",
        "f1 now 0.8012   best of this trial 0.8105",
        "[" + "#" * 23 + "." * 35 + "]",
        "learning_rate 3.1e-05   num_train_epochs 4",
        "per_device_train_batch_size 16   weight_decay 0.01235",
        "lr_scheduler_type linear",
    ]


def test_ended_trials_stay_one_line_each_and_the_live_area_goes(clock: _Clock) -> None:
    with _live(clock, metric="accuracy") as view:
        _one_trial(view)
        view.trial_ended("trial 12", "complete", 0.8105, 1234.0)
        view.study_changed(_standing(7, (12, 0.8105)))
        view.trial_ended("trial 13", "pruned", 0.7012, 12.34)
        view.trial_ended("trial 14", "failed", None, 0.5, "[red]x [/] out\nof memory " + "x" * 60)
    assert _lasting(view) == [
        "note: trial 5 was cut short",
        "trial 12  complete  accuracy 0.8105  1234 s  <- best so far",
        "trial 13  pruned    accuracy 0.7012  12.3 s",
        "trial 14  failed    accuracy -        0.5 s  [red]x [/] o...",
    ]
    assert _written(view).endswith("\x1b[1A\x1b[2K")


@pytest.mark.parametrize("study", [_LONG_HANGUL, unicodedata.normalize("NFD", _LONG_HANGUL), "x" * 300])
def test_no_line_is_wider_than_the_terminal(study: str, clock: _Clock) -> None:
    with _live(clock, study=study) as view:
        _one_trial(view)
        view.note(_LONG_HANGUL)
        view._live.refresh()
        view.trial_ended("trial 8", "failed", None, 1.0, _LONG_HANGUL)
    lines = _CONTROLS.sub("", _written(view)).replace("\r", "\n").splitlines()
    assert max(map(cell_len, lines)) <= _WIDTH
    assert any(line.startswith((study[0], "영화평")) for line in lines)
    assert any(line.startswith("trial 8   failed    f1 -        1.0 s  영화평") for line in lines)


def test_time_left_comes_from_the_finished_trials_and_counts_down(clock: _Clock) -> None:
    view = _live(clock)
    view.study_changed(_standing(10))
    view.trial_started("trial 10", _VALUES)
    view.trial_ended("trial 10", "failed", None, 5000.0, "out of memory")
    assert "left" not in " ".join(_drawn(view))
    view.trial_ended("trial 11", "complete", 0.8, 50.0)
    view.trial_ended("trial 12", "pruned", 0.7, 30.0)
    view.study_changed(_standing(12))
    assert "about 5 min left" in " ".join(_drawn(view))  # 8 x 40 s = 320 s
    view.trial_started("trial 13", _VALUES)
    clock.now += 30
    view.study_changed(_standing(18))
    assert "about 50 s left" in " ".join(_drawn(view))
    clock.now += 500
    assert "about 40 s left" in " ".join(_drawn(view))
    view.trial_ended("trial 13", "complete", 0.8, 100_000.0)
    view.study_changed(_standing(19))
    assert "about 9 h 16 min left" in " ".join(_drawn(view))
    view.study_changed(_standing(20))
    assert "left" not in " ".join(_drawn(view))


@pytest.mark.parametrize("no_color", [False, True])
def test_states_are_words_with_and_without_colour(clock: _Clock, *, no_color: bool) -> None:
    with _live(clock, no_color=no_color) as view:
        view.trial_ended("trial 8", "pruned", 0.5, 1.0)
    assert _lasting(view) == ["trial 8   pruned    f1 0.5000   1.0 s"]
    assert ("\x1b[33m" in _written(view)) is not no_color


# --- Streams ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        pytest.param({}, LiveView, id="terminal"),
        pytest.param({"NO_COLOR": "1"}, LiveView, id="no-color"),
        pytest.param({"TERM": "dumb"}, PlainLines, id="dumb"),
    ],
)
def test_a_terminal_gets_the_live_view_unless_it_is_dumb(
    variables: dict[str, str], expected: type[Observer], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with observer_for(_BreakingTerminal(-1), study="reviews", metric="f1", tuned=()) as observer:
        assert type(observer) is expected


def test_a_file_gets_plain_lines_even_where_colour_is_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream = io.StringIO()
    with observer_for(stream, study="reviews", metric="f1", tuned=()) as observer:
        observer.note("\x1b[31mred\x1b[0m \x07 [bold]x")
    assert _lines(stream) == ["note: ?[31mred?[0m ? [bold]x"]


@pytest.mark.parametrize("error", [BrokenPipeError, OSError])
@pytest.mark.parametrize("term", ["xterm", "dumb"])
@pytest.mark.parametrize("n_writes", [0, 1, 2])
def test_a_broken_stream_is_left_alone(
    error: type[OSError], term: str, n_writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", term)
    stream = _BreakingTerminal(n_writes, error=error)
    with observer_for(stream, study="reviews", metric="f1", tuned=_TUNED) as observer:
        _one_trial(observer)
        observer.trial_ended("trial 8", "complete", 0.9, 1.0)
    assert stream.n_refused == 1


@pytest.mark.parametrize(
    ("text", "encoding", "expected"),
    [
        pytest.param("a\n\tb\u00a0c", "utf-8", "a b c", id="white-space"),
        pytest.param("\x1b]0;t\x07\u202ex\udcff", "utf-8", "?]0;t??x?", id="controls"),
        pytest.param(unicodedata.normalize("NFD", "한글"), "utf-8", "한글", id="decomposed"),
        pytest.param("한 \u2713", "cp949", "한 \\u2713", id="code-page"),
        pytest.param("한", "ascii", "\\ud55c", id="ascii"),
    ],
)
def test_text_from_outside_becomes_one_harmless_line(text: str, encoding: str, expected: str) -> None:
    assert printable(text, encoding) == expected


_SCRIPT = """
import sys
from hpsearch.observer import Standing
from hpsearch.progress import observer_for
with observer_for(sys.stderr, study="\\ud55c\\uae00", metric="f1", tuned=()) as observer:
    print(type(observer).__name__)
    observer.study_changed(Standing(6, 2, 0, 20, 3, 0.8))
    observer.trial_started("trial 8", None)
    for step in range(3000):
        observer.progressed(3.2, 0.41, 0.35)
        if step % 1000 == 0:
            observer.note(f"caf\\u00e9 {step}")
    if sys.stderr.isatty():
        print("a warning of a library \\ud55c", file=sys.stderr)
    observer.trial_ended("trial 8", "failed", None, 1.0, "\\ud55c")
"""


def _run(stderr: int, **variables: str) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
    environment |= {"TERM": "xterm", "COLUMNS": str(_WIDTH), **variables}
    folder = Path(__file__).parents[1]
    return subprocess.Popen(
        [sys.executable, "-c", _SCRIPT], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=stderr
    )


def test_a_real_ascii_terminal_shows_everything() -> None:
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, _WIDTH))
    with _run(slave, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0") as process:
        os.close(slave)
        written = b""
        while chunk := _read(master):
            written += chunk
        assert process.stdout is not None
        assert process.stdout.read() == b"LiveView\n"
    os.close(master)
    assert process.returncode == 0
    text = _CONTROLS.sub("", written.decode("ascii"))
    for words in ("\\ud55c\\uae00   trials 6/20", "note: caf\\xe9 2000", "library \\ud55c", "1.0 s  \\ud55c", "[#####"):
        assert words in text
    assert max(map(len, text.replace("\r", "\n").splitlines())) <= _WIDTH


def test_a_pipe_closed_early_does_not_end_the_program() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with _run(writer) as process:
        os.close(writer)
        assert process.stdout is not None
        assert process.stdout.read() == b"PlainLines\n"
    assert process.returncode == 0


def _read(master: int) -> bytes:
    try:
        return os.read(master, 65536)
    except OSError:  # Linux reports the end of a pseudo terminal as an error
        return b""


def test_losses_are_written_line_by_line() -> None:
    from hpsearch.progress import LossLines

    stream = io.StringIO()
    observer = LossLines(stream)
    observer.progressed(0.79, 0.079, 0.697)
    observer.progressed(1.0, 0.1, None)
    assert stream.getvalue() == "epoch 0.8   8 %   loss 0.6970\nepoch 1.0   10 %   loss -\n"
