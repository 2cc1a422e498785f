"""Contenders: solvers on grids, each allowed a number of network calls, and how far from the truth they end.

Knows: how calls are counted, how many steps fit into so many calls, what a failure is.
Does not know: whose solver it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import torch

from unstir.bench.exact import Problem
from unstir.diffusion.denoiser import Denoiser
from unstir.diffusion.process import Estimate
from unstir.diffusion.schedule import Level
from unstir.typing import X
from unstir.verify.observe import certain

Group = Literal["default", "unstir", "diffusers", "diffusers extra", "diffusers on our grid"]
"""Our default; all of our solvers on all of our grids; diffusers as it comes, on its less common grids, on ours."""

Walk = Callable[[Denoiser, X, int], X]
"""(exact denoiser, x at t = 1 of a variance-preserving chain, number of steps) -> where the solver ends."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Contender:
    """A solver on a grid.

    Args:
        group: what it counts as.
        solver: its name.
        grid: the name of its grid.
        walk: runs it with a number of steps.
        is_told_calls: whether ``walk`` takes the number of calls it is allowed, instead of a number of steps.
    """

    group: Group
    solver: str
    grid: str
    walk: Walk
    is_told_calls: bool = False


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one contender reached with so many calls.

    Args:
        group: see ``Group``.
        solver: its name.
        grid: the name of its grid.
        allowed: calls that it might make.
        calls: calls that it made, as counted; the same for every start.
        rms: root mean square of the errors of all starts, or None for a failure. One start that falls into another
            component rules it.
        median: over the starts, of the root mean square error of each.
        failure: why there is no error, in one line; empty where there is one.
    """

    group: Group
    solver: str
    grid: str
    allowed: int
    calls: int = 0
    rms: float | None = None
    median: float | None = None
    failure: str = ""

    @property
    def name(self) -> str:
        """Solver and grid."""
        return f"{self.solver}, {self.grid}"


class _Counted:
    """A denoiser that counts how often it is asked."""

    def __init__(self, denoise: Denoiser) -> None:
        self.denoise = denoise
        self.calls = 0

    def __call__(self, x_t: X, level: Level, previous: Estimate | None = None) -> Estimate:
        self.calls += 1
        return self.denoise(x_t, level)


def calls_of(walk: Walk, num_steps: int) -> int:
    """Network calls that so many steps make, counted on one number."""
    x = torch.ones(1, 1, dtype=torch.float64)
    counted = _Counted(certain(torch.zeros_like(x)))
    walk(counted, x, num_steps)
    return counted.calls


@lru_cache(maxsize=4096)  # the same for every problem
def steps_within(walk: Walk, allowed: int) -> int:
    """The greatest number of steps that makes at most ``allowed`` calls, for calls that rise with the steps.

    Raises:
        ValueError: if one step makes more.
    """
    num_steps = allowed
    while (calls := calls_of(walk, num_steps)) > allowed:
        if num_steps == 1:
            raise ValueError(f"one step makes {calls} calls")
        num_steps = max(1, min(num_steps - 1, num_steps * allowed // calls))
    while num_steps < allowed and calls_of(walk, num_steps + 1) <= allowed:
        num_steps += 1
    return num_steps


def measure(contender: Contender, problem: Problem, allowed: int) -> Row:
    """Run a contender on a problem; whatever becomes of it is told in the row."""
    counted = _Counted(problem.law)
    row = Row(group=contender.group, solver=contender.solver, grid=contender.grid, allowed=allowed)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of what strangers' code will no longer do one day
            given = allowed if contender.is_told_calls else steps_within(contender.walk, allowed)
            errors = problem.errors(contender.walk(counted, problem.starts, given))
    except Exception as error:  # whatever a stranger's solver does
        return replace(row, calls=counted.calls, failure=_one_line(error))
    row = replace(row, calls=counted.calls)
    if counted.calls > allowed:
        return replace(row, failure=f"made {counted.calls} calls")
    if not bool(errors.isfinite().all()):
        return replace(row, failure="not finite")
    return replace(row, rms=errors.square().mean().sqrt().item(), median=errors.median().item())


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:200]
