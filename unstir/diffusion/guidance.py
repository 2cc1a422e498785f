"""Guidance: one denoiser made of several beliefs, and corrections of a belief.

Knows: how beliefs are combined and corrected at one level, and at which levels.
Does not know: networks, conditions, gradients, steps from one level to the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool
from torch import Tensor

from unstir.diffusion.denoiser import Denoiser, Pair
from unstir.diffusion.parameterization import Affine, PredictFlow, PredictNoise, PredictV, PredictX0
from unstir.diffusion.process import Estimate, GaussianProcess, Process
from unstir.diffusion.schedule import Level
from unstir.typing import X

Combine = Callable[[X, Level, Estimate, Estimate], Estimate]
"""(x_t, level, strong belief, weak belief) -> one belief."""

Correct = Callable[[X, Level, Estimate], Estimate]
"""(x_t, level, belief) -> a better one."""

VIEWS: dict[str, Affine] = {"x0": PredictX0(), "noise": PredictNoise(), "v": PredictV()}
"""Coordinates in which a belief may be looked at."""


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

    def combined(x_t: X, level: Level, previous: Estimate | None = None) -> Estimate:
        return combine(x_t, level, *pair.both(x_t, level, previous))

    return corrected(combined if interval is None else within(interval, combined, pair.strong), *correct)


def within(interval: tuple[float, float], inside: Denoiser, outside: Denoiser) -> Denoiser:
    """One denoiser between two levels, another beyond them; where levels differ, inside means that all samples are.

    Args:
        interval: log-SNR from and to (nats, ends included).
        inside: asked there.
        outside: asked elsewhere.

    Raises:
        ValueError: if the interval is empty.
    """
    if not interval[0] < interval[1]:
        raise ValueError(
            f"a guidance interval runs from a lower to a higher log-SNR, got {interval[0]} and {interval[1]}"
        )

    def denoise(x_t: X, level: Level, previous: Estimate | None = None) -> Estimate:
        return (inside if is_within(interval, level) else outside)(x_t, level, previous)

    return denoise


def is_within(interval: tuple[float, float] | None, level: Level) -> bool:
    """Whether the log-SNR of all samples lies between the two, ends included; None is everywhere."""
    return interval is None or bool(((level.log_snr >= interval[0]) & (level.log_snr <= interval[1])).all())


def pair_of(strong: Denoiser, weak: Denoiser) -> Pair:
    """The beliefs of two denoisers, in two calls: autoguidance, where a worse version of the model is pushed off from.

    Args:
        strong: the model.
        weak: the same model with less training or fewer weights, under the same condition; its errors are those of
            the strong one, only larger, and extrapolation takes them away without narrowing what is drawn.

    Source: Karras et al. 2024, arXiv:2406.02507, Sec. 4.
    """

    def both(x_t: X, level: Level, previous: Estimate | None = None) -> tuple[Estimate, Estimate]:
        return strong(x_t, level, previous), weak(x_t, level, previous)

    return Pair(both=both, strong=strong)


def zero_start(denoise: Denoiser, below: float) -> Denoiser:
    """Stand still while there is hardly any signal: below a log-SNR the velocity is taken to be 0.

    The belief is the one whose velocity d x_t/dt is 0, on the straight path x_t itself, and the denoiser is not asked.

    Args:
        denoise: asked above.
        below: log-SNR, included; -inf is the very start of a path without signal, the paper's single step.

    Raises:
        ValueError: if ``below`` is no number, and where the path's velocity is infinite (alpha falls to 0 as a root
            does).

    Source: Fan et al. 2025, arXiv:2503.18886 (zero-init, which counts steps).
    """

    def still(x_t: X, level: Level, previous: Estimate | None = None) -> Estimate:
        return PredictFlow().decode(torch.zeros_like(x_t), x_t, level)

    def denoise_later(x_t: X, level: Level, previous: Estimate | None = None) -> Estimate:
        is_early = bool((level.log_snr <= below).all())
        return (still if is_early else denoise)(x_t, level, previous)

    if math.isnan(below):
        raise ValueError("the log-SNR below which nothing moves must be a number, got nan")
    return denoise_later


def corrected(denoise: Denoiser, *correct: Correct) -> Denoiser:
    """A denoiser whose beliefs are corrected, without guidance."""

    def denoise_corrected(x_t: X, level: Level, previous: Estimate | None = None) -> Estimate:
        belief = denoise(x_t, level, previous)
        for better in correct:
            belief = better(x_t, level, belief)
        return belief

    return denoise_corrected


def extrapolate(process: Process, scale: float) -> Combine:
    """Classifier-free guidance: move the belief away from what the weaker model would believe.

    belief = from_natural(weak + scale (strong - weak))

    For Gaussian processes this is the same whether written on x0, noise, v or score; for bits, whose natural coordinate
    is the logit, it is p(x0 | c)^scale p(x0)^(1 - scale).

    Two conventions are about. Ours is that of LDM, DiT and diffusers: scale 1 is the strong belief itself, 0 the weak
    one. Ho & Salimans write (1 + w') strong - w' weak: their w' is scale - 1, and 0 is no guidance.

    Args:
        process: whose natural coordinate beliefs add up in.
        scale: w.

    Raises:
        ValueError: if scale is not finite.

    Source: Ho & Salimans 2022, arXiv:2207.12598, Eq. 6.
    """
    _require_scale(scale)

    def combine(x_t: X, level: Level, strong: Estimate, weak: Estimate) -> Estimate:
        if scale in (0, 1):  # exactly, where rounding would make w = 1 differ from the strong belief
            return strong if scale == 1 else weak
        start, end = process.to_natural(weak.x0), process.to_natural(strong.x0)
        return strong.with_x0(process.from_natural(start + scale * (end - start)))

    return combine


def projected(process: Process, scale: float, *, parallel: float = 0.0, norm_threshold: float | None = None) -> Combine:
    """Adaptive projected guidance: guidance without the part of its step that only makes the picture more so.

    step = strong - weak, made no longer than norm_threshold
    belief = strong + (scale - 1) (across + parallel along),   step = along + across, along being parallel to strong

    The part along the belief itself saturates colours. With parallel = 1 and no threshold this is ``extrapolate``. The
    paper's momentum, a running sum of steps, is left out: it would be a memory, and guidance has none.

    Args:
        process: in whose natural coordinate this is done; x0 for Gaussian ones.
        scale: w; 1 is the strong belief itself.
        parallel: how much of the part along the belief is kept, the paper's eta.
        norm_threshold: the longest step, in the Euclidean norm over all sites of a sample; None for any.

    Raises:
        ValueError: if scale or parallel is not finite, or norm_threshold not positive.

    Source: Sadat et al. 2024, arXiv:2410.02416 (without its momentum).
    """
    _require_scale(scale)
    if not math.isfinite(parallel):
        raise ValueError(f"the parallel share of guidance must be a finite number, got {parallel}")
    if norm_threshold is not None and not norm_threshold > 0:
        raise ValueError(f"the longest step of guidance must be positive, got {norm_threshold}; leave it out for any")

    def combine(x_t: X, level: Level, strong: Estimate, weak: Estimate) -> Estimate:
        if scale == 1:
            return strong
        end = process.to_natural(strong.x0)
        step = end - process.to_natural(weak.x0)
        if norm_threshold is not None:
            step = step * (norm_threshold / _inner(step, step).sqrt()).clamp(max=1)
        along = _share(step, end) * end
        return strong.with_x0(process.from_natural(end + (scale - 1) * (step - (1 - parallel) * along)))

    return combine


def zero_star(process: GaussianProcess, scale: float) -> Combine:
    """CFG-Zero*: guidance from the weak velocity brought to the length that fits the strong one best.

    velocity = s weak + scale (strong - s weak),   s = <strong, weak>/|weak|^2 of each sample

    Velocities d x_t/dt are what a network of poorly learned length says; s is 1 where strong and weak differ across
    the weak one only. ``zero_start`` is the other half of the paper.

    Args:
        process: says that there are velocities.
        scale: w; 1 is the strong belief itself, 0 s times the weak velocity.

    Raises:
        ValueError: if scale is not finite, and where the path's velocity is infinite (alpha falls to 0 as a root does).

    Source: Fan et al. 2025, arXiv:2503.18886 (optimized scale).
    """
    _require_scale(scale)
    velocity = PredictFlow()

    def combine(x_t: X, level: Level, strong: Estimate, weak: Estimate) -> Estimate:
        if scale == 1:
            return strong
        end, start = (velocity.target(belief.x0, x_t, level) for belief in (strong, weak))
        start = _share(end, start) * start
        return strong.with_x0(velocity.decode(start + scale * (end - start), x_t, level).x0)

    return combine


def rescale(combine: Combine, fraction: float, view: str) -> Combine:
    """Give a combined belief the contrast of the strong one, or some of it.

    F = (1 - fraction + fraction std(F_strong)/std(F_combined)) F_combined

    F is the belief looked at as x0, noise or v, std is taken over all sites of a sample. This is not the same in every
    view: on x0 it is the contrast of the picture that is kept, on noise that of what is taken away. A belief without
    any contrast stays as it is.

    Args:
        combine: whose beliefs are rescaled.
        fraction: the paper's phi; 0 leaves them, 0.7 is its advice.
        view: a name of ``VIEWS``. The paper's networks predict v; many programs do it to noise, which has no meaning at
            a level without signal.

    Raises:
        ValueError: if fraction is outside [0, 1] or there is no such view.

    Source: Lin et al. 2024, arXiv:2305.08891, Sec. 3.4.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"the fraction of rescaling must be in [0, 1], got {fraction}")
    if view not in VIEWS:
        raise ValueError(f"a belief may be rescaled as {', '.join(VIEWS)}, got {view!r}")
    if fraction == 0:
        return combine
    affine = VIEWS[view]

    def rescaled(x_t: X, level: Level, strong: Estimate, weak: Estimate) -> Estimate:
        combined = combine(x_t, level, strong, weak)
        if combined is strong:  # nothing was done to its contrast, and rounding shall do nothing either
            return strong
        now, then = (affine.target(belief.x0, x_t, level) for belief in (combined, strong))
        have, want = _contrast(now), _contrast(then)
        ratio = torch.where(have > 0, want / have, 1.0)
        return combined.with_x0(affine.decode((1 - fraction + fraction * ratio) * now, x_t, level).x0)

    return rescaled


