"""Codecs: a codec that says it is exact gives every picture back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unstir.codec import CODECS, AutoencoderConfig, Identity, QuantizedConfig
from unstir.diffusion.noise import KeyedNoise


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_identity_gives_pictures_back(batch: int, channels: int, height: int, width: int, seed: int) -> None:
    """decode(encode(x)) is x to the last bit, and both are x: diffusion on the pixels themselves."""
    noise = KeyedNoise.from_seeds(range(seed, seed + batch))
    pictures = noise.uniform(torch.zeros(batch, channels, height, width)) * 2 - 1
    kept = pictures.clone()
    codec = Identity(channels=channels)
    latents = codec.encode(pictures, noise)
    assert torch.equal(codec.decode(latents), kept)
    assert torch.equal(latents, kept)
    assert latents.shape == (batch, codec.latent_channels, height // codec.downsampling, width // codec.downsampling)


SMALL = AutoencoderConfig(latent_channels=5, width=8, multipliers=(1, 2), blocks=1, groups=4, scale=0.7)
SHAPES: dict[str, Any] = {"kl": SMALL, "vq": QuantizedConfig(autoencoder=SMALL, codes=30)}


@pytest.mark.parametrize("name", CODECS)
def test_codecs_keep_their_promises(name: str) -> None:
    """For every registered codec: it is what its configuration says; the latents have the promised shape and type; the
    same noise gives the same latents; and is_exact is not merely claimed."""
    shape = SHAPES[name] if name in SHAPES else CODECS[name]()
    codec = shape.build()
    for promise in ("latent_channels", "downsampling", "is_exact"):
        assert getattr(codec, promise) == getattr(shape, promise)
    pictures = (torch.arange(2 * 3 * 16 * 16) % 256 / 127.5 - 1).reshape(2, 3, 16, 16)  # every byte
    noise = KeyedNoise.from_seeds([0, 1])
    latents = codec.encode(pictures, noise)
    side = 16 // codec.downsampling
    assert latents.shape == (2, codec.latent_channels, side, side)
    assert codec.decode(latents).shape == pictures.shape
    if codec.is_exact:
        torch.testing.assert_close(codec.decode(latents), pictures, rtol=0, atol=1e-6)
    assert torch.equal(codec.encode(pictures, noise), latents)
