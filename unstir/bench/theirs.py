"""What diffusers has beside ours: schedulers, on their own grids and on ours where they take one, and its U-Net.

Knows: which schedulers and grids there are, how a scheduler is asked for each; which U-Net of theirs is one of ours.
Does not know: any problem, how a scheduler is driven, how a network is trained.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn

from unstir.bench.contender import Contender, Group, Walk, calls_of
from unstir.diffusion.denoiser import Denoiser
from unstir.diffusion.noise import KeyedNoise
from unstir.diffusion.schedule import Schedule, Tabulated
from unstir.diffusion.spacing import Spacing
from unstir.nn.layers import ResidualBlock, group_norm, level_widths
from unstir.nn.unet import UNet, UNetConfig
from unstir.typing import X, floats
from unstir.verify.diffusers_adapter import Path, SchedulerTarget
from unstir.verify.target import Promise, level_of

MISSING = "diffusers is not installed, so unstir is measured alone; pip install diffusers for both"

CHAINS: dict[str, Mapping[str, Any]] = {
    "linear": {"beta_schedule": "linear"},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}
"""How diffusers is asked for the chains of ``exact.CHAINS``."""

GRIDS: dict[str, Mapping[str, Any]] = {
    "plain": {},
    "trailing": {"timestep_spacing": "trailing"},
    "Karras": {"use_karras_sigmas": True},
    "lu": {"use_lu_lambdas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
}
EXTRA = ("exponential", "beta")
"""Grids that are measured too, but are not what diffusers is commonly used with."""


@dataclass(frozen=True, kw_only=True)
class Solver:
    """A scheduler of diffusers.

    Args:
        name: what tables call it.
        kind: its class.
        path: how it keeps its levels.
        config: what it is made with, beside chain and grid.
    """

    name: str
    kind: str
    path: Path
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])


_MULTISTEP, _UNIPC, _PNDM = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "PNDMScheduler"
SOLVERS = (
    Solver(name="DDIM", kind="DDIMScheduler", path="table", config={"clip_sample": False}),
    Solver(name="PNDM", kind=_PNDM, path="table"),
    Solver(name="PNDM skip_prk_steps", kind=_PNDM, path="table", config={"skip_prk_steps": True}),
    Solver(name="DPM++ 2M", kind=_MULTISTEP, path="preserving"),
    Solver(name="DPM++ 3M", kind=_MULTISTEP, path="preserving", config={"solver_order": 3}),
    Solver(name="UniPC 2", kind=_UNIPC, path="preserving"),
    Solver(name="UniPC 3", kind=_UNIPC, path="preserving", config={"solver_order": 3}),
    Solver(name="DEIS", kind="DEISMultistepScheduler", path="preserving"),
    Solver(name="Heun", kind="HeunDiscreteScheduler", path="exploding"),
    Solver(name="LMS", kind="LMSDiscreteScheduler", path="exploding"),
    Solver(name="Euler", kind="EulerDiscreteScheduler", path="exploding"),
)


def version() -> str | None:
    """Of the diffusers that is installed, or None."""
    try:
        importlib.import_module("diffusers")
    except ImportError:
        return None
    return importlib.metadata.version("diffusers")


def contenders(
    chain: str, schedule: Schedule, ours: Mapping[str, Spacing], default: Callable[[int], tuple[float, ...]]
) -> list[Contender]:
    """Every solver on every grid that it takes.

    Args:
        chain: a name in ``CHAINS``.
        schedule: the same chain as ours.
        ours: our grids, by name.
        default: our default's times for a number of calls, for solvers that make one call a step.

    Raises:
        ImportError: if diffusers is not installed.
    """
    found: list[Contender] = []
    for solver in SOLVERS:
        kind = getattr(importlib.import_module("diffusers"), solver.kind)
        options = inspect.signature(kind.__init__).parameters
        config = {**CHAINS[chain], **solver.config}
        for grid, asked in GRIDS.items():
            if all(option in options for option in asked):
                group: Group = "diffusers extra" if grid in EXTRA else "diffusers"
                walk = _walk(target_of(solver, kind(**config, **asked)))
                found.append(Contender(group=group, solver=solver.name, grid=grid, walk=walk))
        if way := _way(kind):
            given = dict(ours)
            if calls_of(_walk(target_of(solver, kind(**config))), 3) == 3:
                given["default"] = lambda _, num_steps: default(num_steps)
            for grid, spacing in given.items():
                walk = _walk(target_of(solver, _on_ours(kind, way, schedule, spacing)(**config)))
                found.append(Contender(group="diffusers on our grid", solver=solver.name, grid=grid, walk=walk))
    return found


def target_of(solver: Solver, scheduler: Any) -> SchedulerTarget:
    """A scheduler, ready to be driven."""
    alpha_bar = scheduler.alphas_cumprod
    trained = level_of(alpha_bar.sqrt(), (1 - alpha_bar).sqrt())
    return SchedulerTarget(name=solver.name, scheduler=scheduler, path=solver.path, promise=Promise(), trained=trained)


def _walk(target: SchedulerTarget) -> Walk:
    def walk(denoise: Denoiser, x: X, num_steps: int) -> X:
        if target.path == "exploding":  # its sample is x/alpha
            first = target.levels(num_steps)[0]
            x = x * torch.hypot(first.alpha, first.sigma)
        return target.run(denoise, x, num_steps, KeyedNoise.from_seeds(range(x.shape[0])))

    return walk


def _way(kind: Any) -> str | None:
    """How a scheduler takes a grid: UniPC's ``sigmas`` are for flows only."""
    accepted = inspect.signature(kind.set_timesteps).parameters
    if "sigmas" in accepted and "timesteps" in accepted:
        return "sigmas"
    return "timesteps" if "timesteps" in accepted else None


