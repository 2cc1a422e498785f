"""The guard: who is let in, who is not and how that is said, and that a slow client holds nothing up."""

from __future__ import annotations

import asyncio
import base64
import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect, Request
from starlette.testclient import TestClient

from unstir.server.guard import Ending, Guard, Guarded, Rates, client_of, form, is_loopback

TOKEN = "a-token-nobody-guesses"
SENT = {"host": "localhost:8000"}


async def echo(scope, receive, send) -> None:
    """Answers the length of the body; what a route would do, without routes."""
    request = Request(scope, receive)
    if scope["path"] == "/api/broken":
        raise RuntimeError("a secret")
    body = await request.body()
    headers = [(b"content-type", b"text/plain"), (b"server", b"somebody")]
    if scope["path"] == "/own-headers":
        headers += [(b"Cache-Control", b"no-cache")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": str(len(body)).encode()})


@pytest.fixture
def client() -> Callable[..., TestClient]:
    def make(app=echo, failed=lambda scope, error: None, **settings: Any) -> TestClient:
        guarded = Guarded(app, guard=Guard(**settings), failed=failed)
        return TestClient(guarded, base_url="http://localhost:8000", follow_redirects=False)

    return make


# Where it may be listened


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.0.0.9"])
def test_this_machine_needs_no_token(host: str) -> None:
    assert is_loopback(host)
    Guard(host=host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", "", "1270.0.0.1"])
def test_any_other_address_needs_one(host: str) -> None:
    with pytest.raises(ValueError, match="without a token only this machine may ask"):
        Guard(host=host)
    Guard(host=host, token=TOKEN)


@pytest.mark.parametrize("token", ["two words", "ünder", "a\nb"])
def test_a_token_that_no_header_holds_is_refused(token: str) -> None:
    with pytest.raises(ValueError, match="printable ASCII"):
        Guard(token=token)


def test_the_token_is_not_in_what_is_printed() -> None:
    assert TOKEN not in repr(Guard(token=TOKEN))
    assert TOKEN not in Guard(token=TOKEN).session


# Host and Origin


@pytest.mark.parametrize(
    ("bound", "names", "host", "is_own"),
    [
        ("127.0.0.1", (), "127.0.0.1", True),
        ("127.0.0.1", (), "localhost:9000", True),  # through a tunnel the port is another
        ("127.0.0.1", (), "LOCALHOST.", True),
        ("127.0.0.1", (), "[::1]:8000", True),
        ("127.0.0.1", (), "evil.example", False),
        ("127.0.0.1", (), "localhost.evil.example", False),
        ("127.0.0.1", (), "127.0.0.1.evil.example", False),
        ("127.0.0.1", (), "192.168.1.2", False),
        ("127.0.0.1", (), "", False),
        ("127.0.0.1", ("draw.lan",), "Draw.lan:80", True),
        ("0.0.0.0", (), "192.168.1.2:8000", True),  # an address is no name that somebody bends
        ("0.0.0.0", (), "[fe80::1]", True),
        ("0.0.0.0", (), "evil.example", False),
        ("192.168.1.2", (), "192.168.1.2", True),
        ("192.168.1.2", (), "192.168.1.3", False),
        ("192.168.1.2", (), "localhost", True),
    ],
)
def test_only_names_of_this_server_are_answered(bound: str, names: tuple[str, ...], host: str, is_own: bool) -> None:
    guard = Guard(host=bound, names=names, token=TOKEN)
    assert guard.is_own(host) == is_own
    status, _, _ = asked(
        Guarded(echo, guard=guard, failed=print), headers={"host": host, "authorization": f"Bearer {TOKEN}"}
    )
    assert status == (200 if is_own else 421)


def test_two_hosts_are_none(client) -> None:
    assert asked(Guarded(echo, guard=Guard(), failed=print), pairs=[(b"host", b"localhost")] * 2)[0] == 421
    assert asked(Guarded(echo, guard=Guard(), failed=print), pairs=[])[0] == 421


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://localhost:8000"}, 200),
        ({"origin": "https://LOCALHOST:8000"}, 200),
        ({"origin": "http://localhost:8001"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://evil.example/http://localhost:8000"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": ""}, 403),
        ({"origin": "http://[::1"}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),
        ({"sec-fetch-site": "same-site", "sec-fetch-mode": "cors"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 200),
    ],
)
def test_pages_of_others_may_not_ask(client, headers: dict[str, str], status: int) -> None:
    assert client().get("/api/x", headers=headers).status_code == status
    if headers.get("sec-fetch-mode") == "navigate":  # a form elsewhere
        assert client().post("/api/x", headers=headers).status_code == 403


# The token


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"anybody:{password}".encode()).decode()


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {TOKEN}"},
        {"authorization": f"bearer  {TOKEN}"},
        {"authorization": basic(TOKEN)},
        {"cookie": f"other=1; unstir_8000={Guard(token=TOKEN).session}"},
    ],
)
def test_the_token_is_taken_in_each_of_its_forms(client, headers: dict[str, str]) -> None:
    assert client(token=TOKEN).get("/api/x", headers=headers).status_code == 200


