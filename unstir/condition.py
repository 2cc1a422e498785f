"""Condition: everything a model may be told, as one typed value.

Knows: which rows of which tensors belong together, and which rows are to be answered without words.
Does not know: where the words came from or what a network makes of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unstir.typing import Noise


@dataclass(frozen=True, kw_only=True, eq=False)
class Condition:
    """What a model is told about each sample of a batch.

    Args:
        words: token ids, padded to the model's ``max_tokens`` (static shapes).
        word_mask: True where ``words`` holds a token, False where it is padding.
        word_weights: how much each of ``words`` counts, 0 for not at all; None is 1 for all.
        tokens: what a text encoder made of the words.
        token_mask: True where ``tokens`` may be attended to.
        pooled: one vector a sample, made of the words.
        labels: the class of each sample; -1 for none.
        kept: False where words, tokens, pooled and labels are to be replaced by the learned null.
        seeds: what decides which numbers of a sample dropout leaves out, in training.

    Raises:
        ValueError: if the tensors differ in their number of rows, or there is none.
    """

    words: Int[Tensor, "b n"] | None = None
    word_mask: Bool[Tensor, "b n"] | None = None
    word_weights: Float[Tensor, "b n"] | None = None
    tokens: Float[Tensor, "b n d"] | None = None
    token_mask: Bool[Tensor, "b n"] | None = None
    pooled: Float[Tensor, "b e"] | None = None
    labels: Int[Tensor, "b"] | None = None
    kept: Bool[Tensor, "b"] | None = None
    seeds: Int[Tensor, "b"] | None = None

    def __post_init__(self) -> None:
        """Hold the rows together."""
        sizes = {tensor.shape[0] for tensor in self._tensors().values()}
        if len(sizes) != 1:
            raise ValueError(f"a condition needs tensors of one batch size, got {sorted(sizes) or 'none at all'}")

    def _tensors(self) -> dict[str, Tensor]:
        present = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in present.items() if tensor is not None}

    def __len__(self) -> int:
        """Number of samples."""
        return next(iter(self._tensors().values())).shape[0]

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The condition with ``function`` applied to every tensor (to move it to a device, for instance)."""
        return replace(self, **{name: function(tensor) for name, tensor in self._tensors().items()})

    def null(self) -> Self:
        """The same request without its words and labels: every row is answered with the learned null."""
        first = next(iter(self._tensors().values()))
        return replace(self, kept=torch.zeros(len(self), dtype=torch.bool, device=first.device))

    def drop(self, probability: float, noise: Noise) -> Self:
        """Forget the words of each sample with the given probability, as training for guidance does.

        Raises:
            ValueError: if ``probability`` is outside [0, 1].
        """
        if not 0 <= probability <= 1:
            raise ValueError(f"probability of dropping a condition must be in [0, 1], got {probability}")
        keep = noise.uniform(torch.zeros(len(self), dtype=torch.float64)) >= probability
        first = next(iter(self._tensors().values()))
        keep = keep.to(first.device)
        return replace(self, kept=keep if self.kept is None else keep & self.kept)

    def cat(self, other: Self) -> Self:
        """Both conditions, this one's rows first; what only one of them says of ``kept`` is True for the other.

        Likewise what only one of them says of ``word_weights`` is 1 for the other, and of ``labels`` -1.

        Raises:
            ValueError: if one of them holds a kind of tensor that the other lacks.
        """
        mine, theirs = self._tensors(), other._tensors()
        for tensors, owner in ((mine, self), (theirs, other)):
            if "kept" not in tensors and ("kept" in mine or "kept" in theirs):
                first = next(iter(tensors.values()))
                tensors["kept"] = torch.ones(len(owner), dtype=torch.bool, device=first.device)
            if "words" in tensors and "word_weights" not in tensors and ("word_weights" in mine | theirs):
                tensors["word_weights"] = torch.ones_like(tensors["words"], dtype=torch.float32)
            if "labels" not in tensors and ("labels" in mine or "labels" in theirs):
                first = next(iter(tensors.values()))
                tensors["labels"] = torch.full((len(owner),), -1, device=first.device)
        if mine.keys() != theirs.keys():
            raise ValueError(f"cannot join a condition of {sorted(mine)} with one of {sorted(theirs)}")
        return replace(self, **{name: torch.cat([mine[name], theirs[name]]) for name in mine})

    def rows(self, index: slice) -> Self:
        """The chosen rows."""
        return self.map(lambda tensor: tensor[index])
