"""Statements about our own mathematics: schedules, guidance, weights and training times, where no target is needed.

Knows: the identities that schedules, parameterizations, guidance and objectives obey, and how each is measured.
Does not know: targets, samplers of strangers, how results are told.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unstir.diffusion.denoiser import NetworkDenoiser, Pair
from unstir.diffusion.guidance import clip, corrected, extrapolate, guided
from unstir.diffusion.noise import KeyedNoise
from unstir.diffusion.objective import WEIGHTS, MinSNR, Simple, weight_noise, weight_x0
from unstir.diffusion.parameterization import Affine, Parameterization, PredictNoise, PredictV, PredictX0
from unstir.diffusion.process import Estimate, GaussianProcess
from unstir.diffusion.samplers import DDIM, Ancestral, DPMSolverMultistep, Sampler, encode, sample
from unstir.diffusion.schedule import (
    Cosine,
    Level,
    LinearBeta,
    RectifiedFlow,
    Schedule,
    Tabulated,
    VarianceExploding,
    linear_betas,
)
from unstir.diffusion.spacing import Explicit, karras, trailing
from unstir.diffusion.times import Times, UniformTimes
from unstir.typing import Noise, Time, X
from unstir.verify.oracles import GaussianOracle, observed_orders
from unstir.verify.outcome import Outcome, failed_if

_TABLE = Tabulated.from_betas(linear_betas(1000))
_LAW = GaussianOracle(mean=torch.tensor(-0.5, dtype=torch.float64), variance=torch.tensor(2.25, dtype=torch.float64))


@dataclass(frozen=True, kw_only=True, eq=False)
class Slip(Parameterization):
    """A parameterization whose network is told its own answer: the right one, plus a slip; so an identity can play it.

    Args:
        inner: what the network's output means.
        x0: the truth.
        size: of the slip, in the coordinates of the output.
    """

    inner: Affine
    x0: X
    size: float = 0.0

    def encode(self, x_t: X, level: Level) -> tuple[X, Float[Tensor, "b"]]:
        """The answer itself."""
        _, scalar = self.inner.encode(x_t, level)
        return self.target(self.x0, x_t, level) + self.size, scalar

    def decode(self, output: Tensor, x_t: X, level: Level) -> Estimate:
        """As the parameterization inside."""
        return self.inner.decode(output, x_t, level)

    def target(self, x0: X, x_t: X, level: Level) -> Tensor:
        """As the parameterization inside."""
        return self.inner.target(x0, x_t, level)


class Echo(nn.Module):
    """A network that says what it hears."""

    in_channels = 1
    out_channels = 1

    def forward(self, x: Tensor, scalar: Tensor, condition: object) -> Tensor:
        """Its input."""
        return x


class Listener(nn.Module):
    """A network that says half of what it hears, and notes the numbers that it is told."""

    in_channels = 1
    out_channels = 1

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[float] = []

    def forward(self, x: Tensor, scalar: Tensor, condition: object) -> Tensor:
        """Half of its input."""
        self.heard.append(scalar[0].item())
        return x / 2


@dataclass(frozen=True, kw_only=True)
class OneTime(Times):
    """The same training time, always."""

    t: float

    def draw(self, schedule: Schedule, count: int, noise: Noise) -> Time:
        """That time."""
        return torch.full((count,), self.t, dtype=torch.float64)

    def density(self, schedule: Schedule, t: Time) -> Time:
        """1."""
        return torch.ones_like(t)


def zero_terminal_snr() -> Outcome:
    """The rescaled chain ends without signal and starts as before; losses and weights are finite there."""
    table = Tabulated.from_betas(linear_betas(1000))
    rescaled = table.with_zero_terminal_snr()
    found: list[str] = []
    if rescaled.table[-1] != 0:
        found.append(f"alpha_bar ends at {rescaled.table[-1]:.2g}")
    if abs(rescaled.table[0] / table.table[0] - 1) > 1e-12:
        found.append("alpha_bar of the first step changed")
    end = rescaled.at(torch.ones(1, dtype=torch.float64))
    found += [f"weight {name} is not finite" for name, weight in WEIGHTS.items() if not weight(end).isfinite().all()]
    for inner in (PredictX0(), PredictV()):  # the velocity dx/dt is infinite where alpha vanishes as a square root
        loss = _loss(inner, rescaled, weight_x0, OneTime(t=1.0), size=0.1)
        if not bool(loss.isfinite().all()):
            found.append(f"loss of {type(inner).__name__} is not finite")
    try:
        _loss(PredictNoise(), rescaled, weight_x0, OneTime(t=1.0), size=0.1)
        found.append("noise prediction is not refused")
    except ValueError:
        pass
    return failed_if(found, "; ".join(found) or "alpha_T = 0, all finite", "alpha_T = 0, first unchanged, all finite")


def ddim_identities() -> Outcome:
    """DDIM of a clipped belief goes on with the noise of that; DDIM(eta = 1) is the reverse chain, seed by seed."""
    process, x = GaussianProcess(schedule=Cosine()), torch.linspace(-2, 2, 8, dtype=torch.float64).view(2, 1, 4)
    times = trailing(process.schedule, 10)
    levels = process.schedule.at(torch.tensor(times, dtype=torch.float64))
    beliefs: list[X] = []

    def noted(x_t: X, level: Level, previous: Estimate | None = None) -> Estimate:
        belief = corrected(_LAW, clip(1.0))(x_t, level)
        beliefs.append(belief.x0)
        return belief

    worst, before = 0.0, x
    for i, step in enumerate(sample(DDIM(), noted, process, x, times[:-1], KeyedNoise.from_seeds([0, 1]))):
        if i:
            t, s = levels[i - 1], levels[i]
            noise = (before - t.alpha * beliefs[i - 1]) / t.sigma
            worst = max(worst, (step.x - s.alpha * beliefs[i - 1] - s.sigma * noise).abs().max().item())
        before = step.x
    chain = GaussianProcess(schedule=Tabulated.from_schedule(LinearBeta(), 50))
    ends = [_walk(sampler, chain, x) for sampler in (DDIM(eta=1.0), Ancestral())]
    apart = (ends[0] - ends[1]).abs().max().item()
    measured = f"clipped: off by {worst:.1g}; eta = 1: {apart:.1g} from the chain"
    return failed_if(not max(worst, apart) < 1e-9, measured, "equal to rounding")


def ways_to_ask() -> Outcome:
    """A grid given by its times, or by the log-SNR of its levels, is the grid that the spacing makes."""
    worst, found = 0.0, list[str]()
    for schedule in (Cosine(), LinearBeta(), RectifiedFlow(shift=3.0), _TABLE, VarianceExploding()):
        times = trailing(schedule, 10)
        levels = schedule.at(torch.tensor(times, dtype=torch.float64))
        ways = {
            "times": torch.tensor(Explicit(times=times)(schedule, 10), dtype=torch.float64),
            "log-SNR": schedule.time_of(levels.log_snr),
        }
        for name, asked in ways.items():
            level = schedule.at(asked)
            apart = level.sigma / (level.alpha + level.sigma) - levels.sigma / (levels.alpha + levels.sigma)
            off = apart.abs().max().item()
            worst = max(worst, off)
            found += [] if off < 1e-7 else [f"{type(schedule).__name__} by {name}: noise share off by {off:.2g}"]
    return failed_if(found, "; ".join(found) or f"noise share off by {worst:.1g}", "the same levels")


def inversion() -> Outcome:
    """Encoding tells the network the numbers that sampling tells it there, and sampling leads back to the source."""
    found: list[str] = []
    worst = 0.0
    for schedule in (_TABLE, Cosine()):
        process, network = GaussianProcess(schedule=schedule), Listener()
        denoiser: NetworkDenoiser[Any] = NetworkDenoiser(network, process, PredictX0())
        denoise, times = denoiser.given(None), trailing(schedule, 10)
        x = torch.tensor([[[0.7]], [[-0.4]]], dtype=torch.float64)
        *_, end = encode(denoise, process, x, times[::-1], iterations=40)
        asked, network.heard = list(dict.fromkeys(network.heard)), []
        *_, back = sample(DDIM(), denoise, process, end.x, times, KeyedNoise.from_seeds([0, 1]))
        if asked != network.heard[::-1]:
            found.append(f"the network is told {asked[:2]}..., in sampling {network.heard[:-3:-1]}...")
        worst = max(worst, (back.x - x).abs().max().item())
    if not worst < 1e-9:
        found.append(f"comes back off by {worst:.2g}")
    measured = "; ".join(found) or f"the same numbers; comes back off by {worst:.1g}"
    return failed_if(found, measured, "the same numbers, and the source")


def steps_of_their_own_length() -> Outcome:
    """2M is of second order on Karras' grid, and of first with the last step's length in the place of this one's."""
    schedule = VarianceExploding()
    process = GaussianProcess(schedule=schedule)
    errors: dict[str, list[float]] = {"ours": [], "with h_last": []}
    for num_steps in (32, 64, 128):
        times = karras(schedule, num_steps)[:-1]
        levels = schedule.at(torch.tensor(times, dtype=torch.float64))
        x = levels.sigma[0] * torch.tensor([[-1.0], [0.3], [1.5]], dtype=torch.float64)
        exact = _LAW.flow(x, levels[0], levels[num_steps - 1])
        *_, ours = sample(DPMSolverMultistep(), _LAW, process, x, times, KeyedNoise.from_seeds(range(3)))
        for name, end in (("ours", ours.x), ("with h_last", _second_order_by_h_last(x, list(levels.unbind())))):
            errors[name].append((end - exact).abs().max().item())
    orders = {name: observed_orders(measured)[-1] for name, measured in errors.items()}
    measured = ", ".join(f"{name} {order:.2f}" for name, order in orders.items())
    is_wrong = not (abs(orders["ours"] - 2) < 0.2 and abs(orders["with h_last"] - 1) < 0.2)
    return failed_if(is_wrong, f"order {measured}", "ours 2, with h_last 1")


