"""Tiles against the whole picture: the same where the codec sees no farther than the margin; no step anywhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from unstir.codec import AutoencoderConfig, Identity
from unstir.codec.base import Codec
from unstir.codec.tiled import Tiled, in_tiles
from unstir.diffusion.noise import KeyedNoise
from unstir.typing import Noise

NOISE = KeyedNoise.from_seeds([3, 4])


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


class Near(nn.Module):
    """A codec that sees two latents far, both ways, and draws: convolutions without norms, twice as small latents."""

    latent_channels, downsampling, is_exact = 2, 2, False

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.there = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 2, 4, stride=2, padding=1))
        self.back = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Upsample(scale_factor=2), nn.Conv2d(4, 3, 3, padding=1)
        )
        self.double().requires_grad_(False)

    def encode(self, pictures: Tensor, noise: Noise) -> Tensor:
        mean = self.there(pictures)
        return mean + noise.normal(mean)

    def decode(self, latents: Tensor) -> Tensor:
        return self.back(latents)


@dataclass(kw_only=True)
class Contrary(Codec):
    """Says one thing and its opposite, tile by tile: the hardest to blend."""

    latent_channels: int = 1
    downsampling: int = 2
    is_exact: bool = False
    asked: list[tuple[int, ...]] = field(default_factory=list[Any])

    def encode(self, pictures: Tensor, noise: Noise) -> Tensor:
        return self._said(pictures[:, :1, ::2, ::2])

    def decode(self, latents: Tensor) -> Tensor:
        return self._said(latents.repeat_interleave(2, -1).repeat_interleave(2, -2))

    def _said(self, like: Tensor) -> Tensor:
        self.asked.append(tuple(like.shape[2:]))
        return torch.full_like(like, (-1.0) ** len(self.asked))


@given(st.integers(4, 40), st.integers(4, 40), st.sampled_from([(8, 5, 2), (8, 7, 2), (13, 6, 2), (16, 9, 3)]))
def test_it_is_the_whole_where_the_margin_covers_what_is_seen(height: int, width: int, way: tuple[int, ...]) -> None:
    """To rounding, in both directions, at any size; noise is that of the whole latents."""
    tile, overlap, margin = way
    codec = Near()
    tiled = Tiled(codec=codec, tile=tile, overlap=overlap, margin=margin)
    pictures = drawn(2, 3, 2 * height, 2 * width)
    latents = codec.encode(pictures, NOISE)
    torch.testing.assert_close(tiled.encode(pictures, NOISE), latents, rtol=0, atol=1e-12)
    torch.testing.assert_close(tiled.decode(latents), codec.decode(latents), rtol=0, atol=1e-12)


def test_a_margin_that_is_too_small_is_seen() -> None:
    """The statement above is one about the margin."""
    codec = Near()
    latents = drawn(1, 2, 30, 30)
    tiled = Tiled(codec=codec, tile=12, overlap=6, margin=0)
    assert (tiled.decode(latents) - codec.decode(latents)).abs().max() > 1e-3


@given(st.integers(17, 90), st.integers(3, 90), st.sampled_from([(16, 8, 0), (16, 8, 2), (16, 14, 3), (10, 3, 1)]))
def test_there_is_no_step_anywhere(height: int, width: int, way: tuple[int, ...]) -> None:
    """Tiles that say +1 and -1: the change to the next number is that of the ramps at most, and no number is outside.

    Two ramps, of tiles side by side, move by 2/(overlap - 2 margin) a latent at most where two tiles meet, and where
    more do, by no more than the number of these allows.
    """
    tile, overlap, margin = way
    codec = Contrary()
    out = Tiled(codec=codec, tile=tile, overlap=overlap, margin=margin).decode(drawn(1, 1, height, width))
    assert out.shape == (1, 1, 2 * height, 2 * width)
    assert out.abs().max() <= 1 + 1e-12
    slope = 2 / (2 * (overlap - 2 * margin))
    for side in (-1, -2):
        assert out.diff(dim=side).abs().max() <= 3 * slope + 1e-12
    assert all(max(shape) <= 2 * tile for shape in codec.asked)


def test_two_tiles_meet_on_a_straight_line() -> None:
    """In closed form: between the margins, the weight falls from one to zero."""
    codec = Contrary(downsampling=2)
    out = Tiled(codec=codec, tile=8, overlap=6, margin=1).decode(torch.zeros(1, 1, 8, 10))[0, 0, 0]
    places = (torch.arange(20, dtype=torch.float64) + 0.5) / 2
    expected = 2 * ((places - 3) / 4).clamp(0, 1) - 1
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-6)


def test_small_pictures_go_through_whole() -> None:
    codec = Contrary()
    tiled = Tiled(codec=codec, tile=8, overlap=4, margin=1)
    tiled.decode(drawn(1, 1, 8, 8))
    tiled.encode(drawn(1, 1, 16, 12), NOISE)
    assert codec.asked == [(16, 16), (8, 6)]


def test_memory_does_not_grow_with_the_picture() -> None:
    """No more is asked at once than a tile, and not more often than tiles of so much overlap need."""
    codec = Contrary()
    Tiled(codec=codec, tile=16, overlap=4, margin=1).decode(drawn(1, 1, 100, 40))
    assert codec.asked == [(32, 32)] * (8 * 3)


def test_an_exact_codec_stays_exact() -> None:
    tiled = Tiled(codec=Identity(), tile=8, overlap=4, margin=1)
    pictures = drawn(2, 3, 21, 33)
    torch.testing.assert_close(tiled.decode(tiled.encode(pictures, NOISE)), pictures, rtol=0, atol=1e-12)
    assert tiled.is_exact
    assert (tiled.latent_channels, tiled.downsampling) == (3, 1)


def test_an_autoencoder_in_tiles_is_near_the_whole() -> None:
    """Norms and attention see a tile instead of the picture: with random weights and tiles of 24 latents, the mean error
    is a twentieth of the spread at most, and a third less with tiles of 40."""
    torch.manual_seed(0)
    codec = AutoencoderConfig(width=16, multipliers=(1, 2, 2), blocks=1, groups=1).build().requires_grad_(False)
    latents = torch.randn(1, 4, 24, 56, generator=torch.Generator().manual_seed(2))
    whole = codec.decode(latents)
    errors = [
        ((Tiled(codec=codec, tile=tile, overlap=8, margin=2).decode(latents) - whole).abs().mean() / whole.std()).item()
        for tile in (24, 40, 56)
    ]
    assert errors[0] < 0.05
    assert errors[1] < errors[0] * 2 / 3
    assert errors[2] == 0


@pytest.mark.parametrize("way", [(8, 4, 2), (8, 8, 2), (8, 0, 0), (8, 4, -1)])
def test_tiles_that_leave_a_place_out_are_refused(way: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"got tile 8, overlap {way[1]}, margin {way[2]}"):
        Tiled(codec=Identity(), tile=way[0], overlap=way[1], margin=way[2])


def test_sides_that_the_codec_does_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 2, got 9x8"):
        in_tiles(Near()).encode(drawn(1, 3, 8, 9), NOISE)


@pytest.mark.parametrize("factor", [1, 2, 8, 16])
def test_tiles_are_measured_in_pixels(factor: int) -> None:
    """As large a part of the picture whatever the codec: 1024 pixels, of which neighbours share 256."""
    tiled = in_tiles(Contrary(downsampling=factor))
    sides = {"tile": tiled.tile, "overlap": tiled.overlap, "margin": tiled.margin}
    assert {name: factor * side for name, side in sides.items()} == {"tile": 1024, "overlap": 256, "margin": 64}
    with pytest.raises(ValueError, match="overlap 0"):
        in_tiles(Contrary(), pixels=4)
