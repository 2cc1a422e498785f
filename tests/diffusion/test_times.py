"""Densities of training times: what is drawn has the density that is said, on every schedule, key by key."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from unstir.diffusion.noise import BlockNoise, KeyedNoise
from unstir.diffusion.schedule import (
    Cosine,
    LinearBeta,
    LogLinear,
    RectifiedFlow,
    Schedule,
    Tabulated,
    VarianceExploding,
    linear_betas,
)
from unstir.diffusion.times import (
    EndTime,
    LogitNormalTimes,
    LogNormalTimes,
    LogSNRTimes,
    LossAwareTimes,
    Times,
    UniformTimes,
)
from unstir.verify.oracles import GivenNoise, kolmogorov


def keyed(count: int) -> KeyedNoise:
    return KeyedNoise.from_seeds(range(count))


def test_uniform_times_are_uniform_up_to_both_ends() -> None:
    """Chi-square over 50 bins, Kolmogorov, in (0, 1], and the end bins filled (C43)."""
    count = 20_000
    t = UniformTimes().draw(Cosine(), count, keyed(count))
    assert (t.dtype, t.shape) == (torch.float64, (count,))
    assert t.min().item() > 0
    assert t.max().item() <= 1
    assert kolmogorov(t) < 1.95
    bins = torch.histc(t, bins=50, min=0, max=1)
    assert chi_square(bins, count / 50) < 85.4  # 99.9 % quantile for 49 degrees of freedom
    assert min(bins[0].item(), bins[-1].item()) > 0


@pytest.mark.parametrize("num_steps", [1, 2, 10])
def test_uniform_times_on_a_grid_hit_every_step(num_steps: int) -> None:
    """Each of 1/T, ..., 1 equally often (chi-square), exactly, and never 0 (C43)."""
    count = 5000
    t = UniformTimes(num_steps=num_steps).draw(Cosine(), count, keyed(count))
    values, counts = t.unique(return_counts=True)
    assert values.tolist() == [i / num_steps for i in range(1, num_steps + 1)]
    quantile = {1: 1e-9, 2: 10.8, 10: 27.9}[num_steps]
    assert chi_square(counts, count / num_steps) <= quantile


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1.0), (2**-53, 1 - 2**-53), (1 - 2**-53, 2**-53)])
def test_uniform_times_include_pure_noise_and_exclude_data(share: float, expected: float) -> None:
    """The least random number gives t = 1, the largest a t above 0; on a grid the last and the first step (C43)."""
    noise = GivenNoise(value=torch.tensor(share, dtype=torch.float64))
    assert UniformTimes().draw(Cosine(), 3, noise).tolist() == [expected] * 3
    on_grid = UniformTimes(num_steps=1000).draw(Cosine(), 3, noise).tolist()
    assert on_grid == [1.0 if expected > 0.5 else 0.001] * 3


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.8, 0.8), (1.0, 2.0)])
def test_logit_normal_times_have_normal_logits(mean: float, std: float) -> None:
    """(logit t - mean)/std is standard normal by Kolmogorov's test (Esser et al. 2024, Sec. 3.1)."""
    t = LogitNormalTimes(mean=mean, std=std).draw(Cosine(), 4000, keyed(4000))
    assert kolmogorov(torch.special.ndtr((torch.logit(t) - mean) / std)) < 1.95


@pytest.mark.parametrize("uniform", [0.3, 1.0])
def test_logit_normal_times_with_a_share_of_uniform_ones(uniform: float) -> None:
    """The law is uniform * t + (1 - uniform) * Phi((logit t - mean)/std), by Kolmogorov's test; also on the
    independence of parts.
    """
    mean, std = -0.5, 0.7
    t = LogitNormalTimes(mean=mean, std=std, uniform=uniform).draw(Cosine(), 4000, keyed(4000))
    law = uniform * t + (1 - uniform) * torch.special.ndtr((torch.logit(t) - mean) / std)
    assert kolmogorov(law) < 1.95


@pytest.mark.parametrize("times", [UniformTimes(), UniformTimes(num_steps=7), LogitNormalTimes(uniform=0.5)])
def test_times_depend_on_their_key_alone(times: Times) -> None:
    """The time of a sample is the same in any batch."""
    assert torch.equal(times.draw(Cosine(), 5, keyed(5))[1:4], times.draw(Cosine(), 3, keyed(5).rows(slice(1, 4))))


