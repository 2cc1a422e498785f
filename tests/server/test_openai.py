"""OpenAI's Images API, asked by OpenAI's own client over a real socket."""

from __future__ import annotations

import base64
import io
import json
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import numpy
import openai
import pytest
import uvicorn
from fastapi import FastAPI
from PIL import Image

from unstir.metadata import recipe_in
from unstir.pipeline import Pipeline, Result
from unstir.server.app import create
from unstir.server.asking import Limits
from unstir.server.guard import Guard
from unstir.server.logs import Log
from unstir.server.openai import ALIASES, router
from unstir.server.service import Service
from unstir.server.worker import Counts, Listener, Work

TOKEN = "a-secret-that-nobody-is-told-4711"
SECONDS = 60.0


class Hand:
    """In the place of the worker: draws when it is told to, and ends what is called off."""

    def __init__(self, pipes: Mapping[str, Pipeline], listener: Listener) -> None:
        self.listener = listener
        self.works: dict[str, Work] = {}
        self.has_work, self.was_cancelled = threading.Event(), threading.Event()
        self.counts = Counts()
        self.is_alive = True

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def submit(self, work: Work) -> None:
        self.works[work.job] = work
        self.has_work.set()

    def cancel(self, job: str) -> None:
        self.listener.ended(job)
        self.was_cancelled.set()

    def finish(self, job: str) -> None:
        for index, request in enumerate(self.works[job].requests):
            result = Result(request=request, picture=Image.new("RGB", (16, 16)), seconds=0.1, warnings=())
            self.listener.drawn(job, index, result)
        self.listener.ended(job)


def framed(service: Service) -> FastAPI:
    return create(service, guard=Guard(token=TOKEN, rate=0), log=Log(io.StringIO()), is_warmed=False)


def bare(service: Service, aliases: tuple[str, ...]) -> FastAPI:
    @asynccontextmanager
    async def alive(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    app = FastAPI(lifespan=alive)
    app.include_router(router(service, aliases=aliases))
    return app


@contextmanager
def listening(app: FastAPI) -> Iterator[int]:
    """A server in a thread of its own; its port."""
    place = socket.socket()
    place.bind(("127.0.0.1", 0))
    place.listen()  # who connects from now on waits until the server is there
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [place]}, daemon=True)
    thread.start()
    try:
        yield place.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(SECONDS / 4)
        server.force_exit = True  # uvicorn's own server was once seen to wait for ever; ours is another, see listener
        thread.join(SECONDS / 4)
        place.close()


@contextmanager
def asking(port: int, key: str = TOKEN) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key=key, base_url=f"http://127.0.0.1:{port}/v1", max_retries=0, timeout=SECONDS) as client:
        yield client


