"""``unstir generate``: a file of prompts by one process, by several, after a kill; and every bad input."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
from PIL import Image

from unstir.metadata import read_recipe

Call = Callable[..., tuple[int, str, str]]
LINES = ["a red heart", "pizza", "a cat", "red", "blue"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, noisy_model: Callable[[Path], Path]) -> Path:
    """A model with random weights: it draws noise, but its own."""
    return noisy_model(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture
def command(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A call that draws ``LINES`` with the small model, into the folder d; no share is in the environment."""
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "p.txt").write_text("\n".join(LINES))
    return ["generate", "p.txt", "-o", "d", "--model", str(model), "--precision", "float32"]


def changed(command: list[str], *more: str) -> list[str]:
    """The command with other values of options that it has, and with more options; a first value is the file's."""
    words = list(command)
    if more and not more[0].startswith("-"):
        words[1], more = more[0], more[1:]
    for option, value in zip(more[::2], more[1::2], strict=True):
        if option in words:
            words[words.index(option) + 1] = value
        else:
            words += [option, value]
    return words


def pictures(folder: str) -> dict[str, numpy.ndarray]:
    found = {}
    for path in sorted(Path(folder).glob("*.png")):
        with Image.open(path) as picture:
            found[path.name] = numpy.array(picture).astype(int)
    return found


def assert_alike(one: dict[str, numpy.ndarray], other: dict[str, numpy.ndarray]) -> None:
    assert one.keys() == other.keys()
    assert all(numpy.abs(one[name] - other[name]).max() <= 1 for name in one)


def test_pictures_are_those_of_sample(call: Call, command: list[str], model: Path, tmp_path: Path) -> None:
    """The same options, the same seeds; and each file tells how to draw it again."""
    options = ("--steps", 4, "--sampler", "ddim", "--eta", 0.5, "--guidance", 2, "--grid", "uniform_log_snr")
    more = (*options, "--negative", "grey", "--seed", 40)
    status, out, err = call(*command, *more, "--batch", 2)
    assert status == 0, err
    assert out.startswith("5 pictures, 5 drawn in ")
    found = pictures("d")
    assert list(found) == [
        "000000-a-red-heart.png", "000001-pizza.png", "000002-a-cat.png", "000003-red.png", "000004-blue.png",
    ]  # fmt: skip
    assert call("sample", *LINES, *more, "--precision", "float32", "--model", model, "-o", "s/")[0] == 0
    assert_alike(found, {f"00{name}": picture for name, picture in pictures("s").items()})
    assert call("sample", "red", *options, "--negative", "grey", "--seed", 43, "--precision", "float32",
                "--model", model, "-o", "one.png")[0] == 0  # fmt: skip
    with Image.open("one.png") as picture:
        assert numpy.abs(numpy.array(picture).astype(int) - found["000003-red.png"]).max() <= 1
    assert read_recipe(tmp_path / "d/000003-red.png").request.seed == 43
    assert call("redo", "d/000003-red.png", "-o", "again.png")[0] == 0
    with Image.open("again.png") as picture:
        assert numpy.array_equal(numpy.array(picture), found["000003-red.png"])


