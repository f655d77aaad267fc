"""Checkpoints of a study's best trials: at most a few on disk, each a plain Hugging Face folder."""

from __future__ import annotations

import os
import re
import shutil
from typing import TYPE_CHECKING

from optuna.trial import TrialState

from hpsearch.errors import StudyError, UsageError
from hpsearch.folders import appearing, read_manifest, write_manifest

if TYPE_CHECKING:
    from pathlib import Path

    import optuna
    from optuna.trial import FrozenTrial
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hpsearch.study import StudyPaths
    from hpsearch.trainer import Outcome


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
        model: A model of the trained shape; its own weights are not used.
        tokenizer: The model's tokenizer.
    """
    folder = paths.checkpoint(number)
    if _is_of(study, folder):
        _delete(folder)  # of the same trial of this study, whose end was never recorded
    with appearing(folder) as aside:
        model.save_pretrained(aside, state_dict=outcome.weights)
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
            },
        )


def worth_keeping(study: optuna.Study, value: float, n_kept: int) -> bool:
    """Tell whether a new value is among the best `n_kept` of the study."""
    better = [trial for trial in _complete(study) if (trial.value or 0.0) >= value]
    return len(better) < n_kept


def discard_checkpoints(study: optuna.Study, paths: StudyPaths, n_kept: int) -> list[int]:
    """Delete this study's checkpoints but those of its best complete trials.

    Only folders that this study wrote are deleted: named as its checkpoints are, with a manifest that says so, or left
    half written by a process that died.

    Returns:
        Numbers of the trials whose checkpoints were deleted.
    """
    ranked = sorted(_complete(study), key=lambda trial: (-(trial.value or 0.0), trial.number))
    kept = {trial.number for trial in ranked[:n_kept]}
    deleted = []
    for folder in sorted(paths.folder.glob("trial-*")):
        number = _number(folder)
        if number is not None and number not in kept and _is_of(study, folder):
            _delete(folder)
            deleted.append(number)
    for folder in paths.folder.glob(".trial-*.partial-*"):
        shutil.rmtree(folder)
    return deleted


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


def checkpoint_of(study: optuna.Study, paths: StudyPaths, trial: FrozenTrial) -> Path:
    """Return the folder of a trial's weights.

    Raises:
        StudyError: If it is not there, or is another trial's.
    """
    folder = paths.checkpoint(trial.number)
    if not _is_of(study, folder) or (read_manifest(folder) or {}).get("trial") != trial.number:
        raise StudyError(
            f"{folder}: expected the checkpoint of trial {trial.number}, got none; it was deleted or lies on another "
            f"machine. Copy it there, or train it again by running a new study with the same settings"
        )
    return folder


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


def _number(folder: Path) -> int | None:
    match = re.fullmatch(r"trial-(\d{4,})", folder.name)
    return int(match[1]) if match else None
