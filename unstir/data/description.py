"""What is known of a set of pictures, as values, and as the lines that a person reads.

Knows: what each figure means, and how it is said.
Does not know: how it is counted (that is ``describe.py``), what is good or bad about it (that is ``findings.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LONG_WORDS = 30
"""Captions of more words than this may not fit into the 32 tokens that recipes read."""

_LISTED = 5  # examples in a line


@dataclass(frozen=True, kw_only=True)
class Files:
    """What was read, and what could not be.

    Args:
        looked_at: number of pictures that were decoded, the broken ones among them.
        broken: (key, reason) of those that could not be.
        skipped: (key, reason) of files that are no pictures of this set.
        notes: what else the owner should know, one sentence each.
    """

    looked_at: int
    broken: tuple[tuple[str, str], ...]
    skipped: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Captions:
    """How the pictures are captioned.

    Args:
        sources: (source, pictures that have their captions from there), most first; "none" for those without.
        missing: (key, split) of each picture without a caption.
        single: number of pictures with one caption.
        several: number of pictures with more.
        distinct: number of different captions.
        common: (caption, pictures that have it) of up to five that more than one picture has, most first.
        words: median and largest number of words of a caption; zeros where there are none.
        long: number of captions with more than 30 words.
    """

    sources: tuple[tuple[str, int], ...]
    missing: tuple[tuple[str, str], ...]
    single: int
    several: int
    distinct: int
    common: tuple[tuple[str, int], ...]
    words: tuple[int, int]
    long: int


@dataclass(frozen=True, kw_only=True)
class Words:
    """The words of captions and keywords, in lower case.

    Args:
        vocabulary: how many different ones there are.
        once: how many go with one picture only, however often they are said there.
        examples: up to 20 of these, chosen at random, in order.
    """

    vocabulary: int
    once: int
    examples: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large the decoded pictures are.

    Args:
        smallest: (width, height) in pixels, by area.
        median: the same.
        largest: the same.
        square: the side in pixels of what they are trained at.
        oblong: number of pictures that are not square.
        small: number of pictures with a side below ``square``, which are enlarged.
        cut: share of a picture's area that the crop to a square takes away, in the mean over all.
    """

    smallest: tuple[int, int]
    median: tuple[int, int]
    largest: tuple[int, int]
    square: int
    oblong: int
    small: int
    cut: float


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """The pixels of the pictures as they are trained on: cropped, resized, with white for what is transparent.

    Args:
        mean: of red, green and blue, in [0, 1].
        deviation: standard deviation of red, green and blue over all pixels, in the same unit.
        white: share of pixels that are white in all bits.
        black: share of pixels that are black in all bits.
        grey: share of pictures without colour.
    """

    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    white: float
    black: float
    grey: float


@dataclass(frozen=True, kw_only=True)
class Twins:
    """Two pictures in different splits that are equal or near: what is measured on one was trained on the other.

    Args:
        one: key of the first.
        one_split: its split.
        other: key of the second.
        other_split: its split.
        is_equal: whether they agree in every pixel.
    """

    one: str
    one_split: str
    other: str
    other_split: str
    is_equal: bool


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """Pictures that are there more than once.

    Args:
        equal: keys of pictures that agree in size and every pixel, group by group.
        near: keys of pictures that hang together by near pairs, group by group; equal ones count as near to these.
        across: pairs in different splits. Of pictures that are equal within a split only the first is named.
    """

    equal: tuple[tuple[str, ...], ...]
    near: tuple[tuple[str, ...], ...]
    across: tuple[Twins, ...]


