"""The log of a run: one JSON object a line, in the order of pictures seen.

Knows: how numbers are appended, and forgotten again when a run goes back to a checkpoint.
Does not know: what they mean.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unstir.config import write_text_file


class RunLog:
    """An append-only file of JSON lines, each with ``images_seen``.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, images_seen: int, values: Mapping[str, Any]) -> None:
        """Append one line, at once on the disk."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"images_seen": images_seen, **values}) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All whole lines; one that a crash cut short is left out."""
        lines: list[dict[str, Any]] = []
        if self.path.exists():
            for line in self.path.read_text("utf-8").splitlines():
                try:
                    lines.append(json.loads(line))
                except json.JSONDecodeError:
                    continue
        return lines

    def rewind(self, images_seen: int) -> None:
        """Forget what was logged after ``images_seen``: a resumed run will log it again."""
        kept = [line for line in self.read() if line["images_seen"] <= images_seen]
        write_text_file(self.path, "".join(json.dumps(line) + "\n" for line in kept))
