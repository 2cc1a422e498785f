"""The steps that samplers say they take, written from the papers a second time, and checked against a watched run.

Knows: one formula a sampler, in plain numbers; nothing here is shared with ``unstir.diffusion``.
Does not know: targets, grids, schedules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor

from unstir.typing import X, floats
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


def dpm_solver_3m(calls: Sequence[Call]) -> Pairs:
    """The parabola through three beliefs, by Newton's divided differences; with two known, as ``dpm_solver_2m``.

    P(l) = x0 + [t, 1] (l - l_t) + [t, 1, 2] (l - l_t)(l - l_1), l = log(alpha/sigma), and
    x_s = (sigma_s/sigma_t) x_t + sigma_s times the integral of exp(l) P(l) dl from l_t to l_s.

    Source: Lu et al. 2022, arXiv:2211.01095, Eq. 9 with the second divided difference (not half of it).
    """
    second_order = dpm_solver_2m(calls)
    for i, (t, s) in enumerate(pairwise(calls)):
        wanted, found = next(second_order)
        if i >= 2 and calls[i - 2].alpha > 0:
            first, second = calls[i - 1], calls[i - 2]
            l_s, l_t, l_1, l_2 = (_half_log_snr(call) for call in (s, t, first, second))
            h, back = l_s - l_t, l_t - l_1
            near, far = (t.x0 - first.x0) / back, (first.x0 - second.x0) / (l_1 - l_2)
            bend = (near - far) / (l_t - l_2)
            whole = -math.expm1(-h)  # of exp(l - l_s), then of that times (l - l_t) and (l - l_t)^2
            linear = h - whole
            square = h**2 - 2 * linear
            wanted = s.sigma / t.sigma * t.x + s.alpha * (
                whole * t.x0 + linear * near + (square + back * linear) * bend
            )
        yield wanted, found


def unipc(calls: Sequence[Call], max_order: int) -> Pairs:
    """UniP-p predicts from the corrected sample, and UniC-p corrects it with the belief at the predicted one.

    Both are ``_bh``: from the beliefs of the steps before, and from that at the end of the step as well. Nothing is
    corrected of a step from pure noise, where h is infinite.

    Source: Zhao et al. 2023, arXiv:2302.04867, Algorithms 5-6 and Sec. 3.3.
    """
    x = calls[0].x
    for i, (t, s) in enumerate(pairwise(calls)):
        before = [call for call in calls[max(0, i - max_order + 1) : i][::-1] if call.alpha > 0]
        yield _bh(x, t, s, before), s.x
        x = _bh(x, t, s, [*before, s]) if t.alpha > 0 else s.x


def deis(calls: Sequence[Call]) -> Pairs:
    """x_s/alpha_s = x_t/alpha_t + the integral of P(log rho) d rho, P through the last three noises, rho = sigma/alpha.

    Over L = log(rho_s/rho_t): the integrals of e^z z^k dz from 0 to L in closed form.

    Source: Zhang & Chen 2022, arXiv:2204.13902, Eqs. 14-15.
    """
    for i, (t, s) in enumerate(pairwise(calls)):
        if t.alpha == 0:
            yield _first_order(t, s, t.x0), s.x
            continue
        known = [t, *[call for call in calls[max(0, i - 2) : i][::-1] if call.alpha > 0]]
        at = [_half_log_snr(t) - _half_log_snr(call) for call in known]  # log(rho/rho_t)
        end = _half_log_snr(t) - _half_log_snr(s)
        grown = math.expm1(end)
        linear = (1 + grown) * end - grown
        moments = [grown, linear, (1 + grown) * end**2 - 2 * linear][: len(known)]
        moved = torch.zeros_like(t.x)
        for share, call in zip(_solved(at, moments), known, strict=True):
            moved = moved + share * _noise(call)
        yield s.alpha * (t.x / t.alpha + t.sigma / t.alpha * moved), s.x


def plms(calls: Sequence[Call]) -> Pairs:
    """x_s = (alpha_s/alpha_t) x_t + (sigma_s - sigma_t alpha_s/alpha_t) eps', eps' by Adams and Bashforth.

    From pure noise, where alpha_t = 0, it is x_s = alpha_s x0 + sigma_s eps.

    Source: Liu et al. 2022, arXiv:2202.09778, Eqs. 11-12.
    """
    weights = ((24,), (36, -12), (46, -32, 10), (55, -59, 37, -9))
    for i, (t, s) in enumerate(pairwise(calls)):
        if t.alpha == 0:
            yield s.alpha * t.x0 + s.sigma * _noise(t), s.x
            continue
        last = calls[max(0, i - 3) : i + 1][::-1]
        mean = sum(weight / 24 * _noise(call) for weight, call in zip(weights[len(last) - 1], last, strict=True))
        kept = s.alpha / t.alpha
        yield kept * t.x + (s.sigma - t.sigma * kept) * mean, s.x


def heun(calls: Sequence[Call], reach: float = math.inf) -> Pairs:
    """EDM's second-order step in y = x/alpha and r = sigma/alpha, with slopes d = (y - x0)/r.

    y_s = y + (r_s - r_t) ((1 - w) d_t + w d_s). The paper's w is 1/2; a reach holds it to at most reach r_s/r_t, and a
    step from pure noise is one of Euler's to the second belief. Calls come as t, s (Euler's guess), s (the step made
    good), and so on.

    Source: Karras et al. 2022, arXiv:2206.00364, Algorithm 1.
    """
    for t, guess, good in zip(calls[0::2], calls[1::2], calls[2::2], strict=False):
        if t.alpha == 0:
            yield _first_order(t, guess, t.x0), guess.x
            yield _first_order(t, guess, guess.x0), good.x
            continue
        r_t, r_s = t.sigma / t.alpha, guess.sigma / guess.alpha
        share = min(1 / 2, reach * r_s / r_t)
        slope = _slope(t) + share * (_slope(guess) - _slope(t))
        yield guess.alpha * (t.x / t.alpha + (r_s - r_t) * _slope(t)), guess.x
        yield good.alpha * (t.x / t.alpha + (r_s - r_t) * slope), good.x


FORMULAS: dict[str, Callable[[Sequence[Call]], Pairs]] = {
    "ddim": ddim,
    "ddim of v": ddim,
    "dpm++2m": dpm_solver_2m,
    "dpm++3m": dpm_solver_3m,
    "unipc": partial(unipc, max_order=2),
    "unipc3": partial(unipc, max_order=3),
    "deis": deis,
    "plms": plms,
    "heun": heun,
    "heun, reach 2": partial(heun, reach=2.0),
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


def _bh(x: X, t: Call, s: Call, others: Sequence[Call]) -> X:
    """UniPC's step from t to s, of the belief at t and of others.

    x_s = (sigma_s/sigma_t) x_t - alpha_s B x0 - alpha_s B sum over m of a_m D_m/r_m, with l = log(alpha/sigma),
    h = l_s - l_t, B = expm1(-h), r_m = (l_m - l_t)/h, D_m = x0_m - x0, and a of the equations
    sum over m of r_m^(k-1) a_m = k! phi_(k+1)(z) z/B for k = 1, 2, ..., where z = -h, phi_1(z) = expm1(z)/z and
    phi_(k+1)(z) = (phi_k(z) - 1/k!)/z. With one other, a = 1/2 instead.
    """
    l_t = _half_log_snr(t)
    h = _half_log_snr(s) - l_t
    step, scale = s.sigma / t.sigma * x - s.alpha * math.expm1(-h) * t.x0, math.expm1(-h)
    if not others or t.alpha == 0:
        return step
    r = [(_half_log_snr(call) - l_t) / h for call in others]
    phi, b = math.expm1(-h) / -h, list[float]()
    for k in range(1, len(others) + 1):
        phi = (phi - 1 / math.factorial(k)) / -h
        b.append(math.factorial(k) * phi * -h / scale)
    a = [0.5] if len(others) == 1 else _solved(r, b)
    for weight, place, call in zip(a, r, others, strict=True):
        step = step - s.alpha * scale * weight / place * (call.x0 - t.x0)
    return step


def _solved(places: Sequence[float], moments: Sequence[float]) -> list[float]:
    """The weights w with sum over m of w_m places_m^k = moments_k for k = 0, 1, ..."""
    powers = torch.tensor([[place**k for place in places] for k in range(len(places))], dtype=torch.float64)
    return floats(cast("Tensor", torch.linalg.solve(powers, torch.tensor(moments, dtype=torch.float64))))


def _half_log_snr(call: Call) -> float:
    return -math.inf if call.alpha == 0 else math.log(call.alpha / call.sigma)


def _noise(call: Call) -> X:
    return (call.x - call.alpha * call.x0) / call.sigma


def _slope(call: Call) -> X:
    return (call.x / call.alpha - call.x0) * (call.alpha / call.sigma)
