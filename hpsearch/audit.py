"""The data as a search will see it: sizes, balance, lengths, blanks, duplicates, overlaps, and one example in full."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hpsearch.data import load_search_data, load_test, overlap_key
from hpsearch.model import open_model

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hpsearch.config import Config
    from hpsearch.data import SearchData, Split
    from hpsearch.model import ModelSource

_RARE_SHARE = 0.05  # of the training rows: of a rarer label a classifier learns little
_DUPLICATE_SHARE = _BLANK_SHARE = _UNKNOWN_SHARE = 0.01
_CUT_SHARE = 0.05
_FEW_ROWS = 200  # of validation: an accuracy of 0.8 then has a standard error of 2.8 points


@dataclass(frozen=True, slots=True)
class Check:
    """Something that was looked at before a search."""

    level: str
    """`ok`, `warn` where a person should look, `fail` where a search would fail."""
    subject: str
    """Such as `data` or `disk`."""
    text: str
    hint: str = ""
    """What to do, or empty."""


def inspect_data(config: Config) -> dict[str, Any]:
    """Return what there is to know about the splits before a search, as a JSON document.

    Raises:
        UsageError: If data or model cannot be used.
        HubError: If something lives on a Hub that does not answer.
    """
    document = describe(
        config,
        load_search_data(config.data),
        load_test(config.data),
        open_model(config.model, tuple(config.defaults.dropouts())),
    )
    return {**document, "checks": [asdict(check) for check in data_checks(document)]}


def describe(config: Config, data: SearchData, test: Split, model: ModelSource) -> dict[str, Any]:
    """Return what there is to know about rows and a model that have been read."""
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


def data_checks(document: dict[str, Any]) -> Iterator[Check]:
    """Yield what is noteworthy in a document of `describe`: the sizes, and each thing that a person should look at."""
    splits = document["splits"]
    train, validation, test = (splits[name] for name in ("train", "validation", "test"))
    shares = {name: n / train["rows"] for name, n in train["label_counts"].items()}
    rarest = min(shares, key=shares.__getitem__)
    yield Check(
        "ok",
        "data",
        f"train {train['rows']:,}   validation {validation['rows']:,}   test {test['rows']:,} (sealed)   "
        f"{len(shares)} labels, the rarest {shares[rarest]:.1%}   up to {train['tokens']['max']} tokens",
    )
    for name, split in splits.items():
        yield from _checks_of_split(name, split)
    if shares[rarest] < _RARE_SHARE:
        yield Check(
            "warn",
            "data",
            f"label {rarest!r} is {shares[rarest]:.1%} of the training rows ({train['label_counts'][rarest]:,})",
            "a rare label is hardly learnt; metric f1 counts it as much as any, accuracy does not",
        )
    missing = [name for name, n in validation["label_counts"].items() if not n]
    if missing:
        names = ", ".join(map(repr, missing))
        yield Check("warn", "data", f"no validation row has label {names}", "set data.validation_rows higher")
    if validation["rows"] < _FEW_ROWS:
        yield Check(
            "warn",
            "data",
            f"only {validation['rows']:,} validation rows: chance will decide between good trials",
            "set data.validation_rows higher",
        )
    for pair, n in document["overlaps"].items():
        if n:
            yield Check(
                "warn",
                "data",
                f"{n:,} texts of {pair.replace('_', ' also stand in ')}, so that scores look better than they are",
                "data.keep_overlaps: false drops such training rows" if pair.startswith("train") else "mend the files",
            )


def _checks_of_split(name: str, split: dict[str, Any]) -> Iterator[Check]:
    rows = split["rows"]
    if split["blank"] > _BLANK_SHARE * split["sampled"]:
        yield Check("warn", "data", f"{split['blank']:,} of {split['sampled']:,} {name} rows are blank and left out")
    if split["duplicates"] > _DUPLICATE_SHARE * rows:
        n = split["duplicates"]
        yield Check("warn", "data", f"{n:,} of {rows:,} {name} rows repeat another's text ({n / rows:.1%})")
    if split["cut"] > _CUT_SHARE * rows:
        amount = "all" if split["cut"] == rows else f"{split['cut']:,} of"
        yield Check(
            "warn",
            "data",
            f"{amount} {rows:,} {name} texts are longer than the model's input and are cut ({split['cut'] / rows:.0%})",
            "set model.max_length higher, or shorten the texts to what matters",
        )
    if split["unknown_share"] > _UNKNOWN_SHARE:
        yield Check(
            "warn",
            "data",
            f"{split['unknown_share']:.1%} of the {name} tokens are unknown to the model",
            "choose a model whose vocabulary knows this language",
        )


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
