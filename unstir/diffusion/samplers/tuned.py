"""Tuned steps: a grid of times and the weights of every step on it, both made for one model.

Knows: how a sample is put together of its start and of all beliefs so far, by given weights.
Does not know: how the times and weights were found (``unstir.diffusion.tuning`` finds them).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from unstir.diffusion.denoiser import Denoiser
from unstir.diffusion.process import GaussianProcess
from unstir.diffusion.samplers.base import Sampler
from unstir.diffusion.schedule import Level, added
from unstir.typing import Noise, X


@dataclass(frozen=True, kw_only=True, eq=False)
class Walked:
    """Where a walk began, divided by its sigma, and every belief since."""

    start: X
    beliefs: tuple[X, ...]

    def at(self, sigma: float, weights: Sequence[float]) -> X:
        """The sum of the start and the weighted beliefs, times sigma."""
        beliefs = zip(weights, self.beliefs, strict=True)
        return added([(sigma, self.start), *((sigma * weight, belief) for weight, belief in beliefs)])


@dataclass(frozen=True, kw_only=True)
class Tuned(Sampler[Walked | None]):
    """Any explicit linear method, told by its weights: one evaluation per step, on the times that it was made for.

    x_i/sigma_i = x_0/sigma_0 + sum over j < i of w_ij D_j,   D_j the belief about x0 at times[j]

    Every multistep solver is such a table of weights: DDIM, DPM-Solver++, DEIS, and UniPC with its corrector. Weights
    whose rows sum to alpha_i/sigma_i - alpha_0/sigma_0 carry a belief that does not change exactly.

    Args:
        times: n + 1 of them, falling strictly to 0; walk these and no others.
        weights: w, a row of i numbers for every i from 1 to n - 1. The last step is the belief itself.

    Raises:
        ValueError: if the times do not fall to 0, or the weights are not the rows of a triangle.
    """

    times: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        """Refuse what cannot be walked."""
        falls = all(s < t for t, s in itertools.pairwise(self.times))
        if len(self.times) < 2 or not falls or self.times[-1] != 0 or self.times[0] > 1:
            raise ValueError(f"tuned times fall strictly from at most 1 to 0, got {list(self.times)}")
        if [len(row) for row in self.weights] != list(range(1, self.num_steps)):
            raise ValueError(
                f"{self.num_steps} tuned steps need rows of 1 to {self.num_steps - 1} weights, got rows of "
                f"{[len(row) for row in self.weights]}"
            )

    @property
    def num_steps(self) -> int:
        """Number of steps, and of network calls."""
        return len(self.times) - 1

    @property
    def order(self) -> int:
        """1: of what is not known of the weights, only that they carry an unchanging belief exactly."""
        return 1

    def start(self) -> None:
        """Nothing walked."""

    def step(
        self,
        denoise: Denoiser,
        process: GaussianProcess,
        x_t: X,
        t: Level,
        s: Level,
        memory: Walked | None,
        noise: Noise,
    ) -> tuple[X, Walked]:
        """One step from level t to level s.

        Raises:
            ValueError: if t and s are not the times of this step.
        """
        walked = Walked(start=x_t / t.sigma, beliefs=()) if memory is None else memory
        i = len(walked.beliefs)
        if i >= len(self.weights) or (t.t.item(), s.t.item()) != self.times[i : i + 2]:
            raise ValueError(
                f"step {i} of these tuned steps does not go from t = {t.t.item():.6g} to {s.t.item():.6g}; they are "
                "for their own times from the first on, so take another sampler for any others"
            )
        walked = Walked(start=walked.start, beliefs=(*walked.beliefs, denoise(x_t, t).x0))
        return walked.at(s.sigma.item(), self.weights[i]), walked
