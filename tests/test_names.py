"""Names and places: nothing is written but in the studies folder and the folder asked for, whatever a name says."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from hpsearch.cli import cli
from hpsearch.errors import UsageError
from hpsearch.study import StudyPaths
from tests.watching import contents

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

    from tests.watching import Watched

pytestmark = pytest.mark.usefixtures("own_process")
STORAGE = "sqlite:///studies/hpsearch.db"


@pytest.fixture
def project(watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working directory: a copy of a project with a finished study, beside which there is nothing."""
    folder = tmp_path / "world" / "project"
    shutil.copytree(watched.project, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HPSEARCH_STORAGE", STORAGE)
    return folder


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments, prog_name="hpsearch")


def refused(project: Path, *arguments: str) -> str:
    """Return the message of a command that must fail as bad usage and change nothing, in the project or around it."""
    before = _without_shared_memory(contents(project.parent))
    result = invoke(*arguments)
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert _without_shared_memory(contents(project.parent)) == before
    assert all(character.isprintable() for character in result.stderr.replace("\n", ""))
    return " ".join(result.stderr.split())


def _without_shared_memory(found: dict[str, str]) -> dict[str, str]:
    """Leave out what SQLite keeps beside a database while this process has it open, as long as nothing is in it."""
    return {path: held for path, held in found.items() if not path.endswith("-shm") and not
            (path.endswith("-wal") and held.startswith("0 "))}  # fmt: skip


# --- A whole use ------------------------------------------------------------------------------------------------------


def test_a_whole_use_writes_to_the_studies_folder_and_the_folder_asked_for(watched: Watched) -> None:
    assert {path: watched.after[path] for path in watched.before} == watched.before
    new = {path for path in watched.after if path not in watched.before}
    ours = ("project/studies", "project/exported")
    # torch makes an empty folder for what it compiles, which is nothing here.
    theirs = {path for path in new if not path.startswith((*ours, "tmp/torchinductor_"))}
    assert theirs == set(), "what libraries leave elsewhere"
    assert {path.removeprefix("project/exported/").partition("/")[0] for path in new if "/exported/" in path} == {
        "model"
    }
    assert not [path for path in new if ".partial-" in path or ".old-" in path]


def test_no_process_of_a_whole_use_writes_outside_the_world(watched: Watched) -> None:
    written = {path for kind, path in watched.events if kind == "write"}
    inside = {path for path in written if Path(path).is_relative_to(watched.world)}
    assert len(inside) > 20
    assert {path for path in written - inside if not path.startswith(("/dev/", "/proc/"))} == set()


# --- Names of studies -------------------------------------------------------------------------------------------------

NAMES = {
    "up": "../up", "up and down": "a/../../b", "absolute": "/etc/passwd", "backslashes": "..\\up", "drive": "C:\\x",
    "encoded": "%2e%2e%2fup", "dots": "...", "hidden": ".tokens", "dash": "-rf", "home": "~", "a user's home": "~root",
    "quote": "a'b", "double quote": 'a"b', "SQL": "a'; DROP TABLE studies; --", "shell": "$(touch up)",
    "backquotes": "`touch up`", "carriage return": "a\rb", "newline": "a\nb", "escape": "\x1b[2Jx", "NUL": "a\0b",
    "right to left": "a\u202eb", "zero width": "a\u200bb", "markup": "<script>", "star": "*", "pipe": "a|b",
    "colon": "a:b", "surrogate": "a\udcff", "very long": "a" * 10_000, "decomposed Latin": "cafe\u0301",
    "decomposed Hangul": "\u1112\u1161\u11ab", "device": "NUL", "device with an ending": "con.txt", "port": "COM1",
    "a last point": "study.",
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES.values(), ids=list(NAMES))
def test_a_name_that_is_no_folder_everywhere_starts_no_study(project: Path, name: str) -> None:
    message = refused(project, "run", "--config", "toy.yaml", f"--study={name}")
    assert "; choose another --study" in message


@pytest.mark.parametrize("name", NAMES.values(), ids=list(NAMES))
@pytest.mark.parametrize("command", ["show", "export-best", "compare"])
def test_a_name_that_no_study_has_reads_and_writes_nothing(project: Path, command: str, name: str) -> None:
    arguments = [command, "--", name] if command == "show" else [command, f"--study={name}"]
    assert "expected one of 'toy', got another name" in refused(project, *arguments)


@given(name=st.text(max_size=120) | st.text("ab가/.\\~-\0\n é", max_size=12))
def test_every_path_of_a_study_lies_in_the_studies_folder(tmp_path: Path, name: str) -> None:
    try:
        paths = StudyPaths.of(f"sqlite:///{tmp_path}/studies/all.db", name)
    except UsageError:
        return
    root = (tmp_path / "studies").resolve()
    assert paths.folder.resolve().parent == root
    for path in (paths.run_lock, paths.log, paths.best, paths.comparison, paths.checkpoint(3)):
        assert path.resolve().is_relative_to(paths.folder.resolve())
    assert paths.tokens.resolve().is_relative_to(root)


def test_a_study_does_not_take_a_link_that_leads_nowhere_for_its_folder(project: Path) -> None:
    (project / "studies" / "linked").symlink_to("../../up")
    assert "expected a folder's name, got a file's" in refused(
        project, "run", "--config", "toy.yaml", "--study", "linked"
    )


