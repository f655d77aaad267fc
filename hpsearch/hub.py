"""What is fetched from the Hugging Face Hub, and what to say when it does not answer."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from functools import cache

TWO_WAYS_ON = (
    "Two ways on without the Hub: --config quickstart, or local files and a local model folder "
    "(--set data.train=FILE --set data.test=FILE --set model.name=FOLDER)"
)
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
