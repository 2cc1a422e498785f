"""Watching a run: every belief that a target asks for, and where it ends.

Knows: how a target is run with an exact denoiser; how to read off a sample at what level it really is.
Does not know: what ought to be seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unstir.diffusion.denoiser import Denoiser
from unstir.diffusion.noise import KeyedNoise
from unstir.diffusion.process import Estimate
from unstir.diffusion.schedule import Level
from unstir.typing import Noise, X, floats
from unstir.verify.target import Target

_SAME = 1e-5  # relative distance below which two levels are one
_TINY = 1e-12


@dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """One belief that was asked for.

    Args:
        x: the sample.
        alpha: of the level that the target holds the sample to be at.
        sigma: likewise.
        x0: what was believed.
    """

    x: X
    alpha: float
    sigma: float
    x0: X


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """All calls of a run, and the sample that it ended with."""

    calls: tuple[Call, ...]
    end: X


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a sample really is, measured against the truth and the noise that it was made of.

    Args:
        alpha: the share of the truth in it.
        sigma: the size of the rest.
        stray: the part of the rest, in units of sigma, that is not the first noise; for what draws, no number at all.
    """

    alpha: float
    sigma: float
    stray: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Pattern:
    """A truth and a noise, orthogonal to each other and both of mean square 1, so that their shares can be read off."""

    x0: X
    noise: X

    @classmethod
    def of(cls, *shape: int, scale: float = 1.0) -> Pattern:
        """A pattern of a shape, the same each time.

        Args:
            *shape: of x, batch first.
            scale: root mean square of the truth.
        """
        drawn = KeyedNoise.from_seeds([7, 8]).normal(torch.zeros(2, *shape, dtype=torch.float64))
        x0, noise = drawn[0], drawn[1]
        noise = noise - x0 * (noise * x0).sum() / x0.square().sum()
        return cls(x0=scale * x0 / x0.square().mean().sqrt(), noise=noise / noise.square().mean().sqrt())

    def at(self, level: Level) -> X:
        """The sample at a level of shape ()."""
        return level.alpha * self.x0 + level.sigma * self.noise

    def place(self, x: X) -> Place:
        """Where x is."""
        alpha = (x * self.x0).mean().item() / self.x0.square().mean().item()
        rest = x - alpha * self.x0
        share = (rest * self.noise).mean().item()
        sigma = rest.square().mean().sqrt().item()
        stray = (rest - share * self.noise).square().mean().sqrt().item() / sigma if sigma > 0 else 0.0
        return Place(alpha=alpha, sigma=sigma, stray=stray if share >= 0 else math.inf)


def certain(x0: X) -> Denoiser:
    """The exact denoiser of a data set of one sample: it always believes in that."""

    def denoise(x_t: X, level: Level, previous: Estimate | None = None) -> Estimate:
        return Estimate(x0=x0.to(x_t).expand_as(x_t))

    return denoise


def observe(
    target: Target, denoise: Denoiser, x: X, num_steps: int, *, noise: Noise | None = None, start: int = 0
) -> Run:
    """Run a target and note every call of the denoiser.

    Args:
        target: what is run.
        denoise: what is believed.
        x: the sample at ``levels(num_steps)[start]``.
        num_steps: of the whole grid.
        noise: one key a sample; by default seeds 0, 1, ...
        start: the step to start with.
    """
    calls: list[Call] = []

    def watched(x_t: X, level: Level, previous: Estimate | None = None) -> Estimate:
        belief = denoise(x_t, level)
        alpha, sigma = level.alpha.reshape(-1)[0].item(), level.sigma.reshape(-1)[0].item()
        calls.append(Call(x=x_t.detach().clone(), alpha=alpha, sigma=sigma, x0=belief.x0))
        return belief

    with torch.no_grad():
        end = target.run(watched, x, num_steps, noise or KeyedNoise.from_seeds(range(x.shape[0])), start)
    return Run(calls=tuple(calls), end=end)


def visited(calls: Sequence[Call], grid: Level) -> list[int]:
    """The points of a grid that calls were made at, in order.

    Left out are calls between two points, as some solvers make, and a second call at the same point.
    """
    points = list(zip(floats(grid.alpha.double()), floats(grid.sigma.double()), strict=True))
    found: list[int] = []
    for call in calls:
        near = min(range(len(points)), key=lambda i: _apart(call, *points[i]))
        if _apart(call, *points[near]) < _SAME and (not found or found[-1] != near):
            found.append(near)
    return found


def is_at(call: Call, level: Level) -> bool:
    """Whether a call was made at a level of shape ()."""
    return _apart(call, level.alpha.item(), level.sigma.item()) < _SAME


def _apart(call: Call, alpha: float, sigma: float) -> float:
    return abs(call.alpha - alpha) / max(alpha, _TINY) + abs(call.sigma - sigma) / max(sigma, _TINY)


def log_snrs(level: Level) -> list[float]:
    """The log-SNR of every level of a grid, in nats; inf at the data, -inf where no signal is left."""
    return floats(_log_snr(level.alpha.double(), level.sigma.double()))


def _log_snr(alpha: Tensor, sigma: Tensor) -> Tensor:
    return 2 * (alpha.log() - sigma.log())
