"""Find a user's own pictures and what is said of each, in whichever of the common layouts they are kept.

Knows: folders, zip files, tar shards and Hugging Face parquet files, and which of them goes first where several are.
Does not know: what the files inside say (that is ``layout.py``), how a picture is decoded or resized, tokens, models.

Nothing is dropped in silence: what is not used is listed in ``PictureSet.skipped`` with the reason, and
`check_captions` refuses a set that is captioned only in part.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from unstir.data.archive import COMPRESSED_TARS, expand_braces, has_braces
from unstir.data.archive import InArchive as InArchive
from unstir.data.archive import InZip as InZip
from unstir.data.layout import ALLOW_FLAG as ALLOW_FLAG
from unstir.data.layout import CAPTIONS_FLAG, has_metadata, read_layout
from unstir.data.layout import SOURCES as SOURCES
from unstir.data.metadata import CAPTION_COLUMNS, to_captions, to_keywords, to_repeats
from unstir.data.metadata import NAMES as METADATA_NAMES
from unstir.data.names import are_captions, split_of, split_of_folder
from unstir.data.parquet import read_names, read_rows, require_pictures
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


def _find_in_folder(root: Path, captions: str) -> PictureSet:
    tree = scan_folder(root)
    if tree.pictures() or has_metadata(tree):
        return read_layout(tree, captions)
    shards = {key: root / key for key in sorted(tree, key=natural) if key.endswith(".tar")}
    if shards:
        inside = scan_tars(root, shards)
        return read_layout(_with_skipped(inside, tree), captions)
    tables = sorted([*root.glob("*.parquet"), *(root / "data").glob("*.parquet")])
    tables = [path for path in tables if path.name not in METADATA_NAMES and not path.name.startswith(".")]
    if tables:
        return _collect_parquet(root, tables, captions, base=root)
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
        return _collect_parquet(path, [path], captions, base=path.parent)
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


def _collect_parquet(root: Path, paths: Sequence[Path], captions: str, *, base: Path) -> PictureSet:
    if captions not in ("auto", "metadata", "none"):
        raise ValueError(
            f"The captions of {root} should come from {captions!r}, but those of parquet files are in their columns;"
            f" choose auto or none with {CAPTIONS_FLAG}."
        )
    ids: list[str | None] = []
    records: list[Record] = []
    notes: list[str] = []
    for path in paths:
        for identity, record in _read_records(path, path.relative_to(base).as_posix(), notes):
            ids.append(identity)
            records.append(record if captions != "none" else replace(record, captions=(), source="none"))
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
    wanted = (column, "also", "id", "keywords", "split", "repeats")
    columns = [name for name in wanted if name is not None and name in names]
    fixed = split_of(path.stem)
    for number, (group, row, values) in enumerate(read_rows(path, columns)):
        where = f"{path}, row {number}"
        captions = to_captions(values[column], column, where) if column else ()
        captions += to_captions(values.get("also"), "also", where)
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
                repeats=to_repeats(values.get("repeats"), where),
            ),
        )


def _split_of_row(row: Mapping[str, Any], where: str) -> str:
    name = row.get("split")
    if name is None:
        return "train"
    split = split_of_folder(str(name))
    if split is None:
        raise ValueError(f"{where}: split is {name!r}, expected train, validation or test.")
    return split
