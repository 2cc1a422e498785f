"""From the bytes of a picture file to the numbers a model is trained on, and back.

Knows: orientation, transparency, bit depths and whatever else makes a decoder show a wrong picture; uint8 and [-1, 1].
Does not know: where pictures are kept (that is ``records.py``), their shapes (``aspect.py``), captions, models.
Nothing here is random.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import ExifTags, Image
from torch import Tensor

from unstir.data.aspect import ASPECTS, bucket_of, covered, padded, require_size
from unstir.data.aspect import square as square
from unstir.data.records import PictureSet, Record, natural, storage_order

MAX_PIXELS = 89_478_485  # where Pillow starts to warn of decompression bombs: 256 MiB as 24-bit RGB
MAX_BROKEN = 0.05
"""The largest share of broken pictures that a training puts up with, unless it is told to."""

_WORKERS = 2
_CHUNK = 64  # pictures whose bytes are in memory at once
_CHUNK_BYTES = 256 * 2**20  # no more are read once there are so many

Pixels = UInt8[np.ndarray, "3 height width"]
Shape = Callable[[Image.Image], Pixels]
Progress = Callable[[int, int], None]

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
        ValueError: if the file is empty, truncated or not a picture, has floating-point samples or colours in LAB, or
            has more than 89,478,485 pixels.
    """
    return _flatten(decode_with_transparency(data), background)


