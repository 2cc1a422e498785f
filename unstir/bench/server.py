"""``unstir bench server``: what `unstir serve` can bear, and whether every picture is what it should be.

Knows: which figures there are, how the server is started, killed and watched, in which order things are measured.
Does not know: HTTP, how pictures are drawn, how the server does its work.

The speed of a machine wanders, so drawing without the server is measured before, between and after the rounds of the
load, while the server has nothing to do; each round is set beside its two neighbours.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from unstir.bench.clients import Client, Tally, ask_until_gone, collect, load, short_beside_long
from unstir.bench.processes import PROMPTS, Compared, Offline, Server

Advance = Callable[[str, int, int], None]
"""(stage of the work, steps done, steps in all): called often."""

Job = Mapping[str, Any]
"""The body of a request for a job."""

LONG_STEPS, LONG_PICTURES = 50, 16
"""Of the job that a short one stands behind."""

_MIXED_STEPS = (4, 6, 8, 12, 20)
_MIXED_GUIDANCE = (1.0, 1.5, 2.0, 4.0)
_MIXED_SAMPLERS = ("ddim", "dpm++2m", "heun", "ancestral")


@dataclass(frozen=True, kw_only=True)
class LoadConfig:
    """How the server is loaded.

    Args:
        model: what it serves.
        device: where it draws.
        clients: at a time.
        seconds: of load, all rounds together.
        offline_seconds: of drawing without the server, between rounds.
        is_mixed: whether jobs differ in steps, samplers, guidance and sizes; else they say only what to draw.
        repeats: of the short job, alone and behind a long one.
        killed_jobs: that are accepted when the server is killed.
        most_compared: pictures of the load that are compared with their serial twins.
        every: seconds from one look at the server's memory to the next.
    """

    model: str = "builtin"
    device: str = "auto"
    clients: int = 64
    seconds: float = 300.0
    offline_seconds: float = 10.0
    is_mixed: bool = False
    repeats: int = 7
    killed_jobs: int = 64
    most_compared: int = 1000
    every: float = 5.0

    @property
    def rounds(self) -> int:
        """Parts of about a minute that the load is divided into."""
        return max(1, round(self.seconds / 60))

    def __post_init__(self) -> None:
        """Refuse a load of nobody."""
        for name, value in (("clients", self.clients), ("seconds", self.seconds)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value:g}")


QUICK = LoadConfig(clients=8, seconds=10, offline_seconds=2, repeats=3, killed_jobs=12, most_compared=64, every=1)
"""What a look takes, in about a minute."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Round:
    """A part of the load.

    Args:
        tally: what the clients saw.
        before: pictures a second without the server, just before.
        after: just after.
    """

    tally: Tally
    before: float
    after: float

    @property
    def rate(self) -> float:
        """Pictures a second, from the first question to the last picture."""
        return len(self.tally.pictures) / self.tally.seconds

    @property
    def share(self) -> float:
        """Of what is drawn without the server."""
        return 2 * self.rate / (self.before + self.after)


@dataclass(frozen=True, kw_only=True)
class Killed:
    """What became of jobs whose server was killed.

    Args:
        accepted: jobs that had an id.
        ended: that were done after the restart.
        seconds: from the restart to the last picture.
        compared: their pictures.
        failures: what went wrong.
    """

    accepted: int
    ended: int
    seconds: float
    compared: Compared
    failures: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """All figures.

    Args:
        config: how the server was loaded.
        ready: seconds from its start until it answered.
        rounds: of the load.
        memory: of the server while it was loaded, in bytes; empty where the system does not tell.
        compared: the pictures of the load.
        alone: seconds of a short job, by repeat.
        behind: the same behind a long one.
        killed: what a kill did.
    """

    config: LoadConfig
    ready: float
    rounds: tuple[Round, ...]
    memory: tuple[int, ...]
    compared: Compared
    alone: tuple[float, ...]
    behind: tuple[float, ...]
    killed: Killed


def plain_jobs() -> Iterator[Job]:
    """Jobs that only say what to draw, and a seed."""
    seed = 0
    while True:
        seed += 1
        yield {"prompt": PROMPTS[seed % len(PROMPTS)], "seed": seed}


def mixed_jobs(facts: Mapping[str, Any]) -> Iterator[Job]:
    """Jobs of different steps, samplers, guidance and sizes, the same at every call.

    Args:
        facts: what the server says of its model.
    """
    chance = random.Random(0)
    samplers = [name for name in _MIXED_SAMPLERS if name in facts["samplers"]]
    size, multiple = int(facts["size"]), int(facts["multiple"])
    sizes = [size] if facts["is_one_size"] else [size, size, size - multiple, size + multiple]
    for job in plain_jobs():
        yield {
            **job,
            "steps": chance.choice(_MIXED_STEPS),
            "sampler": chance.choice(samplers),
            "guidance": chance.choice(_MIXED_GUIDANCE),
            "width": chance.choice(sizes),
            "height": chance.choice(sizes),
        }


