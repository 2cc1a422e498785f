"""The look before a run: what its configuration, this machine and a few steps of it let one expect.

Knows: which figures foretell a run (how its noise ends, what its average remembers, memory, time, disk, whether it can
learn at all), and from which on each is worth a warning.
Does not know: what is in the pictures, how a finding is shown.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from unstir.data.findings import Finding
from unstir.data.transforms import to_unit
from unstir.diffusion.noise import KeyedNoise
from unstir.training.batches import CODEC, Captioned
from unstir.training.checkpoint import KEEP, bytes_of_checkpoint, bytes_of_tensors
from unstir.training.ema import share_of_start
from unstir.training.memory import free_bytes, most_that_fit
from unstir.training.run import RunConfig, first_model, reader_for
from unstir.training.trainer import Trainer, memory_of

_MOST_LOG_SNR = -6.0
_MOST_START = 0.01  # of the start, left in the average
_LONGEST_MEMORY = 1 / 3  # of the run, as half-life of the average
_LONGEST = 86_400.0  # seconds of a run that are worth no word
_TIMED = 3  # steps, after a first one that makes what is made once
_ENOUGH, _PATIENCE = 5.0, 20.0  # seconds of them, and of the first one, after which no other is taken
_BY_HEART = 8  # pictures
_TIMES_SEEN = 200  # steps
_SOON = 60.0  # seconds that nobody need be asked for
_LEARNED, _BLIND = 0.2, 0.5
_RAMP = 20  # steps over which the rate rises where pictures are learned by heart
_VIEWS, _PROMPTS = 3, 6  # of a preview
_GIB = 2**30

Stages = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a few steps of the very training took here.

    Args:
        images_per_second: throughput.
        shared_bytes: memory of a step whatever its pictures: gradient and moments too.
        picture_bytes: memory of each picture that is in it at once.
        free_bytes: memory that was free.
        checkpoint_bytes: on the disk.
        model_bytes: on the disk.
        fitting: pictures of a batch that fit into the memory at once; 0 if not one does, and nothing was timed then.
    """

    images_per_second: float
    shared_bytes: int
    picture_bytes: int
    free_bytes: int
    checkpoint_bytes: int
    model_bytes: int
    fitting: int


@dataclass(frozen=True, kw_only=True)
class Learned:
    """How one batch was learned by heart: the same pictures, words, noise levels and noise in every step.

    Args:
        pictures: of the batch.
        steps: that were taken; fewer than planned where it was learned before.
        share: loss at the end, of that at the start.
        x0_error: mean squared error on x0 at the end.
        blind_error: that of the pictures' mean: what can be known without looking at anything.
    """

    pictures: int
    steps: int
    share: float
    x0_error: float
    blind_error: float

    @property
    def is_learned(self) -> bool:
        """Whether the loss fell, and further than the mean picture explains (where pictures differ at all)."""
        differ = self.blind_error > 1e-4
        return self.share < _LEARNED and (not differ or self.x0_error < _BLIND * self.blind_error)


