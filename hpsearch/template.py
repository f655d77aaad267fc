"""A shipped configuration with some of its values replaced, and its comments kept."""

from __future__ import annotations

import io
import re
from typing import Any, Self

from ruamel.yaml import YAML

from hpsearch.config import shipped_configs
from hpsearch.errors import ConfigError

OWN_DATA = "own-data"
"""The shipped configuration for a file of one's own."""

_COMMENT_AT = 37  # cells; where the shipped configurations' comments begin
_LONGEST_FLOW = 60  # characters of a mapping in one line


class Template:
    """A configuration's text, line by line, with values replaced where they stand."""

    _KEY = re.compile(r"  (?:# )?(?P<key>\w+):")

    @classmethod
    def of(cls, name: str) -> Self:
        """Return the text of a shipped configuration."""
        return cls(shipped_configs()[name].read_text(encoding="utf-8"))

    def __init__(self, text: str) -> None:
        """Take a text that begins with comments, its head."""
        lines = text.splitlines()
        start = next(i for i, line in enumerate(lines) if not line.startswith("#"))
        self.head: list[str] = lines[:start]
        self._lines = lines[start:]

    def set(self, section: str, key: str, value: object, comment: str) -> None:
        """Give a key a value, in the place where the section has the key, commented out or not.

        Args:
            section: Such as `data`.
            key: A key of it.
            value: What YAML has a form for.
            comment: One line.

        Raises:
            ConfigError: If the section has no such key.
        """
        start = self._lines.index(f"{section}:") + 1
        for i in range(start, len(self._lines)):
            if not self._lines[i]:  # the end of the section
                break
            match = self._KEY.match(self._lines[i])
            if match and match["key"] == key:
                self._lines[i : i + 1] = _entry(key, value, comment)
                return
        raise ConfigError(f"shipped configuration: expected the key {section}.{key} in it, got none")

    def text(self) -> str:
        """Return the configuration."""
        return "\n".join([*self.head, *self._lines]) + "\n"


def _entry(key: str, value: object, comment: str) -> list[str]:
    """Return a key with its value and a comment as lines; the pairs of a long mapping take one each."""
    shown, below = f" {_yaml(value)}", []
    if isinstance(value, dict) and len(shown) > _LONGEST_FLOW:
        shown, below = "", [f"    {_yaml(_number_or_text(item))}: {_yaml(name)}" for item, name in value.items()]
    return [f"{f'  {key}:{shown}':<{_COMMENT_AT - 1}} # {comment}", *below]


def _yaml(value: object) -> str:
    """Return a value as YAML in one line."""
    yaml: Any = YAML(typ="safe", pure=True)
    yaml.default_flow_style = True
    yaml.sort_base_mapping_type_on_output = False
    yaml.width = 2**31
    if isinstance(value, dict):
        value = {_number_or_text(key): item for key, item in value.items()}
    out = io.StringIO()
    yaml.dump([value], out)
    return out.getvalue().strip()[1:-1]


def _number_or_text(key: str) -> int | str:
    """Return a label's value as one would write it: 0, which reads the same as "0"."""
    return int(key) if re.fullmatch(r"0|-?[1-9]\d{0,8}", key) else key


def plain(name: str) -> str:
    """Return a name from outside for a comment: in one line, without what YAML does not allow."""
    return name if name.isprintable() else repr(name)
