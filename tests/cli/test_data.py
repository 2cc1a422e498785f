"""``unstir data emoji``: what it prints; how the set is built is proved in tests/data/test_emoji.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from unstir.data import emoji
from unstir.data.emoji import EmojiSummary

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """What the builder was asked for."""
    asked: list[dict] = []

    def build(directory: Path, *, size: int, language: str, progress: Callable[[int, int], None]) -> EmojiSummary:
        asked.append({"directory": directory, "size": size, "language": language})
        progress(5, 10)
        return EmojiSummary(
            pictures=10, train=7, validation=1, held_out=2, directory=directory, size=size, language=language
        )

    monkeypatch.setattr(emoji, "build_emoji", build)
    return asked


def test_json_is_one_object(call: Call, built: list[dict]) -> None:
    status, out, err = call("data", "emoji", "there/", "--size", 16, "--language", "de", "--json")
    assert (status, err) == (0, "")
    assert json.loads(out) == {
        "pictures": 10, "train": 7, "validation": 1, "held_out": 2, "directory": "there", "size": 16, "language": "de",
    }  # fmt: skip
    assert built == [{"directory": Path("there"), "size": 16, "language": "de"}]


def test_people_read_a_sentence(call: Call, built: list[dict], tmp_path: Path) -> None:
    status, out, _ = call("data", "emoji", "there")
    assert status == 0
    assert "10 pictures of 64x64 (7 train, 1 validation, 2 held out)" in out
    assert str(tmp_path / "there") in out
    assert built[0]["size"] == 64


@pytest.mark.parametrize(
    "arguments",
    [
        ["x", "--size", "7"],
        ["x", "--size", "137"],
        ["x", "--size", "abc"],
        ["x", "--language", "klingon"],
        ["mine"],
        ["mine/a"],
    ],
    ids=" ".join,
)
def test_bad_input_is_told_in_one_sentence_and_leaves_nothing(call: Call, tmp_path: Path, arguments: list[str]) -> None:
    """A folder or file of somebody's own is never replaced."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/a").write_text("precious")
    status, out, err = call("data", "emoji", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("unstir: ")
    assert err.count("\n") == 1
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["mine", "a"]
    assert (tmp_path / "mine/a").read_text() == "precious"