@dataclass(frozen=True, kw_only=True)
class Ahead:
    """What is to be expected of a run.

    Args:
        config: of the run.
        measured: by steps; None where none were taken.
        learned: by heart; None where it was not tried.
        seconds_by_heart: that trying it takes at most; None where no steps were timed.
        free_disk: bytes where runs are kept if nobody says otherwise.
    """

    config: RunConfig
    measured: Measured | None = None
    learned: Learned | None = None
    seconds_by_heart: float | None = None
    free_disk: int

    @property
    def end_log_snr(self) -> float:
        """At t = 1, in nats; -inf where nothing is left of the picture."""
        return self.config.model.schedule.at(torch.ones(1, dtype=torch.float64)).log_snr.item()

    @property
    def end_signal(self) -> float:
        """The picture's share of the amplitude at t = 1: alpha / sqrt(alpha^2 + sigma^2)."""
        return math.sqrt(1 / (1 + math.exp(-self.end_log_snr))) if self.end_log_snr > -700 else 0.0

    @property
    def start_left(self) -> float:
        """The share of the first weights in the average at the end."""
        training, ema = self.config.training, self.config.training.ema
        return share_of_start(training.images, training.batch, half_life_images=ema.half_life_images, warmup=ema.warmup)

    @property
    def half_life(self) -> float:
        """Of the average, at the end, in pictures."""
        ema = self.config.training.ema
        return min(ema.half_life_images, ema.warmup * self.config.training.images)

    @property
    def seconds(self) -> float | None:
        """Of the steps of the whole run."""
        rate = self.measured.images_per_second if self.measured else 0.0
        return self.config.training.images / rate if rate else None

    @property
    def at_once(self) -> int:
        """Pictures of a batch that are in memory at once."""
        training = self.config.training
        fitting = self.measured.fitting if self.measured else training.batch
        asked = fitting if training.micro_batch == "auto" else training.micro_batch
        return min(training.batch, asked or training.batch)

    @property
    def memory_bytes(self) -> int | None:
        """Of a step, beside what is taken already."""
        m = self.measured
        return m.shared_bytes + self.at_once * m.picture_bytes if m else None

    @property
    def disk_bytes(self) -> int | None:
        """Of the run folder when it is largest: while a checkpoint and a model are written beside the older ones."""
        if not self.measured:
            return None
        config = self.config
        sheets = config.training.images // config.cadence.preview + 2
        sheet = _VIEWS * (len(config.previews) or _PROMPTS) * 3 * config.model.size**2
        return (KEEP + 1) * self.measured.checkpoint_bytes + 2 * self.measured.model_bytes + sheets * sheet


def look_ahead(
    config: RunConfig,
    data: Captioned,
    *,
    device: str = "auto",
    by_heart: bool | None = None,
    progress: Stages = lambda stage, done, total: None,
) -> Ahead:
    """Take a few steps of a run, without its folder.

    Args:
        config: of the run.
        data: some of its pictures, to take the steps on.
        device: where.
        by_heart: whether it is tried to learn one batch by heart; None if that takes less than a minute.
        progress: called with (what is done, steps done, steps in all).

    Raises:
        ValueError: if the model cannot be built.
        ArithmeticError: if a loss is not finite.
    """
    # Long enough for the steps that are taken here, and with nothing decided yet about what fits.
    training = replace(config.training, images=max(config.training.images, 8 * config.training.batch), micro_batch=None)
    trainer = Trainer(first_model(config, reader_for(config, data)), data, training, device=device)
    measured = _measure(trainer, config, progress)
    ahead = Ahead(config=config, measured=measured, free_disk=free_disk_of(Path()))
    if not measured.fitting:
        return ahead
    trainer.micro_batch = min(measured.fitting, ahead.at_once)
    measured = _time(trainer, measured, progress)
    count = training.batch if trainer.learner.is_compiled else min(_BY_HEART, training.batch)
    seconds = _TIMES_SEEN * count / measured.images_per_second
    is_tried = seconds < _SOON if by_heart is None else by_heart
    learned = _learn(trainer, count, progress) if is_tried else None
    return replace(ahead, measured=measured, learned=learned, seconds_by_heart=seconds)


def free_disk_of(folder: Path) -> int:
    """The free bytes of the disk that a folder is on."""
    return shutil.disk_usage(folder).free


def _measure(trainer: Trainer, config: RunConfig, progress: Stages) -> Measured:
    """Memory, by what the first picture and the first two keep; nothing is timed yet."""
    progress("measuring memory", 0, 1)
    shared, each = memory_of(trainer)
    weights, free = bytes_of_tensors(dict(trainer.network.named_parameters())), free_bytes(trainer.device)
    try:
        fitting = most_that_fit(config.training.batch, free, fixed=shared, each=each)
    except MemoryError:
        fitting = 0
    progress("measuring memory", 1, 1)
    return Measured(
        images_per_second=0.0,
        shared_bytes=shared,
        picture_bytes=each,
        free_bytes=free,
        checkpoint_bytes=4 * weights,  # weights, average, two moments; known better after a step
        model_bytes=bytes_of_tensors(trainer.ema_network.state_dict()),
        fitting=fitting,
    )


