"""Dropout: masks that are functions of a seed, a place and nothing else, and whose statistics are those of chance."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unstir.condition import Condition
from unstir.nn import UNet, UNetConfig
from unstir.nn.dropout import Dropout, mask
from unstir.nn.layers import BlockStyle
from unstir.nn.text import TextConfig
from unstir.speedups import without

WORD = 0xFFFFFFFF


def by_hand(seed: int, place: int, count: int) -> list[int]:
    """The 15 bits of the docstring's formula, in whole numbers of Python."""
    key = (seed + 0x9E3779B97F4A7C15 * (place + 1)) % 2**64
    key = (key ^ (key >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    key = (key ^ (key >> 27)) * 0x94D049BB133111EB % 2**64
    key ^= key >> 31
    found: list[int] = []
    for i in range(-(-count // 2)):
        word = i ^ (key & WORD)
        word = (word ^ (word >> 16)) * 0x7FEB352D & WORD
        word = (word + (key >> 32)) & WORD
        word = (word ^ (word >> 15)) * 0x846CA68B & WORD
        word ^= word >> 16
        found += [word & 0x7FFF, word >> 16 & 0x7FFF]
    return found[:count]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**62), place=st.integers(0, 1000), count=st.integers(1, 70), left_out=st.integers(0, 32767))
def test_the_mask_is_that_of_the_formula(seed: int, place: int, count: int, left_out: int) -> None:
    found = mask(torch.tensor([seed]), place, count, left_out)
    assert found[0].tolist() == [-1 if bits >= left_out else 0 for bits in by_hand(seed, place, count)]


def test_each_number_is_kept_as_often_as_it_should_and_knows_nothing_of_others() -> None:
    """Means over samples, places and positions, and of neighbours, against what chance allows (5 standard errors)."""
    kept = torch.stack([-mask(torch.arange(64), place, 4099, 2**13) for place in range(8)]).float() - 0.75
    variance, count = 0.75 * 0.25, kept.numel()
    assert kept.mean().abs() < 5 * math.sqrt(variance / count)
    for dim in range(3):
        others = [i for i in range(3) if i != dim]
        spread = kept.mean(others).square().mean() / (variance / (count / kept.shape[dim]))
        assert abs(spread - 1) < 5 * math.sqrt(2 / kept.shape[dim]), dim
        for lag in (1, 2, 3, 4, 5):
            both = (kept.narrow(dim, lag, kept.shape[dim] - lag) * kept.narrow(dim, 0, kept.shape[dim] - lag)).mean()
            assert both.abs() < 5 * variance / math.sqrt(count), (dim, lag)


def test_a_row_depends_on_its_own_seed_alone() -> None:
    layer, x, seeds = Dropout(0.5, 3), torch.ones(4, 5, 7), torch.tensor([3, 1, 4, 1])
    out = layer(x, seeds)
    assert torch.equal(out[1], out[3])
    assert not torch.equal(out[0], out[1])
    assert torch.equal(layer(x[2:3], seeds[2:3])[0], out[2])
    assert not torch.equal(Dropout(0.5, 4)(x, seeds), out)
    assert set(out.unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.999])
def test_the_mean_stays_and_gradients_go_where_numbers_went(share: float, dtype: torch.dtype) -> None:
    layer, x = Dropout(share), torch.ones(8, 3, 100, 100, dtype=dtype, requires_grad=True)
    out = layer(x, torch.arange(8))
    left = round(2**15 * share) / 2**15
    error = 6 * math.sqrt(left / (1 - left) / x.numel())
    assert (out != 0).double().mean().item() == pytest.approx(1 - left, abs=error)
    assert out.double().mean().item() == pytest.approx(1, abs=error / (1 - left) + torch.finfo(dtype).eps)
    out.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, out)


def test_its_gradient_is_that_of_the_masked_product() -> None:
    layer, x = Dropout(0.4, 2), torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: layer(x, torch.tensor([3, 4])), x)
    kept = -mask(torch.tensor([3, 4]), 2, 15, layer.left_out).view(2, 3, 5) / (1 - layer.left_out / 2**15)
    torch.testing.assert_close(layer(x, torch.tensor([3, 4])), x * kept)
    masked = Dropout(0.5)(torch.full((1, 64), torch.nan), torch.tensor([1]))
    assert (masked == 0).any(), "what is left out is gone, whatever it was"


def test_nothing_is_left_out_but_in_training_and_strangers_get_masks_too() -> None:
    layer, x = Dropout(0.5), torch.ones(2, 1000)
    assert not torch.equal(layer(x, None), layer(x, None))
    with without("dropout_masks"):
        assert layer(x, torch.arange(2)).mean().item() == pytest.approx(1, abs=0.2)
    assert layer.eval()(x, torch.arange(2)) is x
    assert layer(x, None) is x


@pytest.mark.parametrize("share", [-0.1, 1.0, 2.0])
def test_shares_that_leave_nothing_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match="0 to below 1"):
        Dropout(share)
    with pytest.raises(ValueError, match="dropout must be in"):
        BlockStyle(dropout=share)


def test_in_a_network_every_layer_has_masks_of_its_own_and_a_sample_is_not_its_batch() -> None:
    text = TextConfig(vocabulary=20, max_tokens=6, width=8, depth=1, heads=2)
    config = UNetConfig(channels=2, width=8, multipliers=(1, 2), blocks=1, attention=(), heads=2, text=text)
    torch.manual_seed(0)
    network = UNet(replace(config, style=BlockStyle(dropout=0.3)))
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.1 * torch.randn_like(weight)
    layers = [module for module in network.modules() if isinstance(module, Dropout)]
    assert [layer.place for layer in layers] == list(range(len(layers)))
    assert len(layers) > 3
    x, scalar = torch.randn(3, 2, 8, 8), torch.rand(3)
    told = Condition(words=torch.tensor([[3, 4], [5, 6], [7, 8]]), seeds=torch.tensor([5, 6, 7]))
    out = network(x, scalar, told)
    assert torch.equal(network(x, scalar, told), out)
    torch.testing.assert_close(network(x[1:2], scalar[1:2], told.rows(slice(1, 2)))[0], out[1])
    other = network(x, scalar, replace(told, seeds=torch.tensor([5, 9, 7])))
    torch.testing.assert_close(other[[0, 2]], out[[0, 2]])
    assert (other[1] - out[1]).abs().max() > 1e-3
