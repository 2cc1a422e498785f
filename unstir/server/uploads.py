"""Uploads: the bodies of requests, read up to a limit.

Knows: how much of a body is read, that a packed one is not unpacked, which kinds of pictures are sent and called what.
Does not know: what a body says, where it is kept.
"""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import Request

KINDS = ("image/png", "image/jpeg", "image/webp", "image/gif")
"""Media types of pictures."""

_UNKNOWN = "application/octet-stream"


async def body_of(request: Request, most: int) -> bytes:
    """The body of a request.

    Args:
        request: whose body is read; no more of it than has to be.
        most: bytes that it may have.

    Raises:
        HTTPException: 413 if there are more, 415 if it is packed: a few bytes could become more than memory holds.
    """
    packed = request.headers.get("content-encoding", "identity")
    if packed.strip().lower() not in ("", "identity"):
        raise HTTPException(415, "a packed body is not unpacked here; send it without Content-Encoding")
    announced = request.headers.get("content-length", "")
    if announced.isascii() and announced.isdigit() and len(announced) < 19 and int(announced) > most:
        raise _too_large(most)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise _too_large(most)
    return bytes(body)


def kind_of(data: bytes) -> str:
    """The media type of a picture, by its first bytes; of anything else, one that no browser shows."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return "image/gif" if data.startswith((b"GIF87a", b"GIF89a")) else _UNKNOWN


def _too_large(most: int) -> HTTPException:
    return HTTPException(413, f"the body of such a request is at most {most} bytes; send less")
