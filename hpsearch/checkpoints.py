"""Checkpoints of a study's best trials: at most a few on disk.

A checkpoint has the weights that were trained. Where that is the whole model, it is a plain Hugging Face folder; of a
model that was trained on a part of its vocabulary it is that part, with what it takes to put the full model together
from the base model. An export is a plain folder always.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from optuna.trial import TrialState
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from hpsearch.artifacts import place_of
from hpsearch.config import DROPOUTS
from hpsearch.errors import HpsearchError, StudyError, UsageError
from hpsearch.evidence import confirmation_of
from hpsearch.folders import appearing, clear_remains, read_manifest, write_manifest
from hpsearch.model import open_model
from hpsearch.vocabulary import Vocabulary, restore

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import optuna
    from numpy.typing import NDArray
    from optuna.trial import FrozenTrial
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hpsearch.config import Config
    from hpsearch.model import ModelSource
    from hpsearch.study import StudyPaths
    from hpsearch.trainer import Outcome

WEIGHTS = "model.safetensors"
ROWS = "vocabulary.safetensors"
"""The token ids whose rows `WEIGHTS` has, in a checkpoint with a part of the vocabulary."""


_ADVICE = "restore the file, or train the trial again by running a new study with the same settings"


class NotWrittenError(StudyError):
    """A model that the disk did not take; nothing of it is left."""


def write_checkpoint(
    study: optuna.Study,
    paths: StudyPaths,
    number: int,
    outcome: Outcome,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Write a trial's best weights; the folder takes its name when it is complete.

    Args:
        study: The study.
        paths: The study's paths.
        number: The trial's number.
        outcome: What the training came to, with the weights.
        model: The trained model, with the full model's config; its own weights are not used.
        tokenizer: The model's tokenizer.

    Raises:
        NotWrittenError: If the disk does not take it; nothing of it is left then.
    """
    folder = paths.checkpoint(number)
    vocabulary = outcome.vocabulary
    trimmed = {"size": vocabulary.size, "kept": len(vocabulary.rows), "decay": outcome.decay}
    with writing(folder, "a checkpoint"):
        if _is_of(study, folder):
            _delete(folder)  # of the same trial of this study, whose end was never recorded
        with appearing(folder) as aside:
            if vocabulary.is_whole:
                model.save_pretrained(aside, state_dict=outcome.weights)
            else:
                # Under the names in the model: what is put together with the base model later is its state, and
                # `save_pretrained` may rename what it saves.
                weights = {name: tensor.contiguous() for name, tensor in outcome.weights.items()}
                save_file(weights, aside / WEIGHTS, metadata={"format": "pt"})
                save_file({"rows": torch.from_numpy(vocabulary.rows)}, aside / ROWS)
                model.config.save_pretrained(aside)
            tokenizer.save_pretrained(aside)
            write_manifest(
                aside,
                {
                    "study": paths.study,
                    "uid": study.user_attrs["uid"],
                    "trial": number,
                    "value": outcome.value,
                    "best_step": outcome.best.step,
                    "scores": outcome.best.scores,
                    "effective": outcome.effective,
                    "vocabulary": None if vocabulary.is_whole else trimmed,
                },
            )


