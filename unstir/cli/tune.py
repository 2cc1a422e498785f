"""``unstir tune``: few steps, fitted to a model and kept in its folder.

Knows: which prompts they are fitted on, where they are kept, what is told.
Does not know: how they are fitted.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from unstir.cli.output import Whole, print_json, progress_bar

STEPS = (5, 8, 12)


def tune(
    model: str,
    *,
    steps: Annotated[tuple[Whole, ...], Parameter(consume_multiple=True, negative=())] = STEPS,
    prompts: Path | None = None,
    starts: Whole = 16,
    iterations: Whole = 150,
    guidance: float | None = None,
    seed: Whole = 0,
    device: str = "auto",
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Fit times and weights of a few steps to a model; it is then sampled with them by default.

    A model without tuned steps for a number of steps is sampled as its recipe says. More training makes new weights,
    and the steps of the old ones are not used with them.

    Example: unstir tune runs/mine --steps 5 8 12

    Parameters
    ----------
    model
        A model folder, or a run folder; its steps.json is written, and other numbers of steps in it are kept.
    steps
        Numbers of steps to fit, one after the other.
    prompts
        A text file with one prompt a line; without it, captions that the model was taught.
    starts
        Pictures that are fitted on.
    iterations
        Of each fit; every one costs about four walks of that many steps with all starts.
    guidance
        The guidance scale that the steps are for; without it the model's own.
    seed
        Of the pictures that are fitted on.
    device
        auto, cpu, cuda, ...
    json
        Print one JSON object instead of text.
    """
    from unstir.model import save_steps
    from unstir.pipeline import load, locate_model

    if not steps or min(steps) < 1 or starts < 1 or iterations < 1:
        raise ValueError(f"steps, starts and iterations are at least 1, got {list(steps)}, {starts} and {iterations}")
    pipe = load(model, device=device)
    chosen = _prompts(prompts, pipe.model.taught, starts)
    tuned = {own.num_steps: own for own in pipe.model.tuned}
    for count in dict.fromkeys(steps):
        with progress_bar(f"{count} steps", iterations, unit=" iterations") as told:
            tuned[count] = pipe.tune(
                count,
                chosen,
                seed=seed,
                guidance_scale=guidance,
                iterations=iterations,
                advance=lambda done, total, told=told: told(done),
            )
        kept = tuple(tuned[count] for count in sorted(tuned))
        save_steps(replace(pipe.model, tuned=kept), locate_model(model))
    if json:
        print_json({"model": str(locate_model(model).resolve()), "steps": sorted(tuned), "prompts": chosen})
        return
    print(f"tuned steps for {', '.join(map(str, sorted(tuned)))}: {locate_model(model).resolve()}/steps.json")


def _prompts(path: Path | None, taught: tuple[str, ...], count: int) -> list[str]:
    """So many prompts, spread evenly over what there is."""
    if path is not None and not path.is_file():
        raise FileNotFoundError(f"there is no file of prompts {path}")
    lines = list(taught) if path is None else [line.strip() for line in path.read_text("utf-8").splitlines()]
    lines = [line for line in lines if line]
    if not lines:
        where = "the model does not tell what it was taught" if path is None else f"{path} holds no prompt"
        raise ValueError(f"{where}; give a text file with one prompt a line with --prompts")
    return [lines[i * len(lines) // count % len(lines)] for i in range(count)]
