"""``unstir bench solvers``: error to the exact probability flow by number of network calls, beside diffusers.

Knows: which solvers run on which problems, what is compared with what.
Does not know: how a problem is solved exactly, how calls are counted, how a scheduler of diffusers is driven.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch

from unstir.bench import theirs
from unstir.bench.contender import Contender, Group, Row, Walk, measure
from unstir.bench.exact import CHAINS, Problem, pose, require_whole
from unstir.config import choose
from unstir.device import one_thread
from unstir.diffusion.denoiser import Denoiser
from unstir.diffusion.process import GaussianProcess
from unstir.diffusion.samplers import SAMPLERS, Sampler
from unstir.diffusion.schedule import Schedule
from unstir.diffusion.spacing import SPACINGS, Spacing
from unstir.diffusion.tuning import end_of, tune
from unstir.typing import X

Advance = Callable[[str, int, int], None]
"""(stage of the work, steps done, steps in all): called often."""

DIMENSIONS = (2, 16, 64, 768, 3072)
CALLS = (5, 8, 10, 15, 20, 50)
STARTS = 256
REFERENCE = 1000
MOST = 2**16  # dimensions, and starts
MOST_CALLS = 1000  # the steps of the chain
QUICK_DIMENSIONS = (2, 64)
QUICK_STARTS = 64
QUICK_REFERENCE = 500
ON_OURS = ("uniform_log_snr",)
"""Our grids that are given to schedulers of diffusers, beside the default's."""

Fitted = Callable[[int], tuple[Sampler[Any], tuple[float, ...]]]
"""(number of calls) -> our default sampler and its grid, for one problem."""

Measure = Literal["median", "rms"]
_DEFAULT: tuple[Group, ...] = ("default",)
_OURS: tuple[Group, ...] = ("unstir",)
_THEIRS: tuple[Group, ...] = ("diffusers",)
_ALL_THEIRS: tuple[Group, ...] = ("diffusers", "diffusers extra")
_SMALLEST = 1e-300  # stands for an error of 0 in a mean of logarithms


@dataclass(frozen=True, kw_only=True, eq=False)
class Solved:
    """A problem, and what every contender reached on it."""

    problem: Problem
    rows: Sequence[Row]


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """What a run found.

    Args:
        schedule: a name in ``exact.CHAINS``.
        seed: of laws and starts.
        calls: numbers of network calls that were allowed.
        solved: one a dimension.
        diffusers: its version, or None where it is not installed.
    """

    schedule: str
    seed: int
    calls: Sequence[int]
    solved: Sequence[Solved]
    diffusers: str | None


def default_run(
    oracle: Denoiser, schedule: Schedule, starts_for_tuning: X, calls: int
) -> tuple[Sampler[Any], tuple[float, ...]]:
    """The sampler and the grid that unstir draws with, where nobody asks for another: THE place that says so here.

    Args:
        oracle: the model; a grid may be fitted to it.
        schedule: that it was trained on.
        starts_for_tuning: noise at t = 1; never what is measured with.
        calls: network calls that a run may make.
    """
    tuned = tune(oracle, GaussianProcess(schedule=schedule), starts_for_tuning, calls)
    return tuned, tuned.times


