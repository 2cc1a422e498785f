"""Batches: which picture is seen when, and what is said of it.

Knows: the order of pictures in memory, the wording of captions, which pictures are held out.
Does not know: losses, networks, files, how a set that is too large for memory is ordered and read (``data/large.py``).

Everything here is a function of a seed and the index of a sample in the run: going to any place costs nothing, and how
a run was interrupted leaves no trace.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from unstir.condition import Condition
from unstir.conditioning.captions import DRAWS, Wording
from unstir.conditioning.text import WordReader
from unstir.data.folder import PictureSet
from unstir.data.large import LargeSet, Lazily
from unstir.data.order import ORDER, shuffled
from unstir.data.transforms import to_unit
from unstir.diffusion.noise import KeyedNoise
from unstir.typing import Noise, floats

CAPTION, DROP, CODEC, OBJECTIVE, DROPOUT = range(5)
"""Sub-keys of a sample's randomness in training."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Captioned:
    """Pictures with their captions: in memory, or read when they are asked for.

    Of a large set whole rows are had from ``rows`` alone, which lets the next picture stand in for a broken one.

    Args:
        pictures: as bytes, (c, h, w) each; they may differ in height and width.
        captions: of each picture, possibly none.
        keywords: further words for each picture.
        keys: their names.
        repeats: how often an epoch shows each picture; empty is once, or as ``large`` has it.
        large: where they are, if they are not in memory.
    """

    pictures: Sequence[UInt8[Tensor, "c h w"]]
    captions: Sequence[tuple[str, ...]]
    keywords: Sequence[tuple[str, ...]]
    keys: Sequence[str]
    repeats: Sequence[int] = ()
    large: LargeSet | None = None

    @classmethod
    def of(cls, pictures: Iterable[UInt8[Tensor, "c h w"]], records: PictureSet) -> Captioned:
        """What a loaded set holds; row by row, or a tensor of rows."""
        return cls(
            pictures=tuple(pictures),
            captions=tuple(record.captions for record in records.records),
            keywords=tuple(record.keywords for record in records.records),
            keys=tuple(record.key for record in records.records),
            repeats=tuple(record.repeats for record in records.records),
        )

    @classmethod
    def of_large(cls, large: LargeSet) -> Captioned:
        """The pictures of a set that stays on the disk."""
        lazily = partial(Lazily[Any], len(large))
        return cls(
            pictures=lazily(partial(_part_of_row, large, "pictures")),
            captions=lazily(partial(_part_of_row, large, "captions")),
            keywords=lazily(partial(_part_of_row, large, "keywords")),
            keys=lazily(partial(_part_of_row, large, "key")),
            large=large,
        )

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.keys)

    def rows(self, index: Sequence[int]) -> Captioned:
        """The chosen pictures, in memory.

        Raises:
            ValueError: if a file of a large set changed since it was looked through, or too many of its pictures are
                broken.
        """
        if self.large is not None:
            taken = [self.large.take(i) for i in index]
            return Captioned(
                pictures=tuple(picture for _, picture in taken),
                captions=tuple(record.captions for record, _ in taken),
                keywords=tuple(record.keywords for record, _ in taken),
                keys=tuple(record.key for record, _ in taken),
            )
        return Captioned(
            pictures=tuple(self.pictures[i] for i in index),
            captions=tuple(self.captions[i] for i in index),
            keywords=tuple(self.keywords[i] for i in index),
            keys=tuple(self.keys[i] for i in index),
            repeats=tuple(self.repeats[i] for i in index) if self.repeats else (),
        )

    @property
    def showings(self) -> int:
        """Pictures of an epoch, each counted as often as it is shown."""
        return len(self._epoch) if self.large is None else self.large.order.total

    def shown(self, seed: int, index: Sequence[int]) -> list[int]:
        """The pictures that the samples ``index`` of a run are."""
        if self.large is not None:
            return self.large.shown(seed, index)
        return self._epoch[[picture_of(seed, i, len(self._epoch)) for i in index]].tolist()

    def spread(self, most: int) -> Sequence[int]:
        """Every picture of a set in memory; of a large one at most so many, from all over it."""
        return range(len(self)) if self.large is None else self.large.spread(most)

    @cached_property
    def _epoch(self) -> Int64[np.ndarray, "showings"]:
        """The pictures of one epoch, in order: each as often as it is repeated."""
        return np.repeat(np.arange(len(self)), self.repeats or 1)

    def fingerprint(self) -> str:
        """A checksum of pictures, captions and their order: a resumed run must see the same set.

        That of a large set is of what its index says: names, sizes and places, and of no pixels.
        """
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        # Every checkpoint writes it down, and the pictures may be many.
        if self.large is not None:
            return self.large.table.checksum
        digest = hashlib.sha256()
        for picture in self.pictures:
            digest.update(picture.numpy().tobytes())
        digest.update(repr((tuple(self.keys), tuple(self.captions), tuple(self.keywords))).encode())
        if any(count != 1 for count in self.repeats):
            digest.update(repr(tuple(self.repeats)).encode())
        return digest.hexdigest()[:16]


