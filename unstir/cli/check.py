"""``unstir check``: look before a run.

Knows: which recipe a set would be trained with, how findings are shown, when they are bad enough for exit status 1.
Does not know: what is good or bad about a set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from unstir.cli.output import Whole, print_json, stage_progress

if TYPE_CHECKING:
    from unstir.data.findings import Finding


def check(
    data: Path,
    recipe: str | None = None,
    *,
    captions: str = "auto",
    seed: Whole = 0,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Look at pictures and captions before a model is trained on them; each finding comes with its remedy.

    Example: unstir check my-pictures/ tiny

    Exit status 0: there may be warnings, but nothing stands in the way; 1: there is a problem; 2: bad input.

    Parameters
    ----------
    data
        A folder, archive or parquet file of pictures, as for unstir train --data.
    recipe
        The recipe that they are for, or the run.json of another run. Without it the one that unstir train would take.
    captions
        As in train: where captions are taken from.
    seed
        Chooses the 20,000 pictures that are decoded where there are more.
    json
        Print one JSON object instead of text.
    """
    from unstir.data.describe import describe
    from unstir.data.findings import judge
    from unstir.data.folder import find_pictures
    from unstir.recipes import config_of, recipe_for

    config = None if recipe is None else config_of(recipe)
    pictures = find_pictures(data, captions=captions)
    count = len(pictures.records)
    if config is None:
        config = config_of(recipe_for(count))
    size = config.model.size
    with stage_progress() as advance:
        findings = judge(describe(pictures, size, seed=seed, progress=advance))
    if json:
        result = {"data": str(data), "pictures": count, "recipe": config.recipe, "size": size}
        print_json({**result, "findings": [asdict(finding) for finding in findings]})
    else:
        print(f"{count} pictures in {data}, for the recipe {config.recipe} ({size}x{size})")
        for line in _lines(findings):
            print(line)
    return 1 if any(finding.severity == "problem" for finding in findings) else 0


def _lines(findings: Sequence[Finding]) -> list[str]:
    lines: list[str] = []
    for finding in findings:
        lines.append(f"{finding.severity + ':':9} {finding.what}")
        if finding.remedy:
            lines.append(f"{'':9} remedy: {finding.remedy}")
    problems, warnings = (sum(finding.severity == kind for finding in findings) for kind in ("problem", "warning"))
    return [*lines, f"{_number(problems, 'problem')}, {_number(warnings, 'warning')}"]


def _number(count: int, what: str) -> str:
    return f"{count or 'no'} {what}{'' if count == 1 else 's'}"
