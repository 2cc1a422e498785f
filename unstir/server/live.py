"""Live: what is going on now: how far jobs are, how their pictures look on the way, who watches.

Knows: jobs that have not ended, the last ones that have, drafts, and what each watcher was not told yet.
Does not know: who draws, how anything is kept, HTTP.

A watcher that is slow holds nobody up and costs no memory: of previews it gets the newest, of pictures and of the end
it misses none. All is called on one event loop, but for ``is_watched``.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field, replace

import numpy
from numpy.typing import NDArray

from unstir.pipeline import Request
from unstir.server.jobs import Event, Job, Picture, State, Status

LOOK_SECONDS = 10.0
"""How long previews are made for somebody who polls."""

_ENDED = 256  # jobs that are remembered after their end
_DRAFT_BYTES = 64 * 2**20  # of pictures of drafts that have ended
_MOVED_SECONDS = 0.25  # how often watchers are told that those ahead of them moved on


@dataclass(kw_only=True, eq=False)
class Watcher:
    """What somebody was not told yet."""

    woke: asyncio.Event = field(default_factory=asyncio.Event)
    pictures: deque[int] = field(default_factory=lambda: deque[int]())
    previews: dict[int, NDArray[numpy.uint8]] = field(default_factory=lambda: dict[int, NDArray[numpy.uint8]]())
    has_moved: bool = False
    is_over: bool = False

    def next(self, status: Status) -> Event | None:
        """What to tell next, if there is anything."""
        if self.pictures:
            self.has_moved = False  # a picture says so too
            return Event(kind="picture", status=status, index=self.pictures.popleft())
        if status.job.is_ended:
            return Event(kind="end", status=status)
        if self.previews:
            self.has_moved = False
            index = next(iter(self.previews))
            return Event(kind="preview", status=status, index=index, pixels=self.previews.pop(index))
        if self.has_moved:
            self.has_moved = False
            return Event(kind="status", status=status)
        return None


@dataclass(kw_only=True, eq=False)
class Entry:
    """A job that goes on, or did a moment ago.

    Args:
        job: the job.
        number: in order of arrival.
        step: steps done, a number a picture.
        previews: that there were, a number a picture.
        drawn: its finished pictures.
        pixels: the last preview of each picture that is not finished.
        watchers: who is told.
        ended: set at its end.
        drafts: of a draft: its finished pictures, as PNG files.
    """

    job: Job
    number: int
    step: list[int]
    previews: list[int]
    drawn: set[int]
    pixels: dict[int, NDArray[numpy.uint8]] = field(default_factory=lambda: dict[int, NDArray[numpy.uint8]]())
    watchers: set[Watcher] = field(default_factory=lambda: set[Watcher]())
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    drafts: dict[int, tuple[Picture, bytes]] = field(default_factory=lambda: dict[int, tuple[Picture, bytes]]())


class Live:
    """Jobs in memory."""

    def __init__(self) -> None:
        self._active: dict[str, Entry] = {}  # in order of arrival
        self._ended: OrderedDict[str, Entry] = OrderedDict()  # the oldest end first
        self._drafts: OrderedDict[str, Entry] = OrderedDict()  # the same of drafts, which are nowhere else
        self._number = 0
        self._positions: dict[str, int] | None = None
        self._moving: asyncio.TimerHandle | None = None
        self._watched: dict[str, float] = {}  # until when; read by other threads
        self._units = 0.0
        self._is_closed = False

    def __contains__(self, job: str) -> bool:
        """Whether a job is remembered."""
        return self._find(job) is not None

    def add(self, job: Job, drawn: Iterable[int] = ()) -> None:
        """Remember a job, which has not ended.

        Args:
            job: the job.
            drawn: those of its pictures that are finished already.
        """
        done = set(drawn)
        step = [request.steps if index in done else 0 for index, request in enumerate(job.requests)]
        self._number += 1
        entry = Entry(job=job, number=self._number, step=step, previews=[0] * len(step), drawn=done)
        self._active[job.id] = entry
        self._units += units_left(entry)
        self._positions = None

    def forget(self, job: str) -> None:
        """Know nothing of a job any more; its watchers are left alone."""
        entry = self._active.pop(job, None)
        if entry is not None:
            self._units -= units_left(entry)
            self._positions = None
        gone = entry or self._ended.pop(job, None) or self._drafts.pop(job, None)
        if gone is not None:
            self._leave(gone)

    def started(self, job: str) -> None:
        """Its first picture is begun."""
        entry = self._active.get(job)
        if entry is not None and entry.job.state == "queued":
            entry.job = replace(entry.job, state="running")
            self._positions = None
            self._tell(entry)

    def moved(self, job: str, index: int, step: int, pixels: NDArray[numpy.uint8] | None) -> float:
        """A picture has gone so many steps.

        Args:
            job: whose it is.
            index: which.
            step: steps done.
            pixels: what is believed of it, if somebody wanted to see it.

        Returns:
            The work that was done, in steps of a picture of 64x64 without guidance.
        """
        entry = self._active.get(job)
        if entry is None or index in entry.drawn:
            return 0.0
        done = _cost(entry.job.requests[index]) * max(0, step - entry.step[index])
        self._units -= done
        entry.step[index] = max(step, entry.step[index])
        if pixels is not None:
            entry.pixels[index] = pixels
            entry.previews[index] += 1
            for watcher in entry.watchers:
                watcher.previews[index] = pixels
        self._tell(entry)
        return done

    def drawn(self, job: str, index: int, draft: tuple[Picture, bytes] | None = None) -> None:
        """A picture is finished, and kept.

        Args:
            job: whose it is.
            index: which.
            draft: the picture itself, if it is kept nowhere else.
        """
        entry = self._active.get(job)
        if entry is None:
            return
        self._units -= _cost(entry.job.requests[index]) * (entry.job.requests[index].steps - entry.step[index])
        entry.step[index] = entry.job.requests[index].steps
        entry.drawn.add(index)
        entry.pixels.pop(index, None)
        if draft is not None:
            entry.drafts[index] = draft
        for watcher in entry.watchers:
            watcher.previews.pop(index, None)
            watcher.pictures.append(index)
        self._tell(entry)

    def end(self, job: str, state: State, error: str = "") -> None:
        """Nothing more happens to a job."""
        entry = self._active.pop(job, None)
        if entry is None:
            return
        self._units = self._units - units_left(entry) if self._active else 0.0
        self._positions = None
        entry.job = replace(entry.job, state=state, error=error)
        entry.pixels.clear()
        entry.ended.set()
        self._watched.pop(job, None)
        self._tell(entry)
        (self._drafts if entry.job.is_draft else self._ended)[job] = entry
        self._trim()
        if self._moving is None and not self._is_closed:
            self._moving = asyncio.get_running_loop().call_later(_MOVED_SECONDS, self._tell_those_behind)

    def deleted(self, job: str, index: int) -> None:
        """A finished picture is gone."""
        entry = self._find(job)
        if entry is not None:
            entry.drawn.discard(index)
            entry.drafts.pop(index, None)
            if entry.job.is_ended and not entry.drawn:
                self.forget(job)

    def status(self, job: str) -> Status | None:
        """How far a job is, if it is remembered."""
        entry = self._find(job)
        return None if entry is None else self._status(entry)

    def draft(self, job: str, index: int) -> tuple[Picture, bytes] | None:
        """A finished picture of a draft, while it is remembered."""
        entry = self._find(job)
        return None if entry is None else entry.drafts.get(index)

    def pixels(self, job: str, index: int) -> NDArray[numpy.uint8] | None:
        """The last preview of a picture that is not finished."""
        entry = self._active.get(job)
        return None if entry is None else entry.pixels.get(index)

    def look(self, job: str) -> None:
        """Somebody polls a job: previews are made for a while."""
        if job in self._active:
            self._watched[job] = max(time.monotonic() + LOOK_SECONDS, self._watched.get(job, 0.0))

    def is_watched(self, job: str) -> bool:
        """Whether somebody wants to see previews; in any thread."""
        return self._watched.get(job, 0.0) > time.monotonic()

    def watch(self, job: str) -> AsyncGenerator[Event]:
        """What happens to a job that is remembered: its status as it is now, its last previews, and so on to the end.

        Raises:
            KeyError: if it is not remembered.
        """
        return self._events(self._known(job))

    async def settled(self, job: str) -> Status:
        """The status at the end of a job, or as it is if everything is closed before.

        Raises:
            KeyError: if it is not remembered.
        """
        entry = self._known(job)
        await entry.ended.wait()
        return self._status(entry)

    def close(self) -> None:
        """Let all watchers go."""
        self._is_closed = True
        if self._moving is not None:
            self._moving.cancel()
        for entry in self._active.values():
            self._leave(entry)

    @property
    def waiting(self) -> int:
        """Jobs that have not begun."""
        return len(self._active) - self.running

    @property
    def running(self) -> int:
        """Jobs that have begun and not ended."""
        return sum(entry.job.state == "running" for entry in self._active.values())

    @property
    def active(self) -> int:
        """Jobs that have not ended."""
        return len(self._active)

    @property
    def units(self) -> float:
        """Work that is left, in the units of ``moved``."""
        return max(0.0, self._units)

    async def _events(self, entry: Entry) -> AsyncGenerator[Event]:
        watcher = Watcher(is_over=self._is_closed)
        if not entry.job.is_ended:
            entry.watchers.add(watcher)
            self._watched[entry.job.id] = float("inf")
        try:
            yield Event(kind="status", status=self._status(entry))
            before = {index: pixels for index, pixels in entry.pixels.items() if index not in watcher.previews}
            watcher.previews = {**before, **watcher.previews}
            while True:
                while (event := watcher.next(self._status(entry))) is not None:
                    yield event
                    if event.kind == "end":
                        return
                if watcher.is_over:
                    return
                await watcher.woke.wait()
                watcher.woke.clear()
        finally:
            entry.watchers.discard(watcher)
            if not entry.watchers and self._watched.get(entry.job.id) == float("inf"):
                del self._watched[entry.job.id]

    def _status(self, entry: Entry) -> Status:
        return Status(
            job=entry.job,
            position=self._position(entry),
            step=sum(entry.step),
            steps=sum(request.steps for request in entry.job.requests),
            previews=tuple(entry.previews),
            drawn=tuple(sorted(entry.drawn)),
        )

    def _position(self, entry: Entry) -> int:
        """Jobs that came before; drafts, which pass all others, are counted among themselves."""
        if entry.job.state != "queued":
            return 0
        if self._positions is None:
            self._positions = {}
            counts = {True: 0, False: 0}
            for each in self._active.values():
                self._positions[each.job.id] = counts[each.job.is_draft]
                counts[each.job.is_draft] += 1
        return self._positions.get(entry.job.id, 0)

    def _tell(self, entry: Entry) -> None:
        for watcher in entry.watchers:
            watcher.has_moved = True
            watcher.woke.set()

    def _tell_those_behind(self) -> None:
        self._moving = None
        for entry in self._active.values():
            if entry.job.state == "queued":
                self._tell(entry)

    def _leave(self, entry: Entry) -> None:
        entry.ended.set()
        for watcher in entry.watchers:
            watcher.is_over = True
            watcher.woke.set()

    def _trim(self) -> None:
        while len(self._ended) > _ENDED:
            self._ended.popitem(last=False)
        held = sum(_num_bytes(entry) for entry in self._drafts.values())
        while len(self._drafts) > _ENDED or (held > _DRAFT_BYTES and len(self._drafts) > 1):
            held -= _num_bytes(self._drafts.popitem(last=False)[1])

    def _find(self, job: str) -> Entry | None:
        return self._active.get(job) or self._ended.get(job) or self._drafts.get(job)

    def _known(self, job: str) -> Entry:
        entry = self._find(job)
        if entry is None:
            raise KeyError(job)
        return entry


def units_left(entry: Entry) -> float:
    """What is still to be done for a job, in the units of ``moved``."""
    return sum(
        _cost(request) * (request.steps - step) for request, step in zip(entry.job.requests, entry.step, strict=True)
    )


def _cost(request: Request) -> float:
    """Of a step."""
    return request.width * request.height / 64**2 * (1 if request.guidance_scale == 1 else 2)


def _num_bytes(entry: Entry) -> int:
    return sum(len(data) for _, data in entry.drafts.values())
