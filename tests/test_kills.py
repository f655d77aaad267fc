"""Searches killed by signals at random moments go on as if they had not been: a little of `benchmarks/kills.py`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

_SCRIPT = Path(__file__).parents[1] / "benchmarks" / "kills.py"


@pytest.mark.slow
def test_kills_at_random_cost_no_finished_trial(tmp_path: Path) -> None:
    # In a process of its own: a fork is safe only where nothing has run in parallel.
    output = tmp_path / "kills.json"
    few = ["--kills", "4", "--pairs", "1", "--workers", "0", "--lock-seconds", "0"]
    command = [sys.executable, str(_SCRIPT), *few, "--json", str(output)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    kills = json.loads(output.read_text(encoding="utf-8"))["kills"]
    assert [kill["kind"] for kill in kills] == ["pair"] * 2 + ["alone"] * 4
    assert [kill["problems"] for kill in kills] == [[]] * 6
    # What is not ended by the signal is stopped by it, unless the signal comes when all is done.
    assert {kill["status"] for kill in kills} <= {0, 130, -1, -2, -9, -15}
