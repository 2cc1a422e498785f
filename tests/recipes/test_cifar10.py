"""The recipe for small photographs describes a model that can be built, with a U-Net on the cosine schedule."""

from __future__ import annotations

import json

from unstir.conditioning.text import WordReader
from unstir.config import from_dict, to_dict
from unstir.diffusion.schedule import Cosine
from unstir.model import build
from unstir.nn import UNet
from unstir.recipes import RECIPES
from unstir.training.run import RunConfig


def test_it_builds_and_survives_json() -> None:
    config = RECIPES["cifar10"]()
    assert from_dict(RunConfig, json.loads(json.dumps(to_dict(config)))) == config
    reader = WordReader.train(["a horse", "a ship"], vocabulary=300, max_tokens=32)
    model = build(config.model, reader)
    assert isinstance(model.denoiser.network, UNet)
    assert isinstance(model.process.schedule, Cosine)
    assert config.model.size % model.denoiser.network.multiple == 0
