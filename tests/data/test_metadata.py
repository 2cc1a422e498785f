"""What a metadata file says, read by itself; the mistakes are in test_folder.py, where a user meets them."""

from pathlib import Path

import pytest

from unstir.data.metadata import (
    read_labels,
    read_metadata,
    read_said,
    read_text,
    refuse_misnamed,
    to_captions,
    to_keywords,
    to_repeats,
)


def test_rows_are_found_by_the_path_from_the_root(tmp_path: Path) -> None:
    path = tmp_path / "metadata.jsonl"
    path.write_text('{"file_name": "./x/../a.png", "text": "one", "keywords": ["k"]}\n{"file_name": "b.png"}\n')
    notes: list[str] = []
    said = read_metadata(path, path.read_bytes(), "train", notes)
    assert list(said) == ["train/a.png", "train/b.png"]
    assert said["train/a.png"].captions == ("one",)
    assert said["train/a.png"].keywords == ("k",)
    assert said["train/b.png"].where == f"{path}, line 2"
    assert notes == []


def test_a_newline_within_a_cell_of_csv(tmp_path: Path) -> None:
    path = tmp_path / "metadata.csv"
    path.write_bytes(b'file_name,text\r\na.png,"one,\r\ntwo"\r\nb.png,three\r\n')
    said = read_metadata(path, path.read_bytes(), "", [])
    assert [row.captions for row in said.values()] == [("one,\ntwo",), ("three",)]


def test_a_file_without_rows_or_captions_leaves_a_note(tmp_path: Path) -> None:
    path = tmp_path / "metadata.jsonl"
    for text, note in (("\n", "has no rows"), ('{"file_name": "a.png", "label": 1}', "only file_name, label")):
        path.write_text(text)
        notes: list[str] = []
        read_metadata(path, path.read_bytes(), "", notes)
        assert note in notes[0]


def test_names_that_are_nearly_right(tmp_path: Path) -> None:
    refuse_misnamed(tmp_path, ["metadata.txt", "a.json", "dataset_infos.json"])
    with pytest.raises(ValueError, match=r"rename to metadata\.jsonl"):
        refuse_misnamed(tmp_path, ["metadata.JSON"])


@pytest.mark.parametrize(
    ("value", "captions"),
    [(None, ()), ("", ()), ("  ", ()), (" a ", ("a",)), (["a", " ", "b"], ("a", "b")), ([], ())],
)
def test_to_captions(value: object, captions: tuple[str, ...]) -> None:
    assert to_captions(value, "text", "here") == captions


@pytest.mark.parametrize("value", [5, 0.5, float("nan"), {"a": 1}, [None], [["a"]], True])
def test_to_captions_refuses_what_is_no_text(value: object) -> None:
    with pytest.raises(ValueError, match="here: text is"):
        to_captions(value, "text", "here")


def test_to_keywords() -> None:
    assert to_keywords("a | b c,d", "here") == ("a", "b c", "d")
    assert to_keywords(["a, b"], "here") == ("a, b",)
    assert to_keywords(None, "here") == ()


@pytest.mark.parametrize(
    ("value", "number"), [(None, 1), ("", 1), (1, 1), (12, 12), ("3", 3), (" 3 ", 3), (2.0, 2), ("0003", 3)]
)
def test_to_repeats(value: object, number: int) -> None:
    assert to_repeats(value, "here") == number


@pytest.mark.parametrize("value", [0, -1, 1.5, float("nan"), float("inf"), True, "x", "1.0", "-3", "1" * 5000, [1]])
def test_to_repeats_refuses_what_is_no_count(value: object) -> None:
    with pytest.raises(ValueError, match=r"here: repeats is .*, expected a whole number from 1\."):
        to_repeats(value, "here")


def test_labels_by_the_path_of_the_picture() -> None:
    notes: list[str] = []
    data = b'{"labels": [["a/1.png", 0], ["./2.png", "two"], ["3.png", ["three", "3"]], ["4.png", null]], "names": ["zero"]}'
    said = read_labels(Path("dataset.json"), data, notes)
    assert said is not None
    captions = [("zero",), ("two",), ("three", "3"), ()]
    assert {key: row.captions for key, row in said.items()} == dict(
        zip(["a/1.png", "2.png", "3.png", "4.png"], captions, strict=True)
    )
    assert notes == []
    assert read_labels(Path("dataset.json"), b"{}", notes) is None
    assert read_labels(Path("dataset.json"), b'{"labels": null}', notes) == {}
    assert notes == ["dataset.json has no labels but null."]


def test_what_the_object_beside_a_picture_says() -> None:
    said = read_said(Path("a.json"), b'{"caption": "x", "keywords": "a|b", "repeats": 2, "width": 512, "url": null}')
    assert (said.captions, said.keywords, said.repeats) == (("x",), ("a", "b"), 2)
    with pytest.raises(ValueError, match=r"^a\.json: this is not a JSON object; it has to be one object in braces\.$"):
        read_said(Path("a.json"), b"[]")


def test_lines_end_alike_and_text_is_utf8() -> None:
    assert read_text(Path("a"), b"\xef\xbb\xbfa\r\nb\rc\n") == "a\nb\nc\n"
    with pytest.raises(ValueError, match=r"^a is not UTF-8 text; save it as UTF-8\.$"):
        read_text(Path("a"), b"\xff\xfea\x00")
