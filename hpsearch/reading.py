"""Studies in an SQLite file, read without Optuna's database layer.

That layer takes half a second to load and half a millisecond for each trial it reads (`benchmarks/README.md` has the
figures).
"""

from __future__ import annotations

import contextlib
import copy
import json
import sqlite3
from collections import defaultdict
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.distributions import json_to_distribution
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState

from hpsearch.errors import StudyError

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator

TABLES_VERSION = "v3.2.0.a"
"""Alembic's name for the tables that `ReadOnlyStorage` knows: Optuna's since 3.2."""

_TIMEOUT_S = 60.0  # how long a reader waits for a writer


class ReadOnlyStorage(BaseStorage):
    """The studies of an SQLite file, read without Optuna's database layer; a study's trials once, when asked for.

    Source:
        The tables and what they mean: Optuna 5.0.0, `storages/_rdb/models.py` and
        `RDBStorage._build_frozen_trial_from_trial_model`.
    """

    @staticmethod
    def can_read(database: Path) -> bool:
        """Tell whether a file holds the tables that are known here."""
        try:
            if not database.is_file() or not database.stat().st_size:  # SQLite would wait for a pipe
                return False
        except OSError:  # such as a name that is too long
            return False
        with contextlib.closing(sqlite3.connect(database, timeout=_TIMEOUT_S)) as connection:
            try:
                return connection.execute("SELECT version_num FROM alembic_version").fetchall() == [(TABLES_VERSION,)]
            except sqlite3.Error:
                return False

    def __init__(self, database: Path) -> None:
        """Read which studies there are.

        Raises:
            StudyError: If the file is broken.
        """
        self._database = database
        self._trials: dict[int, list[FrozenTrial]] = {}
        directions: defaultdict[int, list[StudyDirection]] = defaultdict(list)
        with self._reading() as connection:
            for study_id, direction in connection.execute(
                "SELECT study_id, direction FROM study_directions ORDER BY study_id, objective"
            ):
                directions[study_id].append(StudyDirection[direction])
            user, system = (
                _from_json(connection.execute(f"SELECT study_id, key, value_json FROM study_{kind}_attributes"))
                for kind in ("user", "system")
            )
            names = connection.execute("SELECT study_id, study_name FROM studies ORDER BY study_id").fetchall()
        self._studies: dict[int, FrozenStudy] = {
            study_id: FrozenStudy(
                name, None, user[study_id], system[study_id], study_id, directions=directions[study_id]
            )
            for study_id, name in names
        }

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(self._database, timeout=_TIMEOUT_S)) as connection:
            try:
                connection.execute("BEGIN")  # what is read is of one moment, also while a search writes
                yield connection
            except sqlite3.Error as error:
                raise StudyError(
                    f"storage {self._database}: expected a database of Optuna studies, got: {error}"
                ) from error

    def get_all_studies(self) -> list[FrozenStudy]:
        """Return all studies, the oldest first."""
        return list(self._studies.values())

    def get_study_id_from_name(self, study_name: str) -> int:
        """Return the id of a study."""
        return {study.study_name: study_id for study_id, study in self._studies.items()}[study_name]

    def get_study_name_from_id(self, study_id: int) -> str:
        """Return the name of a study."""
        return self._studies[study_id].study_name

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """Return the direction of each objective."""
        return self._studies[study_id].directions

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Return what was stored with a study."""
        return self._studies[study_id].user_attrs

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Return what Optuna stored with a study."""
        return self._studies[study_id].system_attrs

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,  # noqa: FBT001, FBT002  Optuna's signature
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """Return the trials of a study in the order of their numbers."""
        if study_id not in self._studies:
            raise KeyError(study_id)
        if study_id not in self._trials:
            with self._reading() as connection:
                self._trials[study_id] = _read_trials(connection, study_id)
        trials = [trial for trial in self._trials[study_id] if states is None or trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return one trial."""
        trials = (trial for study_id in self._studies for trial in self.get_all_trials(study_id, deepcopy=False))
        return {trial._trial_id: trial for trial in trials}[trial_id]

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"{self._database} was opened for reading only")

    create_new_study = delete_study = set_study_user_attr = set_study_system_attr = _refuse
    create_new_trial = set_trial_param = set_trial_state_values = set_trial_intermediate_value = _refuse
    set_trial_user_attr = set_trial_system_attr = _refuse


def _read_trials(connection: sqlite3.Connection, study_id: int) -> list[FrozenTrial]:
    def rows(columns: str, table: str, order: str) -> Iterable[Any]:
        return connection.execute(
            f"SELECT trial_id, {columns} FROM {table} "
            f"WHERE trial_id IN (SELECT trial_id FROM trials WHERE study_id = ?) ORDER BY {order}",
            (study_id,),
        )

    params: defaultdict[int, dict[str, Any]] = defaultdict(dict)
    distributions: defaultdict[int, dict[str, Any]] = defaultdict(dict)
    distribution_of = lru_cache(json_to_distribution)  # most trials of a study have the same
    for trial_id, name, value, text in rows("param_name, param_value, distribution_json", "trial_params", "param_id"):
        distribution = distributions[trial_id][name] = distribution_of(text)
        params[trial_id][name] = distribution.to_external_repr(value)
    values: defaultdict[int, list[float]] = defaultdict(list)
    for trial_id, value, kind in rows("value, value_type", "trial_values", "trial_id, objective"):
        values[trial_id].append(_number(value, kind))
    curves: defaultdict[int, dict[int, float]] = defaultdict(dict)
    columns = "step, intermediate_value, intermediate_value_type"
    for trial_id, step, value, kind in rows(columns, "trial_intermediate_values", "trial_id, step"):
        curves[trial_id][step] = _number(value, kind)
    user, system = (
        _from_json(rows("key, value_json", f"trial_{kind}_attributes", "trial_id, key")) for kind in ("user", "system")
    )
    trials = connection.execute(
        "SELECT trial_id, number, state, datetime_start, datetime_complete FROM trials WHERE study_id = ? "
        "ORDER BY number",
        (study_id,),
    )
    return [
        FrozenTrial(
            number=number,
            state=TrialState[state],
            value=None,
            values=values.get(trial_id),
            datetime_start=_local(started),
            datetime_complete=_local(ended),
            params=params[trial_id],
            distributions=distributions[trial_id],
            user_attrs=user[trial_id],
            system_attrs=system[trial_id],
            intermediate_values=curves[trial_id],
            trial_id=trial_id,
        )
        for trial_id, number, state, started, ended in trials
    ]


def _from_json(rows: Iterable[tuple[int, str, str]]) -> defaultdict[int, dict[str, Any]]:
    """Return the attributes of each study or trial, by its id."""
    attributes: defaultdict[int, dict[str, Any]] = defaultdict(dict)
    for owner, key, text in rows:
        attributes[owner][key] = json.loads(text)
    return attributes


_NO_NUMBERS = {"INF_POS": float("inf"), "INF_NEG": float("-inf"), "NAN": float("nan")}


def _number(value: float | None, kind: str) -> float:
    return _NO_NUMBERS[kind] if value is None else value


def _local(stored: str | None) -> datetime | None:
    """Return a time of the tables, in UTC, as Optuna gives it: local and without a zone."""
    if stored is None:
        return None
    return datetime.fromisoformat(stored).replace(tzinfo=UTC).astimezone().replace(tzinfo=None)
