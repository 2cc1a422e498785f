"""The average of the weights against its closed form (C34), computed in float64."""

from __future__ import annotations

import pytest
import torch

from unstir.training.ema import ema_decay, ema_update, share_of_start


@pytest.mark.parametrize(("half_life", "warmup"), [(1000.0, 0.05), (50.0, 0.5), (7.0, 1.0)])
def test_after_n_updates_the_average_is_the_closed_form(half_life: float, warmup: float) -> None:
    """E_n = sum_k (1 - d_k) prod_{j > k} d_j w_k + prod d_j w_0, with d_k = 0.5^(b / min(half-life, warm-up share))."""
    generator = torch.Generator().manual_seed(0)
    batch, steps = 8, 60
    weights = torch.randn(steps + 1, 5, generator=generator)
    average = [weights[0].clone()]
    decays = []
    for step in range(1, steps + 1):
        decay = ema_decay(batch, step * batch, half_life_images=half_life, warmup=warmup)
        decays.append(0.5 ** (batch / min(half_life, warmup * step * batch)))
        assert decay == pytest.approx(decays[-1], rel=1e-15)
        ema_update(average, [weights[step]], decay)
    d = torch.tensor([0.0, *decays], dtype=torch.float64)
    later = torch.tensor([d[k + 1 :].prod() for k in range(steps + 1)], dtype=torch.float64)
    share = (1 - d) * later  # of w_k, for k = 0 too: (1 - 0) prod of all decays
    assert share.sum().item() == pytest.approx(1, abs=1e-12)
    expected = (share[:, None] * weights.double()).sum(0)
    torch.testing.assert_close(average[0].double(), expected, rtol=0, atol=1e-6)


def test_half_of_an_old_weight_is_left_after_the_half_life() -> None:
    average = [torch.ones(1, dtype=torch.float64)]
    for step in range(25):
        ema_update(
            average, [torch.zeros(1, dtype=torch.float64)], ema_decay(4, 10**9 + step, half_life_images=100, warmup=1)
        )
    assert average[0].item() == pytest.approx(0.5, rel=1e-12)


def test_the_decay_is_constant_once_warm_up_is_over() -> None:
    """df#1864: the requested decay must be the effective one, however long the run."""
    decays = {ema_decay(32, seen, half_life_images=1000, warmup=0.05) for seen in range(20_000, 500_000, 3200)}
    assert decays == {0.5 ** (32 / 1000)}


def test_early_averages_remember_a_share_of_the_run_only() -> None:
    early = [ema_decay(32, seen, half_life_images=1000, warmup=0.05) for seen in range(32, 20_000, 32)]
    assert early == sorted(early)
    assert early[0] < 1e-5
    assert all(decay <= 0.5 ** (32 / 1000) for decay in early)


def test_batches_of_any_size_remember_alike() -> None:
    """Two steps of 4 keep as much as one of 8."""
    small = ema_decay(4, 10**6, half_life_images=500, warmup=1)
    assert small**2 == pytest.approx(ema_decay(8, 10**6, half_life_images=500, warmup=1), rel=1e-14)


@pytest.mark.parametrize(("half_life", "warmup"), [(0, 0.05), (100, 0)])
def test_no_half_life_is_no_average(half_life: float, warmup: float) -> None:
    average, weights = [torch.zeros(3)], [torch.randn(3)]
    ema_update(average, weights, ema_decay(8, 80, half_life_images=half_life, warmup=warmup))
    assert torch.equal(average[0], weights[0])


def test_an_update_does_not_touch_the_weights() -> None:
    average, weights = [torch.zeros(3)], [torch.arange(3.0)]
    ema_update(average, weights, 0.9)
    assert weights[0].tolist() == [0, 1, 2]
    torch.testing.assert_close(average[0], torch.tensor([0.0, 0.1, 0.2]))


@pytest.mark.parametrize(("images", "batch"), [(400, 8), (403, 8), (5, 8), (64, 32)])
def test_the_share_of_the_start_is_what_is_left_of_a_one(images: int, batch: int) -> None:
    """What the average holds of its first value after a run whose last step may be smaller than the others."""
    average, seen = [torch.ones(1, dtype=torch.float64)], 0
    while seen < images:
        count = min(batch, images - seen)
        seen += count
        ema_update(
            average, [torch.zeros(1, dtype=torch.float64)], ema_decay(count, seen, half_life_images=300, warmup=0.9)
        )
    share = share_of_start(images, batch, half_life_images=300, warmup=0.9)
    assert share == pytest.approx(average[0].item(), rel=1e-9)
