"""Find a user's own pictures and what is said of each, in whichever of the common layouts they are kept.

Knows: metadata files, sidecar captions, class and split folders, Hugging Face parquet files, and which goes first.
Does not know: how a picture is decoded or resized (that is ``transforms.py``), tokens, models.

One precedence holds everywhere: metadata, then a caption file beside the picture, then the name of the folder. Parquet
files count only where there are no loose pictures. Nothing is dropped in silence: what is not used is listed in
``PictureSet.skipped`` with the reason, and `check_captions` refuses a set that is captioned only in part.
"""

from __future__ import annotations

import io
import os
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from PIL import Image

from unstir.data.metadata import (
    CAPTION_COLUMNS,
    Said,
    read_metadata,
    read_text,
    refuse_misnamed,
    to_captions,
    to_keywords,
)
from unstir.data.metadata import NAMES as METADATA_NAMES
from unstir.data.parquet import read_names, read_picture, read_rows, require_pictures

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
SPLITS = ("train", "validation", "test")
ALLOW_FLAG = "--allow-missing-captions"

_SPLIT_NAMES = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "test": "test",
}
_SIDECARS = (".txt", ".caption")  # in this order where a picture has both
_PLAIN_FOLDERS = {"images", "image", "imgs", "img", "pictures", "photos", "data", "png", "jpg", "jpeg"}
_SAMPLED_SIZES = 1000
_LISTED = 5  # files named for each reason to skip


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One picture, not yet read, and what is said of it.

    Args:
        key: the path relative to the set's root; for parquet the id column, or file#row where ids are not unique.
        captions: all of them; empty when there are none.
        source: where the captions are from: "metadata", "sidecar", "folder", "parquet", or "none" without captions.
        split: "train", "validation" or "test".
        locate: where the bytes are.
        keywords: single words or phrases that go with the picture.
    """

    key: str
    captions: tuple[str, ...]
    source: str
    split: str
    locate: InFile | InParquet
    keywords: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PictureSet:
    """The pictures found under a root, in the natural order of their keys (a2 before a10).

    Args:
        root: the folder or parquet file given.
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
            ValueError: if the parquet cell is empty or the parquet file is broken.
        """
        if isinstance(record.locate, InFile):
            return record.locate.path.read_bytes()
        return read_picture(record.locate.path, record.locate.group, record.locate.row)

    def split(self, name: str) -> PictureSet:
        """The same set with the records of one split only.

        Raises:
            ValueError: if name is not "train", "validation" or "test".
        """
        if name not in SPLITS:
            raise ValueError(f"There is no split {name!r}; the splits are {', '.join(SPLITS)}.")
        return replace(self, records=tuple(record for record in self.records if record.split == name))


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A set of pictures in numbers and a few examples; `lines` is what a person reads.

    Args:
        root: where the set is.
        pictures: how many there are.
        splits: (split, count), without the empty ones.
        sources: (source of the captions, count), without the empty ones.
        sizes: smallest, middle and largest (width, height) by area among the sampled; empty where none could be read.
        sampled: number of files whose header was read.
        uncaptioned: keys of the pictures without a caption.
        unreadable: keys of the sampled files that have no header of a picture.
        skipped: (key, reason).
        notes: sentences.
        examples: up to five (key, first caption or none).
    """

    root: Path
    pictures: int
    splits: tuple[tuple[str, int], ...]
    sources: tuple[tuple[str, int], ...]
    sizes: tuple[tuple[int, int], ...]
    sampled: int
    uncaptioned: tuple[str, ...]
    unreadable: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    examples: tuple[tuple[str, str | None], ...]

    def lines(self) -> list[str]:
        """The summary as text, line by line."""
        lines = [f"{self.pictures} pictures in {self.root}"]
        lines.append("splits: " + ", ".join(f"{name} {count}" for name, count in self.splits))
        lines.append("captions from: " + ", ".join(f"{name} {count}" for name, count in self.sources))
        if self.sizes:
            low, middle, high = (f"{width}x{height}" for width, height in self.sizes)
            lines.append(f"sizes: {low} to {high}, median {middle} ({self.sampled} files looked at)")
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"unreadable: {key}" for key in self.unreadable]
        if len(self.uncaptioned) < self.pictures:  # where none has a caption, the line of sources says so
            lines += [f"no caption: {key}" for key in self.uncaptioned]
        by_reason: dict[str, list[str]] = {}
        for key, reason in self.skipped:
            by_reason.setdefault(reason, []).append(key)
        for reason, keys in by_reason.items():
            rest = f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
            lines.append(f"skipped {len(keys)} ({reason}): {', '.join(keys[:_LISTED])}{rest}")
        lines += [f"example: {key}: {'(no caption)' if text is None else text}" for key, text in self.examples]
        return lines


