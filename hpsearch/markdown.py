"""Text from outside as Markdown that shows it as it is: names, labels and paths can hold any mark or tag.

Written for GitHub's dialect, which the Hub, optuna-dashboard and markdown-it-py read alike.

Source:
    CommonMark 0.31.2, sections 2.4 (any ASCII punctuation may follow a backslash) and 6.1 (code spans); GFM 0.29,
    section 4.10 (tables).
"""

from __future__ import annotations

import re
import unicodedata

_JOINERS = "\u200c\u200d"  # of letters and emoji; other invisible characters may turn a line's direction
_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")


def text(value: object) -> str:
    """Return a value for running text or a table's cell, in one line: nothing in it is taken for Markdown or HTML."""
    if isinstance(value, int | float):
        return one_line(value)
    # Renderers differ in how they read backslashes before a table's bar, so that one is written as an entity.
    return _PUNCTUATION.sub(r"\\\1", one_line(value)).replace(r"\|", "&#124;")


def code(value: object) -> str:
    """Return a value as a code span, in one line; not for a table's cell, where a bar would end it."""
    line = one_line(value)
    longest = max((len(run) for run in re.findall("`+", line)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if not line or line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def one_line(value: object) -> str:
    """Return a value as one line of characters that can be seen; numbers with six digits."""
    line = f"{value:.6g}" if isinstance(value, float) else str(value)
    line = " ".join(unicodedata.normalize("NFC", line).split())
    return "".join(character if character.isprintable() or character in _JOINERS else "?" for character in line)