WRONG = [
    {},
    {"authorization": "Bearer "},
    {"authorization": f"Bearer {TOKEN}x"},
    {"authorization": f"Bearer {TOKEN[:-1]}"},
    {"authorization": TOKEN},
    {"authorization": f"Digest {TOKEN}"},
    {"authorization": basic("wrong")},
    {"authorization": "Basic !!!"},
    {"authorization": "Basic " + base64.b64encode(TOKEN.encode()).decode()},  # as the user
    {"cookie": f"unstir_8000={TOKEN}"},
    {"cookie": f"unstir_8001={Guard(token=TOKEN).session}"},
    {"cookie": "unstir_8000=" + Guard(token="another-token").session},
    {"authorization": b"Bearer \xff\xfe"},
]


@pytest.mark.parametrize("headers", WRONG, ids=str)
def test_what_is_not_the_token_is_refused_in_the_form_of_the_path(client, headers: dict[str, Any]) -> None:
    api = client(token=TOKEN).get("/api/jobs", headers=headers)
    assert api.status_code == 401
    assert api.headers["www-authenticate"] == 'Bearer realm="unstir"'
    assert set(api.json()["error"]) == {"message", "field"}
    openai = client(token=TOKEN).post("/v1/images/generations", headers=headers)
    assert openai.json()["error"].keys() == {"message", "type", "param", "code"}
    assert openai.json()["error"]["code"] == "invalid_api_key"
    a1111 = client(token=TOKEN).get("/sdapi/v1/options", headers=headers)
    assert a1111.json().keys() == {"detail"}
    assert a1111.headers["www-authenticate"].startswith("Basic ")
    assert TOKEN not in api.text + openai.text + a1111.text


def test_a_token_that_was_not_asked_for_does_no_harm(client) -> None:
    """OpenAI's client always sends one."""
    assert client().get("/v1/models", headers={"authorization": "Bearer anything"}).status_code == 200


def test_health_is_told_to_everybody(client) -> None:
    assert client(token=TOKEN).get("/healthz").status_code == 200
    assert client(token=TOKEN).get("/v1/images/files/a-secret-name").status_code == 200
    assert client(token=TOKEN).get("/v1/images/files-and-more").status_code == 401
    assert client(token=TOKEN).get("/metrics").status_code == 401


