"""``unstir train``: from captioned pictures to a model.

Knows: which configuration the options mean, when a run is new and when it goes on.
Does not know: how a model is trained.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from json import dumps, loads
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from unstir.cli.output import Whole, print_json, progress_bar, say
from unstir.cli.runs import changes_of, first_difference, locked, progress_of, run_folder, with_codec
from unstir.cli.train_classifier import reader_asked_for, train_reader

if TYPE_CHECKING:
    from unstir.training.engine import Team
    from unstir.training.run import Hook, RunConfig, RunData


def as_settings(arguments: Sequence[str]) -> list[str]:
    """The arguments with every ``--KEY.SUBKEY VALUE`` written as ``--set KEY.SUBKEY=VALUE``."""
    result: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        match = re.fullmatch(r"--([a-z_]+(?:\.[a-z0-9_]+)+)(?:=(.*))?", argument, re.DOTALL)
        if match is None:
            result.append(argument)
        elif match[2] is not None:
            result += ["--set", f"{match[1]}={match[2]}"]
        elif not rest:
            raise ValueError(f"the setting {argument} needs a value")
        else:
            result += ["--set", f"{match[1]}={rest.pop(0)}"]
    return result


def train(
    recipe: str | None = None,
    *,
    data: str | None = None,
    out: str | None = None,
    resume: Annotated[bool, Parameter(negative=())] = False,
    start: Annotated[str | None, Parameter(name="--from")] = None,
    codec: str | None = None,
    images: Whole | None = None,
    batch: Whole | Literal["auto"] | None = None,
    seed: Whole | None = None,
    checkpoint_every: Whole | None = None,
    captions: str | None = None,
    aspect: str | None = None,
    max_broken: float | None = None,
    allow_missing_captions: Annotated[bool, Parameter(negative=())] = False,
    set_: Annotated[
        list[str] | None, Parameter(name="--set", consume_multiple=False, allow_leading_hyphen=True, negative=())
    ] = None,
    device: str = "auto",
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Train a model; it lies in RUN/model at the end, and after every checkpoint.

    Example: unstir train tiny --data my-pictures/ --out runs/mine

    Ctrl-C saves and stops; the same command with --resume goes on exactly where the run was, also after kill -9.

    Parameters
    ----------
    recipe
        emoji, tiny, cifar10, fine-tune, naive, naive-cifar10, or the run.json of another run. Without it: fine-tune
        with --from, else tiny below 100 pictures, else emoji. cifar10-classifier and cifar10-features train a
        classifier of pictures instead, noisy and clean ones (docs/classifier-guidance.md); codec and codec-vq train a
        codec, in whose latents other models draw with --codec.
    data
        Captioned pictures: a folder (metadata.jsonl, .txt beside each picture, class folders, ...), a .zip, .tar or
        .parquet file (docs/data.md). The recipe emoji builds its own set where none is given.
    out
        Run folder; without it runs/RECIPE.
    resume
        Go on from the newest checkpoint in the run folder.
    start
        A model to start from: "builtin", a model folder or a run folder.
    codec
        Draw in the latents of this codec: the folder of the run that trained it (unstir train codec).
    images
        Pictures to see in all.
    batch
        Pictures a step; "auto" is the recipe's number, seen in as many parts as the memory asks for: their gradients
        add up, so that only rounding differs.
    seed
        Decides order, wordings, noise and initial weights.
    checkpoint_every
        Pictures between two checkpoints.
    captions
        Where captions are taken from: auto (the first of these that there is), metadata, sidecar, folder, filename or
        none.
    aspect
        What is done to pictures that are not square: crop (to the middle), pad (with white) or buckets (they keep about
        their shape; networks of one size cannot).
    max_broken
        The largest share of pictures that may be broken (0.05); these are listed and left out.
    allow_missing_captions
        Train on pictures without captions too.
    set_
        KEY.SUBKEY=VALUE: any other setting of run.json; --KEY.SUBKEY VALUE is the same.
    device
        auto, cpu, cuda, ...
    json
        Print one JSON object at the end; progress goes to stderr.
    """
    from unstir.training.engine import joined, local_device

    shortcuts: dict[str, object] = {
        "training.images": images,
        "training.batch": None if batch == "auto" else batch,
        "training.micro_batch": "auto" if batch == "auto" else None,
        "training.seed": seed,
        "cadence.checkpoint": checkpoint_every,
        "captions": captions,
        "aspect": aspect,
        "max_broken": max_broken,
    }
    changes = changes_of(set_ or [], shortcuts)
    wanted = {"recipe": recipe, "data": data, "start": start, "codec": codec, "allow": allow_missing_captions}
    from unstir.device import resolve_device

    place = local_device(resolve_device(device), os.environ)
    with joined(place) as team:
        directory = Path(team.told(str(run_folder(recipe, out, resume=resume)) if team.is_first else ""))
        kind = reader_asked_for(recipe, directory, resume=resume)
        if kind is not None:
            unfit = (start, codec, captions, aspect, max_broken)
            if allow_missing_captions or any(value is not None for value in unfit):
                told = "whose captions name its classes" if kind == "classifier" else "whose captions it does not read"
                raise ValueError(
                    f"a {kind} is trained on pictures {told}; leave --from, --codec, --captions, --aspect, "
                    "--max-broken and --allow-missing-captions out"
                )
            if team.size > 1:
                raise ValueError(f"a {kind} is trained by one process; start it without torchrun")
            return train_reader(
                kind, directory, recipe=recipe, data=data, changes=changes, resume=resume, device=device, json=json
            )
        with locked(directory) if team.is_first else nullcontext():
            config, fingerprint = _agreed(team, directory, wanted, changes, resume=resume)
            return _run(team, directory, config, fingerprint, device=str(place), json=json)


