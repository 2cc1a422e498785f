"""Grids of times: number of steps, ends, and the spacing they promise."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unstir.diffusion.schedule import (
    Cosine,
    LinearBeta,
    RectifiedFlow,
    Schedule,
    Tabulated,
    VarianceExploding,
    linear_betas,
)
from unstir.diffusion.spacing import (
    CHAIN,
    LEGACY,
    SPACINGS,
    Explicit,
    Sections,
    Spacing,
    below,
    chain_steps,
    karras,
    leading,
    linspace,
    quadratic,
    trailing,
    uniform_log_snr,
)

ALL = pytest.mark.parametrize("spacing", SPACINGS.values(), ids=SPACINGS.keys())
EVERY = pytest.mark.parametrize("spacing", [*SPACINGS.values(), *LEGACY.values()], ids=[*SPACINGS, *LEGACY])
TABLE = Tabulated.from_betas(linear_betas(1000))


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


@EVERY
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


# --- grids made for chains ---


def test_the_steps_of_a_chain() -> None:
    """A table has its own; what has none is walked as DDPM's chain."""
    assert chain_steps(Tabulated.from_schedule(Cosine(), 60)) == 60
    assert chain_steps(Cosine()) == CHAIN == 1000


@pytest.mark.parametrize("num_steps", [*range(1, 51), 333, 999, 1000])
def test_leading_starts_late_and_says_so(schedule: Schedule, num_steps: int) -> None:
    """N + 1 times that fall strictly to 0, but from up to a stride below 1: 1 + k stride of T, k = N - 1 ... 0."""
    times = leading(schedule, num_steps)
    total = chain_steps(schedule)
    stride = total // num_steps
    assert len(times) == num_steps + 1
    assert all(t > s for t, s in pairwise(times))
    assert (times[-2], times[-1]) == (1 / total, 0)
    assert times[0] == (1 + (num_steps - 1) * stride) / total
    assert (times[0] < 1) == (num_steps < total)
    assert leading not in SPACINGS.values()


def test_leading_needs_a_step_of_the_chain_each() -> None:
    """ValueError beyond T steps, whose stride would be 0."""
    with pytest.raises(ValueError, match="at most 1000, or take trailing"):
        leading(Cosine(), 1001)
    with pytest.raises(ValueError, match="at most 60"):
        leading(Tabulated.from_schedule(Cosine(), 60), 61)


