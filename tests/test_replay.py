"""Recorded calls: which are recorded, that they answer what they are asked, and what happens where recording fails."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import numpy
import pytest
import torch
from torch import Tensor, nn

from unstir import pipeline
from unstir.condition import Condition
from unstir.device import autocast
from unstir.pipeline import Result, load
from unstir.replay import MOST, Replayed, Wrapped
from unstir.speedups import without


class Network(nn.Module):
    """Of everything that it is told."""

    in_channels, out_channels = 3, 6

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.calls = 0

    def forward(self, x: Tensor, scalar: Tensor, condition: Condition) -> Tensor:
        self.calls += 1
        told = 0 if condition.pooled is None else condition.pooled.sum(1)
        return self.weight * x + (scalar + told)[:, None, None, None]


class Recorder:
    """A stand-in for CUDA graphs: what is played is the recorded call, on the tensors that it was recorded with."""

    def __init__(self) -> None:
        self.captures = self.plays = 0

    def __call__(self, call: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        self.captures += 1
        with torch.no_grad():
            output = torch.full_like(call(), float("nan"))  # a recording computes nothing before it is played

        def play() -> None:
            self.plays += 1
            output.copy_(call())

        return play, output


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def replayed(recorder: Recorder) -> Replayed:
    return Replayed(Network(), capture=recorder)


def asked(rows: int = 2, size: int = 4, *, told: bool = True) -> tuple[Tensor, Tensor, Condition]:
    pooled = torch.randn(rows, 5) if told else None
    return torch.randn(rows, 3, size, size), torch.randn(rows), Condition(pooled=pooled, kept=torch.ones(rows) > 0)


@torch.no_grad()
def test_a_call_is_made_then_recorded_then_replayed(replayed: Replayed, recorder: Recorder) -> None:
    counts, answers = [], []
    for _ in range(4):
        given = asked()
        answers.append(replayed(*given))
        torch.testing.assert_close(answers[-1], Network()(*given), rtol=0, atol=0)
        counts.append((recorder.captures, recorder.plays))
    assert counts == [(0, 0), (1, 1), (1, 2), (1, 3)]
    assert len({answer.data_ptr() for answer in answers}) == 4, "an answer is nobody else's"


@torch.no_grad()
def test_weights_that_change_in_place_are_read_anew(replayed: Replayed) -> None:
    given = asked()
    for _ in range(3):
        before = replayed(*given)
    replayed.network.weight.fill_(3.0)
    assert not torch.equal(replayed(*given), before)


@torch.no_grad()
@pytest.mark.parametrize("what", ["rows", "size", "words", "format of x", "format of scalar", "precision", "mode"])
def test_what_differs_is_another_call(replayed: Replayed, recorder: Recorder, what: str) -> None:
    x, scalar, condition = asked()
    others = {
        "rows": asked(rows=3),
        "size": asked(size=6),
        "words": asked(told=False),
        "format of x": (x.double(), scalar, condition),
        "format of scalar": (x, scalar.double(), condition),
    }
    for _ in range(2):
        replayed(x, scalar, condition)
    if what == "mode":
        replayed.eval()
    with torch.autocast("cpu", torch.bfloat16, enabled=what == "precision"):
        replayed(*others.get(what, (x, scalar, condition)))
    assert (recorder.captures, recorder.plays) == (1, 1)


@torch.no_grad()
def test_few_recordings_are_kept_those_asked_for_last(replayed: Replayed, recorder: Recorder) -> None:
    for rows in range(2, 2 + MOST):
        replayed(*asked(rows))
        replayed(*asked(rows))
    assert recorder.captures == MOST
    replayed(*asked(2))  # asked for last: not the one to go
    replayed(*asked(50))
    before = recorder.captures, recorder.plays
    replayed(*asked(2))
    assert (recorder.captures, recorder.plays) == (before[0], before[1] + 1)
    replayed(*asked(3))  # gone
    assert (recorder.captures, recorder.plays) == (before[0], before[1] + 1)
    assert len(replayed._recordings) == MOST


def test_where_gradients_are_wanted_the_network_is_asked(replayed: Replayed, recorder: Recorder) -> None:
    x, scalar, condition = asked()
    for _ in range(3):
        leaf = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(replayed(leaf, scalar, condition).sum(), leaf)
        assert torch.equal(slope, torch.full_like(x, 2.0))
    assert recorder.captures == 0


@torch.no_grad()
def test_what_cannot_be_recorded_is_asked_as_ever_and_said_once() -> None:
    tries = []

    def capture(call: Callable[[], Tensor]):
        tries.append(1)
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    replayed = Replayed(Network(), capture=capture)
    given = asked()
    replayed(*given)
    with pytest.warns(UserWarning, match=r"cannot be recorded here .* \(RuntimeError: operation not permitted when"):
        assert torch.equal(replayed(*given), Network()(*given))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for rows in (2, 2, 3, 3, 3):
            replayed(*asked(rows))
    assert len(tries) == 1


def test_it_reads_and_counts_as_its_network_does() -> None:
    replayed = Replayed(Network())
    assert (replayed.in_channels, replayed.out_channels) == (3, 6)
    _, _, condition = asked()
    assert replayed.read(condition) is condition
    network = load("builtin", device="cpu").model.denoiser.network
    words = Condition(words=torch.ones(2, 4, dtype=torch.long), word_mask=torch.ones(2, 4) > 0)
    assert torch.equal(Replayed(network).read(words).tokens, network.read(words).tokens)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_pipeline_draws_the_same_through_it(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, scale: float
) -> None:
    """On a CPU made to record; switched off by its name, and not looked for in what a pipeline saves."""
    pipe = load("builtin", device="cpu")
    names = list(pipe.model.denoiser.network.state_dict())
    want = pipe.sample("a red heart", n=2, seed=0, guidance_scale=scale)
    assert pipe._replayed is None
    monkeypatch.setattr(pipe, "_replayed", pipeline._with_network(pipe.model, partial(Replayed, capture=recorder)))
    assert pipe.sample("a red heart", n=2, seed=0, guidance_scale=scale) == want
    assert recorder.captures == 1
    assert recorder.plays == 7, "eight tuned steps, of which the first is made as ever"
    with without("replayed_graphs"):
        assert pipe.sample("a red heart", n=2, seed=0, guidance_scale=scale) == want
    assert recorder.plays == 7
    assert list(pipe.model.denoiser.network.state_dict()) == names


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.filterwarnings("error")
def test_pictures_are_the_same_on_a_gpu(precision: str) -> None:
    pipe = load("builtin", device="cuda", precision=precision)
    with without("replayed_graphs"):
        want = pipe.sample("a red heart", n=3, seed=0)
    for _ in range(2):
        found = pipe.sample("a red heart", n=3, seed=0)
        for one, other in zip(want, found, strict=True):
            differences = [abs(a - b) for a, b in zip(one.tobytes(), other.tobytes(), strict=True)]
            assert max(differences) <= 1


def test_somebody_else_answers_for_a_network_which_speaks_for_itself() -> None:
    network = Network()
    asks: list[tuple[int, ...]] = []

    def ask(inner: nn.Module, x: Tensor, scalar: Tensor, condition: Condition) -> Tensor:
        asks.append(tuple(x.shape))
        return inner(x, scalar, condition) + 1

    wrapped = Wrapped(network, ask)
    given = asked(rows=3)
    assert (wrapped.in_channels, wrapped.out_channels) == (3, 6)
    torch.testing.assert_close(wrapped(*given), network(*given) + 1)
    assert asks == [(3, 3, 4, 4)]
    assert wrapped.read(given[2]) is given[2]  # this network reads no words


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_pipeline_is_drawn_through_somebody_else(precision: str) -> None:
    """One row a call without guidance, two with; in no context of the pipeline's; the pictures are its own."""
    pipe = load("builtin", device="cpu", precision=precision)
    rows: list[int] = []

    def ask(inner: nn.Module, x: Tensor, scalar: Tensor, condition: Condition) -> Tensor:
        rows.append(x.shape[0])
        assert not torch.is_autocast_enabled("cpu")
        twice = [torch.cat([each, each]) for each in (x, scalar)]
        with autocast(pipe.device, pipe.precision):
            return inner(*twice, condition.cat(condition))[: x.shape[0]]

    through = pipe.through(ask)
    for scale, expected in ((1.0, 1), (3.0, 2)):
        rows.clear()
        request = pipe.request("a red heart", seed=5, steps=3, guidance_scale=scale)
        (ours,), (theirs,) = (
            [item for item in each.run([request]) if isinstance(item, Result)] for each in (through, pipe)
        )
        assert rows == [expected] * 3
        difference = numpy.asarray(ours.picture).astype(int) - numpy.asarray(theirs.picture)
        assert abs(difference).max() <= 1
    assert pipe.sample("a red heart", seed=5, steps=3)
    assert rows == [2] * 3  # the pipeline itself asks its own network
