"""Every chain against closed forms that numpy computes by itself: kernels, posteriors, divergences, respaced, in bits.

The bar is 1e-10 max(1, |value|) in float64, for every schedule and T in {1, 2, 10, 1000, 4000}. Nothing on the numpy
side is shared with ``unstir``: betas and alpha_bar are written from the papers, in forms that lose no digits near data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from unstir.diffusion.parameterization import (
    FixedLarge,
    LearnedRange,
    LearnedVariance,
    Parameterization,
    PredictBit,
    PredictEDM,
    PredictFlip,
    PredictFlow,
    PredictMean,
    PredictNoise,
    PredictScore,
    PredictV,
    PredictX0,
)
from unstir.diffusion.process import BinomialProcess, Estimate, GaussianProcess
from unstir.diffusion.schedule import (
    Cosine,
    LinearBeta,
    LogLinear,
    QuadraticBeta,
    Reciprocal,
    RectifiedFlow,
    Schedule,
    Sigmoid,
    Tabulated,
    VarianceExploding,
    constant_betas,
    linear_betas,
    quadratic_betas,
    reciprocal_betas,
    warm_up_betas,
)

Numbers = NDArray[numpy.float64]
STEPS = (1, 2, 10, 1000, 4000)
EPSILON = 2.3e-16
X0, BELIEF, X_T = 0.9, -0.7, 1.3
RATE = 0.2


@dataclass(frozen=True, kw_only=True, eq=False)
class Truth:
    """A chain at 0, 1/T, ..., 1; ``log_alpha_bar`` where variance is preserved."""

    alpha: Numbers
    variance: Numbers
    log_alpha_bar: Numbers | None = None

    def step(self, s: Numbers, t: Numbers) -> tuple[Numbers, Numbers]:
        """alpha_t/alpha_s and beta' of the step from point s to point t."""
        factor = self.alpha[t] / self.alpha[s]
        if self.log_alpha_bar is None:
            return factor, self.variance[t] - factor**2 * self.variance[s]
        return factor, -numpy.expm1(self.log_alpha_bar[t] - self.log_alpha_bar[s])


def preserving(log_alpha_bar: Numbers) -> Truth:
    return Truth(alpha=numpy.exp(log_alpha_bar / 2), variance=-numpy.expm1(log_alpha_bar), log_alpha_bar=log_alpha_bar)


def of_betas(betas: Numbers) -> Truth:
    """alpha_bar_i = product of 1 - beta (Ho et al. 2020, Sec. 2)."""
    with numpy.errstate(divide="ignore"):
        return preserving(numpy.concatenate([[0.0], numpy.cumsum(numpy.log1p(-betas))]))


def of_table(table: Numbers) -> Truth:
    """A chain given by its alpha_bar; 1 - alpha_bar is exact for floats above 1/2."""
    table = numpy.concatenate([[1.0], table])
    with numpy.errstate(divide="ignore"):
        return preserving(numpy.where(table > 0.5, numpy.log1p(-(1 - table)), numpy.log(table)))


def log_cosine(t: Numbers, offset: float = 0.008) -> Numbers:
    """log f(t)/f(0), f = cos^2((t + s)/(1 + s) pi/2) (Nichol & Dhariwal 2021, Eq. 17); 1 - f(t)/f(0) as a product."""
    start, angle = offset / (1 + offset) * math.pi / 2, (t + offset) / (1 + offset) * math.pi / 2
    fall = 2 * numpy.sin((angle + start) / 2) * numpy.sin((angle - start) / 2) / math.cos(start)
    return numpy.where(t < 0.5, 2 * numpy.log1p(-fall), 2 * numpy.log(numpy.cos(angle) / math.cos(start)))


def log_sigmoid_path(t: Numbers, start: float = -3.0, end: float = 3.0) -> Numbers:
    """log (S(end) - S(u))/(S(end) - S(start)), u = start + (end - start) t (Chen 2023, Algorithm 1)."""

    def s(u: Numbers | float) -> Numbers:
        return 1 / (1 + numpy.exp(-numpy.asarray(u)))

    inside, whole = s(start + (end - start) * t), s(end) - s(start)
    with numpy.errstate(divide="ignore"):
        return numpy.where(t < 0.5, numpy.log1p(-(inside - s(start)) / whole), numpy.log((s(end) - inside) / whole))


