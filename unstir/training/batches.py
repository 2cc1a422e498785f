"""Batches: which picture is seen when, and what is said of it.

Knows: the order of pictures, the wording of captions, which pictures are held out.
Does not know: losses, networks, files.

Everything here is a function of a seed and the index of a sample in the run: going to any place costs nothing, and how
a run was interrupted leaves no trace.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from unstir.condition import Condition
from unstir.conditioning.captions import DRAWS, Wording
from unstir.conditioning.text import WordReader
from unstir.data.folder import PictureSet
from unstir.data.transforms import to_unit
from unstir.diffusion.noise import KeyedNoise
from unstir.typing import Noise, floats, integers

CAPTION, DROP, CODEC, OBJECTIVE = range(4)
"""Sub-keys of a sample's randomness in training."""

_ORDER = -1  # in the place of a sample's index, which is never negative


@dataclass(frozen=True, kw_only=True, eq=False)
class Captioned:
    """Pictures in memory, with their captions.

    Args:
        pictures: as bytes.
        captions: of each picture, possibly none.
        keywords: further words for each picture.
        keys: their names.
    """

    pictures: UInt8[Tensor, "n c h w"]
    captions: tuple[tuple[str, ...], ...]
    keywords: tuple[tuple[str, ...], ...]
    keys: tuple[str, ...]

    @classmethod
    def of(cls, pictures: UInt8[Tensor, "n c h w"], records: PictureSet) -> Captioned:
        """What a loaded set holds."""
        return cls(
            pictures=pictures,
            captions=tuple(record.captions for record in records.records),
            keywords=tuple(record.keywords for record in records.records),
            keys=tuple(record.key for record in records.records),
        )

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.keys)

    def rows(self, index: Sequence[int]) -> Captioned:
        """The chosen pictures."""
        return Captioned(
            pictures=self.pictures[list(index)],
            captions=tuple(self.captions[i] for i in index),
            keywords=tuple(self.keywords[i] for i in index),
            keys=tuple(self.keys[i] for i in index),
        )

    def fingerprint(self) -> str:
        """A checksum of pictures, captions and their order: a resumed run must see the same set."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        # Every checkpoint writes it down, and the pictures may be many.
        digest = hashlib.sha256(self.pictures.numpy().tobytes())
        digest.update(repr((self.keys, self.captions, self.keywords)).encode())
        return digest.hexdigest()[:16]


@lru_cache(maxsize=2)
def order_of_epoch(seed: int, epoch: int, count: int) -> tuple[int, ...]:
    """The order in which one epoch goes through ``count`` pictures."""
    draws = KeyedNoise(keys=((seed, _ORDER, epoch),)).uniform(torch.zeros(1, count, dtype=torch.float64))
    return tuple(integers(draws[0].argsort(stable=True)))


def picture_of(seed: int, index: int, count: int) -> int:
    """Which picture the sample ``index`` of a run is."""
    return order_of_epoch(seed, index // count, count)[index % count]


def batch_of(
    data: Captioned, reader: WordReader, wording: Wording, *, seed: int, start: int, count: int, drop: float
) -> tuple[Float[Tensor, "b c h w"], Condition, KeyedNoise]:
    """The samples ``start`` to ``start + count`` of a run.

    Returns:
        Pictures in [-1, 1]; their words, some forgotten; and the randomness of each sample.
    """
    index = range(start, start + count)
    noise = KeyedNoise(keys=tuple((seed, i) for i in index))
    chosen = data.rows([picture_of(seed, i, len(data)) for i in index])
    texts = say_all(chosen, wording, noise.at(CAPTION))
    condition = read_all(reader, texts, length=1)
    return to_unit(chosen.pictures), condition.drop(drop, noise.at(DROP)), noise


def read_all(reader: WordReader, texts: Sequence[str], *, length: int | None = None) -> Condition:
    """The condition that these texts make; where there is no text, the words count as forgotten."""
    condition, _ = reader.read(texts, length=length)
    return replace(condition, kept=torch.tensor([bool(text.strip()) for text in texts]))


def say_all(data: Captioned, wording: Wording, noise: Noise) -> list[str]:
    """One wording for each picture."""
    draws = noise.uniform(torch.zeros(len(data), DRAWS, dtype=torch.float64))
    rows = zip(data.captions, data.keywords, draws, strict=True)
    return [wording.say(captions, keywords, floats(row)) for captions, keywords, row in rows]
