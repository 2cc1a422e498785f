"""SDE-DPM-Solver++ against the paper's formula, the reverse chain, the law of the data, and its own finer grids."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unstir.diffusion.noise import BlockNoise, KeyedNoise
from unstir.diffusion.process import GaussianProcess
from unstir.diffusion.samplers import Ancestral, SDEDPMSolver, sample
from unstir.diffusion.schedule import Cosine, LogLinear, RectifiedFlow, Schedule
from unstir.diffusion.spacing import trailing
from unstir.verify.oracles import GaussianOracle, GivenNoise, MixtureOracle, observed_orders

MEAN, VARIANCE = 0.5, 0.25
ORACLE = GaussianOracle(mean=torch.tensor(MEAN), variance=torch.tensor(VARIANCE))
MIXTURE = MixtureOracle(
    means=torch.tensor([[-0.8], [0.9]], dtype=torch.float64),
    variances=torch.tensor([0.3, 0.15], dtype=torch.float64),
    weights=torch.tensor([0.4, 0.6], dtype=torch.float64),
)


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


@given(
    st.lists(st.floats(0.02, 0.8), min_size=4, max_size=4), st.floats(-3, 3), st.floats(-2, 2), st.sampled_from([1, 2])
)
def test_every_step_is_the_papers(
    process: GaussianProcess, gaps: list[float], x: float, z: float, beliefs: int
) -> None:
    """On unequal steps x_s equals Eqs. 16 and 17 of Lu et al. 2022 in plain numbers, with lambda = log(alpha/sigma)."""
    times = [0.98 * (1 - sum(gaps[:i]) / sum(gaps)) + 0.01 for i in range(4)]
    levels = process.schedule.at(torch.tensor(times, dtype=torch.float64))
    alpha, sigma = levels.alpha.tolist(), levels.sigma.tolist()
    lam = [math.log(a / s) for a, s in zip(alpha, sigma, strict=True)]
    path, known = [x], []
    for i in range(1, 4):
        a, s = alpha[i - 1], sigma[i - 1]
        known.append(MEAN + a * VARIANCE / (a**2 * VARIANCE + s**2) * (path[-1] - a * MEAN))
        h = lam[i] - lam[i - 1]
        towards = known[-1]
        if beliefs == 2 and i > 1:
            r = (lam[i - 1] - lam[i - 2]) / h
            towards += (known[-1] - known[-2]) / (2 * r)
        fresh = -math.expm1(-2 * h)
        kept = sigma[i] / s * math.exp(-h) * path[-1]
        path.append(kept + alpha[i] * fresh * towards + sigma[i] * math.sqrt(fresh) * z)
    start = torch.full((1, 1), x, dtype=torch.float64)
    walked = sample(SDEDPMSolver(beliefs=beliefs), ORACLE, process, start, times, GivenNoise(value=scalar(z)))
    assert [step.x.item() for step in walked] == pytest.approx(path, rel=1e-9, abs=1e-9)


def test_one_belief_is_the_reverse_chain(any_process: GaussianProcess) -> None:
    """With one belief a step has the mean and the variance of ``Ancestral``, from pure noise as well."""
    x, sampler = torch.linspace(-2, 2, 5, dtype=torch.float64).view(1, 5), SDEDPMSolver(beliefs=1)
    for times in ((1.0, 0.6), (0.7, 0.4), (0.4, 0.39)):
        t, s = (any_process.schedule.at(scalar(value)) for value in times)
        for z in (0.0, 1.3):
            noise = GivenNoise(value=scalar(z))
            got = sampler.step(ORACLE, any_process, x, t, s, sampler.start(), noise)[0]
            chain = Ancestral().step(ORACLE, any_process, x, t, s, None, noise)[0]
            torch.testing.assert_close(got, chain, rtol=1e-9, atol=1e-9)


def moments(schedule: Schedule, beliefs: int, num_steps: int) -> tuple[float, float]:
    """Mean and variance of what the sampler makes of the prior, exactly: its end is affine in x and in every z."""
    process, sampler = GaussianProcess(schedule=schedule), SDEDPMSolver(beliefs=beliefs)
    times = trailing(schedule, num_steps)
    levels = schedule.at(torch.tensor(times, dtype=torch.float64))
    # One row for the start, one for each step's noise, and one without any.
    x = torch.zeros(num_steps + 1, 1, dtype=torch.float64)
    x[0] = 1.0
    memory = sampler.start()
    for i in range(num_steps - 1):
        z = torch.zeros(num_steps + 1, 1, dtype=torch.float64)
        z[i + 1] = 1.0 if i + 1 < num_steps else 0.0
        x, memory = sampler.step(ORACLE, process, x, levels[i], levels[i + 1], memory, GivenNoise(value=z))
    x = ORACLE(x, levels[num_steps - 1]).x0
    mean = x[-1].item()
    return mean, (x[:-1] - mean).square().sum().item()


@pytest.mark.parametrize("beliefs", [1, 2])
def test_it_tends_to_the_law_of_the_data(beliefs: int) -> None:
    """Mean and variance tend to those of the data as steps grow; two beliefs come nearer than one."""
    made = [moments(RectifiedFlow(), beliefs, num_steps) for num_steps in (25, 50, 100)]
    off = [abs(VARIANCE - variance) for _, variance in made]
    assert made[-1][0] == pytest.approx(MEAN, abs=0.01)
    assert observed_orders(off)[-1] >= 0.85
    assert off[-1] < (0.02 if beliefs == 1 else 0.003)


@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow(), LogLinear()], ids=lambda each: type(each).__name__)
def test_finer_grids_lead_to_the_same_picture(schedule: Schedule) -> None:
    """On one path the distance to a walk of 256 steps falls with strong order 1 (at least 0.8); with fresh numbers a
    step there is none.
    """
    process, count = GaussianProcess(schedule=schedule), 64
    noise = KeyedNoise.from_seeds([7])
    start = torch.linspace(-1.5, 1.5, count, dtype=torch.float64).view(1, count)
    law = GaussianOracle(mean=torch.tensor(0.5), variance=torch.tensor(0.4))

    def walk(num_steps: int) -> torch.Tensor:
        times = [0.9 - 0.8 * i / num_steps for i in range(num_steps + 1)]
        *_, last = sample(SDEDPMSolver(), law, process, start, times, noise)
        return last.x

    finest = walk(256)
    off = [(walk(num_steps) - finest).square().mean().sqrt().item() for num_steps in (8, 16, 32)]
    assert (math.log2(off[0] / off[-1])) / 2 > 0.8, off
    assert off[-1] < 0.15 * finest.std().item()


def test_its_samples_have_the_law_of_a_mixture() -> None:
    """Mean and variance of 20 000 samples of 40 steps, within 4 standard errors and the discretisation's 2 %."""
    process, count = GaussianProcess(schedule=Cosine()), 20_000
    noise = BlockNoise(key=(5,), count=count)
    start = process.prior(torch.zeros(count, 1, dtype=torch.float64)).sample(noise.at(99))
    *_, last = sample(SDEDPMSolver(), MIXTURE, process, start, trailing(process.schedule, 40), noise)
    mean = 0.4 * -0.8 + 0.6 * 0.9
    variance = 0.4 * (0.3 + 0.8**2) + 0.6 * (0.15 + 0.9**2) - mean**2
    assert last.x.mean().item() == pytest.approx(mean, abs=4 * math.sqrt(variance / count) + 0.01)
    assert last.x.var().item() == pytest.approx(variance, rel=4 * math.sqrt(2 / count) + 0.02)


@pytest.mark.parametrize("beliefs", [0, 3])
def test_refuses_orders_that_the_paper_lacks(beliefs: int) -> None:
    """ValueError for anything but one or two beliefs."""
    with pytest.raises(ValueError, match="1 or 2 beliefs"):
        SDEDPMSolver(beliefs=beliefs)
