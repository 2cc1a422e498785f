"""What an experiment found."""

from __future__ import annotations

import pytest

from unstir.verify.outcome import Outcome, failed_if, made, not_applicable, told


@pytest.mark.parametrize(
    ("problem", "status"), [(False, "passed"), ([], "passed"), (0, "passed"), (["x"], "failed"), (3, "failed")]
)
def test_any_problem_fails(problem: object, status: str) -> None:
    outcome = failed_if(problem, "1", "2")
    assert (outcome.status, outcome.measured, outcome.expected, outcome.note) == (status, "1", "2", "")


def test_what_does_not_apply_says_why() -> None:
    outcome = not_applicable("no order is promised", "1.9")
    assert (outcome.status, outcome.measured, outcome.note) == ("not_applicable", "1.9", "no order is promised")


def test_an_exception_is_a_failure_in_one_line() -> None:
    def experiment() -> Outcome:
        raise IndexError("index 8 is out of bounds \nfor dimension 0")

    outcome = made(experiment)
    assert (outcome.status, outcome.measured) == ("failed", "IndexError: index 8 is out of bounds")
    assert made(lambda: failed_if(False, "1", "1")).status == "passed"
    assert told(ValueError()) == "ValueError"