def clipped(log_alpha_bar: Numbers, beta_max: float = 0.999) -> Truth:
    """The chain through a path, its betas at most beta_max (Nichol & Dhariwal 2021, Sec. 3.2)."""
    return of_betas(numpy.minimum(-numpy.expm1(numpy.diff(log_alpha_bar)), beta_max))


def floored(log_alpha_bar: Numbers, t: Numbers) -> Truth:
    """The path itself, with the documented floor of 1e-10 (2 - t) on alpha_bar."""
    return preserving(numpy.maximum(log_alpha_bar, numpy.log(1e-10 * (2 - t))))


def log_linear(t: Numbers) -> Truth:
    """log-SNR from 13.3 to -13.3, the data itself at t = 0 (Kingma et al. 2021, Sec. 5.1): -log alpha_bar = log(1 +
    1/SNR).
    """
    return preserving(numpy.where(t == 0, 0.0, -numpy.log1p(numpy.exp(-(13.3 - 26.6 * t)))))


def without_terminal_signal(truth: Truth) -> Truth:
    """sqrt(alpha_bar) <- (sqrt(alpha_bar) - last) first/(first - last) (Lin et al. 2024, Algorithm 1)."""
    root = truth.alpha[1:]
    return of_table(((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2)


def shifted(t: Numbers, shift: float) -> Truth:
    """alpha = 1 - u, sigma = u = shift t/(1 + (shift - 1) t) (Esser et al. 2024, Eq. 23)."""
    u = shift * t / (1 + (shift - 1) * t)
    return Truth(alpha=1 - u, variance=u**2)


def rates(first: float, last: float, num_steps: int) -> Numbers:
    return numpy.linspace(first, last, num_steps)


def warm_up(num_steps: int, share: float) -> Numbers:
    """Ho et al. 2020 (code, _warmup_beta)."""
    betas, rising = numpy.full(num_steps, 0.02), int(num_steps * share)
    betas[:rising] = numpy.linspace(1e-4, 0.02, rising)
    return betas


def log_snr_table(num_steps: int) -> tuple[Schedule, Truth]:
    """Its entries are rounded to the floats next to 1; what it says of them is exact."""
    table = Tabulated.from_schedule(LogLinear(), num_steps, beta_max=1.0)
    numpy.testing.assert_allclose(table.table, log_linear(grid(num_steps)).alpha[1:] ** 2, rtol=2e-15)
    return table, of_table(numpy.array(table.table))


def grid(num_steps: int) -> Numbers:
    return numpy.arange(num_steps + 1) / num_steps


PLAIN = {"first": 1e-4, "last": 0.02}
CHAINS: dict[str, Callable[[int], tuple[Schedule, Truth]]] = {
    "ddpm": lambda n: (
        Tabulated.from_betas(linear_betas(n, first=1e-4 * n / 1000, last=0.02 * n / 1000)),
        of_betas(rates(1e-4, 0.02, n)),
    ),
    "openai": lambda n: (Tabulated.from_betas(linear_betas(n)), of_betas(rates(0.1 / n, 20 / n, n))),
    "quad": lambda n: (Tabulated.from_betas(quadratic_betas(n)), of_betas(rates(1e-4**0.5, 0.02**0.5, n) ** 2)),
    "scaled_linear": lambda n: (
        Tabulated.from_betas(quadratic_betas(n, first=0.00085, last=0.012)),
        of_betas(rates(0.00085**0.5, 0.012**0.5, n) ** 2),
    ),
    "const": lambda n: (Tabulated.from_betas(constant_betas(n)), of_betas(numpy.full(n, 0.02))),
    "warmup10": lambda n: (Tabulated.from_betas(warm_up_betas(n)), of_betas(warm_up(n, 0.1))),
    "warmup50": lambda n: (Tabulated.from_betas(warm_up_betas(n, share=0.5)), of_betas(warm_up(n, 0.5))),
    "jsd": lambda n: (Tabulated.from_betas(reciprocal_betas(n)), of_betas(1 / numpy.linspace(n, 1, n))),
    "cosine, clipped": lambda n: (Tabulated.from_schedule(Cosine(), n), clipped(log_cosine(grid(n)))),
    "cosine": lambda n: (Cosine(), floored(log_cosine(grid(n)), grid(n))),
    "sigmoid, clipped": lambda n: (Tabulated.from_schedule(Sigmoid(), n), clipped(log_sigmoid_path(grid(n)))),
    "sigmoid": lambda n: (Sigmoid(), floored(log_sigmoid_path(grid(n)), grid(n))),
    "log_linear": lambda n: (LogLinear(), log_linear(grid(n))),
    "log_linear, tabulated": log_snr_table,
    "linear": lambda n: (LinearBeta(), preserving(-(0.1 * grid(n) + 19.9 * grid(n) ** 2 / 2))),
    "linear, tabulated": lambda n: (
        Tabulated.from_schedule(LinearBeta(), n),
        clipped(-(0.1 * grid(n) + 19.9 * grid(n) ** 2 / 2)),
    ),
    "quadratic": lambda n: (QuadraticBeta(), preserving(-quadratic_integral(grid(n)))),
    "reciprocal": lambda n: (Reciprocal(), of_table(1 - grid(n)[1:])),
    "zero-snr": lambda n: (
        Tabulated.from_betas(linear_betas(n, first=1e-4 * n / 1000, last=0.02 * n / 1000)).with_zero_terminal_snr(),
        without_terminal_signal(of_betas(rates(1e-4, 0.02, n))),
    ),
    "flow": lambda n: (RectifiedFlow(), shifted(grid(n), 1.0)),
    "flow, shifted": lambda n: (RectifiedFlow(shift=3.0), shifted(grid(n), 3.0)),
    "exploding": lambda n: (
        VarianceExploding(),
        Truth(alpha=numpy.ones(n + 1), variance=(80 * grid(n)) ** 2),
    ),
}
TOO_SHORT = {("openai", 1), ("openai", 2), ("openai", 10), ("zero-snr", 1)}
CASES = [(name, n) for name in CHAINS for n in STEPS if (name, n) not in TOO_SHORT]
EACH = pytest.mark.parametrize(("name", "num_steps"), CASES, ids=[f"{name}-{n}" for name, n in CASES])


def quadratic_integral(t: Numbers) -> Numbers:
    """Of (a + (b - a) t)^2 from 0, a^2 = 0.1 and b^2 = 20: ((a + (b - a) t)^3 - a^3)/(3 (b - a)), expanded."""
    a, b = math.sqrt(0.1), math.sqrt(20)
    return 0.1 * t + a * (b - a) * t**2 + (b - a) ** 2 * t**3 / 3


@cache
def chain(name: str, num_steps: int) -> tuple[Schedule, Truth]:
    return CHAINS[name](num_steps)


def walks(num_steps: int) -> list[tuple[Numbers, Numbers]]:
    """All steps of the chain, and those of a respaced one (every seventh point, and both ends)."""
    sparse = numpy.unique([*range(0, num_steps, 7), num_steps])
    every = numpy.arange(num_steps + 1)
    return [(every[:-1], every[1:]), (sparse[:-1], sparse[1:])]


def posterior(truth: Truth, s: Numbers, t: Numbers, x0: float) -> tuple[Numbers, Numbers]:
    """Mean and variance of q(x_s | x_t, x_0) by adding precisions, 1/beta_tilde = factor^2/beta + 1/variance_s, for s >
    0 (papers.md 3.2, 3.3).
    """
    factor, beta = truth.step(s, t)
    precision = factor**2 / beta + 1 / truth.variance[s]
    return (factor * X_T / beta + truth.alpha[s] * x0 / truth.variance[s]) / precision, 1 / precision


def divergence(mean_p: Numbers, variance_p: Numbers, mean_q: Numbers, variance_q: Numbers) -> Numbers:
    ratio = variance_p / variance_q
    return 0.5 * (ratio + (mean_p - mean_q) ** 2 / variance_q - 1 - numpy.log(ratio))


def times(points: Numbers, num_steps: int) -> Tensor:
    return torch.from_numpy(numpy.asarray(points)).double() / num_steps


def full(value: float, count: int) -> Tensor:
    return torch.full((count, 1), value, dtype=torch.float64)


def agree(got: Tensor, expected: Numbers, slack: Numbers | float = 0.0) -> None:
    """|got - expected| <= 1e-10 max(1, |expected|); ``slack`` where a formula itself multiplies rounding."""
    found = got.flatten().numpy()
    wanted = numpy.broadcast_to(expected, found.shape)
    apart = numpy.abs(found - wanted)
    allowed = 1e-10 * numpy.maximum(1, numpy.abs(wanted)) + slack
    assert bool((apart <= allowed).all()), f"off by {(apart / allowed).max():.3g} of what is allowed"


@EACH
def test_marginals_and_kernels(name: str, num_steps: int) -> None:
    """q(x_t | x_0) = N(alpha x_0, sigma^2) and q(x_t | x_s) = N(alpha_t/alpha_s x_s, beta') (Ho et al. 2020, Eqs. 2 and
    4; Kingma et al. 2021, Appendix A.1), on the chain and on a respaced one.
    """
    schedule, truth = chain(name, num_steps)
    process = GaussianProcess(schedule=schedule)
    every = numpy.arange(num_steps + 1)
    marginal = process.marginal(full(X0, num_steps + 1), schedule.at(times(every, num_steps)))
    agree(marginal.mean, truth.alpha * X0)
    agree(marginal.std**2, truth.variance)
    for s, t in walks(num_steps):
        kernel = process.kernel(full(X0, len(t)), *(schedule.at(times(i, num_steps)) for i in (s, t)))
        factor, beta = truth.step(s, t)
        agree(kernel.mean, factor * X0)
        agree(kernel.std**2, beta)


@EACH
def test_the_reverse_chain(name: str, num_steps: int) -> None:
    """Mean and variance of p(x_s | x_t) for beta_tilde, beta and between (Ho et al. 2020, Eqs. 6-7; Nichol & Dhariwal
    2021, Eq. 15), and KL(q || p) of two beliefs, term by term, on the chain and on a respaced one (C6, C7).
    """
    schedule, truth = chain(name, num_steps)
    process = GaussianProcess(schedule=schedule)
    for s, t in walks(num_steps):
        s, t = s[1:], t[1:]
        if not len(t):
            continue
        here, there = (schedule.at(times(i, num_steps)) for i in (s, t))
        x_t, x0, belief = (full(value, len(t)) for value in (X_T, X0, BELIEF))
        exact = process.reverse(x_t, there, here, Estimate(x0=x0))
        mean, small = posterior(truth, s, t, X0)
        believed, large = posterior(truth, s, t, BELIEF)[0], truth.step(s, t)[1]
        agree(exact.mean, mean)
        agree(exact.std**2, small)
        for fraction in (None, 0.0, 0.25, 1.0, 1.5):
            variance = numpy.exp((fraction or 0) * numpy.log(large) + (1 - (fraction or 0)) * numpy.log(small))
            for given in (fraction, None if fraction is None else torch.full_like(belief, fraction)):
                got = process.reverse(x_t, there, here, Estimate(x0=belief, variance_fraction=given))
                agree(got.mean, believed)
                agree(got.std**2, variance)
                agree(exact.kl(got), divergence(mean, small, believed, variance))


@EACH
def test_both_ends_of_the_reverse_chain(name: str, num_steps: int) -> None:
    """The step to the data leads to x_0 without noise; its decoder has beta_tilde of the step before, beta, or what
    lies between (Ho et al. 2020, Sec. 3.3 and code); the prior's term is KL(q(x_1 | x_0) || N(0, alpha^2 + sigma^2)).
    """
    schedule, truth = chain(name, num_steps)
    process = GaussianProcess(schedule=schedule, levels=None)
    x0, x_t = full(X0, 1), full(X_T, 1)
    for s, t in walks(num_steps):
        points = numpy.array([s[0], t[0], t[min(1, len(t) - 1)]])
        zero, first, above = (schedule.at(times(i, num_steps)) for i in points)
        last = process.reverse(x_t, first, zero, Estimate(x0=x0))
        agree(last.mean, numpy.array(X0))
        agree(last.std**2, numpy.array(0.0))
        large = truth.variance[points[1]]
        agree(process.variances(zero, first)[1], large)
        for fraction in (0.0, 0.3, 1.0):
            variance = large
            if len(t) > 1:
                small = posterior(truth, points[1:2], points[2:], X0)[1][0]
                agree(process.variances(zero, first, above)[0], small)
                variance = large**fraction * small ** (1 - fraction)
            got = process.decode_log_prob(
                x0, x_t, first, Estimate(x0=full(BELIEF, 1), variance_fraction=fraction), above if len(t) > 1 else None
            )
            agree(got, -((X0 - BELIEF) ** 2) / (2 * variance) - 0.5 * numpy.log(2 * numpy.pi * variance))
    end = schedule.at(torch.ones((), dtype=torch.float64))
    alpha, variance = truth.alpha[-1], truth.variance[-1]
    prior = process.marginal(x0, end).kl(process.prior(x0))
    agree(prior, divergence(alpha * X0, variance, numpy.array(0.0), alpha**2 + variance))


def test_the_priors_term_of_ddpm() -> None:
    """L_T of the linear schedule at T = 1000 is 2.9113e-5 bits/dim times E[x0^2], 7.4e-6 with CIFAR-10's 0.254
    (papers.md 1.2): alpha_bar_T/(2 ln 2).
    """
    process = GaussianProcess(schedule=Tabulated.from_betas(linear_betas(1000)))
    end = process.schedule.at(torch.ones((), dtype=torch.float64))
    for square in (1.0, 0.254):
        x0 = full(math.sqrt(square), 1)
        bits = process.marginal(x0, end).kl(process.prior(x0)).item() / math.log(2)
        assert bits == pytest.approx(2.9113e-5 * square, rel=1e-4)
        assert round(bits, 7) == {1.0: 2.91e-5, 0.254: 7.4e-6}[square]


def affine(process: GaussianProcess, num_steps: int) -> dict[str, Parameterization]:
    mean = PredictMean(process=process, num_steps=num_steps)
    return {
        "noise": PredictNoise(),
        "x0": PredictX0(),
        "v": PredictV(),
        "flow": PredictFlow(),
        "score": PredictScore(),
        "edm": PredictEDM(),
        "mean": mean,
        "fixed_large": FixedLarge(mean=PredictV()),
        "fixed_large of mean": FixedLarge(mean=mean),
    }


def closed_targets(truth: Truth, t: Numbers, x0: float) -> dict[str, tuple[Numbers, Numbers]]:
    """What the output is where x0 is believed, and by how much belief and output differ in size: d output/d x0."""
    alpha, variance = truth.alpha[t], truth.variance[t]
    sigma, noise = numpy.sqrt(variance), (X_T - alpha * x0) / numpy.sqrt(variance)
    total = variance + alpha**2 * 0.25
    factor, beta = truth.step(t - 1, t)
    behind = truth.variance[t - 1]
    mean = (factor * behind * X_T + truth.alpha[t - 1] * beta * x0) / (factor**2 * behind + beta)
    return {
        "noise": (noise, alpha / sigma),
        "x0": (numpy.full_like(alpha, x0), numpy.ones_like(alpha)),
        "v": (alpha * noise - sigma * x0, (alpha**2 + variance) / sigma),
        "score": (-noise / sigma, alpha / variance),
        "edm": ((x0 - alpha * 0.25 / total * X_T) * numpy.sqrt(total) / (0.5 * sigma), numpy.sqrt(total) / sigma / 0.5),
        "mean": (mean, truth.alpha[t - 1] * beta / (factor**2 * behind + beta)),
    }


@EACH
def test_every_parameterization_both_ways(name: str, num_steps: int) -> None:
    """The output that stands for a belief is the papers' formula, decoding it gives the belief back, and so all agree;
    an output that stands for a belief is that belief's output. Where an output hardly depends on the belief (noise
    without signal), rounding is multiplied by what the formula divides by.
    """
    schedule, truth = chain(name, num_steps)
    t = numpy.arange(1, num_steps + 1)
    t = t[truth.alpha[t] > 0]  # what noise, score and flow make of alpha = 0 is told below
    if not len(t):
        return
    level, count = schedule.at(times(t, num_steps)), len(t)
    x_t = full(X_T, count)
    for value in (X0, BELIEF):
        x0, closed = full(value, count), closed_targets(truth, t, value)
        for kind, parameterization in affine(GaussianProcess(schedule=schedule), num_steps).items():
            output = parameterization.target(x0, x_t, level)
            wanted, slope = closed.get(kind.removeprefix("fixed_large of "), (output.flatten().numpy(), 1.0))
            rounding = 16 * EPSILON * (1 + numpy.abs(wanted))
            agree(output, wanted, rounding * numpy.maximum(1, slope))
            is_told = slope > 1e-13 * numpy.ones(count)  # below, the output's last digit is the whole belief
            decoded = parameterization.decode(output, x_t, level).x0
            agree(decoded[is_told], value, (rounding / slope)[is_told])
            again = parameterization.target(decoded, x_t, level)
            agree(again[is_told], output[is_told].flatten().numpy(), (rounding * numpy.maximum(1, slope))[is_told])


@EACH
def test_learned_variances(name: str, num_steps: int) -> None:
    """v gives beta^f beta_tilde^(1-f), f = (v + 1)/2, also beyond [-1, 1] (Nichol & Dhariwal 2021, Eq. 15), and G gives
    beta exp(G) (Ho et al. 2020, Table 2), in the steps and in the decoder; the mean stays that of the first half.
    """
    schedule, truth = chain(name, num_steps)
    process = GaussianProcess(schedule=schedule, levels=None)
    said = {"range": (-1.0, 0.3, 1.0, 1.4), "free": (-2.0, 0.0, 0.7)}
    s, t = numpy.arange(num_steps), numpy.arange(1, num_steps + 1)
    here, there = (schedule.at(times(i, num_steps)) for i in (s, t))
    small = numpy.empty(num_steps)
    small[1:] = posterior(truth, s[1:], t[1:], X0)[1]
    small[0] = small[1] if num_steps > 1 else truth.variance[1]
    large = truth.step(s, t)[1]
    x_t, x0 = full(X_T, num_steps), full(X0, num_steps)
    for kind, values in said.items():
        for value in values:
            if kind == "range":
                decode = LearnedRange(mean=PredictX0()).decode
                wanted = numpy.exp((value + 1) / 2 * numpy.log(large) + (1 - value) / 2 * numpy.log(small))
            else:
                decode = LearnedVariance(mean=PredictX0(), process=process, num_steps=num_steps).decode
                wanted = large * math.exp(value) if num_steps > 1 else large
            belief = decode(torch.cat([full(BELIEF, num_steps), full(value, num_steps)], 1), x_t, there)
            assert torch.equal(belief.x0, full(BELIEF, num_steps))
            fraction = belief.variance_fraction
            assert isinstance(fraction, Tensor)
            if num_steps > 1:
                later = process.reverse(
                    x_t[1:], there[1:], here[1:], Estimate(x0=belief.x0[1:], variance_fraction=fraction[1:])
                )
                agree(later.std**2, wanted[1:])
            above = schedule.at(times(t[1:2], num_steps)) if num_steps > 1 else None
            first = Estimate(x0=belief.x0[:1], variance_fraction=fraction[:1])
            got = process.decode_log_prob(x0[:1], x_t[:1], there[:1], first, above)
            exact = -((X0 - BELIEF) ** 2) / (2 * wanted[:1]) - 0.5 * numpy.log(2 * numpy.pi * wanted[:1])
            agree(got, exact)


BITS = [(name, n) for name, n in CASES if name not in ("flow", "flow, shifted", "exploding")]


def tossed(kept: Numbers) -> Numbers:
    """P(to | from) of a bit that is kept with some probability and tossed anew else: shape (n, from, to)."""
    kept = numpy.asarray(kept)[:, None, None]
    return kept * numpy.eye(2) + (1 - kept) * numpy.array([1 - RATE, RATE])


@pytest.mark.parametrize(("name", "num_steps"), BITS, ids=[f"{name}-{n}" for name, n in BITS])
def test_bits_by_enumeration(name: str, num_steps: int) -> None:
    """Marginals, kernels, posteriors by Bayes over both states, their average over a belief, and divergences of the
    binomial process (Sohl-Dickstein et al. 2015, Table App. 1), on the chain and on a respaced one; a network of
    flips, of logits and of means says the same.
    """
    schedule, truth = chain(name, num_steps)
    process = BinomialProcess(schedule=schedule, rate=RATE)
    every, logs = numpy.arange(num_steps + 1), truth.log_alpha_bar
    assert logs is not None
    from_data = tossed(numpy.exp(logs))
    for bit in (0, 1):
        marginal = process.marginal(full(bit, num_steps + 1), schedule.at(times(every, num_steps)))
        agree(marginal.probability, from_data[:, bit, 1])
    for i, (s, t) in enumerate(walks(num_steps)):
        here, there = (schedule.at(times(k, num_steps)) for k in (s, t))
        step = tossed(1 - truth.step(s, t)[1])
        for x_t in (0, 1):
            agree(process.kernel(full(x_t, len(t)), here, there).probability, step[:, x_t, 1])
            joint = from_data[s] * step[:, None, :, x_t]  # (n, x0, x_s)
            exact = joint / joint.sum(2, keepdims=True)
            soft = 0.35 * exact[:, 1, 1] + 0.65 * exact[:, 0, 1]
            believed = process.reverse(full(x_t, len(t)), there, here, Estimate(x0=full(0.35, len(t))))
            agree(believed.probability, soft)
            for x0 in (0, 1):
                got = process.reverse(full(x_t, len(t)), there, here, Estimate(x0=full(x0, len(t))))
                agree(got.probability, exact[:, x0, 1])
                with numpy.errstate(divide="ignore", invalid="ignore"):
                    p, q = exact[:, x0, 1], soft
                    terms = numpy.stack([p * numpy.log(p / q), (1 - p) * numpy.log((1 - p) / (1 - q))])
                agree(got.kl(believed), numpy.where(numpy.isnan(terms), 0.0, terms).sum(0))
            if i == 0:
                for kind in (
                    PredictBit(),
                    PredictFlip(process=process, num_steps=num_steps),
                    PredictMean(process=process, num_steps=num_steps),
                ):
                    x, x0 = full(x_t, len(t)), full(0.35, len(t))
                    belief = kind.decode(kind.target(x0, x, there), x, there)
                    slope = numpy.abs(exact[:, 1, 1] - exact[:, 0, 1])
                    if isinstance(kind, PredictBit):
                        slope = numpy.ones(len(t))
                    is_told = slope > 1e-13  # as above
                    agree(belief.x0[is_told], 0.35, 16 * EPSILON / slope[is_told])
                    agree(process.reverse(x, there, here, belief).probability[is_told], soft[is_told])


@pytest.mark.parametrize("num_steps", [1, 2, 10, 19])
def test_ddpms_betas_need_twenty_steps(num_steps: int) -> None:
    """0.02 x 1000/T is no variance below T = 20: refused, with what to take instead."""
    with pytest.raises(ValueError, match=r"at least 20 steps.*from_schedule\(LinearBeta"):
        linear_betas(num_steps)


@pytest.mark.parametrize("name", ["reciprocal", "jsd", "zero-snr"])
@pytest.mark.parametrize("kind", [PredictNoise(), PredictScore(), PredictFlow()], ids=["noise", "score", "flow"])
def test_what_says_nothing_without_signal(name: str, kind: Parameterization) -> None:
    """Where alpha falls to 0 as a root does, noise and score do not tell x0, and the velocity is infinite (C8)."""
    level = chain(name, 10)[0].at(torch.tensor([0.5, 1.0], dtype=torch.float64))
    for call in (kind.decode, kind.target):
        with pytest.raises(ValueError, match=r"predict x0"):
            call(full(0.1, 2), full(0.2, 2), level)
