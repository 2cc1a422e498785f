"""UniPC against the paper's own form with its matrix R, step by step, and diffusers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import UniPCMultistepScheduler
from hypothesis import given
from hypothesis import strategies as st

from unstir.diffusion.noise import KeyedNoise
from unstir.diffusion.process import Estimate, GaussianProcess
from unstir.diffusion.samplers import DDIM, DPMSolverMultistep, UniPC, sample
from unstir.diffusion.schedule import Cosine, Level, RectifiedFlow
from unstir.verify.oracles import GaussianOracle, observed_orders

MEAN, VARIANCE = 0.5, 0.25
ORACLE = GaussianOracle(mean=torch.tensor(MEAN), variance=torch.tensor(VARIANCE))
NOISE = KeyedNoise.from_seeds([0])


def residual(r: Sequence[float], h: float) -> torch.Tensor:
    """The a of Algorithms 5 and 6: R a = b with R_nm = r_m^(n-1) and b_n = n! h^n phi_(n+1)(h)/(h^(n-1) B(h)), here
    for the belief (h becomes -h) and B = expm1(-h); 1/2 where there is one unknown.
    """
    if len(r) == 1:
        return torch.tensor([0.5], dtype=torch.float64)
    z, b, phi = -h, [], math.expm1(-h) / -h
    for n in range(1, len(r) + 1):
        phi = (phi - 1 / math.factorial(n)) / z
        b.append(math.factorial(n) * z * phi / math.expm1(z))
    rows = [[value ** (n - 1) for value in r] for n in range(1, len(r) + 1)]
    return torch.linalg.solve(torch.tensor(rows, dtype=torch.float64), torch.tensor(b, dtype=torch.float64))


def paper(levels: Level, x: float, order: int) -> list[float]:
    """Algorithms 5 (UniC) and 6 (UniP) of Zhao et al. 2023 (arXiv:2302.04867), in plain numbers.

    x_i = (sigma_i/sigma_(i-1)) x_(i-1) - alpha_i (exp(-h) - 1) m_0 - alpha_i B(h) sum over m of a_m D_m/r_m
    with D_m = m_m - m_0; the corrector has one more, r = 1, for the belief at the predicted x_i.
    """
    alpha, sigma = levels.alpha.tolist(), levels.sigma.tolist()
    lam = [math.log(a / s) for a, s in zip(alpha, sigma, strict=True)]

    def belief(i: int, x: float) -> float:
        return MEAN + alpha[i] * VARIANCE / (alpha[i] ** 2 * VARIANCE + sigma[i] ** 2) * (x - alpha[i] * MEAN)

    def moved(i: int, x: float, base: float, others: list[tuple[int, float]]) -> float:
        h = lam[i] - lam[i - 1]
        r = [(lam[j] - lam[i - 1]) / h for j, _ in others]
        sums = [a * (m - base) / value for a, (_, m), value in zip(residual(r, h), others, r, strict=True)] if r else []
        return sigma[i] / sigma[i - 1] * x - alpha[i] * math.expm1(-h) * (base + float(sum(sums)))

    predicted, corrected, beliefs = [x], [x], [belief(0, x)]
    for i in range(1, len(alpha)):
        used = [(j, beliefs[j]) for j in range(i - 2, i - 1 - order, -1) if j >= 0]
        predicted.append(moved(i, corrected[-1], beliefs[i - 1], used))
        beliefs.append(belief(i, predicted[-1]))
        corrected.append(moved(i, corrected[-1], beliefs[i - 1], [*used, (i, beliefs[i])]))
    return predicted


@st.composite
def unequal(draw: st.DrawFn) -> tuple[float, ...]:
    """Six falling times whose steps differ by up to 40 to 1."""
    gaps = draw(st.lists(st.floats(0.02, 0.8), min_size=7, max_size=7))
    points = [sum(gaps[: i + 1]) / sum(gaps) for i in range(6)]
    return tuple(0.98 * point + 0.01 for point in reversed(points))


@pytest.mark.parametrize("max_order", [1, 2, 3])
@given(times=unequal(), x=st.floats(-3, 3))
def test_every_step_is_the_papers(process: GaussianProcess, max_order: int, times: tuple[float, ...], x: float) -> None:
    """On unequal steps every predicted sample is that of Algorithms 5 and 6: warm-up, predictor and corrector."""
    expected = paper(process.schedule.at(torch.tensor(times, dtype=torch.float64)), x, max_order)
    start = torch.full((1, 1), x, dtype=torch.float64)
    got = [step.x.item() for step in sample(UniPC(max_order=max_order), ORACLE, process, start, times, NOISE)]
    assert got == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_a_corrected_step_asks_for_nothing_more(process: GaussianProcess) -> None:
    """One evaluation a step, at the predicted sample; the belief that ends a walk is the one there."""
    asked: list[torch.Tensor] = []

    def denoise(x_t: torch.Tensor, level: Level, previous: Estimate | None = None) -> Estimate:
        asked.append(x_t)
        return ORACLE(x_t, level)

    x = torch.tensor([[0.7]], dtype=torch.float64)
    steps = list(sample(UniPC(max_order=3), denoise, process, x, (0.9, 0.7, 0.4, 0.3, 0.0), NOISE))
    assert [value.item() for value in asked] == [step.x.item() for step in steps[:-1]]


def test_the_predictor_alone_is_dpm_solver(process: GaussianProcess) -> None:
    """Before there is anything to correct a step is DDIM; a second one from an exact first sample that the corrector
    leaves alone is DPM-Solver++(2M).
    """
    fixed = torch.tensor([[0.4]], dtype=torch.float64)
    levels = [process.schedule.at(torch.tensor(t, dtype=torch.float64)) for t in (0.9, 0.6, 0.5)]

    def certain(x_t: torch.Tensor, level: Level, previous: Estimate | None = None) -> Estimate:
        return Estimate(x0=fixed)

    x = torch.tensor([[0.7]], dtype=torch.float64)
    middle, memory = UniPC().step(ORACLE, process, x, levels[0], levels[1], None, NOISE)
    expected, known = DPMSolverMultistep().step(ORACLE, process, x, levels[0], levels[1], (), NOISE)
    torch.testing.assert_close(middle, expected, rtol=1e-13, atol=1e-13)
    x, memory = UniPC().step(certain, process, x, levels[0], levels[1], None, NOISE)
    expected, known = DPMSolverMultistep().step(certain, process, expected, levels[0], levels[1], (), NOISE)
    end = UniPC().step(certain, process, x, levels[1], levels[2], memory, NOISE)[0]
    torch.testing.assert_close(
        end, DPMSolverMultistep().step(certain, process, x, levels[1], levels[2], known, NOISE)[0], rtol=1e-12, atol=0
    )


def test_after_pure_noise_nothing_is_corrected() -> None:
    """From alpha = 0 the first step has infinite length: it is DDIM's, and its end is no better known for being
    asked about. The second one takes nothing from it either.
    """
    process = GaussianProcess(schedule=RectifiedFlow())
    times, x = (1.0, 0.7, 0.5), torch.linspace(-2, 2, 5, dtype=torch.float64).view(1, 5)
    levels = process.schedule.at(torch.tensor(times, dtype=torch.float64))
    path = [step.x for step in sample(UniPC(max_order=3), ORACLE, process, x, times, NOISE)]
    for i in (0, 1):
        euler = DDIM().step(ORACLE, process, path[i], levels[i], levels[i + 1], None, NOISE)[0]
        torch.testing.assert_close(path[i + 1], euler, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("max_order", "least"), [(1, 2), (2, 3), (3, 3)])
def test_the_corrector_gains_an_order(max_order: int, least: int) -> None:
    """UniPC-p is of order p + 1 (Sec. 3.4), up to the third, which the corrected first step has; on 3:1 steps.

    ``order`` says p: from t = 1 on, steps short enough to show more are more than anybody takes.
    """
    process, ends = GaussianProcess(schedule=Cosine()), Cosine().at(torch.tensor([0.9, 0.1], dtype=torch.float64))
    x = torch.tensor([[-1.0], [0.8]], dtype=torch.float64)
    exact, errors = ORACLE.flow(x, ends[0], ends[1]), []
    for count in (32, 64):
        lengths = torch.tensor([1.0, 3.0], dtype=torch.float64).repeat(count // 2)
        shares = torch.cumsum(lengths, 0) / lengths.sum()
        inner = Cosine().time_of(ends.log_snr[0] + (ends.log_snr[1] - ends.log_snr[0]) * shares[:-1])
        *_, last = sample(
            UniPC(max_order=max_order), ORACLE, process, x, [0.9, *inner.tolist(), 0.1], KeyedNoise.from_seeds([0, 1])
        )
        errors.append((last.x - exact).abs().max().item())
    assert UniPC(max_order=max_order).order == max_order
    assert observed_orders(errors)[0] > least - 0.2


def test_it_takes_a_level_a_sample(process: GaussianProcess) -> None:
    """Samples at their own levels step as each would alone: coefficients belong to rows."""
    times = torch.tensor([[0.9, 0.7], [0.6, 0.55], [0.5, 0.2], [0.3, 0.1]], dtype=torch.float64)
    x = torch.tensor([[-1.2, 0.4], [0.8, 1.9]], dtype=torch.float64)
    together, memory = x, None
    for t, s in pairwise([process.schedule.at(t) for t in times]):
        together, memory = UniPC().step(ORACLE, process, together, t, s, memory, KeyedNoise.from_seeds([0, 1]))
    for i in range(2):
        alone = sample(UniPC(), ORACLE, process, x[i : i + 1], times[:, i].tolist(), NOISE)
        torch.testing.assert_close(together[i : i + 1], list(alone)[-1].x, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("max_order", [0, 4])
def test_refuses_other_orders(max_order: int) -> None:
    with pytest.raises(ValueError, match=f"UniPC makes a step of 1, 2 or 3 values, got {max_order}"):
        UniPC(max_order=max_order)


@pytest.mark.filterwarnings("ignore")  # of diffusers, about numpy
@pytest.mark.parametrize("num_steps", [5, 20])
@pytest.mark.parametrize("max_order", [1, 2, 3])
def test_agrees_with_diffusers(max_order: int, num_steps: int, walks: Any, apart: Callable[..., float]) -> None:
    """diffusers' UniPC (bh2) on an exact denoiser, to rounding, and to the end: its last step corrects a sample that
    the step to sigma = 0 then forgets. With p = 3 it steps with 2 before that (without ``lower_order_final`` it crashes
    at sigma = 0), so that two points are left out.
    """
    theirs = UniPCMultistepScheduler(solver_order=max_order, solver_type="bh2", prediction_type="sample")
    both = walks(theirs, num_steps)
    upto = slice(None, None if max_order < 3 else -2)
    assert apart(both.ours(UniPC(max_order=max_order))[upto], both.path()[upto]) < 1e-12
