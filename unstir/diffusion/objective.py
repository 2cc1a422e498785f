"""Objectives: what a denoiser is trained to minimise.

Knows: which levels are drawn, what an error on x0 weighs there, which terms of the bound are asked for.
Does not know: optimizers, files, what a condition holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from jaxtyping import Float
from torch import Tensor

from unstir.diffusion.denoiser import NetworkDenoiser
from unstir.diffusion.likelihood import step_divergence
from unstir.diffusion.noise import OffsetNoise
from unstir.diffusion.process import Estimate, Process, require_data
from unstir.diffusion.schedule import Level, Schedule, spread
from unstir.typing import C, Noise, Time, X, floats, integers


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


class Times(Protocol):
    """A density of training times on (0, 1]."""

    def draw(self, schedule: Schedule, count: int, noise: Noise) -> Time:
        """One time a sample; row i uses key i of ``noise`` alone."""
        ...

    def density(self, schedule: Schedule, t: Time) -> Time:
        """The density at these times with respect to the uniform one: dividing by it undoes the choice of times."""
        ...

    def learn(self, t: Time, loss: Float[Tensor, "b"]) -> None:
        """Hear what samples at these times cost; most densities do not listen."""


@dataclass(frozen=True, kw_only=True)
class UniformTimes(Times):
    """Times uniform on (0, 1], or on the grid 1/T, 2/T, ..., 1.

    Args:
        num_steps: T, or None for continuous time.

    Raises:
        ValueError: if num_steps < 1.
    """

    num_steps: int | None = None

    def __post_init__(self) -> None:
        """Refuse a grid without steps."""
        if self.num_steps is not None and self.num_steps < 1:
            raise ValueError(f"a grid of times needs at least 1 step, got {self.num_steps}")

    def draw(self, schedule: Schedule, count: int, noise: Noise) -> Time:
        """One time a sample."""
        t = 1 - noise.uniform(torch.zeros(count, dtype=torch.float64))
        return t if self.num_steps is None else (t * self.num_steps).ceil() / self.num_steps

    def density(self, schedule: Schedule, t: Time) -> Time:
        """1."""
        return torch.ones_like(t)


@dataclass(frozen=True, kw_only=True)
class LogitNormalTimes(Times):
    """Times whose logit is normal, mixed with a share of uniform ones so that no level is forgotten.

    Args:
        mean: of the logit; positive is towards noise.
        std: of the logit.
        uniform: share of uniform times.

    Raises:
        ValueError: unless std > 0 and 0 <= uniform <= 1.

    Source: Esser et al. 2024, arXiv:2403.03206, Sec. 3.1.
    """

    mean: float = 0.0
    std: float = 1.0
    uniform: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is no density."""
        if not self.std > 0 or not 0 <= self.uniform <= 1:
            raise ValueError(
                f"logit-normal times need std > 0 and 0 <= uniform <= 1, got {self.std} and {self.uniform}"
            )

    def draw(self, schedule: Schedule, count: int, noise: Noise) -> Time:
        """One time a sample."""
        like = torch.zeros(count, dtype=torch.float64)
        normal = torch.sigmoid(self.mean + self.std * noise.at(0).normal(like))
        flat = 1 - noise.at(1).uniform(like)
        return torch.where(noise.at(2).uniform(like) < self.uniform, flat, normal)

    def density(self, schedule: Schedule, t: Time) -> Time:
        """The mixture of 1 and N(logit t; mean, std^2)/(t (1 - t))."""
        t = t.clamp(max=1 - 2**-53)  # the logit of 1 is infinite
        normal = _normal_density(torch.logit(t), self.mean, self.std) / (t * (1 - t))
        return self.uniform + (1 - self.uniform) * normal


