"""Prompt fidelity: is the picture the one that was asked for?

Knows: which real picture a drawn one is nearest to.
Does not know: how pictures are drawn or trained on.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int, UInt8
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """How often the nearest real picture is the asked one.

    Args:
        top1: share of drawn pictures, over prompts and seeds.
        standard_error: of ``top1``, with prompts as the independent units (seeds of one prompt are not).
        prompts: number of prompts.
        seeds: pictures a prompt.
        candidates: number of real pictures to choose from; a guess is right once in so many.
    """

    top1: float
    standard_error: float
    prompts: int
    seeds: int
    candidates: int


def nearest(drawn: UInt8[Tensor, "m c h w"], real: UInt8[Tensor, "n c h w"], *, chunk: int = 256) -> Int[Tensor, "m"]:
    """For each drawn picture, the index of the real one with the smallest mean squared error over all values.

    Raises:
        ValueError: if the pictures differ in size.
    """
    if drawn.shape[1:] != real.shape[1:]:
        raise ValueError(f"drawn pictures are {tuple(drawn.shape[1:])}, real ones {tuple(real.shape[1:])}")
    candidates = real.flatten(1).float()
    lengths = candidates.square().sum(1)
    found = [(lengths - 2 * (rows.flatten(1).float() @ candidates.T)).argmin(1) for rows in drawn.split(chunk)]
    return torch.cat(found)


def retrieval(hits: Sequence[Sequence[bool]], candidates: int) -> Retrieval:
    """The score of a table of hits, one row a prompt, one column a seed.

    Raises:
        ValueError: if it is empty or its rows differ in length.
    """
    if not hits or not hits[0] or len({len(row) for row in hits}) != 1:
        raise ValueError("a retrieval needs at least one prompt and the same number of seeds for each")
    means = [sum(row) / len(row) for row in hits]
    top1 = sum(means) / len(means)
    variance = sum((mean - top1) ** 2 for mean in means) / max(1, len(means) - 1)
    return Retrieval(
        top1=top1,
        standard_error=math.sqrt(variance / len(means)),
        prompts=len(hits),
        seeds=len(hits[0]),
        candidates=candidates,
    )


def measure(
    draw: Callable[[Sequence[str], int], UInt8[Tensor, "m c h w"]],
    prompts: Sequence[str],
    asked: Sequence[int],
    real: UInt8[Tensor, "n c h w"],
    *,
    seeds: int,
) -> Retrieval:
    """The retrieval of whatever draws.

    Args:
        draw: (prompts, run) -> one picture a prompt; ``run`` counts from 0 and stands for the seed.
        prompts: what to ask for.
        asked: for each prompt, which of the real pictures it names.
        real: all pictures to choose from.
        seeds: pictures a prompt.
    """
    runs = [nearest(draw(prompts, run), real).tolist() for run in range(seeds)]
    hits = [[runs[run][row] == index for run in range(seeds)] for row, index in enumerate(asked)]
    return retrieval(hits, len(real))


def spread_choice(keys: Sequence[str], count: int) -> list[int]:
    """``count`` of the keys, chosen by their sha256: the same ones on every machine, unrelated to their order."""
    ranked = sorted(range(len(keys)), key=lambda index: hashlib.sha256(keys[index].encode()).hexdigest())
    return sorted(ranked[:count])
