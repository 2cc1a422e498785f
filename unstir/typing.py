"""The shapes and small protocols that every room speaks.

Knows: the names of tensor shapes, what batching needs of a condition, where randomness comes from.
Does not know: any formula, file, word or device.
"""

from __future__ import annotations

from typing import Protocol, Self, TypeVar, cast

from jaxtyping import Float, Float64, Int
from torch import Tensor

X = Float[Tensor, "b *site"]
"""A batch in the process's space: pixels, latents or vectors."""

Time = Float64[Tensor, "*b"]
"""t in [0, 1]; 0 = data, 1 = prior. CPU and float64, always: (b,) where samples differ, () where a call shares it."""

Picture = Float[Tensor, "b c h w"]
"""Pictures in [-1, 1]; uint8 only at the border (pipeline, data)."""


def floats(numbers: Float[Tensor, "n"]) -> list[float]:
    """The numbers of a tensor, for code that walks over them."""
    return cast("list[float]", numbers.tolist())


def integers(numbers: Int[Tensor, "n"]) -> list[int]:
    """The whole numbers of a tensor, for code that walks over them."""
    return cast("list[int]", numbers.tolist())


class Rows(Protocol):
    """What batching needs to know of a condition, and no more."""

    def cat(self, other: Self) -> Self:
        """Both conditions, this one's rows first."""
        ...

    def rows(self, index: slice) -> Self:
        """The chosen rows."""
        ...


C = TypeVar("C", bound=Rows)
C_in = TypeVar("C_in", bound=Rows, contravariant=True)
S = TypeVar("S")


class Noise(Protocol):
    """Keyed randomness: one key per sample, the same bits on every device, in every batch, on every rank.

    Never a stateful stream: asking twice gives the same numbers, ``at`` gives independent ones.
    """

    def at(self, *key: int) -> Self:
        """The randomness of a sub-key; the sampling loop hands step i ``noise.at(i)``."""
        ...

    def rows(self, index: slice) -> Self:
        """The randomness of the chosen samples."""
        ...

    def normal(self, like: X) -> X:
        """Standard normal numbers of the shape, type and device of ``like``; row i depends on key i alone."""
        ...

    def uniform(self, like: X) -> X:
        """Numbers uniform in [0, 1), in the same way."""
        ...

    def brownian(self, s: float, t: float, like: X) -> X:
        """W(t) - W(s) of one Brownian path on [0, 1] a sample, the same path whichever times it is asked at."""
        ...
