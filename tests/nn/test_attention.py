"""Attention: against the formula written out, with and without a mask, on both of its kernels."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from unstir.nn.attention import CrossAttention, SelfAttention, attend
from unstir.speedups import without


def formula(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q k / sqrt(d)) v, one query at a time, with keys that do not exist left out of the sums."""
    out = torch.zeros(*query.shape[:3], value.shape[-1], dtype=torch.float64)
    for b in range(query.shape[0]):
        there = torch.ones(key.shape[2], dtype=torch.bool) if mask is None else mask[b]
        for h in range(query.shape[1]):
            keys, values = key[b, h][there].double(), value[b, h][there].double()
            for n in range(query.shape[2]):
                weight = torch.exp(keys @ query[b, h, n].double() / math.sqrt(query.shape[-1]))
                out[b, h, n] = (weight[:, None] * values).sum(0) / weight.sum()
    return out


def qkv(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    shapes = ((3, 2, 5, 4), (3, 2, 7, 4), (3, 2, 7, 4))
    query, key, value = (torch.randn(shape, generator=generator) for shape in shapes)
    return query, key, value


MASK = torch.tensor([[True] * 7, [True, False, True, True, False, False, False], [False] * 6 + [True]])


@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
def test_attend_is_the_formula(mask: Tensor | None) -> None:
    query, key, value = qkv(torch.Generator().manual_seed(0))
    torch.testing.assert_close(attend(query, key, value, mask).double(), formula(query, key, value, mask))


@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
def test_the_plain_product_of_bf16_agrees_with_the_library_kernel(
    mask: Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    query, key, value = (tensor.bfloat16() for tensor in qkv(torch.Generator().manual_seed(1)))

    def refuse(*_: object, **__: object) -> Tensor:
        raise AssertionError("a few keys of bf16 on a CPU take the plain product")

    with monkeypatch.context() as patch:
        patch.setattr("torch.nn.functional.scaled_dot_product_attention", refuse)
        plain = attend(query, key, value, mask)
    monkeypatch.setattr("unstir.nn.attention._MANUAL_TOKENS", 0)
    library = attend(query, key, value, mask)
    assert plain.dtype == library.dtype == torch.bfloat16
    torch.testing.assert_close(plain.float(), library.float(), atol=0.03, rtol=0.03)
    exact = formula(query.float(), key.float(), value.float(), mask)
    torch.testing.assert_close(plain.double(), exact, atol=0.03, rtol=0.03)


def test_a_masked_key_has_no_influence_and_no_gradient() -> None:
    query, key, value = qkv(torch.Generator().manual_seed(2))
    key, value = key.requires_grad_(), value.requires_grad_()
    attend(query, key, value, MASK).square().sum().backward()
    assert key.grad is not None
    assert value.grad is not None
    assert (key.grad.abs().amax((1, 3))[~MASK] == 0).all()
    assert (value.grad.abs().amax((1, 3))[~MASK] == 0).all()
    assert (value.grad.abs().amax((1, 3))[MASK] > 0).all()


def test_self_attention_does_not_know_the_order_of_its_tokens() -> None:
    torch.manual_seed(3)
    attention, x = SelfAttention(8, 2), torch.randn(2, 6, 8)
    order = torch.randperm(6)
    torch.testing.assert_close(attention(x)[:, order], attention(x[:, order]))


def test_self_attention_of_one_token_is_its_value() -> None:
    torch.manual_seed(4)
    attention, x = SelfAttention(8, 2), torch.randn(3, 1, 8)
    value = attention.joint(x)[..., 16:]
    torch.testing.assert_close(attention(x), attention.out(value))


def test_cross_attention_looks_at_what_exists_only() -> None:
    torch.manual_seed(5)
    attention = CrossAttention(8, 6, 4)
    x, context = torch.randn(3, 5, 8), torch.randn(3, 7, 6)
    seen = attention(x, context, MASK)
    torch.testing.assert_close(seen[1:2], attention(x[1:2], context[1:2, MASK[1]]))
    torch.testing.assert_close(seen[2], attention.out(attention.joint(context[2, -1])[8:]).expand(5, -1))


@pytest.mark.parametrize("heads", [0, 3, -1])
def test_heads_must_divide_the_width(heads: int) -> None:
    with pytest.raises(ValueError, match=f"{heads} heads for width 8"):
        SelfAttention(8, heads)
    with pytest.raises(ValueError, match=f"{heads} heads for width 8"):
        CrossAttention(8, 6, heads)


def test_normed_queries_are_brought_back_to_the_format_of_the_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms answer in float32 under autocast; the plain product must not be lost for that."""

    def refuse(*_: object, **__: object) -> Tensor:
        raise AssertionError("a few keys of bf16 on a CPU take the plain product")

    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", refuse)
    attention, x = SelfAttention(8, 2), torch.randn(2, 6, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert attention(x).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["plain_attention"])
def test_its_speed_up_changes_rounding_alone(name: str) -> None:
    query, key, value = (tensor.bfloat16() for tensor in qkv(torch.Generator().manual_seed(1)))
    fast = attend(query, key, value)
    with without(name):
        slow = attend(query, key, value)
    torch.testing.assert_close(fast.float(), slow.float(), atol=0.03, rtol=0.03)