def test_opening_the_page_with_the_token_leaves_a_cookie_and_no_token(client) -> None:
    browser = client(token=TOKEN)
    assert browser.get("/").headers["www-authenticate"].startswith("Basic ")
    reply = browser.get(f"/?run=a%26b&token={TOKEN}")
    assert (reply.status_code, reply.headers["location"]) == (303, "/?run=a%26b")
    cookie = reply.headers["set-cookie"]
    assert TOKEN not in cookie
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= {part.strip() for part in cookie.split(";")}
    assert reply.headers["cache-control"] == "no-store"
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert browser.get("/api/x").status_code == 200  # the browser keeps it
    assert client(token=TOKEN).get("/?token=wrong").status_code == 401
    assert "set-cookie" not in client(token=TOKEN).get("/?token=wrong").headers
    assert client(token=TOKEN).get(f"/api/x?token={TOKEN}").status_code == 401  # on pages only
    guarded = Guarded(echo, guard=Guard(token=TOKEN), failed=print)
    token = f"token={TOKEN}".encode()
    assert asked(guarded, headers=SENT, path="//evil.example", query=token)[0] == 401  # never a redirect elsewhere


# Rates


@given(st.floats(0.5, 50), st.integers(4, 20), st.lists(st.floats(0, 3), max_size=60), st.floats(0.5, 4))
def test_never_more_than_the_burst_and_the_rate(rate: float, burst: int, pauses: list[float], cost: float) -> None:
    """In any stretch of time at most burst + rate * length is let in; and who waits as long as told is let in."""
    now = 0.0
    rates = Rates(rate, burst, lambda: now)
    taken: list[float] = []
    for pause in pauses:
        now += pause
        wait = rates.take("a", cost)
        if wait == 0.0:
            taken.append(now)
            for start in set(taken):
                spent = cost * sum(start <= moment for moment in taken)
                assert spent <= burst + rate * (now - start) + 1e-6
        else:
            now += wait + 1e-9
            assert rates.take("a", cost) == 0.0
            taken.append(now)


def test_clients_do_not_take_from_each_other() -> None:
    rates = Rates(1.0, 2, lambda: 0.0)
    assert [rates.take(name) for name in ("a", "a", "a", "b", "b", "b")] == [0, 0, 1, 0, 0, 1]


def test_clients_that_are_remembered_are_bounded() -> None:
    rates = Rates(1.0, 2, lambda: 0.0)
    for name in range(10_000):
        rates.take(str(name))
    assert len(rates._buckets) <= 4096


def test_rate_0_takes_any_number() -> None:
    rates = Rates(0.0, 1, lambda: 0.0)
    assert not any(rates.take("a") for _ in range(1000))
    rates.charge("a", 1e9)
    assert rates.take("a") == 0


def test_too_many_requests_are_told_when_to_come_again(client) -> None:
    few = client(rate=0.25, burst=3)
    assert [few.get("/v1/models").status_code for _ in range(4)] == [200, 200, 200, 429]
    reply = few.get("/v1/models")
    assert 1 <= int(reply.headers["retry-after"]) <= 4
    assert reply.json()["error"]["code"] == "rate_limit_exceeded"


