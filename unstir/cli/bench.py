"""``unstir bench``: figures of this machine, beside diffusers where it is installed.

Knows: which figures there are, what is printed, where the plot goes.
Does not know: how anything is measured.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from unstir.cli.output import Whole, print_json, require_place, say, stage_progress
from unstir.speedups import named

if TYPE_CHECKING:
    from unstir.bench.solvers import Result

bench_app = App(
    name="bench",
    help="Measure solvers, sampling and training, beside diffusers; the server. Example: unstir bench solvers --quick",
    help_format="plaintext",
)

MAX_SEED = 2**32 - 1


@bench_app.command
def solvers(
    *,
    dimensions: str | None = None,
    calls: str | None = None,
    starts: Whole | None = None,
    seed: Whole = 0,
    schedule: str = "linear",
    quick: Annotated[bool, Parameter(negative=())] = False,
    plot: str | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Error to the exact probability flow by number of network calls: our solvers, and those of diffusers.

    Example: unstir bench solvers --dimensions 2,64 --calls 5,10 --plot solvers.png

    Parameters
    ----------
    dimensions
        Numbers in a sample, one problem each, joined by commas: 2,16,64,768,3072 (with --quick: 2,64).
    calls
        Numbers of network calls that a run may make, joined by commas: 5,8,10,15,20,50.
    starts
        Noises that each problem starts from: 256 (with --quick: 64).
    seed
        Of the problems and the noises.
    schedule
        linear (DDPM's), scaled_linear (Stable Diffusion's) or cosine.
    quick
        Fewer problems and starts, and a coarser exact solution; about a minute.
    plot
        A PNG file for the median error by number of calls.
    json
        Print one JSON object instead of text.
    """
    from unstir.bench import solvers as bench
    from unstir.bench.machine import machine, told
    from unstir.bench.theirs import MISSING

    place = None if plot is None else _plot_place(plot)
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed must be a whole number from 0 to {MAX_SEED}, got {seed}")
    started = time.perf_counter()
    with stage_progress() as advance:
        result = bench.bench_solvers(
            dimensions=_numbers("dimensions", dimensions, bench.QUICK_DIMENSIONS if quick else bench.DIMENSIONS),
            calls=_numbers("calls", calls, bench.CALLS),
            starts=(bench.QUICK_STARTS if quick else bench.STARTS) if starts is None else starts,
            seed=seed,
            schedule=schedule,
            reference=bench.QUICK_REFERENCE if quick else bench.REFERENCE,
            advance=advance,
        )
    if result.diffusers is None:
        say(MISSING)
    if place is not None:
        _draw(result, place)
    seconds = round(time.perf_counter() - started, 1)
    facts = machine()
    if json:
        print_json({**bench.figures(result), "machine": facts, "seconds": seconds})
        return
    for solved in result.solved:
        problem = solved.problem
        print(
            f"{problem.dimension} dimensions: RMS / median error of {len(problem.starts)} starts (in brackets: calls "
            f"made, where fewer); the exact solution is known to {problem.reference_rms:.0e}"
        )
        _print_table(bench.columns(result), bench.cells(solved, result.calls))
        for line in bench.failures(solved):
            print(f"failed: {line}")
        print()
    lines = bench.summary(result)
    print("our default beside the best of diffusers, problem by problem; ratios are theirs to ours")
    _print_table(bench.PROBLEM_COLUMNS, bench.problem_cells(lines))
    print()
    print("geometric means over problems")
    _print_table(bench.SUMMARY_COLUMNS, bench.summary_cells(lines))
    print(f"{told(facts)}; {seconds} s" + ("" if place is None else f"; plot: {place}"))


