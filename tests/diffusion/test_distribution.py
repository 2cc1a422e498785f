"""The Gaussian and the coin against torch.distributions, quadrature, 50 digits, enumeration and their own draws."""

from __future__ import annotations

import math

import mpmath
import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unstir.diffusion.distribution import Bernoulli, Normal
from unstir.diffusion.noise import KeyedNoise
from unstir.verify.oracles import GivenNoise

mpmath.mp.dps = 50
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


# Intervals.


def tensor(value: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.full((1, 1), value, dtype=dtype)


def log_interval(mean: float, std: float, low: float, high: float) -> float:
    return normal(mean, std).log_interval(tensor(low), tensor(high)).item()


def exact_log_interval(mean: float, std: float, low: float, high: float) -> float:
    """log(Phi(b) - Phi(a)) with 50 digits, by the tail that does not cancel."""
    a, b = ((mpmath.mpf(bound) - mpmath.mpf(mean)) / mpmath.mpf(std) for bound in (low, high))
    if a > 0:
        a, b = -b, -a
    return float(mpmath.log((mpmath.erfc(-b / mpmath.sqrt(2)) - mpmath.erfc(-a / mpmath.sqrt(2))) / 2))


@given(st.floats(-60, 60), st.floats(0.003, 3), st.sampled_from([2 / 255, 1.0, 2.0]))
def test_log_interval_to_ten_digits(mean: float, std: float, width: float) -> None:
    """log P(low < x < high) within 1e-10 max(1, |value|) of 50 digits, far out in both tails."""
    expected = exact_log_interval(mean, std, 0.0, width)
    assert log_interval(mean, std, 0.0, width) == pytest.approx(expected, rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("mean", [-1e3, -50.0, -9.0, -0.3, 0.0, 0.2, 5.0, 40.0, 1e3])
@pytest.mark.parametrize("std", [1e-3, 0.05, 1.0, 30.0])
def test_log_interval_reaches_out_to_infinity(mean: float, std: float) -> None:
    """With one infinite bound it is a tail, as exact; with two it is 0."""
    for low, high in ((-math.inf, 0.5), (0.5, math.inf)):
        expected = exact_log_interval(mean, std, low, high)
        assert log_interval(mean, std, low, high) == pytest.approx(expected, rel=1e-10, abs=1e-10)
    assert log_interval(mean, std, -math.inf, math.inf) == 0


@given(st.floats(-40, 40), st.floats(0.05, 3))
def test_log_interval_is_even(mean: float, std: float) -> None:
    """The mirrored interval of the mirrored law is as likely, to the last bits."""
    assert log_interval(mean, std, 0.3, 0.5) == pytest.approx(log_interval(-mean, std, -0.5, -0.3), rel=1e-13)


@given(MEAN, STD, st.lists(st.floats(-4, 4), min_size=1, max_size=30, unique=True))
def test_intervals_of_a_partition_sum_to_one(mean: float, std: float, cuts: list[float]) -> None:
    """Whatever the line is cut into."""
    bounds = [-math.inf, *sorted(cuts), math.inf]
    low, high = (torch.tensor([part], dtype=torch.float64) for part in (bounds[:-1], bounds[1:]))
    law = Normal(mean=torch.full_like(low, mean), std=torch.tensor(std, dtype=torch.float64))
    assert law.log_interval(low, high).exp().sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("low", "high"), [(-math.inf, -0.9), (0.9, math.inf), (-0.1, 0.1), (0.7, 0.9), (-math.inf, math.inf)]
)
@pytest.mark.parametrize("mean", [-3.0, 0.0, 0.05, 1.4])
def test_gradients_of_an_interval(dtype: torch.dtype, low: float, high: float, mean: float) -> None:
    """By mean and std they are finite, bounds at infinity included, and equal central differences of 50 digits."""
    std = 0.2
    parameters = [tensor(mean, dtype).requires_grad_(), tensor(std, dtype).requires_grad_()]
    law = Normal(mean=parameters[0], std=parameters[1])
    slopes = torch.autograd.grad(law.log_interval(tensor(low, dtype), tensor(high, dtype)).sum(), parameters)
    width = 1e-6
    for slope, (by_mean, by_std) in zip(slopes, ((width, 0), (0, width)), strict=True):
        ends = [exact_log_interval(mean + sign * by_mean, std + sign * by_std, low, high) for sign in (1, -1)]
        expected = (ends[0] - ends[1]) / (2 * width)
        digits = 1e-3 if dtype == torch.float32 else 1e-6
        assert slope.item() == pytest.approx(expected, rel=digits, abs=digits)


@given(MEAN, STD, MEAN, STD)
def test_kl_of_float32_is_that_of_float64(mean_p: float, std_p: float, mean_q: float, std_q: float) -> None:
    """Up to rounding, with a standard deviation of either kind: one for all in float64, or one an element."""
    exact = normal(mean_p, std_p).kl(normal(mean_q, std_q)).item()
    for dtype in (torch.float32, torch.float64):
        p = Normal(mean=tensor(mean_p, dtype), std=torch.tensor(std_p, dtype=torch.float64))
        q = Normal(mean=tensor(mean_q, dtype), std=tensor(std_q, dtype))
        got = p.kl(q)
        assert got.dtype == dtype
        assert got.item() == pytest.approx(exact, rel=1e-4 if dtype == torch.float32 else 1e-9, abs=1e-5)


# Coins.

PROBABILITY = st.floats(0, 1)


def coin(probability: float) -> Bernoulli:
    return Bernoulli(probability=tensor(probability))


def log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf


@given(PROBABILITY)
@pytest.mark.parametrize("x", [0.0, 1.0])
def test_log_prob_of_a_coin(x: float, probability: float) -> None:
    """log p for 1, log (1 - p) for 0, -inf for what cannot be; the mean is p, and probabilities sum to 1."""
    got = coin(probability).log_prob(tensor(x)).item()
    assert got == pytest.approx(log(probability if x else 1 - probability), rel=1e-14)
    total = sum(coin(probability).log_prob(tensor(value)).exp().item() for value in (0.0, 1.0))
    assert total == pytest.approx(1, abs=1e-15)
    assert coin(probability).mean.item() == probability


@given(st.floats(0, 1), st.floats(1e-6, 1 - 1e-6))
def test_kl_of_coins_by_enumeration(p: float, q: float) -> None:
    """Sum over both states of p log(p/q), where 0 log 0 = 0; equals torch.distributions, and is never negative."""
    expected = sum(a * (log(a) - log(b)) for a, b in ((p, q), (1 - p, 1 - q)) if a > 0)
    got = coin(p).kl(coin(q)).item()
    theirs = torch.distributions.kl_divergence(
        *(torch.distributions.Bernoulli(torch.tensor(value, dtype=torch.float64)) for value in (p, q))
    )
    assert got == pytest.approx(expected, rel=1e-11, abs=1e-14)  # 1 - q = 0.999999 knows q to 1e-10
    assert got == pytest.approx(theirs.item(), rel=1e-10, abs=1e-12)
    assert got >= -1e-15


@pytest.mark.parametrize(
    ("p", "q", "expected"),
    [
        (0, 0, 0),
        (1, 1, 0),
        (0, 1, math.inf),
        (1, 0, math.inf),
        (0.5, 0, math.inf),
        (0.5, 1, math.inf),
        (0, 0.5, math.log(2)),
        (1, 0.5, math.log(2)),
    ],
)
def test_kl_of_certain_coins(p: float, q: float, expected: float) -> None:
    """0 where both are certain of the same, infinite where ``other`` rules out what may be."""
    assert coin(p).kl(coin(q)).item() == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("probability", [0.0, 1.0, 0.3, 0.999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_coin_falls_as_often_as_it_says(probability: float, dtype: torch.dtype) -> None:
    """20,000 draws are 0 or 1, of the type of the probability, within 4 standard errors; certain ones never fail."""
    law = Bernoulli(probability=torch.full((2, 10_000), probability, dtype=dtype))
    drawn = law.sample(KeyedNoise.from_seeds([0, 1]))
    assert drawn.dtype == dtype
    assert bool(((drawn == 0) | (drawn == 1)).all())
    p = law.probability[0, 0].double().item()
    share = drawn.double().mean().item()
    assert share == pytest.approx(
        p, abs=4 * math.sqrt(p * (1 - p) / 20_000) + (2**-9 if dtype == torch.bfloat16 else 0)
    )
    assert share in (0, 1) or 0 < p < 1
    assert torch.equal(drawn[1:], Bernoulli(probability=law.probability[1:]).sample(KeyedNoise.from_seeds([1])))


@pytest.mark.parametrize("uniform", [0.0, 0.25, 1 - 2**-53])
def test_a_coin_at_the_edges_of_the_uniform(uniform: float) -> None:
    """1 where u < p: u = 0 never makes a 1 of p = 0, and the largest u makes one of p = 1."""
    noise = GivenNoise(value=torch.tensor(uniform, dtype=torch.float64))
    assert coin(0.0).sample(noise).item() == 0
    assert coin(1.0).sample(noise).item() == 1
    assert coin(0.25).sample(noise).item() == (uniform < 0.25)


def test_the_chance_of_a_flip_is_not_lost_in_float32() -> None:
    """With the complement given, KL between 1 - 1e-9 and 1 - 2e-9 is that of float64, where 1 - p would be 0."""
    small, large = torch.tensor([1e-9]), torch.tensor([2e-9])
    p, q = (Bernoulli(probability=1 - chance, complement=chance) for chance in (small, large))
    exact = Bernoulli(probability=small.double()).kl(Bernoulli(probability=large.double()))
    torch.testing.assert_close(p.kl(q).double(), exact, rtol=1e-5, atol=0)
    assert p.log_prob(torch.zeros(1)).item() == pytest.approx(math.log(1e-9), rel=1e-6)


def test_what_cannot_be_has_no_gradient() -> None:
    """Where an outcome is impossible under both laws, cost and slope are 0 there, not 0/0."""
    chance = torch.zeros(3, requires_grad=True)
    model = Bernoulli(probability=1 - chance, complement=chance)
    cost = Bernoulli(probability=torch.ones(3)).kl(model) - model.log_prob(torch.ones(3))
    (slope,) = torch.autograd.grad(cost.sum(), chance)
    assert torch.equal(cost.detach(), torch.zeros(3))
    assert bool(torch.isfinite(slope).all())
