"""Schedules: from a time t to how much signal (alpha) and how much noise (sigma) a sample holds.

Knows: t, alpha, sigma, log-SNR, and the T-step tables made of them.
Does not know: any data tensor, except to spread a coefficient over one.

"Linear" means four different things in the literature. Here each has a name of its own:

- ``linear_betas(T)``: beta linear in the step (DDPM), times 1000/T (OpenAI's code): the same at T = 1000.
- ``LinearBeta``: its continuous limit, a rate linear in t (Song's VP-SDE; beta_d and beta_min in EDM's "VP").
- ``quadratic_betas(T)``, ``QuadraticBeta``: sqrt(beta) linear ("quad" in DDPM's code, "linear" in latent diffusion's,
  "scaled_linear" in diffusers).
- ``LogLinear``: log-SNR linear in t (VDM's fixed schedule); ``RectifiedFlow``: alpha and sigma linear in t.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Protocol, Self, runtime_checkable

import torch
from jaxtyping import Bool, Float64, Int64
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

    @property
    def dlog_snr(self) -> Time:
        """The derivative of ``log_snr`` with respect to t; negative."""
        return 2 * (self.dalpha / self.alpha - self.dsigma / self.sigma)

    def __getitem__(self, index: int | slice | Bool[Tensor, "b"]) -> Level:
        """The level of one point of a grid (shape ()), or of some samples of a batch."""
        return self.map(lambda numbers: numbers[index])

    def map(self, function: Callable[[Time], Time]) -> Level:
        """The level whose every field is the function of this one's."""
        return Level(
            t=function(self.t),
            alpha=function(self.alpha),
            sigma=function(self.sigma),
            dalpha=function(self.dalpha),
            dsigma=function(self.dsigma),
        )

    def unbind(self) -> list[Level]:
        """The levels of a grid, one by one, each of shape ()."""
        columns = (self.t, self.alpha, self.sigma, self.dalpha, self.dsigma)
        return [
            Level(t=t, alpha=alpha, sigma=sigma, dalpha=dalpha, dsigma=dsigma)
            for t, alpha, sigma, dalpha, dsigma in zip(*(column.unbind() for column in columns), strict=True)
        ]


def spread(coefficient: Time, x: X) -> Tensor:
    """A coefficient, one for all or one a sample, ready to multiply ``x``: its type and device, shape (b, 1, ...).

    A coefficient of shape () stays on the CPU in float64: it multiplies a tensor on any device without a copy.
    """
    if coefficient.ndim == 0:
        return coefficient
    return coefficient.to(x).view(-1, *[1] * (x.ndim - 1))


def combined(a: Time, x: X, b: Time, y: X) -> X:
    """The sum a x + b y, for coefficients as ``spread`` takes them.

    Where one serves all samples and carries no gradient it is a plain number, which needs two passes instead of three.
    """
    if a.ndim == 0 and not (a.requires_grad or b.requires_grad):
        return added([(a.item(), x), (b.item(), y)])
    return spread(a, x) * x + spread(b, y) * y


Part = tuple[float, X]
"""A weight in a sum, and what it weighs."""


def added(parts: Iterable[Part]) -> X:
    """The sum of tensors, each times its weight; one that comes twice is read once."""
    found: dict[int, Part] = {}
    for weight, tensor in parts:
        known = found.get(id(tensor))
        found[id(tensor)] = (weight if known is None else weight + known[0], tensor)
    (weight, tensor), *others = found.values()
    total = weight * tensor
    for weight, tensor in others:
        total.add_(tensor, alpha=weight)
    return total


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
        t = checked_time(t)
        with torch.enable_grad():
            variable = t.detach().clone().requires_grad_()
            alpha_bar = self.alpha_bar(variable)
            (slope,) = torch.autograd.grad(alpha_bar.sum(), variable)
        return _level_of_alpha_bar(t, alpha_bar.detach(), slope)

    def time_of(self, log_snr: Time) -> Time:
        """The inverse of ``at(t).log_snr`` by bisection, to the last bit that float64 tells apart."""
        return where_falls_to(self.alpha_bar, torch.sigmoid(log_snr.double()))


def _level_of_alpha_bar(t: Time, alpha_bar: Time, slope: Time) -> Level:
    alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).clamp(min=0).sqrt()
    dsigma = torch.where(sigma > 0, -slope / (2 * sigma), torch.inf)  # also where the slope is 0 with it
    return Level(t=t, alpha=alpha, sigma=sigma, dalpha=slope / (2 * alpha), dsigma=dsigma)