@one_thread()
def bench_solvers(
    *,
    dimensions: Sequence[int] = DIMENSIONS,
    calls: Sequence[int] = CALLS,
    starts: int = STARTS,
    seed: int = 0,
    schedule: str = "linear",
    reference: int = REFERENCE,
    advance: Advance,
) -> Result:
    """Run every contender on every problem.

    Args:
        dimensions: numbers in a sample, one problem each.
        calls: numbers of network calls that a run may make.
        starts: from so many.
        seed: of laws and starts.
        schedule: a name in ``exact.CHAINS``.
        reference: Runge-Kutta steps of the exact solution.
        advance: called often.

    Raises:
        ValueError: if a number is too small, or there is no such schedule.
    """
    require_whole("dimensions", dimensions, 1, MOST)
    require_whole("calls", calls, 1, MOST_CALLS)
    require_whole("starts", [starts], 1, MOST)
    chain = CHAINS[choose(schedule, CHAINS, "schedule")]()
    version, own = theirs.version(), ours(chain)
    solved: list[Solved] = []
    for dimension in dict.fromkeys(dimensions):
        stage = f"{dimension} dimensions"
        problem = pose(
            dimension,
            chain,
            seed=seed,
            starts=starts,
            steps=reference,
            advance=lambda done, total, stage=stage: advance(f"{stage}: exact solution", done, total),
        )
        fitted = our_default(problem)
        everyone = [default_contender(problem, fitted), *own]
        if version is not None:
            given = {name: SPACINGS[name] for name in ON_OURS}
            everyone += theirs.contenders(schedule, chain, given, default=lambda calls, fitted=fitted: fitted(calls)[1])
        rows: list[Row] = []
        for place, contender in enumerate(everyone, start=1):
            rows += [measure(contender, problem, allowed) for allowed in dict.fromkeys(calls)]
            advance(f"{stage}: solvers", place, len(everyone))
        solved.append(Solved(problem=problem, rows=rows))
    return Result(schedule=schedule, seed=seed, calls=tuple(dict.fromkeys(calls)), solved=solved, diffusers=version)


def ours(schedule: Schedule) -> list[Contender]:
    """Every sampler that does not draw, on every grid."""
    samplers = {name: factory() for name, factory in SAMPLERS.items()}
    return [
        Contender(group="unstir", solver=name, grid=grid, walk=_walk(sampler, schedule, spacing))
        for name, sampler in samplers.items()
        if sampler.order > 0
        for grid, spacing in SPACINGS.items()
    ]


def our_default(problem: Problem) -> Fitted:
    """What ``default_run`` says, asked once a number of calls: fitting a grid may take long."""

    @lru_cache
    def fitted(calls: int) -> tuple[Sampler[Any], tuple[float, ...]]:
        return default_run(problem.law, problem.schedule, problem.tuning, calls)

    return fitted


def default_contender(problem: Problem, fitted: Fitted) -> Contender:
    """Our default, which is told how many calls it may make."""

    def walk(denoise: Denoiser, x: X, calls: int) -> X:
        sampler, times = fitted(calls)
        return end_of(sampler, denoise, GaussianProcess(schedule=problem.schedule), x, times)

    return Contender(group="default", solver="default", grid="default", walk=walk, is_told_calls=True)


def _walk(sampler: Sampler[Any], schedule: Schedule, spacing: Spacing) -> Walk:
    process = GaussianProcess(schedule=schedule)
    return lambda denoise, x, num_steps: end_of(sampler, denoise, process, x, spacing(schedule, num_steps))


def summary(result: Result) -> list[dict[str, Any]]:
    """For each number of calls and each measure: our default beside the best of diffusers; None where there is none.

    ``default``, ``diffusers`` (the best on each problem, which no single scheduler need be), ``single`` (the scheduler
    whose own mean is best, ``name``) and ``extra`` (as ``diffusers``, with its less common grids) are geometric means
    over problems; ``problems`` has the same for each one, with names. A ratio is theirs to ours: above 1 where unstir
    is nearer to the truth.
    """
    return [_compared(result, allowed, measure) for allowed in result.calls for measure in ("median", "rms")]


