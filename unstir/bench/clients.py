"""Clients of a server, many at a time: what they ask for, how they wait, what comes back.

Knows: as much of HTTP/1.1 as a light client needs, the job API's paths, how a job is waited for sparsely.
Does not know: how the server is started, what its figures mean, pictures.

The clients share the machine with the server that they load, so they do as little as they can: bytes over a connection
that is kept, a question now and then, and what comes back is written to a file and looked at later.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

ENDED = frozenset(("done", "failed", "cancelled"))
PATIENCE = 120.0
"""Seconds that a job is waited for after the load is over, before it counts as lost."""

_DENSE = 0.02  # seconds between two questions where it matters when something begins
_WAIT = 20.0  # seconds that the server is asked to put its answer off, for as long as the job has not ended
_PAUSE = 0.25  # seconds before something that was refused is tried again
_ANSWER = 60.0  # seconds within which any request must be answered


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a server answers.

    Args:
        status: of HTTP.
        headers: by their names in lower case.
        body: all of it.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def said(self) -> Any:
        """The body's JSON."""
        return json.loads(self.body)


class Client:
    """One connection to a server, opened when it is needed and kept.

    Args:
        url: of the server, as http://127.0.0.1:8000.
    """

    def __init__(self, url: str) -> None:
        self._name = url.partition("://")[2].rstrip("/")
        self._host, _, self._port = self._name.rpartition(":")
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, said: object = None, *, key: str = "") -> Reply:
        """Ask, and wait for the whole answer.

        Args:
            method: of HTTP.
            path: with its query.
            said: what is sent as JSON; None sends nothing.
            key: sent as Idempotency-Key, if there is one.

        Raises:
            ConnectionError: if the server is not there, or goes away.
            TimeoutError: if it does not answer within a minute.
        """
        body = b"" if said is None else json.dumps(said).encode()
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self._name}", f"Content-Length: {len(body)}"]
        lines += ["Content-Type: application/json"] * (said is not None)
        lines += [f"Idempotency-Key: {key}"] * bool(key)
        message = "\r\n".join([*lines, "", ""]).encode() + body
        is_kept = self._streams is not None
        try:
            async with asyncio.timeout(_ANSWER):
                return await self._exchange(message)
        except (OSError, EOFError):  # TimeoutError is an OSError
            self.close()
            if not is_kept or not (key or method == "GET"):
                raise ConnectionError(f"{self._name} did not answer {method} {path}") from None
        async with asyncio.timeout(_ANSWER):  # the server had closed the connection in the meantime
            try:
                return await self._exchange(message)
            except EOFError:
                raise ConnectionError(f"{self._name} did not answer {method} {path}") from None

    def close(self) -> None:
        """Leave the server."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def _exchange(self, message: bytes) -> Reply:
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host.strip("[]"), int(self._port))
        reader, writer = self._streams
        writer.write(message)
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        body = await _body(reader, headers)
        if headers.get("connection", "").lower() == "close":
            self.close()
        return Reply(status=int(head[0].split()[1]), headers=headers, body=body)


async def _body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    if headers.get("transfer-encoding", "").lower() != "chunked":
        return await reader.readexactly(int(headers.get("content-length", 0)))
    parts: list[bytes] = []
    while True:
        size = int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)
        part = await reader.readexactly(size + 2)
        if not size:
            return b"".join(parts)
        parts.append(part[:-2])


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A picture that a client has got.

    Args:
        asked: the body of the request that it came from.
        place: its file.
        index: which of the job's pictures it is.
    """

    asked: Mapping[str, Any]
    place: Path
    index: int = 0


