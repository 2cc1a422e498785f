"""Tuned steps: any explicit linear method, told by its weights."""

from __future__ import annotations

import pytest
import torch

from unstir.diffusion.noise import BlockNoise
from unstir.diffusion.process import Estimate, GaussianProcess
from unstir.diffusion.samplers import DPMSolverMultistep, Tuned, sample
from unstir.diffusion.schedule import Level, LogLinear, RectifiedFlow, Schedule
from unstir.typing import X
from unstir.verify.oracles import MixtureOracle

TIMES = (1.0, 0.7, 0.35, 0.1, 0.0)
ORACLE = MixtureOracle(
    means=torch.tensor([[-1.0, 0.3], [0.8, -0.2]], dtype=torch.float64),
    variances=torch.tensor([0.02, 0.1], dtype=torch.float64),
    weights=torch.tensor([0.4, 0.6], dtype=torch.float64),
)


def starts(count: int = 5) -> X:
    like = torch.zeros(count, 2, dtype=torch.float64)
    return BlockNoise(key=(1,), count=count).normal(like)


def end(sampler: object, schedule: Schedule, x: X, times: tuple[float, ...] = TIMES, denoise: object = ORACLE) -> X:
    noise = BlockNoise(key=(0,), count=len(x))
    *_, last = sample(sampler, denoise, GaussianProcess(schedule=schedule), x, times, noise)  # type: ignore[arg-type]
    return last.x


def rows_of_2m(schedule: Schedule, times: tuple[float, ...]) -> tuple[tuple[float, ...], ...]:
    """DPM-Solver++(2M) as a table: its step is linear in the beliefs, so unit beliefs tell its weights."""
    levels = schedule.at(torch.tensor(times, dtype=torch.float64))
    size = (levels.alpha / levels.sigma)[:-1]
    half = size.log()
    rows, row = [], torch.zeros(len(size), dtype=torch.float64)
    for i in range(len(size) - 1):
        change = (size[i + 1] - size[i]).item()
        row = row.clone()
        row[i] += change
        if i and torch.isfinite(half[i - 1]):
            share = change * ((half[i + 1] - half[i]) / (half[i] - half[i - 1]) / 2).item()
            row[i] += share
            row[i - 1] -= share
        rows.append(tuple(row[: i + 1].tolist()))
    return tuple(rows)


@pytest.mark.parametrize("schedule", [LogLinear(), RectifiedFlow()], ids=["signal at t = 1", "none"])
def test_the_weights_of_a_solver_walk_as_it_does(schedule: Schedule) -> None:
    tuned = Tuned(times=TIMES, weights=rows_of_2m(schedule, TIMES))
    assert torch.allclose(end(tuned, schedule, starts()), end(DPMSolverMultistep(), schedule, starts()), atol=1e-12)


def test_an_unchanging_belief_is_reached_exactly_by_any_weights_of_the_right_sums() -> None:
    schedule = LogLinear()
    size = (lambda level: level.alpha / level.sigma)(schedule.at(torch.tensor(TIMES[:-1], dtype=torch.float64)))
    generator = torch.Generator().manual_seed(0)
    rows = []
    for i in range(1, len(size)):
        free = torch.randn(i, generator=generator, dtype=torch.float64)
        rows.append(tuple((free - free.mean() + (size[i] - size[0]) / i).tolist()))
    truth = torch.tensor([[0.3, -0.4]], dtype=torch.float64)
    seen: list[X] = []

    def denoise(x_t: X, level: Level, previous: Estimate | None = None) -> Estimate:
        seen.append((x_t - level.alpha * truth) / level.sigma)
        return Estimate(x0=truth.expand_as(x_t))

    end(Tuned(times=TIMES, weights=tuple(rows)), schedule, starts(), denoise=denoise)
    for noise in seen[1:]:  # the noise of the sample stays what it was: x_t = alpha x0 + sigma noise all the way
        assert torch.allclose(noise, seen[0], atol=1e-12)


def test_a_sample_does_not_depend_on_its_company() -> None:
    tuned = Tuned(times=TIMES, weights=rows_of_2m(LogLinear(), TIMES))
    whole, alone = end(tuned, LogLinear(), starts()), end(tuned, LogLinear(), starts()[2:3])
    assert torch.allclose(whole[2:3], alone, atol=1e-14)


def test_other_times_are_refused() -> None:
    tuned = Tuned(times=TIMES, weights=rows_of_2m(LogLinear(), TIMES))
    for times in ((1.0, 0.6, 0.35, 0.1, 0.0), (0.7, 0.35, 0.1, 0.0), (1.0, 0.7, 0.35, 0.1, 0.05, 0.0)):
        with pytest.raises(ValueError, match="their own times"):
            end(tuned, LogLinear(), starts(), times)


@pytest.mark.parametrize(
    ("times", "weights", "told"),
    [
        ((1.0,), (), "fall strictly"),
        ((1.0, 0.5), ((0.1,),), "fall strictly"),
        ((1.0, 0.5, 0.5, 0.0), ((0.1,), (0.1, 0.2)), "fall strictly"),
        ((1.2, 0.5, 0.0), ((0.1,),), "at most 1"),
        ((1.0, 0.5, 0.0), (), "rows of"),
        ((1.0, 0.5, 0.2, 0.0), ((0.1,), (0.1,)), "rows of"),
    ],
)
def test_what_cannot_be_walked_is_refused(
    times: tuple[float, ...], weights: tuple[tuple[float, ...], ...], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        Tuned(times=times, weights=weights)


def test_a_single_step_is_the_belief() -> None:
    x = starts()
    schedule = RectifiedFlow()
    level = schedule.at(torch.tensor(1.0, dtype=torch.float64))
    assert torch.equal(end(Tuned(times=(1.0, 0.0), weights=()), schedule, x, (1.0, 0.0)), ORACLE(x, level).x0)
