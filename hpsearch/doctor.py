"""Whether a search can run here, and well: one line a check, each with what was found and what to do about it.

Nothing waits for long: what asks another machine does so in a thread that is left behind after a few seconds.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import sqlite3
import sys
from concurrent.futures import Future
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from threading import Thread
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from hpsearch.config import PACKAGE_FOLDER
from hpsearch.errors import HpsearchError
from hpsearch.machine import existing_parent, mount_of, mounts, usable_cores, usable_memory
from hpsearch.study import StudyPaths, database_file, open_for_reading, redact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_GIB = 2**30
_LEAST_MEMORY = 2 * _GIB  # 110 M parameters of a BERT base, its gradients and Adam's two moments, 4 bytes each: 1.6 GiB
_LEAST_DISK = 5 * _GIB  # three checkpoints and an export of bert-base-multilingual-cased: 4 x 0.7 GB, and room to write
_NO_DISK = _GIB // 4
_PROBED_WIDTH = 768  # of BERT base
_TESTED_PYTHON = (3, 11)
_HUB_TIMEOUT_S = 5.0
_STORAGE_TIMEOUT_S = 30.0

State = Literal["ok", "warn", "fail"]
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    state: State
    found: str
    advice: str = ""
    """What to do; empty where nothing need be done."""


@dataclass(frozen=True, slots=True)
class Library:
    """A library that hpsearch needs."""

    name: str
    installed: str | None
    needed: str
    """The versions that are allowed, such as `>=5.23,<5.24`."""
    tested: str | None
    """The version that the tests ran with."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Every check, and the versions of the libraries."""

    checks: tuple[Check, ...]
    libraries: tuple[Library, ...]

    @property
    def n_failed(self) -> int:
        """How many checks failed."""
        return sum(check.state == "fail" for check in self.checks)


def diagnose(storage_url: str, *, encoding: str) -> Diagnosis:
    """Look at libraries, device, memory, disk, terminal, Hub and storage; nothing is written.

    Args:
        storage_url: Where studies are or would be kept.
        encoding: That of the terminal or file that results go to.
    """
    known = libraries()
    checks = [
        _python(),
        *_library_checks(known),
        *_torch_checks(),
        _memory(),
        *_folder_checks(storage_url),
        _encodings(encoding),
        _hub(),
        _within(
            _STORAGE_TIMEOUT_S,
            lambda: _storage(storage_url),
            Check("storage", "fail", f"no answer from {redact(storage_url)} in {_STORAGE_TIMEOUT_S:.0f} s",
                  "see whether its server runs and can be reached"),
        ),
    ]  # fmt: skip
    return Diagnosis(tuple(checks), known)


# --- Libraries --------------------------------------------------------------------------------------------------------


def libraries() -> tuple[Library, ...]:
    """Return the libraries that hpsearch declares, with the versions that are installed and that were tested."""
    tested = _tested_versions()
    found = []
    for line in _requirements():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            name = canonicalize_name(requirement.name)
            found.append(Library(name, _installed(name), str(requirement.specifier), tested.get(name)))
    return tuple(sorted(found, key=lambda library: library.name))


def _requirements() -> list[str]:
    try:
        return requires("hpsearch") or []
    except PackageNotFoundError:
        return []


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _tested_versions() -> dict[str, str]:
    """Return the versions of `constraints.txt`: in the wheel beside this module, in a checkout one folder up."""
    for folder in (PACKAGE_FOLDER, PACKAGE_FOLDER.parent):
        with contextlib.suppress(FileNotFoundError):
            lines = (folder / "constraints.txt").read_text(encoding="utf-8").split()
            pairs = (line.split("==") for line in lines if "==" in line)
            return {canonicalize_name(name): number for name, number in pairs}
    return {}


