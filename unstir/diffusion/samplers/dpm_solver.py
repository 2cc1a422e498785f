"""DPM-Solver++: integration of the belief about x0 over half the log-SNR, from steps before or from inner levels.

Knows: which beliefs a step of DPM-Solver++ is made of.
Does not know: grids, guidance, networks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from unstir.diffusion.denoiser import Denoiser
from unstir.diffusion.process import GaussianProcess
from unstir.diffusion.samplers.base import (
    Known,
    Sampler,
    along_beliefs,
    exact_moments,
    halved_moments,
    require_order,
)
from unstir.diffusion.schedule import Level
from unstir.typing import Noise, X


@dataclass(frozen=True, kw_only=True)
class DPMSolverMultistep(Sampler[tuple[Known, ...]]):
    """DPM-Solver++(1M, 2M, 3M): one evaluation a step; the others are those of the steps before.

    With l half the log-SNR, h = l_s - l_t and r = (l_t - l_before)/h, two beliefs give
    x_s = (sigma_s/sigma_t) x_t + (alpha_s - sigma_s alpha_t/sigma_t) D,   D = (1 + 1/(2r)) x0 - 1/(2r) x0_before;
    one belief gives D = x0, which is DDIM, and three the parabola through them, integrated exactly. The first steps
    know of fewer.

    (The authors' code and its descendants halve the second difference of three beliefs, and with it lose the gain over
    two: ``tests/diffusion/samplers/test_dpm_solver.py`` measures both.)

    Args:
        max_order: how many beliefs a step is made of, 1 to 3.

    Raises:
        ValueError: if that is not 1, 2 or 3.

    Source: Lu et al. 2022, arXiv:2211.01095, Algorithm 2 and Eq. 9.
    """

    max_order: int = 2

    def __post_init__(self) -> None:
        """Refuse orders that the paper does not have."""
        require_order("DPM-Solver++", self.max_order)

    @property
    def order(self) -> int:
        """1 or 2: with three beliefs the error is smaller, but that of the first two steps falls no faster."""
        return min(self.max_order, 2)

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
        known = (Known(level=t, value=denoise(x_t, t).x0), *memory)
        return along_beliefs(x_t, t, s, known), known[: self.max_order - 1]


@dataclass(frozen=True, kw_only=True)
class DPMSolverSinglestep(Sampler[None]):
    """DPM-Solver++(2S, 3S): two or three evaluations a step, and nothing kept; fewer steps of the same cost.

    The second belief is asked for at half the way in log-SNR (order 2), or at a third of it, and the third at two
    thirds (order 3), each time at the sample to which the beliefs so far lead; all of them lead to x_s. With order 2 D
    is that of ``DPMSolverMultistep``, with order 3 every polynomial is integrated exactly (the authors' code calls
    that "taylor"). A step from pure noise has no half way, and is one of DDIM.

    Args:
        max_order: how many beliefs a step is made of, 1 to 3.

    Raises:
        ValueError: if that is not 1, 2 or 3.

    Source: Lu et al. 2022, arXiv:2211.01095, Algorithm 1 (2S, r = 1/2); Lu et al. 2022, arXiv:2206.00927, Algorithm 2
        (r1 = 1/3, r2 = 2/3), there for the noise.
    """

    max_order: int = 2

    def __post_init__(self) -> None:
        """Refuse orders that the papers do not have."""
        require_order("DPM-Solver++", self.max_order)

    @property
    def order(self) -> int:
        """That of every step."""
        return self.max_order

    def start(self) -> None:
        """No memory."""

    def step(
        self, denoise: Denoiser, process: GaussianProcess, x_t: X, t: Level, s: Level, memory: None, noise: Noise
    ) -> tuple[X, None]:
        """One step from level t to level s."""
        known = [Known(level=t, value=denoise(x_t, t).x0)]
        moments = halved_moments if self.max_order == 2 else exact_moments
        if self.max_order > 1 and bool(torch.isfinite(t.log_snr).all()):
            shares = [i / self.max_order for i in range(1, self.max_order)]
            log_snr = torch.stack([torch.lerp(t.log_snr, s.log_snr, share) for share in shares])
            levels = process.schedule.at(process.schedule.time_of(log_snr))
            for inner in (levels[i] for i in range(len(shares))):
                x = along_beliefs(x_t, t, inner, known, moments)
                known.append(Known(level=inner, value=denoise(x, inner).x0))
        return along_beliefs(x_t, t, s, known, moments), None
