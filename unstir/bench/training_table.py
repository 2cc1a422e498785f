"""What ``unstir bench train`` tells: its tables, and what they do not say of themselves.

Knows: columns, units, notes.
Does not know: how anything is measured.
"""

from __future__ import annotations

from typing import Any

from unstir.bench import machine
from unstir.bench.training import COMPARED, PASSES, Result


def figures(result: Result) -> dict[str, Any]:
    """The result as JSON values, with the tables that people are shown."""
    shared = result.conditions
    return {
        "rows": result.rows,
        "columns": list(COLUMNS),
        "tables": tables(result),
        "notes": notes(result),
        "peaks": result.peaks,
        "device": machine.device_name(shared.device),
        "precision": shared.precision,
        "batch": shared.batch,
        "repeats": shared.repeats,
    }


COLUMNS = (
    "who",
    "weights, M",
    "ms/step",
    "images/s",
    "GFLOP/image",
    "GFLOP/s",
    "of peak",
    "x default",
    "x best",
    "x ours",
)


def tables(result: Result) -> dict[str, list[list[str]]]:
    """By the title of a model, one line a way to train it."""
    found: dict[str, list[list[str]]] = {}
    for row in result.rows:
        line = [
            f"{row['side']}: {row['how']}",
            f"{row['weights'] / 1e6:.1f}",
            _number(row["ms_per_step"], ".1f"),
            _number(row["images_per_second"], ".1f"),
            f"{row['gflop_per_image']:.2f}",
            _number(row["gflop_per_second"], ".0f"),
            _number(row["share_of_peak"], ".0%"),
            *(_number(row[f"times_{role}"], ".2f") for role in COMPARED),
        ]
        found.setdefault(row["title"], []).append(line)
    return found


def notes(result: Result) -> list[str]:
    """What the tables do not say of themselves."""
    shared = result.conditions
    lines = [
        "x default, x best, x ours: how many times faster than the peer's default, the peer at its best, and ours",
        f"GFLOP: products and convolutions, {PASSES} times those of a forward pass; of peak: what is called model-FLOP "
        "utilisation; peak: " + ", ".join(f"{peak:.0f} GFLOP/s in {number}" for number, peak in result.peaks.items()),
    ]
    if shared.device.type == "cpu":
        lines.append("freed memory goes back to the system in a peer's turn, as in any process, and stays in ours")
    if shared.precision == "float32":
        lines.append(
            "no native bf16 here, so ours runs in float32, the peer at its best too, and shares are of float32"
        )
    for row in result.rows:
        if row["compile_seconds"] is not None:
            lines.append(f"{row['title']}, {row['side']}: {row['how']}: compiled in {row['compile_seconds']:.0f} s")
        if row["failure"]:
            lines.append(f"{row['title']}, {row['how']}: failed: {row['failure']}")
    return lines


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
