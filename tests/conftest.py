"""What all tests share: one thread each, the schedules every statement is proved on, how hypothesis searches."""

from __future__ import annotations

import os

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


@pytest.fixture
def fitted_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A default of the benchmarks that is fitted in few iterations: there it matters who is fitted to what."""
    from unstir.bench import solvers
    from unstir.diffusion import tuning

    def tune(denoise, process, x, num_steps):
        return tuning.tune(denoise, process, x[:64], num_steps, iterations=24)

    monkeypatch.setattr(solvers, "tune", tune)
