"""Between two noises noise stays noise, between two beliefs nothing jumps, and the ends are the ends."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unstir.diffusion.blending import between, slerp
from unstir.diffusion.denoiser import Denoiser
from unstir.diffusion.noise import KeyedNoise
from unstir.diffusion.process import BinomialProcess, Estimate, GaussianProcess
from unstir.diffusion.schedule import Cosine, RectifiedFlow

LEVEL = RectifiedFlow().at(torch.tensor(0.5, dtype=torch.float64))
GAUSSIAN = GaussianProcess(schedule=RectifiedFlow())


def f64(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def noises(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    like = torch.zeros(rows, 3, 32, 32)
    return tuple(KeyedNoise.from_seeds([seed + i for i in range(rows)]).normal(like) for seed in (0, 100))


def believing(value: float, fraction: float | None = None) -> Denoiser:
    return lambda x_t, level, previous=None: Estimate(x0=torch.full_like(x_t, value), variance_fraction=fraction)


def test_noise_stays_noise_all_along_the_way() -> None:
    """A straight line has variance 1/2 in its middle, the great circle 1 everywhere."""
    start, end = noises(5)
    share = torch.linspace(0, 1, 5, dtype=torch.float64)
    way = slerp(start, end, share)
    assert way.std(dim=(1, 2, 3)).sub(1).abs().max() < 0.03
    assert torch.lerp(start, end, 0.5).std() < 0.75
    assert way.dtype == start.dtype


def test_the_ends_are_the_ends_to_the_bit() -> None:
    start, end = noises(2)
    way = slerp(start, end, f64(0, 1))
    assert torch.equal(way[0], start[0])
    assert torch.equal(way[1], end[1])


@given(angle=st.floats(0.1, 3.0), share=st.floats(0, 1))
def test_in_the_plane_it_is_the_circle(angle: float, share: float) -> None:
    """cos and sin of a share of the angle, for vectors on the unit circle."""
    start, end = f64(1, 0)[None], f64(math.cos(angle), math.sin(angle))[None]
    expected = f64(math.cos(share * angle), math.sin(share * angle))[None]
    assert torch.allclose(slerp(start, end, f64(share)), expected, atol=1e-9)


@pytest.mark.parametrize("size", [1.0, 2.0])
def test_where_there_is_no_circle_there_is_a_line(size: float) -> None:
    """Parallel noises."""
    start = torch.ones(1, 4)
    assert torch.allclose(slerp(start, size * start, f64(0.25)), (0.75 + 0.25 * size) * start, atol=1e-6)


def test_each_sample_goes_its_own_way() -> None:
    start, end = noises(3)
    together = slerp(start, end, f64(0.2, 0.5, 0.9))
    alone = slerp(start[1:2], end[1:2], f64(0.5))
    assert torch.equal(together[1:2], alone)


@pytest.mark.parametrize("share", [f64(-0.1), f64(1.1), f64(math.nan)])
def test_shares_are_shares(share: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="share of the way"):
        slerp(torch.ones(1, 2), torch.ones(1, 2), share)
    with pytest.raises(ValueError, match="share of the way"):
        between(GAUSSIAN, believing(0), believing(1), share)


def test_noises_of_two_shapes_have_no_way_between() -> None:
    with pytest.raises(ValueError, match="one shape"):
        slerp(torch.ones(1, 2), torch.ones(1, 3), f64(0.5))


def test_beliefs_between_two() -> None:
    """Each sample by its share; reals on a line, bits on the line of their logits."""
    x = torch.zeros(3, 1, 2, 2)
    share = f64(0, 0.25, 1)
    belief = between(GAUSSIAN, believing(-1.0, 0.0), believing(3.0, 1.0), share)(x, LEVEL)
    assert torch.equal(belief.x0[:, 0, 0, 0], torch.tensor([-1.0, 0.0, 3.0]))
    assert torch.equal(belief.variance_fraction.flatten(), share)
    bits = BinomialProcess(schedule=Cosine())
    middle = between(bits, believing(0.2), believing(0.9), f64(0.5))(x[:1], LEVEL)
    odds = math.sqrt(0.2 / 0.8 * 0.9 / 0.1)
    assert middle.x0[0, 0, 0, 0].item() == pytest.approx(odds / (1 + odds))
    assert middle.variance_fraction is None
