"""What is not finite is traced to the module, or the weight, in which it begins."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from unstir.diffusion.objective import Loss
from unstir.training.culprit import culprit


class Rooted(nn.Module):
    """Its value is finite at 0, its slope is not."""

    def forward(self, x: Tensor) -> Tensor:
        return (x * 0).sqrt() + x


def net(*middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), *middle, nn.Linear(4, 2))


def part(network: nn.Module) -> Loss:
    return Loss(per_sample=network(torch.ones(3, 4)).square().mean(1), parts={})


class Overflowing(nn.Module):
    """Too large for its numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return (x + 100).exp()


@pytest.mark.parametrize("place", ["1.0", "3"])
def test_the_first_module_whose_output_is_not_finite_is_named(place: str) -> None:
    bad, good = Overflowing(), nn.Identity()
    network = net(nn.Sequential(bad if place == "1.0" else good), nn.Linear(4, 4), bad)
    assert culprit(network, [lambda: part(network)]) == f"the first module whose output is not finite is {place}"
    assert all(weight.grad is None for weight in network.parameters())


@pytest.mark.parametrize("losses", [True, False])
def test_a_weight_that_is_not_finite_is_named(losses: bool) -> None:
    network = net()
    with torch.no_grad():
        network[1].weight[0, 0] = float("nan")
    assert culprit(network, [lambda: part(network)] if losses else []) == "the weight 1.weight is not finite"


def test_a_gradient_is_traced_to_the_weight_nearest_to_the_loss() -> None:
    network = net(Rooted())
    assert culprit(network, [lambda: part(network)]) == "the gradient of 0.bias is not finite"


def test_where_all_is_finite_nothing_is_said_and_nothing_stays() -> None:
    network = net()
    assert culprit(network, [lambda: part(network), lambda: part(network)]) == ""
    assert not any(module._forward_hooks for module in network.modules())
