"""``unstir sample``: pictures from prompts.

Knows: the verb, how pictures of any request are drawn, put down and told of.
Does not know: how a picture is drawn.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from unstir.cli.options import Drawing, Others, Solving, Words, parse_size, settings_of
from unstir.cli.output import Whole, picture_paths, print_json, progress_bar, say, writable_folder

if TYPE_CHECKING:
    from unstir.editing import Album
    from unstir.pipeline import Pipeline, Request, Result

_SOLVING, _WORDS, _OTHERS, _DRAWING = Solving(), Words(), Others(), Drawing()  # nothing is said


def sample(
    *prompts: str,
    number: Annotated[Whole, Parameter(name=["-n", "--number"])] = 1,
    seed: Whole | None = None,
    size: str | None = None,
    tile: Annotated[bool, Parameter(negative=())] = False,
    solving: Solving = _SOLVING,
    words: Words = _WORDS,
    others: Others = _OTHERS,
    drawing: Drawing = _DRAWING,
) -> None:
    """Draw pictures from prompts.

    Example: unstir sample "a red heart" "a cat with tears of joy" -n 4 --seed 0 -o pictures/

    Parameters
    ----------
    prompts
        What to draw; several are drawn prompt by prompt.
    number
        Pictures a prompt.
    seed
        Of the first picture; picture i of the call has seed + i. Without it a fresh one is drawn, printed and stored.
    size
        WIDTHxHEIGHT, or one number for both.
    tile
        Draw what repeats without a seam: right meets left and bottom meets top. It takes four times as long.
    """
    pipe, clock = opened(drawing)
    width, height = parse_size(size)
    settings = settings_of(solving, words, others)
    requests = pipe.requests(
        prompts, n=number, seed=seed, **{**settings, "width": width, "height": height, "tile": tile}
    )
    finish(pipe, requests, drawing, clock, within=solving.within)


@dataclass(frozen=True, kw_only=True)
class Clock:
    """When a call started, when its imports and when its model were there."""

    started: float
    imported: float
    loaded: float


def opened(drawing: Drawing) -> tuple[Pipeline, Clock]:
    """The model that draws, and how long that took.

    Raises:
        ValueError: if the batch is below 1, or as ``load``.
    """
    started = time.perf_counter()
    from unstir.pipeline import load

    imported = time.perf_counter()
    if drawing.batch is not None and drawing.batch < 1:
        raise ValueError(f"batch must be at least 1, got {drawing.batch}")
    pipe = load(drawing.model, device=drawing.device, precision=drawing.precision)
    return pipe, Clock(started=started, imported=imported, loaded=time.perf_counter())


def finish(
    pipe: Pipeline,
    requests: list[Request],
    drawing: Drawing,
    clock: Clock,
    *,
    album: Album | None = None,
    within: float | None = None,
) -> None:
    """Draw, write and tell."""
    from unstir.pipeline import BATCH

    if within is not None:
        requests = pipe.within(requests, within, batch=drawing.batch or BATCH, album=album)
    paths = picture_paths(drawing.output, [request.prompt for request in requests])
    results = draw(pipe, requests, paths, batch=drawing.batch or BATCH, metadata=drawing.metadata, album=album)
    finished = time.perf_counter()
    if drawing.json:
        print_json(
            {
                "pictures": [describe(result, path) for result, path in zip(results, paths, strict=True)],
                "model": drawing.model,
                "checksum": pipe.model.checksum,
                "device": str(pipe.device),
                "seconds": {
                    "import": round(clock.imported - clock.started, 3),
                    "load": round(clock.loaded - clock.imported, 3),
                    "draw": round(finished - clock.loaded, 3),
                    "total": round(finished - clock.started, 3),
                },
            }
        )
        return
    for warning in dict.fromkeys(warning for result in results for warning in result.warnings):
        say(f"warning: {warning}")
    first, last = requests[0].seed, requests[-1].seed
    seeds = f"seed {first}" + (f" to {last}" if last != first else "")
    each = sum(result.seconds for result in results) / len(results)
    where = (
        paths[0].resolve() if len(paths) == 1 else f"{paths[0].parent.resolve()}/ ({paths[0].name} to {paths[-1].name})"
    )
    noun = "1 picture" if len(paths) == 1 else f"{len(paths)} pictures"
    took = "" if within is None else f"{requests[0].steps} steps of {requests[0].sampler}, "
    print(f"{noun}, {seeds}, {took}{each:.2f} s each: {where}")


def draw(
    pipe: Pipeline,
    requests: list[Request],
    paths: list[Path],
    *,
    batch: int,
    metadata: bool = True,
    album: Album | None = None,
) -> list[Result]:
    """Draw and write pictures, each file as soon as its batch is done.

    Raises:
        OSError: if a folder or file cannot be written; found out before anything is drawn where possible.
    """
    from unstir.metadata import recipe_of, save_picture
    from unstir.pipeline import Preview, Result

    results: list[Result] = []
    total = sum(request.steps for request in requests)
    done = 0
    with writable_folder(paths[0].parent), progress_bar("drawing", total, unit=" steps") as advance:
        for item in pipe.run(requests, batch=batch, album=album):
            if isinstance(item, Preview):
                advance(done + item.index * item.rows)
                continue
            assert isinstance(item, Result)
            recipe = recipe_of(pipe, item.request, item.warnings)
            save_picture(item.picture, paths[len(results)], recipe if metadata else None)
            results.append(item)
            done += item.request.steps
    return results


def describe(result: Result, path: Path) -> dict[str, Any]:
    """A picture for programs: its file and everything that it was drawn with."""
    from unstir.config import to_dict

    return {
        "file": str(path.resolve()),
        **to_dict(result.request),
        "seconds": round(result.seconds, 3),
        "warnings": list(result.warnings),
    }
