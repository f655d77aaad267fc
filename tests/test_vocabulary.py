"""A model trained on a part of its vocabulary: the same computation, and the whole vocabulary afterwards."""

from __future__ import annotations

import copy
import functools
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.nn.utils import clip_grad_norm_
from transformers import AutoConfig, AutoModelForSequenceClassification, get_linear_schedule_with_warmup, set_seed

from hpsearch.checkpoints import ROWS, WEIGHTS, is_trimmed, model_of, read_checkpoint, write_checkpoint
from hpsearch.config import ModelConfig
from hpsearch.errors import ConfigError, StudyError, TrainingError, UsageError
from hpsearch.folders import MANIFEST
from hpsearch.model import open_model
from hpsearch.study import StudyPaths
from hpsearch.trainer import Evaluation, Outcome
from hpsearch.vocabulary import Vocabulary, restore, trim
from tests.conftest import WORDS
from tests.test_end_to_end import document, hpsearch, write_config

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from hpsearch.config import Config
    from hpsearch.model import ModelSource

    Integers = NDArray[np.int64]
    Batch = tuple[Integers, Integers, Integers]

N_WORDS = 2000  # of which the texts use a few
LABELS = ("bad", "good")
TABLE = "bert.embeddings.word_embeddings.weight"
TINY = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture(scope="session")
def wide_model(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Return a folder with a tiny BERT that knows 2,000 words more."""
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

    folder = tmp_path_factory.mktemp("wide-bert")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_tokens([f"word{i}" for i in range(N_WORDS)])
    tokenizer.save_pretrained(folder)
    set_seed(0)
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **TINY)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def source(wide_model: Path) -> ModelSource:
    return open_model(ModelConfig(name=str(wide_model)), ())


def fresh(source: ModelSource) -> PreTrainedModel:
    set_seed(7)
    return source.new_model(LABELS, {"hidden_dropout_prob": 0.1})


def batches_of(source: ModelSource, n_batches: int) -> list[Batch]:
    """Return token ids, masks and labels of texts of different length, of the tiny model's words."""
    rng = np.random.default_rng(0)
    batches = []
    for _ in range(n_batches):
        texts = [" ".join(rng.choice(WORDS, size=n_words)) for n_words in rng.integers(1, 20, size=8)]
        encoded = source.tokenizer(texts, padding=True, return_tensors="np")
        batches.append((encoded["input_ids"], encoded["attention_mask"], rng.integers(0, 2, size=8)))
    return batches


def train(model: PreTrainedModel, vocabulary: Vocabulary, batches: list[Batch], *, clip: bool) -> float:
    """Train as a search does, and return what weight decay has made of a weight without a gradient."""
    set_seed(1)  # of the dropout masks
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1, fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, 3, len(batches))
    decay = 1.0
    model.train()
    for ids, mask, labels in batches:
        output = model(
            input_ids=torch.from_numpy(vocabulary.compact(ids)),
            attention_mask=torch.from_numpy(mask),
            labels=torch.from_numpy(labels),
        )
        output.loss.backward()
        if clip:
            clip_grad_norm_(model.parameters(), 0.5)
        (group,) = optimizer.param_groups
        decay *= 1.0 - group["lr"] * group["weight_decay"]
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return decay


@dataclass(frozen=True)
class Trained:
    """The same training of all rows and of the used ones."""

    base: PreTrainedModel
    full: PreTrainedModel
    part: PreTrainedModel
    vocabulary: Vocabulary
    decay: float


def train_both(source: ModelSource, *, clip: bool) -> Trained:
    base = fresh(source)
    batches = batches_of(source, 30)
    vocabulary = Vocabulary.of(base, np.concatenate([ids.ravel() for ids, _, _ in batches]))
    full, part = copy.deepcopy(base), copy.deepcopy(base)
    trim(part, vocabulary)
    train(full, Vocabulary.whole(full), batches, clip=clip)
    decay = train(part, vocabulary, batches, clip=clip)
    return Trained(base, full, part, vocabulary, decay)


