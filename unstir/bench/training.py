"""``unstir bench train``: what a training step costs, beside diffusers and a plain DiT.

Knows: which models are trained on both sides, how a common script trains, how the sides take turns, what is counted.
Does not know: how our step is made, how fast the machine multiplies, what tables look like.

A step is: draw timesteps and noise, forward, backward, Adam, and the average of the weights moved; ours also shortens
long gradients and looks whether loss and gradient are finite. The sides take turns, so that whoever else uses the
machine disturbs all alike; ratios are medians of the ratios within a round.
"""

from __future__ import annotations

import copy
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from unstir.allocator import keep_memory
from unstir.bench import machine, theirs
from unstir.bench.exact import linear, require_whole
from unstir.bench.plain_dit import PlainDiT, PlainDiTConfig
from unstir.condition import Condition
from unstir.config import choose
from unstir.device import compiles, has_native_bf16, resolve_device, resolve_precision, wait
from unstir.diffusion.denoiser import Network, NetworkDenoiser
from unstir.diffusion.noise import KeyedNoise
from unstir.diffusion.objective import Simple, weight_noise
from unstir.diffusion.parameterization import PredictNoise
from unstir.diffusion.process import GaussianProcess
from unstir.diffusion.times import UniformTimes
from unstir.nn.dit import DiT, DiTConfig
from unstir.nn.layers import BlockStyle
from unstir.nn.unet import UNet, UNetConfig
from unstir.speedups import OF_PROCESS, SPEEDUPS, without
from unstir.training.batches import DROPOUT, OBJECTIVE, seeds_of
from unstir.training.optimizer import OptimizerConfig
from unstir.training.step import Learner
from unstir.typing import X

Advance = Callable[[str, int, int], None]
"""(stage of the work, turns done, turns in all): called often."""

Number = Literal["float32", "bf16"]
Role = Literal["default", "best", "ours", "compiled", "lever"]
Step = Callable[[], None]

OURS = "unstir"
COMPARED: tuple[Role, ...] = ("default", "best", "ours")
"""Roles that others are compared with."""

SIZE = 32
BATCH, GPU_BATCH = 16, 128
REPEATS = 5
QUICK_MODELS = ("small",)
GPU_MODELS = ("dit-b",)
"""Too large for a CPU, unless it is asked for."""

QUICK_REPEATS = 2
RATE = 1e-4
DECAY = 0.999
_CHAIN_STEPS = 1000
_CPU_TURN, _GPU_TURN = 1, 10  # steps of a turn: a GPU is asked for several before anybody waits, as in a run
_WARM = 2  # steps before the first round: the first makes moments and compiles, the second finds memory as it stays
PASSES = 3
"""A backward pass has twice the products of a forward one: gradients of the input, and of the weights."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model that both sides train.

    Args:
        title: what tables call it.
        peer: whose network stands beside ours.
        ours: makes our network.
        theirs: makes theirs, a module of (x_t, timesteps).
        idle: speed-ups that do nothing for it.
    """

    title: str
    peer: Literal["diffusers", "plain DiT"]
    ours: Callable[[], nn.Module]
    theirs: Callable[[], nn.Module]
    idle: tuple[str, ...] = ()


def ddpm(width: int, multipliers: tuple[int, ...]) -> UNetConfig:
    """A U-Net with the layers of DDPM's, attention at the second level, dropout 0.1.

    Source: Ho et al. 2020, arXiv:2006.11239, Appendix B (width 128, multipliers 1, 2, 2, 2).
    """
    return UNetConfig(
        width=width,
        multipliers=multipliers,
        attention=(1,),
        heads=1,
        style=BlockStyle(modulation="shift", dropout=0.1, epsilon=1e-6),
        has_normed_queries=False,
        pads_evenly=False,
        text=None,
    )


_LARGE, _SMALL = ddpm(128, (1, 2, 2, 2)), ddpm(64, (1, 2, 2))
_DIT = DiTConfig(size=SIZE, patch=2, width=384, depth=12, heads=6, text=None)
_DIT_B = DiTConfig(size=SIZE, patch=2, width=768, depth=12, heads=12, text=None)

SUBJECTS: dict[str, Subject] = {
    "ddpm": Subject(
        title="DDPM's U-Net for CIFAR-10",
        peer="diffusers",
        ours=lambda: UNet(_LARGE),
        theirs=lambda: theirs.their_unet(_LARGE),
    ),
    "small": Subject(
        title="small U-Net", peer="diffusers", ours=lambda: UNet(_SMALL), theirs=lambda: theirs.their_unet(_SMALL)
    ),
    "dit": Subject(
        title="DiT-S/2",
        peer="plain DiT",
        ours=lambda: DiT(_DIT),
        theirs=lambda: PlainDiT(PlainDiTConfig(size=SIZE)),
        idle=("dropout_masks",),
    ),
    "dit-b": Subject(
        title="DiT-B/2",
        peer="plain DiT",
        ours=lambda: DiT(_DIT_B),
        theirs=lambda: PlainDiT(PlainDiTConfig(size=SIZE, width=768, heads=12)),
        idle=("dropout_masks",),
    ),
}
"""By what ``--models`` calls them."""


