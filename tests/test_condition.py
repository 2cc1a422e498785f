"""Conditions: rows stay together, dropping is keyed and fair, joining fills what only one side says."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unstir.condition import Condition
from unstir.diffusion.noise import KeyedNoise


def build(count: int, *, kept: bool | None = None) -> Condition:
    start = torch.arange(count)
    return Condition(
        words=start[:, None] * 10 + torch.arange(3),
        word_mask=torch.ones(count, 3, dtype=torch.bool),
        tokens=start[:, None, None] * torch.ones(count, 3, 4),
        token_mask=torch.ones(count, 3, dtype=torch.bool),
        pooled=start[:, None] * torch.ones(count, 5),
        labels=start % 3,
        kept=None if kept is None else torch.full((count,), kept),
    )


def tensors(condition: Condition) -> dict[str, Tensor]:
    return {f.name: getattr(condition, f.name) for f in fields(condition) if getattr(condition, f.name) is not None}


def assert_equal(one: Condition, other: Condition) -> None:
    assert tensors(one).keys() == tensors(other).keys()
    for name, tensor in tensors(one).items():
        assert torch.equal(tensor, getattr(other, name)), name


@given(st.integers(1, 6), st.integers(0, 5), st.integers(1, 6))
def test_rows_are_the_same_rows_of_everything(count: int, start: int, length: int) -> None:
    """rows(i:j) slices every tensor alike."""
    start = min(start, count - 1)
    part = build(count, kept=True).rows(slice(start, start + length))
    assert len(part) == min(length, count - start)
    for name, tensor in tensors(build(count, kept=True)).items():
        assert torch.equal(getattr(part, name), tensor[start : start + length]), name


@given(st.integers(1, 4), st.integers(1, 4))
def test_cat_undoes_rows(first: int, second: int) -> None:
    """rows(:k).cat(rows(k:)) is the condition itself: this one's rows come first."""
    whole = build(first + second, kept=False)
    assert_equal(whole.rows(slice(0, first)).cat(whole.rows(slice(first, None))), whole)


@pytest.mark.parametrize(("mine", "theirs"), [(None, False), (False, None), (None, None), (True, False)])
def test_cat_takes_silence_for_kept(mine: bool | None, theirs: bool | None) -> None:
    """What only one of two says of ``kept`` is True for the other (documented); where neither says, neither does the
    whole.
    """
    joined = build(2, kept=mine).cat(build(3, kept=theirs))
    assert len(joined) == 5
    if mine is None and theirs is None:
        assert joined.kept is None
    else:
        assert joined.kept is not None
        assert joined.kept.tolist() == [mine is not False] * 2 + [theirs is not False] * 3


def test_cat_refuses_different_kinds() -> None:
    """ValueError if one side holds a tensor the other lacks: rows could not be told apart."""
    with pytest.raises(ValueError, match="cannot join"):
        build(2).cat(Condition(pooled=torch.zeros(2, 5)))


def test_null_forgets_every_row_and_keeps_the_rest() -> None:
    """null() sets kept to False everywhere; the words themselves stay as they are, and the original is untouched."""
    condition = build(3)
    null = condition.null()
    assert null.kept is not None
    assert null.kept.tolist() == [False] * 3
    assert null.words is condition.words
    assert condition.kept is None


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_drop_rate_is_the_probability(probability: float) -> None:
    """The share of dropped rows is p within 3 standard errors (C28)."""
    count = 4000
    kept = Condition(pooled=torch.zeros(count, 1)).drop(probability, KeyedNoise.from_seeds(range(count))).kept
    assert kept is not None
    rate = 1 - kept.double().mean().item()
    assert rate == pytest.approx(probability, abs=3 * math.sqrt(probability * (1 - probability) / count))


@pytest.mark.parametrize(("probability", "kept"), [(0.0, True), (1.0, False)])
def test_drop_never_and_always(probability: float, kept: bool) -> None:
    """p = 0 keeps every row (C24), p = 1 none."""
    dropped = build(200).drop(probability, KeyedNoise.from_seeds(range(200))).kept
    assert dropped is not None
    assert dropped.tolist() == [kept] * 200


