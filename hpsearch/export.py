"""The chosen trial's weights as a plain Hugging Face folder, checked before it takes its name."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np

from hpsearch.card import SEARCH_FILE, model_card, search_tree
from hpsearch.checkpoints import ROWS, WEIGHTS, checkpoint_of, is_trimmed, model_of, read_checkpoint, writing
from hpsearch.choice import choose
from hpsearch.errors import HpsearchError, StudyError, UsageError
from hpsearch.folders import MANIFEST, appearing, check_free, read_manifest, write_manifest
from hpsearch.hub import pickles_in
from hpsearch.metrics import METRICS, confusion_matrix
from hpsearch.search import search_data_of
from hpsearch.study import stored_config

if TYPE_CHECKING:
    from pathlib import Path

    import optuna

    from hpsearch.config import Config
    from hpsearch.data import SearchData
    from hpsearch.study import StudyPaths

_DIGITS = (
    4  # float32 sums differ in their last bits with the padding of a batch, the score of thousands of rows does not
)


@dataclass(frozen=True, slots=True)
class Export:
    """A model folder that was written."""

    folder: Path
    study: str
    trial: int
    metric: str
    stored_value: float
    """Of the trial's checkpoint: the trial's value in the study, unless it was trained again on another machine."""
    reloaded_value: float
    """The same metric on the same rows by the folder itself, in a fresh process."""
    chosen_by: str
    """How the trial was chosen: `confirmation` or `search`."""
    note: str = ""
    """Why a confirmation was not followed; else empty."""


def export_best(study: optuna.Study, paths: StudyPaths, output: Path, *, overwrite: bool) -> Export:
    """Write the chosen trial's model, reload it in a fresh process and compare its score with the stored one.

    The trial is the confirmation's winner where there is one, else the search's best. Where it was trained on a part of
    the vocabulary, the rest comes from the model that the study was run on.

    Args:
        study: The study.
        paths: The study's paths.
        output: The folder to make.
        overwrite: Whether a model folder of that name, written by hpsearch, is replaced.

    Raises:
        StudyError: If no trial is complete, the checkpoint is gone or damaged, or the disk does not take the model.
        UsageError: If the output's name is taken, or the data or the model have changed.
        HpsearchError: If the reloaded model does not score the stored value; nothing is written then.
    """
    check_free(output, overwrite=overwrite)
    if paths.writes_to(output):
        raise UsageError(
            f"{output}: expected a folder that is the export's own, got one that study {paths.study!r} writes to; "
            f"choose another --output, such as {paths.best}"
        )
    config = stored_config(study)
    choice = choose(study)
    trial = choice.trial
    checkpoint = checkpoint_of(study, paths, trial)
    if pickles := pickles_in(checkpoint):
        raise StudyError(
            f"{checkpoint}: expected the files of a checkpoint, got {', '.join(pickles)} as well, which hpsearch did "
            f"not write and which can run code when opened; take them out"
        )
    stored_value = float((read_manifest(checkpoint) or {})["value"])
    data = search_data_of(study, config)
    model = None
    if is_trimmed(checkpoint):
        model = read_checkpoint(checkpoint, model_of(study, config), data.label_names)
    manifest = {
        "study": study.study_name,
        "trial": trial.number,
        "chosen_by": choice.chosen_by,
        "metric": config.metric,
        "value": stored_value,
        "params": trial.params,
        "effective": trial.user_attrs["effective"],
        "confusion": trial.user_attrs["confusion"],
        "labels": list(data.label_names),
        "validation_rows": len(data.validation),
        "data_fingerprint": data.fingerprint(),
        "versions": {name: version(name) for name in ("hpsearch", "transformers", "torch", "optuna", "datasets")},
    }
    with writing(output, "a model"), appearing(output, overwrite=overwrite) as aside:
        others = {MANIFEST} if model is None else {MANIFEST, WEIGHTS, ROWS}
        for path in sorted(checkpoint.iterdir()):
            if path.name not in others:
                shutil.copy2(path, aside / path.name)
        if model is not None:
            model.save_pretrained(aside)
        model_card(study, config, trial, data).save(aside / "README.md")
        _write_search(config, aside / SEARCH_FILE)
        value = _score_in_fresh_process(aside, config.metric, data)
        if round(value, _DIGITS) != round(stored_value, _DIGITS):
            raise HpsearchError(
                f"{checkpoint}: expected the reloaded model to score the stored {config.metric} {stored_value:.6f} on "
                f"the validation rows, got {value:.6f}; the checkpoint was changed, so nothing was exported"
            )
        write_manifest(aside, {**manifest, "reloaded_value": value})
    return Export(
        folder=output,
        study=study.study_name,
        trial=trial.number,
        metric=config.metric,
        stored_value=stored_value,
        reloaded_value=value,
        chosen_by=choice.chosen_by,
        note=choice.note,
    )


def _score_in_fresh_process(folder: Path, metric: str, data: SearchData) -> float:
    result = subprocess.run(
        [sys.executable, "-m", "hpsearch.predict", str(folder.absolute())],
        input=json.dumps(data.validation.texts),
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    if result.returncode:
        raise HpsearchError(
            f"{folder}: expected a model that loads in a fresh process, got exit status {result.returncode}:\n"
            f"{result.stderr.strip()[-2000:]}"
        )
    ids = {name: i for i, name in enumerate(data.label_names)}
    predicted = np.array([ids[max(answer, key=answer.__getitem__)] for answer in json.loads(result.stdout)])
    return float(METRICS[metric](confusion_matrix(data.validation.labels, predicted, len(ids))))


def _write_search(config: Config, path: Path) -> None:
    """Write the search's configuration as a file to run it again with."""
    from ruamel.yaml import YAML

    with path.open("w", encoding="utf-8") as file:
        YAML(pure=True).dump(search_tree(config), file)  # in the order of the keys
