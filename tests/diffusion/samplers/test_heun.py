"""Heun against EDM's own algorithm in sigma/alpha, with and without churn, and diffusers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import HeunDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from unstir.diffusion.noise import KeyedNoise
from unstir.diffusion.process import Estimate, GaussianProcess
from unstir.diffusion.samplers import Heun, sample
from unstir.diffusion.schedule import Cosine, Level, RectifiedFlow, VarianceExploding
from unstir.verify.oracles import GaussianOracle, GivenNoise, MixtureOracle

ORACLE = GaussianOracle(mean=torch.tensor(0.5), variance=torch.tensor(0.25))
QUIET = GivenNoise(value=torch.zeros((), dtype=torch.float64))
LETTER = Heun(reach=math.inf)


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


@st.composite
def falling(draw: st.DrawFn) -> tuple[float, float]:
    s = draw(st.floats(0.02, 0.9))
    return draw(st.floats(s + 0.02, 0.97)), s


def belief(y: float, r: float) -> float:
    """E[x0 | y] of the oracle in EDM's coordinates, where y = x0 + r noise."""
    return 0.5 + 0.25 / (0.25 + r**2) * (y - 0.5)


def edm(y: float, r: float, r_next: float, gamma: float = 0.0, z: float = 0.0) -> float:
    """One step of Algorithm 2 of Karras et al. 2022 in plain numbers, line by line (S_noise folded into z)."""
    louder = r + gamma * r
    y = y + math.sqrt(louder**2 - r**2) * z
    d = (y - belief(y, louder)) / louder
    guess = y + (r_next - louder) * d
    d_next = (guess - belief(guess, r_next)) / r_next
    return y + (r_next - louder) * (d + d_next) / 2


@given(falling(), st.floats(-3, 3))
def test_a_step_is_edms(process: GaussianProcess, times: tuple[float, float], x: float) -> None:
    """x_s = alpha_s times Algorithm 1 at y = x/alpha, on steps of any length."""
    t, s = (process.schedule.at(scalar(value)) for value in times)
    x_t = torch.full((1, 1), x, dtype=torch.float64)
    got = LETTER.step(ORACLE, process, x_t, t, s, None, QUIET)[0].item()
    alpha, beyond = s.alpha.item(), (t.sigma * s.alpha / (t.alpha * s.sigma)).item()
    expected = alpha * edm(x / t.alpha.item(), (t.sigma / t.alpha).item(), (s.sigma / s.alpha).item())
    assert got == pytest.approx(expected, rel=1e-8, abs=1e-9 * (1 + beyond))


@given(falling(), st.floats(-3, 3), st.floats(-2, 2), st.floats(0.05, 0.6), st.floats(0.5, 1.2))
def test_churn_is_edms(times: tuple[float, float], x: float, z: float, churn: float, scale: float) -> None:
    """Noise up to (1 + min(churn, sqrt(2) - 1)) r is added before the network is asked, times noise_scale (C22)."""
    process = GaussianProcess(schedule=VarianceExploding(sigma_max=10.0))
    t, s = (
        process.schedule.at(scalar(value / 2)) for value in times
    )  # below t = 1/2, so that r (1 + g) is on the path
    noise, x_t = GivenNoise(value=scalar(z)), torch.full((1, 1), x, dtype=torch.float64)
    sampler = Heun(churn=churn, noise_scale=scale, reach=math.inf)
    got = sampler.step(ORACLE, process, x_t, t, s, None, noise)[0].item()
    gamma = min(churn, math.sqrt(2) - 1)
    assert got == pytest.approx(edm(x, t.sigma.item(), s.sigma.item(), gamma, scale * z), rel=1e-8, abs=1e-8)