def find_pictures(root: Path) -> PictureSet:
    """Look through a folder or a parquet file and say what pictures it holds; no picture is read.

    Captions come from ``metadata.jsonl`` (or .csv, .parquet) in the same folder or above; else from a .txt or .caption
    file beside the picture, one caption a line; else, where neither is found anywhere, from the name of the folder the
    picture is in. Top-level folders named train, validation (val, valid, dev) and test are splits, not classes.
    Parquet files are read from the folder or its ``data`` folder where there are no loose pictures.

    Raises:
        ValueError: if there is nothing at root, no pictures in it, or a file that says what the pictures are is broken;
            the sentence names the file, the line and the remedy.
    """
    root = Path(root)
    if root.is_file():
        if root.suffix != ".parquet":
            raise ValueError(f"{root} is a file, but pictures are read from a folder or a .parquet file.")
        return _collect_parquet(root, [root], base=root.parent)
    if not root.is_dir():
        raise ValueError(f"There is no folder or parquet file {root}; check the path.")
    tree = _scan(root)
    tables = sorted([*root.glob("*.parquet"), *(root / "data").glob("*.parquet")])
    tables = [path for path in tables if path.name not in METADATA_NAMES and not path.name.startswith(".")]
    has_metadata = any(name in METADATA_NAMES for names in tree.files.values() for name in names)
    if tables and not has_metadata and not tree.has_pictures():
        return _collect_parquet(root, tables, base=root)
    return _collect_files(root, tree)


def check_captions(pictures: PictureSet, *, allow_missing: bool) -> None:
    """Refuse a set in which captions are missing, unless that is allowed.

    Raises:
        ValueError: if no picture, or only a part of them, has a caption and allow_missing is false.
    """
    bare = [record.key for record in pictures.records if not record.captions]
    if allow_missing or not bare:
        return
    total = len(pictures.records)
    some = ", ".join(bare[:3]) + (", ..." if len(bare) > 3 else "")
    hint = f" ({pictures.notes[0]})" if pictures.notes else ""
    if len(bare) == total:
        raise ValueError(
            f"None of the {total} pictures in {pictures.root} has a caption{hint}; add a metadata.jsonl with file_name"
            f" and text, or a .txt beside each picture, or go on without captions with {ALLOW_FLAG}."
        )
    raise ValueError(
        f"{len(bare)} of the {total} pictures in {pictures.root} have no caption ({some}){hint}; add the missing"
        f" captions, or go on without them with {ALLOW_FLAG}."
    )


