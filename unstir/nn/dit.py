"""DiT: a transformer over patches of the picture and the words of the prompt, in one stream.

Knows: patches, tokens, one vector a sample that modulates every layer.
Does not know: what its input is a mixture of, or what its output is compared with.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from unstir.condition import Condition
from unstir.nn.attention import SelfAttention
from unstir.nn.embedding import ConditionReader, VectorEmbedding, grid_positions, require_labels, require_words
from unstir.nn.layers import SwiGLU, modulate, require_patches, require_positive, zero_init
from unstir.nn.text import TextConfig


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """Shape of a DiT.

    Args:
        channels: of the picture that comes in.
        out_channels: of what comes out; None is as many.
        size: height and width of the picture; the network draws no other size.
        patch: height and width of a patch; divides ``size``.
        width: channels of a token.
        depth: number of layers.
        heads: attention heads a layer.
        detail: channels at full size between the last layer and the picture, where the seams of patches are mended.
        text: shape of the text transformer; None for a network that is told no words.

    Raises:
        ValueError: if a number is below 1.
    """

    channels: int = 3
    out_channels: int | None = None
    size: int = 64
    patch: int = 8
    width: int = 320
    depth: int = 8
    heads: int = 5
    detail: int = 8
    text: TextConfig | None = field(default_factory=TextConfig)

    def __post_init__(self) -> None:
        """Refuse a shape without extent."""
        require_positive(self, "channels", "size", "patch", "width", "depth", "heads", "detail")


class DiT(nn.Module):
    """A transformer whose tokens are patches and words.

    One modulation is shared by all layers, each adding a learned table to it (PixArt); the first patch embedding passes
    a bottleneck (JiT); two convolutions at the end, which also see the input, mend the seams between patches.

    Args:
        config: its shape.

    Raises:
        ValueError: if ``patch`` does not divide ``size``, ``heads`` does not divide ``width``, or ``width`` is not a
            multiple of 4.

    Source: Peebles & Xie 2023, arXiv:2212.09748; Chen et al. 2024, arXiv:2310.00426, Sec. 2.3 (shared modulation);
        Li & He 2025, arXiv:2511.13720 (large patches, bottleneck); Esser et al. 2024, arXiv:2403.03206 (one stream).
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        require_patches(config.size, config.patch, config.width)
        self.config = config
        self.in_channels, self.out_channels = config.channels, config.out_channels or config.channels
        self.multiple, self.is_one_size = config.size, True
        cells = config.size // config.patch
        width, area = config.width, config.patch**2
        self.reader = None if config.text is None else ConditionReader(config.text)
        self.vector = VectorEmbedding(width, None if config.text is None else config.text.width)
        self.words = None if config.text is None else nn.Linear(config.text.width, width)
        self.patches = nn.Sequential(nn.Linear(config.channels * area, 128, bias=False), nn.Linear(128, width))
        self.register_buffer("positions", grid_positions(cells, cells, width), persistent=False)
        self.modulation = zero_init(nn.Linear(width, 6 * width))
        self.layers = nn.ModuleList(_Layer(width, config.heads) for _ in range(config.depth))
        self.last_modulation = zero_init(nn.Linear(width, 2 * width))
        self.last = nn.Linear(width, config.detail * area)
        self.mend = nn.Sequential(
            nn.Conv2d(config.detail + config.channels, 2 * config.detail, 3, padding=1),
            nn.SiLU(),
            zero_init(nn.Conv2d(2 * config.detail, self.out_channels, 3, padding=1)),
        )

    def read(self, condition: Condition) -> Condition:
        """The condition with its words read; ``forward`` does this where it has not been done."""
        return condition if self.reader is None else self.reader(condition)

    def forward(
        self, x: Float[Tensor, "b c h w"], scalar: Float[Tensor, "b"], condition: Condition
    ) -> Float[Tensor, "b k h w"]:
        """The output at every pixel.

        Raises:
            ValueError: if the picture is not of the size that the network was made for, or the condition has no words,
                or words for a network that is told none.
        """
        size, patch = self.config.size, self.config.patch
        if x.shape[2:] != (size, size):
            raise ValueError(f"this network draws {size}x{size}, got {x.shape[3]}x{x.shape[2]}")
        condition = self.read(condition)
        require_words(condition, is_told_words=self.reader is not None)
        require_labels(condition, None)
        vector = F.silu(self.vector(scalar, condition))
        tokens = self.patches(F.pixel_unshuffle(x, patch).flatten(2).transpose(1, 2))  # b n d
        tokens = tokens + cast(Tensor, self.positions).to(tokens.dtype)
        count = tokens.shape[1]
        mask = None
        if condition.token_mask is not None:
            mask = F.pad(condition.token_mask, (count, 0), value=True)
        stream = tokens if self.words is None else torch.cat([tokens, self.words(condition.tokens)], 1)
        modulation = self.modulation(vector).unflatten(1, (1, 6, -1))  # b 1 6 d
        for layer in self.layers:
            stream = layer(stream, modulation, mask)
        shift, gain = self.last_modulation(vector)[:, None].chunk(2, -1)
        tokens = modulate(F.layer_norm(stream[:, :count], stream.shape[-1:]), shift, gain)
        cells = size // patch
        detail = F.pixel_shuffle(self.last(tokens).transpose(1, 2).unflatten(2, (cells, cells)), patch)
        return self.mend(torch.cat([detail, x.to(detail.dtype)], 1))


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(6, width))
        self.attention = SelfAttention(width, heads)
        self.feed_forward = SwiGLU(width, width * 8 // 3)

    def forward(
        self, x: Float[Tensor, "b n d"], modulation: Float[Tensor, "b 1 6 d"], mask: Bool[Tensor, "b n"] | None
    ) -> Float[Tensor, "b n d"]:
        shift_a, gain_a, gate_a, shift_f, gain_f, gate_f = (modulation + self.table).unbind(2)
        normed = modulate(F.layer_norm(x, x.shape[-1:]), shift_a, gain_a)
        x = torch.addcmul(x, gate_a, self.attention(normed, mask))
        normed = modulate(F.layer_norm(x, x.shape[-1:]), shift_f, gain_f)
        return torch.addcmul(x, gate_f, self.feed_forward(normed))