@pytest.fixture(scope="module")
def trained(source: ModelSource) -> Trained:
    return train_both(source, clip=False)


# --- Training on a part of the vocabulary -----------------------------------------------------------------------------


def test_training_the_used_rows_only_is_the_same_computation(trained: Trained) -> None:
    full, part = trained.full.state_dict(), trained.part.state_dict()
    used = torch.from_numpy(trained.vocabulary.rows)
    assert len(used) == 18  # padding, start, end and the 15 words
    assert part[TABLE].shape == (18, 16)
    assert all(torch.equal(tensor, part[name]) for name, tensor in full.items() if name != TABLE)
    assert torch.equal(full[TABLE][used], part[TABLE])
    assert not torch.equal(full["classifier.weight"], trained.base.state_dict()["classifier.weight"])


def test_with_clipped_gradients_only_the_order_of_a_sum_differs(source: ModelSource) -> None:
    trained = train_both(source, clip=True)
    full = trained.full.state_dict()
    restored = restore(trained.part.state_dict(), trained.base, trained.vocabulary, trained.decay)
    for name, tensor in full.items():
        torch.testing.assert_close(restored[name], tensor, rtol=0, atol=1e-6)


def test_the_other_rows_are_the_base_models_decayed(trained: Trained) -> None:
    base = trained.base.state_dict()[TABLE].double()
    full = trained.full.state_dict()[TABLE].double()
    restored = restore(trained.part.state_dict(), trained.base, trained.vocabulary, trained.decay)[TABLE].double()
    unused = np.setdiff1d(np.arange(trained.vocabulary.size), trained.vocabulary.rows)
    # 30 steps round 30 times, the product once: weights of up to 0.09 differ in their seventh digit.
    assert (full - restored)[unused].abs().max() < 5e-8
    # Put back as they were, they would be 1.5 % too large.
    assert trained.decay == pytest.approx(0.9851, abs=1e-4)
    assert (full - base)[unused].abs().max() > 1e-3


def test_restoring_leaves_its_inputs_alone(trained: Trained) -> None:
    before = {name: tensor.clone() for name, tensor in trained.base.state_dict().items()}
    weights = trained.part.state_dict()
    restore(weights, trained.base, trained.vocabulary, 0.5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.base.state_dict().items())
    assert weights[TABLE].shape == (18, 16)


def test_a_trimmed_table_is_a_table_like_any_other(source: ModelSource) -> None:
    model = fresh(source)
    before = model.get_input_embeddings().weight.detach().clone()
    vocabulary = Vocabulary.of(model, np.array([5, 700, 9]))
    trim(model, vocabulary)
    table = model.get_input_embeddings()
    assert isinstance(table, torch.nn.Embedding)
    assert torch.equal(table.weight, before[[0, 5, 9, 700]])
    assert (table.num_embeddings, table.padding_idx) == (4, 0)
    assert table.weight.is_contiguous()
    assert table.weight.is_leaf
    assert table.weight.requires_grad
    assert table.weight.dtype == torch.float32
    assert model.config.vocab_size == vocabulary.size


def test_models_without_weights_can_be_trimmed(source: ModelSource) -> None:
    vocabulary = Vocabulary.of(fresh(source), np.array([5, 700]))
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(source.name))
        trim(model, vocabulary)
    assert model.get_input_embeddings().weight.shape == (3, 16)
    assert model.get_input_embeddings().weight.is_meta


# --- Which rows stay --------------------------------------------------------------------------------------------------


