"""``unstir redo``: the same pixels again, and no file written over."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from unstir.conditioning.text import WordReader
from unstir.metadata import read_recipe
from unstir.model import ModelConfig, SamplingDefaults, build, save_model
from unstir.nn import DiTConfig
from unstir.nn.text import TextConfig

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    text = TextConfig(vocabulary=300, max_tokens=16, width=16, depth=1, heads=2)
    network = DiTConfig(size=16, patch=8, width=32, depth=1, heads=2, text=text)
    config = ModelConfig(size=16, network=network, sampling=SamplingDefaults(steps=3, guidance_scale=1.5))
    folders = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        made = build(config, WordReader.train(["red blue cat"], vocabulary=300, max_tokens=16))
        with torch.no_grad():
            for weight in made.denoiser.network.parameters():
                weight.add_(torch.randn(weight.shape) * 0.2)
        folders.append(tmp_path_factory.mktemp("models") / f"model{seed}")
        save_model(made, folders[-1])
    return folders[0], folders[1]


def pixels(path: Path | str) -> numpy.ndarray:
    with Image.open(path) as picture:
        return numpy.array(picture)


def assert_refused(found: tuple[int, str, str], statuses: tuple[int, ...] = (2,)) -> None:
    status, out, err = found
    assert status in statuses
    assert out == ""
    assert err.startswith("unstir: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert "bug in unstir" not in err


@pytest.fixture
def drawn(call: Call, models: tuple[Path, Path], tmp_path: Path) -> Path:
    assert call("sample", "red cat", "--seed", 5, "--model", models[0], "-o", "a.png")[0] == 0
    return tmp_path / "a.png"


OPTIONS = [
    [],
    ["--guidance", "1"],
    ["--sampler", "ancestral", "--steps", "4"],
    ["--sampler", "ddim", "--eta", "0.7", "--negative", "blue"],
    ["--guidance.interval=-3,5", "--grid", "uniform_log_snr"],
    ["--prompt-syntax", "weighted", "--negative", "a (blue:0.5) hat"],
]


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_pictures_drawn_in_company_come_out_the_same_to_the_bit(
    call: Call, models: tuple[Path, Path], tmp_path: Path, options: list[str]
) -> None:
    """Five prompts of different lengths in one batch, each drawn again alone."""
    prompts = ["red", "a (blue) cat with a red hat", "cat", "🍕", "blue, red, [blue], red"]
    arguments = ["sample", *prompts, "--seed", 100, "--batch", 5, "--model", models[0], "-o", "p/", *options]
    assert call(*arguments)[0] == 0
    for path in sorted((tmp_path / "p").iterdir()):
        status, out, err = call("redo", path)
        again = path.with_name(f"{path.stem}-redo.png")
        assert (status, err) == (0, "")
        assert str(again) in out
        assert numpy.array_equal(pixels(path), pixels(again)), path.name
        assert read_recipe(again).request == read_recipe(path).request


def test_a_redone_picture_can_be_redone(call: Call, drawn: Path, tmp_path: Path) -> None:
    assert call("redo", drawn)[0] == 0
    assert call("redo", "a-redo.png")[0] == 0
    assert numpy.array_equal(pixels(drawn), pixels(tmp_path / "a-redo-redo.png"))


def test_no_file_is_written_over(call: Call, drawn: Path, tmp_path: Path) -> None:
    contents = {}
    for name in ("a-redo.png", "a-redo-2.png", "a-redo-3.png"):
        assert call("redo", drawn)[0] == 0
        assert (tmp_path / name).exists()
        contents[name] = (tmp_path / name).stat().st_mtime_ns
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in contents} == contents
    before = drawn.read_bytes()
    found = call("redo", drawn, "-o", drawn)
    assert_refused(found)
    assert "never writes over" in found[2]
    assert drawn.read_bytes() == before


def test_the_place_can_be_chosen(call: Call, drawn: Path, tmp_path: Path) -> None:
    assert call("redo", drawn, "-o", "new/folder/")[0] == 0
    assert (tmp_path / "new/folder/a-redo.png").exists()
    assert call("redo", drawn, "-o", "new/b.png")[0] == 0
    assert numpy.array_equal(pixels("new/b.png"), pixels(drawn))


def test_json_is_one_object(call: Call, drawn: Path, tmp_path: Path) -> None:
    found = json.loads(call("redo", drawn, "--json")[1])
    assert found["source"] == str(drawn)
    assert found["picture"]["file"] == str(tmp_path / "a-redo.png")
    assert (found["picture"]["prompt"], found["picture"]["seed"]) == ("red cat", 5)


def test_a_model_that_moved_is_given(call: Call, models: tuple[Path, Path], tmp_path: Path) -> None:
    """Without --model the old place is named; another model is refused by its checksum."""
    shutil.copytree(models[0], tmp_path / "m")
    assert call("sample", "red", "--seed", 5, "--model", "m", "-o", "a.png")[0] == 0
    (tmp_path / "m").rename(tmp_path / "moved")
    found = call("redo", "a.png")
    assert_refused(found)
    assert str(tmp_path / "m") in found[2]
    assert call("redo", "a.png", "--model", "moved")[0] == 0
    assert numpy.array_equal(pixels("a.png"), pixels("a-redo.png"))
    found = call("redo", "a.png", "--model", models[1])
    assert_refused(found)
    assert "another model" in found[2]


@pytest.mark.parametrize(
    "kind", ["missing", "folder", "text", "foreign", "cut", "jpeg", "bad recipe", "unknown setting", "impossible"]
)
def test_what_was_not_drawn_here_is_refused(call: Call, drawn: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "given.png"
    if kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("no picture")
    elif kind == "foreign":
        Image.new("RGB", (4, 4)).save(path)
    elif kind == "cut":
        path.write_bytes(drawn.read_bytes()[:-100])
    elif kind == "jpeg":
        path = tmp_path / "given.jpg"
        Image.open(drawn).convert("RGB").save(path)
    elif kind != "missing":
        from PIL.PngImagePlugin import PngInfo

        with Image.open(drawn) as picture:
            recipe = json.loads(picture.info["unstir"])
        if kind == "unknown setting":
            recipe["request"]["colour"] = 3
        elif kind == "impossible":
            recipe["request"].update(steps=-4, width=10**9)
        info = PngInfo()
        info.add_itxt("unstir", json.dumps(recipe) if kind != "bad recipe" else "{")
        Image.new("RGB", (4, 4)).save(path, pnginfo=info)
    before = sorted(tmp_path.iterdir())
    found = call("redo", path)
    assert_refused(found)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("output", ["/proc/x/", "/dev/null/x.png", "out.gif"])
def test_places_that_cannot_be_written_are_told(call: Call, drawn: Path, tmp_path: Path, output: str) -> None:
    before = sorted(tmp_path.iterdir())
    assert_refused(call("redo", drawn, "-o", output), (1, 2))
    assert sorted(tmp_path.iterdir()) == before