@dataclass(kw_only=True, eq=False)
class Tally:
    """What clients saw.

    Args:
        accepted: jobs that the server gave an id.
        ended: those that were done, and whose pictures came.
        busy: how often the server asked to come back later.
        failures: what went wrong, a sentence each.
        lost: ids of accepted jobs that did not end.
        latencies: seconds from the question to the picture, of each job.
        pictures: what came.
        seconds: from the first question to the last picture.
    """

    accepted: int = 0
    ended: int = 0
    busy: int = 0
    failures: list[str] = field(default_factory=list[str])
    lost: list[str] = field(default_factory=list[str])
    latencies: list[float] = field(default_factory=list[float])
    pictures: list[Fetched] = field(default_factory=list[Fetched])
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Visit:
    """One client at work.

    Args:
        client: its connection.
        tally: where it tells what it saw.
        folder: where its pictures go.
    """

    client: Client
    tally: Tally
    folder: Path

    async def post(self, asked: Mapping[str, Any], key: str = "") -> str:
        """The id of a job that is asked for, or an empty string if it was refused; waits while the server is busy."""
        key = key or secrets.token_hex(16)
        while True:
            reply = await self.client.ask("POST", "/api/jobs", asked, key=key)
            if reply.status not in (429, 503):
                break
            self.tally.busy += 1
            await asyncio.sleep(float(reply.headers.get("retry-after", 1)))
        if reply.status != 202:
            self.tally.failures.append(f"POST /api/jobs: {reply.status} {_start(reply)}")
            return ""
        self.tally.accepted += 1
        return str(reply.said["id"])

    async def wait(self, job: str, *, until: float) -> Mapping[str, Any] | None:
        """A job's status at its end; None if it has none until then (of ``time.monotonic``)."""
        while True:
            reply = await self.client.ask("GET", f"/api/jobs/{job}?wait={_WAIT:g}")
            if reply.status == 200 and reply.said["state"] in ENDED:
                return cast("Mapping[str, Any]", reply.said)
            if reply.status == 404 or time.monotonic() > until:
                self.tally.lost.append(job)
                return None
            if reply.status != 200:
                await asyncio.sleep(float(reply.headers.get("retry-after", 1)))

    async def fetch(self, asked: Mapping[str, Any], status: Mapping[str, Any]) -> bool:
        """Get the pictures of a job that has ended; whether all came."""
        job, pictures = str(status["id"]), cast("list[Mapping[str, Any]]", status["pictures"])
        if status["state"] != "done" or len(pictures) != int(asked.get("number", 1)):
            self.tally.failures.append(f"job {job} is {status['state']}: {status.get('error', '')}")
            return False
        for picture in pictures:
            reply = await self.client.ask("GET", str(picture["url"]))
            if reply.status != 200:
                self.tally.failures.append(f"GET {picture['url']}: {reply.status} {_start(reply)}")
                return False
            place = self.folder / f"{job}-{picture['index']}.png"
            place.write_bytes(reply.body)
            self.tally.pictures.append(Fetched(asked=asked, place=place, index=int(picture["index"])))
        self.tally.ended += 1
        return True


async def load(url: str, jobs: Iterator[Mapping[str, Any]], folder: Path, *, clients: int, seconds: float) -> Tally:
    """So many clients, each asking for the next job as soon as it has the pictures of its last.

    Args:
        url: of the server.
        jobs: bodies of requests, without end.
        folder: where the pictures go.
        clients: how many.
        seconds: after which none asks for more; what is accepted by then is waited for.
    """
    tally, started = Tally(), time.monotonic()
    deadline = started + seconds

    async def visit() -> None:
        own = Visit(client=Client(url), tally=tally, folder=folder)
        try:
            while time.monotonic() < deadline:
                await _one(own, next(jobs), deadline + PATIENCE)
        except OSError as error:
            tally.failures.append(str(error) or type(error).__name__)
        finally:
            own.client.close()

    await asyncio.gather(*(visit() for _ in range(clients)))
    tally.seconds = time.monotonic() - started
    return tally


async def _one(visit: Visit, asked: Mapping[str, Any], until: float) -> None:
    """One job, from the question to the pictures."""
    began = time.monotonic()
    if not (job := await visit.post(asked)):
        await asyncio.sleep(_PAUSE)
        return
    status = await visit.wait(job, until=until)
    if status is not None and await visit.fetch(asked, status):
        visit.tally.latencies.append(time.monotonic() - began)


