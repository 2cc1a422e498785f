"""Jobs: what was accepted, how far it is and what has come of it, as values.

Knows: states of a job, what is told of it to whoever asks or watches.
Does not know: who keeps these values, who draws, HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy
from numpy.typing import NDArray

from unstir.pipeline import Request

State = Literal["queued", "running", "done", "failed", "cancelled"]

ENDED: frozenset[State] = frozenset({"done", "failed", "cancelled"})
"""States that nothing follows."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A finished picture.

    Args:
        job: whose it is.
        index: which of its requests it comes from.
        request: what was drawn.
        created: when it was finished, in seconds since 1970.
        seconds: that it took.
        warnings: what the user should know of it.
    """

    job: str
    index: int
    request: Request
    created: float
    seconds: float
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What was accepted.

    Args:
        id: 32 hexadecimal digits that nobody can guess.
        model: the name of the model that draws it.
        created: when it was accepted, in seconds since 1970.
        requests: a request a picture, fully said: seeds are drawn, defaults are filled in.
        is_draft: whether it is only for a look: drawn before everything else and never kept.
        state: of it.
        error: why it failed, in one sentence; else empty.
    """

    id: str
    model: str
    created: float
    requests: tuple[Request, ...]
    is_draft: bool = False
    state: State = "queued"
    error: str = ""

    @property
    def is_ended(self) -> bool:
        """Whether nothing more happens to it."""
        return self.state in ENDED


@dataclass(frozen=True, kw_only=True)
class Status:
    """How far a job is.

    Args:
        job: the job.
        position: jobs ahead of it; 0 once it runs or has ended.
        step: steps done, of all its pictures together.
        steps: steps in all.
        previews: a number a picture: how many previews of it there were so far.
        drawn: the indices of its finished pictures, in order, without those that were deleted.
    """

    job: Job
    position: int
    step: int
    steps: int
    previews: tuple[int, ...]
    drawn: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Event:
    """What happened to a job that somebody watches.

    Args:
        kind: what: its status changed, there is a preview or a finished picture, or it ended.
        status: the job as it is now.
        index: of a preview or picture, whose; else -1.
        pixels: of a preview ("h w 3"); else None.
    """

    kind: Literal["status", "preview", "picture", "end"]
    status: Status
    index: int = -1
    pixels: NDArray[numpy.uint8] | None = None
