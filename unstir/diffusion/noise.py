"""Where randomness comes from: one key a sample, never a stateful stream.

Knows: how a seed and a sub-key become numbers, the same on every device, in every batch, in every process.
Does not know: what the numbers are for.

The numbers are drawn by numpy's Philox on the CPU and moved: a counter-based generator with 128-bit keys (torch's CPU
generator keeps 32 bits of its seed) whose normal draws do not depend on the processor's vector units.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

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

    def brownian(self, s: float, t: float, like: X) -> X:
        """W(t) - W(s) of one Brownian path a sample; see ``_walked``.

        Raises:
            ValueError: if s or t is outside [0, 1], or ``like`` has another number of rows than there are keys.
        """
        return _walked(self, s, t, like)

    def _draw(self, like: X, fill: Callable[[numpy.random.Generator, numpy.ndarray], object]) -> X:
        if like.shape[0] != len(self.keys):
            raise ValueError(
                f"noise has {len(self.keys)} keys, one a sample, but the batch has {like.shape[0]} samples"
            )
        numbers = numpy.empty(tuple(like.shape), _precision(like))
        rows = numbers.reshape(len(self.keys), -1)
        for row, key in zip(rows, self.keys, strict=True):
            fill(_generator(key), row)
        return torch.from_numpy(numbers).to(like)


@dataclass(frozen=True, kw_only=True)
class BlockNoise(Noise):
    """Randomness of a large batch from one key, for experiments whose samples nobody draws again one by one.

    Row i is a function of the key, of i and of the shape of a row: drawing is as fast as the generator, where a key a
    row costs ten microseconds each.

    Args:
        key: a seed, followed by what ``at`` appended.
        count: number of rows.
        start: number of the first row.
    """

    key: tuple[int, ...]
    count: int
    start: int = 0

    @property
    def keys(self) -> range:
        """The numbers of the rows."""
        return range(self.start, self.start + self.count)

    def at(self, *key: int) -> Self:
        """The randomness of a sub-key: independent of this one's and of every other sub-key's."""
        return type(self)(key=(*self.key, *key), count=self.count, start=self.start)

    def rows(self, index: slice) -> Self:
        """The randomness of consecutive rows.

        Raises:
            ValueError: if they are not.
        """
        chosen = self.keys[index]
        if chosen.step != 1:
            raise ValueError(f"rows of block noise are consecutive, got {index}; take KeyedNoise for any others")
        return type(self)(key=self.key, count=len(chosen), start=chosen.start)

    def normal(self, like: X) -> X:
        """Standard normal numbers, shape, type and device of ``like``.

        Raises:
            ValueError: if ``like`` has another number of rows.
        """
        return self._draw(like, lambda generator, out: generator.standard_normal(out=out, dtype=out.dtype.type))

    def uniform(self, like: X) -> X:
        """Numbers uniform in [0, 1), shape, type and device of ``like``.

        Raises:
            ValueError: if ``like`` has another number of rows.
        """
        drawn = self._draw(like, lambda generator, out: generator.random(out=out, dtype=out.dtype.type))
        return drawn.clamp(max=1 - torch.finfo(like.dtype).eps / 2)

    def brownian(self, s: float, t: float, like: X) -> X:
        """W(t) - W(s) of one Brownian path a sample; see ``_walked``.

        Raises:
            ValueError: if s or t is outside [0, 1], or ``like`` has another number of rows.
        """
        return _walked(self, s, t, like)

    def _draw(self, like: X, fill: Callable[[numpy.random.Generator, numpy.ndarray], object]) -> X:
        if like.shape[0] != self.count:
            raise ValueError(f"noise is for {self.count} samples, but the batch has {like.shape[0]}")
        numbers = numpy.empty((self.start + self.count, *like.shape[1:]), _precision(like))
        fill(_generator(self.key), numbers)
        return torch.from_numpy(numbers[self.start :]).to(like)


@dataclass(frozen=True, kw_only=True)
class OffsetNoise(Noise):
    """Noise whose every channel is shifted by one more normal number, so that a mean is spoiled as much as a detail is.

    normal = (base + strength shift) for x of shape (b, c, *site); numbers without sites, and ``uniform``, are as ever.
    Its variance is 1 + strength^2: a model trained with it is trained on a noise that is not the process's own.

    Args:
        base: the noise to shift.
        strength: standard deviation of the shift; 0.1 is usual.

    Source: Guttenberg 2023, "Diffusion with offset noise" (crosslabs.org).
    """

    base: Noise
    strength: float = 0.1

    def at(self, *key: int) -> Self:
        """The randomness of a sub-key."""
        return type(self)(base=self.base.at(*key), strength=self.strength)

    def rows(self, index: slice) -> Self:
        """The randomness of the chosen samples."""
        return type(self)(base=self.base.rows(index), strength=self.strength)

    def normal(self, like: X) -> X:
        """Normal numbers with a shift for each channel."""
        return self._shifted(like, lambda noise, shape: noise.normal(shape))

    def uniform(self, like: X) -> X:
        """The uniform numbers of the base."""
        return self.base.uniform(like)

    def brownian(self, s: float, t: float, like: X) -> X:
        """W(t) - W(s) of the base's path, every channel shifted by strength times one more path."""
        return self._shifted(like, lambda noise, shape: noise.brownian(s, t, shape))

    def _shifted(self, like: X, draw: Callable[[Noise, X], X]) -> X:
        drawn = draw(self.base, like)
        if like.ndim < 3:
            return drawn
        channels = like.flatten(2)[..., 0]
        shift = draw(self.base.at(_SHIFT), channels)
        return drawn + self.strength * shift.view(*channels.shape, *[1] * (like.ndim - 2))


