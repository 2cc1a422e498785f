"""DPM-Solver++ against the papers' own formulas, step by step, exact integrals, and diffusers."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unstir.diffusion.noise import KeyedNoise
from unstir.diffusion.process import Estimate, GaussianProcess
from unstir.diffusion.samplers import DDIM, DPMSolverMultistep, DPMSolverSinglestep, Sampler, sample
from unstir.diffusion.schedule import Level, RectifiedFlow
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
    got = [step.x.item() for step in sample(DPMSolverMultistep(), ORACLE, process, start, times, NOISE)]
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
        for step in sample(DPMSolverMultistep(), ORACLE, process, scalar(1.3).view(1, 1), (0.8, 0.45, 0.4), NOISE)
    ]
    assert got == pytest.approx(path, rel=1e-11)


def test_the_first_step_is_ddim(process: GaussianProcess) -> None:
    """DPM-Solver++ of first order is DDIM (Lu et al. 2022, Sec. 4.1)."""
    t, s = (process.schedule.at(scalar(value)) for value in (0.9, 0.4))
    x = torch.linspace(-2, 2, 5, dtype=torch.float64).view(1, 5)
    first = DPMSolverMultistep().step(ORACLE, process, x, t, s, DPMSolverMultistep().start(), NOISE)[0]
    torch.testing.assert_close(first, DDIM().step(ORACLE, process, x, t, s, None, NOISE)[0], rtol=1e-12, atol=1e-13)


def test_after_pure_noise_comes_a_step_of_first_order() -> None:
    """From alpha = 0 the first step has infinite length: the second takes nothing from it, the third is of second order
    again.
    """
    process = GaussianProcess(schedule=RectifiedFlow())
    times, x = (1.0, 0.7, 0.5, 0.4), torch.linspace(-2, 2, 5, dtype=torch.float64).view(1, 5)
    levels = process.schedule.at(torch.tensor(times, dtype=torch.float64))
    path = [step.x for step in sample(DPMSolverMultistep(), ORACLE, process, x, times, NOISE)]
    for i in (0, 1):
        euler = DDIM().step(ORACLE, process, path[i], levels[i], levels[i + 1], None, NOISE)[0]
        torch.testing.assert_close(path[i + 1], euler, rtol=1e-12, atol=1e-13)
    expected = [paper(levels[1:], value)[2] for value in path[1].flatten().tolist()]
    assert path[3].flatten().tolist() == pytest.approx(expected, rel=1e-11)


def belief(levels: Level, i: int, x: float) -> float:
    alpha, sigma = levels.alpha[i].item(), levels.sigma[i].item()
    return MEAN + alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2) * (x - alpha * MEAN)


@given(unequal(), st.floats(-3, 3))
def test_a_third_order_step_is_the_parabolas_integral(
    process: GaussianProcess, integral: Callable[..., float], times: tuple[float, ...], x: float
) -> None:
    """From the third step on x_s/sigma_s gains the integral of exp(l) P(l), P through three beliefs at unequal places."""
    levels = process.schedule.at(torch.tensor(times, dtype=torch.float64))
    start = torch.full((1, 1), x, dtype=torch.float64)
    path = [step.x.item() for step in sample(DPMSolverMultistep(max_order=3), ORACLE, process, start, times, NOISE)]
    known = [(i, belief(levels, i, path[i])) for i in range(3)]
    expected = (levels.sigma[3] / levels.sigma[2]).item() * path[2] + integral(levels, 2, 3, known, "belief")
    assert path[3] == pytest.approx(expected, rel=1e-7, abs=1e-8)
    assert path[:3] == pytest.approx(paper(levels, x)[:3], rel=1e-9, abs=1e-10)


def inner(process: GaussianProcess, t: float, s: float, count: int) -> Level:
    """t, the inner levels at even places in log-SNR, and s."""
    ends = process.schedule.at(torch.tensor([t, s], dtype=torch.float64)).log_snr
    shares = torch.arange(1, count, dtype=torch.float64) / count
    within = process.schedule.time_of(ends[0] + (ends[1] - ends[0]) * shares)
    return process.schedule.at(torch.tensor([t, *within.tolist(), s], dtype=torch.float64))


@pytest.mark.parametrize("x", [-1.2, 0.7])
def test_a_singlestep_is_algorithm_1(process: GaussianProcess, x: float) -> None:
    """Algorithm 1 of Lu et al. 2022 (arXiv:2211.01095) with r = 1/2, in its own form.

    u = (sigma_m/sigma_t) x - alpha_m (exp(-r h) - 1) x0(x, t),  D = (1 - 1/(2r)) x0(x, t) + 1/(2r) x0(u, m)
    """
    levels = inner(process, 0.8, 0.3, 2)
    alpha, sigma = levels.alpha.tolist(), levels.sigma.tolist()
    lam = [math.log(a / s) for a, s in zip(alpha, sigma, strict=True)]
    h, r = lam[2] - lam[0], 0.5
    first = belief(levels, 0, x)
    u = sigma[1] / sigma[0] * x - alpha[1] * math.expm1(-r * h) * first
    direction = (1 - 1 / (2 * r)) * first + 1 / (2 * r) * belief(levels, 1, u)
    expected = sigma[2] / sigma[0] * x - alpha[2] * math.expm1(-h) * direction
    start = scalar(x).view(1, 1)
    got = DPMSolverSinglestep().step(ORACLE, process, start, levels[0], levels[2], None, NOISE)[0]
    assert got.item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("x", [-1.2, 0.7])
def test_a_third_order_singlestep_integrates_its_stages(
    process: GaussianProcess, integral: Callable[..., float], x: float
) -> None:
    """At 1/3 and 2/3 of the way (Lu et al. 2022, arXiv:2206.00927, Algorithm 2), each stage integrates the polynomial
    through the beliefs so far.
    """
    levels, stages = inner(process, 0.8, 0.3, 3), [x]
    for i in range(1, 4):
        known = [(j, belief(levels, j, stages[j])) for j in range(i)]
        stages.append((levels.sigma[i] / levels.sigma[0]).item() * x + integral(levels, 0, i, known, "belief"))
    start = scalar(x).view(1, 1)
    got = DPMSolverSinglestep(max_order=3).step(ORACLE, process, start, levels[0], levels[3], None, NOISE)[0]
    assert got.item() == pytest.approx(stages[3], rel=1e-9)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_singlestep_asks_as_often_as_its_order(process: GaussianProcess, count: int) -> None:
    """1, 2 or 3 evaluations, at even places in log-SNR from t on; none of them at s."""
    asked: list[float] = []

    def denoise(x_t: torch.Tensor, level: Level, previous: Estimate | None = None) -> Estimate:
        asked.append(level.log_snr.item())
        return ORACLE(x_t, level)

    t, s = (process.schedule.at(scalar(value)) for value in (0.8, 0.3))
    DPMSolverSinglestep(max_order=count).step(denoise, process, torch.ones(1, 1), t, s, None, NOISE)
    whole = (s.log_snr - t.log_snr).item()
    assert asked == pytest.approx([t.log_snr.item() + whole * i / count for i in range(count)], rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("sampler", [DPMSolverMultistep(max_order=1), DPMSolverSinglestep(max_order=1)])
def test_first_order_is_ddim(process: GaussianProcess, sampler: Sampler[Any]) -> None:
    """A whole walk of order 1 equals DDIM's (Lu et al. 2022, Sec. 4.1)."""
    x, times = torch.linspace(-2, 2, 5, dtype=torch.float64).view(1, 5), (0.95, 0.9, 0.5, 0.45, 0.1)
    ours, ddim = ([step.x for step in sample(each, ORACLE, process, x, times, NOISE)] for each in (sampler, DDIM()))
    torch.testing.assert_close(ours, ddim, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("max_order", [2, 3])
def test_a_singlestep_from_pure_noise_is_one_of_ddim(max_order: int) -> None:
    """Infinity has no half: from alpha = 0 a singlestep solver asks once."""
    process = GaussianProcess(schedule=RectifiedFlow())
    t, s = (process.schedule.at(scalar(value)) for value in (1.0, 0.4))
    x = torch.linspace(-2, 2, 5, dtype=torch.float64).view(1, 5)
    got = DPMSolverSinglestep(max_order=max_order).step(ORACLE, process, x, t, s, None, NOISE)[0]
    torch.testing.assert_close(got, DDIM().step(ORACLE, process, x, t, s, None, NOISE)[0], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", [DPMSolverMultistep, DPMSolverSinglestep])
@pytest.mark.parametrize("max_order", [0, 4, -1])
def test_refuses_other_orders(kind: Callable[..., object], max_order: int) -> None:
    with pytest.raises(ValueError, match=f"1, 2 or 3 values, got {max_order}"):
        kind(max_order=max_order)


@pytest.mark.parametrize("sampler", [DPMSolverMultistep(), DPMSolverMultistep(max_order=3), DPMSolverSinglestep()])
def test_it_takes_a_level_a_sample(process: GaussianProcess, sampler: Sampler[Any]) -> None:
    """Samples at their own levels step as each would alone: coefficients belong to rows."""
    times = torch.tensor([[0.9, 0.7], [0.6, 0.55], [0.5, 0.2], [0.3, 0.1]], dtype=torch.float64)
    x = torch.tensor([[-1.2, 0.4], [0.8, 1.9]], dtype=torch.float64)
    rows = [process.schedule.at(t) for t in times]
    noise, together, memory = KeyedNoise.from_seeds([0, 1]), x, sampler.start()
    for t, s in pairwise(rows):
        together, memory = sampler.step(ORACLE, process, together, t, s, memory, noise)
    for i in range(2):
        alone = sample(sampler, ORACLE, process, x[i : i + 1], times[:, i].tolist(), NOISE)
        torch.testing.assert_close(together[i : i + 1], list(alone)[-1].x, rtol=1e-11, atol=1e-12)


class Mended(DPMSolverMultistepScheduler):
    """Theirs, with the other half of the second difference of three beliefs."""

    def multistep_dpm_solver_third_order_update(
        self, outputs: list[Tensor], *arguments: Any, sample: Tensor, noise: Tensor | None = None
    ) -> Tensor:
        sigmas = self.sigmas[self.step_index - 2 : self.step_index + 2]
        lam = -sigmas.log()
        h, first, second = lam[3] - lam[2], (outputs[-1] - outputs[-2]) / (lam[2] - lam[1]), outputs[-2] - outputs[-3]
        bend = (first - second / (lam[1] - lam[0])) / (lam[2] - lam[0]) * h**2
        missing = -(((torch.expm1(-h) + h) / h**2 - 0.5) * bend) / (1 + sigmas[3] ** 2).sqrt()
        return (
            super().multistep_dpm_solver_third_order_update(outputs, *arguments, sample=sample, noise=noise) + missing
        )


def theirs(kind: Callable[..., Any], **config: Any) -> Any:
    return kind(
        algorithm_type="dpmsolver++",
        lower_order_final=False,
        final_sigmas_type="zero",
        prediction_type="sample",
        **config,
    )


@pytest.mark.filterwarnings("ignore")  # of diffusers, about numpy
@pytest.mark.parametrize("num_steps", [5, 20])
@pytest.mark.parametrize("max_order", [1, 2, 3])
def test_agrees_with_diffusers(max_order: int, num_steps: int, walks: Any, apart: Callable[..., float]) -> None:
    """Every step of diffusers' multistep solver, midpoint, on an exact denoiser; the last one goes to sigma = 0.

    With three beliefs theirs is mended first, see ``test_three_beliefs_need_their_whole_second_difference``. (They
    compute samples in float32.)
    """
    both = walks(theirs(Mended, solver_order=max_order), num_steps)
    assert apart(both.ours(DPMSolverMultistep(max_order=max_order)), both.path()) < 1e-6


@pytest.mark.filterwarnings("ignore")
def test_three_beliefs_need_their_whole_second_difference(walks: Any) -> None:
    """diffusers (as the authors' code) takes the second difference for the second derivative, which is twice that. The
    exact flow decides: ours ends many times nearer to it, theirs no nearer than with two beliefs.
    """

    def error(path: list[Tensor], both: Any) -> float:
        exact = ORACLE.flow(path[0], both.levels[0], both.levels[len(path) - 1])
        return (path[-1] - exact).abs().max().item()

    kind = DPMSolverMultistepScheduler
    three, two = (walks(theirs(kind, solver_order=n, use_exponential_sigmas=True), 40, ORACLE) for n in (3, 2))
    whole = error(three.ours(DPMSolverMultistep(max_order=3))[:-1], three)
    half, without = error(three.path()[:-1], three), error(two.path()[:-1], two)
    assert whole < half / 4
    assert half > without / 4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("max_order", "solver_type"), [(2, "midpoint"), (3, "heun")])
def test_singlestep_agrees_with_diffusers(
    max_order: int, solver_type: str, walks: Any, apart: Callable[..., float]
) -> None:
    """diffusers' singlestep solver, which spreads the stages of one step over two or three of its own.

    Its sigmas fall geometrically here, so that its points in between are even places in log-SNR; its last group is cut
    into steps of lower order to reach sigma = 0, and left out. "heun" is its name for polynomials integrated exactly.
    """
    kind = DPMSolverSinglestepScheduler
    both = walks(theirs(kind, solver_order=max_order, solver_type=solver_type, use_exponential_sigmas=True), 12)
    ends = slice(None, 12 - max_order + 1, max_order)
    sampler = DPMSolverSinglestep(max_order=max_order)
    assert apart(both.ours(sampler, ends), both.path()[ends]) < 1e-6
