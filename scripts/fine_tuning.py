"""Measure fine-tuning beside training from nothing, on a folder of 200 pictures; fill in docs/fine-tuning.md.

    python scripts/fine_tuning.py            (trains what is missing under runs/, resumable; half an hour)
    python scripts/fine_tuning.py --quick    (a smoke run of a minute; writes to runs/quick-fine-tuning/)

The folder: 25 signs of the font DejaVu Sans in 10 colours, 64x64, each with a caption such as "a red star"; 50 of the
250 combinations of sign and colour are held out by the sha256 of their names. None of its pictures is an emoji.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

from pages import fill, unstir
from PIL import Image, ImageDraw, ImageFont

FONT = Path("/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf")
SIGNS = {
    "star": "★", "heart": "♥", "spade": "♠", "club": "♣", "diamond": "♦", "sun": "☀", "umbrella": "☂", "snowman": "☃",
    "cloud": "☁", "telephone": "☎", "skull": "☠", "anchor": "⚓", "pair of scissors": "✂", "plane": "✈",
    "letter": "✉", "pencil": "✏", "flower": "✿", "snowflake": "❄", "cross": "✚", "tune": "♫", "queen": "♛",
    "knight": "♞", "arrow": "➜", "gear": "⚙", "pennant": "⚑",
}  # fmt: skip
COLOURS = {
    "red": "#d62728", "orange": "#ff7f0e", "yellow": "#e8c500", "green": "#2ca02c", "blue": "#1f77b4",
    "purple": "#7b3fb0", "pink": "#f472b6", "brown": "#8c564b", "grey": "#8f8f8f", "black": "#111111",
}  # fmt: skip
HELD_OUT = 50
PAGE = Path("docs/fine-tuning.md")
BEGIN, END = "<!-- figures: scripts/fine_tuning.py -->", "<!-- end of figures -->"


def build_signs(folder: Path) -> None:
    """The set, as a folder with ``train`` and ``test`` and a metadata.jsonl in each."""
    font = ImageFont.truetype(str(FONT), 52)
    pairs = [(colour, sign) for colour in COLOURS for sign in SIGNS]
    ranked = sorted(pairs, key=lambda pair: hashlib.sha256(f"{pair[0]} {pair[1]}".encode()).hexdigest())
    for split, chosen in (("test", ranked[:HELD_OUT]), ("train", ranked[HELD_OUT:])):
        (folder / split).mkdir(parents=True, exist_ok=True)
        rows: list[str] = []
        for colour, sign in sorted(chosen):
            picture = Image.new("RGB", (64, 64), "white")
            ImageDraw.Draw(picture).text((32, 32), SIGNS[sign], COLOURS[colour], font=font, anchor="mm")
            name = f"{colour}-{sign.replace(' ', '-')}.png"
            picture.save(folder / split / name)
            text = f"an {colour} {sign}" if colour == "orange" else f"a {colour} {sign}"
            rows.append(json.dumps({"file_name": name, "text": text}))
        (folder / split / "metadata.jsonl").write_text("\n".join(rows) + "\n", "utf-8")


def trained(folder: Path, *command: object) -> float:
    """Train into a run folder, or go on with it; seconds of training in all, from its log."""
    if (folder / "run.json").exists():
        unstir("train", "--resume", "--out", folder)
    else:
        unstir("train", *command, "--out", folder)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]
    seen, seconds = 0, 0.0
    for line in lines:
        if "images_per_second" in line:
            seconds += (line["images_seen"] - seen) / line["images_per_second"]
            seen = line["images_seen"]
    return seconds


def main() -> None:
    """Build, train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--fine-tune", type=int, nargs="+", default=[6_000, 20_000, 60_000], metavar="IMAGES")
    parser.add_argument("--from-nothing", type=int, nargs="+", default=[6_000, 20_000, 60_000], metavar="IMAGES")
    arguments = parser.parse_args()
    base = Path("runs/quick-fine-tuning" if arguments.quick else "runs/fine-tuning")
    signs = base / "signs"
    build_signs(signs)
    plan = [("fine-tune", ("fine-tune", "--from", "builtin"), images) for images in arguments.fine_tune]
    plan += [("from nothing", ("emoji",), images) for images in arguments.from_nothing]
    if arguments.quick:
        plan = [(name, command, 128) for name, command, _ in plan[::3]]
    rows = [
        "| | pictures seen | minutes | 200 pictures of the folder | 50 held-out combinations |",
        "|---|---|---|---|---|",
    ]
    for name, command, images in plan:
        folder = base / f"{name.replace(' ', '-')}-{images}"
        seconds = trained(folder, *command, "--data", signs, "--images", images)
        sheet = folder / "sheet.png"
        found = unstir("evaluate", folder, "--data", signs, "--limit", 200, "--seeds", 1 if arguments.quick else 3,
                       "--sheet", sheet)["prompts"]  # fmt: skip
        cells = [f"{100 * found[s]['top1']:.1f} % ± {100 * found[s]['standard_error']:.1f}" for s in ("train", "test")]
        rows.append(f"| {name} | {images:,} | {seconds / 60:.1f} | {cells[0]} | {cells[1]} |")
        print(rows[-1], flush=True)
    if not arguments.quick:
        fill(PAGE, BEGIN, END, rows)


if __name__ == "__main__":
    main()
