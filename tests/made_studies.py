"""Studies as a search leaves them, made without training, for what only reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optuna.trial import TrialState

from hpsearch.config import build_config
from hpsearch.evidence import Candidate, Comparison, Confirmation, Interval, Side, Slice
from hpsearch.space import suggest
from hpsearch.study import create_or_resume

if TYPE_CHECKING:
    import optuna
    from optuna.storages import BaseStorage

HOSTILE = "a | b `c` <script>alert(1)</script>\n---\n![x](http://evil.example/x.png) 한글 👩\u200d💻 \u202e*_~\\"
"""A name that is Markdown, HTML, YAML, a row of a table, two lines and right to left."""

_CURVE = (0.5, 0.625, 0.75, 0.6875)


def make_study(
    storage: BaseStorage,
    name: str = "toy",
    *,
    labels: tuple[str, ...] = ("bad", "good"),
    gains: tuple[float | None, ...] = (0.0, 0.125, None),
    **data: Any,
) -> optuna.Study:
    """Return a study of three trials: the defaults, one that is better, and one that was pruned.

    Args:
        storage: Where it is made.
        name: Its name.
        labels: Names of the classes.
        gains: Of each trial, the defaults first, what is added to its values; None for one that was pruned.
        data: Keys of the configuration's section `data`.
    """
    tree = {
        "model": {"name": "/home/someone/models/encoder"},
        "data": {"train": "/home/someone/rows.csv", **data},
        "space": {
            "learning_rate": {"type": "float", "low": 1e-5, "high": 1e-3, "log": True},
            "lr_scheduler_type": {"type": "categorical", "choices": ["linear", "cosine"]},
        },
        "search": {"evaluations": 4, "trials": 3},
    }
    config = build_config(tree, where=name)
    study = create_or_resume(storage, name, config, {"data": "0123456789abcdef", "model": "fedcba9876543210"})
    study.set_user_attr("labels", list(labels))
    for gain in gains:
        trial = study.ask()
        suggest(trial, config.space)
        for step, value in enumerate(_CURVE[: 2 if gain is None else 4], start=1):
            trial.report(value + (gain or 0.0), step)
        trial.set_user_attr("effective", {"seed": 42, "products": "float32", "device": "cpu", "note": "x" * 900})
        if gain is None:
            study.tell(trial, state=TrialState.PRUNED)
            continue
        n = len(labels)
        attributes = {
            "best_step": 3,
            "scores": {"f1": 0.75 + gain, "accuracy": 0.7 + gain, "mcc": 0.4 + gain},
            "confusion": [[20 if i == j else 3 for j in range(n)] for i in range(n)],
            "train_losses": [0.7, 0.6, 0.5, 0.4],
            "eval_losses": [0.7, 0.65, 0.6, 0.62],
        }
        for key, value in attributes.items():
            trial.set_user_attr(key, value)
        study.tell(trial, 0.75 + gain)
    return study


def make_comparison(study: optuna.Study, *, trial: int = 1, labels: tuple[str, ...] = ("bad", "good")) -> Comparison:
    """Return a comparison of a trial with the defaults over three seeds."""
    confusion = tuple(tuple(60 if i == j else 6 for j in range(len(labels))) for i in range(len(labels)))
    return Comparison(
        study=study.study_name,
        metric="f1",
        trial=trial,
        chosen_by="search",
        labels=labels,
        test_rows=1234,
        test_fingerprint="00ff00ff00ff00ff",
        looks=2,
        seeds=(43, 44, 45),
        default=Side({"learning_rate": 5e-5}, f1=(0.70, 0.72, 0.74), accuracy=(0.71, 0.73, 0.75), confusion=confusion),
        tuned=Side({"learning_rate": 1e-4}, f1=(0.78, 0.80, 0.82), accuracy=(0.77, 0.79, 0.81), confusion=confusion),
        linear={"f1": 0.6912, "accuracy": 0.6834},
        f1=Interval(0.08, 0.0513, 0.1102),
        accuracy=Interval(0.06, 0.0311, 0.0899),
        detectable=0.0217,
        answer="better",
        verdict="tuning helped: f1 +8.00 points, 95 % interval +5.13 to +11.02",
        slices=(Slice("label good", 617, 0.7, 0.8),),
        flips_file="flips.csv",
        n_gained=120,
        n_lost=21,
        seconds=12.5,
        date="2026-11-24T12:00:00+00:00",
    )


def make_confirmation(*, winner: int = 1) -> Confirmation:
    """Return a confirmation of trial 1 and the defaults over two seeds."""
    candidates = (
        Candidate(1, is_defaults=False, params={"learning_rate": 1e-4}, search_value=0.875, values=(0.81, 0.83)),
        Candidate(0, is_defaults=True, params={"learning_rate": 5e-5}, search_value=None, values=(0.76,)),
    )
    ranked = candidates if winner == 1 else candidates[::-1]
    return Confirmation("f1", seeds=(142, 143), candidates=ranked, seconds=9.0, date="2026-11-24T11:00:00+00:00")
