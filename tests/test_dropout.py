"""Masks that are cheap to draw have torch's probability, scale and gradient."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from hpsearch.dropout import Dropout, dropout, keep_mask, use_cheap_dropout

N = 400_000


@pytest.mark.parametrize("p", [0.001, 0.1, 0.25, 0.5, 0.9, 0.999])
def test_elements_are_dropped_with_the_probability_asked_for(p: float) -> None:
    torch.manual_seed(1)
    mask, factor = keep_mask(torch.Size([N]), p)
    # Six standard deviations of a binomial share, and the rounding to 16 bits.
    assert abs(1 - mask.double().mean().item() - p) < 6 * math.sqrt(p * (1 - p) / N) + 2**-17
    assert factor == pytest.approx(1 / (1 - p), rel=2**-17 / (1 - p))


def test_neighbours_that_share_a_random_number_are_independent() -> None:
    torch.manual_seed(2)
    mask, _ = keep_mask(torch.Size([N]), 0.5)
    quarters = mask.view(-1, 4).double()
    correlation = torch.corrcoef(quarters.T) - torch.eye(4)
    assert correlation.abs().max() < 6 / math.sqrt(N / 4)


def test_the_mean_is_kept_and_the_gradient_goes_where_the_value_went() -> None:
    torch.manual_seed(3)
    x = torch.ones(N, requires_grad=True)
    y = dropout(x, 0.3)
    assert y.mean().item() == pytest.approx(1.0, abs=0.01)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, y.detach())


@pytest.mark.parametrize("shape", [(1,), (3,), (4,), (5, 7), (2, 3, 4, 5)])
def test_any_shape_and_format(shape: tuple[int, ...]) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        y = dropout(torch.ones(shape, dtype=dtype), 0.5)
        assert (y.shape, y.dtype) == (torch.Size(shape), dtype)
        assert set(y.flatten().tolist()) <= {0.0, 2.0}


def test_the_seed_decides_and_draws_differ() -> None:
    def draws() -> list[torch.Tensor]:
        torch.manual_seed(4)
        return [keep_mask(torch.Size([1000]), 0.5)[0] for _ in range(2)]

    (first, second), (again, _) = draws(), draws()
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_only_torchs_own_modules_are_replaced_and_only_training_drops() -> None:
    class Special(nn.Dropout):
        pass

    model = nn.Sequential(nn.Dropout(0.5), Special(0.5), nn.Sequential(nn.Dropout(0.0)))
    use_cheap_dropout(model)
    assert [type(module) for module in model.modules() if isinstance(module, nn.Dropout)] == [Dropout, Special, Dropout]
    x = torch.ones(100)
    assert torch.equal(model[2](x), x)
    assert not torch.equal(model[0](x), x)
    assert torch.equal(model[0].eval()(x), x)
