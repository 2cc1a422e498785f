"""Grids of times for a sampler to walk, from 1 (noise) down to 0 (data).

Knows: which times a sampler visits.
Does not know: what it does there.

N times are spread evenly in some function of t, and 0 follows. They differ in that function and in where they begin
and end; T is the number of steps of a chain (a table's own, 1000 for a schedule without steps):

    trailing          t, from 1 to 1/N
    leading           t, from below 1 to 1/T           (legacy: not in ``SPACINGS``)
    linspace          t, from 1 to 1/T
    quadratic         sqrt(t - 1/T), from 1 to 1/T
    uniform_log_snr   log-SNR, within a range
    karras            (sigma/alpha)^(1/7), within the same range
    Sections          t, each part of the chain by its own number of steps
    Explicit          as given

On a table a time between two of its steps is a level between theirs (see ``Tabulated``); nothing is rounded to whole
steps, so no two times fall together.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from unstir.diffusion.schedule import Level, Schedule, Tabulated
from unstir.typing import Time, floats

Spacing = Callable[[Schedule, int], tuple[float, ...]]
"""(schedule, number of steps) -> num_steps + 1 times that fall strictly from 1 to 0."""

_REACH, _TABLE_REACH = 9.0, 12.0
"""Log-SNR around 0 that is walked where nothing else is said. A table says where its model was trained, and is walked
from end to end, unless one of them is (almost) without signal or noise."""

CHAIN = 1000
"""Steps of the chain that grids made for chains assume where the schedule has none: DDPM's T."""


def trailing(schedule: Schedule, num_steps: int) -> tuple[float, ...]:
    """Evenly spaced times, starting at t = 1 exactly: t_i = 1 - i/num_steps.

    Raises:
        ValueError: if num_steps < 1.

    Source: Lin et al. 2024, arXiv:2305.08891, Sec. 3.3 ("trailing").
    """
    _check(num_steps)
    return tuple((num_steps - i) / num_steps for i in range(num_steps + 1))


def leading(schedule: Schedule, num_steps: int) -> tuple[float, ...]:
    """Legacy: every floor(T/num_steps)-th step of a chain, counted from the data: t_i = (1 + (N - 1 - i) stride)/T.

    It does not start at t = 1 but up to a stride below it, as the original code of DDIM and most tools after it, and so
    breaks the contract of a ``Spacing`` on purpose: a model is asked to go on from pure noise as if some signal were in
    it already. It is here to draw again what was drawn so, and is not in ``SPACINGS``.

    Raises:
        ValueError: if num_steps < 1, or more than the chain's T.

    Source: Song et al. 2021, arXiv:2010.02502 (code, "uniform"); Lin et al. 2024, arXiv:2305.08891, Table 2
        ("leading") and why it is flawed, Sec. 3.3.
    """
    _check(num_steps)
    total = chain_steps(schedule)
    if num_steps > total:
        raise ValueError(
            f"leading spacing takes every k-th of {total} steps, got {num_steps}; ask for at most {total}, or take "
            "trailing"
        )
    stride = total // num_steps
    return (*((1 + (num_steps - 1 - i) * stride) / total for i in range(num_steps)), 0.0)


def linspace(schedule: Schedule, num_steps: int) -> tuple[float, ...]:
    """Evenly spaced times that include the first and the last step of a chain: from 1 to 1/T, then 0.

    t_i = 1 - (1 - 1/T) i/(N - 1). For one step t_0 = 1, where other tools start at 1/T, in nearly clean data.

    Raises:
        ValueError: if num_steps < 1.

    Source: Lin et al. 2024, arXiv:2305.08891, Table 2 ("linspace"); Nichol & Dhariwal 2021, arXiv:2102.09672, Sec. 4.
    """
    _check(num_steps)
    return (*_between(1.0, 1 / chain_steps(schedule), num_steps), 0.0)


def quadratic(schedule: Schedule, num_steps: int) -> tuple[float, ...]:
    """Steps of a chain at even square roots, so denser towards the data: from 1 to 1/T, then 0.

    t_i = 1/T + (1 - 1/T) (1 - i/(N - 1))^2. The paper's code begins at 0.8 T; this begins at T.

    Raises:
        ValueError: if num_steps < 1.

    Source: Song et al. 2021, arXiv:2010.02502, Appendix D.2 ("quadratic") and code ("quad").
    """
    _check(num_steps)
    return (*_between(1.0, 1 / chain_steps(schedule), num_steps, 2), 0.0)


