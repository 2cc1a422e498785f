"""The loss against direct computation, invariance to the parameterization, its minimum, and the law of its times."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import pytest
import torch
from torch import Tensor, nn

from unstir.diffusion.denoiser import Denoiser, NetworkDenoiser
from unstir.diffusion.noise import KeyedNoise
from unstir.diffusion.objective import (
    WEIGHTS,
    LogitNormalTimes,
    Simple,
    Times,
    UniformTimes,
    Weight,
    weight_noise,
    weight_velocity,
    weight_x0,
)
from unstir.diffusion.parameterization import PARAMETERIZATIONS, Affine, PredictFlow, PredictNoise, PredictV, PredictX0
from unstir.diffusion.process import GaussianProcess
from unstir.diffusion.schedule import Cosine, LinearBeta, RectifiedFlow, Schedule, Tabulated, linear_betas
from unstir.verify.oracles import GaussianOracle, GivenNoise, kolmogorov


@dataclass(frozen=True, kw_only=True, eq=False)
class Nothing:
    """A condition that says nothing of its samples."""

    count: int

    def cat(self, other: Self) -> Self:
        return type(self)(count=self.count + other.count)

    def rows(self, index: slice) -> Self:
        return type(self)(count=len(range(self.count)[index]))


@dataclass(frozen=True, kw_only=True)
class Between:
    """Times that do not come near the ends, on a path where float32 would blur what is compared."""

    low: float = 0.05
    high: float = 0.95

    def draw(self, schedule: Schedule, count: int, noise: KeyedNoise) -> Tensor:
        return self.low + (self.high - self.low) * noise.uniform(torch.zeros(count, dtype=torch.float64))


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


@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS.keys())
def test_the_loss_does_not_depend_on_the_parameterization(schedule: Schedule, weight: Weight) -> None:
    """Networks of the same belief cost the same whatever they predict: the weight is on the x0 error (C33)."""
    x0 = data(COUNT)
    objective = Simple(weight=weight, times=Between())
    losses = [
        objective(denoiser(schedule, kind(), BIASED), x0, Nothing(count=COUNT), keyed(COUNT)).per_sample
        for kind in PARAMETERIZATIONS.values()
    ]
    for other in losses[1:]:
        torch.testing.assert_close(other, losses[0], rtol=1e-4, atol=1e-7)  # the network knows t in float32


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


def test_uniform_times_are_uniform_up_to_both_ends() -> None:
    """Chi-square over 50 bins, Kolmogorov, in (0, 1], and the end bins filled (C43)."""
    count = 20_000
    t = UniformTimes().draw(Cosine(), count, keyed(count))
    assert (t.dtype, t.shape) == (torch.float64, (count,))
    assert t.min().item() > 0
    assert t.max().item() <= 1
    assert kolmogorov(t) < 1.95
    bins = torch.histc(t, bins=50, min=0, max=1)
    assert chi_square(bins, count / 50) < 85.4  # 99.9 % quantile for 49 degrees of freedom
    assert min(bins[0].item(), bins[-1].item()) > 0


@pytest.mark.parametrize("num_steps", [1, 2, 10])
def test_uniform_times_on_a_grid_hit_every_step(num_steps: int) -> None:
    """Each of 1/T, ..., 1 equally often (chi-square), exactly, and never 0 (C43)."""
    count = 5000
    t = UniformTimes(num_steps=num_steps).draw(Cosine(), count, keyed(count))
    values, counts = t.unique(return_counts=True)
    assert values.tolist() == [i / num_steps for i in range(1, num_steps + 1)]
    quantile = {1: 1e-9, 2: 10.8, 10: 27.9}[num_steps]
    assert chi_square(counts, count / num_steps) <= quantile


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1.0), (2**-53, 1 - 2**-53), (1 - 2**-53, 2**-53)])
def test_uniform_times_include_pure_noise_and_exclude_data(share: float, expected: float) -> None:
    """The least random number gives t = 1, the largest a t above 0; on a grid the last and the first step (C43)."""
    noise = GivenNoise(value=torch.tensor(share, dtype=torch.float64))
    assert UniformTimes().draw(Cosine(), 3, noise).tolist() == [expected] * 3
    on_grid = UniformTimes(num_steps=1000).draw(Cosine(), 3, noise).tolist()
    assert on_grid == [1.0 if expected > 0.5 else 0.001] * 3


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.8, 0.8), (1.0, 2.0)])
def test_logit_normal_times_have_normal_logits(mean: float, std: float) -> None:
    """(logit t - mean)/std is standard normal by Kolmogorov's test (Esser et al. 2024, Sec. 3.1)."""
    t = LogitNormalTimes(mean=mean, std=std).draw(Cosine(), 4000, keyed(4000))
    assert kolmogorov(torch.special.ndtr((torch.logit(t) - mean) / std)) < 1.95


@pytest.mark.parametrize("uniform", [0.3, 1.0])
def test_logit_normal_times_with_a_share_of_uniform_ones(uniform: float) -> None:
    """The law is uniform * t + (1 - uniform) * Phi((logit t - mean)/std), by Kolmogorov's test; also on the
    independence of parts.
    """
    mean, std = -0.5, 0.7
    t = LogitNormalTimes(mean=mean, std=std, uniform=uniform).draw(Cosine(), 4000, keyed(4000))
    law = uniform * t + (1 - uniform) * torch.special.ndtr((torch.logit(t) - mean) / std)
    assert kolmogorov(law) < 1.95


@pytest.mark.parametrize("times", [UniformTimes(), UniformTimes(num_steps=7), LogitNormalTimes(uniform=0.5)])
def test_times_depend_on_their_key_alone(times: Times) -> None:
    """The time of a sample is the same in any batch."""
    assert torch.equal(times.draw(Cosine(), 5, keyed(5))[1:4], times.draw(Cosine(), 3, keyed(5).rows(slice(1, 4))))


@pytest.mark.parametrize(
    "make",
    [
        lambda: LogitNormalTimes(std=0.0),
        lambda: LogitNormalTimes(std=math.nan),
        lambda: LogitNormalTimes(uniform=-0.1),
        lambda: LogitNormalTimes(uniform=1.1),
    ],
)
def test_refuses_what_is_no_density(make: Callable[[], object]) -> None:
    """ValueError unless std > 0 and 0 <= uniform <= 1."""
    with pytest.raises(ValueError, match="logit-normal"):
        make()


@pytest.mark.parametrize("num_steps", [0, -3])
def test_refuses_a_grid_without_steps(num_steps: int) -> None:
    """A grid of times needs at least one step: 0 would make every time NaN."""
    with pytest.raises(ValueError, match=r".+"):
        UniformTimes(num_steps=num_steps).draw(Cosine(), 2, keyed(2))


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


def chi_square(counts: Tensor, expected: float) -> float:
    return ((counts - expected) ** 2 / expected).sum().item()
