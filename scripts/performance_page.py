"""Measure training, sampling and what bf16 changes; fill in docs/performance.md.

    python scripts/performance_page.py [--quick] [--only train|sample|precision]     (an hour and a half in all)

Needs diffusers, which the extra "test" has; ``precision`` needs the emoji set (``unstir data emoji runs/emoji``), and
goes on where it was interrupted. Measure on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from pages import fill, table, unstir

from unstir.bench.machine import told
from unstir.bench.sampling import OVERHEAD_COLUMNS, PICTURE_COLUMNS, overhead_cells, picture_cells

PAGE = Path("docs/performance.md")
END = "<!-- end of figures -->"
SEEDS = (0, 1, 2)
NUMBERS = ("float32", "bf16")


def begin(part: str) -> str:
    """The marker of a part of the page."""
    return f"<!-- figures: scripts/performance_page.py --only {part} -->"


def training(quick: list[str]) -> list[str]:
    """The lines of what a training step costs."""
    options = quick or ["--levers"]
    found = unstir("bench", "train", *options)
    lines = [f"`{' '.join(['unstir bench train', *options])}`: {told(found['machine'])}; {found['seconds']:.0f} s."]
    for title, rows in found["tables"].items():
        lines += ["", f"**{title}**", "", *table(found["columns"], rows)]
    return [*lines, "", *(f"- {note}" for note in found["notes"])]


def sampling(quick: list[str]) -> list[str]:
    """The lines of what a sampler costs, and a picture."""
    found = unstir("bench", "sample", *quick)
    return [
        f"`{' '.join(['unstir bench sample', *quick])}`: {told(found['machine'])}.",
        "",
        *table(OVERHEAD_COLUMNS, overhead_cells(found["overhead"])),
        "",
        *table(PICTURE_COLUMNS, picture_cells(found["pictures"])),
    ]


def precision(data: Path, folder: Path, images: int) -> list[str]:
    """The lines of what is held out, learned in float32 and in bf16, from the same seeds."""
    found = {(seed, number): _held_out(data, folder, images, seed, number) for seed in SEEDS for number in NUMBERS}
    bands = list(found[SEEDS[0], NUMBERS[0]])
    rows: list[list[str]] = []
    for band in bands:
        columns = {number: [found[seed, number][band] for seed in SEEDS] for number in NUMBERS}
        changes = [bf16 / full - 1 for full, bf16 in zip(columns["float32"], columns["bf16"], strict=True)]
        spread = statistics.stdev(columns["float32"]) / statistics.mean(columns["float32"])
        error = statistics.stdev(changes) / len(SEEDS) ** 0.5
        rows.append(
            [
                band,
                *(", ".join(f"{value:.4f}" for value in columns[number]) for number in NUMBERS),
                f"{statistics.mean(changes):+.1%} +- {error:.1%}",
                f"{spread:.1%}",
            ]
        )
    columns = ("log-SNR", "float32, seeds 0, 1, 2", "bf16, seeds 0, 1, 2", "bf16 to float32", "spread of float32")
    command = f"unstir train emoji --images {images} --seed S --training.precision float32 (and bf16)"
    return [f"`{command}`, error on x0 of held-out pictures:", "", *table(columns, rows)]


def _held_out(data: Path, folder: Path, images: int, seed: int, number: str) -> dict[str, float]:
    run = folder / f"{number}-{seed}"
    options: list[Any] = ["--data", data, "--out", run, "--images", images, "--resume"]
    if not (run / "run.json").exists():
        options += ["--seed", seed, "--training.precision", number]
    return unstir("train", "emoji", *options)["held_out"]


def main() -> None:
    """Measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small: to try the script")
    parser.add_argument("--only", choices=("train", "sample", "precision"))
    parser.add_argument("--data", type=Path, default=Path("runs/emoji"))
    parser.add_argument("--runs", type=Path, default=Path("runs/precision"))
    parser.add_argument("--images", type=int, default=20_000)
    arguments = parser.parse_args()
    quick = ["--quick"] if arguments.quick else []
    if arguments.only in (None, "train"):
        fill(PAGE, begin("train"), END, training(quick))
    if arguments.only in (None, "sample"):
        fill(PAGE, begin("sample"), END, sampling(quick))
    if arguments.only in (None, "precision"):
        fill(PAGE, begin("precision"), END, precision(arguments.data, arguments.runs, arguments.images))


if __name__ == "__main__":
    main()
