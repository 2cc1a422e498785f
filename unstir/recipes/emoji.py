"""The recipe of the built-in model: 64x64 emoji from their names.

Knows: which configuration trains well on a few thousand drawings.
Does not know: where they lie.
"""

from __future__ import annotations

from unstir.conditioning.captions import Wording
from unstir.diffusion.times import LogitNormalTimes
from unstir.model import ModelConfig, SamplingDefaults
from unstir.nn import DiTConfig
from unstir.training.optimizer import OptimizerConfig
from unstir.training.run import Cadence, RunConfig
from unstir.training.trainer import EmaConfig, TrainingConfig


def emoji() -> RunConfig:
    """A transformer on patches of 16, made for the CPU: the most progress a second (docs/builtin-model.md)."""
    return RunConfig(
        recipe="emoji",
        model=ModelConfig(
            network=DiTConfig(size=64, patch=16, width=320, depth=6, heads=5),
            sampling=SamplingDefaults(steps=12, grid="uniform_log_snr", guidance_scale=2.0),
        ),
        training=TrainingConfig(
            images=1_500_000,
            batch=64,
            # Towards noise, where the words decide what becomes of a picture.
            times=LogitNormalTimes(mean=0.7, std=1.2, uniform=0.15),
            optimizer=OptimizerConfig(hidden="muon"),
            ema=EmaConfig(half_life_images=20_000),
            # People ask in their own words; half of the captions are said otherwise.
            wording=Wording(paraphrase=0.4, keywords=0.2, forget=0.08, synonyms=0.3, shuffle=0.06),
        ),
        cadence=Cadence(checkpoint=25_000, preview=50_000, validate=25_000),
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
