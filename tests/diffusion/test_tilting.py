"""Tilting: beliefs and chains that also heard of y, held against the laws that Bayes' theorem writes down."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unstir.diffusion.distribution import Bernoulli, Normal
from unstir.diffusion.guidance import corrected, known_pixels
from unstir.diffusion.noise import KeyedNoise
from unstir.diffusion.process import BinomialProcess, Estimate, GaussianProcess, Process
from unstir.diffusion.samplers import DDIM, Ancestral, sample
from unstir.diffusion.schedule import Cosine, Level, RectifiedFlow, Schedule, VarianceExploding, spread
from unstir.diffusion.tilting import gradient, lowering, misfit, multiplied, steered, tilted
from unstir.verify.oracles import GaussianOracle

PROCESS = GaussianProcess(schedule=Cosine())
BITS = BinomialProcess(schedule=Cosine(), rate=0.3)
X_T = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
PRIOR_MEAN, PRIOR_VARIANCE, SEEN, SEEN_STD = 0.3, 0.7, 1.1, 0.5


def at(schedule: Schedule, t: float) -> Level:
    return schedule.at(torch.tensor(t, dtype=torch.float64))


def law(mean: float = PRIOR_MEAN, variance: float = PRIOR_VARIANCE) -> GaussianOracle:
    return GaussianOracle(mean=torch.tensor(mean), variance=torch.tensor(variance))


def posterior() -> tuple[float, float]:
    """Mean and variance of x0 ~ N(PRIOR_MEAN, PRIOR_VARIANCE) once SEEN = x0 + SEEN_STD z was seen."""
    precision = 1 / PRIOR_VARIANCE + 1 / SEEN_STD**2
    return (PRIOR_MEAN / PRIOR_VARIANCE + SEEN / SEEN_STD**2) / precision, 1 / precision


def log_seen(x_t: Tensor, level: Level) -> Tensor:
    """Log p(SEEN | x_t): Gaussian around E[x0 | x_t], with the variance of both."""
    variance = SEEN_STD**2 + law().error(level)
    return -((SEEN - law()(x_t, level).x0) ** 2 / (2 * variance)).flatten(1).sum(1)


def drawn(process: Process, denoise: Any, sampler: Any, like: Tensor, steps: int = 300) -> Tensor:
    """Samples at the end of a grid that is even in t."""
    noise = KeyedNoise.from_seeds(range(len(like)))
    times = [1 - i / steps for i in range(steps)] + [0.0]
    start = process.prior(like).sample(noise.at(0))
    *_, last = sample(sampler, denoise, process, start, times, noise.at(1))
    assert not last.x.requires_grad
    return last.x


def assert_law(values: Tensor, mean: float, variance: float, *, bias: float = 0.0) -> None:
    """Mean and variance within four standard errors, and what a finite number of steps leaves."""
    count = values.numel()
    assert abs(values.mean().item() - mean) < 4 * math.sqrt(variance / count) + bias
    assert abs(values.var().item() - variance) < 4 * variance * math.sqrt(2 / count) + bias


# --- the score form ---


@pytest.mark.parametrize("t", [0.02, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow(), VarianceExploding()])
def test_a_belief_steered_by_the_true_likelihood_is_the_posterior_mean(schedule: Schedule, t: float) -> None:
    """E[x0 | x_t, y] of a Gaussian that was seen through noise is that of the product of both."""
    level = at(schedule, t)
    x_t = (level.sigma + 1) * X_T
    expected = law(*posterior())(x_t, level).x0
    torch.testing.assert_close(steered(law(), log_seen)(x_t, level).x0, expected, rtol=1e-9, atol=1e-6)


def test_the_step_is_adms_on_the_noise() -> None:
    """Algorithm 2: eps - sqrt(1 - alpha_bar) scale grad, for a preserved variance."""
    level, scale, grad = at(Cosine(), 0.4), 2.5, torch.sin(X_T)
    belief = steered(lambda *_: Estimate(x0=X_T / 2), lambda x, level: (-torch.cos(x)).flatten(1).sum(1), scale)
    noise = PROCESS.noise_of(X_T / 2, X_T, level) - (1 - level.alpha**2).sqrt() * scale * grad
    expected = (X_T - level.sigma * noise) / level.alpha
    torch.testing.assert_close(belief(X_T, level).x0, expected, rtol=1e-10, atol=1e-10)


def test_a_deterministic_sampler_draws_from_the_posterior() -> None:
    like = torch.zeros(2, 1000, dtype=torch.float64)
    assert_law(drawn(PROCESS, steered(law(), log_seen), DDIM(), like, steps=150), *posterior(), bias=0.01)


def test_at_no_signal_the_belief_is_left_alone() -> None:
    """Sigma^2/alpha is infinite there, and x_t says nothing."""
    level = at(RectifiedFlow(), 1.0)
    for denoise in (
        steered(law(), lambda x, level: x.flatten(1).sum(1)),
        lowering(law(), lambda x, level: x.flatten(1).sum(1)),
    ):
        assert torch.equal(denoise(X_T, level).x0, law()(X_T, level).x0)


def test_levels_may_differ_by_sample_and_fractions_stay() -> None:
    levels = RectifiedFlow().at(torch.tensor([0.2, 0.6, 1.0], dtype=torch.float64))

    def denoise(x_t: Tensor, level: Level, previous: Estimate | None = None) -> Estimate:
        return Estimate(x0=torch.tanh(x_t) * spread(level.alpha, x_t), variance_fraction=torch.sigmoid(x_t))

    def number(x: Tensor, level: Level) -> Tensor:
        return (x**2).flatten(1).sum(1)

    for make in (steered, lowering):
        together = make(denoise, number, 0.5)(X_T, levels)
        for i in range(3):
            alone = make(denoise, number, 0.5)(X_T[i : i + 1], levels[i])
            torch.testing.assert_close(together.x0[i : i + 1], alone.x0, rtol=1e-12, atol=1e-12)
        assert isinstance(together.variance_fraction, Tensor)
        assert torch.equal(together.variance_fraction, torch.sigmoid(X_T))
        assert not together.x0.requires_grad
        assert not together.variance_fraction.requires_grad


# --- any loss ---


@given(st.floats(0.05, 0.95), st.floats(-3, 3))
def test_a_loss_moves_the_belief_by_its_covariance(t: float, scale: float) -> None:
    """X0 - scale Var[x0 | x_t] grad loss(x0), for a Gaussian."""
    level = at(Cosine(), t)
    x0 = law()(X_T, level).x0
    moved = lowering(law(), lambda x0, level: torch.cosh(x0).flatten(1).sum(1), scale)(X_T, level).x0
    torch.testing.assert_close(moved, x0 - scale * law().error(level) * torch.sinh(x0), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("t", [0.02, 0.4, 0.9])
def test_lowering_the_misfit_is_steering_by_the_likelihood(t: float) -> None:
    """With the data's own spread, it is the belief of the product of prior and observation."""
    level, observed = at(Cosine(), t), Normal(mean=torch.full_like(X_T, SEEN), std=torch.full_like(X_T, SEEN_STD))
    belief = lowering(law(), misfit(observed, math.sqrt(PRIOR_VARIANCE)))(X_T, level).x0
    torch.testing.assert_close(belief, law(*posterior())(X_T, level).x0, rtol=1e-6, atol=1e-6)


