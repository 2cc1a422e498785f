"""Who draws what, what is there already, and the list at the end.

Knows: how the pictures of a file of prompts are shared among processes that do not know of each other; which pictures
in a folder are whole and of the same recipe.
Does not know: how a picture is drawn, how processes are started.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from unstir.config import from_dict, read_json_file, to_dict
from unstir.generation.names import index_of
from unstir.generation.prompts import Wanted, read_prompts
from unstir.metadata import Recipe, read_recipe
from unstir.pipeline import Pipeline, Request

SETTINGS = "generate.json"
INDEX = "index.jsonl"
_VARIABLES = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"))


@dataclass(frozen=True, kw_only=True)
class Share:
    """The pictures of one of several processes: those whose index leaves ``rank`` when divided by ``world``."""

    rank: int = 0
    world: int = 1

    def holds(self, index: int) -> bool:
        """Whether this picture is among them."""
        return index % self.world == self.rank


def share_of(environment: Mapping[str, str]) -> Share:
    """The share of a process, from RANK and WORLD_SIZE (torchrun), else SLURM_PROCID and SLURM_NTASKS (srun).

    Raises:
        ValueError: if one of a pair is there without the other, is no whole number, or the rank is not below the world.
    """
    for of_rank, of_world in _VARIABLES:
        rank, world = environment.get(of_rank), environment.get(of_world)
        if rank is None and world is None:
            continue
        if rank is None or world is None:
            if of_rank != "RANK":  # Slurm sets one of them alone where no step was started
                continue
            raise ValueError(f"{of_rank} and {of_world} belong together, got {rank} and {world}; set both or none")
        if not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
            raise ValueError(
                f"{of_rank} counts from 0 and is below {of_world}, got {rank} and {world}; set both, or none"
            )
        return Share(rank=int(rank), world=int(world))
    return Share()


def own_device(name: str, environment: Mapping[str, str]) -> str:
    """The device of one of several processes on a machine: "auto" and "cuda" become the GPU of its local rank.

    Args:
        name: what was asked for.
        environment: LOCAL_RANK (torchrun) or SLURM_LOCALID (srun) say which of the processes here this is.
    """
    rank = environment.get("LOCAL_RANK", environment.get("SLURM_LOCALID", ""))
    if name not in ("auto", "cuda") or not rank.isdecimal() or not torch.cuda.is_available():
        return name
    return f"cuda:{int(rank) % torch.cuda.device_count()}"


@dataclass(frozen=True, kw_only=True)
class Order:
    """All that is to be drawn: which prompts, how, and into which folder.

    Args:
        prompts: the file.
        folder: where the pictures go.
        recipe: what all pictures share of theirs; its prompt, seed and negative words are those of any of them.
        seed: of the first picture, unless its line says one.
        negative: of lines that have none of their own.
        number: pictures of a line that does not say.
        batch: most pictures drawn together.
    """

    prompts: Path
    folder: Path
    recipe: Recipe
    seed: int
    negative: str
    number: int
    batch: int

    def wanted(self) -> Iterator[Wanted]:
        """The pictures, in order; see ``read_prompts``."""
        return read_prompts(self.prompts, seed=self.seed, negative=self.negative, number=self.number)

    def request(self, wanted: Wanted) -> Request:
        """What is asked for by one picture."""
        return replace(self.recipe.request, prompt=wanted.prompt, seed=wanted.seed, negative=wanted.negative)


def survey(pipe: Pipeline, order: Order) -> int:
    """Look at all prompts before any is drawn.

    Returns:
        The number of pictures.

    Raises:
        ValueError: naming the line, if a prompt cannot be drawn; or if the folder holds a picture of another prompt
            under the number of one of these.
    """
    names = {index: name for name in _names(order.folder) if (index := index_of(name)) is not None}
    total = 0
    for wanted in order.wanted():
        try:
            pipe.check(order.request(wanted))
        except ValueError as error:
            raise ValueError(f"{wanted.where}: {error}") from None
        other = names.get(wanted.index, wanted.name)
        if other != wanted.name:
            raise ValueError(
                f"{order.folder} holds {other}, where {order.prompts.name} asks for {wanted.name}; take another folder"
            )
        total += 1
    return total


def claim(order: Order, share: Share) -> None:
    """Make the folder and say in it what is drawn there, or see that it is the same.

    Raises:
        ValueError: if the folder holds pictures of other settings.
        OSError: if the folder cannot be written to.
    """
    path = order.folder / SETTINGS
    told = {"seed": order.seed, "negative": order.negative, "recipe": to_dict(_bare(order.recipe))}
    if path.exists():
        there = read_json_file(path)
        try:
            recipe = from_dict(Recipe, there["recipe"])
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{path} cannot be read; take another folder, or delete the file") from None
        keys = (key for key in ("seed", "negative") if there.get(key) != told[key])
        own = (f"{key} {there.get(key)!r}, not {told[key]!r}" for key in keys)
        differing = _difference(recipe, _bare(order.recipe)) or next(own, None)
        if differing is not None:
            raise ValueError(
                f"{order.folder} holds pictures drawn with {differing}; take another folder, or the same settings"
            )
        return
    order.folder.mkdir(parents=True, exist_ok=True)
    _write_whole(path, share, [json.dumps(told, indent=2, ensure_ascii=False)])


def missing(order: Order, share: Share) -> Iterator[Wanted]:
    """The pictures of a share that are not there, or not whole.

    Raises:
        ValueError: if one is there that has another recipe.
    """
    names = _names(order.folder)
    for wanted in order.wanted():
        if share.holds(wanted.index) and not (wanted.name in names and is_drawn(order, wanted)):
            yield wanted


def is_drawn(order: Order, wanted: Wanted) -> bool:
    """Whether this picture is there, whole and of this recipe; a half-written or foreign file is not.

    Raises:
        ValueError: if there is one of another recipe.
    """
    path = order.folder / wanted.name
    try:
        recipe = read_recipe(path)
    except (FileNotFoundError, ValueError):
        return False
    expected = replace(order.recipe, request=order.request(wanted))
    differing = _difference(recipe, expected)
    if differing is not None:
        raise ValueError(f"{path} was drawn with {differing}; take another folder, or the same settings")
    return True


def write_index(order: Order, share: Share) -> Path | None:
    """The list of all pictures, once all of them are there: whoever finishes last writes it.

    Returns:
        The file, or None while pictures of others are missing.
    """
    names = _names(order.folder)
    if any(wanted.name not in names for wanted in order.wanted()):
        return None
    path = order.folder / INDEX
    _write_whole(path, share, (_row(wanted) for wanted in order.wanted()))
    return path


def _row(wanted: Wanted) -> str:
    said = {"index": wanted.index, "prompt": wanted.prompt, "seed": wanted.seed, "negative": wanted.negative}
    return json.dumps({**said, "file": wanted.name}, ensure_ascii=False)


def _write_whole(path: Path, share: Share, lines: Iterable[str]) -> None:
    """Write a file that several processes may write at once, each the same."""
    temporary = path.with_name(f".{path.name}.{share.rank}.new")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _names(folder: Path) -> frozenset[str]:
    return frozenset(os.listdir(folder)) if folder.is_dir() else frozenset()


def _bare(recipe: Recipe) -> Recipe:
    """What all pictures of an order share."""
    request = replace(recipe.request, prompt="", negative="", seed=0, row=0, rows=1)
    return replace(recipe, request=request, warnings=())


def _difference(there: Recipe, now: Recipe) -> str | None:
    """The first thing that differs between two recipes, of those that decide a picture."""
    if there.checksum != now.checksum:
        return f"another model ({there.checksum[:10]}..., not {now.checksum[:10]}...)"
    requests = [replace(recipe.request, row=0, rows=1) for recipe in (there, now)]
    if requests[0] == requests[1]:
        return None
    first, second = (_flat(to_dict(request)) for request in requests)
    keys = (key for key in second if first.get(key) != second[key])
    return next((f"{key} {first.get(key)!r}, not {second[key]!r}" for key in keys), None)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        inner = cast("dict[str, Any]", value) if isinstance(value, dict) else None
        found |= {prefix + key: value} if inner is None else _flat(inner, f"{prefix}{key}.")
    return found
