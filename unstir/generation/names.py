"""Names of pictures: the prompt as a part of a file's name, and the number before it.

Knows: which marks a file's name can do without.
Does not know: folders, files, what a picture shows.
"""

from __future__ import annotations

import re
import unicodedata

_NUMBERED = re.compile(r"(\d{6,})-.*\.png")


def slug(prompt: str) -> str:
    """The prompt as a file name: letters and digits of any script, at most 48 of them, joined by hyphens."""
    words = re.sub(r"[^\w]+", "-", unicodedata.normalize("NFKC", prompt).lower()).strip("-_")
    return words[:48].rstrip("-_") or "picture"


def picture_name(index: int, prompt: str) -> str:
    """``000012-a-red-heart.png``: a million of these sort in their order."""
    return f"{index:06d}-{slug(prompt)}.png"


def index_of(name: str) -> int | None:
    """The number that a name was made of by ``picture_name``; None of any other name."""
    found = _NUMBERED.fullmatch(name)
    return int(found[1]) if found else None
