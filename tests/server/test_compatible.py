"""Sizes that no model draws, formats, bodies and mistakes: what all APIs of others share."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from dataclasses import replace
from typing import Any

import numpy
import pytest
from hypothesis import given as drawn
from hypothesis import strategies as some
from PIL import Image
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from unstir.metadata import as_png, recipe_in, recipe_of
from unstir.model import SamplingDefaults
from unstir.server import compatible
from unstir.server.asking import Asked, Limits, Refused
from unstir.server.compatible import Finish, Shape, Wrong
from unstir.server.service import Busy, ModelFacts, Unknown
from unstir.server.waiting import Gone, Slow

LIMITS = Limits()
ONE = ModelFacts(
    name="one",
    checksum="0" * 64,
    size=64,
    multiple=16,
    is_one_size=True,
    samplers=("ddim",),
    sampling=SamplingDefaults(),
    tuned=(),
)
MANY = replace(ONE, is_one_size=False)


def shape(width: int, height: int, facts: ModelFacts = ONE) -> tuple[int, int, int]:
    got = compatible.shape_of(width, height, facts, LIMITS, "size")
    assert got.full == (width, height)
    assert str(got) == f"{width}x{height}"
    return got.width, got.height, got.factor


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 16, 45])
def test_a_whole_multiple_of_the_models_size_is_enlarged(factor: int) -> None:
    assert shape(64 * factor, 64 * factor) == (64, 64, factor)
    assert shape(64 * factor, 64 * factor, MANY) == (64, 64, factor)


@pytest.mark.parametrize(
    "size", [(65, 65), (32, 32), (100, 64), (64, 128), (1, 1), (96, 96), (1536, 1024), (1000, 1000)]
)
def test_other_sizes_are_refused_with_those_that_there_are(size: tuple[int, int]) -> None:
    with pytest.raises(
        Wrong, match=rf"cannot draw {size[0]}x{size[1]}; it draws 64x64, .*64x64, 128x128, 192x192"
    ) as error:
        shape(*size)
    assert (error.value.field, error.value.code, error.value.status) == ("size", "invalid_size", 400)


def test_the_nearest_size_is_among_those_that_are_named() -> None:
    with pytest.raises(Wrong, match="1024x1024"):
        shape(1023, 1030)


@pytest.mark.parametrize("size", [(64 * 46, 64 * 46), (99999, 99999), (64, 64 * 9999)])
def test_what_is_too_large_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(Wrong, match="too large; it draws 64x64"):
        shape(*size)


def test_a_model_of_many_sizes_draws_near_its_own_and_enlarges_the_rest() -> None:
    assert shape(96, 64, MANY) == (96, 64, 1)
    assert shape(48, 80, MANY) == (48, 80, 1)
    assert shape(1536, 1024, MANY) == (96, 64, 16)
    assert shape(1024, 1536, MANY) == (64, 96, 16)
    assert shape(176, 160, MANY) == (176, 160, 1)  # 11:10 has no smaller one
    for size in ((100, 64), (16 * 17, 16 * 16)):  # no multiple; no smaller one, and too large itself
        with pytest.raises(Wrong, match="multiples of 16"):
            shape(*size, MANY)


@drawn(some.integers(1, 60), some.integers(1, 60), some.integers(1, 12))
def test_whatever_is_drawn_is_a_size_that_the_model_has(wide: int, high: int, factor: int) -> None:
    try:
        width, height, _ = shape(16 * wide * factor, 16 * high * factor, MANY)
    except Wrong:
        assert 16 * wide * 16 * high > (64 * LIMITS.scale) ** 2
        return
    assert width % 16 == height % 16 == 0
    assert width * height <= (64 * LIMITS.scale) ** 2


def test_without_a_size_it_is_the_pictures_or_the_models() -> None:
    kept = compatible.Kept(name="", width=128, height=128, recipe=None)
    assert compatible.usual_shape(kept, ONE, LIMITS) == Shape(width=64, height=64, factor=2)
    assert compatible.usual_shape(replace(kept, width=100), ONE, LIMITS) == Shape(width=64, height=64)
    assert compatible.usual_shape(None, ONE, LIMITS) == Shape(width=64, height=64)


def test_an_answer_has_an_end() -> None:
    large = Shape(width=64, height=64, factor=45)
    compatible.require_few(large, 4, "n")
    with pytest.raises(Wrong, match="5 pictures of 2880x2880 are too much for one answer; ask for at most 4"):
        compatible.require_few(large, 5, "n")


# Formats.


def picture(size: tuple[int, int] = (16, 16)) -> Image.Image:
    image = numpy.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=numpy.uint8)
    return Image.fromarray(image)


@pytest.fixture(scope="module")
def png(pipe: Any) -> bytes:
    return as_png(picture(), recipe_of(pipe, pipe.request("a cat\nFor: ever", seed=3)))


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def test_an_enlarged_png_keeps_its_recipe_and_says_that_it_was_enlarged(png: bytes) -> None:
    data = compatible.encoded(png, Finish(shape=Shape(width=16, height=16, factor=3)))
    large, small = opened(data), opened(png)
    assert (large.format, large.size) == ("PNG", (48, 48))
    assert large.info["parameters"] == small.info["parameters"] + ", Hires upscale: 3, Hires upscaler: Lanczos"
    assert recipe_in(data) == recipe_in(png)
    expected = small.resize((48, 48), Image.Resampling.LANCZOS)
    assert numpy.array_equal(numpy.array(large), numpy.array(expected))


@pytest.mark.parametrize(("kind", "name"), [("jpeg", "JPEG"), ("webp", "WEBP")])
def test_other_formats_lose_more_the_less_quality_they_have(png: bytes, kind: Any, name: str) -> None:
    sizes, errors = [], []
    for quality in (0, 50, 100):
        data = compatible.encoded(png, Finish(shape=Shape(width=16, height=16), kind=kind, quality=quality))
        assert opened(data).format == name
        sizes.append(len(data))
        difference = numpy.array(opened(data).convert("RGB"), float) - numpy.array(opened(png), float)
        errors.append(float((difference**2).mean()))
    assert sizes == sorted(set(sizes))
    assert errors == sorted(set(errors), reverse=True)
    assert Finish(shape=Shape(width=1, height=1), kind=kind).media_type == f"image/{kind}"


def test_what_was_not_painted_keeps_its_own_pixels_where_the_drawing_is_enlarged() -> None:
    source, mask = picture((32, 32)), Image.new("L", (32, 32))
    mask.paste(255, (8, 8, 24, 24))
    files = [io.BytesIO(), io.BytesIO()]
    source.save(files[0], "PNG")
    mask.save(files[1], "PNG")
    over = (files[0].getvalue(), files[1].getvalue())
    finish = Finish(shape=Shape(width=16, height=16, factor=2))
    got = numpy.array(opened(compatible.encoded(Image.new("RGB", (16, 16), "red"), finish, over)))
    paints = numpy.array(mask) > 0
    assert (got[paints] == (255, 0, 0)).all()
    assert (got[~paints] == numpy.array(source)[~paints]).all()


# Bodies.


class Body(BaseModel):
    model_config = compatible.STRICT
    n: int
    text: str = ""
    flag: bool | None = None


def test_a_body_is_read_strictly() -> None:
    assert compatible.read_json(Body, b'{"n": 3, "text": "x"}') == Body(n=3, text="x")
    assert compatible.read_texts(Body, {"n": "3", "flag": "true"}) == Body(n=3, flag=True)


@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        (b"", "", "invalid_value"),
        (b"{", "", "invalid_value"),
        (b"[1]", "", "invalid_value"),
        (b"null", "", "invalid_value"),
        (b"\xff\xfe", "", "invalid_value"),
        (b'{"text": "a"}', "n", "missing_required_parameter"),
        (b'{"n": 1, "nn": 2}', "nn", "unknown_parameter"),
        (b'{"n": "1"}', "n", "invalid_value"),
        (b'{"n": 1.5}', "n", "invalid_value"),
        (b'{"n": true}', "n", "invalid_value"),
        (b'{"n": NaN}', "n", "invalid_value"),
        (b'{"n": 1, "text": 7}', "text", "invalid_value"),
        (b'{"n": 1, "text": "\\ud800"}', "", "invalid_value"),
        (b'{"n": ' + b"[" * 100_000, "", "invalid_value"),
        (b'{"n": ' + b"[" * 150 + b"]" * 150 + b"}", "n", "invalid_value"),
    ],
)
def test_a_wrong_body_is_refused_by_name(body: bytes, field: str, code: str) -> None:
    with pytest.raises(Wrong) as error:
        compatible.read_json(Body, body)
    assert (error.value.field, error.value.code, error.value.status) == (field, code, 400)
    assert str(error.value)


def test_a_number_of_many_digits_is_not_written_out() -> None:
    with pytest.raises(Wrong) as error:
        compatible.read_json(Body, b'{"text": 1' + b"0" * 5000 + b', "n": 1}')
    assert len(str(error.value)) < 200


def posted(body: bytes, kind: str) -> Request:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    headers = [(b"content-type", kind.encode("latin-1")), (b"content-length", str(len(body)).encode())]
    return Request({"type": "http", "method": "POST", "path": "/v1/x", "headers": headers}, receive)


def form(*parts: tuple[str, bytes]) -> bytes:
    joined = b"".join(
        b"--XX\r\nContent-Disposition: form-data; " + a.encode() + b"\r\n\r\n" + b + b"\r\n" for a, b in parts
    )
    return joined + b"--XX--\r\n"


FORM = "multipart/form-data; boundary=XX"


def read(body: bytes, kind: str = FORM, most: int = 10**6) -> compatible.Form:
    return asyncio.run(compatible.read_form(posted(body, kind), most))


def test_a_form_has_texts_and_files() -> None:
    body = form(
        ('name="n"', b"2"),
        ('name="image"; filename="a.png"', b"\x89PNG\r\n--X"),
        ('name="l[]"', b"1"),
        ('name="l[]"', b"2"),
        ('name="mask[]"; filename="m"', b""),
        ('name="prompt"', "ö\r\nx".encode()),
    )
    got = read(body)
    assert got.texts == {"n": "2", "l": ["1", "2"], "prompt": "ö\r\nx"}
    assert got.files == {"image": [b"\x89PNG\r\n--X"], "mask": [b""]}


def test_what_is_said_twice_is_refused() -> None:
    with pytest.raises(Wrong, match="'n' is sent twice"):
        read(form(('name="n"', b"2"), ('name="n"', b"3")))


WHOLE = form(('name="n"', b"2"), ('name="image"; filename="a"', b"abc"))


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", FORM),
        (b"{}", FORM),
        (b"--YY\r\n", FORM),
        (WHOLE[:-6], FORM),
        (WHOLE[:40], FORM),
        (WHOLE[:-14], FORM),
        (b"--XX\r\n\r\nx\r\n--XX--", FORM),
        (b"--XX\r\nContent-Disposition: form-data\r\n\r\nx\r\n--XX--", FORM),
        (WHOLE, "multipart/form-data"),
        (WHOLE, "multipart/form-data; boundary="),
        (WHOLE, "multipart/form-data; boundary=" + "X" * 300),
        (WHOLE, "multipart/form-data; boundary=\xff"),
        (WHOLE, "application/json"),
        (WHOLE, "application/x-www-form-urlencoded"),
        (WHOLE, ""),
        (form(*(('name="x"', b"1"),) * 65), FORM),
        (form(('name="x"', b"1" * 70_000)), FORM),
        (form(('name="x"', b"\xff\xfe")), FORM),
    ],
)
def test_a_damaged_form_is_refused(body: bytes, kind: str) -> None:
    with pytest.raises(Wrong) as error:
        read(body, kind)
    assert error.value.status == 400
    assert str(error.value).isascii()


def test_a_form_that_is_too_large_is_not_read() -> None:
    with pytest.raises(HTTPException) as error:
        read(WHOLE, most=20)
    assert error.value.status_code == 413


def test_a_file_is_sent_as_text_with_and_without_its_kind() -> None:
    text = base64.b64encode(b"hello").decode()
    for given in (text, f"data:image/png;base64,{text}", f"{text[:4]}\n{text[4:]}", compatible.to_base64(b"hello")):
        assert compatible.from_base64(given, "image", 100) == b"hello"


@pytest.mark.parametrize(
    "text", ["?", "data:image/png,abcd", "abc", "http://x/y.png", "é", "\ud800", "data:;base64,%%"]
)
def test_broken_base64_is_refused(text: str) -> None:
    with pytest.raises(Wrong, match="image is no base64"):
        compatible.from_base64(text, "image", 100)


def test_a_large_file_is_refused_before_it_is_unpacked() -> None:
    with pytest.raises(Wrong, match="more than 100 bytes"):
        compatible.from_base64("A" * 10_000, "image", 100)


def test_masks_and_pictures_are_kept_or_refused_by_their_field(make_service: Any) -> None:
    async def main() -> None:
        async with make_service(limits=Limits(upload_pixels=1000)) as service:
            file = io.BytesIO()
            Image.new("L", (8, 8), 200).save(file, "PNG")

            def dark(image: Image.Image) -> Image.Image:
                assert image.getextrema() == (200, 200)
                return Image.new("L", image.size)

            kept = await compatible.kept_mask(service, file.getvalue(), "mask", dark)
            assert opened(await service.kept(kept.name)).getextrema() == (0, 0)
            large = io.BytesIO()
            Image.new("L", (80, 80)).save(large, "PNG")
            for data in (b"", b"x", file.getvalue()[:30], large.getvalue()):
                with pytest.raises(Wrong, match="^mask: ") as error:
                    await compatible.kept_mask(service, data, "mask", dark)
                assert error.value.field == "mask"

    asyncio.run(main())


def test_what_was_drawn_is_said_fully(make_service: Any) -> None:
    async def main() -> None:
        async with make_service() as service:
            asked = Asked(prompt="a cat", number=2, seed=4, settings={"negative": "dog", "guidance_scale": 1.0})
            job = await service.accept(asked)
            status = await service.settled(job.id)
            got = compatible.effective(service, status, 1, Shape(width=16, height=16, factor=2))
            assert got["warnings"].pop() == "drawn at 16x16 and enlarged 2 times to 32x32"
            assert "negative prompt has no influence" in got["warnings"][0]
            expected = {
                "prompt": "a cat",
                "negative_prompt": "dog",
                "seed": 5,
                "steps": 3,
                "guidance": 1.0,
                "enlarged": 2,
            }
            assert {name: got[name] for name in expected} == expected
            same = Finish(shape=Shape(width=16, height=16))
            assert await compatible.finished(service, job.id, 1, same) == await service.picture(job.id, 1)

    asyncio.run(main())


# Mistakes.


def answer(error: Exception, path: str) -> Response:
    async def handle(request: Request) -> Response:
        raise error

    request = Request(
        {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b"", "server": ("a", 1)}
    )
    return asyncio.run(compatible.answered(handle, {"number": "n"})(request))


@pytest.mark.parametrize(
    ("error", "status", "kind", "field", "code"),
    [
        (Wrong("no \ud800", "f\ud800", "c"), 400, "invalid_request_error", "f\ud800", "c"),
        (Refused("no", "number"), 400, "invalid_request_error", "n", "invalid_value"),
        (Refused("no", "model"), 400, "invalid_request_error", "model", "model_not_found"),
        (Unknown("no"), 404, "invalid_request_error", None, "not_found"),
        (Busy("no", 7), 429, "rate_limit_error", None, "rate_limit_exceeded"),
        (Slow("no"), 504, "server_error", None, None),
        (HTTPException(413, "no"), 413, "invalid_request_error", None, None),
        (Wrong("no", "", "failed", 500), 500, "server_error", None, "failed"),
    ],
)
def test_mistakes_are_told_in_the_form_of_the_path(
    error: Exception, status: int, kind: str, field: str | None, code: str | None
) -> None:
    openai = answer(error, "/v1/images/edits")
    assert openai.status_code == status
    told = json.loads(bytes(openai.body))["error"]
    assert (told["type"], told["param"], told["code"]) == (kind, field, code)
    assert told["message"].startswith("no")
    web = answer(error, "/sdapi/v1/txt2img")
    assert web.status_code == status
    assert json.loads(bytes(web.body))["detail"].startswith("no")
    assert openai.headers.get("retry-after") == ("7" if isinstance(error, Busy) else None)
    assert openai.headers.get("x-should-retry") == ("false" if status in (500, 504) else None)


def test_nobody_is_told_anything_when_nobody_is_there() -> None:
    assert answer(Gone(), "/v1/x").status_code == 499


def test_what_nobody_foresaw_passes_through() -> None:
    with pytest.raises(KeyError):
        answer(KeyError("x"), "/v1/x")


def test_json_is_ascii() -> None:
    got = compatible.said({"a": "ö\ud800"})
    assert bytes(got.body).isascii()
    assert json.loads(bytes(got.body)) == {"a": "ö\ud800"}
    with pytest.raises(ValueError, match="JSON"):
        compatible.said({"a": float("nan")})
