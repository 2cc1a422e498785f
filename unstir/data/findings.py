"""What is good and bad about a set of pictures to train on, each with what to do about it.

Knows: from which figure on a set is worth a warning, or would be refused.
Does not know: how the figures come about, models, how a finding is shown.

A problem stops a training or makes it pointless; a warning is something that its owner should know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from unstir.data.description import LONG_WORDS, Description
from unstir.data.folder import ALLOW_FLAG
from unstir.data.transforms import MAX_BROKEN

FEW = 20
"""Below so many pictures a model has little to learn from."""

_SAME = 0.5  # share of the captioned pictures with one caption
_SMALL = 0.01  # share of pictures that are enlarged
_CUT = 0.1  # share of the area that is cut off, in the mean
_NEAR = 0.1  # share of pictures in groups of near ones
_FLAT = 0.02  # standard deviation of all pixels, of 1


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Args:
        severity: "fine", "warning" or "problem".
        what: the finding, in one sentence.
        remedy: what to do about it, in one sentence; empty where all is fine.
    """

    severity: Literal["fine", "warning", "problem"]
    what: str
    remedy: str = ""

    def __post_init__(self) -> None:
        """Refuse a complaint without a remedy.

        Raises:
            ValueError: if there is a remedy for what is fine, or none for what is not.
        """
        if (self.severity == "fine") == bool(self.remedy):
            raise ValueError(f"a finding has a remedy unless it is fine, got {self.severity}: {self.what}")


def judge(description: Description) -> tuple[Finding, ...]:
    """What there is to say of a set, in a fixed order, the fine things too."""
    pixels = [_shapes, _enlarged, _contrast] if description.sizes else []
    checks = [_number, _broken, _captioned, _different, _length, *pixels, _leaks, _equal, _near]
    return tuple(check(description) for check in checks)


def _fine(what: str) -> Finding:
    return Finding(severity="fine", what=what)


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")


def _number(description: Description) -> Finding:
    count = dict(description.splits).get("train", 0)
    if not count:
        return Finding(
            severity="problem",
            what=f"none of the {description.pictures} pictures is in the split train",
            remedy="move those to train on out of the folders (or rows) named validation and test",
        )
    if count < FEW:
        return Finding(
            severity="warning",
            what=f"there are only {count} pictures to train on",
            remedy=f"add pictures until there are {FEW} or more, or start from a trained model with --from builtin",
        )
    return _fine(f"{count} pictures to train on")


def _broken(description: Description) -> Finding:
    broken, looked_at = description.files.broken, description.files.looked_at
    if not broken:
        rest = "" if looked_at == description.pictures else f" (of {description.pictures}, chosen at random)"
        return _fine(f"all of the {looked_at} pictures looked at{rest} can be decoded")
    share = len(broken) / looked_at
    is_refused = share > MAX_BROKEN
    limit = f", more than the {MAX_BROKEN:.0%} that training puts up with" if is_refused else ""
    return Finding(
        severity="problem" if is_refused else "warning",
        what=f"{len(broken)} of {looked_at} pictures cannot be decoded{limit} ({_some([key for key, _ in broken])})",
        remedy="fetch these files again or delete them, or let training put up with more of them with --max-broken",
    )


def _captioned(description: Description) -> Finding:
    missing = description.captions.missing
    if not missing:
        return _fine("every picture has a caption")
    # A training never opens the split test; what is missing there stops only an evaluation.
    is_refused = any(split != "test" for _, split in missing)
    return Finding(
        severity="problem" if is_refused else "warning",
        what=f"{len(missing)} of {description.pictures} pictures have no caption ({_some([k for k, _ in missing])})",
        remedy="add them to a metadata.jsonl (file_name, text) or as a .txt beside each picture, or train without them "
        f"with {ALLOW_FLAG}",
    )


def _different(description: Description) -> Finding:
    captions = description.captions
    captioned = captions.single + captions.several
    caption, count = captions.common[0] if captions.common else ("", 0)
    if captions.distinct == 1 and captioned > 1:
        what = f'all {captioned} captions are the same: "{caption}"'
    elif count > max(_SAME * captioned, 2):
        what = f'{count} of {captioned} captioned pictures share the caption "{caption}"'
    else:
        return _fine(f"{captions.distinct} different captions")
    return Finding(
        severity="warning",
        what=what,
        remedy="say in each caption what tells its picture from the others: a prompt can ask only for what they say",
    )


