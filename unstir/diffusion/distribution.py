"""Distributions over x, elementwise: what a process hands out.

Knows: how to draw from a Gaussian, its density and divergence, in nats.
Does not know: times, schedules or where its parameters came from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

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
