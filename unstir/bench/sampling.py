"""``unstir bench sample``: what a sampler costs beside the network, and seconds to draw pictures, beside diffusers.

Knows: what is timed, how ours and theirs take turns.
Does not know: how near to the truth a sampler comes.

Whoever else uses the machine disturbs both sides alike: they take turns, and medians are compared.
"""

from __future__ import annotations

import importlib
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unstir.allocator import keep_memory
from unstir.bench import theirs
from unstir.bench.exact import linear, require_whole
from unstir.bench.training import ddpm
from unstir.condition import Condition
from unstir.device import autocast, has_native_bf16, lay_out, one_thread, resolve_precision, wait
from unstir.diffusion.denoiser import NetworkDenoiser
from unstir.diffusion.noise import KeyedNoise
from unstir.diffusion.parameterization import PredictNoise
from unstir.diffusion.process import GaussianProcess
from unstir.diffusion.samplers import SAMPLERS, Sampler, sample
from unstir.diffusion.spacing import trailing
from unstir.nn.unet import UNet
from unstir.pipeline import Pipeline, load
from unstir.replay import Replayed
from unstir.speedups import OF_PROCESS, is_on, without
from unstir.typing import X, floats

Advance = Callable[[str, int, int], None]
"""(stage of the work, steps done, steps in all): called often."""

SHAPE = (16, 3, 32, 32)
STEPS = 50
REPEATS = 15
PICTURE_REPEATS = 3
GPU_COUNTS = (1, 256)
"""Pictures of a batch on a GPU: what one takes, and how many come a second where there are many."""

