"""Features: pictures as vectors in which alike ones lie close, and the statistics of a set of them.

Knows: what a feature extractor is, ours (a classifier's pooled features), mean and covariance of a set, their spread.
Does not know: how two sets are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int, UInt8
from torch import Tensor

from unstir.classifier import Classifier
from unstir.data.transforms import to_unit
from unstir.typing import Noise, Picture


class FeatureExtractor(Protocol):
    """Any function from pictures in [-1, 1] to one vector each; row i depends on picture i alone."""

    def __call__(self, pictures: Picture) -> Float[Tensor, "b d"]:
        """The features of each picture."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassifierFeatures:
    """The pooled features of a classifier's encoder, asked at t = 0.

    Pictures of another size are resized to the one that the classifier was trained on, bilinearly and with
    antialiasing; those of its own size are read as they are. Gradients are not recorded.

    Args:
        classifier: whose encoder; its networks have no layers that differ between training and use.

    Source: Heusel et al. 2017, arXiv:1706.08500, Sec. 3 (the last pooled layer of a classifier as the space in which
        sets of pictures are compared).
    """

    classifier: Classifier

    def __call__(self, pictures: Picture) -> Float[Tensor, "b d"]:
        """The features of each picture."""
        with torch.no_grad():
            return self.classifier.features(resized(pictures, self.classifier.config.size))


def resized(pictures: Picture, size: int) -> Picture:
    """Square pictures of ``size``, bilinear with antialiasing, cut to [-1, 1]; unchanged where they have it already."""
    if pictures.shape[2:] == (size, size):
        return pictures
    return F.interpolate(pictures, (size, size), mode="bilinear", antialias=True).clamp(-1, 1)


def extract(
    extractor: FeatureExtractor, pictures: UInt8[Tensor, "n c h w"], *, batch: int = 128
) -> Float[Tensor, "n d"]:
    """The features of many pictures, in their order.

    Raises:
        ValueError: if there are none.
    """
    if not len(pictures):
        raise ValueError("there are no pictures to take features of; give at least one")
    starts = range(0, len(pictures), batch)
    return torch.cat([extractor(to_unit(pictures[start : start + batch])).cpu() for start in starts])


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureStatistics:
    """The Gaussian that a set of features is taken for.

    Args:
        mean: of every feature.
        covariance: of every two, unbiased.
        count: vectors in the set.
    """

    mean: Float64[Tensor, "d"]
    covariance: Float64[Tensor, "d d"]
    count: int


def statistics_of(features: Float[Tensor, "n d"]) -> FeatureStatistics:
    """Mean and unbiased covariance, in float64.

    Raises:
        ValueError: if there are fewer than two vectors, or a number is not finite.
    """
    if len(features) < 2:
        raise ValueError(f"a covariance needs at least 2 vectors, got {len(features)}")
    if not bool(torch.isfinite(features).all()):
        raise ValueError("features must be finite numbers, got some that are not; look at the pictures they are of")
    rows = features.double()
    mean = rows.mean(0)
    centred = rows - mean
    return FeatureStatistics(mean=mean, covariance=centred.T @ centred / (len(rows) - 1), count=len(rows))


def bootstrap_error(measure: Callable[[Int[Tensor, "n"]], float], count: int, *, draws: int, noise: Noise) -> float:
    """The bootstrap's standard error: how much a measure moves when its set is drawn again from itself.

    Args:
        measure: of the set with these row numbers, some of them several times.
        count: rows of the set.
        draws: sets drawn.
        noise: with ``draws`` keys.

    Raises:
        ValueError: if there are fewer than two draws or no rows.

    Source: Efron 1979, Annals of Statistics 7.
    """
    if draws < 2 or count < 1:
        raise ValueError(f"a bootstrap needs 2 draws of 1 row at least, got {draws} of {count}")
    chosen = (noise.uniform(torch.zeros(draws, count, dtype=torch.float64)) * count).long()
    return torch.tensor([measure(rows) for rows in chosen], dtype=torch.float64).std().item()
