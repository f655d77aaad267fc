"""Token ids: as the model encodes, and kept on disk where nothing wrong is ever read from it."""

from __future__ import annotations

import concurrent.futures
import mmap
import multiprocessing
import resource
import shutil
import signal
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpsearch.config import ModelConfig
from hpsearch.model import open_model
from hpsearch.tokens import Tokens, tokenise
from tests.conftest import BAD, GOOD, WORDS, toy_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hpsearch.model import ModelSource

TEXTS = [text for text, _ in toy_rows(2_300, seed=3)]  # more than two chunks


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> ModelSource:
    return open_model(ModelConfig(name=str(tiny_model)), ())


def ids_of(tokens: Tokens) -> list[list[int]]:
    return [tokens[i].tolist() for i in range(len(tokens))]


def is_mapped(tokens: Tokens) -> bool:
    owner: object = tokens.ids
    while isinstance(owner, np.ndarray):
        owner = owner.base
    return isinstance(owner, mmap.mmap)


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()  # nothing that was left unfinished, either
    return path


class Counting:
    """A model that counts the texts it encodes."""

    def __init__(self, model: ModelSource) -> None:
        self._model = model
        self.fingerprint, self.max_length = model.fingerprint, model.max_length
        self.n_texts = 0

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        self.n_texts += len(texts)
        return self._model.encode(texts)


# --- The ids ----------------------------------------------------------------------------------------------------------


def test_texts_have_the_ids_that_the_model_encodes_them_to(model: ModelSource) -> None:
    tokens = tokenise(model, TEXTS, fingerprint="toy", cache=None)
    expected = model.encode(TEXTS)
    assert ids_of(tokens) == expected
    assert len(tokens) == len(TEXTS)
    assert tokens.lengths.tolist() == [len(ids) for ids in expected]
    assert tokens[-1].tolist() == expected[-1]
    assert tokens.ids.dtype == np.int32
    assert tokens.offsets.dtype == np.int64
    assert not is_mapped(tokens)
    assert tokens.not_kept == ""


def test_kept_ids_are_the_same_and_not_made_again(model: ModelSource, tmp_path: Path) -> None:
    cold = tokenise(model, TEXTS, fingerprint="toy", cache=tmp_path / "tokens")
    counting = Counting(model)
    warm = tokenise(counting, TEXTS, fingerprint="toy", cache=tmp_path / "tokens")  # type: ignore[arg-type]
    assert counting.n_texts == 0
    assert ids_of(cold) == ids_of(warm) == model.encode(TEXTS)
    assert warm.offsets.tolist() == cold.offsets.tolist()
    assert is_mapped(cold)
    assert is_mapped(warm)


@pytest.mark.parametrize("kept", [False, True])
def test_ids_cannot_be_changed_by_accident(model: ModelSource, tmp_path: Path, *, kept: bool) -> None:
    tokens = tokenise(model, TEXTS[:5], fingerprint="toy", cache=tmp_path if kept else None)
    with pytest.raises(ValueError, match="read-only"):
        tokens[0][0] = 7


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text() | st.lists(st.sampled_from([*WORDS, GOOD, BAD, "[SEP]", "\n"])).map(" ".join), max_size=8))
def test_any_texts_are_kept_as_they_are_encoded(model: ModelSource, tmp_path: Path, texts: list[str]) -> None:
    expected = model.encode(texts) if texts else []
    folder = tmp_path / "any"
    for _ in range(2):
        assert ids_of(tokenise(model, texts, fingerprint="any", cache=folder)) == expected
    shutil.rmtree(folder)


def test_no_texts_have_no_ids(model: ModelSource, tmp_path: Path) -> None:
    for _ in range(2):
        tokens = tokenise(model, [], fingerprint="none", cache=tmp_path)
        assert len(tokens) == 0
        assert ids_of(tokens) == []
        assert tokens.lengths.shape == (0,)
        assert is_mapped(tokens)


def test_a_text_of_special_tokens_and_an_empty_one_keep_their_place(model: ModelSource, tmp_path: Path) -> None:
    texts = ["", "[CLS] [SEP] [PAD]", "film", ""]
    for _ in range(2):
        tokens = tokenise(model, texts, fingerprint="special", cache=tmp_path)
        assert ids_of(tokens) == model.encode(texts)
        assert tokens.lengths.tolist() == [2, 5, 3, 2]


