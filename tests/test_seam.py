"""What hpsearch relies on and overrides in transformers 5.23 and Optuna 5: each trap of the stock search, held shut."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING, Any

import optuna
import pytest
import torch

from hpsearch.batches import LengthGroupedSampler
from hpsearch.errors import Interrupted, TrainingError
from hpsearch.observer import Observer
from hpsearch.search import pruner_of, sampler_of
from hpsearch.trainer import SearchTrainer, evaluation_steps
from hpsearch.vocabulary import restore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from hpsearch.config import Config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _frozen_garbage() -> None:
    """As a search does: the collections that the Trainer forces in every trial need not walk over the libraries."""
    import evaluate  # noqa: F401

    gc.collect()
    gc.freeze()


@pytest.fixture
def make_trainer(make_config: Callable[..., Config], tmp_path: Path) -> Callable[..., SearchTrainer]:
    from hpsearch.search import prepare

    def make(*overrides: str, products: str = "float32", **kwargs: Any) -> SearchTrainer:
        task = prepare(make_config(*overrides))
        return SearchTrainer(task, folder=tmp_path, observer=Observer(), products=products, **kwargs)

    return make


def new_study(**kwargs: Any) -> optuna.Study:
    return optuna.create_study(storage=optuna.storages.InMemoryStorage(), direction="maximize", **kwargs)


def search(trainer: SearchTrainer, study: optuna.Study, *trials: dict[str, Any], role: str = "") -> None:
    for values in trials:
        study.enqueue_trial(values, user_attrs={"role": role} if role else None)
        trainer.search_one(study, sampler_of(trainer.task.config.search), optuna.pruners.NopPruner())


BASE = {"learning_rate": 3e-3, "num_train_epochs": 2, "per_device_train_batch_size": 16}


def test_every_tuned_value_takes_effect_in_its_own_trial_and_leaves_with_it(
    make_trainer: Callable[..., SearchTrainer],
) -> None:
    trainer = make_trainer(
        "space.warmup_steps={type: float, low: 0.0, high: 0.5}",
        "space.label_smoothing_factor={type: float, low: 0.0, high: 0.3}",
        "space.hidden_dropout_prob={type: float, low: 0.0, high: 0.5}",
        "space.gradient_accumulation_steps={type: int, low: 1, high: 4}",
    )
    plain = {**BASE, "warmup_steps": 0.0, "label_smoothing_factor": 0.0, "hidden_dropout_prob": 0.0}
    plain["gradient_accumulation_steps"] = 1
    tuned = {**plain, "warmup_steps": 0.3, "label_smoothing_factor": 0.2, "hidden_dropout_prob": 0.4}
    study = new_study()
    search(trainer, study, plain, tuned, plain)
    first, second, third = study.trials
    effective = second.user_attrs["effective"]
    assert {name: effective[name] for name in tuned} == tuned
    assert effective["warmup_optimizer_steps"] == 3  # 0.3 of 10
    # A smoothed loss of a learnt task stays clearly above zero: it reached the loss, not only the arguments.
    assert second.user_attrs["train_losses"][-1] > first.user_attrs["train_losses"][-1]
    assert third.values == first.values
    assert third.user_attrs["train_losses"] == first.user_attrs["train_losses"]
    assert third.user_attrs["effective"] == first.user_attrs["effective"]


def test_the_same_values_and_seed_give_the_same_losses_inside_and_outside_a_search(
    make_trainer: Callable[..., SearchTrainer],
) -> None:
    trainer = make_trainer()
    study = new_study()
    search(trainer, study, {**BASE, "num_train_epochs": 1}, BASE)
    outcome = trainer.fit(trainer.task.config.defaults, seed=trainer.task.config.search.seed)
    assert [e.train_loss for e in outcome.evaluations] == study.trials[1].user_attrs["train_losses"]
    assert outcome.value == study.trials[1].value


def test_another_seed_gives_another_head_and_order(make_trainer: Callable[..., SearchTrainer]) -> None:
    trainer = make_trainer()
    losses = [trainer.fit(trainer.task.config.defaults, seed=seed).evaluations[0].train_loss for seed in (1, 2)]
    assert losses[0] != losses[1]


def test_accumulated_gradients_are_those_of_the_whole_batch(make_trainer: Callable[..., SearchTrainer]) -> None:
    norms = {}
    for batch, accumulate in ((16, 1), (4, 4)):
        trainer = make_trainer(
            f"defaults.per_device_train_batch_size={batch}",
            f"defaults.gradient_accumulation_steps={accumulate}",
            "space.per_device_train_batch_size.choices=[4, 8, 16]",
            "data.train_rows=16",
            "defaults.num_train_epochs=1",
            "search.evaluations=1",
        )
        seen: list[float] = []
        trainer._clip_grad_norm = (  # type: ignore[method-assign]
            lambda model, clip=trainer._clip_grad_norm, seen=seen: seen.append(float(norm := clip(model))) or norm
        )
        trainer.fit(trainer.task.config.defaults, seed=3)
        norms[accumulate] = seen
    assert len(norms[1]) == len(norms[4]) == 1
    # Rows of a batch differ in length, so means of means are close to, not equal to, the mean.
    assert norms[4] == pytest.approx(norms[1], rel=0.05)


def test_scores_are_reported_at_fractions_of_each_trials_own_schedule(
    make_trainer: Callable[..., SearchTrainer],
) -> None:
    trainer = make_trainer()
    study = new_study()
    search(trainer, study, BASE, {**BASE, "per_device_train_batch_size": 8, "num_train_epochs": 3})
    assert [sorted(trial.intermediate_values) for trial in study.trials] == [[1, 2, 3, 4]] * 2
    assert [trial.user_attrs["effective"]["optimizer_steps"] for trial in study.trials] == [10, 30]


def test_the_value_is_the_best_evaluation_and_the_kept_weights_score_it(
    make_trainer: Callable[..., SearchTrainer],
) -> None:
    trainer = make_trainer("search.evaluations=6", "defaults.learning_rate=9e-3")
    kept = []
    trainer.keep_outcome = lambda trial, outcome: kept.append(outcome)
    study = new_study()
    search(trainer, study, {**BASE, "learning_rate": 9e-3, "num_train_epochs": 3})
    trial = study.trials[0]
    assert trial.value == max(trial.intermediate_values.values()) == kept[0].value
    trainer.fit(trainer.task.config.defaults, seed=1)
    trainer.trained_model().load_state_dict(kept[0].weights)
    validation = trainer.task.data.validation
    predicted = trainer.probabilities(validation).argmax(axis=1)
    confusion = [[int(((validation.labels == i) & (predicted == j)).sum()) for j in (0, 1)] for i in (0, 1)]
    assert confusion == trial.user_attrs["confusion"]


def test_the_defaults_are_never_pruned_and_others_are(make_trainer: Callable[..., SearchTrainer]) -> None:
    class Always(optuna.pruners.BasePruner):
        def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
            return True

    trainer = make_trainer()
    study = new_study()
    for role in ("defaults", "other"):
        study.enqueue_trial(BASE, user_attrs={"role": role})
        trainer.search_one(study, optuna.samplers.RandomSampler(seed=1), Always())
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED"]
    assert sorted(study.trials[1].intermediate_values) == [1]
    assert study.trials[1].user_attrs["effective"]["learning_rate"] == BASE["learning_rate"]


def test_nothing_is_pruned_at_its_last_evaluation(make_trainer: Callable[..., SearchTrainer]) -> None:
    class OnlyAtTheEnd(optuna.pruners.BasePruner):
        def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
            return len(trial.intermediate_values) == 4

    trainer = make_trainer()
    study = new_study()
    study.enqueue_trial(BASE)
    trainer.search_one(study, optuna.samplers.RandomSampler(seed=1), OnlyAtTheEnd())
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"]


def test_a_search_of_only_pruned_trials_ends_without_an_error(make_trainer: Callable[..., SearchTrainer]) -> None:
    trainer = make_trainer()
    study = new_study()
    study.enqueue_trial(BASE)
    trainer.search_one(
        study, optuna.samplers.RandomSampler(seed=1), optuna.pruners.ThresholdPruner(lower=2.0, n_warmup_steps=0)
    )
    assert [trial.state.name for trial in study.trials] == ["PRUNED"]


@pytest.mark.parametrize("ending", ["complete", "pruned", "failed"])
def test_model_and_optimizer_are_released_however_a_trial_ends(
    make_trainer: Callable[..., SearchTrainer], ending: str
) -> None:
    trainer = make_trainer()
    alive: list[weakref.ref[Any]] = []
    report = trainer._report_to_hp_search

    def watch(trial: Any, step: int, metrics: Any) -> None:
        alive.extend([weakref.ref(trainer.model), weakref.ref(trainer.optimizer)])
        report(trial, step, metrics)
        if ending == "pruned":
            raise optuna.TrialPruned
        if ending == "failed":
            raise torch.OutOfMemoryError("no room")

    trainer._report_to_hp_search = watch  # type: ignore[method-assign]
    study = new_study()
    study.enqueue_trial(BASE)
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # pytest keeps log records, and with them the frames of an error
    if ending == "failed":
        # Not pytest.raises: its record of the error would keep the frames alive, and the model with them.
        try:
            trainer.search_one(study, optuna.samplers.RandomSampler(), optuna.pruners.NopPruner())
        except torch.OutOfMemoryError:
            pass
        assert study.trials[0].user_attrs["failure"] == "out of memory"
    else:
        trainer.search_one(study, optuna.samplers.RandomSampler(), optuna.pruners.NopPruner())
    gc.collect()
    assert alive
    assert [reference() for reference in alive] == [None] * len(alive)
    assert not trainer.is_in_train
    assert trainer.hp_search_backend is None


def test_a_loss_that_is_not_finite_fails_the_trial_with_its_reason(make_trainer: Callable[..., SearchTrainer]) -> None:
    trainer = make_trainer()
    new_model = trainer._new_model

    def broken() -> Any:
        model = new_model()
        with torch.no_grad():
            model.classifier.weight.fill_(float("nan"))
        return model

    trainer.model_init = broken
    study = new_study()
    study.enqueue_trial(BASE)
    with pytest.raises(TrainingError, match="diverged: the training loss is nan at evaluation 1"):
        trainer.search_one(study, optuna.samplers.RandomSampler(), optuna.pruners.NopPruner())
    assert study.trials[0].state.name == "FAIL"
    assert "diverged" in study.trials[0].user_attrs["failure"]


def test_a_stop_request_closes_the_trial_within_a_step(make_trainer: Callable[..., SearchTrainer]) -> None:
    steps: list[int] = []
    trainer = make_trainer(stop_requested=lambda: steps.append(1) or len(steps) == 3)
    study = new_study()
    study.enqueue_trial(BASE)
    with pytest.raises(Interrupted):
        trainer.search_one(study, optuna.samplers.RandomSampler(), optuna.pruners.NopPruner())
    assert study.trials[0].state.name == "FAIL"
    assert study.trials[0].user_attrs["failure"] == "interrupted"
    assert len(steps) == 3


def test_weights_stay_float32_whatever_the_checkpoint_and_the_products(
    make_trainer: Callable[..., SearchTrainer],
) -> None:
    trainer = make_trainer(products="bfloat16")
    outcome = trainer.fit(trainer.task.config.defaults, seed=1)
    assert {tensor.dtype for tensor in outcome.weights.values() if tensor.is_floating_point()} == {torch.float32}
    assert outcome.effective["weights"] == "float32"
    assert outcome.effective["products"] == "bfloat16"


def test_a_dropout_the_model_lacks_is_refused(make_config: Callable[..., Config]) -> None:
    from hpsearch.errors import ConfigError
    from hpsearch.search import prepare

    with pytest.raises(ConfigError, match=r"seq_classif_dropout: expected a dropout of .*hidden_dropout_prob"):
        prepare(make_config("defaults.seq_classif_dropout=0.1"))


@pytest.mark.parametrize(
    ("n_steps", "n_evaluations", "expected"),
    [
        pytest.param(630, 8, {79: 1, 158: 2, 237: 3, 315: 4, 394: 5, 473: 6, 552: 7, 630: 8}, id="uneven"),
        pytest.param(8, 8, {k: k for k in range(1, 9)}, id="every step"),
        pytest.param(3, 8, {1: 2, 2: 5, 3: 8}, id="fewer steps than evaluations"),
        pytest.param(1, 4, {1: 4}, id="one step"),
        pytest.param(10, 1, {10: 1}, id="one evaluation"),
    ],
)
def test_evaluations_stand_at_equal_fractions(n_steps: int, n_evaluations: int, expected: dict[int, int]) -> None:
    assert evaluation_steps(n_steps, n_evaluations) == expected


@pytest.mark.parametrize("n_rows", [1, 7, 32, 100, 1000])
def test_length_grouping_yields_every_row_once_in_an_order_of_its_seed(n_rows: int) -> None:
    lengths = torch.randint(3, 60, (n_rows,), generator=torch.Generator().manual_seed(0)).tolist()

    def order(seed: int) -> list[int]:
        return list(LengthGroupedSampler(lengths, 8, torch.Generator().manual_seed(seed)))

    assert sorted(order(1)) == list(range(n_rows))
    assert order(1) == order(1)
    if n_rows > 8:
        assert order(1) != order(2)
    padded = sum(max(lengths[i] for i in order(1)[k : k + 8]) * 8 for k in range(0, n_rows - 7, 8))
    if n_rows == 1000:
        assert padded < 1.15 * sum(lengths)


def test_screened_decisions_are_those_of_float32(make_trainer: Callable[..., SearchTrainer]) -> None:
    trainer = make_trainer("defaults.num_train_epochs=1", products="bfloat16")
    trainer.fit(trainer.task.config.defaults, seed=1)
    texts = trainer._texts[trainer.task.data.train]
    exact = trainer._logits(texts)
    assert torch.equal(trainer._screened_logits(texts).argmax(-1), exact.argmax(-1))
    scored: list[int] = []
    logits = trainer._logits

    def far_off(texts: Any, products: torch.dtype = torch.float32, rows: Any = None) -> torch.Tensor:
        right = logits(texts, rows=rows)
        if products is torch.float32:
            scored.append(len(right))
            return right
        return right + torch.randn(right.shape, generator=torch.Generator().manual_seed(1))

    trainer._logits = far_off  # type: ignore[method-assign]
    # With errors as large as the scores themselves, texts are scored again until no decision is in doubt.
    assert torch.equal(trainer._screened_logits(texts).argmax(-1), exact.argmax(-1))
    assert len(scored) > 1
    assert sum(scored) > len(texts) / 2


def test_epochs_hold_every_row_once_in_other_batches(make_trainer: Callable[..., SearchTrainer]) -> None:
    trainer = make_trainer()
    batches = trainer.get_train_dataloader()
    epochs = [[batch["labels"].tolist() for batch in batches] for _ in range(2)]
    assert [len(epoch) for epoch in epochs] == [len(batches)] * 2
    assert [sum(map(len, epoch)) for epoch in epochs] == [80, 80]
    assert epochs[0] != epochs[1]


def test_a_second_training_starts_where_the_first_one_did(make_trainer: Callable[..., SearchTrainer]) -> None:
    trainer = make_trainer("defaults.hidden_dropout_prob=0.2")
    first = trainer.fit(trainer.task.config.defaults, seed=5)
    trainer.fit(trainer.task.config.defaults.replace({"learning_rate": 9e-3}), seed=5)
    trainer.fit(trainer.task.config.defaults, seed=6)
    again = trainer.fit(trainer.task.config.defaults, seed=5)
    assert [e.train_loss for e in first.evaluations] == [e.train_loss for e in again.evaluations]
    assert all(torch.equal(first.weights[name], again.weights[name]) for name in first.weights)


def test_initial_weights_are_those_that_transformers_loads(make_trainer: Callable[..., SearchTrainer]) -> None:
    from transformers import set_seed

    trainer = make_trainer()
    made = trainer._models.make({"hidden_dropout_prob": 0.37}, seed=3)
    set_seed(3)
    loaded = trainer.task.model.new_model(trainer.task.data.label_names, {})
    rows = torch.from_numpy(trainer._models.vocabulary.rows)
    for (name, ours), theirs in zip(made.named_parameters(), loaded.parameters(), strict=True):
        assert torch.equal(ours, theirs[rows] if "word_embeddings" in name else theirs), name
    assert {module.p for module in made.modules() if isinstance(module, torch.nn.Dropout)} == {0.37, 0.1}


def test_probabilities_come_back_in_the_rows_own_order(make_trainer: Callable[..., SearchTrainer]) -> None:
    trainer = make_trainer()
    outcome = trainer.fit(trainer.task.config.defaults, seed=1)
    data = trainer.task.data
    together = trainer.probabilities(data.validation)
    full = trainer.task.model.new_model(data.label_names, {}).eval()
    full.load_state_dict(restore(outcome.weights, full, outcome.vocabulary, outcome.decay))
    for i in (0, 5, 17):
        ids = trainer.task.model.encode([data.validation.texts[i]])
        logits = full(input_ids=torch.tensor(ids)).logits
        assert torch.softmax(logits, -1)[0].tolist() == pytest.approx(together[i].tolist(), abs=1e-5)


@pytest.mark.parametrize("name", ["median", "successive-halving", "hyperband", "none"])
def test_every_pruner_by_name_runs(make_config: Callable[..., Config], name: str) -> None:
    study = new_study(pruner=pruner_of(make_config(f"search.pruner={name}").search))
    study.optimize(lambda trial: next(trial.report(0.5, k) or trial.should_prune() for k in range(1, 5)) or 1.0, 8)
    assert len(study.trials) == 8


@pytest.mark.parametrize("name", ["tpe", "random", "gp"])
def test_a_resumed_sampler_draws_what_an_undisturbed_one_draws(make_config: Callable[..., Config], name: str) -> None:
    from hpsearch.space import suggest

    config = make_config(f"search.sampler={name}")

    def draws(*, restart: bool) -> list[dict[str, Any]]:
        study = new_study(sampler=sampler_of(config.search))
        finished = []
        while len(finished) < 12:
            if restart:
                study.sampler = sampler_of(config.search)
            trial = study.ask()
            if not (restart and trial.number in (7, 8)):  # killed before they had drawn
                suggest(trial, config.space)
            if restart and trial.number in (4, 5, 7, 8):  # killed, and so are the retries of both
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                study.enqueue_trial(trial.params, user_attrs={"retry_of": trial.number})
                continue
            study.tell(trial, trial.params["learning_rate"])
            finished.append(trial.params)
        return finished

    undisturbed = draws(restart=False)
    assert undisturbed == draws(restart=True)
    assert len({tuple(params.items()) for params in undisturbed}) == 12
