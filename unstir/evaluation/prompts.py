"""Prompt fidelity: is the picture the one that was asked for?

Knows: what is asked for, which real pictures are right answers, and which one a drawn picture is nearest to.
Does not know: how pictures are drawn or trained on.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from unstir.data.folder import PictureSet
from unstir.pipeline import Pipeline, Result, Settings
from unstir.typing import integers

Draw = Callable[[Sequence[str], int], UInt8[Tensor, "m c h w"]]
"""(prompts, run) -> one picture a prompt; ``run`` counts from 0 and stands for the seed."""


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """How often the nearest real picture is one that was asked for.

    Args:
        top1: share of drawn pictures, over prompts and seeds.
        standard_error: of ``top1``, with prompts as the independent units (seeds of one prompt are not).
        prompts: number of prompts.
        seeds: pictures a prompt.
        candidates: number of real pictures to choose from; a guess is right once in so many.
    """

    top1: float
    standard_error: float
    prompts: int
    seeds: int
    candidates: int


def nearest(drawn: UInt8[Tensor, "m c h w"], real: UInt8[Tensor, "n c h w"], *, chunk: int = 256) -> Int[Tensor, "m"]:
    """For each drawn picture, the index of the real one with the smallest mean squared error over all values.

    Raises:
        ValueError: if the pictures differ in size.
    """
    if drawn.shape[1:] != real.shape[1:]:
        raise ValueError(f"drawn pictures are {tuple(drawn.shape[1:])}, real ones {tuple(real.shape[1:])}")
    candidates = real.flatten(1).double()  # sums of squared bytes are exact in float64
    lengths = candidates.square().sum(1)
    found: list[Tensor] = []
    for start in range(0, len(drawn), chunk):
        rows = drawn[start : start + chunk].flatten(1).double()
        found.append((lengths - 2 * (rows @ candidates.T)).argmin(1))
    return torch.cat(found)


def retrieval(hits: Sequence[Sequence[bool]], candidates: int) -> Retrieval:
    """The score of a table of hits, one row a prompt, one column a seed.

    Raises:
        ValueError: if it is empty or its rows differ in length.
    """
    if not hits or not hits[0] or len({len(row) for row in hits}) != 1:
        raise ValueError("a retrieval needs at least one prompt and the same number of seeds for each")
    means = [sum(row) / len(row) for row in hits]
    top1 = sum(means) / len(means)
    variance = sum((mean - top1) ** 2 for mean in means) / max(1, len(means) - 1)
    return Retrieval(
        top1=top1,
        standard_error=math.sqrt(variance / len(means)),
        prompts=len(hits),
        seeds=len(hits[0]),
        candidates=candidates,
    )


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What is asked for, and what is right.

    Args:
        prompts: what is asked.
        captions: for each prompt, what the right pictures carry: the prompt itself, unless it is said in free words.
        answers: for each prompt, the indexes of all real pictures that carry its caption, ascending.
    """

    prompts: tuple[str, ...]
    captions: tuple[str, ...]
    answers: tuple[tuple[int, ...], ...]


def ask_captions(records: PictureSet, split: str, limit: int) -> Questions:
    """The first captions of a split's pictures, each asked once however many pictures carry it.

    Args:
        records: the real pictures; those of all splits are candidates, and right where they carry the caption.
        split: whose captions.
        limit: of the captions, so many at most, chosen by the sha256 of their pictures' keys.
    """
    said = records.records
    ranked = sorted(choose_prompts(records, split, len(said)), key=lambda index: _digest(said[index].key))
    first: dict[str, int] = {}
    for index in ranked:
        first.setdefault(said[index].captions[0], index)
    return _questions(tuple(said[index].captions[0] for index in sorted(list(first.values())[:limit])), records)


