"""Statements about drawings pass for ours, and each fails on the bugs that it is there for."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from unstir import pipeline
from unstir.condition import Condition
from unstir.conditioning.text import WordReader
from unstir.diffusion.process import Estimate
from unstir.editing import Canvas, Way
from unstir.nn.embedding import ConditionReader
from unstir.pipeline import Pipeline, Result
from unstir.steering import Steering
from unstir.verify import drawing
from unstir.verify.outcome import Outcome

STATEMENTS: dict[str, Callable[[], Outcome]] = {
    "C21": drawing.threads_share_a_model,
    "C24": drawing.nothing_is_dropped,
    "C25": drawing.guidance_on_all_channels,
    "C26": drawing.rescaling_reaches_all,
    "C27": drawing.one_null,
    "C28": drawing.dropped_has_no_influence,
    "C29": drawing.ends_of_strength,
    "C32": drawing.kept_pixels,
}


@pytest.mark.parametrize("name", STATEMENTS)
def test_our_drawings_pass(name: str) -> None:
    outcome = STATEMENTS[name]()
    assert outcome.status == "passed", outcome


def a_seed_on_the_shared_object(patch: pytest.MonkeyPatch) -> None:
    right = Pipeline.sample

    def broken(self: Any, *rest: Any, seed: int, **named: Any) -> Any:
        self.seed = seed
        time.sleep(0.02)
        return right(self, *rest, seed=self.seed, **named)

    patch.setattr(Pipeline, "sample", broken)


def words_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    right = WordReader.read

    def broken(self: Any, prompts: Any, **named: Any) -> Any:
        read, cuts = right(self, prompts, **named)
        return replace(read, kept=torch.arange(len(read)) % 10 > 0), cuts

    patch.setattr(WordReader, "read", broken)


def calls_draw_their_own_seed(patch: pytest.MonkeyPatch) -> None:
    right = Pipeline.sample
    patch.setattr(Pipeline, "sample", lambda self, *rest, seed, **named: right(self, *rest, **named))


def three_channels_are_guided(patch: pytest.MonkeyPatch) -> None:
    """The others are the strong belief's, as in DiT."""

    def broken(process: Any, scale: float) -> Any:
        combine = drawing.extrapolate(process, scale)

        def some(x_t: Any, level: Any, strong: Any, weak: Any) -> Estimate:
            x0 = combine(x_t, level, strong, weak).x0
            return Estimate(x0=torch.cat([x0[:, :3], strong.x0[:, 3:]], 1))

        return some

    patch.setattr(drawing, "METHODS", {**drawing.METHODS, "projected": broken})


def one_sampler_is_not_told(patch: pytest.MonkeyPatch) -> None:
    right = Pipeline.sample

    def broken(self: Any, *rest: Any, sampler: str, steering: Steering, **named: Any) -> Any:
        return right(self, *rest, sampler=sampler, steering=Steering() if sampler == "plms" else steering, **named)

    patch.setattr(Pipeline, "sample", broken)


def divided_by_no_contrast(patch: pytest.MonkeyPatch) -> None:
    def broken(combine: Any, fraction: float, view: str) -> Any:
        def rescaled(x_t: Any, level: Any, strong: Any, weak: Any) -> Estimate:
            x0 = combine(x_t, level, strong, weak).x0
            return Estimate(x0=x0 * strong.x0.std() / x0.std())

        return rescaled

    patch.setattr(drawing, "rescale", broken)


def null_is_an_empty_prompt(patch: pytest.MonkeyPatch) -> None:
    def broken(self: Condition) -> Condition:
        assert self.words is not None
        return replace(self, words=torch.zeros_like(self.words))

    patch.setattr(Condition, "null", broken)


def null_keeps_the_pooled_vector(patch: pytest.MonkeyPatch) -> None:
    right = ConditionReader.forward

    def broken(self: Any, condition: Condition) -> Condition:
        return replace(right(self, condition), pooled=right(self, replace(condition, kept=None)).pooled)

    patch.setattr(ConditionReader, "forward", broken)


def a_trace_is_left(patch: pytest.MonkeyPatch) -> None:
    right = ConditionReader.forward

    def broken(self: Any, condition: Condition) -> Condition:
        read, whole = right(self, condition), right(self, replace(condition, kept=None))
        assert read.tokens is not None
        assert whole.tokens is not None
        return replace(read, tokens=read.tokens + 1e-6 * whole.tokens)

    patch.setattr(ConditionReader, "forward", broken)


def dropped_too_often(patch: pytest.MonkeyPatch) -> None:
    right = Condition.drop
    patch.setattr(Condition, "drop", lambda self, probability, noise: right(self, min(1.0, probability * 1.2), noise))


def strength_0_is_not_untouched(patch: pytest.MonkeyPatch) -> None:
    right = pipeline._untouched

    def broken(requests: Any, canvas: Any) -> Any:
        for result in right(requests, canvas):
            assert isinstance(result, Result)
            yield replace(result, picture=Image.fromarray(numpy.asarray(result.picture) ^ 1))

    patch.setattr(pipeline, "_untouched", broken)


def strength_1_sees_the_picture(patch: pytest.MonkeyPatch) -> None:
    right = Way.upon

    def broken(self: Way, canvas: Any, edit: Any, process: Any, x0: Any, noise: Any) -> Way:
        way = right(self, canvas, edit, process, x0, noise)
        return replace(way, x=way.x + 0.07 * x0)  # a schedule that ends with signal

    patch.setattr(Way, "upon", broken)


def kept_pixels_are_drawn(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Canvas, "restored", lambda self, drawn: drawn)
    patch.setattr(Way, "upon", lambda self, *rest: self)


def a_mask_by_its_corners(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(drawing, "reduced", lambda mask, factor: mask[::factor, ::factor])


@pytest.mark.parametrize(
    ("name", "plant"),
    [
        ("C21", a_seed_on_the_shared_object),
        ("C24", words_are_forgotten),
        ("C24", calls_draw_their_own_seed),
        ("C25", three_channels_are_guided),
        ("C26", one_sampler_is_not_told),
        ("C26", divided_by_no_contrast),
        ("C27", null_is_an_empty_prompt),
        ("C27", null_keeps_the_pooled_vector),
        ("C28", a_trace_is_left),
        ("C28", dropped_too_often),
        ("C29", strength_0_is_not_untouched),
        ("C29", strength_1_sees_the_picture),
        ("C32", kept_pixels_are_drawn),
        ("C32", a_mask_by_its_corners),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_planted_bug_is_found(
    name: str, plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    assert STATEMENTS[name]().status == "failed"


def test_the_tiny_model_is_the_same_each_time() -> None:
    """And making it leaves torch's global generator alone."""
    state = torch.get_rng_state()
    first, second = (drawing.tiny().sample("red heart", seed=1)[0].tobytes() for _ in range(2))
    assert first == second
    assert torch.equal(torch.get_rng_state(), state)
    assert drawing.tiny().sample("blue star", seed=1)[0].tobytes() != first, "it listens to its words"
