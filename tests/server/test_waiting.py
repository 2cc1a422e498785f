"""Who waits for a job, who leaves, and what becomes of it then."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest
from PIL import Image

from unstir.pipeline import Pipeline, Result
from unstir.server import waiting
from unstir.server.asking import Asked
from unstir.server.jobs import Job
from unstir.server.service import Busy, Service
from unstir.server.worker import Counts, Listener, Work

ASKED = Asked(prompt="a cat", seed=1)


class Hand:
    """In the place of the worker: draws when it is told to, and ends what is called off."""

    def __init__(self, pipes: Mapping[str, Pipeline], listener: Listener) -> None:
        self.listener = listener
        self.works: dict[str, Work] = {}
        self.cancelled: list[str] = []
        self.counts = Counts()
        self.is_alive = True

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def submit(self, work: Work) -> None:
        self.works[work.job] = work

    def cancel(self, job: str) -> None:
        self.cancelled.append(job)
        self.listener.ended(job)

    def finish(self, job: str) -> None:
        for index, request in enumerate(self.works[job].requests):
            result = Result(request=request, picture=Image.new("RGB", (16, 16)), seconds=0.1, warnings=())
            self.listener.drawn(job, index, result)
        self.listener.ended(job)


class Client:
    """A client that stays until it leaves; what it says before that it leaves is of no interest."""

    def __init__(self) -> None:
        self.has_left = asyncio.Event()
        self.words = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive(self) -> dict[str, Any]:
        if self.words:
            return self.words.pop()
        await self.has_left.wait()
        return {"type": "http.disconnect"}


@pytest.fixture
def with_hand(make_service: Any) -> Callable[..., None]:
    """(test) runs ``await test(service, hand, job, client)`` with a job that nobody has begun to draw."""

    def run(test: Callable[[Service, Hand, Job, Client], Awaitable[None]]) -> None:
        async def main() -> None:
            hands: list[Hand] = []

            def make(pipes: Mapping[str, Pipeline], listener: Listener) -> Hand:
                hands.append(Hand(pipes, listener))
                return hands[0]

            async with make_service(make_worker=make) as service:
                await test(service, hands[0], await service.accept(ASKED), Client())

        asyncio.run(main())

    return run


def test_who_waits_is_told_the_end(with_hand: Any) -> None:
    async def test(service: Service, hand: Hand, job: Job, client: Client) -> None:
        waited = asyncio.ensure_future(waiting.ended(service, job, client.receive))
        await asyncio.sleep(0)
        hand.finish(job.id)
        status = await waited
        assert (status.job.id, status.job.state, status.drawn) == (job.id, "done", (0,))
        assert not hand.cancelled

    with_hand(test)


def test_a_job_that_has_ended_already_is_not_waited_for(with_hand: Any) -> None:
    async def test(service: Service, hand: Hand, job: Job, client: Client) -> None:
        hand.finish(job.id)
        await service.settled(job.id)
        assert (await waiting.ended(service, job, client.receive)).job.state == "done"

    with_hand(test)


@pytest.mark.parametrize("has_key", [False, True])
def test_the_job_of_a_client_that_has_left_is_called_off_unless_it_has_a_key(with_hand: Any, has_key: bool) -> None:
    async def test(service: Service, hand: Hand, job: Job, client: Client) -> None:
        waited = asyncio.ensure_future(waiting.ended(service, job, client.receive, has_key=has_key))
        await asyncio.sleep(0)
        client.has_left.set()
        with pytest.raises(waiting.Gone):
            await waited
        assert hand.cancelled == ([] if has_key else [job.id])
        assert service.status(job.id).job.state == ("queued" if has_key else "cancelled")

    with_hand(test)


@pytest.mark.parametrize("has_key", [False, True])
def test_nobody_waits_for_ever(with_hand: Any, has_key: bool) -> None:
    async def test(service: Service, hand: Hand, job: Job, client: Client) -> None:
        remedy = "same key" if has_key else "called off"
        with pytest.raises(waiting.Slow, match=f"not there after 0 seconds.*{remedy}"):
            await waiting.ended(service, job, client.receive, has_key=has_key, seconds=0)
        assert hand.cancelled == ([] if has_key else [job.id])

    with_hand(test)


def test_a_server_that_stops_calls_nothing_off(with_hand: Any) -> None:
    async def test(service: Service, hand: Hand, job: Job, client: Client) -> None:
        waited = asyncio.ensure_future(waiting.ended(service, job, client.receive))
        watched = waiting.watched(service, job)
        assert (await anext(watched)).kind == "status"
        await asyncio.sleep(0)
        await service.stop()
        with pytest.raises(Busy):
            await waited
        assert [event.kind async for event in watched] == []
        assert not hand.cancelled

    with_hand(test)


@pytest.mark.parametrize("has_key", [False, True])
def test_who_stops_watching_has_left(with_hand: Any, has_key: bool) -> None:
    async def test(service: Service, hand: Hand, job: Job, client: Client) -> None:
        events = waiting.watched(service, job, has_key=has_key)
        assert (await anext(events)).kind == "status"
        await events.aclose()
        assert hand.cancelled == ([] if has_key else [job.id])

    with_hand(test)


def test_who_watches_to_the_end_sees_everything(with_hand: Any) -> None:
    async def test(service: Service, hand: Hand, job: Job, client: Client) -> None:
        seen = []
        async for event in waiting.watched(service, job):
            if not seen:
                hand.finish(job.id)
            seen.append(event.kind)
        assert seen[0] == "status"
        assert [kind for kind in seen if kind != "status"] == ["picture", "end"]
        assert not hand.cancelled

    with_hand(test)
