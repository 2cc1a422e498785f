"""Read what a metadata file says of pictures: metadata.jsonl, metadata.csv, metadata.parquet, or dataset.json.

Knows: the four formats, the names of their columns, and the ways in which people get them wrong.
Does not know: which pictures there are, and what else may be said of them (that is ``layout.py``).
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
LABELS = "dataset.json"  # of the zip files and folders that StyleGAN and EDM train on
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
        repeats: how often an epoch shows the picture.
    """

    where: str
    file_name: str
    captions: tuple[str, ...]
    keywords: tuple[str, ...] = ()
    repeats: int = 1


def read_metadata(path: Path, data: bytes, folder: str, notes: list[str]) -> dict[str, Said]:
    """The rows of a metadata file by the picture they are about.

    Args:
        path: the file, with one of `NAMES`; its content is not read from there, but it is named in messages.
        data: its content.
        folder: where it is, relative to the root of the set; "" is the root itself.
        notes: gets a sentence if the file has no rows or no column of captions.

    Returns:
        Path of the picture relative to the root -> what is said of it. Whether the picture exists is not looked at.

    Raises:
        ValueError: if the file is not what its name says, a row has no file_name or one that leads out of the folder,
            a value is of the wrong kind, or two rows are about the same picture.
    """
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_table}
    said: dict[str, Said] = {}
    columns: set[str] = set()
    for where, row in readers[path.suffix](path, data):
        columns |= row.keys()
        name = _file_name(row, where)
        key = _resolve(folder, name, where)
        if key in said:
            raise ValueError(f"{where}: {name!r} is named a second time; give several captions as a list in one row.")
        said[key] = _to_said(row, name, where)
    if not said:
        notes.append(f"{path} has no rows.")
    elif columns.isdisjoint(CAPTION_COLUMNS):
        notes.append(f"{path} has no column text or caption, only {', '.join(sorted(columns))}.")
    return said


def read_said(path: Path, data: bytes) -> Said:
    """What the JSON object beside a picture says: text or caption, keywords, repeats; other keys are left alone.

    Args:
        path: the file, for messages.
        data: its content.

    Raises:
        ValueError: if it is no JSON object, or a value is of the wrong kind.
    """
    return _to_said(_json_object(read_text(path, data), str(path)), "", str(path))


def read_labels(path: Path, data: bytes, notes: list[str]) -> dict[str, Said] | None:
    """The labels of a dataset.json: {"labels": [[file, label], ...], "names": [...]}.

    A label that is text is the caption. A whole number takes its caption from "names" or "class_names", a list or an
    object; without these it is "class 3", of which a note tells.

    Args:
        path: the file, for messages.
        data: its content.
        notes: gets a sentence if the labels are null or have no names.

    Returns:
        Path of the picture relative to the file -> what is said of it; empty if the labels are null; None if the file
        says nothing of labels.

    Raises:
        ValueError: if the file is no JSON, a label is of another kind, has no name though others have, or two are
            about the same picture.
    """
    content = _json_object(read_text(path, data), str(path))
    if "labels" not in content:
        return None
    pairs = content["labels"]
    if pairs is None:
        notes.append(f"{path} has no labels but null.")
        return {}
    if not isinstance(pairs, list):
        raise ValueError(f"{path}: labels is {_short(pairs)}, expected a list of [file, label] or null.")
    names = _class_names(content, path)
    said: dict[str, Said] = {}
    has_numbers = False
    for number, pair in enumerate(cast("list[list[object]]", pairs)):
        where = f"{path}, label {number}"
        file, label = _file_and_label(pair, where)
        key = _resolve("", file, where)
        if key in said:
            raise ValueError(f"{where}: {file!r} is named a second time; keep one of the two.")
        said[key] = Said(where=where, file_name=file, captions=_label_captions(label, names, where))
        has_numbers = has_numbers or isinstance(label, int)
    if names is None and has_numbers:
        notes.append(f'{path} has numbers for labels and no "names" for them; the captions are "class 0" and so on.')
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


def to_repeats(value: object, where: str) -> int:
    """How often an epoch shows a picture: a positive whole number, or 1 where nothing is said.

    Raises:
        ValueError: if it is anything else; `where` says where it stands.
    """
    if value is None or value == "":
        return 1
    number = value
    if isinstance(value, str):  # a cell of CSV
        number = int(value) if re.fullmatch("[0-9]{1,9}", value.strip()) else 0
    elif isinstance(value, float):  # a cell of a column with gaps
        number = int(value) if value.is_integer() else 0
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ValueError(f"{where}: repeats is {value!r}, expected a whole number from 1.")
    return number


def read_text(path: Path, data: bytes) -> str:
    """The text of a file in UTF-8, with or without a byte-order mark, its lines ending in a line feed.

    Args:
        path: the file, for messages.
        data: its content.

    Raises:
        ValueError: if it is not UTF-8.
    """
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
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


def _to_said(row: Mapping[str, Any], file_name: str, where: str) -> Said:
    found = (to_captions(row.get(column), column, where) for column in CAPTION_COLUMNS)
    return Said(
        where=where,
        file_name=file_name,
        captions=next((captions for captions in found if captions), ()),
        keywords=to_keywords(row.get("keywords"), where),
        repeats=to_repeats(row.get("repeats"), where),
    )


def _json_object(text: str, where: str, advice: str = "it has to be one object in braces") -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:  # besides JSONDecodeError: a number of more than 4300 digits
        raise ValueError(f"{where}: this is not JSON ({error}); {advice}.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{where}: this is not a JSON object; {advice}.")
    return cast("dict[str, Any]", content)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _file_and_label(pair: list[object], where: str) -> tuple[str, object]:
    if type(pair) is list and len(pair) == 2 and isinstance(pair[0], str):
        return pair[0], pair[1]
    raise ValueError(f"{where} is {_short(pair)}, expected a list of two, the path of a picture and its label.")


def _class_names(content: Mapping[str, Any], path: Path) -> dict[str, str] | None:
    names = next((content[name] for name in ("names", "class_names") if content.get(name) is not None), None)
    if names is None:
        return None
    shown = _short(names)
    given: dict[Any, Any] = {}
    if isinstance(names, list):
        given = dict(enumerate(cast("list[Any]", names)))
    elif isinstance(names, dict):
        given = cast("dict[Any, Any]", names)
    if not given or not all(isinstance(name, str) for name in given.values()):
        raise ValueError(f"{path}: names is {shown}, expected a list or an object of texts.")
    return {str(number): name for number, name in given.items()}


def _label_captions(label: object, names: Mapping[str, str] | None, where: str) -> tuple[str, ...]:
    if not isinstance(label, int) or isinstance(label, bool):
        return to_captions(label, "its label", where)
    if names is None:
        return (f"class {label}",)
    if str(label) not in names:
        raise ValueError(f'{where}: there is no name for class {label}; "names" has {len(names)}, add it there.')
    return to_captions(names[str(label)], "names", where)


def _read_jsonl(path: Path, data: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(read_text(path, data).split("\n"), start=1):
        where = f"{path}, line {number}"
        if line.strip():
            yield where, _json_object(line, where, "each line is one object in braces")


def _read_csv(path: Path, data: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(read_text(path, data), newline=""), strict=True)
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


def _read_table(path: Path, data: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    names = read_names(path, data)
    if FILE_COLUMN not in names:
        raise ValueError(f"{path} has no column file_name, only {', '.join(names)}.")
    columns = [name for name in (FILE_COLUMN, *CAPTION_COLUMNS, "keywords", "repeats") if name in names]
    for group, number, row in read_rows(path, columns, data):
        yield f"{path}, row {number} of group {group}", row
