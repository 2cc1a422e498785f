"""What the tests of generation share: a small model, and an order to draw with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from unstir.generation.shards import Order
from unstir.metadata import recipe_of
from unstir.pipeline import Pipeline, load


@pytest.fixture(scope="session")
def pipe(tmp_path_factory: pytest.TempPathFactory, noisy_model: Callable[[Path], Path]) -> Pipeline:
    """A model with random weights, which draws noise, but its own."""
    return load(noisy_model(tmp_path_factory.mktemp("models") / "model"), precision="float32")


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
