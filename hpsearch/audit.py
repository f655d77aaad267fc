"""The data as a search will see it: sizes, balance, lengths, blanks, duplicates, overlaps, and one example in full."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from hpsearch.data import load_search_data, load_test, overlap_key
from hpsearch.model import open_model

if TYPE_CHECKING:
    from hpsearch.config import Config
    from hpsearch.data import Split
    from hpsearch.model import ModelSource


def inspect_data(config: Config) -> dict[str, Any]:
    """Return what there is to know about the splits before a search, as a JSON document.

    Raises:
        UsageError: If data or model cannot be used.
        HubError: If something lives on a Hub that does not answer.
    """
    data = load_search_data(config.data)
    test = load_test(config.data)
    model = open_model(config.model, tuple(config.defaults.dropouts()))
    splits = {"train": data.train, "validation": data.validation, "test": test}
    texts = {name: {overlap_key(text) for text in split.texts} for name, split in splits.items()}
    first = data.train.texts[0]
    ids = model.encode([first])[0]
    return {
        "source": config.data.train,
        "fingerprint": data.fingerprint(),
        "labels": list(data.label_names),
        "max_length": model.max_length,
        "splits": {name: _describe(split, data.label_names, model) for name, split in splits.items()},
        "overlaps": {
            f"{a}_{b}": sum(overlap_key(text) in texts[b] for text in splits[a].texts)
            for a, b in (("train", "validation"), ("train", "test"), ("validation", "test"))
        },
        "example": {
            "row": int(data.train.rows[0]),
            "text": first,
            "label": data.label_names[int(data.train.labels[0])],
            "tokens": model.tokenizer.convert_ids_to_tokens(ids),
            "ids": ids,
        },
    }


def _describe(split: Split, label_names: tuple[str, ...], model: ModelSource) -> dict[str, Any]:
    ids = model.tokenizer(list(split.texts), truncation=False, verbose=False)["input_ids"]
    lengths = np.array([len(text) for text in ids])
    unknown = sum(text.count(model.tokenizer.unk_token_id) for text in ids) if model.tokenizer.unk_token else 0
    counts = Counter(split.labels.tolist())
    return {
        "sampled": split.n_sampled,
        "blank": split.n_blank,
        "dropped_overlaps": split.n_overlaps,
        "rows": len(split),
        "label_counts": {name: counts[i] for i, name in enumerate(label_names)},
        "duplicates": len(split) - len({overlap_key(text) for text in split.texts}),
        "tokens": {
            "min": int(lengths.min()),
            "median": float(np.median(lengths)),
            "mean": round(float(lengths.mean()), 2),
            "p95": float(np.percentile(lengths, 95)),
            "max": int(lengths.max()),
        },
        "cut": int((lengths > model.max_length).sum()),
        "unknown_share": round(unknown / int(lengths.sum()), 6),
    }
