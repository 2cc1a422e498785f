"""Reach members of tar and zip files one by one, without unpacking them.

Knows: the index of a tar and of a zip, lists of shards in braces, and what damaged or malicious archives look like.
Does not know: pictures, captions, which members belong together (that is ``tree.py`` and ``layout.py``).

Nothing is ever written to disk, whatever a member is called, and no member larger than `MAX_BYTES` is read. An index
is read without any member, so that it costs the same for small and for large pictures.
"""

from __future__ import annotations

import os
import posixpath
import re
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

MAX_BYTES = 256 * 2**20  # of one picture: twice what a camera's largest files have
COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")

_MAX_SHARDS = 100_000
_MAX_NAME = 4096  # as long as a path may be on disk
_MAGIC_OF_COMPRESSION = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True, kw_only=True, slots=True)
class InArchive:
    """A picture that is a member of a tar file: its bytes begin at `offset` and are `size` bytes long."""

    path: Path
    offset: int
    size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class InZip:
    """A picture that is a member of a zip file, by the name it has there."""

    path: Path
    member: str


@dataclass(frozen=True, kw_only=True)
class Index:
    """What an archive holds, in the order it is stored.

    Args:
        members: (name with / between folders, where it is); names may come more than once.
        skipped: (name, reason) of what is not read.
    """

    members: tuple[tuple[str, InArchive | InZip], ...]
    skipped: tuple[tuple[str, str], ...]


def index_tar(path: Path) -> Index:
    """The members of an uncompressed tar.

    Raises:
        OSError: if the file cannot be opened.
        ValueError: if it is compressed, no tar, truncated or damaged.
    """
    if is_compressed(path):
        raise ValueError(
            f"{path} is compressed, and its pictures cannot be reached one by one; unpack it, or repack it as a plain"
            " .tar without compression."
        )
    members: list[tuple[str, InArchive]] = []
    skipped: list[tuple[str, str]] = []
    for entry in _tar_entries(path):
        reason = _refusal(entry.name) or _tar_refusal(entry)
        if reason is not None:
            skipped.append((printable(entry.name), reason))
        elif not entry.isdir():
            place = InArchive(path=path, offset=entry.offset_data, size=entry.size)
            members.append((posixpath.normpath(entry.name), place))
    return Index(members=tuple(members), skipped=tuple(skipped))


def index_zip(path: Path) -> Index:
    """The members of a zip.

    Raises:
        OSError: if the file cannot be opened.
        ValueError: if it is no zip, truncated or damaged.
    """
    members: list[tuple[str, InZip]] = []
    skipped: list[tuple[str, str]] = []
    for info in _zip_of(path).infolist():
        name = _zip_name(info)
        reason = _refusal(name) or _zip_refusal(info)
        if reason is not None:
            skipped.append((printable(name), reason))
        elif not info.is_dir():
            members.append((posixpath.normpath(name), InZip(path=path, member=info.filename)))
    return Index(members=tuple(members), skipped=tuple(skipped))


def read_member(place: InArchive | InZip) -> bytes:
    """The bytes of one member; of a zip as many as its index states, and never more.

    Raises:
        OSError: if the archive cannot be opened.
        ValueError: if the member is damaged, cut off, encrypted, or larger than `MAX_BYTES`.
    """
    return _read_tar(place) if isinstance(place, InArchive) else _read_zip(place)


def expand_braces(path: Path) -> list[Path]:
    """All files that a list of shards stands for: x-{08..10}.tar is x-08.tar, x-09.tar, x-10.tar.

    Raises:
        ValueError: if its name has no braces of this form, a range runs backwards, or there are more than 100,000.
    """
    names = [path.name]
    while found := _RANGE.search(names[0]):
        first, last = (int(number) for number in found.groups())
        if not first <= last or len(names) * (last - first + 1) > _MAX_SHARDS:
            raise ValueError(f"{path}: {found[0]} has to run upwards, and over at most {_MAX_SHARDS:,} shards in all.")
        numbers = [f"{number:0{len(found[1])}d}" for number in range(first, last + 1)]
        names = [name.replace(found[0], number, 1) for name in names for number in numbers]
    if len(names) == 1 and names[0] == path.name:
        raise ValueError(f"{path} has no range in braces; write it as x-{{000000..000009}}.tar.")
    return [path.with_name(name) for name in names]


def has_braces(name: str) -> bool:
    """Whether a name is a list of shards, as x-{000000..000009}.tar."""
    return _RANGE.search(name) is not None


def is_compressed(path: Path) -> bool:
    """Whether a tar is compressed, by its name or its first bytes.

    Raises:
        OSError: if the file cannot be opened.
    """
    if path.name.lower().endswith(COMPRESSED_TARS):
        return True
    with path.open("rb") as file:
        return file.read(8).startswith(_MAGIC_OF_COMPRESSION)


