"""Watching a run: every call is noted, and a sample tells at what level it is."""

from __future__ import annotations

import math

import pytest
import torch

from unstir.diffusion.samplers import DDIM
from unstir.diffusion.schedule import Cosine
from unstir.diffusion.spacing import trailing
from unstir.verify.observe import Call, Pattern, certain, is_at, log_snrs, observe, visited
from unstir.verify.target import SamplerTarget, promise_of

TARGET = SamplerTarget(
    name="ddim",
    sampler=DDIM(),
    schedule=Cosine(),
    spacing=trailing,
    promise=promise_of(DDIM(), Cosine(), trailing),
)


@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_a_pattern_tells_where_a_sample_is(scale: float) -> None:
    pattern = Pattern.of(2, 1, 16, scale=scale)
    assert pattern.x0.square().mean().sqrt().item() == pytest.approx(scale)
    assert (pattern.x0 * pattern.noise).sum().item() == pytest.approx(0, abs=1e-9)
    for t in (0.1, 0.5, 0.99):
        level = Cosine().at(torch.tensor(t, dtype=torch.float64))
        place = pattern.place(pattern.at(level))
        assert place.alpha == pytest.approx(level.alpha.item(), abs=1e-12)
        assert place.sigma == pytest.approx(level.sigma.item())
        assert place.stray == pytest.approx(0, abs=1e-9)


def test_what_is_not_the_first_noise_strays() -> None:
    pattern = Pattern.of(2, 1, 16)
    other = torch.randn(2, 1, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert pattern.place(pattern.x0 + 0.3 * other).stray > 0.5
    assert pattern.place(pattern.x0 - 0.3 * pattern.noise).stray == math.inf, "noise turned round"
    assert pattern.place(pattern.x0).sigma == pytest.approx(0, abs=1e-12)


def test_every_call_is_noted() -> None:
    pattern = Pattern.of(2, 1, 4)
    run = observe(TARGET, certain(pattern.x0), pattern.at(TARGET.levels(5)[0]), 5)
    grid = TARGET.levels(5)
    assert [call.alpha for call in run.calls] == grid.alpha[:-1].tolist()
    assert [call.sigma for call in run.calls] == grid.sigma[:-1].tolist()
    assert torch.equal(run.calls[0].x, pattern.at(grid[0]))
    assert all(torch.equal(call.x0, pattern.x0) for call in run.calls)
    torch.testing.assert_close(run.end, pattern.x0)
    late = observe(TARGET, certain(pattern.x0), pattern.at(grid[3]), 5, start=3)
    assert [call.alpha for call in late.calls] == grid.alpha[3:-1].tolist()


def test_visits_are_told_by_level() -> None:
    grid = TARGET.levels(6)

    def call(alpha: float, sigma: float) -> Call:
        return Call(x=torch.zeros(1), alpha=alpha, sigma=sigma, x0=torch.zeros(1))

    points = [call(grid.alpha[i].item(), grid.sigma[i].item()) for i in (0, 1, 1, 2, 4)]
    assert visited(points, grid) == [0, 1, 2, 4], "a second call at the same point does not count"
    between = call(*(0.5 * (values[2] + values[3]).item() for values in (grid.alpha, grid.sigma)))
    assert visited([between], grid) == []
    assert is_at(points[0], grid[0])
    assert not is_at(points[0], grid[1])


def test_log_snr_is_infinite_at_the_data() -> None:
    values = log_snrs(TARGET.levels(3))
    assert values[-1] == math.inf
    assert values == sorted(values)
