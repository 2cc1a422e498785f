"""Find a user's own pictures and what is said of each, in whichever of the common layouts they are kept.

Knows: folders, zip files, tar shards and Hugging Face parquet files, and which of them goes first where several are.
Does not know: what the files inside say (that is ``layout.py``), how a picture is decoded or resized, tokens, models.

Nothing is dropped in silence: what is not used is listed in ``PictureSet.skipped`` with the reason, and
`check_captions` refuses a set that is captioned only in part.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from unstir.data.archive import COMPRESSED_TARS, expand_braces, has_braces
from unstir.data.archive import InArchive as InArchive
from unstir.data.archive import InZip as InZip
from unstir.data.columns import file_of, to_record
from unstir.data.layout import ALLOW_FLAG as ALLOW_FLAG
from unstir.data.layout import CAPTIONS_FLAG, has_metadata, read_layout
from unstir.data.layout import SOURCES as SOURCES
from unstir.data.metadata import NAMES as METADATA_NAMES
from unstir.data.names import are_captions
from unstir.data.parquet import read_rows
from unstir.data.records import SPLITS as SPLITS
from unstir.data.records import SUFFIXES as SUFFIXES
from unstir.data.records import InFile as InFile
from unstir.data.records import InParquet as InParquet
from unstir.data.records import PictureSet as PictureSet
from unstir.data.records import Record as Record
from unstir.data.records import natural as natural
from unstir.data.records import storage_order as storage_order
from unstir.data.summary import Summary as Summary
from unstir.data.summary import summarize as summarize
from unstir.data.tree import Tree, scan_folder, scan_tars, scan_zip


def find_pictures(root: Path, *, captions: str = "auto") -> PictureSet:
    """Look through a folder, archive or parquet file and say what pictures it holds; no picture is read.

    Captions come from ``metadata.jsonl`` (or .csv, .parquet) in the same folder or above; else from a .txt or .caption
    file beside the picture, one caption a line; else, where neither is found anywhere, from the name of the folder the
    picture is in; else from the names of the files, if they read like words. Top-level folders named train, validation
    (val, valid, dev) and test are splits, not classes. Tar shards, and after them parquet files in the folder or its
    ``data`` folder, are read where there are no loose pictures.

    Args:
        root: a folder; a .parquet, .tar or .zip file; or a list of shards as x-{000000..000009}.tar.
        captions: one of `SOURCES`: the only source to take captions from, or "auto" for the precedence.

    Raises:
        ValueError: if there is nothing at root, no pictures in it, nothing of the chosen source, or a file that says
            what the pictures are is broken; the sentence names the file, the line and the remedy.
    """
    root = Path(root)
    if captions not in SOURCES:
        raise ValueError(f"captions is {captions!r}, expected one of {', '.join(SOURCES)}.")
    if root.is_dir():
        return _find_in_folder(root, captions)
    if root.is_file():
        return _find_in_file(root, captions)
    if has_braces(root.name) and root.suffix == ".tar":
        return read_layout(_scan_list(root), captions)
    raise ValueError(f"There is no folder or parquet file {root}, nor a .tar or .zip of this name; check the path.")


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
    hint = f" ({pictures.notes[0].rstrip('.')})" if pictures.notes else ""
    named = f", take the names of the files with {CAPTIONS_FLAG} filename" if _have_telling_names(pictures) else ""
    if len(bare) == total:
        raise ValueError(
            f"None of the {total} pictures in {pictures.root} has a caption{hint}; add a metadata.jsonl with file_name"
            f" and text, or a .txt beside each picture{named}, or go on without captions with {ALLOW_FLAG}."
        )
    raise ValueError(
        f"{len(bare)} of the {total} pictures in {pictures.root} have no caption ({some}){hint}; add the missing"
        f" captions{named}, or go on without them with {ALLOW_FLAG}."
    )


def _have_telling_names(pictures: PictureSet) -> bool:
    keys = [record.key for record in pictures.records if not isinstance(record.locate, InParquet)]
    return are_captions([os.path.splitext(key.rpartition("/")[2])[0] for key in keys])


@dataclass(frozen=True, kw_only=True)
class Tables:
    """The parquet files that a set is.

    Args:
        root: what the user gave.
        paths: the files; empty where the set is kept otherwise.
        base: what keys are relative to.
    """

    root: Path
    paths: tuple[Path, ...]
    base: Path

    def require(self, captions: str) -> None:
        """Refuse a source of captions that parquet files have not.

        Raises:
            ValueError: if it is none of auto, metadata and none.
        """
        if captions not in ("auto", "metadata", "none"):
            raise ValueError(
                f"The captions of {self.root} should come from {captions!r}, but those of parquet files are in their"
                f" columns; choose auto or none with {CAPTIONS_FLAG}."
            )


def find_tables(root: Path) -> Tables:
    """The parquet files that `find_pictures` would read, none of which is opened; no paths where it reads others.

    Raises:
        ValueError: if the folder cannot be looked through.
    """
    root = Path(root)
    if root.is_file() and root.suffix.lower() == ".parquet":
        return Tables(root=root, paths=(root,), base=root.parent)
    paths = sorted([*root.glob("*.parquet"), *(root / "data").glob("*.parquet")]) if root.is_dir() else []
    paths = [path for path in paths if path.name not in METADATA_NAMES and not path.name.startswith(".")]
    if paths:
        tree = scan_folder(root)
        if tree.pictures() or has_metadata(tree) or any(key.endswith(".tar") for key in tree):
            paths = []
    return Tables(root=root, paths=tuple(paths), base=root)


def _find_in_folder(root: Path, captions: str) -> PictureSet:
    tables = find_tables(root)
    if tables.paths:
        return _collect_parquet(tables, captions)
    tree = scan_folder(root)
    if tree.pictures() or has_metadata(tree):
        return read_layout(tree, captions)
    shards = {key: root / key for key in sorted(tree, key=natural) if key.endswith(".tar")}
    if shards:
        inside = scan_tars(root, shards)
        return read_layout(_with_skipped(inside, tree), captions)
    archives = [key for key in sorted(tree, key=natural) if key.lower().endswith((".zip", *COMPRESSED_TARS))]
    if archives:
        raise ValueError(
            f"There are no pictures in {root}, but {len(archives)} archives such as {archives[0]}; give a .zip itself"
            " as the path, and unpack or repack a compressed tar without compression."
        )
    return read_layout(tree, captions)


def _with_skipped(inside: Tree, outside: Tree) -> Tree:
    others = [(key, "only the tar files are read here") for key in outside if not key.endswith(".tar")]
    return replace(inside, skipped=[*inside.skipped, *outside.skipped, *others])


def _find_in_file(path: Path, captions: str) -> PictureSet:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _collect_parquet(find_tables(path), captions)
    if suffix == ".zip":
        return read_layout(scan_zip(path), captions)
    if suffix == ".tar" or path.name.lower().endswith(COMPRESSED_TARS):
        return read_layout(scan_tars(path, {"": path}), captions)
    raise ValueError(f"{path} is a file, but pictures are read from a folder or a .parquet, .tar or .zip file.")


def _scan_list(root: Path) -> Tree:
    shards = {path.name: path for path in expand_braces(root)}
    missing = [name for name, path in shards.items() if not path.is_file()]
    if missing:
        raise ValueError(
            f"{len(missing)} of the {len(shards)} shards of {root} are not there, the first is {missing[0]}; fetch"
            " them, or make the range smaller."
        )
    return scan_tars(root, shards)


def _collect_parquet(tables: Tables, captions: str) -> PictureSet:
    tables.require(captions)
    root, paths, base = tables.root, tables.paths, tables.base
    ids: list[str | None] = []
    records: list[Record] = []
    notes: list[str] = []
    for path in paths:
        for identity, record in _read_records(path, path.relative_to(base).as_posix(), captions, notes):
            ids.append(identity)
            records.append(record)
    if not records:
        raise ValueError(f"There are no pictures in {root}: its parquet files have no rows.")
    # Ids that are missing or that start anew in each file cannot tell pictures apart; file and row always can.
    if None not in ids and len(set(ids)) == len(ids):
        records = [replace(record, key=cast(str, one)) for one, record in zip(ids, records, strict=True)]
    records.sort(key=lambda record: natural(record.key))
    return PictureSet(root=root, records=tuple(records), notes=tuple(notes))


def _read_records(path: Path, shown: str, captions: str, notes: list[str]) -> Iterator[tuple[str | None, Record]]:
    file = file_of(path, shown, captions, notes)
    for number, (group, row, values) in enumerate(read_rows(path, file.columns)):
        yield to_record(values, file, InParquet(path=path, group=group, row=row), number=number)
