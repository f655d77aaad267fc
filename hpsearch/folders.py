"""Folders and files that appear whole: written aside and renamed when they are complete."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpsearch.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

MANIFEST = "manifest.json"


@contextlib.contextmanager
def appearing(folder: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a folder to write into, which takes the final name when the block ends without an error.

    Args:
        folder: The final name.
        overwrite: Whether a folder of that name is replaced; it stays until the new one is complete.

    Raises:
        UsageError: If the final name is taken and `overwrite` is false.
    """
    clear_remains(folder)
    check_free(folder, overwrite=overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = _aside(folder)
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)  # of a process that died with this one's id: containers give it again
    aside.mkdir()
    try:
        yield aside
        _sync(aside)
        check_free(folder, overwrite=overwrite)  # it may have been taken in the meantime
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        aside.rename(folder)
        _sync_one(folder.parent)
    finally:
        # Left on failure, and the replaced folder on success: both are this function's own.
        shutil.rmtree(aside, ignore_errors=True)
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def appearing_file(path: Path) -> Iterator[Path]:
    """Give a name to write to, whose file takes the final name, or replaces it, when the block ends without an error.

    The folder is made where it is missing. Several processes may write the same file: the last one's stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_remains(path)
    aside = path.with_name(f".{path.name}.partial-{os.getpid()}-{secrets.token_hex(8)}")
    try:
        yield aside
        _sync_one(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def clear_remains(path: Path) -> None:
    """Clear away what processes of this machine that died have left of a file or folder that was to appear whole.

    One that was being replaced is given its name back, where its successor was not complete.
    """
    # By the process's id, in names such as `.best.partial-123` and `.best.old-123`.
    for aside in sorted(path.parent.glob(f".{glob.escape(path.name)}.*-*")):
        match = re.fullmatch(rf"\.{re.escape(path.name)}\.(partial|old)-(\d+)(-\w+)?", aside.name)
        if match is None or aside.is_symlink() or Path(f"/proc/{match[2]}").exists():
            continue
        with contextlib.suppress(FileNotFoundError):  # another process may be clearing up as well
            if match[1] == "old" and not path.exists():
                aside.rename(path)
            elif aside.is_dir():
                shutil.rmtree(aside, ignore_errors=True)
            else:
                aside.unlink()


def _aside(folder: Path) -> Path:
    """Return the name under which a folder is written."""
    return folder.with_name(f".{folder.name}.partial-{os.getpid()}")


def check_free(folder: Path, *, overwrite: bool) -> None:
    """Refuse a name that is taken.

    Raises:
        UsageError: If it is a file, a link, or a folder that may not be replaced.
    """
    if Path.cwd().is_relative_to(os.path.abspath(folder)):  # noqa: PTH100  `resolve` would follow links
        raise UsageError(
            f"{folder}: expected a folder of its own, got the working directory or one above; choose another"
        )
    try:
        _aside(folder).is_symlink()
    except OSError as error:
        raise UsageError(
            f"{folder}: expected a name for a folder, got: {error.strerror}; choose another --output"
        ) from error
    if str(folder).startswith("~"):
        raise UsageError(f"{folder}: expected a name for a folder, got ~, which is none here; write it out")
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UsageError(f"{folder}: expected a folder or a free name, got a file or a link; choose another --output")
    above = next(parent for parent in folder.absolute().parents if parent.exists())
    if not above.is_dir():
        raise UsageError(
            f"{folder}: expected a name for a folder, got one below the file {above}; choose another --output"
        )
    if folder.exists() and not overwrite:
        raise UsageError(f"{folder}: expected a free name, got a folder that is there; add --overwrite to replace it")
    manifest = read_manifest(folder) or {} if folder.exists() else {}
    if folder.exists() and any(folder.iterdir()) and "study" not in manifest:
        raise UsageError(
            f"{folder}: expected a folder written by hpsearch, got one without its {MANIFEST}; it is not replaced"
        )
    if "uid" in manifest:
        raise UsageError(
            f"{folder}: expected a free name or an exported model, got a checkpoint of study {manifest['study']!r}; it "
            f"is not replaced"
        )


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write what a folder holds; the last file to be written."""
    text = json.dumps(manifest, indent=2, ensure_ascii=False, sort_keys=True)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return a folder's manifest, or None where there is none to be read."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) else None


def _sync(folder: Path) -> None:
    """Force a folder's files to the disk, so that a rename never outlives what it names."""
    for path in [*folder.rglob("*"), folder]:
        _sync_one(path)


def _sync_one(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
