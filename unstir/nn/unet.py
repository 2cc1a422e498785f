"""U-Net: convolutions from fine to coarse and back, where every fine level also sees what it was on the way down.

Knows: residual blocks, levels of resolution, where the picture looks at itself and at the words.
Does not know: what its input is a mixture of, or what its output is compared with.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unstir.condition import Condition
from unstir.nn.attention import CrossAttention, SelfAttention
from unstir.nn.dropout import Dropout
from unstir.nn.embedding import (
    ConditionReader,
    VectorEmbedding,
    require_classes,
    require_labels,
    require_words,
    without_dropped_labels,
)
from unstir.nn.layers import (
    CONVOLUTIONS,
    GEGLU,
    BlockStyle,
    ResidualBlock,
    doubled,
    group_norm,
    level_widths,
    scaled_sum,
    zero_init,
)
from unstir.nn.text import TextConfig


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Shape of a U-Net.

    Args:
        channels: of the picture that comes in.
        out_channels: of what comes out; None is as many.
        width: channels at full resolution; even.
        multipliers: one a level, fine to coarse; level i has ``multipliers[i] * width``
            channels and 1/2^i of the height and width.
        blocks: residual blocks a level on the way down; there is one more on the way up.
        attention: the levels, counted from 0, whose cells look at each other and at the words; the middle always does.
        heads: attention heads; divides the channels of every level that attends.
        head_width: channels a head, where wider levels have more heads; None for ``heads`` of them on every level.
        up_attention: whether on the way up ``every`` block of a level that attends is followed by attention, or the
            ``last`` one alone (EDM).
        transformers: blocks of a transformer, with a feed-forward net each, that stand where there is attention (latent
            diffusion); 0 for attention alone.
        vector_width: channels of the vector that modulates, four times as many as there are sinusoids of the scalar;
            None is four times ``width``.
        classes: number of classes that it is told of by their labels; None for a network that is told none.
        dimensions: of the picture: 1 for sequences, 3 for volumes.
        style: how residual blocks are made.
        has_normed_queries: whether attention normalises its queries and keys (DDPM's does not).
        pads_evenly: whether the convolution that halves a level pads all sides; else right and bottom (DDPM's).
        text: shape of the text transformer; None for a network that is told no words.

    Raises:
        ValueError: if ``dimensions`` is not 1, 2 or 3, ``classes`` is below 1 or ``transformers`` below 0.
    """

    channels: int = 3
    out_channels: int | None = None
    width: int = 64
    multipliers: tuple[int, ...] = (1, 2, 2)
    blocks: int = 2
    attention: tuple[int, ...] = (1, 2)
    heads: int = 4
    style: BlockStyle = field(default_factory=BlockStyle)
    has_normed_queries: bool = True
    pads_evenly: bool = True
    text: TextConfig | None = field(default_factory=TextConfig)
    head_width: int | None = None
    up_attention: Literal["every", "last"] = "every"
    transformers: int = 0
    vector_width: int | None = None
    classes: int | None = None
    dimensions: int = 2

    def __post_init__(self) -> None:
        """Refuse what no network can be made of."""
        if self.dimensions not in CONVOLUTIONS:
            raise ValueError(f"dimensions must be 1, 2 or 3, got {self.dimensions}")
        if self.transformers < 0:
            raise ValueError(f"transformers must be at least 0, got {self.transformers}")
        require_classes(self.classes)


