"""Likeness: how far drawn pictures are from the asked ones, how sharp they are, and how much seeds differ.

Knows: formulas on pictures, with prompts as the independent units of standard errors.
Does not know: who drew them, or which picture is the nearest.

Pictures are bytes, or numbers in [-1, 1]; all figures are in units of [-1, 1], where black and white are 2 apart. Where
a phrase names many pictures no single one is the asked one. The squared error is then that to a real picture drawn at
random from those that it names, in expectation: with m their mean,

    E |drawn - real|^2 = |drawn - m|^2 + E |real - m|^2

so the mean itself has the least, and a picture as good as the real ones about twice as much.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from unstir.typing import floats

Pictures = Shaped[Tensor, "n c h w"]
"""Bytes, or floating point in [-1, 1]."""

_COMPANY = 32  # real pictures of one phrase that are compared with each other, at most
_CHUNK = 1024


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean over prompts.

    Args:
        value: the mean.
        standard_error: of it, the prompts being independent; None for a single one.
    """

    value: float
    standard_error: float | None


def mean_of(values: Sequence[float]) -> Mean:
    """The mean of one number a prompt.

    Raises:
        ValueError: if there is none.
    """
    if not values:
        raise ValueError("a mean needs the number of at least one prompt, got none")
    value, error = math.fsum(values) / len(values), None
    if len(values) > 1:
        error = math.sqrt(math.fsum((x - value) ** 2 for x in values) / (len(values) - 1) / len(values))
    return Mean(value=value, standard_error=error)


def ratio_of(above: Sequence[float], below: Sequence[float]) -> Mean:
    """mean(above)/mean(below), a pair a prompt; its standard error to first order (delta method).

    Raises:
        ValueError: if there is no pair, or the lower mean is 0.
    """
    top, bottom = mean_of(above).value, mean_of(below).value
    if bottom == 0:
        raise ValueError("a ratio to numbers that are all 0 has no value; compare with pictures that are not flat")
    ratio = top / bottom
    error = mean_of([(x - ratio * y) / bottom for x, y in zip(above, below, strict=True)]).standard_error
    return Mean(value=ratio, standard_error=error)


def squared_error(drawn: Pictures, asked: Pictures) -> Float[Tensor, "n"]:
    """For each drawn picture, its mean squared error over all values, in expectation over the asked pictures.

    Returns:
        Shape (n,), float64: 4 between black and white.

    Raises:
        ValueError: if the pictures differ in size, or nothing is asked.
    """
    if drawn.shape[1:] != asked.shape[1:] or not len(asked):
        raise ValueError(
            f"drawn pictures are {tuple(drawn.shape[1:])}, the {len(asked)} asked ones {tuple(asked.shape[1:])}; they "
            "must have one size, and at least one must be asked"
        )
    real = _unit(asked).flatten(1)
    return (_unit(drawn).flatten(1) - real.mean(0)).square().mean(1) + least_error(asked)


def least_error(asked: Pictures) -> Float[Tensor, ""]:
    """The least expected squared error that one picture can have: that of the mean of the asked ones, their variance.

    Returns:
        Shape (), float64; 0 where one picture is asked.
    """
    return _unit(asked).flatten(1).var(0, correction=0).mean()


def sharpness(pictures: Pictures) -> Float[Tensor, "n"]:
    """The mean gradient magnitude of each picture: what a blur takes away.

    At every site but those of the last row and column, for each channel: sqrt(across^2 + down^2), of the forward
    differences x[i, j + 1] - x[i, j] and x[i + 1, j] - x[i, j]; their mean over sites and channels.

    Returns:
        Shape (n,), float64, a pixel; at most sqrt(8).

    Raises:
        ValueError: if a picture has a single row or column.
    """
    if min(pictures.shape[2:]) < 2:
        raise ValueError(f"a gradient needs at least 2 rows and 2 columns, got {tuple(pictures.shape[2:])}")
    found: list[Tensor] = []
    for start in range(0, len(pictures), _CHUNK):
        x = _unit(pictures[start : start + _CHUNK])
        across, down = x[:, :, :-1, 1:] - x[:, :, :-1, :-1], x[:, :, 1:, :-1] - x[:, :, :-1, :-1]
        found.append((across.square() + down.square()).sqrt().flatten(1).mean(1))
    return torch.cat(found)


def diversity(pictures: Pictures) -> float:
    """How different the pictures of one prompt are: the mean, over pairs, of the root mean square of their difference.

    Returns:
        0 where all are equal, at most 2.

    Raises:
        ValueError: if there are fewer than 2 pictures.
    """
    if len(pictures) < 2:
        raise ValueError(f"a pair needs 2 pictures, got {len(pictures)}; draw more seeds")
    x = _unit(pictures).flatten(1)
    return torch.pdist(x).mean().item() / math.sqrt(x.shape[1])


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """How drawn pictures compare with the real ones that their prompts name.

    Args:
        squared_error: to a real picture that the prompt names, in expectation.
        least_error: the least that one answer a prompt could have, the variance of the real pictures.
        sharpness: mean gradient magnitude, a pixel.
        real_sharpness: of the real pictures that the prompts name.
        sharpness_ratio: of the two; None where the real pictures are flat.
        diversity: mean distance between two seeds of a prompt; None for a single seed.
        real_diversity: between two real pictures of a prompt, over prompts that name several; None where none does.
        prompts: how many.
    """

    squared_error: Mean
    least_error: Mean
    sharpness: Mean
    real_sharpness: Mean
    sharpness_ratio: Mean | None
    diversity: Mean | None
    real_diversity: Mean | None
    prompts: int


def likeness(
    drawn: UInt8[Tensor, "p s c h w"], answers: Sequence[Sequence[int]], real: UInt8[Tensor, "n c h w"]
) -> Likeness:
    """All of it for prompts drawn several times.

    Args:
        drawn: a row a prompt, a column a seed.
        answers: for each prompt, the real pictures that it names; for their diversity 32 of them at most, drawn by a
            fixed seed.
        real: the real pictures.

    Raises:
        ValueError: if nothing was drawn, a prompt names nothing, or the pictures differ in size.
    """
    named = [real[torch.tensor(rows)] for rows in answers]
    own = [sharpness(pictures).mean().item() for pictures in drawn]
    theirs = [sharpness(pictures).mean().item() for pictures in named]
    company = [diversity(_some(pictures)) for pictures in named if len(pictures) > 1]
    errors = [squared_error(pictures, asked).mean() for pictures, asked in zip(drawn, named, strict=True)]
    return Likeness(
        squared_error=mean_of(floats(torch.stack(errors))),
        least_error=mean_of([least_error(pictures).item() for pictures in named]),
        sharpness=mean_of(own),
        real_sharpness=mean_of(theirs),
        sharpness_ratio=ratio_of(own, theirs) if any(theirs) else None,
        diversity=mean_of([diversity(pictures) for pictures in drawn]) if drawn.shape[1] > 1 else None,
        real_diversity=mean_of(company) if company else None,
        prompts=len(drawn),
    )


def _some(pictures: Tensor) -> Tensor:
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))
    return pictures[order[:_COMPANY]]


def _unit(pictures: Tensor) -> Tensor:
    """In [-1, 1], float64: distances between equal pictures must be 0."""
    return pictures.double() / 127.5 - 1 if pictures.dtype == torch.uint8 else pictures.double()
