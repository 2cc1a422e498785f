"""Live: what watchers are told, whatever they miss, and what is remembered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import numpy
import pytest

from unstir.pipeline import Request
from unstir.server import live as module
from unstir.server.jobs import Event, Job, Picture
from unstir.server.live import Live

REQUEST = Request(
    prompt="red cat", seed=0, steps=4, sampler="ddim", grid="trailing", guidance_scale=1.0, width=64, height=64
)


def job(name: str, n: int = 2, *, is_draft: bool = False) -> Job:
    requests = tuple(replace(REQUEST, seed=seed) for seed in range(n))
    return Job(id=name, model="tiny", created=0.0, requests=requests, is_draft=is_draft)


def pixels(value: int) -> numpy.ndarray[Any, Any]:
    return numpy.full((2, 2, 3), value, dtype=numpy.uint8)


def run(test: Callable[[Live], Awaitable[None]]) -> None:
    async def main() -> None:
        live = Live()
        try:
            await test(live)
        finally:
            live.close()

    asyncio.run(main())


async def all_of(events: AsyncIterator[Event]) -> list[Event]:
    return [event async for event in events]


def test_a_watcher_that_keeps_up_is_told_everything() -> None:
    async def main(live: Live) -> None:
        live.add(job("a", 1))
        events = live.watch("a")
        first = await anext(events)
        assert (first.kind, first.status.job.state) == ("status", "queued")
        live.started("a")
        second = await anext(events)
        assert (second.kind, second.status.job.state) == ("status", "running")
        for step in (1, 2, 3):
            live.moved("a", 0, step, pixels(step))
            told = await anext(events)
            assert (told.kind, told.index, told.status.step, told.status.previews) == ("preview", 0, step, (step,))
            assert told.pixels is not None
            assert told.pixels[0, 0, 0] == step
        live.drawn("a", 0)
        told = await anext(events)
        assert (told.kind, told.index, told.status.drawn, told.status.step) == ("picture", 0, (0,), 4)
        live.end("a", "done")
        told = await anext(events)
        assert (told.kind, told.status.job.state) == ("end", "done")
        with pytest.raises(StopAsyncIteration):
            await anext(events)

    run(main)


def test_a_slow_watcher_gets_the_newest_previews_every_picture_and_the_end() -> None:
    async def main(live: Live) -> None:
        live.add(job("a", 3))
        events = live.watch("a")
        await anext(events)
        for step in (1, 2, 3):
            for index in range(3):
                live.moved("a", index, step, pixels(10 * index + step))
        live.drawn("a", 2)
        live.drawn("a", 0)
        told = [await anext(events) for _ in range(3)]
        assert [(each.kind, each.index) for each in told] == [("picture", 2), ("picture", 0), ("preview", 1)]
        assert told[2].pixels is not None
        assert told[2].pixels[0, 0, 0] == 13
        live.moved("a", 1, 3, pixels(0))
        live.drawn("a", 1)
        live.end("a", "done")
        assert [(each.kind, each.index) for each in await all_of(events)] == [("picture", 1), ("end", -1)]

    run(main)


def test_who_comes_late_sees_the_last_previews_first() -> None:
    async def main(live: Live) -> None:
        live.add(job("a", 2))
        live.moved("a", 0, 1, pixels(1))
        live.moved("a", 0, 2, pixels(2))
        live.drawn("a", 1)
        events = live.watch("a")
        first = await anext(events)
        assert (first.kind, first.status.drawn) == ("status", (1,))
        second = await anext(events)
        assert (second.kind, second.index) == ("preview", 0)
        assert second.pixels is not None
        assert second.pixels[0, 0, 0] == 2
        live.end("a", "failed", "why")
        rest = await all_of(events)
        assert [each.kind for each in rest] == ["end"]
        assert rest[0].status.job.error == "why"
        assert [each.kind for each in await all_of(live.watch("a"))] == ["status", "end"]

    run(main)


def test_steps_that_nobody_saw_are_told_as_one_change() -> None:
    async def main(live: Live) -> None:
        live.add(job("a", 1))
        events = live.watch("a")
        await anext(events)
        for step in (1, 2, 3):
            live.moved("a", 0, step, None)
        told = await anext(events)
        assert (told.kind, told.status.step) == ("status", 3)
        waiting = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        assert not waiting.done()
        live.end("a", "cancelled")
        assert (await waiting).kind == "end"

    run(main)


def test_previews_are_wanted_while_somebody_watches_or_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)

    async def main(live: Live) -> None:
        nonlocal now
        live.add(job("a"))
        live.add(job("b"))
        assert not live.is_watched("a")
        first, second = live.watch("a"), live.watch("a")
        await anext(first)
        await anext(second)
        assert live.is_watched("a")
        assert not live.is_watched("b")
        await first.aclose()
        assert live.is_watched("a")
        await second.aclose()
        assert not live.is_watched("a")
        live.look("b")
        assert live.is_watched("b")
        now += module.LOOK_SECONDS + 1
        assert not live.is_watched("b")
        live.look("b")
        live.end("b", "done")
        assert not live.is_watched("b")
        live.look("nobody")
        assert not live.is_watched("nobody")

    run(main)


def test_positions() -> None:
    async def main(live: Live) -> None:
        for name in "abc":
            live.add(job(name))
        live.add(job("d", is_draft=True))
        live.add(job("e", is_draft=True))
        live.add(job("f"))

        def positions() -> list[int]:
            return [status.position for name in "abcdef" if (status := live.status(name)) is not None]

        assert positions() == [0, 1, 2, 0, 1, 3]
        for name in "ef":
            live.forget(name)
        assert positions() == [0, 1, 2, 0]
        live.started("a")
        assert positions() == [0, 1, 2, 0]
        live.started("c")
        assert positions() == [0, 1, 0, 0]
        assert (live.waiting, live.running, live.active) == (2, 2, 4)
        events = live.watch("b")
        await anext(events)
        live.end("a", "done")
        assert positions() == [0, 0, 0, 0]
        told = await anext(events)  # some time later: whoever waits is told that it moves on
        assert (told.kind, told.status.position) == ("status", 0)
        assert (live.waiting, live.running, live.active) == (2, 1, 3)

    run(main)


def test_work_that_is_left_comes_down_to_nothing() -> None:
    async def main(live: Live) -> None:
        live.add(job("a", 2))
        assert live.units == 8
        live.add(replace(job("b", 1), requests=(replace(REQUEST, guidance_scale=2.0, width=128),)), drawn=())
        assert live.units == 8 + 4 * 2 * 2
        assert live.moved("a", 0, 3, None) == 3
        assert live.moved("a", 0, 2, None) == 0  # never back
        assert live.units == 5 + 16
        live.drawn("a", 0)
        live.drawn("a", 1)
        assert live.units == 16
        live.end("a", "done")
        live.forget("b")
        assert live.units == 0
        live.add(job("c", 2), drawn=(0,))
        assert live.units == 4

    run(main)


def test_what_comes_after_the_end_is_not_heard() -> None:
    async def main(live: Live) -> None:
        live.add(job("a", 1))
        live.end("a", "cancelled")
        before = live.status("a")
        live.started("a")
        live.moved("a", 0, 1, pixels(1))
        live.drawn("a", 0)
        live.end("a", "done")
        assert live.status("a") == before
        assert live.pixels("a", 0) is None

    run(main)


def test_whoever_waits_for_the_end_gets_it() -> None:
    async def main(live: Live) -> None:
        live.add(job("a"))
        waiting = [asyncio.ensure_future(live.settled("a")) for _ in range(3)]
        await asyncio.sleep(0)
        live.end("a", "done")
        assert {status.job.state for status in await asyncio.gather(*waiting)} == {"done"}
        assert (await live.settled("a")).job.state == "done"
        with pytest.raises(KeyError):
            live.watch("nobody")

    run(main)


def test_at_the_close_watchers_are_let_go_without_an_end() -> None:
    async def main(live: Live) -> None:
        live.add(job("a"))
        events = live.watch("a")
        await anext(events)
        rest, settled = asyncio.ensure_future(all_of(events)), asyncio.ensure_future(live.settled("a"))
        await asyncio.sleep(0)
        live.close()
        assert await rest == []
        assert (await settled).job.state == "queued"
        assert [each.kind for each in await all_of(live.watch("a"))] == ["status"]

    run(main)


def picture(name: str) -> Picture:
    return Picture(job=name, index=0, request=REQUEST, created=0.0, seconds=0.0, warnings=())


def test_only_the_last_jobs_and_drafts_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ENDED", 2)
    monkeypatch.setattr(module, "_DRAFT_BYTES", 25)

    async def main(live: Live) -> None:
        for name in ("a", "b", "c"):
            live.add(job(name, 1))
            live.end(name, "done")
        assert [name for name in "abc" if name in live] == ["b", "c"]
        for name, size in (("d", 10), ("e", 20), ("f", 10), ("g", 1000)):
            live.add(job(name, 1, is_draft=True))
            live.drawn(name, 0, (picture(name), b"x" * size))
            live.end(name, "done")
            if name == "f":
                assert [each for each in "def" if each in live] == ["f"]
        assert live.draft("f", 0) is None
        assert live.draft("g", 0) == (picture("g"), b"x" * 1000)  # the last one always is
        assert [name for name in "abc" if name in live] == ["b", "c"]

    run(main)


def test_a_deleted_picture_is_told_of_no_more() -> None:
    async def main(live: Live) -> None:
        live.add(job("a", 2))
        live.drawn("a", 0)
        live.drawn("a", 1)
        live.deleted("a", 0)
        status = live.status("a")
        assert status is not None
        assert status.drawn == (1,)
        live.end("a", "done")
        live.deleted("a", 1)
        assert "a" not in live
        live.deleted("a", 1)

    run(main)
