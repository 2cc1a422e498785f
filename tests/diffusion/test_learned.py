"""Learned schedules: where they start, that they stay schedules, and that their gradients are right."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from unstir.diffusion.learned import LearnedBetas, LearnedLogSNR
from unstir.diffusion.process import BinomialProcess, Estimate, GaussianProcess
from unstir.diffusion.schedule import Cosine, Level, LogLinear, Schedule, Tabulated, linear_betas, reciprocal_betas

CHAIN = Tabulated.from_betas(linear_betas(50))
SEEDS = st.integers(0, 10_000)


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def scattered(module: nn.Module, seed: int, size: float) -> None:
    """Adds normal numbers to every parameter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)


def betas(seed: int = 0, size: float = 0.5) -> LearnedBetas:
    schedule = LearnedBetas(CHAIN)
    scattered(schedule, seed, size)
    return schedule


def log_snr(seed: int = 0, size: float = 0.5, hidden: int = 8) -> LearnedLogSNR:
    schedule = LearnedLogSNR(hidden=hidden, seed=seed)
    scattered(schedule, seed, size)
    return schedule


BOTH = pytest.mark.parametrize("make", [betas, log_snr], ids=["betas", "log_snr"])


@pytest.mark.parametrize("num_steps", [1, 2, 10, 1000, 4000])
def test_learned_betas_start_at_their_table(num_steps: int) -> None:
    """Before a step of learning, levels are those of the table, and betas its betas, with the first bit for bit."""
    table = Tabulated.from_schedule(Cosine(), num_steps)
    schedule = LearnedBetas(table)
    assert schedule.num_steps == num_steps
    assert schedule.betas()[0].item() == table.betas[0]
    assert schedule.betas().tolist() == pytest.approx(table.betas, rel=1e-12)
    t = torch.cat([torch.arange(num_steps + 1, dtype=torch.float64) / num_steps, torch.tensor([0.123, 0.777]).double()])
    learned, plain = schedule.at(t), table.at(t)
    for name in ("alpha", "sigma"):
        torch.testing.assert_close(getattr(learned, name).detach(), getattr(plain, name), rtol=1e-11, atol=1e-15)
    is_inside = plain.sigma > 0
    torch.testing.assert_close(learned.dlog_snr.detach()[is_inside], plain.dlog_snr[is_inside], rtol=1e-6, atol=1e-9)
    end = schedule.at(scalar(0.0))
    assert (end.alpha.item(), end.sigma.item()) == (1, 0)


@given(SEEDS, st.floats(0.1, 4))
def test_learned_betas_fall_whatever_they_are(seed: int, size: float) -> None:
    """Alpha_bar falls from 1 and stays positive for any logits; the first beta is no parameter and never moves."""
    schedule = betas(seed, size)
    alpha_bar = schedule.alpha_bar(torch.arange(51, dtype=torch.float64) / 50).detach()
    assert alpha_bar[0].item() == 1
    assert alpha_bar[1].item() == pytest.approx(CHAIN.table[0], rel=1e-15)
    assert bool((alpha_bar.diff() < 0).all())
    assert alpha_bar[-1].item() > 0
    products = torch.cumprod(1 - schedule.betas().detach(), 0)
    torch.testing.assert_close(alpha_bar[1:], products, rtol=1e-10, atol=1e-15)
    assert [name for name, _ in schedule.named_parameters()] == ["logits"]
    assert schedule.logits.numel() == 49


@given(SEEDS, st.floats(0, 1.5), st.integers(1, 40))
def test_a_learned_log_snr_falls_whatever_it_is(seed: int, size: float, hidden: int) -> None:
    """It falls strictly from ``low + fall`` to ``low`` for any weights (Kingma et al. 2021, Appendix H)."""
    schedule = log_snr(seed, size, hidden)
    values = schedule.log_snr(torch.linspace(0, 1, 200, dtype=torch.float64)).detach()
    assert bool((values.diff() < 0).all())
    low, fall = schedule.low.item(), schedule.fall.exp().item()
    assert values[0].item() == pytest.approx(low + fall, rel=1e-12, abs=1e-12)
    assert values[-1].item() == pytest.approx(low, rel=1e-12, abs=1e-12)


