"""Where numbers that are not finite come from.

Knows: the order in which modules are called, and gradients.
Does not know: what the numbers mean, or what becomes of a run that met them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, cast

import torch
from torch import Tensor, nn

from unstir.diffusion.objective import Loss


def culprit(network: nn.Module, losses: Sequence[Callable[[], Loss]]) -> str:
    """The part of a network in which what is not finite begins, found by computing the losses once more.

    Args:
        network: with the weights that the losses were computed with; its gradients are gone afterwards.
        losses: of each part of a batch; none where they cannot be computed again.

    Returns:
        In words: the first weight that is not finite, or else the first module whose output is not, or else the weight
        nearest to the loss whose gradient is not; empty where none is found.
    """
    spoiled = [name for name, weight in network.named_parameters() if not _is_finite(weight)]
    if spoiled:
        return f"the weight {spoiled[0]} is not finite"
    found: list[str] = []
    with ExitStack() as hooks:
        for name, module in cast("Iterator[tuple[str, nn.Module]]", network.named_modules()):
            if not any(True for _ in module.children()):
                hooks.enter_context(cast(Any, module.register_forward_hook(_noting(name, found))))
        for part in losses:
            part().per_sample.sum().backward()
            if found:
                break
    bad = [name for name, weight in network.named_parameters() if not _is_finite(weight.grad)]
    network.zero_grad()
    if found:
        return f"the first module whose output is not finite is {found[0]}"
    return f"the gradient of {bad[-1]} is not finite" if bad else ""


def _noting(name: str, found: list[str]) -> Callable[[nn.Module, Any, Any], None]:
    def note(module: nn.Module, given: Any, output: Any) -> None:
        if not found and isinstance(output, Tensor) and not _is_finite(output):
            found.append(name)

    return note


def _is_finite(tensor: Tensor | None) -> bool:
    return tensor is None or bool(torch.isfinite(tensor).all())
