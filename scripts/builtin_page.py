"""Measure the built-in model and draw its sheets; fill in docs/builtin-model.md.

    python scripts/builtin_page.py [--model builtin] [--data runs/emoji]     (about a quarter of an hour)

Figures: retrieval of the held-out combinations and of training names, three seeds, and what is right where it fails;
the prompts in free wording of scripts/free_prompts.tsv; 20 keywords, eight seeds each. Sheets: 64 held-out
combinations beside the real pictures, 32 of the free prompts, 16 prompts with words or pairs that the set has not.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pages import fill, unstir
from PIL import Image

from unstir.data.folder import find_pictures
from unstir.data.transforms import load_pictures
from unstir.evaluation.prompts import choose_prompts
from unstir.pipeline import load
from unstir.training.preview import contact_sheet

PAGE, FREE = Path("docs/builtin-model.md"), Path("scripts/free_prompts.tsv")
BEGIN, END = "<!-- figures: scripts/builtin_page.py -->", "<!-- end of figures -->"
UNSEEN = (
    "a sad robot", "a purple banana", "a blue strawberry", "a cat astronaut", "an angry lemon", "a green fire engine",
    "a snowman with sunglasses", "a heart made of ice", "a spider on a skateboard", "a golden key", "a pink elephant",
    "a happy cloud", "a castle at night", "a bearded baby", "a samurai", "nothing at all",
)  # fmt: skip


def figures(model: str, data: str) -> list[str]:
    """The lines of the page between its markers."""
    names = unstir("evaluate", model, "--data", data, "--seeds", 3)
    free = unstir("evaluate", model, "--data", data, "--prompts", FREE, "--seeds", 3)["prompts"]["free"]
    words = unstir("evaluate", model, "--data", data, "--keywords", 20, "--seeds", 8)["prompts"]["keywords"]
    held_out, training = names["prompts"]["test"], names["prompts"]["train"]
    rows = [
        ("184 held-out combinations, never seen together in training", held_out),
        ("184 training names, chosen by the sha256 of their id", training),
        (f"{free['prompts']} prompts in free wording (`{FREE}`)", free),
        ("20 keywords of many pictures, 8 seeds each: the nearest real picture carries the keyword", words),
    ]
    lines = ["| prompts | top-1 | standard error |", "|---|---|---|"]
    lines += [f"| {label} | {100 * one['top1']:.1f} % | {100 * one['standard_error']:.1f} % |" for label, one in rows]
    differ, half = words["variety"]["distinct"], words["variety"]["half_differ"]["value"]
    lines += [
        "",
        f"Of the 8 seeds of a keyword, {differ['value']:.1f} ± {differ['standard_error']:.1f} are nearest to different "
        f"pictures; at least 4 differ for {100 * half:.0f} % of the keywords.",
        "",
    ]
    for label, one in (("held-out combinations", held_out), ("training names", training)):
        parts = one["parts"]
        shares = ", ".join(f"{part} {100 * parts[part]:.0f} %" for part in ("person", "job", "tone"))
        lines.append(f"Of the {parts['misses']} misses among {label} with a skin tone, right are: {shares}.")
    protocol = names["protocol"]
    lines += [
        "",
        f"Protocol: {protocol['sampler']}, {protocol['steps']} steps, {protocol['grid']}, guidance "
        f"{protocol['guidance']:g}, {protocol['precision']}, first seed 0; checksum of the model {names['checksum']}.",
    ]
    return lines


def sheets(model: str, data: str) -> None:
    """The three pictures of the page."""
    pipe = load(model)
    real, records = load_pictures(find_pictures(Path(data)), pipe.model.config.size)
    asked = choose_prompts(records, "test", 64)
    captions = [records.records[i].captions[0] for i in asked]
    drawn = pipe.sample(captions, seed=0, batch=16)
    pairs: list[tuple[Image.Image, str]] = []
    for index, caption, picture in zip(asked, captions, drawn, strict=True):
        pairs += [(picture, caption), (Image.fromarray(real[index].permute(1, 2, 0).numpy()), "real")]
    title = "64 held-out combinations: drawn (left) and real (right)"
    contact_sheet([p for p, _ in pairs], [t for _, t in pairs], columns=16, title=title, scale=1).save(
        "docs/builtin-sheet.png", optimize=True
    )
    free = [line.split("\t")[0] for line in FREE.read_text("utf-8").splitlines()][::2]
    contact_sheet(pipe.sample(free, seed=0, batch=16), free, columns=8).save("docs/builtin-free.png", optimize=True)
    contact_sheet(pipe.sample(UNSEEN, seed=0, batch=16), UNSEEN, columns=8).save(
        "docs/builtin-unseen.png", optimize=True
    )


def main() -> None:
    """Measure, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--data", default="runs/emoji")
    arguments = parser.parse_args()
    if not Path(arguments.data).exists():
        unstir("data", "emoji", arguments.data)
    sheets(arguments.model, arguments.data)
    lines = figures(arguments.model, arguments.data)
    fill(PAGE, BEGIN, END, lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
