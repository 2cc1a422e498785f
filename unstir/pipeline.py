"""Pipeline: from requests to pictures; the only place where words, numbers and pictures meet.

Knows: what a request may ask for, how requests are drawn together.
Does not know: command lines, files of pictures, training.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from unstir.config import choose
from unstir.data.transforms import to_bytes
from unstir.device import autocast, resolve_device, resolve_precision
from unstir.diffusion.denoiser import Denoiser
from unstir.diffusion.guidance import clip, corrected, extrapolate, guided
from unstir.diffusion.noise import KeyedNoise
from unstir.diffusion.process import Estimate
from unstir.diffusion.samplers import DDIM, SAMPLERS, sample
from unstir.diffusion.schedule import Level
from unstir.diffusion.spacing import SPACINGS
from unstir.model import Model, load_model
from unstir.typing import X

MAX_SEED = 2**32 - 1
MAX_STEPS = 1000
MAX_ROWS = 4096
BATCH = 8
"""Pictures drawn in one network call, unless the request says otherwise."""

BUILTIN = Path(__file__).parent / "builtin"
_START, _STEPS = 0, 1  # sub-keys of a picture's randomness


@dataclass(frozen=True, kw_only=True)
class Request:
    """One picture, fully said: the same object for the command line, the tests and the metadata of a PNG.

    Args:
        prompt: what to draw.
        negative: what to move away from, in the place of the learned null; empty for none.
        seed: of this picture, 0 to 2^32 - 1; with the other fields it decides the picture.
        steps: network evaluations.
        sampler: a name of ``SAMPLERS``.
        grid: a name of ``SPACINGS``.
        guidance_scale: 1 is none.
        guidance_interval: log-SNR between which guidance acts; None is everywhere.
        eta: for DDIM, how much fresh noise.
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        precision: inside the network, ``float32`` or ``bf16``.
        row: which of ``rows`` pictures drawn together this is; only rounding depends on it.
        rows: how many pictures were drawn together.
    """

    prompt: str
    negative: str = ""
    seed: int
    steps: int
    sampler: str
    grid: str
    guidance_scale: float
    guidance_interval: tuple[float, float] | None = None
    eta: float = 0.0
    width: int
    height: int
    precision: str = "float32"
    row: int = 0
    rows: int = 1


class Settings(TypedDict, total=False):
    """The fields of a ``Request`` that a call may leave to the model; None leaves them too."""

    negative: str | None
    steps: int | None
    sampler: str | None
    grid: str | None
    guidance_scale: float | None
    guidance_interval: tuple[float, float] | None
    eta: float | None
    width: int | None
    height: int | None
    precision: str | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Preview:
    """A look at pictures while they are drawn.

    Args:
        index: steps done.
        steps: steps in all.
        pictures: what is believed of the clean pictures, in [-1, 1].
    """

    index: int
    steps: int
    pictures: Float[Tensor, "b c h w"]


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
        precision: inside networks. "auto" is float32: pictures then depend on their neighbours in a batch by less than
            1/255, which bf16 does not keep.

    Raises:
        ValueError: if the device or precision does not exist.
    """

    def __init__(self, model: Model, *, name: str = "", device: str = "auto", precision: str = "auto") -> None:
        self.model = model
        self.name = name
        self.device = resolve_device(device)
        self.precision = resolve_precision("float32" if precision == "auto" else precision, self.device)
        model.denoiser.to(self.device)

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
            guidance_scale=defaults.guidance_scale if self.model.config.condition_drop else 1.0,
            guidance_interval=defaults.guidance_interval,
            eta=defaults.eta,
            width=size,
            height=size,
            precision=self.precision,
        )
        said = {key: value for key, value in settings.items() if value is not None}
        if said.get("precision") == "auto":
            said["precision"] = self.precision
        return self.check(replace(base, **said))

    def check(self, request: Request) -> Request:
        """The request, if this model can draw it.

        Raises:
            ValueError: if it cannot, saying what was given, what is expected and what to do.
        """
        if not request.prompt.strip():
            raise ValueError('the prompt is empty; say what to draw, for instance "a red heart"')
        if not _is_whole(request.seed) or not 0 <= request.seed <= MAX_SEED:
            raise ValueError(f"seed must be a whole number from 0 to {MAX_SEED}, got {request.seed}")
        if not _is_whole(request.steps) or not 1 <= request.steps <= MAX_STEPS:
            raise ValueError(f"steps must be a whole number from 1 to {MAX_STEPS}, got {request.steps}")
        choose(request.sampler, SAMPLERS, "sampler")
        choose(request.grid, SPACINGS, "grid")
        if self.model.config.process == "binomial" and request.sampler != "ancestral":
            raise ValueError(f"this model draws bits, which {request.sampler} cannot; use --sampler ancestral")
        if not math.isfinite(request.guidance_scale) or abs(request.guidance_scale) > 100:
            raise ValueError(f"guidance must be a number between -100 and 100, got {request.guidance_scale}")
        if request.guidance_scale != 1 and self.model.config.condition_drop == 0:
            raise ValueError("this model was trained without dropped captions and cannot be guided; use --guidance 1")
        interval = request.guidance_interval
        if interval is not None and (len(interval) != 2 or not interval[0] < interval[1]):
            raise ValueError(f"a guidance interval runs from low to high log-SNR, got {request.guidance_interval}")
        DDIM(eta=request.eta)
        if request.eta and request.sampler != "ddim":
            raise ValueError(f"eta belongs to the sampler ddim, got sampler {request.sampler} with eta {request.eta}")
        self._check_size(request.width, request.height)
        if not 0 <= request.row < request.rows <= MAX_ROWS:
            raise ValueError(f"row must be below rows, got {request.row} of {request.rows}")
        resolve_precision(request.precision, self.device)
        return request

    def _check_size(self, width: int, height: int) -> None:
        size, multiple = self.model.config.size, self.multiple
        network: Any = self.model.denoiser.network
        if network.is_one_size and (width, height) != (size, size):
            raise ValueError(f"this model draws {size}x{size} pictures, got {width}x{height}; leave --size out")
        if width < multiple or height < multiple or width % multiple or height % multiple:
            raise ValueError(f"width and height must be multiples of {multiple} for this model, got {width}x{height}")
        if width * height > 64 * size * size:
            raise ValueError(f"{width}x{height} is more than 64 times the {size}x{size} that this model was trained on")

    @property
    def multiple(self) -> int:
        """What width and height of a picture must be multiples of."""
        network: Any = self.model.denoiser.network
        return network.multiple * self.model.config.codec.downsampling

    def run(self, requests: Sequence[Request], *, batch: int = BATCH) -> Iterator[Preview | Result]:
        """Draw pictures, in the order of the requests; those that differ only in words and seed are drawn together.

        Args:
            requests: as ``request`` makes them. One that says ``rows`` > 1 is drawn alone, at that batch shape, so that
                a picture that was drawn in company comes out the same to the last bit.
            batch: most pictures drawn together.

        Yields:
            Previews after every step, and the results of each batch when it is done.
        """
        if not 1 <= batch <= MAX_ROWS:
            raise ValueError(f"batch must be from 1 to {MAX_ROWS}, got {batch}")
        for request in requests:
            self.check(request)
        for group in _groups(requests, batch):
            if len(group) == 1 and group[0].rows > 1:
                yield from self._draw_alone(group[0])
            else:
                yield from self._draw([replace(r, row=i, rows=len(group)) for i, r in enumerate(group)])

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

    def _draw_alone(self, request: Request) -> Iterator[Preview | Result]:
        """One picture at the batch shape that it was once drawn in, with copies of itself for company."""
        results: list[Result] = []
        for item in self._draw([request] * request.rows):
            if isinstance(item, Preview):
                yield replace(item, pictures=item.pictures[request.row : request.row + 1])
            else:
                results.append(item)
        yield results[request.row]

    def _draw(self, requests: Sequence[Request]) -> Iterator[Preview | Result]:
        started = time.perf_counter()
        ask = requests[0]
        model, process = self.model, self.model.process
        denoise, cuts = self._denoiser(requests)
        noise = KeyedNoise.from_seeds([request.seed for request in requests])
        scale = model.config.codec.downsampling
        like = torch.zeros(len(requests), model.config.codec.latent_channels, ask.height // scale, ask.width // scale)
        start = process.prior(like.to(self.device)).sample(noise.at(_START))
        times = SPACINGS[ask.grid](process.schedule, ask.steps)
        sampler: Any = DDIM(eta=ask.eta) if ask.sampler == "ddim" else SAMPLERS[ask.sampler]()
        x = start
        for step in sample(sampler, denoise, process, start, times, noise.at(_STEPS)):
            x = step.x
            if step.belief is not None and step.index < ask.steps:
                yield Preview(index=step.index, steps=ask.steps, pictures=self._decode(step.belief.x0))
        pictures = self._decode(x)
        if not bool(torch.isfinite(pictures).all()):
            raise ArithmeticError("the picture is not finite; try --precision float32, fewer steps or less guidance")
        seconds = (time.perf_counter() - started) / len(requests)
        for request, picture in zip(requests, to_bytes(pictures).cpu().numpy(), strict=True):
            told = [str(cut) for cut in cuts if cut.prompt in (request.prompt, request.negative)]
            if request.negative and request.guidance_scale == 1:
                told.append("the negative prompt has no influence at guidance 1")
            image = Image.fromarray(numpy.ascontiguousarray(picture.transpose(1, 2, 0)))
            yield Result(request=request, picture=image, seconds=seconds, warnings=tuple(dict.fromkeys(told)))

    def _denoiser(self, requests: Sequence[Request]) -> tuple[Denoiser, list[Any]]:
        model, ask = self.model, requests[0]
        precision = resolve_precision(ask.precision, self.device)
        correct = [clip()] if model.config.sampling.clip else []
        strong, cuts = model.reader.read([request.prompt for request in requests])
        strong = strong.map(lambda tensor: tensor.to(self.device))
        with autocast(self.device, precision):
            if ask.guidance_scale == 1:
                inner = corrected(model.denoiser.given(strong), *correct)
            else:
                weak = strong.null()
                if ask.negative:
                    weak, more = model.reader.read([request.negative for request in requests])
                    weak, cuts = weak.map(lambda tensor: tensor.to(self.device)), cuts + more
                pair = model.denoiser.given_pair(strong, weak)
                inner = guided(
                    pair, extrapolate(model.process, ask.guidance_scale), *correct, interval=ask.guidance_interval
                )

        def denoise(x_t: X, level: Level, previous: X | None = None) -> Estimate:
            with autocast(self.device, precision):
                return inner(x_t, level, previous)

        return denoise, cuts

    def _decode(self, latents: Tensor) -> Tensor:
        with torch.no_grad():
            return self.model.config.codec.decode(latents).float()


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


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _groups(requests: Sequence[Request], batch: int) -> Iterator[list[Request]]:
    group: list[Request] = []
    for request in requests:
        is_alone = request.rows > 1
        if group and (
            is_alone or len(group) == batch or group[0].rows > 1 or _settings(group[0]) != _settings(request)
        ):
            yield group
            group = []
        group.append(request)
    if group:
        yield group


def _settings(request: Request) -> Request:
    # Whether there is a negative prompt decides which network calls are made, so it is part of the settings.
    return replace(request, prompt="", negative="x" if request.negative else "", seed=0)
