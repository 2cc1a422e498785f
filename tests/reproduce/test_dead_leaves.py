"""Dead leaves: the conversion, both baselines against sums and other formulae, the form of the report, the figures."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from unstir.data.toy import DeadLeaves
from unstir.diffusion.noise import BlockNoise
from unstir.diffusion.parameterization import PredictEDM
from unstir.diffusion.schedule import LogLinear

module: Any = importlib.import_module("unstir.reproduce.dead_leaves")  # the package has a function of this name

LAW = DeadLeaves(height=4, width=4)


def picture_noise(count: int, key: int = 0) -> BlockNoise:
    return BlockNoise(key=(key,), count=count)


def test_bits_of_grey_levels_become_the_density_of_z_scored_data() -> None:
    """Uniform grey levels: 8 bits/dim are -log2(sqrt 12) of a uniform density of unit variance, but for the grid."""
    assert module.z_scored(8.0) == pytest.approx(-math.log2(math.sqrt(12)), abs=2e-5)
    assert module.z_scored(0.0) == pytest.approx(6.2075, abs=5e-5)
    k = torch.arange(256).double()
    assert k.std(correction=0).item() * module.WIDTH == pytest.approx(module.DEVIATION, rel=1e-12)
    assert module.PAPER["white_noise"] == pytest.approx(-math.log2(2 * math.pi * math.e) / 2, abs=1e-3)


def test_the_gaussian_is_the_mean_over_dequantisations() -> None:
    """Against torch's multivariate normal on 4,000 uniform dequantisations of the same pictures."""
    data = LAW.draw(picture_noise(3))
    place = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0)).double()
    distances = (place[:, None] - place).norm(dim=2)
    known = torch.tensor([[LAW.same_leaf(d.item()) for d in row] for row in distances], dtype=torch.float64)
    covariance = module.DEVIATION**2 * known + module.WIDTH**2 / 12 * torch.eye(16, dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal(torch.zeros(16, dtype=torch.float64), covariance)
    shift = torch.rand(4000, 1, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 0.5
    logs = normal.log_prob(data.double().flatten(1) + module.WIDTH * shift).mean(0)
    expected = -logs / (16 * math.log(2)) - math.log2(module.WIDTH)
    torch.testing.assert_close(module.gaussian_bits_per_dim(LAW, data), expected, atol=2e-3, rtol=0)


def test_the_gaussian_of_one_pixel() -> None:
    law = DeadLeaves(height=1, width=1)
    data = torch.tensor([0.5]).view(1, 1, 1, 1)
    variance = module.DEVIATION**2 + module.WIDTH**2 / 12
    nats = (0.25 + module.WIDTH**2 / 12) / (2 * variance) + math.log(2 * math.pi * variance) / 2
    assert module.gaussian_bits_per_dim(law, data).item() == pytest.approx(
        (nats - math.log(module.WIDTH)) / math.log(2)
    )


@pytest.mark.parametrize(("log_snr", "log_share"), [(12.0, 0.0), (13.0, -2.0), (9.0, 0.5), (2.0, 0.0)])
def test_beliefs_on_levels_are_those_of_a_gaussian_restricted_to_them(log_snr: float, log_share: float) -> None:
    """Against a softmax over 4,000 levels; where the Gaussian is wide beside them, against its mean itself."""
    schedule = LogLinear(high=13.3, low=-6.0)
    level = schedule.at(schedule.time_of(torch.tensor([log_snr], dtype=torch.float64)))
    mean = PredictEDM(sigma_data=module.DEVIATION)
    output = torch.randn(1, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    output[:, 1] = log_share
    x_t = torch.linspace(-0.9, 0.9, 9, dtype=torch.float64).view(1, 1, 3, 3)
    m = mean.decode(output[:, :1], x_t, level).x0
    grid = torch.arange(-2000, 2000).double() * module.WIDTH - 1
    std = (level.sigma / level.alpha).item() * math.exp(log_share / 2)
    share = torch.softmax(-((m[..., None] - grid) / std).square() / 2, -1)
    found = module.OnLevels(mean=mean).decode(output, x_t, level).x0
    torch.testing.assert_close(found, (share * grid).sum(-1), atol=1e-4 * module.WIDTH, rtol=0)


def awake(radius: int = 2) -> Any:
    torch.manual_seed(0)
    model = module.CausalMixture(radius=radius, components=3, scales=2, rank=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


@torch.no_grad()
def test_the_causal_mixture_is_a_law() -> None:
    """The probabilities of all 256 levels of a pixel sum to 1, given any pixels before it."""
    model, data = awake(), LAW.draw(picture_noise(1))
    levels = (torch.arange(256) * module.WIDTH - 1).float()
    for row, column in ((0, 0), (2, 1), (3, 3)):
        tried = data.repeat(256, 1, 1, 1)
        tried[:, 0, row, column] = levels
        mass = model(tried)[:, 4 * row + column].double().exp().sum().item()
        assert mass == pytest.approx(1, abs=1e-5)


@torch.no_grad()
def test_the_causal_mixture_looks_back_only_and_no_further_than_its_radius() -> None:
    model, data = awake(), DeadLeaves(height=6, width=6).draw(picture_noise(1))
    before = model(data)
    for row, column in ((2, 3), (0, 0), (5, 5)):
        moved = data.clone()
        moved[0, 0, row, column] *= -0.5
        changed = ((model(moved) - before)[0].view(6, 6) != 0).nonzero().tolist()
        assert [row, column] in changed, "its own probability"
        for r, c in changed:
            later = (r, c) >= (row, column)
            assert later, "nothing before it"
            assert r - row <= 2
            assert abs(c - column) <= 2


@torch.no_grad()
def test_neighbourhoods_hold_what_they_say() -> None:
    """Of the pixel at (1, 1): the row above it and the pixel to its left; the rest of radius 1 is there or outside."""
    model = module.CausalMixture(radius=1, components=1, scales=1, rank=1)
    x = torch.arange(9.0).view(1, 1, 3, 3)
    h = model.neighbourhood(x).view(3, 3, 2, 4)
    assert h[1, 1].tolist() == [[0, 1, 2, 3], [0, 0, 0, 0]]
    assert h[0, 0].tolist() == [[0, 0, 0, 0], [1, 1, 1, 1]]
    assert h[2, 2].tolist() == [[4, 5, 0, 7], [0, 0, 1, 0]]


def test_the_causal_mixture_learns_more_than_a_gaussian_knows() -> None:
    law = DeadLeaves(height=8, width=8, smallest=2.0)
    model = module.teach_causal(law, 0, 250, lambda stage, done, total: None)
    data = law.draw(picture_noise(200, key=9))
    assert model.bits_per_dim(data).mean() < module.gaussian_bits_per_dim(law, data).mean() - 0.3


def test_a_short_run_has_the_form_of_a_report(tmp_path: Path) -> None:
    stages: set[str] = set()
    report = module.dead_leaves(seed=3, advance=lambda stage, done, total: stages.add(stage), effort=0.004)
    figures = report.figures
    assert list(figures)[:4] == ["ours", "standard_error", "paper", "best_possible"]
    assert figures["paper_over_autoregressive"] == pytest.approx(0.245)
    for name in ("autoregressive", "gaussian"):
        assert figures[name] == pytest.approx(6.2075 - figures["bits_per_dim"][name], abs=1e-4)
    gap = figures["bits_per_dim"]["autoregressive"] - figures["bits_per_dim"]["diffusion"]
    assert figures["ours_over_autoregressive"] == pytest.approx(gap, abs=1e-6)
    assert {"training", "causal mixture", "bound", "samples"} <= stages
    json.dumps(figures, allow_nan=False)
    report.draw(tmp_path / "leaves.png")
    with Image.open(tmp_path / "leaves.png") as picture:
        assert picture.format == "PNG"


@pytest.mark.slow
def test_the_figures() -> None:
    """Both models know of leaves, beyond any covariance; the order of the two is reported, not asked for."""
    report = module.dead_leaves(seed=0, advance=lambda stage, done, total: None)
    figures = report.figures
    assert not report.failures
    assert figures["autoregressive"] > figures["gaussian"] + 5
    assert figures["bits_per_dim"]["diffusion"] < 2.65
    assert figures["bits_per_dim"]["autoregressive"] < 2.45
    assert figures["standard_error"] < 0.03
    said = any("NOT the paper's order" in line for line in report.lines)
    assert said == (figures["ours_over_autoregressive"] <= 0)