def _library_checks(known: tuple[Library, ...]) -> Iterator[Check]:
    own = _installed("hpsearch")
    if own is None:
        yield Check("hpsearch", "fail", "not installed as a package", "pip install -c constraints.txt -e .")
        return
    yield Check("hpsearch", "ok", own)
    as_tested = []
    for library in known:
        reinstall = f"pip install -c constraints.txt '{library.name}{library.needed}'"
        if library.installed is None:
            yield Check(library.name, "fail", f"not installed, needed {library.needed}", reinstall)
        elif not Requirement(f"x{library.needed}").specifier.contains(library.installed, prereleases=True):
            yield Check(library.name, "fail", f"{library.installed}, needed {library.needed}", reinstall)
        elif library.tested is not None and Version(library.installed).public != Version(library.tested).public:
            found = f"{library.installed}, tested with {library.tested}"
            yield Check(library.name, "warn", found, "if something breaks, install what was tested")
        else:
            as_tested.append(f"{library.name} {library.installed}")
    yield Check("libraries", "ok", f"{len(as_tested)} as tested: {', '.join(as_tested)}")


def _python() -> Check:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if platform.system() != "Linux":
        return Check("python", "warn", found, "hpsearch is tested on Linux only")
    if sys.version_info[:2] != _TESTED_PYTHON:
        return Check("python", "warn", found, f"tested with {'.'.join(map(str, _TESTED_PYTHON))}")
    return Check("python", "ok", found)


# --- What trains ------------------------------------------------------------------------------------------------------


def _torch_checks() -> Iterator[Check]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Check("device", "fail", f"torch cannot be loaded: {_one_line(error)}", "install torch again")
        return
    from hpsearch.precision import fastest_products

    yield _device(torch)
    try:
        products = fastest_products(_PROBED_WIDTH)
    except RuntimeError as error:  # such as a GPU without memory, or of a kind this build has no code for
        yield Check("precision", "fail", f"a matrix product failed: {_one_line(error)}", "install a torch that fits")
    else:
        yield Check("precision", "ok", f"{products} is fastest for products of {_PROBED_WIDTH} units here")
    yield _threads(torch.get_num_threads())


def _device(torch: Any) -> Check:
    if torch.cuda.is_available():
        parts, free = [], []
        for i in range(torch.cuda.device_count()):
            unused, total = torch.cuda.mem_get_info(i)
            free.append(unused)
            parts.append(f"{torch.cuda.get_device_name(i)}, {unused / _GIB:.1f} of {total / _GIB:.1f} GiB free")
        found = "; ".join(parts) + ("; the first is used" if len(parts) > 1 else "")
        if free[0] < _LEAST_MEMORY:
            return Check("device", "warn", found, "end what fills it, or choose another with CUDA_VISIBLE_DEVICES")
        return Check("device", "ok", found)
    if torch.version.cuda is not None:
        advice = "if this machine has a GPU, see whether `nvidia-smi` finds it; else a CPU build of torch is smaller"
        return Check("device", "warn", f"no GPU, though torch is built for CUDA {torch.version.cuda}: the CPU", advice)
    return Check("device", "ok", "the CPU")


def _threads(n_threads: int) -> Check:
    cores = usable_cores()
    busy = f"{os.getloadavg()[0]:.1f} busy on average in the last minute"
    found = f"{n_threads} threads on {cores:g} cores, {busy}"
    if n_threads > cores:
        advice = f"more threads than cores wait for each other: set OMP_NUM_THREADS={max(1, int(cores))}"
        return Check("cores", "warn", found, advice)
    return Check("cores", "ok", found)


def _memory() -> Check:
    free, total = usable_memory()
    found = f"{free / _GIB:.1f} of {total / _GIB:.1f} GiB free"
    if free < _LEAST_MEMORY:
        return Check("memory", "warn", found, "too little to train a BERT base; take a smaller model, or free some")
    return Check("memory", "ok", found)


# --- Where studies are kept -------------------------------------------------------------------------------------------


