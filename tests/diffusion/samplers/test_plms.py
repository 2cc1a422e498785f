"""PLMS against Adams and Bashforth's weights and the paper's transfer, step by step, and diffusers."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from diffusers import PNDMScheduler
from hypothesis import given
from hypothesis import strategies as st

from unstir.diffusion.noise import KeyedNoise
from unstir.diffusion.process import GaussianProcess
from unstir.diffusion.samplers import DDIM, PLMS, sample
from unstir.diffusion.samplers.base import Known, exponential_moments, polynomial_shares
from unstir.diffusion.samplers.plms import ADAMS_BASHFORTH
from unstir.diffusion.schedule import Cosine, Level, RectifiedFlow, Tabulated
from unstir.verify.oracles import GaussianOracle, MixtureOracle, observed_orders

ORACLE = GaussianOracle(mean=torch.tensor(0.5), variance=torch.tensor(0.25))
MIXTURE = MixtureOracle(
    means=torch.tensor([[-0.8], [0.9]]), variances=torch.tensor([0.3, 0.15]), weights=torch.tensor([0.4, 0.6])
)
NOISE = KeyedNoise.from_seeds([0])


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_weights_integrate_polynomials(count: int) -> None:
    """Adams and Bashforth's weights give the mean over the next step of every power below their number, exactly; so do
    the shares of a polynomial whose mean has no weight.
    """
    weights = [Fraction(weight).limit_denominator(24) for weight in ADAMS_BASHFORTH[count - 1]]
    for power in range(count):
        mean = sum(weight * Fraction(-i) ** power for i, weight in enumerate(weights))
        assert mean == Fraction(1, power + 1)
    shares = polynomial_shares([-1.0, -2.0, -3.0][: count - 1], exponential_moments(0.0, count - 1))
    assert shares == pytest.approx(ADAMS_BASHFORTH[count - 1][1:], rel=1e-13)


def transfer(x: float, noise: float, t: Level, s: Level) -> float:
    """Eq. 11 of Liu et al. 2022 (arXiv:2202.09778), in its own form, with a = alpha_bar."""
    a_t, a_s = t.alpha.item() ** 2, s.alpha.item() ** 2
    size = t.alpha.item() ** 2 + t.sigma.item() ** 2
    assert size == pytest.approx(1)
    below = a_t**0.5 * (((1 - a_s) * a_t) ** 0.5 + ((1 - a_t) * a_s) ** 0.5)
    return (a_s / a_t) ** 0.5 * x - (a_s - a_t) / below * noise


@given(gaps=st.lists(st.floats(0.02, 0.8), min_size=7, max_size=7), x=st.floats(-3, 3))
def test_every_step_is_the_papers(gaps: list[float], x: float) -> None:
    """Eq. 12's mean of four noises in Eq. 11's transfer; 23, 16, 5 and 3, 1 and 1 in the steps before there are four."""
    process = GaussianProcess(schedule=Cosine())
    times = tuple(0.96 * sum(gaps[: i + 1]) / sum(gaps) + 0.02 for i in reversed(range(6)))
    levels = process.schedule.at(torch.tensor(times, dtype=torch.float64))
    start = torch.full((1, 1), x, dtype=torch.float64)
    path = [step.x for step in sample(PLMS(), ORACLE, process, start, times, NOISE)]
    e = [process.noise_of(ORACLE(x_t, levels[i]).x0, x_t, levels[i]).item() for i, x_t in enumerate(path)]
    means = [
        e[0],
        (3 * e[1] - e[0]) / 2,
        (23 * e[2] - 16 * e[1] + 5 * e[0]) / 12,
        (55 * e[3] - 59 * e[2] + 37 * e[1] - 9 * e[0]) / 24,
        (55 * e[4] - 59 * e[3] + 37 * e[2] - 9 * e[1]) / 24,
    ]
    for i, mean in enumerate(means):
        expected = transfer(path[i].item(), mean, levels[i], levels[i + 1])
        assert path[i + 1].item() == pytest.approx(expected, rel=1e-7, abs=1e-7)


@pytest.mark.parametrize(("pattern", "order"), [((1.0,), 2), ((1.0, 3.0), 1)], ids=["even", "uneven"])
def test_order_depends_on_the_steps(pattern: tuple[float, ...], order: int) -> None:
    """2 on even steps and 1 on 3:1 ones: ``order`` tells the one that can be relied on."""
    process, ends = GaussianProcess(schedule=Cosine()), Cosine().at(torch.tensor([0.9, 0.1], dtype=torch.float64))
    x, errors = torch.tensor([[-1.0], [0.8]], dtype=torch.float64), []
    for count in (64, 128):
        lengths = torch.tensor(pattern, dtype=torch.float64).repeat(count // len(pattern))
        shares = torch.cumsum(lengths, 0) / lengths.sum()
        inner = Cosine().time_of(ends.log_snr[0] + (ends.log_snr[1] - ends.log_snr[0]) * shares[:-1])
        *_, last = sample(PLMS(), MIXTURE, process, x, [0.9, *inner.tolist(), 0.1], KeyedNoise.from_seeds([0, 1]))
        errors.append((last.x - MIXTURE.flow(x, ends[0], ends[1])).abs().max().item())
    assert observed_orders(errors)[0] == pytest.approx(order, abs=0.1)
    assert PLMS().order == 1


def test_the_first_step_is_ddim() -> None:
    """Also from alpha = 0, where the paper's own form divides by it."""
    process = GaussianProcess(schedule=RectifiedFlow())
    t, s = (process.schedule.at(torch.tensor(value, dtype=torch.float64)) for value in (1.0, 0.4))
    x = torch.linspace(-2, 2, 5, dtype=torch.float64).view(1, 5)
    first = PLMS().step(ORACLE, process, x, t, s, PLMS().start(), NOISE)[0]
    torch.testing.assert_close(first, DDIM().step(ORACLE, process, x, t, s, None, NOISE)[0], rtol=1e-12, atol=1e-13)


