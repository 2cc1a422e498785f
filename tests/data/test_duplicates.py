"""Copies are found however they were made over, other pictures are not, and no number of them is too many."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from unstir.data import duplicates
from unstir.data.duplicates import THRESHOLD, distance, grouped, near_pairs, thumbnail

SIDE = 64


def drawn(seed: int) -> Image.Image:
    """A smooth picture of its own: waves of random direction, length and colour."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    waves = np.zeros((SIDE, SIDE, 3))
    for _ in range(6):
        fx, fy, phase = generator.uniform(-3, 3), generator.uniform(-3, 3), generator.uniform(0, 6.3)
        waves += np.cos(6.283 * (fx * x + fy * y) + phase)[..., None] * generator.normal(size=3)
    return Image.fromarray(np.clip(128 + 40 * waves, 0, 255).astype(np.uint8))


def as_jpeg(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=50)
    return Image.open(buffer).convert("RGB")


def shifted(image: Image.Image) -> Image.Image:
    """By one pixel to the right and one down; what comes into view is the edge repeated."""
    return Image.fromarray(np.pad(np.asarray(image), ((1, 0), (1, 0), (0, 0)), mode="edge")[:-1, :-1])


def resized(image: Image.Image) -> Image.Image:
    return image.resize((58, 58), Image.Resampling.LANCZOS)


def brighter(image: Image.Image) -> Image.Image:
    return image.point(lambda value: min(255, value + 4))


CHANGES = {"jpeg": as_jpeg, "shift": shifted, "resize": resized, "brighter": brighter}


def thumbnails(images: list[Image.Image]) -> np.ndarray:
    return np.stack([thumbnail(image) for image in images])


def pairs_of(found: np.ndarray) -> set[tuple[int, int]]:
    return {(int(a), int(b)) for a, b in found}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_copies_are_found_and_nothing_else(change) -> None:
    images = [drawn(seed) for seed in range(40)]
    copies = [change(image) for image in images[:20]]
    found = near_pairs(thumbnails(images + copies), np.zeros(60, dtype=int))
    assert pairs_of(found) == {(index, 40 + index) for index in range(20)}


def test_a_shift_is_what_it_explains_away() -> None:
    """The plain difference of thumbnails grows with the shift; what is left after it does not reach the threshold."""
    one = thumbnails([drawn(seed) for seed in range(10)])
    other = thumbnails([shifted(drawn(seed)) for seed in range(10)])
    plain = np.sqrt(np.square(one.astype(float) - other).mean(axis=(1, 2, 3))) / one.std(axis=(1, 2, 3))
    assert (distance(one, other) < 0.6 * plain).all()


def test_distance_by_hand() -> None:
    """Left half black, right half white; the other has one of its white columns grey, far from any slope's reach."""
    one = np.zeros((1, 16, 16, 3), dtype=np.uint8)
    one[:, :, 8:] = 255
    other = one.copy()
    other[:, 5:9, 12, :] = 155
    # 4 of the 14 x 14 inner pixels differ by 100, the slopes around them are symmetric; contrast is 127.5.
    assert distance(one, other) == pytest.approx(np.sqrt(4 * 100**2 / 14**2) / 127.5, rel=1e-2)
    assert distance(one, one) == 0


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_distance_is_symmetric_and_nothing_to_itself(first: int, second: int) -> None:
    a, b = (np.random.default_rng(seed).integers(0, 256, (3, 16, 16, 3)).astype(np.uint8) for seed in (first, second))
    assert distance(a, b) == pytest.approx(distance(b, a), rel=1e-4, abs=1e-6)
    assert (distance(a, a) == 0).all()


@pytest.mark.parametrize("slope", ["columns", "rows", "diagonal", "rough diagonal", "flat"])
def test_distance_where_a_direction_has_no_slope(slope: str) -> None:
    """The normal equations are singular there; an unknown shift must not become a large one."""
    y, x = np.mgrid[0:16, 0:16]
    rough = np.random.default_rng(0).integers(0, 250, 31)[x + y]
    ramp = {"columns": 10 * x, "rows": 10 * y, "diagonal": 5 * (x + y), "rough diagonal": rough, "flat": 0 * x}[slope]
    one = np.repeat(ramp[None, :, :, None], 3, axis=3).astype(np.uint8)
    other = (one + 1).astype(np.uint8)
    assert distance(one, other)[0] <= 1.01 / max(1.0, float(one.std()))


def test_the_shift_is_that_of_least_squares() -> None:
    """Slopes across and down that go together, as on a diagonal: the two cannot be explained one by one."""
    y, x = np.mgrid[0:16, 0:16] / 16
    a, b = (
        np.repeat(np.round(120 + 60 * np.sin(7 * (u + 0.7 * v)) + 40 * v)[..., None], 3, axis=2)
        for u, v in ((x, y), (x + 0.03, y - 0.02))
    )
    mean, rest = (a + b) / 2, (a - b)[1:-1, 1:-1].ravel()
    slopes = [(mean[1:-1, 2:] - mean[1:-1, :-2]) / 2, (mean[2:, 1:-1] - mean[:-2, 1:-1]) / 2]
    slopes = np.stack([slope.ravel() for slope in slopes], axis=1)
    shift, (left,), _, _ = np.linalg.lstsq(slopes, rest, rcond=None)
    assert 0.1 < np.abs(shift).max() < 1
    expected = np.sqrt(left / rest.size) / max(a.std(), b.std())
    assert distance(a[None].astype(np.uint8), b[None].astype(np.uint8)) == pytest.approx(expected, rel=1e-3)


