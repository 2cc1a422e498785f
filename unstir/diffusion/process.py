"""Processes: how a sample is spoiled, and how to un-spoil it given a belief about the clean one.

Knows: q(x_t | x_0), q(x_t | x_s) and p(x_s | x_t).
Does not know: networks, steps of a sampler, or how a belief was reached.

A Gaussian process is x_t = alpha x_0 + sigma noise. For s < t the chain between the two levels is
x_t = a x_s + sqrt(b) noise with a = alpha_t/alpha_s and b = sigma_t^2 - a^2 sigma_s^2 (on the T-step grid:
sqrt(1 - beta) and beta). Multiplying q(x_t | x_s) with q(x_s | x_0), both Gaussian in x_s, precisions add, and the
product is the posterior q(x_s | x_t, x_0) that ``reverse`` returns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from unstir.diffusion.distribution import Distribution, Normal
from unstir.diffusion.schedule import Level, Schedule, spread
from unstir.typing import X


@dataclass(frozen=True, kw_only=True, eq=False)
class Estimate:
    """What is believed about the clean sample, given x_t.

    Args:
        x0: E[x0 | x_t].
        variance_fraction: of the reverse variance on the logarithmic scale from beta_tilde (0, or None) to beta (1).
    """

    x0: X
    variance_fraction: X | float | None = None


class Process(Protocol):
    """A way to spoil data step by step, and the form of the way back."""

    @property
    def schedule(self) -> Schedule:
        """How spoiled a sample is at time t."""
        ...

    def prior(self, like: X) -> Distribution:
        """p(x_1), where the reverse chain starts."""
        ...

    def marginal(self, x0: X, t: Level) -> Distribution:
        """q(x_t | x_0)."""
        ...

    def kernel(self, x_s: X, s: Level, t: Level) -> Distribution:
        """q(x_t | x_s), s < t: one step of the forward chain."""
        ...

    def reverse(self, x_t: X, t: Level, s: Level, belief: Estimate) -> Distribution:
        """p(x_s | x_t), s < t; with ``Estimate(x0=truth)`` it is q(x_s | x_t, x_0)."""
        ...

    def to_natural(self, x0: X) -> X:
        """The coordinate in which beliefs add up linearly."""
        ...

    def from_natural(self, y: X) -> X:
        """The inverse of ``to_natural``."""
        ...


@dataclass(frozen=True, kw_only=True)
class GaussianProcess:
    """x_t = alpha x_0 + sigma noise."""

    schedule: Schedule

    def prior(self, like: X) -> Normal:
        """N(0, alpha_1^2 + sigma_1^2): what data of unit variance would become; N(0, I) where variance is preserved."""
        end = self.schedule.at(torch.ones((), dtype=torch.float64))
        return Normal(mean=torch.zeros_like(like), std=torch.hypot(end.alpha, end.sigma))

    def marginal(self, x0: X, t: Level) -> Normal:
        """N(alpha x_0, sigma^2).

        Source: Ho et al. 2020, arXiv:2006.11239, Eq. 4.
        """
        return Normal(mean=spread(t.alpha, x0) * x0, std=spread(t.sigma, x0))

    def kernel(self, x_s: X, s: Level, t: Level) -> Normal:
        """N(a x_s, b), the forward chain from level s to level t.

        Raises:
            ValueError: if any s >= t.

        Source: Kingma et al. 2021, arXiv:2107.00630, Appendix A.1.
        """
        a, b = _transition(s, t)
        return Normal(mean=spread(a, x_s) * x_s, std=spread(b.sqrt(), x_s))

    def reverse(self, x_t: X, t: Level, s: Level, belief: Estimate) -> Normal:
        """One step of the reverse chain: the Gaussian over x_s given x_t and a belief about x0, for 0 <= s < t.

        mean = (a sigma_s^2 / sigma_t^2) x_t + (alpha_s b / sigma_t^2) x0
        variance = b^f (b sigma_s^2 / sigma_t^2)^(1-f),   f = belief.variance_fraction, or 0 when there is none

        On the T-step grid b is beta_t and f = 0 is "fixed small", f = 1 "fixed large".

        Returns:
            The distribution of x_s. Its variance is 0 at s = 0 when f = 0.

        Raises:
            ValueError: if any s >= t.

        Source: Ho et al. 2020, arXiv:2006.11239, Eqs. 6-7 (posterior); Nichol & Dhariwal 2021, arXiv:2102.09672, Eq. 15
            (interpolated log-variance).
        """
        a, b = _transition(s, t)
        ratio = (s.sigma / t.sigma) ** 2
        mean = spread(a * ratio, x_t) * x_t + spread(s.alpha * b / t.sigma**2, x_t) * belief.x0
        fraction = belief.variance_fraction
        if fraction is None:
            return Normal(mean=mean, std=spread((b * ratio).sqrt(), x_t))
        small, large = spread((b * ratio).sqrt(), x_t), spread(b.sqrt(), x_t)
        return Normal(mean=mean, std=large**fraction * small ** (1 - fraction))

    def to_natural(self, x0: X) -> X:
        """The identity: Gaussian beliefs add up on x0 itself."""
        return x0

    def from_natural(self, y: X) -> X:
        """The identity."""
        return y

    def noise_of(self, x0: X, x_t: X, level: Level) -> X:
        """The noise that makes x_t of x0: (x_t - alpha x0) / sigma."""
        return (x_t - spread(level.alpha, x0) * x0) / spread(level.sigma, x0)


def _transition(s: Level, t: Level) -> tuple[Tensor, Tensor]:
    if bool((s.t >= t.t).any()):
        raise ValueError(f"a step needs s < t, got s = {s.t.max().item()} and t = {t.t.min().item()}")
    a = t.alpha / s.alpha
    return a, (t.sigma**2 - (a * s.sigma) ** 2).clamp(min=0)