@pytest.mark.parametrize(
    "make",
    [
        lambda: LogitNormalTimes(std=0.0),
        lambda: LogitNormalTimes(std=math.nan),
        lambda: LogitNormalTimes(uniform=-0.1),
        lambda: LogitNormalTimes(uniform=1.1),
    ],
)
def test_refuses_what_is_no_density(make: Callable[[], object]) -> None:
    """ValueError unless std > 0 and 0 <= uniform <= 1."""
    with pytest.raises(ValueError, match="logit-normal"):
        make()


@pytest.mark.parametrize("num_steps", [0, -3])
def test_refuses_a_grid_without_steps(num_steps: int) -> None:
    """A grid of times needs at least one step: 0 would make every time NaN."""
    with pytest.raises(ValueError, match=r".+"):
        UniformTimes(num_steps=num_steps).draw(Cosine(), 2, keyed(2))


def chi_square(counts: Tensor, expected: float) -> float:
    return ((counts - expected) ** 2 / expected).sum().item()


TIMES: dict[str, Times] = {
    "uniform": UniformTimes(),
    "logit-normal": LogitNormalTimes(mean=0.4, std=0.8),
    "mixed": LogitNormalTimes(mean=-0.5, std=0.7, uniform=0.3),
    "edm": LogNormalTimes(),
    "cut off": LogNormalTimes(mean=2.5, std=1.5),
    "log-snr": LogSNRTimes(),
    "between": LogSNRTimes(low=-3.0, high=5.0),
}
PATHS: dict[str, Schedule] = {
    "linear": LinearBeta(),
    "cosine": Cosine(),
    "flow": RectifiedFlow(shift=3.0),
    "table": Tabulated.from_betas(linear_betas(1000)),
    "log-linear": LogLinear(high=6.0, low=-7.0),
    "exploding": VarianceExploding(sigma_max=20.0),
}
EVERY_PATH = pytest.mark.parametrize("schedule", PATHS.values(), ids=PATHS.keys())


EVERY_TIMES = pytest.mark.parametrize("times", TIMES.values(), ids=TIMES.keys())


@EVERY_PATH
@EVERY_TIMES
def test_times_have_the_density_that_they_say(schedule: Schedule, times: Times) -> None:
    """The density integrates to 1 and is that of the draws (Kolmogorov), on every schedule, also where it ends within
    the density; no draw is at the data.
    """
    u = torch.linspace(-24, 24, 96_001, dtype=torch.float64)
    t = torch.sigmoid(u)
    mass = torch.cumulative_trapezoid(times.density(schedule, t) * t * (1 - t), u)
    assert mass[-1].item() == pytest.approx(1, abs=2e-3)
    count = 3000
    draws = times.draw(schedule, count, BlockNoise(key=(11,), count=count))
    assert draws.dtype == torch.float64
    assert 0 < draws.min().item() <= draws.max().item() <= 1
    assert schedule.at(draws).sigma.min().item() > 0
    place = ((torch.logit(draws.clamp(max=1 - 1e-13)) + 24) / 48 * 96_000).floor().long().clamp(0, 95_999)
    assert kolmogorov(mass[place]) < 1.95


def test_densities_are_finite_at_pure_noise() -> None:
    """At t = 1, which uniform times include, no density is NaN; a mixture with uniform times keeps its share."""
    end = torch.ones(1, dtype=torch.float64)
    for times in TIMES.values():
        assert times.density(LogLinear(), end).isfinite().all()
    assert TIMES["mixed"].density(Cosine(), end).item() == pytest.approx(0.3)


@EVERY_PATH
def test_edms_times_are_normal_in_log_sigma(schedule: Schedule) -> None:
    """log(sigma/alpha) of the drawn levels is N(-1.2, 1.2^2), cut to what the schedule has (Karras et al. 2022, Table
    1).
    """
    count = 3000
    level = schedule.at(LogNormalTimes().draw(schedule, count, BlockNoise(key=(1,), count=count)))
    ends = schedule.at(torch.tensor([1e-12, 1.0], dtype=torch.float64))
    low, high = torch.special.ndtr((-ends.log_snr / 2 + 1.2) / 1.2)
    share = torch.special.ndtr((-level.log_snr / 2 + 1.2) / 1.2)
    assert kolmogorov((share - low) / (high - low)) < 1.95


def filled(losses: Tensor, history: int = 3) -> LossAwareTimes:
    """Times that heard each step's loss ``history`` times, scattered around it with a known mean square."""
    times = LossAwareTimes(num_steps=losses.numel(), history=history, uniform=0.1)
    t = torch.arange(1, losses.numel() + 1, dtype=torch.float64) / losses.numel()
    for _ in range(history):
        times.learn(t, losses)
    return times


