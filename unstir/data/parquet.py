"""Read parquet files by row group: the small columns while looking, the pictures one at a time when asked.

Knows: pyarrow, how Hugging Face keeps pictures in a column, and what is wrong with a file that cannot be read.
Does not know: captions, splits, or what the rows are for (that is ``folder.py`` and ``metadata.py``).
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from unstir.data.recent import Recent

PICTURES = "image"
"""The column that has them."""

MOST_BYTES = 64 * 2**20
"""Of row groups that stay in memory, unless another number is asked for."""

_PICTURES: Recent[Any] = Recent()
_TEXTS: Recent[Any] = Recent()  # apart, so that looking at captions does not drive pictures out


def read_names(path: Path, data: bytes | None = None) -> list[str]:
    """The names of the columns.

    Args:
        path: the file.
        data: its content, where it lies within another file; path is then for messages only.

    Raises:
        ValueError: if the file is not a readable parquet file.
    """
    return list(_open(path, data).schema_arrow.names)


def read_rows(
    path: Path, columns: Sequence[str], data: bytes | None = None
) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """The chosen columns of every row, one row group in memory at a time; no other column is read.

    Args:
        path: the file.
        columns: their names.
        data: the file's content, where it lies within another file.

    Returns:
        (row group, row within it, column -> value), both counted from 0.

    Raises:
        ValueError: if the file is not a readable parquet file.
    """
    file = _open(path, data)
    for group in range(file.num_row_groups):
        for row, values in enumerate(_read_columns(path, file, group, columns)):
            yield group, row, values


def require_pictures(path: Path) -> None:
    """Refuse a file that has no column of pictures.

    Raises:
        ValueError: if there is no column "image" of binary or struct<bytes, path>, or the file is not readable.
    """
    schema = _open(path).schema_arrow
    if "image" not in schema.names:
        found = ", ".join(schema.names)
        raise ValueError(f"{path} has no column image, only {found}; rename the one with the pictures to image.")
    kind = str(schema.field("image").type)
    if kind not in {"binary", "large_binary"} and not (kind.startswith("struct<") and "bytes:" in kind):
        raise ValueError(f"{path}: column image is {kind}, expected binary or struct<bytes: binary, path: string>.")


def read_footer(path: Path) -> Any:
    """What a file says of its row groups and columns (pyarrow's FileMetaData), and of no row.

    Raises:
        OSError: if there is no such file.
        ValueError: if the file is not a readable parquet file.
    """
    return _footer(str(path), path.stat().st_mtime_ns)


def read_column(path: Path, group: int, column: str) -> Any:
    """One column of a row group, as pyarrow's array; it does not stay in memory.

    Raises:
        OSError: if there is no such file.
        ValueError: if the file is not a readable parquet file.
    """
    return _read_group(path, group, (column,)).column(0).combine_chunks()


def read_picture(path: Path, group: int, row: int, *, most_bytes: int = MOST_BYTES) -> bytes:
    """The bytes of the picture in a cell of the column "image"; its row group stays in memory.

    Raises:
        OSError: if the file, or a file that the cell names, cannot be read.
        ValueError: if the cell is empty or the file is not a readable parquet file.
    """
    cell = read_row(path, group, row, (PICTURES,), most_bytes=most_bytes)[PICTURES]
    return picture_in(cell, f"{path}, row {row} of group {group},", path.parent)


def picture_in(cell: Any, where: str, folder: Path) -> bytes:
    """The bytes of the picture in a cell.

    Args:
        cell: bytes, or a struct of bytes and path.
        where: the cell, for messages.
        folder: what its path is relative to.

    Raises:
        OSError: if the file that it names cannot be read.
        ValueError: if it is empty.
    """
    parts = cast("dict[str, Any]", cell) if isinstance(cell, dict) else {"bytes": cell}
    if parts.get("bytes") is not None:
        return bytes(parts["bytes"])
    if parts.get("path"):  # Hugging Face leaves the bytes out where the picture is a file of its own
        return (folder / str(parts["path"])).read_bytes()
    raise ValueError(f"{where} has no picture in it.")


def read_row(
    path: Path, group: int, row: int, columns: tuple[str, ...], *, most_bytes: int = MOST_BYTES
) -> dict[str, Any]:
    """Some columns of one row; those of its row group stay in memory.

    Args:
        path: the file.
        group: number of the row group.
        row: counted within it.
        columns: their names, at least one.
        most_bytes: how much of all row groups may stay in memory.

    Raises:
        OSError: if there is no such file.
        ValueError: if the file is not a readable parquet file.
    """

    def load() -> tuple[Any, int]:
        table = _read_group(path, group, columns)
        return table, int(table.nbytes)

    # A rewritten file is another entry.
    key = (str(path), path.stat().st_mtime_ns, group, columns)
    table = (_PICTURES if PICTURES in columns else _TEXTS).get(key, load, most_bytes=most_bytes)
    return {name: table.column(number)[row].as_py() for number, name in enumerate(columns)}


def _read_group(path: Path, group: int, columns: Sequence[str]) -> Any:
    import pyarrow.parquet

    footer = read_footer(path)
    try:
        # Opened anew each time, so that threads and processes share no position in it.
        with cast(Any, pyarrow.parquet).ParquetFile(path, metadata=footer) as file:
            return file.read_row_group(group, columns=list(columns)).combine_chunks()
    except Exception as error:
        raise _unreadable(path, error) from None


@lru_cache(maxsize=64)
def _footer(path: str, changed_ns: int) -> Any:
    del changed_ns
    return _open(Path(path)).metadata


def _open(path: Path, data: bytes | None = None) -> Any:
    # Half a second to import, and most users have their pictures as files.
    import pyarrow.parquet

    try:
        return cast(Any, pyarrow.parquet).ParquetFile(path if data is None else io.BytesIO(data))
    except Exception as error:  # pyarrow has its own exceptions, and lets OSError and others through
        raise _unreadable(path, error) from None


def _read_columns(path: Path, file: Any, group: int, columns: Sequence[str]) -> list[dict[str, Any]]:
    if not columns:
        return [{} for _ in range(file.metadata.row_group(group).num_rows)]
    try:
        return cast("list[dict[str, Any]]", file.read_row_group(group, columns=list(columns)).to_pylist())
    except Exception as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path | str, error: Exception) -> ValueError:
    reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
    return ValueError(f"{path} is not a readable parquet file ({reason}); fetch or write it again.")
