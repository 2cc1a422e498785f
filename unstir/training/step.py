"""One training step: from losses to moved weights and their average.

Knows: the order of backward pass, clipping, optimizer and average, and how a batch is seen in parts.
Does not know: where pictures come from, what is minimised, files.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from unstir.device import autocast, compiles, lay_out
from unstir.diffusion.objective import Loss
from unstir.training.checkpoint import Checkpoint, flat
from unstir.training.ema import ema_update
from unstir.training.engine import Team, Way, fill, quiet, read_shards, shapes_in, shard, share, whole_of
from unstir.training.optimizer import OptimizerConfig, make_optimizer

Net = TypeVar("Net", bound=nn.Module)

_BACKEND = "inductor"  # of torch.compile


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
        is_static: whether all it sees has one shape; for many shapes, or shards of weights, nothing is compiled.
        team: the processes that learn the same, each from its ``rows`` of a batch.
        way: how they share the weights.

    Raises:
        ValueError: if the optimizer moves whole matrices, of which each process would hold a shard.
    """

    def __init__(
        self,
        network: Net,
        config: OptimizerConfig,
        *,
        device: torch.device,
        precision: Literal["float32", "bf16"],
        is_static: bool = True,
        team: Team | None = None,
        way: Way = "ddp",
    ) -> None:
        self.device, self.config, self.team = device, config, team or Team()
        self.is_sharded = self.team.size > 1 and way == "fsdp"
        if self.is_sharded and config.hidden == "muon":
            raise ValueError(
                "muon moves whole matrices, and with fsdp each process holds a shard of them; take "
                "--training.parallel ddp, or --training.optimizer.hidden adamw"
            )
        self.precision: Literal["float32", "bf16"] = precision
        self.network = network.to(device).requires_grad_(True)
        lay_out(self.network, device, precision)
        may_compile = is_static and not self.is_sharded and compiles(device)
        self._compiled: Callable[..., Any] | None = _compiled(self.network) if may_compile else None
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.called = share(self.network, self.team, way, device)
        if self.is_sharded:
            shard(self.average, device)
        self.optimizer = make_optimizer(self.network, config)
        self.is_instant = device.type == "cpu"  # elsewhere looking at a number would make the device wait, every step
        self._doubtful: Moved | None = None

    def step(self, losses: Iterable[Callable[[], Loss]], count: int, *, rate: float, decay: float) -> Moved:
        """Move the weights once, by the gradient of the mean loss.

        Args:
            losses: of each part of this process's rows of the batch, computed when it is called; their gradients add
                up, one part's graph at a time. Where it has no row, of any sample: it does not count.
            count: samples of the whole batch.
            rate: of the optimizer.
            decay: what the average keeps of itself.

        Raises:
            NotFiniteError: if a loss or the gradient is not finite. On a CPU nothing was changed then; elsewhere it
                comes one step late, for whoever goes back to the last checkpoint.
        """
        self.require_finite()
        self.network.train()
        seen = self._gone_back(list(losses), count)
        weights = [weight for weight in self.network.parameters() if weight.requires_grad]
        norm = whole_of(nn.utils.clip_grad_norm_(weights, self.config.clip_norm))
        self._doubtful = moved = Moved(loss=self._everybodys(_joined(seen), count), norm=norm)
        if self.is_instant:
            self.require_finite()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        ema_update(list(self.average.parameters()), list(self.network.parameters()), decay)
        return moved

    @property
    def is_compiled(self) -> bool:
        """Whether the network is compiled while it learns."""
        return self._compiled is not None

    def _gone_back(self, losses: Sequence[Callable[[], Loss]], count: int) -> list[Loss]:
        """The losses of all parts, whose gradients are there now; uncompiled from here on if the compiler fails."""
        if self._compiled is None:
            return self._through(losses, count)
        try:
            with _called(self.network, self._compiled):
                return self._through(losses, count)
        except Exception as error:  # a compiler that is not there, or cannot do it: each says so in its own way
            self.optimizer.zero_grad()
            self._compiled, failure = None, error
        seen = self._through(losses, count)  # where it was not the compiler, this fails likewise
        reason = " ".join(f"{type(failure).__name__}: {failure}".split())[:200]
        warnings.warn(f"the network cannot be compiled here and trains uncompiled ({reason})", stacklevel=4)
        return seen

    def _through(self, losses: Sequence[Callable[[], Loss]], count: int) -> list[Loss]:
        mine = self.team.rows(count)
        weight = self.team.size if mine.stop > mine.start else 0  # what is exchanged is the mean over processes
        passes = self.team.largest(len(losses)) if self.is_sharded else len(losses)  # shards are gathered in each
        seen: list[Loss] = []
        for number in range(passes):
            part = losses[min(number, len(losses) - 1)]
            with autocast(self.device, self.precision), quiet(self.called, is_last=number == passes - 1):
                loss = part()
            if number < len(losses):
                seen.append(loss)
            with self._backward(), quiet(self.called, is_last=number == passes - 1):
                (loss.per_sample.sum() * (weight if number < len(losses) else 0) / count).backward()
        return seen

    def _everybodys(self, loss: Loss, count: int) -> Loss:
        """The losses of the whole batch, from those of this process's rows."""
        if self.team.size == 1:
            return loss
        mine = self.team.rows(count)
        own = torch.stack([loss.per_sample, *(part.to(loss.per_sample) for part in loss.parts.values())])
        rows = self.team.gathered(own[:, : mine.stop - mine.start], count)
        return Loss(per_sample=rows[0], parts=dict(zip(loss.parts, rows[1:], strict=True)))

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
        if checkpoint.shards is not None:
            return self._restore_shards(checkpoint.shards)
        found = {name: tensor.shape for name, tensor in flat(checkpoint.tensors).items()}
        self._require_same(found)
        for group, network in (("network", self.network), ("ema", self.average)):
            for name, tensor in network.state_dict().items():
                fill(tensor, checkpoint.tensors[group][name])
        self.optimizer.load_moments(self.network, checkpoint.tensors["optimizer"])

    def _restore_shards(self, folder: Path) -> None:
        found = shapes_in(folder)
        self._require_same(found)
        weights = dict(self.network.named_parameters())
        for key, shape in found.items():
            group, _, rest = key.partition("/")
            moment, _, name = rest.partition(".")
            if group == "optimizer":
                weight = weights[name]
                blank = torch.zeros_like(weight) if shape == weight.shape else torch.zeros(shape, device=weight.device)
                self.optimizer.state_of(weight)[moment] = blank.detach()
        read_shards(folder, flat(self.state(0).tensors))

    def _require_same(self, found: Mapping[str, torch.Size]) -> None:
        """See that a state is one of these networks.

        Raises:
            ValueError: naming the first tensor that is missing, too many or of another shape.
        """
        mine = {"network": self.network.state_dict(), "ema": self.average.state_dict()}
        wanted = {name: tensor.shape for name, tensor in flat(mine).items()}
        told = {name: shape for name, shape in found.items() if not name.startswith("optimizer/")}
        for name in (*wanted, *told):
            if wanted.get(name) != told.get(name):
                here, there = (_told(shapes.get(name)) for shapes in (wanted, told))
                raise ValueError(f"the checkpoint is of another network: {name} is {there} there and {here} here")


def _told(shape: torch.Size | None) -> str:
    return "missing" if shape is None else f"of shape {tuple(shape)}"


def _compiled(network: nn.Module) -> Callable[..., Any]:
    """What calls a network compiled; the network itself, and the names of its weights, stay as they are."""
    network.compile(dynamic=False, backend=_BACKEND)
    call = cast(Any, network)._compiled_call_impl
    cast(Any, network)._compiled_call_impl = None
    return call


@contextmanager
def _called(network: nn.Module, call: Callable[..., Any]) -> Generator[None]:
    """A network compiled while this lasts: whoever looks at it between steps asks in other shapes, once or twice."""
    cast(Any, network)._compiled_call_impl = call
    try:
        yield
    finally:
        cast(Any, network)._compiled_call_impl = None


def _joined(losses: list[Loss]) -> Loss:
    """The losses of all parts, in their order, without their graphs."""
    return Loss(
        per_sample=torch.cat([loss.per_sample.detach() for loss in losses]),
        parts={name: torch.cat([loss.parts[name] for loss in losses]) for name in losses[0].parts},
    )
