"""DEIS against exact integrals of its polynomial, step by step, and diffusers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import DEISMultistepScheduler
from hypothesis import given
from hypothesis import strategies as st

from unstir.diffusion.noise import KeyedNoise
from unstir.diffusion.process import GaussianProcess
from unstir.diffusion.samplers import DDIM, DEIS, sample
from unstir.diffusion.schedule import Level, RectifiedFlow
from unstir.verify.oracles import GaussianOracle

ORACLE = GaussianOracle(mean=torch.tensor(0.5), variance=torch.tensor(0.25))
NOISE = KeyedNoise.from_seeds([0])


def noise_at(process: GaussianProcess, x: torch.Tensor, level: Level) -> float:
    return process.noise_of(ORACLE(x, level).x0, x, level).item()


@pytest.mark.parametrize("max_order", [1, 2, 3])
@given(gaps=st.lists(st.floats(0.02, 0.8), min_size=6, max_size=6), x=st.floats(-3, 3))
def test_every_step_integrates_the_polynomial(
    process: GaussianProcess, integral: Callable[..., float], max_order: int, gaps: list[float], x: float
) -> None:
    """x_s/alpha_s - x_t/alpha_t is the integral over rho of the polynomial in log rho through the last noises: on
    unequal steps, warm-up included, by quadrature.
    """
    times = tuple(0.98 * sum(gaps[: i + 1]) / sum(gaps) + 0.01 for i in reversed(range(5)))
    levels = process.schedule.at(torch.tensor(times, dtype=torch.float64))
    start = torch.full((1, 1), x, dtype=torch.float64)
    path = [step.x for step in sample(DEIS(max_order=max_order), ORACLE, process, start, times, NOISE)]
    for i in range(4):
        known = [(j, noise_at(process, path[j], levels[j])) for j in range(max(0, i + 1 - max_order), i + 1)]
        moved = (levels.alpha[i + 1] / levels.alpha[i] * path[i]).item()
        expected = moved + integral(levels, i, i + 1, known, "noise")
        assert path[i + 1].item() == pytest.approx(expected, rel=1e-6, abs=1e-6 * (1 + abs(moved)))


def test_first_order_is_ddim(process: GaussianProcess) -> None:
    """With one noise a whole walk equals DDIM's (Zhang & Chen 2022, Proposition 2)."""
    x, times = torch.linspace(-2, 2, 5, dtype=torch.float64).view(1, 5), (0.95, 0.9, 0.5, 0.45, 0.1)
    ours, ddim = (
        [step.x for step in sample(each, ORACLE, process, x, times, NOISE)] for each in (DEIS(max_order=1), DDIM())
    )
    torch.testing.assert_close(ours, ddim, rtol=1e-11, atol=1e-12)


def test_after_pure_noise_comes_a_step_of_first_order() -> None:
    """From alpha = 0 the first step is DDIM's, and the second takes nothing from it, which is infinitely far away."""
    process = GaussianProcess(schedule=RectifiedFlow())
    times, x = (1.0, 0.7, 0.5), torch.linspace(-2, 2, 5, dtype=torch.float64).view(1, 5)
    levels = process.schedule.at(torch.tensor(times, dtype=torch.float64))
    path = [step.x for step in sample(DEIS(), ORACLE, process, x, times, NOISE)]
    for i in (0, 1):
        euler = DDIM().step(ORACLE, process, path[i], levels[i], levels[i + 1], None, NOISE)[0]
        torch.testing.assert_close(path[i + 1], euler, rtol=1e-12, atol=1e-13)


def test_it_takes_a_level_a_sample(process: GaussianProcess) -> None:
    """Samples at their own levels step as each would alone: coefficients belong to rows."""
    times = torch.tensor([[0.9, 0.7], [0.6, 0.55], [0.5, 0.2], [0.3, 0.1]], dtype=torch.float64)
    x = torch.tensor([[-1.2, 0.4], [0.8, 1.9]], dtype=torch.float64)
    together, memory = x, DEIS().start()
    for t, s in pairwise([process.schedule.at(t) for t in times]):
        together, memory = DEIS().step(ORACLE, process, together, t, s, memory, KeyedNoise.from_seeds([0, 1]))
    for i in range(2):
        alone = sample(DEIS(), ORACLE, process, x[i : i + 1], times[:, i].tolist(), NOISE)
        torch.testing.assert_close(together[i : i + 1], list(alone)[-1].x, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("max_order", [0, 4])
def test_refuses_other_orders(max_order: int) -> None:
    with pytest.raises(ValueError, match=f"DEIS makes a step of 1, 2 or 3 values, got {max_order}"):
        DEIS(max_order=max_order)


@pytest.mark.filterwarnings("ignore")  # of diffusers, about numpy
@pytest.mark.parametrize("num_steps", [5, 20])
@pytest.mark.parametrize("max_order", [1, 2, 3])
def test_agrees_with_diffusers(max_order: int, num_steps: int, walks: Any, apart: Callable[..., float]) -> None:
    """Every step of diffusers' DEIS on an exact denoiser, to rounding; it ends at the first level of its table."""
    theirs = DEISMultistepScheduler(solver_order=max_order, lower_order_final=False, prediction_type="sample")
    both = walks(theirs, num_steps)
    assert apart(both.ours(DEIS(max_order=max_order)), both.path()) < 1e-11
