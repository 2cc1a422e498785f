"""The loss against direct computation, invariance to the parameterization, its minimum; the
bound as an objective against the bound, and what learned variances and schedules get of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import pytest
import torch
from torch import Tensor, nn

from unstir.diffusion.denoiser import Denoiser, NetworkDenoiser
from unstir.diffusion.learned import LearnedBetas, LearnedLogSNR
from unstir.diffusion.likelihood import bits_per_dim
from unstir.diffusion.noise import BlockNoise, KeyedNoise, OffsetNoise
from unstir.diffusion.objective import (
    WEIGHTS,
    Huber,
    Hybrid,
    MinSNR,
    Offset,
    Simple,
    VariationalBound,
    Weight,
    WeightEDM,
    absolute,
    squared,
    unbiased,
    weight_bounded,
    weight_noise,
    weight_velocity,
    weight_x0,
)
from unstir.diffusion.parameterization import (
    PARAMETERIZATIONS,
    Affine,
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
from unstir.diffusion.process import BinomialProcess, Estimate, GaussianProcess, Process
from unstir.diffusion.schedule import (
    Cosine,
    Level,
    LinearBeta,
    LogLinear,
    Reciprocal,
    RectifiedFlow,
    Schedule,
    Tabulated,
    VarianceExploding,
    linear_betas,
)
from unstir.diffusion.times import (
    EndTime,
    LogitNormalTimes,
    LogNormalTimes,
    LogSNRTimes,
    LossAwareTimes,
    Times,
    UniformTimes,
)
from unstir.typing import Noise
from unstir.verify.oracles import BitsOracle, GaussianOracle


@dataclass(frozen=True, kw_only=True, eq=False)
class Nothing:
    """A condition that says nothing of its samples."""

    count: int

    def cat(self, other: Self) -> Self:
        return type(self)(count=self.count + other.count)

    def rows(self, index: slice) -> Self:
        return type(self)(count=len(range(self.count)[index]))


@dataclass(frozen=True, kw_only=True)
class Between(Times):
    """Times that do not come near the ends, on a path where float32 would blur what is compared."""

    low: float = 0.05
    high: float = 0.95

    def draw(self, schedule: Schedule, count: int, noise: KeyedNoise) -> Tensor:
        return self.low + (self.high - self.low) * noise.uniform(torch.zeros(count, dtype=torch.float64))

    def density(self, schedule: Schedule, t: Tensor) -> Tensor:
        return torch.full_like(t, 1 / (self.high - self.low))


class Knowing(nn.Module):
    """A network that outputs what stands for a denoiser's belief, in the parameterization it is asked for."""

    in_channels = out_channels = 1

    def __init__(self, belief: Denoiser, schedule: Schedule, parameterization: Affine) -> None:
        super().__init__()
        self.belief, self.schedule, self.parameterization = belief, schedule, parameterization
        self.outputs: list[Tensor] = []

    def forward(self, x: Tensor, scalar: Tensor, condition: Nothing) -> Tensor:
        level = self.schedule.at((scalar.double() / 1000).clamp(max=1))
        self.outputs.append(self.parameterization.target(self.belief(x, level).x0, x, level))
        return self.outputs[-1]


def denoiser(schedule: Schedule, parameterization: Affine, belief: Denoiser) -> NetworkDenoiser[Nothing]:
    return NetworkDenoiser(
        Knowing(belief, schedule, parameterization), GaussianProcess(schedule=schedule), parameterization
    )


def keyed(count: int) -> KeyedNoise:
    return KeyedNoise.from_seeds(range(count))


ORACLE = GaussianOracle(mean=torch.tensor(0.4), variance=torch.tensor(0.3))
BIASED = GaussianOracle(mean=torch.tensor(-0.2), variance=torch.tensor(0.9))
COUNT = 64


def data(count: int, sites: int = 5) -> Tensor:
    return ORACLE.draw(torch.zeros(count, sites, dtype=torch.float64), keyed(count).at(99))


def drawn(schedule: Schedule, times: Times, x0: Tensor, noise: KeyedNoise) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Alpha, sigma (one a row), the noise and x_t that the loss must have used, computed from its documented sub-
    keys.
    """
    level = schedule.at(times.draw(schedule, x0.shape[0], noise.at(0)))
    alpha, sigma = level.alpha[:, None], level.sigma[:, None]
    z = noise.at(1).normal(x0)
    return alpha, sigma, z, alpha * x0 + sigma * z


@pytest.mark.parametrize("num_steps", [None, 50])
def test_noise_weight_is_ddpms_simple_loss(schedule: Schedule, num_steps: int | None) -> None:
    """For a network that predicts noise, the loss is |eps - eps_hat|^2, mean over sites (Ho et al. 2020, Eq. 14)."""
    times = Between() if num_steps is None else UniformTimes(num_steps=num_steps)
    if isinstance(schedule, RectifiedFlow) and num_steps is not None:
        pytest.skip("t = 1 has no signal there, and noise prediction is refused")
    x0 = data(COUNT)
    model = denoiser(schedule, PredictNoise(), BIASED)
    loss = Simple(weight=weight_noise, times=times)(model, x0, Nothing(count=COUNT), keyed(COUNT))
    _, _, z, _ = drawn(schedule, times, x0, keyed(COUNT))
    assert isinstance(model.network, Knowing)
    direct = (z - model.network.outputs[0]).square().mean(1)
    torch.testing.assert_close(loss.per_sample, direct, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("schedule", "kind"),
    [(RectifiedFlow(), PredictFlow), (Cosine(), PredictV), (LinearBeta(), PredictV)],
    ids=["flow", "cosine-v", "linear-v"],
)
def test_velocity_weight_is_the_velocity_error(schedule: Schedule, kind: type[Affine]) -> None:
    """1/sigma^2 on x0 is the squared error on the flow's velocity, or on v, where sigma > 0.05 (Li & He 2025)."""
    x0, times = data(COUNT), Between(low=0.1)
    model = denoiser(schedule, kind(), BIASED)
    loss = Simple(weight=weight_velocity, times=times)(model, x0, Nothing(count=COUNT), keyed(COUNT))
    alpha, sigma, z, _ = drawn(schedule, times, x0, keyed(COUNT))
    assert sigma.min().item() > 0.05
    truth = z - x0 if kind is PredictFlow else alpha * z - sigma * x0
    assert isinstance(model.network, Knowing)
    torch.testing.assert_close(
        loss.per_sample, (truth - model.network.outputs[0]).square().mean(1), rtol=1e-8, atol=1e-10
    )


