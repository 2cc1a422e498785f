"""Every kind of file that a decoder is known to show wrongly, and the way to numbers and back."""

import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image, features

from unstir.data import PictureSet, decode, find_pictures, load_buckets, load_pictures, to_bytes, to_unit

RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)


def four_corners(width: int = 48, height: int = 32) -> Image.Image:
    """Four quarters: red and green above, blue and yellow below; wider than high, so that a turn shows in the size."""
    image = Image.new("RGB", (width, height))
    for index, colour in enumerate((RED, GREEN, BLUE, YELLOW)):
        corner = (index % 2 * width // 2, index // 2 * height // 2)
        image.paste(colour, (*corner, corner[0] + width // 2, corner[1] + height // 2))
    return image


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixel(image: Image.Image, x: int = 0, y: int = 0) -> tuple[int, int, int]:
    assert image.mode == "RGB"
    return image.getpixel((x, y))


# What a camera stores for each orientation, so that turning it upright gives the picture back.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", list(STORED))
def test_every_exif_orientation_is_turned_upright_once(orientation: int, kind: str) -> None:
    if not features.check("webp") and kind == "WEBP":
        pytest.skip("this Pillow has no WebP")
    upright = four_corners()
    method = STORED[orientation]
    stored = upright if method is None else upright.transpose(method)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    got = decode(saved(stored, kind, exif=exif, **options))
    assert got.size == upright.size
    difference = np.abs(np.asarray(got, dtype=np.int16) - np.asarray(upright, dtype=np.int16))
    assert difference.max() <= (3 if kind == "JPEG" else 0)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow says what is wrong with it
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\x00\x00garbage that is no TIFF header",
        b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x09\x01",  # claims nine entries, has none
        b"Exif\x00\x00MM\x00*\x7f\xff\xff\xff",  # the directory is far outside
        b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x05\x00\x00\x00\x01\x00\x00\xff\xf0\x00\x00\x00\x00",
        b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x02\x00\x00\x00\x02x\x00\x00\x00\x00\x00\x00\x00",
        b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x63\x00\x00\x00\x00\x00\x00",
    ],
)
def test_corrupt_exif_counts_as_none(exif: bytes) -> None:
    assert decode(saved(four_corners(), "JPEG", exif=exif)).size == (48, 32)


def test_alpha_is_composed_over_the_background() -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (255, 0, 0, 128))
    white, green = decode(saved(image)), decode(saved(image), background=GREEN)
    assert pixel(white) == (255, 255, 255)
    assert pixel(green) == GREEN
    assert pixel(white, 1) == pytest.approx((255, 127, 127), abs=1)
    assert pixel(green, 1) == pytest.approx((128, 127, 0), abs=1)


def test_grey_with_alpha() -> None:
    image = Image.new("LA", (2, 1), (0, 0))
    image.putpixel((1, 0), (40, 255))
    got = decode(saved(image), background=(10, 20, 30))
    assert (pixel(got), pixel(got, 1)) == ((10, 20, 30), (40, 40, 40))


@pytest.mark.parametrize("mode", ["P", "RGB", "L", "1"])
def test_a_transparent_colour_without_an_alpha_channel(mode: str) -> None:
    image = Image.new("RGB", (2, 1), (0, 0, 0))
    image.putpixel((1, 0), (255, 255, 255))
    image = image.convert(mode)
    transparency = (0, 0, 0) if mode == "RGB" else image.getpixel((0, 0))
    got = decode(saved(image, transparency=transparency), background=(10, 20, 30))
    assert (pixel(got), pixel(got, 1)) == ((10, 20, 30), (255, 255, 255))


def test_a_palette_with_an_alpha_for_each_colour() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    got = decode(saved(image, transparency=bytes([0, 255])))
    assert (pixel(got), pixel(got, 1)) == ((255, 255, 255), GREEN)


def test_a_palette_without_transparency() -> None:
    got = decode(saved(four_corners().convert("P", palette=Image.Palette.ADAPTIVE)))
    assert np.array_equal(np.asarray(got), np.asarray(four_corners()))


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk(kind: str) -> None:
    got = decode(saved(Image.new("RGB", (8, 8), RED).convert("CMYK"), kind))
    assert pixel(got) == pytest.approx(RED, abs=3)


