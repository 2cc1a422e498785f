"""The log of a run survives crashes and goes back with the run."""

from __future__ import annotations

from pathlib import Path

from unstir.training.log import RunLog


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
