"""What `doctor` says of a machine, and that it neither waits, nor writes, nor tells secrets."""

from __future__ import annotations

import json
import socket
import sqlite3
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
import pytest

from hpsearch import doctor, machine, report
from hpsearch.doctor import Check, Diagnosis
from hpsearch.machine import Mount, mount_of
from hpsearch.study import open_storage
from tests.test_end_to_end import hpsearch

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]


def by_name(diagnosis: Diagnosis) -> dict[str, Check]:
    return {check.name: check for check in diagnosis.checks}


@pytest.fixture
def storage_url(tmp_path: Path) -> str:
    """Return a storage with two studies."""
    url = f"sqlite:///{tmp_path}/studies.db"
    storage = open_storage(url, create=True)
    for name in ("리뷰", "other"):
        optuna.create_study(storage=storage, study_name=name)
    storage._backend.engine.dispose()  # type: ignore[attr-defined]
    return url


def test_a_machine_that_runs_the_tests_is_fit(storage_url: str) -> None:
    checks = by_name(doctor.diagnose(storage_url, encoding="UTF-8"))
    assert [check for check in checks.values() if check.state == "fail"] == []
    assert checks["device"].found == "the CPU"
    assert "float" in checks["precision"].found
    assert "threads on" in checks["cores"].found
    assert "GiB free" in checks["memory"].found
    assert "GiB free" in checks["disk"].found
    assert "HF_HUB_OFFLINE is set" in checks["hub"].found  # the tests set it
    assert checks["storage"] == Check("storage", "ok", f"2 studies in {storage_url}, intact")
    assert checks["encoding"].state == "ok"


def test_every_declared_library_is_named_with_the_tested_version(tmp_path: Path) -> None:
    found = {library.name: library for library in doctor.libraries()}
    assert {"torch", "transformers", "optuna", "ruamel-yaml"} <= set(found)
    assert not {"pytest", "ruff", "cmaes"} & set(found)  # of the extras
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    assert f"optuna=={found['optuna'].tested}" in lines
    assert all(library.tested for library in found.values())


def test_the_command_prints_a_line_a_check_and_one_document(tmp_path: Path) -> None:
    before = set(tmp_path.iterdir())
    text = hpsearch(tmp_path, "doctor").stdout
    assert "no studies yet: `hpsearch run` makes sqlite:///studies/hpsearch.db" in " ".join(text.split())
    document = json.loads(hpsearch(tmp_path, "doctor", "--json").stdout)
    assert document["failed"] == 0
    assert {check["state"] for check in document["checks"]} <= {"ok", "warn"}
    assert "torch" in {library["name"] for library in document["libraries"]}
    assert set(tmp_path.iterdir()) == before


# --- Storage ----------------------------------------------------------------------------------------------------------


def test_a_damaged_database_fails_with_status_1(storage_url: str, tmp_path: Path) -> None:
    path = tmp_path / "studies.db"
    raw = bytearray(path.read_bytes())
    raw[-3000:] = b"\xab" * 3000  # the last page, of an index or a table that the list of studies does not need
    path.write_bytes(raw)
    result = hpsearch(tmp_path, "doctor", "--storage", storage_url, "--json", code=1)
    document = json.loads(result.stdout)
    assert document["failed"] == 1
    (failed,) = [check for check in document["checks"] if check["state"] == "fail"]
    assert failed["name"] == "storage"
    assert "damaged" in failed["found"] or "expected a database" in failed["found"]


def test_a_database_without_a_write_ahead_log_is_told(storage_url: str, tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "studies.db")
    connection.execute("PRAGMA journal_mode=DELETE")
    connection.close()
    assert doctor._storage(storage_url).state == "warn"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:canary@nowhere.invalid/db?sslpassword=canary",
        "mysql+pymysql://me:ca@nary@nowhere.invalid/db",
        "me:canary@nonsense",
    ],
)
def test_no_password_is_told(url: str) -> None:
    diagnosis = doctor.diagnose(url, encoding="utf-8")
    assert by_name(diagnosis)["storage"].state == "fail"
    told = json.dumps(report.diagnosis_document(diagnosis)) + report.diagnosis_text(diagnosis, 80)
    assert "canary" not in told
    assert "nary@" not in told


def test_a_storage_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    left = threading.Event()
    start = time.monotonic()
    assert doctor._within(0.05, lambda: left.wait(20), otherwise=None) is None
    assert time.monotonic() - start < 10
    left.set()


