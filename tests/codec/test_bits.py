"""Bit planes: every byte comes back, and the bits are those of its binary number."""

from __future__ import annotations

import pytest
import torch

from unstir.codec import BitPlanes
from unstir.diffusion.noise import KeyedNoise

NOISE = KeyedNoise.from_seeds([0])


def test_every_byte_comes_back() -> None:
    """Decode undoes encode for all 256 values; the codec says that it is exact."""
    codec = BitPlanes()
    pictures = (torch.arange(256).float() / 127.5 - 1).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    latents = codec.encode(pictures, NOISE)
    assert latents.shape == (1, codec.latent_channels, 16, 16)
    assert set(latents.unique().tolist()) == {0, 1}
    torch.testing.assert_close(codec.decode(latents), pictures, rtol=0, atol=1e-6)
    assert codec.is_exact


@pytest.mark.parametrize("value", [0, 1, 77, 128, 200, 255])
def test_planes_are_the_binary_number(value: int) -> None:
    """The planes of a channel, read in order, are the number as Python writes it; channels follow one another."""
    pictures = torch.tensor([value, 255 - value]).float().div(127.5).sub(1).view(1, 2, 1, 1)
    bits = BitPlanes(channels=2).encode(pictures, NOISE).flatten().int().tolist()
    assert "".join(map(str, bits)) == f"{value:08b}{255 - value:08b}"


@pytest.mark.parametrize("bits", [1, 2, 5])
def test_fewer_planes_keep_the_nearest_level(bits: int) -> None:
    """The error is at most half of a level, and the codec says that it loses something."""
    codec = BitPlanes(channels=1, bits=bits)
    pictures = torch.linspace(-1, 1, 1001).view(1, 1, 1, -1)
    back = codec.decode(codec.encode(pictures, NOISE))
    assert (back - pictures).abs().max().item() <= 1 / (2**bits - 1) + 1e-6
    assert len(back.unique()) == 2**bits
    assert not codec.is_exact


def test_beliefs_are_rounded() -> None:
    """What is above one half counts as 1."""
    latents = torch.tensor([0.4, 0.6]).view(1, 2, 1, 1)
    assert BitPlanes(channels=1, bits=2).decode(latents).item() == pytest.approx(-1 + 2 / 3)


@pytest.mark.parametrize(("channels", "bits"), [(3, 0), (3, 9), (0, 8)])
def test_refuses_what_is_no_picture(channels: int, bits: int) -> None:
    """1 to 8 bits of at least one channel."""
    with pytest.raises(ValueError, match="bits"):
        BitPlanes(channels=channels, bits=bits)
