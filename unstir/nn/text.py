"""The text transformer that is trained together with a network.

Knows: token ids, and how to make vectors of them.
Does not know: letters, words, pictures.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unstir.nn.attention import SelfAttention
from unstir.nn.layers import SwiGLU, require_positive


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Shape of a text transformer.

    Args:
        vocabulary: number of token ids.
        max_tokens: longest sequence.
        width: channels of a token.
        depth: number of layers.
        heads: attention heads a layer.

    Raises:
        ValueError: if a number is below 1.
    """

    vocabulary: int = 2500
    max_tokens: int = 32
    width: int = 256
    depth: int = 2
    heads: int = 4

    def __post_init__(self) -> None:
        """Refuse a shape without extent."""
        require_positive(self, "vocabulary", "max_tokens", "width", "depth", "heads")


class TextTransformer(nn.Module):
    """A bidirectional transformer over token ids.

    Args:
        config: its shape.

    Source: Vaswani et al. 2017, arXiv:1706.03762, in the pre-norm form.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.position = nn.Parameter(torch.zeros(config.max_tokens, config.width))
        self.layers = nn.ModuleList(_Layer(config.width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        nn.init.normal_(self.embedding.weight, std=config.width**-0.5)
        nn.init.normal_(self.position, std=0.02)

    def forward(
        self, words: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"]
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b d"]]:
        """One vector a token, and their mean over the tokens that exist. Every row needs at least one."""
        x = self.embedding(words) + self.position[: words.shape[1]]
        for layer in self.layers:
            x = layer(x, mask)
        x = self.norm(x)
        weight = mask.to(x.dtype)[..., None]
        return x, (x * weight).sum(1) / weight.sum(1)


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.forward_norm = nn.LayerNorm(width)
        self.feed_forward = SwiGLU(width, width * 8 // 3)

    def forward(self, x: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        x = x + self.attention(self.attention_norm(x), mask)
        return x + self.feed_forward(self.forward_norm(x))
