"""The own API, asked over HTTP through the whole application, and held against its own description."""

from __future__ import annotations

import asyncio
import base64
import gzip
import io
import json
import re
import struct
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from PIL import Image
from starlette.testclient import TestClient

from unstir.config import to_dict
from unstir.metadata import recipe_in
from unstir.pipeline import Pipeline, Request
from unstir.server import api
from unstir.server.app import create
from unstir.server.asking import Limits
from unstir.server.guard import Guard
from unstir.server.jobs import Event, Job, Status
from unstir.server.logs import Log
from unstir.server.runs import Runs
from unstir.server.schema import JobRequest, read_job
from unstir.server.service import Service

NOBODY = "0" * 32
PNG = b"\x89PNG\r\n\x1a\n"
LIMITS = Limits(pictures=3, steps=40, prompt=100, upload_bytes=20_000, upload_pixels=10_000)


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    folder = tmp_path / "runs" / "mine"
    (folder / "previews").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"recipe": "tiny", "training": {"images": 100, "batch": 10}}))
    (folder / "log.jsonl").write_text('{"images_seen": 10, "loss": 0.5}\n{"images_seen": 20, "loss": NaN}\n')
    Image.new("RGB", (3, 2)).save(folder / "previews" / "0000000010.png")
    return Runs(tmp_path / "runs", lambda _: "free")


@pytest.fixture
def service(pipe: Pipeline, tmp_path: Path) -> Service:
    return Service({"tiny": pipe}, tmp_path / "data", limits=LIMITS)


@pytest.fixture
def app(service: Service, runs: Runs) -> FastAPI:
    guard = Guard(names=("testserver",), rate=0)
    return create(service, guard=guard, runs=runs, log=Log(io.StringIO()), is_warmed=False)


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app) as made:
        yield made


def png(width: int = 16, height: int = 16, colour: tuple[int, int, int] = (200, 30, 30)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, "PNG")
    return file.getvalue()


def events(client: TestClient, job: str) -> list[tuple[str, dict[str, Any]]]:
    """What is told of a job until its end."""
    text = client.get(f"/api/jobs/{job}/events").text
    found = re.findall(r"^event: (.*)\ndata: (.*)\n$", text, re.MULTILINE)
    return [(kind, json.loads(data)) for kind, data in found]


def drawn(client: TestClient, **asked: Any) -> dict[str, Any]:
    """The end of a job."""
    reply = client.post("/api/jobs", json={"prompt": "red cat", **asked})
    assert reply.status_code == 202, reply.text
    kind, status = events(client, reply.json()["id"])[-1]
    assert (kind, status["state"], status["error"]) == ("end", "done", "")
    return status


def refused(reply: Any, status: int = 400) -> dict[str, str]:
    """The error of an answer that is none, which is one sentence and a field."""
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/json"
    told = reply.json()
    assert set(told) == {"error"}
    assert set(told["error"]) == {"message", "field"}
    assert told["error"]["message"]
    assert "\n" not in told["error"]["message"]
    return told["error"]


# Jobs


def test_a_job_is_accepted_drawn_and_found_again(
    client: TestClient, pipe: Pipeline, pixels: Callable[[bytes], numpy.ndarray[Any, Any]]
) -> None:
    reply = client.post("/api/jobs", json={"prompt": "red cat", "number": 2, "seed": 5, "steps": 2, "guidance": 1.25})
    assert reply.status_code == 202
    job = reply.json()
    assert reply.headers["location"] == job["url"] == f"/api/jobs/{job['id']}"
    assert job["seeds"] == [5, 6]
    wanted = pipe.request("red cat", seed=5, steps=2, guidance_scale=1.25)
    assert job["request"] == json.loads(json.dumps(to_dict(wanted)))
    told = events(client, job["id"])
    assert told[0][0] == "status"
    assert told[-1][0] == "end"
    pictures = {data["index"]: data for kind, data in told if kind == "picture"}
    assert told[-1][1]["pictures"] == [pictures[0], pictures[1]]
    assert client.get(job["url"]).json() == told[-1][1]
    ours = pipe.sample("red cat", n=2, seed=5, steps=2, guidance_scale=1.25)
    for picture, own in zip(told[-1][1]["pictures"], ours, strict=True):
        got = client.get(picture["url"])
        assert got.headers["content-type"] == "image/png"
        difference = pixels(got.content).astype(int) - numpy.array(own).astype(int)
        assert numpy.abs(difference).max() <= 1
        recipe = client.get(f"{picture['url']}/recipe").json()
        assert recipe.pop("parameters").startswith("red cat\nSteps: 2")
        assert recipe == json.loads(json.dumps(to_dict(recipe_in(got.content))))
        assert recipe["request"] == picture["request"]