def _folder_checks(storage_url: str) -> Iterator[Check]:
    try:
        folder = StudyPaths.of(storage_url, "study").root
    except HpsearchError:
        return  # the check of the storage says what is wrong with its URL
    above = existing_parent(folder)
    free = shutil.disk_usage(above).free
    found = f"{free / _GIB:.1f} GiB free for {folder.absolute()}"
    if not os.access(above, os.W_OK | os.X_OK):
        yield Check("disk", "fail", f"{above} is not writable", "choose another --storage, or change its permissions")
    elif free < _NO_DISK:
        yield Check("disk", "fail", found, "free some, or choose another --storage")
    elif free < _LEAST_DISK:
        yield Check("disk", "warn", found, "the checkpoints of a large encoder may not fit")
    else:
        yield Check("disk", "ok", found)
    mount = mount_of(above, mounts())
    if mount is None:
        return
    if mount.is_network and database_file(storage_url) is not None:
        yield Check(
            "file system", "warn", f"{mount.kind} on {mount.point} is a network file system",
            "SQLite's write-ahead log is not safe there: use --storage on a local disk, from one machine only",
        )  # fmt: skip
    else:
        yield Check("file system", "ok", f"{mount.kind} on {mount.point}")


def _storage(url: str) -> Check:
    """Open the storage, count its studies, and have SQLite check its file."""
    shown = redact(url)
    try:
        database = database_file(url)
        if database is not None and not database.exists():
            return Check("storage", "ok", f"no studies yet: `hpsearch run` makes {shown}")
        n_studies = len(open_for_reading(url).get_all_studies())
    except HpsearchError as error:
        return Check("storage", "fail", _one_line(error).removeprefix("storage "), "name a storage with --storage")
    found = f"{n_studies} {'study' if n_studies == 1 else 'studies'} in {shown}"
    if database is None:
        return Check("storage", "ok", found)
    try:
        with contextlib.closing(sqlite3.connect(database, timeout=_STORAGE_TIMEOUT_S)) as connection:
            problems = [row[0] for row in connection.execute("PRAGMA integrity_check(3)")]
            (journal,) = connection.execute("PRAGMA journal_mode").fetchone()
    except sqlite3.Error as error:
        problems, journal = [str(error)], "unknown"
    if problems != ["ok"]:
        problem = _one_line("; ".join(problems))
        return Check(
            "storage", "fail", f"{found}, damaged: {problem}", "restore a copy, or save it with `sqlite3 .recover`"
        )
    if journal != "wal":
        advice = "searches and readers wait for each other; `PRAGMA journal_mode=WAL` of sqlite3 sets it"
        return Check("storage", "warn", f"{found}, intact, without a write-ahead log", advice)
    return Check("storage", "ok", f"{found}, intact")


# --- Around it --------------------------------------------------------------------------------------------------------


def _encodings(encoding: str) -> Check:
    files = sys.getfilesystemencoding()
    found = f"output {encoding.lower()}, file names {files}"
    if files != "utf-8":
        advice = "files and studies with Hangul in their names cannot be opened: set LC_ALL=C.UTF-8 or PYTHONUTF8=1"
        return Check("encoding", "warn", found, advice)
    if encoding.lower().replace("_", "-") not in ("utf-8", "utf8"):
        return Check("encoding", "warn", found, "what it has no character for is shown as an escape: use UTF-8")
    return Check("encoding", "ok", found)


def _hub() -> Check:
    import huggingface_hub.constants as hub

    from hpsearch.hub import problem_with_hub

    if hub.HF_HUB_OFFLINE:
        return Check("hub", "ok", "not asked, HF_HUB_OFFLINE is set: local models, local data and what is cached")
    endpoint = redact(hub.ENDPOINT)
    late = f"no answer in {_HUB_TIMEOUT_S:.0f} s"
    problem = _within(_HUB_TIMEOUT_S, problem_with_hub, late)
    if problem:
        advice = "use local models and data, or what is cached; HF_HUB_OFFLINE=1 saves the wait"
        return Check("hub", "warn", f"{endpoint}: {redact(_one_line(problem))}", advice)
    return Check("hub", "ok", f"{endpoint} answers")


def _within(seconds: float, work: Callable[[], _Result], otherwise: _Result) -> _Result:
    """Return what some work returns, or something else if it takes longer; then it is left to itself."""
    future: Future[_Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001  it is raised where the result is waited for
            future.set_exception(error)

    # A name may be looked up for longer than a connection's time limit, and cannot be called off.
    Thread(target=run, daemon=True).start()
    try:
        return future.result(seconds)
    except TimeoutError:
        return otherwise


def _one_line(problem: object) -> str:
    return " ".join(str(problem).split())
