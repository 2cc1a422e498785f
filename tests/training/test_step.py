"""One step: what is late where numbers are not looked at, and that every speed-up leaves it as it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from unstir.diffusion.objective import Loss
from unstir.speedups import without
from unstir.training.optimizer import OptimizerConfig
from unstir.training.step import Learner, NotFiniteError

CONFIG = OptimizerConfig(learning_rate=0.1, weight_decay=0.0, clip_norm=1e9)
X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


def learner() -> Learner[nn.Linear]:
    torch.manual_seed(1)
    return Learner(nn.Linear(3, 2), CONFIG, device=torch.device("cpu"), precision="float32")


def loss_of(network: nn.Module, x: Tensor, factor: float = 1.0) -> Loss:
    per_sample = network(x).square().mean(1) * factor
    return Loss(per_sample=per_sample, parts={"size": x.square().mean(1)})


def test_parts_add_up_and_are_told_in_their_order() -> None:
    one, other = learner(), learner()
    whole = one.step([lambda: loss_of(one.network, X)], 6, rate=0.1, decay=0.5)
    parts = [lambda rows=rows: loss_of(other.network, X[rows]) for rows in (slice(0, 1), slice(1, 6))]
    split = other.step(parts, 6, rate=0.1, decay=0.5)
    torch.testing.assert_close(whole.loss.per_sample, split.loss.per_sample)
    torch.testing.assert_close(whole.loss.parts["size"], X.square().mean(1))
    torch.testing.assert_close(split.loss.parts["size"], X.square().mean(1))
    torch.testing.assert_close(whole.norm, split.norm)
    torch.testing.assert_close(one.network.weight, other.network.weight)
    torch.testing.assert_close(one.average.weight, other.average.weight)


def test_on_a_cpu_what_is_not_finite_is_refused_at_once_and_changes_nothing() -> None:
    one = learner()
    before = one.network.weight.clone()
    with pytest.raises(NotFiniteError) as caught:
        one.step([lambda: loss_of(one.network, X, float("nan"))], 6, rate=0.1, decay=0.5)
    assert not bool(caught.value.moved.is_finite)
    assert torch.equal(one.network.weight, before)
    assert torch.equal(one.average.weight, before)
    assert all(weight.grad is None for weight in one.network.parameters())
    one.step([lambda: loss_of(one.network, X)], 6, rate=0.1, decay=0.5)


def test_elsewhere_it_is_refused_one_step_late() -> None:
    one = learner()
    one.is_instant = False
    moved = one.step([lambda: loss_of(one.network, X, float("inf"))], 6, rate=0.1, decay=0.5)
    with pytest.raises(NotFiniteError) as caught:
        one.step([lambda: loss_of(one.network, X)], 6, rate=0.1, decay=0.5)
    assert caught.value.moved is moved
    other = learner()
    other.is_instant = False
    for _ in range(3):
        other.step([lambda: loss_of(other.network, X)], 6, rate=0.1, decay=0.5)
    other.require_finite()


@pytest.mark.parametrize("name", ["fused_optimizer", "joined_average"])
def test_a_speed_up_moves_the_weights_as_without_it(name: str) -> None:
    fast = learner()
    with without(name):
        slow = learner()
        for _ in range(5):
            slow.step([lambda: loss_of(slow.network, X)], 6, rate=0.1, decay=0.5)
    for _ in range(5):
        fast.step([lambda: loss_of(fast.network, X)], 6, rate=0.1, decay=0.5)
    assert not torch.equal(fast.network.weight, fast.average.weight)
    torch.testing.assert_close(fast.network.weight, slow.network.weight, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(fast.average.weight, slow.average.weight, rtol=1e-6, atol=1e-7)


def test_products_are_routed_on_the_way_back_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unstir.device.routing_pays", lambda: True)
    one, seen = learner(), []
    one.network.weight.register_hook(lambda gradient: seen.append(torch.backends.mkldnn.matmul.fp32_precision))
    one.step([lambda: loss_of(one.network, X)], 6, rate=0.1, decay=0.5)
    assert seen == ["bf16"]
    assert torch.backends.mkldnn.matmul.fp32_precision == "none"