def _length(description: Description) -> Finding:
    captions = description.captions
    if not captions.long:
        return _fine(f"no caption has more than {captions.words[1]} words")
    return Finding(
        severity="warning",
        what=f"captions of more than {LONG_WORDS} words: {captions.long} (the longest has {captions.words[1]}), and "
        "recipes read 32 tokens",
        remedy="put what matters first or shorten them, or let the model read more with "
        "--model.network.text.max_tokens 64",
    )


def _shapes(description: Description) -> Finding:
    sizes = description.sizes
    assert sizes is not None
    if sizes.cut <= _CUT:
        return _fine(f"cropping to squares takes away {sizes.cut:.1%} of the pictures' area")
    return Finding(
        severity="warning",
        what=f"not square: {sizes.oblong} pictures; a crop to the middle takes away {sizes.cut:.0%} of the area",
        remedy="keep the whole of them with --aspect pad, or crop those yourself whose subject would be cut off",
    )


def _enlarged(description: Description) -> Finding:
    sizes = description.sizes
    assert sizes is not None
    seen = description.files.looked_at - len(description.files.broken)
    if sizes.small <= _SMALL * seen:
        return _fine(f"{seen - sizes.small} of {seen} pictures are at least {sizes.square}x{sizes.square}")
    return Finding(
        severity="warning",
        what=f"{sizes.small} of {seen} pictures are smaller than {sizes.square}x{sizes.square} and are enlarged, so "
        "the model learns to draw blur",
        remedy="give larger originals, or choose a recipe for smaller pictures (tiny has 32x32)",
    )


def _contrast(description: Description) -> Finding:
    pixels = description.pixels
    assert pixels is not None
    if max(pixels.deviation) >= _FLAT:
        return _fine(f"the pixels vary (standard deviation {max(pixels.deviation):.2f} of 1)")
    return Finding(
        severity="problem",
        what=f"the pictures are nearly of one flat colour (standard deviation {max(pixels.deviation):.3f} of 1)",
        remedy="look at them with unstir data describe --sheet, and save them anew with their colours",
    )


def _leaks(description: Description) -> Finding:
    if len(description.splits) < 2:
        return _fine("there is only one split, so nothing is in two")
    twins = description.duplicates.across
    if not twins:
        return _fine("none of the pictures looked at is in two splits")
    some = _some([f"{one.one} and {one.other}" for one in twins])
    equal = sum(one.is_equal for one in twins)
    return Finding(
        severity="warning",
        what=f"pairs of nearly the same picture in different splits: {len(twins)}, of which {equal} equal ({some}); a "
        "model that only copies looks as good there as one that learned",
        remedy="put all pictures of a group into the same split, or delete one of each pair",
    )


def _equal(description: Description) -> Finding:
    groups = description.duplicates.equal
    if not groups:
        return _fine("none of the pictures looked at is there twice")
    copies = sum(len(group) - 1 for group in groups)
    return Finding(
        severity="warning",
        what=f"copies of another picture, pixel by pixel: {copies} ({_some([' = '.join(g[:2]) for g in groups])})",
        remedy="keep one of each, and give its captions as a list in one row of metadata.jsonl",
    )


def _near(description: Description) -> Finding:
    seen = description.files.looked_at - len(description.files.broken)
    groups = description.duplicates.near
    count = sum(len(group) for group in groups)
    if count <= _NEAR * seen:
        return _fine(f"{count} of {seen} pictures have near-duplicates")
    some = _some([" ~ ".join(group[:2]) for group in groups])
    return Finding(
        severity="warning",
        what=f"{count} of {seen} pictures have near-duplicates, in {len(groups)} groups ({some}), and weigh more than "
        "the others",
        remedy="thin out the groups, or see that captions tell their pictures apart; name a validation split of your "
        "own by groups, for training would hold out one in twenty regardless of them",
    )
