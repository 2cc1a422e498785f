"""``unstir data``: captioned sets that unstir can build.

Knows: which sets there are.
Does not know: how they are built.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from unstir.cli.output import Whole, print_json, progress_bar

data_app = App(
    name="data", help="Build captioned sets of pictures. Example: unstir data emoji emoji/", help_format="plaintext"
)


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
