"""Grids of times: number of steps, ends, and the spacing they promise."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unstir.diffusion.schedule import Cosine, Schedule, Tabulated
from unstir.diffusion.spacing import SPACINGS, Spacing, trailing, uniform_log_snr

ALL = pytest.mark.parametrize("spacing", SPACINGS.values(), ids=SPACINGS.keys())


@ALL
@pytest.mark.parametrize("num_steps", [*range(1, 51), 999, 1000])
def test_n_steps_from_noise_to_data(schedule: Schedule, spacing: Spacing, num_steps: int) -> None:
    """N + 1 times falling strictly from 1 (the schedule's last level) to 0, for every N (C2, C3, C4)."""
    times = spacing(schedule, num_steps)
    assert len(times) == num_steps + 1
    assert (times[0], times[-1]) == (1, 0)
    assert all(t > s for t, s in pairwise(times))
    level = schedule.at(torch.tensor(times, dtype=torch.float64))
    assert bool((level.sigma[:-1] > 0).all()), "only the last level is without noise"


@ALL
@pytest.mark.parametrize("num_steps", [0, -1])
def test_refuses_no_steps(spacing: Spacing, num_steps: int) -> None:
    """ValueError below one step."""
    with pytest.raises(ValueError, match="at least 1 step"):
        spacing(Cosine(), num_steps)


@given(st.integers(1, 1000))
def test_trailing_is_even(num_steps: int) -> None:
    """t_i = 1 - i/N (Lin et al. 2024, Sec. 3.3)."""
    expected = [1 - i / num_steps for i in range(num_steps + 1)]
    assert trailing(Cosine(), num_steps) == pytest.approx(expected, abs=1e-15)


def test_trailing_walks_the_steps_of_a_chain() -> None:
    """On T steps, trailing with N = T/k visits every k-th entry of the table exactly (C1)."""
    table = Tabulated.from_schedule(Cosine(), 60)
    for num_steps in (60, 30, 12, 1):
        times = torch.tensor(trailing(table, num_steps), dtype=torch.float64)
        stride = 60 // num_steps
        assert table.alpha_bar(times[:-1]).tolist() == list(table.table[::-1][::stride])


@given(st.integers(3, 60), st.floats(-9, -2), st.floats(2, 9))
def test_uniform_log_snr_is_even(schedule: Schedule, num_steps: int, low: float, high: float) -> None:
    """From the second time on, log-SNR rises by equal amounts up to ``high`` (Lu et al. 2022, Sec. 3.4)."""
    times = torch.tensor(uniform_log_snr(schedule, num_steps, low=low, high=high), dtype=torch.float64)
    log_snr = schedule.at(times).log_snr[1:-1].tolist()
    step = (high - low) / (num_steps - 1)
    assert log_snr == pytest.approx([low + step * (i + 1) for i in range(num_steps - 1)], abs=1e-8)
    assert log_snr[-1] == pytest.approx(high, abs=1e-8)


@given(st.integers(3, 40))
def test_uniform_log_snr_stays_within_the_schedule(num_steps: int) -> None:
    """Beyond the schedule's own log-SNR, its own end is where the even steps start."""
    schedule = Cosine(floor=0.1)
    start = math.log(0.1 / 0.9)
    times = torch.tensor(uniform_log_snr(schedule, num_steps, low=-9, high=5), dtype=torch.float64)
    step = (5 - start) / (num_steps - 1)
    expected = [start + step * i for i in range(num_steps)]
    assert schedule.at(times[:-1]).log_snr.tolist() == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 1.0)])
def test_uniform_log_snr_refuses_an_empty_range(low: float, high: float) -> None:
    """ValueError unless low < high."""
    with pytest.raises(ValueError, match="low to high"):
        uniform_log_snr(Cosine(), 10, low=low, high=high)


def test_uniform_log_snr_outside_the_schedule_still_falls() -> None:
    """A range wholly below the schedule's log-SNR is refused, or gives a grid that falls: never one that turns back."""
    schedule = Cosine(floor=0.5)  # log-SNR from 0 up
    try:
        times = uniform_log_snr(schedule, 5, low=-9, high=-3)
    except ValueError:
        return
    assert all(t > s for t, s in pairwise(times))
