"""The trainer: from a state to the state after one more batch.

Knows: the order of a training step, and what a run's state is.
Does not know: run folders, progress bars, previews: these are hooks.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, cast

import torch
from torch import Tensor, nn

from unstir.condition import Condition
from unstir.conditioning.captions import Wording
from unstir.config import registered
from unstir.device import autocast, resolve_device, resolve_precision
from unstir.diffusion.denoiser import NetworkDenoiser
from unstir.diffusion.objective import DISTANCES, WEIGHTS, Hybrid, Loss, Offset, Simple, VariationalBound
from unstir.diffusion.times import EndTime, LogitNormalTimes, LogNormalTimes, LogSNRTimes, Times, UniformTimes
from unstir.model import Model
from unstir.training.batches import CODEC, OBJECTIVE, Captioned, batch_of
from unstir.training.checkpoint import Checkpoint
from unstir.training.ema import ema_decay, ema_update
from unstir.training.optimizer import OptimizerConfig, Optimizers, learning_rate, make_optimizer
from unstir.typing import integers

TIMES: dict[str, type[Times]] = {
    "uniform": UniformTimes,
    "logit_normal": LogitNormalTimes,
    "log_normal": LogNormalTimes,
    "log_snr": LogSNRTimes,
    "end": EndTime,
}


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

    Raises:
        ValueError: if a number is out of its range.
    """

    images: int = 200_000
    batch: int = 32
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

    def __post_init__(self) -> None:
        """Refuse a run without pictures."""
        if self.images < 1 or self.batch < 1:
            raise ValueError(f"images and batch must be at least 1, got {self.images} and {self.batch}")
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


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one step did.

    Args:
        images_seen: pictures seen after it.
        loss: mean over the batch.
        x0_error: mean squared error on x0, mean over the batch.
        gradient_norm: before clipping.
        learning_rate: of the step.
        seconds: wall time of the step.
    """

    images_seen: int
    loss: float
    x0_error: float
    gradient_norm: float
    learning_rate: float
    seconds: float


class Trainer:
    """A model in training.

    Its whole state is ``images_seen``, the weights, their average and the optimizer's moments; what is seen next, and
    the noise on it, are functions of the configuration and ``images_seen``.

    Args:
        model: whose weights to train; they are moved to the device.
        data: what to train on.
        config: how.
        device: where.
    """

    def __init__(self, model: Model, data: Captioned, config: TrainingConfig, *, device: str = "auto") -> None:
        self.model, self.data, self.config = model, data, config
        self.device = resolve_device(device)
        self.precision: Literal["float32", "bf16"] = resolve_precision(config.precision, self.device)
        self.network = cast(nn.Module, model.denoiser.network).to(self.device).requires_grad_(True)
        self.ema_network: Any = copy.deepcopy(self.network).requires_grad_(False)
        self.optimizer = make_optimizer(self.network, config.optimizer)
        self.objective = objective_of(config)
        self.images_seen = 0

    @property
    def ema_model(self) -> Model:
        """The model with the averaged weights, for previews, validation and saving."""
        model = self.model
        denoiser: NetworkDenoiser[Condition] = NetworkDenoiser(
            self.ema_network,
            model.process,
            model.denoiser.parameterization,
            is_self_conditioned=model.denoiser.is_self_conditioned,
        )
        return Model(config=model.config, denoiser=denoiser.eval(), reader=model.reader, training=model.training)

    def step(self) -> Report:
        """See one more batch.

        Raises:
            ArithmeticError: if the loss or its gradient is not finite; nothing was changed then.
        """
        started = time.perf_counter()
        config = self.config
        count = min(config.batch, config.images - self.images_seen)
        parts = batch_of(
            self.data,
            self.model.reader,
            config.wording,
            seed=config.seed,
            start=self.images_seen,
            count=count,
            drop=self.model.config.condition_drop,
        )
        self.network.train()
        losses: list[Loss] = []
        for pictures, condition, noise in parts:  # pictures of one shape each; their gradients add up
            pictures, condition = pictures.to(self.device), condition.map(lambda tensor: tensor.to(self.device))
            latents = self.model.config.codec.encode(pictures, noise.at(CODEC))
            with autocast(self.device, self.precision):
                loss = self.objective(self.model.denoiser, latents, condition, noise.at(OBJECTIVE))
            (loss.per_sample.sum() / count).backward()
            losses.append(loss)
        per_sample = torch.cat([loss.per_sample.detach() for loss in losses])
        weights = [weight for weight in self.network.parameters() if weight.requires_grad]
        norm = nn.utils.clip_grad_norm_(weights, config.optimizer.clip_norm)
        if not bool(torch.isfinite(per_sample).all()) or not bool(torch.isfinite(norm)):
            self.optimizer.zero_grad()
            raise ArithmeticError(
                self._diagnosis(per_sample, torch.cat([one.parts["log_snr"] for one in losses]), norm)
            )
        rate = learning_rate(config.optimizer, self.images_seen, config.images)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.images_seen += count
        decay = ema_decay(
            count, self.images_seen, half_life_images=config.ema.half_life_images, warmup=config.ema.warmup
        )
        ema_update(list(self.ema_network.parameters()), list(self.network.parameters()), decay)
        return Report(
            images_seen=self.images_seen,
            loss=per_sample.mean().item(),
            x0_error=torch.cat([loss.parts["x0_error"] for loss in losses]).mean().item(),
            gradient_norm=norm.item(),
            learning_rate=rate,
            seconds=time.perf_counter() - started,
        )

    def run(
        self, hooks: Sequence[Callable[[Trainer, Report], None]], *, should_stop: Callable[[], bool] = lambda: False
    ) -> None:
        """Train until ``config.images`` pictures were seen, or until ``should_stop`` after a step.

        Every hook is called after every step.
        """
        while self.images_seen < self.config.images:
            report = self.step()
            for hook in hooks:
                hook(self, report)
            if should_stop():
                return

    def require_finite(self) -> None:
        """See that the state is one to go on from.

        Raises:
            ArithmeticError: naming the first weight that is not finite.
        """
        for name, weight in [*self.network.named_parameters(), *self.ema_network.named_parameters()]:
            if not bool(torch.isfinite(weight).all()):
                raise ArithmeticError(
                    f"the weight {name} is not finite after {self.images_seen} pictures; the last checkpoint is "
                    "untouched: resume with a lower --training.optimizer.learning_rate or in float32"
                )

    def checkpoint(self) -> Checkpoint:
        """The state, to be saved."""
        return state_of(self.network, self.ema_network, self.optimizer, self.images_seen)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a saved state, exactly.

        Raises:
            ValueError: if it is the state of another network.
        """
        restore_state(checkpoint, self.network, self.ema_network, self.optimizer)
        self.images_seen = checkpoint.images_seen

    def _diagnosis(self, losses: Tensor, log_snr: Tensor, norm: Tensor) -> str:
        bad = integers((~torch.isfinite(losses)).nonzero().flatten())
        where = f"the loss at log-SNR {log_snr[bad[0]].item():.2f}" if bad else "the gradient"
        names = [name for name, weight in self.network.named_parameters() if not bool(torch.isfinite(weight).all())]
        culprit = f"; weights that are not finite: {names[0]}" if names else ""
        return (
            f"{where} is not finite after {self.images_seen} pictures (gradient norm {norm.item():.3g}){culprit}; "
            "the last checkpoint is untouched: resume with a lower --training.optimizer.learning_rate or in float32"
        )


def state_of(network: nn.Module, ema_network: nn.Module, optimizer: Optimizers, images_seen: int) -> Checkpoint:
    """What a training goes on from, exactly: weights, their average, and what the optimizer remembers of them."""
    tensors = {
        "network": network.state_dict(),
        "ema": ema_network.state_dict(),
        "optimizer": optimizer.moments(network),
    }
    return Checkpoint(images_seen=images_seen, tensors=tensors, values={})


def restore_state(checkpoint: Checkpoint, network: nn.Module, ema_network: nn.Module, optimizer: Optimizers) -> None:
    """Fill networks and optimizer with what ``state_of`` told.

    Raises:
        ValueError: if it is the state of another network.
    """
    try:
        network.load_state_dict(checkpoint.tensors["network"])
        ema_network.load_state_dict(checkpoint.tensors["ema"])
    except (RuntimeError, KeyError) as error:
        raise ValueError(f"the checkpoint is of another network: {str(error).splitlines()[0]}") from None
    optimizer.load_moments(network, checkpoint.tensors["optimizer"])
