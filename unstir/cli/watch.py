"""``unstir watch``: a run, looked at while it goes on.

Knows: how a run's standing is told, in lines, as JSON or drawn anew on a terminal.
Does not know: where the numbers are from; how a run is stopped: it only looks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from unstir.cli.output import print_json
from unstir.cli.runs import duration, hold_of

if TYPE_CHECKING:
    from PIL import Image

    from unstir.training.watch import Standing

_COLUMNS = {
    "loss_by_band": "training loss",
    "x0_error_by_band": "training error on x0",
    "held_out": "held-out error on x0",
    "held_out_raw": "... of the raw weights",
    "accuracy": "held-out accuracy",
}
_BLOCKS = "▁▂▃▄▅▆▇█"
_CURVE = 32  # characters of a curve
_WIDE = 60  # columns of a terminal that shows previews
_WIDEST = 120  # columns that a preview takes
_LOW = 8  # lines that a preview needs at least


def watch(
    run: Path,
    *,
    once: Annotated[bool, Parameter(negative=())] = False,
    every: float = 2.0,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Tell where a run stands, until it ends: loss by noise level, speed, time left, the newest preview.

    Example: unstir watch runs/mine

    The run folder is only read; Ctrl-C ends the watching, not the run. Exit status 1: the run died.

    Parameters
    ----------
    run
        A run folder, of a model or of a classifier.
    once
        Look once.
    every
        Seconds between two looks.
    json
        Look once, and print one JSON object.
    """
    if not 0.1 <= every <= 3600:
        raise ValueError(f"--every is a number of seconds from 0.1 to 3600, got {every:g}")
    from unstir.training.watch import standing

    now = standing(run, hold_of(run))
    console = Console(highlight=False)
    if json:
        print_json(_as_json(run, now))
    elif once:
        for part in _parts(run, now, console):
            console.print(part, soft_wrap=True)
    else:
        try:
            looks = _looks(run, now, every)
            now = _drawn(run, looks, console) if console.is_terminal else _told(run, looks)
        except KeyboardInterrupt:
            return 0
    return 1 if now.state == "died" else 0


def _looks(run: Path, now: Standing, every: float) -> Iterator[Standing]:
    """Where the run stands, again and again, until it does not go on."""
    from unstir.training.watch import standing

    yield now
    while now.state == "going on":
        time.sleep(every)
        now = standing(run, hold_of(run))
        yield now


def _drawn(run: Path, looks: Iterator[Standing], console: Console) -> Standing:
    now = next(looks)
    with Live(Group(*_parts(run, now, console)), console=console, auto_refresh=False) as live:
        for now in looks:
            live.update(Group(*_parts(run, now, console)), refresh=True)
    return now


def _told(run: Path, looks: Iterator[Standing]) -> Standing:
    """All of it at first and at the end; a line for every change between them."""
    now = before = next(looks)
    print("\n".join(_lines(run, now)), flush=True)
    for now in looks:
        if now.state != "going on":
            print("\n".join(_lines(run, now)), flush=True)
        elif now != before:
            print(f"{_progress(now)}; {_numbers(now)}", flush=True)
        before = now
    return now


def _parts(run: Path, now: Standing, console: Console) -> list[RenderableType]:
    lines = _lines(run, now)
    if not console.is_terminal:
        return [Text(line) for line in lines]
    width = min(console.width, _WIDEST)
    done = min(width, width * now.images_seen // now.planned_images)
    bar = Text.assemble(("━" * done, "green"), ("━" * (width - done), "dim"))
    parts: list[RenderableType] = [Text(lines[0], style="bold"), bar, *(Text(line) for line in lines[1:])]
    left = console.height - len(parts) - 2
    if now.preview is not None and console.width >= _WIDE and left >= _LOW:
        from PIL import Image

        try:
            with Image.open(now.preview) as sheet:
                parts.append(half_blocks(sheet.convert("RGB"), width, left))
        except OSError:
            pass  # it is being written; the next look shows it
    return parts


def half_blocks(picture: Image.Image, columns: int, lines: int) -> Text:
    """A picture in characters, two pixels in each, one over the other; what does not fit below is left out."""
    from PIL import Image

    height = max(2, round(picture.height * columns / picture.width) // 2 * 2)
    small = picture.resize((columns, height), Image.Resampling.BOX)
    text = Text(no_wrap=True)
    pixels: Any = small.load()
    for y in range(0, min(height, 2 * lines), 2):
        for x in range(columns):
            text.append("▀", f"{_hex(pixels[x, y])} on {_hex(pixels[x, y + 1])}")
        text.append("\n")
    return text


def _hex(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _lines(run: Path, now: Standing) -> list[str]:
    state = now.state
    if state in ("died", "stopped"):
        state += f"; go on with: unstir train --out {run} --resume"
    return [
        f"{run}, recipe {now.recipe}: {state}",
        f"seen        {_progress(now)}",
        f"last told   {_numbers(now)}",
        *([f"loss        {_curve(now.losses)}"] if now.losses else []),
        *_table(now.bands),
        f"checkpoint  {now.checkpoint or 'none yet'}",
        f"preview     {now.preview or 'none yet'}",
    ]


def _progress(now: Standing) -> str:
    share, left = now.images_seen / now.planned_images, now.seconds_left
    rest = "" if left is None else f", {duration(left)} left"
    return f"{now.images_seen} of {now.planned_images} pictures ({share:.1%}){rest}"


def _numbers(now: Standing) -> str:
    numbers = {name: value for name, value in now.numbers.items() if isinstance(value, int | float)}
    rate = numbers.pop("images_per_second", None)
    told = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in numbers.items()]
    return ", ".join([*told, *([] if rate is None else [f"{rate:.1f} pictures/s"])]) or "nothing yet"


def _curve(values: Sequence[float]) -> str:
    """The means of equal stretches, as a row of blocks from the lowest to the highest, by their logarithms."""
    count = min(len(values), _CURVE)
    edges = [len(values) * i // count for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    row = ""
    if all(math.isfinite(mean) for mean in means):
        heights = [math.log(mean) for mean in means] if min(means) > 0 else means
        low, span = min(heights), max(heights) - min(heights) or 1.0
        row = "".join(_BLOCKS[round((height - low) / span * (len(_BLOCKS) - 1))] for height in heights) + " "
    return f"{row}from {means[0]:.4g} to {means[-1]:.4g}"


def _table(bands: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Rows of numbers under the names of bands."""
    names = list(dict.fromkeys(name for row in bands.values() for name in row))
    if not names:
        return []
    names.sort(key=lambda name: name == "mean")
    rows = [("by t" if "accuracy" in bands else "by log-SNR", names)]
    rows += [
        (_COLUMNS.get(name, name), [f"{row[band]:.4f}" if band in row else "-" for band in names])
        for name, row in bands.items()
    ]
    first = max(len(title) for title, _ in rows)
    widths = [max(len(cells[i]) for _, cells in rows) for i in range(len(names))]
    return [
        "  ".join([title.ljust(first), *(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))])
        for title, cells in rows
    ]


def _as_json(run: Path, now: Standing) -> dict[str, Any]:
    return {
        "run": str(run),
        "recipe": now.recipe,
        "state": now.state,
        "images_seen": now.images_seen,
        "planned_images": now.planned_images,
        "seconds_left": now.seconds_left,
        "numbers": dict(now.numbers),
        "checkpoint": None if now.checkpoint is None else str(now.checkpoint),
        "preview": None if now.preview is None else str(now.preview),
    }