def test_sixteen_bit_grey_is_scaled_and_not_clipped() -> None:
    values = np.array([[0, 256, 257, 32768, 65407, 65535]], dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        got = np.asarray(decode(saved(Image.fromarray(values), kind)))
        assert got[0, :, 0].tolist() == [0, 1, 1, 128, 255, 255], kind
        assert (got == got[:, :, :1]).all()
    big_endian = Image.frombytes("I;16B", (6, 1), values.astype(">u2").tobytes())
    assert np.asarray(decode(saved(big_endian, "TIFF")))[0, :, 1].tolist() == [0, 1, 1, 128, 255, 255]
    wide = Image.fromarray(values.astype(np.int32))
    assert np.asarray(decode(saved(wide, "TIFF")))[0, :, 2].tolist() == [0, 1, 1, 128, 255, 255]


def test_sixteen_bit_grey_with_a_transparent_grey() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 2, 1, 16, 0, 0, 0, 0)
    rows = zlib.compress(b"\x00" + struct.pack(">HH", 300, 65535))
    parts = [chunk(b"IHDR", header), chunk(b"tRNS", struct.pack(">H", 300)), chunk(b"IDAT", rows), chunk(b"IEND", b"")]
    got = decode(b"\x89PNG\r\n\x1a\n" + b"".join(parts), background=(10, 20, 30))
    assert (pixel(got), pixel(got, 1)) == ((10, 20, 30), (255, 255, 255))


def test_one_bit_and_grey() -> None:
    assert pixel(decode(saved(Image.new("1", (2, 2), 1)))) == (255, 255, 255)
    assert pixel(decode(saved(Image.new("L", (2, 2), 77)))) == (77, 77, 77)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_the_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if kind == "WEBP" else {}
    got = decode(saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **options))
    assert pixel(got, 4, 4) == RED


def noisy(size: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9])
def test_a_truncated_file_is_refused(kind: str, share: float) -> None:
    data = saved(noisy(), kind)
    with pytest.raises(ValueError, match="truncated or not a picture"):
        decode(data[: int(len(data) * share)])


@pytest.mark.parametrize("data", [b"", b"x", b"no picture at all\n" * 100, b"\x89PNG\r\n\x1a\n", bytes(5000)])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="truncated or not a picture"):
        decode(data)


@given(st.binary(max_size=300), st.integers(0, 200))
def test_damaged_files_raise_nothing_but_value_error(noise: bytes, where: int) -> None:
    data = saved(four_corners(8, 8))
    with contextlib.suppress(ValueError):
        assert decode(data[:where] + noise + data[where + len(noise) :]).mode == "RGB"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused() -> None:
    def header(width: int, height: int) -> bytes:
        data = bytearray(saved(Image.new("1", (8, 8))))
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
        return bytes(data)

    for side in (10_000, 60_000):
        with pytest.raises(ValueError, match=r"pixels, of which 89,478,485 are allowed"):
            decode(header(side, side))


