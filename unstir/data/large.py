"""A set that is too large for memory: which of its rows are trained on, and how they are read when they are seen.

Knows: from which size on a set stays on the disk, its splits, what is held out, what stands in for a broken picture.
Does not know: kinds of files (that is ``columns.py`` and ``index.py``), epochs of sets in memory, models.

Everything is a function of the set and of the index of a row, so that nothing needs to be saved for a run to go on.
"""

from __future__ import annotations

import gc
import math
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar, overload

import numpy as np
import torch
from jaxtyping import Int32, Int64, UInt8
from torch import Tensor

from unstir.data.columns import table_of
from unstir.data.folder import find_pictures, find_tables
from unstir.data.index import load_index, save_index, signature, table_of_records
from unstir.data.layout import ALLOW_FLAG
from unstir.data.order import MOST_LANES, GroupOrder
from unstir.data.records import SPLITS, PictureSet, Record
from unstir.data.summary import summarize
from unstir.data.table import TEST, TRAIN, VALIDATION, Table
from unstir.data.transforms import Shape, decode_shaped

MOST_PICTURES = 65_536
"""More pictures than these stay on the disk."""

MOST_PIXELS = 2**30
"""So do more bytes of pixels than these."""

_HELD_OUT = 512  # pictures at most that the held-out loss is measured on
_HELD_OUT_GROUPS = 16
_LOOKED_AT = 256  # pictures whose headers a summary reads
_LOOKED_AT_GROUPS = 8
_SPREAD_GROUPS = 256
_FEW = 100  # a set of fewer pictures holds none of them out
_OPEN_BYTES = 512 * 2**20  # of groups that are open at once
_LEAST_LANES = 4
_TRUSTED = 20  # pictures to read before the share of broken ones is judged
_STAND_INS = 1000  # rows to try in the place of one
_LOCK = threading.Lock()

T = TypeVar("T")


@dataclass(kw_only=True, eq=False)
class Tally:
    """How many pictures were read, and how many of them were broken.

    Args:
        root: the set, for messages.
        max_broken: the largest share that may be.
    """

    root: Path
    max_broken: float
    read: int = 0
    broken: int = 0
    first: list[str] = field(default_factory=list[str])

    def note(self, key: str, reason: str | None) -> None:
        """Count one picture, broken if there is a reason.

        Raises:
            ValueError: if more are broken than may be, by more than chance explains (three standard deviations).
        """
        with _LOCK:
            self.read += 1
            if reason is None:
                return
            self.broken += 1
            if len(self.first) < 3:
                self.first.append(f"{key}: {reason}")
            expected = self.max_broken * self.read
            is_too_many = self.read >= _TRUSTED and self.broken > expected + 3 * math.sqrt(expected)
        if is_too_many:
            raise ValueError(
                f"{self.broken} of the {self.read} pictures read so far from {self.root} cannot be decoded, and at most"
                f" {self.max_broken:.1%} may be; mend or remove them, or allow more with --max-broken:"
                f" {' '.join(self.first)}"
            )

    def lines(self) -> list[str]:
        """What a person should know of it."""
        if not self.broken:
            return []
        return [
            f"{self.broken} of {self.read} pictures read are broken, the next ones stood in: {' '.join(self.first)}"
        ]


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """Some rows of a table.

    Args:
        counts: rows of each group that are in it.
        chosen: group -> which rows of it; without an entry they are the first ones.
    """

    counts: Int64[np.ndarray, "groups"]
    chosen: Mapping[int, Int32[np.ndarray, "rows"]]

    @cached_property
    def ends(self) -> Int64[np.ndarray, "groups"]:
        """The number of the row that each group ends before."""
        return np.cumsum(self.counts)

    def __len__(self) -> int:
        """Number of rows."""
        return int(self.ends[-1]) if len(self.ends) else 0

    def place(self, row: int) -> tuple[int, int]:
        """Where a row is: its group, and its number within the group."""
        group = int(np.searchsorted(self.ends, row, side="right"))
        number = row - int(self.ends[group]) + int(self.counts[group])
        return group, int(self.chosen[group][number]) if group in self.chosen else number

    def spread(self, most: int, groups: int) -> list[int]:
        """At most so many rows, evenly from so many groups, those of a group side by side; all where they are few."""
        if len(self) <= most:
            return list(range(len(self)))
        there = np.flatnonzero(self.counts)
        picked = there[np.unique(np.linspace(0, len(there) - 1, min(groups, len(there))).astype(np.int64))]
        starts, counts = (self.ends - self.counts)[picked].tolist(), self.counts[picked].tolist()
        each = most // len(starts)
        return [
            row for start, count in zip(starts, counts, strict=True) for row in range(start, start + min(count, each))
        ]


