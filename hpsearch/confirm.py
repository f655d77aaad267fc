"""The best trials again, on fresh seeds: which of them is best when luck is averaged out.

The best of twenty noisy trials looks better than it is. Here the search's best trials and the defaults are trained
again, each on the same seeds, none of them the search's, and scored on the validation rows; the test split stays
sealed. The best mean wins, and is what `export-best` and `compare` take from then on.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from filelock import FileLock

from hpsearch.checkpoints import find_checkpoint, share_checkpoints, write_checkpoint
from hpsearch.choice import candidates_of, default_params
from hpsearch.errors import HpsearchError, StudyError
from hpsearch.evidence import Candidate, Confirmation, keep_confirmation
from hpsearch.runs import Runs, Training, fresh_seeds
from hpsearch.search import products_of, task_of
from hpsearch.study import stored_config

if TYPE_CHECKING:
    from collections.abc import Callable

    import optuna
    from optuna.trial import FrozenTrial

    from hpsearch.config import Config
    from hpsearch.observer import Observer
    from hpsearch.runs import Run
    from hpsearch.study import StudyPaths
    from hpsearch.trainer import Task

_SAME = 1e-6  # values of the same training differ by less


def confirm(
    study: optuna.Study,
    paths: StudyPaths,
    *,
    n_best: int,
    n_seeds: int,
    observer: Observer,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Confirmation:
    """Train the best trials and the defaults on fresh seeds, rank them by mean and keep the result with the study.

    Finished trainings are kept in the study's folder: an interrupted confirmation goes on where it was, several
    processes share one, and a later one trains only what is new. The winner's checkpoint is there afterwards.

    Args:
        study: The study.
        paths: The study's paths.
        n_best: How many of the best trials to confirm, besides the defaults.
        n_seeds: Trainings of each, 1 to 100.
        observer: Is told what happens.
        stop_requested: Asked after every optimizer step.

    Raises:
        Interrupted: If a stop was requested.
        StudyError: If there is no complete trial besides the defaults, or every candidate diverges.
        UsageError: If data or model have changed since the search.
    """
    config = stored_config(study)
    trials = candidates_of(study, config, n_best=n_best)
    task = task_of(study, config)
    seeds = fresh_seeds(config.search.seed, n_seeds, block=1)
    runs = Runs(
        task,
        paths.confirmation,
        identity={"lock": study.user_attrs["lock"]},
        products=products_of(study, task),
        token_cache=paths.tokens,
        observer=observer,
        stop_requested=stop_requested,
    )
    # By seed, so that an interrupted confirmation is equally far with all.
    finished = runs.finish([_training(task, trial, seed) for seed in seeds for trial in trials])
    by_trial = [(trial, finished[i :: len(trials)]) for i, trial in enumerate(trials)]
    for trial, its_runs in by_trial:
        if failed := _first_failure(its_runs):
            observer.note(f"trial {trial.number} is left out: with seed {failed.seed} it {failed.failure}")
    confirmation = _ranking(study, config, seeds, by_trial)
    keep_confirmation(study, confirmation)  # first, so that a search that is running leaves the checkpoint there
    winner = next(trial for trial in trials if trial.number == confirmation.winner.trial)
    _have_checkpoint(study, paths, winner, runs, task, observer)
    try:
        share_checkpoints(study, paths, config.search.keep_checkpoints)
    except HpsearchError as error:
        observer.note(f"{error}. The next search or confirmation of this study tries it again")
    return confirmation


def _ranking(
    study: optuna.Study, config: Config, seeds: tuple[int, ...], by_trial: list[tuple[FrozenTrial, list[Run]]]
) -> Confirmation:
    """Rank the trials whose trainings all came to a value."""
    candidates = [
        Candidate(
            trial=trial.number,
            is_defaults=trial.params == default_params(config),
            params=dict(trial.params),
            search_value=trial.value,
            values=tuple(run.value for run in runs if run.value is not None),
        )
        for trial, runs in by_trial
        if not _first_failure(runs)
    ]
    if not candidates:
        raise StudyError(
            f"study {study.study_name!r}: expected a trial that trains on fresh seeds, got {len(by_trial)} of which "
            f"each diverges with one; start another study with lower learning rates"
        )
    return Confirmation(
        metric=config.metric,
        seeds=seeds,
        # Of equals the defaults, which took no search, and then the earlier trial.
        candidates=tuple(sorted(candidates, key=lambda one: (-one.mean, not one.is_defaults, one.trial))),
        seconds=round(sum(run.seconds for _, runs in by_trial for run in runs), 3),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        left_out=tuple(trial.number for trial, runs in by_trial if _first_failure(runs)),
    )


def _have_checkpoint(
    study: optuna.Study, paths: StudyPaths, trial: FrozenTrial, runs: Runs, task: Task, observer: Observer
) -> None:
    """Train a trial again, as the search did, where its checkpoint is gone: only those of the best few are kept."""
    with FileLock(paths.confirmation / "checkpoint.lock"):  # several processes may come here at the same time
        try:
            if find_checkpoint(study, paths, trial.number) is not None:
                return
        except HpsearchError as error:  # where it is put for other machines
            observer.note(f"{error}. It is trained again")
        training = _training(task, trial, task.config.search.seed)
        name = f"trial {trial.number} for its checkpoint"
        observer.trial_started(name, training.hyperparameters)
        trainer = runs.trainer()
        outcome = trainer.fit(training.hyperparameters, seed=training.seed)
        write_checkpoint(study, paths, trial.number, outcome, trainer.trained_model(), task.model.tokenizer)
        trainer.release()
        observer.trial_ended(name, "complete", outcome.value, outcome.seconds)
        if abs(outcome.value - (trial.value or 0.0)) > _SAME:
            observer.note(
                f"trial {trial.number} scores {task.config.metric} {outcome.value:.4f} when it is trained again, "
                f"{trial.value:.4f} in the search: another machine or other versions; what is exported is the new one"
            )


def _training(task: Task, trial: FrozenTrial, seed: int) -> Training:
    hyperparameters = task.config.defaults.replace(trial.params)
    is_defaults = hyperparameters == task.config.defaults
    return Training("defaults" if is_defaults else f"trial {trial.number}", hyperparameters, seed)


def _first_failure(runs: list[Run]) -> Run | None:
    return next((run for run in runs if run.failure), None)