@dataclass(frozen=True, kw_only=True)
class StepNoise(Noise):
    """The randomness of one step of a run: numbers of its own, and the Brownian path of the whole run.

    It costs nothing until something is drawn.

    Args:
        run: the randomness of the run.
        key: the sub-key of the step.
    """

    run: Noise
    key: tuple[int, ...]

    def at(self, *key: int) -> Self:
        """The randomness of a sub-key of the step; the path stays that of the run."""
        return type(self)(run=self.run, key=(*self.key, *key))

    def rows(self, index: slice) -> Self:
        """The randomness of the chosen samples."""
        return type(self)(run=self.run.rows(index), key=self.key)

    def normal(self, like: X) -> X:
        """The normal numbers of ``run.at(*key)``."""
        return self.run.at(*self.key).normal(like)

    def uniform(self, like: X) -> X:
        """The uniform numbers of ``run.at(*key)``."""
        return self.run.at(*self.key).uniform(like)

    def brownian(self, s: float, t: float, like: X) -> X:
        """W(t) - W(s) of the run's path."""
        return self.run.brownian(s, t, like)


_SHIFT = 0x0FF5E7  # sub-key of the shift
_PATH = 0xB404  # sub-key of the Brownian path
_FINEST = 2.0**-24


def _walked(noise: Noise, s: float, t: float, like: X) -> X:
    """W(t) - W(s) of a Brownian path on [0, 1] that is a function of the keys alone, whatever times it is asked at.

    W(0) = 0, W(1) ~ N(0, 1), and between two known times a < c < b
    W(c) = ((b - c) W(a) + (c - a) W(b))/(b - a) + sqrt((c - a)(b - c)/(b - a)) z with the normal numbers z of c's key.
    Known are the ends, then the middles of ever halved intervals; once those are 2^-24 long, the next c is the time
    itself. So the law is exactly Brownian for any times of which no two lie within the same interval of 2^-24.
    Increments are differences of a function of time, computed in float64 on the CPU: they add up.

    Source: Levy 1948 (bridge); Li et al. 2020, arXiv:2001.01328, Algorithm 3 (virtual Brownian tree).
    """
    if not (0 <= s <= 1 and 0 <= t <= 1):
        raise ValueError(f"a Brownian path is known from t = 0 to 1, got {s} and {t}; scale times to that range")
    shape = torch.empty(like.shape, dtype=torch.float64)
    return (_reached(noise, t, shape) - _reached(noise, s, shape)).to(like)


def _reached(noise: Noise, t: float, like: X) -> X:
    """W(t)."""
    if t == 0:
        return torch.zeros_like(like)
    left, right = 0.0, 1.0
    at_left, at_right = torch.zeros_like(like), noise.at(_PATH, 1, 1).normal(like)
    while right != t:
        between = (left + right) / 2 if right - left > _FINEST else t
        share = (between - left) / (right - left)
        own = noise.at(_PATH, *between.as_integer_ratio()).normal(like)
        value = torch.lerp(at_left, at_right, share) + math.sqrt(share * (right - between)) * own
        if t <= between:
            right, at_right = between, value
        else:
            left, at_left = between, value
    return at_right


def _generator(key: tuple[int, ...]) -> numpy.random.Generator:
    digest = hashlib.blake2b(repr(tuple(map(int, key))).encode(), digest_size=16).digest()
    return numpy.random.Generator(numpy.random.Philox(key=int.from_bytes(digest, "little")))


def _precision(like: X) -> type[numpy.floating[Any]]:
    return numpy.float64 if like.dtype == torch.float64 else numpy.float32
