"""Blending: what lies between two noises, and between two beliefs.

Knows: great circles, one number a sample that says how far.
Does not know: what the two belong to, networks, steps from one level to the next.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float64
from torch import Tensor

from unstir.diffusion.denoiser import Denoiser
from unstir.diffusion.process import Estimate, Process
from unstir.diffusion.schedule import Level, spread
from unstir.typing import X

_PARALLEL = 1e-6  # of the sine, below which a great circle is as good as straight, or not defined


def slerp(start: X, end: X, share: Float64[Tensor, "b"]) -> X:
    """From one noise to another along a great circle, on which noise keeps its size; each sample by its own share.

    x = (sin((1 - u) w) start + sin(u w) end)/sin w,   cos w = <start, end>/(|start| |end|) over all sites of a sample

    A straight line would pass through values that are too small for noise: two independent noises have variance 1/2 in
    its middle. Where the two are parallel there is no circle, and the line is taken.

    Args:
        start: noise, at share 0 exactly.
        end: noise, at share 1 exactly.
        share: u of each sample, in [0, 1].

    Raises:
        ValueError: if shapes differ or a share is outside [0, 1].

    Source: Shoemake 1985, "Animating rotation with quaternions"; Song et al. 2021, arXiv:2010.02502, Appendix D.5.
    """
    if start.shape != end.shape:
        raise ValueError(f"only noises of one shape have a way between them, got {start.shape} and {end.shape}")
    _require_shares(share)
    one, other = start.flatten(1).double(), end.flatten(1).double()
    angle = F.cosine_similarity(one, other).clamp(-1, 1).arccos().cpu()
    is_circle = angle.sin() > _PARALLEL
    safe = torch.where(is_circle, angle.sin(), 1.0)
    before = torch.where(is_circle, ((1 - share) * angle).sin() / safe, 1 - share)
    after = torch.where(is_circle, (share * angle).sin() / safe, share)
    return spread(before, start) * start + spread(after, end) * end


def between(process: Process, start: Denoiser, end: Denoiser, share: Float64[Tensor, "b"]) -> Denoiser:
    """A denoiser that believes something between two: each sample by its own share.

    belief = from_natural((1 - u) start + u end)

    With one model under two prompts this is the way from one prompt to the other. It needs nothing of the network, is
    continuous in the share, and is each of the two where the share is 0 or 1; mixing what a text encoder made of the
    words is not, where prompts differ in length.

    Args:
        process: in whose natural coordinate beliefs add up.
        start: believed at share 0.
        end: believed at share 1.
        share: u of each sample, in [0, 1].

    Raises:
        ValueError: if a share is outside [0, 1].

    Source: Liu et al. 2022, arXiv:2206.01714, Eq. 11 (conjunction of prompts, with weights that add up to 1).
    """
    _require_shares(share)

    def denoise(x_t: X, level: Level, previous: Estimate | None = None) -> Estimate:
        one, other = start(x_t, level, previous), end(x_t, level, previous)
        u = spread(share, x_t)
        x0 = process.from_natural((1 - u) * process.to_natural(one.x0) + u * process.to_natural(other.x0))
        if one.variance_fraction is None or other.variance_fraction is None:
            return Estimate(x0=x0)
        return Estimate(x0=x0, variance_fraction=(1 - u) * one.variance_fraction + u * other.variance_fraction)

    return denoise


def _require_shares(share: Tensor) -> None:
    if not bool(((share >= 0) & (share <= 1)).all()):
        raise ValueError(f"a share of the way is in [0, 1], got {share.min().item()} to {share.max().item()}")
