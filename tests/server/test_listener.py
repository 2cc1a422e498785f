"""The socket: what a real connection meets, from the first byte to the end of the server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from unstir.server.guard import Ending, Guard, Guarded
from unstir.server.listener import Patience, address_of, bind, listen

HEAD = b"HTTP/1.1\r\nHost: localhost\r\n"


class Lived:
    """An application, and what it has lived through."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.ending = Ending()
        self.gate = asyncio.Event()
        routes = [
            Route("/", self.short),
            Route("/size", self.size, methods=["POST"]),
            Route("/long", self.long),
            Route("/large", self.large),
            Route("/events", self.events),
        ]
        self.app = Starlette(routes=routes, lifespan=self.lifespan)

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncGenerator[None]:
        self.told.append("began")
        yield
        self.told.append("ended")

    async def end(self) -> None:
        self.ending.come()

    async def short(self, request: Request) -> PlainTextResponse:
        return PlainTextResponse("short")

    async def size(self, request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(len(await request.body())))

    async def long(self, request: Request) -> PlainTextResponse:
        self.told.append("long began")
        await self.gate.wait()
        return PlainTextResponse("long")

    async def large(self, request: Request) -> StreamingResponse:
        async def parts() -> AsyncGenerator[bytes]:
            try:
                for _ in range(1000):
                    yield b"x" * 100_000
            finally:
                self.told.append("large left")
                self.gate.set()

        return StreamingResponse(parts())

    async def events(self, request: Request) -> StreamingResponse:
        async def parts() -> AsyncGenerator[str]:
            try:
                yield "data: first\n\n"
                await asyncio.Event().wait()
            finally:
                self.told.append("events left")

        return StreamingResponse(parts(), media_type="text/event-stream")


@contextlib.asynccontextmanager
async def serving(lived: Lived, **patience: Any) -> AsyncGenerator[tuple[str, int, asyncio.Event]]:
    place = bind("127.0.0.1", 0)
    stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
    task = asyncio.create_task(
        listen(lived.app, place, ready=ready.set_result, ending=lived.end, stop=stop, patience=Patience(**patience))
    )
    url = await ready
    assert lived.told == ["began"]
    port = int(url.rstrip("/").rsplit(":", 1)[1])
    try:
        yield url, port, stop
    finally:
        stop.set()
        await task


async def nothing() -> None:
    """Nothing would go on."""


