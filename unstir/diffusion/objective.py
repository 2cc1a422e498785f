"""Objectives: what a denoiser is trained to minimise.

Knows: which levels are drawn, what an error on x0 weighs there, which terms of the bound are asked for.
Does not know: optimizers, files, what a condition holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from unstir.diffusion.denoiser import NetworkDenoiser
from unstir.diffusion.likelihood import step_divergence
from unstir.diffusion.noise import OffsetNoise
from unstir.diffusion.process import Estimate, Process, require_data
from unstir.diffusion.schedule import Level, Schedule, spread
from unstir.diffusion.times import Times, UniformTimes
from unstir.typing import C, Noise, Time, X


@dataclass(frozen=True, kw_only=True, eq=False)
class Loss:
    """What one batch cost.

    Args:
        per_sample: the loss of each sample.
        parts: what it was made of, a number a sample: ``x0_error`` (mean squared error on x0) and ``log_snr``.
    """

    per_sample: Float[Tensor, "b"]
    parts: dict[str, Float[Tensor, "b"]]


Weight = Callable[[Level], Time]
"""What a squared error on x0 weighs at a level, whatever the network predicts."""


def weight_noise(level: Level) -> Time:
    """alpha^2/sigma^2: the squared error on the noise, unweighted (DDPM's L_simple).

    Source: Ho et al. 2020, arXiv:2006.11239, Eq. 14.
    """
    return (level.alpha / level.sigma) ** 2


def weight_x0(level: Level) -> Time:
    """1: the squared error on x0."""
    return torch.ones_like(level.alpha)


def weight_velocity(level: Level) -> Time:
    """1/sigma^2, with sigma at least 0.05: the squared error on the velocity of the rectified flow, or on v.

    The floor keeps almost clean samples from ruling the batch.

    Source: Li & He 2025, arXiv:2511.13720 (prediction of x0 with a velocity loss, denominator clipped at 0.05).
    """
    return 1 / level.sigma.clamp(min=0.05) ** 2


def weight_bounded(level: Level) -> Time:
    """alpha^2/sigma^2, kept between 1 and 5: noisy samples, where the words decide, are never neglected.

    Source: Salimans & Ho 2022, arXiv:2202.00512, Sec. 4 (at least 1); Hang et al. 2023, arXiv:2303.09556, Sec. 3.4
        (at most 5).
    """
    return ((level.alpha / level.sigma) ** 2).clamp(1, 5)


@dataclass(frozen=True, kw_only=True)
class MinSNR:
    """min(alpha^2/sigma^2, gamma): the squared error on the noise, but clean samples count no more than ``gamma``.

    Towards pure noise it goes to 0, so it works against a schedule that ends without signal.

    Args:
        gamma: 5 in the paper.

    Raises:
        ValueError: unless gamma is positive.

    Source: Hang et al. 2023, arXiv:2303.09556, Sec. 3.4 (on x0; min(SNR, gamma)/SNR on the noise, /(SNR + 1) on v).
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        """Refuse a bound that lets nothing through."""
        if not self.gamma > 0:
            raise ValueError(f"min-SNR needs a positive gamma, got {self.gamma}; 5 is usual")

    def __call__(self, level: Level) -> Time:
        """The weight."""
        return ((level.alpha / level.sigma) ** 2).clamp(max=self.gamma)


@dataclass(frozen=True, kw_only=True)
class WeightEDM:
    """alpha^2/sigma^2 + 1/d^2, d the spread of the data: the squared error on EDM's network output.

    Args:
        sigma_data: d.

    Raises:
        ValueError: unless sigma_data is positive.

    Source: Karras et al. 2022, arXiv:2206.00364, Table 1 (lambda = 1/c_out^2).
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        """Refuse data without spread."""
        if not self.sigma_data > 0:
            raise ValueError(f"sigma_data is a standard deviation, got {self.sigma_data}; 0.5 suits pictures")

    def __call__(self, level: Level) -> Time:
        """The weight."""
        return (level.alpha / level.sigma) ** 2 + 1 / self.sigma_data**2


WEIGHTS: dict[str, Weight] = {
    "noise": weight_noise,
    "x0": weight_x0,
    "velocity": weight_velocity,
    "bounded": weight_bounded,
    "min_snr": MinSNR(),
    "edm": WeightEDM(),
}


Distance = Callable[[X], X]
"""What an error costs, element by element; the error comes times the root of its weight."""


def squared(error: X) -> X:
    """error^2."""
    return error.square()


def absolute(error: X) -> X:
    """|error| (l1)."""
    return error.abs()


@dataclass(frozen=True, kw_only=True)
class Huber:
    """error^2 within ``delta``, beyond it a straight line of the same slope: 2 delta |error| - delta^2.

    Args:
        delta: where it straightens, in units of the weighted error.

    Raises:
        ValueError: unless delta is positive.

    Source: Huber 1964, "Robust estimation of a location parameter" (twice his function, so that 1 is ``squared``).
    """

    delta: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a cost that is 0, or falls."""
        if not self.delta > 0:
            raise ValueError(f"Huber's delta must be positive, got {self.delta}; 1 is usual")

    def __call__(self, error: X) -> X:
        """The cost."""
        size = error.abs()
        return torch.where(size <= self.delta, error.square(), 2 * self.delta * size - self.delta**2)


DISTANCES: dict[str, Distance] = {"squared": squared, "l1": absolute, "huber": Huber()}


def unbiased(weight: Weight, times: Times, schedule: Schedule) -> Weight:
    """The weight divided by the density of times: the mean loss is then that of uniform times, whatever is drawn."""
    return lambda level: weight(level) / times.density(schedule, level.t).detach()


@dataclass(frozen=True, kw_only=True)
class Simple:
    """The weighted error of the belief about x0: E over t and noise of weight(t) |x0_hat(x_t) - x0|^2.

    With ``weight_noise`` and uniform times this is DDPM's L_simple, whatever the network predicts.

    Args:
        weight: what a squared error on x0 weighs at a level.
        times: the density of training times.
        distance: what an error costs, once it is multiplied by sqrt(weight).
        self_conditioning: for a self-conditioned denoiser, how often it is given its own first belief (else zeros).

    Raises:
        ValueError: if self_conditioning is not in [0, 1].

    Source: Ho et al. 2020, arXiv:2006.11239, Eq. 14; Chen et al. 2023, arXiv:2208.04202, Algorithm 1 (its own belief,
        half of the time).
    """

    weight: Weight
    times: Times
    distance: Distance = squared
    self_conditioning: float = 0.5

    def __post_init__(self) -> None:
        """Refuse what is no probability."""
        if not 0 <= self.self_conditioning <= 1:
            raise ValueError(f"self_conditioning is a probability, got {self.self_conditioning}")

    def __call__(self, denoiser: NetworkDenoiser[C], x0: X, condition: C, noise: Noise) -> Loss:
        """The loss of each sample; row i uses key i of ``noise`` alone.

        Raises:
            ValueError: if x0 is not finite.
        """
        level, x_t = _spoiled(denoiser, self.times, x0, noise)
        belief = denoiser(x_t, level, condition, _own_belief(denoiser, x_t, level, condition, noise, self))
        return self.of(belief, x0, level)

    def of(self, belief: Estimate, x0: X, level: Level) -> Loss:
        """The loss of a belief."""
        error = belief.x0 - x0
        weight = spread(self.weight(level), error)
        cost = self.distance(weight.sqrt() * error).flatten(1).mean(1)
        return Loss(per_sample=cost, parts=_parts(error, level))


@dataclass(frozen=True, kw_only=True)
class VariationalBound:
    """The variational bound itself, one drawn term of it a sample, in nats per element, without bias.

    On T steps: T times the drawn term (the first is the decoder's), plus the prior's. In continuous time: the rate of
    the divergence at the drawn time, plus the prior's; the decoder's term, which the first level makes small, is left
    to ``likelihood.bits_per_dim``. If the schedule is learned, its gradient is that of the same noise seen through
    another schedule ("frozen noise").

    In continuous time take times whose density grows towards the data (``LogSNRTimes``), or a schedule that is linear
    in log-SNR: elsewhere the rate grows as 1/t there, and uniform times meet it too seldom.

    Args:
        num_steps: T, or None for continuous time.
        times: the density of training times, divided out again: uniform if left out; on T steps it must draw from
            1/T, ..., 1.

    Raises:
        ValueError: if num_steps < 1, or times are of another number of steps.

    Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, Eqs. 13-14; Ho et al. 2020, arXiv:2006.11239, Eq. 5; Kingma et
        al. 2021, arXiv:2107.00630, Eq. 17.
    """

    num_steps: int | None = 1000
    times: Times | None = None

    def __post_init__(self) -> None:
        """Refuse a chain without steps."""
        if self.num_steps is not None and self.num_steps < 1:
            raise ValueError(f"a chain needs at least 1 step, got {self.num_steps}")
        own: int | None = getattr(self.times, "num_steps", self.num_steps)
        if own != self.num_steps:
            raise ValueError(f"the bound has num_steps={self.num_steps}, but its times {own}; make them equal")

    @property
    def density(self) -> Times:
        """The density of training times."""
        return self.times or UniformTimes(num_steps=self.num_steps)

    def __call__(self, denoiser: NetworkDenoiser[C], x0: X, condition: C, noise: Noise) -> Loss:
        """The loss of each sample; row i uses key i of ``noise`` alone.

        Raises:
            ValueError: if x0 is not finite.
        """
        level, x_t = _spoiled(denoiser, self.density, x0, noise)
        return self.of(denoiser.process, denoiser(x_t, level, condition), x0, x_t, level)

    def of(self, process: Process, belief: Estimate, x0: X, x_t: X, level: Level) -> Loss:
        """The loss of a belief."""
        schedule = process.schedule
        if self.num_steps is None:
            term = process.divergence_rate(x0, x_t, level, belief).flatten(1).mean(1)
        else:
            term = self.num_steps * _chain_term(process, belief, x0, x_t, level, self.num_steps)
        end = schedule.at(torch.ones((), dtype=torch.float64))
        prior = process.marginal(x0, end).kl(process.prior(x0)).flatten(1).mean(1)
        # What was drawn is held fixed, as the noise is: a learned schedule gets no gradient through the density.
        cost = term / self.density.density(schedule, level.t).detach().to(term)
        self.density.learn(level.t, term)
        return Loss(per_sample=cost + prior, parts=_parts(belief.x0 - x0, level))


@dataclass(frozen=True, kw_only=True)
class Hybrid:
    """A simple loss for the mean and the bound for the variance: simple + weight * bound, the mean held fixed in it.

    Args:
        bound: of which the times are drawn.
        simple: the weight of the simple loss, divided by the density of times.
        weight: lambda, of the bound in bits/dim.

    Source: Nichol & Dhariwal 2021, arXiv:2102.09672, Eq. 16 (0.001; bits/dim as in their code).
    """

    bound: VariationalBound
    simple: Weight = weight_noise
    weight: float = 0.001

    def __call__(self, denoiser: NetworkDenoiser[C], x0: X, condition: C, noise: Noise) -> Loss:
        """The loss of each sample; row i uses key i of ``noise`` alone.

        Raises:
            ValueError: if x0 is not finite.
        """
        times, process = self.bound.density, denoiser.process
        level, x_t = _spoiled(denoiser, times, x0, noise)
        belief = denoiser(x_t, level, condition)
        simple = Simple(weight=unbiased(self.simple, times, process.schedule), times=times).of(belief, x0, level)
        fixed = Estimate(x0=belief.x0.detach(), variance_fraction=belief.variance_fraction)
        bound = self.bound.of(process, fixed, x0, x_t, level)
        return Loss(
            per_sample=simple.per_sample + self.weight / math.log(2) * bound.per_sample, parts=dict(simple.parts)
        )


@dataclass(frozen=True, kw_only=True)
class Offset:
    """Another objective, on noise whose every channel is shifted as a whole.

    Args:
        objective: what is minimised.
        strength: of the shift.

    Source: see ``OffsetNoise``.
    """

    objective: Simple | VariationalBound | Hybrid
    strength: float = 0.1

    def __call__(self, denoiser: NetworkDenoiser[C], x0: X, condition: C, noise: Noise) -> Loss:
        """The loss of each sample; row i uses key i of ``noise`` alone."""
        return self.objective(denoiser, x0, condition, OffsetNoise(base=noise, strength=self.strength))


def _spoiled(denoiser: NetworkDenoiser[C], times: Times, x0: X, noise: Noise) -> tuple[Level, X]:
    """Drawn levels, and the data spoiled up to them."""
    if x0.device.type == "cpu":  # elsewhere looking at the numbers would make the device wait, a step
        require_data(x0)
    level = denoiser.process.schedule.at(times.draw(denoiser.process.schedule, x0.shape[0], noise.at(0)))
    return level, denoiser.process.marginal(x0, level).sample(noise.at(1))


def _own_belief(
    denoiser: NetworkDenoiser[C], x_t: X, level: Level, condition: C, noise: Noise, objective: Simple
) -> Estimate | None:
    if not denoiser.is_self_conditioned:
        return None
    with torch.no_grad():
        first = denoiser(x_t, level, condition).x0
    share = noise.at(2).uniform(torch.zeros(x_t.shape[0], dtype=torch.float64))
    return Estimate(x0=first * spread((share < objective.self_conditioning).double(), first))


def _chain_term(process: Process, belief: Estimate, x0: X, x_t: X, level: Level, num_steps: int) -> Float[Tensor, "b"]:
    """The bound's term of the step that each sample stands at, in nats per element."""
    index = (level.t * num_steps).round()
    if bool(((level.t * num_steps - index).abs() > 1e-6).any()):
        raise ValueError(f"a chain of {num_steps} steps has times i/{num_steps} only; draw them with UniformTimes")
    is_first = index <= 1
    term = x_t.new_zeros(x_t.shape[0])
    for rows in (is_first, ~is_first):
        if not bool(rows.any()):
            continue
        chosen = rows.to(x_t.device)
        t, believed = level[rows], belief[chosen]
        if rows is is_first:
            above = None if num_steps == 1 else process.schedule.at((index[rows] + 1) / num_steps)
            cost = -process.decode_log_prob(x0[chosen], x_t[chosen], t, believed, above)
        else:
            before = process.schedule.at((index[rows] - 1) / num_steps)
            cost = step_divergence(process, x0[chosen], x_t[chosen], t, before, believed)
        term = term.index_put((chosen,), cost.flatten(1).mean(1).to(term))
    return term


def _parts(error: X, level: Level) -> dict[str, Float[Tensor, "b"]]:
    return {"x0_error": error.detach().square().flatten(1).mean(1), "log_snr": level.log_snr.detach()}