@dataclass(frozen=True, kw_only=True)
class LogNormalTimes(Times):
    """Times at which log(sigma/alpha) is normal, within what the schedule has: EDM's density of noise levels.

    Args:
        mean: P_mean.
        std: P_std.

    Raises:
        ValueError: unless std > 0.

    Source: Karras et al. 2022, arXiv:2206.00364, Table 1 (-1.2 and 1.2).
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        """Refuse what is no density."""
        if not self.std > 0:
            raise ValueError(f"log-normal times need std > 0, got {self.std}")

    def draw(self, schedule: Schedule, count: int, noise: Noise) -> Time:
        """One time a sample."""
        low, high = self._shares(schedule)
        share = low + (high - low) * noise.uniform(torch.zeros(count, dtype=torch.float64))
        log_snr = -2 * (self.mean + self.std * cast(Tensor, torch.special.ndtri(share)))
        return schedule.time_of(log_snr.clamp(*_log_snr_ends(schedule)))

    def density(self, schedule: Schedule, t: Time) -> Time:
        """N(log(sigma/alpha); mean, std^2) |d log(sigma/alpha)/dt|, over what of the normal the schedule has."""
        level = schedule.at(t)
        low, high = self._shares(schedule)
        return _normal_density(-level.log_snr / 2, self.mean, self.std) * -level.dlog_snr / 2 / (high - low)

    def _shares(self, schedule: Schedule) -> tuple[float, float]:
        low, high = (
            0.5 * math.erfc((self.mean + log_snr / 2) / self.std / math.sqrt(2))
            for log_snr in reversed(_log_snr_ends(schedule))
        )
        if not high > low:
            raise ValueError(
                f"the schedule has no level with log(sigma/alpha) near {self.mean} +- {self.std}; move the mean"
            )
        return low, high


@dataclass(frozen=True, kw_only=True)
class LogSNRTimes(Times):
    """Times at which the log-SNR is uniform, within what the schedule has.

    Args:
        low: in nats, towards noise.
        high: in nats, towards data.

    Raises:
        ValueError: unless low < high.

    Source: Kingma & Gao 2023, arXiv:2303.00848, Sec. 3 (a density of log-SNR is all that a schedule means in training).
    """

    low: float = -13.3
    high: float = 13.3

    def __post_init__(self) -> None:
        """Refuse what is no density."""
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(f"log-SNR times need low < high, got {self.low} and {self.high}")

    def draw(self, schedule: Schedule, count: int, noise: Noise) -> Time:
        """One time a sample."""
        low, high = self._ends(schedule)
        share = noise.uniform(torch.zeros(count, dtype=torch.float64))
        return schedule.time_of(low + (high - low) * share)

    def density(self, schedule: Schedule, t: Time) -> Time:
        """|d log-SNR/dt|/(high - low) between the two, 0 outside."""
        low, high = self._ends(schedule)
        level = schedule.at(t)
        inside = (level.log_snr >= low) & (level.log_snr <= high)
        return torch.where(inside, -level.dlog_snr / (high - low), 0.0)

    def _ends(self, schedule: Schedule) -> tuple[float, float]:
        low, high = _log_snr_ends(schedule)
        return max(self.low, low), min(self.high, high)


class LossAwareTimes(Times):
    """Steps of a chain drawn in proportion to the root of their mean squared loss: importance sampling of the bound.

    Uniform until every step has been heard ``history`` times. It remembers, so it has a ``state_dict``.

    Args:
        num_steps: T.
        history: losses remembered a step.
        uniform: probability kept aside for uniform times.

    Raises:
        ValueError: if a number is out of its range.

    Source: Nichol & Dhariwal 2021, arXiv:2102.09672, Sec. 3.3, Eq. 18.
    """

    def __init__(self, *, num_steps: int, history: int = 10, uniform: float = 0.001) -> None:
        if num_steps < 1 or history < 1 or not 0 < uniform <= 1:
            raise ValueError(
                f"importance-sampled times need num_steps and history of at least 1 and 0 < uniform <= 1, got "
                f"{num_steps}, {history} and {uniform}"
            )
        self.num_steps, self.history, self.uniform = num_steps, history, uniform
        self.losses = torch.zeros(num_steps, history, dtype=torch.float64)
        self.heard = torch.zeros(num_steps, dtype=torch.int64)

    @property
    def probabilities(self) -> Float[Tensor, "n"]:
        """Of steps 1 to T."""
        flat = torch.full((self.num_steps,), 1 / self.num_steps, dtype=torch.float64)
        root = self.losses.square().mean(1).sqrt()
        if bool((self.heard < self.history).any()) or not bool(root.sum() > 0):
            return flat
        return (1 - self.uniform) * root / root.sum() + self.uniform * flat

    def draw(self, schedule: Schedule, count: int, noise: Noise) -> Time:
        """One time a sample."""
        share = noise.uniform(torch.zeros(count, dtype=torch.float64))
        steps = torch.searchsorted(self.probabilities.cumsum(0), share, right=True).clamp(max=self.num_steps - 1)
        return (steps + 1).double() / self.num_steps

    def density(self, schedule: Schedule, t: Time) -> Time:
        """T times the probability of the step."""
        return self.num_steps * self.probabilities[self._step(t)]

    def learn(self, t: Time, loss: Float[Tensor, "b"]) -> None:
        """Remember these losses, each step's newest ones."""
        for step, cost in zip(integers(self._step(t)), floats(loss.detach().double().cpu()), strict=True):
            self.losses[step, int(self.heard[step]) % self.history] = cost
            self.heard[step] += 1

    def state_dict(self) -> dict[str, Tensor]:
        """What was heard."""
        return {"losses": self.losses.clone(), "heard": self.heard.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from what was heard.

        Raises:
            ValueError: if it is of another number of steps or another length of history.
        """
        if state["losses"].shape != self.losses.shape:
            raise ValueError(
                f"the history is of {tuple(state['losses'].shape)} losses, these times hold {tuple(self.losses.shape)}"
            )
        self.losses, self.heard = state["losses"].clone(), state["heard"].clone()

    def _step(self, t: Time) -> Tensor:
        return ((t * self.num_steps).round().long() - 1).clamp(0, self.num_steps - 1)


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
) -> X | None:
    if not denoiser.is_self_conditioned:
        return None
    with torch.no_grad():
        first = denoiser(x_t, level, condition).x0
    share = noise.at(2).uniform(torch.zeros(x_t.shape[0], dtype=torch.float64))
    return first * spread((share < objective.self_conditioning).double(), first)


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
        t, fraction = level[rows], belief.variance_fraction
        believed = Estimate(
            x0=belief.x0[chosen], variance_fraction=fraction[chosen] if isinstance(fraction, Tensor) else fraction
        )
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


def _log_snr_ends(schedule: Schedule) -> tuple[float, float]:
    """The lowest and the highest log-SNR of a schedule, the latter just beside the data."""
    low, high = floats(schedule.at(torch.tensor([1.0, 1e-12], dtype=torch.float64)).log_snr.detach())
    return low, high


def _normal_density(x: Tensor, mean: float, std: float) -> Tensor:
    return torch.exp(-0.5 * ((x - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))
