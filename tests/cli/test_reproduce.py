"""``unstir reproduce``: one object for programs, sentences for people, a picture that is whole or not there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import unstir.reproduce as room
from unstir.reproduce import Advance, Report

Call = Callable[..., tuple[int, str, str]]


def experiment(*, failures: tuple[str, ...] = (), draw: Callable[[Path], None] | None = None) -> object:
    def run(*, seed: int, advance: Advance) -> Report:
        advance("training", 1, 2)
        advance("training", 2, 2)
        return Report(
            figures={"zebra": seed, "apple": 2.5},
            lines=("a line of figures",),
            notes=("another network",),
            failures=failures,
            draw=draw or (lambda path: Image.new("RGB", (4, 4)).save(path, "PNG")),
        )

    return run


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setitem(room.EXPERIMENTS, "toy", experiment())
    return monkeypatch


def test_one_object_and_nothing_else(call: Call, toy: object, tmp_path: Path) -> None:
    """The experiment's keys in its order, then the seconds; the rest is said on stderr."""
    status, out, err = call("reproduce", "toy", "--json", "--seed", 3)
    assert status == 0
    assert list(json.loads(out)) == ["zebra", "apple", "seconds"]
    assert json.loads(out)["zebra"] == 3
    for words in ("training: 1/2", "a line of figures", "another network", "reproduced/toy.png"):
        assert words in err
    with Image.open(tmp_path / "reproduced" / "toy.png") as picture:
        assert picture.size == (4, 4)


def test_people_read_lines_and_notes(call: Call, toy: object, tmp_path: Path) -> None:
    """Figures, what is not comparable, seconds, where the picture is; ``-o`` says where."""
    status, out, _ = call("reproduce", "toy", "-o", "mine.png")
    assert status == 0
    assert out.splitlines()[0] == "a line of figures"
    assert "another network" in out
    assert "mine.png" in out
    assert [path.name for path in tmp_path.iterdir()] == ["mine.png"]


def test_what_was_not_shown_is_a_failure(call: Call, toy: pytest.MonkeyPatch) -> None:
    """Exit status 1 and a sentence, with the figures all the same."""
    toy.setitem(room.EXPERIMENTS, "toy", experiment(failures=("three of 1,000 are wrong",)))
    status, out, err = call("reproduce", "toy", "--json")
    assert status == 1
    assert json.loads(out)["apple"] == 2.5
    assert "not shown: three of 1,000 are wrong" in err


def test_without_matplotlib_there_are_figures_but_no_picture(
    call: Call, toy: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is said what to install; nothing is left behind, not even a folder."""

    def draw(path: Path) -> None:
        path.write_bytes(b"half")
        raise ImportError("pictures need matplotlib: pip install 'unstir[reproduce]'")

    toy.setitem(room.EXPERIMENTS, "toy", experiment(draw=draw))
    status, out, err = call("reproduce", "toy", "--json")
    assert status == 0
    assert json.loads(out)["apple"] == 2.5
    assert "unstir[reproduce]" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["hartbeat"], "did you mean heartbeat"),
        (["bark"], "not to be had"),
        (["toy", "--seed", "-1"], "seed"),
        (["toy", "--seed", "x"], "seed"),
        (["toy", "-o", "picture.txt"], ".txt"),
        (["toy", "-o", "picture.jpg"], ".png"),
        (["toy", "-o", "nowhere/picture.png"], "nowhere"),
        ([], "name"),
    ],
)
def test_bad_input_is_one_sentence(call: Call, toy: object, tmp_path: Path, arguments: list[str], words: str) -> None:
    """Exit status 2 before anything runs, nothing written."""
    status, out, err = call("reproduce", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("unstir: ")
    assert err.count("\n") == 1
    assert words in err.lower()
    assert not list(tmp_path.iterdir())