def asked(sampler: Heun, process: GaussianProcess, t: float, s: float) -> list[float]:
    """The times that a step asks at."""
    seen: list[float] = []

    def denoise(x_t: torch.Tensor, level: Level, previous: Estimate | None = None) -> Estimate:
        seen.append(level.t.item())
        return ORACLE(x_t, level)

    levels = [process.schedule.at(scalar(value)) for value in (t, s)]
    sampler.step(denoise, process, torch.ones(1, 2), levels[0], levels[1], None, KeyedNoise.from_seeds([1]))
    return seen


def test_churn_acts_within_its_range() -> None:
    """Inside low <= sigma/alpha <= high the network is asked above t, at r (1 + g); outside, and at the schedule's end,
    at t itself (C22: S_tmin and S_tmax).
    """
    process = GaussianProcess(schedule=VarianceExploding(sigma_max=10.0))
    inside, outside = Heun(churn=0.2, low=4.0, high=5.0), Heun(churn=0.2, low=5.1)
    assert asked(inside, process, 0.4, 0.2) == pytest.approx([0.48, 0.2])
    assert asked(inside, process, 0.5, 0.2) == pytest.approx([0.6, 0.2])
    assert asked(inside, process, 0.3, 0.2) == [0.3, 0.2]
    assert asked(inside, process, 0.6, 0.2) == [0.6, 0.2]
    assert asked(outside, process, 0.5, 0.2) == [0.5, 0.2]
    assert asked(Heun(churn=0.2), process, 1.0, 0.2) == [1.0, 0.2]
    assert asked(Heun(churn=0.2), process, 0.95, 0.2) == pytest.approx([1.0, 0.2]), "not beyond the noisiest level"
    assert asked(Heun(churn=0.2), GaussianProcess(schedule=RectifiedFlow()), 1.0, 0.2) == [1.0, 0.2]


@pytest.mark.parametrize("churn", [0.1, 0.4])
def test_churn_keeps_the_spread_of_every_level(process: GaussianProcess, churn: float) -> None:
    """With a certain belief x_s has the mean alpha_s x0 and the variance sigma_s^2 after a churned step."""
    x0 = scalar(0.4).view(1, 1)
    oracle, sampler = MixtureOracle.finite(x0), Heun(churn=churn)
    t, s = (process.schedule.at(scalar(value)) for value in (0.6, 0.3))

    def end(x: torch.Tensor, z: float) -> float:
        return sampler.step(oracle, process, x, t, s, None, GivenNoise(value=scalar(z)))[0].item()

    mean = end(t.alpha * x0, 0.0)
    down, up = end(t.alpha * x0 + t.sigma, 0.0) - mean, end(t.alpha * x0, 1.0) - mean
    assert mean == pytest.approx((s.alpha * x0).item(), abs=1e-9)
    assert down**2 + up**2 == pytest.approx(s.sigma.item() ** 2, rel=1e-6)


def test_reach_holds_long_steps_back() -> None:
    """A step that divides sigma/alpha by at most 4 is EDM's; a longer one, and one from pure noise, stays finite."""
    process = GaussianProcess(schedule=VarianceExploding(sigma_max=10.0))
    x = torch.linspace(-2, 2, 5, dtype=torch.float64).view(1, 5)
    t = process.schedule.at(scalar(0.8))
    for end, same in ((0.3, True), (0.201, True), (0.1, False)):
        s = process.schedule.at(scalar(end))
        both = [sampler.step(ORACLE, process, x, t, s, None, QUIET)[0] for sampler in (Heun(), LETTER)]
        assert torch.allclose(*both, rtol=1e-12) is same
    flow = GaussianProcess(schedule=RectifiedFlow())
    t, s = (flow.schedule.at(scalar(value)) for value in (1.0, 0.5))
    got = Heun().step(ORACLE, flow, x, t, s, None, QUIET)[0]
    second = ORACLE(0.5 * x + 0.5 * 0.5, s).x0  # the first belief, at pure noise, is the mean 0.5
    torch.testing.assert_close(got, 0.5 * x + 0.5 * second, rtol=1e-12, atol=1e-12)


