"""Ancestral sampling: the reverse chain itself.

Knows: one draw from p(x_s | x_t).
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
class Ancestral(Sampler[None]):
    """x_s ~ p(x_s | x_t), the learned reverse chain, on any grid.

    Source: Ho et al. 2020, arXiv:2006.11239, Algorithm 2.
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
        """One draw."""
        return process.reverse(x_t, t, s, denoise(x_t, t)).sample(noise), None