def _on_ours(kind: Any, way: str, schedule: Schedule, spacing: Spacing) -> Any:
    """The scheduler's class, but for its grid."""

    def set_timesteps(self: Any, num_inference_steps: int, *more: Any) -> None:
        if more:  # Heun's own constructor
            kind.set_timesteps(self, num_inference_steps, *more)
            return
        times = spacing(schedule, num_inference_steps)
        values = sigmas_of(schedule, times) if way == "sigmas" else timesteps_of(schedule, times)
        kind.set_timesteps(self, **{way: values})

    return type(kind.__name__, (kind,), {"set_timesteps": set_timesteps})


def sigmas_of(schedule: Schedule, times: Sequence[float]) -> list[float]:
    """sigma/alpha at every time of a grid, its end included."""
    level = schedule.at(torch.tensor(times, dtype=torch.float64))
    return floats(level.sigma / level.alpha)


def timesteps_of(schedule: Schedule, times: Sequence[float]) -> list[int]:
    """The whole timesteps of a chain that are nearest to the times of a grid, without its end.

    Raises:
        ValueError: if two of them are the same.
    """
    count = schedule.num_steps if isinstance(schedule, Tabulated) else 1000
    steps = [max(0, round(count * time) - 1) for time in times[:-1]]
    if len(set(steps)) < len(steps):
        raise ValueError(f"takes whole timesteps only, but two of {len(steps)} times share one")
    return steps


def their_unet(config: UNetConfig) -> Any:
    """The UNet2DModel of diffusers that has the layers of one of our U-Nets, at its own defaults otherwise.

    Its sinusoids are set to come as sines, then cosines, and of the same frequencies as ours.

    Args:
        config: DDPM's kind of U-Net: told no words, shifted by the vector, one plain attention head, halved without
            padding on all sides, and widths of 32 groups of two channels at least.

    Raises:
        ImportError: if diffusers is not installed.
        ValueError: if the configuration is none that UNet2DModel has.
    """
    widths = level_widths(config.width, config.multipliers, config.blocks)
    _require_theirs(config, widths)
    kinds = ["Attn" if level in config.attention else "" for level in range(len(widths))]
    return importlib.import_module("diffusers").UNet2DModel(
        in_channels=config.channels,
        out_channels=config.out_channels or config.channels,
        down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
        up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        block_out_channels=tuple(widths),
        layers_per_block=config.blocks,
        downsample_padding=0,
        dropout=config.style.dropout,
        norm_eps=config.style.epsilon,
        attention_head_dim=None,  # one head of all channels
        flip_sin_to_cos=False,
        freq_shift=0,
    )


