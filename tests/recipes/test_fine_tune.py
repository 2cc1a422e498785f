"""The recipe for a model that goes on."""

from __future__ import annotations

from unstir.config import from_dict, to_dict
from unstir.recipes import RECIPES, fine_tune, recipe_for
from unstir.training.ema import share_of_start
from unstir.training.run import RunConfig


def test_the_recipe_is_a_whole_configuration() -> None:
    config = fine_tune()
    assert RECIPES[config.recipe] is fine_tune
    assert from_dict(RunConfig, to_dict(config)) == config
    assert config.data == config.start == ""
    assert config.previews == ()


def test_the_average_moves_to_the_new_pictures() -> None:
    """Of the weights that it started from, the average keeps nothing to speak of."""
    training = fine_tune().training
    ema = training.ema
    left = share_of_start(training.images, training.batch, half_life_images=ema.half_life_images, warmup=ema.warmup)
    assert left < 1e-4


def test_few_pictures_get_a_quick_recipe() -> None:
    assert (recipe_for(99), recipe_for(100)) == ("tiny", "emoji")
