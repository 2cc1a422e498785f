"""The application: every API, the page and the figures behind one guard, around one service.

Knows: which paths there are, what becomes of mistakes, what happens at the start and at the end.
Does not know: sockets, the command line, how any request is answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from unstir import __version__
from unstir.server import a1111, api, openai
from unstir.server.asking import Asked
from unstir.server.guard import Ending, Guard, Guarded, form
from unstir.server.logs import Log, Telling
from unstir.server.metrics import CONTENT_TYPE, Requests, of_process, of_service, render
from unstir.server.schema import complaint
from unstir.server.service import Busy, Refused, Service, Unknown

if TYPE_CHECKING:
    from unstir.server.runs import Runs

STATIC = Path(__file__).parent / "static"
_PAGES = {"/": "index.html", "/training": "training.html", "/docs": "docs.html", "/favicon.ico": "mark.svg"}
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".json": "application/json",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
}
_LAST_SECONDS = 0.2  # for answers that wait for nobody
_WARM_SECONDS = 30.0  # at most; a model that is slower than that is ready before it is warm


@dataclass(frozen=True, kw_only=True)
class File:
    """A file of the page, read once.

    Args:
        content: its bytes.
        kind: its media type.
        tag: changes when the content does.
    """

    content: bytes
    kind: str
    tag: str


def create(
    service: Service,
    *,
    guard: Guard,
    runs: Runs | None = None,
    log: Log | None = None,
    aliases: Sequence[str] = (),
    is_warmed: bool = True,
) -> FastAPI:
    """The application of a service; its lifespan starts and stops the service.

    Args:
        service: what draws and keeps.
        guard: what is asked of every request.
        runs: trainings that are shown; None shows none.
        log: is told of requests and failures; stderr if it is None.
        aliases: names that OpenAI's clients may use for the first model.
        is_warmed: whether a draft is drawn at the start, so that the first picture comes as fast as the next.
    """
    log, counted, ending = log or Log(), Requests(), Ending()
    app = FastAPI(
        title="unstir",
        version=__version__,
        openapi_url=None,  # it is ours alone that is described, see below
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=partial(_alive, service, is_warmed),
    )
    app.state.leave = partial(_leave, service, ending)
    for kind, handler in (
        (HTTPException, _http),
        (RequestValidationError, _invalid),
        (Refused, _refused),
        (Busy, _busy),
        (Unknown, _unknown),
    ):
        app.add_exception_handler(kind, handler)
    app.include_router(api.router(service, runs))
    app.include_router(openai.router(service, aliases=aliases))
    app.include_router(a1111.router(service))
    _add_figures(app, service, counted)
    _add_page(app, _files(STATIC))
    _add_description(app, service, runs)
    app.add_middleware(Guarded, guard=guard, failed=log.failure, heard=log.heard, ending=ending)
    app.add_middleware(Telling, listeners=(log.request, counted.add))
    return app


@contextlib.asynccontextmanager
async def _alive(service: Service, is_warmed: bool, app: FastAPI) -> AsyncGenerator[None]:
    await service.start()
    try:
        if is_warmed:
            with contextlib.suppress(TimeoutError, Refused, Busy):
                async with asyncio.timeout(_WARM_SECONDS):
                    await warm(service)
        yield
    finally:
        await service.stop()


async def _leave(service: Service, ending: Ending) -> None:
    """Have every answer come to its end: whoever waits or watches is told by the service that it stops."""
    ending.approach()
    await asyncio.sleep(_LAST_SECONDS)
    await service.stop()
    asyncio.get_running_loop().call_later(_LAST_SECONDS, ending.come)


async def warm(service: Service) -> None:
    """Draw a draft with every model: memory is taken, kernels are chosen, and all of the way has been walked once."""
    for name, facts in service.models.items():
        asked = Asked(prompt="a", model=name, seed=0, settings={"steps": facts.fewest}, is_draft=True)
        await service.settled((await service.accept(asked)).id)


def _add_figures(app: FastAPI, service: Service, counted: Requests) -> None:
    async def healthz() -> JSONResponse:
        is_alive = service.is_alive
        return JSONResponse({"status": "ok" if is_alive else "dead"}, 200 if is_alive else 503)

    async def metrics() -> Response:
        text = render([*of_service(service), *counted.figures(), *of_process()])
        return Response(text, media_type=CONTENT_TYPE)

    app.add_api_route("/healthz", healthz, methods=["GET", "HEAD"])
    app.add_api_route("/metrics", metrics, methods=["GET", "HEAD"])


def _add_page(app: FastAPI, files: dict[str, File]) -> None:
    """The page: a path is looked up among the files that were there at the start, and nowhere else."""

    async def page(request: Request) -> Response:
        return _sent(request, files.get(_PAGES[request.url.path]))

    async def static(request: Request, name: str) -> Response:
        return _sent(request, files.get(name))

    for path in _PAGES:
        app.add_api_route(path, page, methods=["GET", "HEAD"])
    app.add_api_route("/static/{name:path}", static, methods=["GET", "HEAD"])


def _sent(request: Request, file: File | None) -> Response:
    if file is None:
        raise HTTPException(404, "there is no such page")
    headers = {"etag": file.tag, "cache-control": "no-cache"}
    if request.headers.get("if-none-match") == file.tag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.kind, headers=headers)


def _files(folder: Path) -> dict[str, File]:
    files: dict[str, File] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix in _TYPES and path.is_file():
            content = path.read_bytes()
            tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            files[path.relative_to(folder).as_posix()] = File(content=content, kind=_TYPES[path.suffix], tag=tag)
    return files


def _add_description(app: FastAPI, service: Service, runs: Runs | None) -> None:
    made: list[dict[str, Any]] = []  # once somebody asks, for it takes its time

    async def description() -> JSONResponse:
        if not made:
            made.append(api.description(service, runs))
        return JSONResponse(made[0])

    app.add_api_route("/openapi.json", description, methods=["GET", "HEAD"])


async def _http(request: Request, error: Any) -> Response:
    sentences = {404: "there is nothing at this path", 405: "this path does not take this method"}
    given = str(error.detail)
    sentence = sentences[error.status_code] if given in ("Not Found", "Method Not Allowed") else given
    return _form(request, error.status_code, sentence, headers=error.headers)


async def _invalid(request: Request, error: Any) -> Response:
    sentence, name = complaint(error.errors())
    return _form(request, 400, sentence, name=name)


async def _refused(request: Request, error: Any) -> Response:
    return _form(request, 400, str(error), name=error.field)


async def _busy(request: Request, error: Any) -> Response:
    return _form(request, 429, str(error), headers={"retry-after": str(error.seconds)})


async def _unknown(request: Request, error: Any) -> Response:
    return _form(request, 404, str(error))


def _form(
    request: Request, status: int, sentence: str, *, name: str = "", headers: dict[str, str] | None = None
) -> Response:
    return JSONResponse(form(request.url.path, status, sentence, name=name), status, headers)
