"""A picture that is left at every question and gone on with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from unstir.pipeline import Pipeline, Preview, Result, load
from unstir.server.walk import Call, Walk, ask


@pytest.fixture(scope="module")
def small(noisy_model: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return load(noisy_model(tmp_path_factory.mktemp("model")), device="cpu", precision="float32")


def answered(call: Call) -> torch.Tensor:
    with torch.no_grad():
        return call.network(call.x, call.scalar, call.condition)


def test_a_walk_asks_once_a_step_and_ends_in_the_pipelines_own_picture(small: Pipeline) -> None:
    request = small.request("red cat", seed=3, steps=5)
    looks: list[Preview] = []
    walk = Walk(small.through(ask), request, {}, looks.append)
    calls, call = 0, walk.go()
    while call is not None:
        calls += 1
        call = walk.go(answered(call))
    whole = [item for item in small.run([request]) if isinstance(item, Result)]
    assert calls == 5
    assert [look.index for look in looks] == [1, 2, 3, 4]
    assert walk.result is not None
    assert numpy.array_equal(numpy.asarray(walk.result.picture), numpy.asarray(whole[0].picture))


def test_walks_that_take_turns_do_not_touch_each_other(small: Pipeline) -> None:
    """Different samplers, an edit, one that leaves in the middle; what is switched in the thread stays as it was."""
    through = small.through(ask)
    requests = [
        small.request("red", seed=1, steps=4, sampler="heun"),
        small.request("blue cat", seed=2, steps=6, sampler="euler_ancestral", guidance_scale=1.0),
        small.request("cat", seed=3, steps=3, negative="red"),
    ]
    edits, album = small.edit_requests(Image.new("RGB", (16, 16), "red"), "cat", seed=5, steps=4, strength=0.5)
    walks: list[Any] = [Walk(through, each, album, lambda _: None) for each in [*requests, *edits]]
    left = Walk(through, requests[0], {}, lambda _: None)
    calls = {walk: walk.go() for walk in walks}
    assert left.go() is not None
    left.leave()
    assert left.result is None
    while any(calls.values()):
        for walk, call in calls.items():
            if call is not None:
                calls[walk] = walk.go(answered(call))
        assert torch.is_grad_enabled()
        assert not torch.is_autocast_enabled("cpu")
    for walk, request in zip(walks, [*requests, *edits], strict=True):
        whole = [item for item in small.run([request], album=album) if isinstance(item, Result)]
        difference = numpy.asarray(walk.result.picture).astype(int) - numpy.asarray(whole[0].picture)
        assert abs(difference).max() <= 1, request.sampler


def test_what_goes_wrong_is_raised_to_whoever_goes_on(small: Pipeline) -> None:
    walk = Walk(small.through(ask), small.request("red", seed=0), {}, lambda _: None)
    call = walk.go()
    assert call is not None
    nothing = torch.full_like(call.x, float("nan"))
    assert walk.go(nothing) is not None
    assert walk.go(nothing) is not None
    with pytest.raises(ArithmeticError, match="not finite"):
        walk.go(nothing)
