"""Waiting: an answer that is given when a job has ended, for as long as somebody is there to be answered.

Knows: that a client may leave, and what becomes of its job; how long is waited.
Does not know: what was asked for, in which form it is answered.

A job whose client has left is called off: nobody would see its pictures. One that was asked for under a key is not: who
comes back and asks the same again is given the same job.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from starlette.types import Receive

from unstir.server.jobs import Event, Job, Status
from unstir.server.service import Service

SECONDS = 1800.0
"""That are waited for a job."""


class Gone(Exception):
    """The client has left; there is nobody to be answered."""


class Slow(Exception):
    """The job took too long to wait for."""


async def ended(
    service: Service, job: Job, receive: Receive, *, has_key: bool = False, seconds: float = SECONDS
) -> Status:
    """Wait for the end of a job.

    Args:
        service: that draws it.
        job: what is waited for.
        receive: of a request whose body was read: what comes next is that its client leaves.
        has_key: whether the client can ask for the same job again; else it is called off when nobody waits any more.
        seconds: that are waited.

    Raises:
        Gone: if the client has left.
        Slow: if the job does not end in time.
        Busy: if the server is stopped meanwhile; the job goes on when it is there again.
    """
    leaving = asyncio.ensure_future(_left(receive))
    ending = asyncio.ensure_future(service.settled(job.id))
    try:
        await asyncio.wait({leaving, ending}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if ending.done():
            return ending.result()
        if not has_key:
            await service.cancel(job.id)
        if leaving.done():
            raise Gone
        remedy = "ask again with the same key, and you are given it" if has_key else "it was called off"
        raise Slow(f"the pictures were not there after {seconds:g} seconds; {remedy}")
    finally:
        for waited in (leaving, ending):
            waited.cancel()
        await asyncio.wait({leaving, ending})


async def watched(service: Service, job: Job, *, has_key: bool = False) -> AsyncGenerator[Event]:
    """What happens to a job, until its end; who closes this before has left, as in ``ended``."""
    events, is_over = service.watch(job.id), False
    try:
        async for event in events:
            is_over = event.kind == "end"
            yield event
        is_over = True  # the server is being stopped: the job goes on when it is there again
    finally:
        await events.aclose()
        if not is_over and not has_key:
            await service.cancel(job.id)


async def _left(receive: Receive) -> None:
    """Until the client leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass
