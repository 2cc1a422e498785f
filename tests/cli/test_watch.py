"""``unstir watch``: what it prints, when it ends, and that it only looks."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from unstir.cli import watch as module
from unstir.cli.runs import hold_of, locked

Call = Callable[..., tuple[int, str, str]]

LINES = [
    {"images_seen": 16, "loss": 4.0, "gradient_norm": 0.5, "learning_rate": 0.001, "images_per_second": 8.0},
    {"images_seen": 32, "loss": 1.0, "gradient_norm": 0.25, "learning_rate": 0.002, "images_per_second": 4.0,
     "loss_by_band": {"-8..-4": 0.25, "4..8": 0.5}},
    {"images_seen": 32, "held_out": {"-8..-4": 0.125, "mean": 0.375}, "held_out_raw": {"-8..-4": 0.5, "mean": 0.75}},
]  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "previews").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"recipe": "mine", "training": {"images": 64, "batch": 8}}))
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    Image.new("RGB", (8, 4), (255, 0, 0)).save(folder / "previews/000000000032.png")
    return folder


def finish(folder: Path) -> None:
    (folder / "checkpoints/000000000064").mkdir(parents=True)
    (folder / "checkpoints/000000000064/manifest.json").write_text("{}")


def test_one_look_tells_all(call: Call, run: Path) -> None:
    status, out, err = call("watch", run, "--once")
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        f"{run}, recipe mine: stopped; go on with: unstir train --out {run} --resume",
        "seen        32 of 64 pictures (50.0%)",
        "last told   loss 1, gradient norm 0.25, learning rate 0.002, 4.0 pictures/s",
        "loss        █▁ from 4 to 1",
        "by log-SNR              -8..-4    4..8    mean",
        "training loss           0.2500  0.5000       -",
        "held-out error on x0    0.1250       -  0.3750",
        "... of the raw weights  0.5000       -  0.7500",
        "checkpoint  none yet",
        f"preview     {run}/previews/000000000032.png",
    ]


def test_json_is_one_object(call: Call, run: Path) -> None:
    with locked(run):
        status, out, _ = call("watch", run, "--json")
    told = json.loads(out)
    assert status == 0
    assert (told["state"], told["images_seen"], told["planned_images"], told["seconds_left"]) == ("going on", 32, 64, 8)
    assert told["numbers"]["held_out"] == {"-8..-4": 0.125, "mean": 0.375}
    assert told["preview"] == f"{run}/previews/000000000032.png"
    assert told["checkpoint"] is None


def test_it_looks_until_the_run_ends_and_writes_nothing(call: Call, run: Path, monkeypatch) -> None:
    """Between two looks a line is added, half a line, and at last the run is over."""
    looks: list[int] = []

    def meanwhile(seconds: float) -> None:
        assert seconds == 0.5
        looks.append(1)
        if len(looks) == 1:
            with (run / "log.jsonl").open("a") as file:
                file.write('{"images_seen": 40, "loss": 0.5}\n{"images_se')
        if len(looks) == 3:
            finish(run)
            (run / ".lock").unlink()

    monkeypatch.setattr(module.time, "sleep", meanwhile)
    (run / ".lock").touch()
    monkeypatch.setattr(module, "hold_of", lambda folder: "held" if (folder / ".lock").exists() else "free")
    status, out, _ = call("watch", run, "--every", "0.5")
    assert (status, len(looks)) == (0, 3)
    lines = out.splitlines()
    assert lines[0] == f"{run}, recipe mine: going on"
    assert sum(line.startswith("40 of 64 pictures (62.5%), 6 s left; loss 0.5") for line in lines) == 1
    assert f"{run}, recipe mine: finished" in lines
    files = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert files == {"run.json", "log.jsonl", "previews/000000000032.png", "checkpoints/000000000064/manifest.json"}


def test_a_run_that_died_is_exit_status_1(call: Call, run: Path) -> None:
    """A process that is killed leaves its lock behind, and nobody holds it."""
    hold = (
        "import sys; from pathlib import Path; from unstir.cli.runs import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", hold, str(run)], stdin=-1, stdout=-1)
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == b"held\n"
    assert hold_of(run) == "held"
    process.kill()
    process.wait()
    process.stdout.close()
    process.stdin.close()
    status, out, _ = call("watch", run)
    assert status == 1
    assert ": died; go on with: unstir train" in out.splitlines()[0]
    with locked(run):  # looking did not take the lock away
        assert hold_of(run) == "held"
    assert hold_of(run) == "free"


def test_a_look_does_not_refuse_a_run_that_begins(run: Path, monkeypatch) -> None:
    """The watcher has the lock for an instant: whoever trains asks twice."""
    import fcntl

    (run / ".lock").touch()
    looking = (run / ".lock").open()
    fcntl.flock(looking, fcntl.LOCK_SH)
    monkeypatch.setattr(time, "sleep", lambda seconds: looking.close())
    with locked(run):
        assert hold_of(run) == "held"


def test_interrupting_it_is_how_it_is_left(call: Call, run: Path, monkeypatch) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module.time, "sleep", interrupt)
    with locked(run):
        assert call("watch", run)[0] == 0


@pytest.mark.parametrize(
    "arguments", [["nowhere"], ["run/previews"], ["run", "--every", "0"], ["run", "--every", "nan"]]
)
def test_bad_input_is_told_in_one_sentence(call: Call, run: Path, arguments: list[str]) -> None:
    status, out, err = call("watch", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("unstir: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(("width", "height", "is_shown"), [(80, 40, True), (50, 40, False), (80, 12, False)])
def test_a_terminal_that_is_large_enough_shows_the_preview(run: Path, width: int, height: int, is_shown: bool) -> None:
    from unstir.training.watch import standing

    console = Console(force_terminal=True, width=width, height=height, color_system="truecolor", record=True)
    with console.capture() as capture:
        for part in module._parts(run, standing(run, "held"), console):
            console.print(part)
    assert ("▀" in capture.get()) == is_shown
    assert ("\x1b[38;2;255;0;0;48;2;255;0;0m" in capture.get()) == is_shown


def test_a_preview_that_is_being_written_is_shown_the_next_time(run: Path) -> None:
    from unstir.training.watch import standing

    preview = run / "previews/000000000032.png"
    preview.write_bytes(preview.read_bytes()[:50])
    console = Console(force_terminal=True, width=100, height=50)
    with console.capture() as capture:
        for part in module._parts(run, standing(run, "held"), console):
            console.print(part)
    assert "preview     " in capture.get()
    assert "▀" not in capture.get()


def test_half_blocks_hold_two_pixels_each() -> None:
    picture = Image.new("RGB", (4, 8))
    picture.putdata([(x, y, 7) for y in range(8) for x in range(4)])
    text = module.half_blocks(picture, 4, 3)
    assert text.plain == "▀▀▀▀\n" * 3  # six of the eight rows
    colours = [(style.color.triplet, style.bgcolor.triplet) for style in map(_style, text.spans)]
    assert colours == [((x, 2 * line, 7), (x, 2 * line + 1, 7)) for line in range(3) for x in range(4)]


def _style(span):
    from rich.style import Style

    return Style.parse(span.style) if isinstance(span.style, str) else span.style


@pytest.mark.parametrize(
    ("values", "row"),
    [([1.0], "▁ from 1 to 1"), ([1.0, 10.0, 100.0], "▁▅█ from 1 to 100"), ([0.0, 1.0], "▁█ from 0 to 1"),
     ([1.0, float("nan")], "from 1 to nan")],
)  # fmt: skip
def test_a_curve_is_a_row_of_blocks(values: list[float], row: str) -> None:
    assert module._curve(values) == row


def test_a_long_curve_is_of_means() -> None:
    row = module._curve([float(i) for i in range(1, 6401)])
    assert row.split()[0] == "".join(sorted(row.split()[0]))
    assert len(row.split()[0]) == 32
    assert row.endswith("from 100.5 to 6300")
