"""AUTOMATIC1111's web API, as its clients ask it."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy
import pytest
from fastapi import FastAPI
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from starlette.testclient import TestClient

from unstir.metadata import recipe_in
from unstir.pipeline import Pipeline, Result
from unstir.server.a1111 import read_parameters, router
from unstir.server.asking import Limits
from unstir.server.service import Service
from unstir.server.worker import Counts, Listener, Work

SECONDS = 60.0


class Hand:
    """In the place of the worker: draws when it is told to, and ends what is called off."""

    def __init__(self, pipes: Mapping[str, Pipeline], listener: Listener) -> None:
        self.listener = listener
        self.works: dict[str, Work] = {}
        self.has_work = threading.Event()
        self.counts = Counts()
        self.is_alive = True

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def submit(self, work: Work) -> None:
        self.works[work.job] = work
        self.has_work.set()

    def cancel(self, job: str) -> None:
        self.listener.ended(job)

    def draw(self, job: str, index: int) -> None:
        request = self.works[job].requests[index]
        picture = Image.new("RGB", (16, 16), "red")
        self.listener.drawn(job, index, Result(request=request, picture=picture, seconds=0.1, warnings=()))


def client_of(service: Service) -> TestClient:
    @asynccontextmanager
    async def alive(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    app = FastAPI(lifespan=alive)
    app.include_router(router(service))
    return TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client(pipe: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    limits = Limits(upload_bytes=100_000, prompt=200)
    service = Service({"tiny": pipe, "other": pipe}, tmp_path_factory.mktemp("web") / "data", limits=limits)
    with client_of(service) as client:
        yield client


def draw(client: TestClient, kind: str = "txt2img", **said: Any) -> dict[str, Any]:
    answer = client.post(f"/sdapi/v1/{kind}", json={"prompt": "a cat", **said})
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert set(told) == {"images", "parameters", "info"}
    return {**told, "info": json.loads(told["info"])}


def opened(text: str) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(text, validate=True)))
    image.load()
    return image


def sent(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def noise(size: tuple[int, int] = (16, 16)) -> Image.Image:
    values = numpy.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=numpy.uint8)
    return Image.fromarray(values)


def painted(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    mask = Image.new("L", size)
    mask.paste(255, box)
    return mask


def close(one: Image.Image, other: Image.Image) -> bool:
    return bool(numpy.abs(numpy.array(one, int) - numpy.array(other, int)).max() <= 1)


def test_pictures_are_those_of_the_pipeline(client: TestClient, pipe: Pipeline) -> None:
    got = draw(
        client,
        prompt="a (red:1.3) cat",
        negative_prompt="dog",
        seed=7,
        batch_size=2,
        n_iter=2,
        steps=4,
        cfg_scale=3,
        sampler_name="Euler",
        scheduler="sgm_uniform",
    )
    expected = pipe.sample(
        "a (red:1.3) cat",
        n=4,
        seed=7,
        negative="dog",
        steps=4,
        guidance_scale=3.0,
        sampler="euler",
        grid="trailing",
        syntax="weighted",
    )
    assert len(got["images"]) == 4
    for text, mine in zip(got["images"], expected, strict=True):
        assert close(opened(text), mine)
    info = got["info"]
    assert (info["seed"], info["all_seeds"]) == (7, [7, 8, 9, 10])
    assert info["all_prompts"] == ["a (red:1.3) cat"] * 4
    assert info["all_negative_prompts"] == ["dog"] * 4
    assert info["infotexts"] == [opened(text).info["parameters"] for text in got["images"]]
    expected_info = {"steps": 4, "cfg_scale": 3.0, "sampler_name": "Euler", "width": 16, "height": 16, "batch_size": 2}
    assert expected_info.items() <= info.items()
    assert info["ignored"] == []
    assert info["extra_generation_params"] == {"Schedule type": "SGM Uniform"}
    echo = {"seed": 7, "batch_size": 2, "n_iter": 2, "sampler_name": "Euler", "scheduler": "SGM Uniform", "steps": 4}
    assert echo.items() <= got["parameters"].items()
    assert recipe_in(base64.b64decode(got["images"][1])).request.seed == 8


def test_a_random_seed_is_recorded(client: TestClient) -> None:
    got = draw(client, seed=-1)
    again = draw(client, seed=got["info"]["seed"])
    assert got["images"][0] != draw(client, seed=-1)["images"][0]
    assert close(opened(got["images"][0]), opened(again["images"][0]))
    assert got["parameters"]["seed"] == got["info"]["seed"]


def test_what_is_not_said_is_the_models_own(client: TestClient, pipe: Pipeline) -> None:
    got, usual = draw(client), pipe.model.config.sampling
    assert (got["parameters"]["steps"], got["parameters"]["cfg_scale"]) == (usual.steps, usual.guidance_scale)
    assert (got["parameters"]["width"], got["parameters"]["height"]) == (16, 16)


def test_a_large_size_is_enlarged_and_that_is_said(client: TestClient) -> None:
    got = draw(client, width=512, height=512)
    assert opened(got["images"][0]).size == (512, 512)
    assert got["info"]["unstir"][0]["enlarged"] == 32
    assert "Size: 16x16" in got["info"]["infotexts"][0]
    assert got["info"]["infotexts"][0].endswith("Hires upscale: 32, Hires upscaler: Lanczos")


def test_sillytavern_is_answered(client: TestClient) -> None:
    """Its request, with all that it sends by habit."""
    got = draw(
        client,
        url="http://127.0.0.1:7860",
        auth="user:secret",
        negative_prompt="",
        sampler_name="Euler a",
        scheduler="Automatic",
        steps=3,
        cfg_scale=7,
        width=512,
        height=512,
        restore_faces=False,
        enable_hr=False,
        hr_upscaler="Latent",
        hr_scale=2,
        hr_additional_modules=[],
        denoising_strength=0.7,
        hr_second_pass_steps=0,
        override_settings={"CLIP_stop_at_last_layers": 1},
        override_settings_restore_afterwards=True,
        clip_skip=1,
        save_images=True,
        send_images=True,
        do_not_save_grid=False,
        do_not_save_samples=False,
    )
    assert len(got["images"]) == 1
    assert {"denoising_strength", "hr_scale", "save_images", "auth"} <= set(got["info"]["ignored"])
    assert "secret" not in json.dumps(got)
    assert [each["name"] for each in client.get("/sdapi/v1/upscalers").json()] == ["None"]
    assert client.get("/sdapi/v1/latent-upscale-modes").json() == client.get("/sdapi/v1/sd-vae").json() == []


def test_pictures_need_not_be_sent(client: TestClient) -> None:
    got = draw(client, send_images=False, seed=1)
    assert got["images"] == []
    assert got["info"]["all_seeds"] == [1]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"foo": 1}, "unknown field 'foo'"),
        (
            {"sampler_name": "Restart"},
            "unknown sampler 'Restart'; .*there are DDPM, DDIM, DPM\\+\\+ 2M,.*Euler a.*Automatic",
        ),
        ({"sampler_index": "LMS"}, "unknown sampler 'LMS'"),
        ({"scheduler": "Beta"}, "unknown scheduler 'Beta'.*Karras.*Automatic"),
        ({"sampler_name": "tuned"}, "unknown sampler 'tuned'"),
        ({"scheduler": "Tuned"}, "tuned"),
        ({"width": 100}, "cannot draw 100x16; it draws 16x16"),
        ({"width": 512, "height": 768}, "cannot draw 512x768"),
        ({"batch_size": 5, "n_iter": 4}, "20 pictures are too many"),
        ({"steps": 251}, "at most 250"),
        ({"seed": 2**32}, "seed"),
        ({"seed": -2}, "seed"),
        ({"seed": "-1"}, "seed"),
        ({"cfg_scale": 1e3}, "between -100 and 100"),
        ({"eta": 0.5}, "eta belongs to the sampler ddim"),
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": None}, "prompt is empty"),
        ({"prompt": "x" * 201}, "at most 200"),
        ({"enable_hr": True}, "enable_hr cannot be had here; ask for a size"),
        ({"restore_faces": True}, "restore_faces"),
        ({"styles": ["a"]}, "styles cannot be had here; leave it out, or send \\[\\]"),
        ({"subseed_strength": 0.5}, "subseed_strength"),
        ({"alwayson_scripts": {"ADetailer": {}}}, "alwayson_scripts"),
        ({"script_name": "x/y plot"}, "script_name"),
        ({"refiner_checkpoint": "x"}, "refiner_checkpoint"),
        ({"clip_skip": 2}, "clip_skip"),
        ({"s_churn": 1}, "s_churn"),
        ({"override_settings": {"sd_model_checkpoint": "nope"}}, "there is no model 'nope'; there are tiny \\["),
        ({"override_settings": {"sd_model_checkpoint": 1}}, "name of a model"),
        ({"override_settings": {"CLIP_stop_at_last_layers": 2}}, "CLIP_stop_at_last_layers"),
        ({"override_settings": {"outdir_samples": "/etc"}}, "outdir_samples.* cannot be set"),
        ({"override_settings": []}, "override_settings"),
    ],
)
def test_a_wrong_request_is_refused_by_name(client: TestClient, said: dict[str, Any], words: str) -> None:
    answer = client.post("/sdapi/v1/txt2img", json={"prompt": "a cat", **said})
    assert answer.status_code == 400, answer.text
    with pytest.raises(ValueError, match=words):
        raise ValueError(answer.json()["detail"])


@pytest.mark.parametrize("path", ["txt2img", "img2img", "options", "png-info"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a", "s_tmax": NaN, "x": Infinity}',
        b'{"prompt": "a", "styles": ' + b"[" * 9000 + b"]" * 9000 + b"}",
        b'{"prompt": "a", "override_settings": {"\\ud800": 1}}',
        b'{"prompt": "a", "seed": ' + b"9" * 9000 + b"}",
        b'{"prompt": "a", "init_images": "x", "image": 1, "sd_model_checkpoint": 2, "steps": "3"}',
    ],
)
def test_what_is_no_request_is_refused(client: TestClient, path: str, body: bytes) -> None:
    answer = client.post(f"/sdapi/v1/{path}", content=body)
    assert answer.status_code == 400
    assert isinstance(answer.json()["detail"], str)


def test_what_changes_nothing_may_be_anything(client: TestClient) -> None:
    body = (
        b'{"prompt": "a cat", "s_tmax": Infinity, "hr_scale": NaN, "comments": [[[]]], "force_task_id": "x", "url": 5}'
    )
    answer = client.post("/sdapi/v1/txt2img", content=body)
    assert answer.status_code == 200
    assert json.loads(answer.json()["info"])["ignored"] == ["comments", "force_task_id", "hr_scale", "s_tmax", "url"]


# From pictures.


def test_a_picture_is_drawn_anew(client: TestClient, pipe: Pipeline) -> None:
    source = noise()
    got = draw(client, "img2img", init_images=["data:image/png;base64," + sent(source)], denoising_strength=0.5, seed=3)
    (expected,) = pipe.edit(source, "a cat", seed=3, strength=0.5, syntax="weighted")
    assert close(opened(got["images"][0]), expected)
    assert got["parameters"]["denoising_strength"] == got["info"]["denoising_strength"] == 0.5
    assert "init_images" not in got["parameters"]
    assert "Denoising strength: 0.5" in got["info"]["infotexts"][0]
    plain = draw(client, "img2img", init_images=[sent(source)], include_init_images=True)
    assert plain["parameters"]["denoising_strength"] == 0.75
    assert plain["parameters"]["init_images"] == [sent(source)]


@pytest.mark.parametrize("is_inverted", [False, True, 1])
def test_white_is_painted_unless_it_is_inverted(client: TestClient, pipe: Pipeline, is_inverted: bool | int) -> None:
    source, mask = noise(), painted((16, 16), (2, 2, 12, 8))
    got = draw(
        client,
        "img2img",
        init_images=[sent(source)],
        mask=sent(mask),
        inpainting_mask_invert=is_inverted,
        denoising_strength=1,
        seed=3,
        mask_blur=4,
        inpainting_fill=0,
    )
    paints = (numpy.array(mask) > 0) != bool(is_inverted)
    pixels = numpy.array(opened(got["images"][0]))
    assert (pixels[~paints] == numpy.array(source)[~paints]).all()
    assert (pixels[paints] != numpy.array(source)[paints]).mean() > 0.5
    mine = Image.fromarray(paints.astype(numpy.uint8) * 255)
    (expected,) = pipe.edit(source, "a cat", mask=mine, seed=3, strength=1.0, syntax="weighted")
    assert close(opened(got["images"][0]), expected)
    assert got["info"]["ignored"] == ["inpainting_fill", "mask_blur"]


def test_a_soft_mask_is_cut_in_its_middle_and_a_transparent_one_is_opaque_where_it_paints(client: TestClient) -> None:
    source = noise()
    soft = Image.fromarray(numpy.tile(numpy.arange(16, dtype=numpy.uint8) * 17, (16, 1)))
    clear = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    clear.putalpha(soft)
    for mask in (soft, clear):
        got = draw(client, "img2img", init_images=[sent(source)], mask=sent(mask), denoising_strength=1, seed=1)
        is_same = (numpy.array(opened(got["images"][0])) == numpy.array(source)).all(axis=(0, 2))
        assert is_same.tolist() == [True] * 8 + [False] * 8  # 119 is kept, 136 is painted


def test_a_large_picture_keeps_what_is_not_painted(client: TestClient) -> None:
    source, mask = noise((64, 64)), painted((64, 64), (16, 16, 48, 48))
    got = draw(client, "img2img", init_images=[sent(source)], mask=sent(mask), width=64, height=64)
    pixels, kept = numpy.array(opened(got["images"][0])), numpy.array(mask) == 0
    assert pixels.shape == (64, 64, 3)
    assert (pixels[kept] == numpy.array(source)[kept]).all()
    assert got["info"]["unstir"][0]["enlarged"] == 4


@pytest.mark.parametrize(("mode", "fit"), [(1, "crop"), (2, "pad"), (0, "crop")])
def test_a_picture_is_brought_to_the_size(client: TestClient, mode: int, fit: str) -> None:
    source = noise((40, 40) if mode == 0 else (40, 20))
    got = draw(client, "img2img", init_images=[sent(source)], width=32, height=32, resize_mode=mode)
    assert opened(got["images"][0]).size == (32, 32)
    assert got["info"]["unstir"][0]["fit"] == fit


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"init_images": []}, "one picture is drawn from, got 0"),
        ({"init_images": [sent(noise())] * 2}, "one picture is drawn from, got 2"),
        ({"init_images": ["?"]}, "init_images is no base64"),
        ({"init_images": ["http://example.org/a.png"]}, "init_images is no base64"),
        ({"init_images": [base64.b64encode(b"x" * 100).decode()]}, "init_images: .*no picture"),
        ({"init_images": ["A" * 140_000]}, "more than 100000 bytes"),
        ({"init_images": [sent(noise((40, 20)))], "width": 16, "height": 16}, "would stretch 40x20 to 16x16; send 1"),
        ({"init_images": [sent(noise((40, 20)))], "width": 32}, "would stretch|cannot draw"),
        ({"resize_mode": 3}, "resize_mode 3"),
        ({"resize_mode": 4}, "resize_mode"),
        ({"mask": "?"}, "mask is no base64"),
        ({"mask": sent(noise((8, 8)))}, "the mask is 8x8, the picture 16x16"),
        ({"mask": sent(noise()), "inpaint_full_res": True}, "inpaint_full_res cannot be had here; the whole picture"),
        ({"mask": sent(noise()), "inpainting_fill": 2}, "inpainting_fill"),
        ({"denoising_strength": 1.5}, "denoising_strength"),
        ({"enable_hr": False}, "unknown field 'enable_hr'"),
        ({"sampler_name": "x"}, "unknown sampler"),
    ],
)
def test_a_wrong_edit_is_refused_by_name(client: TestClient, said: dict[str, Any], words: str) -> None:
    answer = client.post("/sdapi/v1/img2img", json={"prompt": "a cat", "init_images": [sent(noise())], **said})
    assert answer.status_code == 400, answer.text
    with pytest.raises(ValueError, match=words):
        raise ValueError(answer.json()["detail"])


# Beside.


def test_the_model_is_the_only_option(client: TestClient, pipe: Pipeline) -> None:
    listed = client.get("/sdapi/v1/sd-models").json()
    assert [each["model_name"] for each in listed] == ["tiny", "other"]
    checksum = pipe.model.checksum
    assert listed[1]["title"] == f"other [{checksum[:10]}]"
    assert client.get("/sdapi/v1/options").json() == {"sd_model_checkpoint": listed[0]["title"]}
    for name in ("other", listed[1]["title"]):
        assert client.post("/sdapi/v1/options", json={"sd_model_checkpoint": name}).json() == {}
        assert draw(client)["info"]["sd_model_name"] == "other"
        once = draw(client, override_settings={"sd_model_checkpoint": "tiny"})
        assert (once["info"]["sd_model_name"], once["info"]["sd_model_hash"]) == ("tiny", checksum[:10])
        assert client.get("/sdapi/v1/options").json() == {"sd_model_checkpoint": listed[1]["title"]}
        options = {"sd_model_checkpoint": "tiny"}
        draw(client, override_settings=options, override_settings_restore_afterwards=False)
        assert client.get("/sdapi/v1/options").json() == {"sd_model_checkpoint": listed[0]["title"]}
    for said in ({"sd_model_checkpoint": "../x"}, {"outdir_samples": "/etc"}, {"sd_model_checkpoint": "tiny", "x": 1}):
        assert client.post("/sdapi/v1/options", json=said).status_code == 400


def test_every_name_that_is_listed_is_taken(client: TestClient) -> None:
    samplers = client.get("/sdapi/v1/samplers").json()
    schedulers = client.get("/sdapi/v1/schedulers").json()
    assert {"Euler a", "DPM++ 2M", "DDIM", "UniPC", "Automatic"} <= {each["name"] for each in samplers}
    assert {"Karras", "Exponential", "SGM Uniform"} <= {each["label"] for each in schedulers}
    for sampler in samplers:
        for name in (sampler["name"], *sampler["aliases"]):
            draw(client, sampler_name=name, steps=2)
    for scheduler in schedulers:
        if scheduler["label"] != "Tuned":  # this model has none
            for name in (scheduler["name"], scheduler["label"]):
                draw(client, sampler_name="DDIM", scheduler=name, steps=2)


def test_a_picture_tells_what_it_carries(client: TestClient) -> None:
    got = draw(client, prompt="a cat, sitting\nNegative space: none", negative_prompt="dog", seed=3)
    for prefix in ("", "data:image/png;base64,"):
        told = client.post("/sdapi/v1/png-info", json={"image": prefix + got["images"][0]}).json()
        assert told["info"] == got["info"]["infotexts"][0]
        assert json.loads(told["items"]["unstir"])["request"]["seed"] == 3
        assert told["parameters"]["Prompt"] == "a cat, sitting\nNegative space: none"
        assert told["parameters"]["Negative prompt"] == "dog"
        assert told["parameters"]["Seed"] == "3"
        assert told["parameters"]["Size"] == "16x16"


def test_a_picture_that_carries_nothing_tells_nothing(client: TestClient) -> None:
    told = client.post("/sdapi/v1/png-info", json={"image": sent(noise())}).json()
    assert told == {"info": "", "items": {}, "parameters": {}}
    foreign = PngInfo()
    foreign.add_text("Comment", "hello")
    file = io.BytesIO()
    noise().save(file, "PNG", pnginfo=foreign)
    told = client.post("/sdapi/v1/png-info", json={"image": base64.b64encode(file.getvalue()).decode()}).json()
    assert told["items"] == {"Comment": "hello"}


@pytest.mark.parametrize("image", ["", "?", "aGVsbG8=", sent(noise())[:40], "A" * 140_000])
def test_what_is_no_picture_tells_nothing(client: TestClient, image: str) -> None:
    assert client.post("/sdapi/v1/png-info", json={"image": image}).status_code == 400


@pytest.mark.parametrize("size", [3000, 300_000])
@pytest.mark.parametrize("text", ["a", "a ", "a:", '"', 'a: "\\', "a: b, "])
def test_no_text_takes_long_to_be_read(text: str, size: int) -> None:
    assert isinstance(read_parameters(text * size), dict)


def test_values_with_commas_are_quoted() -> None:
    text = 'a cat\nNegative prompt: b\nc\nSteps: 4, Model: "x, y: z", Size: 1x2, Note: "open'
    read = read_parameters(text)
    assert (read["Prompt"], read["Negative prompt"], read["Model"], read["Size"]) == ("a cat", "b\nc", "x, y: z", "1x2")
    assert read_parameters("a cat: sitting, on a mat") == {}


# While it is drawn.


@pytest.fixture
def with_hand(pipe: Pipeline, tmp_path: Path) -> Iterator[tuple[TestClient, Hand]]:
    hands: list[Hand] = []

    def make(pipes: Mapping[str, Pipeline], listener: Listener) -> Hand:
        hands.append(Hand(pipes, listener))
        return hands[0]

    service = Service({"tiny": pipe}, tmp_path / "data", make_worker=make, limits=Limits(queue=1))
    with client_of(service) as client:
        yield client, hands[0]


def asked(client: TestClient, hand: Hand, **said: Any) -> tuple[threading.Thread, list[Any], str]:
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(client.post("/sdapi/v1/txt2img", json=said)))
    thread.start()
    assert hand.has_work.wait(SECONDS)
    while thread.is_alive() and not client.get("/sdapi/v1/progress").json()["state"]["job_count"]:
        pass  # it is given to the worker a moment before somebody waits for it
    return thread, answers, next(iter(hand.works))


def test_progress_is_seen_and_what_is_finished_is_given_after_an_interruption(with_hand: Any) -> None:
    client, hand = with_hand
    thread, answers, job = asked(client, hand, prompt="a cat", batch_size=2, steps=4, seed=5)
    before = client.get("/sdapi/v1/progress").json()
    assert (before["progress"], before["current_image"], before["state"]["job_count"]) == (0, None, 1)
    hand.listener.moved(job, 0, 2, numpy.array(Image.new("RGB", (16, 16), "blue")))
    hand.listener.moved(job, 1, 2, None)
    now = client.get("/sdapi/v1/progress").json()
    assert now["progress"] == 0.5
    assert now["eta_relative"] >= 0
    assert (now["state"]["sampling_step"], now["state"]["sampling_steps"]) == (2, 4)
    assert opened(now["current_image"]).getpixel((0, 0)) == (0, 0, 255)
    bare = client.get("/sdapi/v1/progress", params={"skip_current_image": "true"}).json()
    assert bare["current_image"] is None
    hand.draw(job, 1)
    assert client.post("/sdapi/v1/interrupt").json() == {}
    thread.join()
    told = answers[0].json()
    info = json.loads(told["info"])
    assert len(told["images"]) == 1
    assert (info["all_seeds"], info["interrupted"]) == ([6], True)
    after = client.get("/sdapi/v1/progress").json()
    assert (after["progress"], after["state"]["job_count"], after["textinfo"]) == (0, 0, None)


@pytest.mark.parametrize("way", ["interrupt", "skip"])
def test_where_nothing_is_drawn_nothing_is_interrupted(with_hand: Any, way: str) -> None:
    client, hand = with_hand
    assert client.post(f"/sdapi/v1/{way}").json() == {}
    thread, answers, _ = asked(client, hand, prompt="a cat")
    client.post(f"/sdapi/v1/{way}")
    thread.join()
    assert answers[0].json()["images"] == []


def test_another_clients_job_is_none_of_ones_business(with_hand: Any) -> None:
    client, hand = with_hand
    thread, answers, job = asked(client, hand, prompt="a cat")
    stranger = TestClient(client.app, client=("10.9.8.7", 1), raise_server_exceptions=False)
    stranger.portal = client.portal
    assert stranger.get("/sdapi/v1/progress").json()["state"]["job_count"] == 0
    stranger.post("/sdapi/v1/interrupt")
    assert client.get("/sdapi/v1/progress").json()["state"]["job_count"] == 1
    hand.draw(job, 0)
    hand.listener.ended(job)
    thread.join()
    assert len(answers[0].json()["images"]) == 1


def test_a_job_that_fails_says_why(with_hand: Any) -> None:
    client, hand = with_hand
    thread, answers, job = asked(client, hand, prompt="a cat")
    hand.listener.failed(job, "the picture is not finite")
    thread.join()
    assert (answers[0].status_code, answers[0].json()) == (500, {"detail": "the picture is not finite"})


def test_who_comes_too_late_is_told_when_to_come_again(with_hand: Any) -> None:
    client, hand = with_hand
    thread, _, job = asked(client, hand, prompt="a cat")
    late = client.post("/sdapi/v1/txt2img", json={"prompt": "a dog"})
    assert late.status_code == 429
    assert int(late.headers["retry-after"]) >= 1
    assert "waiting already" in late.json()["detail"]
    hand.listener.ended(job)
    thread.join()
