"""What holds for every sampler: order of convergence against exact flows, the loop, the ends, and independence of
samples.

Every entry of ``SAMPLERS`` is picked up by itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unstir.diffusion.denoiser import Denoiser
from unstir.diffusion.noise import BlockNoise, KeyedNoise
from unstir.diffusion.process import Estimate, GaussianProcess, Process
from unstir.diffusion.samplers import DDIM, SAMPLERS, DPMSolverMultistep, Sampler, Step, sample
from unstir.diffusion.samplers.base import Known, exponential_moments, polynomial_shares
from unstir.diffusion.schedule import (
    Cosine,
    Level,
    LinearBeta,
    LogLinear,
    RectifiedFlow,
    Schedule,
    Sigmoid,
    Tabulated,
    VarianceExploding,
    linear_betas,
)
from unstir.diffusion.spacing import SPACINGS, Spacing, karras, trailing
from unstir.typing import Noise
from unstir.verify.oracles import GaussianOracle, GivenNoise, MixtureOracle, observed_orders

GAUSSIAN = GaussianOracle(mean=torch.tensor([-0.5]), variance=torch.tensor([2.5]))
MIXTURE = MixtureOracle(
    means=torch.tensor([[-0.8], [0.9]]), variances=torch.tensor([0.3, 0.15]), weights=torch.tensor([0.4, 0.6])
)
POINTS = MixtureOracle.finite(torch.tensor([[-1.0], [0.6]]))
LAWS: dict[str, GaussianOracle | MixtureOracle] = {"gaussian": GAUSSIAN, "mixture": MIXTURE, "points": POINTS}
EACH: dict[str, Sampler[Any]] = {name: kind() for name, kind in SAMPLERS.items()}
DETERMINISTIC = {name: sampler for name, sampler in EACH.items() if sampler.order > 0}
STARTS = torch.tensor([[-1.6], [-0.9], [0.8], [1.5]], dtype=torch.float64)

FEW: dict[str, Schedule] = {
    "flow": RectifiedFlow(),  # in closed form, ends at alpha = 0
    "table": Tabulated.from_betas(linear_betas(1000)),
    "exploding": VarianceExploding(),  # alpha = 1 throughout
}
OTHERS: dict[str, Schedule] = {
    "linear": LinearBeta(),
    "cosine": Cosine(),
    "shifted flow": RectifiedFlow(shift=3.0),
    "sigmoid": Sigmoid(),
    "log-linear": LogLinear(),
}
ZERO_SNR = {"zero-snr-table": Tabulated(table=(0.9, 0.5, 0.1, 0.0))}


def each_of(few: Mapping[str, Schedule]) -> list[Any]:
    """Those few always, the others with `pytest -m slow`."""
    slow = [pytest.param(kind, id=name, marks=pytest.mark.slow) for name, kind in OTHERS.items()]
    return [*[pytest.param(kind, id=name) for name, kind in few.items()], *slow]


@pytest.fixture(params=each_of(FEW), scope="session")
def schedule(request: pytest.FixtureRequest) -> Schedule:
    """Schedules that differ in kind."""
    return request.param


@pytest.fixture(params=each_of({**FEW, **ZERO_SNR}), scope="session")
def any_process(request: pytest.FixtureRequest) -> GaussianProcess:
    """The same, and a table that ends without any signal."""
    return GaussianProcess(schedule=request.param)


each_sampler = pytest.mark.parametrize("sampler", EACH.values(), ids=EACH.keys())


def keyed(count: int) -> KeyedNoise:
    return KeyedNoise.from_seeds(range(count))


def walk(
    sampler: Sampler[Any],
    denoise: Denoiser,
    process: Process,
    x: Tensor,
    times: Sequence[float],
    noise: Noise | None = None,
) -> Tensor:
    *_, last = sample(sampler, denoise, process, x, times, noise or keyed(x.shape[0]))
    return last.x


@cache
def grid(schedule: Schedule, num_steps: int, pattern: tuple[float, ...], start: float, end: float) -> tuple[float, ...]:
    """Times from ``start`` to ``end`` whose steps in log-SNR follow a repeated pattern."""
    ends = schedule.at(torch.tensor([start, end], dtype=torch.float64)).log_snr
    lengths = torch.tensor(pattern, dtype=torch.float64).repeat(num_steps // len(pattern))
    shares = torch.cumsum(lengths, 0)[:-1] / lengths.sum()
    inner = schedule.time_of(ends[0] + (ends[1] - ends[0]) * shares)
    return (start, *inner.tolist(), end)


@cache
def times_of(spacing: Spacing, schedule: Schedule, num_steps: int) -> tuple[float, ...]:
    return spacing(schedule, num_steps)


def errors(
    sampler: Sampler[Any],
    oracle: GaussianOracle | MixtureOracle,
    schedule: Schedule,
    pattern: tuple[float, ...],
    counts: Sequence[int],
    span: tuple[float, float] = (0.9, 0.1),
) -> list[float]:
    """Largest distance from the exact flow, for each number of steps."""
    process = GaussianProcess(schedule=schedule)
    ends = schedule.at(torch.tensor(span, dtype=torch.float64))
    x = ends.alpha[0] * STARTS + ends.sigma[0] * STARTS.flip(0) * 0.3
    exact = oracle.flow(x, ends[0], ends[1])
    return [
        (walk(sampler, oracle, process, x, grid(schedule, count, pattern, *span)) - exact).abs().max().item()
        for count in counts
    ]


@pytest.mark.parametrize("pattern", [(1.0,), (1.0, 3.0)], ids=["even", "uneven"])
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_order_of_convergence(name: str, law: str, schedule: Schedule, pattern: tuple[float, ...]) -> None:
    """The error against the exact probability flow falls with the promised order, on even steps and on 3:1 ones
    (C14).
    """
    sampler = DETERMINISTIC[name]
    slope = 0.0
    for counts in ((64, 128), (256, 512)):  # steps so short are needed for the third order of some
        measured = errors(sampler, LAWS[law], schedule, pattern, counts)
        assert measured[-1] < 0.05
        slope = observed_orders(measured)[-1]
        if slope >= sampler.order - 0.25:
            return
    pytest.fail(f"order {slope}")


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_no_order_is_understated(name: str) -> None:
    """On even or on 3:1 steps the error falls no faster than is promised: what a multistep sampler loses in its first
    steps, or by weights of equal ones, is told. (UniPC's corrector gains an order that few steps do not show:
    test_unipc.py.)
    """
    sampler, gained = DETERMINISTIC[name], {"unipc": 1}.get(name, 0)
    measured = [errors(sampler, GAUSSIAN, Cosine(), pattern, (64, 128)) for pattern in ((1.0,), (1.0, 3.0))]
    assert min(observed_orders(each)[0] for each in measured) <= sampler.order + gained + 0.5


@dataclass(frozen=True, kw_only=True)
class Broken(DPMSolverMultistep):
    """DPM-Solver++(2M) with one of the two slips that other tools made or were told to make."""

    slip: str

    def step(
        self, denoise: Denoiser, process: Any, x_t: Tensor, t: Level, s: Level, memory: tuple[Known, ...], noise: Any
    ) -> tuple[Tensor, tuple[Known, ...]]:
        if memory:
            last, x0 = memory[0], denoise(x_t, t).x0
            h, h_last = (s.log_snr - t.log_snr) / 2, (t.log_snr - last.level.log_snr) / 2
            weight = {"h is h_last": h_last / h_last, "r inverted": h_last / h}[self.slip] / (h / h_last)
            # makes the sampler's own weight act as the broken one
            memory = (replace(last, value=x0 + weight * (last.value - x0)),)
        return super().step(denoise, process, x_t, t, s, memory, noise)


@pytest.mark.parametrize(("slip", "order"), [("h is h_last", 1), ("r inverted", 2)])
def test_what_order_can_and_cannot_see(slip: str, order: int) -> None:
    """Replacing h by h_last drops 2M to first order on uneven steps (C15), so the test above would notice.

    An inverted ratio r keeps second order, for its errors telescope (C16): the exact vectors of test_dpm_solver.py
    see that.
    """
    measured = errors(Broken(slip=slip), GAUSSIAN, Cosine(), (1.0, 3.0), (64, 128))
    assert observed_orders(measured)[0] == pytest.approx(order, abs=0.15)


@each_sampler
@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_steps_are_numbered_from_noise_to_data(sampler: Sampler[Any], schedule: Schedule, num_steps: int) -> None:
    """Step 0 is the start without a belief; then N steps with the last call's belief, one for each time of the grid
    (C2, C5).
    """
    process, x = GaussianProcess(schedule=schedule), torch.randn(2, 1, generator=torch.Generator().manual_seed(0))
    times = trailing(schedule, num_steps)
    asked: list[tuple[float, Tensor, Tensor]] = []

    def denoise(x_t: Tensor, level: Level, previous: Estimate | None = None) -> Estimate:
        belief = Estimate(x0=GAUSSIAN(x_t, level).x0)
        asked.append((level.t.item(), x_t, belief.x0))
        return belief

    start, *steps = sample(sampler, denoise, process, x, times, keyed(2))
    assert (start.index, start.t, start.x, start.belief) == (0, times[0], x, None)
    assert [step.index for step in steps] == list(range(1, num_steps + 1))
    assert tuple(step.t for step in steps) == times[1:]

    asked.clear()
    walking, before = sample(sampler, denoise, process, x, times, keyed(2)), x
    next(walking)
    for step, t in zip(walking, times, strict=False):
        assert step.belief is not None
        assert torch.equal(step.belief.x0, asked[-1][2])
        first, x_t, _ = asked[0]
        assert first == t, "a step asks first at the level where it starts (C1, C4)"
        assert torch.equal(x_t, before)
        assert all(step.t <= level <= t for level, _, _ in asked), "and then within itself"
        before = step.x
        asked.clear()


@each_sampler
@pytest.mark.parametrize("num_steps", [1, 2, 9])
def test_the_last_step_is_the_belief_itself(sampler: Sampler[Any], schedule: Schedule, num_steps: int) -> None:
    """A step to sigma = 0 returns D bit for bit, without noise (C17, C22)."""
    x = torch.randn(3, 1, generator=torch.Generator().manual_seed(0))
    steps: list[Step] = list(
        sample(sampler, MIXTURE, GaussianProcess(schedule=schedule), x, trailing(schedule, num_steps), keyed(3))
    )
    belief = steps[-1].belief
    assert belief is not None
    assert torch.equal(steps[-1].x, belief.x0)


FEW_COUNTS = (1, 2, 3, 5, 8, 13, 50)
GRIDS = [pytest.param(spacing, FEW_COUNTS, id=name) for name, spacing in SPACINGS.items()]
EVERY = pytest.param(trailing, range(1, 51), id="every", marks=pytest.mark.slow)


@each_sampler
@pytest.mark.parametrize(("spacing", "counts"), [*GRIDS, EVERY])
def test_every_number_of_steps_is_finite(
    sampler: Sampler[Any], any_process: GaussianProcess, spacing: Spacing, counts: Sequence[int]
) -> None:
    """From t = 1, where alpha may be 0, in float32: finite, and within the reach of the data (C18, C8).

    (With the statement C18 of ``unstir verify`` that is said of every N in 1..50, here by `pytest -m slow`.)
    """
    x = any_process.prior(torch.zeros(2, 1)).sample(keyed(2))
    for num_steps in counts:
        end = walk(sampler, GAUSSIAN, any_process, x, times_of(spacing, any_process.schedule, num_steps))
        assert end.dtype == torch.float32
        assert bool((end.abs() < 10).all()), num_steps  # polynomials of few steps overshoot


@each_sampler
@pytest.mark.parametrize("start", [1.0, 0.7, 0.05])
def test_a_perfect_belief_brings_back_the_source(sampler: Sampler[Any], schedule: Schedule, start: float) -> None:
    """Adding noise and solving from there with D exact returns the source, for every level and every N (C12)."""
    source = torch.tensor([[0.3, -0.8]], dtype=torch.float64)
    oracle, process = MixtureOracle.finite(source), GaussianProcess(schedule=schedule)
    noisy = process.marginal(source, schedule.at(torch.tensor(start, dtype=torch.float64))).sample(keyed(1))
    for num_steps in (1, 2, 3, 10):
        times = [start * (num_steps - i) / num_steps for i in range(num_steps + 1)]
        torch.testing.assert_close(walk(sampler, oracle, process, noisy, times), source, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_perfect_belief_is_followed_exactly(name: str, schedule: Schedule) -> None:
    """Where D does not change along the way, x_s = alpha_s x0 + sigma_s eps at every step, whatever its length."""
    source, z = torch.tensor([[0.3]], dtype=torch.float64), torch.tensor([[-1.2]], dtype=torch.float64)
    oracle, process = MixtureOracle.finite(source), GaussianProcess(schedule=schedule)
    times = [0.9, 0.85, 0.4, 0.39, 0.1]
    levels = schedule.at(torch.tensor(times, dtype=torch.float64))
    start = levels.alpha[0] * source + levels.sigma[0] * z
    for i, step in enumerate(sample(DETERMINISTIC[name], oracle, process, start, times, keyed(1))):
        torch.testing.assert_close(step.x, levels.alpha[i] * source + levels.sigma[i] * z, rtol=1e-12, atol=1e-13)


@each_sampler
def test_a_sampler_keeps_nothing(sampler: Sampler[Any], schedule: Schedule) -> None:
    """A used sampler gives what a fresh one gives, after other grids and batch sizes and between interleaved runs
    (C20).
    """
    process, fresh = GaussianProcess(schedule=schedule), replace(sampler)  # type: ignore[type-var]
    x, times = torch.randn(2, 1, generator=torch.Generator().manual_seed(0)), trailing(schedule, 6)
    expected = walk(fresh, MIXTURE, process, x, times)
    walk(sampler, MIXTURE, process, x.repeat(3, 1), trailing(schedule, 4), keyed(6))
    assert torch.equal(walk(sampler, MIXTURE, process, x, times), expected)

    runs = [sample(sampler, MIXTURE, process, start, times, keyed(2)) for start in (x, -x)]
    ends = [x, x]
    for _ in range(7):
        ends = [next(run).x for run in runs]
    assert torch.equal(ends[0], expected)


@each_sampler
def test_threads_may_share_a_sampler(sampler: Sampler[Any]) -> None:
    """Eight threads sharing everything give the same as one after another (C21)."""
    process, starts = (
        GaussianProcess(schedule=Cosine()),
        torch.randn(8, 2, 1, generator=torch.Generator().manual_seed(0)),
    )
    times = trailing(process.schedule, 8)

    def run(x: Tensor) -> Tensor:
        return walk(sampler, MIXTURE, process, x, times)

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(run, starts))
    for x, end in zip(starts, together, strict=True):
        assert torch.equal(end, run(x))


@each_sampler
def test_a_picture_depends_on_its_key_alone(sampler: Sampler[Any], schedule: Schedule) -> None:
    """Alone or in a batch of three, the same key gives the same sample; another key another one (C20, C22)."""
    process, noise = GaussianProcess(schedule=schedule), KeyedNoise.from_seeds([5, 6, 7])
    like, times = torch.zeros(3, 2, 4, dtype=torch.float64), trailing(schedule, 7)
    oracle = GaussianOracle(mean=torch.tensor([[0.5], [-0.2]]), variance=torch.tensor([[0.25], [0.6]]))
    batch = walk(sampler, oracle, process, process.prior(like).sample(noise), times, noise)
    for i in range(3):
        rows = slice(i, i + 1)
        alone = walk(
            sampler, oracle, process, process.prior(like[rows]).sample(noise.rows(rows)), times, noise.rows(rows)
        )
        assert torch.equal(alone, batch[rows])
    assert not torch.equal(batch[0], batch[1])


@each_sampler
def test_samples_of_a_memorising_denoiser_are_data(sampler: Sampler[Any], schedule: Schedule) -> None:
    """With the exact denoiser of four points, samples are those points, each about as often as another (4 standard
    errors).
    """
    points = torch.tensor(
        [[1.0, 0.3], [-0.3, 1.0], [-1.0, -0.3], [0.3, -1.0]]
    )  # turned into each other by quarter turns
    oracle, process = MixtureOracle.finite(points), GaussianProcess(schedule=schedule)
    noise = BlockNoise(key=(0,), count=400)
    x = process.prior(torch.zeros(400, 2)).sample(noise)
    spacing = karras if isinstance(schedule, VarianceExploding) else trailing  # its last step in t would be all of it
    end = walk(sampler, oracle, process, x, times_of(spacing, schedule, 40), noise)
    distance, nearest = torch.cdist(end, points).min(1)
    assert distance.max().item() < 0.02
    shares = torch.bincount(nearest, minlength=4) / 400
    assert shares.tolist() == pytest.approx([0.25] * 4, abs=4 * math.sqrt(0.25 * 0.75 / 400))


@each_sampler
def test_sampling_builds_no_graph_and_leaves_gradients_on(sampler: Sampler[Any]) -> None:
    """Steps run without gradients, and between two steps the caller's gradients are as they were."""
    weight = torch.tensor(0.5, requires_grad=True)

    def denoise(x_t: Tensor, level: Level, previous: Estimate | None = None) -> Estimate:
        return Estimate(x0=weight * x_t)

    process = GaussianProcess(schedule=Cosine())
    for step in sample(sampler, denoise, process, torch.ones(2, 1), trailing(process.schedule, 3), keyed(2)):
        assert torch.is_grad_enabled()
        assert not step.x.requires_grad