def velocity_sign() -> Outcome:
    """In coordinates with alpha = 1: x0 = x/(sigma^2 + 1) - sigma/sqrt(sigma^2 + 1) v."""
    levels = Cosine().at(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))
    x0, noise = (torch.randn(3, 1, 4, dtype=torch.float64, generator=_generator(seed)) for seed in (0, 1))
    alpha, sigma = levels.alpha.view(3, 1, 1), levels.sigma.view(3, 1, 1)
    v = alpha * noise - sigma * x0
    believed = PredictV().decode(v, alpha * x0 + sigma * noise, levels).x0
    ratio = sigma / alpha
    exploding = (x0 + ratio * noise) / (ratio**2 + 1) - ratio / (ratio**2 + 1).sqrt() * v
    off = max((believed - x0).abs().max().item(), (exploding - x0).abs().max().item())
    return failed_if(not off < 1e-9, f"off by {off:.1g}", "the truth")


def guidance_is_affine() -> Outcome:
    """out(w) = weak + w (strong - weak) on every channel; w = 0 and 1 are the two beliefs bit for bit."""
    process, x = GaussianProcess(schedule=Cosine()), torch.randn(2, 3, 4, dtype=torch.float64, generator=_generator(0))
    other = GaussianOracle(mean=torch.tensor(0.8, dtype=torch.float64), variance=torch.tensor(0.3, dtype=torch.float64))

    def both(x_t: X, level: Level, previous: Estimate | None = None) -> tuple[Estimate, Estimate]:
        return _LAW(x_t, level), other(x_t, level)

    level = process.schedule.at(torch.tensor(0.5, dtype=torch.float64))
    strong, weak = _LAW(x, level).x0, other(x, level).x0

    def out(scale: float) -> X:
        return guided(Pair(both=both, strong=_LAW), extrapolate(process, scale))(x, level).x0

    found = [
        f"scale {scale} is not the belief"
        for scale, belief in ((0.0, weak), (1.0, strong))
        if not torch.equal(out(scale), belief)
    ]
    worst = max((out(w) - weak - w * (strong - weak)).abs().max().item() for w in (-1.0, 0.5, 3.0, 7.5))
    if not worst < 1e-12:
        found.append(f"off the line by {worst:.2g}")
    if not bool(((out(3.0) - weak).abs().amax((0, 2)) > 0).all()):
        found.append("a channel is not guided")
    return failed_if(found, "; ".join(found) or f"off the line by {worst:.1g}", "bit for bit; a straight line in w")