def test_what_was_not_seen_is_left_alone() -> None:
    observed = Normal(mean=torch.zeros_like(X_T), std=torch.full_like(X_T, math.inf))
    level = at(Cosine(), 0.5)
    assert torch.equal(lowering(law(), misfit(observed))(X_T, level).x0, law()(X_T, level).x0)


@dataclass(frozen=True)
class Correlated:
    """Two pixels of N(0, [[1, rho], [rho, 1]]), and their denoiser given nothing or the first pixel."""

    rho: float

    @property
    def covariance(self) -> Tensor:
        return torch.tensor([[1.0, self.rho], [self.rho, 1.0]], dtype=torch.float64)

    def left(self, level: Level) -> Tensor:
        """The covariance of x0 given x_t."""
        total = level.alpha**2 * self.covariance + level.sigma**2 * torch.eye(2, dtype=torch.float64)
        return level.sigma**2 * self.covariance @ torch.linalg.inv(total)

    def __call__(self, x_t: Tensor, level: Level, previous: Estimate | None = None) -> Estimate:
        return Estimate(x0=(level.alpha / level.sigma**2) * x_t @ self.left(level))


@pytest.mark.parametrize("std", [0.0, 0.4])
def test_pixels_that_were_not_seen_follow_their_conditional_law(std: float) -> None:
    """One pixel known, or seen through noise: the other one's law is that of linear regression."""
    oracle, seen = Correlated(0.8), 1.2

    def loss(x0: Tensor, level: Level) -> Tensor:
        return (seen - x0[:, 0]) ** 2 / (2 * (oracle.left(level)[0, 0] + std**2))

    like = torch.zeros(2000, 2, dtype=torch.float64)
    x = drawn(PROCESS, lowering(oracle, loss), DDIM(), like, steps=150)
    gain = 1 / (1 + std**2)
    assert_law(x[:, 1], 0.8 * gain * seen, 1 - 0.8**2 * gain, bias=0.015)
    if std == 0:
        torch.testing.assert_close(x[:, 0], torch.full_like(x[:, 0], seen), rtol=0, atol=1e-6)
    else:
        assert_law(x[:, 0], gain * seen, std**2 * gain, bias=0.01)
        assert torch.corrcoef(x.T)[0, 1].item() == pytest.approx(0.8 * std / math.sqrt(std**2 + 1 - 0.64), abs=0.06)


