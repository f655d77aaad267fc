"""What comes from the Hugging Face Hub: what to say when it does not answer, and what of it could run code."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

TWO_WAYS_ON = (
    "Two ways on without the Hub: --config quickstart, or local files and a local model folder "
    "(--set data.train=FILE --set data.test=FILE --set model.name=FOLDER)"
)
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
"""Endings of files that can run code when they are opened; none is."""
_TIMEOUT_S = 5.0


@cache
def prepare_hub() -> None:
    """Tell the Hub's libraries to use what they have cached if the Hub does not answer within seconds.

    Call this before anything is asked of the Hub: without it `datasets` retries for half a minute before it gives up.
    """
    import huggingface_hub.constants as hub

    if not hub.HF_HUB_OFFLINE and problem_with_hub():
        # The libraries read the variable at import; those imported already keep it in a module constant.
        os.environ["HF_HUB_OFFLINE"] = "1"
        hub.HF_HUB_OFFLINE = True


def problem_with_hub() -> str:
    """Return what keeps the Hub from answering within seconds, or nothing if it answers."""
    import huggingface_hub.constants as hub

    request = urllib.request.Request(hub.ENDPOINT, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return ""  # it answered
    except OSError as error:
        return str(getattr(error, "reason", error)) or type(error).__name__
    return ""


def pickles_in(folder: Path) -> list[str]:
    """Return the names of the files in a model's folder that can run code when they are opened."""
    return sorted(path.name for path in folder.iterdir() if path.suffix.lower() in PICKLES)


def own_code(parts: Iterable[Any]) -> str:
    """Return what is wrong with a model that brings code of its own, or nothing where it brings none.

    Without that code transformers would load a model of the same `model_type`, where it knows one, and say nothing.

    Args:
        parts: A model's config and tokenizer.
    """
    brought: dict[str, Any] = {}
    for part in parts:
        brought |= getattr(part, "auto_map", None) or getattr(part, "init_kwargs", {}).get("auto_map") or {}
    if not brought:
        return ""
    return (
        f"expected a model that transformers has the code of, got one that brings its own (auto_map: "
        f"{', '.join(map(str, brought))}), which is never run; choose another model, or take auto_map out of its JSON "
        f"files where transformers' own class is meant"
    )
