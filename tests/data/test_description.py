"""What a person reads of a set: every figure once, long lists cut short, nothing about what is not there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from unstir.config import to_dict
from unstir.data.description import Captions, Description, Duplicates, Files, Pixels, Sizes, Twins, Words

PLAIN = Description(
    root=Path("set"),
    splits=(("train", 30), ("test", 3)),
    files=Files(looked_at=33, broken=(), skipped=(), notes=()),
    captions=Captions(
        sources=(("metadata", 33),), missing=(), single=31, several=2, distinct=35, common=(), words=(4, 11), long=0
    ),
    words=Words(vocabulary=80, once=0, examples=()),
    sizes=Sizes(smallest=(64, 64), median=(70, 64), largest=(90, 80), square=64, oblong=20, small=0, cut=0.086),
    pixels=Pixels(mean=(0.5, 0.25, 0.125), deviation=(0.3, 0.2, 0.1), white=0.1, black=0.02, grey=0.333),
    duplicates=Duplicates(equal=(), near=(), across=()),
)


def text_of(description: Description) -> str:
    return "\n".join(description.lines())


def test_a_set_without_faults() -> None:
    assert PLAIN.lines() == [
        "33 pictures in set: train 30, test 3",
        "captions from: metadata 33",
        "captions each: none 0, one 31, more 2; 35 different, of 4 words in the median and 11 at most",
        "words: 80, of which 0 with one picture only",
        "sizes: 64x64 to 90x80, median 70x64; 20 not square (a square crop takes away 9% of the area in the mean), "
        "0 smaller than 64x64",
        "pixels at 64x64, red green blue in [0, 1]: mean 0.500 0.250 0.125, standard deviation 0.300 0.200 0.100; "
        "10.0% white, 2.0% black; 33.3% of the pictures without colour",
        "duplicates: none",
    ]


def test_all_words_that_are_told_end_without_dots() -> None:
    text = text_of(replace(PLAIN, words=replace(PLAIN.words, once=2, examples=("fox", "oak"))))
    assert "words: 80, of which 2 with one picture only: fox, oak\n" in text


def test_faults_are_listed_with_examples() -> None:
    twins = Twins(one="a", one_split="test", other="b", other_split="train", is_equal=True)
    text = text_of(
        replace(
            PLAIN,
            files=Files(
                looked_at=20,
                broken=(("x.png", "It is empty."),),
                skipped=(("y.doc", "not a picture"),),
                notes=("A note.",),
            ),
            captions=replace(
                PLAIN.captions, missing=tuple((f"{i}.png", "train") for i in range(7)), common=(("a cat", 5),)
            ),
            words=Words(vocabulary=80, once=3, examples=("fox", "owl")),
            duplicates=Duplicates(
                equal=(("a", "b"),),
                near=(("c", "d", "e", "f"),),
                across=(twins, replace(twins, one="c", is_equal=False)),
            ),
        )
    )
    for line in (
        'the same caption on 5 pictures: "a cat"',
        "without a caption: 7: 0.png, 1.png, 2.png, 3.png, 4.png, and 2 more",
        "words: 80, of which 3 with one picture only: fox, owl, ...",
        "looked at: 20 of the 33 pictures, chosen at random",
        "groups of equal pictures: 1: a = b",
        "groups of near-duplicates: 1: c ~ d ~ e ~ ...",
        "equal or near pairs across splits: 2: a (test) = b (train), c (test) ~ b (train)",
        "broken: 1: x.png (It is empty)",
        "not used: 1: y.doc (not a picture)",
        "note: A note.",
    ):
        assert line in text.splitlines()
    assert "duplicates: none" not in text


def test_without_a_single_picture_there_are_no_sizes() -> None:
    text = text_of(replace(PLAIN, sizes=None, pixels=None))
    assert "sizes" not in text
    assert "pixels" not in text


@pytest.mark.parametrize("count", [5, 6])
def test_what_is_not_listed_is_counted(count: int) -> None:
    missing = tuple((f"{i}", "train") for i in range(count))
    text = text_of(replace(PLAIN, captions=replace(PLAIN.captions, missing=missing)))
    assert ("and 1 more" in text) == (count == 6)


def test_it_becomes_json() -> None:
    assert to_dict(PLAIN)["root"] == "set"
    assert to_dict(PLAIN)["captions"]["words"] == [4, 11]
