"""What the names of files and folders say: captions, classes, repeats, splits.

Knows: how people name pictures and folders, and which names are no words (IMG_1234, DSC0001, hex ids, counters).
Does not know: where names come from, and what goes before a name as a caption (that is ``layout.py``).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Mapping

_SPLIT_NAMES = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "test": "test",
}
_PLAIN_FOLDERS = {"images", "image", "imgs", "img", "pictures", "photos", "data", "png", "jpg", "jpeg"}
# Words that cameras, programs and web pages name files with; a name of nothing else says nothing of the picture.
_NO_WORDS = re.compile(
    "am|at|bild|bildschirmfoto|captura|capture|clip|copy|crop|cropped|default|download|dsc|dscf|"
    "dscn|edit|edited|export|file|final|foto|frame|from|gopr|image|imagen|images|img|input|"
    "large|mask|medium|mvimg|new|no|nr|of|on|original|out|output|page|pano|photo|photos|pic|"
    "pics|picture|pictures|pixel|pm|preview|pxl|render|result|sample|samples|scan|screen|"
    "screenshot|shot|small|snap|snapchat|snapshot|source|the|thumb|thumbnail|tile|tmp|unbenannt|"
    "unknown|unnamed|untitled|vid|view|wa|whatsapp"
)
_COUNTER = re.compile(r"(?:\s+[0-9]+|\s*\([0-9]+\))$")
_MANY_REPEATS = 1000  # a larger number before a folder's name is a year or an id
_MOST = 0.9


def split_of(name: str) -> str | None:
    """The split that a folder or file is named after, as train, val or test-00000-of-00001; None if after none."""
    return _SPLIT_NAMES.get(re.split(r"[-_.]", name.lower())[0])


def split_of_folder(name: str) -> str | None:
    """The split that a folder is named after, in full: train, validation, val, valid, dev or test."""
    return _SPLIT_NAMES.get(name.lower())


def caption_of(stem: str) -> str:
    """The caption in a file's name without its suffix: spaces for _ and -, without a counter at its end.

    red_fox_02 and "red-fox (3)" are both "red fox"; a name that is all counter stays as it is.
    """
    text = _spaced(stem)
    shorter = _COUNTER.sub("", text)
    while shorter != text:
        text, shorter = shorter, _COUNTER.sub("", shorter)
    return text or _spaced(stem)


def class_of(folder: str) -> str:
    """The class in a folder's name: spaces for _ and -."""
    return _spaced(folder)


def is_plain_folder(name: str) -> bool:
    """Whether a folder's name says that it holds pictures, and not what they show."""
    return name.lower() in _PLAIN_FOLDERS


def are_captions(stems: Collection[str]) -> bool:
    """Whether nearly all names of a set read like words and are not one and the same, so that they may be captions."""
    if not stems:
        return False
    words = sum(reads_like_words(stem) for stem in stems)
    return words >= _MOST * len(stems) and (len(stems) == 1 or len({caption_of(stem) for stem in stems}) > 1)


def reads_like_words(stem: str) -> bool:
    """Whether a name says what is seen: at least half of its parts, and one of them, are words that cameras do not use.

    A word has three letters and, in Latin script, a vowel; in other scripts one letter is enough.
    """
    parts = [part for part in caption_of(stem).split() if not part.isdecimal()]
    words = [part for part in parts if _is_word(part)]
    return 2 * len(words) >= len(parts) and any(_NO_WORDS.fullmatch(word.casefold()) is None for word in words)


def repeats_of(folders: Collection[str], notes: list[str]) -> dict[str, tuple[int, str]]:
    """What folders say that are named <repeats>_<name> as for kohya's trainer, if all of them are.

    Numbers that count classes (from 0, or from 1 over three folders or more) or exceed 1000 are no repeats.

    Args:
        folders: the names of all folders with pictures.
        notes: gets a sentence if all folders begin with a number.

    Returns:
        Name of the folder -> (repeats, its class); empty if the folders are not of this kind.
    """
    found = [re.fullmatch(r"([0-9]{1,9})_(.*[^\W_].*)", folder) for folder in sorted(folders)]
    matches = sorted((match for match in found if match is not None), key=lambda match: int(match[1]))
    read = {match[0]: (int(match[1]), class_of(match[2])) for match in matches}
    if not read or len(read) < len(folders):
        return {}
    numbers = [number for number, _ in read.values()]
    counted = len(numbers) >= 3 and numbers == list(range(1, len(numbers) + 1))
    if counted or numbers[0] == 0 or numbers[-1] > _MANY_REPEATS:
        notes.append(
            f"The numbers before the names of the folders ({_some(read)}) are taken for a part of the name and not for"
            f" repeats, for they {'count the folders' if numbers[-1] <= _MANY_REPEATS else 'are large'}."
        )
        return {}
    notes.append(f"The numbers before the names of the folders are repeats in an epoch: {_some(read)}.")
    return read


def _some(read: Mapping[str, tuple[int, str]]) -> str:
    shown = [f"{number} times {name!r}" for number, name in list(read.values())[:3]]
    return ", ".join(shown) + (", ..." if len(read) > 3 else "")


def _spaced(name: str) -> str:
    return re.sub(r"[_\-\s]+", " ", name).strip()


def _is_word(part: str) -> bool:
    letters = unicodedata.normalize("NFD", part.strip(".,;:!?'\"()[]&+").replace("'", "").replace("\u2019", ""))
    if not letters or not all(unicodedata.category(letter)[0] in "LM" for letter in letters):
        return False
    if letters[0].isascii():
        return len(letters) >= 3 and re.search("[aeiouy]", letters, re.IGNORECASE) is not None
    return True
