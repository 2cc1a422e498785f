"""RePaint: a part of a picture is known, and the rest is painted so that it fits.

Knows: how known pixels are put in at every level, and how going back up makes the two parts agree.
Does not know: which sampler steps, or whether the process is Gaussian.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unstir.diffusion.denoiser import Denoiser
from unstir.diffusion.process import Process
from unstir.diffusion.samplers.base import Sampler
from unstir.diffusion.schedule import Level
from unstir.typing import Noise, S, X


@dataclass(frozen=True, kw_only=True, eq=False)
class RePaint(Sampler[S]):
    """A sampler's step where the mask says so, a draw from q(x_s | known) elsewhere; the step is repeated from above.

    x_s = mask * inner's step + (1 - mask) * draw from q(x_s | known);   x_t ~ q(x_t | x_s), and again

    A step alone does not know what the known pixels will be at s, so the parts do not fit. Each repetition lets the
    inner sampler see them joined. (The paper goes back up by 10 steps at once, here it is always one.)

    The loop's last step, to the data, is the belief everywhere: put the known pixels in once more after it, or correct
    the denoiser's belief by them.

    Args:
        inner: makes the steps; where it keeps a memory, every repetition starts from the one before the step.
        known: clean data; what stands where the mask is 1 does not matter.
        mask: 1 where to paint, 0 where known; of a shape that broadcasts against x.
        resamplings: how often each step is taken; 1 is replacement alone.

    Raises:
        ValueError: if resamplings is below 1, the mask holds anything but 0 and 1, or does not fit the known data.

    Source: Lugmayr et al. 2022, arXiv:2201.09865, Algorithm 1 (U resamplings; 10 there).
    """

    inner: Sampler[S]
    known: X
    mask: Tensor
    resamplings: int = 10

    def __post_init__(self) -> None:
        """Refuse a mask that is none."""
        if self.resamplings < 1:
            raise ValueError(f"each step is taken at least once, got resamplings = {self.resamplings}")
        if not bool(((self.mask == 0) | (self.mask == 1)).all()):
            raise ValueError(
                "a mask holds 1 where to paint and 0 where the picture is known, got values from "
                f"{self.mask.min().item():.4g} to {self.mask.max().item():.4g}; round it"
            )
        try:
            torch.broadcast_shapes(self.mask.shape, self.known.shape)
        except RuntimeError:
            raise ValueError(
                f"a mask of shape {tuple(self.mask.shape)} does not fit known data of shape {tuple(self.known.shape)}; "
                "they must broadcast"
            ) from None

    @property
    def order(self) -> int:
        """0: known pixels are drawn."""
        return 0

    def start(self) -> S:
        """The inner sampler's."""
        return self.inner.start()

    def step(
        self, denoise: Denoiser, process: Process, x_t: X, t: Level, s: Level, memory: S, noise: Noise
    ) -> tuple[X, S]:
        """The step from t to s, ``resamplings`` times."""
        given = process.marginal(self.known.to(x_t), s)
        paints = self.mask.to(x_t) == 1

        def once(x_t: X, noise: Noise) -> tuple[X, S]:
            painted, after = self.inner.step(denoise, process, x_t, t, s, memory, noise.at(0))
            return torch.where(paints, painted, given.sample(noise.at(1))), after

        x_s, after = once(x_t, noise.at(0))
        for i in range(1, self.resamplings):
            own = noise.at(i)
            x_s, after = once(process.kernel(x_s, s, t).sample(own.at(2)), own)
        return x_s, after