@pytest.fixture(scope="module")
def port(pipe: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    limits = Limits(prompt=200, upload_bytes=100_000)
    service = Service({"tiny": pipe, "other": pipe}, tmp_path_factory.mktemp("openai") / "data", limits=limits)
    with listening(framed(service)) as port:
        yield port


@pytest.fixture(scope="module")
def client(port: int) -> Iterator[openai.OpenAI]:
    with asking(port) as client:
        yield client


def opened(picture: Any) -> Image.Image:
    data = picture if isinstance(picture, bytes) else base64.b64decode(picture.b64_json)
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def file_of(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def noise(size: tuple[int, int] = (16, 16), seed: int = 0) -> Image.Image:
    values = numpy.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=numpy.uint8)
    return Image.fromarray(values)


def transparent(size: tuple[int, int], box: tuple[int, int, int, int]) -> bytes:
    """A mask of OpenAI's: where it is transparent it is painted."""
    mask = Image.new("RGBA", size, (9, 9, 9, 255))
    mask.paste((9, 9, 9, 0), box)
    return file_of(mask)


# Generations.


def test_several_pictures_are_those_of_the_pipeline(client: openai.OpenAI, pipe: Pipeline) -> None:
    settings: Any = {"seed": 7, "steps": 4, "guidance": 2.5, "negative_prompt": "dog", "sampler": "euler"}
    got: Any = client.images.generate(prompt="a cat", n=3, extra_body=settings)
    expected = pipe.sample("a cat", n=3, seed=7, steps=4, guidance_scale=2.5, negative="dog", sampler="euler")
    assert len(got.data) == 3
    for index, (picture, mine) in enumerate(zip(got.data, expected, strict=True)):
        assert picture.url is None
        assert numpy.abs(numpy.array(opened(picture), int) - numpy.array(mine, int)).max() <= 1
        request = recipe_in(base64.b64decode(picture.b64_json)).request
        assert (request.seed, request.sampler, request.steps) == (7 + index, "euler", 4)
        told = {"index": index, "seed": 7 + index, "steps": 4, "guidance": 2.5, "negative_prompt": "dog"}
        told |= {"sampler": "euler", "model": "tiny", "width": 16, "height": 16, "enlarged": 1, "warnings": []}
        assert told.items() <= got.unstir[index].items()
    assert (got.size, got.output_format, got.background) == ("16x16", "png", "opaque")
    assert abs(got.created - time.time()) < 3600


def test_what_is_not_said_is_drawn_and_told(client: openai.OpenAI, pipe: Pipeline) -> None:
    got: Any = client.images.generate(prompt="a cat")
    (told,) = got.unstir
    assert told["steps"] == pipe.model.config.sampling.steps
    again: Any = client.images.generate(prompt="a cat", extra_body={"seed": told["seed"]})
    assert numpy.array_equal(numpy.array(opened(got.data[0])), numpy.array(opened(again.data[0])))


def test_what_clients_say_by_habit_is_taken(client: openai.OpenAI) -> None:
    got = client.images.generate(
        prompt="a cat",
        model="other",
        quality="auto",
        background="auto",
        moderation="low",
        style="vivid",
        user="u1",
        size="auto",
        n=None,
        response_format="b64_json",
        output_format="png",
        output_compression=100,
        partial_images=0,
        stream=False,
        extra_body={"safety_identifier": "s", "num_inference_steps": 2, "guidance_scale": 1.0},
    )
    assert got.data is not None
    assert len(got.data) == 1


def test_a_whole_multiple_of_the_models_size_is_enlarged_and_that_is_said(client: openai.OpenAI) -> None:
    small: Any = client.images.generate(prompt="a cat", extra_body={"seed": 1})
    large: Any = client.images.generate(prompt="a cat", size="256x256", extra_body={"seed": 1})
    assert large.size == "256x256"
    expected = opened(small.data[0]).resize((256, 256), Image.Resampling.LANCZOS)
    assert numpy.abs(numpy.array(opened(large.data[0]), int) - numpy.array(expected, int)).max() <= 1
    assert (large.unstir[0]["enlarged"], large.unstir[0]["width"]) == (16, 16)
    assert "drawn at 16x16 and enlarged 16 times to 256x256" in large.unstir[0]["warnings"]
    assert "Hires upscale: 16" in opened(large.data[0]).info["parameters"]


@pytest.mark.parametrize(("kind", "name"), [("jpeg", "JPEG"), ("webp", "WEBP")])
def test_other_formats(client: openai.OpenAI, kind: Any, name: str) -> None:
    got: Any = client.images.generate(prompt="a cat", output_format=kind, output_compression=30, size="32x32")
    assert got.output_format == kind
    assert opened(got.data[0]).format == name
    assert opened(got.data[0]).size == (32, 32)


def test_the_same_key_is_the_same_pictures(client: openai.OpenAI) -> None:
    headers = {"Idempotency-Key": "once"}
    first: Any = client.images.generate(prompt="a cat", extra_headers=headers)
    second: Any = client.images.generate(prompt="a cat", extra_headers=headers)
    assert first.unstir == second.unstir
    with pytest.raises(openai.BadRequestError, match="idempotency key was used") as error:
        client.images.generate(prompt="a dog", extra_headers=headers)
    assert error.value.param == "Idempotency-Key"


def test_a_url_is_good_for_a_while(client: openai.OpenAI, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    got: Any = client.images.generate(
        prompt="a cat", n=2, response_format="url", size="32x32", output_format="jpeg", extra_body={"seed": 3}
    )
    same: Any = client.images.generate(prompt="a cat", n=2, size="32x32", output_format="jpeg", extra_body={"seed": 3})
    assert len({picture.url for picture in got.data}) == 2
    for picture, expected in zip(got.data, same.data, strict=True):
        assert picture.b64_json is None
        assert re.fullmatch(rf"http://127\.0\.0\.1:{port}/v1/images/files/[\w-]{{32}}", picture.url)
        asked = urllib.request.Request(picture.url, headers={"Authorization": f"Bearer {TOKEN}"})
        with urllib.request.urlopen(asked, timeout=SECONDS) as answer:
            assert answer.headers["content-type"] == "image/jpeg"
            assert answer.read() == base64.b64decode(expected.b64_json)
    later = time.monotonic() + 3601
    monkeypatch.setattr("unstir.server.openai.time.monotonic", lambda: later)
    with pytest.raises(openai.NotFoundError, match="not good any more"):
        client.get(got.data[0].url, cast_to=bytes)


# Mistakes.


@pytest.mark.parametrize(
    ("said", "param", "code", "words"),
    [
        ({"size": "100x100"}, "size", "invalid_size", "it draws 16x16, .*16x16, 32x32, 48x48.*96x96"),
        ({"size": "1536x1024"}, "size", "invalid_size", "cannot draw 1536x1024"),
        ({"size": "16000x16000"}, "size", "invalid_size", "too large"),
        ({"size": "large"}, "size", "invalid_value", "WIDTHxHEIGHT"),
        ({"size": "0x0"}, "size", "invalid_value", "WIDTHxHEIGHT"),
        ({"n": 0}, "n", "invalid_value", "greater than or equal to 1"),
        ({"n": 17}, "n", "invalid_value", "17 pictures are too many; ask for at most 16"),
        ({"n": 16, "size": "2048x2048"}, "n", "invalid_value", "too much for one answer"),
        ({"prompt": ""}, "prompt", "invalid_value", "prompt is empty"),
        ({"prompt": "x" * 201}, "prompt", "invalid_value", "at most 200"),
        ({"prompt": "a\0b"}, "prompt", "invalid_value", "no text"),
        ({"model": "gpt-image-1"}, "model", "model_not_found", "there are tiny, other"),
        ({"model": "../../etc/passwd"}, "model", "model_not_found", "unknown model"),
        ({"quality": "hd"}, "quality", "invalid_value", "send steps"),
        ({"quality": "high"}, "quality", "invalid_value", "send steps"),
        ({"background": "transparent"}, "background", "invalid_value", "no transparency"),
        ({"output_format": "gif"}, "output_format", "invalid_value", "png, jpeg and webp"),
        ({"output_format": "svg"}, "output_format", "invalid_value", "png, jpeg and webp"),
        ({"svg": {"model": "x"}}, "svg", "invalid_value", "no vector graphics"),
        ({"frame_count": 3}, "frame_count", "invalid_value", "no animations"),
        ({"complexity": "low"}, "complexity", "invalid_value", "no such thing"),
        ({"output_compression": 50}, "output_compression", "invalid_value", "PNG loses nothing"),
        ({"output_compression": 101}, "output_compression", "invalid_value", "less than or equal to 100"),
        ({"partial_images": 2}, "partial_images", "invalid_value", "send stream true"),
        ({"response_format": "file"}, "response_format", "invalid_value", "url"),
        ({"extra_body": {"foo": 1}}, "foo", "unknown_parameter", "unknown field 'foo'"),
        ({"extra_body": {"step": 1}}, "step", "unknown_parameter", "did you mean steps"),
        ({"extra_body": {"steps": 251}}, "steps", "invalid_value", "at most 250"),
        ({"extra_body": {"steps": 2, "num_inference_steps": 3}}, "num_inference_steps", "invalid_value", "the same"),
        ({"extra_body": {"seed": -1}}, "seed", "invalid_value", "greater than or equal to 0"),
        ({"extra_body": {"seed": 2**32}}, "seed", "invalid_value", "less than or equal"),
        ({"extra_body": {"guidance": 101}}, "guidance", "invalid_value", "between -100 and 100"),
        ({"extra_body": {"sampler": "DPM"}}, "sampler", "invalid_value", "unknown sampler"),
        ({"extra_body": {"grid": "x"}}, "grid", "invalid_value", "grid"),
        ({"extra_body": {"guidance_interval": [4, -4]}}, "guidance_interval", "invalid_value", "interval"),
    ],
)
def test_a_wrong_request_is_refused_by_name(
    client: openai.OpenAI, said: dict[str, Any], param: str, code: str, words: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as error:
        client.images.generate(**{"prompt": "a cat", **said})
    assert (error.value.param, error.value.code, error.value.type) == (param, code, "invalid_request_error")


def post(port: int, path: str, body: bytes, kind: str = "application/json") -> tuple[int, dict[str, Any]]:
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": kind}
    asked = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, headers, method="POST")
    try:
        with urllib.request.urlopen(asked, timeout=SECONDS) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"x"',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a", "negative_prompt": "\\udfff"}',
        b'{"prompt": "a", "\\ud800": 1}',
        b'{"prompt": "a", "guidance": NaN}',
        b'{"prompt": "a", "guidance": 1e999}',
        b'{"prompt": "a", "guidance": ' + b"9" * 9000 + b"}",
        b'{"prompt": "a", "steps": ' + b"9" * 9000 + b"}",
        b'{"prompt": "a", "svg": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"prompt": "a", "frame_count": NaN}',
        b'{"prompt": ["a"]}',
        b'{"prompt": {"a": 1}}',
        b'{"prompt": "a", "n": "2"}',
        b'{"prompt": "a", "stream": "yes"}',
        b'{"prompt": "a", "guidance_interval": [1]}',
        b'{"prompt": "a", "model": 1}',
        b"\xff\xfe\x00",
    ],
)
def test_what_is_no_request_is_refused(port: int, body: bytes) -> None:
    status, told = post(port, "/v1/images/generations", body)
    assert status == 400
    assert set(told["error"]) == {"message", "type", "param", "code"}


