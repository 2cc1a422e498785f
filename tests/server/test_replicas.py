"""Replicas in the worker's place: with stand-ins for Ray's handles; and on Ray, where one is killed (slow)."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from unstir.pipeline import Pipeline, Request, Result, load
from unstir.server import replicas as module
from unstir.server.replicas import (
    Ask,
    Drawn,
    Failed,
    Lost,
    Moved,
    Replica,
    Replicas,
    Sheet,
    Told,
    ray_workers,
    require_ray_serve,
)
from unstir.server.worker import Counts, Work, Worker


@pytest.fixture(scope="module")
def folder(noisy_model: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noisy_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def small(folder: Path) -> Pipeline:
    return load(folder, device="cpu", precision="float32")


class Heard:
    """Listens, and remembers."""

    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []
        self.results: dict[tuple[str, int], Result] = {}
        self.errors: dict[str, str] = {}
        self.over: dict[str, threading.Event] = {}
        self.watched: set[str] = set()

    def started(self, job: str) -> None:
        self.said.append(("started", job))

    def is_watched(self, job: str) -> bool:
        return job in self.watched

    def moved(self, job: str, index: int, step: int, pixels: Any) -> None:
        self.said.append(("moved", job, index, step, pixels is not None))

    def drawn(self, job: str, index: int, result: Result) -> None:
        self.said.append(("drawn", job, index))
        self.results[job, index] = result

    def ended(self, job: str) -> None:
        self.said.append(("ended", job))
        self.over.setdefault(job, threading.Event()).set()

    def failed(self, job: str, sentence: str) -> None:
        self.errors[job] = sentence
        self.over.setdefault(job, threading.Event()).set()

    def wait(self, job: str, seconds: float = 60) -> None:
        assert self.over.setdefault(job, threading.Event()).wait(seconds), f"{job} never ended: {self.said}"


BLACK = numpy.zeros((16, 16, 3), numpy.uint8)


def drawn_of(sheet: Sheet, replica: str = "one", pictures: int = 1) -> Drawn:
    counts = Counts(pictures=pictures)
    return Drawn(request=sheet.request, pixels=BLACK, seconds=0.5, warnings=("w",), replica=replica, counts=counts)


@contextmanager
def reached(ask: Ask) -> Generator[Ask]:
    yield ask


@contextmanager
def handing(ask: Ask, most: int = 4) -> Iterator[tuple[Replicas, Heard]]:
    """Replicas before a stand-in, and who is told."""
    heard = Heard()
    replicas = Replicas(heard, lambda: reached(ask), most=most)
    replicas.start()
    try:
        yield replicas, heard
    finally:
        replicas.stop()
        assert not replicas.is_alive


def work_of(job: str, pipe: Pipeline, n: int = 1, **more: Any) -> Work:
    requests = tuple(pipe.requests(["red"], n=n, seed=3, steps=more.pop("steps", 3)))
    given = {"album": {}, "todo": tuple(range(n)), "model": "small", **more}
    return Work(job=job, requests=requests, **given)


def test_a_job_is_handed_on_picture_by_picture(small: Pipeline) -> None:
    sheets: list[Sheet] = []

    async def ask(sheet: Sheet) -> AsyncGenerator[Told]:
        sheets.append(sheet)
        yield Moved(step=1, pixels=BLACK)
        yield Moved(step=2, pixels=None)
        yield drawn_of(sheet, replica=str(len(sheets) % 2), pictures=10 * len(sheets))

    with handing(ask) as (replicas, heard):
        heard.watched.add("a")
        replicas.submit(work_of("a", small, 3, todo=(0, 2)))
        heard.wait("a")
        replicas.submit(work_of("b", small, is_draft=True))
        heard.wait("b")
        assert replicas.is_alive
        assert replicas.counts.pictures == 20 + 30  # the last that each of them told
        replicas.submit(work_of("nothing", small, todo=()))
        heard.wait("nothing")
    assert [sheet.request.seed for sheet in sheets] == [3, 5, 3]
    assert [sheet.is_draft for sheet in sheets] == [False, False, True]
    assert {sheet.model for sheet in sheets} == {"small"}
    said = [line for line in heard.said if line[1] == "a"]
    assert (said[0], said[-1]) == (("started", "a"), ("ended", "a"))
    assert said.count(("started", "a")) == 1
    assert ("moved", "a", 2, 1, True) in said
    assert ("moved", "b", 0, 1, False) in heard.said  # nobody looks at it
    assert sorted(heard.results) == [("a", 0), ("a", 2), ("b", 0)]
    result = heard.results["a", 2]
    assert (result.request.seed, result.seconds, result.warnings) == (5, 0.5, ("w",))
    assert result.picture.size == (16, 16)


def test_only_the_pictures_that_a_request_names_are_sent(small: Pipeline) -> None:
    sheets: list[Sheet] = []

    async def ask(sheet: Sheet) -> AsyncGenerator[Told]:
        sheets.append(sheet)
        yield drawn_of(sheet)

    picture, mask = Image.new("RGB", (16, 16), "red"), Image.new("L", (16, 16), 255)
    requests, album = small.edit_requests(picture, "blue", mask=mask, seed=1, steps=2)
    with handing(ask) as (replicas, heard):
        more = {"f" * 64: torch.zeros(3, 1, 1)}
        replicas.submit(Work(job="a", model="small", requests=tuple(requests), album={**album, **more}, todo=(0,)))
        heard.wait("a")
    assert sheets[0].album.keys() == album.keys()
    for name, each in sheets[0].album.items():
        assert torch.equal(torch.tensor(each), album[name])


def test_what_a_lost_replica_had_is_drawn_by_another(small: Pipeline) -> None:
    """It begins anew, and what was told already is not told again."""
    tries: Counter[int] = Counter()

    async def ask(sheet: Sheet) -> AsyncGenerator[Told]:
        tries[sheet.request.seed] += 1
        for step in (1, 2):
            yield Moved(step=step, pixels=None)
            if tries[sheet.request.seed] == step == 2:
                return  # without a last word
            if tries[sheet.request.seed] == step == 1:
                raise Lost("gone")
        yield drawn_of(sheet)

    with handing(ask) as (replicas, heard):
        replicas.submit(work_of("a", small, 2))
        heard.wait("a")
    assert tries == {3: 3, 4: 3}
    assert [line[3] for line in heard.said if line[:3] == ("moved", "a", 1)] == [1, 2]
    assert heard.said.count(("started", "a")) == 1
    assert heard.errors == {}


def test_a_picture_that_kills_every_replica_is_given_up(small: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSE", 0.0)

    async def ask(sheet: Sheet) -> AsyncGenerator[Told]:
        if sheet.request.seed == 3:
            raise Lost("gone")
        await asyncio.sleep(3600)
        yield drawn_of(sheet)

    with handing(ask) as (replicas, heard):
        replicas.submit(work_of("a", small, 2))
        heard.wait("a")
    assert "ask for it again" in heard.errors["a"]


def test_one_failure_ends_its_job_alone(small: Pipeline) -> None:
    ended: list[int] = []

    async def ask(sheet: Sheet) -> AsyncGenerator[Told]:
        try:
            if sheet.request.seed == 4:
                yield Failed(sentence="it cannot be")
            elif sheet.request.seed == 77:
                raise ValueError("a sentence")
            await asyncio.sleep(3600 if sheet.request.seed == 3 else 0)
            yield drawn_of(sheet)
        finally:
            ended.append(sheet.request.seed)

    with handing(ask) as (replicas, heard):
        replicas.submit(work_of("a", small, 2))
        heard.wait("a")
        requests = tuple(small.requests(["red"], n=1, seed=77))
        replicas.submit(Work(job="b", model="small", requests=requests, album={}, todo=(0,)))
        heard.wait("b")
        requests = tuple(small.requests(["red"], n=1, seed=9))
        replicas.submit(Work(job="c", model="small", requests=requests, album={}, todo=(0,)))
        heard.wait("c")
    assert heard.errors == {"a": "it cannot be", "b": "a sentence"}
    assert list(heard.results) == [("c", 0)]
    assert sorted(ended) == [3, 4, 9, 77]  # what the failed job had elsewhere was called off


def test_short_jobs_do_not_stand_behind_long_ones(small: Pipeline) -> None:
    """Long ones take all the room that there is for their like; a short one is handed on beside them, a draft too."""
    handed: list[int] = []
    gate = threading.Event()

    async def ask(sheet: Sheet) -> AsyncGenerator[Told]:
        handed.append(sheet.request.steps)
        while sheet.request.steps == 100 and not gate.is_set():
            await asyncio.sleep(0.001)
        yield drawn_of(sheet)

    with handing(ask, most=2) as (replicas, heard):
        replicas.submit(work_of("long", small, 8, steps=100))
        replicas.submit(work_of("short", small, 3, steps=2))
        heard.wait("short")
        replicas.submit(work_of("draft", small, 1, steps=4, is_draft=True))
        heard.wait("draft")
        assert Counter(handed) == {100: 2, 2: 3, 4: 1}
        gate.set()
        heard.wait("long")
    assert Counter(handed) == {100: 8, 2: 3, 4: 1}


def test_a_job_is_called_off_wherever_it_is(small: Pipeline) -> None:
    handed, left = threading.Event(), threading.Event()

    async def ask(sheet: Sheet) -> AsyncGenerator[Told]:
        handed.set()
        try:
            await asyncio.sleep(3600)
            yield drawn_of(sheet)
        finally:
            left.set()

    with handing(ask, most=1) as (replicas, heard):
        replicas.submit(work_of("a", small, 3))
        replicas.submit(work_of("b", small, 3))  # it waits
        assert handed.wait(60)
        replicas.cancel("b")
        heard.wait("b")
        assert not left.is_set()
        replicas.cancel("a")
        heard.wait("a")
        assert left.wait(60)
        replicas.cancel("a")
        replicas.cancel("unknown")
        replicas.submit(work_of("nothing", small, todo=()))
        heard.wait("nothing")
    assert [line for line in heard.said if line[0] == "ended"] == [("ended", "b"), ("ended", "a"), ("ended", "nothing")]
    assert heard.results == {}


def test_what_is_not_drawn_when_it_stops_is_not_told(small: Pipeline) -> None:
    handed = threading.Event()

    async def ask(sheet: Sheet) -> AsyncGenerator[Told]:
        handed.set()
        await asyncio.sleep(3600)
        yield drawn_of(sheet)

    with handing(ask) as (replicas, heard):
        replicas.submit(work_of("a", small, 9))
        assert handed.wait(60)
    assert heard.said == [("started", "a")]
    assert heard.errors == {}
    replicas.submit(work_of("b", small))  # nobody is there any more
    replicas.stop()


def test_what_is_computed_here_is_computed_without_gradients() -> None:
    async def ask(sheet: Sheet) -> AsyncGenerator[Told]:
        yield drawn_of(sheet)

    with handing(ask) as (replicas, _):
        assert replicas.call(torch.is_grad_enabled).result(60) is False
        assert replicas.call(lambda: threading.current_thread().name).result(60).startswith("unstir-calls")


def test_signals_are_taken_back_at_the_start() -> None:
    """What Ray's own handler is put before stays: whoever listens for the end of the server still hears of it."""
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        module._take_back_signals()
        signal.raise_signal(signal.SIGTERM)
        assert heard == [signal.SIGTERM]
        elsewhere = threading.Thread(target=module._take_back_signals)  # where signals are nobody's business
        elsewhere.start()
        elsewhere.join()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_what_hinders_the_start_is_told_at_the_start() -> None:
    @contextmanager
    def reach() -> Generator[Ask]:
        raise ConnectionError("there is no cluster")
        yield

    replicas = Replicas(Heard(), reach, most=1)
    with pytest.raises(ConnectionError, match="there is no cluster"):
        replicas.start()
    replicas.stop()