def test_loss_aware_times_are_uniform_until_every_step_was_heard() -> None:
    """1/T each until all T steps have a full history, whatever was heard (Nichol & Dhariwal 2021, Sec. 3.3)."""
    times = LossAwareTimes(num_steps=4, history=2)
    for t in (0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1.0):
        times.learn(torch.tensor([t], dtype=torch.float64), torch.tensor([3.0 + t]))
        assert times.probabilities.tolist() == [0.25] * 4
        assert times.density(Cosine(), torch.tensor([0.25, 1.0], dtype=torch.float64)).tolist() == [1, 1]
    times.learn(torch.tensor([1.0], dtype=torch.float64), torch.tensor([9.0]))
    assert times.probabilities.tolist() != [0.25] * 4


def test_loss_aware_times_draw_in_proportion_to_the_root_mean_square() -> None:
    """p_t is proportional to sqrt(E L_t^2) of the newest ``history`` losses, mixed with 0.1 % of uniform (Nichol &
    Dhariwal 2021, Eq. 18), and drawn so (chi-square).
    """
    times = LossAwareTimes(num_steps=3, history=2)
    for losses in ([100.0, 100.0, 100.0], [1.0, 4.0, 0.0], [7.0, 3.0, 0.5]):  # the first are forgotten
        times.learn(torch.tensor([1 / 3, 2 / 3, 1.0], dtype=torch.float64), torch.tensor(losses))
    root = [math.sqrt((1 + 49) / 2), math.sqrt((16 + 9) / 2), math.sqrt(0.25 / 2)]
    exact = [0.999 * r / sum(root) + 0.001 / 3 for r in root]
    assert times.probabilities.tolist() == pytest.approx(exact)
    assert times.density(Cosine(), torch.tensor([1 / 3, 2 / 3, 1.0], dtype=torch.float64)).tolist() == pytest.approx(
        [3 * p for p in exact]
    )
    count = 4000
    drawn_times = times.draw(Cosine(), count, BlockNoise(key=(0,), count=count))
    values, counts = drawn_times.unique(return_counts=True)
    assert values.tolist() == [1 / 3, 2 / 3, 1.0]
    assert (((counts - count * times.probabilities) ** 2) / (count * times.probabilities)).sum().item() < 13.8


def test_loss_aware_times_go_on_from_their_state() -> None:
    """state_dict and back gives the same probabilities, and later losses do not reach into the copy."""
    times = filled(torch.tensor([1.0, 5.0, 2.0, 0.1]))
    state = times.state_dict()
    before = times.probabilities.clone()
    times.learn(torch.tensor([0.25], dtype=torch.float64), torch.tensor([1000.0]))
    again = LossAwareTimes(num_steps=4, history=3, uniform=0.1)
    again.load_state_dict(state)
    assert torch.equal(again.probabilities, before)
    assert not torch.equal(times.probabilities, before)
    with pytest.raises(ValueError, match=r"\(4, 3\) losses, these times hold \(5, 3\)"):
        LossAwareTimes(num_steps=5, history=3).load_state_dict(state)


def test_a_schedule_without_the_levels_asked_for_is_refused() -> None:
    """Times at levels that the schedule does not have: ValueError, not the same time for all."""
    with pytest.raises(ValueError, match="no level with log"):
        LogNormalTimes(mean=40.0, std=0.5).draw(LogLinear(), 4, keyed(4))


@EVERY_PATH
def test_the_end_is_the_noisy_one(schedule: Schedule) -> None:
    """Every draw is t = 1 exactly, float64, on every schedule; on the straight path no signal at all is left there."""
    t = EndTime().draw(schedule, 5, keyed(5))
    assert (t.dtype, t.tolist()) == (torch.float64, [1.0] * 5)
    assert EndTime().draw(RectifiedFlow(shift=3.0), 0, keyed(0)).shape == (0,)
    level = RectifiedFlow(shift=3.0).at(t)
    assert (level.alpha.tolist(), level.sigma.tolist()) == ([0.0] * 5, [1.0] * 5)


def test_the_end_has_no_density() -> None:
    """A mass on one time cannot be divided out: ValueError that says what to take instead."""
    with pytest.raises(ValueError, match=r"no density.*take the simple objective"):
        EndTime().density(RectifiedFlow(), torch.ones(2, dtype=torch.float64))
