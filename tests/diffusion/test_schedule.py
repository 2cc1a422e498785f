"""Schedules against the papers' formulas, their own derivatives and inverses, numpy and diffusers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy
import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import example, given
from hypothesis import strategies as st

from unstir.diffusion.schedule import (
    SCHEDULES,
    Cosine,
    Level,
    LinearBeta,
    LogLinear,
    QuadraticBeta,
    Reciprocal,
    RectifiedFlow,
    Schedule,
    Sigmoid,
    Tabulated,
    VarianceExploding,
    VariancePreserving,
    between_points,
    combined,
    constant_betas,
    levels_at,
    linear_betas,
    quadratic_betas,
    reciprocal_betas,
    spread,
    warm_up_betas,
    where_falls_to,
)
from unstir.diffusion.spacing import trailing

INSIDE = st.floats(0.01, 0.99)
PRESERVING: dict[str, VariancePreserving] = {
    "linear": LinearBeta(),
    "quadratic": QuadraticBeta(),
    "reciprocal": Reciprocal(),
    "cosine": Cosine(),
    "sigmoid": Sigmoid(),
    "log-linear": LogLinear(),
    "table": Tabulated.from_betas(linear_betas(1000)),
}
EVERY: dict[str, Schedule] = {
    **PRESERVING,
    "exploding": VarianceExploding(),
    "flow": RectifiedFlow(),
    "flow, shift 3": RectifiedFlow(shift=3.0),
    "flow, shift 0.4": RectifiedFlow(shift=0.4),
}
ANY = pytest.mark.parametrize("any_schedule", EVERY.values(), ids=EVERY.keys())


def time(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def test_every_schedule_is_tested() -> None:
    """The tables above hold every entry of the registry."""
    assert {type(schedule) for schedule in EVERY.values()} == set(SCHEDULES.values())


@pytest.mark.parametrize(
    "schedule", [*PRESERVING.values(), Tabulated(table=(0.5, 0.0))], ids=[*PRESERVING.keys(), "to no signal"]
)
def test_variance_preserving_keeps_variance(schedule: VariancePreserving) -> None:
    """alpha^2 + sigma^2 = 1 (Song et al. 2021, Sec. 3.4), and alpha^2 is alpha_bar."""
    t = torch.linspace(0, 1, 257, dtype=torch.float64)
    level = schedule.at(t)
    torch.testing.assert_close(level.alpha**2 + level.sigma**2, torch.ones_like(t), rtol=0, atol=1e-15)
    torch.testing.assert_close(level.alpha**2, schedule.alpha_bar(t), rtol=1e-14, atol=0)


@given(st.floats(0, 1), st.floats(0.01, 5), st.floats(5, 40))
def test_linear_is_the_exponential_of_the_accumulated_rate(t: float, low: float, high: float) -> None:
    """alpha_bar = exp(-integral of beta), beta linear (Song et al. 2021, Eqs. 29 and 33); trapezoids are exact here."""
    nodes = numpy.linspace(0, t, 5)
    accumulated = numpy.trapezoid(low + nodes * (high - low), nodes)
    got = LinearBeta(beta_min=low, beta_max=high).alpha_bar(scalar(t)).item()
    assert got == pytest.approx(math.exp(-accumulated), rel=1e-12)


@pytest.mark.parametrize(("t", "ratio"), [(0.0, 1.0), (1.0, 0.0), (0.5, None), (0.123, None), (0.999, None)])
def test_cosine_is_the_papers_formula(t: float, ratio: float | None) -> None:
    """alpha_bar = f(t)/f(0), f = cos^2((t + s)/(1 + s) pi/2), s = 0.008 (Nichol & Dhariwal 2021, Eq. 17), up to the
    floor.
    """

    def f(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    expected = f(t) / f(0) if ratio is None else ratio
    assert Cosine().alpha_bar(scalar(t)).item() == pytest.approx(expected, rel=1e-8, abs=1.001e-9)


@pytest.mark.parametrize("floor", [1e-9, 1e-5, 0.1, 0.5])
@pytest.mark.parametrize("kind", [Cosine, Sigmoid])
def test_cosine_and_sigmoid_end_at_their_floor(kind: type[Cosine | Sigmoid], floor: float) -> None:
    """alpha_bar(1) = floor, so that log-SNR stays finite; the floor falls too, and never lies above 1."""
    schedule = kind(floor=floor)
    assert schedule.alpha_bar(scalar(1.0)).item() == pytest.approx(floor, rel=1e-12)
    alpha_bar = schedule.alpha_bar(torch.linspace(0, 1, 1001, dtype=torch.float64))
    assert bool((alpha_bar.diff() < 0).all())
    assert alpha_bar[0].item() == 1


@given(st.floats(0, 1), st.floats(0.01, 5), st.floats(5, 40))
def test_quadratic_is_the_exponential_of_the_accumulated_rate(t: float, low: float, high: float) -> None:
    """alpha_bar = exp(-integral of beta), sqrt(beta) linear; Simpson's rule is exact here (papers.md 3, last lines)."""
    start, middle, end = ((low**0.5 + (high**0.5 - low**0.5) * u) ** 2 for u in (0, t / 2, t))
    got = QuadraticBeta(beta_min=low, beta_max=high).alpha_bar(scalar(t)).item()
    assert got == pytest.approx(math.exp(-t * (start + 4 * middle + end) / 6), rel=1e-12)


