"""Fréchet distance: how far apart two sets of feature vectors are when each is taken for a Gaussian.

Knows: the closed form, and how to evaluate it without losing digits.
Does not know: what the features are of.
"""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float64
from torch import Tensor

from unstir.evaluation.features import FeatureStatistics


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """The squared 2-Wasserstein distance of two Gaussians: FID, when the features are Inception's.

    |mean_a - mean_b|^2 + tr cov_a + tr cov_b - 2 tr (cov_a^1/2 cov_b cov_a^1/2)^1/2

    The last trace is the sum of the singular values of cov_a^1/2 cov_b^1/2, which needs no root of rounded eigenvalues
    near zero. Estimated from sets it is too large, by about (the number of features)/(the size of the set) of its
    scale: compare only figures of equal counts.

    Raises:
        ValueError: if the two differ in their number of features.

    Source: Dowson & Landau 1982, Journal of Multivariate Analysis 12; Heusel et al. 2017, arXiv:1706.08500, Eq. 6;
        Chong & Forsyth 2020, arXiv:1911.07023 (the bias).
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"both sets must have the same features, got {len(a.mean)} and {len(b.mean)} of them")
    shared = cast(Tensor, torch.linalg.svdvals(root(a.covariance) @ root(b.covariance))).sum()
    traces = a.covariance.trace() + b.covariance.trace()
    return max(((a.mean - b.mean).square().sum() + traces - 2 * shared).item(), 0.0)


def root(covariance: Float64[Tensor, "d d"]) -> Float64[Tensor, "d d"]:
    """The symmetric root of a symmetric matrix by its eigenvalues; those that rounding made negative count as 0."""
    values, vectors = cast("tuple[Tensor, Tensor]", torch.linalg.eigh(covariance))
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T
