"""``unstir generate``: a whole file of prompts, by one process, by several, or on Ray.

Knows: the verb, what is told of a share.
Does not know: who draws what, how a picture is drawn.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from unstir.cli.options import Drawing, Others, Solving, Words, parse_size, settings_of
from unstir.cli.output import Whole, print_json, say, stage_progress
from unstir.cli.sample import opened

if TYPE_CHECKING:
    from unstir.generation.drawing import Drawn
    from unstir.generation.shards import Order, Share
    from unstir.pipeline import Pipeline, Settings

_WORDS, _OTHERS = Words(), Others()  # nothing is said
_TOLD = 5  # warnings


def generate(
    prompts: Path,
    *,
    output: Annotated[str, Parameter(name=["-o", "--output"])],
    model: str = "builtin",
    number: Annotated[Whole, Parameter(name=["-n", "--number"])] = 1,
    seed: Whole = 0,
    size: str | None = None,
    tile: Annotated[bool, Parameter(negative=())] = False,
    steps: Whole | None = None,
    sampler: str | None = None,
    grid: str | None = None,
    eta: float | None = None,
    words: Words = _WORDS,
    others: Others = _OTHERS,
    batch: Whole | None = None,
    device: str = "auto",
    precision: str = "auto",
    ray: Annotated[bool, Parameter(negative=())] = False,
    workers: Whole | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Draw a whole file of prompts into a folder; the same command again draws what is missing.

    Started several times with RANK and WORLD_SIZE set (by torchrun, or by hand) or by Slurm's srun, each process draws
    its share.

    Example: unstir generate prompts.txt -o drawn/ --seed 0

    Parameters
    ----------
    prompts
        A .txt file with a prompt a line, or .jsonl, .csv or .parquet with prompt and, where wanted, seed, negative, n.
    output
        The folder; it gets the pictures, generate.json with their settings, and at the end index.jsonl.
    model
        "builtin", a model folder, or a run folder.
    number
        Pictures of a line that does not say n.
    seed
        Of the first picture; picture i of the file has seed + i, unless its line says its own.
    size
        WIDTHxHEIGHT, or one number for both.
    tile
        As in sample; so are steps, sampler, grid, eta and all that is told of words and guidance.
    steps
        As in sample.
    sampler
        As in sample.
    grid
        As in sample.
    eta
        As in sample.
    batch
        Most pictures drawn together; no picture depends on it by more than 1/255.
    device
        auto, cpu, cuda, ...; under torchrun and Slurm a process takes the GPU of its local rank.
    precision
        auto (bf16 on a CPU that multiplies it natively, else float32), float32 or bf16.
    ray
        Draw on the Ray cluster that RAY_ADDRESS names, else on one of this machine's cores (pip install 'unstir[ray]').
    workers
        With --ray: how many; without it one a GPU, or one a core.
    json
        Print one JSON object instead of text.
    """
    from unstir.generation.shards import claim, own_device, share_of, survey, write_index

    share = share_of(os.environ)
    if workers is not None and not ray:
        raise ValueError("--workers belongs to --ray; without Ray, start several processes, for instance with torchrun")
    if ray and share.world > 1:
        raise ValueError(f"--ray shares the work itself, and this is process {share.rank} of {share.world}; start one")
    if ray:
        from unstir.generation.on_ray import require_ray

        require_ray(workers)
    settings = settings_of(Solving(steps=steps, sampler=sampler, grid=grid, eta=eta), words, others)
    settings["width"], settings["height"] = parse_size(size)
    settings["tile"] = tile
    place = device if ray else own_device(device, os.environ)
    pipe, _ = opened(Drawing(model=model, batch=batch, device=place, precision=precision))
    order = _order(pipe, prompts, Path(output), settings, seed=seed, number=number, batch=batch)
    total = survey(pipe, order)
    started = time.perf_counter()
    claim(order, share)
    drawing = _on_ray(order, device, workers) if ray else _here(pipe, order, share)
    drawn, warnings = _watch(drawing, order, share, total)
    index = write_index(order, share)
    seconds = time.perf_counter() - started
    own = len(range(share.rank, total, share.world))
    if json:
        print_json(
            {
                "folder": str(order.folder),
                "index": None if index is None else str(index),
                "pictures": total,
                "rank": share.rank,
                "world": share.world,
                "own": own,
                "drawn": drawn,
                "warnings": warnings,
                "checksum": pipe.model.checksum,
                "seconds": round(seconds, 3),
            }
        )
        return
    for warning in warnings[:_TOLD]:
        say(f"warning: {warning}")
    if len(warnings) > _TOLD:
        say(f"warning: and {len(warnings) - _TOLD} more, each in its picture's file")
    part = "" if share.world == 1 else f"process {share.rank} of {share.world}: {own} of "
    there = f", {own - drawn} were there" if drawn < own else ""
    speed = f" in {seconds:.1f} s, {drawn / seconds:.2f} a second" if drawn else ""
    left = "" if index is not None else "; others are still missing, which their processes or this command again draw"
    print(f"{part}{total} pictures, {drawn} drawn{speed}{there}: {order.folder}/{left}")


def _order(
    pipe: Pipeline, prompts: Path, folder: Path, settings: Settings, *, seed: int, number: int, batch: int | None
) -> Order:
    """What the options ask for, with the recipe of its first picture."""
    from unstir.generation.prompts import read_prompts
    from unstir.generation.shards import Order
    from unstir.metadata import recipe_of
    from unstir.pipeline import BATCH

    if number < 1:
        raise ValueError(f"the number of pictures must be at least 1, got {number}")
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file, and pictures go into a folder; give another name")
    negative = settings.get("negative") or ""
    first = next(read_prompts(prompts, seed=seed, negative=negative, number=number))
    request = pipe.request(first.prompt, seed=0, **settings)  # its own seed is looked at with those of all others
    return Order(
        prompts=prompts,
        folder=folder.resolve(),
        recipe=recipe_of(pipe, request),
        seed=seed,
        negative=negative,
        number=number,
        batch=batch or BATCH,
    )


def _here(pipe: Pipeline, order: Order, share: Share) -> Iterator[Drawn]:
    from unstir.generation.drawing import draw
    from unstir.generation.shards import missing

    return draw(pipe, order, missing(order, share))


def _on_ray(order: Order, device: str, workers: int | None) -> Iterator[Drawn]:
    from unstir.generation.on_ray import draw_on_ray
    from unstir.generation.shards import Share, missing

    address = os.environ.get("RAY_ADDRESS")
    say("starting Ray on this machine" if not address else f"connecting to Ray at {address}")
    return draw_on_ray(order, missing(order, Share()), device=device, workers=workers)


def _watch(drawing: Iterator[Drawn], order: Order, share: Share, total: int) -> tuple[int, list[str]]:
    """Draw, and tell how far it is: the number of pictures drawn, and what the user should know of them."""
    from unstir.generation.shards import INDEX

    own = len(range(share.rank, total, share.world))
    drawn, reached = 0, 0
    warnings: dict[str, None] = {}
    with stage_progress() if share.rank == 0 else nullcontext(_quiet) as advance:
        for one in drawing:
            if not drawn:  # a list of an earlier call is whole no longer
                (order.folder / INDEX).unlink(missing_ok=True)
            drawn += 1
            reached = max(reached, one.index // share.world + 1)
            warnings.update(dict.fromkeys(one.warnings))
            advance("drawing", reached, own)
    return drawn, list(warnings)


def _quiet(stage: str, done: int, total: int) -> None:
    """Nothing, where another process tells."""
