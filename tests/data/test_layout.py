"""Details of layouts; that all of them agree is in test_layouts.py, their mistakes are there and in test_folder.py."""

import io
import json
import tarfile
import zipfile
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet
import pytest

from unstir.data import PictureSet, archive, check_captions, find_pictures
from unstir.data.layout import SOURCES, has_metadata, read_layout
from unstir.data.tree import scan_folder


def put(path: Path, content: str | bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def captions(pictures: PictureSet) -> dict[str, tuple[str, ...]]:
    return {record.key: record.captions for record in pictures.records}


def repeats(pictures: PictureSet) -> dict[str, int]:
    return {record.key: record.repeats for record in pictures.records}


def test_a_tree_is_all_that_is_needed(tmp_path: Path) -> None:
    put(tmp_path / "cat" / "1.png")
    tree = scan_folder(tmp_path)
    assert captions(read_layout(tree)) == {"cat/1.png": ("cat",)}
    assert not has_metadata(tree)
    put(tmp_path / "cat" / "metadata.csv", "file_name,text\n1.png,x\n")
    assert has_metadata(scan_folder(tmp_path))
    assert list(SOURCES) == ["auto", "metadata", "sidecar", "folder", "filename", "none"]


def test_file_names_are_captions_only_where_there_is_nothing_else(tmp_path: Path) -> None:
    put(tmp_path / "red fox.png")
    put(tmp_path / "train" / "blue_whale_02.png")
    put(tmp_path / "test" / "green tree.png")
    pictures = find_pictures(tmp_path)
    assert captions(pictures) == {
        "red fox.png": ("red fox",),
        "test/green tree.png": ("green tree",),
        "train/blue_whale_02.png": ("blue whale",),
    }
    assert pictures.notes[-1] == (
        "The captions are the names of the files, for there are no others; go without them with --captions none"
        " --allow-missing-captions."
    )
    assert find_pictures(tmp_path, captions="none").notes == ()
    put(tmp_path / "red fox.txt", "a fox")
    pictures = find_pictures(tmp_path)
    assert pictures.notes == ()
    with pytest.raises(ValueError, match=r"2 of the 3 .*, take the names of the files with --captions filename, or go"):
        check_captions(pictures, allow_missing=False)
    pictures = find_pictures(tmp_path, captions="filename")
    assert captions(pictures)["train/blue_whale_02.png"] == ("blue whale",)
    check_captions(pictures, allow_missing=False)


def test_file_names_that_are_not_used_are_pointed_at(tmp_path: Path) -> None:
    for number in range(3):
        put(tmp_path / f"holiday_{number}.png")
    match = r"^None of the 3 pictures in .* has a caption; add a metadata\.jsonl .*, or go on without captions"
    with pytest.raises(ValueError, match=match) as caught:
        check_captions(find_pictures(tmp_path), allow_missing=False)
    assert "filename" not in str(caught.value)
    put(tmp_path / "beach.png")
    check_captions(find_pictures(tmp_path), allow_missing=False)
    match = r"None of the 4 .*, take the names of the files with --captions filename, or go on without"
    with pytest.raises(ValueError, match=match):
        check_captions(find_pictures(tmp_path, captions="none"), allow_missing=False)


def test_file_names_on_demand_whatever_they_are(tmp_path: Path) -> None:
    put(tmp_path / "IMG_1.png")
    put(tmp_path / "sub" / "2.png")
    put(tmp_path / "sub" / "_.png")
    assert captions(find_pictures(tmp_path, captions="filename")) == {
        "IMG_1.png": ("IMG",),
        "sub/2.png": ("2",),
        "sub/_.png": (),
    }


def test_kohya_folders_need_all_folders_to_be_of_this_kind(tmp_path: Path) -> None:
    put(tmp_path / "10_sks dog" / "1.png")
    put(tmp_path / "train.txt", "no caption")
    pictures = find_pictures(tmp_path)
    assert captions(pictures) == {"10_sks dog/1.png": ("sks dog",)}
    assert repeats(pictures) == {"10_sks dog/1.png": 10}
    put(tmp_path / "7up" / "1.png")
    pictures = find_pictures(tmp_path)
    assert captions(pictures) == {"7up/1.png": ("7up",), "10_sks dog/1.png": ("10 sks dog",)}
    assert set(repeats(pictures).values()) == {1}
    assert pictures.notes == ()


def test_captions_beside_pictures_in_kohya_folders(tmp_path: Path) -> None:
    put(tmp_path / "train" / "10_sks dog" / "1.png")
    put(tmp_path / "train" / "10_sks dog" / "1.txt", "a dog on grass")
    put(tmp_path / "train" / "2_dog" / "1.png")
    pictures = find_pictures(tmp_path)
    assert captions(pictures) == {"train/2_dog/1.png": (), "train/10_sks dog/1.png": ("a dog on grass",)}
    assert repeats(pictures) == {"train/2_dog/1.png": 2, "train/10_sks dog/1.png": 10}


def test_metadata_says_the_repeats_where_there_is_metadata(tmp_path: Path) -> None:
    put(tmp_path / "10_sks dog" / "1.png")
    put(tmp_path / "10_sks dog" / "2.png")
    rows = [{"file_name": "1.png", "text": "a dog", "repeats": 3}, {"file_name": "2.png", "text": "a dog"}]
    put(tmp_path / "10_sks dog" / "metadata.jsonl", "\n".join(json.dumps(row) for row in rows))
    pictures = find_pictures(tmp_path)
    assert list(repeats(pictures).values()) == [3, 1]
    assert pictures.notes == ()


@pytest.mark.parametrize("kind", ["jsonl", "csv", "metadata.parquet", "parquet", "tar"])
@pytest.mark.parametrize(("value", "expected"), [(7, 7), (None, 1), (0, None), (-1, None), (2.5, None)])
def test_repeats_in_every_format(kind: str, value: object, expected: int | None, tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    if kind == "jsonl":
        put(tmp_path / "metadata.jsonl", json.dumps({"file_name": "a.png", "text": "x", "repeats": value}))
    elif kind == "csv":
        put(tmp_path / "metadata.csv", f"file_name,text,repeats\na.png,x,{'' if value is None else value}\n")
    elif kind == "metadata.parquet":
        columns = {"file_name": ["a.png"], "text": ["x"], "repeats": pyarrow.array([value], pyarrow.float64())}
        parquet.write_table(pyarrow.table(columns), tmp_path / "metadata.parquet")
    elif kind == "parquet":
        (tmp_path / "a.png").unlink()
        parquet.write_table(pyarrow.table({"image": [b""], "text": ["x"], "repeats": [value]}), tmp_path / "x.parquet")
    else:
        (tmp_path / "a.png").unlink()
        with tarfile.open(tmp_path / "x.tar", "w") as archive:
            for name, content in (("a.png", b""), ("a.json", json.dumps({"text": "x", "repeats": value}).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    if expected is not None:
        assert list(repeats(find_pictures(tmp_path)).values()) == [expected]
        return
    with pytest.raises(
        ValueError, match=r"(a\.json|line [12]|row 0.*): repeats is .*, expected a whole number from 1\.$"
    ):
        find_pictures(tmp_path)


def test_a_tar_with_text_and_json(tmp_path: Path) -> None:
    files = {
        "1.png": b"", "1.json": b'{"caption": "from json", "keywords": ["k"]}', "1.txt": b"from text\nagain",
        "2.png": b"", "2.json": b'{"text": ["one", "two"], "caption": "three"}',
        "3.png": b"", "3.json": b'{"width": 7}',
        "4.png": b"", "4.cls": b"7", "5.txt": b"alone", "6.json": b"{}",
    }  # fmt: skip
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    pictures = find_pictures(tmp_path / "x.tar")
    assert list(captions(pictures).values()) == [("from text", "again"), ("one", "two"), (), ()]
    assert pictures.records[0].keywords == ("k",)
    assert [record.source for record in pictures.records] == ["sidecar", "sidecar", "none", "none"]
    assert dict(pictures.skipped) == {
        "4.cls": "not a picture: .cls",
        "5.txt": "no picture beside it has this name",
        "6.json": "not a picture: .json",
    }


def test_why_files_are_not_used(tmp_path: Path) -> None:
    for name in ("a.png", "b.HEIC", "c.pdf", "d", "e.parquet", "f.tar", "g.txt", "a.caption"):
        put(tmp_path / name)
    put(tmp_path / "metadata.jsonl", '{"file_name": "a.png", "text": "x"}')
    assert dict(find_pictures(tmp_path).skipped) == {
        "a.caption": "it is empty, or the captions are from elsewhere",
        "b.HEIC": "pictures of this kind are not read, save as PNG or JPEG: .heic",
        "c.pdf": "not a picture: .pdf",
        "d": "not a picture: no suffix",
        "e.parquet": "parquet files are not read where there are pictures outside of them",
        "f.tar": "tar files are not read where there are pictures outside of them",
        "g.txt": "no picture beside it has this name",
    }
    skipped = dict(find_pictures(tmp_path, captions="none").skipped)
    assert skipped["metadata.jsonl"] == "the captions are from 'none'"


def test_the_first_reason_is_named_where_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to("nothing")
    with pytest.raises(
        ValueError, match=r"There are no pictures in .* \(the first that is skipped is a\.png: a link that"
    ):
        find_pictures(tmp_path)


def test_a_bomb_that_metadata_names_is_listed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its row does not make it a file that does not exist; alone, it is the reason why there are no pictures."""
    monkeypatch.setattr(archive, "MAX_BYTES", 1000)
    rows = '{"file_name": "bomb.png", "text": "a"}\n'
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("bomb.png", bytes(5000))
        file.writestr("metadata.jsonl", rows)
    with pytest.raises(ValueError, match=r"no pictures in .*bomb\.png: it has 5,000 bytes, of which 1,000 are allowed"):
        find_pictures(path)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("good.png", b"...")
    found = find_pictures(path)
    assert [record.key for record in found.records] == ["good.png"]
    assert dict(found.skipped)["bomb.png"].startswith("it has 5,000 bytes")
