"""The documentation says what the code does: commands, options, keys, links."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from pydantic import BaseModel

from hpsearch.cli import cli
from hpsearch.config import Config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_stands_in_the_readme_and_has_a_help_with_an_example(name: str) -> None:
    assert f"`hpsearch {name}" in README
    command = cli.commands[name]
    assert command.help is not None
    assert "Example:" in command.help
    assert f"hpsearch {name}" in command.help
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, f"{name} {option.opts[0]}"


def keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    found = []
    for name, field in model.model_fields.items():
        section = field.annotation if isinstance(field.annotation, type) else None
        nested = section is not None and issubclass(section, BaseModel) and name != "defaults"
        found += keys(section, f"{prefix}{name}.") if nested else [f"{prefix}{name}"]  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize(
    "key", sorted(set(keys(Config)) - {"study", "defaults", "space", "data.revision", "model.revision"})
)
def test_every_config_key_stands_in_the_readme(key: str) -> None:
    assert f"`{key}`" in README


@pytest.mark.parametrize(
    "page",
    ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "studies/README.md", "docs/reliability.md", "docs/scaling.md"],
)
def test_links_to_files_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
        assert ((ROOT / page).parent / target).exists(), target


def test_the_makefile_has_the_two_commands_and_ci_runs_the_readmes_test_command() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in ("quickstart", "test"):
        assert f"make {command}" in README
        assert re.search(rf"^{command}:", makefile, re.MULTILINE)
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
