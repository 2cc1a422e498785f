"""From pictures of any shape to squares and buckets."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from unstir.data.aspect import ASPECTS, bucket_of, covered, padded, square

RED, GREEN, BLUE, YELLOW, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 255, 255)


def four_corners(width: int, height: int) -> Image.Image:
    image = Image.new("RGB", (width, height))
    for index, colour in enumerate((RED, GREEN, BLUE, YELLOW)):
        corner = (index % 2 * width // 2, index // 2 * height // 2)
        image.paste(colour, (*corner, corner[0] + width // 2, corner[1] + height // 2))
    return image


def noisy(width: int, height: int | None = None) -> Image.Image:
    shape = (height or width, width, 3)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def test_square_crops_the_middle() -> None:
    image = Image.new("RGB", (64, 32), RED)
    image.paste(BLUE, (16, 0, 48, 32))
    for picture in (image, image.transpose(Image.Transpose.ROTATE_90)):
        got = square(picture, 8)
        assert got.shape == (3, 8, 8)
        assert got.dtype == np.uint8
        assert (got == np.array(BLUE, dtype=np.uint8)[:, None, None]).all()


def test_square_keeps_rows_and_columns_apart() -> None:
    got = square(four_corners(32, 32), 16)
    assert tuple(got[:, 0, 15]) == GREEN
    assert tuple(got[:, 15, 0]) == BLUE


def test_square_leaves_a_picture_of_the_right_size_alone() -> None:
    image = noisy(16)
    assert np.array_equal(square(image, 16), np.asarray(image).transpose(2, 0, 1))
    wide = Image.fromarray(np.pad(np.asarray(image), ((0, 0), (3, 4), (0, 0))))
    assert np.array_equal(square(wide, 16), np.asarray(image).transpose(2, 0, 1))


def test_square_is_antialiased() -> None:
    stripes = Image.fromarray(np.tile(np.array([0, 255], dtype=np.uint8), (512, 256)))
    got = square(stripes.convert("RGB"), 32).astype(int)
    assert np.abs(got - 127.5).max() < 6


def test_square_refuses_a_size_below_one() -> None:
    with pytest.raises(ValueError, match="size is 0"):
        square(noisy(8), 0)


def test_padded_keeps_the_whole_picture_in_the_middle_of_white() -> None:
    got = padded(four_corners(64, 32), 16)
    assert got.shape == (3, 16, 16)
    for row, column, colour in ((0, 0, WHITE), (15, 15, WHITE), (3, 0, WHITE), (12, 8, WHITE)):
        assert tuple(got[:, row, column]) == colour
    for row, column, colour in ((4, 0, RED), (4, 15, GREEN), (11, 0, BLUE), (11, 15, YELLOW)):
        assert tuple(got[:, row, column]) == colour
    turned = padded(four_corners(64, 32).transpose(Image.Transpose.TRANSPOSE), 16)
    difference = np.abs(turned.astype(int) - got.transpose(0, 2, 1))
    assert difference.max() <= 8, "Pillow rounds and clips after the rows and again after the columns"


@given(st.integers(1, 80), st.integers(1, 80), st.integers(1, 40))
def test_padded_fits_every_picture(width: int, height: int, size: int) -> None:
    got = padded(Image.new("RGB", (width, height), BLUE), size)
    assert got.shape == (3, size, size)
    blue = (got == np.array(BLUE, dtype=np.uint8)[:, None, None]).all(axis=0)
    assert blue.any(axis=0).sum() == max(1, round(width * size / max(width, height)))
    assert blue.any(axis=1).sum() == max(1, round(height * size / max(width, height)))
    assert (got[:, ~blue] == 255).all()


@given(st.integers(1, 60), st.integers(1, 40))
def test_squares_are_the_same_under_all_aspects(side: int, size: int) -> None:
    image = noisy(side)
    expected = square(image, size)
    assert np.array_equal(padded(image, size), expected)
    assert np.array_equal(covered(image, size, size), expected)


def test_a_wide_picture_of_the_size_is_padded_without_a_change() -> None:
    image = noisy(16, 8)
    assert np.array_equal(padded(image, 16)[:, 4:12], np.asarray(image).transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("picture", "bucket"),
    [
        ((640, 640), (512, 512)),
        ((1, 1), (512, 512)),
        ((600, 400), (640, 384)),
        ((400, 600), (384, 640)),
        ((1920, 1080), (640, 384)),
        ((4000, 1000), (640, 384)),
        ((640, 600), (512, 512)),
        ((640, 500), (576, 448)),
    ],
)
def test_buckets_of_512(picture: tuple[int, int], bucket: tuple[int, int]) -> None:
    assert bucket_of(*picture, 512, 64) == bucket


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 40), st.sampled_from([1, 2, 4, 8, 16]))
def test_buckets(width: int, height: int, sides: int, multiple: int) -> None:
    size = sides * multiple
    bucket = bucket_of(width, height, size, multiple)
    if width != height:
        assert bucket_of(height, width, size, multiple) == bucket[::-1]
    assert all(side >= 1 and side % multiple == 0 for side in bucket)
    assert bucket[0] * bucket[1] <= size * size
    assert max(bucket) <= 2 * min(bucket)
    assert (max(bucket) + multiple) * min(bucket) > size * size, "the longest possible long side"
    assert (bucket[0] - bucket[1]) * (width - height) >= 0
    ratio = math.log(width / height)
    assert abs(math.log(bucket[0] / bucket[1]) - ratio) <= abs(ratio) + 1e-12, "no worse than the square"
    assert bucket_of(*bucket, size, multiple) == bucket


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 30), st.integers(1, 30))
def test_covered_is_of_the_shape(width: int, height: int, wide: int, high: int) -> None:
    got = covered(Image.new("RGB", (width, height), RED), wide, high)
    assert got.shape == (3, high, wide)
    assert (got == np.array(RED, dtype=np.uint8)[:, None, None]).all()


def test_covered_takes_the_largest_middle_part() -> None:
    image = Image.new("RGB", (90, 60), RED)
    image.paste(BLUE, (0, 5, 90, 55))
    assert (covered(image, 36, 20) == np.array(BLUE, dtype=np.uint8)[:, None, None]).all()
    assert tuple(covered(image, 30, 20)[:, 0, 0]) == RED
    assert np.array_equal(covered(noisy(12, 8), 12, 8), np.asarray(noisy(12, 8)).transpose(2, 0, 1))
    assert np.array_equal(covered(noisy(14, 8), 12, 8), np.asarray(noisy(14, 8)).transpose(2, 0, 1)[:, :, 1:13])


@pytest.mark.parametrize(
    ("numbers", "what"),
    [
        ((0, 5, 64, 8), "0 x 5 pixels, expected 1 or more"),
        ((5, 5, 0, 8), "size is 0"),
        ((5, 5, 64, 0), "size is 64 and multiple is 0"),
        ((5, 5, 60, 16), "size is 60 and multiple is 16; size has to be a multiple of it, for instance 64"),
    ],
)
def test_numbers_that_give_no_bucket(numbers: tuple[int, int, int, int], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        bucket_of(*numbers)


def test_sizes_below_one_are_refused() -> None:
    for call in (lambda: padded(noisy(8), 0), lambda: covered(noisy(8), 0, 5)):
        with pytest.raises(ValueError, match="size is 0"):
            call()
    assert list(ASPECTS) == ["crop", "pad", "buckets"]