def test_no_weight_turns_a_learned_log_snr_around() -> None:
    """It falls where every weight is negative, and where the straight part is all but gone."""
    schedule = LearnedLogSNR(hidden=4)
    with torch.no_grad():
        schedule.straight.fill_(-8.0)
        schedule.steepness.copy_(torch.tensor([-2.0, -0.5, 0.5, 2.0]))
        schedule.heights.fill_(2.0)
        schedule.offsets.copy_(torch.tensor([-3.0, -1.0, 0.0, 2.0]))
    values = schedule.log_snr(torch.linspace(0, 1, 200, dtype=torch.float64)).detach()
    assert bool((values.diff() < 0).all())
    rises = (schedule.steepness.exp() * schedule.heights.exp()).tolist()  # slope of g at t = 0, sigmoid' = S (1 - S)
    at_zero = torch.sigmoid(schedule.offsets).tolist()
    slope = math.exp(-8.0) + sum(rise * s * (1 - s) for rise, s in zip(rises, at_zero, strict=True))
    g = [
        math.exp(-8.0) * t
        + sum(
            math.exp(u) / (1 + math.exp(-(math.exp(v) * t + b)))
            for u, v, b in zip(
                schedule.heights.tolist(), schedule.steepness.tolist(), schedule.offsets.tolist(), strict=True
            )
        )
        for t in (0.0, 1.0)
    ]
    expected = -26.6 * slope / (g[1] - g[0])
    assert schedule.at(scalar(1e-9)).dlog_snr.item() == pytest.approx(expected, rel=1e-6)


@BOTH
def test_alpha_bar_is_alpha_squared(make: Callable[[int], LearnedBetas | LearnedLogSNR]) -> None:
    """At every time, and 1 exactly at t = 0."""
    schedule = make(4)
    t = torch.linspace(0, 1, 51, dtype=torch.float64)
    alpha_bar = schedule.alpha_bar(t).detach()
    assert alpha_bar[0].item() == 1
    torch.testing.assert_close(alpha_bar, schedule.at(t).alpha.detach() ** 2, rtol=1e-13, atol=0)


def test_a_learned_log_snr_starts_nearly_straight() -> None:
    """Its ends are those asked for, and between them it strays little from ``LogLinear``; another seed strays
    elsewhere.
    """
    t = torch.linspace(0.01, 1, 100, dtype=torch.float64)
    schedule = LearnedLogSNR(high=9.0, low=-5.0)
    level, straight = schedule.at(t), LogLinear(high=9.0, low=-5.0).at(t)
    torch.testing.assert_close(level.log_snr[-1].detach(), scalar(-5.0), rtol=1e-12, atol=0)
    assert (level.log_snr - straight.log_snr).abs().max().item() < 0.5
    other = LearnedLogSNR(high=9.0, low=-5.0, seed=1)
    assert not torch.equal(other.at(t).log_snr, level.log_snr)
    assert torch.equal(LearnedLogSNR(high=9.0, low=-5.0).at(t).log_snr, level.log_snr)


@BOTH
@given(SEEDS, st.floats(0.03, 0.97))
def test_learned_derivatives_are_slopes(make: Callable[[int], Schedule], seed: int, t: float) -> None:
    """Dalpha, dsigma and dlog_snr equal central differences."""
    schedule = make(seed)
    t, width = (math.floor(t * 50) + 0.5) / 50, 1e-5  # slopes of a table jump at its points
    level, around = schedule.at(scalar(t)), schedule.at(torch.tensor([t - width, t + width], dtype=torch.float64))
    for name, slope in (("alpha", "dalpha"), ("sigma", "dsigma"), ("log_snr", "dlog_snr")):
        values = getattr(around, name)
        expected = ((values[1] - values[0]) / (2 * width)).item()
        assert getattr(level, slope).item() == pytest.approx(expected, rel=1e-5, abs=1e-9)


