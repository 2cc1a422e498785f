"""One step: what is late where numbers are not looked at, and that every speed-up leaves it as it is."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from unstir.device import lay_out
from unstir.diffusion.objective import Loss
from unstir.speedups import without
from unstir.training import step
from unstir.training.checkpoint import load_latest, save_checkpoint
from unstir.training.optimizer import OptimizerConfig
from unstir.training.step import Learner, NotFiniteError

CONFIG = OptimizerConfig(learning_rate=0.1, weight_decay=0.0, clip_norm=1e9)
X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


class Network(nn.Linear):
    """torch compiles no layer of its own by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def learner() -> Learner[Network]:
    torch.manual_seed(1)
    return Learner(Network(3, 2), CONFIG, device=torch.device("cpu"), precision="float32")


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


def compiled(monkeypatch: pytest.MonkeyPatch, backend: object, *, is_static: bool = True) -> Learner[Network]:
    """A learner on a CPU that compiles as on CUDA, by another compiler."""
    torch._dynamo.reset()
    monkeypatch.setattr(step, "_BACKEND", backend)
    monkeypatch.setattr(step, "compiles", lambda device: True)
    torch.manual_seed(1)
    return Learner(Network(3, 2), CONFIG, device=torch.device("cpu"), precision="float32", is_static=is_static)


def test_a_compiled_network_learns_the_same_under_the_same_names(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    one, other = learner(), compiled(monkeypatch, backend)
    assert (one.is_compiled, other.is_compiled) == (False, True)
    assert not graphs, "nothing is compiled before the first step"
    for _ in range(3):
        mine, theirs = (
            each.step([lambda each=each: loss_of(each.network, X)], 6, rate=0.1, decay=0.5) for each in (one, other)
        )
        assert torch.equal(mine.loss.per_sample, theirs.loss.per_sample)
    assert len(graphs) == 1
    state, other_state = one.state(6).tensors, other.state(6).tensors
    for group, tensors in state.items():
        assert tensors.keys() == other_state[group].keys()
        assert all(torch.equal(tensor, other_state[group][name]) for name, tensor in tensors.items())
    other.network(torch.randn(11, 3))
    other.average(torch.randn(12, 3))
    assert len(graphs) == 1, "who looks between steps, in other shapes, has nothing compiled"
    other.restore(one.state(6))
    other.step([lambda: loss_of(other.network, X)], 6, rate=0.1, decay=0.5)
    assert len(graphs) == 1


def test_where_shapes_differ_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not compiled(monkeypatch, "eager", is_static=False).is_compiled


@pytest.mark.parametrize("when", ["forward", "backward"])
def test_a_compiler_that_fails_stops_no_run(monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """It is said once, in a sentence; the step is the one that would have been taken without it."""

    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, *gradients: Tensor) -> Tensor:
            raise RuntimeError("no Triton\nhere")

    def backend(graph: torch.fx.GraphModule, inputs: object):
        if when == "forward":
            raise RuntimeError("no Triton\nhere")
        return lambda *given: tuple(Broken.apply(output) for output in graph(*given))

    one, other = learner(), compiled(monkeypatch, backend)
    mine = one.step([lambda: loss_of(one.network, X)], 6, rate=0.1, decay=0.5)
    with pytest.warns(UserWarning, match=r"cannot be compiled here and trains uncompiled \(.*no Triton here"):
        theirs = other.step([lambda: loss_of(other.network, X)], 6, rate=0.1, decay=0.5)
    assert torch.equal(mine.loss.per_sample, theirs.loss.per_sample)
    assert torch.equal(mine.norm, theirs.norm)
    assert not other.is_compiled
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for each in (one, other):
            each.step([lambda each=each: loss_of(each.network, X)], 6, rate=0.1, decay=0.5)
    assert torch.equal(one.network.weight, other.network.weight)


def test_what_was_gone_back_before_the_compiler_failed_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """It compiles for the first part of the batch, and fails at the shape of the second."""
    graphs: list[object] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        if len(graphs) == 2:
            raise RuntimeError("no more")
        return graph

    one, other = learner(), compiled(monkeypatch, backend)
    for each in (one, other):
        parts = [lambda rows=rows, each=each: loss_of(each.network, X[rows]) for rows in (slice(0, 2), slice(2, 6))]
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            each.step(parts, 6, rate=0.1, decay=0.5)
        assert len(said) == (each is other)
    assert len(graphs) == 2
    assert torch.equal(one.network.weight, other.network.weight)


def test_an_error_that_is_not_the_compilers_comes_out_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    one = compiled(monkeypatch, "eager")

    def wrong() -> Loss:
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        one.step([wrong], 6, rate=0.1, decay=0.5)


def test_channels_last_are_kept_by_averages_moments_and_files_are_contiguous(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On a CPU made to believe that it pays: the same steps, also from a checkpoint, whose tensors lie as ever."""
    monkeypatch.setattr("unstir.device.last_channels_pay", lambda device: True)
    x = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))

    def convolutions(*, is_last: bool) -> Learner[nn.Conv2d]:
        torch.manual_seed(1)
        network = nn.Conv2d(3, 5, 3)
        if is_last:
            lay_out(network, torch.device("cuda"), "bf16")
        return Learner(network, CONFIG, device=torch.device("cpu"), precision="float32")

    def loss(network: nn.Conv2d) -> Loss:
        return Loss(per_sample=network(x).square().flatten(1).mean(1), parts={})

    def steps(each: Learner[nn.Conv2d]) -> None:
        for _ in range(2):
            each.step([lambda: loss(each.network)], 4, rate=0.1, decay=0.5)

    usual, last = convolutions(is_last=False), convolutions(is_last=True)
    steps(usual)
    steps(last)
    save_checkpoint(tmp_path, last.state(8))
    with safe_open(next(tmp_path.rglob("*.safetensors")), framework="pt") as file:
        assert all(file.get_tensor(name).is_contiguous() for name in file.keys())  # noqa: SIM118
    again = convolutions(is_last=True)
    found = load_latest(tmp_path)
    assert found is not None
    again.restore(found)
    state = again.optimizer.state_of(again.network.weight)
    laid_out = [again.network.weight, again.average.weight, state["exp_avg"], state["exp_avg_sq"]]
    assert all(each.is_contiguous(memory_format=torch.channels_last) for each in laid_out)
    for each in (usual, last, again):
        steps(each)
    assert torch.equal(last.network.weight, again.network.weight)
    torch.testing.assert_close(last.network.weight, usual.network.weight, rtol=1e-5, atol=1e-6)