def _compared(result: Result, allowed: int, measure: Measure) -> dict[str, Any]:
    problems: list[dict[str, Any]] = []
    owns, bests, extras = list[float | None](), list[float | None](), list[float | None]()
    for solved in result.solved:
        own, best, extra = (_best(solved.rows, allowed, measure, groups) for groups in (_DEFAULT, _THEIRS, _ALL_THEIRS))
        for row, errors in ((own, owns), (best, bests), (extra, extras)):
            errors.append(None if row is None else getattr(row, measure))
        problems.append(
            {
                "dimension": solved.problem.dimension,
                "default": owns[-1],
                **_beside("diffusers", bests[-1], owns[-1]),
                "name": None if best is None else best.name,
                **_beside("extra", extras[-1], owns[-1]),
                "extra_name": None if extra is None else extra.name,
            }
        )
    name, single = _best_single(result.solved, allowed, measure)
    own = _mean(owns)
    return {
        "calls": allowed,
        "measure": measure,
        "default": own,
        **_beside("diffusers", _mean(bests), own),
        **_beside("single", single, own),
        "name": name,
        **_beside("extra", _mean(extras), own),
        "problems": problems,
    }


def _best_single(solved: Sequence[Solved], allowed: int, measure: Measure) -> tuple[str | None, float | None]:
    """The scheduler of diffusers, on its own grid, that is best in the mean over problems."""
    errors: dict[str, list[float | None]] = {}
    for each in solved:
        for row in each.rows:
            if row.group in _THEIRS and row.allowed == allowed:
                errors.setdefault(row.name, []).append(getattr(row, measure))
    means = {name: mean for name, values in errors.items() if (mean := _mean(values)) is not None}
    name = min(means, key=lambda name: means[name], default=None)
    return name, None if name is None else means[name]


def _best(rows: Iterable[Row], allowed: int, measure: Measure, groups: Sequence[Group]) -> Row | None:
    able = [row for row in rows if row.group in groups and row.allowed == allowed and not row.failure]
    return min(able, key=lambda row: getattr(row, measure), default=None)


def _beside(what: str, error: float | None, own: float | None) -> dict[str, float | None]:
    return {what: error, f"{what}_ratio": error / own if error and own else None}


def _mean(values: Iterable[float | None]) -> float | None:
    """The geometric mean; None where a value is missing."""
    given = list(values)
    known = [max(value, _SMALLEST) for value in given if value is not None]
    return math.exp(statistics.fmean(map(math.log, known))) if known and len(known) == len(given) else None


def columns(result: Result) -> list[str]:
    """Heads of a table of ``cells``."""
    return ["solver", "grid", *(str(allowed) for allowed in result.calls)]


def cells(solved: Solved, calls: Sequence[int]) -> list[list[str]]:
    """One line a solver and grid, one cell a number of calls: RMS / median, and the calls made where they are fewer."""
    lines: dict[tuple[Group, str, str], list[str]] = {}
    by_place = {(row.group, row.solver, row.grid, row.allowed): row for row in solved.rows}
    for row in solved.rows:
        key = (row.group, row.solver, row.grid)
        lines[key] = [_cell(by_place[(*key, allowed)]) for allowed in calls]
    return [[_label(group, solver), grid, *line] for (group, solver, grid), line in lines.items()]


def failures(solved: Solved) -> list[str]:
    """Every failure with its reason, one line a solver, grid and reason."""
    found: dict[tuple[str, str], list[int]] = {}
    for row in solved.rows:
        if row.failure:
            found.setdefault((f"{_label(row.group, row.solver)}, {row.grid}", row.failure), []).append(row.allowed)
    return [
        f"{name} with {', '.join(str(allowed) for allowed in calls)} calls: {reason}"
        for (name, reason), calls in found.items()
    ]


def _label(group: Group, solver: str) -> str:
    return solver if group == "default" else f"{group}: {solver}"


def _cell(row: Row) -> str:
    if row.rms is None or row.median is None:
        return "failed"
    fewer = "" if row.calls == row.allowed else f" ({row.calls})"
    return f"{row.rms:.1e} / {row.median:.1e}{fewer}"


SUMMARY_COLUMNS = ("calls", "measure", "default", "diffusers", "ratio", "one scheduler", "ratio", "with extra", "ratio")
PROBLEM_COLUMNS = ("dimensions", "calls", "measure", "default", "diffusers", "ratio", "with extra", "ratio")


