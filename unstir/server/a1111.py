"""AUTOMATIC1111's web API: txt2img, img2img and what its clients ask beside them.

Knows: its paths, fields and answers, and what of them has no meaning here.
Does not know: who may ask, how anything is drawn or kept.

What is left out is the model's own: size, steps, guidance, sampler. Prompts are in its syntax, (words:1.3). A field
that would change the picture and cannot is refused by name; what cannot change it here is taken, and listed under
``ignored`` in the answer's ``info``. No setting of the server is told or changed but the model that draws. A job that
was interrupted is answered with the pictures that were finished.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter
from PIL import Image
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from unstir import __version__
from unstir.pipeline import MAX_SEED, Settings
from unstir.server import a1111_names as names
from unstir.server import waiting
from unstir.server.asking import Asked, AskedEdit
from unstir.server.compatible import (
    MOST_JSON,
    STRICT,
    Finish,
    Shape,
    Wrong,
    answered,
    effective,
    finished,
    from_base64,
    kept,
    kept_mask,
    read_json,
    require_done,
    require_few,
    said,
    shape_of,
    to_base64,
    usual_shape,
)
from unstir.server.guard import client_of
from unstir.server.jobs import Job, Status
from unstir.server.service import Kept, ModelFacts, Service, Unknown
from unstir.server.shelf import FORMATS
from unstir.server.uploads import body_of

STRENGTH = 0.75
"""Of an edit that does not say it."""

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "styles": ([],),
    "subseed": (-1,),
    "subseed_strength": (0,),
    "seed_resize_from_h": (-1, 0),
    "seed_resize_from_w": (-1, 0),
    "restore_faces": (False,),
    "s_min_uncond": (0,),
    "s_churn": (0,),
    "s_tmin": (0,),
    "s_noise": (0, 1),
    "refiner_checkpoint": ("", "None"),
    "enable_hr": (False,),
    "script_name": ("", "None"),
    "script_args": ([],),
    "alwayson_scripts": ({},),
    "infotext": ("",),
    "clip_skip": (0, 1),
    "latent_mask": ("",),
    "initial_noise_multiplier": (1,),
    "inpaint_full_res": (False,),
    "inpainting_fill": (0, 1),
}
"""Fields that would change the picture and cannot here, and the values at which they would not."""

_HINTS = {
    "enable_hr": "ask for a size that is a whole multiple of the model's",
    "inpaint_full_res": "the whole picture is drawn; send false",
    "inpainting_fill": "what is painted starts from the picture that is there; send 1",
    "restore_faces": "send false",
}
_OPTIONS: dict[str, tuple[Any, ...]] = {
    "CLIP_stop_at_last_layers": (0, 1),
    "sd_vae": ("", "Automatic", "None"),
    "forge_additional_modules": ([],),
}
_MODEL = "sd_model_checkpoint"
_FITS = {1: "crop", 2: "pad"}
_FIELDS = {
    "number": "batch_size",
    "negative": "negative_prompt",
    "guidance_scale": "cfg_scale",
    "sampler": "sampler_name",
    "grid": "scheduler",
    "edit.source": "init_images",
    "edit.mask": "mask",
    "edit.strength": "denoising_strength",
    "edit.fit": "resize_mode",
    "tile": "tiling",
    "key": "Idempotency-Key",
}
_FEWEST_KEYS = 3  # a last line with fewer is part of the prompt
_MOST_INFO = 8192  # characters of a line of keys and values that are looked at
_PAIR = re.compile(r'\s*(\w[\w \-/]{0,60}):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')

_Finite = Annotated[float, Field(allow_inf_nan=False)]


class Drawing(BaseModel):
    """What both kinds of requests say."""

    model_config = STRICT

    prompt: str | None = None
    negative_prompt: str | None = None
    seed: int | None = Field(None, ge=-1, le=MAX_SEED)
    sampler_name: str | None = None
    sampler_index: str | None = None
    scheduler: str | None = None
    batch_size: int | None = Field(None, ge=1)
    n_iter: int | None = Field(None, ge=1)
    steps: int | None = Field(None, ge=1)
    cfg_scale: _Finite | None = None
    width: int | None = Field(None, ge=1)
    height: int | None = Field(None, ge=1)
    tiling: bool | None = None
    eta: _Finite | None = None
    denoising_strength: _Finite | None = Field(None, ge=0, le=1)
    override_settings: dict[str, Any] | None = None
    send_images: bool | None = None

    # Neutral ones.
    styles: Any = None
    subseed: Any = None
    subseed_strength: Any = None
    seed_resize_from_h: Any = None
    seed_resize_from_w: Any = None
    restore_faces: Any = None
    s_min_uncond: Any = None
    s_churn: Any = None
    s_tmin: Any = None
    s_noise: Any = None
    refiner_checkpoint: Any = None
    script_name: Any = None
    script_args: Any = None
    alwayson_scripts: Any = None
    infotext: Any = None
    clip_skip: Any = None

    # What changes nothing.
    s_tmax: Any = None
    save_images: Any = None
    do_not_save_samples: Any = None
    do_not_save_grid: Any = None
    override_settings_restore_afterwards: Any = None
    refiner_switch_at: Any = None
    disable_extra_networks: Any = None
    force_task_id: Any = None
    comments: Any = None
    url: Any = None  # SillyTavern passes on what it was told itself
    auth: Any = None


class TextToImage(Drawing):
    """A request for pictures of a prompt."""

    enable_hr: Any = None
    hr_scale: Any = None
    hr_upscaler: Any = None
    hr_second_pass_steps: Any = None
    hr_resize_x: Any = None
    hr_resize_y: Any = None
    hr_checkpoint_name: Any = None
    hr_sampler_name: Any = None
    hr_scheduler: Any = None
    hr_prompt: Any = None
    hr_negative_prompt: Any = None
    hr_additional_modules: Any = None
    hr_cfg: Any = None
    hr_distilled_cfg: Any = None
    distilled_cfg_scale: Any = None
    firstphase_width: Any = None
    firstphase_height: Any = None


class ImageToImage(Drawing):
    """A request for pictures from one that is sent along."""

    init_images: list[str]
    resize_mode: int | None = Field(None, ge=0, le=3)
    mask: str | None = None
    inpainting_mask_invert: bool | int | None = None
    include_init_images: bool | None = None
    latent_mask: Any = None
    initial_noise_multiplier: Any = None
    inpaint_full_res: Any = None
    inpainting_fill: Any = None

    mask_blur: Any = None
    mask_blur_x: Any = None
    mask_blur_y: Any = None
    mask_round: Any = None
    inpaint_full_res_padding: Any = None
    image_cfg_scale: Any = None


class PictureInfo(BaseModel):
    """A question what a picture carries."""

    model_config = STRICT

    image: str


class Options(BaseModel):
    """Settings that are changed."""

    model_config = STRICT

    sd_model_checkpoint: str | None = None


_READ = {
    *("prompt", "negative_prompt", "seed", "sampler_name", "sampler_index", "scheduler", "batch_size", "n_iter"),
    *("steps", "cfg_scale", "width", "height", "tiling", "eta", "override_settings", "send_images", "init_images"),
    *("resize_mode", "mask", "inpainting_mask_invert", "include_init_images"),
}


def router(service: Service) -> APIRouter:
    """The paths below /sdapi/v1.

    Args:
        service: what draws.
    """
    web = _Web(service)
    made = APIRouter()
    for method, path, handle in (
        ("POST", "txt2img", web.text_to_image),
        ("POST", "img2img", web.image_to_image),
        ("GET", "progress", web.progress),
        ("POST", "interrupt", web.interrupt),
        ("POST", "skip", web.interrupt),  # the pictures of a job are drawn together: none is the current one
        ("GET", "options", web.options),
        ("POST", "options", web.set_options),
        ("GET", "sd-models", web.models),
        ("GET", "samplers", web.samplers),
        ("GET", "schedulers", web.schedulers),
        ("GET", "upscalers", web.upscalers),
        ("GET", "latent-upscale-modes", web.nothing),
        ("GET", "sd-vae", web.nothing),
        ("POST", "png-info", web.picture_info),
    ):
        made.add_route(f"/sdapi/v1/{path}", answered(handle, _FIELDS), methods=[method], include_in_schema=False)
    return made


class _Web:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._model = next(iter(service.models))
        self._jobs: dict[str, str] = {}  # those that somebody waits for, in order: whose

    async def text_to_image(self, request: Request) -> Response:
        told = read_json(TextToImage, await body_of(request, MOST_JSON))
        facts = self._facts(told)
        shape = self._shape(told, facts, None)
        return await self._answer(request, told, _asked(told, facts, shape), Finish(shape=shape))

    async def image_to_image(self, request: Request) -> Response:
        service = self._service
        most = service.limits.upload_bytes
        told = read_json(ImageToImage, await body_of(request, 2 * most * 4 // 3 + MOST_JSON))
        facts = self._facts(told)
        if len(told.init_images) != 1:
            raise Wrong(f"one picture is drawn from, got {len(told.init_images)}; send one", "init_images")
        source = await kept(service, from_base64(told.init_images[0], "init_images", most), "init_images")
        shape = self._shape(told, facts, source)
        finish, mask = Finish(shape=shape), ""
        if told.mask:
            data = from_base64(told.mask, "mask", most)
            is_inverted = bool(told.inpainting_mask_invert)
            paint = await kept_mask(service, data, "mask", lambda image: _painted(image, is_inverted))
            mask = paint.name
            if (source.width, source.height) == (paint.width, paint.height) == shape.full:
                finish = Finish(shape=shape, source=source.name, mask=mask)
        edit = AskedEdit(
            source=source.name,
            mask=mask,
            strength=STRENGTH if told.denoising_strength is None else told.denoising_strength,
            fit=_fit(told, source, shape),
        )
        return await self._answer(request, told, _asked(told, facts, shape, edit), finish)

    async def progress(self, request: Request) -> Response:
        own = self._own(request)
        status = self._service.look(own[0]) if own else None
        done = 0.0 if status is None else status.step / max(1, status.steps)
        look = None
        if status is not None and request.query_params.get("skip_current_image", "false").lower() != "true":
            look = await self._look(status)
        state = {"skipped": False, "interrupted": False, "stopping_generation": False, "job_no": 0, "job_count": 0}
        state |= {"job": "", "job_timestamp": "0", "sampling_step": 0, "sampling_steps": 0}
        seconds, text = 0.0, None
        if status is not None:
            pictures = len(status.job.requests)
            seconds = (time.time() - status.job.created) * (1 - done) / done if done else 0.0
            text = f"{status.position} jobs are ahead" if status.position else None
            state |= {"job": status.job.id, "job_count": 1, "job_timestamp": _timestamp(status.job)}
            state |= {"sampling_step": status.step // pictures, "sampling_steps": status.steps // pictures}
        answer = {"progress": done, "eta_relative": max(0.0, seconds), "state": state, "textinfo": text}
        return said({**answer, "current_image": look})

    async def _look(self, status: Status) -> str | None:
        index = next((i for i in range(len(status.job.requests)) if i not in status.drawn), 0)
        try:
            return to_base64(await self._service.preview(status.job.id, index))
        except Unknown:
            return None

    async def interrupt(self, request: Request) -> Response:
        own = self._own(request)
        if own:
            await self._service.cancel(own[0])
        return said({})

    def _own(self, request: Request) -> list[str]:
        """The jobs of a client, the oldest first; another client's are none of its business."""
        client = client_of(request.scope)
        return [job for job, whose in self._jobs.items() if whose == client]

    async def options(self, request: Request) -> Response:
        return said({_MODEL: _title(self._service.models[self._model])})

    async def set_options(self, request: Request) -> Response:
        told = read_json(Options, await body_of(request, MOST_JSON))
        if told.sd_model_checkpoint is not None:
            self._model = self._find(told.sd_model_checkpoint, _MODEL).name
        return said({})

    async def models(self, request: Request) -> Response:
        return said(
            [
                {
                    "title": _title(facts),
                    "model_name": facts.name,
                    "hash": facts.checksum[:10],
                    "sha256": facts.checksum,
                    "filename": facts.name,
                    "config": None,
                }
                for facts in self._service.models.values()
            ]
        )

    async def samplers(self, request: Request) -> Response:
        there = self._service.models[self._model].samplers
        listed = [(names.AUTOMATIC, list[str]()), *((names.sampler_name(n), names.other_names(n)) for n in there)]
        return said([{"name": name, "aliases": others, "options": {}} for name, others in listed])

    async def schedulers(self, request: Request) -> Response:
        there = [names.AUTOMATIC, *names.SCHEDULERS]
        usual = {"aliases": None, "default_rho": -1.0, "need_inner_model": False}
        return said([{"name": name.lower().replace(" ", "_"), "label": name, **usual} for name in there])

    async def upscalers(self, request: Request) -> Response:
        return said([{"name": "None", "model_name": None, "model_path": None, "model_url": None, "scale": 4}])

    async def nothing(self, request: Request) -> Response:
        return said([])

    async def picture_info(self, request: Request) -> Response:
        most = self._service.limits.upload_bytes
        told = read_json(PictureInfo, await body_of(request, most * 4 // 3 + MOST_JSON))
        return said(await asyncio.to_thread(_info, from_base64(told.image, "image", most)))

    def _facts(self, told: Drawing) -> ModelFacts:
        """The model that draws; a setting beside it that would change the picture is refused."""
        _require_neutral(told)
        given = told.override_settings or {}
        for name, value in given.items():
            if name != _MODEL and value is not None and not _is_among(value, _OPTIONS.get(name, ())):
                field = f"override_settings.{name}"[:80]
                raise Wrong(f"{field!a} cannot be set here; leave it out", field, "unknown_parameter")
        checkpoint = given.get(_MODEL)
        if checkpoint is None:
            return self._service.models[self._model]
        if not isinstance(checkpoint, str):
            raise Wrong(f"{_MODEL} is the name of a model", f"override_settings.{_MODEL}")
        facts = self._find(checkpoint, f"override_settings.{_MODEL}")
        if told.override_settings_restore_afterwards is False:
            self._model = facts.name
        return facts

    def _find(self, checkpoint: str, field: str) -> ModelFacts:
        for facts in self._service.models.values():
            if checkpoint in (facts.name, _title(facts), facts.checksum, facts.checksum[:10]):
                return facts
        there = ", ".join(map(_title, self._service.models.values()))
        raise Wrong(f"there is no model {checkpoint[:80]!a}; there are {there}", field, "model_not_found")

    def _shape(self, told: Drawing, facts: ModelFacts, source: Kept | None) -> Shape:
        limits = self._service.limits
        usual = usual_shape(source, facts, limits)
        if told.width is None and told.height is None:
            shape = usual
        else:
            width, height = told.width or usual.full[0], told.height or usual.full[1]
            shape = shape_of(width, height, facts, limits, "width")
        require_few(shape, _number(told), "batch_size")
        return shape

    async def _answer(self, request: Request, told: Drawing, asked: Asked, finish: Finish) -> Response:
        service, key = self._service, request.headers.get("idempotency-key", "")
        job = await service.accept(asked, key=key)
        self._jobs[job.id] = client_of(request.scope)
        try:
            status = await waiting.ended(service, job, request.receive, has_key=bool(key))
        finally:
            self._jobs.pop(job.id, None)
        if status.job.state != "cancelled":
            require_done(status)
        files = [await finished(service, job.id, index, finish) for index in status.drawn]
        texts = [_parameters(data) for data in files]
        drawn = [effective(service, status, index, finish.shape) for index in status.drawn]
        checksum = service.models[job.model].checksum
        info = _told(told, status, finish.shape, checksum, texts, drawn)
        return said(
            {
                "images": [] if told.send_images is False else [to_base64(data) for data in files],
                "parameters": _echo(told, job, finish.shape),
                "info": json.dumps(info, allow_nan=False),
            }
        )


def _asked(told: Drawing, facts: ModelFacts, shape: Shape, edit: AskedEdit | None = None) -> Asked:
    """What is asked for, in the words of the service."""
    sampler, grid = _walk(told, facts)
    settings = Settings(
        negative=told.negative_prompt,
        steps=told.steps,
        guidance_scale=told.cfg_scale,
        sampler=sampler,
        grid=grid,
        # What is said keeps the model from its own steps; it says nothing where it is as usual.
        eta=None if told.eta == facts.sampling.eta else told.eta,
        syntax="weighted",
        tile=told.tiling,
        width=shape.width,
        height=shape.height,
    )
    seed = None if told.seed == -1 else told.seed
    prompt, number = told.prompt or "", _number(told)
    return Asked(prompt=prompt, model=facts.name, number=number, seed=seed, settings=settings, edit=edit)


def _walk(told: Drawing, facts: ModelFacts) -> tuple[str | None, str | None]:
    """Our sampler and grid."""
    given = told.sampler_name or told.sampler_index or ""
    try:
        sampler, grid = names.read_sampler(given, facts.samplers)
    except ValueError as error:
        raise Wrong(str(error), "sampler_name") from None
    try:
        said_grid = names.read_scheduler(told.scheduler or "")
    except ValueError as error:
        raise Wrong(str(error), "scheduler") from None
    return sampler, said_grid or grid


def _number(told: Drawing) -> int:
    return (told.batch_size or 1) * (told.n_iter or 1)


def _require_neutral(told: Drawing) -> None:
    """Refuse what would change the picture, and cannot here."""
    for field, values in _NEUTRAL.items():
        value = getattr(told, field, None)
        if field == "inpaint_full_res" and not getattr(told, "mask", None):
            continue  # there is no part to be enlarged
        if value is not None and not _is_among(value, values):
            usual = " or ".join(json.dumps(each) for each in values)
            hint = _HINTS.get(field, f"leave it out, or send {usual}")
            raise Wrong(f"{field} cannot be had here; {hint}", field)


def _is_among(value: object, values: Sequence[Any]) -> bool:
    return any(type(value) in (type(each), int, float) and value == each for each in values)


def _fit(told: ImageToImage, source: Kept, shape: Shape) -> str | None:
    """How the picture is brought to its size."""
    mode = told.resize_mode or 0
    if mode == 3:
        raise Wrong("resize_mode 3 enlarges latents, which cannot be had here; send 1 or 2", "resize_mode")
    if (source.width, source.height) == (shape.width, shape.height):
        return None
    if mode == 0 and source.width * shape.height != source.height * shape.width and told.width and told.height:
        raise Wrong(
            f"resize_mode 0 would stretch {source.width}x{source.height} to {shape}; send 1 (crop) or 2 (fill with "
            "white)",
            "resize_mode",
        )
    return _FITS.get(mode, "crop")


def _painted(mask: Image.Image, is_inverted: bool) -> Image.Image:
    """White where a mask is white, or opaque if parts of it are transparent; soft edges are cut in their middle."""
    grey = mask.convert("L")
    if mask.has_transparency_data:
        opacity = mask.convert("RGBA").getchannel("A")
        grey = opacity if opacity.getextrema() != (255, 255) else grey
    white, black = (0, 255) if is_inverted else (255, 0)
    return grey.point([black] * 129 + [white] * 127)


def _title(facts: ModelFacts) -> str:
    return f"{facts.name} [{facts.checksum[:10]}]"


def _timestamp(job: Job) -> str:
    return time.strftime("%Y%m%d%H%M%S", time.gmtime(job.created))


def _parameters(png: bytes) -> str:
    with Image.open(io.BytesIO(png)) as image:
        return str(image.info.get("parameters", ""))


def _echo(told: Drawing, job: Job, shape: Shape) -> dict[str, Any]:
    """What was asked for, with what was left out filled in."""
    first = job.requests[0]
    echo: dict[str, Any] = {
        "prompt": first.prompt,
        "negative_prompt": first.negative,
        "seed": first.seed,
        "sampler_name": names.sampler_name(first.sampler),
        "scheduler": names.scheduler_name(first.grid),
        "batch_size": told.batch_size or 1,
        "n_iter": told.n_iter or 1,
        "steps": first.steps,
        "cfg_scale": first.guidance_scale,
        "width": shape.full[0],
        "height": shape.full[1],
        "tiling": first.tile,
        "eta": first.eta,
        "send_images": told.send_images is not False,
        "denoising_strength": None if first.edit is None else first.edit.strength,
    }
    if isinstance(told, ImageToImage):
        echo |= {"resize_mode": told.resize_mode or 0, "inpainting_mask_invert": int(told.inpainting_mask_invert or 0)}
        echo |= {"init_images": told.init_images, "mask": told.mask} if told.include_init_images else {}
    return echo


def _told(
    told: Drawing,
    status: Status,
    shape: Shape,
    checksum: str,
    texts: Sequence[str],
    drawn: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """What an answer's ``info`` holds."""
    job = status.job
    first = job.requests[0]
    seeds, count = [each["seed"] for each in drawn], len(drawn)
    ignored = list(told.model_fields_set - _READ - _NEUTRAL.keys() - {"denoising_strength"})
    if isinstance(told, TextToImage) and told.denoising_strength is not None:
        ignored += ["denoising_strength"]
    if isinstance(told, ImageToImage) and told.inpainting_fill == 0:
        ignored += ["inpainting_fill"]  # what is painted starts from what is there
    return {
        "prompt": first.prompt,
        "all_prompts": [first.prompt] * count,
        "negative_prompt": first.negative,
        "all_negative_prompts": [first.negative] * count,
        "seed": first.seed,
        "all_seeds": seeds,
        "subseed": first.seed,
        "all_subseeds": seeds,
        "subseed_strength": 0,
        "width": shape.full[0],
        "height": shape.full[1],
        "sampler_name": names.sampler_name(first.sampler),
        "cfg_scale": first.guidance_scale,
        "steps": first.steps,
        "batch_size": told.batch_size or 1,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": job.model,
        "sd_model_hash": checksum[:10],
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": None if first.edit is None else first.edit.strength,
        "extra_generation_params": {"Schedule type": names.scheduler_name(first.grid)},
        "index_of_first_image": 0,
        "infotexts": list(texts),
        "styles": [],
        "job_timestamp": _timestamp(job),
        "clip_skip": 1,
        "is_using_inpainting_conditioning": False,
        "version": f"unstir {__version__}",
        "interrupted": job.state == "cancelled",
        "ignored": sorted(ignored),
        "unstir": list(drawn),
    }


def _info(data: bytes) -> dict[str, Any]:
    """The texts that a picture carries; its pixels are not looked at."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            texts = {name: text for name, text in image.info.items() if isinstance(name, str) and isinstance(text, str)}
    except Exception:  # readers raise nearly anything on broken input
        raise Wrong(f"image is no picture, or a damaged one; send {', '.join(FORMATS)}", "image") from None
    info = texts.pop("parameters", "")
    return {"info": info, "items": texts, "parameters": read_parameters(info)}


def read_parameters(info: str) -> dict[str, str]:
    """The prompt, the negative prompt and the keys of a text as AUTOMATIC1111 writes it; empty if it is none."""
    *lines, last = info.strip().split("\n")
    pairs = _PAIR.findall(last) if len(last) <= _MOST_INFO else []
    if len(pairs) < _FEWEST_KEYS:
        return {}
    text, _, negative = "\n".join(["", *lines]).partition("\nNegative prompt:")
    read = {"Prompt": text.strip(), "Negative prompt": negative.strip()}
    return read | {key: _unquoted(value) for key, value in pairs}


def _unquoted(value: str) -> str:
    if value.startswith('"'):
        with suppress(ValueError):
            return str(json.loads(value))
    return value.strip()
