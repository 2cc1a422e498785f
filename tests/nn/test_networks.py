"""Every network of the registry keeps the same promises, and the U-Net does in each of its forms."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unstir.condition import Condition
from unstir.config import from_dict, to_dict
from unstir.nn import NETWORKS, DiTConfig, DiTZeroConfig, MMDiTConfig, UNetConfig
from unstir.nn.layers import BlockStyle
from unstir.nn.text import TextConfig

TEXT = TextConfig(vocabulary=20, max_tokens=6, width=8, depth=1, heads=2)
UNET = UNetConfig(channels=2, width=8, multipliers=(1, 2), blocks=1, attention=(1,), heads=2, text=TEXT)
DIT_ZERO = DiTZeroConfig(channels=2, size=8, patch=4, width=16, depth=2, heads=2, text=TEXT)
TINY: dict[str, Any] = {
    "dit": DiTConfig(channels=2, size=8, patch=4, width=16, depth=2, heads=2, detail=2, text=TEXT),
    "unet": UNET,
    "dit_zero": DIT_ZERO,
    "mmdit": MMDiTConfig(channels=2, size=8, patch=4, width=16, depth=2, heads=2, text=TEXT),
}
ADM, EDM = BlockStyle(resampling="block"), BlockStyle(modulation="shift", resampling="projected_block", sum_scale=0.7)
FORMS: dict[str, Any] = {
    **TINY,
    "unet of ADM": replace(UNET, head_width=4, style=ADM, vector_width=24, classes=3),
    "unet of latent diffusion": replace(UNET, transformers=2),
    "unet of EDM": replace(UNET, up_attention="last", style=EDM),
    "dit_zero of classes": replace(DIT_ZERO, classes=3),
}
"""A registered name is the first word."""

X = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(1))
SCALAR = torch.tensor([0.0, 10.0, 300.0, 999.0])
WORDS = torch.tensor([[3, 4, 5, 0], [6, 0, 0, 0], [7, 8, 9, 10], [3, 4, 0, 0]])


def told(name: str) -> Condition:
    """Of every row, all that a network may be told."""
    labels = torch.tensor([0, 2, -1, 1]) if getattr(FORMS[name], "classes", None) else None
    return Condition(words=WORDS, word_mask=WORDS > 0, labels=labels)


def build(name: str) -> nn.Module:
    """A network with its initial weights."""
    torch.manual_seed(0)
    return NETWORKS[name.split()[0]][1](FORMS[name])


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


@pytest.fixture(params=FORMS)
def name(request: pytest.FixtureRequest) -> str:
    """The forms of networks in turn."""
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
    config, default = FORMS[name], NETWORKS[name.split()[0]][0]()
    assert from_dict(type(config), to_dict(config)) == config
    assert from_dict(type(default), to_dict(default)) == default
    assert build(name).config == config


@pytest.mark.usefixtures("still")
def test_shapes_and_a_start_at_zero(name: str) -> None:
    network = build(name)
    assert network.in_channels == 2
    assert network.out_channels == 2
    assert X.shape[2] % network.multiple == 0
    out = network(X, SCALAR, told(name))
    assert out.shape == X.shape
    assert (out == 0).all()


def test_every_parameter_is_used(name: str) -> None:
    network = awake(name)
    condition = replace(told(name), kept=torch.tensor([True, True, False, True]))
    network(X, SCALAR, condition).square().sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().max() > 0, key


@pytest.mark.usefixtures("still")
def test_weights_survive_saving(name: str) -> None:
    network, other = awake(name), build(name)
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(X, SCALAR, told(name)), network(X, SCALAR, told(name)))


@pytest.mark.usefixtures("still")
def test_rows_do_not_touch_each_other(name: str) -> None:
    network = awake(name)
    out = network(X, SCALAR, told(name))
    for row in range(4):
        neighbours = torch.arange(4) != row
        x, scalar, words = X.clone(), SCALAR.clone(), WORDS.clone()
        x[neighbours], scalar[neighbours], words[neighbours] = 5 - x[neighbours], 77.0, 11
        other = network(x, scalar, replace(told(name), words=words, word_mask=words > 0))
        assert apart(other, out)[row] <= 1e-6
        assert min(value for index, value in enumerate(apart(other, out)) if index != row) > 1e-3
    pair = network(X[1:3], SCALAR[1:3], told(name).rows(slice(1, 3)))
    torch.testing.assert_close(pair, out[1:3], atol=1e-6, rtol=1e-5)


@pytest.mark.usefixtures("still")
def test_everything_it_is_told_matters(name: str) -> None:
    network = awake(name)
    out = network(X, SCALAR, told(name))
    assert min(apart(network(X.flip(3), SCALAR, told(name)), out)) > 1e-3
    assert min(apart(network(X, SCALAR + 50, told(name)), out)) > 1e-3
    assert min(apart(network(X, SCALAR, replace(told(name), words=WORDS + 1)), out)) > 1e-3
    assert min(apart(network(X, SCALAR, told(name).null()), out)) > 1e-3


@pytest.mark.usefixtures("still")
@pytest.mark.parametrize("part", ["tokens", "pooled"])
def test_tokens_and_pooled_words_both_reach_the_picture(name: str, part: str) -> None:
    network = awake(name)
    read = network.read(told(name))
    changed = replace(read, **{part: getattr(read, part).flip(-1)})
    assert min(apart(network(X, SCALAR, changed), network(X, SCALAR, read))) > 1e-4


@pytest.mark.usefixtures("still")
def test_reading_first_changes_nothing(name: str) -> None:
    network = awake(name)
    for condition in (
        told(name),
        told(name).null(),
        replace(told(name), kept=torch.tensor([True, False, False, True])),
    ):
        read = network.read(condition)
        assert read.words is None
        assert torch.equal(network(X, SCALAR, read), network(X, SCALAR, condition))


@pytest.mark.parametrize("forget", [lambda network, told: told, lambda network, told: network.read(told)])
def test_a_dropped_condition_has_no_influence(name: str, forget: Callable[[nn.Module, Condition], Condition]) -> None:
    network = awake(name)
    kept = torch.tensor([True, False, True, False])
    out = network(X, SCALAR, replace(forget(network, told(name)), kept=kept))
    others = replace(told(name), words=WORDS.roll(1, 0) + 1, word_mask=WORDS.roll(2, 0) > 0)
    if others.labels is not None:
        others = replace(others, labels=others.labels.flip(0))
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
    for condition in (told(name), told(name).null()):
        out = network(X, SCALAR, condition)
        scale = out.abs().max().item()
        longer = replace(condition, words=F.pad(WORDS, (0, 2), value=13), word_mask=F.pad(WORDS > 0, (0, 2)))
        other = replace(condition, words=torch.where(WORDS > 0, WORDS, 17))
        for same in (longer, other):
            assert max(apart(network(X, SCALAR, same), out)) <= 1e-6 * max(1.0, scale)


@pytest.mark.usefixtures("still")
def test_bf16_is_close_to_float32(name: str) -> None:
    network = awake(name)
    exact = network(X, SCALAR, told(name))
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(X, SCALAR, told(name))
    error = (rough.float() - exact).square().mean().sqrt() / exact.std()
    assert 1e-5 < error < 0.05, "bf16 was used, and used well"


def test_a_wrong_size_is_refused(name: str) -> None:
    network = build(name)
    with pytest.raises(ValueError, match="got 7x8"):
        network(X[..., :7], SCALAR, told(name))
    with pytest.raises(ValueError, match="got 8x7"):
        network(X[:, :, :7], SCALAR, told(name))


def test_a_condition_without_words_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="needs words"):
        build(name)(X, SCALAR, Condition(pooled=torch.zeros(4, 8)))


@pytest.mark.parametrize("name", NETWORKS)
def test_it_learns_a_batch(name: str) -> None:
    network = build(name)
    generator = torch.Generator().manual_seed(2)
    target = F.interpolate(torch.randn(4, 2, 4, 4, generator=generator), scale_factor=2.0)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses: list[float] = []
    for _ in range(60):
        loss = F.mse_loss(network(X, SCALAR, told(name)), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 5


@pytest.mark.usefixtures("still")
def test_weights_of_bf16_say_what_those_of_float32_say(name: str) -> None:
    """Without autocast: every part computes in the format of its weights."""
    network = awake(name)
    exact = network(X, SCALAR, told(name))
    rough = network.bfloat16()(X.bfloat16(), SCALAR, told(name))
    assert rough.dtype == torch.bfloat16
    error = (rough.float() - exact).square().mean().sqrt() / exact.std()
    assert 1e-5 < error < 0.1


@pytest.mark.usefixtures("still")
def test_shapes_do_not_hang_on_numbers(name: str) -> None:
    """On the meta device there are no numbers: what asks for one there could not be compiled or recorded."""
    with torch.device("meta"):
        network = build(name)
    condition = told(name).map(lambda tensor: tensor.to("meta"))
    out = network(X.to("meta"), SCALAR.to("meta"), condition)
    assert out.shape == X.shape


def test_labels_say_something_or_nothing(name: str) -> None:
    """Where there are classes, each matters to its own row, and a forgotten one is as none."""
    network, condition = awake(name), told(name)
    if condition.labels is None:
        with pytest.raises(ValueError, match="told no classes"):
            network(X, SCALAR, replace(condition, labels=torch.zeros(4, dtype=torch.long)))
        return
    with torch.no_grad():
        out = network(X, SCALAR, condition)
        other = network(X, SCALAR, replace(condition, labels=torch.tensor([1, 2, 0, -1])))
        changed = apart(out, other)
        forgotten = network(X, SCALAR, replace(condition, kept=torch.tensor([True, False, True, True])))
        none = network.read(replace(condition, kept=torch.tensor([True, False, True, True]))).labels
    assert changed[1] == 0
    assert min(changed[0], changed[2], changed[3]) > 1e-3
    assert none.tolist() == [0, -1, -1, 1]
    assert [value > 1e-3 for value in apart(out, forgotten)] == [False, True, False, False]


@pytest.mark.parametrize(("labels", "wrong"), [([0, 3, 1, 2], 3), ([0, 1, -2, 2], -2)])
@pytest.mark.parametrize("name", ["unet of ADM", "dit_zero of classes"])
def test_labels_that_are_no_classes_are_refused(name: str, labels: list[int], wrong: int) -> None:
    network = build(name)
    with pytest.raises(ValueError, match=f"from 0 to 2, or -1 for no class, got {wrong}$"):
        network(X, SCALAR, replace(told(name), labels=torch.tensor(labels)))
    with pytest.raises(ValueError, match="needs class labels; give -1"):
        network(X, SCALAR, replace(told(name), labels=None))


COMPILED = """
import importlib.util, sys, torch
spec = importlib.util.spec_from_file_location("networks", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
for name in module.FORMS:
    torch._dynamo.reset()
    network, told = module.awake(name), module.told(name)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(module.X, module.SCALAR, told), network(module.X, module.SCALAR, told))
print("done")
"""


@pytest.mark.slow
def test_all_compile_whole() -> None:
    """In a process without the checks of shapes, which torch.compile does not follow; one graph without a break."""
    done = subprocess.run([sys.executable, "-c", COMPILED, __file__], capture_output=True, text=True, check=False)
    assert done.stdout == "done\n", done.stderr
