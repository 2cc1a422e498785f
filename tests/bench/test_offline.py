"""Drawing without a server: what is counted, and which pictures pass for the right ones."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from unstir.bench import offline
from unstir.bench.offline import BATCH, compare, obey, rate
from unstir.metadata import recipe_of, save_picture
from unstir.pipeline import Pipeline, Result, load


@pytest.fixture(scope="module")
def folder(noisy_model: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noisy_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Pipeline:
    return load(folder, device="cpu", precision="float32")


def drawn(pipe: Pipeline, place: Path, prompt: str, seed: int, **more: Any) -> tuple[Path, dict[str, Any], int]:
    """A picture as a server would have drawn it, and what was asked for."""
    (result,) = (each for each in pipe.run([pipe.request(prompt, seed=seed, **more)]) if isinstance(each, Result))
    save_picture(result.picture, place, recipe_of(pipe, result.request))
    return place, {"prompt": prompt, "seed": seed}, 0


def moved(value: numpy.uint8, by: int) -> int:
    return int(value) + (by if value < 128 else -by)


def test_the_rate_is_of_whole_batches(pipe: Pipeline) -> None:
    seen: list[int] = []
    run = pipe.run

    def counted(requests: Any, **options: Any) -> Any:
        seen.append(len(requests))
        assert options == {"batch": BATCH}
        return run(requests, **options)

    pipe.run = counted  # type: ignore[method-assign]
    try:
        count, seconds = rate(pipe, ["red", "blue"], 0.05)
    finally:
        pipe.run = run  # type: ignore[method-assign]
    assert count == sum(seen)
    assert set(seen) == {BATCH}
    assert seconds >= 0.05


def test_a_picture_that_is_its_own_twin_passes(pipe: Pipeline, tmp_path: Path) -> None:
    place, asked, _ = drawn(pipe, tmp_path / "a.png", "red cat", 7, steps=2)
    more = {"number": 4, "seed": 4, "model": "served", "steps": 2, "guidance": 1.5}  # the last but one of four
    assert list(compare(pipe, [(place, {**asked, **more}, 3)])) == [(0, "")]


def test_wrong_pictures_are_found(pipe: Pipeline, tmp_path: Path) -> None:
    place, asked, _ = drawn(pipe, tmp_path / "a.png", "red cat", 7)
    with Image.open(place) as picture:
        pixels = numpy.array(picture)
    pixels[3, 4, 1] = moved(pixels[3, 4, 1], 2)
    recipe = recipe_of(pipe, pipe.request("red cat", seed=7))
    save_picture(Image.fromarray(pixels), tmp_path / "off.png", recipe)
    save_picture(Image.fromarray(pixels[:8]), tmp_path / "small.png", recipe)
    (tmp_path / "broken.png").write_bytes(place.read_bytes()[:-200])
    found = list(
        compare(
            pipe,
            [
                (tmp_path / "off.png", asked, 0),
                (tmp_path / "small.png", asked, 0),
                (tmp_path / "broken.png", asked, 0),
                (place, {**asked, "prompt": "blue"}, 0),
                (place, {**asked, "steps": 40, "guidance": 3.0}, 0),
                (place, asked, 1),  # the second of its job would have the next seed
            ],
        )
    )
    assert [far for far, _ in found] == [2, 255, 255, 0, 0, 0]
    assert "off.png is 2/255 from its serial twin" in found[0][1]
    assert "damaged" in found[2][1]
    assert [wrong.split("another ")[1].split(" than")[0] for _, wrong in found[3:]] == [
        "prompt",
        "steps, guidance_scale",
        "seed",
    ]


def test_rounding_passes(pipe: Pipeline, tmp_path: Path) -> None:
    place, asked, _ = drawn(pipe, tmp_path / "a.png", "red", 1)
    with Image.open(place) as picture:
        pixels = numpy.array(picture)
    pixels[0, 0, 0] = moved(pixels[0, 0, 0], 1)
    request = replace(pipe.request("red", seed=1), row=5, rows=16)  # as one that was drawn in company
    save_picture(Image.fromarray(pixels), place, recipe_of(pipe, request))
    assert list(compare(pipe, [(place, asked, 0)])) == [(1, "")]


def test_orders_are_lines(pipe: Pipeline, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline, "load", lambda name, *, device: pipe)
    place, asked, index = drawn(pipe, tmp_path / "a.png", "red", 1)
    orders = [
        {"rate": 0.01, "prompts": ["red"]},
        {"compare": [[str(place), asked, index], [str(place), {"prompt": "b"}, 0]]},
    ]
    answers = io.StringIO()
    obey(io.StringIO("\n".join(map(json.dumps, orders)) + "\n"), answers, str(folder), "cpu")
    ready, rated, compared = map(json.loads, answers.getvalue().splitlines())
    assert ready == {}
    assert rated["pictures"] % BATCH == 0 < rated["seconds"]
    assert compared["far"] == [0, 0]
    assert len(compared["wrong"]) == 1
