"""Every network of the registry keeps the same promises; and what is true of the DiT alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unstir.condition import Condition
from unstir.config import from_dict, to_dict
from unstir.nn import NETWORKS, DiT, DiTConfig, UNetConfig
from unstir.nn.text import TextConfig

TEXT = TextConfig(vocabulary=20, max_tokens=6, width=8, depth=1, heads=2)
TINY: dict[str, Any] = {
    "dit": DiTConfig(channels=2, size=8, patch=4, width=16, depth=2, heads=2, detail=2, text=TEXT),
    "unet": UNetConfig(channels=2, width=8, multipliers=(1, 2), blocks=1, attention=(1,), heads=2, text=TEXT),
}
X = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(1))
SCALAR = torch.tensor([0.0, 10.0, 300.0, 999.0])
WORDS = torch.tensor([[3, 4, 5, 0], [6, 0, 0, 0], [7, 8, 9, 10], [3, 4, 0, 0]])
TOLD = Condition(words=WORDS, word_mask=WORDS > 0)


def build(name: str) -> nn.Module:
    """A network with its initial weights."""
    torch.manual_seed(0)
    config, network = TINY[name], NETWORKS[name][1]
    return network(config)


def awake(name: str) -> nn.Module:
    """A network in which nothing starts at zero any more."""
    network = build(name)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return network


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small lose more by sharing the work than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=NETWORKS)
def name(request: pytest.FixtureRequest) -> str:
    """The networks in turn."""
    return request.param


@pytest.fixture
def still() -> Iterator[None]:
    """No gradients."""
    with torch.no_grad():
        yield


def apart(a: Tensor, b: Tensor) -> list[float]:
    """The largest difference in each row."""
    return (a - b).abs().amax((1, 2, 3)).tolist()


def test_every_network_is_tested() -> None:
    assert TINY.keys() == NETWORKS.keys()
    assert all(type(TINY[name]) is config for name, (config, _) in NETWORKS.items())


def test_the_configuration_survives_json(name: str) -> None:
    config, default = TINY[name], NETWORKS[name][0]()
    assert from_dict(type(config), to_dict(config)) == config
    assert from_dict(type(default), to_dict(default)) == default
    assert build(name).config == config


@pytest.mark.usefixtures("still")
def test_shapes_and_a_start_at_zero(name: str) -> None:
    network = build(name)
    assert network.in_channels == 2
    assert network.out_channels == 2
    assert X.shape[2] % network.multiple == 0
    out = network(X, SCALAR, TOLD)
    assert out.shape == X.shape
    assert (out == 0).all()


def test_every_parameter_is_used(name: str) -> None:
    network = awake(name)
    condition = replace(TOLD, kept=torch.tensor([True, True, False, True]))
    network(X, SCALAR, condition).square().sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().max() > 0, key


@pytest.mark.usefixtures("still")
def test_weights_survive_saving(name: str) -> None:
    network, other = awake(name), build(name)
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(X, SCALAR, TOLD), network(X, SCALAR, TOLD))


@pytest.mark.usefixtures("still")
def test_rows_do_not_touch_each_other(name: str) -> None:
    network = awake(name)
    out = network(X, SCALAR, TOLD)
    for row in range(4):
        neighbours = torch.arange(4) != row
        x, scalar, words = X.clone(), SCALAR.clone(), WORDS.clone()
        x[neighbours], scalar[neighbours], words[neighbours] = 5 - x[neighbours], 77.0, 11
        other = network(x, scalar, Condition(words=words, word_mask=words > 0))
        assert apart(other, out)[row] <= 1e-6
        assert min(value for index, value in enumerate(apart(other, out)) if index != row) > 1e-3
    pair = network(X[1:3], SCALAR[1:3], TOLD.rows(slice(1, 3)))
    torch.testing.assert_close(pair, out[1:3], atol=1e-6, rtol=1e-5)


@pytest.mark.usefixtures("still")
def test_everything_it_is_told_matters(name: str) -> None:
    network = awake(name)
    out = network(X, SCALAR, TOLD)
    assert min(apart(network(X.flip(3), SCALAR, TOLD), out)) > 1e-3
    assert min(apart(network(X, SCALAR + 50, TOLD), out)) > 1e-3
    assert min(apart(network(X, SCALAR, replace(TOLD, words=WORDS + 1)), out)) > 1e-3
    assert min(apart(network(X, SCALAR, TOLD.null()), out)) > 1e-3


@pytest.mark.usefixtures("still")
@pytest.mark.parametrize("part", ["tokens", "pooled"])
def test_tokens_and_pooled_words_both_reach_the_picture(name: str, part: str) -> None:
    network = awake(name)
    read = network.read(TOLD)
    changed = replace(read, **{part: getattr(read, part).flip(-1)})
    assert min(apart(network(X, SCALAR, changed), network(X, SCALAR, read))) > 1e-4


@pytest.mark.usefixtures("still")
def test_reading_first_changes_nothing(name: str) -> None:
    network = awake(name)
    for condition in (TOLD, TOLD.null(), replace(TOLD, kept=torch.tensor([True, False, False, True]))):
        read = network.read(condition)
        assert read.words is None
        assert torch.equal(network(X, SCALAR, read), network(X, SCALAR, condition))


@pytest.mark.parametrize("forget", [lambda network, told: told, lambda network, told: network.read(told)])
def test_a_dropped_condition_has_no_influence(name: str, forget: Callable[[nn.Module, Condition], Condition]) -> None:
    network = awake(name)
    kept = torch.tensor([True, False, True, False])
    out = network(X, SCALAR, replace(forget(network, TOLD), kept=kept))
    others = Condition(words=WORDS.roll(1, 0) + 1, word_mask=WORDS.roll(2, 0) > 0)
    changed = network(X, SCALAR, replace(forget(network, others), kept=kept))
    assert torch.equal(out[~kept], changed[~kept])
    assert min(value for value, keep in zip(apart(out, changed), kept, strict=True) if keep) > 1e-3

    network.zero_grad()
    out[~kept].square().sum().backward()
    for key, parameter in network.reader.text.named_parameters():
        assert parameter.grad is None or (parameter.grad == 0).all(), key
    assert network.reader.null_token.grad.abs().max() > 0
    assert network.reader.null_pooled.grad.abs().max() > 0


@pytest.mark.usefixtures("still")
def test_padding_has_no_influence(name: str) -> None:
    network = awake(name)
    for condition in (TOLD, TOLD.null()):
        out = network(X, SCALAR, condition)
        scale = out.abs().max().item()
        longer = replace(condition, words=F.pad(WORDS, (0, 2), value=13), word_mask=F.pad(WORDS > 0, (0, 2)))
        other = replace(condition, words=torch.where(WORDS > 0, WORDS, 17))
        for same in (longer, other):
            assert max(apart(network(X, SCALAR, same), out)) <= 1e-6 * max(1.0, scale)


@pytest.mark.usefixtures("still")
def test_bf16_is_close_to_float32(name: str) -> None:
    network = awake(name)
    exact = network(X, SCALAR, TOLD)
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(X, SCALAR, TOLD)
    error = (rough.float() - exact).square().mean().sqrt() / exact.std()
    assert 1e-5 < error < 0.05, "bf16 was used, and used well"


def test_a_wrong_size_is_refused(name: str) -> None:
    network = build(name)
    with pytest.raises(ValueError, match="got 7x8"):
        network(X[..., :7], SCALAR, TOLD)
    with pytest.raises(ValueError, match="got 8x7"):
        network(X[:, :, :7], SCALAR, TOLD)


def test_a_condition_without_words_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="needs words"):
        build(name)(X, SCALAR, Condition(pooled=torch.zeros(4, 8)))


def test_it_learns_a_batch(name: str) -> None:
    network = build(name)
    generator = torch.Generator().manual_seed(2)
    target = F.interpolate(torch.randn(4, 2, 4, 4, generator=generator), scale_factor=2.0)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses: list[float] = []
    for _ in range(60):
        loss = F.mse_loss(network(X, SCALAR, TOLD), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 5


@pytest.mark.parametrize(
    ("change", "message"),
    [({"patch": 3}, "patch must divide size"), ({"width": 18}, "4 must divide width"), ({"heads": 3}, "3 heads")],
)
def test_a_dit_that_cannot_be_built_is_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiT(replace(TINY["dit"], **change))


@pytest.mark.usefixtures("still")
def test_a_dit_puts_patches_where_they_came_from() -> None:
    network = awake("dit")
    network.layers = nn.ModuleList()
    nn.init.zeros_(network.mend[2].weight[:, :, 0])  # no look beyond a patch
    x = X.clone()
    x[:, :, :4, 4:] += 1.0
    difference = (network(x, SCALAR, TOLD) - network(X, SCALAR, TOLD)).abs().amax((0, 1))
    assert difference[:4, 4:].min() > 1e-4
    assert difference[6:].max() == 0
    assert difference[:, :2].max() == 0


@pytest.mark.parametrize("condition", [TOLD, Condition(words=WORDS)], ids=["masked", "unmasked"])
def test_every_patch_of_a_dit_sees_every_other(condition: Condition) -> None:
    x = X.clone().requires_grad_()
    awake("dit")(x, SCALAR, condition)[0, :, 0, 0].sum().backward()
    assert x.grad is not None
    assert (x.grad[0].abs().amax(0) > 0).all()
    assert (x.grad[1:] == 0).all()
