"""Build the emoji set: 3,621 named pictures drawn from two Debian packages, in the Hugging Face parquet layout.

Knows: where Debian keeps the colour emoji font and the names of emoji, how to draw them, and which names are held out.
Does not know: models, training, or how any other set of pictures is laid out (that is ``folder.py``).

The split is a function of the sequence alone, so that it is the same in every language, at every size and on every
machine: combinations of a figure and a skin tone are held out whose parts are both in the training part, and tell
composition from memory.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import json
import os
import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from PIL import Image, ImageDraw, ImageFont, features

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
ANNOTATIONS = Path("/usr/share/unicode/cldr/common")

MIN_SIZE = 8
MAX_SIZE = 136

_INSTALL = "apt-get install fonts-noto-color-emoji unicode-cldr-core"
_PIXELS_PER_EM = 109  # the only size at which the font has bitmaps
_GLYPH = (136, 128)
_CANVAS = (136, 136)
_ROWS_PER_GROUP = 100  # small groups, so that one picture can be read without reading a thousand
_INHERITED = "↑↑↑"  # CLDR's mark for "the same as in the parent language"
_MARK = "unstir-emoji"  # what tells a folder written by `build_emoji` from somebody's own
_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class EmojiSummary:
    """What `build_emoji` wrote: the number of pictures, in all and by split; where, how large, in which language."""

    pictures: int
    train: int
    validation: int
    held_out: int
    directory: Path
    size: int
    language: str


@dataclass(frozen=True, kw_only=True)
class _Emoji:
    sequence: str
    name: str
    keywords: tuple[str, ...]
    png: bytes
    also: tuple[str, ...] = ()


def split_of(sequence: str) -> str:
    """The split an emoji belongs to, from its code points alone.

    A sequence of more than one code point with a skin-tone modifier (U+1F3FB to U+1F3FF) goes by
    r = sha256(sequence in UTF-8) mod 10: r = 0 is held out ("test"), r = 1 is "validation". All else is "train".

    Returns:
        "train", "validation" or "test".
    """
    if len(sequence) < 2 or not any("\U0001f3fb" <= character <= "\U0001f3ff" for character in sequence):
        return "train"
    remainder = int(hashlib.sha256(sequence.encode()).hexdigest(), 16) % 10
    return {0: "test", 1: "validation"}.get(remainder, "train")


def repeats_of(sequence: str) -> int:
    """How often an epoch of training shows an emoji: twice where it has no skin tone.

    A figure with skin tones comes in 5 to 25 pictures that are nearly one; a lemon comes once, and would be learned
    last.
    """
    return 1 if any("\U0001f3fb" <= character <= "\U0001f3ff" for character in sequence) else 2


def build_emoji(
    directory: Path, *, size: int = 64, language: str = "en", progress: Callable[[int, int], None] | None = None
) -> EmojiSummary:
    """Draw every named emoji and write the set to `directory`, which appears whole or not at all.

    Each glyph is drawn at its native 136 x 128 in the middle of a white 136 x 136 canvas and resized with Lanczos.
    Of sequences with the same picture the first in CLDR's English order is kept, whatever the language; a sequence
    without a name in `language` is left out. The same packages and versions give the same bytes.

    Args:
        directory: created together with its parents; an earlier emoji set there is replaced, anything else is refused.
        size: width and height of the pictures in pixels, 8 to 136.
        language: a CLDR language such as "en", "de", "pt_PT" or "zh-Hant".
        progress: called with (sequences looked at, sequences to look at).

    Returns:
        How many pictures were written, by split.

    Raises:
        FileNotFoundError: if one of the two Debian packages is not installed.
        OSError: if this Pillow cannot shape sequences, or the folder cannot be written.
        ValueError: if size is out of range, the language is unknown or has no names, or directory cannot be replaced.
    """
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise ValueError(f"size is {size}, but an emoji can be drawn from {MIN_SIZE} to {MAX_SIZE} pixels wide.")
    directory = Path(os.path.realpath(directory))
    _require_packages()
    locale = _find_language(language)
    _require_replaceable(directory)
    emoji = _draw_all(locale, size, progress)
    if not emoji:
        raise ValueError(f"language {language!r} has no emoji names in {ANNOTATIONS}; take another, such as en or de.")
    with _written_whole(directory) as folder:
        (folder / "data").mkdir()
        counts = {split: _write_split(folder / "data", split, emoji) for split in _SPLITS}
        (folder / "README.md").write_text(_card(locale, size, counts), encoding="utf-8", newline="\n")
    return EmojiSummary(
        pictures=len(emoji),
        train=counts["train"],
        validation=counts["validation"],
        held_out=counts["test"],
        directory=directory,
        size=size,
        language=locale,
    )


def _require_packages() -> None:
    english = ANNOTATIONS / "annotations" / "en.xml"
    derived = ANNOTATIONS / "annotationsDerived" / "en.xml"
    missing = [str(path) for path in (FONT, english, derived) if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"{missing[0]} is missing; install the emoji font and names with: {_INSTALL}")
    if not features.check("raqm"):
        raise OSError("This Pillow was built without raqm, which shapes emoji sequences; install Pillow's own wheel.")


def _find_language(language: str) -> str:
    """The name CLDR's files have for a language: "pt-PT" is pt_PT."""
    known = sorted(path.stem for path in (ANNOTATIONS / "annotations").glob("*.xml") if path.stem != "root")
    by_folded = {name.lower(): name for name in known}
    found = by_folded.get(language.replace("-", "_").lower())
    if found is None:
        close = difflib.get_close_matches(language, known, n=3, cutoff=0.5)
        usual = [name for name in ("en", "de", "fr", "es", "zh", "ja", "ar", "hi") if name in known]
        some = ", ".join(dict.fromkeys([*close, *usual]))
        raise ValueError(f"language {language!r} is not one of the {len(known)} that CLDR has names in; try {some}.")
    return found


