"""End a short search at every operation on a file, at every SQL statement and at many sizes of a file, and resume it.

    python benchmarks/crashes.py                                  # every point: about a quarter of an hour
    python benchmarks/crashes.py --only files --points 10         # ten of one kind

The search is the real command: a study of two trials, its export, and the export again over the first. A point of the
kind

- `files` is an operation on a file below the studies folder that Python tells its audit hooks of, before it happens:
  opening to write, renaming, making and removing; and forcing to the disk.
- `statements` is an SQL statement or a commit, before it is sent.
- `bytes` is a size that a file may not pass: the system ends the process in the middle of the write that does, also
  where the writer is no Python: SQLite, safetensors, the tokenizer.

At each the process gets a signal that it cannot catch. Then the database must be sound, what carries a final name
whole and every finished trial as it was; the same command must end with two finished trials of the values that an
undisturbed search has, each of the best with a checkpoint that can be read, and nothing may be left over.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import faults
from machine import machine

if TYPE_CHECKING:
    from collections.abc import Callable

N_TRIALS = 2
RUN = ["run", "--config", f"{faults.STUDY}.yaml", "--trials", str(N_TRIALS), "--workers", "1"]
EXPORT = ["export-best", "--study", faults.STUDY]
COMMANDS = (RUN, EXPORT, [*EXPORT, "--overwrite"])
RESUMED = (RUN, [*EXPORT, "--overwrite"])
KINDS = ("files", "statements", "bytes")
_BYTES = 4096  # between two points


def _count_files(at: int, seen: Path | None) -> None:
    """End this process at an operation on a file; or write down after each how many there were."""
    studies = str(Path("studies").absolute())
    n = 0

    def is_below(path: Any, folder: Any = -1) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        is_relative_to_one = isinstance(folder, int) and folder >= 0
        above = Path(f"/proc/self/fd/{folder}").readlink() if is_relative_to_one else Path.cwd()
        return str(above / os.fsdecode(path)).startswith(studies)

    def count() -> None:
        nonlocal n
        n += 1
        if n == at:
            os.kill(os.getpid(), signal.SIGKILL)
        if seen is not None:
            seen.write_text(str(n), encoding="ascii")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = set(mode) & set("wxa+") if mode else (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            happens = bool(writes) and is_below(path)
        elif event == "os.rename":
            source, target, source_folder, target_folder = arguments
            happens = is_below(source, source_folder) or is_below(target, target_folder)
        elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink"):
            happens = is_below(arguments[0], arguments[-1])
        else:
            return
        if happens:
            count()

    sync = os.fsync

    def counted_sync(handle: int) -> None:
        count()
        sync(handle)

    os.fsync = counted_sync  # type: ignore[assignment]
    sys.addaudithook(hook)


def _count_statements(at: int, seen: Path | None) -> None:
    """End this process at an SQL statement; or write down after each how many there were."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    n = 0

    def count(*_: Any) -> None:
        nonlocal n
        n += 1
        if n == at:
            os.kill(os.getpid(), signal.SIGKILL)
        if seen is not None:
            seen.write_text(str(n), encoding="ascii")

    event.listen(Engine, "before_cursor_execute", count)
    event.listen(Engine, "commit", count)


