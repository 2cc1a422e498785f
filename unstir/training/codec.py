"""Training of a codec: an autoencoder against a discriminator that comes in late, from a folder to its codec.

Knows: the order of the two players' steps, when codes are revived, what a run folder of a codec holds.
Does not know: command lines, what is drawn in its latents.

    RUN/run.json             the resolved configuration, and which data it saw
    RUN/log.jsonl            losses, speed, held-out PSNR, how much of a codebook is used
    RUN/checkpoints/         whole states of both players, the newest two
    RUN/model/               the codec (averaged weights) as of the last checkpoint, its scale measured
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unstir.classifier import load_classifier
from unstir.codec import AutoencoderConfig, CodecShape, LearnedCodec, QuantizedAutoencoder, QuantizedConfig
from unstir.codec.autoencoder import measured_scale
from unstir.codec.base import Coded
from unstir.codec.losses import (
    CodecLoss,
    CodecWeights,
    DiscriminatorConfig,
    Features,
    PatchDiscriminator,
    PerceptualDistance,
)
from unstir.codec.quantize import counts_of, usage
from unstir.config import registered
from unstir.data.transforms import to_unit
from unstir.device import resolve_device, resolve_precision
from unstir.diffusion.noise import KeyedNoise
from unstir.diffusion.objective import Loss
from unstir.model import ModelConfig, save_codec
from unstir.nn.encoder import Encoder
from unstir.pipeline import locate_model
from unstir.training.batches import CODEC, Captioned
from unstir.training.checkpoint import Checkpoint, save_checkpoint
from unstir.training.classifier import mirrored
from unstir.training.ema import ema_decay
from unstir.training.loop import Plan, begin, loop, read_plain_run
from unstir.training.optimizer import OptimizerConfig, learning_rate
from unstir.training.run import Outcome, RunConfig, Say, load_data
from unstir.training.step import Learner, NotFiniteError
from unstir.training.trainer import EmaConfig
from unstir.typing import Noise, Picture

LEARNED: dict[str, type[Any]] = {"kl": AutoencoderConfig, "vq": QuantizedConfig}
"""The codecs that are trained."""

_FLIP, _REVIVAL = 101, 102  # sub-keys of a sample's randomness, beside those of ``batches``
_HELD_OUT = 0x5EED  # the seed of held-out noise
_MEASURED = 256  # pictures that the scale of latents is measured on
_BATCH = 16  # pictures at once where nothing is learned
_JUDGE = "judge_"  # before the groups of the discriminator in a checkpoint


@dataclass(frozen=True, kw_only=True)
class CodecTrainingConfig:
    """How a codec is trained.

    Args:
        images: pictures to see in all.
        batch: pictures a step.
        seed: decides order, noise, flips and initial weights.
        precision: inside the networks; "auto" is bf16 where it is native.
        flip: whether half of the pictures are mirrored, left to right.
        revive: pictures after which codes that none of them used are put where latents are; 0 is never.
        weights: of the parts of the loss.
        discriminator: shape of the adversary.
        optimizer: how the weights of both move.
        ema: how those of the codec are averaged.

    Raises:
        ValueError: if a number is out of its range.
    """

    images: int = 500_000
    batch: int = 16
    seed: int = 0
    precision: Literal["auto", "float32", "bf16"] = "auto"
    flip: bool = True
    revive: int = 10_000
    weights: CodecWeights = field(default_factory=CodecWeights)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)

    def __post_init__(self) -> None:
        """Refuse a run without pictures."""
        if self.images < 1 or self.batch < 1 or self.revive < 0:
            raise ValueError(
                f"images and batch must be at least 1 and revive at least 0, got {self.images}, {self.batch} and "
                f"{self.revive}"
            )
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be a whole number from 0 to {2**32 - 1}, got {self.seed}")


@dataclass(frozen=True, kw_only=True)
class CodecRun:
    """Everything that decides the training of a codec, but for the data themselves.

    Args:
        recipe: name of the recipe that it came from.
        data: folder or file of pictures; captions are not read.
        codec: what is trained.
        size: height and width of the pictures that it is trained on; it reads other sizes afterwards.
        features: folder of a classifier in whose features the perceptual distance is measured; empty for none.
        training: how.
        log: pictures between two lines in the log.
        checkpoint: pictures between two states on the disk, each with the held-out error.

    Raises:
        ValueError: if a cadence is below 1, or the codec does not divide the size.
    """

    recipe: str = "own"
    data: str = ""
    codec: Annotated[CodecShape, *registered(LEARNED)] = field(default_factory=AutoencoderConfig)
    size: int = 64
    features: str = ""
    training: CodecTrainingConfig = field(default_factory=CodecTrainingConfig)
    log: int = 5000
    checkpoint: int = 50_000

    def __post_init__(self) -> None:
        """Refuse what would never, or always, be due, and pictures that the codec cannot read."""
        if min(self.log, self.checkpoint) < 1:
            raise ValueError("every cadence must be at least 1 picture")
        if self.size < 1 or self.size % self.codec.downsampling:
            raise ValueError(
                f"this codec reads pictures whose sides are multiples of {self.codec.downsampling}, got {self.size}"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class CodecReport:
    """What one step did.

    Args:
        images_seen: pictures seen after it.
        loss: what the codec minimised, mean over the batch.
        parts: of it, and of the discriminator's where that learns: means over the batch.
        seconds: wall time of the step.
    """

    images_seen: int
    loss: float
    parts: dict[str, float]
    seconds: float


class CodecTrainer:
    """A codec and its adversary in training; what is seen next is a function of the configuration and ``images_seen``.

    A step of the codec, then one of the discriminator on the same reconstructions, where that has come in.

    Args:
        codec: whose weights to train; they are moved to the device.
        data: what to train on.
        config: how.
        features: what the perceptual distance is measured in.
        device: where.

    Raises:
        ValueError: if a part of the loss has a weight and does not exist.

    Source: Esser et al. 2021, arXiv:2012.09841, Sec. 3.1; Rombach et al. 2022, arXiv:2112.10752, Appendix G.
    """

    def __init__(
        self,
        codec: LearnedCodec,
        data: Captioned,
        config: CodecTrainingConfig,
        *,
        features: Features | None = None,
        device: str = "auto",
    ) -> None:
        self.data, self.config = data, config
        self.device = resolve_device(device)
        self.precision: Literal["float32", "bf16"] = resolve_precision(config.precision, self.device)
        self.learner = self._learner(cast(nn.Module, codec))
        is_judged = config.weights.adversarial > 0
        self.judge = self._learner(PatchDiscriminator(config.discriminator)) if is_judged else None
        perceptual = None if features is None else PerceptualDistance(features).to(self.device)
        self.criterion = CodecLoss(
            config.weights,
            discriminator=None if self.judge is None else cast(PatchDiscriminator, self.judge.network),
            perceptual=perceptual,
        )
        self.images_seen = 0
        codes = len(codec.codebook.codes) if isinstance(codec, QuantizedAutoencoder) else 0
        self.counts = torch.zeros(codes, dtype=torch.int64, device=self.device)

    def _learner(self, network: nn.Module) -> Learner[nn.Module]:
        # Neither is called in one way alone, so neither is compiled.
        return Learner(network, self.config.optimizer, device=self.device, precision=self.precision, is_static=False)

    @property
    def codec(self) -> LearnedCodec:
        """Whose weights learn."""
        return cast(LearnedCodec, self.learner.network)

    @property
    def ema_codec(self) -> LearnedCodec:
        """The codec with the averaged weights."""
        return cast(LearnedCodec, self.learner.average)

    def step(self) -> CodecReport:
        """See one more batch.

        Raises:
            ArithmeticError: if a loss or its gradient is not finite.
        """
        started = time.perf_counter()
        config, before = self.config, self.images_seen
        x, noise = self._batch()
        made: list[Coded] = []

        def loss() -> Loss:
            made.append(self.codec.there_and_back(x, noise.at(CODEC)))
            return self.criterion(x, made[-1], self.codec.last_weight, images_seen=before)

        rate = learning_rate(config.optimizer, before, config.images)
        seen = before + len(x)
        decay = ema_decay(len(x), seen, half_life_images=config.ema.half_life_images, warmup=config.ema.warmup)
        try:
            moved = self.learner.step([loss], len(x), rate=rate, decay=decay)
            parts = {**moved.loss.parts, "gradient": moved.norm[None]}
            if self.judge is not None and self.criterion.is_contested(before):
                back = made[-1].reconstruction
                against = self.judge.step([lambda: self.criterion.against(x, back)], len(x), rate=rate, decay=0.0)
                parts |= {"discriminator": against.loss.per_sample, **against.loss.parts}
        except NotFiniteError:
            raise ArithmeticError(
                f"a loss or its gradient is not finite after {before} pictures; the last checkpoint is untouched: "
                "resume with a lower --training.optimizer.learning_rate or in float32"
            ) from None
        self.images_seen = seen
        self._revive(x, made[-1], before, noise)
        return CodecReport(
            images_seen=seen,
            loss=moved.loss.per_sample.mean().item(),
            parts={name: part.float().mean().item() for name, part in parts.items()},
            seconds=time.perf_counter() - started,
        )

    def _batch(self) -> tuple[Picture, Noise]:
        config = self.config
        index = range(self.images_seen, min(self.images_seen + config.batch, config.images))
        chosen = self.data.rows(self.data.shown(config.seed, index))
        noise = KeyedNoise(keys=tuple((config.seed, i) for i in index))
        x = to_unit(torch.stack(list(chosen.pictures)).to(self.device))
        if config.flip:
            x = mirrored(x, noise.at(_FLIP).uniform(torch.zeros(len(x))).to(self.device) < 0.5)
        return x, noise

    def _revive(self, x: Picture, coded: Coded, before: int, noise: Noise) -> None:
        """Count which codes are used, and where it is due, put those that were not where the batch's latents are."""
        codec, every = self.codec, self.config.revive
        if coded.indices is None or not isinstance(codec, QuantizedAutoencoder):
            return
        self.counts += counts_of(coded.indices, len(self.counts))
        if not every or before // every == self.images_seen // every:
            return
        with torch.no_grad():
            latents = codec.moments(x)
        for book in (codec.codebook, cast(QuantizedAutoencoder, self.ema_codec).codebook):
            book.revive(self.counts, latents, noise.at(_REVIVAL))
        self.counts.zero_()

    def checkpoint(self) -> Checkpoint:
        """The state, to be saved."""
        state = self.learner.state(self.images_seen)
        tensors = dict(state.tensors)
        if self.judge is not None:
            tensors |= {_JUDGE + name: group for name, group in self.judge.state(0).tensors.items() if group}
        if len(self.counts):
            tensors["codes"] = {"counts": self.counts}
        return Checkpoint(images_seen=self.images_seen, tensors=tensors, values={})

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a saved state, exactly.

        Raises:
            ValueError: if it is the state of other networks.
        """
        judges = {name: group for name, group in checkpoint.tensors.items() if name.startswith(_JUDGE)}
        own = {name: group for name, group in checkpoint.tensors.items() if name not in judges and name != "codes"}
        seen = checkpoint.images_seen
        self.learner.restore(Checkpoint(images_seen=seen, tensors=own, values={}))
        if self.judge is not None:
            groups = {name.removeprefix(_JUDGE): group for name, group in judges.items()}
            groups.setdefault("optimizer", {})  # it has not moved yet
            self.judge.restore(Checkpoint(images_seen=seen, tensors=groups, values={}))
        if "codes" in checkpoint.tensors:
            self.counts.copy_(checkpoint.tensors["codes"]["counts"])
        self.images_seen = seen


def features_of(network: Encoder) -> Features:
    """What the encoder of a classifier sees on every level of resolution, in pictures without noise."""
    ends = [i for i, step in enumerate(network.steps) if isinstance(step, nn.Conv2d)]  # each halves the level before
    last_of_levels = [*(network.steps[i - 1] for i in ends), network.steps[-1]]

    def maps(pictures: Picture) -> list[Tensor]:
        found: list[Tensor] = []

        def note(module: nn.Module, given: object, out: Tensor) -> None:
            found.append(out)

        hooks = [step.register_forward_hook(note) for step in last_of_levels]
        try:
            network.features(pictures, pictures.new_full((len(pictures),), _CLEAN))
        finally:
            for hook in hooks:
                hook.remove()
        return found

    return maps


_CLEAN = 20.0  # log-SNR of a picture without noise, as ``unstir.classifier`` tells it


def psnr(pictures: Picture, reconstruction: Picture) -> Float[Tensor, "b"]:
    """Peak signal to noise of pictures in [-1, 1], in dB: 10 log10(4 / mean squared error)."""
    error = (pictures - reconstruction.clamp(-1, 1)).square().flatten(1).mean(1)
    return 10 * (4 / error).log10()


@torch.no_grad()
def held_out_of(codec: LearnedCodec, data: Captioned, device: torch.device) -> dict[str, float]:
    """How well held-out pictures come back: the mean PSNR, and of a codebook the codes in use and the perplexity.

    Latents are drawn with noise keyed by a picture's place, so that evaluating twice gives the same numbers.
    """
    errors: list[Tensor] = []
    counts: Tensor | None = None
    for pictures, noise in _batches(data, range(len(data)), device):
        back = codec.decode(codec.encode(pictures, noise))
        errors.append(psnr(pictures, back).double().cpu())
        if isinstance(codec, QuantizedAutoencoder):
            found = counts_of(codec.indices(pictures), len(codec.codebook.codes))
            counts = found if counts is None else counts + found
    told = {"psnr": torch.cat(errors).mean().item()} if errors else {}
    if counts is not None:
        used = usage(counts)
        told |= {"codes_used": used.used / used.codes, "perplexity": used.perplexity}
    return told


def _batches(data: Captioned, index: Sequence[int], device: torch.device) -> Iterator[tuple[Picture, Noise]]:
    for start in range(0, len(index), _BATCH):
        part = index[start : start + _BATCH]
        pictures = to_unit(torch.stack(list(data.rows(part).pictures)).to(device))
        yield pictures, KeyedNoise(keys=tuple((_HELD_OUT, i) for i in part))


@dataclass(frozen=True, kw_only=True, eq=False)
class CodecData:
    """What a run sees, and what it is kept from.

    Args:
        train: to train on.
        held_out: to measure reconstructions on; possibly empty.
        fingerprint: a checksum of the pictures to train on.
        lines: a summary for people.
    """

    train: Captioned
    held_out: Captioned
    fingerprint: str
    lines: tuple[str, ...]


def load_pictures_of(config: CodecRun) -> CodecData:
    """Read and decode the pictures of a run, held out as for any model (see ``load_data``).

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if the pictures cannot be used.
    """
    data = load_data(RunConfig(data=config.data, model=ModelConfig(size=config.size), allow_missing_captions=True))
    return CodecData(train=data.train, held_out=data.validation, fingerprint=data.train.fingerprint(), lines=data.lines)


def execute_codec(
    directory: Path,
    config: CodecRun,
    data: CodecData,
    *,
    device: str = "auto",
    say: Say = print,
    hook: Callable[[CodecReport], None] = lambda report: None,
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
        How it ended; ``held_out`` is as ``held_out_of`` tells it.

    Raises:
        FileNotFoundError: if there is no such classifier for features.
        ValueError: if the folder holds a run on other data, or a state of other networks; if pictures are too small for
            the discriminator, or a part of the loss has a weight and does not exist.
        ArithmeticError: if a loss is not finite; the last checkpoint is untouched.
        OSError: if the folder cannot be written.
    """
    features = features_of(load_classifier(locate_model(config.features)).network) if config.features else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        codec = cast(LearnedCodec, config.codec.build())
        trainer = CodecTrainer(codec, data.train, config.training, features=features, device=device)
    require_large_enough(trainer, config.size)
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

    def write(reports: Sequence[CodecReport]) -> None:
        log.write(trainer.images_seen, _mean(reports))

    def save() -> None:
        nonlocal told
        average = trainer.ema_codec
        cast(nn.Module, average).eval()
        scale = measured_scale(average, _batches(data.train, _some(len(data.train)), trainer.device))
        told = held_out_of(average, data.held_out, trainer.device)
        log.write(trainer.images_seen, {"scale": scale, "held_out": told})
        said = ", ".join(f"{name} {number:.4g}" for name, number in told.items())
        say(f"held out at {trainer.images_seen} pictures: {said or 'nothing'}; latents are scaled by {scale:.4g}")
        save_checkpoint(directory / "checkpoints", trainer.checkpoint())
        provenance = {
            "recipe": config.recipe,
            "images_seen": trainer.images_seen,
            "planned_images": config.training.images,
            "size": config.size,
            "pictures": len(data.train),
            "fingerprint": data.fingerprint,
            "seed": config.training.seed,
            "held_out": told,
        }
        save_codec(average.scaled(scale), directory / "model", training=provenance)

    stopped = loop(plan, trainer, write=write, save=save, hook=hook)
    return Outcome(images_seen=trainer.images_seen, is_finished=not stopped, signal=stopped, held_out=told)


