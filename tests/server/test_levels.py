"""Levels: at its ends a picture and the noise that its seed stands for; between them what training would show."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from unstir.data.transforms import to_bytes, to_unit
from unstir.diffusion.noise import KeyedNoise
from unstir.pipeline import Pipeline
from unstir.server.levels import spoiled

PIXELS = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def of(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(numpy.array(image)).permute(2, 0, 1)


def test_at_time_0_it_is_the_picture(pipe: Pipeline) -> None:
    assert torch.equal(of(spoiled(pipe, PIXELS, 7, 0.0)), PIXELS)


@pytest.mark.parametrize("t", [0.2, 0.5, 0.9])
def test_between_it_is_spoiled_by_the_formula(pipe: Pipeline, t: float) -> None:
    """x_t = alpha x0 + sigma noise."""
    level = pipe.model.process.schedule.at(torch.tensor(t, dtype=torch.float64))
    x0 = to_unit(PIXELS)[None]
    noise = KeyedNoise.from_seeds([7]).at(0).normal(x0)
    assert torch.equal(of(spoiled(pipe, PIXELS, 7, t)), to_bytes(level.alpha * x0 + level.sigma * noise)[0])


def test_at_time_1_it_is_the_noise_that_the_picture_was_drawn_from(pipe: Pipeline) -> None:
    asked: list[torch.Tensor] = []

    def ask(network: Any, x: torch.Tensor, *told: Any) -> torch.Tensor:
        asked.append(x[:1])
        return network(x, *told)

    list(pipe.through(ask).run([pipe.request("red cat", seed=7, sampler="ddim", grid="trailing")]))
    seen = of(spoiled(pipe, PIXELS, 7, 1.0)).int()
    assert (seen - to_bytes(asked[0])[0].int()).abs().max() <= 1
    assert (of(spoiled(pipe, PIXELS, 8, 1.0)).int() - seen).abs().max() > 100


@pytest.mark.parametrize("t", [-0.1, 1.1, float("nan")])
def test_there_are_no_other_times(pipe: Pipeline, t: float) -> None:
    with pytest.raises(ValueError, match="from 0"):
        spoiled(pipe, PIXELS, 7, t)
