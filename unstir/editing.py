"""Editing: the pictures that a drawing starts from, and what of them is kept.

Knows: what an edit says, how pictures are named by their content, canvases, which pixels are painted.
Does not know: requests, prompts, how anything is drawn.

A request holds no pixels. It names each picture by the sha256 of its pixels, and whoever has it drawn gives the
pictures beside it, by that name: an ``Album``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

from unstir.conditioning.mask import painted, reduced
from unstir.config import choose
from unstir.data.aspect import covered, padded
from unstir.data.transforms import decode, decode_with_transparency, to_unit
from unstir.diffusion.denoiser import Denoiser
from unstir.diffusion.guidance import corrected, known_pixels
from unstir.diffusion.process import Process
from unstir.diffusion.samplers import RePaint, Sampler
from unstir.typing import Noise, X

Given = Image.Image | str | Path
"""A picture, or the file that holds it."""

Album = Mapping[str, Tensor]
"""Pictures (uint8, channels first) and masks (True is painted), by ``checksum``."""

FITS = ("crop", "pad")
"""How a picture is brought to a size: its middle is taken, or white is put around it."""

MAX_RESAMPLE = 100


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A picture, by its content.

    Args:
        sha256: as ``checksum`` says.
        name: where it was found, for whoever looks for it again; empty for a picture that was in no file.
    """

    sha256: str
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Edit:
    """What is done to a picture.

    Args:
        source: the picture.
        mask: what of it is painted; None is all.
        strength: the time of the schedule, 0 to 1, to which the picture is spoiled before it is drawn anew. 0 leaves
            it as it is; at 1 nothing of it is left, and the drawing starts from noise as one without a picture does.
        resample: how often each step is walked, to bring what is painted in harmony with what is kept; 1 is once.
        extend: pixels that the canvas is larger than the picture at its left, top, right and bottom; they are painted.
        fit: one of ``FITS`` if the picture is brought to the size of the request first, else empty.

    Raises:
        ValueError: if a number is out of its range, or a picture is both fitted and extended.
    """

    source: Reference
    mask: Reference | None = None
    strength: float = 1.0
    resample: int = 1
    extend: tuple[int, int, int, int] = (0, 0, 0, 0)
    fit: str = ""

    def __post_init__(self) -> None:
        """Refuse what is no edit."""
        if not 0 <= self.strength <= 1:
            raise ValueError(
                f"strength must be from 0 (the picture as it is) to 1 (nothing of it is left), got {self.strength:g}"
            )
        if not 1 <= self.resample <= MAX_RESAMPLE:
            raise ValueError(f"resample must be from 1 (each step once) to {MAX_RESAMPLE}, got {self.resample}")
        if len(self.extend) != 4 or min(self.extend) < 0:
            raise ValueError(
                "a canvas is extended by four numbers of pixels, left, top, right and bottom, got "
                f"{','.join(map(str, self.extend))}; for instance 0,0,32,0"
            )
        if self.fit:
            choose(self.fit, FITS, "fit")
        if self.fit and self.is_extended:
            raise ValueError("a picture is brought to a size or extended, not both; leave --fit or --extend out")
        if self.resample > 1 and self.mask is None and not self.is_extended:
            raise ValueError("resample brings what is painted in harmony with what is kept; give a mask or extend")

    @property
    def is_extended(self) -> bool:
        """Whether the canvas is larger than the picture."""
        return any(self.extend)


