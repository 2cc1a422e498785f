"""Asking: a client gets the very requests of the pipeline, or one sentence; never a path, nor more than the limits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from unstir.editing import Edit, Reference
from unstir.pipeline import MAX_SEED, Pipeline
from unstir.server.asking import (
    Asked,
    AskedEdit,
    AskedWay,
    Limits,
    Refused,
    choose_model,
    field_of,
    fingerprint,
    plain,
    references,
    requests_of,
    require_affordable,
    require_modest,
)
from unstir.steering import Steering

LIMITS = Limits(pictures=4, steps=10, prompt=30, scale=2)
SIZES = {"tiny": 16, "other": 32}
PICTURE = Image.fromarray(numpy.arange(16 * 16 * 3, dtype=numpy.uint8).reshape(16, 16, 3))
OTHER = Image.new("RGB", (16, 16), "red")
MASK = Image.fromarray(numpy.eye(16, dtype=numpy.uint8) * 255)
PICTURES, MASKS = {"a": PICTURE, "b": OTHER}, {"m": MASK}


def asked(**fields: Any) -> Asked:
    return Asked(**{"prompt": "red cat", "seed": 5, **fields})


def unnamed(request: Any) -> Any:
    """A request whose pictures have no names."""
    edit, blend = request.edit, request.blend
    if edit is not None:
        mask = edit.mask and replace(edit.mask, name="")
        edit = replace(edit, source=replace(edit.source, name=""), mask=mask)
    if blend is not None and blend.picture is not None:
        blend = replace(blend, picture=replace(blend.picture, name=""))
    return replace(request, edit=edit, blend=blend)


def test_words_become_the_requests_of_the_pipeline(pipe: Pipeline) -> None:
    question = asked(number=3, settings={"negative": "blue", "steps": 4, "guidance_scale": None})
    requests, album = requests_of(question, pipe, {}, {})
    assert list(requests) == pipe.requests(["red cat"], n=3, seed=5, negative="blue", steps=4)
    assert not album


def test_without_a_seed_each_question_has_its_own(pipe: Pipeline) -> None:
    seeds = {requests_of(asked(seed=None), pipe, {}, {})[0][0].seed for _ in range(3)}
    assert len(seeds) == 3


def test_an_edit_becomes_that_of_the_pipeline_under_the_names_of_the_client(pipe: Pipeline) -> None:
    edit = AskedEdit(source="a", mask="m", strength=0.5, resample=2)
    requests, album = requests_of(asked(number=2, edit=edit), pipe, PICTURES, MASKS)
    expected, its_album = pipe.edit_requests(PICTURE, "red cat", n=2, seed=5, mask=MASK, strength=0.5, resample=2)
    assert [unnamed(request) for request in requests] == expected
    assert album.keys() == its_album.keys()
    first = requests[0].edit
    assert first is not None
    assert first.mask is not None
    assert (first.source.name, first.mask.name) == ("a", "m")
    assert references(requests) == {first.source.sha256: ("a", "picture"), first.mask.sha256: ("m", "mask")}


def test_an_edit_takes_the_defaults_of_the_pipeline(pipe: Pipeline) -> None:
    requests, _ = requests_of(asked(edit=AskedEdit(source="a")), pipe, PICTURES, {})
    assert [unnamed(each) for each in requests] == pipe.edit_requests(PICTURE, "red cat", seed=5)[0]


def test_a_way_becomes_that_of_the_pipeline(pipe: Pipeline) -> None:
    requests, _ = requests_of(asked(way=AskedWay(to_prompt="blue cat", frames=3)), pipe, {}, {})
    assert list(requests) == pipe.between_requests("red cat", "blue cat", frames=3, seed=5)[0]
    question = asked(edit=AskedEdit(source="a"), way=AskedWay(to_source="b", frames=2))
    requests, album = requests_of(question, pipe, PICTURES, {})
    expected, its_album = pipe.between_requests("red cat", pictures=(PICTURE, OTHER), frames=2, seed=5)
    assert [unnamed(each) for each in requests] == expected
    assert album.keys() == its_album.keys()
    assert sorted(references(requests).values()) == [("a", "picture"), ("b", "picture")]
    assert question.pictures == ("a", "b")


LONG = "x" * 31


@pytest.mark.parametrize(
    ("question", "field", "words"),
    [
        (asked(model="tinny"), "model", "did you mean tiny"),
        (asked(model="/etc/passwd"), "model", "unknown model"),
        (asked(prompt=LONG), "prompt", "at most 30"),
        (asked(prompt="a\0b"), "prompt", "no text"),
        (asked(prompt="a\ud800b"), "prompt", "no text"),
        (asked(settings={"negative": LONG}), "negative", "at most 30"),
        (asked(settings={"negative": "\udfff"}), "negative", "no text"),
        (asked(way=AskedWay(to_prompt=LONG)), "way.to_prompt", "at most 30"),
        (asked(settings={"grid": "1," * 600}), "grid", "at most 1000"),
        (asked(settings={"steps": 11}), "steps", "at most 10"),
        (asked(number=5), "number", "at most 4"),
        (asked(seed=-1), "seed", "from 0"),
        (asked(seed=MAX_SEED + 1), "seed", "from 0"),
        (asked(way=AskedWay(to_prompt="y", frames=5)), "way.frames", "at most 4"),
        (asked(number=2, way=AskedWay(to_prompt="y", frames=2)), "number", "leave number out"),
        (asked(way=AskedWay(to_source="a", frames=2)), "way.to_source", "edit.source"),
        (asked(edit=AskedEdit(source="a"), way=AskedWay(to_prompt="y", frames=2)), "way.to_source", "edit.source"),
        (asked(settings={"width": 65}), "width", "at most 32"),
        (asked(settings={"height": 10**9}), "height", "at most 32"),
        (asked(settings={"steering": Steering(weak="/etc")}), "steering", "another model"),
        (asked(settings={"steering": Steering(classifier="/etc")}), "steering", "another model"),
        (asked(settings={"steering": Steering(weights=("a", ""))}), "steering", "another model"),
        (asked(settings={"edit": Edit(source=Reference(sha256="0", name="/etc/passwd"))}), "edit", "beside"),
    ],
)
def test_what_no_model_need_look_at(question: Asked, field: str, words: str) -> None:
    with pytest.raises(Refused, match=words) as caught:
        require_modest(question, LIMITS, SIZES)
    assert caught.value.field == field


def test_the_limits_themselves_are_allowed(pipe: Pipeline) -> None:
    question = asked(prompt="x" * 30, number=4, seed=MAX_SEED - 3, settings={"steps": 10, "width": 32})
    require_modest(question, LIMITS, SIZES)
    request = replace(pipe.request("x", seed=1), steps=10, width=32, height=32)
    require_affordable((request,), LIMITS, 16)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"steps": 11}, "steps"),
        ({"width": 64, "height": 17}, "width"),
        ({"edit": Edit(source=Reference(sha256="0"), mask=Reference(sha256="1"), resample=5)}, "edit.resample"),
    ],
)
def test_what_costs_too_much_once_it_is_fully_said(pipe: Pipeline, changes: dict[str, Any], field: str) -> None:
    request = replace(pipe.request("x", seed=1), steps=10)
    with pytest.raises(Refused, match="at most") as caught:
        require_affordable((replace(request, **changes),), LIMITS, 16)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"prompt": "  "}, "prompt"),
        ({"number": 0}, "number"),
        ({"seed": MAX_SEED, "number": 2}, "seed"),
        ({"settings": {"steps": 0}}, "steps"),
        ({"settings": {"sampler": "nobody"}}, "sampler"),
        ({"settings": {"sampler": "tuned"}}, "steps"),
        ({"settings": {"grid": "nothing"}}, "grid"),
        ({"settings": {"grid": "1,1,0"}}, "grid"),
        ({"settings": {"syntax": "latex"}}, "syntax"),
        ({"settings": {"eta": 0.5}}, "eta"),
        ({"settings": {"guidance_scale": 1000.0}}, "guidance_scale"),
        ({"settings": {"guidance_interval": (2.0, 1.0)}}, "guidance_interval"),
        ({"settings": {"width": 24}}, "width"),
        ({"edit": AskedEdit(source="a", strength=2.0)}, "edit.strength"),
        ({"edit": AskedEdit(source="a", resample=2)}, "edit.resample"),
        ({"edit": AskedEdit(source="a", extend=(-1, 0, 0, 0))}, "edit.extend"),
        ({"edit": AskedEdit(source="a", fit="stretch")}, "edit.fit"),
        ({"edit": AskedEdit(source="a", mask="small")}, "edit.mask"),
        ({"edit": AskedEdit(source="large")}, "width"),
        ({"way": AskedWay(to_prompt="y", frames=1)}, "way.frames"),
        ({"way": AskedWay()}, "way"),
    ],
)
def test_what_the_model_cannot_draw_names_the_field(pipe: Pipeline, fields: dict[str, Any], field: str) -> None:
    pictures = {**PICTURES, "large": Image.new("RGB", (64, 16))}
    with pytest.raises(Refused) as caught:
        requests_of(asked(**fields), pipe, pictures, {"small": Image.new("L", (8, 8))})
    assert caught.value.field == field
    assert "--" not in str(caught.value)


def test_sentences_speak_of_fields_not_of_options() -> None:
    assert plain("got 24x16; leave --size out") == "got 24x16; leave width and height out"
    assert plain("or --prompt-syntax weighted") == "or syntax weighted"
    assert plain("an end -- and\nmore") == "an end -- and more"
    assert len(plain("x" * 5000)) == 400
    assert field_of("who knows") == ""


def test_the_first_model_is_the_default() -> None:
    assert choose_model(asked(), SIZES) == "tiny"
    assert choose_model(asked(model="other"), SIZES) == "other"


SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "steps": st.integers(1, 3) | st.none(),
        "negative": st.sampled_from(["", "a"]),
        "steering": st.sampled_from([Steering(), Steering(rescale=0.5)]),
        "guidance_interval": st.sampled_from([(0.0, 1.0), (float("-inf"), 1.0)]),
    },
)
QUESTIONS = st.builds(
    Asked,
    prompt=st.sampled_from(["a", "b"]),
    model=st.sampled_from(["", "tiny"]),
    number=st.integers(1, 2),
    seed=st.sampled_from([None, 1]),
    settings=SETTINGS,
    edit=st.none() | st.builds(AskedEdit, source=st.sampled_from("ab"), strength=st.sampled_from([None, 0.5])),
    way=st.none() | st.builds(AskedWay, frames=st.integers(2, 3)),
    is_draft=st.booleans(),
)


@given(QUESTIONS, QUESTIONS)
def test_two_questions_are_the_same_if_they_have_the_same_fingerprint(first: Asked, second: Asked) -> None:
    def said(question: Asked) -> Asked:
        return replace(question, settings={k: v for k, v in question.settings.items() if v is not None})

    assert (fingerprint(first) == fingerprint(second)) == (said(first) == said(second))