@BOTH
def test_learned_levels_preserve_variance(make: Callable[[int], Schedule]) -> None:
    """alpha^2 + sigma^2 = 1, and time_of undoes log_snr."""
    schedule = make(3)
    level = schedule.at(torch.linspace(0, 1, 101, dtype=torch.float64))
    torch.testing.assert_close((level.alpha**2 + level.sigma**2).detach(), torch.ones(101, dtype=torch.float64))
    back = schedule.time_of(level.log_snr.detach())
    torch.testing.assert_close(back[1:], level.t[1:], rtol=1e-8, atol=1e-9)
    assert not back.requires_grad


def numeric(module: nn.Module, value: Callable[[], Tensor], width: float = 1e-5) -> list[float]:
    """Central differences of a number by every element of every parameter."""
    slopes: list[float] = []
    with torch.no_grad():
        for parameter in module.parameters():
            flat = parameter.view(-1)
            for i in range(flat.numel()):
                before = flat[i].item()
                ends = []
                for sign in (1, -1):
                    flat[i] = before + sign * width
                    ends.append(value().item())
                flat[i] = before
                slopes.append((ends[0] - ends[1]) / (2 * width))
    return slopes


def quantity(schedule: Schedule) -> Callable[[], Tensor]:
    """A number made of all fields of levels, on and off the grid, as a bound is."""

    def value() -> Tensor:
        levels = schedule.at(torch.tensor([0.0, 0.2, 0.21, 0.5, 0.995, 1.0], dtype=torch.float64))
        at_data, rest = levels[0], levels[1:]
        weights = torch.arange(1, 6, dtype=torch.float64)
        slopes = (rest.dalpha - 0.3 * rest.dsigma) * weights.flip(0)
        return (weights * (rest.alpha - 2 * rest.sigma**2)).sum() + 0.01 * slopes.sum() + at_data.alpha + at_data.sigma

    return value


@BOTH
@pytest.mark.parametrize("seed", [0, 1])
def test_gradients_to_the_parameters(make: Callable[[int], nn.Module], seed: int) -> None:
    """Autograd equals central differences for every parameter, through alpha, sigma and their slopes, finite at t = 0."""
    schedule = make(seed)
    value = quantity(schedule)  # type: ignore[arg-type]
    value().backward()
    got = torch.cat([parameter.grad.flatten() for parameter in schedule.parameters()]).tolist()  # type: ignore[union-attr]
    assert all(math.isfinite(each) for each in got)
    assert got == pytest.approx(numeric(schedule, value), rel=1e-5, abs=1e-8)


def chain_bound(process: GaussianProcess | BinomialProcess, x0: Tensor, x_t: Tensor, belief: Tensor) -> Tensor:
    """The terms of the bound at steps 1, 2 and 50, the decoder's and the prior's."""
    schedule = process.schedule
    t, s = (schedule.at(torch.tensor(at, dtype=torch.float64) / 50) for at in ([2.0, 50.0], [1.0, 49.0]))
    estimate = Estimate(x0=belief)
    terms = process.reverse(x_t, t, s, Estimate(x0=x0)).kl(process.reverse(x_t, t, s, estimate)).sum()
    first, above = schedule.at(scalar(1 / 50)), schedule.at(scalar(2 / 50))
    decoder = process.decode_log_prob(x0, x_t, first, estimate, above).sum()
    prior = process.marginal(x0, schedule.at(scalar(1.0))).kl(process.prior(x0)).sum()
    return terms - decoder + prior