def test_lines_of_json_say_more(call: Call, command: list[str], tmp_path: Path) -> None:
    rows = [{"prompt": "cat", "seed": 9, "n": 2}, {"prompt": "red", "negative": "blue"}, {"prompt": "cat"}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert call(*changed(command, "p.jsonl", "-n", "2"))[0] == 0
    listed = [json.loads(line) for line in (tmp_path / "d/index.jsonl").read_text().splitlines()]
    said = [(row["index"], row["prompt"], row["seed"], row["negative"]) for row in listed]
    assert said == [
        (0, "cat", 9, ""), (1, "cat", 10, ""), (2, "red", 2, "blue"), (3, "red", 3, "blue"), (4, "cat", 4, ""), (5, "cat", 5, ""),
    ]  # fmt: skip
    for row in listed:
        request = read_recipe(tmp_path / "d" / row["file"]).request
        assert (request.prompt, request.seed, request.negative) == (row["prompt"], row["seed"], row["negative"])


def test_what_is_there_is_kept_and_what_is_broken_drawn_again(call: Call, command: list[str]) -> None:
    assert call(*command)[0] == 0
    expected = pictures("d")
    files = sorted(Path("d").glob("*.png"))
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:-40])
    files[2].write_text("something else")
    Path("d/index.jsonl").unlink()
    kept = {file.name: file.stat().st_mtime_ns for file in files[3:]}
    told = json.loads(call(*command, "--json")[1])
    assert (told["pictures"], told["own"], told["drawn"]) == (5, 5, 3)
    assert told["index"] == str(Path("d/index.jsonl").resolve())
    assert_alike(pictures("d"), expected)
    assert {file.name: file.stat().st_mtime_ns for file in files[3:]} == kept
    assert "5 pictures, 0 drawn, 5 were there" in call(*command)[1]
    Path("p.txt").write_text("\n".join([*LINES, "one more"]))
    assert "6 pictures, 1 drawn" in call(*command)[1]
    assert len(Path("d/index.jsonl").read_text().splitlines()) == 6


@pytest.mark.parametrize("world", [2, 7])
def test_processes_share_the_work(call: Call, command: list[str], monkeypatch: pytest.MonkeyPatch, world: int) -> None:
    """Uneven shares, and more processes than prompts; whoever is last writes the list."""
    assert call(*changed(command, "-o", "alone"))[0] == 0
    drawn = 0
    for rank in range(world):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(world))
        status, out, err = call(*command, "--json")
        assert status == 0, err
        told = json.loads(out)
        drawn += told["drawn"]
        is_last = drawn == len(LINES)
        assert (told["index"] is not None) == Path("d/index.jsonl").exists() == is_last
    assert drawn == len(LINES)
    assert_alike(pictures("d"), pictures("alone"))
    assert Path("d/index.jsonl").read_text() == Path("alone/index.jsonl").read_text()