@given(st.data())
def test_kept_ids_go_to_their_places_and_back(data: st.DataObject) -> None:
    model = _wide_bert()
    token_ids = st.integers(0, model.config.vocab_size - 1)
    known = data.draw(st.lists(token_ids, max_size=30))
    vocabulary = Vocabulary.of(model, np.array(known, dtype=np.int64))
    assert set(vocabulary.rows.tolist()) == {0, *known}
    assert (np.diff(vocabulary.rows) > 0).all()
    ids = np.array(data.draw(st.lists(st.sampled_from([0, *known]), max_size=30)), dtype=np.int64).reshape(-1, 1)
    places = vocabulary.compact(ids)
    assert places.shape == ids.shape
    assert np.array_equal(vocabulary.rows[places], ids)
    stranger = data.draw(token_ids.filter(lambda token_id: token_id not in {0, *known}))
    with pytest.raises(TrainingError, match=f"token id {stranger}: expected one of the .* that were dropped"):
        vocabulary.compact(np.array([0, stranger]))


@functools.cache
def _wide_bert() -> PreTrainedModel:
    return family("bert", {}, size=N_WORDS)


FAMILIES = {
    "bert": {},
    "roberta": {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "max_position_embeddings": 70},
    "xlm-roberta": {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "max_position_embeddings": 70},
    "distilbert": {"dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2},
    "electra": {"embedding_size": 8},
    "albert": {"embedding_size": 8, "num_hidden_groups": 1},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "mpnet": {},  # its positions count from a padding id of 1, whatever the config says
    "xlm": {"emb_dim": 16, "n_layers": 2, "n_heads": 2},  # pad_index; without a mask it looks for the padding
    "esm": {"mask_token_id": 32, "pad_token_id": 1, "token_dropout": True, "position_embedding_type": "rotary"},
    "modernbert": {"pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "pad_token_id": 4, "eos_token_id": 4, "bos_token_id": 4},
}  # fmt: skip


def family(model_type: str, settings: dict[str, Any], size: int = 500) -> PreTrainedModel:
    set_seed(0)
    config = AutoConfig.for_model(model_type, **{**TINY, "vocab_size": size, **settings})
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()
    return model


@pytest.mark.parametrize(("model_type", "settings"), FAMILIES.items(), ids=FAMILIES)
def test_a_trimmed_model_answers_as_the_full_one_in_every_family(model_type: str, settings: dict[str, Any]) -> None:
    model = family(model_type, settings)
    padding = model.get_input_embeddings().padding_idx
    if padding is None:
        padding = model.config.pad_token_id
    rng = np.random.default_rng(0)
    ids = rng.choice(rng.choice(np.arange(40, 500), size=40, replace=False), size=(6, 24))
    lengths = np.array([24, 20, 15, 9, 4, 1])
    mask = np.arange(24) < lengths[:, None]
    ids = np.where(mask, ids, padding)
    ids[0, 2:4] = getattr(model.config, "mask_token_id", ids[0, 0])  # which ESM leaves out of the embedding
    vocabulary = Vocabulary.of(model, ids)
    assert len(vocabulary.rows) < 80
    trimmed = copy.deepcopy(model)
    trim(trimmed, vocabulary)
    with torch.inference_mode():
        for given_mask in (torch.from_numpy(mask.astype(np.int64)), None):
            expected = model(input_ids=torch.from_numpy(ids), attention_mask=given_mask).logits
            answered = trimmed(input_ids=torch.from_numpy(vocabulary.compact(ids)), attention_mask=given_mask).logits
            assert torch.equal(answered, expected)
            assert expected.std() > 0
    restored = restore(trimmed.state_dict(), model, vocabulary, 1.0)
    assert restored.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, restored[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("bart", {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
                  "decoder_attention_heads": 2}),
        ("t5", {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}),
        ("gemma", {"num_key_value_heads": 1, "head_dim": 8}),
        ("canine", {"num_hash_buckets": 64}),
        ("modernbert", {"pad_token_id": 499, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1,
                        "sep_token_id": 2}),
    ],
    ids=["tied and scaled", "tied", "scaled", "no table", "padding at the end"],
)  # fmt: skip
def test_where_dropping_rows_might_not_be_exact_all_stay(model_type: str, settings: dict[str, Any]) -> None:
    model = family(model_type, settings)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    vocabulary = Vocabulary.of(model, np.array([[1, 40], [41, 2]]))
    assert vocabulary.is_whole
    assert vocabulary.compact(np.array([[41, 499]])).tolist() == [[41, 499]]
    trim(model, vocabulary)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    restored = restore(before, model, vocabulary, 0.5)
    assert all(torch.equal(tensor, restored[name]) for name, tensor in before.items())


@pytest.mark.parametrize("setting", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}, {"sparse": True}], ids=str)
def test_tables_that_do_more_than_look_up_keep_all_rows(setting: dict[str, Any]) -> None:
    model = family("bert", {})
    assert not Vocabulary.of(model, np.array([7])).is_whole
    model.set_input_embeddings(torch.nn.Embedding(500, 16, padding_idx=0, **setting))
    assert Vocabulary.of(model, np.array([7])).is_whole