def test_a_wrong_key_is_refused(port: int) -> None:
    with asking(port, "wrong") as client:
        with pytest.raises(openai.AuthenticationError) as error:
            client.images.generate(prompt="a cat")
        assert error.value.code == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            client.models.list()


def test_variations_are_not_there(client: openai.OpenAI) -> None:
    with (
        pytest.warns(DeprecationWarning, match="deprecated"),
        pytest.raises(openai.NotFoundError, match="/v1/images/edits"),
    ):
        client.images.create_variation(image=file_of(noise()))


def test_what_is_not_there_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="unknown model 'nope'; .*there are tiny, other") as error:
        client.models.retrieve("nope")
    assert error.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.get("/images/files/nope", cast_to=bytes)
    with pytest.raises(openai.NotFoundError):
        client.get("/nope", cast_to=bytes)


def test_the_models(client: openai.OpenAI) -> None:
    listed = list(client.models.list())
    assert [model.id for model in listed] == ["tiny", "other"]
    assert {model.object for model in listed} == {"model"}
    assert client.models.retrieve("other").owned_by == "unstir"


def test_aliases_are_taken_only_where_they_are_asked_for(pipe: Pipeline, tmp_path: Path) -> None:
    with listening(bare(Service({"tiny": pipe}, tmp_path), ALIASES)) as port, asking(port) as client:
        for alias in ALIASES:
            got: Any = client.images.generate(prompt="a cat", model=alias)
            assert got.unstir[0]["model"] == "tiny"
            assert client.models.retrieve(alias).id == alias
        assert [model.id for model in client.models.list()] == ["tiny"]
        with pytest.raises(openai.BadRequestError, match="there are tiny, default, gpt-image-1"):
            client.images.generate(prompt="a cat", model="gpt-9")