@given(st.floats(0, 1))
def test_the_signal_is_erased_evenly(t: float) -> None:
    """alpha_bar = 1 - t (Sohl-Dickstein et al. 2015, Sec. 2.4.1)."""
    assert Reciprocal().alpha_bar(scalar(t)).item() == 1 - t


@given(st.floats(0, 1), st.floats(-4, 0), st.floats(0.5, 4), st.floats(0.3, 2))
def test_sigmoid_is_the_papers_formula(t: float, start: float, end: float, temperature: float) -> None:
    """Algorithm 1 of Chen 2023, up to the floor, which here is his clip_min of 1e-9."""

    def s(u: float) -> float:
        return 1 / (1 + math.exp(-u / temperature))

    expected = (s(end) - s(t * (end - start) + start)) / (s(end) - s(start))
    schedule = Sigmoid(start=start, end=end, temperature=temperature, floor=1e-9)
    assert schedule.alpha_bar(scalar(t)).item() == pytest.approx(expected, rel=1e-10, abs=1.1e-9)


@given(st.floats(-5, 0), st.floats(0.1, 5), st.floats(0.2, 3), st.integers(1, 33))
@example(-1.412665936328834, 1.6705470924441264, 2.765494810063966, 17)
def test_sigmoid_starts_from_data_in_any_batch(start: float, end: float, temperature: float, count: int) -> None:
    """alpha(0) = 1 and sigma(0) = 0 exactly, whatever kernels round a batch of this size (C17)."""
    level = Sigmoid(start=start, end=end, temperature=temperature).at(torch.zeros(count, dtype=torch.float64))
    assert level.alpha.tolist() == [1] * count
    assert level.sigma.tolist() == [0] * count


@given(st.floats(1e-6, 1), st.floats(-20, 0), st.floats(1, 20))
def test_log_linear_is_linear_in_log_snr(t: float, low: float, high: float) -> None:
    """log_snr = high + (low - high) t (Kingma et al. 2021, Sec. 5.1), with all digits near either end."""
    schedule = LogLinear(high=high, low=low)
    level = schedule.at(scalar(t))
    log_snr = high + (low - high) * t
    assert level.log_snr.item() == pytest.approx(log_snr, abs=1e-12)
    assert level.dlog_snr.item() == pytest.approx(low - high, rel=1e-12)
    assert level.sigma.item() ** 2 == pytest.approx(1 / (1 + math.exp(log_snr)), rel=1e-13)
    assert schedule.alpha_bar(scalar(t)).item() == pytest.approx(1 / (1 + math.exp(-log_snr)), rel=1e-13)


@given(st.floats(0, 1), st.floats(0.1, 200))
def test_exploding_variance(t: float, sigma_max: float) -> None:
    """alpha = 1, sigma = sigma_max t (Karras et al. 2022, Table 1); its path in x is Song et al.'s 2021, Eq. 9."""
    level = VarianceExploding(sigma_max=sigma_max).at(scalar(t))
    assert (level.alpha.item(), level.dalpha.item()) == (1, 0)
    assert level.sigma.item() == pytest.approx(sigma_max * t, rel=1e-15)
    assert level.dsigma.item() == sigma_max


@given(st.floats(0, 1), st.floats(0.1, 10), st.integers(1, 4000))
def test_shift_is_applied_once(t: float, shift: float, num_steps: int) -> None:
    """sigma = shift t/(1 + (shift - 1) t) (Esser et al. 2024, Eq. 23), alpha = 1 - sigma; shift 3 takes the last of
    1000 steps from 0.001 to 0.0030, not to 0.0089 (C9).
    """
    level = RectifiedFlow(shift=shift).at(scalar(t))
    assert level.sigma.item() == pytest.approx(shift * t / (1 + (shift - 1) * t), rel=1e-13)
    assert level.alpha.item() == pytest.approx(1 - level.sigma.item(), abs=1e-14)
    assert RectifiedFlow(shift=3.0).at(time(0.003, 0.002, 0.001)).sigma.tolist() == pytest.approx(
        [0.0089, 0.0060, 0.0030], abs=6e-5
    )


