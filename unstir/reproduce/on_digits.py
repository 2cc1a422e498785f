"""What the experiments on digits share: the data, a chain made for 17 grey levels, a network, a distance.

Knows: scikit-learn's digits, how a small model of them is trained, drawn from and measured, when two rows are apart.
Does not know: any experiment, its rows or its paper.

The chain starts as the papers' chains do, in units of what a grey level is worth: their first step adds noise of 0.01
to pictures whose grey levels are 2/255 apart, ours 0.159 to pictures whose levels are 2/16 apart. Below that a network
would only draw a staircase of 17 steps: with the papers' own first beta of 0.0001 small networks need more bits for
these digits than there are in a picture of independent, uniform pixels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from unstir.condition import Condition
from unstir.data.toy import Digits, digits
from unstir.diffusion.denoiser import Denoiser, NetworkDenoiser
from unstir.diffusion.guidance import clip, corrected
from unstir.diffusion.likelihood import Bound, bits_per_dim
from unstir.diffusion.noise import BlockNoise
from unstir.diffusion.parameterization import Parameterization
from unstir.diffusion.process import GaussianProcess
from unstir.diffusion.samplers import Sampler, sample
from unstir.diffusion.schedule import LinearBeta, Tabulated, VariancePreserving
from unstir.diffusion.spacing import trailing
from unstir.evaluation.kernel import KernelDistance, kernel_distance
from unstir.nn.convnet import ConvNet, ConvNetConfig
from unstir.nn.mlp import MLP, MLPConfig
from unstir.reproduce.fit import Draw, Fit, Objective, fit, in_chunks, seeded
from unstir.reproduce.report import Advance, mean_and_error
from unstir.typing import floats

LEVELS = 17
NUM_STEPS = 1000
"""T, as in the papers."""

FEW_STEPS = 100
"""T where models are trained by the bound with uniform times, for two thousand batches: the first step, whose term is
half of the bound, is then drawn for one sample in a hundred, not in a thousand."""

FIRST_NOISE = 0.01 / (2 / 255) * (2 / (LEVELS - 1))
"""sigma of the first step: to the distance of two grey levels as DDPM's is (beta_1 = 0.0001, 256 levels)."""

FOR_BITS = 1.5
"""Largest belief where bits are counted: without one, predictors of noise are at the mercy of 1/alpha near t = 1."""

APART = 3.0
"""Standard errors of a difference that separate two rows; with three seeds a row this happens by chance in 4 % of the
pairs that are equal (Student's t, four degrees of freedom)."""

NOTES = (
    "8x8 digits in 17 grey levels and 1,297 to train on, instead of 32x32 photographs in 256 levels and 50,000",
    "kernel distance (cubic kernel, unbiased: 0 for samples of the law itself) on the pixels and random convolutions, "
    "to 500 held-out digits, instead of FID on Inception's features; only orders of rows can be compared",
    "errors are over three seeds of weights, batches and noise; the held-out digits are the same for all, so their own "
    "error moves all rows together and is not in it",
)
"""What is not comparable, in every experiment on digits."""


@cache
def data() -> Digits:
    """The digits: 1,297 to train on, 200 and 300 held out.

    Raises:
        ImportError: if scikit-learn is not installed.
    """
    return digits()


def held_out() -> Tensor:
    """The 500 digits that no network is trained on."""
    return torch.cat([data().validation.pictures, data().test.pictures])


def drawing(pictures: Tensor) -> Draw:
    """Pictures drawn with replacement."""

    def draw(noise: BlockNoise) -> Tensor:
        share = noise.uniform(torch.empty(noise.count, dtype=torch.float64))
        return pictures[(share * len(pictures)).long()]

    return draw


def chain(schedule: VariancePreserving | None = None, num_steps: int = NUM_STEPS) -> GaussianProcess:
    """The process on T steps of a schedule, DDPM's if none is given: the first as noisy as ``FIRST_NOISE`` says.

    The other steps are even in the schedule's own time from there to 1; no beta is above 0.999.

    Source: Ho et al. 2020, arXiv:2006.11239, Sec. 4; Nichol & Dhariwal 2021, arXiv:2102.09672, Sec. 3.2 (clipping).
    """
    schedule = LinearBeta() if schedule is None else schedule
    first = schedule.time_of(torch.tensor(math.log(1 / FIRST_NOISE**2 - 1), dtype=torch.float64))
    points = torch.linspace(first.item(), 1, num_steps, dtype=torch.float64)
    alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), schedule.alpha_bar(points).detach()])
    betas = (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)
    return GaussianProcess(schedule=Tabulated.from_betas(floats(betas)), levels=LEVELS)


