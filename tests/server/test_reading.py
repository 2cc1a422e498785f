"""What is read once, and what is not taken for the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from unstir.condition import Condition
from unstir.pipeline import load
from unstir.server.reading import Readings


class Reader(nn.Module):
    """Counts how often it reads; where nothing is kept it answers with its null, as networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def read(self, condition: Condition) -> Condition:
        self.reads += 1
        assert condition.words is not None
        pooled = condition.words.double()
        if condition.kept is not None:
            pooled = torch.where(condition.kept[:, None], pooled, torch.full_like(pooled, -1.0))
        return Condition(pooled=pooled)


def told(*words: int, kept: bool | None = None, weight: float | None = None) -> Condition:
    return Condition(
        words=torch.tensor([words]),
        word_mask=torch.ones(1, len(words), dtype=torch.bool),
        kept=None if kept is None else torch.tensor([kept]),
        word_weights=None if weight is None else torch.full((1, len(words)), weight),
    )


def pooled(condition: Condition) -> Tensor:
    assert condition.pooled is not None
    return condition.pooled


def test_the_same_words_are_read_once_and_others_anew() -> None:
    network, readings = Reader(), Readings()
    first = readings(network, told(1, 2))
    assert readings(network, told(1, 2)) is first
    assert network.reads == 1
    for other in (told(1, 3), told(1, 2, weight=0.5), told(1, 2, weight=0.25), told(1, 2, 3), told(1, 2, kept=True)):
        readings(network, other)
    assert network.reads == 6
    assert torch.equal(pooled(readings(network, told(1, 3))), torch.tensor([[1.0, 3.0]], dtype=torch.float64))
    assert network.reads == 6


def test_the_null_is_one_whatever_the_words() -> None:
    network, readings = Reader(), Readings()
    null = readings(network, told(1, 2, kept=False))
    assert readings(network, told(7, 8, kept=False)) is null
    assert network.reads == 1
    readings(network, told(7, 8, 9, kept=False))  # of another shape
    assert network.reads == 2
    two = Condition(words=torch.tensor([[1], [2]]), kept=torch.tensor([True, False]))
    other = replace(two, words=torch.tensor([[3], [2]]))
    assert not torch.equal(pooled(readings(network, two)), pooled(readings(network, other)))


def test_networks_and_numbers_are_told_apart() -> None:
    one, other, readings = Reader(), Reader(), Readings()
    readings(one, told(1))
    readings(other, told(1))
    assert (one.reads, other.reads) == (1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        readings(one, told(1))
    assert one.reads == 2


def test_few_are_remembered_those_asked_for_last() -> None:
    network, readings = Reader(), Readings(most=2)
    for word in (1, 2, 1, 3, 1, 2):
        readings(network, told(word))
    assert network.reads == 4


@pytest.mark.parametrize("kept", [None, True, False])
def test_a_real_network_reads_the_same_so(kept: bool | None) -> None:
    pipe = load("builtin", device="cpu", precision="float32")
    network, readings = pipe.model.denoiser.network, Readings()
    condition, _ = pipe.model.reader.read(["a red heart"])
    other, _ = pipe.model.reader.read(["a cat"])
    if kept is not None:
        condition, other = (replace(each, kept=torch.tensor([kept])) for each in (condition, other))
    for each in (condition, other, condition):
        with torch.no_grad():
            ours, theirs = readings(network, each), network.read(each)
        for name in ("tokens", "token_mask", "pooled"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
