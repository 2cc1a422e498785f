"""``unstir serve``: with what a server is started, what is refused before it is, and the whole of it once."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from unstir.cli import serve as module

Call = Callable[..., tuple[int, str, str]]
TOKEN = "a-token-nobody-guesses"


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNSTIR_TOKEN", raising=False)


@pytest.fixture(scope="module")
def model(noisy_model: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noisy_model(tmp_path_factory.mktemp("serve") / "mine")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the server was started with: instead of listening it is ready at once, and stops."""
    from unstir.server import app, listener

    seen: dict[str, Any] = {}
    create = app.create

    def created(service, **options):
        seen.update(options, service=service)
        return create(service, **options)

    def run(app, place, *, ready, ending, patience) -> None:
        seen.update(address=place.getsockname())
        ready(listener.address_of(place))

    monkeypatch.setattr(app, "create", created)
    monkeypatch.setattr(listener, "run", run)
    return seen


def test_without_options_it_is_for_this_machine_alone(call: Call, started, monkeypatch, tmp_path: Path, model) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    status, out, err = call("serve", "--model", model, "--port", 0, "--device", "cpu")
    assert (status, err) == (0, "stopped\n")
    host, port = started["address"][:2]
    assert out.startswith(f"ready: http://127.0.0.1:{port}/ (mine; ")
    assert host == "127.0.0.1"
    assert (started["guard"].token, started["guard"].host, started["runs"]) == ("", "127.0.0.1", None)
    assert (tmp_path / "share/unstir/serve").stat().st_mode & 0o777 == 0o700