def test_previews_come_as_pictures_and_have_an_address(
    client: TestClient, pixels: Callable[[bytes], numpy.ndarray[Any, Any]]
) -> None:
    job = client.post("/api/jobs", json={"prompt": "red cat", "steps": 40, "number": 2}).json()
    looks = [data for kind, data in events(client, job["id"]) if kind == "preview"]
    assert looks
    for look in looks:
        assert set(look) == {"index", "step", "steps", "url"}
        assert 0 < look["step"] <= look["steps"] == 80
        kind, _, data = look["url"].partition(",")
        assert kind == "data:image/png;base64"
        assert pixels(base64.b64decode(data)).shape == (16, 16, 3)


def test_the_same_key_is_the_same_job(client: TestClient) -> None:
    first = client.post("/api/jobs", json={"prompt": "red cat"}, headers={"Idempotency-Key": "once"})
    again = client.post("/api/jobs", json={"prompt": "red cat"}, headers={"Idempotency-Key": "once"})
    assert again.status_code == 202
    assert again.json()["id"] == first.json()["id"]
    assert again.json()["seeds"] == first.json()["seeds"]
    other = client.post("/api/jobs", json={"prompt": "blue cat"}, headers={"Idempotency-Key": "once"})
    assert refused(other)["field"] == "Idempotency-Key"
    long = client.post("/api/jobs", json={"prompt": "red cat"}, headers={"Idempotency-Key": "x" * 201})
    assert refused(long)["field"] == "Idempotency-Key"


def test_a_job_that_is_called_off_says_so_for_ever(client: TestClient) -> None:
    job = client.post("/api/jobs", json={"prompt": "red cat", "steps": 40, "number": 3}).json()
    ended = client.delete(job["url"])
    assert ended.status_code == 200
    assert ended.json()["state"] in ("cancelled", "done")
    assert client.delete(job["url"]).json() == ended.json() == client.get(job["url"]).json()
    assert events(client, job["id"])[-1] == ("end", ended.json())


def test_whoever_waits_is_answered_at_the_end_or_after_as_long(client: TestClient) -> None:
    short = client.post("/api/jobs", json={"prompt": "red cat", "steps": 3}).json()
    status = client.get(f"{short['url']}?wait=60").json()
    assert status["state"] == "done"
    assert len(status["pictures"]) == 1
    assert client.get(f"{short['url']}?wait=60").json() == status
    long = client.post("/api/jobs", json={"prompt": "red cat", "steps": 40, "number": 3}).json()
    early = client.get(f"{long['url']}?wait=0.001").json()  # it may have ended by then on a machine that is fast enough
    assert early["state"] in ("queued", "running", "done")
    assert client.get(f"{long['url']}?wait=60").json()["state"] == "done"


@pytest.mark.parametrize("wait", ["-1", "61", "nan", "inf", "soon", ""])
def test_a_wait_is_some_seconds(client: TestClient, wait: str) -> None:
    job = drawn(client)
    assert refused(client.get(f"{job['url']}?wait={wait}"))["field"] == "wait"
    assert client.get("/api/jobs/none?wait=1").status_code == 404


def test_a_draft_is_seen_and_not_kept(client: TestClient) -> None:
    status = drawn(client, draft=True, page="tab")
    assert status["draft"] is True
    assert client.get(status["pictures"][0]["url"]).content.startswith(PNG)
    assert client.get("/api/pictures").json() == {"pictures": [], "next": None}


