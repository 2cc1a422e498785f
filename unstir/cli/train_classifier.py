"""``unstir train`` of a classifier or a codec: from pictures to what reads them, in one process.

Knows: when one of these is asked for, which configuration the options mean, when a run goes on.
Does not know: how it is trained.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from unstir.cli.output import print_json, say
from unstir.cli.runs import first_difference, locked, progress_of

Kind = Literal["classifier", "codec"]


@dataclass(frozen=True, kw_only=True)
class _Way:
    """How one of them is trained.

    Args:
        recipes: its configurations, by name.
        read: the configuration in a ``run.json``, and the fingerprint of its data.
        load: the pictures of a configuration, with ``train`` among them.
        execute: the run.
    """

    recipes: dict[str, Callable[[], Any]]
    read: Callable[[Path], tuple[Any, str]]
    load: Callable[[Any], Any]
    execute: Callable[..., Any]


def _way_of(kind: Kind) -> _Way:
    from unstir.recipes import CLASSIFIER_RECIPES, CODEC_RECIPES

    if kind == "codec":
        from unstir.training.codec import execute_codec, load_pictures_of, read_codec_run

        return _Way(recipes=dict(CODEC_RECIPES), read=read_codec_run, load=load_pictures_of, execute=execute_codec)
    from unstir.training.classifier import execute_classifier, load_classes, read_classifier_run

    return _Way(
        recipes=dict(CLASSIFIER_RECIPES), read=read_classifier_run, load=load_classes, execute=execute_classifier
    )


def reader_asked_for(recipe: str | None, directory: Path, *, resume: bool) -> Kind | None:
    """What of these a recipe, a run.json, or the run that goes on, is of; None for a model that draws."""
    from unstir.config import read_json_file
    from unstir.recipes import CLASSIFIER_RECIPES, CODEC_RECIPES

    if recipe in CLASSIFIER_RECIPES:
        return "classifier"
    if recipe in CODEC_RECIPES:
        return "codec"
    told = directory / "run.json" if resume else Path(recipe or "")
    content = read_json_file(told) if told.suffix == ".json" and told.is_file() else {}
    if "classifier" in content:
        return "classifier"
    return "codec" if "codec" in content and "model" not in content else None


def train_reader(
    kind: Kind,
    directory: Path,
    *,
    recipe: str | None,
    data: str | None,
    changes: Sequence[tuple[str, str]],
    resume: bool,
    device: str,
    json: bool,
) -> int:
    """Train a classifier or a codec in a run folder; see ``unstir train``.

    Raises:
        ValueError: if the options do not go together, or what goes on was another run.
    """
    started = time.perf_counter()
    way = _way_of(kind)
    # One name for all kinds of run, so that --checkpoint-every means the same.
    changes = [("checkpoint" if path == "cadence.checkpoint" else path, value) for path, value in changes]
    with locked(directory):
        if resume and (directory / "run.json").exists():
            config = _resumed(way.read(directory / "run.json")[0], recipe, changes)
        else:
            config = _fresh(way, recipe or "", changes)
        config = config if data is None else replace(config, data=str(Path(data).resolve()))
        if not config.data:
            raise ValueError(f"the recipe {config.recipe} needs pictures; give their folder with --data")
        loaded = way.load(config)
        with progress_of(config.training.images, len(loaded.train)) as tell:

            def hook(report: Any) -> None:
                tell(report.images_seen, lambda: report.loss)

            outcome = way.execute(directory, config, loaded, device=device, say=say, hook=hook)
    if json:
        print_json(
            {
                "run": str(directory.resolve()),
                "model": str((directory / "model").resolve()),
                "images_seen": outcome.images_seen,
                "is_finished": outcome.is_finished,
                "held_out": outcome.held_out,
                "seconds": round(time.perf_counter() - started, 1),
            }
        )
    if not outcome.is_finished:
        say(f"stopped and saved at {outcome.images_seen} pictures; go on with: unstir train --out {directory} --resume")
        return 128 + outcome.signal
    if not json:
        print(f"{outcome.images_seen} pictures seen. The {kind}: {(directory / 'model').resolve()}")
        if kind == "codec":
            print(f"Draw in its latents: unstir train --data {config.data} --codec {directory} --out RUN")
    return 0


def _fresh(way: _Way, recipe: str, changes: Sequence[tuple[str, str]]) -> Any:
    from unstir.config import override

    config = way.recipes[recipe]() if recipe in way.recipes else way.read(Path(recipe))[0]
    return override(config, changes)


def _resumed(config: Any, recipe: str | None, changes: Sequence[tuple[str, str]]) -> Any:
    """The configuration of a run that goes on; only its length and its cadence may change."""
    from unstir.config import override, to_dict

    if recipe not in (None, config.recipe) and not str(recipe).endswith(".json"):
        raise ValueError(f"the run was started with the recipe {config.recipe}, not {recipe}; start a new one for that")
    changed = override(config, changes)
    before, after = to_dict(config), to_dict(changed)
    for content in (before, after):
        content.pop("log")
        content.pop("checkpoint")
        content["training"].pop("images")
    path = first_difference(before, after)
    if path:
        raise ValueError(f"a run cannot change {path} on its way; start a new run for that")
    return changed