def reference(pipe: Pipeline, request: Request, album: Mapping[str, Any] | None = None) -> numpy.ndarray:
    (result,) = (each for each in pipe.run([request], album=album) if isinstance(each, Result))
    return numpy.array(result.picture).astype(int)


def test_a_replica_draws_what_the_pipeline_draws(small: Pipeline, folder: Path) -> None:
    """Several at once, an edit among them, through the replica's own worker; what is left is called off."""
    threads = torch.get_num_threads()
    replica = Replica({"small": (str(folder), small.model.checksum)}, "cpu", "float32", threads)
    replica.check_health()
    picture = Image.fromarray(numpy.random.default_rng(0).integers(0, 255, (16, 16, 3), numpy.uint8))
    edits, album = small.edit_requests(picture, "blue", strength=0.6, seed=1)
    requests = [*small.requests(["red", "cat"], seed=5, steps=4), *edits]

    async def draw(request: Request) -> list[Told]:
        arrays = {} if request.edit is None else {name: each.numpy() for name, each in album.items()}
        sheet = Sheet(model="small", request=request, album=arrays)
        return [told async for told in replica.draw(sheet)]

    async def run() -> list[list[Told]]:
        left = replica.draw(Sheet(model="small", request=requests[0], album={}))
        await anext(left)
        await left.aclose()
        return await asyncio.gather(*map(draw, requests))

    told = asyncio.run(run())
    for request, each in zip(requests, told, strict=True):
        last = each[-1]
        assert isinstance(last, Drawn)
        assert (last.replica, os.getpid()) == replica.whoami()
        assert all(isinstance(before, Moved) and before.pixels is not None for before in each[:-1])
        assert len(each) >= 2
        assert numpy.abs(last.pixels - reference(small, request, album)).max() <= 1
        assert last.request == request
    assert replica._heard.ears == {}
    assert max(each[-1].counts.pictures for each in told if isinstance(each[-1], Drawn)) == 3

    async def fail() -> list[Told]:
        return [each async for each in replica.draw(Sheet(model="small", request=edits[0], album={}))]

    (failed,) = asyncio.run(fail())
    assert isinstance(failed, Failed)
    assert "picture" in failed.sentence
    replica._worker.stop()
    with pytest.raises(RuntimeError, match="has ended"):
        replica.check_health()