@bench_app.command
def sample(
    *,
    quick: Annotated[bool, Parameter(negative=())] = False,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """What a sampler costs beside the network, and seconds to draw 16 pictures on the CPU: ours, and diffusers.

    On a GPU also what a picture takes there, alone and among 256. Example: unstir bench sample --json

    Parameters
    ----------
    quick
        Fewer repeats, 4 pictures, 5 steps; about ten seconds.
    json
        Print one JSON object instead of text.
    """
    from unstir.bench import sampling as bench
    from unstir.bench.machine import device_name, machine, told
    from unstir.bench.theirs import MISSING, version
    from unstir.device import resolve_device

    started = time.perf_counter()
    device, on_gpu = resolve_device("auto"), []
    with stage_progress() as advance:
        if quick:
            overhead = bench.overhead(steps=10, repeats=3, advance=advance)
            pictures = bench.pictures(count=4, steps=5, repeats=1, advance=advance)
        else:
            overhead, pictures = bench.overhead(advance=advance), bench.pictures(advance=advance)
        if device.type == "cuda":
            on_gpu = bench.on_device(device, advance=advance)
    if version() is None:
        say(MISSING)
    seconds, facts = round(time.perf_counter() - started, 1), machine()
    if json:
        gpu = {"on_gpu": on_gpu, "device": device_name(device)} if on_gpu else {}
        print_json({"overhead": overhead, "pictures": pictures, **gpu, "machine": facts, "seconds": seconds})
        return
    _print_table(bench.OVERHEAD_COLUMNS, bench.overhead_cells(overhead))
    print()
    _print_table(bench.PICTURE_COLUMNS, bench.picture_cells(pictures))
    if on_gpu:
        print(f"\n{device_name(device)}")
        _print_table(bench.DEVICE_COLUMNS, bench.device_cells(on_gpu))
    print(f"{told(facts)}; {seconds} s")


@bench_app.command
def train(
    *,
    models: str | None = None,
    batch: Whole | None = None,
    repeats: Whole | None = None,
    device: str = "auto",
    compiled: Annotated[bool, Parameter(negative=())] = False,
    levers: Annotated[bool, Parameter(negative=())] = False,
    quick: Annotated[bool, Parameter(negative=())] = False,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """What a training step costs: our U-Nets beside diffusers', our DiT beside a plain one.

    Example: unstir bench train --models small --levers

    Parameters
    ----------
    models
        What is trained, joined by commas: ddpm (DDPM's U-Net for CIFAR-10), small (a U-Net), dit (DiT-S/2), dit-b
        (DiT-B/2); all, but dit-b on a GPU alone (with --quick: small).
    batch
        Pictures of 32x32 a step: 16, on a GPU 128.
    repeats
        Rounds in which every side has its turn; medians are told: 5 (with --quick: 2).
    device
        auto, cpu, cuda, ...
    compiled
        Measure our networks compiled too; compiling takes a minute or more each, which is told.
    levers
        Measure ours with each speed-up off too, one at a time.
    quick
        One model, few rounds.
    json
        Print one JSON object instead of text.
    """
    from unstir.bench import training as bench
    from unstir.bench import training_table as told_as
    from unstir.bench.machine import machine, told
    from unstir.bench.theirs import MISSING

    started = time.perf_counter()
    with stage_progress() as advance:
        result = bench.bench_training(
            models=_names(models, bench.QUICK_MODELS if quick else bench.usual_models(device)),
            batch=bench.usual_batch(device) if batch is None else batch,
            repeats=(bench.QUICK_REPEATS if quick else bench.REPEATS) if repeats is None else repeats,
            device=device,
            is_compiled=compiled,
            has_levers=levers,
            advance=advance,
        )
    if not result.has_peers:
        say(MISSING)
    seconds, facts = round(time.perf_counter() - started, 1), machine()
    if json:
        print_json({**told_as.figures(result), "machine": facts, "seconds": seconds})
        return
    shared = result.conditions
    for title, rows in told_as.tables(result).items():
        print(
            f"{title}: a training step of {shared.batch} pictures of {bench.SIZE}x{bench.SIZE} on {shared.device.type}"
        )
        _print_table(told_as.COLUMNS, rows)
        print()
    for line in told_as.notes(result):
        print(line)
    print(f"{told(facts)}; {seconds} s")


@bench_app.command
def server(
    *,
    model: str = "builtin",
    clients: Whole | None = None,
    seconds: Whole | None = None,
    mixed: Annotated[bool, Parameter(negative=())] = False,
    device: str = "auto",
    quick: Annotated[bool, Parameter(negative=())] = False,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """What unstir serve bears: many clients, a short job behind a long one, kill -9; is every picture right?

    Starts servers of its own on free ports of this machine, with data in a temporary folder, and loads them; every
    picture is compared with the one that is drawn without a server. Example: unstir bench server --quick

    Parameters
    ----------
    model
        What is served: builtin, a model folder or a run folder.
    clients
        At a time; each asks for a picture as soon as it has its last one: 64 (with --quick: 8).
    seconds
        Of load: 300 (with --quick: 10).
    mixed
        Jobs of different steps, samplers, guidance and sizes; else they take the model's defaults.
    device
        auto, cpu, cuda, ...
    quick
        A look, in about a minute.
    json
        Print one JSON object instead of text.
    """
    from unstir.bench import server as bench
    from unstir.bench import server_table as told_as
    from unstir.bench.machine import machine, told

    started = time.perf_counter()
    usual = bench.QUICK if quick else bench.LoadConfig()
    config = replace(
        usual,
        model=model,
        device=device,
        clients=usual.clients if clients is None else clients,
        seconds=usual.seconds if seconds is None else seconds,
        is_mixed=mixed,
    )
    with stage_progress() as advance:
        result = told_as.figures(bench.bench_server(config, advance=advance))
    taken, facts = round(time.perf_counter() - started, 1), machine()
    if json:
        print_json({**result, "machine": facts, "seconds": taken})
        return
    for line in told_as.lines(result):
        print(line)
    print(f"{told(facts)}; {taken} s")


def _names(text: str | None, otherwise: Sequence[str]) -> list[str]:
    return list(otherwise) if text is None else list(named(text))


def _numbers(what: str, text: str | None, otherwise: Sequence[int]) -> list[int]:
    if text is None:
        return list(otherwise)
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ValueError(f"--{what} takes whole numbers joined by commas, as in 5,10, got {text!r}") from None


def _plot_place(plot: str) -> Path:
    place = require_place(plot)
    if place.suffix.lower() != ".png":
        raise ValueError(f"plots are PNG, got {plot}; give a name that ends in .png")
    from unstir.reproduce.report import plots

    plots()  # says what to install before minutes of work, not after
    return place


def _draw(result: Result, place: Path) -> None:
    from unstir.bench.solvers import draw
    from unstir.reproduce.report import plots, save_plot

    figure = plots().figure(figsize=(1 + 5 * len(result.solved), 8), layout="constrained")
    draw(result, figure)
    save_plot(figure, place)


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    from unstir.reproduce.report import table

    for line in table(columns, rows):
        print(line)
