"""The trainer: from a state to the state after one more batch.

Knows: the order of a training step, and what a run's state is.
Does not know: run folders, progress bars, previews: these are hooks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
from torch import nn

from unstir.codec import LearnedCodec
from unstir.condition import Condition
from unstir.conditioning.captions import Wording
from unstir.config import registered
from unstir.device import autocast, pins, resolve_device, resolve_precision
from unstir.diffusion.denoiser import NetworkDenoiser
from unstir.diffusion.objective import DISTANCES, WEIGHTS, Hybrid, Loss, Offset, Simple, VariationalBound
from unstir.diffusion.times import EndTime, LogitNormalTimes, LogNormalTimes, LogSNRTimes, Times, UniformTimes
from unstir.model import Model, place_codec
from unstir.training.batches import CODEC, OBJECTIVE, Captioned, batch_of
from unstir.training.checkpoint import Checkpoint
from unstir.training.culprit import culprit
from unstir.training.ema import ema_decay
from unstir.training.engine import Team, whole_of
from unstir.training.feed import Feed, Foresight, is_of_one_shape, of_one_length, pinned, resident, workers_of
from unstir.training.latents import Encoded, LatentCache
from unstir.training.memory import free_bytes, kept_bytes, most_that_fit
from unstir.training.optimizer import OptimizerConfig, learning_rate
from unstir.training.step import Learner, Moved, NotFiniteError
from unstir.typing import Noise, Picture, integers

TIMES: dict[str, type[Times]] = {
    "uniform": UniformTimes,
    "logit_normal": LogitNormalTimes,
    "log_normal": LogNormalTimes,
    "log_snr": LogSNRTimes,
    "end": EndTime,
}

_SELDOM_TOO_MANY = 16  # pictures at once; with fewer, nobody looks whether they fit before they do not
MAX_WORKERS = 64
"""Threads that may prepare batches."""


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """How long the average of the weights remembers.

    Args:
        half_life_images: after so many pictures, half of an old weight is forgotten.
        warmup: the half-life is at most this share of the pictures seen.

    Raises:
        ValueError: if a number is out of its range.
    """

    half_life_images: float = 10_000
    warmup: float = 0.05

    def __post_init__(self) -> None:
        """Refuse lengths that are none."""
        if not 0 <= self.half_life_images < math.inf or not 0 <= self.warmup <= 1:
            raise ValueError(
                f"half_life_images must be at least 0 and warmup in [0, 1], got {self.half_life_images} and "
                f"{self.warmup}"
            )


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a model is trained.

    Args:
        images: pictures to see in all.
        batch: pictures a step.
        micro_batch: pictures in memory at once; a batch of more is seen in parts whose gradients add up, which changes
            nothing but rounding; None is all, auto as many as the memory takes.
        parallel: how several processes (torchrun) share the weights: each holds all (ddp), or each its shard (fsdp).
        workers: threads that prepare the next batches, which changes nothing; 0 is none, auto is 0 on a CPU and 2 on
            CUDA.
        seed: decides order, wordings, noise and initial weights.
        precision: inside the network; "auto" is bf16 where it is native.
        objective: simple (the weighted error), bound (the likelihood's), or hybrid (simple for the mean, bound for a
            learned variance).
        chain: steps of the chain whose bound it is; None is continuous time. Not of the simple objective.
        weight: what an error on x0 weighs at a noise level, a name of ``WEIGHTS``; not of the bound.
        distance: what a weighted error costs in the simple objective.
        offset_noise: strength of the shift of every channel's noise; 0 is none.
        times: the density of training times of the simple objective; the bound's are uniform.
        optimizer: how weights move.
        ema: how they are averaged.
        wording: how captions are varied.
        latents: how is kept what a codec with weights makes of each picture, so that it does so once and not every
            step: float32 (which changes nothing), float16 (half the room, rounded), or off.

    Raises:
        ValueError: if a number is out of its range.
    """

    images: int = 200_000
    batch: int = 32
    micro_batch: int | Literal["auto"] | None = None
    parallel: Literal["ddp", "fsdp"] = "ddp"
    workers: int | Literal["auto"] = "auto"
    seed: int = 0
    precision: Literal["auto", "float32", "bf16"] = "auto"
    objective: Literal["simple", "bound", "hybrid"] = "simple"
    chain: int | None = 1000
    weight: Literal["noise", "x0", "velocity", "bounded", "min_snr", "edm"] = "bounded"
    distance: Literal["squared", "l1", "huber"] = "squared"
    offset_noise: float = 0.0
    times: Annotated[Times, *registered(TIMES)] = field(default_factory=lambda: LogitNormalTimes(std=1.2, uniform=0.15))
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    wording: Wording = field(default_factory=Wording)
    latents: Literal["float32", "float16", "off"] = "float32"

    def __post_init__(self) -> None:
        """Refuse a run without pictures."""
        if self.images < 1 or self.batch < 1:
            raise ValueError(f"images and batch must be at least 1, got {self.images} and {self.batch}")
        if isinstance(self.micro_batch, int) and self.micro_batch < 1:
            raise ValueError(f"micro_batch must be at least 1, null (all at once) or auto, got {self.micro_batch}")
        if isinstance(self.workers, int) and not 0 <= self.workers <= MAX_WORKERS:
            raise ValueError(f"workers must be from 0 to {MAX_WORKERS}, or auto, got {self.workers}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be a whole number from 0 to {2**32 - 1}, got {self.seed}")
        if not 0 <= self.offset_noise < math.inf:
            raise ValueError(f"offset_noise must be at least 0, got {self.offset_noise}")
        if self.objective == "hybrid" and self.chain is None:
            raise ValueError("a learned variance is one of a chain's steps; give chain a number of steps, 1000 say")