# --- the mean form ---


def test_tilting_shifts_the_mean_by_the_gradient_there() -> None:
    """Mean + Sigma g with g at the mean and at the level that is walked to; the spread stays (2015, Eq. 61)."""
    t, s = at(Cosine(), 0.6), at(Cosine(), 0.5)
    asked: list[tuple[Tensor, Level]] = []

    def log_r(x: Tensor, level: Level) -> Tensor:
        asked.append((x.detach().clone(), level))
        return (x**3).flatten(1).sum(1)

    plain = PROCESS.reverse(X_T, t, s, Estimate(x0=X_T / 2))
    with torch.no_grad():
        leaning = tilted(PROCESS, log_r).reverse(X_T, t, s, Estimate(x0=X_T / 2))
    assert torch.equal(asked[0][0], plain.mean)
    assert asked[0][1] is s
    torch.testing.assert_close(leaning.mean, plain.mean + plain.std**2 * 3 * plain.mean**2)
    assert isinstance(leaning, Normal)
    assert torch.equal(leaning.std, plain.std)


def test_a_tilted_chain_draws_from_the_posterior() -> None:
    """Gaussian prior, Gaussian observation, many steps: mean and variance of Bayes' theorem."""
    like = torch.zeros(2, 2000, dtype=torch.float64)
    assert_law(drawn(tilted(PROCESS, log_seen), law(), Ancestral(), like), *posterior(), bias=0.015)


@pytest.mark.parametrize("factor", [1.0, 1e-3])
def test_tilting_bits_multiplies_their_odds(factor: float) -> None:
    """Where log r is a straight line it is the product, here by enumeration."""
    t, s, slopes = at(BITS.schedule, 0.5), at(BITS.schedule, 0.5 - 0.3 * factor), torch.tensor([-2.0, 0.0, 1.5])
    x_t, belief = torch.tensor([[0.0, 1.0, 1.0]]), Estimate(x0=torch.tensor([[0.2, 0.5, 0.9]]))
    plain = BITS.reverse(x_t, t, s, belief)
    weights = {
        bits: torch.exp(plain.log_prob(torch.tensor([bits])).sum() + (slopes * torch.tensor(bits)).sum()).item()
        for bits in itertools.product((0.0, 1.0), repeat=3)
    }
    leaning = tilted(BITS, lambda x, level: (x * slopes).sum(1)).reverse(x_t, t, s, belief)
    assert isinstance(leaning, Bernoulli)
    for i in range(3):
        one = sum(weight for bits, weight in weights.items() if bits[i]) / sum(weights.values())
        assert leaning.probability[0, i].item() == pytest.approx(one, rel=1e-4)
        assert leaning.complement is not None
        assert leaning.complement[0, i].item() == pytest.approx(1 - one, rel=1e-4)


