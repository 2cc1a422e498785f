"""OpenAI's Images API: generations, edits and models, as its official clients ask for them.

Knows: its paths, fields, events and errors, and what of them has no meaning here.
Does not know: who may ask, how anything is drawn or kept.

Beside OpenAI's fields stand ours (``extra_body`` of the Python client): seed, steps, guidance, negative_prompt,
sampler, grid, guidance_interval, eta, syntax, tile; of edits also strength, resample and fit. What clients send by
habit is taken where it changes nothing (quality auto, background opaque, user, ...), and refused by name where it
would. An answer says under ``unstir`` what was drawn, fully. Errors are 400, 401, 404, 409 (the job was called off),
429, 500 and 504 (it took too long).
"""

from __future__ import annotations

import re
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy
from fastapi import APIRouter
from PIL import Image
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from unstir.config import choose
from unstir.pipeline import MAX_SEED, Settings
from unstir.server import stream, waiting
from unstir.server.asking import Asked, AskedEdit
from unstir.server.compatible import (
    MOST_JSON,
    STRICT,
    Finish,
    Form,
    Shape,
    Wrong,
    answered,
    effective,
    finished,
    given,
    kept,
    kept_mask,
    read_form,
    read_json,
    read_texts,
    require_done,
    require_few,
    said,
    shape_of,
    to_base64,
    usual_shape,
)
from unstir.server.jobs import Event, Job, Status
from unstir.server.service import Busy, Kept, ModelFacts, Service, Unknown
from unstir.server.uploads import body_of

ALIASES = ("default", "gpt-image-1", "dall-e-2", "dall-e-3")
"""Names of models that clients have in their code."""

URL_SECONDS = 3600.0
"""That the URL of a picture is good for, as OpenAI says."""

_MOST_URLS = 4096
_BACKGROUND = "opaque"
_RETIRED = (
    "variations are retired at OpenAI and were never served here; send the picture and a prompt to "
    "/v1/images/edits, with strength (0 to 1) for how much of it is drawn anew"
)
_SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")
_ALL: tuple[Any, ...] = ()
_TAKEN: dict[str, tuple[tuple[Any, ...], str]] = {
    "quality": (("auto", "standard"), "pictures have one quality here; send steps, or leave it out"),
    "background": (("auto", "opaque"), "pictures have no transparency here; leave it out"),
    "output_format": (("png", "jpeg", "webp"), "there are png, jpeg and webp"),
    "complexity": (_ALL, "there is no such thing here; leave it out"),
    "frame_count": (_ALL, "there are no animations here; leave it out"),
    "frame_duration_ms": (_ALL, "there are no animations here; leave it out"),
    "svg": (_ALL, "there are no vector graphics here; leave it out"),
    "input_fidelity": (("low",), "send strength (0 to 1) for how much is drawn anew, or leave it out"),
}
_FIELDS = {
    "number": "n",
    "negative": "negative_prompt",
    "guidance_scale": "guidance",
    "width": "size",
    "height": "size",
    "edit.source": "image",
    "edit.mask": "mask",
    "edit.strength": "strength",
    "edit.resample": "resample",
    "edit.fit": "fit",
    "key": "Idempotency-Key",
}
_OWN = {"num_inference_steps": "steps", "guidance_scale": "guidance", "negative": "negative_prompt"}

_Finite = Annotated[float, Field(allow_inf_nan=False)]


class Asking(BaseModel):
    """What both kinds of requests say."""

    model_config = STRICT

    prompt: str
    model: str | None = None
    n: int | None = Field(None, ge=1)
    size: str | None = None
    quality: str | None = None
    background: str | None = None
    output_format: str | None = None
    output_compression: int | None = Field(None, ge=0, le=100)
    response_format: Literal["url", "b64_json"] | None = None
    stream: bool | None = None
    partial_images: int | None = Field(None, ge=0, le=3)
    user: str | None = None
    safety_identifier: str | None = None
    complexity: Any = None
    frame_count: Any = None
    frame_duration_ms: Any = None
    svg: Any = None
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    steps: int | None = Field(None, ge=1)
    num_inference_steps: int | None = Field(None, ge=1)
    guidance: _Finite | None = None
    guidance_scale: _Finite | None = None
    guidance_interval: tuple[_Finite, _Finite] | None = None
    negative_prompt: str | None = None
    negative: str | None = None
    sampler: str | None = None
    grid: str | None = None
    eta: _Finite | None = None
    syntax: str | None = None
    tile: bool | None = None


