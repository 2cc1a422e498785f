"""Schedules: from a time t to how much signal (alpha) and how much noise (sigma) a sample holds.

Knows: t, alpha, sigma, log-SNR, and the T-step tables made of them.
Does not know: any data tensor, except to spread a coefficient over one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from unstir.typing import Time, X, floats


@dataclass(frozen=True, kw_only=True, eq=False)
class Level:
    """Where on the path from data (t = 0) to noise (t = 1) each sample stands; numbers only, no data.

    x_t = alpha x0 + sigma noise. ``dalpha`` and ``dsigma`` are derivatives with respect to t; they may be infinite at
    the ends of a schedule. All fields share one shape, (b,) or ().
    """

    t: Time
    alpha: Time
    sigma: Time
    dalpha: Time
    dsigma: Time

    @property
    def log_snr(self) -> Time:
        """log(alpha^2 / sigma^2), in nats."""
        return 2 * (self.alpha.log() - self.sigma.log())

    def __getitem__(self, index: int | slice) -> Level:
        """The level of one point of a grid (shape ()), or of some samples of a batch."""
        return Level(
            t=self.t[index],
            alpha=self.alpha[index],
            sigma=self.sigma[index],
            dalpha=self.dalpha[index],
            dsigma=self.dsigma[index],
        )


def spread(coefficient: Time, x: X) -> Tensor:
    """A coefficient, one for all or one a sample, ready to multiply ``x``: its type and device, shape (b, 1, ...).

    A coefficient of shape () stays on the CPU in float64: it multiplies a tensor on any device without a copy.
    """
    if coefficient.ndim == 0:
        return coefficient
    return coefficient.to(x).view(-1, *[1] * (x.ndim - 1))


@runtime_checkable
class Schedule(Protocol):
    """t -> Level, and back from the log-SNR, which falls strictly with t."""

    def at(self, t: Time) -> Level:
        """The level at time t in [0, 1]."""
        ...

    def time_of(self, log_snr: Time) -> Time:
        """The time whose level has this log-SNR; the nearest end of [0, 1] for a value that no level has."""
        ...


@runtime_checkable
class VariancePreserving(Schedule, Protocol):
    """A schedule with alpha^2 + sigma^2 = 1. A subclass writes ``alpha_bar`` = alpha^2 and nothing else."""

    def alpha_bar(self, t: Time) -> Time:
        """The share of the signal's variance that is left at time t; 1 at t = 0, falling."""
        ...

    def at(self, t: Time) -> Level:
        """The level at time t; derivatives by automatic differentiation of ``alpha_bar``."""
        t = _checked(t)
        with torch.enable_grad():
            variable = t.detach().clone().requires_grad_()
            alpha_bar = self.alpha_bar(variable)
            (slope,) = torch.autograd.grad(alpha_bar.sum(), variable)
        alpha, sigma = alpha_bar.detach().sqrt(), (1 - alpha_bar.detach()).clamp(min=0).sqrt()
        return Level(t=t, alpha=alpha, sigma=sigma, dalpha=slope / (2 * alpha), dsigma=-slope / (2 * sigma))

    def time_of(self, log_snr: Time) -> Time:
        """The inverse of ``at(t).log_snr`` by bisection, to the last bit that float64 tells apart."""
        target = torch.sigmoid(log_snr.double())
        low, high = torch.zeros_like(target), torch.ones_like(target)
        for _ in range(60):
            middle = (low + high) / 2
            is_left = self.alpha_bar(middle) > target
            low, high = torch.where(is_left, middle, low), torch.where(is_left, high, middle)
        return (low + high) / 2


