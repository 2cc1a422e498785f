"""``unstir redo``: the same picture again, from its own metadata.

Knows: where the new picture goes.
Does not know: how a picture is drawn.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from unstir.cli.output import is_folder, print_json
from unstir.cli.sample import describe, draw

if TYPE_CHECKING:
    from unstir.editing import Album
    from unstir.pipeline import Request


def redo(
    picture: Path,
    *,
    output: Annotated[str | None, Parameter(name=["-o", "--output"])] = None,
    model: str | None = None,
    source: Path | None = None,
    mask: Path | None = None,
    between: Path | None = None,
    device: str = "auto",
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Draw a picture again, pixel for pixel on the same device, from the recipe that it carries.

    Example: unstir redo pictures/0000-a-red-heart.png

    Parameters
    ----------
    picture
        A PNG that unstir drew.
    output
        A folder or a file; without it NAME-redo.png beside the picture. No file is ever written over.
    model
        Where the model is now, if it was moved; it must be the same model.
    source
        Of an edit: where the picture is now that it was drawn from, if it was moved; its pixels must be the same.
    mask
        Of an edit: where its mask is now.
    between
        Of a way between pictures: where the other one is now.
    device
        auto, cpu, cuda, ...
    json
        Print one JSON object instead of text.
    """
    from unstir.metadata import read_recipe
    from unstir.pipeline import load

    recipe = read_recipe(picture)
    pipe = load(recipe.model if model is None else model, device=device)
    if pipe.model.checksum != recipe.checksum:
        raise ValueError(
            f"{picture} was drawn by another model: its weights had sha256 {recipe.checksum[:10]}..., those of "
            f"{pipe.name} have {pipe.model.checksum[:10]}...; give the right one with --model"
        )
    album = _album(recipe.request, source, mask, between)
    path = _target(picture, output)
    result = draw(pipe, [recipe.request], [path], batch=1, album=album)[0]
    if json:
        print_json({"picture": describe(result, path), "source": str(picture.resolve())})
        return
    print(f"drawn again, seed {result.request.seed}, {result.seconds:.2f} s: {path.resolve()}")


def _album(request: Request, source: Path | None, mask: Path | None, between: Path | None) -> Album:
    """The pictures that a request names, each seen to be the one."""
    from unstir.editing import recovered

    edit, blend = request.edit, request.blend
    named = (
        ("source", "picture", source, None if edit is None else edit.source),
        ("mask", "mask", mask, None if edit is None else edit.mask),
        ("between", "picture", between, None if blend is None else blend.picture),
    )
    for option, _, given, reference in named:
        if given is not None and reference is None:
            raise ValueError(f"this picture was drawn without any {option}; leave --{option} out")
    return {
        reference.sha256: recovered(reference, given, what, f"--{option}")
        for option, what, given, reference in named
        if reference is not None
    }


def _target(picture: Path, output: str | None) -> Path:
    if output is not None and not is_folder(output):
        if Path(output).exists():
            raise FileExistsError(f"{output} exists, and redo never writes over a file; give another name")
        return Path(output)
    folder = picture.parent if output is None else Path(output)
    names = (f"{picture.stem}-redo{'' if i == 1 else f'-{i}'}.png" for i in range(1, 10_000))
    return next(folder / name for name in names if not (folder / name).exists())
