"""The naive way learns the mean: a picture where the words name one, a blur of two where they name two."""

from __future__ import annotations

from dataclasses import replace

import numpy
import pytest
import torch
from torch import Tensor

from unstir.conditioning.captions import Wording
from unstir.conditioning.text import WordReader
from unstir.config import from_dict, to_dict
from unstir.diffusion.parameterization import LearnedRange
from unstir.diffusion.times import EndTime
from unstir.evaluation.likeness import diversity, least_error, squared_error
from unstir.model import build
from unstir.nn import DiTConfig, UNetConfig
from unstir.nn.text import TextConfig
from unstir.pipeline import Pipeline
from unstir.recipes import RECIPES, cifar10, emoji, naive_of, tiny
from unstir.training.batches import Captioned
from unstir.training.run import RunConfig
from unstir.training.trainer import Trainer


@pytest.mark.parametrize("recipe", [emoji, cifar10, tiny])
def test_network_words_and_optimizer_are_the_siblings(recipe) -> None:
    """Only what makes it a regression differs: the end of the straight path, x0, a plain squared error, one step."""
    config, sibling = naive_of(recipe()), recipe()
    assert config.recipe == f"naive-{sibling.recipe}"
    assert from_dict(RunConfig, to_dict(config)) == config
    assert config.training.times == EndTime()
    assert (config.training.objective, config.training.weight, config.training.distance) == ("simple", "x0", "squared")
    end = config.model.schedule.at(torch.ones((), dtype=torch.float64))
    assert (end.alpha.item(), end.sigma.item()) == (0.0, 1.0)
    sampling = config.model.sampling
    assert (sampling.sampler, sampling.steps, sampling.guidance_scale) == ("ddim", 1, 1.0)
    assert config.model.condition_drop == 0
    before, after = to_dict(sibling), to_dict(config)
    for content in (before, after):
        del content["recipe"]
        for key in ("schedule", "parameterization", "sampling", "condition_drop"):
            del content["model"][key]
        for key in ("objective", "weight", "distance", "offset_noise", "times"):
            del content["training"][key]
    assert before == after


def test_the_recipes_are_the_siblings_of_emoji_and_cifar10() -> None:
    assert isinstance(RECIPES["naive"]().model.network, DiTConfig)
    assert RECIPES["naive"]() == replace(naive_of(emoji()), recipe="naive")
    assert isinstance(RECIPES["naive-cifar10"]().model.network, UNetConfig)
    assert RECIPES["naive-cifar10"]() == naive_of(cifar10())


def test_what_has_no_naive_sibling_is_refused() -> None:
    """Bits, and networks that also tell a variance: ValueError that names the recipe."""
    model = tiny().model
    for change in ({"process": "binomial"}, {"parameterization": LearnedRange()}):
        with pytest.raises(ValueError, match="from the recipe tiny; make it of a recipe"):
            naive_of(replace(tiny(), model=replace(model, **change)))


CAPTIONS = ("one", "two", "both", "both")
NOTHING = Wording(paraphrase=0, keywords=0, forget=0)


def pictures() -> Tensor:
    """Four 8x8 pictures: halves and quarters of light and shade, two of which share the caption "both"."""
    shade = torch.full((4, 3, 8, 8), 40, dtype=torch.uint8)
    shade[0, :, :, :4] = 220
    shade[1, :, 4:] = 220
    shade[2, 0] = 230
    shade[3, 2, :, 4:] = 230
    return shade


def trained(config: RunConfig) -> Pipeline:
    """A tiny model of the recipe, trained on the four pictures."""
    data = Captioned(
        pictures=tuple(pictures()),
        captions=tuple((c,) for c in CAPTIONS),
        keywords=((),) * 4,
        keys=("0", "1", "2", "3"),
    )
    text = TextConfig(vocabulary=270, max_tokens=8, width=32, depth=1, heads=2)
    network = DiTConfig(size=8, patch=4, width=64, depth=2, heads=2, detail=4, text=text)
    training = replace(
        config.training,
        images=14400,
        batch=32,
        precision="float32",
        wording=NOTHING,
        optimizer=replace(config.training.optimizer, learning_rate=4e-3, warmup_images=320),
        ema=replace(config.training.ema, half_life_images=300),
    )
    reader = WordReader.train(CAPTIONS, vocabulary=270, max_tokens=8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(replace(config.model, size=8, network=network), reader)
    trainer = Trainer(model, data, training, device="cpu")
    trainer.run([])
    return Pipeline(trainer.ema_model, device="cpu")


def drawn(pipe: Pipeline, prompt: str) -> Tensor:
    found = pipe.sample(prompt, n=16, seed=0)
    return torch.stack([torch.from_numpy(numpy.array(picture)).permute(2, 0, 1) for picture in found])


def test_the_naive_way_draws_the_mean_and_diffusion_one_of_them() -> None:
    """Closed form: of a caption of two pictures a, b the best regression is (a + b)/2 with the error |a - b|^2/4; a
    sampler draws a or b and pays twice that. Where a caption names one picture both draw it.
    """
    real = pictures()
    mean = (real[2:].double().mean(0, keepdim=True) / 127.5) - 1
    least = ((real[2].double() - real[3].double()) / 127.5).square().mean().item() / 4
    assert least_error(real[2:]).item() == pytest.approx(least)
    recipe = tiny()
    sibling = replace(recipe, model=replace(recipe.model, sampling=replace(recipe.model.sampling, guidance_scale=1.0)))
    naive, diffusion = trained(naive_of(recipe)), trained(sibling)
    for pipe in (naive, diffusion):
        for prompt, picture in (("one", real[:1]), ("two", real[1:2])):
            right = squared_error(drawn(pipe, prompt), picture) < 0.02
            assert right.sum().item() >= (16 if pipe is naive else 13)  # few steps of a tiny network: some go astray
    blurred, sampled = drawn(naive, "both"), drawn(diffusion, "both")
    assert (blurred.double() / 127.5 - 1 - mean).square().mean().item() < 0.005
    assert squared_error(blurred, real[2:]).mean().item() == pytest.approx(least, rel=0.02)
    to_each = torch.stack([squared_error(sampled, real[i : i + 1]) for i in (2, 3)])
    assert (to_each.min(0).values < least / 4).sum().item() >= 13  # of 16
    assert 3 <= (to_each.argmin(0) == 0).sum().item() <= 13
    assert squared_error(sampled, real[2:]).mean().item() == pytest.approx(2 * least, rel=0.15)
    assert diversity(sampled) > 10 * diversity(blurred)
