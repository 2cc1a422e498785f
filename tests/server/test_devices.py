"""Several workers as if they were one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest

from unstir.pipeline import Pipeline, Result, load
from unstir.server.devices import Devices
from unstir.server.worker import Work


@pytest.fixture(scope="module")
def small(noisy_model: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return load(noisy_model(tmp_path_factory.mktemp("model")), device="cpu", precision="float32")


class Heard:
    """Remembers which thread drew which job."""

    def __init__(self, jobs: int) -> None:
        self.left, self.all = jobs, threading.Event()
        self.lock = threading.Lock()
        self.threads: dict[str, set[int]] = {}
        self.results: dict[str, Result] = {}
        self.failures: dict[str, str] = {}
        self.first: Callable[[], None] = lambda: None

    def started(self, job: str) -> None:
        self.threads.setdefault(job, set()).add(threading.get_ident())
        self.first()

    def is_watched(self, job: str) -> bool:
        return False

    def moved(self, job: str, index: int, step: int, pixels: Any) -> None:
        self.threads[job].add(threading.get_ident())

    def drawn(self, job: str, index: int, result: Result) -> None:
        self.results[job] = result

    def ended(self, job: str) -> None:
        with self.lock:
            self.left -= 1
            if not self.left:
                self.all.set()

    def failed(self, job: str, sentence: str) -> None:
        self.failures[job] = sentence
        self.ended(job)


def test_each_draws_its_share_and_the_pictures_are_the_same(small: Pipeline) -> None:
    heard = Heard(jobs=9)
    devices = Devices([{"small": small}, {"small": small}], heard)
    requests = {f"{i}": small.request("red cat", seed=i, steps=4) for i in range(8)}
    long = small.request("blue", seed=9, steps=32)  # as much as all others: it is somebody's only one
    devices.submit(Work(job="long", model="small", requests=(long,), album={}, todo=(0,)))
    for job, request in requests.items():
        devices.submit(Work(job=job, model="small", requests=(request,), album={}, todo=(0,)))
    devices.start()
    assert heard.all.wait(60)
    assert devices.is_alive
    assert devices.counts.pictures == 9
    assert all(len(threads) == 1 for threads in heard.threads.values())
    assert heard.threads["long"].isdisjoint(set().union(*[heard.threads[job] for job in requests]))
    for job, request in requests.items():
        (alone,) = [item for item in small.run([request]) if isinstance(item, Result)]
        difference = numpy.asarray(heard.results[job].picture).astype(int) - numpy.asarray(alone.picture)
        assert abs(difference).max() <= 1
    assert devices.call(lambda: 3).result(60) == 3
    devices.stop()
    assert not devices.is_alive
    assert devices._steps == [0, 0]


def test_a_job_is_called_off_where_it_is_drawn(small: Pipeline) -> None:
    heard = Heard(jobs=2)
    devices = Devices([{"small": small}, {"small": small}], heard)
    heard.first = lambda: devices.cancel("b")
    for job in ("a", "b"):
        request = small.request("red", seed=1, steps=3 if job == "a" else 900)
        devices.submit(Work(job=job, model="small", requests=(request,), album={}, todo=(0,)))
    devices.cancel("nobody")
    devices.start()
    assert heard.all.wait(60)
    devices.stop()
    assert set(heard.results) == {"a"}
    assert not heard.failures
