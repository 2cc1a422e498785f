"""What the tests of generation share: a small model, and an order to draw with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from unstir.conditioning.text import WordReader
from unstir.generation.shards import Order
from unstir.metadata import recipe_of
from unstir.model import ModelConfig, SamplingDefaults, build, save_model
from unstir.nn import DiTConfig
from unstir.nn.text import TextConfig
from unstir.pipeline import Pipeline, load


@pytest.fixture(scope="session")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A model with random weights, which draws noise, but its own."""
    text = TextConfig(vocabulary=300, max_tokens=48, width=16, depth=1, heads=2)
    network = DiTConfig(size=16, patch=8, width=32, depth=1, heads=2, text=text)
    config = ModelConfig(size=16, network=network, sampling=SamplingDefaults(steps=3, guidance_scale=1.5))
    torch.manual_seed(0)
    made = build(config, WordReader.train(["red blue cat"], vocabulary=300, max_tokens=48))
    with torch.no_grad():
        for weight in made.denoiser.network.parameters():
            weight.add_(torch.randn(weight.shape) * 0.2)
    folder = tmp_path_factory.mktemp("models") / "model"
    save_model(made, folder)
    return load(folder, precision="float32")


@pytest.fixture
def order(pipe: Pipeline, tmp_path: Path) -> Callable[..., Order]:
    """(prompts, seed) -> what is drawn of these lines into the folder "drawn"."""

    def make(*prompts: str, seed: int = 0) -> Order:
        path = tmp_path / "prompts.txt"
        path.write_text("".join(f"{prompt}\n" for prompt in prompts), "utf-8")
        return Order(
            prompts=path,
            folder=tmp_path / "drawn",
            recipe=recipe_of(pipe, pipe.request(prompts[0], seed=seed)),
            seed=seed,
            negative="",
            number=1,
            batch=2,
        )

    return make
