"""Records, sets of them, and the way to the bytes."""

import os
from pathlib import Path

import pytest

from unstir.data import records
from unstir.data.archive import InArchive, InZip
from unstir.data.records import InFile, InParquet, PictureSet, Record, is_picture, natural, storage_order


def record(key: str, locate: object = None, split: str = "train") -> Record:
    return Record(key=key, captions=(), source="none", split=split, locate=locate or InFile(path=Path(key)))


def test_natural_order() -> None:
    names = ["a10", "a2", "B", "a02", "10", "9", "a2b10", "a2b9", "é"]
    assert sorted(names, key=natural) == ["9", "10", "B", "a02", "a2", "a2b9", "a2b10", "a10", "é"]


def test_storage_order() -> None:
    places = [
        InArchive(path=Path("b.tar"), offset=1024, size=1),
        InParquet(path=Path("a.parquet"), group=1, row=0),
        InParquet(path=Path("a.parquet"), group=0, row=5),
        InArchive(path=Path("b.tar"), offset=512, size=1),
        InZip(path=Path("c.zip"), member="x"),
        InFile(path=Path("0.png")),
    ]
    ordered = storage_order(record(str(index), place) for index, place in enumerate(places))
    assert [int(one.key) for one in ordered] == [5, 2, 1, 3, 0, 4]


def test_a_file_larger_than_allowed_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"x")
    pictures = PictureSet(root=tmp_path, records=(record("a.png", InFile(path=path)),))
    assert pictures.read(pictures.records[0]) == b"x"
    os.truncate(path, records.MAX_BYTES + 1)  # a sparse file: large, and nothing on disk
    with pytest.raises(ValueError, match=r"a\.png has 268,435,457 bytes, of which 268,435,456 are allowed; make it sm"):
        pictures.read(pictures.records[0])


def test_splits() -> None:
    pictures = PictureSet(root=Path("."), records=(record("a"), record("b", split="test")))
    assert [one.key for one in pictures.split("test").records] == ["b"]
    with pytest.raises(ValueError, match="no split 'dev'"):
        pictures.split("dev")


def test_repeats_are_one_unless_said() -> None:
    assert record("a").repeats == 1


def test_pictures_by_their_names() -> None:
    assert all(is_picture(name) for name in ("a.png", "b/c.JPEG", "d.tif"))
    assert not any(is_picture(name) for name in ("a", ".png", "a.png.txt", "a.heic"))