def weights_are_invariant() -> Outcome:
    """min-SNR is min(S, g)/S on the noise, min(S, g)/(S + 1) on v and min(S, g) on x0, and so for unweighted noise."""
    schedule, slip = Cosine(), 0.1
    worst = 0.0
    for t in (0.02, 0.3, 0.6, 0.95):
        level = schedule.at(torch.tensor([t], dtype=torch.float64))
        snr = ((level.alpha / level.sigma) ** 2).item()
        for weight, on_x0 in ((MinSNR(gamma=5.0), min(snr, 5.0)), (weight_noise, snr)):
            shares = ((PredictNoise(), on_x0 / snr), (PredictV(), on_x0 / (snr + 1)), (PredictX0(), on_x0))
            for inner, share in shares:
                loss = _loss(inner, schedule, weight, OneTime(t=t), size=slip).mean().item()
                worst = max(worst, abs(loss / (share * slip**2) - 1))
    return failed_if(not worst < 1e-6, f"relative error {worst:.1g}", "the same weight of an error on x0")


def times_cover_the_range() -> Outcome:
    """Continuous times fill 20 bins of (0, 1] evenly, and times of a chain its 20 steps (chi-square, 1 in 1000)."""
    count, bins = 8000, 20
    limit = 43.8  # 99.9 % quantile of chi-square with 19 degrees of freedom
    noise = KeyedNoise.from_seeds(range(count))
    found: list[str] = []
    statistics: list[float] = []
    for times in (UniformTimes(), UniformTimes(num_steps=bins)):
        drawn = times.draw(Cosine(), count, noise)
        hits = torch.bincount((drawn * bins - 1e-9).floor().long(), minlength=bins).double()
        statistic = ((hits - count / bins) ** 2).sum().item() / (count / bins)
        statistics.append(statistic)
        if not statistic < limit or hits.numel() != bins:
            found.append(f"chi-square {statistic:.1f}")
    last = UniformTimes(num_steps=bins).draw(Cosine(), count, noise)
    ends = (last.min().item() * bins, last.max().item() * bins)
    if not (math.isclose(ends[0], 1) and math.isclose(ends[1], bins)):
        found.append(f"steps from {ends[0]:.3g} to {ends[1]:.3g} of {bins}")
    measured = "; ".join(found) or f"chi-square {max(statistics):.1f}"
    return failed_if(found, measured, f"below {limit}, steps from 1 to {bins}")


