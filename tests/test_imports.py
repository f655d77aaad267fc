"""What a fresh process loads: commands that only read start without the heavy libraries."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import optuna
import pytest
from optuna.trial import create_trial

from hpsearch.study import StudyPaths, open_storage
from tests.reviews_study import make_study, trials

if TYPE_CHECKING:
    from pathlib import Path

_TRAINING = {"torch", "transformers", "datasets", "evaluate", "accelerate", "sklearn", "tokenizers", "pyarrow"}
_ALL = _TRAINING | {
    "optuna",
    "optuna_dashboard",
    "sqlalchemy",
    "pydantic",
    "rich",
    "ruamel",
    "numpy",
    "huggingface_hub",
    "matplotlib",
    "jinja2",
}

# Prints what a command loaded, after the command's own output.
_COMMAND = """
import json, sys
from hpsearch.cli import cli
try:
    cli(sys.argv[1:], standalone_mode=False)
finally:
    print("\\n" + json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def _run(script: str, *arguments: str) -> tuple[str, set[str]]:
    """Return what a fresh process printed, and the packages it loaded."""
    result = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, encoding="utf-8", check=True
    )
    output, _, loaded = result.stdout.rstrip("\n").rpartition("\n")
    return output, set(json.loads(loaded))


@pytest.fixture(scope="module")
def storage_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a storage with a study."""
    url = f"sqlite:///{tmp_path_factory.mktemp('studies')}/studies.db"
    storage = open_storage(url, create=True)
    study = optuna.create_study(storage=storage, study_name="reviews", direction="maximize")
    study.add_trial(create_trial(value=0.8125, intermediate_values={1: 0.75, 2: 0.8125}))
    storage._backend.engine.dispose()  # type: ignore[attr-defined]
    return url


def test_the_command_line_is_imported_without_a_heavy_library() -> None:
    script = (
        "import json, sys, hpsearch.cli; print('\\n' + json.dumps([name.partition('.')[0] for name in sys.modules]))"
    )
    _, loaded = _run(script)
    assert "click" in loaded
    assert loaded & _ALL == set()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("", "export-best"),
        ("run", "--trials"),
        ("show", "--csv"),
        ("dashboard", "--allow-writes"),
        ("report", "--png"),
        ("init", "--model"),
    ],
)
def test_help_is_shown_without_a_heavy_library(command: str, words: str) -> None:
    output, loaded = _run(_COMMAND, *command.split(), "--help")
    assert words in output
    assert loaded & _ALL == set()


@pytest.mark.parametrize("command", ["list", "list --json", "show", "show reviews --csv"])
def test_studies_are_read_without_the_libraries_of_training(storage_url: str, command: str) -> None:
    output, loaded = _run(_COMMAND, *command.split(), "--storage", storage_url)
    assert "0.8125" in output
    assert "optuna" in loaded
    # The database layer alone takes longer to load than the rest, and a configuration is not needed.
    assert loaded & (_TRAINING | {"sqlalchemy", "alembic", "pydantic", "ruamel"}) == set()


def test_a_report_is_written_without_the_libraries_of_training(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/studies.db"
    make_study(open_storage(url, create=True), StudyPaths.of(url, "reviews"), trials(2))
    output, loaded = _run(_COMMAND, "report", "--storage", url)
    assert "report of study reviews" in output
    assert "matplotlib" in loaded
    assert loaded & _TRAINING == set()


def test_a_configuration_is_checked_without_the_libraries_of_training() -> None:
    script = "import json, sys; from hpsearch.config import load_config, shipped_configs\n"
    script += "for name in shipped_configs(): print(load_config(name).study)\n"
    script += "print('\\n' + json.dumps([name.partition('.')[0] for name in sys.modules]))"
    output, loaded = _run(script)
    assert "quickstart" in output
    assert loaded & (_TRAINING | {"optuna"}) == set()