def test_weights_that_are_tied_keep_all_rows() -> None:
    model = family("bert", {})
    model.decoder = torch.nn.Linear(16, 500, bias=False)
    model.decoder.weight = model.get_input_embeddings().weight
    assert Vocabulary.of(model, np.array([7])).is_whole


def test_special_ids_keep_their_places() -> None:
    model = family("bert", {"pad_token_id": 0, "sep_token_id": 102, "eos_token_id": [50, 60], "image_token_index": 70})
    rows = Vocabulary.of(model, np.array([300, 200, 20])).rows
    assert rows.tolist() == [*range(103), 200, 300]
    model.get_input_embeddings().padding_idx = 250
    assert Vocabulary.of(model, np.array([300, 200, 20])).rows.tolist() == [*range(251), 300]


def test_less_than_a_twentieth_is_not_dropped() -> None:
    model = family("bert", {})
    assert len(Vocabulary.of(model, np.arange(475)).rows) == 475
    assert Vocabulary.of(model, np.arange(476)).is_whole


@pytest.mark.parametrize("token_id", [-1, 500])
def test_token_ids_without_a_row_are_refused(token_id: int) -> None:
    with pytest.raises(ConfigError, match=rf"expected token ids below 500, .* got {token_id}; tokenizer and weights"):
        Vocabulary.of(family("bert", {}), np.array([1, token_id]))


# --- Checkpoints ------------------------------------------------------------------------------------------------------


def checkpoint(folder: Path, source: ModelSource, model: PreTrainedModel, vocabulary: Vocabulary, decay: float) -> Path:
    """Write a model as a search does."""
    study = optuna.create_study()
    study.set_user_attr("uid", "this")
    paths = StudyPaths(folder, "reviews")
    best = Evaluation(step=1, epoch=1.0, train_loss=0.5, eval_loss=0.5, scores={"f1": 0.5}, confusion=[[1, 1], [1, 1]])
    outcome = Outcome(
        evaluations=(best,),
        best=best,
        value=0.5,
        weights={name: tensor.clone() for name, tensor in model.state_dict().items()},
        vocabulary=vocabulary,
        decay=decay,
        effective={"seed": 7, "hidden_dropout_prob": 0.25},
        seconds=1.0,
        peak_memory_mib=1,
    )
    write_checkpoint(study, paths, 0, outcome, model, source.tokenizer)
    return paths.checkpoint(0)


@pytest.fixture
def trimmed(tmp_path: Path, source: ModelSource, trained: Trained) -> Path:
    """Return a checkpoint of the model with the used rows."""
    return checkpoint(tmp_path, source, trained.part, trained.vocabulary, trained.decay)


@pytest.fixture
def whole(tmp_path: Path, source: ModelSource, trained: Trained) -> Path:
    """Return a checkpoint of the full model."""
    vocabulary = Vocabulary.whole(trained.full)
    return checkpoint(tmp_path / "whole", source, trained.full, vocabulary, trained.decay)