PROMPT = "a red heart"
Number = Literal["float32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A sampler of ours and the scheduler of diffusers that does the same.

    Args:
        ours: a name in ``SAMPLERS``.
        kind: the scheduler's class.
        config: what it is made with.
    """

    ours: str
    kind: str
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])


PEERS: dict[str, Peer] = {
    "DDIM": Peer(ours="ddim", kind="DDIMScheduler", config={"clip_sample": False}),
    "Euler": Peer(ours="ddim", kind="EulerDiscreteScheduler"),  # the same method in other coordinates
    "DPM++ 2M": Peer(ours="dpm++2m", kind="DPMSolverMultistepScheduler"),
    "Heun": Peer(ours="heun", kind="HeunDiscreteScheduler"),
    "UniPC": Peer(ours="unipc", kind="UniPCMultistepScheduler"),
    "DEIS": Peer(ours="deis", kind="DEISMultistepScheduler"),
    "PLMS": Peer(ours="plms", kind="PNDMScheduler", config={"skip_prk_steps": True}),
}
"""By the name of the method; a line whose sampler is not in ``SAMPLERS`` is left out."""

Run = Callable[[], Callable[[], object]]
"""Makes a grid; what comes back walks it."""


@dataclass(frozen=True, kw_only=True)
class Taken:
    """Median seconds of one run.

    Args:
        grid: to make the grid.
        walk: to walk it.
    """

    grid: float
    walk: float


class Still(nn.Module):
    """A network that answers at once, with the same tensor each time, and counts how often it is asked."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.in_channels = self.out_channels = output.shape[1]
        self.output = output
        self.calls = 0

    def forward(self, x: Tensor, scalar: Tensor, condition: Condition) -> Tensor:
        """The tensor."""
        self.calls += 1
        return self.output


def our_run(sampler: Sampler[Any], network: Any, condition: Condition, x: X, num_steps: int) -> Run:
    """Our loop around a network that predicts noise, on trailing times of DDPM's chain."""
    process = GaussianProcess(schedule=_CHAIN)
    denoiser = NetworkDenoiser(network, process, PredictNoise())
    noise = KeyedNoise.from_seeds(range(x.shape[0]))

    def ready() -> Callable[[], object]:
        times = trailing(_CHAIN, num_steps)
        return lambda: deque(sample(sampler, denoiser.given(condition), process, x, times, noise), maxlen=0)

    return ready


def their_run(scheduler: Any, network: Callable[[X, Tensor], Tensor], x: X, num_steps: int) -> Run:
    """The loop of a diffusers pipeline around a network of (x_t, timestep)."""

    def walk() -> None:
        x_t = x * scheduler.init_noise_sigma
        with torch.no_grad():
            for t in scheduler.timesteps:
                output = network(scheduler.scale_model_input(x_t, t), t)
                x_t = scheduler.step(output, t, x_t, return_dict=False)[0]

    def ready() -> Callable[[], object]:
        scheduler.set_timesteps(num_steps)
        return walk

    return ready


_CHAIN = linear()


@one_thread()
def overhead(*, steps: int = STEPS, repeats: int = REPEATS, advance: Advance) -> list[dict[str, Any]]:
    """Microseconds a network call that a run takes around a network that takes none, and those of its grid; one thread.

    Args:
        steps: of a run.
        repeats: runs of each, taking turns; medians are told.
        advance: called often.

    Raises:
        ValueError: if steps or repeats is below 1.
    """
    require_whole("steps", [steps], 1)
    require_whole("repeats", [repeats], 1)
    x = KeyedNoise.from_seeds(range(SHAPE[0])).normal(torch.zeros(SHAPE))
    network = Still(x.clone())
    condition = Condition(kept=torch.ones(SHAPE[0], dtype=torch.bool))
    runs: dict[tuple[str, str], Run] = {}
    for name, peer in PEERS.items():
        if peer.ours in SAMPLERS:
            runs[name, "ours"] = our_run(SAMPLERS[peer.ours](), network, condition, x, steps)
            if theirs.version() is not None:
                runs[name, "theirs"] = their_run(_scheduler(peer), lambda x_t, t: network(x_t, t, condition), x, steps)
    calls = {key: _calls_of(network, run) for key, run in runs.items()}
    taken = take_turns(runs, repeats, lambda done, total: advance("overhead of samplers", done, total))
    rows: list[dict[str, Any]] = []
    for name, peer in PEERS.items():
        if (name, "ours") not in runs:
            continue
        keys = [(name, side) for side in _SIDES]
        own, their = (1e6 * taken[key].walk / calls[key] if key in runs else None for key in keys)
        own_grid, their_grid = (1e6 * taken[key].grid if key in runs else None for key in keys)
        rows.append(
            {
                "method": name,
                "sampler": peer.ours,
                **{"ours": own, "theirs": their, "ratio": _ratio(their, own)},
                **{"ours_grid": own_grid, "theirs_grid": their_grid},
                **{f"{side}_calls": calls.get(key) for side, key in zip(_SIDES, keys, strict=True)},
            }
        )
    return rows


_SIDES = ("ours", "theirs")


def _scheduler(peer: Peer) -> Any:
    return getattr(importlib.import_module("diffusers"), peer.kind)(**peer.config)


def _calls_of(network: Still, run: Run) -> int:
    before = network.calls
    run()()
    return network.calls - before


def take_turns(
    runs: Mapping[tuple[str, str], Run], repeats: int, advance: Callable[[int, int], None]
) -> dict[tuple[str, str], Taken]:
    """What each run takes: medians over rounds in which each has its turn, after one to warm up.

    Args:
        runs: by subject and side; those of "ours" have what we do to the whole process, the others do not.
        repeats: rounds.
        advance: called often.
    """
    grids: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    walks: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for turn in range(repeats + 1):
        for key, run in runs.items():
            with without(*(() if key[1] == "ours" else OF_PROCESS)):
                keep_memory()
                started = time.perf_counter()
                walk = run()
                made = time.perf_counter()
                walk()
                ended = time.perf_counter()
            if turn:
                grids[key].append(made - started)
                walks[key].append(ended - made)
        advance(turn + 1, repeats + 1)
    return {key: Taken(grid=statistics.median(grids[key]), walk=statistics.median(walks[key])) for key in runs}


def _ratio(their: float | None, own: float | None) -> float | None:
    return None if not their or not own else their / own


def pictures(
    *, count: int = SHAPE[0], steps: int = STEPS, repeats: int = PICTURE_REPEATS, advance: Advance
) -> list[dict[str, Any]]:
    """Seconds to draw a batch of pictures on the CPU; all threads that torch takes by itself.

    First a small U-Net (6.5 million weights, 32x32, the same weights on both sides) by DDIM: our loop in the precision
    that "auto" is here, beside diffusers' DDIMPipeline as it comes, in float32, and under bf16 autocast where that is
    native. Then the built-in model as ``unstir sample`` draws, beside the same network driven by diffusers'
    DDIMScheduler in ``steps`` steps, in float32, both beliefs of guidance in one call.

    Args:
        count: pictures of a batch.
        steps: of DDIM.
        repeats: batches of each, taking turns; medians are told.
        advance: called often.

    Raises:
        ValueError: if a number is below 1.
    """
    for what, number in (("pictures", count), ("steps", steps), ("repeats", repeats)):
        require_whole(what, [number], 1)
    pipe = load("builtin", device="cpu")
    precision = resolve_precision("auto", _CPU)
    defaults = pipe.model.config.sampling
    unet = f"{count} pictures of 32x32, U-Net of 6.5 million weights, DDIM, {steps} steps; diffusers' DDIMPipeline"
    builtin = f"{count} pictures of the built-in model, {defaults.steps} steps, guidance {defaults.guidance_scale:g}"
    rows = [(f"{unet} as it comes, in float32", "U-Net", "float32")]
    runs: dict[tuple[str, str], Run] = {("U-Net", "ours"): _our_pictures(count, steps, precision)}
    runs["built-in", "ours"] = lambda: lambda: pipe.sample([PROMPT] * count, seed=0, batch=count)
    if theirs.version() is not None:
        runs["U-Net", "float32"] = _their_pictures(count, steps, "float32")
        runs["built-in", "float32"] = _their_guided(pipe, count, steps)
        if precision == "bf16":
            runs["U-Net", "bf16"] = _their_pictures(count, steps, "bf16")
            rows.append((f"{unet} under bf16 autocast", "U-Net", "bf16"))
    rows.append((f"{builtin}; DDIMScheduler, {steps} steps, around its network in float32", "built-in", "float32"))
    taken = take_turns(runs, repeats, lambda done, total: advance("pictures", done, total))
    found: list[dict[str, Any]] = []
    for what, subject, number in rows:
        their = taken.get((subject, number))
        own, walked = taken[subject, "ours"].walk, None if their is None else their.walk
        found.append({"what": what, "ours": own, "theirs": walked, "ratio": _ratio(walked, own)})
    return found


_CPU = torch.device("cpu")
_SMALL = ddpm(64, (1, 2, 2))


def _their_network() -> Any:
    torch.manual_seed(0)
    network = theirs.their_unet(_SMALL).eval()
    network.register_to_config(sample_size=SHAPE[-1])
    return network


def _our_pictures(count: int, steps: int, precision: Number, device: torch.device = _CPU) -> Run:
    """Our loop around the small U-Net, its calls recorded on CUDA as ``unstir sample`` has them."""
    network = UNet(_SMALL).eval().requires_grad_(False).to(device)
    if theirs.version() is not None and device == _CPU:
        theirs.copy_weights(_their_network(), network)
    lay_out(network, device, precision)
    if device.type == "cuda" and is_on("replayed_graphs"):
        network = Replayed(network)
    x = KeyedNoise.from_seeds(range(count)).normal(torch.zeros(count, *SHAPE[1:])).to(device)
    kept = torch.ones(count, dtype=torch.bool, device=device)
    run = our_run(SAMPLERS["ddim"](), network, Condition(kept=kept), x, steps)

    def ready() -> Callable[[], object]:
        walk = run()

        def drawn() -> None:
            with autocast(device, precision):
                walk()
            wait(device)

        return drawn

    return ready


def on_device(
    device: torch.device,
    *,
    counts: Sequence[int] = GPU_COUNTS,
    steps: int = STEPS,
    repeats: int = PICTURE_REPEATS,
    advance: Advance,
) -> list[dict[str, Any]]:
    """What a picture of the small U-Net takes on a device, alone and among many: our loop, by DDIM, in each format.

    Args:
        device: where; in bf16 too where that is native.
        counts: pictures of a batch, one line each.
        steps: of DDIM.
        repeats: batches of each, taking turns, after one to warm up; medians are told.
        advance: called often.

    Raises:
        ValueError: if a number is below 1.
    """
    for what, numbers in (("pictures", counts), ("steps", [steps]), ("repeats", [repeats])):
        require_whole(what, numbers, 1)
    formats: tuple[Number, ...] = ("float32", "bf16") if has_native_bf16(device) else ("float32",)
    cases: list[tuple[int, Number]] = [(count, number) for count in counts for number in formats]
    runs = {(str(count), number): _our_pictures(count, steps, number, device) for count, number in cases}
    taken = take_turns(runs, repeats, lambda done, total: advance(f"pictures on {device.type}", done, total))
    rows: list[dict[str, Any]] = []
    for count, number in cases:
        seconds = taken[str(count), number].walk
        what = f"small U-Net, DDIM, {steps} steps, {number}"
        rows.append({"what": what, "count": count, "seconds": seconds, "images_per_second": count / seconds})
    return rows


def _their_pictures(count: int, steps: int, precision: Number) -> Run:
    """The whole pipeline of diffusers, as its documentation calls it."""
    diffusers: Any = importlib.import_module("diffusers")
    pipeline = diffusers.DDIMPipeline(unet=_their_network(), scheduler=diffusers.DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)

    def walk() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            pipeline(batch_size=count, num_inference_steps=steps, output_type="np")

    return lambda: walk


def _their_guided(pipe: Pipeline, count: int, steps: int) -> Run:
    """The built-in network, driven by diffusers' scheduler on DDPM's chain: its sample, brought to our flow's scale."""
    scheduler = importlib.import_module("diffusers").DDIMScheduler(
        prediction_type="sample", timestep_spacing="trailing", clip_sample=False
    )
    model = pipe.model
    scale, size, schedule = model.config.sampling.guidance_scale, model.config.size, model.config.schedule
    words, _ = model.reader.read([PROMPT] * count)
    both = model.denoiser.given(words.null().cat(words))
    x = KeyedNoise.from_seeds(range(count)).normal(torch.zeros(count, 3, size, size))
    chain = _CHAIN.at(torch.arange(1, 1001, dtype=torch.float64) / 1000)
    level = schedule.at(schedule.time_of(chain.log_snr))
    levels, factors = level.unbind(), floats(level.alpha / chain.alpha)

    def ask(x_t: X, t: Tensor) -> Tensor:
        flow = x_t * factors[int(t)]
        null, told = both(torch.cat([flow, flow]), levels[int(t)]).x0.chunk(2)
        return null + scale * (told - null)

    return their_run(scheduler, ask, x, steps)


def overhead_cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """One line a method: microseconds of ours and theirs, how many times theirs is ours, and those of the grids."""
    return [
        [
            row["method"],
            row["sampler"],
            *(_number(row[side], ".0f") for side in _SIDES),
            _number(row["ratio"], ".2f"),
            *(_number(row[f"{side}_grid"], ".0f") for side in _SIDES),
        ]
        for row in rows
    ]


def picture_cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """One line a measurement: seconds of ours and theirs, and how many times theirs is ours."""
    return [[row["what"], *(_number(row[key], ".2f") for key in _SIDES), _number(row["ratio"], ".2f")] for row in rows]


def device_cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """One line a batch on a device: its pictures, milliseconds until they are there, and pictures a second."""
    return [
        [
            row["what"],
            str(row["count"]),
            _number(1000 * row["seconds"], ".1f"),
            _number(row["images_per_second"], ".1f"),
        ]
        for row in rows
    ]


OVERHEAD_COLUMNS = (
    "method",
    "ours",
    "unstir, us/call",
    "diffusers, us/call",
    "ratio",
    "our grid, us",
    "their grid, us",
)
DEVICE_COLUMNS = ("what", "batch", "ms", "images/s")
PICTURE_COLUMNS = ("what", "unstir, s", "diffusers, s", "ratio")


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