# Edits.


def test_a_mask_says_what_is_painted_and_the_rest_stays(client: openai.OpenAI, pipe: Pipeline) -> None:
    source, box = noise(), (4, 4, 12, 12)
    got: Any = client.images.edit(
        image=("a.png", file_of(source)),
        mask=("m.png", transparent((16, 16), box)),
        prompt="a cat",
        n=2,
        extra_body={"seed": 3, "steps": 4},
    )
    white = Image.new("L", (16, 16))
    white.paste(255, box)
    expected = pipe.edit(source, "a cat", mask=white, n=2, seed=3, steps=4)
    kept = numpy.array(white) == 0
    for picture, mine in zip(got.data, expected, strict=True):
        pixels = numpy.array(opened(picture))
        assert (pixels[kept] == numpy.array(source)[kept]).all()
        assert (pixels[~kept] != numpy.array(source)[~kept]).mean() > 0.5
        assert numpy.abs(pixels.astype(int) - numpy.array(mine, int)).max() <= 1
    assert [(each["strength"], each["seed"], each["enlarged"]) for each in got.unstir] == [(1.0, 3, 1), (1.0, 4, 1)]


def test_without_a_mask_all_is_drawn_anew(client: openai.OpenAI, pipe: Pipeline) -> None:
    source = noise()
    got: Any = client.images.edit(image=file_of(source), prompt="a cat", extra_body={"seed": 3, "strength": 0.5})
    (expected,) = pipe.edit(source, "a cat", seed=3, strength=0.5)
    assert numpy.abs(numpy.array(opened(got.data[0]), int) - numpy.array(expected, int)).max() <= 1
    assert got.unstir[0]["strength"] == 0.5
    plain: Any = client.images.edit(image=[file_of(source)], prompt="a cat")
    assert plain.unstir[0]["strength"] == 0.75


