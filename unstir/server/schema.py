"""Schema: what the own API takes and gives, field by field, and what is said of a field that is wrong.

Knows: names, ranges and meanings of fields in JSON; how they become what is asked for, and values become JSON.
Does not know: paths, statuses of HTTP, how anything is drawn or kept.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from unstir.config import to_dict
from unstir.metadata import Recipe, parameters
from unstir.model import SamplingDefaults
from unstir.pipeline import MAX_SEED, Request, Settings
from unstir.server.asking import Asked, AskedEdit, AskedWay, Limits, Refused
from unstir.server.jobs import Picture, State, Status
from unstir.server.runs import Run
from unstir.server.service import Kept, ModelFacts
from unstir.steering import Steering

JOB = "^[0-9a-f]{32}$"
"""A job's id."""

UPLOAD = "^[0-9a-f]{64}$"
"""The name of an uploaded picture."""

PICTURE = "^[0-9a-f]{32}/[0-9]{1,4}$"
"""JOB/INDEX: the name of a finished picture."""

_SOURCE = "^([0-9a-f]{64}|[0-9a-f]{32}/[0-9]{1,4})$"
_SHORT = 60  # characters of a value that a sentence repeats
_SAMPLE = "0123456789abcdef0123456789abcdef"
_FIELDS = {
    "guidance_scale": "guidance",
    "steering": "guidance_method",
    "is_draft": "draft",
    "key": "Idempotency-Key",
}
_NAMED = "is the name of an upload (64 hexadecimal digits) or JOB/INDEX of a finished picture"
_FORMS: dict[object, str] = {
    "source": _NAMED,
    "mask": _NAMED,
    "to_source": _NAMED,
    "before": "is JOB/INDEX of a picture, as `next` of the list before says it",
    "page": "is a word of up to 64 letters, digits, - and _",
}
_STEERING = {"method": "guidance_method", "rescale": "guidance_rescale", "view": "guidance_view"}

Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Taken(BaseModel):
    """What clients send: nothing is guessed, nothing is ignored."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())


class _Given(BaseModel):
    """What clients are told."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())


class EditRequest(_Taken):
    """A picture to draw from. What is left out is usual for the picture and the mask."""

    source: str = Field(
        pattern=_SOURCE,
        description="The picture: the name that an upload was given, or JOB/INDEX of a finished picture.",
        examples=[f"{_SAMPLE}/0"],
    )
    mask: str | None = Field(
        None,
        pattern=_SOURCE,
        description="What of it is painted, named in the same way: transparent or white parts. All, if left out.",
    )
    strength: Finite | None = Field(
        None,
        ge=0,
        le=1,
        description="From 0 (the picture as it is) to 1 (nothing of it is left). 1 with a mask, else 0.75.",
    )
    resample: int | None = Field(
        None, ge=1, le=100, description="How often each step is walked, so that what is painted fits what is kept."
    )
    extend: tuple[int, int, int, int] | None = Field(
        None,
        description="Pixels that the canvas is larger at its left, top, right and bottom; they are painted.",
        examples=[[0, 0, 32, 0]],
    )
    fit: str | None = Field(
        None, description="How the picture is brought to the size: `crop` or `pad`; left out, it keeps its own."
    )


class WayRequest(_Taken):
    """A way between two prompts, or between two pictures (then `edit.source` is the first)."""

    to_prompt: str = Field("", description="The prompt at the other end; the same, if left out.")
    to_source: str | None = Field(
        None, pattern=_SOURCE, description="The picture at the other end, named as `edit.source` is."
    )
    frames: int = Field(8, ge=2, description="Pictures on the way, both ends included.")


