"""Ancestral sampling: the chain's own draw, the law of what it makes, and diffusers' DDPM step."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDPMScheduler

from unstir.diffusion.noise import KeyedNoise
from unstir.diffusion.process import Estimate, GaussianProcess
from unstir.diffusion.samplers import Ancestral, sample
from unstir.diffusion.schedule import Level, Schedule, Tabulated, linear_betas
from unstir.diffusion.spacing import trailing
from unstir.verify.oracles import GaussianOracle, GivenNoise, MixtureOracle, observed_orders

ORACLE = GaussianOracle(mean=torch.tensor(0.5), variance=torch.tensor(0.25))
DDPM = GaussianProcess(schedule=Tabulated.from_betas(linear_betas(1000)))


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def test_a_step_is_a_draw_from_the_reverse_chain(process: GaussianProcess) -> None:
    """x_s = mean + std z of p(x_s | x_t), with the variance the denoiser asks for (Ho et al. 2020, Algorithm 2)."""
    t, s = (process.schedule.at(scalar(value)) for value in (0.7, 0.4))
    x, noise = torch.linspace(-2, 2, 6, dtype=torch.float64).view(2, 3), KeyedNoise.from_seeds([1, 2])
    for fraction in (None, 1.0, 0.3):

        def denoise(x_t: torch.Tensor, level: Level, fraction: float | None = fraction) -> Estimate:
            return Estimate(x0=ORACLE(x_t, level).x0, variance_fraction=fraction)

        got, memory = Ancestral().step(denoise, process, x, t, s, None, noise)
        law = process.reverse(x, t, s, denoise(x, t))
        torch.testing.assert_close(got, law.mean + law.std * noise.normal(x), rtol=1e-14, atol=0)
        assert memory is None


def test_the_truth_brings_every_marginal(process: GaussianProcess) -> None:
    """With D exact for one point, x_s ~ N(alpha_s x0, sigma_s^2) at every step: exact coefficients of x_t and z."""
    x0 = scalar(0.5).view(1, 1)
    oracle, times = MixtureOracle.finite(x0), (1.0, 0.9, 0.5, 0.45, 0.1)
    levels = process.schedule.at(torch.tensor(times, dtype=torch.float64))
    mean, variance = levels.alpha[0] * x0, levels.sigma[0] ** 2
    for i in range(4):
        quiet, loud = (GivenNoise(value=scalar(value)) for value in (0.0, 1.0))
        step = (process, levels[i], levels[i + 1], None)
        still = Ancestral().step(oracle, step[0], mean, *step[1:], quiet)[0]
        slope = Ancestral().step(oracle, step[0], mean + 1, *step[1:], quiet)[0] - still
        spread = Ancestral().step(oracle, step[0], mean, *step[1:], loud)[0] - still
        mean, variance = still, slope**2 * variance + spread**2
        assert mean.item() == pytest.approx((levels.alpha[i + 1] * x0).item(), rel=1e-11)
        assert variance.item() == pytest.approx(levels.sigma[i + 1].item() ** 2, rel=1e-10)


def moments(schedule: Schedule, num_steps: int) -> tuple[float, float]:
    """Mean and variance of what the chain makes of the prior, exactly: every step is affine in x and in the noise."""
    process, times = GaussianProcess(schedule=schedule), trailing(schedule, num_steps)
    probe = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    levels = schedule.at(torch.tensor(times, dtype=torch.float64))
    mean, variance = 0.0, 1.0
    for i in range(num_steps):
        still, loud = (
            Ancestral().step(ORACLE, process, probe, levels[i], levels[i + 1], None, GivenNoise(value=scalar(value)))[0]
            for value in (0.0, 1.0)
        )
        offset, slope, noise = still[0].item(), (still[1] - still[0]).item(), (loud - still)[0].item()
        mean, variance = offset + slope * mean, slope**2 * variance + noise**2
    return mean, variance


def test_the_chain_tends_to_the_law_of_the_data(schedule: Schedule) -> None:
    """Mean and variance of samples tend to those of the data as steps grow, the variance with first order in 1/T."""
    made = [moments(schedule, num_steps) for num_steps in (50, 100, 200)]
    assert made[-1][0] == pytest.approx(0.5, abs=0.02)
    assert made[-1][1] == pytest.approx(0.25, abs=0.03)
    assert observed_orders([0.25 - variance for _, variance in made])[-1] == pytest.approx(1, abs=0.25)


def test_a_thousand_steps_of_ddpm_make_the_data() -> None:
    """The full chain on DDPM's table: mean and variance of 4000 samples within 4 standard errors (and the 1/T of the
    chain).
    """
    noise = KeyedNoise.from_seeds([3])
    x = DDPM.prior(torch.zeros(1, 4000, dtype=torch.float64)).sample(noise)
    *_, last = sample(Ancestral(), ORACLE, DDPM, x, trailing(DDPM.schedule, 1000), noise)
    mean, variance = moments(DDPM.schedule, 1000)
    assert last.x.mean().item() == pytest.approx(mean, abs=4 * math.sqrt(0.25 / 4000))
    assert last.x.var().item() == pytest.approx(variance, rel=4 * math.sqrt(2 / 4000))
    assert (mean, variance) == pytest.approx((0.5, 0.25), rel=0.03)


@pytest.mark.filterwarnings("ignore")  # of diffusers, about numpy
@pytest.mark.parametrize(("variance_type", "fraction"), [("fixed_small", None), ("fixed_large", 1.0)])
@pytest.mark.parametrize("num_steps", [1000, 50])
def test_agrees_with_diffusers(variance_type: str, fraction: float | None, num_steps: int) -> None:
    """diffusers' DDPM step, with the same noise, to float32 accuracy: full and strided chain, both fixed variances (C6,
    C7).
    """
    theirs = DDPMScheduler(
        num_train_timesteps=1000,
        beta_schedule="linear",
        variance_type=variance_type,
        clip_sample=False,
        prediction_type="sample",
        timestep_spacing="trailing",
    )
    theirs.set_timesteps(num_steps)
    times = trailing(DDPM.schedule, num_steps)
    levels = DDPM.schedule.at(torch.tensor(times, dtype=torch.float64))
    x = torch.linspace(-1.5, 1.5, 6).view(2, 3)
    for i in (0, 1, num_steps // 2, num_steps - 2):
        step = theirs.timesteps[i]
        assert step.item() + 1 == round(times[i] * 1000)
        belief = ORACLE(x, levels[i]).x0
        expected = theirs.step(belief, step, x, generator=torch.Generator().manual_seed(i)).prev_sample
        noise = GivenNoise(value=torch.randn(x.shape, generator=torch.Generator().manual_seed(i)))

        def denoise(x_t: torch.Tensor, level: Level, belief: torch.Tensor = belief) -> Estimate:
            return Estimate(x0=belief, variance_fraction=fraction)

        got = Ancestral().step(denoise, DDPM, x, levels[i], levels[i + 1], None, noise)[0]
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
