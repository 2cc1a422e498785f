"""What a metadata file says, read by itself; the mistakes are in test_folder.py, where a user meets them."""

from pathlib import Path

import pytest

from unstir.data.metadata import read_metadata, refuse_misnamed, to_captions, to_keywords


def test_rows_are_found_by_the_path_from_the_root(tmp_path: Path) -> None:
    path = tmp_path / "metadata.jsonl"
    path.write_text('{"file_name": "./x/../a.png", "text": "one", "keywords": ["k"]}\n{"file_name": "b.png"}\n')
    notes: list[str] = []
    said = read_metadata(path, "train", notes)
    assert list(said) == ["train/a.png", "train/b.png"]
    assert said["train/a.png"].captions == ("one",)
    assert said["train/a.png"].keywords == ("k",)
    assert said["train/b.png"].where == f"{path}, line 2"
    assert notes == []


def test_a_newline_within_a_cell_of_csv(tmp_path: Path) -> None:
    path = tmp_path / "metadata.csv"
    path.write_bytes(b'file_name,text\r\na.png,"one,\r\ntwo"\r\nb.png,three\r\n')
    said = read_metadata(path, "", [])
    assert [row.captions for row in said.values()] == [("one,\ntwo",), ("three",)]


def test_a_file_without_rows_or_captions_leaves_a_note(tmp_path: Path) -> None:
    path = tmp_path / "metadata.jsonl"
    for text, note in (("\n", "has no rows"), ('{"file_name": "a.png", "label": 1}', "only file_name, label")):
        path.write_text(text)
        notes: list[str] = []
        read_metadata(path, "", notes)
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
