"""Many workers on one study, on several machines, and what happens to them: small runs of `benchmarks/cluster.py`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # the scripts there import each other

from cluster import campaign, start_at_once

if TYPE_CHECKING:
    from benchmarks.servers import PostgresServer

pytestmark = pytest.mark.slow


def test_workers_that_start_at_once_on_a_new_file_come_to_the_exact_number(tmp_path: Path) -> None:
    found = start_at_once(tmp_path, n_workers=4, n_trials=20, seconds=0.2)
    assert (found["finished"], found["other"], found["said"]) == (20, 0, [])
    assert found["workers_with_a_trial"] == 4


@pytest.fixture
def machines() -> None:
    if os.getuid() != 0:  # as CI is
        if os.environ.get("CI"):
            pytest.fail("CI needs root")
        pytest.skip("needs root, for namespaces in which a process is on another machine")


@pytest.mark.usefixtures("machines")
def test_a_study_outlives_its_workers_and_its_server(postgres_server: PostgresServer, tmp_path: Path) -> None:
    """Two killed workers, a stopped one that goes on later, a server that restarts, and lost connections."""
    found = campaign(postgres_server, tmp_path, machines=[3, 3], n_trials=30, seconds=0.7, grace_s=6.0)
    assert found["wrong"] == [], found
    assert found["finished"] == 30
    assert len(found["retries"]) == 3
    assert any("another worker took the trial over" in said for said in found["said"])
    assert not any("error" in said for said in found["said"]), found["said"]