def test_velocity_weight_is_bounded() -> None:
    """At most 1/0.05^2 = 400, so that clean samples do not rule the batch; also at sigma = 0."""
    level = RectifiedFlow().at(torch.tensor([0.0, 0.01, 0.05, 0.5, 1.0], dtype=torch.float64))
    assert weight_velocity(level).tolist() == pytest.approx([400, 400, 400, 4, 1])
    assert weight_x0(level).tolist() == [1] * 5
    assert weight_noise(level[1:]).tolist() == pytest.approx([99**2, 19**2, 1, 0])


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_the_oracle_attains_the_analytic_minimum(schedule: Schedule, t: float) -> None:
    """E |x0 - D|^2 = v sigma^2/(alpha^2 v + sigma^2) for the exact denoiser, within 4 standard errors; a wrong one
    costs more.
    """
    x0 = data(8, sites=2000)
    objective = Simple(weight=weight_x0, times=Between(low=t, high=t))
    cost = [
        objective(denoiser(schedule, PredictX0(), belief), x0, Nothing(count=8), keyed(8)).per_sample.mean().item()
        for belief in (ORACLE, BIASED)
    ]
    minimum = ORACLE.error(schedule.at(torch.tensor(t, dtype=torch.float64))).item()
    assert cost[0] == pytest.approx(minimum, rel=4 * math.sqrt(2 / x0.numel()))
    if minimum > 1e-3:  # nearer to the data any denoiser is right
        assert cost[1] > cost[0]


def test_the_minimum_of_the_linear_network_is_the_oracle() -> None:
    """The gradient of the loss vanishes at the exact gain and bias and nowhere near: it is minimised by E[x0 | x_t]."""

    class Line(nn.Module):
        in_channels = out_channels = 1

        def __init__(self, gain: float, bias: float) -> None:
            super().__init__()
            self.line = nn.Parameter(torch.tensor([gain, bias], dtype=torch.float64))

        def forward(self, x: Tensor, scalar: Tensor, condition: Nothing) -> Tensor:
            return self.line[0] * x + self.line[1]

    level = Cosine().at(torch.tensor(0.5, dtype=torch.float64))
    ends = ORACLE(torch.tensor([[0.0], [1.0]], dtype=torch.float64), level).x0.flatten().tolist()
    exact = (ends[1] - ends[0], ends[0])
    x0 = data(8, sites=2000)
    for gain, bias, limit in (
        (*exact, 0.03),
        (exact[0] + 0.2, exact[1], math.inf),
        (exact[0], exact[1] - 0.2, math.inf),
    ):
        network = Line(gain, bias)
        model: NetworkDenoiser[Nothing] = NetworkDenoiser(network, GaussianProcess(schedule=Cosine()), PredictX0())
        loss = Simple(weight=weight_x0, times=Between(low=0.5, high=0.5))(model, x0, Nothing(count=8), keyed(8))
        loss.per_sample.mean().backward()
        assert network.line.grad is not None
        size = network.line.grad.abs().max().item()
        assert size < limit if limit < 1 else size > 0.15


def test_a_row_depends_on_its_key_alone(schedule: Schedule) -> None:
    """The loss of a sample is the same in any batch: its time and its noise are its key's."""
    objective, x0 = Simple(weight=weight_velocity, times=UniformTimes()), data(6)
    model = denoiser(schedule, PredictV(), BIASED)
    whole = objective(model, x0, Nothing(count=6), keyed(6))
    part = objective(model, x0[2:5], Nothing(count=3), keyed(6).rows(slice(2, 5)))
    torch.testing.assert_close(part.per_sample, whole.per_sample[2:5], rtol=1e-13, atol=0)
    torch.testing.assert_close(part.parts["log_snr"], whole.parts["log_snr"][2:5], rtol=0, atol=0)
    again = objective(model, x0, Nothing(count=6), keyed(6))
    assert torch.equal(again.per_sample, whole.per_sample)


def test_times_and_noise_of_a_sample_are_independent() -> None:
    """The noise of a row does not tell its time (correlation below 4 standard errors)."""
    count = 4000
    t = UniformTimes().draw(Cosine(), count, keyed(count).at(0))
    z = keyed(count).at(1).normal(torch.zeros(count, 1, dtype=torch.float64)).flatten()
    for values in (z, z.abs()):
        assert abs(torch.corrcoef(torch.stack([t, values]))[0, 1].item()) < 4 / math.sqrt(count)


def test_parts_say_what_the_loss_was_made_of(schedule: Schedule) -> None:
    """x0_error is the plain squared error and log_snr that of the drawn level; the weight joins them; neither holds a
    graph.
    """
    x0, times = data(COUNT), Between()
    model = denoiser(schedule, PredictX0(), BIASED)
    scale = nn.Parameter(torch.ones((), dtype=torch.float64))
    model.network.register_parameter("scale", scale)
    loss = Simple(weight=weight_velocity, times=times)(model, x0, Nothing(count=COUNT), keyed(COUNT))
    level = schedule.at(times.draw(schedule, COUNT, keyed(COUNT).at(0)))
    assert set(loss.parts) == {"x0_error", "log_snr"}
    torch.testing.assert_close(loss.parts["log_snr"], level.log_snr, rtol=0, atol=0)
    torch.testing.assert_close(loss.per_sample, weight_velocity(level) * loss.parts["x0_error"], rtol=1e-14, atol=0)
    assert not any(part.requires_grad for part in loss.parts.values())


def test_the_chain_may_be_trained_in_float32_at_its_first_step() -> None:
    """At t = 1/1000 of DDPM's table the float32 loss is finite and equals the float64 one to 1 %."""
    schedule, times = Tabulated.from_betas(linear_betas(1000)), Between(low=0.001, high=0.001)
    costs = []
    for dtype in (torch.float32, torch.float64):
        x0 = data(COUNT).to(dtype)
        loss = Simple(weight=weight_noise, times=times)(
            denoiser(schedule, PredictNoise(), BIASED), x0, Nothing(count=COUNT), keyed(COUNT)
        )
        assert loss.per_sample.dtype == dtype
        costs.append(loss.per_sample.mean().item())
    assert costs[0] == pytest.approx(costs[1], rel=0.2)  # float32 and float64 noise of one key are different numbers


