"""Model: a denoiser with everything that gives its numbers their meaning, and its form on disk.

Knows: which schedule, parameterization, network, codec and words belong together, and how they are saved and loaded.
Does not know: prompts, pictures on disk, how it was trained beyond what is written down.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections import ChainMap
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from tokenizers import Tokenizer
from torch import Tensor, nn

from unstir.codec import CODECS, BitPlanes, Codec, CodecShape, Identity, LearnedCodec
from unstir.condition import Condition
from unstir.conditioning.text import WordReader
from unstir.config import choose, from_dict, read_json_file, registered, to_dict
from unstir.diffusion.denoiser import NetworkDenoiser
from unstir.diffusion.parameterization import (
    PARAMETERIZATIONS,
    Parameterization,
    PredictBit,
    PredictFlip,
    PredictX0,
)
from unstir.diffusion.process import PROCESSES, Process
from unstir.diffusion.samplers import SAMPLERS, Tuned
from unstir.diffusion.schedule import SCHEDULES, RectifiedFlow, Schedule
from unstir.diffusion.spacing import LEGACY, SPACINGS, Explicit, Sections, Spacing
from unstir.nn import NETWORKS, DiTConfig
from unstir.nn.text import TextConfig
from unstir.plugged import PLUGGED, Plugged, is_plugged, plug_from_environment

T = TypeVar("T")
N = TypeVar("N", int, float)

FORMAT = 1
"""Version of ``unstir.json``; a change of meaning adds one and a migration."""

STEPS = "steps.json"
"""File of a model folder with its tuned steps, and the checksum of the weights that they were made for."""

CODEC_WEIGHTS = "codec.safetensors"
"""File of a model folder with the weights of its codec, where it has some."""

KINDS = {"model": "a model that draws", "classifier": "a classifier", "codec": "a codec"}
"""What a folder with an ``unstir.json`` may hold."""

MIGRATIONS: dict[int, Any] = {}
"""From the version before to this one: functions on the dictionary, by the version that they make."""


def spacing_of(text: str) -> Spacing:
    """The grid of times that a text asks for.

    It is a name of ``SPACINGS`` (or of ``LEGACY``), the steps of each section of the chain from data to noise
    ("sections 10,15,20"), or the times themselves ("1,0.8,0.4", with or without the 0 at the end).

    Raises:
        ValueError: if it is none of these.
    """
    words = text.strip()
    kind, _, rest = words.partition(" ")
    if kind == "sections":
        counts = _listed(rest, int)
        if counts is None:
            raise ValueError(f"sections are whole numbers of steps, got {text!r}; for instance sections 10,15,20")
        return Sections(counts=counts)
    times = _listed(words, float)
    if times is not None:
        return Explicit(times=times)
    grids = {**SPACINGS, **LEGACY}
    return grids[choose(words, [*grids, "sections 10,15,20", "times such as 1,0.8,0.4"], "grid")]


def _listed(text: str, number: type[N]) -> tuple[N, ...] | None:
    """The numbers between commas, or None if that is not what the text holds."""
    try:
        return tuple(number(part) for part in text.split(","))
    except ValueError:
        return None


def steps_of(spacing: Spacing) -> int | None:
    """The only number of steps that a grid can be asked for; None where it is made for any."""
    return spacing.num_steps if isinstance(spacing, Sections | Explicit) else None


@dataclass(frozen=True, kw_only=True)
class SamplingDefaults:
    """How a model is sampled unless something else is asked for.

    Args:
        sampler: a name of ``SAMPLERS``.
        steps: number of steps.
        grid: as ``spacing_of`` reads it: a name of ``SPACINGS``, sections, or times.
        guidance_scale: 1 is none.
        guidance_interval: log-SNR between which guidance acts, in nats; None is everywhere.
        eta: for DDIM, how much fresh noise.
        clip: whether beliefs are kept within the range of pictures.

    Raises:
        ValueError: if a name is unknown or a number out of its range.
    """

    sampler: str = "dpm++2m"
    steps: int = 20
    grid: str = "trailing"
    guidance_scale: float = 1.5
    guidance_interval: tuple[float, float] | None = None
    eta: float = 0.0
    clip: bool = True

    def __post_init__(self) -> None:
        """Refuse what no model could be sampled with."""
        choose(self.sampler, SAMPLERS, "sampler")
        own = steps_of(spacing_of(self.grid))
        if own not in (None, self.steps):
            raise ValueError(f"the grid {self.grid!r} has {own} steps, got {self.steps}; steps must be the same number")
        if self.steps < 1 or not math.isfinite(self.guidance_scale) or not 0 <= self.eta <= 1:
            raise ValueError("steps must be at least 1, guidance_scale finite and eta in [0, 1]")


_PARTS: dict[str, dict[str, type[Any]]] = {
    "mean": PARAMETERIZATIONS,
    "process": cast("dict[str, type[Any]]", PROCESSES),
    "schedule": SCHEDULES,
}
"""What a parameterization may be made of."""

_SHAPES = ChainMap({name: config for name, (config, _) in NETWORKS.items()}, PLUGGED)
_HOW_TO_PLUG = (
    "; a network of somebody's own is known once its file has called unstir.plug: name that file in UNSTIR_PLUG"
)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What a model is made of.

    Args:
        schedule: t -> (alpha, sigma).
        process: gaussian, or binomial for bits (the codec must give bits then, and the sampler be ancestral).
        parameterization: what the network's output means.
        self_conditioned: whether the network also reads its own last belief.
        network: shape of the network.
        codec: what the codec is made of: the space in which diffusion happens.
        size: height and width of the pictures that it was trained on.
        condition_drop: how often training forgot the words; 0 means that guidance has no null to push off from.
        sampling: how it is sampled by default.

    Raises:
        ValueError: if a number is out of its range.
    """

    schedule: Annotated[Schedule, *registered(SCHEDULES)] = field(default_factory=RectifiedFlow)
    process: Literal["gaussian", "binomial"] = "gaussian"
    parameterization: Annotated[Parameterization, *registered(PARAMETERIZATIONS, _PARTS)] = field(
        default_factory=PredictX0
    )
    self_conditioned: bool = False
    network: Annotated[Any, *registered(_SHAPES, otherwise=_HOW_TO_PLUG)] = field(default_factory=DiTConfig)
    codec: Annotated[CodecShape, *registered(CODECS)] = field(default_factory=Identity)
    size: int = 64
    condition_drop: float = 0.1
    sampling: SamplingDefaults = field(default_factory=SamplingDefaults)

    def __post_init__(self) -> None:
        """Refuse numbers out of their range."""
        if self.size < 1 or not 0 <= self.condition_drop <= 1:
            raise ValueError(
                f"size must be at least 1 and condition_drop in [0, 1], got {self.size} and {self.condition_drop}"
            )


