"""What a set that is too large for memory is read through: rows in groups that lie together on a disk.

Knows: what every such table tells of its groups and rows, and what it means that a file changed.
Does not know: any kind of file, which rows are trained on (that is ``large.py``), decoding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Int32, Int64, UInt8

from unstir.data.records import SPLITS, Record

TRAIN, VALIDATION, TEST = (SPLITS.index(name) for name in ("train", "validation", "test"))
"""Splits as numbers, as tables keep them."""


class ChangedError(ValueError):
    """A file is gone, or is not the one any more that was looked through."""


class Table(Protocol):
    """The rows of a set, none of which is in memory.

    A row is reached by its group and its number within the group, both from 0.
    """

    @property
    def root(self) -> Path:
        """What the user gave."""
        ...

    @property
    def sizes(self) -> Int64[np.ndarray, "groups"]:
        """Rows of each group."""
        ...

    @property
    def group_bytes(self) -> int:
        """What the largest group holds in memory while its rows are read; 0 where rows are read one by one."""
        ...

    @property
    def checksum(self) -> str:
        """Of names, captions where they are known, sizes and places; not of pixels."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What the owner should know, one sentence each."""
        ...

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """(key, reason) of every file that is not used."""
        ...

    def splits(self, group: int) -> int | UInt8[np.ndarray, "rows"]:
        """The split of every row of a group; one number where they all have the same."""
        ...

    def repeats(self, group: int) -> Int32[np.ndarray, "rows"] | None:
        """How often an epoch shows each row; None where that is once."""
        ...

    def uncaptioned(self) -> int:
        """How many rows outside the split test have no caption, as far as is known without reading them."""
        ...

    def record(self, group: int, row: int) -> Record:
        """A row without its picture.

        Raises:
            ChangedError: if its file changed.
            ValueError: if a value in it is of the wrong kind.
        """
        ...

    def row(self, group: int, row: int, *, most_bytes: int) -> tuple[Record, bytes | str]:
        """A row with its picture as it is on disk, or the reason why there is none.

        Args:
            group: number of the group.
            row: number within it.
            most_bytes: how much of all groups may stay in memory.

        Raises:
            ChangedError: if its file changed.
            ValueError: if a value in it is of the wrong kind.
        """
        ...


def require_unchanged(path: Path, size: int, changed_ns: int) -> None:
    """See that a file is the one that was looked through.

    Args:
        path: the file.
        size: its bytes then.
        changed_ns: when it had been written, in nanoseconds.

    Raises:
        ChangedError: if it is gone or another one.
    """
    advice = "put back the one that was there and go on with --resume; the last checkpoint is untouched"
    try:
        found = path.stat()
    except OSError as error:
        raise ChangedError(f"{path} cannot be read any more ({error.strerror}); {advice}.") from None
    if found.st_size != size:
        raise ChangedError(f"{path} had {size:,} bytes when the run began, and now has {found.st_size:,}; {advice}.")
    if found.st_mtime_ns != changed_ns:
        raise ChangedError(f"{path} was written anew since the run began; {advice}.")