def test_it_takes_a_level_a_sample(process: GaussianProcess) -> None:
    """Samples at their own levels step as each would alone."""
    rows = [process.schedule.at(torch.tensor(t, dtype=torch.float64)) for t in ([0.9, 0.7], [0.6, 0.55])]
    x, noise = torch.tensor([[-1.2, 0.4], [0.8, 1.9]], dtype=torch.float64), KeyedNoise.from_seeds([0, 1])
    together = Heun().step(ORACLE, process, x, rows[0], rows[1], None, noise)[0]
    for i in range(2):
        own = slice(i, i + 1)
        alone = Heun().step(ORACLE, process, x[own], rows[0][i], rows[1][i], None, noise.rows(own))[0]
        torch.testing.assert_close(together[own], alone, rtol=1e-12, atol=1e-13)


@pytest.mark.filterwarnings("ignore")  # of diffusers, about numpy
@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
@pytest.mark.parametrize("num_steps", [5, 20])
def test_agrees_with_diffusers(spacing: str, num_steps: int) -> None:
    """diffusers' Heun on an exact denoiser at its own sigmas in float64, at every point of the grid, to 1e-6 of the
    sample's root mean square.
    """
    theirs: Any = HeunDiscreteScheduler(prediction_type="sample", beta_schedule="linear", timestep_spacing=spacing)
    theirs.set_timesteps(num_steps)
    theirs.sigmas = theirs.sigmas.double()
    largest = theirs.sigmas[0].item()
    process = GaussianProcess(schedule=VarianceExploding(sigma_max=largest))
    times = [sigma / largest for sigma in [theirs.sigmas[0].item(), *theirs.sigmas[1::2].tolist()]]
    x = largest * torch.tensor([[-1.5, 0.3, 1.1]], dtype=torch.float64)
    ours = [step.x for step in sample(LETTER, ORACLE, process, x, times, KeyedNoise.from_seeds([0]))]
    for i, t in enumerate(theirs.timesteps):
        level = process.schedule.at(theirs.sigmas[i] / largest)
        x = theirs.step(ORACLE(x, level).x0, t, x).prev_sample
        if i % 2 == 0 and i < len(theirs.timesteps) - 1:
            continue  # Euler's guess, which the next call makes good
        at = i // 2 + 1
        assert (ours[at] - x).square().mean().sqrt() <= 1e-6 * x.square().mean().sqrt()


def test_orders_are_told() -> None:
    """2, or 0 with churn."""
    assert (Heun().order, Heun(churn=0.1).order) == (2, 0)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"churn": -0.1}, "churn"),
        ({"churn": math.nan}, "churn"),
        ({"noise_scale": 0.0}, "noise_scale"),
        ({"low": 2.0, "high": 1.0}, "low to a high"),
        ({"low": -1.0}, "low to a high"),
        ({"reach": 0.5}, "reach"),
        ({"reach": math.nan}, "reach"),
    ],
    ids=str,
)
def test_refuses_what_is_no_step(settings: dict[str, float], match: str) -> None:
    """ValueError for negative churn, no noise, an empty range, and a weight below that of short steps."""
    with pytest.raises(ValueError, match=match):
        Heun(**settings)


def test_churn_makes_samples_of_the_law() -> None:
    """Mean and variance of 20 000 numbers after 40 churned steps: within 4 standard errors and 1 %."""
    process, count, noise = GaussianProcess(schedule=Cosine()), 20_000, KeyedNoise.from_seeds([5])
    start = process.prior(torch.zeros(1, count, dtype=torch.float64)).sample(noise.at(99))
    times = [1 - i / 40 for i in range(41)]
    *_, last = sample(Heun(churn=0.2), ORACLE, process, start, times, noise)
    assert last.x.mean().item() == pytest.approx(0.5, abs=4 * math.sqrt(0.25 / count) + 0.005)
    assert last.x.var().item() == pytest.approx(0.25, rel=4 * math.sqrt(2 / count) + 0.01)
