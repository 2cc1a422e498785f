"""The DiT of the paper, plainly written: what stands beside ours.

Knows: the network as it was published, and nothing that came later.
Does not know: what it is measured against, or how it is trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from unstir.nn.embedding import grid_positions, scalar_layers, sinusoids

_SINUSOIDS = 256
_EPSILON = 1e-6  # of layer normalisation


@dataclass(frozen=True, kw_only=True)
class PlainDiTConfig:
    """Shape of a plain DiT; by default DiT-S/2 on pictures of 32x32.

    Args:
        channels: of what comes in.
        out_channels: of what comes out; None is as many (the paper's own has twice as many: a variance is learned).
        size: height and width.
        patch: height and width of a patch; divides ``size``.
        width: channels of a token; a multiple of 4.
        depth: number of blocks.
        heads: attention heads a block; divides ``width``.
        classes: labels that there are; one more stands for none.
    """

    channels: int = 3
    out_channels: int | None = None
    size: int = 32
    patch: int = 2
    width: int = 384
    depth: int = 12
    heads: int = 6
    classes: int = 0


class PlainDiT(nn.Module):
    """A transformer over patches whose every block has a modulation of its own, which starts at nothing (adaLN-Zero).

    Of DiT-XL/2 (256x256, 1000 classes, learned variance) the published file counts 675,129,632 numbers: 674,834,720
    weights and the fixed positions, 256 x 1152, which here are no weights.

    Args:
        config: its shape.

    Source: Peebles & Xie 2023, arXiv:2212.09748, Sec. 3.2 and Fig. 3.
    """

    def __init__(self, config: PlainDiTConfig) -> None:
        super().__init__()
        self.config = config
        width, cells = config.width, config.size // config.patch
        self.patches = nn.Conv2d(config.channels, width, config.patch, stride=config.patch)
        self.register_buffer("positions", grid_positions(cells, cells, width))
        self.time = scalar_layers(_SINUSOIDS, width)
        self.labels = nn.Embedding(config.classes + 1, width)
        self.blocks = nn.ModuleList(_Block(width, config.heads) for _ in range(config.depth))
        self.norm = _norm(width)
        self.modulation = nn.Linear(width, 2 * width)
        self.last = nn.Linear(width, config.patch**2 * (config.out_channels or config.channels))
        self._start()

    def _start(self) -> None:
        """Weights as in vision transformers; the output, and what every block adds, start at 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.flatten(1))  # a view: patches are a linear layer too
                nn.init.zeros_(cast(Tensor, module.bias))
        for table in (self.labels, self.time[0], self.time[2]):
            nn.init.normal_(cast(Tensor, table.weight), std=0.02)
        zero = [self.modulation, self.last, *(cast(_Block, block).modulation for block in self.blocks)]
        for layer in zero:
            nn.init.zeros_(layer.weight)

    def forward(
        self, x: Float[Tensor, "b c h w"], t: Int[Tensor, "b"], labels: Int[Tensor, "b"] | None = None
    ) -> Float[Tensor, "b k h w"]:
        """The output at every pixel, for timesteps t; without labels, as for none."""
        if labels is None:
            labels = torch.full_like(t, self.config.classes, dtype=torch.long)
        vector = F.silu(self.time(sinusoids(t.float(), _SINUSOIDS)) + self.labels(labels))
        tokens = self.patches(x).flatten(2).transpose(1, 2) + cast(Tensor, self.positions)  # b n d
        for block in self.blocks:
            tokens = block(tokens, vector)
        shift, gain = self.modulation(vector)[:, None].chunk(2, -1)
        tokens = self.last(self.norm(tokens) * (1 + gain) + shift)
        cells = self.config.size // self.config.patch
        return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (cells, cells)), self.config.patch)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(width, 6 * width)
        self.first_norm, self.second_norm = _norm(width), _norm(width)
        self.joint, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )

    def forward(self, x: Float[Tensor, "b n d"], vector: Float[Tensor, "b d"]) -> Float[Tensor, "b n d"]:
        shift_a, gain_a, gate_a, shift_f, gain_f, gate_f = self.modulation(vector)[:, None].chunk(6, -1)
        x = x + gate_a * self._attention(self.first_norm(x) * (1 + gain_a) + shift_a)
        return x + gate_f * self.feed_forward(self.second_norm(x) * (1 + gain_f) + shift_f)

    def _attention(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        query, key, value = self.joint(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # b h n e
        return self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


def _norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=_EPSILON, elementwise_affine=False)
