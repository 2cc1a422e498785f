"""The U-Net alone: its sizes, its levels, its shapes. What it shares with all networks is in test_dit.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from unstir.condition import Condition
from unstir.nn import UNet, UNetConfig
from unstir.nn.attention import CrossAttention, SelfAttention
from unstir.nn.layers import ResidualBlock
from unstir.nn.text import TextConfig

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


def test_its_residual_and_resampling_layers_have_the_shapes_of_the_paper() -> None:
    """Parameters of the CIFAR-10 network of Ho et al., but for attention, words, and gains beside shifts.

    35,746,307 of theirs, counted by its layers: width 128, multipliers 1 2 2 2, two blocks, attention at 16x16 only.
    """
    config = UNetConfig(width=128, multipliers=(1, 2, 2, 2), attention=(1,), heads=1, text=TEXT)
    with torch.device("meta"):
        network = UNet(config)
    blocks = [module for module in network.modules() if isinstance(module, ResidualBlock)]
    words = [module for module in network.modules() if isinstance(module, CrossAttention)]
    looks = [module for module in network.modules() if isinstance(module, SelfAttention)][TEXT.depth :]

    def size(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    gains = sum(size(block.modulation) // 2 for block in blocks)
    extra = sum(size(module) for module in words) + len(words) * 2 * 256  # cross-attention and its norm
    extra += sum(size(look.query_norm) + size(look.key_norm) for look in looks)
    extra += size(network.reader) + size(network.vector.pooled) + gains
    assert size(network) - extra == 35_746_307


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