def test_a_large_picture_is_drawn_small_and_what_is_kept_keeps_its_pixels(client: openai.OpenAI) -> None:
    source, box = noise((64, 64)), (16, 16, 48, 48)
    got: Any = client.images.edit(image=file_of(source), mask=transparent((64, 64), box), prompt="a cat", size="auto")
    pixels, kept = numpy.array(opened(got.data[0])), numpy.ones((64, 64), bool)
    kept[16:48, 16:48] = False
    assert got.size == "64x64"
    assert got.unstir[0]["enlarged"] == 4
    assert (pixels[kept] == numpy.array(source)[kept]).all()
    assert (pixels[~kept] != numpy.array(source)[~kept]).mean() > 0.5


def test_a_picture_of_another_shape_is_cropped_or_padded_and_that_is_said(client: openai.OpenAI) -> None:
    for said, fit in (({}, "crop"), ({"fit": "pad"}, "pad")):
        got: Any = client.images.edit(
            image=file_of(noise((40, 20)), "JPEG"), prompt="a cat", size="32x32", extra_body=said
        )
        assert (got.size, got.unstir[0]["fit"], got.unstir[0]["enlarged"]) == ("32x32", fit, 2)


def test_nothing_is_painted_where_nothing_is_transparent(client: openai.OpenAI) -> None:
    source = noise()
    mask = file_of(Image.new("RGBA", (16, 16), (255, 255, 255, 255)))
    got: Any = client.images.edit(image=file_of(source), mask=mask, prompt="a cat")
    assert numpy.array_equal(numpy.array(opened(got.data[0])), numpy.array(source))
    assert "the mask paints nothing" in got.unstir[0]["warnings"][0]


