"""Labels and probabilities from a model folder, by `transformers.pipeline` alone.

Nothing of the search is used here: what this module says of a folder is what any user of transformers would see.
`python -m hpsearch.predict FOLDER` reads a JSON list of texts on stdin and writes one of predictions to stdout; an
export is checked that way, in a process of its own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpsearch.errors import UsageError
from hpsearch.hub import own_code

if TYPE_CHECKING:
    from collections.abc import Sequence

_BATCH = 64  # texts


def predict(folder: Path, texts: Sequence[str]) -> list[dict[str, float]]:
    """Return the probability of each label for each text, most likely label first.

    Raises:
        UsageError: If the folder holds no model with safetensors weights, or a text is no Unicode.
    """
    if not _is_model_folder(folder):
        raise UsageError(
            f"{folder}: expected a model folder with config.json and safetensors weights, got none; "
            f"make one with `hpsearch export-best`"
        )
    for number, text in enumerate(texts, start=1):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"text {number}: expected Unicode text, got {text!r}") from error
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, use_safetensors=True, trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # what broken files make these libraries raise is no closed set
        problem = " ".join(str(error).split())
        raise UsageError(f"{folder}: expected a model that transformers can load, got: {problem}") from error
    if problem := own_code((model.config, tokenizer)):
        raise UsageError(f"{folder}: {problem}")
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer)
    # Batches of similar length need little padding; the answers go back to their texts' places.
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    answers: Any = classify([texts[i] for i in order], top_k=None, truncation=True, batch_size=_BATCH) if order else []
    by_text = dict(zip(order, answers, strict=True))
    return [{answer["label"]: answer["score"] for answer in by_text[i]} for i in range(len(texts))]


def _is_model_folder(folder: Path) -> bool:
    try:
        return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))
    except OSError:  # such as a name that is too long
        return False


if __name__ == "__main__":
    json.dump(predict(Path(sys.argv[1]), json.load(sys.stdin)), sys.stdout)
