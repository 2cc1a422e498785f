"""What a mask says, and that none of it is lost on a coarser grid."""

from __future__ import annotations

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from unstir.conditioning.mask import painted, reduced


def grey(*rows: list[int]) -> Image.Image:
    return Image.fromarray(numpy.array(rows, dtype=numpy.uint8))


def test_all_but_black_is_painted() -> None:
    """White and grey of any depth; the faintest edge of a soft brush too."""
    expected = [[False, True], [True, True]]
    mask = grey([0, 1], [128, 255])
    assert painted(mask).tolist() == expected
    assert painted(mask.convert("RGB")).tolist() == expected
    assert painted(mask.convert("RGBA")).tolist() == expected
    assert painted(mask.point(lambda v: 255 * (v > 0)).convert("1")).tolist() == expected
    colour = Image.new("RGB", (1, 1), (0, 0, 3))
    assert painted(colour).tolist() == [[True]]


def test_of_a_mask_with_transparency_what_is_not_opaque_is_painted() -> None:
    mask = Image.new("RGBA", (2, 1), (255, 255, 255, 255))
    mask.putpixel((1, 0), (0, 0, 0, 254))
    assert painted(mask).tolist() == [[False, True]]
    assert painted(mask.convert("LA")).tolist() == [[False, True]]


@given(st.sampled_from([1, 2, 4, 8]), st.integers(0, 15), st.integers(0, 23))
def test_no_painted_pixel_is_lost(factor: int, row: int, column: int) -> None:
    """One pixel, wherever in its cell, paints the cell and no other."""
    mask = torch.zeros(16, 24, dtype=torch.bool)
    mask[row, column] = True
    cells = reduced(mask, factor)
    assert cells.shape == (16 // factor, 24 // factor)
    assert cells.nonzero().tolist() == [[row // factor, column // factor]]


@pytest.mark.parametrize("factor", [0, 3])
def test_cells_must_fit(factor: int) -> None:
    with pytest.raises(ValueError, match="16x8 has no cells"):
        reduced(torch.zeros(8, 16, dtype=torch.bool), factor)
