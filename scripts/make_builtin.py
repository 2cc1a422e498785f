"""Put a trained run into the package as the built-in model.

    python scripts/make_builtin.py runs/stage2 --earlier runs/stage0 runs/stage1 --sampling steps=12

The weights are stored in bf16 (half the size; sampling computes in float32), beside the run's log and configuration.
``figures.json`` is what ``unstir evaluate --json`` printed of the model made by a first call of this script.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from unstir.config import from_dict, read_json_file, to_dict
from unstir.model import SamplingDefaults, load_model, save_model
from unstir.pipeline import BUILTIN

MAX_BYTES = 25_000_000


def main() -> None:
    """Read the run, write the model folder, and refuse one that is too large."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--earlier", type=Path, nargs="+", default=[], help="the runs before this one, oldest first")
    parser.add_argument("--sampling", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--figures", type=Path)
    arguments = parser.parse_args()
    model = load_model(arguments.run / "model")
    changes = {key: json.loads(value) for key, value in (item.split("=", 1) for item in arguments.sampling)}
    sampling = from_dict(SamplingDefaults, {**to_dict(model.config.sampling), **changes})
    training = {**model.training, "commands": "docs/builtin-model.md, How it was made", "folder": "builtin"}
    if arguments.earlier:
        training["started_from"] = "earlier runs, see log-earlier.jsonl"
    if arguments.figures:
        figures = read_json_file(arguments.figures)
        for split, score in figures["prompts"].items():
            training[f"top-1 retrieval, split {split}"] = (
                f"{score['top1']:.1%} +- {score['standard_error']:.1%} ({score['prompts']} prompts, {score['seeds']} "
                f"seeds, {score['candidates']} candidates)"
            )
    training["held_out_error"] = {band: round(error, 4) for band, error in training["held_out_error"].items()}
    model = replace(model, config=replace(model.config, sampling=sampling), training=training)
    save_model(model, BUILTIN, dtype=torch.bfloat16)
    shutil.copy(arguments.run / "log.jsonl", BUILTIN / "log.jsonl")
    if arguments.earlier:
        logs = [(earlier / "log.jsonl").read_text("utf-8") for earlier in arguments.earlier]
        (BUILTIN / "log-earlier.jsonl").write_text("".join(logs), "utf-8")
    run = read_json_file(arguments.run / "run.json")
    start = f"runs/{arguments.earlier[-1].name}" if arguments.earlier else ""
    run.update(data="emoji/", start=start)  # not the paths of one machine
    (BUILTIN / "run.json").write_text(json.dumps(run, indent=2, ensure_ascii=False) + "\n", "utf-8")
    size = sum(file.stat().st_size for file in BUILTIN.iterdir())
    print(f"{BUILTIN}: {size / 1e6:.2f} MB")
    if size > MAX_BYTES:
        raise SystemExit(f"the built-in model may have {MAX_BYTES / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
