"""Processes: how a sample is spoiled, and how to un-spoil it given a belief about the clean one.

Knows: q(x_t | x_0), q(x_t | x_s) and p(x_s | x_t), for real numbers and for bits.
Does not know: networks, steps of a sampler, or how a belief was reached.

A Gaussian process is x_t = alpha x_0 + sigma noise. For s < t the chain between the two levels is
x_t = a x_s + sqrt(b) noise with a = alpha_t/alpha_s and b = sigma_t^2 - a^2 sigma_s^2 (on the T-step grid:
sqrt(1 - beta) and beta). Multiplying q(x_t | x_s) with q(x_s | x_0), both Gaussian in x_s, precisions add, and the
product is the posterior q(x_s | x_t, x_0) that ``reverse`` returns.

A binomial process forgets each bit with some probability and tosses it anew: with alpha_bar = alpha^2 the share that
was never tossed, P(x_t = 1) = alpha_bar x_0 + (1 - alpha_bar) rate, and between two levels the same with
alpha_bar_t/alpha_bar_s for alpha_bar.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool
from torch import Tensor

from unstir.diffusion.distribution import Bernoulli, Distribution, Normal
from unstir.diffusion.schedule import Level, Part, Schedule, added, spread
from unstir.typing import Time, X


class Estimate:
    """What is believed about the clean sample, given x_t. It does not change.

    Args:
        x0: E[x0 | x_t], or the parts of which it is the sum; for bits this is P(x0 = 1 | x_t).
        variance_fraction: of the reverse variance on the logarithmic scale from beta_tilde (0, or None) to beta (1).
    """

    __slots__ = ("_parts", "_x0", "variance_fraction")

    def __init__(self, *, x0: X | tuple[Part, ...], variance_fraction: X | float | None = None) -> None:
        self._x0, self._parts = (None, x0) if isinstance(x0, tuple) else (x0, ((1.0, x0),))
        self.variance_fraction = variance_fraction

    @property
    def x0(self) -> X:
        """E[x0 | x_t]; parts are added up when it is first looked at."""
        if self._x0 is None:
            self._x0 = added(self._parts)
            self._parts = ((1.0, self._x0),)
        return self._x0

    @property
    def parts(self) -> tuple[Part, ...]:
        """x0 as a sum. A step that is a sum itself goes on with these, and x0 is never written to memory."""
        return self._parts

    def with_x0(self, x0: X) -> Estimate:
        """Another belief about x0, of the same variance."""
        return Estimate(x0=x0, variance_fraction=self.variance_fraction)

    def __getitem__(self, index: slice | Bool[Tensor, "b"]) -> Estimate:
        """What is believed about some samples of a batch."""
        fraction = self.variance_fraction
        return Estimate(
            x0=self.x0[index], variance_fraction=fraction[index] if isinstance(fraction, Tensor) else fraction
        )


class Process(Protocol):
    """A way to spoil data step by step, and the form of the way back."""

    @property
    def schedule(self) -> Schedule:
        """How spoiled a sample is at time t."""
        ...

    def prior(self, like: X) -> Distribution:
        """p(x_1), where the reverse chain starts."""
        ...

    def marginal(self, x0: X, t: Level) -> Distribution:
        """q(x_t | x_0)."""
        ...

    def kernel(self, x_s: X, s: Level, t: Level) -> Distribution:
        """q(x_t | x_s), s < t: one step of the forward chain."""
        ...

    def reverse(self, x_t: X, t: Level, s: Level, belief: Estimate) -> Distribution:
        """p(x_s | x_t), s < t; with ``Estimate(x0=truth)`` it is q(x_s | x_t, x_0)."""
        ...

    def decode_log_prob(self, data: X, x_t: X, t: Level, belief: Estimate, above: Level | None = None) -> X:
        """The last step, log p(x_0 | x_t) of every element, in nats; ``above`` is the level before t, towards noise."""
        ...

    def divergence_rate(self, x0: X, x_t: X, t: Level, belief: Estimate) -> X:
        """The limit of KL(q(x_s | x_t, x_0) || p(x_s | x_t))/(t - s) as s -> t, in nats per unit of time."""
        ...

    def to_natural(self, x0: X) -> X:
        """The coordinate in which beliefs add up linearly."""
        ...

    def from_natural(self, y: X) -> X:
        """The inverse of ``to_natural``."""
        ...


@dataclass(frozen=True, kw_only=True)
class GaussianProcess:
    """x_t = alpha x_0 + sigma noise.

    Args:
        schedule: how spoiled a sample is at time t.
        levels: of grey that data in [-1, 1] has, for the discretised decoder; None for data that is not discrete, whose
            likelihood is a density.

    Raises:
        ValueError: if there are fewer than 2 levels.
    """

    schedule: Schedule
    levels: int | None = 256

    def __post_init__(self) -> None:
        """Refuse data of a single value."""
        if self.levels is not None and self.levels < 2:
            raise ValueError(f"grey levels must be at least 2, got {self.levels}; give None for densities")

    def prior(self, like: X) -> Normal:
        """N(0, alpha_1^2 + sigma_1^2): what data of unit variance would become; N(0, I) where variance is preserved."""
        end = self.schedule.at(torch.ones((), dtype=torch.float64))
        return Normal(mean=torch.zeros_like(like), std=torch.hypot(end.alpha, end.sigma))

    def marginal(self, x0: X, t: Level) -> Normal:
        """N(alpha x_0, sigma^2).

        Source: Ho et al. 2020, arXiv:2006.11239, Eq. 4.
        """
        _require_floats(x0)
        return Normal(mean=spread(t.alpha, x0) * x0, std=spread(t.sigma, x0))

    def kernel(self, x_s: X, s: Level, t: Level) -> Normal:
        """N(a x_s, b), the forward chain from level s to level t.

        Raises:
            ValueError: if any s >= t.

        Source: Kingma et al. 2021, arXiv:2107.00630, Appendix A.1.
        """
        _require_floats(x_s)
        a, b = _transition(s, t)
        return Normal(mean=spread(a, x_s) * x_s, std=spread(b.sqrt(), x_s))

    def reverse(self, x_t: X, t: Level, s: Level, belief: Estimate) -> Normal:
        """One step of the reverse chain: the Gaussian over x_s given x_t and a belief about x0, for 0 <= s < t.

        mean = (a sigma_s^2 / sigma_t^2) x_t + (alpha_s b / sigma_t^2) x0
        variance = b^f (b sigma_s^2 / sigma_t^2)^(1-f),   f = belief.variance_fraction, or 0 when there is none

        On the T-step grid b is beta_t and f = 0 is "fixed small", f = 1 "fixed large".

        Returns:
            The distribution of x_s. Its variance is 0 at s = 0 when f = 0.

        Raises:
            ValueError: if any s >= t.

        Source: Ho et al. 2020, arXiv:2006.11239, Eqs. 6-7 (posterior); Nichol & Dhariwal 2021, arXiv:2102.09672, Eq. 15
            (interpolated log-variance).
        """
        _require_floats(x_t)
        a, b = _transition(s, t)
        mean = spread(a * (s.sigma / t.sigma) ** 2, x_t) * x_t + spread(s.alpha * b / t.sigma**2, x_t) * belief.x0
        return Normal(mean=mean, std=_between(*self.variances(s, t), belief.variance_fraction, x_t))

    def variances(self, s: Level, t: Level, above: Level | None = None) -> tuple[Time, Time]:
        """beta_tilde = b sigma_s^2/sigma_t^2 and beta = b: the variances of a reverse step from t to s.

        Where s has no noise beta_tilde is 0; if the level before t is given (``above``), the beta_tilde of the step
        from there to t stands in for it: 0 as well where ``above`` is t itself, at the end of a chain.

        Source: Ho et al. 2020, arXiv:2006.11239, Eq. 7; Nichol & Dhariwal 2021, arXiv:2102.09672 (code: clipping).
        """
        large = _transition(s, t)[1]
        small = large * (s.sigma / t.sigma) ** 2
        if above is not None and bool((s.sigma == 0).any()):
            before = _between_levels(t, above)[1] * (t.sigma / above.sigma) ** 2
            small = torch.where(s.sigma == 0, before, small)
        return small, large

    def decode_log_prob(self, data: X, x_t: X, t: Level, belief: Estimate, above: Level | None = None) -> X:
        """The last step, log p(x_0 | x_t) of every element, in nats: N(x0, v) over the grey levels, or its density.

        A grey level owns the interval halfway to its neighbours, the first and the last reach out to infinity. v lies
        between the two ``variances`` of the step from t to the data as belief.variance_fraction says; where that is
        None it is beta_tilde for grey levels, and for a density beta, which is the exact one as t -> 0.

        Args:
            data: x_0; on the grey levels, if there are any.
            x_t: the sample at the first level of the chain.
            t: that level.
            belief: about x_0.
            above: the next level of the chain towards noise, or None where there is none: then v is beta = sigma_t^2.

        Raises:
            ValueError: if data does not lie on the grey levels, or any above <= t.

        Source: Ho et al. 2020, arXiv:2006.11239, Sec. 3.3, Eq. 13 (and code: the variance of the first step).
        """
        _require_floats(data)
        if above is not None:
            _require_order(t, above)
        zero, one = torch.zeros_like(t.t), torch.ones_like(t.t)
        small, large = self.variances(Level(t=zero, alpha=one, sigma=zero, dalpha=zero, dsigma=zero), t, above)
        is_large = above is None or (self.levels is None and belief.variance_fraction is None)
        fraction = belief.variance_fraction
        std = spread(large.sqrt(), x_t) if is_large else _between(small, large, fraction, x_t)
        decoder = Normal(mean=belief.x0, std=std)
        if self.levels is None:
            return decoder.log_prob(data)
        half = 1 / (self.levels - 1)
        step = (data + 1) / (2 * half)
        off = (step - step.round()).abs().max()
        if not bool(off < 0.01) or bool((data.abs() > 1 + half).any()):
            raise ValueError(
                f"data must lie on {self.levels} grey levels from -1 to 1, got values from {data.min().item():.4g} to "
                f"{data.max().item():.4g}, up to {off.item():.2g} of a level off; give the process as many levels as "
                "the data has, or levels=None for a density"
            )
        low = torch.where(data < -1 + half, -torch.inf, data - half)
        high = torch.where(data > 1 - half, torch.inf, data + half)
        return decoder.log_interval(low, high)

    def divergence_rate(self, x0: X, x_t: X, t: Level, belief: Estimate) -> X:
        """-1/2 d(alpha^2/sigma^2)/dt (x0 - belief)^2, in nats per unit of time; beta and beta_tilde are one here.

        Source: Kingma et al. 2021, arXiv:2107.00630, Eq. 17.
        """
        slope = 2 * t.alpha * (t.dalpha * t.sigma - t.alpha * t.dsigma) / t.sigma**3
        return spread(-slope / 2, x_t) * (x0 - belief.x0) ** 2

    def to_natural(self, x0: X) -> X:
        """The identity: Gaussian beliefs add up on x0 itself."""
        return x0

    def from_natural(self, y: X) -> X:
        """The identity."""
        return y

    def noise_of(self, x0: X, x_t: X, level: Level) -> X:
        """The noise that makes x_t of x0: (x_t - alpha x0) / sigma."""
        return (x_t - spread(level.alpha, x0) * x0) / spread(level.sigma, x0)


@dataclass(frozen=True, kw_only=True)
class BinomialProcess:
    """P(x_t = 1 | x_0) = alpha_bar x_0 + (1 - alpha_bar) rate, for bits as 0. and 1.

    Args:
        schedule: how spoiled a sample is at time t; alpha_bar = alpha^2, so it must preserve variance.
        rate: P(x_1 = 1) of the prior.

    Raises:
        ValueError: if rate is not in (0, 1), or the schedule does not preserve variance.

    Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, Table App. 1 (rate 0.5 there, 0.2 in the heartbeat of
        Appendix D.1.2).
    """

    schedule: Schedule
    rate: float = 0.5

    def __post_init__(self) -> None:
        """Refuse a coin that always falls on one side, and a path that is none for bits."""
        if not 0 < self.rate < 1:
            raise ValueError(f"the prior rate of ones must be in (0, 1), got {self.rate}")
        middle = self.schedule.at(torch.tensor([0.5, 1.0], dtype=torch.float64))
        if not bool(((middle.alpha**2 + middle.sigma**2 - 1).abs() < 1e-9).all()):
            raise ValueError(
                f"a binomial process needs a schedule with alpha^2 + sigma^2 = 1, got {type(self.schedule).__name__}; "
                "take one that preserves variance (linear, cosine, reciprocal, tabulated, ...)"
            )

    def prior(self, like: X) -> Bernoulli:
        """Ones at the prior rate."""
        return Bernoulli(probability=torch.full_like(like, self.rate))

    def marginal(self, x0: X, t: Level) -> Bernoulli:
        """P(x_t = 1 | x_0) = alpha_bar x_0 + (1 - alpha_bar) rate."""
        _require_floats(x0)
        return self._tossed(x0, t.alpha**2, t.sigma**2)

    def kernel(self, x_s: X, s: Level, t: Level) -> Bernoulli:
        """P(x_t = 1 | x_s): the same with alpha_bar_t/alpha_bar_s, one step of the forward chain.

        Raises:
            ValueError: if any s >= t.
        """
        _require_floats(x_s)
        a, b = _transition(s, t)
        return self._tossed(x_s, a**2, b)

    def reverse(self, x_t: X, t: Level, s: Level, belief: Estimate) -> Bernoulli:
        """One step of the reverse chain: P(x_s = 1 | x_t), the posterior given x_0 averaged over the belief.

        P(x_s = 1 | x_t) = sum over x0 of P(x0 | x_t) q(x_t | x_s = 1) q(x_s = 1 | x0)/q(x_t | x0)

        Linear in ``belief.x0``; of all chains that draw their bits independently, the exact posterior P(x0 | x_t) makes
        the best one.

        Raises:
            ValueError: if any s >= t.

        Source: Sohl-Dickstein et al. 2015, arXiv:1503.03585, Table App. 1; Austin et al. 2021, arXiv:2107.03006, Eq. 4
            (average over a predicted x0).
        """
        _require_floats(x_t)
        a, b = _transition(s, t)
        zeros, ones = torch.zeros_like(x_t), torch.ones_like(x_t)

        def chance(x_s: X) -> X:
            likely = self._chance(x_t, x_s, a**2, b)
            zero, one = (
                likely * self._chance(x_s, x0, s.alpha**2, s.sigma**2) / self._chance(x_t, x0, t.alpha**2, t.sigma**2)
                for x0 in (zeros, ones)
            )
            return torch.lerp(zero, one, belief.x0)

        return Bernoulli(probability=chance(ones), complement=chance(zeros))

    def decode_log_prob(self, data: X, x_t: X, t: Level, belief: Estimate, above: Level | None = None) -> X:
        """The last step, log p(x_0 | x_t) of every element, in nats: the belief itself is P(x_0 = 1).

        Raises:
            ValueError: if data holds anything but 0 and 1.
        """
        _require_floats(data)
        if not bool(((data == 0) | (data == 1)).all()):
            raise ValueError(
                f"a binomial process is one of bits, 0. and 1., got values from {data.min().item():.4g} to "
                f"{data.max().item():.4g}; a codec (bits) makes bits of pictures"
            )
        return Bernoulli(probability=belief.x0).log_prob(data)

    def divergence_rate(self, x0: X, x_t: X, t: Level, belief: Estimate) -> X:
        """The rate r log(r/r') - r + r', where the reverse chain flips bits at rate r given x_0, r' given the belief.

        Source: Campbell et al. 2022, arXiv:2205.14987, Proposition 2 (continuous-time bound).
        """
        tosses = spread(-2 * t.dalpha / t.alpha, x_t)
        # The forward chain goes from the flipped bit to x_t when it is tossed and falls so; Bayes turns that around.
        arrives = tosses * self._falls(x_t)

        def flips(clean: X) -> X:
            here, there = (self._chance(bit, clean, t.alpha**2, t.sigma**2) for bit in (x_t, 1 - x_t))
            return arrives * there / here

        zero, one = flips(torch.zeros_like(x_t)), flips(torch.ones_like(x_t))
        truth, believed = torch.lerp(zero, one, x0), torch.lerp(zero, one, belief.x0)
        return torch.xlogy(truth, truth / believed) - truth + believed

    def to_natural(self, x0: X) -> X:
        """The logit, in which p(x0 | c)^w p(x0)^(1 - w) is a straight line."""
        return torch.logit(x0, eps=torch.finfo(x0.dtype).eps)

    def from_natural(self, y: X) -> X:
        """The probability of a logit."""
        return torch.sigmoid(y)

    def _tossed(self, x: X, kept: Time, tossed: Time) -> Bernoulli:
        one, zero = (self._chance(torch.full_like(x, bit), x, kept, tossed) for bit in (1.0, 0.0))
        return Bernoulli(probability=one, complement=zero)

    def _chance(self, seen: X, x: X, kept: Time, tossed: Time) -> X:
        """The probability that x has become the bit that is seen; nothing is taken from 1, so a small one is exact."""
        return spread(kept, x) * (1 - (seen - x).abs()) + spread(tossed, x) * self._falls(seen)

    def _falls(self, bit: X) -> X:
        """How a tossed bit falls: the rate for 1, the rest for 0."""
        return torch.where(bit > 0.5, torch.full_like(bit, self.rate), 1 - self.rate)


PROCESSES: dict[str, type[GaussianProcess] | type[BinomialProcess]] = {
    "gaussian": GaussianProcess,
    "binomial": BinomialProcess,
}


def require_data(x: X) -> None:
    """See that samples are finite floating-point numbers, before anything is computed from them.

    Raises:
        ValueError: if they are not.
    """
    _require_floats(x)
    # Summing is ten times as fast as looking at each number; only a sum that overflows needs the second look.
    if not bool(torch.isfinite(x.sum())) and not bool(torch.isfinite(x).all()):
        raise ValueError(
            f"samples must be finite, but {int((~torch.isfinite(x)).sum())} of {x.numel()} numbers are NaN or "
            "infinite; look for broken pictures or a division by a zero spread"
        )


def _require_floats(x: Tensor) -> None:
    if not x.is_floating_point():
        raise ValueError(f"samples are floating-point numbers, got {x.dtype}; convert with x.float()")


def _between(small: Time, large: Time, fraction: X | float | None, x: X) -> Tensor:
    """The standard deviation whose logarithm is so far on the way from that of ``small`` to that of ``large``."""
    if fraction is None:
        return spread(small.sqrt(), x)
    # From the top, with the logarithm of the ratio taken in float64: near noise the two variances are almost one, and
    # an unconstrained variance then needs fractions in the thousands.
    left = 1 - fraction
    whole = spread(log_ratio(small, large) / 2, x)
    way = left * whole
    if isinstance(left, Tensor):
        # 0 times the infinite way from 0; a finite way keeps its gradient at 0, where networks begin.
        way = torch.where((left == 0) & torch.isinf(whole), 0.0, way)
    elif left == 0:
        return spread(large.sqrt(), x)
    return spread(large.sqrt(), x) * torch.exp(way)


def log_ratio(small: Time, large: Time) -> Time:
    """log(beta_tilde/beta), at most -1e-12: where rounding makes them one, no fraction could tell others from them."""
    return (small / large).log().clamp(max=-1e-12)


def _transition(s: Level, t: Level) -> tuple[Tensor, Tensor]:
    _require_order(s, t)
    return _between_levels(s, t)


def _between_levels(s: Level, t: Level) -> tuple[Tensor, Tensor]:
    a = t.alpha / s.alpha
    return a, (t.sigma**2 - (a * s.sigma) ** 2).clamp(min=0)


def _require_order(s: Level, t: Level) -> None:
    if bool((s.t >= t.t).any()):
        raise ValueError(
            f"a step needs s < t (t = 0 is the data), got s = {s.t.max().item()} and t = {t.t.min().item()}; swap them"
        )
