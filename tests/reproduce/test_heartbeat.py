"""The heartbeat: the paper's constants from their definitions, the form of the report, and the figure itself (slow)."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from unstir.data.toy import HeartBeat
from unstir.diffusion.likelihood import bits_per_dim
from unstir.diffusion.noise import BlockNoise
from unstir.diffusion.process import BinomialProcess, Estimate
from unstir.diffusion.schedule import Level, Tabulated, reciprocal_betas
from unstir.reproduce.heartbeat import BEST, LENGTH, NUM_STEPS, RATE, first_step_entropy, heartbeat

LAW = HeartBeat()
PROCESS = BinomialProcess(schedule=Tabulated.from_betas(reciprocal_betas(NUM_STEPS)), rate=RATE)


def exact(x_t: Tensor, level: Level, previous: Estimate | None = None) -> Estimate:
    """P(x0 = 1 | x_t) by Bayes' theorem over the five sequences."""
    ones = PROCESS.marginal(LAW.sequences.double(), level).probability  # p n
    log_likelihood = torch.where(x_t[:, None] > 0.5, ones.log(), (1 - ones).log()).sum(2)
    return Estimate(x0=torch.softmax(log_likelihood, 1) @ LAW.sequences.double())


def test_the_constant_of_the_tied_step() -> None:
    """H_q(X_1 | X_0) = 4 H(0.8/T) + 16 H(0.2/T) bits: the paper's K has minus 0.0439 for its last reverse step."""

    def entropy(p: float) -> float:
        return -(p * math.log2(p) + (1 - p) * math.log2(1 - p))

    got = first_step_entropy(LAW.sequences, PROCESS)
    assert got == pytest.approx(4 * entropy(0.8 / NUM_STEPS) + 16 * entropy(0.2 / NUM_STEPS), rel=1e-12)
    assert got == pytest.approx(0.0439, abs=5e-5)


def test_the_chain_forgets_everything() -> None:
    """alpha_bar_T = 0, so that H_q(X_T | X_0) = H_p(X_T) and both leave K."""
    end = PROCESS.schedule.at(torch.tensor(1.0, dtype=torch.float64))
    assert end.alpha.item() == 0
    assert torch.equal(
        PROCESS.marginal(LAW.sequences.double(), end).probability, torch.full((5, 20), RATE, dtype=torch.float64)
    )


def test_what_it_tells(tmp_path: Path) -> None:
    """The promised keys in their order, never better than possible, and a picture."""
    report = heartbeat(seed=0, advance=lambda stage, done, total: None, effort=0.01)
    assert list(report.figures) == ["ours", "standard_error", "bound", "paper", "best_possible", "truth"]
    assert all(math.isfinite(value) for value in report.figures.values())
    assert report.figures["truth"] == pytest.approx(-2.3219, abs=1e-4)
    assert report.figures["ours"] < report.figures["best_possible"] + 4 * report.figures["standard_error"]
    report.draw(tmp_path / "heartbeat.png")
    with Image.open(tmp_path / "heartbeat.png") as picture:
        assert picture.format == "PNG"


@pytest.mark.slow
def test_the_best_possible() -> None:
    """K of the exact posterior, bits drawn independently: -2.3659 within 4 standard errors; its bound is the truth."""
    data = LAW.sequences.double().repeat(300, 1)
    bound = bits_per_dim(exact, PROCESS, data, steps=NUM_STEPS, noise=BlockNoise(key=(7,), count=len(data)))
    error = 4 * LENGTH * bound.standard_error
    best = -LENGTH * bound.diffusion.mean().item() - first_step_entropy(LAW.sequences, PROCESS)
    assert best == pytest.approx(BEST, abs=error)
    assert -LENGTH * bound.mean == pytest.approx(-math.log2(5), abs=error)


@pytest.mark.slow
def test_the_figure() -> None:
    """K of at least -2.385 with a standard error of at most 0.003; at most 2 of 1,000 samples invalid, five phases."""
    report = heartbeat(seed=0, advance=lambda stage, done, total: None)
    assert report.figures["ours"] >= -2.385
    assert report.figures["standard_error"] <= 0.003
    assert not report.failures
