"""What a checkpoint costs: measured for a small state here, reckoned for ten billion weights on many processes.

    python scripts/checkpoint_figures.py [--gib 2]

A checkpoint holds the weights, their average and two moments of each, all float32: 16 bytes a weight. Sharded, every
process writes its part, reads it again for its checksum, and does nothing else but wait for the others; the size of a
part and the rate of one process make the time. The disk is taken to keep up, which a shared one may not.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch

from unstir.training.checkpoint import Checkpoint, load_latest, save_checkpoint

WEIGHTS = 10_000_000_000
BYTES = 16
PROCESSES = (1, 8, 64, 512)
GIB = 2**30


def measure(gib: float, folder: Path) -> tuple[float, float]:
    """Bytes a second that are saved and loaded, checksums and flushing included."""
    count = 32
    size = int(gib * GIB / 4 / 4 / count)
    names = [f"layer.{i}" for i in range(count)]
    groups = ("network", "ema", "moments", "squares")
    tensors = {group: {name: torch.randn(size) for name in names} for group in groups}
    state = Checkpoint(images_seen=1, tensors=tensors, values={})
    started = time.perf_counter()
    save_checkpoint(folder, state)
    saved = time.perf_counter()
    load_latest(folder)
    loaded = time.perf_counter()
    total = 4 * 4 * count * size
    return total / (saved - started), total / (loaded - saved)


def main() -> None:
    """Measure and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=2.0, help="size of the state that is saved here")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", ".")) as folder:
        saving, loading = measure(asked.gib, Path(folder))
    print(f"{asked.gib:g} GiB here: saved at {saving / GIB:.2f} GiB/s, loaded at {loading / GIB:.2f} GiB/s\n")
    total = WEIGHTS * BYTES
    print(f"Ten billion weights: {total / GIB:.0f} GiB a checkpoint\n")
    print("| processes | each writes | saving | loading |")
    print("|---:|---:|---:|---:|")
    for count in PROCESSES:
        part = total / count
        print(f"| {count} | {part / GIB:.2f} GiB | {part / saving:.1f} s | {part / loading:.1f} s |")


if __name__ == "__main__":
    main()
