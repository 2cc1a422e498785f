"""The ablation of objectives: its rows, the weight that makes a mean's error of x0's, and a run cut short."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from unstir.condition import Condition
from unstir.diffusion.denoiser import NetworkDenoiser
from unstir.diffusion.noise import BlockNoise
from unstir.diffusion.parameterization import LearnedVariance, PredictMean
from unstir.diffusion.process import Estimate
from unstir.reproduce import on_digits
from unstir.reproduce.fit import seeded, unconditional
from unstir.reproduce.objectives import objectives, rows_of, weight_mean
from unstir.reproduce.report import Report

pytest.importorskip("sklearn")

PNG = b"\x89PNG\r\n\x1a\n"


def ignore(stage: str, done: int, total: int) -> None:
    assert 0 <= done <= total, stage


@pytest.fixture(scope="module")
def report() -> Report:
    return objectives(seed=7, advance=ignore, effort=0.002)


def test_the_rows_are_those_of_the_papers_table() -> None:
    rows = rows_of(on_digits.chain(num_steps=20), 20)
    assert [row.paper for row in rows.values()][:6] == [23.69, 13.22, "unstable", "unstable", 13.51, 3.17]
    assert [row.parameterization.outputs == 2 for row in rows.values()] == [
        True,
        False,
        False,
        True,
        False,
        False,
        True,
    ]
    assert isinstance(rows["mean, L, learned"].parameterization, LearnedVariance)


@pytest.mark.parametrize("index", [1, 2, 11, 20])
def test_the_weight_makes_an_error_on_x0_one_on_the_mean(index: int) -> None:
    """|mean(x_t, x0) - mean(x_t, belief)|^2 = weight |x0 - belief|^2; at the last step the mean is x0 itself."""
    process = on_digits.chain(num_steps=20)
    level = process.schedule.at(torch.tensor([index / 20], dtype=torch.float64))
    before = process.schedule.at(torch.tensor([(index - 1) / 20], dtype=torch.float64))
    x_t, x0, belief = (BlockNoise(key=(i,), count=1).normal(torch.empty(1, 1, 8, 8).double()) for i in range(3))
    means = [process.reverse(x_t, level, before, Estimate(x0=x)).mean for x in (x0, belief)]
    error = (means[0] - means[1]).square().sum()
    assert error.item() == pytest.approx(
        (weight_mean(process, 20)(level) * (x0 - belief).square().sum()).item(), rel=1e-9
    )
    if index == 1:
        assert weight_mean(process, 20)(level).item() == pytest.approx(1)


def test_the_weighted_error_is_that_of_the_networks_output() -> None:
    process = on_digits.chain(num_steps=20)
    mean = PredictMean(process=process, num_steps=20)
    level = process.schedule.at(torch.tensor([0.3, 1.0], dtype=torch.float64))
    x_t, x0, belief = (BlockNoise(key=(i,), count=2).normal(torch.empty(2, 1, 8, 8).double()) for i in range(3))
    outputs = mean.target(x0, x_t, level) - mean.target(belief, x_t, level)
    weight = weight_mean(process, 20)(level)
    assert torch.allclose(outputs.square().flatten(1).sum(1), weight * (x0 - belief).square().flatten(1).sum(1))


def test_every_learned_variance_is_learned_from_the_start() -> None:
    """The last layer starts at zero; there a variance must not be held fast, or its row repeats the fixed one's."""
    process = on_digits.chain(num_steps=20)
    pictures = on_digits.held_out()[:64]
    for name, row in rows_of(process, 20).items():
        if row.parameterization.outputs == 2:
            network = seeded(0, lambda: on_digits.perceptron(2))
            denoiser: NetworkDenoiser[Condition] = NetworkDenoiser(network, process, row.parameterization)
            noise = BlockNoise(key=(0,), count=64)
            row.objective(denoiser, pictures, unconditional(64), noise).per_sample.mean().backward()
            halves = network.last.weight.grad.chunk(2)
            assert all(half.abs().max() > 0 for half in halves), name


def test_every_row_is_told_with_three_seeds(report: Report) -> None:
    rows = report.figures["rows"]
    assert [row["row"] for row in rows] == list(rows_of(on_digits.chain(num_steps=20), 20))
    for row in rows:
        assert len(row["kernel_distances"]) == len(row["bits_per_dims"]) == 3 - row["diverged"]
        assert row["kernel_distance"] == pytest.approx(sum(row["kernel_distances"]) / 3)
    pairs = report.figures["by_kernel_distance"]
    assert len(pairs["separated"]) + len(pairs["not_separated"]) == 21


def test_figures_are_json_and_the_picture_is_one(report: Report, tmp_path: Path) -> None:
    json.dumps(report.figures, allow_nan=False)
    assert report.notes
    report.draw(tmp_path / "picture")
    assert (tmp_path / "picture").read_bytes().startswith(PNG)


@pytest.mark.slow
def test_the_whole_run() -> None:
    report = objectives(seed=0, advance=ignore)
    assert not report.failures
    bits = {row["row"]: row["bits_per_dim"] for row in report.figures["rows"]}
    assert bits["noise, L, learned"] < bits["noise, L, fixed"]