@contextlib.contextmanager
def writing(folder: Path, what: str) -> Iterator[None]:
    """Turn what a disk does not take into an error of ours.

    Args:
        folder: What is written.
        what: The same in words, such as `a checkpoint`.

    Raises:
        NotWrittenError: With the system's own words.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, HpsearchError):
            raise
        # The writers in Rust, of weights and of tokenizers, have errors of their own for what the system says.
        if not isinstance(error, OSError | SafetensorError) and "(os error " not in str(error):
            raise
        problem = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise NotWrittenError(f"{folder}: expected to write {what}, got: {problem}") from error


def is_trimmed(folder: Path) -> bool:
    """Tell whether a checkpoint has a part of the vocabulary, so that it takes the base model to read it."""
    return (read_manifest(folder) or {}).get("vocabulary") is not None  # the first version had no such key


def read_checkpoint(folder: Path, source: ModelSource, label_names: Sequence[str]) -> PreTrainedModel:
    """Return a checkpoint's model with the full vocabulary, in float32.

    Args:
        folder: The checkpoint.
        source: The model that the study was run on; not used for a checkpoint of a whole model.
        label_names: Names of the classes.

    Raises:
        StudyError: If files are missing or damaged, or do not fit each other or the model.
    """
    manifest = read_manifest(folder) or {}
    if manifest.get("vocabulary") is None:
        return _load_whole(folder)
    size, n_kept, decay = (manifest["vocabulary"][key] for key in ("size", "kept", "decay"))
    weights = _load(folder / WEIGHTS)
    rows = _load(folder / ROWS).get("rows", torch.empty(0)).numpy()
    if len(rows) != n_kept or rows.dtype != np.int64 or not _ascend(rows, size):
        raise StudyError(
            f"{folder / ROWS}: expected {n_kept:,} ascending token ids below {size:,}, got something else; {_ADVICE}"
        )
    effective = manifest["effective"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(effective["seed"])  # a model without pretrained weights starts where the training's did
        model = source.new_model(label_names, {name: effective[name] for name in DROPOUTS if name in effective})
    vocabulary = Vocabulary(size, rows)
    if (full_size := Vocabulary.whole(model).size) != size:
        raise StudyError(
            f"{folder}: expected a base model with an embedding of {size:,} rows, got {full_size:,} in "
            f"{source.config.name}; restore the model that the study was run on"
        )
    try:
        model.load_state_dict(restore(weights, model, vocabulary, decay))
    except (KeyError, RuntimeError) as error:
        raise StudyError(
            f"{folder / WEIGHTS}: expected the weights of a {type(model).__name__} with {n_kept:,} rows of its "
            f"embedding, got others: {' '.join(str(error).split())}; {_ADVICE}"
        ) from error
    return model


def model_of(study: optuna.Study, config: Config) -> ModelSource:
    """Open the model that a study was run on.

    Raises:
        UsageError: If it is no longer the same, or not there.
        HubError: If it is on a Hub that does not answer.
    """
    model = open_model(config.model, tuple(config.defaults.dropouts()))
    stored = study.user_attrs["lock"]["model"]
    if model.fingerprint != stored:
        raise UsageError(
            f"{config.model.name}: expected the model that study {study.study_name!r} was run on "
            f"(fingerprint {stored}), got another ({model.fingerprint}); restore the folder or revision"
        )
    return model


def worth_keeping(study: optuna.Study, value: float, n_kept: int) -> bool:
    """Tell whether a new value is among the best `n_kept` of the study."""
    better = [trial for trial in _complete(study) if (trial.value or 0.0) >= value]
    return len(better) < n_kept


def discard_checkpoints(study: optuna.Study, paths: StudyPaths, n_kept: int) -> list[int]:
    """Delete this study's checkpoints but those of its best complete trials and of its confirmation's winner.

    Only folders that this study wrote are deleted: named as its checkpoints are, with a manifest that says so, or left
    half written by a process that died. Those of running trials are left to the workers that write them.

    Returns:
        Numbers of the trials whose checkpoints were deleted.
    """
    finished, kept = _finished_and_kept(study, n_kept)
    deleted = []
    for folder in sorted(paths.folder.glob("trial-*")):
        number = _number(folder.name)
        if number in finished - kept and _is_of(study, folder):
            _delete(folder)
            deleted.append(number)
    for folder in paths.folder.glob(".trial-*.partial-*"):
        number = _number(folder.name.removeprefix(".").partition(".")[0])
        if number in finished:  # unless a process writes there, as a confirmation does
            clear_remains(paths.checkpoint(number))
    return deleted


def share_checkpoints(study: optuna.Study, paths: StudyPaths, n_kept: int) -> None:
    """Put the checkpoints that are kept and lie here where the study's are put for other machines, and tidy that place.

    Raises:
        HpsearchError: If it cannot be reached.
    """
    if (place := place_of(study)) is None:
        return
    finished, kept = _finished_and_kept(study, n_kept)
    there = place.numbers()
    for number in sorted(kept):
        if has_checkpoint(study, paths, number) and not (number in there and place.has(number)):
            place.put(number, paths.checkpoint(number))
    for number in there & (finished - kept):
        place.delete(number)


def _finished_and_kept(study: optuna.Study, n_kept: int) -> tuple[set[int], set[int]]:
    """Return the numbers of the trials that have ended, and of those whose weights are kept.

    Values do not change, so that what others have finished meanwhile makes no other trial one of the best. A trial that
    is not known to have ended may have written its checkpoint, here or elsewhere, and be complete in a moment.
    """
    ranked = sorted(_complete(study), key=lambda trial: (-(trial.value or 0.0), trial.number))
    finished = {trial.number for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()}
    kept = {trial.number for trial in ranked[:n_kept]}
    if (confirmation := confirmation_of(study)) is not None:
        kept.add(confirmation.winner.trial)
    return finished, kept


def check_folder(study: optuna.Study, paths: StudyPaths) -> None:
    """Refuse a folder that holds the checkpoints of another study of the same name, as of another database.

    Raises:
        UsageError: With the first of them.
    """
    for folder in sorted(paths.folder.glob("trial-*")):
        if read_manifest(folder) is not None and not _is_of(study, folder):
            raise UsageError(
                f"{folder}: expected checkpoints of study {paths.study!r} in this storage, got those of another study "
                f"of that name; choose another --study, or move that folder"
            )


def has_checkpoint(study: optuna.Study, paths: StudyPaths, number: int) -> bool:
    """Tell whether the weights of a trial of this study are on disk."""
    folder = paths.checkpoint(number)
    return _is_of(study, folder) and (read_manifest(folder) or {}).get("trial") == number


def find_checkpoint(study: optuna.Study, paths: StudyPaths, number: int) -> Path | None:
    """Return the folder of a trial's weights, fetched from where the study's are put if need be; None if nowhere.

    Raises:
        HpsearchError: If that place cannot be reached, or its checkpoint is damaged.
    """
    folder = paths.checkpoint(number)
    if has_checkpoint(study, paths, number):
        return folder
    place = place_of(study)
    if place is None or not place.has(number):
        return None
    place.fetch(number, folder)
    return folder


def checkpoint_of(study: optuna.Study, paths: StudyPaths, trial: FrozenTrial) -> Path:
    """Return the folder of a trial's weights, as `find_checkpoint` does.

    Raises:
        StudyError: If they are nowhere, or are another trial's.
    """
    if (found := find_checkpoint(study, paths, trial.number)) is not None:
        return found
    place = place_of(study)
    or_there = f" and none in {place.url}" if place else ""
    why = trial.user_attrs.get("checkpoint", "it was deleted or lies on another machine")
    raise StudyError(
        f"{paths.checkpoint(trial.number)}: expected the checkpoint of trial {trial.number}, got none{or_there}; "
        f"{why}. Copy it there, or run `hpsearch confirm --study {paths.study}`, which trains the winner again where "
        f"its weights are gone"
    )


def _load_whole(folder: Path) -> PreTrainedModel:
    try:
        model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
    except Exception as error:  # what broken files make transformers raise is no closed set
        problem = " ".join(str(error).split())
        raise StudyError(f"{folder}: expected the model of a checkpoint, got: {problem}; {_ADVICE}") from error
    return model


def _load(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        problem = "none" if isinstance(error, FileNotFoundError) else f"a damaged one ({error})"
        raise StudyError(f"{path}: expected a file of the checkpoint, got {problem}; {_ADVICE}") from error


def _ascend(rows: NDArray[Any], size: int) -> bool:
    return bool(rows.ndim == 1 and rows.size and np.all(np.diff(rows) > 0) and rows[0] >= 0 and rows[-1] < size)


def _is_of(study: optuna.Study, folder: Path) -> bool:
    """Tell whether a folder is a checkpoint that this very study wrote."""
    uid = (read_manifest(folder) or {}).get("uid")
    return uid is not None and not folder.is_symlink() and uid == study.user_attrs.get("uid")


def _delete(folder: Path) -> None:
    """Delete a checkpoint so that a kill on the way leaves nothing that looks like one."""
    aside = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    folder.rename(aside)
    shutil.rmtree(aside)


def _complete(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _number(name: str) -> int | None:
    match = re.fullmatch(r"trial-(\d{4,})", name)
    return int(match[1]) if match else None
