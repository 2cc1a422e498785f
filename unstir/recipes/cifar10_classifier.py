"""Classifiers of small photographs: one of noisy pictures, for guidance, and one of clean ones, for measures.

Knows: which classifier suits CIFAR-10's ten classes, and what it costs.
Does not know: where the pictures lie.
"""

from __future__ import annotations

from dataclasses import replace

from unstir.classifier import ClassifierConfig
from unstir.diffusion.schedule import Cosine
from unstir.nn.encoder import EncoderConfig
from unstir.training.classifier import ClassifierRun, ClassifierTraining
from unstir.training.optimizer import OptimizerConfig
from unstir.training.trainer import EmaConfig

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""The names of CIFAR-10's classes."""


def cifar10_classifier() -> ClassifierRun:
    """A small encoder on the schedule of the recipe ``cifar10``: four passes through 47,500 pictures."""
    return ClassifierRun(
        recipe="cifar10-classifier",
        classifier=ClassifierConfig(
            schedule=Cosine(), classes=CIFAR10, network=EncoderConfig(width=32, multipliers=(1, 2, 4), blocks=1)
        ),
        training=ClassifierTraining(
            images=200_000,
            batch=64,
            optimizer=OptimizerConfig(learning_rate=2e-3, weight_decay=0.05, warmup_images=10_000, anneal=0.6),
            ema=EmaConfig(half_life_images=5000),
        ),
    )


def cifar10_features() -> ClassifierRun:
    """The same encoder on clean pictures alone: a judge that shares no weights with the classifier that guides."""
    config = cifar10_classifier()
    return replace(
        config,
        recipe="cifar10-features",
        classifier=replace(config.classifier, is_clean=True),
        training=replace(config.training, images=150_000, seed=1),
    )
