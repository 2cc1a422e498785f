"""The bound and the flow against exact log-likelihoods: Gaussians, mixtures, discrete laws, and bits by enumeration.

Most expectations are taken by quadrature: ``Nodes`` is noise whose normal numbers and shares are given, a row each, so
that a weighted mean over the rows is exact and nothing needs standard errors.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import pytest
import torch
from torch import Tensor

from unstir.diffusion.denoiser import Denoiser
from unstir.diffusion.distribution import Normal
from unstir.diffusion.learned import LearnedBetas, LearnedLogSNR
from unstir.diffusion.likelihood import (
    Bound,
    State,
    bits_per_dim,
    flow_log_prob,
    rate_distortion,
    runge_kutta,
    step_divergence,
)
from unstir.diffusion.noise import BlockNoise, KeyedNoise
from unstir.diffusion.process import BinomialProcess, Estimate, GaussianProcess, Process
from unstir.diffusion.schedule import (
    Cosine,
    Level,
    LinearBeta,
    LogLinear,
    Reciprocal,
    RectifiedFlow,
    Schedule,
    Sigmoid,
    Tabulated,
    VarianceExploding,
    linear_betas,
    reciprocal_betas,
)
from unstir.typing import Noise, Time, X
from unstir.verify.oracles import BitsOracle, GaussianOracle, MixtureOracle, observed_orders

SCHEDULES: dict[str, Schedule] = {
    "linear": LinearBeta(),
    "cosine": Cosine(),
    "flow": RectifiedFlow(),
    "log-linear": LogLinear(),
    "exploding": VarianceExploding(sigma_max=20.0),
    "table": Tabulated.from_betas(linear_betas(1000)),
    "no-signal": Tabulated.from_schedule(Sigmoid(), 200).with_zero_terminal_snr(),
    "learned": LearnedLogSNR(hidden=8),
}
EVERY = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
GAUSSIAN = GaussianOracle(mean=torch.tensor(0.4), variance=torch.tensor(0.3))
HUMPS = MixtureOracle(
    means=torch.tensor([[-1.0], [0.2], [1.1]], dtype=torch.float64),
    variances=torch.tensor([0.05, 0.02, 0.1], dtype=torch.float64),
    weights=torch.tensor([0.4, 0.25, 0.35], dtype=torch.float64),
)
PLANE = MixtureOracle(
    means=torch.tensor([[-1.0, 0.5], [0.8, 0.9], [0.3, -1.0]], dtype=torch.float64),
    variances=torch.tensor([0.1, 0.05, 0.2], dtype=torch.float64),
    weights=torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64),
)
POINTS = torch.tensor([[-1.3], [-0.2], [0.5], [1.4]], dtype=torch.float64)
LAW = torch.tensor([0.30, 0.05, 0.02, 0.13, 0.07, 0.08, 0.10, 0.25], dtype=torch.float64)
BITS = BitsOracle(table=LAW, rate=0.3)
LN2 = math.log(2)


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def keyed(count: int) -> KeyedNoise:
    return KeyedNoise.from_seeds(range(count))


@dataclass(frozen=True, kw_only=True, eq=False)
class Nodes(Noise):
    """Noise whose normal numbers and whose shares are given, one a row, the same whenever they are asked for."""

    z: Tensor
    share: Tensor | float = 0.5

    def at(self, *key: int) -> Self:
        return self

    def rows(self, index: slice) -> Self:
        share = self.share[index] if isinstance(self.share, Tensor) else self.share
        return replace(self, z=self.z[index], share=share)

    def normal(self, like: X) -> X:
        return self.z.to(like).view(-1, *[1] * (like.ndim - 1)).expand_as(like)

    def uniform(self, like: X) -> X:
        share = self.share if isinstance(self.share, Tensor) else torch.full((like.shape[0],), self.share)
        return share.to(like).view(-1, *[1] * (like.ndim - 1)).expand_as(like)


def normal_grid(width: float = 9.0, count: int = 361) -> tuple[Tensor, Tensor]:
    """The trapezoidal rule for E f(z), z ~ N(0, 1): spectrally exact for smooth f."""
    z = torch.linspace(-width, width, count, dtype=torch.float64)
    weights = torch.exp(-(z**2) / 2)
    return z, weights / weights.sum()


QUADRATIC = (
    torch.tensor([-math.sqrt(3), 0.0, math.sqrt(3)], dtype=torch.float64),
    torch.tensor([1 / 6, 2 / 3, 1 / 6], dtype=torch.float64),
)
"""Gauss's three nodes: E f(z) exactly for polynomials of up to fifth degree, such as all terms of Gaussian data."""


def expected(
    denoise: Denoiser, process: Process, data: X, rule: tuple[Tensor, Tensor], **options: Any
) -> tuple[Tensor, Tensor]:
    """The bound of each sample in nats, its expectation over the noise by quadrature, and its parts: (b,), (b, 3)."""
    nodes, weights = rule
    rows = data.repeat_interleave(len(nodes), 0)
    bound = bits_per_dim(denoise, process, rows, noise=Nodes(z=nodes.repeat(len(data))), **options)
    parts = torch.stack([bound.prior, bound.diffusion, bound.reconstruction], 1) * data[0].numel() * LN2
    torch.testing.assert_close(bound.total * data[0].numel() * LN2, parts.sum(1))
    mean = (parts.view(len(data), len(nodes), 3) * weights[:, None]).sum(1)
    return mean.sum(1), mean


def forgotten(oracle: GaussianOracle | MixtureOracle, process: GaussianProcess, data: X, rule: Any) -> Tensor:
    """E log q(x_1)/p(x_1) given x_0 of each sample, in nats: what it costs that the prior is not the law of x_1."""
    nodes, weights = rule
    end = process.schedule.at(scalar(1.0))
    rows = data.repeat_interleave(len(nodes), 0)
    x = process.marginal(rows, end).sample(Nodes(z=nodes.repeat(len(data))))
    lost = oracle.log_density(x, end) - process.prior(x).log_prob(x).flatten(1).sum(1)
    return ((lost.view(len(data), -1)) * weights).sum(1).detach()