def test_every_step_has_its_own_randomness() -> None:
    """Step i, from 0, draws the numbers of ``noise.at(i)``, and walks the path of the run (documented)."""

    @dataclass(frozen=True)
    class Watching(DDIM):
        seen: list[Noise]

        def step(self, *arguments: Any, **named: Any) -> tuple[Tensor, None]:
            self.seen.append(arguments[-1])
            return super().step(*arguments, **named)

    sampler, process, like = Watching(seen=[]), GaussianProcess(schedule=Cosine()), torch.zeros(2, 3)
    walk(sampler, GAUSSIAN, process, torch.ones(2, 1), trailing(process.schedule, 4), keyed(2))
    assert len(sampler.seen) == 3, "the last step is the belief, and needs none"
    for i, noise in enumerate(sampler.seen):
        assert torch.equal(noise.normal(like), keyed(2).at(i).normal(like))
        assert torch.equal(noise.brownian(0.1, 0.4, like), keyed(2).brownian(0.1, 0.4, like))


@each_sampler
def test_a_walk_may_start_and_stop_anywhere(sampler: Sampler[Any], schedule: Schedule) -> None:
    """A grid from t = 0.6 to t = 0.2 leaves x with the spread of t = 0.2 (C30): noise of the level is kept, not
    removed.
    """
    process, ends = GaussianProcess(schedule=schedule), schedule.at(torch.tensor([0.6, 0.2], dtype=torch.float64))
    x0 = torch.full((1, 4000), 0.5, dtype=torch.float64)
    oracle = MixtureOracle.finite(x0[0][None])
    x = process.marginal(x0, ends[0]).sample(keyed(1).at(99))
    end = walk(sampler, oracle, process, x, [0.6, 0.45, 0.3, 0.2])
    assert (end - ends.alpha[1] * x0).std().item() == pytest.approx(ends.sigma[1].item(), rel=4 / math.sqrt(2 * 4000))


