"""A finished study of made-up Korean film reviews, with the values that such a search has, and its evidence."""

from __future__ import annotations

import csv
import datetime
import random
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpsearch.config import build_config
from hpsearch.evidence import (
    Candidate,
    Comparison,
    Confirmation,
    Flip,
    Interval,
    Side,
    Slice,
    count_look,
    keep_comparison,
    keep_confirmation,
)
from hpsearch.study import study_lock

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

    from hpsearch.study import StudyPaths

SPACE = {
    "learning_rate": FloatDistribution(1e-5, 2e-4, log=True),
    "num_train_epochs": IntDistribution(2, 10),
    "per_device_train_batch_size": CategoricalDistribution([16, 32, 64]),
    "warmup_steps": FloatDistribution(0.0, 0.2),
    "weight_decay": FloatDistribution(0.0, 0.1),
    "hidden_dropout_prob": FloatDistribution(0.0, 0.3),
}
DEFAULTS = {
    "learning_rate": 5e-5, "num_train_epochs": 10, "per_device_train_batch_size": 32, "warmup_steps": 0.0,
    "weight_decay": 0.0, "hidden_dropout_prob": 0.1,
}  # fmt: skip
TREE: dict[str, Any] = {
    "metric": "f1",
    "model": {"name": "bert-base-multilingual-cased"},
    "data": {
        "train": "/home/someone/secret-project/reviews.txt", "labels": {"0": "부정", "1": "긍정"}, "train_rows": 2000,
        "validation_rows": 2000, "test_rows": 2000,
    },
    "space": {
        "learning_rate": {"type": "float", "low": 1e-5, "high": 2e-4, "log": True},
        "num_train_epochs": {"type": "int", "low": 2, "high": 10},
        "per_device_train_batch_size": {"type": "categorical", "choices": [16, 32, 64]},
        "warmup_steps": {"type": "float", "low": 0.0, "high": 0.2},
        "weight_decay": {"type": "float", "low": 0.0, "high": 0.1},
        "hidden_dropout_prob": {"type": "float", "low": 0.0, "high": 0.3},
    },
    "defaults": DEFAULTS,
}  # fmt: skip
SCRIPT = "<script>alert(1)</script>"
FLIPS = (
    Flip("연기는 좋은데 이야기가 힘을 잃는다. 그래도 마지막 장면은 오래 남는다", "긍정", "부정", 0.41, "긍정", 0.63),
    Flip("기대 없이 봤다가 두 번 울었어요", "긍정", "부정", 0.38, "긍정", 0.71),
    Flip("돈이 아깝지는 않지만 다시 보고 싶지도 않다", "부정", "부정", 0.58, "긍정", 0.35),
    Flip("음악이 다 했다… 나머지는 글쎄", "부정", "긍정", 0.44, "부정", 0.57),
    Flip("great soundtrack, 스토리는 별로", "부정", "부정", 0.66, "긍정", 0.42),
)  # fmt: skip


def trial(
    state: TrialState,
    *,
    params: dict[str, Any] | None = None,
    value: float | None = None,
    curve: dict[int, float] | None = None,
    minute: float = 0.0,
    seconds: float = 60.0,
    **attrs: Any,
) -> FrozenTrial:
    """Return a trial that started `minute` minutes into the search."""
    drawn = DEFAULTS if params is None else params
    made = create_trial(
        state=state, value=value, params=drawn, distributions={name: SPACE[name] for name in drawn},
        intermediate_values=curve or {}, user_attrs=attrs,
    )  # fmt: skip
    made.datetime_start = datetime.datetime(2026, 11, 23, 9, 0, 0) + datetime.timedelta(minutes=minute)
    if state.is_finished():
        made.datetime_complete = made.datetime_start + datetime.timedelta(seconds=seconds)
    return made


def trials(n: int = 20) -> list[FrozenTrial]:
    """Return a search of `n` trials as they come: complete, pruned, and a failed one."""
    rng = random.Random(5)
    made = []
    for number in range(n):
        params = dict(DEFAULTS)
        if number:
            params = {
                "learning_rate": 10 ** rng.uniform(-5, -3.7),
                "num_train_epochs": rng.randint(2, 10),
                "per_device_train_batch_size": rng.choice([16, 32, 64]),
                "warmup_steps": rng.uniform(0, 0.2),
                "weight_decay": rng.uniform(0, 0.1),
                "hidden_dropout_prob": rng.uniform(0, 0.3),
            }
        top = 0.842 - 2.6e9 * (params["learning_rate"] - 7e-5) ** 2 / 1e3 - 0.004 * rng.random()
        curve = {step: top - 0.16 * 0.45**step + rng.gauss(0, 0.004) for step in range(1, 9)}
        seconds = 12.0 * params["num_train_epochs"]
        where = {"params": params, "minute": 2.0 * number}
        if number == 9:
            made.append(trial(TrialState.FAIL, **where, seconds=4.0, failure="out of memory"))
        elif number and top < 0.815 + 0.001 * number:
            stop = rng.randint(2, 5)
            part = {step: value for step, value in curve.items() if step <= stop}
            made.append(
                trial(
                    TrialState.PRUNED, **where, value=part[stop], curve=part, seconds=seconds * stop / 8, effective={}
                )
            )
        else:
            best = max(curve, key=curve.__getitem__)
            role = {} if number else {"role": "defaults"}
            made.append(
                trial(
                    TrialState.COMPLETE, **where, value=curve[best], curve=curve, seconds=seconds, best_step=best,
                    train_losses=[0.7 * 0.72**step for step in range(1, 9)],
                    eval_losses=[0.6 * 0.85**step + 0.03 * step for step in range(1, 9)],
                    scores={"f1": curve[best], "accuracy": curve[best] - 0.006, "mcc": 2 * curve[best] - 1},
                    confusion=[[812, 188], [171, 829]], effective={"device": "cpu", "products": "bfloat16"}, **role,
                )
            )  # fmt: skip
    return made


