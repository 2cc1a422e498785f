"""DiT with adaLN-Zero: the transformer over patches of Peebles & Xie, each layer of which modulates by itself.

Knows: patches, tokens, classes, one vector a sample that modulates every layer and gates it shut at the start.
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
from unstir.nn.embedding import (
    ConditionReader,
    VectorEmbedding,
    grid_positions,
    require_classes,
    require_labels,
    require_words,
    without_dropped_labels,
)
from unstir.nn.layers import feed_forward, layer_norm, modulate, require_patches, require_positive, zero_init
from unstir.nn.text import TextConfig


@dataclass(frozen=True, kw_only=True)
class DiTZeroConfig:
    """Shape of a DiT with adaLN-Zero.

    Args:
        channels: of the picture that comes in.
        out_channels: of what comes out; None is as many.
        size: height and width of the picture; the network draws no other size.
        patch: height and width of a patch; divides ``size``.
        width: channels of a token.
        depth: number of layers.
        heads: attention heads a layer.
        classes: number of classes that it is told of by their labels; None for a network that is told none.
        text: shape of the text transformer; None for a network that is told no words.

    Raises:
        ValueError: if a number is below 1.
    """

    channels: int = 3
    out_channels: int | None = None
    size: int = 64
    patch: int = 4
    width: int = 384
    depth: int = 12
    heads: int = 6
    classes: int | None = None
    text: TextConfig | None = field(default_factory=TextConfig)

    def __post_init__(self) -> None:
        """Refuse a shape without extent."""
        require_positive(self, "channels", "size", "patch", "width", "depth", "heads")
        require_classes(self.classes)


class DiTZero(nn.Module):
    """A transformer over patches, modulated by the scalar and the class.

    h += gate_a attention(norm(h) (1 + gain_a) + shift_a);   h += gate_f net(norm(h) (1 + gain_f) + shift_f)

    with six modulations a layer, (shift_a, gain_a, gate_a, shift_f, gain_f, gate_f) = linear(silu(vector)), all zero at
    the start: then every layer is the identity. No class is one more class. Words, for a network that is told them, are
    further tokens ("in-context"), and pooled they are added to the vector.

    Args:
        config: its shape.

    Raises:
        ValueError: if ``patch`` does not divide ``size``, ``heads`` does not divide ``width``, or ``width`` is not a
            multiple of 4.

    Source: Peebles & Xie 2023, arXiv:2212.09748, Sec. 3.2 and code (positions: columns first, then rows).
    """

    def __init__(self, config: DiTZeroConfig) -> None:
        super().__init__()
        require_patches(config.size, config.patch, config.width)
        self.config = config
        self.in_channels, self.out_channels = config.channels, config.out_channels or config.channels
        self.multiple, self.is_one_size = config.size, True
        cells, width, area = config.size // config.patch, config.width, config.patch**2
        text_width = None if config.text is None else config.text.width
        self.reader = None if config.text is None else ConditionReader(config.text)
        self.vector = VectorEmbedding(width, text_width, 256, classes=config.classes, has_null_class=True)
        self.words = None if text_width is None else nn.Linear(text_width, width)
        self.patches = nn.Linear(config.channels * area, width)
        positions = grid_positions(cells, cells, width).roll(width // 2, 1)
        self.register_buffer("positions", positions, persistent=False)
        self.layers = nn.ModuleList(_Layer(width, config.heads) for _ in range(config.depth))
        self.last_modulation = zero_init(nn.Linear(width, 2 * width))
        self.last = zero_init(nn.Linear(width, self.out_channels * area))

    def read(self, condition: Condition) -> Condition:
        """The condition with its words read; ``forward`` does this where it has not been done."""
        return without_dropped_labels(condition) if self.reader is None else self.reader(condition)

    def forward(
        self, x: Float[Tensor, "b c h w"], scalar: Float[Tensor, "b"], condition: Condition
    ) -> Float[Tensor, "b k h w"]:
        """The output at every pixel.

        Raises:
            ValueError: if the picture is not of the size that the network was made for, or the condition has no words
                or labels, or has them for a network that is told none.
        """
        size, patch = self.config.size, self.config.patch
        if x.shape[2:] != (size, size):
            raise ValueError(f"this network draws {size}x{size}, got {x.shape[3]}x{x.shape[2]}")
        condition = self.read(condition)
        require_words(condition, is_told_words=self.reader is not None)
        require_labels(condition, self.config.classes)
        vector = F.silu(self.vector(scalar, condition))
        stream = self.patches(F.pixel_unshuffle(x, patch).flatten(2).transpose(1, 2))  # b n d
        stream = stream + cast(Tensor, self.positions).to(stream.dtype)
        count, mask = stream.shape[1], None
        if self.words is not None:
            stream = torch.cat([stream, self.words(condition.tokens)], 1)
            if condition.token_mask is not None:
                mask = F.pad(condition.token_mask, (count, 0), value=True)
        for layer in self.layers:
            stream = layer(stream, vector, mask)
        shift, gain = self.last_modulation(vector)[:, None].chunk(2, -1)
        out = self.last(modulate(layer_norm(stream[:, :count]), shift, gain))
        return F.pixel_shuffle(out.transpose(1, 2).unflatten(2, (size // patch, size // patch)), patch)


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.modulation = zero_init(nn.Linear(width, 6 * width))
        self.attention = SelfAttention(width, heads, has_normed_queries=False)
        self.feed_forward = feed_forward(width, 4 * width)

    def forward(
        self, x: Float[Tensor, "b n d"], vector: Float[Tensor, "b d"], mask: Bool[Tensor, "b n"] | None
    ) -> Float[Tensor, "b n d"]:
        shift_a, gain_a, gate_a, shift_f, gain_f, gate_f = self.modulation(vector)[:, None].chunk(6, -1)  # each b 1 d
        x = torch.addcmul(x, gate_a, self.attention(modulate(layer_norm(x), shift_a, gain_a), mask))
        return torch.addcmul(x, gate_f, self.feed_forward(modulate(layer_norm(x), shift_f, gain_f)))
