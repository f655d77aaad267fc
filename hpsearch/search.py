"""The search: trials of a study until enough are finished.

Each trial is one call of `Trainer.hyperparameter_search`, so that the count of finished trials, the time and a stop
request are looked at between trials, and a search that was interrupted goes on as if it had not been. Any number of
processes may do this for one study: they agree on nothing but the database.
"""

from __future__ import annotations

import gc
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import optuna
from filelock import FileLock
from optuna.trial import TrialState

from hpsearch.artifacts import place_of, remember
from hpsearch.checkpoints import (
    NotWrittenError,
    check_folder,
    discard_checkpoints,
    model_of,
    share_checkpoints,
    worth_keeping,
    write_checkpoint,
)
from hpsearch.data import load_search_data
from hpsearch.errors import ConfigError, DataError, HpsearchError, HubError, Interrupted, StudyError, UsageError
from hpsearch.memory import learnt_by
from hpsearch.model import open_model
from hpsearch.owner import Owner
from hpsearch.precision import fastest_products
from hpsearch.stall import Watchdog, end_process
from hpsearch.storage import NothingToStart, SearchStorage, plain_errors, stays_broken
from hpsearch.study import check_resumable, create_or_resume, is_in_order, mend, standing, study_lock
from hpsearch.trainer import SearchTrainer, Task

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from optuna.distributions import BaseDistribution
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial
    from transformers import PreTrainedModel

    from hpsearch.config import Config, SearchConfig
    from hpsearch.data import SearchData
    from hpsearch.memory import RowsAtOnce
    from hpsearch.model import ModelSource
    from hpsearch.observer import Observer
    from hpsearch.study import StudyPaths
    from hpsearch.trainer import Outcome


class Trainer(Protocol):
    """What runs the trials of a search: `SearchTrainer`, or in measurements of the search itself something shorter."""

    task: Task
    keep_outcome: Callable[[optuna.Trial, Outcome], None]
    made_progress: Callable[[], None]
    rows_at_once: RowsAtOnce

    def search_one(self, study: optuna.Study, sampler: BaseSampler, pruner: BasePruner) -> None:
        """Run one more trial."""

    def trained_model(self) -> PreTrainedModel:
        """Return the model of the trial that has just ended."""


_WAIT_S = 1.0  # between two looks at a study whose last trials run elsewhere


def run_search(
    task: Task,
    storage: BaseStorage,
    paths: StudyPaths,
    *,
    observer: Observer,
    timeout_s: float | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
    artifacts: str | None = None,
    make_trainer: Callable[..., Trainer] = SearchTrainer,
) -> optuna.Study:
    """Run trials until the study has `search.trials` finished ones; other processes may do so at the same time.

    Args:
        task: What is searched, from `prepare`.
        storage: Where the study is kept.
        paths: The study's name and folder.
        observer: Is told what happens.
        timeout_s: No trial starts after this many seconds.
        stop_requested: Asked after every optimizer step; True ends the search within seconds.
        artifacts: Where checkpoints are put besides the study's folder, from now on; None for where they were before.
        make_trainer: Makes what runs the trials, from what `SearchTrainer` takes.

    Raises:
        Interrupted: If a stop was requested; the running trial's parameters are tried first by the next run.
        StudyError: If `max_failures` trials in a row have failed, or the database cannot be read or written.
        UsageError: If the study was started with other data, another model or other settings, or is being run by
            other versions.
    """
    deadline = time.monotonic() + timeout_s if timeout_s is not None else math.inf
    check(task, storage, paths)
    with plain_errors(paths.study):
        study, own = open_search(task, storage, paths, observer, artifacts=artifacts)
        if standing(study, task.config.search.trials).n_finished < task.config.search.trials:
            if "products" not in study.user_attrs:
                fastest_products(task.model.hidden_size)  # is remembered; nobody shall wait meanwhile
            trainer = make_trainer(
                task,
                folder=paths.folder,
                observer=observer,
                # Chosen where trials are run, which is not everywhere where a search is started.
                products=own.exclusively(paths.study, lambda: products_of(study, task)),
                stop_requested=lambda: stop_requested() or own.heart.is_lost(),
                token_cache=paths.tokens,
            )
            watchdog = _watchdog(task.config.search.stall_minutes, own, observer)
            trainer.made_progress = watchdog.step
            _Search(trainer, study, own, paths, observer, deadline, stop_requested, watchdog).run()
    return study


