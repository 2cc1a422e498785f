"""Feed: what has the next batches ready when they are asked for.

Knows: which batches follow, how threads prepare them ahead, how pictures, words and noise reach the device.
Does not know: what a batch is made of, or what becomes of it.

A batch is a function of where it starts, so that whoever prepares it, and when, changes nothing in it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Generic, Literal, Self, TypeVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from unstir.condition import Condition
from unstir.device import pins
from unstir.speedups import is_on
from unstir.training.batches import Captioned
from unstir.training.memory import free_bytes
from unstir.typing import Noise, X

T = TypeVar("T")
Draw = tuple[tuple[int, ...], Literal["normal", "uniform"], torch.Size, torch.dtype]
"""What is asked of a noise: a sub-key, a kind of numbers, the shape of those of one sample, their format."""

_SHARE = 4  # pictures kept on the device take one part in so many of what is free there
_WORKERS = 2  # where nobody says how many: one prepares while the other waits for the interpreter


def workers_of(asked: int | Literal["auto"], device: torch.device) -> int:
    """The threads that prepare batches; "auto" is none where the processor that would is the one that trains."""
    if asked != "auto":
        return asked
    return _WORKERS if pins(device) else 0


class Feed(Generic[T]):
    """The batches of a run, in order, each prepared when it is asked for or some steps ahead.

    Args:
        prepare: makes the batch of (start, count); called in threads where there are workers.
        follow: the (start, count) of the batch that begins at a place of the run; None at its end.
        workers: threads; at most twice as many batches are ready or in the making.
    """

    def __init__(
        self, prepare: Callable[[int, int], T], follow: Callable[[int], tuple[int, int] | None], *, workers: int
    ) -> None:
        self.prepare, self.follow, self.workers = prepare, follow, workers
        self._ahead: deque[tuple[tuple[int, int], Future[T]]] = deque()
        self._pool: ThreadPoolExecutor | None = None

    def take(self, start: int, count: int) -> T:
        """The batch of (start, count); those that follow it are begun, where it is one of the run.

        Raises:
            Exception: what preparing it raised, here and not before.
        """
        asked = (start, count)
        if not self.workers or self.follow(start) != asked:
            return self.prepare(start, count)
        if not self._ahead or self._ahead[0][0] != asked:  # the run began, or went back to a checkpoint
            self._forget()
            self._begin(asked)
        _, batch = self._ahead.popleft()
        self._fill(start + count)
        try:
            return batch.result()
        finally:
            if not self._ahead:  # the last batch of the run
                self.close()

    def close(self) -> None:
        """End the threads, when each has made the batch that it is at."""
        self._forget()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def _fill(self, start: int) -> None:
        """Begin what follows a batch that ends at ``start``, up to as many batches as may lie ahead."""
        if self._ahead:
            last, count = self._ahead[-1][0]
            start = last + count
        while len(self._ahead) < 2 * self.workers and (asked := self.follow(start)) is not None:
            self._begin(asked)
            start += asked[1]

    def _begin(self, asked: tuple[int, int]) -> None:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="unstir-feed")
        self._ahead.append((asked, self._pool.submit(self.prepare, *asked)))

    def _forget(self) -> None:
        while self._ahead:
            self._ahead.popleft()[1].cancel()


def is_of_one_shape(data: Captioned) -> bool:
    """Whether all pictures have the same height and width; of a set on the disk, whether wide and tall ones get it."""
    if data.large is None:
        return len({picture.shape for picture in data.pictures}) <= 1
    looks = (Image.new("RGB", size) for size in ((96, 64), (64, 96)))
    return len({data.large.shape(look).shape for look in looks}) == 1


def resident(data: Captioned, device: torch.device, *, is_forced: bool = False) -> Captioned:
    """The same data with their pictures on the device, where they all have one shape and take little of it.

    A batch is then put together there, from bytes that crossed over once.

    Args:
        data: with pictures on the CPU.
        device: where they are to lie.
        is_forced: also on a CPU, where it changes nothing.
    """
    if not is_forced and (device.type == "cpu" or not is_on("resident_pictures")):
        return data
    if data.large is not None or not len(data) or not is_of_one_shape(data):
        return data
    if _SHARE * len(data) * data.pictures[0].numel() > free_bytes(device):
        return data
    return replace(data, pictures=tuple(torch.stack(list(data.pictures)).to(device).unbind()))


def pinned(tensor: Tensor) -> Tensor:
    """The tensor in memory that the device reads by itself, where it is not on the device already."""
    return tensor.pin_memory() if tensor.device.type == "cpu" else tensor


def of_one_length(condition: Condition, length: int) -> Condition:
    """The condition with its words padded to a length, whatever the longest of them; padding has no influence."""
    words, mask = condition.words, condition.word_mask
    if words is None or mask is None:
        return condition
    missing = length - words.shape[1]
    return replace(condition, words=F.pad(words, (0, missing)), word_mask=F.pad(mask, (0, missing)))


class Foresight:
    """What is drawn from the noise of a batch: learned from the first ones, so that threads draw it for the next.

    Noise is made on the processor, one sample after the other, and for large pictures that takes as long as a step of
    a fast device.
    """

    def __init__(self) -> None:
        self._asked: dict[torch.Size, frozenset[Draw]] = {}

    def of(self, pictures: Tensor, noise: Noise, *, is_pinned: bool) -> Noise:
        """The noise of a batch, with the numbers that batches of such pictures have asked for so far."""
        shape = pictures.shape[1:]

        def note(draw: Draw) -> None:
            self._asked[shape] = self._asked.get(shape, frozenset()) | {draw}

        ready: dict[Draw, Tensor] = {}
        for draw in self._asked.get(shape, frozenset()):
            _, _, own, dtype = draw
            numbers = _drawn(noise, draw, torch.empty(len(pictures), *own, dtype=dtype))
            ready[draw] = pinned(numbers) if is_pinned else numbers
        return _Foreseen(base=noise, ready=ready, note=note)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Foreseen(Noise):
    """A noise of which some numbers are there; they are those that would be drawn.

    Args:
        base: the noise.
        ready: what is there, of all samples.
        note: told what is not.
        key: sub-key of the base that is asked.
    """

    base: Noise
    ready: Mapping[Draw, Tensor]
    note: Callable[[Draw], None]
    key: tuple[int, ...] = ()

    def at(self, *key: int) -> Self:
        return replace(self, key=(*self.key, *key))

    def rows(self, index: slice) -> Self:
        ready = {draw: numbers[index] for draw, numbers in self.ready.items()}
        return replace(self, base=self.base.rows(index), ready=ready)

    def normal(self, like: X) -> X:
        return self._numbers("normal", like)

    def uniform(self, like: X) -> X:
        return self._numbers("uniform", like)

    def brownian(self, s: float, t: float, like: X) -> X:
        return self.base.at(*self.key).brownian(s, t, like)

    def _numbers(self, kind: Literal["normal", "uniform"], like: X) -> X:
        draw = (self.key, kind, like.shape[1:], like.dtype)
        found = self.ready.get(draw)
        if found is None or len(found) != len(like):
            self.note(draw)
            return _drawn(self.base, draw, like)
        return torch.empty_like(like).copy_(found, non_blocking=True)


def _drawn(noise: Noise, draw: Draw, like: X) -> X:
    key, kind, _, _ = draw
    noise = noise.at(*key)
    return noise.normal(like) if kind == "normal" else noise.uniform(like)
