"""A folder of files as they come from cameras, web pages and broken disks: decoded right or listed, none crashes."""

import io
import os
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, features

from unstir.data import decode, find_pictures, load_buckets, load_pictures, summarize

RED, WHITE, HALF = (255, 0, 0), (255, 255, 255), (255, 127, 127)
NO_PICTURE = r"The file of [\d]+ bytes is truncated or not a picture"


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def red(mode: str = "RGB") -> Image.Image:
    return Image.new("RGB", (16, 16), RED).convert(mode)


def noisy() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG written by hand: colour 0 is grey, 2 RGB, 4 grey with alpha, 6 RGB with alpha."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def sixteen(colour: int, *samples: int) -> bytes:
    return png(4, 4, 16, colour, (b"\0" + struct.pack(f">{len(samples)}H", *samples) * 4) * 4)


def palette(transparency: object = None) -> bytes:
    image = red("RGB").convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    return saved(image) if transparency is None else saved(image, transparency=transparency)


def turned() -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image = Image.new("RGB", (32, 16), RED)
    image.paste((0, 0, 255), (0, 0, 16, 16))  # left as stored, above as seen
    return saved(image, "JPEG", exif=exif, quality=100, subsampling=0)


def animated(kind: str) -> bytes:
    options = {"lossless": True} if kind == "WEBP" else {}
    rest = [Image.new("RGB", (16, 16), colour) for colour in ((0, 255, 0), (0, 0, 255))]
    return saved(red(), kind, save_all=True, append_images=rest, duration=50, **options)


def bomb(side: int) -> bytes:
    return png(side, side, 1, 0, b"")


def lab() -> bytes:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return saved(ImageCms.profileToProfile(red(), *profiles, outputMode="LAB"), "TIFF")


def flipped_checksum() -> bytes:
    data = bytearray(saved(noisy()))
    data[1000] ^= 255
    return bytes(data)


def icc_of_nonsense() -> bytes:
    return saved(red(), "JPEG", icc_profile=b"no profile" * 20, quality=100)


# name -> (what the file holds, the colour at its middle as seen)
RIGHT: dict[str, tuple[bytes, tuple[int, int, int]]] = {
    "palette.png": (palette(), RED),
    "palette transparent.png": (palette(bytes([0] * 4)), WHITE),
    "palette half transparent.png": (palette(bytes([128] * 4)), HALF),
    "palette.gif": (saved(red(), "GIF"), RED),
    "cmyk.jpg": (saved(red("CMYK"), "JPEG", quality=100), RED),
    "cmyk.tif": (saved(red("CMYK"), "TIFF"), RED),
    "16 bit grey.png": (sixteen(0, 257 * 77), (77, 77, 77)),
    "16 bit grey.tif": (saved(Image.fromarray(np.full((8, 8), 257 * 77, dtype=np.uint16)), "TIFF"), (77, 77, 77)),
    "16 bit grey with alpha.png": (sixteen(4, 257 * 77, 0), WHITE),
    "16 bit RGB.png": (sixteen(2, 257 * 200, 257 * 100, 257 * 7), (200, 100, 7)),
    "16 bit RGB with alpha.png": (sixteen(6, 65535, 0, 0, 257 * 128), HALF),
    "grey.png": (saved(Image.new("L", (8, 8), 77)), (77, 77, 77)),
    "grey.jpg": (saved(Image.new("L", (8, 8), 77), "JPEG", quality=100), (77, 77, 77)),
    "grey with alpha.png": (saved(Image.new("LA", (8, 8), (0, 0))), WHITE),
    "one bit.png": (saved(Image.new("1", (8, 8), 1)), WHITE),
    "one bit.tif": (saved(Image.new("1", (8, 8), 0), "TIFF", compression="group4"), (0, 0, 0)),
    "half transparent.png": (saved(Image.new("RGBA", (8, 8), (255, 0, 0, 128))), HALF),
    "animated.gif": (animated("GIF"), RED),
    "animated.png": (animated("PNG"), RED),
    "a png.jpg": (saved(red()), RED),
    "a jpeg.png": (saved(red(), "JPEG", quality=100), RED),
    "a tiff.webp": (saved(red(), "TIFF"), RED),
    "turned.jpg": (turned(), (127, 0, 127)),
    "corrupt exif.jpg": (saved(red(), "JPEG", exif=b"Exif\0\0MM\0*\x7f\xff\xff\xff", quality=100), RED),
    "nonsense for a profile.jpg": (icc_of_nonsense(), RED),
    "one pixel.bmp": (saved(Image.new("RGB", (1, 1), RED), "BMP"), RED),
    "one row.png": (saved(Image.new("RGB", (3000, 1), RED)), RED),
    "more after the end.png": (saved(red()) + b"PK\x03\x04 a zip, for instance" * 10, RED),
    "SUFFIX.PNG": (saved(red()), RED),
    "name with\todd 👩\u200d🦳 signs.png": (saved(red()), RED),
}
if features.check("webp"):
    RIGHT["animated.webp"] = (animated("WEBP"), RED)