@pytest.mark.parametrize(
    "times",
    [(), (1.0,), (1.0, 1.0), (0.5, 0.6), (1.0, 0.5, 0.5, 0.0), (1.1, 0.0), (1.0, -0.1), (1.0, math.nan)],
    ids=str,
)
def test_refuses_a_grid_that_does_not_fall(times: tuple[float, ...]) -> None:
    """ValueError for fewer than two times, times that do not fall strictly, or leave [0, 1]."""
    process = GaussianProcess(schedule=RectifiedFlow())
    with pytest.raises(ValueError, match="times"):
        list(sample(DDIM(), GAUSSIAN, process, torch.ones(1, 1), times, keyed(1)))


def test_orders_of_what_draws_is_zero() -> None:
    """0 for a sampler that draws, so that the order test leaves it out; and nothing deterministic says 0."""
    noisy, quiet = (GivenNoise(value=torch.tensor(value, dtype=torch.float64)) for value in (1.0, 0.0))
    process = GaussianProcess(schedule=Cosine())
    t, s = (process.schedule.at(torch.tensor(value, dtype=torch.float64)) for value in (0.6, 0.3))
    x = torch.ones(1, 1, dtype=torch.float64)
    for sampler in (*EACH.values(), DDIM(eta=0.5)):
        moved = [sampler.step(GAUSSIAN, process, x, t, s, sampler.start(), noise)[0] for noise in (noisy, quiet)]
        assert (sampler.order == 0) is (not torch.equal(*moved))


