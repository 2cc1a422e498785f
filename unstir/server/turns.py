"""Turns: which waiting pictures are in the next network call.

Knows: short work before long work, order of arrival, how much of a call longer work may have beside shorter, patience.
Does not know: what is drawn, networks, threads, jobs.

All that waits is of some length, in powers of four of the work that its job was when it came. A call belongs to the
shortest: whoever asks for one picture does not stand behind somebody's hundred. Those have at most as large a part of
the call as the shorter work has itself, so that a short job takes about twice its own time at worst, and a long one
goes on all the while. Among equals the first comes first and is drawn to its end, as it would be without neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

PATIENCE = 32
"""Network calls after which whoever waits is taken first, whatever else there is."""

DRAFT = -1
"""The length of what is drawn before everything else."""


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """A picture that waits for its network to be asked.

    Args:
        key: who it is.
        kind: only those of one kind can be in one call.
        length: as ``length_of`` says, or ``DRAFT``.
        order: of arrival.
        rows: of the call that are its own.
        passed: network calls since it waits.
    """

    key: int
    kind: Hashable
    length: int
    order: tuple[int, int]
    rows: int
    passed: int = 0


def length_of(work: float) -> int:
    """How long a job is, in powers of four of its work.

    Args:
        work: rows of all network calls that it takes, at least 1.
    """
    return math.floor(math.log(max(work, 1.0), 4) + 1e-9)


def next_call(waiting: Sequence[Waiting], most: int) -> list[Waiting]:
    """Those in the next call, the one whom it belongs to first.

    Args:
        waiting: at least one.
        most: rows of a call; a picture that has more rows is alone.
    """
    first = _first(waiting)
    others = sorted(
        (each for each in waiting if each.kind == first.kind and each.key != first.key),
        key=lambda each: (each.length, each.order),
    )
    chosen, rows, longer = [first], first.rows, 0
    own = first.rows  # rows of work that is as short as the first
    for each in others:
        if rows + each.rows > most:
            continue
        if each.length > first.length:
            if longer + each.rows > own:
                continue
            longer += each.rows
        else:
            own += each.rows
        chosen.append(each)
        rows += each.rows
    return chosen


def _first(waiting: Sequence[Waiting]) -> Waiting:
    patient = [each for each in waiting if each.passed >= PATIENCE]
    if patient:
        return max(patient, key=lambda each: (each.passed, -each.length, [-part for part in each.order]))
    return min(waiting, key=lambda each: (each.length, each.order))
