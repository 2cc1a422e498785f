"""The Gaussian against torch.distributions, quadrature and its own draws."""

from __future__ import annotations

import math

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unstir.diffusion.distribution import Normal
from unstir.diffusion.noise import KeyedNoise

MEAN, STD = st.floats(-3, 3), st.floats(0.05, 3)


def normal(mean: float, std: float) -> Normal:
    return Normal(mean=torch.full((1, 1), mean, dtype=torch.float64), std=torch.tensor(std, dtype=torch.float64))


def expectation(law: Normal, values: object) -> float:
    """E over ``law`` of a function, by Gauss-Hermite quadrature: exact for polynomials of degree below 80."""
    nodes, weights = numpy.polynomial.hermite_e.hermegauss(40)
    x = law.mean + law.std * torch.from_numpy(nodes).view(-1, 1)
    # type: ignore[operator]
    return float((torch.from_numpy(weights).view(-1, 1) * values(x)).sum() / math.sqrt(2 * math.pi))


@given(MEAN, STD, st.floats(-5, 5))
def test_log_prob_is_the_density(mean: float, std: float, x: float) -> None:
    """Equals torch.distributions.Normal."""
    theirs = torch.distributions.Normal(torch.tensor(mean, dtype=torch.float64), std)
    got = normal(mean, std).log_prob(torch.full((1, 1), x, dtype=torch.float64))
    assert got.item() == pytest.approx(
        theirs.log_prob(torch.tensor(x, dtype=torch.float64)).item(), rel=1e-10, abs=1e-10
    )


def test_density_integrates_to_one() -> None:
    """The integral of exp(log_prob) is 1."""
    x = torch.linspace(-12, 12, 4801, dtype=torch.float64).view(-1, 1)
    density = Normal(mean=torch.full_like(x, 0.3), std=torch.tensor(0.7, dtype=torch.float64)).log_prob(x).exp()
    assert torch.trapezoid(density.flatten(), x.flatten()).item() == pytest.approx(1, abs=1e-12)


@given(MEAN, STD, MEAN, STD)
def test_kl_is_the_expected_log_ratio(mean_p: float, std_p: float, mean_q: float, std_q: float) -> None:
    """KL(p || q) = E over p of log p - log q, in nats; equals torch.distributions, and is never negative."""
    p, q = normal(mean_p, std_p), normal(mean_q, std_q)
    got = p.kl(q).item()
    by_quadrature = expectation(p, lambda x: normal(mean_p, std_p).log_prob(x) - normal(mean_q, std_q).log_prob(x))
    theirs = torch.distributions.kl_divergence(
        torch.distributions.Normal(p.mean, p.std), torch.distributions.Normal(q.mean, q.std)
    )
    assert got == pytest.approx(by_quadrature, rel=1e-8, abs=1e-9)
    assert got == pytest.approx(theirs.item(), rel=1e-9, abs=1e-12)
    assert got >= -1e-12


@given(MEAN, STD)
def test_kl_to_itself_is_zero(mean: float, std: float) -> None:
    """KL(p || p) = 0."""
    assert normal(mean, std).kl(normal(mean, std)).item() == 0


def test_draws_have_its_mean_and_variance() -> None:
    """10,000 draws, within 4 standard errors."""
    law = Normal(mean=torch.full((1, 10_000), 0.5, dtype=torch.float64), std=torch.tensor(2.0, dtype=torch.float64))
    x = law.sample(KeyedNoise.from_seeds([0]))
    assert x.mean().item() == pytest.approx(0.5, abs=4 * 2 / 100)
    assert x.var().item() == pytest.approx(4, abs=4 * 4 * math.sqrt(2 / 10_000))


def test_no_spread_is_the_mean() -> None:
    """A draw with std 0 is the mean, bit for bit."""
    mean = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Normal(mean=mean, std=torch.zeros(())).sample(KeyedNoise.from_seeds([0, 1, 2])), mean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_draws_keep_the_type_of_the_mean(dtype: torch.dtype) -> None:
    """A float64 coefficient of shape () does not change the type of x."""
    law = Normal(mean=torch.zeros(2, 3, dtype=dtype), std=torch.tensor(1.5, dtype=torch.float64))
    assert law.sample(KeyedNoise.from_seeds([0, 1])).dtype == dtype
