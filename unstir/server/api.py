"""The own API: jobs, pictures, uploads, models and trainings as JSON over HTTP, and its description.

Knows: paths, methods and statuses, which call of the service answers each, what may come back from where.
Does not know: who may ask, how anything is drawn or kept, what becomes of exceptions.

Exceptions of the service pass through: whoever puts the router into an application turns ``Refused`` into 400,
``Unknown`` into 404, ``Busy`` into 429 and what FastAPI finds wrong (``schema.complaint``) into 400.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
from collections.abc import AsyncGenerator, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

from unstir import __version__
from unstir.diffusion.guidance import VIEWS
from unstir.diffusion.spacing import SPACINGS
from unstir.editing import FITS
from unstir.metadata import as_png, recipe_in
from unstir.pipeline import SYNTAXES, TUNED
from unstir.server import schema, stream
from unstir.server.asking import Limits, Refused
from unstir.server.jobs import Event, Status
from unstir.server.runs import Runs
from unstir.server.service import Service, Unknown
from unstir.server.uploads import KINDS, body_of, kind_of
from unstir.steering import METHODS

_MOST_JSON = 1024 * 1024  # bytes
_MOST_KEY = 200  # characters
_MOST_SEARCH = 200
_MOST_PICTURES = 100
_FOREVER = "private, max-age=86400, immutable"  # a picture's name never stands for another one
_INDEX = re.compile(r"[0-9]{1,4}")
_SEEN = re.compile(r"[0-9]{1,18}")
_PNG = {"image/png": {"schema": {"type": "string", "format": "binary"}}}
_EVENT = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "event": {"type": "string", "enum": ["status", "preview", "picture", "end"]},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {
                "anyOf": [
                    {"$ref": f"#/components/schemas/{each.__name__}"}
                    for each in (schema.JobStatus, schema.PreviewEvent, schema.PictureFacts)
                ]
            },
        },
    },
}
_SAMPLE = "0123456789abcdef0123456789abcdef"

JobId = Annotated[str, Path(description="A job's id.", json_schema_extra={"pattern": schema.JOB}, examples=[_SAMPLE])]
Index = Annotated[
    str,
    Path(
        description="Which of the job's pictures, from 0.",
        json_schema_extra={"type": "integer", "minimum": 0, "maximum": 9999},
        examples=[0],
    ),
]
MOST_WAIT = 60.0
"""Seconds that an answer may be put off."""

Time = Annotated[
    str,
    Path(
        description="How much noise: from 0, the picture, to 1, nothing but noise.",
        json_schema_extra={"type": "number", "minimum": 0, "maximum": 1},
        examples=[0.5],
    ),
]
Wait = Annotated[
    float,
    Query(
        description="Seconds to wait for the end of the job, if it has not ended, before it is answered.",
        ge=0,
        le=MOST_WAIT,
        allow_inf_nan=False,
    ),
]
UploadName = Annotated[
    str,
    Path(description="An upload's name.", json_schema_extra={"pattern": schema.UPLOAD}, examples=[_SAMPLE * 2]),
]
RunName = Annotated[str, Path(description="A training's name.", examples=["mine"])]
Seen = Annotated[
    str,
    Path(
        description="At how many pictures seen the sheet was drawn.",
        json_schema_extra={"type": "integer", "minimum": 0, "maximum": 10**18 - 1},
        examples=[2048],
    ),
]


class Looking(BaseModel):
    """Which pictures are listed."""

    model_config = ConfigDict(extra="forbid")

    search: str = Field("", max_length=_MOST_SEARCH, description="Words that all occur in the prompt.")
    before: str = Field(
        "",
        pattern=f"{schema.PICTURE}|^$",
        description="JOB/INDEX of a picture: list those that are older; `next` of the list before.",
    )
    limit: int = Field(50, ge=1, le=_MOST_PICTURES, description="How many at most.")


def _failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What is documented of answers that are none."""
    return {
        status: {
            "model": schema.Failure,
            "description": _REASONS[status][0],
            "content": {"application/json": {"example": {"error": _REASONS[status][1]}}},
            **({"headers": _RETRY} if status == 429 else {}),
        }
        for status in statuses
    }