@given(st.floats(0, 1), st.sampled_from([1e-9, 1e-5, 1e-3, 0.1]))
@example(0.12380952380952381, 1e-9)
def test_cosine_starts_from_data_whatever_its_offset(offset: float, floor: float) -> None:
    """alpha(0) = 1 and sigma(0) = 0 exactly: a sampler knows its last step by sigma = 0 (C17)."""
    level = Cosine(offset=offset, floor=floor).at(scalar(0.0))
    assert level.alpha.item() == 1
    assert level.sigma.item() == 0


@ANY
def test_every_schedule_starts_from_data(any_schedule: Schedule) -> None:
    """alpha(0) = 1 and sigma(0) = 0 exactly, alone and in a batch (C17)."""
    for t in (scalar(0.0), torch.zeros(19, dtype=torch.float64)):
        level = any_schedule.at(t)
        assert bool((level.alpha == 1).all())
        assert bool((level.sigma == 0).all())


@ANY
def test_no_level_is_not_a_number(any_schedule: Schedule) -> None:
    """At both ends and between, alpha and sigma are finite and derivatives are numbers, if infinite ones."""
    level = any_schedule.at(torch.linspace(0, 1, 41, dtype=torch.float64))
    assert bool((torch.isfinite(level.alpha) & torch.isfinite(level.sigma)).all())
    assert not bool((torch.isnan(level.dalpha) | torch.isnan(level.dsigma)).any())
    at_data = Cosine(offset=0.0).at(scalar(0.0))
    assert not math.isnan(at_data.dsigma.item())


def test_the_straight_path() -> None:
    """alpha = 1 - t, sigma = t, exactly at both ends (Liu et al. 2023, Eq. 1 with time reversed)."""
    level = RectifiedFlow().at(time(0, 0.25, 1))
    assert level.alpha.tolist() == [1, 0.75, 0]
    assert level.sigma.tolist() == [0, 0.25, 1]
    assert level.log_snr[2].item() == -math.inf


@ANY
@given(INSIDE)
def test_derivatives_are_slopes(any_schedule: Schedule, t: float) -> None:
    """Dalpha, dsigma and dlog_snr equal central differences of alpha, sigma and log_snr."""
    schedule = any_schedule
    if isinstance(schedule, Tabulated):  # slopes jump at the points of the table: stay between two of them
        t, width = (math.floor(t * schedule.num_steps) + 0.5) / schedule.num_steps, 0.01 / schedule.num_steps
    else:
        width = 2e-5
    level, around = schedule.at(scalar(t)), schedule.at(time(t - width, t + width))
    slopes = (level.dalpha, around.alpha), (level.dsigma, around.sigma), (level.dlog_snr, around.log_snr)
    for exact, values in slopes:
        slope = (values[1] - values[0]).item() / (2 * width)
        assert exact.item() == pytest.approx(slope, rel=1e-4, abs=1e-8)


@ANY
@given(st.floats(0, 1), st.floats(0, 1))
def test_log_snr_falls_strictly(any_schedule: Schedule, s: float, t: float) -> None:
    """The Schedule contract; on the straight path down to -inf."""
    s, t = sorted((s, t))
    if t - s > 1e-6:
        log_snr = any_schedule.at(time(s, t)).log_snr
        assert log_snr[0].item() > log_snr[1].item()


@ANY
@given(INSIDE)
def test_time_of_undoes_log_snr(any_schedule: Schedule, t: float) -> None:
    """time_of(at(t).log_snr) = t (a table of 1000 takes t within 1e-12 of its point for the point)."""
    assert any_schedule.time_of(any_schedule.at(scalar(t)).log_snr).item() == pytest.approx(t, abs=2e-12)


@ANY
@given(st.floats(-9, 9))
def test_log_snr_undoes_time_of(any_schedule: Schedule, log_snr: float) -> None:
    """at(time_of(l)).log_snr = l, for every l that the schedule has."""
    lowest = any_schedule.at(scalar(1.0)).log_snr.item()
    got = any_schedule.at(any_schedule.time_of(scalar(log_snr))).log_snr.item()
    assert got == pytest.approx(max(log_snr, lowest), abs=1e-9)


@ANY
@pytest.mark.parametrize("beyond", [1e3, 1e9, math.inf])
def test_time_of_stops_at_the_ends(any_schedule: Schedule, beyond: float) -> None:
    """A log-SNR that no level has gives the nearest end of [0, 1]."""
    assert any_schedule.time_of(time(beyond, -beyond)).tolist() == pytest.approx([0, 1], abs=1e-15)


