"""``unstir check``: look before a run.

Knows: which recipe a set would be trained with, on which of its pictures steps are tried, how findings are shown, when
they are bad enough for exit status 1.
Does not know: what is good or bad about a set or a run.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from unstir.cli.output import Whole, print_json, stage_progress
from unstir.cli.runs import changes_of, with_codec

if TYPE_CHECKING:
    from unstir.data.findings import Finding
    from unstir.data.records import PictureSet
    from unstir.training.batches import Captioned
    from unstir.training.lookahead import Ahead
    from unstir.training.run import RunConfig

_PICTURES = 256  # that steps are tried on at most
_MEND_FIRST = "time, memory and learning were not measured: mend the problems first"


def check(
    data: Path,
    recipe: str | None = None,
    *,
    captions: str = "auto",
    codec: str | None = None,
    images: Whole | None = None,
    batch: Whole | Literal["auto"] | None = None,
    set_: Annotated[
        list[str] | None, Parameter(name="--set", consume_multiple=False, allow_leading_hyphen=True, negative=())
    ] = None,
    seed: Whole = 0,
    measure: Annotated[bool, Parameter(negative="--no-measure")] = True,
    overfit: Annotated[bool | None, Parameter(negative="--no-overfit")] = None,
    device: str = "auto",
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Look before a model is trained: at pictures and captions, and at what a few steps let one expect of the run.

    Example: unstir check my-pictures/ tiny

    Each finding comes with its figure and its remedy. Exit status 0: there may be warnings, but nothing stands in the
    way; 1: there is a problem; 2: bad input.

    Parameters
    ----------
    data
        A folder, archive or parquet file of pictures, as for unstir train --data.
    recipe
        The recipe that they are for, or the run.json of another run. Without it the one that unstir train would take.
    captions
        As in train: where captions are taken from.
    codec
        As in train: the codec in whose latents the model would draw.
    images
        As in train: pictures to see in all.
    batch
        As in train: pictures a step, or "auto".
    set_
        As in train: KEY.SUBKEY=VALUE, any other setting of run.json; --KEY.SUBKEY VALUE is the same.
    seed
        Chooses the 20,000 pictures that are decoded where there are more, and those that steps are tried on.
    measure
        Take a few training steps, to measure memory and time.
    overfit
        Try whether one batch can be learned by heart in 200 steps, which a training that works can; without either
        option where that takes less than a minute.
    device
        Where steps are taken: auto, cpu, cuda, ...
    json
        Print one JSON object instead of text.
    """
    from unstir.config import override
    from unstir.data.describe import describe
    from unstir.data.findings import judge
    from unstir.data.folder import find_pictures
    from unstir.recipes import config_of, recipe_for
    from unstir.training.lookahead import figures_of, judge_ahead

    shortcuts: dict[str, object] = {
        "training.images": images,
        "training.batch": None if batch == "auto" else batch,
        "training.micro_batch": "auto" if batch == "auto" else None,
    }
    changes = changes_of(set_ or [], shortcuts)

    def asked(name: str) -> RunConfig:
        config = config_of(name)
        return override(config if codec is None else with_codec(config, codec, changes), changes)

    config = None if recipe is None else asked(recipe)
    if config is not None and measure:
        _require_network(config)  # before pictures are looked at for long
    pictures = find_pictures(data, captions=captions)
    count = len(pictures.records)
    if config is None:
        config = asked(recipe_for(count))
    size = config.model.size
    with stage_progress() as advance:
        findings = judge(describe(pictures, size, seed=seed, progress=advance))
        is_measured = measure and not _problems(findings)
        ahead = _ahead(config, pictures, is_measured, seed=seed, device=device, by_heart=overfit, progress=advance)
    findings = (*findings, *judge_ahead(ahead))
    if json:
        result = {"data": str(data), "pictures": count, "recipe": config.recipe, "size": size}
        print_json({**result, "findings": [asdict(finding) for finding in findings], "ahead": figures_of(ahead)})
    else:
        print(f"{count} pictures in {data}, for the recipe {config.recipe} ({size}x{size})")
        for line in _lines(findings, [] if is_measured or not measure else [_MEND_FIRST]):
            print(line)
    return 1 if _problems(findings) else 0


def _ahead(
    config: RunConfig,
    pictures: PictureSet,
    is_measured: bool,
    *,
    seed: int,
    device: str,
    by_heart: bool | None,
    progress: Any,
) -> Ahead:
    from unstir.training.lookahead import Ahead, free_disk_of, look_ahead

    if not is_measured:
        return Ahead(config=config, free_disk=free_disk_of(Path()))
    some = _some(config, pictures, seed)
    return look_ahead(config, some, device=device, by_heart=by_heart, progress=progress)


def _require_network(config: RunConfig) -> None:
    import torch

    from unstir.model import network_of

    with torch.device("meta"):
        network_of(config.model)


def _some(config: RunConfig, pictures: PictureSet, seed: int) -> Captioned:
    """Some of the pictures to train on, in memory."""
    from unstir.data.transforms import load_pictures
    from unstir.training.batches import Captioned

    train = pictures.split("train").records
    chosen = random.Random(seed).sample(train, min(len(train), max(config.training.batch, 1), _PICTURES))
    aspect = "pad" if config.aspect == "pad" else "crop"
    return Captioned.of(
        *load_pictures(replace(pictures, records=tuple(chosen)), config.model.size, aspect=aspect, max_broken=1.0)
    )


def _problems(findings: Sequence[Finding]) -> int:
    return sum(finding.severity == "problem" for finding in findings)


def _lines(findings: Sequence[Finding], notes: Sequence[str]) -> list[str]:
    lines: list[str] = []
    for finding in findings:
        lines.append(f"{finding.severity + ':':9} {finding.what}")
        if finding.remedy:
            lines.append(f"{'':9} remedy: {finding.remedy}")
    warnings = sum(finding.severity == "warning" for finding in findings)
    return [*lines, *notes, f"{_number(_problems(findings), 'problem')}, {_number(warnings, 'warning')}"]


def _number(count: int, what: str) -> str:
    return f"{count or 'no'} {what}{'' if count == 1 else 's'}"