def _agreed(
    team: Team, directory: Path, wanted: dict[str, Any], changes: Sequence[tuple[str, str]], *, resume: bool
) -> tuple[RunConfig, str]:
    """The configuration of a run, and the fingerprint of the data that it has seen: what the first process found."""
    from unstir.config import from_dict, to_dict
    from unstir.training.run import RunConfig, read_run

    said = ""
    if team.is_first:
        if resume and (directory / "run.json").exists():
            config, fingerprint = read_run(directory)
            config = _resumed(config, wanted, changes)
        else:
            config, fingerprint = _fresh(directory, wanted, changes), ""
        if team.size == 1:
            return config, fingerprint
        said = dumps([to_dict(config), fingerprint])
    content, fingerprint = loads(team.told(said))
    return from_dict(RunConfig, content), fingerprint


def _run(team: Team, directory: Path, config: RunConfig, fingerprint: str, *, device: str, json: bool) -> int:
    """The exit status of a run that takes place; the first process of a team tells how it went."""
    from unstir.training.run import execute, load_data

    started = time.perf_counter()
    loaded = load_data(config)
    if fingerprint and loaded.train.fingerprint() != fingerprint:
        raise ValueError(
            f"the pictures or captions in {config.data} are not those that {directory} was trained on; give the "
            "old ones with --data, or start a new run"
        )
    watched = progress_of(config.training.images, loaded.train.showings) if team.is_first else nullcontext()
    with watched as tell:
        hooks: list[Hook] = []
        if tell is not None:
            hooks.append(lambda trainer, report: tell(report.images_seen, lambda: report.loss))
        outcome = execute(directory, config, loaded, device=device, say=say, hooks=hooks, team=team)
    status = 0 if outcome.is_finished else 128 + outcome.signal
    if not team.is_first:
        return status
    result = {
        "run": str(directory.resolve()),
        "model": str((directory / "model").resolve()),
        "images_seen": outcome.images_seen,
        "is_finished": outcome.is_finished,
        "held_out": outcome.held_out,
        "seconds": round(time.perf_counter() - started, 1),
    }
    if json:
        print_json(result)
    if status:
        say(f"stopped and saved at {outcome.images_seen} pictures; go on with: unstir train --out {directory} --resume")
    elif not json:
        print(f"{outcome.images_seen} pictures seen. The model: {result['model']}")
        print(f'Draw with it: unstir sample "{_an_example(loaded)}" --model {directory}')
    return status


