"""The encoder: its sizes and shapes, what it feels, that it starts by saying nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from unstir.nn import UNet, UNetConfig
from unstir.nn.encoder import Encoder, EncoderConfig
from unstir.nn.layers import ResidualBlock
from unstir.nn.text import TextConfig

TINY = EncoderConfig(channels=2, outputs=3, width=8, multipliers=(1, 2, 3), blocks=2)


def awake(config: EncoderConfig = TINY) -> Encoder:
    """A network in which nothing starts at zero any more."""
    torch.manual_seed(0)
    network = Encoder(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return network


@pytest.mark.parametrize(("height", "width"), [(4, 4), (8, 12)])
def test_one_logit_a_class_of_any_multiple_that_feels_every_pixel(height: int, width: int) -> None:
    network = awake()
    x = torch.randn(2, 2, height, width, requires_grad=True)
    logits = network(x, torch.tensor([1.0, 2.0]))
    assert logits.shape == (2, 3)
    logits[0, 1].backward()
    assert x.grad is not None
    assert (x.grad[0].abs().amax(0) > 0).all()
    assert (x.grad[1] == 0).all(), "a sample says nothing of another"


def test_the_scalar_matters() -> None:
    network, x = awake(), torch.randn(2, 2, 8, 8)
    assert not torch.allclose(network(x, torch.zeros(2)), network(x, torch.ones(2)), atol=1e-4)


def test_logits_are_linear_in_the_features() -> None:
    network, x, scalar = awake(), torch.randn(3, 2, 8, 8), torch.randn(3)
    features = network.features(x, scalar)
    assert features.shape == (3, network.num_features)
    assert network.num_features == 24
    expected = features @ network.head.weight.T + network.head.bias
    torch.testing.assert_close(network(x, scalar), expected)


def test_features_are_a_mean_over_sites() -> None:
    network = awake(replace(TINY, multipliers=(1,), blocks=1))
    seen: list[torch.Tensor] = []
    network.last_norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    features = network.features(torch.randn(2, 2, 6, 6), torch.zeros(2))
    torch.testing.assert_close(features, nn.functional.silu(seen[0]).flatten(2).mean(2))


def test_it_starts_by_saying_nothing() -> None:
    assert (Encoder(TINY)(torch.randn(2, 2, 8, 8), torch.randn(2)) == 0).all()


def test_levels_and_blocks_are_what_the_configuration_says() -> None:
    network = Encoder(TINY)
    blocks = [step for step in network.steps if isinstance(step, ResidualBlock)]
    assert len(blocks) == 2 * 3
    assert [block.second.out_channels for block in blocks] == [8, 8, 16, 16, 24, 24]
    assert network.multiple == 4
    text = TextConfig(vocabulary=20, max_tokens=6, width=8, depth=1, heads=2)
    shape: dict[str, Any] = {"channels": 2, "width": 8, "multipliers": (1, 2, 3), "blocks": 2}
    unet = UNet(UNetConfig(**shape, attention=(), text=text))
    trunk = [step for step in unet.down.modules() if isinstance(step, ResidualBlock)]
    assert [(block.first.in_channels, block.first.out_channels) for block in blocks] == [
        (block.first.in_channels, block.first.out_channels) for block in trunk
    ], "the way down is the U-Net's"


@pytest.mark.parametrize(("height", "width"), [(6, 8), (8, 30), (1, 4)])
def test_other_sizes_are_refused(height: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"multiples of 4, got {width}x{height}"):
        Encoder(TINY)(torch.zeros(2, 2, height, width), torch.zeros(2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outputs": 0}, "outputs must be at least 1"),
        ({"channels": 0}, "channels must be at least 1"),
        ({"multipliers": ()}, "needs a level"),
        ({"multipliers": (1, 0)}, "needs a level"),
        ({"blocks": 0}, "a block"),
        ({"width": 7}, "an even width"),
        ({"width": 0}, "an even width"),
    ],
)
def test_a_shape_that_is_none_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Encoder(replace(TINY, **change))
