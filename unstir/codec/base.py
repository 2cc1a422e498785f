"""Codecs: between pictures and the space in which diffusion happens.

Knows: what becomes of a picture before it is spoiled, and back.
Does not know: noise levels, prompts, files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from jaxtyping import Float
from torch import Tensor

from unstir.typing import Noise, Picture


class Codec(Protocol):
    """Pictures to latents and back."""

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        ...

    @property
    def downsampling(self) -> int:
        """How many times smaller latents are than pictures, in height and in width."""
        ...

    @property
    def is_exact(self) -> bool:
        """Whether pictures come back as they were; False forbids bits/dim claims."""
        ...

    def encode(self, pictures: Picture, noise: Noise) -> Float[Tensor, "b k u v"]:
        """Latents of pictures; a codec that draws uses ``noise``."""
        ...

    def decode(self, latents: Float[Tensor, "b k u v"]) -> Picture:
        """Pictures of latents."""
        ...


@dataclass(frozen=True, kw_only=True)
class Identity(Codec):
    """Diffusion on the pixels themselves."""

    channels: int = 3

    @property
    def latent_channels(self) -> int:
        """As many as the picture has."""
        return self.channels

    @property
    def downsampling(self) -> int:
        """1."""
        return 1

    @property
    def is_exact(self) -> bool:
        """True."""
        return True

    def encode(self, pictures: Picture, noise: Noise) -> Float[Tensor, "b k u v"]:
        """The pictures."""
        return pictures

    def decode(self, latents: Float[Tensor, "b k u v"]) -> Picture:
        """The latents."""
        return latents
