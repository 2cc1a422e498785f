"""The application: which paths there are, how mistakes are told on each of them, and what is served of the page."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from unstir.pipeline import Pipeline
from unstir.server import app as module
from unstir.server.app import STATIC, create
from unstir.server.asking import Asked
from unstir.server.guard import Guard
from unstir.server.listener import bind, listen
from unstir.server.logs import Log
from unstir.server.service import Busy, Refused, Service, Unknown
from unstir.server.worker import Counts, Work

NAMES = ("testserver",)
TOKEN = "a-token-nobody-guesses"


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def make_app(pipe: Pipeline, tmp_path: Path, stream: io.StringIO) -> Callable[..., FastAPI]:
    def make(*, is_warmed: bool = False, log: Log | None = None, **guard: Any) -> FastAPI:
        service = Service({"tiny": pipe}, tmp_path / "data")
        return create(service, guard=Guard(names=NAMES, **guard), log=log or Log(stream), is_warmed=is_warmed)

    return make


@pytest.fixture
def client(make_app: Callable[..., FastAPI]) -> Iterator[TestClient]:
    with TestClient(make_app()) as made:
        yield made


def test_a_picture_is_drawn_over_http(client: TestClient, stream: io.StringIO) -> None:
    """All of the way: asked for, waited for, fetched; and told of without the prompt."""
    reply = client.post("/api/jobs", json={"prompt": "red secret", "seed": 3})
    assert reply.status_code == 202
    job = reply.json()["id"]
    with client.stream("GET", f"/api/jobs/{job}/events") as events:
        assert "event: end" in events.read().decode()
    picture = client.get(f"/api/pictures/{job}/0")
    assert picture.content.startswith(b"\x89PNG")
    assert picture.headers["content-security-policy"]
    routes = [json.loads(line)["route"] for line in stream.getvalue().splitlines()]
    assert routes == ["/api/jobs", "/api/jobs/{job}/events", "/api/pictures/{job}/{index}"]
    assert "secret" not in stream.getvalue()
    assert job not in stream.getvalue()


def test_prompts_are_logged_where_that_is_asked_for(make_app, stream: io.StringIO) -> None:
    with TestClient(make_app(log=Log(stream, has_prompts=True))) as client:
        client.post("/api/jobs", json={"prompt": "red secret"})
    assert '"prompt": "red secret"' in stream.getvalue()


@pytest.mark.parametrize("path", ["/v1/nothing", "/sdapi/v1/nothing", "/api/nothing", "/nothing", "/static/nothing.js"])
def test_what_is_not_there_is_told_in_the_form_of_the_path(client: TestClient, path: str) -> None:
    reply = client.get(path)
    assert reply.status_code == 404
    told = reply.json()
    if path.startswith("/sdapi"):
        assert told.keys() == {"detail"}
    else:
        expected = {"message", "type", "param", "code"} if path.startswith("/v1") else {"message", "field"}
        assert told["error"].keys() == expected


@pytest.mark.parametrize("path", ["/v1/models", "/sdapi/v1/samplers", "/api/models", "/", "/metrics"])
def test_methods_that_a_path_does_not_take(client: TestClient, path: str) -> None:
    reply = client.put(path)
    assert reply.status_code == 405
    assert "GET" in reply.headers["allow"]
    assert "method" in reply.text


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (Refused("too many", "steps"), 400, '"field":"steps"'),
        (Unknown("no such job"), 404, "no such job"),
        (Busy("come later", 7), 429, "come later"),
    ],
)
def test_what_the_service_refuses(make_app, error: Exception, status: int, words: str) -> None:
    app = make_app()

    async def fail() -> None:
        raise error

    app.add_api_route("/api/failing", fail)
    app.add_api_route("/sdapi/v1/failing", fail)
    with TestClient(app) as client:
        reply = client.get("/api/failing")
        assert reply.status_code == status
        assert words in reply.text
        assert reply.headers.get("retry-after") == ("7" if status == 429 else None)
        assert client.get("/sdapi/v1/failing").json() == {"detail": str(error)}


def test_what_nobody_foresaw_is_a_500_without_a_word_of_it(make_app, stream: io.StringIO) -> None:
    app = make_app()

    async def fail() -> None:
        raise RuntimeError("red secret")

    app.add_api_route("/v1/failing", fail)
    with TestClient(app) as client:
        reply = client.get("/v1/failing")
    assert reply.status_code == 500
    assert reply.json()["error"]["type"] == "server_error"
    assert "secret" not in reply.text
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["exception", "request"]
    assert lines[0]["id"] == lines[1]["id"] == reply.headers["x-request-id"]
    assert "secret" not in stream.getvalue()


def test_fields_that_are_wrong_are_named(client: TestClient) -> None:
    for body, field in (({"prompt": 3}, "prompt"), ({"prompt": "x", "stps": 3}, "stps"), ({}, "prompt")):
        reply = client.post("/api/jobs", json=body)
        assert (reply.status_code, reply.json()["error"]["field"]) == (400, field)
    reply = client.get("/api/pictures?limit=many")
    assert (reply.status_code, reply.json()["error"]["field"]) == (400, "limit")


# The page


def test_every_file_of_the_page_is_served_as_what_it_is(client: TestClient) -> None:
    files = [path for path in STATIC.rglob("*") if path.is_file()]
    assert files
    for path in files:
        reply = client.get(f"/static/{path.relative_to(STATIC).as_posix()}")
        assert reply.status_code == 200, f"{path.name} has a suffix that is not served"
        assert reply.content == path.read_bytes()
        assert reply.headers["x-content-type-options"] == "nosniff"
        if path.suffix == ".js":
            assert reply.headers["content-type"].startswith("text/javascript")
    assert client.get("/").content == (STATIC / "index.html").read_bytes()
    assert client.head("/").headers["content-length"] == str(len(client.get("/").content))


def test_a_browser_asks_whether_its_copy_is_good(client: TestClient) -> None:
    first = client.get("/")
    assert first.headers["cache-control"] == "no-cache"
    again = client.get("/", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    assert client.get("/", headers={"if-none-match": '"another"'}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2fapp.py",
        "/static//etc/passwd",
        "/static/%2fetc%2fpasswd",
        "/static/index.html/",
        "/static/index.html%00",
        "/static/.",
        "/static/",
        "/app.py",
    ],
)
def test_nothing_else_is_served(client: TestClient, path: str) -> None:
    """A path is looked up, never opened."""
    assert client.get(path).status_code == 404


def test_pages_of_the_guard_are_pages_of_the_application() -> None:
    from unstir.server.guard import PAGES

    assert set(PAGES) == set(module._PAGES) - {"/favicon.ico"}


# Figures


def test_health_is_that_of_the_service(make_app) -> None:
    app = make_app(token=TOKEN)
    assert TestClient(app).get("/healthz").status_code == 503  # nothing was started
    with TestClient(app) as client:
        assert client.get("/healthz").json() == {"status": "ok"}


def test_metrics_count_what_was_asked(client: TestClient) -> None:
    for _ in range(3):
        client.get("/api/models")
    text = client.get("/metrics").text
    assert 'unstir_http_request_seconds_count{method="GET",route="/api/models",status="200"} 3\n' in text
    assert "unstir_jobs{" in text
    assert "process_resident_memory_bytes " in text


def test_only_the_own_api_is_described(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert "/api/jobs" in paths
    assert all(path.startswith("/api/") for path in paths)


def test_every_path_asks_for_the_token(make_app) -> None:
    """Whatever routes there are: nothing but the health is told to who has no token."""
    app = make_app(token=TOKEN, rate=0)
    paths = ["/", "/training", "/docs", "/static/style.css", "/metrics", "/openapi.json", "/v1/models"]
    paths += ["/sdapi/v1/options", "/api/models", "/api/pictures", "/nothing"]
    with TestClient(app) as client:
        assert [client.get(path).status_code for path in paths] == [401] * len(paths)
        assert client.get("/v1/models", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200


# Beginning and end


def test_a_draft_is_drawn_before_anybody_asks(make_app) -> None:
    with TestClient(make_app(is_warmed=True)) as client:
        text = client.get("/metrics").text
        assert "unstir_pictures_total 1\n" in text
        assert client.get("/api/pictures").json()["pictures"] == []


def test_what_cannot_be_warmed_is_served_all_the_same(make_app, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(service: Service) -> None:
        raise Refused("not this prompt")

    monkeypatch.setattr(module, "warm", refused)
    with TestClient(make_app(is_warmed=True)) as client:
        assert client.get("/healthz").status_code == 200


def test_a_folder_that_is_taken_is_refused(make_app) -> None:
    with TestClient(make_app()), pytest.raises(ValueError, match="another"), TestClient(make_app()):
        pass


class Idle:
    """A worker that takes everything on and draws nothing."""

    is_alive, counts = True, Counts()

    def __init__(self, *given: Any) -> None:
        self.works: list[Work] = []

    def start(self) -> None: ...
    def submit(self, work: Work) -> None:
        self.works.append(work)

    def cancel(self, job: str) -> None: ...
    def call(self, function: Callable[[], Any]) -> Any: ...
    def stop(self) -> None: ...


def test_stopping_ends_streams_and_keeps_jobs(pipe: Pipeline, tmp_path: Path) -> None:
    """Who watches and who waits is told at once; the job goes on when the server is back, and ends there."""
    service = Service({"tiny": pipe}, tmp_path / "data", make_worker=Idle)
    app = create(service, guard=Guard(), log=Log(io.StringIO()), is_warmed=False)

    async def scenario() -> tuple[bytes, bytes, str]:
        stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
        place = bind("127.0.0.1", 0)
        port = place.getsockname()[1]
        server = asyncio.create_task(listen(app, place, ready=ready.set_result, ending=app.state.leave, stop=stop))
        await ready
        job = await service.accept(Asked(prompt="red"))
        watching = await opened(port, f"GET /api/jobs/{job.id}/events", b"")
        body = json.dumps({"prompt": "blue"}).encode()
        waiting = await opened(port, "POST /v1/images/generations", body)
        await watching[0].readuntil(b"event: status")
        while service.waiting + service.running < 2:
            await asyncio.sleep(0.01)
        stop.set()
        ends = await asyncio.wait_for(asyncio.gather(watching[0].read(), waiting[0].read()), 30)
        await asyncio.wait_for(server, 30)
        for _, writer in (watching, waiting):
            writer.close()
        return *ends, job.id

    watched, waited, job = asyncio.run(scenario())
    assert watched.endswith(b"\r\n0\r\n\r\n")  # ended, not cut off
    assert b"event: end" not in watched
    assert waited.startswith(b"HTTP/1.1 429 ")
    assert b"retry-after" in waited

    async def again() -> str:
        back = Service({"tiny": pipe}, tmp_path / "data", make_worker=Idle)
        await back.start()
        try:
            assert back.waiting == 2
            return back.status(job).job.state
        finally:
            await back.stop()

    assert asyncio.run(again()) == "queued"


async def opened(port: int, head: str, body: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = [f"{head} HTTP/1.1", "host: localhost", "content-type: application/json", f"content-length: {len(body)}"]
    writer.write("\r\n".join([*lines, "", ""]).encode() + body)
    return reader, writer
