"""A set of pictures in numbers and examples, for the person who is about to train on it.

Knows: what to count and how to say it in lines.
Does not know: how pictures are found, decoded or brought to their shape.
"""

from __future__ import annotations

import io
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from unstir.data.aspect import ASPECTS
from unstir.data.records import SPLITS, InFile, PictureSet, Record, natural, storage_order

_SAMPLED_SIZES = 1000
_LISTED = 5  # files named for each reason to skip


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A set of pictures in numbers and a few examples; `lines` is what a person reads.

    Args:
        root: where the set is.
        pictures: how many there are.
        splits: (split, count), without the empty ones.
        sources: (source of the captions, count), without the empty ones.
        sizes: smallest, middle and largest (width, height) by area among the sampled; empty where none could be read.
        sampled: number of files whose header was read.
        oblong: how many of the sampled are not square.
        aspect: what is done to these, one of "crop", "pad" and "buckets".
        uncaptioned: keys of the pictures without a caption.
        unreadable: keys of the sampled files that have no header of a picture.
        skipped: (key, reason).
        notes: sentences.
        examples: up to five (key, first caption or none).
    """

    root: Path
    pictures: int
    splits: tuple[tuple[str, int], ...]
    sources: tuple[tuple[str, int], ...]
    sizes: tuple[tuple[int, int], ...]
    sampled: int
    oblong: int
    aspect: str
    uncaptioned: tuple[str, ...]
    unreadable: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    examples: tuple[tuple[str, str | None], ...]

    def lines(self) -> list[str]:
        """The summary as text, line by line."""
        lines = [f"{self.pictures} pictures in {self.root}"]
        lines.append("splits: " + ", ".join(f"{name} {count}" for name, count in self.splits))
        lines.append("captions from: " + ", ".join(f"{name} {count}" for name, count in self.sources))
        if self.sizes:
            low, middle, high = (f"{width}x{height}" for width, height in self.sizes)
            lines.append(f"sizes: {low} to {high}, median {middle} ({self.sampled} files looked at)")
        if self.oblong:
            seen = f"{self.oblong} of {self.sampled - len(self.unreadable)} pictures are not square"
            others = " or ".join(name for name in ASPECTS if name != self.aspect)
            lines.append(f"aspect: {seen}; {ASPECTS[self.aspect]} ({others} with --aspect)")
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"unreadable: {key}" for key in self.unreadable]
        if len(self.uncaptioned) < self.pictures:  # where none has a caption, the line of sources says so
            lines += [f"no caption: {key}" for key in self.uncaptioned]
        by_reason: dict[str, list[str]] = {}
        for key, reason in self.skipped:
            by_reason.setdefault(reason, []).append(key)
        for reason, keys in by_reason.items():
            rest = f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
            lines.append(f"skipped {len(keys)} ({reason}): {', '.join(keys[:_LISTED])}{rest}")
        lines += [f"example: {key}: {'(no caption)' if text is None else text}" for key, text in self.examples]
        return lines


def summarize(pictures: PictureSet, *, seed: int = 0, aspect: str = "crop") -> Summary:
    """Count a set, look at the headers of at most 1000 of its pictures, and pick five pictures with their captions.

    Args:
        pictures: the set.
        seed: chooses the examples and the pictures whose headers are read.
        aspect: what will be done to pictures that are not square: "crop", "pad" or "buckets".

    Raises:
        ValueError: if there is no such aspect.
    """
    if aspect not in ASPECTS:
        raise ValueError(f"aspect is {aspect!r}, expected one of {', '.join(ASPECTS)}.")
    generator = random.Random(seed)
    records = pictures.records
    examples = generator.sample(records, min(5, len(records)))
    looked_at = generator.sample(records, min(_SAMPLED_SIZES, len(records)))
    sizes: list[tuple[int, int]] = []
    unreadable: list[str] = []
    for record in storage_order(looked_at):
        size = _read_size(pictures, record)
        if size is None:
            unreadable.append(record.key)
        else:
            sizes.append(size)
    sizes.sort(key=lambda size: (size[0] * size[1], size))
    splits = Counter(record.split for record in records)
    sources = Counter(record.source for record in records)
    return Summary(
        root=pictures.root,
        pictures=len(records),
        splits=tuple((name, splits[name]) for name in SPLITS if splits[name]),
        sources=tuple(sources.most_common()),
        sizes=(sizes[0], sizes[len(sizes) // 2], sizes[-1]) if sizes else (),
        sampled=len(looked_at),
        oblong=sum(width != height for width, height in sizes),
        aspect=aspect,
        uncaptioned=tuple(record.key for record in records if not record.captions),
        unreadable=tuple(sorted(unreadable, key=natural)),
        skipped=pictures.skipped,
        notes=pictures.notes,
        examples=tuple((record.key, record.captions[0] if record.captions else None) for record in examples),
    )


def _read_size(pictures: PictureSet, record: Record) -> tuple[int, int] | None:
    try:
        where = record.locate
        source = where.path if isinstance(where, InFile) else io.BytesIO(pictures.read(record))
        with Image.open(source) as image:
            return image.size
    except Exception:  # Pillow's readers raise nearly anything on a broken header
        return None
