"""Service: everything that a server does with pictures, whatever form its clients speak.

Knows: when a job is accepted, where it is kept, drawn and told of, what survives the end of the process.
Does not know: HTTP, how clients say what they want, who may ask.

All of it is called on one event loop. The loop never computes: networks and large tensors are the worker's, and what is
decoded, encoded, hashed or written is done in a few threads of its own.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import math
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar
from weakref import WeakValueDictionary

import numpy
from numpy.typing import NDArray
from PIL import Image

from unstir.config import to_dict
from unstir.diffusion.samplers import SAMPLERS
from unstir.editing import Album, read_picture
from unstir.metadata import Recipe, as_png, recipe_in
from unstir.model import SamplingDefaults
from unstir.pipeline import TUNED, Pipeline, Request, Result
from unstir.server.asking import (
    Asked,
    AskedEdit,
    AskedWay,
    Limits,
    Refused,
    choose_model,
    fingerprint,
    plain,
    references,
    requests_of,
    require_affordable,
    require_modest,
)
from unstir.server.jobs import Event, Job, Picture, State, Status
from unstir.server.levels import spoiled
from unstir.server.live import Live
from unstir.server.shelf import Shelf, mask_in, picture_in, size_in
from unstir.server.store import Store
from unstir.server.worker import Counts, Listener, Work, Worker

__all__ = [
    "Asked",
    "AskedEdit",
    "AskedWay",
    "Busy",
    "Drawer",
    "Kept",
    "Limits",
    "ModelFacts",
    "Refused",
    "Service",
    "Unknown",
]

MAX_KEY = 200
"""Characters of a key under which something is asked for once."""

MAX_LIMIT = 200
"""Pictures in one answer."""

_T = TypeVar("_T")
_LOG = logging.getLogger(__name__)
_THREADS = 2
_UNIT_SECONDS = 0.02  # a step of a small picture takes about so long, before anything is measured
_PRUNE_BYTES = 256 * 2**20  # uploaded since unused ones were last removed
_PRUNE_SECONDS = 24 * 3600.0


class Busy(Exception):
    """Nothing more can be taken on now.

    Args:
        sentence: why.
        seconds: until it is worth asking again, at least 1.
    """

    def __init__(self, sentence: str, seconds: int = 1) -> None:
        super().__init__(sentence)
        self.seconds = max(1, seconds)


class Unknown(LookupError):
    """There is no such job, picture or upload."""


class Drawer(Protocol):
    """Who draws: a ``Worker``, or somebody else in its place."""

    def start(self) -> None:
        """Begin to draw."""
        ...

    def submit(self, work: Work) -> None:
        """Have a job drawn; from any thread."""
        ...

    def cancel(self, job: str) -> None:
        """Call a job off; from any thread."""
        ...

    def call(self, function: Callable[[], _T]) -> Future[_T]:
        """Have something computed between two network calls; from any thread."""
        ...

    def stop(self) -> None:
        """End soon, and tell nothing of what is not drawn."""
        ...

    @property
    def is_alive(self) -> bool:
        """Whether it draws or waits for work."""
        ...

    @property
    def counts(self) -> Counts:
        """What it did so far."""
        ...


@dataclass(frozen=True, kw_only=True)
class Kept:
    """An uploaded picture.

    Args:
        name: by which it can be asked for: the sha256 of its file.
        width: in pixels.
        height: in pixels.
        recipe: that it carries, if it was drawn by unstir.
    """

    name: str
    width: int
    height: int
    recipe: Recipe | None


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """A model, as far as clients need to know it.

    Args:
        name: by which it is asked for.
        checksum: sha256 of its weights.
        size: of the pictures that it was trained on.
        multiple: what width and height must be multiples of.
        is_one_size: whether it draws no other size.
        samplers: that it can be drawn with, by name.
        sampling: its defaults.
        tuned: the numbers of steps that there are fitted ones for.
    """

    name: str
    checksum: str
    size: int
    multiple: int
    is_one_size: bool
    samplers: tuple[str, ...]
    sampling: SamplingDefaults
    tuned: tuple[int, ...]

    @property
    def fewest(self) -> int:
        """The fewest steps in which something can be recognised."""
        return min(self.tuned, default=min(4, self.sampling.steps))


class _Ears:
    """Hears what the worker tells in its thread, and has it heard on the event loop: many at a time."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, live: Live, hear: Callable[[str, tuple[Any, ...]], None]
    ) -> None:
        self._loop, self._live, self._hear = loop, live, hear
        self._told: deque[tuple[str, tuple[Any, ...]]] = deque()
        self._is_due = False

    def started(self, job: str) -> None:
        self._tell("started", job)

    def is_watched(self, job: str) -> bool:
        return self._live.is_watched(job)

    def moved(self, job: str, index: int, step: int, pixels: NDArray[numpy.uint8] | None) -> None:
        self._tell("moved", job, index, step, pixels)

    def drawn(self, job: str, index: int, result: Result) -> None:
        self._tell("drawn", job, index, result)

    def ended(self, job: str) -> None:
        self._tell("ended", job)

    def failed(self, job: str, sentence: str) -> None:
        self._tell("failed", job, sentence)

    def _tell(self, what: str, *said: Any) -> None:
        self._told.append((what, said))
        if not self._is_due:  # else whoever made it due has not looked yet, and will see this as well
            self._is_due = True
            with suppress(RuntimeError):  # the loop is closed: nobody listens
                self._loop.call_soon_threadsafe(self.drain)

    def drain(self) -> None:
        self._is_due = False
        while self._told:
            self._hear(*self._told.popleft())


