"""Checkpoints: what a run needs to go on as if nothing had happened.

Knows: how a state reaches the disk whole or not at all, and which checkpoint is the newest whole one.
Does not know: what is trained.

A checkpoint is a folder named by the pictures seen. It is written under another name, with a manifest of checksums
last, and renamed; a folder without a manifest that matches does not exist for ``latest``. Nothing is ever pickled.
Where several processes hold a shard of the weights each, each writes its own; any other number of them reads these.
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
from unstir.training.engine import Team, is_shard, write_shards

KEEP = 2
"""How many of the newest checkpoints stay."""

_NAMED = 128  # bytes beside a tensor and its name: where it begins, and its shape
_SMALL_FILES = 4096  # bytes of the state and the manifest


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """The state of a run.

    Args:
        images_seen: pictures seen so far; with the configuration it decides everything that is still to come.
        tensors: groups of tensors by name, for instance ``network``, ``ema`` and ``optimizer``.
        values: small numbers that belong to them.
        shards: the folder whose shards ``engine.read_shards`` puts into tensors named "group/name", where the
            checkpoint was written so; ``tensors`` is empty then.
    """

    images_seen: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    values: Mapping[str, Any]
    shards: Path | None = None

    @property
    def is_sharded(self) -> bool:
        """Whether its tensors are in parts, one with each process or as those have written them."""
        held = any(is_shard(tensor) for tensors in self.tensors.values() for tensor in tensors.values())
        return self.shards is not None or held


def flat(tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """All groups in one, named "group/name"."""
    return {f"{group}/{name}": tensor for group, members in tensors.items() for name, tensor in members.items()}


def save_checkpoint(directory: Path, checkpoint: Checkpoint, team: Team | None = None) -> Path:
    """Write a checkpoint into the folder of checkpoints and forget all but the newest ``KEEP``.

    Args:
        directory: the folder of checkpoints.
        checkpoint: the state.
        team: the processes that hold it; all must ask.

    Raises:
        OSError: if it cannot be written, or there is no room for it; older checkpoints are untouched then.
    """
    team = team or Team()
    target = directory / f"{checkpoint.images_seen:012d}"
    temporary = directory / f".{target.name}.new"
    if team.is_first:
        shutil.rmtree(temporary, ignore_errors=True)
        directory.mkdir(parents=True, exist_ok=True)
        require_room(directory, bytes_of_checkpoint(checkpoint))
        temporary.mkdir()
    team.wait()
    try:
        if checkpoint.is_sharded:
            write_shards(temporary, flat(checkpoint.tensors))
            team.wait()
        elif team.is_first:
            for group, tensors in checkpoint.tensors.items():
                write_tensors(temporary / f"{group}.safetensors", tensors)
        sums = _checksums(temporary, checkpoint, team)
        if team.is_first:
            _seal(temporary, target, checkpoint, sums)
    finally:
        if team.is_first:
            shutil.rmtree(temporary, ignore_errors=True)
    if team.is_first:
        _forget(directory, target)
    team.wait()
    return target


def require_room(directory: Path, size: int) -> None:
    """See that a folder's disk takes so many bytes more.

    Raises:
        OSError: if it does not.
    """
    free = shutil.disk_usage(directory).free
    if free < size:
        raise OSError(
            f"{directory}: the disk has {free / 2**20:,.0f} MiB left, and a checkpoint takes {size / 2**20:,.0f}; free "
            "some and go on with --resume: the checkpoints that are there are untouched"
        )


def _checksums(temporary: Path, checkpoint: Checkpoint, team: Team) -> dict[str, str]:
    """The checksums of the files so far, all on the disk; shards are read again by several processes at once."""
    several = team if checkpoint.is_sharded else Team()
    files = sorted(temporary.iterdir()) if checkpoint.is_sharded or team.is_first else []
    mine: dict[str, str] = {}
    for file in files[several.rank :: several.size]:
        _flush(file)
        mine[file.name] = checksum_of(file)
    return {name: found for told in several.everybodys(json.dumps(mine)) for name, found in json.loads(told).items()}


def _seal(temporary: Path, target: Path, checkpoint: Checkpoint, sums: dict[str, str]) -> None:
    """Write down what a checkpoint holds, and let it be one."""
    state = {"images_seen": checkpoint.images_seen, "is_sharded": checkpoint.is_sharded, **checkpoint.values}
    (temporary / "state.json").write_text(json.dumps(state, indent=2) + "\n", "utf-8")
    manifest = {**sums, "state.json": checksum_of(temporary / "state.json")}
    (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
    _flush(temporary / "state.json")
    _flush(temporary / "manifest.json")
    replace_directory(temporary, target)
    _flush(target.parent)


def _forget(directory: Path, newest: Path) -> None:
    older = [folder for folder in _by_age(directory) if folder.name < newest.name]
    stale = [folder for folder in _by_age(directory) if folder.name > newest.name and not is_whole(folder)]
    for folder in [*older[KEEP - 1 :], *stale]:
        shutil.rmtree(folder, ignore_errors=True)


def bytes_of_checkpoint(checkpoint: Checkpoint) -> int:
    """What a checkpoint takes on the disk, a little more rather than less; a run's first step makes it full-sized."""
    return sum(bytes_of_tensors(tensors) for tensors in checkpoint.tensors.values()) + _SMALL_FILES


