"""Where a run stands, read from its folder while it goes on.

Knows: which files of a run folder tell what, models' runs and classifiers', and that nothing may be written there.
Does not know: terminals, how a folder is held, what the numbers mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from unstir.config import read_json_file
from unstir.training.log import RunLog

State = Literal["going on", "finished", "stopped", "died"]
Hold = Literal["held", "left", "free"]
"""What is with a folder's lock: a process has it, one that died left it behind, or there is none."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a run stands.

    Args:
        recipe: that it was started with.
        state: whether it goes on, came to its end, was stopped in order, or died without a word.
        images_seen: pictures seen, by its log and its checkpoints.
        planned_images: pictures that it is to see.
        numbers: what it told last, under each name of the log.
        losses: every loss that it told, in order.
        checkpoint: the newest one that was written to its end.
        preview: the newest sheet.
    """

    recipe: str
    state: State
    images_seen: int
    planned_images: int
    numbers: Mapping[str, Any]
    losses: tuple[float, ...]
    checkpoint: Path | None
    preview: Path | None

    @property
    def images_per_second(self) -> float | None:
        """Throughput of the steps that the log told last."""
        return cast("float | None", self.numbers.get("images_per_second"))

    @property
    def seconds_left(self) -> float | None:
        """Until the planned pictures are seen, at the last throughput; None where it does not go on."""
        rate = self.images_per_second
        return (self.planned_images - self.images_seen) / rate if self.state == "going on" and rate else None

    @property
    def bands(self) -> dict[str, dict[str, float]]:
        """A table: what the log tells of every band of log-SNR (or of t), by the name of its column."""
        return {name: cast("dict[str, float]", row) for name, row in self.numbers.items() if isinstance(row, dict)}


def standing(directory: Path, hold: Hold) -> Standing:
    """Where the run in a folder stands; the folder is only read.

    Args:
        directory: the run folder.
        hold: what is with its lock.

    Raises:
        FileNotFoundError: if it is no run folder, or none yet.
        ValueError: if its configuration is damaged.
    """
    path = directory / "run.json"
    if not path.is_file():
        soon = "a process that has not begun yet holds it, so look again soon" if hold == "held" else "give another"
        raise FileNotFoundError(f"{directory} is no run folder: it has no run.json; {soon}")
    config = read_json_file(path)
    planned, batch = _planned(config, path)
    lines = RunLog(directory / "log.jsonl").read()
    checkpoint, preview = _newest_checkpoint(directory / "checkpoints"), _newest_preview(directory / "previews")
    seen = max([0, *(int(line["images_seen"]) for line in lines), int(checkpoint.name) if checkpoint else 0])
    return Standing(
        recipe=str(config.get("recipe", "")),
        state=_state(hold, is_done=checkpoint is not None and int(checkpoint.name) >= planned),
        images_seen=seen,
        planned_images=planned,
        numbers=_last_numbers(lines, batch),
        losses=tuple(float(line["loss"]) for line in lines if "loss" in line),
        checkpoint=checkpoint,
        preview=preview,
    )


def _planned(config: Mapping[str, Any], path: Path) -> tuple[int, int]:
    try:
        return int(config["training"]["images"]), int(config["training"]["batch"])
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path} does not say training.images and training.batch; it is damaged") from None


def _state(hold: Hold, *, is_done: bool) -> State:
    if hold == "held":
        return "going on"
    if is_done:
        return "finished"
    return "died" if hold == "left" else "stopped"


def _last_numbers(lines: Sequence[Mapping[str, Any]], batch: int) -> dict[str, Any]:
    numbers: dict[str, Any] = {}
    for line in lines:
        numbers.update(line)
    numbers.pop("images_seen", None)
    steps = numbers.pop("steps_per_second", None)  # a classifier's log counts steps
    return numbers if steps is None else {**numbers, "images_per_second": steps * batch}


def _newest_checkpoint(directory: Path) -> Path | None:
    """The newest folder with a manifest, which is written last; its checksums are for whoever loads it."""
    folders = (manifest.parent for manifest in directory.glob("*/manifest.json"))
    return max((folder for folder in folders if folder.name.isdigit()), key=lambda folder: folder.name, default=None)


def _newest_preview(directory: Path) -> Path | None:
    return max((file for file in directory.glob("*.png") if file.stem.isdigit()), default=None)
