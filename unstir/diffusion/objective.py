"""Objectives: what a denoiser is trained to minimise.

Knows: which levels are drawn, and what an error on x0 weighs there.
Does not know: optimizers, files, what a condition holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from unstir.diffusion.denoiser import NetworkDenoiser
from unstir.diffusion.schedule import Level
from unstir.typing import C, Noise, Time, X


@dataclass(frozen=True, kw_only=True, eq=False)
class Loss:
    """What one batch cost.

    Args:
        per_sample: the loss of each sample.
        parts: what it was made of, a number a sample: ``x0_error`` (mean squared error on x0) and ``log_snr``.
    """

    per_sample: Float[Tensor, "b"]
    parts: dict[str, Float[Tensor, "b"]]


Weight = Callable[[Level], Time]
"""What a squared error on x0 weighs at a level, whatever the network predicts."""


def weight_noise(level: Level) -> Time:
    """alpha^2/sigma^2: the squared error on the noise, unweighted (DDPM's L_simple).

    Source: Ho et al. 2020, arXiv:2006.11239, Eq. 14.
    """
    return (level.alpha / level.sigma) ** 2


def weight_x0(level: Level) -> Time:
    """1: the squared error on x0."""
    return torch.ones_like(level.alpha)


def weight_velocity(level: Level) -> Time:
    """1/sigma^2, with sigma at least 0.05: the squared error on the velocity of the rectified flow, or on v.

    The floor keeps almost clean samples from ruling the batch.

    Source: Li & He 2025, arXiv:2511.13720 (prediction of x0 with a velocity loss, denominator clipped at 0.05).
    """
    return 1 / level.sigma.clamp(min=0.05) ** 2


def weight_bounded(level: Level) -> Time:
    """alpha^2/sigma^2, kept between 1 and 5: noisy samples, where the words decide, are never neglected.

    Source: Salimans & Ho 2022, arXiv:2202.00512, Sec. 4 (at least 1); Hang et al. 2023, arXiv:2303.09556, Sec. 3.4
        (at most 5).
    """
    return ((level.alpha / level.sigma) ** 2).clamp(1, 5)


WEIGHTS: dict[str, Weight] = {
    "noise": weight_noise,
    "x0": weight_x0,
    "velocity": weight_velocity,
    "bounded": weight_bounded,
}


class Times(Protocol):
    """A density of training times on (0, 1]."""

    def draw(self, count: int, noise: Noise) -> Time:
        """One time a sample; row i uses key i of ``noise`` alone."""
        ...


@dataclass(frozen=True, kw_only=True)
class UniformTimes(Times):
    """Times uniform on (0, 1], or on the grid 1/T, 2/T, ..., 1.

    Args:
        num_steps: T, or None for continuous time.

    Raises:
        ValueError: if num_steps < 1.
    """

    num_steps: int | None = None

    def __post_init__(self) -> None:
        """Refuse a grid without steps."""
        if self.num_steps is not None and self.num_steps < 1:
            raise ValueError(f"a grid of times needs at least 1 step, got {self.num_steps}")

    def draw(self, count: int, noise: Noise) -> Time:
        """One time a sample."""
        t = 1 - noise.uniform(torch.zeros(count, dtype=torch.float64))
        return t if self.num_steps is None else (t * self.num_steps).ceil() / self.num_steps


@dataclass(frozen=True, kw_only=True)
class LogitNormalTimes(Times):
    """Times whose logit is normal, mixed with a share of uniform ones so that no level is forgotten.

    Args:
        mean: of the logit; positive is towards noise.
        std: of the logit.
        uniform: share of uniform times.

    Raises:
        ValueError: unless std > 0 and 0 <= uniform <= 1.

    Source: Esser et al. 2024, arXiv:2403.03206, Sec. 3.1.
    """

    mean: float = 0.0
    std: float = 1.0
    uniform: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is no density."""
        if not self.std > 0 or not 0 <= self.uniform <= 1:
            raise ValueError(
                f"logit-normal times need std > 0 and 0 <= uniform <= 1, got {self.std} and {self.uniform}"
            )

    def draw(self, count: int, noise: Noise) -> Time:
        """One time a sample."""
        like = torch.zeros(count, dtype=torch.float64)
        normal = torch.sigmoid(self.mean + self.std * noise.at(0).normal(like))
        flat = 1 - noise.at(1).uniform(like)
        return torch.where(noise.at(2).uniform(like) < self.uniform, flat, normal)


@dataclass(frozen=True, kw_only=True)
class Simple:
    """The weighted squared error of the belief about x0: E over t and noise of weight(t) |x0_hat(x_t) - x0|^2.

    With ``weight_noise`` and uniform times this is DDPM's L_simple, whatever the network predicts.

    Args:
        weight: what an error on x0 weighs at a level.
        times: the density of training times.

    Source: Ho et al. 2020, arXiv:2006.11239, Eq. 14.
    """

    weight: Weight
    times: Times

    def __call__(self, denoiser: NetworkDenoiser[C], x0: X, condition: C, noise: Noise) -> Loss:
        """The loss of each sample; row i uses key i of ``noise`` alone."""
        level = denoiser.process.schedule.at(self.times.draw(x0.shape[0], noise.at(0)))
        x_t = denoiser.process.marginal(x0, level).sample(noise.at(1))
        error = (denoiser(x_t, level, condition).x0 - x0).square().flatten(1).mean(1)
        weight: Any = self.weight(level).to(error)
        return Loss(per_sample=weight * error, parts={"x0_error": error.detach(), "log_snr": level.log_snr})
