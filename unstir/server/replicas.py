"""Replicas: in the place of the worker, many of them on a cluster of Ray, each with the models and a worker of its own.

Knows: which picture is handed on when, what is sent to a replica and told back, that a lost picture is drawn again.
Does not know: who asks for pictures, how one is drawn, HTTP.

A replica is a deployment of Ray Serve, without its HTTP: Ray starts it, watches it and puts another in its place when
it dies. The server keeps the queue. It hands on picture by picture, the shortest jobs first, no more than the replicas
can draw at once; what was on a replica that died is handed to another one, and comes out the same.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import os
import secrets
import signal
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, aclosing, contextmanager
from dataclasses import dataclass, field
from functools import reduce
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import numpy
import torch
from numpy.typing import NDArray
from PIL import Image

from unstir.generation.on_ray import cluster
from unstir.pipeline import Pipeline, Request, Result, load
from unstir.server.asking import references
from unstir.server.turns import DRAFT, length_of
from unstir.server.worker import MOST, Counts, Listener, Work, Worker, sentence_of

_T = TypeVar("_T")
_TRIES = 8  # that a picture is handed on, while replica after replica dies under it
_PAUSE = 0.25  # seconds before it is handed on again, and twice as many the next time
_AT_ONCE = 100_000  # pictures that Ray Serve may hand to one replica: how many it gets is decided here
_HEALTH = 2.0  # seconds between two looks at a replica
_LEAVE = 1.0  # seconds that a replica may take to end


class Lost(ConnectionError):
    """A replica went away before the picture was there."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sheet:
    """A picture that a replica is asked for.

    Args:
        model: by the name that the server knows it by.
        request: what is drawn.
        album: the pictures that it names.
        is_draft: whether it is drawn before everything else.
    """

    model: str
    request: Request
    album: Mapping[str, NDArray[Any]]
    is_draft: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Moved:
    """A replica has gone so many steps, and believes this of the picture ("h w 3")."""

    step: int
    pixels: NDArray[numpy.uint8] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """A picture.

    Args:
        request: what was drawn.
        pixels: the picture, "h w 3".
        seconds: as in ``Result``.
        warnings: as in ``Result``.
        replica: who drew it.
        counts: what it did so far.
    """

    request: Request
    pixels: NDArray[numpy.uint8]
    seconds: float
    warnings: tuple[str, ...]
    replica: str
    counts: Counts


@dataclass(frozen=True, kw_only=True)
class Failed:
    """A picture cannot be drawn, and why."""

    sentence: str


Told = Moved | Drawn | Failed
"""What a replica tells; the last two are the last word."""

Ask = Callable[[Sheet], AsyncGenerator[Told]]
"""Has a picture drawn by some replica. Raises ``Lost`` if it went away meanwhile."""


@dataclass(kw_only=True, eq=False)
class _Picture:
    """A picture that is to be handed on, or was."""

    work: Work
    index: int
    length: int
    order: tuple[int, int]
    steps: int = 0  # that were told

    def __lt__(self, other: _Picture) -> bool:
        return (self.length, self.order) < (other.length, other.order)


