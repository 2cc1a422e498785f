"""The Swiss roll: the exact denoiser and the floors, the form of the report, and the bar itself (slow)."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from unstir.data.toy import SwissRoll
from unstir.diffusion.likelihood import bits_per_dim
from unstir.diffusion.noise import BlockNoise

module: Any = importlib.import_module("unstir.reproduce.swiss_roll")  # the package has a function of this name

LAW = SwissRoll()
KEYS = [
    "gap",
    "standard_error",
    "bound",
    "entropy",
    "ours",
    "paper",
    "best_possible",
]


def test_the_exact_denoiser_is_of_the_roll() -> None:
    """KL(roll || Gaussians along it), over draws of the roll, is below 1e-5 bits: it vanishes to second order."""
    exact = module.exact_denoiser(LAW)
    data = LAW.draw(BlockNoise(key=(1,), count=20_000)).double()
    level = module.roll_process().schedule.at(torch.zeros((), dtype=torch.float64))
    ratio = torch.cat([exact.log_density(part, level) for part in data.split(2000)]) - LAW.log_density(data)
    kl = (ratio.exp() - 1 - ratio).mean().item() / math.log(2)  # E r log r of a density, at less than r - 1 variance
    assert 0 <= kl < 1e-5


def test_the_bound_of_the_exact_denoiser_is_the_entropy() -> None:
    """In continuous time, for each point: bound + log2 p(x) has mean 0 within 4 standard errors."""
    data = LAW.draw(BlockNoise(key=(2,), count=600)).double()
    exact = module._in_rows(module.exact_denoiser(LAW), 500)
    noise = BlockNoise(key=(3,), count=600)
    bound = bits_per_dim(exact, module.roll_process(), data, steps=None, noise=noise, draws=60)
    gap = 2 * bound.total + LAW.log_density(data) / math.log(2)
    assert abs(gap.mean().item()) < 4 * gap.std().item() / math.sqrt(600)
    assert 2 * bound.prior.mean().item() < 6e-4


def test_the_last_step_costs_what_the_closed_form_says() -> None:
    """KL(N(0, r v) || N(0, v)) in bits, r = n^2/(n^2 + v): the posterior across the roll from the decoder's Gaussian."""
    variance = math.exp(-module.HIGH)
    ratio = LAW.noise**2 / (LAW.noise**2 + variance)
    name, gap, error = module.floors(
        LAW, LAW.draw(BlockNoise(key=(4,), count=2)).double(), BlockNoise(key=(5,), count=2)
    )[0]
    assert name.startswith("continuous")
    assert gap == pytest.approx((ratio - 1 - math.log(ratio)) / 2 / math.log(2), rel=1e-3)
    assert gap < 1e-5
    assert error == 0


def test_a_short_run_has_the_form_of_a_report(tmp_path: Path) -> None:
    stages: set[str] = set()
    report = module.swiss_roll(seed=3, advance=lambda stage, done, total: stages.add(stage), effort=0.005)
    assert list(report.figures)[: len(KEYS)] == KEYS
    figures = report.figures
    assert figures["ours"] == -figures["bound"]
    assert figures["bound"] == pytest.approx(figures["entropy"] + figures["gap"])
    assert figures["best_possible"] == pytest.approx(-0.7263, abs=1e-4)
    assert figures["gap"] > module.BAR, "40 steps teach little"
    assert report.failures
    assert {"training", "bound", "exact bound", "flow", "samples"} <= stages
    json.dumps(figures, allow_nan=False)
    report.draw(tmp_path / "roll.png")
    with Image.open(tmp_path / "roll.png") as picture:
        assert picture.format == "PNG"


@pytest.mark.slow
def test_the_bar() -> None:
    """At most 0.05 bits above the entropy, by the bound and along the flow, and samples where the density is high."""
    report = module.swiss_roll(seed=0, advance=lambda stage, done, total: None)
    figures = report.figures
    assert not report.failures
    assert figures["gap"] + 2 * figures["standard_error"] > 0
    assert figures["gap"] + 2 * figures["standard_error"] <= module.BAR
    within = abs(figures["bound_without_control"] - figures["bound"])
    assert within < 4 * figures["bound_without_control_standard_error"]
