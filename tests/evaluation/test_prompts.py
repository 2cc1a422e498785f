"""Prompt fidelity: the nearest picture is the nearest one, the error bar has prompts for units."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from unstir.data.folder import InFile, PictureSet, Record
from unstir.evaluation.prompts import (
    Draw,
    Questions,
    Retrieval,
    ask_captions,
    ask_lines,
    choose_prompts,
    draw_all,
    draw_with,
    name_parts,
    nearest,
    parts_of_misses,
    retrieval,
    retrieve,
    score,
    spread_choice,
)
from unstir.pipeline import Request, Result


def bytes_of(seed: int, *shape: int, low: int = 0) -> Tensor:
    return torch.from_numpy(numpy.random.default_rng(seed).integers(low, 256, shape, dtype=numpy.uint8))


def brute_force(drawn: Tensor, real: Tensor) -> list[int]:
    """In whole numbers, one pair at a time; the first of equals."""
    found: list[int] = []
    for one in drawn.long():
        distances = [int((one - other).square().sum()) for other in real.long()]
        found.append(distances.index(min(distances)))
    return found


@given(st.integers(0, 999), st.integers(1, 7), st.integers(1, 9), st.integers(1, 4), st.integers(1, 10))
def test_nearest_is_the_nearest(seed: int, count: int, candidates: int, size: int, chunk: int) -> None:
    """Against brute force, for any chunk."""
    drawn, real = bytes_of(seed, count, 3, size, size), bytes_of(seed + 1, candidates, 3, size, size)
    assert nearest(drawn, real, chunk=chunk).tolist() == brute_force(drawn, real)


@pytest.mark.parametrize("seed", range(3))
def test_nearest_tells_apart_what_differs_in_one_value(seed: int) -> None:
    """A bright 64x64 picture has a squared length near 1e9, where float32 counts in steps of 64."""
    real = bytes_of(seed, 1, 3, 64, 64, low=200).repeat(3, 1, 1, 1)
    real[1, 0, 5, 5] = real[0, 0, 5, 5] - 6
    real[2, 2, 9, 9] = real[0, 2, 9, 9] - 3
    assert nearest(real, real).tolist() == [0, 1, 2]


def test_nearest_refuses_other_sizes() -> None:
    with pytest.raises(ValueError, match=r"\(3, 4, 4\).*\(3, 8, 8\)"):
        nearest(bytes_of(0, 1, 3, 4, 4), bytes_of(0, 1, 3, 8, 8))


@given(st.integers(1, 5).flatmap(lambda s: st.lists(st.lists(st.booleans(), min_size=s, max_size=s), min_size=2)))
def test_retrieval_has_prompts_for_units(hits: list[list[bool]]) -> None:
    """Mean over all; the standard error is that of the mean of the prompts' own means (statistics.stdev / sqrt n)."""
    score = retrieval(hits, 77)
    own = [statistics.fmean(row) for row in hits]
    assert score.top1 == pytest.approx(statistics.fmean(own), abs=1e-12)
    assert score.standard_error == pytest.approx(statistics.stdev(own) / math.sqrt(len(own)), abs=1e-12)
    assert (score.prompts, score.seeds, score.candidates) == (len(hits), len(hits[0]), 77)


def test_more_seeds_of_a_prompt_are_no_more_prompts() -> None:
    """Seeds that agree with each other add no certainty: ten copies of a column leave the error bar where it is."""
    hits = [[True], [False], [True], [True]]
    once, often = retrieval(hits, 9), retrieval([row * 10 for row in hits], 9)
    assert often.standard_error == pytest.approx(once.standard_error)
    assert once.standard_error == pytest.approx(0.25)


@pytest.mark.parametrize("hits", [[], [[]], [[True], [True, False]]])
def test_retrieval_refuses_tables_that_are_none(hits: list[list[bool]]) -> None:
    with pytest.raises(ValueError, match="at least one prompt"):
        retrieval(hits, 5)


@given(st.lists(st.text(max_size=6), unique=True, min_size=1, max_size=30), st.integers(0, 40), st.randoms())
def test_spread_choice_is_of_keys_not_of_order(keys: list[str], count: int, random: object) -> None:
    """The same set of keys whatever their order; in ascending order of index; the least by sha256."""
    chosen = spread_choice(keys, count)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(count, len(keys))
    shuffled = list(keys)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert {shuffled[i] for i in spread_choice(shuffled, count)} == {keys[i] for i in chosen}
    digest = {key: hashlib.sha256(key.encode()).digest() for key in keys}
    taken = {keys[i] for i in chosen}
    assert all(digest[a] < digest[b] for a in taken for b in set(keys) - taken)


def test_spread_choice_is_spread() -> None:
    """Unrelated to the order: of 1000 numbered keys the chosen ones lie evenly over the index (3 sigma)."""
    chosen = spread_choice([f"picture {i}" for i in range(1000)], 100)
    assert statistics.fmean(chosen) == pytest.approx(499.5, abs=3 * 1000 / math.sqrt(12 * 100))


