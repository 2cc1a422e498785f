"""Keywords: those that name many pictures, chosen by their hash; how many different answers a phrase gets."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from unstir.data.folder import InFile, PictureSet, Record
from unstir.evaluation.keywords import ask_keywords, variety
from unstir.evaluation.prompts import score


def records(*said: tuple[str, tuple[str, ...]]) -> PictureSet:
    """Pictures with a caption and keywords each."""
    return PictureSet(
        root=Path(),
        records=tuple(
            Record(
                key=f"{i}.png",
                captions=(caption,),
                source="metadata",
                split="test" if i % 2 else "train",
                locate=InFile(path=Path(f"{i}.png")),
                keywords=keywords,
            )
            for i, (caption, keywords) in enumerate(said)
        ),
    )


SET = records(
    ("apple", ("fruit", "red", "red", "food")),
    ("pear", ("fruit", "food", "green")),
    ("plum", ("fruit", "food", "Food")),
    ("Food", ("Food", "red")),
    ("flag", ()),
    ("lime", ("green", "fruit", "Food")),
)


def test_only_words_of_many_pictures_that_are_no_names_are_asked() -> None:
    """Of 3 or more: fruit (4), but not food (3, and a picture is called Food), nor red (2); every split counts."""
    asked = ask_keywords(SET, 1, at_least=3)
    assert asked.prompts == asked.captions == ("fruit",)
    assert asked.answers == ((0, 1, 2, 5),)
    two = ask_keywords(SET, 3, at_least=2)
    assert dict(zip(two.prompts, two.answers, strict=True)) == {
        "fruit": (0, 1, 2, 5),
        "red": (0, 3),  # said twice of the apple, which is one picture
        "green": (1, 5),
    }


def test_keywords_are_chosen_by_their_hash() -> None:
    """The least sha256 first, whatever the order of the pictures; the default is 8 pictures a word."""
    words = [f"word {i}" for i in range(30)]
    many = records(*((f"picture {i}", tuple(words)) for i in range(8)))
    chosen = set(ask_keywords(many, 5).prompts)
    assert chosen == set(sorted(words, key=lambda word: hashlib.sha256(word.encode()).hexdigest())[:5])
    few = records(*((f"picture {i}", tuple(words)) for i in range(7)))
    with pytest.raises(ValueError, match=r"0 keywords .* 8 pictures or more, 5 were asked for"):
        ask_keywords(few, 5)


def test_one_picture_fewer_is_too_few() -> None:
    with pytest.raises(ValueError, match="1 keywords .* 2 were asked for; ask for fewer"):
        ask_keywords(SET, 2, at_least=3)


def test_variety_counts_different_pictures() -> None:
    """4, 2 and 1 different ones of 4: half is enough to differ."""
    found = variety(torch.tensor([[7, 1, 2, 3], [5, 5, 6, 5], [9, 9, 9, 9]]))
    assert found.distinct.value == pytest.approx(7 / 3)
    assert found.distinct.standard_error == pytest.approx((7 / 9) ** 0.5)  # of 4, 2, 1: variance 7/3, of three
    assert found.half_differ.value == pytest.approx(2 / 3)
    assert found.seeds == 4
    assert variety(torch.tensor([[1, 2, 2]])).half_differ.value == 1.0
    assert variety(torch.tensor([[2, 2, 2]])).half_differ.value == 0.0


def test_a_hit_is_any_picture_of_the_keyword() -> None:
    asked = ask_keywords(SET, 1, at_least=3)
    assert score(asked, torch.tensor([[0, 5, 3, 4]]), 6).top1 == 0.5
