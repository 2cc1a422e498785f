"""The Fréchet distance against the closed form of two Gaussians (C45, C46)."""

from __future__ import annotations

import math

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unstir.evaluation.features import FeatureStatistics, statistics_of
from unstir.evaluation.frechet import frechet_distance, root


def draws(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(mean: Tensor, covariance: Tensor) -> FeatureStatistics:
    return FeatureStatistics(mean=mean.double(), covariance=covariance.double(), count=100)


def covariance_of(width: int, seed: int, rank: int | None = None) -> Tensor:
    matrix = draws(width, rank or width, seed)
    return matrix @ matrix.T


@pytest.mark.parametrize("width", [1, 5, 64])
def test_a_set_has_no_distance_to_itself(width: int) -> None:
    """C45, also with features that never vary, or that are copies of each other."""
    rows = torch.cat([draws(40, width, 0), torch.zeros(40, 3).double(), draws(40, width, 0)], 1)
    statistics = statistics_of(100 * rows)
    assert abs(frechet_distance(statistics, statistics)) < 1e-6


@given(st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_commuting_covariances_have_the_closed_form(seed: int) -> None:
    """|m_a - m_b|^2 + sum (sqrt(l_a) - sqrt(l_b))^2 over the eigenvalues in a common basis."""
    basis = torch.linalg.qr(draws(4, 4, seed)).Q
    one, two = draws(2, 4, seed + 1).square()
    means = draws(2, 4, seed + 2)
    a = gaussian(means[0], basis @ torch.diag(one) @ basis.T)
    b = gaussian(means[1], basis @ torch.diag(two) @ basis.T)
    expected = (means[0] - means[1]).square().sum() + (one.sqrt() - two.sqrt()).square().sum()
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-9, abs=1e-9)


def test_any_covariances_have_the_trace_of_the_root_of_their_product() -> None:
    """tr (A B)^1/2 = the sum of the roots of the eigenvalues of A B, which numpy finds without symmetry."""
    a, b = gaussian(draws(1, 6, 0)[0], covariance_of(6, 1)), gaussian(draws(1, 6, 2)[0], covariance_of(6, 3))
    eigenvalues = numpy.linalg.eigvals((a.covariance @ b.covariance).numpy())
    shared = numpy.sqrt(eigenvalues.real.clip(0)).sum()
    expected = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * shared
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_drawn_sets_come_near_their_laws() -> None:
    """C46: N(0, I) and N(1, 4 I) in two dimensions are 2 + 2 (2 - 1)^2 = 4 apart."""
    count = 200_000
    x, y = draws(count, 2, 0), 1 + 2 * draws(count, 2, 1)
    spread = 2 * 2 * math.sqrt((1 + 4) / count) * math.sqrt(2)  # of the mean's part; the others are of this order
    assert frechet_distance(statistics_of(x), statistics_of(y)) == pytest.approx(4, abs=5 * spread)


def test_neither_order_nor_batches_matter() -> None:
    x, y = draws(300, 8, 0), draws(300, 8, 1) + 0.1
    shuffled = x[torch.randperm(300, generator=torch.Generator().manual_seed(2))]
    other = statistics_of(y)
    expected = frechet_distance(statistics_of(x), other)
    assert frechet_distance(statistics_of(shuffled), other) == pytest.approx(expected, abs=1e-10)
    assert frechet_distance(statistics_of(torch.cat(x.split(7))), other) == expected


def test_it_is_never_negative() -> None:
    degenerate = gaussian(torch.zeros(8), 1e6 * covariance_of(8, 0, rank=1))
    nearly = gaussian(torch.zeros(8), degenerate.covariance * (1 + 1e-15))
    assert frechet_distance(degenerate, nearly) >= 0


def test_a_root_squares_to_its_matrix() -> None:
    covariance = covariance_of(6, 0, rank=3)
    half = root(covariance)
    torch.testing.assert_close(half @ half, covariance)
    torch.testing.assert_close(half, half.T)


def test_sets_of_other_features_are_refused() -> None:
    with pytest.raises(ValueError, match="same features, got 2 and 3"):
        frechet_distance(statistics_of(draws(5, 2, 0)), statistics_of(draws(5, 3, 0)))