@given(
    z=st.one_of(st.floats(-30, 20), st.floats(-1e-3, 1e-3)),
    points=st.lists(st.integers(-12, 4).filter(bool), min_size=1, max_size=3, unique=True),
)
def test_shares_are_means_of_the_polynomial(z: float, points: list[int]) -> None:
    """With the moments of exp(z (1 - u)), shares give the mean over [0, 1] of the polynomial through any values, and
    solve the papers' equations R a = b; by 60-point quadrature, for long and for tiny steps.
    """
    nodes, weights = (torch.from_numpy(part) for part in numpy.polynomial.legendre.leggauss(60))
    u, density = (nodes + 1) / 2, weights * torch.exp(z * (1 - nodes) / 2)
    density = density / density.sum()
    moments = exponential_moments(z, len(points))
    assert moments == pytest.approx([(density * u**k).sum().item() for k in range(1, len(points) + 1)], rel=1e-9)
    places = [point / 4 for point in points]
    shares = torch.tensor(polynomial_shares(places, moments), dtype=torch.float64)
    powers = torch.tensor([[place**k for place in places] for k in range(1, len(points) + 1)], dtype=torch.float64)
    torch.testing.assert_close(powers @ shares, torch.tensor(moments, dtype=torch.float64), rtol=1e-8, atol=1e-10)