@given(st.floats(0, 1))
def test_bisection_finds_where_a_function_falls(t: float) -> None:
    """where_falls_to(f, f(t)) = t for falling f; the nearest end where f has no such value."""
    assert where_falls_to(lambda u: 1 - u**3, scalar(1 - t**3)).item() == pytest.approx(
        t, abs=1e-4 if t < 0.01 else 1e-9
    )
    assert where_falls_to(lambda u: 1 - u, time(2.0, -2.0)).tolist() == pytest.approx([0, 1], abs=1e-15)


def test_one_time_or_many(schedule: Schedule) -> None:
    """A batch of times gives the levels of its times, a single one a level of shape ()."""
    t = time(0.2, 0.5, 1)
    many = schedule.at(t)
    for i, value in enumerate(t):
        one, picked = schedule.at(value), many[i]
        for name in ("t", "alpha", "sigma", "dalpha", "dsigma"):
            assert getattr(one, name).shape == ()
            assert getattr(picked, name).item() == pytest.approx(getattr(one, name).item(), rel=1e-14)
    assert many[1:].t.tolist() == [0.5, 1]


def test_level_carries_no_gradient(schedule: Schedule) -> None:
    """Numbers only: also under no_grad the derivatives are there, and none of them hangs on a graph."""
    with torch.no_grad():
        level = schedule.at(time(0.3, 0.7))
    assert not any(getattr(level, name).requires_grad for name in ("t", "alpha", "sigma", "dalpha", "dsigma"))


def test_spread_gives_each_sample_its_own_coefficient() -> None:
    """Shape (b,) becomes (b, 1, ...) of x's type; shape () multiplies as it is."""
    x = torch.ones(2, 3, 4, 5)
    spread_out = spread(time(2, 3), x)
    assert (spread_out.shape, spread_out.dtype) == ((2, 1, 1, 1), torch.float32)
    assert (spread_out * x)[:, 0, 0, 0].tolist() == [2, 3]
    product = spread(scalar(2.0), x) * x
    assert (product.shape, product.dtype) == (x.shape, torch.float32)


def test_a_combination_is_that_of_spread_coefficients() -> None:
    """``combined`` is a x + b y for one coefficient, for one a sample and for one that carries a gradient; neither x
    nor y is changed.
    """
    x, y = torch.linspace(-1, 1, 12).view(2, 2, 3), torch.linspace(2, -3, 12).view(2, 2, 3)
    kept = x.clone(), y.clone()
    for a, b in ((scalar(0.3), scalar(-1.7)), (time(0.3, 0.6), time(-1.7, 2.0))):
        torch.testing.assert_close(combined(a, x, b, y), spread(a, x) * x + spread(b, y) * y)
        assert combined(a, x, b, y).dtype == torch.float32
    a, b = scalar(0.3).requires_grad_(), scalar(-1.7).requires_grad_()
    combined(a, x, b, y).sum().backward()
    assert a.grad is not None
    assert b.grad is not None
    assert (a.grad.item(), b.grad.item()) == pytest.approx((x.sum().item(), y.sum().item()), abs=1e-5)
    assert torch.equal(x, kept[0])
    assert torch.equal(y, kept[1])