class Service:
    """Jobs, pictures and uploads of one server.

    Args:
        pipes: its models, by the names that clients know them by; the first is the default.
        folder: where everything is kept.
        limits: how much may be asked for.
        make_worker: given the pipes and who is told, makes who draws.

    Attributes:
        models: what there is to know of them, by name.
        limits: how much may be asked for.
    """

    def __init__(
        self,
        pipes: Mapping[str, Pipeline],
        folder: Path,
        *,
        limits: Limits | None = None,
        make_worker: Callable[[Mapping[str, Pipeline], Listener], Drawer] | None = None,
    ) -> None:
        if not pipes:
            raise ValueError("there is no model to draw with; name at least one")
        self.models: Mapping[str, ModelFacts] = {name: _facts(name, pipe) for name, pipe in pipes.items()}
        self.limits = limits or Limits()
        self._sizes = {name: facts.size for name, facts in self.models.items()}
        self._pipes = dict(pipes)
        self._folder = folder
        self._make_worker = make_worker or Worker
        self._live = Live()
        self._numbers = itertools.count()
        self._pages: dict[str, tuple[int, str]] = {}  # a page's newest draft: when it was asked for, its job
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._draft_keys: dict[str, tuple[str, str]] = {}
        self._keeping: dict[str, set[asyncio.Task[str]]] = {}  # of a job's pictures; what went wrong
        self._closing: set[str] = set()  # jobs whose end is being written
        self._tasks: set[asyncio.Task[Any]] = set()
        self._calls: set[Future[Any]] = set()
        self._units = 0.0
        self._uploaded = 0
        self._is_open = False

    # Beginning and end.

    async def start(self) -> None:
        """Open the folder, begin to draw, and go on with what was interrupted.

        Raises:
            OSError: if the folder cannot be written.
            ValueError: if another server uses it.
        """
        self._files = ThreadPoolExecutor(_THREADS, thread_name_prefix="unstir-files")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="unstir-reader")
        store: Store | None = None
        try:
            store = self._store = await self._apart(Store, self._folder)
            await self._apart(self._store.prune)
            self._shelf = Shelf(self._store.kept)
            self._ears = _Ears(asyncio.get_running_loop(), self._live, self._hear)
            self._worker = self._make_worker(self._pipes, self._ears)
            self._worker.start()
        except BaseException:
            self._shut(store)
            raise
        self._is_open = True
        for job, checksum in self._store.unended():
            self._resume(job, checksum)

    async def stop(self) -> None:
        """End; what is not drawn yet goes on when a service is started on the same folder."""
        if not self._is_open:
            return
        self._is_open = False
        await asyncio.to_thread(self._worker.stop)
        for future in list(self._calls):
            future.cancel()
        self._ears.drain()
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        self._live.close()
        await asyncio.to_thread(self._shut, self._store)

    # Jobs.

    async def accept(self, asked: Asked, *, key: str = "", draft_of: str = "") -> Job:
        """Take on a job. It is kept before this returns, and lost never more; unless it is a draft, which is not kept.

        Args:
            asked: what is asked for.
            key: the same key and the same question are the same job, however often it is asked.
            draft_of: a page's own word: a new draft of a page calls off its last.

        Raises:
            Refused: if it cannot be had, or the key was used for something else.
            Busy: if too many jobs are waiting, or nothing can be kept.
        """
        number = next(self._numbers)
        self._require_open()
        if len(key) > MAX_KEY or not key.isprintable():
            raise Refused(f"an idempotency key has at most {MAX_KEY} characters that can be printed", "key")
        if not key:
            return await self._accept(asked, number, draft_of=draft_of)
        lock = self._locks.get(key) or asyncio.Lock()
        self._locks[key] = lock
        async with lock:  # who asks the same while the first is being accepted waits for its job
            asked_before = self._draft_keys.get(key) or self._store.job_of(key)
            if asked_before is None:
                return await self._accept(asked, number, key=key, draft_of=draft_of)
            if asked_before[0] != fingerprint(asked):
                raise Refused("this idempotency key was used for another request; take a fresh one", "key")
            return self.status(asked_before[1]).job

    def status(self, job: str) -> Status:
        """How far a job is.

        Raises:
            Unknown: if there is none of that id.
        """
        live = self._live.status(job)
        if live is not None:
            return live
        kept = self._store.job(job)
        if kept is None:
            raise Unknown(f"there is no job {job[:80]!r}")
        steps, drawn = [request.steps for request in kept.requests], self._store.drawn(job)
        done = sum(steps) if kept.state == "done" else sum(steps[index] for index in drawn)
        return Status(job=kept, position=0, step=done, steps=sum(steps), previews=(0,) * len(steps), drawn=drawn)

    def look(self, job: str) -> Status:
        """The same for somebody who polls: for a while, previews of it are made.

        Raises:
            Unknown: if there is none of that id.
        """
        self._live.look(job)
        return self.status(job)

    async def preview(self, job: str, index: int) -> bytes:
        """The last preview of a picture that is not finished, as PNG.

        Raises:
            Unknown: if there is no such job, or there was none yet.
        """
        self.look(job)
        pixels = self._live.pixels(job, index)
        if pixels is None:
            raise Unknown(f"there is no preview of picture {index} of job {job}")
        return await self._apart(as_png, Image.fromarray(pixels), None)

    async def cancel(self, job: str) -> Status:
        """Call a job off; the pictures that it has stay. One that has ended already is as it was.

        Raises:
            Unknown: if there is none of that id.
        """
        status = self.status(job)
        if status.job.is_ended or job not in self._live:
            return status
        self._ears.drain()  # what was drawn by now is kept
        self._worker.cancel(job)
        closing = self._close(job, "cancelled")
        if closing is not None:
            await asyncio.shield(closing)
        return await self.settled(job)

    async def settled(self, job: str) -> Status:
        """The status of a job once it has ended.

        Raises:
            Unknown: if there is none of that id.
            Busy: if the server stops before; the job goes on when it is started again.
        """
        status = self.status(job)
        if not status.job.is_ended:
            status = await self._live.settled(job)
        if not status.job.is_ended:
            raise Busy("the server is being stopped; the job goes on when it is there again")
        return status

    def watch(self, job: str) -> AsyncGenerator[Event]:
        """What happens to a job, as long as it is listened to: first its status as it is now and its last previews.

        The last event is "end"; there is none if the server stops before. Whoever is slow misses previews, never a
        picture. Close it (``aclose``) to leave early.

        Raises:
            Unknown: if there is none of that id.
        """
        if job in self._live:
            return self._live.watch(job)
        return _over(self.status(job))

    # Pictures.

    async def picture(self, job: str, index: int) -> bytes:
        """A finished picture as a PNG that carries its recipe.

        Raises:
            Unknown: if there is none.
        """
        draft = self._live.draft(job, index)
        if draft is not None:
            return draft[1]
        self.picture_facts(job, index)
        data = await self._apart(self._store.read, job, index)
        if data is None:
            raise Unknown(_no_picture(job, index))
        return data

    def picture_facts(self, job: str, index: int) -> Picture:
        """What is known of a finished picture.

        Raises:
            Unknown: if there is none.
        """
        draft = self._live.draft(job, index)
        facts = self._store.picture(job, index) if draft is None else draft[0]
        if facts is None:
            raise Unknown(_no_picture(job, index))
        return facts

    def pictures(self, *, search: str = "", before: str = "", limit: int = 50) -> list[Picture]:
        """Finished pictures, newest first, without drafts.

        Args:
            search: words; all of them occur in the prompt, in whatever case.
            before: ``JOB/INDEX`` of the last one that was seen (and may be deleted by now); empty for the newest.
            limit: most of them.

        Raises:
            Refused: if the limit is out of its range.
            Unknown: if there never was a picture ``before``.
        """
        if not 1 <= limit <= MAX_LIMIT:
            raise Refused(f"limit must be from 1 to {MAX_LIMIT}, got {limit}", "limit")
        if len(search) > self.limits.prompt:
            raise Refused(f"search has {len(search)} characters; write at most {self.limits.prompt}", "search")
        words = search.encode("utf-8", "ignore").decode()  # half a surrogate pair is in no prompt that was accepted
        try:
            return self._store.pictures(search=words, before=before, limit=limit)
        except LookupError as error:
            raise Unknown(str(error)) from None

    async def delete(self, job: str, index: int) -> None:
        """Forget a finished picture; and all of its job, if that has ended and this was its last.

        Raises:
            Busy: if it cannot be removed.
            Unknown: if there is none.
        """
        is_draft = self._live.draft(job, index) is not None
        try:
            if not is_draft and not await self._apart(self._store.delete, job, index):
                raise Unknown(_no_picture(job, index))
        except OSError as error:
            raise Busy(_cannot_write(error), 60) from None
        self._live.deleted(job, index)

    async def level(self, job: str, index: int, t: float) -> bytes:
        """A finished picture on its way into the noise that it came from, as PNG.

        Args:
            job: whose it is.
            index: which.
            t: time of the schedule, from 0 (the picture) to 1 (noise).

        Raises:
            Refused: if t is out of its range, or its model is not served any more.
            Unknown: if there is no such picture.
        """
        if not 0 <= t <= 1:
            raise Refused(f"a level is from 0 (the picture) to 1 (noise), got {t}", "t")
        data, facts = await self.picture(job, index), self.picture_facts(job, index)
        pipe = self._pipes.get(self.status(job).job.model)
        if pipe is None:
            raise Refused("the model that drew this picture is not served any more", "model")
        image = await self._read(picture_in, data)
        seen = await self._computed(lambda: spoiled(pipe, read_picture(image), facts.request.seed, t))
        return await self._apart(as_png, seen, None)

    async def keep(self, data: bytes) -> Kept:
        """Keep a picture or mask that somebody sent.

        Raises:
            Refused: if it is no picture, a damaged one, or too large.
            Busy: if it cannot be kept.
        """
        self._require_open()
        if len(data) > self.limits.upload_bytes:
            raise Refused(f"the file has {len(data)} bytes; send at most {self.limits.upload_bytes}")
        kept = await self._read(_examined, data, self.limits.upload_pixels)
        return replace(kept, name=await self._stored(data))

    async def kept(self, name: str) -> bytes:
        """The file that was uploaded under a name: one of ``shelf.FORMATS``.

        Raises:
            Unknown: if there is none.
        """
        data = await self._apart(self._store.kept, name)
        if data is None:
            raise Unknown(f"there is no uploaded picture {name[:80]!r}")
        return data

    # How it goes.

    @property
    def waiting(self) -> int:
        """Jobs that have not begun."""
        return self._live.waiting

    @property
    def running(self) -> int:
        """Jobs that have begun and not ended."""
        return self._live.running

    @property
    def seconds_ahead(self) -> float:
        """How long all that was accepted will take, as far as can be told from what was drawn so far."""
        busy = self.counts.busy_seconds
        unit = busy / self._units if self._units and busy else _UNIT_SECONDS
        return self._live.units * unit

    @property
    def counts(self) -> Counts:
        """What the worker did so far."""
        return self._worker.counts if self._is_open else Counts()

    @property
    def is_alive(self) -> bool:
        """Whether there is somebody who draws."""
        return self._is_open and self._worker.is_alive

    # Accepting.

    async def _accept(self, asked: Asked, number: int, *, key: str = "", draft_of: str = "") -> Job:
        require_modest(asked, self.limits, self._sizes)
        self._require_room()
        model = choose_model(asked, self.models)
        asked_for = await self._with_uploads(asked)
        requests = await self._requests(asked_for, model)
        require_affordable(requests, self.limits, self.models[model].size)
        self._require_open()
        self._require_room()
        job = Job(
            id=secrets.token_hex(16), model=model, created=time.time(), requests=requests, is_draft=asked.is_draft
        )
        self._live.add(job)  # so that its place is taken
        # Once it is kept it must also be drawn, even if whoever asked is gone by then.
        await asyncio.shield(self._task(self._register(job, key, fingerprint(asked))))
        if draft_of and job.is_draft:
            await self._replace_draft(draft_of, number, job.id)
        return self.status(job.id).job

    async def _register(self, job: Job, key: str, asked: str) -> None:
        uses = {name for name, _ in references(job.requests).values()}
        if job.is_draft:
            if key:
                self._draft_keys[key] = (asked, job.id)
        else:
            try:
                checksum = self.models[job.model].checksum
                await self._apart(self._store.add, job, checksum, uses, key, asked)
            except OSError as error:
                self._live.forget(job.id)
                raise Busy(_cannot_write(error), 60) from None
        self._submit(job, range(len(job.requests)))

    async def _replace_draft(self, page: str, number: int, job: str) -> None:
        """Of a page's drafts only the one that was asked for last is drawn."""
        newest = self._pages.get(page)
        if newest is not None and newest[0] > number:
            await self.cancel(job)
            return
        self._pages[page] = (number, job)
        if newest is not None and newest[1] in self._live:
            await self.cancel(newest[1])

    async def _with_uploads(self, asked: Asked) -> Asked:
        """The same, with pictures of the gallery kept as uploads: they may be deleted before this is drawn."""
        edit, way = asked.edit, asked.way
        if edit is not None:
            source = await self._upload(edit.source, "edit.source")
            edit = replace(edit, source=source, mask=await self._upload(edit.mask, "edit.mask") if edit.mask else "")
        if way is not None and way.to_source:
            way = replace(way, to_source=await self._upload(way.to_source, "way.to_source"))
        return replace(asked, edit=edit, way=way)

    async def _upload(self, name: str, field: str) -> str:
        """The name of the upload with what a client names."""
        job, separator, index = name.partition("/")
        try:
            if not separator:
                if not await self._apart(self._store.touch, name):
                    raise Unknown
                return name
            if not (index.isascii() and index.isdigit() and len(index) <= 6):
                raise Unknown
            return await self._stored(await self.picture(job, int(index)))
        except Unknown:
            raise Refused(
                f"there is no picture {name[:80]!r}; upload it, or name a finished one as JOB/INDEX", field
            ) from None

    async def _stored(self, data: bytes) -> str:
        self._uploaded += len(data)
        try:
            if self._uploaded > _PRUNE_BYTES:
                self._uploaded = 0
                await self._apart(self._store.prune, _PRUNE_SECONDS)
            return await self._apart(self._store.keep, data)
        except OSError as error:
            raise Busy(_cannot_write(error), 60) from None

    async def _requests(self, asked: Asked, model: str) -> tuple[Request, ...]:
        pipe = self._pipes[model]
        if not asked.pictures:
            return requests_of(asked, pipe, {}, {})[0]
        pictures = {name: await self._read(picture_in, await self.kept(name)) for name in asked.pictures}
        mask = "" if asked.edit is None else asked.edit.mask
        masks = {mask: await self._read(mask_in, await self.kept(mask))} if mask else {}
        requests, album = await self._computed(lambda: requests_of(asked, pipe, pictures, masks))
        self._shelf.put(album)
        return requests

    def _shut(self, store: Store | None) -> None:
        self._files.shutdown()
        self._reader.shutdown()
        if store is not None:
            store.close()

    def _require_open(self) -> None:
        if not self._is_open:
            raise Busy("the server is being stopped", 5)

    def _require_room(self) -> None:
        active = self._live.active
        if active >= self.limits.queue:
            seconds = min(3600, math.ceil(self.seconds_ahead / active))
            raise Busy(f"{active} jobs are waiting already; ask again in a while", seconds)

    def _submit(self, job: Job, todo: range | tuple[int, ...]) -> None:
        album: Album = self._shelf.album(references(job.requests))
        self._worker.submit(
            Work(
                job=job.id,
                model=job.model,
                requests=job.requests,
                album=album,
                todo=tuple(todo),
                is_draft=job.is_draft,
            )
        )

    def _resume(self, job: Job, checksum: str) -> None:
        """Go on with a job that was interrupted."""
        drawn = {*self._store.drawn(job.id), *self._store.deleted(job.id)}
        self._live.add(job, drawn)
        for index in self._store.deleted(job.id):
            self._live.deleted(job.id, index)
        facts = self.models.get(job.model)
        if facts is None or facts.checksum != checksum:
            why = "is not served any more" if facts is None else "is another one now"
            self._close(job.id, "failed", f"the model {job.model} that this was to be drawn with {why}")
            return
        self._submit(job, tuple(index for index in range(len(job.requests)) if index not in drawn))

    # What the worker tells.

    def _hear(self, what: str, said: tuple[Any, ...]) -> None:
        {
            "started": self._live.started,
            "moved": self._moved,
            "drawn": self._drawn,
            "ended": self._ended,
            "failed": self._failed,
        }[what](*said)

    def _moved(self, job: str, index: int, step: int, pixels: NDArray[numpy.uint8] | None) -> None:
        if job not in self._closing:
            self._units += self._live.moved(job, index, step, pixels)

    def _drawn(self, job: str, index: int, result: Result) -> None:
        status = self._live.status(job)
        if status is None or status.job.is_ended or job in self._closing:
            return  # it was called off meanwhile
        self._units += self._live.moved(job, index, result.request.steps, None)
        task = self._task(self._keep(status.job, index, result))
        self._keeping.setdefault(job, set()).add(task)

    def _ended(self, job: str) -> None:
        self._close(job, "done")

    def _failed(self, job: str, sentence: str) -> None:
        self._close(job, "failed", plain(sentence))

    async def _keep(self, job: Job, index: int, result: Result) -> str:
        """Keep a finished picture, and tell of it; or say why it cannot be kept."""
        # Clients need not know where a model lies on the server: the recipe has the name that they know.
        recipe = Recipe(
            request=result.request,
            model=job.model,
            checksum=self.models[job.model].checksum,
            device=str(self._pipes[job.model].device),
            warnings=result.warnings,
        )
        picture = Picture(
            job=job.id,
            index=index,
            request=result.request,
            created=time.time(),
            seconds=result.seconds,
            warnings=tuple(plain(warning) for warning in result.warnings),
        )
        try:
            data = await self._apart(as_png, result.picture, recipe)
            if not job.is_draft:
                await self._apart(self._store.add_picture, picture, data)
        except Exception as error:  # whatever it is, the others are drawn
            _LOG.exception("a picture of job %s could not be kept", job.id)
            self._worker.cancel(job.id)
            told = _cannot_write(error) if isinstance(error, OSError) else "the picture could not be kept; see the log"
            self._close(job.id, "failed", told)
            return told
        self._live.drawn(job.id, index, (picture, data) if job.is_draft else None)
        return ""

    def _close(self, job: str, state: State, error: str = "") -> asyncio.Task[None] | None:
        """Have a job end, unless it does already."""
        status = self._live.status(job)
        if status is None or status.job.is_ended or job in self._closing:
            return None
        self._closing.add(job)
        return self._task(self._end(status.job, state, error))

    async def _end(self, job: Job, state: State, error: str) -> None:
        problems = [told for told in await asyncio.gather(*self._keeping.pop(job.id, ())) if told]
        if problems and state == "done":
            state, error = "failed", problems[0]
        if not job.is_draft:
            try:
                await self._apart(self._store.end, job.id, state, error)
            except OSError as problem:  # it ends here all the same; started again, the server draws what is missing
                _LOG.error("the end of job %s could not be kept: %s", job.id, problem)
        self._live.end(job.id, state, error)
        self._closing.discard(job.id)
        if job.is_draft:
            asyncio.get_running_loop().call_later(self.limits.draft_seconds, self._forget_draft, job.id)

    def _forget_draft(self, job: str) -> None:
        self._live.forget(job)
        for page in [page for page, (_, newest) in self._pages.items() if newest == job]:
            del self._pages[page]
        for key in [key for key, (_, known) in self._draft_keys.items() if known == job]:
            del self._draft_keys[key]

    def _apart(self, function: Callable[..., _T], *given: Any) -> asyncio.Future[_T]:
        """In a thread that writes files."""
        return asyncio.get_running_loop().run_in_executor(self._files, function, *given)

    def _read(self, function: Callable[..., _T], *given: Any) -> asyncio.Future[_T]:
        """In the thread that reads pictures, which may be large: nobody's finished picture waits for it."""
        return asyncio.get_running_loop().run_in_executor(self._reader, function, *given)

    async def _computed(self, function: Callable[[], _T]) -> _T:
        """By the worker, between two network calls."""
        future = self._worker.call(function)
        self._calls.add(future)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            self._require_open()  # it was not whoever asks that gave up
            raise
        finally:
            self._calls.discard(future)

    def _task(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _over(status: Status) -> AsyncGenerator[Event]:
    """What is told of a job that ended long ago."""
    yield Event(kind="status", status=status)
    yield Event(kind="end", status=status)


def _facts(name: str, pipe: Pipeline) -> ModelFacts:
    model = pipe.model
    network: Any = model.denoiser.network
    tuned = tuple(sorted({steps.num_steps for steps in model.tuned}))
    samplers = ("ancestral",) if model.config.process == "binomial" else tuple(SAMPLERS)
    return ModelFacts(
        name=name,
        checksum=model.checksum,
        size=model.config.size,
        multiple=pipe.multiple,
        is_one_size=network.is_one_size,
        samplers=(TUNED, *samplers) if tuned else samplers,
        sampling=model.config.sampling,
        tuned=tuned,
    )


def _examined(data: bytes, most: int) -> Kept:
    """What an upload holds; it has no name yet."""
    try:
        width, height = size_in(data)
        if width * height > most:
            raise Refused(f"the picture has {width}x{height} pixels; send one of at most {most} in all")
        width, height = picture_in(data).size  # upright
    except ValueError as error:
        raise error if isinstance(error, Refused) else Refused(str(error)) from None
    recipe = None
    with suppress(ValueError):  # and half a surrogate pair, which can be told to nobody, is one
        found = recipe_in(data)
        json.dumps(to_dict(found), ensure_ascii=False).encode()
        recipe = found
    return Kept(name="", width=width, height=height, recipe=recipe)


def _cannot_write(error: OSError) -> str:
    return f"the server cannot write to its folder ({error.strerror or 'the store is full or locked'})"


def _no_picture(job: str, index: int) -> str:
    return f"there is no picture {index} of job {job[:80]!r}"