def summarize(pictures: PictureSet, *, seed: int = 0) -> Summary:
    """Count a set, look at the headers of at most 1000 of its pictures, and pick five pictures with their captions.

    Args:
        pictures: the set.
        seed: chooses the examples and the pictures whose headers are read.
    """
    generator = random.Random(seed)
    records = pictures.records
    examples = generator.sample(records, min(5, len(records)))
    looked_at = generator.sample(records, min(_SAMPLED_SIZES, len(records)))
    sizes: list[tuple[int, int]] = []
    unreadable: list[str] = []
    for record in storage_order(looked_at):
        size = _read_size(pictures, record)
        if size is None:
            unreadable.append(record.key)
        else:
            sizes.append(size)
    sizes.sort(key=lambda size: (size[0] * size[1], size))
    splits = Counter(record.split for record in records)
    sources = Counter(record.source for record in records)
    return Summary(
        root=pictures.root,
        pictures=len(records),
        splits=tuple((name, splits[name]) for name in SPLITS if splits[name]),
        sources=tuple(sources.most_common()),
        sizes=(sizes[0], sizes[len(sizes) // 2], sizes[-1]) if sizes else (),
        sampled=len(looked_at),
        uncaptioned=tuple(record.key for record in records if not record.captions),
        unreadable=tuple(sorted(unreadable, key=natural)),
        skipped=pictures.skipped,
        notes=pictures.notes,
        examples=tuple((record.key, record.captions[0] if record.captions else None) for record in examples),
    )


def natural(key: str) -> tuple[list[str | int], str]:
    """What keys are sorted by: runs of digits as numbers, so that a2 comes before a10; upper case before lower."""
    parts = re.split(r"([0-9]+)", key)
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], key


def storage_order(records: Iterable[Record]) -> list[Record]:
    """Records in the order they lie on disk, in which every row group of a parquet file is read only once."""

    def place(record: Record) -> tuple[str, int, int]:
        where = record.locate
        return (str(where.path), -1, -1) if isinstance(where, InFile) else (str(where.path), where.group, where.row)

    return sorted(records, key=place)


def _read_size(pictures: PictureSet, record: Record) -> tuple[int, int] | None:
    try:
        where = record.locate
        source = where.path if isinstance(where, InFile) else io.BytesIO(pictures.read(record))
        with Image.open(source) as image:
            return image.size
    except Exception:  # Pillow's readers raise nearly anything on a broken header
        return None


@dataclass(frozen=True, kw_only=True)
class _Tree:
    """The files under a root: folder (relative, "" is the root) -> names in it, in order and as a set."""

    files: Mapping[str, Sequence[str]]
    names: Mapping[str, set[str]]
    skipped: Sequence[tuple[str, str]]

    def has_pictures(self) -> bool:
        return any(_is_picture(name) for names in self.files.values() for name in names)


def _is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _is_text(name: str) -> bool:
    """Whether a name can be printed and stored; one that is not UTF-8 on disk cannot."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _scan(root: Path) -> _Tree:
    files: dict[str, list[str]] = {}
    skipped: list[tuple[str, str]] = []
    seen: set[str] = set()  # folders by their real path: a link may lead back up
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        path = root / folder
        real = os.path.realpath(path)
        if real in seen:
            skipped.append((folder, "the same folder was already looked through"))
            continue
        seen.add(real)
        for entry in sorted(os.scandir(path), key=lambda entry: entry.name, reverse=True):
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            if not _is_text(entry.name):
                shown = os.fsencode(_join(folder, entry.name)).decode(errors="backslashreplace")
                skipped.append((shown, "its name is not UTF-8"))
            elif entry.is_dir():
                waiting.append(_join(folder, entry.name))
            else:
                files.setdefault(folder, []).append(entry.name)
    return _Tree(
        files={folder: sorted(files[folder]) for folder in sorted(files)},
        names={folder: set(names) for folder, names in files.items()},
        skipped=skipped,
    )


def _collect_files(root: Path, tree: _Tree) -> PictureSet:
    notes: list[str] = []
    skipped = list(tree.skipped)
    said = _read_all_metadata(root, tree, notes)
    sidecars = _find_sidecars(tree)
    keys = {_join(folder, name) for folder, names in tree.files.items() for name in names if _is_picture(name)}
    keys |= said.keys()
    if not keys:
        raise ValueError(
            f"There are no pictures in {root}: no file in it or its folders ends in {' '.join(SUFFIXES)}, and no"
            " .parquet file is in it or its data folder."
        )
    splits = _split_folders(keys, notes)
    classes: dict[str, str] = {} if said or sidecars else _class_folders(keys, splits)
    records: list[Record] = []
    used: set[str] = set()
    for key in sorted(keys, key=natural):
        row = said.get(key)
        captions, source = _choose_captions(root, key, row, sidecars, classes)
        if source == "sidecar":
            used.add(sidecars[os.path.splitext(key)[0]][0])
        records.append(
            Record(
                key=key,
                captions=captions,
                source=source,
                split=splits.get(key.split("/")[0], "train") if "/" in key else "train",
                locate=InFile(path=root / key),
                keywords=row.keywords if row else (),
            )
        )
    spare = {name for names in sidecars.values() for name in names} - used
    skipped += _unused(tree, keys | used, spare)
    return PictureSet(
        root=root,
        records=tuple(records),
        skipped=tuple(sorted(skipped, key=lambda pair: natural(pair[0]))),
        notes=tuple(notes),
    )


def _choose_captions(
    root: Path, key: str, row: Said | None, sidecars: Mapping[str, Sequence[str]], classes: Mapping[str, str]
) -> tuple[tuple[str, ...], str]:
    if row and row.captions:
        return row.captions, "metadata"
    stem = os.path.splitext(key)[0]
    if stem in sidecars:
        captions = _read_sidecar(root / sidecars[stem][0])
        return captions, "sidecar" if captions else "none"
    if key in classes:
        return (classes[key],), "folder"
    return (), "none"


def _unused(tree: _Tree, used: set[str], spare: set[str]) -> Iterator[tuple[str, str]]:
    """Every file that says or shows nothing in this set, and why."""
    for folder, names in tree.files.items():
        for name in names:
            key = _join(folder, name)
            suffix = os.path.splitext(name)[1].lower()
            if key in used or name in METADATA_NAMES:
                continue
            if key in spare:
                yield key, "it is empty, or the captions are from elsewhere"
            elif suffix in _SIDECARS:
                yield key, "no picture beside it has this name"
            elif suffix == ".parquet":
                yield key, "parquet files are not read where there are loose pictures"
            else:
                yield key, f"not a picture: {suffix or 'no suffix'}"


def _split_folders(keys: set[str], notes: list[str]) -> dict[str, str]:
    """Top-level folder -> split.

    A single folder "train" among others may be the class of trains; it is a split where it is alone, or where another
    split stands beside it.
    """
    top = {key.split("/")[0] for key in keys if "/" in key}
    splits = {folder: _SPLIT_NAMES[folder.lower()] for folder in top if folder.lower() in _SPLIT_NAMES}
    if len(splits) == 1 and len(top) > 1:
        (folder,) = splits
        notes.append(f"The folder {folder!r} stands beside folders that are not splits and is taken for a class.")
        return {}
    return splits


def _class_folders(keys: set[str], splits: Mapping[str, str]) -> dict[str, str]:
    """Picture -> name of its class: that of the folder it is in, with spaces for underscores and hyphens."""
    classes: dict[str, str] = {}
    for key in keys:
        folders = key.split("/")[:-1]
        if folders and folders[0] in splits:
            folders = folders[1:]
        name = re.sub(r"[_\-\s]+", " ", folders[-1]).strip() if folders else ""
        if name:
            classes[key] = name
    # One folder named "images" says where the pictures are, not what they show.
    if {name.lower() for name in classes.values()} <= _PLAIN_FOLDERS and len(set(classes.values())) == 1:
        return {}
    return classes


def _find_sidecars(tree: _Tree) -> dict[str, tuple[str, ...]]:
    """Picture without its suffix -> its caption files; the first of them counts."""
    found: dict[str, tuple[str, ...]] = {}
    for folder, names in tree.files.items():
        stems = {os.path.splitext(name)[0] for name in names if _is_picture(name)}
        for stem in stems:
            files = tuple(_join(folder, stem + suffix) for suffix in _SIDECARS if stem + suffix in tree.names[folder])
            if files:
                found[_join(folder, stem)] = files
    return found


def _read_sidecar(path: Path) -> tuple[str, ...]:
    lines = (line.strip() for line in read_text(path).splitlines())
    return tuple(line for line in lines if line)


def _read_all_metadata(root: Path, tree: _Tree, notes: list[str]) -> dict[str, Said]:
    said: dict[str, Said] = {}
    for folder, names in tree.files.items():
        present = [name for name in METADATA_NAMES if name in names]
        if len(present) > 1:
            raise ValueError(f"{root / folder} has both {present[0]} and {present[1]}; keep one of them.")
        if not present:
            refuse_misnamed(root / folder, names)
            continue
        path = root / folder / present[0]
        rows = read_metadata(path, folder, notes)
        _require_files(path, rows, tree)
        for key, row in rows.items():
            if key in said:
                raise ValueError(
                    f"{path} names {key!r}, which another metadata file names as well; keep one of the two."
                )
            said[key] = row
    return said


def _require_files(path: Path, rows: Mapping[str, Said], tree: _Tree) -> None:
    missing: list[str] = []
    for key, row in rows.items():
        folder, _, name = key.rpartition("/")
        # The listing answers for nearly all; the disk is asked only for what the listing leaves out.
        if name not in tree.names.get(folder, ()) and not (path.parent / row.file_name).is_file():
            missing.append(row.file_name)
    if missing:
        raise ValueError(
            f"{len(missing)} of the {len(rows)} files that {path} names do not exist, the first is {missing[0]!r};"
            f" file_name is relative to {path.parent}."
        )


def _collect_parquet(root: Path, paths: Sequence[Path], *, base: Path) -> PictureSet:
    ids: list[str | None] = []
    records: list[Record] = []
    notes: list[str] = []
    for path in paths:
        for identity, record in _read_records(path, path.relative_to(base).as_posix(), notes):
            ids.append(identity)
            records.append(record)
    if not records:
        raise ValueError(f"There are no pictures in {root}: its parquet files have no rows.")
    # Ids that are missing or that start anew in each file cannot tell pictures apart; file and row always can.
    if None not in ids and len(set(ids)) == len(ids):
        records = [replace(record, key=cast(str, one)) for one, record in zip(ids, records, strict=True)]
    records.sort(key=lambda record: natural(record.key))
    return PictureSet(root=root, records=tuple(records), notes=tuple(notes))


def _read_records(path: Path, shown: str, notes: list[str]) -> Iterator[tuple[str | None, Record]]:
    require_pictures(path)
    names = read_names(path)
    column = next((name for name in (*CAPTION_COLUMNS, "name") if name in names), None)
    if column is None:
        notes.append(f"{path} has no column text or caption, only {', '.join(names)}.")
    columns = [name for name in (column, "id", "keywords", "split") if name is not None and name in names]
    fixed = _split_of_file(path)
    for number, (group, row, values) in enumerate(read_rows(path, columns)):
        where = f"{path}, row {number}"
        captions = to_captions(values[column], column, where) if column else ()
        identity = values.get("id")
        yield (
            None if identity is None else str(identity),
            Record(
                key=f"{shown}#{number}",
                captions=captions,
                source="parquet" if captions else "none",
                split=fixed or _split_of_row(values, where),
                locate=InParquet(path=path, group=group, row=row),
                keywords=to_keywords(values.get("keywords"), where),
            ),
        )


def _split_of_file(path: Path) -> str | None:
    return _SPLIT_NAMES.get(re.split(r"[-_.]", path.stem.lower())[0])


def _split_of_row(row: Mapping[str, Any], where: str) -> str:
    name = row.get("split")
    if name is None:
        return "train"
    split = _SPLIT_NAMES.get(str(name).lower())
    if split is None:
        raise ValueError(f"{where}: split is {name!r}, expected train, validation or test.")
    return split