def test_a_way_has_a_picture_a_frame(client: TestClient) -> None:
    status = drawn(client, seed=1, way={"to_prompt": "blue cat", "frames": 3})
    assert [each["request"]["blend"]["share"] for each in status["pictures"]] == [0, 0.5, 1]


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": "x" * 101}, "prompt"),
        ({"number": 4}, "number"),
        ({"steps": 41}, "steps"),
        ({"model": "../tiny"}, "model"),
        ({"sampler": "guess"}, "sampler"),
        ({"guidance": 1e3}, "guidance"),
        ({"guidance_method": "loud"}, "guidance_method"),
        ({"width": 17}, "width"),
        ({"eta": 0.5, "sampler": "heun"}, "eta"),
        ({"edit": {"source": "f" * 64}}, "edit.source"),
        ({"edit": {"source": f"{NOBODY}/0"}}, "edit.source"),
        ({"way": {"frames": 4}}, "way.frames"),
        ({"seeed": 1}, "seeed"),
    ],
)
def test_what_cannot_be_had_is_refused_with_its_field(client: TestClient, asked: dict[str, Any], field: str) -> None:
    assert refused(client.post("/api/jobs", json={"prompt": "red cat", **asked}))["field"] == field


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[" * 100_000,
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a", "guidance": NaN}',
        b'{"prompt": "a", "seed": 1' + b"0" * 10_000 + b"}",
        b"prompt=a",
    ],
    ids=["nothing", "deep", "surrogate", "nan", "huge", "form"],
)
def test_a_body_that_is_none_is_refused(client: TestClient, body: bytes) -> None:
    refused(client.post("/api/jobs", content=body))


def test_a_packed_body_is_refused(client: TestClient) -> None:
    packed = gzip.compress(b'{"prompt": "a"}')
    for path in ("/api/jobs", "/api/uploads"):
        refused(client.post(path, content=packed, headers={"Content-Encoding": "gzip"}), 415)


# Pictures


def test_pictures_are_listed_the_newest_first_and_page_by_page(client: TestClient) -> None:
    for number, prompt in enumerate(("red cat", "blue cat", "red blue")):
        drawn(client, prompt=prompt, seed=number)
    whole = client.get("/api/pictures").json()
    assert [each["request"]["prompt"] for each in whole["pictures"]] == ["red blue", "blue cat", "red cat"]
    assert whole["next"] is None
    seen, before = [], ""
    while before is not None:
        page = client.get("/api/pictures", params={"limit": 1, "before": before}).json()
        seen += page["pictures"]
        before = page["next"]
    assert seen == whole["pictures"]
    found = client.get("/api/pictures", params={"search": "CAT red"}).json()["pictures"]
    assert [each["seed"] for each in found] == [0]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=x", "limit"),
        ("limit=1&page=2", "page"),
        ("before=x", "before"),
        ("search=" + "x" * 201, "search"),
        ("limit=" + "9" * 5000, "limit"),
    ],
    ids=range(7),
)
def test_a_wrong_query_is_refused_with_its_field(client: TestClient, query: str, field: str) -> None:
    assert refused(client.get(f"/api/pictures?{query}"))["field"] == field


def test_a_picture_is_saved_under_a_plain_name(client: TestClient) -> None:
    picture = drawn(client)["pictures"][0]
    assert "content-disposition" not in client.get(picture["url"]).headers
    saved = client.get(picture["url"], params={"download": "1"})
    assert saved.headers["content-disposition"] == f'attachment; filename="unstir-{picture["job"][:8]}-0.png"'
    assert saved.content == client.get(picture["url"]).content
    assert refused(client.get(picture["url"], params={"download": "../x"}))["field"] == "download"


def test_a_deleted_picture_is_gone_and_the_others_are_not(client: TestClient) -> None:
    status = drawn(client, number=2)
    first, second = (each["url"] for each in status["pictures"])
    assert client.delete(first).status_code == 204
    for path in (first, f"{first}/recipe", f"{first}/levels/0.5"):
        refused(client.get(path), 404)
    refused(client.delete(first), 404)
    assert client.get(second).status_code == 200
    assert [each["url"] for each in client.get(status["url"]).json()["pictures"]] == [second]


def test_a_level_goes_from_the_picture_to_noise(
    client: TestClient, pixels: Callable[[bytes], numpy.ndarray[Any, Any]]
) -> None:
    url = drawn(client)["pictures"][0]["url"]
    picture = pixels(client.get(url).content).astype(int)
    far = [
        numpy.abs(pixels(client.get(f"{url}/levels/{t}").content).astype(int) - picture).mean()
        for t in ("0", "0.10", "1.00")
    ]
    assert far[0] <= 1
    assert far[0] < far[1] < far[2]


