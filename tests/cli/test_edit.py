"""``unstir edit`` and the redo of what it drew: pixels kept, pixels again, and every bad input one sentence."""

from __future__ import annotations

import json
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
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = TextConfig(vocabulary=300, max_tokens=16, width=16, depth=1, heads=2)
    network = DiTConfig(size=16, patch=8, width=32, depth=1, heads=2, text=text)
    config = ModelConfig(size=16, network=network, sampling=SamplingDefaults(steps=3, guidance_scale=1.5))
    torch.manual_seed(0)
    made = build(config, WordReader.train(["red blue cat"], vocabulary=300, max_tokens=16))
    with torch.no_grad():
        for weight in made.denoiser.network.parameters():
            weight.add_(torch.randn(weight.shape) * 0.2)
    save_model(made, tmp_path_factory.mktemp("models") / "model")
    return next(tmp_path_factory.getbasetemp().glob("models*/model"))


def pixels(path: Path | str) -> numpy.ndarray:
    with Image.open(path) as picture:
        return numpy.array(picture)


def noisy(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(numpy.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=numpy.uint8))


def assert_refused(found: tuple[int, str, str], words: str) -> None:
    status, out, err = found
    assert (status, out) == (2, "")
    assert err.startswith("unstir: ")
    assert err.count("\n") == 1
    assert words in err


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A picture, a mask of its left half, another picture, and some that are none."""
    noisy(16, 16).save(tmp_path / "a.png")
    noisy(16, 16, seed=1).save(tmp_path / "b.png")
    noisy(20, 16).save(tmp_path / "wide.png")
    mask = Image.new("L", (16, 16), 0)
    mask.paste(255, (0, 0, 8, 16))
    mask.save(tmp_path / "mask.png")
    Image.new("L", (16, 16), 0).save(tmp_path / "black.png")
    (tmp_path / "damaged.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    (tmp_path / "empty.png").write_bytes(b"")
    Image.new("1", (9500, 9500)).save(tmp_path / "bomb.png")
    return tmp_path


def test_what_is_not_painted_is_kept_and_the_recipe_tells_the_edit(call: Call, model: Path, files: Path) -> None:
    options = ["--prompt", "red", "--mask", "mask.png", "--seed", 4, "-n", 2, "--model", model, "-o", "out/"]
    status, out, err = call("edit", "a.png", *options)
    assert (status, err) == (0, "")
    assert "2 pictures, seed 4 to 5" in out
    for path in sorted((files / "out").iterdir()):
        assert numpy.array_equal(pixels(path)[:, 8:], pixels("a.png")[:, 8:])
        assert not numpy.array_equal(pixels(path)[:, :8], pixels("a.png")[:, :8])
        edit = read_recipe(path).request.edit
        assert edit is not None
        assert edit.mask is not None
        assert (edit.source.name, edit.mask.name) == (str(files / "a.png"), str(files / "mask.png"))
        assert edit.strength == 1
        with Image.open(path) as picture:
            assert "Denoising strength: 1" in picture.info["parameters"]


EDITS = [
    ["a.png", "--prompt", "red", "-n", "3"],
    ["a.png", "--prompt", "red", "--mask", "mask.png", "--resample", "2", "-n", "2", "--sampler", "ddim"],
    ["wide.png", "--prompt", "red", "--fit", "pad", "--strength", "0.4"],
    ["a.png", "--prompt", "red", "--tile"],
    ["a.png", "--between", "b.png", "--prompt", "red", "--to-prompt", "blue", "--frames", "3"],
    ["--prompt", "red", "--to-prompt", "a blue cat", "--frames", "3"],
]


@pytest.mark.parametrize("arguments", EDITS, ids=" ".join)
def test_an_edit_is_drawn_again_to_the_bit(call: Call, model: Path, files: Path, arguments: list[str]) -> None:
    assert call("edit", *arguments, "--seed", 7, "--model", model, "-o", "out/")[0] == 0
    for path in sorted((files / "out").iterdir()):
        status, _, err = call("redo", path)
        assert (status, err) == (0, "")
        again = path.with_name(f"{path.stem}-redo.png")
        assert numpy.array_equal(pixels(path), pixels(again)), path.name
        assert read_recipe(again).request == read_recipe(path).request


def test_redo_asks_for_pictures_that_moved_and_looks_at_their_pixels(call: Call, model: Path, files: Path) -> None:
    drawn = ["a.png", "--prompt", "red", "--mask", "mask.png", "--seed", 7, "--model", model, "-o", "out.png"]
    assert call("edit", *drawn)[0] == 0
    (files / "a.png").rename(files / "moved.png")
    (files / "mask.png").rename(files / "moved-mask.png")
    assert_refused(call("redo", "out.png"), "give it with --source")
    assert_refused(call("redo", "out.png", "--source", "moved.png"), "give it with --mask")
    assert_refused(call("redo", "out.png", "--source", "b.png"), "give the right one with --source")
    assert_refused(call("redo", "out.png", "--source", "nope.png"), "there is no picture nope.png")
    assert not (files / "out-redo.png").exists()
    with Image.open(files / "moved.png") as picture:  # another file of the same pixels
        picture.save(files / "moved.webp", lossless=True)
    assert call("redo", "out.png", "--source", "moved.webp", "--mask", "moved-mask.png")[0] == 0
    assert numpy.array_equal(pixels("out.png"), pixels("out-redo.png"))
    noisy(16, 16, seed=5).save(files / "a.png")
    assert_refused(call("redo", "out.png", "--mask", "moved-mask.png"), "give the old one with --source")


def test_redo_of_a_drawing_without_a_source_takes_none(call: Call, model: Path, files: Path) -> None:
    assert call("sample", "red", "--seed", 1, "--model", model, "-o", "plain.png")[0] == 0
    assert_refused(call("redo", "plain.png", "--source", "a.png"), "drawn without any source; leave --source out")


def test_a_picture_is_varied_by_its_own_prompt(call: Call, model: Path, files: Path) -> None:
    assert call("sample", "a red cat", "--seed", 1, "--model", model, "-o", "cat.png")[0] == 0
    assert call("edit", "cat.png", "--variations", 2, "--seed", 8, "--model", model, "-o", "v/")[0] == 0
    requests = [read_recipe(path).request for path in sorted((files / "v").iterdir())]
    assert [(r.prompt, r.seed) for r in requests] == [("a red cat", 8), ("a red cat", 9)]
    assert_refused(call("edit", "a.png", "--model", model), "say what to draw with --prompt")


def test_strength_0_gives_the_picture_back(call: Call, model: Path, files: Path) -> None:
    options = ["--prompt", "red", "--model", model, "--seed", 0]
    status, _, err = call("edit", "a.png", "--strength", 0, *options, "-o", "o.png")
    assert status == 0
    assert "the picture is as it was" in err
    assert numpy.array_equal(pixels("o.png"), pixels("a.png"))
    status, _, err = call("edit", "a.png", "--mask", "black.png", *options, "-o", "p.png")
    assert status == 0
    assert "the mask paints nothing" in err
    assert numpy.array_equal(pixels("p.png"), pixels("a.png"))


def test_json_is_one_object(call: Call, model: Path, files: Path) -> None:
    options = ["--prompt", "red", "--strength", 0.5, "--seed", 3, "--model", model, "-o", "o.png", "--json"]
    found = json.loads(call("edit", "a.png", *options)[1])
    (one,) = found["pictures"]
    assert one["edit"]["strength"] == 0.5
    assert one["edit"]["source"]["name"] == str(files / "a.png")


BAD = [
    ("nope.png", [], "there is no picture nope.png"),
    (".", [], "is a folder, no picture"),
    ("damaged.png", [], "damaged.png: The file of 200 bytes is truncated"),
    ("empty.png", [], "empty.png: The file is empty"),
    ("bomb.png", [], "of which 89,478,485 are allowed"),
    ("wide.png", [], "draws 16x16 pictures, got 20x16; bring the picture to that with --fit"),
    ("a.png", ["--mask", "nope.png"], "there is no mask nope.png"),
    ("a.png", ["--mask", "damaged.png"], "truncated"),
    ("wide.png", ["--mask", "mask.png", "--fit", "crop"], "the mask is 16x16, the picture 20x16"),
    ("a.png", ["--strength", "1.1"], "strength must be from 0"),
    ("a.png", ["--strength", "-0.1"], "strength must be from 0"),
    ("a.png", ["--strength", "nan"], "strength must be from 0"),
    ("a.png", ["--steps", "0"], "steps must be a whole number from 1"),
    ("a.png", ["--sampler", "banana"], "unknown sampler"),
    ("a.png", ["--prompt", " "], "the prompt is empty"),
    ("a.png", ["-n", "0"], "at least 1"),
    ("a.png", ["--extend", "1,2,3"], "LEFT,TOP,RIGHT,BOTTOM"),
    ("a.png", ["--extend", "4,0,0,0"], "draws 16x16 pictures, got 20x16; extend the picture by as much as is missing"),
    ("a.png", ["--extend", "-1,0,0,0"], "four numbers of pixels"),
    ("wide.png", ["--size", "16"], "the canvas is 20x16; bring the picture to that size with --fit"),
    ("a.png", ["--fit", "squash"], "unknown fit"),
    ("a.png", ["--size", "8"], "draws 16x16 pictures, got 8x8"),
    ("a.png", ["--resample", "2"], "give a mask or extend"),
    ("a.png", ["--resample", "0", "--mask", "mask.png"], "resample must be from 1"),
    ("a.png", ["--frames", "3"], "frames are those of a way"),
    ("a.png", ["--to-prompt", "x"], "give it with --between"),
    ("a.png", ["--between", "b.png", "--frames", "1"], "at least 2 frames"),
    ("a.png", ["--between", "b.png", "-n", "3"], "say --frames"),
    ("a.png", ["--between", "wide.png"], "canvas is 20x16"),
    ("a.png", ["--between", "b.png", "--mask", "mask.png"], "leave mask, extend and strength out"),
    ("a.png", ["--between", "b.png", "--sampler", "ancestral"], "without fresh noise"),
]


@pytest.mark.parametrize(("picture", "options", "words"), BAD, ids=[" ".join([p, *o]) for p, o, _ in BAD])
def test_bad_input_is_one_sentence(
    call: Call, model: Path, files: Path, picture: str, options: list[str], words: str
) -> None:
    before = sorted(files.iterdir())
    said = options if "--prompt" in options else [*options, "--prompt", "red"]
    assert_refused(call("edit", picture, *said, "--model", model, "-o", "out/"), words)
    assert sorted(files.iterdir()) == before


def test_without_a_picture_there_is_a_way_or_nothing(call: Call, model: Path) -> None:
    assert_refused(call("edit", "--prompt", "red", "--model", model), "there is no picture; name one")
    assert_refused(call("edit", "--between", "b.png", "--prompt", "red"), "there is no picture; name one")
    assert_refused(call("edit", "--to-prompt", "red"), "there is no prompt")