# name -> (what the file holds, the reason that is given)
BROKEN: dict[str, tuple[bytes, str]] = {
    "empty.png": (b"", r"The file is empty \(0 bytes\); it is truncated or not a picture\."),
    "half.png": (saved(noisy())[:6000], NO_PICTURE),
    "half.jpg": (saved(noisy(), "JPEG")[:1500], NO_PICTURE),
    "half.gif": (saved(noisy(), "GIF")[:1500], NO_PICTURE),
    "half.tif": (saved(noisy(), "TIFF")[:6000], NO_PICTURE),
    "only a header.png": (saved(red())[:33], NO_PICTURE),
    "flipped byte.png": (flipped_checksum(), NO_PICTURE),
    "text.png": (b"These are words and no picture.\n" * 20, NO_PICTURE),
    "page.jpg": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", NO_PICTURE),
    "drawing.png": (b'<svg xmlns="http://www.w3.org/2000/svg"></svg>', NO_PICTURE),
    "zeros.webp": (bytes(5000), NO_PICTURE),
    "no pixels.png": (png(0, 0, 8, 2, b""), NO_PICTURE),
    "large header.png": (
        bomb(9_600),
        r"The picture has (9600 x 9600|more) pixels, of which 89,478,485 are allowed; make",
    ),
    "bomb.png": (bomb(60_000), r"The picture has more pixels, of which 89,478,485 are allowed; make it smaller"),
    "floats.tif": (
        saved(Image.new("F", (4, 4), float("nan")), "TIFF"),
        r"floating-point samples, whose white is not kn",
    ),
    "lab.tif": (lab(), r"The picture has its colours in LAB; save it as RGB"),
    "not for Pillow.tif": (b"II*\0\x08\0\0\0" + bytes(200), NO_PICTURE),
}


def link_to_nothing(path: Path) -> None:
    path.symlink_to("nothing")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


# name -> (what makes it, the reason that is given when the folder is looked through)
UNREADABLE: dict[str, tuple[Callable[[Path], None], str]] = {
    "link.png": (link_to_nothing, r"a link that leads nowhere: No such file or directory"),
    "loop.png": (link_to_itself, r"a link that leads nowhere: Too many levels of symbolic links"),
    "folder.png": (os.mkdir, r"it is an empty folder"),
    "pipe.png": (os.mkfifo, r"it is a pipe, a socket or a device"),
    "phone.heic": (Path.touch, r"pictures of this kind are not read, save as PNG or JPEG: \.heic"),
    "notes.pdf": (Path.touch, r"not a picture: \.pdf"),
    "no suffix": (Path.touch, r"not a picture: no suffix"),
}

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),  # Pillow says what it thinks of them
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    root.mkdir()
    for name, (data, _) in (RIGHT | BROKEN).items():
        (root / name).write_bytes(data)
    for name, (make, _) in UNREADABLE.items():
        make(root / name)
    return root


