"""A run: a folder, from its configuration to its model.

Knows: what lies in a run folder, what is due when, how a run is interrupted and goes on.
Does not know: command lines, terminals.

    RUN/run.json             the resolved configuration, and which data it saw
    RUN/tokenizer.json       the words
    RUN/codec/               the codec in whose latents it draws, where that has weights
    RUN/latents/             what that makes of each picture, so that it is asked once
    RUN/log.jsonl            losses, rates, speed, held-out loss per band
    RUN/tensorboard/         the same for TensorBoard, where the configuration asks for it
    RUN/previews/            what it drew, from the first step on
    RUN/checkpoints/         whole states, the newest two
    RUN/model/               the model (averaged weights) as of the last checkpoint
"""

from __future__ import annotations

import hashlib
import json
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast

import torch
from tokenizers import Tokenizer
from torch import nn

from unstir.codec import LearnedCodec
from unstir.conditioning.captions import paraphrases
from unstir.conditioning.text import WordReader
from unstir.config import from_dict, read_json_file, to_dict, write_text_file
from unstir.data.folder import PictureSet, check_captions, summarize
from unstir.data.large import MOST_PICTURES, MOST_PIXELS, LargeSet, Tally, divide, look_through
from unstir.data.table import Table
from unstir.data.transforms import MAX_BROKEN, load_buckets, load_pictures, shape_of, to_unit
from unstir.diffusion.noise import KeyedNoise
from unstir.model import (
    Model,
    ModelConfig,
    build,
    is_told_words,
    load_codec,
    load_model,
    load_weights,
    needs_weights,
    network_of,
    save_codec,
    save_model,
    text_of,
)
from unstir.pipeline import locate_model
from unstir.training.batches import CODEC, Captioned, read_all
from unstir.training.checkpoint import load_latest, save_checkpoint
from unstir.training.ema import share_of_start
from unstir.training.engine import Team, whole
from unstir.training.log import Guarded, RunLog, TensorBoard, require_loggers
from unstir.training.preview import preview_sheet
from unstir.training.trainer import Report, Trainer, TrainingConfig, require_fit
from unstir.training.validation import band_losses, mean_by_band

_VALIDATION_PICTURES = 128
_PREVIEWS = 6  # from here and there in the set, where the configuration names none
_TAUGHT = 5000  # captions written beside the model, for people to read
_WORDS = 50_000  # pictures of a set on the disk whose captions a tokenizer is trained on


@dataclass(frozen=True, kw_only=True)
class Cadence:
    """How often a run looks up, in pictures seen.

    Args:
        log: a line in the log.
        checkpoint: a state on the disk, and the model.
        preview: a sheet of pictures.
        validate: the held-out loss.

    Raises:
        ValueError: if a number is below 1.
    """

    log: int = 1000
    checkpoint: int = 10_000
    preview: int = 20_000
    validate: int = 20_000

    def __post_init__(self) -> None:
        """Refuse what would never, or always, be due."""
        if min(self.log, self.checkpoint, self.preview, self.validate) < 1:
            raise ValueError("every cadence must be at least 1 picture")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run, but for the data themselves.

    Args:
        recipe: name of the recipe that it came from.
        data: folder or file of pictures.
        start: model whose weights it starts from; empty for fresh ones.
        codec: folder of the codec in whose latents it draws, or of the run that trained it; empty where the model's
            codec has no weights, or comes with the model that it starts from.
        captions: where captions are taken from, a name of ``unstir.data.SOURCES``; "auto" is the precedence.
        aspect: what is done to pictures that are not square: the middle is cropped, white is put around them, or they
            keep about their shape in one of a few buckets (networks that draw several sizes only).
        max_broken: the largest share of pictures that may be broken; these are left out and listed.
        allow_missing_captions: train on pictures without captions, as if their words had been forgotten.
        model: what is trained.
        training: how.
        cadence: how often it looks up.
        previews: prompts of the preview sheet; empty takes captions of the set.
        log_to: what is told of the run beside its own log.
    """

    recipe: str = "own"
    data: str = ""
    start: str = ""
    codec: str = ""
    captions: Literal["auto", "metadata", "sidecar", "folder", "filename", "none"] = "auto"
    aspect: Literal["crop", "pad", "buckets"] = "crop"
    max_broken: float = MAX_BROKEN
    allow_missing_captions: bool = False
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    cadence: Cadence = field(default_factory=Cadence)
    previews: tuple[str, ...] = ()
    log_to: tuple[Literal["tensorboard"], ...] = ()

    def __post_init__(self) -> None:
        """Refuse a share that is none."""
        if not 0 <= self.max_broken <= 1:
            raise ValueError(f"max_broken is a share of the pictures, from 0 to 1, got {self.max_broken}")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended.

    Args:
        images_seen: pictures seen.
        is_finished: False if a signal ended it early (its state is saved).
        signal: the signal's number, or 0.
        held_out: held-out loss per band at the end, or empty where nothing is held out.
    """

    images_seen: int
    is_finished: bool
    signal: int
    held_out: dict[str, float]


