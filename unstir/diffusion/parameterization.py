"""Parameterizations: what a network's number means.

Knows: the pair of lines that makes a belief about x0 of a network's output, for each thing a network may be asked for.
Does not know: networks, losses, samplers.

All of them are affine: x0 = skip x_t + out F, where F is the network's output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from unstir.diffusion.process import Estimate
from unstir.diffusion.schedule import Level, spread
from unstir.typing import Time, X


class Parameterization(Protocol):
    """The meaning of a network's input and output."""

    def encode(self, x_t: X, level: Level) -> tuple[X, Float[Tensor, "b"]]:
        """What the network is given: its input, and one number a sample that says how noisy it is (float32 always)."""
        ...

    def decode(self, output: Tensor, x_t: X, level: Level) -> Estimate:
        """The belief that a network's output stands for."""
        ...

    def target(self, x0: X, x_t: X, level: Level) -> Tensor:
        """What the output should be where the truth is x0."""
        ...


class Affine(Parameterization, Protocol):
    """x0 = skip x_t + out F. A subclass writes ``coefficients`` and nothing else."""

    def coefficients(self, level: Level) -> tuple[Time, Time]:
        """Skip and out."""
        ...

    def encode(self, x_t: X, level: Level) -> tuple[X, Float[Tensor, "b"]]:
        """x_t itself, and 1000 t."""
        return x_t, (1000 * level.t).to(torch.float32).expand(x_t.shape[0]).to(x_t.device)

    def decode(self, output: Tensor, x_t: X, level: Level) -> Estimate:
        """The belief x0 = skip x_t + out F."""
        skip, out = self.coefficients(level)
        return Estimate(x0=spread(skip, x_t) * x_t + spread(out, x_t) * output)

    def target(self, x0: X, x_t: X, level: Level) -> Tensor:
        """F = (x0 - skip x_t) / out."""
        skip, out = self.coefficients(level)
        return (x0 - spread(skip, x_t) * x_t) / spread(out, x_t)


@dataclass(frozen=True)
class PredictNoise(Affine):
    """F is the noise: x0 = (x_t - sigma F) / alpha.

    Raises:
        ValueError: where alpha is 0 (pure noise): there the noise says nothing about x0.

    Source: Ho et al. 2020, arXiv:2006.11239, Sec. 3.2.
    """

    def coefficients(self, level: Level) -> tuple[Time, Time]:
        """Skip = 1/alpha, out = -sigma/alpha."""
        if bool((level.alpha == 0).any()):
            raise ValueError(
                "a network that predicts noise cannot start from pure noise (alpha = 0); predict x0, v or flow, "
                "or use a schedule that keeps some signal at t = 1"
            )
        return 1 / level.alpha, -level.sigma / level.alpha


@dataclass(frozen=True)
class PredictX0(Affine):
    """F is the clean sample itself.

    Source: Ho et al. 2020, arXiv:2006.11239, Sec. 3.2; Li & He 2025, arXiv:2511.13720 (why it suits large patches).
    """

    def coefficients(self, level: Level) -> tuple[Time, Time]:
        """Skip = 0, out = 1."""
        return torch.zeros_like(level.alpha), torch.ones_like(level.alpha)


@dataclass(frozen=True)
class PredictV(Affine):
    """F is v = alpha noise - sigma x0: x0 = (alpha x_t - sigma v) / (alpha^2 + sigma^2).

    Source: Salimans & Ho 2022, arXiv:2202.00512, Appendix D.
    """

    def coefficients(self, level: Level) -> tuple[Time, Time]:
        """Skip = alpha/(alpha^2 + sigma^2), out = -sigma/(alpha^2 + sigma^2)."""
        total = level.alpha**2 + level.sigma**2
        return level.alpha / total, -level.sigma / total


@dataclass(frozen=True)
class PredictFlow(Affine):
    """F is the velocity d x_t/dt = alpha' x0 + sigma' noise, from data towards noise.

    x0 = (sigma' x_t - sigma F) / (alpha sigma' - sigma alpha')

    Source: Lipman et al. 2023, arXiv:2210.02747, Theorem 3.
    """

    def coefficients(self, level: Level) -> tuple[Time, Time]:
        """Skip = sigma'/d, out = -sigma/d, d = alpha sigma' - sigma alpha'."""
        # Divided by sigma', which is infinite at t = 0 on some schedules; there x0 = x_t / alpha, as it must be.
        denominator = level.alpha - level.sigma * level.dalpha / level.dsigma
        return 1 / denominator, -level.sigma / level.dsigma / denominator


PARAMETERIZATIONS: dict[str, type[Affine]] = {
    "noise": PredictNoise,
    "x0": PredictX0,
    "v": PredictV,
    "flow": PredictFlow,
}
