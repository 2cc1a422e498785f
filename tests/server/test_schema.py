"""The own API's fields: what they become, what is said of wrong ones, and that nothing at all breaks the reading."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unstir.config import to_dict
from unstir.editing import Blend, Edit, Reference
from unstir.metadata import Recipe
from unstir.pipeline import Request
from unstir.server.asking import Asked, AskedEdit, AskedWay, Refused
from unstir.server.jobs import Job, Picture, Status
from unstir.server.schema import (
    JobRequest,
    JobStatus,
    PictureFacts,
    RecipeFacts,
    Upload,
    complaint,
    own_field,
    read_job,
)
from unstir.server.service import Kept
from unstir.steering import Steering

ID = "0123456789abcdef" * 2
NAME = ID * 2


def body(**said: Any) -> bytes:
    return json.dumps({"prompt": "a red heart", **said}).encode()


def refused(sent: bytes) -> Refused:
    with pytest.raises(Refused) as caught:
        read_job(sent).asked()
    sentence = str(caught.value)
    assert sentence
    assert "\n" not in sentence
    assert len(sentence) < 1000
    sentence.encode()  # it can be sent
    caught.value.field.encode()
    return caught.value


def test_a_prompt_alone_leaves_all_else_to_the_model() -> None:
    assert read_job(body()).asked() == Asked(prompt="a red heart")


def test_every_field_becomes_what_it_means() -> None:
    sent = body(
        negative="blue",
        model="m",
        number=2,
        seed=7,
        steps=8,
        sampler="ddim",
        grid="10,5",
        guidance=2,
        guidance_interval=[-4, 4.5],
        guidance_method="projected",
        guidance_rescale=0.5,
        guidance_view="x0",
        guidance_threshold=0.9,
        eta=1,
        width=64,
        height=128,
        syntax="weighted",
        tile=True,
        edit={
            "source": NAME,
            "mask": f"{ID}/3",
            "strength": 0.5,
            "resample": 2,
            "extend": [0, 1, 2, 3],
            "fit": "crop",
        },
        way={"to_prompt": "a cat", "to_source": f"{ID}/0", "frames": 5},
        draft=True,
        page="tab-1",
    )
    assert set(json.loads(sent)) == set(JobRequest.model_fields)  # none is forgotten here
    job = read_job(sent)
    assert job.page == "tab-1"
    assert job.asked() == Asked(
        prompt="a red heart",
        model="m",
        number=2,
        seed=7,
        settings={
            "negative": "blue",
            "syntax": "weighted",
            "steps": 8,
            "sampler": "ddim",
            "grid": "10,5",
            "guidance_scale": 2.0,
            "guidance_interval": (-4.0, 4.5),
            "steering": Steering(method="projected", rescale=0.5, view="x0", threshold=0.9),
            "eta": 1.0,
            "width": 64,
            "height": 128,
            "tile": True,
        },
        edit=AskedEdit(source=NAME, mask=f"{ID}/3", strength=0.5, resample=2, extend=(0, 1, 2, 3), fit="crop"),
        way=AskedWay(to_prompt="a cat", to_source=f"{ID}/0", frames=5),
        is_draft=True,
    )


def test_null_is_what_is_left_out() -> None:
    optional = [name for name in JobRequest.model_fields if name not in ("prompt", "number", "draft", "page")]
    assert read_job(body(**dict.fromkeys(optional))).asked() == Asked(prompt="a red heart")


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({"prompt": 1}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"number": 0}, "number"),
        ({"number": "2"}, "number"),
        ({"number": True}, "number"),
        ({"number": 1.5}, "number"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"steps": 0}, "steps"),
        ({"steps": [8]}, "steps"),
        ({"sampler": 3}, "sampler"),
        ({"grid": "1," * 1000}, "grid"),
        ({"guidance": 101}, "guidance"),
        ({"guidance_interval": [1]}, "guidance_interval.1"),
        ({"guidance_interval": [1, 2, 3]}, "guidance_interval"),
        ({"guidance_method": "shouted"}, "guidance_method"),
        ({"guidance_rescale": 2}, "guidance_rescale"),
        ({"guidance_view": "sideways"}, "guidance_view"),
        ({"guidance_threshold": 7}, "guidance_threshold"),
        ({"eta": -0.1}, "eta"),
        ({"width": 0}, "width"),
        ({"tile": "yes"}, "tile"),
        ({"edit": {}}, "edit.source"),
        ({"edit": {"source": "/etc/passwd"}}, "edit.source"),
        ({"edit": {"source": "../" + NAME}}, "edit.source"),
        ({"edit": {"source": NAME + "\n"}}, "edit.source"),
        ({"edit": {"source": NAME, "mask": "file.png"}}, "edit.mask"),
        ({"edit": {"source": NAME, "strength": 2}}, "edit.strength"),
        ({"edit": {"source": NAME, "resample": 101}}, "edit.resample"),
        ({"edit": {"source": NAME, "extend": [0, 0, 1]}}, "edit.extend.3"),
        ({"edit": {"source": NAME, "path": "x"}}, "edit.path"),
        ({"edit": "x"}, "edit"),
        ({"way": {"frames": 1}}, "way.frames"),
        ({"way": {"to_source": "x"}}, "way.to_source"),
        ({"draft": 1}, "draft"),
        ({"page": "a b"}, "page"),
        ({"page": "x" * 65}, "page"),
        ({"weights": "x"}, "weights"),
        ({"classifier": "/tmp"}, "classifier"),
        ({"body": 1}, "body"),
        ({"precision": "bf16"}, "precision"),
    ],
)
def test_a_wrong_field_is_named(said: dict[str, Any], field: str) -> None:
    error = refused(body(**said))
    assert error.field == field
    assert any(word in str(error) for word in field.split(".")[-1].split("_"))


def test_a_prompt_that_is_missing_is_named() -> None:
    error = refused(b"{}")
    assert (error.field, str(error)) == ("prompt", "prompt is missing; give it")


def test_an_unknown_field_is_named_with_the_nearest() -> None:
    assert str(refused(body(promt="x"))) == "unknown field 'promt'; did you mean prompt?"
    assert "did you mean strength?" in str(refused(body(edit={"source": NAME, "strenght": 1})))
    assert "there are prompt, negative" in str(refused(body(zzzz=1)))


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b" ",
        b"null",
        b"[]",
        b"3",
        b'"prompt"',
        b"{",
        b"{'prompt': 'x'}",
        b'{"prompt": "a",}',
        b'{"prompt": "a"} {}',
        b"\xff\xfe{\x00",
        b'{"prompt": "\xff"}',
        b'{"prompt": "\\ud800"}',
        b'{"\\udfff": 1, "prompt": "a"}',
        b'{"prompt": "a\x00"}',
        b"[" * 10**6,
        b'{"edit":' * 10**5,
        b'{"prompt": "a", "guidance": NaN}',
        b'{"prompt": "a", "guidance": Infinity}',
        b'{"prompt": "a", "guidance": -Infinity}',
        b'{"prompt": "a", "guidance": 1e999}',
        b'{"prompt": "a", "seed": 1' + b"0" * 10**5 + b"}",
        b'{"prompt": "a", "seed": 1' + b"0" * 3000 + b"}",
        b'{"prompt": "a", "seed": 1e400}',
        b'{"prompt": "a", "' + b"x" * 10**6 + b'": 1}',
        b'{"prompt": "a", "edit": {"source": "' + b"a" * 10**6 + b'"}}',
        b"--x\r\nContent-Disposition: form-data; name=prompt\r\n\r\na\r\n--x--",
        b"prompt=a",
    ],
    ids=range(28),
)
def test_what_is_no_job_is_refused_in_a_sentence(sent: bytes) -> None:
    refused(sent)


@given(st.binary(max_size=60))
def test_bytes_are_read_or_refused(sent: bytes) -> None:
    try:
        read_job(sent).asked()
    except Refused as error:
        str(error).encode()


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([*JobRequest.model_fields, "other"]), ANYTHING, max_size=4))
def test_any_values_are_read_or_refused(said: dict[str, Any]) -> None:
    try:
        read_job(json.dumps({"prompt": "a", **said}).encode()).asked()
    except Refused as error:
        f"{error}{error.field}".encode()


def test_a_complaint_leaves_out_where_fastapi_looked() -> None:
    error = {"type": "less_than_equal", "loc": ("query", "limit"), "msg": "Input should be less than 5", "input": "9"}
    assert complaint([error]) == ("limit should be less than 5, got '9'", "limit")


def test_fields_of_the_service_have_our_names() -> None:
    assert own_field("guidance_scale") == "guidance"
    assert own_field("edit.mask") == "edit.mask"
    named = {"guidance_scale", "steering", "is_draft"} | {field.name for field in fields(Asked)} - {"settings"}
    assert {own_field(name) for name in named} <= set(JobRequest.model_fields)


REQUEST = Request(
    prompt="a red heart",
    seed=7,
    steps=8,
    sampler="ddim",
    grid="trailing",
    guidance_scale=2.0,
    width=64,
    height=32,
    edit=Edit(source=Reference(sha256="ab", name=NAME), mask=Reference(sha256="cd")),
    blend=Blend(share=0.5, prompt="a cat"),
)
PICTURE = Picture(job=ID, index=1, request=REQUEST, created=3.5, seconds=0.25, warnings=("cut",))


def test_a_picture_is_told_as_its_request_is_kept() -> None:
    told = json.loads(PictureFacts.of(PICTURE).model_dump_json())
    assert told == {
        "job": ID,
        "index": 1,
        "url": f"/api/pictures/{ID}/1",
        "seed": 7,
        "width": 64,
        "height": 32,
        "request": json.loads(json.dumps(to_dict(REQUEST))),
        "created": 3.5,
        "seconds": 0.25,
        "warnings": ["cut"],
    }


def test_a_status_tells_all_that_there_is_of_a_job() -> None:
    job = Job(
        id=ID,
        model="m",
        created=1.0,
        requests=(REQUEST, replace(REQUEST, seed=8)),
        is_draft=True,
        state="failed",
        error="why",
    )
    status = Status(job=job, position=3, step=5, steps=16, previews=(0, 4), drawn=(1,))
    facts = PictureFacts.of(PICTURE)
    told = JobStatus.of(status, [facts])
    assert (told.id, told.url, told.model, told.draft) == (ID, f"/api/jobs/{ID}", "m", True)
    assert (told.state, told.error, told.position, told.step, told.steps) == ("failed", "why", 3, 5, 16)
    assert (told.request, told.seeds, told.pictures) == (REQUEST, (7, 8), (facts,))
    assert told.previews == (None, f"/api/jobs/{ID}/previews/1?at=4")


def test_the_url_of_a_preview_changes_with_it() -> None:
    job = Job(id=ID, model="m", created=1.0, requests=(REQUEST,))
    urls = {
        JobStatus.of(Status(job=job, position=0, step=1, steps=8, previews=(n,), drawn=()), []).previews[0]
        for n in range(4)
    }
    assert len(urls) == 4


def recipe(**changes: Any) -> Recipe:
    return Recipe(request=replace(REQUEST, **changes), model="m", checksum="c")


def test_an_upload_tells_the_recipe_that_it_carries() -> None:
    told = Upload.of(Kept(name=NAME, width=4, height=3, recipe=recipe()))
    assert (told.name, told.url, told.width, told.height) == (NAME, f"/api/uploads/{NAME}", 4, 3)
    assert told.recipe == RecipeFacts.of(recipe())
    assert told.recipe is not None
    assert told.recipe.parameters.startswith("a red heart\n")


@pytest.mark.parametrize("changes", [{"prompt": "\ud800"}, {"guidance_scale": float("nan")}, {"eta": float("inf")}])
def test_a_recipe_that_json_has_no_words_for_is_not_told(changes: dict[str, Any]) -> None:
    told = Upload.of(Kept(name=NAME, width=4, height=3, recipe=recipe(**changes)))
    assert told.recipe is None
    told.model_dump_json()


def test_an_upload_without_a_recipe_has_none() -> None:
    assert Upload.of(Kept(name=NAME, width=4, height=3, recipe=None)).recipe is None
