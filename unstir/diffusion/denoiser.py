"""Denoisers: from a spoiled sample to a belief about the clean one.

Knows: how a network, a process and a parameterization make a belief; how a condition is bound.
Does not know: samplers, guidance, what a condition holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unstir.diffusion.parameterization import Parameterization
from unstir.diffusion.process import Estimate, Process
from unstir.diffusion.schedule import Level
from unstir.typing import C, C_in, X


class Network(Protocol[C_in]):
    """Any module from a tensor, one number a sample and a condition to a tensor. It knows nothing of diffusion."""

    @property
    def in_channels(self) -> int:
        """Channels of x alone."""
        ...

    @property
    def out_channels(self) -> int:
        """Channels of the result."""
        ...

    def __call__(
        self, x: Float[Tensor, "b c *site"], scalar: Float[Tensor, "b"], condition: C_in
    ) -> Float[Tensor, "b k *site"]:
        """The network's output at every site."""
        ...


class Denoiser(Protocol):
    """All that samplers ever see."""

    def __call__(self, x_t: X, level: Level, previous: Estimate | None = None) -> Estimate:
        """The belief about x0, given x_t at this level; ``previous`` is what was believed last, for who reads it."""
        ...


class Beliefs(Protocol):
    """Two beliefs about the same sample: a strong and a weak one."""

    def __call__(self, x_t: X, level: Level, previous: Estimate | None = None) -> tuple[Estimate, Estimate]:
        """The strong and the weak belief about x0, given x_t at this level."""
        ...


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two beliefs about the same sample, for guidance: a strong one and a weaker one.

    Args:
        both: the strong and the weak belief, in one batched call where one network gives both.
        strong: the strong belief alone, for levels where guidance is off.
    """

    both: Beliefs
    strong: Denoiser


class NetworkDenoiser(nn.Module, Generic[C]):
    """A network with the meaning of its numbers: the only module with weights in the mathematics.

    Args:
        network: any module; if it has a method ``read(condition)``, that is called once a sampling, not once a step.
        process: how samples are spoiled.
        parameterization: what the network's output means.
        is_self_conditioned: whether the network reads its own last belief about x0, joined to x on channels (zeros
            where there is none yet); its in_channels are then twice those of x.

    Source: Chen et al. 2023, arXiv:2208.04202, Sec. 3.2 (self-conditioning).
    """

    def __init__(
        self,
        network: Network[C],
        process: Process,
        parameterization: Parameterization,
        *,
        is_self_conditioned: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.process = process
        self.parameterization = parameterization
        self.is_self_conditioned = is_self_conditioned

    def forward(self, x_t: X, level: Level, condition: C, previous: Estimate | None = None) -> Estimate:
        """The belief about x0, given x_t at this level and what is known beside it.

        The network computes in the type of its weights; what it says is read in that of x_t.
        """
        return self._asked(x_t, level, condition, previous, self._dtype())

    def _asked(
        self, x_t: X, level: Level, condition: C, previous: Estimate | None, dtype: torch.dtype | None
    ) -> Estimate:
        x, scalar = self.parameterization.encode(x_t, level)
        if self.is_self_conditioned:
            x = torch.cat([x, torch.zeros_like(x) if previous is None else previous.x0.to(x)], 1)
        if dtype is not None and x.dtype != dtype:
            x = x.to(dtype)
        output = self.network(x, scalar, condition)
        if output.dtype != x_t.dtype:
            output = output.to(x_t.dtype)
        return self.parameterization.decode(output, x_t, level)

    def _dtype(self) -> torch.dtype | None:
        """Of the network's weights; None where it has none. Looking for it costs as much as a small step."""
        weights = cast("nn.Module", self.network).parameters()
        return next((weight.dtype for weight in weights), None)

    def given(self, condition: C) -> Denoiser:
        """The denoiser with its condition bound; words are read here, once."""
        return self._bound(self._read(condition))

    def _bound(self, read: C) -> Denoiser:
        dtype, takes_one_row = self._dtype(), getattr(self.network, "takes_one_row", False)

        def denoise(x_t: X, level: Level, previous: Estimate | None = None) -> Estimate:
            if x_t.shape[0] > 1 or takes_one_row:
                return self._asked(x_t, level, read, previous, dtype)
            # Kernels for one row may round differently from those for several: never call the network with one.
            twice = torch.cat([x_t, x_t])
            return self._asked(twice, _repeat(level, 2), read.cat(read), _twice(previous), dtype)[:1]

        return denoise

    def given_pair(self, strong: C, weak: C) -> Pair:
        """The beliefs under two conditions, in one call of twice the batch."""
        strong_read, weak_read = self._read(strong), self._read(weak)
        joined, dtype = strong_read.cat(weak_read), self._dtype()

        def both(x_t: X, level: Level, previous: Estimate | None = None) -> tuple[Estimate, Estimate]:
            twice = torch.cat([x_t, x_t])
            belief = self._asked(twice, _repeat(level, 2), joined, _twice(previous), dtype)
            count = x_t.shape[0]
            return belief[:count], belief[count:]

        return Pair(both=both, strong=self._bound(strong_read))

    def _read(self, condition: C) -> C:
        read = cast("Callable[[C], C] | None", getattr(self.network, "read", None))
        if read is None:
            return condition
        with torch.no_grad():
            return read(condition)


def _twice(previous: Estimate | None) -> Estimate | None:
    return None if previous is None else Estimate(x0=torch.cat([previous.x0, previous.x0]))


def _repeat(level: Level, times: int) -> Level:
    if level.t.ndim == 0:
        return level
    return level.map(lambda numbers: numbers.repeat(times))