class UNet(nn.Module):
    """Residual blocks on several levels of resolution, joined across.

    Every step of the way down leaves its result for the step of the way up that answers it. A vector made of the
    scalar, the pooled words and the class modulates every block; at some levels every cell attends to all others and to
    each word. It draws any size whose every side is a multiple of ``multiple``.

    Args:
        config: its shape.

    Raises:
        ValueError: if there is no level or no block, ``width`` is odd, ``attention`` names a level that does not exist,
            ``heads`` or ``head_width`` does not divide the channels of a level that attends, or ``vector_width`` is no
            multiple of 8.

    Source: Ho et al. 2020, arXiv:2006.11239, Appendix B; Dhariwal & Nichol 2021, arXiv:2105.05233, Sec. 3 (modulation,
        attention at several levels, resampling blocks); Rombach et al. 2022, arXiv:2112.10752, Sec. 3.3 and Appendix
        E.2.1 (attention to the words, transformers); Karras et al. 2022, arXiv:2206.00364, code (``up_attention``,
        scaled sums). ``papers`` names the configurations of all.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        widths = _checked_widths(config)
        self.config = config
        self.in_channels, self.out_channels = config.channels, config.out_channels or config.channels
        self.multiple = 2 ** (len(widths) - 1)
        self.is_one_size = False
        self.reader = None if config.text is None else ConditionReader(config.text)
        pooled_width = None if config.text is None else config.text.width
        vector_width = _vector_width(config)
        self.vector = VectorEmbedding(vector_width, pooled_width, features=vector_width // 4, classes=config.classes)
        convolution = CONVOLUTIONS[config.dimensions]
        self.first = convolution(config.channels, config.width, 3, padding=1)

        down: list[nn.Module] = []
        left = [config.width]  # channels of what each step of the way down leaves for the way up
        for level, width in enumerate(widths):
            if level:
                down.append(_Step(_shrink(config, left[-1])))
                left.append(left[-1])
            for _ in range(config.blocks):
                down.append(_Step(_block(config, left[-1], width), *_looks(config, level)))
                left.append(width)
        current = widths[-1]
        look = _look(config, len(widths) - 1)
        middle = _Step(_block(config, current, current), look, _block(config, current, current))
        up: list[nn.Module] = []
        for level, width in reversed(list(enumerate(widths))):
            for index in range(config.blocks + 1):
                is_last = index == config.blocks
                grow = [_grow(config, width)] if level and is_last else []
                block = _block(config, current + left.pop(), width)
                looks = _looks(config, level) if is_last or config.up_attention == "every" else []
                up.append(_Step(block, *looks, *grow))
                current = width

        self.down = nn.ModuleList(down)
        self.middle = middle
        self.up = nn.ModuleList(up)
        self.last = nn.Sequential(
            group_norm(current, config.style.epsilon),
            nn.SiLU(),
            zero_init(convolution(current, self.out_channels, 3, padding=1)),
        )
        for place, dropout in enumerate(module for module in self.modules() if isinstance(module, Dropout)):
            dropout.place = place

    def read(self, condition: Condition) -> Condition:
        """The condition with its words read; ``forward`` does this where it has not been done."""
        return without_dropped_labels(condition) if self.reader is None else self.reader(condition)

    def forward(
        self, x: Float[Tensor, "b c *site"], scalar: Float[Tensor, "b"], condition: Condition
    ) -> Float[Tensor, "b k *site"]:
        """The output at every pixel.

        Raises:
            ValueError: if the picture is of other dimensions or a side of it is no multiple of ``multiple``, or the
                condition has no words or labels, or has them for a network that is told none.
        """
        self._require_size(x)
        condition = self.read(condition)
        require_words(condition, is_told_words=self.reader is not None)
        require_labels(condition, self.config.classes)
        vector = F.silu(self.vector(scalar, condition))
        told = _Told(vector, condition.tokens, condition.token_mask, condition.seeds)
        x = self.first(x)
        left = [x]
        for step in self.down:
            x = step(x, told)
            left.append(x)
        x = self.middle(x, told)
        for step in self.up:
            x = step(torch.cat([x, left.pop()], 1), told)
        return self.last(x)

    def _require_size(self, x: Tensor) -> None:
        sides, dimensions = x.shape[2:], self.config.dimensions
        if len(sides) != dimensions:
            raise ValueError(f"this network draws pictures of {dimensions} dimensions, got {len(sides)}")
        if any(side % self.multiple for side in sides):
            size = "x".join(str(side) for side in reversed(sides))
            raise ValueError(f"this network draws multiples of {self.multiple}, got {size}")


class _Told(NamedTuple):
    """What every part of the network is told beside the picture."""

    vector: Float[Tensor, "b v"]
    tokens: Float[Tensor, "b n d"] | None
    mask: Bool[Tensor, "b n"] | None
    seeds: Int[Tensor, "b"] | None


class _Step(nn.Module):
    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Float[Tensor, "b c *site"], told: _Told) -> Float[Tensor, "b k *resampled"]:
        for part in self.parts:
            x = part(x, told.vector, told.seeds) if isinstance(part, ResidualBlock) else part(x, told)
        return x


class _Look(nn.Module):
    """Every cell of a level looks at all others, then at the words where there are any."""

    def __init__(self, config: UNetConfig, level: int) -> None:
        super().__init__()
        width, epsilon = config.multipliers[level] * config.width, config.style.epsilon
        heads = _heads(config, width)
        self.sum_scale = config.style.sum_scale
        self.cells_norm = group_norm(width, epsilon)
        self.cells = SelfAttention(width, heads, has_normed_queries=config.has_normed_queries)
        zero_init(self.cells.out)
        self.words = None
        if config.text is not None:
            self.words_norm = group_norm(width, epsilon)
            self.words = CrossAttention(width, config.text.width, heads, has_normed_queries=config.has_normed_queries)
            zero_init(self.words.out)

    def forward(self, x: Float[Tensor, "b c *site"], told: _Told) -> Float[Tensor, "b c *site"]:
        flat: Tensor = x.flatten(2)  # b c n; tokens are laid out one after the other: products of others are slow
        seen: Tensor = self.cells(self.cells_norm(flat).transpose(1, 2).contiguous()).transpose(1, 2)
        flat = scaled_sum(flat, seen, self.sum_scale)
        if self.words is not None:
            tokens = self.words_norm(flat).transpose(1, 2).contiguous()
            seen = self.words(tokens, told.tokens, told.mask).transpose(1, 2)
            flat = scaled_sum(flat, seen, self.sum_scale)
        return cast(Tensor, flat.unflatten(2, x.shape[2:]))


class _Transformer(nn.Module):
    """The cells of a level as the tokens of a transformer that reads the words, beside a shortcut."""

    def __init__(self, config: UNetConfig, level: int) -> None:
        super().__init__()
        width = config.multipliers[level] * config.width
        self.sum_scale = config.style.sum_scale
        self.norm = group_norm(width, 1e-6)  # whatever the residual blocks have
        self.first = nn.Linear(width, width)
        self.blocks = nn.ModuleList(_TransformerBlock(config, width) for _ in range(config.transformers))
        self.last = zero_init(nn.Linear(width, width))

    def forward(self, x: Float[Tensor, "b c *site"], told: _Told) -> Float[Tensor, "b c *site"]:
        tokens = self.first(self.norm(x).flatten(2).transpose(1, 2).contiguous())  # b n c
        for block in self.blocks:
            tokens = block(tokens, told)
        seen = self.last(tokens).transpose(1, 2).unflatten(2, x.shape[2:])
        return scaled_sum(x, seen, self.sum_scale)


class _TransformerBlock(nn.Module):
    def __init__(self, config: UNetConfig, width: int) -> None:
        super().__init__()
        heads, is_normed = _heads(config, width), config.has_normed_queries
        self.cells_norm = nn.LayerNorm(width)
        self.cells = SelfAttention(width, heads, has_normed_queries=is_normed, has_bias=False)
        self.words = None
        if config.text is not None:
            self.words_norm = nn.LayerNorm(width)
            self.words = CrossAttention(width, config.text.width, heads, has_normed_queries=is_normed, has_bias=False)
        self.forward_norm = nn.LayerNorm(width)
        self.feed_forward = GEGLU(width, 4 * width)

    def forward(self, x: Float[Tensor, "b n c"], told: _Told) -> Float[Tensor, "b n c"]:
        x = x + self.cells(self.cells_norm(x))
        if self.words is not None:
            x = x + self.words(self.words_norm(x), told.tokens, told.mask)
        return x + self.feed_forward(self.forward_norm(x))


class _Shrink(nn.Module):
    def __init__(self, width: int, dimensions: int, pads_evenly: bool) -> None:
        super().__init__()
        self.conv = CONVOLUTIONS[dimensions](width, width, 3, stride=2, padding=1 if pads_evenly else 0)
        self.pads_evenly = pads_evenly

    def forward(self, x: Float[Tensor, "b c *site"], told: _Told) -> Float[Tensor, "b c *half"]:
        return self.conv(x if self.pads_evenly else F.pad(x, (0, 1) * (x.ndim - 2)))


class _Grow(nn.Module):
    def __init__(self, width: int, dimensions: int) -> None:
        super().__init__()
        self.conv = CONVOLUTIONS[dimensions](width, width, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c *site"], told: _Told) -> Float[Tensor, "b c *twice"]:
        return self.conv(doubled(x))


def _block(
    config: UNetConfig, in_width: int, out_width: int, resample: Literal["down", "up"] | None = None
) -> ResidualBlock:
    return ResidualBlock(
        in_width, out_width, _vector_width(config), config.style, dimensions=config.dimensions, resample=resample
    )


def _shrink(config: UNetConfig, width: int) -> nn.Module:
    if config.style.resampling == "convolution":
        return _Shrink(width, config.dimensions, config.pads_evenly)
    return _block(config, width, width, "down")


def _grow(config: UNetConfig, width: int) -> nn.Module:
    if config.style.resampling == "convolution":
        return _Grow(width, config.dimensions)
    return _block(config, width, width, "up")


def _look(config: UNetConfig, level: int) -> nn.Module:
    return _Transformer(config, level) if config.transformers else _Look(config, level)


def _looks(config: UNetConfig, level: int) -> list[nn.Module]:
    return [_look(config, level)] if level in config.attention else []


def _vector_width(config: UNetConfig) -> int:
    return 4 * config.width if config.vector_width is None else config.vector_width


def _heads(config: UNetConfig, width: int) -> int:
    if config.head_width is None:
        return config.heads
    if config.head_width < 1 or width % config.head_width:
        raise ValueError(
            "head_width must divide the channels of every level that attends, "
            f"got {config.head_width} for a level of {width}"
        )
    return width // config.head_width


def _checked_widths(config: UNetConfig) -> list[int]:
    widths = level_widths(config.width, config.multipliers, config.blocks)
    if not all(0 <= level < len(widths) for level in config.attention):
        raise ValueError(f"attention must name levels from 0 to {len(widths) - 1}, got {config.attention}")
    if config.vector_width is not None and (config.vector_width < 1 or config.vector_width % 8):
        raise ValueError(f"vector_width must be a multiple of 8, got {config.vector_width}; null is 4 times width")
    return widths
