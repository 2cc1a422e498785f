"""``unstir sample``: seeds, names, metadata, warnings, and every bad input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from unstir.cli.options import parse_interval, parse_size
from unstir.metadata import read_recipe
from unstir.pipeline import load

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, noisy_model: Callable[[Path], Path]) -> Path:
    """A model with random weights: it draws noise, but its own."""
    return noisy_model(tmp_path_factory.mktemp("models") / "model")


def everything(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def pixels(path: Path | str) -> numpy.ndarray:
    with Image.open(path) as picture:
        return numpy.array(picture)


def assert_refused(found: tuple[int, str, str], statuses: tuple[int, ...] = (2,)) -> None:
    status, out, err = found
    assert status in statuses
    assert out == ""
    assert err.startswith("unstir: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert "Traceback" not in err
    assert "bug in unstir" not in err


def test_pictures_are_numbered_named_and_seeded_in_order(call: Call, model: Path, tmp_path: Path) -> None:
    """Picture k of prompt j has seed S + j n + k, in its name's order, in the text and in its metadata."""
    status, out, err = call("sample", "a red heart", "pizza", "-n", 2, "--seed", 40, "--model", model, "-o", "p/")
    assert (status, err) == (0, "")
    names = ["0000-a-red-heart.png", "0001-a-red-heart.png", "0002-pizza.png", "0003-pizza.png"]
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == names
    recipes = [read_recipe(tmp_path / "p" / name) for name in names]
    assert [recipe.request.seed for recipe in recipes] == [40, 41, 42, 43]
    assert [recipe.request.prompt for recipe in recipes] == ["a red heart", "a red heart", "pizza", "pizza"]
    assert "4 pictures, seed 40 to 43" in out
    call("sample", "pizza", "--seed", 42, "--model", model, "-o", "p")
    assert (tmp_path / "p/0004-pizza.png").exists()
    assert (
        numpy.abs(pixels(tmp_path / "p/0004-pizza.png").astype(int) - pixels(tmp_path / "p/0002-pizza.png")).max() <= 1
    )


def test_the_picture_is_the_pipelines(call: Call, model: Path) -> None:
    options = ("--steps", 4, "--sampler", "ddim", "--eta", 0.5, "--guidance", 2, "--grid", "uniform_log_snr")
    more = ("--negative", "blue", "--guidance.interval", "-3,4", "--batch", 2)
    assert call("sample", "red cat", "--seed", 9, "--model", model, "-o", "one.png", *options, *more)[0] == 0
    expected = load(model).sample(
        "red cat", seed=9, steps=4, sampler="ddim", eta=0.5, guidance_scale=2.0, grid="uniform_log_snr",
        negative="blue", guidance_interval=(-3.0, 4.0),
    )  # fmt: skip
    assert numpy.array_equal(pixels("one.png"), numpy.array(expected[0]))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".PNG"])
def test_a_file_is_written_in_the_format_of_its_suffix(call: Call, model: Path, suffix: str) -> None:
    assert call("sample", "x", "--model", model, "-o", f"new/deep/out{suffix}", "--seed", 0)[0] == 0
    with Image.open(f"new/deep/out{suffix}") as picture:
        assert picture.size == (16, 16)
        assert picture.format == {".png": "PNG", ".PNG": "PNG", ".webp": "WEBP"}.get(suffix, "JPEG")


def test_without_a_seed_a_fresh_one_is_drawn_told_and_stored(call: Call, model: Path, tmp_path: Path) -> None:
    seeds = set()
    for number in range(3):
        out = call("sample", "x", "--model", model, "-o", "p/")[1]
        recipe = read_recipe(tmp_path / f"p/{number:04d}-x.png")
        assert f"seed {recipe.request.seed}," in out
        seeds.add(recipe.request.seed)
    assert len(seeds) == 3
    again = call("sample", "x", "--model", model, "-o", "again.png", "--seed", recipe.request.seed)
    assert again[0] == 0
    assert numpy.array_equal(pixels("again.png"), pixels(f"p/{number:04d}-x.png"))


