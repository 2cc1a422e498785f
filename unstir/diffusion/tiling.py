"""Tiling: pictures without an edge, from networks that see one.

Knows: a canvas that is rolled, and where a belief about it is far from its edge.
Does not know: networks, their padding or positions, what is drawn.
"""

from __future__ import annotations

import itertools
import math
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from unstir.diffusion.denoiser import Denoiser
from unstir.diffusion.process import Estimate
from unstir.diffusion.schedule import Level
from unstir.typing import X

Maybe = TypeVar("Maybe", Tensor, "Tensor | None", "Tensor | float | None")


def seamless(denoise: Denoiser) -> Denoiser:
    """A denoiser of pictures that repeat: right meets left and bottom meets top.

    The canvas is seen four times, rolled by half of its height, of its width, of both and of none, and at every site
    the four beliefs are weighed by how far from the edge each of them saw it:

    belief = sum over rolls of w unrolled(denoise(rolled(x_t))),
    w = sin^2(pi (i + 1/2)/height) sin^2(pi (j + 1/2)/width) in the rolled canvas

    On even sides the weights add up to 1. No belief counts at its own edge, so what is drawn has none; nothing is asked
    of the network, and nothing is drawn at random. It costs four calls for one.

    Args:
        denoise: any denoiser of (b, c, h, w).

    Source: Bar-Tal et al. 2023, arXiv:2302.08113, Eq. 5 (several views of one canvas, averaged by weight), with the
        views on a torus.
    """

    def denoise_seamless(x_t: X, level: Level, previous: Estimate | None = None) -> Estimate:
        height, width = x_t.shape[-2:]
        weight = _window(height).outer(_window(width)).to(x_t)
        total: Tensor | None = None
        spread: Tensor | float | None = None
        whole = torch.zeros_like(weight)
        for rows, columns in itertools.product((0, height // 2), (0, width // 2)):
            there, back = (rows, columns), (-rows, -columns)
            before = None if previous is None else previous.with_x0(_rolled(previous.x0, there))
            belief = denoise(_rolled(x_t, there), level, before)
            part = _rolled(belief.x0 * weight, back)
            total = part if total is None else total + part
            whole = whole + _rolled(weight, back)
            fraction = belief.variance_fraction
            if fraction is not None:
                spread = (0.0 if spread is None else spread) + _rolled(fraction * weight, back)
        assert total is not None
        return Estimate(x0=total / whole, variance_fraction=None if spread is None else spread / whole)

    return denoise_seamless


def _window(count: int) -> Float[Tensor, "n"]:
    places = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return (math.pi * places).sin().square()


def _rolled(x: Maybe, by: tuple[int, int]) -> Maybe:
    return x.roll(by, (-2, -1)) if isinstance(x, Tensor) else x
