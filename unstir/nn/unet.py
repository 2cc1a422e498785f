"""U-Net: convolutions from fine to coarse and back, where every fine level also sees what it was on the way down.

Knows: residual blocks, levels of resolution, where the picture looks at itself and at the words.
Does not know: what its input is a mixture of, or what its output is compared with.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unstir.condition import Condition
from unstir.nn.attention import CrossAttention, SelfAttention
from unstir.nn.dropout import Dropout
from unstir.nn.embedding import ConditionReader, VectorEmbedding, require_words
from unstir.nn.layers import BlockStyle, ResidualBlock, group_norm, level_widths, zero_init
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
        style: how residual blocks are made.
        has_normed_queries: whether attention normalises its queries and keys (DDPM's does not).
        pads_evenly: whether the convolution that halves a level pads all sides; else right and bottom (DDPM's).
        text: shape of the text transformer; None for a network that is told no words.
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


class UNet(nn.Module):
    """Residual blocks on several levels of resolution, joined across.

    Every step of the way down leaves its result for the step of the way up that answers it. A vector made of the scalar
    and the pooled words modulates every block; at some levels every cell attends to all others and to each word. It
    draws any height and width that are multiples of ``multiple``.

    Args:
        config: its shape.

    Raises:
        ValueError: if there is no level or no block, ``width`` is odd, ``attention`` names a level that does not exist,
            or ``heads`` does not divide the channels of a level that attends.

    Source: Ho et al. 2020, arXiv:2006.11239, Appendix B; Dhariwal & Nichol 2021, arXiv:2105.05233, Sec. 3 (modulation,
        attention at several levels); Rombach et al. 2022, arXiv:2112.10752, Sec. 3.3 (attention to the words).
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
        self.vector = VectorEmbedding(4 * config.width, pooled_width, features=config.width)
        self.first = nn.Conv2d(config.channels, config.width, 3, padding=1)

        down: list[nn.Module] = []
        left = [config.width]  # channels of what each step of the way down leaves for the way up
        for level, width in enumerate(widths):
            if level:
                down.append(_Step(_Shrink(left[-1], config.pads_evenly)))
                left.append(left[-1])
            for _ in range(config.blocks):
                down.append(_Step(_block(config, left[-1], width), *_looks(config, level)))
                left.append(width)
        current = widths[-1]
        look = _Look(config, len(widths) - 1)
        middle = _Step(_block(config, current, current), look, _block(config, current, current))
        up: list[nn.Module] = []
        for level, width in reversed(list(enumerate(widths))):
            for index in range(config.blocks + 1):
                grow = [_Grow(width)] if level and index == config.blocks else []
                up.append(_Step(_block(config, current + left.pop(), width), *_looks(config, level), *grow))
                current = width

        self.down = nn.ModuleList(down)
        self.middle = middle
        self.up = nn.ModuleList(up)
        self.last = nn.Sequential(
            group_norm(current, config.style.epsilon),
            nn.SiLU(),
            zero_init(nn.Conv2d(current, self.out_channels, 3, padding=1)),
        )
        for place, dropout in enumerate(module for module in self.modules() if isinstance(module, Dropout)):
            dropout.place = place

    def read(self, condition: Condition) -> Condition:
        """The condition with its words read; ``forward`` does this where it has not been done."""
        return condition if self.reader is None else self.reader(condition)

    def forward(
        self, x: Float[Tensor, "b c h w"], scalar: Float[Tensor, "b"], condition: Condition
    ) -> Float[Tensor, "b k h w"]:
        """The output at every pixel.

        Raises:
            ValueError: if height or width is no multiple of ``multiple``, or the condition has no words, or words for a
                network that is told none.
        """
        if x.shape[2] % self.multiple or x.shape[3] % self.multiple:
            raise ValueError(f"this network draws multiples of {self.multiple}, got {x.shape[3]}x{x.shape[2]}")
        condition = self.read(condition)
        require_words(condition, is_told_words=self.reader is not None)
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

    def forward(self, x: Float[Tensor, "b c h w"], told: _Told) -> Float[Tensor, "b k u v"]:
        for part in self.parts:
            x = part(x, told.vector, told.seeds) if isinstance(part, ResidualBlock) else part(x, told)
        return x


class _Look(nn.Module):
    """Every cell of a level looks at all others, then at the words where there are any."""

    def __init__(self, config: UNetConfig, level: int) -> None:
        super().__init__()
        width, epsilon = config.multipliers[level] * config.width, config.style.epsilon
        self.cells_norm = group_norm(width, epsilon)
        self.cells = SelfAttention(width, config.heads, has_normed_queries=config.has_normed_queries)
        zero_init(self.cells.out)
        self.words = None
        if config.text is not None:
            self.words_norm = group_norm(width, epsilon)
            self.words = CrossAttention(
                width, config.text.width, config.heads, has_normed_queries=config.has_normed_queries
            )
            zero_init(self.words.out)

    def forward(self, x: Float[Tensor, "b c h w"], told: _Told) -> Float[Tensor, "b c h w"]:
        flat = x.flatten(2)  # b c n; tokens are laid out one after the other: products of others are slow
        flat = flat + self.cells(self.cells_norm(flat).transpose(1, 2).contiguous()).transpose(1, 2)
        if self.words is not None:
            tokens = self.words_norm(flat).transpose(1, 2).contiguous()
            flat = flat + self.words(tokens, told.tokens, told.mask).transpose(1, 2)
        return flat.unflatten(2, x.shape[2:])


class _Shrink(nn.Module):
    def __init__(self, width: int, pads_evenly: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=1 if pads_evenly else 0)
        self.pads_evenly = pads_evenly

    def forward(self, x: Float[Tensor, "b c h w"], told: _Told) -> Float[Tensor, "b c h//2 w//2"]:
        return self.conv(x if self.pads_evenly else F.pad(x, (0, 1, 0, 1)))


class _Grow(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"], told: _Told) -> Float[Tensor, "b c 2*h 2*w"]:
        return self.conv(doubled(x))


def doubled(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c 2*h 2*w"]:
    """Every pixel four times: the nearest neighbour.

    On a CPU seven times as fast as torch's own for bf16, which autocast takes through float32 besides.
    """
    rows = torch.stack([x, x], -1).flatten(-2)
    return torch.stack([rows, rows], -2).flatten(-3, -2)


def _block(config: UNetConfig, in_width: int, out_width: int) -> ResidualBlock:
    return ResidualBlock(in_width, out_width, 4 * config.width, config.style)


def _looks(config: UNetConfig, level: int) -> list[_Look]:
    return [_Look(config, level)] if level in config.attention else []


def _checked_widths(config: UNetConfig) -> list[int]:
    widths = level_widths(config.width, config.multipliers, config.blocks)
    if not all(0 <= level < len(widths) for level in config.attention):
        raise ValueError(f"attention must name levels from 0 to {len(widths) - 1}, got {config.attention}")
    return widths
