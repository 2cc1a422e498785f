"""Prompt fidelity: is the picture the one that was asked for?

Knows: which pictures are asked for, and which real picture a drawn one is nearest to.
Does not know: how pictures are drawn or trained on.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from unstir.data.folder import PictureSet
from unstir.pipeline import Pipeline, Result, Settings
from unstir.typing import integers

Draw = Callable[[Sequence[str], int], UInt8[Tensor, "m c h w"]]
"""(prompts, run) -> one picture a prompt; ``run`` counts from 0 and stands for the seed."""


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
    candidates = real.flatten(1).double()  # sums of squared bytes are exact in float64
    lengths = candidates.square().sum(1)
    found: list[Tensor] = []
    for start in range(0, len(drawn), chunk):
        rows = drawn[start : start + chunk].flatten(1).double()
        found.append((lengths - 2 * (rows @ candidates.T)).argmin(1))
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
    draw: Draw,
    prompts: Sequence[str],
    asked: Sequence[int],
    real: UInt8[Tensor, "n c h w"],
    *,
    seeds: int,
) -> Retrieval:
    """The retrieval of whatever draws.

    Args:
        draw: what draws.
        prompts: what to ask for.
        asked: for each prompt, which of the real pictures it names.
        real: all pictures to choose from.
        seeds: pictures a prompt.
    """
    runs = [integers(nearest(draw(prompts, run), real)) for run in range(seeds)]
    hits = [[runs[run][row] == index for run in range(seeds)] for row, index in enumerate(asked)]
    return retrieval(hits, len(real))


def choose_prompts(records: PictureSet, split: str, limit: int) -> list[int]:
    """Which captioned pictures of a split are asked for: all, or ``limit`` chosen by the sha256 of their keys."""
    members = [i for i, record in enumerate(records.records) if record.split == split and record.captions]
    return [members[i] for i in spread_choice([records.records[i].key for i in members], limit)]


def draw_with(
    pipe: Pipeline,
    *,
    seed: int,
    batch: int,
    settings: Settings,
    advance: Callable[[int], None] = lambda done: None,
) -> Draw:
    """What ``measure`` asks to draw: run r of m prompts has the seeds seed + r m to seed + (r + 1) m - 1.

    Args:
        pipe: what draws.
        seed: of the first picture of run 0.
        batch: pictures drawn together.
        settings: of the request.
        advance: told how many pictures are done.
    """
    done = 0

    def draw(prompts: Sequence[str], run: int) -> UInt8[Tensor, "m c h w"]:
        nonlocal done
        pictures: list[Tensor] = []
        for item in pipe.run(pipe.requests(prompts, seed=seed + run * len(prompts), **settings), batch=batch):
            if isinstance(item, Result):
                pictures.append(torch.from_numpy(numpy.array(item.picture)).permute(2, 0, 1))
                done += 1
                advance(done)
        return torch.stack(pictures)

    return draw


def spread_choice(keys: Sequence[str], count: int) -> list[int]:
    """``count`` of the keys, chosen by their sha256: the same ones on every machine, unrelated to their order."""
    ranked = sorted(range(len(keys)), key=lambda index: hashlib.sha256(keys[index].encode()).hexdigest())
    return sorted(ranked[:count])
