"""DDIM against Euler's method, the ancestral chain, k-diffusion's formulae, its paper's marginals and diffusers; and
its steps undone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from unstir.diffusion.noise import KeyedNoise
from unstir.diffusion.parameterization import PredictFlow
from unstir.diffusion.process import Estimate, GaussianProcess
from unstir.diffusion.samplers import DDIM, SAMPLERS, Ancestral, encode, sample
from unstir.diffusion.schedule import Cosine, Level, RectifiedFlow, Tabulated, VarianceExploding, linear_betas
from unstir.diffusion.spacing import trailing
from unstir.verify.oracles import GaussianOracle, GivenNoise, MixtureOracle, observed_orders

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


@given(falling(), st.floats(-3, 3), st.floats(-2, 2), st.booleans())
def test_the_euler_samplers_are_ddim(
    process: GaussianProcess, times: tuple[float, float], x: float, z: float, is_ancestral: bool
) -> None:
    """Euler's method in sigma/alpha, plain and ancestral as in k-diffusion, are DDIM with eta 0 and 1 (C22):
    up = sqrt(r_s^2 (r_t^2 - r_s^2)/r_t^2), down = sqrt(r_s^2 - up^2), y_s = y + (down - r_t) (y - x0)/r_t + up z.
    """
    t, s = (process.schedule.at(scalar(value)) for value in times)
    r_t, r_s, y = (t.sigma / t.alpha).item(), (s.sigma / s.alpha).item(), x / t.alpha.item()
    x_t = torch.full((1, 1), x, dtype=torch.float64)
    slope = (y - ORACLE(x_t, t).x0.item()) / r_t
    up = min(r_s, math.sqrt(r_s**2 * (r_t**2 - r_s**2) / r_t**2)) if is_ancestral else 0.0
    down = math.sqrt(r_s**2 - up**2)
    assert up**2 + down**2 == pytest.approx(r_s**2)
    expected = s.alpha.item() * (y + slope * (down - r_t) + up * z)
    sampler = SAMPLERS["euler_ancestral" if is_ancestral else "euler"]()
    assert sampler == DDIM(eta=float(is_ancestral))
    got = sampler.step(ORACLE, process, x_t, t, s, None, GivenNoise(value=scalar(z)))[0].item()
    assert got == pytest.approx(expected, rel=1e-7, abs=1e-7)


@pytest.mark.filterwarnings("ignore")  # of diffusers, about numpy
@pytest.mark.parametrize("num_steps", [5, 20])
def test_euler_agrees_with_diffusers(num_steps: int) -> None:
    """diffusers' Euler on an exact denoiser at its own sigmas in float64, to 1e-6 of the sample's root mean square."""
    theirs: Any = EulerDiscreteScheduler(prediction_type="sample", beta_schedule="linear")
    theirs.set_timesteps(num_steps)
    theirs.sigmas = theirs.sigmas.double()
    largest = theirs.sigmas[0].item()
    process = GaussianProcess(schedule=VarianceExploding(sigma_max=largest))
    times = (theirs.sigmas / largest).tolist()
    x = largest * torch.tensor([[-1.5, 0.3, 1.1]], dtype=torch.float64)
    ours = sample(DDIM(), ORACLE, process, x, times, KeyedNoise.from_seeds([0]))
    next(ours)
    for i, (t, step) in enumerate(zip(theirs.timesteps, ours, strict=True)):
        theirs.scale_model_input(x, t)
        x = theirs.step(ORACLE(x, process.schedule.at(scalar(times[i]))).x0.double(), t, x).prev_sample.double()
        assert (step.x - x).square().mean().sqrt() <= 1e-6 * x.square().mean().sqrt()


# The way back.

MIXTURE = MixtureOracle(
    means=torch.tensor([[-0.8], [0.9]], dtype=torch.float64),
    variances=torch.tensor([0.3, 0.15], dtype=torch.float64),
    weights=torch.tensor([0.4, 0.6], dtype=torch.float64),
)
DATA = torch.tensor([[-1.1], [-0.6], [0.5], [1.2]], dtype=torch.float64)


def encoded(law: Any, process: GaussianProcess, x: torch.Tensor, times: Sequence[float], iterations: int = 0) -> Any:
    *_, last = encode(law, process, x, times[::-1], iterations=iterations)
    return last.x


def there_and_back(law: Any, process: GaussianProcess, num_steps: int, iterations: int) -> float:
    """The largest error of data that were encoded, and decoded again."""
    times = trailing(process.schedule, num_steps)
    x = encoded(law, process, DATA, times, iterations)
    *_, back = sample(DDIM(), law, process, x, times, KeyedNoise.from_seeds(range(4)))
    return (back.x - DATA).abs().max().item()


@pytest.mark.parametrize("law", [ORACLE, MIXTURE], ids=["gaussian", "mixture"])
def test_encoding_is_undone_with_first_order(law: Any) -> None:
    """Without iterations the error there and back falls with order 1 in the length of steps."""
    process = GaussianProcess(schedule=Cosine())
    off = [there_and_back(law, process, num_steps, 0) for num_steps in (40, 80, 160)]
    assert off[-1] < 0.1
    assert observed_orders(off)[-1] == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("law", [ORACLE, MIXTURE], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("end", [Cosine(), RectifiedFlow()], ids=["cosine", "flow"])
def test_iterations_make_it_exact(law: Any, end: Any) -> None:
    """Each iteration brings the way there and back closer, to 1e-6 after some."""
    process = GaussianProcess(schedule=end)
    off = [there_and_back(law, process, 50, iterations) for iterations in (0, 2, 5, 40)]
    assert off[0] > off[1] > off[2] > off[3]
    assert off[3] < 1e-6


def test_encoded_data_are_standard_normal() -> None:
    """4000 numbers of a Gaussian law become N(0, 1): mean and variance within 4 standard errors and 1 %."""
    process, count = GaussianProcess(schedule=Cosine()), 4000
    data = ORACLE.draw(torch.zeros(1, count, dtype=torch.float64), KeyedNoise.from_seeds([1]))
    z = encoded(ORACLE, process, data, trailing(process.schedule, 100), 2)
    assert z.mean().item() == pytest.approx(0, abs=4 / math.sqrt(count) + 0.01)
    assert z.var().item() == pytest.approx(1, abs=4 * math.sqrt(2 / count) + 0.01)


def test_encoding_follows_the_flow_between_noisy_levels(process: GaussianProcess) -> None:
    """From t = 0.2 to 0.8 it tends to the exact flow with order 1."""
    ends = process.schedule.at(torch.tensor([0.2, 0.8], dtype=torch.float64))
    exact = ORACLE.flow(DATA, ends[0], ends[1])
    off = []
    for count in (64, 128):
        times = [0.8 - 0.6 * i / count for i in range(count)] + [0.2]
        off.append((encoded(ORACLE, process, DATA, times) - exact).abs().max().item())
    assert observed_orders(off)[0] == pytest.approx(1, abs=0.25)


def test_encoding_asks_at_levels_not_at_their_numbers() -> None:
    """Without iterations it asks at the level where a step starts, from the data at the first noisy one; with them at
    the level where it ends as well (C13). Steps are numbered as in ``sample``.
    """
    process, times = GaussianProcess(schedule=Cosine()), (0.0, 0.25, 0.5, 1.0)
    asked: list[float] = []

    def denoise(x_t: torch.Tensor, level: Level, previous: Estimate | None = None) -> Estimate:
        asked.append(level.t.item())
        return ORACLE(x_t, level)

    steps = list(encode(denoise, process, DATA, times))
    assert asked == [0.25, 0.25, 0.5]
    assert [(step.index, step.t) for step in steps] == list(enumerate(times))
    assert steps[0].x is DATA
    assert steps[0].belief is None
    asked.clear()
    list(encode(denoise, process, DATA, times, iterations=2))
    assert asked == [0.25, 0.25, 0.25, 0.5, 0.5, 0.5, 1.0, 1.0]


@pytest.mark.parametrize("times", [(), (0.5,), (0.5, 0.5), (0.5, 0.4), (0.0, 0.5, 0.3), (0.5, 1.1), (0.1, math.nan)])
def test_refuses_to_encode_on_a_grid_that_does_not_rise(times: tuple[float, ...]) -> None:
    """ValueError for fewer than two times, times that do not rise strictly, or leave [0, 1]."""
    with pytest.raises(ValueError, match="times"):
        list(encode(ORACLE, GaussianProcess(schedule=Cosine()), DATA, times))


def test_refuses_to_encode_what_is_no_data() -> None:
    """ValueError for numbers that are not finite, and for a negative number of iterations."""
    process = GaussianProcess(schedule=Cosine())
    with pytest.raises(ValueError, match="finite"):
        list(encode(ORACLE, process, DATA * math.nan, (0.0, 1.0)))
    with pytest.raises(ValueError, match="iterations"):
        list(encode(ORACLE, process, DATA, (0.0, 1.0), iterations=-1))
