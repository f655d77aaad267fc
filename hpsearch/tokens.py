"""Token ids of a split, made once and kept on disk: the trials and workers of a study map the same file into memory.

A file is named by everything that its ids depend on, so that none is ever out of date: the texts, the model's
tokenizer files and maximal length, the versions of the libraries that tokenise, and the format below.

The folder only saves time. Whoever owns the studies may delete it, or files in it, at any moment: a running search
keeps what it has mapped (on a local disk), and the next one tokenises again. Nothing is ever deleted here but a
process's own unfinished file, so files of texts or models no longer used stay until somebody does.

A file is read only if its checksum, its number of texts and its lengths hold; else it is made again. That its ids are
those of the texts is not checked: who may write to the folder may change what is learnt.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import secrets
import zlib
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np

from hpsearch.folders import clear_remains

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from hpsearch.model import ModelSource

_FORMAT = 1
_CHUNK = 1000  # texts tokenised at once: what the tokenizer returns takes some hundred bytes a token until it is copied
_CHECKSUM_BYTES = 4


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """Token ids of many texts, one after the other; not writable."""

    ids: NDArray[np.int32]
    """Shape (n_tokens,); memory-mapped where they are kept on disk."""
    offsets: NDArray[np.int64]
    """Text i has the ids from offsets[i] to offsets[i + 1]; shape (n_texts + 1,)."""
    not_kept: str = ""
    """Why the ids are in memory only although they were to be kept, in one line for a person; else empty."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each text, shape (n_texts,)."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> NDArray[np.int32]:
        """Return a view of one text's ids; negative indices count from the end."""
        i = range(len(self))[index]
        return self.ids[self.offsets[i] : self.offsets[i + 1]]


def tokenise(model: ModelSource, texts: Sequence[str], *, fingerprint: str, cache: Path | None) -> Tokens:
    """Return the ids that `model.encode` gives for each text, from the cache where it has them.

    Several processes may do this at once for the same texts: each writes a file of its own and renames it, and all of
    them are the same. A folder that cannot be written, or is full, costs nothing but the time: the ids are returned
    in memory, with the reason in `not_kept`.

    Args:
        model: Whose tokenizer and maximal length are used.
        texts: Any number of texts.
        fingerprint: Identifies the texts and their order, such as `Split.fingerprint()`.
        cache: The folder, which need not be there; None keeps nothing.
    """
    if cache is None:
        return _tokenise(model, texts)
    path = cache / _file_name(model, fingerprint)
    kept = _read(path, n_texts=len(texts))
    if kept is not None:
        return kept
    made = _tokenise(model, texts)
    try:
        _write(path, made)
    except OSError as error:
        problem = f"{cache}: expected to keep the token ids there, got: {error.strerror or error}"
        return replace(made, not_kept=f"{problem}; the next run tokenises again")
    kept = _read(path, n_texts=len(texts))  # so that the memory is shared with every process that reads the file
    return made if kept is None else kept


def _file_name(model: ModelSource, fingerprint: str) -> str:
    libraries = [version("tokenizers"), version("transformers")]
    parts = json.dumps([_FORMAT, model.fingerprint, model.max_length, fingerprint, libraries])
    return hashlib.sha256(parts.encode()).hexdigest()[:32] + ".npy"


def _tokenise(model: ModelSource, texts: Sequence[str]) -> Tokens:
    lengths, parts = [0], [np.empty(0, dtype=np.int32)]
    for start in range(0, len(texts), _CHUNK):
        ids = model.encode(texts[start : start + _CHUNK])
        lengths += [len(text) for text in ids]
        parts.append(np.fromiter(itertools.chain.from_iterable(ids), dtype=np.int32))
    joined = np.concatenate(parts)
    joined.flags.writeable = False  # as a mapped file is
    return Tokens(joined, np.cumsum(lengths, dtype=np.int64))


# --- The file ---------------------------------------------------------------------------------------------------------
#
# One .npy vector of int32: the number of texts, the length of each, and the ids of all. The CRC-32 of the .npy follows.


def _write(path: Path, tokens: Tokens) -> None:
    """Write a file aside and give it its name when it is complete.

    It is not forced to the disk: a file that a crash of the machine left incomplete fails its checksum.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_remains(path)
    aside = path.with_name(f".{path.name}.partial-{os.getpid()}-{secrets.token_hex(8)}")
    try:
        with aside.open("xb") as file:
            np.save(file, np.concatenate([[len(tokens)], tokens.lengths, tokens.ids], dtype=np.int32))
        content = np.memmap(aside, dtype=np.uint8, mode="r")
        with aside.open("ab") as file:
            file.write(zlib.crc32(content.data).to_bytes(_CHECKSUM_BYTES, "little"))
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _read(path: Path, *, n_texts: int) -> Tokens | None:
    """Return what a file holds, mapped into memory, or None where there is none that can be trusted."""
    try:
        content = np.memmap(path, dtype=np.uint8, mode="r")
        checksum = int.from_bytes(content[-_CHECKSUM_BYTES:].tobytes(), "little")
        # Before the header is parsed: what garbled ones make NumPy raise is no closed set.
        if zlib.crc32(content[:-_CHECKSUM_BYTES].data) != checksum:
            return None
        words = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        return None
    if words.dtype != np.int32 or words.ndim != 1 or len(words) <= n_texts or words[0] != n_texts:
        return None
    # As plain arrays, which are mapped all the same: a slice of a memmap takes seven times as long as one of theirs.
    lengths, ids = np.split(words[1:].view(np.ndarray), [n_texts])
    if lengths.min(initial=0) < 0 or lengths.sum(dtype=np.int64) != len(ids):
        return None
    return Tokens(ids, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))
