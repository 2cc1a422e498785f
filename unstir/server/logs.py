"""What the server tells of itself: a JSON object a line, of every request and of what went wrong.

Knows: how long a request took, what became of it, where an exception came from; what must not be told.
Does not know: routes, jobs and pictures; who may ask.

A line holds no query string, no header and no address but the client's. Prompts, and the texts of exceptions, which
may hold one, are in it only if they are asked for.
"""

from __future__ import annotations

import json
import logging
import secrets
import sys
import time
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TextIO

from starlette.types import ASGIApp, Message, Receive, Scope, Send

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_ID = "unstir.id"  # in a scope


@dataclass(frozen=True, kw_only=True)
class Told:
    """A request that has ended.

    Args:
        id: of the request; the reply's X-Request-Id.
        method: one of METHODS, or OTHER.
        route: the template of its path, "" if there is no such path.
        status: of HTTP; 499 if the client left before there was one.
        seconds: from the request's head to the last byte of the reply.
        client: the address of whoever asked.
    """

    id: str
    method: str
    route: str
    status: int
    seconds: float
    client: str


class Log:
    """Lines of JSON.

    Args:
        stream: where they go, stderr if it is None.
        has_prompts: whether prompts, and texts of exceptions, are told.
        has_requests: whether every request is told, or only what goes wrong.
    """

    def __init__(self, stream: TextIO | None = None, *, has_prompts: bool = False, has_requests: bool = True) -> None:
        self._stream = stream
        self.has_prompts, self.has_requests = has_prompts, has_requests

    def request(self, told: Told) -> None:
        """Tell of a request."""
        if self.has_requests or told.status >= 500:
            level = "error" if told.status >= 500 else "info"
            fields = {"id": told.id, "method": told.method, "route": told.route, "status": told.status}
            self.line(level, "request", {**fields, "seconds": round(told.seconds, 4), "client": told.client})

    def failure(self, scope: Scope, error: BaseException) -> None:
        """Tell of an exception that nobody foresaw, while a request was answered."""
        self.line("error", "exception", {"id": str(scope.get(_ID, "")), **self._told(error)})

    def heard(self, body: bytes) -> None:
        """Tell the prompt in the JSON body of a request, if prompts are asked for."""
        if not self.has_prompts or not body.startswith(b"{"):
            return
        try:
            asked = json.loads(body)
        except ValueError:
            return  # whoever reads it will say so
        told = {name: asked[name] for name in ("prompt", "negative", "negative_prompt") if name in asked}
        if told:
            self.line("info", "asked", told)

    def line(self, level: str, event: str, fields: Mapping[str, object]) -> None:
        """Tell of anything.

        Args:
            level: "info", "warning" or "error".
            event: what kind of line it is.
            fields: what is told; no secrets.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        # One write a line, and nothing in it that a terminal or another line could be made of.
        stream = self._stream or sys.stderr
        stream.write(json.dumps({"time": now, "level": level, "event": event, **fields}) + "\n")
        stream.flush()

    @contextmanager
    def gathered(self, *loggers: str) -> Generator[None]:
        """What these loggers of Python tell becomes lines too, and goes nowhere else meanwhile."""
        handler = _Handler(self)
        before = [
            (logger, logger.handlers, logger.propagate, logger.level) for logger in map(logging.getLogger, loggers)
        ]
        for logger, *_ in before:
            logger.handlers, logger.propagate = [handler], False
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, handlers, propagate, level in before:
                logger.handlers, logger.propagate = handlers, propagate
                logger.setLevel(level)

    def _told(self, error: BaseException) -> dict[str, object]:
        frames = traceback.extract_tb(error.__traceback__)
        where = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
        text = {"text": str(error)} if self.has_prompts else {}
        return {"error": type(error).__name__, **text, "where": where}


class _Handler(logging.Handler):
    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        fields: dict[str, object] = {"logger": record.name}
        if error is not None:
            fields |= self._log._told(error)  # pyright: ignore[reportPrivateUsage]
        # A template without what is put into it: an address or a path may be among that.
        fields["message"] = record.getMessage() if self._log.has_prompts else str(record.msg).split("\n")[0]
        self._log.line("error" if record.levelno >= logging.ERROR else "warning", "server", fields)


class Telling:
    """An application whose every request is told of once it has ended.

    Args:
        app: what answers.
        listeners: are told.
        clock: seconds.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        listeners: Sequence[Callable[[Told], None]],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._app, self._listeners, self._clock = app, tuple(listeners), clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope[_ID] = name = secrets.token_hex(8)
        started, status = self._clock(), 499

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
                message = {**message, "headers": [*message.get("headers", []), (b"x-request-id", name.encode())]}
            await send(message)

        try:
            await self._app(scope, receive, sent)
        finally:
            told = Told(
                id=name,
                method=scope["method"] if scope["method"] in METHODS else "OTHER",
                route=str(getattr(scope.get("route"), "path", "")),
                status=status,
                seconds=self._clock() - started,
                client=str((scope.get("client") or ("", 0))[0]),
            )
            for listener in self._listeners:
                listener(told)
