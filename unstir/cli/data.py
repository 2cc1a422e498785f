"""``unstir data``: captioned sets that unstir can build, and what any set holds.

Knows: which sets there are, where a sheet of examples goes.
Does not know: how sets are built, what is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from unstir.cli.output import Whole, print_json, progress_bar, require_place, stage_progress

if TYPE_CHECKING:
    from unstir.data.describe import Pair

data_app = App(
    name="data",
    help="Build captioned sets of pictures, and describe your own. Example: unstir data emoji emoji/",
    help_format="plaintext",
)

_PAIRS = 5
_SHEET_SIDE = 256  # pixels that a picture of a sheet has about: a caption of some 40 letters fits under it


@data_app.command
def emoji(
    directory: Path,
    *,
    size: Whole = 64,
    language: str = "en",
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Build the emoji set: 3,621 drawings with names and keywords, from Debian's fonts and Unicode's names.

    Example: unstir data emoji emoji/ --size 64

    Parameters
    ----------
    directory
        Where to; a folder that is empty, new, or an emoji set of before.
    size
        Height and width of the pictures in pixels, 8 to 136.
    language
        Of names and keywords: en, de, fr, ja, ...
    json
        Print one JSON object instead of text.
    """
    from unstir.data.emoji import build_emoji

    with progress_bar("drawing emoji", 1) as advance:
        summary = build_emoji(
            directory, size=size, language=language, progress=lambda done, total: advance(done / total)
        )
    if json:
        print_json({key: str(value) if isinstance(value, Path) else value for key, value in asdict(summary).items()})
        return
    print(
        f"{summary.pictures} pictures of {size}x{size} ({summary.train} train, {summary.validation} validation, "
        f"{summary.held_out} held out): {directory.resolve()}"
    )


@data_app.command
def describe(
    directory: Path,
    *,
    size: Whole = 64,
    seed: Whole = 0,
    limit: Whole = 20_000,
    captions: str = "auto",
    sheet: str | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Tell what a set of pictures holds: captions, words, sizes, pixels, duplicates, and five pairs to look at.

    Example: unstir data describe my-pictures/ --sheet pairs.png

    Parameters
    ----------
    directory
        A folder, archive or parquet file of pictures, as for unstir train --data.
    size
        Height and width in pixels that the pictures are to be trained at, 1 to 4096.
    seed
        Chooses the five pairs, the examples of words, and the pictures looked at where there are too many.
    limit
        So many pictures are decoded; of more, a random choice. Captions and words are always those of all.
    captions
        As in train: where captions are taken from.
    sheet
        A file for a contact sheet of the five pairs.
    json
        Print one JSON object instead of text.
    """
    from unstir.config import to_dict
    from unstir.data.describe import choose_pairs
    from unstir.data.describe import describe as look_at
    from unstir.data.folder import find_pictures

    place = None if sheet is None else require_place(sheet)
    pictures = find_pictures(directory, captions=captions)
    with stage_progress() as advance:
        description = look_at(pictures, size, seed=seed, limit=limit, progress=advance)
    pairs = choose_pairs(pictures, size, count=_PAIRS, seed=seed)
    if place is not None:
        _write_sheet(pairs, size, place, title=str(directory))
    if json:
        examples = [{"key": pair.key, "caption": pair.caption} for pair in pairs]
        print_json(
            {
                "pictures": description.pictures,
                **to_dict(description),
                "examples": examples,
                "sheet": None if place is None else str(place),
            }
        )
        return
    for line in description.lines():
        print(line)
    for pair in pairs:
        print(f"example: {pair.key}: {'(no caption)' if pair.caption is None else pair.caption}")
    print(f"a sheet of these: {place}" if place is not None else "for a sheet of these: --sheet pairs.png")


def _write_sheet(pairs: Sequence[Pair], size: int, place: Path, *, title: str) -> None:
    from unstir.metadata import save_picture
    from unstir.training.preview import contact_sheet

    if not pairs:
        raise ValueError(f"none of the pictures in {title} can be decoded, so there is no sheet of them to draw")
    sheet = contact_sheet(
        [pair.picture for pair in pairs],
        ["(no caption)" if pair.caption is None else pair.caption for pair in pairs],
        columns=len(pairs),
        title=title,
        scale=max(1, _SHEET_SIDE // size),
    )
    save_picture(sheet, place, None)
