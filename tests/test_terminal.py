"""The real commands in terminals and pipes of every kind, on a study with Hangul in its names, labels and reasons."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import unicodedata
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import optuna
import pytest
from optuna.trial import TrialState, create_trial
from rich.cells import cell_len

from hpsearch.study import open_storage
from tests.conftest import toy_rows
from tests.test_starter import table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

STUDY = "리뷰-감정"
DECOMPOSED = unicodedata.normalize("NFD", "한글")
REASON = "메모리 부족 é 🙂"
COLUMNS = ("내용", "감정")
COMMAND = [sys.executable, "-m", "hpsearch"]
_OURS = ("PYTHONUNBUFFERED", "PYTHONIOENCODING", "PYTHONUTF8", "LC_ALL", "LANG", "COLUMNS", "LINES", "NO_COLOR")
UTF8 = {"LC_ALL": "C.UTF-8"}
ENVIRONMENTS = {
    "LC_ALL=C": {"LC_ALL": "C"},
    "LC_ALL=C PYTHONUTF8=0": {"LC_ALL": "C", "PYTHONUTF8": "0"},
    "PYTHONIOENCODING=ascii": {**UTF8, "PYTHONIOENCODING": "ascii"},
    "PYTHONIOENCODING=cp949": {**UTF8, "PYTHONIOENCODING": "cp949"},
    "NO_COLOR=1": {**UTF8, "NO_COLOR": "1"},
}


@dataclass(frozen=True, slots=True)
class Output:
    """What a command left."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Return a folder with studies, a file of reviews, and a configuration for it."""
    folder = tmp_path_factory.mktemp("terminal")
    storage = open_storage(f"sqlite:///{folder}/studies/hpsearch.db", create=True)
    for name in (STUDY, DECOMPOSED, "plain"):
        study = optuna.create_study(storage=storage, study_name=name, direction="maximize")
        study.set_metric_names(["f1"])
        study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={"failure": f"{DECOMPOSED} {REASON}"}))
        study.add_trial(create_trial(state=TrialState.PRUNED, value=0.5, intermediate_values={1: 0.5}))
        study.add_trial(create_trial(value=0.8, user_attrs={"note": "가" * 200_000} if name == "plain" else {}))
    storage._backend.engine.dispose()  # type: ignore[attr-defined]
    labels = {"bad": "싫음", "good": unicodedata.normalize("NFD", "좋음")}
    for name in ("reviews.csv", "리뷰.csv"):
        table(folder / name, COLUMNS, [(f"{REASON} {text}", labels[label]) for text, label in toy_rows(100, seed=1)])
    (folder / "reviews.yaml").write_text(
        f"model: {{name: {tiny_model}}}\n"
        f"data: {{train: reviews.csv, text_column: {COLUMNS[0]}, label_column: {COLUMNS[1]}}}\n"
        "space: {weight_decay: {type: float, low: 0.0, high: 0.1}}\n",
        encoding="utf-8",
    )
    return folder


def environment(changes: dict[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in _OURS}
    return {**kept, "HF_HUB_OFFLINE": "1", **changes}


def run(folder: Path, *arguments: str, **changes: str) -> Output:
    """Run a command with pipes, and read its output as the environment says that it is written."""
    result = subprocess.run([*COMMAND, *arguments], cwd=folder, env=environment(changes), capture_output=True)
    # Click takes ASCII for a setting that nobody made on purpose, and writes UTF-8 then.
    encoding = changes.get("PYTHONIOENCODING", "utf-8").replace("ascii", "utf-8")
    output = Output(result.returncode, result.stdout.decode(encoding), result.stderr.decode("utf-8", "replace"))
    assert "Traceback" not in output.err
    assert "Exception ignored" not in output.err
    return output


def check_aligned(text: str, *, last_is_right: bool) -> None:
    """Check that each table's rows end where its rule does, or before where the last column is read as words."""
    lines = text.splitlines()
    rules = [i for i, line in enumerate(lines) if re.fullmatch("-{10,}", line)]
    assert rules
    for i in rules:
        rows = [lines[i - 1], *lines[i + 1 : i + 1 + next((n for n, x in enumerate(lines[i + 1 :]) if not x), 99)]]
        lengths = {cell_len(row) for row in rows}
        assert max(lengths) <= len(lines[i])
        assert not last_is_right or lengths == {len(lines[i])}, text


# --- Environments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_studies_are_listed_and_shown(changes: dict[str, str], folder: Path) -> None:
    listed = run(folder, "list", **changes)
    assert listed.code == 0
    assert STUDY in listed.out
    assert unicodedata.normalize("NFC", DECOMPOSED) in listed.out
    check_aligned(listed.out, last_is_right=True)
    shown = run(folder, "show", STUDY, **changes)
    assert shown.code == 0
    assert "메모리 부족" in shown.out
    assert "\x1b" not in listed.out + shown.out
    if changes.get("PYTHONIOENCODING") != "cp949":  # which lacks two characters of the reason: they become escapes
        check_aligned(shown.out, last_is_right=False)


@pytest.mark.parametrize("name", ["LC_ALL=C PYTHONUTF8=0", "PYTHONIOENCODING=cp949"])
def test_json_is_json(name: str, folder: Path) -> None:
    result = run(folder, "show", DECOMPOSED, "--json", **ENVIRONMENTS[name])
    assert json.loads(result.out)["trials"][0]["attrs"]["failure"] == f"{DECOMPOSED} {REASON}"


@pytest.mark.parametrize("name", ["LC_ALL=C PYTHONUTF8=0", "PYTHONIOENCODING=cp949"])
def test_a_configuration_is_written_for_hangul_columns(name: str, folder: Path) -> None:
    output = f"{name.replace(' ', '-').replace('=', '-')}.yaml"
    result = run(folder, "init", "reviews.csv", "--label-column", "감정", "--output", output, **ENVIRONMENTS[name])
    assert result.code == 0, result.err
    assert "좋음" in result.out  # the file has it decomposed
    check_aligned(result.out, last_is_right=False)
    assert "label_column: 감정" in (folder / output).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["LC_ALL=C PYTHONUTF8=0", "PYTHONIOENCODING=ascii"])