def test_a_larger_choice_holds_the_smaller() -> None:
    keys = [str(i) for i in range(50)]
    assert set(spread_choice(keys, 5)) <= set(spread_choice(keys, 20))


PROMPTS = ["cat", "dog", "heart", "star"]
REAL = bytes_of(5, 6, 3, 8, 8)
ASKED = [4, 0, 2, 5]


def perfect(prompts: Sequence[str], run: int) -> Tensor:
    """Draws what was asked, with a little noise of its own."""
    pictures = REAL[[ASKED[PROMPTS.index(prompt)] for prompt in prompts]].int()
    return (pictures + bytes_of(run, *pictures.shape).int() % 5 - 2).clamp(0, 255).to(torch.uint8)


QUESTIONS = Questions(prompts=tuple(PROMPTS), captions=tuple(PROMPTS), answers=tuple((i,) for i in ASKED))


def measured(draw: Draw, seeds: int) -> Retrieval:
    return score(QUESTIONS, retrieve(draw_all(draw, PROMPTS, seeds=seeds), REAL), len(REAL))


def test_a_perfect_drawer_scores_one() -> None:
    found = measured(perfect, 3)
    assert (found.top1, found.standard_error) == (1.0, 0.0)
    assert (found.prompts, found.seeds, found.candidates) == (4, 3, 6)


def test_a_constant_drawer_scores_its_share() -> None:
    """Whatever is asked it draws picture 2: right for one prompt of four, and its error bar says so."""
    found = measured(lambda prompts, run: REAL[[2] * len(prompts)], 2)
    assert found.top1 == 0.25
    assert found.standard_error == pytest.approx(statistics.stdev([0, 0, 1, 0]) / 2)


def test_each_run_counts() -> None:
    """A drawer that is right in run 1 of 0, 1, 2 only: a third, for every prompt."""
    seen: list[int] = []

    def draw(prompts: Sequence[str], run: int) -> Tensor:
        seen.append(run)
        return perfect(prompts, run) if run == 1 else REAL[[1] * len(prompts)]

    found = measured(draw, 3)
    assert seen == [0, 1, 2]
    assert found.top1 == pytest.approx(1 / 3)
    assert found.standard_error == pytest.approx(0, abs=1e-9)


def test_a_row_is_a_prompt_and_a_column_a_run() -> None:
    drawn = draw_all(lambda prompts, run: REAL[[ASKED[PROMPTS.index(p)] for p in prompts]] + run, PROMPTS, seeds=2)
    assert drawn.shape == (4, 2, 3, 8, 8)
    assert torch.equal(drawn[2, 1], REAL[2] + 1)
    assert retrieve(drawn[:, :1], REAL).tolist() == [[4], [0], [2], [5]]


def test_any_picture_with_the_caption_is_a_hit() -> None:
    """Where many carry it, each of them; the right row of another prompt is none."""
    shared = Questions(prompts=("a cat", "a dog"), captions=("a cat", "a dog"), answers=((0, 3), (1, 2)))
    found = score(shared, torch.tensor([[3, 0, 1], [0, 2, 4]]), 5)
    assert found.top1 == pytest.approx((2 / 3 + 1 / 3) / 2)


def record(key: str, split: str, *captions: str) -> Record:
    return Record(key=key, captions=captions, source="metadata", split=split, locate=InFile(path=Path(key)))


def test_the_prompts_of_a_split_are_chosen() -> None:
    """Of the asked split, only pictures with captions; a limited choice is the one of the keys."""
    records = [record(f"{i}.png", "test" if i % 2 else "train", *(["x"] if i % 3 else [])) for i in range(40)]
    pictures = PictureSet(root=Path(), records=tuple(records))
    members = [i for i in range(40) if i % 2 and i % 3]
    assert choose_prompts(pictures, "test", 99) == members
    some = choose_prompts(pictures, "test", 5)
    assert len(some) == 5
    assert set(some) <= set(members)
    reverse = PictureSet(root=Path(), records=tuple(records[::-1]))
    assert {reverse.records[i].key for i in choose_prompts(reverse, "test", 5)} == {records[i].key for i in some}
    assert choose_prompts(pictures, "validation", 5) == []


