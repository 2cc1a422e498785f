"""Levels: how a finished picture looks on its way into the noise.

Knows: that a picture is spoiled with the noise that it came from, at any time of the schedule.
Does not know: jobs, files, who looks.
"""

from __future__ import annotations

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from unstir.data.transforms import to_bytes, to_unit
from unstir.diffusion.noise import KeyedNoise
from unstir.pipeline import Pipeline, to_image

_START, _CODEC = 0, 2  # sub-keys of a picture's randomness, as the pipeline counts them


@torch.no_grad()
def spoiled(pipe: Pipeline, pixels: UInt8[Tensor, "3 h w"], seed: int, t: float) -> Image.Image:
    """A picture at a time of the schedule, in the noise that its seed stands for.

    Args:
        pipe: whose schedule and codec it is.
        pixels: the finished picture.
        seed: of the picture.
        t: from 0, the picture itself, to 1, next to nothing but the noise that it was drawn from.

    Raises:
        ValueError: if t is no time of the schedule.
    """
    if not 0 <= t <= 1:
        raise ValueError(f"a time of the schedule is from 0 (the picture) to 1 (noise), got {t}")
    if t == 0:
        return to_image(pixels)
    codec, process, noise = pipe.model.codec, pipe.model.process, KeyedNoise.from_seeds([seed])
    x0 = codec.encode(to_unit(pixels)[None].to(pipe.device), noise.at(_CODEC))
    level = process.schedule.at(torch.tensor(t, dtype=torch.float64))
    x_t = process.marginal(x0, level).sample(noise.at(_START))
    return to_image(to_bytes(codec.decode(x_t).float()).cpu()[0])
