"""Devices: several workers, one a device, as if they were one.

Knows: which of them has least to do.
Does not know: what is drawn, how, or for whom.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import reduce
from typing import TypeVar

import numpy
from numpy.typing import NDArray

from unstir.pipeline import Pipeline, Result
from unstir.server.worker import Counts, Listener, Work, Worker

_T = TypeVar("_T")


class Devices:
    """Workers side by side; a job is drawn whole by the one that has least to do when it comes.

    Args:
        pipes: the models of each device, by name; the same names everywhere.
        listener: who is told, in the thread of each worker.
    """

    def __init__(self, pipes: Sequence[Mapping[str, Pipeline]], listener: Listener) -> None:
        self._lock = threading.Lock()
        self._steps = [0] * len(pipes)  # that each still has to go
        self._jobs: dict[str, tuple[int, int]] = {}  # who draws a job, and its steps
        heard = _Heard(listener, self._over)
        self._workers = [Worker(each, heard) for each in pipes]

    def start(self) -> None:
        """Begin to draw."""
        for worker in self._workers:
            worker.start()

    def submit(self, work: Work) -> None:
        """Have a job drawn; from any thread."""
        steps = sum(work.requests[index].steps for index in work.todo)
        with self._lock:
            place = self._steps.index(min(self._steps))
            self._steps[place] += steps
            self._jobs[work.job] = (place, steps)
        self._workers[place].submit(work)

    def cancel(self, job: str) -> None:
        """Call a job off; from any thread."""
        with self._lock:
            place = self._jobs.get(job)
        if place is not None:
            self._workers[place[0]].cancel(job)

    def call(self, function: Callable[[], _T]) -> Future[_T]:
        """Have something computed by the first of them, between two network calls."""
        return self._workers[0].call(function)

    def stop(self) -> None:
        """End all of them after the network calls that are being made."""
        for worker in self._workers:
            worker.stop()

    @property
    def is_alive(self) -> bool:
        """Whether all of them draw or wait for work."""
        return all(worker.is_alive for worker in self._workers)

    @property
    def counts(self) -> Counts:
        """What they did so far, together."""
        return reduce(Counts.plus, [worker.counts for worker in self._workers])

    def _over(self, job: str) -> None:
        with self._lock:
            place, steps = self._jobs.pop(job, (0, 0))
            self._steps[place] -= steps


class _Heard:
    """Tells a listener everything, and first who has less to do now."""

    def __init__(self, listener: Listener, over: Callable[[str], None]) -> None:
        self._over = over
        self._listener = listener

    def started(self, job: str) -> None:
        self._listener.started(job)

    def is_watched(self, job: str) -> bool:
        return self._listener.is_watched(job)

    def moved(self, job: str, index: int, step: int, pixels: NDArray[numpy.uint8] | None) -> None:
        self._listener.moved(job, index, step, pixels)

    def drawn(self, job: str, index: int, result: Result) -> None:
        self._listener.drawn(job, index, result)

    def ended(self, job: str) -> None:
        self._over(job)
        self._listener.ended(job)

    def failed(self, job: str, sentence: str) -> None:
        self._over(job)
        self._listener.failed(job, sentence)
