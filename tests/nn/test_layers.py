"""Layers: each against its formula."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unstir.nn.layers import (
    GEGLU,
    BlockStyle,
    ResidualBlock,
    SwiGLU,
    doubled,
    feed_forward,
    group_norm,
    halved,
    layer_norm,
    modulate,
    require_patches,
    scaled_sum,
    zero_init,
)


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


@pytest.mark.parametrize(
    "layer", [nn.Linear(3, 4), nn.Linear(3, 4, bias=False), nn.Conv1d(3, 4, 3), nn.Conv2d(3, 4, 3)]
)
def test_zero_init(layer: nn.Linear | nn.Conv1d | nn.Conv2d) -> None:
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


@pytest.mark.parametrize("resampling", ["block", "projected_block"])
@pytest.mark.parametrize("resample", ["up", "down"])
def test_a_block_resamples_before_its_first_convolution_and_beside_it(resample: str, resampling: str) -> None:
    torch.manual_seed(1)
    block = ResidualBlock(8, 8, 5, BlockStyle(resampling=resampling, sum_scale=0.6), resample=resample)
    x, vector = torch.randn(3, 8, 4, 6), torch.randn(3, 5)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)

    def change(x: Tensor) -> Tensor:
        return (
            F.interpolate(x, scale_factor=2.0) if resample == "up" else F.interpolate(x, scale_factor=0.5, mode="area")
        )

    first, second = block.first_norm, block.second_norm
    inner = change(F.silu(F.group_norm(x, 4, first.weight, first.bias)))
    inner = F.conv2d(inner, block.first.weight, block.first.bias, padding=1)
    told = vector @ block.modulation.weight.T + block.modulation.bias
    shift, gain = told[:, :8, None, None], told[:, 8:, None, None]
    inner = F.group_norm(inner, 4, second.weight, second.bias) * (1 + gain) + shift
    inner = F.conv2d(F.silu(inner), block.second.weight, block.second.bias, padding=1)
    short = change(x)
    assert isinstance(block.shortcut, nn.Identity) == (resampling == "block")
    if resampling == "projected_block":
        short = F.conv2d(short, block.shortcut.weight, block.shortcut.bias)
    torch.testing.assert_close(block(x, vector), 0.6 * (short + inner))


def test_only_blocks_that_resample_are_projected() -> None:
    style = BlockStyle(resampling="projected_block")
    assert isinstance(ResidualBlock(8, 8, 5, style).shortcut, nn.Identity)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 4), (1, 1, 1, 1), (2, 3, 4, 6), (2, 1, 3, 4, 5)])
def test_every_number_is_two_along_every_axis(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, requires_grad=True)
    torch.testing.assert_close(doubled(x), F.interpolate(x, scale_factor=2.0, mode="nearest"), rtol=0, atol=0)
    doubled(x).sum().backward()
    assert x.grad is not None
    assert (x.grad == 2 ** (len(shape) - 2)).all()


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 3, 4, 6), (2, 1, 2, 4, 6)])
def test_two_numbers_are_their_mean(shape: tuple[int, ...]) -> None:
    x, sides = torch.randn(shape), shape[2:]
    pairs = x.view(*shape[:2], *[number for side in sides for number in (side // 2, 2)])
    torch.testing.assert_close(halved(x), pairs.mean(tuple(range(3, pairs.ndim, 2))))
    torch.testing.assert_close(halved(doubled(x)), x)


def test_a_sum_may_be_scaled() -> None:
    x, y = torch.randn(3, 4), torch.randn(3, 4)
    assert torch.equal(scaled_sum(x, y, 1.0), x + y)
    torch.testing.assert_close(scaled_sum(x, y, 0.5**0.5), (x + y) / 2**0.5)
    assert scaled_sum(torch.randn(10_000), torch.randn(10_000), 0.5**0.5).std() == pytest.approx(1, abs=0.05)


def test_geglu() -> None:
    torch.manual_seed(0)
    layer, x = GEGLU(4, 6), torch.randn(2, 3, 4)
    weight, bias = layer.joint.weight, layer.joint.bias
    up, gate = x @ weight[:6].T + bias[:6], x @ weight[6:].T + bias[6:]
    gelu = gate * 0.5 * (1 + torch.erf(gate / 2**0.5))
    torch.testing.assert_close(layer(x), (up * gelu) @ layer.out.weight.T + layer.out.bias)


def test_feed_forward() -> None:
    torch.manual_seed(0)
    net, x = feed_forward(4, 7), torch.randn(2, 3, 4)
    hidden = x @ net[0].weight.T + net[0].bias
    inner = (2 / torch.pi) ** 0.5 * (hidden + 0.044715 * hidden**3)
    expected = (0.5 * hidden * (1 + inner.tanh())) @ net[2].weight.T + net[2].bias
    torch.testing.assert_close(net(x), expected)


def test_layer_norm() -> None:
    x = 5 + 3 * torch.randn(2, 3, 64)
    expected = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 0.1).sqrt()
    torch.testing.assert_close(layer_norm(x, epsilon=0.1), expected)


@pytest.mark.parametrize(("size", "patch", "width"), [(9, 2, 8), (8, 2, 10)])
def test_patches_that_do_not_fit_are_refused(size: int, patch: int, width: int) -> None:
    require_patches(8, 2, 8)
    with pytest.raises(ValueError, match=f"got size {size}, patch {patch}, width {width}"):
        require_patches(size, patch, width)


def test_an_epsilon_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="epsilon positive"):
        BlockStyle(epsilon=0.0)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_a_sum_that_is_scaled_away_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="sum_scale must be positive and finite"):
        BlockStyle(sum_scale=scale)
