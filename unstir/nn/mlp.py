"""MLP: a residual multilayer perceptron for samples without structure: vectors, short sequences, small pictures.

Knows: the elements of a sample in a row, residual layers, one number a sample that modulates every layer.
Does not know: neighbourhoods, words, what its input is a mixture of, or what its output is compared with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unstir.condition import Condition
from unstir.nn.embedding import sinusoids
from unstir.nn.layers import modulate, require_positive, zero_init


@dataclass(frozen=True, kw_only=True)
class MLPConfig:
    """Shape of an MLP.

    Args:
        sites: elements of a sample: channels times height times width of a picture, the length of a vector.
        channels: of a sample, which divide its elements; None for vectors, where every element is a channel.
        out_factor: outputs an element; the second of 2 is for what a network says beside the belief, and comes as
            ``channels`` further channels.
        width: of the hidden layers.
        depth: number of residual blocks.
        features: sinusoids of the scalar; even.
        input_features: sinusoids of each element of x beside the element itself, for laws that are fine beside their
            extent; even, 0 for none.

    Raises:
        ValueError: if a number that must be positive is not, ``channels`` does not divide ``sites``, ``features`` or
            ``input_features`` is odd, or ``input_features`` is negative.
    """

    sites: int = 2
    channels: int | None = None
    out_factor: int = 1
    width: int = 128
    depth: int = 3
    features: int = 64
    input_features: int = 0

    def __post_init__(self) -> None:
        """Refuse a shape that cannot be built."""
        require_positive(self, "sites", "out_factor", "width", "depth", "features")
        if self.channels is not None and (self.channels < 1 or self.sites % self.channels):
            raise ValueError(f"channels must divide sites, got {self.channels} channels and {self.sites} sites")
        if self.features % 2 or self.input_features % 2 or self.input_features < 0:
            raise ValueError(
                "sinusoids come in pairs, a sine and a cosine, "
                f"got features {self.features} and input_features {self.input_features}"
            )


class MLP(nn.Module):
    """Residual blocks between two linear layers; the scalar shifts and scales what every block and the last layer see.

    h = in(x, sinusoids of x);   h += second(silu(first(norm(h) (1 + gain_i) + shift_i))), i = 1 ... depth;
    out = last(h (1 + gain) + shift),   (gains, shifts) = linear(silu(linear(sinusoids of the scalar)))

    Nothing is normalised on the way past the blocks, so that functions linear in x are in reach at every scale of x.
    The last layer starts at zero. **The condition is ignored**: the MLP is for laws without words.

    Args:
        config: its shape.

    Source: He et al. 2016, arXiv:1603.05027 (residual blocks that begin with the norm); Perez et al. 2018,
        arXiv:1709.07871 (modulation by scale and shift); Ba et al. 2016, arXiv:1607.06450 (layer norm); Tancik et al.
        2020, arXiv:2006.10739 and Kingma et al. 2021, arXiv:2107.00630, Appendix C (sinusoids of the input).
    """

    def __init__(self, config: MLPConfig) -> None:
        super().__init__()
        self.config = config
        self.in_channels = config.channels or config.sites
        self.out_channels = config.out_factor * self.in_channels
        self.multiple, self.is_one_size = math.isqrt(config.sites // self.in_channels), True
        width = config.width
        self.scalar = nn.Linear(config.features, config.features)
        self.modulation = nn.Linear(config.features, 2 * (config.depth + 1) * width)
        self.first = nn.Linear(config.sites * (1 + config.input_features), width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(config.depth))
        self.last = zero_init(nn.Linear(width, config.out_factor * config.sites))

    def forward(
        self, x: Float[Tensor, "b c *site"], scalar: Float[Tensor, "b"], condition: Condition | None = None
    ) -> Float[Tensor, "b k *site"]:
        """The output at every element.

        Raises:
            ValueError: if a sample is not of the shape that the network was made for.
        """
        if x.shape[1] != self.in_channels or x.shape[1:].numel() != self.config.sites:
            raise ValueError(
                f"this network takes {self.config.sites} elements in {self.in_channels} channels, "
                f"got a sample of shape {tuple(x.shape[1:])}"
            )
        vector = F.silu(self.scalar(sinusoids(scalar, self.config.features)))
        modulations = self.modulation(vector).chunk(2 * (self.config.depth + 1), 1)  # each b w
        hidden = self.first(_with_sinusoids(x.flatten(1), self.config.input_features))  # b w
        for index, block in enumerate(self.blocks):
            hidden = block(hidden, modulations[2 * index], modulations[2 * index + 1])
        out = self.last(modulate(hidden, modulations[-2], modulations[-1]))
        return out.view(len(x), self.out_channels, *x.shape[2:])


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "b w"], shift: Float[Tensor, "b w"], gain: Float[Tensor, "b w"]
    ) -> Float[Tensor, "b w"]:
        inner = modulate(F.layer_norm(x, (self.width,)), shift, gain)
        return x + self.second(F.silu(self.first(inner)))


def _with_sinusoids(x: Float[Tensor, "b s"], count: int) -> Float[Tensor, "b f"]:
    """Each element, and its sines and cosines at the frequencies 1, 2, 4, ...: periods from 2 pi downwards."""
    if not count:
        return x
    frequency = 2.0 ** torch.arange(count // 2, device=x.device, dtype=x.dtype)
    angle = (x[:, :, None] * frequency).flatten(1)
    return torch.cat([x, angle.sin(), angle.cos()], 1)
