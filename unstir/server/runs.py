"""Runs: the trainings in a folder, as they are shown while they go on.

Knows: which folders are runs, how long logs become short curves, which sheets of previews there are.
Does not know: what the numbers mean, how a run is held or stopped, HTTP.

Everything is only read, and only what was found by listing the folder: a name that somebody gives is looked up there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeGuard, cast

from unstir.server.service import Unknown
from unstir.training.log import RunLog
from unstir.training.watch import Hold, Standing, standing

POINTS = 500
"""Points that a curve has at most."""

_PREVIEWS = 200  # the newest sheets that are told of
_REMEMBERED = 64  # runs whose logs are in memory
_DAMAGED = (OSError, ValueError, TypeError, ArithmeticError)  # what a log or a configuration of any content may raise

Point = tuple[int, float | None]
"""Pictures seen, and a value; None is not a number."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training, as far as its folder tells.

    Args:
        name: of its folder.
        standing: where it stands.
        numbers: what it told last, by name; None is not a number.
        bands: the same by band, by the name of the column.
        curves: what it told, by name: pictures seen and value.
        previews: at how many pictures seen a sheet was drawn, the newest first.
    """

    name: str
    standing: Standing
    numbers: Mapping[str, float | None]
    bands: Mapping[str, Mapping[str, float | None]]
    curves: Mapping[str, Sequence[Point]]
    previews: Sequence[int]

    @property
    def seconds_left(self) -> float | None:
        """Until it is done, where it goes on and that can be told."""
        return None if self.numbers.get("images_per_second") is None else _finite(self.standing.seconds_left)


class Runs:
    """The trainings in a folder: its own, if it is a run folder, and those of the folders in it.

    Args:
        folder: where they are.
        hold_of: what is with the lock of a run folder.
    """

    def __init__(self, folder: Path, hold_of: Callable[[Path], Hold]) -> None:
        self._folder, self._hold_of = folder, hold_of
        self._read: dict[Path, tuple[object, dict[str, Sequence[Point]]]] = {}

    def all(self) -> list[Run]:
        """All of them, by name; one whose files are damaged is left out."""
        found: list[Run] = []
        for name, path in self._folders().items():
            try:
                found.append(self._run(name, path))
            except _DAMAGED:  # or gone since it was listed, or no run after all
                continue
        return found

    def run(self, name: str) -> Run:
        """One of them.

        Raises:
            Unknown: if there is none of that name, or its files are damaged.
        """
        try:
            return self._run(name, self._path(name))
        except _DAMAGED:
            raise Unknown(f"the run {name[:100]!r} cannot be read; its files are damaged or gone") from None

    def preview(self, name: str, images_seen: int) -> bytes:
        """A sheet of previews, as a PNG.

        Raises:
            Unknown: if there is none.
        """
        sheet = _sheets(self._path(name)).get(images_seen)
        try:
            if sheet is not None:
                return sheet.read_bytes()
        except OSError:  # gone since it was listed
            pass
        raise Unknown(f"the run {name[:100]!r} has no previews at {images_seen} pictures seen")

    def _path(self, name: str) -> Path:
        path = self._folders().get(name)
        if path is None:
            raise Unknown(f"there is no run {name[:100]!r} here")
        return path

    def _folders(self) -> dict[str, Path]:
        """Run folders by their names, in order; the folder's own comes first."""
        try:
            inside = sorted(self._folder.iterdir())
        except OSError:
            inside = []
        candidates = [(self._folder.resolve().name, self._folder), *((path.name, path) for path in inside)]
        found: dict[str, Path] = {}
        for name, path in candidates:
            if _is_plain(name) and name not in found and (path / "run.json").is_file():
                found[name] = path
        return found

    def _run(self, name: str, path: Path) -> Run:
        now = standing(path, self._hold_of(path))
        return Run(
            name=name,
            standing=now,
            numbers={key: _finite(value) for key, value in now.numbers.items() if _is_number(value)},
            bands={key: {band: _finite(value) for band, value in row.items()} for key, row in now.bands.items()},
            curves=self._curves(path / "log.jsonl"),
            previews=sorted(_sheets(path), reverse=True)[:_PREVIEWS],
        )

    def _curves(self, log: Path) -> dict[str, Sequence[Point]]:
        """The curves of a log, read again only when it has changed."""
        try:
            now = log.stat()
        except OSError:
            return {}
        stamp = (now.st_mtime_ns, now.st_size, now.st_ino)
        kept = self._read.get(log)
        if kept is None or kept[0] != stamp:
            kept = stamp, curves_of(RunLog(log).read())
            self._read.pop(log, None)
            self._read[log] = kept
            for oldest in list(self._read)[:-_REMEMBERED]:
                self._read.pop(oldest, None)
        return kept[1]


def curves_of(lines: Sequence[Mapping[str, Any]], most: int = POINTS) -> dict[str, Sequence[Point]]:
    """Every number of a log over the pictures seen, by name; those of a group are called ``group/name``.

    A curve of more than ``most`` points becomes the means of as many stretches, each at the end of its stretch.
    """
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        seen = line["images_seen"]
        if _finite(seen) is not None:
            for name, value in _named(line):
                curves.setdefault(name, []).append((int(seen), value))
    return {name: _thinned(points, most) for name, points in curves.items()}


def _named(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in line.items():
        if name == "images_seen":
            continue
        if isinstance(value, dict):
            group = cast("dict[str, Any]", value)
            yield from ((f"{name}/{inner}", number) for inner, number in group.items() if _is_number(number))
        elif _is_number(value):
            yield name, value


def _thinned(points: Sequence[tuple[int, float]], most: int) -> list[Point]:
    count = min(len(points), most)
    edges = [len(points) * i // count for i in range(count + 1)]
    stretches = (points[start:end] for start, end in pairwise(edges))
    return [(part[-1][0], _mean([value for _, value in part])) for part in stretches]


def _mean(values: Sequence[float]) -> float | None:
    """Their mean; None if one of them is not a finite number."""
    return sum(value / len(values) for value in values) if all(_finite(value) is not None for value in values) else None


def _finite(value: object) -> float | None:
    """The number, or None where JSON has none for it."""
    try:
        return float(value) if _is_number(value) and math.isfinite(value) else None
    except OverflowError:  # a whole number that is larger than any of the others
        return None


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_plain(name: str) -> bool:
    """Whether a folder's name can be told: no hidden one, and none that is no text."""
    return bool(name) and not name.startswith(".") and name.isprintable()


def _sheets(path: Path) -> dict[int, Path]:
    """The sheets of a run, by the number of pictures seen."""
    files = (path / "previews").glob("*.png")
    return {int(file.stem): file for file in files if file.stem.isascii() and file.stem.isdigit() and file.is_file()}
