"""Sheets: sizes as computed, no prompt that breaks them, and nothing of the training touched."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import numpy
import pytest
import torch
from PIL import Image

from unstir.conditioning.text import WordReader
from unstir.model import Model, ModelConfig, build
from unstir.nn import DiTConfig
from unstir.nn.text import TextConfig
from unstir.training.preview import contact_sheet, preview_sheet

AWKWARD = [
    "🍕",
    "👩🏽‍🚒 woman firefighter",
    "x" * 500,
    "ein Bär, größer",
    "سلام",
    "tab\tnull\0",
    "two\nlines",
    " ",
    "…",
    "",
]


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    """A label that is shortened for ever would hang the suite."""

    def stop(number: int, frame: object) -> None:
        raise TimeoutError("a sheet took more than 5 seconds of computing")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, 5)
    yield
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, before)


def picture(value: int, size: tuple[int, int] = (16, 16)) -> Image.Image:
    return Image.new("RGB", size, (value, 255 - value, 0))


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 1, 1), (3, 3, 1), (4, 3, 2), (6, 3, 2), (2, 8, 1)])
@pytest.mark.parametrize("title", ["", "32 pictures seen"])
def test_a_sheet_has_the_size_of_its_cells(count: int, columns: int, rows: int, title: str) -> None:
    """Each cell is the picture twice as large, a label of 14 and a gap of 4; a title adds 18."""
    pictures = [picture(i, (16, 12)) for i in range(count)]
    sheet = contact_sheet(pictures, ["x"] * count, columns=columns, title=title)
    assert sheet.size == (columns * 36 + 4, rows * (24 + 18) + 4 + (18 if title else 0))


def test_pictures_are_enlarged_by_whole_pixels_and_stand_in_order() -> None:
    generator = numpy.random.default_rng(0)
    pictures = [Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=numpy.uint8)) for _ in range(5)]
    sheet = numpy.array(contact_sheet(pictures, [""] * 5, columns=2, scale=3))
    for index, one in enumerate(pictures):
        x, y = 4 + index % 2 * 28, 4 + index // 2 * (24 + 18)
        cell = sheet[y : y + 24, x : x + 24]
        assert numpy.array_equal(cell, numpy.array(one).repeat(3, 0).repeat(3, 1))


@pytest.mark.parametrize("label", AWKWARD, ids=repr)
def test_no_label_breaks_a_sheet(label: str) -> None:
    sheet = contact_sheet([picture(0), picture(1, (64, 64)).resize((16, 16))], [label] * 2, columns=1, title=label)
    assert sheet.size == (40, 2 * 50 + 4 + (18 if label else 0))


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_a_picture_smaller_than_any_label_ends(size: int) -> None:
    assert contact_sheet([picture(0, (size, size))], ["a label"], columns=1).width == 2 * size + 8


def test_a_long_label_stays_under_its_own_picture() -> None:
    """What is under the second picture is the same whatever the first is called."""
    sheets = [
        numpy.array(contact_sheet([picture(0), picture(9)], [label, "b"], columns=2)) for label in ("w" * 200, "i")
    ]
    assert numpy.array_equal(sheets[0][:, 40:], sheets[1][:, 40:])


@pytest.fixture(scope="module")
def models() -> tuple[Model, Model]:
    reader = WordReader.train(["a b c"], vocabulary=300, max_tokens=16)
    text = TextConfig(vocabulary=300, max_tokens=16, width=16, depth=1, heads=2)
    config = ModelConfig(size=16, network=DiTConfig(size=16, patch=8, width=32, depth=1, heads=2, text=text))
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = build(config, reader)
        with torch.no_grad():
            for weight in model.denoiser.network.parameters():
                weight.add_(torch.randn(weight.shape) * 0.1)
        found.append(model)
    return found[0], found[1]


def test_a_preview_has_three_views_of_each_prompt(models: tuple[Model, Model]) -> None:
    """The raw weights, their average, and the average after one step: as the pipeline draws them."""
    from unstir.pipeline import Pipeline

    raw, average = models
    sheet = numpy.array(preview_sheet(raw, average, ["one", "two"], title="t"))
    assert sheet.shape == (2 * (32 + 18) + 4 + 18, 3 * 36 + 4, 3)
    views = [Pipeline(raw).sample(["one", "two"], seed=0), Pipeline(average).sample(["one", "two"], seed=0)]
    views.append(Pipeline(average).sample(["one", "two"], seed=0, steps=1, grid="trailing"))
    for column, pictures in enumerate(views):
        for row, one in enumerate(pictures):
            x, y = 4 + column * 36, 22 + row * 50
            assert numpy.array_equal(sheet[y : y + 32 : 2, x : x + 32 : 2], numpy.array(one))


def test_a_preview_touches_nothing(models: tuple[Model, Model]) -> None:
    raw, average = models
    raw.denoiser.train()
    before = [weight.detach().clone() for model in models for weight in model.denoiser.parameters()]
    state = torch.get_rng_state()
    first = preview_sheet(raw, average, ["x"], title="")
    assert first.tobytes() == preview_sheet(raw, average, ["x"], title="").tobytes()
    after = [weight for model in models for weight in model.denoiser.parameters()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert all(weight.grad is None for weight in after)
    assert raw.denoiser.training
    assert torch.equal(state, torch.get_rng_state())


def test_awkward_prompts_are_drawn_too(models: tuple[Model, Model]) -> None:
    prompts = [prompt for prompt in AWKWARD if prompt.strip()]
    sheet = preview_sheet(*models, prompts, title="t")
    assert sheet.height == len(prompts) * 50 + 22
