"""Oracles: data laws whose exact denoiser, and exact way from noise to data, can be written down.

Knows: the posterior mean of Gaussian, mixture and finite data under x_t = alpha x0 + sigma noise; measured orders.
Does not know: any sampler, network, schedule or file.

An oracle is a ``Denoiser``. It computes in float64 and answers in the type of x_t, and it is finite wherever x_t is:
at alpha = 0 (where it answers with the mean of the data) and however small sigma is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from unstir.diffusion.process import Estimate
from unstir.diffusion.schedule import Level, spread
from unstir.typing import Noise, X

_SMALLEST_VARIANCE = 1e-200  # stands for 0 where something is divided by it


@dataclass(frozen=True, kw_only=True, eq=False)
class GaussianOracle:
    """Data from N(mean, variance), independent in every element.

    D(x_t) = mean + alpha variance / (alpha^2 variance + sigma^2) (x_t - alpha mean)

    Args:
        mean: of a shape that broadcasts against x, such as (c, 1, 1) or ().
        variance: likewise, positive.

    Raises:
        ValueError: if any variance is not positive.

    Source: Bayes' theorem for two Gaussians; Karras et al. 2022, arXiv:2206.00364, Appendix B.
    """

    mean: Tensor
    variance: Tensor

    def __post_init__(self) -> None:
        """Refuse what is no Gaussian."""
        if not bool((self.variance > 0).all()):
            raise ValueError(f"a Gaussian law needs a positive variance, got {self.variance.min().item()}")

    def __call__(self, x_t: X, level: Level) -> Estimate:
        """E[x0 | x_t]."""
        x = x_t.double()
        mean, variance = self.mean.to(x), self.variance.to(x)
        alpha, sigma = spread(level.alpha, x), spread(level.sigma, x)
        gain = alpha * variance / (alpha**2 * variance + sigma**2)
        return Estimate(x0=(mean + gain * (x - alpha * mean)).to(x_t.dtype))

    def draw(self, like: X, noise: Noise) -> X:
        """Data of the shape, type and device of ``like``; row i uses key i alone."""
        return (self.mean.to(like) + self.variance.to(like).sqrt() * noise.normal(like)).to(like)

    def std(self, level: Level) -> Tensor:
        """The standard deviation of x_t, for a level of shape ()."""
        return (level.alpha**2 * self.variance.double() + level.sigma**2).sqrt()

    def error(self, level: Level) -> Tensor:
        """E |x0 - D(x_t)|^2 of one element, which no denoiser can be better than, for a level of shape ().

        variance sigma^2 / (alpha^2 variance + sigma^2)
        """
        return self.variance.double() * level.sigma**2 / self.std(level) ** 2

    def flow(self, x_t: X, t: Level, s: Level) -> X:
        """Where the probability flow carries x_t from level t to level s, exactly; levels of shape ().

        x_s = alpha_s mean + (x_t - alpha_t mean) std_s / std_t

        Source: Song et al. 2021, arXiv:2011.13456, Eq. 13, solved in closed form.
        """
        x = x_t.double()
        mean, ratio = self.mean.to(x), (self.std(s) / self.std(t)).to(x)
        return (s.alpha * mean + (x - t.alpha * mean) * ratio).to(x_t.dtype)


@dataclass(frozen=True, kw_only=True, eq=False)
class MixtureOracle:
    """Data from a mixture of isotropic Gaussians; with variance 0 throughout, from a finite set of points.

    p(k | x_t) is the softmax over k of log weight_k + log N(x_t; alpha mean_k, (alpha^2 variance_k + sigma^2) I), and
    D(x_t) = sum over k of p(k | x_t) (mean_k + alpha variance_k / (alpha^2 variance_k + sigma^2) (x_t - alpha mean_k)).

    Args:
        means: one a component, each of the shape of a sample.
        variances: of every element of a component; 0 for a point.
        weights: positive, of sum 1.

    Raises:
        ValueError: if variances or weights do not describe a law, or are not one a component.
    """

    means: Float[Tensor, "k *site"]
    variances: Float[Tensor, "k"]
    weights: Float[Tensor, "k"]

    def __post_init__(self) -> None:
        """Refuse what is no law."""
        if not self.means.shape[0] == self.variances.shape[0] == self.weights.shape[0]:
            raise ValueError("a mixture needs one mean, one variance and one weight a component")
        if bool((self.variances < 0).any()) or bool((self.weights <= 0).any()):
            raise ValueError("a mixture needs variances of at least 0 and positive weights")
        if abs(self.weights.double().sum().item() - 1) > 1e-6:
            raise ValueError(f"weights of a mixture sum to 1, got {self.weights.sum().item()}")

    @classmethod
    def finite(cls, points: Float[Tensor, "k *site"]) -> Self:
        """A finite data set, every point equally likely: D is the softmax mean that memorises it."""
        count = points.shape[0]
        return cls(means=points, variances=points.new_zeros(count), weights=points.new_full((count,), 1 / count))

    def __call__(self, x_t: X, level: Level) -> Estimate:
        """E[x0 | x_t]."""
        x = x_t.double().flatten(1)
        means, variances = self.means.to(x).flatten(1), self.variances.to(x)
        alpha, sigma = level.alpha.to(x).view(-1, 1), level.sigma.to(x).view(-1, 1)
        total = (alpha**2 * variances + sigma**2).clamp(min=_SMALLEST_VARIANCE)
        offset = x[:, None] - alpha[..., None] * means
        logits = self.weights.to(x).log() - 0.5 * (x.shape[1] * total.log() + offset.square().sum(-1) / total)
        likely = torch.exp(logits - logits.amax(-1, keepdim=True))  # softmax, less the threads that torch starts for it
        beliefs = means + (alpha * variances / total)[..., None] * offset
        x0 = (likely[..., None] * beliefs).sum(1) / likely.sum(1, keepdim=True)
        return Estimate(x0=x0.view(x_t.shape).to(x_t.dtype))

    def draw(self, like: X, noise: Noise) -> X:
        """Data of the shape, type and device of ``like``; row i uses key i alone."""
        share = noise.at(0).uniform(like.new_zeros(like.shape[0], dtype=torch.float64))
        bounds = self.weights.to(share).cumsum(0)
        chosen = torch.searchsorted(bounds, share, right=True).clamp(max=len(bounds) - 1)
        std = self.variances.to(like).sqrt()[chosen].view(-1, *[1] * (like.ndim - 1))
        return self.means.to(like)[chosen] + std * noise.at(1).normal(like)

    def flow(self, x_t: X, t: Level, s: Level) -> X:
        """Where the probability flow carries x_t from level t to level s: samples of one number, levels of shape ().

        On a line the flow cannot cross itself, so it keeps every quantile: F_s(x_s) = F_t(x_t). Solved by bisection.

        Raises:
            ValueError: if a sample holds more than one number, or there is no noise at one of the levels.
        """
        if x_t.shape[1:].numel() != 1:
            raise ValueError(f"the flow of a mixture is known for samples of one number, got {tuple(x_t.shape[1:])}")
        if t.sigma == 0 or s.sigma == 0:
            raise ValueError(
                "the flow of a mixture is known between levels with noise; at sigma = 0 quantiles may have gaps"
            )
        below, above = self._tails(x_t.double().flatten(), t)
        reach = (
            s.alpha * self.means.double().abs().max()
            + 40 * (s.alpha**2 * self.variances.double().max() + s.sigma**2).sqrt()
        )
        low, high = -reach * torch.ones_like(below), reach * torch.ones_like(below)
        for _ in range(90):
            middle = (low + high) / 2
            here_below, here_above = self._tails(middle, s)
            is_left = torch.where(
                below < above, here_below < below, here_above > above
            )  # the smaller tail is the exact one
            low, high = torch.where(is_left, middle, low), torch.where(is_left, high, middle)
        return ((low + high) / 2).view(x_t.shape).to(x_t.dtype)

    def _tails(self, x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        std = (level.alpha**2 * self.variances.double() + level.sigma**2).sqrt()
        z = (x[:, None] - level.alpha * self.means.double().flatten()) / std / math.sqrt(2)
        weights = self.weights.double() / 2
        return (weights * torch.erfc(-z)).sum(1), (weights * torch.erfc(z)).sum(1)


@dataclass(frozen=True, kw_only=True, eq=False)
class GivenNoise(Noise):
    """Noise whose every draw is the same given number or tensor: reads off what a step multiplies noise by.

    Args:
        value: what ``normal`` and ``uniform`` answer, broadcast to the shape asked for.
    """

    value: Tensor

    def at(self, *key: int) -> Self:
        """The same."""
        return self

    def rows(self, index: slice) -> Self:
        """The chosen rows of the value."""
        return type(self)(value=self.value[index])

    def normal(self, like: X) -> X:
        """The value."""
        return self.value.to(like).expand_as(like)

    def uniform(self, like: X) -> X:
        """The value."""
        return self.value.to(like).expand_as(like)


def observed_orders(errors: Sequence[float]) -> tuple[float, ...]:
    """Orders of convergence log2(e_i / e_{i+1}) of errors that were measured with ever twice as many steps."""
    return tuple(math.log2(coarse / fine) for coarse, fine in pairwise(errors))


def kolmogorov(shares: Tensor) -> float:
    """Kolmogorov's statistic sqrt(n) sup |F_n(u) - u| of numbers that ought to be uniform on [0, 1].

    Its 99.9 % quantile is 1.95 for every n above 35.

    Source: Kolmogorov 1933; Smirnov 1948 (table).
    """
    ordered = shares.double().flatten().sort().values
    count = ordered.numel()
    rank = torch.arange(count, dtype=torch.float64, device=ordered.device)
    gap = torch.maximum((rank + 1) / count - ordered, ordered - rank / count).max()
    return math.sqrt(count) * gap.item()
