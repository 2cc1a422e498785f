"""Asking: what a client may ask for, and the requests that this makes.

Knows: what may be said by somebody who is not trusted, and how much of it; which words the pipeline has for it.
Does not know: HTTP, how pictures are kept, jobs, who draws.

A client names models and pictures as the server does. No path ever comes from one, and no other model or classifier
that the guidance would load.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, cast

from PIL import Image

from unstir.config import choose
from unstir.editing import Album
from unstir.pipeline import MAX_SEED, Editing, Pipeline, Request, Settings
from unstir.steering import Steering

_LONGEST = 400  # characters: what was given may be long
_OPTIONS = {"size": "width and height", "prompt-syntax": "syntax"}
_FIELDS = (
    (r"prompt syntax", "syntax"),
    (r"prompt is empty|there is no prompt", "prompt"),
    (r"^seed", "seed"),
    (r"^the number of pictures", "number"),
    (r"^eta|^ddim|\beta\b", "eta"),
    (r"^steps must|tuned steps|^this model's chain", "steps"),
    (r"grid|^times", "grid"),
    (r"sampler|ancestral", "sampler"),
    (r"guidance interval", "guidance_interval"),
    (r"guidance method|view of guidance|rescaled|threshold", "steering"),
    (r"guidance", "guidance_scale"),
    (r"^strength", "edit.strength"),
    (r"^resample", "edit.resample"),
    (r"extended", "edit.extend"),
    (r"^unknown fit", "edit.fit"),
    (r"^the mask", "edit.mask"),
    (r"frames", "way.frames"),
    (r"\bway\b", "way"),
    (r"\d+x\d+", "width"),
    (r"weight|parenthes|bracket", "prompt"),
)
_MAX_GRID = 1000  # characters
_WALKS = 4  # a picture may be walked so many times the most steps, where steps are resampled


class Refused(ValueError):
    """What a client asks for cannot be had.

    Args:
        sentence: what was given, what is expected and what to do.
        field: of ``Asked`` that is at fault, such as ``steps`` or ``edit.mask``; empty where it is not one alone.
    """

    def __init__(self, sentence: str, field: str = "") -> None:
        super().__init__(sentence)
        self.field = field


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much may be asked for.

    Args:
        pictures: of one job.
        steps: of one picture.
        prompt: characters of one.
        scale: how many times the model's own size a picture's sides may be, on average.
        queue: jobs that have not ended.
        upload_bytes: of one file.
        upload_pixels: of one picture.
        draft_seconds: that a draft is kept after it has ended.
    """

    pictures: int = 16
    steps: int = 250
    prompt: int = 4000
    scale: int = 4
    queue: int = 1000
    upload_bytes: int = 20 * 2**20
    upload_pixels: int = 16_000_000
    draft_seconds: float = 60.0


@dataclass(frozen=True, kw_only=True)
class AskedEdit:
    """A picture to draw from. None is what ``unstir.editing.Edit`` says.

    Args:
        source: the picture: the name of an uploaded one, or ``JOB/INDEX`` of a finished one.
        mask: in the same way, what of it is painted; empty for all.
        strength: from 0 (the picture as it is) to 1 (nothing of it is left).
        resample: how often each step is walked.
        extend: pixels that the canvas is larger at its left, top, right and bottom.
        fit: how the picture is brought to a size.
    """

    source: str
    mask: str = ""
    strength: float | None = None
    resample: int | None = None
    extend: tuple[int, int, int, int] | None = None
    fit: str | None = None


