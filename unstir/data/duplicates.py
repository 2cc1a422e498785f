"""Pictures that are there twice, or nearly: the same bytes are easy, this is for re-encoded, resized and shifted ones.

Knows: thumbnails, how far apart two of them are, how to find the near ones among many without a list of all pairs.
Does not know: files, captions, splits, what should be done about duplicates.

Two thumbnails of 16x16 are near when their difference, without what a shift by up to one thumbnail pixel explains, is
below a fifth of their contrast. Of the emoji (64x64) that finds 98 in 100 copies saved as JPEG of quality 50, all that
are resized by a tenth, and 9 in 10 that are shifted by a pixel. Variants of one drawing (another skin tone, another
mouth) and bursts of photographs are near as well. Nearness is measured against contrast, so a picture of a single flat
colour is near to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int, Int64, UInt8
from PIL import Image

THRESHOLD = 0.2
"""Root mean square of what a shift does not explain, over the contrast: near below it."""

_SIDE = 16  # of a thumbnail
_COARSE = 8  # of what all pairs are compared by; the fine comparison is for what is alike here
_CORRELATED = 0.94  # copies that are near at 64x64 have 0.96 and more at the coarse size
_CELLS = 2**22  # of the matrix of correlations that is in memory at once
_PARTNERS = 16  # compared in detail with one picture within one split: the most alike
_RIDGE = 1e-3
_DETAILED = 2048  # pairs whose details are in memory at once

Rows: TypeAlias = Float32[np.ndarray, "pairs values"]
Pairs: TypeAlias = Int64[np.ndarray, "pairs 2"]


def thumbnail(image: Image.Image) -> UInt8[np.ndarray, "16 16 3"]:
    """The whole of an RGB picture on 16x16 pixels, each the mean of what it covers; 0 to 255."""
    small = image.resize((_SIDE, _SIDE), Image.Resampling.BOX, reducing_gap=3.0)
    return np.asarray(small.convert("RGB"), dtype=np.uint8)


def distance(
    one: UInt8[np.ndarray, "pairs 16 16 3"], other: UInt8[np.ndarray, "pairs 16 16 3"]
) -> Float32[np.ndarray, " pairs"]:
    """How far apart thumbnails are, pair by pair, in units of their contrast: min over shifts |a - b - shift . grad|.

    The shift is what least squares make of it, at most one thumbnail pixel each way; the rim of one pixel, where
    something else comes into view, is left out. Contrast is the larger of the two standard deviations over pixels and
    channels, or one grey level if both are below it.

    Returns:
        0 for equal thumbnails, about 1.4 for unrelated ones.
    """
    a, b = one.astype(np.float32), other.astype(np.float32)
    count, mean = len(a), (a + b) / 2
    across = ((mean[:, 1:-1, 2:] - mean[:, 1:-1, :-2]) / 2).reshape(count, -1)
    down = ((mean[:, 2:, 1:-1] - mean[:, :-2, 1:-1]) / 2).reshape(count, -1)
    difference = (a - b)[:, 1:-1, 1:-1].reshape(count, -1)
    # Cramer's rule for the two normal equations; the ridge is for pictures without slopes, whose shift is not known.
    xx, yy, xy = (_dot(one, other) for one, other in ((across, across), (down, down), (across, down)))
    xx, yy, x, y = xx + _RIDGE, yy + _RIDGE, _dot(across, difference), _dot(down, difference)
    area = xx * yy - xy**2
    right, below = (np.clip(part / area, -1, 1).astype(np.float32) for part in (yy * x - xy * y, xx * y - xy * x))
    rest = difference - right[:, None] * across - below[:, None] * down
    contrast = np.maximum(np.maximum(a.std(axis=(1, 2, 3)), b.std(axis=(1, 2, 3))), 1)
    return np.sqrt(np.square(rest).mean(axis=1)) / contrast


def near_pairs(
    thumbnails: UInt8[np.ndarray, "n 16 16 3"],
    parts: Int[np.ndarray, " n"],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Pairs:
    """The pairs of near thumbnails, of which the first comes before the second, in order.

    All pairs are compared coarsely, by matrix products that never hold more than 4 million of them; the alike ones in
    detail. Where a picture has more than 16 alike ones before it within a part, the 16 most alike are looked at: enough
    to find its group, even among ten thousand frames of one scene.

    Args:
        thumbnails: of all pictures, as `thumbnail` gives them.
        parts: a number for each picture; partners are looked for in each part anew, so that many duplicates within a
            part do not hide the ones in another.
        progress: called with (pictures done, pictures in all).
    """
    coarse = _coarse(thumbnails)
    members = [np.flatnonzero(parts == part) for part in np.unique(parts)]
    rows = max(1, _CELLS // max(1, len(thumbnails)))
    found: list[Pairs] = []
    for start in range(0, len(thumbnails), rows):
        block = np.arange(start, min(start + rows, len(thumbnails)))
        for columns in members:
            earlier = columns[columns < block[-1]]
            alike = _alike(coarse[block] @ coarse[earlier].T, block, earlier)
            found += [_near(thumbnails, alike[i : i + _DETAILED]) for i in range(0, len(alike), _DETAILED)]
        if progress is not None:
            progress(int(block[-1]) + 1, len(thumbnails))
    pairs = np.concatenate(found) if found else np.zeros((0, 2), dtype=np.int64)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def grouped(count: int, pairs: Iterable[Sequence[int]]) -> list[tuple[int, ...]]:
    """What hangs together by pairs among the numbers 0 ... count - 1: groups of two or more, in order.

    Returns:
        Groups by their smallest number, each in ascending order; no number is in two of them.
    """
    leader = list(range(count))

    def lead(number: int) -> int:
        while leader[number] != number:
            leader[number] = leader[leader[number]]
            number = leader[number]
        return number

    for one, other in pairs:
        leader[lead(int(other))] = lead(int(one))
    groups: dict[int, list[int]] = {}
    for number in range(count):
        groups.setdefault(lead(number), []).append(number)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _coarse(thumbnails: UInt8[np.ndarray, "n 16 16 3"]) -> Float32[np.ndarray, "n 192"]:
    """What correlations are made of: 8x8 in colour, without the mean, of length 1 (or 0 for a flat picture)."""
    ratio = _SIDE // _COARSE
    blocks = thumbnails.reshape(len(thumbnails), _COARSE, ratio, _COARSE, ratio, 3)
    values = blocks.mean(axis=(2, 4), dtype=np.float32).reshape(len(thumbnails), _COARSE * _COARSE * 3)
    values -= values.mean(axis=1, keepdims=True)
    values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1.0)
    return values


def _alike(correlation: Float[np.ndarray, "rows columns"], rows: np.ndarray, columns: np.ndarray) -> Pairs:
    """The pairs (column, row) that correlate, column before row; at most `_PARTNERS` for each row, the most alike."""
    is_alike: Bool[np.ndarray, "rows columns"] = correlation > _CORRELATED
    found: list[Pairs] = [np.zeros((0, 2), dtype=np.int64)]
    for i in np.flatnonzero(is_alike.any(axis=1)):
        j = np.flatnonzero(is_alike[i, : np.searchsorted(columns, rows[i])])
        if len(j) > _PARTNERS:
            j = j[np.argpartition(-correlation[i, j], _PARTNERS)[:_PARTNERS]]
        found.append(np.stack([columns[j], np.full(len(j), rows[i])], axis=1))
    return np.concatenate(found)


def _dot(one: Rows, other: Rows) -> Float64[np.ndarray, " pairs"]:
    return (one * other).sum(axis=1, dtype=np.float64)  # in float32 the determinant of equal slopes would be noise


def _near(thumbnails: UInt8[np.ndarray, "n 16 16 3"], pairs: Pairs) -> Pairs:
    return pairs[distance(thumbnails[pairs[:, 0]], thumbnails[pairs[:, 1]]) < THRESHOLD]
