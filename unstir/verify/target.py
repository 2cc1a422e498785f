"""Targets: what is verified, as a black box that an exact denoiser is handed to, and how strangers' objects become one.

Knows: what a target shows of itself and promises; how a sampler on a schedule and a spacing is one; where a name leads.
Does not know: any statement, and what is done with a target.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol, cast, runtime_checkable

import torch

from unstir.config import choose
from unstir.diffusion.denoiser import Denoiser
from unstir.diffusion.process import GaussianProcess
from unstir.diffusion.samplers import Sampler, sample
from unstir.diffusion.schedule import SCHEDULES, Cosine, Level, RectifiedFlow, Schedule, Tabulated, linear_betas
from unstir.diffusion.spacing import SPACINGS, Spacing, trailing
from unstir.typing import Noise, Time, X
from unstir.verify.oracles import GivenNoise

_NEEDED = ("name", "promise", "trained", "levels", "run")


@dataclass(frozen=True, kw_only=True)
class Promise:
    """What a target says of itself; a statement about something that is not promised is not applicable.

    Args:
        order: of convergence, or None if none is promised.
        is_stochastic: whether it draws.
        formula: the name in ``FORMULAS`` of the step that it says it takes, or None.
        tolerance: the relative error that rounding may cause; 1e-6 for float64 from sigma/alpha = 1e5 on, 2e-4 for
            tables in float32.
        starts_late: whether ``run`` can start in the middle of the grid.
        visits_table: whether as many steps as the training chain has visit exactly that chain.
        clip: the bound within which it keeps beliefs about x0 by itself, or None if it leaves them alone.
        notes: what is known of a failure, by the id of the statement, for people.
    """

    order: int | None = None
    is_stochastic: bool = False
    formula: str | None = None
    tolerance: float = 1e-6
    starts_late: bool = True
    visits_table: bool = False
    clip: float | None = None
    notes: Mapping[str, str] = field(default_factory=dict[str, str])


class Target(Protocol):
    """A sampler with its schedule and its grid, seen from outside.

    Everything is told in levels (alpha, sigma) of x_t = alpha x0 + sigma noise, in whatever coordinates the target
    keeps its samples in: alpha^2 + sigma^2 = 1, alpha = 1, or any other.
    """

    @property
    def name(self) -> str:
        """What reports call it."""
        ...

    @property
    def promise(self) -> Promise:
        """What it says of itself."""
        ...

    @property
    def trained(self) -> Level:
        """The levels that a model is trained on, from data to noise: all T of a chain, or the two ends of a path."""
        ...

    def levels(self, num_steps: int) -> Level:
        """The num_steps + 1 levels that a run visits, from noise to where it ends."""
        ...

    def run(self, denoise: Denoiser, x: X, num_steps: int, noise: Noise, start: int = 0) -> X:
        """The sample that x, at ``levels(num_steps)[start]``, becomes.

        Each belief is asked for by ``denoise(x_t, level)``, with the level that x_t is held to be at.
        """
        ...


@runtime_checkable
class Spoils(Protocol):
    """A target that also adds noise."""

    def spoil(self, x0: X, noise: X, num_steps: int, step: int) -> X:
        """The sample at ``levels(num_steps)[step]`` made of x0 and noise, in the type of x0."""
        ...


@runtime_checkable
class Remakes(Protocol):
    """A target whose grid can be asked for in several ways."""

    def remake(self, num_steps: int) -> Mapping[str, Level]:
        """``levels(num_steps)`` as each way of asking gives them, by the way's name."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """A target, and how to call it up again.

    Args:
        target: what is verified.
        spec: ``package.module:factory``, or None for one of our own.
    """

    target: Target
    spec: str | None = None


def level_of(alpha: Time, sigma: Time) -> Level:
    """A level known by its two numbers alone; t is that of the straight path with the same signal-to-noise ratio."""
    alpha, sigma = alpha.double(), sigma.double()
    unknown = torch.full_like(alpha, torch.nan)
    return Level(t=sigma / (alpha + sigma), alpha=alpha, sigma=sigma, dalpha=unknown, dsigma=unknown)


@dataclass(frozen=True, kw_only=True)
class SamplerTarget:
    """One of our samplers, on a schedule and a spacing.

    Args:
        name: what reports call it.
        sampler: anything with ``order``, ``start`` and ``step``.
        schedule: of a Gaussian process.
        spacing: the grid of times.
        promise: what is promised; see ``promise_of``.
    """

    name: str
    sampler: Sampler[Any]
    schedule: Schedule
    spacing: Spacing
    promise: Promise

    @property
    def trained(self) -> Level:
        """Every step of a table, or both ends of a continuous schedule."""
        if isinstance(self.schedule, Tabulated):
            count = self.schedule.num_steps
            return self.schedule.at(torch.arange(1, count + 1, dtype=torch.float64) / count)
        return self.schedule.at(torch.tensor([0.0, 1.0], dtype=torch.float64))

    def levels(self, num_steps: int) -> Level:
        """The levels at the times of the spacing."""
        return _levels(self.spacing, self.schedule, num_steps)

    def run(self, denoise: Denoiser, x: X, num_steps: int, noise: Noise, start: int = 0) -> X:
        """Walk the rest of the grid."""
        times = _times(self.spacing, self.schedule, num_steps)[start:]
        *_, last = sample(self.sampler, denoise, GaussianProcess(schedule=self.schedule), x, times, noise)
        return last.x

    def spoil(self, x0: X, noise: X, num_steps: int, step: int) -> X:
        """A draw from the process's marginal."""
        level = self.levels(num_steps)[step]
        return GaussianProcess(schedule=self.schedule).marginal(x0, level).sample(GivenNoise(value=noise))