def _require_replaceable(directory: Path) -> None:
    """Refuse to write over anything but nothing, an empty folder, or a set written here before."""
    if not directory.exists():
        return
    if not directory.is_dir():
        raise ValueError(f"{directory} is a file, but the emoji set is a folder; give another name.")
    if Path.cwd().is_relative_to(directory) or directory.is_mount():
        raise ValueError(f"{directory} is in use and cannot be replaced; give the name of a new folder inside it.")
    entries = {path.name for path in directory.iterdir()}
    if entries and not _is_emoji_set(directory, entries):
        raise ValueError(f"{directory} holds other files, which are not replaced; give a new or an empty folder.")


def _is_emoji_set(directory: Path, entries: set[str]) -> bool:
    if entries != {"README.md", "data"} or not (directory / "data").is_dir():
        return False
    card = (directory / "README.md").read_text(encoding="utf-8", errors="replace")
    return _MARK in card and all(path.suffix == ".parquet" for path in (directory / "data").iterdir())


def _draw_all(locale: str, size: int, progress: Callable[[int, int], None] | None) -> list[_Emoji]:
    # English fixes the order, and with it which of several equal pictures is kept, for every language.
    sequences, _ = _read_annotations("en")
    names, keywords = _read_with_parents(locale)
    font = ImageFont.truetype(str(FONT), _PIXELS_PER_EM, layout_engine=ImageFont.Layout.RAQM)
    found: dict[bytes, _Emoji | None] = {}  # None where the first of equal pictures has no name
    for index, sequence in enumerate(sequences):
        canvas = _draw(sequence, font)
        if canvas is not None:
            digest, name = hashlib.sha256(canvas.tobytes()).digest(), names.get(sequence)
            kept = found.get(digest)
            if digest not in found:
                words = keywords.get(sequence, ())
                new = _Emoji(sequence=sequence, name=name, keywords=words, png=_encode(canvas, size)) if name else None
                found[digest] = new
            elif kept is not None and name is not None:
                found[digest] = replace(kept, also=(*kept.also, name))
        if progress is not None:
            progress(index + 1, len(sequences))
    return [one for one in found.values() if one is not None]


def _draw(sequence: str, font: ImageFont.FreeTypeFont) -> Image.Image | None:
    """The picture of a sequence on white, or None where the font has no single bitmap for it.

    A missing glyph has no ink, and a sequence that stays in pieces is wider than one bitmap; so the box of the ink is
    exactly one bitmap when, and only when, the sequence was shaped to one glyph that has one.
    """
    if font.getbbox(sequence) != (0, 0, *_GLYPH):
        return None
    # Drawn on white at once: drawing on a transparent canvas first would blend twice and darken every edge.
    canvas = Image.new("RGB", _CANVAS, "white")
    top = (_CANVAS[1] - _GLYPH[1]) // 2
    ImageDraw.Draw(canvas).text((0, top), sequence, font=font, embedded_color=True)
    return canvas


def _encode(canvas: Image.Image, size: int) -> bytes:
    picture = canvas if canvas.size == (size, size) else canvas.resize((size, size), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=9)
    return buffer.getvalue()


def _read_with_parents(locale: str) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """Names and keywords of a language; a regional one (pt_PT) only lists where it differs from its parent (pt)."""
    names, keywords = _read_annotations(locale)
    parent = re.fullmatch(r"(.+)_(?:[A-Z]{2}|[0-9]{3})", locale)
    if parent is None:
        return names, keywords
    parent_names, parent_keywords = _read_with_parents(parent[1])
    return parent_names | names, parent_keywords | keywords


def _read_annotations(locale: str) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    names: dict[str, str] = {}
    keywords: dict[str, tuple[str, ...]] = {}
    for folder in ("annotations", "annotationsDerived"):
        path = ANNOTATIONS / folder / f"{locale}.xml"
        if not path.is_file():
            continue
        for annotation in ElementTree.parse(path).iter("annotation"):
            sequence, value = annotation.get("cp", ""), (annotation.text or "").strip()
            if not sequence or not value or value == _INHERITED:
                continue
            if annotation.get("type") == "tts":
                names.setdefault(sequence, value)
            else:
                words = (word.strip() for word in value.split("|"))
                keywords.setdefault(sequence, tuple(word for word in words if word))
    return names, keywords


