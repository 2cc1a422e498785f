"""``unstir sample``: pictures from prompts.

Knows: the options of sampling, where pictures are put.
Does not know: how a picture is drawn.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from unstir.cli.output import Whole, picture_paths, print_json, progress_bar, say, writable_folder

if TYPE_CHECKING:
    from unstir.pipeline import Pipeline, Request, Result


def sample(
    *prompts: str,
    model: str = "builtin",
    number: Annotated[Whole, Parameter(name=["-n", "--number"])] = 1,
    seed: Whole | None = None,
    steps: Whole | None = None,
    sampler: str | None = None,
    guidance: float | None = None,
    guidance_interval: Annotated[str | None, Parameter(name="--guidance.interval", allow_leading_hyphen=True)] = None,
    negative: str = "",
    size: str | None = None,
    grid: str | None = None,
    eta: float | None = None,
    output: Annotated[str, Parameter(name=["-o", "--output"])] = "pictures/",
    batch: Whole | None = None,
    device: str = "auto",
    precision: str = "auto",
    metadata: Annotated[bool, Parameter(negative="--no-metadata")] = True,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Draw pictures from prompts.

    Example: unstir sample "a red heart" "a cat with tears of joy" -n 4 --seed 0 -o pictures/

    Parameters
    ----------
    prompts
        What to draw; several are drawn prompt by prompt.
    model
        "builtin", a model folder, or a run folder.
    number
        Pictures a prompt.
    seed
        Of the first picture; picture i of the call has seed + i. Without it a fresh one is drawn, printed and stored.
    steps
        Network evaluations a picture.
    sampler
        ancestral, ddim or dpm++2m.
    guidance
        How strongly the words pull; 1 is not at all beyond the model itself.
    guidance_interval
        A,B: the log-SNR between which guidance acts.
    negative
        What to move away from.
    size
        WIDTHxHEIGHT, or one number for both.
    grid
        trailing or uniform_log_snr: the times that the sampler visits.
    eta
        For ddim: fresh noise, from 0 (none) to 1 (as ancestral).
    output
        A folder, or a file (.png, .jpg, .webp) for a single picture.
    batch
        Most pictures drawn together; no picture depends on it by more than 1/255.
    device
        auto, cpu, cuda, ...
    precision
        auto (float32), float32 or bf16.
    metadata
        Whether PNGs carry their recipe.
    json
        Print one JSON object instead of text.
    """
    started = time.perf_counter()
    from unstir.pipeline import BATCH, load

    imported = time.perf_counter()
    if batch is not None and batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    pipe = load(model, device=device, precision=precision)
    loaded = time.perf_counter()
    width, height = parse_size(size)
    requests = pipe.requests(
        prompts,
        n=number,
        seed=seed,
        steps=steps,
        sampler=sampler,
        guidance_scale=guidance,
        guidance_interval=parse_interval(guidance_interval),
        negative=negative,
        grid=grid,
        eta=eta,
        width=width,
        height=height,
    )
    paths = picture_paths(output, [request.prompt for request in requests])
    results = draw(pipe, requests, paths, batch=batch or BATCH, metadata=metadata)
    finished = time.perf_counter()
    if json:
        print_json(
            {
                "pictures": [describe(result, path) for result, path in zip(results, paths, strict=True)],
                "model": model,
                "checksum": pipe.model.checksum,
                "device": str(pipe.device),
                "seconds": {
                    "import": round(imported - started, 3),
                    "load": round(loaded - imported, 3),
                    "draw": round(finished - loaded, 3),
                    "total": round(finished - started, 3),
                },
            }
        )
        return
    for warning in dict.fromkeys(warning for result in results for warning in result.warnings):
        say(f"warning: {warning}")
    seeds = f"seed {requests[0].seed}" + (f" to {requests[-1].seed}" if len(requests) > 1 else "")
    each = sum(result.seconds for result in results) / len(results)
    where = (
        paths[0].resolve() if len(paths) == 1 else f"{paths[0].parent.resolve()}/ ({paths[0].name} to {paths[-1].name})"
    )
    noun = "1 picture" if len(paths) == 1 else f"{len(paths)} pictures"
    print(f"{noun}, {seeds}, {each:.2f} s each: {where}")


def draw(
    pipe: Pipeline, requests: list[Request], paths: list[Path], *, batch: int, metadata: bool = True
) -> list[Result]:
    """Draw and write pictures, each file as soon as its batch is done.

    Raises:
        OSError: if a folder or file cannot be written; found out before anything is drawn where possible.
    """
    from unstir.metadata import Recipe, save_picture
    from unstir.pipeline import Preview, Result

    results: list[Result] = []
    total = sum(request.steps for request in requests)
    done = 0
    with writable_folder(paths[0].parent), progress_bar("drawing", total, unit=" steps") as advance:
        for item in pipe.run(requests, batch=batch):
            if isinstance(item, Preview):
                advance(done + item.index * item.pictures.shape[0])
                continue
            assert isinstance(item, Result)
            recipe = Recipe(
                request=item.request,
                model=pipe.name if pipe.name == "builtin" else str(Path(pipe.name).resolve()),
                checksum=pipe.model.checksum,
                device=str(pipe.device),
                warnings=item.warnings,
            )
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


def parse_size(text: str | None) -> tuple[int | None, int | None]:
    """Width and height, from "64" or "96x64".

    Raises:
        ValueError: if it is neither.
    """
    if text is None:
        return None, None
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"size must be WIDTHxHEIGHT or one number, got {text!r}; for instance --size 64x64")
    return int(parts[0]), int(parts[-1])


def parse_interval(text: str | None) -> tuple[float, float] | None:
    """Two numbers from "a,b".

    Raises:
        ValueError: if there are not two.
    """
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f"a guidance interval is two numbers, got {text!r}; for instance --guidance.interval -4,4"
        ) from None
    return low, high
