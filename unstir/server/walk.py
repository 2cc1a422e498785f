"""Walks: a picture on its way, which can be left wherever its network is asked.

Knows: how a pipeline is stopped in the middle of a step and gone on with (greenlets), what it asks then.
Does not know: who answers, in which company, when.

A sampler is a loop that calls its denoiser, and knows nothing of anybody else. So that hundreds of them can share one
network, each runs in a greenlet, a stack of its own in the same thread: where it would call the network it leaves, and
goes on when there is an answer. (In threads of their own they would quarrel about the processor's cores.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import Tensor, nn

from unstir.condition import Condition
from unstir.editing import Album
from unstir.pipeline import Pipeline, Preview, Request, Result


@dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """What a network is asked.

    Args:
        network: who is asked.
        x: its input.
        scalar: its number a row.
        condition: what it is told.
    """

    network: nn.Module
    x: Tensor
    scalar: Tensor
    condition: Condition


def ask(network: nn.Module, x: Tensor, scalar: Tensor, condition: Condition) -> Tensor:
    """Leave the walk that this is called in, until its call is answered: for ``Pipeline.through``."""
    has_grad = torch.is_grad_enabled()  # a switch of the thread: each walk has its own way with it
    parent = getcurrent().parent
    assert parent is not None, "only a walk asks so"
    answer = parent.switch(Call(network=network, x=x, scalar=scalar, condition=condition))
    torch.set_grad_enabled(has_grad)
    return cast(Tensor, answer)


class Walk:
    """One picture on its way. It is made, gone on with and left in one and the same thread.

    Args:
        pipe: draws it; one that is asked through ``ask``.
        request: what is drawn.
        album: the pictures that it names.
        look: given each preview.
    """

    def __init__(self, pipe: Pipeline, request: Request, album: Album, look: Callable[[Preview], None]) -> None:
        self._pipe, self._request, self._album, self._look = pipe, request, album, look
        self._greenlet = greenlet(self._run)
        self.result: Result | None = None

    def go(self, answer: Tensor | None = None) -> Call | None:
        """Go on to the next question.

        Args:
            answer: to the last question; None at first.

        Returns:
            What is asked next, or None at the end, where ``result`` is there.

        Raises:
            Exception: whatever the pipeline raises; the walk is over then.
        """
        has_grad = torch.is_grad_enabled()
        try:
            said = self._greenlet.switch() if answer is None else self._greenlet.switch(answer)
        finally:
            torch.set_grad_enabled(has_grad)
        return said if isinstance(said, Call) else None

    def leave(self) -> None:
        """End the walk where it is."""
        if self._greenlet:  # it is on its way
            self._greenlet.throw(GreenletExit)

    def _run(self) -> None:
        for item in self._pipe.run([self._request], album=self._album):
            if isinstance(item, Preview):
                self._look(item)
            else:
                self.result = item