@dataclass(frozen=True, kw_only=True)
class LinearBeta(VariancePreserving):
    """Noise added at a rate that grows linearly: alpha_bar(t) = exp(-(beta_min t + (beta_max - beta_min) t^2 / 2)).

    The continuous limit of DDPM's table (``linear_betas``), whose 1e-4 and 0.02 are these rates divided by T = 1000.

    Args:
        beta_min: the rate at t = 0, per unit of time.
        beta_max: the rate at t = 1.

    Raises:
        ValueError: unless 0 < beta_min <= beta_max.

    Source: Song et al. 2021, arXiv:2011.13456, Eq. 33; Ho et al. 2020, arXiv:2006.11239, Sec. 4.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        """Refuse rates that do not add noise."""
        if not 0 < self.beta_min <= self.beta_max < math.inf:
            raise ValueError(f"linear schedule needs 0 < beta_min <= beta_max, got {self.beta_min} and {self.beta_max}")

    def alpha_bar(self, t: Time) -> Time:
        """The share of signal variance at time t."""
        return torch.exp(-(self.beta_min * t + (self.beta_max - self.beta_min) * t**2 / 2))


@dataclass(frozen=True, kw_only=True)
class Cosine(VariancePreserving):
    """The cosine schedule: alpha_bar(t) = f(t)/f(0), f(t) = cos((t + offset)/(1 + offset) * pi/2)^2.

    Loses information more slowly than the linear schedule near both ends.

    Args:
        offset: keeps sigma from vanishing too fast near t = 0; 0.008 in the paper.
        floor: the alpha_bar at t = 1, so that log_snr stays finite: alpha_bar = floor + (1 - floor) f(t)/f(0).

    Raises:
        ValueError: if offset < 0 or floor is not in (0, 1).

    Source: Nichol & Dhariwal 2021, arXiv:2102.09672, Eq. 17. Their clipping of beta at 0.999 belongs to the
        discrete table and is applied by ``Tabulated.from_schedule``.
    """

    offset: float = 0.008
    floor: float = 1e-9

    def __post_init__(self) -> None:
        """Refuse an offset or a floor outside their range."""
        if not 0 <= self.offset < math.inf or not 0 < self.floor < 1:
            raise ValueError(f"cosine schedule needs offset >= 0 and 0 < floor < 1, got {self.offset} and {self.floor}")

    def alpha_bar(self, t: Time) -> Time:
        """The share of signal variance at time t."""
        start = math.cos(self.offset / (1 + self.offset) * math.pi / 2) ** 2
        ratio = torch.cos((t + self.offset) / (1 + self.offset) * math.pi / 2) ** 2 / start
        # Rounding must not leave noise at t = 0: samplers know their end by it.
        ratio = torch.where(t == 0, ratio + (1 - ratio).detach(), ratio)
        return self.floor + (1 - self.floor) * ratio


@dataclass(frozen=True, kw_only=True)
class RectifiedFlow(Schedule):
    """The straight path between data and noise: alpha = 1 - t, sigma = t.

    Its ends are exact: no noise at t = 0, no signal at t = 1 (so nothing may divide by alpha there).

    Source: Liu et al. 2023, arXiv:2209.03003, Eq. 1, with time reversed; Lipman et al. 2023, arXiv:2210.02747, Eq. 22.
    """

    def at(self, t: Time) -> Level:
        """The level at time t."""
        t = _checked(t)
        one = torch.ones_like(t)
        return Level(t=t, alpha=1 - t, sigma=t, dalpha=-one, dsigma=one)

    def time_of(self, log_snr: Time) -> Time:
        """The inverse of ``at(t).log_snr`` = 2 log((1 - t)/t)."""
        return torch.sigmoid(-log_snr.double() / 2)


@dataclass(frozen=True, kw_only=True)
class Tabulated(VariancePreserving):
    """The T-step view of a chain: exact at t = i/T, in between log-SNR is linear in t.

    On an interval one of whose ends has alpha_bar 0 or 1 (the first one, always) the log-SNR is infinite there, and
    alpha_bar itself is linear in t.

    Args:
        table: alpha_bar at t = 1/T, 2/T, ..., 1; T is its length.

    Raises:
        ValueError: if the table is empty, does not fall strictly, or leaves [0, 1).

    Source: Ho et al. 2020, arXiv:2006.11239, Sec. 2 (alpha_bar as a product over steps).
    """

    table: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse a table that is no chain."""
        points = (1.0, *self.table)
        if len(points) < 2 or not all(a > b for a, b in itertools.pairwise(points)) or points[-1] < 0:
            raise ValueError("a table of alpha_bar needs at least one value, all in [0, 1) and falling strictly")

    @classmethod
    def from_betas(cls, betas: Sequence[float]) -> Self:
        """The chain x_i = sqrt(1 - beta_i) x_{i-1} + sqrt(beta_i) noise, i = 1..T.

        Raises:
            ValueError: if any beta is outside (0, 1].
        """
        if not all(0 < beta <= 1 for beta in betas):
            raise ValueError(f"betas must be in (0, 1], got {min(betas)} to {max(betas)}")
        steps = torch.tensor(betas, dtype=torch.float64)
        return cls(table=tuple(floats(torch.cumprod(1 - steps, 0))))

    @classmethod
    def from_schedule(cls, schedule: VariancePreserving, num_steps: int, beta_max: float = 0.999) -> Self:
        """The T-step chain through a continuous schedule, each beta at most ``beta_max``.

        Raises:
            ValueError: if num_steps < 1.

        Source: Nichol & Dhariwal 2021, arXiv:2102.09672, Sec. 3.2 (clipping at 0.999).
        """
        if num_steps < 1:
            raise ValueError(f"a chain needs at least 1 step, got {num_steps}")
        alpha_bar = schedule.alpha_bar(torch.arange(num_steps + 1, dtype=torch.float64) / num_steps)
        return cls.from_betas(floats((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=beta_max)))

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.table)

    @cached_property
    def _points(self) -> Tensor:
        return torch.tensor((1.0, *self.table), dtype=torch.float64)

    def alpha_bar(self, t: Time) -> Time:
        """The share of signal variance at time t."""
        position = t * self.num_steps
        nearest = position.detach().round()
        # i/T * T is not always i in float64; a grid point must still read its own entry.
        position = torch.where(
            (position.detach() - nearest).abs() < 1e-9, position - (position - nearest).detach(), position
        )
        index = position.detach().floor().clamp(0, self.num_steps - 1).long()
        share = position - index
        left, right = self._points[index], self._points[index + 1]
        ends = (left == 1) | (right == 0)
        inside = torch.full_like(left, 0.5)  # any value with a finite logit, where the other branch is taken
        log_snr_left, log_snr_right = (
            torch.logit(torch.where(ends, inside, left)),
            torch.logit(torch.where(ends, inside, right)),
        )
        smooth = torch.sigmoid(torch.lerp(log_snr_left, log_snr_right, share))
        # Adding 0 * (smooth - left) would lose the slope at a point, so only the value is pinned there.
        smooth = torch.where(share.detach() == 0, smooth + (left - smooth).detach(), smooth)
        smooth = torch.where(share.detach() == 1, smooth + (right - smooth).detach(), smooth)
        return torch.where(ends, torch.lerp(left, right, share), smooth)


