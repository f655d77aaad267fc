"""A packed encoder computes what the padded one computes: values, gradients and training steps."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import PreTrainedModel

from hpsearch.packing import can_pack, pack, use_packing

SHAPE = {
    "vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 70, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
FAMILIES = ["Bert", "Roberta", "XLMRoberta", "Electra"]
LENGTHS = {
    "different": [5, 31, 2, 17, 8, 2, 44],
    "equal": [9, 9, 9],
    "one text": [12],
    "one token each": [1, 1, 1],
    "more than the filling": [40, 41, 42],
    "exactly the filling": [30, 34],
}


def make_model(family: str, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**SHAPE, **changes})
    model: PreTrainedModel = getattr(transformers, f"{family}ForSequenceClassification")(config)
    for parameter in model.parameters():  # far from the small initial values, so that a mistake shows
        torch.nn.init.normal_(parameter.data, std=0.3)
    return model


def make_texts(lengths: list[int]) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(5, 90, size=length) for length in lengths]


def padded(texts: list[np.ndarray], pad_id: int) -> dict[str, torch.Tensor]:
    longest = max(map(len, texts))
    ids = torch.tensor([[*text.tolist(), *[pad_id] * (longest - len(text))] for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
    return {"input_ids": ids, "attention_mask": mask}


def packed_copy(model: PreTrainedModel) -> tuple[PreTrainedModel, int]:
    packed = copy.deepcopy(model)
    return packed, use_packing(packed)


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_are_those_of_the_padded_model(family: str, lengths: list[int]) -> None:
    plain = make_model(family)
    assert can_pack(plain)
    packed, first_position = packed_copy(plain)
    texts = make_texts(lengths)
    labels = torch.arange(len(texts)) % 2
    pad_id = plain.config.pad_token_id or 0
    expected = plain(**padded(texts, pad_id), labels=labels)
    got = packed(**pack(texts, pad_id=pad_id, first_position=first_position), labels=labels)
    assert got.logits.tolist() == pytest.approx(np.array(expected.logits.tolist()), abs=1e-4)
    expected.loss.backward()
    got.loss.backward()
    for (name, ours), theirs in zip(packed.named_parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None and theirs.grad is not None:
            scale = theirs.grad.abs().max().item() + 1e-6
            assert (ours.grad - theirs.grad).abs().max().item() < 1e-4 * scale + 1e-6, name


def test_evaluation_is_the_same_too() -> None:
    plain = make_model("Bert").eval()
    packed, first_position = packed_copy(plain)
    texts = make_texts(LENGTHS["different"])
    with torch.inference_mode():
        expected = plain(**padded(texts, 0)).logits
        got = packed(**pack(texts, pad_id=0, first_position=first_position)).logits
    assert got.tolist() == pytest.approx(np.array(expected.tolist()), abs=1e-4)


def test_twenty_training_steps_lead_to_the_same_weights() -> None:
    plain = make_model("Bert").train()
    packed, first_position = packed_copy(plain)
    texts = make_texts(LENGTHS["different"])
    labels = torch.arange(len(texts)) % 2
    losses = []
    for model, inputs in ((plain, padded(texts, 0)), (packed, pack(texts, pad_id=0, first_position=first_position))):
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
        seen: list[float] = []
        for _ in range(20):
            loss = model(**inputs, labels=labels).loss
            seen.append(loss.item())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(seen)
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert losses[0][-1] < 0.6 * losses[0][0]


def test_no_text_sees_another_or_the_filling() -> None:
    packed, first_position = packed_copy(make_model("Bert").eval())
    texts = make_texts(LENGTHS["different"])
    others = [texts[0], *make_texts([3, 50, 6])]

    def logits_of_the_first(batch: list[np.ndarray], pad_id: int) -> torch.Tensor:
        result: torch.Tensor = packed(**pack(batch, pad_id=pad_id, first_position=first_position)).logits[0]
        return result

    expected = logits_of_the_first(texts, 0).tolist()
    assert logits_of_the_first(others, 0).tolist() == pytest.approx(expected, abs=1e-5)
    assert logits_of_the_first(texts, 77).tolist() == pytest.approx(expected, abs=1e-5)


def test_attention_drops_other_weights_at_each_step_around_the_value_without() -> None:
    packed, first_position = packed_copy(make_model("Bert", attention_probs_dropout_prob=0.2).train())
    inputs = pack(make_texts(LENGTHS["different"]), pad_id=0, first_position=first_position)
    with torch.no_grad():
        drawn = torch.stack([packed(**inputs).logits for _ in range(300)])
        still = packed.eval()(**inputs).logits
    assert not torch.equal(drawn[0], drawn[1])
    # What comes after is no linear function, so the means are near each other, not equal.
    assert (drawn.mean(0) - still).abs().max() < drawn.std(0).max()


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(lambda: make_model("Bert", is_decoder=True), id="decoder"),
        pytest.param(lambda: make_model("Bert", chunk_size_feed_forward=2), id="chunked"),
        pytest.param(
            lambda: transformers.DistilBertForSequenceClassification(
                transformers.DistilBertConfig(vocab_size=90, dim=32, n_layers=1, n_heads=4, hidden_dim=48)
            ),
            id="another family",
        ),
    ],
)
def test_models_that_need_padding_are_left_alone(model: Any) -> None:
    assert not can_pack(model())


def test_a_saved_model_does_not_name_the_packed_attention(tmp_path: Any) -> None:
    packed, _ = packed_copy(make_model("Bert"))
    packed.save_pretrained(tmp_path)
    assert "packed" not in (tmp_path / "config.json").read_text(encoding="utf-8")
