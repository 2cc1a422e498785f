"""The smallest recipe learns: six shapes from their names."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image, ImageDraw

from unstir.config import from_dict, override, to_dict
from unstir.evaluation.prompts import nearest
from unstir.model import build
from unstir.pipeline import load
from unstir.recipes import RECIPES, tiny
from unstir.training.run import RunConfig, execute, load_data

SHAPES = {
    "red circle": ("ellipse", (220, 30, 30)),
    "green circle": ("ellipse", (30, 170, 60)),
    "blue square": ("rectangle", (30, 60, 220)),
    "yellow square": ("rectangle", (235, 200, 20)),
    "black triangle": ("polygon", (0, 0, 0)),
    "pink triangle": ("polygon", (240, 120, 190)),
}


def shapes(folder: Path, size: int) -> Path:
    folder.mkdir()
    for name, (form, colour) in SHAPES.items():
        image = Image.new("RGB", (size, size), (255, 255, 255))
        low, high = size // 8, size - size // 8 - 1
        place = [(low, high), (high, high), (size // 2, low)] if form == "polygon" else [low, low, high, high]
        getattr(ImageDraw.Draw(image), form)(place, fill=colour)
        image.save(folder / f"{name.replace(' ', '-')}.png")
        (folder / f"{name.replace(' ', '-')}.txt").write_text(name)
    return folder


def test_the_recipe_is_a_whole_configuration() -> None:
    config = tiny()
    assert config.recipe == "tiny"
    assert RECIPES["tiny"] is tiny
    assert from_dict(RunConfig, to_dict(config)) == config
    assert config.model.size == config.model.network.size == 32


def test_a_few_hundred_pictures_bring_the_error_down_threefold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean error on x0 of the last 64 pictures against that of the first 64."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    changes = {
        "model.size": "16",
        "model.network.size": "16",
        "model.network.width": "64",
        "model.network.depth": "2",
        "model.network.text.vocabulary": "300",
        "training.images": "640",
        "training.batch": "16",
        "training.precision": "float32",
        "training.optimizer.warmup_images": "64",
        "training.optimizer.learning_rate": "0.004",
        "cadence.log": "16",
    }
    config = override(replace(tiny(), data=str(shapes(tmp_path / "shapes", 16))), list(changes.items()))
    errors: list[float] = []
    hook = [lambda trainer, report: errors.append(report.x0_error)]
    assert execute(
        tmp_path / "run", config, load_data(config), device="cpu", say=lambda line: None, hooks=hook
    ).is_finished
    assert numpy.mean(errors[:4]) > 3 * numpy.mean(errors[-4:])


@pytest.mark.slow
def test_every_prompt_draws_its_own_shape(tmp_path: Path) -> None:
    """The nearest of the six real pictures is the one asked for, for each prompt and each of two seeds."""
    config = replace(tiny(), data=str(shapes(tmp_path / "shapes", 32)))
    config = replace(config, training=replace(config.training, images=8000))
    data = load_data(config)
    assert execute(tmp_path / "run", config, data, device="cpu", say=lambda line: None).is_finished
    pipe = load(tmp_path / "run", device="cpu")
    prompts = [captions[0] for captions in data.train.captions]
    for seed in (0, 100):
        pictures = pipe.sample(prompts, seed=seed)
        drawn = torch.stack([torch.from_numpy(numpy.array(picture)).permute(2, 0, 1) for picture in pictures])
        assert nearest(drawn, data.train.pictures).tolist() == list(range(6))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_builds_its_model(name: str) -> None:
    from unstir.conditioning.text import WordReader

    config = RECIPES[name]()
    assert config.recipe == name
    assert from_dict(RunConfig, to_dict(config)) == config
    text = config.model.network.text
    reader = WordReader.train(["a"], vocabulary=text.vocabulary, max_tokens=text.max_tokens)
    model = build(config.model, reader)
    assert model.denoiser.network.in_channels == config.model.codec.latent_channels
    assert config.training.optimizer.warmup_images < config.training.images
