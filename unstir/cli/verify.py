"""``unstir verify``: the conformance suite, on unstir itself or on anyone's sampler.

Knows: which target and statements are asked for, what is printed, when the status is 1.
Does not know: what any statement says.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from unstir.cli.output import print_json, progress_bar

if TYPE_CHECKING:
    from unstir.verify.suite import Report, Row

_WORDS = {"passed": "passed", "failed": "FAILED", "not_applicable": "n/a"}


def verify(
    *,
    target: str | None = None,
    only: str | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Hold a sampler or scheduler against exact answers; without a target, everything of unstir itself.

    Example: unstir verify --target mine:make_sampler --only C14,C17

    Exit status 1 if a statement failed.

    Parameters
    ----------
    target
        package.module:factory, also of a file in this folder; called without arguments, it returns a sampler (order,
        start, step) or a target. unstir.verify.diffusers_adapter:every takes the schedulers of diffusers.
    only
        Statements by their ids, joined by commas. Without it: all.
    json
        Print one JSON object instead of text.
    """
    from unstir.verify.suite import UNSTIR, plan
    from unstir.verify.suite import verify as run
    from unstir.verify.target import load_cases

    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    ids = None if only is None else [name.strip() for name in only.split(",") if name.strip()]
    if ids == []:
        raise ValueError("no statement was named; give ids as in --only C14,C17, or leave the option away")
    with redirect_stdout(sys.stderr):  # a stranger's module may print what it likes
        checks = plan(None if target is None else load_cases(target), ids)
        with progress_bar("verifying", len(checks)) as advance:
            report = run(checks, advance)
    if json:
        counts = {status: report.count(status) for status in ("passed", "failed", "not_applicable")}
        rows = [asdict(row) for row in report.rows]
        result = {"target": target or UNSTIR, **counts, "statements": rows}
        print_json({**result, "versions": report.versions, "seconds": report.seconds})
    else:
        _print(report)
    return 1 if report.failures else 0


def _print(report: Report) -> None:
    width = max(80, shutil.get_terminal_size((120, 24)).columns)
    for name in dict.fromkeys(row.id for row in report.rows):
        rows = [row for row in report.rows if row.id == name]
        print(f"{name:5} {_WORDS[_worst(rows)]:7} {rows[0].statement}")
        for line in textwrap.wrap(_found(rows), width - 14):
            print(f"{'':14}{line}")
    if report.failures:
        print()
    for row in report.failures:
        note = f" ({row.note})" if row.note else ""
        print(f"FAILED {row.id}, {row.target}: {row.measured}; expected: {row.expected}{note}\n    {row.command}")
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    print(
        f"\n{report.count('passed')} passed, {report.count('failed')} failed, "
        f"{report.count('not_applicable')} not applicable ({versions}; {report.seconds:.0f} s)"
    )


def _worst(rows: Sequence[Row]) -> str:
    statuses = {row.status for row in rows}
    return next(status for status in ("failed", "passed", "not_applicable") if status in statuses)


def _found(rows: Sequence[Row]) -> str:
    """Measured against expected for one target; for several, on how many."""
    if len(rows) == 1:
        (row,) = rows
        if row.status == "not_applicable":
            return f"{row.note}{f' (measured: {row.measured})' if row.measured else ''}"
        return f"{row.measured}; expected: {row.expected}"
    counts = {word: sum(row.status == status for row in rows) for status, word in _WORDS.items()}
    return ", ".join(f"{word} on {count}" for word, count in counts.items() if count)