def test_everything_else_of_a_tilted_process_is_as_it_was() -> None:
    t, s = at(Cosine(), 0.6), at(Cosine(), 0.5)
    changed, belief = tilted(PROCESS, log_seen), Estimate(x0=X_T / 2)
    assert changed.schedule is PROCESS.schedule
    for mine, theirs in (
        (changed.prior(X_T), PROCESS.prior(X_T)),
        (changed.marginal(X_T, t), PROCESS.marginal(X_T, t)),
        (changed.kernel(X_T, s, t), PROCESS.kernel(X_T, s, t)),
    ):
        assert torch.equal(mine.log_prob(X_T), theirs.log_prob(X_T))
    grey = torch.ones_like(X_T)
    assert torch.equal(changed.decode_log_prob(grey, X_T, t, belief), PROCESS.decode_log_prob(grey, X_T, t, belief))
    assert torch.equal(changed.divergence_rate(grey, X_T, t, belief), PROCESS.divergence_rate(grey, X_T, t, belief))
    changed = tilted(BITS, log_seen)
    assert torch.equal(changed.to_natural(X_T.sigmoid()), BITS.to_natural(X_T.sigmoid()))
    assert torch.equal(changed.from_natural(X_T), BITS.from_natural(X_T))


# --- products of 2015 ---


@pytest.mark.parametrize(("is_fading", "power"), [(False, 1.0), (True, 0.5)])
@given(st.floats(-3, 3), st.floats(0.01, 10))
def test_a_step_times_r_is_the_product_of_densities(is_fading: bool, power: float, seen: float, std: float) -> None:
    """Log-densities add up to a constant, everywhere."""
    t, s, belief = at(Cosine(), 0.6), at(Cosine(), 0.5), Estimate(x0=X_T / 2)
    r = Normal(mean=torch.tensor(seen), std=torch.tensor(std))
    product = multiplied(PROCESS, r, is_fading=is_fading).reverse(X_T, t, s, belief)
    plain, seen_at = (
        PROCESS.reverse(X_T, t, s, belief),
        Normal(mean=torch.tensor(seen).double(), std=torch.tensor(std).double()),
    )
    points = [torch.full_like(X_T, value) for value in (-1.0, 0.0, 2.0)]
    sums = [product.log_prob(x) - plain.log_prob(x) - power * seen_at.log_prob(x) for x in points]
    for other in sums[1:]:
        torch.testing.assert_close(other, sums[0], rtol=1e-5, atol=1e-5 / min(std, 1) ** 2)


def test_what_is_known_is_certain_and_what_is_not_is_free() -> None:
    """Std 0 and infinity, element by element, also in a step without spread."""
    t, s, belief = at(Cosine(), 0.6), at(Cosine(), 0.5), Estimate(x0=X_T / 2)
    std = torch.tensor([0.0, math.inf, 0.0, math.inf])
    process = multiplied(PROCESS, Normal(mean=torch.full((4,), 0.25), std=std))
    for end in (s, at(Cosine(), 0.0)):
        product, plain = process.reverse(X_T, t, end, belief), PROCESS.reverse(X_T, t, end, belief)
        assert bool((product.mean[..., ::2] == 0.25).all())
        torch.testing.assert_close(product.mean[..., 1::2], plain.mean[..., 1::2])
        assert isinstance(product, Normal)
        spreads = product.std.expand_as(X_T)
        assert bool((spreads[..., ::2] == 0).all())
        torch.testing.assert_close(spreads[..., 1::2], plain.std.expand_as(X_T)[..., 1::2].to(spreads))


def test_a_constant_r_counts_twice_for_standard_normal_data() -> None:
    """The stationary law of x_s ~ N(sqrt(1 - beta) x_t, beta) r is p r^2 as beta falls: precision 1 + 2/std^2."""
    like = torch.zeros(2, 2000, dtype=torch.float64)
    for std, precision in ((0.8, 1 + 2 / 0.8**2), (0.8 * math.sqrt(2), 1 + 1 / 0.8**2)):
        r = Normal(mean=torch.tensor(0.9), std=torch.tensor(std))
        x = drawn(multiplied(PROCESS, r), law(0.0, 1.0), Ancestral(), like, steps=600)
        assert_law(x, 0.9 * (1 - 1 / precision), 1 / precision, bias=0.02)


def test_known_pixels_come_back_exactly() -> None:
    """A delta r along the way and known pixels at its end, for reals and for bits."""
    mask = torch.tensor([True, False, True])
    for process, known, r in (
        (
            PROCESS,
            torch.tensor([0.5, 0.0, -0.25]),
            Normal(mean=torch.tensor([0.5, 0.0, -0.25]), std=torch.tensor([0.0, math.inf, 0.0])),
        ),
        (BITS, torch.tensor([1.0, 0.0, 0.0]), Bernoulli(probability=torch.tensor([1.0, 0.5, 0.0]))),
    ):
        denoise = corrected(
            lambda x_t, level, previous=None: Estimate(x0=torch.full_like(x_t, 0.4)), known_pixels(known, mask)
        )
        x = drawn(multiplied(process, r), denoise, Ancestral(), torch.zeros(4, 3), steps=10)
        assert torch.equal(x[:, mask], known[mask].expand(4, 2))
        assert torch.equal(x[:, 1], torch.full((4,), 0.4))


