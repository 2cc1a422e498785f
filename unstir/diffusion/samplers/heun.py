"""Heun: EDM's second-order step in sigma/alpha, with fresh noise before it if one likes.

Knows: the trapezoidal rule for Gaussian processes, and how churn goes back up before a step.
Does not know: grids, guidance, networks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from unstir.diffusion.denoiser import Denoiser
from unstir.diffusion.process import GaussianProcess
from unstir.diffusion.samplers.base import Place, Sampler, weighted
from unstir.diffusion.schedule import Level
from unstir.typing import Noise, X

MOST_CHURN = math.sqrt(2) - 1
"""More would add more noise than there is."""


@dataclass(frozen=True, kw_only=True)
class Heun(Sampler[None]):
    """EDM's sampler: second order, two evaluations a step, in y = x/alpha and r = sigma/alpha.

    y' = y + (r_s - r_t) d(y, r_t),   y_s = y + (r_s - r_t) (d(y, r_t) + d(y', r_s))/2,   d = (y - x0)/r

    Written with beliefs, for any alpha and sigma, this is DDIM's step to D instead of to x0:
    x_s = (sigma_s/sigma_t) x_t + (alpha_s - sigma_s alpha_t/sigma_t) D,   D = x0 + w (x0' - x0),   w = r_t/(2 r_s)

    A step that more than halves r has w > 1 and leads beyond the second belief, one from pure noise infinitely far;
    w is held to at most ``reach``.

    Churn: where r_t is from ``low`` to ``high``, noise is added first, from r_t to (1 + g) r_t with
    g = min(churn, sqrt(2) - 1), but not beyond the schedule's noisiest level; the network is asked at the level that
    this leads to.

    Args:
        churn: g, for one step; EDM's S_churn divided by the number of steps. 0 is deterministic.
        noise_scale: EDM's S_noise, the standard deviation of the fresh noise in units of the exact one.
        low: EDM's S_tmin, in sigma/alpha.
        high: EDM's S_tmax, in sigma/alpha.
        reach: the largest w. 2 leaves steps alone that divide r by up to 4, as all of EDM's own do (18 steps from 80 to
            0.002); infinity is the paper to the letter, which goes astray on longer ones.

    Raises:
        ValueError: unless churn >= 0, noise_scale > 0, 0 <= low <= high and reach > 1/2.

    Source: Karras et al. 2022, arXiv:2206.00364, Algorithm 2 (without churn Algorithm 1).
    """

    churn: float = 0.0
    noise_scale: float = 1.0
    low: float = 0.0
    high: float = math.inf
    reach: float = 2.0

    def __post_init__(self) -> None:
        """Refuse what is no noise, no range, or no second order."""
        if not (0 <= self.churn < math.inf and 0 < self.noise_scale < math.inf):
            raise ValueError(
                f"churn is a share of the noise to add, at least 0, and noise_scale is positive, got {self.churn} and "
                f"{self.noise_scale}"
            )
        if not 0 <= self.low <= self.high:
            raise ValueError(f"churn acts from a low to a high sigma/alpha, got {self.low} and {self.high}")
        if not self.reach > 0.5:
            raise ValueError(f"reach must be above 1/2, the weight of a short step, got {self.reach}")

    @property
    def order(self) -> int:
        """2 without churn."""
        return 0 if self.churn else 2

    def start(self) -> None:
        """No memory."""

    def step(
        self, denoise: Denoiser, process: GaussianProcess, x_t: X, t: Level, s: Level, memory: None, noise: Noise
    ) -> tuple[X, None]:
        """One step from level t to level s; with churn, of shape ()."""
        if self.churn and self.low <= (t.sigma / t.alpha).item() <= self.high:
            x_t, t = self._churned(process, x_t, t, noise)
        first = denoise(x_t, t).x0
        guess = weighted([x_t, first], [s, t], _euler)
        return weighted([x_t, first, denoise(guess, s).x0], [s, t], self._heun), None

    def _churned(self, process: GaussianProcess, x_t: X, t: Level, noise: Noise) -> tuple[X, Level]:
        louder = t.log_snr - 2 * math.log1p(min(self.churn, MOST_CHURN))
        above = process.schedule.at(process.schedule.time_of(louder))
        if not bool(above.t > t.t):  # at the schedule's end there is nothing above
            return x_t, t
        return weighted([x_t, noise.normal(x_t)], [above, t], self._louder), above

    def _louder(self, places: Sequence[Place]) -> tuple[float, float]:
        """The forward chain's step, its noise scaled."""
        (alpha, sigma), (alpha_t, sigma_t) = places
        kept = alpha / alpha_t
        return kept, self.noise_scale * math.sqrt(max(sigma**2 - (kept * sigma_t) ** 2, 0))

    def _heun(self, places: Sequence[Place]) -> tuple[float, float, float]:
        (alpha_s, sigma_s), (alpha_t, sigma_t) = places
        ratio, whole = _euler(places)
        share = min(alpha_s * sigma_t / (2 * alpha_t * sigma_s), self.reach) if alpha_t else min(1.0, self.reach)
        return ratio, whole * (1 - share), whole * share


def _euler(places: Sequence[Place]) -> tuple[float, float]:
    (alpha_s, sigma_s), (alpha_t, sigma_t) = places
    ratio = sigma_s / sigma_t
    return ratio, alpha_s - ratio * alpha_t
