"""A recipe for small photographs: 32x32, a U-Net, many pictures for each caption.

Knows: which configuration suits photographs such as CIFAR-10's.
Does not know: where they lie.
"""

from __future__ import annotations

from unstir.diffusion.parameterization import PredictV
from unstir.diffusion.schedule import Cosine
from unstir.diffusion.times import UniformTimes
from unstir.model import ModelConfig, SamplingDefaults
from unstir.nn import UNetConfig
from unstir.nn.text import TextConfig
from unstir.training.optimizer import OptimizerConfig
from unstir.training.run import Cadence, RunConfig
from unstir.training.trainer import EmaConfig, TrainingConfig


def cifar10() -> RunConfig:
    """A U-Net that predicts v on the cosine schedule; its loss is the squared error on v."""
    text = TextConfig(vocabulary=1000, max_tokens=32, width=128, depth=1, heads=2)
    return RunConfig(
        recipe="cifar10",
        model=ModelConfig(
            schedule=Cosine(),
            parameterization=PredictV(),
            size=32,
            network=UNetConfig(width=64, multipliers=(1, 2, 2), attention=(2,), text=text),
            sampling=SamplingDefaults(steps=25, guidance_scale=2.0),
        ),
        training=TrainingConfig(
            images=2_000_000,
            batch=64,
            weight="velocity",
            times=UniformTimes(),
            optimizer=OptimizerConfig(learning_rate=5e-4, warmup_images=20_000),
            ema=EmaConfig(half_life_images=50_000),
        ),
        cadence=Cadence(log=2000, checkpoint=50_000, preview=100_000, validate=100_000),
    )
