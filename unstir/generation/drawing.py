"""Draw pictures of a file of prompts, each written as soon as its batch is done.

Knows: how prompts become batches, and batches files.
Does not know: which process draws what, how processes are started.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from unstir.generation.prompts import Wanted
from unstir.generation.shards import Order
from unstir.metadata import recipe_of, save_picture
from unstir.pipeline import Pipeline, Result

WINDOW = 8
"""Batches that are looked at together, so that pictures with negative words and those without fill batches each."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A picture that was written: which, and what the user should know of it."""

    index: int
    warnings: tuple[str, ...] = ()


def draw(pipe: Pipeline, order: Order, wanted: Iterable[Wanted]) -> Iterator[Drawn]:
    """Draw and write pictures; each file is whole or not there.

    Raises:
        ValueError: if a prompt cannot be drawn.
        OSError: if a file cannot be written.
    """
    rest = iter(wanted)
    while window := sorted(islice(rest, WINDOW * order.batch), key=lambda one: bool(one.negative)):
        results = pipe.run([order.request(one) for one in window], batch=order.batch)
        drawn = (item for item in results if isinstance(item, Result))
        for one, result in zip(window, drawn, strict=True):
            save_picture(result.picture, order.folder / one.name, recipe_of(pipe, result.request, result.warnings))
            yield Drawn(index=one.index, warnings=result.warnings)