def test_a_replica_with_another_model_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="another model on a replica"):
        Replica({"small": (str(folder), "0" * 64)}, "cpu", "float32")


def test_the_models_are_named_by_where_they_are(small: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    @contextmanager
    def deployed(count: int, models: Mapping[str, Any], *, device: str, precision: str) -> Generator[Ask]:
        async def ask(sheet: Sheet) -> AsyncGenerator[Told]:
            yield drawn_of(sheet)

        seen.append((count, dict(models), device, precision))
        yield ask

    monkeypatch.setattr(module, "_deployed", deployed)
    monkeypatch.setattr(module, "find_spec", lambda name: name)
    replicas = ray_workers(3, device="cpu")({"mine": small}, Heard())
    replicas.start()
    replicas.stop()
    assert seen == [(3, {"mine": (str(Path(small.name).resolve()), small.model.checksum)}, "cpu", "float32")]


def test_what_is_lacking_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="at least 1 replica, got 0"):
        require_ray_serve(0)
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'unstir\[ray\]'"):
        ray_workers(2)


def test_a_handle_of_ray_serve_is_asked_and_left() -> None:
    """A replica that died is ``Lost``; a stream that nobody reads any more is called off."""

    class Gone(Exception):
        pass

    class Exceptions:
        RayActorError = WorkerCrashedError = NodeDiedError = ObjectLostError = Gone

    class Ray:
        exceptions = Exceptions

    class Telling:
        def __init__(self, dies: bool) -> None:
            self.dies, self.is_cancelled = dies, False

        async def __aiter__(self) -> AsyncGenerator[Told]:
            yield Moved(step=1, pixels=None)
            if self.dies:
                raise Gone
            yield Failed(sentence="x")

        def cancel(self) -> None:
            self.is_cancelled = True

    class Handle:
        def __init__(self, telling: Telling) -> None:
            self.telling = telling

        def remote(self, sheet: object) -> Telling:
            return self.telling

    async def hear(telling: Telling) -> list[Told]:
        return [told async for told in module._asking(Ray, Handle(telling))(None)]  # type: ignore[arg-type]

    fine, dying = Telling(False), Telling(True)
    assert len(asyncio.run(hear(fine))) == 2
    with pytest.raises(Lost):
        asyncio.run(hear(dying))
    assert fine.is_cancelled
    assert dying.is_cancelled


