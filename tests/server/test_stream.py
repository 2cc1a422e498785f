"""Server-sent events: read by an independent parser, silent, ended by their source and left by their client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect

from unstir.server.stream import sse, told, written

NEVER = 1000.0
LINE_ENDS = ["\r\n", "\n", "\r"]


def parsed(data: bytes) -> list[tuple[str, str]]:
    """Events as the HTML standard (9.2.6) has a browser read them."""
    text = data.decode("utf-8").removeprefix("\ufeff")
    for end in LINE_ENDS[:1] + LINE_ENDS[2:]:
        text = text.replace(end, "\n")
    events, kind, lines = [], "", []
    for line in text.split("\n"):
        if not line:
            if lines:
                events.append((kind or "message", "\n".join(lines)))
            kind, lines = "", []
            continue
        field, _, value = line.partition(":")
        value = value[1:] if value.startswith(" ") else value
        if field == "event":
            kind = value
        elif field == "data":
            lines.append(value)
    return events


async def of(*events: tuple[str, Any]) -> AsyncIterator[tuple[str, Any]]:
    for event in events:
        yield event


async def collected(stream: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in stream])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
).filter(lambda value: not isinstance(value, str))


@given(st.lists(st.tuples(st.sampled_from(["status", "preview", "end"]), JSON), max_size=4))
def test_what_is_told_is_what_a_browser_reads(events: list[tuple[str, Any]]) -> None:
    read = parsed(asyncio.run(collected(told(of(*events), NEVER))))
    assert [(kind, json.loads(data)) for kind, data in read] == events


@given(st.text(alphabet="ab\n\r :\u2028é"))
def test_a_text_is_told_as_it_is_line_by_line(text: str) -> None:
    [(kind, data)] = parsed(written("", text)) or [("message", "")]
    assert kind == "message"
    plain = text
    for end in LINE_ENDS:
        plain = plain.replace(end, "\n")
    assert data == plain


def test_an_event_of_no_kind_is_data_alone() -> None:
    assert written("", "[DONE]") == b"data: [DONE]\n\n"


@pytest.mark.parametrize("kind", ["a\nb", "a\rb"])
def test_a_kind_of_two_lines_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="one line"):
        written(kind, {})


def test_what_json_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        written("status", {"loss": float("nan")})


def test_half_a_pair_of_surrogates_does_not_break_the_stream() -> None:
    assert json.loads(parsed(written("status", {"prompt": "\ud800"}))[0][1]) == {"prompt": "?"}


def test_a_silent_stream_says_that_it_lives_and_loses_nothing() -> None:
    async def run() -> list[bytes]:
        may_go = asyncio.Event()

        async def slow() -> AsyncIterator[tuple[str, Any]]:
            await may_go.wait()
            yield "end", 1

        chunks: list[bytes] = []
        async for chunk in told(slow(), 0.001):
            chunks.append(chunk)
            if len(chunks) == 3:
                may_go.set()
        return chunks

    chunks = asyncio.run(run())
    assert len(chunks) >= 4
    assert parsed(b"".join(chunks[:-1])) == []  # comments are no events
    assert all(chunk.startswith(b":") for chunk in chunks[:-1])
    assert parsed(b"".join(chunks)) == [("end", "1")]


class Source:
    """Events that never end, and whether they were closed."""

    def __init__(self, count: int) -> None:
        self.count, self.is_closed = count, False
        self.waits = asyncio.Event()

    async def events(self) -> AsyncIterator[tuple[str, Any]]:
        try:
            for number in range(self.count):
                yield "status", number
            self.waits.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)  # closing takes a turn, as that of a service may
            self.is_closed = True


async def answered(source: Source, scope: dict[str, Any], receive: Any, send: Any) -> None:
    await sse(source.events(), NEVER)({"type": "http", **scope}, receive, send)


@pytest.mark.parametrize("version", ["2.3", "2.4"])
def test_a_client_that_goes_closes_the_source(version: str) -> None:
    """Servers tell it in two ways: of ASGI 2.3 as a message, of 2.4 as an error where something is sent."""

    async def run() -> Source:
        source = Source(3)
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            await source.waits.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)
            if version == "2.4" and len(sent) == 3:
                raise OSError

        answer = answered(source, {"asgi": {"spec_version": version}}, receive, send)
        if version == "2.4":
            with pytest.raises(ClientDisconnect):
                await answer
            # The server drops the application; its generators are closed by the loop, at the latest at its end.
            await asyncio.get_running_loop().shutdown_asyncgens()
        else:
            await answer
        return source

    assert asyncio.run(run()).is_closed


def test_a_stream_that_is_cancelled_closes_the_source() -> None:
    async def run() -> Source:
        source = Source(2)
        reading = asyncio.create_task(collected(told(source.events(), NEVER)))
        await source.waits.wait()
        reading.cancel()
        await asyncio.wait({reading})
        return source

    assert asyncio.run(run()).is_closed


def test_a_stream_that_is_left_between_two_events_closes_the_source() -> None:
    async def run() -> bool:
        source = Source(2)
        events = source.events()  # held here: what nobody holds is closed by Python itself
        stream = told(events, NEVER)
        await anext(stream)
        await stream.aclose()
        return source.is_closed

    assert asyncio.run(run())


def test_a_source_that_fails_ends_the_stream_with_its_error() -> None:
    async def failing() -> AsyncIterator[tuple[str, Any]]:
        yield "status", 1
        raise RuntimeError("gone")

    async def run() -> list[bytes]:
        stream = told(failing(), NEVER)
        first = await anext(stream)
        with pytest.raises(RuntimeError, match="gone"):
            await anext(stream)
        return [first]

    assert asyncio.run(run()) == [written("status", 1)]


def test_an_answer_is_kept_by_nobody_on_the_way() -> None:
    answer = sse(of())
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-accel-buffering"] == "no"
