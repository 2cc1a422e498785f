"""Dropout whose masks are functions of a seed of each sample.

Knows: how a seed and a place in the network decide which numbers are left out.
Does not know: where seeds come from, or what the numbers are.

torch's own draws one number after the other from one stream: slow on a CPU, where it takes a tenth of a training step,
and another mask for whoever shares a batch with other samples. Here every two numbers share one hashed word, the same
on every device, and are kept or cleared by their bits.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int16
from torch import Tensor, nn

from unstir.speedups import is_on

_LEVELS = 2**15  # 15 bits decide; the sixteenth is the sign of what is left when the share is taken off
_WHOLE = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Dropout(nn.Module):
    """Leaves out a share of the numbers in training, and scales the others so that the mean stays.

    Args:
        share: of what is left out; rounded to 1/32768.
        place: number of this layer in its network: each has masks of its own.

    Raises:
        ValueError: if share is not in [0, 1).

    Source: Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks from overfitting".
    """

    def __init__(self, share: float, place: int = 0) -> None:
        super().__init__()
        if not 0 <= share < 1:
            raise ValueError(f"dropout leaves out a share from 0 to below 1, got {share}")
        self.share, self.place = share, place
        self.left_out = min(round(share * _LEVELS), _LEVELS - 1)

    def forward(self, x: Float[Tensor, "b *site"], seeds: Int[Tensor, "b"] | None) -> Float[Tensor, "b *site"]:
        """x, or in training what is kept of it: row i depends on ``seeds[i]`` alone; without seeds they are drawn."""
        if not self.training or not self.left_out:
            return x
        if not is_on("dropout_masks"):
            return F.dropout(x, self.share)
        if seeds is None:
            seeds = torch.randint(2**62, (len(x),), device=x.device)
        kept = mask(seeds, self.place, x[0].numel(), self.left_out).reshape(x.shape)
        return cast(Tensor, _Kept.apply(x, kept.to(_WHOLE[x.itemsize]), _LEVELS / (_LEVELS - self.left_out)))


class _Kept(torch.autograd.Function):
    """The bits of x that a mask keeps, times a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.scale = scale
        return _cleared(x, kept, scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _cleared(gradients[0], ctx.saved_tensors[0], ctx.scale), None, None


def _cleared(x: Tensor, kept: Tensor, scale: float) -> Tensor:
    return (x.view(kept.dtype) & kept).view(x.dtype).mul_(scale)


def mask(seeds: Int[Tensor, "b"], place: int, count: int, left_out: int) -> Int16[Tensor, "b n"]:
    """Which of ``count`` numbers of each sample are kept: -1 with probability 1 - left_out/32768, else 0.

    The two halves of word i are those of a 32-bit mix of i with two words of a 64-bit mix of seed and place; their
    lower 15 bits are compared.

    Args:
        seeds: one a sample.
        place: where in the network.
        count: numbers of a sample.
        left_out: of 32768.

    Source: the 32-bit mix is "lowbias32" (Wellons 2018, "Prospecting for hash functions"); the 64-bit one is
        splitmix64's (Steele et al. 2014, "Fast splittable pseudorandom number generators").
    """
    key = _mixed64(seeds + _signed(0x9E3779B97F4A7C15 * (place + 1), 64))
    low, high = (part.to(torch.int32)[:, None] for part in (_low(key), _low(key >> 32)))
    words = torch.arange(-(-count // 2), dtype=torch.int32, device=seeds.device)[None].bitwise_xor(low)
    _mix(words, 16, 0x7FEB352D)
    words.add_(high)
    _mix(words, 15, 0x846CA68B)
    words.bitwise_xor_((words >> 16).bitwise_and_(0xFFFF)).bitwise_and_(0x7FFF7FFF)
    halves = words.view(torch.int16)[:, :count]
    return torch.sub(left_out - 1, halves).bitwise_right_shift_(15)


def _mix(words: Int[Tensor, "b n"], shift: int, factor: int) -> None:
    words.bitwise_xor_((words >> shift).bitwise_and_((1 << (32 - shift)) - 1)).mul_(_signed(factor, 32))


def _mixed64(words: Int[Tensor, "b"]) -> Int[Tensor, "b"]:
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        words = (words ^ ((words >> shift) & ((1 << (64 - shift)) - 1))) * _signed(factor, 64)
    return words ^ ((words >> 31) & ((1 << 33) - 1))


def _low(words: Int[Tensor, "b"]) -> Int[Tensor, "b"]:
    """The low 32 bits, as a number that int32 holds."""
    low = words & 0xFFFFFFFF
    return torch.where(low >= 1 << 31, low - (1 << 32), low)


def _signed(number: int, bits: int) -> int:
    number %= 1 << bits
    return number - (1 << bits) if number >> (bits - 1) else number