def objective_of(config: TrainingConfig) -> Simple | VariationalBound | Hybrid | Offset:
    """What a run minimises."""
    bound = VariationalBound(num_steps=config.chain)
    objective: Simple | VariationalBound | Hybrid = bound
    if config.objective == "simple":
        objective = Simple(weight=WEIGHTS[config.weight], times=config.times, distance=DISTANCES[config.distance])
    elif config.objective == "hybrid":
        objective = Hybrid(bound=bound, simple=WEIGHTS[config.weight])
    return Offset(objective=objective, strength=config.offset_noise) if config.offset_noise else objective


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """What one step did; its numbers wait for the device only where they are asked for.

    Args:
        images_seen: pictures seen after it.
        moved: losses of the batch and the norm of the gradient.
        learning_rate: of the step.
        seconds: wall time of the step; on a GPU that of asking for it.
    """

    images_seen: int
    moved: Moved
    learning_rate: float
    seconds: float

    @property
    def loss(self) -> float:
        """Mean over the batch."""
        return self.moved.loss.per_sample.mean().item()

    @property
    def x0_error(self) -> float:
        """Mean squared error on x0, mean over the batch."""
        return self.moved.loss.parts["x0_error"].mean().item()

    @property
    def gradient_norm(self) -> float:
        """Before clipping."""
        return self.moved.norm.item()


