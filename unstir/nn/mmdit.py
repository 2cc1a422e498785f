"""MMDiT: a transformer in which patches and words have weights of their own and look at each other in every layer.

Knows: two streams of tokens, one attention over both, one vector a sample that modulates every layer.
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
from unstir.nn.attention import attend, require_heads
from unstir.nn.embedding import (
    ConditionReader,
    grid_positions,
    require_labels,
    require_words,
    scalar_layers,
    sinusoids,
)
from unstir.nn.layers import feed_forward, layer_norm, modulate, require_patches, require_positive, zero_init
from unstir.nn.text import TextConfig

_FEATURES = 256  # sinusoids of the scalar


@dataclass(frozen=True, kw_only=True)
class MMDiTConfig:
    """Shape of an MMDiT.

    Args:
        channels: of the picture that comes in.
        out_channels: of what comes out; None is as many.
        size: height and width of the pictures that positions are counted on: one patch of them is 1.
        largest: greatest height and width that it draws; None is ``size``. Smaller pictures are its middle.
        patch: height and width of a patch; divides ``size`` and ``largest``.
        width: channels of a token.
        depth: number of layers.
        heads: attention heads a layer.
        has_normed_queries: whether attention normalises its queries and keys.
        text: shape of the text transformer.

    Raises:
        ValueError: if a number is below 1.
    """

    channels: int = 3
    out_channels: int | None = None
    size: int = 64
    largest: int | None = None
    patch: int = 4
    width: int = 384
    depth: int = 6
    heads: int = 6
    has_normed_queries: bool = True
    text: TextConfig = field(default_factory=TextConfig)

    def __post_init__(self) -> None:
        """Refuse a shape without extent."""
        require_positive(self, "channels", "size", "patch", "width", "depth", "heads")


class MMDiT(nn.Module):
    """A transformer over two streams, patches and words, that meet in attention alone.

    In every layer each stream makes queries, keys and values with weights of its own; every token of both looks at all
    tokens of both; then each stream goes on by itself, modulated as in a DiT with adaLN-Zero by the scalar and the
    pooled words. In the last layer the words are only looked at.

    Args:
        config: its shape.

    Raises:
        ValueError: if ``patch`` does not divide ``size`` and ``largest``, ``largest`` is below ``size``, ``heads`` does
            not divide ``width``, or ``width`` is not a multiple of 4.

    Source: Esser et al. 2024, arXiv:2403.03206, Sec. 4 and Fig. 2, Sec. 5.3.2 (normed queries).
    """

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.largest = config.size if config.largest is None else config.largest
        require_patches(config.size, config.patch, config.width)
        if self.largest < config.size or self.largest % config.patch:
            raise ValueError(
                f"largest must be a multiple of patch and not below size, got largest {self.largest}, patch "
                f"{config.patch}, size {config.size}"
            )
        self.config = config
        self.in_channels, self.out_channels = config.channels, config.out_channels or config.channels
        self.multiple, self.is_one_size = config.patch, False
        width, area = config.width, config.patch**2
        self.reader = ConditionReader(config.text)
        self.scalar = scalar_layers(_FEATURES, width)
        self.pooled = scalar_layers(config.text.width, width)
        self.words = nn.Linear(config.text.width, width)
        self.patches = nn.Linear(config.channels * area, width)
        cells = self.largest // config.patch
        positions = grid_positions(cells, cells, width, step=config.size / self.largest).roll(width // 2, 1)
        self.register_buffer("positions", positions.view(cells, cells, width), persistent=False)
        self.layers = nn.ModuleList(_Layer(config, is_last=index == config.depth - 1) for index in range(config.depth))
        self.last_modulation = zero_init(nn.Linear(width, 2 * width))
        self.last = zero_init(nn.Linear(width, self.out_channels * area))

    def read(self, condition: Condition) -> Condition:
        """The condition with its words read; ``forward`` does this where it has not been done."""
        return self.reader(condition)

    def forward(
        self, x: Float[Tensor, "b c h w"], scalar: Float[Tensor, "b"], condition: Condition
    ) -> Float[Tensor, "b k h w"]:
        """The output at every pixel.

        Raises:
            ValueError: if height or width is no multiple of ``patch`` or above ``largest``, or the condition has no
                words, no pooled words, or labels.
        """
        patch = self.config.patch
        self._require_size(x)
        condition = self.read(condition)
        require_words(condition, is_told_words=True)
        require_labels(condition, None)
        if condition.pooled is None:
            raise ValueError("this network needs pooled words beside the tokens; give words, or both")
        features = sinusoids(scalar, _FEATURES).to(cast(Tensor, self.scalar[0].weight).dtype)
        vector = F.silu(self.scalar(features) + self.pooled(condition.pooled))
        height, width = x.shape[2] // patch, x.shape[3] // patch
        tokens = self.patches(F.pixel_unshuffle(x, patch).flatten(2).transpose(1, 2))  # b n d
        tokens = tokens + self._positions(height, width).to(tokens.dtype)
        words, mask = self.words(condition.tokens), None
        if condition.token_mask is not None:
            mask = F.pad(condition.token_mask, (tokens.shape[1], 0), value=True)
        for layer in self.layers:
            tokens, words = layer(tokens, words, vector, mask)
        shift, gain = self.last_modulation(vector)[:, None].chunk(2, -1)
        out = self.last(modulate(layer_norm(tokens), shift, gain))
        return F.pixel_shuffle(out.transpose(1, 2).unflatten(2, (height, width)), patch)

    def _positions(self, height: int, width: int) -> Float[Tensor, "n d"]:
        """Of the cells in the middle of the largest picture."""
        whole = cast(Tensor, self.positions)
        top, left = (whole.shape[0] - height) // 2, (whole.shape[1] - width) // 2
        return whole[top : top + height, left : left + width].flatten(0, 1)

    def _require_size(self, x: Tensor) -> None:
        height, width = x.shape[2:]
        if height % self.multiple or width % self.multiple or max(height, width) > self.largest:
            raise ValueError(
                f"this network draws multiples of {self.multiple} up to {self.largest}, got {width}x{height}"
            )


class _Layer(nn.Module):
    def __init__(self, config: MMDiTConfig, *, is_last: bool) -> None:
        super().__init__()
        self.patches = _Stream(config)
        self.words = _Stream(config, is_only_seen=is_last)

    def forward(
        self,
        patches: Float[Tensor, "b n d"],
        words: Float[Tensor, "b m d"],
        vector: Float[Tensor, "b d"],
        mask: Bool[Tensor, "b k"] | None,
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b m d"]]:
        count = patches.shape[1]
        of_patches, of_words = self.patches.modulations(vector), self.words.modulations(vector)
        both = zip(self.patches.looks(patches, of_patches), self.words.looks(words, of_words), strict=True)
        query, key, value = (torch.cat(pair, 2) for pair in both)  # each b h n+m e
        seen = attend(query, key, value, mask).transpose(1, 2).flatten(2)
        return (
            self.patches.goes_on(patches, seen[:, :count], of_patches),
            self.words.goes_on(words, seen[:, count:], of_words),
        )


class _Stream(nn.Module):
    """The weights of a layer for one kind of token; tokens that are only seen ask nothing and stay as they are."""

    def __init__(self, config: MMDiTConfig, *, is_only_seen: bool = False) -> None:
        super().__init__()
        width = config.width
        self.heads, self.is_only_seen = require_heads(width, config.heads), is_only_seen
        self.modulation = zero_init(nn.Linear(width, (2 if is_only_seen else 6) * width))
        self.joint = nn.Linear(width, (2 if is_only_seen else 3) * width)
        self.key_norm = _norm(config)
        if not is_only_seen:
            self.query_norm = _norm(config)
            self.out = nn.Linear(width, width)
            self.feed_forward = feed_forward(width, 4 * width)

    def modulations(self, vector: Float[Tensor, "b d"]) -> tuple[Tensor, ...]:
        """Shift and gain before attention; for what goes on, then its gate, and shift, gain and gate of the net."""
        return self.modulation(vector)[:, None].chunk(2 if self.is_only_seen else 6, -1)  # each b 1 d

    def looks(self, x: Float[Tensor, "b n d"], modulations: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each b h n e; of what is only seen, no queries: b h 0 e."""
        joint = self.joint(modulate(layer_norm(x), modulations[0], modulations[1]))
        *query, key, value = joint.unflatten(2, (-1, self.heads, x.shape[2] // self.heads)).permute(2, 0, 3, 1, 4)
        return self.query_norm(query[0]) if query else value[:, :, :0], self.key_norm(key), value

    def goes_on(
        self, x: Float[Tensor, "b n d"], seen: Float[Tensor, "b m d"], modulations: tuple[Tensor, ...]
    ) -> Float[Tensor, "b n d"]:
        """The tokens after the layer; those that are only seen stay as they are."""
        if self.is_only_seen:
            return x
        _, _, gate_a, shift_f, gain_f, gate_f = modulations
        x = torch.addcmul(x, gate_a, self.out(seen))
        return torch.addcmul(x, gate_f, self.feed_forward(modulate(layer_norm(x), shift_f, gain_f)))


class _RootMeanSquareNorm(nn.RMSNorm):
    """In the format of its weights: torch's own complains of bf16 under autocast."""

    def forward(self, x: Float[Tensor, "b h n e"]) -> Float[Tensor, "b h n e"]:
        return super().forward(x.to(self.weight.dtype))


def _norm(config: MMDiTConfig) -> nn.Module:
    width = config.width // config.heads
    return _RootMeanSquareNorm(width, eps=1e-6) if config.has_normed_queries else nn.Identity()