def bench_server(config: LoadConfig, *, advance: Advance) -> Result:
    """All figures of a server.

    Args:
        config: how it is loaded.
        advance: told of the progress.

    Raises:
        OSError: if the server does not start, or ends on its own.
    """
    with TemporaryDirectory(prefix="unstir-bench-") as name:
        folder = Path(name)
        (folder / "drawn").mkdir()
        with _running(Server(config.model, folder / "data", config.device)) as server:
            ready = server.start()
            offline = Offline(config.model, config.device)
            try:
                rounds, memory = _loaded(server, offline, config, folder / "drawn", advance)
                alone, behind, beside = _beside(server, config, folder / "drawn", advance)
                server.stop()
                pictures = [each for one in rounds for each in one.tally.pictures] + beside.pictures
                compared = offline.compare(pictures, config.most_compared, lambda i, n: advance("comparing", i, n))
                killed = _killed(offline, config, folder, advance)
            finally:
                offline.stop()
    return Result(
        config=config,
        ready=ready,
        rounds=tuple(rounds),
        memory=tuple(memory),
        compared=compared,
        alone=tuple(alone),
        behind=tuple(behind),
        killed=killed,
    )


@contextmanager
def _running(server: Server) -> Generator[Server]:
    try:
        yield server
    finally:
        server.stop()


def _loaded(
    server: Server, offline: Offline, config: LoadConfig, folder: Path, advance: Advance
) -> tuple[list[Round], list[int]]:
    facts = asyncio.run(_facts(server.url))
    jobs = mixed_jobs(facts) if config.is_mixed else plain_jobs()
    rounds: list[Round] = []
    memory: list[int] = []
    offline.rate(min(2.0, config.offline_seconds))  # the first one warms up
    before = offline.rate(config.offline_seconds)
    for number in range(config.rounds):
        advance("load", number, config.rounds)
        tally = asyncio.run(_watched(server, jobs, config, folder, memory))
        after = offline.rate(config.offline_seconds)
        rounds.append(Round(tally=tally, before=before, after=after))
        before = after
    advance("load", config.rounds, config.rounds)
    return rounds, memory


async def _facts(url: str) -> Mapping[str, Any]:
    client = Client(url)
    try:
        return first_model((await client.ask("GET", "/api/models")).said)
    finally:
        client.close()


def first_model(said: Any) -> Mapping[str, Any]:
    """What a server says of its first model."""
    return said["models"][0]


async def _watched(server: Server, jobs: Iterator[Job], config: LoadConfig, folder: Path, memory: list[int]) -> Tally:
    async def look() -> None:
        while True:
            await asyncio.sleep(config.every)
            if (now := server.memory) is not None:
                memory.append(now)

    looking = asyncio.create_task(look())
    try:
        return await load(server.url, jobs, folder, clients=config.clients, seconds=config.seconds / config.rounds)
    finally:
        looking.cancel()


def _beside(
    server: Server, config: LoadConfig, folder: Path, advance: Advance
) -> tuple[list[float], list[float], Tally]:
    advance("short beside long", 0, 1)
    short = {"prompt": PROMPTS[0]}
    long = {"prompt": PROMPTS[1], "steps": LONG_STEPS, "number": LONG_PICTURES}
    found = asyncio.run(short_beside_long(server.url, short, long, folder, repeats=config.repeats))
    advance("short beside long", 1, 1)
    return found


def _killed(offline: Offline, config: LoadConfig, folder: Path, advance: Advance) -> Killed:
    advance("kill -9", 0, 1)
    data, drawn, count = folder / "killed", folder / "killed-drawn", config.killed_jobs
    drawn.mkdir()
    with _running(Server(config.model, data, config.device)) as server:
        server.start()
        jobs = ({**job, "number": 2} for job in plain_jobs())
        promises = asyncio.run(ask_until_gone(server.url, jobs, server.kill, count=count, enough=count // 4))
        began = time.perf_counter()
        server.start()
        tally = asyncio.run(collect(server.url, promises, drawn))
        seconds = time.perf_counter() - began
    compared = offline.compare(tally.pictures, len(tally.pictures), lambda i, n: advance("comparing again", i, n))
    accepted = sum(bool(promise.job) for promise in promises)
    failures = (*tally.failures, *(f"job {job} never ended" for job in tally.lost))
    return Killed(accepted=accepted, ended=tally.ended, seconds=seconds, compared=compared, failures=failures)
