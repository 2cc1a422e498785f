"""The ConvNet alone: its shapes, what it starts as, how far a pixel sees, what it can learn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from unstir.condition import Condition
from unstir.config import from_dict, to_dict
from unstir.nn.convnet import ConvNet, ConvNetConfig

TINY = ConvNetConfig(channels=2, width=8, depth=2, scales=2, features=8, heads=3, reach=1, steepness=-1.0)
X = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(1))
SCALAR = torch.tensor([-0.8, 0.1, 0.5])


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
    assert ((network(X, SCALAR + 0.7, None) - out).abs().amax((1, 2, 3)) > 1e-3).all()


@torch.no_grad()
def test_the_condition_is_ignored() -> None:
    network = awake()
    told = Condition(words=torch.tensor([[3], [4], [5]]))
    assert torch.equal(network(X, SCALAR, told), network(X, SCALAR, None))


@torch.no_grad()
@pytest.mark.parametrize(("scales", "sees_all"), [(1, False), (3, True)])
def test_with_its_scales_a_corner_sees_the_opposite_corner(scales: int, sees_all: bool) -> None:
    """One block of plain 3x3 convolutions, between two more, sees 5 pixels far; group norms are kept from mixing."""
    network = awake(replace(TINY, depth=1, scales=scales, heads=0)).double()
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
    network = awake(replace(TINY, depth=1, scales=2, heads=0))
    for module in network.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda x: x  # type: ignore[method-assign]
    x = torch.randn(1, 2, 32, 32, generator=torch.Generator().manual_seed(2))
    one, other = network(x, SCALAR[:1], None), network(x.roll((2, 4), (2, 3)), SCALAR[:1], None)
    torch.testing.assert_close(one[..., 10:18, 10:18], other[..., 12:20, 14:22], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_head_takes_the_mean_of_what_looks_alike_and_is_near() -> None:
    """Against the sums over all pairs of pixels, written out in float64."""
    torch.manual_seed(0)
    network = ConvNet(replace(TINY, reach=0))
    part = network.alike
    assert part is not None
    part.log_near.copy_(torch.tensor([-3.0, -1.0, 1.0]))
    gain = torch.exp(part.gain.double() + part.slope.double() * SCALAR.double()[:, None])  # b n
    place = torch.cartesian_prod(torch.arange(8.0), torch.arange(8.0)).double()
    far = (place[:, None] - place).square().sum(2)
    x = X.double().flatten(2).transpose(1, 2)  # b p c
    unlike = (x[:, :, None] - x[:, None]).square().sum(3)
    logits = -gain.square()[:, :, None, None] * unlike[:, None] - part.log_near.double().exp()[:, None, None] * far
    off = (logits.softmax(3) @ x[:, None] - x[:, None]) * gain[:, :, None, None]  # b n p c
    u = off.transpose(2, 3).reshape(3, 6, 8, 8)
    expected = torch.cat([u / (1 + u**2), 1 / (1 + u**2)], 1)
    shown: list[torch.Tensor] = []
    part.out.register_forward_pre_hook(lambda module, given: shown.append(given[0]))
    network(X, SCALAR, None)
    torch.testing.assert_close(shown[0].double(), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_neighbours_are_compared_one_by_one_to_start_with() -> None:
    network = ConvNet(replace(TINY, channels=1, heads=0, steepness=0.0))
    part = network.near
    assert part is not None
    shown: list[torch.Tensor] = []
    part.out.register_forward_pre_hook(lambda module, given: shown.append(given[0]))
    network(X[:, :1], SCALAR, None)
    u = shown[0][:, :8] / shown[0][:, 8:]
    middle = X[:, :1, 1:-1, 1:-1]
    around = torch.stack([X[:, 0, 1 + i : 7 + i, 1 + j : 7 + j] for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j], 1)
    torch.testing.assert_close(u[:, :, 1:-1, 1:-1], around - middle, atol=1e-5, rtol=1e-4)
    assert u[:, 0, 0, 0].abs().max() == 0, "beyond the edge the picture repeats itself"


def test_it_learns_a_median() -> None:
    """The median of each pixel and its four neighbours is no linear filter, but within sight of a small network."""
    torch.manual_seed(0)
    network = ConvNet(ConvNetConfig(width=16, depth=1, scales=1, features=8))
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    for _ in range(150):
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
        ({"heads": -1}, "heads -1"),
        ({"reach": -1}, "reach -1"),
    ],
)
def test_one_that_cannot_be_built_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


def test_a_picture_that_its_scales_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 2, got 7x8"):
        ConvNet(TINY)(torch.zeros(2, 2, 8, 7), torch.zeros(2), None)
