"""Lines of the log: what is in them, and what never is."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from datetime import datetime
from typing import Any

import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from unstir.server.logs import METHODS, Log, Telling, Told

SECRET = "a red heart"


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.fixture
def app() -> FastAPI:
    made = FastAPI()

    @made.post("/api/jobs/{name}")
    async def job(name: str) -> dict[str, str]:
        return {"name": name}

    @made.get("/broken")
    async def broken() -> None:
        raise RuntimeError(SECRET)

    return made


def test_a_request_is_one_line_without_its_query_and_path(app: FastAPI) -> None:
    stream = io.StringIO()
    app.add_middleware(Telling, listeners=(Log(stream).request,))
    client = TestClient(app)
    reply = client.post(f"/api/jobs/{SECRET}?token={SECRET}", headers={"authorization": SECRET})
    client.get(f"/{SECRET}")
    client.request("FROB\u017f"[:4], "/x")
    first, second, third = lines(stream)
    assert reply.status_code == 200
    assert set(first) == {"time", "level", "event", "id", "method", "route", "status", "seconds", "client"}
    assert (first["method"], first["route"], first["status"]) == ("POST", "/api/jobs/{name}", 200)
    assert (first["level"], first["event"], first["client"]) == ("info", "request", "testclient")
    assert first["id"] == reply.headers["x-request-id"] != second["id"]
    assert datetime.fromisoformat(first["time"]).utcoffset() is not None
    assert (second["route"], second["status"]) == ("", 404)
    assert third["method"] == "OTHER"
    assert SECRET not in stream.getvalue()


def test_seconds_are_those_of_the_clock(app: FastAPI) -> None:
    found: list[Told] = []
    ticks = iter([10.0, 12.5])
    told = Telling(app, listeners=(found.append,), clock=lambda: next(ticks))
    TestClient(told).post("/api/jobs/x")
    assert [one.seconds for one in found] == [2.5]


def test_a_client_that_leaves_before_its_answer_is_told_as_499() -> None:
    async def silent(scope, receive, send) -> None:
        return

    found: list[Told] = []
    asyncio.run(Telling(silent, listeners=(found.append,))({"type": "http", "method": "GET"}, None, None))  # type: ignore[arg-type]
    assert [one.status for one in found] == [499]


def test_what_fails_is_told_and_raised_on(app: FastAPI) -> None:
    found: list[Told] = []
    app.add_middleware(Telling, listeners=(found.append,))
    with pytest.raises(RuntimeError):
        TestClient(app).get("/broken")
    assert [one.route for one in found] == ["/broken"]


def failed() -> RuntimeError:
    try:
        raise RuntimeError(SECRET)
    except RuntimeError as error:
        return error


def test_an_exception_is_told_by_its_kind_and_place() -> None:
    stream = io.StringIO()
    Log(stream).failure({"unstir.id": "abc"}, failed())
    (line,) = lines(stream)
    assert (line["level"], line["event"], line["error"], line["id"]) == ("error", "exception", "RuntimeError", "abc")
    assert "test_logs.py" in line["where"][-1]
    assert line["where"][-1].endswith(" failed")
    assert SECRET not in stream.getvalue()
    Log(stream, has_prompts=True).failure({}, failed())
    assert lines(stream)[1]["text"] == SECRET


@pytest.mark.parametrize("has_prompts", [True, False])
def test_prompts_are_told_to_who_asks(has_prompts: bool) -> None:
    stream = io.StringIO()
    log = Log(stream, has_prompts=has_prompts)
    for body in (
        json.dumps({"prompt": SECRET, "seed": 3}).encode(),
        b"{}",
        b"{\xff",
        b"[1]",
        b"\x89PNG",
        b"",
        b'{"a": 1}',
    ):
        log.heard(body)
    found = [{k: v for k, v in line.items() if k != "time"} for line in lines(stream)]
    assert found == ([{"level": "info", "event": "asked", "prompt": SECRET}] if has_prompts else [])


def test_quiet_tells_only_what_goes_wrong() -> None:
    stream = io.StringIO()
    log = Log(stream, has_requests=False)
    for status in (200, 404, 500):
        log.request(Told(id="", method="GET", route="/", status=status, seconds=0.0, client=""))
    assert [(line["status"], line["level"]) for line in lines(stream)] == [(500, "error")]


@given(st.text())
def test_nothing_makes_a_second_line(text: str) -> None:
    stream = io.StringIO()
    Log(stream).line("info", text, {"x": text})
    assert stream.getvalue().isascii()
    assert len(stream.getvalue().splitlines()) == 1
    assert lines(stream)[0]["x"] == text


def test_pythons_loggers_become_lines_while_it_lasts() -> None:
    stream, logger = io.StringIO(), logging.getLogger("unstir.test")
    before = (logger.handlers, logger.propagate, logger.level)
    with Log(stream).gathered("unstir.test"):
        logger.info("not told")
        logger.warning("from %s", SECRET)
        logger.error("it broke\nTraceback %s", SECRET, exc_info=failed())
    assert (logger.handlers, logger.propagate, logger.level) == before
    first, second = lines(stream)
    assert (first["level"], first["event"], first["message"]) == ("warning", "server", "from %s")
    assert (second["level"], second["error"], second["message"]) == ("error", "RuntimeError", "it broke")
    assert SECRET not in stream.getvalue()
    with Log(stream, has_prompts=True).gathered("unstir.test"):
        logger.warning("from %s", SECRET)
    assert lines(stream)[2]["message"] == f"from {SECRET}"


def test_methods_are_those_that_are_answered() -> None:
    assert {"GET", "POST", "DELETE"} <= set(METHODS)