@dataclass(frozen=True, kw_only=True)
class Blend:
    """The other end of a way between two pictures, two prompts or both.

    Args:
        share: how far on the way, from 0 to 1.
        prompt: what is drawn at the other end; empty for the same.
        picture: what is there; the edit's source is at this end.

    Raises:
        ValueError: if the share is not in [0, 1].
    """

    share: float
    prompt: str = ""
    picture: Reference | None = None

    def __post_init__(self) -> None:
        """Refuse a place that is not on the way."""
        if not 0 <= self.share <= 1:
            raise ValueError(f"the share of the way is from 0 to 1, got {self.share}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Canvas:
    """What is drawn upon.

    Args:
        pixels: the picture; what is beside it is white.
        mask: True where it is painted; None is everywhere.
    """

    pixels: UInt8[Tensor, "3 h w"]
    mask: Bool[Tensor, "h w"] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.pixels.shape[2], self.pixels.shape[1]

    @property
    def is_kept(self) -> bool:
        """Whether there is nothing to paint."""
        return self.mask is not None and not bool(self.mask.any())

    def units(self) -> Float[Tensor, "1 3 h w"]:
        """The picture in [-1, 1]."""
        return to_unit(self.pixels)[None]

    def restored(self, drawn: UInt8[Tensor, "b 3 h w"]) -> UInt8[Tensor, "b 3 h w"]:
        """What was drawn where it is painted, and the very pixels of the picture elsewhere."""
        return drawn if self.mask is None else torch.where(self.mask.to(drawn.device), drawn, self.pixels.to(drawn))


@dataclass(frozen=True, kw_only=True, eq=False)
class Way:
    """How pictures are drawn.

    Args:
        x: where they start.
        times: of their steps.
        denoise: what is believed.
        sampler: how they move.
    """

    x: X
    times: tuple[float, ...]
    denoise: Denoiser
    sampler: Sampler[Any]

    def upon(self, canvas: Canvas, edit: Edit, process: Process, x0: X, noise: Noise) -> Self:
        """The way of an edit, from a way that starts in noise.

        It starts from the spoiled picture; what is not painted is known, and so is believed at every step. A latent
        whose cell holds a single painted pixel is painted.

        Args:
            canvas: what is drawn upon.
            edit: what is done.
            process: how the picture is spoiled.
            x0: the canvas in the space of the process.
            noise: that ``x`` was drawn with.
        """
        way = self
        if edit.strength < 1:
            start = process.schedule.at(torch.tensor(self.times[0], dtype=torch.float64))
            way = replace(way, x=process.marginal(x0, start).sample(noise))
        if canvas.mask is None:
            return way
        mask = reduced(canvas.mask, canvas.mask.shape[0] // x0.shape[-2])
        way = replace(way, denoise=corrected(way.denoise, known_pixels(x0, ~mask)))
        if edit.resample == 1:
            return way
        paints = mask.to(x0).expand(1, 1, -1, -1)
        return replace(way, sampler=RePaint(inner=way.sampler, known=x0, mask=paints, resamplings=edit.resample))


STRENGTH = 0.75
"""Of an edit that paints all of a picture, unless it is said."""


def asked(
    picture: Given,
    *,
    mask: Given | None = None,
    strength: float | None = None,
    resample: int = 1,
    extend: tuple[int, int, int, int] = (0, 0, 0, 0),
    fit: str = "",
) -> tuple[Edit, dict[str, Tensor]]:
    """An edit of a picture, and the album of what it names.

    Args:
        picture: an image, or the file that holds it.
        mask: as ``painted`` reads it.
        strength: None is 1 where only a part is painted, else ``STRENGTH``.
        resample: as in ``Edit``.
        extend: as in ``Edit``.
        fit: as in ``Edit``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: as ``Edit``, or if a file is no picture.
    """
    album: dict[str, Tensor] = {}
    is_part = mask is not None or any(extend)
    edit = Edit(
        source=referred(read_picture(picture), picture, album),
        mask=None if mask is None else referred(read_mask(mask), mask, album),
        strength=(1.0 if is_part else STRENGTH) if strength is None else strength,
        resample=resample,
        extend=extend,
        fit=fit,
    )
    return edit, album


def canvas_of(edit: Edit, album: Album, width: int, height: int) -> Canvas:
    """The canvas of an edit.

    Args:
        edit: what is done.
        album: holds its pictures.
        width: of the canvas.
        height: of the canvas.

    Raises:
        ValueError: if a picture is missing, is not what it should be, the mask has another size than the picture, or
            the canvas another size than the one asked for.
    """
    pixels = look_up(edit.source, album, "picture")
    mask = None if edit.mask is None else look_up(edit.mask, album, "mask")
    if mask is not None and mask.shape != pixels.shape[1:]:
        raise ValueError(f"the mask is {_size(mask)}, the picture {_size(pixels)}; give a mask of the picture's size")
    if edit.fit:
        pixels = _fitted(pixels, edit.fit, width, height)
        if mask is not None:
            grey = mask.to(torch.uint8).mul(255).expand(3, -1, -1)
            # Around a padded picture there is white, and white is painted.
            mask = _fitted(grey, edit.fit, width, height)[0] > 0
    if edit.is_extended:
        left, top, right, bottom = edit.extend
        around = (left, right, top, bottom)
        kept = torch.zeros(pixels.shape[1:], dtype=torch.bool) if mask is None else mask
        pixels = torch.nn.functional.pad(pixels, around, value=255)
        mask = torch.nn.functional.pad(kept, around, value=True)
    canvas = Canvas(pixels=pixels, mask=mask)
    if canvas.size != (width, height):
        raise ValueError(
            f"the request is for {width}x{height}, but the canvas is {_size(pixels)}; bring the picture to that size "
            "with --fit crop or --fit pad"
        )
    return canvas


def canvas_size(edit: Edit, album: Album) -> tuple[int, int]:
    """Width and height of the canvas of an edit that brings the picture to no other size."""
    pixels = look_up(edit.source, album, "picture")
    left, top, right, bottom = edit.extend
    return pixels.shape[2] + left + right, pixels.shape[1] + top + bottom


def look_up(reference: Reference, album: Album, what: str) -> Tensor:
    """A picture of the album.

    Raises:
        ValueError: if it is not there.
    """
    if reference.sha256 not in album:
        name = f" ({reference.name})" if reference.name else ""
        raise ValueError(
            f"the request needs the {what}{name} whose pixels have sha256 {reference.sha256[:10]}..., and it was not "
            "given"
        )
    return album[reference.sha256]


def read_picture(given: Given) -> UInt8[Tensor, "3 h w"]:
    """The pixels of a picture as a viewer shows it, without transparency.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no picture, a damaged one, or too large.
    """
    image = given if isinstance(given, Image.Image) else None
    if image is None:
        data = _bytes_of(Path(str(given)), "picture")
        try:
            image = decode(data)
        except ValueError as error:
            raise ValueError(f"{given}: {error}") from None
    elif image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return torch.from_numpy(numpy.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


def read_mask(given: Given) -> Bool[Tensor, "h w"]:
    """What a mask paints: see ``painted``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no picture, a damaged one, or too large.
    """
    if isinstance(given, Image.Image):
        return painted(given)
    data = _bytes_of(Path(str(given)), "mask")
    try:
        return painted(decode_with_transparency(data))
    except ValueError as error:
        raise ValueError(f"{given}: {error}") from None


def referred(content: Tensor, given: Given, album: dict[str, Tensor]) -> Reference:
    """The name of a picture or mask by its content; it is put into the album."""
    reference = Reference(
        sha256=checksum(content), name="" if isinstance(given, Image.Image) else str(Path(str(given)).absolute())
    )
    album[reference.sha256] = content
    return reference


def checksum(content: Tensor) -> str:
    """The sha256 of a picture's pixels or of what a mask paints: the shape as text, then row by row a byte a value."""
    last = content.movedim(0, -1) if content.ndim == 3 else content
    data = last.to(torch.uint8).contiguous().numpy().tobytes()
    return hashlib.sha256(repr(tuple(last.shape)).encode() + data).hexdigest()


def shares(frames: int) -> list[float]:
    """So many places on a way, evenly, both ends included.

    Raises:
        ValueError: if frames < 2.
    """
    if frames < 2:
        raise ValueError(f"a way has two ends: it needs at least 2 frames, got {frames}")
    return [i / (frames - 1) for i in range(frames)]


def recovered(reference: Reference, given: Path | None, what: str, option: str) -> Tensor:
    """A picture or mask that was named by its content: the one that is given, or the one that is still where it was.

    Args:
        reference: what is looked for.
        given: where it is now, if that is said.
        what: "picture" or "mask".
        option: how to say where it is.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not there any more, or its content is another.
    """
    path = given or (Path(reference.name) if reference.name else None)
    if path is None:
        raise ValueError(f"this was drawn from a {what} that was in no file; give it with {option}")
    if given is None and not path.is_file():
        raise ValueError(f"the {what} that this was drawn from is not at {path} any more; give it with {option}")
    content = (read_mask if what == "mask" else read_picture)(path)
    if checksum(content) != reference.sha256:
        remedy = "give the right one" if given else "give the old one"
        raise ValueError(
            f"{path} is not the {what} that this was drawn from: its pixels have sha256 {checksum(content)[:10]}..., "
            f"not {reference.sha256[:10]}...; {remedy} with {option}"
        )
    return content


def _bytes_of(path: Path, what: str) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"there is no {what} {path}" if not path.exists() else f"{path} is a folder, no {what}")
    return path.read_bytes()


def _fitted(pixels: UInt8[Tensor, "3 h w"], fit: str, width: int, height: int) -> UInt8[Tensor, "3 h w"]:
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    if fit == "crop":
        return torch.from_numpy(covered(image, width, height))
    side = max(width, height)
    whole = Image.fromarray(padded(image, side).transpose(1, 2, 0))
    return torch.from_numpy(covered(whole, width, height))


def _size(content: Tensor) -> str:
    return f"{content.shape[-1]}x{content.shape[-2]}"
