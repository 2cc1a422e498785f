"""The socket: where the server is reached, how long a client may take, and how it stops.

Knows: uvicorn, addresses and ports, signals, connections and their times.
Does not know: what is answered; who may ask.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

LOGGERS = ("uvicorn.error", "asyncio", "unstir")
"""Who tells of broken connections, and of what failed beside any request."""

_BACKLOG = 512  # connections that the system holds until they are taken
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nretry-after: 1\r\nconnection: close\r\n"
    b"x-content-type-options: nosniff\r\n\r\n"
)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """What a client may take.

    Args:
        connections: at one time, of all clients.
        head_seconds: until the head of a request is there.
        idle_seconds: between two requests.
        write_seconds: in which it must read on, once the buffers are full.
        stop_seconds: for answers that are on their way when the server stops.
    """

    connections: int = 512
    head_seconds: float = 10.0
    idle_seconds: int = 15
    write_seconds: float = 30.0
    stop_seconds: int = 3


def bind(host: str, port: int) -> socket.socket:
    """Take an address; nobody is answered there yet.

    Args:
        host: an address of this machine, or localhost.
        port: 0 takes any that is free.

    Raises:
        ValueError: if the port is none.
        OSError: if the address is not this machine's, or taken.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"a port is a number from 0 to 65535, got {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            "127.0.0.1" if host == "localhost" else host,
            port,
            type=socket.SOCK_STREAM,
            flags=socket.AI_NUMERICHOST,  # nobody is asked for a name
        )[0]
    except socket.gaierror:
        raise ValueError(f"{host} is no address; give one of this machine, for instance 127.0.0.1") from None
    place = socket.socket(family, kind, protocol)
    try:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _notice_the_dead(place)
        place.bind(address)
    except OSError as error:
        place.close()
        reason = (error.strerror or str(error)).lower()
        raise OSError(f"port {port} of {host} cannot be taken ({reason}); give another --port, or 0 for any") from error
    place.setblocking(False)
    return place


def address_of(place: socket.socket) -> str:
    """What a browser on this machine opens to reach a socket."""
    name: tuple[str, int] = place.getsockname()[:2]
    host, port = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(name[0], name[0]), name[1]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def run(
    app: Starlette,
    place: socket.socket,
    *,
    ready: Callable[[str], None],
    ending: Callable[[], Awaitable[None]],
    patience: Patience | None = None,
) -> None:
    """Answer until SIGINT or SIGTERM, then let go within a few seconds.

    Args:
        app: what answers; its lifespan begins before anybody is answered and ends after everybody is.
        place: a socket that is bound.
        ready: is told the address once it answers.
        ending: is called when no new connections are taken any more, and has the answers end that would go on.
        patience: what a client may take.

    Raises:
        Exception: whatever the app's lifespan raises.
    """
    asyncio.run(_until_signalled(app, place, ready=ready, ending=ending, patience=patience or Patience()))


async def listen(
    app: Starlette,
    place: socket.socket,
    *,
    ready: Callable[[str], None],
    ending: Callable[[], Awaitable[None]],
    stop: asyncio.Event,
    patience: Patience | None = None,
) -> None:
    """The same on a loop that runs already, until ``stop`` is set."""
    patience = patience or Patience()
    async with app.router.lifespan_context(app):
        if stop.is_set():
            place.close()
            return
        server = _Server(app, patience, ready=lambda: ready(address_of(place)), ending=ending)
        stopping = asyncio.ensure_future(stop.wait())
        stopping.add_done_callback(lambda _: server.leave())
        try:
            await server.serve(sockets=[place])
        finally:
            stopping.cancel()


async def _until_signalled(
    app: Starlette,
    place: socket.socket,
    *,
    ready: Callable[[str], None],
    ending: Callable[[], Awaitable[None]],
    patience: Patience,
) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, stop.set)
    try:
        await listen(app, place, ready=ready, ending=ending, stop=stop, patience=patience)
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


class _Server(uvicorn.Server):
    """Uvicorn's, with signals, readiness and streams as we have them."""

    def __init__(
        self, app: Starlette, patience: Patience, *, ready: Callable[[], None], ending: Callable[[], Awaitable[None]]
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                loop="asyncio",
                http=cast("type[asyncio.Protocol]", partial(_Patient, patience=patience)),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=_BACKLOG,
                timeout_keep_alive=patience.idle_seconds,
                timeout_graceful_shutdown=patience.stop_seconds,
            )
        )
        self._ready, self._ending = ready, ending

    def leave(self) -> None:
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        # Uvicorn would raise the signal again when it is done, and so end the process before the lifespan has ended.
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        await self._ending()
        await super().shutdown(sockets=sockets)
        for connection in list(self.server_state.connections):
            connection.transport.abort()


class _Patient(H11Protocol):
    """Uvicorn's HTTP, with an end to every wait for a client."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        patience: Patience,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._patience = patience
        self._head: asyncio.TimerHandle | None = None
        self._write: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        if len(self.connections) > self._patience.connections:
            transport.write(_FULL)
            transport.close()
            self._await(transport.abort)
        else:
            self._await(self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        self._head, self._write = _ended(self._head), _ended(self._write)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        cycle: Any = self.cycle  # None before the first request, whatever its type says
        if cycle is not None and not cycle.response_complete:
            self._head = _ended(self._head)
        elif self._head is None:
            self._await(self._give_up)  # bytes of a head, or of a body that nobody wants any more

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._await(self.transport.abort)  # it may not even read what it asked for

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._write is None:
            self._write = self.loop.call_later(self._patience.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        self._write = _ended(self._write)
        super().resume_writing()

    def _await(self, then: Callable[[], None]) -> None:
        _ended(self._head)
        self._head = self.loop.call_later(self._patience.head_seconds, then)

    def _give_up(self) -> None:
        self.transport.close()
        self._await(self.transport.abort)


def _ended(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def _notice_the_dead(place: socket.socket) -> None:
    """Connections whose other end is gone without a word are found out within two minutes; they inherit it."""
    place.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", 30),
        ("TCP_KEEPINTVL", 15),
        ("TCP_KEEPCNT", 4),
        ("TCP_USER_TIMEOUT", 90_000),
    ):
        if hasattr(socket, name):
            place.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
