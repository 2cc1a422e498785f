"""Predictor and corrector: any sampler's step, then Langevin steps that stay at its level.

Knows: how a corrector walks towards the law of one level, and how long its steps are.
Does not know: which sampler predicts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from unstir.diffusion.denoiser import Denoiser
from unstir.diffusion.process import GaussianProcess
from unstir.diffusion.samplers.base import Sampler
from unstir.diffusion.schedule import Level, spread
from unstir.typing import Noise, S, X


@dataclass(frozen=True, kw_only=True)
class PredictorCorrector(Sampler[S]):
    """A sampler's step to level s, then Langevin steps at that level, which make good what the step did to the law.

    x <- x + e score + sqrt(2 e) z,   e = min(2 (ratio |z|/|score|)^2, sigma^2),   score = (alpha x0 - x)/sigma^2

    Norms are those of each sample. (The paper's code takes their means over the batch, so that a picture depends on its
    neighbours.) The bound is ours: with e = sigma^2 the step's mean is alpha x0 itself; it only matters for samples of
    few numbers, whose score may vanish.

    Args:
        predictor: makes the step; its memory is kept for it.
        corrections: Langevin steps a step, each of one evaluation.
        ratio: the paper's r, "signal-to-noise ratio": larger steps mix faster, and err more.

    Raises:
        ValueError: unless corrections >= 0 and ratio > 0.

    Source: Song et al. 2021, arXiv:2011.13456, Algorithms 1 and 4 (r = 0.16 there for CIFAR-10).
    """

    predictor: Sampler[S]
    corrections: int = 1
    ratio: float = 0.16

    def __post_init__(self) -> None:
        """Refuse steps that are none."""
        if self.corrections < 0 or not 0 < self.ratio < math.inf:
            raise ValueError(
                f"a corrector makes at least 0 steps of a positive ratio, got {self.corrections} and {self.ratio}"
            )

    @property
    def order(self) -> int:
        """0 where a corrector draws, else the predictor's."""
        return 0 if self.corrections else self.predictor.order

    def start(self) -> S:
        """The predictor's."""
        return self.predictor.start()

    def step(
        self, denoise: Denoiser, process: GaussianProcess, x_t: X, t: Level, s: Level, memory: S, noise: Noise
    ) -> tuple[X, S]:
        """The predictor's step from t to s, then the corrections at s."""
        x, memory = self.predictor.step(denoise, process, x_t, t, s, memory, noise.at(0))
        for i in range(self.corrections):
            score = -process.noise_of(denoise(x, s).x0, x, s) / spread(s.sigma, x)
            z = noise.at(1 + i).normal(x)
            longest = spread(s.sigma**2, x)
            length = torch.minimum(2 * (self.ratio * _norm(z) / _norm(score)) ** 2, longest.to(x))
            x = x + length * score + (2 * length).sqrt() * z
        return x, memory


def _norm(x: X) -> Tensor:
    """The norm of each sample, of a shape that multiplies x."""
    return x.flatten(1).square().sum(1).sqrt().view(-1, *[1] * (x.ndim - 1))
