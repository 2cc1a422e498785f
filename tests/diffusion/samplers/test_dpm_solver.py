"""DPM-Solver++(2M) against the paper's own formula, step by step, and diffusers."""

from __future__ import annotations

import math

import numpy
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from hypothesis import given
from hypothesis import strategies as st

from unstir.diffusion.noise import KeyedNoise
from unstir.diffusion.process import GaussianProcess
from unstir.diffusion.samplers import DDIM, DPMSolver2M, sample
from unstir.diffusion.schedule import Level, RectifiedFlow, Tabulated, linear_betas
from unstir.diffusion.spacing import trailing
from unstir.verify.oracles import GaussianOracle

MEAN, VARIANCE = 0.5, 0.25
ORACLE = GaussianOracle(mean=torch.tensor(MEAN), variance=torch.tensor(VARIANCE))
NOISE = KeyedNoise.from_seeds([0])


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


@st.composite
def unequal(draw: st.DrawFn) -> tuple[float, ...]:
    """Four falling times whose steps differ by up to 40 to 1."""
    gaps = draw(st.lists(st.floats(0.02, 0.8), min_size=5, max_size=5))
    points = numpy.cumsum(gaps[:-1]) / sum(gaps)
    return tuple(float(t) for t in (0.98 * points + 0.01)[::-1])


def paper(levels: Level, x: float) -> list[float]:
    """Algorithm 2 of Lu et al. 2022 (arXiv:2211.01095) in plain numbers, written from the paper's own form.

    x_i = (sigma_i/sigma_{i-1}) x_{i-1} - alpha_i (exp(-h_i) - 1) D_i
    D_i = (1 + 1/(2 r_i)) x0(x_{i-1}) - (1/(2 r_i)) x0(x_{i-2}),  r_i = h_{i-1}/h_i,  h_i = lambda_i - lambda_{i-1}
    """
    alpha, sigma = levels.alpha.tolist(), levels.sigma.tolist()
    lam = [math.log(a / s) for a, s in zip(alpha, sigma, strict=True)]

    def belief(i: int, x: float) -> float:
        return MEAN + alpha[i] * VARIANCE / (alpha[i] ** 2 * VARIANCE + sigma[i] ** 2) * (x - alpha[i] * MEAN)

    path, beliefs = [x], [belief(0, x)]
    for i in range(1, len(alpha)):
        h = lam[i] - lam[i - 1]
        if i == 1:
            direction = beliefs[0]
        else:
            r = (lam[i - 1] - lam[i - 2]) / h
            direction = (1 + 1 / (2 * r)) * beliefs[-1] - 1 / (2 * r) * beliefs[-2]
        path.append(sigma[i] / sigma[i - 1] * path[-1] - alpha[i] * (math.exp(-h) - 1) * direction)
        beliefs.append(belief(i, path[-1]))
    return path


@given(unequal(), st.floats(-3, 3))
def test_every_step_is_the_papers(process: GaussianProcess, times: tuple[float, ...], x: float) -> None:
    """On unequal steps x_s equals Algorithm 2, first and later steps; an inverted ratio r would not (C16, which order
    cannot see).
    """
    expected = paper(process.schedule.at(torch.tensor(times, dtype=torch.float64)), x)
    start = torch.full((1, 1), x, dtype=torch.float64)
    got = [step.x.item() for step in sample(DPMSolver2M(), ORACLE, process, start, times, NOISE)]
    assert got == pytest.approx(expected, rel=1e-9, abs=1e-10)


def test_the_ratio_matters_on_these_steps(process: GaussianProcess) -> None:
    """The exact vectors tell r from 1/r (C16) and h from h_last (C15): the steps are unequal enough to see either."""
    levels = process.schedule.at(torch.tensor([0.8, 0.45, 0.4], dtype=torch.float64))
    half = (levels.log_snr / 2).tolist()
    r = (half[1] - half[0]) / (half[2] - half[1])
    assert abs(1 / (2 * r) - r / 2) > 1
    path = paper(levels, 1.3)
    got = [
        step.x.item()
        for step in sample(DPMSolver2M(), ORACLE, process, scalar(1.3).view(1, 1), (0.8, 0.45, 0.4), NOISE)
    ]
    assert got == pytest.approx(path, rel=1e-11)