def decode_with_transparency(data: bytes) -> Image.Image:
    """The same with the transparency that it has, in whatever mode holds it.

    Raises:
        ValueError: as `decode`.
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
    if image.mode == "LAB":
        raise ValueError("The picture has its colours in LAB; save it as RGB.")
    try:
        image.load()
        return _turn_upright(_to_eight_bits(image), _orientation(image))
    except Exception as error:
        raise ValueError(f"The file of {len(data)} bytes is truncated or not a picture ({error}).") from None


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


def shape_of(aspect: str, size: int, multiple: int | None = None) -> Shape:
    """What brings a picture to its shape.

    Args:
        aspect: "crop" takes the middle (`square`), "pad" puts white around the whole (`padded`), "buckets" covers the
            bucket that `bucket_of` gives, and crops to it.
        size: width and height in pixels; of buckets those of the square one.
        multiple: what the sides of buckets are multiples of, in pixels; None where there are to be squares only.

    Raises:
        ValueError: if there is no such aspect, size < 1, or size is no multiple of `multiple`.
    """
    if aspect == "buckets" and multiple is not None:
        bucket_of(1, 1, size, multiple)  # refuses what is wrong with the two before anything is read
        return partial(_cover, size=size, multiple=multiple)
    shapes = {"crop": square, "pad": padded}
    if aspect not in shapes:
        instead = "; load_buckets gives pictures of several shapes" if aspect in ASPECTS else ""
        raise ValueError(f"aspect is {aspect!r}, expected crop or pad{instead}.")
    require_size(size)
    return partial(shapes[aspect], size=size)


def load_pictures(
    pictures: PictureSet,
    size: int,
    *,
    aspect: str = "crop",
    progress: Progress | None = None,
    max_broken: float = MAX_BROKEN,
) -> tuple[UInt8[Tensor, "n 3 size size"], PictureSet]:
    """Decode a whole set into memory, each picture as `decode` gives it, brought to one square.

    Args:
        pictures: the set.
        size: width and height in pixels.
        aspect: what is done to pictures that are not square: "crop" takes the middle (`square`), "pad" puts white
            around the whole (`padded`). For "buckets" there is `load_buckets`.
        progress: called with (pictures done, pictures in all).
        max_broken: the largest share of pictures that may be broken; these are left out.

    Returns:
        The pictures, 0 to 255, and the set they are of: row i of the one is record i of the other. Broken pictures
        are in its ``skipped``, with the reason.

    Raises:
        ValueError: if the set is empty, size < 1, there is no such aspect, more than max_broken of the pictures are
            broken, or all are.
    """
    shape = shape_of(aspect, size)
    loaded = torch.empty((len(pictures.records), 3, size, size), dtype=torch.uint8)

    def keep(index: int, pixels: Pixels) -> None:
        loaded[index] = torch.as_tensor(pixels)

    kept, rest = _decode_all(pictures, shape, keep, progress, max_broken)
    return loaded if len(kept) == len(loaded) else loaded[kept], rest


def load_buckets(
    pictures: PictureSet,
    size: int,
    multiple: int,
    *,
    progress: Progress | None = None,
    max_broken: float = MAX_BROKEN,
) -> tuple[list[UInt8[Tensor, "3 height width"]], PictureSet]:
    """Decode a whole set into memory, each picture scaled to cover the bucket `bucket_of` gives it, and cropped to it.

    Args:
        pictures: the set.
        size: side of the square bucket, in pixels; the others have about as many pixels.
        multiple: what all sides are multiples of, in pixels.
        progress: called with (pictures done, pictures in all).
        max_broken: the largest share of pictures that may be broken; these are left out.

    Returns:
        The pictures, 0 to 255, in as many shapes as there are buckets, and the set they are of: number i of the one
        is record i of the other. Square pictures are as from `load_pictures`.

    Raises:
        ValueError: if the set is empty, size is no multiple of `multiple`, more than max_broken of the pictures are
            broken, or all are.
    """
    shape = shape_of("buckets", size, multiple)
    loaded: dict[int, Tensor] = {}

    def keep(index: int, pixels: Pixels) -> None:
        loaded[index] = torch.as_tensor(pixels)

    kept, rest = _decode_all(pictures, shape, keep, progress, max_broken)
    return [loaded[index] for index in kept], rest


def _decode_all(
    pictures: PictureSet,
    shape: Shape,
    keep: Callable[[int, Pixels], None],
    progress: Progress | None,
    max_broken: float,
) -> tuple[list[int], PictureSet]:
    """Hand every picture that can be decoded to `keep`; the numbers of these, and the set without the others."""
    total = len(pictures.records)
    if total == 0:
        raise ValueError(f"There are no pictures to load from {pictures.root}.")
    order = {record.key: index for index, record in enumerate(pictures.records)}
    broken: dict[int, str] = {}
    done = 0
    with ThreadPoolExecutor(max_workers=_WORKERS) as pool:
        # Read here, in the order the files lie on disk; only the decoding, which takes the time, is shared out.
        for chunk in _read_chunks(pictures):
            results = pool.map(partial(decode_shaped, shape=shape), [data for _, data in chunk])
            for (record, _), result in zip(chunk, results, strict=True):
                index = order[record.key]
                if isinstance(result, str):
                    broken[index] = result
                else:
                    keep(index, result)
            _refuse_broken(pictures, broken, max_broken)
            done += len(chunk)
            if progress is not None:
                progress(done, total)
    kept = [index for index in range(total) if index not in broken]
    if not broken:
        return kept, pictures
    skipped = [*pictures.skipped, *((pictures.records[index].key, reason) for index, reason in broken.items())]
    rest = replace(
        pictures,
        records=tuple(pictures.records[index] for index in kept),
        skipped=tuple(sorted(skipped, key=lambda pair: natural(pair[0]))),
    )
    return kept, rest


def _read_chunks(pictures: PictureSet) -> Iterator[list[tuple[Record, bytes | str]]]:
    """All records with their bytes, or the reason why there are none; a few at a time, fewer where they are large."""
    chunk: list[tuple[Record, bytes | str]] = []
    held = 0
    for record in storage_order(pictures.records):
        data = _read(pictures, record)
        chunk.append((record, data))
        held += len(data)
        if len(chunk) == _CHUNK or held >= _CHUNK_BYTES:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


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


def decode_shaped(data: bytes | str, shape: Shape) -> Pixels | str:
    """A picture of a file in its shape, or the reason why there is none: that of the bytes where they are a reason."""
    if isinstance(data, str):
        return data
    try:
        return shape(decode(data))
    except ValueError as error:
        return str(error)


def _cover(image: Image.Image, size: int, multiple: int) -> Pixels:
    return covered(image, *bucket_of(image.width, image.height, size, multiple))


def _refuse_broken(pictures: PictureSet, broken: dict[int, str], max_broken: float) -> None:
    total = len(pictures.records)
    if len(broken) <= max_broken * total and len(broken) < total:
        return
    first: Sequence[str] = [f"{pictures.records[index].key}: {broken[index]}" for index in sorted(broken)[:3]]
    raise ValueError(
        f"{len(broken)} of the {total} pictures in {pictures.root} cannot be decoded ({len(broken) / total:.1%}, and at"
        f" most {max_broken:.1%} may be); mend or remove them, or allow more with --max-broken: {' '.join(first)}"
    )
