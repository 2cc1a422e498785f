"""Codecs: between pictures and the space in which diffusion happens.

Knows: what becomes of a picture before it is spoiled, and back.
Does not know: noise levels, prompts, files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

from jaxtyping import Float, Int
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


class CodecShape(Protocol):
    """What a configuration says of a codec; one without weights is its own configuration."""

    @property
    def channels(self) -> int:
        """Channels of the pictures."""
        ...

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
        """Whether pictures come back as they were."""
        ...

    def build(self) -> Codec:
        """The codec; one with weights has fresh ones."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Coded:
    """What a codec in training made of pictures.

    Args:
        reconstruction: as they came back.
        costs: what their latents cost each of them: ``kl`` in nats, or ``codebook`` and ``commitment`` in squared
            distance a number.
        indices: of the codes, where there are some.
    """

    reconstruction: Picture
    costs: dict[str, Float[Tensor, "b"]]
    indices: Int[Tensor, "b u v"] | None = None


class LearnedCodec(Codec, Protocol):
    """A codec with weights: a module."""

    @property
    def config(self) -> CodecShape:
        """What it is made of."""
        ...

    @property
    def scale(self) -> float:
        """What latents are multiplied by, so that their variance is one."""
        ...

    @property
    def last_weight(self) -> Tensor:
        """Of the decoder's last layer, where the gradients of two losses are weighed against each other."""
        ...

    def moments(self, pictures: Picture) -> Float[Tensor, "b m u v"]:
        """What the encoder says of pictures before anything is drawn: all of them that a cache has to keep."""
        ...

    def drawn(self, moments: Float[Tensor, "b m u v"], noise: Noise) -> Float[Tensor, "b k u v"]:
        """Latents of these moments; ``encode`` is this of ``moments``."""
        ...

    def there_and_back(self, pictures: Picture, noise: Noise) -> Coded:
        """One pass, for training."""
        ...

    def scaled(self, scale: float) -> Self:
        """The same weights, whose latents are multiplied by ``scale``."""
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

    def build(self) -> Identity:
        """Itself: there are no weights."""
        return self

    def encode(self, pictures: Picture, noise: Noise) -> Float[Tensor, "b k u v"]:
        """The pictures."""
        return pictures

    def decode(self, latents: Float[Tensor, "b k u v"]) -> Picture:
        """The latents."""
        return latents