def ask_lines(text: str, records: PictureSet) -> Questions:
    """What a file asks: on each line a prompt in free words, a tab, and the caption of the picture that it means.

    Raises:
        ValueError: if a line has no tab or no prompt, a caption is of no picture, or there is no line.
    """
    known = {caption for record in records.records for caption in record.captions}
    pairs: list[tuple[str, str]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        prompt, _, caption = (part.strip() for part in line.partition("\t"))
        if not prompt or "\t" not in line:
            raise ValueError(f"line {number} of the prompts is {line!r:.60}; write a prompt, a tab and a caption")
        if caption not in known:
            raise ValueError(
                f"line {number} of the prompts asks for the picture {caption!r:.60}, and none has that caption; give "
                "the caption as the set has it"
            )
        pairs.append((prompt, caption))
    if not pairs:
        raise ValueError("the file of prompts holds no line; write a prompt, a tab and a caption on each")
    asked = _questions(tuple(caption for _, caption in pairs), records)
    return replace(asked, prompts=tuple(prompt for prompt, _ in pairs))


def _questions(captions: tuple[str, ...], records: PictureSet) -> Questions:
    answers: dict[str, list[int]] = {caption: [] for caption in captions}
    for index, record in enumerate(records.records):
        for caption in dict.fromkeys(record.captions):
            if caption in answers:
                answers[caption].append(index)
    return Questions(
        prompts=captions, captions=captions, answers=tuple(tuple(answers[caption]) for caption in captions)
    )


def draw_all(draw: Draw, prompts: Sequence[str], *, seeds: int) -> UInt8[Tensor, "p s c h w"]:
    """Every prompt drawn ``seeds`` times: row i, column j is run j of prompt i."""
    return torch.stack([draw(prompts, run) for run in range(seeds)], 1)


def retrieve(drawn: UInt8[Tensor, "p s c h w"], real: UInt8[Tensor, "n c h w"]) -> Int[Tensor, "p s"]:
    """For each drawn picture, the index of the nearest real one (``nearest``).

    Raises:
        ValueError: if the pictures differ in size.
    """
    return nearest(drawn.flatten(0, 1), real).view(drawn.shape[:2])


def score(questions: Questions, retrieved: Int[Tensor, "p s"], candidates: int) -> Retrieval:
    """How often the nearest real picture is a right one.

    Args:
        questions: what was asked, and what is right.
        retrieved: what ``retrieve`` found, a row a prompt.
        candidates: number of real pictures to choose from.

    Raises:
        ValueError: if nothing was drawn.
    """
    hits = [
        [index in right for index in integers(row)]
        for row, right in zip(retrieved, map(frozenset, questions.answers), strict=True)
    ]
    return retrieval(hits, candidates)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Of the misses of names with a skin tone, how often a part of the name is right all the same.

    Args:
        misses: how many there are.
        person: share with the right person words, of the misses whose name has any; None where none has.
        job: share with the right name but for person words and tones: the job, the gesture, the hair.
        tone: share with the right skin tones.
    """

    misses: int
    person: float | None
    job: float
    tone: float


_PERSONS = frozenset({"man", "men", "people", "person", "woman", "women"})
_TONE = "skin tone"


def name_parts(name: str) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """The parts of an emoji's English name "head: one, another": its person words, the rest, and its skin tones.

    "woman pilot: dark skin tone" is of ("woman",), ("pilot",) and ("dark skin tone",).
    """
    head, _, tail = name.partition(": ")
    others = [part for part in tail.split(", ") if part]
    words = [*head.split(), *(part for part in others if part in _PERSONS)]
    job = " ".join(word for word in head.split() if word not in _PERSONS)
    hair = (part for part in others if part not in _PERSONS and not part.endswith(_TONE))
    return (
        tuple(word for word in words if word in _PERSONS),
        (job, *hair),
        tuple(part for part in others if part.endswith(_TONE)),
    )


def parts_of_misses(pairs: Iterable[tuple[str, str]]) -> Parts | None:
    """What is right of the names of wrong pictures.

    Args:
        pairs: the asked and the retrieved name of each drawn picture; only those count that differ and whose asked name
            has a skin tone.

    Returns:
        The shares, or None where nothing counts.
    """
    misses = [
        (name_parts(asked), name_parts(found)) for asked, found in pairs if asked != found and name_parts(asked)[2]
    ]
    if not misses:
        return None
    persons = [asked[0] == found[0] for asked, found in misses if asked[0]]
    return Parts(
        misses=len(misses),
        person=sum(persons) / len(persons) if persons else None,
        job=sum(asked[1] == found[1] for asked, found in misses) / len(misses),
        tone=sum(asked[2] == found[2] for asked, found in misses) / len(misses),
    )


def choose_prompts(records: PictureSet, split: str, limit: int) -> list[int]:
    """Which captioned pictures of a split are asked for: all, or ``limit`` chosen by the sha256 of their keys."""
    members = [i for i, record in enumerate(records.records) if record.split == split and record.captions]
    return [members[i] for i in spread_choice([records.records[i].key for i in members], limit)]


def draw_with(
    pipe: Pipeline,
    *,
    seed: int,
    batch: int,
    settings: Settings,
    mine: Callable[[int], slice] = lambda count: slice(None),
    advance: Callable[[int], None] = lambda done: None,
) -> Draw:
    """What ``draw_all`` asks to draw: run r of m prompts has the seeds seed + r m to seed + (r + 1) m - 1.

    Args:
        pipe: what draws.
        seed: of the first picture of run 0.
        batch: pictures drawn together.
        settings: of the request.
        mine: which of so many pictures are drawn: where several processes share them, those of this one.
        advance: told how many pictures are done.
    """
    done = 0

    def draw(prompts: Sequence[str], run: int) -> UInt8[Tensor, "m c h w"]:
        nonlocal done
        asked = pipe.requests(prompts, seed=seed + run * len(prompts), **settings)
        pictures = [torch.empty(0, 3, asked[0].height, asked[0].width, dtype=torch.uint8)]
        asked = asked[mine(len(prompts))]
        for item in pipe.run(asked, batch=batch) if asked else ():
            if isinstance(item, Result):
                pictures.append(torch.from_numpy(numpy.array(item.picture)).permute(2, 0, 1)[None])
                done += 1
                advance(done)
        return torch.cat(pictures)

    return draw


def spread_choice(keys: Sequence[str], count: int) -> list[int]:
    """``count`` of the keys, chosen by their sha256: the same ones on every machine, unrelated to their order."""
    ranked = sorted(range(len(keys)), key=lambda index: _digest(keys[index]))
    return sorted(ranked[:count])


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
