"""The naive way: from the words straight to the picture, in one pass.

Knows: what turns the recipe of a diffusion model into that of a regression with the same network and words.
Does not know: where pictures lie, how many of them a phrase names.

The network is the diffusion model's, asked once, at the noisy end, where what it is given beside the words is noise
that says nothing of the picture:

    minimise E |f(noise, words) - x0|^2;   the best f is E[x0 | words]

Where a phrase names one picture that is the picture; where it names many it is their mean (docs/naive.md).
"""

from __future__ import annotations

from dataclasses import replace

from unstir.diffusion.parameterization import PredictX0
from unstir.diffusion.schedule import RectifiedFlow
from unstir.diffusion.times import EndTime
from unstir.model import SamplingDefaults
from unstir.recipes.cifar10 import cifar10
from unstir.recipes.emoji import emoji
from unstir.training.run import RunConfig


def naive_of(config: RunConfig) -> RunConfig:
    """The naive sibling of a recipe: same network, words, wording, optimizer, average and length.

    It is drawn by one step without guidance, so the words are never forgotten in training either. Its held-out error
    per band of log-SNR says nothing: it is never asked there.

    Returns:
        The configuration, with the recipe's name after "naive-".

    Raises:
        ValueError: if the recipe's process is not gaussian, or its network also tells a variance.

    Source: the best answer under a squared error: Bishop 2006, "Pattern Recognition and Machine Learning", Sec. 1.5.5.
    """
    model, training = config.model, config.training
    outputs = model.parameterization.outputs
    if model.process != "gaussian" or outputs != 1:
        raise ValueError(
            f"a naive recipe needs a gaussian process and one output a value, got a {model.process} process and "
            f"{outputs} outputs from the recipe {config.recipe}; make it of a recipe that predicts x0, noise or v"
        )
    return replace(
        config,
        recipe=f"naive-{config.recipe}",
        model=replace(
            model,
            schedule=RectifiedFlow(),  # its end is pure noise, exactly
            parameterization=PredictX0(),
            condition_drop=0.0,
            sampling=SamplingDefaults(sampler="ddim", steps=1, grid="trailing", guidance_scale=1.0),
        ),
        training=replace(
            training, objective="simple", weight="x0", distance="squared", offset_noise=0.0, times=EndTime()
        ),
    )


def naive() -> RunConfig:
    """The naive sibling of ``emoji``: names, which mean one picture each, and keywords, which mean many."""
    return replace(naive_of(emoji()), recipe="naive")


def naive_cifar10() -> RunConfig:
    """The naive sibling of ``cifar10``: ten captions, each of thousands of photographs."""
    return naive_of(cifar10())
