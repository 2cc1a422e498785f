"""Classifier: log p(class | x_t) of spoiled pictures, with what gives its numbers their meaning, and its form on disk.

Knows: an encoder, how what it reads was spoiled, the names of its classes, how a prompt names one.
Does not know: how it was trained beyond what is written down, what its gradient is used for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unstir.config import registered, to_dict
from unstir.diffusion.process import GaussianProcess
from unstir.diffusion.schedule import SCHEDULES, Cosine, Level, Schedule, spread
from unstir.model import (
    FORMAT,
    checked_weights,
    checksum_of,
    load_weights,
    new_folder,
    read_description,
    write_tensors,
)
from unstir.nn.encoder import Encoder, EncoderConfig
from unstir.typing import Picture, X

_FARTHEST = 20.0  # nats; what is beyond looks the same: pure noise, or the data itself


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """What a classifier is made of.

    Args:
        schedule: at whose levels it was trained.
        is_clean: whether it was trained on clean pictures alone, and so can judge nothing else.
        network: shape of the encoder.
        classes: their names, as prompts name them.
        size: height and width of the pictures that it was trained on.

    Raises:
        ValueError: if there are fewer than two classes, one has no name or the name of another, the network has
            another number of outputs, or the size is no multiple of the network's.
    """

    schedule: Annotated[Schedule, *registered(SCHEDULES)] = field(default_factory=Cosine)
    is_clean: bool = False
    network: EncoderConfig = field(default_factory=EncoderConfig)
    classes: tuple[str, ...]
    size: int = 32

    def __post_init__(self) -> None:
        """Refuse what is no classifier."""
        names = [name.casefold().strip() for name in self.classes]
        if len(names) < 2 or "" in names or len(set(names)) < len(names):
            raise ValueError(f"a classifier needs two classes or more, each with a name of its own, got {self.classes}")
        if self.network.outputs != len(names):
            raise ValueError(
                f"{len(names)} classes need a network with as many outputs, got {self.network.outputs}; set "
                "network.outputs"
            )
        multiple = 2 ** (len(self.network.multipliers) - 1)
        if self.size < 1 or self.size % multiple:
            raise ValueError(f"the network reads multiples of {multiple}, got size {self.size}; change one of them")


@dataclass(frozen=True, kw_only=True, eq=False)
class Classifier:
    """A classifier of pictures at any level of noise.

    What it reads is x_t / sqrt(alpha^2 + sigma^2) and the log-SNR, so that a level of any Gaussian schedule means the
    same to it: a picture at some log-SNR differs between schedules by that factor alone.

    Args:
        config: what it is made of.
        network: the encoder.
        training: how it was trained, for people to read.
        checksum: sha256 of its weights file; empty while it has none.

    Source: Dhariwal & Nichol 2021, arXiv:2105.05233, Sec. 4 (a classifier of noisy pictures); Kingma et al. 2021,
        arXiv:2107.00630, Sec. 5.1 (schedules that share a log-SNR differ by a factor).
    """

    config: ClassifierConfig
    network: Encoder
    training: dict[str, Any] = field(default_factory=dict[str, Any])
    checksum: str = ""

    @property
    def process(self) -> GaussianProcess:
        """How what it was trained on was spoiled."""
        return GaussianProcess(schedule=self.config.schedule)

    @property
    def num_parameters(self) -> int:
        """Number of weights."""
        return sum(weight.numel() for weight in self.network.parameters())

    def log_probs(self, x_t: X, level: Level) -> Float[Tensor, "b k"]:
        """The log-probability of every class given x_t; differentiable in x_t.

        Raises:
            ValueError: if the level is noisy and the classifier was trained on clean pictures alone.
        """
        return self._read(self.network, x_t, level).log_softmax(-1)

    def log_prob(self, x_t: X, level: Level, classes: Int[Tensor, "b"]) -> Float[Tensor, "b"]:
        """The log-probability of one class a sample given x_t; differentiable in x_t. Classifier guidance follows it.

        Raises:
            ValueError: as ``log_probs``.
        """
        return self.log_probs(x_t, level).gather(1, classes[:, None])[:, 0]

    def features(self, pictures: Picture) -> Float[Tensor, "b d"]:
        """What the last layer reads of clean pictures: the encoder's pooled features at t = 0."""
        start = self.config.schedule.at(torch.zeros((), dtype=torch.float64))
        return self._read(self.network.features, pictures, start)

    def class_of(self, prompt: str) -> int:
        """The number of the class that a prompt names; see ``class_named``."""
        return class_named(prompt, self.config.classes)

    def _read(self, ask: Callable[[Tensor, Tensor], Tensor], x_t: X, level: Level) -> Tensor:
        if self.config.is_clean and bool((level.sigma > 0).any()):
            raise ValueError(
                "this classifier was trained on clean pictures alone and cannot judge noisy ones; take one that was "
                "trained with is_clean false"
            )
        dtype = self.network.head.weight.dtype
        x = (spread((level.alpha**2 + level.sigma**2).rsqrt(), x_t) * x_t).to(dtype)
        scalar = level.log_snr.clamp(-_FARTHEST, _FARTHEST).to(dtype).expand(len(x)).to(x.device)
        if len(x) == 1:  # kernels for one row may round differently from those for several
            return ask(torch.cat([x, x]), torch.cat([scalar, scalar]))[:1].to(x_t.dtype)
        return ask(x, scalar).to(x_t.dtype)


