"""The loop of a plain run: what a classifier and a codec share, from the first picture to the last.

Knows: how a run begins or goes on, what is due when, how a signal ends it.
Does not know: what is trained, what it sees, previews, other processes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from unstir.config import from_dict, read_json_file, to_dict, write_text_file
from unstir.training.checkpoint import Checkpoint, load_latest
from unstir.training.log import Guarded, RunLog
from unstir.training.run import Say, is_due, signals

R = TypeVar("R")
R_out = TypeVar("R_out", covariant=True)
Config = TypeVar("Config")


class Training(Protocol[R_out]):
    """What is trained, a step at a time."""

    @property
    def images_seen(self) -> int:
        """Pictures seen so far."""
        ...

    def step(self) -> R_out:
        """See one more batch, and tell of it."""
        ...

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a saved state, exactly."""
        ...


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run is about.

    Args:
        directory: its folder.
        config: its configuration, a dataclass with ``recipe`` and ``data``.
        fingerprint: of the data that it sees.
        lines: what is said of these.
        images: pictures to see in all.
        log: pictures between two lines in the log.
        checkpoint: pictures between two states on the disk.
    """

    directory: Path
    config: Any
    fingerprint: str
    lines: Sequence[str]
    images: int
    log: int
    checkpoint: int


def begin(plan: Plan, training: Training[Any], say: Say) -> Guarded:
    """Go back to the newest whole checkpoint of a run, if there is one, and write down what the run is.

    Returns:
        Its log, with nothing in it from after that checkpoint.

    Raises:
        ValueError: if the folder holds a run on other data, or one that saw more than is asked for.
        OSError: if the folder cannot be written.
    """
    directory, file = plan.directory, plan.directory / "run.json"
    if file.exists() and read_plain_run(file, cast("type[Any]", type(plan.config)))[1] != plan.fingerprint:
        raise ValueError(
            f"the pictures or captions in {plan.config.data} are not those that {directory} was trained on; give the "
            "old ones with --data, or start a new run"
        )
    checkpoint = load_latest(directory / "checkpoints")
    if checkpoint is not None:
        training.restore(checkpoint)
    if training.images_seen > plan.images:
        raise ValueError(
            f"the run has seen {training.images_seen} pictures already, more than the {plan.images} asked for; ask for "
            "more"
        )
    went = [f"going on from {training.images_seen} pictures"] if training.images_seen else []
    for line in (f"recipe: {plan.config.recipe}", *plan.lines, f"run folder: {directory.resolve()}", *went):
        say(line)
    directory.mkdir(parents=True, exist_ok=True)
    content = {**to_dict(plan.config), "fingerprint": plan.fingerprint}
    write_text_file(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    log = RunLog(directory / "log.jsonl")
    log.rewind(training.images_seen)
    return Guarded({"log.jsonl": log}, say)


def loop(
    plan: Plan,
    training: Training[R],
    *,
    write: Callable[[Sequence[R]], None],
    save: Callable[[], None],
    hook: Callable[[R], None],
) -> int:
    """Train to the end, or until a signal came; the state is saved in both cases.

    Args:
        plan: what is due when.
        training: what is trained.
        write: told of the steps since it was told last.
        save: called when a checkpoint is due.
        hook: called after every step.

    Returns:
        The signal's number, or 0.
    """
    pending: list[R] = []
    with signals() as came:
        while training.images_seen < plan.images and not came:
            before = training.images_seen
            report = training.step()
            pending.append(report)
            hook(report)
            is_last = training.images_seen == plan.images
            if is_last or is_due(before, training.images_seen, plan.log):
                write(pending)
                pending.clear()
            if not is_last and is_due(before, training.images_seen, plan.checkpoint):
                save()
        save()
        return came[0] if came and training.images_seen < plan.images else 0


def read_plain_run(path: Path, cls: type[Config]) -> tuple[Config, str]:
    """The configuration in a ``run.json``, and the fingerprint of the data that the run saw.

    Raises:
        OSError: if there is no such file.
        ValueError: if it is damaged, or of another kind of run.
    """
    content = read_json_file(path)
    fingerprint = str(content.pop("fingerprint", ""))
    try:
        return from_dict(cls, content), fingerprint
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
