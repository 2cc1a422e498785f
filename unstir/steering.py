"""Steering: which guidance a request asks for beside its scale, and the denoiser that this makes of a model.

Knows: kinds of guidance by name, what they need of a model, in which order a belief is combined, steered and corrected.
Does not know: requests, prompts, devices, where models lie.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from unstir.classifier import Classifier
from unstir.codec import BitPlanes, Identity
from unstir.condition import Condition
from unstir.config import choose
from unstir.diffusion.denoiser import Denoiser
from unstir.diffusion.guidance import (
    VIEWS,
    Combine,
    Correct,
    clip,
    corrected,
    dynamic_threshold,
    extrapolate,
    guided,
    is_within,
    pair_of,
    projected,
    rescale,
    within,
    zero_star,
)
from unstir.diffusion.process import Process
from unstir.diffusion.schedule import Level
from unstir.diffusion.tilting import LogLikelihood, steered, tilted
from unstir.model import Model, is_same_codec
from unstir.typing import X

METHODS: dict[str, Callable[[Any, float], Combine]] = {
    "plain": extrapolate,
    "projected": projected,
    "zero_star": zero_star,
}
"""How two beliefs are combined, by name."""

TILTED = ("ancestral",)
"""Samplers that draw from ``reverse``: there a classifier leans on the reverse step, elsewhere on the belief."""


@dataclass(frozen=True, kw_only=True)
class Steering:
    """The guidance that a request asks for, beside its scale and its interval.

    Args:
        method: a name of ``METHODS``.
        rescale: how much of the strong belief's contrast a combined belief is given, 0 to 1.
        view: on what it is rescaled, a name of ``VIEWS``.
        threshold: the quantile of a dynamic threshold; None does what the model does, which is to clip or nothing.
        weak: a model to push off from in the place of the model's own null; empty for none.
        classifier: a classifier that is followed as well; empty for none.
        classifier_scale: how strongly.
        weights: sha256 of the weights of ``weak`` and ``classifier``, so that a picture drawn again is drawn with the
            same; empty for any.

    Raises:
        ValueError: if a name is unknown, a number out of its range, or a scale has no classifier.
    """

    method: str = "plain"
    rescale: float = 0.0
    view: str = "v"
    threshold: float | None = None
    weak: str = ""
    classifier: str = ""
    classifier_scale: float = 1.0
    weights: tuple[str, str] = ("", "")

    def __post_init__(self) -> None:
        """Refuse what is no guidance."""
        choose(self.method, METHODS, "guidance method")
        choose(self.view, VIEWS, "view of guidance")
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"guidance is rescaled by a fraction from 0 (not at all) to 1, got {self.rescale}")
        if self.threshold is not None:
            dynamic_threshold(self.threshold)
        if not math.isfinite(self.classifier_scale):
            raise ValueError(f"the scale of a classifier must be a finite number, got {self.classifier_scale}")
        if self.classifier_scale != 1 and not self.classifier:
            raise ValueError(f"a classifier scale of {self.classifier_scale:g} has no classifier; name one")

    @property
    def needs_scale(self) -> bool:
        """Whether something of it does nothing at guidance scale 1."""
        return self.method != "plain" or self.rescale > 0 or bool(self.weak)


@dataclass(frozen=True, kw_only=True, eq=False)
class Told:
    """What the pictures of one drawing are told.

    Args:
        strong: the prompts.
        weak: what is pushed off from; None is the model's own null.
        scale: of guidance; 1 is none.
        interval: log-SNR between which guidance acts, the classifier's too; None is everywhere.
        other: the weak model, with its own condition bound; None where there is none.
        log_likelihood: what the classifier says of each picture's own class; None where there is none.
        is_tilted: whether the classifier leans on the reverse step, not on the belief.
    """

    strong: Condition
    weak: Condition | None = None
    scale: float = 1.0
    interval: tuple[float, float] | None = None
    other: Denoiser | None = None
    log_likelihood: LogLikelihood | None = None
    is_tilted: bool = False


def denoiser_of(model: Model, steering: Steering, told: Told) -> Denoiser:
    """The model's beliefs as they are asked for: combined, then led by the classifier, then brought into range.

    At scale 1 nothing is combined, and the model is asked once a step.
    """
    strong = model.denoiser.given
    if told.scale == 1:
        denoise = strong(told.strong)
    else:
        if told.other is not None:
            pair = pair_of(strong(told.strong), told.other)
        else:
            weak = told.strong.null() if told.weak is None else told.weak
            pair = model.denoiser.given_pair(told.strong, weak)
        combine = rescale(METHODS[steering.method](model.process, told.scale), steering.rescale, steering.view)
        denoise = guided(pair, combine, interval=told.interval)
    if told.log_likelihood is not None and not told.is_tilted:
        led = steered(denoise, told.log_likelihood, steering.classifier_scale)
        denoise = led if told.interval is None else within(told.interval, led, denoise)
    return corrected(denoise, *_corrections(model, steering))


def process_of(model: Model, steering: Steering, told: Told) -> Process:
    """The process that is walked back: the model's own, or one whose reverse steps lean where the classifier points."""
    log_likelihood = told.log_likelihood
    if log_likelihood is None or not told.is_tilted:
        return model.process

    def log_r(x_s: X, s: Level) -> Float[Tensor, "b"]:
        scale = steering.classifier_scale if is_within(told.interval, s) else 0.0
        return scale * log_likelihood(x_s, s)

    return tilted(model.process, log_r)


