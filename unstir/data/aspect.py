"""Bring pictures of any shape to the shapes that a network takes: cropped or padded squares, or buckets.

Knows: rectangles, their ratios, Lanczos.
Does not know: files, captions, models. Nothing here is random.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import UInt8
from PIL import Image

ASPECTS = {  # what is done to a picture that is not square
    "crop": "centre crop",
    "pad": "white is put around them",
    "buckets": "each is cropped to the nearest of the shapes that have the area of the square",
}

_WIDEST = 2  # long side by short side of a bucket, at most
_WHITE = (255, 255, 255)


def square(image: Image.Image, size: int) -> UInt8[np.ndarray, "3 size size"]:
    """The middle of a picture, cropped to a square and resized with Lanczos (antialiased) to size x size.

    Returns:
        Channels, rows, columns; 0 to 255. A picture that is size x size already is not changed in any bit.

    Raises:
        ValueError: if size < 1.
    """
    require_size(size)
    side = min(image.size)
    if image.size != (side, side):
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    return _pixels(_resized(image, (size, size)))


def padded(image: Image.Image, size: int) -> UInt8[np.ndarray, "3 size size"]:
    """The whole of a picture, resized with Lanczos to fit into size x size, in the middle of white.

    Returns:
        Channels, rows, columns; 0 to 255. A square picture comes out as from `square`.

    Raises:
        ValueError: if size < 1.
    """
    require_size(size)
    longest = max(image.size)
    width, height = (max(1, round(side * size / longest)) for side in image.size)
    image = _resized(image.convert("RGB"), (width, height))
    if (width, height) != (size, size):
        ground = Image.new("RGB", (size, size), _WHITE)
        ground.paste(image, ((size - width) // 2, (size - height) // 2))
        image = ground
    return _pixels(image)


def bucket_of(width: int, height: int, size: int, multiple: int) -> tuple[int, int]:
    """The shape that a picture is trained in: of all buckets the one whose ratio is nearest to the picture's.

    The buckets are the rectangles with sides that are multiples of `multiple`, of at most size * size pixels and at
    most twice as long as short, where every short side has its longest possible long side. Ratios are compared by
    their logarithm, so that a picture and the same picture turned by a quarter get the same bucket, turned.

    Args:
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        size: side of the square bucket, in pixels.
        multiple: what all sides are multiples of, in pixels: the network's patch or its whole shrinking.

    Returns:
        (width, height) in pixels.

    Raises:
        ValueError: if any of the numbers is below 1, or size is not a multiple of `multiple`.
    """
    if min(width, height) < 1:
        raise ValueError(f"The picture has {width} x {height} pixels, expected 1 or more each way.")
    require_size(size)
    if multiple < 1 or size % multiple:
        raise ValueError(
            f"size is {size} and multiple is {multiple}; size has to be a multiple of it, for instance"
            f" {max(1, round(size / max(1, multiple))) * max(1, multiple)}."
        )
    wanted = math.log(max(width, height) / min(width, height))
    shapes = [(size * size // short // multiple * multiple, short) for short in range(multiple, size + 1, multiple)]
    shapes = [(long, short) for long, short in shapes if long <= _WIDEST * short]
    long, short = min(shapes, key=lambda shape: (abs(math.log(shape[0] / shape[1]) - wanted), -shape[1]))
    return (long, short) if width >= height else (short, long)


def covered(image: Image.Image, width: int, height: int) -> UInt8[np.ndarray, "3 height width"]:
    """The largest middle part of a picture that has the ratio width : height, resized with Lanczos to that size.

    Returns:
        Channels, rows, columns; 0 to 255. For a square it is what `square` gives.

    Raises:
        ValueError: if width or height is below 1.
    """
    require_size(min(width, height))
    # In whole pixels, as `square` has it, so that what is not resized is not changed in any bit.
    wide = min(image.width, max(1, round(image.height * width / height)))
    high = min(image.height, max(1, round(image.width * height / width)))
    if (wide, high) != image.size:
        left, top = (image.width - wide) // 2, (image.height - high) // 2
        image = image.crop((left, top, left + wide, top + high))
    return _pixels(_resized(image, (width, height)))


def require_size(size: int) -> None:
    """Refuse a size that is none.

    Raises:
        ValueError: if size < 1.
    """
    if size < 1:
        raise ValueError(f"size is {size}, expected 1 or more pixels.")


def _resized(image: Image.Image, shape: tuple[int, int]) -> Image.Image:
    return image if image.size == shape else image.resize(shape, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _pixels(image: Image.Image) -> UInt8[np.ndarray, "3 height width"]:
    return np.ascontiguousarray(np.asarray(image.convert("RGB"), dtype=np.uint8).transpose(2, 0, 1))
