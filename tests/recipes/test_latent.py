"""The recipes in latents and on pixels: the same but for the space, at the same cost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from unstir.config import to_dict
from unstir.model import in_latents, network_of
from unstir.recipes import codec, codec_f8, latent, pixel


def test_both_are_the_same_run_but_for_the_space() -> None:
    """The size of pictures, the optimizer, the words, the length; the network but for what a patch is made of."""
    one, other = to_dict(pixel()), to_dict(latent())
    assert one["training"] == other["training"]
    assert one["cadence"] == other["cadence"]
    model, there = one["model"], other["model"]
    assert {**model["network"], "channels": 4, "size": 16, "patch": 2} == there["network"]
    kept = ("schedule", "process", "parameterization", "size", "condition_drop", "sampling")
    assert {name: model[name] for name in kept} == {name: there[name] for name in kept}
    assert there["codec"] == to_dict(codec_f8())["codec"]


def test_both_cost_about_the_same() -> None:
    """As many tokens, and weights that differ only where patches are read and written."""
    counts, tokens = [], []
    for config in (pixel(), latent()):
        network: Any = config.model.network
        tokens.append((network.size // network.patch) ** 2)
        with torch.device("meta"):
            counts.append(sum(weight.numel() for weight in network_of(config.model).parameters()))
    assert tokens == [64, 64]
    assert 0.9 < counts[1] / counts[0] <= 1


def test_a_codec_of_factor_4_keeps_the_tokens() -> None:
    """``unstir train latent --codec`` with the codec of the recipe ``codec``."""
    model = in_latents(latent().model, codec().codec)
    assert (model.network.size, model.network.patch, model.network.channels) == (32, 4, 4)
    assert replace(model, codec=latent().model.codec, network=latent().model.network) == latent().model