@given(st.floats(0.001, 0.999), st.floats(0.0, 1.0), st.booleans())
def test_odds_of_bits_multiply(own: float, chance: float, bit: bool) -> None:
    t, s = at(BITS.schedule, 0.6), at(BITS.schedule, 0.4)
    x_t, belief = torch.full((1, 1), float(bit)), Estimate(x0=torch.full((1, 1), own))
    plain = BITS.reverse(x_t, t, s, belief).probability.item()
    product = multiplied(BITS, Bernoulli(probability=torch.tensor(chance))).reverse(x_t, t, s, belief)
    expected = plain * chance / (plain * chance + (1 - plain) * (1 - chance))
    assert product.mean.item() == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_a_coin_that_rules_out_the_step_decides() -> None:
    t, s = at(BITS.schedule, 0.6), at(BITS.schedule, 0.0)
    process = multiplied(BITS, Bernoulli(probability=torch.tensor([[1.0, 0.0]])))
    product = process.reverse(torch.ones(1, 2), t, s, Estimate(x0=torch.tensor([[0.0, 1.0]])))
    assert torch.equal(product.mean, torch.tensor([[1.0, 0.0]]))


def test_products_can_be_tilted_and_multiplied_again() -> None:
    t, s, belief = at(Cosine(), 0.6), at(Cosine(), 0.5), Estimate(x0=X_T / 2)
    r = Normal(mean=torch.tensor(0.3), std=torch.tensor(0.5))
    twice = multiplied(multiplied(PROCESS, r), r).reverse(X_T, t, s, belief)
    once = multiplied(PROCESS, Normal(mean=r.mean, std=r.std / math.sqrt(2))).reverse(X_T, t, s, belief)
    torch.testing.assert_close(twice.mean, once.mean, rtol=1e-6, atol=1e-6)


# --- gradients, and what is refused ---


def test_the_gradient_of_each_sample_is_its_own_also_without_grad() -> None:
    with torch.no_grad():
        slope = gradient(lambda x: (x**2).flatten(1).sum(1), X_T)
    torch.testing.assert_close(slope, 2 * X_T)
    assert not slope.requires_grad
    assert not X_T.requires_grad


def everything(x: Tensor, level: Level) -> Tensor:
    return x.sum()


def nothing(x: Tensor, level: Level) -> Tensor:
    return torch.zeros(len(x))


@pytest.mark.parametrize(("function", "message"), [(everything, "one number a sample"), (nothing, "differentiated")])
@pytest.mark.parametrize("make", [steered, lowering])
def test_refuses_what_gives_no_gradient(make: Callable[..., Any], function: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(law(), function)(X_T, at(Cosine(), 0.5))
    t, s = at(Cosine(), 0.6), at(Cosine(), 0.5)
    with pytest.raises(ValueError, match=message):
        tilted(PROCESS, function).reverse(X_T, t, s, Estimate(x0=X_T))


@pytest.mark.parametrize("scale", [math.inf, math.nan])
@pytest.mark.parametrize("make", [steered, lowering])
def test_refuses_a_scale_that_is_no_number(make: Callable[..., Any], scale: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        make(law(), nothing, scale)


@pytest.mark.parametrize(("std", "data_std"), [(-0.1, 1.0), (0.1, 0.0), (0.1, -1.0), (0.1, math.nan), (math.nan, 1.0)])
def test_refuses_spreads_that_are_none(std: float, data_std: float) -> None:
    with pytest.raises(ValueError, match="standard deviations"):
        misfit(Normal(mean=torch.zeros(1), std=torch.tensor([std])), data_std)


def test_refuses_to_multiply_reals_with_coins() -> None:
    with pytest.raises(ValueError, match="give a Normal"):
        multiplied(PROCESS, Bernoulli(probability=torch.tensor(0.5)))
    with pytest.raises(ValueError, match="a Bernoulli for bits"):
        multiplied(BITS, Normal(mean=torch.tensor(0.5), std=torch.tensor(0.5)))
