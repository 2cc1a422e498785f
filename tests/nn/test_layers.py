"""Layers: each against its formula."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from unstir.nn.layers import BlockStyle, ResidualBlock, SwiGLU, group_norm, modulate, zero_init


def test_modulate() -> None:
    x, shift, gain = torch.randn(2, 3, 4), torch.randn(2, 1, 4), torch.randn(2, 1, 4)
    torch.testing.assert_close(modulate(x, shift, gain), x * (1 + gain) + shift)
    assert torch.equal(modulate(x, torch.zeros(4), torch.zeros(4)), x), "without modulation nothing changes"


def test_swiglu() -> None:
    torch.manual_seed(0)
    layer, x = SwiGLU(4, 6), torch.randn(2, 3, 4)
    weight, bias = layer.joint.weight, layer.joint.bias
    gate, up = x @ weight[:6].T + bias[:6], x @ weight[6:].T + bias[6:]
    expected = (gate * torch.sigmoid(gate) * up) @ layer.out.weight.T + layer.out.bias
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("layer", [nn.Linear(3, 4), nn.Linear(3, 4, bias=False), nn.Conv2d(3, 4, 3)])
def test_zero_init(layer: nn.Linear | nn.Conv2d) -> None:
    assert zero_init(layer) is layer
    assert all((parameter == 0).all() for parameter in layer.parameters())


@pytest.mark.parametrize(
    ("width", "groups"), [(1, 1), (2, 1), (3, 1), (8, 4), (48, 24), (64, 32), (96, 32), (100, 25), (128, 32), (512, 32)]
)
def test_group_norm_takes_32_groups_or_as_many_as_fit(width: int, groups: int) -> None:
    assert group_norm(width).num_groups == groups


@pytest.mark.parametrize("out_width", [8, 12])
def test_a_residual_block_starts_as_its_shortcut_and_follows_its_formula(out_width: int) -> None:
    torch.manual_seed(1)
    block, x, vector = ResidualBlock(8, out_width, 5), torch.randn(3, 8, 4, 6), torch.randn(3, 5)
    short = x if out_width == 8 else F.conv2d(x, block.shortcut.weight, block.shortcut.bias)
    torch.testing.assert_close(block(x, vector), short, rtol=0, atol=0)

    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    short = x if out_width == 8 else F.conv2d(x, block.shortcut.weight, block.shortcut.bias)
    first, second = block.first_norm, block.second_norm
    inner = F.silu(F.group_norm(x, 4, first.weight, first.bias))
    inner = F.conv2d(inner, block.first.weight, block.first.bias, padding=1)
    told = vector @ block.modulation.weight.T + block.modulation.bias
    shift, gain = told[:, :out_width, None, None], told[:, out_width:, None, None]
    inner = F.group_norm(inner, out_width // 2, second.weight, second.bias) * (1 + gain) + shift
    inner = F.conv2d(F.silu(inner), block.second.weight, block.second.bias, padding=1)
    torch.testing.assert_close(block(x, vector), short + inner)


def test_a_vector_may_shift_what_the_second_norm_sees() -> None:
    torch.manual_seed(1)
    block = ResidualBlock(8, 8, 5, BlockStyle(modulation="shift", epsilon=1e-3))
    x, vector = torch.randn(3, 8, 4, 6), torch.randn(3, 5)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    first, second = block.first_norm, block.second_norm
    inner = F.conv2d(F.silu(F.group_norm(x, 4, first.weight, first.bias, 1e-3)), block.first.weight, padding=1)
    told = vector @ block.modulation.weight.T + block.modulation.bias
    inner = inner + block.first.bias[:, None, None] + told[:, :, None, None]
    inner = F.silu(F.group_norm(inner, 4, second.weight, second.bias, 1e-3))
    torch.testing.assert_close(block(x, vector), x + F.conv2d(inner, block.second.weight, block.second.bias, padding=1))


def test_an_epsilon_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="epsilon positive"):
        BlockStyle(epsilon=0.0)