@pytest.mark.parametrize("is_binomial", [False, True], ids=["gaussian", "binomial"])
def test_gradients_of_the_bound(is_binomial: bool) -> None:
    """The bound's gradient by every beta, with the noise held fixed, equals central differences (Sohl-Dickstein et al.
    2015, Sec. 2.4.1), and is finite.
    """
    schedule = betas(2)
    generator = torch.Generator().manual_seed(0)
    x0, noise, belief = torch.rand(3, 2, 3, generator=generator, dtype=torch.float64)
    if is_binomial:
        process: GaussianProcess | BinomialProcess = BinomialProcess(schedule=schedule, rate=0.3)
        x0, x_t = (x0 > 0.5).double(), (noise > 0.5).double()

        def value() -> Tensor:
            return chain_bound(process, x0, x_t, belief)
    else:
        process = GaussianProcess(schedule=schedule, levels=3)
        x0 = (2 * x0 - 1).round()

        def value() -> Tensor:
            level = schedule.at(torch.tensor([0.04, 1.0], dtype=torch.float64))
            x_t = level.alpha.view(2, 1) * x0 + level.sigma.view(2, 1) * noise
            return chain_bound(process, x0, x_t, x_t - belief)

    value().backward()
    assert schedule.logits.grad is not None
    got = schedule.logits.grad.tolist()
    assert all(math.isfinite(each) for each in got)
    expected = numeric(schedule, value)
    scale = max(1.0, max(abs(each) for each in expected))
    assert got == pytest.approx(expected, rel=1e-5, abs=1e-7 * scale)


@BOTH
@pytest.mark.parametrize("num_steps", [1, 2, 10, 50, 1000, 4000])
def test_what_was_learned_is_kept_as_a_table(make: Callable[[int], Schedule], num_steps: int) -> None:
    """Tabulated.from_schedule(learned, T, beta_max=1.0) has the learned levels at i/T."""
    schedule = make(5)
    table = Tabulated.from_schedule(schedule, num_steps, beta_max=1.0)  # type: ignore[arg-type]
    t = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
    kept: Level = table.at(t)
    torch.testing.assert_close(kept.alpha, schedule.at(t).alpha.detach(), rtol=1e-14, atol=0)
    torch.testing.assert_close(kept.sigma, schedule.at(t).sigma.detach(), rtol=1e-9, atol=0)


@BOTH
def test_state_comes_back(make: Callable[[int], nn.Module]) -> None:
    """A state loaded into a fresh module of the same shape gives the same levels: the first beta is part of it."""
    learned = make(7)
    fresh = LearnedBetas(Tabulated.from_schedule(Cosine(), 50)) if make is betas else LearnedLogSNR(hidden=8, seed=9)
    fresh.load_state_dict(learned.state_dict())
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    assert torch.equal(fresh.at(t).alpha, learned.at(t).alpha)  # type: ignore[operator]


@BOTH
def test_no_gradient_is_kept_where_none_is_wanted(make: Callable[[int], Schedule]) -> None:
    """Under no_grad, what is computed from a learned level hangs on no graph."""
    schedule = make(0)
    with torch.no_grad():
        process = GaussianProcess(schedule=schedule)
        t, s = (schedule.at(scalar(value)) for value in (0.5, 0.3))
        x = torch.ones(1, 2)
        assert not process.marginal(x, t).mean.requires_grad
        assert not process.reverse(x, t, s, Estimate(x0=x)).mean.requires_grad


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LearnedBetas(Tabulated.from_betas(reciprocal_betas(10))), "last beta is 1"),
        (lambda: LearnedLogSNR(high=1.0, low=1.0), "low < high"),
        (lambda: LearnedLogSNR(high=math.inf), "low < high"),
        (lambda: LearnedLogSNR(low=math.nan), "low < high"),
        (lambda: LearnedLogSNR(hidden=0), "at least 1 sigmoid"),
    ],
)
def test_refuses_what_cannot_be_learned(make: Callable[[], object], words: str) -> None:
    """ValueError with what was expected."""
    with pytest.raises(ValueError, match=words):
        make()


@BOTH
@pytest.mark.parametrize("t", [-0.1, 1.1, math.nan])
def test_refuses_times_outside(make: Callable[[int], Schedule], t: float) -> None:
    """ValueError for t outside [0, 1]."""
    with pytest.raises(ValueError, match="times"):
        make(0).at(scalar(t))
