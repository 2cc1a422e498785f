"""What names say, and which names say nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unstir.data.names import (
    are_captions,
    caption_of,
    class_of,
    is_plain_folder,
    reads_like_words,
    repeats_of,
    split_of,
    split_of_folder,
)


@pytest.mark.parametrize(
    ("stem", "caption"),
    [
        ("red_fox", "red fox"),
        ("red-fox", "red fox"),
        ("  red   fox ", "red fox"),
        ("red fox 2", "red fox"),
        ("red_fox_02", "red fox"),
        ("red fox (3)", "red fox"),
        ("red-fox(12)", "red fox"),
        ("red_fox_1_(2)", "red fox"),
        ("red fox2", "red fox2"),
        ("3 red foxes", "3 red foxes"),
        ("42", "42"),
        ("(3)", "(3)"),
        ("_", ""),
        ("don't panic", "don't panic"),
        ("赤い狐_2", "赤い狐"),
    ],
)
def test_caption_of(stem: str, caption: str) -> None:
    assert caption_of(stem) == caption


@given(st.text())
def test_a_caption_is_trimmed_and_its_own_caption(stem: str) -> None:
    caption = caption_of(stem)
    assert caption == caption.strip()
    assert caption_of(caption) == caption
    reads_like_words(stem)


WORDS = [
    "cat",
    "red_fox_02",
    "photo of a cat",
    "赤い狐",
    "Füchslein",
    "лиса",
    "don't panic",
    "E. coli",
    "sks dog",
    "ثعلب",
]
NO_WORDS = [
    *("IMG_1234", "DSC0001", "DSC_0042", "P1010123", "PXL_20230101_120000", "IMG-20230101-WA0001", "GOPR0123"),
    *("Screenshot 2024-01-01 at 10.00.00 AM", "WhatsApp Image 2023-01-01 at 12.34.56", "Untitled-1", "download (3)"),
    *("image_12", "img1", "frame_0001", "sample-3", "out", "photo", "a", "a2", "B", "0", "000000012345", "1_2_3"),
    *(
        "deadbeef01",
        "f3a9c0d177aa",
        "f3a9c0d1-77aa-4bbb-8ccc-123456789abc",
        "dQw4w9WgXcQ",
        "xkcd",
        "ox",
        "",
        "_",
        "(3)",
    ),
]


@pytest.mark.parametrize("stem", WORDS)
def test_words(stem: str) -> None:
    assert reads_like_words(stem)


@pytest.mark.parametrize("stem", NO_WORDS)
def test_no_words(stem: str) -> None:
    assert not reads_like_words(stem)


def test_nearly_all_names_have_to_be_words_and_they_have_to_differ() -> None:
    assert are_captions(WORDS)
    assert are_captions(["red fox"])
    assert not are_captions([])
    assert not are_captions(NO_WORDS)
    assert are_captions([*WORDS, *WORDS[:8], "IMG_1", "IMG_2"])
    assert not are_captions([*WORDS, "IMG_1", "IMG_2"])
    assert not are_captions(["holiday_1", "holiday_2", "holiday_3"])


def test_splits() -> None:
    for name in ("train", "val", "test-00000-of-00001", "VALID", "dev.1"):
        assert split_of(name) is not None
    assert split_of("val-0") == "validation"
    assert split_of("trainer") is None
    assert split_of("x-train") is None
    assert split_of_folder("Dev") == "validation"
    assert split_of_folder("test-1") is None


def test_classes() -> None:
    assert class_of("big_red-dog") == "big red dog"
    assert class_of("__") == ""
    assert is_plain_folder("Images")
    assert not is_plain_folder("cats")


def read(*folders: str) -> tuple[dict[str, tuple[int, str]], list[str]]:
    notes: list[str] = []
    return repeats_of(folders, notes), notes


def test_repeats() -> None:
    found, notes = read("10_sks dog", "2_big_cat")
    assert found == {"10_sks dog": (10, "sks dog"), "2_big_cat": (2, "big cat")}
    assert notes == [
        "The numbers before the names of the folders are repeats in an epoch: 2 times 'big cat', 10 times 'sks dog'."
    ]
    assert read("10_sks dog")[0] == {"10_sks dog": (10, "sks dog")}
    assert read("1_cat", "1_dog", "1_bird")[0].keys() == {"1_cat", "1_dog", "1_bird"}


@pytest.mark.parametrize(
    "folders", [(), ("10_dog", "cat"), ("10_dog", "7up"), ("10_", "5_cat"), ("_x",), ("10_dog", "10-cat")]
)
def test_folders_that_are_not_all_of_this_kind_have_no_repeats(folders: tuple[str, ...]) -> None:
    assert read(*folders) == ({}, [])


@pytest.mark.parametrize(
    ("folders", "why"),
    [
        (("0_cat", "1_dog"), "for they count the folders"),
        (("1_cat", "2_dog", "3_bird"), "for they count the folders"),
        (("1990_photos", "1991_photos"), "for they are large"),
    ],
)
def test_numbers_that_are_no_repeats(folders: tuple[str, ...], why: str) -> None:
    found, notes = read(*folders)
    assert found == {}
    assert why in notes[0]