def is_text(name: str) -> bool:
    """Whether a name can be printed and stored; one that is not UTF-8 on disk cannot."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(name: str) -> str:
    """A name with what is not UTF-8 in it written as escapes."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _tar_entries(path: Path) -> Iterator[tarfile.TarInfo]:
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            end = -1
            for entry in archive:
                if entry.size < 0 or entry.offset <= end:  # sizes that lead backwards would never end
                    raise tarfile.ReadError(f"the size of {printable(entry.name)} is impossible")
                end = entry.offset
                yield entry
            _require_end(file, archive.offset)
    except (tarfile.TarError, UnicodeError, ValueError, EOFError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or no tar ({error}); fetch or write it again.") from None


def _require_end(file: BinaryIO, offset: int) -> None:
    """Refuse what tarfile silently takes for the end: a damaged header, or an archive that was cut or added to."""
    file.seek(offset)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("its end is missing")
    if block.strip(b"\0"):
        raise tarfile.ReadError(f"what stands at byte {offset:,} is no header")
    while block:
        block = file.read(2**20)
        if block.strip(b"\0"):
            raise tarfile.ReadError("something follows after its end; tar archives are joined with tar -A")


def _tar_refusal(entry: tarfile.TarInfo) -> str | None:
    if entry.isdir():
        return None
    if not entry.isreg() or entry.issparse():
        return "in an archive only whole files are read, no links, devices or sparse files"
    return _size_refusal(entry.size)


def _zip_refusal(info: zipfile.ZipInfo) -> str | None:
    if info.flag_bits & 0x41:
        return "it is encrypted; write the archive without a password"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "its compression is not read; write the archive with deflate or without compression"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "in an archive only whole files are read, no links, devices or sparse files"
    return _size_refusal(info.file_size)


def _size_refusal(size: int) -> str | None:
    return f"it has {size:,} bytes, of which {MAX_BYTES:,} are allowed" if size > MAX_BYTES else None


def _refusal(name: str) -> str | None:
    if not is_text(name):
        return "its name is not UTF-8"
    if name.startswith("/") or re.match("[A-Za-z]:/", name) or ".." in name.split("/"):
        return "its name leads out of the archive"
    if len(name) > _MAX_NAME:
        return f"its name has more than {_MAX_NAME:,} characters"
    return None


def _zip_name(info: zipfile.ZipInfo) -> str:
    """The name in UTF-8, which many programs write without saying so; other bytes become surrogates, as on disk."""
    name = info.filename
    if not info.flag_bits & 0x800:
        with suppress(UnicodeEncodeError):  # newer Pythons read an extra field that has the name in Unicode
            name = name.encode("cp437").decode(errors="surrogateescape")
    return name.replace("\\", "/")


def _read_tar(place: InArchive) -> bytes:
    reason = _size_refusal(place.size)
    if reason is not None:
        raise ValueError(f"{place.path}, byte {place.offset:,}: {reason}.")
    with place.path.open("rb") as file:
        file.seek(place.offset)
        data = file.read(place.size)
    if len(data) != place.size:
        raise ValueError(f"{place.path} ends at byte {place.offset + len(data):,}, within a file; fetch it again.")
    return data


def _read_zip(place: InZip) -> bytes:
    archive = _zip_of(place.path)
    try:
        info = archive.getinfo(place.member)
        reason = _zip_refusal(info)
        if reason is not None:
            raise ValueError(reason)
        with archive.open(info) as file:
            data = file.read(info.file_size)  # at the end of what is stated, zipfile compares the checksum
        if len(data) != info.file_size:
            raise ValueError(f"{len(data):,} of its {info.file_size:,} bytes are there")
    except Exception as error:  # zipfile, zlib and struct each have their own
        reason = str(error).rstrip(".") or type(error).__name__
        raise ValueError(f"{place.path}, {place.member}: {reason}; fetch or write the archive again.") from None
    return data


def _zip_of(path: Path) -> zipfile.ZipFile:
    return _open_zip(str(path), path.stat().st_mtime_ns, os.getpid())


@lru_cache(maxsize=4)
def _open_zip(path: str, changed_ns: int, process: int) -> zipfile.ZipFile:
    """An open zip; a rewritten file is another entry, and a forked process opens its own, with its own position."""
    del changed_ns, process
    try:
        return zipfile.ZipFile(path)
    except OSError:
        raise
    except Exception as error:  # besides BadZipFile whatever its parsing of lengths and names runs into
        reason = str(error).rstrip(".") or type(error).__name__
        raise ValueError(f"{path} is damaged or no zip ({reason}); fetch or write it again.") from None
