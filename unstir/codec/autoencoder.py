"""Autoencoders: pictures to small latents and back, by a network that has learned both ways.

Knows: encoder and decoder of the papers, the posterior between them, the scale that gives latents unit variance.
Does not know: how they are trained, noise levels, files.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Self

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unstir.codec.base import Coded, LearnedCodec
from unstir.nn.attention import attend
from unstir.nn.layers import require_positive
from unstir.typing import Noise, Picture

_EPSILON = 1e-6  # of group normalisation
_LOG_VARIANCES = (-30.0, 20.0)  # what is beyond is no variance that float32 could work with
_MOST_LEVELS = 6


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Shape of a KL autoencoder, and of the encoder and decoder in any other one; the defaults are Stable Diffusion's.

    Args:
        channels: of the pictures.
        latent_channels: of the latents.
        width: channels of the finest level.
        multipliers: of the width, a level each, fine to coarse; every level but the last halves height and width.
        blocks: residual blocks a level; the decoder has one more.
        groups: of the normalisation.
        has_attention: whether the coarsest level looks at itself, in encoder and decoder.
        scale: what latents are multiplied by, so that their variance is one; see ``measured_scale``.

    Raises:
        ValueError: if a number is out of its range, or the groups do not divide a level's channels.

    Source: Rombach et al. 2022, arXiv:2112.10752, Sec. 3.1 and Appendix E.1.
    """

    channels: int = 3
    latent_channels: int = 4
    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    groups: int = 32
    has_attention: bool = True
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what no autoencoder can be made of."""
        require_positive(self, "channels", "latent_channels", "width", "blocks", "groups")
        if not 1 <= len(self.multipliers) <= _MOST_LEVELS or min(self.multipliers) < 1:
            raise ValueError(
                f"an autoencoder has 1 to {_MOST_LEVELS} levels, each with a multiplier of at least 1, got "
                f"multipliers {self.multipliers}"
            )
        if any(width % self.groups for width in self.widths):
            raise ValueError(
                f"the groups of the normalisation must divide the channels of every level, got {self.groups} groups "
                f"for {self.widths} channels; change groups or width"
            )
        if not 0 < self.scale < math.inf:
            raise ValueError(f"the scale of latents must be positive, got {self.scale}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, fine to coarse."""
        return tuple(self.width * multiplier for multiplier in self.multipliers)

    @property
    def downsampling(self) -> int:
        """2 to the number of levels but one."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def is_exact(self) -> bool:
        """False."""
        return False

    def build(self) -> KLAutoencoder:
        """The codec, with fresh weights."""
        return KLAutoencoder(self)


class Block(nn.Module):
    """Two convolutions beside a shortcut: shortcut(x) + conv(silu(norm(conv(silu(norm(x)))))).

    Args:
        in_width: channels in.
        out_width: channels out.
        groups: of the normalisation.
    """

    def __init__(self, in_width: int, out_width: int, groups: int) -> None:
        super().__init__()
        self.first_norm = nn.GroupNorm(groups, in_width, eps=_EPSILON)
        self.first = nn.Conv2d(in_width, out_width, 3, padding=1)
        self.second_norm = nn.GroupNorm(groups, out_width, eps=_EPSILON)
        self.second = nn.Conv2d(out_width, out_width, 3, padding=1)
        self.shortcut = nn.Identity() if in_width == out_width else nn.Conv2d(in_width, out_width, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        """One pass."""
        inner = self.second(_silu(self.second_norm(self.first(_silu(self.first_norm(x))))))
        return inner.add_(self.shortcut(x))  # a convolution does not need what it gave on the way back


class Look(nn.Module):
    """Every place looks at every other, with one head: x + out(attention(norm(x))).

    Args:
        width: channels.
        groups: of the normalisation.
    """

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=_EPSILON)
        self.joint = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """One pass."""
        places = self.norm(x).flatten(2).transpose(1, 2)  # b hw c
        query, key, value = self.joint(places)[:, None].chunk(3, -1)  # b 1 hw c each
        seen = self.out(attend(query, key, value)[:, 0])
        return x + seen.transpose(1, 2).reshape(x.shape)


class Halve(nn.Module):
    """Half the height and width: a convolution of stride 2 that sees one place more to the right and below.

    Args:
        width: channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c u v"]:
        """One pass."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Double(nn.Module):
    """Twice the height and width: every number four times, and a convolution.

    Args:
        width: channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c u v"]:
        """One pass."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _silu(x: Tensor) -> Tensor:
    """SiLU of what nobody else reads: in its place where no way back needs it."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def _row(widths: Sequence[int], groups: int) -> list[nn.Module]:
    """Blocks one after another, from each number of channels to the next."""
    return [Block(before, after, groups) for before, after in pairwise(widths)]


