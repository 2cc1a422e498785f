"""Drawing: a picture of a file of prompts is that of a call of its own, whatever it is drawn beside."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy
from PIL import Image

from unstir.generation.drawing import draw
from unstir.generation.shards import Order, Share, claim
from unstir.metadata import read_recipe
from unstir.pipeline import Pipeline, Result


def test_pictures_are_those_of_single_calls(pipe: Pipeline, order: Callable[..., Order]) -> None:
    """With negative words between lines without, which share no batch, and seeds of their own."""
    asked = order("unused")
    path = asked.prompts.with_suffix(".jsonl")
    rows = [{"prompt": f"cat {i}", **({"negative": "blue"} if i % 2 else {}), **({"seed": 9} if i == 3 else {})} for i in range(7)]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, rows)))
    asked = replace(asked, prompts=path)
    claim(asked, Share())
    drawn = list(draw(pipe, asked, asked.wanted()))
    assert sorted(one.index for one in drawn) == list(range(7))
    rows_of_batches = set()
    for one in asked.wanted():
        alone = pipe.sample(one.prompt, seed=9 if one.index == 3 else one.index, negative=one.negative or None)[0]
        with Image.open(asked.folder / one.name) as picture:
            apart = numpy.abs(numpy.array(picture).astype(int) - numpy.array(alone)).max()
        assert apart <= 1
        request = read_recipe(asked.folder / one.name).request
        rows_of_batches.add(request.rows)
        [again] = [item for item in pipe.run([request]) if isinstance(item, Result)]
        with Image.open(asked.folder / one.name) as picture:
            assert numpy.array_equal(numpy.array(picture), numpy.array(again.picture))
    assert rows_of_batches == {1, 2}  # four without negative words, three with: two batches are whole, one is not


def test_a_cut_prompt_is_told(pipe: Pipeline, order: Callable[..., Order]) -> None:
    asked = order("red blue cat " * 60, "cat")
    claim(asked, Share())
    first, second = draw(pipe, asked, asked.wanted())
    assert "tokens" in first.warnings[0]
    assert second.warnings == ()
