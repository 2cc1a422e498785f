"""What every training at the command line shares: its folder, its settings, its progress.

Knows: which folder a run takes and how it is held, what a change of settings is, progress for people.
Does not know: what is trained.
"""

from __future__ import annotations

import fcntl
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from unstir.cli.output import PLAIN_SECONDS, progress_bar, say, writable_folder

if TYPE_CHECKING:
    from unstir.training.run import RunConfig
    from unstir.training.watch import Hold

_A_LOOK = 0.1  # seconds; who watches a run has its lock for less
_LOOK_SECONDS = 0.2  # how often the loss is asked for, to be shown


def changes_of(settings: Sequence[str], shortcuts: Mapping[str, object]) -> list[tuple[str, str]]:
    """Settings and shortcuts as pairs of path and text.

    Raises:
        ValueError: if a setting is not KEY=VALUE.
    """
    changes = [(name, str(value)) for name, value in shortcuts.items() if value is not None]
    for setting in settings:
        path, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"a setting is KEY.SUBKEY=VALUE, got {setting!r}")
        changes.append((path, value))
    return changes


def with_codec(config: RunConfig, name: str, changes: Sequence[tuple[str, str]]) -> RunConfig:
    """A run that draws the same pictures in the latents of a codec.

    Args:
        config: the run.
        name: folder of the codec, or of the run that trained it.
        changes: to be made to the run; the size of its pictures counts already.

    Raises:
        FileNotFoundError: if there is no such codec.
        ValueError: if it is something else, or damaged.
    """
    from unstir.config import override
    from unstir.model import in_latents, load_codec
    from unstir.pipeline import locate_model

    found = locate_model(name)
    model = override(config, [change for change in changes if change[0] == "model.size"]).model
    return replace(config, codec=str(found.resolve()), model=in_latents(model, load_codec(found).config))


def run_folder(recipe: str | None, out: str | None, *, resume: bool) -> Path:
    """The folder of a run: empty or not there, unless it goes on.

    Raises:
        ValueError: if it is not said which run should go on.
        OSError: if a new run would meet something there.
    """
    if out is None and resume and recipe is None:
        raise ValueError("which run should go on? give its folder with --out")
    directory = Path(out if out is not None else f"runs/{Path(recipe or 'mine').stem}")
    if directory.exists() and not directory.is_dir():
        raise NotADirectoryError(f"{directory} is a file; a run needs a folder, give another --out")
    if not resume and directory.is_dir() and any(child.name != ".lock" for child in directory.iterdir()):
        raise FileExistsError(f"{directory} is not empty; go on with --resume, or give another folder with --out")
    return directory


def first_difference(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> str:
    """The path of the first setting that differs; empty where none does."""
    for key, value in before.items():
        if isinstance(value, dict) and isinstance(after.get(key), dict):
            found = first_difference(value, after[key], f"{prefix}{key}.")  # pyright: ignore[reportUnknownArgumentType]
            if found:
                return found
        elif value != after.get(key):
            return prefix + key
    return ""


@contextmanager
def locked(directory: Path) -> Generator[None]:
    """Hold a run folder: a second process that wants it is refused."""
    lock = directory / ".lock"
    with writable_folder(directory), lock.open("w") as file:
        if not _took(file):
            time.sleep(_A_LOOK)
            if not _took(file):
                raise ValueError(f"another process is training in {directory}; wait for it or give another --out")
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _took(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def hold_of(directory: Path) -> Hold:
    """What is with the lock of a run folder; nothing is written, and a lock found free is given back at once."""
    try:
        with (directory / ".lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return "held"
    except (FileNotFoundError, NotADirectoryError):
        return "free"
    return "left"


@contextmanager
def progress_of(total: int, pictures: int) -> Generator[Callable[[int, Callable[[], float]], None]]:
    """What tells how far a run is: a bar on a terminal, a line now and then elsewhere.

    It is given the pictures seen, and what says the loss where it is asked.
    """
    recent: list[tuple[float, int]] = []
    last, looked, text = time.perf_counter(), 0.0, ""
    is_terminal = sys.stderr.isatty()
    with progress_bar("training", total) as advance:

        def tell(images_seen: int, loss: Callable[[], float]) -> None:
            nonlocal last, looked, text
            now = time.perf_counter()
            recent.append((now, images_seen))
            del recent[:-50]
            seconds, seen = now - recent[0][0], images_seen - recent[0][1]
            rate = seen / seconds if seconds else 0.0
            if now - looked > _LOOK_SECONDS or images_seen == total:  # a GPU must be waited for to tell its loss
                looked, text = now, f"loss {loss():.4f}, {rate:.1f} pictures/s"
            advance(images_seen, text)
            if not is_terminal and rate and (now - last > PLAIN_SECONDS or images_seen == total):
                last = now
                left = duration((total - images_seen) / rate)
                say(f"{images_seen}/{total} pictures (epoch {images_seen / pictures:.1f}), {text}, {left} left")

        yield tell


def duration(seconds: float) -> str:
    """A time for people, to the second or the minute."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