def _watchdog(minutes: float | None, own: SearchStorage, observer: Observer) -> Watchdog:
    def give_up(reason: str) -> None:
        def close() -> None:
            observer.note(f"{reason}, and the trial cannot be ended from within: its process ends; run again to go on")
            own.abandon(reason)

        end_process(close)

    return Watchdog(None if minutes is None else 60 * minutes, give_up=give_up)


def open_search(
    task: Task, storage: BaseStorage, paths: StudyPaths, observer: Observer, *, artifacts: str | None = None
) -> tuple[optuna.Study, SearchStorage]:
    """Make or resume the study, put it in order, and see to it that its workers agree.

    Raises:
        StudyError: If its defaults have ended their process too often.
        UsageError: If it was started with something else, or is being run by other versions.
    """
    paths.folder.mkdir(parents=True, exist_ok=True)
    own = SearchStorage.over(storage, lock=paths.run_lock)

    def join() -> optuna.Study:
        study = create_or_resume(own, paths.study, task.config, _lock_of(task))
        check_folder(study, paths)
        if "labels" not in study.user_attrs:  # for readers that do not have the data at hand
            study.set_user_attr("labels", list(task.data.label_names))
        _check_versions(study, own)
        if artifacts is not None:
            remember(study, artifacts)
        return study

    study = own.exclusively(paths.study, join)
    _tidy(study, own, paths, task.config, observer)
    n_trials = task.config.search.trials

    def may_start(trials: list[FrozenTrial]) -> bool:
        counted = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        return sum(trial.state in counted for trial in trials) < n_trials

    own.may_start = may_start
    return study, own


def _check_versions(study: optuna.Study, own: SearchStorage) -> None:
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        owner = Owner.of(trial)
        if owner and not own.watch.is_gone(trial) and owner.versions != own.me.versions:
            theirs, ours = (
                ", ".join(f"{name} {number}" for name, number in versions.items() if number != other.get(name))
                for versions, other in ((owner.versions, own.me.versions), (own.me.versions, owner.versions))
            )
            raise UsageError(
                f"study {study.study_name!r}: expected the versions of the worker on {owner.host}, {theirs}, got "
                f"{ours}; install the same on both, or wait until that worker has ended"
            )


def _tidy(study: optuna.Study, own: SearchStorage, paths: StudyPaths, config: Config, observer: Observer) -> None:
    """Put in order what dead workers left, and delete checkpoints that are not among the best."""
    own.check_it_is_there()
    if not is_in_order(study, own.watch.is_gone):
        for number in own.exclusively(study.study_name, lambda: mend(study, config, own.watch.is_gone)):
            observer.note(f"trial {number} was cut short when its process died; its parameters are tried again")
    with FileLock(paths.run_lock):  # others on this machine tidy the same folder
        discard_checkpoints(study, paths, config.search.keep_checkpoints)


def check(task: Task, storage: BaseStorage, paths: StudyPaths) -> None:
    """Refuse to go on with a study that was started with something else, before anything is written.

    Raises:
        UsageError: With every difference.
        StudyError: If the database cannot be read.
    """
    with plain_errors(paths.study):
        check_resumable(storage, paths.study, _lock_of(task))


def products_of(study: optuna.Study, task: Task) -> str:
    """Return the format of a study's matrix products, chosen once for all its trials and comparisons."""
    if (kept := study.user_attrs.get("products")) is None:
        kept = fastest_products(task.model.hidden_size)
        study.set_user_attr("products", kept)
    return str(kept)


def _lock_of(task: Task) -> dict[str, Any]:
    return study_lock(task.config, data=task.data.fingerprint(), model=task.model.fingerprint)


def prepare(config: Config) -> Task:
    """Read the search's rows and open its model, without writing anything.

    Raises:
        UsageError: If config, data or model cannot be used.
        HubError: If something lives on a Hub that does not answer.
    """
    data = read_rows(config)
    return Task(config=config.with_absolute_paths(), model=open_encoder(config, data.label_names), data=data)


