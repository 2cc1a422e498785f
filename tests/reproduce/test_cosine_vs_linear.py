"""Cosine against linear: rows, what a schedule changes and what not, and a run cut short."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from unstir.reproduce import on_digits
from unstir.reproduce.cosine_vs_linear import PAPER, SCHEDULES, cosine_vs_linear, way
from unstir.reproduce.report import Report

pytest.importorskip("sklearn")

PNG = b"\x89PNG\r\n\x1a\n"


def ignore(stage: str, done: int, total: int) -> None:
    assert 0 <= done <= total, stage


@pytest.fixture(scope="module")
def report() -> Report:
    return cosine_vs_linear(seed=7, advance=ignore, effort=0.003)


def test_every_row_names_a_schedule_and_an_objective() -> None:
    for name in PAPER:
        assert name.split(",")[0] in SCHEDULES
        parameterization, objective = way(name, 20)
        assert type(parameterization).__name__ == ("LearnedRange" if "hybrid" in name else "FixedLarge")
        assert type(objective).__name__ == ("Hybrid" if "hybrid" in name else "Simple")


def test_both_chains_start_alike_and_cosine_ends_in_more_noise() -> None:
    ends = {
        name: on_digits.chain(schedule).schedule.at(torch.tensor([0.001, 0.5, 1.0], dtype=torch.float64)).log_snr
        for name, schedule in SCHEDULES.items()
    }
    assert ends["linear"][0].item() == pytest.approx(ends["cosine"][0].item(), abs=1e-9)
    assert ends["cosine"][1] > ends["linear"][1]  # later in coming
    assert ends["cosine"][2] < ends["linear"][2]


def test_every_row_has_bits_and_distances_of_three_seeds(report: Report) -> None:
    rows = report.figures["rows"]
    assert [row["row"] for row in rows] == list(PAPER)
    for row in rows:
        assert row["paper_bits_per_dim"]["cifar_10"] == PAPER[row["row"]][1][0]
        assert len(row["bits_per_dims"]) == 3
        assert [far["steps"] for far in row["kernel_distance"]] == [20, 5]
        assert all(len(far["values"]) == 3 for far in row["kernel_distance"])


def test_every_claim_says_which_is_lower(report: Report) -> None:
    claims = [line for line in report.lines if "is lower" in line]
    assert len(claims) == 2 + 2 * 2


def test_figures_are_json_and_the_picture_is_one(report: Report, tmp_path: Path) -> None:
    json.dumps(report.figures, allow_nan=False)
    assert report.notes
    report.draw(tmp_path / "picture")
    assert (tmp_path / "picture").read_bytes().startswith(PNG)


@pytest.mark.slow
def test_the_whole_run() -> None:
    report = cosine_vs_linear(seed=0, advance=ignore)
    assert not report.failures
    bits = {row["row"]: row["bits_per_dim"] for row in report.figures["rows"]}
    assert all(value < 4.09 for value in bits.values())
