"""The MLP alone: its shapes, what it starts as, what each part does, what it can and cannot learn."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from unstir.condition import Condition
from unstir.config import from_dict, to_dict
from unstir.nn.mlp import MLP, MLPConfig

TINY = MLPConfig(sites=6, width=16, depth=2, features=8, input_features=4)
X = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
SCALAR = torch.tensor([0.0, 10.0, 300.0, 999.0])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small lose more by sharing the work than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def awake(config: MLPConfig = TINY) -> MLP:
    """A network in which nothing starts at zero any more."""
    torch.manual_seed(0)
    network = MLP(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return network


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize(
    ("shape", "channels", "side"), [((6,), None, 1), ((1, 4, 4), 1, 4), ((3, 2, 2), 3, 2), ((1, 20), 1, 4)]
)
def test_vectors_sequences_and_pictures(shape: tuple[int, ...], channels: int | None, side: int, factor: int) -> None:
    network = MLP(MLPConfig(sites=math.prod(shape), channels=channels, out_factor=factor, width=8, features=8))
    out = network(torch.randn(5, *shape), torch.arange(5.0), None)
    assert out.shape == (5, factor * shape[0], *shape[1:])
    assert (network.in_channels, network.out_channels) == (shape[0], factor * shape[0])
    assert (network.multiple, network.is_one_size) == (side, True)
    assert (out == 0).all(), "the last layer starts at zero"


def test_further_outputs_are_further_channels() -> None:
    """The first half of the outputs, in rows, is the first channel: what a learned variance adds comes behind it."""
    network = awake(MLPConfig(sites=4, channels=1, out_factor=2, width=8, features=8))
    x, scalar = torch.randn(3, 1, 2, 2), torch.zeros(3)
    whole = network(x, scalar, None)
    with torch.no_grad():
        network.last.weight[4:], network.last.bias[4:] = 0, 7
    part = network(x, scalar, None)
    assert torch.equal(part[:, :1], whole[:, :1])
    assert (part[:, 1:] == 7).all()


def test_every_parameter_is_used_and_saved() -> None:
    network, other = awake(), MLP(TINY)
    network(X, SCALAR, None).square().sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().max() > 0, key
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(X, SCALAR, None), network(X, SCALAR, None))


def test_the_configuration_survives_json() -> None:
    for config in (TINY, MLPConfig(), MLPConfig(sites=64, channels=1, out_factor=2)):
        assert from_dict(MLPConfig, to_dict(config)) == config


@torch.no_grad()
def test_rows_do_not_touch_each_other_and_each_element_and_the_scalar_matter() -> None:
    network = awake()
    out = network(X, SCALAR, None)
    torch.testing.assert_close(network(X[1:3], SCALAR[1:3], None), out[1:3], atol=1e-6, rtol=1e-5)
    assert ((network(X, SCALAR + 50, None) - out).abs().amax(1) > 1e-3).all()
    for site in range(6):
        moved = X.clone()
        moved[0, site] += 1
        change = (network(moved, SCALAR, None) - out).abs()
        assert change[0].min() > 1e-4, "every output feels every element"
        assert change[1:].max() <= 1e-6


@torch.no_grad()
def test_the_condition_is_ignored() -> None:
    network = awake()
    told = Condition(words=torch.tensor([[3], [4], [5], [6]]))
    assert torch.equal(network(X, SCALAR, told), network(X, SCALAR, None))
    assert torch.equal(network(X, SCALAR, told.null()), network(X, SCALAR, None))


@torch.no_grad()
def test_it_computes_what_its_docstring_says() -> None:
    """The formula, written out in float64 with no layer of torch."""
    network = awake().double()
    weight = {key: value.double() for key, value in network.state_dict().items()}

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ weight[f"{name}.weight"].T + weight[f"{name}.bias"]

    def silu(x: Tensor) -> Tensor:
        return x / (1 + torch.exp(-x))

    frequency = torch.tensor([10000.0 ** (-k / 4) for k in range(4)])
    angle = SCALAR[:, None] * frequency
    vector = silu(linear("scalar", torch.cat([angle.sin(), angle.cos()], 1).double()))
    parts = linear("modulation", vector).view(4, 3, 2, 16)  # of two blocks and the last layer: shift, gain
    x = X.double()
    angles = torch.stack([x, 2 * x], 2).flatten(1)
    hidden = linear("first", torch.cat([x, angles.sin(), angles.cos()], 1))
    for index in range(2):
        centred = hidden - hidden.mean(1, keepdim=True)
        normed = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
        inner = normed * (1 + parts[:, index, 1]) + parts[:, index, 0]
        hidden = hidden + linear(f"blocks.{index}.second", silu(linear(f"blocks.{index}.first", inner)))
    expected = linear("last", hidden * (1 + parts[:, 2, 1]) + parts[:, 2, 0])
    network.scalar.float()  # the sinusoids of the scalar are float32
    network.scalar.register_forward_hook(lambda module, given, out: out.double())
    torch.testing.assert_close(network(x, SCALAR, None), expected, atol=1e-5, rtol=1e-5)


def test_it_learns_an_angle_that_turns_with_the_scalar() -> None:
    """A rotation of x by an angle that grows with the scalar: neither x nor the scalar alone tells anything of it."""
    torch.manual_seed(0)
    network = MLP(MLPConfig(sites=2, width=32, depth=2, features=16))
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(400):
        x, time = torch.randn(256, 2), torch.rand(256)
        cos, sin = (3 * time).cos(), (3 * time).sin()
        target = torch.stack([cos * x[:, 0] - sin * x[:, 1], sin * x[:, 0] + cos * x[:, 1]], 1)
        loss = (network(x, 1000 * time, None) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.02, "of 1 at the start"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sites": 0}, "sites must be at least 1, got 0"),
        ({"depth": 0}, "depth"),
        ({"out_factor": 0}, "out_factor"),
        ({"channels": 4}, "channels must divide sites, got 4 channels and 6 sites"),
        ({"channels": 0}, "got 0 channels"),
        ({"features": 7}, "features 7"),
        ({"input_features": 3}, "input_features 3"),
        ({"input_features": -2}, "input_features -2"),
    ],
)
def test_one_that_cannot_be_built_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


@pytest.mark.parametrize("shape", [(5,), (7,), (3, 2), (1, 2, 3)])
def test_samples_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="6 elements in 6 channels, got a sample of shape"):
        MLP(TINY)(torch.zeros(2, *shape), torch.zeros(2), None)
