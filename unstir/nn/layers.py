"""Small layers that several networks share.

Knows: feed-forward nets, modulation, residual blocks, the widths of levels.
Does not know: which network they stand in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from unstir.nn.dropout import Dropout


class SwiGLU(nn.Module):
    """A feed-forward net whose hidden layer is gated: out(silu(gate(x)) * up(x)).

    Args:
        width: channels of a token.
        hidden: channels of the hidden layer; 8/3 of the width costs as much as a plain net of ratio 4.

    Source: Shazeer 2020, arXiv:2002.05202, Eq. 6.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.joint = nn.Linear(width, 2 * hidden)
        self.out = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """One pass."""
        gate, up = (  # two products: the halves of one would lie apart in memory, on the way back too
            F.linear(x, *half) for half in zip(self.joint.weight.chunk(2), self.joint.bias.chunk(2), strict=True)
        )
        return self.out(F.silu(gate) * up)


@dataclass(frozen=True, kw_only=True)
class BlockStyle:
    """How residual blocks are made; the papers differ.

    Args:
        modulation: what the vector does: ``scale`` the second norm's output and shift it (ADM), or ``shift`` what comes
            out of the first convolution (DDPM).
        dropout: share of the numbers before the second convolution that training leaves out.
        epsilon: of group normalisation.

    Raises:
        ValueError: if a number is out of its range.
    """

    modulation: Literal["scale", "shift"] = "scale"
    dropout: float = 0.0
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        """Refuse what no block can be made of."""
        if not 0 <= self.dropout < 1 or not self.epsilon > 0:
            raise ValueError(f"dropout must be in [0, 1) and epsilon positive, got {self.dropout} and {self.epsilon}")


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut; a vector modulates what the second one sees.

    shortcut(x) + conv(silu(norm(conv(silu(norm(x)))) (1 + gain) + shift)),   (shift, gain) = linear(vector)

    or, where the vector shifts, shortcut(x) + conv(silu(norm(conv(silu(norm(x))) + linear(vector)))). Dropout stands
    before the second convolution, which starts at zero, so that the block starts as its shortcut: x itself, or a 1x1
    convolution of it where the number of channels changes.

    Args:
        in_width: channels in.
        out_width: channels out.
        vector_width: channels of the vector; it comes with its nonlinearity already applied.
        style: how it is made.

    Source: Ho et al. 2020, arXiv:2006.11239, Appendix B (order of the layers, shift); Dhariwal & Nichol 2021,
        arXiv:2105.05233, Sec. 3 (adaptive group normalisation).
    """

    def __init__(self, in_width: int, out_width: int, vector_width: int, style: BlockStyle | None = None) -> None:
        super().__init__()
        style = style or BlockStyle()
        self.is_scaled = style.modulation == "scale"
        self.first_norm = group_norm(in_width, style.epsilon)
        self.first = nn.Conv2d(in_width, out_width, 3, padding=1)
        self.modulation = nn.Linear(vector_width, (2 if self.is_scaled else 1) * out_width)
        self.second_norm = group_norm(out_width, style.epsilon)
        self.dropout = Dropout(style.dropout)
        self.second = zero_init(nn.Conv2d(out_width, out_width, 3, padding=1))
        self.shortcut = nn.Identity() if in_width == out_width else nn.Conv2d(in_width, out_width, 1)

    def forward(
        self, x: Float[Tensor, "b c h w"], vector: Float[Tensor, "b v"], seeds: Int[Tensor, "b"] | None = None
    ) -> Float[Tensor, "b k h w"]:
        """One pass; seeds decide what dropout leaves out."""
        inner = self.first(F.silu(self.first_norm(x)))  # b k h w
        told = self.modulation(vector)[:, :, None, None]
        if self.is_scaled:
            shift, gain = told.chunk(2, 1)  # b k 1 1
            inner = modulate(self.second_norm(inner), shift, gain)
        else:
            inner = self.second_norm(inner + told)
        return self.shortcut(x) + self.second(self.dropout(F.silu(inner), seeds))


def group_norm(width: int, epsilon: float = 1e-5) -> nn.GroupNorm:
    """Group normalisation in 32 groups, or in as many below 32 as divide a smaller or odd width.

    A group holds two channels at least: alone, a channel would lose what is the same everywhere in it.

    Source: Wu & He 2018, arXiv:1803.08494, Sec. 3.
    """
    groups = max((count for count in range(1, 33) if width % count == 0 and 2 * count <= width), default=1)
    return nn.GroupNorm(groups, width, eps=epsilon)


def modulate(x: Tensor, shift: Tensor, gain: Tensor) -> Tensor:
    """Affine modulation: x (1 + gain) + shift.

    Source: Peebles & Xie 2023, arXiv:2212.09748, Sec. 3.2 (adaptive layer norm).
    """
    return torch.addcmul(shift, x, 1 + gain)


def require_positive(config: object, *names: str) -> None:
    """Refuse a configuration one of whose numbers is below 1.

    Raises:
        ValueError: naming the first.
    """
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")


def level_widths(width: int, multipliers: Sequence[int], blocks: int) -> list[int]:
    """The channels of each level of resolution, fine to coarse: every multiplier times the width.

    Raises:
        ValueError: if there is no level or no block on it, a multiplier is below 1, or the width is odd.
    """
    if min(multipliers, default=0) < 1 or blocks < 1 or width < 2 or width % 2:
        raise ValueError(
            "a network of several levels needs a level, a block and an even width at least, got "
            f"multipliers {tuple(multipliers)}, blocks {blocks}, width {width}"
        )
    return [multiplier * width for multiplier in multipliers]


def zero_init(layer: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    """The layer with weights and bias set to zero, so that it starts by adding nothing."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
