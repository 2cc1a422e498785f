"""The files of a set as one tree, be they in a folder, in a zip, or in the tar shards of WebDataset.

Knows: how to list each of the three, what in them is no file to read, and where the bytes of every file are.
Does not know: captions, classes, splits inside the tree (that is ``layout.py``), decoding.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from unstir.data.archive import Index, index_tar, index_zip, is_text, printable, read_member
from unstir.data.names import split_of, split_of_folder
from unstir.data.records import InFile, InParquet, Location, is_picture


@dataclass(frozen=True, kw_only=True)
class Tree:
    """The files under a root, by their path from there with / between folders: the key.

    Args:
        root: the folder, zip, tar, or list of shards.
        files: folder ("" is the root) -> names in it, sorted; without hidden ones.
        places: key -> where the file's bytes are.
        skipped: (key, reason) of what is no file to read.
        shards: folder that is a tar ("" where the root itself is one) -> split that it is named after, or None; empty
            where there are no tars.
        is_folder: whether the root is a folder on disk.
    """

    root: Path
    files: Mapping[str, Sequence[str]]
    places: Mapping[str, Location]
    skipped: Sequence[tuple[str, str]]
    shards: Mapping[str, str | None] = field(default_factory=dict[str, "str | None"])
    is_folder: bool = False

    def __iter__(self) -> Iterator[str]:
        """The keys of all files, folder by folder."""
        return (join(folder, name) for folder, names in self.files.items() for name in names)

    def locate(self, key: str) -> Location | None:
        """Where a file is, hidden ones included; None if there is no such file."""
        if key in self.places or not self.is_folder:
            return self.places.get(key)
        path = self.root / key
        return InFile(path=path) if path.is_file() else None

    def path(self, key: str) -> Path:
        """What a file is called in messages."""
        place = self.places[key]
        return place.path if isinstance(place, InFile) else self.root / key

    def read(self, key: str) -> bytes:
        """The bytes of a file that is no picture.

        Raises:
            ValueError: if it cannot be read.
        """
        place = self.places[key]
        try:
            assert not isinstance(place, InParquet), "trees hold files"
            return place.path.read_bytes() if isinstance(place, InFile) else read_member(place)
        except OSError as error:
            raise ValueError(
                f"{self.root / key} cannot be read ({error.strerror}); give the right to read it."
            ) from None

    def shard(self, key: str) -> str | None:
        """The tar that a file is in, as a folder of this tree; None if it is in none."""
        folder = key
        while self.shards and folder not in self.shards:
            folder = folder.rpartition("/")[0]
        return folder if self.shards else None

    def inner(self, key: str) -> str:
        """The path of a file within its tar; elsewhere the key itself."""
        shard = self.shard(key)
        return key[len(shard) + 1 :] if shard else key

    def stem(self, key: str) -> str:
        """What a picture and its caption file have in common: all before the suffix, in tars before the first dot."""
        return _sample(key) if self.shards else os.path.splitext(key)[0]

    def pictures(self) -> set[str]:
        """The files that are pictures as their names say.

        In a tar, where 7.jpg stands beside 7.depth.png, only the first is the picture of sample 7.
        """
        keys = {key for key in self if is_picture(key)}
        if not self.shards:
            return keys
        plain = {key for key in keys if os.path.splitext(key)[0] == _sample(key)}
        samples = {_sample(key) for key in plain}
        return plain | {key for key in keys if _sample(key) not in samples}


def join(folder: str, name: str) -> str:
    """The key of a file in a folder."""
    return f"{folder}/{name}" if folder else name


def scan_folder(root: Path) -> Tree:
    """The files in a folder and its sub-folders; links are followed, each folder is looked through once.

    Raises:
        ValueError: if the folder cannot be looked through.
    """
    files: dict[str, list[str]] = {}
    skipped: list[tuple[str, str]] = []
    seen: set[str] = set()  # folders by their real path: a link may lead back up
    top = Path(os.path.realpath(root))
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        real = os.path.realpath(root / folder)
        if real in seen or Path(real) in top.parents:
            where = (
                "back to a folder that was already looked through"
                if real in seen
                else "up to a folder that holds this set"
            )
            skipped.append((folder, f"a link leads {where}; remove the link"))
            continue
        seen.add(real)
        try:
            entries = sorted(os.scandir(root / folder), key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            if not folder:
                raise ValueError(
                    f"{root} cannot be looked through ({error.strerror}); give the right to read it."
                ) from None
            skipped.append((folder, f"the folder cannot be looked through: {error.strerror}"))
            continue
        if not entries and is_picture(folder):
            skipped.append((folder, "it is an empty folder"))
        for entry in entries:
            key = join(folder, entry.name)
            if _is_hidden(entry.name):
                continue
            reason, is_folder = _look_at(entry)
            if reason is not None:
                skipped.append((printable(key), reason))
            elif is_folder:
                waiting.append(key)
            else:
                files.setdefault(folder, []).append(entry.name)
    return Tree(
        root=root,
        files={folder: sorted(files[folder]) for folder in sorted(files)},
        places=dict(_on_disk(root, files)),
        skipped=skipped,
        is_folder=True,
    )


def scan_zip(path: Path) -> Tree:
    """The files in a zip.

    Raises:
        OSError: if it cannot be opened.
        ValueError: if it is no zip, truncated or damaged.
    """
    index = index_zip(path)
    places, skipped = _places(index, "")
    return Tree(root=path, files=_files(places), places=places, skipped=[*index.skipped, *skipped])


def scan_tars(root: Path, shards: Mapping[str, Path]) -> Tree:
    """The files in one tar or more.

    Files with the same path up to the first dot of their name are one sample. In a tar where a name comes twice, only
    neighbours are: the samples of a name that come later are told apart as name#2 and so on.

    Args:
        root: what they are called together.
        shards: the folder that a tar is in the tree, "" for a single tar -> the tar.

    Raises:
        OSError: if a tar cannot be opened.
        ValueError: if a tar is compressed, no tar, truncated or damaged.
    """
    places: dict[str, Location] = {}
    skipped: list[tuple[str, str]] = []
    for shard, path in shards.items():
        index = index_tar(path)
        names = _tell_apart([name for name, _ in index.members])
        apart = tuple(zip(names, (place for _, place in index.members), strict=True))
        found, twice = _places(Index(members=apart, skipped=()), shard)
        places |= found
        skipped += [*((join(shard, name), reason) for name, reason in index.skipped), *twice]
    splits = {shard: _split_of_shard(shard or path.name) for shard, path in shards.items()}
    return Tree(root=root, files=_files(places), places=places, skipped=skipped, shards=splits)


def _on_disk(root: Path, files: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, InFile]]:
    for folder, names in files.items():
        base = root / folder  # joining paths is most of the work where files are many
        yield from ((join(folder, name), InFile(path=base / name)) for name in names)


def _look_at(entry: os.DirEntry[str]) -> tuple[str | None, bool]:
    """Why an entry of a folder is not read, if it is not, and whether it is a folder."""
    if not is_text(entry.name):
        return "its name is not UTF-8", False
    try:
        mode = entry.stat().st_mode
    except OSError as error:
        return f"a link that leads nowhere: {error.strerror}" if entry.is_symlink() else f"{error.strerror}", False
    if stat.S_ISDIR(mode):
        return None, True
    return None if stat.S_ISREG(mode) else "it is a pipe, a socket or a device", False


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _places(index: Index, shard: str) -> tuple[dict[str, Location], list[tuple[str, str]]]:
    places: dict[str, Location] = {}
    twice: list[tuple[str, str]] = []
    for name, place in index.members:
        key = join(shard, name)
        if key in places:
            twice.append((key, "its name comes twice in the archive, and the last of the two counts"))
        places[key] = place
    return places, twice


def _files(places: Iterable[str]) -> dict[str, list[str]]:
    files: dict[str, list[str]] = {}
    for key in sorted(places):
        folder, _, name = key.rpartition("/")
        if not any(_is_hidden(part) for part in key.split("/")):
            files.setdefault(folder, []).append(name)
    return files


def _sample(key: str) -> str:
    folder, _, name = key.rpartition("/")
    return join(folder, name.split(".")[0])


def _tell_apart(names: Sequence[str]) -> list[str]:
    if len(set(names)) == len(names):
        return list(names)
    counts: dict[str, int] = {}
    apart: list[str] = []
    last = None
    for name in names:
        sample = _sample(name)
        if sample != last:
            counts[sample] = counts.get(sample, 0) + 1
        last = sample
        apart.append(name if counts[sample] == 1 else f"{sample}#{counts[sample]}{name[len(sample) :]}")
    return apart


def _split_of_shard(shard: str) -> str | None:
    first, _, _ = shard.partition("/")
    return split_of_folder(first) or split_of(shard.rpartition("/")[2])
