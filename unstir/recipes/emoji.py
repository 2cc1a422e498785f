"""The recipe of the built-in model: 64x64 emoji from their names.

Knows: which configuration trains well on a few thousand drawings.
Does not know: where they lie.
"""

from __future__ import annotations

from unstir.diffusion.times import LogitNormalTimes
from unstir.model import ModelConfig, SamplingDefaults
from unstir.nn import DiTConfig
from unstir.training.run import Cadence, RunConfig
from unstir.training.trainer import TrainingConfig


def emoji() -> RunConfig:
    """A transformer on patches of 16, made for the CPU: the most progress a second (docs/builtin-model.md)."""
    return RunConfig(
        recipe="emoji",
        model=ModelConfig(
            network=DiTConfig(size=64, patch=16, width=320, depth=6, heads=5),
            sampling=SamplingDefaults(steps=12, grid="uniform_log_snr", guidance_scale=2.0),
        ),
        training=TrainingConfig(
            images=250_000,
            batch=32,
            # Towards noise, where the words decide what becomes of a picture.
            times=LogitNormalTimes(mean=0.7, std=1.2, uniform=0.15),
        ),
        cadence=Cadence(),
        previews=(
            "red heart",
            "cat with tears of joy",
            "woman firefighter: medium-dark skin tone",
            "flag: France",
            "pizza",
            "rocket",
            "man running: light skin tone",
            "a red apple",
        ),
    )
