"""Embeddings: from one number a sample and a Condition to the vectors and tokens that networks use.

Knows: sinusoids, positions, how a condition's words become tokens and what stands for words that are not told.
Does not know: what the number means, or what a network does with the vectors.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
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


def grid_positions(height: int, width: int, channels: int, step: float = 1.0) -> Float[Tensor, "n d"]:
    """Fixed positions of the cells of a grid, row by row: half of the channels tell the row, half the column.

    Args:
        height: number of rows.
        width: number of columns.
        channels: of a position.
        step: from one row or column to the next.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929, Appendix D.4, with the sinusoids of the transformer.
    """
    rows = sinusoids(step * torch.arange(height, dtype=torch.float32), channels // 2)
    columns = sinusoids(step * torch.arange(width, dtype=torch.float32), channels // 2)
    both = torch.cat([rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)], -1)
    return both.flatten(0, 1)


def scalar_layers(features: int, width: int) -> nn.Sequential:
    """Two layers from the sinusoids of a number to a vector.

    Source: Ho et al. 2020, arXiv:2006.11239, Appendix B and code.
    """
    return nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))


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
        condition = without_dropped_labels(condition)
        tokens, mask, pooled = condition.tokens, condition.token_mask, condition.pooled
        if condition.words is not None:
            words, mask = condition.words, condition.word_mask
            mask = mask if mask is not None else torch.ones_like(words, dtype=torch.bool)
            tokens, pooled = self._told(words, mask)
            if condition.word_weights is not None:
                tokens, pooled = self._weighed(words, mask, condition.word_weights, tokens, pooled)
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
        words = {"words": None, "word_mask": None, "word_weights": None}
        return replace(condition, **words, kept=None, tokens=tokens, token_mask=mask, pooled=pooled)

    def _told(
        self, words: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"]
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b d"]]:
        """What the text transformer makes of words; more than it reads at once are read in parts of its length.

        No part knows of the others, and the pooled vector is the mean over the tokens of all.
        """
        longest = self.text.position.shape[0]
        if words.shape[1] <= longest:
            return self.text(words, mask)
        if words.shape[1] % longest:
            raise ValueError(f"long prompts are padded to a multiple of {longest} tokens, got {words.shape[1]}")
        parts = mask.reshape(-1, longest)
        readable = parts | ~parts.any(1, keepdim=True)  # attention needs something to look at, even in an empty part
        tokens, _ = self.text(words.reshape(-1, longest), readable)
        tokens = tokens.unflatten(0, (len(words), -1)).flatten(1, 2)
        weight = mask.to(tokens.dtype)[..., None]
        return tokens, (tokens * weight).sum(1) / weight.sum(1)

    def _weighed(
        self,
        words: Int[Tensor, "b n"],
        mask: Bool[Tensor, "b n"],
        weights: Float[Tensor, "b n"],
        tokens: Float[Tensor, "b n d"],
        pooled: Float[Tensor, "b d"],
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b d"]]:
        """The reading of words that do not all count the same.

        With R(S) the reading of the words S alone, and all of them where S is not said,
        weighed = R + integral over w from -inf to 1 of (R(weights > w) - R) + integral over w from 1 of
        (R - R(weights < w)), where a word that is left out has the learned null for its token. So a word of weight 0 is
        not there, one of weight 1 is as ever, between them the reading is a mean, and beyond them it goes on in the
        same direction; and the reading is continuous in the weights.
        """
        tokens, pooled = tokens.clone(), pooled.clone()
        for row, weight in enumerate(weights):  # one by one: no row may depend on its neighbours
            values = cast(Tensor, weight[mask[row]].unique())
            if bool((values == 1).all()):
                continue
            below, above, one = values[values < 1], values[values > 1], values.new_ones(1)
            absent = torch.cat([weight <= below[:, None], weight >= above[:, None]])
            share = torch.cat([torch.cat([below, one]).diff(), -torch.cat([one, above]).diff()]).to(tokens.dtype)
            fewer, fewer_pooled = self._without(words[row].expand(len(absent), -1), mask[row] & ~absent)
            tokens[row] += (share[:, None, None] * (fewer - tokens[row])).sum(0)
            pooled[row] += (share[:, None] * (fewer_pooled - pooled[row])).sum(0)
        return tokens, pooled

    def _without(
        self, words: Int[Tensor, "k n"], mask: Bool[Tensor, "k n"]
    ) -> tuple[Float[Tensor, "k n d"], Float[Tensor, "k d"]]:
        """The reading of the words that are left, with the learned null in the place of the others."""
        some = mask.any(1, keepdim=True)
        tokens, pooled = self._told(words, mask | ~some)
        tokens = torch.where(mask[..., None], tokens, self.null_token.to(tokens.dtype))
        return tokens, torch.where(some, pooled, self.null_pooled.to(pooled.dtype))


class VectorEmbedding(nn.Module):
    """One vector a sample, made of the scalar, the pooled words and the class.

    Args:
        width: channels of the vector.
        pooled_width: channels of the pooled words; None where there are no words.
        features: sinusoids of the scalar.
        classes: number of classes; None where there are none.
        has_null_class: whether no class has a vector of its own, as the classes have; else it adds nothing.
    """

    def __init__(
        self,
        width: int,
        pooled_width: int | None,
        features: int = 128,
        *,
        classes: int | None = None,
        has_null_class: bool = False,
    ) -> None:
        super().__init__()
        self.features, self.classes, self.has_null_class = features, classes, has_null_class
        self.scalar = scalar_layers(features, width)
        self.pooled = None if pooled_width is None else nn.Linear(pooled_width, width)
        self.labels = None if classes is None else nn.Embedding(classes + has_null_class, width)
        if self.labels is not None:
            nn.init.normal_(self.labels.weight, std=0.02)

    def forward(self, scalar: Float[Tensor, "b"], condition: Condition) -> Float[Tensor, "b d"]:
        """The vector; without pooled words and labels, that of the scalar alone."""
        features = sinusoids(scalar, self.features)
        vector = self.scalar(features.to(cast(Tensor, self.scalar[0].weight).dtype))
        if self.pooled is not None and condition.pooled is not None:
            vector = vector + self.pooled(condition.pooled)
        if self.labels is not None and condition.labels is not None:
            vector = vector + self._of_class(self.labels, condition.labels)
        return vector

    def _of_class(self, table: nn.Embedding, labels: Int[Tensor, "b"]) -> Float[Tensor, "b d"]:
        if self.has_null_class:
            return table(torch.where(labels < 0, table.num_embeddings - 1, labels))
        return torch.where((labels < 0)[:, None], 0, table(labels.clamp(min=0)))


def without_dropped_labels(condition: Condition) -> Condition:
    """The condition with no class where ``kept`` is False; what it says of words and ``kept`` is left as it is."""
    if condition.labels is None or condition.kept is None:
        return condition
    return replace(condition, labels=torch.where(condition.kept, condition.labels, -1))


def require_classes(classes: int | None) -> None:
    """See that a network is told of one class at least, or of none at all.

    Raises:
        ValueError: where it is otherwise.
    """
    if classes is not None and classes < 1:
        raise ValueError(f"classes must be at least 1, or null for a network that is told none, got {classes}")


def require_labels(condition: Condition, classes: int | None) -> None:
    """See that a condition has labels for a network that is told classes, and none for one that is not.

    Args:
        condition: of any rows.
        classes: number of classes of the network; None where it is told none.

    Raises:
        ValueError: where it is otherwise, or a label is no class of the network.
    """
    labels = condition.labels
    if classes is None:
        if labels is not None:
            raise ValueError("this network is told no classes; give a condition without labels")
        return
    if labels is None:
        raise ValueError("this network needs class labels; give -1 where there is none")
    if labels.is_meta or torch.compiler.is_compiling():
        return  # there is nothing to look at
    if len(labels) and not bool(((labels >= -1) & (labels < classes)).all()):
        wrong = labels[(labels < -1) | (labels >= classes)][0]
        raise ValueError(f"labels are from 0 to {classes - 1}, or -1 for no class, got {int(wrong)}")


def require_words(condition: Condition, *, is_told_words: bool) -> None:
    """See that a condition, once read, has words for a network that is told them, and none for one that is not.

    Raises:
        ValueError: where it is otherwise.
    """
    if is_told_words and condition.tokens is None:
        raise ValueError("this network needs words; give the null condition where there are none")
    if not is_told_words and (condition.tokens is not None or condition.words is not None):
        raise ValueError("this network is told no words; give a condition without any")
