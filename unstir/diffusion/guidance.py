"""Guidance: one denoiser made of several beliefs, and corrections of a belief.

Knows: how beliefs are combined and corrected at one level.
Does not know: networks, conditions, steps from one level to the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from unstir.diffusion.denoiser import Denoiser, Pair
from unstir.diffusion.process import Estimate, Process
from unstir.diffusion.schedule import Level
from unstir.typing import X

Combine = Callable[[X, Level, Estimate, Estimate], Estimate]
"""(x_t, level, strong belief, weak belief) -> one belief."""

Correct = Callable[[X, Level, Estimate], Estimate]
"""(x_t, level, belief) -> a better one."""


def guided(pair: Pair, combine: Combine, *correct: Correct, interval: tuple[float, float] | None = None) -> Denoiser:
    """A denoiser that combines a strong and a weak belief, then applies corrections from left to right.

    Args:
        pair: the two beliefs.
        combine: makes one of them, for instance ``extrapolate``.
        correct: for instance ``clip``.
        interval: log-SNR from and to (nats, ends included) in which beliefs are combined; outside of it the strong
            model alone is called, which halves the cost.

    Raises:
        ValueError: if the interval is empty.

    Source: Kynkäänniemi et al. 2024, arXiv:2404.07724 (interval).
    """
    if interval is not None and not interval[0] < interval[1]:
        raise ValueError(
            f"a guidance interval runs from a lower to a higher log-SNR, got {interval[0]} and {interval[1]}"
        )

    def denoise(x_t: X, level: Level, previous: X | None = None) -> Estimate:
        log_snr = level.log_snr
        inside = interval is None or bool(((log_snr >= interval[0]) & (log_snr <= interval[1])).all())
        if not inside:
            return pair.strong(x_t, level, previous)
        return combine(x_t, level, *pair.both(x_t, level, previous))

    return corrected(denoise, *correct)


def corrected(denoise: Denoiser, *correct: Correct) -> Denoiser:
    """A denoiser whose beliefs are corrected, without guidance."""

    def denoise_corrected(x_t: X, level: Level, previous: X | None = None) -> Estimate:
        belief = denoise(x_t, level, previous)
        for better in correct:
            belief = better(x_t, level, belief)
        return belief

    return denoise_corrected


def extrapolate(process: Process, scale: float) -> Combine:
    """Classifier-free guidance: move the belief away from what the weaker model would believe.

    belief = from_natural(weak + scale * (strong - weak)); for Gaussian processes this is the same whether written
    on x0, noise, v or score.

    Args:
        process: whose natural coordinate beliefs add up in.
        scale: w; 1 is the strong belief itself, 0 the weak one. The paper's w is scale - 1.

    Raises:
        ValueError: if scale is not finite.

    Source: Ho & Salimans 2022, arXiv:2207.12598, Eq. 6.
    """
    if not math.isfinite(scale):
        raise ValueError(f"guidance scale must be a finite number, got {scale}")

    def combine(x_t: X, level: Level, strong: Estimate, weak: Estimate) -> Estimate:
        if scale in (0, 1):  # exactly, where rounding would make w = 1 differ from the strong belief
            return strong if scale == 1 else weak
        start, end = process.to_natural(weak.x0), process.to_natural(strong.x0)
        x0 = process.from_natural(start + scale * (end - start))
        return Estimate(x0=x0, variance_fraction=strong.variance_fraction)

    return combine


def clip(bound: float = 1.0) -> Correct:
    """Believe in no value beyond ``bound`` (static thresholding).

    Args:
        bound: the largest magnitude that clean data has.

    Source: Ho et al. 2020, arXiv:2006.11239 (code); Saharia et al. 2022, arXiv:2205.11487, Sec. 2.3.
    """

    def correct(x_t: X, level: Level, belief: Estimate) -> Estimate:
        return Estimate(x0=belief.x0.clamp(-bound, bound), variance_fraction=belief.variance_fraction)

    return correct
