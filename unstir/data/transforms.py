"""From the bytes of a picture file to the numbers a model is trained on, and back.

Knows: orientation, transparency, bit depths and whatever else makes a decoder show a wrong picture; uint8 and [-1, 1].
Does not know: where pictures are kept (that is ``folder.py``), captions, models. Nothing here is random.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import ExifTags, Image
from torch import Tensor

from unstir.data.folder import PictureSet, Record, natural, storage_order

MAX_PIXELS = 89_478_485  # where Pillow starts to warn of decompression bombs: 256 MiB as 24-bit RGB

_WORKERS = 2
_CHUNK = 64  # pictures whose bytes are in memory at once

# EXIF orientation -> what turns the stored picture into the one that was seen.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(data: bytes, *, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """The picture in a file as a viewer shows it: RGB, 8 bits, upright, without transparency.

    The kind of file is told by its content. Of an animation the first frame is taken. 16-bit grey is scaled to 8 bits;
    EXIF orientation is applied, and a corrupt EXIF block counts as none.

    Args:
        data: the content of the file.
        background: the colour that shows through transparent parts.

    Raises:
        ValueError: if the file is empty, truncated or not a picture, has floating-point samples, or has more than
            89,478,485 pixels.
    """
    if not data:
        raise ValueError("The file is empty (0 bytes); it is truncated or not a picture.")
    try:
        image = Image.open(io.BytesIO(data))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(_too_large("more")) from None
    except Exception:  # the readers of Pillow's many formats raise nearly anything on broken input
        raise ValueError(f"The file of {len(data)} bytes is truncated or not a picture.") from None
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(_too_large(f"{image.width} x {image.height}"))
    if image.mode == "F":
        raise ValueError("The picture has floating-point samples, whose white is not known; save it with 8 or 16 bits.")
    try:
        image.load()
        return _flatten(_turn_upright(_to_eight_bits(image), _orientation(image)), background)
    except Exception as error:
        raise ValueError(f"The file of {len(data)} bytes is truncated or not a picture ({error}).") from None


def square(image: Image.Image, size: int) -> UInt8[np.ndarray, "3 size size"]:
    """The middle of a picture, cropped to a square and resized with Lanczos (antialiased) to size x size.

    Returns:
        Channels, rows, columns; 0 to 255. A picture that is size x size already is not changed in any bit.

    Raises:
        ValueError: if size < 1.
    """
    if size < 1:
        raise ValueError(f"size is {size}, expected 1 or more pixels.")
    side = min(image.size)
    if image.size != (side, side):
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    if side != size:
        image = image.resize((size, size), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return np.ascontiguousarray(np.asarray(image.convert("RGB"), dtype=np.uint8).transpose(2, 0, 1))


def to_unit(pixels: UInt8[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """8-bit pixels as a model sees them: x / 127.5 - 1.

    Returns:
        The same shape on the same device, float32 in [-1, 1].

    Raises:
        TypeError: if pixels is not uint8.
    """
    if pixels.dtype != torch.uint8:
        raise TypeError(f"pixels are {pixels.dtype}, expected torch.uint8.")
    return pixels.to(torch.float32) / 127.5 - 1.0


def to_bytes(x: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """8-bit pixels of numbers in [-1, 1]: floor(127.5 (x + 1) + 1/2), with what lies outside clamped. Undoes `to_unit`.

    Returns:
        The same shape on the same device, uint8. Not-a-number becomes 0 (black).

    Raises:
        TypeError: if x is not floating point.
    """
    if not x.is_floating_point():
        raise TypeError(f"x is {x.dtype}, expected floating point in [-1, 1].")
    # Half precision has fewer than 256 steps near 1; the arithmetic is at least float32.
    wide = x.to(torch.float32) if x.dtype != torch.float64 else x
    scaled = torch.nan_to_num(wide, nan=-1.0).clamp(-1.0, 1.0).add(1.0).mul(127.5)
    return scaled.add(0.5).floor().to(torch.uint8)


def load_pictures(
    pictures: PictureSet,
    size: int,
    *,
    progress: Callable[[int, int], None] | None = None,
    max_broken: float = 0.05,
) -> tuple[UInt8[Tensor, "n 3 size size"], PictureSet]:
    """Decode a whole set into memory, each picture as `decode` and `square` give it.

    Args:
        pictures: the set.
        size: width and height in pixels.
        progress: called with (pictures done, pictures in all).
        max_broken: the largest share of pictures that may be broken; these are left out.

    Returns:
        The pictures, 0 to 255, and the set they are of: row i of the one is record i of the other. Broken pictures
        are in its ``skipped``, with the reason.

    Raises:
        ValueError: if the set is empty, size < 1, more than max_broken of the pictures are broken, or all are.
    """
    total = len(pictures.records)
    if total == 0:
        raise ValueError(f"There are no pictures to load from {pictures.root}.")
    if size < 1:
        raise ValueError(f"size is {size}, expected 1 or more pixels.")
    order = {record.key: index for index, record in enumerate(pictures.records)}
    stored = storage_order(pictures.records)
    loaded = torch.empty((total, 3, size, size), dtype=torch.uint8)
    broken: dict[int, str] = {}
    with ThreadPoolExecutor(max_workers=_WORKERS) as pool:
        for start in range(0, total, _CHUNK):
            chunk = stored[start : start + _CHUNK]
            # Read here, in the order the files lie on disk; only the decoding, which takes the time, is shared out.
            files = [_read(pictures, record) for record in chunk]
            for record, result in zip(chunk, pool.map(partial(_decode_square, size=size), files), strict=True):
                index = order[record.key]
                if isinstance(result, str):
                    broken[index] = result
                else:
                    loaded[index] = torch.as_tensor(result)
            _refuse_broken(pictures, broken, max_broken)
            if progress is not None:
                progress(start + len(chunk), total)
    if not broken:
        return loaded, pictures
    kept = [index for index in range(total) if index not in broken]
    skipped = [*pictures.skipped, *((pictures.records[index].key, reason) for index, reason in broken.items())]
    rest = replace(
        pictures,
        records=tuple(pictures.records[index] for index in kept),
        skipped=tuple(sorted(skipped, key=lambda pair: natural(pair[0]))),
    )
    return loaded[kept], rest


def _too_large(size: str) -> str:
    return f"The picture has {size} pixels, of which {MAX_PIXELS:,} are allowed; make it smaller."


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a corrupt block says nothing of the picture, which is whole
        return 1


def _turn_upright(image: Image.Image, orientation: int) -> Image.Image:
    method = _UPRIGHT.get(orientation)
    return image if method is None else image.transpose(method)


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit grey: v / 257, rounded. Pillow's own conversion would clip at 255."""
    if not image.mode.startswith("I"):
        return image
    values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
    grey = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    clear = image.info.get("transparency")
    if isinstance(clear, int):  # PNG names one of the 65536 greys as transparent
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def _flatten(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    below = Image.new("RGBA", image.size, (*background, 255))
    return Image.alpha_composite(below, image.convert("RGBA")).convert("RGB")


def _read(pictures: PictureSet, record: Record) -> bytes | str:
    """The bytes of a picture, or the reason why there are none."""
    try:
        return pictures.read(record)
    except (OSError, ValueError) as error:
        return str(error)


def _decode_square(data: bytes | str, size: int) -> UInt8[np.ndarray, "3 size size"] | str:
    if isinstance(data, str):
        return data
    try:
        return square(decode(data), size)
    except ValueError as error:
        return str(error)


def _refuse_broken(pictures: PictureSet, broken: dict[int, str], max_broken: float) -> None:
    total = len(pictures.records)
    if len(broken) <= max_broken * total and len(broken) < total:
        return
    first: Sequence[str] = [f"{pictures.records[index].key}: {broken[index]}" for index in sorted(broken)[:3]]
    raise ValueError(
        f"{len(broken)} of the {total} pictures in {pictures.root} cannot be decoded ({len(broken) / total:.1%}, and at"
        f" most {max_broken:.1%} may be); mend or remove them: {' '.join(first)}"
    )
