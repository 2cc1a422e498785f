"""Losses of codecs: how far a picture is from its reconstruction, to an eye and to an adversary.

Knows: perceptual distance, the patch discriminator, how their parts are weighed, when the adversary comes in.
Does not know: optimizers, where features come from, how a codec is made, files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unstir.codec.base import Coded
from unstir.diffusion.objective import Loss
from unstir.nn.layers import require_positive
from unstir.typing import Picture

Features = Callable[[Picture], Sequence[Float[Tensor, "b c h w"]]]
"""What an eye sees in pictures: maps of features, of any number and size."""

_TINY = 1e-10  # beside a feature's length
_LEAST_GRADIENT = 1e-4
_MOST_WEIGHT = 1e4
_SLOPE = 0.2  # of a leaky unit
_STD = 0.02  # of fresh weights
_MOST_WIDER = 8  # times the width


class PerceptualDistance(nn.Module):
    """How far two pictures are apart in what a network sees in them.

    d(x, y) = sum over maps of the mean over places of sum over channels w (f(x)/|f(x)| - f(y)/|f(y)|)^2,

    with lengths over the channels of a place, and w = 1 unless weights are given.

    Args:
        features: pictures to maps of features; a module's weights are frozen.
        weights: of the channels of each map, one tensor a map.

    Raises:
        ValueError: if a weight is negative.

    Source: Zhang et al. 2018, arXiv:1801.03924, Eq. 1.
    """

    def __init__(self, features: Features, weights: Sequence[Float[Tensor, "c"]] | None = None) -> None:
        super().__init__()
        self.features = features.requires_grad_(False).eval() if isinstance(features, nn.Module) else features
        self.count = None if weights is None else len(weights)
        for index, weight in enumerate(weights or ()):
            if bool((weight < 0).any()):
                raise ValueError(f"weights of a distance must not be negative, those of map {index} are")
            self.register_buffer(f"weight{index}", weight.detach().clone())

    def forward(self, x: Picture, y: Picture) -> Float[Tensor, "b"]:
        """The distance of each pair.

        Raises:
            ValueError: if there are weights for another number of maps.
        """
        pairs = list(zip(self.features(x), self.features(y), strict=True))
        if self.count not in (None, len(pairs)):
            raise ValueError(f"there are weights for {self.count} maps of features, got {len(pairs)} maps")
        total = x.new_zeros(len(x))
        for index, (one, other) in enumerate(pairs):
            apart = (_of_length_one(one) - _of_length_one(other)).square()  # b c h w
            if self.count is not None:
                apart = apart * self.get_buffer(f"weight{index}")[:, None, None]
            total = total + apart.sum(1).flatten(1).mean(1)
        return total


def _of_length_one(maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    # The constant inside the root, where none would have no slope at zero.
    return maps * (maps.square().sum(1, keepdim=True) + _TINY).rsqrt()


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """Shape of a patch discriminator.

    Args:
        channels: of the pictures.
        width: channels of the first layer; each next one has twice as many, up to eight times.
        layers: that halve height and width.

    Raises:
        ValueError: if a number is below 1.
    """

    channels: int = 3
    width: int = 64
    layers: int = 3

    def __post_init__(self) -> None:
        """Refuse what is no network."""
        require_positive(self, "channels", "width", "layers")


class PatchDiscriminator(nn.Module):
    """Is this patch of a real picture? One number for each patch of 70 x 70 (with three layers): the logit of yes.

    Args:
        config: its shape.

    Source: Isola et al. 2017, arXiv:1611.07004, Sec. 3.2.2 and Appendix 6.1.2; Esser et al. 2021, arXiv:2012.09841.
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        width, layers = config.width, config.layers
        widths = [width * min(2**level, _MOST_WIDER) for level in range(layers + 1)]
        parts: list[nn.Module] = [nn.Conv2d(config.channels, width, 4, stride=2, padding=1), nn.LeakyReLU(_SLOPE)]
        for level in range(1, layers + 1):
            stride = 2 if level < layers else 1
            parts += [
                nn.Conv2d(widths[level - 1], widths[level], 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(widths[level]),
                nn.LeakyReLU(_SLOPE),
            ]
        self.parts = nn.Sequential(*parts, nn.Conv2d(widths[-1], 1, 4, padding=1))
        for part in self.parts:
            if isinstance(part, nn.Conv2d):
                nn.init.normal_(part.weight, 0.0, _STD)
            elif isinstance(part, nn.BatchNorm2d):
                nn.init.normal_(part.weight, 1.0, _STD)

    @property
    def smallest(self) -> int:
        """The smallest height and width that it can judge."""
        return 3 * 2**self.config.layers

    def forward(self, pictures: Picture) -> Float[Tensor, "b 1 u v"]:
        """One pass.

        Raises:
            ValueError: if the pictures are too small, or have other channels.
        """
        channels, height, width = pictures.shape[1:]
        if channels != self.config.channels or min(height, width) < self.smallest:
            raise ValueError(
                f"the discriminator reads pictures of {self.config.channels} channels of {self.smallest}x"
                f"{self.smallest} at least, got {channels} channels of {width}x{height}"
            )
        return self.parts(pictures)


def hinge(real: Float[Tensor, "b 1 u v"], fake: Float[Tensor, "b 1 u v"]) -> Float[Tensor, "b"]:
    """What a discriminator minimises: mean over patches of (max(0, 1 - real) + max(0, 1 + fake)) / 2.

    Source: Lim & Ye 2017, arXiv:1705.02894, Sec. 3.
    """
    return 0.5 * (F.relu(1 - real) + F.relu(1 + fake)).flatten(1).mean(1)


def fooling(fake: Float[Tensor, "b 1 u v"]) -> Float[Tensor, "b"]:
    """What the discriminator's adversary minimises: the mean over patches of -fake.

    Source: Lim & Ye 2017, arXiv:1705.02894, Sec. 3.
    """
    return -fake.flatten(1).mean(1)


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last: Tensor) -> Float[Tensor, ""]:
    """What makes the gradients of two losses equally long at the decoder's last layer.

    weight = min(|d reconstruction / d last| / (|d adversarial / d last| + 1e-4), 1e4), without a gradient of its own

    Args:
        reconstruction: a loss.
        adversarial: another loss.
        last: weights of the last layer.

    Source: Esser et al. 2021, arXiv:2012.09841, Eq. 7 (with 1e-6), clipped as in the code of arXiv:2112.10752.
    """
    of_error, of_adversarial = (
        torch.autograd.grad(loss, last, retain_graph=True)[0].detach().float().square().sum().sqrt()
        for loss in (reconstruction, adversarial)
    )
    return (of_error / (of_adversarial + _LEAST_GRADIENT)).clamp(0, _MOST_WEIGHT)