def linear_betas(num_steps: int = 1000, *, first: float = 1e-4, last: float = 0.02) -> tuple[float, ...]:
    """DDPM's betas: linear in the step from ``first`` to ``last`` at T = 1000, scaled by 1000/T for another T.

    Raises:
        ValueError: if num_steps < 1, or so few steps would need a beta above 1.

    Source: Ho et al. 2020, arXiv:2006.11239, Sec. 4; the scaling is Nichol & Dhariwal's code (improved-diffusion).
    """
    if num_steps < 1:
        raise ValueError(f"a chain needs at least 1 step, got {num_steps}")
    scale = 1000 / num_steps
    if last * scale > 1:
        raise ValueError(
            f"linear betas need at least {math.ceil(1000 * last)} steps, got {num_steps}; use another schedule"
        )
    return tuple(floats(torch.linspace(first * scale, last * scale, num_steps, dtype=torch.float64)))


def _checked(t: Time) -> Time:
    if t.dtype != torch.float64 or t.device.type != "cpu":
        raise TypeError(f"times are float64 on the CPU, got {t.dtype} on {t.device}")
    if not bool(((t >= 0) & (t <= 1)).all()):
        raise ValueError(f"times must be in [0, 1], got {t.min().item()} to {t.max().item()}")
    return t


SCHEDULES: dict[str, type[LinearBeta] | type[Cosine] | type[RectifiedFlow] | type[Tabulated]] = {
    "linear": LinearBeta,
    "cosine": Cosine,
    "rectified_flow": RectifiedFlow,
    "tabulated": Tabulated,
}
