"""Server-sent events: what happens, told to a client over one answer that stays open.

Knows: how an event is written, what a silent stream says to live on, that its source is closed at the end.
Does not know: what happens; jobs, pictures and who listens.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import anyio
from starlette.responses import StreamingResponse

EVERY = 15.0
"""Seconds of silence after which a stream says that it lives."""

_ALIVE = b": alive\n\n"
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # the latter is for nginx, which would collect them


def sse(events: AsyncIterator[tuple[str, Any]], every: float = EVERY) -> StreamingResponse:
    """An answer that tells events as they come, and ends with them or when the client goes.

    Args:
        events: pairs of kind and data. An empty kind is told as data alone; data that is a string is told as it is, all
            else as JSON. It is closed at the end, however that comes.
        every: seconds of silence after which a comment is sent: what lies between keeps the connection, and a client
            that has gone is noticed.
    """
    return StreamingResponse(told(events, every), media_type="text/event-stream", headers=_HEADERS)


async def told(events: AsyncIterator[tuple[str, Any]], every: float = EVERY) -> AsyncGenerator[bytes]:
    """Events as they are written, with comments between them where nothing happens; arguments as of ``sse``."""
    coming: asyncio.Task[tuple[str, Any]] | None = None
    try:
        while True:
            # A task, for an iterator whose waiting is given up in the middle would be at its end.
            coming = coming or asyncio.ensure_future(_next(events))
            await asyncio.wait({coming}, timeout=every)
            if not coming.done():
                yield _ALIVE
                continue
            try:
                kind, data = coming.result()
            except StopAsyncIteration:
                return
            coming = None
            yield written(kind, data)
    finally:
        with anyio.CancelScope(shield=True):  # who leaves is cancelled, and would be at every wait here
            await _left(events, coming)


def written(kind: str, data: Any) -> bytes:
    """One event.

    Raises:
        ValueError: if the kind holds a line break, or the data a number that JSON does not know.
    """
    if "\n" in kind or "\r" in kind:
        raise ValueError(f"the kind of an event is one line, got {kind!r}")
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, allow_nan=False)
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    head = [f"event: {kind}"] if kind else []
    # What is no character of Unicode (half a pair) cannot be sent; it is told as a question mark.
    return "\n".join([*head, *(f"data: {line}" for line in lines), "", ""]).encode("utf-8", "replace")


async def _next(events: AsyncIterator[tuple[str, Any]]) -> tuple[str, Any]:
    return await anext(events)


async def _left(events: AsyncIterator[tuple[str, Any]], coming: asyncio.Task[tuple[str, Any]] | None) -> None:
    """Give up waiting, and close the source."""
    if coming is not None:
        coming.cancel()
        await asyncio.wait({coming})
        if not coming.cancelled():
            coming.exception()  # nobody is left to hear it
    if isinstance(events, AsyncGenerator):
        await events.aclose()