def usual_models(device: str) -> tuple[str, ...]:
    """What is trained on a device unless something else is asked for."""
    is_gpu = resolve_device(device).type == "cuda"
    return tuple(name for name in SUBJECTS if is_gpu or name not in GPU_MODELS)


def usual_batch(device: str) -> int:
    """Pictures of a step unless something else is asked for: enough to keep the device busy."""
    return GPU_BATCH if resolve_device(device).type == "cuda" else BATCH


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What all sides share.

    Args:
        batch: pictures a step.
        repeats: rounds.
        device: where.
        precision: of the peer's network at its best, and of ours unless told otherwise: bf16 where that is native.
    """

    batch: int
    repeats: int
    device: torch.device
    precision: Number

    def pictures(self) -> Float[Tensor, "b c h w"]:
        """The batch that every step sees."""
        return torch.rand(self.batch, 3, SIZE, SIZE, device=self.device) * 2 - 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Entry:
    """One way to train a model.

    Args:
        side: unstir, or the peer.
        how: in words.
        role: what others are compared with it as.
        step: takes one training step.
        weights: how many there are.
        gflop: of the products of a step, for one picture.
        off: speed-ups that are off while it steps.
        is_compiled: whether its first step compiles.
    """

    side: str
    how: str
    role: Role
    step: Step
    weights: int
    gflop: float
    off: tuple[str, ...] = ()
    is_compiled: bool = False


@dataclass(frozen=True, kw_only=True)
class Timed:
    """What an entry took.

    Args:
        warm: seconds of the steps to warm up, compiling included.
        rounds: seconds of a step in each round; none where it failed.
        failure: why it could not step.
    """

    warm: float = 0.0
    rounds: tuple[float, ...] = ()
    failure: str = ""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What was measured.

    Args:
        rows: one an entry; JSON values all.
        peaks: GFLOP/s of the fastest products of the run, by number format.
        conditions: what all sides shared.
        has_peers: False where diffusers should stand beside ours but is not installed.
    """

    rows: list[dict[str, Any]]
    peaks: dict[str, float]
    conditions: Conditions
    has_peers: bool


def bench_training(
    *,
    models: Sequence[str] = tuple(SUBJECTS),
    batch: int = BATCH,
    repeats: int = REPEATS,
    device: str = "auto",
    is_compiled: bool = False,
    has_levers: bool = False,
    advance: Advance,
) -> Result:
    """What a training step of every model takes, ours and theirs.

    Args:
        models: names in ``SUBJECTS``.
        batch: pictures a step.
        repeats: rounds; medians are told.
        device: auto, cpu, cuda, ...
        is_compiled: measure our networks compiled as well, which takes a minute or more each.
        has_levers: measure ours with each speed-up off as well, one at a time.
        advance: called often.

    Raises:
        ValueError: if a number is below 1, or there is no such model or device.
    """
    require_whole("batch", [batch], 1)
    require_whole("repeats", [repeats], 1)
    subjects = [SUBJECTS[choose(name, SUBJECTS, "model")] for name in models]
    if not subjects:
        raise ValueError(f"give a model to train; there are {', '.join(SUBJECTS)}")
    place = resolve_device(device)
    precision: Number = "bf16" if has_native_bf16(place) else "float32"
    shared = Conditions(batch=batch, repeats=repeats, device=place, precision=precision)
    has_diffusers = theirs.version() is not None
    rows: list[dict[str, Any]] = []
    peaks = machine.peaks(place)
    for name, subject in zip(models, subjects, strict=True):
        torch.manual_seed(0)
        x0 = shared.pictures()
        entries = their_entries(subject, x0, shared) if has_diffusers or subject.peer != "diffusers" else []
        entries += our_entries(subject, x0, shared, is_compiled=is_compiled, has_levers=has_levers)
        timed = take_turns(entries, shared, partial(advance, subject.title))
        rows += [{"model": name, "title": subject.title, **row} for row in rows_of(entries, timed, batch)]
        peaks = {number: max(peaks[number], again) for number, again in machine.peaks(place).items()}
        del entries  # whose memory the next model needs
    peak = peaks.get("bf16", peaks["float32"])
    for row in rows:
        row["share_of_peak"] = None if row["gflop_per_second"] is None else row["gflop_per_second"] / peak
    has_peers = has_diffusers or all(subject.peer != "diffusers" for subject in subjects)
    return Result(rows=rows, peaks=peaks, conditions=shared, has_peers=has_peers)