def test_processes_that_start_at_once_and_one_that_is_killed(command: list[str], tmp_path: Path) -> None:
    """Two real processes into one folder, one killed with SIGKILL: what is left is whole, and the same command ends it."""
    (tmp_path / "p.txt").write_text("\n".join(f"cat {i}" for i in range(120)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    line = [sys.executable, "-m", "unstir", *command, "--steps", "60", "--batch", "2", "--json"]

    def start(rank: int) -> subprocess.Popen[str]:
        return subprocess.Popen(
            line, cwd=tmp_path, env={**environment, "RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    both = [start(0), start(1)]
    while not any(int(path.name[:6]) % 2 for path in (tmp_path / "d").glob("0*.png")):
        assert both[1].poll() is None, both[1].communicate()
        time.sleep(0.01)
    os.kill(both[1].pid, signal.SIGKILL)
    assert both[1].wait(60) == -signal.SIGKILL
    both[1].communicate()
    out, err = both[0].communicate(timeout=120)
    assert both[0].returncode == 0, err
    told = json.loads(out)
    assert (told["own"], told["drawn"], told["index"]) == (60, 60, None)
    there = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "d").glob("0*.png")}
    assert 60 < len(there) < 120
    for name in there:
        assert read_recipe(tmp_path / "d" / name).request.steps == 60
    again = start(1)
    out, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert json.loads(out)["drawn"] == 120 - len(there)
    assert len((tmp_path / "d/index.jsonl").read_text().splitlines()) == 120
    names = {path.name for path in (tmp_path / "d").iterdir()}
    assert len(names) == 122  # nothing half-written is left
    assert {name: (tmp_path / "d" / name).stat().st_mtime_ns for name in there} == there


def test_warnings_are_told_and_not_too_many(call: Call, command: list[str], tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("\n".join(f"{'red blue cat ' * 60} {i}" for i in range(8)))
    _, _, err = call(*command)
    assert err.count("warning: ") == 6
    assert "and 3 more" in err


def test_the_list_of_a_folder_that_is_not_whole_goes(call: Call, command: list[str], monkeypatch) -> None:
    assert call(*command)[0] == 0
    for file in Path("d").glob("*.png"):
        file.unlink()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "process 0 of 2: 3 of 5 pictures, 3 drawn" in call(*command)[1]
    assert not Path("d/index.jsonl").exists()


def refused(found: tuple[int, str, str]) -> str:
    status, out, err = found
    assert (status, out) in ((2, ""), (1, ""))
    assert err.startswith("unstir: ")
    assert err.count("\n") == 1
    assert "bug in unstir" not in err
    return err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--steps", "4"], "drawn with steps 3, not 4"),
        (["--seed", "1"], "drawn with seed 0, not 1"),
        (["--negative", "blue"], "drawn with negative '', not 'blue'"),
        (["--guidance.method", "projected"], "drawn with steering.method 'plain', not 'projected'"),
    ],
)
def test_a_folder_of_other_settings_is_left_alone(call: Call, command: list[str], more: list[str], words: str) -> None:
    assert call(*command)[0] == 0
    before = {path: path.stat().st_mtime_ns for path in Path("d").iterdir()}
    assert words in refused(call(*command, *more))
    assert {path: path.stat().st_mtime_ns for path in Path("d").iterdir()} == before


def test_a_folder_of_other_prompts_is_left_alone(call: Call, command: list[str]) -> None:
    assert call(*command)[0] == 0
    Path("p.txt").write_text("\n".join(["a dog", *LINES]))
    assert "holds 000000-a-red-heart.png, where p.txt asks for 000000-a-dog.png" in refused(call(*command))


BAD: dict[str, tuple[list[str], str]] = {
    "no file": (["nowhere.txt"], "there is no file nowhere.txt"),
    "empty": (["empty.txt"], "empty.txt holds no prompt"),
    "wrong type": (["p.txt.zip"], "prompts are read from .txt"),
    "line": (["bad.jsonl"], "bad.jsonl, line 2: unknown field 'promt'"),
    "seed of a line": (["far.jsonl"], "far.jsonl, line 1: seed must be"),
    "last seed": (["p.txt", "--seed", str(2**32 - 1)], "p.txt, line 2: seed must be"),
    "no model": (["p.txt", "--model", "nowhere"], "nowhere"),
    "number": (["p.txt", "-n", "0"], "must be at least 1, got 0"),
    "batch": (["p.txt", "--batch", "0"], "batch must be at least 1"),
    "steps": (["p.txt", "--steps", "0"], "steps must be"),
    "size": (["p.txt", "--size", "24"], "16x16"),
    "file": (["p.txt", "-o", "p.txt"], "p.txt is a file"),
    "workers": (["p.txt", "--workers", "2"], "--workers belongs to --ray"),
    "syntax": (["syntax.txt", "--prompt-syntax", "weighted"], "syntax.txt, line 2: "),
}


@pytest.mark.parametrize(("more", "words"), BAD.values(), ids=BAD)
def test_bad_input_is_told_in_one_sentence_and_leaves_nothing(
    call: Call, command: list[str], tmp_path: Path, more: list[str], words: str
) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "p.txt.zip").touch()
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"promt": "a"}\n')
    (tmp_path / "far.jsonl").write_text('{"prompt": "a", "seed": 4294967296}\n')
    (tmp_path / "syntax.txt").write_text("a\n()\n")
    before = sorted(tmp_path.iterdir())
    assert words in refused(call(*changed(command, *more)))
    assert sorted(tmp_path.iterdir()) == before


def test_half_a_share_is_refused(call: Call, command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert "set both" in refused(call(*command))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "start one" in refused(call(*command, "--ray"))


def test_ray_that_is_not_there(call: Call, command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "workers must be at least 1, got 0" in refused(call(*command, "--ray", "--workers", 0))
    monkeypatch.setattr("unstir.generation.on_ray.find_spec", lambda name: None)
    assert "pip install 'unstir[ray]'" in refused(call(*command, "--ray"))
    assert not Path("d").exists()


def test_a_model_that_moved_is_the_same(call: Call, command: list[str], model: Path, tmp_path: Path) -> None:
    assert call(*command)[0] == 0
    shutil.copytree(model, tmp_path / "moved")
    assert "5 pictures, 0 drawn" in call(*changed(command, "--model", "moved"))[1]
