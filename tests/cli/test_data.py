"""``unstir data``: what it prints; how sets are built and what is counted is proved in tests/data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unstir.data import emoji
from unstir.data.emoji import EmojiSummary
from unstir.training import preview
from unstir.training.preview import contact_sheet

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


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Seven pictures, one of them broken, one without a caption, one twice."""
    root = tmp_path / "set"
    root.mkdir()
    for index in range(6):
        blocks = np.random.default_rng(max(index, 1)).integers(0, 256, (6, 6, 3)).astype(np.uint8)
        Image.fromarray(blocks).resize((24, 24), Image.Resampling.NEAREST).save(root / f"{index}.png")
        if index < 5:
            (root / f"{index}.txt").write_text(f"number {index}")
    (root / "broken.png").write_bytes(b"x")
    return root


def test_a_set_is_described_in_lines(call: Call, pictures: Path) -> None:
    status, out, err = call("data", "describe", pictures, "--size", 16)
    assert status == 0
    lines = out.splitlines()
    assert lines[0] == f"7 pictures in {pictures}: train 7"
    assert "captions from: sidecar 5, none 2" in lines
    assert "without a caption: 2: 5.png, broken.png" in lines
    assert "groups of equal pictures: 1: 0.png = 1.png" in lines
    assert any(line.startswith("broken: 1: broken.png (") for line in lines)
    examples = [line for line in lines if line.startswith("example: ")]
    assert len(examples) == 5
    assert not any("broken" in line for line in examples)
    assert lines[-1] == "for a sheet of these: --sheet pairs.png"
    assert "comparing pictures: 5/5" in err


def test_a_description_as_json_is_one_object(call: Call, pictures: Path) -> None:
    status, out, _ = call("data", "describe", pictures, "--size", 16, "--json", "--sheet", "pairs.png")
    assert status == 0
    result = json.loads(out)
    assert result["pictures"] == 7
    assert result["captions"]["missing"] == [["5.png", "train"], ["broken.png", "train"]]
    assert result["duplicates"]["equal"] == [["0.png", "1.png"]]
    assert result["sizes"]["square"] == 16
    assert result["sheet"] == "pairs.png"
    assert {example["caption"] for example in result["examples"]} <= {None, *(f"number {i}" for i in range(5))}


def test_the_sheet_shows_the_pairs_that_are_named(
    call: Call, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[dict] = []

    def sheet(shown: list[Image.Image], labels: list[str], **settings: object) -> Image.Image:
        drawn.append({"pictures": shown, "labels": labels, **settings})
        return contact_sheet(shown, labels, **settings)

    monkeypatch.setattr(preview, "contact_sheet", sheet)
    out = call("data", "describe", pictures, "--size", 24, "--seed", 3, "--sheet", "pairs.png")[1]
    (one,) = drawn
    named = [line.removeprefix("example: ").split(": ") for line in out.splitlines() if line.startswith("example: ")]
    assert one["labels"] == [caption for _, caption in named]
    for picture, (key, _) in zip(one["pictures"], named, strict=True):
        assert (np.asarray(picture) == np.asarray(Image.open(pictures / key))).all()
    assert (one["columns"], one["scale"]) == (5, 10)
    with Image.open(tmp_path / "pairs.png") as image:
        assert image.size[0] == 5 * (240 + 4) + 4
    assert out.splitlines()[-1] == "a sheet of these: pairs.png"


def test_the_seed_chooses_the_pairs(call: Call, pictures: Path) -> None:
    def examples(seed: int) -> list[dict]:
        return json.loads(call("data", "describe", pictures, "--size", 8, "--seed", seed, "--json")[1])["examples"]

    assert examples(0) == examples(0)
    assert len({json.dumps(examples(seed)) for seed in range(4)}) > 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["nowhere"],
        ["empty"],
        ["set/0.txt"],
        ["set", "--size", "0"],
        ["set", "--size", "5000"],
        ["set", "--limit", "0"],
        ["set", "--seed", "-1"],
        ["set", "--sheet", "pairs.gif"],
        ["set", "--sheet", "nowhere/pairs.png"],
        ["hopeless", "--sheet", "pairs.png"],
    ],
    ids=" ".join,
)
def test_what_cannot_be_described_is_told_in_one_sentence(
    call: Call, pictures: Path, tmp_path: Path, arguments: list[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "hopeless").mkdir()
    (tmp_path / "hopeless/a.png").write_bytes(b"x")
    before = sorted(tmp_path.rglob("*"))
    status, out, err = call("data", "describe", *arguments)
    assert (status, out) == (2, "")
    sentences = [line for line in err.splitlines() if not line.startswith("looking at pictures: ")]
    assert len(sentences) == 1
    assert sentences[0].startswith("unstir: ")
    assert sorted(tmp_path.rglob("*")) == before