# --- Folders to export to ---------------------------------------------------------------------------------------------


def nothing(project: Path) -> None:
    """Leave everything as it is."""


def a_folder_of_someone(project: Path) -> None:
    (project / "theirs").mkdir()
    (project / "theirs" / "thesis.tex").write_text("\\chapter{One}", encoding="utf-8")


def a_link_to_it(project: Path) -> None:
    a_folder_of_someone(project)
    (project / "link").symlink_to("theirs")


def a_link_to_nowhere(project: Path) -> None:
    (project / "link").symlink_to("../up")


ITS_OWN = "expected a folder that is the export's own, got one that study 'toy' writes to; choose another --output"
ABOVE = "expected a folder of its own, got the working directory or one above"
A_FILE = "expected a folder or a free name, got a file or a link"
FOREIGN = "expected a folder written by hpsearch, got one without its manifest.json; it is not replaced"
TOO_LONG = "expected a name for a folder, got: File name too long"
OUTPUTS: dict[str, tuple[str, str, Callable[[Path], None]]] = {
    "the working directory": (".", ABOVE, nothing),
    "nothing": ("", ABOVE, nothing),
    "the one above": ("..", ABOVE, nothing),
    "the root": ("/", ABOVE, nothing),
    "the working directory by another way": ("studies/../../project", ABOVE, nothing),
    "the studies folder": ("studies", FOREIGN, nothing),
    "the study's folder": ("studies/toy", FOREIGN, nothing),
    "the tokens": ("studies/.tokens", FOREIGN, nothing),
    "below the tokens": ("studies/.tokens/model", ITS_OWN, nothing),
    "a checkpoint": ("studies/toy/trial-0000", "got a checkpoint of study 'toy'; it is not replaced", nothing),
    "a checkpoint by another way": ("studies/./toy//trial-0000/", "got a checkpoint of study 'toy'", nothing),
    "a checkpoint to come": ("studies/toy/trial-0099", ITS_OWN, nothing),
    "below a checkpoint": ("studies/toy/trial-0000/model", ITS_OWN, nothing),
    "the comparison": ("studies/toy/comparison", "expected a folder", nothing),
    "below the comparison": ("studies/toy/comparison/model", ITS_OWN, nothing),
    "hidden in the study": ("studies/toy/.model", ITS_OWN, nothing),
    "the lock": ("studies/toy/run.lock", A_FILE, nothing),
    "the database": ("studies/hpsearch.db", A_FILE, nothing),
    "below the database": ("studies/hpsearch.db/model", "got one below the file", nothing),
    "a device": ("/dev/null", A_FILE, nothing),
    "below a device": ("/dev/null/model", "got one below the file /dev/null", nothing),
    "the data": ("toy.csv", A_FILE, nothing),
    "someone's folder": ("theirs", FOREIGN, a_folder_of_someone),
    "a link to someone's folder": ("link", A_FILE, a_link_to_it),
    "a link to nowhere": ("link", A_FILE, a_link_to_nowhere),
    "a home that no shell put in": ("~/model", "got ~, which is none here", nothing),
    "a name too long": ("a" * 300, TOO_LONG, nothing),
    "a name too long while it is written": ("a" * 250, TOO_LONG, nothing),
}  # fmt: skip


@pytest.mark.parametrize("case", OUTPUTS)
def test_an_export_replaces_nothing_that_is_not_an_export(project: Path, case: str) -> None:
    output, message, make = OUTPUTS[case]
    make(project)
    assert message in refused(project, "export-best", "--output", output, "--overwrite")


def test_an_export_is_replaced_only_when_asked(project: Path) -> None:
    assert "add --overwrite to replace it" in refused(project, "export-best", "--output", "exported/model")


# --- Storages ---------------------------------------------------------------------------------------------------------

STORAGES = {
    "a URI": ("sqlite:///file:other.db?uri=true", "expected the path of a file after sqlite:///"),
    "a host": ("sqlite://host/other.db", "expected the path of a file after sqlite:///"),
    "a home that no shell put in": ("sqlite:///~/other.db", "expected the path of a file, got ~"),
    "a wait that is no number": ("sqlite:///other.db?timeout=soon", "expected a URL that SQLite takes, got"),
    "a folder": ("sqlite:///studies/", "expected an SQLite file, got the folder studies"),
    "the data": ("sqlite:///toy.csv", "expected an SQLite file, got toy.csv, which is another kind of file"),
    "the study's own lock": ("sqlite:///studies/toy", "expected a folder's name, got a file's"),
    "below a file": ("sqlite:///toy.csv/other.db", "expected an SQLite file"),
    "another case": ("SQLITE:///other.db", "expected a database driver"),
    "a web page": ("http://localhost/other.db", "expected a database driver"),
    "a file's URL": ("file:///other.db", "expected a database driver"),
    "a journal": ("other.log", "expected a URL such as"),
}


@pytest.mark.parametrize("case", STORAGES)
def test_an_odd_storage_is_refused_before_anything_is_written(project: Path, case: str) -> None:
    url, message = STORAGES[case]
    assert message in refused(project, "run", "--config", "toy.yaml", "--storage", url)
    assert message.partition(", got")[0].split(" ")[0] in refused(project, "dashboard", "--port", "0", "--storage", url)