@pytest.mark.parametrize("index", [3, -4])
def test_a_text_that_is_not_there_is_refused(model: ModelSource, index: int) -> None:
    tokens = tokenise(model, TEXTS[:3], fingerprint="toy", cache=None)
    with pytest.raises(IndexError, match="out of range"):
        tokens[index]


# --- Which file -------------------------------------------------------------------------------------------------------


def test_other_texts_models_and_lengths_have_files_of_their_own(
    model: ModelSource, tiny_model: Path, tmp_path: Path
) -> None:
    short = open_model(ModelConfig(name=str(tiny_model), max_length=5), ())
    other = replace(model, fingerprint="another")
    for count, (source, fingerprint) in enumerate([(model, "a"), (model, "b"), (short, "a"), (other, "a")], start=1):
        tokens = tokenise(source, TEXTS[:9], fingerprint=fingerprint, cache=tmp_path)
        assert ids_of(tokens) == source.encode(TEXTS[:9])
        assert len(list(tmp_path.iterdir())) == count


def test_a_file_of_other_libraries_is_not_read(
    model: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenise(model, TEXTS[:9], fingerprint="toy", cache=tmp_path)
    monkeypatch.setattr("hpsearch.tokens.version", lambda name: "99")
    tokenise(model, TEXTS[:9], fingerprint="toy", cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


# --- Files that cannot be trusted -------------------------------------------------------------------------------------


def _flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def _vector(path: Path, words: np.ndarray) -> None:
    """Write what could be a file of ours, with a checksum that holds."""
    with path.open("wb") as file:
        np.save(file, words)
    content = path.read_bytes()
    path.write_bytes(content + zlib.crc32(content).to_bytes(4, "little"))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0\0\0\0"),
    "empty": lambda path: path.write_bytes(b""),
    "three bytes": lambda path: path.write_bytes(b"\0\0\0"),
    "an id changed": lambda path: _flip(path, -20),
    "a length changed": lambda path: _flip(path, 128 + 4),
    "the header changed": lambda path: _flip(path, 20),
    "the checksum changed": lambda path: _flip(path, -1),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "text": lambda path: path.write_text("input_ids\n" * 50),
    "other kind of number": lambda path: _vector(path, np.arange(4, dtype=np.float32)),
    "other shape": lambda path: _vector(path, np.zeros((3, 3), dtype=np.int32)),
    "no vector": lambda path: _vector(path, np.array(9, dtype=np.int32)),
    "no lengths": lambda path: _vector(path, np.array([9], dtype=np.int32)),
    "other number of texts": lambda path: _vector(path, np.array([2, *[1] * 10], dtype=np.int32)),
    "a negative length": lambda path: _vector(path, np.array([9, -1, 2, *[1] * 7, *[5] * 8], dtype=np.int32)),
    "too few ids": lambda path: _vector(path, np.array([9, *[1] * 9, *[5] * 8], dtype=np.int32)),
    "too many ids": lambda path: _vector(path, np.array([9, *[1] * 9, *[5] * 10], dtype=np.int32)),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_file_that_cannot_be_trusted_is_made_again(
    model: ModelSource, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    tokenise(model, TEXTS[:9], fingerprint="toy", cache=tmp_path)
    path = only_file(tmp_path)
    sound = path.read_bytes()
    damage(path)
    assert path.read_bytes() != sound
    tokens = tokenise(model, TEXTS[:9], fingerprint="toy", cache=tmp_path)
    assert ids_of(tokens) == model.encode(TEXTS[:9])
    assert is_mapped(tokens)
    assert only_file(tmp_path).read_bytes() == sound


def test_a_file_with_a_checksum_and_lengths_that_hold_is_read(model: ModelSource, tmp_path: Path) -> None:
    """What the refusals above are told from."""
    tokenise(model, TEXTS[:9], fingerprint="toy", cache=tmp_path)
    _vector(only_file(tmp_path), np.array([9, *[1] * 9, *[5] * 9], dtype=np.int32))
    assert ids_of(tokenise(model, TEXTS[:9], fingerprint="toy", cache=tmp_path)) == [[5]] * 9


# --- Folders that cannot be used --------------------------------------------------------------------------------------


def test_the_folder_may_be_deleted_while_its_files_are_in_use(model: ModelSource, tmp_path: Path) -> None:
    tokens = tokenise(model, TEXTS, fingerprint="toy", cache=tmp_path / "tokens")
    shutil.rmtree(tmp_path / "tokens")
    assert ids_of(tokens) == model.encode(TEXTS)
    assert is_mapped(tokenise(model, TEXTS, fingerprint="toy", cache=tmp_path / "tokens"))


def test_a_file_in_the_folders_place_costs_only_the_keeping(model: ModelSource, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("mine")
    tokens = tokenise(model, TEXTS[:9], fingerprint="toy", cache=tmp_path / "tokens")
    assert ids_of(tokens) == model.encode(TEXTS[:9])
    assert not is_mapped(tokens)
    assert str(tmp_path / "tokens") in tokens.not_kept
    assert "tokenises again" in tokens.not_kept
    assert (tmp_path / "tokens").read_text() == "mine"


def test_a_folder_in_the_files_place_stays(model: ModelSource, tmp_path: Path) -> None:
    tokenise(model, TEXTS[:9], fingerprint="toy", cache=tmp_path)
    path = only_file(tmp_path)
    path.unlink()
    (path / "inside").mkdir(parents=True)
    tokens = tokenise(model, TEXTS[:9], fingerprint="toy", cache=tmp_path)
    assert ids_of(tokens) == model.encode(TEXTS[:9])
    assert tokens.not_kept
    assert (only_file(tmp_path) / "inside").is_dir()


def test_a_folder_that_may_only_be_read_is_read(model: ModelSource, tmp_path: Path) -> None:
    """Also as the superuser, whom permissions do not stop, but who cannot write to /proc."""
    tokens = tokenise(model, TEXTS[:9], fingerprint="toy", cache=Path("/proc"))
    assert ids_of(tokens) == model.encode(TEXTS[:9])
    assert "/proc" in tokens.not_kept

    tokenise(model, TEXTS[:9], fingerprint="toy", cache=tmp_path)
    tmp_path.chmod(0o500)
    try:
        kept = tokenise(model, TEXTS[:9], fingerprint="toy", cache=tmp_path)
    finally:
        tmp_path.chmod(0o700)
    assert is_mapped(kept)
    assert kept.not_kept == ""


# --- Several processes ------------------------------------------------------------------------------------------------
#
# They are spawned, not forked: this one has the threads of torch.


def _on_a_full_disk(model_folder: Path, cache: Path) -> tuple[list[list[int]], bool, str]:
    """Tokenise where no file may grow beyond 1,000 bytes, which is how a full disk looks to a writer."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    tokens = tokenise(open_model(ModelConfig(name=str(model_folder)), ()), TEXTS, fingerprint="toy", cache=cache)
    return ids_of(tokens), is_mapped(tokens), tokens.not_kept


def _in_another_process(model_folder: Path, cache: Path) -> tuple[list[list[int]], bool, str]:
    tokens = tokenise(open_model(ModelConfig(name=str(model_folder)), ()), TEXTS, fingerprint="toy", cache=cache)
    return ids_of(tokens), is_mapped(tokens), tokens.not_kept


def _spawn(n_processes: int, work: Callable[[], tuple[list[list[int]], bool, str]]) -> list[tuple[object, ...]]:
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(n_processes, mp_context=context) as pool:
        return [future.result() for future in [pool.submit(work) for _ in range(n_processes)]]


@pytest.mark.slow
def test_a_full_disk_costs_only_the_keeping(model: ModelSource, tiny_model: Path, tmp_path: Path) -> None:
    ((ids, mapped, not_kept),) = _spawn(1, partial(_on_a_full_disk, tiny_model, tmp_path))
    assert ids == model.encode(TEXTS)
    assert not mapped
    assert str(tmp_path) in str(not_kept)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_second_process_maps_the_same_file(model: ModelSource, tiny_model: Path, tmp_path: Path) -> None:
    tokenise(model, TEXTS, fingerprint="toy", cache=tmp_path)
    before = only_file(tmp_path).stat()
    ((ids, mapped, not_kept),) = _spawn(1, partial(_in_another_process, tiny_model, tmp_path))
    assert ids == model.encode(TEXTS)
    assert mapped
    assert not_kept == ""
    after = only_file(tmp_path).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.slow
def test_two_processes_may_write_at_once(model: ModelSource, tiny_model: Path, tmp_path: Path) -> None:
    expected = model.encode(TEXTS)
    for ids, mapped, not_kept in _spawn(2, partial(_in_another_process, tiny_model, tmp_path)):
        assert ids == expected
        assert mapped
        assert not_kept == ""
    assert is_mapped(tokenise(model, TEXTS, fingerprint="toy", cache=tmp_path))
    only_file(tmp_path)
