"""Embeddings: from one number a sample and a Condition to the vectors and tokens that networks use.

Knows: sinusoids, positions, how a condition's words become tokens and what stands for words that are not told.
Does not know: what the number means, or what a network does with the vectors.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unstir.condition import Condition
from unstir.nn.text import TextConfig, TextTransformer


def sinusoids(scalar: Float[Tensor, "b"], count: int, longest: float = 10000.0) -> Float[Tensor, "b f"]:
    """``count`` features of a number: sines, then cosines, of geometrically spaced frequencies from 1 to 1/longest.

    Source: Vaswani et al. 2017, arXiv:1706.03762, Sec. 3.5.
    """
    half = count // 2
    frequency = torch.exp(-math.log(longest) * torch.arange(half, device=scalar.device, dtype=torch.float32) / half)
    angle = scalar.float()[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], -1)


def grid_positions(height: int, width: int, channels: int) -> Float[Tensor, "n d"]:
    """Fixed positions of the cells of a grid, row by row: half of the channels tell the row, half the column.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929, Appendix D.4, with the sinusoids of the transformer.
    """
    rows = sinusoids(torch.arange(height, dtype=torch.float32), channels // 2)
    columns = sinusoids(torch.arange(width, dtype=torch.float32), channels // 2)
    both = torch.cat([rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)], -1)
    return both.flatten(0, 1)


class ConditionReader(nn.Module):
    """Reads the words of a condition: turns them into tokens and a pooled vector, or into the learned null.

    Args:
        config: shape of the text transformer.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.text = TextTransformer(config)
        self.null_token = nn.Parameter(torch.randn(config.width) * 0.02)
        self.null_pooled = nn.Parameter(torch.randn(config.width) * 0.02)

    def forward(self, condition: Condition) -> Condition:
        """The condition with tokens, mask and pooled vector in the place of words, or those that it came with.

        Where ``kept`` is False they have no influence at all, on values or on gradients.
        """
        tokens, mask, pooled = condition.tokens, condition.token_mask, condition.pooled
        if condition.words is not None:
            words, mask = condition.words, condition.word_mask
            mask = mask if mask is not None else torch.ones_like(words, dtype=torch.bool)
            tokens, pooled = self.text(words, mask)
        if tokens is None and pooled is None:
            return condition
        kept = condition.kept
        if kept is not None and tokens is not None:
            mask = mask if mask is not None else torch.ones_like(tokens[..., 0], dtype=torch.bool)
            only_first = torch.arange(mask.shape[1], device=mask.device) == 0
            tokens = torch.where(kept[:, None, None], tokens, self.null_token.to(tokens.dtype))
            mask = torch.where(kept[:, None], mask, only_first)
        if kept is not None and pooled is not None:
            pooled = torch.where(kept[:, None], pooled, self.null_pooled.to(pooled.dtype))
        return replace(condition, words=None, word_mask=None, kept=None, tokens=tokens, token_mask=mask, pooled=pooled)


class VectorEmbedding(nn.Module):
    """One vector a sample, made of the scalar and the pooled words.

    Args:
        width: channels of the vector.
        pooled_width: channels of the pooled words.
        features: sinusoids of the scalar.
    """

    def __init__(self, width: int, pooled_width: int, features: int = 128) -> None:
        super().__init__()
        self.features = features
        self.scalar = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))
        self.pooled = nn.Linear(pooled_width, width)

    def forward(self, scalar: Float[Tensor, "b"], condition: Condition) -> Float[Tensor, "b d"]:
        """The vector; without pooled words, that of the scalar alone."""
        vector = self.scalar(sinusoids(scalar, self.features))
        return vector if condition.pooled is None else vector + self.pooled(condition.pooled)
