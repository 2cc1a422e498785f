"""Training for experiments: a law that is drawn from in memory, a small network, no run folder.

Knows: a loop over batches, an average of the weights.
Does not know: which law, which network, which objective.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from unstir.condition import Condition
from unstir.diffusion.denoiser import Denoiser, NetworkDenoiser
from unstir.diffusion.noise import BlockNoise
from unstir.diffusion.objective import Loss
from unstir.diffusion.process import Estimate
from unstir.diffusion.schedule import Level
from unstir.reproduce.report import Advance
from unstir.training.ema import ema_decay, ema_update
from unstir.training.optimizer import OptimizerConfig, learning_rate, make_optimizer
from unstir.typing import Noise, X

Draw = Callable[[BlockNoise], X]
"""Samples of the law, as many as the noise has rows."""

Objective = Callable[[NetworkDenoiser[Condition], X, Condition, Noise], Loss]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How long and how fast an experiment trains.

    Args:
        steps: batches.
        batch: samples a step.
        seed: of data and noise; initial weights come from torch's generator, seeded with it by ``seeded``.
        half_life: of the average of the weights, as a share of the run.
        optimizer: how weights move.
    """

    steps: int
    batch: int
    seed: int = 0
    half_life: float = 0.02
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=2e-3, weight_decay=0.0, warmup_images=0, anneal=0.6)
    )


def seeded(seed: int, build: Callable[[], nn.Module]) -> Any:
    """A network with the initial weights of a seed; torch's generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def fit(
    denoiser: NetworkDenoiser[Condition],
    objective: Objective,
    draw: Draw,
    config: Fit,
    *,
    advance: Advance = lambda stage, done, total: None,
    stage: str = "training",
) -> NetworkDenoiser[Condition]:
    """Train the network in place; returns the denoiser with the averaged weights.

    Raises:
        ArithmeticError: if the loss is not finite.
    """
    network = cast(nn.Module, denoiser.network).train()
    average = copy.deepcopy(network).requires_grad_(False)
    optimizer = make_optimizer(network, config.optimizer)
    own, weights = list(average.parameters()), list(network.parameters())
    total = config.steps * config.batch
    condition = unconditional(config.batch)
    for step in range(config.steps):
        noise = BlockNoise(key=(config.seed, step), count=config.batch)
        loss = objective(denoiser, draw(noise.at(0)), condition, noise.at(1)).per_sample.mean()
        if not bool(torch.isfinite(loss)):
            raise ArithmeticError(f"the loss is not finite at step {step}; lower the learning rate")
        loss.backward()
        nn.utils.clip_grad_norm_(weights, config.optimizer.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config.optimizer, step * config.batch, total)
        optimizer.step()
        optimizer.zero_grad()
        seen = (step + 1) * config.batch
        ema_update(own, weights, ema_decay(config.batch, seen, half_life_images=config.half_life * total, warmup=0.05))
        advance(stage, step + 1, config.steps)
    return NetworkDenoiser(
        cast(Any, average.eval()),
        denoiser.process,
        denoiser.parameterization,
        is_self_conditioned=denoiser.is_self_conditioned,
    )


def unconditional(count: int) -> Condition:
    """What networks of experiments are told about each sample: nothing."""
    return Condition(kept=torch.zeros(count, dtype=torch.bool))


def in_chunks(denoiser: NetworkDenoiser[Condition], size: int = 4096) -> Denoiser:
    """The trained denoiser for batches of any size, a chunk of rows at a time."""

    def denoise(x_t: X, level: Level, previous: Estimate | None = None) -> Estimate:
        beliefs: list[Estimate] = []
        for start in range(0, x_t.shape[0], size):
            rows = slice(start, start + size)
            x = x_t[rows]
            own = level if level.t.ndim == 0 else level[rows]
            beliefs.append(denoiser(x, own, unconditional(len(x)), None if previous is None else previous[rows]))
        fraction: Any = beliefs[0].variance_fraction
        if isinstance(fraction, Tensor):
            fraction = torch.cat([cast(Tensor, belief.variance_fraction) for belief in beliefs])
        return Estimate(x0=torch.cat([belief.x0 for belief in beliefs]), variance_fraction=fraction)

    return denoise
