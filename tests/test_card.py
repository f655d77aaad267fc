"""The model card: what the Hub reads from it, what a reader sees of it, and that its command does what it says."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import optuna
import pytest
from huggingface_hub import ModelCard, metadata_load
from markdown_it import MarkdownIt
from ruamel.yaml import YAML

from hpsearch.card import SEARCH_FILE, model_card, reproduce_command, search_tree
from hpsearch.config import build_config
from hpsearch.data import SearchData, Split
from hpsearch.evidence import Interval, keep_comparison, keep_confirmation
from hpsearch.observer import Observer
from hpsearch.study import StudyPaths, open_storage, stored_config
from tests.made_studies import HOSTILE, make_comparison, make_confirmation, make_study
from tests.test_end_to_end import document, hpsearch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from hpsearch.config import Config

_LABELS = ("bad", "good")


def _data(labels: tuple[str, ...] = _LABELS) -> SearchData:
    """Return 30 training and 12 validation rows of every label in turn."""
    splits = [
        Split(
            texts=tuple(f"SECRET ROW {i}" for i in range(n)),
            labels=np.arange(n, dtype=np.int64) % len(labels),
            rows=np.arange(n, dtype=np.int64),
            n_sampled=n,
            n_blank=0,
        )
        for n in (30, 12)
    ]
    return SearchData(train=splits[0], validation=splits[1], label_names=labels)


def _card(study: optuna.Study, data: SearchData | None = None, *, number: int = 1) -> ModelCard:
    return model_card(study, stored_config(study), study.trials[number], data or _data())


def _html(card: ModelCard) -> str:
    """Return the card as the Hub's dialect of Markdown renders it, raw HTML let through."""
    return MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(card.text)


@pytest.fixture
def study() -> optuna.Study:
    return make_study(optuna.storages.InMemoryStorage())


# --- What the Hub reads -----------------------------------------------------------------------------------------------


def _results(path: Path) -> dict[tuple[str, str], tuple[float, str]]:
    """Return value and name of each score by split and metric, as the Hub would read them."""
    (model,) = (metadata_load(path) or {})["model-index"]
    return {
        (result["dataset"]["split"], metric["type"]): (metric["value"], metric["name"])
        for result in model["results"]
        for metric in result["metrics"]
    }


def test_the_hub_reads_the_scores_of_a_compared_model(study: optuna.Study, tmp_path: Path) -> None:
    keep_comparison(study, make_comparison(study))
    _card(study).save(tmp_path / "README.md")
    tested, chosen = "mean of 3 trainings with these hyperparameters", "on the rows this model was chosen by"
    assert _results(tmp_path / "README.md") == {
        ("test", "f1"): (0.8, f"F1, {tested}"),
        ("test", "accuracy"): (0.79, f"accuracy, {tested}"),
        ("validation", "f1"): (0.875, f"F1, {chosen}"),
        ("validation", "accuracy"): (0.825, f"accuracy, {chosen}"),
        ("validation", "matthews_correlation"): (0.525, f"Matthews correlation, {chosen}"),
    }
    head = metadata_load(tmp_path / "README.md")
    assert head is not None
    assert head["pipeline_tag"] == "text-classification"
    assert head["library_name"] == "transformers"
    assert "base_model" not in head  # a folder on someone's disk
    assert head["model-index"][0]["results"][0]["dataset"]["name"] == "rows.csv, test rows"
    assert head["model-index"][0]["results"][0]["metrics"][0]["args"] == {"average": "binary"}


@pytest.mark.parametrize("compared", [None, 0], ids=["not compared", "another trial compared"])
def test_only_validation_scores_stand_in_the_card_of_a_model_that_was_not_compared(
    study: optuna.Study, tmp_path: Path, compared: int | None
) -> None:
    if compared is not None:
        keep_comparison(study, make_comparison(study, trial=compared))
    card = _card(study)
    card.save(tmp_path / "README.md")
    assert {split for split, _ in _results(tmp_path / "README.md")} == {"validation"}
    assert "0.8000" not in card.text
    assert ("was run on trial 0" if compared == 0 else "None yet: the test rows are sealed") in card.text


