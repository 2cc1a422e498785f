"""The kernel distance against its definition, its expectation and its spread."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from unstir.evaluation import kernel
from unstir.evaluation.kernel import KernelDistance, kernel_distance


def draws(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cubic(a: Tensor, b: Tensor) -> float:
    return (float(a @ b) / len(a) + 1) ** 3


def by_definition(x: Tensor, y: Tensor) -> float:
    """Gretton et al. 2012, Eq. 3, by loops."""
    within = [
        sum(cubic(s[i], s[j]) for i, j in itertools.permutations(range(len(s)), 2)) / (len(s) * (len(s) - 1))
        for s in (x, y)
    ]
    return sum(within) - 2 * sum(cubic(a, b) for a in x for b in y) / (len(x) * len(y))


def expected_kernel(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """E (a.b/d + 1)^3 of independent Gaussians: moments of a.b are inner products of the tensors of moments."""

    def moments(mean: Tensor, cov: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mixed = torch.einsum("i,jk->ijk", mean, cov)
        third = torch.einsum("i,j,k->ijk", mean, mean, mean) + mixed + mixed.permute(1, 0, 2) + mixed.permute(1, 2, 0)
        return mean, torch.outer(mean, mean) + cov, third

    first, second, third = (
        (a * b).sum().item() / len(mean_a) ** (power + 1)
        for power, (a, b) in enumerate(zip(moments(mean_a, cov_a), moments(mean_b, cov_b), strict=True))
    )
    return third + 3 * second + 3 * first + 1


MEAN_A, MEAN_B = torch.tensor([0.5, -0.3, 0.2]).double(), torch.tensor([0.1, 0.4, -0.2]).double()
ROOT_A = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.8, 0.0], [0.0, 0.2, 0.6]]).double()
ROOT_B = torch.tensor([[0.9, 0.0, 0.0], [-0.3, 1.1, 0.0], [0.1, 0.0, 0.7]]).double()


def gaussians(count: int, other: int, seed: int) -> tuple[Tensor, Tensor]:
    x, y = draws(count, 3, 2 * seed), draws(other, 3, 2 * seed + 1)
    return MEAN_A + x @ ROOT_A.T, MEAN_B + y @ ROOT_B.T


def spread(distances: list[KernelDistance]) -> tuple[float, float, float]:
    """Mean of the values, their standard deviation, and the root mean square of the errors they state."""
    values = torch.tensor([distance.value for distance in distances])
    stated = torch.tensor([distance.standard_error for distance in distances])
    return values.mean().item(), values.std().item(), stated.square().mean().sqrt().item()


@pytest.mark.parametrize("rows", [1024, 2])
def test_it_is_its_definition_and_leaves_one_out(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Value and jackknife, by loops; however many rows the kernel matrix is computed at a time."""
    monkeypatch.setattr(kernel, "_ROWS", rows)
    x, y = gaussians(5, 7, 0)
    found = kernel_distance(x, y)
    assert found.value == pytest.approx(by_definition(x, y), rel=1e-12)
    variance = 0.0
    for without in (
        [by_definition(torch.cat([x[:i], x[i + 1 :]]), y) for i in range(5)],
        [by_definition(x, torch.cat([y[:i], y[i + 1 :]])) for i in range(7)],
    ):
        centre = sum(without) / len(without)
        variance += (len(without) - 1) / len(without) * sum((value - centre) ** 2 for value in without)
    assert found.standard_error == pytest.approx(math.sqrt(variance), rel=1e-10)


def test_two_gaussians_meet_the_closed_form() -> None:
    """Unbiased for different laws, and the stated error is the true one there."""
    cov_a, cov_b = ROOT_A @ ROOT_A.T, ROOT_B @ ROOT_B.T
    known = (
        expected_kernel(MEAN_A, cov_a, MEAN_A, cov_a)
        + expected_kernel(MEAN_B, cov_b, MEAN_B, cov_b)
        - 2 * expected_kernel(MEAN_A, cov_a, MEAN_B, cov_b)
    )
    mean, true_error, stated = spread([kernel_distance(*gaussians(300, 500, seed)) for seed in range(150)])
    assert abs(mean - known) < 4 * true_error / math.sqrt(150)
    assert known > 4 * true_error
    assert 0.8 < stated / true_error < 1.25


def test_two_halves_of_one_law_are_zero_apart() -> None:
    """C48: unbiased where biased estimates are worst, and a stated error that is no smaller than the true one."""
    distances = [kernel_distance(*draws(1000, 8, seed).chunk(2)) for seed in range(150)]
    mean, true_error, stated = spread(distances)
    assert abs(mean) < 4 * true_error / math.sqrt(150)
    assert 0.3 < sum(distance.value < 0 for distance in distances) / 150 < 0.8, "negative half of the time"
    assert 0.9 < stated / true_error < 1.7, "sqrt(2) by the theory of degenerate statistics"


@pytest.mark.parametrize("count", [500, 2000])
def test_intervals_of_two_errors_hold_the_truth(count: int) -> None:
    """Of 60 pairs from one law, no more than 6 lie outside 2 stated errors (expected: below 3)."""
    found = [kernel_distance(*draws(2 * count, 4, seed).chunk(2)) for seed in range(60)]
    assert sum(abs(distance.value) > 2 * distance.standard_error for distance in found) <= 6


def test_neither_order_nor_precision_matters() -> None:
    x, y = gaussians(40, 60, 3)
    found = kernel_distance(x, y)
    assert kernel_distance(y, x).value == pytest.approx(found.value, rel=1e-12)
    assert kernel_distance(y, x).standard_error == pytest.approx(found.standard_error, rel=1e-12)
    mixed = kernel_distance(x.flip(0), y[torch.randperm(60, generator=torch.Generator().manual_seed(0))])
    assert mixed.value == pytest.approx(found.value, rel=1e-12)
    assert mixed.standard_error == pytest.approx(found.standard_error, rel=1e-12)
    single = kernel_distance(x.float(), y.float())
    assert single == kernel_distance(x.float().double(), y.float().double())


def test_samples_that_tell_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="samples of at least 3, got 2 and 5"):
        kernel_distance(torch.zeros(2, 4), torch.zeros(5, 4))
    with pytest.raises(ValueError, match="got 4 and 3 of them"):
        kernel_distance(torch.zeros(5, 4), torch.zeros(5, 3))
