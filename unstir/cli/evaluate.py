"""``unstir evaluate``: numbers with their protocol and their standard error.

Knows: which pictures are asked for, what is printed.
Does not know: how a number is computed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from unstir.cli.measures import (
    bit_scores,
    draw_questions,
    drawn_scores,
    lines_of,
    questions_of,
    read_options,
)
from unstir.cli.output import Whole, print_json, require_place

if TYPE_CHECKING:
    from unstir.pipeline import Pipeline, Settings

_METRIC = "top-1 retrieval: nearest real picture by mean squared error over RGB bytes; a hit carries the asked words"


def evaluate(
    model: str = "builtin",
    *,
    data: str,
    metrics: str = "prompts",
    split: Annotated[list[str] | None, Parameter(consume_multiple=False, negative=())] = None,
    keywords: Whole | None = None,
    prompts: str | None = None,
    seeds: Whole | None = None,
    seed: Whole = 0,
    limit: Whole = 184,
    steps: Whole | None = None,
    sampler: str | None = None,
    grid: str | None = None,
    guidance: float | None = None,
    batch: Whole = 16,
    draws: Whole = 32,
    sheet: str | None = None,
    captions: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Measure a model: does it draw what was asked for, how like real pictures, how well does it know real ones.

    Example: unstir evaluate builtin --data emoji/ --metrics prompts,likeness --json

    Parameters
    ----------
    model
        "builtin", a model folder or a run folder.
    data
        The captioned pictures; each is a candidate, the first captions of those of the chosen splits are asked for.
    metrics
        One or more of prompts (top-1 retrieval: how often the nearest of all real pictures carries the caption that was
        asked for), bits (a bound on bits/dim of the real pictures given their first captions) and likeness (squared
        error to the asked picture, sharpness and diversity over seeds, each beside the real pictures'); where many
        pictures carry a caption, the squared error is to one of them at random.
    split
        train, validation or test (held out); may be repeated. Without it: test and train.
    keywords
        Ask for so many keywords instead, each of at least 8 pictures and no caption; they are chosen by the sha256 of
        the word. Also tells how many different pictures are drawn of each.
    prompts
        Ask what a file says instead: on each line a prompt, a tab, and the caption of the picture that it means.
    seeds
        Pictures a prompt; without it 3, for keywords 8.
    seed
        The first seed.
    limit
        Prompts of a split at most; they are chosen by the sha256 of their key.
    steps
        As in sample; so are sampler, grid, guidance, device and precision.
    sampler
        As in sample.
    grid
        As in sample.
    guidance
        As in sample.
    batch
        Pictures drawn together.
    draws
        For bits: noise levels a picture.
    sheet
        A file for a contact sheet of 64 of the prompts.
    captions
        As in train: where captions are taken from.
    device
        auto, cpu, cuda, ...
    precision
        auto (bf16 on a CPU that multiplies it natively, else float32), float32 or bf16.
    json
        Print one JSON object instead of text.
    """
    from unstir.data.folder import find_pictures
    from unstir.data.transforms import load_pictures
    from unstir.device import resolve_device
    from unstir.pipeline import load
    from unstir.training.engine import joined, local_device

    asked = read_options(metrics=metrics, split=split, limit=limit, keywords=keywords, prompts=prompts, seeds=seeds)
    if min(batch, draws) < 1:
        raise ValueError(f"batch and draws must be at least 1, got {batch} and {draws}")
    place = None if sheet is None else require_place(sheet)
    settings: Settings = {"steps": steps, "sampler": sampler, "grid": grid, "guidance_scale": guidance}
    where = local_device(resolve_device(device), os.environ)
    with joined(where) as team:
        pipe = load(model, device=str(where), precision=precision)
        defaults = pipe.request("a", seed=seed, **settings)
        real, records = load_pictures(find_pictures(Path(data), captions=captions), pipe.model.config.size)
        questions = questions_of(asked, records)
        most = max(len(one.prompts) for one in questions.values())
        pipe.request("a", seed=seed + asked.seeds * most - 1, **settings)  # the last seed
        started = time.perf_counter()
        scores: dict[str, dict[str, Any]] = {}
        if asked.draws:
            drawn = draw_questions(pipe, questions, team, seeds=asked.seeds, seed=seed, batch=batch, settings=settings)
            scores = drawn_scores(asked, questions, drawn, real, records)
        if "bits" in asked.metrics:
            scores["bits"] = bit_scores(pipe, asked, real, records, draws=draws, seed=seed, batch=batch)
        if not team.is_first:
            return
        if place is not None:
            share = 64 // len(questions)
            shown = [p for one in questions.values() for p in one.prompts[:: max(1, len(one.prompts) // share)][:share]]
            _write_sheet(pipe, shown, place, seed, settings)
        protocol = {
            "metric": _METRIC,
            "size": pipe.model.config.size,
            "steps": defaults.steps,
            "sampler": defaults.sampler,
            "grid": defaults.grid,
            "guidance": defaults.guidance_scale,
            "first_seed": seed,
            "precision": defaults.precision,
            "weights": "averaged (EMA)",
        }
        seconds = round(time.perf_counter() - started, 1)
        if json:
            result = {"model": model, "checksum": pipe.model.checksum, "data": data, "protocol": protocol}
            print_json({**result, **scores, "seconds": seconds})
            return
        print("\n".join(lines_of(scores)))
        if asked.draws:
            print(", ".join(f"{key} {value}" for key, value in protocol.items() if key != "metric"))


def _write_sheet(pipe: Pipeline, prompts: Sequence[str], path: Path, seed: int, settings: Settings) -> None:
    from unstir.metadata import save_picture
    from unstir.training.preview import contact_sheet

    pictures = pipe.sample(prompts, seed=seed, batch=16, **settings)
    save_picture(contact_sheet(pictures, prompts, columns=8), path, None)