def make_study(
    storage: BaseStorage, paths: StudyPaths, made: list[FrozenTrial], *, name: str = "reviews", **tree: Any
) -> optuna.Study:
    """Return a study of hpsearch with these trials, and no evidence yet."""
    config = build_config({**TREE, **tree}, where="reviews")
    study = optuna.create_study(storage=storage, study_name=name, direction="maximize")
    study.set_metric_names([config.metric])
    study.set_user_attr("config", config.model_dump(mode="json"))
    study.set_user_attr("lock", study_lock(config, data="3f1c9a70be25d418", model="90ad17c3e5f2b864"))
    study.add_trials(made)
    paths.folder.mkdir(parents=True, exist_ok=True)
    return study


def confirmation(best: FrozenTrial, others: list[FrozenTrial]) -> Confirmation:
    """Return what fresh seeds say of these trials: less than the search did."""
    rng = random.Random(3)
    ranked = [
        Candidate(
            trial=each.number, is_defaults=each.number == 0, params=each.params, search_value=each.value,
            values=tuple((each.value or 0.0) - drop + rng.gauss(0, 0.003) for _ in range(5)),
        )
        for each, drop in zip([best, *others], (0.009, 0.006, 0.011, 0.002), strict=False)
    ]  # fmt: skip
    return Confirmation(
        metric="f1",
        seeds=(43, 44, 45, 46, 47),
        candidates=tuple(sorted(ranked, key=lambda each: -each.mean)),
        seconds=1314.0,
        date="2026-11-23T10:31:05+00:00",
    )


def comparison(trial_number: int, params: dict[str, Any], **changes: Any) -> Comparison:
    """Return a comparison that found nothing, or with what is given."""
    values: dict[str, Any] = {
        "study": "reviews",
        "metric": "f1",
        "trial": trial_number,
        "chosen_by": "confirmation",
        "labels": ("부정", "긍정"),
        "test_rows": 2000,
        "test_fingerprint": "c0ffee5eed1234ab",
        "looks": 1,
        "seeds": (48, 49, 50, 51, 52),
        "default": Side(
            params=DEFAULTS, f1=(0.8275, 0.8301, 0.8262, 0.8289, 0.8253),
            accuracy=(0.8205, 0.8215, 0.8200, 0.8212, 0.8213), confusion=((3990, 1010), (785, 4215)),
        ),
        "tuned": Side(
            params=params, f1=(0.8312, 0.8286, 0.8331, 0.8344, 0.8270),
            accuracy=(0.8240, 0.8206, 0.8251, 0.8262, 0.8199), confusion=((4041, 959), (791, 4209)),
        ),
        "linear": {"f1": 0.7989, "accuracy": 0.79},
        "f1": Interval(0.00326, -0.0019, 0.0083),
        "accuracy": Interval(0.0023, -0.003, 0.0076),
        "detectable": 0.0074,
        "answer": "no evidence",
        "verdict": "no evidence that tuning helped: f1 +0.33 points, 95 % interval -0.19 to +0.83; keep the defaults",
        "slices": (
            Slice("label 부정", 1000, 0.798, 0.8082),
            Slice("label 긍정", 1000, 0.843, 0.8418),
            Slice("up to 12 tokens", 640, 0.812, 0.8153),
            Slice("13 to 40 tokens", 1002, 0.8263, 0.8301),
            Slice("more than 40 tokens", 358, 0.8192, 0.8159),
        ),
        "flips_file": "flips.csv",
        "n_gained": 3,
        "n_lost": 2,
        "seconds": 1176.0,
        "date": "2026-11-23T10:58:40+00:00",
    }  # fmt: skip
    return Comparison(**{**values, **changes})


def write_flips(paths: StudyPaths, flips: tuple[Flip, ...]) -> None:
    """Write the file that `compare` leaves in the study's folder."""
    with (paths.folder / "flips.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Flip)])
        writer.writeheader()
        writer.writerows(map(asdict, flips))


def make_whole_study(
    storage: BaseStorage, paths: StudyPaths, tree: dict[str, Any] | None = None, **changes: Any
) -> optuna.Study:
    """Return a study with everything that can be known about it."""
    study = make_study(storage, paths, trials(), **(tree or {}))
    complete = sorted(
        study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)), key=lambda each: -(each.value or 0.0)
    )
    defaults = next(each for each in complete if each.user_attrs.get("role") == "defaults")
    best, *others = [each for each in complete if each is not defaults]
    found = confirmation(best, [*others[:2], defaults])
    keep_confirmation(study, found)
    count_look(study)
    keep_comparison(study, comparison(found.winner.trial, found.winner.params, **changes))
    write_flips(paths, FLIPS)
    return study
