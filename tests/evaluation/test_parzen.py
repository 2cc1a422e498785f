"""Parzen windows against Gaussians that can be written down."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from unstir.evaluation.parzen import choose_parzen_std, parzen_log_likelihood


def draws(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_one_window_is_one_gaussian() -> None:
    centre, data = draws(1, 5, 0), draws(700, 5, 1)
    nats = Normal(centre, torch.full_like(centre, 0.7)).log_prob(data).sum(1)
    found = parzen_log_likelihood(centre, data, 0.7)
    assert found.nats == pytest.approx(nats.mean().item(), rel=1e-12)
    assert found.standard_error == pytest.approx((nats.var() / 700).sqrt().item(), rel=1e-10)


def test_several_windows_are_a_mixture() -> None:
    """By loops, in probabilities; samples that occur twice count twice."""
    samples, data = torch.tensor([[0.0], [0.0], [3.0]]), torch.tensor([[0.5], [2.0]])

    def density(v: float) -> float:
        return sum(math.exp(-((v - s) ** 2) / 2 / 0.25) for s in (0, 0, 3)) / 3 / math.sqrt(2 * math.pi * 0.25)

    expected = (math.log(density(0.5)) + math.log(density(2.0))) / 2
    assert parzen_log_likelihood(samples, data, 0.5).nats == pytest.approx(expected, rel=1e-12)


def test_many_samples_of_a_gaussian_give_its_blur() -> None:
    """With many samples of N(0, 1) in the plane the windows' sum is N(0, 1 + std^2): E log of it under N(0, 1)."""
    std = 0.5
    found = parzen_log_likelihood(draws(20_000, 2, 0), draws(2_000, 2, 1), std)
    variance = 1 + std**2
    assert abs(found.nats + math.log(2 * math.pi * variance) + 1 / variance) < 4 * found.standard_error
    assert found.standard_error == pytest.approx(1 / variance / math.sqrt(2_000), rel=0.1), "chi-square, 2 of freedom"


def test_windows_far_away_stay_finite() -> None:
    """The density underflows; its logarithm must not."""
    found = parzen_log_likelihood(torch.zeros(3, 784), torch.ones(2, 784), 0.01)
    assert found.nats == pytest.approx(-784 / 2 / 0.01**2 - 784 / 2 * math.log(2 * math.pi * 0.01**2), rel=1e-12)
    assert found.standard_error == 0


def test_the_chosen_width_is_that_of_the_greatest_likelihood() -> None:
    """Around one sample the best width is the root of the mean squared distance of an element; the nearest wins."""
    validation = 0.3 * draws(500, 4, 0)
    best = validation.square().mean().sqrt().item()
    candidates = [best * factor for factor in (0.25, 0.9, 1.01, 1.2, 4)]
    assert choose_parzen_std(torch.zeros(1, 4), validation, candidates) == candidates[2]
    assert choose_parzen_std(torch.zeros(1, 4), validation, candidates[::-1]) == candidates[2]


def test_what_gives_no_density_is_refused() -> None:
    one, data = torch.zeros(1, 3), torch.zeros(4, 3)
    with pytest.raises(ValueError, match="must be positive, got 0"):
        parzen_log_likelihood(one, data, 0.0)
    with pytest.raises(ValueError, match="must be positive, got -1"):
        choose_parzen_std(one, data, [1.0, -1.0])
    with pytest.raises(ValueError, match="at least 2 data, got 1"):
        parzen_log_likelihood(one, data[:1], 1.0)
    with pytest.raises(ValueError, match="give no density"):
        parzen_log_likelihood(torch.zeros(0, 3), data, 1.0)
    with pytest.raises(ValueError, match="give no density"):
        parzen_log_likelihood(torch.zeros(2, 4), data, 1.0)
    with pytest.raises(ValueError, match="at least one candidate"):
        choose_parzen_std(one, data, [])
    with pytest.raises(ValueError, match="at least one datum"):
        choose_parzen_std(one, data[:0], [1.0])
