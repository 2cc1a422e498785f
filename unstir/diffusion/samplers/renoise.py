"""Renoise: to the belief, and back to the next level with fresh noise.

Knows: one draw from q(x_s | x0) at the belief.
Does not know: whether the process is Gaussian.
"""

from __future__ import annotations

from dataclasses import dataclass

from unstir.diffusion.denoiser import Denoiser
from unstir.diffusion.process import Process
from unstir.diffusion.samplers.base import Sampler
from unstir.diffusion.schedule import Level
from unstir.typing import Noise, X


@dataclass(frozen=True, kw_only=True)
class Renoise(Sampler[None]):
    """x_s ~ q(x_s | x0 = belief): multistep sampling of consistency models; nothing of x_t's noise is kept.

    Right for networks that map x_t to one sample of the data (consistency models, and distilled ones). An ordinary
    denoiser's belief is a mean of many, which is smoother than the data: its samples lose spread.

    Source: Song et al. 2023, arXiv:2303.01469, Algorithm 1.
    """

    @property
    def order(self) -> int:
        """0: it draws."""
        return 0

    def start(self) -> None:
        """No memory."""

    def step(
        self, denoise: Denoiser, process: Process, x_t: X, t: Level, s: Level, memory: None, noise: Noise
    ) -> tuple[X, None]:
        """One belief, one draw."""
        return process.marginal(denoise(x_t, t).x0, s).sample(noise), None
