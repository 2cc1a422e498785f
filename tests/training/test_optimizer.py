"""The rate against its closed form (C37), and what decays."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unstir.training.optimizer import OptimizerConfig, learning_rate, make_optimizer

CONFIG = OptimizerConfig(learning_rate=0.2, warmup_images=100, anneal=0.4)


@pytest.mark.parametrize(
    ("seen", "rate"),
    [
        (0, 0.2 / 100),  # rises linearly from the first picture
        (49, 0.1),
        (99, 0.2),
        (100, 0.2),  # constant
        (400, 0.2),
        (600, 0.2),  # the last 40 % begin
        (700, 0.15),
        (800, 0.1),
        (999, 0.2 / 400),
        (1000, 0.0),  # zero at the end
    ],
)
def test_the_rate_warms_up_stays_and_ends_at_zero(seen: int, rate: float) -> None:
    assert learning_rate(CONFIG, seen, 1000) == pytest.approx(rate, rel=1e-12, abs=1e-15)


def test_the_rate_is_linear_in_its_three_stretches() -> None:
    table = [learning_rate(CONFIG, seen, 1000) for seen in range(1001)]
    slopes = torch.tensor(table, dtype=torch.float64).diff()
    torch.testing.assert_close(slopes[:99], torch.full((99,), 0.002, dtype=torch.float64))
    assert slopes[99:600].abs().max() < 1e-15
    torch.testing.assert_close(slopes[600:], torch.full((400,), -0.0005, dtype=torch.float64))


def test_without_warm_up_and_end_the_rate_is_constant() -> None:
    config = OptimizerConfig(learning_rate=0.3, warmup_images=0, anneal=0)
    assert {learning_rate(config, seen, 50) for seen in range(51)} == {0.3}


def test_anneal_one_falls_from_the_start() -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup_images=0, anneal=1)
    assert [learning_rate(config, seen, 4) for seen in range(5)] == [1, 0.75, 0.5, 0.25, 0]


def network() -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Conv2d(2, 3, 3), nn.Embedding(6, 4))
    module.register_parameter("gain", nn.Parameter(torch.randn(())))
    return module


def test_only_matrices_decay() -> None:
    """With gradients of zero, a step of AdamW multiplies matrices by 1 - rate * decay and nothing else."""
    module = network()
    before = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    optimizer = make_optimizer(module, OptimizerConfig(learning_rate=0.1, weight_decay=0.5))
    for weight in module.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    for name, weight in module.named_parameters():
        expected = before[name] * (0.95 if before[name].ndim >= 2 else 1)
        torch.testing.assert_close(weight.detach(), expected, msg=name)


def test_every_weight_is_moved_and_none_twice() -> None:
    module = network()
    module[1].weight.requires_grad_(False)
    optimizer = make_optimizer(module, OptimizerConfig())
    held = [weight for group in optimizer.param_groups for weight in group["params"]]
    assert len({id(weight) for weight in held}) == len(held)
    assert {id(weight) for weight in held} == {id(weight) for weight in module.parameters() if weight.requires_grad}


def test_two_steps_are_the_published_update() -> None:
    """AdamW, Algorithm 2 of arXiv:1711.05101, in float64 by hand."""
    config = OptimizerConfig(learning_rate=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    module = nn.Linear(3, 2, bias=False).double()
    optimizer = make_optimizer(module, config)
    theta, m, v = module.weight.detach().clone(), torch.zeros(2, 3).double(), torch.zeros(2, 3).double()
    generator = torch.Generator().manual_seed(1)
    for step in (1, 2):
        gradient = torch.randn(2, 3, generator=generator, dtype=torch.float64)
        module.weight.grad = gradient.clone()
        optimizer.step()
        m, v = 0.9 * m + 0.1 * gradient, 0.95 * v + 0.05 * gradient**2
        update = (m / (1 - 0.9**step)) / ((v / (1 - 0.95**step)).sqrt() + 1e-8)
        theta = theta - 0.01 * (update + 0.1 * theta)
        torch.testing.assert_close(module.weight.detach(), theta, rtol=1e-12, atol=1e-12)


class Stacked(nn.Module):
    """A stack of layers between two that read and write."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(3, 8)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 8)) for _ in "ab")
        self.last = nn.Linear(8, 2)


def held_by(optimizer: torch.optim.Optimizer) -> set[int]:
    return {id(weight) for group in optimizer.param_groups for weight in group["params"]}


def test_muon_moves_the_matrices_of_stacked_layers_and_adamw_the_rest() -> None:
    network = Stacked()
    adamw, muon = make_optimizer(network, OptimizerConfig(hidden="muon")).members
    inside = {id(layer.weight) for stack in network.layers for layer in stack if isinstance(layer, nn.Linear)}
    assert isinstance(muon, torch.optim.Muon)
    assert held_by(muon) == inside
    assert held_by(adamw) == {id(weight) for weight in network.parameters()} - inside


def test_muons_update_is_orthogonal_and_as_long_as_adamws() -> None:
    """The momentum's singular values all become about 1, times 0.2 sqrt(max(rows, columns)): arXiv:2502.16982, Eq. 4."""
    network = Stacked()
    weight = network.layers[0][0].weight
    before = weight.detach().clone()
    optimizer = make_optimizer(network, OptimizerConfig(hidden="muon", learning_rate=0.01, weight_decay=0))
    for each in network.parameters():
        each.grad = torch.randn_like(each)
    optimizer.step()
    values = torch.linalg.svdvals((before - weight.detach()) / (0.01 * 0.2 * 16**0.5))
    assert values.min() > 0.5  # the quintic iteration leaves them between about 0.7 and 1.2; bf16 adds a little
    assert values.max() < 1.4


def test_the_state_of_a_weight_is_its_owners() -> None:
    network = Stacked()
    optimizer = make_optimizer(network, OptimizerConfig(hidden="muon"))
    for each in network.parameters():
        each.grad = torch.randn_like(each)
    optimizer.step()
    assert set(optimizer.state_of(network.layers[1][2].weight)) == {"momentum_buffer"}
    assert set(optimizer.state_of(network.first.weight)) == {"step", "exp_avg", "exp_avg_sq"}
    optimizer.zero_grad()
    assert all(weight.grad is None for weight in network.parameters())


@pytest.mark.parametrize(
    "wrong",
    [
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"clip_norm": 0.0},
        {"weight_decay": -0.1},
        {"betas": (1.0, 0.9)},
        {"betas": (0.9, -0.1)},
        {"warmup_images": -1},
        {"anneal": 1.5},
    ],
)
def test_numbers_that_train_nothing_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        OptimizerConfig(**wrong)
