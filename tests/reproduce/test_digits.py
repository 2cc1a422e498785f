"""Digits: baselines in closed form, the flow's bits where they are known, and a run cut short."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from unstir.diffusion.noise import BlockNoise
from unstir.diffusion.process import Estimate
from unstir.diffusion.schedule import Level, spread
from unstir.reproduce import on_digits
from unstir.reproduce.digits import (
    continuous_diffusion,
    digits,
    flow_bits,
    gaussian_bits,
    histogram_bits,
    parzen_bits,
)
from unstir.reproduce.report import Report

pytest.importorskip("sklearn")

PNG = b"\x89PNG\r\n\x1a\n"


def ignore(stage: str, done: int, total: int) -> None:
    assert 0 <= done <= total, stage


@pytest.fixture(scope="module")
def report() -> Report:
    return digits(seed=7, advance=ignore, effort=0.004)


def test_histograms_of_two_pictures_by_hand() -> None:
    """Grey 0 seen once, 16 once, of 17 levels with half a count each: (1.5, 0.5)/10.5."""
    train = torch.cat([torch.full((1, 1, 8, 8), -1.0), torch.full((1, 1, 8, 8), 1.0)])
    test = torch.cat([torch.full((1, 1, 8, 8), -1.0), torch.full((1, 1, 8, 8), 0.0)])
    expected = [-math.log2(1.5 / 10.5), -math.log2(0.5 / 10.5)]
    assert histogram_bits(train, test).tolist() == pytest.approx(expected)


def test_a_gaussian_told_its_own_numbers_costs_its_entropy() -> None:
    """Grey levels of variance v, cut into units: log2 of sqrt(2 pi e v), here far wider than a unit."""
    noise = BlockNoise(key=(1,), count=20_000)
    wide = 6 * noise.normal(torch.empty(20_000, 1, 2, 2))
    pictures = (wide.round() / 8) - 1
    found = gaussian_bits(pictures[:10_000], pictures[10_000:], BlockNoise(key=(2,), count=10_000))
    expected = 0.5 * math.log2(2 * math.pi * math.e * (36 + 1 / 12))
    assert found.mean().item() == pytest.approx(expected, abs=0.01)


def gaussian_denoiser(x_t: Tensor, level: Level, previous: Estimate | None = None) -> Estimate:
    """The best denoiser of pixels that are N(0, 1/4), each on its own."""
    gain = level.alpha / 4 / (level.alpha**2 / 4 + level.sigma**2)
    return Estimate(x0=spread(gain, x_t) * x_t)


def test_along_the_flow_a_gaussians_density_is_exact() -> None:
    """log p(x_1) of x_1 ~ N(0, alpha^2/4 + sigma^2); the rest are the decoder's and the encoder's own densities."""
    process = on_digits.chain(num_steps=20)
    pictures = on_digits.held_out()[:8].double()
    noise = BlockNoise(key=(5,), count=8)
    found = flow_bits(gaussian_denoiser, process, pictures, noise=noise, steps=40, probes=None)
    first = process.schedule.at(torch.tensor(1 / on_digits.steps_of(process), dtype=torch.float64))
    x = process.marginal(pictures, first).sample(noise.at(0))
    std = (first.alpha**2 / 4 + first.sigma**2).sqrt()
    density = torch.distributions.Normal(torch.zeros_like(x), std).log_prob(x).flatten(1).sum(1)
    encoder = torch.distributions.Normal(first.alpha * pictures, first.sigma).log_prob(x).flatten(1).sum(1)
    expected = (encoder - density) / (64 * math.log(2))
    assert torch.allclose(found.encoded, expected, atol=2e-4)  # what is left of the data at t = 1
    assert found.solver_error.max() < 3e-3  # of half as many steps: 16 times the error of these
    assert torch.allclose(found.total, found.encoded + found.reconstruction)


def test_chain_and_flow_share_their_decoder() -> None:
    process = on_digits.chain(num_steps=20)
    pictures = on_digits.held_out()[:200]
    flow = flow_bits(gaussian_denoiser, process, pictures, noise=BlockNoise(key=(5,), count=200), steps=4, probes=1)
    chain = on_digits.bits(gaussian_denoiser, process, pictures, noise=(6,))
    assert flow.reconstruction.mean().item() == pytest.approx(chain.reconstruction.mean().item(), rel=0.05)


def test_in_infinitely_many_steps_the_diffusion_costs_less() -> None:
    process = on_digits.chain(num_steps=20)
    pictures = on_digits.held_out()[:300]
    limit = continuous_diffusion(gaussian_denoiser, process, pictures, BlockNoise(key=(5,), count=300))
    chain = on_digits.bits(gaussian_denoiser, process, pictures, noise=(6,))
    assert 0.5 * chain.diffusion.mean() < limit.mean() < chain.diffusion.mean()


def test_parzen_windows_prefer_the_data_to_noise() -> None:
    around_data, width = parzen_bits(on_digits.data().train.pictures)
    around_noise, _ = parzen_bits(BlockNoise(key=(1,), count=1297).normal(torch.empty(1297, 1, 8, 8)))
    assert 0.05 < width < 0.3
    assert around_data.nats - around_noise.nats > 10 * around_noise.standard_error


def test_bound_flow_and_baselines_stand_side_by_side(report: Report) -> None:
    rows = {row["row"]: row for row in report.figures["rows"]}
    assert list(rows) == [
        "uniform, log2 17",
        "one Gaussian, dequantised",
        "histograms of pixels",
        "flow (ODE)",
        "chain, bound",
        "chain, on digits it was trained on",
    ]
    assert rows["uniform, log2 17"]["bits_per_dim"] == pytest.approx(math.log2(17))
    chain = rows["chain, bound"]
    parts = chain["prior"] + chain["diffusion"] + chain["reconstruction"]
    assert parts == pytest.approx(chain["bits_per_dim"], rel=1e-9)
    assert all(row["bits_per_dim_error"] > 0 for row in list(rows.values())[1:])
    assert set(report.figures["parzen_bits"]) == {"model", "training_digits", "centres"}


def test_figures_are_json_and_the_picture_is_one(report: Report, tmp_path: Path) -> None:
    json.dumps(report.figures, allow_nan=False)
    assert any("1511.01844" in note for note in report.notes)
    report.draw(tmp_path / "picture")
    assert (tmp_path / "picture").read_bytes().startswith(PNG)


@pytest.mark.slow
def test_the_whole_run() -> None:
    report = digits(seed=0, advance=ignore)
    assert not report.failures
    bits = {row["row"]: row["bits_per_dim"] for row in report.figures["rows"]}
    assert bits["chain, bound"] < 2.1 < bits["histograms of pixels"]
