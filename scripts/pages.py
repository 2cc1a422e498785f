"""What the scripts that fill in pages of docs/ share: run a command, put figures between markers."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unstir.cli.app import run


def unstir(*arguments: object) -> dict[str, Any]:
    """What a command prints as JSON; the command itself is told on stderr."""
    words = [str(argument) for argument in arguments]
    print("unstir", *words, file=sys.stderr, flush=True)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        status = run([*words, "--json"])
    if status:
        raise SystemExit(f"unstir {' '.join(words)} ended with {status}; the same command of this script goes on")
    return json.loads(said.getvalue())


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def fill(page: Path, begin: str, end: str, lines: Sequence[str]) -> None:
    """Put lines between two markers of a page; what is outside of them is kept."""
    text = page.read_text("utf-8")
    if begin not in text or end not in text:
        raise SystemExit(f"{page} has no markers {begin} and {end}; put them where the figures should stand")
    before, _, rest = text.partition(begin)
    page.write_text(f"{before}{begin}\n\n" + "\n".join(lines) + f"\n\n{end}{rest.partition(end)[2]}", "utf-8")
