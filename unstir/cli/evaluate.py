"""``unstir evaluate``: numbers with their protocol and their standard error.

Knows: which pictures are asked for, what is printed.
Does not know: how a number is computed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from unstir.cli.output import print_json, progress_bar

if TYPE_CHECKING:
    from unstir.pipeline import Pipeline

METRICS = ("prompts",)
_SPLITS = {"test": "held out", "validation": "validation", "train": "training"}


def evaluate(
    model: str = "builtin",
    *,
    data: str,
    metrics: str = "prompts",
    split: Annotated[list[str] | None, Parameter(consume_multiple=False)] = None,
    seeds: int = 3,
    seed: int = 0,
    limit: int = 184,
    steps: int | None = None,
    sampler: str | None = None,
    grid: str | None = None,
    guidance: float | None = None,
    batch: int = 16,
    sheet: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Measure a model: how often the nearest of all real pictures is the one that was asked for.

    Example: unstir evaluate builtin --data emoji/ --json

    Parameters
    ----------
    model
        "builtin", a model folder or a run folder.
    data
        The captioned pictures; each is a candidate, those of the chosen splits are asked for by their first caption.
    metrics
        prompts (top-1 retrieval).
    split
        train, validation or test (held out); may be repeated. Without it: test and train.
    seeds
        Pictures a prompt.
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
    sheet
        A file for a contact sheet of 64 of the prompts, training and held out.
    device
        auto, cpu, cuda, ...
    precision
        auto (float32), float32 or bf16.
    json
        Print one JSON object instead of text.
    """
    from unstir.data.folder import find_pictures
    from unstir.data.transforms import load_pictures
    from unstir.evaluation.prompts import measure, spread_choice
    from unstir.pipeline import choose, load
    from unstir.training.batches import Captioned

    for metric in metrics.split(","):
        choose(metric, METRICS, "metric")
    if seeds < 1 or limit < 1 or batch < 1:
        raise ValueError(f"seeds, limit and batch must be at least 1, got {seeds}, {limit} and {batch}")
    for name in split or []:
        choose(name, _SPLITS, "split")
    pipe = load(model, device=device, precision=precision)
    settings = {"steps": steps, "sampler": sampler, "grid": grid, "guidance_scale": guidance}
    pipe.request("a", seed=seed, **settings)
    pictures, records = load_pictures(find_pictures(Path(data)), pipe.model.config.size)
    real = Captioned.of(pictures, records)
    scores: dict[str, Any] = {}
    chosen: dict[str, list[int]] = {}
    for name in split or ["test", "train"]:
        members = [i for i, record in enumerate(records.records) if record.split == name and record.captions]
        if members:
            chosen[name] = [members[i] for i in spread_choice([real.keys[i] for i in members], limit)]
    if not chosen:
        raise ValueError(f"{data} has no captioned pictures in the splits asked for; choose one with --split train")
    total = seeds * sum(len(index) for index in chosen.values())
    started = time.perf_counter()
    with progress_bar("drawing", total, unit=" pictures") as advance:
        drawn = 0
        for name, index in chosen.items():
            prompts = [real.captions[i][0] for i in index]

            def draw(prompts: Sequence[str], run: int) -> Any:
                nonlocal drawn
                found = _draw(pipe, prompts, seed + run * len(prompts), batch, settings, lambda n: advance(drawn + n))
                drawn += len(prompts)
                return found

            scores[name] = asdict(measure(draw, prompts, index, real.pictures, seeds=seeds))
    defaults = pipe.request("a", seed=seed, **settings)
    result = {
        "model": model,
        "checksum": pipe.model.checksum,
        "data": data,
        "protocol": {
            "metric": "top-1 retrieval: nearest real picture by mean squared error over RGB bytes",
            "size": pipe.model.config.size,
            "first_seed": seed,
            "steps": defaults.steps,
            "sampler": defaults.sampler,
            "grid": defaults.grid,
            "guidance": defaults.guidance_scale,
            "precision": defaults.precision,
            "weights": "averaged (EMA)",
        },
        "prompts": scores,
        "seconds": round(time.perf_counter() - started, 1),
    }
    if sheet is not None:
        _write_sheet(pipe, real, chosen, Path(sheet), seed, settings)
    if json:
        print_json(result)
        return
    for name, score in scores.items():
        print(
            f"{_SPLITS[name]}: top-1 retrieval {score['top1']:.1%} +- {score['standard_error']:.1%} "
            f"({score['prompts']} prompts, {score['seeds']} seeds, {score['candidates']} candidates)"
        )
    print(
        f"sampler {defaults.sampler}, {defaults.steps} steps, grid {defaults.grid}, guidance {defaults.guidance_scale:g}, "
        f"first seed {seed}, {defaults.precision}"
    )


def _draw(
    pipe: Pipeline,
    prompts: Sequence[str],
    seed: int,
    batch: int,
    settings: dict[str, Any],
    advance: Any,
) -> Any:
    import numpy
    import torch

    from unstir.pipeline import Result

    pictures: list[Any] = []
    for item in pipe.run(pipe.requests(prompts, seed=seed, **settings), batch=batch):
        if isinstance(item, Result):
            pictures.append(torch.from_numpy(numpy.array(item.picture)).permute(2, 0, 1))
            advance(len(pictures))
    return torch.stack(pictures)


def _write_sheet(
    pipe: Pipeline,
    real: Any,
    chosen: dict[str, list[int]],
    path: Path,
    seed: int,
    settings: dict[str, Any],
) -> None:
    from unstir.metadata import save_picture
    from unstir.training.preview import contact_sheet

    share = 64 // len(chosen)
    index = [i for rows in chosen.values() for i in rows[:: max(1, len(rows) // share)][:share]]
    prompts = [real.captions[i][0] for i in index]
    pictures = pipe.sample(prompts, seed=seed, batch=16, **settings)
    save_picture(contact_sheet(pictures, prompts, columns=8), path, None)