@dataclass(frozen=True, kw_only=True)
class CodecWeights:
    """How the parts of a codec's loss are weighed.

    Args:
        perceptual: of the perceptual distance, beside the absolute error of one number.
        kl: of the posterior's divergence, in nats a picture, beside the error of a whole picture.
        commitment: of the distance of latents from their codes, beside that of codes from their latents.
        codebook: of both.
        adversarial: of the discriminator, times the adaptive weight.
        adversarial_start: pictures that are seen before the discriminator comes in.

    Raises:
        ValueError: if one is negative or not finite.

    Source: Rombach et al. 2022, arXiv:2112.10752, and its code: 1, 1e-6, 0.25, 1, 0.5, and 50,001 steps.
    """

    perceptual: float = 1.0
    kl: float = 1e-6
    commitment: float = 0.25
    codebook: float = 1.0
    adversarial: float = 0.5
    adversarial_start: int = 500_000

    def __post_init__(self) -> None:
        """Refuse what is no weight."""
        for name in ("perceptual", "kl", "commitment", "codebook", "adversarial", "adversarial_start"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0 and finite, got {getattr(self, name)}")


class CodecLoss(nn.Module):
    """What a codec is trained with, and what it is trained against.

    loss = |x - y| + perceptual d(x, y) + what the latents cost + adversarial weight fooling(discriminator(y)),

    all a number of the picture: the absolute error is a mean over these, and nats a picture are divided by how many
    they are. That is the loss of the source by a constant factor, of which Adam takes no notice, nor, but for its clip,
    the adaptive weight. Its learned scale of the error is left out: their optimizer never moved it.

    Args:
        weights: of the parts.
        discriminator: the adversary; None is none.
        perceptual: the distance; None is none.

    Raises:
        ValueError: if a part has a weight and does not exist.

    Source: Rombach et al. 2022, arXiv:2112.10752, Appendix G, Eq. 25; Esser et al. 2021, arXiv:2012.09841, Eqs. 5-7.
    """

    def __init__(
        self,
        weights: CodecWeights,
        *,
        discriminator: PatchDiscriminator | None = None,
        perceptual: PerceptualDistance | None = None,
    ) -> None:
        super().__init__()
        for name, part in (("adversarial", discriminator), ("perceptual", perceptual)):
            if part is None and getattr(weights, name) > 0:
                needed = "a discriminator" if name == "adversarial" else "a distance (features of a classifier, say)"
                raise ValueError(
                    f"the {name} part of the loss has a weight and needs {needed}; give these, or weight 0"
                )
        self.weights, self.discriminator, self.perceptual = weights, discriminator, perceptual

    def is_contested(self, images_seen: int) -> bool:
        """Whether the discriminator has come in."""
        return self.weights.adversarial > 0 and images_seen >= self.weights.adversarial_start

    def forward(self, pictures: Picture, coded: Coded, last: Tensor, *, images_seen: int) -> Loss:
        """What the codec minimises; the discriminator's weights get no gradient.

        Args:
            pictures: as they were.
            coded: what the codec made of them.
            last: weights of the decoder's last layer.
            images_seen: pictures that training saw before.
        """
        weights, y = self.weights, coded.reconstruction
        parts = {"l1": (pictures - y).abs().flatten(1).mean(1), **coded.costs}
        error = parts["l1"]
        if self.perceptual is not None and weights.perceptual > 0:
            parts["perceptual"] = self.perceptual(pictures, y)
            error = error + weights.perceptual * parts["perceptual"]
        total = error
        for name, cost in coded.costs.items():
            total = total + self._weight(name, pictures[0].numel()) * cost
        parts["fooling"] = parts["adaptive_weight"] = torch.zeros_like(error)
        if self.discriminator is not None and self.is_contested(images_seen):
            with _frozen(self.discriminator):
                parts["fooling"] = fooling(self.discriminator(y))
            if torch.is_grad_enabled():
                found = adaptive_weight(error.mean(), parts["fooling"].mean(), last)
                parts["adaptive_weight"] = found.expand(len(error))
            total = total + weights.adversarial * parts["adaptive_weight"] * parts["fooling"]
        return Loss(per_sample=total, parts={name: part.detach() for name, part in parts.items()})

    def against(self, pictures: Picture, reconstruction: Picture) -> Loss:
        """What the discriminator minimises; the codec gets no gradient.

        Raises:
            ValueError: if there is no discriminator.
        """
        if self.discriminator is None:
            raise ValueError("there is no discriminator to train; give one, or leave this step out")
        real, fake = self.discriminator(pictures.detach()), self.discriminator(reconstruction.detach())
        parts = {"real": real.detach().flatten(1).mean(1), "fake": fake.detach().flatten(1).mean(1)}
        return Loss(per_sample=hinge(real, fake), parts=parts)

    def _weight(self, cost: str, numbers: int) -> float:
        weights = self.weights
        known = {
            "kl": weights.kl / numbers,
            "codebook": weights.codebook,
            "commitment": weights.codebook * weights.commitment,
        }
        return known[cost]


@contextmanager
def _frozen(network: nn.Module) -> Generator[None]:
    """Weights that get no gradient while this lasts."""
    asked = [weight for weight in network.parameters() if weight.requires_grad]
    for weight in asked:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in asked:
            weight.requires_grad_(True)
