"""Names of pictures: in order, readable, and known again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unstir.generation.names import index_of, picture_name


@pytest.mark.parametrize(
    ("index", "prompt", "name"),
    [
        (0, "a red heart", "000000-a-red-heart.png"),
        (12, "Été, 猫!", "000012-été-猫.png"),
        (1_234_567, "../..", "1234567-picture.png"),
        (3, "x" * 400, f"000003-{'x' * 48}.png"),
    ],
)
def test_a_name_says_number_and_prompt(index: int, prompt: str, name: str) -> None:
    assert picture_name(index, prompt) == name


@given(st.integers(0, 2**32), st.text(max_size=80))
def test_a_number_comes_back(index: int, prompt: str) -> None:
    name = picture_name(index, prompt)
    assert index_of(name) == index
    assert "/" not in name
    assert len(name.encode()) < 250  # what file systems take, with room for a temporary name


@pytest.mark.parametrize("name", ["0000-a-red-heart.png", "index.jsonl", "000001-x.png.new", ".000001-x.png.new"])
def test_other_names_have_none(name: str) -> None:
    assert index_of(name) is None
