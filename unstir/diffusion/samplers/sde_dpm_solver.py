"""SDE-DPM-Solver++: the reverse stochastic equation with the belief about x0 integrated, along one Brownian path.

Knows: the first- and second-order multistep formulae for Gaussian processes, and the clock of the path.
Does not know: grids, guidance, networks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from unstir.diffusion.denoiser import Denoiser
from unstir.diffusion.process import GaussianProcess
from unstir.diffusion.samplers.base import Known, Place, Sampler, log_snr_shares, weighted
from unstir.diffusion.schedule import Level
from unstir.typing import Noise, X


@dataclass(frozen=True, kw_only=True)
class SDEDPMSolver(Sampler[tuple[Known, ...]]):
    """SDE-DPM-Solver++(1, 2M): one evaluation a step, as much fresh noise as the reverse chain has.

    With l half the log-SNR, h = l_s - l_t and r = (l_t - l_before)/h:
    x_s = (sigma_s/sigma_t) exp(-h) x_t + alpha_s (1 - exp(-2h)) D + sigma_s sqrt(1 - exp(-2h)) z,   z ~ N(0, I)
    D = (1 + 1/(2r)) x0 - 1/(2r) x0_before, or x0 with one belief and in the first step.

    With one belief this has the mean and the variance of ``Ancestral`` with beta_tilde.

    z = (W(t) - W(s))/sqrt(t - s) is read off one Brownian path a sample, whose clock is the time t of the schedule.
    Within a step the noise's weight is held constant on that clock, so the same seed leads to the same picture as
    steps get shorter, with strong order 1. The path is known to 2^-24 of the clock.

    Args:
        beliefs: 1 or 2, how many a step is made of.

    Raises:
        ValueError: if that is anything else.

    Source: Lu et al. 2022, arXiv:2211.01095, Eqs. 16 and 17 (SDE-DPM-Solver++1 and 2M).
    """

    beliefs: int = 2

    def __post_init__(self) -> None:
        """Refuse orders that the paper does not have."""
        if self.beliefs not in (1, 2):
            raise ValueError(f"SDE-DPM-Solver++ makes a step of 1 or 2 beliefs, got {self.beliefs}")

    @property
    def order(self) -> int:
        """0: it draws."""
        return 0

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
        """One step from level t to level s, both of shape (): a path is walked by all samples together."""
        known = (Known(level=t, value=denoise(x_t, t).x0), *memory)
        start, end = t.t.item(), s.t.item()
        z = noise.brownian(end, start, x_t) / math.sqrt(start - end)
        terms, levels = [x_t, z, *[each.value for each in known]], [s, t, *[each.level for each in memory]]
        return weighted(terms, levels, _weights), known[: self.beliefs - 1]


def _weights(places: Sequence[Place]) -> list[float]:
    """The shares of x_t, of z and of the beliefs; exp(-h) is written so that alpha_t = 0 is no special case."""
    (alpha_s, sigma_s), (alpha_t, sigma_t), *_ = places
    shrink = (alpha_t * sigma_s) / (alpha_s * sigma_t)
    fresh = 1 - shrink**2
    shares = log_snr_shares(places, lambda h, count: [0.5] * count)
    beliefs = [1 - sum(shares), *shares]
    return [sigma_s / sigma_t * shrink, sigma_s * math.sqrt(fresh), *[alpha_s * fresh * share for share in beliefs]]