def test_drop_is_keyed() -> None:
    """The same key decides the same, in any batch; another key otherwise."""
    noise = KeyedNoise.from_seeds(range(200))
    condition = build(200)
    first, second = condition.drop(0.5, noise).kept, condition.drop(0.5, noise).kept
    part, other = (
        condition.rows(slice(50, 60)).drop(0.5, noise.rows(slice(50, 60))).kept,
        condition.drop(0.5, noise.at(1)).kept,
    )
    assert first is not None
    assert second is not None
    assert part is not None
    assert other is not None
    assert torch.equal(first, second)
    assert torch.equal(part, first[50:60])
    assert not torch.equal(other, first)


def test_drop_does_not_bring_words_back() -> None:
    """A row that was forgotten stays so; the others may be dropped as well."""
    condition = build(100)
    half = Condition(words=condition.words, kept=torch.arange(100) % 2 == 0)
    dropped = half.drop(0.5, KeyedNoise.from_seeds(range(100))).kept
    assert dropped is not None
    assert not bool(dropped[1::2].any())
    assert 0 < int(dropped[::2].sum()) < 50


@pytest.mark.parametrize("probability", [-0.1, 1.1, math.nan])
def test_drop_refuses_what_is_no_probability(probability: float) -> None:
    """ValueError outside [0, 1]."""
    with pytest.raises(ValueError, match="probability"):
        build(2).drop(probability, KeyedNoise.from_seeds([0, 1]))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Condition(),
        lambda: Condition(words=torch.zeros(2, 3, dtype=torch.long), pooled=torch.zeros(3, 4)),
        lambda: Condition(pooled=torch.zeros(2, 4), kept=torch.ones(1, dtype=torch.bool)),
    ],
)
def test_refuses_rows_that_do_not_match(make: Callable[[], object]) -> None:
    """ValueError if tensors differ in rows, or there is none."""
    with pytest.raises(ValueError, match="batch size"):
        make()


def test_map_reaches_every_tensor_and_only_tensors() -> None:
    """map applies to what is there, and what is absent stays absent."""
    condition = Condition(pooled=torch.ones(2, 3), tokens=torch.ones(2, 1, 4))
    doubled = condition.map(lambda tensor: tensor * 2)
    assert set(tensors(doubled)) == {"pooled", "tokens"}
    assert bool((doubled.pooled == 2).all())  # type: ignore[union-attr]
    assert len(doubled) == 2


def test_weights_of_words_go_with_their_rows() -> None:
    """They are sliced, moved, forgotten and joined as the words are; where only one of two has them, the other's are 1."""
    weights = torch.tensor([[0.5, 1.0, 2.0], [1.0, 1.0, 0.0]])
    weighed, plain = replace(build(2), word_weights=weights), build(1)
    assert torch.equal(weighed.rows(slice(1, 2)).word_weights, weights[1:])  # type: ignore[arg-type]
    assert torch.equal(weighed.map(lambda tensor: tensor * 2).word_weights, 2 * weights)  # type: ignore[arg-type]
    for dropped in (weighed.null(), weighed.drop(0.5, KeyedNoise.from_seeds([1, 2]))):
        assert torch.equal(dropped.word_weights, weights)  # type: ignore[arg-type]
    assert torch.equal(weighed.cat(weighed).word_weights, torch.cat([weights, weights]))  # type: ignore[arg-type]
    assert weighed.cat(plain).word_weights.tolist() == [*weights.tolist(), [1.0] * 3]  # type: ignore[union-attr]
    assert plain.cat(weighed).word_weights.tolist() == [[1.0] * 3, *weights.tolist()]  # type: ignore[union-attr]
    assert plain.cat(plain).word_weights is None


def test_labels_that_only_one_side_says_are_none_for_the_other() -> None:
    told, silent = Condition(pooled=torch.zeros(2, 3), labels=torch.tensor([4, 0])), Condition(pooled=torch.ones(3, 3))
    assert told.cat(silent).labels.tolist() == [4, 0, -1, -1, -1]  # type: ignore[union-attr]
    assert silent.cat(told).labels.tolist() == [-1, -1, -1, 4, 0]  # type: ignore[union-attr]
    assert silent.cat(silent).labels is None
    assert told.null().labels is told.labels, "forgotten by kept, as words are"
