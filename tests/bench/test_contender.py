"""Contenders: calls are counted, steps fitted to them, and what goes wrong is told in the row."""

from __future__ import annotations

import pytest
import torch

from unstir.bench.contender import Contender, Walk, calls_of, measure, steps_within
from unstir.bench.exact import Problem, linear, pose
from unstir.diffusion.denoiser import Denoiser
from unstir.typing import X
from unstir.verify.target import level_of

LEVEL = level_of(torch.tensor(1.0), torch.tensor(1e-6))


@pytest.fixture(scope="module")
def problem() -> Problem:
    return pose(2, linear(), seed=0, starts=4, steps=60)


def asking(a: int, b: int = 0) -> Walk:
    """A walk that makes a N + b calls."""

    def walk(denoise: Denoiser, x: X, num_steps: int) -> X:
        for _ in range(a * num_steps + b):
            denoise(x, LEVEL)
        return x

    return walk


def contender(walk: Walk, *, is_told_calls: bool = False) -> Contender:
    return Contender(group="unstir", solver="mine", grid="its own", walk=walk, is_told_calls=is_told_calls)


@pytest.mark.parametrize(("a", "b"), [(1, 0), (2, -1), (2, 0), (1, 1), (1, 9), (3, -2), (4, 3)])
@pytest.mark.parametrize("allowed", [13, 15, 20, 50])
def test_the_most_steps_that_fit(a: int, b: int, allowed: int) -> None:
    walk = asking(a, b)
    num_steps = steps_within(walk, allowed)
    assert calls_of(walk, num_steps) == a * num_steps + b <= allowed
    assert num_steps == allowed or calls_of(walk, num_steps + 1) > allowed


def test_one_step_may_be_too_much() -> None:
    with pytest.raises(ValueError, match="one step makes 3 calls"):
        steps_within(asking(3), 2)


def test_a_row_has_the_errors_over_starts(problem: Problem) -> None:
    offsets = torch.tensor([0.1, 0.2, 0.3, 4.0], dtype=torch.float64)[:, None]

    def walk(denoise: Denoiser, x: X, num_steps: int) -> X:
        denoise(x, LEVEL)
        return problem.ends + offsets if len(x) > 1 else x

    row = measure(contender(walk), problem, 5)
    assert (row.calls, row.allowed, row.failure, row.name) == (1, 5, "", "mine, its own")
    assert row.median == pytest.approx(0.2)  # torch's median is the lower of the two
    assert row.rms == pytest.approx(offsets.square().mean().sqrt().item())


def test_calls_of_the_run_itself_are_counted(problem: Problem) -> None:
    assert measure(contender(asking(2, 1)), problem, 8).calls == 7
    assert measure(contender(asking(1), is_told_calls=True), problem, 8).calls == 8


def test_failures_are_told_not_hidden(problem: Problem) -> None:
    def broken(denoise: Denoiser, x: X, num_steps: int) -> X:
        raise RuntimeError("two\nlines")

    def nothing(denoise: Denoiser, x: X, num_steps: int) -> X:
        return x * torch.nan

    for walk, words, told in (
        (broken, "RuntimeError: two lines", False),
        (nothing, "not finite", False),
        (asking(1, 1), "made 6 calls", True),
        (asking(9), "one step makes 9 calls", False),
    ):
        row = measure(contender(walk, is_told_calls=told), problem, 5)
        assert (row.rms, row.median) == (None, None)
        assert words in row.failure