def read_rows(config: Config) -> SearchData:
    """Read the search's rows.

    Raises:
        UsageError: If they cannot be searched on.
        HubError: If they live on a Hub that does not answer.
    """
    data = load_search_data(config.data)
    if len(present := set(data.validation.labels.tolist())) < 2:
        raise DataError(
            f"{config.data.validation or config.data.train}: expected at least two labels among the "
            f"{len(data.validation):,} validation rows, got {data.label_names[present.pop()]!r} only; no trial could "
            f"be told from another, so set data.validation_rows higher"
        )
    return data


def open_encoder(config: Config, label_names: Sequence[str]) -> ModelSource:
    """Open the search's model and see that it loads.

    Raises:
        UsageError: If it cannot be used.
        HubError: If it lives on a Hub that does not answer.
    """
    model = open_model(config.model, tuple(config.defaults.dropouts()))
    try:
        model.check_it_loads(label_names)  # what does not load shall not start a study
    except HpsearchError:
        raise
    except Exception as error:  # what broken weights make these libraries raise is no closed set
        kind = ConfigError if model.is_local else HubError
        problem = " ".join(str(error).split())
        raise kind(
            f"model.name {config.model.name!r}: expected safetensors weights of an encoder, to be given a head of "
            f"{len(label_names)} labels, got: {problem}"
        ) from error
    return model


def search_data_of(study: optuna.Study, config: Config) -> SearchData:
    """Read the rows a study was run on.

    Raises:
        UsageError: If they are no longer the same.
    """
    data = load_search_data(config.data)
    stored = study.user_attrs["lock"]["data"]
    if data.fingerprint() != stored:
        raise UsageError(
            f"{config.data.train}: expected the rows that study {study.study_name!r} was run on "
            f"(fingerprint {stored}), got others ({data.fingerprint()}); restore the file"
        )
    return data


def task_of(study: optuna.Study, config: Config) -> Task:
    """Read the rows and open the model that a study was run on.

    Raises:
        UsageError: If they are no longer the same, or not there.
        HubError: If something lives on a Hub that does not answer.
    """
    return Task(config=config, model=model_of(study, config), data=search_data_of(study, config))


@dataclass(frozen=True, slots=True)
class _Search:
    """One worker's part of a search."""

    trainer: Trainer
    study: optuna.Study
    own: SearchStorage
    paths: StudyPaths
    observer: Observer
    deadline: float
    """No trial starts after it, on the monotonic clock."""
    stop_requested: Callable[[], bool]
    watchdog: Watchdog

    def run(self) -> None:
        """Run trials until there are enough, time is up or too many have failed in a row."""
        search = self.trainer.task.config.search
        self.trainer.keep_outcome = self._keep
        sampler, pruner = sampler_of(search), pruner_of(search)
        # What is alive now lives as long as the search; the collections that the Trainer forces in every trial (three,
        # 0.5 s) need not walk over it.
        gc.collect()
        gc.freeze()
        failures_in_a_row = 0
        self.observer.study_changed(standing(self.study, search.trials))
        self._share()
        while (now := standing(self.study, search.trials)).n_finished < search.trials:
            if self.stop_requested():
                raise Interrupted
            if time.monotonic() >= self.deadline:
                self.observer.note(
                    f"time is up with {now.n_finished} of {search.trials} trials finished; run again to go on"
                )
                break
            finished = self.study.get_trials(
                deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
            )
            self.trainer.rows_at_once = learnt_by(finished, self.own.me.host)  # also by other processes
            try:
                with self.watchdog.watching():
                    self.trainer.search_one(self.study, sampler, pruner)
                failures_in_a_row = 0
                self._share()
            except NothingToStart:
                # The running trials may be all that is needed. One that fails is made up for.
                time.sleep(_WAIT_S)
            except (Exception, KeyboardInterrupt) as error:
                if stays_broken(error):
                    raise
                if self.own.has_lost_trial() and not self.stop_requested():
                    self.observer.note(
                        "a trial was given up: the database was out of reach for too long, or another worker took the "
                        "trial over"
                    )
                    continue
                if isinstance(error, KeyboardInterrupt):  # asked for, or a second one that did not wait
                    raise
                # One bad trial costs one trial. Its reason is stored with it and shown.
                failures_in_a_row += 1
                if failures_in_a_row >= search.max_failures:
                    raise StudyError(
                        f"study {self.study.study_name!r}: expected a trial that works, got {failures_in_a_row} failed "
                        f"ones in a row, the last with {type(error).__name__}: {error}; mend the cause and run again"
                    ) from error
            finally:
                # Whatever happened: if the storage failed, the trial may still be open.
                _tidy(self.study, self.own, self.paths, self.trainer.task.config, self.observer)
                self.observer.study_changed(standing(self.study, search.trials))

    def _keep(self, trial: optuna.Trial, outcome: Outcome) -> None:
        # Before the trial is told complete: a complete trial has its checkpoint, unless the disk did not take it.
        self.own.check_it_is_there()
        task = self.trainer.task
        if not worth_keeping(self.study, outcome.value, task.config.search.keep_checkpoints):
            return
        try:
            model = self.trainer.trained_model()
            write_checkpoint(self.study, self.paths, trial.number, outcome, model, task.model.tokenizer)
        except NotWrittenError as error:
            trial.set_user_attr("checkpoint", f"not kept: {error}")
            self.observer.note(f"the weights of trial {trial.number} are not kept: {error}")
            return
        if (place := place_of(self.study)) is not None:
            self._reaching(lambda: place.put(trial.number, self.paths.checkpoint(trial.number)))

    def _share(self) -> None:
        self._reaching(
            lambda: share_checkpoints(self.study, self.paths, self.trainer.task.config.search.keep_checkpoints)
        )

    def _reaching(self, work: Callable[[], None]) -> None:
        """Do something where checkpoints are put; a place that is out of reach costs no trial."""
        try:
            work()
        except HpsearchError as error:
            self.observer.note(f"{error}. It is tried again after the next trial")