def test_it_takes_a_level_a_sample(process: GaussianProcess) -> None:
    """Samples at their own levels step as each would alone: coefficients belong to rows."""
    times = torch.tensor([[0.9, 0.7], [0.6, 0.55], [0.5, 0.2], [0.3, 0.1]], dtype=torch.float64)
    x = torch.tensor([[-1.2, 0.4], [0.8, 1.9]], dtype=torch.float64)
    together, memory = x, PLMS().start()
    for t, s in pairwise([process.schedule.at(t) for t in times]):
        together, memory = PLMS().step(ORACLE, process, together, t, s, memory, KeyedNoise.from_seeds([0, 1]))
    for i in range(2):
        alone = sample(PLMS(), ORACLE, process, x[i : i + 1], times[:, i].tolist(), NOISE)
        torch.testing.assert_close(together[i : i + 1], list(alone)[-1].x, rtol=1e-11, atol=1e-12)


@pytest.mark.filterwarnings("ignore")  # of diffusers, about numpy
def test_agrees_with_diffusers() -> None:
    """diffusers' PNDM without Runge-Kutta steps, on an exact denoiser, to rounding, from its second point on.

    Its first step is made twice, the second time with the mean of the noises at both of its ends (Heun), which no
    sampler here does; so ours starts where that leads to, with the noise of the first point for a memory. Its last step
    has the mean of four noises as well, where ours is the belief: it is left out.
    """
    theirs, num_steps = PNDMScheduler(skip_prk_steps=True, timestep_spacing="leading"), 20
    theirs.set_timesteps(num_steps)
    theirs.alphas_cumprod = theirs.alphas_cumprod.double()
    steps = theirs.timesteps.tolist()
    assert steps[1] == steps[2]
    table = theirs.alphas_cumprod[sorted(set(steps))]
    process = GaussianProcess(schedule=Tabulated(table=tuple(table.tolist())))
    times = [(num_steps - i) / num_steps for i in range(num_steps)]
    levels = process.schedule.at(torch.tensor(times, dtype=torch.float64))
    x = torch.tensor([[-1.5], [0.3], [1.1]], dtype=torch.float64)
    start = x
    path = []
    for i, step in enumerate(steps[:-1]):
        level = levels[max(0, i - 1) if i > 1 else i]
        noise = process.noise_of(MIXTURE(x, level).x0, x, level)
        x = theirs.step(noise, step, x).prev_sample
        path += [x] if i else []
    first = process.noise_of(MIXTURE(start, levels[0]).x0, start, levels[0])
    ours, memory = path[0], (Known(level=levels[0], value=first),)
    for i, expected in enumerate(path[1:], 1):
        ours, memory = PLMS().step(MIXTURE, process, ours, levels[i], levels[i + 1], memory, NOISE)
        torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-12)
    assert len(path) == num_steps - 1
