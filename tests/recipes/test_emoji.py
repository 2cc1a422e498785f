"""The recipe of the built-in model."""

from __future__ import annotations

from unstir.config import from_dict, to_dict
from unstir.recipes import RECIPES, emoji
from unstir.training.ema import share_of_start
from unstir.training.run import RunConfig


def test_the_recipe_is_a_whole_configuration() -> None:
    config = emoji()
    assert config.recipe == "emoji"
    assert RECIPES["emoji"] is emoji
    assert from_dict(RunConfig, to_dict(config)) == config
    assert config.model.size == config.model.network.size == 64
    assert config.data == ""  # it builds its own


def test_its_average_forgets_the_random_start() -> None:
    """The most frequent cause of noise after training (df#1864, ddp#101): an average that is too slow for the run."""
    training = emoji().training
    ema = training.ema
    left = share_of_start(training.images, training.batch, half_life_images=ema.half_life_images, warmup=ema.warmup)
    assert left < 1e-4


def test_guidance_has_something_to_push_off_from() -> None:
    config = emoji()
    assert config.model.condition_drop > 0
    assert config.model.sampling.guidance_scale > 1
    assert len(config.previews) == 8
