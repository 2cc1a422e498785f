"""Bits: the bound of a model on pictures is the mathematics' own, whatever the batch; a codec must lose nothing."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from unstir.codec import BitPlanes
from unstir.conditioning.text import WordReader
from unstir.data.transforms import to_unit
from unstir.diffusion.likelihood import bits_per_dim
from unstir.diffusion.noise import KeyedNoise
from unstir.diffusion.parameterization import PredictBit
from unstir.diffusion.schedule import Cosine, Reciprocal
from unstir.evaluation.bits import measure_bits
from unstir.model import Model, ModelConfig, SamplingDefaults, build
from unstir.nn import DiTConfig
from unstir.nn.text import TextConfig

TEXT = TextConfig(vocabulary=300, max_tokens=8, width=16, depth=1, heads=2)
READER = WordReader.train(["red heart", "blue star"], vocabulary=300, max_tokens=8)
DIT = DiTConfig(size=8, patch=4, width=32, depth=1, heads=2, text=TEXT)
PROMPTS = ["red heart", "blue star", "red star", "a heart", "blue"]


def model(config: ModelConfig | None = None) -> Model:
    made = build(config or ModelConfig(size=8, network=DIT, schedule=Cosine()), READER)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in made.denoiser.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    return made


def pictures(levels: int = 256) -> Tensor:
    return torch.randint(0, levels, (5, 3, 8, 8), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def test_it_is_the_bound_of_the_mathematics() -> None:
    """One call of ``bits_per_dim`` on the same pictures, words, keys; its parts add up; its error is theirs."""
    made = model()
    score = measure_bits(made, pictures(), PROMPTS, draws=3, seed=4, first_log_snr=13.3)
    noise = KeyedNoise(keys=tuple((4, i) for i in range(5))).at(1)
    denoise = made.denoiser.given(made.reader.read(PROMPTS)[0])
    bound = bits_per_dim(denoise, made.process, to_unit(pictures()).double(), steps=None, draws=3, noise=noise)
    assert score.bits_per_dim == pytest.approx(bound.mean, rel=1e-9)
    assert score.standard_error == pytest.approx(bound.total.std().item() / math.sqrt(5), rel=1e-9)
    assert score.prior + score.diffusion + score.reconstruction == pytest.approx(score.bits_per_dim, rel=1e-9)
    assert (score.pictures, score.draws) == (5, 3)


def test_the_batch_does_not_matter() -> None:
    """Picture i has its own key; what is left is the rounding of the float32 network."""
    made = model()
    scores = [
        measure_bits(made, pictures(), PROMPTS, draws=2, batch=batch, first_log_snr=5.0).bits_per_dim
        for batch in (1, 2, 16)
    ]
    assert scores[1:] == pytest.approx([scores[0]] * 2, rel=1e-4)


def test_the_decoder_begins_where_it_costs_least() -> None:
    """A model that knows nothing of almost clean pictures is bounded best from an early level, and it is said which."""
    made = model()
    free = measure_bits(made, pictures(), PROMPTS, draws=4)
    each = {
        first: measure_bits(made, pictures(), PROMPTS, draws=4, first_log_snr=first).bits_per_dim
        for first in (13.3, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0)
    }
    assert free.bits_per_dim == min(each.values())
    assert each[free.first_log_snr] == free.bits_per_dim
    assert free.bits_per_dim < each[13.3] / 10


def test_bits_of_bit_planes_are_those_of_bytes() -> None:
    """Eight planes tell one byte: bits/dim counts bytes, so it is eight times the mathematics' bits per plane."""
    config = ModelConfig(
        size=8,
        network=replace(DIT, channels=24),
        schedule=Reciprocal(),
        process="binomial",
        parameterization=PredictBit(),
        codec=BitPlanes(),
        sampling=SamplingDefaults(sampler="ancestral"),
    )
    made = model(config)
    score = measure_bits(made, pictures(), PROMPTS, draws=3, first_log_snr=13.3)
    noise = KeyedNoise(keys=tuple((0, i) for i in range(5)))
    planes = BitPlanes().encode(to_unit(pictures()).double(), noise)
    denoise = made.denoiser.given(made.reader.read(PROMPTS)[0])
    bound = bits_per_dim(denoise, made.process, planes, steps=None, draws=3, noise=noise.at(1))
    assert score.bits_per_dim == pytest.approx(8 * bound.mean, rel=1e-9)


def test_refuses_a_codec_that_loses_information() -> None:
    """Bits of something else than the pictures would be no figure (five planes of eight)."""
    made = model()
    lossy = replace(made, config=replace(made.config, codec=BitPlanes(bits=5)))
    with pytest.raises(ValueError, match="as they were"):
        measure_bits(lossy, pictures(), PROMPTS)


@pytest.mark.parametrize("wrong", [{"draws": 0}, {"batch": 0}])
def test_refuses_to_measure_nothing(wrong: dict[str, int]) -> None:
    """At least one draw and one picture a call, and a prompt a picture."""
    with pytest.raises(ValueError, match="at least 1"):
        measure_bits(model(), pictures(), PROMPTS, **wrong)
    with pytest.raises(ValueError, match="prompts for 5"):
        measure_bits(model(), pictures(), PROMPTS[:2])
