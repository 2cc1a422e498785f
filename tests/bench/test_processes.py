"""A server and somebody who draws without it, as processes: started, asked, killed, ended."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from unstir.bench import processes
from unstir.bench.clients import Fetched
from unstir.bench.processes import Offline, Server, spread

STANDING_IN = """
import http.server, sys
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")
    def log_message(self, *said):
        pass
server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
print("x" * 200_000)  # more than a pipe holds
print(f"ready at http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
"""


def server_of(program: str, folder: Path) -> Server:
    server = Server("builtin", folder / "data", "cpu")
    server._command = [sys.executable, "-c", program]
    return server


def test_it_is_started_watched_killed_and_started_again(tmp_path: Path) -> None:
    server = server_of(STANDING_IN, tmp_path)
    assert server._command[0] == sys.executable
    try:
        assert server.start() > 0
        first, process = server.url, server._process
        assert first.startswith("http://127.0.0.1:")
        assert Path("/proc").is_dir() == bool(server.memory)
        server.kill()
        assert process is not None
        assert process.returncode == -9
        assert server.start() > 0
        assert server._process is not process
        again = server._process
        server.stop()
        assert again is not None
        assert again.returncode == -15
        assert server.memory is None  # of a process that is gone nothing is told
    finally:
        server.stop()


def test_the_verb_is_serve(tmp_path: Path) -> None:
    command = Server("runs/mine", tmp_path, "cpu")._command
    assert command[1:] == [
        *("-m", "unstir", "serve", "--model", "runs/mine", "--port", "0"),
        *("--data", str(tmp_path), "--device", "cpu", "--rate", "0"),
    ]


def test_one_that_ends_at_once_is_told_with_its_last_words(tmp_path: Path) -> None:
    server = server_of("print('first'); raise SystemExit('there is no model mine')", tmp_path)
    with pytest.raises(OSError, match="unstir serve did not start: there is no model mine"):
        server.start()
    server = server_of("", tmp_path)
    with pytest.raises(OSError, match="it said nothing"):
        server.start()


def test_one_that_never_is_ready_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_START", 0.2)
    server = server_of("import time; time.sleep(600)", tmp_path)
    with pytest.raises(OSError, match="did not start"):
        server.start()
    assert server._process is not None
    assert server._process.returncode == -15


def test_one_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_END", 0.1)
    server = server_of("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)" + STANDING_IN, tmp_path)
    server.start()
    server.stop()
    assert server._process is not None
    assert server._process.returncode == -9


def test_somebody_draws_without_a_server(noisy_model: Callable[[Path], Path], tmp_path: Path) -> None:
    """A process with the model: it tells its rate, and draws twins in portions."""
    from unstir.metadata import recipe_of, save_picture
    from unstir.pipeline import Result, load

    folder = noisy_model(tmp_path / "model")
    pipe = load(folder, device="cpu")
    pictures = []
    for i, item in enumerate(r for r in pipe.run(pipe.requests(["red"], n=20, seed=0)) if isinstance(r, Result)):
        save_picture(item.picture, tmp_path / f"{i}.png", recipe_of(pipe, item.request))
        pictures.append(
            Fetched(asked={"prompt": "red" if i else "blue", "seed": 0}, place=tmp_path / f"{i}.png", index=i)
        )
    told: list[tuple[int, int]] = []
    offline = Offline(str(folder), "cpu")
    try:
        assert offline.rate(0.01) > 0
        compared = offline.compare(pictures, 100, lambda done, total: told.append((done, total)))
        offline._process.kill()
        offline._process.wait()
        with pytest.raises(OSError, match="Broken pipe|ended with status -9"):
            offline.rate(0.01)
    finally:
        offline.stop()
    assert (compared.count, compared.of) == (20, 20)
    assert compared.worst <= 1
    assert len(compared.wrong) == 1
    assert "another prompt" in compared.wrong[0]
    assert told == [(16, 20), (20, 20)]


def test_a_sample_is_taken_evenly() -> None:
    pictures = [Fetched(asked={}, place=Path(str(i))) for i in range(10)]
    assert [each.place.name for each in spread(pictures, 5)] == ["0", "2", "4", "6", "8"]
    assert spread(pictures, 100) == pictures
    assert spread([], 5) == []
