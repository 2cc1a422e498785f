"""Bit planes: pictures as zeros and ones, so that a binomial process can spoil them.

Knows: how a grey value becomes bits, and back.
Does not know: what is done with the bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from unstir.codec.base import Codec
from unstir.typing import Noise, Picture


@dataclass(frozen=True, kw_only=True)
class BitPlanes(Codec):
    """Each channel as its bits, the most significant first: 8 bits keep a picture exactly, 1 makes it black and white.

    A value in [-1, 1] is rounded to one of 2^bits evenly spaced levels. Latents are 0. and 1.; ``decode`` takes what is
    above 0.5 for 1.

    Args:
        channels: of the pictures.
        bits: planes a channel.

    Raises:
        ValueError: unless 1 <= bits <= 8 and there is a channel.

    Source: Chen et al. 2023, arXiv:2208.04202, Sec. 3.1 (8-bit pictures as bits).
    """

    channels: int = 3
    bits: int = 8

    def __post_init__(self) -> None:
        """Refuse what is no picture of bytes."""
        if not 1 <= self.bits <= 8 or self.channels < 1:
            raise ValueError(f"bit planes need 1 to 8 bits and a channel, got {self.bits} and {self.channels}")

    @property
    def latent_channels(self) -> int:
        """Channels times bits."""
        return self.channels * self.bits

    @property
    def downsampling(self) -> int:
        """1."""
        return 1

    @property
    def is_exact(self) -> bool:
        """Whether bytes come back as they were: with 8 bits."""
        return self.bits == 8

    def build(self) -> BitPlanes:
        """Itself: there are no weights."""
        return self

    def encode(self, pictures: Picture, noise: Noise) -> Float[Tensor, "b k u v"]:
        """Zeros and ones, the planes of a channel one after another."""
        top = 2**self.bits - 1
        levels = ((pictures.clamp(-1, 1) + 1) * (top / 2)).round().to(torch.int64)
        return ((levels[:, :, None] >> self._shifts(levels)) & 1).to(pictures.dtype).flatten(1, 2)

    def decode(self, latents: Float[Tensor, "b k u v"]) -> Picture:
        """The pictures whose bits these are."""
        planes = (latents > 0.5).to(torch.int64).view(len(latents), self.channels, self.bits, *latents.shape[2:])
        levels = (planes << self._shifts(planes)).sum(2)
        return levels.to(latents.dtype) * (2 / (2**self.bits - 1)) - 1

    def _shifts(self, like: Tensor) -> Tensor:
        return torch.arange(self.bits, device=like.device).flip(0)[:, None, None]
