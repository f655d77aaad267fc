"""The model card of an export: what the model is, what it scores and what that is worth.

Written with `huggingface_hub`, so that the Hub shows the scores. Nothing of the data but sizes, label names and a
fingerprint stands in it, and everything from data or names is escaped.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hpsearch import markdown
from hpsearch.config import PACKAGE_SCHEME, public_name
from hpsearch.evidence import comparison_of, confirmation_of
from hpsearch.space import Choices
from hpsearch.study import standing

if TYPE_CHECKING:
    from collections.abc import Sequence

    import optuna
    from optuna.trial import FrozenTrial

    from hpsearch.config import Config
    from hpsearch.data import SearchData
    from hpsearch.evidence import Comparison
    from hpsearch.space import FloatRange, IntRange, Scalar

SEARCH_FILE = "search.yaml"
"""The configuration of the search, beside the model."""
_TEMPLATE = Path(__file__).with_name("card.md.jinja")
_TASK = "text-classification"


class _Metric(NamedTuple):
    name: str
    hub_id: str


_METRICS = {
    "f1": _Metric("F1", "f1"),
    "accuracy": _Metric("accuracy", "accuracy"),
    "mcc": _Metric("Matthews correlation", "matthews_correlation"),
}


def model_card(study: optuna.Study, config: Config, trial: FrozenTrial, data: SearchData) -> ModelCard:
    """Return the card of a trial's model.

    Args:
        study: The study; a comparison and a confirmation that are kept with it are told where they are of this trial.
        config: The study's configuration.
        trial: The trial, which is complete.
        data: The study's rows.
    """
    kept = comparison_of(study)
    comparison = kept if kept is not None and kept.trial == trial.number else None
    counts = standing(study, config.search.trials)
    card: ModelCard = ModelCard.from_template(
        _head(study, config, trial, data, comparison),
        template_path=str(_TEMPLATE),
        text=markdown.text,
        code=markdown.code,
        study=study.study_name,
        trial=trial,
        config=config,
        metric=_METRICS[config.metric].name,
        metrics=_METRICS,
        model_name=public_name(config.model.name),
        data_name=public_name(config.data.train),
        data=data,
        labels=_label_counts(data),
        n_complete=counts.n_finished - counts.n_pruned,
        counts=counts,
        space=_space(config, trial),
        comparison=comparison,
        scores=_scores(comparison) if comparison else [],
        other_comparison=kept if comparison is None else None,
        confirmation=confirmation_of(study),
        effective=trial.user_attrs["effective"],
        needed=_local_names(config),
        command=reproduce_command(config, trial),
        search_file=SEARCH_FILE,
        versions={name: version(name) for name in ("hpsearch", "transformers", "torch", "optuna", "datasets")},
    )
    return card


def reproduce_command(config: Config, trial: FrozenTrial) -> str:
    """Return the command that trains a trial's model again: as the defaults of a new study, the first of its trials."""
    # `repr` gives the shortest digits that are the same float again.
    settings = [f"--set defaults.{name}={value!r}" for name, value in trial.params.items()]
    same = all(getattr(config.defaults, name) == value for name, value in trial.params.items())
    return " ".join(
        ["hpsearch run", f"--config {SEARCH_FILE}", "--study again", "--trials 1", *([] if same else settings)]
    )


def search_tree(config: Config) -> dict[str, Any]:
    """Return the keys of a configuration file for readers elsewhere, who have the data and the model at hand."""
    tree = config.model_dump(mode="json", exclude={"study"}, exclude_none=True)
    for section, name in (("model", config.model.name), ("data", config.data.train)):
        if Path(name).is_absolute():
            tree[section].pop("revision", None)  # it is of a model or dataset on the Hub
    tree["model"]["name"] = public_name(config.model.name)
    for split in {"train", "validation", "test"} & set(tree["data"]):
        tree["data"][split] = public_name(tree["data"][split])
    return tree


