"""What tests against diffusers share: their steps and ours, on their levels, with a denoiser that is exact and not
linear.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from unstir.diffusion.denoiser import Denoiser
from unstir.diffusion.noise import KeyedNoise
from unstir.diffusion.process import GaussianProcess
from unstir.diffusion.samplers import Sampler, sample
from unstir.diffusion.schedule import Level, Tabulated
from unstir.verify.oracles import MixtureOracle

LAW = MixtureOracle(
    means=torch.tensor([[-0.8, 0.3, 0.5], [0.9, -0.2, 0.1]], dtype=torch.float64),
    variances=torch.tensor([0.3, 0.15], dtype=torch.float64),
    weights=torch.tensor([0.4, 0.6], dtype=torch.float64),
)
START = torch.tensor([[-1.5, 0.3, 1.1], [0.2, 1.4, -0.6], [0.9, -2.0, 0.1]], dtype=torch.float64)


class Walks:
    """One walk on the levels of a scheduler that keeps sigma/alpha in ``sigmas``, theirs and ours.

    Their table is made float64 (values as they are), and ours is made of it: what differs then is a formula.
    """

    def __init__(self, theirs: Any, num_steps: int, law: Denoiser = LAW) -> None:
        self.law = law
        theirs.set_timesteps(num_steps)
        theirs.sigmas = theirs.sigmas.double()
        self.theirs = theirs
        ratios = theirs.sigmas[theirs.sigmas > 0]
        self.process = GaussianProcess(schedule=Tabulated(table=tuple((1 / (1 + ratios.flip(0) ** 2)).tolist())))
        count = len(ratios)
        self.times = [(count - i) / count for i in range(count)] + [0.0] * (theirs.sigmas[-1].item() == 0)
        self.levels = self.process.schedule.at(torch.tensor(self.times, dtype=torch.float64))

    def path(self) -> list[Tensor]:
        """Their samples, at ``times``."""
        xs = [START]
        for i, t in enumerate(self.theirs.timesteps):
            xs.append(self.theirs.step(self.law(xs[-1], self.levels[i]).x0, t, xs[-1]).prev_sample)
        return xs

    def ours(self, sampler: Sampler[Any], every: slice = slice(None)) -> list[Tensor]:
        """Our samples, at some or all of ``times``."""
        noise = KeyedNoise.from_seeds(range(len(START)))
        return [step.x for step in sample(sampler, self.law, self.process, START, self.times[every], noise)]


@pytest.fixture(scope="session")
def walks() -> type[Walks]:
    """See ``Walks``."""
    return Walks


def distance(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The largest root-mean-square difference of two paths, relative to that of the sample there."""
    return max(((x - y).square().mean() / y.square().mean()).sqrt().item() for x, y in zip(ours, theirs, strict=True))


@pytest.fixture(scope="session")
def apart() -> Callable[[Sequence[Tensor], Sequence[Tensor]], float]:
    """See ``distance``."""
    return distance


Values = Sequence[tuple[int, float]]
"""Places on a grid, and a value at each."""


def by_quadrature(levels: Level, start: int, end: int, values: Values, kind: str) -> float:
    """What a step between two levels adds, for the polynomial P in half the log-SNR through some values; numerically.

    alpha_s times the integral of exp(l - l_s) P(l) dl for a belief, -sigma_s times that of exp(l_s - l) P(l) dl for a
    noise, by 40 Gauss-Legendre points.
    """
    half, total = [value / 2 for value in levels.log_snr.tolist()], 0.0
    for node, weight in zip(*(part.tolist() for part in numpy.polynomial.legendre.leggauss(40)), strict=True):
        here = half[start] + (half[end] - half[start]) * (node + 1) / 2
        value = sum(
            y * math.prod((here - half[j]) / (half[i] - half[j]) for j, _ in values if j != i) for i, y in values
        )
        total += weight / 2 * (half[end] - half[start]) * value * math.exp(abs(here - half[end]) * SIGNS[kind])
    return levels.alpha[end].item() * total if kind == "belief" else -levels.sigma[end].item() * total


SIGNS = {"belief": -1, "noise": 1}


@pytest.fixture(scope="session")
def integral() -> Callable[..., float]:
    """See ``by_quadrature``."""
    return by_quadrature
