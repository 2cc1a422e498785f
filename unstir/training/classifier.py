"""Training of a classifier: cross-entropy on spoiled pictures at random times, from a folder to its classifier.

Knows: which pictures are of which class, how they are turned and spoiled, what a run folder of a classifier holds.
Does not know: command lines, what the classifier is for.

    RUN/run.json             the resolved configuration, and which data it saw
    RUN/log.jsonl            losses, speed, held-out accuracy per quarter of t
    RUN/checkpoints/         whole states, the newest two
    RUN/model/               the classifier (averaged weights) as of the last checkpoint
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from unstir.classifier import Classifier, ClassifierConfig, build_classifier, class_named, save_classifier
from unstir.data.transforms import to_unit
from unstir.device import resolve_device, resolve_precision
from unstir.diffusion.noise import KeyedNoise
from unstir.diffusion.objective import Loss
from unstir.diffusion.times import UniformTimes
from unstir.model import ModelConfig
from unstir.nn.encoder import Encoder
from unstir.training.batches import Captioned, picture_of
from unstir.training.checkpoint import Checkpoint, save_checkpoint
from unstir.training.ema import ema_decay
from unstir.training.loop import Plan, begin, loop, read_plain_run
from unstir.training.optimizer import OptimizerConfig, learning_rate
from unstir.training.run import Outcome, RunConfig, Say, load_data
from unstir.training.step import Learner, NotFiniteError
from unstir.training.trainer import EmaConfig
from unstir.typing import Noise, Picture

_TIME, _NOISE, _FLIP = range(3)  # sub-keys of a sample's randomness
_HELD_OUT = 0x5EED  # the seed of held-out noise: not the run's, so that runs with different seeds compare
_QUARTERS = 4


@dataclass(frozen=True, kw_only=True)
class ClassifierTraining:
    """How a classifier is trained.

    Args:
        images: pictures to see in all.
        batch: pictures a step.
        seed: decides order, times, noise, flips and initial weights.
        precision: inside the network; "auto" is bf16 where it is native.
        flip: whether half of the pictures are mirrored, left to right.
        optimizer: how weights move.
        ema: how they are averaged.

    Raises:
        ValueError: if a number is out of its range.
    """

    images: int = 300_000
    batch: int = 64
    seed: int = 0
    precision: Literal["auto", "float32", "bf16"] = "auto"
    flip: bool = True
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)

    def __post_init__(self) -> None:
        """Refuse a run without pictures."""
        if self.images < 1 or self.batch < 1:
            raise ValueError(f"images and batch must be at least 1, got {self.images} and {self.batch}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be a whole number from 0 to {2**32 - 1}, got {self.seed}")


@dataclass(frozen=True, kw_only=True)
class ClassifierRun:
    """Everything that decides the training of a classifier, but for the data themselves.

    Args:
        recipe: name of the recipe that it came from.
        data: folder or file of pictures, each with a caption that names its class.
        classifier: what is trained.
        training: how.
        log: pictures between two lines in the log.
        checkpoint: pictures between two states on the disk, each with the held-out accuracy.

    Raises:
        ValueError: if a cadence is below 1.
    """

    recipe: str = "own"
    data: str = ""
    classifier: ClassifierConfig
    training: ClassifierTraining = field(default_factory=ClassifierTraining)
    log: int = 5000
    checkpoint: int = 50_000

    def __post_init__(self) -> None:
        """Refuse what would never, or always, be due."""
        if min(self.log, self.checkpoint) < 1:
            raise ValueError("every cadence must be at least 1 picture")


@dataclass(frozen=True, kw_only=True, eq=False)
class Labelled:
    """Pictures in memory, each with the number of its class.

    Args:
        pictures: as bytes.
        classes: one a picture.
    """

    pictures: UInt8[Tensor, "n c h w"]
    classes: Int[Tensor, "n"]

    @classmethod
    def of(cls, data: Captioned, classes: Sequence[str]) -> Labelled:
        """Pictures with the class that each one's first caption names.

        Raises:
            ValueError: if there are none, one has no caption, or a caption names no class or several.
        """
        if not len(data):
            raise ValueError("there are no pictures to learn classes from; give others with --data")
        first = [captions[0] if captions else "" for captions in data.captions]
        number = {caption: class_named(caption, classes) for caption in dict.fromkeys(first)}
        return cls(
            pictures=torch.stack(list(data.pictures)), classes=torch.tensor([number[caption] for caption in first])
        )

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.classes)

    def seen(self, seed: int, index: Sequence[int]) -> Labelled:
        """The samples ``index`` of a run."""
        chosen = torch.tensor([picture_of(seed, i, len(self)) for i in index])
        return Labelled(pictures=self.pictures[chosen], classes=self.classes[chosen])


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledOnDisk:
    """Pictures that are read when they are seen, as is the class of each.

    Args:
        data: the pictures, with captions that name their classes.
        classes: the names of these.
    """

    data: Captioned
    classes: Sequence[str]

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.data)

    def seen(self, seed: int, index: Sequence[int]) -> Labelled:
        """The samples ``index`` of a run.

        Raises:
            ValueError: if one has no caption that names a class, or cannot be read.
        """
        return Labelled.of(self.data.rows(self.data.shown(seed, index)), self.classes)


@dataclass(frozen=True, kw_only=True)
class ClassifierReport:
    """What one step did.

    Args:
        images_seen: pictures seen after it.
        loss: cross-entropy in nats, mean over the batch.
        accuracy: share of the batch that was told right.
        seconds: wall time of the step.
    """

    images_seen: int
    loss: float
    accuracy: float
    seconds: float


class ClassifierTrainer:
    """A classifier in training; what is seen next is a function of the configuration and ``images_seen``.

    minimise E -log p(class | x_t),   t uniform in (0, 1], or t = 0 for a classifier of clean pictures

    Args:
        classifier: whose weights to train; they are moved to the device.
        data: what to train on.
        config: how.
        device: where.

    Source: Dhariwal & Nichol 2021, arXiv:2105.05233, Sec. 4 and Appendix I.
    """

    def __init__(
        self,
        classifier: Classifier,
        data: Labelled | LabelledOnDisk,
        config: ClassifierTraining,
        *,
        device: str = "auto",
    ) -> None:
        self.classifier, self.data, self.config = classifier, data, config
        self.device = resolve_device(device)
        self.precision: Literal["float32", "bf16"] = resolve_precision(config.precision, self.device)
        self.learner = Learner(classifier.network, config.optimizer, device=self.device, precision=self.precision)
        self.images_seen = 0

    @property
    def network(self) -> Encoder:
        """Whose weights learn."""
        return self.learner.network

    @property
    def ema_network(self) -> Encoder:
        """The network with the averaged weights."""
        return self.learner.average

    @property
    def ema_classifier(self) -> Classifier:
        """The classifier with the averaged weights."""
        return replace(self.classifier, network=self.ema_network)

    def step(self) -> ClassifierReport:
        """See one more batch.

        Raises:
            ArithmeticError: if the loss or its gradient is not finite; nothing was changed then.
        """
        started = time.perf_counter()
        config = self.config
        index = range(self.images_seen, min(self.images_seen + config.batch, config.images))
        chosen = self.data.seen(config.seed, index)
        noise = KeyedNoise(keys=tuple((config.seed, i) for i in index))
        x0, classes = to_unit(chosen.pictures.to(self.device)), chosen.classes.to(self.device)
        if config.flip:
            x0 = mirrored(x0, noise.at(_FLIP).uniform(torch.zeros(len(x0))).to(self.device) < 0.5)
        classifier = self.classifier
        schedule = classifier.config.schedule
        t = UniformTimes().draw(schedule, len(index), noise.at(_TIME))
        level = schedule.at(torch.zeros_like(t) if classifier.config.is_clean else t)
        x_t = classifier.process.marginal(x0, level).sample(noise.at(_NOISE))

        def loss() -> Loss:
            log_probs = classifier.log_probs(x_t, level)
            is_right = (log_probs.argmax(1) == classes).float()
            return Loss(
                per_sample=F.nll_loss(log_probs, classes, reduction="none"),
                parts={"is_right": is_right, "log_snr": level.log_snr},
            )

        rate = learning_rate(config.optimizer, self.images_seen, config.images)
        seen, ema = self.images_seen + len(index), config.ema
        decay = ema_decay(len(index), seen, half_life_images=ema.half_life_images, warmup=ema.warmup)
        try:
            moved = self.learner.step([loss], len(index), rate=rate, decay=decay)
        except NotFiniteError:
            raise ArithmeticError(
                f"the loss or its gradient is not finite after {self.images_seen} pictures; the last checkpoint is "
                "untouched: resume with a lower --training.optimizer.learning_rate or in float32"
            ) from None
        self.images_seen = seen
        return ClassifierReport(
            images_seen=seen,
            loss=moved.loss.per_sample.mean().item(),
            accuracy=moved.loss.parts["is_right"].mean().item(),
            seconds=time.perf_counter() - started,
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


def mirrored(pictures: Picture, is_mirrored: Bool[Tensor, "b"]) -> Picture:
    """The pictures, the chosen ones mirrored left to right."""
    return torch.where(is_mirrored[:, None, None, None], pictures.flip(-1), pictures)


def accuracy_by_time(classifier: Classifier, data: Labelled, *, batch: int = 128) -> dict[str, float]:
    """The share of held-out pictures that are told right, in each quarter of t and clean.

    Every picture has one time in each quarter and one noise in each, keyed by its place: evaluating twice gives the
    same numbers. A classifier of clean pictures is asked at t = 0 alone.

    Returns:
        ``{"clean": share, "0..0.25": share, ..., "0.75..1": share}``.
    """
    quarters = {f"{q / _QUARTERS:g}..{(q + 1) / _QUARTERS:g}": q for q in range(_QUARTERS)}
    asked = {"clean": -1} if classifier.config.is_clean else {"clean": -1, **quarters}
    told: dict[str, float] = {}
    for name, quarter in asked.items():
        right: list[Tensor] = []
        for start in range(0, len(data), batch):
            rows = slice(start, start + batch)
            classes = data.classes[rows]
            noise = KeyedNoise(keys=tuple((_HELD_OUT, quarter + 1, i) for i in range(start, start + len(classes))))
            guess = _log_probs_at(classifier, to_unit(data.pictures[rows]), quarter, noise).argmax(1)
            right.append((guess.cpu() == classes).double())
        told[name] = torch.cat(right).mean().item()
    return told


def _log_probs_at(classifier: Classifier, x0: Picture, quarter: int, noise: Noise) -> Float[Tensor, "b k"]:
    t = torch.zeros(len(x0), dtype=torch.float64)
    if quarter >= 0:
        t = (quarter + 1 - noise.at(_TIME).uniform(t)) / _QUARTERS
    level = classifier.config.schedule.at(t)
    with torch.no_grad():
        x_t = classifier.process.marginal(x0, level).sample(noise.at(_NOISE))
        return classifier.log_probs(x_t.to(classifier.network.head.weight.device), level)


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassifierData:
    """What a run sees, and what it is kept from.

    Args:
        train: to train on.
        held_out: to measure the accuracy on; None where nothing is held out.
        fingerprint: a checksum of the pictures and captions to train on.
        lines: a summary for people.
    """

    train: Labelled | LabelledOnDisk
    held_out: Labelled | None
    fingerprint: str
    lines: tuple[str, ...]


def load_classes(config: ClassifierRun) -> ClassifierData:
    """Read and decode the pictures of a run, held out as for any model (see ``load_data``).

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if the pictures cannot be used, or a caption does not name one class.
    """
    data = load_data(RunConfig(data=config.data, model=ModelConfig(size=config.classifier.size)))
    classes = config.classifier.classes
    return ClassifierData(
        train=_labelled(data.train, classes),
        held_out=Labelled.of(data.validation, classes) if len(data.validation) else None,
        fingerprint=data.train.fingerprint(),
        lines=data.lines,
    )


def _labelled(data: Captioned, classes: Sequence[str]) -> Labelled | LabelledOnDisk:
    return Labelled.of(data, classes) if data.large is None else LabelledOnDisk(data=data, classes=classes)


def execute_classifier(
    directory: Path,
    config: ClassifierRun,
    data: ClassifierData,
    *,
    device: str = "auto",
    say: Say = print,
    hook: Callable[[ClassifierReport], None] = lambda report: None,
) -> Outcome:
    """Train, from the start or from the newest whole checkpoint in ``directory``.

    Ctrl-C and SIGTERM save a checkpoint and end the run in order.

    Args:
        directory: the run folder.
        config: what to do.
        data: what to see.
        device: where.
        say: told what happens, a sentence at a time.
        hook: called after every step.

    Returns:
        How it ended; ``held_out`` is the accuracy by time.

    Raises:
        ValueError: if the folder holds a run on other data, or a state of another network.
        ArithmeticError: if the loss is not finite; the last checkpoint is untouched.
        OSError: if the folder cannot be written.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        classifier = build_classifier(config.classifier)
    trainer = ClassifierTrainer(classifier, data.train, config.training, device=device)
    plan = Plan(
        directory=directory,
        config=config,
        fingerprint=data.fingerprint,
        lines=data.lines,
        images=config.training.images,
        log=config.log,
        checkpoint=config.checkpoint,
    )
    log = begin(plan, trainer, say)
    told: dict[str, float] = {}

    def save() -> None:
        nonlocal told
        told = {} if data.held_out is None else accuracy_by_time(trainer.ema_classifier, data.held_out)
        if told:
            log.write(trainer.images_seen, {"accuracy": told})
            right = ", ".join(f"{name} {share:.1%}" for name, share in told.items())
            say(f"held-out accuracy at {trainer.images_seen} pictures, by t: {right}")
        save_checkpoint(directory / "checkpoints", trainer.checkpoint())
        provenance = {
            "recipe": config.recipe,
            "images_seen": trainer.images_seen,
            "planned_images": config.training.images,
            "pictures": len(data.train),
            "fingerprint": data.fingerprint,
            "seed": config.training.seed,
            "held_out_accuracy": told,
        }
        save_classifier(replace(trainer.ema_classifier, training=provenance), directory / "model")

    def write(reports: Sequence[ClassifierReport]) -> None:
        log.write(trainer.images_seen, _mean(reports))

    stopped = loop(plan, trainer, write=write, save=save, hook=hook)
    return Outcome(images_seen=trainer.images_seen, is_finished=not stopped, signal=stopped, held_out=told)


def _mean(reports: Sequence[ClassifierReport]) -> dict[str, Any]:
    count = len(reports)
    return {
        "loss": sum(report.loss for report in reports) / count,
        "accuracy_seen": sum(report.accuracy for report in reports) / count,
        "steps_per_second": count / sum(report.seconds for report in reports),
    }


def read_classifier_run(path: Path) -> tuple[ClassifierRun, str]:
    """The configuration in the ``run.json`` of a classifier, and the fingerprint of the data that it saw.

    Raises:
        OSError: if there is no such file.
        ValueError: if it is damaged, or of another kind of run.
    """
    return read_plain_run(path, ClassifierRun)
