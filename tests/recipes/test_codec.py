"""The codecs of the recipes: what they are, what they weigh, and that they divide their pictures."""

from __future__ import annotations

import json

import pytest
import torch

from unstir.codec.losses import PatchDiscriminator
from unstir.config import from_dict, to_dict
from unstir.model import ModelConfig, in_latents, network_of
from unstir.recipes import CLASSIFIER_RECIPES, CODEC_RECIPES, RECIPES, codec, codec_vq, emoji
from unstir.training.codec import CodecRun


@pytest.mark.parametrize("name", CODEC_RECIPES)
def test_every_recipe_builds_and_survives_json(name: str) -> None:
    config = CODEC_RECIPES[name]()
    assert config.recipe == name
    assert name not in {**RECIPES, **CLASSIFIER_RECIPES}
    assert from_dict(CodecRun, json.loads(json.dumps(to_dict(config)))) == config
    with torch.device("meta"):
        weights = sum(weight.numel() for weight in config.codec.build().parameters())
        judge = PatchDiscriminator(config.training.discriminator)
    assert weights < 3_500_000
    assert config.size >= judge.smallest
    assert config.training.weights.adversarial_start < config.training.images


def test_both_are_the_same_but_for_what_lies_between() -> None:
    one, other = to_dict(codec()), to_dict(codec_vq())
    assert other["codec"]["autoencoder"] == {k: v for k, v in one["codec"].items() if k != "kind"}
    assert {**other, "codec": None, "recipe": ""} == {**one, "codec": None, "recipe": ""}


@pytest.mark.parametrize("name", CODEC_RECIPES)
def test_the_recipe_for_pictures_fits_into_its_latents(name: str) -> None:
    """`unstir train emoji --codec RUN` builds."""
    config: ModelConfig = in_latents(emoji().model, CODEC_RECIPES[name]().codec)
    with torch.device("meta"):
        network = network_of(config)
    assert network.in_channels == 4
    assert config.size == network.multiple * config.codec.downsampling
