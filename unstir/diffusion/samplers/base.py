"""What every sampler shares: the contract, and the loop.

Knows: how a grid of times is walked, and where it ends.
Does not know: how any sampler moves x, or what makes a belief.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from unstir.diffusion.denoiser import Denoiser
from unstir.diffusion.process import Estimate, Process, require_data
from unstir.diffusion.schedule import Level
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
        noise: one key a sample; step i (from 0) is given ``noise.at(i)``.

    The denoiser is told the x0 that it believed last, which self-conditioned networks read.

    Raises:
        ValueError: if there are fewer than two times, they do not fall strictly, or x holds no finite
            floating-point numbers.
    """
    require_data(x)
    if len(times) < 2 or any(s >= t for t, s in itertools.pairwise(times)):
        raise ValueError(f"a grid needs at least two times that fall strictly, got {list(times)}")
    levels = process.schedule.at(torch.tensor(times, dtype=torch.float64))
    memory = sampler.start()
    last: Estimate | None = None

    def watched(x_t: X, level: Level, previous: X | None = None) -> Estimate:
        nonlocal last
        last = denoise(x_t, level, None if last is None else last.x0)
        return last

    yield Step(index=0, t=times[0], x=x, belief=None)
    for i, time in enumerate(times[1:]):
        t, s = levels[i], levels[i + 1]
        with torch.no_grad():
            if s.sigma == 0:
                x = watched(x, t).x0
            else:
                x, memory = sampler.step(watched, process, x, t, s, memory, noise.at(i))
        yield Step(index=i + 1, t=time, x=x, belief=last)
