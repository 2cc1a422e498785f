"""What every sampler shares: the contract, the loop, and the weights of those that integrate polynomials.

Knows: how a grid of times is walked, and where it ends; what a polynomial through known values integrates to.
Does not know: how any sampler moves x, or what makes a belief.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from unstir.diffusion.denoiser import Denoiser
from unstir.diffusion.noise import StepNoise
from unstir.diffusion.process import Estimate, Process, require_data
from unstir.diffusion.schedule import Level, Part, added, levels_at, spread
from unstir.typing import Noise, S, X


class Sampler(Protocol[S]):
    """Moves x from one level to the next. Implementations are frozen dataclasses; S is memory, passed by value."""

    @property
    def order(self) -> int:
        """The order of convergence, as the tests measure it; 0 for a sampler that draws."""
        ...

    def start(self) -> S:
        """The memory before the first step."""
        ...

    def step(self, denoise: Denoiser, process: Any, x_t: X, t: Level, s: Level, memory: S, noise: Noise) -> tuple[X, S]:
        """From level t to level s < t: x_s, and the memory after it. The end, sigma_s = 0, is the loop's business."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """One point of a sampling; what previews and progress bars consume.

    Args:
        index: 0 before the first step, then 1 to the number of steps.
        t: the time of ``x``.
        x: the sample at that time.
        belief: what the last call of the denoiser believed, or None at index 0. A preview shows this, not the noise.
    """

    index: int
    t: float
    x: X
    belief: Estimate | None


def sample(
    sampler: Sampler[S], denoise: Denoiser, process: Process, x: X, times: Sequence[float], noise: Noise
) -> Iterator[Step]:
    """Walk a grid of times; the caller drives.

    The last step, to a level without noise, is the belief itself for every sampler: there x_s = x0.

    Args:
        sampler: how x moves.
        denoise: what is believed.
        process: of which x is a sample.
        x: the sample at ``times[0]``.
        times: falling strictly, in [0, 1].
        noise: one key a sample; step i (from 0) draws the numbers of ``noise.at(i)``, and all steps walk one Brownian
            path, that of ``noise``.

    The denoiser is told what it believed last, which self-conditioned networks read.

    Raises:
        ValueError: if there are fewer than two times, they do not fall strictly, or x holds no finite
            floating-point numbers.
    """
    require_data(x)
    if len(times) < 2 or any(s >= t for t, s in itertools.pairwise(times)):
        raise ValueError(f"a grid needs at least two times that fall strictly, got {list(times)}")
    levels = levels_at(process.schedule, times)
    memory = sampler.start()
    last: Estimate | None = None

    def watched(x_t: X, level: Level, previous: Estimate | None = None) -> Estimate:
        nonlocal last
        last = denoise(x_t, level, last)
        return last

    yield Step(index=0, t=times[0], x=x, belief=None)
    for i, (t, s) in enumerate(itertools.pairwise(levels)):
        with torch.no_grad():
            if s.sigma.item() == 0:
                x = watched(x, t).x0
            else:
                x, memory = sampler.step(watched, process, x, t, s, memory, StepNoise(run=noise, key=(i,)))
        yield Step(index=i + 1, t=times[i + 1], x=x, belief=last)


@dataclass(frozen=True, kw_only=True, eq=False)
class Known:
    """What a solver has found at a level: the belief about x0 there, or the noise."""

    level: Level
    value: X


def polynomial_shares(points: Sequence[float], moments: Sequence[float]) -> list[float]:
    """What the values at ``points`` have in a mean over [0, 1] of the polynomial through them and the value at 0.

    The shares g solve sum over j of g_j points_j^k = moments_k for k = 1, 2, ..., which Lagrange's polynomials do in
    closed form; the value at 0 has the rest, 1 - sum of g.

    Args:
        points: different from each other and from 0; those before the step are negative.
        moments: the same mean of u, u^2, ..., one a point.

    Source: Zhao et al. 2023, arXiv:2302.04867, Eq. 6 (R a = b).
    """
    shares: list[float] = []
    for point in points:
        coefficients, size = [1.0], point
        for other in points:
            if other != point:  # times (u - other)
                rising, falling = [0.0, *coefficients], [*coefficients, 0.0]
                coefficients = [high - other * low for high, low in zip(rising, falling, strict=True)]
                size *= point - other
        shares.append(sum(c * moment for c, moment in zip(coefficients, moments, strict=True)) / size)
    return shares


def exponential_moments(z: float, count: int) -> list[float]:
    """The means of u, u^2, ..., u^count over [0, 1] with the weight exp(z (1 - u)).

    M_k = integral of exp(z (1 - u)) u^k = (k M_(k-1) - 1)/z; what is returned is M_k/M_0. In the words of exponential
    integrators M_k = k! phi_(k+1)(z). Where z is small the recursion is walked from above, which forgets its start.

    Source: Hochbruck & Ostermann 2010, Acta Numerica 19, Eq. 2.10-2.11.
    """
    if abs(z) > 1:
        integrals = [math.expm1(z) / z]
        for k in range(1, count + 1):
            integrals.append((k * integrals[-1] - 1) / z)
    else:
        last, integrals = count + 16, [0.0]
        for k in range(last, 0, -1):
            integrals.append((1 + z * integrals[-1]) / k)
        integrals = integrals[: -count - 2 : -1]
    return [integral / integrals[0] for integral in integrals[1:]]


Place = tuple[float, float]
"""alpha and sigma of one sample."""


def weighted(
    terms: Sequence[X | Estimate], levels: Sequence[Level], weights: Callable[[Sequence[Place]], Sequence[float]]
) -> X:
    """A sum whose weights are made of levels, in plain numbers: once for all samples, or once a sample.

    A belief stands for its x0; where that is a sum itself, the two sums are made in one.
    """
    if levels[0].alpha.ndim == 0:
        parts: list[Part] = []
        of_terms = weights([(level.alpha.item(), level.sigma.item()) for level in levels])
        for weight, term in zip(of_terms, terms, strict=True):
            if isinstance(term, Estimate):
                parts += [(weight * share, tensor) for share, tensor in term.parts]
            else:
                parts.append((weight, term))
        return added(parts)
    tensors = [term.x0 if isinstance(term, Estimate) else term for term in terms]
    rows = [
        weights([(level.alpha[i].item(), level.sigma[i].item()) for level in levels])
        for i in range(tensors[0].shape[0])
    ]
    columns = torch.tensor(rows, dtype=torch.float64).unbind(1)
    return torch.stack([spread(c, tensor) * tensor for c, tensor in zip(columns, tensors, strict=True)]).sum(0)


def exact_moments(h: float, count: int) -> list[float]:
    """The means of u, u^2, ... for beliefs, which weigh more towards the end of a step: exp(h (u - 1))."""
    return exponential_moments(-h, count)


def halved_moments(h: float, count: int) -> list[float]:
    """The same; but with two beliefs 1/2, which DPM-Solver++ and UniPC take, and which keeps the order."""
    return [0.5] if count == 1 else exact_moments(h, count)


def along_beliefs(
    x_t: X,
    t: Level,
    s: Level,
    known: Sequence[Known],
    moments: Callable[[float, int], Sequence[float]] = halved_moments,
) -> X:
    """x_s when the belief about x0 is a polynomial in half the log-SNR, integrated exactly.

    With l half the log-SNR and h = l_s - l_t:
    x_s = (sigma_s/sigma_t) x_t + (alpha_s - sigma_s alpha_t/sigma_t) D,
    D = sum over j of g_j x0_j, a mean of the polynomial with the weight exp(l - l_s)

    (alpha_s - sigma_s alpha_t/sigma_t is the papers' -alpha_s (exp(-h) - 1), written so that alpha_t = 0 is no special
    case.) What is infinitely far away, as pure noise is, has no share.

    Args:
        x_t: the sample.
        t: its level.
        s: where it goes.
        known: beliefs, the one at t first, the others at any levels.
        moments: the means of (l - l_t)/h and its powers.

    Source: Lu et al. 2022, arXiv:2211.01095, Eq. 9 and Algorithms 1-2; Zhao et al. 2023, arXiv:2302.04867, Eq. 8.
    """

    def weights(places: Sequence[Place]) -> list[float]:
        (alpha_s, sigma_s), (alpha_t, sigma_t), *_ = places
        ratio = sigma_s / sigma_t
        whole = alpha_s - ratio * alpha_t
        shares = log_snr_shares(places, moments)
        return [ratio, whole * (1 - sum(shares)), *[whole * share for share in shares]]

    return weighted([x_t, *[each.value for each in known]], [s, t, *[each.level for each in known[1:]]], weights)


def along_noise(x0: X, s: Level, known: Sequence[Known], shares: Callable[[Sequence[Place]], Sequence[float]]) -> X:
    """x_s when the noise is not that of t all the way, but a mean of what is known.

    x_s = alpha_s x0 + sigma_s eps + (sigma_s - sigma_t alpha_s/alpha_t) sum over j of g_j (eps_j - eps)

    (With the mean eps' that is (alpha_s/alpha_t) x_t + (sigma_s - sigma_t alpha_s/alpha_t) eps', DDIM's transfer,
    written so that the first step may start at alpha_t = 0.)

    Args:
        x0: the belief at t.
        s: where the sample goes.
        known: noises, the one at t first.
        shares: the g_j of all others, made of alpha and sigma of s, of t and of their levels.

    Source: Zhang & Chen 2022, arXiv:2204.13902, Eq. 14; Liu et al. 2022, arXiv:2202.09778, Eq. 11.
    """

    def weights(places: Sequence[Place]) -> list[float]:
        (alpha_s, sigma_s), (alpha_t, sigma_t), *_ = places
        moved = [(sigma_s - sigma_t * alpha_s / alpha_t) * share for share in shares(places)]
        return [alpha_s, sigma_s - sum(moved), *moved]

    return weighted([x0, *[each.value for each in known]], [s, *[each.level for each in known]], weights)


def log_snr_shares(places: Sequence[Place], moments: Callable[[float, int], Sequence[float]]) -> list[float]:
    """The shares of what is known elsewhere in a mean over the step, of a polynomial in half the log-SNR.

    Args:
        places: s, t, and where else something is known; what is infinitely far from t has no share.
        moments: of (l - l_t)/h, for h = l_s - l_t and a number of points.
    """
    l_s, l_t, *others = [math.log(alpha / sigma) if alpha else -math.inf for alpha, sigma in places]
    h = l_s - l_t
    points = [(there - l_t) / h for there in others]
    near = [point for point in points if math.isfinite(point)]
    shares = iter(polynomial_shares(near, moments(h, len(near))))
    return [next(shares) if math.isfinite(point) else 0.0 for point in points]


def require_order(name: str, order: int) -> None:
    """See that a method is asked for with 1, 2 or 3 values a step.

    Raises:
        ValueError: if it is not.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"{name} makes a step of 1, 2 or 3 values, got {order}; more gain nothing on few steps")