@dataclass(frozen=True, kw_only=True)
class AskedWay:
    """A way between two prompts, or two pictures; the first is what is asked for beside it.

    Args:
        to_prompt: the last prompt; empty for the same.
        to_source: the last picture, named as in ``AskedEdit``; empty for none.
        frames: pictures on the way, both ends included.
    """

    to_prompt: str = ""
    to_source: str = ""
    frames: int = 8


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a client asks for. None, and what is left out of the settings, is the model's default.

    Args:
        prompt: what to draw.
        model: a name of the server's models; empty for its first.
        number: of pictures; those of a way are its frames.
        seed: of the first picture; the next has the next one.
        settings: fields of ``Request`` by name, but none that names a file, a picture or another model.
        edit: what is drawn from a picture.
        way: what is drawn on the way to something else.
        is_draft: whether it is only for a look.
    """

    prompt: str
    model: str = ""
    number: int = 1
    seed: int | None = None
    settings: Settings = field(default_factory=lambda: Settings())
    edit: AskedEdit | None = None
    way: AskedWay | None = None
    is_draft: bool = False

    @property
    def pictures(self) -> tuple[str, ...]:
        """The names of the pictures that are drawn from."""
        edit, way = self.edit, self.way
        return (() if edit is None else (edit.source,)) + (() if way is None or not way.to_source else (way.to_source,))


def fingerprint(asked: Asked) -> str:
    """The same for the same question, and for no other."""
    said = asdict(replace(asked, settings=Settings()))
    said["settings"] = {
        name: asdict(value) if isinstance(value, Steering) else value
        for name, value in asked.settings.items()
        if value is not None
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def require_modest(asked: Asked, limits: Limits, sizes: Mapping[str, int]) -> None:
    """Refuse what needs no model to be refused.

    Args:
        asked: what is asked for.
        limits: how much may be.
        sizes: of the models, by name.

    Raises:
        Refused: if it names what it must not, or is more than the limits allow.
    """
    settings: dict[str, Any] = {name: value for name, value in asked.settings.items() if value is not None}
    choose_model(asked, sizes)
    _require_texts(asked, settings, limits)
    for name in ("edit", "blend"):
        if name in settings:
            raise Refused(f"{name} is no setting; ask for it beside the settings", name)
    steering = settings.get("steering")
    if steering is not None and (steering.weak or steering.classifier or any(steering.weights)):
        raise Refused("guidance by another model or a classifier cannot be asked for here; leave it out", "steering")
    _require_few(asked, settings, limits)
    largest = sizes[asked.model or next(iter(sizes))] * limits.scale
    for side in ("width", "height"):  # before anything of that size is made
        if settings.get(side, 1) > largest * limits.scale:
            raise Refused(f"{side} {settings[side]} is too large; ask for at most {largest}", side)


def require_affordable(requests: tuple[Request, ...], limits: Limits, size: int) -> None:
    """Refuse what costs more than the limits allow.

    Args:
        requests: fully said.
        limits: how much may be asked for.
        size: the model's own.

    Raises:
        Refused: if it does.
    """
    first = requests[0]
    most = size * limits.scale
    if first.steps > limits.steps:
        raise Refused(f"{first.steps} steps are too many; ask for at most {limits.steps}", "steps")
    resample = 1 if first.edit is None else first.edit.resample
    if first.steps * resample > limits.steps * _WALKS:
        raise Refused(
            f"{first.steps} steps, each walked {resample} times, are too many; ask for at most "
            f"{limits.steps * _WALKS} in all",
            "edit.resample",
        )
    if first.width * first.height > most * most:
        raise Refused(
            f"{first.width}x{first.height} is too large; ask for at most as many pixels as {most}x{most} has", "width"
        )


def choose_model(asked: Asked, models: Mapping[str, Any]) -> str:
    """The name of the model that is asked for; the first is the default.

    Raises:
        Refused: if the server has no such model.
    """
    with _refusing("model"):
        return choose(asked.model, models, "model") if asked.model else next(iter(models))


def requests_of(
    asked: Asked, pipe: Pipeline, pictures: Mapping[str, Image.Image], masks: Mapping[str, Image.Image]
) -> tuple[tuple[Request, ...], Album]:
    """The requests that are asked for, and the pictures that they name: each by the name that it was asked for by.

    Args:
        asked: as ``require_modest`` lets it pass.
        pipe: that will draw it.
        pictures: those that it names.
        masks: the same of masks.

    Raises:
        Refused: if the model cannot draw it, in the words of the pipeline.
    """
    with _refusing():
        edit, way = asked.edit, asked.way
        settings = cast(Editing, {**asked.settings})
        if edit is not None:
            own: dict[str, Any] = {name: getattr(edit, name) for name in ("strength", "resample", "extend", "fit")}
            own["mask"] = masks[edit.mask] if edit.mask else None
            settings = cast(Editing, {**settings, **{name: value for name, value in own.items() if value is not None}})
        album: Album = {}
        if way is not None:
            ends = (pictures[edit.source], pictures[way.to_source]) if edit is not None else None
            requests, album = pipe.between_requests(
                asked.prompt, way.to_prompt, pictures=ends, frames=way.frames, seed=asked.seed, **settings
            )
        elif edit is not None:
            requests, album = pipe.edit_requests(
                pictures[edit.source], asked.prompt, n=asked.number, seed=asked.seed, **settings
            )
        else:
            requests = pipe.requests([asked.prompt], n=asked.number, seed=asked.seed, **asked.settings)
    return tuple(_named(request, asked) for request in requests), album


def references(requests: tuple[Request, ...]) -> dict[str, tuple[str, str]]:
    """The pictures that requests name, by the sha256 of their content: what each is called; "picture" or "mask"."""
    found: dict[str, tuple[str, str]] = {}
    for request in requests:
        edit, blend = request.edit, request.blend
        if edit is not None:
            found[edit.source.sha256] = (edit.source.name, "picture")
        if edit is not None and edit.mask is not None:
            found[edit.mask.sha256] = (edit.mask.name, "mask")
        if blend is not None and blend.picture is not None:
            found[blend.picture.sha256] = (blend.picture.name, "picture")
    return found


def plain(sentence: str) -> str:
    """A sentence of the pipeline in the words of a client: options of the command line become fields."""
    said = re.sub(r"--([a-z][a-z-]*)", lambda option: _OPTIONS.get(option[1], option[1].replace("-", "_")), sentence)
    said = " ".join(said.split())
    return said if len(said) <= _LONGEST else f"{said[: _LONGEST - 3]}..."


def field_of(sentence: str) -> str:
    """Which field of ``Asked`` a sentence of the pipeline speaks of; empty if that is not known."""
    return next((field for words, field in _FIELDS if re.search(words, sentence)), "")


@contextmanager
def _refusing(field: str = "") -> Generator[None]:
    """What the pipeline finds wrong is the client's mistake."""
    try:
        yield
    except Refused:
        raise
    except ValueError as error:
        raise Refused(plain(str(error)), field or field_of(str(error))) from None