class Replicas:
    """In the place of a ``Worker``: hands pictures on to whoever draws them.

    Args:
        listener: who is told, in a thread of this one's own.
        reach: connects with those who draw; entered and left in that thread.
        most: pictures that are handed on at a time. Shorter jobs have as many beside longer ones.
    """

    def __init__(self, listener: Listener, reach: Callable[[], AbstractContextManager[Ask]], *, most: int) -> None:
        self._listener, self._reach, self._most = listener, reach, most
        self._thread = threading.Thread(target=self._run, name="unstir-replicas", daemon=True)
        self._calls = ThreadPoolExecutor(1, "unstir-calls", initializer=lambda: torch.set_grad_enabled(False))
        self._ready: Future[None] = Future()
        self._stopped = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._number = 0
        self._left: dict[str, int] = {}  # pictures that a job still lacks
        self._begun: set[str] = set()
        self._queue: list[_Picture] = []
        self._tasks: dict[asyncio.Task[None], _Picture] = {}
        self._lengths: Counter[int] = Counter()  # of what is handed on
        self._counts: dict[str, Counts] = {}

    def start(self) -> None:
        """Connect with the replicas, and wait until they are there.

        Raises:
            Exception: whatever hinders it.
        """
        self._thread.start()
        self._ready.result()
        _take_back_signals()

    def submit(self, work: Work) -> None:
        """Have a job drawn; from any thread."""
        self._order(lambda: self._submit(work))

    def cancel(self, job: str) -> None:
        """Call a job off; from any thread."""
        self._order(lambda: self._cancel(job))

    def call(self, function: Callable[[], _T]) -> Future[_T]:
        """Have something computed here, beside what the replicas draw; from any thread."""
        return self._calls.submit(function)

    def stop(self) -> None:
        """Leave the replicas. What is not drawn yet is neither ended nor failed."""
        self._order(self._stopped.set)
        if self._thread.is_alive():
            self._thread.join()
        self._calls.shutdown()

    @property
    def is_alive(self) -> bool:
        """Whether pictures are handed on; a replica that died is Ray's business."""
        return self._thread.is_alive()

    @property
    def counts(self) -> Counts:
        """What all replicas did, as far as they told it."""
        return reduce(Counts.plus, list(self._counts.values()), Counts())

    def _order(self, order: Callable[[], None]) -> None:
        if self._loop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(order)

    def _run(self) -> None:
        try:
            with self._reach() as ask:
                asyncio.run(self._serve(ask))
        except BaseException as error:
            if self._ready.done():
                raise
            self._ready.set_exception(error)

    async def _serve(self, ask: Ask) -> None:
        self._loop, self._ask = asyncio.get_running_loop(), ask
        self._ready.set_result(None)
        await self._stopped.wait()
        self._left.clear()
        await self._end(list(self._tasks))

    async def _end(self, tasks: list[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _submit(self, work: Work) -> None:
        if not work.todo:
            self._listener.ended(work.job)
            return
        self._left[work.job] = len(work.todo)
        self._number += 1
        steps = sum(work.requests[index].steps for index in work.todo)
        length = DRAFT if work.is_draft else length_of(2 * steps)
        for index in work.todo:
            heapq.heappush(self._queue, _Picture(work=work, index=index, length=length, order=(self._number, index)))
        self._hand_on()

    def _cancel(self, job: str) -> None:
        if self._forget(job):
            self._listener.ended(job)

    def _fail(self, job: str, sentence: str) -> None:
        if self._forget(job):
            self._listener.failed(job, sentence)

    def _forget(self, job: str) -> bool:
        """Whether there was such a job; what of it is handed on is called off, what waits is passed over."""
        self._begun.discard(job)
        if self._left.pop(job, None) is None:
            return False
        for task, picture in self._tasks.items():
            if picture.work.job == job and task is not asyncio.current_task():
                task.cancel()
        return True

    def _hand_on(self) -> None:
        """Hand on as much as there is room for: of what is as short as a picture or shorter, so many may be there."""
        while self._queue:
            picture = self._queue[0]
            if picture.work.job not in self._left:
                heapq.heappop(self._queue)
                continue
            if sum(count for length, count in self._lengths.items() if length <= picture.length) >= self._most:
                return
            heapq.heappop(self._queue)
            if picture.work.job not in self._begun:
                self._begun.add(picture.work.job)
                self._listener.started(picture.work.job)
            task = asyncio.create_task(self._draw(picture))
            self._tasks[task] = picture
            self._lengths[picture.length] += 1
            task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._lengths[self._tasks.pop(task).length] -= 1
        self._hand_on()

    async def _draw(self, picture: _Picture) -> None:
        """Have a picture drawn, and again where a replica went away with it."""
        work, job = picture.work, picture.work.job
        try:
            request = work.requests[picture.index]
            album = {name: work.album[name].numpy() for name in references((request,))}
            sheet = Sheet(model=work.model, request=request, album=album, is_draft=work.is_draft)
            for number in range(_TRIES):
                try:
                    return await self._listen(picture, sheet)
                except Lost:
                    await asyncio.sleep(_PAUSE * 2**number)
            self._fail(job, "no replica could draw this picture to its end; ask for it again")
        except Exception as error:  # whatever is wrong with one picture, the others are drawn
            self._fail(job, sentence_of(error))

    async def _listen(self, picture: _Picture, sheet: Sheet) -> None:
        async with aclosing(self._ask(sheet)) as telling:
            async for told in telling:
                if picture.work.job not in self._left:
                    return
                if isinstance(told, Moved):
                    self._moved(picture, told)
                else:
                    return self._last(picture, told)
        raise Lost("a replica ended without a last word")

    def _moved(self, picture: _Picture, told: Moved) -> None:
        if told.step > picture.steps:  # what another replica had told before it died is not told again
            picture.steps = told.step
            job = picture.work.job
            self._listener.moved(job, picture.index, told.step, told.pixels if self._listener.is_watched(job) else None)

    def _last(self, picture: _Picture, told: Drawn | Failed) -> None:
        job = picture.work.job
        if isinstance(told, Failed):
            self._fail(job, told.sentence)
            return
        self._counts[told.replica] = told.counts
        drawn = Image.fromarray(told.pixels)
        result = Result(request=told.request, picture=drawn, seconds=told.seconds, warnings=told.warnings)
        self._listener.drawn(job, picture.index, result)
        self._left[job] -= 1
        if not self._left[job]:
            self._forget(job)
            self._listener.ended(job)


def _take_back_signals() -> None:
    """Ray puts a handler of its own before ours, which prints a trace whenever the server is told to stop."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        handler = signal.getsignal(number)
        if handler is not None:
            signal.signal(number, handler)
            signal.siginterrupt(number, False)


class Replica:
    """One of those who draw: a worker, in a process that Ray has started.

    Args:
        models: by name, where each is, as ``load`` takes it, and the checksum that it has where the server is.
        device: where it draws.
        precision: inside networks.
        threads: of computation; None leaves it to torch.

    Raises:
        ValueError: if a model is another one here than where the server is.
    """

    def __init__(
        self, models: Mapping[str, tuple[str, str]], device: str, precision: str, threads: int | None = None
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        pipes: dict[str, Pipeline] = {}
        for name, (place, checksum) in models.items():
            pipes[name] = load(place, device=device, precision=precision)
            if pipes[name].model.checksum != checksum:
                raise ValueError(f"{place} is another model on a replica than on the server; bring the same one there")
        self._name = secrets.token_hex(8)
        self._heard = _Heard()
        self._worker = Worker(pipes, self._heard)
        self._worker.start()

    def whoami(self) -> tuple[str, int]:
        """Its name, and its process."""
        return self._name, os.getpid()

    def check_health(self) -> None:
        """Called by Ray, now and then.

        Raises:
            RuntimeError: if it does not draw any more.
        """
        if not self._worker.is_alive:
            raise RuntimeError("the worker of this replica has ended")

    async def draw(self, sheet: Sheet) -> AsyncGenerator[Told]:
        """Draw a picture, in company with what else this replica is asked for.

        Args:
            sheet: what is drawn.

        Yields:
            What happens; a ``Drawn`` or ``Failed`` is the last.
        """
        job, album = secrets.token_hex(8), {name: torch.tensor(each) for name, each in sheet.album.items()}
        work = Work(
            job=job, model=sheet.model, requests=(sheet.request,), album=album, todo=(0,), is_draft=sheet.is_draft
        )
        ear = self._heard.ears[job] = _Ear(loop=asyncio.get_running_loop())
        try:
            self._worker.submit(work)
            while True:
                told = await ear.queue.get()
                if isinstance(told, Result):
                    yield self._drawn(told)
                else:
                    yield told
                if not isinstance(told, Moved):
                    return
        finally:
            self._heard.ears.pop(job, None)
            self._worker.cancel(job)

    def _drawn(self, result: Result) -> Drawn:
        return Drawn(
            request=result.request,
            pixels=numpy.array(result.picture),
            seconds=result.seconds,
            warnings=result.warnings,
            replica=self._name,
            counts=self._worker.counts,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Ear:
    """Where what a worker tells of a picture is waited for."""

    loop: asyncio.AbstractEventLoop
    queue: asyncio.Queue[Moved | Result | Failed] = field(default_factory=lambda: asyncio.Queue())


class _Heard:
    """Passes on what a replica's worker tells, to whoever asked for the picture."""

    def __init__(self) -> None:
        self.ears: dict[str, _Ear] = {}

    def started(self, job: str) -> None:
        pass

    def is_watched(self, job: str) -> bool:
        return True

    def moved(self, job: str, index: int, step: int, pixels: NDArray[numpy.uint8] | None) -> None:
        self._pass_on(job, Moved(step=step, pixels=pixels))

    def drawn(self, job: str, index: int, result: Result) -> None:
        self._pass_on(job, result)

    def ended(self, job: str) -> None:
        pass

    def failed(self, job: str, sentence: str) -> None:
        self._pass_on(job, Failed(sentence=sentence))

    def _pass_on(self, job: str, told: Moved | Result | Failed) -> None:
        ear = self.ears.get(job)
        if ear is not None:
            ear.loop.call_soon_threadsafe(ear.queue.put_nowait, told)


def require_ray_serve(replicas: int) -> None:
    """See that Ray Serve is there, before anything is loaded.

    Raises:
        ImportError: if it is not installed.
        ValueError: if there would be no replica.
    """
    if replicas < 1:
        raise ValueError(f"there must be at least 1 replica, got {replicas}")
    lacking = [name for name in ("ray", "starlette", "aiohttp") if find_spec(name) is None]
    if lacking:
        raise ImportError(f"replicas need Ray Serve, of which {lacking[0]} is not here; pip install 'unstir[ray]'")


def ray_workers(replicas: int, *, device: str = "auto") -> Callable[[Mapping[str, Pipeline], Listener], Replicas]:
    """Makes, in the place of a worker, replicas on Ray: on the cluster of RAY_ADDRESS, or on one of this machine.

    Args:
        replicas: how many.
        device: where each draws; on "auto" and "cuda" it has a GPU of its own where the cluster has as many.

    Raises:
        ImportError: if Ray Serve is not installed.
        ValueError: if there would be no replica.
    """
    require_ray_serve(replicas)

    def make(pipes: Mapping[str, Pipeline], listener: Listener) -> Replicas:
        models = {name: (_place(pipe), pipe.model.checksum) for name, pipe in pipes.items()}
        precision = next(iter(pipes.values())).precision
        return Replicas(
            listener, lambda: _deployed(replicas, models, device=device, precision=precision), most=replicas * MOST
        )

    return make


def _place(pipe: Pipeline) -> str:
    return pipe.name if pipe.name == "builtin" else str(Path(pipe.name).resolve())


@contextmanager
def _deployed(replicas: int, models: Mapping[str, tuple[str, str]], *, device: str, precision: str) -> Generator[Ask]:
    """Replicas on a cluster, for as long as this context lasts."""
    with cluster(replicas) as ray:
        serve: Any = import_module("ray.serve")
        logging.getLogger("ray.serve").setLevel(logging.ERROR)  # what it does is told by what it draws
        resources: dict[str, float] = ray.cluster_resources()
        cores, gpus = max(1, int(resources.get("CPU", 1))), int(resources.get("GPU", 0))
        if replicas > cores:
            raise ValueError(f"the cluster has {cores} cores, got {replicas} replicas; ask for at most as many")
        has_gpus = (device == "auto" or device.startswith("cuda")) and gpus > 0
        serve.start(proxy_location="Disabled")  # it answers to nobody but us
        deployment = serve.deployment(
            Replica,
            name="replica",
            num_replicas=replicas,
            max_ongoing_requests=_AT_ONCE,
            health_check_period_s=_HEALTH,
            graceful_shutdown_timeout_s=_LEAVE,
            graceful_shutdown_wait_loop_s=_LEAVE / 2,
            ray_actor_options={"num_cpus": 1, "num_gpus": min(1.0, gpus / replicas) if has_gpus else 0},
            logging_config={"log_level": "ERROR", "enable_access_log": False},
        )
        name = f"unstir-{secrets.token_hex(4)}"
        bound = deployment.bind(models, device, precision, max(1, cores // replicas))
        handle = serve.run(bound, name=name, route_prefix=None)
        try:
            yield _asking(ray, handle.options(stream=True, method_name="draw"))
        finally:
            serve.delete(name)


def _asking(ray: Any, handle: Any) -> Ask:
    """Asks through a handle of Ray Serve."""
    gone: tuple[type[Exception], ...] = (
        ray.exceptions.RayActorError,
        ray.exceptions.WorkerCrashedError,
        ray.exceptions.NodeDiedError,
        ray.exceptions.ObjectLostError,
    )

    async def ask(sheet: Sheet) -> AsyncGenerator[Told]:
        telling = handle.remote(sheet)
        try:
            async for told in telling:
                yield told
        except gone as error:
            raise Lost("a replica went away") from error
        finally:
            telling.cancel()

    return ask
