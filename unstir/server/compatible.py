"""Compatible: what the APIs of others have in common, in whose words clients ask that were not written for unstir.

Knows: sizes that no model here draws and how they are had; formats of pictures; bodies and mistakes in them.
Does not know: any API in particular, who may ask, how anything is drawn or kept.

Clients have sizes in their code, and a model has its own. What is a whole multiple of a size that the model draws is
drawn at that size and enlarged, and the answer says so; any other size is refused with the sizes that there are.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import json
import math
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import BaseModel, ConfigDict, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from unstir.server.asking import Limits, Refused
from unstir.server.guard import form
from unstir.server.jobs import Status
from unstir.server.schema import complaint
from unstir.server.service import Busy, Kept, ModelFacts, Service, Unknown
from unstir.server.shelf import mask_in, picture_in
from unstir.server.uploads import body_of
from unstir.server.waiting import Gone, Slow

STRICT = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())
"""Of what clients send: nothing is guessed, nothing is ignored."""

MOST_PIXELS = 3840 * 2160
"""Of one picture in an answer; an answer has at most four times as many."""

MOST_JSON = 1024 * 1024
"""Bytes of a body that holds no picture."""

_Taken = TypeVar("_Taken", bound=BaseModel)
_DISPOSITION = b"content-disposition:"
_MOST_PARTS = 64
_MOST_PART = 64 * 1024  # bytes of a part that is no file
_ANSWERED_PICTURES = 4
_NEAR = 2  # times the pixels that a model was trained on: what it draws well
_KINDS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}
_CODES = {"missing": "missing_required_parameter", "extra_forbidden": "unknown_parameter"}
_CLOSED = 499  # nginx's word for a client that has left before it was answered


class Wrong(Exception):
    """A request that says something wrong.

    Args:
        sentence: what was given, what is expected and what to do.
        field: that is at fault, as the client calls it.
        code: a word for programs.
        status: of HTTP.
    """

    def __init__(self, sentence: str, field: str = "", code: str = "invalid_value", status: int = 400) -> None:
        super().__init__(sentence)
        self.field, self.code, self.status = field, code, status


# What is asked for.


def read_json(model: type[_Taken], body: bytes) -> _Taken:
    """What the body of a request says.

    Raises:
        Wrong: if it is no valid JSON, or a field is unknown, missing or wrong.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _wrong(error, model) from None


def read_texts(model: type[_Taken], texts: Mapping[str, str | list[str]]) -> _Taken:
    """The same of a form, where all is text.

    Raises:
        Wrong: as ``read_json``.
    """
    try:
        return model.model_validate_strings(dict(texts))
    except ValidationError as error:
        raise _wrong(error, model) from None


def _wrong(error: ValidationError, model: type[BaseModel]) -> Wrong:
    errors = error.errors(include_url=False, include_context=False)
    code = _CODES.get(errors[0]["type"], "invalid_value")
    return Wrong(*complaint(errors, {"": tuple(model.model_fields)}), code=code)


@dataclass(frozen=True, kw_only=True)
class Form:
    """A form that was sent.

    Args:
        texts: its fields; several where the name ends with [], which is not part of the name here.
        files: the content of its files, by field.
    """

    texts: Mapping[str, str | list[str]] = field(repr=False)
    files: Mapping[str, list[bytes]] = field(repr=False)


async def read_form(request: Request, most: int) -> Form:
    """The fields and files of a form.

    Args:
        request: whose body is read.
        most: bytes that it may have.

    Raises:
        Wrong: if it is no form, a damaged one, or says something twice.
        HTTPException: as ``body_of``.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not boundary:
        raise Wrong("pictures are sent as a form; send multipart/form-data", code="invalid_content_type")
    texts: dict[str, str | list[str]] = {}
    files: dict[str, list[bytes]] = {}
    try:
        for disposition, content in _parts(await body_of(request, most), boundary):
            _, options = parse_options_header(disposition)
            name = options.get(b"name", b"").decode()
            if not name:
                raise _damaged("has a part without a name")
            if b"filename" in options:
                files.setdefault(name.removesuffix("[]"), []).append(content)
            elif len(content) > _MOST_PART:
                raise Wrong(f"{name[:80]!a} has more than {_MOST_PART} bytes; send less", name[:80])
            else:
                _add_text(texts, name, content.decode())
    except UnicodeDecodeError:
        raise _damaged("is no text in UTF-8") from None
    return Form(texts=texts, files=files)


def _parts(body: bytes, boundary: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The Content-Disposition and the content of each part of a form, whose body is in memory."""
    pieces = (b"\r\n" + body).split(b"\r\n--" + boundary, _MOST_PARTS + 1)[1:]
    for piece in pieces:
        if piece.startswith(b"--"):
            return
        head, gap, content = piece.partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        if first.strip() or not gap:
            raise _damaged("breaks off")
        named = [line for line in lines if line.lower().startswith(_DISPOSITION)]
        yield b"".join(named[:1])[len(_DISPOSITION) :], content
    raise _damaged(f"has more than {_MOST_PARTS} parts" if len(pieces) > _MOST_PARTS else "breaks off")


