"""Grids of times for a sampler to walk, from 1 (noise) down to 0 (data).

Knows: which times a sampler visits.
Does not know: what it does there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from unstir.diffusion.schedule import Schedule
from unstir.typing import floats

Spacing = Callable[[Schedule, int], tuple[float, ...]]
"""(schedule, number of steps) -> num_steps + 1 times that fall strictly from 1 to 0."""


def trailing(schedule: Schedule, num_steps: int) -> tuple[float, ...]:
    """Evenly spaced times, starting at t = 1 exactly: t_i = 1 - i/num_steps.

    Raises:
        ValueError: if num_steps < 1.

    Source: Lin et al. 2024, arXiv:2305.08891, Sec. 3.3 ("trailing").
    """
    _check(num_steps)
    return tuple((num_steps - i) / num_steps for i in range(num_steps + 1))


def uniform_log_snr(schedule: Schedule, num_steps: int, *, low: float = -9.0, high: float = 9.0) -> tuple[float, ...]:
    """Times at which the log-SNR is evenly spaced, then 0; the first is t = 1.

    Args:
        schedule: whose log-SNR.
        num_steps: number of steps.
        low: the log-SNR that the first step starts from, in nats, or the schedule's own at t = 1 if that is higher.
        high: the log-SNR that the last step starts from, or the schedule's own at t = 0 if that is lower.

    Raises:
        ValueError: if num_steps < 1, or low to high holds nothing of the schedule.

    Source: Lu et al. 2022, arXiv:2206.00927, Sec. 3.4 (uniform in half log-SNR).
    """
    _check(num_steps)
    ends = floats(schedule.at(torch.tensor([1.0, 0.0], dtype=torch.float64)).log_snr)
    first, last = max(low, ends[0]), min(high, ends[1])
    if first >= last:
        raise ValueError(
            f"log-SNR must rise from low to high within {ends[0]:.2f} to {ends[1]:.2f}, got {low} and {high}"
        )
    values = torch.linspace(first, last, num_steps, dtype=torch.float64)
    return (1.0, *floats(schedule.time_of(values)[1:]), 0.0)


def _check(num_steps: int) -> None:
    if num_steps < 1:
        raise ValueError(f"a grid needs at least 1 step, got {num_steps}")


SPACINGS: dict[str, Spacing] = {"trailing": trailing, "uniform_log_snr": uniform_log_snr}
