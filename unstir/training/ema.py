"""The average of the weights over the run.

Knows: how long it remembers, in pictures.
Does not know: what the weights belong to.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from unstir.speedups import is_on


def ema_decay(batch: int, images_seen: int, *, half_life_images: float, warmup: float) -> float:
    """What the average keeps of itself in one step: 0.5^(batch / half-life).

    Args:
        batch: pictures in the step.
        images_seen: pictures seen after it.
        half_life_images: after so many pictures, half of an old weight is forgotten; 0 keeps no average.
        warmup: the half-life is at most this share of the pictures seen, so that the start is forgotten early.

    Source: Karras et al. 2022, arXiv:2206.00364, code (EMA length in images, with ramp-up).
    """
    half_life = min(half_life_images, warmup * images_seen)
    return 0.5 ** (batch / half_life) if half_life > 0 else 0.0


def ema_update(average: Sequence[Tensor], weights: Sequence[Tensor], decay: float) -> None:
    """Move the average towards the weights, in place: average = decay average + (1 - decay) weights."""
    with torch.no_grad():
        if is_on("joined_average"):
            get_ema_multi_avg_fn(decay)(tuple(average), tuple(weights), 0)
            return
        for own, weight in zip(average, weights, strict=True):
            own.lerp_(weight, 1 - decay)


def share_of_start(images: int, batch: int, *, half_life_images: float, warmup: float) -> float:
    """What is left of the initial weights in the average after a run: close to 0, or the average is too slow for it."""
    share = 1.0
    for before in range(0, images, batch):
        seen = min(before + batch, images)
        share *= ema_decay(seen - before, seen, half_life_images=half_life_images, warmup=warmup)
    return share
