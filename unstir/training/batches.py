"""Batches: which picture is seen when, and what is said of it.

Knows: the order of pictures, the wording of captions, which pictures are held out.
Does not know: losses, networks, files.

Everything here is a function of a seed and the index of a sample in the run: going to any place costs nothing, and how
a run was interrupted leaves no trace.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from unstir.condition import Condition
from unstir.conditioning.captions import DRAWS, Wording
from unstir.conditioning.text import WordReader
from unstir.data.folder import PictureSet
from unstir.data.transforms import to_unit
from unstir.diffusion.noise import KeyedNoise
from unstir.typing import Noise, floats, integers

CAPTION, DROP, CODEC, OBJECTIVE, DROPOUT = range(5)
"""Sub-keys of a sample's randomness in training."""

_ORDER = -1  # in the place of a sample's index, which is never negative


@dataclass(frozen=True, kw_only=True, eq=False)
class Captioned:
    """Pictures in memory, with their captions.

    Args:
        pictures: as bytes, (c, h, w) each; they may differ in height and width.
        captions: of each picture, possibly none.
        keywords: further words for each picture.
        keys: their names.
        repeats: how often an epoch shows each picture; empty is once.
    """

    pictures: Sequence[UInt8[Tensor, "c h w"]]
    captions: tuple[tuple[str, ...], ...]
    keywords: tuple[tuple[str, ...], ...]
    keys: tuple[str, ...]
    repeats: tuple[int, ...] = ()

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

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.keys)

    def rows(self, index: Sequence[int]) -> Captioned:
        """The chosen pictures."""
        return Captioned(
            pictures=tuple(self.pictures[i] for i in index),
            captions=tuple(self.captions[i] for i in index),
            keywords=tuple(self.keywords[i] for i in index),
            keys=tuple(self.keys[i] for i in index),
            repeats=tuple(self.repeats[i] for i in index) if self.repeats else (),
        )

    @cached_property
    def epoch(self) -> tuple[int, ...]:
        """The pictures of one epoch, in order: each as often as it is repeated."""
        repeats = self.repeats or (1,) * len(self)
        return tuple(i for i, count in enumerate(repeats) for _ in range(count))

    def fingerprint(self) -> str:
        """A checksum of pictures, captions and their order: a resumed run must see the same set."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        # Every checkpoint writes it down, and the pictures may be many.
        digest = hashlib.sha256()
        for picture in self.pictures:
            digest.update(picture.numpy().tobytes())
        digest.update(repr((self.keys, self.captions, self.keywords)).encode())
        if any(count != 1 for count in self.repeats):
            digest.update(repr(self.repeats).encode())
        return digest.hexdigest()[:16]


@lru_cache(maxsize=2)
def order_of_epoch(seed: int, epoch: int, count: int) -> tuple[int, ...]:
    """The order in which one epoch goes through ``count`` pictures."""
    draws = KeyedNoise(keys=((seed, _ORDER, epoch),)).uniform(torch.zeros(1, count, dtype=torch.float64))
    return tuple(integers(draws[0].argsort(stable=True)))


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
    epoch = data.epoch
    shapes: dict[torch.Size, list[int]] = {}
    which = {i: epoch[picture_of(seed, i, len(epoch))] for i in range(start, start + count)}
    for index, picture in which.items():
        shapes.setdefault(data.pictures[picture].shape, []).append(index)
    return [
        _part(data.rows([which[i] for i in index]), reader, wording, seed=seed, index=index, drop=drop)
        for index in shapes.values()
    ]


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