_RETRY = {"Retry-After": {"description": "Seconds until it is worth asking again.", "schema": {"type": "integer"}}}
_REASONS: dict[int, tuple[str, dict[str, str]]] = {
    400: (
        "Something that was sent is wrong.",
        {"message": "steps should be greater than or equal to 1, got 0", "field": "steps"},
    ),
    404: ("There is no such thing here.", {"message": "there is no such job", "field": ""}),
    413: (
        "The body is too large.",
        {"message": "the body of such a request is at most 20971520 bytes; send less", "field": ""},
    ),
    415: (
        "The body is packed.",
        {"message": "a packed body is not unpacked here; send it without Content-Encoding", "field": ""},
    ),
    429: ("Too much is asked for at once.", {"message": "1000 jobs are waiting; ask again later", "field": ""}),
}


def router(service: Service, runs: Runs | None = None) -> APIRouter:
    """The paths below /api.

    Args:
        service: what answers.
        runs: trainings that are shown; None shows none.
    """
    made = APIRouter(prefix="/api")
    _add_jobs(made, service)
    _add_watching(made, service)
    _add_pictures(made, service)
    _add_views(made, service)
    _add_uploads(made, service)
    _add_models(made, service)
    _add_runs(made, runs)
    return made


def _add_jobs(made: APIRouter, service: Service) -> None:
    @made.post(
        "/jobs",
        status_code=202,
        response_model=schema.JobStatus,
        responses={
            **_failures(400, 413, 415, 429),
            202: {
                "description": "Accepted: it will be drawn, whatever becomes of this connection.",
                "headers": {"Location": {"description": "Where its status is.", "schema": {"type": "string"}}},
            },
        },
        tags=["jobs"],
        operation_id="createJob",
        summary="Have pictures drawn",
    )
    async def create(
        request: Request,
        response: Response,
        idempotency_key: Annotated[
            str,
            Header(
                alias="Idempotency-Key",
                max_length=_MOST_KEY,
                description="A word of the client's own: the same word with the same body gives the same job again.",
            ),
        ] = "",
    ) -> schema.JobStatus:
        """Take a job on. It is drawn when its turn comes: ask after it, or watch its events.

        A job that was accepted is not lost when the server stops; it is drawn when the server is back.
        """
        asked = schema.read_job(await body_of(request, _MOST_JSON))
        try:
            job = await service.accept(asked.asked(), key=idempotency_key, draft_of=asked.page)
        except Refused as error:
            raise Refused(str(error), schema.own_field(error.field)) from None
        told = _told(service, service.status(job.id), {})
        response.headers["Location"] = told.url
        return told

    @made.get(
        "/jobs/{job}",
        response_model=schema.JobStatus,
        responses=_failures(400, 404, 429),
        tags=["jobs"],
        operation_id="readJob",
        summary="See how far a job is, or wait for its end",
    )
    async def read(job: JobId, wait: Wait = 0.0) -> schema.JobStatus:
        """The place in the queue, steps done, previews and finished pictures; at once, or when the job has ended."""
        if not wait:
            return _told(service, service.look(_job(job)), {})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await service.settled(_job(job))
        return _told(service, service.status(_job(job)), {})

    @made.delete(
        "/jobs/{job}",
        response_model=schema.JobStatus,
        responses=_failures(404),
        tags=["jobs"],
        operation_id="cancelJob",
        summary="Call a job off",
    )
    async def cancel(job: JobId) -> schema.JobStatus:
        """What is finished of it stays. A job that has ended already stays as it is."""
        return _told(service, await service.cancel(_job(job)), {})


def _add_watching(made: APIRouter, service: Service) -> None:
    @made.get(
        "/jobs/{job}/events",
        response_class=StreamingResponse,
        responses={
            **_failures(404),
            200: {
                "description": (
                    "Server-sent events until the job ends. `status` and `end` hold a JobStatus, `picture` holds "
                    "PictureFacts, `preview` a PreviewEvent. A comment comes after 15 s of silence."
                ),
                "content": {
                    "text/event-stream": {
                        "itemSchema": _EVENT,
                        "example": (
                            'event: preview\ndata: {"index": 0, "step": 1, "steps": 4, "url": '
                            '"data:image/png;base64,..."}\n\n'
                        ),
                    }
                },
            },
        },
        tags=["jobs"],
        operation_id="watchJob",
        summary="Watch a job",
    )
    async def watch(job: JobId) -> StreamingResponse:
        """Events as they happen: first the job as it is, then what changes, at last `end`.

        Who reads slowly misses previews, never a finished picture or the end. Who comes back starts with the job as
        it is then.
        """
        service.status(_job(job))  # so that it is refused before anything is streamed
        return stream.sse(_events(service, job))

    @made.get(
        "/jobs/{job}/previews/{index}",
        response_class=Response,
        responses={**_failures(404), 200: {"description": "A PNG.", "content": _PNG}},
        tags=["jobs"],
        operation_id="readPreview",
        summary="Look at a picture that is being drawn",
    )
    async def preview(
        job: JobId,
        index: Index,
        at: Annotated[str, Query(description="Changes with every preview; what it says is not read.")] = "",
    ) -> Response:
        """The newest preview: what is believed of the picture at this step."""
        return _png(await service.preview(_job(job), _index(index)), "no-store")