@pytest.mark.parametrize(
    ("said", "param", "words"),
    [
        ({"image": b"nothing"}, "image", "no picture"),
        ({"image": file_of(noise())[:50]}, "image", "image: "),
        ({"image": [file_of(noise()), file_of(noise())]}, "image", "one image is drawn from, got 2"),
        ({"mask": b"nothing"}, "mask", "no picture"),
        ({"mask": file_of(noise())}, "mask", "no transparency"),
        ({"mask": transparent((8, 8), (0, 0, 4, 4))}, "mask", "the mask is 8x8, the picture 16x16"),
        ({"markup": file_of(noise())}, "markup", "send a mask"),
        ({"input_fidelity": "high"}, "input_fidelity", "send strength"),
        ({"n": 17}, "n", "17 pictures are too many"),
        ({"size": "20x20"}, "size", "it draws 16x16"),
        ({"quality": "low"}, "quality", "send steps"),
        ({"extra_body": {"strength": 2}}, "strength", "less than or equal to 1"),
        ({"extra_body": {"strength": "nan"}}, "strength", "finite"),
        ({"extra_body": {"fit": "stretch"}}, "fit", "unknown fit"),
        ({"extra_body": {"steps": "many"}}, "steps", "integer"),
        ({"extra_body": {"style": "vivid"}}, "style", "unknown field"),
        ({"extra_body": {"resample": 0}}, "resample", "greater than or equal"),
    ],
)
def test_a_wrong_edit_is_refused_by_name(client: openai.OpenAI, said: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as error:
        client.images.edit(**{"image": file_of(noise()), "prompt": "a cat", **said})
    assert error.value.param == param


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"{}", "application/json"),
        (b"x", "multipart/form-data; boundary=x"),
        (
            b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\nx\r\n--x--\r\n',
            "multipart/form-data; boundary=x",
        ),
        (
            b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nx\r\n--x--\r\n',
            "multipart/form-data; boundary=x",
        ),
    ],
)
def test_what_is_no_form_is_refused(port: int, body: bytes, kind: str) -> None:
    assert post(port, "/v1/images/edits", body, kind)[0] == 400


# Streams.


def test_a_picture_is_seen_while_it_is_drawn(client: openai.OpenAI) -> None:
    said: Any = {"seed": 5, "steps": 12}
    with client.images.generate(prompt="a cat", stream=True, partial_images=3, extra_body=said) as events:
        seen: Any = list(events)
    *looks, last = seen
    assert len(looks) <= 3
    assert [look.type for look in looks] == ["image_generation.partial_image"] * len(looks)
    assert [look.partial_image_index for look in looks] == list(range(len(looks)))
    assert {(look.size, look.output_format, look.background) for look in seen} == {("16x16", "png", "opaque")}
    assert all(opened(look).size == (16, 16) for look in looks)
    assert last.type == "image_generation.completed"
    assert last.usage.total_tokens == 0
    assert last.unstir["seed"] == 5
    plain: Any = client.images.generate(prompt="a cat", extra_body=said)
    difference = numpy.array(opened(last), int) - numpy.array(opened(plain.data[0]), int)
    assert numpy.abs(difference).max() <= 1


def test_looks_are_spread_evenly_over_the_steps(with_hand: Any) -> None:
    port, hand, _ = with_hand
    colours = ["black", "red", "green", "blue", "white", "yellow", "cyan", "grey", "brown"]

    def step(number: int) -> None:
        pixels = numpy.array(Image.new("RGB", (16, 16), colours[number]))
        hand.listener.moved(job, 0, number, pixels)

    with (
        asking(port) as client,
        client.images.generate(
            prompt="a cat", stream=True, partial_images=2, size="32x32", extra_body={"steps": 8}
        ) as events,
    ):
        assert hand.has_work.wait(SECONDS)
        (job,) = hand.works
        for number in (1, 2, 3):
            step(number)
        first: Any = next(events)
        for number in (4, 5, 6):
            step(number)
        second: Any = next(events)
        for number in (7, 8):
            step(number)
        hand.finish(job)
        rest: Any = list(events)
    assert [first.partial_image_index, second.partial_image_index] == [0, 1]
    assert [opened(look).getpixel((0, 0)) for look in (first, second)] == [(0, 0, 255), (0, 255, 255)]
    assert opened(first).size == (32, 32)
    assert [event.type for event in rest] == ["image_generation.completed"]


