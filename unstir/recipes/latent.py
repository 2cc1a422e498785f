"""A model in latents and its sibling on pixels: 128 x 128, the same network, the same number of tokens, the same run.

Knows: which configurations cost the same, so that what differs between two trainings is the space that they draw in.
Does not know: where the pictures and the codec lie.
"""

from __future__ import annotations

from dataclasses import replace

from unstir.codec import AutoencoderConfig
from unstir.conditioning.captions import Wording
from unstir.diffusion.times import LogitNormalTimes
from unstir.model import ModelConfig, SamplingDefaults, in_latents
from unstir.nn import DiTConfig
from unstir.recipes.codec import codec
from unstir.training.codec import CodecRun
from unstir.training.optimizer import OptimizerConfig
from unstir.training.run import Cadence, RunConfig
from unstir.training.trainer import EmaConfig, TrainingConfig


def codec_f8() -> CodecRun:
    """The codec of the recipe ``latent``: factor 8, for pictures of 128 x 128; else as ``codec``."""
    config = codec()
    shape = AutoencoderConfig(latent_channels=4, width=32, multipliers=(1, 2, 2, 4), blocks=1, groups=8)
    return replace(config, recipe="codec-f8", codec=shape, size=128)


def pixel() -> RunConfig:
    """A transformer on 64 patches of 16 x 16 pixels: the recipe ``emoji`` at twice the size, with shorter training."""
    return RunConfig(
        recipe="pixel",
        model=ModelConfig(
            size=128,
            network=DiTConfig(size=128, patch=16, width=320, depth=6, heads=5),
            sampling=SamplingDefaults(steps=12, grid="uniform_log_snr", guidance_scale=2.0),
        ),
        training=TrainingConfig(
            images=400_000,
            batch=64,
            times=LogitNormalTimes(mean=0.7, std=1.2, uniform=0.15),
            optimizer=OptimizerConfig(hidden="muon"),
            ema=EmaConfig(half_life_images=10_000),
            wording=Wording(paraphrase=0.4, keywords=0.2, forget=0.08, synonyms=0.3, shuffle=0.06),
        ),
        cadence=Cadence(checkpoint=25_000, preview=50_000, validate=25_000),
    )


def latent() -> RunConfig:
    """The same run on 64 patches of the latents of ``codec-f8``: 2 x 2 of them, where ``pixel`` has 16 x 16 pixels.

    With another codec (``--codec``) the patches follow: 4 x 4 at factor 4.
    """
    config = pixel()
    return replace(config, recipe="latent", model=in_latents(config.model, codec_f8().codec))