def test_json_is_one_object_with_all_that_was_drawn(call: Call, model: Path, tmp_path: Path) -> None:
    status, out, err = call("sample", "red", "-n", 2, "--seed", 3, "--model", model, "-o", "p/", "--json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert [picture["seed"] for picture in found["pictures"]] == [3, 4]
    assert [picture["prompt"] for picture in found["pictures"]] == ["red", "red"]
    assert all(Path(picture["file"]).is_file() and Path(picture["file"]).is_absolute() for picture in found["pictures"])
    assert found["checksum"] == load(model).model.checksum
    assert set(found["seconds"]) == {"import", "load", "draw", "total"}


def test_a_prompt_that_is_too_long_is_told(call: Call, model: Path, tmp_path: Path) -> None:
    """On stderr, in the JSON and in the PNG: which part was read."""
    long = "red blue cat " * 60
    status, out, err = call("sample", long, "--model", model, "-o", "a.png")
    assert status == 0
    assert err.startswith("warning: ")
    assert "tokens" in err
    assert "warning" not in out
    found = json.loads(call("sample", long, "red", "--model", model, "-o", "p/", "--json")[1])
    assert ["tokens" in " ".join(picture["warnings"]) for picture in found["pictures"]] == [True, False]
    assert "tokens" in " ".join(read_recipe(tmp_path / "a.png").warnings)
    assert read_recipe(sorted((tmp_path / "p").iterdir())[1]).warnings == ()
    assert call("sample", "red", "--model", model, "-o", "b.png")[2] == ""


def test_pictures_without_metadata_carry_none(call: Call, model: Path) -> None:
    assert call("sample", "secret", "--model", model, "-o", "a.png", "--no-metadata")[0] == 0
    assert b"secret" not in Path("a.png").read_bytes()
    with Image.open("a.png") as picture:
        assert not picture.info


@pytest.mark.parametrize(
    "prompt", ["🍕 'quoted' \"twice\"", "two\nlines", "Steps: 5, Seed: 3", "Negative prompt: x", "-", "\ttab", "--"]
)
def test_any_prompt_is_drawn_and_comes_back(call: Call, model: Path, tmp_path: Path, prompt: str) -> None:
    arguments = ("--model", model, "-o", "p/", "--seed", 1)
    status, _, err = call("sample", *arguments, *(["--"] if prompt.startswith("-") else []), prompt)
    assert (status, err) == (0, "")
    [path] = (tmp_path / "p").iterdir()
    assert read_recipe(path).request.prompt == prompt


def test_a_prompt_that_is_not_utf8_is_refused_or_drawn(call: Call, model: Path, tmp_path: Path) -> None:
    """As the shell gives bytes that are no text: one sentence at most."""
    found = call("sample", "caf\udce9", "--model", model, "-o", "p/")
    if found[0] != 0:
        assert_refused(found)
        assert everything(tmp_path) == {}


BAD = {
    "no model": ["x", "--model", "nowhere"],
    "empty prompt": ["", "--model", "MODEL"],
    "blank prompt": [" \t", "--model", "MODEL"],
    "no prompt": ["--model", "MODEL"],
    "size that does not fit": ["x", "--model", "MODEL", "--size", "24"],
    "size of two": ["x", "--model", "MODEL", "--size", "16x32"],
    "size of three": ["x", "--model", "MODEL", "--size", "16x16x16"],
    "size of words": ["x", "--model", "MODEL", "--size", "big"],
    "size of nothing": ["x", "--model", "MODEL", "--size", ""],
    "size zero": ["x", "--model", "MODEL", "--size", "0x0"],
    "negative size": ["x", "--model", "MODEL", "--size=-16"],
    "huge size": ["x", "--model", "MODEL", "--size", "16000000000"],
    "sampler": ["x", "--model", "MODEL", "--sampler", "dpm2"],
    "grid": ["x", "--model", "MODEL", "--grid", "karass"],
    "seed below": ["x", "--model", "MODEL", "--seed", "-1"],
    "seed above": ["x", "--model", "MODEL", "--seed", str(2**32)],
    "last seed above": ["x", "--model", "MODEL", "--seed", str(2**32 - 1), "-n", "2"],
    "seed of words": ["x", "--model", "MODEL", "--seed", "abc"],
    "seed of fractions": ["x", "--model", "MODEL", "--seed", "1.5"],
    "steps zero": ["x", "--model", "MODEL", "--steps", "0"],
    "steps below": ["x", "--model", "MODEL", "--steps", "-3"],
    "steps above": ["x", "--model", "MODEL", "--steps", "100000"],
    "n zero": ["x", "--model", "MODEL", "-n", "0"],
    "n below": ["x", "--model", "MODEL", "-n", "-1"],
    "batch zero": ["x", "--model", "MODEL", "--batch", "0"],
    "guidance nan": ["x", "--model", "MODEL", "--guidance", "nan"],
    "guidance inf": ["x", "--model", "MODEL", "--guidance", "inf"],
    "interval": ["x", "--model", "MODEL", "--guidance.interval", "4"],
    "interval reversed": ["x", "--model", "MODEL", "--guidance.interval", "4,-4"],
    "interval nan": ["x", "--model", "MODEL", "--guidance.interval", "nan,1"],
    "eta elsewhere": ["x", "--model", "MODEL", "--eta", "0.5"],
    "eta above": ["x", "--model", "MODEL", "--eta", "2", "--sampler", "ddim"],
    "several into one": ["x", "y", "--model", "MODEL", "-o", "out.png"],
    "n into one": ["x", "-n", "2", "--model", "MODEL", "-o", "out.png"],
    "below a file": ["x", "--model", "MODEL", "-o", "/dev/null/x/"],
    "file below a file": ["x", "--model", "MODEL", "-o", "/dev/null/x.png"],
    "cannot be made": ["x", "--model", "MODEL", "-o", "/proc/x/"],
    "cannot be written": ["x", "--model", "MODEL", "-o", "/proc/x.png"],
    "suffix": ["x", "--model", "MODEL", "-o", "new/out.gif"],
    "a name too long": ["x", "--model", "MODEL", "-o", "a/" + "n" * 300 + "/"],
    "device": ["x", "--model", "MODEL", "--device", "abacus"],
    "precision": ["x", "--model", "MODEL", "--precision", "float16"],
    "option": ["x", "--model", "MODEL", "--colour", "red"],
}


@pytest.mark.parametrize("arguments", BAD.values(), ids=BAD)
def test_bad_input_is_told_in_one_sentence_and_leaves_nothing(
    call: Call, model: Path, tmp_path: Path, arguments: list[str]
) -> None:
    found = call("sample", *(model if argument == "MODEL" else argument for argument in arguments))
    assert_refused(found, (1, 2) if any("/proc" in a or "/dev" in a or "nnn" in a for a in arguments) else (2,))
    assert everything(tmp_path) == {}


def test_a_suffix_is_refused_before_anything_is_drawn(call: Call, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody should wait for pictures that cannot be written."""
    from unstir.pipeline import Pipeline

    def never(*arguments: object) -> None:
        raise AssertionError("drawn")

    monkeypatch.setattr(Pipeline, "_draw", never)
    assert_refused(call("sample", "x", "--model", model, "-o", "out.gif"))


def flip(place: Path) -> None:
    weights = place / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 4
    weights.write_bytes(bytes(content))


def exchange(place: Path) -> None:
    """Weights of another network, and no checksum that would tell."""
    save_file({"x": torch.zeros(2)}, place / "model.safetensors")
    content = json.loads((place / "unstir.json").read_text())
    content.pop("checksum")
    (place / "unstir.json").write_text(json.dumps(content))


def edit(old: str, new: str) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        description = place / "unstir.json"
        assert old in description.read_text()
        description.write_text(description.read_text().replace(old, new, 1))

    return change


HARM: dict[str, Callable[[Path], object]] = {
    "flipped": flip,
    "foreign weights": exchange,
    "no weights": lambda place: (place / "model.safetensors").unlink(),
    "no tokenizer": lambda place: (place / "tokenizer.json").unlink(),
    "bad tokenizer": lambda place: (place / "tokenizer.json").write_text("{}"),
    "bad description": lambda place: (place / "unstir.json").write_text("{"),
    "binary description": lambda place: (place / "unstir.json").write_bytes(b"\xff\xfe\x00"),
    "future": edit('"format": 1', '"format": 99'),
    "unknown setting": edit('"size": 16,', '"size": 16, "colour": 3,'),
}
FOREIGN: dict[str, Callable[[Path], object]] = {
    "pickle": lambda place: place.write_bytes(b"\x80\x04\x95evil"),
    "safetensors": lambda place: save_file({"x": torch.zeros(2)}, place),
    "picture": lambda place: Image.new("RGB", (4, 4)).save(place, "PNG"),
    "empty": lambda place: place.mkdir(),
    "diffusers": lambda place: (place.mkdir(), (place / "model_index.json").write_text("{}")),
}


def foreign(tmp_path: Path, model: Path, kind: str) -> Path:
    place = tmp_path / ("given.pt" if kind == "pickle" else "given")
    if kind in HARM:
        shutil.copytree(model, place)
    {**HARM, **FOREIGN}[kind](place)
    return place


@pytest.mark.parametrize("kind", [*HARM, *FOREIGN])
def test_what_is_no_model_is_refused_by_name(call: Call, model: Path, tmp_path: Path, kind: str) -> None:
    place = foreign(tmp_path, model, kind)
    before = everything(tmp_path)
    found = call("sample", "x", "--model", place, "-o", "p/")
    assert_refused(found)
    assert place.name in found[2]
    words = {"pickle": "pickle", "diffusers": "diffusers", "flipped": "damaged", "future": "99"}
    assert words.get(kind, "") in found[2]
    assert everything(tmp_path) == before


def test_a_misspelt_name_is_suggested(call: Call, model: Path) -> None:
    assert "did you mean ddim?" in call("sample", "x", "--model", model, "--sampler", "ddmi")[2]


@pytest.mark.parametrize(
    ("text", "size"), [(None, (None, None)), ("64", (64, 64)), ("96x64", (96, 64)), ("96X64", (96, 64))]
)
def test_sizes(text: str | None, size: tuple[int | None, int | None]) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(("text", "interval"), [(None, None), ("-4,4", (-4.0, 4.0)), (" -1.5 , 2e0", (-1.5, 2.0))])
def test_intervals(text: str | None, interval: tuple[float, float] | None) -> None:
    assert parse_interval(text) == interval
