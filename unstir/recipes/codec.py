"""Codecs for small pictures: one whose latents are drawn from Gaussians, and one with a codebook.

Knows: which autoencoders suit pictures of 64 and 128 pixels on a machine without a GPU, and what they cost.
Does not know: where the pictures lie.
"""

from __future__ import annotations

from dataclasses import replace

from unstir.codec import AutoencoderConfig, QuantizedConfig
from unstir.codec.losses import CodecWeights, DiscriminatorConfig
from unstir.training.codec import CodecRun, CodecTrainingConfig
from unstir.training.optimizer import OptimizerConfig
from unstir.training.trainer import EmaConfig


def codec() -> CodecRun:
    """A KL autoencoder of factor 4 for pictures of 64 x 64, against a discriminator in the second half.

    There is no perceptual part unless the features of a classifier are given (``features``, and the weight
    ``training.weights.perceptual``, 1 in the paper): pretrained weights are nothing that could be fetched here. The
    discriminator is half as wide as the paper's and sees patches of 34 pixels. A picture costs about 5 GFLOP, so that
    two cores need some hours.
    """
    return CodecRun(
        recipe="codec",
        codec=AutoencoderConfig(latent_channels=4, width=32, multipliers=(1, 2, 2), blocks=1, groups=8),
        size=64,
        training=CodecTrainingConfig(
            images=100_000,
            batch=16,
            weights=CodecWeights(perceptual=0.0, adversarial_start=50_000),
            discriminator=DiscriminatorConfig(width=32, layers=2),
            optimizer=OptimizerConfig(
                learning_rate=1e-3, betas=(0.5, 0.9), weight_decay=0.0, warmup_images=2000, anneal=0.4
            ),
            ema=EmaConfig(half_life_images=5000),
        ),
    )


def codec_vq() -> CodecRun:
    """The same with a codebook of 1024 codes instead of Gaussians."""
    config = codec()
    shape = config.codec
    assert isinstance(shape, AutoencoderConfig)
    return replace(config, recipe="codec-vq", codec=QuantizedConfig(autoencoder=shape, codes=1024))
