"""The log of a run survives crashes and goes back with the run; no logger ever stops one."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from unstir.training import log as module
from unstir.training.log import Guarded, RunLog, TensorBoard, require_loggers


def test_lines_come_back_in_order(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.jsonl")
    assert log.read() == []
    log.write(8, {"loss": 0.5, "held_out": {"-8..-4": 1.0}})
    log.write(16, {"loss": 0.25, "note": "üñí 🍕\nline"})
    assert log.read() == [
        {"images_seen": 8, "loss": 0.5, "held_out": {"-8..-4": 1.0}},
        {"images_seen": 16, "loss": 0.25, "note": "üñí 🍕\nline"},
    ]
    assert len((tmp_path / "log.jsonl").read_text("utf-8").splitlines()) == 2


def test_another_object_reads_at_once_what_was_written(tmp_path: Path) -> None:
    RunLog(tmp_path / "log.jsonl").write(1, {})
    assert RunLog(tmp_path / "log.jsonl").read() == [{"images_seen": 1}]


def test_going_back_forgets_what_came_after(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.jsonl")
    for seen in (8, 16, 24, 32):
        log.write(seen, {"loss": 1 / seen})
    log.rewind(16)
    assert [line["images_seen"] for line in log.read()] == [8, 16]
    log.write(24, {"loss": 0.0})
    assert [line["images_seen"] for line in log.read()] == [8, 16, 24]
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_a_log_of_a_new_run_goes_back_to_nothing(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.jsonl")
    log.rewind(0)
    assert log.read() == []


def test_every_cut_of_the_last_line_is_survived(tmp_path: Path) -> None:
    """A crash may stop a write at any byte; the run that goes on reads all that is whole and writes on a new line."""
    path = tmp_path / "log.jsonl"
    log = RunLog(path)
    log.write(8, {"loss": 0.5})
    whole = path.read_bytes()
    log.write(16, {"loss": 0.25})
    full = path.read_bytes()
    for cut in range(len(whole), len(full)):
        path.write_bytes(full[:cut])
        assert log.read()[0] == {"images_seen": 8, "loss": 0.5}
        log.rewind(8)
        log.write(16, {"loss": 0.125})
        assert log.read() == [{"images_seen": 8, "loss": 0.5}, {"images_seen": 16, "loss": 0.125}]


@given(cut=st.integers(0, 60))
def test_after_a_line_cut_short_the_next_is_whole(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    """A full disk takes the first bytes of a line, and then has room again: no rewind comes between."""
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    log = RunLog(path)
    log.write(8, {"loss": 0.5})
    whole = path.read_bytes()
    log.write(16, {"loss": 0.25})
    full = path.read_bytes()
    path.write_bytes(full[: len(whole) + cut])
    log.write(24, {"loss": 0.125})
    read = [line["images_seen"] for line in log.read()]
    assert read in ([8, 24], [8, 16, 24])
    assert (16 in read) == (len(whole) + cut >= len(full) - 1)  # a line needs no line break to be whole


def test_a_full_disk_is_an_error_of_the_log_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.symlink_to("/dev/full")
    log = RunLog(path)
    with pytest.raises(OSError, match="space") as error:
        log.write(8, {"loss": 0.5})
    assert error.value.errno == errno.ENOSPC
    assert log.read() == []  # and a device without end is not read to its end
    told: list[str] = []
    guarded = Guarded({"log.jsonl": log}, told.append)
    for seen in (8, 16, 24):
        guarded.write(seen, {"loss": 0.5})
    assert len(told) == 1
    assert "log.jsonl failed (OSError: [Errno 28] No space left on device)" in told[0]
    assert "\n" not in told[0]


@pytest.mark.parametrize("damage", ["[1, 2]\n", "7\n", '{"loss": 1.0}\n', "\x00\x00\n", "\n\n"])
def test_what_is_no_line_of_a_log_is_left_out(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(damage + json.dumps({"images_seen": 8}) + "\n")
    assert RunLog(path).read() == [{"images_seen": 8}]
    RunLog(path).rewind(8)
    assert RunLog(path).read() == [{"images_seen": 8}]


class Writer:
    """What TensorBoard's writer is asked for."""

    def __init__(self) -> None:
        self.scalars: list[tuple[str, float, int]] = []
        self.images: list[tuple[str, tuple[int, ...], int, str]] = []

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def add_image(self, name: str, picture, step: int, dataformats: str) -> None:
        self.images.append((name, picture.shape, step, dataformats))

    def flush(self) -> None:
        pass


def test_tensorboard_hears_the_same_numbers_over_pictures_seen(tmp_path: Path) -> None:
    writer = Writer()
    board = TensorBoard(tmp_path, make=lambda directory, seen: writer)
    board.write(8, {"loss": 0.5, "held_out": {"-8..-4": 1.0, "mean": 2.0}})
    board.show(16, Image.new("RGB", (6, 4)))
    assert writer.scalars == [("loss", 0.5, 8), ("held_out/-8..-4", 1.0, 8), ("held_out/mean", 2.0, 8)]
    assert writer.images == [("preview", (4, 6, 3), 16, "HWC")]
    assert not list(tmp_path.iterdir())


def test_the_real_tensorboard_reads_back_what_was_written_and_forgets_what_a_resumed_run_repeats(
    tmp_path: Path,
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = TensorBoard(tmp_path)
    for seen in (8, 16, 24):
        board.write(seen, {"loss": 1 / seen})
    again = TensorBoard(tmp_path, images_seen=16)
    again.write(24, {"loss": 0.0})
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(8, 0.125), (16, 0.0625), (24, 0.0)]


def test_a_logger_that_is_not_installed_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    require_loggers(())
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"tensorboard, which is not installed: pip install 'unstir\[tensorboard\]'"):
        require_loggers(("tensorboard",))


class Broken:
    """Raises at each call."""

    def __init__(self, error: Exception) -> None:
        self.error, self.calls = error, 0

    def write(self, images_seen: int, values) -> None:
        self.calls += 1
        raise self.error

    def show(self, images_seen: int, picture) -> None:
        self.calls += 1
        raise self.error


@pytest.mark.parametrize("error", [OSError(28, "No space left"), RuntimeError("a\nb"), ValueError(), MemoryError()])
def test_what_a_logger_raises_is_told_once_and_the_others_hear_all(tmp_path: Path, error: Exception) -> None:
    told: list[str] = []
    broken, log = Broken(error), RunLog(tmp_path / "log.jsonl")
    loggers = Guarded({"broken": broken, "log.jsonl": log}, told.append)
    for seen in (8, 16):
        loggers.write(seen, {"loss": 0.5})
        loggers.show(seen, Image.new("RGB", (1, 1)))
    assert broken.calls == 4
    assert [line["images_seen"] for line in log.read()] == [8, 16]
    assert len(told) == 1
    assert told[0].startswith(f"broken failed ({type(error).__name__}")
    assert "\n" not in told[0]


def test_an_interruption_is_no_failure_of_a_logger() -> None:
    with pytest.raises(KeyboardInterrupt), Guarded({}, print).attempt("a preview"):
        raise KeyboardInterrupt