def their_entries(subject: Subject, x0: Float[Tensor, "b c h w"], shared: Conditions) -> list[Entry]:
    """The peer as a common script trains it, and at its best.

    That is under autocast where it helps, with a fused Adam, and compiled on CUDA, as ours is there.
    """

    def entry(role: Role, precision: Number, *, is_best: bool) -> Entry:
        network = subject.theirs().to(shared.device)
        is_compiled = is_best and shared.device.type == "cuda"
        how = f"{'bf16 autocast' if precision == 'bf16' else precision}, {'fused Adam' if is_best else 'Adam'}"
        step = their_step(network, x0, precision=precision, is_fused=is_best)
        if is_compiled:
            network.compile(dynamic=False)
        return Entry(
            side=subject.peer,
            how=f"{how}, compiled" if is_compiled else how,
            role=role,
            step=step,
            weights=_weights(network),
            gflop=gflop,
            off=OF_PROCESS,
            is_compiled=is_compiled,
        )

    gflop = gflop_of(subject.theirs, lambda network, x: network(x, torch.zeros(len(x), dtype=torch.long)))
    return [entry("default", "float32", is_best=False), entry("best", shared.precision, is_best=True)]


def their_step(network: nn.Module, x0: Float[Tensor, "b c h w"], *, precision: Number, is_fused: bool) -> Step:
    """A step as a common script takes it: DDPM's loss, Adam, and an average that is moved weight by weight.

    Gradients are not shortened, which takes ours some time.

    Args:
        network: of (x_t, timesteps).
        x0: what it learns, always the same.
        precision: inside the network.
        is_fused: whether Adam is one kernel.

    Source: Ho et al. 2020, arXiv:2006.11239, Algorithm 1.
    """
    level = linear().at(torch.arange(1, _CHAIN_STEPS + 1, dtype=torch.float64) / _CHAIN_STEPS)
    alpha, sigma = level.alpha.to(x0)[:, None, None, None], level.sigma.to(x0)[:, None, None, None]
    average = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE, fused=is_fused or None)
    network.train()

    def step() -> None:
        t = torch.randint(_CHAIN_STEPS, (len(x0),), device=x0.device)
        noise = torch.randn_like(x0)
        with torch.autocast(x0.device.type, torch.bfloat16, enabled=precision == "bf16"):  # torch's own, not ours
            output = network(alpha[t] * x0 + sigma[t] * noise, t)
        predicted = output if isinstance(output, Tensor) else output.sample
        F.mse_loss(predicted.float(), noise).backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for own, weight in zip(average.parameters(), network.parameters(), strict=True):
                own.lerp_(weight, 1 - DECAY)

    return step


def our_entries(
    subject: Subject, x0: Float[Tensor, "b c h w"], shared: Conditions, *, is_compiled: bool, has_levers: bool
) -> list[Entry]:
    """Ours as ``unstir train`` takes a step; compiled; and with each speed-up off that does something here."""

    def entry(role: Role, told: str = "", off: tuple[str, ...] = ()) -> Entry:
        with without(*off):  # some act when a network or an optimizer is made
            precision = resolve_precision("auto", shared.device)
            network = subject.ours()
            step = our_step(network, x0, precision=precision, is_compiled=role == "compiled")
            is_compiled = role == "compiled" or compiles(shared.device)
        return Entry(
            side=OURS,
            how=f"{precision}{told}",
            role=role,
            step=step,
            weights=_weights(network),
            gflop=gflop,
            off=off,
            is_compiled=is_compiled,
        )

    gflop = gflop_of(subject.ours, lambda network, x: network(x, torch.zeros(len(x)), _condition(len(x))))
    entries = [entry("ours")]
    if is_compiled and not compiles(shared.device):  # where ours is compiled as it comes
        entries.append(entry("compiled", ", compiled"))
    if has_levers:
        idle = {*subject.idle, *_idle(shared)}
        entries += [entry("lever", f", without {name}", (name,)) for name in SPEEDUPS if name not in idle]
    return entries


def _idle(shared: Conditions) -> tuple[str, ...]:
    """Speed-ups that do nothing here, where every step sees one batch that is there already, or do nothing on a CPU."""
    of_others = ("pinned_prefetch", "resident_pictures", "replayed_graphs")
    if shared.device.type != "cpu":
        return ("plain_attention", "routed_products", *of_others)
    of_others = ("compiled_networks", "channels_last", *of_others)
    return ("routed_products", *of_others) if shared.precision == "bf16" else ("bf16", "plain_attention", *of_others)