def _middle(config: AutoencoderConfig) -> list[nn.Module]:
    width, groups = config.widths[-1], config.groups
    look = [Look(width, groups)] if config.has_attention else []
    return [Block(width, width, groups), *look, Block(width, width, groups)]


class Encoder(nn.Module):
    """Pictures to numbers on a coarser grid.

    Args:
        config: its shape.
        outputs: channels that it gives.
    """

    def __init__(self, config: AutoencoderConfig, outputs: int) -> None:
        super().__init__()
        widths, groups = config.widths, config.groups
        self.first = nn.Conv2d(config.channels, widths[0], 3, padding=1)
        parts: list[nn.Module] = []
        for level, width in enumerate(widths):
            parts += _row((widths[max(level - 1, 0)], *[width] * config.blocks), groups)
            parts += [Halve(width)] if level < len(widths) - 1 else []
        self.parts = nn.Sequential(*parts, *_middle(config))
        self.norm = nn.GroupNorm(groups, widths[-1], eps=_EPSILON)
        self.last = nn.Conv2d(widths[-1], outputs, 3, padding=1)

    def forward(self, pictures: Picture) -> Float[Tensor, "b k u v"]:
        """One pass."""
        return self.last(_silu(self.norm(self.parts(self.first(pictures)))))


class Decoder(nn.Module):
    """Numbers on a coarse grid to pictures.

    Args:
        config: its shape.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths, groups = config.widths[::-1], config.groups
        self.first = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        parts: list[nn.Module] = []
        for level, width in enumerate(widths):
            parts += _row((widths[max(level - 1, 0)], *[width] * (config.blocks + 1)), groups)
            parts += [Double(width)] if level < len(widths) - 1 else []
        self.parts = nn.Sequential(*_middle(config), *parts)
        self.norm = nn.GroupNorm(groups, widths[-1], eps=_EPSILON)
        self.last = nn.Conv2d(widths[-1], config.channels, 3, padding=1)

    def forward(self, latents: Float[Tensor, "b k u v"]) -> Picture:
        """One pass."""
        return self.last(_silu(self.norm(self.parts(self.first(latents)))))


@dataclass(frozen=True, kw_only=True, eq=False)
class Posterior:
    """What an encoder believes about latents: independent Gaussians.

    Args:
        mean: of each number.
        log_variance: of each number.

    Source: Kingma & Welling 2014, arXiv:1312.6114, Appendix B (the divergence); Rombach et al. 2022, arXiv:2112.10752.
    """

    mean: Float[Tensor, "b k u v"]
    log_variance: Float[Tensor, "b k u v"]

    @classmethod
    def of(cls, moments: Float[Tensor, "b m u v"]) -> Self:
        """From means and log-variances one after another, these kept in [-30, 20]."""
        mean, log_variance = moments.chunk(2, 1)
        return cls(mean=mean, log_variance=log_variance.clamp(*_LOG_VARIANCES))

    def sample(self, noise: Noise) -> Float[Tensor, "b k u v"]:
        """Latents: mean + exp(log_variance / 2) z."""
        return self.mean + (0.5 * self.log_variance).exp() * noise.normal(self.mean)

    def kl(self) -> Float[Tensor, "b"]:
        """KL(posterior || N(0, 1)) in nats, summed over a picture's latents."""
        each = self.mean.square() + self.log_variance.exp() - 1 - self.log_variance
        return 0.5 * each.flatten(1).sum(1)