class Generation(Asking):
    """A request for pictures of a prompt."""

    moderation: Literal["low", "auto"] | None = None
    style: Literal["vivid", "natural"] | None = None


class Editing(Asking):
    """A request for pictures from one that is sent along."""

    input_fidelity: str | None = None
    strength: _Finite | None = Field(None, ge=0, le=1)
    resample: int | None = Field(None, ge=1)
    fit: str | None = None


@dataclass(frozen=True, kw_only=True)
class Link:
    """What the URL of a picture stands for.

    Args:
        job: whose picture it is.
        index: which of them.
        finish: how it is given.
        until: when the URL is not good any more, in seconds of a clock that only goes forward.
    """

    job: str
    index: int
    finish: Finish
    until: float


def router(service: Service, *, aliases: Sequence[str] = ()) -> APIRouter:
    """The paths below /v1.

    Args:
        service: what draws.
        aliases: names that stand for the first model, such as ``ALIASES``; other names that the server does not have
            are refused.
    """
    images = _Images(service, tuple(aliases))
    made = APIRouter()
    for method, path, handle in (
        ("POST", "/v1/images/generations", images.generate),
        ("POST", "/v1/images/edits", images.edit),
        ("POST", "/v1/images/variations", images.vary),
        ("GET", "/v1/images/files/{name}", images.file),
        ("GET", "/v1/models", images.models),
        ("GET", "/v1/models/{name:path}", images.model),
    ):
        made.add_route(path, answered(handle, _FIELDS), methods=[method], include_in_schema=False)
    return made