def test_a_row_combines_as_it_would_alone() -> None:
    """Bit for bit, in any batch: pictures do not depend on their neighbours."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(7, 13, generator=generator), torch.randn(7, 13, generator=generator)
    together = combined(scalar(0.3123), x, scalar(-1.7001), y)
    for i in range(7):
        row = slice(i, i + 1)
        assert torch.equal(combined(scalar(0.3123), x[row], scalar(-1.7001), y[row]), together[row])


def test_a_grid_falls_into_its_levels(schedule: Schedule) -> None:
    """``unbind`` gives what indexing gives, one level of shape () after the other."""
    grid = schedule.at(time(0.9, 0.5, 0.1))
    levels = grid.unbind()
    assert len(levels) == 3
    for i, level in enumerate(levels):
        for name in ("t", "alpha", "sigma", "dalpha", "dsigma"):
            assert torch.equal(getattr(level, name), getattr(grid[i], name))


@pytest.mark.parametrize("num_steps", [1, 3, 50, 1000])
def test_a_table_is_exact_at_its_points(num_steps: int) -> None:
    """alpha_bar(i/T) is entry i, bit for bit, however i/T was computed."""
    generator = numpy.random.default_rng(0)
    betas = generator.uniform(1e-3, 0.1, num_steps).tolist()
    table = Tabulated.from_betas(betas)
    points = torch.arange(1, num_steps + 1, dtype=torch.float64) / num_steps
    assert table.alpha_bar(points).tolist() == list(table.table)
    walked = torch.tensor(trailing(table, num_steps), dtype=torch.float64)
    assert table.alpha_bar(walked).tolist() == [*reversed(table.table), 1.0]
    torch.testing.assert_close(
        table.at(points).alpha, torch.tensor(table.table, dtype=torch.float64).sqrt(), rtol=1e-15, atol=0
    )


def test_a_table_is_the_product_over_steps() -> None:
    """alpha_bar_i = product of 1 - beta (Ho et al. 2020, Sec. 2), as numpy computes it."""
    betas = linear_betas(1000)
    expected = numpy.cumprod(1 - numpy.array(betas))
    numpy.testing.assert_allclose(Tabulated.from_betas(betas).table, expected, rtol=1e-13)


@given(st.integers(1, 999), st.floats(0, 1))
def test_a_table_is_straight_in_log_snr(step: int, share: float) -> None:
    """Between two points log-SNR is linear in t (documented)."""
    table = Tabulated.from_betas(linear_betas(1000))
    left, inside, right = table.at(time(step / 1000, (step + share) / 1000, (step + 1) / 1000)).log_snr.tolist()
    assert inside == pytest.approx((1 - share) * left + share * right, abs=1e-8)


@given(st.floats(0, 1), st.sampled_from([(1.0, 0.0), (1.0, 0.8, 0.3), (1.0, 0.8, 0.3, 0.0)]))
def test_a_table_is_straight_in_alpha_bar_where_log_snr_is_infinite(share: float, points: tuple[float, ...]) -> None:
    """On the first interval, and on one that ends without signal, alpha_bar is linear in t (documented)."""
    table = Tabulated(table=points[1:])
    steps = [0] if points[-1] else [0, len(points) - 2]
    for step in steps:
        got = table.alpha_bar(scalar((step + share) / table.num_steps)).item()
        assert got == pytest.approx((1 - share) * points[step] + share * points[step + 1], abs=1e-9)


@pytest.mark.parametrize("num_steps", [1, 2, 10, 1000, 4000])
def test_a_chain_through_the_cosine_schedule_is_the_papers(num_steps: int) -> None:
    """beta = min(1 - alpha_bar_i / alpha_bar_{i-1}, 0.999), clipped at the last step only (Nichol & Dhariwal 2021,
    Sec. 3.2).

    With the paper's alpha_bar, which has no floor: at T = 4000 the default one already weighs in the last step.
    """
    schedule = Cosine(floor=1e-15)
    table = numpy.array((1.0, *Tabulated.from_schedule(schedule, num_steps).table))
    betas = 1 - table[1:] / table[:-1]
    assert betas[-1] == pytest.approx(0.999, abs=1e-12)
    f = numpy.cos((numpy.arange(num_steps + 1) / num_steps + 0.008) / 1.008 * numpy.pi / 2) ** 2
    numpy.testing.assert_allclose(table[:-1], f[:-1] / f[0], rtol=1e-7)
    numpy.testing.assert_allclose(betas[:-1], 1 - f[1:-1] / f[:-2], rtol=1e-7)


@given(st.floats(0.05, 0.999), st.integers(2, 50))
def test_a_chain_clips_beta_where_it_is_told(beta_max: float, num_steps: int) -> None:
    """No beta exceeds beta_max, and those below it are the schedule's own."""
    points = Cosine().alpha_bar(torch.arange(num_steps + 1, dtype=torch.float64) / num_steps).numpy()
    table = numpy.array((1.0, *Tabulated.from_schedule(Cosine(), num_steps, beta_max=beta_max).table))
    expected = numpy.minimum(1 - points[1:] / points[:-1], beta_max)
    numpy.testing.assert_allclose(1 - table[1:] / table[:-1], expected, rtol=1e-9)


@pytest.mark.parametrize("num_steps", [1, 2, 10, 1000, 4000])
@pytest.mark.parametrize("schedule", [LinearBeta(), QuadraticBeta(), Reciprocal(), Sigmoid(), LogLinear()], ids=repr)
def test_a_chain_through_a_schedule_passes_through_it(schedule: VariancePreserving, num_steps: int) -> None:
    """Unclipped, entry i is the schedule's own alpha_bar(i/T), bit for bit."""
    grid = torch.arange(1, num_steps + 1, dtype=torch.float64) / num_steps
    table = Tabulated.from_schedule(schedule, num_steps, beta_max=1.0)
    assert list(table.table) == schedule.alpha_bar(grid).tolist()


