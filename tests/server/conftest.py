"""What all tests of the server share: a tiny model, services on folders of their own, and what is in a PNG."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from unstir.pipeline import Pipeline, load
from unstir.server.jobs import Job, Status
from unstir.server.service import Service

MakeService = Callable[..., AbstractAsyncContextManager[Service]]
Ended = Callable[[Service, Job | str], Awaitable[Status]]


@pytest.fixture(scope="session")
def pipe(noisy_model: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A small model of random weights: 16x16 pictures in 3 steps, and no other size."""
    return load(noisy_model(tmp_path_factory.mktemp("server") / "tiny"), device="cpu", precision="float32")


@pytest.fixture
def make_service(pipe: Pipeline, tmp_path: Path) -> MakeService:
    """(folder, ``Service``'s options) -> a service that runs within ``async with``; ``pipes`` takes other models."""

    @asynccontextmanager
    async def make(folder: Path | None = None, **options: Any) -> AsyncIterator[Service]:
        pipes = options.pop("pipes", {"tiny": pipe})
        service = Service(pipes, folder or tmp_path / "data", **options)
        await service.start()
        try:
            yield service
        finally:
            await service.stop()

    return make


@pytest.fixture(scope="session")
def pixels() -> Callable[[bytes], numpy.ndarray[Any, Any]]:
    """(content of a picture's file) -> its pixels, "h w 3"."""
    return lambda data: numpy.array(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.fixture(scope="session")
def ended() -> Ended:
    """(service, job or its id) -> awaits its status at its end."""

    async def wait(service: Service, job: Job | str) -> Status:
        return await service.settled(job if isinstance(job, str) else job.id)

    return wait