def _from_data(alpha_bar: Time, t: Time) -> Time:
    """The same, but 1 at t = 0, where rounding must not leave noise: samplers know their end by it."""
    return torch.where(t == 0, alpha_bar + (1 - alpha_bar).detach(), alpha_bar)


def where_falls_to(function: Callable[[Time], Time], target: Time) -> Time:
    """The t in [0, 1] at which a falling function has the value ``target``, by bisection to the last bit.

    For few targets the function is asked for 63 points at once, which costs no more than one and halves six times.
    """
    halvings = 6 if target.numel() <= 64 else 1
    shares = target.new_tensor(range(1, 2**halvings)) / 2**halvings
    low, width = torch.zeros_like(target), 1.0
    for _ in range(60 // halvings):
        points = low[..., None] + width * shares
        is_left = function(points.flatten()).view(points.shape) > target[..., None]
        width /= 2**halvings
        low = low + width * is_left.sum(-1)
    return low + width / 2


def level_of_log_snr(t: Time, log_snr: Time, dlog_snr: Time) -> Level:
    """The variance-preserving level of a given log-SNR, exact at both of its ends; at t = 0 it is the data itself.

    alpha^2 = sigmoid(log_snr), sigma^2 = sigmoid(-log_snr)
    """
    alpha_bar, sigma_squared = torch.sigmoid(log_snr), torch.sigmoid(-log_snr)
    alpha, sigma = alpha_bar.sqrt(), sigma_squared.sqrt()
    dalpha, dsigma = alpha * sigma_squared * dlog_snr / 2, -sigma * alpha_bar * dlog_snr / 2
    is_data = t == 0
    alpha, sigma = torch.where(is_data, 1.0, alpha), torch.where(is_data, 0.0, sigma)
    return Level(t=t, alpha=alpha, sigma=sigma, dalpha=dalpha, dsigma=dsigma)


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
class QuadraticBeta(VariancePreserving):
    """Noise added at a rate whose root grows linearly: beta(t) = (a + (b - a) t)^2, a^2 = beta_min, b^2 = beta_max.

    The continuous limit of ``quadratic_betas``: "quad" in DDPM's code, "linear" in latent diffusion's, "scaled_linear"
    in diffusers.

    Args:
        beta_min: the rate at t = 0, per unit of time.
        beta_max: the rate at t = 1.

    Raises:
        ValueError: unless 0 < beta_min <= beta_max.

    Source: Rombach et al. 2022, arXiv:2112.10752 (code); Ho et al. 2020, arXiv:2006.11239 (code).
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        """Refuse rates that do not add noise."""
        if not 0 < self.beta_min <= self.beta_max < math.inf:
            raise ValueError(
                f"quadratic schedule needs 0 < beta_min <= beta_max, got {self.beta_min} and {self.beta_max}"
            )

    def alpha_bar(self, t: Time) -> Time:
        """The share of signal variance at time t: exp of minus the integral of beta."""
        start, rise = math.sqrt(self.beta_min), math.sqrt(self.beta_max) - math.sqrt(self.beta_min)
        return torch.exp(-(start**2 * t + start * rise * t**2 + rise**2 * t**3 / 3))


@dataclass(frozen=True, kw_only=True)
class Reciprocal(VariancePreserving):
    """The signal's variance erased evenly: alpha_bar(t) = 1 - t.

    On T steps beta_i = 1/(T - i + 1) exactly, "to erase a constant fraction 1/T of the original signal a step"; "jsd"
    in DDPM's code. It ends without signal.

    Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, Sec. 2.4.1.
    """

    def alpha_bar(self, t: Time) -> Time:
        """The share of signal variance at time t."""
        return 1 - t


@dataclass(frozen=True, kw_only=True)
class Cosine(VariancePreserving):
    """The cosine schedule: alpha_bar(t) = f(t)/f(0), f(t) = cos((t + offset)/(1 + offset) * pi/2)^2.

    Loses information more slowly than the linear schedule near both ends.

    Args:
        offset: keeps sigma from vanishing too fast near t = 0; 0.008 in the paper.
        floor: the alpha_bar at t = 1, so that log_snr stays finite: alpha_bar = max(f(t)/f(0), floor (2 - t)), which
            is the paper's formula everywhere but within sqrt(floor) of t = 1.

    Raises:
        ValueError: if offset < 0 or floor is not in (0, 0.5].

    Source: Nichol & Dhariwal 2021, arXiv:2102.09672, Eq. 17. Their clipping of beta at 0.999 belongs to the
        discrete table and is applied by ``Tabulated.from_schedule``.
    """

    offset: float = 0.008
    floor: float = 1e-10

    def __post_init__(self) -> None:
        """Refuse an offset or a floor outside their range."""
        if not 0 <= self.offset < math.inf or not 0 < self.floor <= 0.5:
            raise ValueError(
                f"cosine schedule needs offset >= 0 and 0 < floor <= 0.5, got {self.offset} and {self.floor}"
            )

    def alpha_bar(self, t: Time) -> Time:
        """The share of signal variance at time t."""
        start = math.cos(self.offset / (1 + self.offset) * math.pi / 2) ** 2
        ratio = torch.cos((t + self.offset) / (1 + self.offset) * math.pi / 2) ** 2 / start
        return torch.maximum(_from_data(ratio, t), self.floor * (2 - t))


@dataclass(frozen=True, kw_only=True)
class Sigmoid(VariancePreserving):
    """The sigmoid schedule: alpha_bar(t) = (S(end) - S(u))/(S(end) - S(start)), u = start + (end - start) t.

    S(u) = sigmoid(u/temperature). (The "sigmoid" of diffusers is another one: betas that follow a sigmoid.)

    Args:
        start: where on the sigmoid it begins.
        end: where it ends.
        temperature: tau; higher is straighter.
        floor: the alpha_bar at t = 1, as in ``Cosine``.

    Raises:
        ValueError: unless start < end, temperature > 0 and 0 < floor <= 0.5.

    Source: Chen 2023, arXiv:2301.10972, Algorithm 1; Jabri et al. 2023, arXiv:2212.11972.
    """

    start: float = -3.0
    end: float = 3.0
    temperature: float = 1.0
    floor: float = 1e-10

    def __post_init__(self) -> None:
        """Refuse what does not fall."""
        if not -math.inf < self.start < self.end < math.inf or not 0 < self.temperature < math.inf:
            raise ValueError(
                f"sigmoid schedule needs start < end and temperature > 0, got {self.start}, {self.end} and "
                f"{self.temperature}"
            )
        if not 0 < self.floor <= 0.5:
            raise ValueError(f"sigmoid schedule needs 0 < floor <= 0.5, got {self.floor}")

    def alpha_bar(self, t: Time) -> Time:
        """The share of signal variance at time t."""
        ends = torch.sigmoid(t.new_tensor([self.start, self.end]) / self.temperature)
        inside = torch.sigmoid((self.start + (self.end - self.start) * t) / self.temperature)
        ratio = (ends[1] - inside) / (ends[1] - ends[0])
        return torch.maximum(_from_data(ratio, t), self.floor * (2 - t))


@dataclass(frozen=True, kw_only=True)
class LogLinear(VariancePreserving):
    """Log-SNR linear in t, from ``high`` near t = 0 to ``low`` at t = 1: sigma/alpha grows geometrically.

    At t = 0 itself it jumps to the data: a grid that ends there has the clean sample as its last point.

    Args:
        high: the log-SNR that t = 0 is approached with, in nats.
        low: the log-SNR at t = 1.

    Raises:
        ValueError: unless low < high, both finite.

    Source: Kingma et al. 2021, arXiv:2107.00630, Sec. 5.1 (gamma from -13.3 to 5, linear).
    """

    high: float = 13.3
    low: float = -13.3

    def __post_init__(self) -> None:
        """Refuse what does not fall."""
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(f"log-linear schedule needs low < high, got {self.low} and {self.high}")

    def alpha_bar(self, t: Time) -> Time:
        """The share of signal variance at time t."""
        return torch.where(t == 0, 1.0, torch.sigmoid(self.high + (self.low - self.high) * t))

    def at(self, t: Time) -> Level:
        """The level at time t, from its log-SNR: 1 - alpha_bar would lose digits near the data."""
        t = checked_time(t)
        slope = torch.full_like(t, self.low - self.high)
        return level_of_log_snr(t, self.high + slope * t, slope)

    def time_of(self, log_snr: Time) -> Time:
        """(high - log_snr)/(high - low), within [0, 1]."""
        return ((self.high - log_snr.double()) / (self.high - self.low)).clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class VarianceExploding(Schedule):
    """Noise piled on untouched data: alpha = 1, sigma = sigma_max t.

    Every schedule with alpha = 1 walks this same path; they differ in the pace, which is a matter of the grid of times
    (``uniform_log_snr``: geometric) and of the density of training times (``LogNormalTimes``: EDM's).

    Args:
        sigma_max: sigma at t = 1; far above the spread of the data, which the prior forgets.

    Raises:
        ValueError: unless sigma_max is positive and finite.

    Source: Karras et al. 2022, arXiv:2206.00364, Table 1 (sigma = t up to 80); Song et al. 2021, arXiv:2011.13456,
        Eq. 9.
    """

    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        """Refuse a path without noise."""
        if not 0 < self.sigma_max < math.inf:
            raise ValueError(f"variance-exploding schedule needs a positive sigma_max, got {self.sigma_max}")

    def at(self, t: Time) -> Level:
        """The level at time t."""
        t = checked_time(t)
        one = torch.ones_like(t)
        return Level(t=t, alpha=one, sigma=self.sigma_max * t, dalpha=0 * one, dsigma=self.sigma_max * one)

    def time_of(self, log_snr: Time) -> Time:
        """The inverse of ``at(t).log_snr`` = -2 log(sigma_max t)."""
        return (torch.exp(-log_snr.double() / 2) / self.sigma_max).clamp(max=1)


@dataclass(frozen=True, kw_only=True)
class RectifiedFlow(Schedule):
    """The straight path between data and noise: alpha = 1 - u, sigma = u, with u = shift t/(1 + (shift - 1) t).

    Its ends are exact: no noise at t = 0, no signal at t = 1 (so nothing may divide by alpha there).

    Args:
        shift: moves times towards noise, as larger pictures need: sqrt(m/n) for m sites instead of n; 1 is none. It is
            part of the schedule, so it is applied once, in training and in sampling alike.

    Raises:
        ValueError: unless shift is positive and finite.

    Source: Liu et al. 2023, arXiv:2209.03003, Eq. 1, with time reversed; Lipman et al. 2023, arXiv:2210.02747, Eq. 22;
        Esser et al. 2024, arXiv:2403.03206, Eq. 23 (shift).
    """

    shift: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a shift that is none."""
        if not 0 < self.shift < math.inf:
            raise ValueError(f"rectified flow needs a positive shift, got {self.shift}; 1 is none")

    def at(self, t: Time) -> Level:
        """The level at time t."""
        t = checked_time(t)
        stretch = 1 + (self.shift - 1) * t
        slope = self.shift / stretch**2
        return Level(t=t, alpha=(1 - t) / stretch, sigma=self.shift * t / stretch, dalpha=-slope, dsigma=slope)

    def time_of(self, log_snr: Time) -> Time:
        """The inverse of ``at(t).log_snr`` = 2 log((1 - u)/u)."""
        u = torch.sigmoid(-log_snr.double() / 2)
        return u / (self.shift - (self.shift - 1) * u)


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
        if len(points) < 2:
            raise ValueError("a table of alpha_bar needs at least one value, got none: a chain has at least 1 step")
        for i, (before, after) in enumerate(itertools.pairwise(points), start=1):
            if not before > after >= 0:
                raise ValueError(
                    f"a table of alpha_bar falls strictly from 1 and stays in [0, 1), but entry {i} is {after} after "
                    f"{before}; each step must add noise"
                )

    @classmethod
    def from_betas(cls, betas: Sequence[float]) -> Self:
        """The chain x_i = sqrt(1 - beta_i) x_{i-1} + sqrt(beta_i) noise, i = 1..T.

        Raises:
            ValueError: if there is no beta, or any is outside (0, 1), save that the last may be 1 (which leaves no
                signal).
        """
        for i, beta in enumerate(betas, start=1):
            if not (0 < beta < 1 or (beta == 1 and i == len(betas))):
                raise ValueError(
                    f"beta of step {i} is {beta}, but betas are variances of added noise, in (0, 1) (1 only at the "
                    "last step, where it leaves no signal)"
                )
        steps = torch.tensor(betas, dtype=torch.float64)
        return cls(table=tuple(floats(torch.cumprod(1 - steps, 0))))

    @classmethod
    def from_schedule(cls, schedule: VariancePreserving, num_steps: int, beta_max: float = 0.999) -> Self:
        """The T-step chain through a continuous schedule, each beta at most ``beta_max``.

        Raises:
            ValueError: if num_steps < 1.

        Source: Nichol & Dhariwal 2021, arXiv:2102.09672, Sec. 3.2 (clipping at 0.999).
        """
        _check_steps(num_steps)
        alpha_bar = schedule.alpha_bar(torch.arange(num_steps + 1, dtype=torch.float64) / num_steps).detach()
        betas = 1 - alpha_bar[1:] / alpha_bar[:-1]
        if bool((betas <= beta_max).all()):
            return cls(table=tuple(floats(alpha_bar[1:])))  # no product of quotients, so no rounding
        return cls.from_betas(floats(betas.clamp(max=beta_max)))

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.table)

    @property
    def betas(self) -> tuple[float, ...]:
        """The variance that each step adds: beta_i = 1 - alpha_bar_i / alpha_bar_{i-1}."""
        return tuple(floats(1 - self._points[1:] / self._points[:-1]))

    def with_zero_terminal_snr(self) -> Self:
        """The same chain, its sqrt(alpha_bar) shifted and scaled so that the last is 0 and the first unchanged.

        sqrt(alpha_bar_i) <- (sqrt(alpha_bar_i) - last) first/(first - last). A network that predicts noise cannot be
        used with it: at t = 1 the noise says nothing about x0.

        Raises:
            ValueError: if the chain has fewer than 2 steps.

        Source: Lin et al. 2024, arXiv:2305.08891, Algorithm 1.
        """
        if self.num_steps < 2:
            raise ValueError("a chain of one step has no first entry to keep; use Tabulated(table=(0.0,))")
        root = torch.tensor(self.table, dtype=torch.float64).sqrt()
        rescaled = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
        return type(self)(table=(self.table[0], *floats(rescaled[1:].square())))

    @cached_property
    def _points(self) -> Tensor:
        return torch.tensor((1.0, *self.table), dtype=torch.float64)

    def alpha_bar(self, t: Time) -> Time:
        """The share of signal variance at time t."""
        return between_points(self._points, t)

    def at(self, t: Time) -> Level:
        """The level at time t; the slope of what is linear in between is known, and quicker than asking autograd."""
        t = checked_time(t)
        points, index = self._points, _interval(t.detach(), self.num_steps)[0]
        alpha_bar = between_points(points, t.detach())
        smooth = alpha_bar * (1 - alpha_bar) * self._logit_rises[index]
        return _level_of_alpha_bar(
            t, alpha_bar, self.num_steps * torch.where(smooth.isfinite(), smooth, points[index + 1] - points[index])
        )

    @cached_property
    def _logit_rises(self) -> Tensor:
        return torch.logit(self._points).diff()  # infinite where alpha_bar itself is linear


def levels_at(schedule: Schedule, times: Sequence[float]) -> tuple[Level, ...]:
    """The levels of a grid, one by one, each of shape (). A table never changes, so its last grids are remembered."""
    return (_remembered_levels if isinstance(schedule, Tabulated) else _levels)(schedule, tuple(times))


def _levels(schedule: Schedule, times: tuple[float, ...]) -> tuple[Level, ...]:
    return tuple(schedule.at(torch.tensor(times, dtype=torch.float64)).unbind())


_remembered_levels = lru_cache(maxsize=64)(_levels)


def between_points(points: Float64[Tensor, "n"], t: Time) -> Time:
    """alpha_bar at time t of a chain whose alpha_bar at 0, 1/T, ..., 1 is ``points``; see ``Tabulated``."""
    index, share = _interval(t, points.numel() - 1)
    left, right = points[index], points[index + 1]
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


def _interval(t: Time, num_steps: int) -> tuple[Int64[Tensor, "b"], Time]:
    """Between which points of a chain t lies, and how far between them."""
    position = t * num_steps
    nearest = position.detach().round()
    # i/T * T is not always i in float64; a grid point must still read its own entry.
    position = torch.where(
        (position.detach() - nearest).abs() < 1e-9, position - (position - nearest).detach(), position
    )
    index = position.detach().floor().clamp(0, num_steps - 1).long()
    return index, position - index


def linear_betas(num_steps: int = 1000, *, first: float = 1e-4, last: float = 0.02) -> tuple[float, ...]:
    """DDPM's betas: linear in the step from ``first`` to ``last`` at T = 1000, scaled by 1000/T for another T.

    Raises:
        ValueError: if num_steps < 1, or so few steps would need a beta above 1.

    Source: Ho et al. 2020, arXiv:2006.11239, Sec. 4; the scaling is Nichol & Dhariwal's code (improved-diffusion).
    """
    _check_steps(num_steps)
    scale = 1000 / num_steps
    if last * scale > 1:
        raise ValueError(
            f"linear betas that end at {last} x 1000/T need at least {math.ceil(1000 * last)} steps, got {num_steps}; "
            f"take Tabulated.from_schedule(LinearBeta(), {num_steps}), which suits any T"
        )
    return _evenly(first * scale, last * scale, num_steps)


def quadratic_betas(num_steps: int = 1000, *, first: float = 1e-4, last: float = 0.02) -> tuple[float, ...]:
    """Betas whose square root is linear in the step, from ``first`` to ``last``; not scaled with T.

    Latent diffusion has 0.0015 and 0.0195 (its "linear"), Stable Diffusion 0.00085 and 0.012.

    Raises:
        ValueError: if num_steps < 1, or an end is negative.

    Source: Ho et al. 2020, arXiv:2006.11239 (code, "quad"); Rombach et al. 2022, arXiv:2112.10752 (code, "linear").
    """
    _check_steps(num_steps)
    if not 0 <= first < math.inf or not 0 <= last < math.inf:
        raise ValueError(f"betas are variances, got {first} and {last}; give numbers in (0, 1)")
    return tuple(root**2 for root in _evenly(math.sqrt(first), math.sqrt(last), num_steps))


def constant_betas(num_steps: int = 1000, *, beta: float = 0.02) -> tuple[float, ...]:
    """The same beta at every step (DDPM's code, "const"); in continuous time ``LinearBeta`` with equal ends.

    Raises:
        ValueError: if num_steps < 1.
    """
    _check_steps(num_steps)
    return (beta,) * num_steps


def warm_up_betas(
    num_steps: int = 1000, *, first: float = 1e-4, last: float = 0.02, share: float = 0.1
) -> tuple[float, ...]:
    """Betas linear from ``first`` to ``last`` over the first ``share`` of the steps, then constant.

    Raises:
        ValueError: if num_steps < 1 or share is not in [0, 1].

    Source: Ho et al. 2020, arXiv:2006.11239 (code, "warmup10" and "warmup50": shares of 0.1 and 0.5).
    """
    _check_steps(num_steps)
    if not 0 <= share <= 1:
        raise ValueError(f"the share of warm-up steps must be in [0, 1], got {share}")
    rising = int(num_steps * share)
    return (*_evenly(first, last, rising), *constant_betas(num_steps, beta=last)[rising:])


def reciprocal_betas(num_steps: int = 1000) -> tuple[float, ...]:
    """beta_i = 1/(T - i + 1): a 1/T of the original signal's variance is erased at every step, and none is left.

    Raises:
        ValueError: if num_steps < 1.

    Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, Sec. 2.4.1; Ho et al. 2020 (code, "jsd").
    """
    _check_steps(num_steps)
    return tuple(1 / (num_steps - i) for i in range(num_steps))


def _evenly(first: float, last: float, count: int) -> tuple[float, ...]:
    return tuple(floats(torch.linspace(first, last, count, dtype=torch.float64)))


def _check_steps(num_steps: int) -> None:
    if num_steps < 1 or num_steps != int(num_steps):
        raise ValueError(f"a chain has a whole number of steps, at least 1 step, got {num_steps}")


def checked_time(t: Time) -> Time:
    """The times, if they are float64 on the CPU and in [0, 1].

    Raises:
        ValueError: otherwise.
    """
    kind = getattr(t, "dtype", type(t).__name__)  # a plain number has none
    if kind != torch.float64 or t.device.type != "cpu":
        raise ValueError(
            f"times are float64 tensors on the CPU, got {kind} on {getattr(t, 'device', 'no device')}; convert with "
            "torch.as_tensor(t, dtype=torch.float64, device='cpu')"
        )
    if not bool(((t >= 0) & (t <= 1)).all()):
        raise ValueError(f"times must be in [0, 1], got {t.min().item()} to {t.max().item()}")
    return t


SCHEDULES: dict[str, type[Schedule]] = {
    "linear": LinearBeta,
    "quadratic": QuadraticBeta,
    "reciprocal": Reciprocal,
    "cosine": Cosine,
    "sigmoid": Sigmoid,
    "log_linear": LogLinear,
    "variance_exploding": VarianceExploding,
    "rectified_flow": RectifiedFlow,
    "tabulated": Tabulated,
}