@pytest.mark.parametrize("num_steps", [2, 4, 5, 8, 10, 20, 25, 40, 50, 100, 125, 200, 250, 500, 1000])
@pytest.mark.parametrize(("name", "spacing"), [("trailing", trailing), ("linspace", linspace), ("leading", leading)])
def test_agrees_with_diffusers(name: str, spacing: Spacing, num_steps: int) -> None:
    """The steps of the chain (t = (i + 1)/T for diffusers' i) are diffusers' own, where it rounds to whole steps."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(timestep_spacing=name)
    scheduler.set_timesteps(num_steps)
    found = [1000 * t - 1 for t in spacing(TABLE, num_steps)[:-1]]
    assert scheduler.timesteps is not None
    assert found == pytest.approx(scheduler.timesteps.tolist(), abs=0.5 + 1e-9 if name == "linspace" else 1e-9)


@pytest.mark.parametrize("spacing", [linspace, quadratic])
@pytest.mark.parametrize("total", [60, 1000])
def test_both_ends_of_the_chain(spacing: Spacing, total: int) -> None:
    """The first and the last step of the chain are visited; with a single step it is the first, at t = 1."""
    table = Tabulated.from_schedule(Cosine(), total)
    for num_steps in (2, 3, 17, total):
        times = spacing(table, num_steps)
        assert times[0] == 1
        assert times[-2] == pytest.approx(1 / total, rel=1e-12)
    assert spacing(table, 1) == (1, 0)


@given(st.integers(2, 300))
def test_linspace_and_quadratic_are_the_originals(num_steps: int) -> None:
    """numpy's linspace(0, T - 1, N), and DDIM's "quad", linspace(0, sqrt(0.8 T), N)^2, to T - 1 instead of 0.8 T."""
    even = torch.linspace(0, 999, num_steps, dtype=torch.float64).flip(0)
    roots = torch.linspace(0, 999**0.5, num_steps, dtype=torch.float64).flip(0)
    for spacing, expected in ((linspace, even), (quadratic, roots.square())):
        assert [1000 * t - 1 for t in spacing(TABLE, num_steps)[:-1]] == pytest.approx(expected.tolist(), abs=1e-9)


# --- karras ---


@given(st.integers(3, 60), st.floats(-9, -2), st.floats(2, 9), st.sampled_from([1.0, 3.0, 7.0]))
def test_karras_is_even_in_a_root(schedule: Schedule, num_steps: int, low: float, high: float, rho: float) -> None:
    """From the second time on, (sigma/alpha)^(1/rho) falls by equal amounts (Karras et al. 2022, Eq. 5)."""
    times = torch.tensor(karras(schedule, num_steps, low=low, high=high, rho=rho), dtype=torch.float64)
    root = torch.exp(-schedule.at(times).log_snr[1:-1] / 2 / rho).tolist()
    first, last = math.exp(-low / 2 / rho), math.exp(-high / 2 / rho)
    step = (last - first) / (num_steps - 1)
    assert root == pytest.approx([first + step * (i + 1) for i in range(num_steps - 1)], rel=1e-7)


def test_karras_is_edms_grid() -> None:
    """On EDM's own path (alpha = 1, sigma from 0.002 to 80) it is diffusers' table of sigmas."""
    from diffusers import EDMEulerScheduler

    scheduler = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, rho=7.0)
    scheduler.set_timesteps(18)
    schedule = VarianceExploding()
    times = karras(schedule, 18, low=-20, high=-2 * math.log(0.002))
    sigma = schedule.at(torch.tensor(times, dtype=torch.float64)).sigma
    assert sigma[:-1].tolist() == pytest.approx(scheduler.sigmas[:-1].tolist(), rel=1e-5)


def test_karras_starts_at_pure_noise() -> None:
    """Where sigma/alpha is infinite at t = 1 the first time is 1 and the second already on the bounded range."""
    schedule = RectifiedFlow()
    times = karras(schedule, 10)
    assert times[0] == 1
    roots = [math.exp(9 / 2 / 7), math.exp(-9 / 2 / 7)]
    ratio = (roots[0] + (roots[1] - roots[0]) / 9) ** 7
    assert times[1] == pytest.approx(ratio / (1 + ratio), rel=1e-9)


def test_karras_tends_to_even_log_snr() -> None:
    """With rho -> infinity the root is the logarithm."""
    found = karras(Cosine(), 12, rho=1e6)
    assert found == pytest.approx(uniform_log_snr(Cosine(), 12), abs=1e-5)


@pytest.mark.parametrize("rho", [0.0, -1.0, math.inf, math.nan])
def test_karras_refuses_a_curvature_without_roots(rho: float) -> None:
    with pytest.raises(ValueError, match="rho must be a positive number"):
        karras(Cosine(), 5, rho=rho)


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 1.0)])
def test_karras_refuses_an_empty_range(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="low to high"):
        karras(Cosine(), 10, low=low, high=high)


# --- grids of a fixed number of steps ---


def space_timesteps(total: int, counts: list[int]) -> list[float]:
    """improved-diffusion's section counts, before it rounds: indices of the chain, from data to noise."""
    found: list[float] = []
    start = 0
    for part, count in enumerate(counts):
        size = total // len(counts) + (part < total % len(counts))
        stride = 1.0 if count == 1 else (size - 1) / (count - 1)
        found += [start + stride * i for i in range(count)]
        start += size
    return found


@given(st.lists(st.integers(2, 15), min_size=1, max_size=5), st.sampled_from([75, 100, 1000]))
def test_sections_are_the_papers(counts: list[int], total: int) -> None:
    """The indices of improved-diffusion's ``space_timesteps``, noise first."""
    grid = Sections(counts=tuple(counts))
    times = grid(Tabulated.from_schedule(LinearBeta(), total), sum(counts))
    assert grid.num_steps == sum(counts)
    assert [total * t - 1 for t in times[:-1]] == pytest.approx(space_timesteps(total, counts)[::-1], abs=1e-9)
    assert (times[0], times[-1]) == (1, 0)
    assert all(t > s for t, s in pairwise(times))


def test_one_section_is_linspace() -> None:
    assert Sections(counts=(23,))(Cosine(), 23) == linspace(Cosine(), 23)


def test_a_section_of_one_step_is_left_at_its_noisiest() -> None:
    """So that every grid of sections starts at t = 1."""
    assert Sections(counts=(1, 1, 1, 1))(Cosine(), 4) == trailing(Cosine(), 4)


