"""The notes that explain a study and its trials to whoever opens them in the dashboard, as Markdown."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from hpsearch import markdown
from hpsearch.config import public_name
from hpsearch.evidence import comparison_of, confirmation_of
from hpsearch.study import standing, stored_config

if TYPE_CHECKING:
    from collections.abc import Mapping

    import optuna
    from jinja2 import Template

_METRICS = {"f1": "F1", "accuracy": "accuracy", "mcc": "Matthews correlation"}


def study_note(study: optuna.Study, *, report: str | None = None) -> str:
    """Return what a study is about, where it stands and how to go on.

    Args:
        study: A study of hpsearch's.
        report: Where its report is, if there is one.
    """
    config = stored_config(study)
    trials = study.get_trials(deepcopy=False)
    return _template().render(
        text=markdown.text,
        code=markdown.code,
        study=study.study_name,
        config=config,
        metric=_METRICS[config.metric],
        data_name=public_name(config.data.train),
        model_name=public_name(config.model.name),
        fingerprint=study.user_attrs["lock"]["data"],
        counts=standing(study, config.search.trials),
        default_value=next((t.value for t in trials if t.user_attrs.get("role") == "defaults" and t.values), None),
        confirmation=confirmation_of(study),
        comparison=comparison_of(study),
        report=report,
    )


def trial_note(attributes: Mapping[str, str], pictures: Mapping[str, str]) -> str:
    """Return what to know about a trial, and its pictures.

    Args:
        attributes: The trial's own, as text.
        pictures: Addresses by title.
    """
    parts = []
    if attributes.get("role") == "defaults":
        parts.append("The **defaults**: what you would have done without a search. Never pruned.")
    if "failure" in attributes:
        parts.append(f"It **failed**: {markdown.text(attributes['failure'])}")
    parts += [f"![{title}]({address})" for title, address in pictures.items()]
    return "\n\n".join(parts)


@cache
def _template() -> Template:
    from jinja2 import Environment

    source = Path(__file__).with_name("note.md.jinja").read_text(encoding="utf-8")
    # Markdown, in which the template escapes everything from outside itself.
    return Environment(autoescape=False, trim_blocks=True, lstrip_blocks=True).from_string(source)