def _add_pictures(made: APIRouter, service: Service) -> None:
    @made.get(
        "/pictures",
        response_model=schema.PictureList,
        responses=_failures(400, 404),
        tags=["pictures"],
        operation_id="listPictures",
        summary="List finished pictures",
    )
    async def pictures(looking: Annotated[Looking, Query()]) -> schema.PictureList:
        """The newest first; drafts are not among them."""
        found = service.pictures(search=looking.search, before=looking.before, limit=looking.limit + 1)
        shown = [schema.PictureFacts.of(each) for each in found[: looking.limit]]
        last = f"{shown[-1].job}/{shown[-1].index}" if len(found) > looking.limit else None
        return schema.PictureList(pictures=tuple(shown), next=last)

    @made.get(
        "/pictures/{job}/{index}",
        response_class=Response,
        responses={**_failures(400, 404), 200: {"description": "A PNG that carries its recipe.", "content": _PNG}},
        tags=["pictures"],
        operation_id="readPicture",
        summary="Get a finished picture",
    )
    async def picture(
        job: JobId,
        index: Index,
        download: Annotated[bool, Query(description="Whether a browser saves it instead of showing it.")] = False,
    ) -> Response:
        """The file as it was stored."""
        number = _index(index)
        answer = _png(await service.picture(_job(job), number), _FOREVER)
        if download:
            answer.headers["Content-Disposition"] = f'attachment; filename="unstir-{job[:8]}-{number}.png"'
        return answer

    @made.delete(
        "/pictures/{job}/{index}",
        status_code=204,
        responses=_failures(404),
        tags=["pictures"],
        operation_id="deletePicture",
        summary="Delete a finished picture",
    )
    async def delete(job: JobId, index: Index) -> None:
        """It cannot be brought back; the same recipe draws it again."""
        await service.delete(_job(job), _index(index))


def _add_views(made: APIRouter, service: Service) -> None:
    @made.get(
        "/pictures/{job}/{index}/recipe",
        response_model=schema.RecipeFacts,
        responses=_failures(404),
        tags=["pictures"],
        operation_id="readRecipe",
        summary="Get all that makes a picture",
    )
    async def recipe(job: JobId, index: Index) -> schema.RecipeFacts:
        """The recipe that the file carries, as JSON."""
        data = await service.picture(_job(job), _index(index))
        return schema.RecipeFacts.of(await asyncio.to_thread(recipe_in, data))

    @made.get(
        "/pictures/{job}/{index}/levels/{t}",
        response_class=Response,
        responses={**_failures(400, 404, 429), 200: {"description": "A PNG.", "content": _PNG}},
        tags=["pictures"],
        operation_id="readLevel",
        summary="See a finished picture with noise",
    )
    async def level(job: JobId, index: Index, t: Time) -> Response:
        """The picture, spoiled to a time of the schedule with the noise of its own seed."""
        where = _job(job), _index(index)
        service.picture_facts(*where)  # what is not there is not there at any time
        return _png(await service.level(*where, _time(t)), _FOREVER)


def _add_uploads(made: APIRouter, service: Service) -> None:
    @made.post(
        "/uploads",
        status_code=201,
        response_model=schema.Upload,
        responses={
            **_failures(400, 413, 415),
            201: {
                "description": "It is kept here.",
                "headers": {"Location": {"description": "Where it is.", "schema": {"type": "string"}}},
            },
        },
        openapi_extra={
            "requestBody": {
                "required": True,
                "description": "The file itself.",
                "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in KINDS},
            }
        },
        tags=["uploads"],
        operation_id="createUpload",
        summary="Send a picture or a mask",
    )
    async def upload(request: Request, response: Response) -> schema.Upload:
        """Keep a picture to draw from. The same file sent again has the same name; its content says what it is."""
        kept = schema.Upload.of(await service.keep(await body_of(request, service.limits.upload_bytes)))
        response.headers["Location"] = kept.url
        return kept

    @made.get(
        "/uploads/{name}",
        response_class=Response,
        responses={
            **_failures(404),
            200: {
                "description": "The file.",
                "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in KINDS},
            },
        },
        tags=["uploads"],
        operation_id="readUpload",
        summary="Get a picture that was sent",
    )
    async def uploaded(name: UploadName) -> Response:
        """The file as it was sent."""
        if not re.fullmatch(schema.UPLOAD, name):
            raise Unknown("there is no such upload")
        data = await service.kept(name)
        return Response(data, media_type=kind_of(data), headers={"Cache-Control": _FOREVER})


