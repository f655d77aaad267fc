"""A search that is ended at any operation goes on as if it had not been: a sample of `benchmarks/crashes.py`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

_SCRIPT = Path(__file__).parents[1] / "benchmarks" / "crashes.py"


@pytest.mark.slow
def test_crashes_at_operations_on_files_statements_and_in_writes_cost_nothing(tmp_path: Path) -> None:
    # In a process of its own: a fork is safe only where nothing has run in parallel.
    output = tmp_path / "crashes.json"
    command = [sys.executable, str(_SCRIPT), "--points", "2", "--json", str(output)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    document = json.loads(output.read_text(encoding="utf-8"))
    assert document["problems"] == {}
    assert document["tried"] == {"files": 2, "statements": 2, "bytes": 2}
    # There is something to crash at: fewer points would mean that they are no longer counted.
    assert min(document["points"].values()) > 50
