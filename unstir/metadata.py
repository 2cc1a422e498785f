"""Metadata: the recipe of a picture, inside its file.

Knows: which text chunks a PNG carries, and how they become a request again.
Does not know: how pictures are drawn.

Three chunks: ``parameters`` in the form that AUTOMATIC1111 made common (for other tools; lossy), ``unstir`` (JSON, the
truth) and ``Software``.
"""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from unstir import __version__
from unstir.config import from_dict, read_json, to_dict
from unstir.pipeline import Pipeline, Request

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

_CHUNK = "unstir"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that makes a picture.

    Args:
        request: what was asked.
        model: the model's name or path.
        checksum: sha256 of the model's weights.
        device: where it was drawn.
        version: of unstir.
        warnings: what the user was told.
    """

    request: Request
    model: str
    checksum: str
    device: str = "cpu"
    version: str = __version__
    warnings: tuple[str, ...] = ()


def recipe_of(pipe: Pipeline, request: Request, warnings: tuple[str, ...] = ()) -> Recipe:
    """What makes the picture of a request on this pipeline."""
    return Recipe(
        request=request,
        model=pipe.name if pipe.name == "builtin" else str(Path(pipe.name).resolve()),
        checksum=pipe.model.checksum,
        device=str(pipe.device),
        warnings=warnings,
    )


def parameters(recipe: Recipe) -> str:
    """The recipe in AUTOMATIC1111's form: prompt, negative prompt, and one last line of keys and values.

    Readers take the last line for the keys, so it holds no line break; values with a comma, colon or quote are quoted.
    """
    request = recipe.request
    values: dict[str, Any] = {
        "Steps": request.steps,
        "Sampler": request.sampler,
        "CFG scale": f"{request.guidance_scale:g}",
        "Seed": request.seed,
        "Size": f"{request.width}x{request.height}",
        "Model hash": recipe.checksum[:10],
        "Model": Path(recipe.model).name,
        "Version": f"unstir {recipe.version}",
    }
    if request.edit is not None and request.blend is None:
        values["Denoising strength"] = f"{request.edit.strength:g}"
    last = ", ".join(f"{key}: {_quoted(str(value))}" for key, value in values.items())
    negative = [f"Negative prompt: {request.negative}"] if request.negative else []
    return "\n".join([request.prompt, *negative, last])


def require_suffix(path: Path) -> None:
    """Refuse a file whose suffix is of no format that pictures are written in.

    Raises:
        ValueError: naming the suffixes that are.
    """
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        raise ValueError(
            f"cannot write a picture as {path.suffix or 'a file without suffix'}; use {', '.join(PICTURE_SUFFIXES)}"
        )


def save_picture(picture: Image.Image, path: Path, recipe: Recipe | None) -> None:
    """Write a picture, whole or not at all; a PNG carries the recipe.

    Args:
        picture: what to write.
        path: where; the suffix decides the format.
        recipe: what made it, or None to leave it out.

    Raises:
        ValueError: if the suffix is of no format that pictures are written in.
        OSError: if the file cannot be written.
    """
    require_suffix(path)
    temporary = path.with_name(f".{path.name}.new")
    options: dict[str, Any] = {}
    if path.suffix.lower() == ".png":
        options["pnginfo"] = _chunks(recipe)
    elif path.suffix.lower() in (".jpg", ".jpeg"):
        options.update(quality=95, subsampling=0)
    else:
        options.update(lossless=True)
    try:
        format_name = {".png": "PNG", ".webp": "WEBP"}.get(path.suffix.lower(), "JPEG")
        # A copy: Pillow keeps the options of a save that failed on the picture, and prefers them in the next.
        picture.copy().save(temporary, format_name, **options)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def as_png(picture: Image.Image, recipe: Recipe | None) -> bytes:
    """A picture as the content of a PNG file, the recipe in it: the very bytes that ``save_picture`` writes.

    Args:
        picture: what is written.
        recipe: what made it, or None to leave it out.
    """
    file = io.BytesIO()
    picture.copy().save(file, "PNG", pnginfo=_chunks(recipe))
    return file.getvalue()


def read_recipe(path: Path) -> Recipe:
    """The recipe that a picture carries.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no picture, carries no recipe of unstir, or one that cannot be read.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no picture {path}" if not path.exists() else f"{path} is a folder, not a picture"
        )
    return _recipe_in(path, str(path))


def recipe_in(data: bytes, name: str = "the picture") -> Recipe:
    """The recipe in the content of a picture's file.

    Args:
        data: the content.
        name: what errors call it.

    Raises:
        ValueError: as ``read_recipe``.
    """
    return _recipe_in(io.BytesIO(data), name)


def _recipe_in(file: BinaryIO | Path, name: str) -> Recipe:
    try:
        with Image.open(file) as picture:
            picture.load()
            chunks = cast("dict[str, Any]", picture.info)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise ValueError(f"{name} is no picture, or a damaged one") from None
    if _CHUNK not in chunks:
        raise ValueError(f"{name} carries no recipe of unstir; only PNGs that unstir drew (without --no-metadata) do")
    try:
        return from_dict(Recipe, read_json(str(chunks[_CHUNK]), f"the recipe in {name}"))
    except ValueError as error:
        raise ValueError(f"the recipe in {name} cannot be read: {error}") from None
    except RecursionError:
        raise ValueError(f"the recipe in {name} cannot be read: it is nested too deeply") from None


def _chunks(recipe: Recipe | None) -> PngInfo:
    info = PngInfo()
    if recipe is not None:
        info.add_itxt("parameters", parameters(recipe))
        info.add_itxt(_CHUNK, json.dumps(to_dict(recipe), ensure_ascii=False))
        info.add_text("Software", f"unstir {__version__}")
    return info


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ',:"\n') else value