def test_a_dataset_and_a_model_of_the_hub_are_linked(tmp_path: Path) -> None:
    study = make_study(
        optuna.storages.InMemoryStorage(), train="owner/reviews", revision="main", labels=("a", "b", "c")
    )
    tree = {**study.user_attrs["config"], "model": {"name": "klue/bert-base", "revision": "1234abc"}}
    config = build_config(tree, where="test")
    card = model_card(study, config, study.trials[1], _data(("a", "b", "c")))
    assert card.data.base_model == "klue/bert-base"
    assert card.data.datasets == ["owner/reviews"]
    assert {result.dataset_revision for result in card.data.eval_results} == {"main"}
    assert card.data.eval_results[0].metric_args == {"average": "macro"}
    assert search_tree(config)["model"] == {"name": "klue/bert-base", "pretrained": True, "revision": "1234abc"}


def test_the_third_metric_stands_with_the_others_where_it_was_compared(study: optuna.Study) -> None:
    comparison = make_comparison(study)
    keep_comparison(
        study,
        replace(
            comparison,
            default=replace(comparison.default, mcc=(0.4, 0.42, 0.44)),
            tuned=replace(comparison.tuned, mcc=(0.5, 0.52, 0.54)),
            mcc=Interval(0.1, 0.07, 0.13),
            linear={**comparison.linear, "mcc": 0.3},
        ),
    )
    card = _card(study)
    values = {result.metric_type: result.metric_value for result in card.data.eval_results[:3]}
    assert values == {"f1": 0.8, "accuracy": 0.79, "matthews_correlation": 0.52}
    row = "| Matthews correlation | 0.4200 (sd 0.0200) | 0.5200 (sd 0.0200) | +0.1000 | +0.0700 to +0.1300 | 0.3000 |"
    assert row in card.text


# --- What a reader sees -----------------------------------------------------------------------------------------------


def test_the_card_says_what_there_is_to_know(study: optuna.Study) -> None:
    keep_comparison(study, make_comparison(study))
    keep_confirmation(study, make_confirmation())
    html = _html(_card(study))
    for heading in (
        "How to use it", "Test scores", "How it was chosen", "Validation scores", "Data", "Intended use", "Limits",
        "Train it again",
    ):  # fmt: skip
        assert f"<h2>{heading}</h2>" in html
    for words in (
        "<strong>tuning helped: f1 +8.00 points, 95 % interval +5.13 to +11.02</strong>",
        "1,234 test rows",
        "0.7200 (sd 0.0200)",
        "0.8000 (sd 0.0200)",
        "+0.0800",
        "+0.0513 to +0.1102",
        "0.6912",
        "3 seeds (43, 44, 45)",
        "of seed 42",
        "0.0217",
        "looked at 2 times",
        "Of 3 trials (2 complete, 1 pruned; 0 failed besides)",
        "30 training rows",
        "2 fresh seeds (142, 143); this one came\nout first",
        "0.8200 (sd 0.0141)",
        "1e-05 to 0.001, log scale",
        "one of linear, cosine",
        "test rows <code>00ff00ff00ff00ff</code>",
        "The model was chosen by these rows",
    ):
        assert words in html, words
    assert "SECRET ROW" not in html
    assert "/home/someone" not in html
    tables = html.split("<table>")[1:]
    shapes = [(table.count("<th"), table.count("<tr>")) for table in (part.split("</table>")[0] for part in tables)]
    # <thead> is counted with the <th>s.
    assert shapes == [(7, 3), (4, 3), (5, 3), (3, 4), (4, 3)]


def test_the_card_says_how_the_trial_was_chosen(study: optuna.Study) -> None:
    assert "nothing was confirmed on fresh seeds" in _card(study).text
    keep_confirmation(study, make_confirmation(winner=0))
    assert "trial 0 came out first" in _card(study).text
    assert "found after the confirmation" not in _card(study).text
    keep_confirmation(study, replace(make_confirmation(), candidates=make_confirmation().candidates[1:]))
    assert "found after the confirmation below, of which it is no part" in _card(study).text