def processes_of_replicas() -> list[int]:
    """The processes that Ray calls by the name of a replica."""
    found = []
    for place in Path("/proc").iterdir():
        try:
            if place.name.isdecimal() and b"ServeReplica:unstir" in (place / "cmdline").read_bytes():
                found.append(int(place.name))
        except OSError:  # it is gone
            continue
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Ray, about itself
def test_two_replicas_on_ray_draw_as_one_worker_and_one_may_die(small: Pipeline) -> None:
    """The pictures of two replicas are those of a single worker, also of what was on the one that is killed."""
    if importlib.util.find_spec("ray") is None or not Path("/proc").is_dir():
        pytest.skip("RAY SERVE IS NOT INSTALLED: replicas were not tested; pip install 'unstir[ray]'")
    assert not processes_of_replicas(), "somebody else has replicas here"
    requests = tuple(small.requests(["red cat", "blue"], n=8, seed=1, steps=60))
    works = [
        Work(job=f"job{i}", model="small", requests=requests, album={}, todo=tuple(range(i, 16, 2))) for i in (0, 1)
    ]
    single = Heard()
    worker = Worker({"small": small}, single)
    worker.start()
    for work in works:
        worker.submit(work)
    for work in works:
        single.wait(work.job)
    worker.stop()

    heard = Heard()
    replicas = ray_workers(2, device="cpu")({"small": small}, heard)
    replicas.start()
    try:
        killed: list[int] = []
        moved = heard.moved

        def kill_one(job: str, index: int, step: int, pixels: Any) -> None:
            moved(job, index, step, pixels)
            if step >= 5 and not killed:
                killed.append(processes_of_replicas()[0])
                os.kill(killed[0], signal.SIGKILL)

        assert len(processes_of_replicas()) == 2
        heard.moved = kill_one  # type: ignore[method-assign]
        for work in works:
            replicas.submit(work)
        for work in works:
            heard.wait(work.job, 300)
        assert killed
        assert heard.errors == {}
        assert heard.results.keys() == single.results.keys()
        for key, result in heard.results.items():
            alone = numpy.array(single.results[key].picture).astype(int)
            assert numpy.abs(numpy.array(result.picture) - alone).max() <= 1
            assert result.request == single.results[key].request
        assert replicas.counts.pictures > 0
    finally:
        replicas.stop()
    assert not processes_of_replicas()