@dataclass(frozen=True, kw_only=True, eq=False)
class Exact:
    """The exact reverse chain of Gaussian data: the posterior mean, and the reverse variance as a fraction."""

    oracle: GaussianOracle
    process: GaussianProcess
    steps: int

    def __call__(self, x_t: X, level: Level, previous: Estimate | None = None) -> Estimate:
        index = round(level.t.flatten()[0].item() * self.steps)
        schedule = self.process.schedule
        before, above = (
            schedule.at(scalar((index - 1) / self.steps)),
            schedule.at(scalar(min(index + 1, self.steps) / self.steps)),
        )
        small, large = self.process.variances(before, level, above if index == 1 < self.steps else None)
        variance = self.oracle.reverse(x_t, level, before).std.square()
        fraction = (variance / small).log() / (large / small).log() if self.steps > 1 else scalar(0.0)
        return Estimate(x0=self.oracle(x_t, level).x0, variance_fraction=fraction.expand_as(x_t).detach())


@EVERY
@pytest.mark.parametrize("steps", [2, 10, 100])
def test_the_exact_chain_of_gaussian_data_loses_nothing(schedule: Schedule, steps: int) -> None:
    """With the exact mean and the exact variance at every step, decoder included, the T-step bound of each sample is
    -log p(x_0) for any T, to rounding: the joint law is the data's own (Sohl-Dickstein et al. 2015, Sec. 2.4; the prior
    alone differs, by E log q(x_1)/p(x_1)).
    """
    if steps == 2 and schedule.at(scalar(1.0)).alpha < 1e-4:
        steps = 3  # from no signal beta_tilde is beta, and the decoder between them could not take the exact variance
    process = GaussianProcess(schedule=schedule, levels=None)
    total, _ = expected(Exact(oracle=GAUSSIAN, process=process, steps=steps), process, POINTS, QUADRATIC, steps=steps)
    exact = -GAUSSIAN.log_density(POINTS, schedule.at(scalar(0.0)))
    torch.testing.assert_close(total, exact + forgotten(GAUSSIAN, process, POINTS, QUADRATIC), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", [LinearBeta(), Cosine(), RectifiedFlow(), Tabulated(table=(0.3,))])
def test_a_chain_of_one_step_is_exact_for_data_of_unit_variance(schedule: Schedule) -> None:
    """T = 1 has no term but the prior and the decoder, whose variance sigma_1^2 is the posterior's own where variance
    is preserved and the data has variance 1.
    """
    unit = GaussianOracle(mean=torch.tensor(0.4), variance=torch.tensor(1.0))
    process = GaussianProcess(schedule=schedule, levels=None)
    total, parts = expected(unit, process, POINTS, QUADRATIC, steps=1)
    exact = -unit.log_density(POINTS, schedule.at(scalar(0.0)))
    torch.testing.assert_close(total, exact + forgotten(unit, process, POINTS, QUADRATIC), rtol=1e-9, atol=1e-9)
    assert parts[:, 1].tolist() == [0] * 4


@pytest.mark.parametrize("steps", [1, 2, 10, 100])
def test_the_estimate_agrees_within_its_standard_error(steps: int) -> None:
    """With drawn noise: mean(bound + log p) is 0 within 4 standard errors, on standard Gaussian data of 6 elements."""
    unit = GaussianOracle(mean=torch.tensor(0.0), variance=torch.tensor(1.0))
    process = GaussianProcess(schedule=Cosine(), levels=None)
    count, size = 400, 6
    data = unit.draw(torch.zeros(count, 2, 3, dtype=torch.float64), BlockNoise(key=(1,), count=count))
    noise = BlockNoise(key=(2,), count=count)
    bound = bits_per_dim(Exact(oracle=unit, process=process, steps=steps), process, data, steps=steps, noise=noise)
    gap = bound.total + unit.log_density(data, Cosine().at(scalar(0.0))) / (size * LN2)
    assert abs(gap.mean().item()) < 4 * gap.std().item() / math.sqrt(count)
    assert bound.mean == pytest.approx(bound.total.mean().item())
    assert bound.standard_error == pytest.approx(bound.total.std().item() / math.sqrt(count))


@EVERY
@pytest.mark.parametrize(("oracle", "tolerance"), [(GAUSSIAN, 1e-5), (HUMPS, 1e-5)], ids=["gaussian", "mixture"])
def test_the_continuous_bound_is_exact(
    schedule: Schedule, oracle: GaussianOracle | MixtureOracle, tolerance: float
) -> None:
    """With the exact denoiser, the limit T -> infinity is -log p(x_0) of each sample on every schedule, up to the
    prior and to the data's roughness at exp(-13.3) (Kingma et al. 2021, Sec. 4.2: the bound is tight).
    """
    process = GaussianProcess(schedule=schedule, levels=None)
    rule = normal_grid()
    total, _ = expected(oracle, process, POINTS, rule, steps=None, draws=100)
    exact = -oracle.log_density(POINTS, schedule.at(scalar(0.0)))
    torch.testing.assert_close(total, exact + forgotten(oracle, process, POINTS, rule), rtol=0, atol=tolerance)


@EVERY
def test_the_drawn_continuous_bound_agrees_within_its_standard_error(schedule: Schedule) -> None:
    """With 20 drawn times a sample: mean(bound + log p) on a mixture in the plane is 0 within 4 standard errors, beyond
    what the prior costs.
    """
    process, count = GaussianProcess(schedule=schedule, levels=None), 1000
    data = PLANE.draw(torch.zeros(count, 2, dtype=torch.float64), BlockNoise(key=(3,), count=count))
    bound = bits_per_dim(PLANE, process, data, steps=None, draws=20, noise=BlockNoise(key=(4,), count=count))
    end = schedule.at(scalar(1.0))
    x = process.marginal(data, end).sample(BlockNoise(key=(5,), count=count))
    lost = PLANE.log_density(x, end) - process.prior(x).log_prob(x).sum(1)
    gap = bound.total * 2 * LN2 + PLANE.log_density(data, schedule.at(scalar(0.0))) - lost.detach()
    assert abs(gap.mean().item()) < 4 * gap.std().item() / math.sqrt(count)
    assert bound.times.shape == bound.steps.shape == bound.squared_error.shape == (count, 20)
    log_snr = schedule.at(bound.times.flatten()).log_snr.view(count, 20)
    assert bool((log_snr.diff(dim=1) < 0).all())  # from data to noise, one in each stratum
    assert bool((bound.steps >= 0).all())


def test_terms_by_hand() -> None:
    """Every term is (SNR(s) - SNR(t))/2 |x0 - D|^2 where the variance is the posterior's (Kingma et al. 2021, Eq. 13),
    of the x_t that the documented sub-keys draw; the parts say which errors were made.
    """
    steps, process, noise = 7, GaussianProcess(schedule=Cosine(), levels=None), keyed(3)
    data = torch.randn(3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    bound = bits_per_dim(GAUSSIAN, process, data, steps=steps, noise=noise)
    assert bound.times.tolist() == [[i / steps for i in range(2, steps + 1)]] * 3
    for i in range(steps - 1):
        t, s = Cosine().at(scalar((i + 2) / steps)), Cosine().at(scalar((i + 1) / steps))
        x_t = t.alpha * data + t.sigma * noise.at(2, i).normal(data)
        error = (data - GAUSSIAN(x_t, t).x0).square()
        rate = ((s.alpha / s.sigma) ** 2 - (t.alpha / t.sigma) ** 2) / 2
        torch.testing.assert_close(bound.steps[:, i], rate * error.sum((1, 2)) / (4 * LN2), rtol=1e-9, atol=1e-14)
        torch.testing.assert_close(bound.squared_error[:, i], error.mean((1, 2)))
        torch.testing.assert_close(
            step_divergence(process, data, x_t, t, s, GAUSSIAN(x_t, t)), rate * error, rtol=1e-9, atol=1e-14
        )
    first = Cosine().at(scalar(1 / steps))
    x_1 = first.alpha * data + first.sigma * noise.at(0).normal(data)
    belief = GAUSSIAN(x_1, first).x0
    nats = 0.5 * ((data - belief) / first.sigma).square() + first.sigma.log() + 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(bound.reconstruction, nats.sum((1, 2)) / (4 * LN2))
    torch.testing.assert_close(bound.first_squared_error, (data - belief).square().mean((1, 2)))
    torch.testing.assert_close(bound.diffusion, bound.steps.sum(1))
    torch.testing.assert_close(bound.total, bound.prior + bound.diffusion + bound.reconstruction)


@pytest.mark.parametrize(
    "process",
    [GaussianProcess(schedule=LinearBeta()), GaussianProcess(schedule=RectifiedFlow(shift=2.0))]
    + [BinomialProcess(schedule=kind(), rate=0.3) for kind in (Reciprocal, Cosine)],
    ids=["linear", "flow", "bits-reciprocal", "bits-cosine"],
)
@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_the_rate_is_the_limit_of_a_step(process: Process, t: float) -> None:
    """KL(q(x_s | x_t, x_0) || p(x_s | x_t))/(t - s) tends to the divergence rate as s -> t, for any belief, right or
    wrong: its distance halves with t - s (Kingma et al. 2021, Eq. 17; Campbell et al. 2022, Proposition 2).
    """
    x0, x_t, believed = (
        grid.flatten()[:, None]
        for grid in torch.meshgrid(
            torch.tensor([0.0, 1.0], dtype=torch.float64),
            torch.tensor([0.0, 1.0], dtype=torch.float64),
            torch.tensor([0.02, 0.3, 0.9], dtype=torch.float64),
            indexing="ij",
        )
    )
    level, belief = process.schedule.at(scalar(t)), Estimate(x0=believed)
    rate = process.divergence_rate(x0, x_t, level, belief)
    gaps = []
    for step in (2e-5, 1e-5):
        before = process.schedule.at(scalar(t - step))
        gaps.append(step_divergence(process, x0, x_t, level, before, belief) / step - rate)
    torch.testing.assert_close(gaps[1], torch.zeros_like(rate), rtol=0, atol=3e-4 * rate.max().item())
    torch.testing.assert_close(2 * gaps[1] - gaps[0], torch.zeros_like(rate), rtol=0, atol=1e-6 * rate.max().item())
    assert rate.min().item() > 0


@pytest.mark.parametrize(("steps", "draws"), [(10, 1), (10, 3), (10, 4), (10, 9), (2, 1)])
def test_drawn_terms_are_unbiased(steps: int, draws: int) -> None:
    """The mean over all shares of the drawn, stratified terms is the sum of all terms, to rounding; prior and decoder
    are those of the whole chain.
    """
    process, shares = GaussianProcess(schedule=Cosine(), levels=None), 9 * 8 * 7
    data = torch.full((shares, 1), 0.7, dtype=torch.float64)
    share = (torch.arange(shares, dtype=torch.float64) + 0.5) / shares
    noise = Nodes(z=torch.full((shares,), 0.9, dtype=torch.float64), share=share)
    drawn = bits_per_dim(GAUSSIAN, process, data, steps=steps, draws=draws, noise=noise)
    whole = bits_per_dim(GAUSSIAN, process, data[:1], steps=steps, noise=noise.rows(slice(0, 1)))
    assert drawn.diffusion.mean().item() == pytest.approx(whole.diffusion.item(), rel=1e-12)
    assert drawn.prior[5].item() == pytest.approx(whole.prior.item(), rel=1e-12)
    assert drawn.reconstruction[5].item() == pytest.approx(whole.reconstruction.item(), rel=1e-12)
    assert drawn.times.shape == (shares, draws)
    index = (drawn.times * steps).round()
    torch.testing.assert_close(drawn.times, index / steps, rtol=0, atol=0)
    assert (index.min().item(), index.max().item()) == (2, steps)


def test_the_standard_error_is_honest() -> None:
    """Over 80 repetitions the bound scatters as its standard error says (within 30 %), and is right on average within 4
    of them; of one sample it is NaN.
    """
    process, data = GaussianProcess(schedule=Cosine(), levels=None), torch.full((24, 2), -0.4, dtype=torch.float64)
    means, errors = [], []
    for seed in range(80):
        bound = bits_per_dim(GAUSSIAN, process, data, steps=20, draws=3, noise=BlockNoise(key=(seed,), count=len(data)))
        means.append(bound.mean)
        errors.append(bound.standard_error)
    scatter, told = torch.tensor(means).std().item(), torch.tensor(errors).square().mean().sqrt().item()
    assert scatter == pytest.approx(told, rel=0.3)
    exact = expected(GAUSSIAN, process, data[:1], QUADRATIC, steps=20)[0].item() / (2 * LN2)
    assert abs(sum(means) / 80 - exact) < 4 * told / math.sqrt(80)
    one = bits_per_dim(GAUSSIAN, process, data[:1], steps=2, noise=keyed(1))
    assert math.isnan(one.standard_error)


def test_a_row_depends_on_its_key_alone_and_progress_is_told() -> None:
    """The bound and the flow of a sample are the same in any batch; every network call is told, the last as the last."""
    process, data = GaussianProcess(schedule=Cosine(), levels=None), POINTS
    for steps, draws, calls in ((6, None, 6), (6, 2, 3), (None, 4, 5), (1, None, 1)):
        told: list[tuple[int, int]] = []

        def note(done: int, total: int, told: list[tuple[int, int]] = told) -> None:
            told.append((done, total))

        options: Any = {"steps": steps, "draws": draws}
        whole = bits_per_dim(HUMPS, process, data, noise=keyed(4), progress=note, **options)
        part = bits_per_dim(HUMPS, process, data[1:3], noise=keyed(4).rows(slice(1, 3)), **options)
        torch.testing.assert_close(part.total, whole.total[1:3], rtol=1e-12, atol=1e-12)
        assert told == [(i, calls) for i in range(1, calls + 1)]
    whole_flow = flow_log_prob(HUMPS, process, data, steps=4, noise=keyed(4), probes=2)
    part_flow = flow_log_prob(HUMPS, process, data[1:3], steps=4, noise=keyed(4).rows(slice(1, 3)), probes=2)
    torch.testing.assert_close(part_flow.log_prob, whole_flow.log_prob[1:3], rtol=1e-12, atol=1e-12)


def test_float32_data_is_bounded_in_float64() -> None:
    """The figures of float32 data are float64 and agree with those of float64 data to 1e-3 bits, at both kinds of T."""
    process = GaussianProcess(schedule=LinearBeta(), levels=None)
    for steps in (1000, None):
        z = torch.full((4,), 0.6, dtype=torch.float64)
        exact, rough = (
            bits_per_dim(HUMPS, process, POINTS.to(dtype), steps=steps, noise=Nodes(z=z))
            for dtype in (torch.float64, torch.float32)
        )
        assert rough.total.dtype == torch.float64
        torch.testing.assert_close(rough.total, exact.total, rtol=1e-3, atol=1e-3)


def test_the_prior_of_ddpms_linear_table() -> None:
    """L_T at T = 1000 is 2.9113e-5 bits/dim times E[x0^2]; 7.4e-6 at CIFAR-10's 0.254 (computed from DDPM's betas;
    the paper says about 1e-5: Ho et al. 2020, Sec. 4).
    """
    process = GaussianProcess(schedule=Tabulated.from_betas(linear_betas(1000)), levels=None)
    for power, expected_bits in ((1.0, 2.9113e-5), (0.254, 7.4e-6)):
        data = torch.tensor([[1.0, -1.0, 1.0, -1.0]], dtype=torch.float64) * math.sqrt(power)
        bound = bits_per_dim(GAUSSIAN, process, data, steps=1, noise=keyed(1))
        assert bound.prior.item() == pytest.approx(expected_bits, rel=2e-5 if power == 1 else 2e-3)
        assert bound.prior.item() == pytest.approx(2.9113e-5 * power, rel=1e-4)


GREY = {
    "two": (2, (0.5, 0.5)),
    "four": (4, (0.1, 0.2, 0.3, 0.4)),
    "eight": (8, (0.3, 0.05, 0.02, 0.13, 0.07, 0.08, 0.1, 0.25)),
}


def grey(levels: int, weights: Sequence[float]) -> tuple[MixtureOracle, Tensor, float]:
    """A law of grey levels from -1 to 1: its exact denoiser, its levels and its entropy in nats."""
    values = torch.linspace(-1, 1, levels, dtype=torch.float64)[:, None]
    law = torch.tensor(weights, dtype=torch.float64)
    oracle = MixtureOracle(means=values, variances=torch.zeros(levels, dtype=torch.float64), weights=law)
    return oracle, values, -(law * law.log()).sum().item()


@pytest.mark.parametrize(("levels", "weights"), GREY.values(), ids=GREY.keys())
@pytest.mark.parametrize("schedule", [LinearBeta(), RectifiedFlow(), VarianceExploding(sigma_max=50.0)])
def test_grey_levels_cost_their_entropy(schedule: Schedule, levels: int, weights: Sequence[float]) -> None:
    """With the exact denoiser the T-step bound is at least the entropy for every T, and the continuous one equals each
    level's own -log p: the integral of mmse/2 over the SNR is the entropy (Guo, Shamai & Verdu 2005, Eq. 29).
    """
    oracle, values, entropy = grey(levels, weights)
    process, rule = GaussianProcess(schedule=schedule, levels=levels), normal_grid()
    law = torch.tensor(weights, dtype=torch.float64)
    chains = [(expected(oracle, process, values, rule, steps=steps)[0] * law).sum().item() for steps in (1, 4, 40)]
    assert all(chain > entropy - 1e-9 for chain in chains)
    total, parts = expected(oracle, process, values, rule, steps=None, draws=300)
    exact = -law.log() + forgotten(oracle, process, values, rule)
    torch.testing.assert_close(total, exact, rtol=0, atol=5e-6)
    assert parts[:, 2].abs().max().item() < 1e-9


@pytest.mark.parametrize("schedule", [LinearBeta(), Cosine(), RectifiedFlow(), LogLinear()])
def test_more_steps_tighten_the_bound(schedule: Schedule) -> None:
    """The T-step bound of grey levels falls with T towards their entropy, its distance halving with the steps (Kingma
    et al. 2021, Sec. 4.2). Densities, whose belief errs at every level, have no such limit on a grid even in t.
    """
    oracle, values, entropy = grey(4, GREY["four"][1])
    process, rule, law = (
        GaussianProcess(schedule=schedule, levels=4),
        normal_grid(count=121),
        torch.tensor(GREY["four"][1]),
    )
    chains = [(expected(oracle, process, values, rule, steps=T)[0] * law).sum().item() for T in (64, 128, 256, 512)]
    gaps = [chain - entropy for chain in chains]
    assert all(before > after > 0 for before, after in itertools.pairwise(gaps))
    assert gaps[-2] / gaps[-1] == pytest.approx(2, rel=0.1)


def test_the_decoder_gives_each_level_its_interval() -> None:
    """-log p(x0 | x_t1) is that of the normal's mass halfway to the neighbours, to infinity at the ends; its variance is
    beta_tilde of the step above for "fixed small" and beta for "fixed large" (Ho et al. 2020, Eq. 13 and code).
    """
    steps, schedule = 4, Cosine()
    _, values, _ = grey(4, GREY["four"][1])
    process = GaussianProcess(schedule=schedule, levels=4)
    first, second = (schedule.at(scalar(i / steps)) for i in (1, 2))
    beta = (second.sigma**2 - (second.alpha / first.alpha * first.sigma) ** 2).item()
    stds = {0.0: math.sqrt(beta) * (first.sigma / second.sigma).item(), 1.0: first.sigma.item()}
    for fraction, std in stds.items():
        for believed in (-0.6, 0.31):

            def denoise(x_t: X, level: Level, previous: Estimate | None = None) -> Estimate:
                return Estimate(x0=torch.full_like(x_t, believed), variance_fraction=fraction)  # noqa: B023

            bound = bits_per_dim(denoise, process, values, steps=steps, noise=keyed(4))
            edges = [-math.inf, -2 / 3, 0.0, 2 / 3, math.inf]
            phi = [0.5 * (1 + math.erf((edge - believed) / std / math.sqrt(2))) for edge in edges]
            masses = [after - before for before, after in itertools.pairwise(phi)]
            assert bound.reconstruction.tolist() == pytest.approx([-math.log2(mass) for mass in masses], rel=1e-9)


def test_rate_and_distortion() -> None:
    """From the prior alone at pure noise to all but the decoder at t_1: rates rise by the bound's own terms, and the
    distortion is the exact error v sigma^2/(alpha^2 v + sigma^2) of Gaussian data (Ho et al. 2020, Sec. 4.3).
    """
    steps, count = 12, 2000
    process = GaussianProcess(schedule=Cosine(), levels=None)
    data = GAUSSIAN.draw(torch.zeros(count, 5, dtype=torch.float64), BlockNoise(key=(0,), count=count))
    bound = bits_per_dim(GAUSSIAN, process, data, steps=steps, noise=BlockNoise(key=(1,), count=count))
    table = rate_distortion(bound)
    assert [row.t for row in table] == pytest.approx([i / steps for i in range(steps, 0, -1)])
    assert table[0].rate == pytest.approx(bound.prior.mean().item())
    assert table[-1].rate == pytest.approx((bound.prior + bound.diffusion).mean().item())
    for row, before in zip(table[1:], table[:-1], strict=True):
        term = bound.steps[:, round(before.t * steps) - 2].mean().item()  # undoes the step from before.t to row.t
        assert row.rate - before.rate == pytest.approx(term)
        assert row.rate > before.rate
        assert row.distortion < before.distortion
    for row in table:
        exact = math.sqrt(GAUSSIAN.error(Cosine().at(scalar(row.t))).item())
        assert row.distortion == pytest.approx(exact, rel=4 / math.sqrt(2 * count * 5))


def test_rate_and_distortion_of_one_step() -> None:
    """A chain of one step has one row: the prior, and the belief at pure noise."""
    process = GaussianProcess(schedule=Cosine(), levels=None)
    bound = bits_per_dim(GAUSSIAN, process, POINTS, steps=1, noise=keyed(4))
    (row,) = rate_distortion(bound)
    assert (row.t, row.rate) == (1.0, pytest.approx(bound.prior.mean().item()))
    assert row.distortion == pytest.approx(bound.first_squared_error.mean().sqrt().item())


@pytest.mark.parametrize(("steps", "draws", "rows"), [(10, 3, 4), (None, 5, 4), (None, 5, 1), (10, 3, 1)])
def test_drawn_terms_make_no_table(steps: int | None, draws: int, rows: int) -> None:
    """ValueError that says to leave out draws, also for a single sample."""
    process = GaussianProcess(schedule=Cosine(), levels=None)
    bound = bits_per_dim(GAUSSIAN, process, POINTS[:rows], steps=steps, draws=draws, noise=keyed(rows))
    with pytest.raises(ValueError, match="leave out draws and give steps"):
        rate_distortion(bound)


# Bits


def kernel(share: float, rate: float) -> Tensor:
    """q(later | earlier) of one bit: rows from 0 and 1, columns to 0 and 1 (Sohl-Dickstein et al. 2015, Table App. 1)."""
    return torch.tensor(
        [[1 - (1 - share) * rate, (1 - share) * rate], [(1 - share) * (1 - rate), share + (1 - share) * rate]],
        dtype=torch.float64,
    )


def enumerated(law: Tensor, rate: float, shares: Sequence[float]) -> float:
    """The bound of a law of bits in nats, by summing over all strings x0 and x_t; ``shares`` is alpha_bar at 1/T, ..., 1.

    The reverse chain draws its bits independently, each from the exact P(x_s | x_t) of that bit.
    """
    size = law.numel().bit_length() - 1
    strings = [[(i >> (size - 1 - j)) & 1 for j in range(size)] for i in range(law.numel())]
    index = torch.tensor(strings)
    now = [kernel(share, rate) for share in shares]

    def seen(table: Tensor) -> Tensor:
        return torch.stack([table[index[:, j]][:, index[:, j]] for j in range(size)]).prod(0)  # [x0, x_t]

    total = 0.0
    for k, share in enumerate(shares):
        joint = law[:, None] * seen(now[k])
        posterior = joint / joint.sum(0)
        ones = posterior.T @ index.double()  # P(x0_j = 1 | x_t), [x_t, j]
        for j in range(size):
            x0, x_t = index[:, None, j], index[None, :, j]
            if k == 0:
                p = ones[None, :, j]
                total -= (joint * torch.where(x0 == 1, p, 1 - p).log()).sum().item()
                continue
            step = kernel(share / shares[k - 1], rate)
            truth = now[k - 1][x0, 1] * step[1, x_t] / now[k][x0, x_t]  # q(x_s = 1 | x_t, x0)
            model = sum(
                weight * now[k - 1][bit, 1] * step[1, x_t] / now[k][bit, x_t]
                for bit, weight in ((1, ones[None, :, j]), (0, 1 - ones[None, :, j]))
            )
            cost = truth * (truth / model).log() + (1 - truth) * ((1 - truth) / (1 - model)).log()
            total += (joint * cost).sum().item()
    end = now[-1][:, 1]
    for j in range(size):
        p = torch.stack([law[index[:, j] == bit].sum() for bit in (0, 1)])
        cost = torch.xlogy(end, end / rate) + torch.xlogy(1 - end, (1 - end) / (1 - rate))
        total += (p * cost).sum().item()
    return total


def enumerated_rate(process: BinomialProcess, level: Level) -> float:
    """E of the divergence rate per unit of log-SNR, over all strings x0 and x_t."""
    strings = BITS.strings
    x0, x_t = strings.repeat_interleave(8, 0), strings.repeat(8, 1)
    weight = LAW.repeat_interleave(8) * process.marginal(x0, level).log_prob(x_t).sum(1).exp()
    rate = process.divergence_rate(x0, x_t, level, BITS(x_t, level)).sum(1) / -level.dlog_snr
    return (weight * rate).sum().item()


@pytest.mark.parametrize("steps", [1, 2, 5, 40])
@pytest.mark.parametrize("schedule", [Reciprocal(), Cosine()])
def test_the_bound_of_bits_is_that_of_enumeration(schedule: Reciprocal | Cosine, steps: int) -> None:
    """For a law of 3 bits the bound is that summed over all x0 and x_t: exactly for the expectation of the terms, within
    4 standard errors for drawn noise, and at least the entropy (Sohl-Dickstein et al. 2015, Table App. 1).
    """
    process = BinomialProcess(schedule=schedule, rate=0.3)
    alpha = [schedule.at(scalar(i / steps)).alpha.item() for i in range(1, steps + 1)]
    exact = enumerated(LAW, 0.3, [a**2 for a in alpha])
    assert exact > BITS.entropy_bits * LN2 - 1e-12

    strings = BITS.strings
    x0, x_t = strings.repeat_interleave(8, 0), strings.repeat(8, 1)
    ours = 0.0
    for i in range(1, steps + 1):
        t = schedule.at(scalar(i / steps))
        weight = (LAW.repeat_interleave(8) * process.marginal(x0, t).log_prob(x_t).sum(1).exp())[:, None]
        if i == 1:
            term = -process.decode_log_prob(x0, x_t, t, BITS(x_t, t))
        else:
            term = step_divergence(process, x0, x_t, t, schedule.at(scalar((i - 1) / steps)), BITS(x_t, t))
        ours += (weight * term).sum().item()
    end = schedule.at(scalar(1.0))
    ours += (LAW[:, None] * process.marginal(strings, end).kl(process.prior(strings))).sum().item()
    assert ours == pytest.approx(exact, rel=1e-9)

    count = 4000
    data = BITS.draw(torch.zeros(count, 3, dtype=torch.float64), BlockNoise(key=(7,), count=count))
    bound = bits_per_dim(BITS, process, data, steps=steps, noise=BlockNoise(key=(8,), count=count))
    assert abs(bound.mean * 3 * LN2 - exact) < 4 * bound.standard_error * 3 * LN2


def test_the_continuous_bound_of_bits_is_their_entropy() -> None:
    """T -> infinity: the enumerated bound tends to the entropy as 1/T, the integral of the enumerated rates is the
    entropy, and so is the drawn bound within 4 standard errors: in continuous time one bit flips at a time, so
    independent bits lose nothing (Campbell et al. 2022, Proposition 2).
    """
    entropy, schedule = BITS.entropy_bits * LN2, Reciprocal()
    process = BinomialProcess(schedule=schedule, rate=0.3)
    gaps = [enumerated(LAW, 0.3, [1 - i / T for i in range(1, T + 1)]) - entropy for T in (32, 64, 128, 256)]
    assert all(before > after > 0 for before, after in itertools.pairwise(gaps))
    assert gaps[-2] / gaps[-1] == pytest.approx(2, rel=0.1)
    high, low, count = 13.3, -20.0, 600
    log_snr = high + (low - high) * (torch.arange(count, dtype=torch.float64) + 0.5) / count
    levels = schedule.at(schedule.time_of(log_snr))
    integral = sum(enumerated_rate(process, levels[i]) for i in range(count)) * (high - low) / count
    assert integral == pytest.approx(entropy, abs=5e-5)
    number = 4000
    data = BITS.draw(torch.zeros(number, 3, dtype=torch.float64), BlockNoise(key=(9,), count=number))
    bound = bits_per_dim(BITS, process, data, steps=None, draws=60, noise=BlockNoise(key=(10,), count=number))
    assert abs(bound.mean * 3 - BITS.entropy_bits) < 4 * bound.standard_error * 3
    assert bound.reconstruction.mean().item() < 1e-3


def test_the_heartbeat_of_2015() -> None:
    """K of the exact factorised reverse chain of the binary heartbeat at T = 200 is -2.682 bits within 4 standard
    errors: 20 bits, a pulse every 5, prior rate 0.2, beta = 1/(T - t + 1) (Sohl-Dickstein et al. 2015, Appendix D.1.2;
    the figure is ours, by other code).
    """
    steps, rate, count = 200, 0.2, 1000
    pulses = torch.eye(5, dtype=torch.float64).repeat(1, 4)
    schedule = Tabulated.from_betas(reciprocal_betas(steps))
    process = BinomialProcess(schedule=schedule, rate=rate)

    def denoise(x_t: X, level: Level, previous: Estimate | None = None) -> Estimate:
        logs = process.marginal(pulses, level).log_prob(x_t[:, None]).sum(-1)
        return Estimate(x0=torch.softmax(logs, 1) @ pulses)

    bound = bits_per_dim(
        denoise, process, pulses.repeat(count // 5, 1), steps=steps, noise=BlockNoise(key=(0,), count=count)
    )
    kept = process.marginal(pulses, schedule.at(scalar(1 / steps))).probability
    first = -(torch.xlogy(kept, kept) + torch.xlogy(1 - kept, 1 - kept)).sum(1).mean().item() / LN2
    k = -20 * bound.diffusion.mean().item() - first
    assert abs(k + 2.682) < 4 * 20 * bound.diffusion.std().item() / math.sqrt(count) + 0.005


# The probability flow

FLOWS = {
    "gaussian": (GAUSSIAN, POINTS),
    "mixture": (HUMPS, POINTS),
    "plane": (PLANE, torch.cat([POINTS, POINTS.flip(0)], 1)),
}


@EVERY
@pytest.mark.parametrize(("oracle", "data"), FLOWS.values(), ids=FLOWS.keys())
def test_the_flow_tells_the_exact_density(
    schedule: Schedule, oracle: GaussianOracle | MixtureOracle, data: Tensor
) -> None:
    """log p(x_0) along the probability flow of the exact denoiser is the law's own, within the solver's stated error and
    what is cut off at both ends of the log-SNR (Song et al. 2021, Eq. 39).
    """
    process = GaussianProcess(schedule=schedule, levels=None)
    flow = flow_log_prob(oracle, process, data, steps=60, noise=keyed(4))
    exact = oracle.log_density(data, schedule.at(scalar(0.0)))
    cut = 0.1 if isinstance(schedule, VarianceExploding) else 0.01  # a mean of 0.4 is still seen at sigma = 20
    assert bool(((flow.log_prob - exact).abs() < flow.solver_error + cut).all())
    assert not flow.log_prob.requires_grad
    if data.shape[1] == 1:  # where the flow is known, so is what is cut off, and only the solver errs
        with torch.no_grad():
            ends = (13.3 - 1e-9, max(-13.3, schedule.at(scalar(1.0)).log_snr.item()))
            first, last = (schedule.at(schedule.time_of(scalar(log_snr))) for log_snr in ends)
            end = oracle.flow(first.alpha * data, first, last)
            prior = Normal(mean=torch.zeros_like(end), std=torch.hypot(last.alpha, last.sigma)).log_prob(end).flatten()
            near = oracle.log_density(first.alpha * data, first) + first.alpha.log()
            cut_off = near + prior - oracle.log_density(end, last)
        assert bool(((flow.log_prob - cut_off).abs() < flow.solver_error + 1e-6).all())
    assert flow.trace_error.tolist() == [0] * 4
    assert flow.size == data.shape[1]
    torch.testing.assert_close(flow.bits_per_dim, -flow.log_prob / (data.shape[1] * LN2))
    assert flow.solver_error.max().item() < 0.02


@pytest.mark.parametrize("schedule", [LinearBeta(), RectifiedFlow(), VarianceExploding()])
def test_the_flow_is_exact_to_the_end(schedule: Schedule) -> None:
    """Standard Gaussian data is its own prior, so nothing is cut off: log p is exact within the solver's stated error
    and 1e-6, also for pictures.
    """
    unit = GaussianOracle(mean=torch.tensor(0.0), variance=torch.tensor(1.0))
    data = torch.randn(2, 1, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    flow = flow_log_prob(
        unit, GaussianProcess(schedule=schedule, levels=None), data, steps=100, noise=keyed(2), log_snr=(20.0, -20.0)
    )
    exact = unit.log_density(data, schedule.at(scalar(0.0)))
    assert bool(((flow.log_prob - exact).abs() < flow.solver_error + 1e-6).all())
    assert flow.solver_error.max().item() < 0.03


def test_the_runge_kutta_method_is_of_fourth_order() -> None:
    """The error of log p against 256 steps falls by 16 with every halving of the step, and the stated error is above
    the true one.
    """
    process = GaussianProcess(schedule=Cosine(), levels=None)

    def log_prob(steps: int) -> tuple[Tensor, Tensor]:
        flow = flow_log_prob(HUMPS, process, POINTS, steps=steps, noise=keyed(4), log_snr=(6.0, -6.0))
        return flow.log_prob, flow.solver_error

    exact, _ = log_prob(256)
    errors = []
    for steps in (16, 32, 64):
        value, stated = log_prob(steps)
        errors.append((value - exact).abs().max().item())
        assert errors[-1] < stated.max().item()
    assert observed_orders(errors)[-1] == pytest.approx(4, abs=0.3)


def test_a_solver_of_ones_own() -> None:
    """A given solver is used: Euler's method is of first order, and ``runge_kutta`` given is what is left out."""
    process = GaussianProcess(schedule=Cosine(), levels=None)

    def euler(
        slope: Callable[[Level, State], State], schedule: Schedule, state: State, log_snr: Sequence[float]
    ) -> State:
        for start, end in itertools.pairwise(log_snr):
            by = slope(schedule.at(schedule.time_of(scalar(start))), state)
            state = state[0] + (end - start) * by[0], state[1] + (end - start) * by[1]
        return state

    options: Any = {"noise": keyed(4), "log_snr": (6.0, -6.0)}
    exact = flow_log_prob(HUMPS, process, POINTS, steps=128, **options).log_prob
    errors = [
        (flow_log_prob(HUMPS, process, POINTS, steps=steps, solver=euler, **options).log_prob - exact)
        .abs()
        .max()
        .item()
        for steps in (128, 256)
    ]
    assert observed_orders(errors)[0] == pytest.approx(1, abs=0.15)
    given = flow_log_prob(HUMPS, process, POINTS, steps=16, solver=runge_kutta, **options).log_prob
    torch.testing.assert_close(
        given, flow_log_prob(HUMPS, process, POINTS, steps=16, **options).log_prob, rtol=0, atol=0
    )


@pytest.mark.parametrize("shape", [(2,), (1, 1, 2)], ids=["flat", "picture"])
def test_hutchinsons_trace_agrees_within_its_error(shape: tuple[int, ...]) -> None:
    """With Rademacher probes the trace is unbiased: log p is the exact trace's within 4 trace_error, which falls as
    1/sqrt(probes) and is NaN for one; a diagonal Jacobian it tells exactly (Grathwohl et al. 2019).
    """
    process, count = GaussianProcess(schedule=Cosine(), levels=None), 40
    data = PLANE.draw(torch.zeros(count, 2, dtype=torch.float64), BlockNoise(key=(0,), count=count)).view(count, *shape)
    oracle = MixtureOracle(means=PLANE.means.view(3, *shape), variances=PLANE.variances, weights=PLANE.weights)
    exact = flow_log_prob(oracle, process, data, steps=24, noise=keyed(count))
    assert exact.trace_error.tolist() == [0] * count
    rough = flow_log_prob(oracle, process, data, steps=24, noise=keyed(count), probes=4)
    fine = flow_log_prob(oracle, process, data, steps=24, noise=keyed(count), probes=16)
    off = (fine.log_prob - exact.log_prob) / fine.trace_error
    assert off.abs().max().item() < 5  # of 40 samples, each with 15 degrees of freedom
    assert abs(off.mean().item()) < 4 / math.sqrt(count)
    assert off.square().mean().item() == pytest.approx(15 / 13, rel=0.6)
    ratio = rough.trace_error.square().mean() / fine.trace_error.square().mean()
    assert ratio.item() == pytest.approx(4, rel=0.5)
    single = flow_log_prob(oracle, process, data[:2], steps=4, noise=keyed(2), probes=1)
    assert bool(single.trace_error.isnan().all())
    diagonal = flow_log_prob(GAUSSIAN, process, data, steps=24, noise=keyed(count), probes=2)
    plain = flow_log_prob(GAUSSIAN, process, data, steps=24, noise=keyed(count))
    torch.testing.assert_close(diagonal.log_prob, plain.log_prob, rtol=0, atol=1e-9)
    assert diagonal.trace_error.max().item() < 1e-9


def test_the_flow_bounds_grey_levels_from_below() -> None:
    """Of grey levels the mean of log_prob over the dequantisation is E log p(x + u) + log width, which is at most the
    log-probability of the level's interval (Theis et al. 2016, Sec. 3.1), so the bits are at least the exact ones.
    """
    levels, count = 4, 250
    _, values, _ = grey(levels, GREY["four"][1])
    oracle = MixtureOracle(
        means=values,
        variances=torch.full((4,), 0.04, dtype=torch.float64),
        weights=torch.tensor(GREY["four"][1], dtype=torch.float64),
    )
    process, width = GaussianProcess(schedule=Cosine(), levels=levels), 2 / (levels - 1)
    data = values.repeat_interleave(count, 0)
    flow = flow_log_prob(oracle, process, data, steps=24, noise=keyed(len(data)))
    ours = flow.log_prob.view(4, count)
    fine = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000 - 0.5
    inside = (values + width * fine).view(-1, 1)
    density = oracle.log_density(inside, Cosine().at(scalar(0.0))).view(4, 4000)
    error = ours.std(1) / math.sqrt(count)
    assert bool(((ours.mean(1) - density.mean(1) - math.log(width)).abs() < 4 * error + 1e-3).all())
    interval = density.exp().mean(1).log() + math.log(width)
    assert bool((ours.mean(1) < interval).all())
    entropy = -sum(w * math.log(w) for w in GREY["four"][1])
    law = torch.tensor(GREY["four"][1], dtype=torch.float64)
    assert -(ours.mean(1) * law).sum().item() > entropy


# Learned schedules, and what is refused


def test_learned_schedules_are_bounded_without_a_graph() -> None:
    """The bound of a learned chain is a number: nothing of it holds a graph, and it is the table's own."""
    table = Tabulated.from_betas((0.1, 0.3, 0.5, 0.7, 0.9))
    bounds = [
        bits_per_dim(GAUSSIAN, GaussianProcess(schedule=schedule, levels=None), POINTS, steps=5, noise=keyed(4))
        for schedule in (LearnedBetas(table), table)
    ]
    assert not bounds[0].total.requires_grad
    torch.testing.assert_close(bounds[0].total, bounds[1].total, rtol=1e-12, atol=1e-12)


DENSITY = GaussianProcess(schedule=Cosine(), levels=None)
COIN = BinomialProcess(schedule=Cosine())


@pytest.mark.parametrize(
    ("process", "data", "options", "message"),
    [
        (DENSITY, POINTS, {"steps": 0}, "at least 1 step"),
        (DENSITY, POINTS, {"steps": -1}, "at least 1 step"),
        (DENSITY, POINTS, {"steps": 5, "draws": 0}, "at least 1 step and 1 draw"),
        (DENSITY, POINTS, {"steps": None, "draws": 0}, "at least 1 step and 1 draw"),
        (DENSITY, POINTS, {"steps": 5, "draws": 5}, "4 terms to draw from, got draws=5"),
        (DENSITY, POINTS, {"steps": 1, "draws": 1}, "0 terms to draw from, got draws=1"),
        (DENSITY, POINTS, {"steps": None, "first_log_snr": -30.0}, "falls from data to noise"),
        (DENSITY, POINTS * math.nan, {"steps": 2}, "must be finite"),
        (DENSITY, POINTS / 0, {"steps": None}, "must be finite"),
        (DENSITY, torch.ones(4, 1, dtype=torch.int64), {"steps": 2}, "floating-point numbers, got torch.int64"),
        (GaussianProcess(schedule=Cosine()), torch.eye(4).double(), {"steps": 2}, "256 grey levels"),
        (GaussianProcess(schedule=Cosine()), POINTS, {"steps": None}, "256 grey levels"),
        (GaussianProcess(schedule=Cosine(), levels=2), 3 * torch.ones(4, 1).double(), {"steps": 2}, "2 grey levels"),
        (COIN, POINTS, {"steps": 2}, "one of bits"),
        (COIN, POINTS, {"steps": None}, "one of bits"),
        (COIN, 2 * torch.eye(4).double() - 1, {"steps": 2}, "one of bits"),
        (COIN, torch.ones(4, 1, dtype=torch.bool), {"steps": 2}, "floating-point numbers"),
    ],
)
def test_the_bound_refuses(process: Process, data: Tensor, options: dict[str, Any], message: str) -> None:
    """ValueError saying what was given and what to do: chains without steps, too many draws, broken or foreign data."""

    def believe(x_t: X, level: Level, previous: Estimate | None = None) -> Estimate:
        return Estimate(x0=x_t)

    with pytest.raises(ValueError, match=message):
        bits_per_dim(believe, process, data, noise=keyed(4), **options)


@pytest.mark.parametrize(
    ("process", "data", "options", "message"),
    [
        (DENSITY, POINTS, {"steps": 0}, "at least 2 steps"),
        (DENSITY, POINTS, {"steps": 1}, "at least 2 steps"),
        (DENSITY, POINTS, {"steps": 4, "probes": 0}, "1 probe"),
        (DENSITY, POINTS, {"steps": 4, "log_snr": (-5.0, 5.0)}, "falls from data to noise"),
        (DENSITY, POINTS * math.nan, {"steps": 4}, "must be finite"),
        (DENSITY, torch.ones(4, 1, dtype=torch.int64), {"steps": 4}, "floating-point numbers"),
        (GaussianProcess(schedule=Cosine()), POINTS, {"steps": 4}, "256 grey levels"),
    ],
)
def test_the_flow_refuses(process: GaussianProcess, data: Tensor, options: dict[str, Any], message: str) -> None:
    """ValueError saying what was given and what to do."""
    with pytest.raises(ValueError, match=message):
        flow_log_prob(GAUSSIAN, process, data, noise=keyed(4), **options)


def test_noise_for_another_batch_is_refused() -> None:
    """As many keys as samples."""
    with pytest.raises(ValueError, match="3 keys"):
        bits_per_dim(GAUSSIAN, DENSITY, POINTS, steps=2, noise=keyed(3))


def test_times_are_of_the_type_that_levels_are() -> None:
    """A bound's times are float64, whatever the data: levels can be asked for them."""
    bound: Bound = bits_per_dim(GAUSSIAN, DENSITY, POINTS.float(), steps=4, draws=2, noise=keyed(4))
    times: Time = bound.times
    assert times.dtype == torch.float64
