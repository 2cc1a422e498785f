"""Worker: the thread that owns a device, and draws what all jobs ask for in shared network calls.

Knows: how walks are begun, joined in a network call and answered; whom it tells.
Does not know: where jobs come from, who waits for them, how anything is kept.

Only this thread computes: two threads that both ask for all cores slow each other down more than twofold.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, TypeVar, cast

import numpy
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from unstir.condition import Condition
from unstir.data.transforms import to_bytes
from unstir.device import autocast, resolve_precision
from unstir.editing import Album
from unstir.pipeline import Pipeline, Preview, Request, Result
from unstir.server.reading import Readings
from unstir.server.turns import DRAFT, Waiting, length_of, next_call
from unstir.server.walk import Call, Walk, ask

MOST = 16
"""Pictures in one network call."""

_T = TypeVar("_T")
_LOG = logging.getLogger(__name__)
_ROWS = 2  # of a network call that a picture has: one with its words, one without
_JOINED = 4  # joined conditions that are kept: the same company is asked step after step


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """One job for a device.

    Args:
        job: its id.
        model: which of the worker's models draws it.
        requests: what is drawn, fully said.
        album: the pictures that they name.
        todo: which of them are still to be drawn.
        is_draft: whether it is drawn before everything else.
    """

    job: str
    model: str
    requests: tuple[Request, ...]
    album: Album
    todo: tuple[int, ...]
    is_draft: bool = False


class Listener(Protocol):
    """Whoever is told how work goes on: in the worker's thread, so quickly; and it never raises."""

    def started(self, job: str) -> None:
        """The first picture of a job is begun."""
        ...

    def is_watched(self, job: str) -> bool:
        """Whether somebody wants to see how its pictures come out of the noise."""
        ...

    def moved(self, job: str, index: int, step: int, pixels: NDArray[numpy.uint8] | None) -> None:
        """A picture has gone so many steps; what is believed of it ("h w 3"), if somebody wants to see it."""
        ...

    def drawn(self, job: str, index: int, result: Result) -> None:
        """A picture is there."""
        ...

    def ended(self, job: str) -> None:
        """Everything that was to be drawn is, or the job was called off."""
        ...

    def failed(self, job: str, sentence: str) -> None:
        """A job cannot be drawn."""
        ...


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What a worker did so far.

    Args:
        calls: of networks.
        rows: in all of them.
        steps: of pictures.
        pictures: that were drawn to the end.
        busy_seconds: in which there was something to draw.
    """

    calls: int = 0
    rows: int = 0
    steps: int = 0
    pictures: int = 0
    busy_seconds: float = 0.0

    def plus(self, other: Counts) -> Counts:
        """Both together."""
        return Counts(**{each.name: getattr(self, each.name) + getattr(other, each.name) for each in fields(Counts)})


@dataclass(kw_only=True, eq=False)
class _Picture:
    """A picture that is to be drawn or is on its way."""

    work: Work
    index: int
    length: int
    order: tuple[int, int]
    walk: Walk | None = None
    call: Call | None = None
    kind: Hashable = None
    passed: int = 0

    @property
    def request(self) -> Request:
        return self.work.requests[self.index]


class Worker:
    """Draws on one device.

    Args:
        pipes: its models, by name.
        listener: who is told.
        most: pictures in one network call.
    """

    def __init__(self, pipes: Mapping[str, Pipeline], listener: Listener, *, most: int = MOST) -> None:
        self._pipes = {name: pipe.through(ask, Readings()) for name, pipe in pipes.items()}
        self._listener = listener
        self._most = most * _ROWS
        self._orders: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="unstir-worker", daemon=True)
        self._is_stopped = False
        self._number = 0
        self._left: dict[str, int] = {}  # pictures that a job still lacks
        self._queued: dict[tuple[int, Hashable], deque[_Picture]] = {}  # by length and kind, in order of arrival
        self._walking: dict[int, _Picture] = {}
        self._joined: OrderedDict[tuple[int, ...], tuple[list[Condition], Condition]] = OrderedDict()
        self._counts = Counts()

    def start(self) -> None:
        """Begin to draw."""
        self._thread.start()

    def submit(self, work: Work) -> None:
        """Have a job drawn; from any thread."""
        self._orders.put(lambda: self._submit(work))

    def cancel(self, job: str) -> None:
        """Call a job off; it ends at its next step. From any thread."""
        self._orders.put(lambda: self._cancel(job))

    def call(self, function: Callable[[], _T]) -> Future[_T]:
        """Have something computed between two network calls; from any thread."""
        future: Future[_T] = Future()

        def order() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except BaseException as error:
                    future.set_exception(error)

        self._orders.put(order)
        return future

    def stop(self) -> None:
        """End after the network call that is being made. What is not drawn yet is neither ended nor failed."""

        def order() -> None:
            self._is_stopped = True

        self._orders.put(order)
        if self._thread.is_alive():
            self._thread.join()

    @property
    def is_alive(self) -> bool:
        """Whether it draws or waits for work."""
        return self._thread.is_alive()

    @property
    def counts(self) -> Counts:
        """What it did so far."""
        return self._counts

    def _run(self) -> None:
        torch.set_grad_enabled(False)  # in this thread
        try:
            while not self._is_stopped:
                self._obey()
                if not self._is_stopped and self._has_work:
                    started = time.perf_counter()
                    self._turn()
                    self._count(busy_seconds=time.perf_counter() - started)
        finally:
            for picture in self._walking.values():
                if picture.walk is not None:
                    picture.walk.leave()

    @property
    def _has_work(self) -> bool:
        return bool(self._walking or self._queued)

    def _obey(self) -> None:
        """Do what was ordered; wait for an order if there is nothing to draw."""
        if not self._has_work:
            self._orders.get()()
        while True:
            try:
                order = self._orders.get_nowait()
            except queue.Empty:
                return
            order()

    def _submit(self, work: Work) -> None:
        if not work.todo:
            self._listener.ended(work.job)
            return
        self._left[work.job] = len(work.todo)
        self._number += 1
        steps = sum(work.requests[index].steps for index in work.todo)
        length = DRAFT if work.is_draft else length_of(steps * _ROWS)
        for index in work.todo:
            picture = _Picture(work=work, index=index, length=length, order=(self._number, index))
            self._queued.setdefault((length, _outer_kind(picture)), deque()).append(picture)

    def _cancel(self, job: str) -> None:
        if self._left.pop(job, None) is not None:
            self._forget(job)
            self._listener.ended(job)

    def _forget(self, job: str) -> None:
        for key, pictures in list(self._queued.items()):
            kept = deque(each for each in pictures if each.work.job != job)
            if kept:
                self._queued[key] = kept
            else:
                del self._queued[key]
        for key, picture in list(self._walking.items()):
            if picture.work.job == job:
                del self._walking[key]
                if picture.walk is not None:
                    picture.walk.leave()

    def _turn(self) -> None:
        """Begin what there is room for, and make one network call."""
        self._begin()
        waiting = [
            Waiting(
                key=key,
                kind=each.kind,
                length=each.length,
                order=each.order,
                rows=cast(Call, each.call).x.shape[0],
                passed=each.passed,
            )
            for key, each in self._walking.items()
        ]
        if not waiting:
            return
        chosen = [self._walking[each.key] for each in next_call(waiting, self._most)]
        for each in self._walking.values():
            each.passed += 1
        for picture, answer in self._answers(chosen):
            picture.passed = 0
            if id(picture) in self._walking:  # its job may have failed with another of its pictures
                self._go(picture, answer)

    def _begin(self) -> None:
        """Begin pictures until a network call can be filled with each kind of each length."""
        rows: dict[tuple[int, Hashable], int] = {}
        for each in self._walking.values():
            key = (each.length, _outer_kind(each))
            rows[key] = rows.get(key, 0) + cast(Call, each.call).x.shape[0]
        for key in list(self._queued):
            while key in self._queued and rows.get(key, 0) < self._most:
                picture = self._queued[key].popleft()
                if not self._queued[key]:
                    del self._queued[key]
                self._open(picture)
                if picture.call is not None:
                    rows[key] = rows.get(key, 0) + picture.call.x.shape[0]

    def _open(self, picture: _Picture) -> None:
        work, index = picture.work, picture.index

        def look(preview: Preview) -> None:
            self._count(steps=1)
            pixels = _pixels(preview) if self._listener.is_watched(work.job) else None
            self._listener.moved(work.job, index, preview.index, pixels)

        if self._left[work.job] == len(work.todo) and index == work.todo[0]:
            self._listener.started(work.job)
        picture.walk = Walk(self._pipes[work.model], picture.request, work.album, look)
        self._walking[id(picture)] = picture
        self._go(picture, None)

    def _go(self, picture: _Picture, answer: Tensor | None) -> None:
        """Go on with a picture, to its next question or its end."""
        walk, job = cast(Walk, picture.walk), picture.work.job
        try:
            picture.call = walk.go(answer)
        except Exception as error:  # whatever is wrong with one picture, the others are drawn
            self._fail(job, error)
            return
        if picture.call is not None:
            picture.kind = _inner_kind(picture.call, picture.request.precision)
            return
        del self._walking[id(picture)]
        self._count(steps=1, pictures=1)
        self._listener.drawn(job, picture.index, cast(Result, walk.result))
        self._left[job] -= 1
        if not self._left[job]:
            del self._left[job]
            self._listener.ended(job)

    def _fail(self, job: str, error: Exception) -> None:
        self._left.pop(job, None)
        self._forget(job)
        self._listener.failed(job, sentence_of(error))

    def _answers(self, pictures: Sequence[_Picture]) -> Iterator[tuple[_Picture, Tensor]]:
        """What the network says to each; where it cannot say it to all together, it is asked one by one."""
        try:
            answers = self._asked(pictures)
        except Exception as error:
            if len(pictures) == 1:
                self._fail(pictures[0].work.job, error)
                return
            for picture in pictures:
                if id(picture) in self._walking:
                    yield from self._answers([picture])
            return
        yield from zip(pictures, answers, strict=True)

    def _asked(self, pictures: Sequence[_Picture]) -> list[Tensor]:
        calls = [cast(Call, picture.call) for picture in pictures]
        first, ask_of = calls[0], pictures[0]
        device = self._pipes[ask_of.work.model].device
        precision = resolve_precision(ask_of.request.precision, device)
        rows = [call.x.shape[0] for call in calls]
        if rows == [1]:  # kernels for one row may round differently: a network is never asked with one
            calls = [first, first]
        x = first.x if len(calls) == 1 else torch.cat([call.x for call in calls])
        scalar = first.scalar if len(calls) == 1 else torch.cat([call.scalar for call in calls])
        with autocast(device, precision):
            said = first.network(x, scalar, self._told([call.condition for call in calls]))
        self._count(calls=1, rows=sum(rows))
        return list(said[: sum(rows)].split(rows))

    def _told(self, conditions: list[Condition]) -> Condition:
        """The conditions of all, one after the other."""
        if len(conditions) == 1:
            return conditions[0]
        key = tuple(map(id, conditions))
        if key not in self._joined:
            self._joined[key] = (conditions, _joined(conditions))  # they are kept so that no id comes twice
            if len(self._joined) > _JOINED:
                self._joined.popitem(last=False)
        self._joined.move_to_end(key)
        return self._joined[key][1]

    def _count(self, **more: Any) -> None:
        before = self._counts
        self._counts = replace(before, **{name: getattr(before, name) + value for name, value in more.items()})


def sentence_of(error: Exception) -> str:
    """What is told of a picture that could not be drawn; what nobody foresaw is for the log alone."""
    if isinstance(error, (ValueError, ArithmeticError)):
        return str(error)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return "there is not enough memory for this picture; ask for a smaller one"
    _LOG.exception("a picture could not be drawn", exc_info=error)
    return "the picture could not be drawn; what went wrong stands in the server's log"


def _joined(conditions: Sequence[Condition]) -> Condition:
    """In halves, so that nothing is copied more often than it must be."""
    if len(conditions) == 1:
        return conditions[0]
    half = len(conditions) // 2
    return _joined(conditions[:half]).cat(_joined(conditions[half:]))


def _outer_kind(picture: _Picture) -> Hashable:
    """What pictures have in common that may share calls, as far as it can be seen before they begin."""
    request = picture.request
    return picture.work.model, request.width, request.height, request.precision, request.tile


_FILLED = ("kept", "word_weights", "labels")  # who does not say it says the usual, where it is joined with who does


def _inner_kind(call: Call, precision: str) -> Hashable:
    """What calls have in common that can be made as one."""
    told = {field.name: getattr(call.condition, field.name) for field in fields(call.condition)}
    shapes = tuple((name, each.shape[1:]) for name, each in told.items() if each is not None and name not in _FILLED)
    return id(call.network), call.x.shape[1:], call.x.dtype, precision, shapes


def _pixels(preview: Preview) -> NDArray[numpy.uint8]:
    drawn: UInt8[Tensor, "b 3 h w"] = to_bytes(preview.pictures).cpu()
    return numpy.ascontiguousarray(drawn[0].permute(1, 2, 0).numpy())
