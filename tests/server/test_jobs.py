"""Jobs as values: which states are the last, and that a job is what it was when it was accepted."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from typing import get_args

import pytest

from unstir.server.jobs import ENDED, Job, State

JOB = Job(id="0" * 32, model="tiny", created=0.0, requests=())


def test_a_job_is_queued_first_and_ends_in_one_of_three_ways() -> None:
    assert JOB.state == "queued"
    assert [state for state in get_args(State) if state not in ENDED] == ["queued", "running"]


@pytest.mark.parametrize("state", get_args(State))
def test_whether_a_job_has_ended(state: State) -> None:
    assert replace(JOB, state=state).is_ended == (state in ("done", "failed", "cancelled"))


def test_a_job_that_was_told_of_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        JOB.state = "done"  # type: ignore[misc]
