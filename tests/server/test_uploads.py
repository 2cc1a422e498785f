"""Bodies: read up to a limit and never unpacked; pictures told by their first bytes."""

from __future__ import annotations

import asyncio
import gzip
import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.requests import Request

from unstir.server.uploads import KINDS, body_of, kind_of


class Sent:
    """A request whose body comes in chunks; how many of them were read."""

    def __init__(self, chunks: list[bytes], headers: dict[str, str] | None = None) -> None:
        self.chunks, self.read = chunks, 0
        raw = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
        self.request = Request({"type": "http", "method": "POST", "headers": raw}, self.receive)

    async def receive(self) -> dict[str, Any]:
        chunk = self.chunks[self.read] if self.chunks else b""
        self.read += 1
        return {"type": "http.request", "body": chunk, "more_body": self.read < len(self.chunks)}

    def body(self, most: int) -> bytes:
        return asyncio.run(body_of(self.request, most))


@given(st.lists(st.binary(max_size=8), max_size=6), st.integers(0, 40))
def test_a_body_is_whole_or_refused(chunks: list[bytes], most: int) -> None:
    sent, whole = Sent(chunks), b"".join(chunks)
    if len(whole) <= most:
        assert sent.body(most) == whole
    else:
        with pytest.raises(HTTPException) as caught:
            sent.body(most)
        assert caught.value.status_code == 413
        assert str(most) in caught.value.detail


def test_the_limit_is_taken_to_the_byte() -> None:
    assert Sent([b"x" * 20, b"y" * 5]).body(25) == b"x" * 20 + b"y" * 5
    with pytest.raises(HTTPException):
        Sent([b"x" * 20, b"y" * 6]).body(25)


def test_no_more_is_read_than_has_to_be() -> None:
    sent = Sent([b"x" * 10] * 1000)
    with pytest.raises(HTTPException):
        sent.body(25)
    assert sent.read == 3


def test_a_body_that_says_that_it_is_too_large_is_not_read() -> None:
    sent = Sent([b"x"], {"Content-Length": "26"})
    with pytest.raises(HTTPException):
        sent.body(25)
    assert sent.read == 0


@pytest.mark.parametrize("length", ["-1", "x", "9" * 5000, "²", ""])
def test_a_length_that_is_none_is_not_believed(length: str) -> None:
    assert Sent([b"abc"], {"Content-Length": length.replace("²", "\xb2")}).body(3) == b"abc"


@pytest.mark.parametrize("packing", ["gzip", "br", "Deflate", "gzip, gzip"])
def test_a_packed_body_is_refused(packing: str) -> None:
    sent = Sent([gzip.compress(b"0" * 10**6)], {"Content-Encoding": packing})
    with pytest.raises(HTTPException) as caught:
        sent.body(10**4)
    assert caught.value.status_code == 415
    assert sent.read == 0


@pytest.mark.parametrize("packing", ["identity", " Identity ", ""])
def test_a_body_that_is_not_packed_may_say_so(packing: str) -> None:
    assert Sent([b"abc"], {"Content-Encoding": packing}).body(3) == b"abc"


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_is_told_by_its_first_bytes(kind: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (3, 2)).save(file, kind.removeprefix("image/"))
    assert kind_of(file.getvalue()) == kind


@pytest.mark.parametrize("data", [b"", b"<html><script>", b"<svg xmlns='x'>", b"RIFF1234WAVE", b"%PDF-1.4"])
def test_anything_else_is_shown_by_no_browser(data: bytes) -> None:
    assert kind_of(data) == "application/octet-stream"