def test_an_error_of_work_in_a_thread_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        doctor._within(10, lambda: 1 // 0, otherwise=0)


# --- Hub --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Return the address of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return monkeypatch


def test_a_hub_that_says_nothing_is_a_warning(online: pytest.MonkeyPatch, silent_server: str) -> None:
    online.setattr("huggingface_hub.constants.ENDPOINT", silent_server)
    online.setattr(doctor, "_HUB_TIMEOUT_S", 0.2)
    check = doctor._hub()
    assert (check.state, check.found) == ("warn", f"{silent_server}: no answer in 0 s")


def test_a_hub_that_refuses_is_a_warning_without_its_password(online: pytest.MonkeyPatch) -> None:
    online.setattr("huggingface_hub.constants.ENDPOINT", "http://me:canary@127.0.0.1:1")
    check = doctor._hub()
    assert check.state == "warn"
    assert "canary" not in check.found
    assert "127.0.0.1:1" in check.found


def test_offline_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("asked"))
    assert doctor._hub().state == "ok"


# --- The machine ------------------------------------------------------------------------------------------------------


def test_the_deepest_mount_holds_a_folder(tmp_path: Path) -> None:
    table = [
        Mount(Path("/"), "ext4"), Mount(tmp_path, "tmpfs"), Mount(tmp_path / "net", "nfs4"), Mount(Path("/x"), "9p"),
        Mount(tmp_path / "net", "fuse.sshfs"),
    ]  # fmt: skip
    (tmp_path / "net" / "studies").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "net")
    assert mount_of(tmp_path / "other", table) == table[1]
    found = mount_of(tmp_path / "link" / "studies", table)
    assert found == table[4]  # mounted over the other
    assert found.is_network
    assert not table[0].is_network
    assert mount_of(Path("/etc"), []) is None


def test_studies_on_a_network_file_system_are_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "mounts", lambda: [Mount(Path("/"), "ext4"), Mount(tmp_path, "nfs4")])
    checks = {check.name: check for check in doctor._folder_checks(f"sqlite:///{tmp_path}/new/studies.db")}
    assert checks["file system"].state == "warn"
    assert f"nfs4 on {tmp_path} is a network file system" in checks["file system"].found
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("free", "state"), [(10 * 2**30, "ok"), (2 * 2**30, "warn"), (2**20, "fail")], ids=["ok", "warn", "fail"]
)
def test_a_disk_that_fills_up_is_told(free: int, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": free}))
    (disk, *_) = doctor._folder_checks(f"sqlite:///{tmp_path}/studies.db")
    assert (disk.name, disk.state) == ("disk", state)


@pytest.mark.parametrize(
    ("files", "cores", "memory"),
    [
        ({"cpu.max": "50000 100000", "memory.max": "2097152", "memory.current": "1048576"}, 0.5, (2**20, 2**21)),
        ({"cpu.max": "max 100000", "memory.max": "max", "memory.current": "5"}, None, None),
        ({"cpu/cpu.cfs_quota_us": "25000", "cpu/cpu.cfs_period_us": "100000"}, 0.25, None),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None, None),
        (
            {"memory/memory.limit_in_bytes": "4194304", "memory/memory.usage_in_bytes": "5242880"}, None, (0, 2**22),
        ),
        ({}, None, None),
    ],
)  # fmt: skip
def test_a_container_may_use_what_it_was_given(
    files: dict[str, str], cores: float | None, memory: tuple[int, int] | None, tmp_path: Path
) -> None:
    whole_cores, (_, whole_memory) = machine.usable_cores(tmp_path / "no"), machine.usable_memory(tmp_path / "no")
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content, encoding="ascii")
    assert machine.usable_cores(tmp_path) == (cores or whole_cores)
    if memory is None:
        assert machine.usable_memory(tmp_path)[1] == whole_memory
    else:
        assert machine.usable_memory(tmp_path) == memory


def test_more_threads_than_cores_are_told() -> None:
    check = doctor._threads(10_000)
    assert check.state == "warn"
    assert "OMP_NUM_THREADS=" in check.advice


@pytest.mark.parametrize(("encoding", "state"), [("UTF-8", "ok"), ("utf8", "ok"), ("cp949", "warn"), ("ascii", "warn")])
def test_an_output_that_cannot_show_everything_is_told(encoding: str, state: str) -> None:
    assert sys.getfilesystemencoding() == "utf-8"
    assert doctor._encodings(encoding).state == state


@pytest.mark.parametrize(
    ("installed", "state", "told"),
    [
        (None, "fail", "not installed, needed <6,>=5.0"),
        ("4.9", "fail", "4.9, needed <6,>=5.0"),
        ("5.1.0", "warn", "5.1.0, tested with 5.0.0"),
        ("5.0.0+cpu", "ok", "1 as tested: optuna 5.0.0+cpu"),
    ],
)
def test_a_library_of_another_version_is_told(installed: str | None, state: str, told: str) -> None:
    library = doctor.Library("optuna", installed, "<6,>=5.0", "5.0.0")
    checks = [check for check in doctor._library_checks((library,)) if check.name in ("optuna", "libraries")]
    assert (checks[0].state, checks[0].found) == (state, told)
