"""Parts of the test rows, and how both sides of a comparison do on each: a mean may hide a loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hpsearch.evidence import Slice

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from hpsearch.tokens import Tokens

    Integers = NDArray[np.int64]
    Booleans = NDArray[np.bool_]


def slices_of(
    labels: Integers,
    label_names: Sequence[str],
    tokens: Tokens,
    unknown: tuple[str, int] | None,
    *,
    default: Integers,
    tuned: Integers,
) -> tuple[Slice, ...]:
    """Return the accuracies by label, by length and on texts with unknown tokens; parts without a row are left out.

    Args:
        labels: True class ids, shape (n_rows,).
        label_names: Names of the classes.
        tokens: The texts as the model sees them, cut to its longest input.
        unknown: The token for what the vocabulary lacks and its id, such as `[UNK]`; None if the tokenizer has none.
        default: Class ids predicted by the defaults, shape (n_seeds, n_rows).
        tuned: Those predicted by the tuned side.
    """
    parts: dict[str, Booleans] = {f"label {name}": labels == i for i, name in enumerate(label_names)}
    lengths = tokens.lengths
    low, high = (int(length) for length in np.percentile(lengths, [100 / 3, 200 / 3], method="lower"))
    parts[f"up to {low} tokens"] = lengths <= low
    parts[f"{low + 1} to {high} tokens"] = (lengths > low) & (lengths <= high)
    parts[f"more than {high} tokens"] = lengths > high
    if unknown is not None:
        name, unknown_id = unknown
        parts[f"with {name}"] = _with_token(tokens, unknown_id)
    return tuple(
        Slice(
            name=name,
            rows=int(part.sum()),
            default_accuracy=float((default == labels)[:, part].mean()),
            tuned_accuracy=float((tuned == labels)[:, part].mean()),
        )
        for name, part in parts.items()
        if part.any()
    )


def _with_token(tokens: Tokens, token_id: int) -> Booleans:
    """Say of each text whether it holds a token."""
    places = np.flatnonzero(tokens.ids == token_id)
    texts = np.searchsorted(tokens.offsets, places, side="right") - 1
    return np.isin(np.arange(len(tokens)), texts)
