"""Workers on a Ray cluster of nodes that are all on this machine, and a search that loses one of them."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import optuna
import psutil
import pytest
from optuna.trial import TrialState

from hpsearch.errors import UsageError
from hpsearch.observer import Observer
from hpsearch.owner import Owner
from hpsearch.study import StudyPaths, load_study, open_storage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.servers import PostgresServer

pytestmark = pytest.mark.slow

_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Return a cluster whose head has no place for workers; CI must have Ray."""
    if importlib.util.find_spec("ray") is None:
        if os.environ.get("CI"):
            pytest.fail("CI needs ray")
        pytest.skip("needs ray (pip install 'hpsearch[ray]')")
    from ray.cluster_utils import Cluster

    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield started
    started.shutdown()


@pytest.fixture
def nodes(cluster: Any) -> Iterator[list[Any]]:
    """Return two nodes with a place each."""
    added = [cluster.add_node(num_cpus=1) for _ in range(2)]
    yield added
    for node in set(added) & set(cluster.worker_nodes):
        cluster.remove_node(node)


def _start(cluster: Any, url: str, config: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start a search of two workers."""
    long = ("--set", "space.num_train_epochs=null", "--set", "defaults.num_train_epochs=30")
    command = ["run", "--config", config.name, "--ray", cluster.address, "--workers", "2", *arguments, *long]
    return subprocess.Popen(
        [sys.executable, "-m", "hpsearch", *command], cwd=config.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        encoding="utf-8", env={**os.environ, "HPSEARCH_STORAGE": url},
    )  # fmt: skip


def _wait_for_two(process: subprocess.Popen[str], url: str) -> set[int]:
    """Wait until two workers are in a trial, and return them."""
    give_up = time.monotonic() + 200
    while len(found := _running_in(url)) != 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < give_up
        time.sleep(0.1)
    return found


def _trials(url: str) -> list[Any]:
    """Return the study's trials, none while there is no such study."""
    storage = open_storage(url, create=True)
    try:
        names = optuna.study.get_all_study_names(storage)
        return load_study(storage, "toy").get_trials(deepcopy=False) if names else []
    finally:
        storage._backend.engine.dispose()  # type: ignore[attr-defined]


def _running_in(url: str) -> set[int]:
    """Return the processes that have a running trial."""
    owners = [Owner.of(trial) for trial in _trials(url) if trial.state == TrialState.RUNNING]
    return {owner.pid for owner in owners if owner}


def test_a_cluster_that_is_not_there_is_named() -> None:
    """The first test: `auto` finds the cluster of the others."""
    pytest.importorskip("ray")
    from hpsearch.on_ray import connected

    with pytest.raises(UsageError, match=r"--ray auto: expected a Ray cluster, got: "), connected("auto"):
        pass


def test_a_search_that_loses_a_node_comes_to_the_exact_number(
    cluster: Any, nodes: list[Any], postgres_server: PostgresServer, database: str, toy_yaml: Path
) -> None:
    url = postgres_server.url(database)
    process = _start(cluster, url, toy_yaml, "--trials", "5")
    try:
        _wait_for_two(process, url)
        cluster.remove_node(nodes[1], allow_graceful=False)
        out, err = process.communicate(timeout=200)
    finally:
        process.kill()
    assert process.returncode == 0, err
    trials = _trials(url)
    assert sum(trial.state in _FINISHED for trial in trials) == 5
    (lost,) = [trial for trial in trials if trial.state == TrialState.FAIL]
    assert lost.user_attrs["failure"] == "the process died"
    (again,) = [trial for trial in trials if trial.user_attrs.get("retry_of") == lost.number]
    assert (again.params, again.state in _FINISHED) == (lost.params, True)
    # One view of all, and nothing of Ray's own among the results.
    assert out.startswith("study toy   f1, maximize   ")
    assert f"note: trial {lost.number} was cut short when its process died" in err
    assert sum(" complete " in line or " pruned " in line for line in err.splitlines()) >= 5


def test_a_stop_ends_all_workers(
    cluster: Any, nodes: list[Any], postgres_server: PostgresServer, database: str, toy_yaml: Path
) -> None:
    url = postgres_server.url(database)
    process = _start(cluster, url, toy_yaml, "--trials", "50")
    try:
        workers = _wait_for_two(process, url)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=100)
    finally:
        process.kill()
    assert process.returncode == 130, err
    ended = [trial for trial in _trials(url) if trial.state not in (TrialState.WAITING, *_FINISHED)]
    assert {trial.state for trial in ended} == {TrialState.FAIL}
    assert {trial.user_attrs["failure"] for trial in ended} == {"interrupted"}
    assert _running_in(url) == set()
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in workers if psutil.pid_exists(pid)], timeout=30)
    assert alive == []


@pytest.mark.usefixtures("nodes")
def test_a_file_is_no_storage_for_several_nodes(cluster: Any, tmp_path: Path) -> None:
    from hpsearch.on_ray import connected, run_on_ray

    nothing: Any = None
    with (
        connected(cluster.address),
        pytest.raises(UsageError, match=r"expected a database that 3 nodes reach, such as postgresql://host/db"),
    ):
        run_on_ray(
            nothing, nothing, f"sqlite:///{tmp_path}/new.db", StudyPaths(tmp_path, "toy"), n_workers=2, per_gpu=1,
            observer=Observer(), set_up=nothing,
        )  # fmt: skip
