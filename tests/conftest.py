"""What all tests share: one thread each, the schedules every statement is proved on, how hypothesis searches."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from unstir.diffusion.process import GaussianProcess
from unstir.diffusion.schedule import (
    Cosine,
    LinearBeta,
    LogLinear,
    RectifiedFlow,
    Schedule,
    Sigmoid,
    Tabulated,
    linear_betas,
)

# Tensors here are tiny: a second thread costs more than it brings, and the tests themselves run side by side.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

settings.register_profile("unstir", deadline=None, max_examples=30, derandomize=True, database=None)
settings.load_profile("unstir")

SCHEDULES: dict[str, Schedule] = {
    "linear": LinearBeta(),
    "cosine": Cosine(),
    "flow": RectifiedFlow(),
    "shifted flow": RectifiedFlow(shift=3.0),
    "sigmoid": Sigmoid(),
    "log-linear": LogLinear(),
    "table": Tabulated.from_betas(linear_betas(1000)),
}
ZERO_SNR: dict[str, Schedule] = {"zero-snr-table": Tabulated(table=(0.9, 0.5, 0.1, 0.0))}


@pytest.fixture(params=SCHEDULES.values(), ids=SCHEDULES.keys(), scope="session")
def schedule(request: pytest.FixtureRequest) -> Schedule:
    """Each kind of schedule in turn."""
    return request.param


@pytest.fixture(scope="session")
def process(schedule: Schedule) -> GaussianProcess:
    """A Gaussian process on each of the schedules in turn."""
    return GaussianProcess(schedule=schedule)


@pytest.fixture(params=[*SCHEDULES.values(), *ZERO_SNR.values()], ids=[*SCHEDULES, *ZERO_SNR], scope="session")
def any_process(request: pytest.FixtureRequest) -> GaussianProcess:
    """The same, and a table that ends without any signal."""
    return GaussianProcess(schedule=request.param)


@pytest.fixture(scope="session")
def noisy_model() -> Callable[[Path], Path]:
    """(folder) -> the folder, with a small model of random weights in it: it draws noise, but its own."""
    # Not imported above: the annotations of networks are checked only where they come in after pytest is configured.
    from unstir.conditioning.text import WordReader
    from unstir.model import ModelConfig, SamplingDefaults, build, save_model
    from unstir.nn import DiTConfig
    from unstir.nn.text import TextConfig

    def save(folder: Path) -> Path:
        text = TextConfig(vocabulary=300, max_tokens=48, width=16, depth=1, heads=2)
        network = DiTConfig(size=16, patch=8, width=32, depth=1, heads=2, text=text)
        config = ModelConfig(size=16, network=network, sampling=SamplingDefaults(steps=3, guidance_scale=1.5))
        torch.manual_seed(0)
        made = build(config, WordReader.train(["red blue cat"], vocabulary=300, max_tokens=48))
        with torch.no_grad():
            for weight in made.denoiser.network.parameters():
                weight.add_(torch.randn(weight.shape) * 0.2)
        save_model(made, folder)
        return folder

    return save


@pytest.fixture
def fitted_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A default of the benchmarks that is fitted in few iterations: there it matters who is fitted to what."""
    from unstir.bench import solvers
    from unstir.diffusion import tuning

    def tune(denoise, process, x, num_steps):
        return tuning.tune(denoise, process, x[:64], num_steps, iterations=24)

    monkeypatch.setattr(solvers, "tune", tune)


# Commands that are killed, and several that train as one. A process of its own, with torch already imported, forks for
# each of them: starting one costs no waiting.

NURSERY = """
import json, os, signal, sys, time, torch
from unstir.cli.app import run
import unstir.config, unstir.training.run, unstir.recipes, torch._dynamo
import torch.distributed.fsdp, torch.distributed.checkpoint
unstir.config.to_dict(unstir.recipes.tiny())  # what every child would have to prepare again
torch.set_num_threads(1)
for line in sys.stdin:
    order = json.loads(line)
    children = []
    for rank, environment in enumerate(order["environments"]):
        child = os.fork()
        if child == 0:
            os.environ.update(environment)
            for number, name in ((1, "out"), (2, "err")):
                path = f"{order['name']}.{rank}.{name}" if len(order["environments"]) > 1 else f"{order['name']}.{name}"
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            if order["program"]:
                exec(order["program"])
            status = run(order["arguments"])
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        children.append(child)
    print(json.dumps(children), flush=True)
    statuses, first = {}, None
    while len(statuses) < len(children):
        child, status = os.waitpid(-1, 0 if first is None else os.WNOHANG)
        if child:
            statuses[child] = (os.waitstatus_to_exitcode(status), time.monotonic())
            first = first or (time.monotonic() if status else None)
        elif time.monotonic() - first > 8:  # as torchrun ends the others of a process that failed
            for other in set(children) - statuses.keys():
                os.kill(other, signal.SIGTERM)
            first = time.monotonic() + 3600
        else:
            time.sleep(0.01)
    print(json.dumps([statuses[child] for child in children]), flush=True)
"""


class Nursery:
    """Starts commands of unstir as processes of their own, at once."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def start_all(self, arguments: Sequence[object], name: Path, ranks: int, program: str = "") -> list[int]:
        """Start a command in several processes that are one team; their pids. ``program`` is run in each before."""
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
        teams = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
        order = {
            "arguments": [str(argument) for argument in arguments],
            "name": str(name),
            "environments": teams if ranks > 1 else [{}],
            "program": program,
        }
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def wait_all(self) -> list[tuple[int, float]]:
        """The exit status of each, and when it ended."""
        return [tuple(pair) for pair in json.loads(self.process.stdout.readline())]

    def start(self, arguments: Sequence[object], name: Path) -> int:
        """Start one command, whose output goes to NAME.out and NAME.err; its pid."""
        return self.start_all(arguments, name, 1)[0]

    def wait(self) -> int:
        """Its exit status."""
        return self.wait_all()[0][0]


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.process.kill()  # its children are all waited for; leaving in order would take it seconds
    made.process.wait()
    made.process.stdin.close()
    made.process.stdout.close()