def test_each_file_is_decoded_right_or_listed_with_its_reason(folder: Path) -> None:
    assert len(RIGHT | BROKEN | UNREADABLE) >= 40
    pictures = find_pictures(folder)
    loaded, kept = load_pictures(pictures, 8, max_broken=0.5)
    assert {record.key for record in kept.records} == set(RIGHT)
    for record, pixels in zip(kept.records, loaded, strict=True):
        expected = RIGHT[record.key][1]
        assert pixels[:, 4, 4].tolist() == pytest.approx(expected, abs=5) or "turned" in record.key, record.key
    reasons = dict(kept.skipped)
    assert set(reasons) == set(BROKEN) | set(UNREADABLE)
    for name, (_, reason) in (BROKEN | UNREADABLE).items():
        assert re.search(reason, reasons[name]), f"{name}: {reasons[name]}"
        assert "\n" not in reasons[name]


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_decoded_right(name: str) -> None:
    image = decode(RIGHT[name][0])
    assert image.mode == "RGB"
    if name == "turned.jpg":
        assert image.size == (16, 32)
        assert image.getpixel((8, 4)) == pytest.approx((0, 0, 255), abs=3)
        assert image.getpixel((8, 28)) == pytest.approx(RED, abs=3)
        return
    middle = np.asarray(image)[image.height // 2, image.width // 2]
    assert middle.tolist() == pytest.approx(RIGHT[name][1], abs=2)


@pytest.mark.parametrize("name", BROKEN)
def test_why_it_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=BROKEN[name][1]) as caught:
        decode(BROKEN[name][0])
    assert str(caught.value).endswith(".")


def test_the_other_ways_to_load_list_the_same(folder: Path) -> None:
    pictures = find_pictures(folder)
    _, cropped = load_pictures(pictures, 8, max_broken=0.5)
    _, padded = load_pictures(pictures, 8, aspect="pad", max_broken=0.5)
    _, buckets = load_buckets(pictures, 8, 2, max_broken=0.5)
    assert cropped == padded == buckets


def test_the_summary_of_such_a_folder(folder: Path) -> None:
    summary = summarize(find_pictures(folder))
    assert {"empty.png", "text.png", "page.jpg"} <= set(summary.unreadable)
    assert all("\n" not in line for line in summary.lines())


def test_names_that_are_not_utf8_are_listed(folder: Path) -> None:
    try:
        (folder / os.fsdecode(b"caf\xe9.png")).write_bytes(saved(red()))
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    assert dict(find_pictures(folder).skipped)["caf\\xe9.png"] == "its name is not UTF-8"


def test_files_that_may_not_be_read_are_listed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = find_pictures(folder)
    opened = Path.open

    def refusing(self: Path, *mode: str) -> object:
        if self.name == "grey.png":
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, *mode)

    monkeypatch.setattr(Path, "open", refusing)  # the tests may run as root, who may read all
    _, kept = load_pictures(pictures, 8, max_broken=0.5)
    assert "Permission denied" in dict(kept.skipped)["grey.png"]


def test_a_third_that_is_broken_stops_with_one_sentence(folder: Path) -> None:
    pictures = find_pictures(folder)
    total, broken = len(RIGHT) + len(BROKEN), len(BROKEN)
    match = (
        rf"^{broken} of the {total} pictures in .* cannot be decoded \({broken / total:.1%}, and at most 5\.0% may be\);"
        r" mend or remove them, or allow more with --max-broken: bomb\.png: The picture .* empty\.png: The file is "
    )
    with pytest.raises(ValueError, match=match) as caught:
        load_pictures(pictures, 8)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not features.check("webp"), reason="this Pillow has no WebP")
def test_half_a_webp() -> None:
    with pytest.raises(ValueError, match=NO_PICTURE):
        decode(saved(noisy(), "WEBP")[:500])
