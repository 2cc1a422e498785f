"""Clients of a server: against a stand-in for one, which behaves in all the ways that a server may."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from unstir.bench import clients
from unstir.bench.clients import (
    Client,
    Fetched,
    Promise,
    Tally,
    Visit,
    ask_until_gone,
    collect,
    load,
    short_beside_long,
)


@dataclass(kw_only=True)
class Stand:
    """A stand-in for a server: its jobs are done when they have been looked at so many times."""

    looks: int = 2
    is_chunked: bool = False
    is_closing: bool = False  # after every answer, without saying so
    busy: int = 0  # the first questions are answered with 429
    failing: set[int] = field(default_factory=set)  # jobs, by number
    forgotten: set[int] = field(default_factory=set)
    said: list[tuple[str, str]] = field(default_factory=list)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    url: str = ""
    is_gone: bool = False
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        try:
            while not self.is_gone:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                method, path, _ = head[0].split()
                headers = dict(line.lower().split(": ") for line in head[1:] if line)
                body = await reader.readexactly(int(headers["content-length"]))
                self.said.append((method, path))
                status, reply, more = self.answer(method, path, body, headers)
                said = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
                writer.write(f"HTTP/1.1 {status} Said\r\n{more}".encode() + self.framed(said))
                await writer.drain()
                if self.is_closing:
                    break
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    def framed(self, said: bytes) -> bytes:
        if not self.is_chunked:
            return b"Content-Length: %d\r\n\r\n" % len(said) + said
        parts = [said[i : i + 7] for i in range(0, len(said), 7)]
        return b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(
            b"%x;x=y\r\n%s\r\n" % (len(part), part) for part in (*parts, b"")
        )

    def answer(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, Any, str]:
        if method == "POST":
            return self.accept(json.loads(body), headers.get("idempotency-key", ""))
        _, _, kind, job, *rest = path.partition("?")[0].split("/")
        if kind == "pictures":
            return 200, f"{job}/{rest[0]}".encode(), ""
        if job not in self.jobs or self.jobs[job]["number"] in self.forgotten:
            return 404, {"error": {"message": "there is no such job"}}, ""
        return 200, self.status(job, method), ""

    def accept(self, asked: dict[str, Any], key: str) -> tuple[int, Any, str]:
        if self.busy:
            self.busy -= 1
            return 429, {}, "Retry-After: 0\r\n"
        if asked["prompt"] == "refused":
            return 400, {"error": {"message": "no"}}, ""
        if key not in self.keys:
            job = self.keys[key] = f"job{len(self.jobs)}"
            self.jobs[job] = {"number": len(self.jobs), "asked": asked, "looks": 0}
        return 202, {"id": self.keys[key]}, ""

    def status(self, job: str, method: str) -> dict[str, Any]:
        about = self.jobs[job]
        about["looks"] += 1
        if method == "DELETE":
            about["state"] = "cancelled"
        elif about["looks"] > self.looks and about.get("state") != "cancelled":
            about["state"] = "failed" if about["number"] in self.failing else "done"
        state = about.get("state", "running" if about["looks"] > 1 else "queued")
        number = about["asked"].get("number", 1) if state == "done" else 0
        pictures = [{"index": i, "url": f"/api/pictures/{job}/{i}"} for i in range(number)]
        return {"id": job, "state": state, "pictures": pictures, "error": "it failed" if state == "failed" else ""}


def during(stand: Stand, act: Callable[[str], Coroutine[Any, Any, Any]]) -> Any:
    """What comes of acting while the stand-in serves."""

    async def run() -> Any:
        server = await asyncio.start_server(stand.serve, "127.0.0.1", 0)
        stand.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            return await asyncio.wait_for(act(stand.url), 30)
        finally:
            server.close()

    return asyncio.run(run())


def jobs(**said: Any) -> Iterator[dict[str, Any]]:
    return ({"prompt": "a cat", "seed": i, **said} for i in count())


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "_DENSE", 0.001)


@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize("is_closing", [False, True])
def test_every_client_goes_on_from_job_to_job(tmp_path: Path, is_chunked: bool, is_closing: bool) -> None:
    """A connection that the server closed in the meantime is opened again, without a job that is asked for twice."""
    stand = Stand(is_chunked=is_chunked, is_closing=is_closing)
    tally: Tally = during(stand, lambda url: load(url, jobs(number=2), tmp_path, clients=3, seconds=0.2))
    assert tally.accepted == tally.ended == len(stand.jobs) == len(tally.latencies) > 3
    assert len(tally.pictures) == 2 * tally.ended
    assert (tally.failures, tally.lost, tally.busy) == ([], [], 0)
    assert tally.seconds >= 0.2
    for each in tally.pictures:
        job, index = each.place.stem.split("-")
        assert each.place.read_bytes() == f"{job}/{index}".encode()
        assert (each.index, each.asked) == (int(index), stand.jobs[job]["asked"])
    assert len({each.asked["seed"] for each in tally.pictures}) == tally.ended


def test_what_goes_wrong_is_counted_for_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand = Stand(busy=2, failing={0}, forgotten={1}, looks=0)

    async def act(url: str) -> Tally:
        visit = Visit(client=Client(url), tally=Tally(), folder=tmp_path)
        for asked in ({"prompt": "a"}, {"prompt": "b"}, {"prompt": "c", "number": 2}):
            status = await visit.wait(await visit.post(asked), until=1e12)
            if status is not None:
                await visit.fetch(asked, status)
        assert await visit.post({"prompt": "refused"}) == ""
        status = await visit.wait("job2", until=1e12)
        assert status is not None
        assert not await visit.fetch({"number": 3}, status)  # one is missing
        visit.client.close()
        return visit.tally

    tally = during(stand, act)
    assert (tally.accepted, tally.ended, tally.busy, tally.lost) == (3, 1, 2, ["job1"])
    assert [sentence.split(":")[0] for sentence in tally.failures] == [
        "job job0 is failed",
        "POST /api/jobs",
        "job job2 is done",
    ]
    assert "it failed" in tally.failures[0]
    assert '400 {"error"' in tally.failures[1]


def test_a_job_that_does_not_end_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "PATIENCE", 0.05)
    tally = during(Stand(looks=10**9), lambda url: load(url, jobs(), tmp_path, clients=2, seconds=0.01))
    assert (tally.accepted, tally.ended, sorted(tally.lost)) == (2, 0, ["job0", "job1"])


def test_a_server_that_is_not_there_is_told(tmp_path: Path) -> None:
    stand = Stand()
    during(stand, lambda url: asyncio.sleep(0))
    tally = asyncio.run(load(stand.url, jobs(), tmp_path, clients=2, seconds=0.5))
    assert (tally.accepted, len(tally.failures)) == (0, 2)
    assert "did not answer POST /api/jobs" in tally.failures[0]


def test_short_and_long_take_turns(tmp_path: Path) -> None:
    stand = Stand(looks=4)
    alone, behind, tally = during(
        stand,
        lambda url: short_beside_long(url, {"prompt": "s"}, {"prompt": "l", "number": 16}, tmp_path, repeats=2),
    )
    assert (len(alone), len(behind)) == (2, 2)
    assert [about["asked"]["prompt"] for about in stand.jobs.values()] == list("ssls" + "sls")
    assert [about["state"] for about in stand.jobs.values() if about["asked"]["prompt"] == "l"] == ["cancelled"] * 2
    assert len(tally.pictures) == tally.ended == 5
    assert len({each.asked["seed"] for each in tally.pictures}) == 5


def test_what_was_promised_before_a_kill_is_asked_for_after_it(tmp_path: Path) -> None:
    """The server goes while it is asked: what has an id is waited for, what has none is asked for by the same key."""
    stand = Stand(looks=3)

    def kill() -> None:
        stand.is_gone = True
        for writer in stand.writers:
            writer.transport.abort()

    promises: list[Promise] = during(stand, lambda url: ask_until_gone(url, jobs(number=2), kill, count=5, enough=2))
    assert len(promises) >= 6
    assert all(promise.job for promise in promises[:5])
    assert len({promise.key for promise in promises}) == len(promises)
    stand.is_gone = False
    stand.said.clear()
    unanswered = Promise(asked=promises[0].asked, key=promises[0].key)  # it was accepted, and nobody heard of it
    tally: Tally = during(stand, lambda url: collect(url, [*promises, unanswered], tmp_path))
    assert tally.ended == len(promises) + 1
    assert len(stand.jobs) == len(promises)  # each was taken on once
    assert len(tally.pictures) == 2 * tally.ended
    assert all(isinstance(each, Fetched) for each in tally.pictures)
    assert ("POST", "/api/jobs") in stand.said
