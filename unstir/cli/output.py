"""What verbs share: where files go, progress, and results for people or programs.

Knows: folders and names of pictures, terminals.
Does not know: what the files hold.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Protocol

from cyclopts import Parameter, Token
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from unstir.generation.names import slug

_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
"""What a name that ends so is taken for; which of them are written, ``metadata`` says."""


class Advance(Protocol):
    """Tells how far a long work is."""

    def __call__(self, done: float, text: str = "") -> None:
        """So much is done; ``text`` stands beside the bar."""
        ...


def print_json(result: Mapping[str, Any]) -> None:
    """One JSON object on stdout."""
    print(json.dumps(result, indent=2, ensure_ascii=False))


def is_folder(output: str) -> bool:
    """Whether ``-o`` means a folder: it ends in a slash, exists as one, or has no picture suffix."""
    path = Path(output)
    return output.endswith(("/", "\\")) or path.is_dir() or path.suffix.lower() not in _PICTURES


def picture_paths(output: str, prompts: list[str]) -> list[Path]:
    """Where each picture of a call goes.

    Into a folder: ``0000-a-red-heart.png``, numbered on from what is there, so that nothing is lost and files sort in
    order. To a file: that file.

    Raises:
        ValueError: if several pictures are to go into one file, or the file's suffix is of no format that is written.
    """
    if not is_folder(output):
        if len(prompts) > 1:
            raise ValueError(
                f"{len(prompts)} pictures do not fit into the file {output}; give a folder, for instance -o pictures/"
            )
        from unstir.metadata import require_suffix

        require_suffix(Path(output))
        return [Path(output)]
    folder = Path(output)
    numbers = [int(match[1]) for file in _children(folder) if (match := re.match(r"(\d{4,})-", file.name))]
    first = max(numbers, default=-1) + 1
    return [folder / f"{first + i:04d}-{slug(prompt)}.png" for i, prompt in enumerate(prompts)]


def require_place(output: str) -> Path:
    """The file that a picture is to be written to, refused early if it cannot be.

    Raises:
        ValueError: if the suffix is of no format that pictures are written in.
        NotADirectoryError: if its folder does not exist.
    """
    from unstir.metadata import require_suffix

    path = Path(output)
    require_suffix(path)
    if not path.parent.is_dir():
        raise NotADirectoryError(f"there is no folder {path.parent} for {path.name}; make it first")
    return path


@contextmanager
def writable_folder(folder: Path) -> Generator[Path]:
    """Make a folder, and see that it can be written to before work starts; one that stays empty is taken away again.

    Raises:
        OSError: if it cannot be made or written.
    """
    made = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
    probe = folder / ".unstir-probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
        yield folder
    finally:
        for path in made:
            if os.path.isdir(path) and not os.listdir(path):
                path.rmdir()


@contextmanager
def progress_bar(what: str, total: int, *, unit: str = "") -> Generator[Advance]:
    """A function to call with (done, text); a bar on a terminal, nothing elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _quiet
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}" + unit),
    )
    with Progress(
        *columns, TimeRemainingColumn(), TextColumn("{task.fields[text]}"), console=console, transient=True
    ) as bar:
        task = bar.add_task(what, total=total, text="")

        def advance(done: float, text: str = "") -> None:
            bar.update(task, completed=done, text=text)

        yield advance


class Stages(Protocol):
    """Tells how far a work of several stages is."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """So much of this stage is done."""
        ...


@contextmanager
def stage_progress() -> Generator[Stages]:
    """A function to call with (stage, done, total): a bar a stage on a terminal, a line now and then elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        told = ["", 0.0]

        def tell(stage: str, done: int, total: int) -> None:
            now = time.monotonic()
            if stage != told[0] or now - float(told[1]) >= PLAIN_SECONDS:
                told[:] = [stage, now]
                say(f"{stage}: {done}/{total}")

        yield tell
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"))
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def advance(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)

        yield advance


PLAIN_SECONDS = 15.0
"""Between two lines of progress where there is no terminal."""


def say(sentence: str) -> None:
    """Tell a person something that is no result."""
    print(sentence, file=sys.stderr, flush=True)


def _whole(hint: object, tokens: Sequence[Token]) -> int:
    return int(tokens[0].value)


Whole = Annotated[int, Parameter(converter=_whole)]
"""A whole number; cyclopts by itself takes 1.5 for 1."""


def _quiet(done: float, text: str = "") -> None:
    """No bar where nobody looks."""


def _children(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []
