"""One picture of a set and what is said of it; a set of them; and the way from a record to its bytes.

Knows: the kinds of places where pictures are kept, keys and their order, splits.
Does not know: how layouts are told apart (that is ``layout.py``), decoding, tokens, models.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from unstir.data.archive import MAX_BYTES, InArchive, InZip, read_member
from unstir.data.parquet import MOST_BYTES, read_picture

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True, slots=True)
class InFile:
    """A picture that is a file of its own."""

    path: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class InParquet:
    """A picture that is a cell of a parquet file: the row counted within its row group, both from 0."""

    path: Path
    group: int
    row: int


Location = InFile | InParquet | InArchive | InZip


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One picture, not yet read, and what is said of it.

    Args:
        key: the path relative to the set's root; for parquet the id column, or file#row where ids are not unique.
        captions: all of them; empty when there are none.
        source: where the captions are from: "metadata", "sidecar", "folder", "filename", "parquet", or "none" without
            captions.
        split: "train", "validation" or "test".
        locate: where the bytes are.
        keywords: single words or phrases that go with the picture.
        repeats: how often an epoch of training shows it.
    """

    key: str
    captions: tuple[str, ...]
    source: str
    split: str
    locate: Location
    keywords: tuple[str, ...] = ()
    repeats: int = 1


@dataclass(frozen=True, kw_only=True)
class PictureSet:
    """The pictures found under a root, in the natural order of their keys (a2 before a10).

    Args:
        root: the folder, the parquet, tar or zip file, or the list of shards given.
        records: one for each picture.
        skipped: (key, reason) of every file that is not used.
        notes: what else the owner should know, one sentence each.
    """

    root: Path
    records: tuple[Record, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    def read(self, record: Record) -> bytes:
        """The bytes of a picture as they are on disk; the last row groups of parquet files stay in memory.

        Raises:
            OSError: if the file cannot be read.
            ValueError: as `read_bytes`.
        """
        return read_bytes(record.locate)

    def split(self, name: str) -> PictureSet:
        """The same set with the records of one split only.

        Raises:
            ValueError: if name is not "train", "validation" or "test".
        """
        if name not in SPLITS:
            raise ValueError(f"There is no split {name!r}; the splits are {', '.join(SPLITS)}.")
        return replace(self, records=tuple(record for record in self.records if record.split == name))


def read_bytes(where: Location, *, most_bytes: int = MOST_BYTES) -> bytes:
    """The bytes of a picture as they are on disk.

    Args:
        where: the place.
        most_bytes: how much of parquet files' row groups may stay in memory.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if the parquet cell is empty, the parquet file or archive is broken, or the picture has more than
            256 MiB.
    """
    if isinstance(where, InParquet):
        return read_picture(where.path, where.group, where.row, most_bytes=most_bytes)
    if not isinstance(where, InFile):
        return read_member(where)
    with where.path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
            raise ValueError(f"{where.path} has {size:,} bytes, of which {MAX_BYTES:,} are allowed; make it smaller.")
        return file.read()


def natural(key: str) -> tuple[list[str | int], str]:
    """What keys are sorted by: runs of digits as numbers, so that a2 comes before a10; upper case before lower."""
    parts = re.split(r"([0-9]+)", key)
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], key


def storage_order(records: Iterable[Record]) -> list[Record]:
    """Records in the order they lie on disk, in which every row group of a parquet file is read only once."""

    def place(record: Record) -> tuple[str, int, int]:
        where = record.locate
        if isinstance(where, InParquet):
            return str(where.path), where.group, where.row
        return str(where.path), where.offset if isinstance(where, InArchive) else -1, -1

    return sorted(records, key=place)


def is_picture(name: str) -> bool:
    """Whether a file is a picture as its name says."""
    return os.path.splitext(name)[1].lower() in SUFFIXES