def _time(trainer: Trainer, measured: Measured, progress: Stages) -> Measured:
    """The throughput of steps after the first (of the first alone where that took long): their median."""
    seconds: list[float] = []
    while not seconds or (len(seconds) <= _TIMED and seconds[0] < _PATIENCE and sum(seconds[1:]) < _ENOUGH):
        started = time.perf_counter()
        _ = trainer.step().loss  # waits for the device
        seconds.append(time.perf_counter() - started)
        progress("taking training steps", len(seconds), 1 + _TIMED)
    progress("taking training steps", 1 + _TIMED, 1 + _TIMED)
    return replace(
        measured,
        images_per_second=trainer.config.batch / median(seconds[1:] or seconds),
        checkpoint_bytes=bytes_of_checkpoint(trainer.checkpoint()),
    )


def _learn(trainer: Trainer, count: int, progress: Stages) -> Learned:
    losses, rate = trainer.losses(count), trainer.config.optimizer.learning_rate
    blind = _blind_error(trainer)
    first, learned = 0.0, Learned(pictures=count, steps=0, share=1.0, x0_error=math.inf, blind_error=blind)
    for step in range(1, _TIMES_SEEN + 1):
        moved = trainer.learner.step(losses, count, rate=rate * min(1.0, step / _RAMP), decay=0.0)
        loss, x0_error = moved.loss.per_sample.mean().item(), moved.loss.parts["x0_error"].mean().item()
        first = first or loss
        learned = replace(learned, steps=step, share=loss / first, x0_error=x0_error)
        progress("learning one batch by heart", step, _TIMES_SEEN)
        if learned.is_learned:
            break
    return learned


def _blind_error(trainer: Trainer) -> float:
    """The mean squared distance of pictures, where the process sees them, from their mean."""
    pictures = to_unit(torch.stack(list(trainer.data.pictures)))
    noise = KeyedNoise(keys=tuple((trainer.config.seed, CODEC, i) for i in range(len(pictures))))
    latents = trainer.model.codec.encode(pictures.to(trainer.device), noise)
    return (latents - latents.mean(0)).square().mean().item()


def judge_ahead(ahead: Ahead) -> tuple[Finding, ...]:
    """What there is to say of a run to come, in a fixed order, the fine things too."""
    findings = [_of_schedule(ahead), _of_average(ahead)]
    if ahead.measured:
        findings += [_of_memory(ahead, ahead.measured), _of_time(ahead), _of_disk(ahead), _of_learning(ahead)]
    return tuple(finding for finding in findings if finding is not None)


def figures_of(ahead: Ahead) -> dict[str, Any]:
    """Every number, by name; None where it was not measured (and for a log-SNR that is not finite)."""
    learned = ahead.learned
    return {
        "end_log_snr": ahead.end_log_snr if math.isfinite(ahead.end_log_snr) else None,
        "end_signal": ahead.end_signal,
        "average_start_left": ahead.start_left,
        "average_half_life_images": ahead.half_life,
        "planned_images": ahead.config.training.images,
        "seconds": ahead.seconds,
        "at_once": ahead.at_once,
        "memory_bytes": ahead.memory_bytes,
        "disk_bytes": ahead.disk_bytes,
        "free_disk_bytes": ahead.free_disk,
        "steps": None if ahead.measured is None else asdict(ahead.measured),
        "by_heart": learned and {**asdict(learned), "is_learned": learned.is_learned},
    }


def _of_schedule(ahead: Ahead) -> Finding:
    left = f"{ahead.end_signal:.1%} of the amplitude at t = 1 is still the picture (log-SNR {ahead.end_log_snr:.1f})"
    if ahead.end_log_snr <= _MOST_LOG_SNR:
        return Finding(severity="fine", what=left)
    return Finding(
        severity="warning",
        what=f"{left}, but drawing starts from pure noise, which it never saw: brightness and large shapes suffer",
        remedy=f"let the schedule end at a log-SNR of {_MOST_LOG_SNR:g} or less, such as --set model.schedule=cosine "
        "or --set model.schedule=rectified_flow",
    )


