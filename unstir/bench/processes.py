"""A server and somebody who draws without it, each a process of its own.

Knows: how both are started, asked, killed and ended.
Does not know: what is measured, clients.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unstir.bench.clients import Client, Fetched

PROMPTS = (
    *("a red heart", "a cat", "pizza", "a dog face", "a blue car", "a green apple", "the sun", "a smiling face"),
    *("a black cat", "two hearts", "a yellow flower", "a snowman", "a house", "a fish", "a bird", "a tree"),
)
_URL = re.compile(r"http://[\w.\[\]:]+:\d+")
_START = 120.0  # seconds that the server may take to start
_END = 30.0  # ... and to end
_PORTION = 16  # pictures that are compared between two words about it


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Pictures beside their serial twins.

    Args:
        count: pictures that were looked at.
        of: pictures that there were.
        worst: largest difference, in 1/255.
        wrong: what was wrong, a sentence each.
    """

    count: int
    of: int
    worst: int
    wrong: tuple[str, ...]


class Server:
    """`unstir serve` as a process of its own, on a port that is free.

    Args:
        model: what it serves.
        folder: of its data.
        device: where it draws.
    """

    def __init__(self, model: str, folder: Path, device: str = "auto") -> None:
        self._command = [sys.executable, "-m", "unstir", "serve", "--model", model, "--port", "0"]
        # All clients have one address here, so there is no limit to what one may ask for.
        self._command += ["--data", str(folder), "--device", device, "--rate", "0"]
        self._folder = folder
        self._starts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def start(self) -> float:
        """Start it; the seconds until it answered.

        Raises:
            OSError: if it ends or does not answer, with the last line that it said.
        """
        self._starts += 1
        place = self._folder.with_name(f"{self._folder.name}-{self._starts}.txt")  # a pipe that nobody empties fills up
        began = time.perf_counter()
        with place.open("wb") as said:
            self._process = subprocess.Popen(
                self._command, env=_without_token(), stdin=subprocess.DEVNULL, stdout=said, stderr=said
            )
        while not (found := _URL.search(place.read_text("utf-8", "replace"))):
            if self._process.poll() is not None or time.perf_counter() - began > _START:
                self.stop()
                lines = place.read_text("utf-8", "replace").strip().splitlines()
                raise OSError(f"unstir serve did not start: {lines[-1] if lines else 'it said nothing'}")
            time.sleep(0.01)
        self.url = found[0].rstrip("/")
        asyncio.run(_answering(self.url))
        return time.perf_counter() - began

    def stop(self) -> None:
        """Have it end, and see that it does."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_END)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """End it at once, as a loss of power does (kill -9)."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    @property
    def memory(self) -> int | None:
        """Bytes of it that are in memory, its children's not counted; None where the system does not tell."""
        facts = Path(f"/proc/{0 if self._process is None else self._process.pid}/status")
        found = re.search(r"^VmRSS:\s*(\d+) kB", facts.read_text(), re.MULTILINE) if facts.exists() else None
        return int(found[1]) * 1024 if found else None


def _without_token() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "UNSTIR_TOKEN"}


async def _answering(url: str) -> None:
    client = Client(url)
    try:
        while (await client.ask("GET", "/api/models")).status != 200:
            await asyncio.sleep(0.01)
    finally:
        client.close()


class Offline:
    """A process that draws without the server, and waits for orders otherwise.

    Args:
        model: what it draws with.
        device: where.
    """

    def __init__(self, model: str, device: str = "auto") -> None:
        code = "import sys; from unstir.bench.offline import main; main(sys.argv[1], sys.argv[2])"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, model, device], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer()

    def rate(self, seconds: float) -> float:
        """Pictures a second, in batches of as many as the server draws together."""
        said = self._ask({"rate": seconds, "prompts": PROMPTS})
        return said["pictures"] / said["seconds"]

    def compare(self, pictures: Sequence[Fetched], most: int, told: Callable[[int, int], None]) -> Compared:
        """So many of the pictures, evenly taken, beside their serial twins."""
        chosen = spread(pictures, most)
        far: list[int] = []
        wrong: list[str] = []
        for i in range(0, len(chosen), _PORTION):
            portion = [(str(each.place), dict(each.asked), each.index) for each in chosen[i : i + _PORTION]]
            said = self._ask({"compare": portion})
            far += said["far"]
            wrong += said["wrong"]
            told(len(far), len(chosen))
        return Compared(count=len(far), of=len(pictures), worst=max(far, default=0), wrong=tuple(wrong))

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.communicate()

    def _ask(self, order: Mapping[str, Any]) -> Any:
        assert self._process.stdin is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise OSError(f"drawing without the server ended with status {self._process.wait()}")
        return json.loads(line)


def spread(pictures: Sequence[Fetched], most: int) -> list[Fetched]:
    """At most so many of them, evenly taken from first to last."""
    count = min(most, len(pictures))
    return [pictures[i * len(pictures) // count] for i in range(count)]