def steps_of(process: GaussianProcess) -> int:
    """T of a chain made by ``chain``."""
    return cast(Tabulated, process.schedule).num_steps


def perceptron(outputs: int) -> nn.Module:
    """The network of the ablations, of 190,000 weights: it knows pixels, but not which are neighbours."""
    return MLP(MLPConfig(sites=64, channels=1, out_factor=outputs, width=128, depth=2, input_features=6))


def convolutions(outputs: int) -> nn.Module:
    """The network where bits count, of 23,000 weights."""
    return ConvNet(ConvNetConfig(out_factor=outputs, width=16, depth=2, scales=3))


def learn(
    process: GaussianProcess,
    parameterization: Parameterization,
    objective: Objective,
    *,
    steps: int,
    seed: int,
    build: Callable[[int], nn.Module] = perceptron,
    advance: Advance = lambda stage, done, total: None,
) -> Denoiser:
    """Train a network on the digits of the training part.

    Args:
        process: how digits are spoiled.
        parameterization: what the network's output means.
        objective: what is minimised.
        steps: batches of 128.
        seed: of weights, data and noise.
        build: makes the network, given the number of its outputs a pixel.
        advance: called after every step.

    Raises:
        ArithmeticError: if the loss is not finite.
    """
    network = seeded(seed, lambda: build(parameterization.outputs))
    denoiser: NetworkDenoiser[Condition] = NetworkDenoiser(network, process, parameterization)
    config = Fit(steps=steps, batch=128, seed=seed)
    trained = fit(denoiser, objective, drawing(data().train.pictures), config, advance=advance)
    return in_chunks(trained)


def within_range(denoise: Denoiser, bound: float = 1.0) -> Denoiser:
    """The denoiser that believes in no pixel darker than black or brighter than white, as DDPM's code does.

    Pictures are drawn so. Where bits are counted the bound is ``FOR_BITS``: models that are trained by the variational
    bound believe in more than black to make sure of black, as the decoder rewards it; 1 costs them 0.15 bits/dim.
    """
    return corrected(denoise, clip(bound))


def pictures_of(
    sampler: Sampler[Any],
    denoise: Denoiser,
    process: GaussianProcess,
    *,
    count: int,
    num_steps: int,
    noise: tuple[int, ...],
    advance: Advance = lambda stage, done, total: None,
) -> Tensor:
    """Pictures drawn on an even grid of times, on the data's grey levels; where numbers ran away they are 0, grey."""
    source = BlockNoise(key=(*noise, 0xD161), count=count)
    x = process.prior(torch.zeros(count, 1, 8, 8)).sample(source.at(0))
    for step in sample(sampler, denoise, process, x, trailing(process.schedule, num_steps), source.at(1)):
        x = step.x
        advance("samples", step.index, num_steps)
    return on_levels(torch.nan_to_num(x, nan=0.0))


def on_levels(x: Tensor) -> Tensor:
    """The nearest of the 17 grey levels."""
    return ((x.clamp(-1, 1) + 1) * 8).round() / 8 - 1


def bits(
    denoise: Denoiser,
    process: GaussianProcess,
    pictures: Tensor,
    *,
    noise: tuple[int, ...],
    draws: int | None = None,
    advance: Advance = lambda stage, done, total: None,
) -> Bound:
    """The bound of these pictures in bits/dim, term by term, or with so many drawn terms a picture."""
    return bits_per_dim(
        denoise,
        process,
        pictures,
        steps=steps_of(process),
        draws=draws,
        noise=BlockNoise(key=(*noise, 0xB175), count=len(pictures)),
        progress=lambda done, total: advance("bound", done, total),
    )


def features(pictures: Tensor) -> Tensor:
    """1,600 fixed features: the pixels, and what two layers of random convolutions make of them.

    64 filters of 3x3, rectified, means over 2x2 pixels (1,024 numbers); 128 filters of 3x3 on these, rectified (512).
    Filters are normal numbers of a fixed seed. Each feature is standardised over the digits that are trained on; one
    that hardly varies there is divided by a tenth of the mean deviation instead of its own.
    """
    mean, std = _scale()
    return (_raw_features(pictures) - mean) / std


@cache
def _scale() -> tuple[Tensor, Tensor]:
    raw = _raw_features(data().train.pictures)
    std = raw.std(0)
    return raw.mean(0), std.clamp(min=0.1 * std.mean().item())


