"""Rate and distortion: the paper's table, shares of a rate, and a run cut short."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from unstir.diffusion.likelihood import RatePoint
from unstir.diffusion.process import Estimate
from unstir.reproduce import on_digits
from unstir.reproduce.rate_distortion import PAPER, PAPER_ALL_AFTER, SEEN, rate_distortion, share_after, watched
from unstir.reproduce.report import Report

pytest.importorskip("sklearn")

PNG = b"\x89PNG\r\n\x1a\n"


def ignore(stage: str, done: int, total: int) -> None:
    assert 0 <= done <= total, stage


@pytest.fixture(scope="module")
def report() -> Report:
    return rate_distortion(seed=7, advance=ignore, effort=0.01)


def test_of_the_papers_rate_93_percent_come_after_12_of_255() -> None:
    points = [
        RatePoint(t=1 - place / 1000, rate=rate, distortion=rmse / 127.5)
        for place, (rate, rmse) in sorted(PAPER.items())
    ]
    assert share_after(points, SEEN) == pytest.approx(0.9325, abs=5e-5)
    assert pytest.approx(0.968, abs=5e-4) == PAPER_ALL_AFTER
    assert share_after(points, 0.5) is None
    assert share_after(points, 100) == 1


def test_what_is_shown_is_no_darker_than_black() -> None:
    pictures = torch.tensor([[-1.0, 1.0], [0.0, 0.5]])
    beliefs = torch.tensor([[-1.5, 1.2], [0.5, 0.5]])
    found: dict[int, float] = {}
    level = on_digits.chain(num_steps=20).schedule.at(torch.tensor(0.15, dtype=torch.float64))
    denoise = watched(lambda x_t, level, previous=None: Estimate(x0=beliefs), pictures, found, 20)
    assert torch.equal(denoise(pictures, level).x0, beliefs)
    assert found == {3: pytest.approx(0.25)}  # the root of 0.25/4


def test_rows_are_the_papers_times_and_numbers(report: Report) -> None:
    rows = report.figures["rows"]
    assert [row["steps_sent"] for row in rows] == [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100]
    assert [(row["paper_rate"], row["paper_rmse"]) for row in rows] == list(PAPER.values())


@pytest.mark.parametrize("name", ["l_simple", "bound"])
def test_the_rate_grows_to_the_bound_less_the_decoder(report: Report, name: str) -> None:
    rates = [row[f"{name}_rate"] for row in report.figures["rows"]]
    assert rates == sorted(rates, reverse=True)
    parts = report.figures[name]
    assert rates[0] + parts["decoder"] == pytest.approx(parts["bits_per_dim"], rel=1e-6)


def test_grey_levels_are_told_in_both_scales(report: Report) -> None:
    for row in report.figures["rows"]:
        assert row["bound_rmse"] / 255 == pytest.approx(row["bound_rmse_of_16"] / 16)


def test_figures_are_json_and_the_picture_is_one(report: Report, tmp_path: Path) -> None:
    json.dumps(report.figures, allow_nan=False)
    assert report.notes
    report.draw(tmp_path / "picture")
    assert (tmp_path / "picture").read_bytes().startswith(PNG)


@pytest.mark.slow
def test_the_whole_run() -> None:
    report = rate_distortion(seed=0, advance=ignore)
    assert not report.failures
    distortions = [row["l_simple_rmse"] for row in report.figures["rows"]]
    assert distortions == sorted(distortions)
    assert report.figures["bound"]["bits_per_dim"] < report.figures["l_simple"]["bits_per_dim"]