@pytest.mark.parametrize("t", ["-0.1", "1.1", "nan", "inf", "1e999", "half", "0,5", "1" * 5000])
def test_a_level_that_is_none_is_refused(client: TestClient, t: str) -> None:
    url = drawn(client)["pictures"][0]["url"]
    assert refused(client.get(f"{url}/levels/{t}"))["field"] == "t"


# Uploads


def test_an_upload_is_kept_as_it_was_and_can_be_drawn_from(client: TestClient) -> None:
    sent = client.post("/api/uploads", content=png())
    assert sent.status_code == 201
    kept = sent.json()
    assert sent.headers["location"] == kept["url"] == f"/api/uploads/{kept['name']}"
    assert (kept["width"], kept["height"], kept["recipe"]) == (16, 16, None)
    assert client.post("/api/uploads", content=png()).json() == kept
    got = client.get(kept["url"])
    assert (got.content, got.headers["content-type"]) == (png(), "image/png")
    status = drawn(client, edit={"source": kept["name"], "strength": 0.5})
    edit = status["pictures"][0]["request"]["edit"]
    assert (edit["source"]["name"], edit["strength"]) == (kept["name"], 0.5)
    again = drawn(client, edit={"source": f"{status['id']}/0", "strength": 0})
    assert again["pictures"][0]["width"] == 16


def test_a_drawn_picture_that_is_sent_brings_its_recipe(client: TestClient) -> None:
    url = drawn(client)["pictures"][0]["url"]
    kept = client.post("/api/uploads", content=client.get(url).content).json()
    assert kept["recipe"] == client.get(f"{url}/recipe").json()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that would be large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return PNG + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", png()[:50], bomb(101, 100), bomb(60000, 60000), b"<svg xmlns='http://www.w3.org/2000/svg'/>"],
    ids=["nothing", "text", "cut", "large", "bomb", "svg"],
)
def test_what_is_no_picture_is_refused(client: TestClient, data: bytes) -> None:
    refused(client.post("/api/uploads", content=data))


def test_a_bomb_in_a_recipe_does_no_harm(client: TestClient) -> None:
    from PIL.PngImagePlugin import PngInfo

    for text in ("[" * 3000, '{"a":' * 3000, "{}", '{"request": NaN}', json.dumps({"prompt": "\ud800"})):
        info, file = PngInfo(), io.BytesIO()
        info.add_itxt("unstir", text)
        Image.new("RGB", (4, 4)).save(file, "PNG", pnginfo=info)
        reply = client.post("/api/uploads", content=file.getvalue())
        assert (reply.status_code, reply.json().get("recipe", "")) == (201, None), reply.text


def test_a_file_that_is_too_large_is_refused(client: TestClient) -> None:
    refused(client.post("/api/uploads", content=b"x" * 20_001), 413)


# Models and runs


def test_what_can_be_asked_for_can_be_had(client: TestClient) -> None:
    told = client.get("/api/models").json()
    [model] = told["models"]
    assert (model["name"], model["size"], model["is_one_size"]) == ("tiny", 16, True)
    assert told["limits"]["pictures"] == 3
    for sampler in model["samplers"]:
        drawn(client, sampler=sampler, steps=3, draft=True)
    for method in told["guidance_methods"]:
        drawn(client, guidance_method=method, guidance=2, draft=True)


def test_trainings_are_shown(client: TestClient) -> None:
    [run] = client.get("/api/runs").json()["runs"]
    assert (run["name"], run["state"], run["images_seen"], run["loss"]) == ("mine", "stopped", 20, None)
    whole = client.get(run["url"]).json()
    assert whole["curves"] == {"loss": [[10, 0.5], [20, None]]}
    assert whole["previews"] == [{"images_seen": 10, "url": run["preview"]}]
    sheet = client.get(run["preview"])
    assert (sheet.headers["content-type"], Image.open(io.BytesIO(sheet.content)).size) == ("image/png", (3, 2))


def test_a_server_without_trainings_shows_none(pipe: Pipeline, tmp_path: Path) -> None:
    app = create(Service({"tiny": pipe}, tmp_path / "data"), guard=Guard(names=("testserver",)), is_warmed=False)
    with TestClient(app) as client:
        assert client.get("/api/runs").json() == {"runs": []}
        refused(client.get("/api/runs/mine"), 404)
        refused(client.get("/api/runs/mine/previews/10"), 404)


