"""``unstir train`` of a classifier: from pictures whose captions name classes to a classifier.

Knows: when a classifier is asked for, which configuration the options mean, when a run goes on.
Does not know: how a classifier is trained.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from unstir.cli.output import print_json, say
from unstir.cli.runs import first_difference, locked, progress_of

if TYPE_CHECKING:
    from unstir.training.classifier import ClassifierRun


def asks_for_classifier(recipe: str | None, directory: Path, *, resume: bool) -> bool:
    """Whether a recipe, a run.json, or the run that goes on, is that of a classifier."""
    from unstir.config import read_json_file
    from unstir.recipes import CLASSIFIER_RECIPES

    told = directory / "run.json" if resume else Path(recipe or "")
    is_described = told.suffix == ".json" and told.is_file()
    return recipe in CLASSIFIER_RECIPES or (is_described and "classifier" in read_json_file(told))


def train_classifier(
    directory: Path,
    *,
    recipe: str | None,
    data: str | None,
    changes: Sequence[tuple[str, str]],
    resume: bool,
    device: str,
    json: bool,
) -> int:
    """Train a classifier in a run folder; see ``unstir train``.

    Raises:
        ValueError: if the options do not go together, or what goes on was another run.
    """
    started = time.perf_counter()
    from unstir.training.classifier import execute_classifier, load_classes, read_classifier_run

    # One name for both kinds of run, so that --checkpoint-every means the same.
    changes = [("checkpoint" if path == "cadence.checkpoint" else path, value) for path, value in changes]
    with locked(directory):
        if resume and (directory / "run.json").exists():
            config = _resumed(read_classifier_run(directory / "run.json")[0], recipe, changes)
        else:
            config = _fresh(recipe or "", changes)
        config = config if data is None else replace(config, data=str(Path(data).resolve()))
        if not config.data:
            raise ValueError(f"the recipe {config.recipe} needs pictures; give their folder with --data")
        loaded = load_classes(config)
        with progress_of(config.training.images, len(loaded.train)) as tell:
            outcome = execute_classifier(
                directory,
                config,
                loaded,
                device=device,
                say=say,
                hook=lambda report: tell(report.images_seen, lambda: report.loss),
            )
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
        print(f"{outcome.images_seen} pictures seen. The classifier: {(directory / 'model').resolve()}")
    return 0


def _fresh(recipe: str, changes: Sequence[tuple[str, str]]) -> ClassifierRun:
    from unstir.config import override
    from unstir.recipes import CLASSIFIER_RECIPES
    from unstir.training.classifier import read_classifier_run

    config = CLASSIFIER_RECIPES[recipe]() if recipe in CLASSIFIER_RECIPES else read_classifier_run(Path(recipe))[0]
    return override(config, changes)


def _resumed(config: ClassifierRun, recipe: str | None, changes: Sequence[tuple[str, str]]) -> ClassifierRun:
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
