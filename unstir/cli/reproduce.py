"""``unstir reproduce``: an experiment of a paper, with the paper's number beside ours.

Knows: which experiments there are, where their pictures go.
Does not know: what an experiment does.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from unstir.cli.output import Whole, print_json, require_place, say, stage_progress, writable_folder

if TYPE_CHECKING:
    from unstir.reproduce import Report


def reproduce(
    name: str,
    *,
    output: Annotated[str | None, Parameter(alias="-o")] = None,
    seed: Whole = 0,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Run an experiment of a paper on this machine: its figure, ours, and the best that could be had.

    Example: unstir reproduce heartbeat --json

    Parameters
    ----------
    name
        heartbeat, swiss-roll, dead-leaves, digits, rate-distortion, objectives, ddim-steps, cosine-vs-linear or
        small-steps. (Bark, of the 2015 paper, has no data here.)
    output
        The picture's file; without it, reproduced/NAME.png.
    seed
        Of data, initial weights and noise; figures from three seeds take this one and the two after it.
    json
        Print one JSON object instead of text.
    """
    from unstir.config import choose
    from unstir.reproduce import EXPERIMENTS

    if name == "bark":
        raise ValueError("the bark pictures of the 2015 paper are not to be had here, so they cannot be reproduced")
    choose(name, EXPERIMENTS, "experiment")
    if not 0 <= seed < 2**32 - 2:
        raise ValueError(f"seed must be a whole number from 0 to {2**32 - 3}, got {seed}")
    with ExitStack() as stack:
        if output is None:
            place = stack.enter_context(writable_folder(Path("reproduced"))) / f"{name}.png"
        else:
            place = require_place(output)
            if place.suffix.lower() != ".png":
                raise ValueError(f"pictures of experiments are PNG, got {output}; give a name that ends in .png")
        started = time.perf_counter()
        with stage_progress() as advance:
            report = EXPERIMENTS[name](seed=seed, advance=advance)
        seconds = round(time.perf_counter() - started, 1)
        drawn = _draw(report, place)
    if json:
        print_json({**report.figures, "seconds": seconds})
    _tell(report, seconds, drawn, to_people=not json)
    return 1 if report.failures else 0


def _draw(report: Report, place: Path) -> str:
    """Write the picture, whole or not at all; what became of it, for people."""
    temporary = place.with_name(f".{place.name}.new")
    try:
        report.draw(temporary)
        temporary.replace(place)
    except ImportError as error:
        return f"no picture: {error}"
    finally:
        temporary.unlink(missing_ok=True)
    return f"picture: {place}"


def _tell(report: Report, seconds: float, drawn: str, *, to_people: bool) -> None:
    tell = print if to_people else say
    for line in report.lines:
        tell(line)
    for note in report.notes:
        tell(f"note: {note}")
    tell(f"{seconds} s; {drawn}")
    for failure in report.failures:
        say(f"unstir: not shown: {failure}")
