"""The smallest recipe: any small folder, about a minute on a CPU.

Knows: a configuration for tests and newcomers.
Does not know: what the folder holds.
"""

from __future__ import annotations

from unstir.model import ModelConfig, SamplingDefaults
from unstir.nn import DiTConfig
from unstir.nn.text import TextConfig
from unstir.training.optimizer import OptimizerConfig
from unstir.training.run import Cadence, RunConfig
from unstir.training.trainer import EmaConfig, TrainingConfig


def tiny() -> RunConfig:
    """A small transformer on 32x32 pictures."""
    text = TextConfig(vocabulary=1000, max_tokens=32, width=64, depth=1, heads=2)
    return RunConfig(
        recipe="tiny",
        model=ModelConfig(
            size=32,
            network=DiTConfig(size=32, patch=8, width=128, depth=4, heads=2, detail=8, text=text),
            sampling=SamplingDefaults(steps=10, guidance_scale=1.5),
        ),
        training=TrainingConfig(
            images=16_000,
            batch=32,
            optimizer=OptimizerConfig(learning_rate=2e-3, warmup_images=500),
            ema=EmaConfig(half_life_images=500, warmup=0.05),
        ),
        cadence=Cadence(log=500, checkpoint=4000, preview=4000, validate=4000),
    )