def _limit_sizes(at: int, _seen: Path | None) -> None:
    """Have the system end this process when it writes past a size."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((at - 1) * _BYTES, (at - 1) * _BYTES))


_WAYS: dict[str, Callable[[int, Path | None], None]] = {
    "files": _count_files,
    "statements": _count_statements,
    "bytes": _limit_sizes,
}


def _start(folder: Path, *commands: list[str], before: Callable[[], object] = lambda: None) -> int:
    return faults.fork(folder, *commands, before=lambda: (before(), faults.check_exports_in_this_process()))


def _finished(folder: Path) -> set[tuple[Any, ...]]:
    trials = faults.trials_of(folder)
    return {(trial.params, trial.value) for trial in trials if trial.state in faults.FINISHED}


def _undisturbed(folder: Path) -> tuple[dict[str, int], set[tuple[Any, ...]]]:
    """Run the commands to their end, and return how many points there are of each kind and the finished trials."""
    faults.clear(folder)
    seen = {kind: folder / f"{kind}.txt" for kind in ("files", "statements")}
    if faults.wait(_start(folder, *COMMANDS, before=lambda: [_WAYS[kind](0, path) for kind, path in seen.items()])):
        raise click.ClickException((folder / "output.txt").read_text(encoding="utf-8"))
    n_points = {kind: int(path.read_text(encoding="ascii")) for kind, path in seen.items()}
    largest = max(path.stat().st_size for path in (folder / "studies").rglob("*") if path.is_file())
    n_points["bytes"] = largest // _BYTES + 1
    if problems := faults.in_a_fork(lambda: faults.problems_at_the_end(folder, N_TRIALS)):
        raise click.ClickException("; ".join(problems))
    return n_points, _finished(folder)


def crash(folder: Path, kind: str, at: int, expected: set[tuple[Any, ...]]) -> list[str]:
    """Crash at one point, resume, and return what is wrong."""
    faults.clear(folder)
    status = faults.wait(_start(folder, *COMMANDS, before=lambda: _WAYS[kind](at, None)))
    if status not in (-signal.SIGKILL, -signal.SIGXFSZ):
        return [f"it was not ended, but exited with {status}"]
    before = faults.trials_of(folder)
    problems = faults.problems_after_a_fault(folder, before)
    status = faults.wait(_start(folder, *RESUMED))
    if status:
        output = (folder / "output.txt").read_text(encoding="utf-8").strip()
        return [*problems, f"resuming it exited with {status}: {output[-1500:]}"]
    problems += faults.problems_after_a_fault(folder, before)
    problems += faults.in_a_fork(lambda: faults.problems_at_the_end(folder, N_TRIALS))
    if (finished := _finished(folder)) != expected:
        problems.append(f"expected the trials of an undisturbed search, {expected}, got {finished}")
    return problems


def spread(n: int, n_wanted: int | None, seed: int) -> list[int]:
    """Return some numbers from 1 to n, evenly spread; all of them where no other number of them is wanted."""
    if n_wanted is None or n_wanted >= n:
        return list(range(1, n + 1))
    first = random.Random(seed).random()
    return [int((first + i) * n / n_wanted) + 1 for i in range(n_wanted)]


@click.command(help=__doc__)
@click.option("--only", "kinds", multiple=True, type=click.Choice(KINDS), default=KINDS, show_default=True)
@click.option(
    "--points", type=click.IntRange(min=1), help="So many points of each kind, evenly spread.  [default: all]"
)
@click.option("--seed", type=int, help="Where the first of them lies; drawn and printed unless it is given.")
@click.option("--json", "output", type=click.Path(path_type=Path, dir_okay=False), help="Write a document there.")
def main(kinds: tuple[str, ...], points: int | None, seed: int | None, output: Path | None) -> None:
    if seed is None:
        seed = random.SystemRandom().randrange(1000)
    faults.load_libraries()
    started = time.monotonic()
    found: dict[str, list[str]] = {}
    n_tried = dict.fromkeys(kinds, 0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        faults.write_config(folder)
        n_points, expected = _undisturbed(folder)
        for kind in kinds:
            for at in spread(n_points[kind], points, seed):
                n_tried[kind] += 1
                if problems := crash(folder, kind, at, expected):
                    found[f"{kind} {at}"] = problems
                    click.echo(f"{kind} {at}: " + "; ".join(problems), err=True)
            click.echo(f"{kind}: {n_tried[kind]} of {n_points[kind]} points")
    seconds = time.monotonic() - started
    click.echo(
        f"{sum(n_tried.values())} crashes, each resumed, in {seconds:.0f} s: {len(found)} with a problem (seed {seed})"
    )
    if output is not None:
        document = {
            "date": datetime.now(UTC).date().isoformat(), "machine": machine(), "seconds": round(seconds),
            "versions": {name: version(name) for name in ("hpsearch", "optuna", "sqlalchemy", "torch", "transformers")},
            "points": n_points, "tried": n_tried, "problems": found,
        }  # fmt: skip
        output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