def bytes_of_tensors(tensors: Mapping[str, Tensor]) -> int:
    """What a file of tensors takes on the disk, a little more rather than less."""
    return sum(tensor.numel() * tensor.element_size() + len(name) + _NAMED for name, tensor in tensors.items())


def load_latest(directory: Path, team: Team | None = None) -> Checkpoint | None:
    """The newest checkpoint that is whole, or None.

    Args:
        directory: the folder of checkpoints.
        team: the processes that look at it together; each reads a part of the files for their checksums.
    """
    team = team or Team()
    if team.is_first:
        for aside in directory.glob(".*.old") if directory.is_dir() else ():
            # A save that was killed between two renames left the old state aside.
            target = directory / aside.name.removeprefix(".").removesuffix(".old")
            if not target.exists():
                os.rename(aside, target)
    team.wait()
    folder = newest_whole(directory, team)
    return None if folder is None else _load(folder)


def newest_whole(directory: Path, team: Team | None = None) -> Path | None:
    """The folder of the newest checkpoint that is whole, or None; nothing is touched: a run may be going on there."""
    return next((folder for folder in _by_age(directory) if is_whole(folder, team)), None)


def is_whole(folder: Path, team: Team | None = None) -> bool:
    """Whether the manifest names every file of the checkpoint, and each is there, byte for byte."""
    team = team or Team()
    return not team.any(not _is_whole(folder, team))


def _is_whole(folder: Path, team: Team) -> bool:
    """The same of the files that are this process's to read."""
    try:
        manifest = read_json_file(folder / "manifest.json")
        names = {file.name for file in folder.iterdir()} - {"manifest.json"}
        mine = sorted(manifest)[team.rank :: team.size]
        return (
            "state.json" in names
            and names == manifest.keys()
            and all(checksum_of(folder / name) == manifest[name] for name in mine)
        )
    except (OSError, ValueError):
        return False


def _load(folder: Path) -> Checkpoint:
    state = read_json_file(folder / "state.json")
    seen, is_sharded = state.pop("images_seen"), state.pop("is_sharded", False)  # the latter is not in older ones
    files = [] if is_sharded else sorted(folder.glob("*.safetensors"))
    tensors = {file.stem: read_tensors(file) for file in files}
    return Checkpoint(images_seen=seen, tensors=tensors, values=state, shards=folder if is_sharded else None)


def _by_age(directory: Path) -> list[Path]:
    folders = directory.iterdir() if directory.is_dir() else iter(())
    return sorted((folder for folder in folders if folder.name.isdigit()), reverse=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
