"""Keywords: phrases that name many pictures, and how many different ones are drawn of them.

Knows: which keywords of a set name many pictures; how much the answers to one phrase vary.
Does not know: how pictures are drawn, or which picture is the nearest.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from unstir.data.folder import PictureSet
from unstir.evaluation.likeness import Mean, mean_of
from unstir.evaluation.prompts import Questions, spread_choice
from unstir.typing import integers


def ask_keywords(records: PictureSet, count: int, *, at_least: int = 8) -> Questions:
    """Keywords that each name many pictures, chosen by their sha256; a word that is also a caption is none.

    Args:
        records: the real pictures, of all splits.
        count: how many keywords.
        at_least: pictures that each of them must name.

    Raises:
        ValueError: if the set has fewer such keywords.
    """
    named: dict[str, list[int]] = {}
    for index, record in enumerate(records.records):
        for word in dict.fromkeys(record.keywords):
            named.setdefault(word, []).append(index)
    names = {caption.casefold() for record in records.records for caption in record.captions}
    fit = [word for word, rows in named.items() if len(rows) >= at_least and word.casefold() not in names]
    if len(fit) < count:
        raise ValueError(
            f"{len(fit)} keywords of this set name {at_least} pictures or more, {count} were asked for; ask for fewer"
        )
    chosen = tuple(fit[i] for i in spread_choice(fit, count))
    return Questions(prompts=chosen, captions=chosen, answers=tuple(tuple(named[word]) for word in chosen))


@dataclass(frozen=True, kw_only=True)
class Variety:
    """How many different pictures are drawn of one phrase, in terms of the nearest real ones.

    Args:
        distinct: mean number of different nearest real pictures among the seeds of a phrase.
        half_differ: share of phrases with at least half as many different ones as seeds.
        seeds: pictures a phrase.
    """

    distinct: Mean
    half_differ: Mean
    seeds: int


def variety(retrieved: Int[Tensor, "p s"]) -> Variety:
    """The variety of what ``retrieve`` found, a row a phrase; phrases are the units of the standard errors.

    Raises:
        ValueError: if nothing was drawn.
    """
    counts = [len(set(integers(row))) for row in retrieved]
    seeds = retrieved.shape[1]
    return Variety(
        distinct=mean_of([float(count) for count in counts]),
        half_differ=mean_of([float(2 * count >= seeds) for count in counts]),
        seeds=seeds,
    )
