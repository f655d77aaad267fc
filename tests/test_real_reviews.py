"""On the real tokenizer, the real shape and real reviews, which the developers have beside the checkout."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

from hpsearch.config import ModelConfig, load_config
from hpsearch.data import load_search_data, load_test
from hpsearch.model import open_model
from tests.test_end_to_end import document, hpsearch

# Two items that the tutorial prints (NSMC ids 10020916 and 7545542), with their ids before padding.
TUTORIAL_IDS = {
    "For Carl.칼 세이건으로 시작해서 칼 세이건으로 끝난다.": [
        101, 11399, 12225, 119, 9788, 9435, 10739, 71439, 11467, 9485, 38709, 70146, 9788, 9435, 10739, 71439, 11467,
        8977, 33305, 11903, 119, 102,
    ],
    "how boring!": [101, 14796, 27728, 10230, 106, 102],
}  # fmt: skip


def real_flags(shared: Path, model: str) -> list[str]:
    values = {
        "model.name": shared / "models" / model,
        "data.train": shared / "data/nsmc/ratings_train.txt",
        "data.test": shared / "data/nsmc/ratings_test.txt",
    }
    return [flag for key, value in values.items() for flag in ("--set", f"{key}={value}")]


def test_the_tutorials_two_examples_have_its_token_ids(shared: Path) -> None:
    model = open_model(ModelConfig(name=str(shared / "models/bert-base-multilingual-cased"), pretrained=False), ())
    assert model.encode(list(TUTORIAL_IDS)) == list(TUTORIAL_IDS.values())


def test_the_sample_is_the_one_that_datasets_draws_and_validation_follows_it(shared: Path) -> None:
    config = load_config("nsmc-mbert", real_flags(shared, "reviews-mini")[1::2])
    data, test = load_search_data(config.data), load_test(config.data)
    shuffled = {
        n_rows: datasets.Dataset.from_dict({"row": range(n_rows)}).shuffle(seed=42)["row"][:]
        for n_rows in (150000, 50000)
    }
    assert data.train.rows.tolist() == shuffled[150000][:2000]
    assert data.validation.rows.tolist() == shuffled[150000][2000:4000]
    assert test.rows.tolist() == shuffled[50000][:2000]


@pytest.mark.slow
def test_mberts_real_shape_trains_two_short_trials_on_the_same_path(shared: Path, tmp_path: Path) -> None:
    flags = [
        *real_flags(shared, "bert-base-multilingual-cased"),
        "--set", "model.pretrained=false",
        "--set", "data.train_rows=16", "--set", "data.validation_rows=16",
        "--set", "defaults.num_train_epochs=1", "--set", "defaults.per_device_train_batch_size=8",
        "--set", "space={learning_rate: {type: float, low: 1e-5, high: 1e-4, log: true}}",
        "--set", "search.evaluations=1", "--set", "search.keep_checkpoints=1",
    ]  # fmt: skip
    hpsearch(tmp_path, "run", "--study", "shape", "--config", "nsmc-mbert", "--trials", "2", *flags)
    study = document(tmp_path, "show", "shape")
    assert study["n_complete"] == 2
    assert study["trials"][0]["attrs"]["effective"]["optimizer_steps"] == 2
    (checkpoint,) = (tmp_path / "studies" / "shape").glob("trial-*")
    shape = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    assert (shape["vocab_size"], shape["hidden_size"], shape["num_hidden_layers"]) == (119547, 768, 12)


@pytest.mark.slow
def test_an_export_on_real_reviews_scores_the_stored_value_without_hpsearch(shared: Path, tmp_path: Path) -> None:
    flags = [*real_flags(shared, "reviews-mini"), "--set", "data.train_rows=600", "--set", "data.validation_rows=600"]
    short = [
        "--set",
        "defaults.num_train_epochs=3",
        "--set",
        "defaults.learning_rate=2e-4",
        "--set",
        "search.evaluations=2",
    ]
    hpsearch(tmp_path, "run", "--study", "real", "--config", "nsmc-mbert", "--trials", "1", *flags, *short)
    exported = document(tmp_path, "export-best", "--output", str(tmp_path / "model"))
    config = load_config("nsmc-mbert", flags[1::2])
    validation = load_search_data(config.data).validation
    rows = [[text, int(label)] for text, label in zip(validation.texts, validation.labels, strict=True)]
    program = """
import json, sys
from sklearn.metrics import f1_score
from transformers import pipeline
rows = json.load(sys.stdin)
answers = pipeline("text-classification", sys.argv[1])([text for text, _ in rows], batch_size=50, truncation=True)
predicted = [["negative", "positive"].index(answer["label"]) for answer in answers]
assert not any(name.startswith("hpsearch") for name in sys.modules)
print(f1_score([label for _, label in rows], predicted))
"""
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "model")], input=json.dumps(rows), capture_output=True,
        encoding="utf-8", check=True,
    )  # fmt: skip
    assert round(float(result.stdout), 4) == round(exported["value"], 4)
    assert exported["value"] > 0.7
