"""The held-out loss: the same number every time, and the right one."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from unstir.condition import Condition
from unstir.diffusion.denoiser import NetworkDenoiser
from unstir.diffusion.parameterization import PredictX0
from unstir.diffusion.process import GaussianProcess
from unstir.diffusion.schedule import Cosine, RectifiedFlow
from unstir.training.validation import BANDS, band_losses, mean_by_band


class Constant(torch.nn.Module):
    """Believes the same of every picture, and remembers what it was asked."""

    def __init__(self, value: float, channels: int = 3) -> None:
        super().__init__()
        self.value, self.in_channels, self.out_channels = value, channels, channels
        self.asked: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(self, x, scalar, condition):
        self.asked.append((x.clone(), condition.words.clone()))
        return torch.full_like(x, self.value)


def denoiser(value: float = 0.0, schedule=None) -> NetworkDenoiser:
    return NetworkDenoiser(Constant(value), GaussianProcess(schedule=schedule or RectifiedFlow()), PredictX0())


@pytest.fixture
def held_out() -> tuple[torch.Tensor, Condition]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(7, 3, 4, 4, generator=generator) * 2 - 1, Condition(words=torch.arange(7)[:, None])


def test_a_constant_belief_costs_its_distance(held_out) -> None:
    """|x0 - 0.25|^2 averaged over the pictures, in every band."""
    latents, condition = held_out
    expected = (latents.double() - 0.25).square().mean().item()
    losses = band_losses(denoiser(0.25), latents, condition)
    assert list(losses) == ["-8..-4", "-4..-1.5", "-1.5..1.5", "1.5..4", "4..8", "mean"]
    assert all(loss == pytest.approx(expected, rel=1e-6) for loss in losses.values())


@pytest.mark.parametrize("schedule", [RectifiedFlow(), Cosine()], ids=["flow", "cosine"])
def test_levels_lie_in_their_bands(held_out, schedule) -> None:
    """From x_t and x0: the residual of a marginal has variance sigma^2, and alpha^2/sigma^2 is within the band."""
    latents, condition = torch.ones(40, 3, 16, 16), Condition(words=torch.arange(40)[:, None])
    levels: list[torch.Tensor] = []

    class Asked(NetworkDenoiser):
        def forward(self, x_t, level, condition):
            levels.append(level.log_snr)
            residual = (x_t - level.alpha.reshape(-1, 1, 1, 1) * latents[: len(x_t)]) / level.sigma.reshape(-1, 1, 1, 1)
            assert abs(residual.var().item() - 1) < 0.05
            return super().forward(x_t, level, condition)

    judge = Asked(Constant(0.0), GaussianProcess(schedule=schedule), PredictX0())
    band_losses(judge, latents, condition, batch=40)
    for (low, high), found in zip(BANDS, levels, strict=True):
        assert low - 1e-3 <= found.min()
        assert found.max() <= high + 1e-3
        assert found.max() - found.min() > (high - low) / 2  # spread over the band, not one level


def test_twice_is_the_same_number(held_out) -> None:
    latents, condition = held_out
    torch.manual_seed(1)
    first = band_losses(denoiser(0.1), latents, condition)
    torch.rand(3)
    assert band_losses(denoiser(0.1), latents, condition) == first


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 100])
def test_the_batch_does_not_matter(held_out, batch: int) -> None:
    """Each picture keeps its noise, its level and its words, however they are batched."""
    latents, condition = held_out
    whole, parts = denoiser(), denoiser()
    expected = band_losses(whole, latents, condition, batch=7)
    assert band_losses(parts, latents, condition, batch=batch) == pytest.approx(expected, rel=1e-6)
    for part in (0, 1):
        one = torch.cat([asked[part] for asked in whole.network.asked])
        other = torch.cat([asked[part] for asked in parts.network.asked])
        assert torch.equal(one, other)


def test_nothing_outside_is_touched(held_out) -> None:
    latents, condition = held_out
    before, state = latents.clone(), torch.get_rng_state()
    band_losses(denoiser(), latents, condition)
    assert torch.equal(latents, before)
    assert torch.equal(state, torch.get_rng_state())


def test_bands_cover_the_range_without_gaps() -> None:
    assert all(low < high for low, high in BANDS)
    assert all(left[1] == right[0] for left, right in pairwise(BANDS))


def test_means_by_band_are_of_the_samples_inside() -> None:
    log_snr = torch.tensor([-9.0, -8.0, -4.0, -2.0, 0.0, 7.9, 8.0])
    values = torch.tensor([100.0, 1.0, 2.0, 4.0, 5.0, 6.0, 100.0], requires_grad=True)
    assert mean_by_band(values, log_snr) == {"-8..-4": 1.0, "-4..-1.5": 3.0, "-1.5..1.5": 5.0, "4..8": 6.0}
    assert mean_by_band(values[:1], log_snr[:1]) == {}