def _write_split(folder: Path, split: str, emoji: Sequence[_Emoji]) -> int:
    # pyarrow takes half a second to import and only this command needs it; it has no stubs, hence the Any.
    import pyarrow
    import pyarrow.parquet

    arrow, parquet = cast(Any, pyarrow), cast(Any, pyarrow.parquet)
    chosen = [one for one in emoji if split_of(one.sequence) == split]
    text, words = arrow.string(), arrow.list_(arrow.string())
    schema = arrow.schema(
        [
            ("image", arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])),
            ("text", text),
            ("id", text),
            ("name", text),
            ("keywords", words),
            ("split", text),
            ("also", words),
            ("repeats", arrow.int32()),
        ],
        metadata={"huggingface": json.dumps({"info": {"features": _features()}})},
    )
    rows: list[dict[str, Any]] = [
        {
            "image": {"bytes": one.png, "path": _file_name(one.sequence)},
            "text": one.name,
            "id": one.sequence,
            "name": one.name,
            "keywords": list(one.keywords),
            "split": split,
            "also": list(one.also),
            "repeats": repeats_of(one.sequence),
        }
        for one in chosen
    ]
    table = arrow.Table.from_pylist(rows, schema=schema)
    parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet", row_group_size=_ROWS_PER_GROUP)
    return len(chosen)


def _features() -> dict[str, Any]:
    text = {"dtype": "string", "_type": "Value"}
    return {
        "image": {"_type": "Image"},
        "text": text,
        "id": text,
        "name": text,
        "keywords": {"feature": text, "_type": "List"},
        "split": text,
        "also": {"feature": text, "_type": "List"},
        "repeats": {"dtype": "int32", "_type": "Value"},
    }


def _file_name(sequence: str) -> str:
    """The name of the picture's file: the code points in hexadecimal, as in "1f44b-1f3fb.png"."""
    return "-".join(f"{ord(character):x}" for character in sequence) + ".png"


@contextmanager
def _written_whole(directory: Path) -> Generator[Path]:
    """A folder beside `directory` to write to, which takes its place at the end, or vanishes with all it holds."""
    new_parents = [parent for parent in directory.parents if not parent.exists()]
    partial = directory.with_name(f".{directory.name}.{os.getpid()}.partial")
    previous = directory.with_name(f".{directory.name}.{os.getpid()}.previous")
    try:
        partial.mkdir(parents=True)
        yield partial
        if directory.exists():
            directory.rename(previous)
        partial.rename(directory)
    except BaseException:  # Ctrl-C too must leave things as they were
        if previous.exists() and not directory.exists():
            previous.rename(directory)
        shutil.rmtree(partial, ignore_errors=True)
        for parent in new_parents:
            if parent.exists() and not any(parent.iterdir()):
                parent.rmdir()
        raise
    finally:
        shutil.rmtree(previous, ignore_errors=True)


def _card(locale: str, size: int, counts: dict[str, int]) -> str:
    """The README of the set: what Hugging Face reads to load it, what it is, and whose work it is."""
    files = "\n".join(f"      - split: {split}\n        path: data/{split}-*" for split in _SPLITS)
    total = sum(counts.values())
    return f"""---
pretty_name: {_MARK}
language: {locale.replace("_", "-")}
license:
  - ofl-1.1
  - apache-2.0
  - other
task_categories:
  - text-to-image
size_categories:
  - {"n<1K" if total < 1000 else "1K<n<10K"}
configs:
  - config_name: default
    data_files:
{files}
---

# Emoji, {size} x {size}, named in {locale}

{total} distinct pictures with their names: {counts["train"]} to train on, {counts["validation"]} for validation and
{counts["test"]} held out. Written by `unstir data emoji`.

Each glyph is drawn at its native 136 x 128 in the middle of a white 136 x 136 canvas and resized with Lanczos to
{size} x {size} RGB. Of sequences with equal pictures the first is kept.

| column | what it holds |
|---|---|
| `image` | the picture, PNG |
| `text` | the caption: the name |
| `id` | the sequence of code points, as CLDR writes it (no U+FE0F) |
| `name` | the name (CLDR's `tts` annotation) |
| `keywords` | CLDR's other annotation, one word or phrase each |
| `split` | `train`, `validation` or `test` |
| `also` | names of further sequences with the same picture |
| `repeats` | how often an epoch of training shows it: 2 without a skin tone, else 1 |

A sequence of more than one code point with a skin tone (U+1F3FB to U+1F3FF) is held out (`test`) when the SHA-256 of
its UTF-8 bytes, read as one number, leaves 0 on division by 10; those that leave 1 are `validation`; all else is
`train`.

## Licences

- The font `NotoColorEmoji.ttf` (Debian package `fonts-noto-color-emoji`), copyright Google Inc.: SIL Open Font License
  1.1. These are pictures drawn with it; the glyph bitmaps may not be sold by themselves.
- The pictures in it (noto-emoji), copyright Google Inc.: Apache License 2.0; flags are in the public domain or
  otherwise exempt.
- The names and keywords (Unicode CLDR, Debian package `unicode-cldr-core`), copyright Unicode, Inc.:
  Unicode-DFS-2016, https://www.unicode.org/copyright.html
"""