@pytest.mark.parametrize("num_steps", [2, 10, 1000, 4000])
def test_zero_terminal_snr_is_the_papers_rescale(num_steps: int) -> None:
    """sqrt(alpha_bar) is shifted to end at 0 and scaled to begin as before (Lin et al. 2024, Algorithm 1; C8)."""
    table = Tabulated.from_schedule(LinearBeta(), num_steps)
    rescaled = table.with_zero_terminal_snr()
    assert rescaled.table[0] == table.table[0]
    assert rescaled.table[-1] == 0
    root = numpy.sqrt(table.table)
    expected = (root - root[-1]) * root[0] / (root[0] - root[-1])
    numpy.testing.assert_allclose(numpy.sqrt(rescaled.table), expected, rtol=1e-12, atol=1e-15)
    assert rescaled.betas[-1] == 1
    again = rescaled.with_zero_terminal_snr()
    numpy.testing.assert_allclose(again.table, rescaled.table, rtol=1e-14)


@given(st.lists(st.floats(1e-4, 0.9), min_size=1, max_size=50))
def test_betas_of_a_table_are_those_it_was_made_of(betas: list[float]) -> None:
    """from_betas(b).betas = b."""
    assert Tabulated.from_betas(betas).betas == pytest.approx(betas, rel=1e-11)


@given(st.integers(1, 200), st.floats(0, 1))
def test_tables_of_betas_are_ddpms(num_steps: int, share: float) -> None:
    """Quad, const, warm-up and jsd as DDPM's code has them (papers.md 1.2), written with numpy."""
    first, last = 1e-4, 0.02
    quad = numpy.linspace(first**0.5, last**0.5, num_steps) ** 2
    numpy.testing.assert_allclose(quadratic_betas(num_steps), quad, rtol=1e-13)
    assert constant_betas(num_steps) == (0.02,) * num_steps
    warm = numpy.full(num_steps, last)
    warm[: int(num_steps * share)] = numpy.linspace(first, last, int(num_steps * share))
    numpy.testing.assert_allclose(warm_up_betas(num_steps, share=share), warm, rtol=1e-13)
    numpy.testing.assert_allclose(reciprocal_betas(num_steps), 1 / numpy.linspace(num_steps, 1, num_steps), rtol=1e-13)


@pytest.mark.parametrize("num_steps", [1, 2, 10, 1000, 4000])
def test_jsd_is_the_reciprocal_schedule(num_steps: int) -> None:
    """beta_i = 1/(T - i + 1) erases 1/T of the signal a step: alpha_bar_i = 1 - i/T."""
    table = Tabulated.from_betas(reciprocal_betas(num_steps)).table
    numpy.testing.assert_allclose(table, 1 - numpy.arange(1, num_steps + 1) / num_steps, rtol=1e-11, atol=1e-15)
    assert table[-1] == 0


@given(st.floats(0, 1), st.integers(0, 2))
def test_between_points_has_gradients_to_the_points(share: float, step: int) -> None:
    """d alpha_bar(t)/d point equals central differences, on a point and between two."""
    points = torch.tensor([1.0, 0.8, 0.3, 0.05], dtype=torch.float64, requires_grad=True)
    t = scalar((step + round(share, 2)) / 3)
    (slope,) = torch.autograd.grad(between_points(points, t), points)
    for i in range(1, 4):
        width = torch.zeros(4, dtype=torch.float64)
        width[i] = 1e-6
        around = [between_points(points.detach() + sign * width, t).item() for sign in (1, -1)]
        assert slope[i].item() == pytest.approx((around[0] - around[1]) / 2e-6, rel=1e-5, abs=1e-7)


def test_published_ends_of_the_chains() -> None:
    """sqrt(alpha_bar_T) of DDPM is 0.0064, of Stable Diffusion 0.068, of cosine 5e-5 (papers.md); sigma_1 of DDPM is
    0.01 (C17).
    """
    ddpm = Tabulated.from_betas(linear_betas(1000))
    stable = Tabulated.from_betas((numpy.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2).tolist())
    cosine = Tabulated.from_schedule(Cosine(), 1000)
    assert math.sqrt(ddpm.table[-1]) == pytest.approx(0.0064, abs=5e-5)
    assert math.sqrt(stable.table[-1]) == pytest.approx(0.068, abs=5e-4)
    assert math.sqrt(cosine.table[-1]) == pytest.approx(5e-5, abs=5e-6)
    assert ddpm.at(scalar(0.001)).sigma.item() == pytest.approx(0.01, rel=1e-12)


