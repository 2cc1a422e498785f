"""A canvas without an edge: whatever the network does at its own edge, the picture does not show."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from unstir.diffusion.noise import KeyedNoise
from unstir.diffusion.process import Estimate
from unstir.diffusion.schedule import RectifiedFlow
from unstir.diffusion.tiling import seamless

LEVEL = RectifiedFlow().at(torch.tensor(0.5, dtype=torch.float64))


def noise(height: int, width: int, rows: int = 1) -> torch.Tensor:
    return KeyedNoise.from_seeds(range(rows)).normal(torch.zeros(rows, 2, height, width))


def edged(x_t: torch.Tensor, level: object, previous: Estimate | None = None) -> Estimate:
    """A blur that believes in a black frame, as a network with zero padding and centred pictures does."""
    x0 = F.avg_pool2d(F.pad(x_t, (1, 1, 1, 1)), 3, 1)
    x0[..., 0, :] = x0[..., -1, :] = x0[..., :, 0] = x0[..., :, -1] = -1.0
    return Estimate(x0=x0)


@pytest.mark.parametrize("size", [(8, 8), (16, 12), (7, 9)], ids=str)
def test_what_has_no_edge_is_left_alone(size: tuple[int, int]) -> None:
    """The weights of the four views add up to 1, on odd sides too."""
    x = noise(*size)

    def pointwise(x_t: torch.Tensor, level: object, previous: Estimate | None = None) -> Estimate:
        return Estimate(x0=2 * x_t + 1, variance_fraction=0.5)

    belief = seamless(pointwise)(x, LEVEL)
    assert torch.allclose(belief.x0, 2 * x + 1, atol=1e-5)
    assert torch.allclose(belief.variance_fraction, torch.full(size, 0.5))


def test_a_frame_of_the_network_is_not_seen() -> None:
    """The frame has weight sin^2(pi/64) or so where it is believed in; the seam is as smooth as the inside."""
    x = noise(32, 32)
    plain, tiled = edged(x, LEVEL).x0, seamless(edged)(x, LEVEL).x0
    circular = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="circular"), 3, 1)
    assert (plain - circular).abs().max() > 1
    assert (tiled - circular).abs().max() < 0.02


def test_rolling_the_canvas_by_half_rolls_the_belief() -> None:
    x = noise(8, 8, rows=3)
    for by in ((4, 0), (0, 4), (4, 4)):
        rolled = seamless(edged)(x.roll(by, (2, 3)), LEVEL).x0.roll((-by[0], -by[1]), (2, 3))
        assert torch.allclose(rolled, seamless(edged)(x, LEVEL).x0, atol=1e-6)


def test_what_was_believed_before_is_rolled_with_it() -> None:
    x, before = noise(8, 8), noise(8, 8, rows=2)[1:]

    def recalling(x_t: torch.Tensor, level: object, previous: Estimate | None = None) -> Estimate:
        assert previous is not None
        return previous

    assert torch.allclose(seamless(recalling)(x, LEVEL, Estimate(x0=before)).x0, before, atol=1e-6)