def uniform_log_snr(
    schedule: Schedule, num_steps: int, *, low: float | None = None, high: float | None = None
) -> tuple[float, ...]:
    """Times at which the log-SNR is evenly spaced, then 0; the first is t = 1.

    Args:
        schedule: whose log-SNR.
        num_steps: number of steps.
        low: the log-SNR that the first step starts from, in nats, or the schedule's own at t = 1 if that is higher.
            None is -9; for a table its last step, or -12 if that is higher.
        high: the log-SNR that the last step starts from, or the schedule's own at t = 0 if that is lower. None is 9;
            for a table its first step, or 12 if that is lower.

    Raises:
        ValueError: if num_steps < 1, or low to high holds nothing of the schedule.

    Source: Lu et al. 2022, arXiv:2206.00927, Sec. 3.4 (uniform in half log-SNR).
    """
    _check(num_steps)
    first, last = _within(schedule, low, high)
    return _at_log_snr(schedule, torch.linspace(first, last, num_steps, dtype=torch.float64))


def karras(
    schedule: Schedule, num_steps: int, *, low: float | None = None, high: float | None = None, rho: float = 7.0
) -> tuple[float, ...]:
    """Times at which (sigma/alpha)^(1/rho) is evenly spaced, then 0; the first is t = 1.

    With s = sigma/alpha = exp(-log_snr/2), s_i = (s_max^(1/rho) + i/(N - 1) (s_min^(1/rho) - s_max^(1/rho)))^rho: EDM's
    grid, for any schedule. The larger rho, the more steps are near the data; rho -> infinity is ``uniform_log_snr``.

    Args:
        schedule: whose sigma/alpha; it may be infinite at t = 1.
        num_steps: number of steps.
        low: the log-SNR of s_max, as in ``uniform_log_snr``; -9 is s = 90 (EDM has 80).
        high: the log-SNR of s_min, likewise; 9 is s = 0.011 (EDM has 0.002).
        rho: curvature.

    Raises:
        ValueError: if num_steps < 1, rho is not positive, or low to high holds nothing of the schedule.

    Source: Karras et al. 2022, arXiv:2206.00364, Eq. 5.
    """
    _check(num_steps)
    if not 0 < rho < math.inf:
        raise ValueError(f"rho must be a positive number, got {rho}; EDM has 7")
    first, last = _within(schedule, low, high)
    root = torch.linspace(math.exp(-first / 2 / rho), math.exp(-last / 2 / rho), num_steps, dtype=torch.float64)
    return _at_log_snr(schedule, -2 * rho * root.log())


