"""A place for checkpoints that every machine reaches: a shared folder, or an object store that fsspec knows."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tenacity

from hpsearch.errors import HpsearchError, StudyError, UsageError
from hpsearch.folders import MANIFEST, appearing, read_manifest, write_manifest
from hpsearch.study import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import optuna

_ATTRIBUTE = "artifacts"
_FILES = "files"  # of a manifest there: the SHA-256 of each file


def check_place(given: str) -> str:
    """Return the address of a place, absolute if it is a folder, after something was written there and deleted again.

    Raises:
        UsageError: If it is none, or cannot be written to.
    """
    if redact(given) != given:
        raise UsageError(
            f"--artifacts {redact(given)}: expected no password, which would be kept with the study; give it where the "
            f"store's own tools look for it"
        )
    url = given if re.match(r"\w+:", given) else str(Path(given).expanduser().absolute())
    try:
        with _explained(url, "be written to"):
            files, root = _open(url)
            probe = f"{root}/.probe-{secrets.token_hex(8)}"
            files.makedirs(root, exist_ok=True)
            files.pipe_file(probe, b"")
            files.rm_file(probe)
    except StudyError as error:
        raise UsageError(str(error)) from error
    return url


def remember(study: optuna.Study, url: str) -> None:
    """Keep with a study where its checkpoints are put."""
    if study.user_attrs.get(_ATTRIBUTE) != url:
        study.set_user_attr(_ATTRIBUTE, url)


def place_of(study: optuna.Study) -> Place | None:
    """Return where a study's checkpoints are put besides the folder of the worker, None if nowhere."""
    url = study.user_attrs.get(_ATTRIBUTE)
    return Place(url, f"{study.study_name}-{study.user_attrs['uid']}") if url else None


class Place:
    """Where one study's checkpoints are; each is there with its manifest, which is written last and deleted first."""

    def __init__(self, url: str, name: str) -> None:
        """Take the address that all studies share, and the name of this one's folder there."""
        self.url = f"{url.rstrip('/')}/{name}"

    def numbers(self) -> set[int]:
        """Return the numbers of the trials whose checkpoints are there, complete or not."""
        with _explained(self.url, "be listed"):
            files, root = _open(self.url)
            if not files.exists(root):
                return set()
            names = (str(path).rstrip("/").rpartition("/")[2] for path in files.ls(root, detail=False))
            return {int(name.removeprefix("trial-")) for name in names if re.fullmatch(r"trial-\d{4,}", name)}

    def has(self, number: int) -> bool:
        """Say whether a trial's checkpoint is there, complete."""
        with _explained(self.url, "be read"):
            files, root = _open(self.url)
            path = f"{_folder(root, number)}/{MANIFEST}"
            try:
                return bool(files.exists(path) and json.loads(files.cat_file(path))["trial"] == number)
            except (ValueError, KeyError, TypeError):  # half written
                return False

    def put(self, number: int, folder: Path) -> None:
        """Put a trial's checkpoint there.

        Raises:
            StudyError: If that cannot be done.
        """
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        names.remove(MANIFEST)
        sums = {name: _sha256(folder / name) for name in names}
        manifest = json.dumps({**(read_manifest(folder) or {}), _FILES: sums}, ensure_ascii=False)

        def put() -> None:
            files, root = _open(self.url)
            there = _folder(root, number)
            for name in names:
                files.makedirs(f"{there}/{name}".rpartition("/")[0], exist_ok=True)
                files.put_file(str(folder / name), f"{there}/{name}")
            files.pipe_file(f"{there}/{MANIFEST}", manifest.encode())

        with _explained(self.url, "take a checkpoint"):
            _patiently(put)

    def fetch(self, number: int, folder: Path) -> None:
        """Write a trial's checkpoint to a folder, which takes its name when it is complete.

        Raises:
            StudyError: If it cannot be read, or is damaged.
        """
        with appearing(folder) as aside, _explained(self.url, f"give the checkpoint of trial {number}"):
            files, root = _open(self.url)
            there = _folder(root, number)
            manifest = json.loads(files.cat_file(f"{there}/{MANIFEST}"))
            for name, expected in manifest.pop(_FILES).items():
                target = aside / name
                if not target.resolve().is_relative_to(aside.resolve()):
                    raise ValueError(f"a file of the name {name!r}")
                target.parent.mkdir(parents=True, exist_ok=True)
                files.get_file(f"{there}/{name}", str(target))
                if (found := _sha256(target)) != expected:
                    raise ValueError(f"{name} with SHA-256 {found} in place of {expected}")
            write_manifest(aside, manifest)

    def delete(self, number: int) -> None:
        """Delete a trial's checkpoint; another worker may be doing so."""
        with _explained(self.url, "have a checkpoint deleted"), contextlib.suppress(FileNotFoundError):
            files, root = _open(self.url)
            with contextlib.suppress(FileNotFoundError):
                files.rm_file(f"{_folder(root, number)}/{MANIFEST}")
            files.rm(_folder(root, number), recursive=True)


def _open(url: str) -> tuple[Any, str]:
    """Return fsspec's file system and the path on it, with nothing remembered of what was there before."""
    from fsspec.core import url_to_fs

    files, root = url_to_fs(url)
    files.invalidate_cache()
    return files, str(root).rstrip("/")


def _folder(root: str, number: int) -> str:
    return f"{root}/trial-{number:04d}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _patiently(what: Callable[[], None]) -> None:
    """Do something over a network: up to three times."""
    for attempt in tenacity.Retrying(
        retry=tenacity.retry_if_not_exception_type(HpsearchError),
        stop=tenacity.stop_after_attempt(3),
        wait=tenacity.wait_random_exponential(1, max=10),
        reraise=True,
    ):
        with attempt:
            what()


@contextlib.contextmanager
def _explained(url: str, purpose: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise UsageError(f"--artifacts {url}: expected a store whose driver is there, got: {error}") from error
    except HpsearchError:  # such as of a watchdog
        raise
    except Exception as error:  # each store has errors of its own
        problem = " ".join(str(error).split()) or type(error).__name__
        raise StudyError(
            f"--artifacts {url}: expected a folder or an object store that can {purpose}, got: {problem}; see to it "
            f"that this machine reaches it, and may read and write there"
        ) from error
