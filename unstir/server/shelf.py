"""Shelf: the pictures that jobs draw from, read when they are looked at.

Knows: how a picture that was uploaded becomes pixels again, how many of them are in memory.
Does not know: jobs, how uploads are kept, who draws.

A thousand jobs may wait that each draw from a large picture: in memory are only the last few that were looked at.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping

from PIL import Image
from torch import Tensor

from unstir.data.transforms import decode, decode_with_transparency
from unstir.editing import Album, checksum, read_mask, read_picture

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
"""Kinds of files that are read: decoders that are held against much broken input, and none that runs a program."""

_MOST_BYTES = 128 * 2**20


class Shelf:
    """Pixels by the sha256 of their content; any thread may look.

    Args:
        read: given the name of an upload, its content, or None if there is none.
        most: bytes of pixels in memory.
    """

    def __init__(self, read: Callable[[str], bytes | None], *, most: int = _MOST_BYTES) -> None:
        self._read = read
        self._most = most
        self._lock = threading.Lock()
        self._held: OrderedDict[str, Tensor] = OrderedDict()

    def put(self, album: Album) -> None:
        """Have pixels in memory for those who look soon."""
        with self._lock:
            for sha256, content in album.items():
                self._hold(sha256, content)

    def album(self, references: Mapping[str, tuple[str, str]]) -> Album:
        """The pictures of a job.

        Args:
            references: by the sha256 of the pixels, the name of the upload and "picture" or "mask".

        Returns:
            An album that reads a picture when it is looked up; ``ValueError`` if it is not what it was any more.
        """
        return _Lazy(self, dict(references))

    def look_up(self, sha256: str, name: str, what: str) -> Tensor:
        """Pixels.

        Raises:
            ValueError: if the upload is gone or has other pixels.
        """
        with self._lock:
            if sha256 in self._held:
                self._held.move_to_end(sha256)
                return self._held[sha256]
        data = self._read(name)
        if data is None:
            raise ValueError(f"the {what} that this is drawn from is not there any more; upload it again")
        content = read_mask(mask_in(data)) if what == "mask" else read_picture(picture_in(data))
        if checksum(content) != sha256:
            raise ValueError(f"the {what} that this is drawn from has changed; upload it again")
        with self._lock:
            self._hold(sha256, content)
        return content

    def _hold(self, sha256: str, content: Tensor) -> None:
        self._held[sha256] = content
        self._held.move_to_end(sha256)
        while len(self._held) > 1 and sum(each.nbytes for each in self._held.values()) > self._most:
            self._held.popitem(last=False)


class _Lazy(Mapping[str, Tensor]):
    def __init__(self, shelf: Shelf, references: Mapping[str, tuple[str, str]]) -> None:
        self._shelf, self._references = shelf, references

    def __getitem__(self, sha256: str) -> Tensor:
        return self._shelf.look_up(sha256, *self._references[sha256])

    def __contains__(self, sha256: object) -> bool:
        return sha256 in self._references

    def __iter__(self) -> Iterator[str]:
        return iter(self._references)

    def __len__(self) -> int:
        return len(self._references)


def size_in(data: bytes) -> tuple[int, int]:
    """Width and height of the picture in a file, without reading its pixels.

    Raises:
        ValueError: if it is of none of the ``FORMATS``.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.size
    except Exception:  # readers raise nearly anything on broken input
        raise ValueError(f"this is no picture, or a damaged one; send {', '.join(FORMATS)}") from None


def picture_in(data: bytes) -> Image.Image:
    """The picture in a file.

    Raises:
        ValueError: if there is none, it is damaged or too large.
    """
    size_in(data)  # only these kinds of files come any further
    return decode(data)


def mask_in(data: bytes) -> Image.Image:
    """The same with its transparency, which says something in a mask.

    Raises:
        ValueError: as ``picture_in``.
    """
    size_in(data)
    return decode_with_transparency(data)