def test_several_edits_are_streamed_together(client: openai.OpenAI) -> None:
    with client.images.edit(
        image=file_of(noise()), prompt="a cat", n=2, stream=True, size="32x32", output_format="webp"
    ) as events:
        seen: Any = list(events)
    assert [event.type for event in seen] == ["image_edit.completed"] * 2
    assert {event.image_index for event in seen} == {0, 1}
    assert {(opened(event).format, opened(event).size) for event in seen} == {("WEBP", (32, 32))}


def test_a_stream_that_is_refused_is_no_stream(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="at most 250"):
        client.images.generate(prompt="a cat", stream=True, extra_body={"steps": 251})
    with pytest.raises(openai.BadRequestError, match="leave response_format out"):
        client.images.generate(prompt="a cat", stream=True, response_format="url")


# Who leaves, and what goes wrong.


@pytest.fixture
def with_hand(pipe: Pipeline, tmp_path: Path) -> Iterator[tuple[int, Hand, Service]]:
    hands: list[Hand] = []

    def make(pipes: Mapping[str, Pipeline], listener: Listener) -> Hand:
        hands.append(Hand(pipes, listener))
        return hands[0]

    service = Service({"tiny": pipe}, tmp_path / "data", make_worker=make, limits=Limits(queue=1))
    with listening(framed(service)) as port, asking(port) as client:
        client.models.list()  # it is there
        yield port, hands[0], service


def vanishing(port: int, said: dict[str, Any], hand: Hand) -> None:
    """Ask, and leave once the job is there."""
    body = json.dumps({"prompt": "a cat", **said}).encode()
    head = f"POST /v1/images/generations HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {TOKEN}\r\n"
    with socket.create_connection(("127.0.0.1", port), SECONDS) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert hand.has_work.wait(SECONDS)
        if said.get("stream"):
            assert b"200 OK" in connection.recv(1000)


@pytest.mark.parametrize("said", [{}, {"stream": True, "partial_images": 1}])
def test_the_job_of_a_client_that_leaves_is_called_off(with_hand: Any, said: dict[str, Any]) -> None:
    port, hand, _ = with_hand
    vanishing(port, said, hand)
    assert hand.was_cancelled.wait(SECONDS)


def in_thread(function: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(function())
        except openai.APIError as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, results


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("way", ["failed", "cancelled"])
def test_a_job_that_comes_to_nothing_is_told_once(with_hand: Any, way: str, is_streamed: bool) -> None:
    port, hand, _ = with_hand

    def ask() -> Any:
        with openai.OpenAI(api_key=TOKEN, base_url=f"http://127.0.0.1:{port}/v1", max_retries=2) as client:
            got: Any = client.images.generate(prompt="a cat", stream=is_streamed)
            return list(got) if is_streamed else got

    thread, results = in_thread(ask)
    assert hand.has_work.wait(SECONDS)
    (job,) = hand.works
    if way == "failed":
        hand.listener.failed(job, "the picture is not finite")
    else:
        path = f"http://127.0.0.1:{port}/api/jobs/{job}"
        asked = urllib.request.Request(path, headers={"Authorization": f"Bearer {TOKEN}"}, method="DELETE")
        urllib.request.urlopen(asked, timeout=SECONDS).close()
    thread.join()
    (error,) = results
    assert isinstance(error, openai.APIError)
    assert ("not finite" if way == "failed" else "called off") in str(error)
    assert error.code == way
    assert len(hand.works) == 1  # the client was told not to try again
    if not is_streamed:
        assert isinstance(error, openai.InternalServerError if way == "failed" else openai.ConflictError)


def test_who_comes_too_late_is_told_when_to_come_again(with_hand: Any) -> None:
    port, hand, _ = with_hand
    with asking(port) as client:
        thread, results = in_thread(lambda: client.images.generate(prompt="a cat"))
        assert hand.has_work.wait(SECONDS)
        with pytest.raises(openai.RateLimitError, match="waiting already") as error:
            client.images.generate(prompt="a dog")
        assert int(error.value.response.headers["retry-after"]) >= 1
        assert error.value.type == "rate_limit_error"
        hand.finish(next(iter(hand.works)))
        thread.join()
    assert results[0].data
