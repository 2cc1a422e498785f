"""Kernel distance: how far apart two sets of feature vectors are, without bias, by the kernel of KID.

Knows: the cubic kernel, the unbiased estimator of the squared distance, its error by the jackknife.
Does not know: what the features are of, or who computed them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Float, Float64
from torch import Tensor

_ROWS = 1024  # of a kernel matrix at a time


@dataclass(frozen=True, kw_only=True)
class KernelDistance:
    """A squared kernel distance (KID, when the features are Inception's) and its error.

    Args:
        value: the unbiased estimate; around 0 for two samples of one law, where it is negative half of the time.
        standard_error: by the jackknife; on the safe side (see ``kernel_distance``).
    """

    value: float
    standard_error: float


def kernel_distance(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> KernelDistance:
    """The unbiased squared maximum mean discrepancy of two samples with k(a, b) = (a.b / d + 1)^3, in float64.

    mean of k(x_i, x_j), i != j, + mean of k(y_i, y_j), i != j, - 2 mean of k(x_i, y_j)

    The standard error leaves out each row of x, then each of y, in closed form, and adds the two jackknife variances.
    By the Efron-Stein inequality that is not too small in expectation: it is right where the laws differ by much more
    than the error, and up to sqrt(2) too large where they are the same. All rows must be independent, also x of y.

    Raises:
        ValueError: if a sample has fewer than 3 rows, or the samples differ in their number of features.

    Source: Binkowski et al. 2018, arXiv:1801.01401 (kernel); Gretton et al. 2012, JMLR 13, Lemma 6 (estimator);
        Efron & Stein 1981, Annals of Statistics 9 (jackknife).
    """
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"both samples must have the same features, got {x.shape[1]} and {y.shape[1]} of them")
    n, m = len(x), len(y)
    if min(n, m) < 3:
        raise ValueError(f"a jackknife needs samples of at least 3, got {n} and {m}")
    x, y = x.double(), y.double()
    within_x, within_y = _row_sums(x, x) - _kernel_of_self(x), _row_sums(y, y) - _kernel_of_self(y)
    x_to_y, y_to_x = _row_sums(x, y), _row_sums(y, x)
    total_x, total_y, across = within_x.sum(), within_y.sum(), x_to_y.sum()
    mean_x, mean_y = total_x / (n * (n - 1)), total_y / (m * (m - 1))
    value = mean_x + mean_y - 2 * across / (n * m)
    without_x = (total_x - 2 * within_x) / ((n - 1) * (n - 2)) + mean_y - 2 * (across - x_to_y) / ((n - 1) * m)
    without_y = mean_x + (total_y - 2 * within_y) / ((m - 1) * (m - 2)) - 2 * (across - y_to_x) / (n * (m - 1))
    variance = sum((part - part.mean()).square().mean().item() * (len(part) - 1) for part in (without_x, without_y))
    return KernelDistance(value=value.item(), standard_error=math.sqrt(variance))


def _row_sums(x: Float64[Tensor, "n d"], y: Float64[Tensor, "m d"]) -> Float64[Tensor, "n"]:
    """The sum of k(x_i, y_j) over j."""
    sums = x.new_empty(len(x))
    for start in range(0, len(x), _ROWS):
        rows = slice(start, start + _ROWS)
        sums[rows] = (x[rows] @ y.T / x.shape[1] + 1).pow(3).sum(1)
    return sums


def _kernel_of_self(x: Float64[Tensor, "n d"]) -> Float64[Tensor, "n"]:
    return (x.square().mean(1) + 1).pow(3)
