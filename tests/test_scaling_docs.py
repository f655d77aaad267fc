"""The job script and the manifest of docs/scaling.md: the one is run here, the other is what the command line takes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from optuna.trial import TrialState
from ruamel.yaml import YAML

from hpsearch.cli import cli
from hpsearch.owner import Owner
from hpsearch.study import load_study, open_storage

if TYPE_CHECKING:
    from benchmarks.servers import PostgresServer

_PAGE = (Path(__file__).parents[1] / "docs" / "scaling.md").read_text(encoding="utf-8")


def _block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", _PAGE, flags=re.DOTALL | re.MULTILINE)
    return str(found)


def test_the_job_script_is_one() -> None:
    script = _block("bash")
    assert script.startswith("#!/bin/bash\n#SBATCH")
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    # Directives after the first command are not read.
    assert script.rindex("#SBATCH") < script.index("set -euo")


@pytest.mark.slow
def test_jobs_of_the_script_run_one_study(postgres_server: PostgresServer, database: str, toy_yaml: Path) -> None:
    folder, url = toy_yaml.parent, postgres_server.url(database)
    shutil.copy(toy_yaml, folder / "my-search.yaml")
    (folder / ".venv" / "bin").mkdir(parents=True)
    bin_of_python = Path(sys.executable).parent
    (folder / ".venv" / "bin" / "activate").write_text(f"PATH={bin_of_python}:$PATH\n", encoding="utf-8")
    script = folder / "search.sbatch"
    small = _block("bash").replace("--trials 200", "--trials 4").replace("/shared/checkpoints", f"{folder}/shared")
    assert small.count("--trials 4") == small.count(f"{folder}/shared") == 1
    script.write_text(small, encoding="utf-8")
    given = {**os.environ, "SLURM_SUBMIT_DIR": str(folder), "HPSEARCH_STORAGE": url}
    jobs = [
        subprocess.Popen(["bash", script], cwd="/", env=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    for job in jobs:
        _, err = job.communicate(timeout=200)
        assert job.returncode == 0, err.decode()
    storage = open_storage(url, create=False)
    trials = load_study(storage, "toy").get_trials()
    assert sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials) == 4
    assert {Owner.of(trial).pid for trial in trials} <= {job.pid for job in jobs}, "the signals of SLURM reach them"  # type: ignore[union-attr]
    assert list((folder / "shared").glob("toy-*/trial-*"))
    storage._backend.engine.dispose()  # type: ignore[attr-defined]


def test_the_manifest_starts_a_command_that_there_is() -> None:
    manifest = YAML(typ="safe").load(_block("yaml"))
    assert (manifest["apiVersion"], manifest["kind"]) == ("batch/v1", "Job")
    spec = manifest["spec"]
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] in ("Never", "OnFailure"), "all that a Job takes"
    assert spec["parallelism"] == spec["completions"]
    (container,) = pod["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    program, command, *arguments = container["command"]
    assert (program, command) == ("hpsearch", "run")
    context = cli.commands["run"].make_context("run", list(arguments))
    assert (context.params["trials"], context.params["n_workers"]) == (200, 1)
    assert context.params["artifacts"] == "s3://bucket/checkpoints"
    assert {variable["name"] for variable in container["env"]} == {"HPSEARCH_STORAGE", "PGPASSWORD"}
