"""Schedulers of diffusers as contenders: on their own grids, and on ours where they take one.

Knows: which schedulers and grids there are, how a scheduler is asked for each.
Does not know: any problem, or how a scheduler is driven.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from unstir.bench.contender import Contender, Group, Walk, calls_of
from unstir.diffusion.denoiser import Denoiser
from unstir.diffusion.noise import KeyedNoise
from unstir.diffusion.schedule import Schedule, Tabulated
from unstir.diffusion.spacing import Spacing
from unstir.typing import X, floats
from unstir.verify.diffusers_adapter import Path, SchedulerTarget
from unstir.verify.target import Promise, level_of

MISSING = "diffusers is not installed, so unstir is measured alone; pip install diffusers for both"

CHAINS: dict[str, Mapping[str, Any]] = {
    "linear": {"beta_schedule": "linear"},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}
"""How diffusers is asked for the chains of ``exact.CHAINS``."""

GRIDS: dict[str, Mapping[str, Any]] = {
    "plain": {},
    "trailing": {"timestep_spacing": "trailing"},
    "Karras": {"use_karras_sigmas": True},
    "lu": {"use_lu_lambdas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
}
EXTRA = ("exponential", "beta")
"""Grids that are measured too, but are not what diffusers is commonly used with."""


@dataclass(frozen=True, kw_only=True)
class Solver:
    """A scheduler of diffusers.

    Args:
        name: what tables call it.
        kind: its class.
        path: how it keeps its levels.
        config: what it is made with, beside chain and grid.
    """

    name: str
    kind: str
    path: Path
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])


_MULTISTEP, _UNIPC, _PNDM = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "PNDMScheduler"
SOLVERS = (
    Solver(name="DDIM", kind="DDIMScheduler", path="table", config={"clip_sample": False}),
    Solver(name="PNDM", kind=_PNDM, path="table"),
    Solver(name="PNDM skip_prk_steps", kind=_PNDM, path="table", config={"skip_prk_steps": True}),
    Solver(name="DPM++ 2M", kind=_MULTISTEP, path="preserving"),
    Solver(name="DPM++ 3M", kind=_MULTISTEP, path="preserving", config={"solver_order": 3}),
    Solver(name="UniPC 2", kind=_UNIPC, path="preserving"),
    Solver(name="UniPC 3", kind=_UNIPC, path="preserving", config={"solver_order": 3}),
    Solver(name="DEIS", kind="DEISMultistepScheduler", path="preserving"),
    Solver(name="Heun", kind="HeunDiscreteScheduler", path="exploding"),
    Solver(name="LMS", kind="LMSDiscreteScheduler", path="exploding"),
    Solver(name="Euler", kind="EulerDiscreteScheduler", path="exploding"),
)


def version() -> str | None:
    """Of the diffusers that is installed, or None."""
    try:
        importlib.import_module("diffusers")
    except ImportError:
        return None
    return importlib.metadata.version("diffusers")


def contenders(
    chain: str, schedule: Schedule, ours: Mapping[str, Spacing], default: Callable[[int], tuple[float, ...]]
) -> list[Contender]:
    """Every solver on every grid that it takes.

    Args:
        chain: a name in ``CHAINS``.
        schedule: the same chain as ours.
        ours: our grids, by name.
        default: our default's times for a number of calls, for solvers that make one call a step.

    Raises:
        ImportError: if diffusers is not installed.
    """
    found: list[Contender] = []
    for solver in SOLVERS:
        kind = getattr(importlib.import_module("diffusers"), solver.kind)
        options = inspect.signature(kind.__init__).parameters
        config = {**CHAINS[chain], **solver.config}
        for grid, asked in GRIDS.items():
            if all(option in options for option in asked):
                group: Group = "diffusers extra" if grid in EXTRA else "diffusers"
                walk = _walk(target_of(solver, kind(**config, **asked)))
                found.append(Contender(group=group, solver=solver.name, grid=grid, walk=walk))
        if way := _way(kind):
            given = dict(ours)
            if calls_of(_walk(target_of(solver, kind(**config))), 3) == 3:
                given["default"] = lambda _, num_steps: default(num_steps)
            for grid, spacing in given.items():
                walk = _walk(target_of(solver, _on_ours(kind, way, schedule, spacing)(**config)))
                found.append(Contender(group="diffusers on our grid", solver=solver.name, grid=grid, walk=walk))
    return found


def target_of(solver: Solver, scheduler: Any) -> SchedulerTarget:
    """A scheduler, ready to be driven."""
    alpha_bar = scheduler.alphas_cumprod
    trained = level_of(alpha_bar.sqrt(), (1 - alpha_bar).sqrt())
    return SchedulerTarget(name=solver.name, scheduler=scheduler, path=solver.path, promise=Promise(), trained=trained)


def _walk(target: SchedulerTarget) -> Walk:
    def walk(denoise: Denoiser, x: X, num_steps: int) -> X:
        if target.path == "exploding":  # its sample is x/alpha
            first = target.levels(num_steps)[0]
            x = x * torch.hypot(first.alpha, first.sigma)
        return target.run(denoise, x, num_steps, KeyedNoise.from_seeds(range(x.shape[0])))

    return walk


def _way(kind: Any) -> str | None:
    """How a scheduler takes a grid: UniPC's ``sigmas`` are for flows only."""
    accepted = inspect.signature(kind.set_timesteps).parameters
    if "sigmas" in accepted and "timesteps" in accepted:
        return "sigmas"
    return "timesteps" if "timesteps" in accepted else None


def _on_ours(kind: Any, way: str, schedule: Schedule, spacing: Spacing) -> Any:
    """The scheduler's class, but for its grid."""

    def set_timesteps(self: Any, num_inference_steps: int, *more: Any) -> None:
        if more:  # Heun's own constructor
            kind.set_timesteps(self, num_inference_steps, *more)
            return
        times = spacing(schedule, num_inference_steps)
        values = sigmas_of(schedule, times) if way == "sigmas" else timesteps_of(schedule, times)
        kind.set_timesteps(self, **{way: values})

    return type(kind.__name__, (kind,), {"set_timesteps": set_timesteps})


def sigmas_of(schedule: Schedule, times: Sequence[float]) -> list[float]:
    """sigma/alpha at every time of a grid, its end included."""
    level = schedule.at(torch.tensor(times, dtype=torch.float64))
    return floats(level.sigma / level.alpha)


def timesteps_of(schedule: Schedule, times: Sequence[float]) -> list[int]:
    """The whole timesteps of a chain that are nearest to the times of a grid, without its end.

    Raises:
        ValueError: if two of them are the same.
    """
    count = schedule.num_steps if isinstance(schedule, Tabulated) else 1000
    steps = [max(0, round(count * time) - 1) for time in times[:-1]]
    if len(set(steps)) < len(steps):
        raise ValueError(f"takes whole timesteps only, but two of {len(steps)} times share one")
    return steps