@dataclass(frozen=True, kw_only=True, eq=False)
class LargeSet:
    """The rows of a table that are trained on, numbered from 0.

    Args:
        table: where they are.
        part: which they are.
        repeats: group -> how often an epoch shows each of its rows; without an entry once.
        shape: what is done to each picture.
        tally: of the pictures read.
    """

    table: Table
    part: Part
    repeats: Mapping[int, Int32[np.ndarray, "rows"]]
    shape: Shape
    tally: Tally

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.part)

    @cached_property
    def order(self) -> GroupOrder:
        """In which an epoch shows them."""
        sizes = self.part.counts.copy()
        for group, times in self.repeats.items():
            sizes[group] = times.sum()
        return GroupOrder(sizes=sizes, lanes=self._lanes)

    @cached_property
    def most_bytes(self) -> int:
        """What is kept in memory of groups: one a lane, and two more where lanes go on to the next."""
        return (self._lanes + 2) * self.table.group_bytes

    @property
    def _lanes(self) -> int:
        return min(max(_OPEN_BYTES // max(self.table.group_bytes, 1), _LEAST_LANES), MOST_LANES)

    def shown(self, seed: int, index: Sequence[int]) -> list[int]:
        """The rows that the samples ``index`` of a run show."""
        rows: list[int] = []
        for group, number in self.order.places(seed, index):
            if group in self.repeats:
                number = int(np.searchsorted(np.cumsum(self.repeats[group]), number, side="right"))
            rows.append(int(self.part.ends[group] - self.part.counts[group]) + number)
        return rows

    def spread(self, most: int) -> list[int]:
        """At most so many rows from all over the set."""
        return self.part.spread(most, _SPREAD_GROUPS)

    def record(self, row: int) -> Record:
        """What is said of a picture.

        Raises:
            ChangedError: if its file changed.
            ValueError: if a value in it is of the wrong kind.
        """
        return self.table.record(*self.part.place(row))

    def take(self, row: int) -> tuple[Record, UInt8[Tensor, "3 h w"]]:
        """A picture with what is said of it, or the next ones where it is broken.

        Raises:
            ChangedError: if a file changed.
            ValueError: if too many pictures are broken.
        """
        for step in range(min(len(self), _STAND_INS)):
            group, number = self.part.place((row + step) % len(self))
            record, data = self.table.row(group, number, most_bytes=self.most_bytes)
            pixels = decode_shaped(data, self.shape)
            self.tally.note(record.key, pixels if isinstance(pixels, str) else None)
            if not isinstance(pixels, str):
                return record, torch.as_tensor(pixels)
        raise ValueError(f"{_STAND_INS} pictures of {self.table.root} in a row cannot be decoded; mend or remove them.")


class Lazily(Sequence[T]):
    """A sequence whose items are made when they are asked for."""

    def __init__(self, count: int, item: Callable[[int], T]) -> None:
        self._count, self._item = count, item

    def __len__(self) -> int:
        """Number of items."""
        return self._count

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[T, ...]: ...
    def __getitem__(self, index: int | slice) -> T | tuple[T, ...]:
        """An item, or several."""
        if isinstance(index, slice):
            return tuple(self._item(i) for i in range(*index.indices(self._count)))
        if not -self._count <= index < self._count:
            raise IndexError(index)
        return self._item(index % self._count)


@dataclass(frozen=True, kw_only=True, eq=False)
class Divided:
    """A table by its splits.

    Args:
        table: the table.
        train: rows to train on.
        held_out: rows to measure the held-out loss on, as a set that can be loaded.
        repeats: as of ``LargeSet``.
        lines: a summary for people.
    """

    table: Table
    train: Part
    held_out: PictureSet
    repeats: Mapping[int, Int32[np.ndarray, "rows"]]
    lines: tuple[str, ...]


def look_through(root: Path, captions: str, *, most: int) -> PictureSet | Table:
    """What lies under a root: its records where at most so many pictures are outside the split test, else a table.

    Raises:
        ValueError: as ``find_pictures``.
    """
    root = Path(root)
    tables = find_tables(root)
    if tables.paths:
        tables.require(captions)
        table = table_of(root, tables.paths, captions, base=tables.base)
        return table if _seen(table) > most else find_pictures(root, captions=captions)
    sign, newest = signature(root, captions)
    index = load_index(root, captions, sign)
    if index is not None and _seen(index) > most:
        return index
    with _uncollected():
        pictures = find_pictures(root, captions=captions)
        if sum(record.split != SPLITS[TEST] for record in pictures.records) <= most:
            return pictures
        index = table_of_records(pictures)
    save_index(index, captions, sign, newest)
    return index


@contextmanager
def _uncollected() -> Generator[None]:
    """No search for garbage while hundreds of thousands of records are made, all of which stay: a sixth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def count_pictures(root: Path) -> int:
    """How many pictures lie under a root, those of the split test included.

    Raises:
        ValueError: as ``find_pictures``.
    """
    found = look_through(root, "auto", most=MOST_PICTURES)
    return len(found.records) if isinstance(found, PictureSet) else int(found.sizes.sum())


def divide(table: Table, *, aspect: str, allow_missing_captions: bool) -> Divided:
    """Part a table into what is trained on and what is held out; the split test is left alone.

    A set of 100 pictures or more that brings no validation split gives up to 512 (one in twenty at most) to it: the
    last ones of 16 groups that lie evenly in the set.

    Raises:
        ValueError: if there is nothing to train on, or captions are missing and must not be.
    """
    parts = _parts(table)
    counts = [len(part) for part in parts]
    total = sum(counts) - counts[TEST]
    if not counts[TRAIN]:
        raise ValueError(f"{table.root} holds no pictures to train on: all of its {sum(counts)} are in other splits.")
    bare = table.uncaptioned()
    if bare and not allow_missing_captions:
        raise ValueError(
            f"{bare} of the {total} pictures in {table.root} have no caption; add the missing captions, or go on"
            f" without them with {ALLOW_FLAG}."
        )
    train, held_out = parts[TRAIN], parts[VALIDATION]
    if not len(held_out) and total >= _FEW:
        train, held_out = _hold_out(train, min(_HELD_OUT, total // 20))
    chosen = [table.record(*held_out.place(row)) for row in held_out.spread(_HELD_OUT, _HELD_OUT_GROUPS)]
    return Divided(
        table=table,
        train=train,
        held_out=PictureSet(root=table.root, records=tuple(chosen)),
        repeats=dict(_repeats(table, train)),
        lines=tuple(_lines(table, train, counts, bare, aspect)),
    )


def _seen(table: Table) -> int:
    """Rows outside the split test."""
    return sum(len(part) for part in _parts(table)[:TEST])


def _parts(table: Table) -> tuple[Part, Part, Part]:
    """The rows of each split."""
    counts = np.zeros((len(SPLITS), len(table.sizes)), np.int64)
    chosen: tuple[dict[int, Int32[np.ndarray, "rows"]], ...] = ({}, {}, {})
    for group in range(len(table.sizes)):
        found = table.splits(group)
        if isinstance(found, int):
            counts[found, group] = table.sizes[group]
            continue
        for split in (TRAIN, VALIDATION, TEST):
            rows = np.flatnonzero(found == split).astype(np.int32)
            counts[split, group] = len(rows)
            if len(rows):
                chosen[split][group] = rows
    train, validation, test = (Part(counts=counts[split], chosen=chosen[split]) for split in (TRAIN, VALIDATION, TEST))
    return train, validation, test


def _hold_out(train: Part, count: int) -> tuple[Part, Part]:
    """Take rows off the ends of some groups: what is left, and what was taken."""
    there = np.flatnonzero(train.counts)
    picked = np.unique(np.linspace(0, len(there) - 1, min(_HELD_OUT_GROUPS, len(there))).astype(np.int64))
    left, taken = train.counts.copy(), np.zeros_like(train.counts)
    rest, chosen = dict(train.chosen), dict[int, Int32[np.ndarray, "rows"]]()
    for group in there[picked].tolist():
        rows = train.chosen.get(group, np.arange(train.counts.item(group), dtype=np.int32))
        number = min(-(-count // len(picked)), len(rows) // 2)
        left[group], taken[group] = len(rows) - number, number
        chosen[group] = rows[len(rows) - number :]
        if group in rest:
            rest[group] = rows[: len(rows) - number]
    return Part(counts=left, chosen=rest), Part(counts=taken, chosen=chosen)


def _repeats(table: Table, part: Part) -> Iterator[tuple[int, Int32[np.ndarray, "rows"]]]:
    for group in np.flatnonzero(part.counts).tolist():
        found = table.repeats(group)
        if found is not None:
            yield group, found[part.chosen[group]] if group in part.chosen else found[: part.counts[group]]


def _lines(table: Table, train: Part, counts: Sequence[int], bare: int, aspect: str) -> Iterator[str]:
    rows = train.spread(_LOOKED_AT, _LOOKED_AT_GROUPS)
    records = tuple(table.record(*train.place(row)) for row in rows)
    sample = PictureSet(root=table.root, records=records, skipped=table.skipped, notes=table.notes)
    yield f"{sum(counts)} pictures in {table.root}: too many for memory, they are read as they are seen"
    yield "splits: " + ", ".join(f"{name} {count}" for name, count in zip(SPLITS, counts, strict=True) if count)
    if bare:
        yield f"without a caption: {bare}"
    yield f"looked at: {len(rows)}, evenly from the set"
    yield from summarize(sample, aspect=aspect).lines()[2:]
    if table.group_bytes * _LEAST_LANES > _OPEN_BYTES:
        yield (
            f"note: row groups take up to {table.group_bytes / 2**20:.0f} MiB each, of which {_LEAST_LANES + 2} are in"
            " memory; smaller ones (100 MiB) take less."
        )
