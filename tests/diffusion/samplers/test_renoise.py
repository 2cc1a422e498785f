"""Renoise: the draw of consistency models, for reals and for bits."""

from __future__ import annotations

import math

import pytest
import torch

from unstir.diffusion.noise import KeyedNoise
from unstir.diffusion.process import BinomialProcess, Estimate, GaussianProcess
from unstir.diffusion.samplers import Renoise, sample
from unstir.diffusion.schedule import Cosine, Level
from unstir.diffusion.spacing import trailing
from unstir.verify.oracles import GaussianOracle, MixtureOracle

ORACLE = GaussianOracle(mean=torch.tensor(0.5), variance=torch.tensor(0.25))


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def test_a_step_is_a_draw_from_the_marginal(process: GaussianProcess) -> None:
    """x_s = alpha_s x0 + sigma_s z, with z the noise of the step (Song et al. 2023, Algorithm 1)."""
    t, s = (process.schedule.at(scalar(value)) for value in (0.7, 0.4))
    x, noise = torch.linspace(-2, 2, 6, dtype=torch.float64).view(2, 3), KeyedNoise.from_seeds([1, 2])
    got, memory = Renoise().step(ORACLE, process, x, t, s, None, noise)
    expected = s.alpha * ORACLE(x, t).x0 + s.sigma * noise.normal(x)
    torch.testing.assert_close(got, expected, rtol=1e-14, atol=1e-14)
    assert memory is None
    assert Renoise().order == 0


def test_a_consistency_function_makes_the_law_whatever_the_steps() -> None:
    """With a map to data (the end of the exact flow) in place of a mean, samples have the law of the data after 1, 2
    and 6 steps; with the mean they lose spread (4 standard errors).
    """
    process, count = GaussianProcess(schedule=Cosine()), 20_000
    end = process.schedule.at(scalar(0.0))

    def maps(x_t: torch.Tensor, level: Level, previous: Estimate | None = None) -> Estimate:
        return Estimate(x0=ORACLE.flow(x_t, level, end))

    noise = KeyedNoise.from_seeds([3])
    start = process.prior(torch.zeros(1, count, dtype=torch.float64)).sample(noise.at(99))
    for num_steps in (1, 2, 6):
        *_, last = sample(Renoise(), maps, process, start, trailing(process.schedule, num_steps), noise)
        assert last.x.mean().item() == pytest.approx(0.5, abs=4 * math.sqrt(0.25 / count))
        assert last.x.var().item() == pytest.approx(0.25, rel=4 * math.sqrt(2 / count))
    *_, last = sample(Renoise(), ORACLE, process, start, trailing(process.schedule, 6), noise)
    assert last.x.var().item() < 0.2


def test_it_serves_bits_as_well() -> None:
    """x_s is 0 or 1, and 1 as often as q(x_s | x0) says where the belief is certain (4 standard errors)."""
    process, count = BinomialProcess(schedule=Cosine(), rate=0.3), 20_000
    t, s = (process.schedule.at(scalar(value)) for value in (0.8, 0.5))
    x0 = torch.ones(1, count, dtype=torch.float64)

    def certain(x_t: torch.Tensor, level: Level, previous: Estimate | None = None) -> Estimate:
        return Estimate(x0=x0)

    got = Renoise().step(certain, process, torch.zeros_like(x0), t, s, None, KeyedNoise.from_seeds([4]))[0]
    kept = s.alpha.item() ** 2
    chance = kept + (1 - kept) * 0.3
    assert set(got.unique().tolist()) == {0.0, 1.0}
    assert got.mean().item() == pytest.approx(chance, abs=4 * math.sqrt(chance * (1 - chance) / count))


def test_a_memorising_denoiser_brings_back_its_points() -> None:
    """With one point for data every step is exact, and the end is the point."""
    process, point = GaussianProcess(schedule=Cosine()), torch.tensor([[0.3, -0.8]])
    start = torch.randn(1, 2, generator=torch.Generator().manual_seed(0))
    times = trailing(process.schedule, 4)
    *_, last = sample(Renoise(), MixtureOracle.finite(point), process, start, times, KeyedNoise.from_seeds([1]))
    torch.testing.assert_close(last.x, point)