def test_nothing_in_a_name_is_markdown_html_or_yaml(tmp_path: Path) -> None:
    labels = (
        HOSTILE,
        "긍정",
        "---",
        "# 1",
        "| - |",
        "`",
        "\\|",
        "<!--",
        "[x](javascript:alert(1))",
        "&lt;",
        "😀 $x$ :a:",
    )
    study = make_study(
        optuna.storages.InMemoryStorage(), "영화평.v1-2", labels=labels, train=f"/x/{HOSTILE.replace('/', '')}"
    )
    keep_comparison(study, make_comparison(study, labels=labels))
    card = _card(study, _data(labels))
    card.save(tmp_path / "README.md")
    assert metadata_load(tmp_path / "README.md")["model-index"][0]["name"] == "영화평.v1-2 trial 1"  # type: ignore[index]
    # Nothing that a name says has made a block, a link, a picture or a tag: the tokens are those of a harmless card.
    harmless = make_study(optuna.storages.InMemoryStorage(), "x", labels=tuple("abcdefghijk"), train="/x/rows.csv")
    keep_comparison(harmless, make_comparison(harmless, labels=tuple("abcdefghijk")))
    parser = MarkdownIt("gfm-like", {"html": True, "linkify": False})

    def tokens(text: str) -> list[str]:
        return [
            kind
            for token in parser.parse(text)
            for kind in (token.type, *(child.type for child in token.children or ()))
            if kind not in ("text", "text_special", "code_inline", "softbreak")
        ]

    assert tokens(card.text) == tokens(_card(harmless, _data(tuple("abcdefghijk"))).text)
    html = _html(card)
    for label in (
        "긍정",
        "---",
        "# 1",
        "| - |",
        "\\|",
        "&lt;!--",
        "[x](javascript:alert(1))",
        "&amp;lt;",
        "😀 $x$ :a:",
    ):
        assert f"<td>{label}</td>" in html
    shown = "a | b `c` &lt;script&gt;alert(1)&lt;/script&gt; --- ![x](http://evil.example/x.png) 한글 👩\u200d💻 ?*_~\\"
    assert f"<td>{shown}</td>" in html


# --- Its command ------------------------------------------------------------------------------------------------------


def test_the_command_names_every_drawn_value_exactly(study: optuna.Study) -> None:
    command = shlex.split(reproduce_command(stored_config(study), study.trials[1]))
    settings = dict(
        setting.removeprefix("defaults.").split("=") for setting in command if setting.startswith("defaults")
    )
    assert float(settings["learning_rate"]) == study.trials[1].params["learning_rate"]
    assert settings["lr_scheduler_type"] == study.trials[1].params["lr_scheduler_type"]
    assert "defaults." not in reproduce_command(stored_config(study), study.trials[0])


@pytest.mark.slow
def test_the_cards_command_trains_the_same_model_again(
    tmp_path: Path, make_config: Callable[..., Config], tiny_model: Path, toy_csv: Path
) -> None:
    from hpsearch.export import export_best
    from hpsearch.search import prepare, run_search

    url = f"sqlite:///{tmp_path}/studies.db"
    paths, model = StudyPaths.of(url, "toy"), tmp_path / "model"
    storage = open_storage(url, create=True)
    task = prepare(make_config("search.pruner=none"))
    exported = export_best(run_search(task, storage, paths, observer=Observer()), paths, model, overwrite=False)
    storage._backend.engine.dispose()  # type: ignore[attr-defined]

    assert str(tiny_model.parent) not in (model / SEARCH_FILE).read_text(encoding="utf-8")
    needed = YAML(typ="safe").load(model / SEARCH_FILE)
    (model / needed["model"]["name"]).symlink_to(tiny_model)
    (model / needed["data"]["train"]).symlink_to(toy_csv)
    text = (model / "README.md").read_text(encoding="utf-8")
    assert text.endswith("\n")
    (command,) = (line for line in text.splitlines() if line.startswith("hpsearch run"))
    hpsearch(model, *shlex.split(command)[1:])
    (trial,) = document(model, "show", "again")["trials"]
    assert exported.trial != 0  # so that its hyperparameters are not the defaults anyway
    assert trial["value"] == exported.stored_value
