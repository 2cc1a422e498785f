"""The recipe for a model that goes on, with pictures of one's own.

Knows: which configuration adapts a model to a few hundred pictures.
Does not know: which model, where the pictures lie.
"""

from __future__ import annotations

from dataclasses import replace

from unstir.recipes.emoji import emoji
from unstir.training.optimizer import OptimizerConfig
from unstir.training.run import Cadence, RunConfig
from unstir.training.trainer import EmaConfig


def fine_tune() -> RunConfig:
    """A short run with a gentle start: the weights are good already; the model is whatever ``--from`` names."""
    base = emoji()
    training = replace(
        base.training,
        images=60_000,
        batch=32,
        optimizer=OptimizerConfig(hidden="muon", learning_rate=5e-4, warmup_images=2000, anneal=0.5),
        ema=EmaConfig(half_life_images=3000, warmup=0.1),
    )
    cadence = Cadence(checkpoint=5000, preview=5000, validate=5000)
    return replace(base, recipe="fine-tune", training=training, cadence=cadence, previews=())
