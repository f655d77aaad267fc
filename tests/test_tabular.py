"""Searches replayed on a table: the rules of a search, the figures, and the table the defaults were chosen from."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import itertools
import math
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pytest
import torch
from click import ClickException
from optuna.pruners import BasePruner, NopPruner

from hpsearch.config import load_config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

_SCRIPT = Path(__file__).parents[1] / "benchmarks" / "tabular.py"


def _load_script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their annotations up there
    spec.loader.exec_module(module)
    return module


script = _load_script(_SCRIPT)
parallel = _load_script(_SCRIPT.with_name("parallel.py"))  # which imports the other by its name

_GRID = {"learning_rate": (1e-5, 1e-4, 1e-3), "num_train_epochs": (2, 4), "per_device_train_batch_size": (16, 32)}


def _table(peak: Callable[..., float]) -> Any:
    """Return a table over the small grid whose curves rise to `peak(levels)` in four of eight evaluations."""
    shares = (0.4, 0.6, 0.8, 1.0, 0.95, 0.9, 0.9, 0.9)
    curves = {levels: tuple(peak(*levels) * share for share in shares) for levels in script.points(_GRID)}
    seconds = {levels: 8.0 * _GRID["num_train_epochs"][levels[1]] for levels in curves}
    return script.Table(_GRID, curves, defaults=(0, 1, 0), seconds=seconds)


# The best is 1 point better than the second and 4 better than the defaults.
TABLE = _table(lambda rate, epochs, batch: 0.80 + 0.02 * rate + 0.01 * epochs - 0.01 * batch)


def _replay(sampler: str, pruner: BasePruner, seed: int = 0, **options: Any) -> Any:
    return script.replay(TABLE, script.sampler_named(sampler, seed), pruner, seed=seed, **options)


class _PrunesAt(BasePruner):
    """Prunes every trial that it is asked about at one evaluation."""

    def __init__(self, step: int) -> None:
        self._step = step

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return trial.last_step == self._step


def _run(*states: tuple[int, float]) -> list[Any]:
    """Return a search from the evaluations spent and the best value after each trial."""
    return [script.Finished(spent, spent / 4, 0, 0, best, best) for spent, best in states]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Keep the Gaussian process's many tiny products from waiting for a busy neighbour."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- The rules of a search --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["random", "tpe-8", "gp-5", "cma-es", "qmc"])
@pytest.mark.usefixtures("one_thread")
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_search_is_determined_by_its_seed(sampler: str) -> None:
    if sampler == "cma-es":
        pytest.importorskip("cmaes", reason="needs the package cmaes, for benchmarks only")
    first, again, other = (_replay(sampler, script.pruner_named("median 3/2"), seed, cap=56) for seed in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.parametrize("pruner", [*script.PRUNERS, script.SHIPPED])
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_search_spends_what_it_has_pruned_less(pruner: str) -> None:
    run = _replay("random", script.pruner_named(pruner), seed=1)
    spent = [0, *(state.evaluations for state in run)]
    used = [after - before for before, after in itertools.pairwise(spent)]
    assert used[0] == 8
    assert run[-1].n_pruned == sum(n < 8 for n in used)
    # Every curve here is highest at its middle, where patience has not run out.
    assert (run[-1].n_pruned == 0) == (pruner in {"none", "patient"})
    assert all(before.best <= after.best <= after.unpruned for before, after in itertools.pairwise(run))


@pytest.mark.parametrize("seed", range(5))
def test_without_pruning_a_search_finds_what_an_exhaustive_one_finds(seed: int) -> None:
    run = _replay("random", NopPruner(), seed)
    assert run[-1].best == max(max(curve) for curve in TABLE.curves.values())
    assert run[-1].best == run[-1].unpruned
    assert 0 <= len(run) - run[-1].n_repeated <= len(TABLE.curves)


def test_the_defaults_come_first_and_are_never_pruned() -> None:
    run = _replay("random", _PrunesAt(1), cap=40)
    assert [state.evaluations for state in run[:4]] == [8, 9, 10, 11]
    # The epochs of the defaults, then an eighth of those of each other.
    assert run[0].epochs == 4
    assert all(after.epochs - before.epochs in (0.25, 0.5) for before, after in itertools.pairwise(run))
    # What was pruned is not found: it cannot be exported.
    assert {state.best for state in run} == {max(TABLE.curves[TABLE.defaults])}
    assert run[-1].unpruned == TABLE.best


def test_nothing_is_pruned_at_the_last_evaluation() -> None:
    assert _replay("random", _PrunesAt(8))[-1].n_pruned == 0


def test_a_search_that_does_not_arrive_is_given_up() -> None:
    run = _replay("random", _PrunesAt(3), cap=100)
    assert [state.evaluations >= 100 for state in run[-2:]] == [False, True]


# --- The figures ------------------------------------------------------------------------------------------------------


def test_regret_never_is_negative_and_is_zero_once_the_best_is_complete() -> None:
    runs = [_replay("random", script.pruner_named("median 3/2"), seed) for seed in range(20)]
    after = [script.regrets(runs, TABLE.best, evaluations=budget) for budget in (8, 40, 160, script.CAP)]
    assert after[0] == pytest.approx([4.0] * 20)  # the defaults'
    for less, more in itertools.pairwise(after):
        assert all(early >= late >= 0 for early, late in zip(less, more, strict=True))
    assert after[-1] == [100 * (TABLE.best - run[-1].best) for run in runs]
    assert 0.0 in after[-1]


def test_regret_counts_the_trials_that_end_within_a_budget() -> None:
    run = _run((8, 0.70), (16, 0.75), (20, 0.75), *((20 + 8 * i, 0.79) for i in range(1, 18)))
    assert script.regrets([run], 0.8, evaluations=19) == pytest.approx([5.0])
    assert script.regrets([run], 0.8, evaluations=27) == pytest.approx([5.0])
    assert script.regrets([run], 0.8, evaluations=28) == pytest.approx([1.0])
    assert script.regrets([run], 0.8) == pytest.approx([1.0])


def test_arrival_is_the_spending_after_which_half_and_nine_tenths_of_the_searches_are_near() -> None:
    runs = [_run((8, 0.7), (8 * n, 0.796)) for n in range(2, 11)]
    never = _run((8, 0.7), (640, 0.79))
    assert script.arrival([*runs, never], 0.8, "evaluations") == {"median": 48.0, "p90": 80.0}
    assert script.arrival([*runs, never], 0.8, "epochs") == {"median": 12.0, "p90": 20.0}
    assert script.arrival([*runs, never, never], 0.8, "evaluations") == {"median": 56.0, "p90": None}


def test_a_false_prune_is_a_pruned_trial_that_would_have_been_the_best() -> None:
    kept = [script.Finished(8 * i, 4.0 * i, 0, i // 2, 0.8, 0.8) for i in range(1, 21)]
    lost = [dataclasses.replace(state, n_pruned=5, unpruned=0.82) for state in kept]
    figures = script.summary(("random", "none"), [kept, kept, kept, lost], 0.82)["at_20_trials"]
    spent = {"evaluations": 160, "epochs": 80, "repeated": 10}
    pruned = {"pruned": 5 / 80, "false_prunes": 0.25, "points_lost_to_pruning": 0.5}
    assert figures == pytest.approx({**spent, **pruned})


def test_the_shipped_defaults_are_compared_seed_by_seed() -> None:
    states = [[(8 * i, value) for i in range(1, 21)] for value in (0.70, 0.74, 0.75)]
    shipped = [_run(*states[i]) for i in (1, 1, 1)]
    baseline = [_run(*states[i]) for i in (0, 1, 2)]
    figures = script.comparison(shipped, baseline, 0.8)["20 trials"]
    assert figures["difference"]["mean"] == pytest.approx(-1.0)  # the mean of -4, 0 and 1
    assert figures["difference"]["error"] == pytest.approx(math.sqrt(7 / 3))
    assert (figures["better"], figures["equal"]) == pytest.approx((1 / 3, 1 / 3))


def test_what_pairs_of_levels_explain_is_no_noise() -> None:
    generator = random.Random(0)
    wide = {**_GRID, "learning_rate": tuple(range(30))}

    def table(noise: float) -> Any:
        curves = {
            levels: (0.5 + 0.01 * levels[0] * levels[1] + 0.02 * levels[2] + generator.gauss(0, noise),)
            for levels in script.points(wide)
        }
        return script.Table(wide, curves, (0, 0, 0))

    assert script.unexplained(table(0.0)) == pytest.approx(0.0, abs=1e-9)
    assert script.unexplained(table(0.003)) == pytest.approx(0.003, rel=0.3)


def test_every_pair_has_a_cell_in_every_table_of_the_report() -> None:
    pairs = [("random", "none"), ("random", "median 3/2"), (script.SHIPPED, script.SHIPPED)]
    runs = {
        (sampler, pruner): [_replay(sampler, script.pruner_named(pruner), seed) for seed in range(3)]
        for sampler, pruner in pairs
    }
    document = {**script.results_of(TABLE, runs), "conditions": "here and now"}
    lines = script.markdown(document).splitlines()
    assert lines[0].startswith("12 configurations: best F1 0.8500, median 0.8200, defaults 0.8100; 1 are within")
    rows = [line for line in lines if line.startswith("| random |")]
    assert len(rows) == 8
    assert all(len(line.split("|")) == 5 and "| |" not in line for line in rows)
    assert lines[-1] == "here and now"


# --- Many workers -----------------------------------------------------------------------------------------------------


def _search(sampler: Any, n_workers: int, seed: int = 0, n_trials: int = 20) -> Any:
    pruner = script.pruner_named(script.SHIPPED)
    return parallel.search(TABLE, sampler, pruner, seed=seed, n_workers=n_workers, n_trials=n_trials)


@pytest.mark.parametrize("sampler", parallel.SAMPLERS)
@pytest.mark.parametrize("seed", range(3))
def test_one_worker_searches_as_the_sequential_replay_does(sampler: str, seed: int) -> None:
    one = _search(parallel.SAMPLERS[sampler](seed), 1, seed)
    pruner = script.pruner_named(script.SHIPPED)
    assert list(one.finished) == script.replay(TABLE, parallel.SAMPLERS[sampler](seed), pruner, seed=seed)[:20]
    assert one.finished[-1].n_pruned > 0
    assert all(before.ended == after.started for before, after in itertools.pairwise(one.spans))


@pytest.mark.parametrize(("n_workers", "n_trials"), [(4, 20), (16, 20), (16, 5)])
def test_so_many_trials_run_at_once_and_no_more_are_run_than_asked_for(n_workers: int, n_trials: int) -> None:
    many = _search(script.sampler_named(script.SHIPPED, 0), n_workers, n_trials=n_trials)
    assert len(many.spans) == len(many.finished) == n_trials
    ends = [span.ended for span in many.spans]
    assert ends == sorted(ends)
    assert many.seconds == ends[-1]
    moments = sorted({span.started for span in many.spans})
    at_once = [sum(span.started <= now < span.ended for span in many.spans) for now in moments]
    assert max(at_once) == min(n_workers, n_trials)
    assert set(at_once[:-1]) <= {n_workers}, "as long as there is something to start, nobody is idle"
    assert sum(span.ended - span.started for span in many.spans) == pytest.approx(8 * many.finished[-1].epochs)


class _Watching(optuna.samplers.RandomSampler):
    """Keeps what it could have known at each draw."""

    def __init__(self) -> None:
        super().__init__(seed=0)
        self.finished: list[int] = []
        self.running: list[int] = []

    def before_trial(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        states = [other.state for other in study.get_trials(deepcopy=False) if other.number != trial.number]
        self.finished.append(sum(state.is_finished() for state in states))
        self.running.append(len(states) - self.finished[-1])


def test_a_draw_knows_what_has_ended_by_then_and_sees_the_others_running() -> None:
    sampler = _Watching()
    spans = _search(sampler, 4).spans
    assert sampler.running == [0, 1, 2, *[3] * 17]
    for known, started in zip(sampler.finished, sorted(span.started for span in spans), strict=True):
        ended = [span.ended for span in spans]
        assert sum(end < started for end in ended) <= known <= sum(end <= started for end in ended)


def test_the_shipped_sampler_is_the_one_with_the_liar_which_matters_to_many_workers_only() -> None:
    samplers = {name: parallel.SAMPLERS[f"tpe, {name}"] for name in ("liar", "no liar")}
    table = script.read_table(parallel.TABLE)

    def searches(make: Callable[[int], Any], n_workers: int) -> list[Any]:
        pruner = script.pruner_named(script.SHIPPED)
        sizes = {"n_workers": n_workers, "n_trials": 20}
        return [parallel.search(table, make(seed), pruner, seed=seed, **sizes) for seed in range(2)]

    assert searches(samplers["liar"], 1) == searches(samplers["no liar"], 1)
    shipped = searches(lambda seed: script.sampler_named(script.SHIPPED, seed), 4)
    assert shipped == searches(samplers["liar"], 4)
    assert shipped != searches(samplers["no liar"], 4)


def test_an_evaluation_takes_its_share_of_the_median_training_alike() -> None:
    seconds = {**TABLE.seconds, (0, 0, 0): 800.0, (1, 1, 1): 0.8}  # a busy machine, and a fast one
    steps = parallel.steps_of(dataclasses.replace(TABLE, seconds=seconds))
    assert steps == {levels: _GRID["num_train_epochs"][levels[1]] for levels in TABLE.curves}


def test_what_many_workers_cost_is_told_seed_by_seed() -> None:
    runs = {
        parallel.Setting(sampler, pruner, n_workers, n_trials): [
            parallel.Result(
                0.2 + seed + 0.1 * (n_workers > 1) * (1 + (sampler != "tpe, liar")), 96 / n_workers, 8, 0, 0
            )
            for seed in range(3)
        ]
        for n_trials, sampler, pruner, n_workers in itertools.product(
            parallel.TRIALS, parallel.SAMPLERS, parallel.PRUNERS, parallel.WORKERS
        )
    }
    document = parallel.results_of(runs)
    for row in document["results"]:
        more = (row["workers"] > 1) * (0.1 if row["sampler"] == "tpe, liar" else 0.2)
        assert row["speed_up"] == row["workers"]
        assert row["regret"]["mean"] == pytest.approx(1.2 + more)
        assert row["regret_more_than_one_worker"] == pytest.approx({"mean": more, "error": 0})
    for row in document["regret_more_without_liar"]:
        assert row["mean"] == pytest.approx(0.1 * (row["workers"] > 1))
    lines = parallel.markdown({**document, "conditions": "here and now"}).splitlines()
    assert "| 40 | tpe, no liar | none | 4 | 1.40 ± 0.58 | 0.20 ± 0.00 | 24 | 4.0 | 8 | 0.0 |" in lines
    assert "| 80 | shipped | 16 | 0.10 ± 0.00 |" in lines


# --- The table --------------------------------------------------------------------------------------------------------


def _trained() -> dict[Any, dict[str, Any]]:
    curve = [0.1 * k + 1e-5 for k in range(1, 9)]
    return {levels: {"f1": curve, "seconds": 12.34} for levels in script.points(script.GRID)}


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    script.write_table(path, _trained(), ["how it came about"])
    table = script.read_table(path)
    assert set(table.curves) == set(script.points(script.GRID))
    assert table.curves[table.defaults] == pytest.approx([0.1 * k + 1e-5 for k in range(1, 9)], abs=1e-9)
    assert dict(zip(table.grid, table.values(table.defaults), strict=True)) == script.DEFAULTS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:-1], "expected the whole grid, got 1 configurations too few"),
        (lambda lines: [*lines, lines[-1]], "expected each configuration once"),
        (lambda lines: [*lines[:-1], lines[-1].replace("0.80001", "nan")], r"expected .* F1 in \[0, 1\]"),
    ],
    ids=["missing", "twice", "not finite"],
)
def test_a_table_that_is_no_full_grid_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    script.write_table(path, _trained(), [])
    path.write_text("\n".join(change(path.read_text(encoding="utf-8").splitlines())), encoding="utf-8")
    with pytest.raises(ClickException, match=message):
        script.read_table(path)


def test_a_work_file_is_gone_on_with_only_for_the_same_rows_and_model(tmp_path: Path) -> None:
    path = tmp_path / "work.jsonl"
    settings = {"weights": "a", "data": "b", "products": "bfloat16"}
    assert script.read_work(path, settings) == (settings, {})
    with path.open("a", encoding="utf-8") as file:
        file.write('{"levels": [0, 1], "f1": [0.5], "seconds": 1.0}\n')
    # The first run's format of products holds.
    kept, trained = script.read_work(path, {**settings, "products": "float32"})
    assert kept == settings
    assert list(trained) == [(0, 1)]
    with pytest.raises(ClickException, match="give another --work"):
        script.read_work(path, {**settings, "data": "c"})


def test_the_grids_defaults_are_the_point_nearest_the_tutorials() -> None:
    defaults = load_config("nsmc-mbert").defaults
    for name, levels in script.GRID.items():
        value = getattr(defaults, name)
        distance = (lambda level, value=value: abs(math.log(level / value))) if min(levels) > 0 else abs
        assert script.DEFAULTS[name] == min(levels, key=distance), name


def test_the_committed_table_has_every_configuration_once() -> None:
    path = _SCRIPT.with_name("tabular.csv")
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    curves = [[float(row[f"f1_{k}"]) for k in range(1, 9)] for row in rows]
    assert len({tuple(row[name] for name in script.GRID) for row in rows}) == len(rows) >= 200
    assert all(0 <= value <= 1 for curve in curves for value in curve)
    assert script.read_table(path).best == max(max(curve) for curve in curves)
