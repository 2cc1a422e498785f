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

from unstir.cli.output import Whole, print_json, progress_bar, require_place

if TYPE_CHECKING:
    from torch import Tensor

    from unstir.pipeline import Pipeline, Settings

METRICS = ("prompts", "bits")
_SPLITS = {"test": "held out", "validation": "validation", "train": "training"}


def evaluate(
    model: str = "builtin",
    *,
    data: str,
    metrics: str = "prompts",
    split: Annotated[list[str] | None, Parameter(consume_multiple=False, negative=())] = None,
    seeds: Whole = 3,
    seed: Whole = 0,
    limit: Whole = 184,
    steps: Whole | None = None,
    sampler: str | None = None,
    grid: str | None = None,
    guidance: float | None = None,
    batch: Whole = 16,
    draws: Whole = 32,
    sheet: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Measure a model: does it draw what was asked for (prompts), how well does it know real pictures (bits).

    Example: unstir evaluate builtin --data emoji/ --metrics prompts,bits --json

    Parameters
    ----------
    model
        "builtin", a model folder or a run folder.
    data
        The captioned pictures; each is a candidate, those of the chosen splits are asked for by their first caption.
    metrics
        prompts (top-1 retrieval: how often the nearest of all real pictures is the one that was asked for), bits (a
        bound on bits/dim of the real pictures given their first captions), or both: prompts,bits.
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
    draws
        For bits: noise levels a picture.
    sheet
        A file for a contact sheet of 64 of the prompts, training and held out.
    device
        auto, cpu, cuda, ...
    precision
        auto (float32), float32 or bf16.
    json
        Print one JSON object instead of text.
    """
    from unstir.config import choose
    from unstir.data.folder import find_pictures
    from unstir.data.transforms import load_pictures
    from unstir.evaluation.prompts import choose_prompts, draw_with, measure
    from unstir.pipeline import load

    wanted = [choose(metric, METRICS, "metric") for metric in metrics.split(",")]
    for name in split or []:
        choose(name, _SPLITS, "split")
    if min(seeds, limit, batch, draws) < 1:
        raise ValueError(f"seeds, limit, batch and draws must be at least 1, got {seeds}, {limit}, {batch} and {draws}")
    place = None if sheet is None else require_place(sheet)
    pipe = load(model, device=device, precision=precision)
    settings: Settings = {"steps": steps, "sampler": sampler, "grid": grid, "guidance_scale": guidance}
    defaults = pipe.request("a", seed=seed, **settings)
    real, records = load_pictures(find_pictures(Path(data)), pipe.model.config.size)
    chosen = {name: choose_prompts(records, name, limit) for name in split or ["test", "train"]}
    chosen = {name: index for name, index in chosen.items() if index}
    if not chosen:
        raise ValueError(f"{data} has no captioned pictures in the splits asked for; choose one with --split train")
    pipe.request("a", seed=seed + seeds * max(map(len, chosen.values())) - 1, **settings)  # the last seed
    captions = [record.captions[0] if record.captions else "" for record in records.records]
    started = time.perf_counter()
    scores: dict[str, dict[str, Any]] = {}
    if "prompts" in wanted:
        with progress_bar("drawing", seeds * sum(map(len, chosen.values())), unit=" pictures") as advance:
            draw = draw_with(pipe, seed=seed, batch=batch, settings=settings, advance=advance)
            found = {n: measure(draw, [captions[i] for i in c], c, real, seeds=seeds) for n, c in chosen.items()}
        scores["prompts"] = {name: asdict(score) for name, score in found.items()}
    if "bits" in wanted:
        scores["bits"] = {
            name: _bits(pipe, real[index], [captions[i] for i in index], draws=draws, seed=seed, batch=batch)
            for name, index in chosen.items()
        }
    if place is not None:
        share = 64 // len(chosen)
        shown = [i for index in chosen.values() for i in index[:: max(1, len(index) // share)][:share]]
        _write_sheet(pipe, [captions[i] for i in shown], place, seed, settings)
    protocol = {
        "metric": "top-1 retrieval: nearest real picture by mean squared error over RGB bytes",
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
    _tell(scores)
    if "prompts" in wanted:
        print(", ".join(f"{key} {value}" for key, value in protocol.items() if key != "metric"))


def _bits(pipe: Pipeline, real: Tensor, prompts: list[str], *, draws: int, seed: int, batch: int) -> dict[str, Any]:
    from unstir.evaluation.bits import measure_bits

    with progress_bar("bits", len(prompts), unit=" pictures") as advance:
        return asdict(measure_bits(pipe.model, real, prompts, draws=draws, seed=seed, batch=batch, advance=advance))


def _tell(scores: dict[str, dict[str, Any]]) -> None:
    for name, score in scores.get("prompts", {}).items():
        print(
            f"{_SPLITS[name]}: top-1 retrieval {score['top1']:.1%} +- {score['standard_error']:.1%} "
            f"({score['prompts']} prompts, {score['seeds']} seeds, {score['candidates']} candidates)"
        )
    for name, score in scores.get("bits", {}).items():
        print(
            f"{_SPLITS[name]}: at most {score['bits_per_dim']:.3f} +- {score['standard_error']:.3f} bits/dim "
            f"({score['pictures']} pictures, {score['draws']} noise levels each below a log-SNR of "
            f"{score['first_log_snr']:g}, the rest by the decoder)"
        )


def _write_sheet(pipe: Pipeline, prompts: Sequence[str], path: Path, seed: int, settings: Settings) -> None:
    from unstir.metadata import save_picture
    from unstir.training.preview import contact_sheet

    pictures = pipe.sample(prompts, seed=seed, batch=16, **settings)
    save_picture(contact_sheet(pictures, prompts, columns=8), path, None)
