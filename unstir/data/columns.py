"""Parquet files as a table: their footers are read, and of the rows what is asked for.

Knows: what footers say of row groups, which columns hold what, when a column must be read and when not.
Does not know: folders, which rows are trained on, decoding.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Int32, Int64, UInt8

from unstir.data.metadata import CAPTION_COLUMNS, to_captions, to_keywords, to_repeats
from unstir.data.names import split_of, split_of_folder
from unstir.data.parquet import PICTURES, picture_in, read_column, read_footer, read_names, read_row, require_pictures
from unstir.data.records import SPLITS, InParquet, Record
from unstir.data.table import TEST, TRAIN, require_unchanged

_TEXT_BYTES = 64 * 2**20  # of row groups' text that stay in memory beside the pictures
_SHARD = re.compile(r"(.*-)(\d+)(-of-)(\d+)(\.parquet)")


@dataclass(frozen=True, kw_only=True)
class TableFile:
    """One parquet file.

    Args:
        path: where it is.
        shown: what keys call it.
        size: bytes.
        changed_ns: when it was written.
        split: the split that it is named after, or None.
        caption: the column of captions, or None.
        columns: those to read beside the picture.
    """

    path: Path
    shown: str
    size: int
    changed_ns: int
    split: str | None
    caption: str | None
    columns: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class ParquetTable:
    """Parquet files, one group a row group; see ``Table``.

    Args:
        root: what the user gave.
        files: the files.
        places: for each group its file, its number there, and the number of its first row there.
        sizes: rows of each group.
        group_bytes: what the largest group holds in memory.
        checksum: of what the footers say.
        notes: sentences.
    """

    root: Path
    files: tuple[TableFile, ...]
    places: Int64[np.ndarray, "groups 3"]
    sizes: Int64[np.ndarray, "groups"]
    group_bytes: int
    checksum: str
    notes: tuple[str, ...] = ()

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """Nothing."""
        return ()

    def splits(self, group: int) -> int | UInt8[np.ndarray, "rows"]:
        """By the name of the file, else by its column "split", which is read where its statistics do not say all.

        Raises:
            ValueError: if a value is none of train, validation and test.
        """
        file, number, _ = self._place(group)
        if file.split is not None:
            return SPLITS.index(file.split)
        if "split" not in file.columns:
            return TRAIN

        def code(value: object) -> int:
            return SPLITS.index(split_of_row(value, f"{file.path}, row group {number}"))

        found = _each(file.path, number, "split", code)
        return found if isinstance(found, int) else np.array(found, np.uint8)

    def repeats(self, group: int) -> Int32[np.ndarray, "rows"] | None:
        """By the column "repeats".

        Raises:
            ValueError: if a value is no whole number from 1.
        """
        file, number, _ = self._place(group)
        if "repeats" not in file.columns:
            return None
        found = _each(file.path, number, "repeats", lambda v: to_repeats(v, f"{file.path}, row group {number}"))
        if isinstance(found, int):
            return None if found == 1 else np.full(int(self.sizes[group]), found, np.int32)
        return np.array(found, np.int32)

    def uncaptioned(self) -> int:
        """By the counts of nulls in the footers; a caption that is there but blank is not known of."""
        total = 0
        for group in range(len(self.sizes)):
            file, number, _ = self._place(group)
            if file.split == SPLITS[TEST] or "also" in file.columns:
                continue
            if file.caption is None:
                total += int(self.sizes[group])
                continue
            statistics = _statistics(file.path, number, file.caption)
            total += int(statistics.null_count) if statistics is not None and statistics.has_null_count else 0
        return total

    def record(self, group: int, row: int) -> Record:
        """A row without its picture; its key is file#row.

        Raises:
            ChangedError: if its file changed.
            ValueError: if a value in it is of the wrong kind.
        """
        file, number, first = self._place(group)
        require_unchanged(file.path, file.size, file.changed_ns)
        values: dict[str, Any] = {}
        if file.columns:
            values = read_row(file.path, number, row, file.columns, most_bytes=_TEXT_BYTES)
        place = InParquet(path=file.path, group=number, row=row)
        return to_record(values, file, place, number=first + row)[1]

    def row(self, group: int, row: int, *, most_bytes: int) -> tuple[Record, bytes | str]:
        """A row with its picture, or the reason why there is none.

        Raises:
            ChangedError: if its file changed.
            ValueError: if a value in it is of the wrong kind.
        """
        file, number, first = self._place(group)
        require_unchanged(file.path, file.size, file.changed_ns)
        values = read_row(file.path, number, row, (*file.columns, PICTURES), most_bytes=most_bytes)
        place = InParquet(path=file.path, group=number, row=row)
        _, record = to_record(values, file, place, number=first + row)
        try:
            return record, picture_in(values[PICTURES], f"{file.path}, row {first + row},", file.path.parent)
        except (OSError, ValueError) as error:
            return record, str(error)

    def _place(self, group: int) -> tuple[TableFile, int, int]:
        file, number, first = cast("list[int]", self.places[group].tolist())
        return self.files[file], number, first


def table_of(root: Path, paths: Sequence[Path], captions: str, *, base: Path) -> ParquetTable:
    """The table that parquet files are; of them only the footers are read.

    Args:
        root: what the user gave.
        paths: the files.
        captions: "auto", "metadata" or "none".
        base: what keys are relative to.

    Raises:
        ValueError: if a file is truncated, no parquet file, or has no column of pictures.
    """
    notes = _missing_shards(paths)
    digest = hashlib.sha256(repr(captions).encode())
    files: list[TableFile] = []
    places: list[tuple[int, int, int]] = []
    sizes: list[int] = []
    most = 0
    for path in paths:
        file = file_of(path, path.relative_to(base).as_posix(), captions, notes)
        footer = read_footer(path)
        digest.update(repr((file.shown, file.size)).encode())
        leaves = [leaf for column in (*file.columns, PICTURES) for leaf in _leaves(footer, column)]
        first = 0
        for number in range(footer.num_row_groups):
            group = footer.row_group(number)
            columns = [group.column(i) for i in leaves]
            rows, held = int(group.num_rows), sum(int(column.total_uncompressed_size) for column in columns)
            placed = [(column.data_page_offset, column.total_compressed_size) for column in columns]
            digest.update(repr((rows, group.total_byte_size, placed)).encode())
            places.append((len(files), number, first))
            sizes.append(rows)
            most, first = max(most, held), first + rows
        files.append(file)
    return ParquetTable(
        root=root,
        files=tuple(files),
        places=np.array(places, np.int64).reshape(-1, 3),
        sizes=np.array(sizes, np.int64),
        group_bytes=most,
        checksum=digest.hexdigest()[:16],
        notes=tuple(notes),
    )


def file_of(path: Path, shown: str, captions: str, notes: list[str]) -> TableFile:
    """What there is to know of a parquet file before its rows are read; `notes` is told where captions have no column.

    Raises:
        ValueError: if it is not readable, or has no column of pictures.
    """
    require_pictures(path)
    names = read_names(path)
    column = next((name for name in (*CAPTION_COLUMNS, "name") if name in names), None)
    if column is None:
        notes.append(f"{path} has no column text or caption, only {', '.join(names)}.")
    words = (column, "also") if captions != "none" else ()
    wanted = (*words, "id", "keywords", "split", "repeats")
    found = path.stat()
    return TableFile(
        path=path,
        shown=shown,
        size=found.st_size,
        changed_ns=found.st_mtime_ns,
        split=split_of(path.stem),
        caption=column if captions != "none" else None,
        columns=tuple(name for name in wanted if name is not None and name in names),
    )


def to_record(values: dict[str, Any], file: TableFile, place: InParquet, *, number: int) -> tuple[str | None, Record]:
    """The record in a row's values, called file#row, and its id if it has one.

    Args:
        values: what stands in the columns of the file.
        file: the file.
        place: where in it.
        number: of the row in the file, from 0.

    Raises:
        ValueError: if a value is of the wrong kind.
    """
    where = f"{file.path}, row {number}"
    captions = to_captions(values[file.caption], file.caption, where) if file.caption else ()
    captions += to_captions(values.get("also"), "also", where)
    identity = values.get("id")
    return (
        None if identity is None else str(identity),
        Record(
            key=f"{file.shown}#{number}",
            captions=captions,
            source="parquet" if captions else "none",
            split=file.split or split_of_row(values.get("split"), where),
            locate=place,
            keywords=to_keywords(values.get("keywords"), where),
            repeats=to_repeats(values.get("repeats"), where),
        ),
    )


def split_of_row(value: object, where: str) -> str:
    """The split that a cell names; "train" where it names none.

    Raises:
        ValueError: if it is none of train, validation and test; `where` says where it stands.
    """
    if value is None:
        return "train"
    split = split_of_folder(str(value))
    if split is None:
        raise ValueError(f"{where}: split is {value!r}, expected train, validation or test.")
    return split


def _each(path: Path, group: int, column: str, code: Callable[[object], int]) -> int | list[int]:
    """The number of every value of a column: one where the footer says that all are the same."""
    statistics = _statistics(path, group, column)
    if statistics is not None and statistics.has_min_max and statistics.has_null_count:
        low, high = statistics.min, statistics.max
        if not statistics.null_count and low == high:
            return code(low)
    encoded = read_column(path, group, column).dictionary_encode()
    codes = [code(value) for value in encoded.dictionary.to_pylist()]
    nothing = code(None)
    found: list[int] = [nothing if i is None else codes[i] for i in encoded.indices.to_pylist()]
    return found[0] if len(set(found)) == 1 else found


def _statistics(path: Path, group: int, column: str) -> Any:
    """What the footer says of a column's values; None where it says nothing, or the column has parts."""
    footer = read_footer(path)
    leaves = _leaves(footer, column)
    return footer.row_group(group).column(leaves[0]).statistics if len(leaves) == 1 else None


def _leaves(footer: Any, column: str) -> list[int]:
    names = [footer.schema.column(i).path for i in range(footer.num_columns)]
    return [i for i, name in enumerate(names) if name == column or name.startswith(column + ".")]


def _missing_shards(paths: Sequence[Path]) -> list[str]:
    """A sentence where files are numbered as 3 of 10 and some of the 10 are not there."""
    there = {path.name for path in paths}
    missing: dict[str, None] = {}
    for path in paths:
        if found := _SHARD.fullmatch(path.name):
            before, number, of, count, after = found.groups()
            if int(count) <= 100_000:
                names = (f"{before}{i:0{len(number)}d}{of}{count}{after}" for i in range(int(count)))
                missing |= dict.fromkeys(name for name in names if name not in there)
    if not missing:
        return []
    first = next(iter(missing))
    return [f"By the names of the others {len(missing)} shards are not there, the first is {first}."]