def our_step(network: nn.Module, x0: Float[Tensor, "b c h w"], *, precision: Number, is_compiled: bool) -> Step:
    """A step as a run takes it, from the randomness of its samples to the average of the weights.

    Args:
        network: one of ours, told no words.
        x0: what it learns, always the same.
        precision: inside the network.
        is_compiled: whether the network goes through torch.compile.
    """
    learner = Learner(network, OptimizerConfig(), device=x0.device, precision=precision)
    denoiser = NetworkDenoiser(cast("Network[Condition]", network), GaussianProcess(schedule=linear()), PredictNoise())
    objective = Simple(weight=weight_noise, times=UniformTimes(num_steps=_CHAIN_STEPS))
    if is_compiled:
        network.compile()
    seen = itertools.count(step=len(x0))

    def step() -> None:
        first = next(seen)
        noise = KeyedNoise(keys=tuple((0, i) for i in range(first, first + len(x0))))
        condition = Condition(seeds=seeds_of(noise.at(DROPOUT)).to(x0.device))
        loss = partial(objective, denoiser, x0, condition, noise.at(OBJECTIVE))
        learner.step([loss], len(x0), rate=RATE, decay=DECAY)

    return step


def _condition(count: int) -> Condition:
    return Condition(seeds=torch.zeros(count, dtype=torch.long))


def _weights(network: nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


def gflop_of(make: Callable[[], nn.Module], ask: Callable[[nn.Module, X], object]) -> float:
    """GFLOP of a training step for one picture, a multiplication with its addition counting two.

    Matrix products, attention's among them, and convolutions are counted in a forward pass that computes nothing, and
    taken three times; what else there is (norms, activations, the optimizer) is not.
    """
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        ask(make().eval(), torch.zeros(1, 3, SIZE, SIZE))
    return PASSES * counter.get_total_flops() / 1e9


def take_turns(entries: Sequence[Entry], shared: Conditions, advance: Callable[[int, int], None]) -> list[Timed]:
    """What a step of each entry takes, in rounds in which each has its turn, after two steps to warm up."""
    steps = _CPU_TURN if shared.device.type == "cpu" else _GPU_TURN
    total = len(entries) * (1 + shared.repeats)
    warms: list[float] = []
    rounds: list[list[float]] = [[] for _ in entries]
    failures: list[str] = []
    for done, entry in enumerate(entries):
        advance(done, total)
        warm, failure = _warmed(entry, shared)
        warms.append(warm)
        failures.append(failure)
    for turn in range(1, shared.repeats + 1):
        for place, entry in enumerate(entries):
            advance(turn * len(entries) + place, total)
            if not failures[place]:
                rounds[place].append(_seconds(entry, steps, shared) / steps)
    advance(total, total)
    return [
        Timed(warm=warm, rounds=tuple(taken), failure=failure)
        for warm, taken, failure in zip(warms, rounds, failures, strict=True)
    ]


def _seconds(entry: Entry, steps: int, shared: Conditions) -> float:
    with without(*entry.off):
        if keep_memory():  # the heap finds its shape first
            entry.step()
        wait(shared.device)
        started = time.perf_counter()
        for _ in range(steps):
            entry.step()
        wait(shared.device)
    return time.perf_counter() - started


def _warmed(entry: Entry, shared: Conditions) -> tuple[float, str]:
    """Seconds of the first steps, and what went wrong in them."""
    try:
        return _seconds(entry, _WARM, shared), ""
    except Exception as error:  # a compiler that is not there, or cannot do it: each says so in its own way
        if not entry.is_compiled:
            raise
        return 0.0, " ".join(f"{type(error).__name__}: {error}".split())[:200]


def rows_of(entries: Sequence[Entry], timed: Sequence[Timed], batch: int) -> list[dict[str, Any]]:
    """One row an entry: what it took, and how many times faster it was than the peer's default, its best, and ours."""
    rounds = {entry.role: one.rounds for entry, one in zip(entries, timed, strict=True) if entry.role in COMPARED}
    rows: list[dict[str, Any]] = []
    for entry, one in zip(entries, timed, strict=True):
        seconds = statistics.median(one.rounds) if one.rounds else None
        is_compiled = entry.is_compiled and seconds is not None
        rows.append(
            {
                "side": entry.side,
                "how": entry.how,
                "role": entry.role,
                "weights": entry.weights,
                "gflop_per_image": entry.gflop,
                "ms_per_step": None if seconds is None else 1000 * seconds,
                "images_per_second": None if seconds is None else batch / seconds,
                "gflop_per_second": None if seconds is None else batch * entry.gflop / seconds,
                **{f"times_{role}": _times(rounds.get(role, ()), one.rounds) for role in COMPARED},
                "compile_seconds": max(0.0, one.warm - _WARM * (seconds or 0.0)) if is_compiled else None,
                "failure": one.failure,
            }
        )
    return rows


def _times(others: Sequence[float], own: Sequence[float]) -> float | None:
    """How many times as long the other took: the median over rounds, in which both were disturbed alike."""
    if not others or not own:
        return None
    return statistics.median(other / one for other, one in zip(others, own, strict=True))
