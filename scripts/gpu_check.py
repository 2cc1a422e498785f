"""What is switched on on a GPU changes rounding alone; then what training and sampling take there.

    python scripts/gpu_check.py FOLDER [--full]     (meant for 8 minutes on one GPU; with --full for half an hour)

Every speed-up for CUDA is compared with itself switched off: the losses of some training steps, or pictures of the
built-in model. Compiling is what takes minutes, so that the others are compared without it, and ``unstir bench train``
leaves DDPM's U-Net out and ``unstir bench sample`` hurries through what it does on the CPU, unless --full is given.

Into FOLDER go checks.json, bench-train.json and bench-sample.json; a check that fails is told, and the others are made
all the same. Where there is no CUDA device, that is said, and nothing is measured.

Status: 0 where all checks hold, 1 where one does not, 3 where there is no CUDA device.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pages import unstir

from unstir.conditioning.text import WordReader
from unstir.model import ModelConfig, build
from unstir.nn import DiTConfig, UNetConfig
from unstir.nn.text import TextConfig
from unstir.pipeline import load
from unstir.speedups import without
from unstir.training.batches import Captioned
from unstir.training.trainer import Trainer, TrainingConfig

STEPS = 8
BATCH = 16
SIZE = 32
TOLERANCE = 0.02  # of a loss, relative: bf16 has 8 bits
MOST = 1  # of 255, of a pixel
NO_DEVICE = 3

_TEXT = TextConfig(vocabulary=400, max_tokens=16, width=64, depth=1, heads=2)
NETWORKS: dict[str, Any] = {
    "U-Net": UNetConfig(width=64, multipliers=(1, 2), blocks=1, attention=(1,), heads=2, text=_TEXT),
    "DiT": DiTConfig(size=SIZE, patch=4, width=128, depth=2, heads=2, text=_TEXT),
}
TRAINING = ("compiled_networks", "channels_last", "pinned_prefetch", "resident_pictures")


def pictures() -> Captioned:
    """Squares of a colour on another, and what is said of them."""
    generator = torch.Generator().manual_seed(0)
    colours = torch.randint(0, 256, (64, 2, 3, 1, 1), generator=generator, dtype=torch.uint8)
    drawn = colours[:, 0].expand(-1, -1, SIZE, SIZE).clone()
    for i, picture in enumerate(drawn):
        picture[:, i % 16 : i % 16 + 12, 4:20] = colours[i, 1]
    return Captioned(
        pictures=tuple(drawn),
        captions=tuple((f"square number {i}" + " in the picture" * (i % 3),) for i in range(64)),
        keywords=((),) * 64,
        keys=tuple(str(i) for i in range(64)),
    )


def losses_of(network: Any, device: str, steps: int, *off: str) -> tuple[list[float], dict[str, Any]]:
    """The losses of the first steps, and what was on in fact."""
    data = pictures()
    reader = WordReader.train([text for texts in data.captions for text in texts], vocabulary=400, max_tokens=16)
    found: list[float] = []
    with without(*off), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.manual_seed(0)
        model = build(ModelConfig(size=SIZE, network=network), reader)
        config = TrainingConfig(images=steps * BATCH, batch=BATCH)
        trainer = Trainer(model, data, config, device=device)
        trainer.run([lambda _, report: found.append(report.loss)])
        weights = list(trainer.network.parameters())
        facts = {
            "precision": trainer.precision,
            "compiled": trainer.learner.is_compiled,
            "channels_last": any(weight.ndim == 4 and not weight.is_contiguous() for weight in weights),
            "workers": trainer.feed.workers,
            "pictures": str(trainer.feed.prepare(0, 1)[0][0].device),
        }
    return found, {**facts, "warnings": sorted({str(each.message) for each in said})}


def check_training(device: str, steps: int) -> list[dict[str, Any]]:
    """Each speed-up of training on and off, for each network."""
    rows: list[dict[str, Any]] = []
    for name, network in NETWORKS.items():
        print(f"training the {name} with all speed-ups", file=sys.stderr, flush=True)
        compiled, all_on = losses_of(network, device, steps)
        uncompiled, all_but_one = losses_of(network, device, steps, "compiled_networks")
        for speedup in TRAINING:
            is_first = speedup == "compiled_networks"
            with_all, facts = (compiled, all_on) if is_first else (uncompiled, all_but_one)
            print(f"training the {name} without {speedup}", file=sys.stderr, flush=True)
            without_it = uncompiled if is_first else losses_of(network, device, steps, "compiled_networks", speedup)[0]
            worst = max(abs(one / other - 1) for one, other in zip(with_all, without_it, strict=True))
            rows.append(
                {"check": f"{speedup}, {name}", "worst": worst, "most": TOLERANCE, "holds": worst <= TOLERANCE, **facts}
            )
    return rows


def check_pictures(device: str, count: int = 3) -> list[dict[str, Any]]:
    """The built-in model with its calls replayed, and as they are; the third drawing is all replayed."""
    rows: list[dict[str, Any]] = []
    for precision in ("float32", "bf16"):
        print(f"drawing in {precision}", file=sys.stderr, flush=True)
        pipe = load("builtin", device=device, precision=precision)
        with without("replayed_graphs"):
            want = [picture.tobytes() for picture in pipe.sample("a red heart", n=count, seed=0)]
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for _ in range(3):
                found = [picture.tobytes() for picture in pipe.sample("a red heart", n=count, seed=0)]
        pairs = zip(b"".join(want), b"".join(found), strict=True)
        worst = max(abs(one - other) for one, other in pairs)
        told = sorted({str(each.message) for each in said})
        row = {"check": f"replayed_graphs, {precision}", "worst": worst, "most": MOST, "holds": worst <= MOST}
        rows.append({**row, "warnings": told})
    return rows


def told_of(what: str, make: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The rows of some checks; where these do not end, the row that says so."""
    try:
        return make()
    except Exception as error:  # the other checks are worth their minutes all the same
        traceback.print_exc()
        return [{"check": what, "holds": False, "failure": f"{type(error).__name__}: {error}"[:300]}]


