"""Drawing without a server, in a process of its own: how fast it is, and what a server's pictures should look like.

Knows: how pictures are drawn in batches, serial twins, the little language of orders in lines of JSON.
Does not know: servers, clients, what the figures are set beside.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import numpy
from PIL import Image

from unstir.allocator import keep_memory
from unstir.metadata import read_recipe
from unstir.pipeline import MAX_SEED, Pipeline, Request, Result, load

BATCH = 16
"""Pictures drawn in one network call, as many as the server draws."""

_FIELDS = {"guidance": "guidance_scale"}  # of a request for a job, and of a recipe, where they are named differently
_OTHER = {"number", "seed", "model"}  # what a job says of all its pictures together


def rate(pipe: Pipeline, prompts: Sequence[str], seconds: float) -> tuple[int, float]:
    """Pictures drawn in batches, and the seconds that they took: as many batches as begin within so many seconds."""
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        requests = [pipe.request(prompts[i % len(prompts)], seed=i % MAX_SEED) for i in range(count, count + BATCH)]
        count += sum(isinstance(item, Result) for item in pipe.run(requests, batch=BATCH))
    return count, time.perf_counter() - started


def compare(pipe: Pipeline, pictures: Iterable[tuple[Path, Mapping[str, Any], int]]) -> Iterator[tuple[int, str]]:
    """How far each picture is from its serial twin, drawn of its own recipe; and what is wrong with it, if anything.

    Args:
        pipe: the same model.
        pictures: of each, its file, what its job was asked for, and which of its pictures it is.

    Yields:
        The largest difference in 1/255, and a sentence or nothing.
    """
    for place, asked, index in pictures:
        try:
            request = read_recipe(place).request
            (twin,) = (item for item in pipe.run([replace(request, row=0, rows=1)]) if isinstance(item, Result))
            with Image.open(place) as picture:
                drawn = numpy.array(picture).astype(int)
        except (ValueError, OSError) as error:
            yield 255, str(error)
            continue
        far = (
            int(numpy.abs(drawn - numpy.array(twin.picture)).max()) if drawn.shape[1::-1] == twin.picture.size else 255
        )
        wrong = f"{place.name} is {far}/255 from its serial twin" if far > 1 else _other(request, asked, index)
        yield far, wrong


def _other(request: Request, asked: Mapping[str, Any], index: int) -> str:
    """What of a recipe is not what was asked for."""
    wanted = {_FIELDS.get(name, name): value for name, value in asked.items() if name not in _OTHER}
    if "seed" in asked:
        wanted["seed"] = asked["seed"] + index
    other = [name for name, value in wanted.items() if getattr(request, name) != value]
    return f"a picture was drawn with another {', '.join(other)} than was asked for" if other else ""


def obey(orders: TextIO, answers: TextIO, model: str, device: str) -> None:
    """Do what is ordered, a line each, and answer with a line each.

    Args:
        orders: {"rate": seconds, "prompts": [...]} or {"compare": [[file, asked, index], ...]}.
        answers: where {"pictures", "seconds"} goes, or {"far": [...], "wrong": [...]}.
        model: name of the model.
        device: where it draws.
    """
    pipe = load(model, device=device)
    print(json.dumps({}), file=answers, flush=True)  # it is ready
    for line in orders:
        order = json.loads(line)
        if "rate" in order:
            pictures, seconds = rate(pipe, order["prompts"], order["rate"])
            said: dict[str, Any] = {"pictures": pictures, "seconds": seconds}
        else:
            found = list(compare(pipe, ((Path(place), asked, index) for place, asked, index in order["compare"])))
            said = {"far": [far for far, _ in found], "wrong": [wrong for _, wrong in found if wrong]}
        print(json.dumps(said), file=answers, flush=True)


def main(model: str, device: str) -> None:
    """Obey what comes on stdin until it ends."""
    keep_memory()
    obey(sys.stdin, sys.stdout, model, device)