def test_flat_pictures_are_near_to_nothing() -> None:
    flat = [Image.new("RGB", (SIDE, SIDE), (value, value, value)) for value in (0, 1, 128, 255)]
    assert len(near_pairs(thumbnails(flat), np.zeros(4, dtype=int))) == 0


def test_partners_are_looked_for_in_each_part() -> None:
    """A hundred exact copies in the picture's own part do not hide a worse one in another part."""
    image, worse = thumbnail(drawn(0)), thumbnail(as_jpeg(drawn(0)))
    everything = np.stack([worse, *[image] * 101])
    assert (0, 101) not in pairs_of(near_pairs(everything, np.zeros(102, dtype=int)))
    assert (0, 101) in pairs_of(near_pairs(everything, np.array([1, *[0] * 101])))


def test_the_most_alike_are_looked_at() -> None:
    """Forty that are alike at the coarse size, but not near, do not hide the one that is near."""
    copy = thumbnail(drawn(0))
    noise = np.random.default_rng(0).normal(0, 0.19 * copy.std(), (40, 8, 8, 3)).repeat(2, axis=1).repeat(2, axis=2)
    alike = np.clip(copy + noise, 0, 255).astype(np.uint8)
    repeated = np.repeat(copy[None], 40, axis=0)
    assert (distance(alike, repeated) < THRESHOLD).sum() < 40
    everything = np.concatenate([alike[:20], copy[None], alike[20:], copy[None]])
    assert (20, 41) in pairs_of(near_pairs(everything, np.zeros(42, dtype=int)))


def test_the_coarse_comparison_does_not_see_brightness() -> None:
    """Else all bright pictures would be alike, and each pair would be looked at in detail."""
    bright = np.stack([thumbnail(drawn(seed)) // 8 + 220 for seed in range(20)])
    coarse = duplicates._coarse(bright)
    assert (np.triu(coarse @ coarse.T, 1) < 0.94).all()


def test_many_copies_make_one_group_and_few_pairs() -> None:
    everything = np.repeat(thumbnail(drawn(0))[None], 500, axis=0)
    found = near_pairs(everything, np.zeros(500, dtype=int))
    assert len(found) <= 500 * 16
    assert grouped(500, found) == [tuple(range(500))]


@pytest.mark.parametrize("cells", [1, 7, 60, 1000])
def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch, cells: int) -> None:
    images = [drawn(seed) for seed in range(12)]
    everything = thumbnails([*images, *(as_jpeg(image) for image in images)])
    parts = np.arange(24) % 3
    whole = near_pairs(everything, parts)
    monkeypatch.setattr(duplicates, "_CELLS", cells)
    monkeypatch.setattr(duplicates, "_DETAILED", 5)
    told: list[tuple[int, int]] = []
    assert (near_pairs(everything, parts, progress=lambda *done: told.append(done)) == whole).all()
    assert told[-1] == (24, 24)
    assert told == sorted(told)


@given(st.permutations(range(12)))
def test_order_changes_nothing(order: list[int]) -> None:
    images = [drawn(seed) for seed in range(6)]
    everything = thumbnails([*images, *(resized(image) for image in images)])
    found = near_pairs(everything[order], np.zeros(12, dtype=int))
    assert {tuple(sorted((order[a], order[b]))) for a, b in pairs_of(found)} == {(i, i + 6) for i in range(6)}


def test_no_pictures_are_no_pairs() -> None:
    empty = near_pairs(np.zeros((0, 16, 16, 3), dtype=np.uint8), np.zeros(0, dtype=int))
    assert empty.shape == (0, 2)


def test_a_thumbnail_is_a_mean() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    expected = pixels.reshape(16, 2, 16, 2, 3).mean(axis=(1, 3))
    assert np.abs(thumbnail(Image.fromarray(pixels)) - expected).max() <= 1  # Pillow rounds each way


def test_a_threshold_between_copies_and_others() -> None:
    """The nearest of 780 unrelated pairs is far above it."""
    everything = thumbnails([drawn(seed) for seed in range(40)])
    first, second = np.triu_indices(40, 1)
    assert distance(everything[first], everything[second]).min() > 3 * THRESHOLD


@given(st.integers(1, 12), st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=15))
def test_groups_are_what_hangs_together(count: int, pairs: list[tuple[int, int]]) -> None:
    pairs = [(a % count, b % count) for a, b in pairs]
    reached = [{number} for number in range(count)]
    for _ in range(count):  # by growing, the slow way
        for a, b in pairs:
            reached[a] = reached[b] = reached[a] | reached[b]
            for number in reached[a]:
                reached[number] = reached[a]
    expected = sorted({tuple(sorted(group)) for group in reached if len(group) > 1})
    assert grouped(count, pairs) == expected


def test_a_shift_of_more_than_a_thumbnail_pixel_is_a_difference() -> None:
    """A ramp of 10 a pixel, moved by four: one of the four is forgiven."""
    one = np.repeat((10 * np.mgrid[0:16, 0:16][1])[None, :, :, None], 3, axis=3).astype(np.uint8)
    other = (one + 40).astype(np.uint8)
    assert distance(one, other)[0] == pytest.approx(30 / one.std(), rel=1e-3)