def class_named(prompt: str, classes: Sequence[str]) -> int:
    """The number of the class whose name stands in the prompt as whole words, in any case.

    Of names that contain each other ("deer" and "red deer") the longer one is meant.

    Raises:
        ValueError: if no class is named, or several are.
    """
    said = prompt.casefold()
    found = [name for name in classes if re.search(rf"(?<!\w){re.escape(name.casefold().strip())}(?!\w)", said)]
    longest = max(found, key=len, default="")
    others = [name for name in found if name.casefold().strip() not in longest.casefold()]
    if not found or others:
        told = f"names {len(found)} classes" if found else "names no class"
        raise ValueError(f"the prompt {prompt!r} {told}; name one of {', '.join(classes)}")
    return classes.index(longest)


def build_classifier(config: ClassifierConfig) -> Classifier:
    """A classifier with fresh weights (drawn from torch's global generator).

    Raises:
        ValueError: if the network's shape is none.
    """
    return Classifier(config=config, network=Encoder(config.network))


def save_classifier(classifier: Classifier, directory: Path) -> None:
    """Write a classifier folder: all of it, or nothing.

    Raises:
        ValueError: if there is something else at ``directory``.
        OSError: if the folder cannot be written.
    """
    with new_folder(directory) as folder:
        write_tensors(folder / "model.safetensors", classifier.network.state_dict())
        description = {
            "format": FORMAT,
            "kind": "classifier",
            "checksum": checksum_of(folder / "model.safetensors"),
            **to_dict(classifier.config),
            "training": classifier.training,
        }
        (folder / "unstir.json").write_text(json.dumps(description, indent=2, ensure_ascii=False) + "\n", "utf-8")


def load_classifier(directory: Path) -> Classifier:
    """Read a classifier folder.

    Raises:
        FileNotFoundError: if it is no folder of unstir's.
        ValueError: if it holds a model that draws, or a file in it is foreign, corrupt, of another version, or does not
            belong to the others.
    """
    written = read_description(directory, "classifier", ClassifierConfig)
    weights, checksum = checked_weights(directory, written.checksum)
    with torch.random.fork_rng(devices=[]):  # loading must not move anybody's random stream
        network = Encoder(written.config.network)
    load_weights(network, weights)
    network.eval().requires_grad_(False)
    return Classifier(config=written.config, network=network, training=written.training, checksum=checksum)