# Every parameterization, weight and distance


@dataclass(frozen=True, kw_only=True, eq=False)
class Nodes(Noise):
    """Noise whose normal numbers and whose shares are given, one a row, the same whenever they are asked for."""

    z: Tensor
    share: Tensor

    def at(self, *key: int) -> Self:
        return self

    def rows(self, index: slice) -> Self:
        return type(self)(z=self.z[index], share=self.share[index])

    def normal(self, like: Tensor) -> Tensor:
        return self.z.to(like).view(-1, *[1] * (like.ndim - 1)).expand_as(like)

    def uniform(self, like: Tensor) -> Tensor:
        return self.share.to(like).view(-1, *[1] * (like.ndim - 1)).expand_as(like)


def evenly(count: int) -> Tensor:
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


class Saying(nn.Module):
    """A network that says what it was given to say."""

    in_channels = out_channels = 1

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor, scalar: Tensor, condition: Nothing) -> Tensor:
        return self.output


@dataclass(frozen=True, kw_only=True, eq=False)
class Told:
    """A parameterization that does not listen to its network, but knows a law."""

    belief: Denoiser
    fraction: float | None = None

    def encode(self, x_t: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        return x_t, torch.zeros(x_t.shape[0])

    def decode(self, output: Tensor, x_t: Tensor, level: Level) -> Estimate:
        return Estimate(x0=self.belief(x_t, level).x0, variance_fraction=self.fraction)

    def target(self, x0: Tensor, x_t: Tensor, level: Level) -> Tensor:
        return x0


def told(process: Process, belief: Denoiser, fraction: float | None = None) -> NetworkDenoiser[Nothing]:
    """The denoiser of a known law, for objectives, which want a network."""
    parameterization: Any = Told(belief=belief, fraction=fraction)
    return NetworkDenoiser(Saying(torch.zeros(1)), process, parameterization)


def gaussian_kinds(process: GaussianProcess) -> dict[str, Parameterization]:
    """Every parameterization of real numbers."""
    return {
        "noise": PredictNoise(),
        "x0": PredictX0(),
        "v": PredictV(),
        "flow": PredictFlow(),
        "score": PredictScore(),
        "edm": PredictEDM(sigma_data=0.7),
        "mean": PredictMean(process=process, num_steps=50),
        "fixed_large": FixedLarge(mean=PredictV()),
        "learned_range": LearnedRange(mean=PredictNoise()),
        "learned_variance": LearnedVariance(mean=PredictX0(), process=process, num_steps=50),
    }


def binomial_kinds(process: BinomialProcess) -> dict[str, Parameterization]:
    """Every parameterization of bits."""
    return {
        "mean": PredictMean(process=process, num_steps=20),
        "bit": PredictBit(),
        "flip": PredictFlip(process=process, num_steps=20),
    }


def saying(
    process: Process, kind: Parameterization, belief: Tensor, x_t: Tensor, level: Level
) -> NetworkDenoiser[Nothing]:
    """A denoiser whose network says what stands for a belief, and anything of a variance."""
    output = kind.target(belief, x_t, level)
    if isinstance(kind, LearnedRange | LearnedVariance):
        output = torch.cat([output, torch.sin(40 * x_t)], 1)
    return NetworkDenoiser(Saying(output), process, kind)


@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS.keys())
def test_the_loss_does_not_depend_on_the_parameterization(schedule: Schedule, weight: Weight) -> None:
    """The same belief costs weight |x0 - D|^2 whatever the network was asked for: the implied weight on the x0 error is
    the same for every parameterization (C33).
    """
    x0, times, process = data(COUNT), Between(), GaussianProcess(schedule=schedule)
    _, _, _, x_t = drawn(schedule, times, x0, keyed(COUNT))
    level = schedule.at(times.draw(schedule, COUNT, keyed(COUNT).at(0)))
    belief = BIASED(x_t, level).x0
    expected = weight(level) * (belief - x0).square().mean(1)
    kinds = gaussian_kinds(process)
    assert {*kinds, "bit", "flip"} == set(PARAMETERIZATIONS)
    for name, kind in kinds.items():
        model = saying(process, kind, belief, x_t, level)
        loss = Simple(weight=weight, times=times)(model, x0, Nothing(count=COUNT), keyed(COUNT))
        torch.testing.assert_close(loss.per_sample, expected, rtol=1e-7, atol=1e-9, msg=name)


