"""Look at a set of pictures before anything is trained on it: count, read the words, decode, compare.

Knows: what to count, at which size pixels are looked at, how much of a large set is enough.
Does not know: how pictures are found, how figures are told (that is ``description.py``), which are good or bad.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import TypeAlias

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from unstir.data.description import (
    LONG_WORDS,
    Captions,
    Description,
    Duplicates,
    Files,
    Pixels,
    Sizes,
    Twins,
    Words,
)
from unstir.data.duplicates import grouped, near_pairs, thumbnail
from unstir.data.records import SPLITS, PictureSet, Record, natural, storage_order
from unstir.data.transforms import decode, square

LIMIT = 20_000
"""So many pictures are decoded, of larger sets a random choice."""

_GREY = 2  # levels by which the channels of a grey picture may differ anywhere: what rounding makes of grey
_LARGEST = 4096  # pixels a side; no network here is trained on more
_COMMON = 5  # captions that are told because many pictures share them
_ONCE = 20  # examples of words
_WORKERS = 2
_CHUNK = 16  # pictures whose bytes are in memory at once

Stages: TypeAlias = Callable[[str, int, int], None]
Levels: TypeAlias = Int64[np.ndarray, "3 256"]  # how many pixels have each level, in red, green and blue


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """A picture and what is said of it.

    Args:
        key: of the picture.
        caption: the first one, or None.
        picture: as it is trained on.
    """

    key: str
    caption: str | None
    picture: Image.Image


def describe(
    pictures: PictureSet, size: int, *, seed: int = 0, limit: int = LIMIT, progress: Stages | None = None
) -> Description:
    """Count a set, decode its pictures, and compare them with each other.

    Captions and words are those of all pictures. Sizes, pixels and duplicates are those of at most `limit`, and what
    is in memory at a time is a thumbnail of each of them.

    Args:
        pictures: the set.
        size: side in pixels of the square that the pictures are trained at.
        seed: chooses the pictures that are decoded where there are more than `limit`, and the examples of words.
        limit: so many pictures are decoded at most.
        progress: called with (what is done, pictures done, pictures in all).

    Raises:
        ValueError: if size is not in 1 ... 4096, limit is below 1 or seed is below 0.
    """
    _require(size, seed)
    if limit < 1:
        raise ValueError(f"limit is {limit}, expected 1 or more pictures to look at.")
    records = pictures.records
    chosen = random.Random(seed).sample(records, limit) if len(records) > limit else list(records)
    looks, levels, broken = _look_at(pictures, chosen, size, progress)
    splits = Counter(record.split for record in records)
    return Description(
        root=pictures.root,
        splits=tuple((name, splits[name]) for name in SPLITS if splits[name]),
        files=Files(looked_at=len(chosen), broken=broken, skipped=pictures.skipped, notes=pictures.notes),
        captions=_captions(records),
        words=_words(records, seed),
        sizes=_sizes([look.size for _, look in looks], size) if looks else None,
        pixels=_pixels([look for _, look in looks], levels) if looks else None,
        duplicates=_duplicates(looks, progress),
    )


def choose_pairs(pictures: PictureSet, size: int, *, count: int = 5, seed: int = 0) -> tuple[Pair, ...]:
    """Random pictures with their captions, to be looked at; a broken one is replaced by the next.

    Args:
        pictures: the set.
        size: side in pixels of the square that the pictures are trained at.
        count: how many; fewer where there are no more.
        seed: chooses them.

    Raises:
        ValueError: if size is not in 1 ... 4096 or seed is below 0.
    """
    _require(size, seed)
    pairs: list[Pair] = []
    for record in random.Random(seed).sample(pictures.records, len(pictures.records)):
        if len(pairs) == count:
            break
        data = _read(pictures, record)
        try:
            pixels = square(decode(data), size) if isinstance(data, bytes) else None
        except ValueError:
            continue
        if pixels is not None:
            picture = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
            pairs.append(Pair(key=record.key, caption=next(iter(record.captions), None), picture=picture))
    return tuple(pairs)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Look:
    """What is kept of a decoded picture: little.

    Args:
        size: (width, height) in pixels.
        digest: SHA-256 of the size and every pixel.
        thumbnail: for near-duplicates.
        white: number of white pixels.
        black: number of black pixels.
        is_grey: whether it is without colour.
    """

    size: tuple[int, int]
    digest: bytes
    thumbnail: UInt8[np.ndarray, "16 16 3"]
    white: int
    black: int
    is_grey: bool


def _require(size: int, seed: int) -> None:
    if not 1 <= size <= _LARGEST:
        raise ValueError(f"size is {size}, expected 1 to {_LARGEST} pixels.")
    if seed < 0:
        raise ValueError(f"seed is {seed}, expected 0 or more.")


def _look_at(
    pictures: PictureSet, records: Sequence[Record], size: int, progress: Stages | None
) -> tuple[list[tuple[Record, _Look]], Levels, tuple[tuple[str, str], ...]]:
    """What was seen of each record, in the natural order of keys; the levels of all; and the broken ones."""
    looks: list[tuple[Record, _Look]] = []
    levels: Levels = np.zeros((3, 256), dtype=np.int64)
    broken: list[tuple[str, str]] = []
    stored = storage_order(records)
    with ThreadPoolExecutor(max_workers=_WORKERS) as pool:
        for start in range(0, len(stored), _CHUNK):
            chunk = stored[start : start + _CHUNK]
            # Read here, in the order the files lie on disk; only the decoding, which takes the time, is shared out.
            files = [_read(pictures, record) for record in chunk]
            for record, seen in zip(chunk, pool.map(partial(_look, size=size), files), strict=True):
                if isinstance(seen, str):
                    broken.append((record.key, seen))
                else:
                    looks.append((record, seen[0]))
                    levels += seen[1]
            if progress is not None:
                progress("looking at pictures", start + len(chunk), len(stored))
    looks.sort(key=lambda pair: natural(pair[0].key))
    return looks, levels, tuple(sorted(broken, key=lambda pair: natural(pair[0])))


def _read(pictures: PictureSet, record: Record) -> bytes | str:
    """The bytes of a picture, or the reason why there are none."""
    try:
        return pictures.read(record)
    except (OSError, ValueError) as error:
        return str(error)


def _look(data: bytes | str, size: int) -> tuple[_Look, Levels] | str:
    """What is kept of a picture, and how its levels are counted; or why it cannot be decoded."""
    if isinstance(data, str):
        return data
    try:
        image = decode(data)
    except ValueError as error:
        return str(error)
    pixels = square(image, size)
    low, high = pixels.min(axis=0), pixels.max(axis=0)
    look = _Look(
        size=image.size,
        digest=hashlib.sha256(f"{image.width}x{image.height}:".encode() + image.tobytes()).digest(),
        thumbnail=thumbnail(image),
        white=int((low == 255).sum()),
        black=int((high == 0).sum()),
        is_grey=bool((high - low).max() <= _GREY),
    )
    return look, np.stack([np.bincount(channel.ravel(), minlength=256) for channel in pixels])


def _captions(records: Sequence[Record]) -> Captions:
    holders = Counter(caption for record in records for caption in set(record.captions))
    lengths = sorted(len(_split(caption)) for record in records for caption in record.captions)
    common = sorted(((caption, count) for caption, count in holders.items() if count > 1), key=lambda x: (-x[1], x[0]))
    return Captions(
        sources=tuple(Counter(record.source for record in records).most_common()),
        missing=tuple((record.key, record.split) for record in records if not record.captions),
        single=sum(len(record.captions) == 1 for record in records),
        several=sum(len(record.captions) > 1 for record in records),
        distinct=len(holders),
        common=tuple(common[:_COMMON]),
        words=(lengths[len(lengths) // 2], lengths[-1]) if lengths else (0, 0),
        long=sum(length > LONG_WORDS for length in lengths),
    )


def _words(records: Sequence[Record], seed: int) -> Words:
    holders = Counter(
        word
        for record in records
        for word in {word for text in (*record.captions, *record.keywords) for word in _split(text)}
    )
    once = sorted(word for word, count in holders.items() if count == 1)
    examples = random.Random(seed).sample(once, min(_ONCE, len(once)))
    return Words(vocabulary=len(holders), once=len(once), examples=tuple(sorted(examples)))


def _split(text: str) -> list[str]:
    """Letters and digits of any script; a hyphen or an apostrophe between them does not part a word."""
    return re.findall(r"[^\W_]+(?:['\u2019-][^\W_]+)*", text.lower())


def _sizes(sizes: Sequence[tuple[int, int]], wanted: int) -> Sizes:
    by_area = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    return Sizes(
        smallest=by_area[0],
        median=by_area[len(by_area) // 2],
        largest=by_area[-1],
        square=wanted,
        oblong=sum(width != height for width, height in sizes),
        small=sum(min(size) < wanted for size in sizes),
        cut=sum(1 - min(size) / max(size) for size in sizes) / len(sizes),
    )


def _pixels(looks: Sequence[_Look], levels: Levels) -> Pixels:
    total = int(levels[0].sum())
    value = np.arange(256) / 255
    mean = levels @ value / total
    deviation = np.sqrt(np.maximum(levels @ value**2 / total - mean**2, 0))
    return Pixels(
        mean=(float(mean[0]), float(mean[1]), float(mean[2])),
        deviation=(float(deviation[0]), float(deviation[1]), float(deviation[2])),
        white=sum(look.white for look in looks) / total,
        black=sum(look.black for look in looks) / total,
        grey=sum(look.is_grey for look in looks) / len(looks),
    )


def _duplicates(looks: Sequence[tuple[Record, _Look]], progress: Stages | None) -> Duplicates:
    by_digest: dict[bytes, list[int]] = {}
    for index, (_, look) in enumerate(looks):
        by_digest.setdefault(look.digest, []).append(index)
    equal = [group for group in by_digest.values() if len(group) > 1]
    # Of equal pictures within a split one stands for all: thousands of them would be millions of pairs.
    ones = [index for group in by_digest.values() for index in _one_a_split(looks, group)]
    ones.sort()
    near = _near(looks, ones, progress)
    joined = [(group[0], other) for group in equal for other in group[1:]]
    touched = {index for pair in near for index in pair}
    groups = grouped(len(looks), [*near, *joined])
    crossing = [pair for group in equal for pair in combinations(_one_a_split(looks, group), 2)]
    twins = sorted({*crossing, *((a, b) for a, b in near if looks[a][0].split != looks[b][0].split)})

    def keys(group: Sequence[int]) -> tuple[str, ...]:
        return tuple(looks[index][0].key for index in group)

    return Duplicates(
        equal=tuple(keys(group) for group in equal),
        near=tuple(keys(group) for group in groups if touched & set(group)),
        across=tuple(_twins(looks[a], looks[b]) for a, b in twins),
    )


def _one_a_split(looks: Sequence[tuple[Record, _Look]], group: Sequence[int]) -> list[int]:
    first: dict[str, int] = {}
    for index in group:
        first.setdefault(looks[index][0].split, index)
    return list(first.values())


def _near(looks: Sequence[tuple[Record, _Look]], ones: Sequence[int], progress: Stages | None) -> list[tuple[int, int]]:
    """The near pairs that are not equal, in numbers of `looks`."""
    if not ones:
        return []
    pairs = near_pairs(
        np.stack([looks[index][1].thumbnail for index in ones]),
        np.array([SPLITS.index(looks[index][0].split) for index in ones]),
        progress=None if progress is None else partial(progress, "comparing pictures"),
    )
    found = [(ones[int(a)], ones[int(b)]) for a, b in pairs]
    return [(a, b) for a, b in found if looks[a][1].digest != looks[b][1].digest]


def _twins(one: tuple[Record, _Look], other: tuple[Record, _Look]) -> Twins:
    return Twins(
        one=one[0].key,
        one_split=one[0].split,
        other=other[0].key,
        other_split=other[0].split,
        is_equal=one[1].digest == other[1].digest,
    )
