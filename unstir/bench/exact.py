"""Problems whose solution is known: mixtures of Gaussians, and where the exact probability flow carries their noise.

Knows: how a mixture is drawn, how its flow is integrated far more finely than any solver does, and the error of that.
Does not know: any solver that is measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from unstir.diffusion.denoiser import Denoiser
from unstir.diffusion.noise import KeyedNoise
from unstir.diffusion.schedule import Cosine, Tabulated, linear_betas, quadratic_betas
from unstir.typing import X
from unstir.verify.oracles import MixtureOracle
from unstir.verify.target import level_of

Advance = Callable[[int, int], None]
"""(steps done, steps in all): called often."""

COMPONENTS = 12
DATA_RMS = 0.5
NARROWEST, WIDEST = 0.02, 0.3  # standard deviation of a component
TUNING, TUNING_NUMBERS = 1024, 2**19  # starts, and numbers in them, that the default is tuned with
FINEST = 1e-6  # sigma/alpha at which the reference ends with the belief: its relative error there is its square
_LAW, _STARTS, _TUNING = 0, 1, 2  # keys of a problem's noise


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """A law of data on a schedule, with starts and where the exact flow carries them.

    Args:
        law: of the data; the exact denoiser.
        schedule: the chain of 1000 steps that a model would be trained on.
        starts: noise at t = 1, in float64.
        tuning: other starts, for a solver that is fitted to the law.
        ends: where the probability flow carries ``starts``.
        steps: Runge-Kutta steps of the reference.
        reference_rms: root mean square difference between ``ends`` and a reference of half as many steps; the error of
            ``ends`` themselves is smaller.
        reference_worst: the same for the worst start.
    """

    law: MixtureOracle
    schedule: Tabulated
    starts: X
    tuning: X
    ends: X
    steps: int
    reference_rms: float
    reference_worst: float

    @property
    def dimension(self) -> int:
        """Numbers in a sample."""
        return self.starts[0].numel()

    def errors(self, x: X) -> Float[Tensor, "b"]:
        """Root mean square over the elements of each sample of its distance from where it should be."""
        return rms_each(x.double() - self.ends)


def rms_each(x: X) -> Float[Tensor, "b"]:
    """Root mean square over the elements of each sample."""
    return x.flatten(1).square().mean(1).sqrt()


def linear() -> Tabulated:
    """DDPM's chain, the default of diffusers."""
    return Tabulated.from_betas(linear_betas(1000))


def scaled_linear() -> Tabulated:
    """The chain of Stable Diffusion 1."""
    return Tabulated.from_betas(quadratic_betas(1000, first=0.00085, last=0.012))


def cosine() -> Tabulated:
    """The chain of the cosine schedule."""
    return Tabulated.from_schedule(Cosine(), 1000)


CHAINS: dict[str, Callable[[], Tabulated]] = {"linear": linear, "scaled_linear": scaled_linear, "cosine": cosine}