def require_large_enough(trainer: CodecTrainer, size: int) -> None:
    """See that the discriminator can judge the pictures, before it comes in.

    Raises:
        ValueError: if it cannot.
    """
    judge = trainer.criterion.discriminator
    if judge is not None and size < judge.smallest:
        raise ValueError(
            f"this discriminator reads pictures of {judge.smallest}x{judge.smallest} at least, got size {size}; give "
            "fewer training.discriminator.layers, or training.weights.adversarial 0"
        )


def _some(count: int) -> range:
    """Pictures from all over a set."""
    return range(0, count, max(1, count // _MEASURED))[:_MEASURED]


def _mean(reports: Sequence[CodecReport]) -> dict[str, Any]:
    names = list(dict.fromkeys(name for report in reports for name in report.parts))
    said = {name: [report.parts[name] for report in reports if name in report.parts] for name in names}
    return {
        "loss": sum(report.loss for report in reports) / len(reports),
        **{name: sum(numbers) / len(numbers) for name, numbers in said.items()},
        "steps_per_second": len(reports) / sum(report.seconds for report in reports),
    }


def read_codec_run(path: Path) -> tuple[CodecRun, str]:
    """The configuration in the ``run.json`` of a codec, and the fingerprint of the data that it saw.

    Raises:
        OSError: if there is no such file.
        ValueError: if it is damaged, or of another kind of run.
    """
    return read_plain_run(path, CodecRun)
