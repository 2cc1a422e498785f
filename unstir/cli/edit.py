"""``unstir edit``: pictures from pictures.

Knows: the options of editing.
Does not know: how anything is drawn, where pictures go.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from unstir.cli.options import Drawing, Others, Solving, Words, parse_extend, parse_size, settings_of
from unstir.cli.output import Whole
from unstir.cli.sample import finish, opened

if TYPE_CHECKING:
    from unstir.pipeline import Editing

_SOLVING, _WORDS, _OTHERS, _DRAWING = Solving(), Words(), Others(), Drawing()  # nothing is said


def edit(
    picture: Path | None = None,
    *,
    prompt: str | None = None,
    mask: Path | None = None,
    strength: float | None = None,
    extend: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    resample: Whole | None = None,
    fit: str | None = None,
    size: str | None = None,
    number: Annotated[Whole | None, Parameter(name=["-n", "--number", "--variations"])] = None,
    between: Path | None = None,
    to_prompt: str = "",
    frames: Whole | None = None,
    seed: Whole | None = None,
    tile: Annotated[bool, Parameter(negative=())] = False,
    solving: Solving = _SOLVING,
    words: Words = _WORDS,
    others: Others = _OTHERS,
    drawing: Drawing = _DRAWING,
) -> None:
    """Draw pictures from a picture: all of it anew, a part, more around it, or the way from it to another.

    Example: unstir edit heart.png --prompt "a blue heart" --mask mask.png --seed 0 -o edited/

    Parameters
    ----------
    picture
        The picture; its size is that of the result. None is needed for a way between two prompts.
    prompt
        What to draw; without it what the picture itself was drawn from, if it carries its recipe.
    mask
        A picture of the same size: what is not black is painted. Of a mask with transparency, what is not opaque.
    strength
        From 0 (the picture as it is) to 1 (nothing of it is left); 0.75, or 1 where only a part is painted.
    extend
        LEFT,TOP,RIGHT,BOTTOM: pixels of new canvas around the picture, which are painted.
    resample
        How often each step is walked, to bring what is painted in harmony with the rest; 1 is once.
    fit
        crop or pad: bring a picture of another size to the one that the model draws.
    size
        WIDTHxHEIGHT to fit to; without it the model's own.
    number
        Pictures; picture i has seed + i.
    between
        The picture at the other end of a way.
    to_prompt
        The prompt at the other end of a way.
    frames
        Pictures on the way, both ends included; 8.
    seed
        Of the first picture. Without it a fresh one is drawn, printed and stored.
    tile
        Draw what repeats without a seam: right meets left and bottom meets top. It takes four times as long.
    """
    is_way = between is not None or bool(to_prompt)
    _require_together(picture, between, is_way=is_way, frames=frames, number=number)
    settings: Editing = {**settings_of(solving, words, others), "tile": tile, "mask": mask, "strength": strength}
    settings["extend"], settings["resample"], settings["fit"] = parse_extend(extend), resample, fit
    settings["width"], settings["height"] = parse_size(size)
    if prompt is None:
        prompt, settings["syntax"] = _own_prompt(picture, settings.get("syntax"))
    pipe, clock = opened(drawing)
    if is_way:
        pictures = None if picture is None or between is None else (picture, between)
        requests, album = pipe.between_requests(
            prompt, to_prompt, pictures=pictures, frames=8 if frames is None else frames, seed=seed, **settings
        )
    else:
        assert picture is not None
        requests, album = pipe.edit_requests(picture, prompt, n=1 if number is None else number, seed=seed, **settings)
    finish(pipe, requests, drawing, clock, album=album, within=solving.within)


def _require_together(
    picture: Path | None, between: Path | None, *, is_way: bool, frames: int | None, number: int | None
) -> None:
    if picture is None and (between is not None or not is_way):
        raise ValueError("there is no picture; name one, or give --prompt and --to-prompt for a way between prompts")
    if picture is not None and is_way and between is None:
        raise ValueError("a way from a picture leads to another; give it with --between, or leave the picture out")
    if is_way and number is not None:
        raise ValueError(f"a way has frames, got --number {number}; say --frames")
    if frames is not None and not is_way:
        raise ValueError(f"frames are those of a way, got --frames {frames}; give --between or --to-prompt")


def _own_prompt(picture: Path | None, syntax: str | None) -> tuple[str, str | None]:
    """The prompt that a picture was drawn from, and its syntax unless another is said."""
    from unstir.metadata import read_recipe

    if picture is None:
        raise ValueError('there is no prompt; say what to draw with --prompt, for instance --prompt "a red heart"')
    if not picture.is_file():
        raise FileNotFoundError(f"there is no picture {picture}")
    try:
        request = read_recipe(picture).request
    except ValueError as error:
        raise ValueError(f"there is no prompt, and {error}; say what to draw with --prompt") from None
    return request.prompt, request.syntax if syntax is None else syntax
