"""The loop of a plain run: what is due when, and that a run goes on where its newest checkpoint is."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from unstir.training.checkpoint import Checkpoint, save_checkpoint
from unstir.training.loop import Plan, begin, loop, read_plain_run


@dataclass(frozen=True, kw_only=True)
class Config:
    recipe: str = "own"
    data: str = "pictures"
    number: int = 3


class Counting:
    """Sees four pictures a step; what it reports is how many it saw."""

    def __init__(self, images: int) -> None:
        self.images, self.images_seen = images, 0

    def step(self) -> int:
        self.images_seen = min(self.images_seen + 4, self.images)
        return self.images_seen

    def restore(self, checkpoint: Checkpoint) -> None:
        self.images_seen = checkpoint.images_seen


def plan(directory: Path, **changes: Any) -> Plan:
    settings: dict[str, Any] = {
        "images": 30,
        "log": 8,
        "checkpoint": 10,
        "fingerprint": "abc",
        "lines": ("12 pictures",),
    }
    return Plan(directory=directory, config=Config(), **{**settings, **changes})


def test_what_is_due_is_done(tmp_path: Path) -> None:
    """Lines hold all steps since the last one; a checkpoint is due at each multiple, and once at the end."""
    training, lines, saved, hooked = Counting(30), [], [], []

    def write(reports: Sequence[int]) -> None:
        lines.append(list(reports))

    stopped = loop(
        plan(tmp_path), training, write=write, save=lambda: saved.append(training.images_seen), hook=hooked.append
    )
    assert stopped == 0
    assert hooked == [4, 8, 12, 16, 20, 24, 28, 30]
    assert lines == [[4, 8], [12, 16], [20, 24], [28, 30]]
    assert saved == [12, 20, 30]


def test_a_signal_ends_it_in_order(tmp_path: Path) -> None:
    """After the step in which it came; the state is saved."""
    training, saved = Counting(30), []

    def hook(seen: int) -> None:
        if seen == 8:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    stopped = loop(
        plan(tmp_path), training, write=lambda told: None, save=lambda: saved.append(training.images_seen), hook=hook
    )
    assert (stopped, saved) == (signal.SIGTERM, [8])
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_begins_and_goes_on(tmp_path: Path) -> None:
    """Its configuration and data are written down; it goes back to the newest checkpoint, and so does its log."""
    said: list[str] = []
    log = begin(plan(tmp_path / "run"), Counting(30), said.append)
    assert said == ["recipe: own", "12 pictures", f"run folder: {(tmp_path / 'run').resolve()}"]
    written = json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))
    assert written == {"recipe": "own", "data": "pictures", "number": 3, "fingerprint": "abc"}
    assert read_plain_run(tmp_path / "run" / "run.json", Config) == (Config(), "abc")
    for seen in (4, 8, 12):
        log.write(seen, {"loss": seen})
    save_checkpoint(tmp_path / "run" / "checkpoints", Checkpoint(images_seen=8, tensors={}, values={}))
    training = Counting(30)
    begin(plan(tmp_path / "run"), training, said.append)
    assert training.images_seen == 8
    assert said[-1] == "going on from 8 pictures"
    lines = (tmp_path / "run" / "log.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["images_seen"] for line in lines] == [4, 8]


def test_what_is_another_run_is_refused(tmp_path: Path) -> None:
    begin(plan(tmp_path), Counting(30), lambda line: None)
    with pytest.raises(ValueError, match="are not those that .* was trained on"):
        begin(plan(tmp_path, fingerprint="other"), Counting(30), lambda line: None)
    save_checkpoint(tmp_path / "checkpoints", Checkpoint(images_seen=8, tensors={}, values={}))
    with pytest.raises(ValueError, match="seen 8 pictures already, more than the 7 asked for"):
        begin(plan(tmp_path, images=7), Counting(30), lambda line: None)


def test_a_damaged_description_is_named(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text('{"numbr": 1}', "utf-8")
    with pytest.raises(ValueError, match=r"run\.json: no setting 'numbr'; did you mean 'number'"):
        read_plain_run(file, Config)
