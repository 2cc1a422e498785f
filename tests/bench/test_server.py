"""The benchmark of the server: what is asked of whom in which order; and a whole one, quick (slow)."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from unstir.bench import server as module
from unstir.bench.clients import Fetched, Promise, Tally
from unstir.bench.processes import Compared
from unstir.bench.server import QUICK, LoadConfig, Round, bench_server, mixed_jobs, plain_jobs

FACTS = {"samplers": ["ddim", "heun", "unipc"], "size": 64, "multiple": 16, "is_one_size": False}


def test_plain_jobs_say_little_and_never_the_same() -> None:
    jobs = list(islice(plain_jobs(), 40))
    assert all(list(job) == ["prompt", "seed"] for job in jobs)
    assert len({job["seed"] for job in jobs}) == 40
    assert len({job["prompt"] for job in jobs}) == len(module.PROMPTS)


def test_mixed_jobs_differ_in_everything_that_the_model_can() -> None:
    jobs = list(islice(mixed_jobs(FACTS), 200))
    assert jobs == list(islice(mixed_jobs(FACTS), 200))
    assert {job["sampler"] for job in jobs} == {"ddim", "heun"}
    assert {job["width"] for job in jobs} == {job["height"] for job in jobs} == {48, 64, 80}
    assert len({job["steps"] for job in jobs}) > 3
    assert len({job["guidance"] for job in jobs}) > 3
    (size,) = {job["width"] for job in islice(mixed_jobs({**FACTS, "is_one_size": True}), 200)}
    assert size == 64


def test_a_load_of_nobody_is_refused() -> None:
    for given, words in (({"clients": 0}, "clients must be at least 1, got 0"), ({"seconds": 0}, "seconds must be")):
        with pytest.raises(ValueError, match=words):
            LoadConfig(**given)  # type: ignore[arg-type]
    assert [LoadConfig(seconds=seconds).rounds for seconds in (1, 60, 300)] == [1, 1, 5]
    assert QUICK.rounds == 1


def test_a_round_is_set_beside_its_neighbours() -> None:
    tally = Tally(pictures=[Fetched(asked={}, place=Path())] * 90, seconds=10)
    round_ = Round(tally=tally, before=8, after=12)
    assert (round_.rate, round_.share) == (9, 0.9)


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Servers and drawers that only say what was asked of them."""
    said: list[str] = []

    class Server:
        memory = 2**20
        url = "http://127.0.0.1:1"

        def __init__(self, model: str, folder: Path, device: str) -> None:
            self.name = folder.name
            assert (model, device) == ("mine", "cpu")

        def start(self) -> float:
            said.append(f"{self.name} starts")
            return 1.5

        def stop(self) -> None:
            said.append(f"{self.name} stops")

        def kill(self) -> None:
            said.append(f"{self.name} is killed")

    class Offline:
        def __init__(self, model: str, device: str) -> None:
            self.rates: Iterator[float] = iter((99.0, 10.0, 20.0, 30.0))

        def rate(self, seconds: float) -> float:
            said.append("draws")
            return next(self.rates)

        def compare(self, pictures: list[Fetched], most: int, told: Any) -> Compared:
            told(1, 1)
            said.append(f"compares {len(pictures)}, at most {most}")
            return Compared(count=1, of=len(pictures), worst=0, wrong=())

        def stop(self) -> None:
            said.append("drawer stops")

    fetched = Fetched(asked={"prompt": "a"}, place=Path("a.png"))

    async def load(url: str, jobs: Iterator[Any], folder: Path, *, clients: int, seconds: float) -> Tally:
        said.append(f"{clients} clients, {seconds:g} s, {list(next(jobs))}")
        while not said[-1].startswith("looked"):
            await asyncio.sleep(0.01)
            said.append("looked")
        return Tally(accepted=3, ended=2, latencies=[1.0, 3.0], pictures=[fetched] * 2, seconds=2.0)

    async def beside(url: str, short: Any, long: Any, folder: Path, *, repeats: int) -> Any:
        said.append(f"short beside {long['number']} of {long['steps']}")
        return [1.0, 2.0, 3.0][:repeats], [4.0, 5.0, 6.0][:repeats], Tally(pictures=[fetched])

    async def ask_until_gone(url: str, jobs: Iterator[Any], kill: Any, *, count: int, enough: int) -> list[Promise]:
        assert next(jobs)["number"] == 2
        kill()
        return [*(Promise(asked={}, key=str(i), job=str(i)) for i in range(count)), Promise(asked={}, key="x")]

    async def collect(url: str, promises: list[Promise], folder: Path) -> Tally:
        said.append(f"collects {len(promises)}")
        return Tally(accepted=4, ended=4, failures=["a failure"], lost=["an id"], pictures=[fetched] * 8)

    async def facts(url: str) -> dict[str, Any]:
        return FACTS

    for name, value in (
        *(("Server", Server), ("Offline", Offline), ("load", load), ("short_beside_long", beside)),
        *(("ask_until_gone", ask_until_gone), ("collect", collect), ("_facts", facts)),
    ):
        monkeypatch.setattr(module, name, value)
    return said