def clip(bound: float = 1.0) -> Correct:
    """Believe in no value beyond ``bound`` (static thresholding).

    Args:
        bound: the largest magnitude that clean data has.

    Source: Ho et al. 2020, arXiv:2006.11239 (code); Saharia et al. 2022, arXiv:2205.11487, Sec. 2.3.
    """

    def correct(x_t: X, level: Level, belief: Estimate) -> Estimate:
        return belief.with_x0(belief.x0.clamp(-bound, bound))

    return correct


def dynamic_threshold(quantile: float, bound: float = 1.0) -> Correct:
    """Bring a belief that leaves the range of data back into it as a whole, instead of flattening what is outside.

    x0 = clamp(x0, -s, s) bound/s,   s = max(quantile of |x0| over the sample, bound)

    Args:
        quantile: the share of values that are not clamped; 1 is scaling by the largest. The paper's figures have 0.995.
        bound: the largest magnitude that clean data has.

    Raises:
        ValueError: if quantile is not in (0, 1] or bound not positive.

    Source: Saharia et al. 2022, arXiv:2205.11487, Sec. 2.3.
    """
    if not 0 < quantile <= 1:
        raise ValueError(f"the quantile of a dynamic threshold must be in (0, 1], got {quantile}; 0.995 is usual")
    if not bound > 0:
        raise ValueError(f"the bound of a threshold must be positive, got {bound}")

    def correct(x_t: X, level: Level, belief: Estimate) -> Estimate:
        x0 = belief.x0
        # Sample by sample: torch refuses the quantile of a tensor of more than 16 million numbers.
        largest = torch.stack([torch.quantile(row, quantile) for row in x0.abs().flatten(1).float()])
        reach = largest.clamp(min=bound).to(x0).view(-1, *[1] * (x0.ndim - 1))
        return belief.with_x0(torch.minimum(torch.maximum(x0, -reach), reach) * (bound / reach))

    return correct


