"""Trainings outside the search, each done once and kept: what `confirm` and `compare` are made of.

Any number of processes may work through the same trainings: each is claimed with a lock beside its record, which the
system releases when its process dies. So a kill loses the running training and nothing else, and the same command goes
on.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock, Timeout

from hpsearch.config import digest
from hpsearch.errors import Interrupted, StudyError, TrainingError
from hpsearch.folders import appearing_file
from hpsearch.trainer import SearchTrainer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from hpsearch.config import Hyperparameters
    from hpsearch.data import Split
    from hpsearch.observer import Observer
    from hpsearch.trainer import Task

SEEDS_A_BLOCK = 100
_FORMAT = 2  # of the records; the first had predictions in place of probabilities
_DIGITS = 6
_POLL_S = 0.2


def fresh_seeds(search_seed: int, n_seeds: int, *, block: int) -> tuple[int, ...]:
    """Return seeds that no other part of a study uses.

    With the search's seed s, `compare` has s + 1 to s + 100 (block 0) and `confirm` s + 101 to s + 200 (block 1): a
    configuration that was lucky on some seeds is never judged on the same ones again.
    """
    if not 1 <= n_seeds <= SEEDS_A_BLOCK:
        raise ValueError(f"expected 1 to {SEEDS_A_BLOCK} seeds, got {n_seeds}")
    first = search_seed + 1 + block * SEEDS_A_BLOCK
    return tuple((first + i) % 2**32 for i in range(n_seeds))


@dataclass(frozen=True, slots=True)
class Training:
    """A training that is to be done."""

    name: str
    """Whose it is, for a person: `defaults`, or such as `trial 7`."""
    hyperparameters: Hyperparameters
    seed: int


@dataclass(frozen=True, slots=True)
class Run:
    """What a training came to, as it is kept."""

    name: str
    seed: int
    value: float | None
    """The objective value on the validation rows; None if the training diverged."""
    scores: dict[str, float]
    """Every metric of the same evaluation on the validation rows."""
    seconds: float
    failure: str = ""
    """Why it diverged; else empty."""
    probabilities: list[list[float]] | None = None
    """Of the classes of each row of the split that was scored besides, to 6 digits; None if none was."""

    def scored(self) -> NDArray[np.float64]:
        """Return the probabilities, shape (n_rows, n_classes)."""
        return np.array(self.probabilities, dtype=np.float64)


class Runs:
    """The trainings that are kept in one folder."""

    def __init__(
        self,
        task: Task,
        folder: Path,
        *,
        identity: dict[str, Any],
        products: str,
        token_cache: Path,
        observer: Observer,
        stop_requested: Callable[[], bool],
        scored: Split | None = None,
    ) -> None:
        """Take what is trained, and where it is kept.

        Args:
            task: What is trained on what.
            folder: Where the records are; made when it is needed.
            identity: What a kept training must agree in, besides its hyperparameters and seed.
            products: Format of the matrix products, from `precision.py`.
            token_cache: Folder in which token ids are kept between processes.
            observer: Is told of every training.
            stop_requested: Asked after every optimizer step and while waiting.
            scored: A split whose rows each trained model is to score besides.
        """
        self._task = task
        self._folder = folder
        self._identity = {**identity, "products": products, "format": _FORMAT}
        self._products = products
        self._token_cache = token_cache
        self._observer = observer
        self._stop_requested = stop_requested
        self._split = scored
        self._trainer: SearchTrainer | None = None

    def finish(self, trainings: Sequence[Training]) -> list[Run]:
        """Return what each training came to, in their order; those that are not kept are done first.

        What other processes are at is left to them, and waited for in the end.

        Raises:
            Interrupted: If a stop was requested.
            StudyError: If a record cannot be read.
        """
        is_told = False
        while missing := [training for training in trainings if not self._record(training).exists()]:
            if sum(self._claim(training) for training in missing):
                continue
            if self._stop_requested():
                raise Interrupted
            if not is_told:
                self._observer.note(f"waiting for trainings of another process: {', '.join(map(_full_name, missing))}")
                is_told = True
            time.sleep(_POLL_S)
        return [self._read(training) for training in trainings]

    def trainer(self) -> SearchTrainer:
        """Return the one trainer of this process."""
        if self._trainer is None:
            self._trainer = SearchTrainer(
                self._task,
                folder=self._folder,
                observer=self._observer,
                products=self._products,
                stop_requested=self._stop_requested,
                token_cache=self._token_cache,
                also_scored=() if self._split is None else (self._split,),
            )
        return self._trainer

    def _claim(self, training: Training) -> bool:
        """Do a training unless another process is at it; say whether its record is there now."""
        record = self._record(training)
        record.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(record.with_suffix(".lock"), timeout=0)
        with suppress(Timeout), lock:
            if not record.exists():  # it may have come since it was missed
                self._do(training, record)
            record.with_suffix(".lock").unlink(missing_ok=True)  # who claims it from now on finds the record
            return True
        return False

    def _do(self, training: Training, record: Path) -> None:
        name = _full_name(training)
        trainer = self.trainer()
        self._observer.trial_started(name, training.hyperparameters)
        started = time.monotonic()
        try:
            outcome = trainer.fit(training.hyperparameters, seed=training.seed)
        except TrainingError as error:  # the same hyperparameters and seed diverge again
            run = Run(training.name, training.seed, None, {}, time.monotonic() - started, failure=str(error))
        else:
            probabilities = None if self._split is None else trainer.probabilities(self._split)
            trainer.release()
            run = Run(
                name=training.name,
                seed=training.seed,
                value=outcome.value,
                scores=outcome.best.scores,
                seconds=round(time.monotonic() - started, 3),
                probabilities=None if probabilities is None else probabilities.round(_DIGITS).tolist(),
            )
        with appearing_file(record) as aside:
            aside.write_text(json.dumps(asdict(run)), encoding="utf-8")
        state = "failed" if run.failure else "complete"
        self._observer.trial_ended(name, state, run.value, run.seconds, run.failure)

    def _read(self, training: Training) -> Run:
        record = self._record(training)
        try:
            return Run(**json.loads(record.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise StudyError(
                f"{record}: expected the record of a training, got: {error}; delete it and run the command again"
            ) from error

    def _record(self, training: Training) -> Path:
        hyperparameters = training.hyperparameters.model_dump(mode="json")
        key = digest({**self._identity, "hyperparameters": hyperparameters, "seed": training.seed})
        return self._folder / f"{key}.json"


def _full_name(training: Training) -> str:
    return f"{training.name}, seed {training.seed}"