@pytest.mark.parametrize("counts", [(), (0,), (3, 0), (-1, 4)])
def test_sections_without_steps_are_refused(counts: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least 1 step each"):
        Sections(counts=counts)


def test_sections_longer_than_their_part_are_refused() -> None:
    """Two visits to one step of a chain; parts of 10 steps have 2, 2, 2, 2, 2."""
    table = Tabulated.from_schedule(Cosine(), 10)
    assert len(Sections(counts=(2, 2, 2, 2, 2))(table, 10)) == 11
    with pytest.raises(ValueError, match="2 steps of the chain cannot be walked in 3"):
        Sections(counts=(3, 1, 1, 1, 1))(table, 7)
    with pytest.raises(ValueError, match="0 steps of the chain"):
        Sections(counts=(1,) * 11)(table, 11)


FALLING = st.lists(st.floats(1e-6, 1), min_size=1, max_size=8, unique=True).map(lambda ts: sorted(ts, reverse=True))


@given(FALLING)
def test_explicit_times_are_kept(times: list[float]) -> None:
    """As given, with 0 at the end, whether it was said or not."""
    grid = Explicit(times=tuple(times))
    assert grid == Explicit(times=(*times, 0.0))
    assert grid(Cosine(), len(times)) == (*times, 0.0)
    assert grid.num_steps == len(times)


@pytest.mark.parametrize(
    "times",
    [(), (0.0,), (0.4, 0.8), (0.8, 0.8), (1.2, 0.4), (0.5, -0.5), (math.nan,), (1.0, math.nan), (math.inf, 1.0)],
)
def test_times_that_lead_nowhere_are_refused(times: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="must fall strictly, from 1 at most down to 0"):
        Explicit(times=times)


@pytest.mark.parametrize("grid", [Sections(counts=(1, 2)), Explicit(times=(1.0, 0.8, 0.4))])
@pytest.mark.parametrize("num_steps", [0, 2, 4])
def test_a_fixed_number_of_steps_is_no_other(grid: Spacing, num_steps: int) -> None:
    with pytest.raises(ValueError, match=f"has 3 steps, got {num_steps}; leave"):
        grid(Cosine(), num_steps)


# --- a part of the way ---


@pytest.mark.parametrize("name", SPACINGS)
def test_a_part_has_as_many_steps_as_ever(schedule: Schedule, name: str) -> None:
    """From the start to 0 exactly, falling strictly, wherever it starts."""
    for start in (0.001, 0.01, 0.0113, 0.3, 0.75, 0.99, 1.0):
        for num_steps in (1, 2, 3, 20):
            times = below(SPACINGS[name], start)(schedule, num_steps)
            assert len(times) == num_steps + 1
            assert (times[0], times[-1]) == (start, 0.0)
            assert all(s < t for t, s in pairwise(times)), (start, num_steps, times)


@pytest.mark.parametrize("name", SPACINGS)
def test_all_of_the_way_is_the_spacing_itself(schedule: Schedule, name: str) -> None:
    assert below(SPACINGS[name], 1.0)(schedule, 9) == SPACINGS[name](schedule, 9)


def test_a_part_is_even_in_the_spacings_own_variable() -> None:
    """trailing in time, uniform_log_snr in log-SNR, from that of the start."""
    schedule = RectifiedFlow()
    assert below(trailing, 0.6)(schedule, 3) == pytest.approx([0.6, 0.4, 0.2, 0.0])
    times = torch.tensor(below(uniform_log_snr, 0.6)(schedule, 8)[:-1], dtype=torch.float64)
    values = schedule.at(times).log_snr
    assert values[0].item() == pytest.approx(2 * math.log(0.4 / 0.6))
    assert values[-1].item() == pytest.approx(9)
    assert torch.allclose(values.diff(), values.diff().mean().expand(7), atol=1e-9)


def test_below_the_last_step_of_the_whole_steps_are_even_in_time() -> None:
    """uniform_log_snr leaves t = 0.011 for 0 at once, and has no grid of its own down there."""
    assert below(uniform_log_snr, 0.01)(RectifiedFlow(), 4) == pytest.approx([0.01, 0.0075, 0.005, 0.0025, 0.0])


@pytest.mark.parametrize("start", [0.0, -0.5, 1.5, math.nan])
def test_parts_start_on_the_way(start: float) -> None:
    with pytest.raises(ValueError, match="starts at a time"):
        below(trailing, start)
