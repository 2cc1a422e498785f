"""The benchmark of solvers: who takes part, what is compared with what, tables for people and programs."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch

from unstir.bench import solvers as module
from unstir.bench import theirs
from unstir.bench.contender import Group, Row
from unstir.bench.exact import Problem, linear, pose
from unstir.bench.solvers import (
    PROBLEM_COLUMNS,
    SUMMARY_COLUMNS,
    Result,
    Solved,
    bench_solvers,
    cells,
    columns,
    default_contender,
    default_run,
    draw,
    failures,
    figures,
    our_default,
    ours,
    problem_cells,
    summary,
    summary_cells,
)
from unstir.diffusion.samplers import SAMPLERS
from unstir.diffusion.spacing import SPACINGS

# diffusers hands torch tensors to numpy in ways that newer numpy deprecates.
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.usefixtures("fitted_fast")]


def silent(stage: str, done: int, total: int) -> None:
    """Nobody looks."""


@pytest.fixture(scope="module")
def problem() -> Problem:
    return pose(2, linear(), seed=0, starts=4, steps=100)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    return monkeypatch


def row(group: Group, solver: str, median: float | None, allowed: int = 5, rms: float | None = None) -> Row:
    rms = 2 * median if rms is None and median else rms
    failure = "" if median else "not finite"
    return Row(
        group=group, solver=solver, grid="g", allowed=allowed, calls=allowed, rms=rms, median=median, failure=failure
    )


def result_of(problem: Problem, *rows: list[Row]) -> Result:
    solved = [Solved(problem=problem, rows=each) for each in rows]
    return Result(schedule="linear", seed=0, calls=(5,), solved=solved, diffusers="0")


def test_ours_are_all_that_do_not_draw_on_all_grids() -> None:
    found = ours(linear())
    deterministic = {name for name, factory in SAMPLERS.items() if factory().order > 0}
    assert {each.solver for each in found} == deterministic
    assert "ancestral" not in deterministic
    assert {each.grid for each in found} == set(SPACINGS)
    assert len(found) == len(deterministic) * len(SPACINGS)


def test_the_default_makes_the_calls_that_it_is_allowed(problem: Problem) -> None:
    """And its error falls with them."""
    rows = [module.measure(default_contender(problem, our_default(problem)), problem, calls) for calls in (4, 8, 12)]
    assert [each.calls for each in rows] == [4, 8, 12]
    medians = [each.median or math.nan for each in rows]
    assert medians == sorted(medians, reverse=True)
    assert medians[-1] < 0.03
    sampler, times = default_run(problem.law, problem.schedule, problem.tuning, 6)
    assert sampler.order >= 1
    assert times[0] == 1
    assert times[-1] == 0


def test_the_default_is_never_shown_the_starts_it_is_measured_with(problem: Problem, monkeypatch) -> None:
    seen = []

    def watched(oracle, schedule, starts_for_tuning, calls):
        seen.append(starts_for_tuning)
        return default_run(oracle, schedule, starts_for_tuning, calls)

    monkeypatch.setattr(module, "default_run", watched)
    fitted = our_default(problem)
    contender = default_contender(problem, fitted)
    assert all(module.measure(contender, problem, 3).calls == 3 for _ in range(2))
    assert len(fitted(3)[1]) == 4
    assert [starts is problem.tuning for starts in seen] == [True]  # and it is fitted once
    assert not torch.equal(problem.tuning, problem.starts)


def test_without_diffusers_ours_are_measured_alone(alone: object) -> None:
    result = bench_solvers(dimensions=[2, 2], calls=[3, 5, 3], starts=2, reference=20, advance=silent)
    assert result.diffusers is None
    assert result.calls == (3, 5)
    (solved,) = result.solved
    assert {each.group for each in solved.rows} == {"default", "unstir"}
    assert len(solved.rows) == 2 * (1 + len(ours(linear())))
    for each in solved.rows:
        assert each.failure or 0 < each.calls <= each.allowed
    lines = summary(result)
    assert [(line["calls"], line["measure"]) for line in lines] == [
        (calls, measure) for calls in (3, 5) for measure in ("median", "rms")
    ]
    assert all(line["diffusers"] is line["single_ratio"] is line["name"] is None for line in lines)
    assert "-" in summary_cells(lines)[0]


def test_with_diffusers_both_are_in_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("diffusers")
    monkeypatch.setattr(theirs, "SOLVERS", theirs.SOLVERS[:4])
    monkeypatch.setattr(module, "SPACINGS", {"uniform_log_snr": SPACINGS["uniform_log_snr"]})
    stages = []
    result = bench_solvers(
        dimensions=[1, 2], calls=[4, 6], starts=3, reference=20, advance=lambda stage, *_: stages.append(stage)
    )
    assert result.diffusers == theirs.version()
    assert list(dict.fromkeys(stages)) == [
        f"{dimension} dimensions: {what}" for dimension in (1, 2) for what in ("exact solution", "solvers")
    ]
    for solved in result.solved:
        groups = {each.group for each in solved.rows}
        assert groups == {"default", "unstir", "diffusers", "diffusers extra", "diffusers on our grid"}
        failed = [line for line in failures(solved) if line.startswith("diffusers: PNDM, plain")]
        assert [line.split(": ValueError")[0][-7:] for line in failed] == ["4 calls", "6 calls"]
        table = cells(solved, result.calls)
        assert len(table) == len(solved.rows) / 2
        assert all(len(line) == len(columns(result)) == 4 for line in table)
        assert ["diffusers: PNDM", "plain", "failed", "failed"] in table
    lines = summary(result)
    for line in lines:
        assert line["diffusers"] / line["default"] == pytest.approx(line["diffusers_ratio"])
        assert line["extra"] <= line["diffusers"] <= line["single"]
        assert [each["dimension"] for each in line["problems"]] == [1, 2]
    assert all(len(each) == len(SUMMARY_COLUMNS) for each in summary_cells(lines))
    assert all(len(each) == len(PROBLEM_COLUMNS) for each in problem_cells(lines))
    assert len(problem_cells(lines)) == 8
    read = json.loads(json.dumps(figures(result), allow_nan=False))
    assert read["problems"][1]["starts"] == 3
    assert len(read["problems"][0]["rows"]) == len(result.solved[0].rows)


def test_the_summary_is_by_geometric_means_and_names_the_best(problem: Problem) -> None:
    """On the first problem A is best, on the second B; C is second on both and best in the mean."""
    first = [
        row("default", "default", 0.1),
        row("unstir", "other", 0.001),
        row("diffusers", "A", 0.2),
        row("diffusers", "B", 3.2),
        row("diffusers", "C", 0.3),
        row("diffusers extra", "D", 0.05),
        row("diffusers on our grid", "A", 0.001),
    ]
    second = [
        row("default", "default", 0.4),
        row("diffusers", "A", 3.2),
        row("diffusers", "B", 0.8),
        row("diffusers", "C", 1.2),
        row("diffusers extra", "D", None),
    ]
    median, rms = summary(result_of(problem, first, second))
    assert median["default"] == pytest.approx(0.2)
    assert median["diffusers"] == pytest.approx(0.4)
    assert median["diffusers_ratio"] == pytest.approx(2)
    assert (median["name"], median["single"]) == ("C, g", pytest.approx(0.6))
    assert median["single_ratio"] == pytest.approx(3)
    assert median["extra"] == pytest.approx(0.2)
    assert [each["name"] for each in median["problems"]] == ["A, g", "B, g"]
    assert [each["extra_name"] for each in median["problems"]] == ["D, g", "B, g"]
    assert median["problems"][0]["extra_ratio"] == pytest.approx(0.5)
    assert rms["default"] == pytest.approx(0.4)
    assert summary_cells([median])[0] == ["5", "median", "2.0e-01", "4.0e-01", "2.00", "6.0e-01 C, g", "3.00", "2.0e-01", "1.00"]  # fmt: skip


def test_a_failed_scheduler_is_not_the_best_and_a_failed_default_has_no_ratio(problem: Problem) -> None:
    rows = [row("default", "default", None), row("diffusers", "A", None), row("diffusers", "B", 0.5)]
    median, _ = summary(result_of(problem, rows))
    assert (median["default"], median["diffusers_ratio"]) == (None, None)
    assert (median["name"], median["diffusers"]) == ("B, g", pytest.approx(0.5))


def test_cells_say_where_fewer_calls_were_made(problem: Problem) -> None:
    rows = [Row(group="unstir", solver="s", grid="g", allowed=5, calls=4, rms=0.5, median=0.25)]
    assert cells(Solved(problem=problem, rows=rows), [5]) == [["unstir: s", "g", "5.0e-01 / 2.5e-01 (4)"]]


def test_a_plot_has_a_panel_a_problem_and_the_best_of_each_kind(problem: Problem) -> None:
    figure_module = pytest.importorskip("matplotlib.figure")
    rows = [
        row("default", "default", 0.1),
        row("unstir", "o", 0.2),
        row("diffusers", "A", 0.3),
        row("diffusers", "B", 0.4),
    ]
    figure = figure_module.Figure()
    draw(result_of(problem, rows, rows), figure)
    assert len(figure.axes) == 2
    labels = [line.get_label() for line in figure.axes[0].get_lines()]
    assert labels == ["default", "unstir: o, g", "diffusers: A, g", "error of the exact solution"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"dimensions": [0]}, "dimensions"),
        ({"dimensions": []}, "dimensions"),
        ({"dimensions": [10**6]}, "dimensions must be whole numbers from 1 to 65536, got 1000000"),
        ({"calls": [5, 0]}, "calls must be whole numbers from 1 to 1000, got 5, 0"),
        ({"starts": 0}, "starts"),
        ({"schedule": "linar"}, "did you mean linear"),
        ({"reference": 1}, "reference"),
    ],
)
def test_bad_input_is_one_sentence(given: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        bench_solvers(**{"dimensions": [2], "calls": [2], "starts": 1, **given}, advance=silent)