# What is not there


# As they stand in the path after it was decoded.
TRICKS = [
    "..",
    "../..",
    "../jobs",
    "\0",
    "\ufffd",
    "a" * 3000,
    "x",
    "-1",
    "0x0",
    "\u00b2",
    "1e3",
    NOBODY,
    "0\n",
    "*",
    "?",
    "\\",
    " 0",
]
PLACES = [
    "/api/jobs/{}",
    "/api/jobs/{}/events",
    "/api/jobs/{}/previews/0",
    f"/api/jobs/{NOBODY}/previews/{{}}",
    "/api/pictures/{}/0",
    f"/api/pictures/{NOBODY}/{{}}",
    "/api/pictures/{}/0/recipe",
    f"/api/pictures/{NOBODY}/0/levels/{{}}",
    "/api/uploads/{}",
    "/api/runs/{}",
    "/api/runs/mine/previews/{}",
]


def asked_raw(client: TestClient, path: str) -> tuple[int, dict[str, Any]]:
    """Status and JSON of what a path is answered with that no well-mannered client would send as it is."""
    sent: list[dict[str, Any]] = []

    async def run() -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": path, "raw_path": b"", "query_string": b"", "scheme": "http"}
        await client.app({**scope, "headers": [(b"host", b"testserver")], "asgi": {"version": "3.0"}}, receive, send)  # type: ignore[arg-type]

    assert client.portal is not None
    client.portal.call(run)
    return sent[0]["status"], json.loads(b"".join(message.get("body", b"") for message in sent))


@pytest.mark.parametrize("place", PLACES)
def test_what_is_not_there_is_not_found(client: TestClient, tmp_path: Path, place: str) -> None:
    for trick in TRICKS:
        status, told = asked_raw(client, place.format(trick))
        assert (status, told["error"]["field"]) == (404, ""), trick
        assert str(tmp_path) not in told["error"]["message"]


# Leaving


class Endless:
    """A service with one job that never ends; whether it is watched."""

    def __init__(self) -> None:
        request = Request(
            prompt="a", seed=0, steps=1, sampler="ddim", grid="trailing", guidance_scale=1.0, width=16, height=16
        )
        job = Job(id=NOBODY, model="m", created=0.0, requests=(request,), state="running")
        self.now = Status(job=job, position=0, step=0, steps=1, previews=(0,), drawn=())
        self.is_watched = False

    def status(self, job: str) -> Status:
        return self.now

    async def watch(self, job: str) -> AsyncIterator[Event]:
        self.is_watched = True
        try:
            yield Event(kind="status", status=self.now)
            await asyncio.Event().wait()
        finally:
            self.is_watched = False


def test_who_leaves_is_told_of_nothing_more() -> None:
    async def run() -> list[bool]:
        service, app = Endless(), FastAPI()
        app.include_router(api.router(service))  # type: ignore[arg-type]
        told, seen = asyncio.Event(), []

        async def receive() -> dict[str, Any]:
            await told.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            if message.get("body", b"").startswith(b"event: status"):
                seen.append(service.is_watched)
                told.set()

        scope = {"type": "http", "method": "GET", "path": f"/api/jobs/{NOBODY}/events", "raw_path": b"", "headers": []}
        await app({**scope, "query_string": b"", "asgi": {"spec_version": "2.3"}}, receive, send)
        return [*seen, service.is_watched]

    assert asyncio.run(run()) == [True, False]


def test_who_leaves_between_two_events_is_told_of_nothing_more() -> None:
    async def run() -> tuple[bool, bool]:
        service, held = Endless(), []
        watch = service.watch
        service.watch = lambda job: held.append(watch(job)) or held[-1]  # what nobody holds is closed by Python itself
        told = api._events(service, NOBODY)  # type: ignore[arg-type]
        await anext(told)
        was_watched = service.is_watched
        await told.aclose()
        return was_watched, service.is_watched

    assert asyncio.run(run()) == (True, False)


# The description


@pytest.fixture
def document(service: Service) -> dict[str, Any]:
    return api.description(service)