def _damaged(what: str) -> Wrong:
    return Wrong(f"the form {what}; send multipart/form-data", code="invalid_form")


def _add_text(texts: dict[str, str | list[str]], name: str, value: str) -> None:
    plain = name.removesuffix("[]")
    before = texts.get(plain)
    if name != plain and not isinstance(before, str):
        texts[plain] = [*(before or []), value]
    elif before is None:
        texts[plain] = value
    else:
        raise Wrong(f"{plain[:80]!a} is sent twice; send it once", plain[:80])


def from_base64(text: str, field: str, most: int) -> bytes:
    """The content of a file that was sent as text, with or without ``data:...;base64,`` before it.

    Raises:
        Wrong: if it is none, or larger than ``most`` bytes.
    """
    head, comma, rest = text.partition(",")
    packed = rest if comma and head.startswith("data:") and head.endswith(";base64") else text
    if len(packed) > most * 4 // 3 + 4096:
        raise Wrong(f"{field} has more than {most} bytes; send a smaller file", field)
    try:
        return base64.b64decode("".join(packed.split()), validate=True)
    except (binascii.Error, ValueError):
        raise Wrong(f"{field} is no base64; send the file's content, encoded", field) from None


def to_base64(data: bytes) -> str:
    """A file as text."""
    return base64.b64encode(data).decode("ascii")


async def kept(service: Service, data: bytes, field: str) -> Kept:
    """A picture that came with a request, kept to be drawn from.

    Raises:
        Wrong: if it is none.
    """
    try:
        return await service.keep(data)
    except Refused as error:
        raise Wrong(f"{field}: {error}", field) from None


async def kept_mask(service: Service, data: bytes, field: str, paint: Callable[[Image.Image], Image.Image]) -> Kept:
    """A mask that came with a request, as one that unstir reads: white is painted.

    Args:
        service: that keeps it.
        data: the content of its file.
        field: that it came in.
        paint: makes such a mask of the picture, or raises ``Wrong``.

    Raises:
        Wrong: if it is none.
    """
    await kept(service, data, field)  # refuses what is too large, before all of it is read

    def made() -> bytes:
        file = io.BytesIO()
        paint(mask_in(data)).save(file, "PNG")
        return file.getvalue()

    return await kept(service, await asyncio.to_thread(made), field)


# Sizes.


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A size, and how it is had.

    Args:
        width: that is drawn.
        height: that is drawn.
        factor: by which it is enlarged; 1 is not at all.
    """

    width: int
    height: int
    factor: int = 1

    @property
    def full(self) -> tuple[int, int]:
        """Width and height of the picture that is given."""
        return self.width * self.factor, self.height * self.factor

    def __str__(self) -> str:
        return "x".join(map(str, self.full))


def shape_of(width: int, height: int, facts: ModelFacts, limits: Limits, field: str) -> Shape:
    """How a size is had of a model.

    The model's own size is preferred, then the largest near to what it was trained on, then the smallest.

    Args:
        width: that is asked for.
        height: that is asked for.
        facts: of the model.
        limits: how much may be drawn.
        field: that says the size.

    Raises:
        Wrong: naming the sizes that there are.
    """
    if width * height > MOST_PIXELS:
        raise Wrong(f"{width}x{height} is too large; {_sizes(width, height, facts)}", field, "invalid_size")
    shapes = [
        Shape(width=width // factor, height=height // factor, factor=factor)
        for factor in range(1, math.gcd(width, height) + 1)
        if width % factor == 0 and height % factor == 0
    ]
    shapes = [shape for shape in shapes if _is_drawn(shape, facts, limits)]
    if not shapes:
        raise Wrong(f"this model cannot draw {width}x{height}; {_sizes(width, height, facts)}", field, "invalid_size")
    own = [shape for shape in shapes if (shape.width, shape.height) == (facts.size, facts.size)]
    near = [shape for shape in shapes if shape.width * shape.height <= _NEAR * facts.size**2]
    return (own or near or shapes[-1:])[0]


def usual_shape(source: Kept | None, facts: ModelFacts, limits: Limits) -> Shape:
    """The size where none is asked for: of the picture that is drawn from, if it can be had, or the model's own."""
    if source is not None:
        with suppress(Wrong):
            return shape_of(source.width, source.height, facts, limits, "")
    return Shape(width=facts.size, height=facts.size)