def test_bits_cost_the_same_in_every_parameterization() -> None:
    """For bits the loss and the bound are those of the belief, whether it is told as a bit, a flip or a mean (C33)."""
    process, num_steps = BinomialProcess(schedule=Reciprocal(), rate=0.4), 20
    x0 = (torch.rand(COUNT, 3, generator=torch.Generator().manual_seed(0)) < 0.5).double()
    times, noise = UniformTimes(num_steps=num_steps), keyed(COUNT)
    level = process.schedule.at(times.draw(process.schedule, COUNT, noise.at(0)))
    x_t = process.marginal(x0, level).sample(noise.at(1))
    belief = torch.sigmoid(torch.randn(COUNT, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    kinds = binomial_kinds(process)
    simple, bound = Simple(weight=weight_x0, times=times), VariationalBound(num_steps=num_steps)
    losses: list[list[Tensor]] = [[], []]
    for kind in kinds.values():
        model = saying(process, kind, belief, x_t, level)
        losses[0].append(simple(model, x0, Nothing(count=COUNT), noise).per_sample)
        losses[1].append(bound(model, x0, Nothing(count=COUNT), noise).per_sample)
    torch.testing.assert_close(losses[0][0], (belief - x0).square().mean(1), rtol=1e-7, atol=1e-9)
    for several in losses:
        for other in several[1:]:
            torch.testing.assert_close(other, several[0], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("t", [0.02, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weights_are_the_papers(t: float, gamma: float) -> None:
    """min(S, g)/S on the error of the noise, min(S, g)/(S + 1) on that of v, min(S, g) on that of x0 (Hang et al. 2023,
    Sec. 3.4); not min(S + 1, g)/(S + 1) on v, as diffusers once had (C33).
    """
    schedule, size, x0, times = Cosine(), 0.1, data(4), Between(low=t, high=t)
    level = schedule.at(torch.full((4,), t, dtype=torch.float64))
    snr = torch.exp(level.log_snr[0]).item()
    _, _, _, x_t = drawn(schedule, times, x0, keyed(4))
    capped = min(snr, gamma)
    for kind, share in ((PredictNoise(), capped / snr), (PredictV(), capped / (snr + 1)), (PredictX0(), capped)):
        model = NetworkDenoiser(Saying(kind.target(x0, x_t, level) + size), GaussianProcess(schedule=schedule), kind)
        loss = Simple(weight=MinSNR(gamma=gamma), times=times)(model, x0, Nothing(count=4), keyed(4))
        assert loss.per_sample.tolist() == pytest.approx([share * size**2] * 4, rel=1e-9)


@pytest.mark.parametrize("schedule", [VarianceExploding(), Cosine(), RectifiedFlow()])
def test_edms_weight_is_the_error_of_its_network(schedule: Schedule) -> None:
    """alpha^2/sigma^2 + 1/d^2 on x0 is 1 on the output F of EDM's preconditioned network, lambda c_out^2 = 1 (Karras et
    al. 2022, Sec. 5); and alpha^2/sigma^2 kept in [1, 5] is what ``weight_bounded`` says.
    """
    x0, times, kind = data(COUNT), Between(), PredictEDM(sigma_data=0.7)
    level = schedule.at(times.draw(schedule, COUNT, keyed(COUNT).at(0)))
    _, _, _, x_t = drawn(schedule, times, x0, keyed(COUNT))
    slip = torch.linspace(-1, 1, COUNT, dtype=torch.float64)[:, None].expand_as(x0)
    model = NetworkDenoiser(Saying(kind.target(x0, x_t, level) + slip), GaussianProcess(schedule=schedule), kind)
    loss = Simple(weight=WeightEDM(sigma_data=0.7), times=times)(model, x0, Nothing(count=COUNT), keyed(COUNT))
    torch.testing.assert_close(loss.per_sample, slip[:, 0] ** 2, rtol=1e-9, atol=1e-12)
    snr = torch.exp(level.log_snr)
    torch.testing.assert_close(weight_bounded(level), snr.clamp(1, 5))


def test_distances_are_of_the_weighted_error() -> None:
    """l1 is sqrt(weight) |error|; Huber is the square within delta and a tangent straight line beyond it; of unlimited
    delta it is the square (Huber 1964).
    """
    x0, times, schedule = data(COUNT), Between(), Cosine()
    model = told(GaussianProcess(schedule=schedule), BIASED)
    _, _, _, x_t = drawn(schedule, times, x0, keyed(COUNT))
    level = schedule.at(times.draw(schedule, COUNT, keyed(COUNT).at(0)))
    error = (weight_noise(level).sqrt()[:, None] * (BIASED(x_t, level).x0 - x0)).abs()
    for distance, cost in (
        (absolute, error),
        (squared, error**2),
        (Huber(delta=0.5), torch.where(error < 0.5, error**2, error - 0.25)),
        (Huber(delta=1e9), error**2),
    ):
        loss = Simple(weight=weight_noise, times=times, distance=distance)(
            model, x0, Nothing(count=COUNT), keyed(COUNT)
        )
        torch.testing.assert_close(loss.per_sample, cost.mean(1), rtol=1e-9, atol=1e-12)
    assert bool((error < 0.5).any())
    assert bool((error > 0.5).any())
    corner = torch.tensor([0.7 - 1e-7, 0.7 + 1e-7], dtype=torch.float64, requires_grad=True)
    value = Huber(delta=0.7)(corner)
    (slope,) = torch.autograd.grad(value.sum(), corner)
    torch.testing.assert_close(value[0], value[1], rtol=1e-6, atol=0)
    torch.testing.assert_close(slope[0], slope[1], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "times", [UniformTimes(), LogitNormalTimes(mean=-0.5, std=0.7, uniform=0.3), LogNormalTimes(), LogSNRTimes()]
)
def test_the_weight_divided_by_the_density_is_that_of_uniform_times(times: Times) -> None:
    """E weight/density over the drawn times is the mean weight over uniform ones, where the density is not 0; of uniform
    times the weight is not touched.
    """
    schedule, count = RectifiedFlow(), 20_000

    def bump(level: Level) -> Tensor:
        return (30 * level.t * (1 - level.t)) ** 2

    shares = Nodes(z=torch.special.ndtri(evenly(count)), share=evenly(count))
    t = times.draw(schedule, count, shares if not isinstance(times, LogitNormalTimes) else keyed(count))
    mean = unbiased(bump, times, schedule)(schedule.at(t)).mean().item()
    even = evenly(count)
    exact = (bump(schedule.at(even)) * (times.density(schedule, even) > 0)).mean().item()
    assert mean == pytest.approx(exact, rel=0.03)
    if isinstance(times, UniformTimes):
        torch.testing.assert_close(unbiased(bump, times, schedule)(schedule.at(t)), bump(schedule.at(t)))


# Importance sampling


# The bound as an objective

DENSITY = GaussianProcess(schedule=LogLinear(high=8.0, low=-9.0), levels=None)


@pytest.mark.parametrize("num_steps", [1, 2, 7])
@pytest.mark.parametrize("levels", [None, 5])
@pytest.mark.parametrize("fraction", [None, 0.4, 1.0])
def test_the_bound_as_an_objective_is_the_bound(num_steps: int, levels: int | None, fraction: float | None) -> None:
    """Each of T steps drawn once, the mean loss is bits_per_dim's total in nats per element, to rounding: T times one
    term, plus the prior, without bias (Ho et al. 2020, Eq. 5).
    """
    process = GaussianProcess(schedule=Cosine(), levels=levels)
    model, values = told(process, BIASED, fraction), torch.tensor([[-0.5, 1.0]], dtype=torch.float64)
    for z in (-0.8, 1.3):
        noise = Nodes(z=torch.full((num_steps,), z, dtype=torch.float64), share=evenly(num_steps))
        loss = VariationalBound(num_steps=num_steps)(
            model, values.expand(num_steps, -1), Nothing(count=num_steps), noise
        )
        whole = bits_per_dim(
            model.given(Nothing(count=1)), process, values, steps=num_steps, noise=noise.rows(slice(0, 1))
        )
        assert loss.per_sample.mean().item() == pytest.approx(whole.mean * math.log(2), rel=1e-9)


@pytest.mark.parametrize("times", [LogSNRTimes(), LogSNRTimes(low=-9.0, high=8.0), None])
def test_the_continuous_objective_is_the_bound_without_its_decoder(times: Times | None) -> None:
    """At even log-SNRs the mean loss is prior + diffusion of bits_per_dim in nats per element, to rounding; uniform
    times are the same on this schedule (Kingma et al. 2021, Eq. 17).
    """
    count, values = 50, torch.tensor([[-0.5, 1.0]], dtype=torch.float64)
    model, z = told(DENSITY, BIASED), torch.full((count,), 0.7, dtype=torch.float64)
    loss = VariationalBound(num_steps=None, times=times)(
        model, values.expand(count, -1), Nothing(count=count), Nodes(z=z, share=evenly(count))
    )
    whole = bits_per_dim(
        model.given(Nothing(count=1)),
        DENSITY,
        values,
        steps=None,
        draws=count,
        noise=Nodes(z=z[:1], share=torch.tensor([0.5])),
    )
    expected = (whole.prior + whole.diffusion).item() * math.log(2)
    assert loss.per_sample.mean().item() == pytest.approx(expected, rel=1e-8)


def filled(losses: Tensor, history: int = 3) -> LossAwareTimes:
    """Times that heard each step's loss ``history`` times, scattered around it with a known mean square."""
    times = LossAwareTimes(num_steps=losses.numel(), history=history, uniform=0.1)
    t = torch.arange(1, losses.numel() + 1, dtype=torch.float64) / losses.numel()
    for _ in range(history):
        times.learn(t, losses)
    return times


def test_importance_sampling_leaves_the_bound_alone() -> None:
    """With loss-aware times the mean loss is the same bound: the density that divides is the one that was drawn from,
    before this batch was heard; and afterwards it has been heard (Nichol & Dhariwal 2021, Eq. 18).
    """
    num_steps, count = 6, 3000
    process, values = GaussianProcess(schedule=Cosine(), levels=None), torch.tensor([[-0.5, 1.0]], dtype=torch.float64)
    times = filled(torch.tensor([9.0, 3.0, 1.0, 0.5, 0.2, 0.1]))
    density = times.density(Cosine(), torch.arange(1, 7, dtype=torch.float64) / 6)
    model = told(process, BIASED)
    noise = Nodes(z=torch.full((count,), 0.4, dtype=torch.float64), share=evenly(count))
    bound = VariationalBound(num_steps=num_steps, times=times)
    loss = bound(model, values.expand(count, -1), Nothing(count=count), noise).per_sample
    denoise = model.given(Nothing(count=1))
    whole = bits_per_dim(denoise, process, values, steps=num_steps, noise=noise.rows(slice(0, 1)))
    assert loss.mean().item() == pytest.approx(whole.mean * math.log(2), rel=2e-3)  # shares are whole multiples of 1/N
    prior = whole.prior.item() * math.log(2)
    terms = torch.cat([whole.reconstruction, whole.steps[0]]) * math.log(2)
    steps = torch.searchsorted(density.cumsum(0) / num_steps, evenly(count), right=True)
    torch.testing.assert_close(loss, num_steps * terms[steps] / density[steps] + prior, rtol=1e-9, atol=1e-12)
    heard = times.losses.square().mean(1).sqrt()
    torch.testing.assert_close(heard, (num_steps * terms).abs(), rtol=1e-6, atol=1e-9)


def test_the_bound_of_bits_as_an_objective() -> None:
    """For a law of 3 bits, said as logits, the mean loss over many draws is bits_per_dim within 4 standard errors, on T
    steps; in continuous time it is prior + diffusion (Sohl-Dickstein et al. 2015, Eq. 14).
    """
    law = torch.tensor([0.30, 0.05, 0.02, 0.13, 0.07, 0.08, 0.10, 0.25], dtype=torch.float64)
    oracle, process, count = BitsOracle(table=law, rate=0.3), BinomialProcess(schedule=Reciprocal(), rate=0.3), 6000

    class Logit(nn.Module):
        in_channels = out_channels = 3

        def forward(self, x: Tensor, scalar: Tensor, condition: Nothing) -> Tensor:
            level = process.schedule.at((scalar.double() / 1000).clamp(max=1))
            return torch.logit(oracle((x + 1) / 2, level).x0)

    model: NetworkDenoiser[Nothing] = NetworkDenoiser(Logit(), process, PredictBit())
    x0 = oracle.draw(torch.zeros(count, 3, dtype=torch.float64), BlockNoise(key=(0,), count=count))
    for num_steps, times in ((5, None), (None, LogSNRTimes(low=-20.0))):
        noise = BlockNoise(key=(1,), count=count)
        loss = VariationalBound(num_steps=num_steps, times=times)(model, x0, Nothing(count=count), noise).per_sample
        draws = None if num_steps else 20
        bound = bits_per_dim(oracle, process, x0, steps=num_steps, draws=draws, noise=BlockNoise(key=(2,), count=count))
        parts = bound.total if num_steps else bound.prior + bound.diffusion
        gap = loss.mean().item() - parts.mean().item() * math.log(2)
        assert abs(gap) < 4 * math.hypot(loss.std().item(), bound.total.std().item()) / math.sqrt(count)


# Learned variances


class Halves(nn.Module):
    """A network with twice the channels, each half with weights of its own."""

    in_channels, out_channels = 2, 4

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.mean = nn.Parameter(torch.randn(2, 2, generator=generator, dtype=torch.float64) / 2)
        self.variance = nn.Parameter(torch.randn(2, 2, generator=generator, dtype=torch.float64) / 2)

    def forward(self, x: Tensor, scalar: Tensor, condition: Nothing) -> Tensor:
        return torch.cat([torch.einsum("kc,bcs->bks", w, x) for w in (self.mean, self.variance)], 1)


@pytest.mark.parametrize("kind", ["range", "unconstrained"])
@pytest.mark.parametrize("aware", [False, True])
def test_the_hybrid_trains_the_mean_by_the_simple_loss_and_the_variance_by_the_bound(kind: str, aware: bool) -> None:
    """The gradient on the mean's half is exactly the simple loss's, that on the variance's half exactly lambda times
    that of the bound in bits/dim, which is not zero (Nichol & Dhariwal 2021, Eq. 16: stop-gradient on the mean).
    """
    num_steps, count = 4, 24
    process = GaussianProcess(schedule=Cosine(), levels=11)
    mean = PredictV()
    parameterization = (
        LearnedRange(mean=mean) if kind == "range" else LearnedVariance(mean=mean, process=process, num_steps=num_steps)
    )
    network = Halves()
    model: NetworkDenoiser[Nothing] = NetworkDenoiser(network, process, parameterization)
    x0 = (torch.randint(0, 11, (count, 2, 3), generator=torch.Generator().manual_seed(0)).double() - 5) / 5
    losses = torch.tensor([3.0, 1.0, 0.5, 0.2])
    gradients: list[tuple[Tensor, Tensor]] = []
    values: list[Tensor] = []
    for make in (
        lambda times: Hybrid(
            bound=VariationalBound(num_steps=num_steps, times=times), simple=weight_noise, weight=0.02
        ),
        lambda times: Simple(
            weight=unbiased(weight_noise, times or UniformTimes(num_steps=num_steps), process.schedule),
            times=times or UniformTimes(num_steps=num_steps),
        ),
        lambda times: VariationalBound(num_steps=num_steps, times=times),
    ):
        loss = make(filled(losses) if aware else None)(model, x0, Nothing(count=count), keyed(count))
        values.append(loss.per_sample.detach())
        grads = torch.autograd.grad(loss.per_sample.mean(), [network.mean, network.variance], allow_unused=True)
        gradients.append((grads[0], torch.zeros(2, 2, dtype=torch.float64) if grads[1] is None else grads[1]))
    torch.testing.assert_close(gradients[0][0], gradients[1][0], rtol=1e-12, atol=1e-14)
    assert gradients[1][1].abs().max().item() == 0
    torch.testing.assert_close(gradients[0][1], 0.02 / math.log(2) * gradients[2][1], rtol=1e-12, atol=1e-14)
    assert gradients[2][1].abs().min().item() > 1e-4
    torch.testing.assert_close(values[0], values[1] + 0.02 / math.log(2) * values[2], rtol=1e-12, atol=1e-14)


# Learned schedules


def mean_bound(process: GaussianProcess, steps: int) -> float:
    """The exact bound of the oracle's data and denoiser in nats, by Gauss's nodes for data and noise alike."""
    nodes = torch.tensor([-math.sqrt(3), 0.0, math.sqrt(3)], dtype=torch.float64)
    weights = torch.tensor([1 / 6, 2 / 3, 1 / 6], dtype=torch.float64)
    x0 = (ORACLE.mean + ORACLE.variance.sqrt() * nodes).repeat_interleave(3)[:, None]
    bound = bits_per_dim(ORACLE, process, x0, steps=steps, noise=Nodes(z=nodes.repeat(3), share=torch.full((9,), 0.5)))
    return (bound.total * (weights[:, None] * weights).flatten()).sum().item() * math.log(2)


@pytest.mark.parametrize("levels", [None, 9])
def test_the_gradient_of_learned_betas_is_that_of_frozen_noise(levels: int | None) -> None:
    """d loss/d logit is the difference quotient of the loss with the same keys: the noise is held, x_t moves
    (Sohl-Dickstein et al. 2015, Sec. 2.4.1); the first beta has no gradient.
    """

    class Line(nn.Module):
        in_channels = out_channels = 1

        def forward(self, x: Tensor, scalar: Tensor, condition: Nothing) -> Tensor:
            return 0.6 * x + 0.1

    schedule = LearnedBetas(Tabulated.from_betas((0.05, 0.2, 0.3, 0.5, 0.8)))
    model: NetworkDenoiser[Nothing] = NetworkDenoiser(
        Line(), GaussianProcess(schedule=schedule, levels=levels), PredictNoise()
    )
    x0 = (torch.randint(0, 9, (40, 2), generator=torch.Generator().manual_seed(0)).double() - 4) / 4

    def cost() -> Tensor:
        return VariationalBound(num_steps=5)(model, x0, Nothing(count=40), keyed(40)).per_sample.mean()

    (gradient,) = torch.autograd.grad(cost(), [schedule.logits])
    for i in range(4):
        ends = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                schedule.logits[i] += step
                ends.append(cost().item())
                schedule.logits[i] -= step
        assert gradient[i].item() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-7)
    assert gradient.abs().min().item() > 1e-3
    assert not schedule.first.requires_grad


def test_learning_betas_tightens_the_exact_bound() -> None:
    """A few steps of Adam on the drawn bound of Gaussian data lower the exact T-step bound, the denoiser being exact
    (Sohl-Dickstein et al. 2015, Sec. 2.4.1).
    """
    schedule = LearnedBetas(Tabulated.from_betas((0.05, 0.6, 0.6, 0.6, 0.6)))
    process = GaussianProcess(schedule=schedule, levels=None)
    optimizer = torch.optim.Adam(schedule.parameters(), lr=0.1)
    before = mean_bound(process, 5)
    for step in range(25):
        x0 = ORACLE.draw(torch.zeros(256, 1, dtype=torch.float64), BlockNoise(key=(step, 0), count=256))
        loss = VariationalBound(num_steps=5)(
            told(process, ORACLE), x0, Nothing(count=256), BlockNoise(key=(step, 1), count=256)
        )
        optimizer.zero_grad()
        loss.per_sample.mean().backward()
        optimizer.step()
    after = mean_bound(process, 5)
    exact = 0.5 * math.log(2 * math.pi * math.e * ORACLE.variance.item())
    assert exact < after < before - 0.05


def continuous_cost(schedule: LearnedLogSNR, times: Times | None = None, count: int = 400) -> Tensor:
    """The continuous loss of even shares of time, of Gaussian data and noise at Gauss's nodes: (count,) means."""
    z = torch.tensor([-1.0, 1.0], dtype=torch.float64).repeat_interleave(2).repeat(count)
    x0 = (0.4 + math.sqrt(0.3) * torch.tensor([-1.0, 1.0], dtype=torch.float64)).repeat(2 * count)[:, None]
    model = told(GaussianProcess(schedule=schedule, levels=None), ORACLE)
    noise = Nodes(z=z, share=evenly(count).repeat_interleave(4))
    loss = VariationalBound(num_steps=None, times=times)(model, x0, Nothing(count=4 * count), noise)
    return loss.per_sample.view(count, 4).mean(1)


def bent(seed: int) -> LearnedLogSNR:
    """A learned log-SNR between 8 and -8, its interior far from straight."""
    schedule = LearnedLogSNR(high=8.0, low=-8.0, hidden=6, seed=seed)
    with torch.no_grad():
        schedule.heights += 2.5 * torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return schedule


def test_the_continuous_bound_depends_on_the_ends_of_the_log_snr_alone() -> None:
    """Two interiors have different losses at the same times and the same mean; its gradient vanishes on the interior
    and not on the ends (Kingma et al. 2021, Sec. 5.1).
    """
    one, other = bent(0), bent(1)
    losses = [continuous_cost(schedule) for schedule in (one, other)]
    assert (losses[0] - losses[1]).abs().max().item() > 0.3
    assert losses[0].mean().item() == pytest.approx(losses[1].mean().item(), rel=1e-4)
    inside = [one.straight, one.heights, one.steepness, one.offsets]
    gradients = torch.autograd.grad(losses[0].mean(), [one.low, one.fall, *inside])
    assert max(gradient.abs().max().item() for gradient in gradients[2:]) < 1e-3
    assert gradients[1].abs().item() > 1  # d/d log(high - low): the diffusion's cost rises with the first log-SNR


def test_times_even_in_log_snr_give_the_same_gradient() -> None:
    """The gradient of the mean loss on a learned schedule's ends is the same whichever density the times are drawn
    from: what was drawn is held fixed in it, and so is its density.
    """
    schedule = bent(2)
    gradients = [
        torch.autograd.grad(continuous_cost(schedule, times).mean(), [schedule.low, schedule.fall])
        for times in (None, LogSNRTimes(), LogNormalTimes(mean=0.0, std=3.0))
    ]
    for other in gradients[1:]:
        for ours, theirs in zip(other, gradients[0], strict=True):
            assert ours.item() == pytest.approx(theirs.item(), rel=2e-3, abs=2e-3)


def test_the_squared_loss_learns_an_interior_of_less_variance() -> None:
    """Adam on the mean of the squared loss, interior only, lowers the variance of the estimate and leaves its mean
    (Kingma et al. 2021, Sec. 5.1, Appendix H).
    """
    schedule = bent(3)
    with torch.no_grad():
        before = continuous_cost(schedule)
    inside = [schedule.straight, schedule.heights, schedule.steepness, schedule.offsets]
    optimizer = torch.optim.Adam(inside, lr=0.1)
    for _ in range(40):
        optimizer.zero_grad()
        continuous_cost(schedule, count=60).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        after = continuous_cost(schedule)
    assert after.var().item() < 0.7 * before.var().item()
    assert after.mean().item() == pytest.approx(before.mean().item(), rel=1e-3)


# Self-conditioning, offset noise


class Echoing(nn.Module):
    """A network of x and its own last belief: 2 channels in, 1 out."""

    in_channels, out_channels = 2, 1

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, 0.3], dtype=torch.float64))
        self.heard: list[Tensor] = []

    def forward(self, x: Tensor, scalar: Tensor, condition: Nothing) -> Tensor:
        self.heard.append(x.detach())
        return torch.einsum("c,bcs->bs", self.weight, x)[:, None]


def test_self_conditioning_reads_its_own_first_belief_half_of_the_time() -> None:
    """The network is first asked with zeros, then with that belief in the given share of rows and zeros elsewhere, by
    each row's own key; no gradient goes through the first pass (Chen et al. 2023, Algorithm 1).
    """
    count, times = 400, Between()
    x0 = data(count)[:, None]
    for share in (0.0, 0.5, 1.0):
        network = Echoing()
        model: NetworkDenoiser[Nothing] = NetworkDenoiser(
            network, GaussianProcess(schedule=Cosine()), PredictX0(), is_self_conditioned=True
        )
        objective = Simple(weight=weight_x0, times=times, self_conditioning=share)
        loss = objective(model, x0, Nothing(count=count), keyed(count))
        first, second = network.heard
        assert first[:, 1].abs().max().item() == 0
        torch.testing.assert_close(first[:, 0], second[:, 0], rtol=0, atol=0)
        belief = 0.5 * first[:, 0]
        own = second[:, 1].abs().amax(1) > 0
        torch.testing.assert_close(second[own, 1], belief[own])
        assert abs(own.double().mean().item() - share) <= 4 * math.sqrt(share * (1 - share) / count)
        (gradient,) = torch.autograd.grad(loss.per_sample.mean(), [network.weight])
        error = 0.5 * second[:, 0] + 0.3 * second[:, 1] - x0[:, 0]
        by_hand = torch.stack([(2 * error * second[:, c]).mean() for c in range(2)])
        torch.testing.assert_close(gradient, by_hand)
        part = objective(model, x0[10:20], Nothing(count=10), keyed(count).rows(slice(10, 20)))
        torch.testing.assert_close(part.per_sample, loss.per_sample[10:20], rtol=1e-12, atol=0)


def test_networks_that_do_not_read_themselves_are_asked_once() -> None:
    """Without self-conditioning there is one pass, whatever the share says."""
    model = denoiser(Cosine(), PredictX0(), BIASED)
    Simple(weight=weight_x0, times=Between(), self_conditioning=1.0)(model, data(4), Nothing(count=4), keyed(4))
    assert isinstance(model.network, Knowing)
    assert len(model.network.outputs) == 1


@pytest.mark.parametrize("objective", [Simple(weight=weight_noise, times=Between()), VariationalBound(num_steps=None)])
def test_offset_noise_is_noise_whose_channels_are_shifted(objective: Simple | VariationalBound) -> None:
    """``Offset`` is its objective on ``OffsetNoise``: the same times, x_t with a shift of its own in every channel
    (Guttenberg 2023); strength 0 is no offset.
    """
    count, schedule = 16, LogLinear()
    x0 = torch.zeros(count, 2, 3, dtype=torch.float64)
    model = told(GaussianProcess(schedule=schedule, levels=None), BIASED)
    plain = objective(model, x0, Nothing(count=count), keyed(count))
    none = Offset(objective=objective, strength=0.0)(model, x0, Nothing(count=count), keyed(count))
    torch.testing.assert_close(none.per_sample, plain.per_sample, rtol=0, atol=0)
    loss = Offset(objective=objective, strength=0.5)(model, x0, Nothing(count=count), keyed(count))
    torch.testing.assert_close(loss.parts["log_snr"], plain.parts["log_snr"], rtol=0, atol=0)
    direct = objective(model, x0, Nothing(count=count), OffsetNoise(base=keyed(count), strength=0.5))
    torch.testing.assert_close(loss.per_sample, direct.per_sample, rtol=0, atol=0)
    assert (loss.per_sample - plain.per_sample).abs().min().item() > 0
    shift = OffsetNoise(base=keyed(count), strength=0.5).at(1).normal(x0) - keyed(count).at(1).normal(x0)
    torch.testing.assert_close(shift, shift[..., :1].expand_as(shift))
    assert (shift[:, 0] - shift[:, 1]).abs().min().item() > 0


# What is refused


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MinSNR(gamma=0.0), "positive gamma, got 0.0"),
        (lambda: WeightEDM(sigma_data=0.0), "standard deviation, got 0.0"),
        (lambda: Huber(delta=-1.0), "positive, got -1.0"),
        (lambda: UniformTimes(num_steps=0), "at least 1 step, got 0"),
        (lambda: LogNormalTimes(std=0.0), "std > 0, got 0.0"),
        (lambda: LogSNRTimes(low=2.0, high=1.0), "low < high, got 2.0 and 1.0"),
        (lambda: LogSNRTimes(low=-math.inf), "low < high"),
        (lambda: LossAwareTimes(num_steps=0), "at least 1"),
        (lambda: LossAwareTimes(num_steps=5, history=0), "at least 1"),
        (lambda: LossAwareTimes(num_steps=5, uniform=0.0), "0 < uniform <= 1"),
        (lambda: Simple(weight=weight_x0, times=UniformTimes(), self_conditioning=1.5), "probability, got 1.5"),
        (lambda: VariationalBound(num_steps=0), "at least 1 step, got 0"),
        (lambda: VariationalBound(num_steps=10, times=UniformTimes()), "num_steps=10, but its times None"),
        (lambda: VariationalBound(num_steps=None, times=UniformTimes(num_steps=4)), "num_steps=None, but its times 4"),
        (lambda: VariationalBound(num_steps=20, times=LossAwareTimes(num_steps=10)), "num_steps=20, but its times 10"),
    ],
)
def test_refuses_what_makes_no_objective(make: Callable[[], object], message: str) -> None:
    """ValueError saying what was given and what was expected."""
    with pytest.raises(ValueError, match=message):
        make()