def require_fit(model: Model, steering: Steering, *, weak: Model | None, classifier: Classifier | None) -> None:
    """See that a model can be steered so.

    Args:
        model: what draws.
        steering: what is asked for.
        weak: the model that it names.
        classifier: the classifier that it names.

    Raises:
        ValueError: if it cannot, saying what to do.
    """
    if model.config.process == "binomial":
        _require_bits(steering)
    if steering.threshold is not None and _is_in_latents(model):
        raise ValueError("this model draws in latents, which have no range that a dynamic threshold could keep")
    end = model.process.schedule.at(torch.ones((), dtype=torch.float64))
    if steering.rescale and steering.view == "noise" and end.alpha == 0:
        raise ValueError("this model's path ends without signal, where noise says nothing; rescale the view v or x0")
    if steering.method == "zero_star" and bool(end.dalpha.isinf()):
        raise ValueError(
            "zero_star needs a path of finite velocity, which this model's is not; take projected or plain"
        )
    if weak is not None:
        _require_alike(model, weak, steering.weak)
    if classifier is not None:
        _require_judge(model, classifier, steering.classifier)
    for name, wanted, there in zip(
        (steering.weak, steering.classifier), steering.weights, (weak, classifier), strict=True
    ):
        if wanted and there is not None and there.checksum != wanted:
            raise ValueError(
                f"{name} has other weights (sha256 {there.checksum[:10]}...) than the ones asked for "
                f"({wanted[:10]}...); bring those back, or ask anew"
            )


def _corrections(model: Model, steering: Steering) -> list[Correct]:
    if steering.threshold is not None:
        return [dynamic_threshold(steering.threshold)]
    return [clip()] if model.config.sampling.clip and not _is_in_latents(model) else []


def _is_in_latents(model: Model) -> bool:
    """Whether it draws in a space of its own, whose numbers have no range."""
    return not isinstance(model.config.codec, Identity | BitPlanes)


def _require_bits(steering: Steering) -> None:
    """Only what combines logits means something for bits."""
    refused = {
        "rescaling": steering.rescale > 0,
        "a dynamic threshold": steering.threshold is not None,
        "a classifier": bool(steering.classifier),
        "zero_star": steering.method == "zero_star",
    }
    for what, is_asked in refused.items():
        if is_asked:
            raise ValueError(f"this model draws bits, for which {what} has no meaning; take plain or projected alone")


def _require_alike(model: Model, weak: Model, name: str) -> None:
    own, other = model.config, weak.config
    pairs = {
        "schedule": (own.schedule, other.schedule),
        "process": (own.process, other.process),
        "codec": (own.codec, other.codec),
        "size": (own.size, other.size),
    }
    for what, (here, there) in pairs.items():
        if here != there:
            raise ValueError(
                f"the weak model {name} has another {what} ({there}) than the model ({here}); take an earlier or "
                "smaller version of the same model"
            )
    if not is_same_codec(model.codec, weak.codec):
        raise ValueError(
            f"the codec of the weak model {name} has other weights than the model's, and its latents another meaning; "
            "take an earlier or smaller version of the same model"
        )


def _require_judge(model: Model, classifier: Classifier, name: str) -> None:
    if classifier.config.is_clean:
        raise ValueError(
            f"the classifier {name} was trained on clean pictures alone and cannot judge noisy ones; take one that was "
            "trained with is_clean false"
        )
    if not isinstance(model.config.codec, Identity):
        raise ValueError(f"the classifier {name} reads pictures, and this model draws in another space; leave it out")