def test_guessing_tokens_costs_more_than_asking(client) -> None:
    guesser = client(token=TOKEN, rate=0.25, burst=100)
    statuses = [guesser.get("/api/x", headers={"authorization": f"Bearer {i}"}).status_code for i in range(8)]
    assert statuses == [401] * 5 + [429] * 3
    assert guesser.get("/api/x", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 429


@pytest.mark.parametrize(
    ("address", "name"),
    [("10.0.0.1", "10.0.0.1"), ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"), ("fe80::1%eth0", "fe80::"), ("", "")],
)
def test_a_client_of_ipv6_is_its_network(address: str, name: str) -> None:
    assert client_of({"client": (address, 1)}) == name
    assert client_of({}) == ""


# Bodies


def test_bodies_are_limited_by_what_they_are_for(client) -> None:
    small = client(body_bytes=100, upload_bytes=1000)
    assert small.post("/api/jobs", content=b"x" * 100).text == "100"
    assert small.post("/api/jobs", content=b"x" * 101).status_code == 413
    assert small.post("/api/uploads", content=b"x" * 1000).text == "1000"
    for path in ("/api/uploads", "/v1/images/edits", "/sdapi/v1/img2img"):
        assert small.post(path, content=b"x" * 1001).status_code == 413


def test_a_body_in_chunks_is_counted_while_it_comes(client) -> None:
    """Its length is not announced; no more of it is read than is allowed."""
    read = []

    def chunks():
        for i in range(1000):
            read.append(i)
            yield b"x" * 10

    status, _, _ = asked(
        Guarded(echo, guard=Guard(body_bytes=100), failed=print),
        pairs=[(b"host", b"localhost"), (b"transfer-encoding", b"chunked")],
        method="POST",
        messages=({"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks()),
    )
    assert status == 413
    assert len(read) == 11


@pytest.mark.parametrize("lengths", [["-1"], ["1e3"], ["1", "1"], ["9" * 30], [""], ["٣"]])
def test_a_length_that_is_none_is_refused(lengths: list[str]) -> None:
    pairs = [(b"host", b"localhost"), *((b"content-length", text.encode()) for text in lengths)]
    assert asked(Guarded(echo, guard=Guard(), failed=print), pairs=pairs, method="POST")[0] == 400


def test_too_many_headers_are_refused(client) -> None:
    assert client().get("/api/x", headers={f"x-{i}": "" for i in range(40)}).status_code == 200
    assert client().get("/api/x", headers={f"x-{i}": "" for i in range(100)}).status_code == 431


def test_a_body_that_does_not_come_is_given_up() -> None:
    """And the application never hears of it."""
    reached = []

    async def app(scope, receive, send) -> None:
        reached.append(scope)

    guarded = Guarded(app, guard=Guard(body_seconds=0.01), failed=print)
    status, headers, body = asked(
        guarded, headers={**SENT, "content-length": "10"}, method="POST", messages=[part(b"12345", more=True)]
    )
    assert (status, reached) == (408, [])
    assert headers[b"connection"] == b"close"
    assert "too slowly" in json.loads(body)["error"]["message"]


def test_a_large_body_has_more_time() -> None:
    """A second for every 64 KiB: this one would take its time."""

    async def scenario() -> int:
        parts = [part(b"x" * 65536, more=True)] * 4

        async def receive():
            if parts:
                return parts.pop()
            await asyncio.sleep(0.05)  # longer than the first seconds, shorter than what the parts have earned
            return part(b"x")

        sent: list[Any] = []

        async def send(message) -> None:
            sent.append(message)

        guarded = Guarded(echo, guard=Guard(body_seconds=0.02), failed=print)
        await guarded(scope_of(headers={**SENT, "transfer-encoding": "chunked"}, method="POST"), receive, send)
        return sent[0]["status"]

    assert asyncio.run(scenario()) == 200


def test_a_client_that_leaves_within_its_body_is_not_answered() -> None:
    guarded = Guarded(echo, guard=Guard(), failed=print)
    messages = [part(b"1", more=True), {"type": "http.disconnect"}]
    assert asked(guarded, headers={**SENT, "content-length": "9"}, method="POST", messages=messages)[0] is None


def test_bodies_at_once_are_bounded_and_counted_down() -> None:
    """The ninth of the largest is told to come again; when the others are done there is room again."""

    async def scenario() -> list[int]:
        guarded = Guarded(echo, guard=Guard(upload_bytes=1000), failed=print)
        gate = asyncio.Event()
        statuses: list[int] = []

        async def upload() -> None:
            async def receive():
                await gate.wait()
                return part(b"x" * 1000)

            async def send(message) -> None:
                if "status" in message:
                    statuses.append(message["status"])

            scope = scope_of(headers={**SENT, "content-length": "1000"}, method="POST", path="/api/uploads")
            await guarded(scope, receive, send)

        tasks = [asyncio.create_task(upload()) for _ in range(8)]
        await asyncio.sleep(0)
        await upload()
        gate.set()
        await asyncio.gather(*tasks)
        await upload()
        assert guarded._held == 0
        return statuses

    assert asyncio.run(scenario()) == [503] + [200] * 9


def test_bodies_are_heard() -> None:
    heard: list[bytes] = []
    guarded = Guarded(echo, guard=Guard(), failed=print, heard=heard.append)
    asked(
        guarded, headers={**SENT, "content-length": "5"}, method="POST", messages=[part(b"12", more=True), part(b"345")]
    )
    asked(guarded, headers=SENT)
    assert heard == [b"12345"]


# Answers


def test_every_answer_has_the_headers_of_safety(client) -> None:
    for reply in (client().get("/api/x"), client(token=TOKEN).get("/api/x"), client().get("/api/broken")):
        policy = dict(part.strip().split(" ", 1) for part in reply.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'self'"
        assert policy["frame-ancestors"] == "'none'"
        assert "unsafe" not in reply.headers["content-security-policy"]
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["cross-origin-opener-policy"] == "same-origin"
        assert reply.headers["cross-origin-resource-policy"] == "same-origin"
        assert reply.headers["cache-control"] == "no-store"
        assert "server" not in reply.headers


def test_what_a_route_says_of_itself_stays(client) -> None:
    assert client().get("/own-headers").headers["cache-control"] == "no-cache"


def test_an_exception_is_a_bare_500_and_a_line_in_the_log(client) -> None:
    failures = []
    reply = client(failed=lambda scope, error: failures.append(error)).get("/api/broken")
    assert reply.status_code == 500
    assert "secret" not in reply.text
    assert [str(error) for error in failures] == ["a secret"]


def test_an_exception_within_an_answer_adds_nothing_to_it() -> None:
    async def app(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError

    failures = []
    guarded = Guarded(app, guard=Guard(), failed=lambda scope, error: failures.append(error))
    assert asked(guarded, headers=SENT)[0] == 200
    assert len(failures) == 1


def test_a_client_that_left_is_no_failure() -> None:
    async def app(scope, receive, send) -> None:
        raise ClientDisconnect

    failures = []
    guarded = Guarded(app, guard=Guard(), failed=lambda scope, error: failures.append(error))
    assert asked(guarded, headers=SENT)[0] is None
    assert not failures


@pytest.mark.parametrize("path", ["/v1", "/v1/images/edits", "/v11", "/sdapi/v1/x", "/sdapix", "/api/x", "/"])
def test_the_form_of_an_error_is_that_of_its_path(path: str) -> None:
    told = form(path, 400, "no", name="steps")
    if path.startswith("/v1/") or path == "/v1":
        error = {"message": "no", "type": "invalid_request_error", "param": "steps", "code": None}
        assert told == {"error": error}
    elif path.startswith("/sdapi/"):
        assert told == {"detail": "no"}
    else:
        assert told == {"error": {"message": "no", "field": "steps"}}


def test_openai_s_clients_learn_whether_to_try_again() -> None:
    assert form("/v1/x", 500, "no")["error"]["type"] == "server_error"  # type: ignore[index]
    assert form("/v1/x", 429, "no")["error"]["type"] == "rate_limit_error"  # type: ignore[index]


# The end


def test_streams_end_when_the_server_does_and_other_answers_are_finished() -> None:
    """A stream is told that its client left; its answer is ended properly. A reply that is on its way goes out."""

    async def scenario() -> tuple[list[Any], list[Any]]:
        gate = asyncio.Event()

        async def stream(scope, receive, send) -> None:
            kind = b"text/event-stream; charset=utf-8" if scope["path"] == "/api/stream" else b"text/plain"
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
            await send({"type": "http.response.body", "body": b"first", "more_body": True})
            assert (await receive())["type"] == "http.request"
            message = await receive()
            assert message["type"] == ("http.disconnect" if scope["path"] == "/api/stream" else "late")
            if scope["path"] != "/api/stream":
                await send({"type": "http.response.body", "body": b"last"})

        ending = Ending()
        guarded = Guarded(stream, guard=Guard(), failed=raise_it, ending=ending)

        async def open_one(path: str) -> list[Any]:
            sent: list[Any] = []

            async def receive():
                await gate.wait()
                return {"type": "late"}

            async def send(message) -> None:
                sent.append(message)

            await guarded(scope_of(headers=SENT, path=path), receive, send)
            return sent

        streaming, replying = (asyncio.create_task(open_one(path)) for path in ("/api/stream", "/api/reply"))
        await asyncio.sleep(0)
        ending.come()
        sent = await streaming
        assert not replying.done()
        assert (await open_one("/api/stream"))[0]["status"] == 503  # one that comes just then
        gate.set()
        return sent, await replying

    stream, reply = asyncio.run(scenario())
    assert [message.get("body") for message in stream[1:]] == [b"first", b""]
    assert stream[-1]["more_body"] is False
    assert [message.get("body") for message in reply[1:]] == [b"first", b"last"]


def test_no_new_request_is_answered_when_the_end_is_near() -> None:
    ending = Ending()
    guarded = Guarded(echo, guard=Guard(), failed=raise_it, ending=ending)
    assert asked(guarded, headers=SENT)[0] == 200
    ending.approach()
    status, headers, _ = asked(guarded, headers=SENT)
    assert (status, headers[b"retry-after"], headers[b"connection"]) == (503, b"5", b"close")


def test_websockets_are_not_answered_and_the_lifespan_passes() -> None:
    passed = []

    async def app(scope, receive, send) -> None:
        passed.append(scope["type"])

    guarded = Guarded(app, guard=Guard(token=TOKEN), failed=print)
    for kind in ("websocket", "lifespan"):
        asyncio.run(guarded({"type": kind, "path": "/", "headers": []}, None, None))  # type: ignore[arg-type]
    assert passed == ["lifespan"]


def test_odd_bytes_are_answered() -> None:
    """Whatever stands in a head: an answer, and no exception."""
    draw = random.Random(0)
    names = [b"host", b"origin", b"authorization", b"cookie", b"content-length", b"sec-fetch-site", b"x"]
    for _ in range(500):
        pairs = [(draw.choice(names), draw.randbytes(draw.randrange(12))) for _ in range(draw.randrange(6))]
        pairs += [(b"host", b"localhost")] * draw.randrange(2)
        query = draw.choice([b"", b"token=" + draw.randbytes(4), draw.randbytes(6)])
        guarded = Guarded(echo, guard=Guard(token=TOKEN, rate=0), failed=raise_it)
        status, _, _ = asked(guarded, pairs=pairs, path="/", query=query, messages=[part(b"")])
        assert status in (400, 401, 403, 413, 421)


def raise_it(scope, error: Exception) -> None:
    raise AssertionError from error


def part(body: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


def scope_of(
    *, headers=None, pairs=None, method: str = "GET", path: str = "/api/x", query: bytes = b""
) -> dict[str, Any]:
    if pairs is None:
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    place = {"scheme": "http", "server": ("127.0.0.1", 8000), "client": ("127.0.0.1", 5000)}
    return {"type": "http", "method": method, "path": path, "query_string": query, "headers": pairs, **place}


def asked(app, *, messages=(), **what: Any) -> tuple[int | None, dict[bytes, bytes], bytes]:
    """Status, headers and body of a reply; a client that has said all stays and waits."""

    async def scenario() -> list[Any]:
        coming, sent = iter(messages), []

        async def receive():
            for message in coming:
                return message
            await asyncio.Event().wait()

        async def send(message) -> None:
            sent.append(message)

        await app(scope_of(**what), receive, send)
        return sent

    sent = asyncio.run(scenario())
    if not sent:
        return None, {}, b""
    return sent[0]["status"], dict(sent[0]["headers"]), b"".join(message.get("body", b"") for message in sent[1:])
