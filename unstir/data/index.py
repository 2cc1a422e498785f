"""Files and archives as a table that needs little memory, and that the next run need not look for again.

Knows: how records are kept as columns of numbers and text, where an index lies, and when it is still right.
Does not know: layouts, where captions are from, decoding, which rows are trained on.

An index is an aid: one that is missing, damaged, of an older version or of a set that changed since is made anew, and
where it cannot be written, it is not.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Int32, Int64, UInt8

from unstir.data.archive import InArchive, InZip, expand_braces, has_braces
from unstir.data.records import SPLITS, InFile, InParquet, Location, PictureSet, Record, read_bytes
from unstir.data.table import TEST, require_unchanged

GROUP = 256
"""Rows of a group; files have none of their own, and what lies together in an archive stays together."""

_VERSION = 1
_SETTLED_SECONDS = 2.0  # a file that is younger may change again within one tick of the file system's clock
_SOURCES = ("none", "metadata", "sidecar", "folder", "filename", "parquet")
_FILE, _ARCHIVE, _ZIP = range(3)

# What an index holds: numbers of one kind each, text as UTF-8 with the places where its pieces end. Of a picture with
# several captions (or keywords) all are there, one after the other, and `captions_to` says where they end.
_NUMBERS = {
    "keys_to": np.int64,
    "captions_to": np.int64,
    "caption_ends": np.int64,
    "keywords_to": np.int64,
    "keyword_ends": np.int64,
    "members_to": np.int64,
    "sizes": np.int64,
    "offsets": np.int64,
    "changed_ns": np.int64,
    "archives": np.int32,
    "repeats": np.int32,
    "kinds": np.uint8,
    "sources": np.uint8,
    "splits": np.uint8,
}
_TEXTS = ("keys", "captions", "keywords", "members")


@dataclass(frozen=True, kw_only=True, eq=False)
class IndexTable:
    """The files of a folder, zip or tars, in groups of 256; see ``Table``.

    Args:
        root: what the user gave.
        numbers: columns of numbers.
        texts: columns of text.
        archives: (path, bytes, written at) of each archive; the path is relative to the folder that root is in.
        notes: sentences.
        skipped: (key, reason).
    """

    root: Path
    numbers: dict[str, np.ndarray]
    texts: dict[str, bytes]
    archives: tuple[tuple[str, int, int], ...]
    notes: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.numbers["splits"])

    @property
    def sizes(self) -> Int64[np.ndarray, "groups"]:
        """256 each, but for the last."""
        starts = np.arange(0, len(self), GROUP)
        return np.minimum(len(self) - starts, GROUP)

    @property
    def group_bytes(self) -> int:
        """0: rows are read one by one."""
        return 0

    @property
    def checksum(self) -> str:
        """Of names, captions, sizes and places within archives; not of when anything was written."""
        digest = hashlib.sha256()
        for name in sorted(_NUMBERS.keys() - {"changed_ns"}):
            digest.update(self.numbers[name].tobytes())
        for name in _TEXTS:
            digest.update(self.texts[name])
        digest.update(repr([(path, size) for path, size, _ in self.archives]).encode())
        return digest.hexdigest()[:16]

    def splits(self, group: int) -> int | UInt8[np.ndarray, "rows"]:
        """As the layout gave them."""
        found = self.numbers["splits"][group * GROUP : (group + 1) * GROUP]
        return int(found[0]) if (found == found[0]).all() else found

    def repeats(self, group: int) -> Int32[np.ndarray, "rows"] | None:
        """As the layout gave them."""
        found = self.numbers["repeats"][group * GROUP : (group + 1) * GROUP]
        return None if (found == 1).all() else found

    def uncaptioned(self) -> int:
        """All of them are known."""
        counts = np.diff(self.numbers["captions_to"], prepend=0)
        return int(((counts == 0) & (self.numbers["splits"] != TEST)).sum())

    def record(self, group: int, row: int) -> Record:
        """A row without its picture."""
        i = group * GROUP + row
        return Record(
            key=self._text("keys", "keys_to", i),
            captions=self._several("captions", "captions_to", "caption_ends", i),
            source=_SOURCES[self._number("sources", i)],
            split=SPLITS[self._number("splits", i)],
            locate=self._place(i),
            keywords=self._several("keywords", "keywords_to", "keyword_ends", i),
            repeats=self._number("repeats", i),
        )

    def row(self, group: int, row: int, *, most_bytes: int) -> tuple[Record, bytes | str]:
        """A row with its picture, or the reason why there is none.

        Raises:
            ChangedError: if its file or archive changed.
        """
        del most_bytes  # the system keeps files in memory as it sees fit
        i = group * GROUP + row
        record = self.record(group, row)
        place = record.locate
        if isinstance(place, InFile):
            size, changed_ns = self._number("sizes", i), self._number("changed_ns", i)
        else:
            _, size, changed_ns = self.archives[self._number("archives", i)]
        require_unchanged(place.path, size, changed_ns)
        try:
            return record, read_bytes(place)
        except (OSError, ValueError) as error:
            return record, str(error)

    def _place(self, i: int) -> Location:
        kind = self._number("kinds", i)
        if kind == _FILE:
            return InFile(path=self.root / self._text("keys", "keys_to", i))
        path = self.root.parent / self.archives[self._number("archives", i)][0]
        if kind == _ZIP:
            return InZip(path=path, member=self._text("members", "members_to", i))
        return InArchive(path=path, offset=self._number("offsets", i), size=self._number("sizes", i))

    def _number(self, name: str, i: int) -> int:
        return int(self.numbers[name].item(i))

    def _ends(self, name: str, i: int) -> tuple[int, int]:
        """Where piece i begins and ends."""
        return self._number(name, i - 1) if i else 0, self._number(name, i)

    def _text(self, text: str, ends: str, i: int) -> str:
        first, last = self._ends(ends, i)
        return self.texts[text][first:last].decode(errors="surrogatepass")

    def _several(self, text: str, to: str, ends: str, i: int) -> tuple[str, ...]:
        return tuple(self._text(text, ends, number) for number in range(*self._ends(to, i)))


def table_of_records(pictures: PictureSet) -> IndexTable:
    """The table of a set of files or of members of archives.

    Raises:
        ValueError: if a file cannot be looked at, or a picture is in a parquet file.
    """
    records = pictures.records
    archives: dict[Path, int] = {}
    offsets, sizes, changed, kinds, which, members = (cast("list[Any]", []) for _ in range(6))
    for record in records:
        place = record.locate
        assert not isinstance(place, InParquet), "parquet files are a table of their own"
        if isinstance(place, InFile):
            found = _stat(place.path)
            row = (_FILE, -1, 0, found.st_size, found.st_mtime_ns, "")
        else:
            number = archives.setdefault(place.path, len(archives))
            if isinstance(place, InZip):
                row = (_ZIP, number, 0, 0, 0, place.member)
            else:
                row = (_ARCHIVE, number, place.offset, place.size, 0, "")
        for column, value in zip((kinds, which, offsets, sizes, changed, members), row, strict=True):
            column.append(value)
    captions = [record.captions for record in records]
    keywords = [record.keywords for record in records]
    columns = {
        "keys": _packed(record.key for record in records),
        "captions": _packed(one for some in captions for one in some),
        "keywords": _packed(one for some in keywords for one in some),
        "members": _packed(members),
    }
    numbers: dict[str, Any] = {
        "keys_to": columns["keys"][1],
        "captions_to": np.cumsum([len(some) for some in captions]),
        "caption_ends": columns["captions"][1],
        "keywords_to": np.cumsum([len(some) for some in keywords]),
        "keyword_ends": columns["keywords"][1],
        "members_to": columns["members"][1],
        "sizes": sizes,
        "offsets": offsets,
        "changed_ns": changed,
        "archives": which,
        "repeats": [record.repeats for record in records],
        "kinds": kinds,
        "sources": [_SOURCES.index(record.source) for record in records],
        "splits": [SPLITS.index(record.split) for record in records],
    }
    places = [(path, _stat(path)) for path in archives]
    return IndexTable(
        root=pictures.root,
        numbers={name: np.asarray(numbers[name], kind) for name, kind in _NUMBERS.items()},
        texts={name: data for name, (data, _) in columns.items()},
        archives=tuple((_relative(path, pictures.root), one.st_size, one.st_mtime_ns) for path, one in places),
        notes=pictures.notes,
        skipped=pictures.skipped,
    )


def signature(root: Path, captions: str) -> tuple[str, float]:
    """What an index is compared with: names, sizes and times of all files under root; none is opened.

    Args:
        root: a folder, an archive, or a list of shards in braces.
        captions: where captions are taken from.

    Returns:
        A checksum; and when the newest of them was written, in seconds of the system's clock.
    """
    digest = hashlib.sha256(repr((_VERSION, captions)).encode())
    newest = 0
    paths = [root] if root.exists() or not has_braces(root.name) else expand_braces(root)
    seen: set[str] = set()
    while paths:
        path = paths.pop()
        if path.is_dir():
            real = os.path.realpath(path)
            if real in seen:
                continue
            seen.add(real)
            digest.update(f"\0{path}\0".encode(errors="surrogateescape"))
            for entry in _entries(path):
                line, changed_ns, is_folder = entry
                digest.update(line.encode(errors="surrogateescape"))
                newest = max(newest, changed_ns)
                if is_folder:
                    paths.append(path / is_folder)
        elif path.exists():
            found = path.stat()
            newest = max(newest, found.st_mtime_ns)
            digest.update(f"{path.name}\0{found.st_size}\0{found.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest(), newest / 1e9


def load_index(root: Path, captions: str, sign: str) -> IndexTable | None:
    """The index of a set, if there is one that is whole and has this signature."""
    try:
        content = _index_file(root, captions).read_bytes()
        head, _, payload = content.partition(b"\n")
        header = json.loads(head)
        if header["signature"] != sign or header["digest"] != _digest(payload):
            return None
        numbers: dict[str, np.ndarray] = {}
        texts: dict[str, bytes] = {}
        start = 0
        for name, kind in _NUMBERS.items():
            numbers[name] = np.frombuffer(payload, kind, header["lengths"][name], start)
            start += numbers[name].nbytes
        for name in _TEXTS:
            end = start + header["lengths"][name]
            texts[name], start = payload[start:end], end
        return IndexTable(
            root=root,
            numbers=numbers,
            texts=texts,
            archives=tuple((str(path), int(size), int(changed)) for path, size, changed in header["archives"]),
            notes=tuple(header["notes"]),
            skipped=tuple((str(key), str(reason)) for key, reason in header["skipped"]),
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def save_index(table: IndexTable, captions: str, sign: str, newest: float) -> None:
    """Write an index down for the next run, if that can be done.

    Args:
        table: what to write.
        captions: where its captions were taken from.
        sign: what ``signature`` gave before the set was looked through.
        newest: and when its newest file had been written; where that is a moment ago, nothing is written.
    """
    if time.time() - newest < _SETTLED_SECONDS:
        return
    parts = [*(table.numbers[name].tobytes() for name in _NUMBERS), *(table.texts[name] for name in _TEXTS)]
    payload = b"".join(parts)
    header = {
        "signature": sign,
        "digest": _digest(payload),
        "lengths": {name: len(table.numbers[name]) for name in _NUMBERS} | {n: len(table.texts[n]) for n in _TEXTS},
        "archives": table.archives,
        "notes": table.notes,
        "skipped": table.skipped,
    }
    with suppress(OSError, ValueError):
        path = _index_file(table.root, captions)
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            new.write_bytes(json.dumps(header).encode() + b"\n" + payload)
            os.replace(new, path)
        finally:
            new.unlink(missing_ok=True)


def _index_file(root: Path, captions: str) -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    name = hashlib.sha256(os.fsencode(os.path.realpath(root)) + captions.encode()).hexdigest()[:32]
    return Path(home) / "unstir" / "index" / name


def _entries(folder: Path) -> Iterator[tuple[str, int, str]]:
    """Each entry of a folder as a line with its size and time, that time, and its name if it is a folder."""
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        try:
            stat = entry.stat()
        except OSError:
            yield f"{entry.name}\0\n", 0, ""
            continue
        line = f"{entry.name}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_mode}\n"
        yield line, stat.st_mtime_ns, entry.name if entry.is_dir() else ""


def _packed(texts: Iterable[str]) -> tuple[bytes, Int64[np.ndarray, "n"]]:
    encoded = [text.encode(errors="surrogatepass") for text in texts]  # JSON may hold half a pair
    return b"".join(encoded), np.cumsum([len(one) for one in encoded], dtype=np.int64)


def _digest(payload: bytes) -> str:
    return hashlib.blake2b(payload, digest_size=16).hexdigest()


def _relative(path: Path, root: Path) -> str:
    return os.path.relpath(path, root.parent)


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise ValueError(f"{path} cannot be looked at ({error.strerror}); give the right to read it.") from None
