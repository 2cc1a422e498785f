"""PLMS: the noise of the last steps, with the weights of equal steps.

Knows: Adams and Bashforth's weights.
Does not know: grids, guidance, networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unstir.diffusion.denoiser import Denoiser
from unstir.diffusion.process import GaussianProcess
from unstir.diffusion.samplers.base import Known, Place, Sampler, along_noise
from unstir.diffusion.schedule import Level
from unstir.typing import Noise, X

ADAMS_BASHFORTH: tuple[tuple[float, ...], ...] = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""The weights of the value here and of those one, two, ... equal steps before, for as many values as are known."""


@dataclass(frozen=True, kw_only=True)
class PLMS(Sampler[tuple[Known, ...]]):
    """Pseudo linear multistep: DDIM's transfer with Adams-Bashforth's mean of up to four noises; one evaluation a step.

    eps' = (55 eps - 59 eps_1 + 37 eps_2 - 9 eps_3)/24
    x_s = (alpha_s/alpha_t) x_t + (sigma_s - sigma_t alpha_s/alpha_t) eps'

    The first steps know of fewer noises and take the weights of a lower order; the paper's Runge-Kutta steps, which
    would cost four evaluations each, are left out. The weights are those of equal steps whatever the steps are, and the
    transfer is exact for one noise alone: with N steps the error falls as 1/N^2 on grids whose steps change smoothly,
    and as 1/N where long and short ones alternate.

    Source: Liu et al. 2022, arXiv:2202.09778, Eqs. 11 and 12.
    """

    @property
    def order(self) -> int:
        """1, which holds on every grid; 2 on smooth ones."""
        return 1

    def start(self) -> tuple[Known, ...]:
        """No step before the first."""
        return ()

    def step(
        self,
        denoise: Denoiser,
        process: GaussianProcess,
        x_t: X,
        t: Level,
        s: Level,
        memory: tuple[Known, ...],
        noise: Noise,
    ) -> tuple[X, tuple[Known, ...]]:
        """One step from level t to level s."""
        x0 = denoise(x_t, t).x0
        known = (Known(level=t, value=process.noise_of(x0, x_t, t)), *memory)
        return along_noise(x0, s, known, _shares), known[:3]


def _shares(places: Sequence[Place]) -> tuple[float, ...]:
    return ADAMS_BASHFORTH[len(places) - 2][1:]  # places: s, t, and the steps before
