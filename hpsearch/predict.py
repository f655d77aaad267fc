"""Labels and probabilities from a model folder, by `transformers.pipeline` alone.

Nothing of the search is used here: what this module says of a folder is what any user of transformers would see.
`python -m hpsearch.predict FOLDER` reads a JSON list of texts on stdin and writes one of predictions to stdout; an export is
checked that way, in a process of its own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hpsearch.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

_BATCH = 64  # texts


def predict(folder: Path, texts: Sequence[str]) -> list[dict[str, float]]:
    """Return the probability of each label for each text, most likely label first.

    Raises:
        UsageError: If the folder holds no model with safetensors weights.
    """
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise UsageError(
            f"{folder}: expected a model folder with config.json and safetensors weights, got none; "
            f"make one with `hpsearch export-best`"
        )
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = AutoModelForSequenceClassification.from_pretrained(folder, use_safetensors=True, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer)
    # Batches of similar length need little padding; the answers go back to their texts' places.
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    answers = classify([texts[i] for i in order], top_k=None, truncation=True, batch_size=_BATCH) if order else []
    by_text = dict(zip(order, answers, strict=True))
    return [{answer["label"]: answer["score"] for answer in by_text[i]} for i in range(len(texts))]


if __name__ == "__main__":
    json.dump(predict(Path(sys.argv[1]), json.load(sys.stdin)), sys.stdout)
