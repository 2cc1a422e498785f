"""Replay: the calls of a network recorded on a GPU, and asked for again as a whole.

Knows: how somebody else is asked in a network's place; which calls are alike, what a recording reads and writes, how
many are kept, when there is none.
Does not know: what the network computes, or who asks.

A small network on a GPU takes as long as the processor needs to ask for its kernels, one by one. A CUDA graph asks for
all of them at once; what they compute stays the same.
"""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unstir.condition import Condition

Capture = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]
"""Records a call; gives what plays it again, and the tensor that is filled by that."""

MOST = 4
"""Recordings that are kept; each holds the memory of a call."""


def captured(call: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """The recording of a call as a CUDA graph; nothing is computed before it is played."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # others may pin memory for training meanwhile
        output = call()
    return graph.replay, output


@dataclass(frozen=True, kw_only=True, eq=False)
class _Recording:
    """One call.

    Args:
        inputs: what it reads, to be filled before it is played.
        play: does it again.
        output: what it fills.
    """

    inputs: tuple[Tensor, ...]
    play: Callable[[], None]
    output: Tensor

    def __call__(self, given: tuple[Tensor, ...]) -> Tensor:
        for mine, theirs in zip(self.inputs, given, strict=True):
            mine.copy_(theirs)
        self.play()
        return self.output.clone()


Ask = Callable[[nn.Module, Tensor, Tensor, Condition], Tensor]
"""Answers for a network, given the network and its arguments: x, scalar, condition."""


Read = Callable[[nn.Module, Condition], Condition]
"""Reads a condition's words for a network."""


def read_by(network: nn.Module, condition: Condition) -> Condition:
    """The condition with its words read, as the network does it."""
    read = getattr(network, "read", None)
    return condition if read is None else read(condition)


class Around(nn.Module):
    """Something around a network; what the network says of itself, and how it reads words, stays.

    Args:
        network: of (x, scalar, condition).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @property
    def in_channels(self) -> int:
        """Channels of x alone."""
        return cast(Any, self.network).in_channels

    @property
    def out_channels(self) -> int:
        """Channels of the result."""
        return cast(Any, self.network).out_channels

    def read(self, condition: Condition) -> Condition:
        """The condition with its words read, as the network does it."""
        return read_by(self.network, condition)


class Wrapped(Around):
    """A network in whose place somebody else is asked.

    Args:
        network: of (x, scalar, condition).
        ask: answers for it, and calls it as it likes, but never with one row.
        reader: reads words for it.
    """

    takes_one_row = True  # whoever answers adds the second one, if it is still missing then

    def __init__(self, network: nn.Module, ask: Ask, reader: Read = read_by) -> None:
        super().__init__(network)
        self.ask, self.reader = ask, reader

    def read(self, condition: Condition) -> Condition:
        """The condition with its words read."""
        return self.reader(self.network, condition)

    def forward(
        self, x: Float[Tensor, "b c *site"], scalar: Float[Tensor, "b"], condition: Condition
    ) -> Float[Tensor, "b k *site"]:
        """The answer."""
        return self.ask(self.network, x, scalar, condition)


class Replayed(Around):
    """A network whose calls are recorded the second time that their shapes come, and replayed from then on.

    Where gradients are wanted it is the network itself, and also for good once a call could not be recorded, which is
    said in a warning. Weights are read where they lie when a call is recorded: they may change in place, but not move.

    Args:
        network: what is called; of (x, scalar, condition).
        capture: records a call.
    """

    def __init__(self, network: nn.Module, *, capture: Capture = captured) -> None:
        super().__init__(network)
        self.capture = capture
        self.is_recorded = True
        self._recordings: OrderedDict[object, _Recording | None] = OrderedDict()  # None where shapes came once
        self._lock = threading.Lock()  # recordings share no memory with each other, but with themselves

    def forward(
        self, x: Float[Tensor, "b c *site"], scalar: Float[Tensor, "b"], condition: Condition
    ) -> Float[Tensor, "b k *site"]:
        """The network's output at every site."""
        if not self.is_recorded or torch.is_grad_enabled():
            return self.network(x, scalar, condition)
        told = _tensors(condition)
        given = (x, scalar, *told.values())
        key = (*((each.shape, each.dtype) for each in given), *told, *_number_of(x), self.network.training)
        with self._lock:
            found = self._recordings.get(key)
            if found is None and key in self._recordings:
                found = self._recorded(x, scalar, condition)
            self._recordings[key] = found
            self._recordings.move_to_end(key)
            if len(self._recordings) > MOST:
                self._recordings.popitem(last=False)
            if found is not None:
                return found(given)
        return self.network(x, scalar, condition)

    def _recorded(self, x: Tensor, scalar: Tensor, condition: Condition) -> _Recording | None:
        def own(tensor: Tensor) -> Tensor:
            return torch.empty_like(tensor, device=x.device).copy_(tensor)

        x, scalar, condition = own(x), own(scalar), condition.map(own)
        try:
            play, output = self.capture(lambda: self.network(x, scalar, condition))
        except Exception as error:  # whatever a device, a driver or a layer has against being recorded
            self.is_recorded = False
            self._recordings.clear()
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            warnings.warn(f"calls of the network cannot be recorded here and stay as they are ({reason})", stacklevel=4)
            return None
        return _Recording(inputs=(x, scalar, *_tensors(condition).values()), play=play, output=output)


def _tensors(condition: Condition) -> dict[str, Tensor]:
    present = {field.name: getattr(condition, field.name) for field in fields(condition)}
    return {name: tensor for name, tensor in present.items() if tensor is not None}


def _number_of(x: Tensor) -> tuple[bool, torch.dtype]:
    """Which numbers products are made in around here: a recording keeps those of its time."""
    kind = x.device.type
    return torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