def _require_theirs(config: UNetConfig, widths: Sequence[int]) -> None:
    wrong = {
        "text": config.text is not None,
        "modulation": config.style.modulation != "shift",
        "heads": config.heads != 1 or config.head_width is not None,
        "up_attention": config.up_attention != "every",
        "transformers": config.transformers != 0,
        "vector_width": config.vector_width is not None,
        "classes": config.classes is not None,
        "dimensions": config.dimensions != 2,
        "resampling": config.style.resampling != "convolution",
        "sum_scale": config.style.sum_scale != 1,
        "has_normed_queries": config.has_normed_queries,
        "pads_evenly": config.pads_evenly,
        "width": any(group_norm(width).num_groups != 32 for width in widths),
    }
    if any(wrong.values()):
        raise ValueError(
            f"diffusers' UNet2DModel differs from this U-Net in {', '.join(k for k, v in wrong.items() if v)}"
        )


def copy_weights(theirs: Any, ours: UNet) -> None:
    """Fill our U-Net with the weights of the UNet2DModel that ``their_unet`` makes of its configuration.

    Raises:
        ValueError: if the two have not as many weights.
    """
    counts = [sum(weight.numel() for weight in network.parameters()) for network in (theirs, ours)]
    if counts[0] != counts[1]:
        raise ValueError(f"theirs has {counts[0]} weights and ours {counts[1]}: they are not of one configuration")
    parts: list[Any] = [part for step in (*ours.down, ours.middle, *ours.up) for part in cast("Any", step).parts]
    pairs: list[tuple[nn.Module, Any]] = [
        (ours.first, theirs.conv_in),
        (ours.vector.scalar[0], theirs.time_embedding.linear_1),
        (ours.vector.scalar[2], theirs.time_embedding.linear_2),
        (ours.last[0], theirs.conv_norm_out),
        (ours.last[2], theirs.conv_out),
    ]
    for own, their in zip(parts, _their_parts(theirs), strict=True):
        if hasattr(own, "cells"):
            _copy_joint(their, own.cells.joint)
        pairs += _pairs(own, their)
    for own, their in pairs:
        own.load_state_dict(their.state_dict())


def _their_parts(theirs: Any) -> list[Any]:
    """Blocks, attentions and resamplings of a UNet2DModel, in the order in which they run."""
    found: list[Any] = []
    for block in (*theirs.down_blocks, theirs.mid_block, *theirs.up_blocks):
        attentions = list(getattr(block, "attentions", []))
        for place, residual in enumerate(block.resnets):  # the middle has one attention for two of these
            found += [residual, *attentions[place : place + 1]]
        found += [*(getattr(block, "downsamplers", None) or []), *(getattr(block, "upsamplers", None) or [])]
    return found


def _pairs(own: Any, their: Any) -> list[tuple[nn.Module, Any]]:
    """The layers of one of our parts, each with theirs."""
    if isinstance(own, ResidualBlock):
        pairs: list[tuple[nn.Module, Any]] = [
            (own.first_norm, their.norm1),
            (own.first, their.conv1),
            (own.modulation, their.time_emb_proj),
            (own.second_norm, their.norm2),
            (own.second, their.conv2),
        ]
        return pairs if isinstance(own.shortcut, nn.Identity) else [*pairs, (own.shortcut, their.conv_shortcut)]
    if hasattr(own, "cells"):
        return [(own.cells_norm, their.group_norm), (own.cells.out, their.to_out[0])]
    return [(own.conv, their.conv)]


def _copy_joint(their: Any, joint: Any) -> None:
    """Queries, keys and values, which our attention makes in one product."""
    three = [their.to_q, their.to_k, their.to_v]
    with torch.no_grad():
        joint.weight.copy_(torch.cat([layer.weight for layer in three]))
        joint.bias.copy_(torch.cat([layer.bias for layer in three]))