def _require_fit(config: ModelConfig) -> None:
    is_bits = config.process == "binomial"
    if is_bits != isinstance(config.parameterization, (PredictBit, PredictFlip)):
        raise ValueError(
            f"a {config.process} process does not go with {type(config.parameterization).__name__}; a network that "
            "predicts bits (parameterization bit or flip) goes with a binomial process, any other with a gaussian "
            "one"
        )
    if is_bits and not isinstance(config.codec, BitPlanes):
        raise ValueError("a binomial process spoils bits, and this codec gives none; set codec to bits")
    if is_bits and config.sampling.sampler != "ancestral":
        raise ValueError(f"bits are sampled by ancestral, not by {config.sampling.sampler}; set sampling.sampler")
    # Sampling starts at t = 1, so what a network says must have a meaning there.
    x, end = torch.zeros(2, 1, 1, 1), config.schedule.at(torch.ones((), dtype=torch.float64))
    try:
        config.parameterization.decode(x.expand(-1, config.parameterization.outputs, -1, -1), x, end)
    except ValueError as error:
        raise ValueError(f"this schedule leaves no signal at t = 1: {error}") from None


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A model ready to sample from.

    Args:
        config: what it is made of.
        denoiser: the network with the meaning of its numbers.
        reader: prompts to token ids.
        training: how it was trained, for people to read: recipe, data, images, held-out loss.
        taught: captions that it was trained on, for people to read.
        checksum: sha256 of its weights file; empty while it has none.
        tuned: steps that were fitted to it, one set a number of steps; they are what it is sampled with by default.
        codec: from pictures to the space in which it draws, and back; its weights, if it has some, do not learn.
    """

    config: ModelConfig
    denoiser: NetworkDenoiser[Condition]
    reader: WordReader
    training: dict[str, Any] = field(default_factory=dict[str, Any])
    taught: tuple[str, ...] = ()
    checksum: str = ""
    tuned: tuple[Tuned, ...] = ()
    codec: Codec = field(default_factory=Identity)

    @property
    def num_parameters(self) -> int:
        """Number of weights of the network; those of a codec are not counted."""
        return sum(weight.numel() for weight in cast(nn.Module, self.denoiser.network).parameters())

    @property
    def process(self) -> Process:
        """How its samples are spoiled."""
        return self.denoiser.process


def build(
    config: ModelConfig, reader: WordReader, *, training: dict[str, Any] | None = None, codec: Codec | None = None
) -> Model:
    """A model with fresh weights (drawn from torch's global generator).

    Args:
        config: what it is made of.
        reader: prompts to token ids.
        training: how it was trained, for people to read.
        codec: one with weights that was trained before; None makes one, with fresh weights where it has some.

    Raises:
        ValueError: if the network does not fit the codec, the size or the tokenizer, process, schedule,
            parameterization and codec do not fit each other, or the codec is not what the configuration says.
    """
    _require_fit(config)
    network = network_of(config)
    text = text_of(config)
    if reader.tokenizer.get_vocab_size() > text.vocabulary:
        raise ValueError(
            f"the tokenizer has {reader.tokenizer.get_vocab_size()} entries, the network reads {text.vocabulary}"
        )
    if not isinstance(config.codec, BitPlanes) and config.codec.channels != 3:
        raise ValueError(f"pictures have 3 channels, the codec takes {config.codec.channels}")
    channels = config.codec.latent_channels
    comes_in, goes_out = _channels_of(config)
    if (network.in_channels, network.out_channels) != (comes_in, goes_out):
        raise ValueError(
            f"the codec gives {channels} channels, so the network must take {comes_in} and give {goes_out}, but it "
            f"takes {network.in_channels} and gives {network.out_channels}; set network.channels and "
            "network.out_channels"
        )
    multiple = config.codec.downsampling * network.multiple
    if config.size % multiple or (network.is_one_size and config.size != multiple):
        expected = f"{multiple}" if network.is_one_size else f"multiples of {multiple}"
        raise ValueError(
            f"the network takes pictures of size {expected}, the model says {config.size}; change one of them"
        )
    if isinstance(network, Plugged):
        network.try_on()
    process = PROCESSES[config.process](schedule=config.schedule)
    denoiser: NetworkDenoiser[Condition] = NetworkDenoiser(
        network, process, config.parameterization, is_self_conditioned=config.self_conditioned
    )
    codec = config.codec.build() if codec is None else codec
    if shape_of_codec(codec) != config.codec:
        raise ValueError(
            f"the model is made for the codec {config.codec}, got {shape_of_codec(codec)}; take that one, or set codec"
        )
    if isinstance(codec, nn.Module):
        codec.eval().requires_grad_(False)
    return Model(config=config, denoiser=denoiser, reader=reader, training=training or {}, codec=codec)


def shape_of_codec(codec: Codec) -> CodecShape:
    """What a codec is made of; one without weights is that itself."""
    return cast(LearnedCodec, codec).config if isinstance(codec, nn.Module) else cast(CodecShape, codec)


def place_codec(model: Model, device: torch.device) -> None:
    """Move the weights of a model's codec, where it has some."""
    if isinstance(model.codec, nn.Module):
        model.codec.to(device)


def is_same_codec(one: Codec, other: Codec) -> bool:
    """Whether the latents of two codecs mean the same: both have the same shape and the same weights."""
    if shape_of_codec(one) != shape_of_codec(other):
        return False
    if not isinstance(one, nn.Module):
        return True
    theirs = cast(nn.Module, other).state_dict()
    return all(torch.equal(weight, theirs[name].to(weight)) for name, weight in one.state_dict().items())


def in_latents(config: ModelConfig, shape: CodecShape) -> ModelConfig:
    """The model of the same pictures in the latents of a codec.

    Its network gets their channels, and where it has a size and patches, these are smaller by the codec's factor: there
    are as many patches as before, if that is possible.
    """
    network, count = config.network, shape.latent_channels
    own = {own.name for own in fields(network)}
    changes: dict[str, object] = {"channels": count * (2 if config.self_conditioned else 1)}
    if config.self_conditioned or config.parameterization.outputs > 1:
        changes["out_channels"] = count * config.parameterization.outputs
    if "size" in own and "patch" in own:
        size = config.size // shape.downsampling
        patch = max(1, network.patch * size // network.size)
        changes |= {"size": size, "patch": patch if size % patch == 0 else 1}
    known = {name: value for name, value in changes.items() if name in own}
    return replace(config, network=replace(network, **known), codec=shape)


def text_of(config: ModelConfig) -> TextConfig:
    """The shape of what reads the words.

    Raises:
        ValueError: if the network reads none.
    """
    if is_plugged(config.network) and not is_told_words(config):
        return TextConfig()  # captions are read into words all the same, and nobody looks at those
    text = config.network.text
    if text is None:
        raise ValueError("a model is told words, so its network reads them: leave network.text as it is, not null")
    return text


def is_told_words(config: ModelConfig) -> bool:
    """Whether the network is told words; one that was plugged in need not be."""
    return getattr(config.network, "text", None) is not None


def _channels_of(config: ModelConfig) -> tuple[int, int]:
    """The channels that the network must take and give."""
    count = config.codec.latent_channels
    return count * (2 if config.self_conditioned else 1), count * config.parameterization.outputs


def network_of(config: ModelConfig) -> Any:
    """The network that a configuration describes, with fresh weights.

    Raises:
        TypeError: if it was plugged in, and makes no module.
        ValueError: if it cannot be made.
    """
    if is_plugged(config.network):
        return Plugged(config.network, *_channels_of(config), config.size // config.codec.downsampling)
    for shape, network in NETWORKS.values():
        if type(config.network) is shape:
            return network(config.network)
    raise ValueError(f"no network is made of a {type(config.network).__name__}")


def save_model(
    model: Model, directory: Path, *, weights: dict[str, Tensor] | None = None, dtype: torch.dtype = torch.float32
) -> None:
    """Write a model folder: all of it, or nothing.

    Args:
        model: what to write.
        directory: where; a model folder that is there is replaced in one rename.
        weights: of the network, instead of the model's own (the EMA, for instance).
        dtype: of the stored weights; they are computed with in float32 in any case. Those of a codec stay as they are:
            rounded, it would be another one.

    Raises:
        ValueError: if there is something else at ``directory``.
        OSError: if the folder cannot be written.
    """
    with new_folder(directory) as temporary:
        source = weights if weights is not None else cast(nn.Module, model.denoiser.network).state_dict()
        tensors = {
            name: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype)
            for name, tensor in source.items()
        }
        write_tensors(temporary / "model.safetensors", tensors)
        checksum = checksum_of(temporary / "model.safetensors")
        (temporary / "tokenizer.json").write_text(model.reader.tokenizer.to_str(pretty=False), "utf-8")
        description = {
            "format": FORMAT,
            "tokenizer_checksum": checksum_of(temporary / "tokenizer.json"),
            "checksum": checksum,
            **_with_codec(model.codec, temporary),
            **to_dict(model.config),
            "training": model.training,
        }
        (temporary / "unstir.json").write_text(json.dumps(description, indent=2, ensure_ascii=False) + "\n", "utf-8")
        (temporary / "README.md").write_text(card(model), "utf-8")
        if model.taught:
            (temporary / "taught.json").write_text(json.dumps(model.taught, indent=0, ensure_ascii=False), "utf-8")
        if model.tuned and weights is None:
            (temporary / STEPS).write_text(_told_steps(model.tuned, checksum), "utf-8")


def _with_codec(codec: Codec, folder: Path) -> dict[str, str]:
    """Write the weights of a codec into a model folder; what its description says of them."""
    if not isinstance(codec, nn.Module):
        return {}
    write_tensors(folder / CODEC_WEIGHTS, codec.state_dict())
    return {"codec_checksum": checksum_of(folder / CODEC_WEIGHTS)}


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """What a codec that stands alone is made of.

    Args:
        codec: its shape.
    """

    codec: Annotated[CodecShape, *registered(CODECS)]


def save_codec(codec: LearnedCodec, directory: Path, *, training: dict[str, Any] | None = None) -> None:
    """Write a codec folder: all of it, or nothing.

    Args:
        codec: what to write.
        directory: where; a codec folder that is there is replaced in one rename.
        training: how it was trained, for people to read.

    Raises:
        ValueError: if there is something else at ``directory``.
        OSError: if the folder cannot be written.
    """
    with new_folder(directory) as folder:
        write_tensors(folder / "model.safetensors", cast(nn.Module, codec).state_dict())
        description = {
            "format": FORMAT,
            "kind": "codec",
            "checksum": checksum_of(folder / "model.safetensors"),
            **to_dict(CodecConfig(codec=codec.config)),
            "training": training or {},
        }
        (folder / "unstir.json").write_text(json.dumps(description, indent=2, ensure_ascii=False) + "\n", "utf-8")


def load_codec(directory: Path) -> LearnedCodec:
    """Read a codec folder.

    Raises:
        FileNotFoundError: if it is no folder of unstir's.
        ValueError: if it holds something else, or a file in it is foreign, corrupt, of another version, or does not
            belong to the others.
    """
    written = read_description(directory, "codec", CodecConfig)
    weights, _ = checked_weights(directory, written.checksum)
    return cast(LearnedCodec, _filled(written.config.codec, weights))


def _filled(shape: CodecShape, weights: Path) -> Codec:
    with torch.random.fork_rng(devices=[]):  # loading must not move anybody's random stream
        codec = shape.build()
    network = cast(nn.Module, codec)
    load_weights(network, weights)
    network.eval().requires_grad_(False)
    return codec


@contextmanager
def new_folder(directory: Path) -> Generator[Path]:
    """A folder to fill that takes the place of ``directory`` in one rename, or of nothing where filling it failed.

    Raises:
        ValueError: if there is something at ``directory`` that unstir did not write.
        OSError: if the folder cannot be written.
    """
    directory = directory.absolute()
    is_empty = not directory.exists() or (directory.is_dir() and not any(directory.iterdir()))
    if not is_empty and not (directory / "unstir.json").exists():
        raise ValueError(f"{directory} exists and is no model folder; give another name for the model")
    temporary = directory.with_name(f".{directory.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        replace_directory(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_model(directory: Path) -> Model:
    """Read a model folder; nothing but the folder is needed to give its numbers their meaning.

    Raises:
        FileNotFoundError: if it is no model folder.
        ValueError: if a file in it is foreign, corrupt, of another version, or does not belong to the others.
    """
    plug_from_environment()
    written = read_description(directory, "model", ModelConfig)
    config, expected_words = written.config, written.tokenizer_checksum
    try:
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    except Exception as error:  # tokenizers raises bare Exceptions
        raise ValueError(f"{directory / 'tokenizer.json'} is missing or no tokenizer ({error})") from None
    if expected_words and checksum_of(directory / "tokenizer.json") != expected_words:
        raise ValueError(
            f"{directory / 'tokenizer.json'} is not this model's own, or damaged; copy the model folder again"
        )
    weights, checksum = checked_weights(directory, written.checksum)
    with torch.random.fork_rng(devices=[]):  # loading a model must not move anybody's random stream
        reader = WordReader(tokenizer, text_of(config).max_tokens)
        model = build(config, reader, training=written.training, codec=_codec_of(directory, written))
    load_weights(cast(nn.Module, model.denoiser.network), weights)
    model.denoiser.eval().requires_grad_(False)
    taught = directory / "taught.json"
    return replace(
        model,
        taught=tuple(json.loads(taught.read_text("utf-8"))) if taught.is_file() else (),
        tuned=_read_steps(directory / STEPS, checksum),
        checksum=checksum,
    )


def needs_weights(shape: CodecShape) -> bool:
    """Whether a codec of this shape has weights, without which it is nothing."""
    with torch.device("meta"):
        return isinstance(shape.build(), nn.Module)


def _codec_of(directory: Path, written: Description[ModelConfig]) -> Codec:
    """The codec in a model folder, with its weights where it has some."""
    shape = written.config.codec
    if not needs_weights(shape):
        return shape.build()
    weights, _ = checked_weights(directory, written.codec_checksum, CODEC_WEIGHTS)
    return _filled(shape, weights)


@dataclass(frozen=True, kw_only=True)
class Description(Generic[T]):
    """What an ``unstir.json`` says.

    Args:
        config: what is described.
        training: how it was trained, for people to read.
        checksum: sha256 that the weights file should have; empty where none is written.
        tokenizer_checksum: of the tokenizer, likewise.
        codec_checksum: of the codec's weights, likewise.
    """

    config: T
    training: dict[str, Any]
    checksum: str
    tokenizer_checksum: str
    codec_checksum: str = ""


def read_description(directory: Path, kind: str, cls: type[T]) -> Description[T]:
    """What the ``unstir.json`` of a folder says; a folder of another kind is refused.

    Args:
        directory: a folder that unstir wrote.
        kind: a name of ``KINDS``; what says none is a model.
        cls: the configuration of that kind.

    Raises:
        FileNotFoundError: if it is no folder of unstir's.
        ValueError: if the file is foreign, corrupt, of another version or of another kind.
    """
    file = directory / "unstir.json"
    if not file.is_file():
        raise FileNotFoundError(_not_a_folder_of_ours(directory, kind))
    description = _migrated(read_json_file(file), file)
    found = str(description.pop("kind", "model"))
    if found != kind:
        raise ValueError(f"{directory} holds {KINDS.get(found, found)}, not {KINDS[kind]}; give the folder of one")
    training = cast("dict[str, Any]", description.pop("training", {}))
    if type(training) is not dict:
        raise ValueError(f"{file}: training should be an object, got {training!r:.60}")
    sums = [description.pop(f"{of}checksum", "") for of in ("", "tokenizer_", "codec_")]
    try:
        config = from_dict(cls, description)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    return Description(
        config=config, training=training, checksum=sums[0], tokenizer_checksum=sums[1], codec_checksum=sums[2]
    )


def checked_weights(directory: Path, expected: str, name: str = "model.safetensors") -> tuple[Path, str]:
    """A weights file of a folder, and its checksum, which is the expected one where one is expected.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged.
    """
    weights = directory / name
    if not weights.is_file():
        raise FileNotFoundError(f"{directory} has no {name}: the model folder is not complete")
    checksum = checksum_of(weights)
    if expected and checksum != expected:
        raise ValueError(
            f"{weights} is damaged, or another model's: its checksum is not the one in unstir.json; copy the model "
            "folder again"
        )
    return weights, checksum


def save_steps(model: Model, directory: Path) -> None:
    """Write the tuned steps of a model into its folder, in one rename.

    Raises:
        OSError: if the file cannot be written.
    """
    temporary = directory / f".{STEPS}.new"
    try:
        temporary.write_text(_told_steps(model.tuned, model.checksum), "utf-8")
        os.replace(temporary, directory / STEPS)
    finally:
        temporary.unlink(missing_ok=True)


def _told_steps(tuned: Sequence[Tuned], checksum: str) -> str:
    return json.dumps({"checksum": checksum, "tuned": [to_dict(steps) for steps in tuned]}) + "\n"


def _read_steps(path: Path, checksum: str) -> tuple[Tuned, ...]:
    """The steps in a file; none where it was made for other weights, as after more training."""
    if not path.is_file():
        return ()
    found = read_json_file(path)
    if found.get("checksum") != checksum:
        return ()
    try:
        return tuple(from_dict(Tuned, steps) for steps in found["tuned"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); remove it, or make it anew with unstir tune") from None


def load_weights(network: nn.Module, path: Path) -> None:
    """Fill a network with the tensors of a safetensors file, each exactly once.

    Raises:
        ValueError: if the file is no safetensors file, or holds other names or shapes than the network.
    """
    tensors = read_tensors(path)
    own = network.state_dict()
    missing, extra = own.keys() - tensors.keys(), tensors.keys() - own.keys()
    if missing or extra:
        raise ValueError(
            f"{path} does not belong to this network: {len(missing)} tensors are missing and {len(extra)} are unknown "
            f"(for instance {min(missing or extra)})"
        )
    for name, tensor in own.items():
        if tensors[name].shape != tensor.shape:
            raise ValueError(
                f"{path} does not belong to this network: {name} is {list(tensors[name].shape)}, "
                f"not {list(tensor.shape)}"
            )
    network.load_state_dict({name: tensor.to(own[name].dtype) for name, tensor in tensors.items()})


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        ValueError: if it is none.
    """
    try:
        with safe_open(path, framework="pt") as file:  # pyright: ignore[reportUnknownVariableType]
            return {name: cast(Tensor, file.get_tensor(name)) for name in cast("list[str]", file.keys())}
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file, or a damaged one ({error})") from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as a safetensors file, readable by whom any new file is readable by.

    Raises:
        OSError: if it cannot be written, on a full disk for instance.
    """
    path.touch()
    mode = path.stat().st_mode
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(content, path, {"format": "pt"})
    except SafetensorError as error:
        raise disk_error(error, path) from None
    path.chmod(mode)  # safetensors makes files that only their owner can read


def disk_error(error: Exception, path: Path) -> OSError:
    """What the system said when safetensors could not write: it has the number of the error in its text only."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    number = int(found[1]) if found else errno.EIO
    return OSError(number, os.strerror(number), str(path))


def checksum_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_directory(new: Path, target: Path) -> None:
    """Put a finished folder in the place of another, by renames."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.rename(target, old)
    try:
        os.rename(new, target)
    except OSError:
        if old.exists():
            os.rename(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def card(model: Model) -> str:
    """The model card: what the model is and how it was made, in Markdown."""
    config, training = model.config, model.training
    lines = [
        "# A model made with unstir",
        "",
        f"Draws {config.size}x{config.size} pictures from prompts. {model.num_parameters / 1e6:.2f} M parameters.",
        "",
        "```",
        f'unstir sample "..." --model {training.get("folder", "THIS_FOLDER")}',
        "```",
        "",
        "## How it was made",
        "",
        *[f"- {key.replace('_', ' ')}: {value}" for key, value in training.items() if key != "folder"],
        "",
        "`unstir.json` holds all that gives its numbers their meaning; `unstir inspect` prints it.",
    ]
    return "\n".join(lines) + "\n"


def _migrated(description: dict[str, Any], source: Path) -> dict[str, Any]:
    version = description.pop("format", None)
    if not isinstance(version, int):
        raise ValueError(f"{source} is not an unstir model description: it has no format number")
    if version < 1:
        raise ValueError(f"{source} has format {version}, which never was; it is no model of unstir")
    if version > FORMAT:
        raise ValueError(f"{source} has format {version}, this version of unstir reads up to {FORMAT}; update unstir")
    for step in range(version + 1, FORMAT + 1):
        description = MIGRATIONS[step](description)
    return description


def _not_a_folder_of_ours(path: Path, kind: str) -> str:
    if not path.exists():
        builtin = ", or the name builtin" if kind == "model" else ""
        return f"there is no {kind} {path}; give a {kind}'s folder or the folder of its run{builtin}"
    if path.is_file():
        found = "a pickle, which unstir never opens" if _is_pickle(path) else "a file"
        return f"{path} is {found}; a {kind} is a folder with unstir.json and model.safetensors"
    if (path / "model_index.json").exists():
        return f"{path} is a diffusers model; unstir reads its own folders, which hold an unstir.json"
    return f"{path} holds no unstir.json; a {kind} is a folder with unstir.json and model.safetensors"


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(4)
    return path.suffix in (".pt", ".pth", ".ckpt", ".pkl", ".bin") or head[:1] == b"\x80" or head == b"PK\x03\x04"