async def short_beside_long(
    url: str, short: Mapping[str, Any], long: Mapping[str, Any], folder: Path, *, repeats: int
) -> tuple[list[float], list[float], Tally]:
    """Seconds that a short job takes alone, and behind a long one, turn by turn.

    Args:
        url: of the server.
        short: the body of its request.
        long: of the other, which is called off when the short one is done.
        folder: where pictures go.
        repeats: turns of each.
    """
    visit = Visit(client=Client(url), tally=Tally(), folder=folder)
    alone: list[float] = []
    behind: list[float] = []

    async def timed(number: int) -> float:
        began, asked = time.monotonic(), {**short, "seed": number}
        status = await visit.wait(await visit.post(asked), until=began + PATIENCE)
        if status is not None:
            await visit.fetch(asked, status)
        return time.monotonic() - began

    try:
        await timed(0)  # the first one warms up
        for number in range(1, repeats + 1):
            alone.append(await timed(2 * number))
            other = await visit.post({**long, "seed": number})
            while (await visit.client.ask("GET", f"/api/jobs/{other}")).said["state"] == "queued":
                await asyncio.sleep(_DENSE)
            behind.append(await timed(2 * number + 1))
            await visit.client.ask("DELETE", f"/api/jobs/{other}")
            await visit.wait(other, until=time.monotonic() + PATIENCE)
    finally:
        visit.client.close()
    return alone, behind, visit.tally


@dataclass(frozen=True, kw_only=True)
class Promise:
    """A job that a server was asked for.

    Args:
        asked: the body of the request.
        key: its Idempotency-Key.
        job: the id that it got; empty if the server went away before it answered.
    """

    asked: Mapping[str, Any]
    key: str
    job: str = ""


async def ask_until_gone(
    url: str, jobs: Iterator[Mapping[str, Any]], kill: Callable[[], None], *, count: int, enough: int
) -> list[Promise]:
    """Ask for so many jobs; when enough of them are done the server is killed, while it is asked for more.

    Args:
        url: of the server.
        jobs: bodies of requests, without end.
        kill: ends the server at once.
        count: of jobs before that.
        enough: how many of the first ones are waited for.

    Returns:
        What was asked for; the last one may have no id.
    """
    visit = Visit(client=Client(url), tally=Tally(), folder=Path())
    promises: list[Promise] = []

    async def ask_for(jobs: Iterator[Mapping[str, Any]]) -> None:
        for asked in jobs:
            promise = Promise(asked=asked, key=secrets.token_hex(16))
            promises.append(promise)
            promises[-1] = replace(promise, job=await visit.post(promise.asked, promise.key))

    try:
        await ask_for(islice(jobs, count))
        for promise in promises[:enough]:
            await visit.wait(promise.job, until=time.monotonic() + PATIENCE)
        more = asyncio.create_task(ask_for(jobs))
        while len(promises) < count + 2 and not more.done():  # it is asked in the very moment
            await asyncio.sleep(0)
        kill()
        with suppress(OSError):
            await more
    finally:
        visit.client.close()
    return promises


async def collect(url: str, promises: list[Promise], folder: Path) -> Tally:
    """Wait for every job that was promised, and fetch its pictures; what got no id is asked for again, by its key."""
    tally = Tally()
    visit, began = Visit(client=Client(url), tally=tally, folder=folder), time.monotonic()
    try:
        for promise in promises:
            job = promise.job or await visit.post(promise.asked, promise.key)
            tally.accepted += bool(promise.job)
            status = await visit.wait(job, until=time.monotonic() + PATIENCE) if job else None
            if status is not None:
                await visit.fetch(promise.asked, status)
    finally:
        visit.client.close()
    tally.seconds = time.monotonic() - began
    return tally


def _start(reply: Reply) -> str:
    return reply.body[:200].decode("utf-8", "replace")