def require_few(shape: Shape, number: int, field: str) -> None:
    """Refuse an answer that would be too large.

    Raises:
        Wrong: if it has more than four times ``MOST_PIXELS``.
    """
    width, height = shape.full
    if width * height * number > _ANSWERED_PICTURES * MOST_PIXELS:
        most = _ANSWERED_PICTURES * MOST_PIXELS // (width * height)
        raise Wrong(f"{number} pictures of {shape} are too much for one answer; ask for at most {most}", field)


def _is_drawn(shape: Shape, facts: ModelFacts, limits: Limits) -> bool:
    if facts.is_one_size:
        return shape.width == shape.height == facts.size
    sides = (shape.width, shape.height)
    return not any(side % facts.multiple for side in sides) and math.prod(sides) <= (facts.size * limits.scale) ** 2


def _sizes(width: int, height: int, facts: ModelFacts) -> str:
    size, most = facts.size, math.isqrt(MOST_PIXELS) // facts.size
    nearest = min(most, max(1, round(math.sqrt(width * height) / size)))
    factors = sorted({1, 2, 3, 4, nearest, most} & set(range(1, most + 1)))
    squares = ", ".join(f"{size * factor}x{size * factor}" for factor in factors)
    if facts.is_one_size:
        return f"it draws {size}x{size}, enlarged by any whole number: {squares}"
    return f"it draws sides that are multiples of {facts.multiple}, enlarged by any whole number: {squares}"


# What is given.


@dataclass(frozen=True, kw_only=True)
class Finish:
    """How a finished picture is given.

    Args:
        shape: its size.
        kind: of the file.
        quality: of a JPEG or WebP, 0 to 100.
        source: the name of the picture that it was drawn from, where that has its full size, ...
        mask: ... and of the mask; what was not painted keeps its own pixels then, which were never made smaller.
    """

    shape: Shape
    kind: Literal["png", "jpeg", "webp"] = "png"
    quality: int = 100
    source: str = ""
    mask: str = ""

    @property
    def media_type(self) -> str:
        """Of the file."""
        return f"image/{self.kind}"


async def finished(service: Service, job: str, index: int, finish: Finish) -> bytes:
    """The file of a finished picture.

    Raises:
        Unknown: if there is no such picture.
    """
    png = await service.picture(job, index)
    if finish.kind == "png" and finish.shape.factor == 1:
        return png
    return await given(service, png, finish)


async def given(service: Service, drawn: bytes | Image.Image, finish: Finish) -> bytes:
    """A picture as it is given: a PNG as it was drawn, or a look at one."""
    over: tuple[bytes, bytes] | None = None
    if finish.mask and finish.shape.factor > 1:
        over = await service.kept(finish.source), await service.kept(finish.mask)
    return await asyncio.to_thread(encoded, drawn, finish, over)