def _head(
    study: optuna.Study, config: Config, trial: FrozenTrial, data: SearchData, comparison: Comparison | None
) -> ModelCardData:
    """Return what the Hub reads: the scores, and where they are from."""
    average = {"average": "binary" if len(data.label_names) == 2 else "macro"}
    is_hub_dataset = config.data.revision is not None and not Path(config.data.train).is_absolute()
    data_name = markdown.one_line(public_name(config.data.train))

    def result(split: str, metric: str, value: float, what: str) -> EvalResult:
        return EvalResult(
            task_type=_TASK,
            dataset_type=config.data.train if is_hub_dataset else "local",
            dataset_name=f"{data_name}, {split} rows",
            dataset_split=split,
            dataset_revision=config.data.revision if is_hub_dataset else None,
            metric_type=_METRICS[metric].hub_id,
            metric_name=f"{_METRICS[metric].name}, {what}",
            metric_args=average if metric == "f1" else None,
            metric_value=round(value, 6),
        )

    tested = [
        result("test", metric, fmean(values), f"mean of {len(comparison.seeds)} trainings with these hyperparameters")
        for metric in _METRICS
        if (values := getattr(comparison.tuned, metric))  # earlier versions kept no MCC
    ] if comparison else []  # fmt: skip
    chosen = [
        result("validation", metric, value, "on the rows this model was chosen by")
        for metric, value in trial.user_attrs["scores"].items()
    ]
    is_local = Path(config.model.name).is_absolute() or config.model.name.startswith(PACKAGE_SCHEME)
    return ModelCardData(
        model_name=f"{study.study_name} trial {trial.number}",
        base_model=None if is_local else config.model.name,
        datasets=[config.data.train] if is_hub_dataset else None,
        library_name="transformers",
        pipeline_tag=_TASK,
        tags=["hpsearch", "optuna", _TASK],
        eval_results=[*tested, *chosen],
    )


def _label_counts(data: SearchData) -> list[tuple[str, int, int]]:
    """Return each label with its training and validation rows."""
    splits = (data.train.labels.tolist(), data.validation.labels.tolist())
    return [(name, *(labels.count(i) for labels in splits)) for i, name in enumerate(data.label_names)]


def _local_names(config: Config) -> list[str]:
    """Return the names of the files and folders that a search needs besides its configuration."""
    names = (config.model.name, config.data.train, config.data.validation, config.data.test)
    return [public_name(name) for name in names if name is not None and Path(name).is_absolute()]


def _space(config: Config, trial: FrozenTrial) -> list[tuple[str, str, Scalar | None, Scalar]]:
    """Return each tuned hyperparameter with what was searched, its default and this trial's value."""
    return [
        (name, _described(dimension), getattr(config.defaults, name), trial.params[name])
        for name, dimension in config.space.items()
    ]


def _described(dimension: FloatRange | IntRange | Choices) -> str:
    """Return what a dimension holds, as Markdown."""
    if isinstance(dimension, Choices):
        return "one of " + ", ".join(markdown.text(choice) for choice in dimension.choices)
    scale = ", log scale" if dimension.log else ""
    return f"{markdown.text(dimension.low)} to {markdown.text(dimension.high)}{scale}"


def _scores(comparison: Comparison) -> list[tuple[str, ...]]:
    """Return the rows of the table of test scores."""
    return [
        (
            name,
            _mean_and_sd(getattr(comparison.default, key)),
            _mean_and_sd(getattr(comparison.tuned, key)),
            f"{difference.mean:+.4f}",
            f"{difference.low:+.4f} to {difference.high:+.4f}",
            f"{comparison.linear[key]:.4f}",
        )
        for key, (name, _) in _METRICS.items()
        if (difference := getattr(comparison, key))  # earlier versions kept no MCC
    ]


def _mean_and_sd(values: Sequence[float]) -> str:
    return f"{fmean(values):.4f}" + (f" (sd {stdev(values):.4f})" if len(values) > 1 else "")