def test_errors_are_one_message(name: str, folder: Path) -> None:
    result = run(folder, "export-best", "--study", "없음", **ENVIRONMENTS[name])
    assert (result.code, result.out) == (2, "")
    assert result.err.count("error:") == 1
    assert "plain" in result.err


def test_where_file_names_cannot_have_hangul_it_says_what_to_set(folder: Path) -> None:
    for arguments in (["init", "리뷰.csv", "--output", "new.yaml"], ["compare", "--study", STUDY]):
        result = run(folder, *arguments, LC_ALL="C", PYTHONUTF8="0")
        assert (result.code, result.out) == (2, "")
        assert "set LC_ALL=C.UTF-8 or PYTHONUTF8=1" in result.err


# --- Streams that break -----------------------------------------------------------------------------------------------

PRINTING = [(["list"], ""), (["list"], "1"), (["list", "--help"], "")]


@pytest.mark.parametrize(("arguments", "unbuffered"), PRINTING, ids=["list", "unbuffered", "help"])
def test_a_full_disk_is_one_message(arguments: Sequence[str], unbuffered: str, folder: Path) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:  # noqa: PTH123
        result = subprocess.run(
            [*COMMAND, *arguments], cwd=folder, env=environment({**UTF8, "PYTHONUNBUFFERED": unbuffered}), stdout=full,
            stderr=subprocess.PIPE, encoding="utf-8",
        )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr == (
        "error: standard output: expected to write the results there, got: No space left on device\n"
    )


@pytest.mark.parametrize(("arguments", "unbuffered"), PRINTING, ids=["list", "unbuffered", "help"])
def test_a_reader_that_has_gone_is_no_error(arguments: Sequence[str], unbuffered: str, folder: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [*COMMAND, *arguments], cwd=folder, env=environment({**UTF8, "PYTHONUNBUFFERED": unbuffered}), stdout=writer,
        stderr=subprocess.PIPE, encoding="utf-8",
    )  # fmt: skip
    os.close(writer)
    assert (result.returncode, result.stderr) == (141, "")


def test_head_takes_the_first_line_and_all_stays_quiet(folder: Path) -> None:
    script = f"{sys.executable} -m hpsearch show plain --json | head -n 1; echo ${{PIPESTATUS[0]}}"
    result = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=environment(UTF8), capture_output=True, encoding="utf-8"
    )
    assert (result.stdout, result.stderr) == ("{\n141\n", "")


def test_the_status_stands_without_anyone_to_tell(folder: Path) -> None:
    for closed, arguments, code in (
        (">&- 2>&-", ["list"], 0), (">&- 2>&-", ["show", "none"], 2), ("2>/dev/full", ["show", "none"], 2),
    ):  # fmt: skip
        script = ["bash", "-c", f'exec "$@" {closed}', "-", *COMMAND, *arguments]
        result = subprocess.run(script, cwd=folder, env=environment(UTF8), capture_output=True)
        assert result.returncode == code, (closed, arguments)


# --- Terminals --------------------------------------------------------------------------------------------------------


def on_terminal(folder: Path, *arguments: str, columns: int, **changes: str) -> str:
    """Run a command in a terminal of some columns and return what it shows, error and output together."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        [*COMMAND, *arguments], cwd=folder, env=environment({**UTF8, "TERM": "xterm", **changes}), stdin=theirs,
        stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # Linux's word for the end
        while chunk := os.read(ours, 65536):
            shown += chunk
    os.close(ours)
    text = shown.decode(changes.get("PYTHONIOENCODING", "utf-8"))
    assert process.wait() == 0, text
    return text.replace("\r\n", "\n").rpartition("\r")[2]


@pytest.mark.parametrize(
    ("arguments", "changes", "told"),
    [
        (["list"], {}, "한글"),
        (["show", STUDY], {}, "메모리"),
        (["inspect", "--config", "reviews.yaml"], ENVIRONMENTS["PYTHONIOENCODING=cp949"], "좋음"),
        (["doctor"], ENVIRONMENTS["LC_ALL=C PYTHONUTF8=0"], "warn +encoding"),
        (["init", "reviews.csv", "--output", "narrow.yaml"], {}, "싫음"),
    ],
    ids=["list", "show", "inspect in cp949", "doctor in ascii", "init"],
)
def test_tables_fit_a_narrow_terminal(
    arguments: Sequence[str], changes: dict[str, str], told: str, folder: Path
) -> None:
    shown = on_terminal(folder, *arguments, columns=60, **changes)
    assert "Traceback" not in shown
    assert re.search(told, shown)
    rules = [line for line in shown.splitlines() if re.fullmatch("-{10,}", line)]
    assert rules
    assert max(map(len, rules)) <= 60
    check_aligned(shown, last_is_right=False)


def test_colour_is_for_terminals_that_want_it(folder: Path) -> None:
    assert "\x1b" not in on_terminal(folder, "show", STUDY, columns=100, NO_COLOR="1")
