"""A file of prompts: a line of text each, JSON lines, CSV or parquet.

Knows: the four formats, and the ways in which people get them wrong; which pictures a file asks for.
Does not know: how pictures are drawn, who draws which.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from unstir.config import choose
from unstir.data.parquet import read_names, read_rows
from unstir.generation.names import picture_name

FIELDS = ("prompt", "seed", "negative", "n")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One picture that a file of prompts asks for.

    Args:
        index: which of all its pictures, from 0.
        prompt: what to draw.
        seed: of this picture.
        negative: what to move away from; empty for nothing.
        where: the file and line, for messages.
    """

    index: int
    prompt: str
    seed: int
    negative: str = ""
    where: str = ""

    @property
    def name(self) -> str:
        """Of its file."""
        return picture_name(self.index, self.prompt)


def read_prompts(path: Path, *, seed: int, negative: str = "", number: int = 1) -> Iterator[Wanted]:
    """The pictures that a file asks for, one after the other; a long file is never held as a whole.

    A line's pictures follow each other: picture k of a line whose own seed is S has the seed S + k, and of one without
    a seed, ``seed`` plus its index, as in a call of ``unstir sample`` with all prompts of the file.

    Args:
        path: .txt (a prompt a line), .jsonl, .csv or .parquet (with the fields or columns ``FIELDS``, of which only
            prompt must be there). Empty lines are skipped.
        seed: of the first picture.
        negative: where a line has none of its own.
        number: pictures of a line that does not say ``n``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the line, if the file is not what its name says, a field is unknown or of a wrong kind, or
            there is no prompt in all of it.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(
            f"prompts are read from {', '.join(READERS)}, got {path.name}; a text file has one prompt a line"
        )
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}" if not path.exists() else f"{path} is no file of prompts")
    index = 0
    for where, row in reader(path):
        for name in row:
            _located(where, choose, name, FIELDS, "field")
        prompt = _text(row.get("prompt"), "prompt", where)
        if prompt is None or not prompt.strip():
            raise ValueError(f"{where}: there is no prompt; say what to draw, or take the line out")
        own = _whole(row.get("seed"), "seed", where, least=0)
        told = _text(row.get("negative"), "negative", where)
        for k in range(_whole(row.get("n"), "n", where, least=1) or number):
            yield Wanted(
                index=index,
                prompt=prompt,
                seed=seed + index if own is None else own + k,
                negative=negative if told is None else told,
                where=where,
            )
            index += 1
    if index == 0:
        raise ValueError(f"{path} holds no prompt; write one a line")


Row = Mapping[str, Any]


def _read_text(path: Path) -> Iterator[tuple[str, Row]]:
    for number, line in _lines(path):
        if line.strip():
            yield f"{path}, line {number}", {"prompt": line.strip()}


def _read_json(path: Path) -> Iterator[tuple[str, Row]]:
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # besides JSONDecodeError: a number of more than 4300 digits
            raise ValueError(f"{where}: this is not JSON ({error}); each line is one object in braces") from None
        if not isinstance(row, dict):
            raise ValueError(f"{where}: this is no JSON object; each line is one in braces")
        yield where, cast("dict[str, Any]", row)


def _read_csv(path: Path) -> Iterator[tuple[str, Row]]:
    reader = csv.DictReader((line for _, line in _lines(path)), strict=True)
    try:
        if reader.fieldnames is not None and "prompt" not in reader.fieldnames:
            raise _without_column(path, reader.fieldnames)
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row:
                raise ValueError(
                    f"{where}: there are more cells than in the header; put quotes around text with commas"
                )
            yield where, {name: cell or None for name, cell in row.items()}
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: this is not CSV ({error})") from None


def _read_parquet(path: Path) -> Iterator[tuple[str, Row]]:
    names = read_names(path)
    if "prompt" not in names:
        raise _without_column(path, names)
    for name in names:
        _located(str(path), choose, name, FIELDS, "column")
    for group, number, row in read_rows(path, names):
        yield f"{path}, row {number} of group {group}", row


READERS: dict[str, Callable[[Path], Iterator[tuple[str, Row]]]] = {
    ".txt": _read_text,
    ".jsonl": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
"""What reads a file, by its suffix: pairs of where a row stands, and the row."""


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise ValueError(f"{path}, line {number}: this is not UTF-8 text; save the file as UTF-8") from None


def _without_column(path: Path, names: Sequence[str]) -> ValueError:
    return ValueError(f"{path} has no column prompt, only {', '.join(names)}; rename the one with prompts")


def _located(where: str, check: Callable[..., object], *arguments: object) -> None:
    try:
        check(*arguments)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _text(value: object, field: str, where: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"{where}: {field} is {value!r:.60}, expected text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where}: {field} holds half of a character (a lone surrogate); write it anew") from None
    return value


def _whole(value: object, field: str, where: str, *, least: int) -> int | None:
    number = value
    if isinstance(value, str):  # a cell of CSV
        number = int(value) if re.fullmatch(r"\s*[0-9]{1,10}\s*", value) else None
    elif isinstance(value, float):  # a cell of a column with gaps
        number = None if value != value else int(value) if value.is_integer() else value
        value = None if value != value else value
    if value is not None and (not isinstance(number, int) or isinstance(number, bool) or number < least):
        raise ValueError(f"{where}: {field} is {value!r:.60}, expected a whole number from {least}")
    return cast("int | None", number)
