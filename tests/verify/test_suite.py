"""The suite: everything of ours is planned and passes; nothing that a target does ends it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from unstir import __version__
from unstir.diffusion.samplers import DDIM, SAMPLERS
from unstir.diffusion.schedule import SCHEDULES, Cosine
from unstir.diffusion.spacing import SPACINGS, trailing
from unstir.verify.statements import STATEMENTS
from unstir.verify.suite import UNSTIR, own_cases, plan, verify
from unstir.verify.target import Case, SamplerTarget, promise_of

PROMISE = promise_of(DDIM(), Cosine(), trailing)
TARGET = SamplerTarget(name="mine", sampler=DDIM(), schedule=Cosine(), spacing=trailing, promise=PROMISE)


def test_everything_of_ours_is_planned() -> None:
    """Every sampler, schedule and spacing is picked up from its registry."""
    targets: list[Any] = [case.target for case in own_cases()]
    assert {target.sampler for target in targets} == {kind() for kind in SAMPLERS.values()}
    assert {type(target.schedule) for target in targets} == set(SCHEDULES.values())
    assert {target.spacing for target in targets} == set(SPACINGS.values())
    checks = plan()
    assert {check.id for check in checks} == set(STATEMENTS)
    assert {check.id for check in checks if check.case is None} == {
        name for name, statement in STATEMENTS.items() if statement.on_unstir is not None
    }


@pytest.mark.parametrize("name", STATEMENTS)
def test_ours_passes(name: str) -> None:
    """Every sampler at one of its places, another one for each statement; `unstir verify` and the slow test below take
    all.
    """
    checks, turn = plan(None, [name]), list(STATEMENTS).index(name)
    own, about = [check for check in checks if check.case is None], [check for check in checks if check.case]
    places = len(about) // len(SAMPLERS)  # the cases of a sampler follow each other
    some = [about[i * places + (i * 5 + turn) % places] for i in range(len(SAMPLERS) if about else 0)]
    report = verify(own + some)
    assert not report.failures, report.failures
    assert report.rows


@pytest.mark.slow
def test_all_of_ours_passes() -> None:
    report = verify(plan())
    assert not report.failures, report.failures


def test_a_target_is_asked_about_what_is_about_targets() -> None:
    checks = plan([Case(target=TARGET, spec="mine:make")])
    assert [check.id for check in checks] == [name for name, each in STATEMENTS.items() if each.on_target is not None]
    with pytest.raises(ValueError, match="leave the target away"):
        plan([Case(target=TARGET)], ["C8"])
    with pytest.raises(ValueError, match="did you mean C14"):
        plan(None, ["C144"])


def test_rows_tell_all_there_is() -> None:
    seen: list[tuple[float, str]] = []
    broken = replace(TARGET, promise=replace(PROMISE, order=3, notes={"C14": "known"}))
    checks = plan([Case(target=broken, spec="mine:make it")], ["C14", "C17", "C6"])
    report = verify(checks, lambda done, text: seen.append((done, text)))
    failed, passed, skipped = report.rows
    assert (failed.id, failed.status, failed.note, failed.expected) == ("C14", "failed", "known", "order 3")
    assert failed.command == "unstir verify --target 'mine:make it' --only C14"
    assert failed.measured.startswith("order 0.99")
    assert (passed.status, passed.note, passed.statement) == ("passed", "", STATEMENTS["C17"].sentence)
    assert (skipped.status, skipped.target) == ("not_applicable", "mine")
    assert skipped.note
    assert report.failures == (failed,)
    assert [report.count(status) for status in ("passed", "failed", "not_applicable")] == [1, 1, 1]
    assert [done for done, _ in seen] == [0, 1, 2]
    assert seen[0][1] == "C14 mine"
    assert report.versions["unstir"] == __version__
    assert report.versions["torch"] == torch.__version__


def test_our_own_rows_name_no_target() -> None:
    (row,) = verify(plan(None, ["C8"])).rows
    assert (row.target, row.command) == (UNSTIR, "unstir verify --only C8")


class Hostile:
    """Raises wherever it can."""

    name = "hostile"
    promise = PROMISE

    @property
    def trained(self) -> Any:
        raise ZeroDivisionError("trained")

    def levels(self, num_steps: int) -> Any:
        raise KeyError("levels")

    def run(self, denoise: Any, x: Any, num_steps: int, noise: Any, start: int = 0) -> Any:
        raise RuntimeError("run")


def test_nothing_that_a_target_does_ends_the_suite() -> None:
    report = verify(plan([Case(target=Hostile())]))
    assert Counter(row.status for row in report.rows)["passed"] == 0
    assert all(row.measured for row in report.failures)


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    verify(plan(None, ["C8"]))
    assert torch.get_num_threads() == before
