"""The suite: every statement on every target, and what came of it.

Knows: which targets are ours, which statements are asked for, how a crash is told.
Does not know: how a statement is measured, or how a report is shown.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from unstir import __version__
from unstir.config import choose
from unstir.device import one_thread
from unstir.diffusion.samplers import SAMPLERS, Sampler
from unstir.verify.outcome import Outcome, Status, made, not_applicable
from unstir.verify.statements import STATEMENTS
from unstir.verify.target import Case, targets_of

_OURS: dict[str, str] = {
    **{name: name for name in ("ancestral", "ddim", "dpm++2m", "dpm++3m", "unipc", "unipc3", "deis", "plms")},
    "euler": "ddim",
    "euler_ancestral": "ancestral",
    "heun": "heun, reach 2",
}
"""The formula in ``FORMULAS`` or ``VARIANCES`` that a sampler takes its steps by, where one is known here."""

UNSTIR = "unstir"
"""The name under which statements about our own mathematics are reported."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One statement on one target.

    Args:
        id: of the statement.
        statement: its sentence.
        target: its name.
        status: passed, failed or not_applicable.
        measured: what was found.
        expected: what should have been.
        note: why it is not applicable, or what is known of a failure.
        command: that shows it again.
    """

    id: str
    statement: str
    target: str
    status: Status
    measured: str
    expected: str
    note: str
    command: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """All rows, and what they were made with."""

    rows: tuple[Row, ...]
    versions: dict[str, str]
    seconds: float

    def count(self, status: Status) -> int:
        """How many rows have this status."""
        return sum(row.status == status for row in self.rows)

    @property
    def failures(self) -> tuple[Row, ...]:
        """The rows that failed."""
        return tuple(row for row in self.rows if row.status == "failed")


@dataclass(frozen=True, kw_only=True, eq=False)
class Check:
    """One experiment that is still to be made: a statement, on a case, or (None) on our own mathematics."""

    id: str
    case: Case | None


def own_cases() -> list[Case]:
    """Every sampler of ``SAMPLERS`` on every schedule and every spacing of ours."""
    cases: list[Case] = []
    for name, kind in SAMPLERS.items():
        sampler: Sampler[Any] = kind()
        cases += [Case(target=target) for target in targets_of(name, sampler, _OURS.get(name))]
    return cases


def plan(cases: Sequence[Case] | None = None, only: Sequence[str] | None = None) -> list[Check]:
    """The experiments to be made.

    Args:
        cases: what is verified; without any, all of our own, and our mathematics.
        only: ids of statements; without any, all.

    Raises:
        ValueError: if there is no statement of such an id.
    """
    ids = [choose(name, STATEMENTS, "statement") for name in only] if only else list(STATEMENTS)
    checks: list[Check] = []
    for name in ids:
        statement = STATEMENTS[name]
        if cases is None and statement.on_unstir is not None:
            checks.append(Check(id=name, case=None))
        if statement.on_target is not None:
            checks += [Check(id=name, case=case) for case in (own_cases() if cases is None else cases)]
    if not checks:
        raise ValueError(f"{', '.join(ids)} says nothing about a target of its own; leave the target away")
    return checks


def verify(checks: Sequence[Check], progress: Callable[[float, str], None] | None = None) -> Report:
    """Make the experiments of a plan. Nothing that a target does, short of hanging, ends the suite.

    Args:
        checks: what ``plan`` gave.
        progress: told how many are done, and which one is next.
    """
    started = time.perf_counter()
    rows: list[Row] = []
    with one_thread():
        for i, check in enumerate(checks):
            if progress is not None:
                progress(i, f"{check.id} {_name(check.case)}")
            rows.append(_row(check))
    return Report(rows=tuple(rows), versions=_versions(), seconds=round(time.perf_counter() - started, 1))


def _row(check: Check) -> Row:
    statement = STATEMENTS[check.id]
    outcome = made(lambda: _experiment(check))
    known = "" if check.case is None else check.case.target.promise.notes.get(check.id, "")
    return Row(
        id=check.id,
        statement=statement.sentence,
        target=_name(check.case),
        status=outcome.status,
        measured=outcome.measured,
        expected=outcome.expected,
        note=known if outcome.status == "failed" else outcome.note,
        command=_command(check),
    )


def _experiment(check: Check) -> Outcome:
    statement = STATEMENTS[check.id]
    if check.case is not None and statement.on_target is not None:
        return statement.on_target(check.case.target)
    if check.case is None and statement.on_unstir is not None:
        return statement.on_unstir()
    return not_applicable("the statement is not about this")


def _name(case: Case | None) -> str:
    return UNSTIR if case is None else case.target.name


def _command(check: Check) -> str:
    target = "" if check.case is None or check.case.spec is None else f" --target {shlex.quote(check.case.spec)}"
    return f"unstir verify{target} --only {check.id}"


def _versions() -> dict[str, str]:
    versions = {"unstir": __version__, "torch": str(torch.__version__)}
    if "diffusers" in sys.modules:
        versions["diffusers"] = str(sys.modules["diffusers"].__version__)
    return versions
