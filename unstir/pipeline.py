"""Pipeline: from requests to pictures; the only place where words, numbers and pictures meet.

Knows: what a request may ask for, how requests are drawn together.
Does not know: command lines, files of pictures, training.
"""

from __future__ import annotations

import copy
import math
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypedDict, Unpack, cast

import numpy
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from unstir.classifier import Classifier, load_classifier
from unstir.codec.tiled import in_tiles
from unstir.condition import Condition
from unstir.conditioning.text import Cut
from unstir.conditioning.weights import weighted
from unstir.config import choose
from unstir.data.transforms import to_bytes
from unstir.device import autocast, lay_out, resolve_device, resolve_precision
from unstir.diffusion.blending import between, slerp
from unstir.diffusion.denoiser import Denoiser, Network, NetworkDenoiser
from unstir.diffusion.noise import KeyedNoise
from unstir.diffusion.process import Estimate, GaussianProcess, Process
from unstir.diffusion.samplers import DDIM, SAMPLERS, Tuned, encode, sample
from unstir.diffusion.schedule import Level, Tabulated
from unstir.diffusion.spacing import SPACINGS, below, usual_range
from unstir.diffusion.tiling import seamless
from unstir.editing import (
    Album,
    Blend,
    Canvas,
    Edit,
    Given,
    Way,
    asked,
    canvas_of,
    canvas_size,
    read_picture,
    referred,
    shares,
)
from unstir.model import Model, is_told_words, load_model, place_codec, spacing_of, steps_of
from unstir.replay import Ask, Read, Replayed, Wrapped, read_by
from unstir.speedups import is_on
from unstir.steering import TILTED, Steering, Told, denoiser_of, process_of, require_fit
from unstir.typing import X, floats

TUNED = "tuned"
"""Name of the sampler, and of the grid, that were fitted to the model."""

MAX_SEED = 2**32 - 1
MAX_STEPS = 1000
MAX_ROWS = 4096
BATCH = 8
"""Pictures drawn in one network call, unless the request says otherwise."""

BUILTIN = Path(__file__).parent / "builtin"
SYNTAXES = ("plain", "weighted")
_START, _STEPS, _CODEC, _TUNING = 0, 1, 2, 3  # sub-keys of a picture's randomness
_MOST_WITHIN = 50  # steps: more show nothing more
_EXACT = 200  # steps of the walks that tuned steps are fitted to


@dataclass(frozen=True, kw_only=True)
class Request:
    """One picture, fully said: the same object for the command line, the tests and the metadata of a PNG.

    Args:
        prompt: what to draw.
        negative: what to move away from, in the place of the learned null; empty for none.
        syntax: of prompt and negative, a name of ``SYNTAXES``: plain words, or weighted ones that may also be long.
        seed: of this picture, 0 to 2^32 - 1; with the other fields it decides the picture.
        steps: of the grid; how often a step asks the network is the sampler's business.
        sampler: a name of ``SAMPLERS``.
        grid: as ``spacing_of`` reads it: a name of ``SPACINGS``, sections, or times.
        guidance_scale: 1 is none.
        guidance_interval: log-SNR between which guidance acts; None is everywhere.
        steering: the kind of guidance, and what else leads the way.
        eta: for DDIM, how much fresh noise.
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        precision: inside the network, ``float32`` or ``bf16``.
        edit: the picture that it starts from, and what is done to it; None starts from noise.
        blend: where between two pictures or prompts it is; None is at this end.
        tile: whether right meets left and bottom meets top, for four times the work.
        row: which of ``rows`` pictures drawn together this is; only rounding depends on it.
        rows: how many pictures were drawn together.
    """

    prompt: str
    negative: str = ""
    syntax: str = "plain"
    seed: int
    steps: int
    sampler: str
    grid: str
    guidance_scale: float
    guidance_interval: tuple[float, float] | None = None
    steering: Steering = field(default_factory=Steering)
    eta: float = 0.0
    width: int
    height: int
    precision: str = "float32"
    edit: Edit | None = None
    blend: Blend | None = None
    tile: bool = False
    row: int = 0
    rows: int = 1


class Settings(TypedDict, total=False):
    """The fields of a ``Request`` that a call may leave to the model; None leaves them too."""

    negative: str | None
    syntax: str | None
    steps: int | None
    sampler: str | None
    grid: str | None
    guidance_scale: float | None
    guidance_interval: tuple[float, float] | None
    steering: Steering | None
    eta: float | None
    width: int | None
    height: int | None
    precision: str | None
    edit: Edit | None
    blend: Blend | None
    tile: bool | None


