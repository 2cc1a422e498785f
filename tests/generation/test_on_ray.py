"""Drawing on Ray: what a worker does, without Ray; and with it, workers that die (slow, needs ``unstir[ray]``)."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from unstir.generation import on_ray
from unstir.generation.on_ray import Painter, require_ray
from unstir.generation.prompts import Wanted
from unstir.generation.shards import Order, Share, claim, missing
from unstir.pipeline import Pipeline

Make = Callable[..., Order]


def block_of(wanted: list[Wanted]) -> dict[str, Any]:
    """As Ray Data hands rows over."""
    rows = [asdict(one) for one in wanted]
    return {name: numpy.array([row[name] for row in rows]) for name in ("index", "prompt", "seed", "negative")}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_block_that_is_handed_out_again_is_drawn_where_it_was_left(pipe: Pipeline, order: Make) -> None:
    """A worker dies in the middle of a block: the next draws what is not there, and tells of all."""
    asked = order("cat", "dog", "red blue cat " * 60, "red", "blue")
    claim(asked, Share())
    block = block_of(list(asked.wanted()))
    seen: list[str] = []
    painter = Painter(asked, "cpu", 1)
    run = painter.pipe.run

    def dying(requests, **options):
        for item in run(requests, **options):
            yield item
            seen.extend([item.request.prompt] if hasattr(item, "request") else [])
            if len(seen) == 3:
                raise KeyboardInterrupt

    painter.pipe.run = dying  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        painter(block)
    left = [one.index for one in missing(asked, Share())]
    assert left == [3, 4]
    before = {path.name: path.stat().st_mtime_ns for path in asked.folder.glob("*.png")}
    told = Painter(asked, "cpu", 1)(block)
    assert told["index"] == [0, 1, 2, 3, 4]
    assert [bool(warning) for warning in told["warnings"]] == [False] * 5  # the cut one was told by the first worker
    assert list(missing(asked, Share())) == []
    assert {name: (asked.folder / name).stat().st_mtime_ns for name in before} == before
    for one, alone in zip(
        asked.wanted(), (pipe.sample(one.prompt, seed=one.seed)[0] for one in asked.wanted()), strict=True
    ):
        with Image.open(asked.folder / one.name) as picture:
            assert numpy.abs(numpy.array(picture).astype(int) - numpy.array(alone)).max() <= 1


def test_a_worker_with_another_model_is_refused(order: Make) -> None:
    asked = order("cat")
    with pytest.raises(ValueError, match="another model on a worker"):
        Painter(replace(asked, recipe=replace(asked.recipe, checksum="0" * 64)), "cpu", 1)


def test_nothing_to_draw_needs_no_cluster(order: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(on_ray, "_cluster")
    assert list(on_ray.draw_on_ray(order("cat"), [], device="cpu", workers=2)) == []


def test_what_is_lacking_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        require_ray(0)
    monkeypatch.setattr(on_ray, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'unstir\[ray\]'"):
        require_ray(None)


def test_the_reason_is_what_the_worker_said() -> None:
    """Out of a traceback as Ray gives it."""
    text = (
        "\x1b[36mray::MapWorker(MapBatches(Painter)).submit()\x1b[39m (pid=1)\n  File x, line 1\n    raise\n"
        "FileNotFoundError: [Errno 2] No such file or directory: 'a'\n\nThe above exception was the direct cause\n"
        "ray.exceptions.UserCodeException: UDF failed\nTo change retry attempts, configure"
    )
    assert on_ray._reason(RuntimeError(text)) == "FileNotFoundError: [Errno 2] No such file or directory: 'a'"
    assert on_ray._reason(RuntimeError("torch.OutOfMemoryError: 1\nx")) == "torch.OutOfMemoryError: 1"
    assert on_ray._reason(RuntimeError("a\nb")) == "b"


def test_a_lost_worker_is_told_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    said = "\x1b[33m(raylet)\x1b[0m A worker died. To troubleshoot, read pages"
    for _ in range(3):
        print(said, file=on_ray._Brief())
    brief = on_ray._Brief()
    for _ in range(3):
        print(said, file=brief)
    assert capsys.readouterr() == ("", "ray: A worker died\n" * 4)


def descendants(pid: int) -> list[int]:
    """The processes that a process started, and those that these started."""
    children: dict[int, list[int]] = {}
    for place in Path("/proc").iterdir():
        if place.name.isdecimal():
            try:
                parent = int((place / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:  # it is gone
                continue
            children.setdefault(parent, []).append(int(place.name))
    found, todo = [], [pid]
    while todo:
        todo += (own := children.get(todo.pop(), []))
        found += own
    return found


def workers_of(pid: int) -> list[int]:
    """The processes of a call on Ray that draw."""
    found = []
    for child in descendants(pid):
        try:
            found += [child] * (b"Painter" in Path(f"/proc/{child}/cmdline").read_bytes())
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_loses_nothing(tmp_path: Path) -> None:
    """200 prompts, the built-in model, two workers: one is killed while it draws, and no picture is lost or another."""
    if importlib.util.find_spec("ray") is None or not Path("/proc").is_dir():
        pytest.skip("RAY IS NOT INSTALLED: drawing on it was not tested; pip install 'unstir[ray]'")
    lines = [f"{what} {i}" for i in range(40) for what in ("a red heart", "a cat", "pizza", "a dog face", "a blue car")]
    (tmp_path / "prompts.txt").write_text("\n".join(lines))
    command = [sys.executable, "-m", "unstir", "generate", "prompts.txt", "--precision", "float32", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(*more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*command, *more], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    alone = start("-o", "alone")
    _, err = alone.communicate(timeout=600)
    assert alone.returncode == 0, err

    call = start("-o", "drawn", "--ray", "--workers", "2")
    deadline = time.monotonic() + 300
    while len(list((tmp_path / "drawn").glob("0*.png"))) < 40 or len(workers_of(call.pid)) < 2:
        assert call.poll() is None, call.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    victim = workers_of(call.pid)[0]
    os.kill(victim, signal.SIGKILL)
    assert len(list((tmp_path / "drawn").glob("0*.png"))) < 200
    out, err = call.communicate(timeout=600)
    assert call.returncode == 0, err
    assert '"drawn": 200' in out
    assert "ray: A worker died" in err

    names = sorted(path.name for path in (tmp_path / "alone").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "drawn").iterdir())
    assert len(names) == 202  # with generate.json and index.jsonl, and nothing half-written
    for name in names:
        one, other = tmp_path / "alone" / name, tmp_path / "drawn" / name
        if name.endswith(".png"):
            pixels = [numpy.array(Image.open(path)).astype(int) for path in (one, other)]
            assert numpy.abs(pixels[0] - pixels[1]).max() <= 1, name
        else:
            assert one.read_text() == other.read_text()
