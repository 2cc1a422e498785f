"""Where pictures go: folders, names, numbers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from unstir.cli.output import is_folder, picture_paths, print_json, progress_bar, writable_folder
from unstir.generation.names import slug


@pytest.mark.parametrize(
    ("output", "folder"),
    [
        ("a/", True),
        ("a.png/", True),
        ("there", True),
        ("there.png", True),
        ("new", True),
        ("x.y", True),
        (".", True),
        ("a.png", False),
        ("a.PNG", False),
        ("new/a.jpg", False),
        ("a.webp", False),
        ("a.gif", False),
        ("a.tar.png", False),
    ],
)
def test_what_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, folder: bool) -> None:
    """It ends in a slash, exists as one, or has no suffix of a picture."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "there.png").mkdir()
    assert is_folder(output) is folder


def test_names_go_on_after_what_is_there(tmp_path: Path) -> None:
    first = picture_paths(f"{tmp_path}/", ["a red heart", "pizza"])
    assert [path.name for path in first] == ["0000-a-red-heart.png", "0001-pizza.png"]
    (tmp_path / "0007-else.jpg").touch()
    (tmp_path / "holiday-9999.png").touch()
    (tmp_path / "12-short.png").touch()
    assert [path.name for path in picture_paths(str(tmp_path), ["x"])] == ["0008-x.png"]
    (tmp_path / "9999-x.png").touch()
    assert [path.name for path in picture_paths(str(tmp_path), ["x", "y"])] == ["10000-x.png", "10001-y.png"]
    (tmp_path / "10000-x.png").touch()
    assert [path.name for path in picture_paths(str(tmp_path), ["x"])] == ["10001-x.png"]


def test_one_picture_into_a_file_and_several_into_none() -> None:
    assert picture_paths("out.png", ["x"]) == [Path("out.png")]
    with pytest.raises(ValueError, match=r"2 pictures do not fit into the file out\.png"):
        picture_paths("out.png", ["x", "y"])


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("a red heart", "a-red-heart"),
        ("  A  Red_Heart!! ", "a-red_heart"),
        ("../../etc/passwd", "etc-passwd"),
        ("flag: France", "flag-france"),
        ("größer ﬁsh", "größer-fish"),
        ("猫", "猫"),
        ("🍕", "picture"),
        ("...", "picture"),
        ("\0\n", "picture"),
        ("x" * 300, "x" * 48),
        ("a" * 47 + " b", "a" * 47),
    ],
)
def test_prompts_as_names(prompt: str, name: str) -> None:
    assert slug(prompt) == name


@pytest.mark.parametrize("prompt", ["猫" * 300, "ﷺ" * 300, "é" * 300, "𐎠" * 300])
def test_names_fit_into_file_systems(tmp_path: Path, prompt: str) -> None:
    path = picture_paths(f"{tmp_path}/", [prompt])[0]
    path.with_name(f".{path.name}.new").touch()  # as it is written


def test_a_folder_that_stays_empty_is_taken_away_with_its_parents(tmp_path: Path) -> None:
    with writable_folder(tmp_path / "a/b/c"):
        assert (tmp_path / "a/b/c").is_dir()
    assert not (tmp_path / "a").exists()
    with writable_folder(tmp_path / "a/b") as folder:
        (folder / "x").touch()
    assert os.listdir(tmp_path / "a/b") == ["x"]
    (tmp_path / "mine").mkdir()
    with writable_folder(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine").is_dir()


def test_a_failure_inside_takes_the_folder_away_too(tmp_path: Path) -> None:
    with pytest.raises(KeyError), writable_folder(tmp_path / "a/b"):
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_leaves_no_half(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for bad in (tmp_path / "file/x", Path("/proc/x/y"), tmp_path / "a" / ("n" * 300)):
        with pytest.raises(OSError, match=r"\w"), writable_folder(bad):
            pass
    assert os.listdir(tmp_path) == ["file"]


def test_json_is_one_object_that_keeps_its_letters(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"prompt": "größer 🍕", "list": [1, None]})
    out = capsys.readouterr().out
    assert json.loads(out) == {"prompt": "größer 🍕", "list": [1, None]}
    assert "größer 🍕" in out


def test_there_is_no_bar_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("drawing", 3) as advance:
        advance(1)
        advance(3, "done")
    assert capsys.readouterr() == ("", "")