def promise_of(sampler: Sampler[Any], schedule: Schedule, spacing: Spacing, formula: str | None = None) -> Promise:
    """What a sampler promises by its contract: its order, or (order 0) that it draws."""
    is_table = isinstance(schedule, Tabulated)
    return Promise(
        order=sampler.order or None,
        is_stochastic=sampler.order == 0,
        formula=formula,
        visits_table=is_table and spacing is trailing,
    )


def targets_of(name: str, sampler: Sampler[Any], formula: str | None = None) -> list[SamplerTarget]:
    """A sampler on every schedule of ``SCHEDULES`` with the trailing spacing, and on every spacing of ``SPACINGS``.

    Args:
        name: of the sampler.
        sampler: anything with ``order``, ``start`` and ``step``.
        formula: the name in ``FORMULAS`` of the step that it says it takes, or None.
    """
    places = [(kind, schedule, "trailing") for kind, schedule in schedules().items()]
    places += [("cosine", Cosine(), spacing) for spacing in SPACINGS if spacing != "trailing"]
    return [
        SamplerTarget(
            name=f"{name}, {kind}, {spacing}",
            sampler=sampler,
            schedule=schedule,
            spacing=SPACINGS[spacing],
            promise=promise_of(sampler, schedule, SPACINGS[spacing], formula),
        )
        for kind, schedule, spacing in places
    ]


@lru_cache
def schedules() -> dict[str, Schedule]:
    """Every schedule of ``SCHEDULES`` with its defaults, DDPM's table and its zero-SNR twin, and a shifted flow."""
    table = Tabulated.from_betas(linear_betas(1000))
    kinds = {name: kind() for name, kind in SCHEDULES.items() if kind is not Tabulated}
    return {
        **kinds,
        "shifted_flow": RectifiedFlow(shift=3.0),
        "tabulated": table,
        "zero_snr_table": table.with_zero_terminal_snr(),
    }


def load_cases(spec: str) -> list[Case]:
    """What a name leads to: a factory without arguments that returns a sampler, a target, or a mapping of targets.

    A sampler (``order``, ``start``, ``step``) is put on every schedule and spacing of ours. The keys of a mapping are
    names of factories in the same module.

    Args:
        spec: ``package.module:factory``.

    Raises:
        ValueError: if it leads nowhere, or to something else.
    """
    module_name, _, factory_name = spec.partition(":")
    if not module_name or not factory_name:
        raise ValueError(f"a target is named as package.module:factory, got {spec!r}; for instance mine:make_sampler")
    made = _call(_factory(module_name, factory_name), spec)
    if isinstance(made, Mapping):
        found = cast("Mapping[str, object]", made)
        return [Case(target=_target(each, spec), spec=f"{module_name}:{key}") for key, each in found.items()]
    if all(hasattr(made, part) for part in ("order", "start", "step")):
        sampler = cast("Sampler[Any]", made)
        return [Case(target=target, spec=spec) for target in targets_of(factory_name, sampler)]
    return [Case(target=_target(made, spec), spec=spec)]


def _factory(module_name: str, factory_name: str) -> Callable[[], object]:
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever stands in a stranger's module
        raise ValueError(
            f"cannot import {module_name!r} ({type(error).__name__}: {error}); it must be installed, or a file in the "
            "current directory"
        ) from error
    names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
    return getattr(module, choose(factory_name, names or ["(nothing)"], f"factory in {module_name}"))


def _call(factory: Callable[[], object], spec: str) -> object:
    try:
        return factory()
    except ValueError:
        raise
    except Exception as error:  # whatever a stranger's factory does
        raise ValueError(
            f"{spec} failed ({type(error).__name__}: {error}); it is called without arguments and returns a sampler or "
            "a target"
        ) from error


def _target(made: object, spec: str) -> Target:
    missing = [name for name in _NEEDED if not hasattr(made, name)]
    if missing:
        raise ValueError(
            f"{spec} returned a {type(made).__name__}, expected a sampler (order, start, step) or a target "
            f"({', '.join(_NEEDED)}): it lacks {', '.join(missing)}"
            + ("; return an object, not its class" if inspect.isclass(made) else "")
        )
    return cast("Target", made)


@lru_cache(maxsize=16384)
def _times(spacing: Spacing, schedule: Schedule, num_steps: int) -> tuple[float, ...]:
    return spacing(schedule, num_steps)


@lru_cache(maxsize=16384)
def _levels(spacing: Spacing, schedule: Schedule, num_steps: int) -> Level:
    return schedule.at(torch.tensor(_times(spacing, schedule, num_steps), dtype=torch.float64))
