"""The shelf: pixels are what the pipeline would read from a file, are looked after, and are few."""

from __future__ import annotations

import io
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from unstir.editing import checksum, read_mask, read_picture
from unstir.server.shelf import FORMATS, Shelf, mask_in, picture_in, size_in


def content(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


RANDOM = numpy.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (6, 9, 4), dtype=numpy.uint8)
CLEAR = Image.fromarray(PIXELS)  # with transparency
SOLID = Image.fromarray(PIXELS[..., :3].copy())


@pytest.mark.parametrize("kind", FORMATS)
def test_a_picture_and_a_mask_are_read_as_from_a_file(tmp_path: Path, kind: str) -> None:
    image = SOLID if kind in ("JPEG", "GIF") else CLEAR
    data = content(image, kind)
    path = tmp_path / "x"
    path.write_bytes(data)
    assert size_in(data) == (9, 6)
    assert torch.equal(read_picture(picture_in(data)), read_picture(path))
    assert torch.equal(read_mask(mask_in(data)), read_mask(path))


@pytest.mark.parametrize(
    "data", [b"", b"GIF89a", content(SOLID)[:40], content(SOLID, "BMP"), content(SOLID, "TIFF"), b"%!PS-Adobe-3.0\n"]
)
def test_no_other_kind_of_file_comes_in(data: bytes) -> None:
    for read in (picture_in, mask_in):
        with pytest.raises(ValueError, match=r"no picture|truncated"):
            read(data)


def test_an_album_reads_when_it_is_looked_up_and_once() -> None:
    read: list[str] = []

    def kept(name: str) -> bytes:
        read.append(name)
        return content(SOLID)

    sha256, mask = checksum(read_picture(SOLID)), checksum(read_mask(SOLID))
    shelf = Shelf(kept)
    album = shelf.album({sha256: ("up", "picture"), mask: ("up", "mask")})
    assert not read
    assert list(album) == [sha256, mask]
    assert sha256 in album
    assert "0" not in album
    assert torch.equal(album[sha256], read_picture(SOLID))
    assert torch.equal(album[mask], read_mask(SOLID))
    assert torch.equal(album[sha256], read_picture(SOLID))
    assert read == ["up", "up"]


def test_what_was_put_there_is_not_read() -> None:
    shelf = Shelf(lambda name: None)
    shelf.put({"sha": torch.ones(2)})
    assert torch.equal(shelf.album({"sha": ("x", "picture")})["sha"], torch.ones(2))


def test_only_the_last_ones_stay() -> None:
    shelf = Shelf(lambda name: None, most=20)
    for name in "abc":
        shelf.put({name: torch.zeros(10, dtype=torch.uint8)})
    album = shelf.album({name: ("x", "picture") for name in "abc"})
    assert len(album["b"]) == len(album["c"]) == 10
    with pytest.raises(ValueError, match="not there any more"):
        album["a"]
    shelf.put({"large": torch.zeros(100, dtype=torch.uint8)})  # one is always there
    assert len(shelf.album({"large": ("x", "picture")})["large"]) == 100


def test_an_upload_that_is_another_one_now_is_not_drawn_from() -> None:
    shelf = Shelf(lambda name: content(SOLID))
    with pytest.raises(ValueError, match="has changed"):
        shelf.album({"0" * 64: ("up", "picture")})["0" * 64]
