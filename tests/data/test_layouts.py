"""One small set in every layout gives the same pictures and captions, byte for byte; and which source goes first."""

import csv
import io
import itertools
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from unstir.data import PictureSet, check_captions, find_pictures

# One caption each, which may also stand in the name of a file or folder; one picture is known by several in addition.
CAPTIONS = (
    "red fox",
    "green tree",
    "blue whale in the sea",
    "rotes Füchslein",
    "赤い狐",
    "woman with white hair 👩\u200d🦳",
    "don't panic",
)
SEVERAL = (("red fox", "a fox, red as rust", "Fuchs"), *((caption,) for caption in CAPTIONS[1:]))


def picture(index: int) -> bytes:
    pixels = np.random.default_rng(index).integers(0, 256, (5 + index, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


PICTURES = tuple(picture(index) for index in range(len(CAPTIONS)))


def put(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def numbered(folder: Path) -> list[Path]:
    return [put(folder / f"{index:03d}.png", data) for index, data in enumerate(PICTURES)]


def rows(folder: str = "") -> list[dict[str, object]]:
    return [{"file_name": f"{folder}{index:03d}.png", "text": list(texts)} for index, texts in enumerate(SEVERAL)]


def jsonl(root: Path, of: list[dict[str, object]]) -> None:
    put(root / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in of))


def in_metadata_jsonl(root: Path) -> Path:
    numbered(root)
    jsonl(root, rows())
    return root


def in_jsonl_above(root: Path) -> Path:
    numbered(root / "images")
    jsonl(root, rows("images/"))
    return root


def in_jsonl_with_byte_order_mark(root: Path) -> Path:
    numbered(root)
    lines = [json.dumps({"file_name": row["file_name"], "caption": row["text"]}, ensure_ascii=False) for row in rows()]
    put(root / "metadata.jsonl", "\ufeff" + "\r\n\r\n".join(lines))
    return root


def in_metadata_csv(root: Path) -> Path:
    numbered(root)
    with open(root / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["", "file_name", "text"])  # pandas leaves the name of its index empty
        writer.writeheader()
        writer.writerows({"": i, "file_name": f"{i:03d}.png", "text": text} for i, text in enumerate(CAPTIONS))
    return root


def in_metadata_parquet(root: Path) -> Path:
    numbered(root)
    columns = {name: [row[name] for row in rows()] for name in ("file_name", "text")}
    parquet.write_table(pyarrow.table(columns), root / "metadata.parquet")
    return root


def in_txt(root: Path) -> Path:
    for path, texts in zip(numbered(root), SEVERAL, strict=True):
        put(path.with_suffix(".txt"), "\ufeff" + "\r\n".join(texts) + "\r\n")
    return root


def in_caption(root: Path) -> Path:
    for path, texts in zip(numbered(root / "images"), SEVERAL, strict=True):
        put(path.with_suffix(".caption"), "\n\n".join(texts))
    return root


def in_class_folders(root: Path) -> Path:
    for caption, data in zip(CAPTIONS, PICTURES, strict=True):
        put(root / caption.replace(" ", "_") / "1.png", data)
    return root


def in_class_folders_of_splits(root: Path) -> Path:
    for index, (caption, data) in enumerate(zip(CAPTIONS, PICTURES, strict=True)):
        put(root / ("train", "val", "test")[index % 3] / caption.replace(" ", "-") / "1.png", data)
    return root


def in_split_folders(root: Path) -> Path:
    for split, parity in (("train", 0), ("validation", 1)):
        here = [index for index in range(len(PICTURES)) if index % 2 == parity]
        for index in here:
            put(root / split / f"{index:03d}.png", PICTURES[index])
        jsonl(root / split, [rows()[index] for index in here])
    return root


def in_kohya_folders(root: Path) -> Path:
    for index, (caption, data) in enumerate(zip(CAPTIONS, PICTURES, strict=True)):
        put(root / f"{10 * index + 1}_{caption}" / "1.png", data)
    return root


def in_kohya_folders_with_captions(root: Path) -> Path:
    for index, (texts, data) in enumerate(zip(SEVERAL, PICTURES, strict=True)):
        put(root / f"{3 + index % 2}_sks thing" / f"{index}.png", data)
        put(root / f"{3 + index % 2}_sks thing" / f"{index}.caption", "\n".join(texts))
    return root


def in_file_names(root: Path) -> Path:
    for index, (caption, data) in enumerate(zip(CAPTIONS, PICTURES, strict=True)):
        name = caption.replace(" ", "_") if index % 2 else caption
        put(root / (name + ("", "_02", " (3)", "-4")[index % 4] + ".png"), data)
    return root


def in_parquet(root: Path) -> Path:
    (root / "data").mkdir(parents=True)
    columns = {
        "image": [{"bytes": data, "path": None} for data in PICTURES],
        "text": [list(texts) for texts in SEVERAL],
    }
    for number, part in enumerate((slice(0, 4), slice(4, None))):
        table = pyarrow.table({name: column[part] for name, column in columns.items()})
        parquet.write_table(table, root / f"data/train-{number:05d}-of-00002.parquet", row_group_size=2)
    return root


def in_parquet_of_binaries(root: Path) -> Path:
    put(root / "x.parquet", b"")
    table = pyarrow.table({"image": list(PICTURES), "caption": [list(texts) for texts in SEVERAL]})
    parquet.write_table(table, root / "x.parquet", row_group_size=3)
    return root / "x.parquet"


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def shard(path: Path, indices: range, *, kind: str, begin: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for index in indices:
            key = f"{index - begin:06d}"
            add(archive, f"{key}.png", PICTURES[index])
            if kind == "json":
                add(archive, f"{key}.json", json.dumps({"caption": list(SEVERAL[index]), "width": 8}).encode())
            else:
                add(archive, f"{key}.{kind}", "\n".join(SEVERAL[index]).encode())
    return path


def in_one_tar(root: Path) -> Path:
    return shard(root / "x.tar", range(len(PICTURES)), kind="txt")


def in_tar_shards(root: Path) -> Path:
    for number, begin in enumerate((0, 3, 6)):  # the keys begin anew in each
        shard(root / f"{number:05d}.tar", range(begin, min(begin + 3, 7)), kind="json", begin=begin)
    return root


def in_tar_shards_of_splits(root: Path) -> Path:
    shard(root / "train" / "0.tar", range(4), kind="txt")
    shard(root / "val-0.tar", range(4, 7), kind="caption")
    return root


def in_a_list_of_tars(root: Path) -> Path:
    for number in range(7):
        shard(root / f"x-{number:06d}.tar", range(number, number + 1), kind="txt")
    return root / "x-{000000..000006}.tar"


def in_a_tarred_folder(root: Path) -> Path:
    in_metadata_jsonl(root / "set")
    with tarfile.open(root / "set.tar", "w") as archive:
        archive.add(root / "set", arcname=".")
    return root / "set.tar"


def in_a_tar_of_class_folders(root: Path) -> Path:
    in_class_folders(root / "set")
    with tarfile.open(root / "set.tar", "w:", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted((root / "set").rglob("*.png")):
            archive.add(path, arcname=str(path.relative_to(root / "set")))
    return root / "set.tar"


def zipped(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def stylegan(root: Path, content: dict[str, object]) -> Path:
    files = {f"{i // 4:05d}/img{i:08d}.png": data for i, data in enumerate(PICTURES)}
    return zipped(root / "x.zip", {**files, "dataset.json": json.dumps(content).encode()}, zipfile.ZIP_STORED)


FILES = tuple(f"{i // 4:05d}/img{i:08d}.png" for i in range(len(PICTURES)))


def in_stylegan_zip_of_texts(root: Path) -> Path:
    return stylegan(root, {"labels": list(zip(FILES, CAPTIONS, strict=True))})


def in_stylegan_zip_of_numbers(root: Path) -> Path:
    order = [3, 1, 0, 2, 6, 5, 4]
    names = [CAPTIONS[order.index(number)] for number in range(7)]
    return stylegan(root, {"labels": list(zip(FILES, order, strict=True)), "names": names})


def in_stylegan_zip_of_named_numbers(root: Path) -> Path:
    names = {str(10 * i): caption for i, caption in enumerate(CAPTIONS)}
    return stylegan(root, {"labels": [[file, 10 * i] for i, file in enumerate(FILES)], "class_names": names})


def in_zip(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
    def made(root: Path) -> Path:
        folder = make(root / "set")
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        return zipped(root / "x.zip", files)

    return made


# layout -> (what makes it, source of the captions, whether it has room for several captions)
LAYOUTS: dict[str, tuple[Callable[[Path], Path], str, bool]] = {
    "metadata.jsonl": (in_metadata_jsonl, "metadata", True),
    "metadata.jsonl above": (in_jsonl_above, "metadata", True),
    "metadata.jsonl with a byte-order mark": (in_jsonl_with_byte_order_mark, "metadata", True),
    "metadata.csv": (in_metadata_csv, "metadata", False),
    "metadata.parquet": (in_metadata_parquet, "metadata", True),
    ".txt": (in_txt, "sidecar", True),
    ".caption": (in_caption, "sidecar", True),
    "class folders": (in_class_folders, "folder", False),
    "class folders of splits": (in_class_folders_of_splits, "folder", False),
    "split folders": (in_split_folders, "metadata", True),
    "kohya folders": (in_kohya_folders, "folder", False),
    "kohya folders with captions": (in_kohya_folders_with_captions, "sidecar", True),
    "file names": (in_file_names, "filename", False),
    "Hugging Face parquet": (in_parquet, "parquet", True),
    "parquet of binaries": (in_parquet_of_binaries, "parquet", True),
    "one tar": (in_one_tar, "sidecar", True),
    "tar shards": (in_tar_shards, "sidecar", True),
    "tar shards of splits": (in_tar_shards_of_splits, "sidecar", True),
    "list of tars": (in_a_list_of_tars, "sidecar", True),
    "tarred folder": (in_a_tarred_folder, "metadata", True),
    "tar of class folders": (in_a_tar_of_class_folders, "folder", False),
    "StyleGAN zip, texts": (in_stylegan_zip_of_texts, "metadata", False),
    "StyleGAN zip, numbers": (in_stylegan_zip_of_numbers, "metadata", False),
    "StyleGAN zip, named numbers": (in_stylegan_zip_of_named_numbers, "metadata", False),
    "zip with metadata.jsonl": (in_zip(in_metadata_jsonl), "metadata", True),
    "zip with metadata.csv": (in_zip(in_metadata_csv), "metadata", False),
    "zip with metadata.parquet": (in_zip(in_metadata_parquet), "metadata", True),
    "zip with .txt": (in_zip(in_txt), "sidecar", True),
    "zip of class folders": (in_zip(in_class_folders), "folder", False),
    "zip of kohya folders": (in_zip(in_kohya_folders), "folder", False),
    "zip with file names": (in_zip(in_file_names), "filename", False),
    "zip of split folders": (in_zip(in_split_folders), "metadata", True),
}
TELLING = ("kohya", "file names")  # of these layouts the owner is told how they were understood


def pairs(pictures: PictureSet) -> list[tuple[bytes, tuple[str, ...]]]:
    """(bytes, captions) in the order of the set; whose order the keys give, which differ from layout to layout."""
    found = {pictures.read(record): record.captions for record in pictures.records}
    assert len(found) == len(pictures.records)
    return sorted(found.items(), key=lambda pair: PICTURES.index(pair[0]))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_pictures_and_captions(layout: str, tmp_path: Path) -> None:
    make, source, has_several = LAYOUTS[layout]
    pictures = find_pictures(make(tmp_path))
    texts = SEVERAL if has_several else tuple((caption,) for caption in CAPTIONS)
    assert pairs(pictures) == list(zip(PICTURES, texts, strict=True))
    assert {record.source for record in pictures.records} == {source}
    assert pictures.skipped == ()
    assert any(word in layout for word in TELLING) == bool(pictures.notes)
    assert len({record.key for record in pictures.records}) == len(PICTURES)
    check_captions(pictures, allow_missing=False)


@pytest.mark.parametrize(("layout", "splits"), [
    ("split folders", ["train", "validation"]),
    ("zip of split folders", ["train", "validation"]),
    ("tar shards of splits", ["train", "validation"]),
    ("class folders of splits", ["test", "train", "validation"]),
    ("Hugging Face parquet", ["train"]),
    ("tar shards", ["train"]),
])  # fmt: skip
def test_splits(layout: str, splits: list[str], tmp_path: Path) -> None:
    pictures = find_pictures(LAYOUTS[layout][0](tmp_path))
    assert sorted({record.split for record in pictures.records}) == splits


@pytest.mark.parametrize("layout", LAYOUTS)
def test_none_takes_no_captions_from_any_layout(layout: str, tmp_path: Path) -> None:
    pictures = find_pictures(LAYOUTS[layout][0](tmp_path), captions="none")
    assert pairs(pictures) == [(data, ()) for data in PICTURES]
    assert {record.source for record in pictures.records} == {"none"}


def test_repeats_are_the_numbers_of_kohya_folders(tmp_path: Path) -> None:
    pictures = find_pictures(in_kohya_folders(tmp_path / "a"))
    assert [record.repeats for record in pictures.records] == [1, 11, 21, 31, 41, 51, 61]
    assert pictures.notes[0].startswith("The numbers before the names of the folders are repeats in an epoch: 1 times")
    pictures = find_pictures(in_kohya_folders_with_captions(tmp_path / "b"))
    assert [record.repeats for record in pictures.records] == [3] * 4 + [4] * 3


# In the order in which they count.
SPOKEN = ("metadata", "sidecar", "folder", "filename")


@pytest.mark.parametrize(
    "present", [chosen for n in range(5) for chosen in itertools.combinations(SPOKEN, n)], ids=lambda p: "+".join(p)
)
@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_precedence(present: tuple[str, ...], kind: str, tmp_path: Path) -> None:
    """Of the sources that are there the first one counts; one that is asked for by name counts before all others."""
    root = tmp_path / "set"
    folder, stem = ("from folder" if "folder" in present else "."), ("from-filename" if "filename" in present else "1")
    put(root / folder / f"{stem}.png", PICTURES[0])
    if "metadata" in present:
        jsonl(root, [{"file_name": f"{folder}/{stem}.png", "text": "from metadata"}])
    if "sidecar" in present:
        put(root / folder / f"{stem}.txt", "from sidecar")
    files = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    if kind == "zip":
        root = zipped(tmp_path / "x.zip", files)
    elif kind == "tar":
        root = tmp_path / "x.tar"
        with tarfile.open(root, "w") as archive:
            for name, content in files.items():
                add(archive, name, content)
    (record,) = find_pictures(root).records
    expected = present[0] if present else "none"
    assert record.source == expected
    assert record.captions == ((f"from {expected}",) if present else ())
    for source in present:
        chosen = find_pictures(root, captions=source)
        assert chosen.records[0].captions == (f"from {source}",)
        assert chosen.records[0].source == source
        others = {"metadata": "metadata.jsonl", "sidecar": f"{folder}/{stem}.txt".removeprefix("./")}
        assert {key for key, _ in chosen.skipped} == {
            others[name] for name in others if name in set(present) - {source}
        }
    for source in {"metadata", "sidecar", "folder"} - set(present):
        with pytest.raises(ValueError, match=rf"should come from '{source}', but there is no .* with --captions\.$"):
            find_pictures(root, captions=source)


def test_of_two_sidecars_the_txt_counts(tmp_path: Path) -> None:
    put(tmp_path / "a.png", PICTURES[0])
    put(tmp_path / "a.caption", "from caption")
    put(tmp_path / "a.txt", "from txt")
    (record,) = find_pictures(tmp_path).records
    assert record.captions == ("from txt",)


def test_a_source_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="captions is 'sidecars', expected one of auto, metadata, sidecar, folder, "):
        find_pictures(tmp_path, captions="sidecars")
    with pytest.raises(ValueError, match=r"those of parquet files are in their columns; choose auto or none"):
        find_pictures(in_parquet(tmp_path), captions="filename")


def test_tar_shards_go_before_parquet_and_after_loose_pictures(tmp_path: Path) -> None:
    in_tar_shards(tmp_path)
    table = pyarrow.table({"key": ["000000"], "caption": ["x"]})  # img2dataset puts such a file beside each shard
    parquet.write_table(table, tmp_path / "00000.parquet")
    put(tmp_path / "00000_stats.json", "{}")
    pictures = find_pictures(tmp_path)
    assert len(pictures.records) == 7
    assert [key for key, _ in pictures.skipped] == ["00000.parquet", "00000_stats.json"]
    put(tmp_path / "a.png", PICTURES[0])
    pictures = find_pictures(tmp_path)
    assert [record.key for record in pictures.records] == ["a.png"]
    assert "tar files are not read where there are pictures outside of them" in dict(pictures.skipped)["00000.tar"]


def test_the_keys_of_archives(tmp_path: Path) -> None:
    assert find_pictures(in_one_tar(tmp_path / "a")).records[0].key == "000000.png"
    assert find_pictures(in_tar_shards(tmp_path / "b")).records[3].key == "00001.tar/000000.png"
    assert find_pictures(in_a_list_of_tars(tmp_path / "c")).records[1].key == "x-000001.tar/000001.png"
    assert find_pictures(in_stylegan_zip_of_texts(tmp_path / "d")).records[0].key == "00000/img00000000.png"


# Mistakes that concern archives and sources; those of folders and parquet files are in test_folder.py.
def cut(path: Path, share: float) -> Path:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


def gzipped(root: Path, name: str) -> Path:
    with tarfile.open(root / name, "w:gz") as archive:
        add(archive, "a.png", PICTURES[0])
    return root / name


def without_one_shard(root: Path) -> Path:
    path = in_a_list_of_tars(root)
    (root / "x-000003.tar").unlink()
    return path


def only_compressed_shards(root: Path) -> Path:
    gzipped(root, "0.tar.gz")
    return root


def only_a_zip(root: Path) -> Path:
    in_stylegan_zip_of_texts(root)
    return root


def metadata_elsewhere(root: Path) -> Path:
    put(root / "images/fox.png", PICTURES[0])
    jsonl(root / "captions", [{"file_name": "fox.png", "text": "red fox"}])
    return root


def zip_that_disagrees(root: Path) -> Path:
    jsonl(root / "set", [{"file_name": "a.png", "text": "x"}])
    files = {"a.png": PICTURES[0], "metadata.csv": b"file_name,text\na.png,y\n"}
    return zipped(root / "x.zip", {**files, "metadata.jsonl": (root / "set/metadata.jsonl").read_bytes()})


def labels(*pairs: object, **more: object) -> Callable[[Path], Path]:
    return lambda root: zipped(
        root / "x.zip", {"a.png": PICTURES[0], "dataset.json": json.dumps({"labels": pairs, **more}).encode()}
    )


MISTAKES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "nothing there": (
        lambda root: root / "x.tar",
        r"no folder or parquet file .*, nor a \.tar or \.zip .*check the path",
    ),
    "truncated tar": (
        lambda root: cut(in_one_tar(root), 0.3),
        r"x\.tar is damaged or no tar \(its end is missing\); fetch or write it again",
    ),
    "truncated zip": (
        lambda root: cut(in_stylegan_zip_of_texts(root), 0.7),
        r"x\.zip is damaged or no zip .*fetch or w",
    ),
    "empty tar": (lambda root: put(root / "x.tar", b""), r"x\.tar is damaged or no tar \(empty file\); fetch or write"),
    "text as tar": (lambda root: put(root / "x.tar", "a" * 2000), r"x\.tar is damaged or no tar"),
    "text as zip": (lambda root: put(root / "x.zip", "a" * 2000), r"x\.zip is damaged or no zip"),
    "compressed tar": (lambda root: gzipped(root, "x.tar.gz"), r"x\.tar\.gz is compressed.*unpack it, or repack it"),
    "compressed .tgz": (lambda root: gzipped(root, "x.tgz"), r"x\.tgz is compressed.*unpack it, or repack it"),
    "compressed in secret": (lambda root: gzipped(root, "x.tar"), r"x\.tar is compressed.*unpack it, or repack it"),
    "compressed shards": (only_compressed_shards, r"1 archives such as 0\.tar\.gz; .*unpack or repack"),
    "a zip in a folder": (only_a_zip, r"1 archives such as x\.zip; give a \.zip itself as the path"),
    "one shard is missing": (
        without_one_shard,
        r"1 of the 7 shards of .* not there, the first is x-000003\.tar; fetch",
    ),
    "a range that runs backwards": (lambda root: root / "x-{7..3}.tar", r"\{7\.\.3\} has to run upwards"),
    "a range without end": (lambda root: root / "x-{0..999999999}.tar", r"upwards, and over at most 100,000 shards"),
    "a tar without pictures": (
        lambda root: shard(root / "x.tar", range(0), kind="txt"),
        r"There are no pictures in .*x\.tar: no file in it",
    ),
    "a zip without pictures": (
        lambda root: zipped(root / "x.zip", {"a.pdf": b""}),
        r"There are no pictures in .*x\.zip",
    ),
    "metadata in a zip points elsewhere": (
        lambda root: zipped(root / "x.zip", {"b/a.png": b"", "metadata.jsonl": b'{"file_name": "a.png", "text": "x"}'}),
        r"x\.zip/metadata\.jsonl names do not exist, the first is 'a\.png'; file_name is .* from where a\.png is 'b/a\.png'",
    ),
    "metadata in another folder": (
        metadata_elsewhere,
        r"the first is 'fox\.png'; file_name is relative to .*captions, from where fox\.png is '\.\./images/fox\.png'",
    ),
    "metadata that disagree": (zip_that_disagrees, r"x\.zip has both metadata\.jsonl and metadata\.csv; keep one"),
    "labels that point elsewhere": (labels(["b.png", "x"]), r"1 of the 1 files .*dataset\.json names do not exist"),
    "labels that point out": (labels(["../a.png", "x"]), r"label 0: file_name '\.\./a\.png' is outside the folder"),
    "labels twice": (
        labels(["a.png", "x"], ["./a.png", "y"]),
        r"label 1: '\./a\.png' is named a second time; keep one",
    ),
    "labels of vectors": (
        labels(["a.png", [0.1, 0.2]]),
        r"label 0: its label is \[0\.1, 0\.2\], expected text or a list",
    ),
    "labels without files": (labels("cat"), r"label 0 is 'cat', expected a list of two"),
    "labels without a name": (labels(["a.png", 7], names=["x"]), r"no name for class 7; \"names\" has 1, add it there"),
    "names that are numbers": (
        labels(["a.png", 0], names=[7]),
        r"names is \[7\], expected a list or an object of texts",
    ),
    "labels that are no list": (
        lambda root: zipped(root / "x.zip", {"a.png": b"", "dataset.json": b'{"labels": {"a.png": 1}}'}),
        r"labels is \{'a\.png': 1\}, expected a list of \[file, label\] or null",
    ),
    "dataset.json is broken": (
        lambda root: zipped(root / "x.zip", {"a.png": b"", "dataset.json": b'{"labels"'}),
        r"dataset\.json: this is not JSON .*; it has to be one object in braces",
    ),
    "a sidecar in a zip is not UTF-8": (
        lambda root: zipped(root / "x.zip", {"a.png": b"", "a.txt": "é".encode("latin-1")}),
        r"x\.zip/a\.txt is not UTF-8 text; save it as UTF-8",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_every_mistake_is_named_in_one_sentence(mistake: str, tmp_path: Path) -> None:
    make, match = MISTAKES[mistake]
    path = make(tmp_path)
    with pytest.raises(ValueError, match=match) as caught:
        find_pictures(path)
    message = str(caught.value)
    assert str(tmp_path) in message
    assert "\n" not in message
    assert message.endswith(".")
    assert len(message) < 400


def test_a_json_that_is_broken_in_a_tar(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        add(archive, "a.png", PICTURES[0])
        add(archive, "a.json", b"{'caption': 1}")
    with pytest.raises(ValueError, match=r"x\.tar/a\.json: this is not JSON .* it has to be one object in braces\.$"):
        find_pictures(tmp_path / "x.tar")


def test_labels_without_names_and_without_labels(tmp_path: Path) -> None:
    pictures = find_pictures(labels(["a.png", 3])(tmp_path / "1"))
    assert pictures.records[0].captions == ("class 3",)
    assert 'has numbers for labels and no "names"' in pictures.notes[0]
    pictures = find_pictures(stylegan(tmp_path / "2", {"labels": None}))
    assert {record.captions for record in pictures.records} == {()}, "00000 is no class"
    with pytest.raises(ValueError, match=r"None of the 7 pictures .*dataset\.json has no labels but null\)"):
        check_captions(pictures, allow_missing=False)
    pictures = find_pictures(zipped(tmp_path / "3/x.zip", {"cat/1.png": b"", "dataset.json": b'{"name": "cats"}'}))
    assert pictures.records[0].captions == ("cat",)
    assert pictures.skipped == (("dataset.json", "not a picture: .json"),)