def test_a_caption_is_asked_once_however_many_carry_it() -> None:
    """Shared captions are one prompt, whose right answers are of every split; captions of one picture are as chosen."""
    said = [("cat", "train"), ("dog", "test"), ("cat", "test"), ("dog", "test"), ("eel", "test"), ("cat", "test")]
    pictures = PictureSet(root=Path(), records=tuple(record(f"{i}.png", s, c, "x") for i, (c, s) in enumerate(said)))
    asked = ask_captions(pictures, "test", 9)
    assert dict(zip(asked.prompts, asked.answers, strict=True)) == {"cat": (0, 2, 5), "dog": (1, 3), "eel": (4,)}
    assert asked.captions == asked.prompts
    ranked = sorted(range(1, 6), key=lambda i: hashlib.sha256(f"{i}.png".encode()).hexdigest())
    firsts = list(dict.fromkeys(said[i][0] for i in ranked))
    assert set(ask_captions(pictures, "test", 2).prompts) == set(firsts[:2])
    assert ask_captions(pictures, "validation", 2).prompts == ()
    alone = PictureSet(root=Path(), records=tuple(record(f"{i}.png", "test", f"name {i}") for i in range(20)))
    chosen = [f"name {i}" for i in choose_prompts(alone, "test", 7)]
    assert list(ask_captions(alone, "test", 7).prompts) == chosen


def test_a_file_asks_in_free_words() -> None:
    """A prompt, a tab, a caption; blank lines do not count, and one picture may be asked for twice."""
    pictures = PictureSet(root=Path(), records=tuple(record(c, "test", c) for c in ("cat", "dog", "cat")))
    asked = ask_lines("a furry friend\tdog\n\nkitty cat \t cat\nhound\tdog\n", pictures)
    assert asked.prompts == ("a furry friend", "kitty cat", "hound")
    assert asked.captions == ("dog", "cat", "dog")
    assert asked.answers == ((1,), (0, 2), (1,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\tcat\nno tab", "line 2 .*'no tab'.* a tab and a caption"),
        ("\tcat", "line 1"),
        ("a\tcow", "'cow'.* none has that caption"),
        ("a\t", "line 1"),
        ("\n \n", "holds no line"),
    ],
)
def test_a_file_that_asks_for_nothing_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ask_lines(text, PictureSet(root=Path(), records=(record("0", "test", "cat"),)))


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("woman pilot: dark skin tone", (("woman",), ("pilot",), ("dark skin tone",))),
        ("pilot: dark skin tone", ((), ("pilot",), ("dark skin tone",))),
        ("kiss: woman, man, light skin tone", (("woman", "man"), ("kiss",), ("light skin tone",))),
        ("man: medium skin tone, red hair", (("man",), ("", "red hair"), ("medium skin tone",))),
        ("women holding hands", (("women",), ("holding hands",), ())),
        ("flag: France", ((), ("flag", "France"), ())),
        ("red heart", ((), ("red heart",), ())),
    ],
)
def test_a_name_has_a_person_a_job_and_a_tone(name: str, parts: object) -> None:
    assert name_parts(name) == parts


def test_what_is_right_of_a_miss() -> None:
    """Hits do not count, nor misses of names without a tone; a name without person words does not count for these."""
    woman, tone = "woman pilot: dark skin tone", "dark skin tone"
    pairs = [
        (woman, woman),
        ("red heart", "green heart"),
        (woman, f"man pilot: {tone}"),
        (woman, "woman pilot: light skin tone"),
        (woman, f"woman judge: {tone}"),
        (f"ear: {tone}", "ear: light skin tone"),
        ("handshake: light skin tone, dark skin tone", "handshake: dark skin tone, light skin tone"),
    ]
    found = parts_of_misses(pairs)
    assert found is not None
    assert (found.misses, found.person, found.job, found.tone) == (5, 2 / 3, 4 / 5, 2 / 5)
    assert parts_of_misses(pairs[:2]) is None
    alone = parts_of_misses(pairs[5:6])
    assert alone is not None
    assert (alone.person, alone.job, alone.tone) == (None, 1.0, 0.0)


class Painter:
    """Stands for a pipeline: paints its prompt's length and its seed, and records what it was asked."""

    def requests(self, prompts: Sequence[str], *, seed: int, **settings: Any) -> list[Request]:
        fixed: Any = {"sampler": "ddim", "grid": "trailing", "guidance_scale": 1.0, "width": 3, "height": 2}
        return [Request(prompt=p, seed=seed + i, **{"steps": 1, **fixed, **settings}) for i, p in enumerate(prompts)]

    def run(self, requests: Sequence[Request], *, batch: int) -> Iterator[Result]:
        for request in requests:
            picture = Image.new("RGB", (3, 2), (len(request.prompt), request.seed, request.steps))
            yield Result(request=request, picture=picture, seconds=0.0, warnings=())


def test_each_drawing_has_its_own_seed() -> None:
    """Run r of m prompts has the seeds seed + r m to seed + (r + 1) m - 1; pictures are channels, rows, columns."""
    told: list[int] = []
    draw = draw_with(Painter(), seed=100, batch=2, settings={"steps": 7}, advance=told.append)  # type: ignore[arg-type]
    for run in range(3):
        pictures = draw(["a", "bb", "ccc"], run)
        assert pictures.shape == (3, 3, 2, 3)
        assert pictures.dtype == torch.uint8
        assert pictures[:, :, 1, 2].tolist() == [[i + 1, 100 + 3 * run + i, 7] for i in range(3)]
    assert told == list(range(1, 10))
