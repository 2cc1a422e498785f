"""Quantisation: an autoencoder whose latents are rounded to the nearest of a few learned codes.

Knows: the codebook, how gradients pass it, how much of it is used.
Does not know: how its losses are weighed against others, noise levels, files.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from unstir.codec.autoencoder import (
    AutoencoderConfig,
    Decoder,
    Encoder,
    require_latents,
    require_pictures,
)
from unstir.codec.base import Coded
from unstir.nn.layers import require_positive
from unstir.typing import Noise, Picture

_DISTANCES = 2**24  # numbers in memory at once while the nearest codes are looked for


@dataclass(frozen=True, kw_only=True)
class QuantizedConfig:
    """Shape of an autoencoder with a codebook.

    Args:
        autoencoder: of its encoder and decoder; a code has as many numbers as latents have channels.
        codes: how many there are.

    Raises:
        ValueError: if there are no two codes.

    Source: Esser et al. 2021, arXiv:2012.09841, Sec. 3.1; Rombach et al. 2022, arXiv:2112.10752, Table 8 (8192 codes of
        3 numbers at f = 4, 16384 of 4 at f = 8).
    """

    autoencoder: AutoencoderConfig = field(
        default_factory=lambda: AutoencoderConfig(latent_channels=3, multipliers=(1, 2, 4))
    )
    codes: int = 8192

    def __post_init__(self) -> None:
        """Refuse a codebook that says nothing."""
        require_positive(self, "codes")
        if self.codes < 2:
            raise ValueError(f"a codebook needs two codes at least, got {self.codes}")

    @property
    def channels(self) -> int:
        """Channels of the pictures."""
        return self.autoencoder.channels

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return self.autoencoder.latent_channels

    @property
    def downsampling(self) -> int:
        """How many times smaller latents are than pictures, in height and in width."""
        return self.autoencoder.downsampling

    @property
    def is_exact(self) -> bool:
        """False."""
        return False

    def build(self) -> QuantizedAutoencoder:
        """The codec, with fresh weights."""
        return QuantizedAutoencoder(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantized:
    """What a codebook made of latents.

    Args:
        latents: each replaced by the nearest code; on the way back, as if nothing had been replaced.
        indices: of these codes.
        codebook_loss: mean squared distance of the codes from the latents, a picture; it moves the codes.
        commitment_loss: the same number; it moves the latents.

    Source: van den Oord et al. 2017, arXiv:1711.00937, Eq. 3.
    """

    latents: Float[Tensor, "b k u v"]
    indices: Int[Tensor, "b u v"]
    codebook_loss: Float[Tensor, "b"]
    commitment_loss: Float[Tensor, "b"]


class Codebook(nn.Module):
    """Vectors, the nearest of which stands for each latent.

    Args:
        codes: how many.
        width: numbers of each.

    Source: van den Oord et al. 2017, arXiv:1711.00937, Sec. 3.
    """

    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.empty(codes, width).uniform_(-1 / codes, 1 / codes))

    def nearest(self, latents: Float[Tensor, "b k u v"]) -> Int[Tensor, "b u v"]:
        """The number of the code that is nearest to each latent; of equally near ones, the first."""
        codes = self.codes.detach()
        rows = latents.detach().movedim(1, -1).flatten(0, -2).to(codes.dtype)
        squares = codes.square().sum(1)
        # |z - e|^2 = |z|^2 - 2 z e + |e|^2, of which the first is the same for all codes.
        most = max(1, _DISTANCES // len(codes))
        parts = [rows[start : start + most] for start in range(0, len(rows), most)]
        found = torch.cat([torch.addmm(squares, part, codes.T, alpha=-2).argmin(1) for part in parts])
        return found.view(len(latents), *latents.shape[2:])

    def look_up(self, indices: Int[Tensor, "b u v"]) -> Float[Tensor, "b k u v"]:
        """The codes of these numbers.

        Raises:
            ValueError: if there is no such code.
        """
        if indices.numel() and (int(indices.min()) < 0 or int(indices.max()) >= len(self.codes)):
            raise ValueError(
                f"there are codes 0 to {len(self.codes) - 1}, got indices from {int(indices.min())} to "
                f"{int(indices.max())}"
            )
        return F.embedding(indices, self.codes).movedim(-1, 1)

    def forward(self, latents: Float[Tensor, "b k u v"]) -> Quantized:
        """One pass: the straight-through estimator."""
        indices = self.nearest(latents)
        chosen = F.embedding(indices, self.codes).movedim(-1, 1)
        return Quantized(
            latents=chosen.detach() + (latents - latents.detach()),  # the codes themselves, to the last bit
            indices=indices,
            codebook_loss=(chosen - latents.detach()).square().flatten(1).mean(1),
            commitment_loss=(chosen.detach() - latents).square().flatten(1).mean(1),
        )

    @torch.no_grad()
    def revive(self, counts: Int[Tensor, "n"], latents: Float[Tensor, "b k u v"], noise: Noise) -> int:
        """Put codes that nothing was near to where latents are.

        Args:
            counts: how often each code was used of late; see ``usage``.
            latents: of one batch, from which new places are drawn without repetition.
            noise: that decides which; the first sample's.

        Returns:
            How many codes were moved; no more than there are latents.

        Source: Dhariwal et al. 2020, arXiv:2005.00341, Sec. 3.1 (random restarts of dead codes).
        """
        dead = (counts == 0).nonzero()[:, 0].to(self.codes.device)
        rows = latents.movedim(1, -1).flatten(0, -2).to(self.codes.dtype)
        keys = noise.rows(slice(0, 1)).uniform(torch.zeros(1, len(rows)))[0]
        chosen = keys.argsort()[: len(dead)].to(rows.device)
        self.codes[dead[: len(chosen)]] = rows[chosen]
        return len(chosen)


@dataclass(frozen=True, kw_only=True)
class Usage:
    """How much of a codebook is used.

    Args:
        used: codes that stood for some latent.
        codes: how many there are.
        perplexity: exp of the entropy of their frequencies: as many codes used equally often would be as uncertain.
    """

    used: int
    codes: int
    perplexity: float


def counts_of(indices: Int[Tensor, "b u v"], codes: int) -> Int[Tensor, "n"]:
    """How often each code occurs."""
    return torch.bincount(indices.flatten(), minlength=codes)


def usage(counts: Int[Tensor, "n"]) -> Usage:
    """How much of a codebook is used, by how often each code occurs.

    Raises:
        ValueError: if none occurs.
    """
    total = int(counts.sum())
    if not total:
        raise ValueError("usage of a codebook needs at least one latent, got none")
    share = counts.double().cpu() / total
    entropy = -torch.xlogy(share, share).sum()
    return Usage(used=int((counts > 0).sum()), codes=len(counts), perplexity=entropy.exp().item())


class QuantizedAutoencoder(nn.Module):
    """An autoencoder with a codebook. A ``Codec`` whose latents are those before rounding: the decoder rounds them.

    Args:
        config: its shape.

    Source: Rombach et al. 2022, arXiv:2112.10752, Sec. 3.1 (the quantisation layer absorbed by the decoder).
    """

    def __init__(self, config: QuantizedConfig) -> None:
        super().__init__()
        self.config = config
        count = config.latent_channels
        self.encoder = Encoder(config.autoencoder, count)
        self.decoder = Decoder(config.autoencoder)
        self.to_latents = nn.Conv2d(count, count, 1)
        self.from_latents = nn.Conv2d(count, count, 1)
        self.codebook = Codebook(config.codes, count)

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return self.config.latent_channels

    @property
    def downsampling(self) -> int:
        """How many times smaller latents are than pictures, in height and in width."""
        return self.config.downsampling

    @property
    def is_exact(self) -> bool:
        """False."""
        return False

    @property
    def scale(self) -> float:
        """What latents are multiplied by."""
        return self.config.autoencoder.scale

    @property
    def last_weight(self) -> Tensor:
        """Of the decoder's last layer, where the gradients of two losses are weighed against each other."""
        return self.decoder.last.weight

    def moments(self, pictures: Picture) -> Float[Tensor, "b k u v"]:
        """Latents of pictures, neither rounded nor scaled: nothing is drawn, so they are all that there is to keep.

        Raises:
            ValueError: if the pictures have other channels, or sides that the codec does not divide.
        """
        require_pictures(pictures, self.config.autoencoder)
        return self.to_latents(self.encoder(pictures.to(self.last_weight.dtype)))

    def drawn(self, moments: Float[Tensor, "b k u v"], noise: Noise) -> Float[Tensor, "b k u v"]:
        """These latents, scaled."""
        return self.scale * moments

    def there_and_back(self, pictures: Picture, noise: Noise) -> Coded:
        """One pass, for training; nothing is drawn.

        Raises:
            ValueError: if the pictures have other channels, or sides that the codec does not divide.
        """
        found: Quantized = self.codebook(self.moments(pictures))
        costs = {"codebook": found.codebook_loss, "commitment": found.commitment_loss}
        return Coded(reconstruction=self.reconstruct(found.latents), costs=costs, indices=found.indices)

    def reconstruct(self, codes: Float[Tensor, "b k u v"]) -> Picture:
        """Pictures of codes."""
        return self.decoder(self.from_latents(codes))

    def indices(self, pictures: Picture) -> Int[Tensor, "b u v"]:
        """The codes of pictures, by number.

        Raises:
            ValueError: if the pictures have other channels, or sides that the codec does not divide.
        """
        return self.codebook.nearest(self.moments(pictures))

    def decode_indices(self, indices: Int[Tensor, "b u v"]) -> Picture:
        """Pictures of codes, by number.

        Raises:
            ValueError: if there is no such code.
        """
        return self.reconstruct(self.codebook.look_up(indices))

    def encode(self, pictures: Picture, noise: Noise) -> Float[Tensor, "b k u v"]:
        """Latents of pictures before rounding, scaled.

        Raises:
            ValueError: if the pictures have other channels, or sides that the codec does not divide.
        """
        return self.drawn(self.moments(pictures), noise).to(pictures.dtype)

    def decode(self, latents: Float[Tensor, "b k u v"]) -> Picture:
        """Pictures of latents, which are rounded to codes.

        Raises:
            ValueError: if the latents have other channels.
        """
        require_latents(latents, self.config.autoencoder)
        nearest = self.codebook((latents / self.scale).to(self.last_weight.dtype)).latents
        return self.reconstruct(nearest).to(latents.dtype)

    def scaled(self, scale: float) -> QuantizedAutoencoder:
        """The same weights, whose latents are multiplied by ``scale``."""
        shape = replace(self.config.autoencoder, scale=scale)
        with torch.device("meta"):
            other = QuantizedAutoencoder(replace(self.config, autoencoder=shape))
        other.load_state_dict(self.state_dict(), assign=True)
        return other.train(self.training)
