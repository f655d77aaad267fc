"""Checkpoints of a study's best trials: at most a few on disk, each a plain Hugging Face folder."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

from optuna.trial import TrialState

from hpsearch.errors import StudyError
from hpsearch.folders import appearing, read_manifest, write_manifest

if TYPE_CHECKING:
    from pathlib import Path

    import optuna
    from optuna.trial import FrozenTrial
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hpsearch.study import StudyPaths
    from hpsearch.trainer import Outcome


def write_checkpoint(
    paths: StudyPaths,
    number: int,
    outcome: Outcome,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Write a trial's best weights; the folder takes its name when it is complete.

    Args:
        paths: The study's paths.
        number: The trial's number.
        outcome: What the training came to, with the weights.
        model: A model of the trained shape; its own weights are not used.
        tokenizer: The model's tokenizer.
    """
    folder = paths.checkpoint(number)
    if read_manifest(folder) is not None:
        shutil.rmtree(folder)  # of this study's trial of the same number, whose end was never recorded
    with appearing(folder) as aside:
        model.save_pretrained(aside, state_dict=outcome.weights)
        tokenizer.save_pretrained(aside)
        write_manifest(
            aside,
            {
                "study": paths.study,
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
        manifest = read_manifest(folder)
        if number is None or number in kept or folder.is_symlink():
            continue
        if manifest is None or manifest.get("study") != paths.study:
            continue
        shutil.rmtree(folder)
        deleted.append(number)
    for folder in paths.folder.glob(".trial-*.partial-*"):
        shutil.rmtree(folder)
    return deleted


def checkpoint_of(paths: StudyPaths, trial: FrozenTrial) -> Path:
    """Return the folder of a trial's weights.

    Raises:
        StudyError: If it is not there, or is another trial's.
    """
    folder = paths.checkpoint(trial.number)
    manifest = read_manifest(folder)
    if manifest is None or manifest.get("trial") != trial.number or manifest.get("study") != paths.study:
        raise StudyError(
            f"{folder}: expected the checkpoint of trial {trial.number}, got none; it was deleted or lies on another "
            f"machine. Copy it there, or train it again by running a new study with the same settings"
        )
    return folder


def _complete(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _number(folder: Path) -> int | None:
    match = re.fullmatch(r"trial-(\d{4,})", folder.name)
    return int(match[1]) if match else None