Say = Callable[[str], None]
Hook = Callable[[Trainer, Report], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class RunData:
    """What a run sees, and what it is kept from.

    Args:
        train: to train on.
        validation: to measure the held-out loss on; possibly empty.
        lines: a summary for people.
    """

    train: Captioned
    validation: Captioned
    lines: tuple[str, ...]


def load_data(config: RunConfig, *, most_in_memory: int = MOST_PICTURES) -> RunData:
    """Read and decode the pictures of a run; those of a split "test" are not even opened.

    A set of 100 pictures or more that brings no validation split gives one in twenty of its pictures to it. A set that
    is too large for memory stays on the disk (``data/large.py``), and gives at most 512.

    Args:
        config: the run.
        most_in_memory: a set of more pictures than these stays on the disk; so does one of more than 1 GiB of pixels.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if the pictures or their captions cannot be used.
    """
    most = min(most_in_memory, MOST_PIXELS // (3 * config.model.size**2))
    pictures = look_through(Path(config.data), config.captions, most=most)
    if not isinstance(pictures, PictureSet):
        return _load_large(pictures, config)
    seen = replace(pictures, records=tuple(r for r in pictures.records if r.split != "test"))
    if not seen.records:
        raise ValueError(
            f"{config.data} holds no pictures to train on: all of its {len(pictures.records)} are in a test split"
        )
    check_captions(seen, allow_missing=config.allow_missing_captions)
    if not any(record.split == "validation" for record in seen.records) and len(seen.records) >= 100:
        seen = replace(seen, records=tuple(replace(r, split=_own_split(r.key)) for r in seen.records))
    train, broken = _load(seen.split("train"), config)
    held_out, also = _load_held_out(seen.split("validation"), config)
    left_alone = len(pictures.records) - len(seen.records)
    lines = [
        *summarize(seen, aspect=config.aspect).lines(),
        *(f"broken and left out: {key}: {reason}" for key, reason in [*broken, *also]),
        *([f"{left_alone} of the split test are left alone"] if left_alone else []),
        f"training on {len(train)} pictures, {len(held_out)} held out",
    ]
    return RunData(train=train, validation=held_out, lines=tuple(lines))


def _load_large(table: Table, config: RunConfig) -> RunData:
    """A set that stays on the disk; what is held out of it is in memory."""
    divided = divide(table, aspect=config.aspect, allow_missing_captions=config.allow_missing_captions)
    multiple = _multiple_of(config.model) if config.aspect == "buckets" else None
    large = LargeSet(
        table=table,
        part=divided.train,
        repeats=divided.repeats,
        shape=shape_of(config.aspect, config.model.size, multiple),
        tally=Tally(root=table.root, max_broken=config.max_broken),
    )
    held_out, broken = _load_held_out(divided.held_out, config)
    words = [f"words are learned from {_WORDS} of them, evenly from the set"] if len(large) > _WORDS else []
    lines = [
        *divided.lines,
        *words,
        *(f"broken and left out: {key}: {reason}" for key, reason in broken),
        f"training on {len(large)} pictures, {len(held_out)} held out",
    ]
    return RunData(train=Captioned.of_large(large), validation=held_out, lines=tuple(lines))


def _load_held_out(records: PictureSet, config: RunConfig) -> tuple[Captioned, list[tuple[str, str]]]:
    # The held-out loss compares pictures of one shape.
    square = replace(config, aspect="crop") if config.aspect == "buckets" else config
    return _load(records, square) if records.records else (Captioned.of((), records), [])


def _load(records: PictureSet, config: RunConfig) -> tuple[Captioned, list[tuple[str, str]]]:
    """The pictures of a set, and (key, reason) of those that are broken."""
    size = config.model.size
    if config.aspect == "buckets":
        pictures, kept = load_buckets(records, size, _multiple_of(config.model), max_broken=config.max_broken)
    else:
        pictures, kept = load_pictures(records, size, aspect=config.aspect, max_broken=config.max_broken)
    return Captioned.of(pictures, kept), [pair for pair in kept.skipped if pair not in records.skipped]


def _multiple_of(config: ModelConfig) -> int:
    """What the sides of a model's pictures are multiples of.

    Raises:
        ValueError: if its network draws one size only.
    """
    with torch.device("meta"):
        network = network_of(config)
    if network.is_one_size:
        raise ValueError(
            f"this network draws {config.size}x{config.size} only, so its pictures cannot keep their shapes; take "
            "--aspect crop or pad, or a U-Net (the recipe cifar10 has one)"
        )
    return int(network.multiple) * config.codec.downsampling


def execute(
    directory: Path,
    config: RunConfig,
    data: RunData,
    *,
    device: str = "auto",
    say: Say = print,
    hooks: Sequence[Hook] = (),
    team: Team | None = None,
) -> Outcome:
    """Train, from the start or from the newest whole checkpoint in ``directory``.

    Ctrl-C and SIGTERM save a checkpoint and end the run in order. A log or a preview that fails is told, and stops
    nothing; a checkpoint that cannot be saved ends the run.

    Args:
        directory: the run folder.
        config: what to do.
        data: what to see.
        device: where.
        say: told what happens, a sentence at a time.
        hooks: called after every step.
        team: the processes that train as one; all are given the same, and the first one writes and speaks.

    Raises:
        ValueError: if the folder holds a run on other data, or a state of another network.
        ArithmeticError: if the loss is not finite; the last checkpoint is untouched.
        ImportError: if a logger that it asks for is not installed.
        MemoryError: if the memory does not take a step.
        OSError: if the folder cannot be written.
    """
    team = team or Team()
    # Whatever can be refused is refused before anything is written.
    require_loggers(config.log_to)
    reader = _reader(directory, config, data)
    codec = trained_codec(config, directory)
    trainer = Trainer(
        first_model(config, reader, codec),
        data.train,
        config.training,
        device=device,
        team=team,
        folder=directory / "latents" if team.is_first else None,
    )
    parts: tuple[str, ...] = ()
    if config.training.micro_batch == "auto":  # from here on a number: whoever resumes must round as this run does
        config = replace(config, training=replace(config.training, micro_batch=trainer.micro_batch))
        parts = (f"{trainer.micro_batch} of {config.training.batch} pictures of a batch at once",)
    if not is_told_words(config.model):
        parts = (*parts, "captions are not learned: the network is told no words (docs/networks.md)")
    require_fit(trainer)
    went = _go_back(directory, trainer)
    with _desk(directory, team) as desk:
        say = say if team.is_first else _silent
        for line in (f"recipe: {config.recipe}", *data.lines, *parts, f"run folder: {directory.resolve()}", *went):
            say(line)
        (desk / "previews").mkdir(parents=True, exist_ok=True)
        write_text_file(desk / "tokenizer.json", reader.tokenizer.to_str())
        if codec is not None and not (desk / "run.json").exists():
            save_codec(codec, desk / "codec", training={"taken_from": config.codec or config.start})
        write_run(desk, config, data)
        log = RunLog(desk / "log.jsonl")
        log.rewind(trainer.images_seen)
        watcher = _Watcher(
            desk=desk,
            checkpoints=directory / "checkpoints",
            config=config,
            data=data,
            log=log,
            say=say,
            seen=trainer.images_seen,
        )
        if trainer.images_seen == 0:
            watcher.preview(trainer)
        stopped = _loop(trainer, watcher, hooks)
        if not stopped:
            watcher.finish(trainer)
    return Outcome(images_seen=trainer.images_seen, is_finished=not stopped, signal=stopped, held_out=watcher.held_out)


@contextmanager
def _desk(directory: Path, team: Team) -> Generator[Path]:
    """Where this process writes: the run folder is the first one's, what the others would write again is thrown away.

    All do the same in the same order, previews and held-out losses too: nobody waits for one that is busy alone.
    """
    if team.is_first:
        yield directory
        return
    with TemporaryDirectory(prefix="unstir-") as folder:
        yield Path(folder)


def _silent(line: str) -> None:
    """Says nothing: the first process does."""


def write_run(directory: Path, config: RunConfig, data: RunData) -> None:
    """Write down the configuration of a run, and which data it saw."""
    content = {**to_dict(config), "fingerprint": data.train.fingerprint()}
    write_text_file(directory / "run.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_run(directory: Path) -> tuple[RunConfig, str]:
    """The configuration of a run folder, and the fingerprint of the data that it saw.

    Raises:
        FileNotFoundError: if it is no run folder.
        ValueError: if its configuration is damaged.
    """
    path = directory / "run.json"
    if not path.is_file():
        raise FileNotFoundError(f"{directory} is no run folder: it has no run.json; start one without --resume")
    content = read_json_file(path)
    fingerprint = str(content.pop("fingerprint", ""))
    try:
        return from_dict(RunConfig, content), fingerprint
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


class _Watcher:
    """Does what is due after a step, without touching the run."""

    def __init__(
        self, *, desk: Path, checkpoints: Path, config: RunConfig, data: RunData, log: RunLog, say: Say, seen: int
    ) -> None:
        self.desk, self.checkpoints, self.config, self.data = desk, checkpoints, config, data
        self.log, self.say = log, say
        board = {"tensorboard": TensorBoard(desk / "tensorboard", images_seen=seen)} if config.log_to else {}
        self.loggers = Guarded({"log.jsonl": log, **board}, say)
        self.held_out: dict[str, float] = {}
        self.pending: list[Report] = []
        self.seen = self.logged = seen
        self.broken = 0

    def after(self, trainer: Trainer, report: Report) -> None:
        cadence, before, seen = self.config.cadence, self.seen, report.images_seen
        self.seen = seen
        is_last = seen >= self.config.training.images
        self.pending.append(report)
        if is_last or is_due(before, seen, cadence.log):
            self._log_steps()
        if is_due(before, seen, cadence.validate) and not is_last:
            self.validate(trainer)
        if is_due(before, seen, cadence.preview) and not is_last:
            self.preview(trainer)
        if is_due(before, seen, cadence.checkpoint) and not is_last:
            self.save(trainer)

    def finish(self, trainer: Trainer) -> None:
        told: list[dict[str, Any]] = []
        with self.loggers.attempt("log.jsonl"):
            told = [x for x in self.log.read() if x["images_seen"] == trainer.images_seen and "held_out" in x]
        if told:  # the run was finished before
            self.held_out = told[-1]["held_out"]
        else:
            self.validate(trainer)
        self.preview(trainer)
        self.save(trainer)

    @cached_property
    def _said(self) -> tuple[tuple[str, ...], ...]:
        """The captions of each picture, of a set on the disk those of some."""
        train = self.data.train
        return tuple(train.captions[i] for i in train.spread(_TAUGHT))

    @property
    def taught(self) -> tuple[str, ...]:
        """All different captions among these."""
        return tuple(dict.fromkeys(caption for captions in self._said for caption in captions))

    def save(self, trainer: Trainer) -> None:
        trainer.require_finite()
        if trainer.encoded is not None:
            trainer.encoded.flush()
        save_checkpoint(self.checkpoints, trainer.checkpoint(), trainer.team)
        weights = whole(trainer.ema_network.state_dict())  # every process gives its shards
        if not trainer.team.is_first:
            return
        model = replace(trainer.ema_model, training=self._provenance(trainer), taught=self.taught[:_TAUGHT])
        save_model(model, self.desk / "model", weights=weights)
        self._tell_broken()

    def _tell_broken(self) -> None:
        large = self.data.train.large
        if large is not None and large.tally.broken > self.broken:
            self.broken = large.tally.broken
            for line in large.tally.lines():
                self.say(line)

    def preview(self, trainer: Trainer) -> None:
        first = tuple(dict.fromkeys(captions[0] for captions in self._said if captions))
        prompts = self.config.previews or first[:: max(1, len(first) // _PREVIEWS)][:_PREVIEWS]
        if not prompts:
            return
        ema = self.config.training.ema
        share = share_of_start(
            trainer.images_seen,
            self.config.training.batch,
            half_life_images=ema.half_life_images,
            warmup=ema.warmup,
        )
        title = f"{trainer.images_seen} pictures seen; of the average, {share:.1%} is still the start"
        with self.loggers.attempt("a preview"):
            sheet = preview_sheet(trainer.model, trainer.ema_model, prompts, title=title, device=str(trainer.device))
            self.loggers.show(trainer.images_seen, sheet)
            sheet.save(self.desk / "previews" / f"{trainer.images_seen:012d}.png")

    def validate(self, trainer: Trainer) -> None:
        if not len(self.data.validation):
            return
        chosen = self.data.validation.rows(range(min(_VALIDATION_PICTURES, len(self.data.validation))))
        pictures = to_unit(torch.stack(list(chosen.pictures)))
        noise = KeyedNoise(keys=tuple((0, CODEC, i) for i in range(len(chosen))))
        latents = trainer.latents_of(pictures, noise)
        condition = read_all(trainer.model.reader, [captions[0] if captions else "" for captions in chosen.captions])
        condition = condition.map(lambda tensor: tensor.to(trainer.device))
        was_training = trainer.network.training
        trainer.network.eval()
        average = band_losses(trainer.ema_model.denoiser, latents, condition)
        raw = band_losses(trainer.model.denoiser, latents, condition)
        trainer.network.train(was_training)
        self.held_out = average
        self.loggers.write(trainer.images_seen, {"held_out": average, "held_out_raw": raw})
        bands = ", ".join(f"{band} {loss:.4f}" for band, loss in average.items())
        self.say(f"held-out error on x0 at {trainer.images_seen} pictures, by log-SNR: {bands}")

    def _log_steps(self) -> None:
        reports, self.pending = self.pending, []
        count, seconds = len(reports), sum(report.seconds for report in reports)
        images = reports[-1].images_seen - self.logged
        self.logged = reports[-1].images_seen
        losses = [report.moved.loss for report in reports]
        log_snr = torch.cat([loss.parts["log_snr"] for loss in losses])
        values = {
            "loss": sum(report.loss for report in reports) / count,
            "x0_error": sum(report.x0_error for report in reports) / count,
            "gradient_norm": sum(report.gradient_norm for report in reports) / count,
            "learning_rate": reports[-1].learning_rate,
            "images_per_second": images / seconds,
            "loss_by_band": mean_by_band(torch.cat([loss.per_sample for loss in losses]), log_snr),
            "x0_error_by_band": mean_by_band(torch.cat([loss.parts["x0_error"] for loss in losses]), log_snr),
        }
        self.loggers.write(reports[-1].images_seen, values)

    def _provenance(self, trainer: Trainer) -> dict[str, Any]:
        config = self.config
        return {
            "recipe": config.recipe,
            "started_from": config.start or "fresh weights",
            "images_seen": trainer.images_seen,
            "planned_images": config.training.images,
            "pictures": len(self.data.train),
            "fingerprint": self.data.train.fingerprint(),
            "seed": config.training.seed,
            "held_out_error": self.held_out,
        }


def _own_split(key: str) -> str:
    return "validation" if int(hashlib.sha256(key.encode()).hexdigest(), 16) % 20 == 0 else "train"


def _go_back(directory: Path, trainer: Trainer) -> list[str]:
    """Put the trainer where the newest whole checkpoint is; what a person should know of it."""
    checkpoint = load_latest(directory / "checkpoints", trainer.team)
    if checkpoint is None:
        is_damaged = (directory / "checkpoints").is_dir() and any((directory / "checkpoints").iterdir())
        return ["no checkpoint here is whole; starting from the first picture"] if is_damaged else []
    trainer.restore(checkpoint)
    seen, asked = checkpoint.images_seen, trainer.config.images
    if seen > asked:
        raise ValueError(f"the run has seen {seen} pictures already, more than the {asked} asked for; ask for more")
    return [f"going on from {seen} pictures"]


def _loop(trainer: Trainer, watcher: _Watcher, hooks: Sequence[Hook]) -> int:
    """Train to the end, or until a signal came and the state was saved: its number, or 0."""
    with signals() as pending:
        trainer.run([*hooks, watcher.after], should_stop=lambda: bool(pending))
        if trainer.images_seen < trainer.config.images:
            watcher.save(trainer)
            return pending[0] if pending else signal.SIGTERM  # another process of the team was told to stop
    return 0


def is_due(before: int, seen: int, every: int) -> bool:
    """Whether something that happens every so many pictures happens between ``before`` and ``seen`` of them."""
    return before // every != seen // every


def _reader(directory: Path, config: RunConfig, data: RunData) -> WordReader:
    text = text_of(config.model)
    path = directory / "tokenizer.json"
    if path.exists():
        return WordReader(Tokenizer.from_file(str(path)), text.max_tokens)
    return reader_for(config, data.train)


def reader_for(config: RunConfig, train: Captioned) -> WordReader:
    """What reads the words of a new run: as the model that it starts from does, or learned from its captions."""
    text = text_of(config.model)
    if config.start:
        return load_model(locate_model(config.start)).reader
    index = train.spread(_WORDS)
    said = [caption for i in index for caption in train.captions[i]]
    texts = [*said, *(word for i in index for word in train.keywords[i])]
    texts += [form for caption in said for form in paraphrases(caption)]
    return WordReader.train(texts, vocabulary=text.vocabulary, max_tokens=text.max_tokens)


def trained_codec(config: RunConfig, directory: Path | None = None) -> LearnedCodec | None:
    """The codec in whose latents a run draws: the run's own copy, the one that it names, or that of its first model.

    Args:
        config: the run.
        directory: its folder.

    Returns:
        None where the model's codec has no weights.

    Raises:
        FileNotFoundError: if there is no such codec.
        ValueError: if it has to be trained first, or has another shape than the model's.
    """
    if not needs_weights(config.model.codec):
        return None
    if directory is not None and (directory / "run.json").is_file():  # its codec was written before that
        codec = load_codec(directory / "codec")
    elif config.codec:
        codec = load_codec(locate_model(config.codec))
    elif config.start:
        codec = cast(LearnedCodec, load_model(locate_model(config.start)).codec)
    else:
        raise ValueError(
            "this model draws in the latents of a codec, which has to be trained first; train one with unstir train "
            "codec, and give its run with --codec"
        )
    return codec


def first_model(config: RunConfig, reader: WordReader, codec: LearnedCodec | None = None) -> Model:
    """The model that a run begins with: fresh weights, by its seed, or those of the model that it starts from.

    Args:
        config: the run.
        reader: its words.
        codec: as ``trained_codec`` finds it; None lets that look for it.
    """
    codec = trained_codec(config) if codec is None else codec
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        model = build(config.model, reader, codec=codec)
    if config.start:
        source = locate_model(config.start)
        load_weights(cast(nn.Module, model.denoiser.network), source / "model.safetensors")
    return model


@contextmanager
def signals() -> Generator[list[int]]:
    """The signals that came, for a loop to look at; a second one of the same kind ends the process at once."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return

    def note(number: int, frame: object) -> None:
        came.append(number)
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
