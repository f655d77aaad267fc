"""The versions that are declared, tested, and tested as the oldest ones agree with each other."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DECLARED = [Requirement(each) for each in PROJECT["dependencies"]]
EXTRAS = PROJECT["optional-dependencies"]
FOR_TESTS = [Requirement(each) for name in ("postgres", "ray", "test") for each in EXTRAS[name]]
FOR_TESTS = [each for each in FOR_TESTS if each.name != PROJECT["name"]]  # an extra that takes others


def pinned(name: str) -> dict[str, str]:
    """Return the versions of a file of constraints by package."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines())
    pairs = (line.split("==") for line in lines if line)
    return {canonicalize_name(package): version for package, version in pairs}


@pytest.mark.parametrize("requirement", [*DECLARED, *FOR_TESTS], ids=lambda requirement: requirement.name)
def test_the_oldest_version_that_is_declared_is_the_one_that_is_tested(requirement: Requirement) -> None:
    oldest = pinned("constraints-lowest.txt")[canonicalize_name(requirement.name)]
    bounds = [each.version for each in requirement.specifier if each.operator == ">="]
    assert len(bounds) == 1, f"{requirement}: expected one lower bound"
    # 2.0 and 2.0.0 are the same version, and where no 2.0.0 was released it is the first that was.
    assert oldest in requirement.specifier
    assert oldest.split(".")[: bounds[0].count(".") + 1] == bounds[0].split(".")


@pytest.mark.parametrize("requirement", [*DECLARED, *FOR_TESTS], ids=lambda requirement: requirement.name)
def test_the_tested_version_is_allowed(requirement: Requirement) -> None:
    assert pinned("constraints.txt")[canonicalize_name(requirement.name)] in requirement.specifier
