"""Read a tree of files into records: which picture has which captions, and which source of captions goes first.

Knows: metadata files, caption files beside pictures, class, kohya and split folders, and their precedence.
Does not know: whether the tree is a folder, a zip or tars (that is ``tree.py``), parquet files with pictures, decoding.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from unstir.data import names
from unstir.data.metadata import LABELS, Said, read_labels, read_metadata, read_said, read_text, refuse_misnamed
from unstir.data.metadata import NAMES as METADATA_NAMES
from unstir.data.records import SUFFIXES, PictureSet, Record, natural
from unstir.data.tree import Tree, join

CAPTIONS_FLAG = "--captions"
ALLOW_FLAG = "--allow-missing-captions"
SOURCES = {
    "auto": "metadata, else sidecar, else folder, else filename where the names read like words",
    "metadata": "metadata.jsonl, .csv or .parquet with file_name and text; dataset.json of a zip; columns of parquet",
    "sidecar": ".txt or .caption beside the picture, one caption a line; in tars also .json",
    "folder": "the name of the folder that the picture is in",
    "filename": "the name of the picture's file, without a counter at its end",
    "none": "no captions, whatever there is",
}

_SIDECARS = (".txt", ".caption")  # in this order where a picture has both
_NOTHING = Said(where="", file_name="", captions=())
_FOREIGN = (".heic", ".heif", ".avif", ".jxl", ".svg", ".psd", ".jp2", ".dng", ".cr2", ".nef", ".arw", ".ico", ".tga")


@dataclass(frozen=True, kw_only=True)
class _Words:
    """All that the chosen sources say, by picture; sidecars by what `Tree.stem` gives."""

    said: Mapping[str, Said]
    sidecars: Mapping[str, Sequence[str]]
    named: Mapping[str, tuple[str, str]]  # caption, source
    repeats: Mapping[str, int]


def read_layout(tree: Tree, captions: str = "auto") -> PictureSet:
    """The pictures of a tree, with captions from one source or by the precedence.

    Args:
        tree: the files.
        captions: one of `SOURCES`. With "auto", a picture's row in a metadata file goes before the file beside it;
            names of folders, and after them names of files, count only where there is nothing of the former.

    Raises:
        ValueError: if there are no pictures, the chosen source says nothing of any, or a file that says something is
            broken; the sentence names the file, the line and the remedy.
    """
    notes: list[str] = []
    skipped = list(tree.skipped)
    pictures = tree.pictures()
    said, is_labelled = _read_all_metadata(tree, notes) if captions in ("auto", "metadata") else ({}, False)
    pictures |= said.keys()
    if not pictures:
        first = f" (the first that is skipped is {skipped[0][0]}: {skipped[0][1]})" if skipped else ""
        raise ValueError(
            f"There are no pictures in {tree.root}: no file in it or its folders ends in {' '.join(SUFFIXES)}, and no"
            f" .parquet or .tar file can be read from it{first}."
        )
    sidecars = _find_sidecars(tree, pictures) if captions in ("auto", "sidecar") else {}
    splits = _split_folders({tree.inner(key) for key in pictures}, notes)
    folders = _last_folders(tree, pictures, splits)
    kohya = {} if said else names.repeats_of(set(folders.values()), notes)
    words = _Words(
        said=said,
        sidecars=sidecars,
        named={} if said or sidecars or is_labelled else _read_names(captions, pictures, folders, kohya, notes),
        repeats={key: kohya[folder][0] for key, folder in folders.items() if folder in kohya},
    )
    _require(tree, captions, words)
    records: list[Record] = []
    used: set[str] = set()
    for key in sorted(pictures, key=natural):
        place = tree.locate(key)
        assert place is not None, "files that metadata names were looked for"
        row, source = _row_of(tree, key, words, used)
        records.append(
            Record(
                key=key,
                captions=row.captions,
                source=source if row.captions else "none",
                split=_split(tree, key, splits),
                locate=place,
                keywords=row.keywords,
                repeats=row.repeats if row.repeats > 1 else words.repeats.get(key, 1),
            )
        )
    if said or is_labelled:
        used |= {key for key in tree if key.rpartition("/")[2] in (*METADATA_NAMES, LABELS)}
    skipped += _unused(tree, pictures, used, captions)
    return PictureSet(
        root=tree.root,
        records=tuple(records),
        skipped=tuple(sorted(skipped, key=lambda pair: natural(pair[0]))),
        notes=tuple(notes),
    )


def has_metadata(tree: Tree) -> bool:
    """Whether a file of the tree is called as metadata files are."""
    return any(name in METADATA_NAMES for files in tree.files.values() for name in files)


def _row_of(tree: Tree, key: str, words: _Words, used: set[str]) -> tuple[Said, str]:
    """What is said of one picture, and by which source; `used` gets the files that it was read from."""
    row = words.said.get(key)
    if row is not None and row.captions:
        return row, "metadata"
    stem = tree.stem(key)
    if stem in words.sidecars:
        beside = _read_sidecars(tree, words.sidecars[stem], used)
        return (beside if row is None else replace(row, captions=beside.captions)), "sidecar"
    caption, source = words.named.get(key, ("", "none"))
    captions = (caption,) if caption else ()
    return replace(row or _NOTHING, captions=captions), source


def _require(tree: Tree, captions: str, words: _Words) -> None:
    """Refuse a source that was asked for by name and is not there."""
    missing = {
        "metadata": (words.said, "no metadata.jsonl, metadata.csv, metadata.parquet or dataset.json with rows"),
        "sidecar": (words.sidecars, "no .txt or .caption that is named as a picture beside it"),
        "folder": (words.named, "no pictures in sub-folders"),
    }
    found, what = missing.get(captions, (True, ""))
    if not found:
        raise ValueError(
            f"The captions of {tree.root} should come from {captions!r}, but there is {what}; add them, or choose"
            f" another of {', '.join(SOURCES)} with {CAPTIONS_FLAG}."
        )


def _unused(tree: Tree, pictures: set[str], used: set[str], captions: str) -> Iterator[tuple[str, str]]:
    """Every file that says or shows nothing in this set, and why."""
    shown = {tree.stem(key) for key in pictures}
    for key in tree:
        if key in pictures or key in used:
            continue
        suffix = os.path.splitext(key)[1]
        is_sidecar = suffix in _sidecars(tree)
        suffix = suffix.lower()
        if is_sidecar and tree.stem(key) in shown:
            yield key, "it is empty, or the captions are from elsewhere"
        elif is_sidecar and suffix != ".json":
            yield key, "no picture beside it has this name"
        elif key.rpartition("/")[2] in METADATA_NAMES:
            yield key, f"the captions are from {captions!r}" if captions != "auto" else "it has no rows"
        elif suffix in (".parquet", ".tar"):
            yield key, f"{suffix[1:]} files are not read where there are pictures outside of them"
        elif suffix in _FOREIGN:
            yield key, f"pictures of this kind are not read, save as PNG or JPEG: {suffix}"
        else:
            yield key, f"not a picture: {suffix or 'no suffix'}"


def _split_folders(keys: set[str], notes: list[str]) -> dict[str, str]:
    """Top-level folder -> split.

    A single folder "train" among others may be the class of trains; it is a split where it is alone, or where another
    split stands beside it.
    """
    top = {key.split("/")[0] for key in keys if "/" in key}
    found = {folder: names.split_of_folder(folder) for folder in top}
    splits = {folder: split for folder, split in found.items() if split is not None}
    if len(splits) == 1 and len(top) > 1:
        (folder,) = splits
        notes.append(f"The folder {folder!r} stands beside folders that are not splits and is taken for a class.")
        return {}
    return splits


def _split(tree: Tree, key: str, splits: Mapping[str, str]) -> str:
    shard = tree.shard(key)
    by_shard = None if shard is None else tree.shards[shard]
    top, _, rest = tree.inner(key).partition("/")
    return by_shard or (splits.get(top, "train") if rest else "train")


def _last_folders(tree: Tree, pictures: set[str], splits: Mapping[str, str]) -> dict[str, str]:
    """Picture -> name of the folder that it is in; without those that are in the root or in the folder of a split."""
    folders: dict[str, str] = {}
    for key in pictures:
        parts = tree.inner(key).split("/")[:-1]
        if parts and parts[0] in splits:
            parts = parts[1:]
        if parts:
            folders[key] = parts[-1]
    return folders


def _read_names(
    captions: str,
    pictures: set[str],
    folders: Mapping[str, str],
    kohya: Mapping[str, tuple[int, str]],
    notes: list[str],
) -> dict[str, tuple[str, str]]:
    """Picture -> (caption, source), from the names of folders or files."""
    if captions in ("auto", "folder"):
        classes = {key: kohya[name][1] if name in kohya else names.class_of(name) for key, name in folders.items()}
        # One folder named "images" says where the pictures are, not what they show.
        one = set(folders.values())
        if captions == "folder" or not (len(one) == 1 and names.is_plain_folder(next(iter(one)))):
            classes = {key: name for key, name in classes.items() if name}
            if classes or captions == "folder":
                return {key: (name, "folder") for key, name in classes.items()}
    stems = {key: os.path.splitext(key.rpartition("/")[2])[0] for key in pictures}
    if captions == "auto" and names.are_captions(list(stems.values())):
        notes.append(
            "The captions are the names of the files, for there are no others; go without them with"
            f" {CAPTIONS_FLAG} none {ALLOW_FLAG}."
        )
    elif captions != "filename":
        return {}
    return {key: (names.caption_of(stem), "filename") for key, stem in stems.items()}


def _sidecars(tree: Tree) -> tuple[str, ...]:
    return (*_SIDECARS, ".json") if tree.shards else _SIDECARS


def _find_sidecars(tree: Tree, pictures: set[str]) -> dict[str, list[str]]:
    """What a picture and its caption files have in common -> the files; the first of them counts."""
    stems = {tree.stem(key) for key in pictures}
    return {
        stem: files
        for stem in stems
        if (files := [stem + suffix for suffix in _sidecars(tree) if stem + suffix in tree.places])
    }


def _read_sidecars(tree: Tree, files: Sequence[str], used: set[str]) -> Said:
    """The captions of the first file, and the keywords of the JSON object if there is one."""
    first, last = files[0], files[-1]
    row = _NOTHING
    if last.endswith(".json"):
        row = read_said(tree.path(last), tree.read(last))
        used.add(last)
    if not first.endswith(".json"):
        lines = (line.strip() for line in read_text(tree.path(first), tree.read(first)).splitlines())
        row = replace(row, captions=tuple(line for line in lines if line))
    if row.captions:
        used.add(first)
    return row


def _read_all_metadata(tree: Tree, notes: list[str]) -> tuple[dict[str, Said], bool]:
    """What metadata files say, by picture, and whether a dataset.json says that there is nothing to say."""
    said: dict[str, Said] = {}
    labels = _read_labels(tree, notes)
    refused = dict(tree.skipped)  # they are there, and listed with the reason why they are not read
    for folder, files in tree.files.items():
        present = [name for name in METADATA_NAMES if name in files]
        if not folder and labels is not None:
            present.append(LABELS)
        if len(present) > 1:
            raise ValueError(f"{tree.root / folder} has both {present[0]} and {present[1]}; keep one of them.")
        if not present:
            refuse_misnamed(tree.root / folder, files)
            continue
        path = tree.root / folder / present[0]
        if present[0] == LABELS:
            rows = labels or {}
        else:
            rows = read_metadata(path, tree.read(join(folder, present[0])), folder, notes)
        rows = {picture: row for picture, row in rows.items() if tree.locate(picture) or picture not in refused}
        _require_files(path, rows, tree)
        for picture, row in rows.items():
            if picture in said:
                raise ValueError(
                    f"{path} names {picture!r}, which another metadata file names as well; keep one of the two."
                )
            said[picture] = row
    return said, labels is not None


def _read_labels(tree: Tree, notes: list[str]) -> dict[str, Said] | None:
    if LABELS not in tree.files.get("", ()):
        return None
    return read_labels(tree.root / LABELS, tree.read(LABELS), notes)


def _require_files(path: Path, rows: Mapping[str, Said], tree: Tree) -> None:
    missing = [key for key in rows if tree.locate(key) is None]
    if not missing:
        return
    first, folder = rows[missing[0]].file_name, path.parent
    name = missing[0].rpartition("/")[2]
    there = next((key for key in tree if key.rpartition("/")[2] == name), None)
    hint = "" if there is None else f", from where {name} is {os.path.relpath(tree.root / there, folder)!r}"
    raise ValueError(
        f"{len(missing)} of the {len(rows)} files that {path} names do not exist, the first is {first!r}; file_name is"
        f" relative to {folder}{hint}."
    )
