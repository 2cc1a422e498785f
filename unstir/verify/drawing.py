"""Statements about what our own models make of words and pictures: conditions, guidance through a network, edits.

Knows: what a drawing must be whatever the weights are, shown on a tiny model with random ones, made in memory.
Does not know: solvers, schedules, how results are told.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy
import torch
from PIL import Image
from torch import Tensor

from unstir.condition import Condition
from unstir.conditioning.mask import reduced
from unstir.conditioning.text import WordReader
from unstir.diffusion.denoiser import Pair
from unstir.diffusion.guidance import VIEWS, extrapolate, guided, rescale
from unstir.diffusion.noise import BlockNoise, KeyedNoise
from unstir.diffusion.process import Estimate, GaussianProcess, Process
from unstir.diffusion.samplers import SAMPLERS
from unstir.diffusion.schedule import Level, RectifiedFlow
from unstir.model import ModelConfig, SamplingDefaults, build
from unstir.nn import DiTConfig
from unstir.nn.text import TextConfig
from unstir.pipeline import Pipeline
from unstir.steering import METHODS, Steering
from unstir.typing import X
from unstir.verify.outcome import Outcome, failed_if

_SIZE = 16
_PROMPTS = ("red heart", "blue star", "a cat", "green")
_MANY = 4000  # conditions of which some are dropped


def tiny() -> Pipeline:
    """A model with random weights that listens to its words, the same each time."""
    reader = WordReader.train(_PROMPTS, vocabulary=300, max_tokens=4)
    text = TextConfig(vocabulary=300, max_tokens=4, width=16, depth=1, heads=2)
    network = DiTConfig(size=_SIZE, patch=4, width=32, depth=1, heads=2, text=text)
    config = ModelConfig(size=_SIZE, network=network, sampling=SamplingDefaults(steps=4, guidance_scale=2.0))
    with torch.random.fork_rng(devices=[]):  # building draws from torch's global generator, and that is the caller's
        model = build(config, reader)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.denoiser.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / math.sqrt(fan_in))
    model.denoiser.eval()
    return Pipeline(model, name="tiny", device="cpu")


def threads_share_a_model() -> Outcome:
    """Eight threads that draw with one model, each in its own way, get the pictures that one after another gets."""
    pipeline, names = tiny(), list(SAMPLERS)[:8]

    def draw(i: int) -> bytes:
        return _bytes(pipeline.sample(_PROMPTS[i % 4], n=2, seed=i, sampler=names[i]))

    alone = [draw(i) for i in range(len(names))]
    with ThreadPoolExecutor(len(names)) as pool:
        together = list(pool.map(draw, range(len(names))))
    wrong = sum(one != other for one, other in zip(alone, together, strict=True))
    return failed_if(wrong or len(set(alone)) < len(names), f"{wrong} of {len(names)} threads got others", "0 of 8")


def nothing_is_dropped() -> Outcome:
    """What is drawn is told all of its words, and two identical calls are equal bit for bit."""
    pipeline = tiny()
    read, _ = pipeline.model.reader.read(_PROMPTS * 16)
    forgotten = 0 if read.kept is None else int((~read.kept).sum().item())
    found = [f"{forgotten} of {len(read)} prompts are forgotten"] if forgotten else []
    first, second = (_bytes(pipeline.sample(_PROMPTS, n=4, seed=0)) for _ in range(2))
    if first != second:
        found.append("two identical calls differ")
    return failed_if(found, "; ".join(found) or "nothing forgotten, equal", "nothing forgotten, equal")


def guidance_on_all_channels() -> Outcome:
    """Every way to guide moves every channel, of latents with five of them and of what a network believes."""
    process, shape = GaussianProcess(schedule=RectifiedFlow()), (2, 5, 4, 4)
    level = _middle(process)
    x, first, second = (_normal(shape, seed) for seed in range(3))
    model = tiny().model
    strong, _ = model.reader.read(_PROMPTS[:2])
    pictures = _normal((2, 3, _SIZE, _SIZE), 0).float()
    pairs = {
        "latents": (_pair(first, second), x),
        "a network": (model.denoiser.given_pair(strong, strong.null()), pictures),
    }
    found: list[str] = []
    for name, method in METHODS.items():
        for of, (pair, x_t) in pairs.items():
            with torch.no_grad():
                moved = guided(pair, method(process, 3.0))(x_t, level).x0 - pair.strong(x_t, level).x0
            still = int((moved.abs().amax((0, 2, 3)) == 0).sum().item())
            found += [f"{name} leaves {still} channels of {of}"] if still else []
    return failed_if(found, "; ".join(found) or "all channels", "all channels")


def rescaling_reaches_all() -> Outcome:
    """Rescaled guidance draws another picture with every sampler, and a belief without contrast stays finite."""
    pipeline = tiny()
    found: list[str] = []
    for name in SAMPLERS:
        plain, rescaled = (
            _bytes(pipeline.sample("red heart", seed=1, sampler=name, guidance_scale=4.0, steering=steering))
            for steering in (Steering(), Steering(rescale=0.7))
        )
        found += [f"{name} does not hear of it"] if plain == rescaled else []
    process = GaussianProcess(schedule=RectifiedFlow())
    level = _middle(process)
    flat, none = torch.full((2, 3, 4, 4), 0.25, dtype=torch.float64), torch.zeros(2, 3, 4, 4, dtype=torch.float64)
    for view in VIEWS:
        for x in (flat, none):
            belief = guided(_pair(x, none), rescale(extrapolate(process, 3.0), 0.7, view))(x, level).x0
            found += [] if bool(belief.isfinite().all()) else [f"{view} without contrast is not finite"]
    return failed_if(found, "; ".join(found) or f"{len(SAMPLERS)} samplers, finite", "all samplers, finite")


def one_null() -> Outcome:
    """What sampling pushes off from is what training told when it forgot: the same vectors, the same belief."""
    model = tiny().model
    condition, _ = model.reader.read(_PROMPTS)
    dropped, null = condition.drop(1.0, KeyedNoise.from_seeds(range(4))), condition.null()
    network: Any = model.denoiser.network
    found: list[str] = []
    x, level = _normal((4, 3, _SIZE, _SIZE), 0).float(), _middle(model.process)
    with torch.no_grad():
        trained, sampled = network.read(dropped), network.read(null)
        for what in ("tokens", "pooled"):
            one, other = getattr(trained, what), getattr(sampled, what)
            kept = torch.ones_like(one, dtype=torch.bool) if what == "pooled" else trained.token_mask[..., None]
            if not torch.equal(torch.where(kept, one, 0), torch.where(kept, other, 0)):
                found.append(f"other {what}")
            elif not torch.equal(one[0], one[1]):
                found.append(f"{what} depend on the words that were forgotten")
        if not torch.equal(trained.token_mask, sampled.token_mask):
            found.append("another mask")
        weak = model.denoiser.given_pair(condition, null).both(x, level)[1].x0
        off = (weak - model.denoiser(x, level, dropped).x0).abs().max().item()
    if not off < 1e-5:
        found.append(f"beliefs differ by {off:.2g}")
    return failed_if(found, "; ".join(found) or "equal", "equal")


def dropped_has_no_influence() -> Outcome:
    """The gradient by what a forgotten condition said is zero to the last bit, and p of all are forgotten."""
    model = tiny().model
    tokens = _normal((4, 4, 16), 0).float().requires_grad_()
    pooled = _normal((4, 16), 1).float().requires_grad_()
    kept = torch.tensor([True, False, True, False])
    condition = Condition(tokens=tokens, pooled=pooled, kept=kept)
    x, level = _normal((4, 3, _SIZE, _SIZE), 2).float(), _middle(model.process)
    model.denoiser(x, level, condition).x0.square().sum().backward()
    found: list[str] = []
    for name, told in (("tokens", tokens), ("the pooled vector", pooled)):
        gradient = torch.zeros_like(told) if told.grad is None else told.grad
        sizes = gradient.flatten(1).abs().amax(1)
        found += [f"forgotten {name} have influence"] if bool((sizes[~kept] > 0).any()) else []
        found += [f"{name} have none"] if bool((sizes[kept] == 0).any()) else []
    many = Condition(pooled=torch.zeros(_MANY, 1))
    measured: list[str] = []
    for probability in (0.1, 0.5):
        for noise in (KeyedNoise.from_seeds(range(_MANY)), BlockNoise(key=(0,), count=_MANY)):
            dropped = many.drop(probability, noise).kept
            rate = 0.0 if dropped is None else 1 - dropped.double().mean().item()
            errors = abs(rate - probability) / math.sqrt(probability * (1 - probability) / _MANY)
            measured.append(f"{rate:.3f}")
            found += (
                [] if errors <= 3 else [f"{rate:.3f} are forgotten, {errors:.1f} standard errors from {probability}"]
            )
    expected = "no gradient; 0.1 and 0.5 within 3 standard errors"
    return failed_if(found, "; ".join(found) or f"no gradient; {', '.join(measured)}", expected)


def ends_of_strength() -> Outcome:
    """An edit of strength 0 is the picture bit for bit, one of strength 1 what is drawn without a picture."""
    pipeline, source = tiny(), _picture(0)
    found: list[str] = []
    for name in SAMPLERS:
        none, full = (
            _bytes(pipeline.edit(source, "red heart", n=2, seed=5, sampler=name, strength=strength))
            for strength in (0.0, 1.0)
        )
        found += [f"strength 0 changes the picture ({name})"] if none != source.tobytes() * 2 else []
        drawn = _bytes(pipeline.sample("red heart", n=2, seed=5, sampler=name))
        found += [f"strength 1 is not text to picture ({name})"] if full != drawn else []
    measured = "; ".join(found) or f"equal, with {len(SAMPLERS)} samplers"
    return failed_if(found, measured, "equal bit for bit")


def kept_pixels() -> Outcome:
    """What a mask does not paint stays bit for bit, edit after edit; and no painted pixel is lost among latents."""
    pipeline, source = tiny(), _picture(1)
    painted = numpy.zeros((_SIZE, _SIZE), numpy.uint8)
    painted[3:9, 5:14] = 255
    mask, before = Image.fromarray(painted), numpy.asarray(source)
    found: list[str] = []
    edited = source
    for i, sampler in enumerate(("dpm++2m", "ddim", "ancestral", "unipc")):
        (edited,) = pipeline.edit(edited, _PROMPTS[i], seed=i, mask=mask, sampler=sampler, resample=1 + i % 2)
        changed = (numpy.asarray(edited) != before).any(-1)
        found += [f"edit {i + 1} changes what is kept"] if changed[painted == 0].any() else []
        found += [f"edit {i + 1} paints nothing"] if not changed[painted > 0].any() else []
    factor, lost = 4, 0
    for place in range(_SIZE * _SIZE):
        single = torch.zeros(_SIZE * _SIZE, dtype=torch.bool)
        single[place] = True
        single = single.view(_SIZE, _SIZE)
        cells = reduced(single, factor)
        finer = cells.repeat_interleave(factor, 0).repeat_interleave(factor, 1)
        lost += int(cells.sum().item()) != 1 or not bool(finer[single].all())
    found += [f"{lost} of {_SIZE**2} pixels lost in reduction"] if lost else []
    return failed_if(found, "; ".join(found) or "kept, none lost", "kept bit for bit, none lost")


def _bytes(pictures: Sequence[Image.Image]) -> bytes:
    return b"".join(picture.tobytes() for picture in pictures)


def _picture(seed: int) -> Image.Image:
    pixels = torch.randint(0, 256, (_SIZE, _SIZE, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.to(torch.uint8).numpy())


def _normal(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _middle(process: Process) -> Level:
    return process.schedule.at(torch.tensor(0.5, dtype=torch.float64))


def _pair(strong: X, weak: X) -> Pair:
    """Two beliefs that are always the same."""

    def both(x_t: X, level: Level, previous: Estimate | None = None) -> tuple[Estimate, Estimate]:
        return Estimate(x0=strong), Estimate(x0=weak)

    def alone(x_t: X, level: Level, previous: Estimate | None = None) -> Estimate:
        return Estimate(x0=strong)

    return Pair(both=both, strong=alone)
