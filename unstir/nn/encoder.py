"""Encoder: the way down of a U-Net, and what it sees at the bottom as one vector and one number a class.

Knows: residual blocks on levels of resolution, how the last level becomes a vector and logits.
Does not know: what its input is a mixture of, or what the classes are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unstir.nn.embedding import scalar_layers, sinusoids
from unstir.nn.layers import ResidualBlock, group_norm, level_widths, require_positive, zero_init


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Shape of an encoder.

    Args:
        channels: of the picture that comes in.
        outputs: numbers that come out: one a class.
        width: channels at full resolution; even.
        multipliers: one a level, fine to coarse; level i has ``multipliers[i] * width`` channels and 1/2^i of the
            height and width.
        blocks: residual blocks a level.
    """

    channels: int = 3
    outputs: int = 10
    width: int = 32
    multipliers: tuple[int, ...] = (1, 2, 4)
    blocks: int = 1


class Encoder(nn.Module):
    """The down half of a U-Net with a pooled head: logits = linear(mean over sites of silu(norm(last level))).

    The scalar alone modulates every block; there are no words. Logits start at zero: every class is equally likely. It
    reads any height and width that are multiples of ``multiple``, all by the same number of weights.

    Args:
        config: its shape.

    Raises:
        ValueError: if a number is below 1, there is no level, or ``width`` is odd.

    Source: Dhariwal & Nichol 2021, arXiv:2105.05233, Sec. 4 and code (the down-sampling trunk of the U-Net as the
        classifier), with a global average in the place of their attention pooling and no attention on the way.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        require_positive(config, "channels", "outputs")
        widths = level_widths(config.width, config.multipliers, config.blocks)
        self.config = config
        self.multiple = 2 ** (len(widths) - 1)
        self.num_features = widths[-1]
        vector_width = 4 * config.width
        self.scalar = scalar_layers(config.width, vector_width)
        self.first = nn.Conv2d(config.channels, config.width, 3, padding=1)
        steps: list[nn.Module] = []
        current = config.width
        for level, width in enumerate(widths):
            if level:
                steps.append(nn.Conv2d(current, current, 3, stride=2, padding=1))
            for _ in range(config.blocks):
                steps.append(ResidualBlock(current, width, vector_width))
                current = width
        self.steps = nn.ModuleList(steps)
        self.last_norm = group_norm(current)
        self.head = zero_init(nn.Linear(current, config.outputs))

    def features(self, x: Float[Tensor, "b c h w"], scalar: Float[Tensor, "b"]) -> Float[Tensor, "b d"]:
        """What the head reads: the last level after its norm and nonlinearity, averaged over its sites.

        Raises:
            ValueError: if height or width is no multiple of ``multiple``.
        """
        if x.shape[2] % self.multiple or x.shape[3] % self.multiple:
            raise ValueError(f"this network reads multiples of {self.multiple}, got {x.shape[3]}x{x.shape[2]}")
        vector = F.silu(self.scalar(sinusoids(scalar, self.config.width).to(x.dtype)))
        x = self.first(x)
        for step in self.steps:
            x = step(x, vector) if isinstance(step, ResidualBlock) else step(x)
        return F.silu(self.last_norm(x)).mean((2, 3))

    def forward(self, x: Float[Tensor, "b c h w"], scalar: Float[Tensor, "b"]) -> Float[Tensor, "b k"]:
        """The logits: log-probabilities up to a constant a sample.

        Raises:
            ValueError: as ``features``.
        """
        return self.head(self.features(x, scalar))