@dataclass(frozen=True, kw_only=True)
class Sections:
    """A chain in equal parts, each walked by its own number of evenly spaced steps, its first and last step included.

    Part j of k has floor(T/k) steps of the chain, one more while j < T mod k. A part that is given a single step is
    left at its noisiest (in the paper's code at its cleanest), so that the grid starts at t = 1.

    Args:
        counts: steps of each part, from data to noise.

    Raises:
        ValueError: if there is no part, or one without a step.

    Source: Nichol & Dhariwal 2021, arXiv:2102.09672 (code, ``space_timesteps``: "10,15,20").
    """

    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse parts without steps."""
        if not self.counts or min(self.counts) < 1:
            raise ValueError(
                f"sections need at least 1 step each, got {','.join(map(str, self.counts)) or 'none'}; for instance "
                "10,15,20, from data to noise"
            )

    @property
    def num_steps(self) -> int:
        """The number of steps that it has, and the only one that it can be asked for."""
        return sum(self.counts)

    def __call__(self, schedule: Schedule, num_steps: int) -> tuple[float, ...]:
        """The times.

        Raises:
            ValueError: if ``num_steps`` is another number, or a section has more steps than its part of the chain.
        """
        _check_same(num_steps, self.num_steps)
        total, parts = chain_steps(schedule), len(self.counts)
        times: list[float] = []
        below = 0
        for part, count in enumerate(self.counts):
            size = total // parts + (part < total % parts)
            if count > size:
                raise ValueError(f"a section of {size} steps of the chain cannot be walked in {count}; ask for fewer")
            times = [*_between((below + size) / total, (below + 1) / total, count), *times]
            below += size
        return (*times, 0.0)


@dataclass(frozen=True, kw_only=True)
class Explicit:
    """Times as they are given; 0 is added where it is missing.

    Args:
        times: falling strictly, in [0, 1]. They may start below 1, where x then holds signal already: a part of a
            way, or a grid of another tool.

    Raises:
        ValueError: if they do not fall strictly, leave [0, 1], or are none but 0.
    """

    times: tuple[float, ...]

    def __post_init__(self) -> None:
        """Add the end, and refuse what is no way from noise to data."""
        given = self.times
        if given and given[-1] != 0:
            object.__setattr__(self, "times", (*given, 0.0))
        falls = all(t > s for t, s in itertools.pairwise(self.times))
        if len(self.times) < 2 or not falls or not self.times[0] <= 1:
            raise ValueError(
                "times must fall strictly, from 1 at most down to 0, got "
                f"{','.join(f'{t:g}' for t in given) or 'none'}; for instance 1,0.8,0.4"
            )

    @property
    def num_steps(self) -> int:
        """The number of steps that it has, and the only one that it can be asked for."""
        return len(self.times) - 1

    def __call__(self, schedule: Schedule, num_steps: int) -> tuple[float, ...]:
        """The times.

        Raises:
            ValueError: if ``num_steps`` is another number than theirs.
        """
        _check_same(num_steps, self.num_steps)
        return self.times


def below(spacing: Spacing, start: float) -> Spacing:
    """The same grid for the part of a schedule below a time: as many steps as ever, spread evenly in the same function.

    The part is given to the spacing as a schedule of its own, with ``start`` for its t = 1; at start = 1 that is the
    spacing itself. Where the whole grid would take its last step from above ``start``, it has nothing to say of what is
    below, and the steps are even in time.

    Args:
        spacing: the grid for all of the schedule.
        start: the time of the first step, in (0, 1].

    Raises:
        ValueError: if start is not in (0, 1].
    """
    if not 0 < start <= 1:
        raise ValueError(f"a part of a way starts at a time in (0, 1], got {start}")
    if start == 1:
        return spacing

    def part(schedule: Schedule, num_steps: int) -> tuple[float, ...]:
        is_beyond = start <= spacing(schedule, num_steps)[-2] * (1 + 1e-9)  # times of a log-SNR are rounded
        times = (trailing if is_beyond else spacing)(_Below(schedule, start), num_steps)
        return tuple(start * t for t in times)

    return part


class _Below(Schedule):
    """The part of a schedule below a time, on [0, 1]."""

    def __init__(self, whole: Schedule, start: float) -> None:
        self.whole = whole
        self._start = start

    def at(self, t: Time) -> Level:
        level = self.whole.at(self._start * t)
        return Level(
            t=t,
            alpha=level.alpha,
            sigma=level.sigma,
            dalpha=self._start * level.dalpha,
            dsigma=self._start * level.dsigma,
        )

    def time_of(self, log_snr: Time) -> Time:
        return (self.whole.time_of(log_snr) / self._start).clamp(max=1)


def chain_steps(schedule: Schedule) -> int:
    """T: the number of steps of a table, ``CHAIN`` for a schedule without steps."""
    return schedule.num_steps if isinstance(schedule, Tabulated) else CHAIN


def _between(first: float, last: float, count: int, power: int = 1) -> tuple[float, ...]:
    """Numbers from first to last, the roots of whose distances to the last are even; only the first if count is 1."""
    inner = (last + (first - last) * ((count - 1 - i) / (count - 1)) ** power for i in range(1, count - 1))
    return (first, *inner, last)[:count]


def _within(schedule: Schedule, low: float | None, high: float | None) -> tuple[float, float]:
    """The part of low to high that the schedule's log-SNR has, from noise to data."""
    lowest, highest = _usual(schedule)
    ends = floats(schedule.at(torch.tensor([1.0, 0.0], dtype=torch.float64)).log_snr)
    low, high = lowest if low is None else low, highest if high is None else high
    first, last = max(low, ends[0]), min(high, ends[1])
    if first >= last:
        raise ValueError(
            f"log-SNR must rise from low to high within {ends[0]:.2f} to {ends[1]:.2f}, got {low} and {high}"
        )
    return first, last


def usual_range(schedule: Schedule) -> tuple[float, float]:
    """The log-SNR of the first and of the last level of ``uniform_log_snr`` and ``karras``, where no other is asked."""
    return _within(schedule, None, None)


def _usual(schedule: Schedule) -> tuple[float, float]:
    """The log-SNR from which and to which a schedule is walked where nothing else is said."""
    if isinstance(schedule, _Below):
        return _usual(schedule.whole)
    if not isinstance(schedule, Tabulated):
        return -_REACH, _REACH
    low, high = floats(schedule.at(torch.tensor([1.0, 1 / schedule.num_steps], dtype=torch.float64)).log_snr)
    return max(low, -_TABLE_REACH), min(high, _TABLE_REACH)


def _at_log_snr(schedule: Schedule, values: Time) -> tuple[float, ...]:
    """1, the times of all values but the first (which a log-SNR of -inf at t = 1 lies below), and 0."""
    return (1.0, *floats(schedule.time_of(values)[1:]), 0.0)


def _check(num_steps: int) -> None:
    if num_steps < 1:
        raise ValueError(f"a grid needs at least 1 step, got {num_steps}")


def _check_same(num_steps: int, own: int) -> None:
    if num_steps != own:
        raise ValueError(f"this grid has {own} steps, got {num_steps}; leave the number of steps away")


SPACINGS: dict[str, Spacing] = {
    "trailing": trailing,
    "uniform_log_snr": uniform_log_snr,
    "linspace": linspace,
    "quadratic": quadratic,
    "karras": karras,
}
"""Grids for any number of steps that start at t = 1."""

LEGACY: dict[str, Spacing] = {"leading": leading}
"""Grids that do not: for what was drawn by them elsewhere."""