def known_pixels(known: X, mask: Bool[Tensor, "*any"]) -> Correct:
    """Believe what is known: the given values where the mask is True; for bits, their probability 0 or 1.

    Args:
        known: the clean sample, or a batch of them.
        mask: True where ``known`` is to be believed; of a shape that broadcasts against it.

    Raises:
        ValueError: if the mask is not one of True and False, or shapes do not go together.
    """
    if mask.dtype != torch.bool:
        raise ValueError(f"a mask of known pixels holds True and False, got {mask.dtype}; compare it with 0.5")

    def correct(x_t: X, level: Level, belief: Estimate) -> Estimate:
        x0 = belief.x0
        for name, shape in (("known pixels", known.shape), ("their mask", mask.shape)):
            ends = zip(reversed(shape), reversed(x0.shape), strict=False)
            if len(shape) > x0.ndim or any(here not in (1, there) for here, there in ends):
                raise ValueError(
                    f"{name} of shape {tuple(shape)} do not fit a sample of {tuple(x0.shape)}; give them in its shape"
                )
        return belief.with_x0(torch.where(mask.to(x0.device), known.to(x0), x0))

    return correct


def _require_scale(scale: float) -> None:
    if not math.isfinite(scale):
        raise ValueError(f"guidance scale must be a finite number, got {scale}")


def _inner(x: X, y: X) -> X:
    """The inner product of each sample, of shape (b, 1, ...)."""
    return (x * y).flatten(1).sum(1).view(-1, *[1] * (x.ndim - 1))


def _share(x: X, of: X) -> X:
    """How many times ``of`` the projection of x on it is; 0 where ``of`` is 0."""
    return _inner(x, of) / _inner(of, of).clamp(min=torch.finfo(of.dtype).tiny)


def _contrast(x: X) -> X:
    """The standard deviation over all sites of each sample, of shape (b, 1, ...)."""
    return x.flatten(1).std(1, correction=0).view(-1, *[1] * (x.ndim - 1))
