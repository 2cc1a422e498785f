"""DPM-Solver++: multistep integration of the belief about x0 over half the log-SNR.

Knows: the second-order multistep formula for Gaussian processes.
Does not know: grids, guidance, networks.
"""

from __future__ import annotations

from dataclasses import dataclass

from unstir.diffusion.denoiser import Denoiser
from unstir.diffusion.process import GaussianProcess
from unstir.diffusion.samplers.base import Sampler
from unstir.diffusion.schedule import Level, spread
from unstir.typing import Noise, Time, X


@dataclass(frozen=True, kw_only=True, eq=False)
class Before:
    """What the step before this one believed, and where it stood."""

    x0: X
    half_log_snr: Time


@dataclass(frozen=True, kw_only=True)
class DPMSolver2M(Sampler[Before | None]):
    """DPM-Solver++(2M): second order, one evaluation per step; the first step is of first order.

    With l half the log-SNR, h = l_s - l_t and r = (l_t - l_before)/h:
    x_s = (sigma_s/sigma_t) x_t + (alpha_s - sigma_s alpha_t/sigma_t) D,   D = (1 + 1/(2r)) x0 - 1/(2r) x0_before

    (alpha_s - sigma_s alpha_t/sigma_t is the paper's -alpha_s (exp(-h) - 1), written so that alpha_t = 0 is no
    special case.)

    Source: Lu et al. 2022, arXiv:2211.01095, Algorithm 2.
    """

    @property
    def order(self) -> int:
        """2."""
        return 2

    def start(self) -> None:
        """No step before the first."""

    def step(
        self,
        denoise: Denoiser,
        process: GaussianProcess,
        x_t: X,
        t: Level,
        s: Level,
        memory: Before | None,
        noise: Noise,
    ) -> tuple[X, Before | None]:
        """One step from level t to level s."""
        x0 = denoise(x_t, t).x0
        here = t.log_snr / 2
        direction = x0
        if memory is not None:  # after a step from pure noise, which is infinitely long, the weight is 0
            weight = (s.log_snr / 2 - here) / (here - memory.half_log_snr) / 2
            direction = x0 + spread(weight, x_t) * (x0 - memory.x0)
        x_s = spread(s.sigma / t.sigma, x_t) * x_t + spread(s.alpha - s.sigma * t.alpha / t.sigma, x_t) * direction
        return x_s, Before(x0=x0, half_log_snr=here)
