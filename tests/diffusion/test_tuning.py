"""Tuning: few steps that end where many do."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from unstir.diffusion import tuning
from unstir.diffusion.noise import BlockNoise
from unstir.diffusion.process import Estimate, GaussianProcess
from unstir.diffusion.samplers import DPMSolverMultistep, Tuned
from unstir.diffusion.schedule import Level, RectifiedFlow, Schedule, Tabulated, VarianceExploding, linear_betas
from unstir.diffusion.spacing import uniform_log_snr
from unstir.diffusion.tuning import exact, misses, path, tune
from unstir.typing import X
from unstir.verify.oracles import GaussianOracle, MixtureOracle

TABLE = Tabulated.from_betas(linear_betas(1000))


def mixture(dimension: int = 4) -> MixtureOracle:
    generator = torch.Generator().manual_seed(dimension)
    return MixtureOracle(
        means=torch.randn(5, dimension, generator=generator, dtype=torch.float64) / 2,
        variances=torch.tensor([0.001, 0.004, 0.01, 0.02, 0.05], dtype=torch.float64),
        weights=torch.tensor([0.1, 0.3, 0.2, 0.2, 0.2], dtype=torch.float64),
    )


def starts(process: GaussianProcess, key: int, count: int = 64, dimension: int = 4) -> X:
    return process.prior(torch.zeros(count, dimension, dtype=torch.float64)).sample(BlockNoise(key=(key,), count=count))


@pytest.mark.parametrize("schedule", [TABLE, RectifiedFlow(), VarianceExploding()], ids=["table", "flow", "exploding"])
def test_the_exact_solution_is_that_of_the_closed_form(schedule: Schedule) -> None:
    law = GaussianOracle(mean=torch.tensor(0.3, dtype=torch.float64), variance=torch.tensor(0.04, dtype=torch.float64))
    process = GaussianProcess(schedule=schedule)
    x = starts(process, 1)
    ends = schedule.at(torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert (exact(law, process, x) - law.flow(x, ends[0], ends[1])).abs().max() < 2e-5


@pytest.mark.parametrize("schedule", [TABLE, RectifiedFlow(), VarianceExploding()], ids=["table", "flow", "exploding"])
def test_other_starts_end_far_closer_than_by_the_solver_that_it_began_with(schedule: Schedule) -> None:
    law, process = mixture(), GaussianProcess(schedule=schedule)
    tuned = tune(law, process, starts(process, 1), 5, iterations=120)
    x = starts(process, 2)
    target = exact(law, process, x)
    ours = misses(tuned, tuned.times, law, process, x, target).median()
    plain = misses(DPMSolverMultistep(), uniform_log_snr(schedule, 5), law, process, x, target).median()
    assert ours < plain / 3


def test_the_weights_keep_an_unchanging_belief_exact() -> None:
    process = GaussianProcess(schedule=TABLE)
    tuned = tune(mixture(), process, starts(process, 1), 4, iterations=20)
    levels = TABLE.at(torch.tensor(tuned.times[:-1], dtype=torch.float64))
    size = levels.alpha / levels.sigma
    sums = torch.tensor([sum(row) for row in tuned.weights], dtype=torch.float64)
    assert torch.allclose(sums, size[1:] - size[0], rtol=1e-9)


def test_nobody_is_asked_beyond_the_cleanest_level_that_is_allowed() -> None:
    process = GaussianProcess(schedule=RectifiedFlow())
    seen: list[float] = []
    law = mixture()

    def denoise(x_t: X, level: Level, previous: Estimate | None = None) -> Estimate:
        seen.append(level.log_snr.max().item())
        return law(x_t, level)

    tuned = tune(denoise, process, starts(process, 1, 16), 4, high=6.0, iterations=30)
    assert max(seen) <= 6 + 1e-9
    assert all(s < t for t, s in itertools.pairwise(tuned.times))


def test_one_step_needs_no_fit_and_progress_ends_where_it_should() -> None:
    process = GaussianProcess(schedule=TABLE)
    assert tune(mixture(), process, starts(process, 1, 4), 1) == Tuned(times=(1.0, 0.0), weights=())
    told: list[tuple[int, int]] = []
    tune(
        mixture(),
        process,
        starts(process, 1, 4),
        3,
        iterations=8,
        advance=lambda done, total: told.append((done, total)),
    )
    assert told[-1] == (8, 8)
    assert all(a[0] <= b[0] <= 8 for a, b in itertools.pairwise(told))


def test_bad_input_is_refused() -> None:
    process = GaussianProcess(schedule=TABLE)
    x = starts(process, 1, 4)
    for steps, iterations in ((0, 5), (3, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            tune(mixture(), process, x, steps, iterations=iterations)

    def broken(x_t: X, level: Level, previous: Estimate | None = None) -> Estimate:
        return Estimate(x0=x_t * torch.nan)

    with pytest.raises(ValueError, match="not finite"):
        tune(broken, process, x, 3, iterations=4)


def test_the_gradient_that_is_carried_back_by_hand_is_that_of_the_loss() -> None:
    """Against central differences, in every number that is fitted."""
    process = GaussianProcess(schedule=TABLE)
    x = starts(process, 1, 6)
    problem = tuning._Problem(  # pyright: ignore[reportPrivateUsage]
        denoise=mixture(), schedule=TABLE, x=x, goal=path(mixture(), process, x), limit=8.0, enough=1e-4
    )
    guess = tuning._first_guess(problem, 4, 4.4)  # pyright: ignore[reportPrivateUsage]
    noise = BlockNoise(key=(3,), count=4)
    guess = replace(guess, free=0.1 * noise.normal(guess.free))
    fitted = [guess.gaps.requires_grad_(), guess.free.requires_grad_()]
    aim = tuning._Aim(all=0.7, way=1.5)  # pyright: ignore[reportPrivateUsage]
    problem.learn(guess, aim)
    told = [numbers.grad.clone() for numbers in fitted if numbers.grad is not None]
    small = 1e-5
    for numbers, gradient in zip(fitted, told, strict=True):
        for place in itertools.product(*map(range, numbers.shape)):
            ends: list[float] = []
            for sign in (1, -1):
                with torch.no_grad():
                    numbers[place] += sign * small
                    ends.append(problem.learn(guess, aim))
                    numbers[place] -= sign * small
            assert abs((ends[0] - ends[1]) / (2 * small) - gradient[place].item()) < 1e-7
    assert told[0].abs().max() > 1e-3
    assert told[1].abs().max() > 1e-3