def _of_average(ahead: Ahead) -> Finding:
    images = ahead.config.training.images
    if ahead.half_life == 0:
        return Finding(severity="fine", what="no average of the weights is kept")
    what = f"of the averaged weights, {ahead.start_left:.2%} will still be the start, and half is forgotten in "
    what += f"{ahead.half_life:.0f} of {images} pictures"
    if ahead.start_left <= _MOST_START and ahead.half_life <= _LONGEST_MEMORY * images:
        return Finding(severity="fine", what=what)
    return Finding(
        severity="warning",
        what=f"{what}: the average lags behind",
        remedy=f"let it forget earlier: --set training.ema.half_life_images={max(images // 20, 1)} and --set "
        "training.ema.warmup=0.05",
    )


def _of_memory(ahead: Ahead, measured: Measured) -> Finding:
    need, free = (ahead.memory_bytes or 0) / _GIB, measured.free_bytes / _GIB
    what = f"a step with {ahead.at_once} pictures at once keeps about {need:.2f} GiB, and {free:.1f} GiB are free"
    if ahead.at_once <= measured.fitting:
        return Finding(severity="fine", what=what)
    if not measured.fitting:
        need = (measured.shared_bytes + measured.picture_bytes) / _GIB
        return Finding(
            severity="problem",
            what=f"a step with one picture keeps about {need:.2f} GiB, too much for the {free:.1f} GiB that are free",
            remedy="take a smaller recipe or smaller pictures, or free some memory",
        )
    return Finding(
        severity="problem",
        what=f"{what}, too few with what a pass needs for a moment",
        remedy=f"train with --batch auto, which sees {measured.fitting} pictures at once and changes only rounding",
    )


def _of_time(ahead: Ahead) -> Finding | None:
    if ahead.seconds is None or ahead.measured is None:
        return None
    what = f"{ahead.config.training.images} pictures at {ahead.measured.images_per_second:.3g} a second take about "
    what += f"{_about(ahead.seconds)}, and previews and held-out losses come on top"
    if ahead.seconds <= _LONGEST:
        return Finding(severity="fine", what=what)
    return Finding(
        severity="warning",
        what=what,
        remedy="see fewer pictures with --images, take a smaller recipe (tiny takes minutes) or a GPU, or start from "
        "a trained model with --from builtin",
    )


def _of_disk(ahead: Ahead) -> Finding:
    need, free = (ahead.disk_bytes or 0) / _GIB, ahead.free_disk / _GIB
    what = f"{KEEP + 1} checkpoints, the model twice and all previews take up to {need:.2f} GiB, and {free:.1f} GiB "
    what += "of the disk here are free"
    if need < free:
        return Finding(severity="fine", what=what)
    return Finding(
        severity="problem",
        what=what,
        remedy="free some disk, or keep the run on another one with --out",
    )


def _of_learning(ahead: Ahead) -> Finding | None:
    learned = ahead.learned
    if learned is None:
        if ahead.seconds_by_heart is None:
            return None
        return Finding(
            severity="fine",
            what="not tried: whether one batch can be learned by heart (--overfit tries it, in "
            f"{_about(ahead.seconds_by_heart)} at most)",
        )
    what = f"{learned.pictures} pictures seen {learned.steps} times with the same noise: the loss fell to "
    what += f"{learned.share:.1%} of its start"
    if learned.is_learned:
        return Finding(severity="fine", what=what)
    blind = f"{learned.x0_error / max(learned.blind_error, 1e-9):.1f} times that of their mean picture"
    return Finding(
        severity="problem",
        what=f"{what}, and the error on x0 to {blind}: a model that cannot learn them by heart learns no set",
        remedy="try another --set training.optimizer.learning_rate (it was "
        f"{ahead.config.training.optimizer.learning_rate:g}), --set training.precision=float32, or a recipe as it is",
    )


def _about(seconds: float) -> str:
    """A time to reckon with: two digits, and the unit that suits it."""
    units: Sequence[tuple[str, float]] = (("days", 86_400), ("hours", 3600), ("minutes", 60), ("seconds", 1))
    unit, size = next(((unit, size) for unit, size in units if seconds >= 2 * size), units[-1])
    return f"{seconds / size:.2g} {unit}" if seconds / size < 100 else f"{seconds / size:.0f} {unit}"