def _add_models(made: APIRouter, service: Service) -> None:
    @made.get(
        "/models",
        response_model=schema.Models,
        tags=["models"],
        operation_id="listModels",
        summary="See what can be asked for",
    )
    async def models() -> schema.Models:
        """The models, what they do by default, and how much may be asked for."""
        return schema.Models(
            models=tuple(schema.Model.of(facts) for facts in service.models.values()),
            limits=service.limits,
            grids=(*SPACINGS, TUNED),
            syntaxes=SYNTAXES,
            guidance_methods=tuple(METHODS),
            guidance_views=tuple(VIEWS),
            fits=FITS,
        )


def _add_runs(made: APIRouter, runs: Runs | None) -> None:
    def known() -> Runs:
        if runs is None:
            raise Unknown("no trainings are shown here; the server was started without --runs")
        return runs

    @made.get(
        "/runs",
        response_model=schema.RunList,
        tags=["runs"],
        operation_id="listRuns",
        summary="List trainings",
    )
    async def listed() -> schema.RunList:
        """Where each of them stands; none where the server was not told to show any."""
        found = [] if runs is None else await asyncio.to_thread(runs.all)
        return schema.RunList(runs=tuple(schema.RunEntry.of(run) for run in found))

    @made.get(
        "/runs/{name}",
        response_model=schema.RunDetail,
        responses=_failures(404),
        tags=["runs"],
        operation_id="readRun",
        summary="See all that a training told",
    )
    async def run(name: RunName) -> schema.RunDetail:
        """Its losses and other numbers over the pictures seen, and its sheets of previews."""
        return schema.RunDetail.of(await asyncio.to_thread(known().run, name))

    @made.get(
        "/runs/{name}/previews/{images_seen}",
        response_class=Response,
        responses={**_failures(404), 200: {"description": "A PNG.", "content": _PNG}},
        tags=["runs"],
        operation_id="readRunPreview",
        summary="Look at a sheet of previews of a training",
    )
    async def sheet(name: RunName, images_seen: Seen) -> Response:
        """What the model drew then."""
        if not _SEEN.fullmatch(images_seen):
            raise Unknown("there is no such sheet of previews")
        return _png(await asyncio.to_thread(known().preview, name, int(images_seen)), "no-cache")


async def _events(service: Service, job: str) -> AsyncGenerator[tuple[str, str]]:
    """What happens to a job, as kinds and JSON."""
    known: dict[int, schema.PictureFacts] = {}
    watching = service.watch(job)
    try:
        async for event in watching:
            told = await _event(service, event, known)
            if told:
                yield event.kind, told
    finally:
        await watching.aclose()


async def _event(service: Service, event: Event, known: dict[int, schema.PictureFacts]) -> str:
    """One event as JSON; empty if it is of a picture that was deleted since."""
    if event.pixels is not None:
        data = await asyncio.to_thread(as_png, Image.fromarray(event.pixels), None)
        return schema.PreviewEvent(
            index=event.index,
            step=event.status.step,
            steps=event.status.steps,
            url=f"data:image/png;base64,{base64.b64encode(data).decode()}",
        ).model_dump_json()
    told = _told(service, event.status, known)
    if event.kind != "picture":
        return told.model_dump_json()
    return known[event.index].model_dump_json() if event.index in known else ""


def _told(service: Service, status: Status, known: dict[int, schema.PictureFacts]) -> schema.JobStatus:
    """A status, with the facts of its finished pictures; those in ``known`` are not looked up again."""
    for index in status.drawn:
        if index not in known:
            try:
                known[index] = schema.PictureFacts.of(service.picture_facts(status.job.id, index))
            except Unknown:  # deleted since
                continue
    return schema.JobStatus.of(status, [known[index] for index in status.drawn if index in known])


def _png(data: bytes, cache: str) -> Response:
    return Response(data, media_type="image/png", headers={"Cache-Control": cache})


def _job(text: str) -> str:
    if not re.fullmatch(schema.JOB, text):
        raise Unknown("there is no such job")
    return text


def _index(text: str) -> int:
    if not _INDEX.fullmatch(text):
        raise Unknown("there is no such picture")
    return int(text)


