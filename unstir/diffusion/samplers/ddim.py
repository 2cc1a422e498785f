"""DDIM: the reverse chain with as much or as little fresh noise as one likes, and the way back from data to noise.

Knows: DDIM's step for Gaussian processes, and how its steps without noise are undone.
Does not know: spacings, guidance, networks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from unstir.diffusion.denoiser import Denoiser
from unstir.diffusion.process import GaussianProcess, require_data
from unstir.diffusion.samplers.base import Place, Sampler, Step, weighted
from unstir.diffusion.schedule import Level, levels_at
from unstir.typing import Noise, X


@dataclass(frozen=True, kw_only=True)
class DDIM(Sampler[None]):
    """Denoising diffusion implicit model: first order, one evaluation per step.

    x_s = alpha_s x0 + sqrt(sigma_s^2 - k^2) eps + k z,   eps = (x_t - alpha_t x0)/sigma_t,   z ~ N(0, I)
    k = eta (sigma_s/sigma_t) sqrt(sigma_t^2 - (alpha_t/alpha_s)^2 sigma_s^2)

    Args:
        eta: scales the *standard deviation* k; 0 is deterministic and equals Euler's method in sigma/alpha, 1 has the
            same mean and variance as ``Ancestral``.

    Raises:
        ValueError: if eta is outside [0, 1].

    Source: Song et al. 2021, arXiv:2010.02502, Eq. 12 with k from Eq. 16.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        """Refuse an eta for which the step would not keep the marginals."""
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be between 0 (deterministic) and 1 (ancestral), got {self.eta}")

    @property
    def order(self) -> int:
        """1 without fresh noise."""
        return 0 if self.eta else 1

    def start(self) -> None:
        """No memory."""

    def step(
        self, denoise: Denoiser, process: GaussianProcess, x_t: X, t: Level, s: Level, memory: None, noise: Noise
    ) -> tuple[X, None]:
        """One step from level t to level s."""
        terms = [x_t, denoise(x_t, t), *([noise.normal(x_t)] if self.eta else [])]
        return weighted(terms, [s, t], lambda places: _weights(places, self.eta)), None


def encode(
    denoise: Denoiser, process: GaussianProcess, x: X, times: Sequence[float], *, iterations: int = 0
) -> Iterator[Step]:
    """Walk a grid of times from data to noise: to the x from which DDIM without fresh noise leads back.

    From level t to the noisier level s: x_s = alpha_s x0 + sigma_s eps, with x0 and eps believed at t. That is Euler's
    method walked backwards, and misses by as much as a step is long: the way there and back errs with order 1. Each
    iteration asks at s, where DDIM will ask on its way back, and makes good what its step misses x_t by:

    x_s <- x_s + k (x_t - DDIM's step from x_s),   k = 1/(a + b alpha_s/(alpha_s^2 + sigma_s^2)),
    DDIM's step = a x_s + b x0(x_s),   a = sigma_t/sigma_s,   b = alpha_t - a alpha_s

    (k is exact for data of N(0, I).) A denoiser that lets its beliefs jump may need more iterations than it is worth.

    At the data themselves, sigma_t = 0, there is no eps to be believed in: the step from there starts at the first
    noisy level, with x_s = alpha_s x_t/alpha_t, and takes at least one iteration.

    Args:
        denoise: what is believed; it is told of no earlier belief.
        process: of which x is a sample.
        x: the sample at ``times[0]``.
        times: rising strictly, in [0, 1]; a sampler's grid from its end to its start.
        iterations: how often each step is made good.

    Raises:
        ValueError: if there are fewer than two times, they do not rise strictly, iterations is negative, or x holds no
            finite floating-point numbers.

    Source: Song et al. 2021, arXiv:2010.02502, Eq. 13-14 and Sec. 5.4; Dhariwal & Nichol 2021, arXiv:2105.05233
        (code, "ddim_reverse_sample"); Pan et al. 2023, arXiv:2309.04907 (iterations).
    """
    require_data(x)
    if len(times) < 2 or any(t >= s for t, s in itertools.pairwise(times)):
        raise ValueError(f"an encoding walks at least two times that rise strictly, got {list(times)}")
    if iterations < 0:
        raise ValueError(f"a step is made good 0 times or more, got iterations = {iterations}")
    yield Step(index=0, t=times[0], x=x, belief=None)
    for i, (t, s) in enumerate(itertools.pairwise(levels_at(process.schedule, times))):
        with torch.no_grad():
            x_t, is_data = x, t.sigma.item() == 0
            if is_data:
                belief = None
                x = (s.alpha / t.alpha).item() * x_t
            else:
                belief = denoise(x_t, t)
                x = weighted([x_t, belief], [s, t], _weights)
            for _ in range(max(iterations, int(is_data))):
                belief = denoise(x, s)
                x = weighted([x, x_t, belief], [t, s], _made_good)
        yield Step(index=i + 1, t=times[i + 1], x=x, belief=belief)


def _made_good(places: Sequence[Place]) -> tuple[float, float, float]:
    """The shares of x_s, x_t and x0 after one iteration."""
    (_, _), (alpha_s, sigma_s) = places
    kept, believed = _weights(places)
    gain = 1 / (kept + believed * alpha_s / (alpha_s**2 + sigma_s**2))
    return 1 - gain * kept, gain, -gain * believed


def _weights(places: Sequence[Place], eta: float = 0.0) -> tuple[float, ...]:
    """The shares of x_t, x0 and, with eta, z in x_s."""
    (alpha_s, sigma_s), (alpha_t, sigma_t) = places
    fresh = 0.0
    if eta:  # alpha_s may be 0 where the way back is undone
        fresh = eta * sigma_s / sigma_t * math.sqrt(max(sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2, 0))
    ratio = math.sqrt(max(sigma_s**2 - fresh**2, 0)) / sigma_t
    known = ratio, alpha_s - ratio * alpha_t
    return (*known, fresh) if eta else known
