"""The steps that samplers say they take, written from the papers a second time, and checked against a watched run.

Knows: one formula a sampler, in plain numbers; nothing here is shared with ``unstir.diffusion``.
Does not know: targets, grids, schedules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from unstir.typing import X
from unstir.verify.observe import Call

Pairs = Iterator[tuple[X, X]]
"""(what a formula says the sample is, what it was), one a step."""


def ddim(calls: Sequence[Call], clip: float | None = None) -> Pairs:
    """x_s = (sigma_s/sigma_t) x_t + (alpha_s - alpha_t sigma_s/sigma_t) x0; Euler's method in sigma/alpha is the same.

    Args:
        calls: of a run, one a step.
        clip: the bound that beliefs are held to, from which the noise is then derived.

    Source: Song et al. 2021, arXiv:2010.02502, Eq. 13.
    """
    for t, s in pairwise(calls):
        x0 = t.x0 if clip is None else t.x0.clamp(-clip, clip)
        yield _first_order(t, s, x0), s.x


def dpm_solver_2m(calls: Sequence[Call]) -> Pairs:
    """x_s = (sigma_s/sigma_t) x_t - alpha_s (exp(-h) - 1) D with D = (1 + 1/(2r)) x0 - 1/(2r) x0 of the step before.

    h and h_before are steps in log(alpha/sigma), r = h_before/h; the first step has D = x0.

    Source: Lu et al. 2022, arXiv:2211.01095, Algorithm 2.
    """
    before: Call | None = None
    for t, s in pairwise(calls):
        h = _half_log_snr(s) - _half_log_snr(t)
        direction = t.x0
        if before is not None:
            r = (_half_log_snr(t) - _half_log_snr(before)) / h
            direction = (1 + 1 / (2 * r)) * t.x0 - 1 / (2 * r) * before.x0
        yield s.sigma / t.sigma * t.x - s.alpha * math.expm1(-h) * direction, s.x
        before = t


def heun(calls: Sequence[Call]) -> Pairs:
    """EDM's second-order step in y = x/alpha and r = sigma/alpha: y + (r_s - r_t) (d_t + d_s)/2 with d = (y - x0)/r.

    Calls come as t, s (Euler's guess), s (the step made good), and so on.

    Source: Karras et al. 2022, arXiv:2206.00364, Algorithm 1.
    """
    for t, guess, good in zip(calls[0::2], calls[1::2], calls[2::2], strict=False):
        step = guess.sigma / guess.alpha - t.sigma / t.alpha
        yield guess.alpha * (t.x / t.alpha + step * _slope(t)), guess.x
        yield good.alpha * (t.x / t.alpha + step * (_slope(t) + _slope(guess)) / 2), good.x


FORMULAS: dict[str, Callable[[Sequence[Call]], Pairs]] = {
    "ddim": ddim,
    "ddim of v": ddim,
    "dpm++2m": dpm_solver_2m,
    "heun": heun,
}


VARIANCES: dict[str, Callable[[float, float], float]] = {
    "ancestral": lambda beta, small: small,
    "ancestral, large variance": lambda beta, small: beta,
}
"""(beta, beta_tilde) -> the variance of a step of the reverse chain."""


def ancestral(t: Call, s: Call) -> tuple[float, float, float, float]:
    """The reverse chain from t to s: coefficients of x_t and x0 in its mean, beta' and beta_tilde.

    With a = alpha_t/alpha_s: beta' = sigma_t^2 - a^2 sigma_s^2, beta_tilde = beta' sigma_s^2/sigma_t^2,
    mean = a (sigma_s/sigma_t)^2 x_t + alpha_s beta'/sigma_t^2 x0.

    Source: Ho et al. 2020, arXiv:2006.11239, Eqs. 6-7, with the betas of the grid that is walked.
    """
    a = t.alpha / s.alpha
    beta = t.sigma**2 - (a * s.sigma) ** 2
    ratio = (s.sigma / t.sigma) ** 2
    return a * ratio, s.alpha * beta / t.sigma**2, beta, beta * ratio


def _first_order(t: Call, s: Call, x0: X) -> X:
    ratio = s.sigma / t.sigma
    return ratio * t.x + (s.alpha - t.alpha * ratio) * x0


def _half_log_snr(call: Call) -> float:
    return -math.inf if call.alpha == 0 else math.log(call.alpha / call.sigma)


def _slope(call: Call) -> X:
    return (call.x / call.alpha - call.x0) * (call.alpha / call.sigma)
