"""Try Optuna's gRPC proxy: plain Optuna workers on PostgreSQL, each with a connection of its own, or through the proxy.

    pip install grpcio
    python benchmarks/proxy.py --workers 64 --json FILE

Each worker is a process that asks for a trial, draws three values, reports eight and tells the last, in a second, as
`study.optimize` does; none of hpsearch's own: its workers cannot use the proxy, which passes on no locks (see
docs/scaling.md). Printed are the share of the ideal, as in `cluster.py`, and the connections that the server saw.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
import warnings
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import optuna
from optuna.storages import GrpcStorageProxy, RDBStorage, get_storage, run_grpc_proxy_server

if TYPE_CHECKING:
    from servers import PostgresServer

_STUDY, _HOST = "plain", "127.0.0.1"
_TRIALS_EACH, _REPORTS, _SECONDS = 5, 8, 1.0


def _objective(trial: optuna.Trial) -> float:
    started = time.monotonic()
    value = sum(trial.suggest_float(name, 0, 1) for name in "abc")
    for step in range(1, _REPORTS + 1):
        time.sleep(max(0.0, started + _SECONDS * step / _REPORTS - time.monotonic()))
        trial.report(value, step)
    return value


def _storage(url: str, port: int | None) -> Any:
    if port is not None:
        return GrpcStorageProxy(host=_HOST, port=port)
    return get_storage(RDBStorage(url, engine_kwargs={"pool_size": 1, "max_overflow": 1}, skip_table_creation=True))


def _work(url: str, port: int | None, gate: Any) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    gate.wait()
    sampler = optuna.samplers.TPESampler(n_startup_trials=8, seed=os.getpid())
    study = optuna.load_study(study_name=_STUDY, storage=_storage(url, port), sampler=sampler)
    study.optimize(_objective, n_trials=_TRIALS_EACH)


def _serve(url: str, port: int) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    run_grpc_proxy_server(get_storage(url), host=_HOST, port=port)


def measure(server: PostgresServer, *, n_workers: int, port: int | None) -> dict[str, Any]:
    """Have workers run their trials, directly or through a proxy on a port."""
    database = server.make_database()
    url = server.url(database)
    storage = get_storage(url)
    optuna.create_study(study_name=_STUDY, storage=storage)
    storage._backend.engine.dispose()  # type: ignore[attr-defined]  # or the processes would share its connection
    context = multiprocessing.get_context("fork")
    proxy = context.Process(target=_serve, args=(url, port)) if port is not None else None
    if proxy is not None:
        proxy.start()
        GrpcStorageProxy(host=_HOST, port=port or 0).wait_server_ready(60)
    gate = context.Event()
    workers = [context.Process(target=_work, args=(url, port, gate)) for _ in range(n_workers)]
    for worker in workers:
        worker.start()
    gate.set()
    most = 0
    while any(worker.is_alive() for worker in workers):
        (count,) = server.execute(f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}'")
        most = max(most, int(str(count[0])))
        time.sleep(0.2)
    if proxy is not None:
        proxy.terminate()
        proxy.join()
    trials = optuna.load_study(study_name=_STUDY, storage=storage).get_trials(deepcopy=False)
    storage._backend.engine.dispose()  # type: ignore[attr-defined]
    complete = [trial for trial in trials if trial.state == optuna.trial.TrialState.COMPLETE]
    begin = min(trial.datetime_start for trial in trials if trial.datetime_start)
    end = max(trial.datetime_complete for trial in complete if trial.datetime_complete)
    seconds = (end - begin).total_seconds()
    return {
        "way": "directly" if port is None else "through the proxy",
        "workers": n_workers,
        "complete": len(complete),
        "share_of_ideal": round(_TRIALS_EACH * _SECONDS / seconds, 3),
        "most_connections": most,
    }


@click.command(help=__doc__)
@click.option("--workers", "n_workers", default=64, show_default=True)
@click.option("--port", default=13000, show_default=True, help="For the proxy.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), required=True)
def main(n_workers: int, port: int, json_path: Path) -> None:
    """Measure both ways."""
    from machine import machine  # beside this script
    from servers import postgres

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    with postgres(durable=True) as server:
        figures = [measure(server, n_workers=n_workers, port=way) for way in (None, port)]
    versions = ", ".join(f"{name} {version(name)}" for name in ("optuna", "grpcio", "psycopg"))
    conditions = f"{machine()}; {versions}; {date.today().isoformat()}"  # noqa: DTZ011  the day where it was run
    document = {"conditions": conditions, "figures": figures}
    text = json.dumps(document, indent=1, ensure_ascii=False)
    json_path.write_text(text + "\n", encoding="utf-8")
    click.echo(text)


if __name__ == "__main__":
    main()
