"""The guard at the door: who may ask, from where, how much and how fast, before any route sees a request.

Knows: Host and Origin, the token, limits of rate and size, headers of safety, and the form of a refusal by its path.
Does not know: what is asked for; jobs, pictures and models.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import ipaddress
import json
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlencode

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "::1", "localhost")
"""What a server without a token may be bound to."""

PAGES = ("/", "/training", "/docs")
"""Paths that people open in a browser; ``?token=`` is taken there, and nowhere else."""

_OPEN = ("/healthz", "/v1/images/files")  # says nothing that needs a token; is found by a secret name alone
_UPLOADS = ("/api/uploads", "/v1/images/", "/sdapi/v1/")  # where requests carry pictures
_MOST_HEADERS = 64
_MOST_CLIENTS = 4096  # whose rates are remembered
_SLOWEST_BYTES = 64 * 1024  # a second, of a body after its first seconds
_BODIES = 8  # as many of the largest bodies are held at once
_WRONG_TOKEN = 20  # as many requests of the rate: guessing is slow
_A_YEAR = 365 * 24 * 3600

_HEADERS: dict[bytes, bytes] = {
    b"content-security-policy": (
        b"default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; form-action 'self'; "
        b"frame-ancestors 'none'"
    ),
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
    b"permissions-policy": b"camera=(), microphone=(), geolocation=()",
    b"cache-control": b"no-store",
}


@dataclass(frozen=True, kw_only=True)
class Guard:
    """What is asked of every request.

    Args:
        token: who does not give it is refused; empty asks for none.
        host: the address that the server is bound to.
        names: by which other names it is reached, as the Host header tells them, without a port.
        rate: requests a second of one client, on average; 0 takes any number.
        burst: requests that a client may make at once.
        body_bytes: the largest body of a request without pictures.
        upload_bytes: the largest body of one with pictures.
        body_seconds: in which a body must have come, and one second more for every 64 KiB.

    Raises:
        ValueError: if there is no token and the address is not this machine's own, or a number is out of range.
    """

    token: str = field(default="", repr=False)
    host: str = "127.0.0.1"
    names: tuple[str, ...] = ()
    rate: float = 50.0
    burst: int = 200
    body_bytes: int = 1024 * 1024
    upload_bytes: int = 56 * 1024 * 1024
    body_seconds: float = 20.0

    def __post_init__(self) -> None:
        if not self.token and not is_loopback(self.host):
            raise ValueError(
                f"without a token only this machine may ask, so {self.host} is not listened on; give --token-file, or "
                "set UNSTIR_TOKEN"
            )
        if not self.token.isascii() or not self.token.isprintable() or " " in self.token:
            raise ValueError("a token is printable ASCII without spaces, for it travels in a header; give another one")
        if not (math.isfinite(self.rate) and self.rate >= 0 and self.burst >= 1):
            raise ValueError(f"a rate is at least 0 and a burst at least 1, got {self.rate:g} and {self.burst}")

    @property
    def session(self) -> str:
        """What the page's cookie holds: it proves the token and does not tell it."""
        return hmac.new(self.token.encode(), b"unstir page", hashlib.sha256).hexdigest()

    def is_own(self, authority: str) -> bool:
        """Whether a Host, with or without a port, is this server's: no other site's name that was bent to it."""
        name = _name_of(authority)
        if name in {"localhost", _name_of(self.host), *(given.lower() for given in self.names)}:
            return True
        if is_loopback(self.host):
            return name in LOOPBACK
        # All addresses are listened on. A name can be bent to any address, an address cannot.
        return self.host in ("0.0.0.0", "::") and _is_address(name)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    return host in LOOPBACK or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def form(path: str, status: int, sentence: str, *, name: str = "") -> dict[str, object]:
    """An error as the clients of a path expect it.

    Args:
        path: below /v1 OpenAI's clients ask, below /sdapi those of AUTOMATIC1111, elsewhere ours.
        status: of HTTP.
        sentence: what was wrong, and what to do.
        name: the field that was wrong.
    """
    if _is_below(path, "/v1"):
        kind, code = _OPENAI.get(status, ("server_error" if status >= 500 else "invalid_request_error", None))
        return {"error": {"message": sentence, "type": kind, "param": name or None, "code": code}}
    if _is_below(path, "/sdapi"):
        return {"detail": sentence}
    return {"error": {"message": sentence, "field": name}}


