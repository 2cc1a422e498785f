"""Recipes: complete configurations, as functions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from unstir.config import choose, from_dict, read_json_file
from unstir.recipes.cifar10 import cifar10 as cifar10
from unstir.recipes.cifar10_classifier import cifar10_classifier as cifar10_classifier
from unstir.recipes.cifar10_classifier import cifar10_features as cifar10_features
from unstir.recipes.codec import codec as codec
from unstir.recipes.codec import codec_vq as codec_vq
from unstir.recipes.emoji import emoji as emoji
from unstir.recipes.fine_tune import fine_tune as fine_tune
from unstir.recipes.latent import codec_f8 as codec_f8
from unstir.recipes.latent import latent as latent
from unstir.recipes.latent import pixel as pixel
from unstir.recipes.naive import naive as naive
from unstir.recipes.naive import naive_cifar10 as naive_cifar10
from unstir.recipes.naive import naive_of as naive_of
from unstir.recipes.tiny import tiny as tiny
from unstir.training.classifier import ClassifierRun
from unstir.training.codec import CodecRun
from unstir.training.run import RunConfig

RECIPES: dict[str, Callable[[], RunConfig]] = {
    "cifar10": cifar10,
    "emoji": emoji,
    "fine-tune": fine_tune,
    "latent": latent,
    "naive": naive,
    "naive-cifar10": naive_cifar10,
    "pixel": pixel,
    "tiny": tiny,
}

CLASSIFIER_RECIPES: dict[str, Callable[[], ClassifierRun]] = {
    "cifar10-classifier": cifar10_classifier,
    "cifar10-features": cifar10_features,
}

CODEC_RECIPES: dict[str, Callable[[], CodecRun]] = {
    "codec": codec,
    "codec-f8": codec_f8,
    "codec-vq": codec_vq,
}


def recipe_for(pictures: int) -> str:
    """The recipe for so many pictures when nobody names one."""
    return "tiny" if pictures < 100 else "emoji"


def config_of(name: str) -> RunConfig:
    """The configuration of a recipe, or of another run whose ``run.json`` is given instead of a name.

    Raises:
        OSError: if there is no such file.
        ValueError: if there is no such recipe, or the file is damaged.
    """
    if name.endswith(".json"):
        content = read_json_file(Path(name))
        content.pop("fingerprint", None)
        return from_dict(RunConfig, content)
    return RECIPES[choose(name, RECIPES, "recipe")]()
