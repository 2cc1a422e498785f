"""Draw a file of prompts on Ray: workers that each load the model once and write what they draw.

Knows: Ray Data, how cores are shared among workers, what a lost worker means.
Does not know: which pictures are missing, how one is drawn.

A worker that is killed loses nothing: its pictures are written one by one, Ray starts another in its place and gives it
the same block, of which it draws what is not there.
"""

from __future__ import annotations

import io
import logging
import os
import re
import secrets
import sys
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from unstir.generation.drawing import Drawn, draw
from unstir.generation.prompts import Wanted
from unstir.generation.shards import Order, is_drawn
from unstir.pipeline import load

BATCHES = 4
"""Of a block, the unit that a worker is handed: what is told at once, and given to another if it dies."""

_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
_STORE = 128 * 1024**2  # bytes of shared memory: prompts pass through it, pictures do not


class Painter:
    """A worker: it has the model, and draws the blocks that Ray hands to it.

    Args:
        order: what is drawn.
        device: on which.
        threads: of computation.

    Raises:
        ValueError: if the model here is another one than where the order was given.
    """

    def __init__(self, order: Order, device: str, threads: int) -> None:
        torch.set_num_threads(min(threads, os.cpu_count() or 1))
        self.order = order
        recipe = order.recipe
        self.pipe = load(recipe.model, device=device, precision=recipe.request.precision)
        if self.pipe.model.checksum != recipe.checksum:
            raise ValueError(f"{recipe.model} is another model on a worker than here; bring the same one there")

    def __call__(self, block: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Draw the pictures of a block that are not there, and tell of all."""
        columns = zip(block["index"], block["seed"], block["prompt"], block["negative"], strict=True)
        rows = [
            Wanted(index=int(index), seed=int(seed), prompt=str(prompt), negative=str(negative))
            for index, seed, prompt, negative in columns
        ]
        told = {one.index: "" for one in rows}
        for drawn in draw(self.pipe, self.order, (one for one in rows if not is_drawn(self.order, one))):
            told[drawn.index] = "\n".join(drawn.warnings)
        return {"index": list(told), "warnings": list(told.values())}


def require_ray(workers: int | None) -> None:
    """See that Ray is there, before anything is loaded.

    Raises:
        ImportError: if Ray Data is not installed.
        ValueError: if workers is below 1.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    lacking = [name for name in ("ray", "pandas", "pyarrow") if find_spec(name) is None]
    if lacking:
        raise ImportError(f"--ray needs Ray Data, of which {lacking[0]} is not here; pip install 'unstir[ray]'")


def draw_on_ray(order: Order, wanted: Iterable[Wanted], *, device: str, workers: int | None) -> Iterator[Drawn]:
    """Draw pictures on a cluster of Ray: that of RAY_ADDRESS, else one on this machine for the time being.

    Args:
        order: what is drawn; its folder and its model must be there, under the same paths, for every worker.
        wanted: which pictures of it.
        device: of the workers; on "auto" and "cuda" each takes a GPU of its own where the cluster has some.
        workers: how many; None is as many as there are GPUs, else cores.

    Yields:
        What is drawn, block by block, in no order.

    Raises:
        ValueError: if the cluster has not so many cores.
        OSError: if there is no such cluster, or a worker failed, with its reason.
    """
    rows = [{name: value for name, value in asdict(one).items() if name != "where"} for one in wanted]
    if not rows:
        return
    with _cluster(workers) as ray:
        resources: dict[str, float] = ray.cluster_resources()
        cores = max(1, int(resources.get("CPU", 1)))
        gpus = int(resources.get("GPU", 0)) if device == "auto" or device.startswith("cuda") else 0
        count = min(workers or gpus or cores, len(rows))
        if count > cores:
            raise ValueError(f"the cluster has {cores} cores, got {workers} workers; ask for at most as many")
        blocks = max(count, -(-len(rows) // (BATCHES * order.batch)))
        done = (
            ray.data.from_items(rows, override_num_blocks=min(blocks, len(rows)))
            .map_batches(
                Painter,
                fn_constructor_args=(order, device, cores // count),
                batch_size=None,
                compute=ray.data.ActorPoolStrategy(size=count),
                num_cpus=1,
                num_gpus=min(1.0, gpus / count) if gpus else None,
            )
            .iter_rows()
        )
        try:
            for row in done:
                yield Drawn(index=int(row["index"]), warnings=tuple(filter(None, str(row["warnings"]).split("\n"))))
        except ray.exceptions.RayError as error:
            raise OSError(f"a worker on Ray failed: {_reason(error)}") from error


@contextmanager
def _cluster(workers: int | None) -> Generator[Any]:
    """Ray with its Data, for as long as this context lasts."""
    with cluster(workers) as ray:
        import_module("ray.data")
        for handler in logging.getLogger("ray.data").handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setLevel(logging.CRITICAL)
        ray.data.DataContext.get_current().enable_progress_bars = False
        with redirect_stdout(_Brief()):
            yield ray


@contextmanager
def cluster(workers: int | None) -> Generator[Any]:
    """Ray, connected to the cluster of RAY_ADDRESS or to a new one here, which ends with this context.

    Args:
        workers: for as many a new one has room; None is as many as there are cores.

    Raises:
        ConnectionError: if there is no such cluster.
    """
    is_local = not os.environ.get("RAY_ADDRESS")
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if is_local and "RAY_AUTH_MODE" not in os.environ:  # Ray listens on all addresses of a machine
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    ray: Any = import_module("ray")
    here: dict[str, Any] = {
        "num_cpus": None if workers is None else max(workers, os.cpu_count() or 1),
        "include_dashboard": False,
        "object_store_memory": _STORE,
        "_node_ip_address": "127.0.0.1",
    }
    try:
        with _silence():  # which tells on stderr that it was told to be quiet
            ray.init(
                address="local" if is_local else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
                **(here if is_local else {}),
            )
    except ConnectionError as error:
        raise ConnectionError(f"{error}; see that it runs, and set RAY_AUTH_MODE=token if it asks for one") from None
    try:
        yield ray
    finally:
        ray.shutdown()


class _Brief(io.TextIOBase):
    """What Ray says of lost workers on stdout, pages of it: the first sentence of each, once, and on stderr."""

    def __init__(self) -> None:
        self.told: set[str] = set()

    def write(self, text: str) -> int:
        sentence = re.sub(r"\x1b\[[0-9;]*m|\(raylet[^)]*\)", "", text).strip().split(". ")[0]
        if sentence and sentence not in self.told:
            print(f"ray: {sentence:.160}", file=sys.stderr, flush=True)
        self.told.add(sentence)
        return len(text)


@contextmanager
def _silence() -> Generator[None]:
    """Nothing on stderr while this lasts, whoever writes there."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _reason(error: BaseException) -> str:
    """What the worker itself said, out of a traceback of many."""
    said = re.search(r"^(?!ray\.)[\w.]+Error: .+$", str(error), flags=re.MULTILINE)
    return said[0] if said else str(error).strip().split("\n")[-1]