def save(place: Path, content: object) -> None:
    """Write JSON."""
    place.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def main() -> int:
    """Check, measure, write; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--full", action="store_true", help="all that the benchmarks have")
    parser.add_argument("--cpu", action="store_true", help="a little of all on the CPU, to try the script")
    arguments = parser.parse_args()
    if not torch.cuda.is_available() and not arguments.cpu:
        print("there is no CUDA device here: nothing was checked and nothing measured", file=sys.stderr)
        return NO_DEVICE
    started, device = time.perf_counter(), "cpu" if arguments.cpu else "cuda"
    arguments.folder.mkdir(parents=True, exist_ok=True)
    rows = told_of("training", lambda: check_training(device, 2 if arguments.cpu else STEPS))
    rows += told_of("pictures", lambda: check_pictures(device))
    save(arguments.folder / "checks.json", {"rows": rows, "device": device, "seconds": time.perf_counter() - started})
    for row in rows:
        measured = f"{row['worst']:.4g} of {row['most']}" if "worst" in row else row["failure"]
        print(f"{'holds' if row['holds'] else 'FAILS'}: {row['check']}: {measured}")
        for line in row.get("warnings", ()):
            print(f"  warned: {line}")
    few = ["--quick"] if arguments.cpu else ["--models", "small,dit,dit-b"]
    save(
        arguments.folder / "bench-train.json",
        unstir("bench", "train", "--device", device, *([] if arguments.full else few)),
    )
    save(arguments.folder / "bench-sample.json", unstir("bench", "sample", *([] if arguments.full else ["--quick"])))
    print(f"{time.perf_counter() - started:.0f} s; figures in {arguments.folder}")
    return 0 if all(row["holds"] for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
