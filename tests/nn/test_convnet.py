"""The ConvNet alone: its shapes, what it starts as, how far a pixel sees, what it can learn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from unstir.condition import Condition
from unstir.config import from_dict, to_dict
from unstir.nn.convnet import ConvNet, ConvNetConfig

TINY = ConvNetConfig(channels=2, width=8, depth=2, scales=2, features=8, input_features=4)
X = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(1))
SCALAR = torch.tensor([0.0, 10.0, 999.0])


def awake(config: ConvNetConfig = TINY) -> ConvNet:
    """A network in which nothing starts at zero any more."""
    torch.manual_seed(0)
    network = ConvNet(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return network


@pytest.mark.parametrize(("channels", "factor", "scales", "size"), [(1, 1, 1, (5, 7)), (3, 2, 3, (8, 4))])
def test_any_size_that_its_scales_divide(channels: int, factor: int, scales: int, size: tuple[int, int]) -> None:
    network = ConvNet(ConvNetConfig(channels=channels, out_factor=factor, width=8, depth=1, scales=scales))
    out = network(torch.randn(2, channels, *size), torch.zeros(2), None)
    assert out.shape == (2, factor * channels, *size)
    assert (network.in_channels, network.out_channels) == (channels, factor * channels)
    assert (network.multiple, network.is_one_size) == (2 ** (scales - 1), False)
    assert (out == 0).all(), "the last layer starts at zero"


def test_every_parameter_is_used_and_saved() -> None:
    network, other = awake(), ConvNet(TINY)
    network(X, SCALAR, None).square().sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().max() > 0, key
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(X, SCALAR, None), network(X, SCALAR, None))


def test_the_configuration_survives_json() -> None:
    for config in (TINY, ConvNetConfig()):
        assert from_dict(ConvNetConfig, to_dict(config)) == config


@torch.no_grad()
def test_rows_do_not_touch_each_other_and_the_scalar_matters() -> None:
    network = awake()
    out = network(X, SCALAR, None)
    torch.testing.assert_close(network(X[1:], SCALAR[1:], None), out[1:], atol=1e-5, rtol=1e-5)
    assert ((network(X, SCALAR + 50, None) - out).abs().amax((1, 2, 3)) > 1e-3).all()


@torch.no_grad()
def test_the_condition_is_ignored() -> None:
    network = awake()
    told = Condition(words=torch.tensor([[3], [4], [5]]))
    assert torch.equal(network(X, SCALAR, told), network(X, SCALAR, None))


@torch.no_grad()
@pytest.mark.parametrize(("scales", "sees_all"), [(1, False), (3, True)])
def test_with_its_scales_a_corner_sees_the_opposite_corner(scales: int, sees_all: bool) -> None:
    """One block of plain 3x3 convolutions, between two more, sees 4 pixels far; group norms are kept from mixing."""
    network = awake(replace(TINY, depth=1, scales=scales)).double()
    for module in network.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda x: x  # type: ignore[method-assign]
    x = X[:1].double()
    moved = x.clone()
    moved[0, :, 7, 7] += 1
    network.scalar.register_forward_hook(lambda module, given, out: out.double())
    network.scalar.float()
    change = (network(moved, SCALAR[:1], None) - network(x, SCALAR[:1], None)).abs()
    assert (change[0, :, 0, 0].max() > 1e-12) == sees_all
    assert change[0, :, 7, 7].min() > 1e-3


@torch.no_grad()
def test_without_edges_it_moves_with_the_picture() -> None:
    """A shift by the coarsest pooling's size shifts the output, inside, where no padding is felt."""
    network = awake(replace(TINY, depth=1, scales=2))
    for module in network.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda x: x  # type: ignore[method-assign]
    x = torch.randn(1, 2, 32, 32, generator=torch.Generator().manual_seed(2))
    one, other = network(x, SCALAR[:1], None), network(x.roll((2, 4), (2, 3)), SCALAR[:1], None)
    torch.testing.assert_close(one[..., 10:18, 10:18], other[..., 12:20, 14:22], atol=1e-5, rtol=1e-4)


def test_it_learns_a_median() -> None:
    """The median of each pixel and its four neighbours is no linear filter, but within sight of a small network."""
    torch.manual_seed(0)
    network = ConvNet(ConvNetConfig(width=16, depth=1, scales=1, features=8))
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    for _ in range(250):
        x = torch.randn(32, 1, 8, 8)
        target = torch.stack([x, *(x.roll(by, axis) for by in (1, -1) for axis in (2, 3))]).median(0).values
        loss = (network(x, torch.zeros(32), None) - target)[..., 1:-1, 1:-1].square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    best_linear = 0.086  # the variance of the median of five, 0.287, less five times (1/5)^2
    assert loss.item() < 0.75 * best_linear


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"scales": 0}, "scales"),
        ({"features": 7}, "features 7"),
        ({"input_features": 3}, "input_features 3"),
        ({"input_features": -2}, "input_features -2"),
    ],
)
def test_one_that_cannot_be_built_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


def test_a_picture_that_its_scales_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 2, got 7x8"):
        ConvNet(TINY)(torch.zeros(2, 2, 8, 7), torch.zeros(2), None)