def test_everything_is_measured_in_its_turn(stage: list[str]) -> None:
    """The rate without the server before, between and after the rounds; the second server on the folder of the first."""
    config = LoadConfig(
        model="mine", device="cpu", clients=4, seconds=120, repeats=3, killed_jobs=4, most_compared=5, every=0.001
    )
    stages: list[str] = []
    result = bench_server(config, advance=lambda name, done, total: stages.append(name))
    assert [line for line in stage if line != "looked"] == [
        "data starts",
        "draws",
        "draws",
        "4 clients, 60 s, ['prompt', 'seed']",
        "draws",
        "4 clients, 60 s, ['prompt', 'seed']",
        "draws",
        "short beside 16 of 50",
        "data stops",
        "compares 5, at most 5",
        "killed starts",
        "killed is killed",
        "killed starts",
        "collects 5",
        "killed stops",
        "compares 8, at most 8",
        "drawer stops",
        "data stops",
    ]
    assert [(round_.before, round_.after, round_.rate) for round_ in result.rounds] == [(10, 20, 1), (20, 30, 1)]
    assert result.ready == 1.5
    assert set(result.memory) == {2**20}
    assert (result.alone, result.behind) == ((1, 2, 3), (4, 5, 6))
    assert (result.killed.accepted, result.killed.ended) == (4, 4)
    assert result.killed.failures == ("a failure", "job an id never ended")
    assert list(dict.fromkeys(stages)) == ["load", "short beside long", "comparing", "kill -9", "comparing again"]


def test_mixed_jobs_are_asked_for_where_they_are_wanted(stage: list[str]) -> None:
    config = LoadConfig(model="mine", device="cpu", clients=1, seconds=1, is_mixed=True, every=0.001)
    bench_server(config, advance=lambda name, done, total: None)
    assert "1 clients, 1 s, ['prompt', 'seed', 'steps', 'sampler', 'guidance', 'width', 'height']" in stage


def test_everything_is_ended_whatever_happens(stage: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    async def load(*_: Any, **__: Any) -> Tally:
        raise OSError("the server is gone")

    monkeypatch.setattr(module, "load", load)
    with pytest.raises(OSError, match="the server is gone"):
        bench_server(LoadConfig(model="mine", device="cpu"), advance=lambda name, done, total: None)
    assert stage[-2:] == ["drawer stops", "data stops"]


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--mixed"]], ids=["plain", "mixed"])
def test_the_built_in_model_is_served_without_a_fault(tmp_path: Path, more: list[str]) -> None:
    """All of it, for some seconds; how fast it is depends on who else is here."""
    command = [sys.executable, "-m", "unstir", "bench", "server", "--quick", "--seconds", "6", "--json", *more]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    jobs, killed = result["jobs"], result["killed"]
    assert jobs["accepted"] == jobs["ended"] > 8
    assert (jobs["lost"], jobs["failures"]) == (0, [])
    assert result["compared"]["wrong"] == []
    assert result["compared"]["worst"] <= 1
    assert killed["ended"] >= killed["accepted"] >= 12
    assert (killed["failures"], killed["compared"]["wrong"]) == ([], [])
    assert killed["compared"]["pictures"] == 2 * killed["ended"]
    assert not list(tmp_path.iterdir())