def _fresh(directory: Path, wanted: dict[str, Any], changes: Sequence[tuple[str, str]]) -> RunConfig:
    """The configuration of a new run."""
    from unstir.config import override
    from unstir.data.large import count_pictures
    from unstir.model import load_model
    from unstir.pipeline import locate_model
    from unstir.recipes import config_of, recipe_for

    name, data = wanted["recipe"], wanted["data"]
    if name is None and data is None:
        raise ValueError(
            "what should be trained? give a recipe, --data, or both; for instance: unstir train tiny --data DIR"
        )
    if name is None and wanted["start"] is not None:
        name = "fine-tune"
    elif name is None:
        name = recipe_for(count_pictures(Path(data)))
        say(f"starting from nothing with the recipe {name}; --from builtin starts from the built-in model")
    config = config_of(name)
    config = replace(
        config,
        data=str(Path(data).resolve()) if data is not None else config.data,
        allow_missing_captions=config.allow_missing_captions or wanted["allow"],
        previews=() if wanted["data"] else config.previews,
    )
    if wanted["start"] is not None:
        source = locate_model(wanted["start"])
        path = wanted["start"] if wanted["start"] == "builtin" else str(source.resolve())
        config = replace(config, start=path, model=load_model(source).config)
    if wanted["codec"] is not None:
        config = with_codec(config, wanted["codec"], changes)
    config = override(config, changes)
    if not config.data and config.recipe != "emoji":
        raise ValueError(f"the recipe {config.recipe} needs pictures; give their folder with --data")
    return config if config.data else replace(config, data=str(_build_emoji(directory, config.model.size).resolve()))


def _resumed(config: RunConfig, wanted: dict[str, Any], changes: Sequence[tuple[str, str]]) -> RunConfig:
    """The configuration of a run that goes on; only its length, cadence, loggers and the place of its data may change.

    Raises:
        ValueError: if anything else is asked for.
    """
    from unstir.config import override, to_dict
    from unstir.pipeline import locate_model

    if wanted["recipe"] not in (None, config.recipe) and not str(wanted["recipe"]).endswith(".json"):
        raise ValueError(
            f"the run was started with the recipe {config.recipe}, not {wanted['recipe']}; start a new one for that"
        )
    if wanted["start"] not in (None, config.start) and str(locate_model(wanted["start"]).resolve()) != config.start:
        raise ValueError(f"the run started from {config.start or 'fresh weights'}, not from {wanted['start']}")
    if wanted["codec"] not in (None, config.codec) and str(locate_model(wanted["codec"]).resolve()) != config.codec:
        raise ValueError(f"the run draws in the latents of {config.codec or 'no codec'}, not of {wanted['codec']}")
    asks = [(path, value) for path, value in changes if (path, value) != ("training.micro_batch", "auto")]
    changed = override(config, asks)  # what fits was found when the run began, and stays
    before, after = to_dict(config), to_dict(changed)
    for content in (before, after):
        content.pop("cadence")
        content.pop("log_to")
        for free in ("images", "workers", "parallel"):  # the latter two change nothing
            content["training"].pop(free, None)
    path = first_difference(before, after)
    if path:
        raise ValueError(f"a run cannot change {path} on its way; start a new run for that, perhaps with --from")
    return replace(changed, data=str(Path(wanted["data"]).resolve())) if wanted["data"] is not None else changed


def _build_emoji(directory: Path, size: int) -> Path:
    from unstir.data.emoji import build_emoji

    target = directory / "data"
    say(f"building the emoji set in {target}")
    with progress_bar("drawing emoji", 1) as advance:
        build_emoji(target, size=size, progress=lambda done, total: advance(done / total))
    return target


def _an_example(data: RunData) -> str:
    train = data.train
    return next((train.captions[i][0] for i in train.spread(1000) if train.captions[i]), "...")