def test_a_trimmed_checkpoint_gives_the_full_model_back(
    trimmed: Path, whole: Path, source: ModelSource, trained: Trained
) -> None:
    model = read_checkpoint(trimmed, source, LABELS).eval()
    texts = ["film word5 word1234 music", "word77 never seen", "film"]
    encoded = source.tokenizer(texts, padding=True, return_tensors="pt")
    inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        torch.testing.assert_close(model(**inputs).logits, trained.full.eval()(**inputs).logits, rtol=0, atol=1e-6)
    assert not set(encoded["input_ids"].ravel().tolist()) <= set(trained.vocabulary.rows.tolist())
    assert model.config.vocab_size == trained.vocabulary.size
    assert model.config.id2label == {0: "bad", 1: "good"}
    assert model.config.hidden_dropout_prob == 0.25
    saved = AutoConfig.from_pretrained(trimmed)
    assert saved.vocab_size == trained.vocabulary.size
    dropped_bytes = (trained.vocabulary.size - len(trained.vocabulary.rows)) * 16 * 4
    assert (whole / WEIGHTS).stat().st_size - (trimmed / WEIGHTS).stat().st_size == pytest.approx(dropped_bytes, 0.01)
    assert (is_trimmed(trimmed), is_trimmed(whole)) == (True, False)


def test_a_model_that_started_from_random_weights_is_given_the_same_ones_back(wide_model: Path, tmp_path: Path) -> None:
    source = open_model(ModelConfig(name=str(wide_model), pretrained=False), ())
    base = fresh(source)
    vocabulary = Vocabulary.of(base, np.array([5, 6]))
    part = copy.deepcopy(base)
    trim(part, vocabulary)
    folder = checkpoint(tmp_path, source, part, vocabulary, 1.0)
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    restored = read_checkpoint(folder, source, LABELS).state_dict()
    assert all(torch.equal(tensor, restored[name]) for name, tensor in base.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("manifest", ["current", "first version"])
def test_a_whole_checkpoint_needs_no_base_model(
    whole: Path, source: ModelSource, trained: Trained, manifest: str
) -> None:
    if manifest == "first version":
        tree = json.loads((whole / MANIFEST).read_text(encoding="utf-8"))
        assert tree.pop("vocabulary") is None
        (whole / MANIFEST).write_text(json.dumps(tree), encoding="utf-8")
    elsewhere = replace(source, name="/nowhere")
    state = read_checkpoint(whole, elsewhere, LABELS).state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in trained.full.state_dict().items())
    assert sorted(path.name for path in whole.iterdir()) == [
        "config.json", MANIFEST, WEIGHTS, "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip


def _shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def _drop_head(path: Path) -> None:
    save_file({name: tensor for name, tensor in load_file(path).items() if "classifier" not in name}, path)


def _write_rows(path: Path, rows: list[int]) -> None:
    save_file({"rows": torch.tensor(rows)}, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / ROWS).unlink(), f"{ROWS}: expected a file of the checkpoint, got none"),
        (lambda folder: _shorten(folder / ROWS), f"{ROWS}: expected a file of the checkpoint, got a damaged one"),
        (lambda folder: save_file({}, folder / ROWS), f"{ROWS}: expected 18 ascending token ids below 2,022"),
        (lambda folder: _write_rows(folder / ROWS, [*range(17)]), f"{ROWS}: expected 18 ascending token ids"),
        (lambda folder: _write_rows(folder / ROWS, [*range(17), 2022]), f"{ROWS}: expected 18 ascending token ids"),
        (lambda folder: _write_rows(folder / ROWS, [*range(17), 3]), f"{ROWS}: expected 18 ascending token ids"),
        (lambda folder: (folder / WEIGHTS).unlink(), f"{WEIGHTS}: expected a file of the checkpoint, got none"),
        (lambda folder: _shorten(folder / WEIGHTS), f"{WEIGHTS}: expected a file of the checkpoint, got a damaged one"),
        (lambda folder: _drop_head(folder / WEIGHTS), f"{WEIGHTS}: expected the weights of a BertForSequence.*Missing"),
        (lambda folder: save_file({}, folder / WEIGHTS), f"{WEIGHTS}: expected the weights of a BertForSequence"),
    ],
)
def test_a_damaged_checkpoint_is_refused(
    trimmed: Path, source: ModelSource, damage: Callable[[Path], None], message: str
) -> None:
    damage(trimmed)
    with pytest.raises(StudyError, match=f"{message}.*restore the file, or train the trial again"):
        read_checkpoint(trimmed, source, LABELS)


