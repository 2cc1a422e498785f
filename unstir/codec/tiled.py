"""Tiles: large pictures through a codec in parts, so that memory does not grow with the picture.

Knows: tiles that overlap, and how what a codec makes of them is blended.
Does not know: what the codec does with a tile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from unstir.codec.base import Codec
from unstir.typing import Noise, Picture, X

PIXELS = 1024
"""Side of a tile of a picture, unless something else is asked for; whatever is smaller goes through whole."""


@dataclass(frozen=True, kw_only=True)
class Tiled(Codec):
    """A codec that sees a large picture in square tiles that overlap, and blends what it makes of them.

    y = sum over tiles of w y_tile / sum over tiles of w,   w = clamp((d - margin) / (overlap - 2 margin), 0, 1),

    in height and in width, where d is the distance from the tile's edge; an edge of the picture is none. The weights
    are continuous, so that there is no seam. Where the codec sees no farther than ``margin``, every answer that counts
    is that of the whole picture, and so is the result, but for rounding. Norms and attention see all of a tile: with
    these, a tile is told from the whole as far as its contents differ: more where tiles are small.

    Pictures that fit into one tile go through whole. Noise is that of the whole, whatever the tiles.

    Args:
        codec: what is done to a tile.
        tile: side of a tile, in latents.
        overlap: latents that neighbours share, at least.
        margin: latents at a tile's edge whose answers do not count.

    Raises:
        ValueError: unless 0 <= 2 margin < overlap < tile.

    Source: Bar-Tal et al. 2023, arXiv:2302.08113, Eq. 5 (several views of one canvas, averaged by weight).
    """

    codec: Codec
    tile: int
    overlap: int
    margin: int

    def __post_init__(self) -> None:
        """Refuse tiles that leave a place out."""
        if not 0 <= 2 * self.margin < self.overlap < self.tile:
            raise ValueError(
                "tiles must overlap by more than twice the margin and less than their side, got tile "
                f"{self.tile}, overlap {self.overlap}, margin {self.margin}"
            )

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return self.codec.latent_channels

    @property
    def downsampling(self) -> int:
        """How many times smaller latents are than pictures, in height and in width."""
        return self.codec.downsampling

    @property
    def is_exact(self) -> bool:
        """Whether pictures come back as they were."""
        return self.codec.is_exact

    def encode(self, pictures: Picture, noise: Noise) -> Float[Tensor, "b k u v"]:
        """Latents of pictures.

        Raises:
            ValueError: if the pictures have other channels, or sides that the codec does not divide.
        """
        factor = self.downsampling
        height, width = pictures.shape[-2:]
        if height % factor or width % factor:
            raise ValueError(f"the codec reads pictures whose sides are multiples of {factor}, got {width}x{height}")
        sides = height // factor, width // factor

        def ask(rows: slice, columns: slice) -> Tensor:
            part = pictures[..., _times(rows, factor), _times(columns, factor)]
            return self.codec.encode(part, _Window(noise=noise, sides=sides, rows_of=rows, columns=columns))

        return self._blended(sides, 1, ask)

    def decode(self, latents: Float[Tensor, "b k u v"]) -> Picture:
        """Pictures of latents.

        Raises:
            ValueError: if the latents have other channels.
        """
        height, width = latents.shape[-2:]
        return self._blended(
            (height, width), self.downsampling, lambda rows, columns: self.codec.decode(latents[..., rows, columns])
        )

    def _blended(self, sides: tuple[int, int], factor: int, ask: Callable[[slice, slice], Tensor]) -> Tensor:
        """The answers to all tiles as one, each latent being ``factor`` numbers of an answer in height and in width."""
        if max(sides) <= self.tile:
            return ask(slice(0, sides[0]), slice(0, sides[1]))
        vertical, across = (self._spans(side, factor) for side in sides)
        out: Tensor | None = None
        for (rows, down), (columns, along) in product(vertical, across):
            part = ask(rows, columns)
            if out is None:
                out = part.new_zeros(*part.shape[:2], *(factor * side for side in sides))
            weight = down.outer(along).to(part)
            out[..., _times(rows, factor), _times(columns, factor)] += weight * part
        assert out is not None
        return out

    def _spans(self, side: int, factor: int) -> list[tuple[slice, Float[Tensor, "n"]]]:
        """The tiles along one side, each with its share of every number it answers for; shares add up to one."""
        count = 1 if side <= self.tile else 1 - (self.tile - side) // (self.tile - self.overlap)
        length = min(side, self.tile)
        starts = [round(i * (side - length) / max(count - 1, 1)) for i in range(count)]
        places = (torch.arange(factor * side, dtype=torch.float64) + 0.5) / factor
        shares = torch.zeros(count, len(places), dtype=torch.float64)
        for share, start in zip(shares, starts, strict=True):
            before = places - start if start else torch.full_like(places, torch.inf)
            after = start + length - places if start + length < side else torch.full_like(places, torch.inf)
            nearest = torch.minimum(before, after)
            share += ((nearest - self.margin) / (self.overlap - 2 * self.margin)).clamp(0, 1)
        shares /= shares.sum(0)
        spans = [slice(start, start + length) for start in starts]
        return [(span, share[_times(span, factor)]) for span, share in zip(spans, shares, strict=True)]


def in_tiles(codec: Codec, *, pixels: int = PIXELS) -> Tiled:
    """A codec that sees pictures of more than so many pixels a side in tiles.

    Neighbours share a quarter of a tile, of which a quarter does not count at either edge.

    Raises:
        ValueError: if a tile has no latents to share.
    """
    tile = pixels // codec.downsampling
    return Tiled(codec=codec, tile=tile, overlap=tile // 4, margin=tile // 16)


@dataclass(frozen=True, kw_only=True)
class _Window(Noise):
    """The part of the noise on whole latents that lies in a tile."""

    noise: Noise
    sides: tuple[int, int]
    rows_of: slice
    columns: slice

    def at(self, *key: int) -> Self:
        return type(self)(noise=self.noise.at(*key), sides=self.sides, rows_of=self.rows_of, columns=self.columns)

    def rows(self, index: slice) -> Self:
        return type(self)(noise=self.noise.rows(index), sides=self.sides, rows_of=self.rows_of, columns=self.columns)

    def normal(self, like: X) -> X:
        return self._cut(self.noise.normal(self._whole(like)))

    def uniform(self, like: X) -> X:
        return self._cut(self.noise.uniform(self._whole(like)))

    def brownian(self, s: float, t: float, like: X) -> X:
        return self._cut(self.noise.brownian(s, t, self._whole(like)))

    def _whole(self, like: Tensor) -> Tensor:
        return like.new_zeros(1).expand(*like.shape[:2], *self.sides)

    def _cut(self, whole: Tensor) -> Tensor:
        return whole[..., self.rows_of, self.columns]


def _times(span: slice, factor: int) -> slice:
    return slice(factor * span.start, factor * span.stop)