def operations(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [operation for methods in document["paths"].values() for operation in methods.values()]


def test_the_description_is_served(client: TestClient, document: dict[str, Any]) -> None:
    assert client.get("/openapi.json").json() == json.loads(json.dumps(document))


def test_every_path_is_described(document: dict[str, Any], service: Service) -> None:
    routes = [route for route in api.router(service).routes if isinstance(route, APIRoute)]
    there = {(route.path, method.lower()) for route in routes for method in route.methods}
    assert there == {(path, method) for path, methods in document["paths"].items() for method in methods}


def test_every_operation_says_what_it_does(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for operation in operations(document)]
    assert len(set(names)) == len(names)
    tags = {tag["name"] for tag in document["tags"]}
    for operation in operations(document):
        assert operation["summary"]
        assert operation["description"]
        assert set(operation["tags"]) <= tags
        assert {"401", "403", "413", "429", "500"} <= set(operation["responses"])
        assert all(one["description"] for one in operation.get("parameters", []))


def test_nothing_is_described_that_is_never_sent(document: dict[str, Any]) -> None:
    assert not any("422" in operation["responses"] for operation in operations(document))
    assert not {"HTTPValidationError", "ValidationError"} & set(document["components"]["schemas"])


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    for reference in re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(document)):
        at = document
        for part in reference.split("/"):
            at = at[part]


def test_the_fields_of_a_job_are_described_as_they_are_taken(document: dict[str, Any], service: Service) -> None:
    job = document["components"]["schemas"]["JobRequest"]
    assert set(job["properties"]) == set(JobRequest.model_fields)
    assert job["additionalProperties"] is False
    assert job["properties"]["number"]["maximum"] == LIMITS.pictures
    assert job["properties"]["prompt"]["maxLength"] == LIMITS.prompt
    [steps] = [each for each in job["properties"]["steps"]["anyOf"] if each["type"] == "integer"]
    assert steps["maximum"] == LIMITS.steps
    [model] = [each for each in job["properties"]["model"]["anyOf"] if each["type"] == "string"]
    assert model["enum"] == ["tiny"]
    for example in job["examples"]:
        read_job(json.dumps(example).encode()).asked()


# A machine that reads the description, and asks for everything that it allows and does not allow.


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_answers_are_as_described_whatever_is_asked(client: TestClient, mode: str) -> None:
    import requests
    import schemathesis
    from schemathesis.checks import CHECKS, load_all_checks
    from schemathesis.generation import GenerationMode

    load_all_checks()
    checks = CHECKS.get_by_names(
        [
            "not_a_server_error",
            "status_code_conformance",
            "content_type_conformance",
            "response_schema_conformance",
            "response_headers_conformance",
        ]
    )
    # No machine guesses an id: now and then it is given one.
    own = {
        "job": drawn(client, number=2)["id"],
        "index": 0,
        "name": client.post("/api/uploads", content=png()).json()["name"],
    }
    statuses: dict[int, int] = {}
    asked: set[str] = set()
    document = client.get("/openapi.json").json()

    def answered(case: Any, is_there: bool) -> None:
        for name in own.keys() & (case.path_parameters or {}).keys() if is_there and case.method != "DELETE" else ():
            case.path_parameters[name] = "mine" if "runs" in case.path else own[name]
        sent = requests.Request(**case.as_transport_kwargs(base_url="http://testserver")).prepare()
        reply = client.request(sent.method, sent.url, content=sent.body, headers=dict(sent.headers))
        statuses[reply.status_code] = statuses.get(reply.status_code, 0) + 1
        case.validate_response(reply, checks=checks)

    for result in schemathesis.openapi.from_dict(document).get_all_operations():
        operation = result.ok()
        ask = given(operation.as_strategy(generation_mode=GenerationMode(mode)), st.booleans())(answered)
        with suppress(Unsatisfiable):  # nothing can be wrong where nothing, or any text, is asked
            settings(max_examples=60, phases=[Phase.generate], suppress_health_check=list(HealthCheck))(ask)()
            asked.add(operation.definition.raw["operationId"])
    everything = {each["operationId"] for each in operations(document)}
    assert asked == everything if mode == "positive" else {"createJob", "readJob", "listPictures"} < asked
    assert statuses.get(200 if mode == "positive" else 400, 0) > 20, statuses