def test_a_chain_refuses_times_between_its_steps() -> None:
    """A density that draws between the steps would silently be another bound: ValueError."""
    model = told(DENSITY, BIASED)
    with pytest.raises(ValueError, match="10 steps has times i/10 only"):
        VariationalBound(num_steps=10, times=LogSNRTimes())(model, data(4), Nothing(count=4), keyed(4))


@pytest.mark.parametrize("num_steps", [None, 10])
def test_what_divides_by_the_density_refuses_times_that_have_none(num_steps: int | None) -> None:
    """A bound, alone or in a hybrid, at times that are all t = 1: ValueError, not infinitely many copies of one term."""
    bound = VariationalBound(num_steps=num_steps, times=EndTime())
    for objective in (bound, Hybrid(bound=bound), Offset(objective=bound)):
        with pytest.raises(ValueError, match="no density to divide by"):
            objective(told(DENSITY, BIASED), data(4), Nothing(count=4), keyed(4))


def test_at_the_end_of_the_straight_path_the_network_sees_noise_alone() -> None:
    """What comes in is the noise itself, to the last bit, and the loss is |D(noise) - x0|^2: a regression."""
    x0 = data(6)
    seen: list[Tensor] = []

    def belief(x_t: Tensor, level: Level, previous: Estimate | None = None) -> Estimate:
        seen.append(x_t)
        return Estimate(x0=0.3 * x_t)

    model = denoiser(RectifiedFlow(), PredictX0(), belief)
    loss = Simple(weight=weight_x0, times=EndTime())(model, x0, Nothing(count=6), keyed(6))
    noise = keyed(6).at(1).normal(x0)
    assert torch.equal(seen[0], noise)
    torch.testing.assert_close(loss.per_sample, (0.3 * noise - x0).square().flatten(1).mean(1))
    assert loss.parts["log_snr"].tolist() == [-math.inf] * 6


@pytest.mark.parametrize(
    "objective",
    [
        Simple(weight=weight_noise, times=UniformTimes()),
        VariationalBound(num_steps=5),
        Hybrid(bound=VariationalBound(num_steps=5)),
        Offset(objective=VariationalBound(num_steps=5)),
    ],
)
@pytest.mark.parametrize("broken", [math.nan, math.inf, None])
def test_broken_data_is_refused(objective: Any, broken: float | None) -> None:
    """NaN, infinities and whole numbers are refused before anything is computed."""
    x0 = data(4) if broken is not None else torch.ones(4, 5, dtype=torch.int64)
    if broken is not None:
        x0[1, 2] = broken
    with pytest.raises(ValueError, match="must be finite" if broken is not None else "floating-point numbers"):
        objective(told(DENSITY, BIASED), x0, Nothing(count=4), keyed(4))
