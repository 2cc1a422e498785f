"""Precision and recall of a set of pictures: how many are like real ones, how many real ones are like some of them.

Knows: manifolds made of balls around feature vectors; the score of a classifier's answers.
Does not know: what the features are of, who computed them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

_CHUNK = 512  # rows of a distance matrix at a time


@dataclass(frozen=True, kw_only=True)
class PrecisionRecall:
    """What two sets cover of each other.

    Args:
        precision: share of the fake vectors within the real manifold.
        recall: share of the real vectors within the fake manifold.
        precision_error: standard error of a share of so many independent vectors, the manifold being given.
        recall_error: likewise.
    """

    precision: float
    recall: float
    precision_error: float
    recall_error: float


def precision_recall(real: Float[Tensor, "n d"], fake: Float[Tensor, "m d"], k: int = 3) -> PrecisionRecall:
    """Improved precision and recall.

    A set's manifold is the union of balls around its vectors, each as large as the distance to the vector's k-th
    nearest neighbour in the set. Precision is the share of ``fake`` in the manifold of ``real``, recall the share of
    ``real`` in that of ``fake``; a vector on the surface of a ball is in it. Manifolds shrink as sets grow: compare
    only figures of equal counts.

    Raises:
        ValueError: if k is below 1, a set has not more than k vectors, the sets differ in their number of features, or
            a number is not finite.

    Source: Kynkäänniemi et al. 2019, arXiv:1904.06991, Eqs. 1-2 and Algorithm 1.
    """
    if real.shape[1] != fake.shape[1]:
        raise ValueError(f"both sets must have the same features, got {real.shape[1]} and {fake.shape[1]} of them")
    if k < 1 or min(len(real), len(fake)) <= k:
        raise ValueError(
            f"the {k}-th neighbours need k of at least 1 and more than k vectors in both sets, got {len(real)} and "
            f"{len(fake)}; give more vectors or a smaller k"
        )
    if not bool(torch.isfinite(real).all() and torch.isfinite(fake).all()):
        raise ValueError("features must be finite numbers, got some that are not; look at the pictures they are of")
    real, fake = real.double(), fake.double()
    precision = _covered(fake, real, _radii(real, k)).double().mean().item()
    recall = _covered(real, fake, _radii(fake, k)).double().mean().item()
    return PrecisionRecall(
        precision=precision,
        recall=recall,
        precision_error=_share_error(precision, len(fake)),
        recall_error=_share_error(recall, len(real)),
    )


def class_score(log_probs: Float[Tensor, "n k"]) -> float:
    """The exponential of the mean KL(p(class | picture) || p(class)): the inception score, if that is whose answers.

    From 1, where the classifier says the same of every picture, to the number of classes, where it is sure of each and
    every class is as frequent.

    Raises:
        ValueError: if there is no row.

    Source: Salimans et al. 2016, arXiv:1606.03498, Sec. 4.
    """
    if not len(log_probs):
        raise ValueError("a class score needs at least one picture, got none")
    log_probs = log_probs.double()
    marginal = log_probs.logsumexp(0) - math.log(len(log_probs))
    apart = torch.where(log_probs > -torch.inf, log_probs.exp() * (log_probs - marginal), 0.0)
    return apart.sum(1).mean().exp().item()


def _radii(vectors: Float64[Tensor, "n d"], k: int) -> Float64[Tensor, "n"]:
    """The distance of each vector to its k-th nearest neighbour among the others."""
    found: list[Tensor] = []
    for start in range(0, len(vectors), _CHUNK):
        distance = _distances(vectors[start : start + _CHUNK], vectors)
        row = torch.arange(len(distance))
        distance[row, start + row] = torch.inf  # itself
        found.append(distance.kthvalue(k, 1).values)
    return torch.cat(found)


def _covered(
    points: Float64[Tensor, "n d"], centres: Float64[Tensor, "m d"], radii: Float64[Tensor, "m"]
) -> Bool[Tensor, "n"]:
    """Whether each point lies in a ball."""
    starts = range(0, len(points), _CHUNK)
    return torch.cat([(_distances(points[start : start + _CHUNK], centres) <= radii).any(1) for start in starts])


def _distances(a: Float64[Tensor, "n d"], b: Float64[Tensor, "m d"]) -> Float64[Tensor, "n m"]:
    # Not by a product of matrices: of equal vectors the distance must be 0, and of two it must not depend on the chunk.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _share_error(share: float, count: int) -> float:
    return math.sqrt(share * (1 - share) / count)