def summary_cells(lines: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The means of ``summary``, each with its ratio to our default.

    Columns: our default, the best of diffusers on each problem, its best single scheduler, and the best on each problem
    with the less common grids too.
    """
    return [
        [
            str(line["calls"]),
            line["measure"],
            _error(line["default"]),
            *(_error(line["diffusers"]), _factor(line["diffusers_ratio"])),
            *(_named(line["single"], line["name"]), _factor(line["single_ratio"])),
            *(_error(line["extra"]), _factor(line["extra_ratio"])),
        ]
        for line in lines
    ]


def problem_cells(lines: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The same, problem by problem, with the names of the best."""
    return [
        [
            str(each["dimension"]),
            str(line["calls"]),
            line["measure"],
            _error(each["default"]),
            *(_named(each["diffusers"], each["name"]), _factor(each["diffusers_ratio"])),
            *(_named(each["extra"], each["extra_name"]), _factor(each["extra_ratio"])),
        ]
        for line in lines
        for each in line["problems"]
    ]


def _named(error: float | None, name: str | None) -> str:
    return _error(error) if name is None else f"{_error(error)} {name}"


def _error(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def _factor(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def figures(result: Result) -> dict[str, Any]:
    """Everything, for programs."""
    lines = summary(result)
    return {
        "schedule": result.schedule,
        "seed": result.seed,
        "calls": list(result.calls),
        "diffusers": result.diffusers,
        "torch": torch.__version__,
        "summary": lines,
        "summary_table": {"columns": list(SUMMARY_COLUMNS), "rows": summary_cells(lines)},
        "problem_table": {"columns": list(PROBLEM_COLUMNS), "rows": problem_cells(lines)},
        "problems": [
            {
                "dimension": solved.problem.dimension,
                "starts": len(solved.problem.starts),
                "reference_steps": solved.problem.steps,
                "reference_rms": solved.problem.reference_rms,
                "reference_worst": solved.problem.reference_worst,
                "table": {"columns": columns(result), "rows": cells(solved, result.calls)},
                "failures": failures(solved),
                "rows": [
                    {
                        "group": row.group,
                        "solver": row.solver,
                        "grid": row.grid,
                        "allowed": row.allowed,
                        "calls": row.calls,
                        "rms": row.rms,
                        "median": row.median,
                        "failure": row.failure,
                    }
                    for row in solved.rows
                ],
            }
            for solved in result.solved
        ],
    }


def draw(result: Result, figure: Any) -> None:
    """Median error by number of calls on a figure of matplotlib: one panel a problem.

    Lines: our default, and whatever of ours and of diffusers is the best of its kind at some number of calls.
    """
    axes = figure.subplots(1, len(result.solved), squeeze=False)[0]
    for panel, solved in zip(axes, result.solved, strict=True):
        for (group, name), style in _shown(solved, result.calls).items():
            rows = [row for row in solved.rows if (row.group, row.name) == (group, name) and row.median]
            label = "default" if group == "default" else f"{group}: {name}"
            panel.plot([row.calls for row in rows], [row.median for row in rows], style, markersize=3, label=label)
        panel.axhline(solved.problem.reference_rms, color="grey", linewidth=0.5, label="error of the exact solution")
        panel.set(xscale="log", yscale="log", xlabel="network calls", title=f"{solved.problem.dimension} dimensions")
        panel.set_xticks(result.calls, [str(allowed) for allowed in result.calls])
        panel.minorticks_off()
        panel.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    axes[0].set_ylabel("median over starts of the RMS error")


def _shown(solved: Solved, calls: Sequence[int]) -> dict[tuple[Group, str], str]:
    """The lines of a panel and their styles."""
    shown: dict[tuple[Group, str], str] = {("default", "default, default"): "k-o"}
    for groups, style in ((_OURS, "-s"), (_ALL_THEIRS, "--^")):
        for best in (_best(solved.rows, allowed, "median", groups) for allowed in calls):
            if best is not None:
                shown.setdefault((best.group, best.name), style)
    return shown