_OPENAI: dict[int, tuple[str, str | None]] = {
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("invalid_request_error", "forbidden"),
    404: ("invalid_request_error", "not_found"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
}


class Ending:
    """That the server stops, as its answers have to know: soon, and then now.

    Attributes:
        is_near: whether new requests are refused.
        has_come: whether streams that go on are ended.
    """

    def __init__(self) -> None:
        self.is_near, self.has_come = False, False
        self._waiting: set[asyncio.Future[None]] = set()

    def approach(self) -> None:
        """Soon: no new request is answered."""
        self.is_near = True

    def come(self) -> None:
        """Now; on the event loop's thread."""
        self.is_near = self.has_come = True
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    @contextmanager
    def awaited(self) -> Generator[asyncio.Future[None]]:
        """A future that is done once it has come."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.has_come:
            future.set_result(None)
        self._waiting.add(future)
        try:
            yield future
        finally:
            self._waiting.discard(future)
            future.cancel()


class Rates:
    """How many requests each client has left: a bucket each, filled at a rate.

    Args:
        rate: requests a second.
        burst: what a full bucket holds.
        clock: seconds.
    """

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, float(burst), clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str, cost: float = 1.0) -> float:
        """Take from a client's bucket.

        Returns:
            0, or the seconds until there is enough; then nothing was taken.
        """
        if self._rate == 0:
            return 0.0
        left = self._left(client)
        if left < min(cost, self._burst):
            return (min(cost, self._burst) - left) / self._rate
        self._keep(client, left - cost)
        return 0.0

    def charge(self, client: str, cost: float) -> None:
        """Take whether there is enough or not."""
        if self._rate:
            self._keep(client, self._left(client) - cost)

    def _left(self, client: str) -> float:
        left, then = self._buckets.get(client, (self._burst, self._clock()))
        return min(self._burst, left + (self._clock() - then) * self._rate)

    def _keep(self, client: str, left: float) -> None:
        self._buckets[client] = (max(left, -self._burst), self._clock())
        self._buckets.move_to_end(client)
        if len(self._buckets) > _MOST_CLIENTS:
            self._buckets.popitem(last=False)


class _Refusal(Exception):
    """An answer that is no; raised, for it skips the rest of the way."""

    def __init__(self, *, status: int, sentence: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, headers


class Guarded:
    """An application behind the guard.

    Requests reach it with their whole body there, or not at all: a client that sends slowly holds nothing up. Its
    answers get the headers of safety; an exception becomes a bare 500.

    Args:
        app: what is guarded.
        guard: what is asked of a request.
        failed: is told of every exception that ``app`` lets through.
        heard: is told every body that is let in.
        ending: the end of the server.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        guard: Guard,
        failed: Callable[[Scope, Exception], None],
        heard: Callable[[bytes], None] | None = None,
        ending: Ending | None = None,
    ) -> None:
        self._app, self._guard, self._failed, self._heard = app, guard, failed, heard
        self._ending = ending or Ending()
        self._rates = Rates(guard.rate, guard.burst)
        self._held = 0  # bytes of bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, _Answer(send))
        # Nothing here speaks through a websocket; the server closes it.

    async def _answer(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        held = 0
        try:
            headers = _headers_of(scope)
            self._require_place(scope, headers)
            if await self._entered(scope, headers, answer):
                return
            limit = self._guard.upload_bytes if scope["path"].startswith(_UPLOADS) else self._guard.body_bytes
            length = _length_of(headers, limit)
            if length != 0:
                held = limit if length is None else length
                self._require_room(held)
                body = await self._body(receive, limit)
                if self._heard is not None:
                    self._heard(body)
            else:
                body = b""
            await self._app(scope, self._replayed(body, receive, answer), answer)
        except _Refusal as refusal:
            await answer.refuse(scope, refusal)
        except ClientDisconnect:
            pass  # nobody is there to be told
        except Exception as error:
            self._failed(scope, error)
            await answer.refuse(
                scope, _Refusal(status=500, sentence="something went wrong here; the server's log tells")
            )
        finally:
            self._held -= held
        if self._ending.has_come and answer.is_stream:
            await answer.end()

    def _require_place(self, scope: Scope, headers: dict[bytes, list[bytes]]) -> None:
        """Refuse by what a browser says of itself, by rate and by shape."""
        if self._ending.is_near:
            raise _Refusal(
                status=503,
                sentence="the server is being stopped; ask again when it is back",
                headers=((b"retry-after", b"5"), (b"connection", b"close")),
            )
        if sum(map(len, headers.values())) > _MOST_HEADERS:
            raise _Refusal(status=431, sentence=f"a request has at most {_MOST_HEADERS} headers; send fewer")
        hosts = headers.get(b"host", [])
        host = hosts[0].decode("latin-1") if len(hosts) == 1 else ""
        if not self._guard.is_own(host):
            raise _Refusal(
                status=421,
                sentence="this server is not known by the name in the Host header; start it with --host-name NAME",
            )
        if not _is_ours(headers, host, scope["method"]):
            raise _Refusal(status=403, sentence="pages of other sites may not ask this server; open its own page")
        seconds = self._rates.take(client_of(scope))
        if seconds:
            raise _too_often(seconds)

    async def _entered(self, scope: Scope, headers: dict[bytes, list[bytes]], answer: _Answer) -> bool:
        """Ask for the token; true where the answer was given: the way from ``/?token=`` to the page."""
        if not self._guard.token or any(_is_below(scope["path"], each) for each in _OPEN):
            return False
        given, rest = _token_of_query(scope)
        cookie = f"unstir_{(scope.get('server') or ('', 0))[1]}"
        if given is not None and _is_same(given, self._guard.token):
            attributes = "; Path=/; HttpOnly; SameSite=Strict" + ("; Secure" if scope["scheme"] == "https" else "")
            kept = f"{cookie}={self._guard.session}; Max-Age={_A_YEAR}{attributes}"
            await answer.start(
                303, [(b"location", f"{scope['path']}{rest}".encode()), (b"set-cookie", kept.encode())], b""
            )
            return True
        is_known = any(_is_same(secret, self._guard.token) for secret in _secrets(headers)) or any(
            _is_same(value, self._guard.session) for value in _cookies(headers, cookie)
        )
        if not is_known:
            if given is not None or b"authorization" in headers:
                self._rates.charge(client_of(scope), _WRONG_TOKEN)
            raise _unknown(scope["path"])
        return False

    def _require_room(self, length: int) -> None:
        """Count the bytes of a body that comes, before a byte of it is read."""
        self._held += length
        if self._held > _BODIES * self._guard.upload_bytes:
            raise _Refusal(
                status=503,
                sentence="too many large requests come at once; try again in a moment",
                headers=((b"retry-after", b"1"),),
            )

    async def _body(self, receive: Receive, limit: int) -> bytes:
        loop = asyncio.get_running_loop()
        started, body = loop.time(), bytearray()
        try:
            async with asyncio.timeout(self._guard.body_seconds) as until:
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    body += message.get("body", b"")
                    if len(body) > limit:
                        raise _too_large(limit)
                    if not message.get("more_body", False):
                        return bytes(body)
                    until.reschedule(started + self._guard.body_seconds + len(body) / _SLOWEST_BYTES)
        except TimeoutError:
            raise _Refusal(
                status=408,
                sentence="the body of the request came too slowly; send it again",
                headers=((b"connection", b"close"),),
            ) from None

    def _replayed(self, body: bytes, receive: Receive, answer: _Answer) -> Receive:
        """The body at once, then what becomes of the client."""
        is_told = False

        async def replay() -> Message:
            nonlocal is_told
            if not is_told:
                is_told = True
                return {"type": "http.request", "body": body, "more_body": False}
            with self._ending.awaited() as ending:
                coming = asyncio.ensure_future(receive())
                try:
                    await asyncio.wait({coming, ending}, return_when=asyncio.FIRST_COMPLETED)
                    if not coming.done() and not answer.is_stream:
                        await asyncio.wait({coming})  # it has its answer within the time that is left
                    return coming.result() if coming.done() else {"type": "http.disconnect"}
                finally:
                    coming.cancel()

        return replay


class _Answer:
    """A response on its way out: with the headers of safety, begun once and ended once."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.is_begun, self.is_ended, self.is_stream = False, False, False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.is_begun = True
            given = [(name.lower(), value) for name, value in message.get("headers", [])]
            names = {name for name, _ in given}
            headers = [pair for pair in given if pair[0] != b"server"]
            headers += [pair for pair in _HEADERS.items() if pair[0] not in names]
            self.is_stream = (b"content-type", b"text/event-stream") in [
                (name, value.split(b";")[0].strip()) for name, value in given
            ]
            message = {**message, "headers": headers}
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            self.is_ended = True
        await self._send(message)

    async def start(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        headers = [*headers, (b"content-length", str(len(body)).encode())]
        await self({"type": "http.response.start", "status": status, "headers": headers})
        await self({"type": "http.response.body", "body": body})

    async def refuse(self, scope: Scope, refusal: _Refusal) -> None:
        """Say no, unless something was said already."""
        if not self.is_begun:
            body = json.dumps(form(scope["path"], refusal.status, refusal.sentence)).encode()
            await self.start(refusal.status, [(b"content-type", b"application/json"), *refusal.headers], body)

    async def end(self) -> None:
        if self.is_begun and not self.is_ended:
            await self({"type": "http.response.body", "body": b"", "more_body": False})


def client_of(scope: Scope) -> str:
    """The address of whoever asks; of IPv6 the network, for a client has 2^64 of its own."""
    address = str((scope.get("client") or ("", 0))[0])
    if ":" in address and _is_address(address):
        return str(ipaddress.ip_network((address.split("%")[0], 64), strict=False).network_address)
    return address


def _too_often(seconds: float) -> _Refusal:
    return _Refusal(
        status=429,
        sentence="too many requests from this address; ask again a little later",
        headers=((b"retry-after", str(max(1, math.ceil(seconds))).encode()),),
    )


def _too_large(limit: int) -> _Refusal:
    # The connection stays open: one that is closed on a client that still sends may take the answer with it.
    return _Refusal(status=413, sentence=f"the body of such a request is at most {limit} bytes; send less")


def _unknown(path: str) -> _Refusal:
    # A browser asks its user for the password by itself, where it meets Basic; scripts and clients are told Bearer.
    scheme = b'Bearer realm="unstir"'
    if path in PAGES or _is_below(path, "/sdapi"):
        scheme = b'Basic realm="unstir", charset="UTF-8"'
    return _Refusal(
        status=401,
        sentence=(
            "this server asks for its token, and it was not given or is wrong; send Authorization: Bearer TOKEN, give "
            "it as the password, or open /?token=TOKEN"
        ),
        headers=((b"www-authenticate", scheme),),
    )


def _headers_of(scope: Scope) -> dict[bytes, list[bytes]]:
    headers: dict[bytes, list[bytes]] = {}
    for name, value in scope["headers"]:
        headers.setdefault(name.lower(), []).append(value)
    return headers


def _length_of(headers: dict[bytes, list[bytes]], limit: int) -> int | None:
    """Bytes of the body that is announced; None if it comes in chunks of any length."""
    if b"transfer-encoding" in headers:
        return None
    lengths = headers.get(b"content-length", [b"0"])
    if len(lengths) != 1 or not lengths[0].isdigit() or len(lengths[0]) > 18:
        raise _Refusal(status=400, sentence="Content-Length is a whole number, given once")
    if int(lengths[0]) > limit:
        raise _too_large(limit)
    return int(lengths[0])


def _is_ours(headers: dict[bytes, list[bytes]], host: str, method: str) -> bool:
    """Whether a request is from our own page or from no page at all, by what browsers tell."""
    for origin in headers.get(b"origin", []):
        scheme, _, place = origin.decode("latin-1").lower().partition("://")
        if scheme not in ("http", "https") or place != host.lower():
            return False
    site = headers.get(b"sec-fetch-site", [b"none"])[0]
    if site in (b"same-origin", b"none"):
        return True
    # A link elsewhere may lead here; a picture, script or form elsewhere may not.
    is_visit = headers.get(b"sec-fetch-mode", [b""])[0] == b"navigate"
    return is_visit and method in ("GET", "HEAD")


def _token_of_query(scope: Scope) -> tuple[str | None, str]:
    """The token in the query of a page, and the query without it."""
    if scope["path"] not in PAGES or scope["method"] not in ("GET", "HEAD"):
        return None, ""
    pairs = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    given = [value for name, value in pairs if name == "token"]
    rest = urlencode([(name, value) for name, value in pairs if name != "token"])
    return (given[0] if given else None), f"?{rest}" if rest else ""


def _secrets(headers: dict[bytes, list[bytes]]) -> Iterator[str]:
    for value in headers.get(b"authorization", []):
        scheme, _, rest = value.decode("latin-1").partition(" ")
        if scheme.lower() == "bearer":
            yield rest.strip()
        elif scheme.lower() == "basic":
            try:
                yield base64.b64decode(rest.strip(), validate=True).decode("latin-1").partition(":")[2]
            except binascii.Error:
                continue


def _cookies(headers: dict[bytes, list[bytes]], name: str) -> Iterator[str]:
    for header in headers.get(b"cookie", []):
        for part in header.decode("latin-1").split(";"):
            key, _, value = part.strip().partition("=")
            if key == name:
                yield value


def _is_same(given: str, expected: str) -> bool:
    """Compare in a time that tells nothing, not even a length."""
    hashes = [hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest() for text in (given, expected)]
    return hmac.compare_digest(hashes[0], hashes[1])


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def _name_of(authority: str) -> str:
    """The name in ``name:port`` or ``[::1]:port``, in small letters."""
    name = authority.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name if name.count(":") > 1 else name.partition(":")[0].rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
