"""Where a run stands, read from its folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unstir.training.watch import standing


def run_folder(folder: Path, *, images: int = 100, lines: list[dict] = (), checkpoints: tuple[int, ...] = ()) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"recipe": "mine", "training": {"images": images, "batch": 8}}))
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for seen in checkpoints:
        (folder / f"checkpoints/{seen:012d}").mkdir(parents=True)
        (folder / f"checkpoints/{seen:012d}/manifest.json").write_text("{}")
    return folder


LINES = [
    {"images_seen": 16, "loss": 2.0, "learning_rate": 0.1, "images_per_second": 4.0, "loss_by_band": {"-8..-4": 3.0}},
    {"images_seen": 16, "held_out": {"-8..-4": 5.0, "mean": 5.0}},
    {"images_seen": 32, "loss": 1.0, "learning_rate": 0.2, "images_per_second": 2.0, "loss_by_band": {"-4..-1.5": 4.0}},
]


def test_the_newest_of_every_number_is_told(tmp_path: Path) -> None:
    now = standing(run_folder(tmp_path, lines=LINES, checkpoints=(8, 24)), "held")
    assert (now.recipe, now.state, now.images_seen, now.planned_images) == ("mine", "going on", 32, 100)
    assert now.numbers["learning_rate"] == 0.2
    assert now.bands == {"loss_by_band": {"-4..-1.5": 4.0}, "held_out": {"-8..-4": 5.0, "mean": 5.0}}
    assert now.losses == (2.0, 1.0)
    assert now.seconds_left == (100 - 32) / 2
    assert now.checkpoint == tmp_path / f"checkpoints/{24:012d}"
    assert now.preview is None


@pytest.mark.parametrize(
    ("hold", "checkpoint", "state"),
    [
        ("held", 24, "going on"),
        ("held", 100, "going on"),  # the last things are written
        ("free", 24, "stopped"),
        ("left", 24, "died"),
        ("free", 100, "finished"),
        ("left", 100, "finished"),
    ],
)
def test_the_lock_and_the_last_checkpoint_say_how_it_is(tmp_path: Path, hold, checkpoint: int, state: str) -> None:
    now = standing(run_folder(tmp_path, lines=LINES, checkpoints=(checkpoint,)), hold)
    assert now.state == state
    assert (now.seconds_left is None) == (state != "going on")


def test_a_run_that_has_told_nothing_yet(tmp_path: Path) -> None:
    now = standing(run_folder(tmp_path), "held")
    assert (now.images_seen, now.seconds_left, now.bands, now.checkpoint) == (0, None, {}, None)
    (tmp_path / "log.jsonl").unlink()
    assert standing(tmp_path, "held") == now


def test_what_is_not_written_to_its_end_does_not_count(tmp_path: Path) -> None:
    run_folder(tmp_path, lines=LINES, checkpoints=(24,))
    (tmp_path / "checkpoints/.000000000032.new").mkdir()
    (tmp_path / "checkpoints/.000000000032.new/manifest.json").write_text("{}")
    (tmp_path / "checkpoints/000000000040").mkdir()  # as a rename over a file system without them may leave it
    (tmp_path / "previews").mkdir()
    for name in ("000000000000.png", "000000000016.png", "notes.png", "000000000032.png.new"):
        (tmp_path / "previews" / name).touch()
    now = standing(tmp_path, "held")
    assert now.checkpoint == tmp_path / f"checkpoints/{24:012d}"
    assert now.preview == tmp_path / "previews/000000000016.png"


@given(cut=st.integers(1, 100))
def test_a_log_that_is_being_written_is_read(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    folder = run_folder(tmp_path_factory.mktemp("run"), lines=LINES)
    log = (folder / "log.jsonl").read_bytes()
    (folder / "log.jsonl").write_bytes(log[:-cut])
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    now = standing(folder, "held")
    assert now.images_seen == (32 if cut == 1 else 16)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_classifiers_log_counts_steps(tmp_path: Path) -> None:
    lines = [
        {"images_seen": 16, "loss": 2.0, "accuracy_seen": 0.5, "steps_per_second": 3.0},
        {"images_seen": 16, "accuracy": {"clean": 0.75, "0..0.25": 0.5}},
    ]
    now = standing(run_folder(tmp_path, lines=lines), "held")
    assert now.images_per_second == 24.0
    assert now.seconds_left == 84 / 24
    assert now.bands == {"accuracy": {"clean": 0.75, "0..0.25": 0.5}}


def test_no_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no run folder: it has no run\.json; give another"):
        standing(tmp_path, "free")
    with pytest.raises(FileNotFoundError, match="look again soon"):
        standing(tmp_path, "held")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"training": {"images": null, "batch": 8}}', '{"training": 7}'])
def test_a_damaged_configuration_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ValueError, match=r"run\.json"):
        standing(tmp_path, "free")