class _Images:
    def __init__(self, service: Service, aliases: tuple[str, ...]) -> None:
        self._service, self._aliases = service, aliases
        self._links: OrderedDict[str, Link] = OrderedDict()
        self._started = int(time.time())

    async def generate(self, request: Request) -> Response:
        told = read_json(Generation, await body_of(request, MOST_JSON))
        facts = self._facts(told)
        shape = self._shape(told, facts, None)
        asked = _asked(told, facts, shape)
        return await self._answer(request, told, asked, _finish(told, shape))

    async def edit(self, request: Request) -> Response:
        service = self._service
        sent = await read_form(request, 2 * service.limits.upload_bytes + MOST_JSON)
        picture, mask = _files(sent)
        told = read_texts(Editing, sent.texts)
        facts = self._facts(told)
        source = await kept(service, picture, "image")
        paint = None if mask is None else await kept_mask(service, mask, "mask", _painted)
        shape = self._shape(told, facts, source)
        is_same = (source.width, source.height) == (shape.width, shape.height)
        edit = AskedEdit(
            source=source.name,
            mask="" if paint is None else paint.name,
            strength=told.strength,
            resample=told.resample,
            fit=told.fit or (None if is_same else "crop"),
        )
        finish = _finish(told, shape)
        if paint is not None and (source.width, source.height) == (paint.width, paint.height) == shape.full:
            finish = _finish(told, shape, source.name, paint.name)
        return await self._answer(request, told, _asked(told, facts, shape, edit), finish)

    async def vary(self, request: Request) -> Response:
        raise Wrong(_RETIRED, code="unsupported_endpoint", status=404)

    async def file(self, request: Request) -> Response:
        link = self._links.get(request.path_params["name"])
        if link is None or time.monotonic() > link.until:
            raise Unknown("there is no such picture, or its URL is not good any more; ask for b64_json")
        data = await finished(self._service, link.job, link.index, link.finish)
        return Response(data, media_type=link.finish.media_type, headers={"cache-control": "private, max-age=3600"})

    async def models(self, request: Request) -> Response:
        return said({"object": "list", "data": [self._model(name) for name in self._service.models]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._service.models and name not in self._aliases:
            raise Wrong(_no_model(name, self._service, self._aliases), "model", "model_not_found", 404)
        return said(self._model(name))

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._started, "owned_by": "unstir"}

    def _facts(self, told: Asking) -> ModelFacts:
        models = self._service.models
        name = told.model or next(iter(models))
        if name not in models and name in self._aliases:
            name = next(iter(models))
        if name not in models:
            raise Wrong(_no_model(name, self._service, self._aliases), "model", "model_not_found")
        return models[name]

    def _shape(self, told: Asking, facts: ModelFacts, source: Kept | None) -> Shape:
        """The size of the pictures; ``auto`` is the source's if the model has that, else the model's."""
        limits, size = self._service.limits, told.size or "auto"
        if size != "auto":
            if not (sides := _SIZE.fullmatch(size)):
                raise Wrong(
                    f"size is auto or WIDTHxHEIGHT, got {size[:40]!a}; for instance {facts.size}x{facts.size}", "size"
                )
            shape = shape_of(int(sides[1]), int(sides[2]), facts, limits, "size")
        else:
            shape = usual_shape(source, facts, limits)
        require_few(shape, told.n or 1, "n")
        return shape

    async def _answer(self, request: Request, told: Asking, asked: Asked, finish: Finish) -> Response:
        service, key = self._service, request.headers.get("idempotency-key", "")
        if told.stream and told.response_format == "url":
            raise Wrong("events carry the pictures themselves; leave response_format out, or stream", "response_format")
        job = await service.accept(asked, key=key)
        if told.stream:
            kind = "image_generation" if isinstance(told, Generation) else "image_edit"
            return stream.sse(self._events(job, kind, told.partial_images or 0, finish, has_key=bool(key)))
        status = await waiting.ended(service, job, request.receive, has_key=bool(key))
        require_done(status)
        indices = range(len(job.requests))
        if told.response_format == "url":
            data = [{"url": f"{request.base_url}v1/images/files/{self._link(job.id, i, finish)}"} for i in indices]
        else:
            data = [{"b64_json": to_base64(await finished(service, job.id, i, finish))} for i in indices]
        return said(
            {
                "created": int(job.created),
                "data": data,
                "background": _BACKGROUND,
                "output_format": finish.kind,
                "size": str(finish.shape),
                "unstir": [effective(service, status, i, finish.shape) for i in indices],
            }
        )

    def _link(self, job: str, index: int, finish: Finish) -> str:
        name = secrets.token_urlsafe(24)
        self._links[name] = Link(job=job, index=index, finish=finish, until=time.monotonic() + URL_SECONDS)
        while len(self._links) > _MOST_URLS:
            self._links.popitem(last=False)
        return name

    async def _events(
        self, job: Job, kind: str, looks: int, finish: Finish, *, has_key: bool
    ) -> AsyncGenerator[tuple[str, Any]]:
        service, seen = self._service, [0] * len(job.requests)
        about: dict[str, Any] = {
            "created_at": int(job.created),
            "background": _BACKGROUND,
            "output_format": finish.kind,
            "quality": "auto",
            "size": str(finish.shape),
        }
        events = waiting.watched(service, job, has_key=has_key)
        try:
            async for event in events:
                if event.kind == "preview" and _is_due(event, seen[event.index], looks):
                    look = Image.fromarray(numpy.asarray(event.pixels))
                    shown = {"b64_json": to_base64(await given(service, look, finish)), **about}
                    shown |= {"partial_image_index": seen[event.index], "image_index": event.index}
                    seen[event.index] += 1
                    yield f"{kind}.partial_image", {"type": f"{kind}.partial_image", **shown}
                elif event.kind == "picture":
                    data = await finished(service, job.id, event.index, finish)
                    told = {"b64_json": to_base64(data), **about, "usage": _USAGE, "image_index": event.index}
                    told["unstir"] = effective(service, event.status, event.index, finish.shape)
                    yield f"{kind}.completed", {"type": f"{kind}.completed", **told}
                elif event.kind == "end":
                    if (failure := _failure(event.status)) is not None:
                        yield failure
                    return
            yield _error("the server is being stopped; the job goes on when it is there again", "stopped")
        except (Unknown, Busy) as error:  # the picture was deleted meanwhile, or the server is being stopped
            yield _error(str(error), "gone")
        finally:
            await events.aclose()


_USAGE = {  # OpenAI's clients want it; nothing is charged for here
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}


def _is_due(event: Event, seen: int, looks: int) -> bool:
    """Whether this look is one of those that were asked for, which are spread evenly over the steps."""
    status = event.status
    return seen < looks and status.step * (looks + 1) >= (seen + 1) * status.steps


def _failure(status: Status) -> tuple[str, Any] | None:
    try:
        require_done(status)
    except Wrong as error:
        return _error(str(error), error.code)
    return None


def _error(sentence: str, code: str) -> tuple[str, Any]:
    return "error", {
        "type": "error",
        "error": {"message": sentence, "type": "server_error", "param": None, "code": code},
    }


def _asked(told: Asking, facts: ModelFacts, shape: Shape, edit: AskedEdit | None = None) -> Asked:
    """What is asked for, in the words of the service."""
    _require_taken(told)
    plain = _one_name_each(told)
    settings = Settings(
        negative=plain["negative_prompt"],
        steps=plain["steps"],
        guidance_scale=plain["guidance"],
        guidance_interval=told.guidance_interval,
        sampler=told.sampler,
        grid=told.grid,
        eta=told.eta,
        syntax=told.syntax,
        tile=told.tile,
        width=shape.width,
        height=shape.height,
    )
    return Asked(prompt=told.prompt, model=facts.name, number=told.n or 1, seed=told.seed, settings=settings, edit=edit)


def _require_taken(told: Asking) -> None:
    """Refuse what cannot be had here."""
    for field, (values, why) in _TAKEN.items():
        value = getattr(told, field, None)
        if value is not None and value not in values:
            shown = ascii(value) if isinstance(value, str | int) else "it"
            raise Wrong(f"{field} cannot be {shown[:40]}: {why}", field)
    if told.output_compression not in (None, 100) and (told.output_format or "png") == "png":
        raise Wrong(
            "a PNG loses nothing and has no output_compression; leave it out, or send output_format",
            "output_compression",
        )
    if told.partial_images and not told.stream:
        raise Wrong("partial_images are told as events; send stream true with them", "partial_images")


def _one_name_each(told: Asking) -> dict[str, Any]:
    """Fields that have two names."""
    plain: dict[str, Any] = {}
    for other, own in _OWN.items():
        values: Mapping[str, Any] = {name: getattr(told, name) for name in (own, other)}
        if None not in values.values():
            raise Wrong(f"{own} and {other} are the same; send one of them", other)
        plain[own] = values[other] if values[own] is None else values[own]
    return plain


def _finish(told: Asking, shape: Shape, source: str = "", mask: str = "") -> Finish:
    _require_taken(told)
    kind: Any = told.output_format or "png"
    quality = 100 if told.output_compression is None else told.output_compression
    return Finish(shape=shape, kind=kind, quality=quality, source=source, mask=mask)


def _files(sent: Form) -> tuple[bytes, bytes | None]:
    """The picture and the mask of a form."""
    for field in sent.files:
        if field not in ("image", "mask"):
            why = "there are no overlays here; send a mask" if field == "markup" else "there are image and mask"
            raise Wrong(f"unknown file {field[:40]!a}; {why}", field[:80], "unknown_parameter")
    for field in ("image", "mask"):
        if field in sent.texts:
            raise Wrong(f"{field} is text; send it as a file, with a file name", field)
        if len(sent.files.get(field, [])) > 1:
            raise Wrong(f"one {field} is drawn from, got {len(sent.files[field])}; send one", field)
    if "image" not in sent.files:
        raise Wrong("image is missing; send a picture as a file", "image", "missing_required_parameter")
    masks = sent.files.get("mask", [])
    return sent.files["image"][0], masks[0] if masks else None


def _painted(mask: Image.Image) -> Image.Image:
    """White where a mask of OpenAI's is transparent: there it is painted."""
    if not mask.has_transparency_data:
        raise Wrong(
            "the mask has no transparency, and what is transparent in it is painted; send a PNG with alpha", "mask"
        )
    opacity = mask.convert("RGBA").getchannel("A")
    return opacity.point([255] * 255 + [0])


def _no_model(name: str, service: Service, aliases: tuple[str, ...]) -> str:
    try:
        choose(name[:80], [*service.models, *aliases], "model")
    except ValueError as error:
        return str(error)
    return "there is no such model"
