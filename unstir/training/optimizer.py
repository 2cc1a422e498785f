"""The optimizer and its rate.

Knows: how fast weights move, as a function of pictures seen.
Does not know: losses, networks, ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with a warm-up, a constant stretch and a linear end.

    Args:
        learning_rate: at its highest.
        betas: decay of the first and second moments.
        weight_decay: on matrices only.
        clip_norm: gradients longer than this are shortened to it.
        warmup_images: the rate rises linearly over so many pictures.
        anneal: over this last share of the run the rate falls linearly to 0.

    Raises:
        ValueError: if a number is out of its range.
    """

    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    warmup_images: int = 5000
    anneal: float = 0.4

    def __post_init__(self) -> None:
        """Refuse numbers that train nothing."""
        if not self.learning_rate > 0 or not self.clip_norm > 0 or self.weight_decay < 0:
            raise ValueError("learning_rate and clip_norm must be positive and weight_decay not negative")
        if not all(0 <= beta < 1 for beta in self.betas) or self.warmup_images < 0 or not 0 <= self.anneal <= 1:
            raise ValueError("betas must be in [0, 1), warmup_images at least 0 and anneal in [0, 1]")


def make_optimizer(network: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over all weights; only matrices decay.

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101.
    """
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in weights if weight.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [weight for weight in weights if weight.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=1e-8, fused=True)


def learning_rate(config: OptimizerConfig, images_seen: int, images: int) -> float:
    """The rate of the step that starts after ``images_seen`` of ``images`` pictures; batches and ranks do not enter."""
    warm = 1.0 if config.warmup_images == 0 else min(1.0, (images_seen + 1) / config.warmup_images)
    left = 1.0 if config.anneal == 0 else min(1.0, (images - images_seen) / (config.anneal * images))
    return config.learning_rate * warm * left
