"""Draw the sheets of docs/editing.md with the built-in model and measure the seams of its tiles.

python scripts/editing_page.py [--model builtin]     (about three minutes)
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy
from pages import fill
from PIL import Image, ImageDraw

from unstir.pipeline import Pipeline, load
from unstir.training.preview import contact_sheet

PAGE = Path("docs/editing.md")
BEGIN, END = "<!-- figures: scripts/editing_page.py -->", "<!-- end of figures -->"
SEEDS = {"a red heart": 3, "a strawberry": 3, "a cat face": 3, "a house": 3, "a pizza": 3}
TILES = ("a brick wall", "sea waves", "fire", "a pattern of hearts", "green leaves", "a checkered flag")
FRAMES = 8


def write(name: str, pictures: list[Image.Image], labels: list[str], columns: int, scale: int = 2) -> None:
    """One sheet of the page."""
    contact_sheet(pictures, labels, columns=columns, scale=scale).save(f"docs/editing-{name}.png", optimize=True)


def strengths(pipe: Pipeline, sources: dict[str, Image.Image]) -> None:
    """A picture under another prompt, from weak to strong."""
    pictures: list[Image.Image] = []
    labels: list[str] = []
    for source, prompt in (
        ("a red heart", "a blue heart"),
        ("a strawberry", "a pineapple"),
        ("a cat face", "a dog face"),
        ("a house", "a castle"),
    ):
        for strength in (0.0, 0.25, 0.5, 0.75, 1.0):
            pictures += pipe.edit(sources[source], prompt, strength=strength, seed=0)
            labels.append(f"{prompt}, {strength:g}")
    write("strength", pictures, labels, columns=5)


def masks(pipe: Pipeline, sources: dict[str, Image.Image]) -> None:
    """The masked picture, what is painted, and what is painted with steps walked again."""
    pictures: list[Image.Image] = []
    labels: list[str] = []
    for source, prompt, box in (
        ("a strawberry", "a strawberry", (32, 0, 64, 64)),
        ("a house", "a house", (0, 0, 64, 32)),
        ("a cat face", "a cat face", (18, 20, 46, 48)),
        ("a cat face", "a dog face", (0, 0, 64, 30)),
        ("a cat face", "a cat face with tears", (0, 30, 64, 64)),
    ):
        mask = Image.new("L", (64, 64), 0)
        mask.paste(255, box)
        shown = sources[source].copy()
        ImageDraw.Draw(shown).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=(128, 128, 128))
        pictures += [shown, *pipe.edit(sources[source], prompt, mask=mask, n=2, seed=0)]
        pictures += pipe.edit(sources[source], prompt, mask=mask, resample=8, seed=0)
        labels += [source, f"{prompt}, seed 0", "seed 1", "--resample 8"]
    write("mask", pictures, labels, columns=4)


def extended(pipe: Pipeline, sources: dict[str, Image.Image]) -> None:
    """A crop of 40x40 and the canvas drawn around it."""
    pictures: list[Image.Image] = []
    labels: list[str] = []
    for prompt, box in (
        ("a red heart", (12, 12, 52, 52)),
        ("a cat face", (0, 12, 40, 52)),
        ("a pizza", (24, 0, 64, 40)),
        ("a house", (12, 0, 52, 40)),
    ):
        crop = sources[prompt].crop(box)
        shown = Image.new("RGB", (64, 64), (128, 128, 128))
        shown.paste(crop, box[:2])
        extend = (box[0], box[1], 64 - box[2], 64 - box[3])
        pictures += [shown, *pipe.edit(crop, prompt, extend=extend, n=2, seed=0)]
        labels += ["40x40", prompt, "seed 1"]
    write("extend", pictures, labels, columns=6)


def variations(pipe: Pipeline, sources: dict[str, Image.Image]) -> None:
    """A picture and others of its prompt that start from it."""
    pictures: list[Image.Image] = []
    labels: list[str] = []
    for prompt in ("a cat face", "a house", "a pizza"):
        for strength in (0.75, 0.95):
            pictures += [sources[prompt], *pipe.edit(sources[prompt], prompt, strength=strength, n=5, seed=0)]
            labels += [prompt] + [f"{strength:g}, seed {i}" for i in range(5)]
    write("variations", pictures, labels, columns=6)


def ways(pipe: Pipeline, sources: dict[str, Image.Image]) -> list[str]:
    """Strips between pictures and between prompts; how far the ends come from the pictures."""
    pairs = (("a red heart", "a strawberry"), ("a cat face", "a pizza"), ("a house", "a cat face"))
    pictures: list[Image.Image] = []
    missed: list[float] = []
    for here, there in pairs:
        ends = (sources[here], sources[there])
        strip = pipe.between(here, there, pictures=ends, frames=FRAMES, seed=0)
        missed += [distance(a, b) for a, b in zip((strip[0], strip[-1]), ends, strict=True)]
        pictures += strip
    shares = [f"{i / (FRAMES - 1):.2f}" for i in range(FRAMES)]
    write("pictures", pictures, shares * len(pairs), columns=FRAMES)
    pictures = []
    for here, there in (("a cat", "a dog"), ("a strawberry", "a pineapple"), ("a tiger face", "a pizza")):
        pictures += pipe.between(here, there, frames=FRAMES, seed=0)
    write("prompts", pictures, shares * 3, columns=FRAMES)
    return [
        f"The ends of the {len(pairs)} ways between pictures, 12 steps: {numpy.mean(missed):.2f}/255 from the pictures "
        f"on average, {max(missed):.2f}/255 at most (mean absolute difference)."
    ]


def tiles(pipe: Pipeline) -> list[str]:
    """Tiles shown 2x2, without and with --tile, and how high their seams are."""
    pictures: list[Image.Image] = []
    labels: list[str] = []
    rows = ["| | step across the seam | step inside |", "|---|---|---|"]
    for label, is_tile in (("plain", False), ("--tile", True)):
        drawn = pipe.sample(TILES, seed=0, tile=is_tile)
        seams, insides = zip(*map(seam, drawn), strict=True)
        rows.append(f"| {label} | {numpy.mean(seams):.1f} | {numpy.mean(insides):.1f} |")
        for picture, prompt in zip(drawn, TILES, strict=True):
            four = Image.new("RGB", (128, 128))
            for place in ((0, 0), (64, 0), (0, 64), (64, 64)):
                four.paste(picture, place)
            pictures.append(four)
            labels.append(f"{prompt}, {label}")
    write("tiles", pictures, labels, columns=len(TILES), scale=1)
    return rows


def seam(picture: Image.Image) -> tuple[float, float]:
    """Mean absolute difference of neighbours across the wrapped edges, and of those inside."""
    pixels = numpy.asarray(picture).astype(float)
    across = [abs(pixels[:, 0] - pixels[:, -1]).mean(), abs(pixels[0] - pixels[-1]).mean()]
    inside = [abs(numpy.diff(pixels, axis=axis)).mean() for axis in (0, 1)]
    return float(numpy.mean(across)), float(numpy.mean(inside))


def distance(one: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference, in 1/255."""
    return float(abs(numpy.asarray(one).astype(float) - numpy.asarray(other)).mean())


def main() -> None:
    """Draw, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin")
    pipe = load(parser.parse_args().model)
    sources = {prompt: pipe.sample(prompt, seed=seed)[0] for prompt, seed in SEEDS.items()}
    strengths(pipe, sources)
    masks(pipe, sources)
    extended(pipe, sources)
    variations(pipe, sources)
    lines = [*ways(pipe, sources), "", *tiles(pipe)]
    fill(PAGE, BEGIN, END, lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