def test_ddpm_betas() -> None:
    """1e-4 to 0.02 in 1000 steps (Ho et al. 2020, Sec. 4), multiplied by 1000/T for another T; 20 steps reach beta =
    1.
    """
    betas = linear_betas(1000)
    assert (len(betas), betas[0], betas[-1]) == (1000, 1e-4, 0.02)
    assert linear_betas(250)[-1] == pytest.approx(0.08)
    assert linear_betas(20)[-1] == 1


def test_ddpm_tends_to_the_linear_schedule() -> None:
    """T-step chains converge to LinearBeta as T grows, of first order in 1/T (Song et al. 2021, Appendix B)."""
    t = time(0.3, 0.5, 0.8)
    errors = [
        (Tabulated.from_betas(linear_betas(num_steps)).alpha_bar(t) - LinearBeta().alpha_bar(t)).abs().max().item()
        for num_steps in (1000, 2000, 4000)
    ]
    assert errors[0] < 1e-3
    assert [errors[0] / errors[1], errors[1] / errors[2]] == pytest.approx([2, 2], abs=0.1)


@pytest.mark.filterwarnings("ignore")  # of diffusers, about numpy
@pytest.mark.parametrize(
    ("table", "name"),
    [
        (Tabulated.from_betas(linear_betas(1000)), "linear"),
        (Tabulated.from_schedule(Cosine(), 1000), "squaredcos_cap_v2"),
    ],
    ids=["linear", "cosine"],
)
def test_agrees_with_diffusers(table: Tabulated, name: str) -> None:
    """diffusers' alphas_cumprod to float32 accuracy."""
    theirs = DDPMScheduler(beta_schedule=name, num_train_timesteps=1000).alphas_cumprod.double()
    torch.testing.assert_close(torch.tensor(table.table, dtype=torch.float64), theirs, rtol=2e-5, atol=2e-7)


@pytest.mark.parametrize(
    "make",
    [
        lambda: LinearBeta(beta_min=0.0),
        lambda: LinearBeta(beta_min=3.0, beta_max=2.0),
        lambda: LinearBeta(beta_max=math.inf),
        lambda: LinearBeta(beta_min=math.nan),
        lambda: Cosine(offset=-0.1),
        lambda: Cosine(offset=math.nan),
        lambda: Cosine(floor=0.0),
        lambda: Cosine(floor=1.0),
        lambda: Cosine(floor=0.6),  # alpha_bar would start from 1.2
        lambda: Sigmoid(floor=0.6),
        lambda: Sigmoid(floor=0.0),
        lambda: Sigmoid(start=1.0, end=1.0),
        lambda: Sigmoid(start=2.0, end=1.0),
        lambda: Sigmoid(temperature=0.0),
        lambda: Sigmoid(temperature=math.nan),
        lambda: Sigmoid(end=math.inf),
        lambda: QuadraticBeta(beta_min=0.0),
        lambda: QuadraticBeta(beta_min=3.0, beta_max=2.0),
        lambda: QuadraticBeta(beta_max=math.inf),
        lambda: LogLinear(high=-1.0, low=1.0),
        lambda: LogLinear(high=1.0, low=1.0),
        lambda: LogLinear(high=math.inf),
        lambda: LogLinear(low=math.nan),
        lambda: VarianceExploding(sigma_max=0.0),
        lambda: VarianceExploding(sigma_max=math.inf),
        lambda: VarianceExploding(sigma_max=math.nan),
        lambda: RectifiedFlow(shift=0.0),
        lambda: RectifiedFlow(shift=-1.0),
        lambda: RectifiedFlow(shift=math.inf),
        lambda: Tabulated(table=(0.5,)).with_zero_terminal_snr(),
        lambda: Tabulated(table=(math.inf, 0.5)),
        lambda: Tabulated.from_betas(constant_betas(10, beta=0.0)),
        lambda: Tabulated.from_betas(constant_betas(10, beta=1.0)),
        lambda: Tabulated.from_betas(quadratic_betas(10, last=1.5)),
        lambda: Tabulated.from_betas([-0.1]),
        lambda: Tabulated.from_schedule(LinearBeta(), -3),
        lambda: Tabulated.from_schedule(LinearBeta(), 5, beta_max=math.nan),
        lambda: quadratic_betas(0),
        lambda: quadratic_betas(first=-0.1),
        lambda: quadratic_betas(last=math.nan),
        lambda: constant_betas(0),
        lambda: warm_up_betas(0),
        lambda: warm_up_betas(share=1.5),
        lambda: warm_up_betas(share=math.nan),
        lambda: reciprocal_betas(0),
        lambda: Tabulated(table=()),
        lambda: Tabulated(table=(0.5, 0.5)),
        lambda: Tabulated(table=(0.5, 0.6)),
        lambda: Tabulated(table=(1.0, 0.5)),
        lambda: Tabulated(table=(0.5, -0.1)),
        lambda: Tabulated(table=(0.5, math.nan)),
        lambda: Tabulated.from_betas([]),
        lambda: Tabulated.from_betas([0.0, 0.5]),
        lambda: Tabulated.from_betas([0.5, 1.1]),
        lambda: Tabulated.from_betas([0.5, math.nan]),
        lambda: Tabulated.from_betas([1.0, 0.5]),
        lambda: Tabulated.from_schedule(Cosine(), 0),
        lambda: Tabulated.from_schedule(Cosine(), 10, beta_max=0.0),
        lambda: linear_betas(0),
        lambda: linear_betas(19),
    ],
)
def test_refuses_what_is_no_schedule(make: Callable[[], object]) -> None:
    """ValueError for every bad constructor."""
    with pytest.raises(ValueError, match=r".+"):
        make()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Tabulated.from_betas([0.1, 1.2, 0.1]), r"step 2 is 1\.2.*in \(0, 1\)"),
        (lambda: Tabulated(table=(0.5, 0.6)), r"falls strictly.*entry 2 is 0\.6 after 0\.5; each step must add noise"),
        (lambda: Tabulated(table=()), r"at least one value, got none"),
        (lambda: linear_betas(0), r"at least 1 step, got 0"),
        (lambda: linear_betas(19), r"at least 20 steps, got 19; take Tabulated"),
        (lambda: LinearBeta(beta_min=3.0, beta_max=2.0), r"0 < beta_min <= beta_max, got 3\.0 and 2\.0"),
        (lambda: Cosine(floor=0.7), r"floor <= 0\.5, got 0\.008 and 0\.7"),
        (lambda: Tabulated(table=(0.5,)).with_zero_terminal_snr(), r"one step.*use Tabulated\(table=\(0\.0,\)\)"),
        (lambda: LinearBeta().at(time(1.5)), r"in \[0, 1\], got 1\.5"),
        (lambda: LinearBeta().at(torch.tensor([0.5])), r"float64 tensors on the CPU, got torch\.float32.*as_tensor"),
    ],
)
def test_a_refusal_says_what_was_given_and_expected(make: Callable[[], object], words: str) -> None:
    """The message tells what was given, what was expected, and what to do."""
    with pytest.raises(ValueError, match=words):
        make()


