"""DDIM's table: the variance beta, rows and columns, and a run cut short."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from unstir.diffusion.process import Estimate
from unstir.diffusion.schedule import Level
from unstir.reproduce import on_digits
from unstir.reproduce.ddim_steps import ETAS, PAPER, STEPS, ddim_steps, with_beta
from unstir.reproduce.report import Report

pytest.importorskip("sklearn")

PNG = b"\x89PNG\r\n\x1a\n"


def ignore(stage: str, done: int, total: int) -> None:
    assert 0 <= done <= total, stage


@pytest.fixture(scope="module")
def report() -> Report:
    return ddim_steps(seed=7, advance=ignore, effort=0.002)


def test_the_table_is_the_papers() -> None:
    assert all(len(row) == len(STEPS) for row in PAPER.values())
    assert list(PAPER) == [*ETAS, "sigma-hat"]
    assert min(PAPER, key=lambda name: PAPER[name][-1]) == "sigma-hat"


def test_sigma_hat_is_the_variance_of_the_forward_step() -> None:
    """sqrt(1 - alpha_bar_t/alpha_bar_s) on any grid; the mean is that of eta = 1."""

    def denoise(x_t: Tensor, level: Level, previous: Estimate | None = None) -> Estimate:
        return Estimate(x0=0.5 * x_t)

    process = on_digits.chain()
    t, s = process.schedule.at(torch.tensor([0.7, 0.4], dtype=torch.float64))
    x = torch.linspace(-1, 1, 64).view(1, 1, 8, 8)
    larger = process.reverse(x, t, s, with_beta(denoise)(x, t))
    assert larger.std.item() == pytest.approx((1 - (t.alpha / s.alpha) ** 2).sqrt().item(), rel=1e-6)
    assert torch.equal(larger.mean, process.reverse(x, t, s, denoise(x, t)).mean)


def test_every_cell_has_three_seeds_and_stands_beside_the_papers(report: Report) -> None:
    rows = report.figures["rows"]
    assert [row["row"] for row in rows][::3] == list(PAPER)
    assert [row["steps"] for row in rows] == [5, 10, 20] * 5
    assert [row["paper_fid"] for row in rows[:3]] == list(PAPER["eta 0"][:3])
    assert all(len(row["kernel_distances"]) == 3 for row in rows)
    assert set(report.figures["by_steps"]) == {"5", "10", "20"}


def test_figures_are_json_and_the_picture_is_one(report: Report, tmp_path: Path) -> None:
    json.dumps(report.figures, allow_nan=False)
    assert report.notes
    report.draw(tmp_path / "picture")
    assert (tmp_path / "picture").read_bytes().startswith(PNG)


@pytest.mark.slow
def test_the_whole_run() -> None:
    report = ddim_steps(seed=0, advance=ignore)
    assert not report.failures
    assert ["eta 0", "sigma-hat"] in report.figures["by_steps"]["10"]["separated"]
