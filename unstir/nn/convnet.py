"""ConvNet: a small residual network of convolutions on several scales at once, for pictures without words.

Knows: residual blocks, pooled copies of a picture, pixels that look alike, one number a sample that modulates.
Does not know: words, attention, what its input is a mixture of, or what its output is compared with.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unstir.condition import Condition
from unstir.nn.embedding import sinusoids
from unstir.nn.layers import group_norm, modulate, require_positive, zero_init


@dataclass(frozen=True, kw_only=True)
class ConvNetConfig:
    """Shape of a ConvNet.

    Args:
        channels: of the picture.
        out_factor: outputs a channel; the second of 2 is for what a network says beside the belief.
        width: channels of the hidden layers.
        depth: number of residual blocks.
        scales: of each convolution: the picture itself, and its means over 2x2, 4x4, ... pixels.
        features: sinusoids of the scalar; even.
        heads: of the comparison of all pixels with each other; 0 for none.
        reach: of the comparison of each pixel with its neighbours, in pixels; 0 for none.
        steepness: to start from: by what power of e gains of comparisons grow as the scalar grows by 1.

    Raises:
        ValueError: if a number is out of its range, or ``features`` is odd.
    """

    channels: int = 1
    out_factor: int = 1
    width: int = 32
    depth: int = 4
    scales: int = 3
    features: int = 64
    heads: int = 0
    reach: int = 0
    steepness: float = -4.0

    def __post_init__(self) -> None:
        """Refuse a shape that cannot be built."""
        require_positive(self, "channels", "out_factor", "width", "depth", "scales", "features")
        if self.features % 2:
            raise ValueError(f"sinusoids come in pairs, a sine and a cosine, got features {self.features}")
        if self.heads < 0 or self.reach < 0:
            raise ValueError(f"comparisons cannot be fewer than none, got heads {self.heads} and reach {self.reach}")


class ConvNet(nn.Module):
    """Residual blocks between two convolutions; the scalar shifts and scales what every block sees.

    h += second(silu(modulated norm of first(silu(norm(h)))))

    where ``first`` is a sum over scales: the picture's mean over 2^k x 2^k pixels, convolved 3x3 and repeated 2^k times
    along each axis. The last layer starts at zero. **The condition is ignored**: it is for laws without words.

    Beside the picture itself the blocks may be shown comparisons u between pixels, as u/(1 + u^2) and 1/(1 + u^2): what
    differs little speaks, what differs much is silent. All are multiplied by a gain exp(a + steepness scalar).

    - ``reach``: a pixel's difference from each neighbour (kernels that start so, and are learned).
    - ``heads``: a pixel's difference from the mean of the pixels that look alike and are near, with weights
      softmax_j(-gain^2 |x_i - x_j|^2 - near |i - j|^2).

    Args:
        config: its shape.

    Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, Appendix D.2.1 (multi-scale convolution); He et al. 2016,
        arXiv:1603.05027 (residual blocks that begin with the norm); Tomasi & Manduchi 1998, "Bilateral filtering for
        gray and color images", and Buades, Coll & Morel 2005, "A non-local algorithm for image denoising" (heads).
    """

    def __init__(self, config: ConvNetConfig) -> None:
        super().__init__()
        self.config = config
        self.in_channels = config.channels
        self.out_channels = config.out_factor * config.channels
        self.multiple, self.is_one_size = 2 ** (config.scales - 1), False
        self.scalar = nn.Linear(config.features, 2 * config.width)
        self.first = nn.Conv2d(config.channels, config.width, 3, padding=1)
        self.near = _Neighbours(config) if config.reach else None
        self.alike = _Alike(config) if config.heads else None
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.depth))
        self.norm = group_norm(config.width)
        self.last = zero_init(nn.Conv2d(config.width, self.out_channels, 3, padding=1))

    def forward(
        self, x: Float[Tensor, "b c h w"], scalar: Float[Tensor, "b"], condition: Condition | None = None
    ) -> Float[Tensor, "b k h w"]:
        """The output at every pixel.

        Raises:
            ValueError: if height or width is no multiple of ``multiple``.
        """
        if x.shape[2] % self.multiple or x.shape[3] % self.multiple:
            raise ValueError(f"this network draws multiples of {self.multiple}, got {x.shape[3]}x{x.shape[2]}")
        vector = F.silu(self.scalar(sinusoids(scalar, self.config.features)))
        hidden = self.first(x)
        for comparison in (self.near, self.alike):
            if comparison is not None:
                hidden = hidden + comparison(x, scalar)
        for block in self.blocks:
            hidden = block(hidden, vector)
        return self.last(F.silu(self.norm(hidden)))


class _Block(nn.Module):
    def __init__(self, config: ConvNetConfig) -> None:
        super().__init__()
        width = config.width
        self.first_norm = group_norm(width)
        self.first = _MultiScale(width, config.scales)
        self.modulation = nn.Linear(2 * width, 2 * width)
        self.second_norm = group_norm(width)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Float[Tensor, "b w u v"], vector: Float[Tensor, "b d"]) -> Float[Tensor, "b w u v"]:
        inner = self.first(F.silu(self.first_norm(x)))
        shift, gain = self.modulation(vector)[:, :, None, None].chunk(2, 1)  # b w 1 1
        return x + self.second(F.silu(modulate(self.second_norm(inner), shift, gain)))


class _MultiScale(nn.Module):
    def __init__(self, width: int, scales: int) -> None:
        super().__init__()
        self.scales = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(scales))

    def forward(self, x: Float[Tensor, "b w u v"]) -> Float[Tensor, "b w u v"]:
        total = self.scales[0](x)
        for k, conv in enumerate(self.scales[1:], start=1):
            x = F.avg_pool2d(x, 2)
            total = total + F.interpolate(conv(x), scale_factor=float(2**k), mode="nearest")
        return total


class _Neighbours(nn.Module):
    def __init__(self, config: ConvNetConfig) -> None:
        super().__init__()
        side = 2 * config.reach + 1
        middle = side * side // 2
        others = torch.cat([torch.eye(side * side)[:middle], torch.eye(side * side)[middle + 1 :]])
        others[:, middle] = -1
        self.channels, self.reach = config.channels, config.reach
        self.kernels = nn.Parameter(others.view(-1, 1, side, side).repeat(config.channels, 1, 1, 1))
        self.gain = nn.Parameter(torch.zeros(len(self.kernels)))
        self.slope = nn.Parameter(torch.full((len(self.kernels),), config.steepness))
        self.out = nn.Conv2d(2 * len(self.kernels), config.width, 1)

    def forward(self, x: Float[Tensor, "b c h w"], scalar: Float[Tensor, "b"]) -> Float[Tensor, "b k h w"]:
        beyond = F.pad(x, (self.reach,) * 4, mode="replicate")
        differences = F.conv2d(beyond, self.kernels, groups=self.channels)
        gain = _gain(self.gain, self.slope, scalar)  # b n
        return self.out(_where_small(differences * gain[:, :, None, None]))


class _Alike(nn.Module):
    def __init__(self, config: ConvNetConfig) -> None:
        super().__init__()
        heads = config.heads
        self.gain = nn.Parameter(torch.linspace(-2.0, 0.0, heads))
        self.slope = nn.Parameter(torch.full((heads,), config.steepness))
        self.log_near = nn.Parameter(torch.linspace(-5.0, -2.0, heads))
        self.out = nn.Conv2d(2 * heads * config.channels, config.width, 1)

    def forward(self, x: Float[Tensor, "b c h w"], scalar: Float[Tensor, "b"]) -> Float[Tensor, "b k h w"]:
        gain = _gain(self.gain, self.slope, scalar)  # b n
        pixels = x.flatten(2).transpose(1, 2)[:, None].expand(-1, gain.shape[1], -1, -1)  # b n p c
        rows, columns = (torch.arange(side, dtype=x.dtype, device=x.device) for side in x.shape[2:])
        place = torch.cartesian_prod(rows - rows.mean(), columns - columns.mean()).expand(*pixels.shape[:3], 2)
        # -g |x_i - x_j|^2 = 2 g x_i x_j - g |x_j|^2, but for what is the same for all j; and so for the places.
        weight = torch.stack([gain.square(), self.log_near.exp().expand_as(gain)], 2)[:, :, None]  # b n 1 2
        ones = torch.ones_like(pixels[..., :1])
        asked = torch.cat([2 * weight[..., :1] * pixels, 2 * weight[..., 1:] * place, -weight * ones], 3)
        squares = torch.stack([pixels.square().sum(3), place.square().sum(3)], 3)
        answers = F.pad(pixels, (0, asked.shape[3] - pixels.shape[3]))
        means = F.scaled_dot_product_attention(asked, torch.cat([pixels, place, squares], 3), answers, scale=1.0)
        off = (means[..., : x.shape[1]] - pixels) * gain[:, :, None, None]  # b n p c
        return self.out(_where_small(off.permute(0, 1, 3, 2).reshape(len(x), -1, *x.shape[2:])))


def _gain(start: Float[Tensor, "n"], slope: Float[Tensor, "n"], scalar: Float[Tensor, "b"]) -> Float[Tensor, "b n"]:
    return torch.exp((start + slope * scalar[:, None]).clamp(-8, 8))  # float32 tells squares of 3,000 apart


def _where_small(u: Float[Tensor, "b n h w"]) -> Float[Tensor, "b 2*n h w"]:
    silent = 1 / (1 + u.square())
    return torch.cat([u * silent, silent], 1)