async def said(port: int, *parts: bytes) -> bytes:
    """Say it, and hear everything until the other side closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        return await reader.read()
    finally:
        writer.close()


def test_it_answers_once_it_is_ready_and_ends_what_it_began() -> None:
    async def scenario() -> list[str]:
        lived = Lived()
        async with serving(lived) as (url, port, _):
            assert url == f"http://127.0.0.1:{port}/"
            reply = await said(port, b"GET / " + HEAD + b"Connection: close\r\n\r\n")
            assert reply.startswith(b"HTTP/1.1 200 OK\r\n")
            assert reply.endswith(b"short")
            assert b"\nserver:" not in reply.lower()
        with pytest.raises(ConnectionRefusedError):
            await said(port)
        return lived.told

    assert asyncio.run(scenario()) == ["began", "ended"]


@pytest.mark.parametrize(
    "parts",
    [
        [b""],
        [b"GET / HT"],
        [b"GET / " + HEAD],
        [b"POST / " + HEAD + b"Content-Length: 9\r\n\r\n12"],  # a body that nobody waits for
        [b"GET / " + HEAD + b"\r\n"],  # nothing more
    ],
    ids=["silence", "a word", "half a head", "half a body", "idle"],
)
def test_who_does_not_go_on_is_left(parts: list[bytes]) -> None:
    """The reply to what was whole comes; then the connection is closed, without an end of its own."""

    async def scenario() -> bytes:
        async with serving(Lived(), head_seconds=0.05, idle_seconds=0.05) as (_, port, _):
            return await asyncio.wait_for(said(port, *parts), 20)

    reply = asyncio.run(scenario())
    assert reply.count(b"HTTP/1.1 200 OK") == any(b"\r\n\r\n" in part and part.startswith(b"GET") for part in parts)


def test_the_second_request_of_a_connection_has_as_much_time() -> None:
    """And an answer may take longer than the head of a request."""

    async def scenario() -> None:
        lived = Lived()
        async with serving(lived, head_seconds=0.05, idle_seconds=3600) as (_, port, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /long " + HEAD + b"\r\n")
            await asyncio.sleep(0.2)
            lived.gate.set()
            await asyncio.wait_for(reader.readuntil(b"long"), 20)
            await asyncio.sleep(0.2)  # between two requests other times hold
            writer.write(b"GET")
            assert await asyncio.wait_for(reader.read(), 20) == b""
            writer.close()

    asyncio.run(scenario())


def test_dripping_does_not_help() -> None:
    """A byte now and then within the head: the time is that of the whole head."""

    async def scenario() -> int:
        async with serving(Lived(), head_seconds=0.1) as (_, port, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / " + HEAD + b"X: ")
            closed = asyncio.create_task(reader.read())
            for dripped in range(10_000):
                if closed.done():
                    writer.close()
                    return dripped
                with contextlib.suppress(OSError):
                    writer.write(b"x")
                await asyncio.sleep(0.005)
        raise AssertionError("it waits for ever")

    assert asyncio.run(scenario()) > 0


def test_a_body_too_large_to_wait_for_is_drained_so_that_the_answer_arrives() -> None:
    """And the connection takes the next request."""

    async def scenario() -> bytes:
        async with serving(Lived()) as (_, port, _):
            head = b"POST / " + HEAD + b"Content-Length: 3000000\r\n\r\n"
            last = b"GET / " + HEAD + b"Connection: close\r\n\r\n"
            return await asyncio.wait_for(said(port, head, *[b"x" * 100_000] * 30, last), 20)

    reply = asyncio.run(scenario())
    assert b" 405 " in reply
    assert reply.endswith(b"short")


def test_who_does_not_read_is_left() -> None:
    async def scenario() -> list[str]:
        lived = Lived()
        async with serving(lived, write_seconds=0.05) as (_, port, _):
            with socket.socket() as slow:
                slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                slow.setblocking(False)
                await asyncio.get_running_loop().sock_connect(slow, ("127.0.0.1", port))
                await asyncio.get_running_loop().sock_sendall(slow, b"GET /large " + HEAD + b"\r\n")
                await asyncio.wait_for(lived.gate.wait(), 20)
        return lived.told

    assert asyncio.run(scenario()) == ["began", "large left", "ended"]


def test_no_more_connections_than_there_may_be() -> None:
    async def scenario() -> None:
        async with serving(Lived(), connections=3) as (_, port, _):
            held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
            for reader, writer in held:
                writer.write(b"GET / " + HEAD + b"\r\n")
                assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
            reply = await asyncio.wait_for(said(port), 20)
            assert reply.startswith(b"HTTP/1.1 503 ")
            assert b"retry-after: 1\r\n" in reply
            held[0][1].close()
            for _ in range(1000):  # as soon as the server has noticed
                if b" 200 " in await said(port, b"GET / " + HEAD + b"Connection: close\r\n\r\n"):
                    break
                await asyncio.sleep(0.01)
            else:
                raise AssertionError("a connection that was closed still counts")
            for _, writer in held:
                writer.close()

    asyncio.run(scenario())


def test_open_streams_do_not_hold_it_up_and_replies_are_finished() -> None:
    async def scenario() -> tuple[bytes, bytes, list[str]]:
        lived = Lived()

        async def opened(path: bytes) -> asyncio.StreamReader:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writers.append(writer)
            writer.write(b"GET " + path + b" " + HEAD + b"\r\n")
            return reader

        writers: list[asyncio.StreamWriter] = []
        lived.app.add_middleware(Guarded, guard=Guard(), failed=print, ending=lived.ending)
        async with serving(lived, stop_seconds=60) as (_, port, stop):
            events, long = await opened(b"/events"), await opened(b"/long")
            await events.readuntil(b"data: first\n\n")
            while "long began" not in lived.told:
                await asyncio.sleep(0.01)
            stop.set()
            rest = await asyncio.wait_for(events.read(), 20)
            lived.gate.set()
            reply = await asyncio.wait_for(long.read(), 20)
            for writer in writers:
                writer.close()
        return rest, reply, lived.told

    rest, reply, told = asyncio.run(scenario())
    assert rest == b"\r\n0\r\n\r\n"  # a whole answer, as HTTP ends it
    assert reply.endswith(b"long")
    assert told == ["began", "long began", "events left", "ended"]


def test_what_takes_too_long_is_cut_off() -> None:
    async def scenario() -> list[str]:
        lived = Lived()
        async with serving(lived, stop_seconds=0) as (_, port, stop):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /long " + HEAD + b"\r\n")
            while "long began" not in lived.told:
                await asyncio.sleep(0.01)
            stop.set()
            assert b"long" not in await asyncio.wait_for(reader.read(), 20)
            writer.close()
        return lived.told

    assert asyncio.run(scenario()) == ["began", "long began", "ended"]


def test_what_the_lifespan_raises_is_raised() -> None:
    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None]:
        raise ValueError("another server has this folder")
        yield

    async def scenario() -> None:
        with bind("127.0.0.1", 0) as place:
            await listen(Starlette(lifespan=lifespan), place, ready=print, ending=nothing, stop=asyncio.Event())

    with pytest.raises(ValueError, match="another server"):
        asyncio.run(scenario())


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", -1), ("127.0.0.1", 65536), ("example.org", 0), ("1.2.3", 0)])
def test_addresses_that_are_none(host: str, port: int) -> None:
    if host == "1.2.3":
        host = "1.2.3.4.5"
    with pytest.raises(ValueError, match="a port is a number|is no address"):
        bind(host, port)


def test_a_port_that_is_taken_is_told() -> None:
    with bind("127.0.0.1", 0) as first:
        first.listen()
        port = first.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port} of 127.0.0.1 cannot be taken .*; give another --port"):
            bind("127.0.0.1", port)


def test_addresses_are_what_a_browser_opens() -> None:
    with bind("localhost", 0) as place:
        assert address_of(place) == f"http://127.0.0.1:{place.getsockname()[1]}/"
    with bind("0.0.0.0", 0) as place:
        assert address_of(place) == f"http://127.0.0.1:{place.getsockname()[1]}/"
    if socket.has_ipv6 and os.path.exists("/proc/net/if_inet6"):
        with bind("::1", 0) as place:
            assert address_of(place) == f"http://[::1]:{place.getsockname()[1]}/"


SERVER = """
import contextlib
from starlette.applications import Starlette
from unstir.server.listener import bind, run

@contextlib.asynccontextmanager
async def lifespan(app):
    yield
    print("ended", flush=True)

async def nothing():
    pass

run(Starlette(lifespan=lifespan), bind("127.0.0.1", 0), ready=lambda url: print(url, flush=True), ending=nothing)
print("left")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_stop_it_gently(number: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "ended\nleft\n", "")
