"""Oracles: data laws whose exact denoiser, density and way from noise to data can be written down.

Knows: Gaussian, mixture and finite data under x_t = alpha x0 + sigma noise, any law of a few bits under the binomial
process: their posterior means, densities, reverse kernels and marginals; measured orders.
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

from unstir.diffusion.distribution import Normal
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

    def __call__(self, x_t: X, level: Level, previous: Estimate | None = None) -> Estimate:
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

    def log_density(self, x_t: X, level: Level) -> Float[Tensor, "b"]:
        """The log-density of x_t of each sample, in nats; at sigma = 0 the density of the data themselves.

        log N(x_t; alpha mean, (alpha^2 variance + sigma^2) I)
        """
        return self._at(x_t, level).log_prob(x_t.double()).flatten(1).sum(1)

    def reverse(self, x_t: X, t: Level, s: Level) -> Normal:
        """p(x_s | x_t) for s < t, exactly: what the reverse chain would draw from if its steps were no approximation.

        With V = alpha^2 variance + sigma^2, a = alpha_t/alpha_s and b = sigma_t^2 - a^2 sigma_s^2:
        mean = alpha_s mean + a V_s/V_t (x_t - alpha_t mean),   variance = b V_s/V_t

        Returns:
            The distribution of x_s, in float64.

        Source: Bayes' theorem for N(x_s; alpha_s mean, V_s) and N(x_t; a x_s, b).
        """
        x, there = x_t.double(), self._at(x_t, t)
        here = self._at(x_t, s)
        a = spread(t.alpha / s.alpha, x)
        b = (spread(t.sigma, x) ** 2 - (a * spread(s.sigma, x)) ** 2).clamp(min=0)
        gain = a * (here.std / there.std) ** 2
        return Normal(mean=here.mean + gain * (x - there.mean), std=b.sqrt() * here.std / there.std)

    def _at(self, x_t: X, level: Level) -> Normal:
        x = x_t.double()
        alpha, sigma = spread(level.alpha, x), spread(level.sigma, x)
        mean = (alpha * self.mean.to(x)).expand_as(x)
        return Normal(mean=mean, std=(alpha**2 * self.variance.to(x) + sigma**2).sqrt())

    def flow(self, x_t: X, t: Level, s: Level) -> X:
        """Where the probability flow carries x_t from level t to level s, exactly; levels of shape ().

        x_s = alpha_s mean + (x_t - alpha_t mean) std_s / std_t

        Source: Song et al. 2021, arXiv:2011.13456, Eq. 13, solved in closed form.
        """
        x = x_t.double()
        mean, ratio = self.mean.to(x), (self.std(s) / self.std(t)).to(x)
        return (s.alpha * mean + (x - t.alpha * mean) * ratio).to(x_t.dtype)


@dataclass(frozen=True, kw_only=True, eq=False)
class Mixture:
    """A mixture of isotropic Gaussians for each sample: what a mixture of data becomes when noise is added or removed.

    Args:
        log_weights: of every component, in nats; each row sums to 1.
        means: of every component, flattened.
        variances: of every element of a component.
    """

    log_weights: Float[Tensor, "b k"]
    means: Float[Tensor, "b k d"]
    variances: Float[Tensor, "b k"]

    @property
    def mean(self) -> Float[Tensor, "b d"]:
        """The mean of every element."""
        return (self.log_weights.exp()[..., None] * self.means).sum(1)

    @property
    def variance(self) -> Float[Tensor, "b d"]:
        """The variance of every element: within the components, plus that of their means."""
        within = self.variances[..., None] + (self.means - self.mean[:, None]).square()
        return (self.log_weights.exp()[..., None] * within).sum(1)

    def log_prob(self, x: X) -> Float[Tensor, "b"]:
        """The log-density of each sample, in nats.

        Raises:
            ValueError: if a component is a point, which has no density.
        """
        if not bool((self.variances > 0).all()):
            raise ValueError("a mixture with points in it has no density there; ask at a level with noise")
        squared = (x.double().flatten(1)[:, None] - self.means).square().sum(-1)
        logs = -0.5 * (squared / self.variances + self.means.shape[-1] * torch.log(2 * math.pi * self.variances))
        return torch.logsumexp(self.log_weights + logs, 1)


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

    def __call__(self, x_t: X, level: Level, previous: Estimate | None = None) -> Estimate:
        """E[x0 | x_t]."""
        x = x_t.double().flatten(1)
        means, variances = self.means.to(x).flatten(1), self.variances.to(x)
        alpha, sigma = level.alpha.to(x).view(-1, 1), level.sigma.to(x).view(-1, 1)
        total = (alpha**2 * variances + sigma**2).clamp(min=_SMALLEST_VARIANCE)
        logits = self.weights.to(x).log() - 0.5 * (x.shape[1] * total.log() + _squared(x, alpha, means) / total)
        likely = torch.exp(logits - logits.amax(-1, keepdim=True))  # softmax, less the threads that torch starts for it
        likely = likely / likely.sum(1, keepdim=True)
        gain = alpha * variances / total
        # the sum over k of likely (mean + gain (x - alpha mean)), without a tensor of b k d numbers
        x0 = (likely * (1 - alpha * gain)) @ means + (likely * gain).sum(1, keepdim=True) * x
        return Estimate(x0=x0.view(x_t.shape).to(x_t.dtype))

    def draw(self, like: X, noise: Noise) -> X:
        """Data of the shape, type and device of ``like``; row i uses key i alone."""
        share = noise.at(0).uniform(like.new_zeros(like.shape[0], dtype=torch.float64))
        bounds = self.weights.to(share).cumsum(0)
        chosen = torch.searchsorted(bounds, share, right=True).clamp(max=len(bounds) - 1)
        std = self.variances.to(like).sqrt()[chosen].view(-1, *[1] * (like.ndim - 1))
        return self.means.to(like)[chosen] + std * noise.at(1).normal(like)

    def log_density(self, x_t: X, level: Level) -> Float[Tensor, "b"]:
        """The log-density of x_t of each sample, in nats; at sigma = 0 the density of the data themselves.

        Raises:
            ValueError: if a component is a point there, which has no density.
        """
        return self._at(x_t, level).log_prob(x_t)

    def reverse(self, x_t: X, t: Level, s: Level) -> Mixture:
        """p(x_s | x_t) for s < t, exactly: a mixture again.

        With V = alpha^2 variance + sigma^2, a = alpha_t/alpha_s and b = sigma_t^2 - a^2 sigma_s^2, component k has
        weight weight_k N(x_t; alpha_t mean_k, V_t) (normalised), mean alpha_s mean_k + a V_s/V_t (x_t - alpha_t mean_k)
        and variance b V_s/V_t.

        Source: Bayes' theorem, for each component and for their weights.
        """
        x, there, here = x_t.double().flatten(1)[:, None], self._at(x_t, t), self._at(x_t, s)
        logs = there.log_weights - 0.5 * (
            (x - there.means).square().sum(-1) / there.variances + x.shape[-1] * there.variances.log()
        )
        a = (t.alpha / s.alpha).to(x).view(-1, 1)
        b = (t.sigma.to(x).view(-1, 1) ** 2 - (a * s.sigma.to(x).view(-1, 1)) ** 2).clamp(min=0)
        share = here.variances / there.variances
        return Mixture(
            log_weights=logs - torch.logsumexp(logs, 1, keepdim=True),
            means=here.means + (a * share)[..., None] * (x - there.means),
            variances=(b * share).expand_as(logs),
        )

    def _at(self, x_t: X, level: Level) -> Mixture:
        x = x_t.double()
        count = x.shape[0]
        alpha, sigma = level.alpha.to(x).view(-1, 1), level.sigma.to(x).view(-1, 1)
        means = alpha[..., None] * self.means.to(x).flatten(1)
        variances = alpha**2 * self.variances.to(x) + sigma**2
        return Mixture(
            log_weights=self.weights.to(x).log().expand(count, -1),
            means=means.expand(count, -1, -1),
            variances=variances.expand(count, -1),
        )

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


_COLUMNS = 256  # summed at a time: one running sum of thousands of squares would lose three digits


def _squared(x: Float[Tensor, "b d"], alpha: Float[Tensor, "a 1"], means: Float[Tensor, "k d"]) -> Float[Tensor, "b k"]:
    """|x - alpha mean_k|^2 by differences (the expanded square would cancel), with one alpha for all or one a row."""
    centres = alpha[..., None] * means
    rows = x[None] if alpha.shape[0] == 1 else x[:, None]
    parts = [
        torch.cdist(
            rows[..., i : i + _COLUMNS], centres[..., i : i + _COLUMNS], compute_mode="donot_use_mm_for_euclid_dist"
        ).square()
        for i in range(0, x.shape[1], _COLUMNS)
    ]
    return torch.stack(parts).sum(0).view(x.shape[0], -1)


@dataclass(frozen=True, kw_only=True, eq=False)
class BitsOracle:
    """Any law of k bits, given as a table of all 2^k probabilities, under the binomial process.

    P(x_t = 1 | x0) = alpha_bar x0 + (1 - alpha_bar) rate with alpha_bar = alpha^2, in every bit by itself. Entry i of
    the table belongs to the bits of i, most significant first: entry 6 of 8 is (1, 1, 0).

    Args:
        table: probability of every string; of sum 1.
        rate: of ones, in the prior.

    Raises:
        ValueError: if the table is no law of bits, or rate is outside (0, 1).

    Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, Table App. 1 (kernel); everything else by enumeration.
    """

    table: Float[Tensor, "n"]
    rate: float = 0.5

    def __post_init__(self) -> None:
        """Refuse what is no law of bits."""
        count = self.table.numel()
        if self.table.ndim != 1 or count < 2 or count & (count - 1):
            raise ValueError(f"a law of k bits needs a table of 2^k probabilities, got shape {tuple(self.table.shape)}")
        if bool((self.table < 0).any()) or abs(self.table.double().sum().item() - 1) > 1e-6:
            raise ValueError(f"probabilities are at least 0 and sum to 1, got a sum of {self.table.sum().item()}")
        if not 0 < self.rate < 1:
            raise ValueError(f"the prior's rate of ones must be between 0 and 1, got {self.rate}")

    @property
    def num_bits(self) -> int:
        """The number k of bits of a sample."""
        return self.table.numel().bit_length() - 1

    @property
    def strings(self) -> Float[Tensor, "n k"]:
        """All strings, in the order of the table."""
        places = torch.arange(self.num_bits - 1, -1, -1)
        return ((torch.arange(self.table.numel())[:, None] >> places) & 1).double()

    @property
    def entropy_bits(self) -> float:
        """The entropy of the law, in bits; no code and no bound can be shorter."""
        law = self.table.double()
        return -(torch.xlogy(law, law).sum() / math.log(2)).item()

    def __call__(self, x_t: X, level: Level, previous: Estimate | None = None) -> Estimate:
        """P(x0 = 1 | x_t) of every bit, given all of x_t, by enumeration of all strings."""
        x, strings = self._flat(x_t), self.strings.to(x_t.device)
        alpha_bar = level.alpha.to(x).view(-1, 1, 1) ** 2
        ones = alpha_bar * strings + (1 - alpha_bar) * self.rate
        seen = torch.where(x[:, None] > 0.5, ones, 1 - ones).clamp(min=_SMALLEST_VARIANCE)
        logs = self.table.to(x).log() + seen.log().sum(-1)
        likely = torch.exp(logs - logs.amax(-1, keepdim=True))
        x0 = likely @ strings / likely.sum(-1, keepdim=True)
        return Estimate(x0=x0.view(x_t.shape).to(x_t.dtype))

    def draw(self, like: X, noise: Noise) -> X:
        """Data of the shape, type and device of ``like``; row i uses key i alone."""
        share = noise.uniform(self._flat(like)[:, 0].contiguous())
        bounds = self.table.to(share).cumsum(0)
        chosen = torch.searchsorted(bounds, share, right=True).clamp(max=len(bounds) - 1)
        return self.strings.to(like)[chosen].view(like.shape)

    def log_prob(self, x: X) -> Float[Tensor, "b"]:
        """The log-probability of each sample, in nats; -inf for a string that the law never draws."""
        places = 2.0 ** torch.arange(self.num_bits - 1, -1, -1, dtype=torch.float64, device=x.device)
        return self.table.double().log().to(x.device)[(self._flat(x) @ places).round().long()]

    def marginal(self, level: Level) -> Float[Tensor, "n"]:
        """The exact law of x_t over all strings, for a level of shape ()."""
        alpha_bar = level.alpha.item() ** 2
        tossed = (1 - alpha_bar) * self.rate
        kernel = torch.tensor([[1 - tossed, tossed], [1 - alpha_bar - tossed, alpha_bar + tossed]], dtype=torch.float64)
        law = self.table.double().cpu().view([2] * self.num_bits)
        for bit in range(self.num_bits):
            law = (law.movedim(bit, -1) @ kernel).movedim(-1, bit)
        return law.reshape(-1)

    def _flat(self, x: X) -> Tensor:
        if x.shape[1:].numel() != self.num_bits:
            raise ValueError(f"samples of this law hold {self.num_bits} bits, got shape {tuple(x.shape[1:])}")
        return x.double().flatten(1)


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

    def brownian(self, s: float, t: float, like: X) -> X:
        """The value times the root of the time between: no path, but the same numbers every step."""
        return math.copysign(math.sqrt(abs(t - s)), t - s) * self.normal(like)


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
