"""What a study takes of the disk, and whether there is room for what it may still write."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from hpsearch.study import StudyPaths

_BESIDES = 100 * 2**20  # bytes: database, log, token ids, tokenizers
_DATABASE = "*.db*"


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes that a study has on disk."""

    checkpoints: int
    n_checkpoints: int
    others: int
    """In the study's folder: the log, the export, comparisons."""
    database: int
    """The databases beside the study's folder, which all studies there share."""


def usage(paths: StudyPaths) -> Usage:
    """Return what a study takes, as far as it can be read while others write."""
    checkpoints = list(paths.folder.glob("trial-*"))
    in_checkpoints = sum(map(_bytes, checkpoints))
    return Usage(
        checkpoints=in_checkpoints,
        n_checkpoints=len(checkpoints),
        others=_bytes(paths.folder) - in_checkpoints,
        database=sum(map(_bytes, paths.root.glob(_DATABASE))),
    )


def shortage(paths: StudyPaths, *, weights: int, n_kept: int) -> str | None:
    """Return a warning where a search may fill the disk, else None.

    Args:
        paths: The study's.
        weights: Bytes of a checkpoint, at most.
        n_kept: Checkpoints that stay; one more is there while it is written.
    """
    folder = next(path for path in (paths.folder, *paths.folder.absolute().parents) if path.exists())
    wanted = (n_kept + 1) * weights + _BESIDES - sum(map(_bytes, paths.folder.glob("trial-*")))
    free = shutil.disk_usage(folder).free
    if free >= wanted:
        return None
    return (
        f"{folder}: expected {megabytes(wanted)} free for {n_kept} checkpoints and one being written, got "
        f"{megabytes(free)}; free some, or keep fewer with --set search.keep_checkpoints=1. The search goes on without "
        f"a checkpoint that finds no room"
    )


def megabytes(n_bytes: int) -> str:
    """Return bytes for people to read."""
    return f"{n_bytes / 1e6:,.1f} MB"


def _bytes(path: Path) -> int:
    """Return the size of a file, or of all below a folder; what has gone in the meantime counts nothing."""
    files = path.rglob("*") if path.is_dir() else [path]
    total = 0
    for file in files:
        try:
            total += file.lstat().st_size if not file.is_dir() else 0
        except OSError:
            continue
    return total