class JobRequest(_Taken):
    """What is to be drawn. Everything but the prompt may be left out (or null): the model has its own defaults."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": "a red heart"},
                {"prompt": "a red heart", "number": 4, "seed": 7, "steps": 8, "guidance": 2.0},
                {"prompt": "a smiling cat", "edit": {"source": f"{_SAMPLE}/0", "strength": 0.6}},
                {"prompt": "a cat", "way": {"to_prompt": "a dog", "frames": 5}},
            ]
        }
    )

    prompt: str = Field(description="What to draw.", examples=["a red heart"])
    negative: str | None = Field(None, description="What to move away from.")
    model: str | None = Field(None, description="Which of the server's models draws; its first, if left out.")
    number: int = Field(1, ge=1, description="How many pictures. Those of a way are its frames.")
    seed: int | None = Field(
        None,
        ge=0,
        le=MAX_SEED,
        description="Of the first picture; the next one has the next seed. A fresh one, if left out.",
    )
    steps: int | None = Field(None, ge=1, description="Steps from noise to picture.")
    sampler: str | None = Field(None, description="What walks the steps: see the samplers of the model.")
    grid: str | None = Field(
        None, max_length=1000, description="Where the steps are: a name, sections such as `10,5`, or times."
    )
    guidance: Finite | None = Field(None, ge=-100, le=100, description="How closely the prompt is followed; 1 is none.")
    guidance_interval: tuple[Finite, Finite] | None = Field(
        None, description="Between which log-SNR guidance acts: low, high.", examples=[[-4.0, 4.0]]
    )
    guidance_method: str | None = Field(None, description="How the two beliefs are combined: `plain` is usual.")
    guidance_rescale: Finite | None = Field(
        None, ge=0, le=1, description="How much of the contrast without guidance the picture is given back."
    )
    guidance_view: str | None = Field(None, description="On what is rescaled.")
    guidance_threshold: Finite | None = Field(None, description="The quantile of a dynamic threshold.")
    eta: Finite | None = Field(None, ge=0, le=1, description="For the sampler `ddim`: how much fresh noise.")
    width: int | None = Field(None, ge=1, description="In pixels.")
    height: int | None = Field(None, ge=1, description="In pixels.")
    syntax: str | None = Field(None, description="`plain`, or `weighted`: (words:1.3) count more, [words] less.")
    tile: bool | None = Field(None, description="Whether right meets left and bottom meets top.")
    edit: EditRequest | None = Field(None, description="Draw from a picture instead of from noise.")
    way: WayRequest | None = Field(None, description="Draw pictures on the way to something else.")
    draft: bool = Field(
        False, description="Only for a look: drawn before everything else, and not kept for longer than a minute."
    )
    page: str = Field(
        "",
        pattern="^[A-Za-z0-9_-]{0,64}$",
        description="With `draft`: whoever gives the same word again has its earlier draft cancelled.",
    )

    def asked(self) -> Asked:
        """What this asks for, in the words of the service.

        Raises:
            Refused: if the guidance has no such method, or a number of it is out of range.
        """
        return Asked(
            prompt=self.prompt,
            model=self.model or "",
            number=self.number,
            seed=self.seed,
            settings=_settings(self),
            edit=None if self.edit is None else _edit(self.edit),
            way=None if self.way is None else _way(self.way),
            is_draft=self.draft,
        )


class PictureFacts(_Given):
    """A finished picture."""

    job: str = Field(description="Whose it is.", examples=[_SAMPLE])
    index: int = Field(description="Which of its job's pictures it is, from 0.")
    url: str = Field(description="Where it is: a PNG that carries its recipe.", examples=[f"/api/pictures/{_SAMPLE}/0"])
    seed: int
    width: int = Field(description="In pixels.")
    height: int = Field(description="In pixels.")
    request: Request = Field(description="What was drawn, fully said.")
    created: float = Field(description="When it was finished, in seconds since 1970.")
    seconds: float = Field(description="That it took.")
    warnings: tuple[str, ...] = Field(description="What should be known of it, such as a prompt that was cut.")

    @classmethod
    def of(cls, picture: Picture) -> Self:
        """The facts of a picture."""
        request = picture.request
        return cls(
            job=picture.job,
            index=picture.index,
            url=f"/api/pictures/{picture.job}/{picture.index}",
            seed=request.seed,
            width=request.width,
            height=request.height,
            request=request,
            created=picture.created,
            seconds=picture.seconds,
            warnings=picture.warnings,
        )


class JobStatus(_Given):
    """A job, and how far it is."""

    id: str = Field(description="Its name; nobody can guess it.", examples=[_SAMPLE])
    url: str = Field(description="Where its status is.", examples=[f"/api/jobs/{_SAMPLE}"])
    model: str = Field(description="Which model draws it.")
    draft: bool = Field(description="Whether it is only for a look.")
    state: State = Field(description="`done`, `failed` and `cancelled` are ends.")
    position: int = Field(description="Jobs ahead of it; 0 once it runs.")
    step: int = Field(description="Steps done, of all its pictures together.")
    steps: int = Field(description="Steps in all.")
    request: Request = Field(description="Its first picture, fully said: seed drawn, defaults filled in.")
    seeds: tuple[int, ...] = Field(description="Of all its pictures, in order.")
    pictures: tuple[PictureFacts, ...] = Field(description="Those that are finished.")
    previews: tuple[str | None, ...] = Field(
        description="One a picture: where the newest look at it is, or null while there is none.",
        examples=[[f"/api/jobs/{_SAMPLE}/previews/0?at=3"]],
    )
    error: str = Field(description="Why it failed, in one sentence; else empty.")

    @classmethod
    def of(cls, status: Status, pictures: Sequence[PictureFacts]) -> Self:
        """The status of a job, with those of its pictures that are finished."""
        job = status.job
        return cls(
            id=job.id,
            url=f"/api/jobs/{job.id}",
            model=job.model,
            draft=job.is_draft,
            state=job.state,
            position=status.position,
            step=status.step,
            steps=status.steps,
            request=job.requests[0],
            seeds=tuple(request.seed for request in job.requests),
            pictures=tuple(pictures),
            previews=tuple(
                f"/api/jobs/{job.id}/previews/{index}?at={count}" if count else None
                for index, count in enumerate(status.previews)
            ),
            error=job.error,
        )


class PreviewEvent(_Given):
    """A look at a picture that is being drawn: what is believed of it."""

    index: int = Field(description="Of the picture in its job.")
    step: int = Field(description="Steps done, of all pictures of the job together.")
    steps: int = Field(description="Steps in all.")
    url: str = Field(description="The PNG itself, as a data URL.")


class PictureList(_Given):
    """Finished pictures, the newest first."""

    pictures: tuple[PictureFacts, ...]
    next: str | None = Field(description="Give it as `before` to see older ones; null if there are none.")


class RecipeFacts(_Given):
    """All that makes a picture."""

    request: Request = Field(description="What was drawn, fully said.")
    model: str = Field(description="The model's name.")
    checksum: str = Field(description="The sha256 of the model's weights.")
    device: str = Field(description="Where it was drawn.")
    version: str = Field(description="Of unstir.")
    warnings: tuple[str, ...]
    parameters: str = Field(description="The same as AUTOMATIC1111 writes it.")

    @classmethod
    def of(cls, recipe: Recipe) -> Self:
        """The facts of a recipe."""
        return cls(
            request=recipe.request,
            model=recipe.model,
            checksum=recipe.checksum,
            device=recipe.device,
            version=recipe.version,
            warnings=recipe.warnings,
            parameters=parameters(recipe),
        )


class Upload(_Given):
    """A picture that was sent here."""

    name: str = Field(description="What it is called from now on: the sha256 of its bytes.", examples=[_SAMPLE * 2])
    url: str = Field(description="Where it is.", examples=[f"/api/uploads/{_SAMPLE * 2}"])
    width: int = Field(description="In pixels, as it is shown.")
    height: int = Field(description="In pixels, as it is shown.")
    recipe: RecipeFacts | None = Field(description="What it carries, if unstir drew it.")

    @classmethod
    def of(cls, kept: Kept) -> Self:
        """The facts of an upload."""
        return cls(
            name=kept.name,
            url=f"/api/uploads/{kept.name}",
            width=kept.width,
            height=kept.height,
            recipe=RecipeFacts.of(kept.recipe) if kept.recipe is not None and _is_sayable(kept.recipe) else None,
        )


class Model(_Given):
    """A model that draws here."""

    name: str
    checksum: str = Field(description="The sha256 of its weights.")
    size: int = Field(description="Width and height that it was trained on, in pixels.")
    multiple: int = Field(description="Width and height are multiples of it.")
    is_one_size: bool = Field(description="Whether it draws its own size only.")
    samplers: tuple[str, ...]
    sampling: SamplingDefaults = Field(description="What is done where a job says nothing.")
    tuned: tuple[int, ...] = Field(description="Numbers of steps that were fitted to the model.")
    fewest: int = Field(description="The fewest steps that show what a picture will be.")

    @classmethod
    def of(cls, facts: ModelFacts) -> Self:
        """The facts of a model."""
        return cls(
            name=facts.name,
            checksum=facts.checksum,
            size=facts.size,
            multiple=facts.multiple,
            is_one_size=facts.is_one_size,
            samplers=facts.samplers,
            sampling=facts.sampling,
            tuned=facts.tuned,
            fewest=facts.fewest,
        )


class Models(_Given):
    """What can be asked for."""

    models: tuple[Model, ...] = Field(description="The first draws where no other is asked for.")
    limits: Limits = Field(description="How much may be asked for.")
    grids: tuple[str, ...]
    syntaxes: tuple[str, ...]
    guidance_methods: tuple[str, ...]
    guidance_views: tuple[str, ...]
    fits: tuple[str, ...]


class RunEntry(_Given):
    """A training, and where it stands."""

    name: str
    url: str = Field(examples=["/api/runs/mine"])
    recipe: str = Field(description="That it was started with.")
    state: Literal["going on", "finished", "stopped", "died"]
    images_seen: int
    planned_images: int
    images_per_second: float | None
    seconds_left: float | None = Field(description="Null where it does not go on.")
    loss: float | None = Field(description="The last that it told.")
    preview: str | None = Field(description="Where its newest sheet of previews is.")

    @classmethod
    def of(cls, run: Run) -> Self:
        """Where a run stands."""
        return cls(**_standing(run))


class RunPreview(_Given):
    """A sheet of previews."""

    images_seen: int = Field(description="When it was drawn.")
    url: str


class RunDetail(RunEntry):
    """A training, and all that it told."""

    numbers: dict[str, float | None] = Field(description="What it told last, by name.")
    bands: dict[str, dict[str, float | None]] = Field(description="The same by band of log-SNR (or of t).")
    curves: dict[str, tuple[tuple[int, float | None], ...]] = Field(
        description="What it told, by name: pairs of images seen and value; long ones are means of equal stretches.",
        examples=[{"loss": [[1024, 0.0387], [2048, 0.0381]]}],
    )
    previews: tuple[RunPreview, ...] = Field(description="The newest first.")

    @classmethod
    def of(cls, run: Run) -> Self:
        """All that a run told."""
        return cls(
            **_standing(run),
            numbers=dict(run.numbers),
            bands={name: dict(row) for name, row in run.bands.items()},
            curves={name: tuple(points) for name, points in run.curves.items()},
            previews=tuple(RunPreview(images_seen=seen, url=_preview_url(run.name, seen)) for seen in run.previews),
        )


class RunList(_Given):
    """Trainings that are shown here."""

    runs: tuple[RunEntry, ...] = Field(description="In the order of their names.")


class FailureFacts(_Given):
    """What is wrong."""

    message: str = Field(description="In one sentence: what was given, what is expected, what to do.")
    field: str = Field(description="The field that is at fault, such as `steps` or `edit.mask`; empty for none alone.")


class Failure(_Given):
    """Why there is no answer."""

    error: FailureFacts


def read_job(body: bytes) -> JobRequest:
    """The job that the body of a request asks for.

    Raises:
        Refused: if it is no valid JSON, or a field is unknown, missing or wrong.
    """
    try:
        return _JOB.validate_json(body)
    except ValidationError as error:
        raise Refused(*complaint(error.errors(include_url=False, include_context=False), _KNOWN)) from None


_JOB = TypeAdapter(JobRequest)
_KNOWN = {
    "": tuple(JobRequest.model_fields),
    "edit": tuple(EditRequest.model_fields),
    "way": tuple(WayRequest.model_fields),
}


def complaint(errors: Sequence[Any], known: Mapping[str, Sequence[str]] | None = None) -> tuple[str, str]:
    """What is told of errors that pydantic found, of the first alone: a sentence, and the field that it names.

    Args:
        errors: as FastAPI's ``RequestValidationError.errors`` lists them, or ``ValidationError.errors`` of a body.
        known: of a body: the fields that there are, by the field that holds them, so that the nearest can be named.
    """
    first = errors[0]
    loc = list(first["loc"]) if known is not None else list(first["loc"])[1:]  # FastAPI says where it looked first
    name = _cut(".".join(str(part) for part in loc))
    kind, message = str(first["type"]), str(first["msg"])
    if kind.startswith("json_") and not first.get("input"):
        return "the body is empty; send one JSON object", ""
    if kind.startswith("json_"):
        return f"the body is no valid JSON ({_cut(message.partition(': ')[2] or message)}); send one JSON object", ""
    if kind == "missing":
        return (f"{name} is missing; give it" if name else "the body is missing; send one JSON object"), name
    if kind == "extra_forbidden":
        return _unknown(str(loc[-1]), (known or {}).get(".".join(map(str, loc[:-1])), ())), name
    if kind == "string_pattern_mismatch":
        form = _FORMS.get(loc[-1] if loc else "", "has another form")
        return f"{name} {form}, got {_shown(first.get('input'))}", name
    what = message.replace("Input", name or "the body", 1) if "Input" in message else f"{name or 'the body'}: {message}"
    return f"{what}, got {_shown(first.get('input'))}", name


def own_field(name: str) -> str:
    """What a field of ``Asked`` is called here."""
    return _FIELDS.get(name, name)


def _is_sayable(recipe: Recipe) -> bool:
    """Whether JSON has words for a recipe that somebody sent: not for half a pair of surrogates, nor for infinity."""
    try:
        json.dumps(to_dict(recipe), ensure_ascii=False, allow_nan=False).encode()
    except ValueError:
        return False
    return True


def _unknown(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name[:_SHORT], known, n=1)
    hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}" if known else "; leave it out"
    return f"unknown field {_cut(name)!r}{hint}"


def _cut(text: str) -> str:
    return text if len(text) <= _SHORT else f"{text[:_SHORT]}..."


def _shown(value: object) -> str:
    """A value that was given, as far as a sentence can hold it."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return _cut(ascii(value))