@dataclass(frozen=True, kw_only=True)
class Description:
    """A set of pictures in figures; `lines` is what a person reads.

    Args:
        root: where the set is.
        splits: (split, number of pictures), without the empty ones.
        files: what was read.
        captions: of all pictures.
        words: of all pictures.
        sizes: of the pictures looked at; None where none could be decoded.
        pixels: the same.
        duplicates: among the pictures looked at.
    """

    root: Path
    splits: tuple[tuple[str, int], ...]
    files: Files
    captions: Captions
    words: Words
    sizes: Sizes | None
    pixels: Pixels | None
    duplicates: Duplicates

    @property
    def pictures(self) -> int:
        """How many there are."""
        return sum(count for _, count in self.splits)

    def lines(self) -> list[str]:
        """The description as text, line by line."""
        lines = [f"{self.pictures} pictures in {self.root}: {_counts(self.splits)}"]
        lines += _caption_lines(self.captions)
        lines += _word_lines(self.words)
        if self.files.looked_at < self.pictures:
            lines.append(f"looked at: {self.files.looked_at} of the {self.pictures} pictures, chosen at random")
        if self.sizes and self.pixels:
            lines += [_size_line(self.sizes), _pixel_line(self.pixels, self.sizes.square)]
        lines += _duplicate_lines(self.duplicates)
        lines += _listed("broken", [f"{key} ({reason.rstrip('.')})" for key, reason in self.files.broken])
        lines += _listed("not used", [f"{key} ({reason})" for key, reason in self.files.skipped])
        lines += [f"note: {note}" for note in self.files.notes]
        return lines


def _counts(counts: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts)


def _listed(what: str, found: Sequence[str]) -> list[str]:
    """A line with the number and a few examples; none where there is nothing."""
    if not found:
        return []
    rest = f", and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    return [f"{what}: {len(found)}: {', '.join(found[:_LISTED])}{rest}"]


def _caption_lines(captions: Captions) -> list[str]:
    lines = [
        f"captions from: {_counts(captions.sources)}",
        f"captions each: none {len(captions.missing)}, one {captions.single}, more {captions.several}; "
        f"{captions.distinct} different, of {captions.words[0]} words in the median and {captions.words[1]} at most",
    ]
    lines += [f'the same caption on {count} pictures: "{caption}"' for caption, count in captions.common]
    return lines + _listed("without a caption", [key for key, _ in captions.missing])


def _word_lines(words: Words) -> list[str]:
    examples = f": {', '.join(words.examples)}" + (", ..." if words.once > len(words.examples) else "")
    return [f"words: {words.vocabulary}, of which {words.once} with one picture only{examples if words.once else ''}"]


def _size_line(sizes: Sizes) -> str:
    low, middle, high = (f"{width}x{height}" for width, height in (sizes.smallest, sizes.median, sizes.largest))
    return (
        f"sizes: {low} to {high}, median {middle}; {sizes.oblong} not square (a square crop takes away "
        f"{sizes.cut:.0%} of the area in the mean), {sizes.small} smaller than {sizes.square}x{sizes.square}"
    )


def _pixel_line(pixels: Pixels, size: int) -> str:
    mean, deviation = (" ".join(f"{value:.3f}" for value in three) for three in (pixels.mean, pixels.deviation))
    return (
        f"pixels at {size}x{size}, red green blue in [0, 1]: mean {mean}, standard deviation {deviation}; "
        f"{pixels.white:.1%} white, {pixels.black:.1%} black; {pixels.grey:.1%} of the pictures without colour"
    )


def _duplicate_lines(duplicates: Duplicates) -> list[str]:
    lines = _listed("groups of equal pictures", [_chain(group, " = ") for group in duplicates.equal])
    lines += _listed("groups of near-duplicates", [_chain(group, " ~ ") for group in duplicates.near])
    across = [
        f"{twins.one} ({twins.one_split}) {'=' if twins.is_equal else '~'} {twins.other} ({twins.other_split})"
        for twins in duplicates.across
    ]
    return [*lines, *_listed("equal or near pairs across splits", across)] or ["duplicates: none"]


def _chain(group: Sequence[str], sign: str) -> str:
    return sign.join((*group[:3], "...") if len(group) > 3 else group)