def _time(text: str) -> float:
    try:
        t = float(text)
    except ValueError:
        t = -1.0
    if not 0 <= t <= 1:
        raise Refused(f"t is a number from 0 (the picture) to 1 (noise), got {text[:40]!a}", "t")
    return t


def description(service: Service, runs: Runs | None = None) -> dict[str, Any]:
    """The OpenAPI document of the own API, with the names and limits of this server.

    Args:
        service: what answers.
        runs: as of ``router``.
    """
    alone = FastAPI(title="unstir", version=__version__, summary=_SUMMARY, description=_ABOUT, openapi_tags=_TAGS)
    alone.include_router(router(service, runs))
    made = alone.openapi()
    schemas: dict[str, Any] = made["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, which are never sent
        schemas.pop(name, None)
    _, more = models_json_schema(
        [(schema.JobRequest, "validation"), (schema.PreviewEvent, "serialization")],
        ref_template="#/components/schemas/{model}",
    )
    schemas.update(more["$defs"])
    _bound(schemas, service)
    made["components"]["responses"] = {name: answer for name, _, answer in _guarded()}
    made["components"]["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer", "description": "Where the server was started with a token."}
    }
    made["security"] = [{}, {"token": []}]
    for methods in made["paths"].values():
        for operation in methods.values():
            _complete(operation)
    made["paths"]["/api/jobs"]["post"]["requestBody"] = {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/JobRequest"}}},
    }
    return made


_SUMMARY = "Pictures from words."
_ABOUT = (
    "POST /api/jobs gives an id at once; ask after the job, or watch its events. A wrong request is answered with "
    '`{"error": {"message", "field"}}`: one sentence, and the field that it is about.'
)
_TAGS = [
    {"name": "jobs", "description": "What is being drawn."},
    {"name": "pictures", "description": "What is finished."},
    {"name": "uploads", "description": "Pictures and masks to draw from."},
    {"name": "models", "description": "What can be asked for."},
    {"name": "runs", "description": "Trainings under way."},
]


def _complete(operation: dict[str, Any]) -> None:
    """What the guard at the door may answer is said of every operation."""
    answers: dict[str, Any] = operation["responses"]
    answers.pop("422", None)
    for name, status, _ in _guarded():
        answers.setdefault(str(status), {"$ref": f"#/components/responses/{name}"})


def _guarded() -> list[tuple[str, int, dict[str, Any]]]:
    """Answers that come before any path is looked at: name, status and what they are."""
    told = [
        ("Malformed", 400, "The request is none, or something that was sent is wrong."),
        ("WithoutToken", 401, "This server wants its token, and it was not given or is wrong."),
        ("OtherSite", 403, "A page of another site asks."),
        ("TooSlow", 408, "The body came too slowly."),
        ("TooLarge", 413, "The body is too large."),
        ("OtherName", 421, "The server is not known by the name in the Host header."),
        ("TooOften", 429, "Too much is asked for at once."),
        ("TooManyHeaders", 431, "There are too many headers."),
        ("Failed", 500, "Something went wrong here; the server's log tells."),
        ("TooMuch", 503, "Too many large requests come at once."),
    ]
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Failure"}}}
    return [
        (
            name,
            status,
            {"description": said, "content": content, **({"headers": _RETRY} if status in (429, 503) else {})},
        )
        for name, status, said in told
    ]


def _bound(schemas: Mapping[str, Any], service: Service) -> None:
    """Say of the fields of a job what this server has and allows."""
    limits: Limits = service.limits
    job: dict[str, Any] = schemas["JobRequest"]["properties"]
    way: dict[str, Any] = schemas["WayRequest"]["properties"]
    job["number"]["maximum"] = way["frames"]["maximum"] = limits.pictures
    for field in (_said(job["steps"]), job["prompt"], _said(job["negative"]), way["to_prompt"]):
        field["maximum" if field["type"] == "integer" else "maxLength"] = (
            limits.steps if field["type"] == "integer" else limits.prompt
        )
    samplers = dict.fromkeys(name for facts in service.models.values() for name in facts.samplers)
    for name, values in (
        ("model", service.models),
        ("sampler", samplers),
        ("syntax", SYNTAXES),
        ("guidance_method", METHODS),
        ("guidance_view", VIEWS),
    ):
        _said(job[name])["enum"] = list(values)
    _said(schemas["EditRequest"]["properties"]["fit"])["enum"] = list(FITS)


def _said(field: dict[str, Any]) -> dict[str, Any]:
    """Of a field that may be null, what it is where it is not."""
    return next(each for each in field["anyOf"] if each.get("type") != "null")
