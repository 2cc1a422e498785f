"""Each fault alone gives its finding with its remedy, just above its limit and not at it; a good set gives none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from unstir.data.description import Captions, Description, Duplicates, Files, Pixels, Sizes, Twins, Words
from unstir.data.findings import Finding, judge
from unstir.data.transforms import load_pictures

GOOD = Description(
    root=Path("set"),
    splits=(("train", 90), ("test", 10)),
    files=Files(looked_at=100, broken=(), skipped=(), notes=()),
    captions=Captions(
        sources=(("metadata", 100),), missing=(), single=100, several=0, distinct=100, common=(), words=(4, 11), long=0
    ),
    words=Words(vocabulary=80, once=5, examples=()),
    sizes=Sizes(smallest=(64, 64), median=(64, 64), largest=(64, 64), square=64, oblong=0, small=0, cut=0.0),
    pixels=Pixels(mean=(0.5, 0.5, 0.5), deviation=(0.2, 0.2, 0.2), white=0, black=0, grey=0),
    duplicates=Duplicates(equal=(), near=(), across=()),
)


def captions(**changes: object) -> Description:
    return replace(GOOD, captions=replace(GOOD.captions, **changes))


def sizes(**changes: object) -> Description:
    assert GOOD.sizes is not None
    return replace(GOOD, sizes=replace(GOOD.sizes, **changes))


def broken(count: int, looked_at: int = 100) -> Description:
    keys = tuple((f"{index}.png", "It is empty.") for index in range(count))
    return replace(GOOD, files=replace(GOOD.files, looked_at=looked_at, broken=keys))


def duplicates(**changes: object) -> Description:
    return replace(GOOD, duplicates=replace(GOOD.duplicates, **changes))


def flat(deviation: float) -> Description:
    assert GOOD.pixels is not None
    return replace(GOOD, pixels=replace(GOOD.pixels, deviation=(0.0, 0.0, deviation)))


def near(count: int) -> Description:
    return duplicates(near=tuple((f"{i}a", f"{i}b") for i in range(count // 2)))


TWINS = Twins(one="a", one_split="test", other="b", other_split="train", is_equal=True)

BAD = {
    "nothing to train on": (replace(GOOD, splits=(("test", 100),)), "problem", "in the split train", "folders"),
    "few": (replace(GOOD, splits=(("train", 19), ("test", 81))), "warning", "only 19 pictures", "--from builtin"),
    "broken": (broken(5), "warning", "5 of 100 pictures cannot be decoded (0.png, 1.png, 2.png, ...)", "fetch"),
    "many broken": (broken(6), "problem", "more than the 5%", "--max-broken"),
    "all broken": (
        replace(broken(1, 1), sizes=None, pixels=None), "problem", "1 of 1 pictures cannot", "fetch"
    ),
    "no caption": (captions(missing=(("a", "train"),)), "problem", "1 of 100 pictures have no caption (a)", "--allow-missing-captions"),
    "no caption where it is only tested": (captions(missing=(("a", "test"),)), "warning", "have no caption", "metadata.jsonl"),
    "all the same": (captions(distinct=1, common=(("x", 100),)), "warning", 'all 100 captions are the same: "x"', "say"),
    "mostly the same": (captions(common=(("x", 51),)), "warning", '51 of 100 captioned pictures share the caption "x"', "say"),
    "long": (captions(long=1, words=(4, 31)), "warning", "captions of more than 30 words: 1 (the longest has 31)", "--model.network.text.max_tokens"),
    "not square": (sizes(oblong=50, cut=0.11), "warning", "not square: 50 pictures; a crop to the middle takes away 11%", "--aspect pad"),
    "small": (sizes(small=2), "warning", "2 of 100 pictures are smaller than 64x64", "recipe"),
    "flat": (flat(0.019), "problem", "nearly of one flat colour", "--sheet"),
    "leak": (duplicates(across=(TWINS,)), "warning", "in different splits: 1, of which 1 equal (a and b)", "same split"),
    "copies": (duplicates(equal=(("a", "b", "c"), ("d", "e"))), "warning", "copies of another picture, pixel by pixel: 3 (a = b, d = e)", "metadata.jsonl"),
    "near": (near(12), "warning", "12 of 100 pictures have near-duplicates, in 6 groups (0a ~ 0b,", "groups"),
}  # fmt: skip

NOT_QUITE_BAD = {
    "enough": replace(GOOD, splits=(("train", 20), ("test", 80))),
    "half the same": captions(common=(("x", 50),)),
    "two of three the same": captions(single=3, distinct=2, common=(("x", 2),)),
    "one picture": captions(single=1, distinct=1),
    "as long as may be": captions(words=(4, 30)),
    "a little cut": sizes(oblong=100, cut=0.1),
    "one small": sizes(small=1),
    "faint": flat(0.02),
    "some near": near(10),
    "one split": replace(GOOD, splits=(("train", 100),)),
}


@pytest.mark.parametrize(("description", "severity", "what", "remedy"), BAD.values(), ids=BAD)
def test_a_fault_is_found_with_its_remedy(description: Description, severity: str, what: str, remedy: str) -> None:
    (found,) = [finding for finding in judge(description) if finding.severity != "fine"]
    assert found.severity == severity
    assert what in found.what
    assert remedy in found.remedy
    assert "\n" not in found.what + found.remedy


@pytest.mark.parametrize("description", [GOOD, *NOT_QUITE_BAD.values()], ids=["good", *NOT_QUITE_BAD])
def test_what_is_no_fault_is_fine(description: Description) -> None:
    found = judge(description)
    assert [finding.severity for finding in found] == ["fine"] * 11
    assert not any(finding.remedy for finding in found)


def test_a_set_of_one_split_is_told_so() -> None:
    found = [one.what for one in judge(NOT_QUITE_BAD["one split"])]
    assert "there is only one split, so nothing is in two" in found


def test_a_part_that_was_looked_at_is_told() -> None:
    found = judge(replace(GOOD, files=replace(GOOD.files, looked_at=40)))
    assert "all of the 40 pictures looked at (of 100, chosen at random) can be decoded" in [one.what for one in found]


@pytest.mark.parametrize(("severity", "remedy"), [("fine", "do"), ("warning", ""), ("problem", "")])
def test_a_complaint_has_a_remedy(severity: str, remedy: str) -> None:
    with pytest.raises(ValueError, match="a finding has a remedy unless it is fine"):
        Finding(severity=severity, what="x", remedy=remedy)


def test_the_share_of_broken_pictures_is_that_of_training() -> None:
    from unstir.data.transforms import MAX_BROKEN
    from unstir.training.run import RunConfig

    assert RunConfig().max_broken == MAX_BROKEN == load_pictures.__kwdefaults__["max_broken"]


@pytest.mark.parametrize(
    "remedy", ["--model.network.text.max_tokens 64", "--max-broken", "--aspect pad", "--allow-missing-captions"]
)
def test_flags_that_remedies_name_are_flags(remedy: str) -> None:
    from unstir.cli.app import app
    from unstir.cli.train import as_settings
    from unstir.config import override
    from unstir.recipes import emoji

    assert any(
        remedy in finding[0] for finding in [[f.remedy] for description, *_ in BAD.values() for f in judge(description)]
    )
    if "." in remedy:
        key, _, value = as_settings(remedy.split())[1].partition("=")
        assert override(emoji(), [(key, value)]) != emoji()
        return
    names = [name for argument in app["train"].assemble_argument_collection() for name in argument.names]
    assert remedy.split()[0] in names
