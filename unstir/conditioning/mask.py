"""Masks: which sites of a picture are to be painted.

Knows: what of a mask's picture means "paint here", and how a mask becomes one of latents.
Does not know: what is painted, files, models.
"""

from __future__ import annotations

import numpy
import torch
import torch.nn.functional as F
from jaxtyping import Bool
from PIL import Image
from torch import Tensor


def painted(mask: Image.Image) -> Bool[Tensor, "h w"]:
    """True where a mask says: paint. There is no half-painted pixel.

    A mask with transparent parts is read as image APIs do: what is not fully opaque is painted, its colours mean
    nothing. In any other mask black is kept, and everything else is painted, the grey edge of a soft brush included.
    """
    if mask.has_transparency_data:
        opacity = numpy.array(mask.convert("RGBA").getchannel("A"))
        if bool((opacity < 255).any()):
            return torch.from_numpy(opacity < 255)
    return torch.from_numpy(numpy.array(mask.convert("RGB")).max(-1) > 0)


def reduced(mask: Bool[Tensor, "h w"], factor: int) -> Bool[Tensor, "u v"]:
    """The mask on a grid that is coarser by a factor: a cell is painted if any pixel of it is.

    Raises:
        ValueError: if the factor does not divide height and width.
    """
    height, width = mask.shape
    if factor < 1 or height % factor or width % factor:
        raise ValueError(f"a mask of {width}x{height} has no cells of {factor}x{factor}")
    return F.max_pool2d(mask[None].float(), factor)[0] > 0
