"""The index of files and archives: it says what looking through says, is never wrong, and never in the way."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from unstir.data import index
from unstir.data.folder import find_pictures
from unstir.data.index import GROUP, IndexTable, load_index, save_index, signature, table_of_records
from unstir.data.table import ChangedError

OLD = 10**18  # nanoseconds; files that are younger than two seconds are not trusted


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/unstir/index"


def put(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def aged(root: Path) -> Path:
    for path in [root, *root.rglob("*")]:
        os.utime(path, ns=(OLD, OLD))
    return root


def folder(root: Path) -> Path:
    for i in range(GROUP + 3):
        put(root / f"{i % 7}/{i}.png", f"picture {i}")
        if i % 2:
            put(root / f"{i % 7}/{i}.txt", f"caption {i}\nand ü {i}\n")
    return aged(root)


def metadata(root: Path) -> Path:
    rows = [
        {
            "file_name": f"{i}.png",
            "text": ["one", f"two {i} \ud800"][: i % 3],
            "keywords": ["k"] * (i % 2),
            "repeats": 1 + i % 3,
        }
        for i in range(9)
    ]
    for split in ("train", "test"):
        put(root / split / "metadata.jsonl", "\n".join(json.dumps(row) for row in rows))
        for i in range(9):
            put(root / f"{split}/{i}.png", f"picture {i}")
    return aged(root)


def tars(root: Path) -> Path:
    root.mkdir(parents=True)
    for shard in range(2):
        with tarfile.open(root / f"x-{shard}.tar", "w") as tar:
            for i in range(3):
                for suffix, text in ((".png", f"picture {shard} {i}"), (".txt", f"caption {i}")):
                    member = tarfile.TarInfo(f"{i}{suffix}")
                    member.size = len(text)
                    tar.addfile(member, io.BytesIO(text.encode()))
    return aged(root)


def zipped(root: Path) -> Path:
    root.mkdir(parents=True)
    with zipfile.ZipFile(root / "x.zip", "w") as archive:
        for i in range(4):
            archive.writestr(f"a/{i}.png", f"picture {i}")
            archive.writestr(f"a/{i}.txt", f"caption {i}")
    aged(root)
    return root / "x.zip"


def braces(root: Path) -> Path:
    return tars(root) / "x-{0..1}.tar"


KINDS = [folder, metadata, tars, zipped, braces]


def indexed(root: Path, captions: str = "auto") -> IndexTable | None:
    """What a run does: take the index where there is one, else make and keep one; None where it was made."""
    sign, newest = signature(root, captions)
    found = load_index(root, captions, sign)
    if found is None:
        save_index(table_of_records(find_pictures(root, captions=captions)), captions, sign, newest)
    return found


@pytest.mark.parametrize("make", KINDS)
def test_it_gives_back_every_record_and_picture(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    root = make(tmp_path / "set")
    pictures = find_pictures(root)
    assert indexed(root) is None
    kept = indexed(root)
    assert kept is not None
    for table in (kept, table_of_records(pictures)):
        assert (table.notes, table.skipped, table.checksum) == (pictures.notes, pictures.skipped, kept.checksum)
        assert table.sizes.sum() == len(table) == len(pictures.records)
        places = [(group, row) for group, size in enumerate(table.sizes.tolist()) for row in range(size)]
        assert [table.record(*place) for place in places] == list(pictures.records)
        assert [table.row(*place, most_bytes=0)[1] for place in places] == [pictures.read(r) for r in pictures.records]
        assert table.uncaptioned() == sum(not r.captions and r.split != "test" for r in pictures.records)


def change_a_caption(root: Path) -> None:
    path = root / "1/1.txt"
    path.write_text("caption 2\nand ü 1\n")  # as long as it was
    os.utime(path, ns=(OLD, OLD + 1))


def add_a_picture(root: Path) -> None:
    put(root / "1/new.png", "x")
    os.utime(root / "1/new.png", ns=(OLD, OLD))


def change_a_size(root: Path) -> None:
    put(root / "1/1.png", "another picture")
    os.utime(root / "1/1.png", ns=(OLD, OLD))


def remove_a_picture(root: Path) -> None:
    (root / "1/1.png").unlink()


def rename_a_caption(root: Path) -> None:
    (root / "1/1.txt").rename(root / "1/8.txt")


CHANGES = [change_a_caption, add_a_picture, change_a_size, remove_a_picture, rename_a_caption]


@pytest.mark.parametrize("change", CHANGES)
def test_a_folder_that_changed_is_looked_through_again(tmp_path: Path, change: Callable[[Path], None]) -> None:
    root = folder(tmp_path / "set")
    assert indexed(root) is None
    assert indexed(root) is not None
    assert indexed(root, "none") is None, "it is of other captions"
    change(root)
    for name in range(7):
        os.utime(root / str(name), ns=(OLD, OLD))  # not even the times of folders are needed
    assert indexed(root) is None
    found = indexed(root)
    assert found is not None
    assert len(found) == len(find_pictures(root).records)


def test_a_damaged_index_is_made_anew(tmp_path: Path, cache: Path) -> None:
    root = metadata(tmp_path / "set")
    indexed(root)
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    for damaged in (
        b"",
        whole[:-1],
        whole[:200],
        whole.replace(b"one", b"two", 1),
        b"[]\n",
        b"{}\n" + whole,
        b"\xff\n",
    ):
        path.write_bytes(damaged)
        assert indexed(root) is None, damaged[:30]
        assert path.read_bytes() == whole, "it was written again"
    path.unlink()
    path.mkdir()
    assert indexed(root) is None
    assert indexed(root) is None


def test_where_it_cannot_be_written_nothing_is_said(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = metadata(tmp_path / "set")
    put(tmp_path / "file", "no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert indexed(root) is None
    assert indexed(root) is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index.os, "replace", lambda *arguments: (_ for _ in ()).throw(OSError("full")))
    assert indexed(root) is None
    assert list(cache.iterdir()) == []


def test_what_was_written_a_moment_ago_is_not_trusted(tmp_path: Path, cache: Path) -> None:
    """Within one tick of the clock a file may change once more and look the same."""
    root = metadata(tmp_path / "set")
    os.utime(root / "train/metadata.jsonl")
    indexed(root)
    assert not cache.exists()


@pytest.mark.parametrize("make", [folder, tars])
def test_a_picture_or_archive_that_changes_or_goes_is_named(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    root = make(tmp_path / "set")
    table = table_of_records(find_pictures(root))
    path = table.record(0, 0).locate.path
    os.utime(path)
    with pytest.raises(ChangedError, match=rf"{path.name} was written anew"):
        table.row(0, 0, most_bytes=0)
    path.unlink()
    with pytest.raises(ChangedError, match=rf"{path.name} cannot be read any more"):
        table.row(0, 0, most_bytes=0)