def _loss(inner: Affine, schedule: Schedule, weight: Any, times: Times, *, size: float) -> Tensor:
    x0 = torch.linspace(-1, 1, 8, dtype=torch.float64).view(2, 1, 4)
    told: Parameterization = Slip(inner=inner, x0=x0, size=size)
    denoiser: NetworkDenoiser[Any] = NetworkDenoiser(Echo(), GaussianProcess(schedule=schedule), told)
    return Simple(weight=weight, times=times)(denoiser, x0, None, KeyedNoise.from_seeds([0, 1])).per_sample


def _walk(sampler: Sampler[Any], process: GaussianProcess, x: X) -> X:
    times: Sequence[float] = trailing(process.schedule, 50)
    *_, last = sample(sampler, _LAW, process, x, times, KeyedNoise.from_seeds([3, 4]))
    return last.x


def _second_order_by_h_last(x: X, levels: Sequence[Level]) -> X:
    """DPM-Solver++(2M) with the slip that was proposed as its mend: the step is as long as the last one was."""
    h_last, before = None, x
    for t, s in pairwise(levels):
        h, x0 = (s.log_snr - t.log_snr).item() / 2, _LAW(x, t).x0
        direction = x0
        if h_last is not None:
            share = h / (2 * h_last)
            direction = (1 + share) * x0 - share * before
        length = h if h_last is None else h_last
        x, before, h_last = s.sigma / t.sigma * x - s.alpha * math.expm1(-length) * direction, x0, h
    return x


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