def test_floating_point_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="floating-point samples"):
        decode(saved(Image.new("F", (4, 4), 0.5), "TIFF"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_to_bytes_undoes_to_unit_for_all_values(dtype: torch.dtype) -> None:
    every = torch.arange(256, dtype=torch.uint8)
    unit = to_unit(every)
    assert unit.dtype == torch.float32
    assert (unit[0], unit[255]) == (-1.0, 1.0)
    assert torch.equal(to_bytes(unit.to(dtype)), every)


@given(st.lists(st.integers(1, 4), max_size=4), st.integers(0, 2**31))
def test_to_unit_and_back_in_any_shape(shape: list[int], seed: int) -> None:
    pixels = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    unit = to_unit(pixels)
    assert unit.shape == pixels.shape
    assert torch.equal(to_bytes(unit), pixels)


@given(st.floats(-10, 10, width=32))
def test_to_bytes_is_the_nearest_byte(value: float) -> None:
    byte = int(to_bytes(torch.tensor([value]))[0])
    exact = min(max((value + 1) * 127.5, 0.0), 255.0)
    assert abs(byte - exact) <= 0.5 + 1e-4


def test_to_bytes_rounds_halves_up_and_clamps() -> None:
    x = torch.tensor([0.0, -3.0, 3.0, float("inf"), -float("inf"), float("nan")])
    assert to_bytes(x).tolist() == [128, 0, 255, 255, 0, 0]
    assert to_bytes(torch.tensor([[1.0]], dtype=torch.bfloat16)).tolist() == [[255]]


def test_the_wrong_kind_of_tensor_is_refused() -> None:
    with pytest.raises(TypeError):
        to_unit(torch.zeros(3))
    with pytest.raises(TypeError):
        to_bytes(torch.zeros(3, dtype=torch.uint8))


def fill(folder: Path, good: int, broken: int) -> PictureSet:
    for index in range(good):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(folder / f"{index}.png")
    for index in range(broken):
        (folder / f"broken{index}.png").write_bytes(saved(noisy(8))[:60])
    return find_pictures(folder)


def test_load_pictures_keeps_the_order(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    loaded, kept = load_pictures(fill(tmp_path, 150, 0), 8, progress=lambda done, total: seen.append((done, total)))
    assert loaded.shape == (150, 3, 8, 8)
    assert loaded.dtype == torch.uint8
    assert loaded[:, 0, 0, 0].tolist() == list(range(150))
    assert [record.key for record in kept.records] == [f"{index}.png" for index in range(150)]
    assert seen[-1] == (150, 150)


def test_load_pictures_leaves_broken_files_out_and_lists_them(tmp_path: Path) -> None:
    pictures = fill(tmp_path, 60, 2)
    (tmp_path / "30.png").unlink()  # gone between the look and the reading
    loaded, kept = load_pictures(pictures, 8, max_broken=0.05)
    assert loaded[:, 0, 0, 0].tolist() == [index for index in range(60) if index != 30]
    assert [key for key, _ in kept.skipped] == ["30.png", "broken0.png", "broken1.png"]
    assert "truncated" in dict(kept.skipped)["broken0.png"]
    assert len(loaded) == len(kept.records) == 59


def test_a_file_whose_name_lies_about_its_kind_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(saved(Image.new("RGB", (8, 8), RED), "JPEG"))
    loaded, kept = load_pictures(find_pictures(tmp_path), 8)
    assert kept.skipped == ()
    assert loaded[0, :, 0, 0].tolist() == pytest.approx(RED, abs=2)


def test_load_pictures_stops_where_too_much_is_broken(tmp_path: Path) -> None:
    pictures = fill(tmp_path, 17, 3)
    with pytest.raises(ValueError, match=r"3 of the 20 pictures .*15\.0%.*5\.0%.*broken0\.png.*broken1\.png"):
        load_pictures(pictures, 8)
    assert len(load_pictures(pictures, 8, max_broken=0.15)[0]) == 17


def test_load_pictures_stops_where_nothing_is_left(tmp_path: Path) -> None:
    pictures = fill(tmp_path, 0, 3)
    with pytest.raises(ValueError, match="3 of the 3 pictures"):
        load_pictures(pictures, 8, max_broken=1.0)
    with pytest.raises(ValueError, match="no pictures to load"):
        load_pictures(pictures.split("test"), 8)
    with pytest.raises(ValueError, match="size is 0"):
        load_pictures(pictures, 0)


def test_load_pictures_with_white_around(tmp_path: Path) -> None:
    Image.new("RGB", (16, 8), RED).save(tmp_path / "a.png")
    Image.new("RGB", (8, 8), BLUE).save(tmp_path / "b.png")
    pictures = find_pictures(tmp_path)
    cropped, _ = load_pictures(pictures, 8)
    loaded, kept = load_pictures(pictures, 8, aspect="pad")
    assert kept is pictures
    assert torch.equal(cropped[1], loaded[1])
    assert tuple(cropped[0, :, 0, 0]) == RED
    assert tuple(loaded[0, :, 0, 0]) == (255, 255, 255)
    assert tuple(loaded[0, :, 4, 0]) == RED
    with pytest.raises(ValueError, match=r"aspect is 'buckets', expected crop or pad; load_buckets gives"):
        load_pictures(pictures, 8, aspect="buckets")
    with pytest.raises(ValueError, match=r"aspect is 'stretch', expected crop or pad\.$"):
        load_pictures(pictures, 8, aspect="stretch")


def test_load_buckets(tmp_path: Path) -> None:
    sizes = [(64, 64), (90, 60), (60, 90), (300, 100), (65, 64), (7, 7)]
    for number, size in enumerate(sizes, start=7):  # on disk 10 comes before 7
        noisy(300).crop((0, 0, *size)).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.png").write_bytes(b"broken")
    seen: list[tuple[int, int]] = []
    pictures = find_pictures(tmp_path)
    loaded, kept = load_buckets(
        pictures, 64, 8, progress=lambda done, total: seen.append((done, total)), max_broken=0.2
    )
    shapes = [(64, 64), (48, 80), (80, 48), (48, 80), (64, 64), (64, 64)]
    assert [tuple(one.shape) for one in loaded] == [(3, *shape) for shape in shapes]
    assert {one.dtype for one in loaded} == {torch.uint8}
    assert [record.key for record in kept.records] == [f"{number}.png" for number in range(7, 13)]
    assert [key for key, _ in kept.skipped] == ["broken.png"]
    assert seen == [(7, 7)]
    squares, _ = load_pictures(pictures, 64, max_broken=0.2)
    assert all(torch.equal(loaded[index], squares[index]) for index in (0, 4, 5))
    with pytest.raises(ValueError, match="size is 64 and multiple is 7"):
        load_buckets(pictures, 64, 7)
    with pytest.raises(ValueError, match=r"1 of the 7 pictures .*--max-broken: broken\.png: The file of 6 bytes"):
        load_buckets(pictures, 64, 8)


def test_large_files_are_not_held_in_memory_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = fill(tmp_path, 10, 0)
    monkeypatch.setattr("unstir.data.transforms._CHUNK_BYTES", 150)
    done: list[int] = []
    loaded, _ = load_pictures(pictures, 8, progress=lambda now, total: done.append(now))
    assert loaded[:, 0, 0, 0].tolist() == list(range(10))
    assert len(done) >= 5