def _raw_features(pictures: Tensor) -> Tensor:
    noise = BlockNoise(key=(0xF117E2,), count=192)
    first = noise.rows(slice(0, 64)).at(0).normal(torch.empty(64, 1, 3, 3)) / 3
    second = noise.rows(slice(0, 128)).at(1).normal(torch.empty(128, 64, 3, 3)) / 24
    near = torch.nn.functional.avg_pool2d(torch.nn.functional.conv2d(pictures, first, padding=1).relu(), 2)
    far = torch.nn.functional.conv2d(near, second).relu()
    return torch.cat([pictures.flatten(1), near.flatten(1), far.flatten(1)], 1)


def distance(pictures: Tensor) -> KernelDistance:
    """The kernel distance of these pictures to the 500 held-out digits, on the fixed features."""
    return kernel_distance(features(pictures), _held_out_features())


@cache
def _held_out_features() -> Tensor:
    return features(held_out())


def distance_of_data() -> KernelDistance:
    """The kernel distance of the digits that are trained on to the held-out ones: what 0 looks like."""
    return distance(data().train.pictures)


def are_apart(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether the means of two rows, a value a seed, differ by more than ``APART`` errors of their difference."""
    (a, error_a), (b, error_b) = mean_and_error(first), mean_and_error(second)
    return abs(a - b) > APART * math.hypot(error_a, error_b)


def compare(rows: Mapping[str, Sequence[float]]) -> dict[str, list[list[str]]]:
    """Which rows the errors separate: pairs (lower, higher) of names, and pairs that they do not separate."""
    apart: list[list[str]] = []
    close: list[list[str]] = []
    for (name, values), (other, others) in itertools.combinations(rows.items(), 2):
        pair = [name, other] if sum(values) / len(values) <= sum(others) / len(others) else [other, name]
        (apart if are_apart(values, others) else close).append(pair)
    return {"separated": apart, "not_separated": close}


def compared(what: str, rows: Mapping[str, Sequence[float]]) -> tuple[str, ...]:
    """The same in words."""
    pairs = compare(rows)
    count = len(pairs["separated"]) + len(pairs["not_separated"])
    order = sorted(rows, key=lambda name: sum(rows[name]) / len(rows[name]))
    lines = [f"{what}, from low to high: {' < '.join(order)}"]
    if not pairs["not_separated"]:
        return (*lines, f"errors separate all {count} pairs")
    close = "; ".join(" ~ ".join(pair) for pair in pairs["not_separated"])
    return (*lines, f"errors separate {len(pairs['separated'])} of {count} pairs; not these: {close}")


def against(paper: Mapping[str, float], rows: Mapping[str, Sequence[float]]) -> dict[str, list[list[str]]]:
    """The pairs (lower, higher) of the paper by what becomes of them: held, reversed, or not separated by errors."""
    found: dict[str, list[list[str]]] = {"held": [], "reversed": [], "not_separated": []}
    for name, other in itertools.permutations([name for name in paper if name in rows], 2):
        if paper[name] < paper[other]:
            is_lower = sum(rows[name]) / len(rows[name]) < sum(rows[other]) / len(rows[other])
            verdict = "held" if is_lower else "reversed"
            found[verdict if are_apart(rows[name], rows[other]) else "not_separated"].append([name, other])
    return found


def told_against(what: str, paper: Mapping[str, float], rows: Mapping[str, Sequence[float]]) -> str:
    """The same in words."""
    found = against(paper, rows)
    turned = f" ({'; '.join(' < '.join(pair) for pair in found['reversed'])})" if found["reversed"] else ""
    return (
        f"{what}: of the paper's {sum(map(len, found.values()))} orders {len(found['held'])} hold beyond errors, "
        f"{len(found['reversed'])} are reversed{turned}, {len(found['not_separated'])} are not separated"
    )


def three(seed: int) -> tuple[int, int, int]:
    """This seed and the two after it."""
    return seed, seed + 1, seed + 2


def shorter(count: int, effort: float, *, least: int = 2) -> int:
    """So much of a number of steps or samples."""
    return max(least, round(count * effort))


def staged(advance: Advance, done: int, total: int) -> Advance:
    """Progress within one of several equal parts of an experiment: ``done`` of ``total`` are over."""
    return lambda stage, step, steps: advance(f"{stage} ({done + 1} of {total})", step, steps)


def show(axes: Any, pictures: Tensor, *, columns: int, title: str) -> None:
    """Pictures side by side in a plot, white on black, at most as many as fill whole rows."""
    columns = min(columns, len(pictures))
    rows = len(pictures) // columns
    padded = torch.nn.functional.pad(pictures[: rows * columns, 0], (1, 1, 1, 1), value=1.0)
    height, width = padded.shape[1:]
    sheet = padded.view(rows, columns, height, width).transpose(1, 2).reshape(rows * height, columns * width)
    axes.imshow(sheet.numpy(), cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize=9)
    axes.axis("off")