def _require_texts(asked: Asked, settings: Mapping[str, Any], limits: Limits) -> None:
    texts = {"prompt": asked.prompt, "negative": settings.get("negative", "")}
    if asked.way is not None:
        texts["way.to_prompt"] = asked.way.to_prompt
    for name, text in texts.items():
        if len(text) > limits.prompt:
            raise Refused(f"{name} has {len(text)} characters; write at most {limits.prompt}", name)
        if re.search("[\0\ud800-\udfff]", text):
            raise Refused(f"{name} holds what is no text (a zero or half a surrogate pair); leave it out", name)
    if len(settings.get("grid", "")) > _MAX_GRID:
        raise Refused(f"grid has {len(settings['grid'])} characters; write at most {_MAX_GRID}", "grid")


def _require_few(asked: Asked, settings: Mapping[str, Any], limits: Limits) -> None:
    way, edit = asked.way, asked.edit
    if settings.get("steps", 1) > limits.steps:
        raise Refused(f"{settings['steps']} steps are too many; ask for at most {limits.steps}", "steps")
    if asked.seed is not None and not 0 <= asked.seed <= MAX_SEED:
        raise Refused(f"seed must be a whole number from 0 to {MAX_SEED}, got {asked.seed}", "seed")
    if asked.number > limits.pictures:
        raise Refused(f"{asked.number} pictures are too many; ask for at most {limits.pictures}", "number")
    if way is None:
        return
    if way.frames > limits.pictures:
        raise Refused(f"{way.frames} frames are too many; ask for at most {limits.pictures}", "way.frames")
    if asked.number != 1:
        raise Refused(f"a way has frames, not a number of pictures, got {asked.number}; leave number out", "number")
    if (edit is not None) != bool(way.to_source):
        raise Refused("a way between pictures has two: give edit.source and way.to_source, or neither", "way.to_source")


def _named(request: Request, asked: Asked) -> Request:
    """With its pictures called as the client calls them, so that it can ask for them again."""
    edit, blend, way = request.edit, request.blend, asked.way
    if edit is not None and asked.edit is not None:
        mask = None if edit.mask is None else replace(edit.mask, name=asked.edit.mask)
        edit = replace(edit, source=replace(edit.source, name=asked.edit.source), mask=mask)
    if blend is not None and blend.picture is not None and way is not None:
        blend = replace(blend, picture=replace(blend.picture, name=way.to_source))
    return replace(request, edit=edit, blend=blend)