class KLAutoencoder(nn.Module):
    """An autoencoder whose latents are drawn from a Gaussian that training pulls towards the standard one. A ``Codec``.

    Args:
        config: its shape.

    Source: Rombach et al. 2022, arXiv:2112.10752, Sec. 3.1.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        count = config.latent_channels
        self.encoder = Encoder(config, 2 * count)
        self.decoder = Decoder(config)
        self.to_moments = nn.Conv2d(2 * count, 2 * count, 1)
        self.from_latents = nn.Conv2d(count, count, 1)

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
        return self.config.scale

    @property
    def last_weight(self) -> Tensor:
        """Of the decoder's last layer, where the gradients of two losses are weighed against each other."""
        return self.decoder.last.weight

    def posterior(self, pictures: Picture) -> Posterior:
        """What the latents of pictures may be, before they are scaled.

        Raises:
            ValueError: if the pictures have other channels, or sides that the codec does not divide.
        """
        return Posterior.of(self.moments(pictures))

    def moments(self, pictures: Picture) -> Float[Tensor, "b m u v"]:
        """Means and log-variances of the latents of pictures, one after another, before they are scaled.

        Raises:
            ValueError: if the pictures have other channels, or sides that the codec does not divide.
        """
        require_pictures(pictures, self.config)
        return self.to_moments(self.encoder(pictures.to(self.last_weight.dtype)))

    def drawn(self, moments: Float[Tensor, "b m u v"], noise: Noise) -> Float[Tensor, "b k u v"]:
        """Latents of these moments, drawn with ``noise`` and scaled."""
        return self.scale * Posterior.of(moments).sample(noise)

    def there_and_back(self, pictures: Picture, noise: Noise) -> Coded:
        """One pass, for training: the latents are drawn.

        Raises:
            ValueError: if the pictures have other channels, or sides that the codec does not divide.
        """
        posterior = self.posterior(pictures)
        return Coded(reconstruction=self.reconstruct(posterior.sample(noise)), costs={"kl": posterior.kl()})

    def reconstruct(self, unscaled: Float[Tensor, "b k u v"]) -> Picture:
        """Pictures of latents that are not scaled."""
        return self.decoder(self.from_latents(unscaled.to(self.last_weight.dtype)))

    def encode(self, pictures: Picture, noise: Noise) -> Float[Tensor, "b k u v"]:
        """Latents of pictures, drawn with ``noise`` and scaled.

        Raises:
            ValueError: if the pictures have other channels, or sides that the codec does not divide.
        """
        return self.drawn(self.moments(pictures), noise).to(pictures.dtype)

    def decode(self, latents: Float[Tensor, "b k u v"]) -> Picture:
        """Pictures of latents.

        Raises:
            ValueError: if the latents have other channels.
        """
        require_latents(latents, self.config)
        return self.reconstruct(latents / self.scale).to(latents.dtype)

    def scaled(self, scale: float) -> KLAutoencoder:
        """The same weights, whose latents are multiplied by ``scale``."""
        with torch.device("meta"):
            other = KLAutoencoder(replace(self.config, scale=scale))
        other.load_state_dict(self.state_dict(), assign=True)
        return other.train(self.training)


def require_pictures(pictures: Picture, config: AutoencoderConfig) -> None:
    """Refuse pictures that an autoencoder cannot read.

    Raises:
        ValueError: if they have other channels, or sides that it does not divide.
    """
    _, channels, height, width = pictures.shape
    multiple = config.downsampling
    if channels != config.channels:
        raise ValueError(f"the codec reads pictures of {config.channels} channels, got {channels}")
    if height % multiple or width % multiple or not height or not width:
        raise ValueError(f"the codec reads pictures whose sides are multiples of {multiple}, got {width}x{height}")


def require_latents(latents: Float[Tensor, "b k u v"], config: AutoencoderConfig) -> None:
    """Refuse latents that are not an autoencoder's.

    Raises:
        ValueError: if they have other channels.
    """
    if latents.shape[1] != config.latent_channels:
        raise ValueError(f"the codec reads latents of {config.latent_channels} channels, got {latents.shape[1]}")


@torch.no_grad()
def measured_scale(codec: LearnedCodec, batches: Iterable[tuple[Picture, Noise]]) -> float:
    """What latents must be multiplied by for unit variance: 1 / std over all numbers of all latents.

    Args:
        codec: as it is; its present scale does not matter.
        batches: pictures, each batch with the noise that its latents are drawn with.

    Raises:
        ValueError: if there are no pictures, or their latents do not differ.

    Source: Rombach et al. 2022, arXiv:2112.10752, Appendix G (rescaling by the standard deviation).
    """
    count, total, squares = 0, 0.0, 0.0
    for pictures, noise in batches:
        latents = codec.encode(pictures, noise).double() / codec.scale
        count, total, squares = (
            count + latents.numel(),
            total + latents.sum().item(),
            squares + latents.square().sum().item(),
        )
    variance = squares / count - (total / count) ** 2 if count else 0.0
    if not 0 < variance < math.inf:
        raise ValueError(f"the scale of latents needs latents that differ, got {count} numbers of variance {variance}")
    return variance**-0.5
