"""Codecs: the spaces in which diffusion happens."""

from __future__ import annotations

from typing import Any

from unstir.codec.autoencoder import AutoencoderConfig as AutoencoderConfig
from unstir.codec.autoencoder import KLAutoencoder as KLAutoencoder
from unstir.codec.autoencoder import measured_scale as measured_scale
from unstir.codec.base import Codec as Codec
from unstir.codec.base import CodecShape as CodecShape
from unstir.codec.base import Identity as Identity
from unstir.codec.base import LearnedCodec as LearnedCodec
from unstir.codec.bits import BitPlanes as BitPlanes
from unstir.codec.quantize import QuantizedAutoencoder as QuantizedAutoencoder
from unstir.codec.quantize import QuantizedConfig as QuantizedConfig

CODECS: dict[str, type[Any]] = {
    "identity": Identity,
    "bits": BitPlanes,
    "kl": AutoencoderConfig,
    "vq": QuantizedConfig,
}
"""What a codec is made of; each has a method ``build``, which gives the codec."""