def encoded(drawn: bytes | Image.Image, finish: Finish, over: tuple[bytes, bytes] | None = None) -> bytes:
    """The file of a picture.

    A PNG keeps the texts that it came with. One that was enlarged says so in ``parameters``, in the words that others
    have for it.

    Args:
        drawn: the picture, or the content of its PNG.
        finish: how it is given.
        over: the files of a picture and a mask of the full size: where the mask is black, the picture stays.
    """
    factor, texts = finish.shape.factor, dict[str, str]()
    image = drawn
    if isinstance(image, bytes):
        image = Image.open(io.BytesIO(image))
        texts = {name: text for name, text in image.info.items() if isinstance(name, str) and isinstance(text, str)}
    image = image.convert("RGB")
    if factor > 1:
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.LANCZOS)
        if "parameters" in texts:
            texts["parameters"] += f", Hires upscale: {factor}, Hires upscaler: Lanczos"
    if over is not None:
        image = Image.composite(image, picture_in(over[0]), mask_in(over[1]).convert("L"))
    options: dict[str, Any] = {"quality": max(1, finish.quality)}
    if finish.kind == "png":
        chunks = PngInfo()
        for name, text in texts.items():
            chunks.add_itxt(name, text)
        options = {"pnginfo": chunks}
    elif finish.kind == "jpeg" and finish.quality == 100:
        options["subsampling"] = 0
    file = io.BytesIO()
    image.save(file, _KINDS[finish.kind], **options)
    return file.getvalue()


def effective(service: Service, status: Status, index: int, shape: Shape) -> dict[str, Any]:
    """What was drawn, fully said: seed drawn, defaults filled in.

    Args:
        service: that drew it.
        status: of its job.
        index: of the picture.
        shape: in which it is given.
    """
    job = status.job
    request = job.requests[index]
    said: dict[str, Any] = {
        "job": job.id,
        "index": index,
        "model": job.model,
        "prompt": request.prompt,
        "negative_prompt": request.negative,
        "seed": request.seed,
        "steps": request.steps,
        "sampler": request.sampler,
        "grid": request.grid,
        "guidance": request.guidance_scale,
        "guidance_interval": request.guidance_interval,
        "eta": request.eta,
        "syntax": request.syntax,
        "tile": request.tile,
        "width": request.width,
        "height": request.height,
        "enlarged": shape.factor,
    }
    if request.edit is not None:
        said |= {"strength": request.edit.strength, "resample": request.edit.resample, "fit": request.edit.fit}
    warnings = list(service.picture_facts(job.id, index).warnings) if index in status.drawn else []
    if shape.factor > 1:
        warnings.append(f"drawn at {request.width}x{request.height} and enlarged {shape.factor} times to {shape}")
    return {**said, "warnings": warnings}


# Answers.

Handle = Callable[[Request], Awaitable[Response]]


def answered(handle: Handle, fields: Mapping[str, str]) -> Handle:
    """The same, where what cannot be answered is told in the form of the path.

    Args:
        handle: answers a request.
        fields: of ``Asked``, as clients of this API call them.
    """

    async def answer(request: Request) -> Response:
        path = request.url.path
        try:
            return await handle(request)
        except Wrong as error:
            return refusal(path, error.status, str(error), field=error.field, code=error.code)
        except Refused as error:
            code = "model_not_found" if error.field == "model" else "invalid_value"
            return refusal(path, 400, str(error), field=fields.get(error.field, error.field), code=code)
        except Unknown as error:
            return refusal(path, 404, str(error), code="not_found")
        except Busy as error:
            return refusal(path, 429, str(error), headers={"retry-after": str(error.seconds)})
        except Gone:
            return Response(status_code=_CLOSED)
        except Slow as error:
            return refusal(path, 504, str(error), headers={"x-should-retry": "false"})
        except HTTPException as error:
            return refusal(path, error.status_code, str(error.detail))

    return answer


def require_done(status: Status) -> None:
    """Refuse to answer for a job that came to nothing.

    Raises:
        Wrong: if it failed or was called off.
    """
    if status.job.state == "failed":
        raise Wrong(status.job.error or "the picture could not be drawn", code="failed", status=500)
    if status.job.state == "cancelled":
        raise Wrong("the job was called off before it was done", code="cancelled", status=409)


def refusal(
    path: str,
    status: int,
    sentence: str,
    *,
    field: str = "",
    code: str = "",
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A mistake, as clients of a path expect it.

    Args:
        path: of the request.
        status: of HTTP.
        sentence: what is wrong, and what to do.
        field: that is at fault.
        code: a word for programs, in those forms that have one.
        headers: of the answer.
    """
    made: dict[str, Any] = form(path, status, sentence, name=field)
    if code and isinstance(made.get("error"), dict):
        made["error"]["code"] = code
    again = {"x-should-retry": "false"} if status in (409, 500) else {}  # the same would come to nothing again
    return said(made, status, {**again, **(headers or {})})


def said(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON in ASCII: whatever characters it holds, it can be sent."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return Response(text, status, dict(headers or {}), "application/json")
