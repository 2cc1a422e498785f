"""The U-Net alone: its sizes, its levels, its shapes. What it shares with all networks is in test_dit.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from unstir.condition import Condition
from unstir.nn import UNet, UNetConfig
from unstir.nn.attention import CrossAttention, SelfAttention
from unstir.nn.layers import BlockStyle, ResidualBlock
from unstir.nn.text import TextConfig
from unstir.nn.unet import _Told, doubled  # pyright: ignore[reportPrivateUsage]

TEXT = TextConfig(vocabulary=20, max_tokens=6, width=8, depth=1, heads=2)
TINY = UNetConfig(channels=2, width=8, multipliers=(1, 2, 3), blocks=1, attention=(1,), heads=2, text=TEXT)
WORDS = Condition(words=torch.tensor([[3, 4], [5, 6]]))


def count(network: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in network.modules())


def awake(config: UNetConfig) -> UNet:
    """A network in which nothing starts at zero any more."""
    torch.manual_seed(0)
    network = UNet(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return network


@pytest.mark.parametrize(("height", "width"), [(4, 4), (8, 12), (16, 4)])
def test_it_draws_any_multiple_and_feels_all_of_it(height: int, width: int) -> None:
    network = awake(TINY)
    assert network.multiple == 4
    x = torch.randn(2, 2, height, width, requires_grad=True)
    out = network(x, torch.tensor([1.0, 2.0]), WORDS)
    assert out.shape == x.shape
    out[0, 0, 0, 0].backward()
    assert x.grad is not None
    assert (x.grad[0].abs().amax(0) > 0).all(), "the middle attends, so that every pixel sees every other"
    assert (x.grad[1] == 0).all()


@pytest.mark.parametrize(("height", "width"), [(6, 8), (8, 30), (1, 4)])
def test_other_sizes_are_refused(height: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"multiples of 4, got {width}x{height}"):
        UNet(TINY)(torch.zeros(2, 2, height, width), torch.zeros(2), WORDS)


@pytest.mark.parametrize(
    ("change", "blocks", "looks"),
    [
        ({}, 11, 1 + 2 + 1),
        ({"attention": ()}, 11, 1),
        ({"attention": (0, 2), "blocks": 2}, 17, 2 * 2 + 2 * 3 + 1),
        ({"multipliers": (1,), "attention": (0,)}, 5, 1 + 2 + 1),
    ],
)
def test_blocks_and_attention_stand_where_the_configuration_says(
    change: dict[str, Any], blocks: int, looks: int
) -> None:
    network = UNet(replace(TINY, **change))
    assert count(network, ResidualBlock) == blocks
    assert count(network, CrossAttention) == looks
    assert count(network, SelfAttention) == looks + TEXT.depth


DDPM = BlockStyle(modulation="shift", dropout=0.1, epsilon=1e-6)


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ({"width": 128, "multipliers": (1, 2, 2, 2)}, 35_746_307),
        ({"width": 64, "multipliers": (1, 2, 2)}, 6_472_195),
    ],
)
def test_it_is_ddpms_by_configuration(shape: dict[str, Any], size: int) -> None:
    """35,746,307 weights of Ho et al.'s network for CIFAR-10: two blocks a level, attention at 16x16 only.

    The smaller one's number is that of diffusers' UNet2DModel of the same shape; tests/bench compares the outputs.
    """
    with torch.device("meta"):
        network = UNet(
            UNetConfig(
                **shape, attention=(1,), heads=1, style=DDPM, has_normed_queries=False, pads_evenly=False, text=None
            )
        )
    assert sum(weight.numel() for weight in network.parameters()) == size


def test_one_that_is_told_no_words_draws_and_refuses_them() -> None:
    network = awake(replace(TINY, text=None))
    x, scalar = torch.randn(2, 2, 8, 8), torch.tensor([1.0, 2.0])
    nothing = Condition(seeds=torch.arange(2))
    assert network(x, scalar, nothing).shape == x.shape
    assert network.read(nothing) is nothing
    with pytest.raises(ValueError, match="told no words"):
        network(x, scalar, WORDS)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 4, 6)])
def test_every_pixel_is_four(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, requires_grad=True)
    torch.testing.assert_close(doubled(x), F.interpolate(x, scale_factor=2.0, mode="nearest"), rtol=0, atol=0)
    doubled(x).sum().backward()
    assert x.grad is not None
    assert (x.grad == 4).all()


def test_uneven_padding_is_that_of_the_first_code() -> None:
    """Right and bottom alone, as TensorFlow's SAME pads a picture of even size for stride 2."""
    torch.manual_seed(0)
    step = next(part for part in UNet(replace(TINY, pads_evenly=False)).modules() if type(part).__name__ == "_Shrink")
    x = torch.randn(1, 8, 4, 4)
    expected = F.conv2d(F.pad(x, (0, 1, 0, 1)), step.conv.weight, step.conv.bias, stride=2)
    told = _Told(torch.zeros(1, 32), None, None, None)
    torch.testing.assert_close(step(x, told), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"multipliers": ()}, r"a level, a block and an even width.*multipliers \(\)"),
        ({"multipliers": (1, 0)}, r"multipliers \(1, 0\)"),
        ({"blocks": 0}, "blocks 0"),
        ({"width": 9}, "width 9"),
        ({"attention": (3,)}, r"levels from 0 to 2, got \(3,\)"),
        ({"attention": (-1,)}, r"levels from 0 to 2, got \(-1,\)"),
        ({"heads": 3}, "3 heads for width 16"),
    ],
)
def test_one_that_cannot_be_built_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNet(replace(TINY, **change))