def test_what_is_said_is_what_it_is_started_with(call: Call, started, model: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    (tmp_path / "runs").mkdir()
    options = [
        "--port",
        0,
        "--host",
        "0.0.0.0",
        "--token-file",
        "token",
        "--host-name",
        "a.lan",
        "--host-name",
        "b.lan",
    ]
    options += ["--data", "kept", "--runs", "runs", "--queue", 7, "--rate", 3, "--log-prompts", "--quiet", "--json"]
    status, out, err = call("serve", "--model", model, "--model", "builtin", *options)
    assert (status, err) == (0, "")
    told = json.loads(out)
    assert told["models"] == list(started["service"].models) == ["mine", "builtin"]
    assert told["ready"].startswith("http://127.0.0.1:")
    guard, log = started["guard"], started["log"]
    assert (guard.token, guard.host, guard.names, guard.rate) == (TOKEN, "0.0.0.0", ("a.lan", "b.lan"), 3.0)
    assert started["service"].limits.queue == 7
    assert (log.has_prompts, log.has_requests) == (True, False)
    assert started["runs"].all() == []
    assert (tmp_path / "kept").is_dir()
    assert TOKEN not in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "without a token only this machine may ask"),
        (["--host", "192.168.1.5"], "without a token only this machine may ask"),
        (["--host", "somewhere"], "without a token only this machine may ask"),
        (["--host", "somewhere", "--token", TOKEN], "somewhere is no address"),
        (["--token", "short"], "at least 12 characters"),
        (["--token", ""], "at least 12 characters"),
        (["--token", TOKEN, "--token-file", "x"], "give one of"),
        (["--token-file", "none"], "none: no such file"),
        (["--token", "two words of it"], "printable ASCII"),
        (["--port=65536"], "from 0 to 65535"),
        (["--rate", "-1"], "a rate is at least 0"),
        (["--runs", "nowhere"], "there is no folder nowhere"),
        (["--model", "nowhere"], "nowhere"),
        (["--model", "builtin", "--model", "builtin"], "two models are called builtin"),
        (["--device", "abacus"], "abacus"),
        (["--device", "cpu,cpu"], "name it once, got cpu,cpu"),
        (["--device", "cpu,cuda", "--replicas", "2"], "replicas have a device each"),
        (["--replicas", "0"], "replica"),
    ],
)
def test_what_is_refused_leaves_nothing_behind(call: Call, tmp_path: Path, arguments: list[str], words: str) -> None:
    port = [] if any("--port" in word for word in arguments) else ["--port", "0"]
    status, out, err = call("serve", "--data", "kept", *port, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("unstir: ")
    assert err.count("\n") == 1
    assert words in err
    assert not list(tmp_path.iterdir())


def test_a_worker_a_device(call: Call, started, model: Path) -> None:
    """cpu and cpu:0 are one device here, with two names: two workers, each with weights of its own."""
    from unstir.server.devices import Devices

    assert call("serve", "--model", model, "--port", 0, "--device", "cpu,cpu:0", "--data", "kept")[0] == 0
    service = started["service"]
    drawer = service._make_worker(service._pipes, None)
    assert isinstance(drawer, Devices)
    first, second = (worker._pipes["mine"].model.denoiser for worker in drawer._workers)
    assert first is not second


def test_aliases_are_taken_only_where_they_are_asked_for(call: Call, started, model: Path) -> None:
    assert call("serve", "--model", model, "--port", 0, "--data", "kept")[0] == 0
    assert started["aliases"] == ()
    assert call("serve", "--model", model, "--port", 0, "--data", "kept", "--openai-aliases")[0] == 0
    assert "gpt-image-1" in started["aliases"]


def test_a_port_that_is_taken_is_told(call: Call) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        status, _, err = call("serve", "--port", taken.getsockname()[1])
    assert status == 1
    assert "cannot be taken (address already in use)" in err


def test_the_token_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert module.token_of(None, None) == ""
    monkeypatch.setenv("UNSTIR_TOKEN", TOKEN)
    assert module.token_of(None, None) == TOKEN
    assert module.token_of("another-one-of-mine", None) == "another-one-of-mine"
    (tmp_path / "token").write_text("in-a-file-of-mine\n")
    assert module.token_of(None, tmp_path / "token") == "in-a-file-of-mine"
    monkeypatch.setenv("UNSTIR_TOKEN", "")
    with pytest.raises(ValueError, match="at least 12"):  # set, and forgotten: not a server that is open to all
        module.token_of(None, None)


def test_data_is_kept_where_the_user_s_data_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in ("", "relative"):
        monkeypatch.setenv("XDG_DATA_HOME", given)
        assert module.default_folder() == tmp_path / ".local/share/unstir/serve"
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert module.default_folder() == Path("/data/unstir/serve")


def test_a_run_and_its_model_have_the_name_of_the_run(noisy_model, tmp_path: Path) -> None:
    """Clients learn a name and no path."""
    noisy_model(tmp_path / "mine" / "model")
    for path in ("mine", "mine/", "mine/model"):
        assert list(module.opened([str(tmp_path / path)], device="cpu", precision="float32")) == ["mine"]


@pytest.mark.parametrize("library", ["fastapi", "uvicorn"])
def test_without_the_extra_it_is_told_what_to_install(library: str, tmp_path: Path) -> None:
    """In a process of its own, where the library is not."""
    code = f"import sys; sys.modules[{library!r}] = None; from unstir.cli import main; main(['serve', '--port', '0'])"
    environment = {**os.environ, "XDG_DATA_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"unstir: a server needs {library}, which is not here: pip install 'unstir[serve]'\n"


def test_nothing_of_the_server_is_imported_before_it_is_asked_for() -> None:
    code = (
        "import sys, unstir.cli.app, unstir.cli.serve\n"
        "print([name for name in sys.modules if name.split('.')[0] in "
        "('fastapi', 'starlette', 'uvicorn', 'greenlet', 'torch') or name.startswith('unstir.server')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


def test_the_whole_of_it(tmp_path: Path, model: Path) -> None:
    """A process is started, draws for who has the token, tells no secret, and is stopped."""
    (tmp_path / "token").write_text(TOKEN)
    command = [sys.executable, "-m", "unstir", "serve", "--model", str(model), "--port", "0", "--json"]
    command += ["--device", "cpu", "--data", str(tmp_path / "data"), "--token-file", str(tmp_path / "token")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        connection = http.client.HTTPConnection(urlsplit(told["ready"]).netloc, timeout=60)

        def ask(method: str, path: str, body: Any = None, token: str = TOKEN) -> tuple[int, bytes]:
            headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            reply = connection.getresponse()
            return reply.status, reply.read()

        assert ask("GET", "/api/models", token="wrong")[0] == 401
        job = json.loads(ask("POST", "/api/jobs", {"prompt": "red secret"})[1])["id"]
        assert b"event: end" in ask("GET", f"/api/jobs/{job}/events")[1]
        assert ask("GET", f"/api/pictures/{job}/0")[1].startswith(b"\x89PNG")
        connection.close()
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "")
    assert {json.loads(line)["event"] for line in err.splitlines()} == {"request"}
    assert not [word for word in (TOKEN, "secret", job, str(tmp_path)) if word in err]