@lru_cache(maxsize=2)
def order_of_epoch(seed: int, epoch: int, count: int) -> tuple[int, ...]:
    """The order in which one epoch goes through ``count`` pictures in memory."""
    return tuple(shuffled(count, seed, ORDER, epoch).tolist())


def picture_of(seed: int, index: int, count: int) -> int:
    """Which of the ``count`` showings of an epoch the sample ``index`` of a run is."""
    return order_of_epoch(seed, index // count, count)[index % count]


def batch_of(
    data: Captioned, reader: WordReader, wording: Wording, *, seed: int, start: int, count: int, drop: float
) -> list[tuple[Float[Tensor, "b c h w"], Condition, KeyedNoise]]:
    """The samples ``start`` to ``start + count`` of a run, those of one shape together.

    Returns:
        For each shape of picture, pictures in [-1, 1]; their words, some forgotten; and the randomness of each sample.
        Where all pictures have one shape, that is one triple with the samples in their order.
    """
    chosen = data.rows(data.shown(seed, range(start, start + count)))
    shapes: dict[torch.Size, list[int]] = {}
    for row, picture in enumerate(chosen.pictures):
        shapes.setdefault(picture.shape, []).append(row)
    return [
        _part(chosen.rows(rows), reader, wording, seed=seed, index=[start + row for row in rows], drop=drop)
        for rows in shapes.values()
    ]


def _part_of_row(large: LargeSet, name: str, row: int) -> Any:
    """One of the fields of a row of a large set; the picture alone is decoded for it."""
    return large.take(row)[1] if name == "pictures" else getattr(large.record(row), name)


def _part(
    chosen: Captioned, reader: WordReader, wording: Wording, *, seed: int, index: Sequence[int], drop: float
) -> tuple[Float[Tensor, "b c h w"], Condition, KeyedNoise]:
    noise = KeyedNoise(keys=tuple((seed, i) for i in index))
    condition = read_all(reader, say_all(chosen, wording, noise.at(CAPTION)), length=1)
    condition = replace(condition.drop(drop, noise.at(DROP)), seeds=seeds_of(noise.at(DROPOUT)))
    return to_unit(torch.stack(list(chosen.pictures))), condition, noise


def seeds_of(noise: KeyedNoise) -> Int64[Tensor, "b"]:
    """A whole number for each sample, for what makes its own randomness of it on the device."""
    draws = noise.uniform(torch.zeros(len(noise.keys), 1, dtype=torch.float64))
    return (draws[:, 0] * 2**53).long()


def read_all(reader: WordReader, texts: Sequence[str], *, length: int | None = None) -> Condition:
    """The condition that these texts make; where there is no text, the words count as forgotten."""
    condition, _ = reader.read(texts, length=length)
    return replace(condition, kept=torch.tensor([bool(text.strip()) for text in texts]))


def say_all(data: Captioned, wording: Wording, noise: Noise) -> list[str]:
    """One wording for each picture."""
    draws = noise.uniform(torch.zeros(len(data), DRAWS, dtype=torch.float64))
    rows = zip(data.captions, data.keywords, draws, strict=True)
    return [wording.say(captions, keywords, floats(row)) for captions, keywords, row in rows]
