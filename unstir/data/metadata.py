"""Read what a metadata file says of pictures: metadata.jsonl, metadata.csv or metadata.parquet.

Knows: the three formats, the names of their columns, and the ways in which people get them wrong.
Does not know: which pictures there are, and what else may be said of them (that is ``folder.py``).
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from unstir.data.parquet import read_names, read_rows

NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
FILE_COLUMN = "file_name"
CAPTION_COLUMNS = ("text", "caption")  # the first that says anything counts

_TYPOS = ("metadata.json", "metadata.json1", "metadata.jsonlines", "metadata.ndjson", "metadata.jsonl.txt")
_FILE_COLUMN_TYPOS = ("image", "file", "filename", "path", "image_path", "file_path", "img")


@dataclass(frozen=True, kw_only=True)
class Said:
    """What one row of a metadata file says of a picture.

    Args:
        where: the file and line, for messages.
        file_name: as it is written there.
        captions: all of them.
        keywords: single words or phrases.
    """

    where: str
    file_name: str
    captions: tuple[str, ...]
    keywords: tuple[str, ...]


def read_metadata(path: Path, folder: str, notes: list[str]) -> dict[str, Said]:
    """The rows of a metadata file by the picture they are about.

    Args:
        path: a file with one of `NAMES`.
        folder: where it is, relative to the root of the set; "" is the root itself.
        notes: gets a sentence if the file has no rows or no column of captions.

    Returns:
        Path of the picture relative to the root -> what is said of it. Whether the picture exists is not looked at.

    Raises:
        ValueError: if the file cannot be read as what its name says, a row has no file_name or one that leads out of
            the folder, or two rows are about the same picture.
    """
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_table}
    said: dict[str, Said] = {}
    columns: set[str] = set()
    for where, row in readers[path.suffix](path):
        columns |= row.keys()
        name = _file_name(row, where)
        key = _resolve(folder, name, where)
        if key in said:
            raise ValueError(f"{where}: {name!r} is named a second time; give several captions as a list in one row.")
        found = (to_captions(row.get(column), column, where) for column in CAPTION_COLUMNS)
        captions = next((captions for captions in found if captions), ())
        keywords = to_keywords(row.get("keywords"), where)
        said[key] = Said(where=where, file_name=name, captions=captions, keywords=keywords)
    if not said:
        notes.append(f"{path} has no rows.")
    elif columns.isdisjoint(CAPTION_COLUMNS):
        notes.append(f"{path} has no column text or caption, only {', '.join(sorted(columns))}.")
    return said


def refuse_misnamed(folder: Path, names: Sequence[str]) -> None:
    """Refuse a folder with a file that is meant as metadata but is not called so.

    Raises:
        ValueError: naming the file and what to rename it to.
    """
    for name in names:
        if name.lower() in _TYPOS:
            raise ValueError(
                f"{folder / name} is not read under this name; rename to metadata.jsonl, with one JSON object a line"
                " that has file_name and text."
            )
        if name.lower() in NAMES:
            raise ValueError(f"{folder / name} is not read under this name; rename to {name.lower()}.")


def to_captions(value: object, column: str, where: str) -> tuple[str, ...]:
    """The captions in a value: a text is one, a list of texts several, nothing or blank none.

    Raises:
        ValueError: if it is anything else; `column` and `where` say where it stands.
    """
    values = cast("list[object]", value) if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(one, str) for one in values):
        raise ValueError(f"{where}: {column} is {value!r}, expected text or a list of texts.")
    captions = (str(one).strip() for one in values)
    return tuple(caption for caption in captions if caption)


def to_keywords(value: object, where: str) -> tuple[str, ...]:
    """The keywords in a value: a list of texts, or one text with | or commas between them.

    Raises:
        ValueError: if it is anything else; `where` says where it stands.
    """
    if value is None:
        return ()
    values = re.split(r"[|,]", value) if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(one, str) for one in cast("list[object]", values)):
        raise ValueError(f"{where}: keywords is {value!r}, expected a list of texts.")
    words = (word.strip() for word in cast("list[str]", values))
    return tuple(word for word in words if word)


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, with or without a byte-order mark.

    Raises:
        ValueError: if it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text; save it as UTF-8.") from None


def _file_name(row: Mapping[str, Any], where: str) -> str:
    name = row.get(FILE_COLUMN)
    if isinstance(name, str) and name:
        return name
    if name is not None and name != "":
        raise ValueError(f"{where}: file_name is {name!r}, expected text, the path of a picture.")
    wrong = next((column for column in _FILE_COLUMN_TYPOS if column in row), None)
    if wrong is not None:
        raise ValueError(f"{where}: there is no file_name but {wrong!r}; rename {wrong!r} to file_name.")
    found = ", ".join(map(str, row)) or "nothing"
    raise ValueError(f"{where}: there is no file_name, only {found}; give the path of the picture as file_name.")


def _resolve(folder: str, name: str, where: str) -> str:
    key = os.path.normpath(os.path.join(folder, name)).replace(os.sep, "/")
    if os.path.isabs(name) or key.startswith("../"):
        raise ValueError(f"{where}: file_name {name!r} is outside the folder; it is relative to the metadata file.")
    return key


def _read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{where}: this is not JSON ({error}); each line is one object in braces.") from None
        if not isinstance(row, dict):
            raise ValueError(f"{where}: this is not a JSON object; each line is one object in braces.")
        yield where, cast("dict[str, Any]", row)


def _read_csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row:
                raise ValueError(
                    f"{where}: there are more cells than in the header; put quotes around text with commas."
                )
            yield where, cast("dict[str, Any]", row)
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: this is not CSV ({error}).") from None


def _read_table(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    names = read_names(path)
    if FILE_COLUMN not in names:
        raise ValueError(f"{path} has no column file_name, only {', '.join(names)}.")
    columns = [name for name in (FILE_COLUMN, *CAPTION_COLUMNS, "keywords") if name in names]
    for group, number, row in read_rows(path, columns):
        yield f"{path}, row {number} of group {group}", row
