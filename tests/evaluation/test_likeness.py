"""Squared error, sharpness and diversity against closed forms: ramps, checkerboards, constant pictures, scatter."""

from __future__ import annotations

import itertools
import math
import statistics

import pytest
import torch
from torch import Tensor

from unstir.evaluation.likeness import (
    diversity,
    least_error,
    likeness,
    mean_of,
    ratio_of,
    sharpness,
    squared_error,
)


def flat(*values: float, size: int = 4) -> Tensor:
    """Pictures of one colour each."""
    return torch.tensor(values, dtype=torch.float64)[:, None, None, None].expand(-1, 3, size, size)


def noisy(seed: int, *shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


# Squared error


def test_bytes_and_numbers_are_one_unit() -> None:
    """Black and white are 2 apart, so 4; bytes v are v/127.5 - 1."""
    assert squared_error(flat(-1.0), flat(1.0)).tolist() == [4.0]
    black, white = torch.zeros(1, 3, 2, 2, dtype=torch.uint8), torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    assert squared_error(black, white).tolist() == [4.0]
    assert squared_error(black, flat(-1.0, size=2)).tolist() == [0.0]


def test_the_error_to_one_picture_is_the_mean_square() -> None:
    drawn, asked = noisy(0, 5, 3, 6, 6), noisy(1, 1, 3, 6, 6)
    direct = ((drawn.double() - asked.double()) / 127.5).square().flatten(1).mean(1)
    torch.testing.assert_close(squared_error(drawn, asked), direct)
    assert squared_error(asked, asked).tolist() == [0.0]


def test_the_error_to_many_is_the_mean_over_each_of_them() -> None:
    """E |d - r|^2 over the asked pictures, against every pair; the mean has the least, a real one twice as much."""
    drawn, asked = noisy(2, 3, 3, 5, 5), noisy(3, 7, 3, 5, 5)
    each = torch.stack([squared_error(drawn, asked[i : i + 1]) for i in range(7)])
    torch.testing.assert_close(squared_error(drawn, asked), each.mean(0))
    unit = asked.double() / 127.5 - 1
    mean = unit.mean(0, keepdim=True)
    assert squared_error(mean, unit).item() == pytest.approx(least_error(asked).item())
    assert squared_error(unit, unit).mean().item() == pytest.approx(2 * least_error(asked).item())
    assert least_error(asked[:1]).item() == 0


def test_the_least_error_of_two_constants() -> None:
    """-0.5 and 0.7: the mean is 0.1, the variance 0.36."""
    assert least_error(flat(-0.5, 0.7)).item() == pytest.approx(0.36)


@pytest.mark.parametrize("asked", [flat(0.0, size=5), flat(0.0)[:0]])
def test_an_error_needs_pictures_of_one_size(asked: Tensor) -> None:
    with pytest.raises(ValueError, match=r"\(3, 4, 4\)"):
        squared_error(flat(0.0), asked)


# Sharpness


def test_the_sharpness_of_a_ramp_is_its_slope() -> None:
    """x = 0.02 column + 0.05 row: sqrt(0.02^2 + 0.05^2), whatever the size; a constant has none."""
    for height, width in ((9, 13), (2, 2)):
        rows, columns = torch.meshgrid(
            torch.arange(height, dtype=torch.float64), torch.arange(width, dtype=torch.float64), indexing="ij"
        )
        ramp = (0.02 * columns + 0.05 * rows - 0.5).expand(1, 3, -1, -1)
        assert sharpness(ramp).item() == pytest.approx(math.hypot(0.02, 0.05))
    assert sharpness(flat(0.3)).tolist() == [0.0]


def test_the_sharpness_of_a_checkerboard_is_the_largest() -> None:
    """Black and white in turn: every difference is 2, so sqrt(8); stripes one way only: 2."""
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    board = (((rows + columns) % 2) * 255).to(torch.uint8).expand(1, 3, -1, -1)
    stripes = ((columns % 2) * 255).to(torch.uint8).expand(1, 3, -1, -1)
    assert sharpness(board).item() == pytest.approx(math.sqrt(8))
    assert sharpness(stripes).item() == pytest.approx(2)


def test_a_mean_of_pictures_is_less_sharp_than_they_are() -> None:
    """Independent noise: the mean of k has 1/sqrt(k) of the gradient."""
    pictures = torch.randn(4096, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    means = pictures.view(256, 16, 3, 8, 8).mean(1)
    assert (sharpness(means).mean() / sharpness(pictures).mean()).item() == pytest.approx(1 / 4, rel=0.01)


def test_a_gradient_needs_two_rows() -> None:
    with pytest.raises(ValueError, match="at least 2 rows"):
        sharpness(torch.zeros(1, 3, 1, 9))


# Diversity


def test_diversity_is_the_mean_distance_of_pairs() -> None:
    """0 of equal pictures; |a - b| of two constants; against every pair of three."""
    assert diversity(noisy(4, 1, 3, 6, 6).expand(5, -1, -1, -1)) == 0
    assert diversity(flat(-0.2, 0.5)) == pytest.approx(0.7)
    assert diversity(flat(-1.0, 1.0)) == pytest.approx(2)
    three = noisy(5, 3, 3, 6, 6)
    pairs = [
        ((a.double() - b.double()) / 127.5).square().mean().sqrt().item() for a, b in itertools.combinations(three, 2)
    ]
    assert diversity(three) == pytest.approx(statistics.fmean(pairs))


def test_one_picture_has_no_diversity() -> None:
    with pytest.raises(ValueError, match="draw more seeds"):
        diversity(flat(0.0))


# Means over prompts


def test_a_mean_has_prompts_for_units() -> None:
    values = [0.3, 0.9, 0.1, 0.4]
    mean = mean_of(values)
    assert mean.value == pytest.approx(statistics.fmean(values))
    assert mean.standard_error == pytest.approx(statistics.stdev(values) / 2)
    assert mean_of([0.5]).standard_error is None
    with pytest.raises(ValueError, match="at least one prompt"):
        mean_of([])


def test_the_error_of_a_ratio_is_that_of_repetition() -> None:
    """The spread of the ratio over 2,000 repetitions of 50 correlated pairs, within 10 %; exact proportion has none."""
    draws = torch.randn(2000, 50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    below = 5 + draws[..., 0]
    above = 3 + draws[..., 0] + 0.5 * draws[..., 1]
    found = [ratio_of(a.tolist(), b.tolist()) for a, b in zip(above, below, strict=True)]
    spread = statistics.stdev(one.value for one in found)
    assert statistics.fmean(one.standard_error or 0 for one in found) == pytest.approx(spread, rel=0.1)
    exact = ratio_of([2.0, 4.0, 8.0], [1.0, 2.0, 4.0])
    assert (exact.value, exact.standard_error) == (2.0, 0.0)
    with pytest.raises(ValueError, match="all 0"):
        ratio_of([1.0], [0.0])


# All of it


def test_a_perfect_drawer_is_like_the_real_pictures() -> None:
    """It draws the one picture of each prompt: no error, all of the sharpness, no diversity."""
    real = noisy(6, 4, 3, 6, 6)
    drawn = real[[2, 0]][:, None].expand(-1, 3, -1, -1, -1)
    found = likeness(drawn, [(2,), (0,)], real)
    assert (found.squared_error.value, found.least_error.value) == (0.0, 0.0)
    assert found.sharpness_ratio is not None
    assert found.sharpness_ratio.value == 1.0
    assert found.diversity is not None
    assert found.diversity.value == 0
    assert found.real_diversity is None  # no prompt names two
    assert found.prompts == 2


def test_the_mean_and_a_sampler_of_many_pictures() -> None:
    """Of a prompt that names 8 pictures: the mean attains the least error, blurred and always the same; drawing a real
    one costs twice as much, as sharp and (almost) as diverse as the real ones.
    """
    real = noisy(7, 8, 3, 16, 16)
    answers = [tuple(range(8))]
    mean = real.double().mean(0).round().to(torch.uint8)[None, None].expand(-1, 8, -1, -1, -1)
    naive, sampled = likeness(mean, answers, real), likeness(real[None], answers, real)
    assert naive.squared_error.value == pytest.approx(naive.least_error.value, rel=1e-3)
    assert sampled.squared_error.value == pytest.approx(2 * naive.least_error.value)
    assert naive.sharpness_ratio is not None
    assert sampled.sharpness_ratio is not None
    assert naive.sharpness_ratio.value == pytest.approx(1 / math.sqrt(8), rel=0.05)
    assert sampled.sharpness_ratio.value == pytest.approx(1)
    assert naive.diversity is not None
    assert sampled.diversity is not None
    assert naive.diversity.value == 0
    assert sampled.diversity == sampled.real_diversity
    assert sampled.squared_error.standard_error is None  # of one prompt


def test_prompts_are_averaged_over_their_seeds() -> None:
    """Two prompts, two seeds, constants: by hand. A single seed has no diversity, flat pictures no ratio of sharpness."""
    real = flat(0.0, 0.5)
    drawn = torch.stack([flat(0.1, 0.3), flat(0.5, 0.9)])
    found = likeness(drawn, [(0,), (1,)], real)
    assert found.diversity is not None
    assert found.diversity.value == pytest.approx((0.2 + 0.4) / 2)
    assert found.diversity.standard_error == pytest.approx(0.1)
    assert found.squared_error.value == pytest.approx(((0.01 + 0.09) / 2 + (0 + 0.16) / 2) / 2)
    assert (found.sharpness.value, found.sharpness_ratio) == (0, None)
    assert likeness(drawn[:, :1], [(1,), (1,)], real).diversity is None


def test_of_very_many_real_pictures_some_are_compared() -> None:
    """A hundred real pictures of independent noise: 32 of them tell the mean distance, sqrt(2) of the deviation."""
    real = noisy(9, 100, 3, 16, 16)
    found = likeness(real[None, :2], [tuple(range(100))], real).real_diversity
    deviation = 256 / math.sqrt(12) / 127.5
    assert found is not None
    assert found.value == pytest.approx(math.sqrt(2) * deviation, rel=0.01)