@ANY
@pytest.mark.parametrize("t", [-0.1, 1.1, math.nan])
def test_refuses_times_outside(any_schedule: Schedule, t: float) -> None:
    """ValueError for t outside [0, 1]."""
    with pytest.raises(ValueError, match="times"):
        any_schedule.at(time(0.5, t))


@ANY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_refuses_coarse_times(any_schedule: Schedule, dtype: torch.dtype) -> None:
    """ValueError for times that are not float64 (999/1000 in bfloat16 is 1)."""
    at: Callable[[torch.Tensor], Level] = any_schedule.at
    with pytest.raises(ValueError, match="float64"):
        at(torch.tensor([1], dtype=dtype))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.sampled_from([1, 2, 7, 1000]))
def test_the_levels_of_a_table_are_those_that_automatic_differentiation_finds(times: list[float], steps: int) -> None:
    """Values bit for bit, slopes to rounding, infinite ones too; also on intervals where alpha_bar itself is linear."""
    for table in (Tabulated.from_schedule(Cosine(), steps), Tabulated.from_schedule(Reciprocal(), steps, 1.0)):
        t = torch.tensor([*times, 0.0, 1.0, *(i / steps for i in range(0, steps, 97))], dtype=torch.float64)
        ours, found = table.at(t), VariancePreserving.at(table, t)
        assert torch.equal(ours.alpha, found.alpha)
        assert torch.equal(ours.sigma, found.sigma)
        assert torch.allclose(ours.dalpha, found.dalpha, rtol=1e-9, equal_nan=True)
        assert torch.allclose(ours.dsigma, found.dsigma, rtol=1e-9, equal_nan=True)


def test_the_levels_of_a_grid_are_those_of_its_times() -> None:
    for schedule in (Tabulated.from_schedule(Cosine(), 10), RectifiedFlow()):
        for times in ([1.0, 0.5, 0.0], (0.9, 0.1)):
            for level, time in zip(levels_at(schedule, times), times, strict=True):
                alone = schedule.at(torch.tensor(time, dtype=torch.float64))
                assert level.t.shape == ()
                assert (level.alpha.item(), level.dsigma.item()) == (alone.alpha.item(), alone.dsigma.item())