def test_a_damaged_checkpoint_of_a_whole_model_is_refused(whole: Path, source: ModelSource) -> None:
    (whole / WEIGHTS).unlink()
    with pytest.raises(StudyError, match=r"expected the model of a checkpoint, got: .*restore the file"):
        read_checkpoint(whole, source, LABELS)


def test_a_base_model_with_another_vocabulary_is_refused(trimmed: Path, tiny_model: Path) -> None:
    other = open_model(ModelConfig(name=str(tiny_model)), ())
    with pytest.raises(StudyError, match=r"expected a base model with an embedding of 2,022 rows, got 22 in"):
        read_checkpoint(trimmed, other, LABELS)


def test_only_the_model_that_a_study_was_run_on_is_opened(
    source: ModelSource, make_config: Callable[..., Config]
) -> None:
    study = optuna.create_study(study_name="reviews")
    config = make_config(f"model.name={source.name}")
    study.set_user_attr("lock", {"model": source.fingerprint})
    assert model_of(study, config).fingerprint == source.fingerprint
    study.set_user_attr("lock", {"model": "another"})
    with pytest.raises(
        UsageError,
        match=rf"expected the model that study 'reviews' was run on \(fingerprint another\), got another "
        rf"\({source.fingerprint}\)",
    ):
        model_of(study, config)


# --- Exports ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_export_has_the_whole_vocabulary(tmp_path: Path, wide_model: Path, toy_csv: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(wide_model, base)
    write_config(tmp_path, base, toy_csv)
    hpsearch(tmp_path, "run", "--config", "toy.yaml", "--trials", "1", "--set", "defaults.weight_decay=0.1")
    (folder,) = (tmp_path / "studies" / "toy").glob("trial-*")
    kept = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["vocabulary"]
    assert kept["size"] == 2022
    rows = load_file(folder / ROWS)["rows"]
    assert kept["kept"] == len(rows) < 30
    assert 0.8 < kept["decay"] < 0.99

    exported = document(tmp_path, "export-best", "--output", "model")
    assert exported["reloaded_value"] == pytest.approx(exported["value"], abs=5e-5)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "README.md", "config.json", MANIFEST, WEIGHTS, "search.yaml", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    table = load_file(tmp_path / "model" / WEIGHTS)[TABLE]
    assert torch.equal(table[rows], load_file(folder / WEIGHTS)[TABLE])
    unused = np.setdiff1d(np.arange(2022), rows.numpy())
    torch.testing.assert_close(table[unused], load_file(base / WEIGHTS)[TABLE][unused] * kept["decay"])
    answer = hpsearch(tmp_path, "predict", "model", "wonderful word7 word1999").stdout
    assert answer.startswith("good")

    # The weights of another model would be put in the places of those that were not trained.
    tensors = load_file(base / WEIGHTS)
    save_file({name: -tensor for name, tensor in tensors.items()}, base / WEIGHTS, metadata={"format": "pt"})
    result = hpsearch(tmp_path, "export-best", "--output", "again", code=2)
    assert "expected the model that study 'toy' was run on" in result.stderr
    assert not (tmp_path / "again").exists()

    # The first version's checkpoints were plain folders, as an export is, and need no other.
    tree = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    del tree["vocabulary"]
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "model", folder, ignore=shutil.ignore_patterns("README.md"))
    (folder / MANIFEST).write_text(json.dumps(tree), encoding="utf-8")
    shutil.rmtree(base)
    hpsearch(tmp_path, "export-best", "--output", "again")
    for name in (WEIGHTS, "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()
