"""What an experiment found.

Knows: passed, failed, not applicable; what was measured beside what was expected.
Does not know: which statement was put to the test, or on what.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Status = Literal["passed", "failed", "not_applicable"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One experiment's result.

    Args:
        status: passed, failed or not_applicable.
        measured: what was found.
        expected: what should have been.
        note: why it is not applicable.
    """

    status: Status
    measured: str = ""
    expected: str = ""
    note: str = ""


def failed_if(problem: object, measured: str, expected: str) -> Outcome:
    """Failed if there is a problem (anything true), else passed."""
    return Outcome(status="failed" if problem else "passed", measured=measured, expected=expected)


def not_applicable(note: str, measured: str = "") -> Outcome:
    """The statement says nothing about this target, for the reason given."""
    return Outcome(status="not_applicable", measured=measured, note=note)


def made(experiment: Callable[[], Outcome]) -> Outcome:
    """The outcome of an experiment; whatever a target raises is a failure, not an end of the suite."""
    try:
        return experiment()
    except Exception as error:
        return Outcome(status="failed", measured=told(error), expected="no exception")


def told(error: Exception) -> str:
    """An exception in one line."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__