# --- Samplers and pruners ---------------------------------------------------------------------------------------------


class SeededByTrial(optuna.samplers.BaseSampler):
    """Draws each trial with a sampler of its own, seeded by the study's seed and the trial's number.

    A sampler's random state dies with its process, and a new one of the same seed repeats its first draws. With a
    seed of its own for each trial a resumed search draws what an undisturbed one would have drawn.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        """Take how to make a sampler from a seed, and the study's seed."""
        self._make = make
        self._seed = seed
        self._sampler = make(seed)
        self._infers = make(seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Make the trial's sampler."""
        # Of all the study's trials: with Hyperband the study given here shows those of one bracket only, and brackets
        # would repeat each other's draws. Retries are left out, so that a killed trial does not shift the draws of
        # those after it, and one whose first trial was killed while it drew draws what that one would have.
        trials = study._storage.get_all_trials(study._study_id, deepcopy=False)
        first = trial
        while (retried := first.user_attrs.get("retry_of")) is not None:
            first = trials[retried]
        n_draws = sum("retry_of" not in other.user_attrs for other in trials[: first.number])
        # 1,000,003 is prime: neighbouring study seeds share no trial seed within a million trials.
        self._sampler = self._make((self._seed + 1_000_003 * n_draws) % 2**32)
        self._sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return what is drawn together."""
        # One sampler for all trials, which draws nothing: it goes through the trials that are new to it, and not
        # through all of them each time.
        return self._infers.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw what is drawn together."""
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw one value on its own."""
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)


SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    # The constant liar keeps a draw clear of what other workers run: benchmarks/README.md has what it is worth to them.
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, n_startup_trials=8, constant_liar=True),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "gp": lambda seed: optuna.samplers.GPSampler(seed=seed),
}

PRUNERS: dict[str, Callable[[int], BasePruner]] = {
    # A high learning rate looks bad until it has decayed, so nothing is pruned in the first quarter of its schedule.
    "median": lambda k: optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=-(-k // 4), n_min_trials=3),
    "successive-halving": lambda k: optuna.pruners.SuccessiveHalvingPruner(
        min_resource=max(1, k // 4), reduction_factor=2
    ),
    "hyperband": lambda k: optuna.pruners.HyperbandPruner(min_resource=1, max_resource=k, reduction_factor=2),
    "none": lambda _: optuna.pruners.NopPruner(),
}


def sampler_of(search: SearchConfig) -> BaseSampler:
    """Return the sampler a search names."""
    return SeededByTrial(SAMPLERS[search.sampler], search.seed)


def pruner_of(search: SearchConfig) -> BasePruner:
    """Return the pruner a search names, for its number of evaluations."""
    return PRUNERS[search.pruner](search.evaluations)
