"""Where randomness comes from: one key a sample, never a stateful stream.

Knows: how a seed and a sub-key become numbers, the same on every device, in every batch, in every process.
Does not know: what the numbers are for.

The numbers are drawn by numpy's Philox on the CPU and moved: a counter-based generator with 128-bit keys (torch's CPU
generator keeps 32 bits of its seed) whose normal draws do not depend on the processor's vector units.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy
import torch

from unstir.typing import Noise, X


@dataclass(frozen=True, kw_only=True)
class KeyedNoise(Noise):
    """Randomness of a batch: row i is a function of ``keys[i]`` alone.

    Args:
        keys: one tuple of integers a sample; a seed, followed by what ``at`` appended.

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox).
    """

    keys: tuple[tuple[int, ...], ...]

    @classmethod
    def from_seeds(cls, seeds: Sequence[int]) -> Self:
        """One sample a seed."""
        return cls(keys=tuple((seed,) for seed in seeds))

    def at(self, *key: int) -> Self:
        """The randomness of a sub-key: independent of this one's and of every other sub-key's."""
        return type(self)(keys=tuple((*own, *key) for own in self.keys))

    def rows(self, index: slice) -> Self:
        """The randomness of the chosen samples."""
        return type(self)(keys=self.keys[index])

    def normal(self, like: X) -> X:
        """Standard normal numbers, shape, type and device of ``like``.

        Raises:
            ValueError: if ``like`` has another number of rows than there are keys.
        """
        return self._draw(like, lambda generator, out: generator.standard_normal(out=out, dtype=out.dtype.type))

    def uniform(self, like: X) -> X:
        """Numbers uniform in [0, 1), shape, type and device of ``like``.

        Raises:
            ValueError: if ``like`` has another number of rows than there are keys.
        """
        drawn = self._draw(like, lambda generator, out: generator.random(out=out, dtype=out.dtype.type))
        return drawn.clamp(max=1 - torch.finfo(like.dtype).eps / 2)  # half precision would round some up to 1

    def _draw(self, like: X, fill: Callable[[numpy.random.Generator, numpy.ndarray], object]) -> X:
        if like.shape[0] != len(self.keys):
            raise ValueError(
                f"noise has {len(self.keys)} keys, one a sample, but the batch has {like.shape[0]} samples"
            )
        precision = numpy.float64 if like.dtype == torch.float64 else numpy.float32
        numbers = numpy.empty(tuple(like.shape), precision)
        rows = numbers.reshape(len(self.keys), -1)
        for row, key in zip(rows, self.keys, strict=True):
            digest = hashlib.blake2b(repr(tuple(map(int, key))).encode(), digest_size=16).digest()
            fill(numpy.random.Generator(numpy.random.Philox(key=int.from_bytes(digest, "little"))), row)
        return torch.from_numpy(numbers).to(like)
