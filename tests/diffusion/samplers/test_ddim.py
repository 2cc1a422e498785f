"""DDIM against Euler's method, the ancestral chain, its paper's marginals and diffusers."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st

from unstir.diffusion.noise import KeyedNoise
from unstir.diffusion.parameterization import PredictFlow
from unstir.diffusion.process import GaussianProcess
from unstir.diffusion.samplers import DDIM, Ancestral, sample
from unstir.diffusion.schedule import RectifiedFlow, Tabulated, linear_betas
from unstir.diffusion.spacing import trailing
from unstir.verify.oracles import GaussianOracle, GivenNoise, MixtureOracle

ORACLE = GaussianOracle(mean=torch.tensor(0.5), variance=torch.tensor(0.25))
QUIET = GivenNoise(value=torch.zeros((), dtype=torch.float64))
LOUD = GivenNoise(value=torch.ones((), dtype=torch.float64))


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


@st.composite
def falling(draw: st.DrawFn) -> tuple[float, float]:
    s = draw(st.floats(0.01, 0.95))
    return draw(st.floats(s + 0.01, 0.99)), s


@given(falling(), st.floats(-3, 3))
def test_without_noise_it_is_eulers_method(process: GaussianProcess, times: tuple[float, float], x: float) -> None:
    """x/alpha moves by (sigma_s/alpha_s - sigma_t/alpha_t) eps: Euler's step in sigma/alpha (Song et al. 2021, Eq.
    14).
    """
    t, s = (process.schedule.at(scalar(value)) for value in times)
    x_t = torch.full((1, 1), x, dtype=torch.float64)
    got = DDIM().step(ORACLE, process, x_t, t, s, None, QUIET)[0]
    eps = (x_t - t.alpha * ORACLE(x_t, t).x0) / t.sigma
    euler = s.alpha * (x_t / t.alpha + (s.sigma / s.alpha - t.sigma / t.alpha) * eps)
    torch.testing.assert_close(got, euler, rtol=1e-10, atol=1e-10)


@given(falling(), st.floats(-3, 3))
def test_on_the_straight_path_it_is_eulers_method_in_time(times: tuple[float, float], x: float) -> None:
    """x_s = x_t + (s - t) velocity: DDIM is Euler on the flow, no twin is needed (DESIGN.md)."""
    process = GaussianProcess(schedule=RectifiedFlow())
    t, s = (process.schedule.at(scalar(value)) for value in times)
    x_t = torch.full((1, 1), x, dtype=torch.float64)
    velocity = PredictFlow().target(ORACLE(x_t, t).x0, x_t, t)
    got = DDIM().step(ORACLE, process, x_t, t, s, None, QUIET)[0]
    torch.testing.assert_close(got, x_t + (s.t - t.t) * velocity, rtol=1e-10, atol=1e-11)


@given(falling(), st.floats(-3, 3), st.floats(-3, 3))
def test_with_full_noise_it_is_the_ancestral_chain(
    process: GaussianProcess, times: tuple[float, float], x: float, z: float
) -> None:
    """eta = 1 has the mean and the variance of ``Ancestral``: the same x_s for every x_t and every z (C19, Eq. 16)."""
    t, s = (process.schedule.at(scalar(value)) for value in times)
    x_t, noise = torch.full((1, 1), x, dtype=torch.float64), GivenNoise(value=scalar(z))
    ours = DDIM(eta=1.0).step(ORACLE, process, x_t, t, s, None, noise)[0]
    ancestral = Ancestral().step(ORACLE, process, x_t, t, s, None, noise)[0]
    torch.testing.assert_close(ours, ancestral, rtol=1e-8, atol=1e-9)


@given(falling(), st.floats(0.01, 1))
def test_every_eta_keeps_the_marginals(process: GaussianProcess, times: tuple[float, float], eta: float) -> None:
    """With the truth for D, x_s ~ N(alpha_s x0, sigma_s^2) for every eta (Song et al. 2021, Lemma 1): up^2 + down^2 =
    sigma_s^2 (C22).
    """
    t, s = (process.schedule.at(scalar(value)) for value in times)
    x0 = scalar(0.4).view(1, 1)
    oracle, sampler = MixtureOracle.finite(x0), DDIM(eta=eta)
    centre, edge = t.alpha * x0, t.alpha * x0 + t.sigma
    mean = sampler.step(oracle, process, centre, t, s, None, QUIET)[0]
    down = sampler.step(oracle, process, edge, t, s, None, QUIET)[0] - mean
    up = sampler.step(oracle, process, centre, t, s, None, LOUD)[0] - mean
    assert mean.item() == pytest.approx((s.alpha * x0).item(), abs=1e-12)
    assert (up**2 + down**2).item() == pytest.approx(s.sigma.item() ** 2, rel=1e-9)


@given(falling(), st.floats(0.01, 1))
def test_eta_multiplies_the_standard_deviation(
    process: GaussianProcess, times: tuple[float, float], eta: float
) -> None:
    """k = eta sqrt(beta_tilde), so k^2 = eta^2 beta_tilde (Eq. 16; not eta beta_tilde, papers.md section 2)."""
    t, s = (process.schedule.at(scalar(value)) for value in times)
    x = torch.ones(1, 1, dtype=torch.float64)

    def spread(sampler: DDIM) -> float:
        return (
            sampler.step(ORACLE, process, x, t, s, None, LOUD)[0]
            - sampler.step(ORACLE, process, x, t, s, None, QUIET)[0]
        ).item()

    a = t.alpha / s.alpha
    beta_tilde = ((t.sigma**2 - (a * s.sigma) ** 2) * s.sigma**2 / t.sigma**2).item()
    assert spread(DDIM(eta=eta)) == pytest.approx(eta * math.sqrt(beta_tilde), rel=1e-8)


def test_without_eta_noise_is_not_asked_for() -> None:
    """eta = 0 does not depend on the seed."""
    process = GaussianProcess(schedule=RectifiedFlow())
    t, s = (process.schedule.at(scalar(value)) for value in (0.8, 0.3))
    x = torch.ones(2, 3)
    ends = [DDIM().step(ORACLE, process, x, t, s, None, KeyedNoise.from_seeds(seeds))[0] for seeds in ([1, 2], [3, 4])]
    assert torch.equal(*ends)


def diffusers_ddim(num_steps: int) -> DDIMScheduler:
    theirs = DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="linear",
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
        prediction_type="epsilon",
    )
    theirs.set_timesteps(num_steps)
    return theirs


@pytest.mark.filterwarnings("ignore")  # of diffusers, about numpy
@pytest.mark.parametrize("num_steps", [1, 10, 50])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_agrees_with_diffusers(num_steps: int, eta: float) -> None:
    """diffusers' DDIM on an exact denoiser, the whole way and with the same noise, to float32 accuracy (N divides T:
    C1).
    """
    process, theirs = GaussianProcess(schedule=Tabulated.from_betas(linear_betas(1000))), diffusers_ddim(num_steps)
    times = trailing(process.schedule, num_steps)
    assert [step + 1 for step in theirs.timesteps.tolist()] == [round(t * 1000) for t in times[:-1]]
    noise, x = KeyedNoise.from_seeds([1, 2]), torch.tensor([[-1.5, 0.3, 1.1], [0.9, -0.2, 2.0]])
    ours = [step.x for step in sample(DDIM(eta=eta), ORACLE, process, x, times, noise)]
    levels = process.schedule.at(torch.tensor(times, dtype=torch.float64))
    for i, step in enumerate(theirs.timesteps):
        eps = process.noise_of(ORACLE(x.double(), levels[i]).x0, x.double(), levels[i]).float()
        fresh = noise.at(i).normal(x) if eta and i < num_steps - 1 else torch.zeros_like(x)
        x = theirs.step(eps, step, x, eta=eta, variance_noise=fresh).prev_sample
        torch.testing.assert_close(ours[i + 1], x, rtol=5e-4, atol=5e-4)


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan, math.inf])
def test_refuses_an_eta_that_loses_the_marginals(eta: float) -> None:
    """ValueError outside [0, 1]."""
    with pytest.raises(ValueError, match="eta"):
        DDIM(eta=eta)