def shape_of(dimension: int) -> tuple[int, ...]:
    """The shape of a sample: 3 x n x n where the dimension is such a picture's, else a vector."""
    side = math.isqrt(dimension // 3)
    return (3, side, side) if side > 1 and 3 * side**2 == dimension else (dimension,)


def draw_mixture(dimension: int, seed: int) -> MixtureOracle:
    """A mixture of ``COMPONENTS`` isotropic Gaussians, in float64; its root mean square is ``DATA_RMS`` exactly.

    Means are normal, standard deviations log-uniform from ``NARROWEST`` to ``WIDEST``, weights uniform on the simplex.
    """
    noise = KeyedNoise.from_seeds(range(COMPONENTS)).at(seed, dimension, _LAW)
    column = torch.zeros(COMPONENTS, 1, dtype=torch.float64)
    weights = -(1 - noise.at(0).uniform(column)[:, 0]).log()
    weights = weights / weights.sum()
    std = NARROWEST * (WIDEST / NARROWEST) ** noise.at(1).uniform(column)[:, 0]
    means = noise.at(2).normal(torch.zeros(COMPONENTS, *shape_of(dimension), dtype=torch.float64))
    power = (weights * rms_each(means).square()).sum()
    means = means * ((DATA_RMS**2 - (weights * std.square()).sum()) / power).sqrt()
    return MixtureOracle(means=means, variances=std.square(), weights=weights)


def draw_starts(dimension: int, seed: int, count: int, *, tuning: bool = False) -> X:
    """Standard normal noise, as sampling starts from; start i is the same whatever the count."""
    noise = KeyedNoise.from_seeds(range(count)).at(seed, dimension, _TUNING if tuning else _STARTS)
    return noise.normal(torch.zeros(count, *shape_of(dimension), dtype=torch.float64))


def flow(denoise: Denoiser, schedule: Tabulated, x: X, num_steps: int, advance: Advance | None = None) -> X:
    """Where the probability flow carries x from t = 1 to the data.

    With u = x/alpha and l = log(alpha/sigma) the flow is du/dl = D(u; sigma/alpha) - u. It is integrated by the
    classical Runge-Kutta method of order 4 with even steps in l, down to sigma/alpha = ``FINEST``, and ends with the
    belief there.

    Args:
        denoise: asked at levels with alpha = 1, as the law of u has them.
        schedule: where x is at t = 1.
        x: in float64.
        num_steps: of the method; each asks four times.
        advance: called often.

    Raises:
        ValueError: if num_steps < 1.

    Source: Song et al. 2021, arXiv:2010.02502, Eq. 14 (in sigma/alpha); Hairer, Noersett & Wanner 1993, "Solving
        ordinary differential equations I", Table II.1.2.
    """
    if num_steps < 1:
        raise ValueError(f"a reference needs at least 1 step, got {num_steps}")
    level = schedule.at(torch.tensor(1.0, dtype=torch.float64))
    first, last = (level.log_snr / 2).item(), -math.log(FINEST)
    step = (last - first) / num_steps

    def belief(u: X, at: float) -> X:
        sigma = torch.tensor(math.exp(-at), dtype=torch.float64)
        return denoise(u, level_of(torch.ones_like(sigma), sigma)).x0

    u = x / level.alpha
    for i in range(num_steps):
        here = first + i * step
        k1 = belief(u, here) - u
        middle = u + step / 2 * k1
        k2 = belief(middle, here + step / 2) - middle
        middle = u + step / 2 * k2
        k3 = belief(middle, here + step / 2) - middle
        end = u + step * k3
        k4 = belief(end, here + step) - end
        u = u + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        if advance is not None:
            advance(i + 1, num_steps)
    return belief(u, last)


def pose(
    dimension: int,
    schedule: Tabulated,
    *,
    seed: int,
    starts: int,
    steps: int,
    advance: Advance | None = None,
) -> Problem:
    """A problem with its solution.

    Args:
        dimension: numbers in a sample.
        schedule: where the starts are at t = 1.
        seed: of the law and the starts.
        starts: how many; others are drawn for tuning, ``TUNING`` of them, or fewer where there are many dimensions.
        steps: of the reference; another of half as many tells its error.
        advance: called often.

    Raises:
        ValueError: if dimension or starts is below 1, or steps below 2.
    """
    require_whole("dimensions", [dimension], 1)
    require_whole("starts", [starts], 1)
    require_whole("reference steps", [steps], 2)
    law = draw_mixture(dimension, seed)
    x = draw_starts(dimension, seed, starts)
    total = steps + steps // 2

    def tell(before: int) -> Advance:
        return lambda done, _: None if advance is None else advance(before + done, total)

    ends = flow(law, schedule, x, steps, tell(0))
    apart = rms_each(ends - flow(law, schedule, x, steps // 2, tell(steps)))
    return Problem(
        law=law,
        schedule=schedule,
        starts=x,
        tuning=draw_starts(dimension, seed, min(TUNING, max(128, TUNING_NUMBERS // dimension)), tuning=True),
        ends=ends,
        steps=steps,
        reference_rms=apart.square().mean().sqrt().item(),
        reference_worst=apart.max().item(),
    )


def require_whole(what: str, numbers: Sequence[int], least: int, most: int | None = None) -> None:
    """Refuse an empty list, and numbers that are too small or too large.

    Raises:
        ValueError: if there is no number, or one is below ``least`` or above ``most``.
    """
    if not numbers or min(numbers) < least or (most is not None and max(numbers) > most):
        given = ", ".join(str(number) for number in numbers) or "none"
        span = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{what} must be whole numbers {span}, got {given}")
