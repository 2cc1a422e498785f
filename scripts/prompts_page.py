"""Draw weighted prompts with the built-in model and fill in docs/prompts.md.

    python scripts/prompts_page.py     (about two minutes)

The sheet: one prompt a row, its bracketed words at five weights. The figures: over people of dark skin tone, how dark
the picture is, and how far it is from the picture without the weighted words, and from the plain one.
"""

from __future__ import annotations

from pathlib import Path

import numpy
from pages import fill
from PIL import Image

from unstir.pipeline import Pipeline, load
from unstir.training.preview import contact_sheet

PAGE, SHEET = Path("docs/prompts.md"), Path("docs/prompts.png")
BEGIN, END = "<!-- figures: scripts/prompts_page.py -->", "<!-- end of figures -->"
WEIGHTS = (0.0, 0.5, 1.0, 1.5, 2.0)
SHOWN = (
    ("Santa Claus: ({})", "dark skin tone"),
    ("a cat with ({})", "tears of joy"),
    ("a ({}) heart", "blue"),
)
PEOPLE = (
    "astronaut", "firefighter", "cook", "farmer", "judge", "pilot", "scientist", "singer", "student", "teacher",
    "mechanic", "artist",
)  # fmt: skip


def draw(pipe: Pipeline, prompts: list[str], *, seed: int = 0, syntax: str = "weighted") -> list[Image.Image]:
    """One picture a prompt, all of one seed."""
    return [pipe.sample(prompt, seed=seed, syntax=syntax)[0] for prompt in prompts]


def main() -> None:
    """Sheet and figures."""
    pipe = load(device="cpu")
    said = [(template, f"{words}:{weight:g}") for template, words in SHOWN for weight in WEIGHTS]
    shown = draw(pipe, [template.format(words) for template, words in said])
    contact_sheet(shown, [f"({words})" for _, words in said], columns=len(WEIGHTS)).save(SHEET, optimize=True)
    lines = ["| weight | mean grey value | from without the words | from the plain prompt |", "|---|---|---|---|"]
    found: dict[float, numpy.ndarray] = {}
    for weight in WEIGHTS:
        pictures = draw(pipe, [f"woman {person}: (dark skin tone:{weight:g})" for person in PEOPLE])
        found[weight] = numpy.stack([numpy.asarray(picture, float) for picture in pictures])
    plain = draw(pipe, [f"woman {person}: dark skin tone" for person in PEOPLE], syntax="plain")
    whole = numpy.stack([numpy.asarray(picture, float) for picture in plain])
    for weight, pictures in found.items():
        away = [abs(pictures - other).mean() for other in (found[0.0], whole)]
        lines.append(f"| {weight:g} | {pictures.mean():.1f} | {away[0]:.1f} | {away[1]:.1f} |")
    fill(PAGE, BEGIN, END, lines)


if __name__ == "__main__":
    main()
