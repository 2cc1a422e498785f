"""One training step: from losses to moved weights and their average.

Knows: the order of backward pass, clipping, optimizer and average, and how a batch is seen in parts.
Does not know: where pictures come from, what is minimised, files.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from unstir.device import autocast
from unstir.diffusion.objective import Loss
from unstir.training.checkpoint import Checkpoint
from unstir.training.ema import ema_update
from unstir.training.optimizer import OptimizerConfig, make_optimizer

Net = TypeVar("Net", bound=nn.Module)


@dataclass(frozen=True, kw_only=True, eq=False)
class Moved:
    """What one step did; tensors on the device, so that nobody waits for it who does not ask.

    Args:
        loss: of each sample.
        norm: of the gradient, before clipping.
    """

    loss: Loss
    norm: Tensor

    @property
    def is_finite(self) -> Tensor:
        """Whether every loss and the gradient are."""
        return torch.isfinite(self.loss.per_sample).all() & torch.isfinite(self.norm)


class NotFiniteError(ArithmeticError):
    """A loss or a gradient is not finite.

    Args:
        moved: of the step in which it happened.
    """

    def __init__(self, moved: Moved) -> None:
        super().__init__("the loss or its gradient is not finite")
        self.moved = moved


class Learner(Generic[Net]):
    """Weights that learn, what moves them, and their average.

    Args:
        network: whose weights; it is moved to the device.
        config: of the optimizer.
        device: where.
        precision: inside the network.
    """

    def __init__(
        self, network: Net, config: OptimizerConfig, *, device: torch.device, precision: Literal["float32", "bf16"]
    ) -> None:
        self.device, self.config = device, config
        self.precision: Literal["float32", "bf16"] = precision
        self.network = network.to(device).requires_grad_(True)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.optimizer = make_optimizer(self.network, config)
        self.is_instant = device.type == "cpu"  # elsewhere looking at a number would make the device wait, every step
        self._doubtful: Moved | None = None

    def step(self, losses: Iterable[Callable[[], Loss]], count: int, *, rate: float, decay: float) -> Moved:
        """Move the weights once, by the gradient of the mean loss.

        Args:
            losses: of each part of the batch, computed when it is called; their gradients add up, one part's graph at a
                time.
            count: samples in all parts.
            rate: of the optimizer.
            decay: what the average keeps of itself.

        Raises:
            NotFiniteError: if a loss or the gradient is not finite. On a CPU nothing was changed then; elsewhere it
                comes one step late, for whoever goes back to the last checkpoint.
        """
        self.require_finite()
        self.network.train()
        seen: list[Loss] = []
        for part in losses:
            with autocast(self.device, self.precision):
                loss = part()
            with self._backward():
                (loss.per_sample.sum() / count).backward()
            seen.append(loss)
        weights = [weight for weight in self.network.parameters() if weight.requires_grad]
        norm = nn.utils.clip_grad_norm_(weights, self.config.clip_norm)
        self._doubtful = moved = Moved(loss=_joined(seen), norm=norm)
        if self.is_instant:
            self.require_finite()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        ema_update(list(self.average.parameters()), list(self.network.parameters()), decay)
        return moved

    def _backward(self) -> AbstractContextManager[Any]:
        """The context of a backward pass: that of the forward one but for bf16, whose products have said theirs."""
        return nullcontext() if self.precision == "bf16" else autocast(self.device, self.precision)

    def require_finite(self) -> None:
        """See that the last step was one to go on from.

        Raises:
            NotFiniteError: if it was not.
        """
        moved, self._doubtful = self._doubtful, None
        if moved is not None and not bool(moved.is_finite):
            self.optimizer.zero_grad()
            raise NotFiniteError(moved)

    def state(self, images_seen: int) -> Checkpoint:
        """What a training goes on from, exactly: weights, their average, and what the optimizer remembers of them."""
        tensors = {
            "network": self.network.state_dict(),
            "ema": self.average.state_dict(),
            "optimizer": self.optimizer.moments(self.network),
        }
        return Checkpoint(images_seen=images_seen, tensors=tensors, values={})

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from what ``state`` told.

        Raises:
            ValueError: if it is the state of another network.
        """
        try:
            self.network.load_state_dict(checkpoint.tensors["network"])
            self.average.load_state_dict(checkpoint.tensors["ema"])
        except (RuntimeError, KeyError) as error:
            raise ValueError(f"the checkpoint is of another network: {str(error).splitlines()[0]}") from None
        self.optimizer.load_moments(self.network, checkpoint.tensors["optimizer"])


def _joined(losses: list[Loss]) -> Loss:
    """The losses of all parts, in their order, without their graphs."""
    return Loss(
        per_sample=torch.cat([loss.per_sample.detach() for loss in losses]),
        parts={name: torch.cat([loss.parts[name] for loss in losses]) for name in losses[0].parts},
    )
