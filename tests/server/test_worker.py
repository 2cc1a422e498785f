"""One thread that draws what many ask for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from unstir.editing import Album
from unstir.pipeline import Pipeline, Request, Result, load
from unstir.server.worker import Counts, Work, Worker, sentence_of


@pytest.fixture(scope="module")
def small(noisy_model: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return load(noisy_model(tmp_path_factory.mktemp("model")), device="cpu", precision="float32")


class Heard:
    """Listens, and remembers; a job may be given something to do at one of its steps."""

    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []
        self.results: dict[tuple[str, int], Result] = {}
        self.errors: dict[str, str] = {}
        self.over: dict[str, threading.Event] = {}
        self.watched: set[str] = set()
        self.at: dict[tuple[str, int], Callable[[], None]] = {}

    def started(self, job: str) -> None:
        self.said.append(("started", job))

    def is_watched(self, job: str) -> bool:
        return job in self.watched

    def moved(self, job: str, index: int, step: int, pixels: Any) -> None:
        self.said.append(("moved", job, index, step, pixels))
        self.at.pop((job, step), lambda: None)()

    def drawn(self, job: str, index: int, result: Result) -> None:
        self.said.append(("drawn", job, index))
        self.results[job, index] = result

    def ended(self, job: str) -> None:
        self.said.append(("ended", job))
        self._end(job)

    def failed(self, job: str, sentence: str) -> None:
        self.errors[job] = sentence
        self._end(job)

    def _end(self, job: str) -> None:
        self.over.setdefault(job, threading.Event()).set()

    def wait(self, *jobs: str) -> None:
        for job in jobs:
            assert self.over.setdefault(job, threading.Event()).wait(60), job


class Drawing:
    """A worker with its listener."""

    def __init__(self, pipe: Pipeline, **options: Any) -> None:
        self.heard, self.pipe = Heard(), pipe
        self.worker = Worker({"small": pipe}, self.heard, **options)

    def draw(
        self,
        job: str,
        *requests: Request,
        album: Album | None = None,
        todo: tuple[int, ...] | None = None,
        is_draft: bool = False,
    ) -> None:
        whole = tuple(range(len(requests))) if todo is None else todo
        self.worker.submit(
            Work(job=job, model="small", requests=requests, album=album or {}, todo=whole, is_draft=is_draft)
        )

    def require_equal(self, job: str, index: int, request: Request, album: Album | None = None) -> None:
        alone = [item for item in self.pipe.run([request], album=album) if isinstance(item, Result)]
        difference = numpy.asarray(self.heard.results[job, index].picture).astype(int) - numpy.asarray(alone[0].picture)
        assert abs(difference).max() <= 1, request


@pytest.fixture
def drawing(small: Pipeline) -> Any:
    made = Drawing(small)
    made.worker.start()
    yield made
    made.worker.stop()
    assert not made.worker.is_alive


def test_jobs_of_all_kinds_share_calls_and_come_out_as_if_alone(drawing: Drawing) -> None:
    pipe = drawing.pipe
    edits, album = pipe.edit_requests(Image.new("RGB", (16, 16), "blue"), "cat", seed=9, steps=5, strength=0.6)
    jobs: dict[str, list[Request]] = {
        "plain": [pipe.request("red cat", seed=i) for i in range(5)],
        "heun": [pipe.request("blue", seed=7, steps=7, sampler="heun")],
        "noisy": [pipe.request("cat", seed=8, steps=4, sampler="ancestral", eta=0.0)],
        "free": [pipe.request("cat", seed=8, steps=6, guidance_scale=1.0)],
        "negative": [pipe.request("cat", seed=8, negative="red blue", steps=3)],
        "weighted": [pipe.request("a (red:1.5) cat", seed=2, syntax="weighted")],
        "bf16": [pipe.request("red", seed=4, precision="bf16")],
        "tiled": [pipe.request("red", seed=4, tile=True)],
        "edit": list(edits),
    }
    for job, requests in jobs.items():
        drawing.draw(job, *requests, album=album)
    drawing.heard.wait(*jobs)
    assert not drawing.heard.errors
    for job, requests in jobs.items():
        for index, request in enumerate(requests):
            drawing.require_equal(job, index, request, album)
    alone = sum(sum(request.steps for request in requests) for requests in jobs.values())
    assert drawing.worker.counts.calls < alone * 2 / 3
    assert drawing.worker.counts.pictures == sum(map(len, jobs.values()))


def test_a_short_job_is_done_before_a_long_one_that_came_first(drawing: Drawing) -> None:
    short = drawing.pipe.request("red", seed=1, steps=2)
    drawing.heard.at["long", 3] = lambda: drawing.draw("short", short)
    drawing.draw("long", *[drawing.pipe.request("cat", seed=i, steps=40) for i in range(20)])
    drawing.heard.wait("short", "long")
    ends = [said[1] for said in drawing.heard.said if said[0] == "ended"]
    assert ends == ["short", "long"]
    drawing.require_equal("short", 0, short)


def test_only_what_is_to_be_done_is_drawn(drawing: Drawing) -> None:
    requests = [drawing.pipe.request("red", seed=i) for i in range(4)]
    drawing.draw("some", *requests, todo=(1, 3))
    drawing.draw("none", *requests, todo=())
    drawing.heard.wait("some", "none")
    assert sorted(drawing.heard.results) == [("some", 1), ("some", 3)]
    starts = [said[1] for said in drawing.heard.said if said[0] == "started"]
    assert starts == ["some"]


def test_a_job_that_is_called_off_ends_at_its_next_step(drawing: Drawing) -> None:
    drawing.heard.at["long", 2] = lambda: drawing.worker.cancel("long")
    drawing.draw("long", *[drawing.pipe.request("cat", seed=i, steps=900) for i in range(3)])
    drawing.draw("other", drawing.pipe.request("cat", seed=5))
    drawing.heard.wait("long", "other")
    assert ("long", 0) not in drawing.heard.results
    assert ("other", 0) in drawing.heard.results
    drawing.worker.cancel("long")  # twice, or one that is not there, is nothing
    drawing.worker.cancel("nobody")
    assert drawing.worker.call(lambda: 7).result(60) == 7
    assert [said[1] for said in drawing.heard.said if said[0] == "ended"].count("long") == 1


def test_pixels_are_made_for_those_who_look(drawing: Drawing) -> None:
    drawing.heard.watched.add("seen")
    for job in ("seen", "unseen"):
        drawing.draw(job, drawing.pipe.request("red", seed=3, steps=4))
    drawing.heard.wait("seen", "unseen")
    moved = [said for said in drawing.heard.said if said[0] == "moved"]
    assert [said[3] for said in moved if said[1] == "seen"] == [1, 2, 3]
    assert all(said[4].shape == (16, 16, 3) for said in moved if said[1] == "seen")
    assert all(said[4] is None for said in moved if said[1] == "unseen")


def test_one_job_that_goes_wrong_takes_nobody_with_it(small: Pipeline) -> None:
    """A network that refuses a company, and levels that only the bad one visits for good."""
    bad, good = small.request("cat", seed=6, steps=7), [small.request("red", seed=i, steps=2) for i in range(6)]
    drawing = Drawing(small)
    network: Any = small.model.denoiser.network
    forward, seen, levels = network.forward, [], set()

    def noted(x: Any, scalar: Any, condition: Any) -> Any:
        levels.add(float(scalar[0]))
        return forward(x, scalar, condition)

    def picky(x: Any, scalar: Any, condition: Any) -> Any:
        seen.append(x.shape[0])
        if x.shape[0] > 4:
            raise torch.OutOfMemoryError("too many")
        if not levels.issuperset(scalar.tolist()):
            raise RuntimeError("not this one; see /secret/path")
        return forward(x, scalar, condition)

    try:
        network.forward = noted
        list(small.run(good[:1]))
        network.forward = picky
        drawing.draw("good", *good)
        drawing.draw("bad", bad)
        drawing.worker.start()
        drawing.heard.wait("good", "bad")
    finally:
        drawing.worker.stop()
        del network.forward
    assert max(seen) > 4
    assert drawing.heard.errors == {"bad": "the picture could not be drawn; what went wrong stands in the server's log"}
    for index, request in enumerate(good):
        drawing.require_equal("good", index, request)


def test_it_stops_in_the_middle_and_tells_of_no_end(small: Pipeline) -> None:
    drawing = Drawing(small)
    reached = threading.Event()
    drawing.heard.at["long", 1] = reached.set
    drawing.draw("long", small.request("cat", seed=0, steps=1000))
    drawing.worker.start()
    assert reached.wait(60)
    drawing.worker.stop()
    assert not drawing.worker.is_alive
    assert not drawing.heard.over
    assert not drawing.heard.errors


def test_what_is_called_for_is_computed_in_the_workers_thread(drawing: Drawing) -> None:
    assert drawing.worker.call(lambda: threading.current_thread().name).result(60) == "unstir-worker"
    with pytest.raises(KeyError, match="gone"):
        drawing.worker.call(lambda: {}["gone"]).result(60)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("give less"), "give less"),
        (ArithmeticError("not finite"), "not finite"),
        (torch.OutOfMemoryError("CUDA /x"), "there is not enough memory for this picture; ask for a smaller one"),
        (OSError("/secret"), "the picture could not be drawn; what went wrong stands in the server's log"),
    ],
)
def test_what_is_told_of_an_error(error: Exception, sentence: str) -> None:
    assert sentence_of(error) == sentence


def test_counts_add_up() -> None:
    one = Counts(calls=1, rows=2, steps=3, pictures=4, busy_seconds=0.5)
    assert one.plus(replace(one, calls=10)) == Counts(calls=11, rows=4, steps=6, pictures=8, busy_seconds=1.0)
