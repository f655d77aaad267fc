"""The chosen trial's weights as a plain Hugging Face folder, checked before it takes its name."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpsearch.checkpoints import ROWS, WEIGHTS, checkpoint_of, is_trimmed, model_of, read_checkpoint
from hpsearch.choice import choose
from hpsearch.errors import HpsearchError
from hpsearch.folders import MANIFEST, appearing, check_free, read_manifest, write_manifest
from hpsearch.metrics import METRICS, confusion_matrix
from hpsearch.search import search_data_of
from hpsearch.study import standing, stored_config

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

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
        StudyError: If no trial is complete, or the checkpoint is gone or damaged.
        UsageError: If the output's name is taken, or the data or the model have changed.
        HpsearchError: If the reloaded model does not score the stored value; nothing is written then.
    """
    check_free(output, overwrite=overwrite)
    config = stored_config(study)
    choice = choose(study)
    trial = choice.trial
    checkpoint = checkpoint_of(study, paths, trial)
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
    with appearing(output, overwrite=overwrite) as aside:
        others = {MANIFEST} if model is None else {MANIFEST, WEIGHTS, ROWS}
        for path in sorted(checkpoint.iterdir()):
            if path.name not in others:
                shutil.copy2(path, aside / path.name)
        if model is not None:
            model.save_pretrained(aside)
        (aside / "README.md").write_text(_card(study, config, trial, data, manifest), encoding="utf-8")
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


def _card(study: optuna.Study, config: Config, trial: FrozenTrial, data: SearchData, manifest: dict[str, Any]) -> str:
    """Return the model card: what was done, with which figures, and what they are worth."""
    from huggingface_hub import EvalResult, ModelCardData

    # A local path tells a reader nothing but how the writer's disk is laid out.
    names = (config.model.name, config.data.train)
    model_name, data_name = (Path(name).name if Path(name).is_absolute() else name for name in names)
    counts = standing(study, config.search.trials)
    scores = trial.user_attrs["scores"]
    chosen = "The best"
    if manifest["chosen_by"] == "confirmation":
        chosen = "The best mean on fresh seeds (`hpsearch confirm`) among the best trials and the defaults,"
    head = ModelCardData(
        model_name=f"{study.study_name} trial {trial.number}",
        base_model=None if Path(config.model.name).is_absolute() or ":" in config.model.name else config.model.name,
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=["hpsearch", "optuna", "text-classification"],
        eval_results=[
            EvalResult(
                task_type="text-classification",
                dataset_type="validation",
                dataset_name=f"validation rows of {data_name}",
                metric_type=name,
                metric_value=round(value, 6),
            )
            for name, value in scores.items()
        ],
    )
    rows = "\n".join(f"| {name} | {_cell(value)} |" for name, value in sorted(manifest["params"].items()))
    figures = "\n".join(f"| {name} | {value:.4f} |" for name, value in scores.items())
    labels = ", ".join(f"`{_cell(name)}`" for name in data.label_names)
    return f"""---
{head.to_yaml()}
---

# {_cell(study.study_name)}, trial {trial.number}

A text classifier ({labels}), fine-tuned from `{_cell(model_name)}` with hyperparameters found by hpsearch.

```python
from transformers import pipeline

classify = pipeline("text-classification", "PATH_OF_THIS_FOLDER")
```

## How it was chosen

{chosen} of {counts.n_finished} trials ({counts.n_pruned} pruned, {counts.n_failed} failed) by {config.metric} on
{len(data.validation):,} validation rows; each trial was evaluated up to {config.search.evaluations} times and keeps
the weights of its best evaluation. Training rows: {len(data.train):,}. One seed ({config.search.seed}), never tuned.
The test split was not read for any of this.

| hyperparameter | value |
| --- | --- |
{rows}

## Figures

On the {len(data.validation):,} validation rows, best evaluation {trial.user_attrs["best_step"]} of
{config.search.evaluations}:

| metric | value |
| --- | --- |
{figures}

The best of many trials looks better on its validation rows than it is. `hpsearch compare` measures it on the sealed
test split, against the defaults and over several seeds.

## Data

`{_cell(data_name)}`, fingerprint `{data.fingerprint()}`. This card quotes no row of it.
"""


def _cell(value: object) -> str:
    """Return a value as it may stand in a Markdown table."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    for mark in ("\\", "|", "`", "<", "[", "*"):
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())
