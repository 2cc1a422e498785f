"""The log of a run: one JSON object a line, in the order of pictures seen; and TensorBoard beside it.

Knows: how numbers are appended, and forgotten when a run goes back to a checkpoint; that no logger stops a run.
Does not know: what the numbers mean, when something is due.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from unstir.config import write_text_file

if TYPE_CHECKING:
    from PIL import Image


class Logger(Protocol):
    """Is told what a run measures and draws."""

    def write(self, images_seen: int, values: Mapping[str, Any]) -> None:
        """Numbers, or groups of numbers, by name."""
        ...

    def show(self, images_seen: int, picture: Image.Image) -> None:
        """A sheet of previews."""
        ...


class RunLog:
    """An append-only file of JSON lines, each with ``images_seen``.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, images_seen: int, values: Mapping[str, Any]) -> None:
        """Append one line, at once on the disk.

        Raises:
            OSError: if it cannot be written whole; the next line starts on its own line all the same.
        """
        line = json.dumps({"images_seen": images_seen, **values}) + "\n"
        with self.path.open("a+b") as file:
            file.write(b"\n" * (not _ends_a_line(file)) + line.encode())

    def show(self, images_seen: int, picture: Image.Image) -> None:
        """Previews are files of their own; nothing is logged."""

    def read(self) -> list[dict[str, Any]]:
        """All whole lines; one that a crash or a full disk cut short, or that is being written, is left out."""
        lines: list[dict[str, Any]] = []
        if self.path.is_file():
            for line in self.path.read_text("utf-8", errors="replace").splitlines():
                try:
                    value = json.loads(line)
                except json.JSONDecodeError:
                    continue
                if isinstance(value, dict) and "images_seen" in value:
                    lines.append(cast("dict[str, Any]", value))
        return lines

    def rewind(self, images_seen: int) -> None:
        """Forget what was logged after ``images_seen``: a resumed run will log it again."""
        kept = [line for line in self.read() if line["images_seen"] <= images_seen]
        write_text_file(self.path, "".join(json.dumps(line) + "\n" for line in kept))


def _ends_a_line(file: Any) -> bool:
    """Whether a file, opened to be read and appended to, is empty or ends with a line break."""
    if file.seek(0, os.SEEK_END) == 0:
        return True
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


class TensorBoard:
    """A log for TensorBoard: the same numbers and previews, over the pictures seen.

    Args:
        directory: for its event files.
        images_seen: where the run goes on; what was told of later ones is forgotten.
        make: what makes a ``SummaryWriter`` of torch, or what has its methods, when the first number comes.
    """

    def __init__(
        self, directory: Path, *, images_seen: int = 0, make: Callable[[Path, int], Any] | None = None
    ) -> None:
        self._make = partial(make or _summary_writer, directory, images_seen)

    @cached_property
    def _writer(self) -> Any:
        return self._make()  # not earlier: that it cannot be made is a logger's failure like any other

    def write(self, images_seen: int, values: Mapping[str, Any]) -> None:
        """Every number under its name, those of groups under ``group/name``."""
        for name, value in values.items():
            group = cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {"": value}
            for inner, number in group.items():
                self._writer.add_scalar(f"{name}/{inner}" if inner else name, number, images_seen)
        self._writer.flush()

    def show(self, images_seen: int, picture: Image.Image) -> None:
        """The sheet, as an image."""
        import numpy as np

        self._writer.add_image("preview", np.asarray(picture.convert("RGB")), images_seen, dataformats="HWC")
        self._writer.flush()


def _summary_writer(directory: Path, images_seen: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(directory), purge_step=images_seen + 1)


def require_loggers(names: Sequence[str]) -> None:
    """See, before a run starts, that all loggers that it asks for are installed.

    Raises:
        ImportError: naming what to install.
    """
    for name in names:
        if find_spec(name) is None:
            raise ImportError(f"log_to asks for {name}, which is not installed: pip install 'unstir[{name}]'")


class Guarded:
    """Loggers that never stop a run: what one of them raises is told once, in a sentence, and the run goes on.

    Args:
        loggers: by name, as the sentence calls them.
        say: is told.
    """

    def __init__(self, loggers: Mapping[str, Logger], say: Callable[[str], None]) -> None:
        self._loggers, self._say = dict(loggers), say
        self._told: set[str] = set()

    def write(self, images_seen: int, values: Mapping[str, Any]) -> None:
        """Tell all loggers; one that fails is asked again the next time: a disk may be freed."""
        for name, logger in self._loggers.items():
            with self.attempt(name):
                logger.write(images_seen, values)

    def show(self, images_seen: int, picture: Image.Image) -> None:
        """Show all loggers."""
        for name, logger in self._loggers.items():
            with self.attempt(name):
                logger.show(images_seen, picture)

    @contextmanager
    def attempt(self, what: str) -> Generator[None]:
        """Do something of the kind ``what`` that the run can do without."""
        try:
            yield
        except Exception as error:
            if what not in self._told:
                self._told.add(what)
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                self._say(f"{what} failed ({reason}); the run goes on, and further failures of it are not told")