def test_the_first_step_is_ddim(process: GaussianProcess) -> None:
    """DPM-Solver++ of first order is DDIM (Lu et al. 2022, Sec. 4.1)."""
    t, s = (process.schedule.at(scalar(value)) for value in (0.9, 0.4))
    x = torch.linspace(-2, 2, 5, dtype=torch.float64).view(1, 5)
    first = DPMSolver2M().step(ORACLE, process, x, t, s, DPMSolver2M().start(), NOISE)[0]
    torch.testing.assert_close(first, DDIM().step(ORACLE, process, x, t, s, None, NOISE)[0], rtol=1e-12, atol=1e-13)


def test_after_pure_noise_comes_a_step_of_first_order() -> None:
    """From alpha = 0 the first step has infinite length: the second takes nothing from it, the third is of second order
    again.
    """
    process = GaussianProcess(schedule=RectifiedFlow())
    times, x = (1.0, 0.7, 0.5, 0.4), torch.linspace(-2, 2, 5, dtype=torch.float64).view(1, 5)
    levels = process.schedule.at(torch.tensor(times, dtype=torch.float64))
    path = [step.x for step in sample(DPMSolver2M(), ORACLE, process, x, times, NOISE)]
    for i in (0, 1):
        euler = DDIM().step(ORACLE, process, path[i], levels[i], levels[i + 1], None, NOISE)[0]
        torch.testing.assert_close(path[i + 1], euler, rtol=1e-12, atol=1e-13)
    expected = [paper(levels[1:], value)[2] for value in path[1].flatten().tolist()]
    assert path[3].flatten().tolist() == pytest.approx(expected, rel=1e-11)


def test_it_takes_a_level_a_sample(process: GaussianProcess) -> None:
    """Samples at their own levels step as each would alone: coefficients belong to rows."""
    times = torch.tensor([[0.9, 0.7], [0.6, 0.55], [0.5, 0.2]], dtype=torch.float64)
    x = torch.tensor([[-1.2, 0.4], [0.8, 1.9]], dtype=torch.float64)
    rows = [process.schedule.at(t) for t in times]
    noise, sampler = KeyedNoise.from_seeds([0, 1]), DPMSolver2M()
    middle, memory = sampler.step(ORACLE, process, x, rows[0], rows[1], None, noise)
    together = sampler.step(ORACLE, process, middle, rows[1], rows[2], memory, noise)[0]
    for i in range(2):
        alone = sample(sampler, ORACLE, process, x[i : i + 1], times[:, i].tolist(), NOISE)
        torch.testing.assert_close(together[i : i + 1], list(alone)[-1].x, rtol=1e-12, atol=1e-13)


@pytest.mark.filterwarnings("ignore")  # of diffusers, about numpy
@pytest.mark.parametrize(
    ("spacing", "num_steps"), [("trailing", 10), ("trailing", 20), ("linspace", 10), ("linspace", 23)]
)
def test_agrees_with_diffusers(spacing: str, num_steps: int) -> None:
    """diffusers' DPM-Solver++(2M, midpoint) on an exact denoiser with the same timesteps, every step, to float32
    accuracy.
    """
    process = GaussianProcess(schedule=Tabulated.from_betas(linear_betas(1000)))
    theirs = DPMSolverMultistepScheduler(
        num_train_timesteps=1000,
        beta_schedule="linear",
        solver_order=2,
        algorithm_type="dpmsolver++",
        solver_type="midpoint",
        lower_order_final=False,
        final_sigmas_type="zero",
        prediction_type="sample",
        timestep_spacing=spacing,
    )
    theirs.set_timesteps(num_steps)
    times = [(step + 1) / 1000 for step in theirs.timesteps.tolist()] + [0.0]
    if spacing == "trailing":
        assert times == pytest.approx(trailing(process.schedule, num_steps))
    x = torch.tensor([[-1.5, 0.3, 1.1]])
    ours = [step.x for step in sample(DPMSolver2M(), ORACLE, process, x, times, NOISE)]
    levels = process.schedule.at(torch.tensor(times, dtype=torch.float64))
    for i, step in enumerate(theirs.timesteps):
        x = theirs.step(ORACLE(x, levels[i]).x0, step, x).prev_sample
        torch.testing.assert_close(ours[i + 1], x, rtol=5e-4, atol=5e-4)
