"""The recipe inside a picture: whatever was asked comes back from the file, and other tools can read it too."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from unstir.config import to_dict
from unstir.metadata import PICTURE_SUFFIXES, Recipe, as_png, parameters, read_recipe, recipe_in, save_picture
from unstir.pipeline import Request

REQUEST = Request(
    prompt="a red heart",
    seed=2**32 - 1,
    steps=20,
    sampler="dpm++2m",
    grid="trailing",
    guidance_scale=1.5,
    guidance_interval=(-math.inf, 1 / 3),
    width=64,
    height=32,
    row=2,
    rows=5,
)
RECIPE = Recipe(request=REQUEST, model="/models/emoji", checksum="0123456789abcdef" * 4, warnings=("w1", 'w"2'))
PICTURE = Image.frombytes("RGB", (9, 7), bytes(i * 37 % 256 for i in range(9 * 7 * 3)))
# What people type, and what breaks parsers (A1111 issues 12128 and 6220).
HARD = [
    "Steps: 5",
    "a\nNegative prompt: b\nSteps: 5, Sampler: x, Seed: 3",
    'he said "hi", \\n, {"a": 1}',
    "👩🏽‍🚒 🇫🇷 猫 ﷽",
    "\x01\x02\x1b[31m\x7f\x85\u2028\ufeff",
    " leading and trailing \n\n",
    "\r\n",
    "x" * 5000,
    "a: b, c: d",
]
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))


def parse(text: str) -> tuple[str, str, dict[str, str]]:
    """An independent reader of the form that formats.md 3.5 describes: (prompt, negative, key: value pairs).

    Only the last line holds pairs; a quoted value is JSON; the negative prompt begins at its own line.
    """
    *lines, last = text.split("\n")
    pairs: dict[str, str] = {}
    rest = last
    while rest:
        key, value = re.match(r"([A-Za-z][\w \-/]*): ", rest), ""
        assert key, rest
        rest = rest[key.end() :]
        if rest.startswith('"'):
            value, end = json.JSONDecoder().raw_decode(rest)
        else:
            end = len(rest) if ", " not in rest else rest.index(", ")
            value = rest[:end]
        pairs[key[1]], rest = value, rest[end:].removeprefix(", ")
    body = "\n".join(lines)
    prompt, _, negative = body.partition("\nNegative prompt: ")
    return prompt, negative, pairs


@pytest.fixture(scope="module")
def png(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "x.png"
    save_picture(PICTURE, path, RECIPE)
    return path


def chunks(path: Path) -> dict[str, Any]:
    with Image.open(path) as picture:
        picture.load()
        return dict(picture.info)


def with_recipe(path: Path, text: str) -> Path:
    """A PNG with any text as its recipe."""
    info = PngInfo()
    info.add_itxt("unstir", text)
    PICTURE.copy().save(path, pnginfo=info)
    return path


@pytest.mark.parametrize("prompt", HARD)
@pytest.mark.parametrize("negative", ["", "Steps: 9, Seed: 1\nx"])
def test_hard_prompts_come_back(tmp_path: Path, prompt: str, negative: str) -> None:
    recipe = replace(RECIPE, request=replace(REQUEST, prompt=prompt, negative=negative))
    save_picture(PICTURE, tmp_path / "x.png", recipe)
    assert read_recipe(tmp_path / "x.png") == recipe


@settings(max_examples=40)
@given(prompt=TEXTS, negative=TEXTS, model=TEXTS, warnings=st.lists(TEXTS, max_size=2), scale=st.floats(-100, 100))
def test_every_recipe_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    prompt: str,
    negative: str,
    model: str,
    warnings: list[str],
    scale: float,
) -> None:
    """Any text, and floats to the last bit."""
    request = replace(REQUEST, prompt=prompt, negative=negative, guidance_scale=scale)
    recipe = replace(RECIPE, request=request, model=model, warnings=tuple(warnings))
    path = tmp_path_factory.getbasetemp() / "any.png"
    save_picture(PICTURE, path, recipe)
    assert read_recipe(path) == recipe


def test_the_picture_comes_back(png: Path) -> None:
    """The chunks are beside the pixels, not in them."""
    with Image.open(png) as picture:
        assert picture.mode == "RGB"
        assert picture.tobytes() == PICTURE.tobytes()


def test_the_chunks_of_a_png(png: Path) -> None:
    """`parameters`, `unstir` and `Software`, and none by the name that belongs to a graph."""
    found = chunks(png)
    assert set(found) >= {"parameters", "unstir", "Software"}
    assert not {"prompt", "workflow"} & set(found)
    assert str(found["Software"]).startswith("unstir ")
    assert found["parameters"] == parameters(RECIPE)
    assert json.loads(found["unstir"]) == json.loads(json.dumps(to_dict(RECIPE)))


def test_parameters_can_be_read_by_others() -> None:
    """The last line gives every setting; the prompt comes first, the negative prompt on its own line."""
    text = parameters(replace(RECIPE, request=replace(REQUEST, negative="blue, ugly")))
    prompt, negative, pairs = parse(text)
    assert (prompt, negative) == ("a red heart", "blue, ugly")
    assert pairs == {
        "Steps": "20",
        "Sampler": "dpm++2m",
        "CFG scale": "1.5",
        "Seed": "4294967295",
        "Size": "64x32",
        "Model hash": "0123456789",
        "Model": "emoji",
        "Version": f"unstir {RECIPE.version}",
    }


@given(TEXTS, TEXTS, TEXTS.filter(lambda text: "/" not in text and text not in (".", "..")))
@example("Steps: 5", "Seed: 3", 'my "best", model: 7\nSteps: 1')
@example("a", "b", "")
def test_the_last_line_holds_the_settings_whatever_was_typed(prompt: str, negative: str, model: str) -> None:
    """No prompt, and no name of a model, can forge a setting or break the line."""
    recipe = replace(RECIPE, model=f"/models/{model}x", request=replace(REQUEST, prompt=prompt, negative=negative))
    text = parameters(recipe)
    _, _, pairs = parse(text)
    assert pairs["Steps"] == "20"
    assert pairs["Seed"] == "4294967295"
    assert pairs["Model"] == f"{model}x"
    assert next(iter(pairs)) == "Steps"
    body = text[: text.rindex("\n")]
    assert body == prompt + (f"\nNegative prompt: {negative}" if negative else "")


def test_no_negative_prompt_no_line() -> None:
    assert "Negative" not in parameters(RECIPE)
    assert parameters(RECIPE).count("\n") == 1


def test_a_picture_without_recipe_says_nothing(tmp_path: Path) -> None:
    """--no-metadata: no text of any kind, the prompt nowhere in the bytes."""
    save_picture(PICTURE, tmp_path / "x.png", None)
    assert chunks(tmp_path / "x.png") == {}
    data = (tmp_path / "x.png").read_bytes()
    assert not any(kind in data for kind in (b"tEXt", b"iTXt", b"zTXt", b"eXIf", b"tIME", b"unstir"))
    with pytest.raises(ValueError, match="no recipe"):
        read_recipe(tmp_path / "x.png")


@pytest.mark.parametrize("suffix", [*PICTURE_SUFFIXES, ".PNG", ".JPG", ".WebP"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    """The suffix decides the format; PNG and WebP are lossless, JPEG is close; only PNG carries the recipe."""
    path = tmp_path / f"x{suffix}"
    save_picture(PICTURE, path, RECIPE)
    with Image.open(path) as picture:
        expected = {".png": "PNG", ".webp": "WEBP"}.get(suffix.lower(), "JPEG")
        assert picture.format == expected
        assert picture.size == PICTURE.size
        if expected != "JPEG":
            assert picture.convert("RGB").tobytes() == PICTURE.tobytes()
    if expected == "PNG":
        assert read_recipe(path) == RECIPE
    else:
        with pytest.raises(ValueError, match="no recipe"):
            read_recipe(path)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("name", ["x", "x.gif", "x.bmp", "x.png.txt", ".png"])
def test_other_suffixes_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"use \.png, \.jpg"):
        save_picture(PICTURE, tmp_path / name, RECIPE)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["OSError", "KeyboardInterrupt"])
@pytest.mark.parametrize("is_there", [False, True])
def test_an_interrupted_save_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, error: BaseException, is_there: bool
) -> None:
    """Half a file is no file: neither it nor a temporary stays, and what was there before is untouched."""
    path = tmp_path / f"x{suffix}"
    if is_there:
        path.write_bytes(b"before")

    def half(self: object, file: Any, *_: object, **__: object) -> None:
        Path(file).write_bytes(b"half")
        raise error

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(type(error)):
        save_picture(PICTURE, path, RECIPE)
    assert os.listdir(tmp_path) == ([path.name] if is_there else [])
    assert not is_there or path.read_bytes() == b"before"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        save_picture(PICTURE.copy(), tmp_path / "nowhere" / "x.png", RECIPE)


def test_a_save_that_failed_leaves_nothing_on_the_picture(tmp_path: Path) -> None:
    """Pillow keeps the options of a save that failed on the picture, and prefers them to those of the next one.

    What was to be written with a recipe and could not be is still written without, or with another, afterwards.
    """
    picture = PICTURE.copy()
    with pytest.raises(OSError, match="nowhere"):
        save_picture(picture, tmp_path / "nowhere" / "x.png", RECIPE)
    save_picture(picture, tmp_path / "bare.png", None)
    assert chunks(tmp_path / "bare.png") == {}
    other = replace(RECIPE, model="other")
    save_picture(picture, tmp_path / "other.png", other)
    assert read_recipe(tmp_path / "other.png") == other


def test_saving_replaces(tmp_path: Path) -> None:
    save_picture(PICTURE, tmp_path / "x.png", None)
    save_picture(PICTURE, tmp_path / "x.png", RECIPE)
    assert read_recipe(tmp_path / "x.png") == RECIPE


# --- what has no recipe ---


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no picture"):
        read_recipe(tmp_path / "x.png")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        read_recipe(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\x89PNG\r\n\x1a\n" + bytes(40), b"\x80\x04."]
)
def test_no_picture(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(ValueError, match="no picture, or a damaged one"):
        read_recipe(tmp_path / "x.png")


def test_a_picture_of_somebody_else(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("parameters", "a red heart\nSteps: 20, Sampler: Euler a, Seed: 1")
    PICTURE.copy().save(tmp_path / "x.png", pnginfo=info)
    with pytest.raises(ValueError, match="no recipe of unstir"):
        read_recipe(tmp_path / "x.png")


def test_a_truncated_picture(png: Path, tmp_path: Path) -> None:
    """Cut anywhere in its pixels or before: ValueError, never another exception, never a wrong recipe."""
    data = png.read_bytes()
    end = data.index(b"IEND") - 4
    for length in [*range(0, 60), *range(60, end - 20, 41), *range(end - 20, end)]:
        (tmp_path / "x.png").write_bytes(data[:length])
        try:
            found = read_recipe(tmp_path / "x.png")
        except ValueError as error:
            assert str(tmp_path / "x.png") in str(error)  # noqa: PT017 - either is right near the end
        else:
            assert found == RECIPE
            assert length > end - 20  # only checksums are missing


@settings(max_examples=100)
@given(st.data())
def test_a_damaged_picture(tmp_path_factory: pytest.TempPathFactory, png: Path, data: st.DataObject) -> None:
    """Any byte changed: the recipe itself, or ValueError."""
    content = bytearray(png.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.png"
    path.write_bytes(bytes(content))
    try:
        found = read_recipe(path)
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either is right
    else:
        assert found == RECIPE


GOOD = to_dict(RECIPE)


@pytest.mark.parametrize("recipe", [RECIPE, None])
def test_a_picture_without_a_file(tmp_path: Path, recipe: Recipe | None) -> None:
    """As bytes it is what the file holds."""
    save_picture(PICTURE, tmp_path / "x.png", recipe)
    assert as_png(PICTURE, recipe) == (tmp_path / "x.png").read_bytes()


def test_a_recipe_without_a_file() -> None:
    assert recipe_in(as_png(PICTURE, RECIPE)) == RECIPE
    with pytest.raises(ValueError, match="the upload carries no recipe"):
        recipe_in(as_png(PICTURE, None), "the upload")
    with pytest.raises(ValueError, match="the upload is no picture"):
        recipe_in(as_png(PICTURE, RECIPE)[:60], "the upload")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{ broken", "no valid JSON"),
        ("", "no valid JSON"),
        ("[1]", "JSON object"),
        ("{}", "request"),
        (json.dumps({**GOOD, "modell": "x"}), "modell.*'model'"),
        (json.dumps({**GOOD, "request": {**GOOD["request"], "sed": 1}}), "request.sed.*'seed'"),
        (json.dumps({**GOOD, "request": {**GOOD["request"], "seed": "one"}}), "request.seed.*'one'"),
        (json.dumps({**GOOD, "request": {k: v for k, v in GOOD["request"].items() if k != "steps"}}), "request.steps"),
        (json.dumps({**GOOD, "request": 3}), "request"),
        ("[" * 100_000, "nested too deeply"),
        ('{"request": ' * 100_000, "nested too deeply"),
        (json.dumps({**GOOD, "warnings": "w"}), "warnings"),
    ],
)
def test_a_recipe_that_cannot_be_read(tmp_path: Path, text: str, words: str) -> None:
    """ValueError that names the file and the field."""
    path = with_recipe(tmp_path / "x.png", text)
    with pytest.raises(ValueError, match=words) as caught:
        read_recipe(path)
    assert "x.png" in str(caught.value)
    assert "\n" not in str(caught.value)