class Trainer:
    """A model in training.

    Its whole state is ``images_seen``, the weights, their average and the optimizer's moments; what is seen next, and
    the noise on it, are functions of the configuration and ``images_seen``.

    Args:
        model: whose weights to train; they are moved to the device.
        data: what to train on.
        config: how.
        device: where.
        team: the processes that train as one; each sees its part of every batch.
        folder: where latents are kept, if the codec has weights; None keeps some in memory.

    Raises:
        ValueError: if the batch cannot be divided among them.
    """

    def __init__(
        self,
        model: Model,
        data: Captioned,
        config: TrainingConfig,
        *,
        device: str = "auto",
        team: Team | None = None,
        folder: Path | None = None,
    ) -> None:
        self.model, self.data, self.config, self.team = model, data, config, team or Team()
        if config.batch % self.team.size:
            raise ValueError(
                f"a batch of {config.batch} cannot be divided among {self.team.size} processes; give a multiple with "
                f"--batch, {-(-config.batch // self.team.size) * self.team.size} say, or start fewer processes"
            )
        self.device = resolve_device(device)
        self.precision: Literal["float32", "bf16"] = resolve_precision(config.precision, self.device)
        place_codec(model, self.device)
        network = cast(nn.Module, model.denoiser.network)
        self.learner = Learner(
            network,
            config.optimizer,
            device=self.device,
            precision=self.precision,
            is_static=is_of_one_shape(data),
            team=self.team,
            way=config.parallel,
        )
        self.denoiser = self._denoiser(self.learner.called)
        self.encoded = encoded_of(model, config, self.device, folder)
        # Whose moments are looked up by its bytes has to be here.
        self._shown = data if self.encoded is not None else resident(data, self.device)
        self._foresight = Foresight()
        self.feed = Feed(self._prepare, self._follow, workers=workers_of(config.workers, self.device))
        self.objective = objective_of(config)
        self.images_seen = 0
        self.micro_batch: int | None = None
        self.micro_batch = micro_batch_of(self) if config.micro_batch == "auto" else config.micro_batch

    @property
    def network(self) -> nn.Module:
        """Whose weights learn."""
        return self.learner.network

    @property
    def ema_network(self) -> Any:
        """The network with the averaged weights."""
        return self.learner.average

    @property
    def ema_model(self) -> Model:
        """The model with the averaged weights, for previews, validation and saving."""
        model, denoiser = self.model, self._denoiser(self.ema_network)
        return Model(
            config=model.config,
            denoiser=denoiser.eval(),
            reader=model.reader,
            training=model.training,
            codec=model.codec,
        )

    def _denoiser(self, network: Any) -> NetworkDenoiser[Condition]:
        """The model's denoiser with other weights, or its own called in another way."""
        own = self.model.denoiser
        return NetworkDenoiser(network, own.process, own.parameterization, is_self_conditioned=own.is_self_conditioned)

    def step(self) -> Report:
        """See one more batch.

        Raises:
            ArithmeticError: if the loss or its gradient is not finite; on a CPU nothing was changed then, elsewhere it
                is the step before that was.
        """
        started = time.perf_counter()
        config = self.config
        count = min(config.batch, config.images - self.images_seen)
        losses = self.losses(count)
        rate = learning_rate(config.optimizer, self.images_seen, config.images)
        seen, ema = self.images_seen + count, config.ema
        decay = ema_decay(count, seen, half_life_images=ema.half_life_images, warmup=ema.warmup)
        try:
            moved = self.learner.step(losses, count, rate=rate, decay=decay)
        except NotFiniteError as error:
            raise ArithmeticError(self._diagnosis(error.moved, losses)) from None
        self.images_seen = seen
        return Report(images_seen=seen, moved=moved, learning_rate=rate, seconds=time.perf_counter() - started)

    def losses(self, count: int) -> list[Callable[[], Loss]]:
        """The losses of this process's rows of the next ``count`` pictures, computed when they are called.

        There is one for each part of the batch; of the first picture where no row is this process's.
        """
        return [
            partial(self._loss, pictures[rows], condition.rows(rows), noise.rows(rows))
            for pictures, condition, noise in self.feed.take(self.images_seen, count)  # pictures of one shape each
            for rows in slices(len(pictures), self.micro_batch)
        ]

    def _follow(self, start: int) -> tuple[int, int] | None:
        """Where the batch after ``start`` pictures begins, and how many it shows; None at the end of the run."""
        left = self.config.images - start
        return (start, min(self.config.batch, left)) if left > 0 else None

    def _prepare(self, start: int, count: int) -> list[tuple[Picture, Condition, Noise]]:
        """This process's rows of a batch as ``batch_of`` makes it, ready for the device; called by threads too.

        Where the codec has weights, pictures are there already what its encoder says of them.
        """
        mine = self.team.rows(count)
        parts = batch_of(
            self._shown,
            self.model.reader,
            self.config.wording,
            seed=self.config.seed,
            start=start + mine.start,
            count=max(mine.stop - mine.start, 1),  # who has none comes along with one: the others wait for it
            drop=self.model.config.condition_drop,
        )
        if self.encoded is not None:
            parts = [(self.encoded.of(pictures), condition, noise) for pictures, condition, noise in parts]
        if self.learner.is_compiled:  # for every length of the words it would be compiled again
            longest = self.model.reader.max_tokens
            parts = [(pictures, of_one_length(condition, longest), noise) for pictures, condition, noise in parts]
        is_pinned = pins(self.device)
        if is_pinned:
            parts = [(pinned(pictures), condition.map(pinned), noise) for pictures, condition, noise in parts]
        if not self.feed.workers:
            return list[tuple[Picture, Condition, Noise]](parts)
        foresee = partial(self._foresight.of, is_pinned=is_pinned)
        return [(pictures, condition, foresee(pictures, noise)) for pictures, condition, noise in parts]

    def _loss(self, pictures: Picture, condition: Condition, noise: Noise) -> Loss:
        is_pinned = pins(self.device)  # then nobody waits for the copy
        pictures, condition = (
            pictures.to(self.device, non_blocking=is_pinned),
            condition.map(lambda tensor: tensor.to(self.device, non_blocking=is_pinned)),
        )
        latents = self._drawn(pictures, noise.at(CODEC))
        return self.objective(self.denoiser, latents, condition, noise.at(OBJECTIVE))

    def latents_of(self, pictures: Picture, noise: Noise) -> Picture:
        """Latents of pictures, on the device, by what is kept where something is."""
        given = pictures if self.encoded is None else self.encoded.of(pictures)
        return self._drawn(given.to(self.device), noise)

    def _drawn(self, given: Picture, noise: Noise) -> Picture:
        """Latents of pictures, or of what an encoder said of them."""
        if self.encoded is None:
            return self.model.codec.encode(given, noise)
        return cast(LearnedCodec, self.model.codec).drawn(given, noise)

    def run(
        self, hooks: Sequence[Callable[[Trainer, Report], None]], *, should_stop: Callable[[], bool] = lambda: False
    ) -> None:
        """Train until ``config.images`` pictures were seen, or until ``should_stop`` after a step.

        Every hook is called after every step. When it is over, for whatever reason, so are the threads of the feed.
        """
        try:
            while self.images_seen < self.config.images:
                report = self.step()
                for hook in hooks:
                    hook(self, report)
                if self.team.any(should_stop()):
                    return
        finally:
            self.feed.close()

    def require_finite(self) -> None:
        """See that the state is one to go on from.

        Raises:
            ArithmeticError: naming the first weight that is not finite.
        """
        for name, weight in [*self.network.named_parameters(), *self.ema_network.named_parameters()]:
            if not bool(whole_of(torch.isfinite(weight).all())):
                raise ArithmeticError(
                    f"the weight {name} is not finite after {self.images_seen} pictures; the last checkpoint is "
                    "untouched: resume with a lower --training.optimizer.learning_rate or in float32"
                )

    def checkpoint(self) -> Checkpoint:
        """The state, to be saved."""
        return self.learner.state(self.images_seen)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a saved state, exactly.

        Raises:
            ValueError: if it is the state of another network.
        """
        self.learner.restore(checkpoint)
        self.images_seen = checkpoint.images_seen

    def _diagnosis(self, moved: Moved, losses: Sequence[Callable[[], Loss]]) -> str:
        bad = integers((~torch.isfinite(moved.loss.per_sample)).nonzero().flatten())
        log_snr = moved.loss.parts["log_snr"]
        where = f"the loss at log-SNR {log_snr[bad[0]].item():.2f}" if bad else "the gradient"
        source = ""
        if not self.learner.is_sharded:
            with autocast(self.device, self.precision):  # where it comes a step late, the weights have moved on already
                source = culprit(self.network, losses if self.learner.is_instant else [])
        return (
            f"{where} is not finite after {self.images_seen} pictures, in step {self.images_seen // self.config.batch} "
            f"(gradient norm {moved.norm.item():.3g}){source and '; ' + source}; the last checkpoint is untouched: "
            "resume with a lower --training.optimizer.learning_rate or in float32"
        )


def encoded_of(model: Model, config: TrainingConfig, device: torch.device, folder: Path | None) -> Encoded | None:
    """What training sees of pictures through the codec of a model; None where that has no weights.

    Args:
        model: whose codec, on the device.
        config: how latents are kept.
        device: where they are made.
        folder: where they are kept; None is in memory.
    """
    if not isinstance(model.codec, nn.Module):
        return None
    cache = None if config.latents == "off" else LatentCache(folder)
    dtype = torch.float16 if config.latents == "float16" else torch.float32
    return Encoded(cast(LearnedCodec, model.codec), device, cache, dtype=dtype)


def memory_of(trainer: Trainer) -> tuple[int, int]:
    """What a step keeps, by what the first picture and the first two of a process keep.

    Returns:
        Bytes whatever the pictures, of what is not there before the first step, and bytes a picture.
    """
    one, two = (
        sum(kept_bytes(loss, trainer.device, trainer.precision) for loss in trainer.losses(count * trainer.team.size))
        for count in (1, 2)
    )
    weights = sum(4 * weight.numel() for weight in trainer.network.parameters())
    return max(2 * one - two, 0) + 3 * weights, max(two - one, 1)  # the gradient and two moments are not there yet


def micro_batch_of(trainer: Trainer) -> int:
    """How many pictures of a batch the free memory takes at once.

    Raises:
        MemoryError: if it does not take one.
    """
    fixed, each = memory_of(trainer)
    count = trainer.config.batch // trainer.team.size
    return -trainer.team.largest(-most_that_fit(count, free_bytes(trainer.device), fixed=fixed, each=each))


def require_fit(trainer: Trainer) -> None:
    """See that the free memory takes a step, before one is taken.

    Raises:
        MemoryError: if it does not.
    """
    count = trainer.config.batch // trainer.team.size
    at_once = min(count, trainer.micro_batch or count)
    if at_once < _SELDOM_TOO_MANY or trainer.config.micro_batch == "auto":  # which has been measured, and fits
        return
    fixed, each = memory_of(trainer)
    needed, free = fixed + each * at_once, free_bytes(trainer.device)
    if needed > free:
        raise MemoryError(
            f"a step with {at_once} pictures at once keeps {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are "
            "free; give a smaller --batch, or --batch auto, which sees it in parts"
        )


def slices(count: int, most: int | None) -> list[slice]:
    """Rows 0 to ``count`` in as few consecutive parts as hold at most ``most`` each, all nearly as long."""
    parts = 1 if most is None else -(-count // most)
    ends = [count * part // parts for part in range(parts + 1)]
    return [slice(start, end) for start, end in pairwise(ends)]
