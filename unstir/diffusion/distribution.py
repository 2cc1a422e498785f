"""Distributions over x, elementwise: what a process hands out.

Knows: how to draw from a Gaussian or a coin, their densities and divergences, in nats.
Does not know: times, schedules or where its parameters came from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from unstir.typing import Noise, X


class Distribution(Protocol):
    """Independent numbers, one per element of x."""

    @property
    def mean(self) -> X:
        """The mean, of the shape of x."""
        ...

    def sample(self, noise: Noise) -> X:
        """One draw; row i uses key i of ``noise`` alone."""
        ...

    def log_prob(self, x: X) -> X:
        """Log-density or log-probability of every element, in nats."""
        ...

    def kl(self, other: Any) -> X:
        """KL(self || other) of every element, in nats."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Normal:
    """N(mean, std^2) of every element.

    Args:
        mean: of the shape of x.
        std: standard deviation, of a shape that multiplies x; 0 makes ``sample`` return the mean.
    """

    mean: X
    std: Tensor

    def sample(self, noise: Noise) -> X:
        """Mean + std z with z ~ N(0, I); row i uses key i of ``noise`` alone."""
        return self.mean + self.std * noise.normal(self.mean)

    def log_prob(self, x: X) -> X:
        """Log-density of every element, in nats."""
        return -0.5 * ((x - self.mean) / self.std) ** 2 - self.std.log() - 0.5 * math.log(2 * math.pi)

    def kl(self, other: Normal) -> X:
        """KL(self || other) of every element, in nats."""
        ratio = (self.std / other.std) ** 2
        return 0.5 * (ratio + ((self.mean - other.mean) / other.std) ** 2 - 1 - torch.log(ratio))

    def log_interval(self, low: X, high: X) -> X:
        """The log-probability of low < x < high for every element, in nats; exact far out in the tails.

        With a and b the standardised bounds, log Phi(b) + log(1 - exp(log Phi(a) - log Phi(b))); intervals right of the
        mean are mirrored, for Phi keeps its digits on the left only. An infinite bound is put where it weighs nothing,
        50 deviations out: at infinity itself gradients would be 0 times infinity.
        """
        far = 50 * self.std
        low = torch.where(torch.isneginf(low), (torch.minimum(self.mean, high) - far).detach(), low)
        high = torch.where(torch.isposinf(high), (torch.maximum(self.mean, low) + far).detach(), high)
        a, b = (low - self.mean) / self.std, (high - self.mean) / self.std
        is_right = a > 0
        a, b = torch.where(is_right, -b, a), torch.where(is_right, -a, b)
        below, above = _log_phi(a), _log_phi(b)
        return above + torch.log(-torch.expm1(below - above))


@dataclass(frozen=True, kw_only=True, eq=False)
class Bernoulli:
    """1 with the given probability, else 0, in every element.

    Args:
        probability: of 1, of the shape of x.
        complement: the probability of 0, where it is known to more digits than 1 - probability has: a step of a long
            chain hardly ever flips a bit, and in float32 such a chance is lost in 1 - (1 - chance).
    """

    probability: X
    complement: X | None = None

    @property
    def mean(self) -> X:
        """The probability of 1."""
        return self.probability

    def sample(self, noise: Noise) -> X:
        """Zeros and ones, of the type of the probability; row i uses key i of ``noise`` alone."""
        return (noise.uniform(self.probability) < self.probability).to(self.probability)

    def log_prob(self, x: X) -> X:
        """Log-probability of every element, in nats."""
        return _times_log(x, self.probability) + _times_log(1 - x, self._of_zero)

    def kl(self, other: Bernoulli) -> X:
        """KL(self || other) of every element, in nats; infinite where ``other`` rules out what may be.

        Sum over both outcomes of p log(p/q) - p + q: the differences q - p of the two are opposite, and are taken from
        the rarer one, which knows them to more digits.
        """
        (p, p_zero), (q, q_zero) = (self.probability, self._of_zero), (other.probability, other._of_zero)
        gap = torch.where(p_zero < p, p_zero - q_zero, q - p)
        return _relative_entropy(p, gap) + _relative_entropy(p_zero, -gap)

    @property
    def _of_zero(self) -> X:
        return 1 - self.probability if self.complement is None else self.complement


def _times_log(x: Tensor, y: Tensor) -> Tensor:
    """The product x log y, and 0 where x is 0, with slope 0 there as well: 0/0 would make the gradient no number."""
    return x * torch.where(x == 0, 1.0, y).log()


def _relative_entropy(p: Tensor, gap: Tensor) -> Tensor:
    """The share p log(p/q) - p + q of an outcome in a divergence, for q = p + gap."""
    is_ruled_out = p == 0
    return gap - p * torch.log1p(torch.where(is_ruled_out, 0.0, gap) / torch.where(is_ruled_out, 1.0, p))


def _log_phi(x: Tensor) -> Tensor:
    return cast(Tensor, torch.special.log_ndtr(x))