class Editing(Settings, total=False):
    """What an edit may be told beside, with the fields of ``Edit``; None leaves its default."""

    mask: Given | None
    strength: float | None
    resample: int | None
    extend: tuple[int, int, int, int] | None
    fit: str | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Preview:
    """A look at pictures while they are drawn.

    Args:
        index: steps done.
        steps: steps in all.
        belief: what is believed of the clean pictures, in the space of the process.
        decode: makes pictures of it; nothing is decoded that nobody looks at.
    """

    index: int
    steps: int
    belief: Float[Tensor, "b *site"]
    decode: Callable[[Tensor], Float[Tensor, "b c h w"]]

    @property
    def rows(self) -> int:
        """How many pictures these are."""
        return self.belief.shape[0]

    @cached_property
    def pictures(self) -> Float[Tensor, "b c h w"]:
        """What is believed of the clean pictures, in [-1, 1]."""
        return self.decode(self.belief)


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """A picture.

    Args:
        request: what was drawn, as it was drawn.
        picture: the picture.
        seconds: of the batch that it was drawn in, divided by its number of pictures.
        warnings: what the user should know, such as a prompt that was cut.
    """

    request: Request
    picture: Image.Image
    seconds: float
    warnings: tuple[str, ...]


class Pipeline:
    """A model on a device, ready to draw.

    Args:
        model: what draws.
        name: where it came from, for metadata.
        device: "auto", "cpu", "cuda", ...
        precision: inside networks. "auto" is bf16 on a CPU that multiplies it natively, where pictures do not depend on
            their neighbours in a batch at all, and else float32, where they do by less than 1/255.

    Raises:
        ValueError: if the device or precision does not exist.
    """

    def __init__(self, model: Model, *, name: str = "", device: str = "auto", precision: str = "auto") -> None:
        self.model = model
        self.name = name
        self.device = resolve_device(device)
        is_measured = self.device.type == "cpu"  # whether bf16 leaves neighbours alone; elsewhere nobody has looked yet
        wanted = precision if is_measured or precision != "auto" else "float32"
        self.precision = resolve_precision(wanted, self.device)
        model.denoiser.to(self.device)
        place_codec(model, self.device)
        self._codec = in_tiles(model.codec) if isinstance(model.codec, nn.Module) else model.codec
        lay_out(cast("nn.Module", model.denoiser.network), self.device, self.precision)
        self._replayed = _with_network(model, Replayed) if self.device.type == "cuda" else None
        self._through: Model | None = None
        self._weak: dict[str, Model] = {}
        self._classifiers: dict[str, Classifier] = {}

    def through(self, ask: Ask, reader: Read = read_by) -> Self:
        """The same pipeline, whose network is asked by somebody else: together with what others ask, for instance.

        Args:
            ask: given the network and what it is asked, its answer in float32. It sees to the precision inside the
                network, and that the network is never called with one row.
            reader: given the network and a condition, the condition with its words read.
        """
        asked = copy.copy(self)
        drawing = self._replayed if self._replayed is not None and is_on("replayed_graphs") else self.model
        asked._through = _with_network(drawing, lambda network: Wrapped(network, ask, reader))
        return asked

    def request(
        self,
        prompt: str,
        *,
        seed: int | None = None,
        **settings: Unpack[Settings],
    ) -> Request:
        """A checked request; what is not said takes the model's own default.

        Args:
            prompt: what to draw.
            seed: 0 to 2^32 - 1; None draws a fresh one.
            settings: the other fields of ``Request``; None is the default.

        Raises:
            ValueError: if the prompt is empty, a name is unknown or a number is out of its range.
        """
        defaults = self.model.config.sampling
        size = self.model.config.size
        base = Request(
            prompt=prompt,
            seed=secrets.randbelow(MAX_SEED + 1) if seed is None else seed,
            steps=defaults.steps,
            sampler=defaults.sampler,
            grid=defaults.grid,
            guidance_scale=defaults.guidance_scale if self._is_guidable else 1.0,
            guidance_interval=defaults.guidance_interval,
            eta=defaults.eta,
            width=size,
            height=size,
            precision=self.precision,
        )
        said = {key: value for key, value in settings.items() if value is not None}
        if said.get("precision") == "auto":
            said["precision"] = self.precision
        if TUNED in (said.get("sampler"), said.get("grid")):
            said = {"sampler": TUNED, "grid": TUNED, **said}
        elif "grid" in said and "steps" not in said:
            said["steps"] = steps_of(spacing_of(str(said["grid"]))) or defaults.steps
        wanted = replace(base, **said)
        if not said.keys() & {"sampler", "grid", "eta"} and _is_from_noise(wanted):
            tuned = replace(wanted, sampler=TUNED, grid=TUNED)
            wanted = wanted if self._tuned(tuned) is None else tuned
        return self._with_weights(self.check(wanted))

    def check(self, request: Request) -> Request:
        """The request, if this model can draw it.

        Raises:
            ValueError: if it cannot, saying what was given, what is expected and what to do.
        """
        choose(request.syntax, SYNTAXES, "prompt syntax")
        texts = [request.prompt, request.negative]
        if request.syntax == "weighted":
            texts = ["".join(piece for piece, _ in weighted(text)) for text in texts]
        if not texts[0].strip():
            raise ValueError('the prompt is empty; say what to draw, for instance "a red heart"')
        if not _is_whole(request.seed) or not 0 <= request.seed <= MAX_SEED:
            raise ValueError(f"seed must be a whole number from 0 to {MAX_SEED}, got {request.seed}")
        if not _is_whole(request.steps) or not 1 <= request.steps <= MAX_STEPS:
            raise ValueError(f"steps must be a whole number from 1 to {MAX_STEPS}, got {request.steps}")
        if TUNED in (request.sampler, request.grid):
            self._check_tuned(request)
        else:
            choose(request.sampler, SAMPLERS, "sampler")
            self._check_grid(request.grid, request.steps)
        if self.model.config.process == "binomial" and request.sampler != "ancestral":
            raise ValueError(f"this model draws bits, which {request.sampler} cannot; use --sampler ancestral")
        self._check_guidance(request)
        DDIM(eta=request.eta)
        if request.eta and request.sampler != "ddim":
            raise ValueError(f"eta belongs to the sampler ddim, got sampler {request.sampler} with eta {request.eta}")
        self._check_edit(request)
        self._check_size(request.width, request.height, _remedy(request.edit))
        if not 0 <= request.row < request.rows <= MAX_ROWS:
            raise ValueError(f"row must be below rows, got {request.row} of {request.rows}")
        resolve_precision(request.precision, self.device)
        return request

    @property
    def _is_guidable(self) -> bool:
        """Whether the model knows what it would draw without words, and draws anything else with them."""
        return self.model.config.condition_drop > 0 and is_told_words(self.model.config)

    def _check_guidance(self, request: Request) -> None:
        if not math.isfinite(request.guidance_scale) or abs(request.guidance_scale) > 100:
            raise ValueError(f"guidance must be a number between -100 and 100, got {request.guidance_scale}")
        if request.guidance_scale != 1 and self.model.config.condition_drop == 0 and not request.steering.weak:
            raise ValueError("this model was trained without dropped captions and cannot be guided; use --guidance 1")
        interval = request.guidance_interval
        if interval is not None and (len(interval) != 2 or not interval[0] < interval[1]):
            raise ValueError(f"a guidance interval runs from low to high log-SNR, got {interval}; for instance -4,4")
        weak, classifier = self._others(request.steering)
        require_fit(self.model, request.steering, weak=weak, classifier=classifier)
        if classifier is not None:
            classifier.class_of(request.prompt)

    def _others(self, steering: Steering) -> tuple[Model | None, Classifier | None]:
        """The weak model and the classifier that are named, each loaded once."""
        if steering.weak and steering.weak not in self._weak:
            weak = load_model(locate_model(steering.weak))
            weak.denoiser.to(self.device)
            self._weak[steering.weak] = weak
        if steering.classifier and steering.classifier not in self._classifiers:
            classifier = load_classifier(locate_model(steering.classifier))
            classifier.network.to(self.device)
            self._classifiers[steering.classifier] = classifier
        return self._weak.get(steering.weak), self._classifiers.get(steering.classifier)

    def _with_weights(self, request: Request) -> Request:
        """The request with the checksums of the models that it names."""
        weights = tuple("" if other is None else other.checksum for other in self._others(request.steering))
        return replace(request, steering=replace(request.steering, weights=weights))

    def _tuned(self, request: Request) -> Tuned | None:
        """The steps fitted to the model that a request asks for, or that there are for its number of steps."""
        if request.sampler != TUNED:
            return None
        return next((steps for steps in self.model.tuned if steps.num_steps == request.steps), None)

    def _check_tuned(self, request: Request) -> None:
        if request.sampler != request.grid:
            raise ValueError(
                f"tuned steps have their own grid, got sampler {request.sampler} and grid {request.grid}; leave one out"
            )
        if self._tuned(request) is None:
            counts = ", ".join(str(steps.num_steps) for steps in self.model.tuned)
            told = f"has them for {counts}" if counts else "has none; unstir tune makes them"
            raise ValueError(f"there are no {request.steps} tuned steps: this model {told}")
        if not _is_from_noise(request):
            raise ValueError("tuned steps start in noise and are walked once; take another sampler for this edit")

    def _check_grid(self, grid: str, steps: int) -> None:
        spacing, schedule = spacing_of(grid), self.model.process.schedule
        own = steps_of(spacing)
        if own not in (None, steps):
            raise ValueError(f"the grid {grid!r} has {own} steps, got {steps}; leave --steps out or take another grid")
        if isinstance(schedule, Tabulated) and steps > schedule.num_steps:
            raise ValueError(
                f"this model's chain has {schedule.num_steps} steps, got {steps}; ask for at most as many steps"
            )
        if grid not in SPACINGS:
            spacing(schedule, steps)

    def _check_edit(self, request: Request) -> None:
        edit, blend = request.edit, request.blend
        if blend is None:
            return
        if edit is not None and (edit.mask is not None or edit.is_extended or edit.strength != 1):
            raise ValueError("a way between pictures is one of whole pictures; leave mask, extend and strength out")
        if request.steering.classifier:
            raise ValueError("a classifier knows one class, and a way between two has none; leave it out")
        if blend.picture is None:
            if not blend.prompt.strip():
                raise ValueError("there is nothing at the other end of the way; give a second picture or prompt")
            if edit is not None:
                raise ValueError("a way between prompts starts from noise; give a second picture, or none")
            return
        if edit is None:
            raise ValueError("a way between pictures has two; give the first as the edit's source")
        if self.model.config.process == "binomial":
            raise ValueError("this model draws bits, between which there is no way; give two prompts without pictures")
        if SAMPLERS[request.sampler]().order == 0 or request.eta:
            raise ValueError(
                f"a way between pictures is walked without fresh noise, which {request.sampler} adds; take ddim"
            )

    def _check_size(self, width: int, height: int, remedy: str) -> None:
        size, multiple = self.model.config.size, self.multiple
        network: Any = self.model.denoiser.network
        if network.is_one_size and (width, height) != (size, size):
            raise ValueError(f"this model draws {size}x{size} pictures, got {width}x{height}; {remedy}")
        if width < multiple or height < multiple or width % multiple or height % multiple:
            raise ValueError(f"width and height must be multiples of {multiple} for this model, got {width}x{height}")
        if width * height > 64 * size * size:
            raise ValueError(f"{width}x{height} is more than 64 times the {size}x{size} that this model was trained on")

    @property
    def multiple(self) -> int:
        """What width and height of a picture must be multiples of."""
        network: Any = self.model.denoiser.network
        return network.multiple * self.model.config.codec.downsampling

    def run(
        self, requests: Sequence[Request], *, batch: int = BATCH, album: Album | None = None
    ) -> Iterator[Preview | Result]:
        """Draw pictures, in the order of the requests; those that differ only in words and seed are drawn together.

        Args:
            requests: as ``request`` makes them. One that says ``rows`` > 1 is drawn alone, at that batch shape, so that
                a picture that was drawn in company comes out the same to the last bit.
            batch: most pictures drawn together.
            album: the pictures that the requests name.

        Yields:
            Previews after every step, and the results of each batch when it is done.

        Raises:
            ValueError: as ``check``, or if a picture that a request names is missing or of another size.
        """
        album = album or {}
        if not 1 <= batch <= MAX_ROWS:
            raise ValueError(f"batch must be from 1 to {MAX_ROWS}, got {batch}")
        for request in requests:
            self.check(request)
            _canvases(request, album)
        for group in _groups(requests, batch, self._shared):
            if len(group) == 1 and group[0].rows > 1:
                yield from self._draw_alone(group[0], album)
            else:
                yield from self._draw([replace(r, row=i, rows=len(group)) for i, r in enumerate(group)], album)

    def sample(
        self,
        prompt: str | Sequence[str],
        *,
        n: int = 1,
        seed: int | None = None,
        batch: int = BATCH,
        **settings: Unpack[Settings],
    ) -> list[Image.Image]:
        """Pictures of a prompt, or of several, prompt by prompt.

        Args:
            prompt: what to draw.
            n: pictures a prompt.
            seed: of the first picture; picture i has seed + i.
            batch: most pictures drawn together; no picture depends on it.
            settings: fields of ``Request`` by name.

        Raises:
            ValueError: as ``request``.
        """
        requests = self.requests([prompt] if isinstance(prompt, str) else prompt, n=n, seed=seed, **settings)
        return [item.picture for item in self.run(requests, batch=batch) if isinstance(item, Result)]

    def requests(
        self, prompts: Sequence[str], *, n: int = 1, seed: int | None = None, **settings: Unpack[Settings]
    ) -> list[Request]:
        """The requests of a whole call: picture k of prompt j has seed + j n + k.

        Raises:
            ValueError: as ``request``, or if there is no prompt, n is below 1, or the last seed is out of range.
        """
        if not prompts:
            raise ValueError('there is no prompt; say what to draw, for instance "a red heart"')
        if n < 1:
            raise ValueError(f"the number of pictures must be at least 1, got {n}")
        total = n * len(prompts)
        first = secrets.randbelow(MAX_SEED + 2 - total) if seed is None else seed
        if not _is_whole(first) or not 0 <= first <= MAX_SEED + 1 - total:
            raise ValueError(
                f"seed must be a whole number from 0 to {MAX_SEED + 1 - total} for {total} pictures, got {first}"
            )
        return [self.request(p, seed=first + j * n + k, **settings) for j, p in enumerate(prompts) for k in range(n)]

    def edit(
        self,
        picture: Given,
        prompt: str,
        *,
        n: int = 1,
        seed: int | None = None,
        batch: int = BATCH,
        **settings: Unpack[Editing],
    ) -> list[Image.Image]:
        """A picture drawn anew from one that there is: some of it, or all.

        Args:
            picture: an image, or the file that holds it.
            prompt: what to draw.
            n: pictures to draw.
            seed: of the first; picture i has seed + i.
            batch: most pictures drawn together; none depends on it.
            settings: fields of ``Request`` and of ``Edit`` by name. Without a ``strength`` it is 1 where only a part is
                painted (``mask``, ``extend``), else ``STRENGTH``. Outside of what is painted the pixels stay the same.

        Raises:
            FileNotFoundError: if there is no such picture or mask.
            ValueError: as ``edit_requests``.
        """
        requests, album = self.edit_requests(picture, prompt, n=n, seed=seed, **settings)
        return [item.picture for item in self.run(requests, batch=batch, album=album) if isinstance(item, Result)]

    def edit_requests(
        self, picture: Given, prompt: str, *, n: int = 1, seed: int | None = None, **settings: Unpack[Editing]
    ) -> tuple[list[Request], Album]:
        """The requests of an edit, and the pictures that they name.

        Raises:
            ValueError: as ``requests``; if a file is no picture or a damaged one, the mask has another size than the
                picture, or the model cannot draw the picture's size.
        """
        rest, own = _split(settings)
        edit, album = asked(picture, **own)
        if not edit.fit:
            size = canvas_size(edit, album)
            rest["width"], rest["height"] = rest.get("width") or size[0], rest.get("height") or size[1]
        rest["edit"] = edit
        requests = self.requests([prompt], n=n, seed=seed, **rest)
        _canvases(requests[0], album)
        return requests, album

    def between(
        self,
        prompt: str,
        to_prompt: str = "",
        *,
        pictures: tuple[Given, Given] | None = None,
        frames: int = 8,
        seed: int | None = None,
        **settings: Unpack[Editing],
    ) -> list[Image.Image]:
        """The way from one prompt to another, from one picture to another, or from one of both to the other.

        Args:
            prompt: of the first.
            to_prompt: of the last; empty for the same.
            pictures: the first and the last; None draws both ends from noise, the same for all frames.
            frames: pictures on the way, both ends included.
            seed: of all of them.
            settings: fields of ``Request`` by name, and ``fit``. Between pictures the defaults are ``ddim``,
                ``trailing`` and no guidance: the ends are encoded into noise, and come out of it best so.

        Raises:
            FileNotFoundError: if there is no such picture.
            ValueError: as ``between_requests``.
        """
        requests, album = self.between_requests(
            prompt, to_prompt, pictures=pictures, frames=frames, seed=seed, **settings
        )
        return [item.picture for item in self.run(requests, album=album) if isinstance(item, Result)]

    def between_requests(
        self,
        prompt: str,
        to_prompt: str = "",
        *,
        pictures: tuple[Given, Given] | None = None,
        frames: int = 8,
        seed: int | None = None,
        **settings: Unpack[Editing],
    ) -> tuple[list[Request], Album]:
        """The requests of a way, and the pictures that they name.

        Raises:
            ValueError: as ``requests``; if frames < 2, there is no other end, the pictures differ in size, or the model
                cannot draw it.
        """
        rest, own = _split(settings)
        blend, album = Blend(share=0.0, prompt=to_prompt), cast("Album", {})
        if pictures is None and own:
            raise ValueError(f"{min(own)} belongs to pictures, and there is none; give two, or leave it out")
        if pictures is not None:
            own["strength"] = own.get("strength", 1.0)
            edit, album = asked(pictures[0], **own)
            blend = replace(blend, picture=referred(read_picture(pictures[1]), pictures[1], album))
            if not edit.fit:
                rest["width"], rest["height"] = canvas_size(edit, album)
            rest = cast(
                "Settings", {"sampler": "ddim", "grid": "trailing", "guidance_scale": 1.0, **rest, "edit": edit}
            )
        rest["blend"] = blend
        first = self.requests([prompt], seed=seed, **rest)[0]
        _canvases(first, album)
        return [replace(first, blend=replace(blend, share=share)) for share in shares(frames)], album

    def within(
        self, requests: Sequence[Request], seconds: float, *, batch: int = BATCH, album: Album | None = None
    ) -> list[Request]:
        """The requests with a solver and as many steps as can be drawn in that time, all together.

        One network call is measured at the shape that they are drawn in (a first one is for warming up), and counted
        in. Tuned steps are taken where there are some that fit and not twice as many do, for a solver of second order
        errs a quarter as much with those; else the model's own sampler, with at most 50 steps. A single step is always
        taken.

        Args:
            requests: as ``request`` makes them.
            seconds: for all of them.
            batch: as in ``run``.
            album: as in ``run``.

        Raises:
            ValueError: if there are no seconds.
        """
        if not 0 < seconds < math.inf:
            raise ValueError(f"pictures are drawn within some seconds, got {seconds}; for instance --within 2")
        started = time.perf_counter()
        groups = list(_groups(requests, batch, self._shared))
        group = groups[0]
        noise = KeyedNoise.from_seeds([request.seed for request in group])
        way, walked, _ = self._way(group, _canvases(group[0], album or {}), noise)
        level = walked.schedule.at(torch.tensor(way.times[0], dtype=torch.float64))
        call = 0.0
        for _ in range(2):
            before = time.perf_counter()
            with torch.no_grad():
                float(way.denoise(way.x, level).x0.sum())  # a device is waited for
            call = time.perf_counter() - before
        left = seconds - (time.perf_counter() - started)
        steps = max(1, min(_MOST_WITHIN, int(left / (call * len(groups)))))
        tuned = [own.num_steps for own in self.model.tuned if own.num_steps <= steps < 2 * own.num_steps]
        defaults = self.model.config.sampling
        if tuned and all(_is_from_noise(request) for request in requests):
            chosen = [replace(request, steps=max(tuned), sampler=TUNED, grid=TUNED) for request in requests]
        else:
            grid = defaults.grid if steps_of(spacing_of(defaults.grid)) is None else "trailing"
            chosen = [
                replace(request, steps=steps, sampler=defaults.sampler, grid=grid)
                if request.sampler == TUNED or request.blend is None
                else replace(request, steps=steps)
                for request in requests
            ]
        return [self.check(request) for request in chosen]

    def tune(
        self,
        num_steps: int,
        prompts: Sequence[str],
        *,
        seed: int = 0,
        guidance_scale: float | None = None,
        iterations: int = 200,
        advance: Callable[[int, int], None] | None = None,
    ) -> Tuned:
        """So many steps fitted to this model, on pictures of these prompts; see ``unstir.diffusion.tuning``.

        Args:
            num_steps: of the walk.
            prompts: one picture each.
            seed: of the first picture; they are other pictures than those of this seed without tuning.
            guidance_scale: that the steps are for; None is the model's own.
            iterations: of the fit.
            advance: told how many are done, and of how many.

        Raises:
            ValueError: as ``request``; if the model draws bits.
        """
        from unstir.diffusion.tuning import path, tune

        if self.model.config.process == "binomial":
            raise ValueError("this model draws bits, whose steps are no integration; there is nothing to tune")
        requests = [
            self.request(
                p, seed=seed + i, steps=num_steps, sampler="ddim", grid="trailing", guidance_scale=guidance_scale
            )
            for i, p in enumerate(prompts)
        ]
        way, walked, _ = self._way(requests, (), KeyedNoise.from_seeds([r.seed for r in requests]).at(_TUNING))
        process = cast("GaussianProcess", walked)
        _, high = usual_range(process.schedule)
        goal = path(way.denoise, process, way.x, num_steps=_EXACT, high=high)
        return tune(
            way.denoise, process, way.x, num_steps, exact_path=goal, high=high, iterations=iterations, advance=advance
        )

    def _draw_alone(self, request: Request, album: Album) -> Iterator[Preview | Result]:
        """One picture at the batch shape that it was once drawn in, with copies of itself for company."""
        results: list[Result] = []
        for item in self._draw([request] * request.rows, album):
            if isinstance(item, Preview):
                yield replace(item, belief=item.belief[request.row : request.row + 1])
            else:
                results.append(item)
        yield results[request.row]

    def _draw(self, requests: Sequence[Request], album: Album) -> Iterator[Preview | Result]:
        started = time.perf_counter()
        ask = requests[0]
        canvases = _canvases(ask, album)
        if ask.edit is not None and (canvases[0].is_kept or ask.edit.strength == 0):
            yield from _untouched(requests, canvases[0])
            return
        noise = KeyedNoise.from_seeds([request.seed for request in requests])
        way, walked, cuts = self._way(requests, canvases, noise)
        x = way.x
        for step in sample(way.sampler, way.denoise, walked, way.x, way.times, noise.at(_STEPS)):
            x = step.x
            if step.belief is not None and step.index < ask.steps:
                yield Preview(index=step.index, steps=ask.steps, belief=step.belief.x0, decode=self._decode)
        pictures = self._decode(x)
        if not bool(torch.isfinite(pictures).all()):
            raise ArithmeticError("the picture is not finite; try --precision float32, fewer steps or less guidance")
        drawn = to_bytes(pictures).cpu()
        if ask.edit is not None and ask.blend is None:
            drawn = canvases[0].restored(drawn)
        seconds = (time.perf_counter() - started) / len(requests)
        for request, picture in zip(requests, drawn, strict=True):
            longer = "" if request.syntax == "weighted" else "; --prompt-syntax weighted reads longer ones"
            told = [f"{cut}{longer}" for cut in cuts if cut.prompt in _words(request)]
            if not is_told_words(self.model.config):
                told = ["this model is told no words: prompts decide nothing, nor does guidance"]
            if request.negative and request.guidance_scale == 1:
                told.append("the negative prompt has no influence at guidance 1")
            if request.steering.needs_scale and request.guidance_scale == 1:
                told.append("the kind of guidance has no influence at guidance 1")
            warnings = tuple(dict.fromkeys(told))
            yield Result(request=request, picture=to_image(picture), seconds=seconds, warnings=warnings)

    def _way(
        self, requests: Sequence[Request], canvases: Sequence[Canvas], noise: KeyedNoise
    ) -> tuple[Way, Process, list[Cut]]:
        """From where, over which times and in which belief these are drawn; the process that is walked; cut prompts."""
        ask, config, process = requests[0], self.model.config, self.model.process
        edit, blend, scale = ask.edit, ask.blend, config.codec.downsampling
        denoise, walked, cuts = self._denoiser(requests)
        share = torch.tensor([0.0 if r.blend is None else r.blend.share for r in requests], dtype=torch.float64)
        if blend is not None and blend.prompt:
            other, _, more = self._denoiser([replace(r, prompt=blend.prompt) for r in requests])
            denoise, cuts = between(process, denoise, other, share), cuts + more
        like = torch.zeros(len(requests), config.codec.latent_channels, ask.height // scale, ask.width // scale)
        tuned = self._tuned(ask)
        if tuned is None:
            spacing = spacing_of(ask.grid)
            times = (spacing if edit is None else below(spacing, edit.strength))(process.schedule, ask.steps)
        else:
            times = tuned.times
        way = Way(
            x=process.prior(like.to(self.device)).sample(noise.at(_START)) * _size_at(process, times[0]),
            times=times,
            denoise=seamless(denoise) if ask.tile else denoise,
            sampler=tuned or (DDIM(eta=ask.eta) if ask.sampler == "ddim" else SAMPLERS[ask.sampler]()),
        )
        if edit is not None and blend is None:
            way = way.upon(canvases[0], edit, process, self._encode(canvases, len(requests), noise), noise.at(_START))
        elif edit is not None:
            first, last = self._ends(ask, canvases, times)
            way = replace(way, x=slerp(first.expand_as(way.x), last.expand_as(way.x), share))
        return way, walked, cuts

    def _encode(self, canvases: Sequence[Canvas], rows: int, noise: KeyedNoise) -> Tensor:
        units = torch.cat([canvas.units() for canvas in canvases]).expand(rows, -1, -1, -1)
        with torch.no_grad(), autocast(self.device, "float32"):
            return self._codec.encode(units.to(self.device), noise.at(_CODEC))

    def _ends(self, ask: Request, canvases: Sequence[Canvas], times: Sequence[float]) -> tuple[Tensor, Tensor]:
        """The noises that two pictures come from, each under its prompt; always encoded as a batch of these two."""
        assert ask.blend is not None
        two = [replace(ask, blend=None), replace(ask, prompt=ask.blend.prompt or ask.prompt, blend=None)]
        denoise, _, _ = self._denoiser(two)
        denoise = seamless(denoise) if ask.tile else denoise
        x = self._encode(canvases, 2, KeyedNoise.from_seeds([ask.seed, ask.seed]))
        for step in encode(denoise, cast("Any", self.model.process), x, times[::-1]):
            x = step.x
        return x[:1], x[1:]

    def _denoiser(self, requests: Sequence[Request]) -> tuple[Denoiser, Process, list[Cut]]:
        model, ask = self.model, requests[0]
        if self._through is not None:
            model = self._through
        elif self._replayed is not None and is_on("replayed_graphs"):
            model = self._replayed
        precision = resolve_precision(ask.precision, self.device)
        with autocast(self.device, precision):
            told, cuts = self._told(requests)
            inner = denoiser_of(model, ask.steering, told)

        def denoise(x_t: X, level: Level, previous: Estimate | None = None) -> Estimate:
            # What is switched for a while must not stay so while somebody else, elsewhere, is asked.
            with autocast(self.device, precision) if self._through is None else nullcontext():
                return inner(x_t, level, previous)

        return denoise, process_of(model, ask.steering, told), cuts

    def _told(self, requests: Sequence[Request]) -> tuple[Told, list[Cut]]:
        model, ask = self.model, requests[0]
        is_guided = ask.guidance_scale != 1
        num_parts = self._num_parts(ask)
        strong, cuts = self._read(model, ask, [request.prompt for request in requests], num_parts)
        told = Told(
            strong=strong,
            scale=ask.guidance_scale,
            interval=ask.guidance_interval,
            is_tilted=ask.sampler in TILTED,
        )
        if ask.negative and is_guided:
            weak, more = self._read(model, ask, [request.negative for request in requests], num_parts)
            told, cuts = replace(told, weak=weak), cuts + more
        other, classifier = self._others(ask.steering)
        if other is not None and is_guided:
            words, _ = self._read(other, ask, [request.negative or request.prompt for request in requests], num_parts)
            told = replace(told, other=other.denoiser.given(words))
        if classifier is not None:
            classes = torch.tensor([classifier.class_of(request.prompt) for request in requests]).to(self.device)

            def log_likelihood(x_t: X, level: Level) -> Float[Tensor, "b"]:
                return classifier.log_prob(x_t, level, classes)

            told = replace(told, log_likelihood=log_likelihood)
        return told, cuts

    def _read(self, model: Model, ask: Request, texts: Sequence[str], num_parts: int) -> tuple[Condition, list[Cut]]:
        """What a model is told by texts in the syntax of a request, on the device."""
        if ask.syntax == "weighted":
            read, cuts = model.reader.read_weighted(texts, num_parts=num_parts)
        else:
            read, cuts = model.reader.read(texts)
        return read.map(lambda tensor: tensor.to(self.device)), cuts

    def _num_parts(self, request: Request) -> int:
        """The parts that its longest text is read in; its others are padded to as many."""
        if request.syntax == "plain":
            return 1
        return max(self.model.reader.num_parts(text) for text in (request.prompt, request.negative))

    def _shared(self, request: Request) -> tuple[Request, int]:
        """What requests must have in common to be drawn together."""
        # Whether there is a negative prompt decides which network calls are made, so it is part of the settings; and
        # the number of parts decides their shape, on which rounding depends.
        blend = None if request.blend is None else replace(request.blend, share=0.0)
        alike = replace(request, prompt="", negative="x" if request.negative else "", seed=0, blend=blend)
        return alike, self._num_parts(request)

    def _decode(self, latents: Tensor) -> Tensor:
        with torch.no_grad(), autocast(self.device, "float32"):
            return self._codec.decode(latents).float()


def load(name: str | Path = "builtin", *, device: str = "auto", precision: str = "auto") -> Pipeline:
    """A model ready to draw: the built-in one, a model folder, or a run folder with its last model.

    Args:
        name: "builtin" or a path.
        device: "auto", "cpu", "cuda", ...
        precision: "auto", "float32" or "bf16".

    Raises:
        FileNotFoundError: if there is no such model.
        ValueError: if it is damaged or foreign, or the device does not exist.
    """
    path = locate_model(name)
    return Pipeline(load_model(path), name=str(name), device=device, precision=precision)


def locate_model(name: str | Path) -> Path:
    """The folder of a model: of the built-in one, of a model folder, of a run folder's ``model``."""
    if str(name) == "builtin":
        return BUILTIN
    path = Path(name)
    return path / "model" if not (path / "unstir.json").exists() and (path / "model" / "unstir.json").exists() else path


def _with_network(model: Model, wrap: Callable[[nn.Module], nn.Module]) -> Model:
    """The model with something around its network; for drawing, not for saving."""
    inner = model.denoiser
    network = cast("Network[Condition]", wrap(cast("nn.Module", inner.network)))
    denoiser = NetworkDenoiser(
        network, inner.process, inner.parameterization, is_self_conditioned=inner.is_self_conditioned
    )
    return replace(model, denoiser=denoiser)


def _size_at(process: Process, t: float) -> float:
    """How large pure noise at time t is, in units of that at t = 1, where all grids but legacy ones start.

    The prior's size there is that of spoiled data of unit variance; nothing of the data is in it, which is the flaw of
    grids that start below t = 1.
    """
    if t == 1 or not isinstance(process, GaussianProcess):
        return 1.0
    ends = process.schedule.at(torch.tensor([t, 1.0], dtype=torch.float64))
    here, end = floats(torch.hypot(ends.alpha, ends.sigma))
    return here / end


def to_image(pixels: UInt8[Tensor, "3 h w"]) -> Image.Image:
    """A picture of its pixels."""
    return Image.fromarray(numpy.ascontiguousarray(pixels.numpy().transpose(1, 2, 0)))


def _canvases(request: Request, album: Album) -> tuple[Canvas, ...]:
    """What a request is drawn upon: nothing, a picture, or the two that it lies between."""
    edit, blend = request.edit, request.blend
    if edit is None:
        return ()
    ends = [edit] if blend is None or blend.picture is None else [edit, replace(edit, source=blend.picture)]
    return tuple(canvas_of(end, album, request.width, request.height) for end in ends)


def _untouched(requests: Sequence[Request], canvas: Canvas) -> Iterator[Result]:
    """The pictures that come out as they went in."""
    told = "the mask paints nothing" if canvas.is_kept else "at strength 0 nothing is drawn"
    for request in requests:
        warnings = (f"{told}: the picture is as it was",)
        yield Result(request=request, picture=to_image(canvas.pixels), seconds=0.0, warnings=warnings)


def _words(request: Request) -> tuple[str, ...]:
    return request.prompt, request.negative, "" if request.blend is None else request.blend.prompt


def _split(settings: Editing) -> tuple[Settings, Any]:
    """The fields of a request, and those of an edit that are said."""
    own = {"mask", "strength", "resample", "extend", "fit"}
    said = {key: value for key, value in settings.items() if value is not None}
    rest = {key: value for key, value in said.items() if key not in own}
    return cast("Settings", rest), {key: value for key, value in said.items() if key in own}


def _is_from_noise(request: Request) -> bool:
    """Whether its way starts in pure noise and walks every step once."""
    edit = request.edit
    return edit is None or (edit.strength == 1 and edit.resample == 1 and request.blend is None)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _remedy(edit: Edit | None) -> str:
    """What to do about a size that the model does not draw."""
    if edit is None:
        return "leave --size out"
    if edit.is_extended:
        return "extend the picture by as much as is missing"
    return "bring the picture to that with --fit crop or --fit pad"


def _groups(requests: Sequence[Request], batch: int, shared: Callable[[Request], object]) -> Iterator[list[Request]]:
    group: list[Request] = []
    for request in requests:
        is_alone = request.rows > 1
        if group and (is_alone or len(group) == batch or group[0].rows > 1 or shared(group[0]) != shared(request)):
            yield group
            group = []
        group.append(request)
    if group:
        yield group
