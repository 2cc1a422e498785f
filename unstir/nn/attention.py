"""Attention: every token looks at every other.

Knows: queries, keys, values, masks, and which kernel is fast for them.
Does not know: what the tokens are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from unstir.speedups import is_on

_MANUAL_TOKENS = 1024
"""Up to this many keys a plain product is the faster kernel for bf16 on a CPU (3.2x, measured on Zen 5)."""


def attend(
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b h m d"],
    value: Float[Tensor, "b h m d"],
    mask: Bool[Tensor, "b m"] | None = None,
) -> Float[Tensor, "b h n d"]:
    """softmax(query key^T / sqrt(d)) value, over the keys whose mask is True.

    Computed in the format of the values: norms of queries and keys come in float32 where the rest is bf16.

    Args:
        query: what looks.
        key: what is looked at.
        value: what is seen there.
        mask: False for keys that do not exist; None when all do. Every row needs at least one True.

    Source: Vaswani et al. 2017, arXiv:1706.03762, Eq. 1.
    """
    query, key = query.to(value.dtype), key.to(value.dtype)
    bias = None if mask is None else torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, float("-inf"))
    bias = None if bias is None else bias[:, None, None, :]
    is_small = query.device.type == "cpu" and query.dtype == torch.bfloat16 and key.shape[-2] <= _MANUAL_TOKENS
    if is_small and is_on("plain_attention"):
        weight = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        return (weight if bias is None else weight + bias).softmax(-1) @ value
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)


class SelfAttention(nn.Module):
    """Multi-head attention of a sequence to itself, by default with normalised queries and keys.

    Args:
        width: channels of a token.
        heads: number of heads; divides ``width``.
        has_normed_queries: whether queries and keys are normalised.
        has_bias: whether queries, keys and values have one.

    Raises:
        ValueError: if ``heads`` does not divide ``width``.

    Source: Vaswani et al. 2017, arXiv:1706.03762, Sec. 3.2; Dehghani et al. 2023, arXiv:2302.05442 (normalised
        queries).
    """

    def __init__(self, width: int, heads: int, *, has_normed_queries: bool = True, has_bias: bool = True) -> None:
        super().__init__()
        self.heads = require_heads(width, heads)
        self.joint = nn.Linear(width, 3 * width, bias=has_bias)
        self.out = nn.Linear(width, width)
        self.query_norm, self.key_norm = _norms(width // heads, has_normed_queries)

    def forward(self, x: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"] | None = None) -> Float[Tensor, "b n d"]:
        """What every token saw."""
        query, key, value = self.joint(x).view(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = attend(self.query_norm(query), self.key_norm(key), value, mask)
        return self.out(seen.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Multi-head attention of a sequence to another one, by default with normalised queries and keys.

    Args:
        width: channels of a token that looks.
        context_width: channels of a token that is looked at.
        heads: number of heads; divides ``width``.
        has_normed_queries: whether queries and keys are normalised.
        has_bias: whether queries, keys and values have one.

    Raises:
        ValueError: if ``heads`` does not divide ``width``.

    Source: Rombach et al. 2022, arXiv:2112.10752, Sec. 3.3.
    """

    def __init__(
        self, width: int, context_width: int, heads: int, *, has_normed_queries: bool = True, has_bias: bool = True
    ) -> None:
        super().__init__()
        self.heads = require_heads(width, heads)
        self.query = nn.Linear(width, width, bias=has_bias)
        self.joint = nn.Linear(context_width, 2 * width, bias=has_bias)
        self.out = nn.Linear(width, width)
        self.query_norm, self.key_norm = _norms(width // heads, has_normed_queries)

    def forward(
        self, x: Float[Tensor, "b n d"], context: Float[Tensor, "b m e"], mask: Bool[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """What every token of ``x`` saw in ``context``."""
        query = self.query(x).view(*x.shape[:2], self.heads, -1).transpose(1, 2)
        key, value = self.joint(context).view(*context.shape[:2], 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = attend(self.query_norm(query), self.key_norm(key), value, mask)
        return self.out(seen.transpose(1, 2).flatten(2))


def _norms(width: int, has_normed_queries: bool) -> tuple[nn.Module, nn.Module]:
    """Of queries and of keys, each head by itself."""
    if not has_normed_queries:
        return nn.Identity(), nn.Identity()
    return nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)


def require_heads(width: int, heads: int) -> int:
    """The number of heads, where it divides the width.

    Raises:
        ValueError: where it does not.
    """
    if heads < 1 or width % heads:
        raise ValueError(f"the number of heads must divide the width, got {heads} heads for width {width}")
    return heads
