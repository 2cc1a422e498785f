"""Checkpoints: what a run needs to go on as if nothing had happened.

Knows: how a state reaches the disk whole or not at all, and which checkpoint is the newest whole one.
Does not know: what is trained.

A checkpoint is a folder named by the pictures seen. It is written under another name, with a manifest of checksums
last, and renamed; a folder without a manifest that matches does not exist for ``latest``. Nothing is ever pickled.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from unstir.config import read_json_file
from unstir.model import checksum_of, read_tensors, replace_directory, write_tensors

KEEP = 2
"""How many of the newest checkpoints stay."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """The state of a run.

    Args:
        images_seen: pictures seen so far; with the configuration it decides everything that is still to come.
        tensors: groups of tensors by name, for instance ``network``, ``ema`` and ``optimizer``.
        values: small numbers that belong to them.
    """

    images_seen: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    values: Mapping[str, Any]


def save_checkpoint(directory: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint into the folder of checkpoints and forget all but the newest ``KEEP``.

    Raises:
        OSError: if it cannot be written; older checkpoints are untouched then.
    """
    target = directory / f"{checkpoint.images_seen:012d}"
    temporary = directory / f".{target.name}.new"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        for group, tensors in checkpoint.tensors.items():
            write_tensors(temporary / f"{group}.safetensors", tensors)
        state = {"images_seen": checkpoint.images_seen, **checkpoint.values}
        (temporary / "state.json").write_text(json.dumps(state, indent=2) + "\n", "utf-8")
        manifest = {file.name: checksum_of(file) for file in sorted(temporary.iterdir())}
        for file in temporary.iterdir():
            _flush(file)
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
        _flush(temporary / "manifest.json")
        replace_directory(temporary, target)
        _flush(directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    older = [folder for folder in _by_age(directory) if folder.name < target.name]
    stale = [folder for folder in _by_age(directory) if folder.name > target.name and not is_whole(folder)]
    for folder in [*older[KEEP - 1 :], *stale]:
        shutil.rmtree(folder, ignore_errors=True)
    return target


def load_latest(directory: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole, or None."""
    for aside in directory.glob(".*.old") if directory.is_dir() else ():
        # A save that was killed between two renames left the old state aside.
        target = directory / aside.name.removeprefix(".").removesuffix(".old")
        if not target.exists():
            os.rename(aside, target)
    folder = newest_whole(directory)
    return None if folder is None else _load(folder)


def newest_whole(directory: Path) -> Path | None:
    """The folder of the newest checkpoint that is whole, or None; nothing is touched: a run may be going on there."""
    return next((folder for folder in _by_age(directory) if is_whole(folder)), None)


def is_whole(folder: Path) -> bool:
    """Whether the manifest names every file of the checkpoint, and each is there, byte for byte."""
    try:
        manifest = read_json_file(folder / "manifest.json")
        names = {file.name for file in folder.iterdir()} - {"manifest.json"}
        return (
            "state.json" in names
            and names == manifest.keys()
            and all(checksum_of(folder / name) == checksum for name, checksum in manifest.items())
        )
    except (OSError, ValueError):
        return False


def _load(folder: Path) -> Checkpoint:
    state = read_json_file(folder / "state.json")
    return Checkpoint(
        images_seen=state.pop("images_seen"),
        tensors={file.stem: read_tensors(file) for file in sorted(folder.glob("*.safetensors"))},
        values=state,
    )


def _by_age(directory: Path) -> list[Path]:
    folders = directory.iterdir() if directory.is_dir() else iter(())
    return sorted((folder for folder in folders if folder.name.isdigit()), reverse=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
