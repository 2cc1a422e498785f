"""Folders and parquet files: keys, splits, precedence, and one clear sentence for every mistake."""

import io
import json
import os
import pickle
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from unstir.data import (
    InFile,
    InParquet,
    PictureSet,
    Record,
    check_captions,
    find_pictures,
    load_pictures,
    summarize,
)

CIFAR10 = Path(__file__).resolve().parents[2].parent / "shared/data/cifar10"

# name of the file -> (colour, caption); natural order is a2 before a10
PICTURES = {"a2.png": ("red", "red fox"), "a10.png": ("green", "green tree"), "b.png": ("blue", "blue whale")}


def png(colour: str, size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def put(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def put_pictures(folder: Path) -> None:
    for name, (colour, _) in PICTURES.items():
        put(folder / name, png(colour))


def put_parquet(path: Path, columns: dict[str, list[object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
    return path


def jsonl(root: Path, rows: list[dict[str, object]]) -> Path:
    return put(root / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def rows_of(column: str = "text") -> list[dict[str, object]]:
    return [{"file_name": name, column: caption} for name, (_, caption) in PICTURES.items()]


def make_jsonl(root: Path) -> None:
    put_pictures(root)
    jsonl(root, rows_of())


def make_sidecars(root: Path) -> None:
    put_pictures(root)
    for name, (_, caption) in PICTURES.items():
        put((root / name).with_suffix(".txt"), f"\ufeff{caption}\r\n")


def make_hugging_face(root: Path) -> None:
    rows = [(png(colour), caption) for colour, caption in PICTURES.values()]
    columns = {
        "image": [{"bytes": data, "path": None} for data, _ in rows],
        "text": [caption for _, caption in rows],
        "id": list(PICTURES),
    }
    put_parquet(root / "data" / "train-00000-of-00001.parquet", columns)


def make_binary_parquet(root: Path) -> None:
    rows = [(png(colour), caption) for colour, caption in PICTURES.values()]
    put_parquet(root / "x.parquet", {"image": [data for data, _ in rows], "caption": [[text] for _, text in rows]})


def test_a_parquet_file_that_points_to_files(tmp_path: Path) -> None:
    put_pictures(tmp_path / ".files")
    columns = {
        "image": [{"bytes": None, "path": f".files/{name}"} for name in PICTURES],
        "name": [caption for _, caption in PICTURES.values()],
    }
    columns["image"][0]["bytes"] = png("red")  # gives the column its type
    put_parquet(tmp_path / "x.parquet", columns)
    pictures = find_pictures(tmp_path)
    assert [pictures.read(record) for record in pictures.records] == [png(colour) for colour, _ in PICTURES.values()]
    assert [record.captions for record in pictures.records] == [(caption,) for _, caption in PICTURES.values()]


def test_keys_are_paths_relative_to_the_root_in_natural_order(tmp_path: Path) -> None:
    for name in ("b/1.png", "a10.png", "a2.PNG", "B.webp", "a.b.jpeg", "a02.tif"):
        put(tmp_path / name, b"")
    keys = [record.key for record in find_pictures(tmp_path).records]
    assert keys == ["B.webp", "a2.PNG", "a02.tif", "a10.png", "a.b.jpeg", "b/1.png"]
    assert keys == [record.key for record in find_pictures(Path(os.path.relpath(tmp_path))).records]


def test_several_captions_and_keywords(tmp_path: Path) -> None:
    make_jsonl(tmp_path)
    rows = [
        {"file_name": "a2.png", "text": ["red fox", " a fox ", ""], "keywords": ["red", "animal"]},
        {"file_name": "a10.png", "text": None, "caption": "green tree", "keywords": "plant| wood"},
        {"file_name": "b.png", "text": "", "keywords": None},
    ]
    jsonl(tmp_path, rows)
    records = find_pictures(tmp_path).records
    assert [record.captions for record in records] == [("red fox", "a fox"), ("green tree",), ()]
    assert [record.keywords for record in records] == [("red", "animal"), ("plant", "wood"), ()]
    assert [record.source for record in records] == ["metadata", "metadata", "none"]


def test_several_lines_of_a_sidecar_are_several_captions(tmp_path: Path) -> None:
    put_pictures(tmp_path)
    put(tmp_path / "a2.txt", "red fox\r\n\n  a fox  \n")
    put(tmp_path / "a2.caption", "not read")
    put(tmp_path / "a10.txt", " \n")
    put(tmp_path / "stray.txt", "no picture")
    pictures = find_pictures(tmp_path)
    assert [record.captions for record in pictures.records] == [("red fox", "a fox"), (), ()]
    assert [record.source for record in pictures.records] == ["sidecar", "none", "none"]
    assert [key for key, _ in pictures.skipped] == ["a2.caption", "a10.txt", "stray.txt"]


def test_precedence(tmp_path: Path) -> None:
    put_pictures(tmp_path / "class")
    put(tmp_path / "other" / "c.png", png("black"))
    assert {record.source for record in find_pictures(tmp_path).records} == {"folder"}
    put(tmp_path / "class" / "a2.txt", "from a sidecar")
    put(tmp_path / "class" / "b.txt", "from a sidecar")
    sources = [record.source for record in find_pictures(tmp_path).records]
    assert sources == ["sidecar", "none", "sidecar", "none"]
    jsonl(tmp_path, [{"file_name": "class/a2.png", "text": "from metadata"}])
    pictures = find_pictures(tmp_path)
    assert [record.source for record in pictures.records] == ["metadata", "none", "sidecar", "none"]
    assert pictures.records[0].captions == ("from metadata",)
    assert [key for key, _ in pictures.skipped] == ["class/a2.txt"]


def test_parquet_files_beside_loose_pictures_are_not_read(tmp_path: Path) -> None:
    make_binary_parquet(tmp_path)
    make_sidecars(tmp_path)
    pictures = find_pictures(tmp_path)
    assert {record.source for record in pictures.records} == {"sidecar"}
    assert [key for key, _ in pictures.skipped] == ["x.parquet"]


def test_split_folders(tmp_path: Path) -> None:
    expected = Counter[str]()
    names = {"train": "train", "VAL": "validation", "valid": "validation", "dev": "validation", "test": "test"}
    for folder, split in names.items():
        put(tmp_path / folder / "cat" / "1.png", b"")
        put(tmp_path / folder / "big_dog" / "1.png", b"")
        expected[split] += 2
    pictures = find_pictures(tmp_path)
    assert Counter(record.split for record in pictures.records) == expected
    assert {record.captions for record in pictures.records} == {("cat",), ("big dog",)}
    assert {record.split for record in pictures.split("validation").records} == {"validation"}
    assert len(pictures.split("test").records) == 2
    with pytest.raises(ValueError, match="no split 'val'; the splits are train, validation, test"):
        pictures.split("val")


def test_a_class_of_trains_is_not_a_split(tmp_path: Path) -> None:
    for folder in ("train", "car", "ship"):
        put(tmp_path / folder / "1.png", b"")
    pictures = find_pictures(tmp_path)
    assert [record.captions for record in pictures.records] == [("car",), ("ship",), ("train",)]
    assert {record.split for record in pictures.records} == {"train"}
    assert "taken for a class" in pictures.notes[0]
    put(tmp_path / "test" / "1.png", b"")
    splits = {record.key: record.split for record in find_pictures(tmp_path).records}
    assert splits == {"car/1.png": "train", "ship/1.png": "train", "test/1.png": "test", "train/1.png": "train"}


def test_one_folder_of_images_is_no_class(tmp_path: Path) -> None:
    put_pictures(tmp_path / "images")
    assert {record.captions for record in find_pictures(tmp_path).records} == {()}
    put_pictures(tmp_path / "cat")
    assert {record.captions for record in find_pictures(tmp_path).records} == {("images",), ("cat",)}


def test_hidden_files_are_not_looked_at_and_others_are_listed(tmp_path: Path) -> None:
    make_sidecars(tmp_path)
    put(tmp_path / ".cache" / "x.png", png("red"))
    put(tmp_path / "__MACOSX" / "._a2.png", b"")
    put(tmp_path / "._a2.png", b"")
    put(tmp_path / "notes.pdf", b"")
    (tmp_path / "loop").symlink_to(tmp_path)
    pictures = find_pictures(tmp_path)
    assert len(pictures.records) == 3
    assert [key for key, _ in pictures.skipped] == ["loop", "notes.pdf"]
    assert dict(pictures.skipped)["notes.pdf"] == "not a picture: .pdf"


def test_names_that_are_not_text_are_listed(tmp_path: Path) -> None:
    make_sidecars(tmp_path)
    put(tmp_path / "👩\u200d🦳.png", b"")
    try:
        put(tmp_path / os.fsdecode(b"caf\xe9.png"), b"")
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    pictures = find_pictures(tmp_path)
    assert "👩\u200d🦳.png" in [record.key for record in pictures.records]
    assert [key for key, _ in pictures.skipped] == ["caf\\xe9.png"]


def test_parquet_splits(tmp_path: Path) -> None:
    image, text = [png("red")] * 3, ["x"] * 3
    for name in ("train-00000-of-00001", "test", "val-0", "other"):
        columns = {"image": image, "text": text, "split": ["train", "dev", None]}
        put_parquet(tmp_path / f"{name}.parquet", columns)
    splits = {record.key: record.split for record in find_pictures(tmp_path).records}
    assert list(splits.values())[:3] == ["train", "validation", "train"]  # other: by its column
    counts = Counter((key.split("#")[0], split) for key, split in splits.items())
    for name, split in (("train-00000-of-00001", "train"), ("test", "test"), ("val-0", "validation")):
        assert counts[f"{name}.parquet", split] == 3


def test_a_parquet_file_by_itself(tmp_path: Path) -> None:
    make_binary_parquet(tmp_path)
    pictures = find_pictures(tmp_path / "x.parquet")
    assert [record.key for record in pictures.records] == ["x.parquet#0", "x.parquet#1", "x.parquet#2"]
    assert [pictures.read(record) for record in pictures.records] == [png(colour) for colour, _ in PICTURES.values()]


def test_ids_are_keys_only_where_they_tell_pictures_apart(tmp_path: Path) -> None:
    image = [png("red")] * 3
    put_parquet(tmp_path / "train.parquet", {"image": image, "text": ["x"] * 3, "id": [7, 8, 9]})
    assert [record.key for record in find_pictures(tmp_path).records] == ["7", "8", "9"]
    put_parquet(tmp_path / "test.parquet", {"image": image, "text": ["x"] * 3, "id": [9, 10, 11]})
    assert find_pictures(tmp_path).records[0].key == "test.parquet#0"


def test_pictures_are_read_only_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_hugging_face(tmp_path)
    columns: list[list[str]] = []
    original = parquet.ParquetFile.read_row_group

    def spy(self: parquet.ParquetFile, group: int, columns_: list[str] | None = None, **options: object) -> object:
        chosen = options.pop("columns", columns_)
        columns.append(chosen)
        return original(self, group, columns=chosen, **options)

    monkeypatch.setattr(parquet.ParquetFile, "read_row_group", spy)
    pictures = find_pictures(tmp_path)
    assert columns == [["text", "id"]] * 2
    assert [record.locate for record in pictures.records] == [
        InParquet(path=tmp_path / "data" / "train-00000-of-00001.parquet", group=index // 2, row=index % 2)
        for index in range(3)
    ]
    columns.clear()
    for _ in range(3):
        pictures.read(pictures.records[0])
        pictures.read(pictures.records[1])
    assert columns == [["image"]]


def test_sets_can_be_pickled(tmp_path: Path) -> None:
    make_hugging_face(tmp_path)
    pictures = find_pictures(tmp_path)
    copy = pickle.loads(pickle.dumps(pictures))
    assert copy == pictures
    assert copy.read(copy.records[2]) == png("blue")


def test_an_empty_cell_is_a_broken_picture(tmp_path: Path) -> None:
    columns = {"image": [png("red"), None] + [png("red")] * 30, "text": ["x"] * 32}
    pictures = find_pictures(put_parquet(tmp_path / "x.parquet", columns))
    with pytest.raises(ValueError, match="has no picture in it"):
        pictures.read(pictures.records[1])
    loaded, kept = load_pictures(pictures, 8)
    assert len(loaded) == 31
    assert kept.skipped[0][0] == "x.parquet#1"


def write_metadata(text: str | bytes, name: str = "metadata.jsonl") -> Callable[[Path], None]:
    def make(root: Path) -> None:
        put_pictures(root)
        put(root / name, text)

    return make


def with_jsonl(*rows: dict[str, object]) -> Callable[[Path], None]:
    return write_metadata("\n".join(json.dumps(row) for row in rows))


def with_parquet(columns: dict[str, list[object]]) -> Callable[[Path], None]:
    return lambda root: void(put_parquet(root / "x.parquet", columns))


def void(_: object) -> None:
    """Nothing, so that a call can be all of a lambda."""


def make_corrupt_pages(root: Path) -> None:
    make_hugging_face(root)
    path = root / "data" / "train-00000-of-00001.parquet"
    data = bytearray(path.read_bytes())
    footer = int.from_bytes(data[-8:-4], "little") + 8
    data[4:-footer] = bytes(len(data) - footer - 4)
    path.write_bytes(bytes(data))


def make_two_metadata_files(root: Path) -> None:
    make_jsonl(root)
    put(root / "metadata.csv", "file_name,text\n")


def make_overlapping_metadata(root: Path) -> None:
    make_jsonl(root / "sub")
    jsonl(root, [{"file_name": "sub/b.png", "text": "again"}])


A = {"file_name": "a2.png", "text": "red fox"}

MISTAKES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda root: root.rmdir(), r"no folder or parquet file .*check the path"),
    "empty": (lambda root: None, r"no pictures in .*\.png .*\.parquet"),
    "only other files": (lambda root: void(put(root / "a.pdf", b"")), r"no pictures in "),
    "metadata.json": (write_metadata("[]", "metadata.json"), r"metadata\.json is not read .*rename to metadata\.jsonl"),
    "metadata.json1": (write_metadata("", "metadata.json1"), r"metadata\.json1 .*rename to metadata\.jsonl"),
    "Metadata.CSV": (write_metadata("", "Metadata.CSV"), r"Metadata\.CSV .*rename to metadata\.csv"),
    "image": (with_jsonl(A, {"image": "b.png", "text": "x"}), r"line 2: .*no file_name but 'image'; rename"),
    "no file_name": (with_jsonl(A, {"text": "x"}), r"line 2: there is no file_name, only text"),
    "file_name no text": (with_jsonl({"file_name": 3}), r"line 1: file_name is 3, expected text"),
    "bad JSON": (write_metadata(json.dumps(A) + "\n\n{'file_name': 'b.png'}"), r"line 3: this is not JSON"),
    "no object": (write_metadata('["a2.png"]'), r"line 1: this is not a JSON object"),
    "not UTF-8": (write_metadata('{"file_name": "é"}'.encode("latin-1")), r"metadata\.jsonl is not UTF-8"),
    "no such file": (
        with_jsonl(A, {"file_name": "x.png"}, {"file_name": "y.png"}),
        r"2 of the 3 files that .* do not exist, the first is 'x\.png'; file_name is relative to ",
    ),
    "twice": (with_jsonl(A, {"file_name": "./a2.png"}), r"line 2: './a2\.png' is named a second time.*as a list"),
    "outside": (with_jsonl({"file_name": "../x.png"}), r"line 1: file_name '\.\./x\.png' is outside"),
    "absolute": (with_jsonl({"file_name": "/x.png"}), r"line 1: file_name '/x\.png' is outside"),
    "caption no text": (with_jsonl({**A, "text": 5}), r"line 1: text is 5, expected text or a list"),
    "keywords no texts": (with_jsonl({**A, "keywords": [1]}), r"line 1: keywords is \[1\], expected a list"),
    "CSV without quotes": (write_metadata("file_name,text\nb.png,a,b\n", "metadata.csv"), r"line 2: .*more cells"),
    "CSV with an open quote": (write_metadata('file_name,text\nb.png,"a\n', "metadata.csv"), r"is not CSV"),
    "CSV without file_name": (write_metadata("image,text\nb.png,a\n", "metadata.csv"), r"line 2: .*'image'; rename"),
    "two metadata files": (make_two_metadata_files, r"both metadata\.jsonl and metadata\.csv; keep one"),
    "two metadata files, one picture": (make_overlapping_metadata, r"another metadata file names as well"),
    "corrupt metadata.parquet": (write_metadata("no", "metadata.parquet"), r"not a readable parquet file"),
    "corrupt parquet": (
        lambda root: void(put(root / "x.parquet", b"PAR1 no")),
        r"x\.parquet is not a readable parquet",
    ),
    "corrupt pages": (make_corrupt_pages, r"train-00000-of-00001\.parquet is not a readable parquet"),
    "no image column": (with_parquet({"img": [b""], "text": ["x"]}), r"no column image, only img, text; rename"),
    "image is text": (with_parquet({"image": ["x"], "text": ["x"]}), r"column image is string, expected binary"),
    "no rows": (with_parquet({"image": pyarrow.array([], pyarrow.binary())}), r"parquet files have no rows"),
    "caption is a number": (with_parquet({"image": [b""], "caption": [5]}), r"row 0: caption is 5, expected text"),
    "unknown split": (with_parquet({"image": [b""], "split": ["x"]}), r"row 0: split is 'x', expected train"),
    "sidecar not UTF-8": (write_metadata("é".encode("latin-1"), "b.txt"), r"b\.txt is not UTF-8 text; save it"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_every_mistake_is_named_in_one_sentence(mistake: str, tmp_path: Path) -> None:
    make, match = MISTAKES[mistake]
    root = tmp_path / "set"
    root.mkdir()
    make(root)
    with pytest.raises(ValueError, match=match) as caught:
        find_pictures(root)
    message = str(caught.value)
    assert str(root) in message
    assert "\n" not in message
    assert message.endswith(".")


def test_a_file_that_is_no_parquet(tmp_path: Path) -> None:
    match = r"a\.rar is a file, but pictures are read from a folder or a \.parquet, \.tar or \.zip file"
    with pytest.raises(ValueError, match=match):
        find_pictures(put(tmp_path / "a.rar", b""))


def test_metadata_without_captions_is_told(tmp_path: Path) -> None:
    put_pictures(tmp_path)
    jsonl(tmp_path, rows_of("label"))
    pictures = find_pictures(tmp_path)
    with pytest.raises(ValueError, match=r"None of the 3 .*no column text or caption, only file_name, label"):
        check_captions(pictures, allow_missing=False)
    assert any("no column text or caption" in line for line in summarize(pictures).lines())


def test_a_set_without_captions_is_refused_unless_allowed(tmp_path: Path) -> None:
    put_pictures(tmp_path)
    pictures = find_pictures(tmp_path)
    with pytest.raises(ValueError, match=r"None of the 3 pictures .*--allow-missing-captions"):
        check_captions(pictures, allow_missing=False)
    check_captions(pictures, allow_missing=True)


def test_a_set_captioned_in_part_is_refused_unless_allowed(tmp_path: Path) -> None:
    make_sidecars(tmp_path)
    for index in range(5):
        put(tmp_path / f"c{index}.png", png("red"))
    pictures = find_pictures(tmp_path)
    match = r"5 of the 8 pictures .*\(c0\.png, c1\.png, c2\.png, \.\.\.\).*--allow-missing-captions"
    with pytest.raises(ValueError, match=match):
        check_captions(pictures, allow_missing=False)
    check_captions(pictures, allow_missing=True)


def test_the_order_on_disk_does_not_matter(tmp_path: Path) -> None:
    names = [f"{index}.png" for index in range(30)]
    for number, order in enumerate((sorted(names), random.Random(0).sample(names, 30))):
        for name in order:
            put(tmp_path / str(number) / name, png("red"))
    first, second = (find_pictures(tmp_path / str(number)) for number in range(2))
    assert [record.key for record in first.records] == [record.key for record in second.records] == names


def test_a_folder_given_through_a_link(tmp_path: Path) -> None:
    make_sidecars(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert len(find_pictures(tmp_path / "link").records) == 3


def test_a_record_by_hand() -> None:
    record = Record(key="a", captions=(), source="none", split="train", locate=InFile(path=Path("a")))
    assert PictureSet(root=Path("."), records=(record,)).split("train").records == (record,)


def test_cifar10() -> None:
    if not CIFAR10.is_dir():
        pytest.skip(f"CIFAR-10 NOT TESTED: {CIFAR10} is not there")
    pictures = find_pictures(CIFAR10)
    assert Counter(record.split for record in pictures.records) == {"train": 50_000, "test": 10_000}
    check_captions(pictures, allow_missing=False)
    assert len({record.captions for record in pictures.records}) == 10
    few = PictureSet(root=pictures.root, records=pictures.split("test").records[:100])
    loaded, kept = load_pictures(few, 32)
    assert loaded.shape == (100, 3, 32, 32)
    assert kept.skipped == ()
    assert loaded.float().std() > 40
    assert summarize(few).sizes == ((32, 32),) * 3


def test_a_set_can_be_moved_away(tmp_path: Path) -> None:
    make_sidecars(tmp_path / "set")
    pictures = find_pictures(tmp_path / "set")
    shutil.rmtree(tmp_path / "set")
    with pytest.raises(FileNotFoundError):
        pictures.read(pictures.records[0])