def _settings(job: JobRequest) -> Settings:
    said: dict[str, Any] = {
        "negative": job.negative,
        "syntax": job.syntax,
        "steps": job.steps,
        "sampler": job.sampler,
        "grid": job.grid,
        "guidance_scale": job.guidance,
        "guidance_interval": job.guidance_interval,
        "steering": _steering(job),
        "eta": job.eta,
        "width": job.width,
        "height": job.height,
        "tile": job.tile,
    }
    return Settings(**{name: value for name, value in said.items() if value is not None})


def _steering(job: JobRequest) -> Steering | None:
    """The guidance beside its scale; each part is tried alone, so that its name is known where it is wrong."""
    said: dict[str, Any] = {
        "method": job.guidance_method,
        "rescale": job.guidance_rescale,
        "view": job.guidance_view,
        "threshold": job.guidance_threshold,
    }
    said = {name: value for name, value in said.items() if value is not None}
    for name, value in said.items():
        try:
            Steering(**{name: value})
        except ValueError as error:
            raise Refused(str(error), _STEERING.get(name, f"guidance_{name}")) from None
    return Steering(**said) if said else None


def _edit(edit: EditRequest) -> AskedEdit:
    return AskedEdit(
        source=edit.source,
        mask=edit.mask or "",
        strength=edit.strength,
        resample=edit.resample,
        extend=edit.extend,
        fit=edit.fit,
    )


def _way(way: WayRequest) -> AskedWay:
    return AskedWay(to_prompt=way.to_prompt, to_source=way.to_source or "", frames=way.frames)


def _standing(run: Run) -> dict[str, Any]:
    now = run.standing
    return {
        "name": run.name,
        "url": f"/api/runs/{quote(run.name, safe='')}",
        "recipe": now.recipe,
        "state": now.state,
        "images_seen": now.images_seen,
        "planned_images": now.planned_images,
        "images_per_second": run.numbers.get("images_per_second"),
        "seconds_left": run.seconds_left,
        "loss": run.numbers.get("loss"),
        "preview": _preview_url(run.name, run.previews[0]) if run.previews else None,
    }


def _preview_url(name: str, images_seen: int) -> str:
    return f"/api/runs/{quote(name, safe='')}/previews/{images_seen}"
