"""DDIM: the reverse chain with as much or as little fresh noise as one likes.

Knows: DDIM's step for Gaussian processes.
Does not know: grids, guidance, networks.
"""

from __future__ import annotations

from dataclasses import dataclass

from unstir.diffusion.denoiser import Denoiser
from unstir.diffusion.process import GaussianProcess
from unstir.diffusion.samplers.base import Sampler
from unstir.diffusion.schedule import Level, spread
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
        x0 = denoise(x_t, t).x0
        a = t.alpha / s.alpha
        fresh = self.eta * s.sigma / t.sigma * (t.sigma**2 - (a * s.sigma) ** 2).clamp(min=0).sqrt()
        kept = (s.sigma**2 - fresh**2).clamp(min=0).sqrt()
        x_s = spread(s.alpha, x_t) * x0 + spread(kept, x_t) * process.noise_of(x0, x_t, t)
        if self.eta:
            x_s = x_s + spread(fresh, x_t) * noise.normal(x_t)
        return x_s, None
